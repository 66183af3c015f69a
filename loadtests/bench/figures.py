"""Where benches put their numbers: one JSON file of named figures, written as they come.

A bench is a function of a `Bench`, made a command by `bench_command`:

    @bench_command("engine")
    def run(bench: Bench) -> None:
        if bench.wants("engine.greedy_mismatches"):
            bench.put("engine.greedy_mismatches", 0, unit="prompts", n=100, better="lower")

``run(bench)`` measures; ``run.main(["--out", DIR, …])`` is what ``bough bench engine …`` does. A
figure that DIR already holds for the same seed, n and code is not computed again; one of other
code or n stays until it is measured anew, and ``origin`` says where each is from. Figures never
change their meaning: a new meaning is a new name. Nothing here knows what is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from rich.console import Console
from rich.table import Table

from models.evaluate import Measured

Better = Literal["higher", "lower"]
Arguments: TypeAlias = Callable[[argparse.ArgumentParser], None]
"""Adds a bench's own options."""

DEFAULT_OUT: Final = Path("bench-results")
_MEASURED: Final = ("engines", "loadtests", "models", "reward_models", "search", "stores")
_ROOT: Final = Path(__file__).resolve().parents[2]


class BenchError(Exception):
    """A bench cannot run as asked; the message says what to change."""


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        value: The number.
        unit: Its unit; "ratio" for quotients of two like things.
        n: How many problems, prompts or repeats it rests on.
        low: Lower end of its 95 % interval, or of its repeats where `unit` is a ratio of times.
        high: Upper end.
        better: Which way is better; None where neither is.
    """

    value: float
    unit: str
    n: int
    low: float | None = None
    high: float | None = None
    better: Better | None = None


@dataclass(frozen=True)
class Options:
    """What the command line of a bench says.

    Attributes:
        out: Folder of the results.
        seed: Seed of everything random.
        n: Size of the sample; None is the bench's own default.
        only: Globs of the figures wanted; empty wants all.
        limit_s: Start nothing new after so many seconds.
        extra: Options that only this bench has, by name; figures of other ones are not its own.
    """

    out: Path = DEFAULT_OUT
    seed: int = 0
    n: int | None = None
    only: tuple[str, ...] = ()
    limit_s: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Bench:
    """One run of a bench: what is wanted, how long there is, and where figures go."""

    def __init__(
        self, name: str, options: Options, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read what the folder already holds."""
        self.name = name
        self.out = options.out
        self.seed = options.seed
        self.n = options.n
        self.extra = options.extra
        # A pipe gets whole rows, however narrow the terminal that is not there.
        self.console = Console() if sys.stdout.isatty() else Console(width=160)
        self._only = options.only
        self._clock = clock
        self._end = None if options.limit_s is None else clock() + options.limit_s
        self._asked = {"seed": options.seed, "n": options.n, "code": code_hash()}
        self._asked |= {name: str(value) for name, value in options.extra.items() if value}
        self._wanted: list[str] = []
        self._file = options.out / f"{name}.json"
        options.out.mkdir(parents=True, exist_ok=True)
        old = self._read()
        self._started_at = old.get("started_at", datetime.now(UTC).isoformat(timespec="seconds"))
        self._origin: dict[str, dict[str, Any]] = dict(old.get("origin", {}))
        self._figures = {
            key: Figure(**value)
            for key, value in old.get("figures", {}).items()
            if self._origin.get(key, {}).get("seed") == options.seed
        }

    def at_most(self, count: int) -> int:
        """A sample of this size, or of ``--n`` where that is smaller."""
        return min(count, self.n or count)

    def matches(self, name: str) -> bool:
        """Whether the command line asks for this figure."""
        return not self._only or any(fnmatchcase(name, glob) for glob in self._only)

    def wants(self, name: str) -> bool:
        """Whether this figure is asked for and not there yet."""
        if not self.matches(name):
            return False
        if name not in self._wanted:
            self._wanted.append(name)
        return not self.is_fresh(name)

    def is_fresh(self, name: str) -> bool:
        """Whether this figure is there, from this seed, n and code."""
        origin = self._origin.get(name, {})
        same = all(origin.get(key) == value for key, value in self._asked.items())
        return same and name in self._figures

    def put(
        self,
        name: str,
        value: float,
        *,
        unit: str,
        n: int,
        low: float | None = None,
        high: float | None = None,
        better: Better | None = None,
    ) -> None:
        """Keep a figure and write the file. One that was not asked for is left out.

        Raises:
            ValueError: The value is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"figure {name} is {value}; it must be finite")
        if not self.matches(name):
            return
        self._figures[name] = Figure(value, unit, n, low, high, better)
        self._origin[name] = {**self._asked, "revision": revision()}
        self._write()

    def put_measured(self, name: str, got: Measured, *, unit: str, better: Better) -> None:
        """Keep a figure that comes with its size and interval."""
        self.put(name, got.value, unit=unit, n=got.n, low=got.low, high=got.high, better=better)

    def get(self, name: str) -> Figure | None:
        """A figure that is already there."""
        return self._figures.get(name)

    def out_of_time(self) -> bool:
        """Whether `limit_s` has passed."""
        return self._end is not None and self._clock() >= self._end

    def say(self, text: str) -> None:
        """A line for whoever watches."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def report(self) -> bool:
        """Print the figures; whether every one asked for is there."""
        table = Table(title=f"bough bench {self.name} (seed {self.seed})")
        for column in ("figure", "value", "low", "high", "unit", "n", "better"):
            is_name = column in ("figure", "unit", "better")
            table.add_column(column, justify="left" if is_name else "right", overflow="fold")
        shown = [name for name in self._figures if self.matches(name)]
        for name in shown:
            figure = self._figures[name]
            ends = ["" if end is None else _short(end) for end in (figure.low, figure.high)]
            better = figure.better or ""
            row = [name, _short(figure.value), *ends, figure.unit, str(figure.n), better]
            table.add_row(*row)
        self.console.print(table)
        missing = [name for name in self._wanted if not self.is_fresh(name)]
        for name in missing:
            self.say(f"not computed: {name}")
        for name in shown:
            if not self.is_fresh(name):
                self.say(f"kept from an earlier run, {self._origin[name]}: {name}")
        if not shown and not missing:
            self.say(f"no figure matches --only {','.join(self._only)}")
        self.say(f"written to {self._file}")
        return bool(shown) and not missing

    def _read(self) -> dict[str, Any]:
        try:
            old = json.loads(self._file.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as err:
            raise BenchError(f"{self._file} cannot be resumed ({err}); move it away") from err
        if not isinstance(old, dict):
            raise BenchError(f"{self._file} is not a results file; move it away")
        return old

    def _write(self) -> None:
        content = {
            "command": shlex.join(sys.argv),
            "seed": self.seed,
            "revision": revision(),
            "hardware": hardware(),
            "started_at": self._started_at,
            "figures": {name: asdict(figure) for name, figure in self._figures.items()},
            "origin": {name: self._origin[name] for name in self._figures},
        }
        draft = self._file.with_suffix(".json.part")
        draft.write_text(json.dumps(content, indent=1) + "\n")
        draft.replace(self._file)


class Journal:
    """Rows beside the figures, one JSON object a line, so that a stopped bench goes on.

    Args:
        path: The file; a torn last line, from a run that was killed, is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[str, dict[str, Any]] = {}
        good = 0
        if path.exists():
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    row = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                good += len(line)
                self.rows[row["key"]] = row
            with path.open("r+b") as file:
                file.truncate(good)

    def add(self, key: str, row: Mapping[str, Any]) -> None:
        """Append a row under a key that it does not hold yet."""
        full = {"key": key, **row}
        with self._path.open("a") as file:
            file.write(json.dumps(full) + "\n")
        self.rows[key] = full


class BenchCommand:
    """A bench as a command; calling it runs the bench itself."""

    def __init__(
        self, name: str, body: Callable[[Bench], None], arguments: Arguments | None = None
    ) -> None:
        self.name = name
        self._body = body
        self._arguments = arguments
        self.__doc__ = body.__doc__

    def __call__(self, bench: Bench) -> None:
        """Measure what `bench` wants."""
        self._body(bench)

    def main(self, argv: Sequence[str]) -> int:
        """Run with command-line arguments; 0 when every figure asked for is there.

        What was measured is printed even when the bench fails half way.
        """
        options = parse_options(self.name, argv, self._arguments)
        try:
            bench = Bench(self.name, options)
            try:
                self(bench)
            finally:
                is_whole = bench.report()
        except BenchError as err:
            print(f"bough bench {self.name}: {err}", file=sys.stderr)
            return 1
        return 0 if is_whole else 1


def bench_command(
    name: str, arguments: Arguments | None = None
) -> Callable[[Callable[[Bench], None]], BenchCommand]:
    """Make a function of a `Bench` a command, with `arguments` of its own."""
    return lambda body: BenchCommand(name, body, arguments)


def parse_options(name: str, argv: Sequence[str], arguments: Arguments | None = None) -> Options:
    """Options from a command line; argparse exits with 2 on a wrong one."""
    parser = argparse.ArgumentParser(prog=f"bough bench {name}")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the results")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--n", type=_positive, help="size of the sample")
    parser.add_argument("--only", default="", help="figures wanted, as GLOB[,GLOB...]")
    parser.add_argument("--limit-s", type=float, help="start nothing new after so many seconds")
    if arguments is not None:
        arguments(parser)
    given = vars(parser.parse_args(argv))
    common = [given.pop(name) for name in ("out", "seed", "n", "only", "limit_s")]
    out, seed, n, only, limit_s = common
    globs = tuple(glob.strip() for glob in only.split(",") if glob.strip())
    return Options(out, seed, n, globs, limit_s, given)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m loadtests.bench NAME …``: any registered bench."""
    args = list(sys.argv[1:] if argv is None else argv)
    known = {entry.name: entry for entry in entry_points(group="bough.benches")}
    if not args or args[0] not in known:
        print(f"usage: bench NAME [options]; NAME is one of {', '.join(sorted(known))}")
        return 2
    command = known[args[0]].load()
    return int(command.main(args[1:]))


@cache
def revision() -> str:
    """The commit measured, with ``+changes`` when the tree differs from it."""
    commit = _git("rev-parse", "--short=12", "HEAD") or "unknown"
    return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


@cache
def code_hash() -> str:
    """Changes when the measured code or models do; empty outside a git checkout."""
    trees = _git("rev-parse", *(f"HEAD:{folder}" for folder in _MEASURED))
    changes = _git("diff", "HEAD", "--", *_MEASURED) + _git("status", "--short", "--", *_MEASURED)
    return hashlib.blake2b((trees + changes).encode(), digest_size=6).hexdigest() if trees else ""


def hardware() -> dict[str, Any]:
    """The machine, in words and numbers."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")  # only a bench that computes with it has loaded it
    if torch is not None:
        found["torch"] = torch.__version__
        found["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def _short(value: float) -> str:
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(*args: str) -> str:
    try:
        done = subprocess.run(
            ["git", *args], cwd=_ROOT, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
