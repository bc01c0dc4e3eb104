"""The adapter for HIPS autograd, checked by autograd's own gradient checks."""

import pickle

import numpy as np
import pytest

pytest.importorskip("autograd", reason="autograd is not installed: pip install 'fastnn-kernels[autograd]'")

import autograd.numpy as anp
from autograd import elementwise_grad, grad, make_jvp
from autograd.test_util import check_grads

import fastnn as fn
from fastnn.backends import _functions
from fastnn.backends import autograd as F

RNG = np.random.default_rng(5)
# Away from the kinks at 0, 1, 3 and 6, where a numerical derivative is no derivative.
X = np.array([[-7.3, -2.4, -1.2, -0.3], [0.4, 0.8, 2.2, 7.7], [-0.7, 0.6, 1.7, 4.1]])
VARIANTS = [(name, ()) for name in _functions.ELEMENTWISE] + [
    ("gelu", ("tanh",)),
    ("elu", (0.7,)),
    ("celu", (1.7,)),
    ("hardtanh", (-1.5, 0.5)),
    ("softplus", (2.0,)),
    ("leaky_relu", (0.2,)),
]


@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_activations_pass_check_grads_to_second_order_in_both_modes(name, params):
    f = getattr(F, name)
    check_grads(lambda x: f(x, *params), modes=["fwd", "rev"], order=2)(X)


@pytest.mark.parametrize("name", _functions.SOFTMAX)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_passes_check_grads(name, axis):
    check_grads(lambda x: getattr(F, name)(x, axis), modes=["fwd", "rev"], order=2)(X)


@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_values_and_first_derivatives_are_the_kernels(name, params):
    dy = RNG.standard_normal(X.shape)
    y = getattr(fn, name)(X, *params)
    saved = y if _functions.ELEMENTWISE[name].saved == "y" else X
    assert np.array_equal(getattr(F, name)(X, *params), y)
    dx = grad(lambda x: anp.sum(getattr(F, name)(x, *params) * dy))(X)
    assert np.array_equal(dx, getattr(fn, f"{name}_backward")(dy, saved, *params))


def test_parameters_by_name_and_float32():
    x = X.astype(np.float32)
    assert F.elu(x, alpha=0.5).dtype == np.float32
    assert elementwise_grad(lambda x: F.elu(x, alpha=0.5))(x).dtype == np.float32
    assert grad(lambda x: F.cross_entropy(x, [0, 3, 1]))(x).dtype == np.float32
    assert "alpha=1.0" in str(__import__("inspect").signature(F.elu))


def test_scalars():
    assert np.isclose(grad(F.tanh)(0.5), 1 - np.tanh(0.5) ** 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "params"), [("gelu", ("none",)), ("gelu", ("tanh",)), ("silu", ()), ("mish", ()), ("softsign", ())]
)
def test_second_derivatives_vanish_far_from_zero(name, params, dtype):
    far = np.array([300, 6e4, np.finfo(dtype).max, np.inf], dtype)
    second = _functions.second_derivative(name, np.concatenate([far, -far, [dtype(np.nan)]]), *params)
    assert second.dtype == dtype
    assert np.abs(second[:-1]).max() < 1e-7 and np.isnan(second[-1])


def test_third_derivative_is_refused_rather_than_wrong():
    third = elementwise_grad(elementwise_grad(elementwise_grad(F.tanh)))
    with pytest.raises(NotImplementedError):
        third(X)


def test_prelu_maxout_and_cross_entropy():
    slope, labels = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 3, 1])
    for f, args in (
        (lambda x, s: F.prelu(x, s), (X, slope)),
        (lambda x, s: F.prelu(x, s, axis=0), (X, slope[:3])),
        (lambda x, s: F.prelu(x, s), (X, np.array(0.3))),
        (lambda x: F.maxout(x), (X,)),
        (lambda x: F.maxout(x, 3, axis=0), (X,)),
        (lambda x: F.cross_entropy(x, labels), (X,)),
    ):
        check_grads(f, tuple(range(len(args))), modes=["fwd", "rev"], order=2)(*args)
    assert np.array_equal(F.maxout(X), fn.maxout(X)[0])
    loss, dlogits = fn.cross_entropy(X, labels)
    assert F.cross_entropy(X, labels) == loss
    assert np.allclose(grad(lambda x: F.cross_entropy(x, labels))(X), dlogits, rtol=1e-15)


