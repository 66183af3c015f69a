"""What a run may spend: reserved before the work, settled after it.

A budget counts five things that can be limited (`Limits`) and a few more that are only reported. A
reservation holds an upper bound until the true amount is known, so that work in flight can never
overspend together. A child budget spends from its parent's. Time comes from an injected clock, and
`in_time` cancels what is awaited when it is up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

from search.errors import BudgetExhausted

Limited: TypeAlias = Literal["generated_tokens", "candidates", "reward_calls", "nfe"]
"""What can be reserved. Wall time is limited too, but passes by itself."""

_LIMITED: Final = ("generated_tokens", "candidates", "reward_calls", "nfe")
_REPORTED: Final = (
    "reward_tokens",
    "wasted_tokens",
    "dropped",
    "drafted_tokens",
    "accepted_tokens",
)
_TIMER_SLACK_S: Final = 0.005  # timers may fire a little before the clock agrees


@dataclass(frozen=True)
class Limits:
    """Upper bounds of a run; None is no limit.

    Attributes:
        generated_tokens: Tokens drawn from the engine, those cut off after a stop included.
        candidates: Children drawn from the engine: whole answers, or single steps in step-wise
            search.
        reward_calls: Candidates judged by the reward model (a batch of 16 is 16 calls, equal ones
            among them counted once).
        nfe: Denoiser evaluations.
        wall_ms: Milliseconds from the run's start to its deadline.

    Raises:
        ValueError: A negative limit.
    """

    generated_tokens: int | None = None
    candidates: int | None = None
    reward_calls: int | None = None
    nfe: int | None = None
    wall_ms: int | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            bound = getattr(self, one.name)
            if bound is not None and bound < 0:
                raise ValueError(f"{one.name} is {bound}; a limit is at least 0")


@dataclass(frozen=True)
class Spend:
    """What was spent so far, in the units of `Limits`.

    Attributes:
        generated_tokens: Tokens drawn from the engine or appended by `Search.extend`.
        candidates: Children drawn from the engine.
        reward_calls: Candidates judged.
        nfe: Denoiser evaluations.
        wall_ms: Milliseconds since the run's start.
        reward_tokens: Tokens run through the reward model.
        wasted_tokens: Of `generated_tokens`, those in no usable candidate: drawn past a stop,
            discarded when a child was cancelled, or in a dropped candidate's last step.
        dropped: Candidates dropped because their reward failed or was not finite.
        drafted_tokens: Tokens that a drafter proposed and the engine verified.
        accepted_tokens: Of `generated_tokens`, those that were drafted.
    """

    generated_tokens: int = 0
    candidates: int = 0
    reward_calls: int = 0
    nfe: int = 0
    wall_ms: int = 0
    reward_tokens: int = 0
    wasted_tokens: int = 0
    dropped: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class Reservation:
    """An upper bound that a budget holds until `settle`; a context manager settles nothing."""

    def __init__(self, budget: Budget, held: dict[str, int]) -> None:
        self._budget = budget
        self._held: dict[str, int] | None = held

    def settle(self, **actual: int) -> None:
        """Replace the bound by what was spent; only the first call counts."""
        if self._held is None:
            return
        held, self._held = self._held, None
        self._budget._release(held)
        self._budget.count(**actual)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.settle()


class Budget:
    """Limits, what is held and what is spent. Not thread-safe: one event loop owns it.

    Args:
        limits: The upper bounds.
        clock: Seconds, monotonic.
        parent: The budget that pays as well.

    Attributes:
        cut_short: Why work was refused or shortened, if any was.
        refused: What could not be paid the first time, and how much of it was wanted.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        parent: Budget | None = None,
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._parent = parent
        self._started_at = clock()
        self._spent = dict.fromkeys((*_LIMITED, *_REPORTED), 0)
        self._held = dict.fromkeys(_LIMITED, 0)
        self.cut_short: Literal["budget", "deadline"] | None = None
        self.refused: tuple[Limited, int] | None = None

    def begin(self) -> None:
        """Let time count from here, and not from when the budget was made."""
        self._started_at = self._clock()

    @property
    def spent(self) -> Spend:
        """What was spent until now, wall time included."""
        wall_ms = round((self._clock() - self._started_at) * 1000)
        return Spend(wall_ms=wall_ms, **self._spent)

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the nearest deadline, at least 0; None without one."""
        inherited = self._parent.seconds_left if self._parent else None
        if self.limits.wall_ms is None:
            return inherited
        own = max(0.0, self._started_at + self.limits.wall_ms / 1000 - self._clock())
        return own if inherited is None else min(own, inherited)

    @property
    def is_past_deadline(self) -> bool:
        """Whether the deadline has come."""
        return self.seconds_left == 0.0

    def left(self, what: Limited) -> int | None:
        """How much may still be reserved, here and in every parent; None without a limit."""
        inherited = self._parent.left(what) if self._parent else None
        bound: int | None = getattr(self.limits, what)
        if bound is None:
            return inherited
        own = max(0, bound - self._spent[what] - self._held[what])
        return own if inherited is None else min(own, inherited)

    def reserve(self, **upper_bound: int) -> Reservation:
        """Hold upper bounds of `Limited` amounts.

        Raises:
            BudgetExhausted: One of them exceeds what is left; nothing is held then.
        """
        for what in _LIMITED:
            wanted = upper_bound.get(what, 0)
            left = self.left(what)
            if left is not None and wanted > left:
                raise BudgetExhausted(what, getattr(self.limits, what), wanted)
        held = {what: amount for what, amount in upper_bound.items() if amount}
        self._hold(held, 1)
        return Reservation(self, held)

    def affords(self, **upper_bound: int) -> bool:
        """Whether `reserve` would take these bounds."""
        lefts = ((bound, self.left(what)) for what in _LIMITED if (bound := upper_bound.get(what)))
        return all(left is None or bound <= left for bound, left in lefts)

    def cut_to(self, what: Limited, wanted: int, each: int) -> int:
        """As many of `wanted` as there is room for when each takes so much; less is a `cut`."""
        left = self.left(what)
        if not each or left is None or wanted * each <= left:
            return wanted
        self.cut(what, each)
        return left // each

    def cut(self, what: Limited, wanted: int) -> None:
        """Note that work was refused or shortened for want of `what`, here and where it binds."""
        self.cut_short = self.cut_short or "budget"
        self.refused = self.refused or (what, wanted)
        if self._parent is not None:
            left = self._parent.left(what)
            if left is not None and left < wanted:
                self._parent.cut(what, wanted)

    def cut_at_deadline(self) -> None:
        """Note that time is up, here and in every parent whose time is up as well."""
        self.cut_short = "deadline"
        if self._parent is not None and self._parent.seconds_left is not None:
            own = self.seconds_left or 0.0
            if self._parent.seconds_left <= own + _TIMER_SLACK_S:
                self._parent.cut_at_deadline()

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Cancel the body at the deadline.

        Raises:
            BudgetExhausted: It came to that.
        """
        try:
            async with asyncio.timeout(self.seconds_left) as timer:
                yield
        except TimeoutError as err:
            if not timer.expired():
                raise
            self.cut_at_deadline()
            raise BudgetExhausted("wall_ms", self.limits.wall_ms, 1) from err

    def count(self, **actual: int) -> None:
        """Add to what was spent, without a reservation."""
        for what, amount in actual.items():
            self._spent[what] += amount
        if self._parent is not None:
            self._parent.count(**actual)

    def child(self, limits: Limits) -> Budget:
        """A budget within this one: its spending counts here too, and its time starts now."""
        return Budget(limits, clock=self._clock, parent=self)

    def _release(self, held: dict[str, int]) -> None:
        self._hold(held, -1)

    def _hold(self, amounts: dict[str, int], sign: int) -> None:
        for what, amount in amounts.items():
            self._held[what] += sign * amount
        if self._parent is not None:
            self._parent._hold(amounts, sign)


def level_share(total: int, groups: list[tuple[int, int]]) -> int:
    """The largest equal share per child that `total` can pay.

    Args:
        total: Tokens to hand out.
        groups: (number of children, the most one of them can use) per call.

    Returns:
        The level s with Σ n·min(cap, s) ≤ total, as large as it helps: at most the largest cap.
    """
    low, high = 0, max((cap for _, cap in groups), default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(n * min(cap, middle) for n, cap in groups) <= total:
            low = middle
        else:
            high = middle - 1
    return low
