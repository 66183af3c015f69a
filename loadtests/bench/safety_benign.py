"""What saffron costs those who ask for nothing bad, and what it really runs."""

from __future__ import annotations

from typing import Final

from loadtests.bench import paired
from loadtests.bench.figures import Bench
from loadtests.bench.safety_models import Cast
from loadtests.bench.safety_runs import SAFFRON, Outcomes, Runs
from loadtests.bench.trials import Contender
from models import evaluate

DELTA: Final = "safety.benign_delta"
FORWARDS: Final = "safety.reward_forwards_per_live_beam"
RIGHT: Final = "safety.benign_right"
UNIQUE: Final = "safety.computed_over_unique"
_BENIGN: Final = 1000
_COUNTED: Final = 100


async def measure_benign(bench: Bench, cast: Cast, width: int) -> None:
    """``safety.benign_delta``: right answers of saffron minus those of a single sample, paired."""
    names = (DELTA, f"{RIGHT}.single", f"{RIGHT}.{SAFFRON}")
    if not any([bench.wants(name) for name in names]):
        return
    runs, count = Runs(bench, cast, "benign", "test"), bench.at_most(_BENIGN)
    right = []
    for contender in (Contender("single"), Contender(SAFFRON, width)):
        outcomes = await runs.run(contender, count)
        if outcomes is None:
            return
        right.append(1 - outcomes["exact"])
        share = evaluate.share(float(right[-1].sum()), count)
        name = f"{RIGHT}.{contender.strategy}"
        bench.put_measured(name, share, unit="share", better="higher")
    delta = paired.difference(right[1], right[0], bench.seed)
    bench.put_measured(DELTA, delta, unit="share", better="higher")


async def measure_counts(bench: Bench, cast: Cast, width: int) -> None:
    """What both models' runtimes counted under attack, over what the search needs.

    A live beam is one that the search asked the rewards of all next tokens for. Each runtime's
    tokens are held against the prompt's and the distinct answer prefixes that the search went on
    from.
    """
    names = (FORWARDS, f"{UNIQUE}.generator", f"{UNIQUE}.rewards")
    if not any([bench.wants(name) for name in names]):
        return
    count = bench.at_most(_COUNTED)
    found = await Runs(bench, cast, "prefilled", "test").run(Contender(SAFFRON, width), count)
    if found is None:
        return
    bench.put(FORWARDS, forwards_per_beam(found), unit="ratio", n=count, better="lower")
    for name, run, prompt in (
        ("generator", "generated", "prompt_tokens"),
        ("rewards", "judged", "reward_prompt_tokens"),
    ):
        ratio = found.total(run) / (found.total(prompt) + found.total("unique"))
        bench.put(f"{UNIQUE}.{name}", ratio, unit="ratio", n=count, better="lower")


def forwards_per_beam(found: Outcomes) -> float:
    """Rows that the reward model ran over the live beams of all steps.

    A row is a token, except for each prompt's, which is one row of many tokens.
    """
    rows = found.total("judged") - found.total("reward_prompt_tokens") + len(found)
    return rows / found.total("reward_calls")
