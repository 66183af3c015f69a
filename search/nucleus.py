"""Choosing next tokens: the policy's nucleus proposes them, rewards rank them. Pure functions.

Source: Saffron-1, Qiu et al., arXiv 2506.06444, equations 2, 3 and 7.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np

from engines.base import NextTokens
from reward_models.base import UNSEEN

_SLACK: Final = 1e-5  # engines add up probabilities in float32
_FAINT: Final = 1e-2  # a mass that one minus all the others would give too few digits of
_DECIMALS: Final = 5  # as values are rounded everywhere before anyone ranks by them


class Choice(NamedTuple):
    """A member of the beam, and what it becomes.

    Attributes:
        member: Its place in the beam.
        token: The token appended; None for one that has finished and stays as it is.
        logp: The token's log-probability in nats.
        score: The reward of what it becomes.
    """

    member: int
    token: int | None
    logp: float
    score: float


def nucleus(listed: NextTokens, top_p: float, banned: Collection[int]) -> NextTokens | None:
    """The likeliest tokens that hold `top_p` of the probability of all that are not banned.

    A token belongs to it while those in front of it hold less; there is always one where any token
    is allowed. A banned token that is not listed counts as nothing: it is less likely than all that
    are, and its probability would cost another forward pass. So for each of them there may be one
    token too many at the end, and never one too few.

    Args:
        listed: The likeliest tokens, likeliest first.
        top_p: In 0..1.
        banned: Tokens that must not come next.

    Returns:
        The tokens, with the log-probabilities that they were listed with; None where more than
        those listed are needed.
    """
    places = [at for at, token in enumerate(listed.ids) if token not in banned]
    shares = np.exp(np.array(listed.logps)[places] if places else np.zeros(0))
    rest = 1.0 - banned_mass(listed, banned)
    if rest < _FAINT:
        if listed.tail_mass > 0.0:
            return None
        rest = float(shares.sum())
    needed = top_p * rest * (1.0 - 1e-9)
    sums = shares.cumsum()
    count = min(1 + int(np.searchsorted(sums, needed)), len(places))
    held = float(sums[count - 1]) if count else 0.0
    is_short = held < needed - _SLACK * rest or not count
    if is_short and listed.tail_mass > 0.0:
        return None
    kept = places[:count]
    ids = tuple([listed.ids[at] for at in kept])
    return NextTokens(ids, tuple([listed.logps[at] for at in kept]), max(0.0, 1.0 - held))


def mass_beside(top_p: float, banned: float) -> float:
    """The mass that surely holds the nucleus of the rest, when `banned` of it must not come."""
    return 1.0 if banned > 1.0 - _FAINT else min(top_p + banned * (1.0 - top_p), 1.0)


def banned_mass(listed: NextTokens, banned: Collection[int]) -> float:
    """The probability of the banned tokens among those listed."""
    pairs = zip(listed.ids, listed.logps, strict=True)
    return math.fsum([math.exp(logp) for token, logp in pairs if token in banned])


def least_of(rewards: Iterable[Sequence[float]], width: int) -> float:
    """The reward below which no token is among the `width` best: `choices_of` may leave it out."""
    every = np.concatenate([np.zeros(0), *map(np.asarray, rewards)])
    found = every[(every > UNSEEN) & (every < math.inf)]
    if len(found) <= width:
        return UNSEEN
    # Rewards are rounded before they are ranked: what is lower by less than that may be equal.
    return float(np.partition(found, -width)[-width]) - 2.0 * 10.0**-_DECIMALS


def choices_of(
    member: int, tokens: NextTokens, rewards: Sequence[float], least: float = UNSEEN
) -> list[Choice]:
    """What a member of the beam may become: each token that has a reward.

    Where none has one, the likeliest token stands for all, behind everything that has.

    Args:
        member: Its place in the beam.
        tokens: Its nucleus.
        rewards: Of these tokens, raw; `UNSEEN` or less, or NaN, forbids one.
        least: Tokens with a lower reward are left out; they stand for nothing.
    """
    found = [
        Choice(member, tokens.ids[at], tokens.logps[at], round(reward, _DECIMALS))
        for at, reward in enumerate(rewards)
        if least <= reward < math.inf and reward > UNSEEN
    ]
    if not found and tokens.ids and not any(UNSEEN < one < math.inf for one in rewards):
        return [Choice(member, tokens.ids[0], tokens.logps[0], UNSEEN)]
    return found


def best_choices(choices: Iterable[Choice], width: int) -> list[Choice]:
    """The `width` best, finished or not: by score, then place in the beam, then token id."""
    return sorted(choices, key=_order)[:width]


def _order(one: Choice) -> tuple[float, int, int]:
    return (-one.score, one.member, -1 if one.token is None else one.token)
