"""What the tests of searches share."""

import pytest

from tests.search_harness import TryOut


@pytest.fixture
def try_out(monkeypatch: pytest.MonkeyPatch) -> TryOut:
    return TryOut(monkeypatch)
