"""The diffusion engine beside what the shared checks say: options, lengths, ends, cost."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.base import Capability, Continuation, Finish, Sampling
from engines.diffusion.base import DenoiseJob, DenoisingEngine, frozen_prompt
from engines.diffusion.engine import DiffusionEngine, open_engine
from engines.errors import (
    ContextLengthExceeded,
    MaskInPrompt,
    ModelLoadError,
    PromptError,
    UnsupportedByEngine,
    WrongLength,
)
from tests.diffusion_models import EOS, MASK, write_tiny

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("llada"), "llada")


def opened(directory: Path, **options: Any) -> DiffusionEngine:
    return open_engine("tiny", str(directory), options)


async def drawn(engine: DiffusionEngine, how: Sampling, prompt: Any = None) -> Continuation:
    prefix = await engine.open(engine.render(HI) if prompt is None else prompt)
    items = [item async for item in engine.sample(prefix, how)]
    assert isinstance(items[-1], Continuation)
    return items[-1]


async def test_without_a_template_the_text_itself_is_gone_on_from(tmp_path: Path) -> None:
    directory = write_tiny(tmp_path, "mdlm")
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["chat_template"]
    path.write_text(json.dumps(config))
    engine = opened(directory)
    assert engine.render(HI) == engine.encode("hi")
    assert (await drawn(engine, Sampling(max_tokens=16, seed=3))).token_ids
    for several in ([*HI, *HI], [{"role": "system", "content": "hi"}], []):
        with pytest.raises(PromptError, match="single message"):
            engine.render(several)
    await engine.aclose()


async def test_a_text_is_one_run_of_its_length(tiny: Path) -> None:
    engine = opened(tiny, kernel="random")
    assert isinstance(engine, DenoisingEngine)
    assert engine.info.capabilities == {Capability.DENOISE, Capability.SEED}
    how = Sampling(max_tokens=12, seed=1, ban_ids=engine.info.eos_ids)
    child = await drawn(engine, how)
    assert len(child.token_ids) == len(child.logps) == 12
    assert child.finish is Finish.LENGTH
    assert child.nfe == 12
    assert child.computed_tokens == 12 * (len(engine.render(HI)) + 12)
    assert not child.prefix.token_ids.count(MASK)
    none = await drawn(engine, replace(how, max_tokens=None))
    assert len(none.token_ids) == 32
    await engine.aclose()


async def test_the_course_is_what_sample_does(tiny: Path) -> None:
    engine = opened(tiny, block_length=4, steps=8)
    prompt, how = engine.render(HI), Sampling(max_tokens=16, temperature=0.8, top_k=40, seed=3)
    assert isinstance(prompt, tuple)
    course = engine.course(len(prompt), how)
    job = DenoiseJob(
        engine.denoiser.start(prompt, course.length),
        frozen_prompt(len(prompt), course.length),
        0,
        course.kernel.steps,
        3,
        course.temperature,
        course.kernel,
    )
    [done] = await engine.denoiser.denoise([job])
    child = await drawn(engine, how)
    assert done.tokens[len(prompt) :][: len(child.token_ids)] == child.token_ids
    assert (done.nfe, course.kernel.steps, course.kernel.block_length) == (child.nfe, 8, 4)
    await engine.aclose()


async def test_an_answer_ends_at_eos(tiny: Path) -> None:
    engine = opened(tiny)
    everything_else = frozenset(range(300)) - {EOS, 65, MASK}
    for seed in range(20):
        child = await drawn(engine, Sampling(max_tokens=4, seed=seed, ban_ids=everything_else))
        drawn_ids = (*child.token_ids, *child.overrun_ids)
        if child.finish is Finish.STOP_TOKEN:
            assert drawn_ids == (65,) * (len(drawn_ids) - 1) + (EOS,)
            assert child.text == engine.decode((65,)) * len(child.token_ids)
            break
    else:
        raise AssertionError("no answer of 20 ended at eos")
    await engine.aclose()


async def test_what_stands_is_not_written_again(tiny: Path) -> None:
    """A prefix that holds part of the answer is continued up to the answer's length."""
    engine = opened(tiny)
    prefix = await engine.open(engine.render(HI))
    [longer] = await engine.extend([(prefix, (70, 71, 72))])
    how = Sampling(max_tokens=8, seed=1, ban_ids=engine.info.eos_ids)
    [child] = [item async for item in engine.sample(longer, replace(how, deltas=False))]
    assert isinstance(child, Continuation)
    assert child.prefix.token_ids[: len(longer.token_ids)] == longer.token_ids
    assert len(child.token_ids) == 5
    [full] = [item async for item in engine.sample(child.prefix, replace(how, deltas=False))]
    assert isinstance(full, Continuation)
    assert (full.token_ids, full.nfe, full.finish) == ((), 0, Finish.LENGTH)
    await engine.aclose()


