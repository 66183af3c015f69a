"""The `openai` engine keeps the laws of `engines.conformance` over servers that really answer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engines.base import Capability, Engine
from engines.conformance import CHECKS, Check, NotApplicable, Subject, run_check
from engines.echo import open_engine as open_echo
from engines.openai_http import open_engine
from server.serve import BackgroundServer
from server.settings import Settings
from tests.openai_upstream import upstream_over

TEXT = [check for check in CHECKS if Capability.TOKENS not in check.requires]
TINY = {"device": "cpu", "dtype": "float32"}


def noisy_echo() -> Engine:
    return open_echo("m", "", {"context_tokens": 200, "margin": 4.0})


async def checked(check: Check, url: str, model: str, **options: Any) -> None:
    make = partial(open_engine, "up", model, {"base_url": url, **options})
    try:
        await run_check(check, Subject(make))
    except NotApplicable as why:
        pytest.skip(str(why))


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.contract.tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("upstream_llama"))


@pytest.fixture(scope="module")
def bough(tiny_llama: Path) -> Iterator[str]:
    """A whole bough server: an echo model and a tiny decoder on the embedded engine."""
    echo = {"kind": "echo", "options": {"context_tokens": 200, "margin": 4.0}}
    tiny = {"kind": "embedded", "model": str(tiny_llama), "options": TINY}
    models: dict[str, Any] = {"echo": {"engine": echo}, "tiny": {"engine": tiny}}
    with BackgroundServer(Settings(models=models)) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def echo_upstream() -> Iterator[str]:
    with upstream_over(noisy_echo) as url:
        yield url


@pytest.fixture(scope="module")
def tiny_upstream(tiny_llama: Path) -> Iterator[str]:
    from engines.embedded.engine import open_engine as open_embedded

    with upstream_over(lambda: open_embedded("m", str(tiny_llama), TINY)) as url:
        yield url


@pytest.mark.parametrize("model", ["echo", "tiny"])
@pytest.mark.parametrize("check", TEXT, ids=lambda check: check.name)
async def test_over_bough_itself(check: Check, model: str, bough: str) -> None:
    await checked(check, bough, model)


@pytest.mark.parametrize("check", TEXT, ids=lambda check: check.name)
async def test_over_a_bough_that_is_taken_for_anybody(check: Check, bough: str) -> None:
    known = {"dialect": "plain", "context_tokens": 192, "capabilities": ["seed"]}
    await checked(check, bough, "tiny", **known)


@pytest.mark.parametrize("check", TEXT, ids=lambda check: check.name)
async def test_chats_that_are_continued(check: Check, tiny_upstream: str) -> None:
    await checked(check, tiny_upstream, "m")


@pytest.mark.parametrize("check", TEXT, ids=lambda check: check.name)
async def test_chats_that_are_continued_by_a_lean_server(check: Check, tiny_upstream: str) -> None:
    """It keeps no stop string in the text, so steps are cut off here."""
    known = {"dialect": "plain", "continue_style": "flag", "mode": "continue"}
    await checked(check, tiny_upstream, "m", **known, capabilities=["seed", "logprobs"])


@pytest.mark.parametrize("check", TEXT, ids=lambda check: check.name)
async def test_completions_of_a_local_template(
    check: Check, tiny_upstream: str, tiny_llama: Path
) -> None:
    await checked(check, tiny_upstream, "m", chat_template=str(tiny_llama))


@pytest.mark.parametrize("check", TEXT, ids=lambda check: check.name)
async def test_bytes_that_are_no_characters(check: Check, echo_upstream: str) -> None:
    await checked(check, echo_upstream, "m")
