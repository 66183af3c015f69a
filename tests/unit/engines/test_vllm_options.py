"""Option names are checked, and defaults never override what was set."""

from __future__ import annotations

import importlib
import os
import signal
from typing import Any

import pytest
import torch

from engines.errors import ModelLoadError
from engines.vllm_async import open_engine
from engines.vllm_options import (
    PROCESSOR,
    VllmOptions,
    child_environment,
    ending_together,
    read_options,
)
from engines.vllm_proposer import PROPOSER as PROPOSER_CLASS
from engines.vllm_worker import ACCESS, constrain_some, expand_to_tokens, reject_padding

KNOWN = frozenset(
    {
        "model",
        "block_size",
        "kv_cache_memory_bytes",
        "gpu_memory_utilization",
        "logits_processors",
        "speculative_config",
        "worker_extension_cls",
        "scheduling_policy",
        "reasoning_parser",
        "logprobs_mode",
    }
)


def read(options: dict[str, Any], *, is_cpu: bool = True) -> VllmOptions:
    return read_options("m", options, KNOWN, is_cpu=is_cpu)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"blok_size": 16}, "block_size"),
        ({"tool_parsr": "hermes"}, "tool_parser"),
        ({"logprobs_mode": "raw_logits"}, "logprobs_mode"),
        ({"model": "other"}, "engine.model"),
        ({"drafter": "adaptive", "speculative_config": {"method": "ngram"}}, "keep one"),
        ({"drafter": "adaptive", "draft_tokens": 0}, "1 … 64, not 0"),
        ({"drafter": "adaptive", "draft_tokens": True}, "not True"),
        ({"drafter": "adaptive", "draft_min_prob": 1.5}, "not 1.5"),
        ({"draft_table": "sums.npz"}, "set drafter"),
        ({"drafter": "adaptive", "worker_extension_cls": "a.B"}, "worker_extension_cls"),
        ({"speculative_config": {"method": "ngram"}, "worker_extension_cls": "a.B"}, "bough's"),
    ],
)
def test_what_cannot_be_set_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelLoadError, match=says):
        read(options)


def test_defaults_of_a_cpu_give_way() -> None:
    assert read({}).engine["block_size"] == 32
    assert read({"block_size": 128}).engine["block_size"] == 128
    assert "block_size" not in read({}, is_cpu=False).engine
    assert read({}).engine["kv_cache_memory_bytes"] == 1 << 30
    assert "kv_cache_memory_bytes" not in read({"gpu_memory_utilization": 0.5}).engine
    assert read({"scheduling_policy": "fcfs"}).engine["scheduling_policy"] == "fcfs"


def test_our_processor_is_there_unless_drafts_are() -> None:
    assert read({}).engine["logits_processors"] == [PROCESSOR]
    both = read({"logits_processors": ["theirs:P"]})
    assert both.engine["logits_processors"] == [PROCESSOR, "theirs:P"]
    drafting = read({"speculative_config": {"method": "ngram"}})
    assert drafting.drafts
    assert "logits_processors" not in drafting.engine


def test_a_name_that_is_both_ours_and_theirs_goes_to_both() -> None:
    options = read({"reasoning_parser": "qwen3", "step_delimiters": ["\n"], "max_step_tokens": 9})
    assert options.reasoning_parser == options.engine["reasoning_parser"] == "qwen3"
    assert (options.step_delimiters, options.max_step_tokens) == (("\n",), 9)


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    uni = VllmOptions(engine={"distributed_executor_backend": "uni"})
    with child_environment(uni, is_cpu=True):
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        assert os.environ["TORCHDYNAMO_DISABLE"] == "1"
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in os.environ
    with child_environment(uni, is_cpu=False):
        assert "TORCHDYNAMO_DISABLE" not in os.environ


def test_a_signal_to_end_while_starting_lets_vllm_clean_up() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), ending_together():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_vllm_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(ModelLoadError, match="setup-vllm"):
        open_engine("m", "models/none", {})


def test_a_drafter_of_ours_is_a_class_that_vllm_loads() -> None:
    found = read({"drafter": "adaptive", "draft_tokens": 5, "draft_table": "sums.npz"})
    assert found.drafts
    assert (found.drafter, found.draft_table) == ("adaptive", "sums.npz")
    assert found.engine["speculative_config"] == {
        "method": "custom_class",
        "model": "engines.vllm_proposer.Proposer",
        "num_speculative_tokens": 5,
    }
    assert found.engine["worker_extension_cls"] == ACCESS
    assert found.engine["per_request_spec_decode_metrics"] == "summary"
    assert "logits_processors" not in found.engine
    for name in (PROPOSER_CLASS, ACCESS):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


def test_on_a_cpu_vllms_own_drafts_need_its_sampler_mended() -> None:
    ngram = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}
    assert read(ngram).engine["worker_extension_cls"] == ACCESS
    elsewhere = read({**ngram, "worker_extension_cls": "a.B"}, is_cpu=False)
    assert elsewhere.engine["worker_extension_cls"] == "a.B"
    assert "worker_extension_cls" not in read({}).engine
    assert read({"drafter": "adaptive"}, is_cpu=False).engine["worker_extension_cls"] == ACCESS


def test_each_rows_value_is_spread_over_its_tokens() -> None:
    """Without the type being lost, and greedy rows divided by 1."""
    ends = torch.tensor([2, 3, 3, 5], dtype=torch.int32)
    heats = torch.tensor([0.7, 0.0, 9.0, 1.5])
    assert expand_to_tokens(heats, ends, 5, 0, 1).tolist() == pytest.approx([0.7, 0.7, 1, 1.5, 1.5])
    tops = expand_to_tokens(torch.tensor([3, 0, 9, 5], dtype=torch.int32), ends, 5)
    assert (tops.dtype, tops.tolist()) == (torch.int32, [3, 3, 0, 5, 5])


def test_a_step_without_drafts_has_nothing_to_constrain() -> None:
    def constrain(logits: torch.Tensor, *args: object) -> torch.Tensor:
        return logits * logits.max()  # which none has not

    assert constrain_some(constrain, torch.zeros(0, 3), "ends", "metadata").shape == (0, 3)
    assert constrain_some(constrain, torch.tensor([[1.0, 2.0]])).tolist() == [[2.0, 4.0]]


def test_drafts_that_fill_up_a_row_are_never_accepted() -> None:
    """Of vLLM's arguments only the drafts and their uniform numbers change."""
    seen: list[object] = []
    drafts, numbers = torch.tensor([4, -1, -1]), torch.tensor([0.3, 0.0, 0.9], dtype=torch.float64)
    args = ["output", "ends", drafts, None, "target", "bonus", "recovered", numbers, "greedy", 2]
    reject_padding(lambda *given: seen.extend(given), *args)
    assert torch.equal(seen[2], torch.tensor([4, 0, 0]))  # type: ignore[arg-type]
    assert torch.equal(seen[7], torch.tensor([0.3, 2.0, 2.0], dtype=torch.float64))  # type: ignore[arg-type]
    unchanged = [place for place in range(len(args)) if place not in (2, 7)]
    assert [seen[place] for place in unchanged] == [args[place] for place in unchanged]
