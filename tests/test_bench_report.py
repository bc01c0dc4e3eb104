"""What the benchmark says of its measurements: ratios, tables, pages, files, plans and exit codes."""

from __future__ import annotations

import argparse
from itertools import chain, repeat
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import bench_arguments as arguments

import fastnn
import fastnn.__main__ as command
import fastnn.reference as reference
from fastnn.bench import cli, report, steps
from fastnn.bench.cases import BY_NAME, Case
from fastnn.bench.peers import PEERS
from fastnn.bench.runner import COPY, MATMUL, Row, Runner, interleave


def row(
    times: dict[str, float],
    op: str = "relu",
    shape: tuple[int, ...] = (1000,),
    direction: str = "forward",
    dtype: str = "float32",
    output: str = "out",
    threads: int = 1,
) -> Row:
    family = BY_NAME[op].family
    case = Case(BY_NAME[op], direction, shape, dtype, output)
    return Row(op, family, direction, shape, dtype, output, threads, case.elements, case.nbytes, dict(times))


# --- a row ------------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_case() -> None:
    assert [Case(BY_NAME["relu"], d, (10,), "float32").nbytes for d in ("forward", "backward")] == [80, 120]


def test_a_row_is_compared_with_peers_alone() -> None:
    cell = row({"fastnn": 2e-6, "numpy": 9e-6, "torch": 3e-6, COPY: 1e-6, MATMUL: 5e-7})
    assert set(cell.peers) == {"numpy", "torch"} and cell.best_peer == "torch"
    assert cell.ratio == pytest.approx(1.5)
    assert cell.memory_bound == pytest.approx(1e-6)
    assert row({COPY: 1e-6}, direction="backward", dtype="float64").memory_bound == pytest.approx(1.5e-6)
    alone = row({"fastnn": 2e-6, MATMUL: 5e-7})
    assert alone.best_peer is alone.ratio is alone.memory_bound is None


# --- the measurement --------------------------------------------------------------------------------------------------


def test_the_shortest_sample_counts_not_the_last() -> None:
    seconds = chain((5e-3, 4e-3, 3e-3), repeat(6e-3))
    assert interleave({"one": lambda count: count * next(seconds)}, 1.0, 8) == {"one": pytest.approx(3e-3)}


def test_a_runner_gives_the_threads_back() -> None:
    before = fastnn.runtime.num_threads()
    with Runner([], reference) as runner:
        runner.set_threads(1 if before > 1 else 2)
    assert fastnn.runtime.num_threads() == before


def test_every_contestant_in_place_has_the_same_data() -> None:
    with Runner(["numpy"], reference) as runner:
        cell = runner.measure(Case(BY_NAME["sigmoid"], "forward", (16384,), "float32", "inplace"), 1, 1e-3, 2)
    assert not cell.failed and {"fastnn", "numpy"} <= set(cell.times)


@pytest.mark.parametrize("module", [fastnn, reference])
def test_training_steps_have_the_same_losses(module: ModuleType) -> None:
    data = steps.arrays((20, 16, 16, 5), "float64")
    ours, theirs = steps.fastnn_step(module, data), steps.numpy_step(data)
    losses = [(ours()[0], theirs()[0]) for _ in range(20)]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=0, atol=1e-9)
    assert losses[-1] < losses[0]


# --- tables and pages -------------------------------------------------------------------------------------------------


def test_ratios_below_one_are_red_and_percents_are_of_the_copy(tmp_path: Path) -> None:
    loss, win = (row({"fastnn": 2e-6, "torch": t, COPY: 1e-6}, shape=(n,)) for t, n in ((1e-6, 1000), (4e-6, 2000)))
    assert [report._ratio(r) for r in (loss, win)] == ["[red]0.50 torch[/red]", "2.00 torch"]
    assert report._percent(loss) == "50 %"
    report.save_html(tmp_path / "a.html", [loss, win], {})
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<td class='loss'>0.50" in page and "<td>2.00" in page


def test_the_roofline_is_the_fastest_copy_of_a_size() -> None:
    rows = [row({"fastnn": 4e-6, COPY: seconds}) for seconds in (2e-6, 1e-6, 3e-6)]
    for order in (rows, rows[::-1], rows[1:] + rows[:1]):
        assert report.roofline_svg(order).count("copy: 8 at 8000") == 1


