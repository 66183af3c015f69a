"""The judges of the diffusion sapling keep the laws of `reward_models.conformance`."""

from pathlib import Path

import pytest

from models.short_judge import open_judge as open_short
from reward_models.conformance import CHECKS, Check, Subject, run_check
from reward_models.likelihood import open_judge as open_likelihood
from tests.contract.tiny_llama import write_tiny_llama

ASKED = ({"role": "user", "content": "What is 34+7-8?"},)
ANSWERS = (
    ("34+7=41\n", "41-8=33\n", "The answer is 33."),
    ("34+7=41\n", "41-8=32\n", "The answer is 32."),
    ("34+8=42\n",),
    ("no",),
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_short(check: Check) -> None:
    await run_check(check, Subject(lambda: open_short("short", "", {}), ASKED, ANSWERS))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_likelihood(check: Check, tiny: Path) -> None:
    options = {"before": "<|user|>"}
    subject = Subject(
        lambda: open_likelihood("likelihood", str(tiny), options),
        unreadable=("one step " * 200,),
    )
    await run_check(check, subject)
