"""Scores, and rewards of next tokens."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from reward_models.base import Claim, RewardKind, RewardRow
from search.base import Outcome
from search.errors import MissingRewardModel
from search.search import Search
from tests.search_harness import LETTERS, TryOut, first
from tests.toy_engine import ToyEngine, ToyJudge, one_of


async def test_scores_are_asked_once_and_rounded(try_out: TryOut) -> None:
    judge = ToyJudge(lambda text: 1 / 3)

    async def body(search: Search) -> Outcome:
        children = await search.expand(search.root, 2)
        assert await search.score([children[0]]) == [0.33333]
        assert await search.score([*children, children[0]]) == [0.33333] * 3
        assert search.step_values(children[0]) == (0.33333,)
        return first(search, children)

    result = await try_out(body, ToyEngine(LETTERS), judge)
    assert judge.batches == [1, 1]
    assert result.spent.reward_calls == 2
    assert result.spent.reward_tokens == 6


async def test_equal_candidates_of_a_batch_are_one_call(try_out: TryOut) -> None:
    engine = ToyEngine(one_of({"a\n": 0.5, "b\n": 0.5}))
    judge = ToyJudge(lambda text: math.nan if text.startswith("b") else 0.5)
    num_dropped: list[int] = []

    async def body(search: Search) -> Outcome:
        level = await search.expand(search.root, 6, search.stepwise())
        texts = [one.text for one in level]
        assert len(set(texts)) == 2
        num_dropped.append(texts.count("b\n"))
        values = await search.score(level)
        assert [np.isnan(value) for value in values] == [text == "b\n" for text in texts]
        assert search.usable(level) == [one for one in level if one.text == "a\n"]
        # the same text, but ended: a judge may value that otherwise
        (ended,) = await search.extend([(search.usable(level)[0], tuple(engine.info.eos_ids))])
        assert (ended.text, await search.score([ended])) == ("a\n", [0.5])
        return first(search, [ended])

    result = await try_out(body, engine, judge)
    assert judge.batches == [2, 1]
    assert result.spent.reward_calls == 3
    assert result.spent.reward_tokens == 6
    assert result.spent.dropped == num_dropped[0]


async def test_without_a_judge(try_out: TryOut) -> None:
    async def body(search: Search) -> Outcome:
        children = await search.expand(search.root, 1)
        assert search.judge is None
        assert np.isnan(search.value(children[0]))
        with pytest.raises(MissingRewardModel):
            await search.score(children)
        with pytest.raises(MissingRewardModel):
            await search.next_rewards(children)
        return first(search, children)

    await try_out(body, ToyEngine(LETTERS))


class Row:
    def __init__(self, claim: Claim) -> None:
        self.size = len(claim.token_ids)

    def at(self, ids: Sequence[int]) -> list[float]:
        return [float(self.size + one) for one in ids]


class ForkingJudge(ToyJudge):
    async def next_rewards(self, claims: Sequence[Claim]) -> list[RewardRow]:
        return [Row(claim) for claim in claims]


async def test_next_rewards_follow_the_branch(try_out: TryOut) -> None:
    judge = ForkingJudge(len, RewardKind.MULTIFURCATION)

    async def body(search: Search) -> Outcome:
        (one,) = await search.extend([(search.root, (97,))])
        (two,) = await search.extend([(one, (98, 99))])
        rows = await search.next_rewards([two, search.root, one])
        assert [row.at([10]) for row in rows] == [[13.0], [10.0], [11.0]]
        assert len(judge.claims) == 3
        search.prune([two], "test")
        assert len(judge.claims) == 2
        return first(search, [one])

    await try_out(body, ToyEngine(LETTERS), judge)

    async def wrong(search: Search) -> Outcome:
        await search.next_rewards([search.root])
        raise AssertionError

    with pytest.raises(MissingRewardModel, match="process"):
        await try_out(wrong, ToyEngine(LETTERS), ToyJudge(len))


async def test_finished_answers_are_let_go_as_soon_as_they_are_judged(try_out: TryOut) -> None:
    """A search of a thousand short answers must not hold the judge's cache for all of them."""
    judge = ToyJudge(len)

    async def body(search: Search) -> Outcome:
        children = await search.expand(search.root, 5)
        assert len(await search.score(children)) == 5
        assert len(judge.claims) == 1  # the question's own
        assert search.value(children[0]) == 3
        return first(search, children)

    await try_out(body, ToyEngine(LETTERS), judge)
