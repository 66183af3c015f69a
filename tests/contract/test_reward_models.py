"""Every reward model keeps the laws of `reward_models.conformance`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from reward_models.base import RewardModel, Score
from reward_models.conformance import CHECKS, Check, ContractBroken, Subject, run_check
from reward_models.constant import ConstantJudge
from reward_models.constant import open_judge as open_constant
from reward_models.errors import RewardLoadError
from reward_models.verifier import open_judge as open_verifier


def constant() -> RewardModel:
    return open_constant("constant", "", {"value": 0.25})


def verifier() -> RewardModel:
    return open_verifier("verifier", "", {})


@pytest.mark.parametrize("make", [constant, verifier])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_keeps_the_laws(check: Check, make: Callable[[], RewardModel]) -> None:
    await run_check(check, Subject(make))


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.contract.tiny_judge import write_tiny_judge

    return write_tiny_judge(tmp_path_factory.mktemp("tiny_judge"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_process_judge_keeps_the_laws(check: Check, tiny_judge: Path) -> None:
    from reward_models.process import open_judge

    await run_check(check, Subject(lambda: open_judge("tiny-prm", str(tiny_judge), {})))


@pytest.mark.parametrize("options", [{"value": 2}, {"value": "high"}, {"worth": 1}])
def test_a_constant_out_of_range_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(RewardLoadError):
        open_constant("constant", "", options)


class MoodyJudge(ConstantJudge):
    """Likes whoever comes first."""

    async def score(self, batch):  # type: ignore[no-untyped-def]
        return [Score(1 / (at + 1), (1 / (at + 1),) * len(c.steps)) for at, c in enumerate(batch)]


@pytest.mark.parametrize("name", ["batching_changes_nothing", "a_closed_judge_says_so"])
async def test_the_checks_catch_what_they_are_for(name: str) -> None:
    check = next(check for check in CHECKS if check.name == name)
    with pytest.raises(ContractBroken):
        await run_check(check, Subject(lambda: MoodyJudge("moody")))
