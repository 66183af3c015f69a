"""How many drafted tokens a step should verify, by what steps cost and how drafts fare.

A wider step costs more; a drafted token is worth its chance of being accepted. The nodes of all
trees of a batch are taken in order of that chance for as long as tokens a second rise. Where the
best number is none, drafters are asked more and more rarely, so that a server that is busy without
drafts is as fast as one that never heard of them.

Costs are lines over the width, fitted to the latest steps. They begin with a trial, a few steps
with drafts of one branch, and where drafting looks useless for long there is another one, since
what is rarely run is slow for that alone; where it is useful, a step without drafts is measured now
and then. A drafter's probabilities are scaled by how many of its drafts were accepted against how
many it claimed, by run.

Source: the budget max (1 + accepted(k)) / T(k) of the corrected algorithm for Liu et al. 2024
    (arXiv 2407.12021); measured while serving instead of at the start, because the cost depends on
    what else is in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

_WEIGHT: Final = 0.15  # of the latest measurement in a running mean
_MEMORY: Final = 0.99  # of the costs of earlier steps, by step
_MOST_BELIEVED: Final = 3.0  # times what a step is expected to cost
_MARGIN: Final = 1.03  # what drafting must promise at least, as a factor of tokens a second
_PATIENCE: Final = 4  # proposals in vain before drafters are asked more rarely
_LONGEST_PAUSE: Final = 63  # steps
_UNNOTICED: Final = 0.01  # of the time, for asking in vain
_RENEWAL: Final = 64  # steps with drafts after which one without is measured again
_TRIAL: Final = (8, 8, 8, 4, 2, 8, 4)  # nodes verified in the steps of a trial
_COLD: Final = 2  # steps of a trial that are not measured: code and memory that nobody used lately
_FIRST_TRIAL: Final = 4  # steps without drafts before the first trial
_NEXT_TRIAL: Final = 256  # and before the next one, twice as many each time that it is in vain
_LAST_TRIAL: Final = 4096
_GRID: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


class StepCost:
    """Seconds of a step, as a line over its width, fitted to the latest steps."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def learn(self, width: int, seconds: float) -> None:
        """A step of `width` rows took so long; what interrupted it is not believed."""
        if self._weight:
            seconds = min(seconds, _MOST_BELIEVED * self(width))
        self._weight = _MEMORY * self._weight + 1.0
        self._x = _MEMORY * self._x + width
        self._y = _MEMORY * self._y + seconds
        self._xx = _MEMORY * self._xx + width * width
        self._xy = _MEMORY * self._xy + width * seconds

    @property
    def is_known(self) -> bool:
        """Whether there was a step."""
        return self._weight > 0.0

    def __call__(self, width: int) -> float:
        """Expected seconds; where all steps were of one width, the same for every width."""
        spread = self._weight * self._xx - self._x * self._x
        slope = 0.0
        if spread > 1e-6 * self._weight * self._xx:
            slope = max(0.0, (self._weight * self._xy - self._x * self._y) / spread)
        start = (self._y - slope * self._x) / self._weight
        return start + slope * width if start > 0.0 else self._xy / self._xx * width


class Trust:
    """How many drafts are accepted for each that a drafter claims."""

    def __init__(self) -> None:
        self._claimed = self._accepted = 4.0

    def learn(self, claimed: float, accepted: int) -> None:
        """One verification: the sum of the drafts' probabilities, and how many were kept."""
        self._claimed = 0.98 * self._claimed + claimed
        self._accepted = 0.98 * self._accepted + accepted

    @property
    def ratio(self) -> float:
        """Accepted by claimed."""
        return self._accepted / self._claimed if self._claimed > 0 else 1.0


