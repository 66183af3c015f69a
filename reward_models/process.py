"""A process reward model on the embedded runtime: the chance, after each step, to end right.

The base decoder, with an adapter merged in where there is one, reads the conversation and the
answer. With ``h`` its final-norm hidden state at the last token of a step,

    reward = sigmoid(weight @ h + bias + likelihood * sum(log p))

where the sum runs over the answer's tokens up to the end of that step (nats, temperature 1, by the
same decoder); a head without `likelihood` leaves it out. The judge owns its KV trie, so a step is
read once however many branches share it, and it remembers the value of every step it has judged.

Source: Let's Verify Step by Step, Lightman et al., arXiv 2305.20050; labels by Monte-Carlo
completion as in Math-Shepherd, arXiv 2312.08935; rewards from log-likelihoods, Yuan et al., arXiv
2412.01981.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from engines.base import ChatMessage, TokenIds
from engines.embedded.claims import PageClaim
from engines.embedded.config import read_json
from engines.embedded.jobs import ReadRequest
from engines.embedded.runtime import Runtime, RuntimeOptions
from engines.embedded.weights import read_tensors
from engines.errors import CapacityExceeded, EngineClosed, EngineError, ModelLoadError, PromptError
from reward_models.base import Candidate, Claim, RewardInfo, RewardKind, RewardStats, Score
from reward_models.errors import RewardLoadError, RewardUnavailable
from reward_models.lora import merge, read_file

_MAX_REMEMBERED: Final = 1 << 17


class _Judged(NamedTuple):
    """What is remembered of a step: its reward, and the answer's log-probability up to its end."""

    value: float
    logp: float


@dataclass(frozen=True)
class _Reading:
    """One candidate laid out in tokens: `ends[i]` is the length up to and including step i."""

    tenant: str
    tokens: TokenIds
    start: int
    ends: tuple[int, ...]
    keys: tuple[bytes, ...]
    known: Mapping[bytes, _Judged]


