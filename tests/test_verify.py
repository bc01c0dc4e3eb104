"""The oracle and the checks of ``python -m fastnn verify``: they must pass what is right and catch what is not."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pytest
from cases import interrupted_after

import fastnn
from fastnn._table import BY_NAME
from fastnn.bench import checks, oracle, properties, verify
from fastnn.bench.cases import BY_NAME as OPS

LEVELS = fastnn.runtime.available_isas()


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_error_of_one_unit_counts_as_one(dtype: str) -> None:
    exact = np.array([1.0, 1.5, 2.0, 1e-3, -3.0, 0.0, np.inf, np.nan], dtype)
    up = np.nextafter(exact, np.array(np.inf, dtype))
    wide = exact.astype(np.float64)
    np.testing.assert_array_equal(oracle.ulp_error(exact, wide), 0)
    error = oracle.ulp_error(up, wide)
    np.testing.assert_allclose(error[:4], 1)
    assert error[5] == 1  # above zero the unit is the smallest subnormal
    assert oracle.ulp_error(np.array([np.nan], dtype), np.array([1.0]))[0] == np.inf
    assert oracle.ulp_error(np.array([1.0], dtype), np.array([np.nan]))[0] == np.inf


def test_overflow_is_measured_from_the_power_of_two() -> None:
    beyond = np.array([3.402823669e38, 1e300])  # both round to infinity in float32
    assert oracle.ulp_error(np.full(2, np.inf, np.float32), beyond).max() < 0.5
    early = oracle.ulp_error(np.array([np.inf], np.float32), np.array([3.0e38]))
    assert early[0] > 1e5


def test_keys_run_through_every_number_in_order() -> None:
    top = oracle.infinity_key("float16")
    values = oracle.ordered(np.arange(-top, top + 1), "float16")
    assert values[0] == -np.inf
    assert values[-1] == np.inf
    assert (np.diff(values[1:-1].astype(np.float64)) > 0).all()
    counted = sum(count for _, _, count in oracle.chunks("float32", True, 0))
    assert counted == 2**32 - 2 * (2**23 - 1) - 1  # all but the NaNs and one of the zeros
    (first, step, runs), *rest = oracle.chunks("float32", False, 1 << 16)
    keys = oracle.keys_of((first, step, runs), False)
    top = oracle.infinity_key("float32")
    assert not rest
    assert keys[0] == -top
    assert top - step < keys[-1] <= top
    assert (np.diff(keys) > 0).all()


def test_a_wrong_kernel_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fastnn.tanh

    def wrong(x: Any, **kwargs: Any) -> Any:
        y = np.array(right(x, **kwargs))
        y[np.abs(x - 0.5) < 1e-3] *= np.float32(1.000001)
        return y

    monkeypatch.setattr(fastnn, "tanh", wrong)
    line = verify.check_accuracy(BY_NAME["tanh"], "forward", "float32", False, lambda part: None)
    assert any("error in ULP" in problem for problem in line.problems)
    assert abs(line.at) == pytest.approx(0.5, abs=2e-3)  # tanh is odd: what is wrong at 0.5 shows at -0.5 too


def test_a_falling_result_a_wrong_nan_and_wrong_bits_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fastnn.sigmoid

    def wrong(x: Any, **kwargs: Any) -> Any:
        y = np.array(right(x, **kwargs))
        y[np.isnan(x)] = 0
        if len(y) < 3000:
            y[1:2] += np.float32(1e-7)
        return y

    monkeypatch.setattr(fastnn, "sigmoid", wrong)
    row = BY_NAME["sigmoid"]
    assert "nan" in checks.special_values(row, "forward", "float32", LEVELS)[0]
    outcomes = checks.same_bits(row, ["forward"], ["float32"], LEVELS)
    failed = {outcome.check for outcome in outcomes if not outcome.ok}
    assert failed == {"same bits at any offset, stride and in pieces"}
    x = np.array([0.1, 0.2, 0.3], np.float32)
    monkeypatch.setattr(fastnn, "sigmoid", lambda x: -right(x))
    exact = -1 / (1 + np.exp(-x.astype(np.float64)))
    result = checks.check_levels(row, "forward", LEVELS[-1:], x, exact, None, None)[LEVELS[-1]]
    assert result.falls_at == pytest.approx(0.1)
    assert result.error == np.inf  # outside 0..1


def test_quick_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.run(arguments("--only", "hardtanh", "--only", "maxout")) == 0
    text = capsys.readouterr().out
    assert "hardtanh backward" in text
    assert "same bits on all levels" in text
    assert "All is well" in text


def test_ctrl_c_keeps_what_was_checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verify, "check_accuracy", interrupted_after(1, verify.check_accuracy))
    assert verify.run(arguments("--only", "relu", "--dtype", "float16")) == 130
    text = capsys.readouterr().out
    assert "relu forward" in text and "relu backward" not in text and "Interrupted: 1 functions" in text


def test_markdown_and_bad_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.run(arguments("--only", "relu", "--dtype", "float16", "--markdown")) == 0
    assert "| relu forward | float16 |" in capsys.readouterr().out
    assert verify.run(arguments("--only", "swish")) == 2
    assert "nothing is called swish" in capsys.readouterr().err


def test_a_check_that_cannot_run_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(levels: Any) -> Any:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(properties, "CHECKS", (("batch_norm", "normalization", broken),))
    assert verify.run(arguments("--only", "batch_norm")) == 1
    assert "FAILED batch_norm: runs: RuntimeError: no such luck" in capsys.readouterr().out


def test_a_closed_stderr_is_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert verify.run(arguments("--only", "relu", "--dtype", "float16")) == 0
    assert "All is well" in capsys.readouterr().out


# --- every kind of fault is seen --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [(lambda x, y: y / 2, "error in ULP"), (lambda x, y: np.where(np.isnan(x), 0, y).astype(y.dtype), "expected nan")],
    ids=["half", "no NaN"],
)
def test_a_wrong_function_fails(
    fault: Any, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = fastnn.relu
    monkeypatch.setattr(fastnn, "relu", lambda x, **kwargs: fault(np.asarray(x), right(x, **kwargs)))
    assert verify.run(arguments("--only", "relu", "--dtype", "float16", "--direction", "forward")) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED relu forward float16: ")]
    assert any(said in line for line in failed)


def test_a_line_keeps_its_worst_and_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    line = verify.Line("f", "forward", "float32", 1.0)
    for level, error, at in (("v3", 0.5, 1.0), ("v4", 1.5, 2.0), ("v4", 0.2, 3.0)):
        line.add(level, error, at)
    line.conclude()
    assert line.worst == {"v3": 0.5, "v4": 1.5} and line.at == 2.0
    assert line.problems == ["error in ULP 1.5 on v4; limit 1.0; worst at 2.0"]
    monkeypatch.setattr(verify, "SAMPLE", 1 << 12)
    row = next(row for row in BY_NAME.values() if row.bound32[0] != row.bound32[1])
    for direction, limit in zip(("forward", "backward"), row.bound32, strict=True):
        assert verify.check_accuracy(row, direction, "float32", False, lambda part: None).limit == limit


def test_a_fall_between_two_chunks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right, half = fastnn.sigmoid, int(np.array(0.5, np.float16).view(np.uint16))
    monkeypatch.setattr(fastnn, "sigmoid", lambda x, **kw: right(x, **kw) * np.where(x < 0.5, 1, 0.5).astype(x.dtype))
    monkeypatch.setattr(oracle, "chunks", lambda *_: [(half - 99, 1, 99), (half, 1, 99)])
    line = verify.check_accuracy(BY_NAME["sigmoid"], "forward", "float16", False, lambda part: None)
    assert any("not monotone" in problem for problem in line.problems)


@pytest.mark.parametrize(
    ("name", "direction", "x", "fault", "least"),
    [
        ("tanh", "forward", [0.1, 0.5], lambda x, y: np.where(x < 0, y * np.float32(1 - 1e-6), y), np.inf),
        ("sigmoid", "backward", [0.25, 0.5], lambda x, y: 0 * y, 1e6),
        ("gelu", "backward", [1.0, 2.0], lambda x, y: y * np.float32(1.0001), 100),
    ],
    ids=["not odd", "flushed", "far from the zero"],
)
def test_what_is_wrong_on_a_level_is_seen(
    name: str, direction: str, x: list[float], fault: Any, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, saved = BY_NAME[name], np.array(x, np.float32)
    exact = oracle.exact_float64(row, direction, saved)

    def measured() -> float:
        zero = oracle.interior_zero(row)
        return checks.check_levels(row, direction, LEVELS[-1:], saved, exact, None, zero)[LEVELS[-1]].error

    assert measured() < 3
    function = name if direction == "forward" else name + "_backward"
    right = getattr(fastnn, function)
    monkeypatch.setattr(fastnn, function, lambda *args, **kw: fault(args[-1], right(*args, **kw)))
    assert measured() >= least


FUSED = [level for level in LEVELS if level in checks.SAME_BITS]


@pytest.mark.parametrize(
    ("where", "check", "said"),
    [
        (lambda x, out: fastnn.runtime.isa() == FUSED[0], "same bits on all levels", ""),
        (lambda x, out: fastnn.runtime.num_threads() == 3, "same bits on any number of threads", ""),
        (lambda x, out: out is x, "same bits at any offset, stride and in pieces", "in place"),
        (lambda x, out: x.strides[0] < 0, "same bits at any offset, stride and in pieces", "stride -1"),
    ],
    ids=["level", "threads", "in place", "stride"],
)
def test_other_bits_are_seen(where: Any, check: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if check == "same bits on all levels" and len(FUSED) < 2:
        pytest.skip("this machine has one level with fused multiply-adds")
    with fastnn.runtime.threads(3):
        if check == "same bits on any number of threads" and fastnn.runtime.num_threads() == 1:
            pytest.skip("this build has no threads")
    right = fastnn.tanh

    def wrong(x: Any, out: Any = None) -> Any:
        y = np.array(right(x, out=out))
        if where(x, out):
            y[0] = np.nextafter(y[0], y.dtype.type(2))
        return y

    monkeypatch.setattr(fastnn, "tanh", wrong)
    with fastnn.runtime.use_isa(LEVELS[-1]), fastnn.runtime.threads(1):
        outcomes = checks.same_bits(BY_NAME["tanh"], ["forward"], ["float32"], LEVELS)
    failed = [outcome for outcome in outcomes if not outcome.ok]
    assert {outcome.check for outcome in failed} == {check} and said in failed[0].detail


def test_bits_count_the_sign_of_zero_but_no_nan() -> None:
    assert checks.bits_differ(np.zeros(3), np.array([0.0, -0.0, 0.0])) == "1 of 3 differ, first at 1"
    assert checks.bits_differ(np.array([np.nan]), np.array([-np.nan])) == ""


def test_wrong_normalizations_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN that is not in the first gradient, an output that is off, a constant channel that is not beta."""
    forward, backward = fastnn.batch_norm, fastnn.batch_norm_backward

    def spoiled_backward(*args: Any, **kwargs: Any) -> Any:
        dx, dgamma, dbeta = backward(*args, **kwargs)
        return dx, dgamma * np.float32(np.nan), dbeta

    def moved(*args: Any, **kwargs: Any) -> Any:
        y, *stats = forward(*args, **kwargs)
        return y + np.float32(1e-3), *stats

    with monkeypatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(fastnn, "batch_norm_backward", spoiled_backward)
        assert [o.ok for o in properties.norm_accuracy("batch_norm", LEVELS[-1:])] == [True, False]
    with monkeypatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(fastnn, "batch_norm", moved)
        assert [o.ok for o in properties.norm_accuracy("batch_norm", LEVELS[-1:])] == [False, True]
        failed = {o.check for o in properties.batch_norm_edges(LEVELS[-1:]) if not o.ok}
        assert {"a constant channel gives beta", "one sample gives beta"} <= failed


