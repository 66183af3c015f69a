"""Talking to a server with OpenAI's schema: asking what it is, streaming, and what went wrong.

Requests are opened by OpenAI's own client: it tries again, before the first byte only, on refused
connections, timeouts, 408, 409, 429 and 5xx, backs off, and honours Retry-After. After the first
byte nothing is tried again. The key is in no message.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

import httpx
import openai
from openai import AsyncOpenAI, AsyncStream, OpenAI

from engines.errors import (
    ContextLengthExceeded,
    EngineClosed,
    EngineError,
    EngineOverloaded,
    ModelLoadError,
    UpstreamRefused,
)
from engines.openai_options import NO_KEY, OpenAIOptions

_MAX_QUOTE: Final = 300
_FIRST_WAIT_S: Final = 0.25
_MAX_WAIT_S: Final = 5.0
_RETRY_AFTER_S: Final = 5  # where an overloaded upstream does not say
_CONTEXT: Final = re.compile(r"context.?(length|size|window)|maximum context|too many tokens", re.I)
_SIZES: Final = (
    re.compile(r"(\d+) input tokens"),
    re.compile(r"prompt (?:contains|has)(?: at least)? (\d+)"),
    re.compile(r"(\d+) (?:in|tokens from) the (?:messages|input)"),
    re.compile(r"resulted in (\d+) tokens"),
    re.compile(r"request \((\d+) tokens\)"),
)
"""Where upstreams put the prompt's size in a refusal."""


