"""What runs next: admission, chunks, growth, putting off, cancelling. No decoder, no threads."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from engines.base import Finish, Sampling, TokenIds
from engines.embedded.accounting import Ledger, PageCounts
from engines.embedded.claims import Claims, PageClaim
from engines.embedded.jobs import GenerateJob, ReadJob
from engines.embedded.schedule import Scheduler
from engines.embedded.sequence import Branch, Reading
from engines.textstop import TextTracker

P = 4
NOBODY = cast("GenerateJob", None)


class Desk:
    """A scheduler with its ledger, and a stand-in for the decoder: running a token is counting."""

    def __init__(
        self, pages: int, *, chunk: int = 64, max_running: int = 8, ahead: int = 16
    ) -> None:
        self.ledger = Ledger(pages, P)
        self.claims = Claims(self.ledger)
        self.scheduler = Scheduler(
            self.ledger,
            chunk_tokens=chunk,
            max_running=max_running,
            ahead_tokens=ahead,
            reclaim=self.claims.reclaim,
        )
        self.arrivals = 0

    def branch(
        self,
        tokens: TokenIds,
        room: int = 8,
        *,
        priority: int = 0,
        tenant: str = "",
        age: int | None = None,
    ) -> Branch:
        self.arrivals += 1
        branch = Branch(
            tenant,
            tokens,
            how=Sampling(),
            seed=0,
            response_start=len(tokens),
            limit=len(tokens) + room,
            stop_ids=frozenset(),
            tracker=TextTracker([b"x"] * 1000),
            job=NOBODY,
            index=0,
            order=(-priority, self.arrivals if age is None else age, self.arrivals),
        )
        self.scheduler.submit(branch)
        return branch

    def reading(self, tokens: TokenIds, read_from: int = 0) -> Reading:
        self.arrivals += 1
        reading = Reading(
            "", tokens, read_from, len, cast("ReadJob", None), 0, (0, self.arrivals, self.arrivals)
        )
        self.scheduler.submit(reading)
        return reading

    def step(self) -> list[Branch]:
        """One turn as the worker does it; every branch draws its own length."""
        scheduler = self.scheduler
        scheduler.admit()
        assert scheduler.running or not scheduler.num_waiting, "nobody gets in"
        scheduler.copied()
        for sequence, count in scheduler.prefill():
            assert sequence.computed + count <= (len(sequence.nodes) + len(sequence.own)) * P
            sequence.computed += count
            if isinstance(sequence, Reading):
                if not sequence.pending:
                    scheduler.retire(sequence, keep=len(sequence.tokens))
                    scheduler._unlock(sequence)
            elif sequence.pending == 1:
                copy = scheduler.short_page(sequence)
                scheduler.seal_prompt(sequence, has_copy=copy is not None)
        drawn = scheduler.decode()
        for branch in drawn:
            assert branch.computed < (len(branch.nodes) + len(branch.own)) * P
            branch.computed += 1
            if branch.accept(len(branch.tokens) % 500, 0.0, 10_000):
                scheduler.retire(branch, keep=len(branch.tokens))
                scheduler._unlock(branch)
        self.ledger.check()
        return drawn

    def run(self) -> int:
        """Until nothing is left; the number of steps."""
        steps = 0
        while self.scheduler.running or self.scheduler.num_waiting:
            self.step()
            steps += 1
            assert steps < 1000, "it does not end"
        assert self.ledger.counts().claimed == 0
        assert self.ledger.num_reserved == 0
        return steps


def test_sequences_start_by_priority_and_then_arrival() -> None:
    desk = Desk(32, max_running=3)
    second, third, last = (desk.branch((i, i)) for i in (1, 2, 3))
    first = desk.branch((4, 4), priority=1)
    desk.scheduler.admit()
    assert list(desk.scheduler.running) == [first, second, third]
    assert desk.scheduler.num_waiting == 1
    desk.run()
    assert last.finish is not None


def test_the_head_of_the_queue_is_not_overtaken() -> None:
    desk = Desk(10)
    running = desk.branch(tuple(range(20)))
    desk.step()
    large = desk.branch(tuple(range(100, 124)))
    small = desk.branch((7, 7))
    desk.step()
    assert list(desk.scheduler.running) == [running]
    assert desk.scheduler.num_waiting == 2
    desk.run()
    assert large.finish == small.finish == (Finish.STEP_LENGTH, None)


def test_a_prompt_that_needs_nearly_all_pages_still_starts() -> None:
    """What is set aside ahead must fit beside what is needed now."""
    desk = Desk(200, ahead=64, chunk=1000)
    others = desk.ledger.take(20)
    branch = desk.branch(tuple(range(10_000, 10_000 + 179 * P)), room=64)
    desk.scheduler.admit()
    assert (len(branch.own), len(branch.reserved)) == (179, 1)
    desk.ledger.give(others)
    desk.run()
    assert branch.finish is not None


def test_chunks_bound_the_padded_batch() -> None:
    desk = Desk(64, chunk=8)
    long = desk.branch(tuple(range(30)))
    short = [desk.branch((100 + i, 1, 2)) for i in range(4)]
    desk.scheduler.admit()
    assert desk.scheduler.prefill() == [(long, 8)]
    long.computed = 28
    batch = desk.scheduler.prefill()
    assert batch == [(long, 1), *((branch, 2) for branch in short[:3])]
    assert len(batch) * max(count for _, count in batch) <= 8
    desk.run()


def test_a_branch_keeps_its_last_token_for_the_draw_and_a_reading_runs_all() -> None:
    desk = Desk(64)
    branch, reading, lone = desk.branch((1, 2, 3)), desk.reading((4, 5, 6)), desk.branch((9,))
    desk.scheduler.admit()
    assert desk.scheduler.prefill() == [(branch, 2), (reading, 3)]
    assert lone.pending == 1
    desk.run()


def test_a_siblings_prompt_is_waited_for_and_then_shared() -> None:
    desk = Desk(64, chunk=6)
    prompt = tuple(range(15))
    first = desk.branch(prompt)
    others = [desk.branch(prompt) for _ in range(3)]
    stranger = desk.branch((50, 51, 52))
    desk.step()
    assert set(desk.scheduler.running) == {first, stranger}
    assert first.computed == 6
    assert desk.scheduler.num_waiting == 3
    desk.step()
    desk.step()
    desk.step()
    assert [branch.cached_tokens for branch in others] == [14, 14, 14]
    assert first.cached_tokens == 0
    shared = {node.page for node in first.nodes}
    assert all({node.page for node in branch.nodes} == shared for branch in others)
    desk.run()


def test_another_tenant_computes_its_own_prompt() -> None:
    desk = Desk(64)
    prompt = tuple(range(12))
    desk.branch(prompt)
    desk.run()
    other = desk.branch(prompt, tenant="other")
    same = desk.branch(prompt)
    desk.run()
    assert (other.cached_tokens, same.cached_tokens) == (0, 11)


def test_nobody_waits_for_another_tenants_prompt() -> None:
    """It would gain nothing by it, and could tell by the time what the other asked."""
    desk = Desk(64, chunk=6)
    prompt = tuple(range(15))
    first = desk.branch(prompt)
    other, same = desk.branch(prompt, tenant="other"), desk.branch(prompt)
    desk.step()
    assert set(desk.scheduler.running) == {first, other}
    desk.run()
    assert (other.cached_tokens, same.cached_tokens) == (0, 14)


def test_branches_share_the_prompt_and_copy_its_last_page() -> None:
    desk = Desk(64)
    prompt = tuple(range(10))
    first = desk.branch(prompt)
    desk.step()
    second = desk.branch(prompt)
    copies = desk.scheduler.admit()
    (copy,) = copies
    assert copy[1] == second.own[0]
    assert copy[0] not in first.own
    desk.scheduler.copied()
    assert second.computed == 9
    assert desk.ledger.counts().claimed == 2 + 1 + 1
    desk.run()


def test_an_older_request_goes_on_before_a_younger_one() -> None:
    desk = Desk(32, max_running=1)
    first = desk.branch((1, 1), age=1)
    desk.step()
    younger, older = desk.branch((2, 2), age=9), desk.branch((3, 3), age=1)
    while first in desk.scheduler.running:
        desk.step()
    desk.step()
    assert list(desk.scheduler.running) == [older]
    assert younger.computed == 0
    desk.run()


def test_nobody_starts_on_pages_that_those_who_run_will_probably_need() -> None:
    """Once it is known how long answers are, nobody has to be put off."""
    put_off = []
    for is_known in (False, True):
        desk = Desk(12, ahead=4)
        if is_known:
            desk.branch((1, 1, 1), room=16)
            desk.run()
        branches = [desk.branch((i * 10, i * 10 + 1, 3), room=16) for i in range(2, 5)]
        again = 0
        while desk.scheduler.running or desk.scheduler.num_waiting:
            before = {one for one in branches if one in desk.scheduler.running}
            desk.step()
            after = {one for one in before if one not in desk.scheduler.running}
            again += len([one for one in after if one.finish is None])
        put_off.append(again)
    assert put_off[0] > 0
    assert put_off[1] == 0


def test_short_of_pages_the_youngest_waits_and_still_ends_the_same() -> None:
    roomy, tight = Desk(64), Desk(10)
    results = []
    for desk in (roomy, tight):
        branches = [desk.branch((i * 10, i * 10 + 1, 3), room=20) for i in range(3)]
        steps = desk.run()
        results.append(([branch.tokens for branch in branches], steps))
        assert all(branch.finish == (Finish.STEP_LENGTH, None) for branch in branches)
    assert results[0][0] == results[1][0]
    assert results[1][1] > results[0][1]


def test_the_youngest_is_put_off_and_keeps_its_order() -> None:
    desk = Desk(6, ahead=4)
    old, young = desk.branch((1, 2, 3), room=16), desk.branch((5, 6, 7), room=16)
    desk.step()
    while young in desk.scheduler.running:
        desk.step()
    assert old in desk.scheduler.running
    assert desk.scheduler._queue[0][0] == young.order
    assert (young.computed, young.own, young.nodes) == (0, [], [])
    assert young.cacheable == len(young.tokens) - 1
    desk.run()


def test_a_reading_is_put_off_and_starts_anew() -> None:
    desk = Desk(6, chunk=2)
    branch = desk.branch((1, 2, 3), room=16)
    desk.step()
    reading = desk.reading(tuple(range(50, 50 + 16)))
    desk.step()
    while reading in desk.scheduler.running:
        done = reading.computed
        reading.hidden = [torch.zeros(done, 1)]
        desk.step()
    assert 0 < done < 16
    assert (reading.computed, reading.hidden, reading.own) == (0, [], [])
    desk.run()
    assert (branch.pending, reading.pending) == (1, 0)


def test_pages_set_aside_for_another_are_taken_before_anyone_is_put_off() -> None:
    desk = Desk(200, ahead=64)
    rich = desk.branch((1, 2, 3), room=64)
    desk.step()
    assert len(rich.reserved) > 0
    desk.ledger.take(desk.ledger.available)
    poor = desk.branch((5,), room=12)
    desk.scheduler.running[poor] = None
    heap = desk.scheduler._queue
    heap.clear()
    assert desk.scheduler.decode() == [rich, poor]
    assert len(poor.own) == 1
    assert list(desk.scheduler.running) == [rich, poor]
    desk.ledger.check()


def test_idle_claims_give_way_to_the_only_sequence() -> None:
    desk = Desk(8)
    first = desk.branch(tuple(range(16)), room=4)
    desk.run()
    assert first.finish is not None
    match = desk.ledger.trie.match("", tuple(range(16)))
    desk.ledger.lock_path(match.leaf)
    claim = PageClaim(desk.claims, "", tuple(range(16)), 16, [b""] * 99, match.leaf)
    assert desk.ledger.counts().claimed == 4
    second = desk.branch(tuple(range(60, 80)), room=8)
    desk.run()
    assert second.finish is not None
    assert claim.token_ids == tuple(range(16))
    claim.release()
    claim.release()
    desk.ledger.check()


def test_cancelling_takes_out_what_runs_and_what_waits() -> None:
    desk = Desk(32, max_running=2)
    branches = [desk.branch((i, i + 1, i + 2)) for i in range(0, 40, 10)]
    desk.step()
    for branch in (branches[0], branches[3]):
        branch.is_cancelled = True
    assert desk.scheduler.drop_cancelled() == [branches[0], branches[3]]
    assert desk.scheduler.drop_cancelled() == []
    assert list(desk.scheduler.running) == [branches[1]]
    desk.ledger.check()
    desk.run()
    assert branches[2].finish is not None
    assert branches[0].finish is None


def test_abandoning_gives_everything_back() -> None:
    desk = Desk(32, max_running=2)
    branches = [desk.branch((i, i + 1, i + 2)) for i in range(0, 40, 10)]
    desk.step()
    assert set(desk.scheduler.abandon()) == set(branches)
    assert not desk.scheduler.running
    assert desk.scheduler.num_waiting == 0
    assert desk.ledger.counts().claimed == 0
    assert desk.ledger.num_reserved == 0
    desk.ledger.check()


def test_a_prompt_that_cannot_be_published_still_changes_the_batch() -> None:
    """The worker reuses its plan as long as the version stands, so a new branch must move it."""
    desk = Desk(4, chunk=1, ahead=4)
    branch = desk.branch((1, 2, 3))
    desk.scheduler.admit()
    desk.ledger.take(desk.ledger.available)
    while branch.pending > 1:
        branch.computed += 1
    before = desk.scheduler.version
    assert desk.scheduler.short_page(branch) is None
    desk.scheduler.seal_prompt(branch, has_copy=False)
    assert desk.scheduler.version > before


def test_retiring_keeps_what_was_asked_for_and_computed() -> None:
    desk = Desk(16)
    branch = desk.branch((1, 2, 3, 4, 5, 6), room=6)
    for _ in range(4):
        desk.step()
    tokens = tuple(branch.tokens)
    desk.scheduler.retire(branch, keep=8)
    assert desk.ledger.trie.match("", tokens).length == 8
    desk.scheduler._unlock(branch)
    # Two full pages, and the prompt's short last page that was published for siblings.
    assert desk.ledger.counts() == PageCounts(free=13, cached=3, claimed=0)


def test_why_a_branch_ends() -> None:
    desk = Desk(16)
    branch = desk.branch((1, 2), room=2)
    branch.stop_ids = frozenset({77})
    assert not branch.accept(5, -1.0, 100)
    assert branch.accept(77, -1.0, 100)
    assert branch.finish == (Finish.STOP_TOKEN, 77)
    for how, context, reason in (
        (Sampling(max_tokens=1), 100, Finish.LENGTH),
        (Sampling(), 3, Finish.CONTEXT),
        (Sampling(max_step_tokens=1), 100, Finish.STEP_LENGTH),
    ):
        branch = desk.branch((1, 2), room=1)
        branch.how = how
        assert branch.accept(5, -1.0, context)
        assert branch.finish == (reason, None)


@pytest.mark.parametrize(("count", "lost"), [(0, []), (1, [2]), (3, [2, 1, 3])])
def test_reclaiming_takes_from_the_youngest_request_and_stops_when_enough_is_free(
    count: int, lost: list[int]
) -> None:
    desk = Desk(8)
    claims = []
    for i, age in enumerate((5, 7, 7, 6)):
        nodes = desk.ledger.seal("", None, (i * 10,), desk.ledger.take(1))
        claims.append(PageClaim(desk.claims, "", (i * 10,), 1, [], nodes[-1], age=age))
    desk.claims.reclaim(4 + count)
    assert desk.ledger.available == 4 + count
    assert desk.ledger.counts().claimed == 4 - count
    assert {at for at, claim in enumerate(claims) if claim._leaf is None} == set(lost)
    for claim in claims:
        claim.release()
    assert desk.ledger.counts().claimed == 0


def test_claims_fork_and_extend_without_computing() -> None:
    desk = Desk(8)
    nodes = desk.ledger.seal("t", None, (1, 2, 3), desk.ledger.take(1))
    table = [b"", "é".encode()[:1], "é".encode()[1:], b"c", b"d"]
    claim = PageClaim(desk.claims, "t", (1, 2, 3), 0, table, nodes[-1], cached_tokens=3)
    claim.priority = 4
    longer = claim.extend((4, 1))
    fork = longer.fork()
    claim.release()
    assert (fork.token_ids, fork.text, fork.response_start) == ((1, 2, 3, 4, 1), "écd\ufffd", 0)
    assert (fork.tenant, fork.priority, fork.cached_tokens) == ("t", 4, 3)
    assert desk.ledger.counts().claimed == 1
    longer.release()
    assert desk.ledger.counts().claimed == 1
    fork.release()
    assert desk.ledger.counts().claimed == 0
