"""What is drawn: the same as elsewhere, at the right temperature, with penalties that last."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engines.base import Constraint, Continuation, Prefix, Sampling
from engines.embedded.engine import open_engine as open_embedded
from engines.errors import UnsupportedByEngine
from engines.vllm_engine import VllmEngine
from models.registry import bundled
from tests.real_vllm.marks import SHARED

pytestmark = SHARED

PROBLEMS = (
    "Tom has 12 apples. He buys 7 more and then gives 5 away. How many apples does Tom have?",
    "Ann has 3 boxes with 14 pens each. She loses 9 pens. How many pens does she have?",
    "What is 35 + 48 - 19?",
    "A shop sells 25 cakes on Monday and 18 on Tuesday. How many cakes does it sell?",
    "é漢😀 7 + 8?",
)


async def children(
    engine: VllmEngine, prefix: Prefix, how: Sampling, seeds: Sequence[int] = (0,)
) -> list[Continuation]:
    done = {}
    async for item in engine.sample(prefix, how, n=len(seeds), seeds=seeds):
        if isinstance(item, Continuation):
            done[item.index] = item
    return [done[index] for index in range(len(seeds))]


async def test_greedy_answers_are_those_of_the_embedded_engine(sapling: VllmEngine) -> None:
    embedded = open_embedded("sapling", str(bundled()["sapling-sums"]), {"dtype": "float32"})
    try:
        assert embedded.info.tokenizer_hash == sapling.info.tokenizer_hash
        assert embedded.info.eos_ids == sapling.info.eos_ids
        assert embedded.info.step_delimiters == sapling.info.step_delimiters
        how = Sampling(temperature=0.0, max_tokens=80, deltas=False)
        for problem in PROBLEMS:
            messages = [{"role": "user", "content": problem}]
            prompt = sapling.render(messages)
            assert isinstance(prompt, tuple)
            assert prompt == embedded.render(messages)
            [ours] = await children(sapling, await sapling.open(prompt), how)
            [theirs] = [
                item
                async for item in embedded.sample(await embedded.open(prompt), how)
                if isinstance(item, Continuation)
            ]
            same = ("token_ids", "text", "finish", "matched", "overrun_ids")
            assert [getattr(ours, n) for n in same] == [getattr(theirs, n) for n in same]
            assert ours.logps == pytest.approx(theirs.logps, abs=1e-4)
    finally:
        await embedded.aclose()


async def test_greedy_answers_are_those_of_hugging_face(sapling: VllmEngine) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bundled()["sapling-sums"], dtype=torch.float32)
    for problem in PROBLEMS[:3]:
        prompt = sapling.render([{"role": "user", "content": problem}])
        assert isinstance(prompt, tuple)
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=40, do_sample=False, use_cache=True
        )[0, len(prompt) :].tolist()
        how = Sampling(temperature=0.0, max_tokens=40)
        [ours] = await children(sapling, await sapling.open(prompt), how)
        drawn = (*ours.token_ids, *ours.overrun_ids)
        assert drawn == tuple(out[: len(drawn)])
        assert len(drawn) == len(out) or drawn[-1] in sapling.info.eos_ids


async def test_continuing_a_final_message_renders_its_text_and_no_more(sapling: VllmEngine) -> None:
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "2 + 2 ="}]
    prompt = sapling.render(messages, continue_final=True)
    assert isinstance(prompt, tuple)
    assert sapling.decode(prompt).endswith("2 + 2 =")


@dataclass(frozen=True)
class Frozen:
    """Greedy at some positions, hot elsewhere."""

    start: int = 4
    end: int = 9

    def temperature(self, position: int) -> float:
        return 0.0 if self.start <= position < self.end else 1.7

    def segments(self, max_pieces: int) -> list[tuple[int, float]]:
        return [(0, 1.7), (self.start, 0.0), (self.end, 1.7)]


@pytest.mark.parametrize("step", [None, 3, 5])
async def test_schedules_follow_the_position_in_the_answer(
    tiny: VllmEngine, step: int | None
) -> None:
    """The likeliest token exactly where it is cold, drawn in one piece or in steps.

    The model is near-flat: where it is hot, all 16 answers take the likeliest token by chance with
    a probability below 1e-9.
    """
    schedule = Frozen()
    banned = tiny.info.eos_ids
    how = Sampling(max_tokens=12, schedule=schedule, ban_ids=banned, max_step_tokens=step)
    root = await tiny.open(tuple(range(5, 45)))
    answers = []
    for seed in range(16):
        prefix = root
        while len(prefix.token_ids) < len(root.token_ids) + 12:
            [done] = await children(tiny, prefix, how, (seed + len(prefix.token_ids) * 100,))
            prefix = done.prefix
        answers.append(prefix)
    greedy = [0] * 12
    for answer in answers:
        ids = answer.token_ids
        at = range(len(root.token_ids), len(ids))
        stems = await tiny.extend([(root, ids[len(root.token_ids) : end]) for end in at])
        rows = await tiny.next_logprobs(stems, top_k=1 + len(banned))
        for position, row in enumerate(rows):
            best = next(token for token in row.ids if token not in banned)
            greedy[position] += ids[len(root.token_ids) + position] == best
    cold = [position for position, count in enumerate(greedy) if count == len(answers)]
    assert cold == list(range(schedule.start, schedule.end)), greedy


async def test_penalties_reach_back_into_earlier_steps(tiny: VllmEngine) -> None:
    how = Sampling(max_tokens=40, presence_penalty=200.0, max_step_tokens=7)
    prefix = await tiny.open(tuple(range(5, 15)))
    for _ in range(5):
        [done] = await children(tiny, prefix, replace(how, ban_ids=tiny.info.eos_ids))
        prefix = done.prefix
    answer = prefix.token_ids[10:]
    assert len(answer) == 35
    assert len(set(answer)) == 35
    free = replace(how, presence_penalty=-200.0, temperature=0.0, ban_ids=tiny.info.eos_ids)
    [again] = await children(tiny, prefix, free)
    assert set(again.token_ids) <= set(answer)


async def test_biases_count_together_with_other_requests(tiny: VllmEngine) -> None:
    """Rows of a batch keep their own: one is forced, its neighbours are not."""
    prefix = await tiny.open(tuple(range(5, 15)))
    how = Sampling(max_tokens=20, ban_ids=tiny.info.eos_ids)
    forced = replace(how, logit_bias={42: 500.0})
    import asyncio

    mixed = await asyncio.gather(
        children(tiny, prefix, forced, (1, 2)), children(tiny, prefix, how, (1, 2))
    )
    assert {token for child in mixed[0] for token in child.token_ids} == {42}
    alone = await children(tiny, prefix, how, (1, 2))
    assert [c.token_ids for c in mixed[1]] == [c.token_ids for c in alone]
    assert all(child.logps[0] == pytest.approx(mixed[0][0].logps[0]) for child in mixed[0])


async def test_very_cold_and_very_hot_are_what_they_say(tiny: VllmEngine) -> None:
    """vLLM itself would warm up the one and refuse the other."""
    prefix = await tiny.open(tuple(range(5, 15)))
    how = Sampling(max_tokens=20, ban_ids=tiny.info.eos_ids)
    [greedy] = await children(tiny, prefix, replace(how, temperature=0.0))
    [cold] = await children(tiny, prefix, replace(how, temperature=1e-4))
    assert cold.token_ids == greedy.token_ids
    [hot] = await children(tiny, prefix, replace(how, temperature=50.0))
    assert hot.token_ids != greedy.token_ids


async def test_constraints_hold(sapling: VllmEngine) -> None:
    prefix = await sapling.open(sapling.render([{"role": "user", "content": "2+2?"}]))
    how = Sampling(max_tokens=60, constraint=Constraint(regex="[0-9]{3}"))
    for done in await children(sapling, prefix, how, (1, 2, 3)):
        assert done.text.isdigit()
        assert len(done.text) == 3
    schema = {"enum": ["left", {"right": 1}]}
    how = Sampling(max_tokens=60, constraint=Constraint(json_schema=schema))
    for done in await children(sapling, prefix, how, (1, 2, 3)):
        assert json.loads(done.text) in schema["enum"]
    how = Sampling(max_tokens=60, constraint=Constraint(grammar='root ::= "left" | "right"'))
    [done] = await children(sapling, prefix, how)
    assert done.text in ("left", "right")


async def test_a_constraint_that_cannot_be_is_refused(sapling: VllmEngine) -> None:
    prefix = await sapling.open(sapling.render([{"role": "user", "content": "2+2?"}]))
    for broken in (
        Constraint(regex="(["),
        Constraint(grammar="root ::= nothing"),
        Constraint(json_schema={"type": "no such type"}),
    ):
        how = Sampling(max_tokens=8, constraint=broken)
        with pytest.raises(UnsupportedByEngine, match="constraint"):
            sapling.sample(prefix, how)  # at once: nobody has read from it
        with pytest.raises(UnsupportedByEngine, match="constraint"):
            sapling.check_sampling(how)
    step = Sampling(max_tokens=20, max_step_tokens=4, temperature=0.0)
    [first] = await children(sapling, prefix, step)
    with pytest.raises(UnsupportedByEngine, match="step by step"):
        await children(sapling, first.prefix, replace(step, constraint=Constraint(regex="a*")))


async def test_an_unknown_option_is_refused_with_near_names(tiny_model: Path) -> None:
    from engines.errors import ModelLoadError
    from engines.vllm_async import open_engine

    with pytest.raises(ModelLoadError, match="max_num_seqs"):
        open_engine("tiny", str(tiny_model), {"max_num_seq": 3})
    with pytest.raises(ModelLoadError, match="logprobs_mode"):
        open_engine("tiny", str(tiny_model), {"logprobs_mode": "processed_logprobs"})
