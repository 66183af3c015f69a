"""Options of the `openai` engine, checked, with the key kept out of every message."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from engines.base import Capability
from engines.errors import ModelLoadError
from engines.openai_dialects import ContinueStyle

NO_KEY: Final = "none"
"""What is sent where there is no key."""

Mode = Literal["auto", "chat", "completions", "continue"]
DialectName = Literal["auto", "plain", "vllm", "sglang", "llamacpp", "ollama", "bough"]


class OpenAIOptions(BaseModel):
    """How to reach an upstream, and what it is known to do.

    Attributes:
        base_url: Where the upstream's API begins, ``/v1`` included.
        api_key: The key itself; shown nowhere.
        api_key_env: The environment variable that holds it instead.
        api_key_file: A file that holds it instead.
        mode: ``chat``: whole answers only. ``continue``: chat, and an unfinished assistant message
            is continued. ``completions``: `/v1/completions`, the prompt rendered here. ``auto``:
            completions where `chat_template` is given, else continue where the upstream is known
            to, else chat.
        dialect: Which server it is; ``auto`` asks `/v1/models`.
        continue_style: How it continues a message, where the dialect does not say.
        chat_template: A local directory with the model's tokenizer and template.
        context_tokens: The longest sequence; asked for when left out.
        capabilities: ``logprobs`` and ``seed``, as far as it has them; asked for when left out.
        probe: Whether to spend one token at start on what cannot be asked.
        step_delimiters: Strings that end one reasoning step.
        max_step_tokens: The longest step worth waiting for.
        max_concurrency: Requests open at the upstream at once; more wait here.
        max_retries: Tries after the first, before the first byte.
        connect_timeout_s: To open a connection.
        idle_timeout_s: Longest silence, the wait for the first byte included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    base_url: str = Field(pattern=r"^https?://")
    api_key: SecretStr = SecretStr("")
    api_key_env: str = ""
    api_key_file: Path | None = None
    mode: Mode = "auto"
    dialect: DialectName = "auto"
    continue_style: ContinueStyle | None = None
    chat_template: Path | None = None
    context_tokens: int | None = Field(default=None, ge=2)
    capabilities: tuple[Literal[Capability.LOGPROBS, Capability.SEED], ...] | None = None
    probe: bool = True
    step_delimiters: tuple[str, ...] = ("\n\n",)
    max_step_tokens: int = Field(default=256, ge=1)
    max_concurrency: int = Field(default=64, ge=1)
    max_retries: int = Field(default=2, ge=0, le=10)
    connect_timeout_s: float = Field(default=5.0, gt=0)
    idle_timeout_s: float = Field(default=120.0, gt=0)

    @property
    def key(self) -> str:
        """The key to send; clients must send something.

        Raises:
            ModelLoadError: The variable or the file that should hold it does not.
        """
        return read_key(self.api_key, self.api_key_env, self.api_key_file) or NO_KEY


def read_key(given: SecretStr, variable: str, file: Path | None) -> str:
    """A key, from the one place that was named; empty where none was.

    Raises:
        ModelLoadError: The variable or the file that should hold it does not.
    """
    if file is not None:
        try:
            return file.read_text("utf-8").strip()
        except (OSError, ValueError) as err:
            raise ModelLoadError("options.api_key_file", f"{err}") from err
    if variable:
        found = os.environ.get(variable, "")
        if not found:
            raise ModelLoadError(
                "options.api_key_env", f"the environment has no variable {variable}: export the key"
            )
        return found
    return given.get_secret_value()


def parse(model_id: str, model: str, options: Mapping[str, Any]) -> OpenAIOptions:
    """The options in settings.

    Raises:
        ModelLoadError: A value is missing, unknown or out of bounds; names the option.
    """
    if not model:
        raise ModelLoadError(model_id, "engine.model is missing: give the upstream's model id")
    try:
        chosen = OpenAIOptions.model_validate(dict(options))
    except ValidationError as err:
        problem = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        known = ", ".join(OpenAIOptions.model_fields)
        raise ModelLoadError(
            model_id, f"options.{where}: {problem['msg']}; openai knows {known}"
        ) from None  # the library's own message quotes the input, which may be a key
    if chosen.mode == "completions" and chosen.chat_template is None:
        raise ModelLoadError(
            model_id,
            "options.mode completions sends rendered prompts: set options.chat_template to a "
            "directory with the model's tokenizer",
        )
    return chosen
