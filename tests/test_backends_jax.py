"""The adapter for JAX: jit, grad, vmap and their combinations, against JAX's own functions."""

import os
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("jax", reason="JAX is not installed: pip install 'fastnn-kernels[jax]'")

import jax
import jax.numpy as jnp
from jax.test_util import check_grads

import fastnn as fn
from fastnn.backends import _functions
from fastnn.backends import jax as F

X = np.array([[-7.3, -2.4, -1.2, -0.3], [0.4, 0.8, 2.2, 7.7], [-0.7, 0.6, 1.7, 4.1]], np.float32)
VARIANTS = [(name, ()) for name in (*_functions.ELEMENTWISE, *_functions.SOFTMAX)] + [
    ("gelu", ("tanh",)),
    ("elu", (0.7,)),
    ("softplus", (2.0,)),
    ("softmax", (0,)),
]


@pytest.fixture
def x64():
    with (jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64)(True):
        yield


@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_values_are_the_kernels_under_jit_and_vmap(name, params):
    def f(x):
        return getattr(F, name)(x, *params)

    y = getattr(fn, name)(X, *params)
    assert np.array_equal(f(X), y)
    assert np.array_equal(jax.jit(f)(X), y)
    if (name, params) != ("softmax", (0,)):
        assert np.array_equal(jax.vmap(f)(X), y)
        assert np.array_equal(
            jax.jit(jax.vmap(f, in_axes=1, out_axes=1))(X[None]), f(X[None].swapaxes(0, 1)).swapaxes(0, 1)
        )


@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_gradients_are_the_kernels_under_jit(name, params):
    function = {**_functions.ELEMENTWISE, **_functions.SOFTMAX}[name]
    dy = np.random.default_rng(1).standard_normal(X.shape).astype(np.float32)
    saved = getattr(fn, name)(X, *params) if function.saved == "y" else X
    expected = getattr(fn, f"{name}_backward")(dy, saved, *params)
    gradient = jax.grad(lambda x: (getattr(F, name)(x, *params) * dy).sum())
    assert np.array_equal(gradient(X), expected)
    assert np.array_equal(jax.jit(gradient)(X), expected)


@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_check_grads_to_second_order(name, params, x64):
    check_grads(lambda x: getattr(F, name)(x, *params), (X.astype(np.float64),), order=2, modes=["rev"])


