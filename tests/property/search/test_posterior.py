"""Laws of the posterior and of the rule that stops a vote."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from search.posterior import StopRule, fewest_to_decide, is_certain, is_decided, sureness

RULES: st.SearchStrategy[StopRule] = st.sampled_from(["beta", "dirichlet"])
COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=6).map(
    lambda counts: sorted(counts, reverse=True)
)


@settings(deadline=None, max_examples=40)
@given(COUNTS, RULES)
def test_a_vote_for_the_leader_makes_it_surer(counts: list[int], rule: StopRule) -> None:
    before = sureness(counts, rule)
    after = sureness([counts[0] + 1, *counts[1:]], rule)
    assert 0 <= before <= after + 1e-9 <= 1 + 2e-9


@settings(deadline=None, max_examples=40)
@given(COUNTS)
def test_more_rivals_make_it_less_sure(counts: list[int]) -> None:
    assert sureness(counts, "dirichlet") <= sureness(counts, "beta") + 1e-6


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 12))
def test_what_is_certain_never_changes(votes: list[int], seen: int) -> None:
    some, rest = votes[:seen], votes[seen:]
    counts = [count for _, count in Counter(some).most_common()]
    if is_certain(counts, len(rest)):
        (winner, most), *others = Counter(votes).most_common()
        assert winner == Counter(some).most_common()[0][0]
        assert all(count < most for _, count in others)


@settings(deadline=None, max_examples=40)
@given(COUNTS, st.integers(1, 24), st.floats(0.51, 1), RULES)
def test_fewer_than_the_fewest_never_decide(
    counts: list[int], left: int, threshold: float, rule: StopRule
) -> None:
    fewest = fewest_to_decide(counts, left, threshold, rule)
    assert 1 <= fewest <= left
    for more in range(1, fewest):
        for at in range(len(counts)):
            later = list(counts)
            later[at] += more
            later.sort(reverse=True)
            assert not is_decided(later, left - more, threshold, rule)
