"""vLLM's own parsers behind `render` and `parse`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engines.errors import ModelLoadError, PromptError, UnsupportedByEngine
from engines.vllm_engine import VllmEngine
from engines.vllm_options import VllmOptions
from tests.real_vllm.marks import SHARED

if TYPE_CHECKING:
    from engines.vllm_chat import VllmChat

pytestmark = SHARED

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    }
]


def chat(tiny: VllmEngine, tiny_model: Path, **parsers: str) -> VllmChat:
    from engines.vllm_chat import VllmChat, read_tokenizer

    options = VllmOptions(engine={}, **parsers)  # type: ignore[arg-type]
    return VllmChat("tiny", tiny._backend.renderer, read_tokenizer(str(tiny_model), None), options)


async def test_tool_calls_are_taken_out(tiny: VllmEngine, tiny_model: Path) -> None:
    parsed = chat(tiny, tiny_model, tool_parser="pythonic").parse('[weather(town="Ulm")]', TOOLS)
    [call] = parsed.tool_calls
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"town": "Ulm"}
    assert parsed.content == ""


async def test_without_tools_everything_is_content(tiny: VllmEngine, tiny_model: Path) -> None:
    text = '[weather(town="Ulm")]'
    parsed = chat(tiny, tiny_model, tool_parser="pythonic").parse(text, None)
    assert (parsed.content, parsed.tool_calls) == (text, ())


async def test_reasoning_is_taken_out_before_tool_calls(tiny: VllmEngine, tiny_model: Path) -> None:
    both = chat(tiny, tiny_model, tool_parser="pythonic", reasoning_parser="granite")
    thought = "Here is my thought process: [weather(town=1)] or not?"
    parsed = both.parse(f'{thought} Here is my response:[weather(town="Ulm")]', TOOLS)
    assert (parsed.reasoning or "").strip() == "[weather(town=1)] or not?"
    [call] = parsed.tool_calls
    assert json.loads(call["function"]["arguments"]) == {"town": "Ulm"}
    plain = both.parse("Ulm is in Swabia.", None)
    assert (plain.content, plain.reasoning) == ("Ulm is in Swabia.", None)


async def test_tools_need_a_parser(tiny: VllmEngine) -> None:
    with pytest.raises(UnsupportedByEngine, match="tool_parser"):
        tiny.parse("", tools=TOOLS)
    with pytest.raises(UnsupportedByEngine, match="tool_parser"):
        tiny.render([{"role": "user", "content": "hi"}], tools=TOOLS)


async def test_parsers_that_are_unknown_or_do_not_fit_are_refused(
    tiny: VllmEngine, tiny_model: Path
) -> None:
    with pytest.raises(ModelLoadError, match="pythonic"):
        chat(tiny, tiny_model, tool_parser="pythonik")
    with pytest.raises(ModelLoadError, match="does not fit"):
        chat(tiny, tiny_model, tool_parser="llama3_json")
    with pytest.raises(ModelLoadError, match="does not fit"):
        chat(tiny, tiny_model, reasoning_parser="deepseek_r1")


async def test_what_the_template_refuses_is_a_prompt_error(tiny: VllmEngine) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(PromptError):
        tiny.render([{"role": "user", "content": [picture]}])
    parts = [{"type": "text", "text": "the cat"}]
    assert tiny.render([{"role": "user", "content": parts}]) == tiny.render(
        [{"role": "user", "content": "the cat"}]
    )
