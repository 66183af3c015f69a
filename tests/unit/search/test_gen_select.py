"""The model picks among its answers, or they vote."""

import numpy as np
import pytest

from engines.base import TokenIds
from engines.echo_model import EOS, MARKERS, VOCAB_SIZE, Logits, bytes_of
from search.answers import extract_answer
from tests.search_harness import result_of
from tests.toy_engine import Table, ToyEngine, ToyJudge, one_of

MIXED = one_of({"so 4": 0.6, "so 5": 0.4})


class Picker(ToyEngine):
    """Answers by its table, and the question which candidate is best by a rule of its own.

    Attributes:
        picks: An answer; the reply names the first candidate that states it.
        reply: Said instead, where it is set.
        questions: Every question it was asked.
    """

    def __init__(self, table: Table, picks: str, reply: str = "", context: int = 2000) -> None:
        super().__init__(table, context_tokens=context)
        self.picks, self.reply = picks, reply
        self.questions: set[str] = set()

    def _logits(self, ids: TokenIds) -> Logits:
        start = max(at for at, token in enumerate(ids) if token == MARKERS["assistant"])
        question = bytes_of(ids[:start]).decode("utf-8", "replace")
        if "Best candidate" not in question:
            return super()._logits(ids)
        self.questions.add(question)
        listed = question.split("\n\nCandidate ")[1:]
        right = [one.split(":")[0] for one in listed if extract_answer(one) == self.picks]
        reply = self.reply or f"Best candidate: {right[0]}"
        said = bytes_of(ids[start + 1 :]).decode()
        logits = np.full(VOCAB_SIZE, -60.0)
        logits[ord(reply[len(said)]) if said != reply else EOS] = 0.0
        return logits


async def test_the_pick_wins_against_the_majority() -> None:
    picked = 0
    for seed in range(8):
        engine = Picker(MIXED, "5")
        result = await result_of(engine, "gen_select", {"width": 6}, seed=seed)
        if engine.questions:
            picked += 1
            assert len(engine.questions) == 1
            assert result.resolved == "gen_select: the model's pick"
            assert result.answers[0].content == "so 5"
            assert result.spent.candidates == 6
            question = next(iter(engine.questions))
            assert question.count("Candidate 1:") == question.count("Candidate 2:") == 1
            assert "Candidate 3:" not in question, "no text is shown twice"
    assert picked >= 4


async def test_nothing_is_asked_where_all_agree() -> None:
    engine = Picker(one_of({"so 4": 0.5, "it is 4": 0.5}), "4")
    result = await result_of(engine, "gen_select", {"width": 6})
    assert not engine.questions
    assert (result.resolved, result.score) == ("gen_select", 1.0)


async def test_a_model_that_names_none_leaves_it_to_the_vote() -> None:
    engine = Picker(MIXED, "5", reply="4")
    result = await result_of(engine, "gen_select", {"width": 8}, seed=3)
    full = await result_of(ToyEngine(MIXED), "self_consistency", {"width": 8}, seed=3)
    assert engine.questions
    assert result.resolved == "gen_select: majority vote, the model named no candidate"
    assert [one.content for one in result.candidates] == [one.content for one in full.candidates]
    assert result.spent.generated_tokens > full.spent.generated_tokens


async def test_the_vote_is_weighted_where_there_is_a_judge() -> None:
    judge = ToyJudge(lambda text: 0.9 if text.endswith("5") else 0.1)
    engine = Picker(MIXED, "5", reply="no idea")
    result = await result_of(engine, "gen_select", {"width": 8}, judge=judge, seed=3)
    assert result.resolved == "gen_select: weighted vote, the model named no candidate"
    assert result.answers[0].content == "so 5"
    assert not (await result_of(engine, "gen_select", {"width": 1}, judge=judge)).spent.reward_calls


async def test_texts_without_answers_are_shown_too() -> None:
    engine = Picker(one_of({"who knows": 0.5, "not I": 0.5}), "", reply="Best candidate: 2")
    result = await result_of(engine, "gen_select", {"width": 8})
    assert result.resolved == "gen_select: the model's pick"
    (question,) = engine.questions
    assert question.split("Candidate 2:\n")[1].startswith(result.answers[0].content)


@pytest.mark.parametrize("context", [120, 600])
async def test_candidates_that_do_not_fit(context: int) -> None:
    engine = Picker(MIXED, "5", context=context)
    result = await result_of(engine, "gen_select", {"width": 8}, seed=3)
    assert result.resolved == "gen_select: majority vote, the candidates do not fit the context"


async def test_without_budget_for_the_question_the_vote_decides() -> None:
    engine = Picker(MIXED, "5")
    result = await result_of(engine, "gen_select", {"width": 8}, seed=3, generated_tokens=40)
    assert result.resolved == "gen_select: majority vote, nothing was left to ask with"
    assert (result.stop_reason, len(result.candidates)) == ("budget", 8)
