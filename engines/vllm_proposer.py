"""Our drafters inside vLLM: the class that it loads by name.

vLLM asks once per step for a chain of guesses behind each row of its batch, and verifies them
without knowing their probabilities: a guess counts as certain, so a row keeps one with the target's
own probability of it and is redrawn from the rest otherwise. That leaves the distribution alone.
No logits are shown, so drafters learn from accepted tokens only, and trees are cut to their best
path. While vLLM waits, so does everybody: a step drafts for as many rows as a share of the model's
own time allows. A drafter that fails is put away for good: answers do not need it.

Whose a row is, `engines.vllm_rows` knows. Nothing here imports vLLM, which imports this module in a
process of its own.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.drafters.base import EMPTY, ROOT, Drafter, TokenTree
from engines.drafters.shelf import Shelf
from engines.vllm_rows import KEY, Row, Rows

PROPOSER: Final = "engines.vllm_proposer.Proposer"

_SPARE_NODES: Final = 2  # of a tree, beside as many as the longest chain has
_IDLE_STEPS: Final = 512  # a search may rest between its steps while others go on
_SHARE: Final = 0.25  # of the model's time, that a step may take longer for drafting
_PAUSE_S: Final = 1.0  # between two calls, that no step takes; nobody asked for anything
_FOLLOW: Final = 0.1  # weight of the newest in a running mean

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What the proposer is to do; travels to vLLM's processes.

    Attributes:
        model_id: The id on the wire, for messages.
        drafter: Entry point in the group ``bough.drafters``.
        tokenizer_hash: Of the model; a table must be of the same.
        table: Path of a base table.
        min_prob: A chain ends before its path is less likely than this.
    """

    model_id: str
    drafter: str
    tokenizer_hash: str
    table: str | None
    min_prob: float

    def to_config(self) -> dict[str, Any]:
        """As a part of vLLM's additional configuration."""
        return {KEY: asdict(self)}

    def open(self, vocab_size: int) -> Drafter:
        """The drafter.

        Raises:
            DrafterError: The table is damaged or of another tokenizer.
            UnsupportedByEngine: No drafter has this name.
        """
        table = None if self.table is None else Path(self.table)
        return Shelf(self.model_id, vocab_size, self.tokenizer_hash, table)[self.drafter]


@dataclass
class Report:
    """What a proposer did so far.

    Attributes:
        drafter: Its name.
        failure: Why it was put away; None while it works.
        steps: Calls of vLLM.
        rows: Rows with new tokens in all of them.
        left_out: Of these, rows that had no draft because a step was short.
        drafted: Tokens proposed.
        seconds: Spent in all of it.
        runs: Runs remembered now.
        tenants: Tenants remembered now.
        entries: Rows and nodes held now.
        max_entries: What `entries` never exceeds.
    """

    drafter: str
    failure: str | None = None
    steps: int = 0
    rows: int = 0
    left_out: int = 0
    drafted: int = 0
    seconds: float = 0.0
    runs: int = 0
    tenants: int = 0
    entries: int = 0
    max_entries: int = 0


Live: TypeAlias = tuple[int, Row, npt.NDArray[np.integer[Any]]]
"""A row's place, whose it is, and its tokens."""


