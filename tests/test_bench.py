"""The benchmark harness: complete, fair in what it compares, and robust against broken peers."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import bench_arguments as arguments
from cases import interrupted_after

import fastnn
import fastnn.reference as reference
from fastnn.__main__ import main
from fastnn._table import ACTIVATIONS
from fastnn.bench import cli, report
from fastnn.bench.cases import BY_NAME, OPS, Call, Case, DataCache, Expectation, cases, fastnn_call, shape_label
from fastnn.bench.peers import PEERS
from fastnn.bench.runner import COPY, Row, Runner, Sampler, interleave, sampler


@pytest.mark.parametrize("family", ["activations", "normalization"])
def test_every_public_kernel_has_a_case(family: str) -> None:
    module = getattr(reference, family)
    public = {name for name in module.__all__ if not isinstance(getattr(module, name), type)}
    covered = {name for op in OPS for name in (op.forward, op.backward) if name}
    assert public
    assert public <= covered, f"add a row to fastnn/bench/cases.py for {sorted(public - covered)}"


def test_every_row_of_the_table_has_a_case() -> None:
    assert {row.name for row in ACTIVATIONS} <= set(BY_NAME)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_small_cases_agree_with_the_reference(op: Any) -> None:
    """Every case can be set up and called; NumPy's idiom, where there is one, gives the same result."""
    shape = min(op.shapes, key=np.prod)
    for direction in op.directions:
        case = Case(op, direction, shape, "float64")
        data = DataCache().arrays(case)
        expected = Expectation(case, data)
        call = fastnn_call(reference, case, data)
        assert expected.error(call.collect(call.function(*call.args, **call.kwargs))) == ""
        idiom = PEERS["numpy"]().prepare(case, data)
        if idiom is not None:
            assert expected.error(idiom.collect(idiom.function(*idiom.args, **idiom.kwargs))) == ""


def test_wrong_results_and_crashes_are_reported_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(case: Case, data: dict[str, Any]) -> Call:
        return Call(lambda: data["x"] + 1)

    def crash(case: Case, data: dict[str, Any]) -> Call:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(PEERS["numpy"], "load", lambda self: "1")
    monkeypatch.setattr(PEERS["scipy"], "load", lambda self: "1")
    with Runner(["numpy", "scipy"], reference) as runner:
        monkeypatch.setattr(runner.peers[0], "prepare", wrong)
        monkeypatch.setattr(runner.peers[1], "prepare", crash)
        row = runner.measure(Case(BY_NAME["tanh"], "forward", (1000,), "float32"), 1, 0.001, 2)
    assert set(row.times) == {"fastnn"}
    assert "wrong result" in row.failed["numpy"]
    assert row.failed["scipy"] == "RuntimeError: no such luck"


def test_an_element_at_the_kink_may_change_its_channel() -> None:
    """Rounding may put one on the other side of a fused relu: dx differs there, and both sums of its channel."""
    case = Case(BY_NAME["batch_norm_relu"], "backward", (256, 512), "float32")  # of so many one may
    expected = Expectation(case, DataCache().arrays(case))
    dx, dgamma, dbeta = (value.astype(np.float32) for value in expected.values)
    for value in (dx, dgamma, dbeta):
        value.flat[3] += 1
    assert expected.error((dx, dgamma, dbeta)) == ""
    dgamma[5] += 1  # in which no element of dx differs
    assert "result 1 differs by 1" in expected.error((dx, dgamma, dbeta))
    dx.flat[5] += 1
    assert "result 0 differs by 1" in expected.error((dx, dgamma, dbeta))
    plain = Case(BY_NAME["batch_norm"], "backward", (32, 64), "float32")
    expected = Expectation(plain, DataCache().arrays(plain))
    dx = expected.values[0].astype(np.float32)
    dx.flat[3] += 1
    assert "result 0 differs by 1" in expected.error((dx, *expected.values[1:]))


def test_a_missing_peer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: object) -> str:
        raise ImportError("not installed here")

    monkeypatch.setattr(PEERS["scipy"], "load", absent)
    runner = Runner(["numpy", "scipy"], reference)
    assert [peer.name for peer in runner.peers] == ["numpy"]
    assert "not installed here" in runner.missing["scipy"]


