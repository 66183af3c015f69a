"""A judge behind any HTTP service that answers JSON with a number.

The plain shape is one request per candidate,

    POST {"model", "messages": [...], "text": "the answer", "steps": ["...", ...]}
    200  {"value": 0.7, "steps": [0.9, 0.7]}          "steps" only from process judges

and `shape` knows two that score many texts against one question: ``rerank`` (``query`` and
``documents``, ``results[].relevance_score``: Jina, Cohere, vLLM, text-embeddings-inference) and
``score`` (``text_1`` and ``text_2``, ``data[].score``: vLLM). The names of fields and the paths of
values can be set where a service has others. What cannot be read, or lies outside `low`…`high`, is
NaN for that candidate alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from engines.base import ChatMessage, Health
from reward_models.base import Candidate, Claim, RewardInfo, RewardKind, RewardStats, Score
from reward_models.claims import EmptyClaim
from reward_models.remote import ItemFailed, Remote, RemoteOptions, judged_together

_NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "plain": {"messages": "messages", "text": "text", "steps": "steps"},
    "rerank": {"question": "query", "texts": "documents"},
    "score": {"question": "text_1", "texts": "text_2"},
}
"""What a body holds, and how each shape calls it."""

_PATHS: Final[Mapping[str, tuple[str, str]]] = {
    "plain": ("", "value"),
    "rerank": ("results", "relevance_score"),
    "score": ("data", "score"),
}
"""Where each shape has its results, and in each of them the value."""


class HttpOptions(RemoteOptions):
    """How to reach the service, and how it speaks.

    Attributes:
        path: Of the requests, under `base_url`.
        shape: ``plain``, ``rerank`` or ``score``; see the module's docstring.
        kind: ``process`` where the service values every step; plain shape only.
        low: Smallest value it can return.
        high: Largest value it can return.
        fields: Names of the body's fields where they differ, by the names of the plain shape
            (`messages`, `text`, `steps`), or `question` and `texts` for the others.
        results_path: Dotted path of the list of results, for shapes that have one.
        value_path: Dotted path of the value, in the reply or in each result; numbers index lists.
        steps_path: Dotted path of the steps' values.
        extra: Fields that every body gets as they are.
        max_batch: Most texts in one request, for shapes that take several.
    """

    path: str = "/score"
    shape: Literal["plain", "rerank", "score"] = "plain"
    kind: Literal["outcome", "process"] = "outcome"
    low: float = 0.0
    high: float = 1.0
    fields: dict[str, str] = Field(default_factory=dict)
    results_path: str | None = None
    value_path: str | None = None
    steps_path: str = "steps"
    extra: dict[str, Any] = Field(default_factory=dict)
    max_batch: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> HttpOptions:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.kind == "process" and self.shape != "plain":
            raise ValueError(f"shape {self.shape} values no steps: use plain")
        unknown = sorted(set(self.fields) - set(_NAMES[self.shape]))
        if unknown:
            known = ", ".join(_NAMES[self.shape])
            raise ValueError(f"fields: a {self.shape} body has no {unknown[0]!r}; it has {known}")
        return self

    def name(self, what: str) -> str:
        """What the service calls a field."""
        return self.fields.get(what, _NAMES[self.shape][what])


class HttpJudge:
    """Asks the service; see the module's docstring.

    Args:
        model_id: The id on the wire.
        model: The service's own name for the model; empty where it needs none.
        options: How to reach it.
    """

    def __init__(self, model_id: str, model: str, options: HttpOptions) -> None:
        kind = RewardKind.PROCESS if options.kind == "process" else RewardKind.OUTCOME
        self.info = RewardInfo(model_id, kind, options.low, options.high)
        self._model = model
        self._options = options
        self._remote = Remote(model_id, options)

    @property
    def health(self) -> Health:
        """See `Remote.health`."""
        return self._remote.health

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        """A claim that holds nothing: the service keeps its own cache."""
        return EmptyClaim()

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """Ask for all at once.

        Raises:
            RewardUnavailable: The service failed for every one of them.
        """
        self._remote.check_open()
        parts = self._parts(batch)
        if self._options.shape == "plain":
            asked = [self._ask_one(part[0]) for part in parts]
        else:
            asked = [self._ask_many(part) for part in parts]
        results = await judged_together(asked)
        scores = [Score(math.nan)] * len(batch)
        at = 0
        for part, found in zip(parts, results, strict=True):
            scores[at : at + len(part)] = found or [Score(math.nan)] * len(part)
            at += len(part)
        return scores

    def stats(self) -> RewardStats:
        """All zero: the cache is the service's."""
        return RewardStats()

    async def aclose(self) -> None:
        """Further scores raise RewardUnavailable."""
        await self._remote.aclose()

    def _parts(self, batch: Sequence[Candidate]) -> list[list[Candidate]]:
        """What goes into one request: one candidate, or neighbours with the same question."""
        most = 1 if self._options.shape == "plain" else self._options.max_batch
        parts: list[list[Candidate]] = []
        for candidate in batch:
            last = parts[-1] if parts else []
            if last and len(last) < most and last[0].messages == candidate.messages:
                last.append(candidate)
            else:
                parts.append([candidate])
        return parts

    async def _ask_one(self, candidate: Candidate) -> list[Score]:
        name = self._options.name
        body = {
            **self._base(),
            name("messages"): list(candidate.messages),
            name("text"): candidate.text,
            name("steps"): list(candidate.steps),
        }
        try:
            reply = await self._remote.post(self._options.path, body)
        except ItemFailed:
            return [Score(math.nan)]
        return [self._read(reply, len(candidate.steps))]

    async def _ask_many(self, part: Sequence[Candidate]) -> list[Score]:
        name = self._options.name
        body = {
            **self._base(),
            name("question"): question_of(part[0].messages),
            name("texts"): [candidate.text for candidate in part],
        }
        try:
            reply = await self._remote.post(self._options.path, body)
        except ItemFailed:
            if len(part) == 1:
                return [Score(math.nan)]
            # one text that cannot be read must not cost the others their values
            return [score for one in part for score in await self._ask_many([one])]
        results_path, _ = _PATHS[self._options.shape]
        rows = at_path(reply, self._options.results_path or results_path)
        scores = [Score(math.nan)] * len(part)
        for place, row in enumerate(rows if isinstance(rows, list) else ()):
            index = row.get("index", place) if isinstance(row, Mapping) else place
            if isinstance(index, int) and 0 <= index < len(part):
                scores[index] = self._read(row, 0)
        return scores

    def _base(self) -> dict[str, Any]:
        return {**({"model": self._model} if self._model else {}), **self._options.extra}

    def _read(self, reply: Any, num_steps: int) -> Score:
        _, usual = _PATHS[self._options.shape]
        value = self._number(at_path(reply, self._options.value_path or usual))
        if self._options.kind == "outcome":
            return Score(value)
        listed = at_path(reply, self._options.steps_path)
        if not isinstance(listed, list) or len(listed) != num_steps:
            return Score(math.nan)
        steps = tuple(self._number(one) for one in listed)
        return Score(steps[-1], steps) if steps else Score(value)

    def _number(self, found: Any) -> float:
        """A value in range, else NaN."""
        if isinstance(found, bool) or not isinstance(found, int | float):
            return math.nan
        return float(found) if self._options.low <= found <= self._options.high else math.nan


def open_judge(model_id: str, model: str, options: Mapping[str, Any]) -> HttpJudge:
    """The judge for settings; nothing is asked before the first score.

    Raises:
        RewardLoadError: An option is wrong.
    """
    return HttpJudge(model_id, model, HttpOptions.parse(model_id, options))


def question_of(messages: Sequence[ChatMessage]) -> str:
    """The last message of a user, which is what an answer is compared with."""
    texts = [str(one.get("content") or "") for one in messages if one.get("role") == "user"]
    return texts[-1] if texts else ""


def at_path(reply: Any, path: str) -> Any:
    """What a JSON value has at a dotted path; None where it has nothing there."""
    found = reply
    for key in path.split(".") if path else ():
        if isinstance(found, Mapping):
            found = found.get(key)
        elif isinstance(found, list) and key.lstrip("-").isdigit():
            at = int(key)
            found = found[at] if -len(found) <= at < len(found) else None
        else:
            return None
    return found
