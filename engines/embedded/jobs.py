"""Work handed to the worker's thread, and how its results come back to the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.embedded.sequence import Branch, Reading

if TYPE_CHECKING:
    import torch

    from engines.base import Continuation, Delta, TokenIds
    from engines.embedded.claims import PageClaim


class Job:
    """Sequences that belong to one call. `wake` is set on its loop whenever there is news.

    Attributes:
        error: Why the job died, if it did.
        unfinished: Sequences that the worker still has.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.wake = asyncio.Event()
        self.error: BaseException | None = None
        self.unfinished = 0
        self.sequences: Sequence[Branch | Reading] = ()

    async def news(self) -> None:
        """Wait until something happened since the last call."""
        await self.wake.wait()
        self.wake.clear()


class GenerateJob(Job):
    """One `sample` call.

    Attributes:
        wants_deltas: Whether to wake the caller for every token, not only for finished children.
        finished: Branches that ended and were not collected yet.
        undelivered: Collected, but not yet taken by the caller.
    """

    def __init__(self, wants_deltas: bool) -> None:
        super().__init__()
        self.wants_deltas = wants_deltas
        self.branches: list[Branch] = []
        self.finished: list[Branch] = []
        self.undelivered: deque[Delta | Continuation] = deque()


@dataclass(frozen=True)
class ReadResult:
    """What `finish` made of one sequence, and the tokens run for it."""

    value: Any
    computed_tokens: int


class ReadJob(Job):
    """Hidden states wanted: of tokens from `read_from` on, turned into a result by `finish`."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[ReadResult] = []


@dataclass(frozen=True, eq=False)
class LastStates:
    """A `finish` for many sequences at a time, of which only the last state is wanted.

    Attributes:
        function: Turns (N, C) states into N results.
    """

    function: Callable[[torch.Tensor], Sequence[object]]


class ReadRequest:
    """One sequence of a `ReadJob`.

    `age` and `priority` are those of the claim that is read. `claim` is one on just these tokens,
    which keeps the pages of what is run.
    """

    __slots__ = ("age", "claim", "finish", "priority", "read_from", "tenant", "tokens")

    def __init__(
        self,
        tenant: str,
        tokens: TokenIds,
        read_from: int,
        finish: Callable[[torch.Tensor], object] | LastStates,
        *,
        age: int | None = None,
        priority: int = 0,
        claim: PageClaim | None = None,
    ) -> None:
        self.tenant = tenant
        self.tokens = tokens
        self.read_from = read_from
        self.finish = finish
        self.age = age
        self.priority = priority
        self.claim = claim
