"""Which sequences run next: admission, chunked prefill, growth and preemption. Pure Python, no
tensors.

Sequences wait in order of (priority, age of their request, arrival). One is admitted when the pages
of its tokens fit, and beside them what it and those that run will probably still draw; the head of
the queue is never overtaken, so nobody starves: a search draws in rounds, and between two of them
there is room. When a running sequence needs a page and none is left, the youngest request's claims
lose theirs, then the youngest running one is put off: its finished pages stay cached, and because
draws depend only on seed and position it later goes on as if nothing had happened. A sequence whose
next page of prompt is being computed by another of its tenant waits for it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

from engines.embedded.accounting import Ledger
from engines.embedded.outlook import Outlook
from engines.embedded.sequence import Branch, Order, Reading, Sequence
from engines.embedded.trie import Node

_SHARE: Final = 64  # a sequence sets aside at most this fraction of what is available


class Scheduler:
    """Owns the queue and the set of running sequences. All methods need the ledger's lock.

    Args:
        ledger: Pages.
        chunk_tokens: The most prompt tokens run in one batch, padding included.
        max_running: The most sequences running at a time.
        ahead_tokens: How much generation pages are set aside for, when there are plenty.
        reclaim: Frees idle claims until so many pages are available; called when nothing else can
            help.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        chunk_tokens: int,
        max_running: int,
        ahead_tokens: int,
        reclaim: Callable[[int], None],
    ) -> None:
        self._ledger = ledger
        self._size = ledger.page_tokens
        self._chunk_tokens = chunk_tokens
        self._max_running = max_running
        self._ahead_tokens = ahead_tokens
        self._reclaim = reclaim
        self._queue: list[tuple[Order, Sequence]] = []
        self.running: dict[Sequence, None] = {}  # an ordered set
        self._copied_from: list[Node] = []
        self._outlook = Outlook(ledger.page_tokens)
        self.version = 0  # changes whenever `running` does

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._queue)

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        heapq.heappush(self._queue, (sequence.order, sequence))

    def drop_cancelled(self) -> list[Sequence]:
        """Take cancelled sequences out, give their pages back, and return them."""
        return self._drop(lambda sequence: sequence.is_cancelled)

    def abandon(self) -> list[Sequence]:
        """Take every sequence out, give the pages back, and return them."""
        return self._drop(lambda sequence: True)

    def _drop(self, which: Callable[[Sequence], bool]) -> list[Sequence]:
        dropped = [s for s in self.running if which(s)]
        for sequence in dropped:
            self.retire(sequence, keep=0)
            self._unlock(sequence)
        dropped += [s for _, s in self._queue if which(s)]
        self._queue = [entry for entry in self._queue if not which(entry[1])]
        heapq.heapify(self._queue)
        return dropped

    def _unlock(self, sequence: Sequence) -> None:
        self._ledger.unlock_path(sequence.nodes[-1] if sequence.nodes else None)
        sequence.nodes = []

    def admit(self) -> list[tuple[int, int]]:
        """Start what fits.

        Returns:
            Pages to copy, (source, destination), before anything is run. The sources stay locked
            until `copied`.
        """
        copies: list[tuple[int, int]] = []
        deferred: list[tuple[Order, Sequence]] = []
        to_come = sum(map(self._outlook.pages_to_come, self.running)) if self._queue else 0
        while self._queue and len(self.running) < self._max_running:
            sequence = self._queue[0][1]
            started = self._start(sequence, copies, to_come)
            if started is None:
                deferred.append(heapq.heappop(self._queue))
            elif started:
                heapq.heappop(self._queue)
                self.running[sequence] = None
                self.version += 1
                to_come += self._outlook.pages_to_come(sequence)
            else:
                break
        for entry in deferred:
            heapq.heappush(self._queue, entry)
        return copies

    def prefill(self) -> list[tuple[Sequence, int]]:
        """Sequences with prompt to run, and how many tokens of each, within one chunk."""
        batch: list[tuple[Sequence, int]] = []
        widest = 0
        for sequence in self.running:
            pending = sequence.pending
            if pending == 1 and isinstance(sequence, Branch):
                continue
            # A branch keeps its last token for the decode step, whose logits give the draw.
            count = pending - 1 if isinstance(sequence, Branch) else pending
            room = self._chunk_tokens // (len(batch) + 1)
            if batch and max(widest, min(count, self._chunk_tokens)) > room:
                continue
            count = min(count, self._chunk_tokens)
            widest = max(widest, count)
            batch.append((sequence, count))
        return batch

    def decode(self) -> list[Branch]:
        """Branches ready to draw one token, each with the page for it."""
        ready = [s for s in self.running if isinstance(s, Branch) and s.pending == 1]
        for branch in ready:
            if self._needs_page(branch) and branch in self.running:
                self._grow(branch)
        return [branch for branch in ready if branch in self.running]

    def widen(self, branch: Branch, tokens: int) -> int:
        """How many tokens `branch` may run now, at most `tokens`, at least the one of its step.

        More pages become its own, but only those that nobody has to give up anything for.
        """
        ledger, size = self._ledger, self._size
        held = (len(branch.nodes) + len(branch.own)) * size
        more = -(-max(0, branch.computed + tokens - held) // size)
        for _ in range(more):
            if branch.reserved:
                page = branch.reserved.pop(0)
            elif ledger.available > ledger.num_pages // _SHARE and not self._queue:
                page = ledger.reserve(1)[0]
            else:
                break
            branch.own.extend(ledger.use([page]))
            held += size
        return min(tokens, held - branch.computed)

    def short_page(self, sequence: Sequence) -> tuple[int, int] | None:
        """A page to copy, (source, destination), before `seal_prompt`; None where there is none.

        A prompt's short last page is published as a copy, so that the sequence's own pages stay one
        run, which attention reads in place. The destination is the sequence's own until then.
        """
        ledger, size = self._ledger, self._size
        full, rest = divmod(sequence.computed - len(sequence.nodes) * size, size)
        if not rest or not (sequence.reserved or ledger.available > 0):
            return None
        page = (
            ledger.take_apart()
            if ledger.available > 0
            else ledger.use([sequence.reserved.pop()])[0]
        )
        sequence.own.append(page)
        return sequence.own[full], page

    def seal_prompt(self, sequence: Sequence, *, has_copy: bool) -> None:
        """Publish the pages of a prompt that has just been run, so that siblings find them.

        Args:
            sequence: Whose prompt.
            has_copy: Whether its last page is the copy of its short one, from `short_page`.
        """
        ledger, size = self._ledger, self._size
        self.version += 1  # it draws from now on, whether or not a page is published
        copy = sequence.own.pop() if has_copy else None
        full = sequence.computed // size - len(sequence.nodes)
        parent = sequence.nodes[-1] if sequence.nodes else None
        at = len(sequence.nodes) * size
        end = at + full * size
        nodes = ledger.seal(
            sequence.tenant, parent, tuple(sequence.tokens[at:end]), sequence.own[:full]
        )
        sequence.own = sequence.own[full:]
        if copy is not None:
            above = nodes[-1] if nodes else parent
            ledger.lock_path(above)  # one more than the sequence's: sealing passes it to the tail
            tokens = tuple(sequence.tokens[end : sequence.computed])
            (tail,) = ledger.seal(sequence.tenant, above, tokens, [copy])
            ledger.unlock_path(tail)
        self._set_nodes(sequence, [*sequence.nodes, *nodes])

    def retire(self, sequence: Sequence, *, keep: int) -> None:
        """Stop running `sequence`; its first `keep` computed tokens become cache.

        The lock on the last of its nodes stays, for the caller to pass on or to give back.
        """
        ledger, size = self._ledger, self._size
        ledger.unreserve(sequence.reserved)
        sequence.reserved = []
        if isinstance(sequence, Branch) and sequence.finish is not None:
            self._outlook.learn(sequence)
        keep = min(keep, sequence.computed)
        start = len(sequence.nodes) * size
        count = max(0, -(-(keep - start) // size))
        if count:
            parent = sequence.nodes[-1] if sequence.nodes else None
            tokens = tuple(sequence.tokens[start:keep])
            nodes = ledger.seal(sequence.tenant, parent, tokens, sequence.own[:count])
            sequence.nodes = [*sequence.nodes, *nodes]
        ledger.give(sequence.own[count:])
        sequence.own = []
        sequence.shared_pages = ()
        del self.running[sequence]
        self.version += 1

    def _needs_page(self, sequence: Sequence) -> bool:
        held = (len(sequence.nodes) + len(sequence.own)) * self._size
        return sequence.computed >= held

    def _grow(self, branch: Branch) -> None:
        """Give `branch` one more page, putting the youngest off until there is one."""
        ledger = self._ledger
        while not branch.reserved and ledger.available <= 0:
            self._reclaim(1)
            if ledger.available > 0:
                break
            if (rich := next((s for s in self.running if s.reserved), None)) is not None:
                ledger.unreserve([rich.reserved.pop()])
                continue
            victim = max(self.running, key=lambda s: s.order)
            self._put_off(victim)
            if victim is branch:
                return
        if not branch.reserved:
            branch.reserved = ledger.reserve(max(1, self._ahead(branch.limit - branch.computed)))
        branch.own.extend(ledger.use([branch.reserved.pop(0)]))

    def _ahead(self, tokens: int) -> int:
        """Pages to set aside for up to `tokens` more; few when few are left."""
        wanted = -(-min(tokens, self._ahead_tokens) // self._size)
        return min(wanted, self._ledger.available // _SHARE)

    def _put_off(self, sequence: Sequence) -> None:
        self.retire(sequence, keep=sequence.computed)
        self._unlock(sequence)
        sequence.computed = 0
        if isinstance(sequence, Reading):
            sequence.hidden = []
        elif isinstance(sequence, Branch):
            sequence.cacheable = len(sequence.tokens) - 1
            sequence.room = sequence.limit - len(sequence.tokens)
        self.submit(sequence)

    def _start(
        self, sequence: Sequence, copies: list[tuple[int, int]], to_come: int
    ) -> bool | None:
        """Claim pages: True when done, False without room, None to ask again later."""
        ledger = self._ledger
        head = tuple(sequence.tokens[: sequence.cacheable])
        match = ledger.trie.match(sequence.tenant, head, sequence.known)
        if self._is_coming(sequence, match.length):
            return None
        ledger.lock_path(match.leaf)
        now = -(-len(sequence.tokens) // self._size) - len(match.nodes)
        if ledger.available <= now and not self.running:
            self._reclaim(now + 1)
        likely = to_come + self._outlook.pages_to_come(sequence) if self.running else 0
        if ledger.available <= now + likely:
            ledger.unlock_path(match.leaf)
            return False
        pages = ledger.reserve(now + min(self._ahead(sequence.room), ledger.available - now))
        sequence.own = ledger.use(pages[:now])
        sequence.reserved = pages[now:]
        self._set_nodes(sequence, list(match.nodes))
        if match.partial is not None:
            copies.append((match.partial.page, sequence.own[0]))
            # One more lock on what the sequence keeps; `copied` gives the source's own back.
            ledger.lock_path(sequence.nodes[-1] if sequence.nodes else None)
            self._copied_from.append(match.partial)
        sequence.computed = match.length
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = match.length
        return True

    def copied(self) -> None:
        """The copies of the last `admit` are done: unlock their sources."""
        for node in self._copied_from:
            self._ledger.unlock_path(node)
        self._copied_from.clear()

    def _is_coming(self, sequence: Sequence, matched: int) -> bool:
        """Whether one of its tenant's is about to publish more of this prompt than is cached."""
        end = min(matched + self._size, sequence.cacheable)
        if end <= matched:
            return False
        head = sequence.tokens[:end]
        for other in self.running:
            goal = len(other.tokens) - isinstance(other, Branch)
            is_due = other.computed < goal >= end and other.tenant == sequence.tenant
            if is_due and other.tokens[:end] == head:
                return True
        return False

    def _set_nodes(self, sequence: Sequence, nodes: list[Node]) -> None:
        sequence.nodes = nodes
        sequence.shared_pages = tuple(node.page for node in nodes)
