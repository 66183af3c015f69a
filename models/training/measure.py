"""The training networks as the coroutines that ``models.evaluate`` asks for.

Calls that wait at the same time are answered by one batch.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

import torch
from tokenizers import Tokenizer

from models.evaluate import Messages
from models.training.batches import Chat
from models.training.cards import DECODER
from models.training.network import Llama, load_checkpoint
from models.training.rollouts import sample
from models.training.tokenizer import END
from reward_models.training.process import StepHead, likelihood_sums, load_head


def load_chat(directory: Path) -> Chat:
    """The tokenizer of a model directory."""
    return Chat(Tokenizer.from_file(str(directory / "tokenizer.json")))


def render(chat: Chat, messages: Messages, answer: str) -> list[int]:
    """Token ids of a conversation up to somewhere in the assistant's answer."""
    turns = "".join(f"<|{turn['role']}|>{turn['content']}{END}" for turn in messages)
    return chat.encode(f"<|begin|>{turns}<|assistant|>{answer}")


class TorchGenerate:
    """A ``models.evaluate.Generate`` over a training network."""

    def __init__(self, network: Llama, chat: Chat, *, seed: int, max_tokens: int = 140) -> None:
        """``seed`` and the order of calls decide all samples."""
        self._network, self._chat = network, chat
        self._seed, self._max_tokens = seed, max_tokens
        self._waiting: list[tuple[list[int], int, float, asyncio.Future[list[str]]]] = []

    async def __call__(
        self, messages: Messages, prefix: str, n: int, temperature: float
    ) -> list[str]:
        """N completions of an answer."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[str]] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush)
        prompt = render(self._chat, messages, prefix)
        self._waiting.append((prompt, n, temperature, future))
        return await future

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        groups = defaultdict(list)
        for prompt, n, temperature, future in waiting:
            groups[n, temperature].append((prompt, future))
        for (n, temperature), calls in groups.items():
            self._seed += 1
            drawn = sample(
                self._network,
                [prompt for prompt, _ in calls],
                self._chat.end_id,
                num_samples=n,
                max_tokens=self._max_tokens,
                temperature=temperature,
                seed=self._seed,
            )
            for (_, future), rows in zip(calls, drawn, strict=True):
                future.set_result([self._chat.decode(row) for row in rows])


class TorchJudge:
    """A ``models.evaluate.Judge`` over a network with a head."""

    def __init__(self, network: Llama, head: StepHead, chat: Chat) -> None:
        """A decoder and the head over it."""
        self._network, self._head, self._chat = network, head, chat

    @classmethod
    def load(cls, directory: Path, device: str = "cpu") -> TorchJudge:
        """Read a reward model's directory."""
        decoder = directory / DECODER
        network = load_checkpoint(decoder, device)
        return cls(network, load_head(directory).to(device), load_chat(decoder))

    async def __call__(self, messages: Messages, steps: list[str]) -> list[float]:
        """The reward of each step."""
        return self.rewards([(messages, steps)])[0]

    @torch.inference_mode()
    def rewards(self, answers: list[tuple[Messages, list[str]]]) -> list[list[float]]:
        """Rewards of the steps of many answers, a batch at a time."""
        results: list[list[float]] = []
        for start in range(0, len(answers), 128):
            rows, ends, starts = [], [], []
            for messages, steps in answers[start : start + 128]:
                row, at = render(self._chat, messages, ""), []
                starts.append(len(row))
                for step in steps:
                    row += self._chat.encode(step)
                    at.append(len(row) - 1)
                rows.append(row)
                ends.append(at)
            width = max(len(row) for row in rows)
            padded = [row + [self._chat.pad_id] * (width - len(row)) for row in rows]
            ids = torch.tensor(padded, device=self._network.cos.device)
            hidden = self._network.hidden(ids)
            so_far = likelihood_sums(self._network, hidden, ids, torch.tensor(starts).to(ids))
            read = torch.sigmoid(self._head(hidden, so_far)).cpu()  # (rows, width)
            results += [[float(read[i, at]) for at in of_row] for i, of_row in enumerate(ends)]
        return results
