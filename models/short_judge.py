"""A judge without weights for the short tasks: exact, and shaped, so that near misses count.

It reads the question, computes what a right answer must be, and gives the share of it that holds:
1 for a right answer, and for no other. A question of neither task is worth `NEUTRAL` whatever is
answered, so it may judge any conversation. It looks at finished answers as at unfinished ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from engines.base import ChatMessage
from models.tasks import tales, totals
from reward_models.base import Candidate, Claim, RewardInfo, RewardKind, RewardStats, Score
from reward_models.claims import EmptyClaim
from reward_models.errors import RewardLoadError, RewardUnavailable

NEUTRAL: Final = 0.5


class ShortJudge:
    """Scores answers to `totals` and `tales`; see the module's docstring."""

    def __init__(self, model_id: str) -> None:
        self.info = RewardInfo(model_id, RewardKind.VERIFIER)
        self._is_closed = False

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        """A claim that holds nothing."""
        return EmptyClaim()

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """The worth of each candidate, and of every beginning of it that ends with a step.

        Raises:
            RewardUnavailable: The judge was closed.
        """
        if self._is_closed:
            raise RewardUnavailable(f"reward model {self.info.model_id!r} was closed")
        return [_judged(candidate) for candidate in batch]

    def stats(self) -> RewardStats:
        """All zero: there is no cache."""
        return RewardStats()

    async def aclose(self) -> None:
        """Further scores raise RewardUnavailable."""
        self._is_closed = True


def worth(question: str, content: str) -> float:
    """What an answer is worth, in 0..1."""
    total = totals.read(question)
    if total is not None:
        return totals.worth(total, content)
    tale = tales.read(question)
    return NEUTRAL if tale is None else tales.worth(tale, content)


def open_judge(model_id: str, model: str, options: Mapping[str, Any]) -> ShortJudge:
    """The judge for settings; `model` is not read.

    Raises:
        RewardLoadError: There are options; it has none.
    """
    if options:
        raise RewardLoadError(f"{model_id}: unknown option {min(options)!r}; short has none")
    return ShortJudge(model_id)


def _judged(candidate: Candidate) -> Score:
    asked = [message for message in candidate.messages if message.get("role") == "user"]
    content = asked[-1].get("content") if asked else None
    question = content if isinstance(content, str) else ""
    so_far, steps = "", []
    for step in candidate.steps:
        so_far += step
        steps.append(worth(question, so_far))
    return Score(worth(question, candidate.text), tuple(steps))
