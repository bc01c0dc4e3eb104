"""The adapter for thinc: thinc's signatures, values and in-place rules, on large arrays, and thinc's own tests."""

import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("thinc", reason="thinc is not installed: pip install 'fastnn-kernels[thinc]'")

import thinc
from thinc.api import (
    Config,
    Mish,
    NumpyOps,
    Ops,
    Softmax,
    chain,
    get_current_ops,
    get_ops,
    registry,
    set_current_ops,
    use_ops,
)

import fastnn.backends.thinc as backend
from fastnn.backends.thinc import FastnnOps

FAST, HOST = FastnnOps(), NumpyOps()
UNARY = [
    "sigmoid",
    "relu",
    "relu_k",
    "hard_sigmoid",
    "hard_tanh",
    "swish",
    "hard_swish",
    "hard_swish_mobilenet",
    "gelu",
    "gelu_approx",
    "mish",
    "clipped_linear",
]
TOLERANCE = {"gelu": 3e-6, "gelu_approx": 3e-5}  # the host's own: its erf, and its tanh formula's rounded constants


def arrays(dtype, count=1, shape=(301, 97)):
    rng = np.random.default_rng(7)
    return [(rng.standard_normal(shape) * 4).astype(dtype) for _ in range(count)]


def backprop_arguments(name, dtype):
    dY, X = arrays(dtype, 2)
    Y = getattr(HOST, name)(X)
    names = inspect.signature(getattr(Ops, f"backprop_{name}")).parameters
    return {key: value for key, value in {"dY": dY, "X": X, "Y": Y}.items() if key in names}


def test_use_ops_and_config_find_it():
    with use_ops("fastnn"):
        assert isinstance(get_current_ops(), FastnnOps)
        model = chain(Mish(8), Softmax()).initialize(*arrays("f4", 1, (5, 4)), np.eye(5, 3, dtype="f4"))
    assert isinstance(model.ops, FastnnOps)
    assert isinstance(get_ops("fastnn"), FastnnOps)
    assert type(get_current_ops()) is NumpyOps
    config = Config().from_str('[ops]\n@ops = "fastnn"')
    assert registry.resolve(config)["ops"].name == "fastnn"


def test_install_uninstall_and_accelerated():
    backend.uninstall()
    before = get_current_ops()
    backend.install()
    backend.install()
    assert isinstance(get_current_ops(), FastnnOps)
    backend.uninstall()
    assert get_current_ops() is before
    with pytest.raises(KeyError), backend.accelerated():
        assert isinstance(get_current_ops(), FastnnOps)
        raise KeyError
    assert get_current_ops() is before
    backend.install()
    with backend.accelerated():
        pass
    assert isinstance(get_current_ops(), FastnnOps)
    backend.uninstall()
    with use_ops("numpy"):
        chosen = get_current_ops()
        backend.uninstall()
        assert get_current_ops() is chosen, "uninstall without install must not touch the user's choice"
        backend.install()
        set_current_ops(chosen := NumpyOps())
        backend.uninstall()
        assert get_current_ops() is chosen, "nor may it touch what was chosen after install"


def test_install_is_per_thread_as_thincs_ops_are():
    seen = []

    def worker():
        backend.install()
        seen.append(type(get_current_ops()))

    thread = threading.Thread(target=worker)
    thread.start()
    thread.join()
    assert seen == [FastnnOps]
    assert type(get_current_ops()) is NumpyOps


def test_an_untested_version_warns(monkeypatch):
    monkeypatch.setattr(thinc, "__version__", "99.0.1")
    with pytest.warns(RuntimeWarning, match="thinc 99"):
        FastnnOps()


def test_signatures_are_thincs():
    """What thinc's test_ops_consistency asks of an Ops class: no new public names, the same arguments and defaults."""
    for name in (name for name in dir(FastnnOps) if not name.startswith("_")):
        assert hasattr(Ops, name)
        if inspect.isfunction(method := getattr(FastnnOps, name)):
            mine, base = inspect.signature(method).parameters, inspect.signature(getattr(Ops, name)).parameters
            assert [(p.name, p.default, p.kind) for p in mine.values()] == [
                (p.name, p.default, p.kind) for p in base.values()
            ], name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", UNARY)
