"""Block diffusion over the protocol fake: the suite, and what else a start refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engines.errors import DeterministicKernel, ModelLoadError
from engines.sglang_blocks import BlockDenoiser, ends_of
from engines.sglang_discovery import SAMPLED
from engines.sglang_http import open_engine
from tests.contract.sglang_blocks import CHECKS, PROMPT, Blocks, Check, searched, whole_job
from tests.sglang_fake import FakeOptions, FakeServer
from tests.sglang_fake_model import BLOCK, EOS, write_fake_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdar")
    return write_fake_model(directory, architecture="SDARForCausalLM")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[FakeServer]:
    running = FakeServer(FakeOptions(model_path=str(model), algorithm=SAMPLED, repeats=True))
    yield running
    running.stop()


@pytest.fixture
def greedy(model: Path) -> Iterator[FakeServer]:
    running = FakeServer(FakeOptions(model_path=str(model), algorithm="LowConfidence"))
    yield running
    running.stop()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_blocks(check: Check, server: FakeServer) -> None:
    await check(Blocks(server.url, BLOCK))
    assert not server.fake.live


async def test_a_tree_over_the_servers_own_algorithm_is_refused(greedy: FakeServer) -> None:
    """It reads no temperature, so all branches would be equal."""
    blocks = Blocks(greedy.url, BLOCK)
    async with blocks.engine() as engine:
        assert not engine.denoiser.info.reads_temperature
        with pytest.raises(DeterministicKernel, match="whatever the temperature"):
            await searched(engine, "dts_star", blocks)
        assert (await searched(engine, "single", blocks)).texts


async def test_an_end_that_only_the_server_knows_is_one_of_ours(server: FakeServer) -> None:
    """Two texts of 100 tokens, always the same ones; at least one comes to an end."""
    ours = 2
    async with Blocks(server.url, BLOCK).engine() as engine:
        info = replace(engine.info, eos_ids=frozenset({ours}))
        denoiser = BlockDenoiser(engine.denoiser.info, info, engine._pool, lambda *_: None)
        job = whole_job(engine, 100)
        done = await denoiser.denoise([replace(job, seed=seed) for seed in range(2)])
    for one in done:
        answer = one.tokens[len(PROMPT) :]
        end = answer.index(ours) if ours in answer else len(answer)
        assert EOS not in answer
        assert answer[end:] == (ours,) * (len(answer) - end)
    assert any(one.tokens[-1] == ours for one in done)


def test_workers_that_denoise_differently_are_refused(
    server: FakeServer, greedy: FakeServer
) -> None:
    with pytest.raises(ModelLoadError, match="same --dllm-algorithm"):
        open_engine("blocks", f"{server.url},{greedy.url}", {})


def test_blocks_that_are_not_the_workers_are_refused(server: FakeServer) -> None:
    with pytest.raises(ModelLoadError, match="say block_size"):
        open_engine("blocks", server.url, {"block_size": 3})


def test_unknown_architectures_are_refused(tmp_path: Path) -> None:
    path = write_fake_model(tmp_path)
    running = FakeServer(FakeOptions(model_path=str(path), algorithm=SAMPLED))
    try:
        with pytest.raises(ModelLoadError, match=r"LlamaForCausalLM.*known are LLaDA2MoeModelLM"):
            open_engine("blocks", running.url, {})
    finally:
        running.stop()


@pytest.mark.parametrize(
    ("prompt", "length", "ends"),
    [(0, 8, (4, 8)), (5, 8, (8, 12, 13)), (4, 3, (7,)), (3, 1, (4,)), (3, 2, (4, 5))],
)
def test_blocks_are_counted_from_the_rows_start(
    prompt: int, length: int, ends: tuple[int, ...]
) -> None:
    assert ends_of(prompt, length, 4) == ends
