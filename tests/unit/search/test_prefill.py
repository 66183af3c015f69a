"""Answers that the request begins: what judges see of the beginning, and how votes read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from engines.base import ChatMessage, Continuation, Finish, Sampling
from reward_models.base import Claim, RewardKind
from search.answers import ANSWER_PHRASES
from search.base import Outcome
from search.run import Run, RunRequest
from search.search import Search
from tests.search_harness import first, pieces_of, register
from tests.toy_engine import MESSAGES, ToyEngine, ToyJudge, one_of


def begun(prefill: str, strategy: str, params: dict[str, Any] | None = None) -> RunRequest:
    """A request whose last message is the beginning of the answer."""
    return RunRequest(
        strategy=strategy,
        params=params or {},
        messages=(*MESSAGES, {"role": "assistant", "content": prefill}),
        sampling=Sampling(max_tokens=40),
        seed=3,
        continue_final=True,
    )


class NotingJudge(ToyJudge):
    """Notes the conversations that it is opened on."""

    def __init__(self, kind: RewardKind) -> None:
        super().__init__(lambda text: len(text) / 100, kind)
        self.opened: list[Sequence[ChatMessage]] = []

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        self.opened.append(messages)
        return await super().open(messages, tenant=tenant)


@pytest.mark.parametrize("strategy", ["single", "best_of_n", "beam", "ets", "mcts"])
async def test_what_is_returned_is_what_comes_behind_the_beginning(strategy: str) -> None:
    engine, judge = ToyEngine(one_of({"so\nfar\nso\ngood\n": 1.0})), NotingJudge(RewardKind.PROCESS)
    run = Run(begun("so\nfa", strategy), engine=engine, judge=judge)
    pieces, result = await pieces_of(run)
    assert result.answers[0].content == "".join(one.text for one in pieces) == "r\nso\ngood\n"
    assert result.prompt_tokens == len("?") + 3 + len("so\nfa")  # two markers, and the turn's end
    assert not engine.claims
    assert not judge.claims


async def judged(kind: RewardKind, prefill: str) -> NotingJudge:
    engine, judge = ToyEngine(one_of({"so\nfar\nso\ngood\n": 1.0})), NotingJudge(kind)
    await Run(begun(prefill, "best_of_n", {"width": 1}), engine=engine, judge=judge).result()
    return judge


@pytest.mark.parametrize("kind", [RewardKind.PROCESS, RewardKind.VERIFIER])
async def test_judges_of_steps_read_the_beginning(kind: RewardKind) -> None:
    judge = await judged(kind, "so\nfa")
    assert judge.opened == [MESSAGES]
    (seen,) = judge.seen
    assert seen.messages == MESSAGES
    assert seen.text == "so\nfar\nso\ngood\n"
    assert seen.steps == ("so\n", "far\n", "so\n", "good\n")
    assert seen.token_ids == ()  # those of the beginning are the engine's prompt


async def test_judges_of_outcomes_judge_what_the_model_wrote() -> None:
    judge = await judged(RewardKind.OUTCOME, "so\nfa")
    assert judge.opened == [MESSAGES]
    (seen,) = judge.seen
    assert (seen.messages, seen.text) == (MESSAGES, "r\nso\ngood\n")
    assert seen.token_ids == tuple(b"r\nso\ngood\n")


async def test_some_are_shown_the_beginning_and_judge_what_follows() -> None:
    engine, judge = ToyEngine(one_of({"so\nfar\n": 1.0})), NotingJudge(RewardKind.OUTCOME)
    judge.info = replace(judge.info, shows_prefill=True)
    request = begun("so\nfa", "best_of_n", {"width": 1})
    await Run(request, engine=engine, judge=judge).result()
    assert judge.opened == [request.messages]
    (seen,) = judge.seen
    assert (seen.messages, seen.text) == (request.messages, "r\n")


@pytest.mark.parametrize(
    ("prefill", "values"),
    [
        ("so\nfa", (0.07, 0.10, 0.15)),  # the step that was cut in two is the model's too
        ("so\nfar\n", (0.10, 0.15)),
        ("s", (0.03, 0.07, 0.10, 0.15)),
    ],
)
async def test_steps_of_the_beginning_have_no_values(
    prefill: str, values: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, judge = ToyEngine(one_of({"so\nfar\nso\ngood\n": 1.0})), NotingJudge(RewardKind.PROCESS)

    async def body(search: Search) -> Outcome:
        (child,) = await search.expand(search.root, 1)
        assert await search.score([child]) == [0.15]
        assert search.step_values(child) == values
        return first(search, [child])

    register(monkeypatch, made=body)
    await Run(begun(prefill, "made"), engine=engine, judge=judge).result()


async def test_votes_compare_whole_answers() -> None:
    table = one_of({r"\boxed{\frac{1}{2}}": 0.5, r"\boxed{\frac{3}{2}}": 0.5})
    request = begun(r"\boxed{\frac{", "self_consistency", {"width": 12})
    result = await Run(request, engine=ToyEngine(table)).result()
    shares = {one.content: one.score for one in result.candidates}
    assert set(shares) == {"1}{2}}", "3}{2}}"}
    assert sum(score or 0.0 for score in shares.values()) == pytest.approx(1.0)


async def test_a_phrase_may_begin_in_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ToyEngine(one_of({"The answer is 4.\nAnd more.\n": 1.0}))

    async def body(search: Search) -> Outcome:
        (child,) = await search.expand(
            search.root, 1, search.stepwise(), closed_by=ANSWER_PHRASES, last=True
        )
        assert (child.text, child.finish) == (" is 4.\n", Finish.STOP)
        return first(search, [child])

    register(monkeypatch, made=body)
    await Run(begun("The answer", "made"), engine=engine).result()


async def test_the_model_picks_among_whole_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[ChatMessage]] = []

    async def ask(self: Search, messages: Sequence[ChatMessage], how: object = None) -> object:
        asked.append(messages)
        return Continuation(None, (), "Best candidate: 1", (), Finish.STOP)  # type: ignore[arg-type]

    monkeypatch.setattr(Search, "ask", ask)
    table = one_of({"It is 1": 0.5, "It is 2": 0.5})
    request = begun("It is ", "gen_select", {"width": 8})
    result = await Run(request, engine=ToyEngine(table, context_tokens=2000)).result()
    (question,) = asked
    assert [one["role"] for one in question] == ["user"]
    assert "It is 1" in question[0]["content"]
    assert "It is 2" in question[0]["content"]
    assert result.answers[0].content in ("1", "2")
