"""One token sequence on its way through the scheduler. No tensors, no threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from engines.base import Continuation, Finish, Sampling, TokenIds, TopLogps
from engines.embedded.trie import Node
from engines.textstop import TextTracker

if TYPE_CHECKING:
    import torch

    from engines.drafters.base import Drafter
    from engines.embedded.claims import PageClaim
    from engines.embedded.jobs import GenerateJob, LastStates, ReadJob

Order: TypeAlias = tuple[int, int, int]
"""Place in the queue, smallest first: minus the priority, age of the request, number."""


class Sequence:
    """Tokens to run, and the pages that hold those run so far.

    Pages of tokens ``[0, len(nodes) * P)`` are trie nodes, of which the last is locked; those
    behind are `own`.

    Args:
        tenant: Whose trie.
        tokens: All of them, prompt first; generation appends.
        cacheable: How many leading tokens may come from the cache.
        room: The most tokens that generation will append.
        order: Scheduling key, smallest first.
    """

    __slots__ = (
        "cacheable",
        "cached_tokens",
        "computed",
        "computed_tokens",
        "is_cancelled",
        "nodes",
        "order",
        "own",
        "reserved",
        "room",
        "shared_pages",
        "tenant",
        "tokens",
    )

    def __init__(
        self, tenant: str, tokens: TokenIds, cacheable: int, room: int, order: Order
    ) -> None:
        self.tenant = tenant
        self.tokens = list(tokens)
        self.cacheable = cacheable
        self.room = room
        self.order = order
        self.nodes: list[Node] = []
        self.shared_pages: tuple[int, ...] = ()
        self.own: list[int] = []
        self.reserved: list[int] = []
        self.computed = 0
        self.cached_tokens = -1  # set at the first admission
        self.computed_tokens = 0
        self.is_cancelled = False

    @property
    def pending(self) -> int:
        """Tokens that still have to be run."""
        return len(self.tokens) - self.computed

    @property
    def known(self) -> Node | None:
        """A locked node on its path, where the look into the cache may begin."""
        return None

    def page_at(self, position: int, page_tokens: int) -> int:
        """The page of the token at `position`."""
        number = position // page_tokens
        shared = len(self.shared_pages)
        return self.shared_pages[number] if number < shared else self.own[number - shared]


class Reading(Sequence):
    """Tokens to be run for their hidden states; nothing is drawn.

    Args:
        read_from: First position whose hidden state is wanted; these are run even when cached.
        finish: Turns (len(tokens) - read_from, C) hidden states into the result, on the worker's
            thread; or those of several sequences at a time.
        job: Whom to tell.
        index: Number in the job.
        claim: Keeps the pages of `tokens`, where somebody has one on them.
    """

    __slots__ = ("claim", "finish", "hidden", "index", "job", "read_from")

    def __init__(
        self,
        tenant: str,
        tokens: TokenIds,
        read_from: int,
        finish: Callable[[torch.Tensor], object] | LastStates,
        job: ReadJob,
        index: int,
        order: Order,
        claim: PageClaim | None = None,
    ) -> None:
        super().__init__(tenant, tokens, read_from, 0, order)
        self.read_from = read_from
        self.finish = finish
        self.job = job
        self.index = index
        self.hidden: list[torch.Tensor] = []
        self.claim = claim

    @property
    def known(self) -> Node | None:
        """See `Sequence.known`."""
        return None if self.claim is None else self.claim.leaf


class Branch(Sequence):
    """One child of `Engine.sample`.

    Args:
        how: Its sampling options.
        seed: Its random stream, 64 bits.
        response_start: Leading tokens that are the prompt.
        limit: Length of `tokens` at which generation must stop.
        tracker: Follows its text.
        job: Whom to tell.
        index: Number in the job.
        drafter: Who guesses its next tokens, if anybody does.

    Attributes:
        drafted: Guessed tokens that were verified.
        accepted: Those that it said.
        observed: How many of its tokens the drafter has heard of.
        key: A hash; equal for branches that began and go on with the same tokens.
    """

    __slots__ = (
        "accepted",
        "counts",
        "delivered_tokens",
        "drafted",
        "drafter",
        "finish",
        "how",
        "index",
        "job",
        "key",
        "limit",
        "logps",
        "observed",
        "response_start",
        "result",
        "seed",
        "start",
        "stop_ids",
        "top_logps",
        "tracker",
    )

    def __init__(
        self,
        tenant: str,
        tokens: TokenIds,
        *,
        how: Sampling,
        seed: int,
        response_start: int,
        limit: int,
        stop_ids: frozenset[int],
        tracker: TextTracker,
        job: GenerateJob,
        index: int,
        order: Order,
        drafter: Drafter | None = None,
    ) -> None:
        # The last token is always run again: its logits give the first draw.
        super().__init__(tenant, tokens, len(tokens) - 1, limit - len(tokens), order)
        self.how = how
        self.seed = seed
        self.response_start = response_start
        self.start = len(tokens)
        self.limit = limit
        self.stop_ids = stop_ids
        self.tracker = tracker
        self.job = job
        self.index = index
        self.drafter = drafter
        self.drafted = 0
        self.accepted = 0
        self.observed = len(tokens)
        self.key = hash(tokens)
        self.logps: list[float] = []
        self.top_logps: list[TopLogps] = []
        self.counts: dict[int, int] = {}
        self.delivered_tokens = 0
        self.finish: tuple[Finish, str | int | None] | None = None
        self.result: Continuation | None = None

    @property
    def is_step(self) -> bool:
        """Whether it ends with a step, not only with the answer."""
        return bool(self.how.boundaries)

    @property
    def position(self) -> int:
        """Position in the answer of the token to be drawn next."""
        return len(self.tokens) - self.response_start

    def accept(self, token: int, logp: float, context_tokens: int) -> bool:
        """Append a drawn token; True when the branch has ended, and `finish` says why."""
        self.tokens.append(token)
        self.key = hash((self.key, token))
        self.logps.append(logp)
        if token in self.stop_ids:
            self.finish = (Finish.STOP_TOKEN, token)
            return True
        stopped = self.tracker.push(token)
        if stopped is not None:
            self.finish = (stopped.finish, stopped.matched)
        elif len(self.tokens) >= self.limit:
            self.finish = (self._limit_reason(context_tokens), None)
        return self.finish is not None

    def _limit_reason(self, context_tokens: int) -> Finish:
        how = self.how
        if how.max_tokens is not None and self.position >= how.max_tokens:
            return Finish.LENGTH
        if len(self.tokens) >= context_tokens:
            return Finish.CONTEXT
        return Finish.STEP_LENGTH
