"""``python -m fastnn lecture``: run the experiments, print what they found, write the report."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastnn import _terminal, runtime
from fastnn._table import ACTIVATIONS
from fastnn.lecture import experiments
from fastnn.lecture.backend import BACKENDS
from fastnn.lecture.data import Data, cifar10, digits
from fastnn.lecture.errors import LectureError
from fastnn.lecture.experiment import Context, Result

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

ACTIVATION_NAMES = tuple(row.name for row in ACTIVATIONS if not row.public)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--only",
        action="append",
        choices=experiments.NAMES,
        metavar="NAME",
        help=f"run this experiment only, can be given several times: {', '.join(experiments.NAMES)}",
    )
    parser.add_argument(
        "--backend",
        choices=(*BACKENDS, "both"),
        default="fastnn",
        help="the compiled kernels (default), their NumPy twin, or both; speed always compares the two",
    )
    parser.add_argument(
        "--cifar10", metavar="DIR", help="use CIFAR-10 from its Python batch files instead of the digits"
    )
    parser.add_argument("--quick", action="store_true", help="smaller settings: a few seconds instead of half a minute")
    parser.add_argument("--seed", type=_seed, default=0, help="seed of everything that is random (default 0)")
    parser.add_argument(
        "--activations",
        type=_activations,
        default=(),
        metavar="NAMES",
        help="show more functions in the first experiment: names separated by commas, or 'all'",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("fastnn-lecture"), metavar="DIR", help="folder of the report (fastnn-lecture)"
    )


def run(args: argparse.Namespace) -> int:
    """Run what was asked for: 0 when it is done, 2 for what the user can put right, 130 after Ctrl-C."""
    try:
        _require_extras(args)
        _prepare(args.out)
        data = cifar10(args.cifar10, args.seed) if args.cifar10 else digits(args.seed)
        return _run(args, data)
    except LectureError as error:
        print(f"fastnn lecture: {error}", file=sys.stderr)
        return 2


def _seed(text: str) -> int:
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if seed < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: give an integer from 0 on")
    return seed


def _activations(text: str) -> tuple[str, ...]:
    names = ACTIVATION_NAMES if text == "all" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in ACTIVATION_NAMES:
            raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(ACTIVATION_NAMES)}")
    return names


def _require_extras(args: argparse.Namespace) -> None:
    needed = {"rich": "rich", "matplotlib": "matplotlib"}
    if not args.cifar10:
        needed["sklearn"] = "scikit-learn"
    errors = {}
    for module, name in needed.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            errors[name] = error
    if errors:
        why = "; ".join(map(str, errors.values()))
        raise LectureError(f"the lecture needs more ({why}); install it with: pip install {' '.join(errors)}")


def _prepare(folder: Path) -> None:
    """Make the folder of the report and see that files can be written there, before any work is done."""
    probe = folder / ".fastnn-lecture-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise LectureError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out") from error


def _run(args: argparse.Namespace, data: Data) -> int:
    from fastnn.lecture import report

    names = [name for name in experiments.NAMES if not args.only or name in args.only]
    tested = list(BACKENDS) if args.backend == "both" else [args.backend]
    context = Context(
        BACKENDS[tested[0]], data, args.seed, args.quick, activations=tuple(dict.fromkeys(args.activations))
    )
    facts = report.Facts(_command(args), f"{data.name}, {_counts(data)}", len(names), _machine())
    console = _terminal.console(highlight=False)
    groups: list[list[Result]] = []
    with _single_threaded_blas():
        try:
            with _progress_bar(console) as progress:
                for name in names:
                    group = []
                    # speed compares the backends itself
                    for backend in tested[:1] if name == "speed" else tested:
                        bar = _Bar(progress, f"{name} on {backend}" if len(tested) > 1 else name)
                        result = experiments.run(name, replace(context, backend=BACKENDS[backend], progress=bar))
                        bar.close()
                        group.append(result)
                        _print(console, result, len(tested) > 1)
                    groups.append(group)
                    report.write(args.out, groups, facts)
        except KeyboardInterrupt:
            return _interrupted(args.out, groups, facts)
    held = sum(all(result.held for result in group) for group in groups)
    seconds = sum(result.seconds for group in groups for result in group)
    console.print(
        f"[bold]{held} of {len(groups)} claims held[/bold], {seconds:.0f} s. Report: {args.out / report.REPORT}"
    )
    return 0


def _interrupted(folder: Path, groups: list[list[Result]], facts: Any) -> int:
    from fastnn.lecture import report

    if groups:
        path = report.write(folder, groups, replace(facts, interrupted=True))
        print(f"interrupted; {path} holds the {len(groups)} finished of {facts.total} experiments", file=sys.stderr)
    else:
        print("interrupted before the first experiment was finished; no report", file=sys.stderr)
    return 130


@contextlib.contextmanager
def _single_threaded_blas() -> Iterator[None]:
    """One BLAS thread: the matrices are small, and threads that wait for each other would cost more than they bring."""
    try:
        from threadpoolctl import threadpool_limits  # comes with scikit-learn
    except ImportError:
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield


def _progress_bar(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True, refresh_per_second=4)


class _Bar:
    """The progress bar of one experiment."""

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress, self.name = progress, name
        self.task = progress.add_task(name, total=1)

    def start(self, total: int) -> None:
        self.progress.update(self.task, total=total, completed=0)

    def working_on(self, what: str) -> None:
        self.progress.update(self.task, description=f"{self.name}: {what}")

    def advance(self) -> None:
        self.progress.advance(self.task)

    def close(self) -> None:
        self.progress.remove_task(self.task)


def _print(console: Console, result: Result, several: bool) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    console.rule(f"[bold]{escape(result.title)}[/bold]" + (f" on {result.backend}" if several else ""), align="left")
    console.print(Text(result.claim, style="italic"))
    layout: dict[str, Any] = {"show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}
    for shown in result.tables:
        table = Table(title=shown.title, title_justify="left", title_style="bold", box=box.SIMPLE, **layout)
        for i, column in enumerate(shown.columns):
            table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for row in shown.rows:
            table.add_row(*map(escape, row))
        console.print(table)
        console.print(Text(shown.note + "\n" if shown.note else "", style="dim"))
    for check in result.checks:
        mark = "[green]✓[/green]" if check.held else "[red]✗[/red]"
        console.print(f"{mark} {escape(check.expected)}: [bold]{escape(check.measured)}[/bold]")
    color = "green" if result.held else "red"
    console.print(f"[{color} bold]{escape(result.verdict)}[/{color} bold] ({result.seconds:.1f} s)\n")


def _counts(data: Data) -> str:
    height, width, channels = data.image_shape
    return f"{len(data.x)} training and {len(data.test_x)} test images of {height} x {width} x {channels}"


def _command(args: argparse.Namespace) -> str:
    """The options that decide what the report says."""
    words = ["python -m fastnn lecture"]
    words += [f"--only {name}" for name in args.only or ()]
    if args.backend != "fastnn":
        words.append(f"--backend {args.backend}")
    if args.cifar10:
        words.append(f"--cifar10 {args.cifar10}")
    if args.activations:
        words.append(f"--activations {','.join(args.activations)}")
    words += ["--quick"] * args.quick
    words.append(f"--seed {args.seed}")
    return " ".join(words)


def _machine() -> dict[str, str]:
    """Machine and versions, as far as they decide the numbers."""
    facts = {name: ", ".join(v) if isinstance(v, tuple) else str(v) for name, v in runtime.info().items()}
    for package in ("scikit-learn", "matplotlib"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            facts[package] = metadata.version(package)
    facts["date"] = time.strftime("%Y-%m-%d %H:%M %Z")
    return facts
