"""Annealed schedules: shape, pieces, and the same temperature however an answer is drawn."""

import asyncio
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.base import Continuation, Engine, Prefix, Sampling, Schedule
from search.schedules import Annealed, Unsized
from tests.toy_engine import MESSAGES, ToyEngine

SCHEDULES = st.builds(
    lambda low, more, decay, warmup, base: Annealed(low + more, low, decay, warmup, base),
    st.floats(0.01, 1.5),
    st.floats(0, 1),
    st.floats(0.5, 5000),
    st.integers(0, 64),
    st.floats(0, 2),
)


@given(SCHEDULES, st.integers(0, 10**7))
def test_it_only_cools_after_the_warm_up(schedule: Annealed, position: int) -> None:
    now, later = schedule.temperature(position), schedule.temperature(position + 1)
    if position < schedule.warmup_tokens:
        assert now == schedule.base
    else:
        assert schedule.tau_max >= now >= later >= schedule.tau_min


@given(SCHEDULES, st.integers(1, 40))
def test_pieces_are_near_the_curve(schedule: Annealed, max_pieces: int) -> None:
    pieces = schedule.segments(max_pieces)
    assert 1 <= len(pieces) <= max_pieces
    assert pieces[0][0] == 0
    assert all(first < second for (first, _), (second, _) in pairwise(pieces))
    if max_pieces < 3:
        return
    room = max_pieces - 1 - bool(schedule.warmup_tokens)
    hottest = schedule.temperature(schedule.warmup_tokens)
    most = (hottest - schedule.tau_min) / (2 * room) + 1e-9
    end = max(schedule.warmup_tokens, int(schedule.floor_at)) + 3
    for position in range(0, end, max(1, end // 300)):
        value = [piece for start, piece in pieces if start <= position][-1]
        assert abs(value - schedule.temperature(position)) <= most


@given(SCHEDULES)
def test_enough_pieces_are_exact(schedule: Annealed) -> None:
    schedule = replace(schedule, decay_tokens=min(schedule.decay_tokens, 30.0))
    pieces = schedule.segments(200)
    for position in range(150):
        value = [piece for start, piece in pieces if start <= position][-1]
        assert value == schedule.temperature(position)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=9), st.floats(0.1, 2))
