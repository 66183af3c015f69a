"""What texts that are revealed in any order cannot have."""

from __future__ import annotations

from typing import Final

from engines.base import Sampling
from engines.errors import UnsupportedByEngine

_AT_ONCE: Final = "a diffusion model reveals its tokens in any order; leave it out"
_REFUSED: Final = {
    "min_p": "a diffusion model has temperature, top_p and top_k; leave it out",
    "presence_penalty": _AT_ONCE,
    "frequency_penalty": _AT_ONCE,
    "repetition_penalty": _AT_ONCE,
    "logit_bias": _AT_ONCE,
    "logprobs": "alternatives of a token change with what is revealed around it; leave it out",
    "min_tokens": _AT_ONCE,
    "schedule": "temperature by position needs one token after the other; leave it out",
    "drafter": "there is nothing to draft: a step reveals as many tokens as it likes",
    "constraint": _AT_ONCE,
    "boundaries": "a text is written all at once, without steps; use dts or best_of_n",
    "max_step_tokens": "a text is written all at once, without steps; use dts or best_of_n",
}


def check_sampling(model_id: str, how: Sampling) -> None:
    """Refuse what needs tokens to come one after the other.

    Raises:
        UnsupportedByEngine: Naming the option.
    """
    plain = Sampling()
    for name, why in _REFUSED.items():
        if getattr(how, name) != getattr(plain, name):
            raise UnsupportedByEngine(name, model_id, why)
