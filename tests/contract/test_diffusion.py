"""Denoisers keep the laws of `engines.diffusion.conformance`, their engine those that fit it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engines.base import Capability
from engines.conformance import CHECKS as ENGINE_CHECKS
from engines.conformance import Check as EngineCheck
from engines.conformance import ContractBroken, NotApplicable, Subject
from engines.conformance import run_check as run_engine_check
from engines.diffusion.base import DenoiseJob, Denoiser
from engines.diffusion.conformance import CHECKS, Check, DenoiserSubject, run_check
from engines.diffusion.engine import DiffusionEngine, open_engine
from engines.errors import UnsupportedByEngine
from tests.diffusion_models import write_tiny

FAMILIES = ("llada", "dream", "mdlm")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("diffusion")
    return {family: write_tiny(root / family, family) for family in FAMILIES}


def opened(directory: Path) -> DiffusionEngine:
    return open_engine("tiny", str(directory), {"max_batch_tokens": 200})


async def closed(denoiser: Denoiser) -> None:
    denoiser.close()  # type: ignore[attr-defined]  # every denoiser of ours has it


def subject_of(directory: Path) -> DenoiserSubject:
    return DenoiserSubject(lambda: opened(directory).denoiser, (72, 101, 121), 8, closed)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_denoisers(check: Check, family: str, directories: dict[str, Path]) -> None:
    await run_check(check, subject_of(directories[family]))


class Restless:
    """Wraps a denoiser and breaks one law."""

    def __init__(self, inner: Denoiser, change: Callable[[DenoiseJob, int], DenoiseJob]) -> None:
        self.info = inner.info
        self.start = inner.start
        self._inner = inner
        self._change = change
        self._calls = 0

    async def denoise(self, jobs):  # type: ignore[no-untyped-def]
        self._calls += 1
        done = await self._inner.denoise([self._change(job, self._calls) for job in jobs])
        if self._change is generous:
            done = [replace(one, nfe=one.nfe + 1) for one in done]
        return done

    def close(self) -> None:
        self._inner.close()  # type: ignore[attr-defined]


def forgetful(job: DenoiseJob, calls: int) -> DenoiseJob:
    return replace(job, seed=job.seed + calls)


def generous(job: DenoiseJob, calls: int) -> DenoiseJob:
    return job


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (forgetful, "cutting_a_run_changes_nothing"),
        (forgetful, "batches_change_nothing"),
        (generous, "evaluations_are_counted"),
    ],
)
async def test_the_checks_catch_what_they_are_for(
    change: Callable[[DenoiseJob, int], DenoiseJob], name: str, directories: dict[str, Path]
) -> None:
    inner = subject_of(directories["llada"])
    subject = replace(inner, make=lambda: Restless(inner.make(), change))
    check = next(check for check in CHECKS if check.name == name)
    with pytest.raises(ContractBroken):
        await run_check(check, subject)


REFUSED = {
    "boundaries_keep_the_whole_token": "boundaries",
    "stop_strings_straddle_steps": "max_step_tokens",
    "lengths_count_from_the_response": "max_step_tokens",
    "extending_is_opening_again": "max_step_tokens",
    "stop_ids_are_overrun": "min_tokens",
    "every_token_has_its_logp": "logprobs",
}
"""Checks of what needs one token after the other, and the option that is refused for it."""


def as_if_of_tokens(engine: DiffusionEngine) -> DiffusionEngine:
    """Says that it continues tokens, so that the checks of such engines run."""
    capabilities = engine.info.capabilities | {Capability.TOKENS}
    engine.info = replace(engine.info, capabilities=capabilities)
    return engine


OF_TEXT = [check for check in ENGINE_CHECKS if Capability.TOKENS not in check.requires]
OF_TOKENS = [check for check in ENGINE_CHECKS if Capability.TOKENS in check.requires]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("check", OF_TEXT, ids=lambda check: check.name)
async def test_engines(check: EngineCheck, family: str, directories: dict[str, Path]) -> None:
    await checked(check, Subject(lambda: opened(directories[family])))


@pytest.mark.parametrize("check", OF_TOKENS, ids=lambda check: check.name)
async def test_engines_as_if_of_tokens(check: EngineCheck, directories: dict[str, Path]) -> None:
    subject = Subject(lambda: as_if_of_tokens(opened(directories["llada"])))
    if check.name not in REFUSED:
        await checked(check, subject)
        return
    with pytest.raises(UnsupportedByEngine, match=REFUSED[check.name]):
        await run_engine_check(check, subject)


async def checked(check: EngineCheck, subject: Subject) -> None:
    try:
        await run_engine_check(check, subject)
    except NotApplicable as why:
        pytest.skip(str(why))