def test_the_floor_is_where_it_was_wanted(lengths: list[int], ratio: float) -> None:
    unsized = Unsized(floor_ratio=ratio)
    schedule = unsized.sized(lengths)
    wanted = ratio * max(1, sorted(lengths)[len(lengths) // 2])
    if len(lengths) % 2:
        assert schedule.floor_at == pytest.approx(wanted, rel=1e-3, abs=0.08)
    # what the reply reports, sent back, is the same schedule
    assert replace(schedule, decay_tokens=float(f"{schedule.decay_tokens}")) == schedule


@dataclass
class Recorder:
    """A schedule that remembers which position got which temperature."""

    inner: Schedule
    seen: dict[int, set[float]] = field(default_factory=dict)

    def temperature(self, position: int) -> float:
        value = self.inner.temperature(position)
        self.seen.setdefault(position, set()).add(value)
        return value

    def segments(self, max_pieces: int) -> list[tuple[int, float]]:
        return self.inner.segments(max_pieces)


async def one(engine: Engine, prefix: Prefix, how: Sampling, seed: int) -> Continuation:
    found = None
    async for item in engine.sample(prefix, how, n=1, seeds=[seed]):
        if isinstance(item, Continuation):
            found = item
    assert found is not None
    return found


async def drawn(
    engine: Engine, how: Sampling, seed: int, chunks: list[int], *, forks: bool = False
) -> tuple[int, ...]:
    """The answer, drawn in steps of these sizes and then whole; forked at every step's end."""
    prompt = engine.render(MESSAGES)
    claim = await engine.open(prompt)
    ids: tuple[int, ...] = ()
    for size in [*chunks, None]:
        step = await one(engine, claim, replace(how, max_step_tokens=size), seed)
        claim.release()
        ids += step.token_ids
        claim = step.prefix
        if forks:
            claim, old = claim.fork(), claim
            old.release()
        if not step.finish.is_open:
            break
    claim.release()
    return ids


CHUNKS = st.lists(st.integers(1, 9), max_size=6)
COOLING = Annealed(tau_max=1.6, tau_min=0.2, decay_tokens=14, warmup_tokens=4, base=0.9)


async def check_chunks(engine: Engine, seed: int, chunks: list[int], *, forks: bool) -> None:
    answers, temperatures = [], []
    for split in ([], chunks):
        recorder = Recorder(COOLING)
        how = Sampling(max_tokens=30, schedule=recorder)
        answers.append(await drawn(engine, how, seed, split, forks=forks))
        temperatures.append(recorder.seen)
    assert answers[0] == answers[1]
    # Both drew every position, each at its own temperature and no other.
    for seen in temperatures:
        for position in range(len(answers[0])):
            assert seen[position] == {COOLING.temperature(position)}


@given(st.integers(0, 2**32), CHUNKS, st.booleans())
@settings(max_examples=60, deadline=None)
def test_chunks_change_nothing_on_the_toy_engine(seed: int, chunks: list[int], forks: bool) -> None:
    asyncio.run(check_chunks(ToyEngine(), seed, chunks, forks=forks))


@pytest.mark.parametrize(
    ("schedule", "plain"),
    [
        (Annealed(tau_max=1, tau_min=1), 1.0),
        (Annealed(decay_tokens=1e300, warmup_tokens=0), 1.2),
        (Annealed(tau_max=0.4, tau_min=0.4, warmup_tokens=5, base=0.4), 0.4),
    ],
    ids=["no drop", "no end", "cold"],
)
@given(seed=st.integers(0, 2**32), chunks=CHUNKS)
@settings(max_examples=20, deadline=None)
def test_a_flat_schedule_is_plain_sampling(
    schedule: Annealed, plain: float, seed: int, chunks: list[int]
) -> None:
    async def check() -> None:
        how = Sampling(max_tokens=30, temperature=plain)
        asked = replace(how, temperature=1.0, schedule=schedule)
        engine = ToyEngine()
        assert await drawn(engine, asked, seed, chunks) == await drawn(engine, how, seed, chunks)

    asyncio.run(check())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="the embedded engine needs torch")
    from tests.embedded_models import VARIANTS, write_model

    return write_model(tmp_path_factory.mktemp("tiny"), VARIANTS[1])


@given(st.integers(0, 2**32), CHUNKS, st.booleans())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_chunks_change_nothing_on_the_embedded_engine(
    tiny: Path, seed: int, chunks: list[int], forks: bool
) -> None:
    from tests.embedded_models import open_tiny, require_idle

    async def check() -> None:
        engine = open_tiny(tiny)
        try:
            await check_chunks(engine, seed, chunks, forks=forks)
            require_idle(engine)
        finally:
            await engine.aclose()

    asyncio.run(check())


def test_a_mixed_batch_is_as_its_rows_alone(tiny: Path) -> None:
    from tests.embedded_models import children, open_tiny

    async def check() -> None:
        engine = open_tiny(tiny)
        prompt = engine.render(MESSAGES)
        assert isinstance(prompt, tuple)
        hows = [
            Sampling(max_tokens=24, schedule=COOLING),
            Sampling(max_tokens=24),
            Sampling(max_tokens=24, schedule=replace(COOLING, decay_tokens=3.0)),
            Sampling(max_tokens=24, temperature=0.0),
        ]
        alone = [await children(engine, prompt, how, (5,)) for how in hows]
        together = await asyncio.gather(*(children(engine, prompt, how, (5,)) for how in hows))
        assert [one[0].token_ids for one in together] == [one[0].token_ids for one in alone]
        assert len({one[0].token_ids for one in alone}) > 1
        await engine.aclose()

    asyncio.run(check())
