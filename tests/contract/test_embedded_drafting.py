"""Drafted answers are the plain ones, token for token, whatever is drafted and however drawn."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from engines.base import Continuation, Finish, Sampling, TokenIds
from engines.conformance_drawing import Halves
from engines.drafters.base import DrafterStats, NodeTops, Shape, TokenTree
from engines.embedded.draft_budget import DraftBudget
from engines.embedded.engine import EmbeddedEngine, open_engine
from engines.errors import ModelLoadError, UnsupportedByEngine
from tests.contract.tiny_llama import write_tiny_llama

PROMPT = "the cat sat on the mat and the dog sat on"
NAMES = sorted(point.name for point in entry_points(group="bough.drafters"))


class Eager(DraftBudget):
    """Verifies everything that drafters propose."""

    def ask(self) -> int:
        return 12

    def cut(self, chances: Sequence[Sequence[float]], branches: int) -> list[int]:
        return [len(of_tree) for of_tree in chances]

    @property
    def is_resting(self) -> bool:
        return False

    @property
    def is_trying(self) -> bool:
        return False


@dataclass
class Knows:
    """Drafts what the plain run said, with errors: wrong siblings, wrong ends, gaps."""

    answers: Sequence[TokenIds]
    prompt: TokenIds
    size: int
    draw: random.Random

    shape: Shape = "tree"
    reach: int | None = None
    num_tops: int = 3

    def begin(self, run: str, prompt: Sequence[int], *, tenant: str) -> None: ...

    def propose(
        self, context: Sequence[int], budget_nodes: int, *, run: str, tenant: str
    ) -> TokenTree:
        said = tuple(context[len(self.prompt) :])
        fits = [a for a in self.answers if a[: len(said)] == said and len(a) > len(said)]
        if not fits or self.draw.random() < 0.2:
            return TokenTree()
        tokens: list[int] = []
        parents: list[int] = []
        above = -1
        for token in self.draw.choice(fits)[len(said) : len(said) + self.draw.randint(1, 5)]:
            wrong = self.draw.sample([t for t in range(self.size) if t != token], 2)
            level = self.draw.sample([token, *wrong[: self.draw.randint(0, 2)]], k=1)
            level = [token, *wrong[: self.draw.randint(0, 2)]] if token in level else level
            self.draw.shuffle(level)
            first = len(tokens)
            tokens += level
            parents += [above] * len(level)
            if token not in level:
                break
            above = first + level.index(token)
        keep = min(len(tokens), budget_nodes)
        return TokenTree(tuple(tokens[:keep]), tuple(parents[:keep]), (-0.1,) * keep)

    def observe(
        self,
        tree: TokenTree,
        emitted: Sequence[int],
        context: Sequence[int],
        tops: NodeTops | None = None,
        *,
        run: str,
        tenant: str,
    ) -> None:
        assert tops is None or len(tops.ids) == 1 + len(tree)

    def forget(self, run: str, *, tenant: str) -> None: ...

    def snapshot(self, *, tenant: str) -> bytes:
        return b""

    def merge(self, data: bytes, *, tenant: str) -> None: ...

    def stats(self) -> DrafterStats:
        return DrafterStats(0, 0, 0, 0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), context_tokens=256)


def eager(directory: Path, **options: object) -> EmbeddedEngine:
    engine = open_engine("tiny", str(directory), {"kv_tokens": 4096, "page_tokens": 8, **options})
    engine._runtime.worker.drafting.budget = Eager(12)
    return engine


async def answers(
    engine: EmbeddedEngine, how: Sampling, n: int = 3, prompt: str = PROMPT
) -> list[Continuation]:
    prefix = await engine.open(engine.encode(prompt))
    found = []
    async for item in engine.sample(prefix, how, n=n, seeds=[91 + i for i in range(n)]):
        if isinstance(item, Continuation):
            item.prefix.release()
            found.append(item)
    prefix.release()
    return sorted(found, key=lambda one: one.index)


def said(one: Continuation) -> tuple[object, ...]:
    return one.token_ids, one.overrun_ids, one.text, one.finish, one.matched


HOWS = {
    "greedy": Sampling(max_tokens=40, temperature=0.0),
    "drawn": Sampling(max_tokens=40),
    "cool": Sampling(max_tokens=40, temperature=0.6, top_p=0.8, top_k=20, min_p=0.02),
    "penalties": Sampling(
        max_tokens=40, presence_penalty=0.7, frequency_penalty=0.4, repetition_penalty=1.3
    ),
    "bias": Sampling(max_tokens=40, logit_bias={10: 3.0}, ban_ids=frozenset({11, 12})),
    "late end": Sampling(max_tokens=40, min_tokens=20, stop=("a", "e")),
    "stops": Sampling(max_tokens=40, temperature=1.5, stop=("t", "s on"), logprobs=2),
    "schedule": Sampling(max_tokens=40, schedule=Halves(13)),
    "steps": Sampling(max_tokens=40, boundaries=("\n", "o"), max_step_tokens=7),
}


@pytest.mark.parametrize("how", HOWS.values(), ids=HOWS)
async def test_right_and_wrong_drafts_change_nothing(directory: Path, how: Sampling) -> None:
    engine = eager(directory)
    try:
        plain = await answers(engine, how)
        drawn = [one.token_ids + one.overrun_ids for one in plain]
        tokens = engine.encode(PROMPT)
        for seed in range(3):
            knows = Knows(drawn, tokens, engine.info.vocab_size, random.Random(seed))
            engine._drafters._made["ngram"] = knows
            drafted = await answers(engine, replace(how, drafter="ngram"))
            assert [said(one) for one in drafted] == [said(one) for one in plain]
            for one, other in zip(drafted, plain, strict=True):
                assert one.logps == pytest.approx(other.logps, abs=2e-4)
                assert [[i for i, _ in tops] for tops in one.top_logps or ()] == [
                    [i for i, _ in tops] for tops in other.top_logps or ()
                ]
            total = sum(len(ids) for ids in drawn)
            if total > 30:
                assert 0 < sum(one.accepted for one in drafted) < sum(o.drafted for o in drafted)
        engine.check()
        assert engine.stats().pages_claimed == 0
    finally:
        await engine.aclose()


@pytest.mark.parametrize("name", NAMES)
async def test_every_drafter_is_lossless(directory: Path, name: str) -> None:
    engine = eager(directory)
    try:
        for how in (HOWS["greedy"], HOWS["drawn"]):
            plain = await answers(engine, replace(how, min_tokens=40))
            drafted = await answers(engine, replace(how, min_tokens=40, drafter=name))
            again = await answers(engine, replace(how, min_tokens=40, drafter=name))
            assert [said(one) for one in drafted] == [said(one) for one in plain]
            assert [said(one) for one in again] == [said(one) for one in plain]
        assert engine.stats().pages_claimed == 0
    finally:
        await engine.aclose()


async def test_what_is_kept_is_what_plain_decoding_would_have_cached(directory: Path) -> None:
    engine = eager(directory)
    fresh = eager(directory)
    try:
        prefix = await engine.open(engine.encode(PROMPT))
        how = Sampling(max_tokens=40, min_tokens=40)
        [plain] = [c async for c in engine.sample(prefix, how, seeds=[4])][-1:]
        assert isinstance(plain, Continuation)
        knows = Knows(
            [plain.token_ids], engine.encode(PROMPT), engine.info.vocab_size, random.Random(1)
        )
        engine._drafters._made["ngram"] = knows
        other = await engine.open(engine.encode(PROMPT), tenant="other")
        [done] = [c async for c in engine.sample(other, replace(how, drafter="ngram"), seeds=[4])][
            -1:
        ]
        assert isinstance(done, Continuation)
        assert done.accepted > 5
        [mine] = await engine.next_logprobs([done.prefix], top_k=300)
        clean = await fresh.open(engine.encode(PROMPT) + done.token_ids)
        [theirs] = await fresh.next_logprobs([clean], top_k=300)
        assert dict(zip(mine.ids, mine.logps, strict=True)) == pytest.approx(
            dict(zip(theirs.ids, theirs.logps, strict=True)), abs=2e-4
        )
        for claim in (prefix, plain.prefix, other, done.prefix, clean):
            claim.release()
    finally:
        await engine.aclose()
        await fresh.aclose()


async def test_a_full_pool_shortens_drafts_and_not_answers(directory: Path) -> None:
    how = Sampling(max_tokens=60, min_tokens=60)
    roomy, tight = eager(directory), eager(directory, kv_tokens=320)
    try:
        plain = await answers(roomy, how, n=6)
        for one in ("ngram", "adaptive"):
            drafted = await answers(tight, replace(how, drafter=one), n=6)
            assert [said(o) for o in drafted] == [said(o) for o in plain]
            tight.check()
            assert tight.stats().pages_claimed == 0
    finally:
        await roomy.aclose()
        await tight.aclose()


async def test_cancelling_amid_verifications_returns_every_page(directory: Path) -> None:
    engine = eager(directory)
    try:
        prefix = await engine.open(engine.encode(PROMPT))
        how = Sampling(max_tokens=200, min_tokens=200, drafter="token_recycling")
        for after in range(1, 30, 4):
            seen = 0
            async with aclosing(engine.sample(prefix, how, n=4, seeds=range(4))) as items:
                async for _ in items:
                    seen += 1
                    if seen >= after:
                        break
        prefix.release()
        engine.check()
        assert engine.stats().pages_claimed == 0
    finally:
        await engine.aclose()


async def test_a_draft_never_runs_past_the_context(directory: Path) -> None:
    engine = eager(directory)
    try:
        how = Sampling(temperature=0.0, min_tokens=1000, drafter="ngram")
        [done] = await answers(engine, how, n=1)
        assert done.finish is Finish.CONTEXT
        assert len(engine.encode(PROMPT)) + len(done.token_ids) == engine.info.context_tokens
    finally:
        await engine.aclose()


async def test_a_drafter_that_fails_costs_no_answer(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaks(Knows):
        def observe(self, *given: object, **more: object) -> None:
            raise RuntimeError("lost the thread")

    engine = eager(directory)
    try:
        plain = await answers(engine, HOWS["drawn"])
        tokens = engine.encode(PROMPT)
        breaks = Breaks([one.token_ids for one in plain], tokens, 300, random.Random(0))
        engine._drafters._made["ngram"] = breaks
        drafted = await answers(engine, replace(HOWS["drawn"], drafter="ngram"))
        assert [said(one) for one in drafted] == [said(one) for one in plain]
        assert "drafter 'ngram' failed" in caplog.text
    finally:
        await engine.aclose()


@pytest.mark.parametrize(
    "tree",
    [
        TokenTree((3, 300_000), (-1, 0), (-0.1, -0.2)),
        TokenTree((-1,), (-1,), (-0.1,)),
        TokenTree((3, 4), (-1, 5), (-0.1, -0.2)),
        TokenTree((3,), (-1,), (float("nan"),)),
        TokenTree((3,), (-1,), (1000.0,)),
    ],
    ids=["too large", "below 0", "no such parent", "no number", "overflow"],
)
async def test_a_draft_that_no_step_can_hold_fails_nobodys_batch(
    directory: Path, caplog: pytest.LogCaptureFixture, tree: TokenTree
) -> None:
    class Strange(Knows):
        def propose(
            self, context: Sequence[int], budget_nodes: int, *, run: str, tenant: str
        ) -> TokenTree:
            return tree

    engine = eager(directory)
    try:
        plain = await answers(engine, HOWS["drawn"])
        engine._drafters._made["ngram"] = Strange([], (), 300, random.Random(0))
        drafted = await answers(engine, replace(HOWS["drawn"], drafter="ngram"))
        assert [said(one) for one in drafted] == [said(one) for one in plain]
        assert all(one.drafted == 0 for one in drafted)
        assert caplog.text.count("drafter 'ngram' failed") == len(drafted)
        assert engine.stats().pages_claimed == 0
    finally:
        await engine.aclose()


async def test_unknown_drafters_and_wrong_tables_are_refused(
    directory: Path, tmp_path: Path
) -> None:
    engine = eager(directory)
    try:
        with pytest.raises(UnsupportedByEngine, match="adaptive, ngram"):
            engine.check_sampling(Sampling(drafter="crystal_ball"))
    finally:
        await engine.aclose()
    missing = str(tmp_path / "none.npz")
    with pytest.raises(ModelLoadError, match="draft_table"):
        open_engine("tiny", str(directory), {"draft_table": missing})
