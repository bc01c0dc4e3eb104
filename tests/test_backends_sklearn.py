"""The adapter for scikit-learn: same numbers, in place, and scikit-learn's own tests on fastnn."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'fastnn-kernels[sklearn]'")

import sklearn
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor, _base

import fastnn as fn
import fastnn.backends.sklearn as backend

ORIGINAL = dict(_base.ACTIVATIONS), dict(_base.DERIVATIVES)
KERNELS = {"logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}


@pytest.fixture
def calls(monkeypatch):
    """How often each function of fastnn was called."""
    counts = {}

    def counted(name, kernel):
        def call(*args, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return kernel(*args, **kwargs)

        return call

    for name in ("sigmoid", "tanh", "relu", "softmax", "sigmoid_backward", "tanh_backward", "relu_backward"):
        monkeypatch.setattr(fn, name, counted(name, getattr(fn, name)))
    return counts


def assert_host_is_original():
    assert (_base.ACTIVATIONS, _base.DERIVATIVES) == ORIGINAL


def test_install_replaces_and_uninstall_restores():
    backend.uninstall()
    assert_host_is_original()
    backend.install()
    backend.install()
    try:
        replaced = {key for key, f in _base.ACTIVATIONS.items() if f is not ORIGINAL[0][key]}
        assert replaced == {"logistic", "tanh", "relu", "softmax"}
        assert {key for key, f in _base.DERIVATIVES.items() if f is not ORIGINAL[1][key]} == set(KERNELS)
    finally:
        backend.uninstall()
    assert_host_is_original()
    with pytest.raises(KeyError), backend.accelerated():
        raise KeyError
    assert_host_is_original()


def test_an_untested_version_warns(monkeypatch):
    monkeypatch.setattr(sklearn, "__version__", "99.0")
    with pytest.warns(RuntimeWarning, match="scikit-learn 99.0"), backend.accelerated():
        pass
    assert_host_is_original()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["logistic", "tanh", "relu", "softmax"])
def test_activations_work_in_place(name, dtype):
    given = (np.random.default_rng(0).standard_normal((50, 7)) * 5).astype(dtype)
    for x in (given, np.asfortranarray(given), given[::2, 1:]):
        expected = x.copy()
        ORIGINAL[0][name](expected)
        got = x.copy(order="K")
        with backend.accelerated():
            assert _base.ACTIVATIONS[name](got) is None
        np.testing.assert_allclose(got, expected, rtol=2e-6 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f8", "f8"), ("f4", "f8"), ("f8", "f4")])
@pytest.mark.parametrize("name", KERNELS)
def test_derivatives_work_in_place(name, dtypes):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((50, 7)).astype(dtypes[0])
    ORIGINAL[0][name](z)
    delta = rng.standard_normal((50, 7)).astype(dtypes[1])
    expected, before = delta.copy(), z.copy()
    ORIGINAL[1][name](z, expected)
    with backend.accelerated():
        assert _base.DERIVATIVES[name](z, delta) is None
    np.testing.assert_allclose(delta, expected, rtol=1e-5 if "f4" in dtypes else 1e-13, atol=1e-7)
    assert np.array_equal(z, before)


def test_what_a_kernel_does_not_take_goes_to_scikit_learn():
    x, delta = np.array([[-1, 2]]), np.array([[3, 4]])
    with backend.accelerated():
        _base.ACTIVATIONS["relu"](x)
        _base.DERIVATIVES["relu"](x, delta)
    assert x.tolist() == [[0, 2]]
    assert delta.tolist() == [[0, 4]]


def fit(activation, solver="adam", dtype=np.float64, regressor=False):
    X, y = load_digits(return_X_y=True)
    X, y = (X[:300] / 16).astype(dtype), y[:300]
    network = (MLPRegressor if regressor else MLPClassifier)(
        hidden_layer_sizes=(20, 10), activation=activation, solver=solver, max_iter=8, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(X, y)
    return network, network.predict(X) if regressor else network.predict_proba(X)


@pytest.mark.parametrize("regressor", [False, True])
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize("activation", ["identity", *KERNELS])
def test_networks_train_to_the_same_numbers(activation, solver, regressor, calls):
    expected, expected_output = fit(activation, solver, regressor=regressor)
    assert not calls
    with backend.accelerated():
        network, output = fit(activation, solver, regressor=regressor)
    np.testing.assert_allclose(output, expected_output, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(network.loss_, expected.loss_, rtol=1e-8)
    for got, wanted in zip(network.coefs_, expected.coefs_, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-8)
    used = set() if activation == "identity" else {KERNELS[activation], f"{KERNELS[activation]}_backward"}
    assert set(calls) == used | (set() if regressor else {"softmax"})


@pytest.mark.parametrize("activation", KERNELS)
def test_float32_networks_train_to_the_same_numbers(activation, calls):
    _, expected_output = fit(activation, dtype=np.float32)
    with backend.accelerated():
        network, output = fit(activation, dtype=np.float32)
    assert network.coefs_[0].dtype == np.float32
    np.testing.assert_allclose(output, expected_output, rtol=1e-3, atol=1e-5)
    assert calls["softmax"] > 0


PLUGIN = """
import json

import fastnn as fn
import fastnn.backends.sklearn as backend

COUNTS = {}


def count(name):
    kernel = getattr(fn, name)

    def counted(*args, **kwargs):
        COUNTS[name] = COUNTS.get(name, 0) + 1
        return kernel(*args, **kwargs)

    setattr(fn, name, counted)


def pytest_configure():
    for name in ("sigmoid", "tanh", "relu", "softmax", "sigmoid_backward", "tanh_backward", "relu_backward"):
        count(name)
    backend.install()


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"fastnn calls: {json.dumps(COUNTS)}")
"""


@pytest.mark.host_suite
def test_scikit_learns_own_tests_pass_on_fastnn(tmp_path):
    (tmp_path / "fastnn_plugin.py").write_text(PLUGIN)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "fastnn_plugin", "--pyargs", "sklearn.neural_network"]
    path = {"PYTHONPATH": f"{tmp_path}:{':'.join(p for p in sys.path if p)}"}
    result = subprocess.run(command, cwd=tmp_path, env=os.environ | path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("fastnn calls: "))
    calls = json.loads(line.removeprefix("fastnn calls: "))
    assert min(calls[name] for name in ("relu", "relu_backward", "softmax", "sigmoid", "tanh", "tanh_backward")) > 10, (
        calls
    )
