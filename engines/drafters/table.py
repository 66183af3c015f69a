"""A frozen table of trigrams and bigrams, counted from a corpus, in one file.

Rows are sorted arrays, so that a million of them cost a few megabytes and opening one is a read.
The file is numpy's archive without pickles: reading it runs no code.

Source: the table of Liu et al. 2024 (arXiv 2407.12021): weight = count / row total, no joins across
documents. Differs: bigram rows too, for back-off; bounded rows, row lengths and counting memory.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.drafters.errors import DrafterError
from engines.drafters.rows import pair, single


@dataclass(frozen=True)
class About:
    """Where a table is from.

    Attributes:
        tokenizer_hash: Of the tokenizer whose ids it holds.
        documents: Documents counted.
        tokens: Their tokens.
    """

    tokenizer_hash: str
    documents: int
    tokens: int


@dataclass(frozen=True)
class Table:
    """Successors by key (see `rows.pair`, `rows.single`); nobody changes it.

    Attributes:
        keys: (rows,) uint64, rising.
        ends: (rows,) int64, where each row ends in `ids`.
        ids: (entries,) uint32, the heaviest of a row first.
        weights: (entries,) float32, share of the row's sightings.
    """

    about: About
    keys: npt.NDArray[np.uint64]
    ends: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def size_bytes(self) -> int:
        """Memory of the arrays."""
        return sum(a.nbytes for a in (self.keys, self.ends, self.ids, self.weights))

    def row(self, key: int) -> dict[int, float] | None:
        """Weights by successor, or None."""
        at = int(self.keys.searchsorted(np.uint64(key)))
        if at == len(self.keys) or int(self.keys[at]) != key:
            return None
        start = int(self.ends[at - 1]) if at else 0
        part = slice(start, int(self.ends[at]))
        return dict(zip(self.ids[part].tolist(), self.weights[part].tolist(), strict=True))

    def save(self, path: Path) -> None:
        """Write it; the file appears whole or not at all."""
        about = np.frombuffer(json.dumps(asdict(self.about)).encode(), dtype=np.uint8)
        beside = path.with_name(path.name + ".part")
        with beside.open("wb") as file:
            np.savez(
                file,
                about=about,
                keys=self.keys,
                ends=self.ends,
                ids=self.ids,
                weights=self.weights,
            )
        beside.replace(path)


def load(path: Path) -> Table:
    """Read a saved table.

    Raises:
        DrafterError: Missing, damaged, or not a table.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            about = About(**json.loads(held["about"].tobytes()))
            table = Table(about, held["keys"], held["ends"], held["ids"], held["weights"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as err:
        raise DrafterError(f"{path}: not a table of `bough drafts build`: {err}") from err
    num_ids = int(table.ends[-1]) if len(table.ends) else 0
    if len(table.keys) != len(table.ends) or not num_ids == len(table.ids) == len(table.weights):
        raise DrafterError(f"{path}: arrays of different lengths; build the table again")
    return table


def count(
    documents: Iterable[Sequence[int]],
    *,
    tokenizer_hash: str = "",
    max_rows: int = 1_000_000,
    row_cap: int = 12,
    max_counts: int = 5_000_000,
) -> Table:
    """Count a corpus; the rows seen most often are kept.

    Args:
        documents: Token ids; nothing is counted across two of them.
        tokenizer_hash: Of the tokenizer that made the ids.
        max_rows: Rows of the table.
        row_cap: Successors of a row; the weights of the rest are left out, not spread.
        max_counts: Counts held meanwhile. When there are more, the rarest are dropped, so that
            successors seen seldom and far apart may be missed in a large corpus.
    """
    counts: Counter[tuple[int, int]] = Counter()
    num_documents = num_tokens = 0
    for text in documents:
        num_documents, num_tokens = num_documents + 1, num_tokens + len(text)
        for at in range(1, len(text)):
            counts[single(text[at - 1]), text[at]] += 1
            if at > 1:
                counts[pair(text[at - 2], text[at - 1]), text[at]] += 1
            if len(counts) > max_counts:
                counts = Counter(dict(counts.most_common(max_counts // 2)))
    rows: dict[int, list[tuple[int, int]]] = {}
    for (key, token), seen in counts.items():
        rows.setdefault(key, []).append((seen, token))
    totals = {key: sum(seen for seen, _ in row) for key, row in rows.items()}
    kept = sorted(sorted(totals, key=lambda key: (-totals[key], key))[:max_rows])
    heads = [sorted(rows[key], key=lambda item: (-item[0], item[1]))[:row_cap] for key in kept]
    return Table(
        About(tokenizer_hash, num_documents, num_tokens),
        np.array(kept, dtype=np.uint64),
        np.cumsum([len(head) for head in heads], dtype=np.int64),
        np.array([token for head in heads for _, token in head], dtype=np.uint32),
        np.array(
            [seen / totals[k] for k, head in zip(kept, heads, strict=True) for seen, _ in head],
            dtype=np.float32,
        ),
    )
