"""Diagnostics against NumPy, the kernel against the reference, and gradient_check on right and wrong gradients."""

import math
import tracemalloc
from functools import partial

import numpy as np
import pytest
from numpy.exceptions import AxisError

import fastnn as fn
import fastnn.diagnostics
import fastnn.reference
import fastnn.reference.diagnostics
from fastnn import runtime

MODULES = {"kernels": fastnn.diagnostics, "reference": fastnn.reference.diagnostics}


@pytest.fixture(params=MODULES, name="diag")
def diagnostics_module(request):
    return MODULES[request.param]


def rng(seed=0):
    return np.random.default_rng(seed)


# saturation and dead units


@pytest.mark.parametrize(
    "activation, outputs, share",
    [
        ("sigmoid", [0.0, 0.005, 0.01, 0.02, 0.5, 0.98, 0.995, 1.0], 5 / 8),
        ("tanh", [-1.0, -0.98, -0.97, 0.0, 0.99], 3 / 5),
        ("softsign", [-0.99, 0.5], 1 / 2),
        ("hardtanh", [-1.0, -0.999, 0.0, 1.0], 1 / 2),
        ("hardsigmoid", [0.0, 0.001, 1.0], 2 / 3),
        ("relu6", [0.0, -0.0, 3.0, 6.0], 3 / 4),
        ("relu", [0.0, 1e-5, 100.0, math.inf], 1 / 4),
        ("elu", [-1.0, -0.995, -0.9, 5.0], 1 / 2),
        ("celu", [-1.0, -0.9], 1 / 2),
        ("celu", [-0.9905, -0.9895], 1 / 2),
        ("selu", [-1.758, -1.7, 100.0], 1 / 3),
        ("softplus", [0.0, 0.009, 0.1, 100.0], 1 / 2),
        ("log_sigmoid", [-100.0, -0.1, -0.001, 0.0], 1 / 2),
        ("leaky_relu", [-math.inf, 0.0, math.inf], 0),
        ("prelu", [-100.0, 0.0, 100.0], 0),
        ((0.0, 1.0), [0.0, 0.5, 1.5], 2 / 3),
        ((-math.inf, 1), [-math.inf, 0.5, 1.5], 1 / 3),
        ((-np.float32(math.inf), np.float32(1)), [-math.inf, 0.5, 1.5], 1 / 3),
        ((-1e300, 1e300), [-math.inf, 0.5, 1.5], 1 / 3),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_saturation_counts_by_the_documented_limits(diag, activation, outputs, share, dtype):
    y = np.array(outputs, dtype)
    assert diag.saturation(y, activation) == share
    assert diag.activation_stats(y, activation).saturated == share


def test_saturation_is_where_the_gradient_is_lost(diag):
    x = np.linspace(-20, 20, 4001)
    for name, largest in [("sigmoid", 0.25), ("tanh", 1.0), ("softsign", 1.0), ("elu", 1.0), ("softplus", 1.0)]:
        row = getattr(fastnn.reference, name), getattr(fastnn.reference, f"{name}_backward")
        y = row[0](x)
        slope = row[1](np.ones_like(x), y if name in ("sigmoid", "tanh") else x)
        for share, at in ((diag.saturation(value[np.newaxis], name), d) for value, d in zip(y, slope, strict=True)):
            assert (at <= 0.0401 * largest) if share else (at >= 0.0001 * largest)


def test_saturation_of_nan_nothing_and_other_layouts(diag):
    assert diag.saturation([math.nan, 1.0], "tanh") == 0.5
    assert diag.saturation([], "tanh") == 0
    y = np.tanh(rng().normal(size=(40, 30)) * 3)
    assert diag.saturation(y[::2, ::-3].T, "tanh") == (np.abs(y[::2, ::-3]) >= 0.98).mean()
    assert diag.saturation(y.astype(">f8"), "tanh") == (np.abs(y) >= 0.98).mean()
    assert diag.saturation([[0, 1]], "sigmoid") == 1


@pytest.mark.parametrize(
    "activation, error, says",
    [
        ("gelu", ValueError, "outputs do not tell"),
        ("nonsense", ValueError, "must be one of sigmoid"),
        (None, TypeError, "a name or a pair"),
        ((1.0,), TypeError, "a name or a pair"),
        ((0.0, "a"), TypeError, "high must be a real number"),
        ((math.nan, 1.0), ValueError, "low is nan"),
        ((1.0, 0.0), ValueError, "low must not be greater"),
    ],
)
def test_saturation_says_what_is_wrong(diag, activation, error, says):
    for function in (diag.saturation, diag.activation_stats):
        with pytest.raises(error, match=says):
            function([0.5], activation)


def test_dead_units_are_those_that_are_zero_for_every_sample(diag):
    y = np.maximum(rng().normal(size=(50, 6)), 0)
    y[:, 2] = 0
    y[:, 4] = -0.0
    y[:, 5] = 0
    y[17, 5] = math.nan
    y[:, 0] = -1e-30
    dead = diag.dead_units(y)
    assert dead.dtype == bool and dead.tolist() == [False, False, True, False, True, False]
    assert diag.activation_stats(y, "relu").dead == 2 / 6
    images = np.zeros((4, 3, 5, 5), np.float16)
    images[1, 2, 3, 3] = 1
    assert diag.dead_units(images).shape == (3, 5, 5)
    assert diag.dead_units(images, axis=(0, 2, 3)).tolist() == [True, True, False]
    assert diag.dead_units(images, axis=(0, -1, -2)).tolist() == [True, True, False]
    assert diag.dead_units([0.0, 0.0]).shape == () and diag.dead_units([0, 0])
    assert diag.dead_units(np.empty((3, 0))).shape == (0,)


@pytest.mark.parametrize(
    "call, error, says",
    [
        (lambda d: d.dead_units(np.empty((0, 3))), ValueError, "without a sample"),
        (lambda d: d.dead_units([[1.0]], axis=2), AxisError, "2"),
        (lambda d: d.dead_units(5.0), AxisError, "0"),
        (lambda d: d.dead_units([[1.0]], axis=(0, 0)), AxisError, "twice"),
        (lambda d: d.dead_units([[1.0]], axis=[0]), TypeError, "a tuple of integers"),
        (lambda d: d.dead_units([1j]), TypeError, "complex128"),
        (lambda d: d.saturation(["a"], "tanh"), TypeError, "y has dtype"),
        (lambda d: d.activation_stats(np.ma.masked_array([1.0])), TypeError, "y is a masked array"),
        (lambda d: d.activation_stats([]), ValueError, "is empty"),
        (lambda d: d.activation_stats([1.0], bins=0), ValueError, "bins is 0"),
        (lambda d: d.activation_stats([1.0], bins=1 << 20), ValueError, "at most 65536"),
        (lambda d: d.activation_stats([1.0], bins=2.0), TypeError, "bins must be an integer"),
        (lambda d: d.activation_stats([1.0], range=(1, 1)), ValueError, "it must go up"),
        (lambda d: d.activation_stats([1.0], range=(1.0, 1.0 + 1e-15)), ValueError, "wide enough for 50 bins"),
        (lambda d: d.activation_stats([1.0], range=(-1e308, 1e308)), ValueError, "it must go up"),
        (lambda d: d.activation_stats([1.0], range=(0, math.inf)), ValueError, "range is inf"),
        (lambda d: d.activation_stats([1.0], range=3), TypeError, "range must be a pair"),
    ],
)
def test_what_is_wrong_is_said(diag, call, error, says):
    with pytest.raises(error, match=says):
        call(diag)


# activation_stats


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i4"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (300000,), (3, 5), (130, 17), (700, 130), (64, 8, 5, 5), (2, 70000)])
def test_statistics_are_numpys(diag, shape, dtype):
    y = np.asarray(rng().normal(0.3, 1.5, size=shape) * (20 if dtype == "i4" else 1)).astype(dtype)
    exact = y.astype(np.float64)
    for options in ({}, {"bins": 7}, {"range": (-1.0, 1.0), "bins": 20}):
        stats = diag.activation_stats(y, **options)
        assert stats.mean == pytest.approx(exact.mean(), rel=1e-13, abs=1e-15)
        assert stats.std == pytest.approx(exact.std(), rel=1e-13)
        counts, edges = stats.histogram
        wanted = np.histogram(exact, options.get("bins", 50), options.get("range"))
        assert counts.dtype == np.int64 and edges.dtype == np.float64
        np.testing.assert_array_equal(counts, wanted[0])
        np.testing.assert_array_equal(edges, wanted[1])
    low, high = (np.array(bound, dtype="f8" if dtype == "i4" else dtype).astype("f8") for bound in (-0.98, 0.98))
    assert stats.saturated == ((exact <= low) | (exact >= high)).mean()
    assert stats.dead == np.mean(~exact.any(axis=0) if exact.ndim else exact == 0)
    assert all(isinstance(stats[place], float) for place in (0, 1, 3, 4))


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda y: y[::-1, ::2], lambda y: y.T])
def test_statistics_of_any_layout(diag, layout):
    y = layout(np.maximum(rng().normal(size=(600, 900)) - 2, 0).astype(np.float32))
    y[:, 5] = 0
    stats, plain = diag.activation_stats(y), diag.activation_stats(np.ascontiguousarray(y))
    assert stats.mean == pytest.approx(plain.mean, rel=1e-14)
    assert stats.std == pytest.approx(plain.std, rel=1e-14)
    np.testing.assert_array_equal(stats.histogram[0], plain.histogram[0])
    assert stats[3:] == plain[3:]


