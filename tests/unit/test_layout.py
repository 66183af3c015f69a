"""The packages that run are those of this checkout, and what is installed is all of them."""

import subprocess
import tomllib
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


def test_what_is_not_python_is_installed_too() -> None:
    """An installation that is not editable has the page, the presets and the models."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    named = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package).glob(pattern)
        if path.is_file()
    }
    packages = ["server", "search", "reward_models", "engines", "stores", "models", "loadtests"]
    listed = subprocess.run(
        ["git", "ls-files", *packages], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    needed = {ROOT / name for name in listed if not name.endswith((".py", "README.md"))}
    assert needed - named == set()
    assert needed
