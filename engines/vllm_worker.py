"""What vLLM's workers get beside their own methods, called once from bough's process.

vLLM mixes the class into its worker by name (``worker_extension_cls``) in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from engines.drafters.base import Drafter
from engines.drafters.errors import DrafterError
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

        proposer = self._bough_proposer()
        if proposer is not None:
            proposer.attach(RunnerRows(self.model_runner))
        if current_platform.is_cpu():
            mend_sampler()

    def bough_drafter_report(self) -> dict[str, Any] | None:
        """`engines.vllm_proposer.Report` as a dictionary."""
        proposer = self._bough_proposer()
        return None if proposer is None else asdict(proposer.report())

    def bough_draft_snapshot(self, tenant: str) -> bytes | None:
        """What a tenant taught; None where nobody drafts."""
        drafter = self._bough_drafter()
        return None if drafter is None else drafter.snapshot(tenant=tenant)

    def bough_merge_drafts(self, tenant: str, data: bytes) -> str | None:
        """Learn a replica's snapshot; why it is none, if it is none."""
        drafter = self._bough_drafter()
        try:
            if drafter is not None:
                drafter.merge(data, tenant=tenant)
        except (DrafterError, ValueError, TypeError, LookupError) as err:  # it may be a plugin
            return str(err)
        return None

    def _bough_proposer(self) -> Proposer | None:
        """On the last stage of a pipeline only."""
        proposer = getattr(self.model_runner, "drafter", None)
        return proposer if isinstance(proposer, Proposer) else None

    def _bough_drafter(self) -> Drafter | None:
        proposer = self._bough_proposer()
        return None if proposer is None else proposer.drafter


def mend_sampler() -> None:
    """Put right what vLLM 0.32 does wrong on a CPU when it verifies drafts that are sampled.

    It spreads temperature, top-k and top-p over the drafted positions into a copy that it drops,
    and goes on with memory that nobody wrote (https://github.com/vllm-project/vllm/issues/55005).
    A step without any draft ends the engine where somebody has a top-k. Where all of a prompt but
    one token is cached, it fills up the row with drafts of -1, and may take one for accepted.
    """
    from vllm.v1.sample import rejection_sampler as own

    own.expand_batch_to_tokens = expand_to_tokens
    own.apply_sampling_constraints = partial(constrain_some, own.apply_sampling_constraints)
    own._rejection_random_sample = partial(reject_padding, own._rejection_random_sample)


def constrain_some(constrain: Callable[..., Any], logits: torch.Tensor, *args: Any) -> torch.Tensor:
    """Temperature and truncation of (drafted, vocabulary) logits, of which there may be none."""
    found: torch.Tensor = constrain(logits, *args) if len(logits) else logits
    return found


def reject_padding(sample: Callable[..., None], *args: Any) -> None:
    """Accept or reject drafts; never accept the -1 that fills up a row.

    Args:
        sample: vLLM's own; it takes a draft whose probability is at least its uniform number.
        args: As it is given them: the third are (drafted,) ids, the eighth (drafted,) numbers.
    """
    chosen = list(args)
    ids, numbers = args[2], args[7]
    chosen[2] = ids.clamp(min=0)
    chosen[7] = numbers.masked_fill(ids < 0, 2.0)
    sample(*chosen)


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
