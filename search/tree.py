"""The tree that a run grows, as numbered events that are only ever appended.

`SearchTree` numbers branches when they are submitted, so that ids and random streams do not depend
on which child finishes first. Everything that happens is an event: streams, traces, the page and
the tests read those, and replaying them gives the same snapshot. The tree decides nothing and holds
no cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from search.branch import Branch, Slot, Step

__all__ = [
    "Branch",
    "Chosen",
    "Drawn",
    "Failed",
    "Pruned",
    "Record",
    "Resampled",
    "Scored",
    "SearchTree",
    "Selected",
    "Slot",
    "Step",
    "TreeEvent",
]


@dataclass(frozen=True)
class Scored:
    """The judge's value of a branch; `steps` are the process values, if any."""

    branch: int
    value: float
    steps: tuple[float, ...] = ()


@dataclass(frozen=True)
class Pruned:
    """A branch will neither be expanded nor returned any more."""

    branch: int
    why: str


@dataclass(frozen=True)
class Resampled:
    """A branch was given `copies` continuations at a selection."""

    branch: int
    copies: int


@dataclass(frozen=True)
class Chosen:
    """The branches that are the answer, best first."""

    branches: tuple[int, ...]


@dataclass(frozen=True)
class Failed:
    """A branch was dropped because its reward failed."""

    branch: int
    why: str


@dataclass(frozen=True)
class Selected:
    """What a selection among the open branches of one level kept, and what it took.

    Attributes:
        depth: Steps from the root to the branches.
        leaves: Open branches that there were.
        nodes: Distinct nodes on the paths to them, the root included.
        clusters: Semantic clusters among them; 0 where clusters were left out.
        kept_leaves: Those that got a continuation.
        kept_nodes: Distinct nodes on the paths to these.
        kept_clusters: Clusters among these.
        lost_leaves: Those that the integer program kept and the allocation gave nothing.
        lost_clusters: Clusters that the integer program covered and the allocation lost.
        solver_ms: Milliseconds in the solver.
        is_solved: Whether the solver came to an end; else everything was kept.
    """

    depth: int
    leaves: int
    nodes: int
    clusters: int
    kept_leaves: int
    kept_nodes: int
    kept_clusters: int
    lost_leaves: int
    lost_clusters: int
    solver_ms: float
    is_solved: bool


@dataclass(frozen=True)
class Drawn:
    """What a resampling of particles started from, and what it kept.

    Attributes:
        depth: Steps done.
        particles: Those that took part.
        effective_size: What they were worth, 1..`particles`, before annealing.
        entropy: Of their weights, over its maximum.
        temperature: What the log-weights were divided by in the draw.
        ancestors: Distinct particles drawn.
        first_steps: Distinct first steps among what was drawn; 1 is a collapse.
    """

    depth: int
    particles: int
    effective_size: float
    entropy: float
    temperature: float
    ancestors: int
    first_steps: int


Record: TypeAlias = Scored | Pruned | Resampled | Chosen | Failed | Selected | Drawn


