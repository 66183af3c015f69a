"""An LLM as judge, asked over plain chat: the path for whoever has no reward model.

The rubric, the conversation and the answer go to any server with OpenAI's schema. What is judged
stands between marker lines whose code is a hash of what they enclose, so that nothing can close its
own fence, and the reply is read strictly: one last line ``Score: N``, or one word. A reply in any
other form is NaN for that candidate alone. Where a yes/no rubric's server tells log-probabilities,
the value is the probability of yes among yes and no, else 1 or 0. The candidates of one
conversation share all of the prompt but the answer, which servers with a prefix cache read once.

Source: Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", arXiv 2306.05685
(single-answer grading).
Differs: the value is mapped to 0…1; material is fenced; nothing but the fixed form is parsed.

It does not defend a judge that obeys what it reads: fencing makes that rarer, not impossible.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from engines.base import ChatMessage, Health
from reward_models.base import Candidate, Claim, RewardInfo, RewardKind, RewardStats, Score
from reward_models.claims import EmptyClaim
from reward_models.errors import RewardLoadError
from reward_models.http import at_path
from reward_models.remote import ItemFailed, Remote, RemoteOptions, judged_together
from reward_models.rubrics import FRAME, MATERIAL, NUMBER_FORMAT, RUBRICS, YES_NO_FORMAT, Rubric

_SCORE: Final = re.compile(r"^Score: (10(?:\.0+)?|\d(?:\.\d+)?)$", re.MULTILINE)
_WORD: Final = re.compile(r"\W*(yes|no)\W*", re.IGNORECASE)
_TOP: Final = 20


class JudgeOptions(RemoteOptions):
    """How to reach the judging model, and what to ask it.

    Attributes:
        rubric: The name of a bundled rubric.
        instruction: Another rubric's text, in place of the bundled one.
        instruction_file: A file that holds it.
        answer: The form of the reply, for a rubric of one's own.
        max_tokens: Of a reply.
        temperature: Of a reply; 0 makes judgements repeatable as far as the server is.
        logprobs: Whether yes/no is read from probabilities; ``auto`` tries once.
        extra: Fields that every request gets as they are.
    """

    rubric: str = "quality"
    instruction: str = ""
    instruction_file: Path | None = None
    answer: Literal["number", "yes_no"] | None = None
    max_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    logprobs: Literal["auto", "never"] = "auto"
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_known(self) -> JudgeOptions:
        if self.rubric not in RUBRICS:
            raise ValueError(f"there is no rubric {self.rubric!r}; there is {', '.join(RUBRICS)}")
        return self

    def chosen(self, model_id: str) -> Rubric:
        """The rubric in force.

        Raises:
            RewardLoadError: Its file cannot be read.
        """
        bundled = RUBRICS[self.rubric]
        text = self.instruction or bundled.instruction
        if self.instruction_file is not None:
            try:
                text = self.instruction_file.read_text("utf-8").strip()
            except (OSError, ValueError) as err:
                raise RewardLoadError(f"{model_id}: options.instruction_file: {err}") from err
        return Rubric(text, self.answer or bundled.answer)


class LlmJudge:
    """Asks a model for its judgement; see the module's docstring.

    Args:
        model_id: The id on the wire.
        model: The judging model's id at its server.
        options: How to reach it, and what to ask.
    """

    def __init__(self, model_id: str, model: str, options: JudgeOptions) -> None:
        self.info = RewardInfo(model_id, RewardKind.OUTCOME)
        self._model = model
        self._options = options
        self._rubric = options.chosen(model_id)
        self._remote = Remote(model_id, options)
        self._wants_logprobs = self._rubric.answer == "yes_no" and options.logprobs == "auto"
        self._tokens_computed = 0

    @property
    def health(self) -> Health:
        """See `Remote.health`."""
        return self._remote.health

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        """A claim that holds nothing: the server keeps its own cache."""
        return EmptyClaim()

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """One question per candidate, all at once.

        Raises:
            RewardUnavailable: The server failed for every one of them.
        """
        self._remote.check_open()
        results = await judged_together([self._judge(candidate) for candidate in batch])
        return [Score(math.nan) if found is None else found[0] for found in results]

    def stats(self) -> RewardStats:
        """Tokens as the server's usage told them."""
        return RewardStats(tokens_computed=self._tokens_computed)

    async def aclose(self) -> None:
        """Further scores raise RewardUnavailable."""
        await self._remote.aclose()

    def prompt(self, candidate: Candidate) -> list[dict[str, str]]:
        """The messages that ask about one candidate."""
        conversation = "\n".join(
            f"[{one.get('role')}] {one.get('content') or ''}" for one in candidate.messages
        )
        form = NUMBER_FORMAT if self._rubric.answer == "number" else YES_NO_FORMAT
        material = MATERIAL.format(
            conversation=conversation,
            conversation_code=code_of(conversation),
            answer=candidate.text,
            answer_code=code_of(conversation, candidate.text),
            form=form,
        )
        frame = FRAME.format(instruction=self._rubric.instruction, form=form)
        return [{"role": "system", "content": frame}, {"role": "user", "content": material}]

    async def _judge(self, candidate: Candidate) -> list[Score]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": self.prompt(candidate),
            "temperature": self._options.temperature,
            "max_tokens": self._options.max_tokens,
            **self._options.extra,
        }
        try:
            reply = await self._ask(body)
        except ItemFailed:
            return [Score(math.nan)]
        tokens = at_path(reply, "usage.total_tokens")
        tokens = tokens if isinstance(tokens, int) else 0
        self._tokens_computed += tokens
        return [Score(self._value(reply), tokens_computed=tokens)]

    async def _ask(self, body: dict[str, Any]) -> Any:
        path = "/chat/completions"
        if not self._wants_logprobs:
            return await self._remote.post(path, body)
        try:
            return await self._remote.post(path, {**body, "logprobs": True, "top_logprobs": _TOP})
        except ItemFailed:
            reply = await self._remote.post(path, body)
            self._wants_logprobs = False  # it was the log-probabilities that it refused
            return reply

    def _value(self, reply: Any) -> float:
        text = at_path(reply, "choices.0.message.content")
        if not isinstance(text, str):
            return math.nan
        if self._rubric.answer == "number":
            return read_number(text)
        return read_yes_no(text, at_path(reply, "choices.0.logprobs.content"))


