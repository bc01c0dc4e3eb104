"""Write measured tables and plots into the documentation.

    python -m fastnn bench --json bench.json
    python benchmarks/document.py performance bench.json
    python benchmarks/document.py elsewhere bench.json
    python benchmarks/document.py accuracy [TABLE ...]

The first fills docs/performance.md, benchmarks/README.md and README.md between their markers and draws docs/images; the
second takes the means of a run on another machine into docs/performance.md; the third runs ``python -m fastnn verify``
for docs/accuracy.md and README.md and measures the peers' errors on the same inputs. The TABLEs are what
``verify --full --markdown`` printed, for one function or many: their lines replace those of the sampled inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib import pyplot as plt

from fastnn._table import ACTIVATIONS
from fastnn.bench import checks, oracle, report, verify
from fastnn.bench.cases import BY_NAME, Case, shape_label
from fastnn.bench.peers import Peer
from fastnn.bench.runner import COPY, MATMUL, Row, Runner

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
LAYOUTS = ("oneDNN channels first", "oneDNN channels last")
PEER_NAMES = {"torch": "PyTorch", "onednn": "oneDNN", "numpy": "NumPy", "jax": "JAX", "numba": "numba"}
SHOWN = ("relu", "sigmoid", "tanh", "gelu", "silu", "softplus", "mish", "elu")


def fill(path: Path, name: str, text: str) -> None:
    """Replace what stands between <!-- begin NAME --> and <!-- end NAME -->."""
    content = path.read_text()
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.S)
    if not pattern.search(content):
        raise SystemExit(f"{path} has no markers for {name}")
    path.write_text(pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", content))


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def times(value: float | None) -> str:
    if value is None or np.isnan(value):
        return ""
    return f"**{value:.2f}**" if value < 1 else f"{value:.2f}"


# --- performance ------------------------------------------------------------------------------------------------------


def means(rows: list[Row], names: tuple[str, ...] = tuple(PEER_NAMES)) -> str:
    """Geometric means for each family, dtype, number of threads and kind of output; losses counted."""
    body = []
    for group, members in sorted(report.groups(rows).items()):
        result = report.summary(members)
        if result["compared"]:
            values = [times(result["peers"].get(name)) for name in names]
            counts = f"{result['losses']} of {result['compared']}"
            body.append([*map(str, group), times(result["best peer"]), *values, counts])
    peers = [PEER_NAMES[name] for name in names]
    return table(["", "dtype", "threads", "output", "best peer", *peers, "lost cells"], body)


def in_short(rows: list[Row]) -> str:
    """For the README."""
    short = means([row for row in rows if row.threads == 1 and row.output == "out"], ("torch", "onednn", "numpy"))
    return f"How many times as fast as each:\n\n{short}\n\n![Against each library, by size](docs/images/summary.png)"


def elementwise(rows: list[Row], dtype: str, threads: int) -> str:
    """Nanoseconds an element and ratio to the best peer, a column a size."""
    members = [r for r in rows if r.output == "out" and r.dtype == dtype and r.threads == threads and len(r.shape) == 1]
    sizes = sorted({row.shape for row in members})
    cells = {(row.op, row.direction, row.shape): row for row in members}
    body = []
    for op, direction in dict.fromkeys((row.op, row.direction) for row in members):
        line = [f"{op} {direction}"]
        for size in sizes:
            row = cells.get((op, direction, size))
            if row is None or "fastnn" not in row.times:
                line.append("")
            else:
                each = f"{row.times['fastnn'] / row.elements * 1e9:.3g}"
                line.append(f"{each} ({times(row.ratio)} {row.best_label})")
        body.append(line)
    return table(["ns an element (times faster than)", *map(shape_label, sizes)], body)


def shaped(rows: list[Row], dtype: str) -> str:
    """Softmax and its kin and the normalizations: a line a shape, one and more threads side by side."""
    members = [row for row in rows if row.dtype == dtype and len(row.shape) > 1 and row.family != "networks"]
    lines: dict[tuple[str, str, tuple[int, ...]], dict[int, Row]] = defaultdict(dict)
    for row in members:
        lines[row.op, row.direction, row.shape][row.threads] = row
    counts = sorted({row.threads for row in members})
    body = []
    for (op, direction, shape), found in lines.items():
        line = [f"{op} {direction}", shape_label(shape)]
        for count in counts:
            row = found.get(count)
            if row is None or "fastnn" not in row.times:
                line += ["", "", ""]
                continue
            share = f"{row.memory_bound / row.times['fastnn']:.0%}" if row.memory_bound else ""
            line += [
                f"{report.duration(row.times['fastnn'])} ({times(row.ratio)} {row.best_label})",
                times(row.against("torch")) + row.mark("torch"),
                share,
            ]
        body.append(line)
    heads = [h for n in counts for h in (f"{n} thread{'s' * (n > 1)} (times faster than)", "PyTorch", "of copy speed")]
    return table(["", "shape", *heads], body)


def worst(rows: list[Row]) -> str:
    losses = sorted((r for r in rows if r.ratio is not None and r.ratio < 1), key=lambda r: r.ratio or 0)
    if not losses:
        return "No cell is slower than its best peer."
    body = [
        [
            f"{row.op} {row.direction}",
            shape_label(row.shape),
            row.dtype,
            str(row.threads),
            row.output,
            report.duration(row.times["fastnn"]),
            f"{row.best_label} {report.duration(row.peers[row.best_peer or ''])}",
            times(row.ratio),
        ]
        for row in losses
    ]
    return table(["", "shape", "dtype", "threads", "output", "fastnn", "best peer", "ratio"], body)


def steps(rows: list[Row]) -> str:
    """Training steps: every contestant's time, the matrix products alone among them."""
    members = [row for row in rows if row.op == "training_step"]
    names = ["fastnn", "numpy", "torch", "jax", MATMUL]
    body = [
        [
            "-".join(map(str, row.shape)),
            row.dtype,
            str(row.threads),
            *[report.duration(row.times[name]) if name in row.times else "" for name in names],
            times(row.against("torch")),
            times(row.against("numpy")),
        ]
        for row in members
    ]
    heads = ["fastnn", "NumPy", "PyTorch eager", "JAX, jitted", "matrix products alone"]
    ratios = ["times as fast as PyTorch", "as NumPy"]
    return table(["network, batch 64", "dtype", "threads", *heads, *ratios], body)