@dataclass(frozen=True)
class TreeEvent:
    """One numbered event; `data` is JSON-serialisable."""

    number: int
    kind: str
    data: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object."""
        return {"number": self.number, "kind": self.kind, **self.data}

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> TreeEvent:
        """Read `to_json` back."""
        data = {name: value for name, value in event.items() if name not in ("number", "kind")}
        return cls(number=int(event["number"]), kind=str(event["kind"]), data=data)


@dataclass
class _Picture:
    """The events so far, folded."""

    nodes: dict[int, dict[str, Any]] = field(default_factory=dict)
    chosen: list[int] = field(default_factory=list)
    selections: list[Mapping[str, Any]] = field(default_factory=list)
    stop_reason: str | None = None

    def apply(self, event: TreeEvent) -> None:
        data = event.data
        if event.kind == "grown":
            self.nodes[data["branch"]] = _new_node(data)
        elif event.kind == "chosen":
            self.chosen = list(data["branches"])
            for number in self.chosen:
                self.nodes[number]["state"] = "chosen"
        elif event.kind in ("selected", "drawn"):
            self.selections.append(data)
        elif event.kind == "ended":
            self.stop_reason = data["stop_reason"]
        else:
            self.nodes[data["branch"]].update(_change(event))

    def snapshot(self) -> dict[str, Any]:
        nodes = [dict(self.nodes[number]) for number in sorted(self.nodes)]
        return {
            "nodes": nodes,
            "chosen": list(self.chosen),
            "selections": [dict(one) for one in self.selections],
            "stop_reason": self.stop_reason,
        }


class SearchTree:
    """Branches and events of one run. Append-only; one event loop owns it."""

    def __init__(self, prompt_tokens: int = 0, prefill: str = "") -> None:
        self.root = Branch(0, parent=None, depth=0, path=(), step=Step(text=""), prefill=prefill)
        self.prompt_tokens = prompt_tokens
        self._branches: dict[int, Branch] = {0: self.root}
        self._num_submitted = 1
        self._num_children: dict[int, int] = {}
        self._events: list[TreeEvent] = []
        self._picture = _Picture()
        self._followers: set[asyncio.Event] = set()
        self.is_closed = False
        self._append("grown", _grown(self.root, 0))

    def submit(self, parent: Branch) -> Slot:
        """Number a child that is about to be drawn."""
        index = self._num_children.get(parent.id, 0)
        self._num_children[parent.id] = index + 1
        self._num_submitted += 1
        return Slot(id=self._num_submitted - 1, parent=parent, index=index)

    def num_children(self, branch: Branch) -> int:
        """Children submitted under a branch until now: the index of the next one."""
        return self._num_children.get(branch.id, 0)

    def add(self, place: Slot | Branch, step: Step) -> Branch:
        """Put a child into the tree: into its slot, or submitted and put at once under a branch."""
        slot = place if isinstance(place, Slot) else self.submit(place)
        parent = slot.parent
        branch = Branch(
            id=slot.id,
            parent=parent,
            depth=parent.depth + 1,
            path=slot.path,
            step=step,
            text_end=parent.text_end + len(step.text),
            num_tokens=parent.num_tokens + step.num_tokens,
            prefill=parent.prefill,
        )
        self._branches[branch.id] = branch
        self._append("grown", _grown(branch, slot.index))
        return branch

    def record(self, event: Record) -> None:
        """Append what happened to branches that are in the tree, or at a level of it."""
        data = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(event).items()
        }
        self._append(type(event).__name__.lower(), data)

    def close(self, stop_reason: str) -> None:
        """Append the last event; followers end after it. Idempotent."""
        if not self.is_closed:
            self.is_closed = True
            self._append("ended", {"stop_reason": stop_reason})

    @property
    def branches(self) -> list[Branch]:
        """Every branch, in order of submission."""
        return [self._branches[number] for number in sorted(self._branches)]

    def branch(self, number: int) -> Branch:
        """The branch with this id."""
        return self._branches[number]

    def events(self, after: int = -1) -> Iterator[TreeEvent]:
        """The events numbered above `after`, as far as they have happened."""
        yield from self._events[max(0, after + 1) :]

    async def follow(self, after: int = -1) -> AsyncIterator[TreeEvent]:
        """The events numbered above `after`, as they happen; ends when the run does."""
        changed = asyncio.Event()
        self._followers.add(changed)
        try:
            position = max(0, after + 1)
            while True:
                changed.clear()
                while position < len(self._events):
                    yield self._events[position]
                    position += 1
                if self.is_closed:
                    return
                await changed.wait()
        finally:
            self._followers.discard(changed)

    def snapshot(self) -> dict[str, Any]:
        """The tree as one JSON object: `nodes` by id, `chosen`, `selections`, `stop_reason`."""
        return self._picture.snapshot()

    @staticmethod
    def replay(events: Iterable[TreeEvent]) -> dict[str, Any]:
        """The snapshot that these events, all from the first on, lead to."""
        picture = _Picture()
        for event in events:
            picture.apply(event)
        return picture.snapshot()

    def _append(self, kind: str, data: Mapping[str, Any]) -> None:
        event = TreeEvent(len(self._events), kind, data)
        self._events.append(event)
        self._picture.apply(event)
        for follower in self._followers:
            follower.set()


def _grown(branch: Branch, index: int) -> dict[str, Any]:
    data = {
        "branch": branch.id,
        "parent": None if branch.parent is None else branch.parent.id,
        "index": index,
        "depth": branch.depth,
        "text": branch.step.text,
        "tokens": branch.step.num_tokens,
        "finish": None if branch.finish is None else str(branch.finish),
    }
    state = branch.state
    if state is None:
        return data
    data |= {"shown": state.shown, "step": state.step, "steps": state.steps, "nfe": state.nfe}
    return data | {"restored": True} if state.seed is None else data


def _new_node(data: Mapping[str, Any]) -> dict[str, Any]:
    node = {("id" if name == "branch" else name): value for name, value in data.items()}
    state = "kept" if data["finish"] is None else "finished"
    return node | {"score": None, "step_scores": [], "resampled": None, "state": state, "why": None}


def _change(event: TreeEvent) -> dict[str, Any]:
    data = event.data
    if event.kind == "scored":
        return {"score": data["value"], "step_scores": list(data["steps"])}
    if event.kind == "resampled":
        return {"resampled": data["copies"]}
    return {"state": event.kind, "why": data["why"]}
