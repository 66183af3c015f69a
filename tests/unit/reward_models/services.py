"""A scoring service and a judging model for tests, on loopback, that answer by a rule."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tests.unit.loadtests.peer import running_app


def worth(text: str) -> float:
    """What the rule says: sums that hold are good, in 0…1."""
    sums = re.findall(r"(\d+)([+-])(\d+)=(\d+)", text)
    right = [int(a) + int(f"{sign}{b}") == int(c) for a, sign, b, c in sums]
    return (1 + sum(right)) / (2 + len(right))


@dataclass
class Service:
    """What it was asked, and how it fails.

    Attributes:
        failures: Statuses of the next replies, before it answers again.
        refuses: Texts that hold this are 422.
        garbles: Texts that hold this get a reply without a value.
        says: What the judging model replies instead of its verdict.
        knows_logprobs: Whether the judging model takes `logprobs`.
    """

    failures: list[int] = field(default_factory=list)
    refuses: str = "\0"
    garbles: str = "\0"
    says: str | None = None
    knows_logprobs: bool = True
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The service's base URL."""
    app = FastAPI()

    @app.post("/{route:path}")
    async def answer(route: str, request: Request) -> Response:
        body = await request.json()
        service.seen.append(body)
        service.keys.append(request.headers["authorization"])
        if service.failures:
            status = service.failures.pop(0)
            said = {"error": {"message": f"no, {request.headers['authorization']}"}}
            return JSONResponse(said, status, headers={"retry-after-ms": "1"})
        return _verdict(service, route, body)

    with running_app(app) as url:
        yield url


def _verdict(service: Service, route: str, body: dict[str, Any]) -> Response:
    if service.refuses in json.dumps(body, ensure_ascii=False):
        return JSONResponse({"error": {"message": "cannot read this"}}, 422)
    if route == "chat/completions":
        return _judgement(service, body)
    if route == "rerank":
        rows = [
            {"index": at, "relevance_score": worth(text)}
            for at, text in enumerate(body["documents"])
        ]
        return JSONResponse({"results": sorted(rows, key=lambda row: -row["relevance_score"])})
    if route == "v1/score":
        values = [worth(text) for text in body["text_2"]]
        return JSONResponse({"data": [{"index": i, "score": one} for i, one in enumerate(values)]})
    text = body.get("text", body.get("answer", ""))
    if service.garbles in text:
        return JSONResponse({"value": "high"})
    steps = body.get("steps", [])
    values = [worth("".join(steps[: at + 1])) for at in range(len(steps))]
    return JSONResponse({"value": worth(text), "steps": values, "deep": {"scores": [worth(text)]}})


def _judgement(service: Service, body: dict[str, Any]) -> Response:
    if "logprobs" in body and not service.knows_logprobs:
        return JSONResponse({"error": {"message": "logprobs are not supported"}}, 400)
    material = body["messages"][1]["content"]
    found = re.search(r"<<<answer (\w+)>>>\n(.*)\n<<<end of answer \1>>>", material, re.DOTALL)
    assert found is not None
    value = worth(found.group(2))
    choice: dict[str, Any] = {"message": {"content": f"Let me see.\nScore: {round(value * 10)}"}}
    if "one word" in body["messages"][0]["content"]:
        choice = {"message": {"content": "Yes" if value >= 0.5 else "No"}}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [_first_token(value)]}
    if service.says is not None:
        choice = {"message": {"content": service.says}}
    return JSONResponse({"choices": [choice], "usage": {"total_tokens": 90}})


def _first_token(value: float) -> dict[str, Any]:
    from math import log

    share = {"Yes": 0.8 * value, "yes": 0.1 * value, "No": 0.9 * (1 - value)}
    tops = [{"token": name, "logprob": log(max(mass, 1e-9))} for name, mass in share.items()]
    return {"token": "Yes" if value >= 0.5 else "No", "logprob": -0.1, "top_logprobs": tops}
