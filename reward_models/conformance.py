"""The laws that every reward model keeps, as checks that any implementation can run.

    for check in CHECKS:
        await run_check(check, subject)

They say nothing of how good a judge is.
"""

from __future__ import annotations

import math
from typing import Final

from reward_models.base import Candidate, Claim, RewardKind, Score
from reward_models.conformance_next import (
    a_score_is_the_reward_of_the_last_token,
    a_step_costs_its_own_tokens,
    next_rewards_are_gathered,
)
from reward_models.conformance_trial import TOLERANCE, near, require
from reward_models.conformance_trial import Check as Check
from reward_models.conformance_trial import ContractBroken as ContractBroken
from reward_models.conformance_trial import Subject as Subject
from reward_models.conformance_trial import Trial as Trial
from reward_models.conformance_trial import run_check as run_check
from reward_models.errors import RewardInputError, RewardUnavailable


async def scores_are_finite_and_in_range(trial: Trial) -> None:
    """One finite score per candidate, between the declared ends, one value per step if any."""
    info, candidates = trial.judge.info, trial.candidates(await trial.open())
    scores = await trial.judge.score(candidates)
    require(len(scores) == len(candidates), f"{len(scores)} scores of {len(candidates)}")
    for candidate, score in zip(candidates, scores, strict=True):
        for value in (score.value, *score.steps):
            inside = math.isfinite(value) and info.low <= value <= info.high
            require(inside, f"{value} is not in {info.low}..{info.high}")
        if score.steps or info.kind is RewardKind.PROCESS:
            counts = (len(score.steps), len(candidate.steps))
            require(counts[0] == counts[1], "{} values for {} steps".format(*counts))
        if info.kind is RewardKind.PROCESS:
            gap = abs(score.value - score.steps[-1])
            require(gap < TOLERANCE, "a process judge's value is not its last step's")


async def an_empty_batch_is_no_scores(trial: Trial) -> None:
    """Nothing in, nothing out."""
    require(await trial.judge.score([]) == [], "an empty batch gave scores")


async def batching_changes_nothing(trial: Trial) -> None:
    """Alone, together and in another order, a candidate is worth the same."""
    candidates = trial.candidates(await trial.open())
    together = await trial.judge.score(candidates)
    turned = (await trial.judge.score(candidates[::-1]))[::-1]
    alone = [(await trial.judge.score([candidate]))[0] for candidate in candidates]
    for name, others in (("reversed", turned), ("alone", alone)):
        for one, other in zip(together, others, strict=True):
            require(_alike(one, other), f"{one} together, {other} {name}")


async def claims_change_nothing(trial: Trial) -> None:
    """A claim saves work and nothing else: without it, forked or shared, scores are the same."""
    claim = await trial.open()
    fork = trial.own(claim.fork())
    require(fork.token_ids == claim.token_ids, "a fork has other tokens")
    plain = await trial.judge.score(trial.candidates())
    claimed = await trial.judge.score(trial.candidates(claim))
    claim.release()
    claim.release()
    forked = await trial.judge.score(trial.candidates(fork))
    for name, others in (("under a claim", claimed), ("under a fork", forked)):
        for one, other in zip(plain, others, strict=True):
            require(_alike(one, other), f"{one} without a claim, {other} {name}")


async def a_claim_records_what_it_is_given(trial: Trial) -> None:
    """extend makes another claim with the tokens appended."""
    claim = await trial.open()
    before = claim.token_ids
    longer = trial.own(claim.extend((1, 2)))
    require(longer.token_ids == (*before, 1, 2), f"{longer.token_ids} after extending {before}")
    require(claim.token_ids == before, "extend changed its claim")


async def steps_are_judged_by_what_came_before(trial: Trial) -> None:
    """The first steps of an answer are worth the same however it goes on."""
    if trial.judge.info.kind is not RewardKind.PROCESS:
        return
    claim = await trial.open()
    steps = max(trial.subject.answers, key=len)
    whole, part = await trial.judge.score(
        [trial.candidate(steps, claim), trial.candidate(steps[:-1], claim, is_finished=False)]
    )
    for one, other in zip(whole.steps, part.steps, strict=False):
        require(abs(one - other) < TOLERANCE, f"a step was {other}, then {one}")


async def unfinished_answers_are_judged(trial: Trial) -> None:
    """Search judges branches that go on: they have finite values in the range too."""
    info, claim = trial.judge.info, await trial.open()
    parts = [
        trial.candidate(steps[: max(1, len(steps) - 1)], claim, is_finished=False)
        for steps in trial.subject.answers
    ]
    for score in await trial.judge.score(parts):
        inside = math.isfinite(score.value) and info.low <= score.value <= info.high
        require(inside, f"{score.value} is not in {info.low}..{info.high}")


async def an_answer_without_steps_harms_nobody(trial: Trial) -> None:
    """Nothing to judge is no error of the batch: it has a value or none, the others have theirs."""
    info, claim = trial.judge.info, await trial.open()
    empty = trial.candidate((), claim)
    value = (await _beside(trial, claim, empty)).value
    inside = math.isnan(value) or info.low <= value <= info.high
    require(inside, f"{value} is neither NaN nor in {info.low}..{info.high}")


async def what_cannot_be_read_is_nan_alone(trial: Trial) -> None:
    """A candidate that the judge cannot read is dropped, and the rest of its batch stands."""
    if trial.subject.unreadable is None:
        return
    claim = await trial.open()
    score = await _beside(trial, claim, trial.candidate(trial.subject.unreadable, claim))
    require(math.isnan(score.value), f"what cannot be read has the value {score.value}")


async def a_closed_judge_says_so(trial: Trial) -> None:
    """After aclose, which may come twice, scoring raises RewardUnavailable."""
    await trial.judge.aclose()
    await trial.judge.aclose()
    try:
        await trial.judge.score(trial.candidates())
    except RewardUnavailable:
        return
    raise ContractBroken("score did not raise RewardUnavailable after aclose")


async def _beside(trial: Trial, claim: Claim, odd: Candidate) -> Score:
    """The score of `odd`, judged among answers whose scores it must not change."""
    answers = trial.candidates(claim)
    plain = await trial.judge.score(answers)
    try:
        *scores, last = await trial.judge.score([odd, *answers, odd])
    except RewardInputError:  # whoever asks then judges one by one
        return Score(math.nan)
    for one, other in zip(plain, scores[1:], strict=True):
        require(_alike(one, other), f"{one} alone, {other} beside {odd.text!r}")
    is_same = math.isnan(last.value) == math.isnan(scores[0].value)
    require(is_same, f"{scores[0]} first, {last} last")
    return last


def _alike(one: Score, other: Score) -> bool:
    return near((one.value, *one.steps), (other.value, *other.steps))


CHECKS: Final[tuple[Check, ...]] = tuple(
    Check(getattr(body, "__name__", str(body)), body)
    for body in (
        scores_are_finite_and_in_range,
        an_empty_batch_is_no_scores,
        batching_changes_nothing,
        claims_change_nothing,
        a_claim_records_what_it_is_given,
        steps_are_judged_by_what_came_before,
        unfinished_answers_are_judged,
        an_answer_without_steps_harms_nobody,
        what_cannot_be_read_is_nan_alone,
        next_rewards_are_gathered,
        a_score_is_the_reward_of_the_last_token,
        a_step_costs_its_own_tokens,
        a_closed_judge_says_so,
    )
)
