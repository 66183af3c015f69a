"""The packages that run are those of this checkout, whatever else is installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "package",
    ["server", "search", "reward_models", "engines", "stores", "models", "loadtests"],
)
def test_packages_resolve_inside_the_checkout(package: str) -> None:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve() == ROOT / package / "__init__.py"
