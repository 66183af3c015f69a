"""Taking turns on the same problems, and what is made of the counts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from engines.base import Continuation, Finish, Sampling, TokenIds
from loadtests.bench.drafts_vllm import Measured, Outcome, Plan, options_of, take_turns


class Talker:
    """Says the prompt's tokens; five drafted and four accepted ones for every answer."""

    def __init__(self, name: str, log: list[tuple[str, int]], *, errs: bool = False) -> None:
        self.name, self.log, self.errs = name, log, errs
        self.answers = 0

    @property
    def drafting(self) -> SimpleNamespace:
        return SimpleNamespace(drafted=5 * self.answers, accepted=4 * self.answers)

    def render(self, messages: list[dict[str, str]]) -> TokenIds:
        return tuple(messages[0]["content"].encode())

    async def open(self, prompt: TokenIds) -> TokenIds:
        return prompt

    async def sample(
        self, root: TokenIds, how: Sampling, *, seeds: list[int]
    ) -> AsyncIterator[Continuation]:
        self.log.append((self.name, seeds[0]))
        said = (1, 2, 3, 4, 5, 6 if not self.errs else 7)
        self.answers += 1
        yield Continuation(None, said, "", (), Finish.STOP_TOKEN, overrun_ids=(0,))  # type: ignore[arg-type]


async def test_everybody_answers_the_same_in_another_order_each_round() -> None:
    log: list[tuple[str, int]] = []
    engines: dict[str, Any] = {
        "plain": Talker("plain", log),
        "adaptive": Talker("adaptive", log, errs=True),
    }
    outcomes = await take_turns(engines, Plan(("plain", "adaptive"), prompts=4, rounds=2))
    assert [name for name, _ in log] == [
        *("plain", "adaptive"),  # once to warm up
        *("plain", "plain", "adaptive", "adaptive"),
        *("adaptive", "adaptive", "plain", "plain"),
    ]
    ours = outcomes["adaptive"]
    assert (ours.tokens, ours.drafted, ours.accepted) == ([14, 14], 20, 16)
    assert len(ours.seconds) == 2
    assert ours.accepted_per_step == pytest.approx(16 / 12)
    assert (ours.mismatches, outcomes["plain"].mismatches) == (4, 0)


def test_what_was_measured_travels_as_one_line() -> None:
    outcome = Outcome([30, 20], [2.0, 3.0], drafted=40, accepted=25, draft_us=211.0)
    measured = Measured({"adaptive": outcome}, {"suffix": "not installed"})
    line = measured.to_json()
    assert "\n" not in line
    assert '"accepted_per_step": 1.0, "tokens_per_s": 10.0' in line
    assert Measured.from_json(line) == measured


def test_contenders_are_engine_options() -> None:
    assert options_of("plain", 8) == {}
    assert options_of("adaptive", 8) == {"drafter": "adaptive", "draft_tokens": 8}
    for own in ("ngram", "suffix"):
        config = options_of(own, 8)["speculative_config"]
        assert (config["method"], config["num_speculative_tokens"]) == (own, 8)
