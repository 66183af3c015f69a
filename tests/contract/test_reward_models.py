"""Every reward model keeps the laws of `reward_models.conformance`."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from engines.base import ChatMessage
from reward_models.base import Claim, RewardModel, RewardRow, Score
from reward_models.claims import EmptyClaim
from reward_models.conformance import CHECKS, Check, ContractBroken, Subject, run_check
from reward_models.constant import ConstantJudge
from reward_models.constant import open_judge as open_constant
from reward_models.errors import RewardLoadError
from reward_models.verifier import open_judge as open_verifier

PUBLISHED_PROCESS = ("qwen-math-prm", "skywork-o1-prm", "rlhflow-prm", "math-shepherd")
PUBLISHED_OUTCOME = ("reward-llama", "reward-qwen3")


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

    subject = Subject(
        lambda: open_judge("tiny-prm", str(tiny_judge), {}), unreadable=("one step " * 200,)
    )
    await run_check(check, subject)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.contract.tiny_rewards import CHECKPOINTS, write_checkpoint

    return {name: write_checkpoint(name, tmp_path_factory.mktemp(name)) for name in CHECKPOINTS}


@pytest.mark.parametrize("name", [*PUBLISHED_PROCESS, *PUBLISHED_OUTCOME])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_published_judges_keep_the_laws(
    check: Check, name: str, checkpoints: dict[str, Path]
) -> None:
    from reward_models.outcome import open_judge as open_outcome
    from reward_models.process import open_judge as open_process
    from tests.contract.tiny_rewards import CHECKPOINTS

    checkpoint = CHECKPOINTS[name]
    open_judge = open_process if checkpoint.kind == "process" else open_outcome
    options = {**checkpoint.options, "kv_tokens": 2048}

    def make() -> RewardModel:
        return open_judge(name, str(checkpoints[name]), options)

    await run_check(check, Subject(make, unreadable=("one step " * 200, "and more")))


@pytest.fixture(scope="session")
def tiny_multifurcation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.contract.tiny_multifurcation import write_multifurcation

    return write_multifurcation(tmp_path_factory.mktemp("tiny_multifurcation"), layers=2)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_multifurcation_judge_keeps_the_laws(check: Check, tiny_multifurcation: Path) -> None:
    from reward_models.multifurcation import open_judge

    options = {"base": str(tiny_multifurcation.parent / "base"), "kv_tokens": 2048}
    subject = Subject(
        lambda: open_judge("tiny-mrm", str(tiny_multifurcation), options),
        unreadable=("one step " * 200,),
    )
    await run_check(check, subject)


class BlankMultifurcation(ConstantJudge):
    """Says NaN of all tokens, and counts none."""

    async def next_rewards(self, claims: Sequence[Claim]) -> list[RewardRow]:
        return [Blank() for _ in claims]

    async def open(self, messages: Sequence[ChatMessage], *, tenant: str = "") -> Claim:
        return EmptyClaim((1, 2, 3, 4))


class Blank:
    def at(self, ids: Sequence[int]) -> list[float]:
        return [math.nan for _ in ids]


@pytest.mark.parametrize("name", ["next_rewards_are_gathered", "a_step_costs_its_own_tokens"])
async def test_the_checks_catch_a_row_without_rewards(name: str) -> None:
    check = next(check for check in CHECKS if check.name == name)
    with pytest.raises(ContractBroken):
        await run_check(check, Subject(lambda: BlankMultifurcation("soft")))


@pytest.mark.parametrize("options", [{"value": 2}, {"value": "high"}, {"worth": 1}])
def test_a_constant_out_of_range_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(RewardLoadError):
        open_constant("constant", "", options)


class MoodyJudge(ConstantJudge):
    """Likes whoever comes first."""

    async def score(self, batch):  # type: ignore[no-untyped-def]
        return [Score(1 / (at + 1), (1 / (at + 1),) * len(c.steps)) for at, c in enumerate(batch)]


class BrittleJudge(ConstantJudge):
    """Gives up on the whole batch when one candidate cannot be read."""

    async def score(self, batch):  # type: ignore[no-untyped-def]
        blank = any(not candidate.text for candidate in batch)
        return [Score(math.nan if blank else 0.5, (0.5,) * len(c.steps)) for c in batch]


@pytest.mark.parametrize(
    "name", ["an_answer_without_steps_harms_nobody", "what_cannot_be_read_is_nan_alone"]
)
async def test_the_checks_catch_who_lets_others_pay(name: str) -> None:
    check = next(check for check in CHECKS if check.name == name)
    with pytest.raises(ContractBroken):
        await run_check(check, Subject(lambda: BrittleJudge("brittle"), unreadable=("",)))


@pytest.mark.parametrize("name", ["batching_changes_nothing", "a_closed_judge_says_so"])
async def test_the_checks_catch_what_they_are_for(name: str) -> None:
    check = next(check for check in CHECKS if check.name == name)
    with pytest.raises(ContractBroken):
        await run_check(check, Subject(lambda: MoodyJudge("moody")))
