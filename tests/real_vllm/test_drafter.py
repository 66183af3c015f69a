"""Our drafter inside vLLM: the same answers, whoever learnt what, and whatever becomes of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from scipy.stats import chisquare

from engines.base import Capability, Constraint, Continuation, Health, Prefix, Sampling, TokenIds
from engines.conformance import CHECKS, Check, NotApplicable, Subject, run_check
from engines.drafters.errors import DrafterError
from engines.drafters.sharing import SharesDrafts, Taught
from engines.errors import ModelLoadError, UnsupportedByEngine
from engines.vllm_async import open_engine
from engines.vllm_engine import VllmEngine
from loadtests.peers.blocks import prompt_of, word_problems
from models.registry import bundled
from tests.real_vllm.conftest import SMALL
from tests.real_vllm.marks import SHARED
from tests.real_vllm.test_conformance import CLOSING, Shared
from tests.real_vllm.test_sampling import children

pytestmark = SHARED

GREEDY = Sampling(temperature=0.0, max_tokens=120, deltas=False)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def drafted() -> AsyncIterator[VllmEngine]:
    """The bundled generator with our drafter."""
    options = {**SMALL, "drafter": "adaptive"}
    engine = open_engine("sapling", str(bundled()["sapling-sums"]), options)
    yield engine
    await engine.aclose()


def prompts(engine: VllmEngine, count: int, seed: int = 3) -> list[TokenIds]:
    asked = [[{"role": "user", "content": prompt_of(p)}] for p in word_problems(count, seed)]
    rendered = [engine.render(messages) for messages in asked]
    return [ids for ids in rendered if isinstance(ids, tuple)]


async def answers(engine: VllmEngine, asked: list[TokenIds], how: Sampling) -> list[Continuation]:
    roots = [await engine.open(ids) for ids in asked]
    found = await asyncio.gather(*(children(engine, root, how) for root in roots))
    return [answer for (answer,) in found]


async def test_greedy_answers_are_the_same(drafted: VllmEngine, sapling: VllmEngine) -> None:
    """50 prompts in float32, ten at a time."""
    asked = prompts(drafted, 50)
    accepted = 0
    for at in range(0, len(asked), 10):
        ours = await answers(drafted, asked[at : at + 10], GREEDY)
        plain = await answers(sapling, asked[at : at + 10], GREEDY)
        assert [a.token_ids for a in ours] == [a.token_ids for a in plain]
        assert [a.finish for a in ours] == [a.finish for a in plain]
        for mine, other in zip(ours, plain, strict=True):
            assert mine.logps == pytest.approx(other.logps, abs=1e-4)
            assert 0 <= mine.accepted <= mine.drafted
        accepted += sum(a.accepted for a in ours)
    assert accepted > 50
    assert drafted.drafting.accepted >= accepted
    assert sapling.drafting.drafted == 0


async def test_samples_have_the_exact_distribution(drafted_tiny: VllmEngine) -> None:
    """Chi-square of 2000 sequences of three tokens at temperature 1.6, top 4.

    False alarms: 1 in 10,000. The drafter knows these tokens soon, so that most of the second and
    the third were drafted.
    """
    root = await drafted_tiny.open(tuple(range(5, 25)))
    how = Sampling(temperature=1.6, top_k=4, max_tokens=3, deltas=False)
    exact = await distribution(drafted_tiny, root, how, 3)
    assert sum(exact.values()) == pytest.approx(1.0)
    seen: Counter[TokenIds] = Counter()
    num_drafted = 0
    for block in range(20):
        found = await children(drafted_tiny, root, how, range(block * 100, block * 100 + 100))
        seen.update(one.token_ids for one in found)
        num_drafted += sum(one.drafted for one in found)
    assert set(seen) <= set(exact)
    assert num_drafted > 500
    expected = {sequence: 2000 * prob for sequence, prob in exact.items()}
    rare = [sequence for sequence in expected if expected[sequence] < 5]
    cells = [(seen[sequence], expected[sequence]) for sequence in expected if sequence not in rare]
    if rare:
        cells.append((sum(seen[s] for s in rare), sum(expected[s] for s in rare)))
    assert len(cells) > 8
    assert chisquare(*zip(*cells, strict=True)).pvalue > 1e-4


async def distribution(
    engine: VllmEngine, root: Prefix, how: Sampling, length: int
) -> dict[TokenIds, float]:
    """Probability of every sequence of a model that never ends, from its next-token ones."""
    exact: dict[TokenIds, float] = {(): 1.0}
    for _ in range(length):
        begun = list(exact)
        stems = await engine.extend([(root, sequence) for sequence in begun])
        rows = await engine.next_logprobs(stems, top_k=how.top_k)
        for sequence, row in zip(begun, rows, strict=True):
            weights = [math.exp(logp / how.temperature) for logp in row.logps]
            above = exact.pop(sequence)
            for token, weight in zip(row.ids, weights, strict=True):
                exact[*sequence, token] = above * weight / sum(weights)
    return exact


async def test_branches_and_later_runs_profit_and_other_tenants_do_not(
    drafted: VllmEngine,
) -> None:
    """With the same prompt, a tenant's first answer is drafted as if nobody had asked before."""
    (prompt,) = prompts(drafted, 1, seed=21)
    counts: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}
    for tenant in ("a", "a", "b"):
        [answer] = await children(drafted, await drafted.open(prompt, tenant=tenant), GREEDY)
        counts[tenant].append((answer.drafted, answer.accepted))
    first, second = counts["a"]
    assert second[1] > 2 * first[1]
    assert counts["b"] == [first]


