"""thinc, the engine of spaCy: FastnnOps, its NumpyOps with the activations on fastnn's kernels.

The entry point (group thinc_ops) makes ``use_ops("fastnn")`` and config files find it wherever fastnn is installed:

    from thinc.api import use_ops
    with use_ops("fastnn"):
        model = chain(Mish(128), Softmax())   # layers take their ops from here when they are built

Signatures and in-place rules are thinc's, method by method, down to which array ``inplace=True`` overwrites. Arrays
that a kernel does not take (mixed dtypes, shapes that would broadcast) go to thinc's own code. The results differ
from NumpyOps where NumpyOps is less exact: its sigmoid clips at 20, its erf is good to 1e-7, and at the kinks of
hard_swish and hard_swish_mobilenet the derivative here is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

import fastnn as fn
from fastnn.backends import _host

try:
    import thinc
    from thinc.api import NumpyOps, get_current_ops, registry, set_current_ops
except ImportError as error:
    raise _host.absent("thinc") from error

__all__ = ["FastnnOps", "accelerated", "install", "uninstall"]

_FLOATS = (np.float32, np.float64)
_LARGEST = {kind: float(np.finfo(kind).max) for kind in _FLOATS}
_PLAIN = (float, int)


def _ready(*arrays: Any) -> bool:
    """Whether a kernel computes what thinc would: plain arrays of one floating dtype and one shape."""
    first = arrays[0]
    return all(type(a) is np.ndarray and a.dtype == first.dtype and a.shape == first.shape for a in arrays) and (
        first.dtype in _FLOATS
    )


def _interval(low: Any, high: Any, dtype: Any) -> bool:
    """Whether hardtanh takes these bounds in dtype; thinc's clip takes infinite and crossed ones, arrays and None."""
    largest = _LARGEST[dtype.type]
    return type(low) in _PLAIN and type(high) in _PLAIN and -largest <= low <= high <= largest


def _forward(method: str, kernel: str, *params: Any) -> Any:
    """The method of a function of X alone."""

    def forward(self, X, inplace=False):
        if not _ready(X):
            return getattr(super(FastnnOps, self), method)(X, inplace=inplace)
        return getattr(fn, kernel)(X, *params, out=X if inplace else None)

    return forward


def _backprop(method: str, kernel: str, *params: Any) -> Any:
    """Its backprop, which overwrites dY."""

    def backprop(self, dY, X, inplace=False):
        if not _ready(dY, X):
            return getattr(super(FastnnOps, self), f"backprop_{method}")(dY, X, inplace=inplace)
        return getattr(fn, f"{kernel}_backward")(dY, X, *params, out=dY if inplace else None)

    return backprop


