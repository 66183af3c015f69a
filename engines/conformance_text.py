"""Laws that can be checked by text alone, so that engines without tokens are checked too.

They hold for every engine; `engines.conformance` runs them beside the laws about tokens. Where a
check needs a second look at the same answer it draws at temperature 0, which needs no seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final

from engines.base import Capability, Constraint, Finish, Sampling
from engines.conformance_drawing import Halves
from engines.conformance_trial import (
    ContractBroken,
    NotApplicable,
    Trial,
    needle_of,
    require,
)
from engines.errors import ContextLengthExceeded, EngineClosed, UnsupportedByEngine

_GOES_ON: Final = frozenset({Capability.TOKENS, Capability.CONTINUE_TEXT})


async def deltas_spell_the_text(trial: Trial) -> None:
    """Deltas, joined, are the text's beginning; a text has tokens, named or counted."""
    done, deltas = await trial.children(await trial.open(), trial.endless, (1, 2, 3))
    for child in done:
        text = "".join(delta.text for delta in deltas if delta.index == child.index)
        require(child.text.startswith(text), f"{text!r} does not begin {child.text!r}")
        require(bool(text) or not child.text, f"no delta came of {child.text!r}")
        require(child.num_tokens > 0 or not child.text, f"{child.text!r} has no tokens")
        is_named = child.counted_tokens is None
        require(is_named or not child.token_ids, "tokens are both named and counted")


async def a_prefix_holds_its_text(trial: Trial) -> None:
    """A child's prefix has the child's text, and sampling leaves its own argument alone."""
    prefix = await trial.open()
    child = await trial.child(prefix, _greedy(trial))
    require(prefix.text == "", f"sample changed its prefix to {prefix.text!r}")
    require(child.prefix.text == child.text, f"{child.prefix.text!r} is not {child.text!r}")


async def declining_deltas_changes_nothing(trial: Trial) -> None:
    """Without deltas none come, and the answer is the same."""
    prefix, how = await trial.open(), _greedy(trial)
    asked = await trial.child(prefix, how)
    done, deltas = await trial.children(prefix, replace(how, deltas=False))
    require(deltas == [], f"{len(deltas)} deltas came unasked")
    require(done[0].text == asked.text, f"{done[0].text!r} is not {asked.text!r}")


async def same_seed_same_text(trial: Trial) -> None:
    """A seed gives the same text alone, again, and among other children."""
    prefix = await trial.open()
    alone = await trial.child(prefix, trial.endless, 7)
    crowd, _ = await trial.children(prefix, trial.endless, (1, 7, 3))
    require(crowd[1].text == alone.text, f"{crowd[1].text!r} is not {alone.text!r}")


async def a_stop_string_is_not_shown(trial: Trial) -> None:
    """The text ends before a stop string."""
    prefix, how = await trial.open(), _greedy(trial)
    plain = await trial.child(prefix, how)
    needle = needle_of(plain)
    child = await trial.child(prefix, replace(how, stop=(needle, "\x00never")))
    expected = plain.text[: plain.text.index(needle)]
    require(child.text == expected, f"text is {child.text!r}, not {expected!r}")
    # who cuts a stop string off may not be able to say that it was there
    ends = (Finish.STOP, Finish.STOP_TOKEN)
    require(child.finish in ends, f"finish is {child.finish}, not stop")
    require(child.matched in (needle, None), f"matched {child.matched!r}, not {needle!r}")


async def many_stop_strings_are_all_met(trial: Trial) -> None:
    """Stop strings beyond what a server takes in one request count as well."""
    prefix, how = await trial.open(), _greedy(trial)
    plain = await trial.child(prefix, how)
    needle = needle_of(plain)
    stops = (*(f"\x00never {number}" for number in range(12)), needle)
    child = await trial.child(prefix, replace(how, stop=stops))
    expected = plain.text[: plain.text.index(needle)]
    require(child.text == expected, f"text is {child.text!r}, not {expected!r}")


async def steps_end_at_boundaries_and_go_on(trial: Trial) -> None:
    """A step holds its boundary, and its prefix can be continued."""
    _needs_steps(trial)
    prefix, how = await trial.open(), _greedy(trial)
    plain = await trial.child(prefix, how)
    needle = needle_of(plain)
    step = await trial.child(prefix, replace(how, boundaries=(needle,)))
    require(step.finish is Finish.BOUNDARY, f"finish is {step.finish}, not boundary")
    require(step.matched == needle, f"matched {step.matched!r}, not {needle!r}")
    require(needle in step.text, f"{needle!r} is not in {step.text!r}")
    require(plain.text.startswith(step.text), f"{step.text!r} does not begin {plain.text!r}")
    rest = await trial.child(step.prefix, how)
    whole = step.text + rest.text
    require(rest.prefix.text == whole, f"{rest.prefix.text!r} is not {whole!r}")
    require(step.prefix.text == step.text, "continuing a step changed it")


