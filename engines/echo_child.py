"""One claim and one branch of the echo engine."""

from __future__ import annotations

from dataclasses import replace

from engines.base import (
    Continuation,
    Delta,
    EngineInfo,
    Finish,
    Prefix,
    Sampling,
    TokenIds,
    TopLogps,
)
from engines.echo_model import (
    BYTES,
    Logits,
    bytes_of,
    draw,
    listed,
    log_softmax,
    shaped,
    uniform_of,
)
from engines.errors import InvariantError
from engines.textstop import Stopped, TextTracker


class EchoPrefix:
    """A claim on tokens: a member of the engine's `claims` until it is released."""

    def __init__(
        self, claims: set[EchoPrefix], token_ids: TokenIds, response_start: int, request: int
    ) -> None:
        self._claims = claims
        self.request = request
        self.token_ids = token_ids
        self.response_start = response_start
        self.cached_tokens = 0
        self.is_released = False
        claims.add(self)

    @property
    def text(self) -> str:
        """The answer's text so far."""
        return bytes_of(self.token_ids[self.response_start :]).decode("utf-8", "replace")

    def fork(self) -> EchoPrefix:
        """Another claim on the same tokens."""
        return self.extended(())

    def extended(self, ids: TokenIds) -> EchoPrefix:
        """Another claim, on these tokens and `ids`.

        Raises:
            InvariantError: The claim was given back.
        """
        if self.is_released:
            raise InvariantError("a released prefix of the echo engine was used again")
        return EchoPrefix(self._claims, self.token_ids + ids, self.response_start, self.request)

    def release(self) -> None:
        """Give the claim back."""
        self.is_released = True
        self._claims.discard(self)


def own_prefix(prefix: Prefix) -> EchoPrefix:
    """The prefix as this engine's own.

    Raises:
        InvariantError: It belongs to another engine.
    """
    if not isinstance(prefix, EchoPrefix):
        raise InvariantError(f"a {type(prefix).__name__} of another engine reached the echo engine")
    return prefix


class EchoChild:
    """One branch being drawn: its claim, its text and its random stream."""

    def __init__(
        self, index: int, parent: EchoPrefix, how: Sampling, seed: int, info: EngineInfo
    ) -> None:
        self.claim = parent.fork()
        self.is_done = False
        self.drafted = 0
        self.accepted = 0
        self._index = index
        self._how = how
        self._seed = seed
        self._context_tokens = info.context_tokens
        self._stop_ids = info.eos_ids | how.stop_token_ids
        self._start = len(parent.token_ids)
        answered = parent.token_ids[parent.response_start :]
        self._tracker = TextTracker(
            BYTES,
            how.stop,
            how.boundaries,
            bytes_of(answered),
            stop_after=max(0, how.min_tokens - len(answered)),
        )
        self._logps: list[float] = []
        self._tops: list[TopLogps] = []
        self._taken = 0
        self._finish = Finish.CANCELLED
        self._matched: str | int | None = None
        self._kept = 0
        self._overrun: TokenIds = ()
        self._end_if_full(None)

    def step(self, logits: Logits) -> int:
        """Draw one token, and say which."""
        ids, position = self.claim.token_ids, self._position
        logps = log_softmax(logits)
        barred = self._how.ban_ids
        if position < self._how.min_tokens:
            barred |= self._stop_ids
        weighed = shaped(logits, self._how, ids, self.claim.response_start, barred)
        how = self._how
        if how.schedule is not None:
            how = replace(how, temperature=how.schedule.temperature(position))
        token = draw(weighed, how, uniform_of(self._seed, position))
        if token in self._stop_ids:
            self._overrun = (token,)
            self._end(Finish.STOP_TOKEN, token, len(self._logps))
            return token
        self.claim.token_ids = (*ids, token)
        self._logps.append(float(logps[token]))
        if self._how.logprobs is not None:
            top = listed(logps, None, None, self._how.logprobs)
            self._tops.append(tuple(zip(top.ids, top.logps, strict=True)))
        self._end_if_full(self._tracker.push(token))
        return token

    def delta(self) -> Delta | None:
        """What became certain since the last call; None when nothing did."""
        text, num_tokens = self._tracker.take(final=self.is_done)
        if not text and not num_tokens:
            return None
        here = slice(self._taken, self._taken + num_tokens)
        self._taken += num_tokens
        return Delta(
            index=self._index,
            token_ids=self._drawn[here],
            text=text,
            logps=tuple(self._logps[here]),
            top_logps=None if self._how.logprobs is None else tuple(self._tops[here]),
        )

    def continuation(self) -> Continuation:
        """The finished child; its claim goes to the receiver."""
        drawn = self._drawn
        self.claim.token_ids = self.claim.token_ids[: self._start + self._kept]
        return Continuation(
            prefix=self.claim,
            token_ids=drawn[: self._kept],
            text=self._tracker.text,
            logps=tuple(self._logps[: self._kept]),
            finish=self._finish,
            matched=self._matched,
            index=self._index,
            overrun_ids=drawn[self._kept :] + self._overrun,
            top_logps=None if self._how.logprobs is None else tuple(self._tops[: self._kept]),
            computed_tokens=len(drawn) + len(self._overrun) + self.drafted - self.accepted,
            drafted=self.drafted,
            accepted=self.accepted,
        )

    @property
    def _drawn(self) -> TokenIds:
        return self.claim.token_ids[self._start :]

    @property
    def _position(self) -> int:
        return len(self.claim.token_ids) - self.claim.response_start

    def _end_if_full(self, stopped: Stopped | None) -> None:
        """Closed endings before open ones: a full answer has no next step."""
        how, num_drawn = self._how, len(self._drawn)
        if stopped is not None and stopped.finish is Finish.STOP:
            self._end(Finish.STOP, stopped.matched, stopped.num_tokens)
        elif how.max_tokens is not None and self._position >= how.max_tokens:
            self._end(Finish.LENGTH, None, num_drawn)
        elif len(self.claim.token_ids) >= self._context_tokens:
            self._end(Finish.CONTEXT, None, num_drawn)
        elif stopped is not None:
            self._end(Finish.BOUNDARY, stopped.matched, num_drawn)
        elif how.max_step_tokens is not None and num_drawn >= how.max_step_tokens:
            self._end(Finish.STEP_LENGTH, None, num_drawn)

    def _end(self, finish: Finish, matched: str | int | None, kept: int) -> None:
        self.is_done = True
        self._finish, self._matched, self._kept = finish, matched, kept