def test_values_on_the_edges_fall_where_numpy_puts_them(diag):
    for bins, bounds in [(50, (-1.0, 1.0)), (7, (0.1, 0.7)), (1000, (-3.3, 12.1)), (3, (1e6, 1e6 + 1))]:
        edges = np.linspace(*bounds, bins + 1)
        y = np.concatenate([edges, np.nextafter(edges, -math.inf), np.nextafter(edges, math.inf)])
        counts, found = diag.activation_stats(y, bins=bins, range=bounds).histogram
        np.testing.assert_array_equal(found, edges)
        np.testing.assert_array_equal(counts, np.histogram(y, bins, bounds)[0])


def test_as_many_bins_as_are_allowed(diag):
    counts, edges = diag.activation_stats(np.arange(100.0), bins=1 << 16).histogram
    assert counts.sum() == 100 and edges.size == (1 << 16) + 1


def test_statistics_of_one_value_and_of_almost_one_value(diag):
    stats = diag.activation_stats(np.full((4, 3), 0.1, np.float32))
    assert stats.std == 0 and stats.mean == np.float32(0.1)
    np.testing.assert_array_equal(stats.histogram[0], np.histogram(np.full(12, 0.1, "f4").astype("f8"), 50)[0])
    for y in ([1.0, 1.0 + 2e-16], [1e17, 1e17], [0.0, 5e-324], [-1.7e308, 1.7e308]):
        counts, edges = diag.activation_stats(y).histogram
        assert (np.diff(edges) > 0).all() and counts.sum() == (0 if y[0] < -1e300 else 2)


