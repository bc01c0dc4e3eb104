"""NumPy's own validation vectors, which ship in its wheel: correctly rounded results for hard inputs."""

from pathlib import Path

import numpy as np
import pytest
from cases import assert_ulp

import fastnn as fn

# before NumPy 2, and from it on
PLACES = [Path(np.__file__).parent / core / "tests" / "data" for core in ("core", "_core")]
DATA = next((place for place in PLACES if place.exists()), PLACES[-1])


def vectors(name, dtype):
    """(inputs, correctly rounded results) from a file of bit patterns."""
    word = {np.float32: np.uint32, np.float64: np.uint64}[dtype]
    rows = []
    for line in (DATA / f"umath-validation-set-{name}.csv").read_text().splitlines():
        fields = [field.strip() for field in line.split(",")]
        if fields[0] == f"np.{np.dtype(dtype)}":
            rows.append([int(field, 16) for field in fields[1:3]])
    x, y = np.array(rows, word).T.copy().view(dtype)
    return x, y


pytestmark = [
    pytest.mark.skipif(not DATA.exists(), reason="this NumPy was installed without its tests"),
    pytest.mark.parametrize("dtype", [np.float32, np.float64]),
]


def test_tanh(dtype, isa):
    x, y = vectors("tanh", dtype)
    assert len(x) > 100
    assert_ulp(fn.tanh(x), y.astype(np.float64), 1.5, x)


def test_exp_as_the_derivative_of_elu(dtype, isa):
    x, y = vectors("exp", dtype)
    negative = x <= 0
    x, y = x[negative], y[negative]
    assert len(x) > 30
    assert_ulp(fn.elu_backward(np.ones_like(x), x), y.astype(np.float64), 2.0, x)
    assert_ulp(fn.celu_backward(np.ones_like(x), x), np.where(x == 0, 1, y).astype(np.float64), 2.0, x)


def test_expm1_as_elu(dtype, isa):
    x, y = vectors("expm1", dtype)
    negative = x <= 0
    x, y = x[negative], y[negative]
    assert len(x) > 30
    assert_ulp(fn.elu(x), y.astype(np.float64), 2.0, x)
