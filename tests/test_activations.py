"""The kernels against the float64 reference, against finite differences, and against themselves in every layout."""

from fractions import Fraction

import numpy as np
import pytest
from cases import (
    DTYPES,
    assert_derivative,
    assert_same_bits,
    assert_ulp,
    cases,
    defaults,
    layouts,
    sample,
    zero_of,
)

import fastnn as fn
import fastnn.reference as ref
from fastnn.bench.checks import MONOTONE, ODD, PIECEWISE_LINEAR, RANGE
from fastnn.bench.oracle import ulp_error

# The float64 reference is itself off by up to this many ULP; test_accuracy.py holds float64 to its bound with mpmath.
REFERENCE_ULP = 6.0

by_case = pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
by_row = pytest.mark.parametrize("case", defaults(), ids=lambda case: case.id)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


@by_dtype
@by_case
def test_forward_matches_reference(case, dtype, isa):
    x = sample(dtype)
    y = case.forward(fn, x)
    assert y.dtype == dtype
    if dtype == np.float16:
        assert_ulp(y, case.forward(ref, x).astype(np.float64), 1.0, x)  # float32 inside: rounded twice
    elif dtype == np.float32:
        assert_ulp(y, case.exact(x), case.row.bound32[0], x)
    else:
        assert_ulp(y, case.exact(x), case.row.bound64[0] + REFERENCE_ULP, x)


@by_dtype
@by_case
def test_derivative_matches_reference(case, dtype, isa):
    saved = case.saved(sample(dtype))
    ones = np.ones(saved.shape, dtype)
    got = case.backward(fn, ones, saved)
    assert got.dtype == dtype
    if dtype == np.float16:
        assert_ulp(got, case.backward(ref, ones, saved).astype(np.float64), 1.0, saved)
    elif dtype == np.float32:
        assert_derivative(case, got, case.exact_derivative(saved), saved, case.row.bound32[1])
    else:  # the reference cancels around the interior zeros, too
        zero = zero_of(case.row)
        far = slice(None) if zero is None else ~(np.abs(saved - zero) < 0.5)
        bound = case.row.bound64[1] + REFERENCE_ULP
        assert_derivative(case, got[far], case.exact_derivative(saved)[far], saved[far], bound)


@by_row
def test_backward_multiplies_dy(case, isa):
    rng = np.random.default_rng(1)
    x = rng.normal(0, 2, 1000).astype(np.float32)
    dy = rng.normal(0, 3, 1000).astype(np.float32)
    saved = case.saved(x)
    exact = dy.astype(np.float64) * case.exact_derivative(saved)
    scale = np.maximum(np.abs(exact), np.abs(dy) * 0.03)  # near a zero of the derivative its absolute error counts
    assert np.all(np.abs(case.backward(fn, dy, saved) - exact) <= 6 * 2.0**-24 * scale)


@by_case
def test_backward_is_the_derivative(case):
    """Central differences of the kernel's own forward, away from the kinks."""
    x = np.random.default_rng(2).uniform(-8, 8, 500)
    x = x[np.min(np.abs(x[:, np.newaxis] - np.array(case.kinks())), axis=1) > 1e-2]
    h = 2.0**-17
    slope = (case.forward(fn, x + h) - case.forward(fn, x - h)) / (2 * h)
    saved = case.forward(fn, x) if case.row.saved == "y" else x
    got = case.backward(fn, np.ones(x.shape), saved)
    np.testing.assert_allclose(got, slope, rtol=1e-7, atol=1e-8 * max(1.0, np.abs(slope).max()))


@by_case
def test_nan_and_infinity(case, isa):
    """NaN in x or in saved gives NaN; infinities give the limit, which the reference has."""
    for dtype in DTYPES:
        for value in (np.nan, np.inf, -np.inf):
            x = np.full(21, value, dtype)
            y = case.forward(fn, x)
            np.testing.assert_array_equal(y, case.forward(ref, x))
            saved = y if case.row.saved == "y" else x
            dx = case.backward(fn, np.ones_like(x), saved)
            np.testing.assert_array_equal(dx, case.backward(ref, np.ones_like(x), saved))
            assert np.isnan(y).all() == np.isnan(dx).all() == np.isnan(value)


@by_case
def test_nan_and_infinite_dy(case, isa):
    """Selected, not multiplied, where the derivative is piecewise constant: as the reference does it."""
    for dtype in DTYPES:
        saved = case.saved(np.array([-100, -4, -3, -2, -1, -0.25, 0, 0.25, 1, 2, 3, 5, 6, 7, 100, np.nan], dtype))
        # An infinite dy is only compared where no derivative underflows: inf * 0 is NaN.
        for value in (np.nan, np.inf, -np.inf) if case.row.name in PIECEWISE_LINEAR else (np.nan,):
            dy = np.full(saved.shape, value, dtype)
            np.testing.assert_array_equal(case.backward(fn, dy, saved), case.backward(ref, dy, saved))