def test_a_diverged_network_is_described_not_refused(diag):
    y = np.array([[1.0, math.nan, 0.0], [2.0, -math.inf, 0.0], [3.0, math.inf, 0.0]], np.float32)
    stats = diag.activation_stats(y)
    assert math.isnan(stats.mean) and math.isnan(stats.std)
    assert stats.histogram[0].sum() == 6 and stats.histogram[1][[0, -1]].tolist() == [0, 3]
    assert stats.saturated == 5 / 9 and stats.dead == 1 / 3
    nothing = diag.activation_stats(np.full((2, 2), math.nan))
    assert nothing.histogram[0].sum() == 0 and nothing.saturated == nothing.dead == 0


@pytest.mark.parametrize("isa", [name for name in runtime.available_isas() if name != "baseline"])
@pytest.mark.parametrize("shape", [(5000, 77), (300000,)])
def test_same_bits_on_every_level_and_number_of_threads(shape, isa):
    y = np.tanh(rng().normal(size=shape)).astype(np.float32)
    with runtime.use_isa("baseline"), runtime.threads(1):
        wanted = fastnn.diagnostics.activation_stats(y)
    for threads in (1, 2, 3):
        with runtime.use_isa(isa), runtime.threads(threads):
            stats = fastnn.diagnostics.activation_stats(y)
        assert (stats.mean, stats.std, *stats[3:]) == (wanted.mean, wanted.std, *wanted[3:])
        np.testing.assert_array_equal(stats.histogram[0], wanted.histogram[0])


