"""`Sampling` as vLLM's parameters, one request at a time.

Where vLLM's own handling agrees with ours to the letter it is used; the rest goes to
`engines.vllm_shaping`. With speculative decoding vLLM takes no processor of ours: then schedules
are cut into pieces of constant temperature, a request each, and what else would need the processor
is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engines.base import Constraint, EngineInfo, Sampling, Schedule
from engines.child import TokenChild
from engines.embedded.sample import mix
from engines.errors import UnsupportedByEngine
from engines.vllm_shaping import Shape

_SEED_MASK: Final = (1 << 63) - 1
_COLDEST: Final = 0.01  # vLLM warms up anything between 0 and this
_HOTTEST: Final = 2.0
_MAX_STOP_IDS: Final = 512  # vLLM walks through the list at every token
_MAX_PIECES: Final = 16
_MAX_TABLE: Final = 4096  # calls of a schedule for one table; longer ones are made of its pieces
_MAX_MEMO: Final = 1024


@dataclass(frozen=True)
class Request:
    """One request for one child.

    Attributes:
        params: Keyword arguments of `SamplingParams`, but for the constraint.
        is_final_only: Whether nothing needs to be looked at before the request ends.
    """

    params: dict[str, Any]
    is_final_only: bool


def check(
    how: Sampling, info: EngineInfo, *, drafts: bool, position: int, drafter: str | None = None
) -> None:
    """Refuse what no request could carry.

    Args:
        how: What is asked.
        info: Of the engine that is asked.
        drafts: Whether speculative decoding is on.
        position: In the answer, of the first token to be drawn.
        drafter: The drafter of ours that the engine was started with.

    Raises:
        UnsupportedByEngine: Naming the option, and what to do instead.
    """

    def refuse(option: str, why: str) -> None:
        raise UnsupportedByEngine(option, info.model_id, why)

    size = info.vocab_size
    for token in (*how.logit_bias, *how.ban_ids):
        if not 0 <= token < size:
            refuse("logit_bias", f"token {token} is not in 0 … {size - 1}")
    if len(how.ban_ids | (info.eos_ids if how.min_tokens else frozenset())) >= size:
        refuse("ban_ids", f"all {size} tokens are banned: allow some")
    if how.drafter is not None and how.drafter != drafter:
        was = "without one" if drafter is None else f"with {drafter!r}, which drafts for everybody"
        refuse(
            "drafter",
            f"vLLM was started {was}; leave it out, or start it with the engine option "
            f"drafter = {how.drafter!r}",
        )
    if how.constraint is not None and not isinstance(how.constraint, Constraint):
        refuse("constraint", "it must be an engines.base.Constraint")
    if how.constraint is not None and position > 0:
        refuse(
            "constraint",
            "vLLM's grammars begin with the request, so an answer that is drawn step by step "
            "cannot have one; use a strategy that draws whole answers",
        )
    if drafts:
        _check_drafted(how, refuse, position)


def _check_drafted(how: Sampling, refuse: Callable[[str, str], None], position: int) -> None:
    why = "vLLM cannot while speculative decoding is on; leave it out"
    for name in ("min_p", "logit_bias", "ban_ids"):
        if getattr(how, name):
            refuse(name, why)
    pieces = [] if how.schedule is None else how.schedule.segments(_MAX_PIECES)
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(how, name) and (position > 0 or len(pieces) > 1):  # a request forgets the last
            refuse(name, f"over several steps, or with a schedule, {why}")
        if not -2 <= getattr(how, name) <= 2:
            refuse(name, "with speculative decoding it must be in -2…2")
    if how.constraint is not None and len(pieces) > 1:
        refuse("constraint", f"with a schedule {why}")
    name = "temperature" if how.schedule is None else "schedule"
    for heat in [how.temperature] if how.schedule is None else [heat for _, heat in pieces]:
        if 0 < heat < _COLDEST or heat > _HOTTEST:
            refuse(
                name,
                f"with speculative decoding temperatures must be 0 or in {_COLDEST}…{_HOTTEST}, "
                f"and this has {heat:g}",
            )


class NeedleIndex:
    """Which tokens hold a needle whole; remembers the answers.

    Args:
        token_bytes: Bytes of every token id.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        self._token_bytes = token_bytes
        self._memo: dict[tuple[str, ...], tuple[frozenset[int], bool]] = {}

    def find(self, needles: tuple[str, ...]) -> tuple[frozenset[int], bool]:
        """Tokens that complete one of `needles` for certain, and whether there are no others.

        A needle of one byte lies in one token. Too many tokens are as good as none.
        """
        found = self._memo.get(needles)
        if found is None:
            if len(self._memo) >= _MAX_MEMO:
                self._memo.clear()
            found = self._memo[needles] = self._search(needles)
        return found

    def _search(self, needles: tuple[str, ...]) -> tuple[frozenset[int], bool]:
        wanted = [needle.encode("utf-8", "replace") for needle in needles if needle]
        holding = frozenset(
            token
            for token, text in enumerate(self._token_bytes if wanted else ())
            if any(needle in text for needle in wanted)
        )
        if len(holding) > _MAX_STOP_IDS:
            return frozenset(), False
        return holding, all(len(needle) == 1 for needle in wanted)


