"""What the measurements say: tables in the terminal, a JSON file, one self-contained HTML page."""

from __future__ import annotations

import html
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastnn.bench.cases import shape_label
from fastnn.bench.console import print_table
from fastnn.bench.runner import COPY, MARK, Row, row_from_json, row_to_json

MARKED = f"{MARK} does not write into the given array: the time includes a new result."


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def duration(seconds: float) -> str:
    for limit, unit, scale in ((1e-6, "ns", 1e9), (1e-3, "µs", 1e6), (1.0, "ms", 1e3)):
        if seconds < limit:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def groups(rows: Iterable[Row]) -> dict[tuple[str, str, int, str], list[Row]]:
    """Rows by family, dtype, threads and output: a table each."""
    result: dict[tuple[str, str, int, str], list[Row]] = defaultdict(list)
    for row in rows:
        family = "rows and channels" if row.family == "activations" and len(row.shape) > 1 else row.family
        result[family, row.dtype, row.threads, row.output].append(row)
    return dict(result)


def _title(family: str, dtype: str, threads: int, output: str) -> str:
    words = {"out": "preallocated output", "fresh": "fresh output", "inplace": "in place"}[output]
    return f"{family}, {dtype}, {threads} thread{'s' * (threads > 1)}, {words}"


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return "no peer" if "fastnn" in row.times else "failed"
    text = f"{row.ratio:.2f} {row.best_label}"
    return f"[red]{text}[/red]" if row.ratio < 1 else text


def print_tables(rows: list[Row]) -> None:
    """Per group: for elementwise functions a row a function and a column a size, for the others a row a shape."""
    for group, members in groups(rows).items():
        family, title = group[0], _title(*group)
        if family == "activations":
            sizes = sorted({row.shape for row in members})
            cells = {(row.op, row.direction, row.shape): row for row in members}
            table = []
            for op, direction in dict.fromkeys((row.op, row.direction) for row in members):
                line = [f"{op} {direction}"]
                for size in sizes:
                    row = cells.get((op, direction, size))
                    if row is None or "fastnn" not in row.times:
                        line += ["" if row is None else "[red]failed[/red]", ""]
                    else:
                        line += [f"{row.times['fastnn'] / row.elements * 1e9:.3g}", _ratio(row)]
                table.append(line)
            columns = ["", *[text for size in sizes for text in (shape_label(size), "x faster than")]]
            print_table(title + ": ns an element, and how many times faster than the best peer", columns, table)
        else:
            print_table(
                title,
                ["", "shape", "fastnn", "x faster than", "torch", "numpy", "of copy speed"],
                [
                    [
                        f"{row.op} {row.direction}",
                        shape_label(row.shape),
                        duration(row.times["fastnn"]) if "fastnn" in row.times else "[red]failed[/red]",
                        _ratio(row),
                        _against(row, "torch"),
                        _against(row, "numpy"),
                        _percent(row),
                    ]
                    for row in members
                ],
            )


def _times(value: float | None) -> str:
    return "" if value is None else (f"[red]{value:.2f}[/red]" if value < 1 else f"{value:.2f}")


def _against(row: Row, peer: str) -> str:
    return _times(row.against(peer)) + row.mark(peer)


def _percent(row: Row) -> str:
    bound = row.memory_bound
    return "" if bound is None or "fastnn" not in row.times else f"{100 * bound / row.times['fastnn']:.0f} %"


def summary(rows: list[Row]) -> dict[str, Any]:
    """Geometric means, losses and the worst cells."""
    compared = [row for row in rows if row.ratio is not None]
    losses = [row for row in compared if row.ratio is not None and row.ratio < 1]
    names = list(dict.fromkeys(name for row in rows for name in row.peers))
    return {
        "cells": len(rows),
        "compared": len(compared),
        "losses": len(losses),
        "left out": sum(len(row.left_out) for row in rows),
        "best peer": geometric_mean(row.ratio for row in compared if row.ratio),
        "peers": {name: geometric_mean(r for row in rows if (r := row.against(name))) for name in names},
        "worst": sorted(compared, key=lambda row: row.ratio or 0)[:12],
    }


