"""Saffron: token-level beam search by the rewards of all next tokens at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Final

from pydantic import Field

from engines.base import Capability, NextTokens, Sampling
from reward_models.base import RewardRow, rewards_at
from search.base import Outcome, Params, Ranked
from search.branch import Branch
from search.budget import Reservation
from search.errors import BudgetExhausted
from search.nucleus import (
    Choice,
    banned_mass,
    best_choices,
    choices_of,
    least_of,
    mass_beside,
    nucleus,
)
from search.outcomes import first_of
from search.search import Search

_UNUSED: Final = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "logit_bias": "logit_bias",
    "logprobs": "top_logprobs",
    "schedule": "bough.schedule",
    "drafter": "bough.drafter",
    "constraint": "response_format",
}
"""Options of sampling that mean nothing where nothing is sampled, as the request calls them."""


class SaffronParams(Params):
    """Parameters of `saffron`."""

    width: int = Field(default=16, ge=1, le=1024, description="Answers kept after every token.")
    top_p: float = Field(
        default=0.8,
        gt=0,
        lt=1,
        description="The model proposes its likeliest tokens that hold this much probability.",
    )
    min_new_tokens: int = Field(
        default=0, ge=0, le=65536, description="Tokens before an answer may end."
    )
    finalist_judge: str | None = Field(
        default=None,
        min_length=1,
        description="Another reward model, which ranks the answers of the last beam.",
    )


@dataclass(frozen=True)
class Saffron:
    """After every token keep the answers that the reward model expects most of.

    The model's nucleus proposes tokens; one forward pass of a multifurcation reward model values
    all of them. Finished answers compete with those that go on.

    Source: Qiu et al., "Saffron-1: Safety Inference Scaling", arXiv 2506.06444, section 4.
    Differs: from the published code, where only finished answers keep a score and the choice among
    the others is arbitrary: here every answer keeps the reward of its last token, and finished and
    live ones are ranked by it, ties by place and token id. An answer whose whole nucleus is
    forbidden goes on with the likeliest token, ranked last. Answers may end at once
    (`min_new_tokens` is 16 in the paper). A banned token less likely than all that the engine lists
    is taken for impossible where the rest is normalised (`search.nucleus.nucleus`).
    """

    params: SaffronParams
    name: ClassVar[str] = "saffron"
    Params: ClassVar[type[SaffronParams]] = SaffronParams
    requires: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.NEXT_LOGPROBS, Capability.TOKENS}
    )
    needs_judge: ClassVar[bool] = True
    needs_next_rewards: ClassVar[bool] = True
    judge_params: ClassVar[tuple[str, ...]] = ("finalist_judge",)

    async def run(self, search: Search) -> Outcome:
        """Propose, value, keep the best, token by token; the best of the last beam answers."""
        for name in _unused(search.sampling):
            search.ignore(name)
        with self._set_aside(search):
            ranked = await self._searched(search)
        return search.outcome(await self._judged_again(search, ranked))

    async def _searched(self, search: Search) -> list[Ranked]:
        """The last beam, best first."""
        await search.score(search.given)
        done = search.usable(search.given)
        beam, width = [*done, search.root], len(done) + self._paid(search, len(done))
        try:
            while width > len(done) and any(one.finish is None for one in beam):
                grown = await self._step(search, beam, width)
                if not grown:
                    break
                beam = grown
        except BudgetExhausted:
            pass  # what the beam holds is the answer
        ranked = [Ranked(one, search.value(one)) for one in beam if one is not search.root]
        return sorted(ranked, key=_by_score)

    def _set_aside(self, search: Search) -> Reservation:
        """What judging the last beam again may cost, where the search has something left beside."""
        left, width = search.budget.left("reward_calls"), self.params.width
        if self.params.finalist_judge is None or (left is not None and left <= width):
            width = 0
        return search.budget.reserve(reward_calls=width)

    async def _judged_again(self, search: Search, ranked: list[Ranked]) -> list[Ranked]:
        """The last beam as the finalists' judge ranks it; as it was where nothing is left to pay.

        What that judge cannot value is left out.
        """
        judge, left = self.params.finalist_judge, search.budget.left("reward_calls")
        if judge is None or not ranked:
            return ranked
        if left is not None and left < len(ranked):
            search.budget.cut("reward_calls", len(ranked))
            return ranked
        values = await search.score_by(judge, [one.branch for one in ranked])
        again = [
            Ranked(one.branch, value)
            for one, value in zip(ranked, values, strict=True)
            if not math.isnan(value)
        ]
        if not again:
            return ranked
        search.note("last beam judged again")
        return sorted(again, key=_by_score)

    async def _step(self, search: Search, beam: Sequence[Branch], width: int) -> list[Branch]:
        """The next beam; nothing when none of it can be continued or paid for."""
        live = [at for at, one in enumerate(beam) if one.finish is None]
        looks = await self._look(search, [beam[at] for at in live])
        choices = [
            Choice(at, None, 0.0, search.value(one))
            for at, one in enumerate(beam)
            if one.finish is not None
        ]
        tokens = [one for one, _ in looks]
        async with search.budget.in_time():
            rewards = await rewards_at([row for _, row in looks], [one.ids for one in tokens])
        least = least_of(rewards, width)
        for at, proposed, worth in zip(live, tokens, rewards, strict=True):
            choices += choices_of(at, proposed, worth, least)
        kept = best_choices(choices, width)
        if not kept:
            return []
        longer = [(one, one.token) for one in kept if one.token is not None]
        children = await search.extend(
            [(beam[one.member], (token,)) for one, token in longer],
            [(one.logp,) for one, _ in longer],
            last=True,
        )
        if longer and not children:
            return []
        grown = {one: child for child, (one, _) in zip(children, longer, strict=False)}
        for one, child in grown.items():
            search.keep_value(child, one.score)
        kept = [one for one in kept if one.token is None or one in grown]
        members = {one.member for one in kept}
        lost = (one for at, one in enumerate(beam) if at not in members and one is not search.root)
        search.prune(lost, "not among the best")
        return [beam[one.member] if one.token is None else grown[one] for one in kept]

    async def _look(
        self, search: Search, live: Sequence[Branch]
    ) -> list[tuple[NextTokens, RewardRow]]:
        """Each one's nucleus and rewards: two forward passes, side by side.

        Raises:
            BudgetExhausted: They cannot be paid for any more.
        """
        try:
            async with asyncio.TaskGroup() as both:
                tokens = both.create_task(self._nuclei(search, live))
                rewards = both.create_task(search.next_rewards(live))
        except ExceptionGroup as err:
            raise first_of(err) from err
        return list(zip(tokens.result(), rewards.result(), strict=True))

    async def _nuclei(self, search: Search, live: Sequence[Branch]) -> list[NextTokens]:
        """Each one's nucleus; asked for more where banned tokens take up the mass."""
        top_p, banned = self.params.top_p, self._banned(search, live[0].num_tokens)
        listed = await search.next_tokens(live, mass=top_p)
        found = [nucleus(one, top_p, banned) for one in listed]
        while short := [at for at, one in enumerate(found) if one is None]:
            mass = max(mass_beside(top_p, banned_mass(listed[at], banned)) for at in short)
            more = await search.next_tokens([live[at] for at in short], mass=mass)
            for at, one in zip(short, more, strict=True):
                is_all = len(one.ids) <= len(listed[at].ids)
                listed[at] = replace(one, tail_mass=0.0) if is_all else one
                found[at] = nucleus(listed[at], top_p, banned)
        return [one for one in found if one is not None]

    def _banned(self, search: Search, position: int) -> frozenset[int]:
        """Tokens that must not come after so many of the answer."""
        how = search.sampling
        if position >= max(self.params.min_new_tokens, how.min_tokens):
            return how.ban_ids
        return how.ban_ids | search.engine.eos_ids | how.stop_token_ids

    def _paid(self, search: Search, num_given: int) -> int:
        """Places in the beam beside the given answers; each counts as a candidate."""
        wanted = max(0, self.params.width - num_given)
        left = search.budget.left("candidates")
        if left is not None and left < wanted:
            search.budget.cut("candidates", wanted)
            wanted = left
        search.budget.count(candidates=wanted)
        return wanted


def _by_score(one: Ranked) -> float:
    return -(one.score or 0.0)


def _unused(how: Sampling) -> Iterator[str]:
    usual = {one.name: getattr(Sampling(), one.name) for one in fields(Sampling)}
    return (name for field, name in _UNUSED.items() if getattr(how, field) != usual[field])