def test_derivatives_at_the_kinks():
    """The subgradients that PyTorch takes."""
    one = np.ones(1)
    at = np.array
    assert fn.relu_backward(one, at([0.0])) == 0
    assert fn.relu6_backward(one, at([0.0])) == 0
    assert fn.relu6_backward(one, at([6.0])) == 0
    assert fn.hardtanh_backward(one, at([-1.0])) == 0
    assert fn.hardtanh_backward(one, at([1.0])) == 0
    assert fn.hardsigmoid_backward(one, at([-3.0])) == 0
    assert fn.hardsigmoid_backward(one, at([3.0])) == 0
    assert fn.hardswish_backward(one, at([-3.0])) == 0
    assert fn.hardswish_backward(one, at([3.0])) == 1
    assert fn.leaky_relu_backward(one, at([0.0]), 0.25) == 0.25
    assert fn.elu_backward(one, at([0.0]), 2.0) == 2
    assert fn.celu_backward(one, at([0.0]), 2.0) == 1
    assert fn.selu_backward(one, at([0.0])) == 1.7580993408473768


def test_a_slope_of_zero_is_relu(isa):
    x = np.array([-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf, np.nan], np.float32)
    for y in (fn.leaky_relu(x, 0.0), fn.prelu(x, 0.0), fn.prelu(x, np.zeros(7), axis=0)):
        np.testing.assert_array_equal(y, fn.relu(x))
    dy = np.full(7, np.nan, np.float32)
    for dx in (fn.leaky_relu_backward(dy, x, 0.0), fn.prelu_backward(dy, x, 0.0)[0]):
        np.testing.assert_array_equal(dx, fn.relu_backward(dy, x))


def test_relu_backward_takes_the_input_too():
    x = np.random.default_rng(3).normal(size=100)
    dy = np.ones(100)
    assert_same_bits(fn.relu_backward(dy, x), fn.relu_backward(dy, fn.relu(x)))


@by_row
def test_shape_of_the_function(case, isa):
    """Monotone, odd and bounded where the function is, and signed zeros kept."""
    for dtype in (np.float32, np.float64):
        x = np.sort(sample(dtype, 20000))
        x = x[~np.isnan(x)]
        y = case.forward(fn, x)
        if case.row.name in MONOTONE:
            assert np.all(y[1:] >= y[:-1])
        if case.row.name in ODD:
            assert_same_bits(case.forward(fn, -x), -y)
        if case.row.name in RANGE:
            low, high = RANGE[case.row.name]
            assert y.min() >= low and y.max() <= high
        zeros = np.array([0.0, -0.0], dtype)
        at_zero = case.forward(fn, zeros)
        np.testing.assert_array_equal(at_zero, case.forward(ref, zeros))
        if at_zero[0] == 0 and case.row.name != "relu":
            assert list(np.signbit(at_zero)) == [False, True]
            assert list(np.signbit(case.forward(ref, zeros))) == [False, True]


def test_hardtanh_keeps_a_zero_that_is_its_bound():
    zeros = np.array([0.0, -0.0])
    for f in (fn.hardtanh, ref.hardtanh):
        for bounds in ((0.0, 1.0), (-1.0, 0.0), (-0.0, 1.0), (-1.0, -0.0)):
            assert_same_bits(f(zeros, *bounds), zeros)


def test_hardswish_of_small_float64_numbers(isa):
    """x / 2 with a mantissa near 2: the rounding of the sixth, of the product and of the sum count most there."""
    x = 2.0**-25 * np.random.default_rng(0).uniform(1.99, 2.0, 2000)
    for value, y in zip(x.tolist(), fn.hardswish(x).tolist(), strict=True):
        exact = Fraction(value) * (Fraction(value) + 3) / 6
        assert abs(Fraction(y) - exact) <= 2 * Fraction(np.spacing(float(exact)))


