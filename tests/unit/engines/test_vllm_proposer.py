"""What vLLM is told to draft: whose rows learn from whom, and what ends a chain."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines.drafters import adaptive
from engines.drafters.base import EMPTY, ROOT, TokenTree, chain
from engines.drafters.errors import DrafterError
from engines.errors import UnsupportedByEngine
from engines.vllm_proposer import Plan, Proposer, best_chain
from engines.vllm_rows import RunnerRows, label
from engines.vllm_worker import DraftAccess

VOCAB = 50
CONTEXT = 64
PLAN = Plan("m", "adaptive", "hash", None, 0.2)


def config(plan: Plan = PLAN, draft_tokens: int = 4) -> Any:
    """The part of vLLM's configuration that is read."""
    return SimpleNamespace(
        additional_config=plan.to_config(),
        speculative_config=SimpleNamespace(num_speculative_tokens=draft_tokens),
        model_config=SimpleNamespace(max_model_len=CONTEXT, get_vocab_size=lambda: VOCAB),
    )


class Runner:
    """Rows as vLLM's model runner keeps them; a request's number is its place in `texts`."""

    def __init__(self, labels: Sequence[dict[str, Any] | None], max_tokens: int = 40) -> None:
        self.requests = {
            str(number): SimpleNamespace(
                sampling_params=SimpleNamespace(extra_args=args, max_tokens=max_tokens),
                output_token_ids=[],
            )
            for number, args in enumerate(labels)
        }
        self.input_batch = SimpleNamespace(req_ids=list(self.requests))
        self.now = 0.0
        self.pause = 1.0  # long enough that no step is short
        self.proposer = Proposer(config(), lambda: self.now)
        self.proposer.attach(RunnerRows(self))

    def step(self, texts: dict[int, Sequence[int]], gained: int = 1) -> dict[int, list[int]]:
        """One call of `propose`, rows in the order of `texts`; drafts by request."""
        self.now += self.pause
        self.input_batch.req_ids = [str(number) for number in texts]
        table = np.zeros((len(texts), CONTEXT), dtype=np.int32)
        for at, text in enumerate(texts.values()):
            table[at, : len(text)] = text
        counts = np.array([len(text) for text in texts.values()])
        sampled = [list(text[len(text) - gained :]) for text in texts.values()]
        for number, new in zip(texts, sampled, strict=True):
            self.requests[str(number)].output_token_ids += new
        return dict(zip(texts, self.proposer.propose(sampled, counts, table), strict=True))


ROOT_TOKENS = (1, 2, 3)
SONG = (7, 8, 9, 10, 11, 7, 8, 9, 10, 11, 7, 8)


def test_a_run_learns_from_its_prompt_and_what_it_drew() -> None:
    runner = Runner([label("a", ROOT_TOKENS)])
    assert runner.step({0: (*SONG, 9)}) == {0: [10, 11, 7, 8]}


def test_branches_of_a_run_share_and_rows_may_move() -> None:
    runner = Runner([label("a", ROOT_TOKENS)] * 2)
    runner.step({0: SONG})
    found = runner.step({1: (*ROOT_TOKENS, 8, 9), 0: (*SONG, 9)})
    assert found[0] == [10, 11, 7, 8]
    assert found[1][:1] == [10]  # only the other branch ever had it


def test_tenants_share_nothing_though_their_prompts_are_the_same() -> None:
    """With the other tenant's rows in the batch or without, the drafts are the same."""
    alone = Runner([label("a", ROOT_TOKENS)])
    beside = Runner([label("a", ROOT_TOKENS), label("b", ROOT_TOKENS)])
    text = (*ROOT_TOKENS, 8, 9)
    for end in range(6, len(SONG) + 1):
        beside.step({1: SONG[:end]})
    assert beside.step({1: (*SONG, 9)})[1]
    assert beside.step({0: text, 1: (*SONG, 9, 10)})[0] == alone.step({0: text})[0] == []