def test_per_example_gradients():
    """grad inside vmap inside jit, the usual idiom."""
    per_example = jax.jit(jax.vmap(jax.grad(lambda x: F.mish(F.softmax(x)).sum())))(X)
    for row, expected in zip(X, per_example, strict=True):
        assert np.allclose(jax.grad(lambda x: F.mish(F.softmax(x)).sum())(row), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", list(_functions.SOFTMAX))
def test_softmax_of_mapped_scalars_is_that_of_each(name):
    """A scalar is a row of one element, under vmap too: the batch is no row."""
    f, scalars = getattr(F, name), np.array([0.5, 1.0, 3.0], np.float32)
    for mapped in (jax.vmap(f), jax.jit(jax.vmap(f)), jax.vmap(lambda x: f(x, 0))):
        assert np.array_equal(mapped(scalars), [f(scalar) for scalar in scalars])
    assert np.array_equal(jax.vmap(jax.grad(f))(scalars), np.zeros(3))


def test_prelu_maxout_and_cross_entropy(x64):
    x, labels = X.astype(np.float64), np.array([0, 3, 1])
    for f, args in (
        (F.prelu, (x, np.array([0.1, 0.2, 0.3, 0.4]))),
        (lambda x, s: F.prelu(x, s, axis=0), (x, np.array(0.3))),
        (F.maxout, (x,)),
        (lambda x: F.maxout(x, 3, axis=0), (x,)),
        (lambda x: F.cross_entropy(x, labels), (x,)),
    ):
        check_grads(f, args, order=2, modes=["rev"])
    loss, dlogits = fn.cross_entropy(x, labels)
    assert float(F.cross_entropy(x, labels)) == loss
    assert np.array_equal(jax.jit(jax.grad(F.cross_entropy))(x, labels), dlogits)


NORMS = [
    ("batch_norm", {}, (6, 4, 3), (4,)),
    ("batch_norm", {"axis": -1, "activation": "tanh"}, (5, 3, 4), (4,)),
    ("layer_norm", {}, (3, 2, 4), (4,)),
    ("layer_norm", {"axis": 1}, (3, 2, 4), (2, 4)),
    ("layer_norm", {}, (4,), (4,)),
    ("rms_norm", {}, (3, 2, 4), (4,)),
    ("rms_norm", {}, (4,), (4,)),
    ("group_norm", {"groups": 2}, (3, 4, 5), (4,)),
    ("instance_norm", {}, (2, 4, 5), (4,)),
    ("batch_norm_inference", {"mean": np.arange(4.0), "var": np.arange(1.0, 5)}, (6, 4, 3), (4,)),
]


@pytest.mark.parametrize(("name", "options", "shape", "channels"), NORMS)
def test_normalizations(name, options, shape, channels, x64):
    rng = np.random.default_rng(0)
    x, *params = (rng.standard_normal(shape) for shape in (shape, channels, channels))
    params = params[:1] if name == "rms_norm" else params

    def f(x, *params):
        return getattr(F, name)(x, **dict(zip(("gamma", "beta"), params, strict=False)), **options)

    check_grads(f, (x, *params), order=2, modes=["rev"])
    check_grads(f, (x,), order=1, modes=["rev"])
    expected = getattr(fn, name)(x, **dict(zip(("gamma", "beta"), params, strict=False)), **options)
    expected = expected if isinstance(expected, np.ndarray) else expected[0]
    assert np.array_equal(jax.jit(f)(x, *params), expected)
    both = jax.vmap(f, in_axes=(0, *(None for _ in params)))(np.stack([x, 2 * x]), *params)
    assert np.array_equal(both[0], expected)


def test_statistics_keep_64_bits_when_jax_has_32():
    """The gradient of a batch whose mean is 1e4 deviations: statistics rounded to float32 would lose it."""
    x = (np.random.default_rng(0).standard_normal((256, 3)) + 1e4).astype(np.float32)
    dy = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    y, mean, invstd = fn.batch_norm(x)
    expected = fn.batch_norm_backward(dy, x, mean, invstd)[0]
    assert np.array_equal(jax.jit(F.batch_norm)(x), y)
    assert np.array_equal(jax.jit(jax.grad(lambda x: (F.batch_norm(x) * dy).sum()))(x), expected)


def test_the_backward_of_inference_is_silent():
    x = jnp.full((2, 2), 6e4, jnp.float16)
    dx = jax.grad(lambda x: F.batch_norm_inference(x, np.zeros(2), np.array([1e-9, -1]), eps=0.0).sum())(x)
    assert np.isnan(dx).any(0).tolist() == [False, True]


def test_the_statistics_of_inference_are_constants_to_second_order():
    x, mean, var = jnp.arange(1, 7.0).reshape(2, 3), jnp.zeros(3), jnp.ones(3)
    for by in (0, 1):

        def total(x, by=by):
            def loss(*stats):
                return (F.batch_norm_inference(x, *stats) ** 2).sum()

            return jax.grad(loss, by)(mean, var).sum()

        assert total(x) == 0 and not jax.grad(total)(x).any()


def test_every_function_can_be_pickled():
    for name in F.__all__:
        assert pickle.loads(pickle.dumps(getattr(F, name))) is getattr(F, name)


def test_large_arrays_do_not_deadlock():
    x = np.ones((512, 4096), np.float32)
    assert np.array_equal(jax.jit(lambda x: F.relu(F.relu(x) - 2))(x), np.zeros_like(x))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinities")
def test_a_single_processor_is_warned_of():
    code = f"""
import os, warnings
os.sched_setaffinity(0, [{min(os.sched_getaffinity(0))}])
warnings.simplefilter("ignore")
import jax
if {{off}}:
    jax.config.update("jax_cpu_enable_async_dispatch", False)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    from fastnn.backends import jax as F
print(["single processor" in str(one.message) for one in seen].count(True))
"""
    for off in (False, True):
        run = subprocess.run([sys.executable, "-c", code.format(off=off)], capture_output=True, text=True, check=True)
        assert run.stdout == f"{int(not off)}\n"


def test_dtypes_and_errors():
    assert F.sigmoid(jnp.arange(3)).dtype == jnp.float32
    assert F.relu(jnp.ones(3, jnp.float16)).dtype == jnp.float16
    assert F.tanh(0.5).shape == ()
    assert np.array_equal(F.softmax(X, np.int64(0)), F.softmax(X, 0))
    assert np.array_equal(F.softmax(X, np.array(0)), F.softmax(X, 0))
    assert np.array_equal(F.elu(X, np.float32(0.5)), F.elu(X, 0.5))
    assert np.array_equal(F.prelu(X, np.ones(4), axis=np.array(1)), X)
    assert np.array_equal(F.batch_norm(X, eps=np.array(1e-5), axis=np.array(1)), F.batch_norm(X))
    assert F.cross_entropy(jnp.zeros((0, 3)), []) == 0
    with pytest.raises(TypeError, match="bfloat16"):
        F.gelu(jnp.ones(3, jnp.bfloat16))
    with pytest.raises(TypeError, match="complex64"):
        F.gelu(jnp.ones(3, jnp.complex64))
    with pytest.raises(ValueError, match="beta"):
        jax.jit(lambda x: F.softplus(x, beta=-1.0))(X)
    with pytest.raises(ValueError, match="approximate"):
        F.gelu(X, "erf")
    with pytest.raises(np.exceptions.AxisError):
        F.softmax(X, axis=2)
    with pytest.raises(np.exceptions.AxisError):
        F.batch_norm(X, axis=2)
    with pytest.raises(TypeError):
        jax.jit(lambda x, alpha: F.elu(x, alpha))(X, 1.0)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: F.elu(X, b"2"), TypeError, "alpha must be a real number"),
        (lambda: F.elu(X, np.array("2")), TypeError, "alpha must be a real number"),
        (lambda: F.elu(X, Fraction(10**400)), ValueError, "alpha is 1000"),
        (lambda: F.softmax(X, True), TypeError, "axis must be an integer"),
        (lambda: F.prelu(X, np.ones(3)), ValueError, "slope has shape"),
        (lambda: F.prelu(X, np.ones(4), axis=2), np.exceptions.AxisError, "axis 2"),
        (lambda: F.maxout(X, 3), ValueError, "not a multiple of pieces"),
        (lambda: F.maxout(X, 0), ValueError, "pieces is 0"),
        (lambda: F.maxout(X, 2, 2), np.exceptions.AxisError, "axis 2"),
        (lambda: F.cross_entropy(X[0], np.array([1])), ValueError, "must be a matrix"),
        (lambda: F.cross_entropy(X, np.ones(3)), TypeError, "labels has dtype"),
        (lambda: F.cross_entropy(X, np.ones(2, int)), ValueError, "labels has shape"),
        (lambda: F.batch_norm(X[0]), ValueError, "at least 2 are needed"),
        (lambda: F.batch_norm(X, np.ones(3)), ValueError, "gamma has shape"),
        (lambda: F.batch_norm(X, activation="erf"), ValueError, "activation is 'erf'"),
        (lambda: F.batch_norm(X, eps=-1.0), ValueError, "eps is -1"),
        (lambda: F.batch_norm(X, axis="C"), TypeError, "axis must be an integer"),
        (lambda: F.batch_norm_inference(X, np.ones(3), np.ones(4)), ValueError, "mean has shape"),
        (lambda: F.layer_norm(X, beta=np.ones((3, 4))), ValueError, "beta has shape"),
        (lambda: F.rms_norm(X, np.ones(3), axis=0), ValueError, "gamma has shape"),
        (lambda: F.group_norm(X, 0), ValueError, "groups is 0"),
        (lambda: F.group_norm(X, 3), ValueError, "does not divide"),
        (lambda: F.group_norm(X, 2, axis=0), ValueError, "axis of the samples"),
    ],
)
def test_bad_arguments_fail_at_once_with_fastnns_errors(call, error, says):
    for run in (call, jax.jit(call)):
        with pytest.raises(error, match=says):
            run()


@pytest.mark.parametrize("name", _functions.SOFTMAX)
def test_the_axis_of_a_mapped_softmax_is_that_of_each_example(name):
    x = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    assert np.array_equal(jax.vmap(lambda x: getattr(F, name)(x, 0))(x), getattr(F, name)(x, 1))