async def a_stop_string_may_begin_in_an_earlier_step(trial: Trial) -> None:
    """It ends the answer and takes nothing back."""
    _needs_steps(trial)
    prefix, how = await trial.open(), _greedy(trial)
    step = await trial.child(prefix, replace(how, max_step_tokens=4))
    rest = await trial.child(step.prefix, how)
    needle = step.text[-1:] + rest.text[:1]
    if len(needle) < 2 or "\ufffd" in needle or needle in step.text:
        raise NotApplicable("no pair of characters fits")
    cut = await trial.child(step.prefix, replace(how, stop=(needle,)))
    ends = (cut.finish, cut.matched, cut.text)
    require(ends == (Finish.STOP, needle, ""), f"{needle!r} over two steps gave {ends}")


async def lengths_bound_answers_and_steps(trial: Trial) -> None:
    """max_tokens ends the answer, max_step_tokens the step; a full answer does not grow."""
    prefix = await trial.open()
    how = replace(_greedy(trial), max_tokens=3)
    short = await trial.child(prefix, how)
    if short.finish is Finish.STOP_TOKEN:
        raise NotApplicable("the answer is too short")
    require(short.finish is Finish.LENGTH, f"finish is {short.finish}, not length")
    require(short.num_tokens == 3, f"{short.num_tokens} tokens of 3")
    if not _GOES_ON & trial.engine.info.capabilities:
        return
    step = await trial.child(prefix, replace(how, max_tokens=6, max_step_tokens=3))
    require(step.finish is Finish.STEP_LENGTH, f"finish is {step.finish}, not step_length")
    rest = await trial.child(step.prefix, replace(how, max_tokens=5, max_step_tokens=9))
    if rest.finish is not Finish.STOP_TOKEN:
        require(rest.finish is Finish.LENGTH, f"finish is {rest.finish}, not length")
        require(rest.num_tokens == 2, f"{rest.num_tokens} tokens left of 5 after 3")
    none = await trial.child(step.prefix, how)
    require((none.finish, none.text) == (Finish.LENGTH, ""), "a full answer grew")


async def a_claim_can_be_let_go(trial: Trial) -> None:
    """Releasing twice is releasing once; a fork, and a child in flight, live on."""
    prefix, how = await trial.open(), _greedy(trial)
    fork = trial.own(prefix.fork())
    expected = await trial.child(prefix, how)
    alone = await trial.released_midway(prefix, how)
    require(alone.text == expected.text, "releasing the source changed its child")
    again = await trial.child(fork, how)
    require(again.text == expected.text, "a fork continued otherwise")


async def a_reader_may_go(trial: Trial) -> None:
    """Closing a half-read iterator, or cancelling its reader, leaves nothing running."""
    prefix = await trial.open()
    await trial.leave_midway(prefix)
    for _ in range(500):
        if trial.engine.stats().running == 0:
            break
        await asyncio.sleep(0.01)
    require(trial.engine.stats().running == 0, "children run on that nobody reads")
    await trial.child(prefix, _greedy(trial))


async def a_prompt_too_long_is_refused(trial: Trial) -> None:
    """With ContextLengthExceeded, at the latest when it is sampled."""
    words = "too long a prompt " * trial.engine.info.context_tokens
    try:
        prefix = trial.own(
            await trial.engine.open(trial.engine.render([{"role": "user", "content": words}]))
        )
        await trial.child(prefix, _greedy(trial))
    except ContextLengthExceeded:
        return
    raise ContractBroken("a prompt far longer than the context was answered")


async def a_closed_engine_answers_nobody(trial: Trial) -> None:
    """After aclose, which may come twice, opening and sampling raise EngineClosed."""
    prefix = await trial.open()
    await trial.engine.aclose()
    await trial.engine.aclose()
    await _refuses(EngineClosed, trial.open, "open")
    await _refuses(EngineClosed, lambda: trial.child(prefix, trial.endless), "sample")


