"""Trees of denoising rollouts as bytes, bounded, and what two copies of one come to together.

A stored tree holds every node's tokens, visits, samples and evaluations and the rewards of finished
texts. Values are not stored: they follow from the rewards and from the request's own sharpness.

Over the bound, finished texts are left out one by one, and beginnings with nothing below them any
more: the least visited first, among these the worst. The best text always stays. Nodes keep their
visits and the number of draws below them, so that one that was full is full when it is read back.
What the texts below a node come to is then of those that are left.
"""

from __future__ import annotations

import heapq
import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from engines.base import TokenIds
from search.diffusion_tree import Node, Rules, replay
from search.rollouts import Landed

MAX_NODES: Final = 4096
"""Nodes that are stored of one tree, the root not counted.

Of texts of 256 tokens 0.6 MB, and 5 MB at the very worst; reading them back is what costs time.
"""

MAX_TOKENS: Final = 2 * 1024 * 1024
"""Tokens of all these nodes: even random ones of a large vocabulary then fit into 16 MiB."""

TTL_S: Final = 24 * 3600.0
"""How long a tree is kept after the last request that grew it."""

_FORMAT: Final = 2
_FAST: Final = 1
"""Level of compression: packing holds the event loop up, and bytes are within bounds anyway."""


@dataclass(frozen=True)
class Kept:
    """A stored tree.

    Attributes:
        root: The tree, without values.
        nfe: Evaluations that its nodes took.
    """

    root: Node
    nfe: int


def packed(root: Node, max_nodes: int = MAX_NODES) -> bytes:
    """A tree as bytes; what is over the bound is left out. No rollout may be under way."""
    kept = _within(root, min(max_nodes, MAX_TOKENS // max(1, len(root.state))))
    places: dict[Node, int] = {root: -1}
    rows: list[list[Any]] = []
    for node in kept[1:]:
        assert node.parent is not None
        reward = node.value if node.is_end else None
        parent = places[node.parent]
        places[node] = len(rows)
        new = _changes(node.parent.state, node.state)
        rows.append([parent, new, node.visits, node.samples, node.num_drawn, node.nfe, reward])
    whole = {
        "format": _FORMAT,
        "text": root.state,
        "visits": root.visits,
        "drawn": root.num_drawn,
        "nodes": rows,
    }
    return zlib.compress(json.dumps(whole, separators=(",", ":")).encode(), _FAST)


def unpacked(data: bytes) -> Kept | None:
    """What `packed` made; None for anything else, which is then as good as nothing."""
    try:
        whole: dict[str, Any] = json.loads(zlib.decompress(data))
        if whole["format"] != _FORMAT:
            return None
        root = Node(tuple(whole["text"]), 0, visits=whole["visits"], num_drawn=whole["drawn"])
        nodes = [root]
        for parent, new, visits, samples, drawn, nfe, reward in whole["nodes"]:
            if reward is not None and not _is_reward(reward):
                return None
            above = nodes[parent + 1]
            node = Node(
                _changed(above.state, new),
                above.level + 1,
                reward is not None,
                above,
                value=reward or 0.0,
                visits=visits,
                samples=samples,
                num_drawn=drawn,
                nfe=nfe,
            )
            above.children.append(node)
            nodes.append(node)
        return Kept(root, sum(node.nfe for node in nodes))
    except (zlib.error, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return None


def _is_reward(found: object) -> bool:
    return type(found) in (int, float) and abs(cast("float", found)) <= sys.float_info.max


def merged(theirs: bytes, landed: Sequence[Landed], rules: Rules) -> bytes | None:
    """Their tree with our rollouts in it; None where theirs cannot be read.

    Args:
        theirs: As stored.
        landed: What this run added.
        rules: How the tree grows.
    """
    found = unpacked(theirs)
    if found is None:
        return None
    for one in landed:
        replay(found.root, one.states, one.begun, one.reward, rules, one.costs)
    return packed(found.root)


def _changes(above: TokenIds, state: TokenIds) -> list[int]:
    """Places and tokens, in turn, that are not as in the state above; both are equally long."""
    pairs = enumerate(zip(state, above, strict=True))
    return [one for at, (token, old) in pairs if token != old for one in (at, token)]


def _changed(above: TokenIds, new: Sequence[int]) -> TokenIds:
    tokens = list(above)
    for at, token in zip(new[::2], new[1::2], strict=True):
        tokens[at] = token
    return tuple(tokens)


def _within(root: Node, max_nodes: int) -> list[Node]:
    """The root and the nodes that fit the bound, parents first, in order.

    A path has few nodes; where even the best text's own is longer than the bound, that stays.
    """
    nodes = list(root.nodes)
    ends = [node for node in nodes if node.is_end]
    left = len(nodes) - 1
    if left <= max_nodes or not ends:
        return nodes
    best = max(ends, key=lambda node: node.value)
    places = {node: at for at, node in enumerate(nodes)}
    below = {node: len(node.children) for node in nodes}
    out = set[Node]()
    order = [(node.visits, node.value, places[node]) for node in ends if node is not best]
    heapq.heapify(order)
    while left > max_nodes and order:
        node: Node = nodes[heapq.heappop(order)[-1]]
        while not below[node] and node.parent is not None:
            out.add(node)
            left -= 1
            node = node.parent
            below[node] -= 1
    return [node for node in nodes if node not in out]
