"""The laws that every engine keeps, as checks that any implementation can run.

    for check in CHECKS:
        await run_check(check, subject)

A check that needs a capability the engine does not declare raises `NotApplicable`. After each
check all claims that it took are given back, and no page may be claimed any more. The reference
answers come from the engine itself, so a check says nothing of how good they are.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from engines.base import (
    Capability,
    ChecksSampling,
    Constraint,
    Engine,
    Finish,
    Health,
    NextTokens,
    Sampling,
    TokenIds,
)
from engines.conformance_drawing import DRAWING_CHECKS
from engines.conformance_text import TEXT_CHECKS
from engines.conformance_trial import (
    ContractBroken,
    NotApplicable,
    Subject,
    Trial,
    needle_of,
    no_claims,
    require,
)
from engines.errors import ContextLengthExceeded, EngineClosed, UnsupportedByEngine

__all__ = ["CHECKS", "Check", "ContractBroken", "NotApplicable", "Subject", "Trial", "run_check"]

_TOLERANCE: Final = 1e-4  # nats, between two ways to compute the same log-probability

CheckBody: TypeAlias = Callable[[Trial], Awaitable[None]]
Call: TypeAlias = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Check:
    """One law: its name, its body, and the capabilities without which it says nothing."""

    name: str
    body: CheckBody
    requires: frozenset[Capability] = frozenset()


async def run_check(check: Check, subject: Subject) -> None:
    """Run one check on a new engine and close it.

    Raises:
        ContractBroken: The law does not hold.
        NotApplicable: The engine declares too little.
    """
    engine = subject.make()
    try:
        missing = check.requires - engine.info.capabilities
        if missing:
            raise NotApplicable(f"{check.name}: no {', '.join(sorted(missing))}")
        trial = Trial(engine, subject)
        try:
            await check.body(trial)
        finally:
            for prefix in trial.taken:
                prefix.release()
        await no_claims(engine)
    finally:
        await engine.aclose()


async def decode_undoes_encode(trial: Trial) -> None:
    """decode(encode(text)) == text."""
    for text in trial.subject.texts:
        back = trial.engine.decode(trial.engine.encode(text))
        require(back == text, f"{text!r} came back as {back!r}")


async def deltas_lead_to_their_continuation(trial: Trial) -> None:
    """Concatenated deltas are a prefix of the Continuation, in text and in tokens."""
    done, deltas = await trial.children(await trial.open(), trial.endless, (1, 2, 3))
    for child in done:
        mine = [delta for delta in deltas if delta.index == child.index]
        text = "".join(delta.text for delta in mine)
        ids = tuple(token for delta in mine for token in delta.token_ids)
        logps = tuple(logp for delta in mine for logp in delta.logps)
        require(child.text.startswith(text), f"{text!r} does not begin {child.text!r}")
        require(child.token_ids[: len(ids)] == ids, f"{ids} do not begin {child.token_ids}")
        require(child.logps[: len(logps)] == logps, "logps of deltas differ from the child's")
        decoded = trial.engine.decode(child.token_ids)
        require(decoded == child.text, f"decode gives {decoded!r}, text is {child.text!r}")


async def deltas_can_be_declined(trial: Trial) -> None:
    """Without deltas the same Continuations come, and nothing else."""
    prefix = await trial.open()
    with_deltas, _ = await trial.children(prefix, trial.endless, (1, 2))
    without, deltas = await trial.children(prefix, replace(trial.endless, deltas=False), (1, 2))
    require(deltas == [], f"{len(deltas)} deltas came unasked")
    if Capability.SEED in trial.engine.info.capabilities:
        same = [a.token_ids == b.token_ids for a, b in zip(with_deltas, without, strict=True)]
        require(all(same), "declining deltas changed the answers")


async def prefix_stays_the_callers(trial: Trial) -> None:
    """Sampling leaves its argument as it was; a child's prefix holds prompt and child."""
    prefix = await trial.open()
    before, start = prefix.token_ids, prefix.response_start
    child = await trial.child(prefix, trial.endless)
    require(prefix.token_ids == before, "sample changed its prefix")
    require(child.prefix.token_ids == before + child.token_ids, "the child's prefix is not its own")
    require(child.prefix.response_start == start == len(before), "response_start moved")
    require(child.prefix.text == child.text, f"{child.prefix.text!r} is not {child.text!r}")


