"""A process reward model on the embedded runtime: the chance, after each step, that the answer ends
right.

The base decoder with an adapter merged in reads the conversation and the answer; a linear head on
the final-norm hidden state at the last token of a step gives the reward, ``sigmoid(w . h + b)``. It
owns its KV trie, so a step is read once however many branches share it, and it remembers the value
of every step it has judged.

Source: Let's Verify Step by Step, Lightman et al., arXiv 2305.20050; labels by Monte-Carlo
    completion as in Math-Shepherd, arXiv
2312.08935.
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
from typing import Any, Final

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


@dataclass(frozen=True)
class _Reading:
    """One candidate laid out in tokens: `ends[i]` is the length up to and including step i."""

    tenant: str
    tokens: TokenIds
    ends: tuple[int, ...]
    keys: tuple[bytes, ...]
    known: Mapping[bytes, float]


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
        tensors = merge(read_tensors(base), directory)
        self._runtime = Runtime(base, options, tensors=tensors)
        head = read_file(directory / "head.safetensors")
        hidden = self._runtime.config.hidden
        for name, shape in (("weight", (1, hidden)), ("bias", (1,))):
            if name not in head or tuple(head[name].shape) != shape:
                raise RewardLoadError(f"{directory / 'head.safetensors'}: {name!r} must be {shape}")
            if not bool(torch.isfinite(head[name]).all()):
                raise RewardLoadError(
                    f"{directory / 'head.safetensors'}: {name!r} holds NaN or infinity"
                )
        device = self._runtime.decoder.device
        self._weight = head["weight"].float().to(device)[0]
        self._bias = head["bias"].float().to(device)
        self._values: OrderedDict[bytes, float] = OrderedDict()
        self.info = RewardInfo(
            model_id=model_id,
            kind=RewardKind.PROCESS,
            tokenizer_hash=self._runtime.tokenizer.hash,
            parameters=self._runtime.decoder.weights.parameters + hidden + 1,
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
        fresh: dict[bytes, float] = {}
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
        known = {key: self._values[key] for key in keys if key in self._values}
        return _Reading(tenant, tokens, ends, keys, known)

    def _request(self, reading: _Reading) -> ReadRequest | None:
        """What must still be run for a candidate; None when every step is remembered."""
        unknown = [
            (key, end)
            for key, end in zip(reading.keys, reading.ends, strict=True)
            if key not in reading.known
        ]
        if not unknown:
            return None
        first, last = unknown[0][1] - 1, unknown[-1][1]
        at = [end - 1 - first for _, end in unknown]

        def finish(hidden: torch.Tensor) -> list[tuple[bytes, float]]:
            logits = hidden[at].float() @ self._weight + self._bias
            values = torch.sigmoid(logits).tolist()
            return [(key, value) for (key, _), value in zip(unknown, values, strict=True)]

        return ReadRequest(reading.tenant, reading.tokens[:last], first, finish)

    def _score(
        self, reading: _Reading | None, fresh: Mapping[bytes, float], computed: dict[bytes, int]
    ) -> Score:
        if reading is None:
            return Score(math.nan)
        if not reading.ends:
            return Score(self.info.low)
        values = tuple(fresh[key] if key in fresh else reading.known[key] for key in reading.keys)
        # Of equal candidates the first one pays.
        return Score(values[-1], values, computed.pop(reading.keys[-1], 0))

    def _remember(self, fresh: Mapping[bytes, float]) -> None:
        self._values.update(fresh)
        while len(self._values) > _MAX_REMEMBERED:
            self._values.popitem(last=False)


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