class RequestMaker:
    """Makes the requests of all children of one `sample` call.

    Args:
        how: Its options.
        needles: Of the engine's tokens.
        info: Of the engine.
        drafts: Whether speculative decoding is on.
        position: Where in the answer the children begin.
        drafter: The drafter of ours that the engine was started with.

    Raises:
        UnsupportedByEngine: An option that cannot be honoured here.
    """

    def __init__(
        self,
        how: Sampling,
        needles: NeedleIndex,
        info: EngineInfo,
        *,
        drafts: bool,
        position: int,
        drafter: str | None = None,
    ) -> None:
        self.how = how
        self._drafts = drafts
        self._info = info
        self._table: tuple[int, npt.NDArray[np.float32]] | None = None
        check(how, info, drafts=drafts, position=position, drafter=drafter)
        self._needle_ids, self._finds_all = needles.find((*how.stop, *how.boundaries))

    def next(self, child: TokenChild, seed: int) -> Request:
        """The next request for `child`, which is not over."""
        how, room = self.how, child.room
        temperature, pieces_end = self._temperature(child.position)
        if pieces_end is not None:
            room = min(room, pieces_end - child.position)
        shape = None if self._drafts else self._shape(child, room)
        stop_ids = child.stop_ids
        if not child.min_tokens_left:
            stop_ids |= self._needle_ids
        params: dict[str, Any] = {
            "max_tokens": room,
            "min_tokens": min(room, child.min_tokens_left),
            "temperature": temperature,
            "top_p": how.top_p,
            "top_k": how.top_k,
            "seed": (seed if not child.drawn else mix(seed, child.position)) & _SEED_MASK,
            "stop_token_ids": sorted(t for t in stop_ids if 0 <= t < self._info.vocab_size),
            "ignore_eos": True,  # they are stop ids, so that one rule decides
            # Ranking the drawn token costs some 5 % of a step, so only where somebody reads it.
            "logprobs": 0 if how.logprobs is None and how.logps else how.logprobs,
            "flat_logprobs": True,
            "detokenize": False,
            "skip_clone": True,
        }
        if shape is None:
            params |= self._plain()
        else:
            params["extra_args"] = shape.to_args()
            if not shape.temperatures:
                params["min_p"] = how.min_p
        exact = self._finds_all and not child.min_tokens_left
        return Request(params, is_final_only=not how.deltas and exact)

    def _plain(self) -> dict[str, Any]:
        how = self.how
        return {
            "min_p": how.min_p,
            "presence_penalty": how.presence_penalty,
            "frequency_penalty": how.frequency_penalty,
            "repetition_penalty": how.repetition_penalty,
        }

    def _temperature(self, position: int) -> tuple[float, int | None]:
        """vLLM's temperature from `position` on, and where it ends."""
        schedule = self.how.schedule
        if schedule is None:
            heat = self.how.temperature
            return (heat if self._is_native(heat) else 1.0), None
        if not self._drafts:
            return 1.0, None
        pieces = schedule.segments(_MAX_PIECES)
        current = max((at for at, _ in enumerate(pieces) if pieces[at][0] <= position), default=0)
        ends = pieces[current + 1][0] if current + 1 < len(pieces) else None
        return pieces[current][1], ends

    @staticmethod
    def _is_native(heat: float) -> bool:
        return heat == 0 or _COLDEST <= heat <= _HOTTEST

    def _shape(self, child: TokenChild, room: int) -> Shape | None:
        how = self.how
        biases = dict(how.logit_bias) | dict.fromkeys(how.ban_ids, -np.inf)
        penalised = how.presence_penalty or how.frequency_penalty or how.repetition_penalty != 1
        temperatures = self._temperatures(child.position, room)
        if not biases and not penalised and not temperatures:
            return None
        return Shape(
            answered=child.position,
            temperatures=temperatures,
            min_p=how.min_p,
            presence_penalty=how.presence_penalty,
            frequency_penalty=how.frequency_penalty,
            repetition_penalty=how.repetition_penalty,
            bias_ids=np.fromiter(biases, dtype=np.int32).tobytes(),
            biases=np.fromiter(biases.values(), dtype=np.float32).tobytes(),
        )

    def _temperatures(self, position: int, room: int) -> bytes:
        """float32 for the next `room` tokens; the table is made once for all children."""
        schedule = self.how.schedule
        if schedule is None:
            heat = self.how.temperature
            return b"" if self._is_native(heat) else np.float32(heat).tobytes()
        if self._table is None or not self._table[0] <= position:
            self._table = (position, _heats(schedule, position, room))
        start = position - self._table[0]
        return self._table[1][start : start + room].tobytes()


def _heats(schedule: Schedule, position: int, room: int) -> npt.NDArray[np.float32]:
    """Temperatures of `room` tokens, float32; of very many tokens, by the schedule's pieces."""
    if room <= _MAX_TABLE:
        return np.array([schedule.temperature(position + at) for at in range(room)], np.float32)
    starts, heats = zip(*sorted(schedule.segments(_MAX_TABLE)), strict=True)
    piece = np.searchsorted(starts, np.arange(position, position + room), side="right") - 1
    return np.array(heats, np.float32)[np.maximum(piece, 0)]
