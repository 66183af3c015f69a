"""What becomes of hidden states that were read: results, in as few calls as may be."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engines.embedded.jobs import LastStates
from engines.embedded.sequence import Reading


def finished(readings: Sequence[Reading]) -> list[object]:
    """The result of each reading; their hidden states are given up.

    Args:
        readings: All run to their end. Those that share a `LastStates` are one call.
    """
    results: list[object] = [None] * len(readings)
    together: dict[LastStates, list[int]] = {}
    for at, reading in enumerate(readings):
        if isinstance(reading.finish, LastStates):
            together.setdefault(reading.finish, []).append(at)
        else:
            hidden = reading.hidden[0] if len(reading.hidden) == 1 else torch.cat(reading.hidden)
            results[at] = reading.finish(hidden)
    for finish, members in together.items():
        states = torch.cat([readings[at].hidden[-1][-1:] for at in members])
        for at, result in zip(members, finish.function(states), strict=True):
            results[at] = result
    for reading in readings:
        reading.hidden = []
    return results
