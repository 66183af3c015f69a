"""Prompts put to the generator under a strategy, judged afterwards, with what each block cost.

Prompts run in blocks, all of a block at a time, and the counters are read around a block. Each
prompt has a tenant of its own in both caches, so that everybody pays for every prompt. A row of the
journal is a block.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from engines.base import ChatMessage, Sampling
from loadtests.bench.figures import Bench, BenchError, Journal, code_hash
from loadtests.bench.safety_counter import Counter, Point
from loadtests.bench.safety_models import Cast, is_harmful
from loadtests.bench.saplings import seed_of
from loadtests.bench.trials import Contender
from models.tasks import guarded
from models.tasks.base import Split
from reward_models.base import Candidate, RewardModel, asked_of
from search.run import Result, Run, RunRequest

MAX_TOKENS: Final = 32
BLOCK: Final = 25
_BRANCHES: Final = 400
"""In flight at a time, so that the pools hold them all and nothing is computed twice."""
SAFFRON: Final = "saffron"
VERDICTS: Final = ("judge", "teacher", "exact")
"""Who says whether an attack succeeded: the independent judge, the teacher, the task itself."""

Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """A conversation, and whether a text does what it asks for and should not.

    Attributes:
        messages: The last one is the assistant's when the answer is begun.
        is_right: Whether a text, beyond that beginning, is as it should be.
    """

    messages: tuple[ChatMessage, ...]
    is_right: Callable[[str], bool]

    @property
    def is_begun(self) -> bool:
        """Whether the user wrote the beginning of the answer."""
        return bool(self.messages[-1]["role"] == "assistant")


def asked(kind: guarded.Kind, split: Split, seed: int, index: int) -> Asked:
    """One prompt of the guarding task."""
    problem = guarded.drawn(kind, split, seed, index)
    return Asked(
        tuple(guarded.messages_of(problem)), lambda content: guarded.is_right(problem, content)
    )


class Outcomes:
    """What a contender did on some prompts, from the rows of their blocks."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        """Number of prompts."""
        return sum(len(row["contents"]) for row in self._rows)

    def __getitem__(self, name: str) -> Column:
        """A column with a number for each prompt."""
        return np.array([value for row in self._rows for value in row[name]], float)

    def total(self, name: str) -> float:
        """A number of each block, summed up."""
        return float(sum(row[name] for row in self._rows))

    @property
    def compute(self) -> float:
        """Forward tokens times parameters, the mean of a prompt."""
        return self.total("compute") / len(self)

    def point(self, verdict: str = VERDICTS[0]) -> Point:
        """Compute and success of the attacks by a verdict."""
        return Point(self.compute, self[verdict])


class Runs:
    """Runs contenders on the prompts of one kind and split.

    Args:
        bench: Whose seed, folder and time.
        cast: The models.
        kind: Of prompt.
        split: Of the prompts.
    """

    def __init__(self, bench: Bench, cast: Cast, kind: guarded.Kind, split: Split) -> None:
        self._bench = bench
        self._cast = cast
        self._kind = kind
        self._split = split
        self._journal = Journal(bench.out / f"safety.{kind}.{split}.jsonl")

    async def run(self, contender: Contender, count: int) -> Outcomes | None:
        """The first `count` prompts; None when time ran out before the last block began."""
        rows = []
        for start in range(0, count, BLOCK):
            indices = range(start, min(start + BLOCK, count))
            key = f"{contender.strategy}({contender}):{self._bench.seed}:{indices}:{code_hash()}"
            if key not in self._journal.rows:
                if self._bench.out_of_time():
                    return None
                self._journal.add(key, await self._block(contender, indices))
            rows.append(self._journal.rows[key])
        found = Outcomes(rows)
        self._bench.say(
            f"{self._split}, {self._kind}, {contender.strategy}({contender}): "
            f"{1 - found['exact'].mean():.3f} as it should be, "
            f"{found.compute / 1e6:.1f}M parameter-tokens (n={len(found)})"
        )
        return found

    async def _block(self, contender: Contender, indices: Iterable[int]) -> dict[str, Any]:
        prompts = [asked(self._kind, self._split, self._bench.seed, index) for index in indices]
        rewards = self._rewards(contender)
        counter = Counter(self._cast.engine, rewards)
        before = counter.tokens()
        gate = asyncio.Semaphore(max(1, _BRANCHES // max(1, int(contender.width))))

        async def gated(prompt: Asked, index: int) -> tuple[Result, int]:
            async with gate:
                return await self._one(contender, rewards, prompt, index)

        found = await asyncio.gather(*map(gated, prompts, indices))
        after = counter.tokens()
        contents = [result.answers[0].content for result, _ in found]
        generated, judged = (b - a for a, b in zip(before, after, strict=True))
        return {
            "contents": contents,
            "compute": counter.compute(before, after),
            "generated": generated,
            "judged": judged,
            "reward_calls": sum(result.spent.reward_calls for result, _ in found),
            "unique": sum(unique for _, unique in found),
            "prompt_tokens": sum(result.prompt_tokens for result, _ in found),
            "reward_prompt_tokens": sum([await _read_of(rewards, one) for one in prompts]),
            "judge": await _harm(self._cast.judge, prompts, contents),
            "teacher": await _harm(self._cast.teacher, prompts, contents),
            "exact": [
                float(not prompt.is_right(content))
                for prompt, content in zip(prompts, contents, strict=True)
            ],
        }

    def _rewards(self, contender: Contender) -> RewardModel | None:
        """Whom a contender searches with; `single` has nobody."""
        if contender.strategy == "single":
            return None
        return self._cast.rewards if contender.strategy == SAFFRON else self._cast.teacher

    async def _one(
        self, contender: Contender, rewards: RewardModel | None, prompt: Asked, index: int
    ) -> tuple[Result, int]:
        """A run, and the tokens it needed of its answers: those below which it went on."""
        tenant = f"{contender.strategy}({contender}):{self._kind}:{self._split}:{index}"
        request = RunRequest(
            strategy=contender.strategy,
            params=contender.params_at(index),
            messages=prompt.messages,
            continue_final=prompt.is_begun,
            sampling=Sampling(max_tokens=MAX_TOKENS, tenant=tenant),
            seed=seed_of("safety", self._bench.seed, index),
            run_id=f"bench-{index}",
            tenant=tenant,
        )
        run = Run(request, engine=self._cast.engine, judge=rewards)
        result = await run.result()
        return result, unique_tokens(run)


def unique_tokens(run: Run) -> int:
    """Distinct answer prefixes that a token-level search went on from, the empty one left out."""
    return len({one.token_ids for one in run.tree.branches if one.finish is None} - {()})


async def _read_of(rewards: RewardModel | None, prompt: Asked) -> int:
    """Tokens that a search's reward model reads in front of the answer; 0 where nobody does."""
    if rewards is None:
        return 0
    claim = await rewards.open(prompt.messages)
    size = len(claim.token_ids)
    claim.release()
    return size


async def _harm(
    judge: RewardModel, prompts: Sequence[Asked], contents: Sequence[str]
) -> list[float]:
    """Whether each attack succeeded, 0 or 1, by a judge that is shown what the model wrote."""
    batch = [
        Candidate(
            asked_of(judge.info, prompt.messages, is_begun=prompt.is_begun),
            content,
            (),
            (content,) if content else (),
        )
        for prompt, content in zip(prompts, contents, strict=True)
    ]
    values = [score.value for score in await judge.score(batch)]
    if any(map(math.isnan, values)):
        raise BenchError(f"{judge.info.model_id} could not judge {sum(map(math.isnan, values))}")
    return [float(is_harmful(judge, value)) for value in values]
