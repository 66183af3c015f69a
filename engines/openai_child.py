"""One answer as it comes from an upstream: its text, its end, and how many tokens it took.

What ends the text is decided here, by the same tracker as everywhere; the upstream's own stops only
save it work. The tracker reads characters, or tokens where the upstream names them and their texts
add up to the chunk. Tokens are counted by the upstream's usage, else by the tokens it named, else
by its chunks, of which servers send one per token unless they lag.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engines.base import Continuation, Delta, Finish, Sampling, TokenIds, TopLogps
from engines.openai_names import Lexicon, Named, read_choice, spell
from engines.openai_prefix import TextPrefix
from engines.openai_request import Bound
from engines.textstop import Stopped, TextTracker


@dataclass
class _Usage:
    """The upstream's last word on what it did; None where it said nothing."""

    prompt: int | None = None
    completion: int | None = None
    cached: int = 0

    def note(self, said: object) -> None:
        if not isinstance(said, Mapping):
            return
        prompt, completion = said.get("prompt_tokens"), said.get("completion_tokens")
        if isinstance(prompt, int) and isinstance(completion, int):
            self.prompt, self.completion = prompt, completion
            details = said.get("prompt_tokens_details")
            cached = details.get("cached_tokens") if isinstance(details, Mapping) else 0
            self.cached = cached if isinstance(cached, int) else 0


