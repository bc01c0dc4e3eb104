"""The CS231n adapter against the assignments' layers written out in plain NumPy, and a network trained on each."""

import inspect
import types
from fractions import Fraction

import numpy as np
import pytest
from cs231n_network import Network, Plain

from fastnn.backends import cs231n

RNG = np.random.default_rng(231)


SHAPES = {
    "affine": [(6, 2, 3), (6, 5), (5,)],
    "relu": [(4, 3, 2)],
    "batchnorm": [(8, 5), (5,), (5,)],
    "layernorm": [(8, 5), (5,), (5,)],
    "spatial_batchnorm": [(4, 6, 3, 2), (6,), (6,)],
    "spatial_groupnorm": [(4, 6, 3, 2), (1, 6, 1, 1), (1, 6, 1, 1)],
}
OPTIONS = {
    "batchnorm": lambda: [{"mode": "train"}],
    "spatial_batchnorm": lambda: [{"mode": "train", "eps": 1e-3, "momentum": 0.7}],
    "layernorm": lambda: [{"eps": 1e-4}],
    "spatial_groupnorm": lambda: [3, {"eps": 1e-2}],
}


def close(got, expected, tolerance):
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        # the floor is for gradients that are zero but for rounding, such as of a bias in front of batch norm
        assert np.max(np.abs(a - b) / np.maximum(1e-6, np.abs(a) + np.abs(b))) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-8), (np.float32, 2e-3)])
@pytest.mark.parametrize("name", SHAPES)
def test_layers_give_the_same_numbers_and_leave_their_arguments_alone(name, dtype, tolerance):
    arguments = [(RNG.standard_normal(shape) * 2 + 0.5).astype(dtype) for shape in SHAPES[name]]
    copies = [argument.copy() for argument in arguments]
    options, host_options = (OPTIONS.get(name, list)() for _ in range(2))
    out, cache = getattr(cs231n, f"{name}_forward")(*arguments, *options)
    expected, host_cache = getattr(Plain, f"{name}_forward")(*arguments, *host_options)
    close([out], [expected], tolerance)
    if options and "mode" in options[-1]:
        for key in ("running_mean", "running_var"):
            close([options[0][key]], [host_options[0][key]], tolerance)
    dout = RNG.standard_normal(out.shape).astype(dtype)
    dout_copy = dout.copy()
    got, wanted = (
        layers(dout, c)
        for layers, c in (
            (getattr(cs231n, f"{name}_backward"), cache),
            (getattr(Plain, f"{name}_backward"), host_cache),
        )
    )
    close(*(([g] if isinstance(g, np.ndarray) else g) for g in (got, wanted)), tolerance)
    assert np.array_equal(dout, dout_copy)
    for argument, copy in zip(arguments, copies, strict=True):
        assert np.array_equal(argument, copy)


def test_the_caches_that_the_course_fixes():
    x, w, b = (RNG.standard_normal(shape) for shape in SHAPES["affine"])
    assert all(a is b for a, b in zip(cs231n.affine_forward(x, w, b)[1], (x, w, b), strict=True))
    assert cs231n.relu_forward(x)[1] is x
    param = {"mode": "train", "p": 0.5, "seed": 1}
    out, (kept, mask) = cs231n.dropout_forward(x, param)
    assert kept is param
    assert np.array_equal(out, x * mask)
    assert cs231n.dropout_forward(x, {"mode": "test", "p": 0.5})[1][1] is None
    bn_param = {"mode": "test"}
    assert cs231n.batchnorm_forward(w, np.ones(5), np.zeros(5), bn_param)[1] is None
    fc_cache, relu_cache = cs231n.affine_relu_forward(x, w, b)[1]
    assert fc_cache[1] is w
    assert np.array_equal(relu_cache, cs231n.affine_forward(x, w, b)[0])


def test_running_buffers_start_at_zeros_and_are_replaced_not_overwritten():
    x, gamma, beta = RNG.standard_normal((50, 4)) * 3 + 2, np.ones(4), np.zeros(4)
    bn_param = {"mode": "test"}
    out, _ = cs231n.batchnorm_forward(x, gamma, beta, bn_param)
    assert np.allclose(out, x / np.sqrt(1e-5))
    assert not bn_param["running_mean"].any()
    assert not bn_param["running_var"].any()
    bn_param["mode"] = "train"
    plain = {"mode": "train"}
    for _ in range(30):
        before = bn_param["running_mean"]
        copy = before.copy()
        x = RNG.standard_normal((50, 4)) * 3 + 2
        cs231n.batchnorm_forward(x, gamma, beta, bn_param)
        Plain.batchnorm_forward(x, gamma, beta, plain)
        assert np.array_equal(before, copy)
    np.testing.assert_allclose(bn_param["running_mean"], plain["running_mean"], rtol=1e-12)
    np.testing.assert_allclose(bn_param["running_var"], plain["running_var"], rtol=1e-12)
    bn_param["mode"] = plain["mode"] = "test"
    close(
        cs231n.batchnorm_forward(x, gamma, beta, bn_param)[:1],
        Plain.batchnorm_forward(x, gamma, beta, plain)[:1],
        1e-10,
    )
    with pytest.raises(ValueError, match=r"'eval'.*'train' or 'test'"):
        cs231n.batchnorm_forward(x, gamma, beta, {"mode": "eval"})
    with pytest.raises(ValueError, match=r"'eval'.*'train' or 'test'"):
        cs231n.dropout_forward(x, {"mode": "eval", "p": 0.5})