def test_a_slow_peer_is_left_out_only_where_a_call_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger array, of a peer far slower than fastnn: first when it needs an hour, then a millisecond."""
    times = {"fastnn": 1e-6, "numpy": 1.0, "scipy": 2e-6}
    monkeypatch.setattr("fastnn.bench.runner.interleave", lambda samplers, *_: {name: times[name] for name in samplers})
    monkeypatch.setattr(Runner, "_copy", lambda *_: None)
    small, large = (Case(BY_NAME["sigmoid"], "forward", (n,), "float32") for n in (16384, 20000))
    for seconds, expected in ((3600.0, {"fastnn", "scipy"}), (1e-3, {"fastnn", "numpy", "scipy"})):
        times["numpy"] = seconds
        with Runner(["numpy", "scipy"], reference) as runner:
            assert set(runner.measure(small, 1, 0.001, 2).times) == {"fastnn", "numpy", "scipy"}
            row = runner.measure(large, 1, 0.001, 2)
            assert set(row.times) == expected
            assert row.left_out == sorted({"numpy", "scipy"} - expected)
            # how slow it is where it allocates tells nothing of where it does not
            fresh = dataclasses.replace(large, output="fresh")
            assert set(runner.measure(fresh, 1, 0.001, 2).times) == {"fastnn", "numpy", "scipy"}
    times["numpy"] = 3600.0
    with Runner(["numpy"], reference) as runner:
        runner.measure(small, 1, 0.001, 2)
        assert runner.measure(large, 1, 0.001, 2).best_peer == "numpy"  # no cell is left without any


def counted(calls: dict[str, int], name: str, seconds: float) -> Sampler:
    """Samples that pretend to take so long, and are counted."""

    def sample(count: int) -> float:
        calls[name] += 1
        return seconds * count

    return sample


def test_interleave_takes_the_minimum_and_spares_the_slow() -> None:
    calls = {"fast": 0, "slow": 0}
    best = interleave(
        {name: counted(calls, name, t) for name, t in (("fast", 1e-3), ("slow", 10.0))}, budget=0.1, rounds=20
    )
    assert best == {"fast": pytest.approx(1e-3), "slow": pytest.approx(10.0)}
    assert calls["fast"] >= 20
    assert calls["slow"] <= 4


def test_first_calls_that_are_disturbed_do_not_count() -> None:
    """Nor do they decide how many calls are timed together."""
    asked: list[int] = []

    def disturbed(count: int) -> float:
        asked.append(count)
        return 4e-3 if len(asked) <= 2 else 5e-6 * count

    best = interleave({"steady": lambda count: 4e-6 * count, "disturbed": disturbed}, budget=0.01, rounds=9)
    assert best["disturbed"] == pytest.approx(5e-6)
    assert asked[-1] >= 20


def test_rivals_have_as_many_rounds_as_the_fastest() -> None:
    """Whatever takes less time but is no contestant, as the copy."""
    turns = {COPY: 0, "fastest": 0, "rival": 0, "slow": 0}
    interleave(
        {name: counted(turns, name, t) for name, t in zip(turns, (0.001, 0.01, 0.019, 0.03), strict=True)}, 0.02, 40
    )
    assert turns["fastest"] == turns["rival"] >= 5
    assert turns["slow"] < 5


def test_in_place_data_is_reset_before_each_sample() -> None:
    x = np.full(8, 2.0)
    seen = []

    def halve(x: np.ndarray, out: np.ndarray) -> None:
        seen.append(float(x[0]))
        np.multiply(x, 0.5, out=out)

    interleave({"halve": sampler(Call(halve, (x,), {"out": x}))}, 0.01, 5, reset=lambda: x.fill(2.0))
    assert set(seen) == {2.0}


def test_cases_can_be_chosen() -> None:
    names = {case.op.name for case in cases(only=["gelu"])}
    assert names == {"gelu", "gelu_tanh"}
    assert {case.output for case in cases(outputs=("inplace",))} == {"inplace"}
    with pytest.raises(ValueError, match="no benchmark is called swish"):
        cases(only=["swish"])
    assert [shape_label(shape) for shape in ((1000,), (65536,), (4 << 20,), (3, 4))] == ["1000", "64Ki", "4Mi", "3x4"]


def row(op: str, shape: tuple[int, ...], ours: float, theirs: float) -> Row:
    times = {"fastnn": ours, "torch": theirs, "numpy": 3 * theirs, "copy": ours / 2}
    elements = int(np.prod(shape))
    return Row(op, "activations", "forward", shape, "float32", "out", 1, elements, 8 * elements, times)


def test_summary_counts_losses_and_finds_the_worst() -> None:
    result = report.summary([row("relu", (1,), 1.0, 2.0), row("tanh", (1000,), 1.0, 0.5)])
    assert result["losses"] == 1
    assert result["worst"][0].op == "tanh"
    assert result["best peer"] == pytest.approx(1.0)
    assert result["peers"] == {"torch": pytest.approx(1.0), "numpy": pytest.approx(3.0)}


def test_a_peer_that_makes_new_arrays_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("relu", (1000,), 1e-6, 2e-6), row("softmax", (4, 10), 2e-6, 1e-6)]
    report.print_tables(rows)
    report.print_summary(rows, {})
    assert "†" not in capsys.readouterr().out
    for each in rows:
        each.fresh.append("torch")
    report.print_tables(rows)
    report.print_summary(rows, {})
    said = capsys.readouterr().out
    assert said.count("torch†") == 4 and report.MARKED in said
    report.save_html(tmp_path / "a.html", rows, {})
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "1 µs†" in page and report.MARKED in page


def test_json_round_trip_and_html_is_self_contained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("relu", (1000,), 1e-6, 2e-6), row("relu", (4000,), 2e-6, 1e-6), row("softmax", (4, 10), 1e-6, 2e-6)]
    about = {"machine": {"cpu": "<unknown> & co"}, "versions": {"fastnn": "0"}, "missing": {}}
    report.save_json(tmp_path / "a.json", rows, about)
    loaded, _ = report.load_json([tmp_path / "a.json"])
    assert loaded == rows
    for name, created in (("b", "2026-11-02"), ("c", "2026-11-01 to 2026-11-03")):
        report.save_json(tmp_path / f"{name}.json", rows, {**about, "created": created})
    assert report.load_json([tmp_path / "b.json", tmp_path / "c.json"])[1]["created"] == "2026-11-01 to 2026-11-03"
    assert report.load_json([tmp_path / "b.json"])[1]["created"] == "2026-11-02"
    assert cli.run(arguments("--load", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html"))) == 0
    page = (tmp_path / "a.html").read_text()
    assert page.count("<svg") == 3  # a plot, and a roofline for each of the two tables
    assert "http" not in page
    assert "src=" not in page
    assert "&lt;unknown&gt; &amp; co" in page
    assert "class='loss'" in page
    assert "softmax forward" in capsys.readouterr().out


def test_quick_run_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--quick", "--only", "relu", "--only", "softmax", "--peer", "numpy", "--max-elements", "20000")
    assert cli.run(arguments(*words, "--json", str(tmp_path / "out.json")), reference) == 0
    saved = json.loads((tmp_path / "out.json").read_text())
    assert {value["op"] for value in saved["rows"]} == {"relu", "softmax"}
    assert all(not value["failed"] and {"fastnn", "numpy"} <= set(value["times"]) for value in saved["rows"])
    said = capsys.readouterr().out
    assert "Geometric mean" in said and f"Written: {tmp_path / 'out.json'}" in said


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_dtype_is_measured(dtype: str) -> None:
    """With the compiled module, whose copy the cells are compared with."""
    only = ("--only", "relu", "--only", "softmax", "--only", "layer_norm", "--only", "maxout")
    plan = cli.plan_from(arguments("--quick", *only, "--dtype", dtype, "--max-elements", "20000"))
    with Runner([]) as runner:
        rows = [runner.measure(case, 1, 0.001, 1) for case in plan.cases]
    assert rows and all("fastnn" in row.times and not row.failed for row in rows)


def test_files_are_saved_whoever_reads_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that leaves early (| head) must not cost a run's measurements; nor must a locale that is not UTF-8."""

    def leave(*args: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(report, "print_tables", leave)
    files = [str(tmp_path / name) for name in ("out.json", "out.html")]
    words = ("--quick", "--only", "relu", "--peer", "numpy", "--max-elements", "1")
    with pytest.raises(BrokenPipeError):
        cli.run(arguments(*words, "--json", files[0], "--html", files[1]), reference)
    assert json.loads(Path(files[0]).read_text())["rows"]
    Path(files[1]).unlink()
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-m", "fastnn", "bench", "--load", files[0], "--html", files[1]],
        env=ascii_only,
        capture_output=True,
    )
    assert "■" in Path(files[1]).read_text(encoding="utf-8")