class Upstream:
    """One server and one of its models. Connections are opened when needed.

    Args:
        model_id: The id on our wire, for messages.
        model: The model's id at the upstream.
        options: How to reach it.
    """

    def __init__(self, model_id: str, model: str, options: OpenAIOptions) -> None:
        self.model_id = model_id
        self.model = model
        self._key = options.key
        self._url = options.base_url
        self._timeout = openai.Timeout(options.idle_timeout_s, connect=options.connect_timeout_s)
        self._max_retries = options.max_retries
        self._client = AsyncOpenAI(
            base_url=options.base_url,
            api_key=self._key,
            timeout=self._timeout,
            max_retries=options.max_retries,
        )
        _forget_account(self._client)
        self._returning: asyncio.Task[None] | None = None

    @property
    def is_here(self) -> bool:
        """Whether it answers, as far as is known; a lost upstream is asked until it does."""
        return self._returning is None or self._returning.done()

    def stream(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of one streamed answer; closing the iterator drops the connection.

        Raises:
            EngineOverloaded: 429, however often it was tried.
            ContextLengthExceeded: The upstream says that the prompt is too long.
            UpstreamRefused: Any other 4xx.
            EngineClosed: No connection, no answer in time, 5xx, or the stream broke off.
        """
        return self._stream(path, {"model": self.model, **body, "stream": True})

    async def _stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        try:
            chunks = await self._client.post(
                path, cast_to=object, body=body, stream=True, stream_cls=AsyncStream[object]
            )
            async with chunks, aclosing(aiter_of(chunks)) as items:
                async for chunk in items:
                    if isinstance(chunk, dict):
                        self._check(chunk)
                        yield chunk
        except (openai.OpenAIError, httpx.HTTPError, ValueError) as err:
            why = self.explained(err)
            if isinstance(why, EngineClosed) and self.is_here:
                self._returning = asyncio.create_task(self._await_return())
            raise why from err

    async def _await_return(self) -> None:
        """Ask until there is an answer, of whatever kind."""
        wait_s = _FIRST_WAIT_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)
            try:
                await self._client.with_options(max_retries=0).get("/models", cast_to=object)
            except openai.APIStatusError as err:
                if err.status_code < 500:
                    return
            except (openai.OpenAIError, httpx.HTTPError, ValueError):
                continue
            else:
                return

    def _check(self, chunk: Mapping[str, Any]) -> None:
        """Refuse a chunk that is an error, where the client has not done so already."""
        error = chunk.get("error")
        if error:
            said = error.get("message") if isinstance(error, Mapping) else error
            raise ValueError(str(said))

    def entry(self) -> Mapping[str, Any] | None:
        """What `/v1/models` says of the model, asked now; None where there is no such list.

        Raises:
            ModelLoadError: No answer, no access, or the list has other models only.
        """
        found = self._ask("/models", None)
        listed = found.get("data") if isinstance(found, dict) else None
        if not isinstance(listed, list):
            return None
        entries = [one for one in listed if isinstance(one, dict)]
        mine = [one for one in entries if one.get("id") == self.model]
        if entries and not mine:
            names = ", ".join(sorted(str(one.get("id")) for one in entries)[:12])
            raise ModelLoadError(
                self.model_id, f"engine.model {self.model!r} is not at {self._url}; it has {names}"
            )
        return mine[0] if mine else None

    def names_tokens(self) -> bool:
        """Whether chat answers with log-probabilities; costs one token.

        Raises:
            ModelLoadError: No answer, or no access.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 1,
            "logprobs": True,
        }
        found = self._ask("/chat/completions", body)
        try:
            first = found["choices"][0]["logprobs"]["content"][0]  # type: ignore[index]
        except (LookupError, TypeError):
            return False
        return isinstance(first, dict) and "logprob" in first

    async def aclose(self) -> None:
        """Close every connection; idempotent."""
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.wait([self._returning])
        await self._client.close()

    def explained(self, err: Exception) -> EngineError:
        """What the failure of a request means here; never holds the key."""
        if isinstance(err, openai.APIStatusError):
            return self._refused(err)
        if isinstance(err, openai.APIError) and _CONTEXT.search(self._said(err)):
            return self._too_long(err)
        what = "gave no answer in time" if isinstance(err, openai.APITimeoutError) else "broke off"
        return EngineClosed(f"the upstream of model {self.model_id!r} {what}: {self._said(err)}")

    def _refused(self, err: openai.APIStatusError) -> EngineError:
        status = err.status_code
        if status == 429:
            return EngineOverloaded(self.model_id, _retry_after(err.response.headers))
        if status >= 500:
            return EngineClosed(
                f"the upstream of model {self.model_id!r} answers {status}: {self._said(err)}"
            )
        if status in (401, 403):  # what it says may quote the key
            return UpstreamRefused(
                self.model_id,
                f"{status}, no access: check engine.options.api_key, api_key_env or api_key_file",
            )
        if status == 404:
            return UpstreamRefused(
                self.model_id,
                f"404, it has no model {self.model!r} or no such route at {self._url}: check "
                "engine.model and engine.options.base_url",
            )
        if err.code == "context_length_exceeded" or _CONTEXT.search(self._said(err)):
            return self._too_long(err)
        return UpstreamRefused(self.model_id, f"{status}, {self._said(err)}")

    def _too_long(self, err: openai.APIError) -> ContextLengthExceeded:
        said = err.message
        sizes = [int(found.group(1)) for size in _SIZES if (found := size.search(said))]
        limits = [int(one) for one in re.findall(r"\d+", said) if 1 < int(one) < 1 << 31]
        tokens = sizes[0] if sizes else max(limits, default=0)
        others = [one for one in limits if one <= tokens and one not in sizes]
        return ContextLengthExceeded(tokens, max(others, default=tokens))

    def _said(self, err: Exception) -> str:
        """The upstream's own words, one short line, the key blotted out."""
        cause = err.__cause__ if isinstance(err, openai.APIConnectionError) else None
        text = " ".join(str(cause or err or type(err).__name__).split())
        return (text if self._key == NO_KEY else text.replace(self._key, "***"))[:_MAX_QUOTE]

    def _ask(self, path: str, body: dict[str, Any] | None) -> object:
        """One question before the server starts; None where there is no such route."""
        with OpenAI(
            base_url=self._url,
            api_key=self._key,
            timeout=self._timeout,
            max_retries=self._max_retries,
        ) as client:
            _forget_account(client)
            try:
                if body is None:
                    return client.get(path, cast_to=object)
                return client.post(path, cast_to=object, body=body)
            except openai.APIStatusError as err:
                if err.status_code in (400, 404, 405, 422):
                    return None
                why = self.explained(err)
            except (openai.OpenAIError, httpx.HTTPError, ValueError) as err:
                why = self.explained(err)
        raise ModelLoadError(
            self.model_id,
            f"{self._url}{path}: {why}; start it first, or state options.dialect, context_tokens "
            "and capabilities so that nothing is asked",
        ) from why


async def aiter_of(chunks: AsyncStream[object]) -> AsyncGenerator[object]:
    """The chunks, as something that can be closed."""
    async for chunk in chunks:
        yield chunk


def _forget_account(client: OpenAI | AsyncOpenAI) -> None:
    """The client reads account names from the environment; they belong to no upstream of ours."""
    client.organization = None
    client.project = None


def _retry_after(headers: Mapping[str, str]) -> int:
    try:
        return max(1, round(float(headers.get("retry-after", ""))))
    except (ValueError, OverflowError):
        return _RETRY_AFTER_S
