"""its_hub's particle filter as a library; runs in the environment of its_hub.

    python -m loadtests.peers.its_hub_library ENDPOINT

Reads a `Block` a line on standard input and writes a line of JSON for each: seconds and contents.
The judge is bough's own, in this process and on the embedded runtime, exactly as it stands beside
bough's engine: both sides pay the same for a judgement, and both keep the judge's cache.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import time
import warnings
from typing import Any

import numpy as np
from its_hub.api import AbstractProcessRewardModel
from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel
from its_hub.core.lms.step_generation import StepGeneration

from loadtests.peers.blocks import Block
from loadtests.peers.servers import GENERATOR, JUDGE, JUDGE_DIR
from reward_models.base import Candidate, Claim, RewardModel
from reward_models.process import open_judge
from search.steps import split_steps

STEP_TOKENS = 48
"""Longest step; the sapling's own, as in bough."""


class SaplingReward(AbstractProcessRewardModel):  # type: ignore[misc]  # its_hub has no types here
    """bough's process reward model behind its_hub's interface: the value of the last step."""

    def __init__(self, judge: RewardModel) -> None:
        self._judge = judge
        self._claims: dict[str, Claim] = {}

    def score(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        """Not used: the algorithms await `ascore`."""
        return asyncio.run(self.ascore(prompt_or_messages, steps))

    async def ascore(self, prompt_or_messages: Any, steps: list[str]) -> list[float]:
        """The value of each answer so far; its_hub calls them steps."""
        prompt = str(prompt_or_messages)
        messages = ({"role": "user", "content": prompt},)
        if prompt not in self._claims:
            self._claims[prompt] = await self._judge.open(messages)
        claim = self._claims[prompt]
        batch = [Candidate(messages, text, (), split_steps(text, ("\n",)), claim) for text in steps]
        return [one.value for one in await self._judge.score(batch)]

    def forget(self, prompt: str) -> None:
        """Give back what a finished problem claims."""
        claim = self._claims.pop(prompt, None)
        if claim is not None:
            claim.release()


async def solve(endpoint: str, reward: SaplingReward, block: Block) -> dict[str, Any]:
    """All problems of a block: seconds and the chosen answers."""
    random.seed(block.seed)
    np.random.seed(block.seed % 2**32)
    model = OpenAICompatibleLanguageModel(
        endpoint=f"{endpoint}/v1",
        api_key="none",
        model_name=GENERATOR,
        max_completion_tokens=STEP_TOKENS,
    )
    steps = StepGeneration(
        max_steps=block.max_steps,
        step_token="\n",
        stop_token="The answer is",
        temperature=block.temperature,
        include_stop_str_in_output=True,
    )
    algorithm = ParticleFiltering(steps, reward)
    gate = asyncio.Semaphore(block.in_flight)

    async def one(prompt: str) -> str:
        async with gate:
            try:
                chosen = await algorithm.ainfer(model, prompt, block.width)
            finally:
                reward.forget(prompt)
        return str(chosen["content"])

    begin = time.perf_counter()
    contents = await asyncio.gather(*map(one, block.prompts))
    seconds = time.perf_counter() - begin
    await model.close()
    return {"seconds": seconds, "contents": contents}


async def main(endpoint: str) -> None:
    """Answer blocks until standard input ends."""
    reward = SaplingReward(open_judge(JUDGE, str(JUDGE_DIR), {}))
    while line := await asyncio.to_thread(sys.stdin.readline):
        found = await solve(endpoint, reward, Block.from_json(line))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # it calls what it deprecates itself
    logging.disable(logging.INFO)
    asyncio.run(main(sys.argv[1]))
