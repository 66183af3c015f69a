"""What the tests on shared engines have in common."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

import pytest

SHARED: Final = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="session"),  # an engine belongs to the loop it was used on
    # vLLM and what it imports warn of what they will do differently one day.
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here: `make test-vllm` has one"),
]
