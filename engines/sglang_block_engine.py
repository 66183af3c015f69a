"""SGLang with a block-diffusion model: `sample` is one whole text, a tree branches at blocks.

Everything is as in `engines.sglang_engine` but for what needs one token after the other: there are
no log-probabilities, no steps, no constraints and no schedules. SGLang reads the temperature and
the end; other sampling options never reach its algorithms, so they are refused.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import Final

import httpx

from engines.base import (
    Capability,
    Continuation,
    Delta,
    EngineInfo,
    NextTokens,
    Prefix,
    Sampling,
    TokenIds,
)
from engines.diffusion.base import Course, Denoiser, DenoiserInfo
from engines.diffusion.refusals import check_sampling
from engines.diffusion.whole import whole_texts
from engines.errors import UnsupportedByEngine, WrongLength
from engines.sglang_blocks import BlockDenoiser, own_kernel
from engines.sglang_child import Terms
from engines.sglang_engine import SGLangEngine
from engines.sglang_model import LocalModel
from engines.sglang_pool import Pool

_UNREAD: Final = ("top_p", "top_k", "ban_ids")


class SGLangBlockEngine(SGLangEngine):
    """The engine; see `SGLangEngine`.

    Args:
        info: As there.
        model: As there.
        pool: As there.
        client: As there.
        terms: As there.
        denoiser: Of `engines.sglang_blocks.denoiser_info`.
    """

    def __init__(
        self,
        info: EngineInfo,
        model: LocalModel,
        pool: Pool,
        client: httpx.AsyncClient,
        terms: Terms,
        denoiser: DenoiserInfo,
    ) -> None:
        super().__init__(info, model, pool, client, terms)
        self._denoiser = BlockDenoiser(denoiser, info, pool, self._count)

    @property
    def denoiser(self) -> Denoiser:
        """See `DenoisingEngine.denoiser`."""
        return self._denoiser

    def course(self, prompt_tokens: int, how: Sampling) -> Course:
        """See `DenoisingEngine.course`."""
        self.check_sampling(how)
        info = self._denoiser.info
        room = info.max_length - prompt_tokens
        length = min(info.default_length, room) if how.max_tokens is None else how.max_tokens
        if not 1 <= length <= room:
            raise WrongLength(
                f"max_completion_tokens is {length}; beside a prompt of {prompt_tokens} tokens "
                f"model {info.model_id!r} has room for {max(0, room)}"
            )
        return Course(length, own_kernel(info, prompt_tokens, length), how.temperature)

    def sample(
        self, prefix: Prefix, how: Sampling, *, n: int = 1, seeds: Sequence[int] | None = None
    ) -> AsyncGenerator[Delta | Continuation]:
        """See `Engine.sample`; a child comes as one delta.

        Raises:
            WrongLength: `how.max_tokens` has no room beside the prompt.
            UnsupportedByEngine: An option that the server does not read.
        """
        claim = self._own(prefix)
        self.check_sampling(how)
        if n < 1:
            raise ValueError(f"n is {n}; at least one child must be drawn")
        if seeds is not None and len(seeds) != n:
            raise ValueError(f"{len(seeds)} seeds for {n} children")
        found = self._seeds(how, n, seeds)
        drawn = [secrets.randbits(63) if one is None else one for one in found]
        return whole_texts(self, claim, how, drawn)

    def check_sampling(self, how: Sampling) -> None:
        """See `ChecksSampling.check_sampling`."""
        check_sampling(self.info.model_id, how)
        plain = Sampling()
        for name in _UNREAD:
            if getattr(how, name) != getattr(plain, name):
                raise UnsupportedByEngine(
                    name, self.info.model_id, "SGLang's block diffusion does not read it"
                )

    async def next_logprobs(
        self,
        prefixes: Sequence[Prefix],
        *,
        ids: Sequence[int] | None = None,
        mass: float | None = None,
        top_k: int | None = None,
    ) -> list[NextTokens]:
        """Refuses: there is no next token."""
        raise UnsupportedByEngine(Capability.NEXT_LOGPROBS, self.info.model_id, _NO_NEXT)

    async def score(self, prefix: Prefix, ids: TokenIds) -> tuple[float, ...]:
        """Refuses: the probability of a text is a sum over all orders of revealing it."""
        raise UnsupportedByEngine(Capability.LOGPROBS, self.info.model_id, _NO_NEXT)


_NO_NEXT: Final = "it has no next token; use dts"
