"""The adapter for PyTorch, checked by PyTorch's own tools (opcheck, gradcheck) and against its own modules."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'fastnn-kernels[torch]'")

import torch
import torch.utils.checkpoint
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import fastnn as fn
from fastnn.backends import _functions
from fastnn.backends import torch as F

# torch.jit's and torch.compile's internals warn about themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

X = torch.tensor(
    [[-7.3, -2.4, -1.2, -0.3], [0.4, 0.8, 2.2, 7.7], [-0.7, 0.6, 1.7, 4.1]], dtype=torch.float64, requires_grad=True
)
VARIANTS = [(name, tuple(default for _, default in f.params)) for name, f in _functions.ELEMENTWISE.items()] + [
    ("gelu", ("tanh",)),
    ("elu", (0.7,)),
    ("softplus", (2.0,)),
    ("softmax", (-1,)),
    ("softmax", (0,)),
    ("log_softmax", (1,)),
]


def leaf(*shape, seed=3):
    values = np.random.default_rng(seed).standard_normal(shape)
    return torch.tensor(values, requires_grad=True)


def saved_of(name):
    return {**_functions.ELEMENTWISE, **_functions.SOFTMAX}[name].saved


@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_gradcheck_to_second_order(name, params):
    def f(x):
        return getattr(F, name)(x, *params)

    assert gradcheck(f, X)
    assert gradgradcheck(f, X)


@pytest.mark.parametrize(
    "f",
    [
        F.gelu,
        F.softmax,
        F.maxout,
        F.batch_norm,
        lambda g: F.layer_norm(X.detach(), g[0]),
        lambda g: F.prelu(X.detach(), g[0]),
        lambda x: F.cross_entropy(x, torch.tensor([0, 1, 2])),
        F.BatchNorm1d(4, dtype=torch.float64),
    ],
)
def test_forward_mode_is_refused(f):
    """PyTorch would take the derivative of another library's operator for 0."""
    x = X.detach()
    with pytest.raises(NotImplementedError, match="reverse mode"):
        torch.func.jvp(f, (x,), (torch.ones_like(x),))


# Every operator is made by one of two factories, so the slow half of opcheck (it traces the operator) runs on a few.
@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_opcheck(name, params):
    traced = (name, params) in [("sigmoid", ()), ("gelu", ("tanh",)), ("elu", (0.7,)), ("log_softmax", (1,))]
    checks = "ALL" if traced else ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(getattr(torch.ops.fastnn, name), (X, *params), test_utils=checks)
    opcheck(getattr(torch.ops.fastnn, f"{name}_backward"), (leaf(3, 4), X, *params), test_utils=checks)


def test_opcheck_of_strided_and_float32_tensors():
    x = torch.arange(-12.0, 12.0).reshape(2, 3, 4).permute(2, 0, 1).requires_grad_()
    opcheck(torch.ops.fastnn.silu, (x,))
    opcheck(torch.ops.fastnn.silu_backward, (x, x))
    opcheck(torch.ops.fastnn.silu_second, (x.detach(),))  # has no derivative
    opcheck(torch.ops.fastnn.gelu, (torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last), "none"))


@pytest.mark.parametrize(("name", "params"), VARIANTS)
def test_values_and_gradients_are_the_kernels(name, params):
    x, dy = X.detach().numpy(), leaf(3, 4).detach()
    y = getattr(fn, name)(x, *params)
    result = getattr(F, name)(X, *params)
    assert np.array_equal(result.detach().numpy(), y)
    (dx,) = torch.autograd.grad(result, X, dy)
    saved = y if saved_of(name) == "y" else x
    assert np.array_equal(dx.numpy(), getattr(fn, f"{name}_backward")(dy.numpy(), saved, *params))


