"""An outcome reward model behind SGLang: the raw scalar of `/classify`.

The worker is one that was started with ``--is-embedding`` and a `*ForSequenceClassification` model
of one label. The conversation with the answer as its last message is rendered and tokenised here,
by the model's own template, and sent as token ids. `/v1/classify` would not do: its softmax over
one label is 1.0 for every answer.

SGLang keeps no tenants apart on this route, and does not say what it found in its cache: every
token sent counts as computed.

Source: Skywork-Reward-V2, arXiv 2507.01352, is the kind of model that this serves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from engines.base import ChatMessage, Health, TokenIds
from engines.embedded.tokenizer import ChatTokenizer
from engines.errors import EngineError, ModelLoadError, PromptError
from engines.sglang_discovery import WorkerInfo, discover
from engines.sglang_options import WorkerOptions
from engines.sglang_wire import NotTaken
from reward_models.base import Candidate, Claim, RewardInfo, RewardKind, RewardStats, Score
from reward_models.claims import EmptyClaim
from reward_models.errors import RewardLoadError, RewardUnavailable
from reward_models.layouts import WholeAnswer
from reward_models.remote import ItemFailed, Remote, RemoteOptions, judged_together


class ClassifyOptions(RemoteOptions):
    """How to reach the worker, and what its number means.

    Attributes:
        tokenizer: A local directory with the model's tokenizer and template; the worker's own
            model path when left out.
        sigmoid: Squash the scalar into 0 … 1.
        low: Smallest scalar, where it is known.
        high: Largest scalar, likewise.
        max_batch: Most answers in one request.
    """

    tokenizer: Path | None = None
    sigmoid: bool = False
    low: float = -math.inf
    high: float = math.inf
    max_batch: int = Field(default=64, ge=1)


class ClassifyJudge:
    """The judge.

    Args:
        model_id: The id on the wire.
        options: Checked.
        worker: What the worker says of itself.
        layout: How the model reads.
        tokenizer_hash: Of the model's tokenizer.
    """

    def __init__(
        self,
        model_id: str,
        options: ClassifyOptions,
        worker: WorkerInfo,
        layout: WholeAnswer,
        tokenizer_hash: str,
    ) -> None:
        low, high = (0.0, 1.0) if options.sigmoid else (options.low, options.high)
        self.info = RewardInfo(
            model_id, RewardKind.OUTCOME, low, high, tokenizer_hash=tokenizer_hash
        )
        self._options = options
        self._max_tokens = worker.max_prompt_tokens
        self._layout = layout
        self._remote = Remote(model_id, options)
        self._tokens_computed = 0

    @property
    def health(self) -> Health:
        """See `Remote.health`."""
        return self._remote.health

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        """A claim that holds nothing: the worker keeps its own cache.

        Raises:
            PromptError: The model's template refuses the messages.
        """
        return EmptyClaim(self._layout.prompt(messages))

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        """See `RewardModel.score`. What is too long or refused scores NaN, it alone.

        Raises:
            RewardUnavailable: The judge is closed, or the worker failed for all of them.
        """
        self._remote.check_open()
        rows = [self._ids(candidate) for candidate in batch]
        asked = [(at, ids) for at, ids in enumerate(rows) if ids is not None]
        scores = [Score(math.nan)] * len(batch)
        size = self._options.max_batch
        parts = [asked[start : start + size] for start in range(0, len(asked), size)]
        results = await judged_together([self._ask([ids for _, ids in part]) for part in parts])
        for part, result in zip(parts, results, strict=True):
            for (at, _), score in zip(part, result or (), strict=False):
                scores[at] = score
        return scores

    def stats(self) -> RewardStats:
        """See `RewardModel.stats`; the worker's pages are its own."""
        return RewardStats(tokens_computed=self._tokens_computed)

    async def aclose(self) -> None:
        """See `RewardModel.aclose`."""
        await self._remote.aclose()

    def _ids(self, candidate: Candidate) -> TokenIds | None:
        """What the worker reads; None when that is more than it takes."""
        try:
            laid_out = self._layout.lay_out(candidate.messages, candidate.steps, None)
        except PromptError:
            return None
        fits = 0 < len(laid_out.tokens) <= self._max_tokens
        return laid_out.tokens if fits else None

    async def _ask(self, rows: list[TokenIds]) -> list[Score]:
        """One request; where the worker refuses it, one for each, to find the one at fault."""
        body = {"input_ids": [list(ids) for ids in rows]}
        try:
            replies = await self._remote.post("/classify", body)
        except ItemFailed:
            if len(rows) == 1:
                return [Score(math.nan)]
            alone = await judged_together([self._ask([ids]) for ids in rows])
            return [(result or [Score(math.nan)])[0] for result in alone]
        if not isinstance(replies, list) or len(replies) != len(rows):
            raise RewardUnavailable(
                f"the worker of reward model {self.info.model_id!r} did not answer {len(rows)} "
                "rows with as many"
            )
        self._tokens_computed += sum(map(len, rows))
        return [
            Score(self._value(reply), tokens_computed=len(ids))
            for reply, ids in zip(replies, rows, strict=True)
        ]

    def _value(self, reply: Any) -> float:
        """The scalar; NaN for what is none, or lies outside the declared range."""
        row = reply.get("embedding") if isinstance(reply, Mapping) else None
        if not isinstance(row, list) or len(row) != 1 or not isinstance(row[0], int | float):
            return math.nan
        value = float(row[0])
        if self._options.sigmoid:
            value = 0.5 * (1.0 + math.tanh(0.5 * value))
        return value if self.info.low <= value <= self.info.high else math.nan


def open_judge(model_id: str, model: str, options: Mapping[str, Any]) -> ClassifyJudge:
    """Judge with an SGLang worker.

    Args:
        model_id: The id on the wire.
        model: The worker's address, unless the option `base_url` has it.
        options: See `ClassifyOptions`.

    Raises:
        RewardLoadError: An option is wrong, nobody answers, the worker generates instead of
            judging, or the model's directory is not here.
    """
    given = {"base_url": model.rstrip("/")} if "://" in model else {}
    chosen = ClassifyOptions.parse(model_id, {**given, **options})
    worker = _worker(model_id, chosen)
    if worker.is_generation:
        raise RewardLoadError(
            f"{model_id}: the worker at {chosen.base_url} generates; a judge is started with "
            "--is-embedding"
        )
    directory = chosen.tokenizer or Path(worker.model_path)
    try:
        tokenizer = ChatTokenizer(directory)
    except ModelLoadError as err:
        raise RewardLoadError(
            f"{err}; the option tokenizer names a directory on this machine"
        ) from err
    return ClassifyJudge(model_id, chosen, worker, WholeAnswer(tokenizer), tokenizer.hash)


def _worker(model_id: str, options: ClassifyOptions) -> WorkerInfo:
    reach = WorkerOptions(
        api_key=options.api_key,
        api_key_env=options.api_key_env,
        api_key_file=options.api_key_file,
        connect_timeout_s=options.connect_timeout_s,
        idle_timeout_s=options.timeout_s,
    )
    try:
        return discover(options.base_url, reach)
    except (NotTaken, EngineError) as err:
        raise RewardLoadError(f"{model_id}: {err}") from err
