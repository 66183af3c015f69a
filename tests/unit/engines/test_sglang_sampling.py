"""Our sampling options in SGLang's words, and those that it cannot honour."""

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from engines.base import Constraint, EngineInfo, Sampling
from engines.child import TokenChild
from engines.errors import UnsupportedByEngine
from engines.sglang_sampling import (
    BAN,
    check,
    constraint_params,
    draws_from_the_model,
    request_params,
    temperature_at,
)
from engines.token_prefix import TokenPrefix

INFO = EngineInfo("m", 100, 10, frozenset({0}), "hash", 0, frozenset())
TABLE = [bytes([97 + at]) for at in range(10)]


@dataclass(frozen=True)
class Falling:
    """2.0, then 1.0 from position 3 on, then 0.5 from position 5 on."""

    def temperature(self, position: int) -> float:
        return 2.0 if position < 3 else 1.0 if position < 5 else 0.5

    def segments(self, max_pieces: int) -> list[tuple[int, float]]:
        return [(0, 2.0), (3, 1.0), (5, 0.5)]


def params(how: Sampling, answer: tuple[int, ...] = (), room: int = 8) -> dict[str, Any]:
    prefix = TokenPrefix(TABLE, (1, 2, *answer), 2)
    child = TokenChild(0, prefix, how, INFO)
    return request_params(
        child,
        how,
        answer=answer,
        room=room,
        temperature=how.temperature,
        seed=None,
        vocab_size=10,
    )


def test_plain_options_have_sglangs_names() -> None:
    how = Sampling(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, stop=("x",), boundaries=("y",))
    sent = params(how)
    assert {key: sent[key] for key in ("temperature", "top_p", "top_k", "min_p")} == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
    }
    assert sent["stop"] == ["x", "y"]
    assert sent["stop_token_ids"] == [0]
    assert sent["max_new_tokens"] == 8
    assert params(Sampling())["top_k"] == -1
    assert "sampling_seed" not in sent


def test_bans_are_finite_and_win_over_a_bias() -> None:
    sent = params(Sampling(logit_bias={3: 5.0, 4: 1.0}, ban_ids=frozenset({3})))
    assert sent["logit_bias"] == {"3": BAN, "4": 1.0}
    json.dumps(sent, allow_nan=False)


def test_the_answer_so_far_is_part_of_a_frequency_penalty() -> None:
    sent = params(Sampling(frequency_penalty=0.5, logit_bias={3: 1.0}), answer=(3, 3, 4))
    assert sent["logit_bias"] == {"3": 0.0, "4": -0.5}
    assert sent["frequency_penalty"] == 0.5


def test_a_minimum_counts_from_the_answers_start() -> None:
    how = Sampling(min_tokens=5, stop=("x",))
    assert params(how, answer=(3, 3))["min_new_tokens"] == 3
    assert params(how, answer=(3, 3), room=2)["min_new_tokens"] == 2
    assert "stop" not in params(how, answer=(3, 3))
    done = params(how, answer=(3,) * 5)
    assert done["stop"] == ["x"]
    assert "min_new_tokens" not in done


def test_stops_that_no_server_can_read_stay_here() -> None:
    many = tuple(f"s{at}" for at in range(40))
    sent = params(Sampling(stop=("\ud800", "", "s0", *many)))
    assert sent["stop"] == list(many[:32])


def test_seeds_fit_63_bits() -> None:
    prefix = TokenPrefix(TABLE, (1,), 1)
    how = Sampling()
    sent = request_params(
        TokenChild(0, prefix, how, INFO),
        how,
        answer=(),
        room=1,
        temperature=1.0,
        seed=2**64 - 1,
        vocab_size=10,
    )
    assert sent["sampling_seed"] == 2**63 - 1


@pytest.mark.parametrize(
    ("how", "position", "option"),
    [
        (Sampling(drafter="adaptive"), 0, "drafter"),
        (Sampling(repetition_penalty=1.1), 0, "repetition_penalty"),
        (Sampling(presence_penalty=0.5), 1, "presence_penalty"),
        (Sampling(presence_penalty=0.5, schedule=Falling()), 0, "presence_penalty"),
        (Sampling(presence_penalty=2.5), 0, "presence_penalty"),
        (Sampling(frequency_penalty=-2.5), 0, "frequency_penalty"),
        (Sampling(constraint=Constraint(regex="a")), 1, "constraint"),
        (Sampling(constraint=Constraint(regex="a"), schedule=Falling()), 0, "constraint"),
        (Sampling(logit_bias={10: 1.0}), 0, "logit_bias"),
        (Sampling(ban_ids=frozenset(range(10))), 0, "ban_ids"),
        (Sampling(ban_ids=frozenset(range(1, 10)), min_tokens=1), 0, "ban_ids"),
    ],
)
def test_what_would_come_out_wrong_is_refused(how: Sampling, position: int, option: str) -> None:
    with pytest.raises(UnsupportedByEngine) as refused:
        check(how, INFO, position)
    assert refused.value.capability == option


@pytest.mark.parametrize(
    ("how", "position"),
    [
        (Sampling(presence_penalty=0.5), 0),
        (Sampling(frequency_penalty=0.5, schedule=Falling()), 7),
        (Sampling(constraint=Constraint(regex="a")), 0),
        (Sampling(schedule=Falling()), 3),
    ],
)
def test_what_comes_out_right_is_not(how: Sampling, position: int) -> None:
    check(how, INFO, position)


def test_logps_are_the_models_only_where_nothing_stands_between() -> None:
    plain = Sampling(top_p=0.5, top_k=3, min_p=0.1)
    assert draws_from_the_model(plain, 0, is_raw=False)
    assert draws_from_the_model(replace(plain, temperature=0.0), 0, is_raw=False)
    warm = replace(plain, temperature=0.7)
    assert not draws_from_the_model(warm, 0, is_raw=False)
    assert draws_from_the_model(warm, 0, is_raw=True)
    assert not draws_from_the_model(replace(plain, schedule=Falling()), 0, is_raw=False)
    for changed in (
        replace(plain, ban_ids=frozenset({1})),
        replace(plain, logit_bias={1: 1.0}),
        replace(plain, frequency_penalty=0.1),
        replace(plain, constraint=Constraint(regex="a")),
        replace(plain, min_tokens=1),
    ):
        assert not draws_from_the_model(changed, 0, is_raw=True)
    assert draws_from_the_model(replace(plain, min_tokens=1), 1, is_raw=True)


def test_a_schedule_is_cut_into_pieces() -> None:
    how = Sampling(schedule=Falling())
    found = [temperature_at(how, position, 8) for position in (0, 2, 3, 4, 5, 90)]
    assert found == [(2.0, 3), (2.0, 3), (1.0, 5), (1.0, 5), (0.5, None), (0.5, None)]
    assert temperature_at(Sampling(temperature=0.3), 4, 8) == (0.3, None)


def test_grammars_are_texts() -> None:
    schema = Constraint(json_schema={"type": "object"})
    assert constraint_params(schema) == {"json_schema": '{"type": "object"}'}
    assert constraint_params(Constraint(regex="a")) == {"regex": "a"}
    assert constraint_params(Constraint(grammar="root ::= x")) == {"ebnf": "root ::= x"}