# gradient_flow and gradient_check


class Dense:
    def __init__(self, fan_in, fan_out, dtype=np.float64, seed=0):
        self.W = rng(seed).normal(size=(fan_in, fan_out)).astype(dtype)
        self.b = rng(seed + 1).normal(size=fan_out).astype(dtype)

    def forward(self, x, training=True):
        self.x = x
        return x @ self.W + self.b

    def backward(self, dy):
        self.dW, self.db = self.x.T @ dy, dy.sum(axis=0)
        return dy @ self.W.T


class Tanh:
    def forward(self, x, training=True):
        self.y = fn.tanh(x)
        return self.y

    def backward(self, dy):
        return fn.tanh_backward(dy, self.y)


class Network:
    def __init__(self, *layers):
        self.layers = list(layers)

    def forward(self, x, training=True):
        for layer in self.layers:
            x = layer.forward(x)
        return x

    def backward(self, dy):
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy


def small_network(dtype=np.float64):
    norm = fn.BatchNorm(6, dtype=dtype)
    return Network(Dense(4, 6, dtype), norm, Tanh(), Dense(6, 3, dtype, seed=3))


def test_many_threads_need_no_more_memory_than_the_array():
    y = np.ones((2, 3 << 20), np.float32)
    with fn.runtime.threads(64):
        tracemalloc.start()
        try:
            dead = fn.diagnostics.activation_stats(y).dead
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert dead == 0.0
    assert peak < y.nbytes


def test_gradient_flow_of_a_network_and_of_arrays(diag):
    network = small_network()
    x, dy = rng().normal(size=(10, 4)), rng(1).normal(size=(10, 3))
    with pytest.raises(ValueError, match="run backward first"):
        diag.gradient_flow(network)
    network.forward(x)
    network.backward(dy)
    flow = diag.gradient_flow(network)
    assert [entry.name for entry in flow] == ["0 Dense", "3 Dense"]
    for entry, layer in zip(flow, (network.layers[0], network.layers[3]), strict=True):
        gradient = layer.dW
        assert entry.norm == pytest.approx(np.linalg.norm(gradient))
        assert entry.mean == pytest.approx(gradient.mean())
        assert entry.std == pytest.approx(gradient.std())
        assert entry.largest == np.abs(gradient).max()
    assert diag.gradient_flow(network.layers) == flow
    arrays = {"first": network.layers[0].dW, "last": network.layers[3].dW}
    assert [entry[1:] for entry in diag.gradient_flow(arrays)] == [entry[1:] for entry in flow]
    assert [entry.name for entry in diag.gradient_flow(arrays)] == ["first", "last"]
    assert [entry.name for entry in diag.gradient_flow([[1.0], [2.0]])] == ["0", "1"]


def test_gradient_flow_at_the_ends_of_the_range(diag):
    tiny, huge, none, broken = diag.gradient_flow([[1e-200, 1e-200], [1e200, -1e200], [0, 0], [math.nan, math.inf]])
    assert tiny.norm == pytest.approx(1e-200 * math.sqrt(2)) and huge.std == pytest.approx(1e200)
    assert none[1:] == (0, 0, 0, 0)
    assert math.isnan(broken.norm) and math.isnan(broken.largest)


@pytest.mark.parametrize(
    "source, error, says",
    [
        (3, TypeError, "source must be a network"),
        ("abc", TypeError, "source must be a network"),
        (["a"], TypeError, "0 has dtype"),
        ([[]], ValueError, "0 is empty"),
        ([Tanh()], ValueError, "run backward first"),
    ],
)
def test_gradient_flow_says_what_is_wrong(diag, source, error, says):
    with pytest.raises(error, match=says):
        diag.gradient_flow(source)


ACTIVATIONS = sorted(
    name[: -len("_backward")] for name in fastnn.reference.__all__ if name.endswith("_backward") and "norm" not in name
)


