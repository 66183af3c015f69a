"""The null judge: every answer and every step is worth the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engines.base import ChatMessage
from reward_models.base import Candidate, Claim, RewardInfo, RewardKind, RewardStats, Score
from reward_models.claims import EmptyClaim
from reward_models.errors import RewardLoadError, RewardUnavailable


class ConstantJudge:
    """Returns `value`, in 0..1, whatever it is shown."""

    def __init__(self, model_id: str, value: float = 0.5) -> None:
        self.info = RewardInfo(model_id, RewardKind.PROCESS)
        self._value = value
        self._is_closed = False

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        """A claim that holds nothing."""
        return EmptyClaim()

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """The same value for each candidate and each of its steps."""
        if self._is_closed:
            raise RewardUnavailable(f"reward model {self.info.model_id!r} was closed")
        return [Score(self._value, (self._value,) * len(candidate.steps)) for candidate in batch]

    def stats(self) -> RewardStats:
        """All zero: there is no cache."""
        return RewardStats()

    async def aclose(self) -> None:
        """Further scores raise RewardUnavailable."""
        self._is_closed = True


def open_judge(model_id: str, model: str, options: Mapping[str, Any]) -> ConstantJudge:
    """The constant judge for settings; `model` is not read.

    Args:
        model_id: The id on the wire.
        model: Ignored.
        options: ``value``, in 0..1; 0.5 by default.

    Raises:
        RewardLoadError: An unknown option, or a value outside 0..1.
    """
    unknown = sorted(set(options) - {"value"})
    if unknown:
        raise RewardLoadError(f"{model_id}: unknown option {unknown[0]!r}; constant knows value")
    value = options.get("value", 0.5)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise RewardLoadError(f"{model_id}: value {value!r} is not a number in 0..1")
    return ConstantJudge(model_id, float(value))