class Proposer:
    """What vLLM calls; see its ``speculative_config`` with the method ``custom_class``.

    Args:
        vllm_config: vLLM's whole configuration, with a `Plan` among the additional part.
        clock: Seconds from anywhere on.

    Attributes:
        drafter: What guesses; None once it has failed.
    """

    def __init__(self, vllm_config: Any, clock: Callable[[], float] = perf_counter) -> None:
        plan = Plan(**vllm_config.additional_config[KEY])
        self._most = int(vllm_config.speculative_config.num_speculative_tokens)
        self._context_tokens = int(vllm_config.model_config.max_model_len)
        self._vocab_size = int(vllm_config.model_config.get_vocab_size())
        self._min_prob = plan.min_prob
        self.drafter: Drafter | None = plan.open(self._vocab_size)
        self._rows: Rows | None = None
        self._seen: OrderedDict[tuple[str, str], int] = OrderedDict()  # runs by their last step
        self._report = Report(plan.drafter)
        self._clock = clock
        self._ended: float | None = None  # the last call
        self._between_s: float | None = None  # two calls, the model's time: a running mean

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to load; vLLM calls it on every proposer."""

    def attach(self, rows: Rows) -> None:
        """Learn who is in which row; nothing is drafted before."""
        self._rows = rows

    def report(self) -> Report:
        """What it did so far."""
        if self.drafter is not None:
            held = self.drafter.stats()
            self._report.runs, self._report.tenants = held.runs, held.tenants
            self._report.entries, self._report.max_entries = held.entries, held.max_entries
        return self._report

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: npt.NDArray[np.integer[Any]],
        token_ids_cpu: npt.NDArray[np.integer[Any]],
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """A chain for each row, empty where none is worth it.

        Args:
            sampled_token_ids: What each row gained in this step; nothing while it reads its prompt.
            num_tokens_no_spec: (rows,) tokens of each row, these included.
            token_ids_cpu: (rows, context) the tokens themselves.
            slot_mappings: Not used.
        """
        started = self._clock()
        self._follow(started)
        chains: list[list[int]] = [[] for _ in sampled_token_ids]
        report = self._report
        report.steps += 1
        if self.drafter is not None and self._rows is not None:
            rows = self._rows.first(len(chains))
            live = [
                (at, row, token_ids_cpu[at, : int(num_tokens_no_spec[at])])
                for at, row in enumerate(rows)
                if row is not None and sampled_token_ids[at]
            ]
            report.rows += len(live)
            try:
                self._learn(self.drafter, live, sampled_token_ids)
                self._draft(self.drafter, live, chains, started)
            except Exception as err:  # no answer needs a plugin's guesses, so none ends with it
                self._put_away(err)
                chains = [[] for _ in sampled_token_ids]
            report.drafted += sum(map(len, chains))
        self._ended = self._clock()
        report.seconds += self._ended - started
        return chains

    def _follow(self, now: float) -> None:
        """Watch how long the model takes from one call to the next."""
        between = math.inf if self._ended is None else now - self._ended
        if between >= _PAUSE_S:
            return
        mean = between if self._between_s is None else self._between_s
        self._between_s = mean + _FOLLOW * (between - mean)

    def _draft(
        self,
        drafter: Drafter,
        live: Sequence[Live],
        chains: list[list[int]],
        started: float,
    ) -> None:
        """Fill `chains`, one row at least, and as many as a share of the model's time allows."""
        until = math.inf if self._between_s is None else started + _SHARE * self._between_s
        first = self._report.steps % len(live) if live else 0  # everybody's turn comes
        for done, (at, row, text) in enumerate((*live[first:], *live[:first])):
            if done and self._clock() >= until:
                self._report.left_out += len(live) - done
                return
            chains[at] = self._chain(drafter, row, text)

    def _learn(
        self,
        drafter: Drafter,
        live: Sequence[Live],
        sampled: Sequence[Sequence[int]],
    ) -> None:
        for at, row, text in live:
            run, start = (row.tenant, row.run), len(text) - len(sampled[at])
            if run not in self._seen:
                drafter.begin(row.run, text[:start].tolist(), tenant=row.tenant)
            self._seen[run] = self._report.steps
            self._seen.move_to_end(run)
            context = _tail(text[:start], drafter.reach)
            drafter.observe(EMPTY, sampled[at], context, run=row.run, tenant=row.tenant)
        while self._seen:
            run, step = next(iter(self._seen.items()))
            if step > self._report.steps - _IDLE_STEPS:
                break
            del self._seen[run]
            drafter.forget(run[1], tenant=run[0])

    def _chain(self, drafter: Drafter, row: Row, text: npt.NDArray[np.integer[Any]]) -> list[int]:
        # The last token that a row has room for is drawn behind the chain.
        most = min(self._most, row.room - 1, self._context_tokens - len(text) - 1)
        if most < 1:
            return []
        nodes = most if drafter.shape == "chain" else most + _SPARE_NODES
        context = _tail(text, drafter.reach)
        tree = drafter.propose(context, nodes, run=row.run, tenant=row.tenant)
        return best_chain(tree, most, self._min_prob, self._vocab_size)

    def _put_away(self, err: Exception) -> None:
        self._report.failure = f"{type(err).__name__}: {err}"
        self.drafter = None
        self._seen.clear()
        _log.exception(
            "the drafter %r failed and drafts no more; answers are the same without it",
            self._report.drafter,
        )


def best_chain(tree: TokenTree, most: int, min_prob: float, vocab_size: int) -> list[int]:
    """The path from the root whose tokens are expected to be accepted most.

    Args:
        tree: Parents before children.
        most: The longest path.
        min_prob: No path goes on below this probability.
        vocab_size: No path goes on with an id outside of it, which a foreign table may hold.
    """
    best, most_gained = ROOT, 0.0
    gained: list[float] = []  # along the path to each node; nan where the path is cut
    for node, (parent, token, logp) in enumerate(
        zip(tree.parents, tree.tokens, tree.logps, strict=True)
    ):
        prob = math.exp(logp)
        fits = prob >= min_prob and tree.depths[node] <= most and 0 <= token < vocab_size
        above = 0.0 if parent == ROOT else gained[parent]
        gained.append(above + prob if fits else math.nan)
        if gained[node] > most_gained:
            best, most_gained = node, gained[node]
    return list(tree.path(best))


def _tail(text: npt.NDArray[np.integer[Any]], reach: int | None) -> list[int]:
    """The last tokens that a drafter reads."""
    tail: list[int] = (text if reach is None else text[-reach:]).tolist()
    return tail
