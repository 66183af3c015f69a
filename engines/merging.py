"""Several streams read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def merged(streams: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[T]:
    """Items of all streams as they come; leaving early, or an error of one, closes them all."""
    items: asyncio.Queue[T | asyncio.Task[None]] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[T]) -> None:
        async with aclosing(stream):
            async for item in stream:
                items.put_nowait(item)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    for task in tasks:
        task.add_done_callback(items.put_nowait)
    remaining = len(tasks)
    try:
        while remaining:
            item = await items.get()
            if isinstance(item, asyncio.Task):
                item.result()
                remaining -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
