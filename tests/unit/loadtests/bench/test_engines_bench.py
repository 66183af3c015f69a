"""What `bough bench engines` makes of what it sees; the engines themselves are not started here."""

import json
from pathlib import Path

import httpx
import pytest

from engines.echo import open_engine
from loadtests.bench import engines, engines_overhead
from loadtests.bench.engines_overhead import Pair, Turn
from loadtests.bench.engines_sharing import Growth, Shared, measure, prompt_for, unique_tokens
from loadtests.bench.figures import Bench, BenchError, Options
from loadtests.peers import its_hub, servers
from loadtests.peers.blocks import Row
from loadtests.peers.its_hub import Comparison, Plan


def bench(folder: Path, *only: str) -> Bench:
    return Bench("engines", Options(out=folder, seed=7, only=only))


def test_unique_tokens_are_the_nodes_of_the_trie() -> None:
    assert unique_tokens([(1, 2, 3), (1, 2, 4), (1, 2, 3), (5,)]) == 5
    assert unique_tokens([]) == 0


async def test_every_branch_of_every_round_is_sent() -> None:
    """The echo engine computes a prompt once for siblings and knows no cache beside that."""
    growth = Growth("echo", "", prompt_tokens=64, branches=4, rounds=2, step_tokens=5, seed=3)
    engine = open_engine("echo", "", {"context_tokens": 256})
    try:
        assert len(prompt_for(engine, growth)) == 64
        shared = await measure(engine, growth)
        claimed = engine.stats().pages_claimed
    finally:
        await engine.aclose()
    assert shared.sent == 4 * 64 + 4 * 69 + 4 * 74
    # Four branches of five tokens are sent again in the first round and of ten in the second.
    assert 64 < shared.unique <= 64 + 4 * 10
    assert shared.bound == shared.unique + 4 * 2 * 32
    assert 0 <= shared.computed <= shared.sent
    assert claimed == 0


def test_sharing_figures(tmp_path: Path) -> None:
    made = bench(tmp_path)
    engines.put_sharing(made, Growth("vllm", ""), Shared(1000, 150, 100, 200))
    over_bound = made.get("engines.vllm.computed_over_bound")
    over_unique = made.get("engines.vllm.computed_over_unique")
    assert over_bound is not None
    assert over_unique is not None
    assert (over_bound.value, over_unique.value, over_bound.better) == (0.75, 1.5, "lower")


def test_overhead_is_paired_by_request() -> None:
    bare = Turn(2.0, (0.10, 0.20, 0.30), (10, 20, 30))
    ours = Turn(2.5, (0.11, 0.20, 0.33), (10, 20, 30))
    pair = Pair(bare, ours)
    assert pair.added_ms == pytest.approx(10.0)
    assert pair.throughput_ratio == pytest.approx(0.8)
    assert pair.num_unlike == 0
    assert Pair(bare, Turn(2.5, ours.latencies, (10, 21, 30))).num_unlike == 1


def test_overhead_figures_are_medians_with_extremes(tmp_path: Path) -> None:
    made = bench(tmp_path)
    bare = Turn(1.0, (0.1,), (10,))
    pairs = [Pair(bare, Turn(1.0 + late, (0.1 + late,), (10,))) for late in (0.25, 0.0, 1.0)]
    engines.put_overhead(made, "a", "b", pairs)
    added, ratio = made.get("a"), made.get("b")
    assert added is not None
    assert ratio is not None
    assert (added.value, added.low, added.high) == pytest.approx((250, 0, 1000))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.8, 0.5, 1.0))
    assert (added.n, ratio.better) == (3, "higher")


async def test_a_refused_request_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def client(**options: object) -> httpx.AsyncClient:
        refuse = httpx.MockTransport(lambda request: httpx.Response(500, text="down"))
        return httpx.AsyncClient(base_url="http://x", transport=refuse)

    monkeypatch.setattr(engines_overhead, "httpx", _Only(client))
    with pytest.raises(servers.ServerFailed, match="500: down"):
        await engines_overhead.ask("http://x", ["?"], 1)


class _Only:
    """httpx with another client."""

    Limits = httpx.Limits

    def __init__(self, client: object) -> None:
        self.AsyncClient = client


def test_figures_beside_its_hub(tmp_path: Path) -> None:
    made = bench(tmp_path)
    plan = Plan(
        problems=4,
        repeats=2,
        tasks=("self_consistency",),
        contenders=(its_hub.PEER, its_hub.VLLM),
    )
    rows = {
        its_hub.PEER: Row([4.0, 6.0], [True, False, False, False]),
        its_hub.VLLM: Row([2.0, 2.0], [True, True, False, False]),
    }
    engines.put_comparison(made, Comparison(plan, {"self_consistency": rows}), "self_consistency")
    speedup = made.get("peers.its_hub.self_consistency.speedup")
    gain = made.get("peers.its_hub.self_consistency.accuracy_gain")
    assert speedup is not None
    assert gain is not None
    assert (speedup.value, speedup.low, speedup.high) == (2.5, 2.0, 3.0)
    assert gain.value == 0.25
    assert gain.low is not None
    assert gain.low < 0.25
    assert json.loads((tmp_path / "engines.its_hub.json").read_text())["plan"]["problems"] == 4


def test_an_engine_that_cannot_run_leaves_its_figures_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(servers, "SGLANG_PYTHON", tmp_path / "nowhere")
    arguments = ["--out", str(tmp_path), "--only", "engines.sglang.*"]
    assert engines.run.main(arguments) == 1
    said = capsys.readouterr().out
    assert "SGLang did not run: SGLang is not installed here" in said
    assert "not computed: engines.sglang.computed_over_bound" in said


def test_what_went_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(bench: Bench) -> None:
        raise servers.ServerFailed("not ready within 240 s")

    monkeypatch.setattr(engines, "_sharing_on_vllm", fail)
    with pytest.raises(BenchError, match="not ready"):
        engines.run(bench(tmp_path))
