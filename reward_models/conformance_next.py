"""The laws of reward models that value every next token; `reward_models.conformance` runs them."""

from __future__ import annotations

import math

from reward_models.base import UNSEEN, Candidate, MultifurcationRewardModel, rewards_at
from reward_models.conformance_trial import Trial, near, require


async def next_rewards_are_gathered(trial: Trial) -> None:
    """One row per claim, in order, whatever else is asked; `at` gives what it is asked for."""
    judge, root = trial.judge, await trial.open()
    if not isinstance(judge, MultifurcationRewardModel):
        return
    ids = tuple(dict.fromkeys(root.token_ids))  # that the judge can certainly read
    claims = [root, *(trial.own(root.extend((one,))) for one in ids[:3])]
    rows = await judge.next_rewards([*claims, root])
    require(len(rows) == len(claims) + 1, f"{len(rows)} rows of {len(claims) + 1} claims")
    asked = [ids[at % len(ids) :] for at in range(len(rows))]
    together = await rewards_at(rows, asked)
    require(len(together) == len(rows), f"{len(together)} lists of rewards of {len(rows)} rows")
    for row, one, values in zip(rows, asked, together, strict=True):
        require(near(row.at(one), values), "a reward depends on what else is asked for")
    for claim, row in zip((*claims, root), rows, strict=True):
        values = row.at(ids)
        require(all(map(math.isfinite, values)), f"{values} are not finite")
        require(min(values) >= UNSEEN, f"{min(values)} is below what is never chosen")
        one_by_one = [row.at([one])[0] for one in ids]
        require(near(one_by_one, values), "a reward depends on what else is asked for")
        require(near(row.at(ids[::-1]), values[::-1]), "the order of the ids changes a reward")
        require(row.at([]) == [], "no ids have rewards")
        (alone,) = await judge.next_rewards([trial.own(claim.fork())])
        require(near(alone.at(ids), values), "a claim alone has other rewards than among others")


async def a_score_is_the_reward_of_the_last_token(trial: Trial) -> None:
    """What a row says of a token is what an answer that ends with it is worth."""
    judge, root = trial.judge, await trial.open()
    if not isinstance(judge, MultifurcationRewardModel):
        return
    first, *rest = tuple(dict.fromkeys(root.token_ids))[:4]
    (row,) = await judge.next_rewards([trial.own(root.extend((first,)))])
    messages = trial.subject.messages
    scores = await judge.score([Candidate(messages, "", (first, one), (), root) for one in rest])
    values = [one.value for one in scores]
    require(near(values, row.at(rest)), f"scores {values}, in the row {row.at(rest)}")


async def a_step_costs_its_own_tokens(trial: Trial) -> None:
    """Claims share what they have in common: each token is computed once, and none twice."""
    judge, root = trial.judge, await trial.open()
    if not isinstance(judge, MultifurcationRewardModel):
        return
    await judge.next_rewards([root])
    claims = [trial.own(root.extend((one,))) for one in dict.fromkeys(root.token_ids)]
    for wanted in (len(claims), 0):
        before = judge.stats().tokens_computed
        await judge.next_rewards(claims)
        computed = judge.stats().tokens_computed - before
        require(computed == wanted, f"{computed} tokens computed instead of {wanted}")
