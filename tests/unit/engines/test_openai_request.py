from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engines.base import Capability, Conversation, EngineInfo, Sampling
from engines.errors import UnsupportedByEngine
from engines.openai_dialects import DIALECTS, PLAIN, context_of, dialect_of
from engines.openai_prefix import PromptCount, TextPrefix
from engines.openai_request import Wire, body_of, bound_of, refuse_unsendable, stops_sent

MESSAGES = ({"role": "user", "content": "hi"},)
VLLM = Wire(DIALECTS["vllm"], continues="flag")
BARE = Wire(PLAIN)
INFO = EngineInfo("up", 100, 0, frozenset(), "", 0, frozenset({Capability.LOGPROBS}))


def prefix(text: str = "", begun: str = "") -> TextPrefix:
    return TextPrefix(Conversation(MESSAGES, begun), text, len(text), PromptCount())


def body(
    how: Sampling, wire: Wire, text: str = "", max_tokens: int | None = None
) -> dict[str, Any]:
    return body_of(how, prefix(text), wire, 7, max_tokens)


def test_a_plain_chat_says_no_more_than_it_must() -> None:
    assert body_of(Sampling(temperature=0.5), prefix(), BARE, None, None) == {
        "messages": list(MESSAGES),
        "temperature": 0.5,
        "stream_options": {"include_usage": True},
    }


def test_every_option_is_sent_under_its_name() -> None:
    how = Sampling(
        top_p=0.9,
        top_k=5,
        min_p=0.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.1,
        logit_bias={3: -1.0},
        stop_token_ids=frozenset({9, 4}),
        min_tokens=2,
        logprobs=2,
    )
    sent = body(how, VLLM, max_tokens=11)
    expected = {
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.1,
        "logit_bias": {"3": -1.0},
        "stop_token_ids": [4, 9],
        "min_tokens": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "max_tokens": 11,
        "seed": 7,
    }
    assert {name: sent[name] for name in expected} == expected
    assert sent["stream_options"]["continuous_usage_stats"] is True


def test_llamacpp_has_a_name_of_its_own() -> None:
    sent = body(Sampling(repetition_penalty=1.1), Wire(DIALECTS["llamacpp"]))
    assert sent["repeat_penalty"] == 1.1
    assert "repetition_penalty" not in sent


def test_seeds_are_such_as_every_server_takes() -> None:
    assert 0 <= body_of(Sampling(), prefix(), BARE, -(2**63) + 5, None)["seed"] < 2**31


@pytest.mark.parametrize(
    ("style", "last", "flags"),
    [
        (
            "flag",
            {"role": "assistant", "content": "so far"},
            {"continue_final_message": True, "add_generation_prompt": False},
        ),
        ("prefix", {"role": "assistant", "content": "so far", "prefix": True}, {}),
        ("bare", {"role": "assistant", "content": "so far"}, {}),
    ],
)
def test_an_answer_is_continued_in_the_servers_way(
    style: Any, last: dict[str, Any], flags: dict[str, Any]
) -> None:
    sent = body(Sampling(), Wire(PLAIN, continues=style), "so far")
    assert sent["messages"] == [*MESSAGES, last]
    assert {name: sent[name] for name in sent if "final" in name or "prompt" in name} == flags


def test_completions_send_what_was_rendered_and_written() -> None:
    wire = Wire(DIALECTS["vllm"], render=lambda messages: "<user>hi<assistant>")
    sent = body_of(Sampling(logprobs=3), prefix(" and on", "I begin"), wire, None, None)
    assert wire.path == "/completions"
    assert sent["prompt"] == "<user>hi<assistant>I begin and on"
    assert sent["add_special_tokens"] is False
    assert sent["logprobs"] == 3
    assert "messages" not in sent


def test_stops_are_sent_as_far_as_they_are_taken() -> None:
    how = Sampling(stop=("a", "b", "c"), boundaries=("\n", "\n\n"))
    assert stops_sent(how, BARE) == ("a", "b", "c")
    assert stops_sent(how, VLLM) == ("a", "b", "c", "\n")
    assert body(how, VLLM)["include_stop_str_in_output"] is True
    assert "include_stop_str_in_output" not in body(how, BARE)


