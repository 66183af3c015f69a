"""What a bough server answers, as types. Fields that a newer server adds are kept as extras."""

from __future__ import annotations

from typing import Any

from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel, ConfigDict, Field


class Reply(BaseModel):
    """Unknown fields are kept, and values are never changed."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Spent(Reply):
    """What the run cost; tokens of the search included."""

    generated_tokens: int = 0
    candidates: int = 0
    reward_calls: int = 0
    reward_tokens: int = 0
    nfe: int = 0
    wall_ms: float = 0.0


class TreeStats(Reply):
    """The size of the run's tree; tokens that branches share count once in `unique_tokens`."""

    nodes: int = 0
    depth: int = 0
    unique_tokens: int = 0
    logical_tokens: int = 0
    cached_tokens: int = 0
    peak_kv_tokens: int = 0
    reused_nodes: int = 0
    reused_nfe: int = 0


class Candidate(Reply):
    """One ranked answer, best first."""

    content: str
    score: float | None = None
    finish_reason: str | None = None


class BoughReply(Reply):
    """How a run went. `strategy` is what was asked for, `resolved` what ran."""

    run_id: str
    strategy: str
    resolved: str
    stop_reason: str
    seed: int | None = None
    score: float | None = None
    cached: bool = False
    spent: Spent = Field(default_factory=Spent)
    tree: TreeStats = Field(default_factory=TreeStats)
    candidates: list[Candidate] = Field(default_factory=list)
    ignored: list[str] = Field(default_factory=list)
    trace: dict[str, Any] | None = None


class RunEvent(Reply):
    """One event of a run's tree; numbers rise by one."""

    number: int
    kind: str

    @property
    def data(self) -> dict[str, Any]:
        """The event's own fields."""
        return dict(self.model_extra or {})


class EventInStream(Reply):
    """A search event between chunks of text, sent when `return.events` was asked for."""

    event: RunEvent


class Node(Reply):
    """One branch of a run's tree."""

    id: int
    parent: int | None = None
    depth: int = 0
    text: str = ""
    tokens: int = 0
    score: float | None = None
    state: str = "kept"
    finish: str | None = None


class RunTree(Reply):
    """A run's tree as it stands; `chosen` are the ids of the answers, best first."""

    run_id: str = ""
    state: str = ""
    nodes: list[Node]
    chosen: list[int] = Field(default_factory=list)
    selections: list[dict[str, Any]] = Field(default_factory=list)
    stop_reason: str | None = None


class Strategy(Reply):
    """A strategy that requests may name; `params` is a JSON Schema."""

    name: str
    description: str = ""
    params: dict[str, Any] = Field(default_factory=dict)
    requires: list[str] = Field(default_factory=list)
    models: list[str] = Field(default_factory=list)


class Completion(ChatCompletion):
    """OpenAI's chat completion with bough's account of it."""

    bough: BoughReply

    @property
    def text(self) -> str:
        """The best answer."""
        return self.choices[0].message.content or ""


class Chunk(ChatCompletionChunk):
    """OpenAI's chunk; `bough` is in the last before usage, and in events that were asked for."""

    bough: BoughReply | EventInStream | None = None

    @property
    def text(self) -> str:
        """What this chunk adds to the best answer."""
        return "".join(choice.delta.content or "" for choice in self.choices if choice.index == 0)