class TextChild:
    """One child of `sample`, fed with the chunks of its request.

    Args:
        index: Its number.
        parent: What it continues; it takes a claim of its own.
        how: How it was drawn.
        bound: The most tokens it was allowed.
        sent: The stop strings and boundaries that the upstream was told of.
        keeps_stop: Whether the upstream leaves a stop string in the text.
    """

    def __init__(
        self,
        index: int,
        parent: TextPrefix,
        how: Sampling,
        bound: Bound,
        sent: tuple[str, ...],
        *,
        keeps_stop: bool,
    ) -> None:
        self.claim = parent.fork()
        self.bound = bound
        self.is_root = not parent.text
        self.usage = _Usage()
        self._index = index
        self._how = how
        self._sent = sent
        self._keeps_stop = keeps_stop
        self._units: list[bytes] = []
        self._is_plain = not (how.stop or how.boundaries)
        prior = parent.text.encode("utf-8", "replace")
        self._tracker = TextTracker(self._units, how.stop, how.boundaries, prior)
        self._stopped: Stopped | None = None
        self._named: list[Named] = []
        self._chunks = 0
        self._told = 0
        self._finish: str | None = None
        self._stop_id: int | None = None
        self._ran_on = False
        self._received_bytes = 0

    @property
    def is_over(self) -> bool:
        """Whether to hang up: our stop was met, and the upstream does not end by it."""
        if self._stopped is None or self._finish is not None:
            return False
        return self._ran_on or self._stopped.matched not in self._sent

    @property
    def has_begun(self) -> bool:
        """Whether anything has come."""
        return self._chunks > 0

    @property
    def has_ended(self) -> bool:
        """Whether the upstream or our stop has ended the answer."""
        return self._finish is not None or self._stopped is not None

    def feed(self, chunk: Mapping[str, Any]) -> None:
        """Take one chunk."""
        self.usage.note(chunk.get("usage"))
        for choice in chunk.get("choices") or ():
            text, named = read_choice(choice)
            self._finish = choice.get("finish_reason") or self._finish
            reason = choice.get("stop_reason")
            self._stop_id = reason if isinstance(reason, int) else None
            self._named += named
            if text or named:
                self._chunks += 1
            if text and self._stopped is not None:
                self._ran_on = True
            elif text:
                self._push(text, named)

    def delta(self) -> Delta | None:
        """What became certain since the last call; None when nothing did."""
        text, _ = self._tracker.take(final=self._finish is not None)
        if not text:
            return None
        drawn = max(self._told, self._drawn)
        new, self._told = drawn - self._told, drawn
        return Delta(self._index, (), text, counted_tokens=new)

    def continuation(self, lexicon: Lexicon) -> Continuation:
        """The finished child; its claim goes to the receiver."""
        text = self._tracker.text
        finish, matched = self._ending()
        prompt, cached = self.usage.prompt or 0, self.usage.cached
        if self.is_root and prompt:
            self.claim.count.note(prompt, cached)
        kept, overrun, logps, tops = self._names(text, lexicon)
        drawn = self._drawn
        is_named = bool(kept or overrun)
        counted = len(kept) if is_named else drawn - self._cut_off(drawn)
        prefix = self.claim.extended(text, counted)
        self.claim.release()
        return Continuation(
            prefix=prefix,
            token_ids=kept,
            text=text,
            logps=logps,
            finish=finish,
            matched=matched,
            index=self._index,
            overrun_ids=overrun,
            top_logps=tops,
            cached_tokens=cached,
            computed_tokens=max(0, prompt - cached) + drawn,
            counted_tokens=None if is_named else counted,
            counted_overrun=0 if is_named else drawn - counted,
        )

    @property
    def _drawn(self) -> int:
        """Tokens that the upstream drew, as well as it can be told."""
        if self.usage.completion is not None:
            return self.usage.completion
        return len(self._named) or self._chunks

    def _push(self, text: str, named: Sequence[Named]) -> None:
        whole = text.encode("utf-8", "replace")
        self._received_bytes += len(whole)
        if named and "".join(one.text for one in named) == text:
            units = [one.text.encode("utf-8", "replace") for one in named]
        elif self._is_plain:
            units = [whole]
        else:
            units = [char.encode("utf-8", "replace") for char in text]
        for unit in units:
            self._units.append(unit)
            self._stopped = self._tracker.push(len(self._units) - 1)
            if self._stopped is not None:
                return

    def _ending(self) -> tuple[Finish, str | int | None]:
        """Closed endings before open ones: a full answer has no next step."""
        stopped, bound = self._stopped, self.bound
        if stopped is not None and stopped.finish is Finish.STOP:
            return Finish.STOP, stopped.matched
        is_full = bound.tokens is not None and self._drawn >= bound.tokens
        is_at_end = not self._ran_past if stopped else self._finish == "length" or not bound.tokens
        if is_full and bound.why == "length" and is_at_end:
            return Finish.LENGTH, None
        if stopped is not None:
            return Finish.BOUNDARY, stopped.matched
        if self._finish == "length":
            is_ours = bound.tokens is not None and (is_full or self.usage.completion is None)
            return (Finish(bound.why) if is_ours else Finish.CONTEXT), None
        if self._finish == "content_filter":
            return Finish.CANCELLED, None
        if self._stop_id is not None:
            return Finish.STOP_TOKEN, self._stop_id
        # cut off by the upstream, a stop string looks like an end of the answer's own
        is_told = self._keeps_stop or not self._sent
        return (Finish.STOP_TOKEN if is_told else Finish.STOP), None

    @property
    def _ran_past(self) -> bool:
        """Whether the upstream wrote on past the text's end."""
        return self._stopped is not None and self._text_bytes < self._received_bytes

    @property
    def _text_bytes(self) -> int:
        return len(self._tracker.text.encode("utf-8", "replace"))

    def _cut_off(self, drawn: int) -> int:
        """Tokens drawn past the text's end, as far as its length tells."""
        if not self._ran_past:
            return 0
        return drawn - round(drawn * self._text_bytes / self._received_bytes)

    def _names(
        self, text: str, lexicon: Lexicon
    ) -> tuple[TokenIds, TokenIds, tuple[float, ...], tuple[TopLogps, ...] | None]:
        """The named tokens inside the text and those past it; nothing where they do not fit."""
        nothing: tuple[TokenIds, TokenIds, tuple[float, ...], None] = ((), (), (), None)
        if self._how.logprobs is None or not self._named:
            return nothing
        is_cut = self._stopped is not None and self._stopped.finish is Finish.STOP
        spelled = spell(text, self._named, is_cut=is_cut)
        if spelled is None:
            return nothing
        size = len(spelled)
        spelled += [one.text.encode("utf-8", "replace") for one in self._named[size:]]
        ids = lexicon.ids_of(spelled)
        tops = tuple(lexicon.numbered(one.tops) for one in self._named[:size])
        if ids is None:
            return nothing
        return ids[:size], ids[size:], tuple(one.logp for one in self._named[:size]), tops