async def test_a_replicas_lessons_are_learnt_for_their_tenant_only(drafted: VllmEngine) -> None:
    assert isinstance(drafted, SharesDrafts)
    (prompt,) = prompts(drafted, 1, seed=13)
    taught = Taught("adaptive", "teacher")
    counts = {}
    for tenant in ("teacher", "pupil", "stranger"):
        if tenant == "pupil":
            assert taught in drafted.taught()
            data = await drafted.draft_snapshot(taught)
            assert taught not in drafted.taught()
            await drafted.merge_drafts(Taught("adaptive", "pupil"), data)
        [answer] = await children(drafted, await drafted.open(prompt, tenant=tenant), GREEDY)
        counts[tenant] = answer.accepted
    assert counts["pupil"] > 2 * counts["teacher"]
    assert counts["stranger"] == counts["teacher"]
    with pytest.raises(DrafterError, match="snapshot"):
        await drafted.merge_drafts(taught, b"anything")


async def test_steps_of_a_search_are_drafted_too(drafted: VllmEngine) -> None:
    """Branches that end at a boundary and go on in other requests are one run."""
    (prompt,) = prompts(drafted, 1, seed=34)
    root = await drafted.open(prompt, tenant="steps")
    how = Sampling(temperature=0.0, max_tokens=120, boundaries=("\n",), deltas=False)
    totals = []
    for _ in range(2):
        prefix, accepted = root, 0
        while True:
            [step] = await children(drafted, prefix, how)
            prefix, accepted = step.prefix, accepted + step.accepted
            if not step.finish.is_open:
                break
        totals.append((prefix.token_ids, accepted))
    assert totals[0][0] == totals[1][0]
    assert totals[1][1] > 2 * totals[0][1]


async def test_only_its_own_drafter_may_be_named(drafted: VllmEngine, sapling: VllmEngine) -> None:
    assert Capability.DRAFTER in drafted.info.capabilities
    assert Capability.SEED not in drafted.info.capabilities
    root = await drafted.open((5, 6, 7))
    [found] = await children(drafted, root, Sampling(drafter="adaptive", max_tokens=3))
    assert len(found.token_ids) <= 3
    for engine, name in ((drafted, "suffix"), (sapling, "adaptive")):
        with pytest.raises(UnsupportedByEngine, match=f"drafter = '{name}'"):
            engine.check_sampling(Sampling(drafter=name))
    assert Capability.DRAFTER not in sapling.info.capabilities


