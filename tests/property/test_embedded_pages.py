"""Trie and ledger against a dictionary: every page in one place, every match the longest."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from engines.base import TokenIds
from engines.embedded.accounting import Ledger
from engines.embedded.trie import Node

P = 3
TENANTS = st.sampled_from(["", "other"])
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=10).map(tuple)


class PagesMachine(RuleBasedStateMachine):
    """The model is what the cached pages spell: (tenant, tokens from the root) by page number."""

    claims = Bundle("claims")
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(10, P)
        self.own: list[int] = []
        self.reserved: list[int] = []
        self.spelled: dict[int, tuple[str, TokenIds]] = {}
        self.locked: dict[Node, int] = {}

    @initialize()
    def note(self) -> None:
        self.see()

    def see(self) -> None:
        """What the trie holds now; it can only have lost pages or gained those just sealed."""
        self.spelled = {
            node.page: (tenant, spell(node))
            for tenant, root in self.ledger.trie._roots.items()
            for node in below(root)
        }

    @rule(target=claims, tenant=TENANTS, tokens=TOKENS)
    def seal(self, tenant: str, tokens: TokenIds) -> tuple[str, TokenIds, Node | None]:
        """What a sequence does: match, lock, take the rest, publish it."""
        ledger = self.ledger
        match = ledger.trie.match(tenant, tokens)
        parent = match.nodes[-1] if match.nodes else None
        ledger.lock_path(parent)
        start = len(match.nodes) * P
        count = -(-(len(tokens) - start) // P)
        if ledger.available < count:
            ledger.unlock_path(parent)
            self.see()
            return tenant, (), None
        before = dict(self.spelled)
        pages = ledger.take(count)
        for page in pages:
            assert page not in before or self.is_evictable(before[page])
        nodes = ledger.seal(tenant, parent, tokens[start:], pages)
        leaf = nodes[-1] if nodes else parent
        assert leaf is not None
        assert spell(leaf) == tokens
        assert len({node.page for node in (*match.nodes, *nodes)}) == -(-len(tokens) // P)
        self.locked[leaf] = self.locked.get(leaf, 0) + 1
        self.see()
        assert ledger.trie.match(tenant, tokens).length == len(tokens)
        return tenant, tokens, leaf

    def is_evictable(self, spelled: tuple[str, TokenIds]) -> bool:
        """No lock lies on or under what this page spelled."""
        tenant, tokens = spelled
        return not any(
            tenant_of(leaf) is self.ledger.trie._roots.get(tenant)
            and spell(leaf)[: len(tokens)] == tokens
            for leaf in self.locked
        )

    @rule(claim=claims)
    def lock_again(self, claim: tuple[str, TokenIds, Node | None]) -> None:
        leaf = claim[2]
        if leaf in self.locked:
            self.ledger.lock_path(leaf)
            self.locked[leaf] += 1

    @rule(claim=claims)
    def unlock(self, claim: tuple[str, TokenIds, Node | None]) -> None:
        leaf = claim[2]
        if leaf in self.locked:
            self.locked[leaf] -= 1
            if not self.locked[leaf]:
                del self.locked[leaf]
            self.ledger.unlock_path(leaf)
            self.see()

    @rule(target=held, count=st.integers(1, 4), is_promise=st.booleans())
    def take(self, count: int, is_promise: bool) -> tuple[bool, tuple[int, ...]]:
        if self.ledger.available < count:
            return is_promise, ()
        before = dict(self.spelled)
        pages = self.ledger.reserve(count) if is_promise else self.ledger.take(count)
        assert len(set(pages)) == count
        assert not set(pages) & {*self.own, *self.reserved}
        for page in pages:
            assert page not in before or self.is_evictable(before[page])
        (self.reserved if is_promise else self.own).extend(pages)
        self.see()
        return is_promise, tuple(pages)

    @rule(pages=consumes(held), is_used=st.booleans())
    def give(self, pages: tuple[bool, tuple[int, ...]], is_used: bool) -> None:
        is_promise, numbers = pages
        for page in numbers:
            (self.reserved if is_promise else self.own).remove(page)
        if is_promise and is_used:
            self.ledger.give(self.ledger.use(list(numbers)))
        elif is_promise:
            self.ledger.unreserve(numbers)
        else:
            self.ledger.give(numbers)

    @precondition(lambda self: self.ledger.trie.num_nodes > self.ledger.trie.num_locked)
    @rule(count=st.integers(1, 3))
    def evict(self, count: int) -> None:
        """Exactly the least recently used leaves go, one after the other."""
        expected = []
        ledger = self.ledger
        gone: set[Node] = set()
        for _ in range(count):
            leaves = [
                node
                for node in ledger.trie.walk()
                if node not in gone
                and not node.locks
                and not any(c not in gone for group in node.children.values() for c in group)
            ]
            if not leaves:
                break
            oldest = min(leaf.last_used for leaf in leaves)
            expected.append({leaf.page for leaf in leaves if leaf.last_used == oldest})
            gone.add(next(leaf for leaf in leaves if leaf.last_used == oldest))
        freed = ledger.trie.evict(count)
        ledger._put_free(freed)
        assert len(freed) == len(expected)
        if freed:
            assert freed[0] in expected[0]
        self.see()

    @rule(tenant=TENANTS, tokens=TOKENS)
    def match_is_the_longest(self, tenant: str, tokens: TokenIds) -> None:
        match = self.ledger.trie.match(tenant, tokens)
        longest = max(
            (
                common(tokens, spelled)
                for owner, spelled in self.spelled.values()
                if owner == tenant
            ),
            default=0,
        )
        assert match.length == longest
        assert match.length == len(match.nodes) * P + match.partial_tokens
        if match.leaf is not None:
            assert common(spell(match.leaf), tokens) == match.length

    @invariant()
    def books_are_right(self) -> None:
        ledger = self.ledger
        ledger.check()
        counts = ledger.counts()
        assert counts.free + counts.cached + counts.claimed == 10
        cached = [node.page for node in ledger.trie.walk()]
        places = [*ledger._free, *self.own, *self.reserved, *cached]
        assert sorted(places) == list(range(10))
        claimed = {node for leaf in self.locked for node in path(leaf)}
        assert counts.claimed == len(claimed) + len(self.own)
        assert {n for n in ledger.trie.walk() if n.locks} == claimed

    @invariant()
    def siblings_differ_and_short_pages_are_leaves(self) -> None:
        for node in self.ledger.trie.walk():
            assert len(node.tokens) == P or not node.children
            assert node.parent is not None
            siblings = node.parent.children[node.tokens[0]]
            assert sum(s.tokens == node.tokens for s in siblings) == 1


def below(root: Node) -> list[Node]:
    nodes = [child for group in root.children.values() for child in group]
    return [*nodes, *(n for node in nodes for n in below(node))]


def path(leaf: Node | None) -> list[Node]:
    nodes = []
    while leaf is not None and leaf.parent is not None:
        nodes.append(leaf)
        leaf = leaf.parent
    return nodes


def spell(leaf: Node) -> TokenIds:
    return tuple(t for node in reversed(path(leaf)) for t in node.tokens)


def tenant_of(node: Node) -> Node:
    while node.parent is not None:
        node = node.parent
    return node


def common(a: TokenIds, b: TokenIds) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


PagesMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, derandomize=True
)
TestPages = PagesMachine.TestCase
