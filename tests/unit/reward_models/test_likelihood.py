"""The judge of acceptability against the decoder's own scores."""

from pathlib import Path

import pytest

from engines.embedded.engine import open_engine
from reward_models.base import Candidate
from reward_models.errors import RewardLoadError
from reward_models.likelihood import LOW, open_judge
from tests.contract.tiny_llama import write_tiny_llama

BEFORE = "<|user|>"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


def asked(text: str, question: str = "?") -> Candidate:
    return Candidate(({"role": "user", "content": question},), text, (), (text,))


async def test_it_is_the_mean_of_the_decoders_scores(tiny: Path) -> None:
    engine, judge = open_engine("e", str(tiny), {}), open_judge("j", str(tiny), {"before": BEFORE})
    texts = ["the cat sat", "the dog", "the cat sat on the log", "é €"]
    scores = await judge.score([asked(text) for text in texts])
    prefix = await engine.open(engine.encode(BEFORE))
    for text, score in zip(texts, scores, strict=True):
        logps = await engine.score(prefix, engine.encode(text))
        assert score.value == pytest.approx(sum(logps) / len(logps), abs=1e-4)
        assert LOW < score.value < 0
    again = await judge.score([asked(texts[2], "another question"), asked(texts[0])])
    assert [one.value for one in again] == [scores[2].value, scores[0].value]
    prefix.release()
    await engine.aclose()
    await judge.aclose()


async def test_steps_do_not_change_it_and_nothing_is_worth_least(tiny: Path) -> None:
    judge = open_judge("j", str(tiny), {"before": BEFORE})
    whole, cut, empty = await judge.score(
        [
            asked("the cat sat"),
            Candidate((), "the cat sat", (), ("the cat", " sat")),
            Candidate((), "", (), ()),
        ]
    )
    assert whole.value == cut.value
    assert empty.value == LOW == judge.info.low
    await judge.aclose()


@pytest.mark.parametrize("options", [{}, {"before": ""}, {"before": 3}])
def test_it_must_know_what_stands_in_front(tiny: Path, options: dict[str, object]) -> None:
    with pytest.raises(RewardLoadError, match="before"):
        open_judge("j", str(tiny), options)
