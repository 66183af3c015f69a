"""The seam between search and whatever judges answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, Protocol, TypeAlias, runtime_checkable

from engines.base import ChatMessage, Health, TokenIds

Aggregate: TypeAlias = Literal["last", "min", "prod", "mean", "model"]
"""How the values of an answer's steps become one.

With `model` there is but one: the judge is shown the whole answer so far as a single step.
"""


UNSEEN: Final = -1024.0
"""Reward of a next token that no training text held: below every reward that was learned.

Source: Saffron-1, arXiv 2506.06444, section 4.3, where it is minus infinity, and its code.
"""


class RewardKind(StrEnum):
    """What a judge reads and returns."""

    OUTCOME = "outcome"
    PROCESS = "process"
    MULTIFURCATION = "multifurcation"
    VERIFIER = "verifier"


@dataclass(frozen=True)
class RewardInfo:
    """What callers may know of a judge.

    Attributes:
        model_id: The id on the wire.
        kind: What it reads and returns.
        low: Smallest value it can return.
        high: Largest value it can return.
        tokenizer_hash: As `EngineInfo.tokenizer_hash`; empty when it reads text.
        parameters: Weights in the model; 0 for verifiers.
        aggregate: How its authors make one value of the steps' values; a strategy's own parameter
            of that name decides.
        reads_whole: Whether it can read an answer of several steps as one, as `model` asks for.
        shows_prefill: Of an outcome judge: whether the beginning of an answer that the caller wrote
            is shown to it, as the conversation's last message. Judged is what follows.
    """

    model_id: str
    kind: RewardKind
    low: float = 0.0
    high: float = 1.0
    tokenizer_hash: str = ""
    parameters: int = 0
    aggregate: Aggregate = "last"
    reads_whole: bool = True
    shows_prefill: bool = False


def asked_of(
    info: RewardInfo, messages: tuple[ChatMessage, ...], *, is_begun: bool
) -> tuple[ChatMessage, ...]:
    """The conversation as a judge of what follows is shown it.

    Args:
        info: The judge.
        messages: The conversation.
        is_begun: Whether its last message is the beginning of the answer.

    Multifurcation models read an assistant's last message as that beginning: behind a turn that
    is over they are shown an empty one.
    """
    is_multifurcation = info.kind is RewardKind.MULTIFURCATION
    if is_begun:
        return messages if info.shows_prefill or is_multifurcation else messages[:-1]
    if is_multifurcation and messages and messages[-1].get("role") == "assistant":
        return (*messages, {"role": "assistant", "content": ""})
    return messages


class Claim(Protocol):
    """A judge's own claim on KV. One owner; `release` is idempotent and never raises."""

    @property
    def token_ids(self) -> TokenIds:
        """The judge's tokens recorded so far."""

    def fork(self) -> Claim:
        """Another claim on the same tokens."""

    def extend(self, ids: TokenIds) -> Claim:
        """A claim with `ids` appended; only recorded, computed at the next score."""

    def release(self) -> None:
        """Give the claim back."""


@dataclass(frozen=True)
class Candidate:
    """One (possibly unfinished) answer to judge.

    Attributes:
        messages: The conversation it answers.
        text: The answer so far; equal to the concatenation of `steps`.
        token_ids: The answer's tokens in the generator's vocabulary; empty where unknown.
        steps: The answer cut at step ends, delimiters kept.
        claim: The judge's claim on the conversation, from `RewardModel.open`; stays the caller's.
        is_finished: Whether the answer has ended.
    """

    messages: tuple[ChatMessage, ...]
    text: str
    token_ids: TokenIds
    steps: tuple[str, ...]
    claim: Claim | None = None
    is_finished: bool = True


@dataclass(frozen=True)
class Score:
    """A judgement.

    Attributes:
        value: The value of the candidate; for process judges that of the last step. May be NaN when
            the judge failed on this candidate: search then drops it.
        steps: One value per step for process judges; empty otherwise.
        tokens_computed: Tokens run through the judge for this candidate.
    """

    value: float
    steps: tuple[float, ...] = ()
    tokens_computed: int = 0


@dataclass(frozen=True)
class RewardStats:
    """Gauges and counters of a judge's own cache, as `engines.base.EngineStats`."""

    pages_free: int = 0
    pages_cached: int = 0
    pages_claimed: int = 0
    tokens_computed: int = 0


class RewardRow(Protocol):
    """Rewards of every possible next token after one claim."""

    def at(self, ids: Sequence[int]) -> list[float]:
        """Raw rewards (logits plus bias, never softmaxed) of `ids`.

        A token that the model never saw in training has `UNSEEN`; one that ends an answer has its
        reward. All are NaN where the claim cannot be read, because it is too long, say.
        """


@runtime_checkable
class RewardRows(RewardRow, Protocol):
    """A row that can ask others of its judge together with itself, beside the event loop."""

    async def at_each(
        self, rows: Sequence[RewardRow], ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """`at` of each of `rows`, all of one `next_rewards`, for its own ids."""


async def rewards_at(rows: Sequence[RewardRow], ids: Sequence[Sequence[int]]) -> list[list[float]]:
    """`RewardRow.at` of each row for its own ids, all together where the rows can."""
    if rows and isinstance(rows[0], RewardRows):
        return await rows[0].at_each(rows, ids)
    return [row.at(one) for row, one in zip(rows, ids, strict=True)]


@runtime_checkable
class RewardModel(Protocol):
    """Judges. See `reward_models.conformance` for its laws."""

    @property
    def info(self) -> RewardInfo:
        """What the judge is."""

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        """Claim a conversation; judges without a cache return a claim that holds nothing."""

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """Judge a batch: same order, same length.

        Raises:
            RewardUnavailable: Nothing could be judged.
        """

    def stats(self) -> RewardStats:
        """Gauges and counters now."""

    async def aclose(self) -> None:
        """Free everything; idempotent."""


@runtime_checkable
class KnowsHealth(Protocol):
    """A judge that knows how it is; of the others the server remembers that they were gone."""

    @property
    def health(self) -> Health:
        """What is known without asking anybody: never waits, never raises."""


@runtime_checkable
class MultifurcationRewardModel(RewardModel, Protocol):
    """A judge that values every possible next token in one forward pass (Saffron)."""

    async def next_rewards(self, claims: Sequence[Claim]) -> list[RewardRow]:
        """One row per claim, kept until that claim is extended or released."""
