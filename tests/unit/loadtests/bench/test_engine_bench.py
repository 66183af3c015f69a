"""The engine bench on a model small enough to run in seconds; no speed is judged."""

import json
from pathlib import Path

import pytest

from loadtests.bench.figures import Bench, Options

pytest.importorskip("torch")

from loadtests.bench import engine, random_llama, speed
from loadtests.bench.baselines import Floor, Load, Timing, cached_loop, generate

TINY = random_llama.Size(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=400,
    max_position_embeddings=128,
)
PLAN = engine.Plan(branches=Load(4, 8, 32), stream=Load(1, 8, 32), repeats=2, prompts=4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    return random_llama.write_random_llama(folder, seed=1, size=TINY)


def test_the_default_size_is_between_20_and_60_million_parameters() -> None:
    size = random_llama.Size()
    attention = 4 * size.hidden_size**2
    mlp = 3 * size.hidden_size * size.intermediate_size
    embeddings = 2 * size.vocab_size * size.hidden_size
    count = size.num_hidden_layers * (attention + mlp) + embeddings
    assert 20e6 < count < 60e6


def test_both_peers_make_every_token(tiny: Path) -> None:
    peer = engine.load_peer(tiny)
    load = Load(branches=3, new_tokens=5, prompt_tokens=16)
    prompt = speed.prompt_of(TINY.vocab_size, load, 0, 0)
    for body in (generate, cached_loop):
        timing = body(peer, prompt, load, 0)
        assert isinstance(timing, Timing)
        assert timing.tokens == 15
    assert Floor(peer, load).seconds_per_step(2) > 0


def test_unique_tokens_counts_shared_beginnings_once() -> None:
    assert speed.unique_tokens((1, 2), [(3, 4), (3, 5), (3, 4, 6)]) == 2 + 4


def test_all_figures_of_the_random_model_are_made(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "bundled", lambda kind: {})
    monkeypatch.setattr(engine, "write_random_llama", lambda folder, seed: tiny)
    bench = Bench("engine", Options(tmp_path, only=("engine.*",)))
    engine.measure(bench, PLAN)
    figures = json.loads((tmp_path / "engine.json").read_text())["figures"]
    assert set(figures) == {
        "engine.tokens_per_s_vs_hf.branches64.random",
        "engine.tokens_per_s_vs_hf_cached.branches64.random",
        "engine.tokens_per_s_vs_hf.stream1.random",
        "engine.floor_fraction.branches64.random",
        "engine.kv_peak_over_unique",
        "engine.kv_peak_over_bound",
        "engine.greedy_mismatches",
        "engine.logp_max_difference",
    }
    assert figures["engine.greedy_mismatches"]["value"] == 0
    assert figures["engine.greedy_mismatches"]["n"] == 4
    assert figures["engine.logp_max_difference"]["value"] < 1e-4
    # Without a bundled generator its figures are missing, and the bench says so.
    assert not bench.report()
