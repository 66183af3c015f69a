"""Chat messages to prompt ids and answers to messages, by vLLM's own renderer and parsers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMError
from vllm.reasoning import ReasoningParserManager
from vllm.renderers.params import ChatParams
from vllm.tool_parsers import ToolParserManager

from engines.base import Capability, ChatMessage, Message, TokenIds
from engines.embedded.tokenizer import ChatTokenizer
from engines.errors import ModelLoadError, PromptError, UnsupportedByEngine
from engines.vllm_options import VllmOptions


class VllmChat:
    """Templates and parsers of one model.

    Args:
        model_id: The id on the wire.
        renderer: vLLM's renderer of the model.
        tokenizer: Ours, for ids and bytes.
        options: Names of the parsers.

    Raises:
        ModelLoadError: vLLM has no parser of this name, or it is not for this tokenizer.
    """

    def __init__(
        self, model_id: str, renderer: Any, tokenizer: ChatTokenizer, options: VllmOptions
    ) -> None:
        self._model_id = model_id
        self._renderer = renderer
        self._tokenizer = tokenizer
        self._tools = _parser(
            "tool_parser",
            options.tool_parser,
            ToolParserManager,
            ToolParserManager.get_tool_parser,
            renderer.get_tokenizer(),
        )
        self._reasoning = _parser(
            "reasoning_parser",
            options.reasoning_parser,
            ReasoningParserManager,
            ReasoningParserManager.get_reasoning_parser,
            renderer.get_tokenizer(),
        )

    @property
    def has_tools(self) -> bool:
        """Whether tool calls are understood."""
        return self._tools is not None

    def render(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Mapping[str, Any]] | None,
        *,
        continue_final: bool,
    ) -> TokenIds:
        """Prompt ids by the model's chat template.

        Raises:
            PromptError: The template refuses these messages.
            UnsupportedByEngine: Tools without a parser for the calls.
        """
        self._require_tools(tools)
        kwargs: dict[str, Any] = {
            "add_generation_prompt": not continue_final,
            "continue_final_message": continue_final,
        }
        if tools:
            kwargs["tools"] = [dict(tool) for tool in tools]
        params = ChatParams(chat_template_kwargs=kwargs)
        try:
            _, prompt = self._renderer.render_messages([dict(m) for m in messages], params)
        except (VLLMError, ValueError, TypeError, KeyError) as err:
            raise PromptError(f"the chat template refuses these messages: {err}") from err
        if "prompt_token_ids" in prompt:
            return tuple(prompt["prompt_token_ids"])
        return self._tokenizer.encode(prompt["prompt"])

    def parse(self, text: str, tools: Sequence[Mapping[str, Any]] | None) -> Message:
        """An answer taken apart: reasoning first, then tool calls in what is left.

        Raises:
            UnsupportedByEngine: Tools without a parser for the calls.
        """
        self._require_tools(tools)
        asked = ChatCompletionRequest(
            model=self._model_id,
            messages=[{"role": "user", "content": ""}],
            tools=[dict(tool) for tool in tools] if tools else None,
        )
        tokenizer = self._renderer.get_tokenizer()
        reasoning: str | None = None
        content: str | None = text
        if self._reasoning is not None:
            reasoning, content = self._reasoning(tokenizer).extract_reasoning(text, asked)
        calls: tuple[Mapping[str, Any], ...] = ()
        if tools and self._tools is not None:
            found = self._tools(tokenizer, asked.tools).extract_tool_calls(content or "", asked)
            content = found.content
            calls = tuple(call.model_dump() for call in found.tool_calls)
        return Message(content=content or "", reasoning=reasoning, tool_calls=calls)

    def _require_tools(self, tools: Sequence[Mapping[str, Any]] | None) -> None:
        if tools and self._tools is None:
            raise UnsupportedByEngine(
                Capability.TOOLS,
                self._model_id,
                "start the engine with the option tool_parser, a name in vLLM's registry",
            )


class BareTokenizer(ChatTokenizer):
    """Ids and bytes only: templates are vLLM's business, and some only it can read."""

    def _read_template(self, directory: Path) -> Any:
        return None


def read_tokenizer(where: str, revision: str | None) -> BareTokenizer:
    """The tokenizer's files of a directory, or of a model that vLLM has fetched.

    Raises:
        ModelLoadError: There is no ``tokenizer.json``.
    """
    directory = Path(where)
    if not directory.is_dir():
        try:
            found = cached_file(where, "tokenizer.json", revision=revision)
        except OSError as err:
            raise ModelLoadError(where, f"no tokenizer.json: {err}") from err
        directory = Path(str(found)).parent
    return BareTokenizer(directory)


def _parser(option: str, name: str | None, registry: Any, get: Any, tokenizer: Any) -> Any:
    """The parser's class; it is tried now, because most want tokens that a model may not have."""
    if name is None:
        return None
    where = f"engine option {option}"
    known = registry.list_registered()
    if name not in known:
        raise ModelLoadError(where, f"vLLM has no {name!r}; known: {', '.join(known)}")
    kind = get(name)
    try:
        kind(tokenizer)
    except (VLLMError, RuntimeError, ValueError, KeyError) as err:
        raise ModelLoadError(where, f"{name!r} does not fit this model: {err}") from err
    return kind
