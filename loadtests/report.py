"""A load run's JSON as one HTML file to look at: inline SVG, no script, nothing fetched.

python -m loadtests.report run.json --out run.html
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

WIDTH: Final = 640
HEIGHT: Final = 260
MARGIN: Final = 46
# Okabe and Ito's palette, told apart by nearly everyone; lines differ in dashes too.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: Final = ("", "6 3", "2 3", "8 3 2 3")
Request = Mapping[str, Any]
Point = tuple[float, float]

_STYLE: Final = """
body{font:15px/1.45 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums}
th,td{border:1px solid #ccc;padding:.25rem .6rem;text-align:right}
th:first-child,td:first-child{text-align:left} tr:last-child{font-weight:600}
svg{background:#fff;border:1px solid #ddd;margin:.5rem .5rem .5rem 0}
text{font:11px system-ui,sans-serif;fill:#333} dt{font-weight:600} dd{margin:0 0 .4rem 0}
"""

_COLUMNS: Final = (
    ("n", "n", 1),
    ("ok", "ok", 1),
    ("errors", "errors", 1),
    ("incomplete", "incomplete", 1),
    *((f"TTFT p{p} ms", f"ttft_s_p{p}", 1000) for p in (50, 95, 99)),
    *((f"TPOT p{p} ms", f"tpot_s_p{p}", 1000) for p in (50, 99)),
    *((f"ITL p{p} ms", f"itl_s_p{p}", 1000) for p in (50, 99)),
    *((f"E2E p{p} ms", f"latency_s_p{p}", 1000) for p in (50, 95, 99)),
    ("requests/s", "requests_per_s", 1),
    ("answer tokens/s", "answer_tokens_per_s", 1),
)


def render(result: Mapping[str, Any]) -> str:
    """The page for the driver's result."""
    whole = [request for request in result["requests"] if request["outcome"] == "ok"]
    started = [request for request in whole if request["text_times_s"]]
    parts = [
        f"<h1>Load on {escape(str(result['model']))}</h1>",
        _facts(result),
        _table(result["summary"]),
        "<p>Times count from the scheduled arrival and are those of completed requests; errors and "
        "incompletes stay in n. TPOT is one value a request, ITL all gaps between chunks.</p>",
        _errors(result["summary"]["total"]["errors_by_code"]),
        _shares("Time to first answer text, share of requests", "seconds", started, _ttft),
        _shares("End to end, share of requests", "seconds", whole, _latency),
        _timeline(whole),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<title>bough load report</title>"
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.report", description=__doc__)
    parser.add_argument("json", type=Path, help="what the driver wrote by --json")
    parser.add_argument("--out", type=Path, required=True, help="the HTML file to write")
    args = parser.parse_args(argv)
    try:
        page = render(json.loads(args.json.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as err:
        print(f"loadtests.report: {args.json} is no result of the driver: {err}", file=sys.stderr)
        return 2
    args.out.write_text(page, encoding="utf-8")
    return 0


def _facts(result: Mapping[str, Any]) -> str:
    names = ("command", "started_at", "hardware", "loop", "arrivals", "mix", "seed", "duration_s")
    facts = (
        f"<dt>{name}</dt><dd>{escape(json.dumps(result.get(name)).strip(chr(34)))}</dd>"
        for name in names
    )
    return f"<dl>{''.join(facts)}</dl>"


def _table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{title}</th>" for title, _, _ in _COLUMNS)
    rows = []
    for strategy, found in summary.items():
        cells = (_number(found.get(key), scale) for _, key, scale in _COLUMNS)
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr><td>{escape(strategy)}</td>{row}</tr>")
    return f"<table><tr><th>strategy</th>{head}</tr>{''.join(rows)}</table>"


def _number(value: float | None, scale: int) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value * scale:.2f}"


def _errors(by_code: Mapping[str, int]) -> str:
    rows = "".join(f"<li>{count} of {escape(code)}</li>" for code, count in by_code.items())
    return f"<h2>Errors</h2><ul>{rows}</ul>" if rows else ""


def _ttft(request: Request) -> float:
    return float(request["text_times_s"][0] - request["scheduled_s"])


def _latency(request: Request) -> float:
    return float(request["ended_s"] - request["scheduled_s"])


def _shares(
    title: str, unit: str, requests: Sequence[Request], value: Callable[[Request], float]
) -> str:
    """Cumulative share of requests by value, a step line a strategy."""
    lines = {}
    for strategy in sorted({request["strategy"] for request in requests}):
        values = sorted(value(r) for r in requests if r["strategy"] == strategy)
        points: list[Point] = [(values[0], 0.0)]
        for place, at in enumerate(values):
            points += [(at, place / len(values)), (at, (place + 1) / len(values))]
        lines[strategy] = points
    return _chart(title, unit, "share", lines, _polyline)


def _timeline(requests: Sequence[Request]) -> str:
    """End-to-end time of each request by when it was due."""
    dots = {}
    for strategy in sorted({request["strategy"] for request in requests}):
        own = (request for request in requests if request["strategy"] == strategy)
        dots[strategy] = [(float(request["scheduled_s"]), _latency(request)) for request in own]
    return _chart(
        "End to end by scheduled arrival", "seconds since start", "seconds", dots, _circles
    )


def _chart(
    title: str,
    across: str,
    up: str,
    series: Mapping[str, Sequence[Point]],
    draw: Callable[[Sequence[Point], int], str],
) -> str:
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    high_x = max(x for x, _ in points) or 1.0
    high_y = max(y for _, y in points) or 1.0

    def place(point: Point) -> Point:
        x = MARGIN + point[0] / high_x * (WIDTH - 2 * MARGIN)
        return x, HEIGHT - MARGIN - point[1] / high_y * (HEIGHT - 2 * MARGIN)

    marks = [draw([place(p) for p in line], n) for n, line in enumerate(series.values())]
    legend = [
        f'<text x="{WIDTH - MARGIN + 4 - 120}" y="{MARGIN + 14 * n}" fill="{_colour(n)}">'
        f'<tspan fill="{_colour(n)}">■</tspan> {escape(name)}</text>'
        for n, name in enumerate(series)
    ]
    left, bottom, right = MARGIN, HEIGHT - MARGIN, WIDTH - MARGIN
    return (
        f"<h2>{escape(title)}</h2>"
        f'<svg role="img" aria-label="{escape(title)}" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}">'
        f'<path d="M{left} {MARGIN}V{bottom}H{right}" fill="none" stroke="#888"/>'
        f'<text x="{left}" y="{bottom + 16}">0</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{high_x:.3g} {across}</text>'
        f'<text x="{left - 4}" y="{MARGIN - 8}">{high_y:.3g} {up}</text>'
        f"{''.join(marks)}{''.join(legend)}</svg>"
    )


def _polyline(points: Sequence[Point], number: int) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = DASHES[number % len(DASHES)]
    return (
        f'<polyline points="{path}" fill="none" stroke="{_colour(number)}" stroke-width="1.5" '
        f'stroke-dasharray="{dash or "none"}"/>'
    )


def _circles(points: Sequence[Point], number: int) -> str:
    return "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{_colour(number)}" fill-opacity=".7"/>'
        for x, y in points
    )


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


if __name__ == "__main__":
    sys.exit(main())