def test_what_one_run_drew_helps_the_next_of_the_same_tenant() -> None:
    runner = Runner([label("a", ROOT_TOKENS), label("a", (4, 5)), label("b", (4, 5))])
    for end in range(6, len(SONG) + 1):
        runner.step({0: SONG[:end]})
    found = runner.step({1: (4, 5, 8, 9), 2: (4, 5, 8, 9)})
    assert found[1][:2] == [10, 11]
    assert found[2] == []


def test_requests_without_a_label_teach_nobody_and_get_nothing() -> None:
    runner = Runner([None, label("", ROOT_TOKENS)])
    assert runner.step({0: (*SONG, 9)}) == {0: []}
    assert runner.step({1: (4, 5, 8, 9)}) == {1: []}
    assert runner.proposer.report().rows == 1


def test_nothing_is_drafted_before_the_rows_are_known() -> None:
    proposer = Proposer(config())
    proposer.load_model("a model")
    assert proposer.propose([[9]], np.array([3]), np.array([[7, 8, 9]])) == [[]]
    assert proposer.report().rows == 0


def test_rows_still_reading_their_prompt_are_left_alone() -> None:
    runner = Runner([label("a", ROOT_TOKENS)])
    assert runner.step({0: SONG}, gained=0) == {0: []}
    assert runner.proposer.report().entries == 0


def test_chains_end_where_the_request_or_the_context_does() -> None:
    runner = Runner([label("a", ROOT_TOKENS)], max_tokens=3)
    assert runner.step({0: (*SONG, 9)}) == {0: [10]}  # the third is drawn behind it
    assert runner.step({0: (*SONG, 9, 10)}) == {0: []}
    long = SONG * 6
    roomy = Runner([label("a", ROOT_TOKENS)])
    assert len(roomy.step({0: long[: CONTEXT - 3]})[0]) == 2
    assert roomy.step({0: long[: CONTEXT - 1]}) == {0: []}


def test_a_step_drafts_no_longer_than_a_share_of_the_models_time() -> None:
    """Everybody is drafted for after a pause; at 4 ms a step, one row of two that take 2 ms."""
    runner = Runner([label("a", ROOT_TOKENS)] * 2)

    runner.pause = 0.002

    def tick() -> float:
        runner.now += 0.002
        return runner.now

    runner.proposer = Proposer(config(), tick)
    runner.proposer.attach(RunnerRows(runner))
    assert all(runner.step({0: (*SONG, 9), 1: (*SONG, 9)}).values())
    served = []
    for step in range(4):
        song = (*SONG, *(SONG[2:] * 2)[: 2 + step])
        drafts = runner.step({0: song, 1: song})
        assert sorted(map(bool, drafts.values())) == [False, True]
        served += [number for number, found in drafts.items() if found]
    assert set(served) == {0, 1}  # in turns
    assert runner.proposer.report().left_out == 4
    runner.now += 3600.0  # nobody asked for anything: no step takes so long
    song = (*SONG, *(SONG[2:] * 2)[:6])
    assert sorted(map(bool, runner.step({0: song, 1: song}).values())) == [False, True]


def test_a_run_is_forgotten_when_its_rows_are_gone_for_long() -> None:
    runner = Runner([label("a", ROOT_TOKENS), label("a", (4, 5))])
    runner.step({0: SONG})
    for _ in range(511):
        runner.step({1: (4, 5, 6)})
    assert runner.proposer.report().runs == 2
    runner.step({1: (4, 5, 6)})
    assert runner.proposer.report().runs == 1


def test_what_is_held_is_bounded() -> None:
    """400 runs of other tokens; only so many are remembered, within what is stated."""
    tokens = np.random.default_rng(0).integers(0, VOCAB, (400, 40)).tolist()
    runner = Runner([label("a", tuple(text[:3])) for text in tokens])
    for number, text in enumerate(tokens):
        runner.step({number: text})
    report = runner.proposer.report()
    assert report.runs == 64
    assert 0 < report.entries <= report.max_entries


