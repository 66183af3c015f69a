"""The reply on the wire: OpenAI's completion and chunks, usage, and the `bough` object.

Pure functions of a finished run, or of the piece of it that is decided. The streamed deltas of an
answer concatenate to the `content` that the same run gives unstreamed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from engines.base import Engine, TokenIds, TopLogps
from search.budget import Spend
from search.run import Answer, Piece, Result
from search.tree import SearchTree
from server.resolve import Plan

_LOWEST_LOGP: Final = -9999.0
"""Stands for minus infinity, which JSON does not have; OpenAI's own choice."""

_SUMMARY: Final = ("id", "parent", "depth", "tokens", "score", "state", "finish")


class Reply:
    """Builds everything that is sent for one request.

    Args:
        plan: The request, resolved.
        created: Unix seconds; now by default.
    """

    def __init__(self, plan: Plan, created: int | None = None) -> None:
        self._plan = plan
        self._engine = plan.served.engine
        self._created = int(time.time()) if created is None else created
        options = plan.wire.stream_options
        self._has_usage = options is not None and bool(options.include_usage)

    def completion(self, result: Result, tree: SearchTree) -> dict[str, Any]:
        """The whole reply of an unstreamed request."""
        return {
            **self._head("chat.completion"),
            "choices": [self._choice(*one) for one in enumerate(result.answers)],
            "usage": self._usage(result),
            "bough": self._bough(result, tree),
        }

    def cached(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """A stored reply, sent again: the same answer and ledger, marked as cached."""
        return {
            **stored,
            **self._head("chat.completion"),
            "bough": {**stored["bough"], "cached": True},
        }

    def role_chunk(self, index: int) -> dict[str, Any]:
        """The first chunk of an answer."""
        return self._chunk([_delta(index, {"role": "assistant", "content": "", "refusal": None})])

    def piece_chunk(self, piece: Piece) -> dict[str, Any] | None:
        """A decided piece of the best answer, or None when it has nothing to show."""
        logprobs = self._logprobs(piece.token_ids, piece.logps, piece.top_logps)
        if not piece.text and not (logprobs and logprobs["content"]):
            return None
        return self._chunk([_delta(0, {"content": piece.text}, logprobs=logprobs)])

    def event_chunk(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """A search event as a chunk without choices, which every client takes for a chunk."""
        return self._chunk([]) | {"bough": {"event": event}}

    def last_chunks(
        self, completion: Mapping[str, Any], *, streamed: int
    ) -> Iterator[dict[str, Any]]:
        """What follows the streamed answers: the others, the finishes, `bough`, usage.

        Args:
            completion: The whole reply.
            streamed: How many of the answers were streamed before, from the first on; search events
                went along with the first.
        """
        bough = dict(completion["bough"])
        events = bough.pop("events", ())
        if not streamed:
            yield from map(self.event_chunk, events)
        for choice in completion["choices"][streamed:]:
            yield from self._answer_chunks(choice)
        for choice in completion["choices"]:
            yield self._chunk([_delta(choice["index"], {}, finish=choice["finish_reason"])])
        yield self._chunk([]) | {"bough": bough}
        if self._has_usage:
            yield self._chunk([]) | {"usage": completion["usage"]}

    def _answer_chunks(self, choice: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        index, content = choice["index"], choice["message"]["content"]
        yield self.role_chunk(index)
        yield self._chunk([_delta(index, {"content": content}, logprobs=choice["logprobs"])])

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._plan.run.run_id.replace("run_", "chatcmpl-"),
            "object": kind,
            "created": self._created,
            "model": self._plan.served.model_id,
            "system_fingerprint": None,
        }

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head("chat.completion.chunk"), "choices": choices}
        return chunk | {"usage": None} if self._has_usage else chunk

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.content, "refusal": None},
            "logprobs": self._logprobs(answer.token_ids, answer.logps, answer.top_logps),
            "finish_reason": answer.finish_reason,
        }

    def _usage(self, result: Result) -> dict[str, Any]:
        spent = result.spent
        answer_tokens = sum(answer.num_tokens for answer in result.answers)
        completion_tokens = max(spent.generated_tokens, answer_tokens)
        further = [asdict(one) for one in result.further]
        return {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": result.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": min(result.tree.cached_tokens, result.prompt_tokens)
            },
            "completion_tokens_details": {"reasoning_tokens": completion_tokens - answer_tokens},
            "bough": {
                "generator": {
                    "model": self._plan.served.model_id,
                    "calls": spent.candidates,
                    "prompt_tokens": result.prompt_tokens,
                    "cached_tokens": result.tree.cached_tokens,
                    "generated_tokens": spent.generated_tokens,
                    "nfe": spent.nfe,
                },
                "reward_model": {
                    "model": self._plan.judge_id,
                    "calls": spent.reward_calls - sum(one.calls for one in result.further),
                    "tokens": spent.reward_tokens - sum(one.tokens for one in result.further),
                    "dropped": spent.dropped,
                },
                **({"further_reward_models": further} if further else {}),
                "wasted_tokens": spent.wasted_tokens,
                "wall_ms": spent.wall_ms,
            },
        }

    def _bough(self, result: Result, tree: SearchTree) -> dict[str, Any]:
        returns = self._plan.returns
        spent = asdict(result.spent)
        names = (
            "generated_tokens",
            "candidates",
            "reward_calls",
            "reward_tokens",
            "nfe",
            "wall_ms",
        )
        shown = result.candidates[: returns.candidates or 0]
        block: dict[str, Any] = {
            "run_id": result.run_id,
            "strategy": self._plan.asked,
            "resolved": result.resolved,
            "stop_reason": result.stop_reason,
            "seed": result.seed,
            "score": result.score,
            "cached": False,
            "spent": {name: spent[name] for name in names},
            "tree": asdict(result.tree),
            "candidates": [_candidate(answer) for answer in shown],
            "ignored": self._ignored(result),
        }
        if self._plan.run.sampling.drafter is not None or result.spent.drafted_tokens:
            block["drafts"] = _drafts(result.spent)
        if returns.trace in ("summary", "full"):
            block["trace"] = _trace(tree, is_full=returns.trace == "full")
        if returns.events:
            block["events"] = [event.to_json() for event in tree.events()]
        return block

    def _ignored(self, result: Result) -> list[str]:
        """Also `n`, where fewer distinct answers were found, and a judge that was never asked."""
        names = [*self._plan.ignored, *result.ignored]
        bough = self._plan.wire.bough
        if bough is not None and bough.reward_model is not None and not result.spent.reward_calls:
            names.append("bough.reward_model")
        if len(result.answers) < self._plan.run.answers:
            names.append("n")
        return list(dict.fromkeys(names))

    def _logprobs(
        self, ids: TokenIds, logps: Sequence[float], tops: Sequence[TopLogps] | None
    ) -> dict[str, Any] | None:
        if not self._plan.wire.logprobs:
            return None
        most = self._plan.wire.top_logprobs or 0
        rows = []
        for index, (token, logp) in enumerate(zip(ids, logps, strict=True)):
            others = tops[index][:most] if tops else ()
            listed = [_token(self._engine, *other) for other in others]
            rows.append({**_token(self._engine, token, logp), "top_logprobs": listed})
        return {"content": rows, "refusal": None}


