"""Options of the `sglang` engine and of the `sglang` judge, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from engines.errors import ModelLoadError
from engines.openai_options import read_key


class WorkerOptions(BaseModel):
    """How to reach SGLang's workers.

    Attributes:
        urls: One per worker, as ``http://host:port``; alternatively they are the model's name,
            with commas between them.
        api_key: The key itself; shown nowhere.
        api_key_env: The environment variable that holds it instead.
        api_key_file: A file that holds it instead.
        connect_timeout_s: To open a connection.
        idle_timeout_s: Longest silence of a running request, the wait for its first token included.
        max_retries: Tries after the first, before the first token.
        startup_timeout_s: How long to wait at start for workers that do not answer yet.
        health_s: Seconds between two looks at the workers' health.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    urls: tuple[str, ...] = ()
    api_key: SecretStr = SecretStr("")
    api_key_env: str = ""
    api_key_file: Path | None = None
    connect_timeout_s: float = Field(default=2.0, gt=0)
    idle_timeout_s: float = Field(default=60.0, gt=0)
    max_retries: int = Field(default=2, ge=0, le=10)
    startup_timeout_s: float = Field(default=0.0, ge=0)
    health_s: float = Field(default=2.0, gt=0)

    @property
    def headers(self) -> dict[str, str]:
        """What goes with every call.

        Raises:
            ModelLoadError: The variable or the file that should hold the key does not.
        """
        key = read_key(self.api_key, self.api_key_env, self.api_key_file)
        return {"Authorization": f"Bearer {key}"} if key else {}


class SGLangOptions(WorkerOptions):
    """How to use them as a generator.

    Attributes:
        tokenizer: A local directory with the model's tokenizer, template and config; the workers'
            own model path when left out.
        min_match: See `engines.sglang_routing.Routing`.
        max_imbalance: Likewise.
        max_load_ratio: Likewise.
        lead_tokens: Siblings wait for the first of them when at least so many tokens of their
            prompt are new to the worker; else each of them would compute the prompt.
        schedule_pieces: Into how many pieces of one temperature a schedule is cut at most.
        step_delimiters: Strings that end one reasoning step; the model's own when left out.
        max_step_tokens: The longest step worth waiting for; likewise.
        block_size: Tokens of a block of a block-diffusion model, where the workers'
            --dllm-algorithm-config says another than the model's own.
    """

    tokenizer: Path | None = None
    min_match: float = Field(default=0.3, ge=0, le=1)
    max_imbalance: int = Field(default=8, ge=0)
    max_load_ratio: float = Field(default=1.5, ge=1)
    lead_tokens: int = Field(default=32, ge=1)
    schedule_pieces: int = Field(default=8, ge=1)
    step_delimiters: tuple[str, ...] | None = None
    max_step_tokens: int | None = Field(default=None, ge=1)
    block_size: int = Field(default=0, ge=0)


Chosen = TypeVar("Chosen", bound=WorkerOptions)


def parse(
    kind: type[Chosen], model: str, options: Mapping[str, Any]
) -> tuple[Chosen, tuple[str, ...]]:
    """Checked options, and the workers' addresses.

    Raises:
        ModelLoadError: An unknown option, a wrong value, or no worker.
    """
    try:
        chosen = kind(**options)
    except ValidationError as err:
        first = err.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(kind.model_fields)
        raise ModelLoadError(
            model or "sglang", f"option {name!r}: {first['msg']}; sglang knows {known}"
        ) from err
    named = [part.strip() for part in model.split(",") if "://" in part]
    urls = tuple(dict.fromkeys(url.rstrip("/") for url in chosen.urls or named))
    if not urls:
        raise ModelLoadError(
            model or "sglang",
            "no worker is named: give engine.model or the option urls as http://host:port",
        )
    wrong = next((url for url in urls if not url.startswith(("http://", "https://"))), None)
    if wrong is not None:
        raise ModelLoadError(wrong, "a worker's address begins with http:// or https://")
    return chosen, urls
