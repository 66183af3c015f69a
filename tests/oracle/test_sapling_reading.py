"""The committed weights in Hugging Face's own code: the same logits, rewards and template."""

from __future__ import annotations

import asyncio

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from models.evaluate import greedy_accuracy, held_out, step_auroc
from models.registry import bundled
from models.tasks.base import messages_of, solution_of
from models.training.cards import DECODER
from models.training.measure import TorchGenerate, TorchJudge, load_chat, render
from models.training.network import load_checkpoint
from models.training.rollouts import sample
from reward_models.base import Candidate
from reward_models.process import open_judge
from reward_models.training.process import load_head

SUMS = bundled()["sapling-sums"]
JUDGE = bundled()["sapling-prm"]


@pytest.fixture(scope="module")
def theirs() -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(SUMS, dtype=torch.float32).eval()


def test_chat_template_is_what_training_saw() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SUMS)
    messages = [
        {"role": "system", "content": "You are a careful assistant."},
        {"role": "user", "content": "Héllo\n 12"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    chat = load_chat(SUMS)
    assert tokenizer.encode(text, add_special_tokens=False) == render(chat, messages, "")


def test_logits_agree(theirs: LlamaForCausalLM) -> None:
    chat, ours = load_chat(SUMS), load_checkpoint(SUMS)
    for problem in held_out(5, seed=3):
        ids = torch.tensor([render(chat, messages_of(problem), solution_of(problem))])
        with torch.inference_mode():
            torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=2e-4, rtol=1e-4)


def test_greedy_samples_agree(theirs: LlamaForCausalLM) -> None:
    chat, ours = load_chat(SUMS), load_checkpoint(SUMS)
    prompts = [chat.prompt(problem.text) for problem in held_out(6, seed=4)]
    drawn = sample(ours, prompts, chat.end_id, max_tokens=100, temperature=0)
    for prompt, (row,) in zip(prompts, drawn, strict=True):
        ids = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=100,
        )
        assert ids[0, len(prompt) :].tolist() == row


def test_rewards_are_the_documented_reading() -> None:
    network = LlamaForCausalLM.from_pretrained(JUDGE / DECODER, dtype=torch.float32).eval()
    head, chat = load_head(JUDGE), load_chat(JUDGE / DECODER)
    judge = TorchJudge.load(JUDGE)
    problem = held_out(1, seed=5)[0]
    steps = solution_of(problem).splitlines(keepends=True)
    rewards = asyncio.run(judge(messages_of(problem), steps))
    start = len(render(chat, messages_of(problem), ""))
    for at in range(len(steps)):
        ids = torch.tensor([render(chat, messages_of(problem), "".join(steps[: at + 1]))])
        with torch.inference_mode():
            out = network(ids, output_hidden_states=True)
            logps = out.logits[0, start - 1 : -1].log_softmax(-1)
            so_far = logps.gather(-1, ids[0, start:, None]).sum()
            reward = torch.sigmoid(head(out.hidden_states[-1][0, -1], so_far)).item()
        assert reward == pytest.approx(rewards[at], abs=1e-4)


async def test_the_served_judge_reads_the_same() -> None:
    problem = held_out(1, seed=6)[0]
    steps = tuple(solution_of(problem).splitlines(keepends=True))
    messages = tuple(messages_of(problem))
    served = open_judge("sapling-prm", str(JUDGE), {"kv_tokens": 4096})
    (score,) = await served.score([Candidate(messages, "".join(steps), (), steps)])
    await served.aclose()
    trained = await TorchJudge.load(JUDGE)(list(messages), list(steps))
    assert score.steps == pytest.approx(trained, abs=1e-4)


@pytest.mark.slow
def test_quality_is_roughly_what_the_cards_say() -> None:
    # 100 problems: the generator's true greedy accuracy lies well inside the bounds, so that a
    # false alarm needs a deviation of more than three standard errors (about 1 in 500).
    chat = load_chat(SUMS)
    generate = TorchGenerate(load_checkpoint(SUMS), chat, seed=1)
    greedy = asyncio.run(greedy_accuracy(generate, n=100, seed=11))
    assert 0.30 < greedy.value < 0.80
    judge = TorchJudge.load(JUDGE)
    area = asyncio.run(step_auroc(generate, judge, n=60, seed=11))
    assert area.value > 0.8