def layouts(rows: list[Row]) -> str:
    """Batch norm of images against oneDNN in the better of its two layouts, which need not be the array's own."""
    times_of: dict[tuple[tuple[int, ...], str, int], dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row.dtype != "float32" or "onednn" not in row.times or row.op not in ("batch_norm", "batch_norm_last"):
            continue
        first = row.shape if row.op == "batch_norm" else (row.shape[0], row.shape[-1], *row.shape[1:-1])
        cell = times_of[first, row.direction, row.threads]
        cell["oneDNN channels " + ("first" if row.op == "batch_norm" else "last")] = row.times["onednn"]
        if row.op == "batch_norm":
            cell["fastnn"] = row.times["fastnn"]
    body, ratios = [], []
    for (shape, direction, threads), cell in times_of.items():
        if "fastnn" not in cell:
            continue
        ours, theirs = cell.pop("fastnn"), cell
        ratios.append(min(theirs.values()) / ours)
        values = [report.duration(theirs[key]) if key in theirs else "" for key in LAYOUTS]
        body.append(
            [f"{direction} {shape_label(shape)}", str(threads), report.duration(ours), *values, times(ratios[-1])]
        )
    body.append(["geometric mean", "", "", "", "", times(report.geometric_mean(ratios))])
    return table(["batch_norm", "threads", "fastnn, channels first", *LAYOUTS, "times faster than the better"], body)


def largest(rows: list[Row], output: str) -> list[Row]:
    return [
        row
        for row in rows
        if (row.elements, row.dtype, row.output) == (64 << 20, "float32", output) and "fastnn" in row.times
    ]


def copy_speed(rows: list[Row]) -> str:
    """The largest arrays against a copy that moves as many bytes: the parts of its speed that fastnn reaches."""
    parts: dict[str, dict[tuple[str, int], str]] = defaultdict(dict)
    for row in largest(rows, "out"):
        if row.memory_bound:
            parts[row.op][row.direction, row.threads] = f"{row.memory_bound / row.times['fastnn']:.0%}"
    columns = sorted({c for cells in parts.values() for c in cells}, key=lambda c: (c[0] != "forward", c[1]))
    heads = [f"{direction}, {threads} thread{'s' * (threads > 1)}" for direction, threads in columns]
    return table(["", *heads], [[op, *[cells.get(column, "") for column in columns]] for op, cells in parts.items()])


def fresh(rows: list[Row]) -> str:
    """The largest arrays with a fresh result: page faults included."""
    body = [
        [
            f"{row.op} {row.direction}",
            str(row.threads),
            f"{row.times['fastnn'] / row.elements * 1e9:.3g}",
            *[f"{row.times[n] / row.elements * 1e9:.3g}" if n in row.times else "" for n in ("torch", "numpy", "jax")],
            times(row.against("torch")),
        ]
        for row in largest(rows, "fresh")
    ]
    heads = ["threads", "fastnn, ns an element", "PyTorch", "NumPy", "JAX", "times as fast as PyTorch"]
    return table(["float32, 64Mi, fresh result", *heads], body)


def scaling(rows: list[Row]) -> str:
    """How much more threads help, by size."""
    cells = {row.key: row for row in rows}
    most = max((row.threads for row in rows), default=1)
    sizes = sorted({row.shape for row in rows if len(row.shape) == 1 and row.elements >= 16 << 10})
    body = []
    for op in SHOWN:
        line = [op]
        for size in sizes:
            one, many = (cells.get((op, "forward", size, "float32", "out", n)) for n in (1, most))
            both = one and many and "fastnn" in one.times and "fastnn" in many.times
            line.append(f"{one.times['fastnn'] / many.times['fastnn']:.2f}" if both and one and many else "")
        body.append(line)
    return table([f"float32 forward, {most} threads against 1", *map(shape_label, sizes)], body)


def plot_summary(rows: list[Row]) -> None:
    """For the README: geometric means against each peer, by size."""
    groups = [
        ("1 element", 1, 1),
        ("1000", 1000, 1000),
        ("16Ki to 256Ki", 16 << 10, 256 << 10),
        ("4Mi to 64Mi", 4 << 20, 64 << 20),
    ]
    names = ("torch", "onednn", "numpy", "jax", "numba", "numexpr")
    figure, axis = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for i, name in enumerate(names):
        values = []
        for _, low, high in groups:
            members = [r for r in rows if len(r.shape) == 1 and low <= r.elements <= high and r.threads == 1]
            ratios = [
                ratio for r in members if r.dtype == "float32" and r.output == "out" and (ratio := r.against(name))
            ]
            values.append(report.geometric_mean(ratios))
        x = np.arange(len(groups)) + (i - 2.5) * 0.13
        bars = axis.bar(x, values, 0.12, color=report.COLOURS[name], label=name)
        axis.bar_label(bars, [f"{v:.1f}" if np.isfinite(v) else "" for v in values], fontsize=7)
    axis.axhline(1, color="black", linewidth=1)
    axis.set_yscale("log")
    axis.set_xticks(range(len(groups)), [label for label, _, _ in groups])
    axis.set_ylabel("times as fast")
    axis.set_title("fastnn against each library: activations, forward and backward, float32, one thread", fontsize=10)
    axis.legend(ncols=6, frameon=False, fontsize=8, loc="upper right")
    axis.margins(y=0.25)
    save(figure, "summary.png")


def plot_sizes(rows: list[Row], threads: int) -> None:
    """Time an element against size for well-known functions, forward and backward."""
    for direction in ("forward", "backward"):
        figure, axes = plt.subplots(2, 4, figsize=(13, 5.6), sharex=True, layout="constrained")
        for axis, op in zip(axes.flat, SHOWN, strict=True):
            members = [
                r for r in rows if (r.op, r.direction, r.dtype, r.threads) == (op, direction, "float32", threads)
            ]
            members = sorted((r for r in members if r.output == "out"), key=lambda row: row.elements)
            for name in dict.fromkeys(name for row in members for name in row.times):
                points = [(r.elements, r.times[name] / r.elements * 1e9) for r in members if name in r.times]
                style = {"linewidth": 2.4 if name == "fastnn" else 1.1, "linestyle": "--" if name == COPY else "-"}
                axis.loglog(*zip(*points, strict=True), color=report.COLOURS.get(name), label=name, marker=".", **style)
            axis.set_title(op)
            axis.grid(alpha=0.25)
        for axis in axes[:, 0]:
            axis.set_ylabel("ns an element")
        for axis in axes[1]:
            axis.set_xlabel("elements")
        shown = {
            label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=9, frameon=False)
        figure.suptitle(f"{direction}, float32, {threads} thread{'s' * (threads > 1)}, preallocated output")
        save(figure, f"time_{direction}.png")


def plot_ratios(rows: list[Row]) -> None:
    """How many times faster than the best peer, for each operation, over all its cells."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.ratio is not None:
            values[f"{row.op} {row.direction}"].append(row.ratio)
    names = sorted(values, key=lambda name: report.geometric_mean(values[name]))
    figure, axis = plt.subplots(figsize=(8, 0.19 * len(names) + 1), layout="constrained")
    for y, name in enumerate(names):
        axis.plot([min(values[name]), max(values[name])], [y, y], color="#bbbbbb", zorder=1)
    centre = [report.geometric_mean(values[name]) for name in names]
    axis.scatter(centre, range(len(names)), s=18, color=report.COLOURS["fastnn"], zorder=2)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xscale("log")
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_ylim(-1, len(names))
    axis.grid(axis="x", alpha=0.25)
    axis.set_xlabel("times as fast as the best peer: geometric mean and range over all cells")
    save(figure, "ratios.png")


def plot_roofline(rows: list[Row]) -> None:
    """Memory traffic of the largest arrays beside the non-temporal copy."""
    figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for direction, colour in (("forward", "#1f77b4"), ("backward", "#ff7f0e")):
        members = [r for r in rows if r.memory_bound and r.direction == direction and r.dtype == "float32"]
        members = [r for r in members if r.threads == 1 and "fastnn" in r.times]
        speeds = [r.nbytes / r.times["fastnn"] / 1e9 for r in members]
        axis.scatter([r.nbytes for r in members], speeds, s=9, color=colour, label=f"fastnn {direction}", alpha=0.7)
    limit: dict[int, float] = defaultdict(float)
    for row in rows:
        if row.memory_bound and row.dtype == "float32" and row.threads == 1 and len(row.shape) == 1:
            limit[row.nbytes] = max(limit[row.nbytes], row.nbytes / row.memory_bound / 1e9)
    axis.plot(*zip(*sorted(limit.items()), strict=True), "k--", linewidth=1, label="non-temporal copy")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("bytes read and written")
    axis.set_ylabel("GB/s")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    save(figure, "roofline.png")


def save(figure: plt.Figure, name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / name, dpi=90)
    plt.close(figure)


def described(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"{about['machine']['cpu']}, {about['machine']['system']}; {versions}; {about['created']}."


def elsewhere(paths: list[Path]) -> None:
    rows, about = report.load_json(paths)
    fill(ROOT / "docs" / "performance.md", "elsewhere", f"{described(about)}\n\n{means(rows)}")


def performance(paths: list[Path]) -> None:
    rows, about = report.load_json(paths)
    page, readme = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "README.md"
    fill(ROOT / "README.md", "speed", in_short(rows))
    machine = described(about)
    fill(page, "machine", machine)
    fill(page, "means", means(rows))
    fill(page, "float32", elementwise(rows, "float32", 1))
    fill(page, "float64", elementwise(rows, "float64", 1))
    fill(page, "shapes", shaped(rows, "float32"))
    fill(page, "losses", worst(rows))
    fill(page, "steps", steps(rows))
    fill(page, "layouts", layouts(rows))
    fill(page, "copy", copy_speed(rows))
    fill(page, "fresh", fresh(rows))
    fill(page, "scaling", scaling(rows))
    fill(readme, "machine", machine)
    fill(readme, "means", means(rows))
    plot_summary(rows)
    plot_sizes(rows, 1)
    plot_ratios(rows)
    plot_roofline(rows)


# --- accuracy ---------------------------------------------------------------------------------------------------------


MEASURED = ("torch", "numpy", "scipy", "onednn")


def peer_errors(direction: str, peers: dict[str, Peer]) -> list[list[str]]:
    """The largest float32 error of each peer, by the same yardstick as verification's."""
    body = []
    for row in ACTIVATIONS:
        zero = oracle.interior_zero(row) if direction == "backward" else None
        plan = next(iter(oracle.chunks("float32", False, 1 << 21)))
        saved = oracle.ordered(oracle.keys_of(plan, False), "float32")
        exact = oracle.exact_float64(row, direction, saved)
        # many libraries flush subnormal results to zero on purpose: that is not counted here
        keep = (exact == 0) | ((np.abs(exact) >= 2.0**-126) & (np.abs(exact) < 2.0**128))
        saved, exact = saved[keep], exact[keep]
        data = {"x": saved, "saved": saved, "dy": np.ones_like(saved), "out": np.empty_like(saved)}
        case = Case(BY_NAME[row.name], direction, saved.shape, "float32")
        line = []
        for name in MEASURED:
            call = peers[name].prepare(case, data) if name in peers else None
            if call is None:
                line.append("")
                continue
            got = np.asarray(call.collect(call.function(*call.args, **call.kwargs))[0])
            finite = np.isfinite(got)
            wrong_nan = "" if finite.all() else ", NaN or infinity"
            error = oracle.ulp_error(got[finite], exact[finite])
            if zero is not None:  # the same exception as for fastnn
                checks.bound_near_zero(error, checks.near_zero(saved[finite], zero), got[finite], exact[finite])
            largest = float(error.max())
            line.append(f"{largest:.2f}{wrong_nan}" if largest < 1000 else f"{largest:.1e}{wrong_nan}")
        body.append([f"{row.name} {direction}", *line])
    return body


def accuracy(tables: list[Path]) -> None:
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = verify.run(parser.parse_args(["--markdown"]))
    errors, rest = text.getvalue().split("\n\n")[:2]
    full = {key(line): line for path in tables for line in path.read_text().splitlines() if line.startswith("| ")}
    errors = "\n".join(full.get(key(line), line) for line in errors.splitlines())
    page = ROOT / "docs" / "accuracy.md"
    fill(page, "errors", errors)
    fill(page, "properties", rest)
    with Runner(MEASURED) as runner, np.errstate(all="ignore"):
        runner.set_threads(1)
        for name, why in runner.missing.items():
            print(f"{name} is not here ({why}): its column stays empty")
        peers = {peer.name: peer for peer in runner.peers}
        body = peer_errors("forward", peers) + peer_errors("backward", peers)
    fill(ROOT / "README.md", "errors", errors_in_short(errors, body))
    fill(page, "peers", table(["largest error in ULP, float32", "PyTorch", "NumPy idiom", "SciPy", "oneDNN"], body))
    print(text.getvalue().splitlines()[-1])
    if code:
        raise SystemExit("verification failed: see the table")


def errors_in_short(errors: str, peers: list[list[str]]) -> str:
    """For the README: float32 errors of the best level and PyTorch's, a line a function."""
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in errors.splitlines())
    own = {(cells[0], cells[1]): cells[head.index("limit") - 1] for cells in lines}
    torch = {line[0]: line[1] for line in peers}
    body = []
    for row in ACTIVATIONS:
        line = [row.name]
        for direction in ("forward", "backward"):
            name = f"{row.name} {direction}"
            line += [own[name, "float32"], torch[name]]
        body.append(line)
    return table(["float32", "forward", "PyTorch", "backward", "PyTorch"], body)


def key(line: str) -> tuple[str, ...]:
    """Function and dtype of a line of verification's table."""
    return tuple(line.split("|")[1:3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("performance", "elsewhere"):
        commands.add_parser(name).add_argument("json", type=Path, nargs="+")
    commands.add_parser("accuracy").add_argument("tables", type=Path, nargs="*")
    args = parser.parse_args()
    for path in getattr(args, "json", None) or args.tables:
        if not path.is_file():
            parser.error(f"there is no file {path}")
    if args.command == "performance":
        performance(args.json)
    elif args.command == "elsewhere":
        elsewhere(args.json)
    else:
        accuracy(args.tables)


if __name__ == "__main__":
    main()
