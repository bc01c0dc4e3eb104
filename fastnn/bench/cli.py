"""``python -m fastnn bench``: fastnn against every peer that is installed."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

import fastnn
from fastnn.bench import report
from fastnn.bench.cases import Case, cases
from fastnn.bench.console import progress
from fastnn.bench.peers import PEERS
from fastnn.bench.runner import Plan, Row, Runner, machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Time fastnn against every installed peer: same arrays, results checked against the float64 reference first, "
        "interleaved rounds, best of many. Ratios above 1 mean that fastnn is faster; losses are red."
    )
    parser.add_argument("--quick", action="store_true", help="a few sizes of everything, in less than a minute")
    parser.add_argument(
        "--only",
        action="append",
        metavar="OP",
        help="an operation, or activations, normalization or networks; may be repeated",
    )
    parser.add_argument("--peer", action="append", choices=sorted(PEERS), help="compare with this one; may be repeated")
    parser.add_argument("--direction", choices=("forward", "backward"), help="only this direction")
    parser.add_argument(
        "--dtype",
        action="append",
        choices=("float16", "float32", "float64"),
        help="may be repeated; default: float32 and float64, with --quick float32",
    )
    parser.add_argument(
        "--threads",
        action="append",
        type=_count,
        metavar="N",
        help="may be repeated; default: 1 and all, with --quick 1",
    )
    parser.add_argument(
        "--output",
        action="append",
        choices=("out", "fresh", "inplace"),
        help="where results go: a preallocated array (out), a fresh one or over the input; may be repeated; "
        "default: out and fresh, with --quick out",
    )
    parser.add_argument("--max-elements", type=_count, metavar="N", help="leave out larger arrays")
    parser.add_argument("--budget", type=_seconds, metavar="S", help="seconds for each peer in each cell")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots and tables")
    parser.add_argument(
        "--load",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="report saved measurements, measure nothing: only --json and --html go with it",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return number


def _nothing_to_measure(args: argparse.Namespace) -> None:
    """Raise ValueError for options beside --load that would choose what to measure: files are reported as they are."""
    names = ("quick", "only", "peer", "direction", "dtype", "threads", "output", "max_elements", "budget")
    given = ", ".join("--" + name.replace("_", "-") for name in names if getattr(args, name))
    if given:
        raise ValueError(f"--load reports files as they are; {given} cannot go with it")


def plan_from(args: argparse.Namespace) -> Plan:
    dtypes = tuple(args.dtype or (("float32",) if args.quick else ("float32", "float64")))
    outputs = tuple(args.output or (("out",) if args.quick else ("out", "fresh")))
    selected = cases(args.quick, args.only, dtypes, outputs, args.max_elements)
    if args.direction:
        selected = [case for case in selected if case.direction == args.direction]
    if not selected:
        raise ValueError("nothing to measure: no case has the direction, sizes and outputs that were asked for")
    # neighbours share their arrays
    selected.sort(key=lambda case: (case.op.kind != "map", case.shape if case.op.kind == "map" else (), case.dtype))
    most = fastnn.runtime.num_threads()
    threads = args.threads or ([1] if args.quick or most == 1 else [1, most])
    for number in threads:
        with fastnn.runtime.threads(number):
            granted = fastnn.runtime.num_threads()
        if granted != number:
            raise ValueError(f"--threads {number}: this build takes {granted} at most")
    budget = args.budget or (0.012 if args.quick else 0.25)
    return Plan(selected, list(dict.fromkeys(threads)), budget, 12 if args.quick else 40)


def choose_peers(args: argparse.Namespace) -> list[str]:
    if args.peer:
        return list(dict.fromkeys(args.peer))
    return [name for name, peer in PEERS.items() if not (args.quick and peer.slow_to_compile)]


def _weight(case: Case, plan: Plan) -> float:
    """Expected work of a cell: the timing budget, plus what preparing and single slow calls of large arrays take."""
    return plan.budget + 0.02 + case.elements * 1e-8


def measure(runner: Runner, plan: Plan, rows: list[Row]) -> None:
    """Append the row of each cell as it is measured, so that they are there after a KeyboardInterrupt too."""
    total = sum(_weight(case, plan) for case in plan.cases) * len(plan.threads)
    with progress("bench", total) as bar:
        for threads in plan.threads:
            runner.set_threads(threads)
            for case in plan.cases:
                rows.append(runner.measure(case, threads, plan.budget, plan.rounds))
                bar.advance(_weight(case, plan), f"{case.label}, {threads} thread{'s' * (threads > 1)}")


def run(args: argparse.Namespace, module: ModuleType | None = None) -> int:
    """Measure or load, report, and return the exit code.

    0 also where fastnn loses; 1 where it computes wrongly or a file could not be written; 2 for what the user can put
    right; 130 after Ctrl-C, when what was measured by then is reported and written.
    """
    rows: list[Row] = []
    interrupted = False
    try:
        if args.json and args.html and args.json.resolve() == args.html.resolve():
            raise ValueError(f"--json and --html are the same file, {args.json}; give each its own")
        for path in filter(None, (args.json, args.html)):
            report.check_writable(path)
        if args.load:
            _nothing_to_measure(args)
            rows, about = report.load_json(args.load)
        else:
            plan = plan_from(args)
    except (OSError, ValueError) as error:
        print(f"fastnn bench: {error}", file=sys.stderr)
        return 2
    if not args.load:
        with Runner(choose_peers(args), module) as runner:
            try:
                measure(runner, plan, rows)
            except KeyboardInterrupt:
                interrupted = True
                cells = len(plan.cases) * len(plan.threads)
                print(f"interrupted; {len(rows)} of {cells} cells are measured", file=sys.stderr)
                if not rows:
                    return 130
        created = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        about = {"machine": machine(), "versions": runner.versions, "missing": runner.missing, "created": created}
    # Saved first: what is printed may go to a reader who leaves early (| head).
    written, not_written = [], []
    for path, save in ((args.json, report.save_json), (args.html, report.save_html)):
        if path:
            try:
                save(path, rows, about)
                written.append(path)
            except OSError as error:
                not_written.append(f"{path} was not written: {error.strerror or error}")
    report.print_tables(rows)
    report.print_summary(rows, about)
    for path in written:
        print(f"Written: {path}")
    for message in not_written:
        print(f"fastnn bench: {message}", file=sys.stderr)
    if interrupted:
        return 130
    return 1 if not_written or any("fastnn" in row.failed for row in rows) else 0
