"""`bough chat`: a conversation on the terminal, with a running server or with one of its own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

import httpx

from server.errors import ServerError
from server.serve import BackgroundServer
from server.settings import Loaded


class ChatFailed(ServerError):
    """The server refused, or cannot be reached."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `bough chat`, beside the settings of a server of its own."""
    parser.add_argument("message", nargs="*", help="one message; without it, a conversation")
    parser.add_argument("--url", help="a running server; without it, one is started for this chat")
    parser.add_argument("--model", help="which model; the server's first by default")
    parser.add_argument("--strategy", help="which strategy; the model's own by default")
    parser.add_argument("--seed", type=int, help="seed of the run")
    parser.add_argument("--max-tokens", type=int, help="longest answer, tokens")
    parser.add_argument(
        "--param", action="append", default=[], metavar="NAME=VALUE", help="strategy parameter"
    )


def run(given: argparse.Namespace, loaded: Loaded) -> int:
    """Talk until the input ends.

    Raises:
        ChatFailed: The first message could not be answered, or the only one.
    """
    if given.url:
        return _talk(given, given.url)
    with BackgroundServer(loaded.settings) as url:
        return _talk(given, url)


def _talk(given: argparse.Namespace, url: str) -> int:
    with httpx.Client(base_url=url, timeout=httpx.Timeout(10, read=None)) as client:
        if given.message:
            _answer(client, given, [_user(" ".join(given.message))])
            return 0
        messages: list[dict[str, str]] = []
        for line in _lines():
            messages.append(_user(line))
            try:
                answer = _answer(client, given, messages)
            except ChatFailed as err:
                print(err, file=sys.stderr)
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})
    return 0


def _lines() -> Iterator[str]:
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line:
            yield line


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _answer(client: httpx.Client, given: argparse.Namespace, messages: list[dict[str, str]]) -> str:
    """Print the answer as it comes, and below it what it took; returns the answer."""
    parts: list[str] = []
    try:
        for chunk in _chunks(client, _request(client, given, messages)):
            for choice in chunk["choices"]:
                text = choice["delta"].get("content") or ""
                print(text, end="", flush=True)
                parts.append(text)
            if "bough" in chunk:
                print(f"\n[{_footer(chunk['bough'])}]")
    except httpx.HTTPError as err:
        raise ChatFailed(f"{client.base_url}: {err}") from err
    return "".join(parts)


def _request(
    client: httpx.Client, given: argparse.Namespace, messages: list[dict[str, str]]
) -> dict[str, Any]:
    model = given.model
    if model is None:
        response = client.get("/v1/models")
        _check(response)
        model = response.json()["data"][0]["id"]
    bough = {"strategy": given.strategy, "params": dict(map(_param, given.param))}
    body = {
        "model": model,
        "messages": messages,
        "stream": True,
        "seed": given.seed,
        "max_completion_tokens": given.max_tokens,
        "bough": {name: value for name, value in bough.items() if value},
    }
    return {name: value for name, value in body.items() if value is not None}


def _param(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ChatFailed(f"--param {text}: write NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _chunks(client: httpx.Client, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            response.read()
        _check(response)
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise ChatFailed(chunk["error"]["message"])
                yield chunk


def _check(response: httpx.Response) -> None:
    if response.status_code != 200:
        try:
            said = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = response.text[:200]
        raise ChatFailed(f"{response.status_code}: {said}")


def _footer(bough: dict[str, Any]) -> str:
    spent = bough["spent"]
    score = "" if bough["score"] is None else f", score {bough['score']:.3f}"
    return (
        f"{bough['resolved']}, seed {bough['seed']}{score}, {spent['generated_tokens']} tokens, "
        f"{spent['wall_ms']} ms, {bough['run_id']}"
    )
