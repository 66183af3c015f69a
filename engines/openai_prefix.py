"""Prompts and answers at an upstream that reads text: claims that hold nothing but words."""

from __future__ import annotations

from dataclasses import dataclass

from engines.base import Conversation, Prefix, TokenIds
from engines.errors import InvariantError


@dataclass
class PromptCount:
    """What the upstream said of one prompt, shared by everything that grows from it."""

    tokens: int = 0
    cached_tokens: int = 0

    def note(self, tokens: int, cached_tokens: int) -> None:
        """Keep the first count: later ones find in the cache what the first one left there."""
        if not self.tokens:
            self.tokens, self.cached_tokens = tokens, cached_tokens


class TextPrefix:
    """A conversation and an answer's beginning. It names no tokens: the upstream counts them.

    Args:
        conversation: The prompt.
        text: The answer so far.
        answer_tokens: Its tokens, as counted.
        count: What the upstream said of the prompt.
    """

    token_ids: TokenIds = ()
    response_start = 0

    def __init__(
        self, conversation: Conversation, text: str, answer_tokens: int, count: PromptCount
    ) -> None:
        self.conversation = conversation
        self.text = text
        self.answer_tokens = answer_tokens
        self.count = count
        self.is_released = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt as the upstream counted them; 0 until it has."""
        return self.count.tokens

    @property
    def cached_tokens(self) -> int:
        """Of those, found in the upstream's cache when it was first asked."""
        return self.count.cached_tokens

    @property
    def written(self) -> str:
        """What the assistant has written: what the prompt began, and the answer so far."""
        return self.conversation.assistant_prefix + self.text

    def fork(self) -> TextPrefix:
        """Another claim on the same text."""
        return self.extended("", 0)

    def extended(self, text: str, num_tokens: int) -> TextPrefix:
        """Another claim, with more text.

        Raises:
            InvariantError: The claim was given back.
        """
        if self.is_released:
            raise InvariantError("a released prefix of an upstream was used again")
        return TextPrefix(
            self.conversation, self.text + text, self.answer_tokens + num_tokens, self.count
        )

    def release(self) -> None:
        """Nothing is held; the claim cannot be used any more."""
        self.is_released = True


def own_prefix(prefix: Prefix) -> TextPrefix:
    """The prefix as this engine's own.

    Raises:
        InvariantError: It belongs to another engine, or was given back.
    """
    if not isinstance(prefix, TextPrefix):
        raise InvariantError(f"a {type(prefix).__name__} of another engine reached an upstream")
    if prefix.is_released:
        raise InvariantError("a released prefix of an upstream was used again")
    return prefix
