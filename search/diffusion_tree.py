"""The tree of diffusion tree sampling: soft values, widening, selection, backup. Pure functions.

A node is a state of the reverse chain at a branch level, or a finished text. Its children are
draws from the denoiser itself, so means over children are uniform over *samples*: a state that was
drawn twice counts twice. Rewards of finished texts are backed up by a soft Bellman rule, in log
space. Nothing here knows an engine, a judge or an event loop.

Several rollouts may be under way at once. Their ends are not known, so they are in no value; they
count as visits, and as children where they branch off (the virtual loss), which is what the
sequential algorithm would have seen by then. With one rollout at a time nothing is in flight when
a selection begins, and this is the sequential algorithm to the bit.

Source: Jain, Sareen, Pedramfar, Ravanbakhsh, "Diffusion Tree Sampling", arXiv 2506.20701,
Algorithms 1 and 2.
Differs: finished texts count their visits as all nodes do, so that their bonus shrinks too; with
`Rules.merges` equal states are one node that counts for as many samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from engines.base import TokenIds


def soft_value(values: Sequence[float], sharpness: float, counts: Sequence[int] = ()) -> float:
    """(1/λ) log of the mean of exp(λ v), in log space: the mean for λ to 0, the largest for ∞.

    Args:
        values: Finite, at least one.
        sharpness: λ, above 0; may be infinite.
        counts: How many samples each value stands for; one each by default.
    """
    top = max(values)
    if math.isinf(sharpness):
        return top
    masses = _masses(values, top, sharpness, counts)
    return top + math.log(math.fsum(masses) / (sum(counts) or len(values))) / sharpness


def shares(values: Sequence[float], sharpness: float, counts: Sequence[int] = ()) -> list[float]:
    """Probabilities proportional to count · exp(λ v); for λ = ∞ all on the first of the largest."""
    top = max(values)
    if math.isinf(sharpness):
        first = values.index(top)
        return [float(at == first) for at in range(len(values))]
    masses = _masses(values, top, sharpness, counts)
    total = math.fsum(masses)
    return [mass / total for mass in masses]


def _masses(
    values: Sequence[float], top: float, sharpness: float, counts: Sequence[int]
) -> list[float]:
    masses = [math.exp(sharpness * (value - top)) for value in values]
    if not counts:
        return masses
    return [count * mass for count, mass in zip(counts, masses, strict=True)]


def capacity(visits: int, growth: float, exponent: float) -> float:
    """C · N^a: children that a node may have before the search goes through it."""
    allowed: float = growth * visits**exponent
    return allowed


def uct(value: float, visits: int, above: int, exploration: float) -> float:
    """v + c · √(ln N(parent) / N): the value and a bonus for what was seldom visited."""
    return value + exploration * math.sqrt(math.log(above) / visits)


@dataclass(frozen=True)
class Rules:
    """How the tree grows.

    Attributes:
        growth: C of the widening; infinite never goes below the root.
        exponent: Its power of the visits, 0..1.
        sharpness: λ of the backup; infinite takes the largest.
        merges: Whether equal children of a node are one node that counts as often.
    """

    growth: float
    exponent: float
    sharpness: float
    merges: bool = False


@dataclass(eq=False)
class Node:
    """A state at a branch level, or a finished text.

    Attributes:
        state: The tokens.
        level: Place in the list of branch levels; the root's is 0.
        is_end: Whether it is a finished text.
        parent: None for the root.
        value: Of a finished text its reward, else what its children come to; 0 without any.
        visits: 1 when it is made, and one more for every rollout through it.
        samples: Draws that led here from its parent.
        num_drawn: Samples below it, those on their way included, and those whose nodes a stored
            tree had no room for.
        inflight: Rollouts under way that passed here.
        nfe: Evaluations that these draws took, from the parent to here.
        children: In order of creation.
    """

    state: TokenIds
    level: int
    is_end: bool = False
    parent: Node | None = None
    value: float = 0.0
    visits: int = 1
    samples: int = 1
    num_drawn: int = 0
    inflight: int = 0
    nfe: int = 0
    children: list[Node] = field(default_factory=list)

    @property
    def upwards(self) -> Iterator[Node]:
        """This node and all above it."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    @property
    def nodes(self) -> Iterator[Node]:
        """This node and all below it, parents first, in order of creation among siblings."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack += reversed(node.children)


Pick: TypeAlias = Callable[[Node], Node]
"""Chooses a child of a node that has some."""


def is_full(node: Node, rules: Rules) -> bool:
    """Whether the search goes through the node instead of branching off there."""
    visits = node.visits + node.inflight
    return node.num_drawn >= capacity(visits, rules.growth, rules.exponent)


def select(root: Node, rules: Rules, pick: Pick, fits: Callable[[Node], bool]) -> list[Node]:
    """From the root down to where the next rollout branches off, or to a finished text.

    Args:
        root: The root.
        rules: How the tree grows.
        pick: Chooses among the children of a node that the search goes through.
        fits: Whether a rollout from the node can be paid for; else it counts as full.
    """
    path = [root]
    while not path[-1].is_end and path[-1].children:
        if not is_full(path[-1], rules) and fits(path[-1]):
            break
        path.append(pick(path[-1]))
    return path


def by_share(sharpness: float, draw: Callable[[], float]) -> Pick:
    """A child drawn with probability proportional to samples · exp(λ v).

    The denoiser's own probability is not a factor: the children were drawn from it already.

    Args:
        sharpness: λ.
        draw: Gives the next number in [0, 1).
    """

    def pick(node: Node) -> Node:
        values = [child.value for child in node.children]
        left = draw()
        counts = [child.samples for child in node.children]
        for child, share in zip(node.children, shares(values, sharpness, counts), strict=True):
            left -= share
            if left < 0:
                return child
        return max(node.children, key=lambda child: child.value)  # the shares summed to 1 - 2⁻⁵³

    return pick


def by_uct(exploration: Callable[[], float]) -> Pick:
    """The child of the largest upper bound; ties to the first. Asks for c at every choice."""

    def pick(node: Node) -> Node:
        bonus, above = exploration(), node.visits + node.inflight
        return max(
            node.children,
            key=lambda child: uct(child.value, child.visits + child.inflight, above, bonus),
        )

    return pick


def by_value(node: Node) -> Node:
    """The child of the largest value; ties to the first."""
    return max(node.children, key=lambda child: child.value)


def descend(root: Node, pick: Pick) -> Node | None:
    """Down to a finished text; None when the tree has none."""
    node = root
    while node.children:
        node = pick(node)
    return node if node.is_end else None


def depart(path: Sequence[Node]) -> None:
    """Put a rollout that branches off at the path's end in flight."""
    for node in path:
        node.inflight += 1
    path[-1].num_drawn += 1


