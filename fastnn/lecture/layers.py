"""Layers of a network: each has ``forward(x, training=True)``, ``backward(dy)`` and ``parameters()``.

``backward`` uses what the latest ``forward`` kept, leaves the gradients of the layer's own arrays beside them and
returns the gradient of its input. The arithmetic that fastnn is about comes from the backend (the module ``fastnn``
or ``fastnn.reference``); only the matrix products are NumPy's.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol

import numpy as np

from fastnn._table import BY_NAME

Array = np.ndarray
Parameter = tuple[Array, Array]  # an array that is learned, and its gradient


class Layer(Protocol):
    """What a network asks of its layers."""

    def forward(self, x: Array, training: bool = True) -> Array: ...

    def backward(self, dy: Array) -> Array: ...

    def parameters(self) -> list[Parameter]: ...


class Dense:
    """``y = x @ W + b`` for x of shape (N, fan_in), W of shape (fan_in, fan_out)."""

    def __init__(self, W: Array, b: Array) -> None:
        if W.ndim != 2 or b.shape != (W.shape[1],):
            raise ValueError(f"W has shape {W.shape} and b {b.shape}; they must be (fan_in, fan_out) and (fan_out,)")
        self.W, self.b = W, b
        self.dW, self.db = np.zeros_like(W), np.zeros_like(b)
        self.x: Array | None = None

    def forward(self, x: Array, training: bool = True) -> Array:
        self.x = x
        y: Array = x @ self.W
        y += self.b
        return y

    def backward(self, dy: Array) -> Array:
        if self.x is None:
            raise RuntimeError("Dense.backward needs a forward call before it")
        np.matmul(self.x.T, dy, out=self.dW)
        np.sum(dy, axis=0, out=self.db)
        dx: Array = dy @ self.W.T
        return dx

    def parameters(self) -> list[Parameter]:
        return [(self.W, self.dW), (self.b, self.db)]


class Activation:
    """An elementwise activation of the backend by name: ``Activation(fastnn, "leaky_relu", negative_slope=0.1)``."""

    def __init__(self, backend: ModuleType, name: str, **params: Any) -> None:
        if name not in BY_NAME or BY_NAME[name].public:
            raise ValueError(f"activation is {name!r}; it must be an elementwise activation of fastnn, such as 'relu'")
        self.name, self.params = name, params
        self._forward = getattr(backend, name)
        self._backward = getattr(backend, name + "_backward")
        self._saves_output = BY_NAME[name].saved == "y"
        self.saved: Array | None = None

    def forward(self, x: Array, training: bool = True) -> Array:
        y: Array = self._forward(x, **self.params)
        self.saved = y if self._saves_output else x
        return y

    def backward(self, dy: Array) -> Array:
        if self.saved is None:
            raise RuntimeError("Activation.backward needs a forward call before it")
        dx: Array = self._backward(dy, self.saved, **self.params)
        return dx

    def parameters(self) -> list[Parameter]:
        return []


class BatchNorm:
    """The backend's batch normalization as a layer of a network."""

    def __init__(self, backend: ModuleType, features: int, dtype: Any = np.float32) -> None:
        self.norm = backend.BatchNorm(features, dtype=dtype)

    def forward(self, x: Array, training: bool = True) -> Array:
        y: Array = self.norm.forward(x, training=training)
        return y

    def backward(self, dy: Array) -> Array:
        dx: Array = self.norm.backward(dy)
        return dx

    def parameters(self) -> list[Parameter]:
        return [(self.norm.gamma, self.norm.dgamma), (self.norm.beta, self.norm.dbeta)]