async def same_seed_same_tokens(trial: Trial) -> None:
    """A seed gives the same tokens alone, again, and among other children."""
    prefix = await trial.open()
    alone = await trial.child(prefix, trial.endless, 7)
    again = await trial.child(prefix, trial.endless, 7)
    crowd, _ = await trial.children(prefix, trial.endless, (1, 2, 7, 3))
    require(again.token_ids == alone.token_ids, "the same seed differed the second time")
    require(crowd[2].token_ids == alone.token_ids, "the same seed differed among others")


async def greedy_needs_no_seed(trial: Trial) -> None:
    """At temperature 0 seeds make no difference."""
    how = replace(trial.endless, temperature=0.0)
    done, _ = await trial.children(await trial.open(), how, (1, 2))
    require(done[0].token_ids == done[1].token_ids, "two greedy children differ")


async def closing_the_iterator_releases(trial: Trial) -> None:
    """Closing a half-read iterator, or cancelling its reader, frees everything."""
    prefix = await trial.open()
    await trial.leave_midway(prefix)
    again = await trial.child(prefix, trial.endless)
    require(len(again.token_ids) > 0, "nothing could be sampled after a cancelled reader")


async def release_is_idempotent(trial: Trial) -> None:
    """Releasing twice is releasing once, whoever else holds the same tokens."""
    first, second = await trial.open(), await trial.open()
    first.release()
    first.release()
    child = await trial.child(second, trial.endless)
    require(len(child.token_ids) > 0, "a second claim died with the first")


async def forks_are_independent(trial: Trial) -> None:
    """A fork lives on when its source is released, even while it is being sampled."""
    prefix = await trial.open()
    expected = await trial.child(prefix, trial.endless)
    fork = trial.own(prefix.fork())
    require(fork.token_ids == prefix.token_ids, "a fork has other tokens")
    require(fork.response_start == prefix.response_start, "a fork has another response_start")
    alone = await trial.released_midway(prefix, trial.endless)
    require(alone.token_ids == expected.token_ids, "releasing the source changed its child")
    child = await trial.child(fork, trial.endless)
    require(child.token_ids == expected.token_ids, "a fork continued otherwise")


async def boundaries_keep_the_whole_token(trial: Trial) -> None:
    """A boundary ends the step after the token that completes it, and the step can go on."""
    prefix = await trial.open()
    plain = await trial.child(prefix, trial.endless)
    needle = needle_of(plain)
    how = replace(trial.endless, boundaries=(needle,))
    child = await trial.child(prefix, how)
    completed = _completed(trial.engine, plain.token_ids, needle)
    require(child.finish is Finish.BOUNDARY, f"finish is {child.finish}, not boundary")
    require(child.matched == needle, f"matched {child.matched!r}, not {needle!r}")
    require(child.token_ids == plain.token_ids[:completed], "the step ends elsewhere")
    require(needle in child.text, f"{needle!r} is not in {child.text!r}")
    require(child.overrun_ids == (), "a boundary leaves an overrun")
    rest = await trial.child(child.prefix, trial.endless)
    require(len(rest.token_ids) == 24 - completed, "the step could not be continued")


async def stop_strings_are_cut_off(trial: Trial) -> None:
    """Text ends before a stop string; tokens split into those inside and the overrun."""
    prefix = await trial.open()
    plain = await trial.child(prefix, trial.endless)
    needle = needle_of(plain)
    child = await trial.child(prefix, replace(trial.endless, stop=(needle,)))
    completed = _completed(trial.engine, plain.token_ids, needle)
    seen = trial.engine.decode(plain.token_ids[:completed])
    text = seen[: seen.index(needle)]
    require(child.finish is Finish.STOP, f"finish is {child.finish}, not stop")
    require(child.matched == needle, f"matched {child.matched!r}, not {needle!r}")
    require(child.text == text, f"text is {child.text!r}, not {text!r}")
    drawn = child.token_ids + child.overrun_ids
    require(drawn == plain.token_ids[:completed], "tokens and overrun are not what was drawn")
    inside = [n for n in range(completed + 1) if _decoded(trial, drawn[:n], text)]
    require(len(child.token_ids) == max(inside), "not the whole tokens inside the text")
    require(len(child.logps) == len(child.token_ids), "a logp for each token, and no more")


