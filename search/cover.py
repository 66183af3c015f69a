"""Which leaves to keep: the integer program of ETS, and the clusters that it wants to cover.

Pure functions over plain numbers; they know no tree, engine or strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from scipy.spatial.distance import pdist

FREE_NODE_REWARD = 1e-4
"""What a node earns when λ_b is 0, so that everything is kept. Source: ETS reference code."""

_MAX_SOLVER_NODES = 20_000


def clusters_of(vectors: npt.NDArray[np.float32], distance: float) -> list[int]:
    """Cluster numbers of the rows: average linkage over cosine distance, cut at `distance`.

    A zero row has no direction: it is a cluster of its own. Distances are rounded to 1e-5, so
    that the last bits of batched matrix products do not decide.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    has_direction = np.isfinite(rows).all(axis=1) & (np.linalg.norm(rows, axis=1) > 0)
    directed = np.flatnonzero(has_direction)
    numbers = np.arange(1, len(rows) + 1) + len(rows)  # singletons until told otherwise
    if len(directed) > 1:
        gaps = np.round(np.maximum(pdist(rows[directed], "cosine"), 0.0), 5)
        numbers[directed] = fcluster(linkage(gaps, "average"), distance, criterion="distance")
    first_seen: dict[int, int] = {}
    return [first_seen.setdefault(int(one), len(first_seen)) for one in numbers]


@dataclass(frozen=True)
class KeepProblem:
    """Which candidate leaves to keep.

    Attributes:
        weights: One per leaf, at least one positive.
        paths: Per leaf the node numbers from the root down to the leaf itself.
        clusters: Per leaf its cluster; empty leaves that term out.
        lambda_b: Price of all nodes together.
        lambda_d: Reward for covering all clusters.
        costs: Per node its part of the price, adding up to 1; what is not listed is free. All
            nodes cost the same by default.
    """

    weights: Sequence[float]
    paths: Sequence[Sequence[int]]
    clusters: Sequence[int]
    lambda_b: float
    lambda_d: float
    costs: Mapping[int, float] | None = None

    def objective(self, kept: Sequence[int]) -> float:
        """What keeping these leaves is worth."""
        value = sum(self.weights[at] for at in kept) / sum(self.weights)
        value += sum(map(self._node_gain(), self._nodes(kept)))
        if self.clusters:
            covered = {self.clusters[at] for at in kept}
            value += self.lambda_d * len(covered) / len(set(self.clusters))
        return value

    def num_nodes(self, kept: Iterable[int]) -> int:
        """Distinct nodes on the paths to these leaves."""
        return len(self._nodes(kept))

    def num_clusters(self, kept: Iterable[int]) -> int:
        """Clusters with one of these leaves; 0 where clusters are left out."""
        return len({self.clusters[at] for at in kept}) if self.clusters else 0

    def _nodes(self, kept: Iterable[int]) -> set[int]:
        return {node for at in kept for node in self.paths[at]}

    def _node_gain(self) -> Callable[[int], float]:
        if not self.lambda_b:
            return lambda node: FREE_NODE_REWARD
        if self.costs is not None:
            costs = self.costs
            return lambda node: -self.lambda_b * costs.get(node, 0.0)
        each = -self.lambda_b / self.num_nodes(range(len(self.paths)))
        return lambda node: each


def node_shares(tokens: Mapping[int, int]) -> dict[int, float] | None:
    """Each node's share of all tokens, for `KeepProblem.costs`; None where there are none."""
    total = sum(tokens.values())
    return {node: count / total for node, count in tokens.items()} if total else None


def solve(problem: KeepProblem) -> list[int] | None:
    """The leaves to keep, in order; None when the solver fails.

    Binary variables: one per node of the tree (leaves are nodes), one per cluster. A kept node
    needs its parent, an inner node some kept child, a covered cluster some kept leaf.

    Source: ETS reference code, `select_softmax_costmodel`; objective and constraints as there.
    Differs: HiGHS for CBC, solved to a gap of zero; "y_j ≥ x_i for all leaves below" is chained
    from parent to child, which has the same integer solutions and fewer rows.
    """
    nodes = sorted({node for path in problem.paths for node in path})
    column = {node: at for at, node in enumerate(nodes)}
    clusters = sorted(set(problem.clusters))
    cluster_column = {one: len(nodes) + at for at, one in enumerate(clusters)}
    gains = np.zeros(len(nodes) + len(clusters))
    gains[: len(nodes)] = list(map(problem._node_gain(), nodes))
    total = sum(problem.weights)
    for path, weight in zip(problem.paths, problem.weights, strict=True):
        gains[column[path[-1]]] += weight / total
    if clusters:
        gains[len(nodes) :] = problem.lambda_d / len(clusters)
    rows = _rows(problem, column, cluster_column)
    solved = milp(
        -gains,
        constraints=rows,
        integrality=np.ones(len(gains), dtype=np.int64),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0, "node_limit": _MAX_SOLVER_NODES},
    )
    if not solved.success or solved.x is None:
        return None
    kept = [at for at, path in enumerate(problem.paths) if solved.x[column[path[-1]]] > 0.5]
    return kept or None


def _rows(
    problem: KeepProblem, column: dict[int, int], cluster_column: dict[int, int]
) -> LinearConstraint:
    """Every constraint as Σ a·x ≥ b."""
    below: dict[int, set[int]] = {}
    for path in problem.paths:
        for parent, child in pairwise(path):
            below.setdefault(parent, set()).add(child)
    rows: list[list[tuple[int, float]]] = []
    for parent, children in sorted(below.items()):
        kids = [column[child] for child in sorted(children)]
        rows += [[(column[parent], 1.0), (kid, -1.0)] for kid in kids]
        rows.append([(kid, 1.0) for kid in kids] + [(column[parent], -1.0)])
    leaves = [column[path[-1]] for path in problem.paths]
    for cluster, at in sorted(cluster_column.items()):
        inside = [
            leaf for leaf, one in zip(leaves, problem.clusters, strict=True) if one == cluster
        ]
        rows.append([(leaf, 1.0) for leaf in inside] + [(at, -1.0)])
    least = [0.0] * len(rows) + [1.0]
    rows.append([(leaf, 1.0) for leaf in leaves])
    entries = [(row, at, value) for row, one in enumerate(rows) for at, value in one]
    where = ([row for row, _, _ in entries], [at for _, at, _ in entries])
    shape = (len(rows), len(column) + len(cluster_column))
    matrix = coo_array(([value for _, _, value in entries], where), shape=shape)
    return LinearConstraint(matrix.tocsr(), lb=least)
