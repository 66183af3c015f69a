"""What each option becomes, and what is refused instead of dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from engines.base import ChecksSampling, Constraint, EngineInfo, Sampling
from engines.child import TokenChild
from engines.echo import open_engine
from engines.echo_model import BYTES, EOS
from engines.errors import UnsupportedByEngine
from engines.token_prefix import TokenPrefix
from engines.vllm_engine import VllmEngine
from engines.vllm_request import NeedleIndex, Request, RequestMaker, check
from engines.vllm_shaping import Shape

INFO: EngineInfo = open_engine("m", "", {"context_tokens": 64}).info
TABLE = [*BYTES, b"ab\n\n", b"\n"]
NEEDLES = NeedleIndex(TABLE)


@dataclass(frozen=True)
class Steps:
    """Colder and colder."""

    def temperature(self, position: int) -> float:
        return 1.0 / (1 + position)

    def segments(self, max_pieces: int) -> list[tuple[int, float]]:
        return [(0, 1.0), (4, 0.25), (9, 0.0)]


def child_of(how: Sampling, answered: int = 0) -> TokenChild:
    prefix = TokenPrefix(TABLE, (65,) * (5 + answered), 5)
    return TokenChild(0, prefix, how, INFO)


def request(how: Sampling, answered: int = 0, *, drafts: bool = False) -> Request:
    maker = RequestMaker(how, NEEDLES, INFO, drafts=drafts, position=answered)
    return maker.next(child_of(how, answered), 3)


def shape(how: Sampling, answered: int = 0) -> Shape:
    found = Shape.from_args(request(how, answered).params["extra_args"])
    assert found is not None
    return found


def test_plain_options_are_vllms_own() -> None:
    params = request(Sampling(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1)).params
    assert "extra_args" not in params
    wanted = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "logprobs": 0}
    assert params.items() >= wanted.items()


def test_lengths_are_what_is_left() -> None:
    params = request(Sampling(max_tokens=10, min_tokens=6), answered=4).params
    assert (params["max_tokens"], params["min_tokens"]) == (6, 2)
    assert request(Sampling()).params["max_tokens"] == 64 - 5
    assert request(Sampling(min_tokens=99, max_tokens=3)).params["min_tokens"] == 3


def test_eos_ids_are_stop_ids_and_ids_outside_the_vocabulary_are_left_out() -> None:
    params = request(Sampling(stop_token_ids=frozenset({7, 10_000}))).params
    assert params["stop_token_ids"] == [7, EOS]
    assert params["ignore_eos"]


def test_needles_in_one_token_stop_the_request_itself() -> None:
    found = request(Sampling(boundaries=("\n",), deltas=False))
    assert found.params["stop_token_ids"] == [10, EOS]
    assert found.is_final_only
    assert not request(Sampling(boundaries=("\n",))).is_final_only  # deltas are wanted
    two = request(Sampling(boundaries=("\n\n",), deltas=False))
    assert not two.is_final_only  # it may lie in two tokens
    early = request(Sampling(boundaries=("\n",), deltas=False, min_tokens=3))
    assert early.params["stop_token_ids"] == [EOS]  # vLLM would mask the boundary
    assert not early.is_final_only


def test_needles_are_found_in_all_tokens_and_remembered() -> None:
    assert NEEDLES.find(("\n",)) == (frozenset({10, len(BYTES), len(BYTES) + 1}), True)
    assert NEEDLES.find(("\n\n",)) == (frozenset({len(BYTES)}), False)
    assert NEEDLES.find(()) == (frozenset(), True)
    many = NeedleIndex([b"x"] * 1000)
    assert many.find(("x",)) == (frozenset(), False)


@pytest.mark.parametrize("heat", [1e-4, 3.0])
def test_temperatures_that_vllm_would_change_are_made_here(heat: float) -> None:
    how = Sampling(temperature=heat, min_p=0.2)
    assert request(how).params["temperature"] == 1.0
    assert "min_p" not in request(how).params
    assert np.frombuffer(shape(how).temperatures, np.float32) == pytest.approx([heat])
    assert shape(how).min_p == 0.2


def test_a_schedule_becomes_a_table_of_this_requests_positions() -> None:
    table = np.frombuffer(shape(Sampling(schedule=Steps(), max_tokens=8), 3).temperatures, "f4")
    assert table == pytest.approx([1 / 4, 1 / 5, 1 / 6, 1 / 7, 1 / 8])


@dataclass
class Cooling:
    """Colder at every token, for ever; counts its calls."""

    calls: int = 0

    def temperature(self, position: int) -> float:
        self.calls += 1
        return 1.0 + math.exp(-position / 10_000)

    def segments(self, max_pieces: int) -> list[tuple[int, float]]:
        width = 80_000 // max_pieces
        return [(at, self.temperature(at + width // 2)) for at in range(0, 80_000, width)]


@pytest.mark.parametrize("answered", [0, 50_000])
def test_a_very_long_answer_does_not_ask_its_schedule_for_every_token(answered: int) -> None:
    schedule = Cooling()
    long = replace(INFO, context_tokens=131_072)
    maker = RequestMaker(
        Sampling(schedule=schedule), NEEDLES, long, drafts=False, position=answered
    )
    child = TokenChild(0, TokenPrefix(TABLE, (65,) * (5 + answered), 5), maker.how, long)
    found = Shape.from_args(maker.next(child, 1).params["extra_args"])
    assert found is not None
    assert schedule.calls < 5_000
    table = np.frombuffer(found.temperatures, "f4")
    assert len(table) == 131_072 - 5 - answered
    wanted = [schedule.temperature(answered + at) for at in range(0, 20_000, 999)]
    assert table[:20_000:999] == pytest.approx(wanted, abs=1e-3)
    assert table[-1] == pytest.approx(schedule.temperature(80_000), abs=1e-3)


def test_penalties_biases_and_bans_travel_together() -> None:
    how = Sampling(presence_penalty=1.0, logit_bias={4: 2.0, 5: 1.0}, ban_ids=frozenset({5}))
    found = shape(how, 6)
    assert (found.answered, found.presence_penalty, found.temperatures) == (6, 1.0, b"")
    assert np.frombuffer(found.bias_ids, np.int32).tolist() == [4, 5]
    assert np.frombuffer(found.biases, np.float32).tolist() == [2.0, -np.inf]
    assert not {"presence_penalty", "logit_bias"} & request(how).params.keys()


def test_seeds_fit_vllm_and_differ_from_request_to_request() -> None:
    how = Sampling(max_tokens=20)
    maker = RequestMaker(how, NEEDLES, INFO, drafts=False, position=0)
    child = child_of(how)
    assert maker.next(child, (1 << 64) - 1).params["seed"] == (1 << 63) - 1
    child.feed([65], [-1.0])
    assert maker.next(child, 3).params["seed"] not in (3, maker.next(child, 4).params["seed"])


def test_with_drafts_a_schedule_is_served_in_pieces() -> None:
    how = Sampling(schedule=Steps(), max_tokens=20)
    maker = RequestMaker(how, NEEDLES, INFO, drafts=True, position=2)
    child = child_of(how, 2)
    pieces = []
    while not child.is_over:
        params = maker.next(child, 1).params
        assert "extra_args" not in params
        pieces.append((params["temperature"], params["max_tokens"]))
        child.feed([65] * params["max_tokens"], [-1.0] * params["max_tokens"])
    assert pieces == [(1.0, 2), (0.25, 5), (0.0, 11)]


REFUSED: list[tuple[str, dict[str, Any], int]] = [
    ("min_p", {"min_p": 0.1}, 0),
    ("logit_bias", {"logit_bias": {1: 1.0}}, 0),
    ("ban_ids", {"ban_ids": frozenset({1})}, 0),
    ("presence_penalty", {"presence_penalty": 1.0}, 3),
    ("presence_penalty", {"presence_penalty": 3.0}, 0),
    ("temperature", {"temperature": 3.0}, 0),
]


class Icy(Steps):
    """Colder than vLLM takes."""

    def segments(self, max_pieces: int) -> list[tuple[int, float]]:
        return [(0, 1.0), (4, 0.001)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("schedule", {"schedule": Icy(), "temperature": 9.0}),
        ("presence_penalty", {"schedule": Steps(), "presence_penalty": 1.0}),
        ("frequency_penalty", {"schedule": Steps(), "frequency_penalty": 1.0}),
        ("constraint", {"schedule": Steps(), "constraint": Constraint(regex="a*")}),
    ],
)
def test_with_drafts_what_pieces_of_a_schedule_cannot_have_is_refused(
    name: str, options: dict[str, Any]
) -> None:
    how = Sampling(**options)
    request(how)
    with pytest.raises(UnsupportedByEngine) as refused:
        request(how, drafts=True)
    assert refused.value.capability == name
    request(Sampling(schedule=Steps(), temperature=9.0), drafts=True)  # the schedule replaces it


@pytest.mark.parametrize(("name", "options", "answered"), REFUSED)
def test_with_drafts_what_needs_a_processor_is_refused(
    name: str, options: dict[str, Any], answered: int
) -> None:
    how = Sampling(**options)
    request(how, answered)
    with pytest.raises(UnsupportedByEngine) as refused:
        request(how, answered, drafts=True)
    assert refused.value.capability == name


def test_with_drafts_penalties_of_one_piece_are_vllms_own() -> None:
    how = Sampling(presence_penalty=0.5, repetition_penalty=1.2)
    params = request(how, drafts=True).params
    assert (params["presence_penalty"], params["repetition_penalty"]) == (0.5, 1.2)


def test_constraints_and_drafters_that_cannot_be_are_refused() -> None:
    constrained = Sampling(constraint=Constraint(regex="a*"))
    request(constrained)
    with pytest.raises(UnsupportedByEngine, match="step by step"):
        request(constrained, 1)
    with pytest.raises(UnsupportedByEngine, match="engine option drafter = 'adaptive'"):
        request(Sampling(drafter="adaptive"))


def test_only_the_drafter_that_vllm_was_started_with_can_be_named() -> None:
    def check_with(how: Sampling) -> None:
        check(how, INFO, drafts=True, position=0, drafter="adaptive")

    check_with(Sampling(drafter="adaptive"))
    check_with(Sampling())
    with pytest.raises(UnsupportedByEngine, match=r"with 'adaptive'.*drafter = 'suffix'") as found:
        check_with(Sampling(drafter="suffix"))
    assert found.value.capability == "drafter"


class Parser:
    """Instead of a backend: notes which grammars vLLM would be shown."""

    def __init__(self) -> None:
        self.read: list[Constraint | None] = []

    def check(self, params: dict[str, Any], constraint: Constraint | None) -> None:
        self.read.append(constraint)


def test_an_engine_says_before_any_work_what_it_refuses() -> None:
    nothing: Any = None  # asked of nobody
    parser = Parser()
    engine = VllmEngine(INFO, parser, nothing, TABLE, nothing)  # type: ignore[arg-type]
    assert isinstance(engine, ChecksSampling)
    grammar = Sampling(constraint=Constraint(regex="a+"))
    engine.check_sampling(grammar)
    assert parser.read == [grammar.constraint]
    refused = [replace(grammar, boundaries=("\n\n",)), Sampling(drafter="d")]
    for how in (*refused, Sampling(logit_bias={INFO.vocab_size: 1.0})):
        with pytest.raises(UnsupportedByEngine):
            engine.check_sampling(how)
    drafting = VllmEngine(INFO, nothing, nothing, TABLE, nothing, drafts=True)
    drafting.check_sampling(Sampling(presence_penalty=1.0))
    for how in (Sampling(min_p=0.1), Sampling(presence_penalty=1.0, boundaries=("\n\n",))):
        with pytest.raises(UnsupportedByEngine):
            drafting.check_sampling(how)
