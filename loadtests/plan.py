"""What a load run sends, all of it decided before the first request."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from loadtests.exchange import Asked

MAX_PROMPTS: Final = 1000


class PlanError(ValueError):
    """Arguments or prompts that make no plan; the message says which."""


@dataclass(frozen=True)
class Plan:
    """Every request of a run, in order.

    Attributes:
        times_s: Scheduled arrivals.
        mix: Share of each strategy; need not add up to 1.
        prompts: Messages, used in turn.
        model: Model id; every request names it.
        seed: Of the choice of strategies; request i asks for seed + i.
        params: Strategy parameters, by strategy.
        options: More fields of every request.
        grace_s: How long to wait after the last arrival.
    """

    times_s: Sequence[float]
    mix: Mapping[str, float]
    prompts: Sequence[Sequence[Mapping[str, Any]]]
    model: str
    seed: int = 0
    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    grace_s: float = 60.0

    def requests(self) -> Iterator[Asked]:
        """The requests in order of arrival."""
        rng = random.Random(self.seed)
        names, weights = list(self.mix), list(self.mix.values())
        for index, scheduled_s in enumerate(self.times_s):
            strategy = rng.choices(names, weights)[0]
            yield Asked(index, strategy, scheduled_s, self._body(index, strategy))

    def _body(self, index: int, strategy: str) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": list(self.prompts[index % len(self.prompts)]),
            "seed": self.seed + index,
            **self.options,
            "stream": True,
            "stream_options": {"include_usage": True},
            "bough": {
                "strategy": strategy,
                "params": dict(self.params.get(strategy, {})),
                "cache": False,
            },
        }


def parse_mix(text: str) -> dict[str, float]:
    """``single=0.5,ets=0.5`` or ``single,ets`` as shares.

    Raises:
        PlanError: A name twice or missing, or a share that is not above 0.
    """
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, has_share, share = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(share) if has_share else 1.0
        except ValueError:
            weight = 0.0
        if not name or name in mix or not 0 < weight < float("inf"):
            raise PlanError(f"mix {part!r}: write NAME=SHARE, each name once, shares above 0")
        mix[name] = weight
    return mix


def parse_params(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``ets={"width": 8}`` of each strategy.

    Raises:
        PlanError: Not NAME=JSON-object.
    """
    params: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, _, source = text.partition("=")
        try:
            value = json.loads(source)
        except ValueError:
            value = None
        if not name or not isinstance(value, dict):
            raise PlanError(f'params {text!r}: write STRATEGY={{"name": value}}')
        params[name] = value
    return params


def check_target(url: str, allow_remote: bool) -> None:
    """Refuse to load a machine that is not this one unless told to.

    Raises:
        PlanError: Not an http URL, or not a loopback address without `allow_remote`.
    """
    try:
        target = httpx.URL(url)
    except httpx.InvalidURL as err:
        raise PlanError(f"url {url!r}: {err}") from err
    if target.scheme not in ("http", "https") or not target.host:
        raise PlanError(f"url {url!r}: give one such as http://127.0.0.1:8000")
    is_loopback = target.host == "localhost"
    with contextlib.suppress(ValueError):
        is_loopback = is_loopback or ipaddress.ip_address(target.host).is_loopback
    if not (is_loopback or allow_remote):
        raise PlanError(f"{target.host} is not this machine; --allow-remote loads it all the same")


def load_prompts(path: Path | None, seed: int, requests: int) -> list[list[dict[str, Any]]]:
    """Messages from a JSONL file with a `messages` field, or held-out word problems.

    Raises:
        PlanError: No such file, no prompts in it, or lines without messages.
    """
    if path is None:
        command = [sys.executable, "-m", "models.tasks", "sums", "--split", "test"]
        command += ["--seed", str(seed), "--n", str(min(max(requests, 1), MAX_PROMPTS))]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise PlanError(f"no prompts from models.tasks: {made.stderr[-500:]}")
        lines = made.stdout.splitlines()
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as err:
            raise PlanError(f"prompts: {err}") from err
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            messages = json.loads(line)["messages"]
        except (ValueError, KeyError, TypeError) as err:
            raise PlanError(f"prompts, line {number}: no JSON object with messages") from err
        prompts.append(messages)
    if not prompts:
        raise PlanError("there are no prompts")
    return prompts
