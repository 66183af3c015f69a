"""Strategies against exact enumeration of a toy distribution.

Every statistical test has a fixed seed and a false-alarm rate of at most 1e-4.
"""

import itertools
import math
from collections import Counter

from scipy.stats import binomtest, chisquare

from search.answers import extract_answer
from search.select import vote
from tests.search_harness import result_of
from tests.toy_engine import ToyEngine, ToyJudge, answers_of, one_of

ALPHA = 1e-4
ANSWERS = {
    "2\nThe answer is 4.": 0.35,
    "3\nThe answer is 5.": 0.25,
    "1\nThe answer is 4.0.": 0.15,
    "9\nThe answer is 6.": 0.25,
}
TABLE = one_of(ANSWERS)
REWARDS = dict(zip(ANSWERS, (0.2, 0.9, 0.4, 0.6), strict=True))


def test_the_table_is_the_distribution() -> None:
    exact = answers_of(TABLE)
    assert exact.keys() == ANSWERS.keys()
    assert all(math.isclose(exact[one], ANSWERS[one]) for one in ANSWERS)


async def test_single_draws_the_models_own_distribution() -> None:
    engine, num_runs = ToyEngine(TABLE), 400
    drawn = Counter(
        [
            (await result_of(engine, "single", seed=seed)).answers[0].content
            for seed in range(num_runs)
        ]
    )
    observed = [drawn[one] for one in ANSWERS]
    expected = [num_runs * share for share in ANSWERS.values()]
    assert sum(observed) == num_runs
    assert chisquare(observed, expected).pvalue > ALPHA


async def test_children_of_one_call_are_independent_draws() -> None:
    engine, width = ToyEngine(TABLE), 400
    result = await result_of(engine, "self_consistency", {"width": width}, seed=3)
    drawn = Counter(one.content for one in result.candidates)
    expected = [width * share for share in ANSWERS.values()]
    assert chisquare([drawn[one] for one in ANSWERS], expected).pvalue > ALPHA


async def test_best_of_n_returns_each_answer_as_often_as_enumeration_says() -> None:
    width, num_runs = 3, 300
    exact: Counter[str] = Counter()
    for draws in itertools.product(ANSWERS, repeat=width):
        best = max(draws, key=REWARDS.__getitem__)
        exact[best] += math.prod(ANSWERS[one] for one in draws)
    engine = ToyEngine(TABLE)
    judge = ToyJudge(lambda text: REWARDS.get(text, 0.0))
    drawn: Counter[str] = Counter()
    for seed in range(num_runs):
        result = await result_of(engine, "best_of_n", {"width": width}, judge=judge, seed=seed)
        assert result.score == REWARDS[result.answers[0].content]
        drawn[result.answers[0].content] += 1
    expected = [num_runs * exact[one] for one in ANSWERS]
    assert chisquare([drawn[one] for one in ANSWERS], expected).pvalue > ALPHA


async def test_self_consistency_votes_as_enumeration_says() -> None:
    width, num_runs = 4, 300
    exact: Counter[str] = Counter()
    for draws in itertools.product(ANSWERS, repeat=width):
        winner = vote([extract_answer(one) for one in draws], [1.0] * width)[0]
        exact[winner.answer[0]] += math.prod(ANSWERS[one] for one in draws)
    engine, drawn = ToyEngine(TABLE), Counter[str]()
    for seed in range(num_runs):
        result = await result_of(engine, "self_consistency", {"width": width}, seed=seed)
        drawn[(extract_answer(result.answers[0].content) or "")[0]] += 1
    assert exact.keys() == {"4", "5", "6"}
    expected = [num_runs * exact[one] for one in sorted(exact)]
    assert chisquare([drawn[one] for one in sorted(exact)], expected).pvalue > ALPHA
    # more right answers than one draw gives: exactly 0.5 there
    assert exact["4"] > 0.5
    assert binomtest(drawn["4"], num_runs, exact["4"]).pvalue > ALPHA


async def test_weighted_votes_count_rewards() -> None:
    engine = ToyEngine(TABLE)
    judge = ToyJudge(lambda text: REWARDS.get(text, 0.0))
    params = {"width": 12, "vote": "weighted"}
    for seed in range(10):
        result = await result_of(engine, "self_consistency", params, judge=judge, seed=seed)
        totals: Counter[str] = Counter()
        for one in result.candidates:
            totals[(extract_answer(one.content) or "")[0]] += REWARDS[one.content]
        best = (extract_answer(result.answers[0].content) or "")[0]
        assert math.isclose(totals[best], max(totals.values()))
        share = totals[best] / sum(totals.values())
        assert math.isclose(result.score or 0.0, share, abs_tol=1e-5)


LINES = one_of(
    {f"{a}\n{b}\nThe answer is {a + b}.": 1 / 9 for a, b in itertools.product((1, 2, 3), repeat=2)}
)


def closeness(text: str) -> float:
    """Highest for 3, then 2."""
    digits = [int(line) for line in text.split("\n") if line.isdigit()]
    return round(0.1 + 0.1 * digits[0] + 0.01 * sum(digits[1:]), 5) if digits else 0.0


async def test_beam_finds_the_best_path() -> None:
    engine, judge = ToyEngine(LINES), ToyJudge(closeness)
    for seed in range(5):
        result = await result_of(engine, "beam", {"width": 30}, judge=judge, seed=seed)
        assert result.answers[0].content == "3\n3\nThe answer is 6."
        # width 30, keep 6: two levels of 30 steps, then closing lines for 30
        assert result.spent.candidates == 90
        assert len(result.candidates) == 30


async def test_ets_votes_with_last_step_rewards() -> None:
    engine, judge = ToyEngine(LINES), ToyJudge(closeness)
    for lambdas in ({"lambda_b": 0.0, "lambda_d": 0.0}, {"lambda_b": 1.0}, {"lambda_b": 3.0}):
        params = {"width": 16, "softmax_temperature": 0.1, **lambdas}
        result = await result_of(engine, "ets", params, judge=judge)
        assert len(result.candidates) == 16
        assert result.spent.candidates == 48
        answers = [extract_answer(one.content) for one in result.candidates]
        groups = vote(answers, [one.score or 0.0 for one in result.candidates])
        assert answers[0] == groups[0].answer
        assert result.candidates[0].content.endswith(f"The answer is {groups[0].answer}.")


async def test_a_higher_node_price_keeps_fewer_tokens() -> None:
    engine, judge = ToyEngine(LINES), ToyJudge(closeness)
    sizes = []
    for lambda_b in (0.0, 1.0, 4.0):
        params = {"width": 32, "lambda_b": lambda_b, "lambda_d": 0.0, "softmax_temperature": 1.0}
        result = await result_of(engine, "ets", params, judge=judge)
        sizes.append(result.tree.logical_tokens / result.tree.unique_tokens)
        assert result.spent.candidates == 96
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
