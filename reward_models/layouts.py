"""How a conversation and the steps of an answer become the tokens that a reward model reads.

A layout gives tokens and, for every step, the length up to and including the token whose hidden
state decides it. What stands behind the last of them is never run. The tokens up to a step depend
on nothing behind that step, so an answer that grew by a step shares all its old tokens and their
KV. Steps are tokenised behind the token they follow in the text, which gives the same tokens as the
text in one piece as long as no token reaches across a tag.

Blank steps are not shown: they have the value of the step in front of them.

It knows no tensors and no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from engines.base import ChatMessage, TokenIds
from engines.embedded.config import read_json
from engines.embedded.tokenizer import ChatTokenizer
from engines.errors import ModelLoadError, PromptError
from reward_models.errors import RewardLoadError
from reward_models.presets import Preset

_ONE: Final = "QQ0QQ"  # stand-ins while a chat template is taken apart
_TWO: Final = "QQ1QQ"


@dataclass(frozen=True)
class LaidOut:
    """An answer in tokens.

    Attributes:
        tokens: What to run.
        start: Length of what stands in front of the answer.
        ends: For every step the length up to its judged token; 0 where nothing was shown yet.
    """

    tokens: TokenIds
    start: int
    ends: tuple[int, ...]


class Layout(Protocol):
    """How one reward model reads."""

    def prompt(self, messages: Sequence[ChatMessage]) -> TokenIds:
        """Tokens that every answer to `messages` begins with, or nearly so: what to claim.

        Raises:
            PromptError: The chat template refuses the messages.
        """

    def lay_out(
        self, messages: Sequence[ChatMessage], steps: Sequence[str], claimed: TokenIds | None
    ) -> LaidOut:
        """The conversation and an answer's steps; `claimed` is `prompt`, if it is at hand.

        Raises:
            PromptError: The chat template refuses the messages.
        """


def layout_of(preset: Preset, tokenizer: ChatTokenizer, directory: Path) -> Layout:
    """The layout that a preset names.

    Raises:
        RewardLoadError: The tokenizer or the chat template does not carry it.
    """
    form = preset.layout.form
    if form == "whole":
        return WholeAnswer(tokenizer)
    if form == "turns":
        return Turns(preset, tokenizer, directory)
    return TaggedSteps(preset, tokenizer, directory)


class PlainSteps:
    """The steps behind the conversation as they are, judged at the last token of each."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer

    def prompt(self, messages: Sequence[ChatMessage]) -> TokenIds:
        """See `Layout.prompt`."""
        text = self._tokenizer.render(messages, tools=None, continue_final=False)
        return self._tokenizer.encode(text)

    def lay_out(
        self, messages: Sequence[ChatMessage], steps: Sequence[str], claimed: TokenIds | None
    ) -> LaidOut:
        """See `Layout.lay_out`. A blank step is judged like any other."""
        tokens = list(self.prompt(messages) if claimed is None else claimed)
        start, ends = len(tokens), []
        for step in steps:
            tokens += self._tokenizer.encode(step)
            ends.append(len(tokens))
        return LaidOut(tuple(tokens), start, tuple(ends))


