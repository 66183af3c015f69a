"""Shaped logits are those of the echo engine's own, row by row, in any batch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.base import Sampling
from engines.echo_model import VOCAB_SIZE, shaped
from engines.vllm_shaping import KEY, Row, Shape, shape_logits


def floats(*values: float) -> bytes:
    return np.array(values, dtype=np.float32).tobytes()


def shape_of(how: Sampling, answered: int) -> Shape:
    biases = dict(how.logit_bias) | dict.fromkeys(how.ban_ids, -math.inf)
    return Shape(
        answered=answered,
        presence_penalty=how.presence_penalty,
        frequency_penalty=how.frequency_penalty,
        repetition_penalty=how.repetition_penalty,
        bias_ids=np.fromiter(biases, dtype=np.int32).tobytes(),
        biases=np.fromiter(biases.values(), dtype=np.float32).tobytes(),
    )


tokens = st.lists(st.integers(0, 9), max_size=12)
penalty = st.sampled_from([0.0, 0.7, -1.3])


@settings(deadline=None)  # the machine may be busy
@given(
    rows=st.lists(
        st.tuples(
            tokens,
            tokens,
            tokens,
            st.builds(
                Sampling,
                presence_penalty=penalty,
                frequency_penalty=penalty,
                repetition_penalty=st.sampled_from([1.0, 1.5, 0.5]),
                logit_bias=st.dictionaries(st.integers(0, 9), st.sampled_from([-2.0, 3.0])),
                ban_ids=st.frozensets(st.integers(0, 9), max_size=2),
            ),
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 99),
)
def test_rows_are_shaped_as_the_echo_engine_shapes_them(rows, seed) -> None:  # type: ignore[no-untyped-def]
    plain = torch.randn(len(rows) + 1, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))
    logits = plain.clone()
    batch = {
        at: Row(shape_of(how, len(answer)), [*prompt, *answer], drawn)
        for at, (prompt, answer, drawn, how) in enumerate(rows)
    }
    shape_logits(logits, batch)
    for at, (prompt, answer, drawn, how) in enumerate(rows):
        ids = (*prompt, *answer, *drawn)
        expected = shaped(plain[at].double().numpy(), how, ids, len(prompt), how.ban_ids)
        assert logits[at].numpy() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(logits[-1], plain[-1])  # a neighbour without a shape


def test_tokens_are_counted_as_they_come() -> None:
    drawn: list[int] = []
    row = Row(Shape(answered=1, presence_penalty=1.0), [7, 8], drawn)
    for token in (3, 8, 3):
        logits = torch.zeros(1, 10)
        shape_logits(logits, {0: row})
        seen = {8, *drawn}
        assert {at for at in range(10) if logits[0, at] == -1} == seen
        drawn.append(token)


def test_a_token_not_yet_known_is_counted_when_it_is() -> None:
    """Where vLLM schedules ahead of its samples, it holds their places with -1."""
    drawn = [4, -1]
    row = Row(Shape(frequency_penalty=1.0), [7], drawn)
    assert row.counted() == ([4], [1])
    drawn[1] = 4
    assert row.counted() == ([4], [2])


def test_temperature_follows_the_drawn_tokens() -> None:
    drawn: list[int] = []
    row = Row(Shape(temperatures=floats(0.5, 0.0, 2.0)), [1], drawn)
    source = torch.tensor([[1.0, 3.0, 2.0]])
    seen = []
    for _ in range(4):
        logits = source.clone()
        shape_logits(logits, {0: row})
        seen.append(logits[0].tolist())
        drawn.append(0)
    assert seen[0] == [2.0, 6.0, 4.0]
    assert seen[1] == [-math.inf, 3.0, -math.inf]  # greedy
    assert seen[2] == seen[3] == [0.5, 1.5, 1.0]  # the last goes on


def test_min_p_is_taken_at_the_temperature() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 2)
    rows = {
        0: Row(Shape(temperatures=floats(1.0), min_p=0.2), [1], []),
        1: Row(Shape(temperatures=floats(2.0), min_p=0.2), [1], []),
    }
    shape_logits(logits, rows)
    assert torch.isinf(logits).tolist() == [[True, False, False], [False, False, False]]


def test_a_shape_survives_the_way_to_another_process() -> None:
    shape = Shape(answered=3, temperatures=floats(1.0), bias_ids=b"", min_p=0.1)
    assert Shape.from_args(shape.to_args()) == shape
    assert Shape.from_args(None) is None
    assert Shape.from_args({"other": 1}) is None
    with pytest.raises(TypeError):
        Shape.from_args({KEY: {"heat": 3}})