async def test_what_it_holds_is_told(drafted: VllmEngine, sapling: VllmEngine) -> None:
    (prompt,) = prompts(drafted, 1, seed=55)
    await children(drafted, await drafted.open(prompt), GREEDY)
    report = await drafted.drafter_report()
    assert report is not None
    assert (report.drafter, report.failure) == ("adaptive", None)
    assert 0 < report.entries <= report.max_entries
    assert report.runs
    assert await sapling.drafter_report() is None


async def test_constraints_hold(drafted: VllmEngine) -> None:
    root = await drafted.open(drafted.render([{"role": "user", "content": "2+2?"}]))
    how = Sampling(max_tokens=60, constraint=Constraint(regex="[0-9]{3}=[0-9]{3}"))
    for _ in range(2):  # the second time it is known what comes
        for done in await children(drafted, root, how, (1, 2, 3)):
            assert re.fullmatch("[0-9]{3}=[0-9]{3}", done.text)


LAWS = [
    check
    for check in CHECKS
    # A grammar ends by a token that ends the answer, which this model has not.
    if check.name not in (*CLOSING, "constraints_shape_the_whole_answer")
]


@pytest.mark.parametrize("check", LAWS, ids=lambda check: check.name)
async def test_keeps_the_law(check: Check, drafted_tiny: VllmEngine) -> None:
    try:
        await run_check(check, Subject(lambda: Shared(drafted_tiny)))  # type: ignore[arg-type,return-value]
    except NotApplicable as why:
        pytest.skip(str(why))
    except UnsupportedByEngine as why:  # biases and bans, with any speculative decoding
        if "speculative decoding" not in str(why):
            raise
        pytest.skip(str(why))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def drafted_tiny(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[VllmEngine]:
    """A model that never ends: the laws ban what ends an answer, and drafting allows no bans."""
    endless = tmp_path_factory.mktemp("endless") / "model"
    shutil.copytree(tiny_model, endless)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((endless / name).read_text())
        (endless / name).write_text(json.dumps({**config, "eos_token_id": None}))
    engine = open_engine("tiny", str(endless), {**SMALL, "drafter": "adaptive"})
    assert not engine.info.eos_ids
    yield engine
    await engine.aclose()


FAILING = """
from engines.drafters.adaptive import Adaptive

class Failing(Adaptive):
    calls = 0

    def propose(self, *args, **kwargs):
        self.calls += 1
        if self.calls > 3:
            raise ZeroDivisionError("as drafters do")
        return super().propose(*args, **kwargs)

def open_drafter(vocab_size, options):
    return Failing()
"""


async def test_a_drafter_that_fails_costs_no_answer(
    tiny: VllmEngine, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed as a plugin beside bough, as anybody's would be."""
    (tmp_path / "failing_drafter.py").write_text(FAILING)
    about = tmp_path / "failing_drafter-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: failing-drafter\nVersion: 0.1\n")
    point = "failing = failing_drafter:open_drafter"
    (about / "entry_points.txt").write_text(f"[bough.drafters]\n{point}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    engine = open_engine("tiny", str(tiny_model), {**SMALL, "drafter": "failing"})
    try:
        prompt = tuple(itertools.islice(itertools.cycle(range(5, 15)), 40))
        how = Sampling(temperature=0.0, max_tokens=40)
        [ours] = await children(engine, await engine.open(prompt), how)
        [plain] = await children(tiny, await tiny.open(prompt), how)
        assert ours.token_ids == plain.token_ids
        report = await engine.drafter_report()
        assert report is not None
        assert report.failure == "ZeroDivisionError: as drafters do"
        assert engine.health is Health.READY
    finally:
        await engine.aclose()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"drafter": "clairvoyant"}, "known are adaptive"),
        ({"drafter": "adaptive", "draft_table": "no such table"}, "no such table"),
    ],
)
async def test_a_drafter_that_cannot_be_is_no_start(
    options: dict[str, str], says: str, tiny_model: Path
) -> None:
    with pytest.raises(ModelLoadError, match=says):
        open_engine("tiny", str(tiny_model), {**SMALL, **options})
