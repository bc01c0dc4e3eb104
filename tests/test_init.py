"""Initializers against theory: moments, orthogonality, fans, reproducibility, and what they refuse."""

import math

import numpy as np
import pytest

from fastnn import init
from fastnn.reference import init as reference

WITH_GAIN = ["xavier_normal", "xavier_uniform", "he_normal", "he_uniform", "lecun_normal", "orthogonal"]
CALLS = {name: getattr(init, name) for name in [*WITH_GAIN, "normal", "zeros"]}
CALLS["uniform"] = lambda shape, **keywords: init.uniform(shape, -0.5, 1.5, **keywords)
CALLS["constant"] = lambda shape, **keywords: init.constant(shape, 0.25, **keywords)
CASES = list(CALLS)


def expected_std(name, fan_in, fan_out):
    return {
        "xavier_normal": math.sqrt(2 / (fan_in + fan_out)),
        "xavier_uniform": math.sqrt(2 / (fan_in + fan_out)),
        "he_normal": math.sqrt(2 / fan_in),
        "he_uniform": math.sqrt(2 / fan_in),
        "lecun_normal": math.sqrt(1 / fan_in),
    }[name]


@pytest.mark.parametrize("gain", [1.0, 2.5])
@pytest.mark.parametrize("shape, fan_in, fan_out", [((300, 500), 300, 500), ((64, 48, 5, 5), 48 * 25, 64 * 25)])
@pytest.mark.parametrize("name", [name for name in WITH_GAIN if name != "orthogonal"])
def test_mean_and_std_are_what_the_rule_says(name, shape, fan_in, fan_out, gain):
    weights = CALLS[name](shape, gain=gain, rng=0, dtype=np.float64)
    std = gain * expected_std(name, fan_in, fan_out)
    standard_error = std / math.sqrt(weights.size)
    assert abs(weights.mean()) < 5 * standard_error
    assert weights.std() == pytest.approx(std, rel=0.02)
    if name.endswith("uniform"):
        assert np.abs(weights).max() <= std * math.sqrt(3) * (1 + 1e-15)
        assert np.abs(weights).max() > std * math.sqrt(3) * 0.999


def test_normal_has_the_std_asked_for_and_the_fourth_moment_of_a_normal():
    weights = init.normal((400, 400), std=0.5, rng=1, dtype=np.float64)
    assert weights.std() == pytest.approx(0.5, rel=0.01)
    assert (weights**4).mean() / weights.var() ** 2 == pytest.approx(3, rel=0.03)
    assert init.normal((400, 400), rng=1).std() == pytest.approx(0.01, rel=0.01)


def test_uniform_spans_its_bounds_and_survives_the_widest_ones():
    weights = init.uniform((300, 300), -1, 3, rng=2, dtype=np.float64)
    assert weights.min() >= -1 and weights.max() <= 3
    assert weights.mean() == pytest.approx(1, abs=0.02)
    assert (init.uniform((5000,), 0.9, 0.9, rng=0, dtype=np.float64) == 0.9).all()
    widest = np.finfo(np.float64).max
    assert np.isfinite(init.uniform((50,), -widest, widest, dtype=np.float64)).all()


@pytest.mark.parametrize("shape", [(64, 64), (100, 30), (30, 100), (16, 8, 3, 3), (8, 64, 1), (4, 6, 2, 2, 2)])
def test_orthogonal_has_an_orthonormal_shorter_side(shape):
    weights = init.orthogonal(shape, gain=3.0, rng=3, dtype=np.float64)
    assert weights.shape == shape
    matrix = weights.reshape(shape[0], -1)
    shorter = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(shorter, 9 * np.eye(len(shorter)), atol=1e-13)


def test_orthogonal_is_uniform_over_rotations_and_reflections():
    # Without the sign rule QR's diagonal would bias the first entry to one sign.
    first = [init.orthogonal((2, 2), rng=seed, dtype=np.float64) for seed in range(400)]
    assert abs(np.mean([w[0, 0] for w in first])) < 0.15
    assert abs(np.mean([np.linalg.det(w) for w in first])) < 0.2


@pytest.mark.parametrize(
    "shape, fans",
    [
        ((3, 5), (3, 5)),
        ((8, 4, 3), (12, 24)),
        ((8, 4, 3, 3), (36, 72)),
        ((8, 4, 2, 3, 3), (72, 144)),
        (7, (None, None)),
        ((), (None, None)),
    ],
)
def test_fans_follow_the_table(shape, fans):
    assert init.fans(shape) == fans
    assert init.fans(shape, fan_in=9, fan_out=11) == (9, 11)


def test_a_given_fan_replaces_the_one_of_the_shape():
    grouped = init.he_normal((64, 8, 3, 3), fan_in=2, rng=0, dtype=np.float64)
    assert grouped.std() == pytest.approx(1.0, rel=0.05)
    assert init.he_normal(10, fan_in=2, rng=0).shape == (10,)
    assert init.xavier_normal((), fan_in=2, fan_out=3, rng=0).shape == ()


