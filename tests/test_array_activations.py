"""softmax, log_softmax, cross_entropy, prelu and maxout: the activations that look at more than one element."""

import numpy as np
import pytest
from cases import DTYPES, assert_same_bits, assert_ulp, layouts

import fastnn as fn
import fastnn.reference as ref
from fastnn.bench.oracle import ulp_error

by_dtype = pytest.mark.parametrize("dtype", DTYPES)
SHAPES_AND_AXES = [
    ((), -1),
    ((1,), 0),
    ((7,), -1),
    ((5, 1), 1),
    ((3, 10), -1),
    ((3, 10), 0),
    ((17, 1000), 1),
    ((4, 5, 6), 1),
    ((4, 5, 6), -3),
    ((2, 1025), -1),
    ((1, 5003), -1),
]
UNIT = {np.float16: 2.0**-10, np.float32: 2.0**-22, np.float64: 2.0**-51}


def logits(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(0, 4, shape).astype(dtype)


@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
@by_dtype
def test_softmax_and_log_softmax(shape, axis, dtype, isa):
    x = logits(shape, dtype)
    for name in ("softmax", "log_softmax"):
        y = getattr(fn, name)(x, axis)
        assert y.dtype == dtype and y.shape == shape
        exact = getattr(ref, name)(x.astype(np.float64), axis)
        bound = {np.float16: 1.0, np.float32: 4.0, np.float64: 6.0}[dtype]
        assert_ulp(np.atleast_1d(y), np.atleast_1d(exact), bound, np.atleast_1d(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_logits_share_equally(dtype, isa):
    """fma(power, high, power * low) is exactly 1 / n where 1 / n is a number of the dtype."""
    if isa == "baseline":
        pytest.skip("it has no fused multiply-add")
    x = np.random.default_rng(0).normal(0, 9, (500, 1)).astype(dtype)
    for n in (1, 2, 4, 16, 64, 128):
        assert np.all(fn.softmax(np.repeat(x, n, axis=1)) == dtype(1 / n)), n


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 80.0])
@pytest.mark.parametrize("dominating", [0.0, 12.0, 25.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_keeps_four_ulp_over_long_rows(dtype, scale, dominating, isa):
    x = np.random.default_rng(1).normal(0, scale, (10, 3001)).astype(dtype)
    x[:, 7] += dominating
    # in long double, and with one of the largest kept out of the sum
    shifted = x.astype(np.longdouble) - x.max(-1, keepdims=True)
    others = np.exp(shifted)
    np.put_along_axis(others, x.argmax(-1)[:, np.newaxis], 0, -1)
    rest = others.sum(-1, keepdims=True)
    for name, exact in (("softmax", np.exp(shifted) / (1 + rest)), ("log_softmax", shifted - np.log1p(rest))):
        assert_ulp(getattr(fn, name)(x), exact.astype(np.float64), 4.0, x)


# Rows at which errors of exp, of the sum and of the quotient go the same way: the worst of long searches.
HARD_ROWS = [
    np.array([0.10568794479015138, 0.2525521437659167, 0.37805852409600055]),
    np.array([0.8137167485911843, -5.157952764441162, -5.734026886594953]),
    (np.random.default_rng(42).standard_normal((400, 700)) * 7)[133],
]


@pytest.mark.parametrize("row", HARD_ROWS, ids=len)
def test_float64_keeps_four_ulp_at_hard_rows(row, isa):
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workprec(200):
        powers = [mpmath.exp(float(value)) for value in row]
        total = mpmath.fsum(powers)
        shares = [power / total for power in powers]
        for result, exact in (
            (fn.softmax(row), shares),
            (fn.log_softmax(row), [float(value) - mpmath.log(total) for value in row]),
            *(
                (
                    fn.cross_entropy(np.tile(row, (n, 1)), np.zeros(n, int))[1][0],
                    [(share - (1 if i == 0 else 0)) / n for i, share in enumerate(shares)],
                )
                for n in (5, 333)
            ),
        ):
            for got, want in zip(result, exact, strict=True):
                assert abs(float(got) - want) <= 4 * np.spacing(abs(float(want)))


@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
@by_dtype
def test_softmax_backward(shape, axis, dtype, isa):
    x, dy = logits(shape, dtype), logits(shape, dtype, 1)
    for name in ("softmax", "log_softmax"):
        y = getattr(ref, name)(x, axis)
        dx = getattr(fn, name + "_backward")(dy, y, axis)
        exact = getattr(ref, name + "_backward")(dy.astype(np.float64), y.astype(np.float64), axis)
        assert dx.dtype == dtype and dx.shape == shape
        size = np.abs(dy).max() * (1 if name == "softmax" else max(1.0, np.sqrt(x.size)))
        np.testing.assert_allclose(dx, exact, rtol=0, atol=8 * UNIT[dtype] * float(size))


@pytest.mark.parametrize("mean", [0.0, 5.0, 100.0])
@pytest.mark.parametrize(
    "shape", [(900, 3), (600, 17), (300, 33), (200, 64), (100, 100), (40, 1000), (20, 4099), (3, 100_000)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_of_rows_are_as_near_as_documented(shape, mean, dtype, isa):
    rng = np.random.default_rng(11)
    unit = np.finfo(dtype).eps / 2
    for scale, axis in ((1.0, -1), (10.0, 0)):
        x, dy = rng.normal(0, scale, shape).astype(dtype), rng.normal(mean, 1, shape).astype(dtype)
        if axis == 0:
            x, dy = np.ascontiguousarray(x.T), np.ascontiguousarray(dy.T)
        wide, p = dy.astype(np.longdouble), fn.softmax(x, axis)
        exact = p * (wide - np.sum(p * wide, axis, keepdims=True))
        bound = np.maximum(16 * unit * p * np.abs(wide).max(axis, keepdims=True), np.finfo(dtype).smallest_subnormal)
        assert np.all(np.abs(fn.softmax_backward(dy, p, axis) - exact) <= bound)
        y = fn.log_softmax(x, axis)
        p = np.exp(y.astype(np.longdouble))
        exact = wide - p * np.sum(wide, axis, keepdims=True)
        bound = 6 * unit * (np.abs(wide) + p * np.sum(np.abs(wide), axis, keepdims=True))
        assert np.all(np.abs(fn.log_softmax_backward(dy, y, axis) - exact) <= bound)


def test_softmax_backward_is_the_derivative():
    x, dy = logits((3, 6), np.float64), logits((3, 6), np.float64, 1)
    for name in ("softmax", "log_softmax"):
        forward, backward = getattr(fn, name), getattr(fn, name + "_backward")
        dx = backward(dy, forward(x))
        for index in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[index] = 1e-5
            slope = np.sum(dy * (forward(x + step) - forward(x - step))) / 2e-5
            assert abs(dx[index] - slope) < 1e-8


@pytest.mark.parametrize("length", [3, 40, 64, 100])
@by_dtype
def test_softmax_backward_of_infinities(dtype, length, isa):
    """The sum of a row is infinite then, its rounding errors are no numbers."""
    dy = np.ones((20, length), dtype)
    dy[3, 1], dy[4, 2], dy[5, :2], dy[6, 0] = np.inf, -np.inf, np.inf, np.nan
    saved = np.full((20, length), 1 / length, dtype)
    for name in ("softmax_backward", "log_softmax_backward"):
        y = saved if name == "softmax_backward" else np.log(saved)
        for axis in (1, 0):
            g, s = (dy, y) if axis == 1 else (np.ascontiguousarray(dy.T), np.ascontiguousarray(y.T))
            dx = getattr(fn, name)(g, s, axis)
            dx = dx if axis == 1 else dx.T
            assert np.isfinite(np.delete(dx, [3, 4, 5, 6], 0)).all()
            for row, at, rest in ((3, [1], -np.inf), (4, [2], np.inf), (5, [0, 1], -np.inf)):
                assert np.isnan(dx[row, at]).all() and (np.delete(dx[row], at) == rest).all(), (name, axis, row)
            assert np.isnan(dx[6]).all()


@by_dtype
def test_softmax_of_infinities(dtype, isa):
    inf, nan = np.inf, np.nan
    x = np.array([[0, -inf, 1], [inf, 0, 1], [-inf, -inf, -inf], [nan, 0, 1], [inf, inf, -inf], [-inf, 2, -inf]], dtype)
    for name in ("softmax", "log_softmax"):
        np.testing.assert_allclose(getattr(fn, name)(x), getattr(ref, name)(x), rtol=2e-3)
        np.testing.assert_allclose(getattr(fn, name)(x.T, 0), getattr(ref, name)(x.T, 0), rtol=2e-3)
    y = fn.softmax(x)
    assert y[0, 1] == 0 and np.isnan(y[1:5]).all() and list(y[5]) == [0, 1, 0]


def test_softmax_of_huge_numbers(isa):
    x = np.array([[3e38, -3e38, 3e38], [1e30, 1e30, 1e30], [-3e38, -3e38, -3.1e38]], np.float32)
    assert_ulp(fn.softmax(x), ref.softmax(x.astype(np.float64)), 1.0, x)
    assert fn.softmax(np.array([-104.0, 0.0], np.float32))[0] == np.float32(np.exp(-104.0))  # subnormal


@by_dtype
def test_softmax_layouts(dtype, isa, threads, tmp_path):
    for shape in ((5, 37), (33, 129)):
        values, grads = logits(shape, dtype), logits(shape, dtype, 1)
        for axis in (0, 1):
            for name in ("softmax", "log_softmax"):
                forward, backward = getattr(fn, name), getattr(fn, name + "_backward")
                saved = getattr(ref, name)(values, axis)
                y, dx = forward(values, axis), backward(grads, saved, axis)
                for (layout, x), (_, s), (_, dy) in zip(
                    layouts(values, tmp_path), layouts(saved, tmp_path), layouts(grads, tmp_path), strict=True
                ):
                    assert_same_bits(forward(x, axis), y, (name, layout, axis))
                    assert_same_bits(backward(grads, s, axis), dx, (name, layout, axis))
                    assert_same_bits(backward(dy, saved, axis), dx, (name, layout, axis))


def test_softmax_bits_do_not_depend_on_the_axis_or_the_rows_around(isa):
    x = logits((70, 129), np.float32)
    y = fn.softmax(x)
    assert_same_bits(fn.softmax(np.ascontiguousarray(x.T), 0).T, y)
    for row in (0, 1, 33, 69):
        assert_same_bits(fn.softmax(x[row]), y[row])


@pytest.mark.parametrize("length", [1, 3, 15, 16, 17, 32, 45, 63, 64, 65, 79, 80, 129, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_side_by_side_have_the_bits_of_single_rows(length, dtype, isa, threads):
    """Panels of every width, with tails; some rows exp alone cannot do, some are dominated by one entry."""
    for count in (9, 49, 300, 1100):
        x, dy = logits((2, length, count), dtype), logits((2, length, count), dtype, 1)
        if count == 300:
            x[0, 0, 5], x[1, :, 7], x[0, -1, 8] = 1000, -1e4, -np.inf
            x[1, 0, ::3] += 30
            x[1, -1, 16:20], x[1, -1, 100] = -np.inf, np.nan
        shifted = np.empty(x.size + 3, dtype)[3:].reshape(x.shape)
        for name in ("softmax", "log_softmax"):
            forward, backward = getattr(fn, name), getattr(fn, name + "_backward")
            y = forward(x, 1)
            dx = backward(dy, y, 1)
            assert_same_bits(forward(x, 1, out=shifted), y)
            assert_same_bits(backward(dy, y, 1, out=shifted), dx)
            for column in (0, 3, 4, 5, 7, 8, 47, 48, 255, 256, count - 1):
                if column < count:
                    row = np.ascontiguousarray(x[1, :, column])
                    assert_same_bits(forward(row), y[1, :, column])
                    assert_same_bits(backward(dy[1, :, column].copy(), y[1, :, column].copy()), dx[1, :, column])
            rows = [np.moveaxis(a, 1, 2).copy() for a in (x, dy, y)]
            assert_same_bits(forward(rows[0]), np.moveaxis(y, 1, 2))
            assert_same_bits(backward(rows[1], rows[2]), np.moveaxis(dx, 1, 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [2, 3, 21, 63, 64, 100])
def test_log_softmax_keeps_four_ulp_where_one_entry_dominates(length, dtype, isa):
    x = np.random.default_rng(6).normal(0, 2, (length, 600)).astype(dtype)
    x[0] += np.linspace(0, 36, 600, dtype=dtype)
    shifted = x.astype(np.longdouble) - x.max(0)
    others = np.exp(shifted)
    np.put_along_axis(others, x.argmax(0)[np.newaxis], 0, 0)
    rest = others.sum(0)
    for name, exact in (("softmax", np.exp(shifted) / (1 + rest)), ("log_softmax", shifted - np.log1p(rest))):
        assert_ulp(getattr(fn, name)(x, 0), exact.astype(np.float64), 4.0, x)


def test_softmax_in_place_and_overlapping(isa):
    x = logits((40, 23), np.float32)
    for axis in (0, 1):
        want = fn.softmax(x, axis)
        out = x.copy()
        assert fn.softmax(out, axis, out=out) is out
        assert_same_bits(out, want)
        raw = np.zeros(x.size + 23, np.float32)
        raw[: x.size] = x.ravel()
        out = raw[23:].reshape(x.shape)
        fn.softmax(raw[: x.size].reshape(x.shape), axis, out=out)
        assert_same_bits(out, want)
        square = logits((31, 31), np.float32)
        want = fn.softmax(square, axis)
        fn.softmax(square, axis, out=square.T)
        assert_same_bits(np.ascontiguousarray(square.T), want)
        dy = logits((40, 23), np.float32, 1)
        y = fn.softmax(x, axis)
        want = fn.softmax_backward(dy, y, axis)
        out = dy.copy()
        assert_same_bits(fn.softmax_backward(out, y, axis, out=out), want)
        assert_same_bits(fn.softmax_backward(dy, y.copy(), axis, out=y), want)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
def test_softmax_of_nothing(shape):
    x = np.zeros(shape, np.float32)
    for name in ("softmax", "log_softmax"):
        for axis in range(-len(shape), len(shape)):
            assert getattr(fn, name)(x, axis).shape == shape
            assert getattr(fn, name + "_backward")(x, x, axis).shape == shape


@by_dtype
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 10), (64, 1000), (129, 3)])
def test_cross_entropy(dtype, shape, isa, threads):
    x = logits(shape, dtype)
    labels = np.random.default_rng(2).integers(0, shape[1], shape[0])
    loss, dx = fn.cross_entropy(x, labels)
    exact_loss, exact = ref.cross_entropy(x.astype(np.float64), labels)
    assert type(loss) is float and dx.dtype == dtype
    assert abs(loss - exact_loss) <= 1e-6 * max(1.0, exact_loss)
    assert_ulp(dx, exact, 4.0 if dtype != np.float64 else 6.0, x)  # the reference is float64 itself
    assert_same_bits(fn.cross_entropy(np.asfortranarray(x), list(labels))[1], dx)
    out = x.copy()
    again, result = fn.cross_entropy(out, labels.astype(np.uint8) if shape[1] < 256 else labels, out=out)
    assert result is out and again == loss
    assert_same_bits(out, dx)


def test_cross_entropy_is_its_own_derivative():
    x = logits((3, 5), np.float64)
    labels = [4, 0, 2]
    _, dx = fn.cross_entropy(x, labels)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = 1e-5
        slope = (fn.cross_entropy(x + step, labels)[0] - fn.cross_entropy(x - step, labels)[0]) / 2e-5
        assert abs(dx[index] - slope) < 1e-8


def test_cross_entropy_at_the_ends(isa):
    assert fn.cross_entropy(np.zeros((0, 3), np.float32), [])[0] == 0.0
    loss, dx = fn.cross_entropy(np.zeros((0, 3), np.float32), np.zeros(0, int))
    assert loss == 0.0 and dx.shape == (0, 3) and dx.dtype == np.float32
    loss, dx = fn.cross_entropy(np.array([[100.0, 0.0]], np.float32), [0])
    assert 0 < loss < 1e-40 and dx[0, 1] > 0
    loss, _ = fn.cross_entropy(np.array([[-np.inf, 0.0]], np.float32), [0])
    assert loss == np.inf
    for row in ([np.inf, 0.0], [-np.inf, -np.inf], [np.nan, 0.0]):
        loss, dx = fn.cross_entropy(np.array([row, [1.0, 2.0]], np.float32), [1, 0])
        assert np.isnan(loss) and np.isnan(dx[0]).all() and np.isfinite(dx[1]).all()


@by_dtype
def test_prelu(dtype, isa, threads):
    rng = np.random.default_rng(3)
    for shape, axis in (((6, 5), 1), ((6, 5), 0), ((3, 4, 5), 1), ((2, 3, 7, 9), -1), ((2, 3, 7, 9), 1), ((17,), 0)):
        x = rng.normal(0, 2, shape).astype(dtype)
        dy = rng.normal(0, 2, shape).astype(dtype)
        for slope in (rng.normal(0, 1, shape[axis]).astype(dtype), np.array(0.25, dtype)):
            y = fn.prelu(x, slope, axis=axis)
            assert y.dtype == dtype
            np.testing.assert_array_equal(y, ref.prelu(x, slope, axis=axis))
            dx, dslope = fn.prelu_backward(dy, x, slope, axis=axis)
            want_dx, want = ref.prelu_backward(dy, x, slope, axis=axis)
            assert dx.dtype == dtype and dslope.dtype == dtype and dslope.shape == slope.shape
            np.testing.assert_array_equal(dx, want_dx)
            sizes = np.where(x > 0, 0, np.abs(dy.astype(np.float64) * x))
            total = np.moveaxis(sizes, axis, 0).reshape(shape[axis], -1).sum(1) if slope.ndim else sizes.sum()
            bound = UNIT[np.float64 if dtype == np.float64 else np.float32] * total
            if dtype == np.float16:  # and rounded once
                bound = bound + np.spacing(np.abs(want)) / 2
            assert np.all(np.abs(dslope - want) <= bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 8), (5, 40), (5, 200), (3, 4, 70), (2, 3, 1 << 15)])
def test_prelu_of_a_slope_of_zero(shape, dtype, isa):
    """It is relu, at -Inf too; and the signs of zeros are the reference's."""
    x = np.resize(np.array([-np.inf, 1, -1, np.inf, 0, -0.0, np.nan], dtype), shape)
    slope = np.resize(np.array([0, 0.5, -0.0, 1], dtype), shape[1])
    assert_same_bits(fn.prelu(x, slope), ref.prelu(x, slope))
    dy = np.resize(np.array([-1, np.inf, 2, -np.inf, np.nan], dtype), shape)
    assert_same_bits(fn.prelu_backward(dy, x, slope)[0], ref.prelu_backward(dy, x, slope)[0])


@pytest.mark.parametrize(
    ("shape", "axis"), [((9, 70), 1), ((300, 2), 1), ((5, 3, 100), 1), ((2, 3, 40, 64), 1), ((3000,), 0)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prelu_backward_of_special_values_among_ordinary_ones(shape, axis, dtype, isa):
    rng = np.random.default_rng(7)
    plain = [rng.normal(0, 2, shape).astype(dtype) for _ in range(2)]
    slope = rng.normal(0, 1, shape[axis]).astype(dtype)
    slope[:: 2 if shape[axis] < 9 else 5] = 0
    want, _ = fn.prelu_backward(*plain, slope, axis=axis)
    dy, x = special = [values.copy() for values in plain]
    places = [rng.integers(0, dy.size, 9) for _ in special]
    for values, at in zip(special, places, strict=True):
        values.flat[at] = [np.nan, np.inf, -np.inf, 0.0, -0.0, np.nan, 1e-40, -1e30, -np.inf]
    dx, dslope = fn.prelu_backward(dy, x, slope, axis=axis)
    exact, total = ref.prelu_backward(dy, x, slope, axis=axis)
    np.testing.assert_allclose(dx, exact, rtol=UNIT[dtype])
    assert_same_special_values(dslope, total)
    dx.flat[np.concatenate(places)] = want.flat[np.concatenate(places)]
    assert_same_bits(dx, want)


def assert_same_special_values(got, want):
    assert np.array_equal(np.isfinite(got), np.isfinite(want))
    np.testing.assert_array_equal(got[~np.isfinite(want)], want[~np.isfinite(want)])


@pytest.mark.parametrize(
    ("shape", "axis"), [((2, 3), 1), ((3, 7), 0), ((4, 100, 5), 1), ((2, 50_000), -1), ((6, 1), 1)]
)
@by_dtype
def test_prelu_of_a_slope_that_is_broadcast(shape, axis, dtype, isa):
    rng = np.random.default_rng(9)
    dy, x = (rng.normal(0, 2, shape).astype(dtype) for _ in range(2))
    slope = np.full(shape[axis], 0.25, dtype)
    repeated = np.broadcast_to(dtype(0.25), slope.shape)
    assert_same_bits(fn.prelu(x, repeated, axis=axis), fn.prelu(x, slope, axis=axis))
    for got, want in zip(
        fn.prelu_backward(dy, x, repeated, axis=axis), fn.prelu_backward(dy, x, slope, axis=axis), strict=True
    ):
        assert_same_bits(got, want)


@pytest.mark.parametrize("shape", [(3001, 70), (70, 3001), (40, 30, 200), (3000, 40, 3), (4, 60, 31, 33), (7, 50000)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dslope_of_large_arrays(shape, dtype, isa):
    rng = np.random.default_rng(8)
    dy, x = (rng.normal(0, 1, shape).astype(dtype) for _ in range(2))
    slope = rng.normal(0, 1, shape[1]).astype(dtype)
    with fn.runtime.threads(1):
        dx, dslope = fn.prelu_backward(dy, x, slope)
    term = np.moveaxis(np.where(x > 0, 0, dy.astype(np.longdouble) * x), 1, -1).reshape(-1, shape[1])
    bound = 2 * np.finfo(dtype).eps * np.abs(term).sum(0)
    assert np.all(np.abs(dslope - term.sum(0)) <= bound)
    with fn.runtime.threads(4):
        again = fn.prelu_backward(dy, x, slope)
    assert_same_bits(again[0], dx)
    assert_same_bits(again[1], dslope)


def test_prelu_of_scalars_layouts_and_edges(isa, tmp_path):
    assert fn.prelu(-2.0, 0.25) == -0.5 and fn.prelu(-2.0, 0.25).shape == ()
    dx, dslope = fn.prelu_backward(1.0, -2.0, 0.25)
    assert dx == 0.25 and dslope == -2.0 and dslope.shape == ()
    x = np.array([[-np.inf, -0.0, 0.0, np.inf, np.nan]], np.float32)
    np.testing.assert_array_equal(fn.prelu(x, 0.5), ref.prelu(x, 0.5))
    dy = np.full_like(x, np.nan)
    for slope in (0.5, 0.0, np.zeros(5, np.float32)):
        for got, want in zip(fn.prelu_backward(dy, x, slope), ref.prelu_backward(dy, x, slope), strict=True):
            np.testing.assert_array_equal(got, want)
    slope = np.linspace(-1, 1, 37, dtype=np.float32)
    values, grads = logits((11, 37), np.float32), logits((11, 37), np.float32, 1)
    y, (dx, dslope) = fn.prelu(values, slope), fn.prelu_backward(grads, values, slope)
    for (name, a), (_, dy) in zip(layouts(values, tmp_path), layouts(grads, tmp_path), strict=True):
        assert_same_bits(fn.prelu(a, slope), y, name)
        for got in (fn.prelu_backward(dy, values, slope), fn.prelu_backward(grads, a, slope)):
            assert_same_bits(got[0], dx, name)
            np.testing.assert_allclose(got[1], dslope, rtol=1e-6, atol=1e-5)
    for target in (0, 1):
        pair = [grads.copy(), values.copy()]
        got = fn.prelu_backward(*pair, slope, out=pair[target])
        assert got[0] is pair[target]
        assert_same_bits(got[0], dx)
        np.testing.assert_allclose(got[1], dslope, rtol=1e-6, atol=1e-5)
    for out in (values[::-1].copy()[::-1], values[:, ::-1].copy()[:, ::-1]):  # results that lie backwards
        got = fn.prelu_backward(grads, values, slope, out=out)
        assert_same_bits(got[0], dx)
        np.testing.assert_allclose(got[1], dslope, rtol=1e-6, atol=1e-5)
    out = values.copy()
    assert fn.prelu(out, slope, out=out) is out
    assert_same_bits(out, y)
    for shape in ((0, 3), (3, 0)):
        empty = np.zeros(shape, np.float32)
        dx, dslope = fn.prelu_backward(empty, empty, np.ones(shape[1], np.float32))
        assert dx.shape == shape and np.all(dslope == 0) and dslope.shape == (shape[1],)


@pytest.mark.parametrize("pieces", [2, 3])
def test_maxout_of_fields_of_records(pieces):
    """Elements whose distance is not a multiple of their size; between them lies what must stay."""
    records = np.zeros(pieces, [("value", np.float32), ("other", np.uint8)])
    records["other"] = 200
    records["value"] = np.arange(pieces)
    y, which = fn.maxout(records["value"], pieces, 0)
    assert y == which == pieces - 1
    fn.maxout_backward(np.float32([7]), which, pieces, 0, out=records["value"])
    np.testing.assert_array_equal(records["value"], [0] * (pieces - 1) + [7])
    np.testing.assert_array_equal(records["other"], 200)


@by_dtype
def test_maxout(dtype, isa):
    rng = np.random.default_rng(4)
    shapes = [((4, 6), 1, 2), ((4, 6), 1, 3), ((4, 6), 0, 4), ((2, 6, 3, 5), 1, 3), ((2, 3, 8), -1, 2), ((5, 4), 1, 1)]
    for shape, axis, pieces in shapes:
        x = rng.integers(-3, 3, shape).astype(dtype)  # with ties
        y, which = fn.maxout(x, pieces, axis)
        want, places = ref.maxout(x, pieces, axis)
        assert y.dtype == dtype and which.dtype == np.intp
        assert_same_bits(y, want)
        np.testing.assert_array_equal(which, places)
        dy = rng.normal(size=y.shape).astype(dtype)
        assert_same_bits(fn.maxout_backward(dy, which, pieces, axis), ref.maxout_backward(dy, which, pieces, axis))


def test_maxout_of_nan_layouts_overlap_and_nothing(isa, tmp_path):
    x = np.array([[1, np.nan, 3, np.nan, np.nan, 5], [-np.inf, -np.inf, 2, 2, np.inf, np.inf]], np.float32)
    y, which = fn.maxout(x, 2)
    want, places = ref.maxout(x, 2)
    assert_same_bits(y, want)
    np.testing.assert_array_equal(which, places)
    values = logits((9, 36), np.float32)
    y, which = fn.maxout(values, 3)
    dx = fn.maxout_backward(y, which, 3)
    for name, a in layouts(values, tmp_path):
        got, places = fn.maxout(a, 3)
        assert_same_bits(got, y, name)
        np.testing.assert_array_equal(places, which)
    for name, a in layouts(y, tmp_path):
        assert_same_bits(fn.maxout_backward(a, which, 3), dx, name)
    assert_same_bits(fn.maxout_backward(y, which.astype(np.int8)[:, ::-1][:, ::-1], 3), dx)
    shared = values.copy()
    out = shared.reshape(-1)[: y.size].reshape(y.shape)
    fn.maxout(shared, 3, out=out)
    assert_same_bits(out, y)
    big = np.zeros(values.shape, np.float32)
    small = big.reshape(-1)[-y.size :].reshape(y.shape)
    small[...] = y
    fn.maxout_backward(small, which, 3, out=big)
    assert_same_bits(big, dx)
    empty, places = fn.maxout(np.zeros((0, 4), np.float32))
    assert empty.shape == places.shape == (0, 2)
    assert fn.maxout_backward(empty, places).shape == (0, 4)
    assert fn.maxout(np.zeros((3, 0)))[0].shape == (3, 0)


def test_float32_softmax_is_better_than_the_plain_formula(isa):
    x = np.random.default_rng(5).normal(0, 10, (100, 1000)).astype(np.float32)
    e = np.exp(x - x.max(-1, keepdims=True))
    plain = e / e.sum(-1, keepdims=True)
    exact = ref.softmax(x.astype(np.float64))
    assert ulp_error(fn.softmax(x), exact).max() < ulp_error(plain, exact).max()


def test_results_over_slopes_labels_and_indices(isa):
    """The smaller argument may share memory with the result, too."""
    base = logits((40, 37), np.float32)
    want = fn.prelu(base, base[3].copy())
    x = base.copy()
    fn.prelu(x, x[3], out=x)
    assert_same_bits(x, want)
    dy = logits((40, 37), np.float32, 1)
    want_dx, want_dslope = fn.prelu_backward(dy, base, base[5].copy())
    x = base.copy()
    dx, dslope = fn.prelu_backward(dy, x, x[5], out=x)
    assert_same_bits(dx, want_dx)
    assert_same_bits(dslope, want_dslope)

    labels = np.arange(40) % 37
    raw = np.zeros((40, 37), np.float64)
    held = raw.reshape(-1).view(np.intp)[:40]
    held[...] = labels
    wide = base.astype(np.float64)
    want = fn.cross_entropy(wide, labels)
    loss, dlogits = fn.cross_entropy(wide, held, out=raw)
    assert loss == want[0]
    assert_same_bits(dlogits, want[1])

    y, which = fn.maxout(wide.T.copy(), 2)
    want = fn.maxout_backward(y, which, 2)
    raw = np.zeros(want.shape)
    held = raw.reshape(-1).view(np.intp)[-which.size :].reshape(which.shape)
    held[...] = which
    assert_same_bits(fn.maxout_backward(y, held, 2, out=raw), want)