def test_softplus_overflows_to_infinity(isa):
    """ln 2 / beta beyond the largest number, beside negative numbers of which the same is true."""
    for dtype, beta in ((np.float32, 1e-44), (np.float64, 1e-310)):
        x = np.finfo(dtype).max * np.linspace(-1, 1, 101).astype(dtype)
        assert np.all(fn.softplus(x, beta) == np.inf)
    x = np.finfo(np.float64).max * np.array([-1.0, 1.0])
    np.testing.assert_allclose(fn.softplus(x, 5e-309), ref.softplus(x, 5e-309), rtol=1e-14)
    np.testing.assert_allclose(fn.softplus_backward(np.ones(2), x, 5e-309), 1 / (1 + np.exp(-5e-309 * x)), rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softplus_has_no_slope_left_at_minus_infinity(dtype, isa):
    far = np.full(21, -np.inf, dtype)
    for beta in (0.5, 1.0, 2.0):
        assert not fn.softplus_backward(np.ones_like(far), far, beta).any()
        assert np.isnan(fn.softplus_backward(-far, far, beta)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_celu_has_no_slope_left_at_minus_infinity(dtype, isa):
    far = np.full(21, -np.inf, dtype)
    for alpha in (0.3125, 1.0, 2.0):
        assert not fn.celu_backward(np.ones_like(far), far, alpha).any()
        assert np.isnan(fn.celu_backward(-far, far, alpha)).all()  # 0 * inf, not next to nothing * inf


def test_celu_backward_is_positive_where_the_power_overflows():
    """A ratio beyond 2^53 has a rounding error larger than 1, which turned the reference's infinities around."""
    x = -np.geomspace(1.0, 1e300, 1000)
    for alpha in (-0.3, -1.5, 0.3, 1.5):
        for f in (fn.celu_backward, ref.celu_backward):
            dx = f(np.ones_like(x), x, alpha)
            assert not np.signbit(dx).any()
            assert dx[-1] == (np.inf if alpha < 0 else 0)


@by_dtype
def test_every_layout_gives_the_same_bits(dtype, isa, threads, tmp_path):
    """Odd sizes, so that blocks, vectors and tails all occur; compared with the contiguous array, bit for bit."""
    for shape in ((1, 1), (3, 5), (7, 67), (5, 1031)):
        values = np.resize(sample(dtype, 2000, seed=shape[1])[5:], shape)
        grads = np.resize(sample(dtype, 2000, seed=shape[1] + 1)[9:], shape)
        for case in defaults():
            saved = case.saved(values)
            y = case.forward(fn, values)
            dx = case.backward(fn, grads, saved)
            for (name, x), (_, s), (_, dy) in zip(
                layouts(values, tmp_path), layouts(saved, tmp_path), layouts(grads, tmp_path), strict=True
            ):
                assert_same_bits(case.forward(fn, x), y, (case.id, name))
                assert_same_bits(case.backward(fn, grads, s), dx, (case.id, name))
                assert_same_bits(case.backward(fn, dy, saved), dx, (case.id, name))


def test_broadcast_input(isa):
    row = np.linspace(-3, 3, 37, dtype=np.float32)
    x = np.broadcast_to(row, (11, 37))
    assert_same_bits(fn.sigmoid(x), fn.sigmoid(x.copy()))
    dy = np.broadcast_to(np.float32(2), (11, 37))
    assert_same_bits(fn.sigmoid_backward(dy, x), fn.sigmoid_backward(dy.copy(), x.copy()))


@pytest.mark.parametrize("n", [0, 1, 2, 15, 16, 17, 31, 33, 63, 65, 1023, 1025, 4095, 4097, 16385])
def test_odd_sizes(n, isa):
    x = np.linspace(-5, 5, n, dtype=np.float32)
    assert np.all(ulp_error(fn.tanh(x), np.tanh(x.astype(np.float64))) <= 1.5)


def test_two_dtypes_combine(isa):
    x = np.linspace(-3, 3, 50)
    dy = np.ones(50, np.float32)
    assert_same_bits(fn.silu_backward(dy, x), fn.silu_backward(dy.astype(np.float64), x))
    assert fn.silu_backward(dy.astype(np.float16), x.astype(np.float32)).dtype == np.float32
    assert fn.silu_backward(np.ones(50, int), x.astype(np.float32)).dtype == np.float64
    assert fn.silu_backward(dy.astype(">f4"), x.astype(">f4")).dtype == np.dtype(np.float32)


@pytest.mark.parametrize("module", [fn, ref])
def test_a_signalling_nan_is_converted_without_a_warning(module):
    """In raw bytes any NaN may stand, and only arrays of two dtypes are converted."""
    x = np.array([[0x7F800001, 0x3F800000]], np.uint32).view(np.float32)
    one = np.ones((1, 2))
    with np.errstate(all="raise"):
        assert np.isnan(module.relu_backward(one, x)).tolist() == [[True, False]]
        assert np.isnan(module.softmax_backward(one, x)).all()
        assert np.isnan(module.prelu_backward(one, x, 0.25)[0]).tolist() == [[True, False]]
        assert np.isnan(module.layer_norm_backward(one, x, np.zeros(1), np.ones(1))[0]).any()


@pytest.mark.parametrize("module", [fn, ref], ids=["fastnn", "reference"])
def test_parameters_are_rounded_to_the_dtype_that_both_inputs_are_computed_in(module):
    x, dy = np.linspace(-3, 3, 50), np.ones(50)
    for name, value in (("leaky_relu", 0.1), ("elu", 1e300), ("celu", 0.3), ("celu", 1e-300), ("softplus", 1e-300)):
        backward = getattr(module, name + "_backward")
        for saved, gradient in ((x.astype(np.float32), dy), (x, dy.astype(np.float32)), (x.astype(np.float16), dy)):
            expected = backward(dy, saved.astype(np.float64), value)
            for given in (value, np.float64(value), Fraction(value), np.array([value])):
                assert_same_bits(backward(gradient, saved, given), expected)
    for bad in (1e300, np.float64(1e300)):
        with pytest.raises(ValueError, match="float32"):
            module.elu_backward(dy.astype(np.float16), x.astype(np.float32), bad)


@by_row
def test_integers_and_lists_become_float64(case):
    for x in ([1, 2, -3], np.array([[1, -2]], np.int8), [True, False], 3, np.uint64(7)):
        y = case.forward(fn, x)
        assert y.dtype == np.float64 and y.shape == np.shape(x)
        assert_same_bits(y, case.forward(fn, np.asarray(x, np.float64)))
