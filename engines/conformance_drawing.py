"""Laws of options that some engines carry: schedules, drafters and constraints.

They say that the option does what it says, whichever way the engine takes to it: a processor over
logits, requests of constant temperature one after the other, or a grammar of the backend's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from engines.base import (
    Capability,
    ChecksSampling,
    Constraint,
    Finish,
    Prefix,
    Sampling,
    TokenIds,
)
from engines.conformance_trial import Trial, require
from engines.errors import UnsupportedByEngine

_LENGTH: Final = 16
_DRAFTERS: Final = ("adaptive", "ngram", "suffix", "token_recycling")
_DIGITS: Final = "[0-9]{3}"


@dataclass(frozen=True)
class Halves:
    """One temperature up to a position, another from there on."""

    at: int
    heats: tuple[float, float] = (2.0, 0.0)

    def temperature(self, position: int) -> float:
        """See `engines.base.Schedule`."""
        return self.heats[position >= self.at]

    def segments(self, max_pieces: int) -> list[tuple[int, float]]:
        """See `engines.base.Schedule`; two pieces."""
        return [(0, self.heats[0]), (self.at, self.heats[1])]


async def schedules_count_from_the_response(trial: Trial) -> None:
    """An answer is greedy where its schedule is, drawn in one piece or in steps."""
    prefix, banned = await trial.open(), trial.engine.info.eos_ids
    cold = Sampling(max_tokens=_LENGTH, ban_ids=banned, temperature=0.0)
    at = 6
    for size in (None, 4, 9):
        how = replace(cold, temperature=1.0, max_step_tokens=size)
        frozen = await _drawn(trial, prefix, replace(how, schedule=Halves(at)))
        thawed = await _drawn(trial, prefix, replace(how, schedule=Halves(at, (0.0, 2.0))))
        require(len(frozen) == len(thawed) == _LENGTH, f"not {_LENGTH} tokens")
        [stem] = await trial.engine.extend([(prefix, frozen[:at])])
        tail = (await trial.child(trial.own(stem), cold)).token_ids
        head = (await trial.child(prefix, replace(cold, max_tokens=at))).token_ids
        for drawn, likeliest in ((frozen[at:], tail), (thawed[:at], head)):
            require(
                drawn == likeliest,
                f"in steps of {size}, {drawn} were drawn and {likeliest} are the likeliest",
            )


async def _drawn(trial: Trial, prefix: Prefix, how: Sampling) -> TokenIds:
    ids: TokenIds = ()
    while True:
        step = await trial.child(prefix, how, seed=3 + len(ids))
        ids += step.token_ids
        if not step.finish.is_open:
            return ids
        prefix = step.prefix


async def constraints_shape_the_whole_answer(trial: Trial) -> None:
    """Every answer is what the regular expression says, and ends by itself."""
    how = Sampling(max_tokens=_LENGTH, constraint=Constraint(regex=_DIGITS))
    done, _ = await trial.children(await trial.open(), how, (1, 2, 3))
    for child in done:
        require(bool(re.fullmatch(_DIGITS, child.text)), f"{child.text!r} is not {_DIGITS}")
        require(child.finish is Finish.STOP_TOKEN, f"finish is {child.finish}, not stop_token")


async def drafts_change_nothing(trial: Trial) -> None:
    """The likeliest answer is the same whoever guesses it, in one piece or in steps."""
    prefix, banned = await trial.open(), trial.engine.info.eos_ids
    how = Sampling(max_tokens=_LENGTH, ban_ids=banned, temperature=0.0)
    plain = await _drawn(trial, prefix, how)
    names = [name for name in _DRAFTERS if await _is_taken(trial, replace(how, drafter=name))]
    require(bool(names), f"none of {_DRAFTERS} is taken, though drafters are declared")
    for name in names:
        for size in (None, 5):
            drafted = await _drawn(trial, prefix, replace(how, drafter=name, max_step_tokens=size))
            require(drafted == plain, f"{name} in steps of {size} made {drafted} of {plain}")


async def _is_taken(trial: Trial, how: Sampling) -> bool:
    if isinstance(trial.engine, ChecksSampling):
        try:
            trial.engine.check_sampling(how)
        except UnsupportedByEngine:
            return False
    return True


DRAWING_CHECKS: Final = (
    (
        schedules_count_from_the_response,
        frozenset({Capability.TOKENS, Capability.SCHEDULE}),
    ),
    (
        drafts_change_nothing,
        frozenset({Capability.TOKENS, Capability.DRAFTER}),
    ),
    (
        constraints_shape_the_whole_answer,
        frozenset({Capability.TOKENS, Capability.CONSTRAINT}),
    ),
)
"""Each law with the capabilities without which it says nothing."""
