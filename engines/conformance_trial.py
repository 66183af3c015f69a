"""What the checks of `engines.conformance` share: the engine under test, and claims they take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from engines.base import (
    Capability,
    ChatMessage,
    Continuation,
    Delta,
    Engine,
    Prefix,
    Sampling,
    TokenIds,
)

_TEXTS: Final = ("", "plain words", "two\nlines", "é € 😀", " leading and trailing ")
_MESSAGES: Final = ({"role": "user", "content": "Say it again: é,\none € and\ntwo more."},)


class ContractBroken(AssertionError):
    """An engine broke a law; the message says which, with what was seen."""


class NotApplicable(Exception):
    """The engine does not declare the capability that this check is about."""


@dataclass(frozen=True)
class Subject:
    """The engine under test.

    Attributes:
        make: A new engine each time; `run_check` closes it.
        messages: A conversation that it can render.
        texts: Strings that its tokenizer can spell.
    """

    make: Callable[[], Engine]
    messages: tuple[ChatMessage, ...] = _MESSAGES
    texts: tuple[str, ...] = _TEXTS


@dataclass
class Trial:
    """One engine while a check runs, with the claims taken on the way."""

    engine: Engine
    subject: Subject
    taken: list[Prefix] = field(default_factory=list)

    def own(self, prefix: Prefix) -> Prefix:
        """Remember to release this claim."""
        self.taken.append(prefix)
        return prefix

    async def open(self, prompt: TokenIds | None = None) -> Prefix:
        """A claim on `prompt`, by default on the subject's conversation."""
        chosen = self.engine.render(self.subject.messages) if prompt is None else prompt
        return self.own(await self.engine.open(chosen))

    async def children(
        self, prefix: Prefix, how: Sampling, seeds: Sequence[int] = (0,)
    ) -> tuple[list[Continuation], list[Delta]]:
        """Sample to the end: continuations by index, and all deltas; each index ends once."""
        done: dict[int, Continuation] = {}
        deltas: list[Delta] = []
        async for item in self.engine.sample(prefix, how, n=len(seeds), seeds=seeds):
            require(item.index not in done, f"child {item.index} went on after its Continuation")
            if isinstance(item, Delta):
                deltas.append(item)
            else:
                self.own(item.prefix)
                done[item.index] = item
        require(sorted(done) == list(range(len(seeds))), f"children {sorted(done)} of {seeds}")
        return [done[index] for index in range(len(seeds))], deltas

    async def child(self, prefix: Prefix, how: Sampling, seed: int = 0) -> Continuation:
        """One finished child."""
        return (await self.children(prefix, how, (seed,)))[0][0]

    async def released_midway(self, prefix: Prefix, how: Sampling) -> Continuation:
        """One child of a claim that is released, twice, when its first item is there."""
        items = self.engine.sample(prefix, how, seeds=(0,))
        last = await anext(aiter(items))
        prefix.release()
        prefix.release()
        async for item in items:
            last = item
        if not isinstance(last, Continuation):
            raise ContractBroken("the last item of a child is not its Continuation")
        self.own(last.prefix)
        return last

    async def leave_midway(self, prefix: Prefix) -> None:
        """Close an iterator of four children that is half read; cancel a reader of four others."""
        items = self.engine.sample(prefix, self.endless, n=4, seeds=(1, 2, 3, 4))
        first = await anext(aiter(items))
        if isinstance(first, Continuation):
            self.own(first.prefix)
        await items.aclose()  # type: ignore[attr-defined]  # every sample is an async generator
        reader = asyncio.create_task(self.children(prefix, self.endless, (1, 2, 3, 4)))
        await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait([reader])

    @property
    def endless(self) -> Sampling:
        """Sampling that no eos token ends: 24 tokens, always the same for the same seed.

        Without seeds that is greedy.
        """
        info = self.engine.info
        temperature = 1.0 if Capability.SEED in info.capabilities else 0.0
        return Sampling(max_tokens=24, ban_ids=info.eos_ids, temperature=temperature)


def needle_of(plain: Continuation) -> str:
    """Two characters of an answer, or one, that are not its beginning and not blank.

    Raises:
        NotApplicable: It has none.
    """
    text = plain.text
    for size in (2, 1):
        for at in range(2, len(text) - size):
            needle = text[at : at + size]
            if "\ufffd" not in needle and needle.strip() and text.index(needle) > 0:
                return needle
    raise NotApplicable("no character of the reference answer can be a stop string")


async def no_claims(engine: Engine) -> None:
    """Wait, at most five seconds, until no page is claimed."""
    for _ in range(500):
        if engine.stats().pages_claimed == 0:
            return
        await asyncio.sleep(0.01)
    raise ContractBroken(f"pages are still claimed by nobody: {engine.stats()}")


def require(holds: bool, what: str) -> None:
    """Raise `ContractBroken` unless the law holds."""
    if not holds:
        raise ContractBroken(what)