def test_a_nan_among_the_results_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is compared with the reference, too."""
    right, op = fastnn.cross_entropy, OPS["cross_entropy"]

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        loss, dlogits = right(*args, **kwargs)
        return loss, dlogits * np.float32(np.nan)

    assert all(outcome.ok for outcome in properties.against_reference(op, 1e-6, LEVELS[-1:]))
    monkeypatch.setattr(fastnn, "cross_entropy", spoiled)
    assert not any(outcome.ok for outcome in properties.against_reference(op, 1e-6, LEVELS[-1:]))


# --- the command ------------------------------------------------------------------------------------------------------


def test_what_is_asked_for_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
    monkeypatch.setattr(oracle, "HAVE_MPMATH", True)
    monkeypatch.setattr(verify, "check_accuracy", lambda row, d, t, *_: verify.Line(row.name, d, t, 1.0))
    monkeypatch.setattr(checks, "special_values", lambda *_: [])
    monkeypatch.setattr(checks, "same_bits", lambda row, d, t, _: asked.append((row.name, tuple(d), tuple(t))) or [])
    both, every = ("forward", "backward"), ("float32", "float64", "float16")
    for words, directions, dtypes in (
        ((), both, every),
        (("--dtype", "float64"), both, ("float64",)),
        (("--direction", "backward"), ("backward",), every),
    ):
        lines: list[verify.Line] = []
        asked.clear()
        verify.check_all(arguments("--only", "gelu", *words), lines, [])
        found = sorted((line.name, line.direction, line.dtype) for line in lines)
        assert found == sorted((n, d, t) for n in ("gelu", "gelu_tanh") for d in directions for t in dtypes)
        bits = tuple(t for t in dtypes if t != "float16")
        assert asked == [("gelu", directions, bits), ("gelu_tanh", directions, bits)]


def test_ctrl_c_after_a_failure_is_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def ended_by(error: BaseException) -> Any:
        def check(levels: Any) -> Any:
            raise error

        return check

    broken = [("batch_norm", "normalization", ended_by(e)) for e in (RuntimeError("no luck"), KeyboardInterrupt())]
    monkeypatch.setattr(properties, "CHECKS", tuple(broken))
    assert verify.run(arguments("--only", "batch_norm")) == 130
    assert "FAILED batch_norm: runs: RuntimeError: no luck" in capsys.readouterr().out


def test_exact_values_have_twice_the_digits() -> None:
    mp = pytest.importorskip("mpmath")
    high, low = oracle.exact_mpmath(BY_NAME["sigmoid"], "forward", np.array([0.3]))
    with mp.workprec(300):
        exact = 1 / (1 + mp.exp(-mp.mpf(0.3)))
        assert low[0] != 0 and abs(mp.mpf(high[0]) + mp.mpf(low[0]) - exact) < mp.mpf(2) ** -100