async def test_bad_requests_are_typed(tiny: Path) -> None:
    engine = opened(tiny, block_length=4)
    prefix = await engine.open(engine.render(HI))
    for length, words in ((0, "is 0"), (200, "room for"), (10, "blocks of 4")):
        if length:
            with pytest.raises(WrongLength, match=words):
                engine.sample(prefix, Sampling(max_tokens=length))
        with pytest.raises(WrongLength, match=words):
            engine.course(10, Sampling(max_tokens=length))
    with pytest.raises(MaskInPrompt):
        await engine.open((65, MASK))
    with pytest.raises(PromptError, match="token id 300"):
        await engine.open((65, 300))
    with pytest.raises(PromptError, match="-1"):
        await engine.open((65, -1))
    with pytest.raises(ContextLengthExceeded):
        await engine.open((65,) * 96)
    with pytest.raises(ContextLengthExceeded):
        await engine.extend([(prefix, (65,) * 96)])
    for odd in (
        Sampling(min_p=0.1),
        Sampling(presence_penalty=1.0),
        Sampling(repetition_penalty=1.1),
        Sampling(logit_bias={1: 2.0}),
        Sampling(min_tokens=2),
        Sampling(logprobs=1),
        Sampling(boundaries=("\n",)),
        Sampling(max_step_tokens=4),
        Sampling(drafter="adaptive"),
    ):
        with pytest.raises(UnsupportedByEngine):
            engine.check_sampling(odd)
        with pytest.raises(UnsupportedByEngine):
            engine.sample(prefix, odd)
    with pytest.raises(UnsupportedByEngine, match="banned"):
        engine.check_sampling(Sampling(ban_ids=frozenset(range(299))))
    engine.check_sampling(Sampling(top_k=5, top_p=0.5, temperature=0.0, stop=("x",)))
    await engine.aclose()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernels": "mdlm"}, "unknown engine option 'kernels'"),
        ({"kernel": "ddpm"}, "no kernel 'ddpm'"),
        ({"length": "8"}, "'length' must be int"),
        ({"length": 0}, "'length' must be at least 1"),
        ({"block_length": 5}, "blocks of 5"),
        ({"dtype": "float16"}, "float16"),
        ({"device": "tpu9"}, "device"),
        ({"position_temperature": -1}, "position_temperature"),
        ({"steps": -1}, "'steps' must be at least 0"),
    ],
)
def test_bad_options_name_themselves(tiny: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelLoadError, match=words):
        opened(tiny, **options)


async def test_options_of_the_directory_are_defaults(tmp_path: Path) -> None:
    directory = write_tiny(tmp_path, "mdlm")
    (directory / "bough.json").write_text(json.dumps({"engine": {"kernel": "random", "length": 9}}))
    engine = opened(directory, length=7)
    assert engine.denoiser.info.kernels[0] == "random"
    assert engine.course(3, Sampling()).length == 7
    assert engine.info.eos_ids == {257, 258, 259}  # the tokenizer's; config.json names none
    await engine.aclose()
    (directory / "bough.json").write_text(json.dumps({"engine": [1]}))
    with pytest.raises(ModelLoadError, match="object"):
        opened(directory)


async def test_a_prompt_may_not_smuggle_masks_in(tmp_path: Path) -> None:
    """The mask's own name in a message is read as the token, and refused."""
    directory = write_tiny(tmp_path, "llada", mask_token_id=256)
    engine = opened(directory)
    with pytest.raises(MaskInPrompt):
        await engine.open(engine.render([{"role": "user", "content": "fill <|pad|> in"}]))
    await engine.aclose()


async def test_bfloat16_serves(tiny: Path) -> None:
    engine = opened(tiny, dtype="bfloat16")
    child = await drawn(engine, Sampling(max_tokens=8, seed=1, ban_ids=engine.info.eos_ids))
    assert len(child.token_ids) == 8
    await engine.aclose()
