"""Claims on cached prefixes, and who may be asked to do without theirs.

A claim keeps the pages of its tokens. When the pool is full and nothing runs, idle claims lose
their pages, those of the youngest request first: a claim is above all a list of tokens, and what it
lost is computed again when it is used next. So runs that hold claims while they wait for room
cannot block each other for ever, and the oldest one, which is served first, is the last to lose.
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.base import TokenIds
from engines.embedded.accounting import Ledger
from engines.embedded.trie import Node


class Claims:
    """All claims that hold pages; guarded by the ledger's lock."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._holders: dict[PageClaim, None] = {}

    def hold(self, claim: PageClaim) -> None:
        """Note that `claim` holds pages."""
        self._holders[claim] = None

    def forget(self, claim: PageClaim) -> None:
        """Note that `claim` holds none."""
        self._holders.pop(claim, None)

    def reclaim(self, count: int) -> None:
        """Take pages from idle claims until `count` are available or no claim has any.

        The youngest request of the lowest priority is the first to lose, its latest claims first.
        """
        if self.ledger.available >= count:
            return
        for claim in sorted(reversed(self._holders), key=lambda one: (one.priority, -one.age)):
            claim.give_up()
            if self.ledger.available >= count:
                return


class PageClaim:
    """A claim on a token prefix: `engines.base.Prefix`, and `reward_models.base.Claim`.

    Args:
        claims: Where it is registered.
        tenant: Whose cache.
        token_ids: All tokens.
        response_start: Leading tokens that are the prompt.
        token_bytes: Bytes of every token id, for `text`.
        leaf: Locked node at the end of the cached pages; the claim takes the lock over.
        cached_tokens: Tokens found in the cache when it was opened.
        age: Number of the request that it comes from; smaller is older.
    """

    def __init__(
        self,
        claims: Claims,
        tenant: str,
        token_ids: TokenIds,
        response_start: int,
        token_bytes: Sequence[bytes],
        leaf: Node | None = None,
        cached_tokens: int = 0,
        age: int = 0,
    ) -> None:
        self.token_ids = token_ids
        self.age = age
        self.response_start = response_start
        self.cached_tokens = cached_tokens
        self.tenant = tenant
        self.is_released = False
        self.priority = 0
        self._claims = claims
        self._token_bytes = token_bytes
        self._leaf = leaf
        if leaf is not None:
            claims.hold(self)

    @property
    def leaf(self) -> Node | None:
        """The locked node at the end of its pages; needs the ledger's lock."""
        return self._leaf

    @property
    def answer_bytes(self) -> bytes:
        """Bytes of the answer so far."""
        table = self._token_bytes
        return b"".join(table[token] for token in self.token_ids[self.response_start :])

    @property
    def text(self) -> str:
        """The answer so far."""
        return self.answer_bytes.decode("utf-8", "replace")

    def fork(self) -> PageClaim:
        """Another claim on the same tokens."""
        return self.extend(())

    def extend(self, ids: TokenIds) -> PageClaim:
        """A claim with `ids` appended; they are computed when the claim is used."""
        with self._claims.ledger.lock:
            self._claims.ledger.lock_path(self._leaf)
            claim = PageClaim(
                self._claims,
                self.tenant,
                self.token_ids + tuple(ids),
                self.response_start,
                self._token_bytes,
                self._leaf,
                self.cached_tokens,
                self.age,
            )
        claim.priority = self.priority
        return claim

    def release(self) -> None:
        """Give the pages back; idempotent."""
        if not self.is_released:
            self.is_released = True
            with self._claims.ledger.lock:
                self.give_up()

    def keep(self, leaf: Node) -> None:
        """Take over the lock on `leaf`, where its tokens end now; needs the ledger's lock."""
        old, self._leaf = self._leaf, leaf
        if self.is_released:
            self.give_up()
        else:
            self._claims.hold(self)
        if old is not None:
            self._claims.ledger.unlock_path(old)

    def give_up(self) -> None:
        """Do without pages; needs the ledger's lock."""
        leaf, self._leaf = self._leaf, None
        self._claims.forget(self)
        if leaf is not None:
            self._claims.ledger.unlock_path(leaf)