@pytest.mark.parametrize("module", [fn, fastnn.reference], ids=["kernels", "reference"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient_check_passes_every_activation(diag, module, name):
    f, f_backward = getattr(module, name), getattr(module, f"{name}_backward")
    x = rng().uniform(-2.9, 5.9, size=(5, 6))
    if name == "prelu":
        f, f_backward = partial(f, slope=0.2), lambda dy, x: module.prelu_backward(dy, x, 0.2)
    dy = rng(1).normal(size=(5, 3) if name == "maxout" else (5, 6))
    assert diag.gradient_check(f, f_backward, x, dy) < 1e-6
    assert diag.gradient_check(f, f_backward, x.astype(np.float32), dy.tolist()) < 1e-6


def test_gradient_check_passes_partials_normalizations_and_plain_functions(diag):
    x, dy = rng().normal(size=(6, 4)), rng(1).normal(size=(6, 4))
    slope = {"negative_slope": 0.3}
    assert diag.gradient_check(partial(fn.leaky_relu, **slope), partial(fn.leaky_relu_backward, **slope), x, dy) < 1e-6
    for name in ("batch_norm", "layer_norm", "rms_norm"):
        assert diag.gradient_check(getattr(fn, name), getattr(fn, f"{name}_backward"), x, dy) < 1e-6
    assert diag.gradient_check(lambda x: x**3, lambda dy, x: 3 * dy * x**2, x, dy) < 1e-7
    assert diag.gradient_check(np.sum, lambda dy: np.full((6, 4), dy), x, 2.0) < 1e-7
    assert diag.gradient_check(lambda x: 0 * x, lambda dy, x: 0 * x, x, dy) == 0


def test_gradient_check_checks_the_parameters_of_a_network(diag):
    x, dy = rng().normal(size=(7, 4)), rng(1).normal(size=(7, 3))
    network = small_network()
    before = [network.layers[0].W.copy(), network.layers[1].gamma.copy()]
    assert diag.gradient_check(network.forward, network.backward, x, dy) < 1e-6
    np.testing.assert_array_equal(network.layers[0].W, before[0])
    np.testing.assert_array_equal(network.layers[1].gamma, before[1])
    norm = fn.BatchNorm(4, dtype=np.float64)
    assert diag.gradient_check(norm.forward, norm.backward, x, rng(2).normal(size=(7, 4))) < 1e-6

    class Wrong(Dense):
        def backward(self, dy):
            dx = super().backward(dy)
            self.db = self.db * 1.01
            return dx

    network.layers[3] = Wrong(6, 3)
    assert 0.005 < diag.gradient_check(network.forward, network.backward, x, dy) < 0.02


def test_gradient_check_finds_wrong_gradients(diag):
    x, dy = rng().normal(size=(6, 4)), rng(1).normal(size=(6, 4))
    assert diag.gradient_check(fn.tanh, lambda dy, x: 1.001 * dy * (1 - np.tanh(x) ** 2), x, dy) > 0.9e-3
    assert diag.gradient_check(fn.tanh, lambda dy, x: -dy * (1 - np.tanh(x) ** 2), x, dy) > 1
    assert diag.gradient_check(fn.relu, lambda dy, x: dy * (x > -0.5), x, dy) > 0.5
    assert math.isnan(diag.gradient_check(fn.tanh, lambda dy, x: x * math.nan, x, dy))

    def one_wrong(dy, x):
        dx = 2 * dy * x
        dx[3, 2] += 1e-4
        return dx

    assert diag.gradient_check(lambda x: x**2, one_wrong, x, dy) > 1e-5


def test_gradient_check_refuses_other_shapes_and_leaves_arguments_alone(diag):
    x, dy = rng().normal(size=(3, 2)), rng(1).normal(size=(3, 2))
    copies = x.copy(), dy.copy()
    diag.gradient_check(fn.tanh, fn.tanh_backward, x, dy)
    np.testing.assert_array_equal(x, copies[0])
    np.testing.assert_array_equal(dy, copies[1])
    with pytest.raises(ValueError, match=r"dy has shape \(2,\), but f\(x\) has shape \(3, 2\)"):
        diag.gradient_check(fn.tanh, fn.tanh_backward, x, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"f_backward returned shape \(2,\)"):
        diag.gradient_check(fn.tanh, lambda dy, x: np.ones(2), x, dy)


def test_the_reference_has_the_same_names():
    assert fastnn.diagnostics.__all__ == fastnn.reference.diagnostics.__all__
