"""Where one reasoning step ends and the next begins, and the random stream of each.

Delimiters are data of the model (`EngineInfo.step_delimiters`), never guessed here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

from engines.base import Continuation, Engine, Finish, TokenIds
from search.branch import Branch, BranchPath


def split_steps(text: str, delimiters: Sequence[str]) -> tuple[str, ...]:
    """Cut a text after every delimiter; the pieces, joined, are the text.

    A run of delimiters ends one step, and blank text belongs to the step before it (the first
    step takes what comes before it). The last piece may be unfinished. Where two delimiters begin
    at the same place the longer one counts.
    """
    ends = [found.end() for found in _pattern(tuple(delimiters)).finditer(text)]
    pieces = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    steps: list[str] = []
    for piece in pieces:
        if steps and (not piece.strip() or not steps[-1].strip()):
            steps[-1] += piece
        elif piece:
            steps.append(piece)
    return tuple(steps)


@lru_cache(maxsize=256)
def _pattern(delimiters: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, delimiters), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def seed_of(run_seed: int, path: BranchPath, purpose: str = "") -> int:
    """A 64-bit seed that depends on the run's seed and the child indices, not on any order.

    Args:
        run_seed: The request's seed.
        path: Child indices from the root down.
        purpose: Separates streams of one branch: "" draws its tokens.
    """
    key = f"{run_seed}|{','.join(map(str, path))}|{purpose}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def text_behind(engine: Engine, parent: Branch, ids: TokenIds) -> str:
    """The text that tokens add to a branch, U+FFFD at its end where a character is incomplete.

    Decoded is what follows the last step that ended between two characters, and nothing in front.
    """
    pending: TokenIds = ()
    whole = parent
    while whole.step.is_partial and whole.parent is not None:
        pending = whole.step.token_ids + pending
        whole = whole.parent
    return engine.decode(pending + ids)[parent.text_end - whole.text_end :]


def step_text(engine: Engine, parent: Branch, new: Continuation) -> tuple[str, bool]:
    """The text that a continuation adds to its branch, and whether it ends inside a character.

    Tokens may end inside a character, and engines decode each continuation by itself. A branch's
    text leaves such a character out until the next step completes it.
    """
    text = new.text
    if parent.step.is_partial:
        is_cut = new.finish is Finish.STOP
        ids = new.token_ids + new.overrun_ids if is_cut else new.token_ids
        text = text_behind(engine, parent, ids)
        if new.finish is Finish.STOP and isinstance(new.matched, str):
            text = text.split(new.matched, 1)[0]
    is_open = new.finish.is_open and bool(new.token_ids)
    return (text.rstrip("�"), True) if is_open and text.endswith("�") else (text, False)
