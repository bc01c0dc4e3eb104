"""``python -m fastnn verify``: accuracy and reproducibility of the installed build on this machine."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np

from fastnn import runtime
from fastnn._table import ACTIVATIONS, Activation
from fastnn.bench import checks, oracle, properties
from fastnn.bench.console import Progress, print_table, progress

HALF_LIMIT = 0.51  # ULP, forward and backward: computed in float32, rounded once; the table has the others
SAMPLE = 1 << 22  # float32 inputs a function and direction without --full


@dataclass
class Line:
    """A line of the table: one function, direction and dtype, with its worst error on each level."""

    name: str
    direction: str
    dtype: str
    limit: float
    worst: dict[str, float] = field(default_factory=dict)
    at: float = float("nan")
    inputs: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, level: str, error: float, at: float) -> None:
        if error > max(self.worst.values(), default=-1.0):
            self.at = at
        self.worst[level] = max(self.worst.get(level, 0.0), error)

    def conclude(self) -> None:
        """Turn errors beyond the limit into a problem, one for all levels."""
        over = [f"{error:.3g} on {level}" for level, error in self.worst.items() if error > self.limit]
        if over:
            self.problems.insert(0, f"error in ULP {', '.join(over)}; limit {self.limit}; worst at {self.at!r}")

    @property
    def ok(self) -> bool:
        return not self.problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Check every kernel of this installation on every instruction-set level of this machine: largest error in ULP, "
        "special values, monotonicity, and that levels, threads, offsets and pieces give the same bits."
    )
    parser.add_argument(
        "--full", action="store_true", help="all 2**32 float32 inputs of every function: hours, not seconds"
    )
    parser.add_argument(
        "--only", action="append", metavar="OP", help="a function, or activations or normalization; may be repeated"
    )
    parser.add_argument(
        "--dtype",
        action="append",
        choices=("float16", "float32", "float64"),
        help="only this dtype of the elementwise functions; may be repeated",
    )
    parser.add_argument(
        "--direction", choices=("forward", "backward"), help="only this direction of the elementwise functions"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as the documentation shows it")


def check_accuracy(row: Activation, direction: str, dtype: str, full: bool, step: Callable[[float], None]) -> Line:
    """The largest error of one function over its inputs, on every level, and whether it is monotone."""
    limits = {"float16": (HALF_LIMIT, HALF_LIMIT), "float32": row.bound32, "float64": row.bound64}[dtype]
    line = Line(row.name, direction, dtype, limits[direction == "backward"])
    levels = runtime.available_isas()
    zero = oracle.interior_zero(row) if direction == "backward" else None
    if dtype == "float64":
        saved = oracle.float64_sample(row, direction, 80_000 if full else 800)
        high, low = oracle.exact_mpmath(row, direction, saved)
        line.inputs = saved.size
        for level, result in checks.check_levels(row, direction, levels, saved, high, low, zero).items():
            line.add(level, result.error, result.at)
        step(1.0)
        line.conclude()
        return line
    top = oracle.infinity_key(dtype)
    exhaustive = (full and dtype == "float32") or dtype == "float16"
    plan = list(oracle.chunks(dtype, exhaustive, SAMPLE))
    last: dict[str, float] = {}
    drops: dict[str, float] = {}

    def work(chunk: tuple[int, int, int]) -> tuple[int, dict[str, checks.ChunkResult]]:
        saved = oracle.ordered(oracle.keys_of(chunk, exhaustive), dtype)
        exact = oracle.exact_float64(row, direction, saved)
        return saved.size, checks.check_levels(row, direction, levels, saved, exact, None, zero)

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for size, results in _ordered_map(pool, work, plan, 2 * workers):
            line.inputs += size
            for level, result in results.items():
                line.add(level, result.error, result.at)
                falls = result.falls_at
                if falls is None and result.first < last.get(level, -np.inf) and row.name in checks.MONOTONE:
                    falls = result.at
                if falls is not None and direction == "forward":
                    drops.setdefault(level, falls)
                last[level] = result.last
            step(size / (2 * top + 1) if exhaustive else 1.0 / len(plan))
    if drops:
        line.problems.append("not monotone at " + ", ".join(f"{at!r} on {level}" for level, at in drops.items()))
    line.conclude()
    return line


def _ordered_map(pool: ThreadPoolExecutor, work: Callable, items: Iterable, ahead: int) -> Iterable:
    """Results in order, with a bounded number of chunks in memory."""
    source = iter(items)
    waiting = [pool.submit(work, item) for item in islice(source, ahead)]
    while waiting:
        result = waiting.pop(0).result()
        waiting += [pool.submit(work, item) for item in islice(source, 1)]
        yield result


def _advance(bar: Progress, weight: float, label: str, part: float) -> None:
    bar.advance(part * weight, label)


def check_all(args: argparse.Namespace, lines: list[Line], outcomes: list[checks.Outcome]) -> None:
    """Append what is found as it is found, so that it is there after a KeyboardInterrupt too."""
    only, levels = set(args.only or ()), runtime.available_isas()
    dtypes = args.dtype or ("float32", "float64", "float16")
    directions = (args.direction,) if args.direction else ("forward", "backward")
    rows = [row for row in ACTIVATIONS if not only or row.name in only or row.function in only or "activations" in only]
    tasks = [
        (row, direction, dtype)
        for dtype in dtypes
        for row in rows
        for direction in directions
        if dtype != "float64" or oracle.HAVE_MPMATH
    ]
    others = [check for check in properties.CHECKS if not only or only & {check[0], check[1]}]
    weight = {"float16": 0.2, "float32": 400.0 if args.full else 1.0, "float64": 8.0 if args.full else 0.8}
    total = sum(weight[dtype] for _, _, dtype in tasks) + 0.7 * len(rows) + 0.5 * len(others)
    with progress("verify", total) as bar:
        for row, direction, dtype in tasks:
            advance = partial(_advance, bar, weight[dtype], f"{row.name} {direction} {dtype}")
            line = check_accuracy(row, direction, dtype, args.full, advance)
            line.problems += checks.special_values(row, direction, dtype, levels)
            lines.append(line)
        for row in rows:
            outcomes += checks.same_bits(row, directions, [d for d in dtypes if d != "float16"], levels)
            bar.advance(0.7, f"{row.name} bits")
        for name, _, check in others:
            try:
                outcomes += check(levels)
            except Exception as error:  # one that cannot even run must not hide the verdict on the others
                outcomes.append(checks.Outcome(name, "runs", False, f"{type(error).__name__}: {error}"))
            bar.advance(0.5, name)


def run(args: argparse.Namespace) -> int:
    """Check, print, and return 0 where everything holds, 1 where not, 2 for an unknown name, 130 after Ctrl-C."""
    known = {row.name for row in ACTIVATIONS} | {row.function for row in ACTIVATIONS} | {"activations"}
    known |= {word for name, family, _ in properties.CHECKS for word in (name, family)}
    unknown = sorted(set(args.only or ()) - known)
    if unknown:
        print(
            f"fastnn verify: nothing is called {', '.join(unknown)}; there are {', '.join(sorted(known))}",
            file=sys.stderr,
        )
        return 2
    start = time.monotonic()
    lines: list[Line] = []
    outcomes: list[checks.Outcome] = []
    interrupted = False
    try:
        with np.errstate(all="ignore"):
            check_all(args, lines, outcomes)
    except KeyboardInterrupt:
        interrupted = True
    _report(lines, outcomes, args.markdown)
    if not oracle.HAVE_MPMATH and (lines or not args.only) and "float64" in (args.dtype or ("float64",)):
        print("float64 was not measured: that needs mpmath (pip install mpmath).")
    failed = [line for line in lines if not line.ok] + [outcome for outcome in outcomes if not outcome.ok]
    for line in lines:
        for problem in line.problems:
            print(f"FAILED {line.name} {line.direction} {line.dtype}: {problem}")
    for text in dict.fromkeys(f"{o.name}: {o.check}: {o.detail}" for o in outcomes if not o.ok):
        print(f"FAILED {text}")
    checked = f"{len(lines)} functions and {len(outcomes)} other properties in {time.monotonic() - start:.0f} s"
    verdict = "FAILED" if failed else "Interrupted" if interrupted else "All is well"
    print(f"{verdict}: {checked}, {len(failed)} failed.")
    return 130 if interrupted else 1 if failed else 0


def _report(lines: list[Line], outcomes: list[checks.Outcome], markdown: bool) -> None:
    levels = runtime.available_isas()
    columns = [
        "function",
        "dtype",
        *[f"ULP {level}" for level in levels],
        "limit",
        "worst at",
        "inputs",
        "holds",
    ]
    body = [
        [
            f"{line.name} {line.direction}",
            line.dtype,
            *[
                _marked(f"{line.worst.get(level, 0):.3f}", line.worst.get(level, 0) > line.limit, markdown)
                for level in levels
            ],
            f"{line.limit:g}",
            f"{line.at:.6g}",
            _count(line.inputs),
            _marked("ok" if line.ok else "failed", not line.ok, markdown),
        ]
        for line in lines
    ]
    rest = _properties(outcomes, markdown)
    if markdown:
        for head, table in ((columns, body), (["property", "functions", "measured", "holds"], rest)):
            print("|", " | ".join(head), "|\n|" + "---|" * len(head))
            for cells in table:
                print("|", " | ".join(cells), "|")
            print()
        return
    if body:
        print_table("Largest error, in units in the last place of the exact result", columns, body)
    if rest:
        print_table("Other properties", ["property", "functions", "measured", "holds"], rest)


def _properties(outcomes: list[checks.Outcome], markdown: bool) -> list[list[str]]:
    """A line a property with what it holds for; measurements and failures on lines of their own."""
    grouped: dict[tuple[str, str], list[str]] = {}
    failed = {(outcome.check, outcome.name) for outcome in outcomes if not outcome.ok}
    for outcome in outcomes:
        bad = (outcome.check, outcome.name) in failed
        if outcome.ok and bad:
            continue
        names = grouped.setdefault((outcome.check, outcome.detail), [])
        if outcome.name not in names:
            names.append(outcome.name)
    result = []
    for (check, detail), names in sorted(grouped.items()):
        functions = f"all {len(names)}" if len(names) > 8 else ", ".join(names)
        bad = any((check, name) in failed for name in names)
        result.append([check, functions, detail[:90], _marked("failed" if bad else "yes", bad, markdown)])
    return result


def _marked(text: str, bad: bool, markdown: bool) -> str:
    if not bad:
        return text
    return f"**{text}**" if markdown else f"[red]{text}[/red]"


def _count(n: int) -> str:
    return f"2^32 - {2**32 - n}" if 2**32 - n < 2**25 and n < 2**32 else str(n)