async def stop_strings_straddle_steps(trial: Trial) -> None:
    """A stop string that began in an earlier step ends the answer, and takes nothing back."""
    prefix = await trial.open()
    for cut in range(1, 24):
        first = await trial.child(prefix, replace(trial.endless, max_step_tokens=cut))
        rest = await trial.child(first.prefix, trial.endless)
        before, after = first.text, rest.text
        needle = before[-1:] + after[:1]
        if "\ufffd" not in needle and needle not in before and needle not in after:
            break
    else:
        raise NotApplicable("no pair of characters fits: the answer is too uniform")
    rest = await trial.child(first.prefix, replace(trial.endless, stop=(needle,)))
    ends = (rest.finish, rest.matched, rest.text, rest.token_ids)
    require(ends == (Finish.STOP, needle, "", ()), f"{needle!r} over two steps gave {ends}")


async def stop_ids_are_overrun(trial: Trial) -> None:
    """A stop id ends the answer and is no part of it, but not before min_tokens."""
    prefix = await trial.open()
    plain = await trial.child(prefix, trial.endless)
    token = plain.token_ids[3]
    at = plain.token_ids.index(token)
    how = replace(trial.endless, stop_token_ids=frozenset({token}))
    child = await trial.child(prefix, how)
    require(child.finish is Finish.STOP_TOKEN, f"finish is {child.finish}, not stop_token")
    require(child.matched == token, f"matched {child.matched!r}, not {token}")
    require(child.token_ids == plain.token_ids[:at], "the answer is not what came before")
    require(child.overrun_ids == (token,), f"overrun is {child.overrun_ids}")
    longer = await trial.child(prefix, replace(how, min_tokens=at + 2))
    require(len(longer.token_ids) >= at + 2, "ended before min_tokens")


async def lengths_count_from_the_response(trial: Trial) -> None:
    """max_step_tokens counts the step, max_tokens the whole answer."""
    prefix = await trial.open()
    step = await trial.child(prefix, replace(trial.endless, max_step_tokens=3))
    require(step.finish is Finish.STEP_LENGTH, f"finish is {step.finish}, not step_length")
    require(len(step.token_ids) == 3, f"{len(step.token_ids)} tokens in a step of 3")
    how = replace(trial.endless, max_tokens=5, max_step_tokens=9)
    rest = await trial.child(step.prefix, how)
    require(rest.finish is Finish.LENGTH, f"finish is {rest.finish}, not length")
    require(len(rest.token_ids) == 2, f"{len(rest.token_ids)} tokens left of 5 after 3")
    none = await trial.child(rest.prefix, how)
    require(none.finish is Finish.LENGTH and none.token_ids == (), "a full answer grew")


async def every_token_has_its_logp(trial: Trial) -> None:
    """One logp per token, not above 0, and the alternatives that were asked for."""
    how = replace(trial.endless, logprobs=2)
    child = await trial.child(await trial.open(), how)
    require(len(child.logps) == len(child.token_ids), "not one logp per token")
    require(all(logp <= 0 for logp in child.logps), f"a logp above 0 in {child.logps}")
    if Capability.LOGPROBS in trial.engine.info.capabilities:
        tops = child.top_logps
        if tops is None or len(tops) != len(child.token_ids):
            raise ContractBroken("not one list of alternatives per token")
        falling = all(len(top) == 2 and top[0][1] >= top[1][1] for top in tops)
        require(falling, "alternatives are not two each, likeliest first")


async def logps_can_be_declined(trial: Trial) -> None:
    """Without a reader of logps the same tokens come, with all their logps or with none."""
    prefix = await trial.open()
    for deltas in (True, False):
        how = replace(trial.endless, logps=False, deltas=deltas)
        (child,), parts = await trial.children(prefix, how, (1,))
        counts = [(len(one.logps), len(one.token_ids)) for one in parts]
        for count, num_tokens in [*counts, (len(child.logps), len(child.token_ids))]:
            require(count in (0, num_tokens), f"{count} logps for {num_tokens} tokens")
        if Capability.SEED in trial.engine.info.capabilities:
            (usual,), _ = await trial.children(prefix, trial.endless, (1,))
            require(child.token_ids == usual.token_ids, "declining logps changed the answer")


async def banned_ids_are_never_drawn(trial: Trial) -> None:
    """ban_ids and a logit bias of minus infinity's size keep a token out."""
    prefix = await trial.open()
    plain = await trial.child(prefix, trial.endless)
    token = plain.token_ids[0]
    how = replace(trial.endless, ban_ids=trial.endless.ban_ids | {token})
    child = await trial.child(prefix, how)
    require(token not in child.token_ids, f"banned token {token} was drawn")


