"""The settings reference: ``python -m server.reference`` prints it, a test holds the page to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final, get_args

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from server.settings import Settings

_HEAD: Final = """# Settings

This page is printed by `python -m server.reference`; a test fails when it is out of date.

One dotted name everywhere. `limits.max_n` is the flag `--limits.max_n 8` of `bough serve`, the
environment variable `BOUGH_LIMITS__MAX_N=8`, and `max_n = 8` under `[limits]` in the TOML file that
`--config FILE` or `BOUGH_CONFIG` names (`bough.toml` in the working directory otherwise). A flag
wins over the environment, that over the file, that over the default. `bough config` prints the
effective values and where each came from. Unknown names are errors.

Without `engine` and `models`, all bundled models and reward models are served. `engine.kind` and
`engine.model` are shorthand for a single model, called by its directory's name.

```toml
[models.math]
engine = {kind = "embedded", model = "/models/math-7b"}
reward_model = "prm"
strategy = "best_of_n"
params = {width = 4}

[reward_models.prm]
kind = "process"
model = "/models/math-prm"
```

| setting | type | default | bounds | meaning |
|---|---|---|---|---|
"""


def page() -> str:
    """The whole page as Markdown."""
    return _HEAD + "".join(f"| {' | '.join(row)} |\n" for row in _rows(Settings, ""))


def _rows(model: type[BaseModel], above: str) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        dotted = above + name
        inner = _model_in(field.annotation)
        is_table = name in ("models", "reward_models")
        if inner is None or is_table:
            yield (
                f"`{dotted}`",
                "table" if is_table else _type(field.annotation),
                _default(field),
                _bounds(field),
                field.description or "",
            )
        if inner is not None:
            yield from _rows(inner, f"{dotted}.ID." if is_table else f"{dotted}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings model that a field holds, itself or as the values of a table."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _type(annotation: Any) -> str:
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    if annotation is not None and not isinstance(annotation, type) and len(kinds) == 1:
        return _type(kinds[0])
    names = {str: "text", SecretStr: "secret text", int: "integer", float: "number", bool: "yes/no"}
    return names.get(annotation, "table")


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value is PydanticUndefined or value == "":
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = []
    for rule in field.metadata:
        for name, sign in signs.items():
            bound = getattr(rule, name, None)
            if bound is not None:
                found.append(f"{sign} {bound}")
        pattern = getattr(rule, "pattern", None)
        if pattern is not None:
            found.append(str(pattern).strip("^$()").replace("|", ", "))
    return ", ".join(found)


if __name__ == "__main__":
    sys.stdout.write(page())
