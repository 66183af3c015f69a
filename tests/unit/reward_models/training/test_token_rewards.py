"""Texts with rewards: the file, the mask, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_models.training.errors import TrainingError
from reward_models.training.token_rewards import TokenRewards, read_texts, unseen_mask
from tests.unit.reward_models.training.texts import corpus

NAN = math.nan
REWARDS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(
    ids=st.lists(st.integers(0, 200_000), min_size=2, max_size=20),
    data=st.data(),
    name=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_a_line_comes_back(ids: list[int], data: st.DataObject, name: str) -> None:
    known = data.draw(st.lists(REWARDS, min_size=1, max_size=len(ids) - 1))
    rewards = (NAN,) * (len(ids) - len(known)) + tuple(known)
    text = TokenRewards(name, "train", tuple(ids), rewards)
    back = TokenRewards.from_json(text.to_json())
    assert (back.conv_id, back.split, back.token_ids) == (name, "train", tuple(ids))
    assert [*map(str, back.rewards)] == [*map(str, rewards)]
    assert back.num_rewards == len(known)


def test_a_file_is_read_in_order(tmp_path: Path) -> None:
    path, texts = tmp_path / "texts.jsonl", corpus(5)
    path.write_text("\n".join(text.to_json() for text in texts) + "\n\n")
    assert [one.to_json() for one in read_texts(path)] == [one.to_json() for one in texts]
    path.write_text(f"{texts[0].to_json()}\n{texts[0].to_json()}\n")
    with pytest.raises(TrainingError, match=r"texts\.jsonl:2: 'c0' is there twice"):
        read_texts(path)
    path.write_text(f"{texts[0].to_json()}\n{{\n")
    with pytest.raises(TrainingError, match=r"texts\.jsonl:2"):
        read_texts(path)
    with pytest.raises(TrainingError, match="cannot be read"):
        read_texts(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("split", "ids", "rewards", "said"),
    [
        ("test", (1, 2), (NAN, 1.0), "split 'test'"),
        ("train", (1, 2), (NAN,), "2 tokens have 1 rewards"),
        ("train", (1, 2), (NAN, NAN), "a reward is needed"),
        ("train", (1, 2), (1.0, 2.0), "none at position 0"),
        ("train", (1, 2), (NAN, math.inf), "infinite"),
        ("train", (-1, 2), (NAN, 1.0), "negative"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    split: str, ids: tuple[int, ...], rewards: tuple[float, ...], said: str
) -> None:
    with pytest.raises(TrainingError, match=said):
        TokenRewards("c", split, ids, rewards)


def test_the_mask_is_what_never_had_a_reward() -> None:
    texts = [
        TokenRewards("a", "train", (1, 2, 3), (NAN, NAN, 0.5)),
        TokenRewards("b", "validation", (3, 4), (NAN, 0.5)),
    ]
    assert unseen_mask(texts, 7, exempt=[6]).tolist() == [
        True,
        True,
        True,
        False,
        False,
        True,
        False,
    ]
    with pytest.raises(TrainingError, match="token 4, but the base has 4"):
        unseen_mask(texts, 4)
