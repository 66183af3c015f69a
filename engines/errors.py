"""What an engine can refuse, as one tree.

EngineError
├── ModelLoadError            a model directory that cannot be served; names the file or key
├── PromptError               a prompt that cannot be rendered or encoded
│   └── ContextLengthExceeded the prompt leaves no room for one new token
├── UnsupportedByEngine       a capability or option that this engine does not have
├── DenoiseError              a denoising run that makes no sense; names the field
│   ├── WrongLength           a text of this length, or cut so, cannot be
│   ├── UnknownKernel         the model has no kernel of this name
│   ├── MaskInPrompt          the prompt holds the token that stands for "not revealed yet"
│   └── DeterministicKernel   a tree was asked of a chain without chance
├── CapacityExceeded          a request that could never fit, however long it waited
├── EngineClosed              the engine is gone
├── EngineOverloaded          the upstream takes no more now; says when to come back
├── UpstreamRefused           the upstream turned this server down; the operator must act
└── InvariantError            the engine's own accounting is broken; always a bug
"""

from __future__ import annotations


class EngineError(Exception):
    """Anything an engine raises on purpose."""


class ModelLoadError(EngineError):
    """A model directory is incomplete, corrupt or of a kind that is not served.

    Args:
        where: The file or the directory at fault.
        detail: What is wrong there, with the key or the numbers, and what to change.
    """

    def __init__(self, where: object, detail: str) -> None:
        super().__init__(f"{where}: {detail}")
        self.where = str(where)
        self.detail = detail


class PromptError(EngineError):
    """Messages that the chat template or the tokenizer refuses."""


class ContextLengthExceeded(PromptError):
    """The prompt has no room for a single new token.

    Args:
        prompt_tokens: Tokens of the rendered prompt.
        context_tokens: The most tokens a sequence may have, prompt and answer together.
    """

    def __init__(self, prompt_tokens: int, context_tokens: int) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens} tokens; this model reads at most {context_tokens}, "
            "and at least one must be left for the answer: shorten the messages"
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class UnsupportedByEngine(EngineError):
    """The engine lacks a capability or an option that the request needs.

    Args:
        capability: The capability's or option's name, as on the wire.
        engine: The model id whose engine refused.
        why: One sentence on what to do instead.
    """

    def __init__(self, capability: str, engine: str, why: str = "") -> None:
        super().__init__(f"model {engine!r} cannot do {capability!r}{': ' + why if why else ''}")
        self.capability = capability
        self.engine = engine


class DenoiseError(EngineError):
    """A denoising run that makes no sense.

    Args:
        param: The field at fault: ``steps``, ``length``, ``kernel``, ``temperature`` …
        message: What is wrong there, with the numbers, and what to change.
    """

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class WrongLength(DenoiseError):
    """A text of this length cannot be, or not in blocks of this length."""

    def __init__(self, message: str) -> None:
        super().__init__("length", message)


class UnknownKernel(DenoiseError):
    """The model has no kernel of this name."""

    def __init__(self, message: str) -> None:
        super().__init__("kernel", message)


class MaskInPrompt(DenoiseError):
    """The prompt holds the mask token."""

    def __init__(self, message: str) -> None:
        super().__init__("messages", message)


class DeterministicKernel(DenoiseError):
    """A tree was asked of a chain in which nothing is random."""

    def __init__(self, message: str) -> None:
        super().__init__("temperature", message)


class CapacityExceeded(EngineError):
    """The request needs more KV pages than the engine has in all."""


class EngineClosed(EngineError):
    """The engine was closed, or its worker died; nothing more will come."""


class EngineOverloaded(EngineError):
    """The upstream takes no more requests now, however often it was asked.

    Args:
        engine: The model id whose upstream it is.
        retry_after_s: When to come back, as the upstream says, or a guess.
    """

    def __init__(self, engine: str, retry_after_s: int) -> None:
        super().__init__(
            f"the upstream of model {engine!r} is overloaded: try again in {retry_after_s} s"
        )
        self.retry_after_s = retry_after_s


class UpstreamRefused(EngineError):
    """The upstream turned a request down that was well-formed here.

    Args:
        engine: The model id whose upstream it is.
        why: What it said, without any key, and what the operator can change.
    """

    def __init__(self, engine: str, why: str) -> None:
        super().__init__(f"the upstream of model {engine!r} refused: {why}")
        self.engine = engine


class InvariantError(EngineError):
    """Pages, claims and trie disagree. The message carries the numbers."""