async def next_logprobs_are_a_distribution(trial: Trial) -> None:
    """Listed probabilities and the tail sum to 1, however the tokens are chosen."""
    prefix, engine = await trial.open(), trial.engine
    (top,) = await engine.next_logprobs([prefix], top_k=3)
    (nucleus,) = await engine.next_logprobs([prefix], mass=0.9)
    (given,) = await engine.next_logprobs([prefix], ids=top.ids[::-1])
    require(given.ids == top.ids[::-1], "ids came back in another order")
    require(len(top.ids) == min(3, engine.info.vocab_size), "top_k listed another number")
    require(_listed_mass(nucleus) >= 0.9 - _TOLERANCE, "the nucleus holds less than its mass")
    least = _listed_mass(nucleus) - math.exp(nucleus.logps[-1])
    require(least < 0.9 + _TOLERANCE, "the nucleus is larger than it must be")
    for name, row in (("top_k", top), ("mass", nucleus), ("ids", given)):
        total = _listed_mass(row) + row.tail_mass
        require(abs(total - 1) < _TOLERANCE, f"{name}: probabilities sum to {total}")
    require(list(top.logps) == sorted(top.logps, reverse=True), "not likeliest first")


async def score_is_the_chain_of_next_logprobs(trial: Trial) -> None:
    """score, next_logprobs and the logps of sampling agree token by token."""
    prefix, engine = await trial.open(), trial.engine
    child = await trial.child(prefix, replace(trial.endless, max_tokens=4))
    scored = await engine.score(prefix, child.token_ids)
    chained = []
    for at, token in enumerate(child.token_ids):
        (longer,) = await engine.extend([(prefix, child.token_ids[:at])])
        trial.own(longer)
        (row,) = await engine.next_logprobs([longer], ids=(token,))
        chained.append(row.logps[0])
    for name, other in (("next_logprobs", chained), ("sampling", child.logps)):
        gap = max(abs(a - b) for a, b in zip(scored, other, strict=True))
        require(gap < _TOLERANCE, f"score and {name} differ by {gap} nats")


async def extending_is_opening_again(trial: Trial) -> None:
    """extend keeps the response's start; its tokens continue as if opened as a prompt."""
    prefix, engine = await trial.open(), trial.engine
    step = await trial.child(prefix, replace(trial.endless, max_step_tokens=3))
    (longer,) = await engine.extend([(prefix, step.token_ids)])
    trial.own(longer)
    require(longer.token_ids == step.prefix.token_ids, "extend appended something else")
    require(longer.response_start == prefix.response_start, "extend moved response_start")
    require(longer.text == step.text, f"text is {longer.text!r}, not {step.text!r}")
    again = await trial.open(longer.token_ids)
    how = Sampling(temperature=0.0, max_step_tokens=8, ban_ids=engine.info.eos_ids)
    ends = [(await trial.child(p, how)).token_ids for p in (longer, step.prefix, again)]
    require(ends[0] == ends[1] == ends[2], f"three ways to the same tokens went on as {ends}")


async def context_has_an_end(trial: Trial) -> None:
    """A full prompt is refused with the numbers; a nearly full one ends with CONTEXT."""
    prefix, limit = await trial.open(), trial.engine.info.context_tokens
    filler = prefix.token_ids[-1]
    room = limit - len(prefix.token_ids)
    try:
        await trial.open(prefix.token_ids + (filler,) * room)
    except ContextLengthExceeded as refused:
        numbers = (refused.prompt_tokens, refused.context_tokens)
        require(numbers == (limit, limit), f"the refusal says {numbers}, not {limit} of {limit}")
    else:
        raise ContractBroken(f"a prompt of {limit} tokens was accepted")
    full = await trial.open(prefix.token_ids + (filler,) * (room - 2))
    child = await trial.child(full, replace(trial.endless, max_tokens=None))
    require(child.finish is Finish.CONTEXT, f"finish is {child.finish}, not context")
    require(len(child.token_ids) == 2, f"{len(child.token_ids)} tokens where 2 fit")


async def a_closed_engine_says_so(trial: Trial) -> None:
    """After aclose, which may come twice, everything raises EngineClosed; nothing is claimed."""
    prefix = await trial.open()
    require(trial.engine.health is Health.READY, f"an open engine is {trial.engine.health}")
    await trial.engine.aclose()
    await trial.engine.aclose()
    require(trial.engine.health is Health.DEAD, f"a closed engine is {trial.engine.health}")
    calls: dict[str, Call] = {
        "open": trial.open,
        "sample": lambda: trial.child(prefix, trial.endless),
        "extend": lambda: trial.engine.extend([(prefix, prefix.token_ids[:1])]),
    }
    for name, call in calls.items():
        require(await _raises(EngineClosed, call), f"{name} did not raise EngineClosed")