def test_prelu_maxout_and_cross_entropy():
    slope, labels = leaf(4), torch.tensor([0, 3, 1])
    for f, args in (
        (F.prelu, (X, slope)),
        (lambda x, s: F.prelu(x, s, axis=0), (X, leaf(3))),
        (F.maxout, (X,)),
        (lambda x: F.maxout(x, 3, axis=0), (X,)),
        (lambda x: F.cross_entropy(x, labels), (X,)),
    ):
        assert gradcheck(f, args)
        assert gradgradcheck(f, args)
    opcheck(torch.ops.fastnn.prelu, (X, slope, 1))
    opcheck(torch.ops.fastnn.maxout, (X, 2, -1))
    opcheck(torch.ops.fastnn.cross_entropy, (X, labels))
    opcheck(torch.ops.fastnn.batch_norm_training, (X, leaf(4), None, 1e-5, 1, None, None))
    assert torch.allclose(F.cross_entropy(X, labels), torch.nn.functional.cross_entropy(X, labels))
    assert F.cross_entropy(X, [0, 3, 1]) == F.cross_entropy(X, labels)
    assert gradgradcheck(lambda x: F.cross_entropy(x, labels.to(torch.int32)), (X,))


NORMS = [
    ("batch_norm", {}, (6, 4, 3), 4),
    ("batch_norm", {"axis": -1, "activation": "tanh"}, (5, 3, 4), 4),
    ("layer_norm", {}, (3, 2, 4), (4,)),
    ("layer_norm", {"axis": 1}, (3, 2, 4), (2, 4)),
    ("rms_norm", {}, (3, 2, 4), 4),
    ("group_norm", {"groups": 2}, (3, 4, 5), 4),
    ("instance_norm", {}, (2, 4, 5), 4),
    ("batch_norm_inference", {"mean": torch.arange(4.0), "var": torch.arange(1.0, 5)}, (6, 4, 3), 4),
]


@pytest.mark.parametrize(("name", "options", "shape", "channels"), NORMS)
def test_normalizations(name, options, shape, channels):
    channels = channels if isinstance(channels, tuple) else (channels,)
    x, gamma, beta = leaf(*shape), leaf(*channels, seed=4), leaf(*channels, seed=5)
    f = getattr(F, name)
    params = {"gamma": gamma} if name == "rms_norm" else {"gamma": gamma, "beta": beta}

    def call(x, *params):
        return f(x, **dict(zip(("gamma", "beta"), params, strict=False)), **options)

    assert gradcheck(call, (x, *params.values()))
    assert gradgradcheck(call, (x, *params.values()))
    assert gradcheck(call, (x,))
    static = (1e-5, options.get("axis", -1 if name in ("layer_norm", "rms_norm") else 1), options.get("groups"))
    constants = (options["mean"], options["var"]) if "mean" in options else ()
    operator = getattr(torch.ops.fastnn, name)
    opcheck(operator, (x, gamma, params.get("beta"), *constants, *static, options.get("activation")))
    numpy = {
        key: value.detach().numpy() if isinstance(value, torch.Tensor) else value for key, value in options.items()
    }
    expected = getattr(fn, name)(x.detach().numpy(), **{k: v.detach().numpy() for k, v in params.items()}, **numpy)
    expected = expected if isinstance(expected, np.ndarray) else expected[0]
    assert np.array_equal(call(x, *params.values()).detach().numpy(), expected)


def pair(ours, theirs, **options):
    """A module of ours and one of torch's with the same random state, ours loaded from torch's state_dict."""
    torch.manual_seed(0)
    reference = theirs(5, **options)
    for tensor in (*reference.parameters(), *reference.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.5
    module = ours(5, **options)
    module.load_state_dict(copy.deepcopy(reference.state_dict()))
    return module, reference


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.3, "eps": 1e-3}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}],
    ids=str,
)
@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (F.BatchNorm1d, torch.nn.BatchNorm1d, (7, 5)),
        (F.BatchNorm1d, torch.nn.BatchNorm1d, (3, 5, 4)),
        (F.BatchNorm2d, torch.nn.BatchNorm2d, (2, 5, 3, 4)),
    ],
)
def test_batch_norm_modules_follow_torch_step_by_step(ours, theirs, shape, options):
    module, reference = pair(ours, theirs, **options)
    for step in range(4):
        if step == 3:
            module.eval(), reference.eval()
        gradients = []
        for m in (module, reference):
            x = torch.tensor(
                np.random.default_rng(step).standard_normal(shape), dtype=torch.float32, requires_grad=True
            )
            y = m(x)
            (y * torch.linspace(-1, 1, y.numel()).reshape(shape)).sum().backward()
            gradients.append([y.detach(), x.grad, *(p.grad for p in m.parameters())])
        for got, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        state, expected = module.state_dict(), reference.state_dict()
        assert list(state) == list(expected)
        for key in state:
            torch.testing.assert_close(state[key], expected[key], rtol=1e-5, atol=1e-6)
            assert state[key].dtype == expected[key].dtype


