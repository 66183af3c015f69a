"""One child of `Engine.sample`, fed with the tokens of any backend.

The backend draws and may stop early for its own reasons; what ended the child, and how many of its
tokens belong to the text, is decided here over the token ids alone. So every engine that uses
`TokenChild` ends the same tokens in the same way, and tokens that a backend drew too many are
dropped without a trace in the answer.

Endings, the first that applies: a stop string, a stop id, `max_tokens`, the context, a boundary,
`max_step_tokens`. Closed endings come before open ones: a full answer has no next step.
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.base import Continuation, Delta, EngineInfo, Finish, Sampling, TokenIds, TopLogps
from engines.textstop import Stopped, TextTracker
from engines.token_prefix import TokenPrefix


class TokenChild:
    """What one child has drawn, and whether it is over.

    A prefix that is already full makes a child that is over before anything is drawn.

    Args:
        index: Number in the `sample` call.
        prefix: What it continues; stays the caller's.
        how: Its sampling options.
        info: Of the engine: its eos ids and its context.
    """

    __slots__ = (
        "_context_tokens",
        "_finish",
        "_how",
        "_kept",
        "_logps",
        "_matched",
        "_overrun",
        "_prefix",
        "_taken",
        "_tops",
        "_tracker",
        "drawn",
        "index",
        "stop_ids",
    )

    def __init__(self, index: int, prefix: TokenPrefix, how: Sampling, info: EngineInfo) -> None:
        self.index = index
        self.drawn: list[int] = []
        self.stop_ids = info.eos_ids | how.stop_token_ids
        self._prefix = prefix
        self._how = how
        self._context_tokens = info.context_tokens
        needs_prior = how.stop or how.boundaries
        self._tracker = TextTracker(
            prefix.token_bytes,
            how.stop,
            how.boundaries,
            prefix.answer_bytes if needs_prior else b"",
            stop_after=max(0, how.min_tokens - prefix.position),
        )
        self._logps: list[float] = []
        self._tops: list[TopLogps] = []
        self._taken = 0
        self._finish: Finish | None = None
        self._matched: str | int | None = None
        self._kept = 0
        self._overrun: TokenIds = ()
        self._end_if_full(None)

    @property
    def is_over(self) -> bool:
        """Whether it has ended; what is fed from now on is ignored."""
        return self._finish is not None

    @property
    def token_ids(self) -> TokenIds:
        """Prompt, answer and all drawn tokens: what a backend continues."""
        return (*self._prefix.token_ids, *self.drawn)

    @property
    def position(self) -> int:
        """Position in the answer of the token to be drawn next."""
        return self._prefix.position + len(self.drawn)

    @property
    def min_tokens_left(self) -> int:
        """Tokens to be drawn before a stop id or a stop string may end it."""
        return max(0, self._how.min_tokens - self.position)

    @property
    def room(self) -> int:
        """The most tokens that it may still draw; 0 when it is over."""
        if self.is_over:
            return 0
        how = self._how
        size = len(self._prefix.token_ids) + len(self.drawn)
        room = self._context_tokens - size
        if how.max_tokens is not None:
            room = min(room, how.max_tokens - self.position)
        if how.max_step_tokens is not None:
            room = min(room, max(1, how.max_step_tokens) - len(self.drawn))
        return room

    def feed(
        self,
        ids: Sequence[int],
        logps: Sequence[float],
        tops: Sequence[TopLogps] | None = None,
    ) -> int:
        """Append drawn tokens up to the child's end; the number of tokens used.

        Args:
            ids: As drawn.
            logps: One per id, in nats at temperature 1; empty where nobody reads them.
            tops: Alternatives per id, where they were asked for.
        """
        used = 0
        for at, token in enumerate(ids):
            if self.is_over:
                break
            used += 1
            if token in self.stop_ids and not self.min_tokens_left:
                self._overrun = (token,)
                self._end(Finish.STOP_TOKEN, token, len(self.drawn))
                break
            self.drawn.append(token)
            if logps:
                self._logps.append(logps[at])
            if tops is not None:
                self._tops.append(tops[at])
            self._end_if_full(self._tracker.push(token))
        return used

    def cancel(self) -> None:
        """The backend gave up on it; nothing happens when it is over."""
        if not self.is_over:
            self._end(Finish.CANCELLED, None, len(self.drawn))

    def delta(self) -> Delta | None:
        """What became certain since the last call; None when nothing did."""
        text, num_tokens = self._tracker.take(final=self.is_over)
        if not text and not num_tokens:
            return None
        here = slice(self._taken, self._taken + num_tokens)
        self._taken += num_tokens
        return Delta(
            index=self.index,
            token_ids=tuple(self.drawn[here]),
            text=text,
            logps=tuple(self._logps[here]),
            top_logps=tuple(self._tops[here]) if self._how.logprobs else None,
        )

    def continuation(
        self,
        *,
        cached_tokens: int = 0,
        computed_tokens: int = 0,
        drafted: int = 0,
        accepted: int = 0,
    ) -> Continuation:
        """The child, with what the backend says of its cost; one not over is cancelled."""
        self.cancel()
        drawn, kept = tuple(self.drawn), self._kept
        return Continuation(
            prefix=self._prefix.extended(drawn[:kept], cached_tokens),
            token_ids=drawn[:kept],
            text=self._tracker.text,
            logps=tuple(self._logps[:kept]),
            finish=self._finish or Finish.CANCELLED,
            matched=self._matched,
            index=self.index,
            overrun_ids=drawn[kept:] + self._overrun,
            top_logps=tuple(self._tops[:kept]) if self._how.logprobs else None,
            cached_tokens=cached_tokens,
            computed_tokens=computed_tokens,
            drafted=drafted,
            accepted=accepted,
        )

    def _end_if_full(self, stopped: Stopped | None) -> None:
        how, num_drawn = self._how, len(self.drawn)
        if stopped is not None and stopped.finish is Finish.STOP:
            self._end(Finish.STOP, stopped.matched, stopped.num_tokens)
        elif how.max_tokens is not None and self.position >= how.max_tokens:
            self._end(Finish.LENGTH, None, num_drawn)
        elif len(self._prefix.token_ids) + num_drawn >= self._context_tokens:
            self._end(Finish.CONTEXT, None, num_drawn)
        elif stopped is not None:
            self._end(Finish.BOUNDARY, stopped.matched, num_drawn)
        elif how.max_step_tokens is not None and num_drawn >= max(1, how.max_step_tokens):
            self._end(Finish.STEP_LENGTH, None, num_drawn)

    def _end(self, finish: Finish, matched: str | int | None, kept: int) -> None:
        self._finish, self._matched, self._kept = finish, matched, kept
