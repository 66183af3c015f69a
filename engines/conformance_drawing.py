"""Laws of options that some engines carry: schedules and constraints.

They say that the option does what it says, whichever way the engine takes to it: a processor over
logits, requests of constant temperature one after the other, or a grammar of the backend's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from engines.base import Capability, Constraint, Finish, Prefix, Sampling, TokenIds
from engines.conformance_trial import Trial, require

_LENGTH: Final = 16
_DIGITS: Final = "[0-9]{3}"


@dataclass(frozen=True)
class Freezing:
    """Hot up to a position, greedy from there on."""

    at: int
    heat: float = 2.0

    def temperature(self, position: int) -> float:
        """See `engines.base.Schedule`."""
        return self.heat if position < self.at else 0.0

    def segments(self, max_pieces: int) -> list[tuple[int, float]]:
        """See `engines.base.Schedule`; two pieces."""
        return [(0, self.heat), (self.at, 0.0)]


async def schedules_count_from_the_response(trial: Trial) -> None:
    """An answer is greedy from where its schedule is, drawn in one piece or in steps."""
    schedule = Freezing(6)
    prefix, banned = await trial.open(), trial.engine.info.eos_ids
    how = Sampling(max_tokens=_LENGTH, ban_ids=banned, schedule=schedule)
    for size in (None, 4, 9):
        ids = await _drawn(trial, prefix, replace(how, max_step_tokens=size))
        require(len(ids) == _LENGTH, f"{len(ids)} tokens of {_LENGTH}")
        [stem] = await trial.engine.extend([(prefix, ids[: schedule.at])])
        cold = Sampling(max_tokens=_LENGTH, ban_ids=banned, temperature=0.0)
        greedy = await trial.child(trial.own(stem), cold)
        tail = ids[schedule.at :]
        require(
            tail == greedy.token_ids,
            f"in steps of {size}, {tail} were drawn and {greedy.token_ids} are the likeliest",
        )


async def _drawn(trial: Trial, prefix: Prefix, how: Sampling) -> TokenIds:
    ids: TokenIds = ()
    while True:
        step = await trial.child(prefix, how, seed=3 + len(ids))
        ids += step.token_ids
        if not step.finish.is_open:
            return ids
        prefix = step.prefix


async def constraints_shape_the_whole_answer(trial: Trial) -> None:
    """Every answer is what the regular expression says, and ends by itself."""
    how = Sampling(max_tokens=_LENGTH, constraint=Constraint(regex=_DIGITS))
    done, _ = await trial.children(await trial.open(), how, (1, 2, 3))
    for child in done:
        require(bool(re.fullmatch(_DIGITS, child.text)), f"{child.text!r} is not {_DIGITS}")
        require(child.finish is Finish.STOP_TOKEN, f"finish is {child.finish}, not stop_token")


DRAWING_CHECKS: Final = (
    (
        schedules_count_from_the_response,
        frozenset({Capability.TOKENS, Capability.SCHEDULE}),
    ),
    (
        constraints_shape_the_whole_answer,
        frozenset({Capability.TOKENS, Capability.CONSTRAINT}),
    ),
)
"""Each law with the capabilities without which it says nothing."""