def test_forward_equals_numpy_ops_on_large_arrays(name, dtype):
    (X,) = arrays(dtype)
    expected = getattr(HOST, name)(X.copy())
    untouched = X.copy()
    got = getattr(FAST, name)(X)
    assert got.dtype == X.dtype
    assert got is not X
    assert np.array_equal(X, untouched)
    tolerance = max(TOLERANCE.get(name, 0), 2e-6 if dtype == "float32" else 1e-8)  # sigmoid clips at 20 in the host
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    inplace = getattr(FAST, name)(X, inplace=True)
    assert inplace is X
    np.testing.assert_array_equal(inplace, got)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", UNARY)
def test_backprop_equals_numpy_ops_on_large_arrays(name, dtype):
    given = backprop_arguments(name, dtype)
    expected = getattr(HOST, f"backprop_{name}")(**{key: value.copy() for key, value in given.items()})
    mine = {key: value.copy() for key, value in given.items()}
    got = getattr(FAST, f"backprop_{name}")(**mine)
    assert got.dtype == dtype
    assert all(np.array_equal(mine[key], given[key]) and got is not mine[key] for key in given)
    tolerance = max(TOLERANCE.get(name, 0) * 10, 3e-6 if dtype == "float32" else 1e-8)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    theirs = {key: value.copy() for key, value in given.items()}
    result_host = getattr(HOST, f"backprop_{name}")(**theirs, inplace=True)
    result = getattr(FAST, f"backprop_{name}")(**mine, inplace=True)
    np.testing.assert_array_equal(result, got)
    for key in given:  # the same array, and no other, is overwritten and returned
        assert (result is mine[key]) == (result_host is theirs[key]), key
        assert np.array_equal(mine[key], given[key]) == np.array_equal(theirs[key], given[key]), key


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("axis", [0, 1, -1, None, (0, 1)])
def test_softmax(axis, temperature, dtype):
    X, dY = arrays(dtype, 2)
    options = {"axis": axis, "temperature": temperature}
    for inplace in (False, True):
        given = X.copy()
        Y = FAST.softmax(given, inplace=inplace, **options)
        assert Y.dtype == dtype
        np.testing.assert_allclose(Y, HOST.softmax(X, **options), rtol=1e-5, atol=1e-7)
        assert np.array_equal(given, X), "thinc's softmax never writes to its input"
    before = dY.copy()
    np.testing.assert_allclose(
        FAST.backprop_softmax(Y, dY, **options), HOST.backprop_softmax(Y, dY, **options), rtol=1e-4, atol=1e-5
    )
    assert np.array_equal(dY, before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("pieces", [1, 2, 3, 5])
def test_maxout(pieces, dtype):
    (X,) = arrays(dtype, 1, (61, 33, pieces))
    X[:, :5] = 0.5  # ties
    best, which = FAST.maxout(X)
    expected_best, expected_which = HOST.maxout(X)
    assert best.dtype == dtype
    assert which.dtype == expected_which.dtype == np.int32
    assert np.array_equal(best, expected_best)
    assert np.array_equal(which, expected_which)
    dY = best * 2
    assert np.array_equal(FAST.backprop_maxout(dY, which, pieces), HOST.backprop_maxout(dY, which, pieces))
    with pytest.raises(IndexError, match=str(pieces)):
        FAST.backprop_maxout(dY, which + pieces, pieces)
    assert FAST.maxout(X[:0])[0].shape == (0, 33)


@pytest.mark.parametrize(
    "options",
    [
        {"slope": 0.3, "offset": -0.2, "min_val": -1.0, "max_val": 2.0},
        {"slope": 2.0},
        {"offset": 1.0},
        {"slope": -1.5, "offset": 0.5},
        {"min_val": 1.0, "max_val": 0.0},
        {"max_val": float("inf")},
        {"slope": 2.0, "max_val": 1e39},
        {"slope": 1e-40},
        {"slope": 1e39},
    ],
    ids=str,
)
@np.errstate(over="ignore", invalid="ignore")  # thinc's own, of numbers beyond float32
def test_clipped_linear_options(options):
    dY, X = arrays("float32", 2)
    inplace = X.copy()
    assert FAST.clipped_linear(inplace, **options, inplace=True) is inplace
    np.testing.assert_allclose(inplace, HOST.clipped_linear(X, **options), rtol=1e-6)
    np.testing.assert_allclose(FAST.clipped_linear(X, **options), HOST.clipped_linear(X, **options), rtol=1e-6)
    np.testing.assert_allclose(
        FAST.backprop_clipped_linear(dY, X, **options), HOST.backprop_clipped_linear(dY, X, **options), rtol=1e-6
    )


@pytest.mark.parametrize("name", ["hard_sigmoid", "hard_tanh", "hard_swish", "relu_k", "mish", "gelu"])
def test_arrays_without_dimensions(name):
    x = np.array(0.7, np.float32)
    assert np.allclose(getattr(FastnnOps(), name)(x), getattr(NumpyOps(), name)(x), rtol=1e-6)


def test_mish_with_a_low_threshold_is_thincs():
    dY, X = arrays("float32", 2)
    assert np.array_equal(FAST.mish(X, threshold=2.0), HOST.mish(X, threshold=2.0))
    assert np.array_equal(FAST.backprop_mish(dY, X, threshold=2.0), HOST.backprop_mish(dY, X, threshold=2.0))


def test_what_a_kernel_does_not_take_goes_to_thinc():
    dY, X = arrays("float32", 2)
    assert FAST.backprop_gelu(dY, X.astype("f8")).dtype == np.float64
    np.testing.assert_allclose(
        FAST.backprop_swish(dY[:1], X, X), HOST.backprop_swish(dY[:1], X, X), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="shape"):
        FAST.backprop_relu(dY, X[1:])


def test_a_network_trains_to_the_same_losses():
    X, Y = arrays("f4", 1, (64, 10))[0], np.eye(3, dtype="f4")[np.arange(64) % 3]
    losses = {}
    for name in ("numpy", "fastnn"):
        with use_ops(name):
            thinc.api.fix_random_seed(0)
            model = chain(thinc.api.Gelu(16), thinc.api.Maxout(12, nP=3), Mish(8), Softmax()).initialize(X, Y)
            optimizer, losses[name] = thinc.api.Adam(0.01), []
            for _ in range(20):
                Yh, backprop = model.begin_update(X)
                losses[name].append(float(((Yh - Y) ** 2).sum()))
                backprop(Yh - Y)
                model.finish_update(optimizer)
    assert losses["fastnn"][-1] < losses["fastnn"][0]
    np.testing.assert_allclose(losses["fastnn"], losses["numpy"], rtol=1e-3)


ADDED = """
from fastnn.backends.thinc import FastnnOps
XP_OPS.append(FastnnOps())
CPU_OPS.append(XP_OPS[-1])
"""


@pytest.mark.host_suite
def test_thincs_own_test_ops_passes_with_fastnn_in_the_lists(tmp_path):
    source = Path(thinc.__file__).parent / "tests" / "backends" / "test_ops.py"
    if not source.exists():
        pytest.skip("this thinc was installed without its tests")
    text = source.read_text().replace("from .. import strategies", "from thinc.tests import strategies")
    text = text.replace("from ..strategies import", "from thinc.tests.strategies import")
    for before, after in (
        ("\nALL_OPS = XP_OPS", f"\n{ADDED}\nALL_OPS = XP_OPS"),
        ('"op", [NumpyOps, CupyOps]', '"op", [NumpyOps, CupyOps, FastnnOps]'),
        # NumPy 2.4 no longer takes float() of a one-element array, on which these tests fail for thinc's own ops as
        # well
        ("float(dx_thinc)", "dx_thinc.item()"),
        ("float(backward(dY_thinc, X=x_thinc))", "backward(dY_thinc, X=x_thinc).item()"),
    ):
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "test_ops.py").write_text(text)
    environment = os.environ | {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "pytest", "-q", "test_ops.py"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