@registry.ops("fastnn")
class FastnnOps(NumpyOps):
    """thinc's operations on the CPU with fastnn's activations."""

    name = "fastnn"

    def __init__(self, device_type: Any = "cpu", device_id: int = -1, *, use_blis: bool = True) -> None:
        _host.check_version("thinc", thinc.__version__)
        super().__init__(device_type, device_id, use_blis=use_blis)

    relu = _forward("relu", "relu")
    swish = _forward("swish", "silu")
    gelu = _forward("gelu", "gelu")
    gelu_approx = _forward("gelu_approx", "gelu", "tanh")
    hard_swish_mobilenet = _forward("hard_swish_mobilenet", "hardswish")
    backprop_gelu = _backprop("gelu", "gelu")
    backprop_gelu_approx = _backprop("gelu_approx", "gelu", "tanh")
    backprop_hard_swish_mobilenet = _backprop("hard_swish_mobilenet", "hardswish")

    def backprop_relu(self, dY, Y, inplace=False):
        if not _ready(dY, Y):
            return super().backprop_relu(dY, Y, inplace=inplace)
        return fn.relu_backward(dY, Y, out=dY if inplace else None)

    def sigmoid(self, X, *, inplace=False):
        if not _ready(X):
            return super().sigmoid(X, inplace=inplace)
        return fn.sigmoid(X, out=X if inplace else None)

    def backprop_sigmoid(self, dY, Y, *, inplace=False):
        if not _ready(dY, Y):
            return super().backprop_sigmoid(dY, Y, inplace=inplace)
        return fn.sigmoid_backward(dY, Y, out=Y if inplace else None)  # thinc overwrites Y here, not dY

    def softmax(self, x, *, inplace=False, axis=-1, temperature=1.0):
        # thinc never overwrites x here, whatever inplace says
        if not (_ready(x) and type(axis) is int):  # it may be None or a tuple
            return super().softmax(x, inplace=inplace, axis=axis, temperature=temperature)
        if temperature == 1.0:
            return fn.softmax(x, axis=axis)
        scaled = x / temperature
        return fn.softmax(scaled, axis=axis, out=scaled)

    def backprop_softmax(self, Y, dY, *, axis=-1, temperature=1.0):
        if not (_ready(Y, dY) and type(axis) is int):
            return super().backprop_softmax(Y, dY, axis=axis, temperature=temperature)
        if temperature == 1.0:
            return fn.softmax_backward(dY, Y, axis=axis)
        scaled = dY / temperature
        return fn.softmax_backward(scaled, Y, axis=axis, out=scaled)

    def maxout(self, X):
        if not (_ready(X) and X.ndim == 3 and X.shape[2] > 0):
            return super().maxout(X)
        batch, units, pieces = X.shape
        best, which = fn.maxout(X.reshape(batch, units * pieces), pieces)
        return best, which.astype(np.int32)

    def backprop_maxout(self, dY, which, P):
        if not (_ready(dY) and dY.ndim == 2 and dY.shape == which.shape):
            return super().backprop_maxout(dY, which, P)
        try:
            return fn.maxout_backward(dY, which.astype(np.intp, copy=False), P).reshape(*dY.shape, P)
        except ValueError as error:
            raise IndexError(str(error)) from error

    # relu_k, hard_sigmoid, hard_tanh and their backprops are thinc's calls of these two.
    def clipped_linear(self, X, slope=1.0, offset=0.0, min_val=0.0, max_val=1.0, inplace=False):
        if not (_ready(X) and _interval(min_val, max_val, X.dtype)):
            return super().clipped_linear(X, slope, offset, min_val, max_val, inplace)
        out = X if inplace else np.empty_like(X)
        if slope != 1.0:
            X = np.multiply(X, slope, out=out)
        if offset != 0.0:
            X = np.add(X, offset, out=out)
        return fn.hardtanh(X, min_val, max_val, out=out)

    def backprop_clipped_linear(self, dY, X, slope=1.0, offset=0.0, min_val=0.0, max_val=1.0, inplace=False):
        if not (
            _ready(dY, X)
            and 0.0 < slope <= _LARGEST[X.dtype.type]
            and _interval(low := (min_val - offset) / slope, high := (max_val - offset) / slope, X.dtype)
        ):
            return super().backprop_clipped_linear(dY, X, slope, offset, min_val, max_val, inplace)
        dX = fn.hardtanh_backward(dY, X, low, high, out=dY if inplace else None)
        if slope != 1.0:
            dX *= slope
        return dX

    def backprop_swish(self, dY, X, Y, inplace=False):
        if not _ready(dY, X, Y):
            return super().backprop_swish(dY, X, Y, inplace=inplace)
        return fn.silu_backward(dY, X, out=dY if inplace else None)

    def hard_swish(self, X, inplace=False):
        if not _ready(X):
            return super().hard_swish(X, inplace=inplace)
        gate = self.hard_sigmoid(X)
        return np.multiply(X, gate, out=X if inplace else gate)

    # thinc's gate is clip(0.2*x + 0.5, 0, 1) = hardsigmoid(1.2*x).
    def backprop_hard_swish(self, dY, X, inplace=False):
        if not _ready(dY, X):
            return super().backprop_hard_swish(dY, X, inplace=inplace)
        return fn.hardswish_backward(dY, X * X.dtype.type(1.2), out=dY if inplace else None)

    # From x = 20 on mish(x) is x to the last bit, so thinc's default threshold changes nothing; a lower one would.
    def mish(self, X, threshold=20.0, inplace=False):
        if not (_ready(X) and threshold >= 20.0):
            return super().mish(X, threshold, inplace)
        return fn.mish(X, out=X if inplace else None)

    def backprop_mish(self, dY, X, threshold=20.0, inplace=False):
        if not (_ready(dY, X) and threshold >= 20.0):
            return super().backprop_mish(dY, X, threshold, inplace)
        return fn.mish_backward(dY, X, out=dY if inplace else None)


# The ops that install() took the place of, in each context (thinc keeps its current ops in a context variable too).
_replaced: ContextVar[Any] = ContextVar("_replaced", default=None)


def install() -> None:
    """Make FastnnOps thinc's current ops until uninstall(); a second call changes nothing."""
    current = get_current_ops()
    if not isinstance(current, FastnnOps):
        set_current_ops(FastnnOps())
        _replaced.set(current)


def uninstall() -> None:
    """Put the ops that install() took the place of back; without install() nothing happens."""
    if _replaced.get() is not None:
        if isinstance(get_current_ops(), FastnnOps):
            set_current_ops(_replaced.get())
        _replaced.set(None)


@contextmanager
def accelerated() -> Iterator[None]:
    """thinc's ``use_ops("fastnn")``: FastnnOps are the current ops inside a with-block."""
    before = get_current_ops()
    set_current_ops(FastnnOps())
    try:
        yield
    finally:
        set_current_ops(before)