class ProcessRewardModel:
    """Judges step by step.

    Args:
        model_id: The id on the wire.
        directory: Holds `bough.json` (with `base`, a path from here), the adapter and
            `head.safetensors`.
        options: Runtime knobs.

    Raises:
        RewardLoadError: A file is missing or does not fit the base.
        ModelLoadError: The base cannot be served.
    """

    def __init__(self, model_id: str, directory: Path, options: RuntimeOptions) -> None:
        card = _card(directory)
        base = (directory / str(card["base"])).resolve()
        tensors = read_tensors(base)
        if any(directory.glob("adapter_*")):
            tensors = merge(tensors, directory)
        self._runtime = Runtime(base, options, tensors=tensors)
        head = read_file(directory / "head.safetensors")
        hidden = self._runtime.config.hidden
        shapes = {"weight": (1, hidden), "bias": (1,), "likelihood": (1,)}
        head.setdefault("likelihood", torch.zeros(1))
        for name, shape in shapes.items():
            if name not in head or tuple(head[name].shape) != shape:
                raise RewardLoadError(f"{directory / 'head.safetensors'}: {name!r} must be {shape}")
            if not bool(torch.isfinite(head[name]).all()):
                raise RewardLoadError(
                    f"{directory / 'head.safetensors'}: {name!r} holds NaN or infinity"
                )
        device = self._runtime.decoder.device
        self._weight = head["weight"].float().to(device)[0]
        self._bias = head["bias"].float().to(device)
        self._likelihood = float(head["likelihood"])
        self._judged: OrderedDict[bytes, _Judged] = OrderedDict()
        self.info = RewardInfo(
            model_id=model_id,
            kind=RewardKind.PROCESS,
            tokenizer_hash=self._runtime.tokenizer.hash,
            parameters=self._runtime.decoder.weights.parameters + hidden + 2,
        )

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        """See `RewardModel.open`.

        Raises:
            RewardUnavailable: The judge is closed.
        """
        text = self._runtime.tokenizer.render(messages, tools=None, continue_final=False)
        tokens = self._runtime.tokenizer.encode(text)
        try:
            return self._runtime.claim(tokens, tenant=tenant, response_start=len(tokens))
        except EngineClosed as err:
            raise RewardUnavailable(f"{self.info.model_id} is closed") from err

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """See `RewardModel.score`. A candidate longer than the context scores NaN.

        Raises:
            RewardUnavailable: The runtime is closed or failed.
        """
        readings = [await self._lay_out(candidate) for candidate in batch]
        wanted: dict[bytes, ReadRequest] = {}
        for reading in readings:
            if reading is not None and (request := self._request(reading)) is not None:
                wanted.setdefault(reading.keys[-1], request)
        try:
            results = await self._runtime.read(list(wanted.values()))
        except EngineError as err:
            raise RewardUnavailable(f"{self.info.model_id}: {err}") from err
        computed = dict.fromkeys(wanted, 0)
        fresh: dict[bytes, _Judged] = {}
        for key, result in zip(wanted, results, strict=True):
            computed[key] = result.computed_tokens
            fresh.update(result.value)
        scores = [self._score(reading, fresh, computed) for reading in readings]
        self._remember(fresh)
        return scores

    def stats(self) -> RewardStats:
        """See `RewardModel.stats`."""
        stats = self._runtime.stats()
        return RewardStats(
            pages_free=stats.pages_free,
            pages_cached=stats.pages_cached,
            pages_claimed=stats.pages_claimed,
            tokens_computed=stats.tokens_computed,
        )

    async def aclose(self) -> None:
        """See `RewardModel.aclose`."""
        await self._runtime.aclose()

    async def _lay_out(self, candidate: Candidate) -> _Reading | None:
        """Tokens and step ends of a candidate; None when it does not fit the context."""
        claim = candidate.claim
        if not isinstance(claim, PageClaim):
            try:
                opened = await self.open(candidate.messages)
            except (PromptError, CapacityExceeded):
                return None
            opened.release()
            prompt, tenant = opened.token_ids, ""
        else:
            prompt, tenant = claim.token_ids, claim.tenant
        steps = [self._runtime.tokenizer.encode(step) for step in candidate.steps]
        tokens = prompt + tuple(token for step in steps for token in step)
        if len(tokens) >= self._runtime.context_tokens:
            return None
        ends = tuple(accumulate((len(step) for step in steps), initial=len(prompt)))[1:]
        keys = _keys(tenant, tokens, ends)
        known = {key: self._judged[key] for key in keys if key in self._judged}
        return _Reading(tenant, tokens, len(prompt), ends, keys, known)

    def _request(self, reading: _Reading) -> ReadRequest | None:
        """What must still be run for a candidate; None when every step is remembered."""
        num_known = next(
            (i for i, key in enumerate(reading.keys) if key not in reading.known), None
        )
        if num_known is None:
            return None
        # Logits for a step's first token come from the token in front of it.
        before = reading.ends[num_known - 1] if num_known else reading.start
        logp = reading.known[reading.keys[num_known - 1]].logp if num_known else 0.0
        keys, ends = reading.keys[num_known:], reading.ends[num_known:]

        def finish(hidden: torch.Tensor) -> list[tuple[bytes, _Judged]]:
            return self._judge(hidden, reading.tokens[before : ends[-1]], logp, keys, ends)

        return ReadRequest(reading.tenant, reading.tokens[: ends[-1]], before - 1, finish)

    def _judge(
        self,
        hidden: torch.Tensor,
        tokens: TokenIds,
        logp: float,
        keys: Sequence[bytes],
        ends: Sequence[int],
    ) -> list[tuple[bytes, _Judged]]:
        """Judge the steps that end at `ends`, the last at the end of `tokens`.

        Args:
            hidden: (len(tokens) + 1, C) states, from the token in front of `tokens` on.
            tokens: What is new.
            logp: Of the answer in front of them.
            keys: Of the steps.
            ends: Lengths up to each step's end.
        """
        at = [len(tokens) - ends[-1] + end for end in ends]  # rows of `hidden`
        logits = hidden[at].float() @ self._weight + self._bias
        sums = torch.zeros(len(at))
        if self._likelihood:
            rows = self._runtime.decoder.logits(hidden[:-1]).log_softmax(-1)
            wanted = torch.tensor(tokens, device=rows.device).unsqueeze(1)
            new = rows.gather(1, wanted).squeeze(1).cumsum(0)
            sums = logp + torch.cat((new.new_zeros(1), new))[at]
            logits = logits + self._likelihood * sums
        values = torch.sigmoid(logits).tolist()
        judged = map(_Judged, values, sums.tolist())
        return list(zip(keys, judged, strict=True))

    def _score(
        self, reading: _Reading | None, fresh: Mapping[bytes, _Judged], computed: dict[bytes, int]
    ) -> Score:
        if reading is None:
            return Score(math.nan)
        if not reading.ends:
            return Score(self.info.low)
        judged = [fresh[key] if key in fresh else reading.known[key] for key in reading.keys]
        values = tuple(step.value for step in judged)
        # Of equal candidates the first one pays.
        return Score(values[-1], values, computed.pop(reading.keys[-1], 0))

    def _remember(self, fresh: Mapping[bytes, _Judged]) -> None:
        self._judged.update(fresh)
        while len(self._judged) > _MAX_REMEMBERED:
            self._judged.popitem(last=False)


def _keys(tenant: str, tokens: TokenIds, ends: Sequence[int]) -> tuple[bytes, ...]:
    """A key per step, standing for the tenant and all tokens up to the step's end."""
    name = tenant.encode()
    digest = hashlib.blake2b(len(name).to_bytes(8, "little") + name, digest_size=16)
    keys, start = [], 0
    for end in ends:
        digest.update(array("q", tokens[start:end]).tobytes())
        keys.append(digest.digest())
        start = end
    return tuple(keys)


def _card(directory: Path) -> dict[str, Any]:
    try:
        card = read_json(directory / "bough.json")
    except ModelLoadError as err:
        raise RewardLoadError(str(err)) from err
    if "base" not in card:
        raise RewardLoadError(f"{directory / 'bough.json'}: the key 'base' is missing")
    return card


def open_judge(model_id: str, model: str, options: Mapping[str, Any]) -> ProcessRewardModel:
    """Serve a process reward model directory.

    Args:
        model_id: The id on the wire.
        model: The directory.
        options: See `engines.embedded.runtime.RuntimeOptions`.

    Raises:
        RewardLoadError: The adapter or head is wrong.
        ModelLoadError: The base or an option is wrong.
    """
    return ProcessRewardModel(model_id, Path(model), RuntimeOptions.parse(model, options))