@pytest.mark.parametrize("name", CASES)
def test_every_dtype_and_shape_is_made_as_asked(name):
    for dtype in (np.float16, np.float32, np.float64):
        weights = CALLS[name]((6, 4), rng=5, dtype=dtype)
        assert weights.dtype == dtype and weights.shape == (6, 4)
        assert weights.flags.c_contiguous and weights.flags.writeable
        # One seed, the same weights, rounded once.
        np.testing.assert_array_equal(weights, CALLS[name]((6, 4), rng=5, dtype=np.float64).astype(dtype))
    assert CALLS[name]((6, 4)).dtype == np.float32
    assert CALLS[name]([np.int64(6), 4], dtype=">f4").dtype == np.dtype("f4").newbyteorder("=")
    assert CALLS[name]((0, 4)).shape == (0, 4)
    assert CALLS[name]((4, 0, 3)).shape == (4, 0, 3)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"zeros", "constant"}))
def test_reproducible_by_rng_alone(name):
    one, two = CALLS[name]((5, 5), rng=7), CALLS[name]((5, 5), rng=np.random.default_rng(7))
    np.testing.assert_array_equal(one, two)
    generator = np.random.default_rng(7)
    CALLS[name]((5, 5), rng=generator)
    assert (CALLS[name]((5, 5), rng=generator) != one).any(), "a generator advances"
    assert (CALLS[name]((5, 5)) != CALLS[name]((5, 5))).any(), "no seed, no repetition"


def test_constant_and_zeros():
    assert (init.zeros((3, 2)) == 0).all()
    assert (init.constant(4, -2.5, dtype=np.float16) == -2.5).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "arguments, error, says",
    [
        ({"shape": (2, -1)}, ValueError, "no dimension may be negative"),
        ({"shape": (2.0, 3)}, TypeError, "shape must be an integer"),
        ({"shape": "ab"}, TypeError, "shape must be an integer"),
        ({"shape": np.array(3)}, TypeError, "shape must be an integer"),
        ({"shape": (True, 2)}, TypeError, "shape must be an integer"),
        ({"shape": (2, 3), "dtype": None}, TypeError, "dtype is None"),
        ({"shape": (2, 3), "dtype": "foo"}, TypeError, "dtype is foo; it must be float16, float32 or float64"),
        ({"shape": (2, 3), "fan_in": 0}, ValueError, "fan_in is 0; it must be at least 1"),
        ({"shape": (2, 3), "fan_out": 1.5}, TypeError, "fan_out must be an integer"),
        ({"shape": (2, 3), "dtype": np.int32}, TypeError, "dtype is int32; it must be float16, float32 or float64"),
        ({"shape": (2, 3), "dtype": np.complex64}, TypeError, "dtype is complex64"),
        ({"shape": (2, 3), "dtype": np.longdouble}, TypeError, "float16, float32 or float64"),
    ],
)
def test_bad_arguments_are_named(name, arguments, error, says):
    with pytest.raises(error, match=says):
        CALLS[name](**arguments)


@pytest.mark.parametrize(
    "call, error, says",
    [
        (lambda: init.he_normal(10), ValueError, r"cannot tell fan_in from the shape \(10,\)"),
        (lambda: init.xavier_uniform(10, fan_in=3), ValueError, "cannot tell fan_out"),
        (lambda: init.lecun_normal(()), ValueError, "cannot tell fan_in"),
        (lambda: init.orthogonal(10), ValueError, "2 or more dimensions"),
        (lambda: init.orthogonal((2, 2), rng=-1), ValueError, "rng is -1; it must be an integer of at least 0"),
        (lambda: init.normal((2, 2), rng="a"), TypeError, "rng is 'a'; it must be"),
        (lambda: init.he_normal((2, 2), gain=-1), ValueError, "gain is -1; it must be finite and at least 0"),
        (lambda: init.he_normal((2, 2), gain=math.inf), ValueError, "gain is inf; it must be finite"),
        (lambda: init.he_normal((2, 2), gain="relu"), TypeError, "gain must be a real number"),
        (lambda: init.normal((2, 2), std=-0.1), ValueError, "std is -0.1; it must be"),
        (lambda: init.normal((2, 2), std=math.nan), ValueError, "std is nan; it must be finite"),
        (lambda: init.uniform((2, 2), 1, 0), ValueError, "low is 1.0 and high 0.0"),
        (lambda: init.constant((2, 2), 1j), TypeError, "value must be a real number"),
        (lambda: init.constant((2, 2), 1e6, dtype=np.float16), ValueError, "overflow float16"),
        (lambda: init.normal(99, std=1.7e308, dtype=np.float64, rng=0), ValueError, "overflow float64"),
        (lambda: init.he_uniform((1, 1), gain=1.7e308, dtype=np.float64), ValueError, "scale of he_uniform overflows"),
    ],
)
def test_what_a_rule_cannot_do_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()


