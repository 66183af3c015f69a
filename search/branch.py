"""One node of the search tree: a step and everything above it.

Branches are values without behaviour: whether one may still be expanded, and what it claims, is
`Search`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from engines.base import Finish, TokenIds, TopLogps

BranchPath: TypeAlias = tuple[int, ...]
"""Child indices from the root down: what a branch's random stream is derived from."""


@dataclass(frozen=True)
class Masked:
    """Where a denoising branch stands.

    Attributes:
        row: Prompt and text, masks where nothing is revealed yet.
        logps: Per position of `row`, as in `engines.diffusion.base.Denoised`, of all steps so far.
        step: Denoising steps done.
        steps: Of the whole chain.
        shown: The text for people, a sign for every mask.
        num_revealed: Positions that the branch's own steps revealed.
        nfe: Evaluations that these steps took in this run.
        seed: Of the draws that led here; None where it was restored.
    """

    row: TokenIds
    logps: tuple[float, ...]
    step: int
    steps: int
    shown: str
    num_revealed: int
    nfe: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class Step:
    """What one child adds to its parent; fields as in `engines.base.Continuation`.

    `finish` is None while the branch can be expanded. A step that ends inside a character
    `is_partial`: the character is left out here and comes with the next step's text. A denoising
    branch has a `state`; only a finished one has text and tokens, all of the answer's.
    """

    text: str
    token_ids: TokenIds = ()
    logps: tuple[float, ...] = ()
    top_logps: tuple[TopLogps, ...] | None = None
    finish: Finish | None = None
    is_partial: bool = False
    counted_tokens: int | None = None
    state: Masked | None = None

    @property
    def num_tokens(self) -> int:
        """Its tokens, named or only counted by an upstream."""
        return len(self.token_ids) if self.counted_tokens is None else self.counted_tokens

    @property
    def num_gained(self) -> int:
        """Tokens that it has and its parent has not, wherever in the answer they stand."""
        return self.num_tokens if self.state is None else self.state.num_revealed


@dataclass(frozen=True)
class Slot:
    """A child that was submitted and has its number, but is not in the tree yet."""

    id: int
    parent: Branch
    index: int

    @property
    def path(self) -> BranchPath:
        """Child indices from the root down."""
        return (*self.parent.path, self.index)


@dataclass(frozen=True, eq=False)
class Branch:
    """One node: a step and all above it. Compared by identity.

    Attributes:
        id: Its number, in order of submission; the root is 0.
        parent: The branch it continues; None for the root.
        depth: Steps from the root.
        path: Child indices from the root down.
        step: What it adds to its parent.
        text_end: Characters of `text`.
        num_tokens: Tokens of `text`, named in `token_ids` or only counted.
        prefill: What the request wrote of the answer; it stands in front of `text`.
    """

    id: int
    parent: Branch | None
    depth: int
    path: BranchPath
    step: Step
    text_end: int = 0
    num_tokens: int = 0
    prefill: str = ""

    @property
    def finish(self) -> Finish | None:
        """Why the answer ended; None while the branch can be expanded."""
        return self.step.finish

    @property
    def state(self) -> Masked | None:
        """Where a denoising branch stands; None for all others, the root among them."""
        return self.step.state

    @property
    def is_finished(self) -> bool:
        """Whether the answer has ended by itself, not by a limit or a cancellation."""
        return self.finish in (Finish.STOP, Finish.STOP_TOKEN)

    @property
    def lineage(self) -> list[Branch]:
        """The branches from the root's child down to this one; empty for the root."""
        upwards = []
        node = self
        while node.parent is not None:
            upwards.append(node)
            node = node.parent
        return upwards[::-1]

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(node.step.text for node in self.lineage)

    @property
    def whole_text(self) -> str:
        """The answer so far with its prefill: what it states, whoever wrote it."""
        return self.prefill + self.text

    @property
    def token_ids(self) -> TokenIds:
        """The answer's tokens so far, in the generator's vocabulary."""
        return tuple(one for node in self.lineage for one in node.step.token_ids)

    @property
    def logps(self) -> tuple[float, ...]:
        """Log-probability of each of `token_ids`, in nats."""
        return tuple(one for node in self.lineage for one in node.step.logps)

    @property
    def top_logps(self) -> tuple[TopLogps, ...] | None:
        """Alternatives of each of `token_ids`; None when a step has none."""
        steps = [node.step.top_logps for node in self.lineage]
        if not steps or any(tops is None for tops in steps):
            return None
        return tuple(one for tops in steps if tops is not None for one in tops)

    def text_from(self, start: int) -> str:
        """The answer's text from character `start` on, without building what is before it."""
        parts = []
        node = self
        while node.parent is not None and node.text_end > start:
            parts.append(node.step.text[max(0, start - node.parent.text_end) :])
            node = node.parent
        return "".join(reversed(parts))

    def descends_from(self, ids: Iterable[int]) -> bool:
        """Whether the branch or one above it has one of these ids."""
        wanted = frozenset(ids)
        node: Branch | None = self
        while node is not None:
            if node.id in wanted:
                return True
            node = node.parent
        return False


def unique_tokens(branches: Iterable[Branch]) -> int:
    """Tokens on the paths to these branches, what they share counted once, without the prompt."""
    nodes = {node.id: node for branch in branches for node in branch.lineage}
    return sum(node.step.num_tokens for node in nodes.values())
