"""Appending chosen tokens to branches, for strategies that pick every token themselves.

Stop strings, eos ids and length limits end the answer here just as they do in `Engine.sample`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engines.base import Engine, Finish, Sampling, TokenIds
from search.branch import Branch, Step
from search.budget import Budget
from search.steps import text_behind
from search.workbench import Workbench


async def extend(
    bench: Workbench,
    pairs: Sequence[tuple[Branch, TokenIds]],
    logps: Sequence[tuple[float, ...]] | None,
    budget: Budget,
) -> list[Branch]:
    """One child per pair, in the tree and claimed; every token of `pairs` is paid for.

    Args:
        bench: The run.
        pairs: Branch and tokens.
        logps: Log-probabilities of the tokens in nats; asked of the engine when left out.
        budget: Who pays.
    """
    engine, claims = bench.engine, [bench.claims.claim(branch) for branch, _ in pairs]
    room = engine.info.context_tokens - bench.tree.prompt_tokens
    steps = [
        appended(engine, branch, tuple(ids), bench.sampling, context_left=room - branch.num_tokens)
        for branch, ids in pairs
    ]
    wanted = [(claim, step.token_ids) for claim, step in zip(claims, steps, strict=True)]
    if logps is None:
        logps = [await engine.score(claim, ids) for claim, ids in wanted]
    budget.count(generated_tokens=sum(len(ids) for _, ids in pairs))
    children = []
    held = await engine.extend(wanted)
    for (branch, _), step, known, claim in zip(pairs, steps, logps, held, strict=False):
        child = bench.tree.add(branch, replace(step, logps=known[: len(step.token_ids)]))
        bench.claims.hold(child, claim)
        if child.finish is not None:
            bench.claims.release(child)
        bench.agreement.add(child)
        children.append(child)
    return children


def appended(
    engine: Engine, parent: Branch, ids: TokenIds, how: Sampling, *, context_left: int
) -> Step:
    """The step that `ids` make under `parent`, without log-probabilities.

    Args:
        engine: Decodes, and knows its eos ids.
        parent: The branch to extend.
        ids: The tokens; those after the first that ends the answer are left out.
        how: The request's stops and limits.
        context_left: Tokens that still fit after `parent`.
    """
    ends = engine.info.eos_ids | how.stop_token_ids
    stop_at = next((at for at, one in enumerate(ids) if one in ends), None)
    kept = tuple(ids if stop_at is None else ids[:stop_at])
    finish = None if stop_at is None else Finish.STOP_TOKEN
    kept, finish = _within(kept, finish, context_left, Finish.CONTEXT)
    if how.max_tokens is not None:
        room = how.max_tokens - parent.num_tokens
        kept, finish = _within(kept, finish, room, Finish.LENGTH)
    text = text_behind(engine, parent, kept)
    step = _cut_at_stop(engine, parent, Step(text, kept, finish=finish), how)
    if step.finish is None and step.text.endswith("�"):
        step = replace(step, text=step.text.rstrip("�"), is_partial=True)
    return step


def _within(
    ids: TokenIds, finish: Finish | None, room: int, limit: Finish
) -> tuple[TokenIds, Finish | None]:
    """`ids` as far as there is room; filling it ends the answer unless it ended by itself."""
    if len(ids) > room or (len(ids) == room and finish is None):
        return ids[: max(0, room)], limit
    return ids, finish


def _cut_at_stop(engine: Engine, parent: Branch, step: Step, how: Sampling) -> Step:
    longest = max(map(len, how.stop), default=0)
    if not longest:
        return step
    window_start = max(0, parent.text_end - longest + 1)
    window = parent.text_from(window_start) + step.text
    # Those that are complete in the answer's first `min_tokens` tokens are text like any other.
    early = step.token_ids[: max(0, how.min_tokens - parent.num_tokens)]
    plain = text_behind(engine, parent, early).rstrip("�") if early else ""
    begin = parent.text_end + len(plain) - window_start
    hits = [
        at
        for stop in how.stop
        if stop and (at := window.find(stop, max(0, begin - len(stop) + 1))) >= 0
    ]
    if not hits:
        return step
    # A stop string that began in the parent leaves nothing of this step: nothing is taken back.
    text = step.text[: max(0, window_start + min(hits) - parent.text_end)]
    kept = step.token_ids
    while kept and len(text_behind(engine, parent, kept)) > len(text):
        kept = kept[:-1]
    return Step(text, kept, finish=Finish.STOP)
