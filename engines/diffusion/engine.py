"""A masked-diffusion language model as an engine: `sample` is one full denoising run per child.

The text is a canvas of `Sampling.max_tokens` masks behind the prefix, and ends at its first eos. A
search that wants to branch in between uses `DiffusionEngine.denoiser` instead. Claims are tokens
only, for nothing is cached: every evaluation reads prompt and canvas anew.

It does not stop early, draft, score, or continue an answer step by step; what asks for that is
refused by name.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engines.base import (
    Capability,
    ChatMessage,
    Continuation,
    Delta,
    EngineInfo,
    EngineStats,
    Health,
    Message,
    NextTokens,
    Prefix,
    Prompt,
    Sampling,
    TokenIds,
)
from engines.diffusion.base import Course, Denoiser
from engines.diffusion.denoiser import TorchDenoiser, open_checkpoint
from engines.diffusion.options import DiffusionOptions, course, fitted
from engines.diffusion.refusals import check_sampling
from engines.diffusion.whole import whole_texts
from engines.embedded.config import read_json
from engines.embedded.sample import mix
from engines.embedded.tokenizer import ChatTokenizer
from engines.errors import (
    ContextLengthExceeded,
    EngineClosed,
    ModelLoadError,
    PromptError,
    UnsupportedByEngine,
)
from engines.token_prefix import TokenPrefix, own_prefix

_CAPABILITIES: Final = frozenset({Capability.DENOISE, Capability.SEED})
_ENDS: Final = ("<|endoftext|>", "<|eot_id|>", "<|im_end|>")
"""Tokens of the served families that end a turn, beside those that config.json names."""


class DiffusionEngine:
    """See the module's docstring; `engines.diffusion.base.DenoisingEngine`.

    Args:
        model_id: The id on the wire.
        directory: A checkpoint that `engines.diffusion.denoiser` reads, with a `tokenizer.json`.
        options: Knobs.

    Raises:
        ModelLoadError: The directory cannot be served, or not so.
    """

    def __init__(self, model_id: str, directory: Path, options: DiffusionOptions) -> None:
        where = str(directory)
        info, checkpoint = open_checkpoint(
            model_id,
            directory,
            dtype=options.torch_dtype,
            device=options.torch_device(where),
        )
        tokenizer = ChatTokenizer(directory)
        vocab_size = checkpoint.network.vocab_size
        if tokenizer.size > vocab_size:
            raise ModelLoadError(
                directory / "tokenizer.json",
                f"{tokenizer.size} tokens, but config.json has vocab_size {vocab_size}",
            )
        self._options = options
        self._tokenizer = tokenizer
        self._denoiser = TorchDenoiser(
            fitted(where, info, options), checkpoint, options.max_batch_tokens
        )
        padding = vocab_size - tokenizer.size  # the mask of MDLM is none of its tokenizer's
        table = [*tokenizer.token_bytes, *[b""] * padding]
        table[info.mask_id] = b""
        self._token_bytes = table
        self.info = EngineInfo(
            model_id=model_id,
            context_tokens=info.max_length,
            vocab_size=vocab_size,
            eos_ids=checkpoint.eos_ids | _end_ids(tokenizer),
            tokenizer_hash=tokenizer.hash,
            parameters=checkpoint.parameters,
            capabilities=_CAPABILITIES,
        )

    @property
    def denoiser(self) -> Denoiser:
        """See `DenoisingEngine.denoiser`."""
        return self._denoiser

    def course(self, prompt_tokens: int, how: Sampling) -> Course:
        """See `DenoisingEngine.course`."""
        return course(self._denoiser.info, self._options, prompt_tokens, how)

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continue_final: bool = False,
    ) -> Prompt:
        """See `Engine.render`; without a chat template the one user message is the text itself.

        Raises:
            MaskInPrompt: As `open` would, but before a stream has begun.
        """
        if self._tokenizer.has_template:
            text = self._tokenizer.render(messages, tools=tools, continue_final=continue_final)
        else:
            text = _text_alone(messages)
        prompt = self._tokenizer.encode(text)
        if len(prompt) < self.info.context_tokens:  # one that is too long is refused by its size
            self._denoiser.start(prompt, 1)
        return prompt

    def encode(self, text: str) -> TokenIds:
        """See `Engine.encode`."""
        return self._tokenizer.encode(text)

    def decode(self, ids: TokenIds) -> str:
        """See `Engine.decode`; the mask has no text."""
        return b"".join(self._token_bytes[token] for token in ids).decode("utf-8", "replace")

    def parse(self, text: str, *, tools: Sequence[Mapping[str, Any]] | None = None) -> Message:
        """See `Engine.parse`; everything is content."""
        return Message(content=text)

    async def open(self, prompt: Prompt, *, tenant: str = "", priority: int = 0) -> Prefix:
        """See `Engine.open`; nothing is computed before `sample`.

        Raises:
            MaskInPrompt: The prompt holds the mask token.
        """
        self._require_open()
        if not isinstance(prompt, tuple):
            raise PromptError("this engine reads token ids; render the conversation first")
        if len(prompt) >= self.info.context_tokens:
            raise ContextLengthExceeded(len(prompt), self.info.context_tokens)
        self._denoiser.start(prompt, 1)  # refuses masks and ids that there are not
        return TokenPrefix(self._token_bytes, prompt, len(prompt), tenant=tenant, priority=priority)

    def sample(
        self, prefix: Prefix, how: Sampling, *, n: int = 1, seeds: Sequence[int] | None = None
    ) -> AsyncGenerator[Delta | Continuation]:
        """See `Engine.sample`; a child comes as one delta, for no text is sure before its end.

        Raises:
            WrongLength: `how.max_tokens` does not fit; see `DenoisingEngine.course`.
            UnsupportedByEngine: An option that needs one token after the other.
        """
        self._require_open()
        claim = own_prefix(prefix, self._token_bytes)
        if n < 1:
            raise ValueError(f"n is {n}; at least one child must be drawn")
        if seeds is None:
            root = secrets.randbits(63) if how.seed is None else how.seed
            seeds = [root, *(mix(root, index) for index in range(1, n))]
        if len(seeds) != n:
            raise ValueError(f"{len(seeds)} seeds for {n} children")
        check_sampling(self.info.model_id, how)
        return whole_texts(self, claim, how, seeds)

    def check_sampling(self, how: Sampling) -> None:
        """See `ChecksSampling.check_sampling`."""
        check_sampling(self.info.model_id, how)
        size = self.info.vocab_size
        if len(how.ban_ids | {self._denoiser.info.mask_id}) >= size:
            raise UnsupportedByEngine(
                "ban_ids", self.info.model_id, f"all {size} tokens are banned: allow some"
            )

    async def extend(self, pairs: Sequence[tuple[Prefix, TokenIds]]) -> list[Prefix]:
        """See `Engine.extend`; what stands there is not altered by later samples."""
        self._require_open()
        extended: list[Prefix] = []
        for prefix, ids in pairs:
            claim = own_prefix(prefix, self._token_bytes)
            size = len(claim.token_ids) + len(ids)
            if size > self.info.context_tokens:
                raise ContextLengthExceeded(size, self.info.context_tokens)
            if ids and len(ids) < self.info.context_tokens:
                self._denoiser.start(ids, 1)  # refuses masks and ids that there are not
            extended.append(claim.extended(ids, 0))
        return extended

    async def next_logprobs(
        self,
        prefixes: Sequence[Prefix],
        *,
        ids: Sequence[int] | None = None,
        mass: float | None = None,
        top_k: int | None = None,
    ) -> list[NextTokens]:
        """Refuses: there is no next token.

        Raises:
            UnsupportedByEngine: Always.
        """
        raise UnsupportedByEngine(
            Capability.NEXT_LOGPROBS, self.info.model_id, "it has no next token; use dts"
        )

    async def score(self, prefix: Prefix, ids: TokenIds) -> tuple[float, ...]:
        """Refuses: the probability of a text is a sum over all orders of revealing it.

        Raises:
            UnsupportedByEngine: Always.
        """
        raise UnsupportedByEngine(
            Capability.LOGPROBS, self.info.model_id, "it has no next token; use dts"
        )

    async def embed(
        self, prefixes: Sequence[Prefix], last_tokens: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Refuses: no hidden states are shown.

        Raises:
            UnsupportedByEngine: Always.
        """
        raise UnsupportedByEngine(
            Capability.HIDDEN_STATES, self.info.model_id, "use text embeddings"
        )

    def stats(self) -> EngineStats:
        """See `Engine.stats`; there is no cache, so no pages."""
        batcher = self._denoiser.batcher
        return EngineStats(tokens_computed=batcher.tokens, running=batcher.num_rows)

    @property
    def health(self) -> Health:
        """Ready until it is closed."""
        return Health.DEAD if self._denoiser.batcher.is_closed else Health.READY

    async def aclose(self) -> None:
        """See `Engine.aclose`."""
        self._denoiser.close()

    def _require_open(self) -> None:
        if self._denoiser.batcher.is_closed:
            raise EngineClosed(f"the engine of model {self.info.model_id!r} was closed")


