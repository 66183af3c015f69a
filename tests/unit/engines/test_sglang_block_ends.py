"""How many tokens a worker may send for a text of blocks, wherever it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from engines.diffusion.base import DenoiseJob, DenoiserInfo, frozen_prompt
from engines.errors import EngineClosed
from engines.sglang_blocks import KERNEL, BlockDenoiser, own_kernel
from engines.sglang_wire import News

EOS, MASK, OTHER_END = 7, 99, 8
PROMPT = (1, 2)
LENGTH = 4


class Sends:
    """A pool whose worker sends these tokens."""

    def __init__(self, *ids: int, finish: dict[str, Any]) -> None:
        self._news = News(ids, (), (), finish, 2, 0, True)

    async def generate(self, *asked: object) -> AsyncIterator[News]:
        yield self._news


async def denoised(pool: Any) -> tuple[int, ...]:
    info = DenoiserInfo("m", MASK, 64, (KERNEL,), frozenset(), block_size=4)
    engine: Any = SimpleNamespace(eos_ids=frozenset({EOS}), vocab_size=100)
    denoiser = BlockDenoiser(info, engine, pool, lambda *_: None)
    kernel = own_kernel(info, len(PROMPT), LENGTH)
    row, frozen = denoiser.start(PROMPT, LENGTH), frozen_prompt(len(PROMPT), LENGTH)
    [done] = await denoiser.denoise([DenoiseJob(row, frozen, 0, kernel.steps, 5, 1.0, kernel)])
    return done.tokens[len(PROMPT) :]


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ((3, EOS), (3, EOS, EOS, EOS)),
        ((3, 4, 5, EOS), (3, 4, 5, EOS)),
        ((3, EOS, 5, 6, 3, EOS), (3, EOS, EOS, EOS)),
        ((3, 4, 5, OTHER_END), (3, 4, 5, EOS)),
    ],
)
async def test_an_end_fills_the_text(ids: tuple[int, ...], text: tuple[int, ...]) -> None:
    assert await denoised(Sends(*ids, finish={"type": "stop", "matched": ids[-1]})) == text


@pytest.mark.parametrize("last", [EOS, OTHER_END, 6])
async def test_an_end_behind_the_text_is_none(last: int) -> None:
    """The row would be longer than was asked for."""
    sent = Sends(3, 4, 5, 6, last, finish={"type": "stop", "matched": last})
    with pytest.raises(EngineClosed, match="5 tokens where 4 were due"):
        await denoised(sent)
