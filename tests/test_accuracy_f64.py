"""The float64 kernels against mpmath, where they are hardest: branches, tails, zeros and the worst cases found.

The bounds are those of the documentation: 2 ULP, and 1 ULP for the functions that reach it. A derivative is held to 2
ULP where it is a normal number, and to 2 units of 2^-53 within 0.05 of an interior zero.
"""

from functools import cache
from typing import Any

import numpy as np
import pytest
from cases import Case, assert_same_bits, zero_of

import fastnn as fn
import fastnn.reference as ref
from fastnn._table import ACTIVATIONS, BY_NAME
from fastnn.bench import oracle

mpmath = pytest.importorskip("mpmath")

Array = np.ndarray[Any, np.dtype[Any]]
BELOW_ONE_ULP = ("softsign", "elu", "celu")
TINY = float(np.finfo(np.float64).tiny)
LN2 = float(np.log(2.0))

# where a formula changes: kinks, ends of ranges, where log1p splits off ln 2, half a ln 2
CORNERS = (0.5, 1.0, 3.0, 6.0, 8.0, 21.6, 22.0, 50.0, 26.0, 36.74, 38.5, 38.75, 708.4, 709.79, 744.5, 745.14, 753.0)
CORNERS += (*(LN2 / 2 * k for k in (1, 2, 3, 5, 105, 107)), float(np.log1p(np.sqrt(2.0))), 0.208)


def neighbours(value: float, count: int = 3) -> Array:
    """`value` and the float64 numbers next to it."""
    return (np.array(value).view(np.int64) + np.arange(-count, count + 1)).view(np.float64)


@cache
def inputs(name: str) -> Array:
    rng = np.random.default_rng(20)
    parts = [
        rng.uniform(-8, 8, 250),
        rng.uniform(-45, 45, 150),
        rng.uniform(-760, -690, 60),
        rng.uniform(-39.5, -36, 60),
        np.ldexp(rng.uniform(-1, 1, 250), rng.integers(-70, 12, 250)),
        np.ldexp(rng.uniform(-1, 1, 60), rng.integers(-1070, 1020, 60)),
        np.array([0.0, 5e-324, TINY, 1e300, np.finfo(np.float64).max]),
        *(neighbours(corner) for corner in CORNERS),
    ]
    zero = zero_of(BY_NAME[name])
    if zero is not None:
        parts += [
            zero + rng.uniform(-0.1, 0.1, 120),
            zero * (1 + np.ldexp(rng.uniform(-1, 1, 60), rng.integers(-50, -4, 60))),
        ]
    return np.concatenate([*parts, -np.concatenate(parts[4:]), oracle.hardest(name)])


@cache
def saved_for_backward(name: str) -> Array:
    """What backward is given: x, or outputs and more numbers of the output's range."""
    row = BY_NAME[name]
    if row.saved == "x" or name == "relu":
        return inputs(name)
    rng = np.random.default_rng(21)
    low = -1.0 if name == "tanh" else 0.0
    y = Case(row).forward(fn, inputs(name))
    near_one = 1 - np.ldexp(rng.uniform(0, 1, 200), rng.integers(-52, 1, 200))
    return np.concatenate([y, rng.uniform(low, 1, 300), near_one])


@cache
def exact(name: str, direction: str) -> tuple[Array, Array]:
    row = BY_NAME[name]
    return oracle.exact_mpmath(row, direction, inputs(name) if direction == "forward" else saved_for_backward(name))


def fail_above(error: Array, bound: float, at: Array, got: Array, want: Array) -> None:
    worst = int(np.argmax(error))
    assert error[worst] <= bound, (
        f"{error[worst]:.3f} instead of {bound} at {float(at[worst]).hex()}: {got[worst]!r}, exact {want[worst]!r}"
    )


by_row = pytest.mark.parametrize("name", [row.name for row in ACTIVATIONS])


@by_row
def test_forward(name, isa):
    x, row = inputs(name), BY_NAME[name]
    y = Case(row).forward(fn, x)
    high, low = exact(name, "forward")
    fail_above(oracle.ulp_error(y, high, low), 1.0 if name in BELOW_ONE_ULP else row.bound64[0], x, y, high)


@by_row
def test_backward(name, isa):
    saved = saved_for_backward(name)
    row = BY_NAME[name]
    slope = Case(row).backward(fn, np.ones_like(saved), saved)
    high, low = exact(name, "backward")
    error = oracle.ulp_error(slope, high, low)
    off = np.abs(slope - high)
    # of a derivative below the normal numbers only the size counts
    error = np.where(np.abs(high) < TINY, off / TINY, error)
    zero = zero_of(row)
    if zero is not None:
        error = np.where(np.abs(saved - zero) < 0.05, off / 2.0**-53, error)
    fail_above(error, row.bound64[1], saved, slope, high)


def scaled_softplus(beta: Any) -> Any:
    return lambda x: mpmath.log1p(mpmath.exp(beta * x)) / beta, lambda x: 1 / (1 + mpmath.exp(-beta * x))


def scaled_celu(alpha: Any) -> Any:
    return (
        lambda x: x if x > 0 else alpha * mpmath.expm1(x / alpha),
        lambda x: mpmath.mpf(1) if x >= 0 else mpmath.exp(x / alpha),
    )


