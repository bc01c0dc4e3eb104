"""Batch normalization against its plain NumPy twin and exact results, over layouts, dtypes, levels and threads."""

import itertools

import numpy as np
import pytest
from cases import DTYPES, Tagged, assert_begins_anywhere
from norms import close, layouts, near, same_bits
from numpy.exceptions import AxisError

import fastnn.reference as reference
from fastnn import normalization as fn
from fastnn import runtime

SHAPES = [
    ((32, 64), 1),
    ((7, 5), 1),
    ((2, 3), 1),
    ((1000, 3), 1),
    ((130, 100), 1),
    ((70, 300), 1),
    ((513, 700), 1),
    ((300, 8), 0),
    ((4, 3, 9), 1),
    ((16, 64, 8, 8), 1),
    ((5, 70, 7, 7), 1),
    ((9, 40, 25), 1),
    ((2, 1100, 36), 1),
    ((8, 20, 14, 14), 1),
    ((8, 20, 7, 7), -1),
    ((3, 2, 56, 56), 1),
    ((5, 6, 7, 3), 2),
    ((40, 6, 7, 7), 1),
    ((2, 70, 3, 3), 1),
    ((1, 40, 5), 1),
    ((7, 600, 4, 5), 1),
]
MANY_SAMPLES = [((130, 45, 7, 7), 1), ((260, 17, 9, 9), 1)]  # of small images: two passes through the data
ACTIVATIONS = [None, "relu", "leaky_relu", "sigmoid", "silu"]


def arrays(shape, axis, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) * 2 + 3).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    gamma, beta = rng.standard_normal((2, shape[axis])).astype(dtype)
    return x, dy, gamma, beta


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [*SHAPES, *MANY_SAMPLES])
def test_agrees_with_the_reference(shape, axis, dtype, activation):
    x, dy, gamma, beta = arrays(shape, axis, dtype)
    for g, b in ((gamma, beta), (None, None), (gamma.astype(np.float64), None)):
        y, mean, invstd = fn.batch_norm(x, g, b, axis=axis, activation=activation)
        expected, mean2, invstd2 = reference.batch_norm(x, g, b, axis=axis, activation=activation)
        assert y.dtype == x.dtype and mean.dtype == invstd.dtype == np.float64
        assert close(y, expected, dtype)
        np.testing.assert_allclose(mean, mean2, rtol=1e-13)
        np.testing.assert_allclose(invstd, invstd2, rtol=1e-13)
        got = fn.batch_norm_backward(dy, x, mean, invstd, g, axis=axis, activation=activation, beta=b)
        want = reference.batch_norm_backward(dy, x, mean, invstd, g, axis=axis, activation=activation, beta=b)
        for result, exact in zip(got, want, strict=True):
            assert result.dtype == exact.dtype and result.shape == exact.shape
            lowest = min(dtype, result.dtype.type, key=lambda d: np.dtype(d).itemsize)
            assert close(result, exact, lowest, 4 * np.max(np.abs(exact), initial=0))
        y = fn.batch_norm_inference(x, mean, np.ones_like(mean), g, b, axis=axis, activation=activation)
        assert close(
            y,
            reference.batch_norm_inference(x, mean, np.ones_like(mean), g, b, axis=axis, activation=activation),
            dtype,
        )
    for result, exact in zip(fn.batch_stats(x, axis=axis), reference.batch_stats(x, axis=axis), strict=True):
        np.testing.assert_allclose(result, exact, rtol=1e-13)


