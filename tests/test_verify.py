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
