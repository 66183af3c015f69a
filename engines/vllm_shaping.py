"""What bough does to logits that vLLM cannot: temperature by position, penalties across steps.

A branch is continued by a new request whose prompt holds the answer so far, so vLLM's own penalties
would forget it, and its temperature is one number per request. Here a request brings a `Shape`, and
all rows of a batch that have one are treated together, in the order that all engines of bough keep:
repetition penalty, presence and frequency penalty, biases and bans, temperature, min-p. Top-k and
top-p stay vLLM's.

Nothing here imports vLLM; `engines.vllm_processor` is the hook. Letters: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

KEY: Final = "bough"
"""Name of the shape in a request's extra arguments."""

_GREEDY: Final = 1e-5  # a temperature below this takes the likeliest token, as in vLLM


@dataclass(frozen=True)
class Shape:
    """What one request wants; arrays are bytes, because it travels between processes.

    Attributes:
        answered: Last tokens of the prompt that are the answer so far.
        temperatures: float32, one for each token of this request, the last for all that follow;
            empty leaves the temperature to vLLM, else the request must ask it for 1.
        min_p: As in `Sampling`; read with temperatures only.
        presence_penalty: As in `Sampling`.
        frequency_penalty: As in `Sampling`.
        repetition_penalty: As in `Sampling`.
        bias_ids: int32, distinct ids that have a bias.
        biases: float32, added to their logits; minus infinity bans.
    """

    answered: int = 0
    temperatures: bytes = b""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bias_ids: bytes = b""
    biases: bytes = b""

    def to_args(self) -> dict[str, Any]:
        """As `SamplingParams.extra_args`."""
        return {KEY: asdict(self)}

    @classmethod
    def from_args(cls, args: Mapping[str, Any] | None) -> Shape | None:
        """The shape in a request's extra arguments, if there is one.

        Raises:
            TypeError: It is none of ours.
        """
        found = None if args is None else args.get(KEY)
        return None if found is None else cls(**found)


class Row:
    """One request in the batch.

    Args:
        shape: What it wants.
        prompt: Its prompt, the answer so far included.
        drawn: Its tokens drawn so far: a list that vLLM goes on appending to.
    """

    def __init__(self, shape: Shape, prompt: Sequence[int], drawn: Sequence[int]) -> None:
        self.shape = shape
        self.bias_ids = np.frombuffer(shape.bias_ids, dtype=np.int32)
        self.biases = np.frombuffer(shape.biases, dtype=np.float32)
        self._temperatures = np.frombuffer(shape.temperatures, dtype=np.float32)
        self._drawn = drawn
        self._num_counted = 0
        self._slots: dict[int, int] = {}  # token -> where it is in the two lists below
        self._ids: list[int] = []
        self._counts: list[int] = []  # occurrences in the answer; 0: in the prompt only
        repeats = shape.repetition_penalty != 1.0
        self.is_penalised = repeats or bool(shape.presence_penalty or shape.frequency_penalty)
        if self.is_penalised:
            start = len(prompt) - shape.answered
            for token in prompt[:start] if repeats else ():
                self._count(token, 0)
            for token in prompt[start:]:
                self._count(token, 1)

    @property
    def temperature(self) -> float | None:
        """For the token to be drawn next; None leaves it to vLLM."""
        if not len(self._temperatures):
            return None
        return float(self._temperatures[min(len(self._drawn), len(self._temperatures) - 1)])

    def counted(self) -> tuple[list[int], list[int]]:
        """Ids seen so far, and how often each is in the answer."""
        while self._num_counted < len(self._drawn) and self._drawn[self._num_counted] >= 0:
            self._count(self._drawn[self._num_counted], 1)
            self._num_counted += 1
        return self._ids, self._counts

    def _count(self, token: int, times: int) -> None:
        slot = self._slots.get(token)
        if slot is None:
            self._slots[token] = len(self._ids)
            self._ids.append(token)
            self._counts.append(times)
        else:
            self._counts[slot] += times


def shape_logits(logits: torch.Tensor, rows: Mapping[int, Row]) -> None:
    """Treat the rows of a batch in place.

    Args:
        logits: (R, V) float32.
        rows: By row number.
    """
    _penalise(logits, {at: row for at, row in rows.items() if row.is_penalised})
    _bias(logits, {at: row for at, row in rows.items() if len(row.bias_ids)})
    heated = {at: row for at, row in rows.items() if row.temperature is not None}
    if heated:
        _heat(logits, heated)


def _penalise(logits: torch.Tensor, rows: Mapping[int, Row]) -> None:
    if not rows:
        return
    numbers: list[int] = []
    ids: list[int] = []
    counts: list[int] = []
    factors: list[tuple[float, float, float]] = []
    for number, row in rows.items():
        seen, times = row.counted()
        numbers += [number] * len(seen)
        ids += seen
        counts += times
        shape = row.shape
        penalties = (shape.repetition_penalty, shape.presence_penalty, shape.frequency_penalty)
        factors += [penalties] * len(seen)
    if not ids:
        return
    where = (_on(logits, numbers, torch.int64), _on(logits, ids, torch.int64))
    times_in_answer = _on(logits, counts, torch.float32)
    repetition, presence, frequency = _on(logits, factors, torch.float32).unbind(1)
    values = logits[where]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values = values - presence * (times_in_answer > 0) - frequency * times_in_answer
    logits[where] = values


def _bias(logits: torch.Tensor, rows: Mapping[int, Row]) -> None:
    if not rows:
        return
    numbers = np.repeat(
        np.fromiter(rows, dtype=np.int64), [len(row.bias_ids) for row in rows.values()]
    )
    ids = np.concatenate([row.bias_ids for row in rows.values()]).astype(np.int64)
    biases = np.concatenate([row.biases for row in rows.values()])
    where = (_array_on(logits, numbers), _array_on(logits, ids))
    logits[where] += _array_on(logits, biases)


def _heat(logits: torch.Tensor, rows: Mapping[int, Row]) -> None:
    numbers = _on(logits, list(rows), torch.int64)
    given = [row.temperature or 0.0 for row in rows.values()]
    temperatures = _on(logits, given, torch.float32).unsqueeze(1)  # (R, 1)
    min_p = _on(logits, [row.shape.min_p for row in rows.values()], torch.float32).unsqueeze(1)
    values = logits[numbers]  # (R, V), a copy
    greedy = temperatures < _GREEDY
    best = values.argmax(-1, keepdim=True)
    values /= torch.where(greedy, 1.0, temperatures)
    probabilities = values.softmax(-1)
    dropped = probabilities < min_p * probabilities.amax(-1, keepdim=True)
    dropped |= greedy
    dropped.scatter_(1, best, False)  # the likeliest always stays
    logits[numbers] = values.masked_fill(dropped, -torch.inf)


def _on(like: torch.Tensor, values: Sequence[Any], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).to(like.device, non_blocking=True)


def _array_on(like: torch.Tensor, values: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(values).to(like.device, non_blocking=True)