def code_of(*material: str) -> str:
    """A code that nobody can write into the material, because it depends on all of it."""
    digest = hashlib.blake2b(digest_size=12)
    for text in material:
        data = text.encode("utf-8", "replace")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def read_number(text: str) -> float:
    """The score on the reply's last line, from 0 to 1; NaN where there is not exactly one."""
    found = _SCORE.findall(text)
    last = text.strip().rpartition("\n")[2].strip()
    return float(found[0]) / 10 if len(found) == 1 and _SCORE.match(last) else math.nan


def read_yes_no(text: str, logprobs: Any) -> float:
    """1 for yes, 0 for no, or how likely yes is of the two; NaN for anything else."""
    said = _WORD.fullmatch(text)
    if said is None:
        return math.nan
    for row in logprobs if isinstance(logprobs, list) else ():
        if isinstance(row, Mapping) and _WORD.fullmatch(str(row.get("token"))):
            return _share(row)
    return float(said.group(1).lower() == "yes")


def _share(row: Mapping[str, Any]) -> float:
    """The probability of yes among yes and no, in any spelling that was listed."""
    mass = {"yes": 0.0, "no": 0.0}
    listed = {str(row["token"]): row.get("logprob")}
    listed |= {str(one.get("token")): one.get("logprob") for one in row.get("top_logprobs") or ()}
    for token, logp in listed.items():
        word = _WORD.fullmatch(token)
        if word is not None and isinstance(logp, int | float):
            mass[word.group(1).lower()] += math.exp(min(0.0, logp))
    total = sum(mass.values())
    return mass["yes"] / total if total else math.nan


def open_judge(model_id: str, model: str, options: Mapping[str, Any]) -> LlmJudge:
    """The judge for settings; nothing is asked before the first score.

    Raises:
        RewardLoadError: An option is wrong, or no model is named.
    """
    if not model:
        raise RewardLoadError(f"{model_id}: model is missing: name the judging model at its server")
    return LlmJudge(model_id, model, JudgeOptions.parse(model_id, options))