class Failing(adaptive.Adaptive):
    """Fails when it sees a 13."""

    def propose(self, context: Sequence[int], *args: Any, **kwargs: Any) -> TokenTree:
        if context[-1] == 13:
            raise KeyError("an unlucky number")
        return super().propose(context, *args, **kwargs)


def test_a_drafter_that_fails_is_put_away_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(adaptive, "Adaptive", Failing)
    runner = Runner([label("a", ROOT_TOKENS)] * 2)
    assert runner.step({0: (*SONG, 9)}) == {0: [10, 11, 7, 8]}
    with caplog.at_level(logging.ERROR):
        assert runner.step({0: (*SONG, 9, 10), 1: (*SONG, 13)}) == {0: [], 1: []}
    assert "an unlucky number" in caplog.text
    assert runner.step({0: (*SONG, 9, 10, 11)}) == {0: []}  # what is half learnt is not used
    assert runner.proposer.report().failure == "KeyError: 'an unlucky number'"


class Trusting(adaptive.Adaptive):
    """A plugin that does not look at what it is given."""

    def merge(self, data: bytes, *, tenant: str) -> None:
        raise ValueError("not enough values to unpack")


def test_a_snapshot_that_a_drafter_chokes_on_is_no_snapshot() -> None:
    runner = Runner([label("a", ROOT_TOKENS)])
    worker = DraftAccess()
    worker.model_runner = SimpleNamespace(drafter=runner.proposer)
    assert worker.bough_merge_drafts("a", b"anything") is not None
    runner.proposer.drafter = Trusting()
    assert worker.bough_merge_drafts("a", b"anything") == "not enough values to unpack"


def test_a_plan_that_cannot_be_is_refused_at_the_start() -> None:
    with pytest.raises(UnsupportedByEngine, match="adaptive"):
        Proposer(config(Plan("m", "clairvoyant", "hash", None, 0.2)))
    with pytest.raises(DrafterError, match="no such table"):
        Proposer(config(Plan("m", "adaptive", "hash", "no such table", 0.2)))


def tree(*nodes: tuple[int, int, float]) -> TokenTree:
    tokens, parents, probs = zip(*nodes, strict=True)
    return TokenTree(tokens, parents, tuple(math.log(prob) for prob in probs))


def test_the_best_chain_is_expected_to_be_accepted_most() -> None:
    """.4 alone is likelier than .35, but .35 goes on with .3 and .25."""
    forked = tree((5, ROOT, 0.4), (6, ROOT, 0.35), (7, 1, 0.3), (8, 2, 0.25))
    assert best_chain(forked, 4, 0.1, VOCAB) == [6, 7, 8]
    assert best_chain(forked, 2, 0.1, VOCAB) == [6, 7]
    assert best_chain(forked, 1, 0.1, VOCAB) == [5]


def test_a_chain_ends_where_it_is_unlikely_or_no_token() -> None:
    forked = tree((5, ROOT, 0.4), (6, ROOT, 0.35), (7, 1, 0.3), (8, 2, 0.25))
    assert best_chain(forked, 4, 0.3, VOCAB) == [6, 7]
    assert best_chain(forked, 4, 0.38, VOCAB) == [5]
    assert best_chain(forked, 4, 0.5, VOCAB) == []
    assert best_chain(forked, 4, 0.1, 7) == [5]  # 7 and 8 are no tokens here
    assert best_chain(forked, 4, 0.1, 6) == [5]
    assert best_chain(EMPTY, 4, 0.1, VOCAB) == []
    assert best_chain(chain((3, 60, 4), (0.0, 0.0, 0.0)), 4, 0.1, VOCAB) == [3]


def test_runs_are_named_by_their_tokens() -> None:
    assert label("a", (1, 2)) == label("a", (1, 2)) != label("a", (2, 1))
    assert label("a", (1, 2)) != label("b", (1, 2))