def open_engine(model_id: str, model: str, options: Mapping[str, Any]) -> DiffusionEngine:
    """A diffusion engine over a local directory, for settings.

    A `bough.json` in the directory may set engine options under ``engine``; those given here win.

    Raises:
        ModelLoadError: The directory cannot be served, or an option is unknown or out of bounds.
    """
    directory = Path(model)
    about = read_json(directory / "bough.json") if (directory / "bough.json").exists() else {}
    own = about.get("engine", {})
    if not isinstance(own, Mapping):
        raise ModelLoadError(directory / "bough.json", f"'engine' must be an object, not {own!r}")
    parsed = DiffusionOptions.parse(model, {**own, **options})
    return DiffusionEngine(model_id, directory, parsed)


def _text_alone(messages: Sequence[ChatMessage]) -> str:
    """What a model that knows no conversations goes on from."""
    if len(messages) != 1 or messages[0].get("role") != "user":
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise PromptError(
            "this model has no chat template: it goes on from the text of a single message of the "
            f"user, and these are {len(messages)} ({roles})"
        )
    return str(messages[0]["content"])


def _end_ids(tokenizer: ChatTokenizer) -> frozenset[int]:
    found = (tokenizer.encode(name) for name in _ENDS)
    return frozenset(ids[0] for ids in found if len(ids) == 1 and ids[0] in tokenizer.special_ids)
