"""The hook by which `engines.vllm_shaping` sees vLLM's logits.

vLLM imports this module by name in its own process, so it must stay light. Its answer to the
question whether greedy answers may change is yes, therefore it runs on all rows before vLLM's own
penalties, which such requests leave at rest.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

from engines.vllm_shaping import Row, Shape, shape_logits


class ShapingProcessor(LogitsProcessor):  # type: ignore[misc]  # vLLM may be missing
    """Applies the shapes of all requests in a batch at once."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse extra arguments under our name that are not ours."""
        try:
            Shape.from_args(sampling_params.extra_args)
        except TypeError as err:
            raise VLLMValidationError(f"extra_args: {err}") from err

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, Row] = {}

    def is_argmax_invariant(self) -> bool:
        """Penalties and bans may change the likeliest token."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow requests as vLLM adds, removes and moves them."""
        process_dict_updates(self._rows, batch_update, _row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Shape (R, V) logits in place."""
        if self._rows:
            shape_logits(logits, self._rows)
        return logits


def _row(params: Any, prompt: list[int] | None, drawn: list[int]) -> Row | None:
    shape = Shape.from_args(params.extra_args)
    return None if shape is None else Row(shape, prompt or (), drawn)
