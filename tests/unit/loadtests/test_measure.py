from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.measure import (
    Record,
    duration_of,
    percentile,
    summarize,
    summarize_by_strategy,
    tpot_s,
)

WHOLE = Record(
    index=0,
    strategy="single",
    scheduled_s=10.0,
    sent_s=10.5,
    ended_s=14.0,
    text_times_s=(11.0, 11.5, 13.0),
    outcome="ok",
    status=200,
    answer_tokens=7,
    generated_tokens=20,
)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), abs=1e-6)


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_one_request_worked_by_hand() -> None:
    summary = summarize([WHOLE], duration_s=4.0)
    assert summary["ttft_s_p50"] == 1.0  # 11 - 10, not 11 - 10.5
    assert summary["tpot_s_p50"] == 0.5  # (14 - 11) / (7 - 1)
    assert (summary["itl_s_n"], summary["itl_s_mean"], summary["itl_s_max"]) == (2, 1.0, 1.5)
    assert summary["latency_s_p50"] == 4.0
    assert summary["service_s_p50"] == 3.5
    assert summary["queue_s_p50"] == 0.5
    assert summary["requests_per_s"] == 0.25
    assert summary["answer_tokens_per_s"] == 1.75
    assert summary["generated_tokens_per_s"] == 5.0


@pytest.mark.parametrize("tokens", [None, 0, 1])
def test_time_per_token_is_undefined_below_two_tokens(tokens: int | None) -> None:
    assert tpot_s(dataclasses.replace(WHOLE, answer_tokens=tokens)) == []
    summary = summarize([dataclasses.replace(WHOLE, answer_tokens=tokens)], 1.0)
    assert summary["tpot_s_n"] == 0
    assert "tpot_s_p50" not in summary


def test_an_answer_without_text_has_no_first_token() -> None:
    summary = summarize([dataclasses.replace(WHOLE, text_times_s=())], 1.0)
    assert (summary["ok"], summary["ttft_s_n"], summary["tpot_s_n"], summary["itl_s_n"]) == (
        1,
        0,
        0,
        0,
    )


def test_errors_and_incompletes_stay_in_the_denominator() -> None:
    error = dataclasses.replace(
        WHOLE, outcome="error", status=429, code="overloaded", ended_s=10.6, text_times_s=()
    )
    lost = dataclasses.replace(error, status=None, code="ConnectError")
    given_up = dataclasses.replace(WHOLE, outcome="incomplete", ended_s=None)
    summary = summarize([WHOLE, error, error, lost, given_up], duration_s=10.0)
    counts = [summary[name] for name in ("n", "ok", "errors", "incomplete", "ok_ratio")]
    assert counts == [5, 1, 3, 1, 0.2]
    assert summary["errors_by_code"] == {"429 overloaded": 2, "no reply ConnectError": 1}
    assert summary["requests_per_s"] == 0.1
    assert (summary["ttft_s_n"], summary["latency_s_p99"]) == (1, 4.0)  # only of what completed


def test_a_time_per_strategy_and_in_total() -> None:
    other = dataclasses.replace(WHOLE, strategy="ets", ended_s=16.0)
    found = summarize_by_strategy([WHOLE, other], 6.0)
    assert list(found) == ["ets", "single", "total"]
    assert [found[name]["latency_s_p50"] for name in found] == [6.0, 4.0, 5.0]


def test_duration_goes_from_first_arrival_to_last_end() -> None:
    later = dataclasses.replace(WHOLE, scheduled_s=12.0, ended_s=13.0)
    never = dataclasses.replace(WHOLE, scheduled_s=9.0, ended_s=None, outcome="incomplete")
    assert duration_of([WHOLE, later, never]) == 5.0
    assert duration_of([never]) == 0.0
    assert summarize([never], 0.0)["requests_per_s"] is None
    assert duration_of([]) == 0.0
