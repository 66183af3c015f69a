"""Asks an outcome judge what every beginning of some answers is worth.

Works with any `reward_models.base.RewardModel`: a beginning is one candidate, many are judged at
a time, and beginnings that answers share are judged once. What the judge is shown is the text of
the tokens, as it is in search, behind the beginning that a caller wrote where the judge is shown
one; tokens that end an answer have no text, so their reward is that of the whole finished answer.

Source: Saffron-1, arXiv 2506.06444, section 4.2: rewards are computed once, before the training.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.base import ChatMessage, TokenIds
from engines.embedded.config import read_config
from engines.embedded.tokenizer import ChatTokenizer
from reward_models.base import Candidate, Claim, RewardModel, asked_of
from reward_models.multifurcation import Dialogue
from reward_models.multifurcation_files import beginning
from reward_models.training.errors import TrainingError
from reward_models.training.token_rewards import TokenRewards


@dataclass(frozen=True)
class Answer:
    """An answer to have judged.

    Attributes:
        conv_id: Its name.
        split: train or validation.
        messages: What it answers; one of the assistant at their end is the beginning that a caller
            wrote.
        token_ids: Its tokens, as they were drawn, the one that ended it included.
    """

    conv_id: str
    split: str
    messages: tuple[ChatMessage, ...]
    token_ids: TokenIds


@dataclass(frozen=True)
class Reader:
    """How the model to be trained reads.

    Attributes:
        tokenizer: The base's.
        dialogue: What stands in front of an answer.
        end_ids: Tokens that end one.
        max_tokens: Texts are cut to so many tokens; the published corpus to 128.
    """

    tokenizer: ChatTokenizer
    dialogue: Dialogue
    end_ids: Collection[int]
    max_tokens: int = 128

    @classmethod
    def of(cls, base: Path, *, shows_prefill: bool = False, max_tokens: int = 128) -> Reader:
        """For a model on this base, reading as the judge that will be served does.

        Raises:
            ModelLoadError: The base's files cannot be read.
            RewardLoadError: The token that its texts begin with is none.
        """
        tokenizer = ChatTokenizer(base)
        dialogue = Dialogue(tokenizer, beginning(tokenizer, base), shows_prefill)
        return cls(tokenizer, dialogue, frozenset(read_config(base).eos_ids), max_tokens)


async def annotate(
    judge: RewardModel, answers: Iterable[Answer], reader: Reader, *, candidates: int = 512
) -> AsyncIterator[TokenRewards]:
    """Texts with the judge's rewards, in the order of the answers.

    An answer that leaves no token to learn from is passed over: its prompt fills `max_tokens`, or
    the judge values none of its beginnings.

    Args:
        judge: The teacher.
        answers: What to judge.
        reader: How it is to be read later.
        candidates: About how many to judge at a time.

    Raises:
        RewardUnavailable: The judge is gone.
    """
    waiting: list[tuple[Answer, TokenIds, TokenIds]] = []
    num_waiting = 0
    for answer in answers:
        prompt = reader.dialogue.prompt(answer.messages)
        kept = answer.token_ids[: max(0, reader.max_tokens - len(prompt))]
        if not kept or not prompt:
            continue
        waiting.append((answer, prompt, kept))
        num_waiting += len(kept)
        if num_waiting >= candidates:
            for text in await _judged(judge, waiting, reader):
                yield text
            waiting, num_waiting = [], 0
    for text in await _judged(judge, waiting, reader):
        yield text


async def _judged(
    judge: RewardModel, waiting: Sequence[tuple[Answer, TokenIds, TokenIds]], reader: Reader
) -> list[TokenRewards]:
    """One batch of answers with their rewards; each conversation is claimed while it lasts."""
    claims: dict[str, Claim] = {}
    beginnings: dict[tuple[str, str, bool], Candidate] = {}
    keys: list[list[tuple[str, str, bool]]] = []
    try:
        for answer, _, kept in waiting:
            is_begun = answer.messages[-1].get("role") == "assistant"
            shown = asked_of(judge.info, answer.messages, is_begun=is_begun)
            name = json.dumps(shown)
            if name not in claims:
                claims[name] = await judge.open(shown)
            keys.append([])
            for candidate in _beginnings(shown, kept, reader, claims[name]):
                keys[-1].append((name, candidate.text, candidate.is_finished))
                beginnings.setdefault(keys[-1][-1], candidate)
        scores = await judge.score(list(beginnings.values()))
    finally:
        for claim in claims.values():
            claim.release()
    values = dict(zip(beginnings, (score.value for score in scores), strict=True))
    found = []
    for (answer, prompt, kept), own in zip(waiting, keys, strict=True):
        rewards = (*(math.nan for _ in prompt), *(values[key] for key in own))
        if not all(map(math.isnan, rewards)):
            text = TokenRewards(answer.conv_id, answer.split, prompt + kept, rewards)
            found.append(text)
    return found


def _beginnings(
    messages: tuple[ChatMessage, ...], ids: TokenIds, reader: Reader, claim: Claim
) -> list[Candidate]:
    """A candidate for every token: the answer up to it."""
    found = []
    for length in range(1, len(ids) + 1):
        is_finished = ids[length - 1] in reader.end_ids
        shown = tuple(one for one in ids[:length] if one not in reader.end_ids)
        text = reader.tokenizer.decode(shown)
        steps = (text,) if text else ()
        found.append(Candidate(messages, text, shown, steps, claim, is_finished))
    return found


def answer_of(line: str, tokenizer: ChatTokenizer, end_id: int) -> Answer:
    """Read an answer from a line of JSON.

    ``{"conv_id", "split", "messages", "token_ids"}``, or ``content`` instead of the tokens: a text
    that ended, which is then tokenised.

    Raises:
        TrainingError: It is not such a line.
    """
    try:
        about: Mapping[str, Any] = json.loads(line)
        messages = tuple({str(k): v for k, v in one.items()} for one in about["messages"])
        if not messages:
            raise ValueError("it answers no message")
        if "token_ids" in about:
            ids = tuple(int(one) for one in about["token_ids"])
        else:
            ids = (*tokenizer.encode(str(about["content"])), end_id)
        return Answer(str(about["conv_id"]), str(about.get("split", "train")), messages, ids)
    except (ValueError, TypeError, KeyError, AttributeError) as err:
        raise TrainingError(f"not an answer: {line[:80]!r}: {err}") from err
