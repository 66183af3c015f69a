"""The claims that a run holds: one on the engine per live branch, and what they add up to.

Every claim has one owner, this book, from the moment the engine hands it over until `release`;
`close` gives back whatever is left. The book also counts, over time, the tokens that the claimed
paths keep in the cache when everything shared is kept once.
"""

from __future__ import annotations

from engines.base import Prefix, prompt_size
from search.branch import Branch, Slot
from search.errors import BrokenContract


class ClaimBook:
    """Engine claims by branch. Not thread-safe: one event loop owns it."""

    def __init__(self) -> None:
        self._claims: dict[int, Prefix] = {}
        self._num_holders: dict[int, int] = {}
        self._prompt_tokens = 0
        self._path_tokens = 0
        self._flying: dict[int, int] = {}
        self._flying_tokens = 0
        self.peak_tokens = 0

    def __len__(self) -> int:
        return len(self._claims)

    def __contains__(self, branch: Branch) -> bool:
        return branch.id in self._claims

    def open(self, root: Branch, claim: Prefix) -> None:
        """Own the prompt's claim."""
        self._prompt_tokens = prompt_size(claim)
        self.hold(root, claim)

    def hold(self, branch: Branch, claim: Prefix) -> None:
        """Own a branch's claim."""
        self._claims[branch.id] = claim
        for node in branch.lineage:
            holders = self._num_holders.get(node.id, 0)
            self._num_holders[node.id] = holders + 1
            self._path_tokens += 0 if holders else node.step.num_tokens
        self._note_peak()

    def claim(self, branch: Branch) -> Prefix:
        """The branch's claim; it stays the book's.

        Raises:
            BrokenContract: It was given back: the branch finished, was pruned or promised.
        """
        try:
            return self._claims[branch.id]
        except KeyError:
            raise BrokenContract(
                f"branch {branch.id} has no claim any more: it finished, was pruned, or was "
                "expanded with last=True before"
            ) from None

    def release(self, branch: Branch) -> None:
        """Give a branch's claim back; nothing happens without one."""
        claim = self._claims.pop(branch.id, None)
        if claim is None:
            return
        claim.release()
        for node in branch.lineage:
            self._num_holders[node.id] -= 1
            if not self._num_holders[node.id]:
                self._path_tokens -= node.step.num_tokens

    def fly(self, slot: Slot, num_tokens: int) -> None:
        """A child in flight holds `num_tokens` more."""
        self._flying[slot.id] = self._flying.get(slot.id, 0) + num_tokens
        self._flying_tokens += num_tokens
        self._note_peak()

    def fly_at_least(self, slot: Slot, num_tokens: int) -> None:
        """A child in flight holds no fewer than `num_tokens`."""
        self.fly(slot, max(0, num_tokens - self._flying.get(slot.id, 0)))

    def land(self, slot: Slot) -> None:
        """A child is no longer in flight."""
        self._flying_tokens -= self._flying.pop(slot.id, 0)

    def close(self) -> None:
        """Give everything back."""
        claims = list(self._claims.values())
        self._claims.clear()
        for claim in claims:
            claim.release()

    def _note_peak(self) -> None:
        now = self._prompt_tokens + self._path_tokens + self._flying_tokens
        self.peak_tokens = max(self.peak_tokens, now)
