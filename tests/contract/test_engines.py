"""Every engine keeps the laws of `engines.conformance`."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from engines.base import Engine
from engines.conformance import CHECKS, Check, ContractBroken, NotApplicable, Subject, run_check
from engines.echo import EchoEngine, open_engine


def echo() -> Engine:
    return open_engine("echo", "", {"context_tokens": 200})


def noisy_echo() -> Engine:
    return open_engine("echo", "", {"context_tokens": 200, "margin": 4.0})


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.contract.tiny_llama import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


@pytest.mark.parametrize("make", [echo, noisy_echo])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_echo(check: Check, make: Callable[[], Engine]) -> None:
    await checked(check, Subject(make))


@pytest.mark.skipif(find_spec("tests.toy_engine") is None, reason="no toy engine")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_toy(check: Check) -> None:
    from tests import toy_engine

    await checked(check, Subject(toy_engine.ToyEngine))


@pytest.mark.skipif(find_spec("engines.embedded.engine") is None, reason="no embedded engine")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_embedded(check: Check, tiny_llama: Path) -> None:
    from engines.embedded.engine import open_engine

    options = {"device": "cpu", "dtype": "float32"}
    await checked(check, Subject(lambda: open_engine("tiny", str(tiny_llama), options)))


async def checked(check: Check, subject: Subject) -> None:
    try:
        await run_check(check, subject)
    except NotApplicable as why:
        pytest.skip(str(why))


class LeakyEngine(EchoEngine):
    """Forgets to let go of one claim."""

    async def open(self, prompt, *, tenant="", priority=0):  # type: ignore[no-untyped-def]
        prefix = await super().open(prompt, tenant=tenant, priority=priority)
        prefix.fork()
        return prefix


class RestlessEngine(EchoEngine):
    """Ignores the seeds it is given."""

    def sample(self, prefix, how, *, n=1, seeds=None):  # type: ignore[no-untyped-def]
        return super().sample(prefix, how, n=n)


class HastyEngine(EchoEngine):
    """Counts the prompt as if it were answer: its schedules are over before they begin."""

    def sample(self, prefix, how, *, n=1, seeds=None):  # type: ignore[no-untyped-def]
        if how.schedule is not None:
            at = how.schedule.at - prefix.response_start
            how = replace(how, schedule=replace(how.schedule, at=at))
        return super().sample(prefix, how, n=n, seeds=seeds)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (LeakyEngine, "release_is_idempotent"),
        (RestlessEngine, "same_seed_same_tokens"),
        (HastyEngine, "schedules_count_from_the_response"),
    ],
)
async def test_the_checks_catch_what_they_are_for(
    kind: type[EchoEngine], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines import conformance_trial
    from engines.echo import EchoOptions

    async def at_once(_: float) -> None:
        """No waiting for pages that never come back."""

    monkeypatch.setattr(conformance_trial.asyncio, "sleep", at_once)
    check = next(check for check in CHECKS if check.name == name)
    subject = Subject(lambda: kind("echo", EchoOptions(context_tokens=200, margin=1.0)))
    with pytest.raises(ContractBroken):
        await run_check(check, subject)
