"""A judge of acceptability: the mean log-probability of an answer's tokens under a decoder.

The answer is read as plain text behind a fixed beginning, without the question: what is judged is
whether it is such text as the decoder was trained on. The value is at most 0, in nats per token; an
empty answer is worth `LOW`. It knows nothing of right and wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from engines.base import ChatMessage, TokenIds
from engines.embedded.runtime import Runtime, RuntimeOptions
from engines.embedded.tokenizer import ChatTokenizer
from reward_models.base import RewardInfo, RewardKind
from reward_models.errors import RewardLoadError
from reward_models.layouts import LaidOut
from reward_models.reader import ReadingJudge
from reward_models.readings import Judged

LOW: Final = -50.0
"""Nats per token; nothing that a decoder reads is as unlikely."""


class Behind:
    """A layout that puts the answer behind fixed tokens.

    Args:
        tokenizer: Of the decoder.
        before: What stands in front; special tokens are read as such. At least one token.
    """

    def __init__(self, tokenizer: ChatTokenizer, before: str) -> None:
        self._tokenizer = tokenizer
        self._before = tokenizer.encode(before)

    def prompt(self, messages: Sequence[ChatMessage]) -> TokenIds:
        """See `Layout.prompt`; the same for all messages."""
        return self._before

    def lay_out(
        self, messages: Sequence[ChatMessage], steps: Sequence[str], claimed: TokenIds | None
    ) -> LaidOut:
        """See `Layout.lay_out`; one judged token, the last."""
        tokens = self._before + self._tokenizer.encode("".join(steps))
        return LaidOut(tokens, len(self._before), (len(tokens),))


class MeanHead:
    """The mean log-probability of all tokens in front of the judged one, itself included.

    Args:
        logits: Next-token logits (N, vocab) of hidden states (N, C).
    """

    reads_tokens = True

    def __init__(self, logits: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._logits = logits

    def judge(
        self, hidden: torch.Tensor, rows: Sequence[int], tokens: TokenIds, logp: float
    ) -> list[Judged]:
        """See `Head.judge`."""
        if not tokens:
            return [Judged(LOW) for _ in rows]
        logps = self._logits(hidden[:-1]).log_softmax(-1)
        wanted = torch.tensor(tokens, device=logps.device).unsqueeze(1)
        total = float(logps.gather(1, wanted).sum())
        return [Judged(max(LOW, total / len(tokens)), total) for _ in rows]


def open_judge(model_id: str, model: str, options: Mapping[str, Any]) -> ReadingJudge:
    """Serve a decoder as a judge of acceptability.

    Args:
        model_id: The id on the wire.
        model: A Hugging Face model directory.
        options: ``before``, what stands in front of the answer (needed; a bos token, say), and
            those of `engines.embedded.runtime.RuntimeOptions`.

    Raises:
        RewardLoadError: ``before`` is missing, or has no tokens.
        ModelLoadError: The decoder cannot be served, or an option is wrong.
    """
    rest = dict(options)
    before = rest.pop("before", None)
    if not isinstance(before, str) or not before:
        raise RewardLoadError(
            f"{model_id}: the option 'before' must say what stands in front of the answer, such as "
            f"'<|begin|><|user|>', not {before!r}"
        )
    runtime = Runtime(Path(model), RuntimeOptions.parse(model, rest))
    info = RewardInfo(
        model_id=model_id,
        kind=RewardKind.OUTCOME,
        low=LOW,
        high=0.0,
        tokenizer_hash=runtime.tokenizer.hash,
        parameters=runtime.decoder.weights.parameters,
    )
    head = MeanHead(runtime.decoder.logits)
    return ReadingJudge(info, runtime, Behind(runtime.tokenizer, before), head)
