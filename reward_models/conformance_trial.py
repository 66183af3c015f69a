"""What the checks of `reward_models.conformance` are made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from engines.base import ChatMessage
from reward_models.base import Candidate, Claim, RewardModel

TOLERANCE: Final = 1e-4
_MESSAGES: Final = ({"role": "user", "content": "Mia has 12 coins. Mia finds 30 coins. How many?"},)
_ANSWERS: Final = (
    ("12+30=42\n", "The answer is 42."),
    ("12+30=43\n", "43-1=42\n", "The answer is 42."),
    ("The answer is 7.",),
)


class ContractBroken(AssertionError):
    """A reward model broke a law; the message says which, with what was seen."""


@dataclass(frozen=True)
class Subject:
    """The reward model under test.

    Attributes:
        make: A new judge each time; `run_check` closes it.
        messages: A conversation that it can read.
        answers: Answers to it that it can read, each cut into steps.
        unreadable: An answer that it cannot read, too long for it, say; None where there is none.
    """

    make: Callable[[], RewardModel]
    messages: tuple[ChatMessage, ...] = _MESSAGES
    answers: tuple[tuple[str, ...], ...] = _ANSWERS
    unreadable: tuple[str, ...] | None = None


@dataclass
class Trial:
    """One judge while a check runs, with the claims taken on the way."""

    judge: RewardModel
    subject: Subject
    taken: list[Claim] = field(default_factory=list)

    async def open(self) -> Claim:
        """A claim on the conversation, released at the end."""
        return self.own(await self.judge.open(self.subject.messages))

    def own(self, claim: Claim) -> Claim:
        """Remember to release this claim."""
        self.taken.append(claim)
        return claim

    def candidates(self, claim: Claim | None = None) -> list[Candidate]:
        """All answers of the subject, judged under `claim`."""
        return [self.candidate(steps, claim) for steps in self.subject.answers]

    def candidate(
        self, steps: tuple[str, ...], claim: Claim | None = None, *, is_finished: bool = True
    ) -> Candidate:
        """One answer, in the shape that a judge reads."""
        text = "".join(steps)
        return Candidate(self.subject.messages, text, (), steps, claim, is_finished)


CheckBody: TypeAlias = Callable[[Trial], Awaitable[None]]


@dataclass(frozen=True)
class Check:
    """One law: its name and its body."""

    name: str
    body: CheckBody


async def run_check(check: Check, subject: Subject) -> None:
    """Run one check on a new judge, give back what it claimed, and close the judge.

    Raises:
        ContractBroken: The law does not hold, or pages stayed claimed.
    """
    judge = subject.make()
    trial = Trial(judge, subject)
    try:
        try:
            await check.body(trial)
        finally:
            for claim in trial.taken:
                claim.release()
        claimed = judge.stats().pages_claimed
        require(claimed == 0, f"{claimed} pages are still claimed by nobody")
    finally:
        await judge.aclose()


def require(holds: bool, what: str) -> None:
    """Raise `ContractBroken` unless the law holds."""
    if not holds:
        raise ContractBroken(what)


def near(ones: Sequence[float], others: Sequence[float]) -> bool:
    """Whether values are the same, but for the last bits, in which batched products differ."""
    return all(abs(a - b) < TOLERANCE for a, b in zip(ones, others, strict=True))
