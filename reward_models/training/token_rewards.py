"""What a multifurcation reward model is trained on: texts whose tokens have rewards.

One line of JSON for each text::

    {"conv_id": "…", "split": "train", "token_ids": [1, 7, 9], "rewards": [null, 2.5, -1.0]}

``rewards[j]`` is the outcome reward of ``token_ids[: j + 1]``; null where nothing is known, as it
is for the prompt, and always at 0, because no token can be predicted from nothing. One bool for
each token of the vocabulary, derived from all lines, says which tokens never had a reward.

Source: Saffron-1, arXiv 2506.06444, section 4.2 and appendix A.1 ("Safety4M").
Differs: the format is ours, for none was published; a prompt's tokens carry no reward.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from engines.base import TokenIds
from reward_models.training.errors import TrainingError

SPLITS: Final = ("train", "validation")


@dataclass(frozen=True)
class TokenRewards:
    """A text and what its beginnings are worth.

    Attributes:
        conv_id: Its name, unique in a file.
        split: train or validation.
        token_ids: Prompt and answer, exactly as the reward model reads them.
        rewards: One for each token; NaN where there is none.
    """

    conv_id: str
    split: str
    token_ids: TokenIds
    rewards: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raise TrainingError for a text that cannot be trained on."""
        if self.split not in SPLITS:
            raise TrainingError(f"{self.conv_id}: split {self.split!r} must be one of {SPLITS}")
        if len(self.token_ids) != len(self.rewards):
            raise TrainingError(
                f"{self.conv_id}: {len(self.token_ids)} tokens have {len(self.rewards)} rewards"
            )
        if not self.num_rewards or not math.isnan(self.rewards[0]):
            raise TrainingError(f"{self.conv_id}: a reward is needed, and none at position 0")
        if min(self.token_ids) < 0 or any(map(math.isinf, self.rewards)):
            raise TrainingError(f"{self.conv_id}: a negative token id or an infinite reward")

    @property
    def num_rewards(self) -> int:
        """Tokens that have a reward."""
        return sum(not math.isnan(reward) for reward in self.rewards)

    def to_json(self) -> str:
        """One line, without its end."""
        rewards = [None if math.isnan(reward) else reward for reward in self.rewards]
        about = {"conv_id": self.conv_id, "split": self.split}
        return json.dumps({**about, "token_ids": self.token_ids, "rewards": rewards})

    @classmethod
    def from_json(cls, line: str) -> TokenRewards:
        """Read one line.

        Raises:
            TrainingError: It is not such a text.
        """
        try:
            found: dict[str, Any] = json.loads(line)
            rewards = (math.nan if one is None else float(one) for one in found["rewards"])
            ids = tuple(int(one) for one in found["token_ids"])
            return cls(str(found["conv_id"]), str(found["split"]), ids, tuple(rewards))
        except (ValueError, TypeError, KeyError) as err:
            raise TrainingError(f"not a text with rewards: {line[:80]!r}: {err}") from err


def read_texts(path: Path) -> list[TokenRewards]:
    """All texts of a file, in order.

    Raises:
        TrainingError: It is missing, a line is wrong, or two have one name.
    """
    found: dict[str, TokenRewards] = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            text = TokenRewards.from_json(line)
        except TrainingError as err:
            raise TrainingError(f"{path}:{number}: {err}") from err
        if text.conv_id in found:
            raise TrainingError(f"{path}:{number}: {text.conv_id!r} is there twice")
        found[text.conv_id] = text
    return list(found.values())


def unseen_mask(
    texts: Iterable[TokenRewards], vocab_size: int, exempt: Iterable[int] = ()
) -> torch.Tensor:
    """Which tokens never had a reward: (V,) bool.

    A token of a prompt was read and not valued, so it does not count as seen.

    Args:
        texts: The corpus.
        vocab_size: Of the model that is trained.
        exempt: Tokens that are never unseen: those that end an answer.

    Raises:
        TrainingError: A token lies beyond the vocabulary.
    """
    unseen = torch.ones(vocab_size, dtype=torch.bool)
    seen = set(exempt)
    for text in texts:
        pairs = zip(text.token_ids, text.rewards, strict=True)
        seen.update(token for token, reward in pairs if not math.isnan(reward))
        if max(text.token_ids) >= vocab_size:
            raise TrainingError(
                f"{text.conv_id}: token {max(text.token_ids)}, but the base has {vocab_size}"
            )
    unseen[sorted(seen)] = False
    return unseen


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from (line for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as err:
        raise TrainingError(f"{path}: cannot be read: {err}") from err