async def what_is_not_declared_is_refused(trial: Trial) -> None:
    """Options and calls without their capability raise UnsupportedByEngine."""
    prefix, declared = await trial.open(), trial.engine.info.capabilities
    drafting = Sampling(max_tokens=2, drafter="adaptive")
    constrained = Sampling(max_tokens=2, constraint=Constraint(regex="[a-z]*"))
    calls: dict[Capability, Call] = {
        Capability.DRAFTER: lambda: trial.child(prefix, drafting),
        Capability.CONSTRAINT: lambda: trial.child(prefix, constrained),
        Capability.HIDDEN_STATES: lambda: trial.engine.embed([prefix], [1]),
        Capability.NEXT_LOGPROBS: lambda: trial.engine.next_logprobs([prefix], top_k=1),
    }
    for name, call in calls.items():
        if name not in declared:
            refused = await _raises(UnsupportedByEngine, call)
            require(refused, f"{name} is not declared but was not refused")
    if isinstance(trial.engine, ChecksSampling):
        for name, how in ((Capability.DRAFTER, drafting), (Capability.CONSTRAINT, constrained)):
            with suppress(UnsupportedByEngine):
                trial.engine.check_sampling(how)
                require(name in declared, f"{name} is not declared but passed check_sampling")


async def hidden_states_are_rows(trial: Trial) -> None:
    """One finite float32 row per prefix, the same for the same tokens."""
    prefix = await trial.open()
    rows = await trial.engine.embed([prefix, prefix], [1, 2])
    (again,) = await trial.engine.embed([prefix], [1])
    require(rows.ndim == 2 and rows.shape[0] == 2, f"shape {rows.shape} for two prefixes")
    require(str(rows.dtype) == "float32", f"dtype {rows.dtype}")
    require(bool((abs(rows[0] - again) < _TOLERANCE).all()), "the same tokens gave another row")


async def _raises(kind: type[Exception], call: Call) -> bool:
    try:
        await call()
    except kind:
        return True
    return False


def _completed(engine: Engine, ids: TokenIds, needle: str) -> int:
    """How many tokens it takes until the needle is there."""
    return next(n for n in range(1, len(ids) + 1) if needle in engine.decode(ids[:n]))


def _decoded(trial: Trial, ids: TokenIds, text: str) -> bool:
    return text.startswith(trial.engine.decode(ids))


def _listed_mass(row: NextTokens) -> float:
    return sum(math.exp(logp) for logp in row.logps)


_TOKENS: Final = frozenset({Capability.TOKENS})
_SEEDED: Final = frozenset({Capability.TOKENS, Capability.SEED})
_NEXT: Final = frozenset({Capability.TOKENS, Capability.NEXT_LOGPROBS})


def _check(body: CheckBody, requires: frozenset[Capability] = _TOKENS) -> Check:
    return Check(getattr(body, "__name__", str(body)), body, requires)


CHECKS: Final[tuple[Check, ...]] = (
    _check(decode_undoes_encode),
    _check(deltas_lead_to_their_continuation),
    _check(deltas_can_be_declined),
    _check(prefix_stays_the_callers),
    _check(same_seed_same_tokens, _SEEDED),
    _check(greedy_needs_no_seed),
    _check(closing_the_iterator_releases),
    _check(release_is_idempotent),
    _check(forks_are_independent),
    _check(boundaries_keep_the_whole_token),
    _check(stop_strings_are_cut_off),
    _check(stop_strings_straddle_steps),
    _check(stop_ids_are_overrun),
    _check(lengths_count_from_the_response),
    _check(every_token_has_its_logp),
    _check(logps_can_be_declined),
    _check(banned_ids_are_never_drawn),
    _check(next_logprobs_are_a_distribution, _NEXT),
    _check(score_is_the_chain_of_next_logprobs, _NEXT),
    _check(extending_is_opening_again),
    _check(context_has_an_end),
    _check(a_closed_engine_says_so),
    _check(what_is_not_declared_is_refused),
    _check(hidden_states_are_rows, frozenset({Capability.TOKENS, Capability.HIDDEN_STATES})),
    *(_check(body, requires) for body, requires in (*DRAWING_CHECKS, *TEXT_CHECKS)),
)