def give_up(path: Sequence[Node]) -> None:
    """Take back a departure: the rollout came to nothing."""
    for node in path:
        node.inflight -= 1
    path[-1].num_drawn -= 1


def revisit(path: Sequence[Node], rules: Rules) -> None:
    """The selection ended in a finished text, whose reward is known: only visits grow."""
    path[-1].visits += 1
    back_up(path, rules)


def land(
    path: Sequence[Node],
    states: Sequence[TokenIds],
    reward: float,
    rules: Rules,
    costs: Sequence[int] = (),
) -> Node:
    """End a flight: its states join the tree and its reward is backed up.

    Args:
        path: What `select` gave, in flight.
        states: At each branch level below the path's end, and the finished text.
        reward: Of the finished text; finite.
        rules: How the tree grows.
        costs: Evaluations that each state took; none by default.

    Returns:
        The finished text's node.
    """
    give_up(path)
    way = list(path)
    for at, state in enumerate(states):
        way.append(_child(way[-1], state, at == len(states) - 1, rules))
        way[-1].nfe += costs[at] if costs else 0
    way[-1].value = reward
    back_up(way, rules)
    return way[-1]


def replay(
    root: Node,
    states: Sequence[TokenIds],
    begun: int,
    reward: float,
    rules: Rules,
    costs: Sequence[int] = (),
) -> None:
    """Put a rollout that landed in another copy of the tree into this one.

    Args:
        root: This copy's.
        states: From below the root to the finished text.
        begun: How many of these the rollout found there; looked for by their tokens.
        reward: Of the finished text.
        rules: How the tree grows.
        costs: Evaluations that each state took, those found there included; none by default.
    """
    way = [root]
    for at, state in enumerate(states):
        is_end = at == len(states) - 1
        same = (child for child in way[-1].children if child.state == state)
        known = next(same, None) if at < begun else None
        way.append(known or _child(way[-1], state, is_end, rules))
        way[-1].nfe += costs[at] if costs and known is None else 0
    way[-1].value = reward
    back_up(way, rules)


def back_up(path: Sequence[Node], rules: Rules) -> None:
    """Tell everyone above a finished text."""
    for node in reversed(path[:-1]):
        _revalue(node, rules)
        node.visits += 1


def revalue(root: Node, rules: Rules) -> None:
    """Compute every value anew from the rewards of the finished texts."""
    for node in reversed(list(root.nodes)):
        if node.children:
            _revalue(node, rules)


def _revalue(node: Node, rules: Rules) -> None:
    values = [child.value for child in node.children]
    counts = [child.samples for child in node.children]
    node.value = soft_value(values, rules.sharpness, counts)


def _child(parent: Node, state: TokenIds, is_end: bool, rules: Rules) -> Node:
    """A new child; or the one that is equal, with one sample more."""
    parent.num_drawn += 1
    if rules.merges:
        for child in parent.children:
            if child.state == state:
                child.samples += 1
                child.visits += is_end  # an inner one is visited by the backup
                return child
    child = Node(state, parent.level + 1, is_end, parent)
    parent.children.append(child)
    return child


SPACING = (54 / 64, 44 / 64, 34 / 64, 24 / 64, 14 / 64)
"""Steps left at the inner branch levels, as shares of all steps: those of the paper's text runs."""

LATE = (8 / 64, 4 / 64)
"""Two more for chains that reveal what is least sure last: there the last steps decide most."""


def branch_levels(
    steps: int, wanted: Sequence[int] | None = None, *, surest_first: bool = False
) -> tuple[int, ...]:
    """Steps left at each branch level, the root first, strictly falling.

    Args:
        steps: Of the whole chain, at least 1.
        wanted: Steps left where branching is allowed; the root is added. By default as the paper's
            text runs have it, in proportion: of 64 steps 64, 54, 44, 34, 24, 14.
        surest_first: Whether the chain reveals what it is surest of first; then also 8 and 4.

    Raises:
        ValueError: A level outside 1..steps.
    """
    usual = (*SPACING, *(LATE if surest_first else ()))
    levels = [round(share * steps) for share in usual] if wanted is None else list(wanted)
    if wanted is not None and any(not 1 <= one <= steps for one in levels):
        raise ValueError(f"branch levels are steps left, from 1 to {steps}; got {levels}")
    return tuple(sorted({steps, *(one for one in levels if one >= 1)}, reverse=True))


def widening_for(samples: float) -> tuple[float, float]:
    """Growth and exponent that suit a budget of so many whole texts.

    With the paper's 2 and 0.7 a node takes 13 children before anything is selected through it, so
    a small budget would be spent as best-of-n on the first level.
    """
    if samples < 128:
        return 1.0, 0.5
    return (1.0, 0.7) if samples < 1024 else (2.0, 0.7)
