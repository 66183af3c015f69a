"""Chance for block-diffusion models inside SGLang: the algorithm ``SampledConfidence``.

SGLang's own algorithms for LLaDA2 and SDAR take the likeliest token at every position, whatever
temperature is asked for, so that no two samples differ. This one draws each token at the request's
temperature and reveals what it is surest of, by the same threshold. It is a plugin: where bough is
installed beside SGLang, ``--dllm-algorithm SampledConfidence`` finds it.

A request's noise is keyed by the first 16 hexadecimal digits of its id, the block and the position,
because ids are all that SGLang shows an algorithm of a request. Neither the batch around a request
nor the number of blocks in it changes what is drawn.

SGLang imports this module in its own processes, so it must stay light.

Source: LLaDA's ``low_confidence`` remasking, arXiv 2502.09992; the threshold is SGLang's.
Differs: the mask is never drawn; one uniform number per position by inverse transform in float64.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from sglang.srt.dllm import algorithm
from sglang.srt.dllm.algorithm.base import DllmAlgorithm

from engines.sglang_block_drawing import drawn, noise

_THRESHOLD: Final = 0.95


class SampledConfidence(DllmAlgorithm):  # type: ignore[misc]  # SGLang may be missing
    """One step: draw every masked position, reveal the sure ones, at least one.

    Args:
        config: SGLang's; its `algorithm_config` may set ``threshold``.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.threshold = float(config.algorithm_config.get("threshold", _THRESHOLD))

    def init_step_state(self, forward_batch: Any) -> list[Any]:
        """Each row's own noise, which goes with the request from step to step."""
        starts = forward_batch.positions.view(forward_batch.batch_size, self.block_size)[:, 0]
        pairs = zip(forward_batch.rids, starts.tolist(), strict=True)
        return [noise(rid, start) for rid, start in pairs]

    def step(self, forward_batch: Any, full_logits: torch.Tensor, states: list[Any]) -> list[bool]:
        """Reveal in place; says which rows had no mask before.

        Args:
            forward_batch: SGLang's; `input_ids` has (B · block) ids.
            full_logits: (B · block, V).
            states: Of `init_step_state`.
        """
        rows = forward_batch.input_ids.view(-1, self.block_size)
        logits = full_logits.view(*rows.shape, -1)
        masked = rows == self.mask_id
        if forward_batch.dllm_prompt_mask is not None:
            masked &= ~forward_batch.dllm_prompt_mask
        how = forward_batch.sampling_info
        for at, row in enumerate(rows):
            numbers = torch.rand(self.block_size, generator=states[at], dtype=torch.float64)
            if masked[at].any():
                places = masked[at].nonzero().view(-1)
                heat = 0.0 if int(how.top_ks[at]) == 1 else float(how.temperatures[at])
                tokens, sure = drawn(
                    logits[at, places], numbers.to(places.device)[places], heat, self.mask_id
                )
                chosen = sure > self.threshold
                chosen[sure.argmax()] = True
                row[places[chosen]] = tokens[chosen].to(row.dtype)
        done: list[bool] = (~masked.any(dim=1)).tolist()
        return done


def register() -> None:
    """Make the algorithm known; SGLang calls this in each of its processes."""
    algorithm.algo_name_to_cls[SampledConfidence.__name__] = SampledConfidence
