"""What search can refuse, as one tree.

SearchError
├── StrategyNotFound      a strategy nobody registered; names the near matches
├── ParamsError           parameters that a strategy refuses; `param` is the field on the wire
│   ├── UnknownParameter  a name that the strategy does not have; names the near matches
│   └── InvalidParameter  a value of the wrong type (`kind` "type") or out of bounds ("value")
├── MissingRewardModel    the strategy needs a judge, or one of another kind, and has none
├── BudgetExhausted       nothing may be spent any more; seen only if nothing was produced
├── PluginError           an entry point that cannot be imported
└── BrokenContract        a strategy, engine or judge broke its interface; always a bug
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal


def near_matches(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Up to three of `known` that `name` may have meant, likeliest first."""
    return tuple(get_close_matches(name.lower(), sorted(known), n=3, cutoff=0.5))


def _meant(near: tuple[str, ...], known: Iterable[str]) -> str:
    if near:
        return f"did you mean {' or '.join(repr(one) for one in near)}?"
    return f"there are {', '.join(sorted(known)) or 'none'}"


class SearchError(Exception):
    """Anything search raises on purpose."""


class StrategyNotFound(SearchError):
    """No strategy has this name.

    Args:
        name: The name asked for.
        known: Every name there is.
    """

    param = "bough.strategy"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        self.near = near_matches(name, self.known)
        super().__init__(f"no strategy is named {name!r}: {_meant(self.near, self.known)}")


class ParamsError(SearchError):
    """Parameters that a strategy refuses.

    Args:
        message: What is wrong and what to change.
        param: The field on the wire, `bough.params.NAME`.
    """

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class UnknownParameter(ParamsError):
    """The strategy has no parameter of this name.

    Args:
        name: The name asked for.
        strategy: The strategy's name.
        known: Every parameter it has.
    """

    def __init__(self, name: str, strategy: str, known: Iterable[str]) -> None:
        self.name = name
        self.strategy = strategy
        self.known = tuple(sorted(known))
        self.near = near_matches(name, self.known)
        super().__init__(
            f"strategy {strategy!r} has no parameter {name!r}: {_meant(self.near, self.known)}",
            f"bough.params.{name}",
        )


class InvalidParameter(ParamsError):
    """A parameter's value is of the wrong type or out of bounds.

    Args:
        name: The parameter.
        strategy: The strategy's name.
        why: What is wrong with the value.
        kind: "type" when the value is of the wrong type, "value" when it is out of bounds.
    """

    def __init__(
        self, name: str, strategy: str, why: str, kind: Literal["type", "value"] = "value"
    ) -> None:
        self.name = name
        self.strategy = strategy
        self.kind = kind
        super().__init__(
            f"parameter {name!r} of strategy {strategy!r}: {why}", f"bough.params.{name}"
        )


class MissingRewardModel(SearchError):
    """The strategy judges its candidates and no fitting reward model is there.

    Args:
        strategy: The strategy's name.
        why: What it needs the judge for, or which kind.
    """

    param = "bough.reward_model"

    def __init__(self, strategy: str, why: str) -> None:
        self.strategy = strategy
        super().__init__(
            f"strategy {strategy!r} needs a reward model ({why}): name one in bough.reward_model"
        )


class BudgetExhausted(SearchError):
    """Nothing more may be spent.

    Args:
        what: The field of `Limits` that is used up.
        limit: Its bound.
        wanted: What was asked for.
    """

    def __init__(self, what: str, limit: float | None, wanted: float) -> None:
        self.what = what
        self.limit = limit
        self.wanted = wanted
        if what == "wall_ms":
            message = f"the time was up after {limit} ms; raise the deadline"
        else:
            message = (
                f"budget of {what} is used up: limit {limit}, {wanted} more needed; raise the limit"
            )
        super().__init__(message)


class PluginError(SearchError):
    """An entry point that is registered but cannot be imported.

    Args:
        group: The entry-point group.
        name: The plugin's name.
        why: What the import said.
    """

    def __init__(self, group: str, name: str, why: str) -> None:
        self.group = group
        self.name = name
        super().__init__(f"plugin {name!r} of {group!r} cannot be imported: {why}")


class BrokenContract(SearchError):
    """A strategy, an engine or a judge did what its interface forbids."""
