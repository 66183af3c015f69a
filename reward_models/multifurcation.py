"""A multifurcation reward model: one forward pass values every possible next token.

A decoder's next-token logits plus a trained bias are the rewards of an answer that goes on with
that token; they are never softmaxed, because a softmax shifts each answer's rewards by another
amount and so reorders them. Tokens that no training text held have the reward `UNSEEN`; those that
end an answer are exempt.

The model has a KV trie of its own, shared by all branches, so a claim that grew by a token costs
one token.

It reads ``\\n\\nUser:`` question ``\\n\\nAgent:`` answer, without a template and without a blank
behind the colons. The answer's tokens are taken as they were drawn, never tokenised again.

Source: Saffron-1, Qiu et al., arXiv 2506.06444, sections 4.1 to 4.4.
Differs: end-of-sequence is exempt from the mask, which otherwise forbids every answer to end; the
prompt is read in chunks and not token by token; no logits are stored. Earlier turns of a longer
conversation stand in front in the same form; the published code knows one question only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakValueDictionary

import torch

from engines.base import ChatMessage, Health, TokenIds
from engines.embedded.claims import PageClaim
from engines.embedded.jobs import LastStates, ReadRequest
from engines.embedded.runtime import Runtime, RuntimeOptions
from engines.embedded.tokenizer import ChatTokenizer
from engines.errors import EngineClosed, EngineError, ModelLoadError
from reward_models.base import (
    Candidate,
    Claim,
    RewardInfo,
    RewardKind,
    RewardRow,
    RewardStats,
    Score,
    rewards_at,
)
from reward_models.checkpoint import closed_on_error
from reward_models.errors import RewardLoadError, RewardUnavailable
from reward_models.layouts import text_of
from reward_models.multifurcation_files import beginning, read_files
from reward_models.multifurcation_rows import HiddenRow, RewardHead, RowClaim

_USER: Final = "\n\nUser:"
_AGENT: Final = "\n\nAgent:"
_PREFILLS: Final = ("hidden", "shown")

_Key: TypeAlias = tuple[str, TokenIds]  # whose, and all tokens


class Dialogue:
    """A conversation as the model reads it. System messages are left out: it never saw any.

    Args:
        tokenizer: The model's.
        bos: What every text begins with, where the tokenizer has such a token.
        shows_prefill: Whether the start of an answer that the caller wrote is read. The published
            model is not shown it.
    """

    def __init__(self, tokenizer: ChatTokenizer, bos: TokenIds, shows_prefill: bool) -> None:
        self._encode = tokenizer.encode
        self._bos = bos
        self._shows_prefill = shows_prefill

    def prompt(self, messages: Sequence[ChatMessage]) -> TokenIds:
        """All tokens in front of the answer."""
        turns = [one for one in messages if one.get("role") != "system"]
        prefill: TokenIds = ()
        if turns and turns[-1].get("role") == "assistant":
            last = turns.pop()
            prefill = self._encode(text_of(last)) if self._shows_prefill else ()
        tokens = self._bos
        for turn in turns:
            header = _AGENT if turn.get("role") == "assistant" else _USER
            tokens += self._encode(header) + self._encode(text_of(turn))
        return tokens + self._encode(_AGENT) + prefill


class MultifurcationJudge:
    """Values next tokens; `reward_models.base.MultifurcationRewardModel`.

    A candidate is worth the reward of its last token, which was predicted from all in front of it:
    a reward is of the whole answer so far, so nothing is summed. One without tokens has none (NaN).

    Args:
        info: What callers may know of it.
        runtime: The decoder with its cache; the judge closes it.
        dialogue: What it reads.
        head: What makes rewards.
    """

    def __init__(
        self, info: RewardInfo, runtime: Runtime, dialogue: Dialogue, head: RewardHead
    ) -> None:
        self.info = info
        self._runtime = runtime
        self._dialogue = dialogue
        self._head = head
        self._rows: WeakValueDictionary[_Key, HiddenRow] = WeakValueDictionary()

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        """See `RewardModel.open`.

        Raises:
            RewardUnavailable: The judge is closed.
        """
        tokens = self._dialogue.prompt(messages)
        try:
            pages = self._runtime.claim(tokens, tenant=tenant, response_start=len(tokens))
        except EngineClosed as err:
            raise RewardUnavailable(f"{self.info.model_id} is closed") from err
        return RowClaim(pages)

    async def next_rewards(self, claims: Sequence[Claim]) -> list[RewardRow]:
        """See `MultifurcationRewardModel.next_rewards`. Equal claims are one forward.

        Raises:
            RewardUnavailable: The runtime is closed or failed.
        """
        owned = [_own(claim) for claim in claims]
        keys: list[_Key] = [(one.tenant, one.token_ids) for one in owned]
        wanted = {key: one.pages for key, one in zip(keys, owned, strict=True)}
        rows, computed = await self._read(wanted)
        for one, key in zip(owned, keys, strict=True):
            if one.row is None and not one.is_released:
                one.row = rows[key]
                if key not in computed or one.pages is not wanted[key]:
                    self._keep(one)
        return [rows[key] for key in keys]

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """See `RewardModel.score`. A candidate longer than the context scores NaN.

        Raises:
            RewardUnavailable: The runtime is closed or failed.
        """
        drawn = [self._drawn(candidate) for candidate in batch]
        pages = [one.claim.pages if isinstance(one.claim, RowClaim) else None for one in batch]
        wanted = {one.key: claim for one, claim in zip(drawn, pages, strict=True) if one}
        rows, computed = await self._read(wanted)
        known = [one for one in drawn if one]
        found = await rewards_at([rows[one.key] for one in known], [(one.last,) for one in known])
        values = iter(found)
        return [
            Score(next(values)[0], tokens_computed=computed.pop(one.key, 0))
            if one
            else Score(math.nan)
            for one in drawn
        ]

    def stats(self) -> RewardStats:
        """See `RewardModel.stats`."""
        stats = self._runtime.stats()
        return RewardStats(
            pages_free=stats.pages_free,
            pages_cached=stats.pages_cached,
            pages_claimed=stats.pages_claimed,
            tokens_computed=stats.tokens_computed,
        )

    @property
    def health(self) -> Health:
        """Ready until its worker has stopped."""
        return Health.DEAD if self._runtime.worker.is_closed else Health.READY

    async def aclose(self) -> None:
        """See `RewardModel.aclose`."""
        await self._runtime.aclose()

    async def _read(
        self, wanted: Mapping[_Key, PageClaim | None]
    ) -> tuple[dict[_Key, HiddenRow], dict[_Key, int]]:
        """Rows behind tokens, and the tokens run for those that were not known."""
        rows = {key: row for key in wanted if (row := self._rows.get(key)) is not None}
        requests: dict[_Key, ReadRequest] = {}
        longest = self._runtime.context_tokens
        for key, claim in wanted.items():
            if key in rows:
                continue
            if self._can_read(key[1]):
                # Nobody goes on from what fills the context: it need not be kept.
                requests[key] = _request(key, claim, keeps=len(key[1]) < longest)
            else:
                rows[key] = HiddenRow(self._head, None)
        try:
            self._runtime.require_open()
            results = await self._runtime.read(list(requests.values()))
        except EngineError as err:
            raise RewardUnavailable(f"{self.info.model_id}: {err}") from err
        computed = {}
        for key, result in zip(requests, results, strict=True):
            rows[key] = self._rows[key] = HiddenRow(self._head, result.value)
            computed[key] = result.computed_tokens
        return rows, computed

    def _can_read(self, tokens: TokenIds) -> bool:
        in_vocabulary = 0 <= min(tokens) <= max(tokens) < self._runtime.config.vocab_size
        return in_vocabulary and len(tokens) <= self._runtime.context_tokens

    def _keep(self, claim: RowClaim) -> None:
        """Let a claim keep the pages of what has just been computed for it."""
        old = claim.pages
        if not self._can_read((*claim.token_ids, 0)):
            return  # no room for another token: nobody will go on from here
        try:
            new = self._runtime.claim(
                old.token_ids, tenant=old.tenant, response_start=old.response_start
            )
        except EngineClosed as err:
            raise RewardUnavailable(f"{self.info.model_id} is closed") from err
        new.age, new.priority = old.age, old.priority
        claim.hold(new)

    def _drawn(self, candidate: Candidate) -> _Drawn | None:
        """What a candidate's value is read from; None where it has none."""
        claim, tokenizer = candidate.claim, self._runtime.tokenizer
        answer = candidate.token_ids
        is_ours = min(answer, default=-1) >= 0 and max(answer, default=0) < tokenizer.size
        if not is_ours or (candidate.text and tokenizer.decode(answer) != candidate.text):
            answer = tokenizer.encode(candidate.text)
        if not answer:
            return None
        if isinstance(claim, RowClaim):
            tenant, prompt = claim.tenant, claim.token_ids
        else:
            tenant, prompt = "", self._dialogue.prompt(candidate.messages)
        return _Drawn((tenant, prompt + answer[:-1]), answer[-1])