def test_the_later_file_wins(tmp_path: Path) -> None:
    first = [row({"fastnn": 1.0}), row({"fastnn": 2.0}, dtype="float64")]
    later = [row({"fastnn": 3.0})]
    paths = [tmp_path / "b.json", tmp_path / "a.json"]
    for path, rows in zip(paths, (first, later), strict=True):
        report.save_json(path, rows, {})
    merged, _ = report.load_json(paths)
    assert {r.dtype: r.times["fastnn"] for r in merged} == {"float32": 3.0, "float64": 2.0}


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_wrong_result_of_fastnn_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    wrong: Any = SimpleNamespace(**vars(reference))
    wrong.relu = lambda x, out=None: np.add(reference.relu(x), 1, out=out)
    words = ("--quick", "--only", "relu", "--peer", "numpy", "--max-elements", "1")
    assert cli.run(arguments(*words), wrong) == 1
    assert "fastnn failed on relu forward float32: wrong result" in capsys.readouterr().out


def test_what_is_measured_unless_something_is_asked_for() -> None:
    quick, full = (cli.plan_from(arguments(*words, "--only", "relu")) for words in (("--quick",), ()))
    assert quick.threads == [1]
    assert full.threads == list(dict.fromkeys((1, fastnn.runtime.num_threads())))
    assert {case.dtype for case in quick.cases} == {"float32"}
    assert {case.dtype for case in full.cases} == {"float32", "float64"}
    assert {case.output for case in full.cases} == {"out", "fresh"}
    assert {case.direction for case in full.cases} == {"forward", "backward"}


def test_what_is_asked_for_is_measured() -> None:
    words = ("--only", "relu", "--direction", "backward", "--output", "inplace", "--threads", "1", "--threads", "1")
    plan = cli.plan_from(arguments(*words, "--dtype", "float16"))
    assert {(case.direction, case.output, case.dtype) for case in plan.cases} == {("backward", "inplace", "float16")}
    assert plan.threads == [1]


def test_a_quick_run_leaves_out_who_compiles_slowly() -> None:
    slow = {name for name, peer in PEERS.items() if peer.slow_to_compile}
    assert slow and set(cli.choose_peers(arguments("--quick"))) == set(PEERS) - slow
    assert cli.choose_peers(arguments()) == list(PEERS)
    chosen = ("--quick", *(word for name in ("torch", *slow, "torch") for word in ("--peer", name)))
    assert cli.choose_peers(arguments(*chosen)) == list(dict.fromkeys(("torch", *slow)))


def test_how_a_command_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended_by(error: BaseException) -> None:
        def run(args: argparse.Namespace) -> int:
            raise error

        monkeypatch.setattr(command, "run", run)

    ended_by(KeyboardInterrupt())
    assert command.main(["info"]) == 130
    ended_by(PermissionError(13, "not allowed"))
    with pytest.raises(PermissionError, match="not allowed"):
        command.main(["info"])
    with pytest.raises(SystemExit, match="2"):
        command.main([])


# --- benchmarks/document.py -------------------------------------------------------------------------------------------


def test_the_table_of_threads(document: Any) -> None:
    rows = [row({"fastnn": t}, "tanh", (16384,), threads=n) for n, t in ((1, 4e-6), (2, 2e-6), (4, 1e-6))]
    text = document.scaling(rows)
    assert "4 threads against 1" in text and "| tanh | 4.00 |" in text


def test_the_table_of_the_copys_speed(document: Any) -> None:
    times = {"fastnn": 2.0, COPY: 1.0}
    rows = [row(times, "tanh", (64 << 20,), direction) for direction in ("backward", "forward")]
    text = document.copy_speed(rows)
    assert "| forward, 1 thread | backward, 1 thread |" in text and "| tanh | 50% | 75% |" in text


def test_the_table_in_short(document: Any) -> None:
    """One thread and given arrays alone."""
    cells: list[tuple[dict[str, Any], float]] = [({}, 2.0), ({"threads": 2}, 8.0), ({"output": "fresh"}, 8.0)]
    rows = [row({"fastnn": 1.0, "torch": t}, **options) for options, t in cells]
    lines = [line for line in document.in_short(rows).splitlines() if line.startswith("| activations")]
    assert len(lines) == 1 and "2.00" in lines[0]


def test_the_table_of_layouts(document: Any) -> None:
    """The better of the peer's two counts, whichever comes first."""
    first = row({"fastnn": 1.0, "onednn": 3.0}, "batch_norm", (16, 64, 8, 8))
    last = row({"fastnn": 9.0, "onednn": 2.0}, "batch_norm_last", (16, 8, 8, 64))
    for rows in ([first, last], [last, first]):
        assert "| 2.00 |" in document.layouts(rows).splitlines()[2]
    last.times["onednn"] = 4.0
    assert "| 3.00 |" in document.layouts([first, last]).splitlines()[2]
