"""Choosing next tokens: the policy's nucleus proposes them, rewards rank them. Pure functions.

Source: Saffron-1, Qiu et al., arXiv 2506.06444, equations 2, 3 and 7.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

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
    is allowed. Banned tokens that are not listed count as nothing.

    Args:
        listed: The likeliest tokens, likeliest first.
        top_p: In 0..1.
        banned: Tokens that must not come next.

    Returns:
        The tokens, with the log-probabilities that they were listed with; None where more than
        those listed are needed.
    """
    rest = 1.0 - banned_mass(listed, banned)
    if rest < _FAINT:
        if listed.tail_mass > 0.0:
            return None
        pairs = zip(listed.ids, listed.logps, strict=True)
        rest = math.fsum(math.exp(logp) for token, logp in pairs if token not in banned)
    needed = top_p * rest * (1.0 - 1e-9)
    ids: list[int] = []
    logps: list[float] = []
    held = 0.0
    for token, logp in zip(listed.ids, listed.logps, strict=True):
        if held >= needed and ids:
            break
        if token not in banned:
            ids.append(token)
            logps.append(logp)
            held += math.exp(logp)
    is_short = held < needed - _SLACK * rest or not ids
    if is_short and listed.tail_mass > 0.0:
        return None
    return NextTokens(tuple(ids), tuple(logps), max(0.0, 1.0 - held))


def mass_beside(top_p: float, banned: float) -> float:
    """The mass that surely holds the nucleus of the rest, when `banned` of it must not come."""
    return 1.0 if banned > 1.0 - _FAINT else min(top_p + banned * (1.0 - top_p), 1.0)


def banned_mass(listed: NextTokens, banned: Collection[int]) -> float:
    """The probability of the banned tokens among those listed."""
    pairs = zip(listed.ids, listed.logps, strict=True)
    return math.fsum(math.exp(logp) for token, logp in pairs if token in banned)


def choices_of(member: int, tokens: NextTokens, rewards: Sequence[float]) -> list[Choice]:
    """What a member of the beam may become: each token that has a reward.

    Where none has one, the likeliest token stands for all, behind everything that has.

    Args:
        member: Its place in the beam.
        tokens: Its nucleus.
        rewards: Of these tokens, raw; `UNSEEN` or less, or NaN, forbids one.
    """
    found = [
        Choice(member, token, logp, round(reward, _DECIMALS))
        for token, logp, reward in zip(tokens.ids, tokens.logps, rewards, strict=True)
        if UNSEEN < reward < math.inf
    ]
    if not found and tokens.ids:
        return [Choice(member, tokens.ids[0], tokens.logps[0], UNSEEN)]
    return found


def best_choices(choices: Iterable[Choice], width: int) -> list[Choice]:
    """The `width` best, finished or not: by score, then place in the beam, then token id."""
    return sorted(choices, key=_order)[:width]


def _order(one: Choice) -> tuple[float, int, int]:
    return (-one.score, one.member, -1 if one.token is None else one.token)
