"""The command `bough`.

bough serve       answer requests
bough models      the models that these settings name
bough strategies  the strategies and their parameters
bough chat        talk to a server, or to one started for the occasion
bough bench       measure; see `bough bench NAME --help`
bough drafts      build a table for drafters from texts, or look into one
bough config      the effective settings, and where each came from
bough plugins     everything that is registered, by group

`serve`, `models`, `chat` and `config` take every setting as a dotted flag. Exit codes: 0 done, 1
failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from engines.errors import EngineError
from reward_models.errors import RewardError
from search import plugins
from search.errors import SearchError
from server import cli_chat, cli_drafts
from server.errors import ServerError, near
from server.serve import serve
from server.settings import Loaded, add_flags, leaves, load
from server.strategies import describe
from stores.errors import StoreError

_SECRET: Final = re.compile(r"\.options\.(.*_)?(key|secret|password|token)$")
"""Options of plugins that are shown to nobody; our own secrets mask themselves."""

_MASK: Final = "**********"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        code: int = given.run(given)
    except (ServerError, EngineError, RewardError, StoreError, SearchError) as err:
        print(f"bough: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bough",
        description=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, run: Callable[..., int], text: str, *, has_settings: bool) -> Any:
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if has_settings:
            flags = add_flags(command)
            command.set_defaults(run=lambda given: run(given, load(flags, given)))
        else:
            command.set_defaults(run=run)
        return command

    add("serve", _serve, "Answer requests.", has_settings=True)
    add("models", _models, "List the models that these settings name.", has_settings=True)
    add("strategies", _strategies, "List the strategies and their parameters.", has_settings=False)
    cli_chat.add_arguments(
        add("chat", cli_chat.run, "Talk to a server, or to one of your own.", has_settings=True)
    )
    bench = add("bench", _bench, "Measure.", has_settings=False)
    bench.add_argument("name", metavar="NAME", help="which bench; see `bough plugins`")
    bench.add_argument("rest", nargs=argparse.REMAINDER, help="its options; NAME --help lists them")
    drafts = add("drafts", cli_drafts.run, "Tables for drafters.", has_settings=False)
    cli_drafts.add_arguments(drafts)
    add("config", _config, "Print every setting and where it came from.", has_settings=True)
    add("plugins", _plugins, "List what is registered.", has_settings=False)
    return parser


def _serve(given: argparse.Namespace, loaded: Loaded) -> int:
    models = ", ".join(loaded.settings.models)
    serve(
        loaded.settings,
        lambda url: print(f"bough serves {models} at {url}", flush=True),
    )
    return 0


def _models(given: argparse.Namespace, loaded: Loaded) -> int:
    for name, model in loaded.settings.models.items():
        engine = model.engine
        judge = model.reward_model or "no reward model"
        print(f"{name}\t{engine.kind}\t{engine.model or '-'}\t{model.strategy}\t{judge}")
    for name, reward in loaded.settings.reward_models.items():
        print(f"{name}\t{reward.kind}\t{reward.model or '-'}\treward model")
    return 0


def _strategies(given: argparse.Namespace) -> int:
    known = plugins.load("bough.strategies")
    for name in known:
        strategy = describe(name, known[name])
        print(f"{name}: {strategy['description']}")
        for param, schema in strategy["params"].get("properties", {}).items():
            kind = schema.get("type") or "value"
            print(f"  {param} ({kind}, default {schema.get('default')}): {_about(schema)}")
    return 0


def _about(schema: dict[str, Any]) -> str:
    return str(schema.get("description", "")).replace("\n", " ")


def _bench(given: argparse.Namespace) -> int:
    known = plugins.load("bough.benches")
    if given.name not in known:
        print(f"bough: no bench is called {given.name!r}{near(given.name, known)}", file=sys.stderr)
        return 2
    return int(known[given.name].main(given.rest))


def _config(given: argparse.Namespace, loaded: Loaded) -> int:
    values = loaded.settings.model_dump(mode="json")
    for name, value in leaves(values):
        shown = _MASK if value and _SECRET.search(name) else value
        print(f"{name} = {shown!r}  ({_origin(name, loaded)})")
    return 0


def _origin(name: str, loaded: Loaded) -> str:
    """Where a value came from: whoever gave it, or gave something that it is part of."""
    found = next(
        (origin for given, origin in loaded.origins.items() if f"{name}.".startswith(f"{given}.")),
        None,
    )
    return found or "default"


def _plugins(given: argparse.Namespace) -> int:
    for group in plugins.GROUPS:
        print(group)
        known = plugins.load(group)
        for name in known:
            print(f"  {name}\t{known.where(name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
