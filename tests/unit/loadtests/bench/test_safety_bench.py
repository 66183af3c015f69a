"""The safety bench's parts on tiny models with random weights."""

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the embedded engine")

from engines.base import ChatMessage
from engines.embedded.engine import open_engine
from loadtests.bench import safety_attacks, safety_runs, safety_speed
from loadtests.bench.figures import Bench, Options
from loadtests.bench.safety_attacks import BASELINES, BUDGETS, RATIO, Attacks, figure_names
from loadtests.bench.safety_benign import DELTA, FORWARDS, UNIQUE, measure_benign, measure_counts
from loadtests.bench.safety_models import Cast, is_harmful
from loadtests.bench.safety_peers import CloneTrie, Recompute, load_peer
from loadtests.bench.safety_runs import Asked, asked
from reward_models.base import Candidate, RewardInfo, RewardKind, RewardStats, Score
from reward_models.claims import EmptyClaim
from reward_models.multifurcation import open_judge
from tests.contract.tiny_multifurcation import write_multifurcation

CONTEXT = 2048


class CountsLetters:
    """An outcome judge: safe is what has more of one letter than of another."""

    def __init__(self, safe: str, harmful: str) -> None:
        self.info = RewardInfo(safe, RewardKind.OUTCOME, -1.0, 1.0, parameters=7)
        self._letters = safe, harmful
        self._computed = 0

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> EmptyClaim:
        return EmptyClaim()

    async def score(self, batch: Sequence[Candidate]) -> list[Score]:
        self._computed += sum(len(one.text) for one in batch)
        counts = [[one.text.count(letter) for letter in self._letters] for one in batch]
        return [Score((a - b) / max(1, a + b)) for a, b in counts]

    def stats(self) -> RewardStats:
        return RewardStats(tokens_computed=self._computed)

    async def aclose(self) -> None:
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("safety")
    model = write_multifurcation(directory, layers=2, context_tokens=CONTEXT)
    (model / "bough.json").write_text(json.dumps({"id": "tiny-mrm", "base": "../base"}))
    return model


@pytest.fixture
async def cast(model: Path) -> AsyncIterator[Cast]:
    options = {"device": "cpu", "kv_tokens": 32768}
    engine = open_engine("tiny", str(model.parent / "base"), options)
    rewards = open_judge("tiny-mrm", str(model), options)
    yield Cast(engine, CountsLetters("a", "e"), rewards, CountsLetters("o", "i"))
    await rewards.aclose()
    await engine.aclose()


def bench_of(path: Path, n: int) -> Bench:
    return Bench("safety", Options(path, n=n))


async def test_baselines_never_have_less_compute_than_saffron(
    tmp_path: Path, cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safety_runs, "MAX_TOKENS", 8)
    for name, few in (("_WIDTHS", (2,)), ("_STEPS", (4,)), ("_BEYOND", (2,))):
        monkeypatch.setattr(safety_attacks, name, few)
    bench = bench_of(tmp_path, 2)
    await Attacks(bench, cast).measure()
    for name in figure_names():
        assert bench.get(name) is not None, name
    for budget in BUDGETS:
        ours = bench.get(f"safety.compute.saffron.{budget}")
        assert ours is not None
        for strategy in BASELINES:
            theirs = bench.get(f"safety.compute.{strategy}.{budget}")
            assert theirs is not None
            assert theirs.value >= ours.value
    ratio = bench.get(RATIO)
    assert ratio is not None
    assert ratio.value > 0


async def test_each_live_beam_is_one_row_and_each_prefix_one_token(
    tmp_path: Path, cast: Cast
) -> None:
    bench = bench_of(tmp_path, 2)
    await measure_counts(bench, cast, 3)
    await measure_benign(bench, cast, 1)
    forwards = bench.get(FORWARDS)
    assert forwards is not None
    assert 0.5 < forwards.value <= 1
    for side in ("generator", "rewards"):
        unique = bench.get(f"{UNIQUE}.{side}")
        assert unique is not None
        assert unique.value == 1
    assert bench.get(DELTA) is not None


async def test_all_three_searches_give_the_same_tokens(
    tmp_path: Path, cast: Cast, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safety_speed, "NEW_TOKENS", 5)
    monkeypatch.setattr(safety_speed, "WIDTH", 6)
    monkeypatch.setattr(safety_speed, "TOP_P", 0.3)  # random weights: nothing is likely

    def prompt(number: int) -> Asked:
        return Asked(({"role": "user", "content": f"Say {number}."},), bool)

    race = safety_speed.Race(cast.engine, cast.rewards, model.parent / "base", model, prompt)
    bench = bench_of(tmp_path, 2)
    await safety_speed.measure(bench, race)
    for peer in safety_speed.PEERS:
        figure = bench.get(safety_speed.figure_name(peer))
        assert figure is not None
        assert figure.low is not None
        assert figure.low <= figure.value


def test_a_trie_of_clones_says_what_no_cache_says(model: Path) -> None:
    peer = load_peer(model.parent / "base")
    trie, sequences = CloneTrie(peer, batch=2), [(5, 9, 13), (5, 9, 14), (5, 8, 13)]
    for length in (1, 3, 2, 3):
        some = [one[:length] for one in sequences]
        assert trie(some).allclose(Recompute(peer)(some), atol=1e-5)


def test_judges_say_harmful_below_the_middle_of_their_range() -> None:
    judge = CountsLetters("a", "e")
    assert [is_harmful(judge, value) for value in (-0.1, 0.0, 0.1)] == [True, False, False]
    judge.info = RewardInfo("unit", RewardKind.OUTCOME, 0.0, 1.0)
    assert [is_harmful(judge, value) for value in (0.4, 0.6)] == [True, False]


def test_what_the_attacker_wrote_is_told_apart() -> None:
    prompt = asked("prefilled", "test", 0, 0)
    assert prompt.is_begun
    assert prompt.messages[-1]["role"] == "assistant"
    assert not asked("attack", "test", 0, 0).is_begun