class WholeAnswer:
    """The conversation with the answer as its last message, judged at its last token."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer

    def prompt(self, messages: Sequence[ChatMessage]) -> TokenIds:
        """See `Layout.prompt`."""
        text = self._tokenizer.render(messages, tools=None, continue_final=False)
        return self._tokenizer.encode(text)

    def lay_out(
        self, messages: Sequence[ChatMessage], steps: Sequence[str], claimed: TokenIds | None
    ) -> LaidOut:
        """See `Layout.lay_out`. One end, whatever the number of steps."""
        answer = {"role": "assistant", "content": "".join(steps)}
        text = self._tokenizer.render(
            [*messages, answer], tools=None, continue_final=False, generation_prompt=False
        )
        tokens = self._tokenizer.encode(text)
        return LaidOut(tokens, 0, (len(tokens),))


class TaggedSteps:
    """A tag behind every step, judged at the tag: the forms `tags` and `lines`.

    With `lines` every line of a step ends with the tag, and the last one decides the step.

    Args:
        preset: Which tag, and what stands between it and the steps.
        tokenizer: The model's.
        directory: Where it came from.

    Raises:
        RewardLoadError: The tag is not one token, or a special token is missing.
    """

    def __init__(self, preset: Preset, tokenizer: ChatTokenizer, directory: Path) -> None:
        self._spec = preset.layout
        self._trim = preset.separator
        self._tokenizer = tokenizer
        self._tag_id = single_token(tokenizer, directory, self._spec.tag)
        self._bos = (_special_id(tokenizer, directory, "bos_token"),) if self._spec.bos else ()
        if self._segment("", "1")[-1] != self._tag_id:
            raise RewardLoadError(
                f"{directory / 'tokenizer.json'}: the step token {self._spec.tag!r} merges with "
                "what stands in front of it"
            )

    @property
    def tag_id(self) -> int:
        """The token that steps are judged at."""
        return self._tag_id

    def prompt(self, messages: Sequence[ChatMessage]) -> TokenIds:
        """See `Layout.prompt`."""
        text = self._head(messages)
        # A blank before the first step becomes part of its first token.
        return self._bos + self._tokenizer.encode(text.rstrip(" "))

    def lay_out(
        self, messages: Sequence[ChatMessage], steps: Sequence[str], claimed: TokenIds | None
    ) -> LaidOut:
        """See `Layout.lay_out`."""
        tokens, ends, end = list(self._bos), [], 0
        before = self._head(messages)
        for step in steps:
            for piece in self._pieces(step):
                tokens += self._segment(before, piece) if end else self._first(before, piece)
                end, before = len(tokens), self._spec.between
            ends.append(end)
        return LaidOut(tuple(tokens), 0, tuple(ends))

    def _head(self, messages: Sequence[ChatMessage]) -> str:
        """The text in front of the first step."""
        spec = self._spec
        if not spec.chat:
            return "\n".join(text_of(message) for message in messages) + spec.joint
        if spec.system and all(message.get("role") != "system" for message in messages):
            messages = [{"role": "system", "content": spec.system}, *messages]
        return self._tokenizer.render(messages, tools=None, continue_final=False)

    def _pieces(self, step: str) -> list[str]:
        """What gets a tag of its own in a step; nothing when it is blank."""
        if not step.strip():
            return []
        if self._spec.form == "lines":
            return [line for line in step.split(self._spec.tag) if line]
        return [step.strip(self._trim)]

    def _first(self, head: str, piece: str) -> TokenIds:
        """The head and the first step; text before and after may share a token."""
        if self._spec.form == "lines":
            return self._tokenizer.encode(head) + self._segment("", piece)
        return self._tokenizer.encode(head + piece + self._spec.gap + self._spec.tag)

    def _segment(self, before: str, piece: str) -> TokenIds:
        """A later step with its tag, as it is tokenised behind the tag of the one in front."""
        spec = self._spec
        if spec.form == "lines":  # each line is tokenised by itself, and the tag put behind it
            return (*self._tokenizer.encode(piece), self._tag_id)
        return encode_behind(self._tokenizer, spec.tag, before + piece + spec.gap + spec.tag)


class Turns:
    """Every step as a user's turn, judged where the model is about to reply: the form `turns`.

    Args:
        preset: Which reply it is taken to have given to the steps in front.
        tokenizer: The model's.
        directory: Where it came from.

    Raises:
        RewardLoadError: The reply is not one token, or the chat template does not give turns.
    """

    def __init__(self, preset: Preset, tokenizer: ChatTokenizer, directory: Path) -> None:
        self._tokenizer = tokenizer
        reply = preset.layout.reply
        single_token(tokenizer, directory, reply)
        turns = [
            {"role": "user", "content": _ONE},
            {"role": "assistant", "content": reply},
            {"role": "user", "content": _TWO},
        ]
        try:
            text = tokenizer.render(turns, tools=None, continue_final=False)
        except PromptError as err:
            raise RewardLoadError(f"{directory}: {err}") from err
        _, _, middle = text.partition(_ONE)
        middle, found, self._after = middle.partition(_TWO)
        if not found or not middle.startswith(self._after + reply):
            raise RewardLoadError(
                f"{directory}: the chat template does not render steps as turns with the reply "
                f"{reply!r} between them"
            )
        self._before = middle.removeprefix(self._after)

    def prompt(self, messages: Sequence[ChatMessage]) -> TokenIds:
        """See `Layout.prompt`."""
        text, _, _ = self._render(messages, _ONE).partition(_ONE)
        return self._tokenizer.encode(text.rstrip(" "))

    def lay_out(
        self, messages: Sequence[ChatMessage], steps: Sequence[str], claimed: TokenIds | None
    ) -> LaidOut:
        """See `Layout.lay_out`."""
        tokens: list[int] = []
        ends = []
        for step in steps:
            shown = step.strip()
            if shown and not tokens:
                tokens += self._tokenizer.encode(self._render(messages, shown))
            elif shown:
                turn = self._before + shown + self._after
                tokens += encode_behind(self._tokenizer, self._after, turn)
            ends.append(len(tokens))
        return LaidOut(tuple(tokens), 0, tuple(ends))

    def _render(self, messages: Sequence[ChatMessage], step: str) -> str:
        """The conversation with the first step behind its last message."""
        if not messages:
            raise PromptError("there is no message to answer")
        *before, last = messages
        asked: dict[str, object] = {**last, "content": f"{text_of(last)} {step}"}
        return self._tokenizer.render([*before, asked], tools=None, continue_final=False)


def encode_behind(tokenizer: ChatTokenizer, anchor: str, text: str) -> TokenIds:
    """Tokens of `text` where it follows `anchor`; some tokenizers treat a beginning otherwise."""
    front, whole = tokenizer.encode(anchor), tokenizer.encode(anchor + text)
    return whole[len(front) :] if whole[: len(front)] == front else tokenizer.encode(text)


def single_token(tokenizer: ChatTokenizer, directory: Path, text: str) -> int:
    """The one token of `text`.

    Raises:
        RewardLoadError: It is not one token.
    """
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise RewardLoadError(
            f"{directory / 'tokenizer.json'}: {text!r} must be a single token for this preset; "
            f"here it is {len(ids)}"
        )
    return ids[0]


def text_of(message: ChatMessage) -> str:
    """The text of a message, its text parts joined."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


def _special_id(tokenizer: ChatTokenizer, directory: Path, key: str) -> int:
    path = directory / "tokenizer_config.json"
    try:
        value = read_json(path).get(key)
    except ModelLoadError as err:
        raise RewardLoadError(str(err)) from err
    text = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise RewardLoadError(f"{path}: the key {key!r} is missing, which this preset needs")
    return single_token(tokenizer, directory, text)
