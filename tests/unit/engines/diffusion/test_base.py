"""What is refused before anything runs, and bounds of what runs."""

from dataclasses import replace

import pytest

from engines.diffusion.base import (
    DenoiseJob,
    DenoiserInfo,
    Kernel,
    answer_ids,
    check_job,
    check_kernel,
    frozen_prompt,
    is_stochastic,
    max_nfe,
    require_stochastic,
    started,
)
from engines.errors import (
    DenoiseError,
    DeterministicKernel,
    MaskInPrompt,
    UnknownKernel,
    WrongLength,
)

INFO = DenoiserInfo("toy", mask_id=9, max_length=12)
JOB = DenoiseJob((1, 2, *[9] * 8), frozen_prompt(2, 8), 0, 8, 0, 1.0, Kernel("mdlm", steps=8))


def test_a_start_is_prompt_and_masks() -> None:
    assert started(INFO, (1, 2), 3) == (1, 2, 9, 9, 9)
    assert started(INFO, (1, 2), 10) == (1, 2, *[9] * 10)


@pytest.mark.parametrize("length", [0, -4, 11])
def test_a_wrong_length_names_the_room(length: int) -> None:
    with pytest.raises(WrongLength, match=f"text of {length} tokens.*1 to 10") as refused:
        started(INFO, (1, 2), length)
    assert refused.value.param == "length"


def test_a_full_prompt_says_so() -> None:
    with pytest.raises(WrongLength, match="shorten the messages"):
        started(INFO, (1,) * 12, 1)


def test_masks_in_the_prompt_are_refused() -> None:
    with pytest.raises(MaskInPrompt, match=r"id 9.*position 1"):
        started(INFO, (1, 9), 2)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"tokens": (9, *JOB.tokens[1:])}, MaskInPrompt, "position 0 is frozen"),
        ({"tokens": JOB.tokens * 2}, WrongLength, "row of 20"),
        ({"frozen_mask": (True,)}, WrongLength, "1 positions, tokens are 10"),
        ({"tokens": (1,), "frozen_mask": (True,)}, WrongLength, "every position is frozen"),
        ({"step": 8}, DenoiseError, "from step 8 to 8 of 8"),
        ({"step": -1}, DenoiseError, "from step -1"),
        ({"stop_step": 9}, DenoiseError, "to 9 of 8"),
        ({"temperature": -1.0}, DenoiseError, "temperature must be at least 0"),
        ({"temperature": float("nan")}, DenoiseError, "temperature must be"),
        ({"kernel": Kernel("ddpm", 8)}, UnknownKernel, "'ddpm'.*mdlm, random"),
        ({"kernel": Kernel("mdlm", 0)}, DenoiseError, "steps must be at least 1"),
        ({"kernel": Kernel("mdlm", 8, block_length=3)}, WrongLength, "blocks of 3"),
        ({"kernel": Kernel("mdlm", 8, block_length=0)}, WrongLength, "blocks of 0"),
        ({"kernel": Kernel("mdlm", 9, block_length=4)}, DenoiseError, "shared equally by 2"),
        ({"kernel": Kernel("mdlm", 8, top_p=0.0)}, DenoiseError, "top_p"),
        ({"kernel": Kernel("mdlm", 8, top_k=-1)}, DenoiseError, "top_k"),
        ({"kernel": Kernel("mdlm", 8, position_temperature=-1)}, DenoiseError, "position_temp"),
    ],
)
def test_wrong_jobs(change: dict[str, object], kind: type[DenoiseError], words: str) -> None:
    changed = replace(JOB, **change)  # type: ignore[arg-type]
    if "kernel" in change:
        changed = replace(changed, stop_step=max(1, changed.kernel.steps))
    with pytest.raises(kind, match=words):
        check_job(INFO, changed)


def test_good_jobs() -> None:
    check_job(INFO, JOB)
    check_job(INFO, replace(JOB, step=7, temperature=0.0))
    check_kernel(INFO, Kernel("entropy", 4, block_length=4), 8)


def test_a_chain_without_chance_is_no_tree() -> None:
    for name in INFO.kernels:
        kernel = Kernel(name, 8)
        has_chance = name in ("mdlm", "random", "origin")
        assert is_stochastic(INFO, kernel, 0.0) is has_chance
        assert is_stochastic(INFO, kernel, 0.1)
        assert is_stochastic(INFO, replace(kernel, position_temperature=0.1), 0.0)
        if not has_chance:
            with pytest.raises(DeterministicKernel, match="every branch"):
                require_stochastic(INFO, kernel, 0.0)
    require_stochastic(INFO, Kernel("mdlm", 8), 0.0)


def test_the_most_that_a_job_may_cost() -> None:
    random = replace(JOB, kernel=Kernel("random", 8))
    assert max_nfe(random, 9) == 8
    assert max_nfe(replace(random, step=5), 9) == 3
    assert max_nfe(replace(random, tokens=(1, 2, *[3] * 6, 9, 9)), 9) == 2
    mdlm = replace(JOB, kernel=Kernel("mdlm", 4, block_length=4), stop_step=4)
    assert max_nfe(mdlm, 9) == 6  # two blocks of two steps, each with a fill
    assert max_nfe(replace(mdlm, stop_step=3), 9) == 4
    assert max_nfe(replace(mdlm, kernel=replace(mdlm.kernel, noise_removal=False)), 9) == 4


def test_an_answer_ends_at_its_first_eos() -> None:
    assert answer_ids((1, 2, 5, 6, 7, 5, 7), 2, frozenset({7})) == (5, 6)
    assert answer_ids((1, 2, 5, 6), 2, frozenset({7})) == (5, 6)
