"""What vLLM's workers get beside their own methods, called once from bough's process.

vLLM mixes the class into its worker by name (``worker_extension_cls``) in a process of its own.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from engines.vllm_proposer import Proposer
from engines.vllm_rows import RunnerRows

if TYPE_CHECKING:
    import torch

ACCESS: Final = "engines.vllm_worker.DraftAccess"


class DraftAccess:
    """The door to the proposer, and to the sampler that verifies drafts."""

    model_runner: Any

    def bough_begin_drafts(self) -> None:
        """Show the proposer its rows, and mend the sampler; to be called before any draft."""
        from vllm.platforms import current_platform

        proposer = getattr(self.model_runner, "drafter", None)  # on a pipeline's last stage only
        if isinstance(proposer, Proposer):
            proposer.attach(RunnerRows(self.model_runner))
        if current_platform.is_cpu():
            mend_sampler()

    def bough_drafter_report(self) -> dict[str, Any] | None:
        """`engines.vllm_proposer.Report` as a dictionary."""
        proposer = getattr(self.model_runner, "drafter", None)
        return asdict(proposer.report()) if isinstance(proposer, Proposer) else None


def mend_sampler() -> None:
    """Give drafts on a CPU the temperature, top-k and top-p of their requests.

    vLLM 0.32 spreads these over a request's drafted positions into a copy that it drops, and goes
    on with memory that nobody wrote (https://github.com/vllm-project/vllm/issues/55005): whatever
    is not greedy is then drawn at a temperature out of nowhere.
    """
    from vllm.v1.sample import rejection_sampler

    rejection_sampler.expand_batch_to_tokens = expand_to_tokens


def expand_to_tokens(
    x: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """Each row's value once for each of its tokens.

    Args:
        x: (rows,) of any type, which is kept.
        cu_num_tokens: (rows,) tokens of the rows up to and with each.
        num_tokens: Of all rows.
        replace_from: A value that stands for another.
        replace_to: That one.

    Returns:
        (num_tokens,).
    """
    counts = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
    values = x.masked_fill(x == replace_from, replace_to)
    return values.repeat_interleave(counts, output_size=num_tokens)