NORMS = [
    ("batch_norm", (), {}, (6, 4, 3), 4),
    ("batch_norm", (), {"axis": -1, "activation": "tanh"}, (5, 3, 4), 4),
    ("batch_norm", (), {"activation": "silu", "eps": 1e-2}, (7, 4), 4),
    ("layer_norm", (), {}, (3, 2, 4), 4),
    ("layer_norm", (), {"axis": 1}, (3, 2, 4), (2, 4)),
    ("rms_norm", (), {}, (3, 2, 4), 4),
    ("group_norm", (2,), {}, (3, 4, 5), 4),
    ("group_norm", (2,), {"axis": -1}, (3, 5, 4), 4),
    ("instance_norm", (), {}, (2, 4, 5), 4),
    ("batch_norm_inference", (np.arange(4.0), np.arange(1.0, 5)), {"activation": "sigmoid"}, (6, 4, 3), 4),
]


@pytest.mark.parametrize(("name", "args", "options", "shape", "channels"), NORMS)
def test_normalizations_pass_check_grads(name, args, options, shape, channels):
    x, gamma, beta = RNG.standard_normal(shape), RNG.standard_normal(channels), RNG.standard_normal(channels)
    f = getattr(F, name)
    params = (gamma,) if name == "rms_norm" else (gamma, beta)
    every = tuple(range(1 + len(params)))
    check_grads(lambda x, *p: f(x, *args, *p, **options), every, modes=["fwd", "rev"], order=2)(x, *params)
    if "activation" not in options:
        check_grads(lambda x: f(x, *args, **options), modes=["fwd", "rev"], order=2)(x)
    y = getattr(fn, name)(x, *args, *params, **options)
    assert np.array_equal(f(x, *args, *params, **options), y if isinstance(y, np.ndarray) else y[0])


@pytest.mark.parametrize("gamma", [[2, 3], np.array([2, 3]), np.array([2.0, 3.0], ">f8"), np.array([2.0, 3.0], "f4")])
@pytest.mark.parametrize("dtype", ["i8", "u1", "?", ">f8", "f4", "f2"])
def test_gradients_of_inference_have_the_dtypes_of_batch_norms(dtype, gamma):
    x = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    norms = [_functions.Norm(name, 1e-5, 1) for name in ("batch_norm", "batch_norm_inference")]
    y, *stats = norms[0].forward(x, gamma, gamma)
    expected, got = (norm.backward(y, x, gamma, gamma, *stats) for norm in norms)
    assert [gradient.dtype.str for gradient in got] == [gradient.dtype.str for gradient in expected]
    dx = grad(lambda x: anp.sum(F.batch_norm_inference(x, [0, 0], [1, 1], gamma)))(x)
    np.testing.assert_allclose(dx, np.tile([2, 3], (3, 1)), rtol=1e-3 if dtype == "f2" else 1e-5)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_the_backward_of_inference_is_silent(dtype, activation):
    """Where it overflows, multiplies infinity by 0 or takes a negative number's root (warnings are errors here)."""
    x, gamma = np.array([[6e4, 1, np.inf], [-6e4, 2, -np.inf]], dtype), np.array([6e4, 0, 1], dtype)
    for var in ([1e-9, 0, 0], [1e300, -1, np.inf]):
        f = lambda x, g, var=var: anp.sum(  # noqa: E731
            F.batch_norm_inference(x, np.zeros(3), np.array(var), g, eps=0.0, activation=activation)
        )
        for argnum in (0, 1):
            assert grad(f, argnum)(x, gamma).dtype == dtype


def test_the_statistics_of_inference_are_constants():
    x = np.arange(8.0).reshape(2, 4)
    gradient = grad(lambda v: anp.sum(F.batch_norm_inference(x * v[0], v - v, v) ** 2))(np.ones(4))
    fixed = grad(lambda v: anp.sum(F.batch_norm_inference(x * v[0], np.zeros(4), np.ones(4)) ** 2))(np.ones(4))
    assert np.array_equal(gradient, fixed)
    _, tangent = make_jvp(lambda m: F.batch_norm_inference(x * m[0], m, np.ones(4)))(np.ones(4))(np.ones(4))
    np.testing.assert_allclose(tangent, x, rtol=1e-4)


def test_every_function_can_be_pickled():
    for name in F.__all__:
        assert pickle.loads(pickle.dumps(getattr(F, name))) is getattr(F, name)


def test_a_network_trains():
    """Two layers with batch norm learn XOR by autograd's gradients alone."""
    x = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    labels = np.array([0, 1, 1, 0])
    rng = np.random.default_rng(0)
    params = [rng.standard_normal((2, 8)), np.ones(8), np.zeros(8), rng.standard_normal((8, 2))]

    def loss(params):
        w, gamma, beta, v = params
        return F.cross_entropy(F.gelu(F.batch_norm(anp.dot(x, w), gamma, beta)) @ v, labels)

    for _ in range(300):
        params = [p - 0.3 * g for p, g in zip(params, grad(loss)(params), strict=True)]
    assert loss(params) < 0.1