def scaled_elu(alpha: Any) -> Any:
    return (
        lambda x: x if x > 0 else alpha * mpmath.expm1(x),
        lambda x: mpmath.mpf(1) if x > 0 else alpha * mpmath.exp(x),
    )


@pytest.mark.parametrize(
    ("name", "parameter", "formulas"),
    [
        *(("softplus", beta, scaled_softplus) for beta in (0.3, 7.7, 1e3, 1e-6, 1e300, 1e-300)),
        *(("celu", alpha, scaled_celu) for alpha in (0.37, 3.0, -0.7, 1e5, 1e300, 1e-300, -1e-300, -5e-324)),
        *(("elu", alpha, scaled_elu) for alpha in (1.7, -0.3, 1e-300, 1e300, -1.7e308)),
    ],
)
def test_with_parameters(name, parameter, formulas, isa):
    rng = np.random.default_rng(22)
    unit = {"softplus": 1 / parameter, "celu": abs(parameter), "elu": 1.0}[name]
    x = unit * np.concatenate(
        [
            rng.uniform(-4, 4, 150),
            rng.uniform(-700, 30, 100),
            rng.uniform(-1460, -700, 100),
            np.ldexp(rng.uniform(-1, 1, 80), -20),
        ]
    )
    forward, backward = formulas(mpmath.mpf(parameter))
    with mpmath.workprec(220):
        for direction, formula in (("forward", forward), ("backward", backward)):
            values = [formula(mpmath.mpf(v)) for v in x.tolist()]
            high = np.array([float(v) for v in values])
            low = np.array(
                [float(v - mpmath.mpf(h)) if np.isfinite(h) else 0.0 for v, h in zip(values, high, strict=True)]
            )
            function = getattr(fn, name if direction == "forward" else name + "_backward")
            got = function(x, parameter) if direction == "forward" else function(np.ones_like(x), x, parameter)
            error = oracle.ulp_error(got, high, low)
            if direction == "backward":
                small = np.abs(high) < TINY
                error[small] = np.minimum(np.abs(got[small] - high[small]), 1) / TINY
            fail_above(error, 2.0, x, got, high)


SPECIAL = {
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "gelu": (-0.0, np.inf),
    "gelu_tanh": (-0.0, np.inf),
    "silu": (-0.0, np.inf),
    "mish": (-0.0, np.inf),
    "softsign": (-1.0, 1.0),
    "log_sigmoid": (-np.inf, -0.0),
    "softplus": (0.0, np.inf),
    "elu": (-1.0, np.inf),
    "celu": (-1.0, np.inf),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_limits_and_nan(name, isa):
    case = Case(BY_NAME[name])
    x = np.array([-np.inf, np.inf, np.nan, -1e308, 1e308])
    y = case.forward(fn, x)
    low, high = SPECIAL[name]
    assert y[0] == low and y[1] == high and np.isnan(y[2])
    assert np.signbit(y[0]) == np.signbit(low) and np.signbit(y[1]) == np.signbit(high)
    assert_same_bits(case.forward(ref, x[:2]), y[:2])
    if BY_NAME[name].saved == "x":
        slope = case.backward(fn, np.ones_like(x), x)
        assert np.isnan(slope[2])
        assert np.array_equal(np.abs(slope[[0, 3]]), np.abs(slope[[3, 0]])) and np.all(np.isfinite(slope[[0, 1, 3, 4]]))


@by_row
def test_any_nan_stays_nan(name, isa):
    """The kernels add to the bits of numbers: the bits of a NaN must not turn into a number."""
    x = np.array([0x7FF8000000000000, 0x7FF8000000000001, 0xFFF8000000000400, 0x7FFFFFFFFFFFFFFF], np.uint64).view(
        float
    )
    case = Case(BY_NAME[name])
    assert np.isnan(case.forward(fn, x)).all()
    assert np.isnan(case.backward(fn, np.ones_like(x), x)).all()


@pytest.mark.parametrize(
    ("function", "parameter", "limit"),
    [
        (fn.softplus, 1e-306, 0.0),
        (fn.softplus, 1e300, 0.0),
        (fn.celu, 1.7e308, -1.7e308),
        (fn.celu, -5e-324, -np.inf),
        (fn.elu, 1.7e308, -1.7e308),
    ],
)
def test_limits_with_extreme_parameters(function, parameter, limit, isa):
    assert np.array_equal(function(np.array([-np.inf, np.inf]), parameter), [limit, np.inf])


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softplus", "log_sigmoid", "softsign", "elu", "celu"])
def test_monotone_over_runs_of_neighbours(name, isa):
    case = Case(BY_NAME[name])
    rng = np.random.default_rng(23)
    centres = np.concatenate(
        [rng.uniform(-40, 40, 60), np.ldexp(rng.uniform(-1, 1, 40), rng.integers(-10, 9, 40)), CORNERS]
    )
    for centre in np.concatenate([centres, -centres]):
        run = np.sort(neighbours(float(centre), 100))
        y = case.forward(fn, run)
        assert np.all(np.diff(y) >= 0), (name, float(centre).hex())


def test_ranges(isa):
    x = np.concatenate([inputs("sigmoid"), np.linspace(-60, 60, 20001)])
    y = fn.sigmoid(x)
    assert y.min() >= 0 and y.max() <= 1
    assert np.abs(fn.tanh(x)).max() <= 1
    assert fn.softplus(x).min() >= 0 and fn.log_sigmoid(x).max() <= 0
