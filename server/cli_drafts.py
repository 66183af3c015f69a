"""`bough drafts`: count a table for drafters from texts, or look into one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from engines.drafters.errors import DrafterError
from engines.drafters.table import count, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`build` and `inspect` with their flags."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="count a table from texts", allow_abbrev=False)
    build.add_argument("corpus", nargs="+", type=Path, help="text files, or .jsonl with `text`")
    build.add_argument("--tokenizer", type=Path, required=True, help="a model's directory")
    build.add_argument("--out", type=Path, required=True, help="file to write")
    build.add_argument("--max-rows", type=int, default=1_000_000, help="rows kept")
    build.add_argument("--row-cap", type=int, default=12, help="successors kept in a row")
    inspect = actions.add_parser("inspect", help="what a table holds", allow_abbrev=False)
    inspect.add_argument("table", type=Path, help="a file of `bough drafts build`")


def run(given: argparse.Namespace) -> int:
    """Do what was asked.

    Raises:
        DrafterError: A file that cannot be read or is not what it should be.
        ModelLoadError: The tokenizer cannot be read.
    """
    if given.action == "build":
        if given.max_rows < 1 or given.row_cap < 1:
            raise DrafterError("--max-rows and --row-cap must be at least 1")
        _build(given)
        return 0
    table = load(given.table)
    about = table.about
    print(f"documents {about.documents}, tokens {about.tokens}, tokenizer {about.tokenizer_hash}")
    print(f"rows {len(table)}, successors {len(table.ids)}, {table.size_bytes} bytes in memory")
    return 0


def _build(given: argparse.Namespace) -> None:
    from engines.embedded.tokenizer import ChatTokenizer  # an extra: only this command needs it

    tokenizer = ChatTokenizer(given.tokenizer)
    table = count(
        (tokenizer.encode(text) for text in _documents(given.corpus)),
        tokenizer_hash=tokenizer.hash,
        max_rows=given.max_rows,
        row_cap=given.row_cap,
    )
    table.save(given.out)
    print(f"{given.out}: {len(table)} rows of {table.about.tokens} tokens")


def _documents(paths: Sequence[Path]) -> Iterator[str]:
    """One document per file, or per line of a .jsonl file; blank lines are none."""
    for path in paths:
        try:
            if path.suffix != ".jsonl":
                yield path.read_text("utf-8")
                continue
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield _text_of(line, f"{path}:{number}")
        except (OSError, UnicodeDecodeError) as err:
            raise DrafterError(f"{path}: not readable as text: {err}") from err


def _text_of(line: str, where: str) -> str:
    try:
        about = json.loads(line)
    except ValueError as err:
        raise DrafterError(f"{where}: not a JSON object: {err}") from err
    text = about.get("text") if isinstance(about, dict) else None
    if not isinstance(text, str):
        raise DrafterError(f"{where}: needs an object with a string 'text', not {line[:80]!r}")
    return text