def test_ctrl_c_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Runner, "measure", interrupted_after(2, Runner.measure))
    words = ("--quick", "--only", "relu", "--only", "tanh", "--peer", "numpy", "--max-elements", "2000")
    path = tmp_path / "out.json"
    assert cli.run(arguments(*words, "--json", str(path)), reference) == 130
    said = capsys.readouterr()
    assert len(json.loads(path.read_text())["rows"]) == 2
    assert "2 of " in said.err and "Geometric mean" in said.out and "Traceback" not in said.err
    assert cli.run(arguments(*words), reference) == 130
    assert "0 of " in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is full")
def test_a_report_that_cannot_be_written_costs_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--quick", "--only", "relu", "--peer", "numpy", "--max-elements", "1")
    assert cli.run(arguments(*words, "--html", "/dev/full"), reference) == 1
    said = capsys.readouterr()
    assert "Geometric mean" in said.out and "Written" not in said.out
    assert "/dev/full was not written: No space left" in said.err


@pytest.mark.parametrize("words", [("info",), ("verify", "--only", "relu")])
def test_a_reader_who_leaves_early_gets_no_traceback(words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = subprocess.run([sys.executable, "-m", "fastnn", *words], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert command.returncode == 141
    assert "Traceback" not in command.stderr and "Exception" not in command.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is full")
def test_a_full_disk_is_said() -> None:
    with open("/dev/full", "w") as full:
        command = subprocess.run(
            [sys.executable, "-m", "fastnn", "info"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert command.returncode == 1
    assert command.stderr.startswith("fastnn info: ") and command.stderr.count("\n") == 1


def test_an_encoding_without_the_signs_ends_no_command() -> None:
    command = subprocess.run(
        [sys.executable, "-m", "fastnn", "bench", "--quick", "--only", "relu", "--peer", "numpy"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert command.returncode == 0 and "Traceback" not in command.stderr and " ?s" in command.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"fastnn {fastnn.__version__}\n"


def test_figures_are_not_cut_off_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    console = importlib.import_module("fastnn.bench.console")
    console.print_table("title", ["op", "ratio", "shape"], [["relu backward", "0.987654321", "32x64x56x56"]])
    assert "0.987654321" in capsys.readouterr().out


def test_plain_text_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    console = importlib.import_module("fastnn.bench.console")
    monkeypatch.setattr(console, "HAVE_RICH", False)
    console.print_table("title", ["op", "ratio"], [["relu", "[red]0.50[/red]"]], "note")
    assert capsys.readouterr().out.split("\n")[1:4] == ["title", "op    ratio", "relu  !0.50"]
    with console.progress("bench", 2) as bar:
        bar.advance(0.73, "relu")
        bar.advance(0.02, "silu")
        bar.advance(1.25, "tanh")
    said = capsys.readouterr().err  # no terminal: a line for each tenth that is passed
    assert [" 36 %" in said, " 37 %" in said, "100 %" in said] == [True, False, True]


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments("--only", "swish"), reference) == 2
    assert "activations, normalization" in capsys.readouterr().err
    assert cli.run(arguments("--only", "relu", "--threads", "99999"), reference) == 2
    assert "--threads 99999: this build takes" in capsys.readouterr().err
    assert cli.run(arguments("--only", "batch_norm", "--max-elements", "1"), reference) == 2
    for option, value in (("--threads", "0"), ("--budget", "0"), ("--budget", "nan"), ("--max-elements", "-1")):
        with pytest.raises(SystemExit, match="2"):
            arguments(option, value)


def test_files_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said at once, not after the measurements."""
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    for option, path, says in (
        ("--load", tmp_path / "none.json", "No such file"),
        ("--load", bad, "no measurements"),
        ("--json", tmp_path / "none" / "a.json", "cannot be written"),
        ("--html", tmp_path, "cannot be written"),
    ):
        assert cli.run(arguments(option, str(path)), reference) == 2
        assert says in capsys.readouterr().err
    one = tmp_path / "one"
    assert cli.run(arguments("--json", str(one), "--html", str(tmp_path / "." / "one")), reference) == 2
    assert "are the same file" in capsys.readouterr().err and not one.exists()


@pytest.mark.filterwarnings("default")  # peers may warn about themselves
@pytest.mark.parametrize("name", sorted(PEERS))
def test_installed_peers_agree_on_a_quick_case(name: str) -> None:
    with Runner([name], reference) as runner:
        if runner.missing:
            pytest.skip(runner.missing[name])
        runner.set_threads(1)
        for direction in ("forward", "backward"):
            measured = runner.measure(Case(BY_NAME["sigmoid"], direction, (1000,), "float32"), 1, 0.001, 2)
            assert not measured.failed


def test_every_family_has_a_file_in_benchmarks() -> None:
    folder = Path(__file__).parent.parent / "benchmarks"
    for family in {op.family for op in OPS} - {"networks"}:
        assert f'of_family("{family}")' in (folder / f"bench_{family}.py").read_text()


def test_the_documentation_can_be_filled_in(document: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parent.parent
    for page in ("README.md", "docs/performance.md", "benchmarks/README.md"):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text((root / page).read_text())
    monkeypatch.setattr(document, "ROOT", tmp_path)
    monkeypatch.setattr(document, "IMAGES", tmp_path / "docs" / "images")
    shapes: list[tuple[int, ...]] = [(1,), (1000,), (16384,), (64 << 20,)]
    rows = [row(op, shape, 1e-6, 0.9e-6) for op in document.SHOWN for shape in shapes] + [row("softmax", (4, 10), 1, 2)]
    about = {"machine": {"cpu": "a processor", "system": "a system"}, "versions": {"fastnn": "0"}, "created": "today"}
    report.save_json(tmp_path / "a.json", rows, about)
    document.performance([tmp_path / "a.json"])
    about["machine"]["cpu"] = "another one"
    report.save_json(tmp_path / "a.json", rows, about)
    document.elsewhere([tmp_path / "a.json"])
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert "a processor" in text
    assert "another one, a system; fastnn 0; today.\n\n|" in text
    assert "| tanh forward | 1000 | float32 | 1 | out | 1 µs | torch 900 ns | **0.90** |" in text
    assert (tmp_path / "docs" / "images" / "summary.png").stat().st_size > 1000


def test_options_that_do_not_go_together_and_a_quick_fresh_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments("--load", "a.json", "--quick", "--max-elements", "9"), reference) == 2
    assert "--quick, --max-elements cannot go with it" in capsys.readouterr().err
    plan = cli.plan_from(arguments("--quick", "--only", "relu", "--output", "fresh"))
    assert {case.output for case in plan.cases} == {"fresh"} and len(plan.cases) == 6


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("times", {"fastnn": seconds}) for seconds in (0, -1.0, float("nan"), None, "1", True)),
        *(("shape", shape) for shape in ([], [0], "12", None)),
        ("elements", 0),
        ("output", "else"),
        ("dtype", ["float32"]),
        ("failed", {"numpy": 1}),
        *((key, 3) for key in ("machine", "versions", "missing", "rows")),
    ],
)
def test_odd_measurements_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: object
) -> None:
    path, of_a_row = tmp_path / "odd.json", key not in ("machine", "versions", "missing", "rows")
    report.save_json(path, [row("relu", (1000,), 1e-6, 2e-6)] * 2, {})
    content = json.loads(path.read_text())
    (content["rows"][1] if of_a_row else content)[key] = value
    path.write_text(json.dumps(content))
    assert cli.run(arguments("--load", str(path)), reference) == 2
    said = capsys.readouterr().err
    assert str(path) in said and ("row 2 of 2" in said if of_a_row else key in said)


def test_names_in_html_are_escaped(tmp_path: Path) -> None:
    rows = [row("<op>", (4, 10), 1e-6, 2e-6), row("relu", (4, 11), 1e-6, 2e-6)]
    rows[0].failed["jax"], rows[1].times["jax"] = "x" * 38 + "<&>", 1.0
    report.save_html(tmp_path / "a.html", rows, {})
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<op>" not in page and "x&lt;&amp;<td" in page
