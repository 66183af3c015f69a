"""What a reward model can refuse, as one tree.

RewardError
├── RewardLoadError      a reward model that cannot be served; names the file or key
├── RewardUnavailable    the judge is gone or failed as a whole
└── RewardInputError     candidates this judge cannot read (too long, no steps)
"""

from __future__ import annotations


class RewardError(Exception):
    """Anything a reward model raises on purpose."""


class RewardLoadError(RewardError):
    """A reward model's files are incomplete or do not fit their base model."""


class RewardUnavailable(RewardError):
    """The judge is closed or failed; no candidate was scored.

    Attributes:
        model_id: Which judge, where somebody who knows several has said so.
    """

    model_id: str = ""


class RewardInputError(RewardError):
    """A candidate that this judge cannot read."""