def test_batch_norm_module_details():
    module, reference = pair(F.BatchNorm2d, torch.nn.BatchNorm2d)
    assert repr(module) == repr(reference)
    reference.load_state_dict(module.state_dict())
    assert isinstance(module, torch.nn.BatchNorm2d)
    with pytest.raises(ValueError, match="one value a channel"):
        module(torch.ones(1, 5, 1, 1))
    with pytest.raises(ValueError, match="4D"):
        module(torch.ones(2, 5))
    assert module.num_batches_tracked == reference.num_batches_tracked, "a refused batch must not count"
    again = pickle.loads(pickle.dumps(module.eval()))
    x = torch.rand(2, 5, 3, 3)
    assert torch.equal(again(x), module(x))
    assert torch.equal(module(torch.rand(1, 5, 1, 1) * 0 + 1), module(torch.ones(1, 5, 1, 1)))
    half = F.BatchNorm1d(5).double()
    assert half(torch.rand(4, 5, dtype=torch.float64)).dtype == torch.float64


def test_large_mean_is_exact_where_torch_loses_it():
    x = torch.randn(4096, 8) + 1e4
    exact = (x.double() - x.double().mean(0)) / (x.double().var(0, unbiased=False) + 1e-5).sqrt()
    assert (F.BatchNorm1d(8)(x) - exact).abs().max() < 1e-5


def test_activation_checkpointing():
    """What forward kept is thrown away and computed anew in backward, as large models are trained."""

    def network(x):
        return F.prelu(F.softmax(F.gelu(F.batch_norm(F.sigmoid(x)))), 0.1).square().sum()

    checkpoint = torch.utils.checkpoint.checkpoint(network, X, use_reentrant=False)
    assert torch.equal(*(torch.autograd.grad(loss, X)[0] for loss in (checkpoint, network(X))))


def test_dtypes_and_errors():
    assert F.sigmoid(torch.tensor([0, 1])).dtype == torch.get_default_dtype()
    assert F.relu(torch.tensor([1.0, -1.0], dtype=torch.float16)).dtype == torch.float16
    assert F.tanh(torch.tensor(0.5)).shape == ()
    with pytest.raises(TypeError, match=r"bfloat16.*float\(\)"):
        F.gelu(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"complex64"):
        F.gelu(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"ndarray.*torch.Tensor"):
        F.gelu(np.ones(2))
    with pytest.raises(ValueError, match="beta"):
        F.softplus(torch.ones(2), beta=-1.0)
    with pytest.raises(TypeError, match="alhpa"):
        F.elu(torch.ones(2), alhpa=1.0)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda x: F.elu(x, "1"), TypeError, "alpha must be a real number"),
        (lambda x: F.elu(x, None), TypeError, "alpha must be a real number"),
        (lambda x: F.elu(x, alpha=1j), TypeError, "alpha must be a real number"),
        (lambda x: F.elu(x, 10**400), ValueError, "alpha is 1000"),
        (lambda x: F.gelu(x, None), TypeError, "approximate must be"),
        (lambda x: F.softmax(x, 1.0), TypeError, "axis must be an integer"),
        (lambda x: F.softmax(x, True), TypeError, "axis must be an integer"),
        (lambda x: F.softmax(x, 10**30), np.exceptions.AxisError, "out of bounds"),
        (lambda x: F.prelu(x, torch.ones(4), axis=1.0), TypeError, "axis must be an integer"),
        (lambda x: F.maxout(x, 2.0), TypeError, "pieces must be an integer"),
        (lambda x: F.maxout(x, 2, -(10**30)), np.exceptions.AxisError, "out of bounds"),
        (lambda x: F.batch_norm(x, eps="1"), TypeError, "eps must be a real number"),
        (lambda x: F.batch_norm(x, axis=None), TypeError, "axis must be an integer"),
        (lambda x: F.batch_norm(x, activation=1), TypeError, "activation must be the name"),
        (lambda x: F.group_norm(x, 2.0), TypeError, "groups must be an integer"),
        (lambda x: F.group_norm(x, True), TypeError, "groups must be an integer"),
    ],
)
def test_bad_parameters_get_fastnns_errors(call, error, says):
    with pytest.raises(error, match=says):
        call(torch.ones(3, 4))


