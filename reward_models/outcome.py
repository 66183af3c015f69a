"""An outcome reward model on the embedded runtime: one number for a whole answer.

The decoder reads the conversation with the answer as its last message, and a linear head makes one
unbounded number of the hidden state at its last token (`*ForSequenceClassification` with one
label). Answers share the KV of the conversation, and a longer answer that of the shorter one it
continues; only the end of the template is read again.

Source: Skywork-Reward-V2, arXiv 2507.01352; the published checkpoints are in `presets.toml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reward_models.base import RewardKind
from reward_models.checkpoint import open_checkpoint
from reward_models.reader import ReadingJudge


def open_judge(model_id: str, model: str, options: Mapping[str, Any]) -> ReadingJudge:
    """Serve an outcome reward model directory.

    Args:
        model_id: The id on the wire.
        model: A Hugging Face model directory.
        options: ``preset``; ``prefill``, hidden (the default) or shown, which ``bough.json`` may
            say too; and those of `engines.embedded.runtime.RuntimeOptions`.

    Raises:
        RewardLoadError: No preset fits, or the checkpoint does not fit its preset.
        ModelLoadError: The decoder cannot be served, or an option is wrong.
    """
    return open_checkpoint(model_id, model, options, RewardKind.OUTCOME)
