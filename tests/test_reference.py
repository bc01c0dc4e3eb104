"""The oracle has an oracle: mpmath, long double sums and finite differences stand behind the NumPy reference."""

import mpmath
import numpy as np
import pytest
from cases import sample, zero_of

import fastnn as fn
import fastnn.reference as ref
from fastnn._table import ACTIVATIONS
from fastnn.bench import oracle

# ULP of float64; the kernels' float32 errors are measured against these, where they count for 2**-29 of that.
ACTIVATION_ULP = 6.0

by_row = pytest.mark.parametrize("row", ACTIVATIONS, ids=lambda row: row.name)


@by_row
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_activations_against_mpmath(row, direction):
    pytest.importorskip("mpmath")
    x = np.concatenate([sample(np.float64, 300), oracle.float64_sample(row, "forward", 100)])
    x = x[np.isfinite(x)]
    saved = oracle.exact_float64(row, "forward", x) if row.saved == "y" and direction == "backward" else x
    exact, low = oracle.exact_mpmath(row, direction, saved)
    got = oracle.exact_float64(row, direction, saved)
    error = oracle.ulp_error(got, exact, low)
    zero = zero_of(row)
    if direction == "backward" and zero is not None:  # near an interior zero only the absolute error is small
        error = np.where(np.abs(saved - zero) < 0.5, np.abs(got - exact) / 2.0**-53, error)
    worst = int(np.argmax(error))
    assert error[worst] <= ACTIVATION_ULP, (saved[worst], got[worst], exact[worst], error[worst])


@pytest.mark.parametrize("left", [0, 1])
def test_arrays_of_as_many_dimensions_as_numpy_has(left):
    most = 64 if int(np.__version__.split(".")[0]) >= 2 else 32
    x = np.linspace(-3, 3, 8, dtype=np.float32).reshape((2,) * 3 + (1,) * (most - left - 3))
    for name in ("gelu", "gelu_backward", "softmax", "log_softmax", "softmax_backward"):
        arrays = (x, x) if name.endswith("backward") else (x,)
        np.testing.assert_allclose(getattr(ref, name)(*arrays), getattr(fn, name)(*arrays), rtol=1e-5, atol=1e-7)
    (y, which), (exact, first) = fn.maxout(x), ref.maxout(x)
    assert np.array_equal(y, exact) and np.array_equal(which, first) and exact.shape == first.shape == y.shape
    assert np.array_equal(ref.maxout_backward(y, which), fn.maxout_backward(y, which))


def test_exponential_units_at_the_ends_of_the_range():
    # exp(x / alpha) overflows alone, alpha * exp(x / alpha) does not
    x, alpha = np.array([-7.129887717354647]), -0.01
    exact = alpha * mpmath.expm1(mpmath.mpf(x[0]) / mpmath.mpf(alpha))
    assert abs(ref.celu(x, alpha)[0] / exact - 1) < 1e-13
    assert np.array_equal(np.signbit(ref.elu(np.array([0.0, -0.0]), -1.0)), [False, True])


def test_softplus_where_the_exponential_alone_is_subnormal():
    x, beta = -7.4e12, 1e-10
    with mpmath.workprec(200):
        exact = float(mpmath.log1p(mpmath.exp(mpmath.mpf(beta) * mpmath.mpf(x))) / mpmath.mpf(beta))
    assert ref.softplus(np.array([x]), beta)[0] == pytest.approx(exact, rel=1e-11, abs=0)


def test_softmax_against_long_double():
    x = np.random.default_rng(0).normal(0, 30, (20, 300))
    e = np.exp(x.astype(np.longdouble) - x.max(-1, keepdims=True))
    exact = e / e.sum(-1, keepdims=True)
    np.testing.assert_allclose(ref.softmax(x), exact.astype(np.float64), rtol=1e-15)
    np.testing.assert_allclose(ref.log_softmax(x), np.log(exact).astype(np.float64), rtol=1e-13, atol=1e-18)
    labels = np.arange(20)
    loss, dlogits = ref.cross_entropy(x, labels)
    assert loss == pytest.approx(float(-np.log(exact[labels, labels]).mean()), rel=1e-14)
    exact[labels, labels] -= 1
    np.testing.assert_allclose(dlogits, (exact / 20).astype(np.float64), rtol=1e-12, atol=1e-17)