def test_steps_of_named_tokens_are_cut_here() -> None:
    how = Sampling(stop=("a",), boundaries=("\n",), logprobs=0)
    assert stops_sent(how, VLLM) == ("a",)


@pytest.mark.parametrize(
    ("max_tokens", "step", "position", "expected"),
    [
        (None, None, 0, (None, "context")),
        (10, None, 4, (6, "length")),
        (None, 5, 4, (5, "step_length")),
        (10, 5, 4, (5, "step_length")),
        (10, 5, 7, (3, "length")),
        (10, 3, 7, (3, "length")),
        (10, 5, 12, (0, "length")),
    ],
)
def test_bounds(
    max_tokens: int | None, step: int | None, position: int, expected: tuple[int | None, str]
) -> None:
    bound = bound_of(Sampling(max_tokens=max_tokens, max_step_tokens=step), position)
    assert (bound.tokens, bound.why) == expected


@pytest.mark.parametrize(
    ("how", "wire", "named"),
    [
        (Sampling(top_k=3), BARE, "top_k"),
        (Sampling(min_p=0.2), BARE, "min_p"),
        (Sampling(repetition_penalty=1.2), BARE, "repetition_penalty"),
        (Sampling(repetition_penalty=1.2), Wire(DIALECTS["sglang"]), "repetition_penalty"),
        (Sampling(logit_bias={1: 1.0}), Wire(DIALECTS["ollama"]), "logit_bias"),
        (Sampling(stop_token_ids=frozenset({1})), BARE, "stop_token_ids"),
        (Sampling(min_tokens=1), BARE, "min_tokens"),
        (Sampling(min_tokens=1, stop=("a",)), VLLM, "min_tokens"),
        (Sampling(min_tokens=1, max_step_tokens=4), VLLM, "min_tokens"),
        (Sampling(ban_ids=frozenset({1})), VLLM, "ban_ids"),
        (Sampling(drafter="adaptive"), VLLM, "drafter"),
        (Sampling(presence_penalty=1.0, boundaries=("\n",)), VLLM, "presence_penalty"),
        (Sampling(frequency_penalty=1.0, max_step_tokens=9), VLLM, "frequency_penalty"),
    ],
)
def test_what_cannot_be_kept_is_refused(how: Sampling, wire: Wire, named: str) -> None:
    with pytest.raises(UnsupportedByEngine) as caught:
        refuse_unsendable(how, prefix(), wire, INFO)
    assert caught.value.capability == named


def test_only_who_can_go_on_is_asked_to() -> None:
    refuse_unsendable(Sampling(), prefix("so far"), VLLM, INFO)
    with pytest.raises(UnsupportedByEngine, match="continue_text"):
        refuse_unsendable(Sampling(), prefix("so far"), BARE, INFO)
    with pytest.raises(UnsupportedByEngine, match="presence_penalty"):
        refuse_unsendable(Sampling(presence_penalty=1.0), prefix("so far"), VLLM, INFO)


def test_logprobs_need_the_capability() -> None:
    without = replace(INFO, capabilities=frozenset())
    refuse_unsendable(Sampling(logprobs=1), prefix(), BARE, INFO)
    with pytest.raises(UnsupportedByEngine, match="logprobs"):
        refuse_unsendable(Sampling(logprobs=1), prefix(), BARE, without)


@pytest.mark.parametrize("name", ["vllm", "sglang", "llamacpp", "ollama", "bough"])
def test_servers_are_told_apart_by_who_owns_a_model(name: str) -> None:
    owner = DIALECTS[name].owners[0]
    assert dialect_of({"owned_by": owner}).name == name
    assert dialect_of({"owned_by": owner.upper()}).name == name


def test_whoever_is_not_known_is_plain() -> None:
    assert dialect_of({}) is dialect_of({"owned_by": "somebody"}) is PLAIN


@pytest.mark.parametrize(
    ("entry", "context"),
    [
        ({"max_model_len": 4096}, 4096),
        ({"bough": {"context_tokens": 99}}, 99),
        ({"context_window": 8}, 8),
        ({"meta": {"n_ctx": 512}}, 512),
        ({"max_model_len": None}, None),
        ({"max_model_len": "4096", "bough": "?"}, None),
        ({}, None),
    ],
)
def test_contexts(entry: dict[str, Any], context: int | None) -> None:
    assert context_of(entry) == context
