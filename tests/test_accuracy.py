"""The promised errors, measured by the machinery of `python -m fastnn verify`, on every level of this machine.

Its oracles are the float64 reference for float32 and float16, and mpmath for float64. By default float32 is sampled;
`pytest -m exhaustive` takes all 2**32 inputs of every function, as `python -m fastnn verify --full` does.
"""

import numpy as np
import pytest

import fastnn as fn
from fastnn._table import ACTIVATIONS
from fastnn.bench import checks, verify

by_row = pytest.mark.parametrize("row", ACTIVATIONS, ids=lambda row: row.name)
by_direction = pytest.mark.parametrize("direction", ["forward", "backward"])


def problems(row, direction, dtype, full=False):
    with np.errstate(all="ignore"):
        line = verify.check_accuracy(row, direction, dtype, full, lambda part: None)
        return line.problems + checks.special_values(row, direction, dtype, fn.runtime.available_isas())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@by_direction
@by_row
def test_error_is_within_the_promise(row, direction, dtype, monkeypatch):
    if dtype == "float64":
        pytest.importorskip("mpmath")
    monkeypatch.setattr(verify, "SAMPLE", 1 << 17)
    assert problems(row, direction, dtype) == []


@pytest.mark.exhaustive
@pytest.mark.timeout(0)
@by_direction
@by_row
def test_every_float32_input(row, direction):
    assert problems(row, direction, "float32", full=True) == []
