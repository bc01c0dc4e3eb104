"""scikit-learn: MLPClassifier and MLPRegressor on fastnn's activations, derivatives and softmax.

scikit-learn keeps these functions in two dictionaries and calls them in place: an activation overwrites its input, a
derivative is given the activation's output and overwrites the gradient. install() replaces the entries that do
arithmetic.

    import fastnn.backends.sklearn
    fastnn.backends.sklearn.install()           # until uninstall()
    with fastnn.backends.sklearn.accelerated():  # or for one block
        MLPClassifier().fit(X, y)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

import fastnn as fn
from fastnn.backends import _host

try:
    import sklearn
    from sklearn.neural_network import _base
except ImportError as error:
    raise _host.absent("sklearn") from error

__all__ = ["accelerated", "install", "uninstall"]

# The host's own function, for the arrays that a kernel cannot overwrite in place (integers, say).
_HOST_ACTIVATIONS: dict[str, Callable[[Any], None]] = dict(_base.ACTIVATIONS)
_HOST_DERIVATIVES: dict[str, Callable[[Any, Any], None]] = dict(_base.DERIVATIVES)


def _is_float(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype in (np.float32, np.float64)


def _activation(host: str, name: str, **axis: int) -> Callable[[Any], None]:
    def inplace(X: Any) -> None:
        if _is_float(X):
            getattr(fn, name)(X, out=X, **axis)
        else:
            _HOST_ACTIVATIONS[host](X)

    return inplace


def _derivative(host: str, name: str) -> Callable[[Any, Any], None]:
    def inplace(Z: Any, delta: Any) -> None:
        if _is_float(delta) and _is_float(Z):
            # delta can be wider than Z: labels are float64 even where the network is float32
            getattr(fn, name)(delta, Z.astype(delta.dtype, copy=False), out=delta)
        else:
            _HOST_DERIVATIVES[host](Z, delta)

    return inplace


_patch = _host.Patch(
    (
        _base.ACTIVATIONS,
        {
            "logistic": _activation("logistic", "sigmoid"),
            "tanh": _activation("tanh", "tanh"),
            "relu": _activation("relu", "relu"),
            "softmax": _activation("softmax", "softmax", axis=1),
        },
    ),
    (
        _base.DERIVATIVES,
        {
            "logistic": _derivative("logistic", "sigmoid_backward"),
            "tanh": _derivative("tanh", "tanh_backward"),
            "relu": _derivative("relu", "relu_backward"),
        },
    ),
)


def install() -> None:
    """Let scikit-learn's networks run on fastnn until uninstall(); a second call changes nothing."""
    _host.check_version("sklearn", sklearn.__version__)
    _patch.install()


def uninstall() -> None:
    """Give scikit-learn its own functions back; without install() nothing happens."""
    _patch.uninstall()


def accelerated() -> AbstractContextManager[None]:
    """Let scikit-learn's networks run on fastnn inside a with-block."""
    _host.check_version("sklearn", sklearn.__version__)
    return _patch.accelerated()
