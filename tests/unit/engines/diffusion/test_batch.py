"""The batcher: one forward for many callers, fair, cancellable, and honest about failures."""

import asyncio
import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engines.diffusion.base import DenoiseJob, Kernel, frozen_prompt
from engines.diffusion.batch import Batcher
from engines.embedded.compute import ComputeThread
from engines.errors import EngineClosed, EngineError

MASK = 3


class CountingNetwork:
    """Uniform over four tokens; remembers the shape of every forward, and may wait or fail."""

    device = torch.device("cpu")
    vocab_size = 4

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.lengths: list[list[int]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.fails_at = 0

    def logits(self, ids: Tensor, lengths: Sequence[int], rows: Tensor, spots: Tensor) -> Tensor:
        self.may_go.wait()
        if ids.shape[1] == self.fails_at:
            raise RuntimeError("out of memory")
        self.shapes.append((ids.shape[0], ids.shape[1]))
        self.lengths.append(list(lengths))
        return torch.zeros(len(rows), 4)


def job(length: int = 4, seed: int = 0, name: str = "random") -> DenoiseJob:
    return DenoiseJob(
        (0,) + (MASK,) * length,
        frozen_prompt(1, length),
        0,
        length,
        seed,
        1.0,
        Kernel(name, steps=length),
    )


@pytest.fixture
def network() -> CountingNetwork:
    return CountingNetwork()


def batcher_of(network: CountingNetwork, max_tokens: int = 1000) -> Batcher:
    return Batcher(network, MASK, max_tokens, ComputeThread("test-diffusion"))


async def settled(condition: object) -> None:
    for _ in range(2000):
        if callable(condition) and condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come to pass")


async def test_calls_that_wait_share_a_forward(network: CountingNetwork) -> None:
    batcher = batcher_of(network)
    network.may_go.clear()
    first = asyncio.ensure_future(batcher.run([job()]))
    await settled(lambda: batcher.num_rows == 1)
    others = [asyncio.ensure_future(batcher.run([job(seed=s), job(seed=s + 50)])) for s in (1, 2)]
    await asyncio.sleep(0)
    network.may_go.set()
    [[_], *rest] = [await first, *[await other for other in others]]
    assert [len(results) for results in rest] == [2, 2]
    assert network.shapes[0] == (1, 5)
    assert network.shapes[1] == (5, 5)  # at different steps of their runs
    assert batcher.evaluations == 5 * 4
    assert batcher.forwards == 5
    batcher.close()


async def test_kernels_mix_and_lengths_are_padded_or_grouped(network: CountingNetwork) -> None:
    batcher = batcher_of(network)
    jobs = [job(19), job(18, name="entropy"), job(17, name="mdlm"), job(4)]
    results = await batcher.run(jobs)
    assert [len(done.tokens) for done in results] == [20, 19, 18, 5]
    for lengths in network.lengths:
        assert min(lengths) >= 0.75 * max(lengths)
    assert [20, 19, 18] in [sorted(one, reverse=True) for one in network.lengths]
    batcher.close()


async def test_forwards_stay_within_their_tokens_and_nobody_starves(
    network: CountingNetwork,
) -> None:
    batcher = batcher_of(network, max_tokens=12)
    results = await batcher.run([job(4, seed) for seed in range(5)])
    assert all(rows * width <= 12 for rows, width in network.shapes)
    assert all(done.nfe == 4 for done in results)
    assert batcher.forwards == 10  # two rows each
    batcher.close()
    tight = batcher_of(network, max_tokens=1)
    [done] = await tight.run([job(4)])
    assert done.nfe == 4  # a row that is longer than all that fits still runs
    tight.close()


async def test_a_cancelled_call_leaves_the_batch(network: CountingNetwork) -> None:
    batcher = batcher_of(network)
    network.may_go.clear()
    lost = asyncio.ensure_future(batcher.run([job(seed=seed) for seed in range(8)]))
    kept = asyncio.ensure_future(batcher.run([job(seed=99)]))
    await settled(lambda: batcher.num_rows >= 8)
    lost.cancel()
    await asyncio.wait([lost])
    assert lost.cancelled()
    network.may_go.set()
    [done] = await kept
    assert done.nfe == 4
    assert sum(rows > 1 for rows, _ in network.shapes) <= 2  # at most what was on its way
    await settled(lambda: batcher.num_rows == 0)
    batcher.close()


async def test_a_failing_model_fails_those_in_the_batch_and_no_others(
    network: CountingNetwork, caplog: pytest.LogCaptureFixture
) -> None:
    batcher = batcher_of(network)
    network.fails_at = 20
    lost = asyncio.ensure_future(batcher.run([job(19), job(4, seed=1)]))
    kept = asyncio.ensure_future(batcher.run([job(4)]))
    with pytest.raises(EngineError, match="out of memory"):
        await lost
    assert "forward" in caplog.text
    [done] = await kept
    assert done.nfe == 4
    network.fails_at = 0
    [done] = await batcher.run([job(19)])
    assert done.nfe == 19
    batcher.close()


async def test_closing_fails_what_runs_and_what_comes(network: CountingNetwork) -> None:
    batcher = batcher_of(network)
    network.may_go.clear()
    running = asyncio.ensure_future(batcher.run([job()]))
    await settled(lambda: batcher.num_rows == 1)
    closing = asyncio.get_running_loop().run_in_executor(None, batcher.close)
    network.may_go.set()
    await closing
    with pytest.raises(EngineClosed):
        await running
    with pytest.raises(EngineClosed):
        await batcher.run([job()])
    batcher.close()


async def test_many_numbers_are_shaped_in_parts(
    network: CountingNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = batcher_of(network)
    jobs = [job(6, seed, "low_confidence") for seed in range(7)]
    whole = await batcher.run(jobs)
    monkeypatch.setattr("engines.diffusion.batch.MAX_NUMBERS", 60)
    parts = await batcher.run(jobs)
    assert [done.tokens for done in parts] == [done.tokens for done in whole]
    batcher.close()
