"""What the training of reward models can refuse."""

from __future__ import annotations

from reward_models.errors import RewardError


class TrainingError(RewardError):
    """Data, options or a checkpoint that a training cannot use; the message says which."""