def test_parameters_of_every_kind_that_fastnn_takes():
    x = X.detach()
    assert torch.equal(F.elu(x, Fraction(1, 2)), F.elu(x, np.array([0.5])))
    assert torch.equal(F.softmax(x, np.array(0)), F.softmax(x, 0))
    assert torch.equal(F.batch_norm(x, eps=Fraction(1, 1000), axis=np.int64(1)), F.batch_norm(x, eps=1e-3))
    assert F.cross_entropy(torch.ones(0, 3), []) == 0


def test_the_backward_of_inference_is_silent():
    x = torch.full((2, 2), 6e4, dtype=torch.float16, requires_grad=True)
    F.batch_norm_inference(x, torch.zeros(2), torch.tensor([1e-9, -1]), eps=0.0).sum().backward()
    assert x.grad.isnan().any(0).tolist() == [False, True]


def test_every_function_can_be_pickled():
    for name in F.__all__:
        assert pickle.loads(pickle.dumps(getattr(F, name))) is getattr(F, name)


def test_memory_is_shared_and_strides_are_kept():
    x = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert F.relu(x).stride() == x.stride()
    assert F._array(x).__array_interface__["data"][0] == x.data_ptr()
    assert F._array(x.requires_grad_()).__array_interface__["data"][0] == x.data_ptr()


def test_a_compiled_graph_contains_the_operators():
    calls = []

    def backend(graph, inputs):
        calls.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    module = F.BatchNorm1d(4)
    f = torch.compile(lambda x: F.gelu(module(x)), backend=backend, fullgraph=True)
    x = torch.rand(6, 4)
    g = torch.compile(lambda x: F.elu(F.layer_norm(x), 0.5), backend=backend, fullgraph=True, dynamic=True)
    assert torch.equal(g(x), F.elu(F.layer_norm(x), 0.5))  # dynamic: eps is a symbol there
    assert any("fastnn.elu" in call for call in calls)
    expected = F.gelu(copy.deepcopy(module)(x))
    assert torch.equal(f(x), expected)
    assert any("fastnn.gelu" in call for call in calls)
    assert any("fastnn.batch_norm" in call for call in calls)


def test_every_function_can_be_compiled_in_one_program():
    """torch.compile gives up a code object after eight versions; each function has its own."""
    x = torch.rand(6, 4)
    for name in _functions.ELEMENTWISE:
        function = getattr(F, name)
        assert torch.equal(torch.compile(function, backend="eager", fullgraph=True)(x), function(x))


def test_batch_norm_without_a_count_of_batches():
    ours, theirs = F.BatchNorm1d(4), torch.nn.BatchNorm1d(4)
    ours.num_batches_tracked = theirs.num_batches_tracked = None
    x = torch.randn(5, 4)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert torch.allclose(ours.running_mean, theirs.running_mean)


def test_batch_norm_without_a_count_and_a_momentum_leaves_the_statistics():
    ours, theirs = F.BatchNorm1d(4, momentum=None), torch.nn.BatchNorm1d(4, momentum=None)
    ours.num_batches_tracked = theirs.num_batches_tracked = None
    x = torch.randn(5, 4)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert torch.equal(ours.running_mean, theirs.running_mean) and torch.equal(ours.running_var, theirs.running_var)


def test_batch_norm_that_no_longer_tracks_follows_torch():
    module, reference = pair(F.BatchNorm1d, torch.nn.BatchNorm1d)
    before = copy.deepcopy(module.state_dict())
    for m in (module, reference):
        m.track_running_stats = False
    x = torch.randn(7, 5)
    for training in (True, False):
        module.train(training), reference.train(training)
        torch.testing.assert_close(module(x), reference(x), rtol=1e-4, atol=1e-5)
    for key, value in before.items():
        assert torch.equal(module.state_dict()[key], value) and torch.equal(reference.state_dict()[key], value)


def test_forward_mode_by_a_parameter_of_batch_norm_is_refused():
    module, x = F.BatchNorm1d(4), torch.randn(5, 4)

    def f(weight):
        return torch.func.functional_call(module, {"weight": weight}, (x,))

    with pytest.raises(NotImplementedError, match="reverse mode"):
        torch.func.jvp(f, (module.weight.detach(),), (torch.ones(4),))
