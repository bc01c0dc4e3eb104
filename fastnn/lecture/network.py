"""A network of layers, its training by stochastic gradient descent, and what a training run remembers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

from fastnn.lecture.layers import Activation, Array, BatchNorm, Dense, Layer

# (shape, rng) -> the first weights of a layer
Initializer = Callable[[tuple[int, int], np.random.Generator], Array]


class Network:
    """Layers in order, ending in logits; the loss is the backend's mean cross-entropy."""

    def __init__(self, layers: Sequence[Layer], backend: ModuleType) -> None:
        self.layers = list(layers)
        self.backend = backend

    @classmethod
    def mlp(
        cls,
        sizes: Sequence[int],
        backend: ModuleType,
        *,
        activation: str = "relu",
        init: Initializer | None = None,
        batch_norm: bool = False,
        bias: float = 0.0,
        rng: Any = None,
        dtype: Any = np.float32,
        **params: Any,
    ) -> Network:
        """Dense layers of the given sizes with (batch norm and) an activation after each but the last.

        ``init`` makes the weights of every layer (He's where it is None), ``bias`` is the first value of every hidden
        bias, ``params`` go to the activation, ``rng`` is anything that ``numpy.random.default_rng`` takes.
        """
        rng = np.random.default_rng(rng)
        make = init or (lambda shape, rng: backend.init.he_normal(shape, rng=rng))
        layers: list[Layer] = []
        last = len(sizes) - 2
        for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            W = np.ascontiguousarray(make((fan_in, fan_out), rng), dtype=dtype)
            layers.append(Dense(W, np.full(fan_out, 0.0 if i == last else bias, dtype=dtype)))
            if i < last:
                if batch_norm:
                    layers.append(BatchNorm(backend, fan_out, dtype))
                layers.append(Activation(backend, activation, **params))
        return cls(layers, backend)

    def forward(self, x: Array, training: bool = True) -> Array:
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dy: Array) -> Array:
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def loss(self, x: Array, labels: Array) -> float:
        """Mean cross-entropy of a batch; every layer's gradients are left beside its arrays."""
        loss, dlogits = self.backend.cross_entropy(self.forward(x), labels)
        self.backward(dlogits)
        return float(loss)

    def outputs(self, x: Array, training: bool = False) -> list[Array]:
        """The output of every layer for a batch, in order."""
        results = []
        for layer in self.layers:
            x = layer.forward(x, training)
            results.append(x)
        return results

    def accuracy(self, x: Array, labels: Array, training: bool = False) -> float:
        """Share of a batch that is classified right; NaN logits count as wrong."""
        logits = self.forward(x, training)
        right = (logits.argmax(axis=1) == labels) & np.isfinite(logits).all(axis=1)
        return float(right.mean())

    def dense(self) -> list[Dense]:
        """The layers with weights, in order."""
        return [layer for layer in self.layers if isinstance(layer, Dense)]


class SGD:
    """Stochastic gradient descent with momentum: ``v = momentum * v - lr * gradient; w = w + v``."""

    def __init__(self, network: Network, lr: float, momentum: float = 0.0) -> None:
        self.network, self.lr, self.momentum = network, lr, momentum
        self.velocity: list[Array] | None = None

    def step(self) -> None:
        """Move every parameter by the gradients that the latest ``loss`` left."""
        pairs = [pair for layer in self.network.layers for pair in layer.parameters()]
        if self.velocity is None:
            self.velocity = [np.zeros_like(w) for w, _ in pairs]
        for (w, dw), v in zip(pairs, self.velocity, strict=True):
            if self.momentum:
                v *= self.momentum
                v -= self.lr * dw
                w += v
            else:
                w -= self.lr * dw


def batches(n: int, size: int, rng: np.random.Generator) -> Iterator[Array]:
    """The indices of one epoch in random order, ``size`` at a time; a rest smaller than that is left out."""
    order = rng.permutation(n)
    for start in range(0, n - size + 1, size):
        yield order[start : start + size]


@dataclass
class History:
    """The loss of every step; training stops early where it is no longer finite."""

    losses: list[float] = field(default_factory=list)
    diverged: bool = False

    def final(self, steps: int = 20) -> float:
        """Mean loss of the last steps; infinite where training diverged."""
        return float("inf") if self.diverged else float(np.mean(self.losses[-steps:]))


def train(
    network: Network,
    x: Array,
    labels: Array,
    *,
    epochs: int,
    lr: float,
    momentum: float = 0.9,
    batch: int = 64,
    rng: Any = None,
    after_step: Callable[[], None] | None = None,
) -> History:
    """Train in place; ``after_step`` is called after each step (for progress and for looking at the gradients)."""
    rng = np.random.default_rng(rng)
    optimizer = SGD(network, lr, momentum)
    history = History()
    # A rate that is too high overflows: that is a result of these experiments, not a reason to warn.
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(epochs):
            for chosen in batches(len(x), min(batch, len(x)), rng):
                history.losses.append(network.loss(x[chosen], labels[chosen]))
                if not np.isfinite(history.losses[-1]):
                    history.diverged = True
                    return history
                optimizer.step()
                if after_step is not None:
                    after_step()
    return history