async def what_text_cannot_do_is_refused(trial: Trial) -> None:
    """Calls and options without their capability raise UnsupportedByEngine."""
    engine, has = trial.engine, trial.engine.info.capabilities
    prefix = await trial.open()
    if not has & {Capability.TOKENS, Capability.DENOISE}:  # who denoises reads tokens, too
        await _refuses(UnsupportedByEngine, lambda: engine.open((1, 2, 3)), "open of tokens")
        await _refuses(UnsupportedByEngine, lambda: engine.extend([(prefix, (1,))]), "extend")
        await _refuses(UnsupportedByEngine, lambda: engine.score(prefix, (1,)), "score")
        banning = Sampling(max_tokens=2, ban_ids=frozenset({1}))
        await _refuses(UnsupportedByEngine, lambda: trial.child(prefix, banning), "ban_ids")
    if Capability.LOGPROBS not in has:
        how = Sampling(max_tokens=2, logprobs=1)
        await _refuses(UnsupportedByEngine, lambda: trial.child(prefix, how), "logprobs")
    if Capability.NEXT_LOGPROBS not in has:
        rows = partial(engine.next_logprobs, [prefix], top_k=1)
        await _refuses(UnsupportedByEngine, rows, "next_logprobs")
    if Capability.HIDDEN_STATES not in has:
        await _refuses(UnsupportedByEngine, lambda: engine.embed([prefix], [1]), "embed")
    odd = {
        Capability.CONSTRAINT: Sampling(max_tokens=2, constraint=Constraint(regex="[a-z]*")),
        Capability.DRAFTER: Sampling(max_tokens=2, drafter="adaptive"),
        Capability.SCHEDULE: Sampling(max_tokens=2, schedule=Halves(1)),
    }
    for name, how in odd.items():
        if name not in has:
            await _refuses(UnsupportedByEngine, partial(trial.child, prefix, how), name)
    if Capability.CHAT_ONLY in has:
        whole = await trial.child(prefix, _greedy(trial))
        await _refuses(
            UnsupportedByEngine, lambda: trial.child(whole.prefix, _greedy(trial)), "a second step"
        )


async def named_tokens_spell_the_text(trial: Trial) -> None:
    """With `logprobs`, every token has its text, its log-probability and its alternatives."""
    how = replace(_greedy(trial), logprobs=2)
    child = await trial.child(await trial.open(), how)
    require(child.counted_tokens is None, "asked for logprobs, tokens are only counted")
    require(len(child.logps) == len(child.token_ids) > 0, "not one logp per token")
    require(all(logp <= 0 for logp in child.logps), f"a logp above 0 in {child.logps}")
    decoded = trial.engine.decode(child.token_ids)
    require(decoded == child.text, f"decode gives {decoded!r}, text is {child.text!r}")
    tops = child.top_logps
    if tops is None or len(tops) != len(child.token_ids):
        raise ContractBroken("not one list of alternatives per token")
    best = [top[0][0] == token for top, token in zip(tops, child.token_ids, strict=True)]
    require(sum(best) * 2 > len(best), "greedy tokens are not the likeliest alternatives")


async def decoding_may_be_cut_between_characters(trial: Trial) -> None:
    """Where a beginning decodes to whole characters, the rest may be decoded by itself."""
    child = await trial.child(await trial.open(), trial.endless, 5)
    for ids in (child.token_ids, trial.engine.encode("a é € 😀 é")):
        whole = trial.engine.decode(ids)
        for cut in range(len(ids) + 1):
            front = trial.engine.decode(ids[:cut])
            if not front.endswith("\ufffd"):
                parts = front + trial.engine.decode(ids[cut:])
                require(parts == whole, f"cut at {cut}, {whole!r} decodes to {parts!r}")


def _greedy(trial: Trial) -> Sampling:
    return replace(trial.endless, temperature=0.0)


def _needs_steps(trial: Trial) -> None:
    if not _GOES_ON & trial.engine.info.capabilities:
        raise NotApplicable("the engine answers whole chats only")


async def _refuses(kind: type[Exception], call: Callable[[], Awaitable[object]], what: str) -> None:
    try:
        await call()
    except kind:
        return
    raise ContractBroken(f"{what} did not raise {kind.__name__}")


TEXT_CHECKS: Final = (
    (deltas_spell_the_text, frozenset[Capability]()),
    (a_prefix_holds_its_text, frozenset[Capability]()),
    (declining_deltas_changes_nothing, frozenset[Capability]()),
    (same_seed_same_text, frozenset({Capability.SEED})),
    (a_stop_string_is_not_shown, frozenset[Capability]()),
    (many_stop_strings_are_all_met, frozenset[Capability]()),
    (steps_end_at_boundaries_and_go_on, frozenset[Capability]()),
    (a_stop_string_may_begin_in_an_earlier_step, frozenset[Capability]()),
    (lengths_bound_answers_and_steps, frozenset[Capability]()),
    (a_claim_can_be_let_go, frozenset[Capability]()),
    (a_reader_may_go, frozenset[Capability]()),
    (a_prompt_too_long_is_refused, frozenset[Capability]()),
    (a_closed_engine_answers_nobody, frozenset[Capability]()),
    (what_text_cannot_do_is_refused, frozenset[Capability]()),
    (named_tokens_spell_the_text, frozenset({Capability.LOGPROBS})),
    (decoding_may_be_cut_between_characters, frozenset({Capability.TOKENS})),
)
"""Each law with the capabilities without which it says nothing."""