SHAPES = [(7, 4), (5, 4, 3), (3, 4, 2, 5)]


def vectors(*shape):
    rng = np.random.default_rng(1)
    return rng.normal(1, 0.3, shape), rng.normal(0, 1, shape)


def exact_norm(x, axes, gamma, beta, eps=1e-5, centered=True):
    """y by the textbook's formula in long double."""
    x = x.astype(np.longdouble)
    if centered:  # even these digits do not sum numbers near 1e12 to better than 1e-8
        x = x - x.flat[0]
    mean = x.mean(axes, keepdims=True) if centered else 0
    var = ((x - mean) ** 2).mean(axes, keepdims=True)
    return ((x - mean) / np.sqrt(var + eps) * gamma + beta).astype(np.float64)


def along(v, axis, ndim):
    return v.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])


def norms(shape):
    """(name, forward(x, gamma, beta), backward(dy, x, stats, gamma), axes of the statistics, shape of gamma)."""
    ndim = len(shape)
    spatial = tuple(range(2, ndim))
    for axis in range(ndim):
        others = tuple(i for i in range(ndim) if i != axis)
        yield (
            f"batch_norm axis {axis}",
            lambda x, g, b, axis=axis: ref.batch_norm(x, g, b, axis=axis),
            lambda dy, x, stats, g, axis=axis: ref.batch_norm_backward(dy, x, *stats, g, axis=axis),
            lambda x, g, b, others=others, axis=axis: exact_norm(x, others, along(g, axis, ndim), along(b, axis, ndim)),
            (shape[axis],),
        )
        inner = tuple(range(axis, ndim))
        yield (
            f"layer_norm axis {axis}",
            lambda x, g, b, axis=axis: ref.layer_norm(x, g, b, axis=axis),
            lambda dy, x, stats, g, axis=axis: ref.layer_norm_backward(dy, x, *stats, g, axis=axis),
            lambda x, g, b, inner=inner: exact_norm(x, inner, g, b),
            shape[axis:],
        )
        yield (
            f"rms_norm axis {axis}",
            lambda x, g, b, axis=axis: ref.rms_norm(x, g, axis=axis),
            lambda dy, x, stats, g, axis=axis: ref.rms_norm_backward(dy, x, *stats, g, axis=axis),
            lambda x, g, b, inner=inner: exact_norm(x, inner, g, 0, centered=False),
            shape[axis:],
        )
    for groups in (1, 2, 4):

        def grouped(x, g, b, groups=groups):
            split = x.reshape(shape[0], groups, shape[1] // groups, *shape[2:])
            y = exact_norm(split, tuple(range(2, split.ndim)), 1, 0).reshape(shape)
            return y * along(g, 1, ndim) + along(b, 1, ndim)

        yield (
            f"group_norm of {groups}",
            lambda x, g, b, groups=groups: ref.group_norm(x, groups, g, b),
            lambda dy, x, stats, g, groups=groups: ref.group_norm_backward(dy, x, *stats, groups, g),
            grouped,
            (4,),
        )
    if spatial:
        yield (
            "instance_norm",
            lambda x, g, b: ref.instance_norm(x, g, b),
            lambda dy, x, stats, g: ref.instance_norm_backward(dy, x, *stats, g),
            lambda x, g, b: exact_norm(x, spatial, along(g, 1, ndim), along(b, 1, ndim)),
            (4,),
        )


CASES = [(shape, *case) for shape in SHAPES for case in norms(shape)]
by_norm = pytest.mark.parametrize(
    ("shape", "name", "forward", "backward", "exact", "vector"), CASES, ids=[f"{c[0]} {c[1]}" for c in CASES]
)


@by_norm
def test_normalizations_against_long_double(shape, name, forward, backward, exact, vector):
    x = np.random.default_rng(2).normal(3, 2, shape)
    gamma, beta = vectors(*vector)
    y, *_ = forward(x, gamma, beta)
    np.testing.assert_allclose(y, exact(x, gamma, beta), rtol=1e-12, atol=1e-13)


@by_norm
def test_normalizations_against_finite_differences(shape, name, forward, backward, exact, vector):
    rng = np.random.default_rng(3)
    x, dy = rng.normal(3, 2, shape), rng.normal(0, 1, shape)
    gamma, beta = vectors(*vector)
    _, *stats = forward(x, gamma, beta)
    gradients = backward(dy, x, stats, gamma)

    def loss(x, gamma, beta):
        return float(np.sum(dy * exact(x, gamma, beta)))

    arguments = [x, gamma, beta]
    for which, gradient in enumerate(gradients):
        assert gradient.shape == arguments[which].shape
        for index in list(np.ndindex(gradient.shape))[:: max(1, gradient.size // 7)]:
            sides = []
            for step in (1e-5, -1e-5):
                moved = [a.copy() for a in arguments]
                moved[which][index] += step
                sides.append(loss(*moved))
            assert gradient[index] == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-6, abs=1e-7), (name, index)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh", "gelu", "elu"])
def test_fused_activation_is_the_activation_afterwards(activation):
    rng = np.random.default_rng(4)
    x, dy = rng.normal(3, 2, (9, 4, 3)), rng.normal(0, 1, (9, 4, 3))
    gamma, beta = vectors(4)
    y, mean, invstd = ref.batch_norm(x, gamma, beta)
    z, *stats = ref.batch_norm(x, gamma, beta, activation=activation)
    function, derivative = getattr(ref, activation), getattr(ref, activation + "_backward")
    np.testing.assert_array_equal(z, function(y))
    np.testing.assert_array_equal(stats, [mean, invstd])
    saved = z if activation in ("sigmoid", "tanh", "relu") else y
    got = ref.batch_norm_backward(dy, x, mean, invstd, gamma, activation=activation, beta=beta)
    want = ref.batch_norm_backward(derivative(dy, saved), x, mean, invstd, gamma)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    var = 1 / invstd**2 - 1e-5
    np.testing.assert_allclose(ref.batch_norm_inference(x, mean, var, gamma, beta, activation=activation), z, rtol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1234, -7e9, 1e30, 1e-30])
@pytest.mark.parametrize("eps", [1e-5, 0.0])
def test_a_constant_block_gives_beta(value, eps):
    beta = np.array([0.5, -1.0, 3.0], np.float32)
    for n in (1, 2, 1000):
        x = np.full((n, 3), value, np.float32)
        np.testing.assert_array_equal(ref.batch_norm(x, None, beta, eps=eps)[0], np.broadcast_to(beta, (n, 3)))
        np.testing.assert_array_equal(ref.layer_norm(x, None, beta, eps=eps)[0], np.broadcast_to(beta, (n, 3)))
        np.testing.assert_array_equal(ref.group_norm(x, 1, None, beta, eps=eps)[0], np.broadcast_to(beta, (n, 3)))


def test_large_means_and_scales_cost_nothing():
    z = np.random.default_rng(5).normal(size=(1000, 3))
    for offset, scale in ((0, 1), (1e4, 1), (1e12, 1), (0, 1e-200), (0, 1e200), (1e204, 1e200)):
        x = offset + scale * z
        exact = exact_norm(x / scale, (0,), 1, 0, eps=0)
        np.testing.assert_allclose(ref.batch_norm(x, eps=0)[0], exact, rtol=1e-6, atol=1e-11)
        mean, _ = ref.batch_stats(x)
        np.testing.assert_allclose(mean, x.mean(0), rtol=1e-12, atol=1e-12 * scale)


def test_bad_values_stay_in_their_channel():
    x = np.random.default_rng(6).normal(size=(8, 4))
    clean = ref.batch_norm(x)[0]
    for bad in (np.nan, np.inf, -np.inf):
        for row in (0, 3):
            spoilt = x.copy()
            spoilt[row, 1] = bad
            y, mean, invstd = ref.batch_norm(spoilt)
            np.testing.assert_array_equal(y[:, [0, 2, 3]], clean[:, [0, 2, 3]])
            assert np.isnan(y[:, 1]).all() and np.isfinite(mean[[0, 2, 3]]).all() and np.isnan(invstd[1])
            np.testing.assert_array_equal(mean[1], bad)  # as np.mean has it, and the compiled functions