class Linear:
    def __init__(self, fan_in, fan_out, bias=0.0, dtype=np.float32):
        self.W = init.normal((fan_in, fan_out), rng=0, dtype=dtype)
        self.b = np.full(fan_out, bias, dtype)

    def forward(self, x):
        return x @ self.W + self.b


class Relu:
    def forward(self, x):
        return np.maximum(x, 0)


def deep_network(bias=0.0):
    layers = []
    for _ in range(8):
        layers += [Linear(50, 50, bias), Relu()]
    return [*layers, np.tanh, Linear(50, 10, bias)]


@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_lsuv_gives_every_layer_unit_variance(bias):
    layers = deep_network(bias)
    x = np.random.default_rng(0).normal(3, 5, (400, 50)).astype(np.float32)
    weights = [layer.W for layer in layers if hasattr(layer, "W")]
    assert init.lsuv(layers, x, tol=0.01, rng=0) is layers
    assert all(a is b.W for a, b in zip(weights, (layer for layer in layers if hasattr(layer, "W")), strict=True))
    for layer in layers:
        forward = getattr(layer, "forward", layer)
        x = forward(x)
        if hasattr(layer, "W"):
            assert x.std() == pytest.approx(1, abs=0.0101)
            scaled = layer.W[0] / np.linalg.norm(layer.W[0])
            assert abs(scaled @ (layer.W[1] / np.linalg.norm(layer.W[1]))) < 1e-5 or layer.W.shape[0] > layer.W.shape[1]


def test_lsuv_goes_on_where_biases_differ():
    """One division by the deviation is not enough there: the biases' part of it stays."""
    x, biases = np.random.default_rng(0).normal(3, 5, (400, 50)), np.linspace(-1, 1, 50)
    layers = [Linear(50, 50, biases), Relu(), Linear(50, 50, biases)]
    init.lsuv(layers, x, rng=0)
    for layer in layers:
        x = layer.forward(x)
        if hasattr(layer, "W"):
            assert x.std() == pytest.approx(1, abs=0.0101)


class WithWeights:
    def __init__(self, weights):
        self.W = weights

    def forward(self, x):
        return x


def test_lsuv_is_reproducible_and_takes_a_network():
    class Network:
        def __init__(self):
            self.layers = deep_network()

    x = np.random.default_rng(1).normal(size=(64, 50))
    one, two = init.lsuv(Network(), x, rng=4), init.lsuv(Network(), x, rng=4)
    np.testing.assert_array_equal(one.layers[0].W, two.layers[0].W)


@pytest.mark.parametrize(
    "network, x, keywords, error, says",
    [
        (3, np.ones((2, 50)), {}, TypeError, "network must have a list"),
        ([object()], np.ones((2, 50)), {}, TypeError, "layer 0 .object. must have a method forward"),
        ([WithWeights([[1.0]])], np.ones((4, 1)), {}, TypeError, r"layer 0 \(WithWeights\): W is list"),
        ([WithWeights(np.ones((1, 1), int))], np.ones((4, 1)), {}, TypeError, "W is int64"),
        ([WithWeights(np.ones(3))], np.ones((4, 3)), {}, ValueError, r"W has shape \(3,\)"),
        ([Linear(50, 5)], np.zeros((4, 50)), {}, ValueError, "lsuv cannot scale layer 0 .Linear."),
        ([Linear(50, 5)], np.full((4, 50), np.nan), {}, ValueError, "lsuv cannot scale layer 0"),
        ([Linear(50, 5)], np.ones((0, 50)), {}, ValueError, "x has shape .0, 50., without a value"),
        ([Linear(50, 5)], np.ones((4, 50), complex), {}, TypeError, "x has dtype complex128"),
        ([Linear(50, 5)], np.ma.ones((4, 50)), {}, TypeError, "x is a masked array"),
        ([Linear(50, 5)], np.ones((4, 50)), {"tol": -1}, ValueError, "tol is -1; it must be"),
        ([Linear(50, 5)], np.ones((4, 50)), {"max_iter": 0}, ValueError, "max_iter is 0; it must be at least 1"),
    ],
)
def test_lsuv_says_what_is_wrong(network, x, keywords, error, says):
    with pytest.raises(error, match=says):
        init.lsuv(network, x, **keywords)


def test_the_reference_is_the_same_object():
    for name in init.__all__:
        assert getattr(reference, name) is getattr(init, name)
    assert reference.__all__ == init.__all__


@pytest.mark.parametrize(
    "call",
    [
        lambda: init.he_normal((99, 512), dtype="f2", rng=0),
        lambda: init.normal(9, std=1e-308, dtype=np.float64),
        lambda: init.constant(2, 1e-50),
    ],
)
def test_rounding_to_subnormals_is_no_error(call):
    with np.errstate(all="raise"):
        call()