# Results that bypass the caches; rows and runs that do not begin on a cache line.
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((4001, 640), 1),
        ((4001, 611), 1),
        ((1501, 1500), 1),
        ((601, 4096), 1),
        ((61, 20, 49, 51), 1),
        ((700, 65, 7, 7), 1),
        ((400000, 7), 1),
        ((9000, 64, 5), 1),
        ((1000, 257, 9), 1),
        ((420, 257, 20), 1),
    ],
)
def test_large_arrays_agree_with_the_reference(shape, axis, dtype, activation):
    x, dy, gamma, beta = arrays(shape, axis, dtype)
    z = reference.batch_norm(x, gamma, beta, axis=axis)[0]
    dy[np.abs(z) < 1e-5] = 0  # at the kink of relu a rounding error decides
    rest = {"axis": axis, "activation": activation}
    with runtime.threads(2):
        y, mean, invstd = fn.batch_norm(x, gamma, beta, **rest)
        got = fn.batch_norm_backward(dy, x, mean, invstd, gamma, beta=beta, **rest)
        inference = fn.batch_norm_inference(x, mean, invstd, gamma, beta, **rest)
        assert same_bits(fn.batch_norm(place := x.copy(), gamma, beta, **rest, out=place), (y, mean, invstd))
        assert same_bits(fn.batch_stats(x, axis=axis)[:1], (mean,))
    assert close(y, reference.batch_norm(x, gamma, beta, **rest)[0], dtype)
    assert close(inference, reference.batch_norm_inference(x, mean, invstd, gamma, beta, **rest), dtype)
    want = reference.batch_norm_backward(dy, x, mean, invstd, gamma, beta=beta, **rest)
    for result, exact in zip(got, want, strict=True):
        assert close(result, exact, dtype, 4 * np.max(np.abs(exact)))


