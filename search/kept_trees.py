"""Trees of denoising rollouts as bytes, bounded, and what two copies of one come to together.

A stored tree holds every node's tokens, visits and samples and the rewards of finished texts.
Values are not stored: they follow from the rewards and from the request's own sharpness.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from search.diffusion_tree import Node, Rules, replay, revalue
from search.rollouts import Landed

MAX_NODES: Final = 2048
"""Nodes that are stored of one tree; its least visited beginnings go first."""

TTL_S: Final = 24 * 3600.0
"""How long a tree is kept after the last request that grew it."""

_FORMAT: Final = 1


@dataclass(frozen=True)
class Kept:
    """A stored tree.

    Attributes:
        root: The tree, without values.
        nfe: Evaluations that it took.
    """

    root: Node
    nfe: int


def packed(root: Node, nfe: int, max_nodes: int = MAX_NODES) -> bytes:
    """A tree as bytes; what is over the bound is left out."""
    kept, share = _within(root, max_nodes)
    places: dict[Node, int] = {root: -1}
    rows: list[list[Any]] = []
    for top in kept:
        for node in top.nodes:
            assert node.parent is not None
            reward = node.value if node.is_end else None
            parent = places[node.parent]
            places[node] = len(rows)
            rows.append([parent, list(node.state), node.visits, node.samples, reward])
    whole = {
        "format": _FORMAT,
        "text": list(root.state),
        "visits": 1 + sum(_passed(top) for top in kept),
        "nfe": round(nfe * share),
        "nodes": rows,
    }
    return zlib.compress(json.dumps(whole, separators=(",", ":")).encode())


def unpacked(data: bytes) -> Kept | None:
    """What `packed` made; None for anything else, which is then as good as nothing."""
    try:
        whole: dict[str, Any] = json.loads(zlib.decompress(data))
        if whole["format"] != _FORMAT:
            return None
        root = Node(tuple(whole["text"]), 0, visits=whole["visits"])
        nodes = [root]
        for parent, text, visits, samples, reward in whole["nodes"]:
            above = nodes[parent + 1]
            node = Node(
                tuple(text),
                above.level + 1,
                reward is not None,
                above,
                value=reward or 0.0,
                visits=visits,
                samples=samples,
            )
            above.children.append(node)
            above.num_drawn += samples
            nodes.append(node)
        return Kept(root, whole["nfe"])
    except (zlib.error, ValueError, KeyError, TypeError, IndexError):
        return None


def merged(theirs: bytes, landed: Sequence[Landed], nfe: int, rules: Rules) -> bytes | None:
    """Their tree with our rollouts in it; None where theirs cannot be read.

    Args:
        theirs: As stored.
        landed: What this run added.
        nfe: What it took.
        rules: How the tree grows.
    """
    found = unpacked(theirs)
    if found is None:
        return None
    for one in landed:
        replay(found.root, one.states, one.begun, one.reward, rules)
    revalue(found.root, rules)
    return packed(found.root, found.nfe + nfe)


def _within(root: Node, max_nodes: int) -> tuple[list[Node], float]:
    """Children of the root whose trees fit the bound, in order, and their share of all texts.

    The one with the best text stays as long as it fits by itself; of the others the most visited.
    """
    sizes = {top: sum(1 for _ in top.nodes) for top in root.children}
    best = {top: max(node.value for node in top.nodes if node.is_end) for top in root.children}
    first = max(root.children, key=lambda top: best[top], default=None)
    order = sorted(root.children, key=lambda top: (top is not first, -top.visits))
    kept, left = set[Node](), max_nodes
    for top in order:
        if sizes[top] <= left:
            kept.add(top)
            left -= sizes[top]
    texts = {top: sum(node.samples for node in top.nodes if node.is_end) for top in root.children}
    total = sum(texts.values())
    share = sum(texts[top] for top in kept) / total if total else 1.0
    return [top for top in root.children if top in kept], share


def _passed(top: Node) -> int:
    """Visits that a child of the root stands for: inner nodes begin with one of their own."""
    return top.visits if top.is_end else top.visits - 1