def print_summary(rows: list[Row], about: dict[str, Any]) -> None:
    result = summary(rows)
    if result["compared"]:
        means = "; ".join(f"{name} {value:.2f}" for name, value in result["peers"].items() if not math.isnan(value))
        print(f"\nGeometric mean: {result['best peer']:.2f} times as fast as the best peer of each cell ({means}).")
        print(f"{result['losses']} of {result['compared']} cells are slower than the best peer.")
        if result["left out"]:
            print(f"{result['left out']} times a peer over 8 times slower on fewer elements was left out of a cell.")
        print_table(
            "Worst cells",
            ["", "shape", "dtype", "threads", "output", "fastnn", "best peer", "ratio"],
            [
                [
                    f"{row.op} {row.direction}",
                    shape_label(row.shape),
                    row.dtype,
                    str(row.threads),
                    row.output,
                    duration(row.times["fastnn"]),
                    f"{row.best_label} {duration(row.peers[row.best_peer or ''])}",
                    _times(row.ratio),
                ]
                for row in result["worst"]
            ],
        )
    if any(row.fresh for row in rows):
        print(MARKED)
    print("Versions:", ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items()))
    for name, reason in about.get("missing", {}).items():
        print(f"Not compared with {name}: {reason}")
    failures: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for row in rows:
        for name, why in row.failed.items():
            failures[name, why][f"{row.op} {row.direction} {row.dtype}"] = None
    for (name, why), places in failures.items():
        shown = ", ".join(list(places)[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")
        print(f"{name} failed on {shown}: {why}")


def save_json(path: Path, rows: list[Row], about: dict[str, Any]) -> None:
    path.write_text(json.dumps({**about, "rows": [row_to_json(row) for row in rows]}, indent=1) + "\n")


def check_writable(path: Path) -> None:
    """Raise OSError where no file can be written: better before the measurements than after them."""
    new = not path.exists()
    try:
        path.open("a").close()
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    if new:
        path.unlink()


def load_json(paths: Iterable[Path]) -> tuple[list[Row], dict[str, Any]]:
    """Rows of several files; where two measure the same cell, the later file wins. The machine is the last file's."""
    merged: dict[tuple[Any, ...], Row] = {}
    about: dict[str, Any] = {}
    dates: set[str] = set()
    for path in paths:
        try:
            content = json.loads(Path(path).read_text())
            values = content.pop("rows")
            wrong = [key for key in ("machine", "versions", "missing") if not isinstance(content.get(key, {}), dict)]
            if wrong or not isinstance(values, list):
                raise TypeError(f"{', '.join(wrong) or 'rows'} of another type")
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} holds no measurements as --json writes them ({error!r})") from error
        for number, value in enumerate(values, 1):
            try:
                row = row_from_json(value)
                problem = _problem(row)
            except (KeyError, TypeError, ValueError) as error:
                problem = repr(error)
            if problem:
                raise ValueError(f"{path}, row {number} of {len(values)}: {problem}")
            merged[row.key] = row
        about.update(content)
        dates |= set(str(content.get("created", "")).split(" to "))
    if about:
        about["created"] = " to ".join(sorted({min(dates), max(dates)}))
    return list(merged.values()), about


def _problem(row: Row) -> str:
    """The first field that no measurement can have; empty where the row can be reported."""

    def within(low: float, high: float, kinds: tuple[type, ...], *values: Any) -> bool:
        return all(type(value) in kinds and low <= value <= high for value in values)

    def texts(values: Any) -> bool:
        return isinstance(values, list) and all(isinstance(value, str) for value in values)

    for name, good in (
        ("op", isinstance(row.op, str)),
        ("family", isinstance(row.family, str)),
        ("direction", row.direction in ("forward", "backward")),
        ("shape", row.shape and within(1, 1e18, (int,), *row.shape)),
        ("dtype", row.dtype in ("float16", "float32", "float64")),
        ("output", row.output in ("out", "fresh", "inplace")),
        ("threads", within(1, 1e6, (int,), row.threads)),
        ("elements", within(1, 1e18, (int,), row.elements)),
        ("nbytes", within(0, 1e18, (int,), row.nbytes)),  # none for a training step
        ("times", isinstance(row.times, dict) and within(1e-12, 1e9, (int, float), *row.times.values())),
        ("fresh", texts(row.fresh)),
        ("failed", isinstance(row.failed, dict) and texts(list(row.failed.values()))),
        ("left_out", texts(row.left_out)),
    ):
        if not good:
            return f"{name} cannot be {getattr(row, name)!r}"
    return ""


# --- HTML -------------------------------------------------------------------------------------------------------------

COLOURS = {
    "fastnn": "#d62728",
    "numpy": "#1f77b4",
    "scipy": "#17becf",
    "numexpr": "#8c564b",
    "numba": "#2ca02c",
    "torch": "#ff7f0e",
    "jax": "#9467bd",
    "onednn": "#7f7f7f",
    COPY: "#000000",
}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; }
td, th { padding: 2px 9px; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
.loss { color: #c00; font-weight: 600; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; } figcaption { font-weight: 600; }
svg text { font: 11px system-ui, sans-serif; fill: currentColor; }
.scroll { overflow-x: auto; }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd; } .loss { color: #f66; } }
"""


def save_html(path: Path, rows: list[Row], about: dict[str, Any]) -> None:
    """One page without any outside reference: summary, plots of time an element against size, roofline, tables."""
    result = summary(rows)
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>fastnn benchmarks</title><style>{_STYLE}</style><h1>fastnn benchmarks</h1>",
        f"<p>{html.escape(_about(about))}</p>",
    ]
    if result["compared"]:
        means = ", ".join(
            f"{value:.2f} times {name}" for name, value in result["peers"].items() if not math.isnan(value)
        )
        parts.append(
            f"<p>Geometric mean over {result['compared']} cells: {result['best peer']:.2f} times as fast as the best"
            f" peer of each cell ({html.escape(means)}). {result['losses']} cells are slower than"
            " their best peer.</p>"
        )
    parts.append(f"<p>{_legend(rows)}</p>")
    if any(row.fresh for row in rows):
        parts.append(f"<p>{MARKED}</p>")
    for group, members in groups(rows).items():
        parts.append(f"<h2>{html.escape(_title(*group))}</h2>")
        if group[0] == "activations":
            parts.append("<div class='plots'>" + "".join(_plots(members)) + "</div>")
        parts.append(roofline_svg(members))
        parts.append(_html_table(members))
    parts.append("</html>")
    path.write_text("\n".join(parts), encoding="utf-8")  # as the page says, whatever the locale


def _about(about: dict[str, Any]) -> str:
    machine = about.get("machine", {})
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items())
    return f"{machine.get('cpu', '')}, {machine.get('system', '')}; {versions}; measured {about.get('created', '')}"


def _legend(rows: list[Row]) -> str:
    names = dict.fromkeys(name for row in rows for name in row.times)
    return " ".join(f"<b style='color:{COLOURS.get(name, '#888')}'>■</b> {html.escape(name)}" for name in names)


def _html_table(members: list[Row]) -> str:
    names = list(dict.fromkeys(name for row in members for name in row.times if name != COPY))
    head = "".join(f"<th>{html.escape(name)}" for name in names)
    lines = [f"<div class='scroll'><table><tr><th><th>shape{head}<th>ratio to best peer<th>of copy speed"]
    for row in members:
        cells = "".join(
            f"<td>{duration(row.times[name]) if name in row.times else html.escape(row.failed.get(name, '')[:40])}"
            f"{row.mark(name)}"
            for name in names
        )
        ratio = row.ratio
        mark = " class='loss'" if ratio is not None and ratio < 1 else ""
        value = "" if ratio is None else f"{ratio:.2f}"
        lines.append(
            f"<tr><td>{html.escape(row.op)} {row.direction}<td>{shape_label(row.shape)}{cells}"
            f"<td{mark}>{value}<td>{_percent(row)}"
        )
    return "\n".join(lines) + "</table></div>"


class _Axes:
    """A small log-log plot as SVG."""

    def __init__(self, xs: list[float], ys: list[float], width: int = 350, height: int = 230) -> None:
        self.width, self.height = width, height
        self._x = self._range(xs)
        self._y = self._range(ys)
        self.parts: list[str] = []

    @staticmethod
    def _range(values: list[float]) -> tuple[float, float]:
        low, high = math.log10(min(values)), math.log10(max(values))
        return (low - 0.1, high + 0.1) if high - low > 0.2 else (low - 0.5, high + 0.5)

    def at(self, x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = self._x, self._y
        left = 46 + (self.width - 56) * (math.log10(x) - x0) / (x1 - x0)
        return left, self.height - 24 - (self.height - 34) * (math.log10(y) - y0) / (y1 - y0)

    def line(self, points: list[tuple[float, float]], colour: str, tip: str, dashed: bool = False) -> None:
        at = [self.at(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        dash = " stroke-dasharray='4 3'" if dashed else ""
        stroke = "currentColor" if colour == COLOURS[COPY] else colour
        self.parts.append(f"<polyline points='{path}' fill='none' stroke='{stroke}' stroke-width='1.6'{dash}/>")
        for (x, y), (size, value) in zip(at, points, strict=True):
            self.dot(x, y, stroke, f"{tip}: {value:.4g} at {size:g}")

    def dot(self, x: float, y: float, colour: str, tip: str, radius: float = 2.4) -> None:
        self.parts.append(
            f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius}' fill='{colour}'><title>{html.escape(tip)}</title></circle>"
        )

    def svg(self, x_label: str, y_label: str) -> str:
        grid = []
        for exponent in range(math.ceil(self._y[0]), math.floor(self._y[1]) + 1):
            _, y = self.at(10 ** self._x[0], 10.0**exponent)
            grid.append(f"<path d='M46 {y:.1f}H{self.width - 10}' stroke='#8884'/>")
            grid.append(f"<text x='42' y='{y + 4:.1f}' text-anchor='end'>{10.0**exponent:g}</text>")
        for exponent in range(math.ceil(self._x[0]), math.floor(self._x[1]) + 1):
            x, _ = self.at(10.0**exponent, 10 ** self._y[0])
            grid.append(f"<path d='M{x:.1f} 10V{self.height - 24}' stroke='#8882'/>")
            grid.append(f"<text x='{x:.1f}' y='{self.height - 10}' text-anchor='middle'>1e{exponent}</text>")
        labels = f"<text x='{self.width - 10}' y='{self.height}' text-anchor='end'>{x_label}</text>"
        labels += f"<text x='50' y='9'>{y_label}</text>"
        box = f"width='{self.width}' height='{self.height + 4}' viewBox='0 0 {self.width} {self.height + 4}'"
        return f"<svg {box}>{''.join(grid)}{''.join(self.parts)}{labels}</svg>"


def _plots(members: list[Row]) -> list[str]:
    result = []
    for op, direction in dict.fromkeys((row.op, row.direction) for row in members):
        rows = sorted((row for row in members if (row.op, row.direction) == (op, direction)), key=lambda r: r.elements)
        curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for row in rows:
            for name, seconds in row.times.items():
                curves[name].append((row.elements, seconds / row.elements * 1e9))
        if not curves:
            continue
        points = [point for curve in curves.values() for point in curve]
        axes = _Axes([x for x, _ in points], [y for _, y in points])
        for name, curve in curves.items():
            axes.line(curve, COLOURS.get(name, "#888"), name, dashed=name == COPY)
        figure = axes.svg("elements", "ns an element")
        result.append(f"<figure><figcaption>{html.escape(op)} {direction}</figcaption>{figure}</figure>")
    return result


def roofline_svg(members: list[Row]) -> str:
    """Bytes a second that each cell moves, over its size; the dashed line is what the non-temporal copy reaches."""
    rows = [row for row in members if row.memory_bound and "fastnn" in row.times]
    if not rows:
        return ""
    limit: dict[int, float] = {}
    for row in rows:
        rate = row.nbytes / (row.memory_bound or 1) / 1e9
        limit[row.nbytes] = max(limit.get(row.nbytes, 0), rate)
    speeds = [(row, row.nbytes / row.times["fastnn"] / 1e9) for row in rows]
    ys = [*limit.values(), *[speed for _, speed in speeds]]
    axes = _Axes([row.nbytes for row in rows], ys, 720, 300)
    axes.line(sorted((float(size), rate) for size, rate in limit.items()), COLOURS[COPY], "copy", dashed=True)
    for row, speed in speeds:
        x, y = axes.at(row.nbytes, speed)
        colour = "#1f77b4" if row.direction == "forward" else "#ff7f0e"
        axes.dot(x, y, colour, f"{row.op} {row.direction} {shape_label(row.shape)}: {speed:.3g} GB/s", 3.2)
    caption = "Roofline: memory traffic of fastnn (blue forward, orange backward) and of a non-temporal copy (dashed)"
    return f"<figure><figcaption>{caption}</figcaption>{axes.svg('bytes moved', 'GB/s')}</figure>"
