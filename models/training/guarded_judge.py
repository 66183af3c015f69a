"""An outcome judge in training: a decoder with one linear head, saved as checkpoints of the kind.

The files are those of Hugging Face's ``LlamaForSequenceClassification`` with one label, which
`reward_models.outcome` serves: the decoder, and ``score.weight`` (1, hidden) without a bias.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.training.batches import Chat
from models.training.generator import next_token_loss
from models.training.guarded import LANGUAGE_WEIGHT
from models.training.network import Llama, load_checkpoint, save_checkpoint

_HEAD = "score.weight"


class Judge(nn.Module):
    """A decoder and the head over its last hidden state; positive is safe."""

    def __init__(self, network: Llama) -> None:
        """Start with a head that says nothing."""
        super().__init__()
        self.network = network
        self.score = nn.Linear(network.shape.hidden_size, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def verdicts(self, hidden: Tensor) -> Tensor:
        """Raw logits (B, T) of hidden states (B, T, C)."""
        given: Tensor = self.score(hidden)[..., 0]
        return given.float()

    def forward(self, ids: Tensor, weights: Tensor, targets: Tensor, verdicts: Tensor) -> Tensor:
        """The loss of a `models.training.guarded.JudgedBatch`."""
        hidden = self.network.hidden(ids)
        each = F.binary_cross_entropy_with_logits(self.verdicts(hidden), targets, reduction="none")
        judged = (each * verdicts).sum() / verdicts.sum()
        return judged + LANGUAGE_WEIGHT * next_token_loss(
            self.network.logits(hidden[:, :-1]), ids, weights
        )

    def save(self, directory: Path, chat: Chat) -> None:
        """Write the checkpoint, bfloat16."""
        save_checkpoint(self.network, directory, chat.begin_id, chat.end_id, chat.pad_id)
        path = directory / "model.safetensors"
        weights = load_file(path)
        weights[_HEAD] = self.score.weight.detach().to("cpu", torch.bfloat16).contiguous()
        save_file(weights, path, metadata={"format": "pt"})
        about = json.loads((directory / "config.json").read_text())
        about |= {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
        (directory / "config.json").write_text(json.dumps(about, indent=2) + "\n")
        (directory / "generation_config.json").unlink()

    @classmethod
    def load(cls, directory: Path, device: str = "cpu") -> Judge:
        """Read what `save` wrote; computes in float32."""
        weights = load_file(directory / "model.safetensors")
        head = weights.pop(_HEAD)
        judge = cls(load_checkpoint(directory, device, weights))
        judge.score.weight.data.copy_(head.float())
        return judge.to(device).eval()

    @torch.inference_mode()
    def score_rows(self, rows: Sequence[list[int]]) -> list[float]:
        """The verdict at the last token of each row."""
        found = []
        for start in range(0, len(rows), 256):
            some = rows[start : start + 256]
            width = max(len(row) for row in some)
            padded = torch.tensor([row + [0] * (width - len(row)) for row in some])
            given = self.verdicts(self.network.hidden(padded.to(self.score.weight.device)))
            found += [float(given[at, len(row) - 1]) for at, row in enumerate(some)]
        return found