def _drafts(spent: Spend) -> dict[str, float]:
    """What a drafter did for a run; every step says one token beside those accepted."""
    steps = spent.generated_tokens - spent.accepted_tokens
    return {
        "drafted": spent.drafted_tokens,
        "accepted": spent.accepted_tokens,
        "accepted_per_step": spent.accepted_tokens / steps if steps > 0 else 0.0,
    }


def compact(value: Mapping[str, Any]) -> str:
    """JSON without line breaks."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _delta(
    index: int,
    delta: Mapping[str, Any],
    *,
    finish: str | None = None,
    logprobs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _token(engine: Engine, token: int, logp: float) -> dict[str, Any]:
    text = engine.decode((token,))
    # U+FFFD stands for part of a character, whose bytes engines do not tell
    data = None if "\ufffd" in text else list(text.encode("utf-8", "replace"))
    return {"token": text, "logprob": max(logp, _LOWEST_LOGP), "bytes": data}


def _candidate(answer: Answer) -> dict[str, Any]:
    return {
        "content": answer.content,
        "score": answer.score,
        "finish_reason": answer.finish_reason,
    }


def _trace(tree: SearchTree, *, is_full: bool) -> dict[str, Any]:
    snapshot = tree.snapshot()
    if is_full:
        return snapshot
    nodes = [{name: node.get(name) for name in _SUMMARY} for node in snapshot["nodes"]]
    return {**snapshot, "nodes": nodes}