class _Drawn(NamedTuple):
    """The last token drawn, and all in front of it."""

    key: _Key
    last: int


def _request(key: _Key, claim: PageClaim | None, *, keeps: bool) -> ReadRequest:
    tenant, tokens = key
    age, priority = (claim.age, claim.priority) if claim else (None, 0)
    is_own = keeps and claim is not None and claim.token_ids == tokens
    return ReadRequest(
        tenant,
        tokens,
        len(tokens) - 1,
        _STATES,
        age=age,
        priority=priority,
        claim=claim if is_own else None,
    )


def _states(hidden: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states (N, C), each as float32 (C,); of one batch they share memory."""
    return list(hidden.float())


_STATES: Final = LastStates(_states)


def _own(claim: Claim) -> RowClaim:
    if not isinstance(claim, RowClaim):
        raise TypeError(f"a claim of this judge is needed, not {type(claim).__name__}")
    if claim.is_released:
        raise ValueError("the claim was released; fork it before releasing to go on using it")
    return claim


def open_judge(model_id: str, model: str, options: Mapping[str, Any]) -> MultifurcationJudge:
    """Serve a multifurcation reward model directory.

    Args:
        model_id: The id on the wire.
        model: The directory; see `reward_models.multifurcation_files`.
        options: ``base``, the base's directory; ``prefill``, hidden (the default) or shown; and
            those of `engines.embedded.runtime.RuntimeOptions`. ``bough.json`` in the directory may
            say ``base`` and ``prefill`` too.

    Raises:
        RewardLoadError: A file is missing, unreadable, or does not fit the base.
        ModelLoadError: The base cannot be served, or an option is wrong.
    """
    directory = Path(model)
    ours = {key: options[key] for key in ("base", "prefill") if key in options}
    rest = {key: value for key, value in options.items() if key not in ours}
    parsed = RuntimeOptions.parse(model, rest)
    if not directory.is_dir():
        raise ModelLoadError(directory, "no such directory")
    files = read_files(directory, ours.get("base"))
    prefill = {**files.card, **ours}.get("prefill", _PREFILLS[0])
    if prefill not in _PREFILLS:
        raise RewardLoadError(f"{directory}: prefill {prefill!r} must be hidden or shown")
    runtime = Runtime(files.base, parsed, tensors=files.tensors)
    with closed_on_error(runtime):
        bos = beginning(runtime.tokenizer, files.base)
    weights, device = runtime.decoder.weights, runtime.decoder.device
    info = RewardInfo(
        model_id=model_id,
        kind=RewardKind.MULTIFURCATION,
        low=-math.inf,
        high=math.inf,
        tokenizer_hash=runtime.tokenizer.hash,
        parameters=weights.parameters + files.bias.numel(),
    )
    head = RewardHead(weights.head, files.bias.to(device), files.unseen.to(device))
    dialogue = Dialogue(runtime.tokenizer, bos, prefill == "shown")
    return MultifurcationJudge(info, runtime, dialogue, head)