# Several pieces: of channels, beside each other and apart; in inference of samples, or of channels where they are many.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis"), [((9000, 300), 1), ((3, 70, 60, 90), 1), ((40, 60, 70, 9), -1), ((24, 90000), 1)]
)
def test_arrays_that_are_copied_in_pieces(shape, axis, dtype):
    x, dy, gamma, beta = (np.repeat(a, 2, -1)[..., ::2] for a in arrays(shape, axis, dtype))
    y, mean, invstd = fn.batch_norm(x, gamma, beta, axis=axis)
    expected, mean2, invstd2 = reference.batch_norm(x, gamma, beta, axis=axis)
    assert close(y, expected, dtype)
    np.testing.assert_allclose(mean, mean2, rtol=1e-13)
    np.testing.assert_allclose(invstd, invstd2, rtol=1e-13)
    out = np.empty((*shape[:-1], shape[-1] + 1), dtype)[..., 1:]
    assert fn.batch_norm_inference(x, mean, invstd**-2, gamma, beta, eps=0.0, axis=axis, out=out) is out
    assert close(out, expected, dtype)
    got = fn.batch_norm_backward(dy, x, mean, invstd, gamma, axis=axis, out=out)
    assert got[0] is out
    for result, exact in zip(got, reference.batch_norm_backward(dy, x, mean, invstd, gamma, axis=axis), strict=True):
        assert close(result, exact, dtype, 4 * np.max(np.abs(exact)))
    with runtime.threads(1):
        assert same_bits(fn.batch_norm(x, gamma, beta, axis=axis), (y, mean, invstd))
        assert same_bits(fn.batch_norm_backward(dy, x, mean, invstd, gamma, axis=axis), got)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        *SHAPES,
        *MANY_SAMPLES,
        ((48, 1500), 1),
        ((2, 1024, 7, 7), 1),
        ((70000, 16), 1),
        ((64, 48, 40, 40), 1),
        ((20000, 600), 1),
    ],
)
def test_bits_depend_on_neither_threads_nor_level(shape, axis, dtype):
    x, dy, gamma, beta = arrays(shape, axis, dtype)

    def everything():
        y, mean, invstd = fn.batch_norm(x, gamma, beta, axis=axis, activation="relu")
        back = fn.batch_norm_backward(dy, x, mean, invstd, gamma, axis=axis, activation="relu", beta=beta)
        return y, mean, invstd, *back, fn.batch_norm_inference(x, mean, invstd, gamma, beta, axis=axis)

    best = runtime.available_isas()[-1]  # whatever FASTNN_ISA is
    with runtime.use_isa(best), runtime.threads(1):
        expected = everything()
    for number in (2, 3, 7):
        with runtime.use_isa(best), runtime.threads(number):
            assert same_bits(everything(), expected), number
    for name in runtime.available_isas():
        if name != "baseline":  # it has no fused multiply-add
            with runtime.use_isa(name):
                assert same_bits(everything(), expected), name


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("ratio", [0, 1, 3, 100, 1e4])
@pytest.mark.parametrize("count", [2, 3, 100, 20000])
def test_normalized_output_is_exact_to_4e_7(count, ratio, scale, isa):
    rng = np.random.default_rng(count)
    x = ((rng.standard_normal((count, 4)) + ratio) * scale).astype(np.float32)
    wide = x.astype(np.longdouble)
    with runtime.use_isa(isa):
        for eps in (0.0, 1e-5):
            exact = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + np.longdouble(eps))
            for a, axis, want in ((x, 1, exact), (np.ascontiguousarray(x.T), 0, exact.T)):
                assert np.max(np.abs(fn.batch_norm(a, eps=eps, axis=axis)[0] - want)) <= 4e-7


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("ratio", [0, 100, 1e4, 1e6])
def test_float64_is_as_near_as_documented(ratio, scale, isa):
    for shape in ((10, 40), (1000, 40), (50_000, 3)):
        rng = np.random.default_rng(1)
        x, dy = (rng.standard_normal(shape) + ratio) * scale, rng.standard_normal(shape)
        wide, g = x.astype(np.longdouble), dy.astype(np.longdouble)
        invstd = 1 / np.sqrt(wide.var(0))
        exact = (wide - wide.mean(0)) * invstd
        sums = (g * exact).sum(0), g.sum(0)
        slope = invstd * (g - sums[1] / len(x) - exact * sums[0] / len(x))
        limit = 1e-15 * (10 + ratio)
        rows = np.ascontiguousarray(x.T), np.ascontiguousarray(dy.T)
        with runtime.use_isa(isa):
            y, *saved = fn.batch_norm(x, eps=0.0)
            gradients = fn.batch_norm_backward(dy, x, *saved)
            z, *kept = fn.layer_norm(rows[0], eps=0.0)
            dz = fn.layer_norm_backward(rows[1], rows[0], *kept)[0]
        for normalized in (y, z.T):
            assert np.all(np.abs(normalized - exact) <= limit * np.maximum(1, np.abs(exact)))
        for got, want in zip((*gradients, dz.T), (slope, *sums, slope), strict=True):
            assert np.abs(got - want).max() <= limit * np.abs(want).max()


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("first", [None, 1e2, 1e4, 1e8])
@pytest.mark.parametrize("mean", [0.0, 1e4, 1e6])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_statistics_are_as_near_as_documented(dtype, mean, first, isa):
    for shape, axis in (((50_000, 3), 1), ((100, 40), 1), ((3, 50_000), 0), ((70, 3, 11), 1)):
        x = (np.random.default_rng(0).standard_normal(shape) + mean).astype(dtype)
        axes = tuple(i for i in range(x.ndim) if i != axis)
        if first is not None:
            np.moveaxis(x, axis, -1)[(0,) * len(axes)] = first
        wide = x.astype(np.longdouble)
        exact, squares = wide.mean(axes), wide.var(axes)
        with runtime.use_isa(isa):
            got, var = fn.batch_stats(x, axis=axis)
        assert np.all(np.abs(var - squares) <= 1e-12 * squares)
        assert np.all(np.abs(got - exact) <= 1e-12 * np.maximum(np.abs(exact), np.sqrt(squares)))


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("first", [0.0, 1e2, 1e6])
def test_a_first_value_far_from_the_others_costs_no_digits(first, isa):
    """Padding, or a black pixel: the shift of the sums of doubles."""
    rng = np.random.default_rng(0)
    for shape, axis in (((20_000, 5), 1), ((20_000, 1), 1), ((4, 3, 20, 300), 1), ((3, 4, 70), 1), ((260, 9, 81), 1)):
        x = rng.standard_normal(shape) + 100
        np.moveaxis(x, axis, -1)[(0,) * (x.ndim - 1)] = first
        red = tuple(i for i in range(x.ndim) if i != axis)
        wide = x.astype(np.longdouble)
        mean = wide.mean(red, keepdims=True)
        invstd = 1 / np.sqrt(wide.var(red, keepdims=True) + np.longdouble(1e-5))
        exact = (wide - mean) * invstd
        limit = 1e-14 * (10 + np.abs(mean) * invstd) * np.maximum(1, np.abs(exact))
        flat = np.ascontiguousarray(np.moveaxis(x, axis, 0)).reshape(x.shape[axis], -1)
        with runtime.use_isa(isa):
            y = fn.batch_norm(x, axis=axis)[0]
            z = fn.layer_norm(flat)[0].reshape(np.moveaxis(x, axis, 0).shape)
        assert np.all(np.abs(y - exact) <= limit)
        assert np.all(np.abs(np.moveaxis(z, 0, axis) - exact) <= limit)


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("ratio", [0, 100])
@pytest.mark.parametrize("outlier", [30, 3000, 1e6])
def test_normalized_outliers_are_exact_to_4e_7_of_themselves(outlier, ratio, isa):
    x = np.random.default_rng(0).standard_normal((1000, 4)) + ratio
    x[17] += outlier
    x = x.astype(np.float32)
    wide = x.astype(np.longdouble)
    exact = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + np.longdouble(1e-5))
    limit = 4e-7 * np.maximum(1, np.abs(exact))
    with runtime.use_isa(isa):
        assert np.all(np.abs(fn.batch_norm(x)[0] - exact) <= limit)
        assert np.all(np.abs(fn.layer_norm(np.ascontiguousarray(x.T))[0] - exact.T) <= limit.T)


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("ratio", [0, 100, 1e4])
@pytest.mark.parametrize("count", [2, 3, 100, 20000])
def test_gradients_are_exact_to_1e_5(count, ratio, scale, isa):
    rng = np.random.default_rng(count)
    x = ((rng.standard_normal((count, 4)) + ratio) * scale).astype(np.float32)
    wide = x.astype(np.longdouble)
    centered = wide - wide.mean(0)
    invstd = 1 / np.sqrt((centered**2).mean(0) + np.longdouble(1e-5))
    x_hat = centered * invstd
    with runtime.use_isa(isa):
        y, mean, r = fn.batch_norm(x)
        for dy in (rng.standard_normal(x.shape).astype(np.float32), y):
            g = dy.astype(np.longdouble)
            exact = (
                invstd * (g - g.mean(0) - x_hat * (g * x_hat).mean(0)),
                (g * x_hat).sum(0),
                g.sum(0),
            )
            dx, dgamma, dbeta = fn.batch_norm_backward(dy, x, mean, r)
            for c in range(4):
                assert near(dx[:, c], exact[0][:, c], invstd[c] * np.max(np.abs(g)))
            assert near(dgamma, exact[1])
            if np.max(np.abs(exact[2])) > 1e-3:  # the sum of y is 0 but for its rounding
                assert near(dbeta, exact[2])


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [MANY_SAMPLES[1][0], (6, 17, 4, 5), (2, 17, 3, 3), (9, 17, 3, 3), (5, 17, 9, 9)])
def test_channels_that_are_redone_between_others(shape, threads, isa):
    """float32 data too far from zero for float sums."""
    x, dy, gamma, _ = arrays(shape, 1, np.float32)
    x[:, [0, 7, 8, 16]] *= 1e-3
    x[:, [0, 7, 8, 16]] += 1000
    wide, g, weight = (a.astype(np.longdouble) for a in (x, dy, gamma.reshape(17, 1, 1)))
    red = {"axis": (0, 2, 3), "keepdims": True}
    hat = (wide - wide.mean(**red)) / np.sqrt(wide.var(**red) + np.longdouble(1e-5))
    exact = (g - g.mean(**red) - hat * (g * hat).mean(**red)) * weight / np.sqrt(wide.var(**red) + np.longdouble(1e-5))
    with runtime.use_isa(isa), runtime.threads(threads):
        y, mean, invstd = fn.batch_norm(x)
        dx, dgamma, dbeta = fn.batch_norm_backward(dy, x, mean, invstd, gamma)
        for which in range(2):
            operands = [dy.copy(), x.copy()]
            again = fn.batch_norm_backward(*operands, mean, invstd, gamma, out=operands[which])
            assert again[0] is operands[which] and same_bits(again, (dx, dgamma, dbeta))
    assert np.all(np.abs(y - hat) <= 4e-7 * np.maximum(1, np.abs(hat)))
    for channel in range(17):
        assert near(dx[:, channel], exact[:, channel])
    assert near(dgamma, (g * hat).sum((0, 2, 3))) and near(dbeta, g.sum((0, 2, 3)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1234, -7.0, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-5])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((1, 3), 1), ((1000, 3), 1), ((5, 3, 41), 1), ((4, 6, 6, 3), -1), ((6, 3, 4, 5), 1), ((300, 3, 20, 20), 1)],
)
def test_a_constant_channel_gives_exactly_beta(shape, axis, eps, constant, dtype):
    x = np.full(shape, constant, dtype)
    gamma, beta = np.array([1.5, -2, 1e3], dtype), np.array([0.1, -3, 1e-3], dtype)
    y, mean, _ = fn.batch_norm(x, gamma, beta, eps=eps, axis=axis)
    assert np.array_equal(np.moveaxis(y, axis, -1).reshape(-1, 3), np.broadcast_to(beta, (x.size // 3, 3)))
    assert np.all(mean == x.flat[0])


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((64, 8), 1), ((64, 3, 8), -1), ((6, 8, 9, 9), 1), ((2, 8, 4000), 1), ((6, 8, 4, 5), 1), ((300, 8, 144), 1)],
)
@pytest.mark.parametrize(("size", "slope", "weight"), [(1e-10, 1e-14, 1e32), (1.0, 1e14, 1e-43), (1e30, 1e14, 1e-12)])
def test_gamma_and_scale_at_the_ends_of_the_range(shape, axis, size, slope, weight, isa):
    """gamma * invstd leaves float32's normal numbers, dx does not."""
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(1, 1, (2, *shape)) * np.array([size, slope]).reshape(2, *[1] * len(shape))).astype(np.float32)
    gamma = (rng.uniform(1, 2, 8) * weight).astype(np.float32)
    _, mean, invstd = reference.batch_norm(x, axis=axis, eps=0)
    wide = [a.astype(np.float64) for a in (dy, x)]
    got = fn.batch_norm_backward(dy, x, mean, invstd, gamma, axis=axis)[0]
    want = reference.batch_norm_backward(*wide, mean, invstd, gamma.astype(np.float64), axis=axis)[0]
    assert np.all(np.abs(got - want) <= 1e-5 * np.abs(want).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), [((1, 7), 1), ((1, 1, 7), -1), ((1, 5, 1, 1), 1)])
