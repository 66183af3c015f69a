"""``bough bench diffusion``: trees of denoising rollouts on the bundled diffusion model.

Unless said otherwise the problems are half sums, half tales of 32 tokens, answered in 32 steps, and
judged by the bundled `short` judge. All contenders get the same problems and seeds; the unit of
cost is the evaluation, one row once through the model, and steps that reveal nothing cost nothing
for anybody. ``--n`` bounds the number of problems.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from loadtests.bench import diffusion_quality, diffusion_speed
from loadtests.bench.figures import Bench, bench_command

_PARTS: Final[tuple[Callable[[Bench], Awaitable[None]], ...]] = (
    diffusion_quality.measure,
    diffusion_speed.measure,
)


@bench_command("diffusion")
def run(bench: Bench) -> None:
    """Tree search over denoising against best-of-n and particles, at counted evaluations."""
    asyncio.run(measure(bench))


async def measure(bench: Bench) -> None:
    """All parts whose figures are wanted."""
    for part in _PARTS:
        if not bench.out_of_time():
            await part(bench)