def test_mistakes_are_told():
    x, vector = np.ones((2, 4, 3, 3)), np.ones(4)
    for running in (np.zeros((1, 4, 1, 1)), np.zeros(1), np.zeros(3)):
        for mode in ("train", "test"):
            bn_param = {"mode": mode, "running_mean": running}
            with pytest.raises(ValueError, match=r"running_mean has shape.*\(4,\)"):
                cs231n.spatial_batchnorm_forward(x, vector, vector, bn_param)
            assert bn_param == {"mode": mode, "running_mean": running}
    with pytest.raises(ValueError, match="1 dimensions"):
        cs231n.batchnorm_forward(vector, vector, vector, {"mode": "train"})
    with pytest.raises(ValueError, match="momentum is 5"):
        cs231n.batchnorm_forward(x, vector, vector, {"mode": "train", "momentum": 5})
    for loss in (cs231n.svm_loss, cs231n.softmax_loss):
        for labels in ([-1, 0], [0, 3]):
            with pytest.raises(ValueError, match=r"labels.*0\.\.2"):
                loss(np.ones((2, 3)), labels)
        with pytest.raises(TypeError, match="float64"):
            loss(np.ones((2, 3)), np.zeros(2))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, bool])
def test_integers_count_as_float64(dtype):
    x = np.array([[250, 1], [0, 0], [255, 3]]).astype(dtype)
    for before in ({}, {"running_mean": np.zeros(2, dtype), "running_var": np.zeros(2, dtype)}):
        bn_param = {"mode": "train", "eps": Fraction(1, 1000), **before}
        cs231n.batchnorm_forward(x, np.ones(2), np.zeros(2), bn_param)
        np.testing.assert_allclose(bn_param["running_mean"], 0.1 * x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(bn_param["running_var"], 0.1 * x.var(0), rtol=1e-12)
    loss, dx = cs231n.svm_loss(x, [0, 1, 0])
    expected, expected_dx = cs231n.svm_loss(x.astype(float), [0, 1, 0])
    assert loss == expected
    assert np.array_equal(dx, expected_dx)


def test_running_averages_keep_float64_and_the_gradient_float32():
    x, running = RNG.standard_normal((6, 2)).astype(np.float32), np.full(2, 0.1)
    bn_param = {"mode": "train", "running_mean": running, "running_var": running}
    cs231n.batchnorm_forward(x, np.ones(2, np.float32), np.zeros(2, np.float32), bn_param)
    assert bn_param["running_mean"].dtype == bn_param["running_var"].dtype == np.float64
    np.testing.assert_allclose(bn_param["running_mean"], 0.09 + 0.1 * x.mean(0, dtype=np.float64), rtol=1e-12)
    assert cs231n.svm_loss(x, [0, 1, 0, 1, 0, 1])[1].dtype == np.float32


def test_a_variance_beyond_float32_is_infinite_without_a_warning():
    x, bn_param = np.array([[-3e25], [3e25]], np.float32), {"mode": "train"}
    out, _ = cs231n.batchnorm_forward(x, np.ones(1), np.zeros(1), bn_param)
    assert np.array_equal(out, [[-1], [1]])
    assert bn_param["running_var"] == np.inf


def test_a_constant_channel_without_eps_gives_beta_and_no_gradient():
    x = np.full((5, 2), 0.3)
    x[:, 1] = range(5)
    out, cache = cs231n.batchnorm_forward(x, np.ones(2), np.array([7.0, 0.0]), {"mode": "train", "eps": 0})
    dx, _, _ = cs231n.batchnorm_backward(RNG.standard_normal((5, 2)), cache)
    assert (out[:, 0] == 7).all()
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("shape", [(6,), (1, 6, 1, 1)])
def test_gamma_may_have_either_shape(shape):
    x = RNG.standard_normal((4, 6, 3, 2))
    gamma, beta = RNG.standard_normal(6), RNG.standard_normal(6)
    for name, options in (("spatial_batchnorm", [{"mode": "train"}]), ("spatial_groupnorm", [2, {}])):
        flat, _ = getattr(cs231n, f"{name}_forward")(x, gamma, beta, *options)
        out, cache = getattr(cs231n, f"{name}_forward")(x, gamma.reshape(shape), beta.reshape(shape), *options)
        assert np.array_equal(out, flat)
        _, dgamma, dbeta = getattr(cs231n, f"{name}_backward")(x, cache)
        assert dgamma.shape == dbeta.shape == shape


def test_batchnorm_backward_alt_equals_backward():
    _, cache = cs231n.batchnorm_forward(RNG.standard_normal((8, 5)), np.ones(5), np.zeros(5), {"mode": "train"})
    dout = RNG.standard_normal((8, 5))
    close(cs231n.batchnorm_backward_alt(dout, cache), cs231n.batchnorm_backward(dout, cache), 1e-12)


@pytest.mark.parametrize("name", ["softmax_loss", "svm_loss"])
def test_the_loss_of_no_samples_is_0(name):
    loss, dx = getattr(cs231n, name)(np.zeros((0, 3)), np.zeros(0, int))
    assert loss == 0
    assert dx.shape == (0, 3)


@pytest.mark.parametrize("name", ["softmax_loss", "svm_loss"])
def test_losses(name):
    x, y = RNG.standard_normal((12, 7)), RNG.integers(0, 7, 12)
    before = x.copy()
    loss, dx = getattr(cs231n, name)(x, y)
    expected, expected_dx = getattr(Plain, name)(x, y)
    assert abs(loss - expected) < 1e-12
    close([dx], [expected_dx], 1e-9)
    assert np.array_equal(x, before)


def test_dropout_draws_what_the_course_draws():
    x = RNG.standard_normal((20, 30)).astype(np.float32)
    for seed in ({"seed": 123}, {}):
        np.random.seed(7)  # noqa: NPY002
        got, cache = cs231n.dropout_forward(x, {"mode": "train", "p": 0.3, **seed})
        follows = np.random.rand()  # noqa: NPY002
        np.random.seed(7)  # noqa: NPY002
        expected, host_cache = Plain.dropout_forward(x, {"mode": "train", "p": 0.3, **seed})
        assert np.array_equal(got, expected)
        assert got.dtype == np.float32
        assert follows == np.random.rand()  # noqa: NPY002
        assert np.array_equal(cs231n.dropout_backward(x, cache), Plain.dropout_backward(x, host_cache))


def test_composites_are_their_parts():
    x, w, b = (RNG.standard_normal(shape) for shape in SHAPES["affine"])
    gamma, beta, dout = RNG.standard_normal(5), RNG.standard_normal(5), RNG.standard_normal((6, 5))
    for norm, param in ((None, None), ("batchnorm", {"mode": "train"}), ("layernorm", {})):
        short = {None: "", "batchnorm": "bn_", "layernorm": "ln_"}[norm]
        extra = () if norm is None else (gamma, beta, dict(param))
        out, cache = getattr(cs231n, f"affine_{short}relu_forward")(x, w, b, *extra)
        got = getattr(cs231n, f"affine_{short}relu_backward")(dout, cache)
        a, fc = Plain.affine_forward(x, w, b)
        if norm:
            a, kept = getattr(Plain, f"{norm}_forward")(a, gamma, beta, dict(param))
        expected, relu = Plain.relu_forward(a)
        da, params = Plain.relu_backward(dout, relu), ()
        if norm:
            da, *params = getattr(Plain, f"{norm}_backward")(da, kept)
        close([out, *got], [expected, *Plain.affine_backward(da, fc), *params], 1e-8)


def test_star_import_gives_the_courses_names_and_signatures():
    module = types.ModuleType("layers")
    exec("from fastnn.backends.cs231n import *", module.__dict__)
    names = {name for name in vars(module) if not name.startswith("__")}
    assert names == set(cs231n.__all__)
    signatures = {
        "affine_forward": "x w b",
        "affine_backward": "dout cache",
        "relu_forward": "x",
        "relu_backward": "dout cache",
        "softmax_loss": "x y",
        "svm_loss": "x y",
        "batchnorm_forward": "x gamma beta bn_param",
        "batchnorm_backward": "dout cache",
        "batchnorm_backward_alt": "dout cache",
        "layernorm_forward": "x gamma beta ln_param",
        "layernorm_backward": "dout cache",
        "dropout_forward": "x dropout_param",
        "dropout_backward": "dout cache",
        "spatial_batchnorm_forward": "x gamma beta bn_param",
        "spatial_batchnorm_backward": "dout cache",
        "spatial_groupnorm_forward": "x gamma beta G gn_param",
        "spatial_groupnorm_backward": "dout cache",
        "affine_relu_forward": "x w b",
        "affine_relu_backward": "dout cache",
    }
    for name, arguments in signatures.items():
        assert list(inspect.signature(getattr(module, name)).parameters) == arguments.split(), name


@pytest.mark.parametrize("keep", [1, 0.8])
@pytest.mark.parametrize("normalization", [None, "batchnorm", "layernorm"])
def test_the_fully_connected_network_has_the_same_loss_curve(normalization, keep):
    ours, plain = (Network(layers, normalization, keep, np.float64) for layers in (cs231n, Plain))
    losses = [ours.step() for _ in range(40)]
    np.testing.assert_allclose(losses, [plain.step() for _ in range(40)], rtol=1e-8)
    np.testing.assert_allclose(ours.scores(), plain.scores(), rtol=1e-6, atol=1e-8)
    assert losses[-1] < 0.7 * losses[0]


def test_the_network_trains_in_float32_too():
    ours = Network(cs231n, "batchnorm", 1, np.float32)
    plain = Network(Plain, "batchnorm", 1, np.float64)
    np.testing.assert_allclose([ours.step() for _ in range(40)], [plain.step() for _ in range(40)], rtol=1e-3)
    assert ours.scores().dtype == np.float32
