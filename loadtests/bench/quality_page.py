"""The results of `bough bench quality` as one HTML page that needs nothing beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
from matplotlib.figure import Figure as Plot

from models.evaluate import Measured

_TEMPLATE: Final = Path(__file__).with_name("quality.html.jinja")
_AXES: Final = (
    ("tokens", "generated tokens a problem"),
    ("seconds", "seconds a problem"),
    ("peak_kv", "peak KV tokens of a problem"),
)


@dataclass(frozen=True)
class Point:
    """A strategy at a budget.

    Attributes:
        strategy: Its name.
        knobs: In words.
        budget: Mean tokens that it was brought to.
        accuracy: Share of right answers.
        gain: Accuracy over that of the baseline; None for the baseline itself.
        tokens: Generated, in the mean.
        seconds: Wall time, in the mean.
        peak_kv: Claimed tokens at the peak, in the mean.
    """

    strategy: str
    knobs: str
    budget: int
    accuracy: Measured
    gain: Measured | None
    tokens: float
    seconds: float
    peak_kv: float


def write_page(
    path: Path, points: Sequence[Point], *, title: str, baseline: str, about: Mapping[str, Any]
) -> None:
    """Tables and plots of all points.

    Args:
        path: The file.
        points: In the order of the table.
        title: The heading.
        baseline: The strategy that gains are over.
        about: What was run, on what: shown as it is.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text("utf-8"))
    page = template.render(
        title=title,
        baseline=baseline,
        points=points,
        about=about,
        plots=[_plot(points, name, label) for name, label in _AXES],
    )
    path.write_text(page, encoding="utf-8")


def _plot(points: Sequence[Point], name: str, label: str) -> str:
    """Accuracy against one cost, a line a strategy, as SVG."""
    plot = Plot(figsize=(5.4, 4), layout="constrained")
    axes = plot.add_subplot()
    for strategy in dict.fromkeys(point.strategy for point in points):
        mine = sorted(
            (point for point in points if point.strategy == strategy),
            key=lambda point: float(getattr(point, name)),
        )
        values = [point.accuracy.value for point in mine]
        below = [point.accuracy.value - point.accuracy.low for point in mine]
        above = [point.accuracy.high - point.accuracy.value for point in mine]
        costs = [float(getattr(point, name)) for point in mine]
        axes.errorbar(costs, values, yerr=(below, above), marker="o", capsize=3, label=strategy)
    axes.set_xlabel(label)
    axes.set_ylabel("answered right")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    drawn = io.StringIO()
    plot.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue().partition("<svg")[2].join(("<svg", ""))