class DraftBudget:
    """Decides for one worker's steps; called on its thread.

    Args:
        max_nodes: The most nodes of a tree.
    """

    def __init__(self, max_nodes: int) -> None:
        self._max_nodes = max_nodes
        self._plain = StepCost()  # of steps without drafts, by branches
        self._wide = StepCost()  # of steps with drafts, by rows
        self._asking = 0.0  # seconds for a branch's proposal and lesson
        self._teaching = 0.0  # seconds since the last proposal
        self._typical = float(max_nodes)  # nodes a branch that were worth it
        self._failures = 0  # proposals in a row that were not worth it
        self._steps_left = 0
        self._since_plain = 0
        self._since_wide = 0
        self._was_wide = False
        self._until_trial = _FIRST_TRIAL
        self._trial: list[int] = []  # nodes to verify in the steps of the trial that are left

    @property
    def is_trying(self) -> bool:
        """Whether drafts of one branch are verified only to learn what that costs."""
        return bool(self._trial)

    @property
    def is_resting(self) -> bool:
        """Whether drafts are not worth it: one branch is asked now and then, and none is taught."""
        return self._failures > _PATIENCE

    def ask(self) -> int:
        """Nodes to ask a drafter for now; 0 is not to ask."""
        if not self._trial and self._since_wide >= self._until_trial:
            self._trial = list(reversed(_TRIAL))
        if self._trial:
            return min(self._max_nodes, max(_TRIAL))
        if not self._wide.is_known:
            return 0
        if self._steps_left > 0:
            self._steps_left -= 1
            return 0
        return min(self._max_nodes, 2 + int(2 * self._typical))

    def cut(self, chances: Sequence[Sequence[float]], branches: int) -> list[int]:
        """How many nodes of each tree to verify.

        Args:
            chances: Each tree's nodes' chances of being accepted, in the trees' order.
            branches: In the batch, those without a tree included.
        """
        order = _ranked(chances)
        count = self._worth([chance for chance, _ in order], branches)
        keep = [0] * len(chances)
        for _, tree in order[:count]:
            keep[tree] += 1
        if count:
            self._typical += 0.2 * (count / len(chances) - self._typical)
        else:
            self._typical = max(1.0, 0.9 * self._typical)
        return keep

    def attempt(self, drafted: int) -> int:
        """How many of `drafted` nodes to verify in the next step of a trial.

        Steps are measured anew, from the first one on that is warm. When the trial is over,
        drafters are asked until it turns out to be in vain.
        """
        nodes = self._trial.pop()
        if len(_TRIAL) - len(self._trial) == _COLD:
            self._wide, self._asking = StepCost(), 0.0
        if not self._trial:
            self._failures = self._steps_left = self._since_wide = 0
            self._until_trial = min(_LAST_TRIAL, max(_NEXT_TRIAL, 2 * self._until_trial))
        return min(nodes, drafted)

    def probe(self, chances: Sequence[float], drafting: int, branches: int) -> None:
        """Find out while resting, from one tree, whether trees for all would be worth it.

        Args:
            chances: Of its nodes.
            drafting: Branches that would be asked.
            branches: In the batch.
        """
        each = [chance for chance, _ in _ranked([chances])]
        self._worth([chance for chance in each for _ in range(drafting)], branches)

    def _worth(self, chances: Sequence[float], branches: int) -> int:
        """How many of the nodes, likeliest first, are worth it; takes note when none is."""
        if not self._plain.is_known or self._since_plain > _RENEWAL:
            return 0  # a plain step is to be measured
        gain, count = self._best([0.0, *accumulate(chances)], branches)
        if gain > _MARGIN:
            self._failures = self._steps_left = 0
            self._until_trial = _NEXT_TRIAL
            return count
        self._failures += 1
        if self.is_resting:
            # One branch is asked the next time: so rarely that nobody notices.
            share = self._asking / self._plain(branches)
            self._steps_left = min(_LONGEST_PAUSE, math.ceil(share / _UNNOTICED))
        return 0

    def _best(self, expected: Sequence[float], branches: int) -> tuple[float, int]:
        """Speed-up over a plain step, and with how many nodes."""
        plain, asking = self._plain(branches), branches * self._asking
        best, count = 0.0, 0
        for nodes in _grid(len(expected) - 1):
            rows = branches + nodes
            wide = max(plain, self._wide(rows)) if self._wide.is_known else plain
            gain = (branches + expected[nodes]) / branches * plain / (wide + asking)
            if gain > best:
                best, count = gain, nodes
        return best, count

    def took(self, branches: int, rows: int, seconds: float) -> None:
        """A step of so many branches and, with what was drafted, rows took so long."""
        if rows == branches:
            self._since_wide += 1
            if self._was_wide:  # it had to be planned afresh, which the next one need not be
                self._was_wide = False
            else:
                self._since_plain = 0
                self._plain.learn(rows, seconds)
            return
        self._was_wide = True
        self._since_plain += 1
        self._since_wide = 0
        if not self._is_cold:
            self._wide.learn(rows, seconds)

    @property
    def _is_cold(self) -> bool:
        return len(self._trial) > len(_TRIAL) - _COLD

    def asked(self, seconds: float, branches: int) -> None:
        """Drafters took so long to propose for so many branches."""
        each = (seconds + self._teaching) / branches
        self._teaching = 0.0
        if self._is_cold:
            return
        old = self._asking
        self._asking = old + _WEIGHT * (min(each, 2.0 * old) - old) if old else each

    def taught(self, seconds: float) -> None:
        """Drafters took so long to learn from the last step."""
        self._teaching += seconds


def _ranked(chances: Sequence[Sequence[float]]) -> list[tuple[float, int]]:
    """(chance, tree) of all nodes, likeliest first. Trees are cut from their ends: no node counts
    for more than one before it."""
    order: list[tuple[float, int]] = []
    for tree, of_tree in enumerate(chances):
        order += [(chance, tree) for chance in accumulate(of_tree, min)]
    order.sort(key=lambda node: -node[0])
    return order


def _grid(most: int) -> list[int]:
    """Numbers of nodes worth looking at: 1 to `most`, coarser as they grow."""
    found = [nodes for nodes in _GRID if nodes <= most]
    if most > 0 and (not found or found[-1] != most):
        found.append(most)
    return found
