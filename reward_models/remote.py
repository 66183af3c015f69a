"""What judges behind HTTP share: one JSON service, its options, and what its failures mean.

Requests go through OpenAI's own client, which works for any JSON service: it tries again on refused
connections, timeouts, 408, 409, 429 and 5xx, backs off, and honours Retry-After. A judgement is
small and asked for at once, so a reply that broke off is asked for again too.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import httpx
import openai
from openai import AsyncOpenAI
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from engines.base import Health
from reward_models.base import Score
from reward_models.errors import RewardLoadError, RewardUnavailable

_ITEM_STATUSES: Final = (400, 413, 422)
_MAX_QUOTE: Final = 300
_FIRST_WAIT_S: Final = 0.25
_MAX_WAIT_S: Final = 5.0


class ItemFailed(Exception):
    """One request that the service understood and could not judge; others may do better."""


class RemoteOptions(BaseModel):
    """How to reach a judge.

    Attributes:
        base_url: Where the service is; paths are appended.
        api_key: The key itself; shown nowhere.
        api_key_env: The environment variable that holds it instead.
        api_key_file: A file that holds it instead.
        max_concurrency: Requests open at once; more wait.
        max_retries: Tries after the first.
        connect_timeout_s: To open a connection.
        timeout_s: Longest wait for an answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    base_url: str = Field(pattern=r"^https?://")
    api_key: SecretStr = SecretStr("")
    api_key_env: str = ""
    api_key_file: Path | None = None
    max_concurrency: int = Field(default=16, ge=1)
    max_retries: int = Field(default=2, ge=0, le=10)
    connect_timeout_s: float = Field(default=5.0, gt=0)
    timeout_s: float = Field(default=60.0, gt=0)

    @classmethod
    def parse(cls, model_id: str, options: Mapping[str, Any]) -> Self:
        """The options in settings.

        Raises:
            RewardLoadError: A value is missing, unknown or out of bounds; names the option.
        """
        try:
            return cls.model_validate(dict(options))
        except ValidationError as err:
            problem = err.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise RewardLoadError(
                f"{model_id}: options.{where}: {problem['msg']}; known: "
                f"{', '.join(cls.model_fields)}"
            ) from None  # the library's own message quotes the input, which may be a key

    def key(self, model_id: str) -> str:
        """The key to send; clients must send something.

        Raises:
            RewardLoadError: The variable or the file that should hold it does not.
        """
        if self.api_key_file is not None:
            try:
                return self.api_key_file.read_text("utf-8").strip()
            except (OSError, ValueError) as err:
                raise RewardLoadError(f"{model_id}: options.api_key_file: {err}") from err
        if self.api_key_env:
            found = os.environ.get(self.api_key_env, "")
            if not found:
                raise RewardLoadError(
                    f"{model_id}: options.api_key_env: the environment has no variable "
                    f"{self.api_key_env}: export the key"
                )
            return found
        return self.api_key.get_secret_value() or "none"


class Remote:
    """A JSON service. Connections are opened when needed.

    Args:
        model_id: The judge's id on our wire, for messages.
        options: How to reach it.
    """

    def __init__(self, model_id: str, options: RemoteOptions) -> None:
        self._model_id = model_id
        self._key = options.key(model_id)
        self._places = asyncio.Semaphore(options.max_concurrency)
        self._is_closed = False
        self._client = AsyncOpenAI(
            base_url=options.base_url,
            api_key=self._key,
            timeout=openai.Timeout(options.timeout_s, connect=options.connect_timeout_s),
            max_retries=options.max_retries,
        )
        # the client reads account names from the environment; they belong to no service of ours
        self._client.organization = None
        self._client.project = None
        self._returning: asyncio.Task[None] | None = None

    @property
    def health(self) -> Health:
        """Away from when the service failed until it has answered again, whatever it says."""
        if self._is_closed:
            return Health.DEAD
        is_here = self._returning is None or self._returning.done()
        return Health.READY if is_here else Health.AWAY

    def check_open(self) -> None:
        """Refuse after `aclose`.

        Raises:
            RewardUnavailable: It was closed.
        """
        if self._is_closed:
            raise RewardUnavailable(f"reward model {self._model_id!r} was closed")

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that answers a body.

        Raises:
            ItemFailed: The service refuses this body (400, 413, 422).
            RewardUnavailable: No access, no such route, no answer, or nothing but failures.
        """
        self.check_open()
        async with self._places:
            try:
                return await self._client.post(path, cast_to=object, body=dict(body))
            except openai.APIStatusError as err:
                if err.status_code in _ITEM_STATUSES:
                    raise ItemFailed(f"{err.status_code}: {self._said(err)}") from err
                # what is said of a key may quote it
                said = "no access" if err.status_code in (401, 403) else self._said(err)
                raise self._gone(f"answers {err.status_code}: {said}") from err
            except (openai.OpenAIError, httpx.HTTPError, ValueError) as err:
                raise self._gone(f"does not answer: {self._said(err)}") from err

    async def aclose(self) -> None:
        """Close every connection; idempotent."""
        self._is_closed = True
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.wait([self._returning])
        await self._client.close()

    async def _await_return(self) -> None:
        """Ask until there is an answer, of whatever kind."""
        wait_s = _FIRST_WAIT_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)
            try:
                await self._client.with_options(max_retries=0).get("/", cast_to=object)
            except openai.APIStatusError as err:
                if err.status_code < 500:
                    return
            except (openai.OpenAIError, httpx.HTTPError, ValueError):
                continue
            else:
                return

    def _gone(self, what: str) -> RewardUnavailable:
        if self.health is Health.READY:
            self._returning = asyncio.create_task(self._await_return())
        return RewardUnavailable(f"the service of reward model {self._model_id!r} {what}")

    def _said(self, err: Exception) -> str:
        cause = err.__cause__ if isinstance(err, openai.APIConnectionError) else None
        text = " ".join(str(cause or err or type(err).__name__).split())
        return text.replace(self._key, "***")[:_MAX_QUOTE]


async def judged_together(parts: Sequence[Awaitable[list[Score]]]) -> list[list[Score] | None]:
    """Every part that could be judged; None for the others.

    Raises:
        RewardUnavailable: The service failed for all of them.
    """
    results = await asyncio.gather(*parts, return_exceptions=True)
    failures = [one for one in results if isinstance(one, BaseException)]
    for failure in failures:
        if not isinstance(failure, RewardUnavailable):
            raise failure
    if failures and len(failures) == len(results):
        raise failures[0]
    return [None if isinstance(one, BaseException) else one for one in results]
