"""The rewards of every possible next token, kept as one hidden state. V vocabulary, C hidden width.

A row of V rewards would be larger than the keys and values of the token it stands behind. So what
is kept is the state (C,), and the output head's rows of the candidates are multiplied with it when
they are asked for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, chain, pairwise
from typing import Final

import numpy as np
import torch

from engines.base import TokenIds
from engines.embedded.claims import PageClaim
from engines.embedded.compute import compute_thread
from reward_models.base import UNSEEN, RewardRow
from reward_models.errors import RewardUnavailable

_GATHERED: Final = 8192
"""Rows of the output head that are gathered at a time."""


class RewardHead:
    """Rewards of some tokens after a hidden state. V vocabulary, C hidden width.

    Args:
        weight: (V, C) the decoder's output head.
        bias: (V,) float32.
        unseen: (V,) bool.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, unseen: torch.Tensor) -> None:
        self._weight = weight
        self._bias = bias
        self._unseen = unseen
        self._compute = compute_thread(weight.device.type)

    @torch.inference_mode()
    def rewards(
        self, hidden: Sequence[torch.Tensor], ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Of `ids` after each state, in float32; one beyond the vocabulary was never seen.

        Args:
            hidden: Each (C,) float32; at least one.
            ids: Of each: tokens, not negative.
        """
        size, device = len(self._bias), self._bias.device
        ends = list(accumulate(map(len, ids)))
        asked = np.fromiter(chain.from_iterable(ids), np.int64, ends[-1])
        beyond = torch.from_numpy(asked >= size).to(device)
        at = torch.from_numpy(np.minimum(asked, size - 1)).to(device)
        whose = np.repeat(np.arange(len(ids)), [len(one) for one in ids])
        owners = torch.from_numpy(whose).to(device)
        parts = zip(torch.split(at, _GATHERED), torch.split(owners, _GATHERED), strict=True)
        states = torch.stack(list(hidden))
        # Summed row by row: a matrix product's last bits depend on what else is asked for.
        sums = [
            self._weight.index_select(0, ids_).float().mul_(states.index_select(0, rows)).sum(1)
            for ids_, rows in parts
        ]
        values = torch.cat(sums) + self._bias[at]
        found: list[float] = values.masked_fill(self._unseen[at] | beyond, UNSEEN).tolist()
        return [found[start:end] for start, end in pairwise((0, *ends))]

    async def rewards_soon(
        self, hidden: Sequence[torch.Tensor], ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """`rewards`, on the one thread that runs tensors: large gathers are parallel regions."""
        gather = partial(self.rewards, hidden, ids)
        return await asyncio.wrap_future(self._compute.call_soon(gather))


class HiddenRow:
    """Rewards of every next token, computed for those that are asked for.

    Args:
        head: What makes rewards.
        hidden: (C,) float32; None where the tokens cannot be read: all rewards are then NaN.
    """

    def __init__(self, head: RewardHead, hidden: torch.Tensor | None) -> None:
        self._head = head
        self._hidden = hidden

    def at(self, ids: Sequence[int]) -> list[float]:
        """See `RewardRow.at`; computed by the caller's own thread, so for a few ids."""
        if self._hidden is None:
            return [math.nan] * len(ids)
        return self._head.rewards([self._hidden], [ids])[0]

    async def at_each(
        self, rows: Sequence[RewardRow], ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """See `RewardRows.at_each`.

        Raises:
            RewardUnavailable: The gather failed; there may have been no memory for it.
        """
        found = [[math.nan] * len(one) for one in ids]
        known = [
            (at, row._hidden)
            for at, row in enumerate(rows)
            if isinstance(row, HiddenRow) and row._hidden is not None
        ]
        if known:
            places = [at for at, _ in known]
            asked = [ids[at] for at in places]
            try:
                rewards = await self._head.rewards_soon([one for _, one in known], asked)
            except RuntimeError as err:
                raise RewardUnavailable(f"rewards could not be computed: {err}") from err
            for at, values in zip(places, rewards, strict=True):
                found[at] = values
        return found


class RowClaim:
    """A claim on tokens, with the row behind them once it is known; `reward_models.base.Claim`.

    One that was extended leaves its pages to its extensions, else each token of a branch would keep
    a page of its own. What it then lacks is found in the cache, as theirs, or computed again.

    Args:
        pages: The claim on the trie; this one takes it over.
        row: What is known.
    """

    def __init__(self, pages: PageClaim, row: HiddenRow | None = None) -> None:
        self.row = row
        self.is_released = False
        self._pages = pages

    @property
    def token_ids(self) -> TokenIds:
        """See `Claim.token_ids`."""
        return self._pages.token_ids

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self._pages.tenant

    @property
    def pages(self) -> PageClaim:
        """The claim on the trie."""
        return self._pages

    def fork(self) -> RowClaim:
        """See `Claim.fork`."""
        return RowClaim(self._pages.fork(), self.row)

    def extend(self, ids: TokenIds) -> RowClaim:
        """See `Claim.extend`."""
        if not ids:
            return self.fork()
        longer = RowClaim(self._pages.extend(ids))
        self._pages.release()
        return longer

    def hold(self, pages: PageClaim) -> None:
        """Take over a claim on the same tokens that keeps more of them."""
        self._pages.release()
        self._pages = pages

    def release(self) -> None:
        """See `Claim.release`."""
        self.row = None
        self.is_released = True
        self._pages.release()