def test_a_single_value_has_no_gradient(shape, axis, dtype, isa):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(3, 2, (2, *shape)).astype(dtype)
    gamma = rng.normal(size=x.shape[axis]).astype(dtype)
    _, mean, invstd = fn.batch_norm(x, gamma, axis=axis)
    assert np.all(fn.batch_norm_backward(dy, x, mean, invstd, gamma, axis=axis)[0] == 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((40, 64), 1), ((5, 6, 40), 1), ((4, 9, 9, 5), -1), ((6, 5, 3, 3), 1), ((2, 5, 3, 3), 1), *MANY_SAMPLES],
)
def test_nan_and_inf_stay_in_their_channel(shape, axis, bad):
    x, dy, gamma, beta = arrays(shape, axis, np.float32)
    clean = fn.batch_norm(x, gamma, beta, axis=axis, activation="relu")
    clean_dx = fn.batch_norm_backward(dy, x, *clean[1:], gamma, axis=axis, activation="relu", beta=beta)[0]
    for place in (0, x.size // 2):
        broken = x.copy()
        broken.flat[place] = bad
        channel = np.unravel_index(place, shape)[axis]
        y, mean, invstd = fn.batch_norm(broken, gamma, beta, axis=axis, activation="relu")
        dx = fn.batch_norm_backward(dy, broken, mean, invstd, gamma, axis=axis, activation="relu", beta=beta)[0]
        for result, expected in ((y, clean[0]), (dx, clean_dx)):
            result, expected = np.moveaxis(result, axis, 0), np.moveaxis(expected, axis, 0)
            assert np.isnan(result[channel]).all()
            assert np.array_equal(np.delete(result, channel, 0), np.delete(expected, channel, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((33, 7), 1), ((6, 5, 40), 1), ((3, 6, 5, 4), -1)])
def test_any_layout(shape, axis, dtype):
    x, dy, gamma, beta = arrays(shape, axis, dtype)
    y, mean, invstd = fn.batch_norm(x, gamma, beta, axis=axis, activation="silu")
    dx = fn.batch_norm_backward(dy, x, mean, invstd, gamma, axis=axis, activation="silu", beta=beta)[0]
    for name, other in layouts(x).items():
        y2, mean2, _ = fn.batch_norm(other, gamma, beta, axis=axis, activation="silu")
        assert y2.dtype.isnative and close(y2, y, dtype), name
        np.testing.assert_allclose(mean2, mean, rtol=1e-13)
        dx2 = fn.batch_norm_backward(dy, other, mean, invstd, gamma, axis=axis, activation="silu", beta=beta)[0]
        assert close(dx2, dx, dtype), name
        np.testing.assert_allclose(fn.batch_stats(other, axis=axis)[0], mean, rtol=1e-13)


@pytest.mark.parametrize("activation", [None, "relu", "sigmoid"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), [((40, 70), 1), ((6, 5, 40), 1), ((30, 6, 5), 1), ((6, 9, 4, 5), 1)])
def test_out_with_any_overlap(shape, axis, dtype, activation):
    x, dy, gamma, beta = arrays(shape, axis, dtype)
    n = x.size
    y, mean, invstd = fn.batch_norm(x, gamma, beta, axis=axis, activation=activation)
    dx = fn.batch_norm_backward(dy, x, mean, invstd, gamma, axis=axis, activation=activation, beta=beta)[0]
    for offset in (0, 1, n // 2, n - 1, n):
        for sign in (1, -1):
            memory = np.zeros(3 * n, dtype)
            a = memory[n : 2 * n].reshape(shape)
            out = memory[n + sign * offset : 2 * n + sign * offset].reshape(shape)
            a[...] = x
            result = fn.batch_norm(a, gamma, beta, axis=axis, activation=activation, out=out)[0]
            assert result is out and np.array_equal(out, y)
            for which in range(2):
                a[...] = (dy, x)[which]
                operands = (a, x) if which == 0 else (dy, a)
                result = fn.batch_norm_backward(
                    *operands, mean, invstd, gamma, axis=axis, activation=activation, beta=beta, out=out
                )[0]
                assert result is out and np.array_equal(out, dx)
    out = np.zeros(shape[::-1], dtype).T
    assert np.array_equal(fn.batch_norm(x, gamma, beta, axis=axis, activation=activation, out=out)[0], y)


def test_the_result_may_be_the_transposed_input():
    x = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    y = fn.batch_norm(x)[0]
    assert np.array_equal(fn.batch_norm(x, out=x.T)[0], y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((64, 64), 1), ((150, 100), 1), ((40, 300), 1), ((3000, 3), 1), ((6, 7, 9, 48), -1), MANY_SAMPLES[1]],
)
def test_results_begin_anywhere(shape, axis, dtype):
    """Results are written in whole cache lines, whose first need not be the first column's."""
    x, dy, gamma, beta = arrays(shape, axis, dtype)
    want, mean, invstd = fn.batch_norm(x, gamma, beta, axis=axis, activation="relu")
    rest = {"axis": axis, "activation": "relu"}
    want_dx = fn.batch_norm_backward(dy, x, mean, invstd, gamma, beta=beta, **rest)[0]
    assert_begins_anywhere(lambda out: fn.batch_norm(x, gamma, beta, **rest, out=out), want, range(17))
    assert_begins_anywhere(
        lambda out: fn.batch_norm_backward(dy, x, mean, invstd, gamma, beta=beta, **rest, out=out), want_dx, range(17)
    )


def test_results_in_subclasses():
    x, dy, gamma, beta = arrays((40, 70), 1, np.float32)
    y, mean, invstd = fn.batch_norm(x, gamma, beta)
    out = np.zeros_like(x).view(Tagged)
    assert fn.batch_norm(x, gamma, beta, out=out)[0] is out and np.array_equal(out, y)
    assert fn.batch_norm(x, gamma, beta, out=out.T.copy().T)[0].dtype == np.float32
    dx = fn.batch_norm_backward(dy, x, mean, invstd, gamma)[0]
    assert fn.batch_norm_backward(dy, x, mean, invstd, gamma, out=out)[0] is out and np.array_equal(out, dx)
    inferred = fn.batch_norm_inference(x, mean, mean * mean, gamma, beta)
    assert fn.batch_norm_inference(x, mean, mean * mean, gamma, beta, out=out) is out and np.array_equal(out, inferred)
    assert type(fn.batch_norm(x.view(Tagged).T, axis=0)[0]) is np.ndarray
    out = np.zeros_like(x).view(Closed)
    assert fn.batch_norm(x, gamma, beta, out=out)[0] is out and np.array_equal(np.asarray(out), y)


class Closed(np.ndarray):
    """A subclass on which NumPy's functions do not work."""

    def __array_function__(self, *call):
        raise TypeError(f"{call[0]} is not for this class")


def test_integers_and_bools_are_taken_as_float64():
    x = np.arange(24).reshape(8, 3) % 5
    for a in (x, x > 2, x.astype(np.uint8)):
        y, mean, invstd = fn.batch_norm(a)
        expected = reference.batch_norm(a)
        assert y.dtype == np.float64 and close(y, expected[0], np.float64)
        dx = fn.batch_norm_backward(np.ones((8, 3), np.float32) * np.arange(3), a, mean, invstd)[0]
        assert dx.dtype == np.float64


def test_dtypes_of_the_gradients():
    for a, b, g in itertools.product(DTYPES, DTYPES, [None, *DTYPES]):
        x, dy = np.arange(12).reshape(6, 2).astype(a), np.ones((6, 2), b)
        gamma = None if g is None else np.ones(2, g)
        mean, invstd = fn.batch_norm(x)[1:]
        dx, dgamma, dbeta = fn.batch_norm_backward(dy, x, mean, invstd, gamma)
        assert dx.dtype == np.result_type(a, b)
        assert dgamma.dtype == dbeta.dtype == np.dtype(a if g is None else g)


X = np.ones((4, 3), np.float32)
V = np.ones(3)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "empty", lambda f: f.batch_norm(np.ones((0, 3)))),
        (ValueError, "empty", lambda f: f.batch_norm(np.ones((4, 3, 0)))),
        (ValueError, "empty", lambda f: f.batch_norm_backward(np.ones((0, 3)), np.ones((0, 3)), V, V)),
        (ValueError, "empty", lambda f: f.batch_stats(np.ones((0, 3)))),
        (ValueError, "dimensions", lambda f: f.batch_norm(np.ones(3))),
        (ValueError, "gamma has shape", lambda f: f.batch_norm(X, np.ones(4))),
        (ValueError, "gamma has shape", lambda f: f.batch_norm(X, np.ones((1, 3)))),
        (ValueError, "beta has shape", lambda f: f.batch_norm(X, None, np.ones(4))),
        (ValueError, "mean has shape", lambda f: f.batch_norm_inference(X, np.ones(4), V)),
        (ValueError, "var has shape", lambda f: f.batch_norm_inference(X, V, np.ones(2))),
        (ValueError, "invstd has shape", lambda f: f.batch_norm_backward(X, X, V, np.ones(2))),
        (ValueError, "dy has shape", lambda f: f.batch_norm_backward(X[:2], X, V, V)),
        (AxisError, "axis 2", lambda f: f.batch_norm(X, axis=2)),
        (AxisError, "axis -3", lambda f: f.batch_stats(X, axis=-3)),
        (TypeError, "axis", lambda f: f.batch_norm(X, axis=1.0)),
        (ValueError, "eps", lambda f: f.batch_norm(X, eps=-1e-5)),
        (ValueError, "eps", lambda f: f.batch_norm(X, eps=float("nan"))),
        (ValueError, "eps", lambda f: f.batch_norm_inference(X, V, V, eps=float("inf"))),
        (TypeError, "eps", lambda f: f.batch_norm(X, eps="small")),
        (ValueError, "activation", lambda f: f.batch_norm(X, activation="softmax")),
        (TypeError, "activation", lambda f: f.batch_norm(X, activation=len)),
        (TypeError, "complex", lambda f: f.batch_norm(X + 1j)),
        (TypeError, "masked", lambda f: f.batch_norm(np.ma.masked_array(X))),
        (TypeError, "out", lambda f: f.batch_norm(X, out=[1])),
        (TypeError, "float64", lambda f: f.batch_norm(X, out=np.ones((4, 3)))),
        (ValueError, "shape", lambda f: f.batch_norm(X, out=np.ones((3, 4), np.float32))),
        (ValueError, "read-only", lambda f: f.batch_norm(X, out=np.broadcast_to(np.float32(1), (4, 3)))),
    ],
)
@pytest.mark.parametrize("functions", [fn, reference], ids=["fastnn", "reference"])
def test_mistakes(functions, error, match, call):
    with pytest.raises(error, match=match):
        call(functions)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_data_gives_infinite_results_in_inference(dtype, isa):
    gamma = np.linspace(-3, 3, 40)  # of even length: none is 0
    mean, var = np.linspace(-2, 2, 40), np.geomspace(1e-6, 1, 40)
    for value in (np.inf, np.finfo(dtype).max):
        x = np.outer([1, -1], np.full(40, value)).astype(dtype)
        y = fn.batch_norm_inference(x, mean, np.where(np.isinf(value), var, var * 1e-8), gamma)
        assert np.array_equal(y[0], np.where(gamma > 0, np.inf, -np.inf)) and np.array_equal(y[1], -y[0])


@pytest.mark.parametrize("shape", [(6, 1), (6, 40), (6, 40, 25), (6, 3, 8, 8)])
def test_inference_of_data_far_from_the_statistics_is_right_where_the_result_fits(shape, isa):
    x = np.resize(np.array([1e38, -3e38, 3.4e38, 7, 0], np.float32), shape)
    mean, var, gamma = (np.full(shape[1], value) for value in (-3e38, 0.05, 1e-2))
    y = fn.batch_norm_inference(x, mean, var, gamma)
    expected = reference.batch_norm_inference(x, mean, var, gamma)
    assert np.all(np.isfinite(expected)) and np.allclose(y, expected, rtol=3e-7, atol=0)


def test_no_channels_and_an_empty_inference_give_empty_results():
    y, mean, invstd = fn.batch_norm(np.ones((4, 0)))
    assert y.shape == (4, 0) and mean.shape == invstd.shape == (0,)
    assert fn.batch_norm_inference(np.ones((0, 3)), V, V).shape == (0, 3)
