"""A whole training step of a small network, written for each library the way its users write it.

Dense layers with batch normalization and relu between them, mean cross-entropy, plain SGD. Every contestant starts from
the same weights; the loss of the first step and the first weights after it are compared before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

BATCH = 64
RATE = 1e-3
Array = np.ndarray[Any, np.dtype[Any]]
Step = Callable[[], tuple[float, Array]]


def arrays(sizes: tuple[int, ...], dtype: str) -> dict[str, Any]:
    """A batch, its labels and the first weights of a network with layers of these sizes."""
    rng = np.random.default_rng(37)
    weights = [(rng.normal(size=(m, n)) * np.sqrt(2 / m)).astype(dtype) for m, n in pairwise(sizes)]
    return {
        "x": rng.normal(size=(BATCH, sizes[0])).astype(dtype),
        "labels": rng.integers(0, sizes[-1], BATCH),
        "weights": weights,
    }


def joined(arrays: list[Array]) -> tuple[Array, list[Array]]:
    """Copies of the arrays in one, and as views of it."""
    whole = np.concatenate([array.ravel() for array in arrays])
    parts = np.split(whole, np.cumsum([array.size for array in arrays])[:-1])
    return whole, [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]


def fastnn_step(fn: ModuleType, data: dict[str, Any]) -> Step:
    """With fastnn: batch norm and relu fused, every array of the step reused, the parameters parts of one array."""
    x, labels = data["x"], data["labels"]
    first = data["weights"]
    n, hidden = len(first), len(first) - 1
    scales = [np.ones(w.shape[1], w.dtype) for w in first[:-1]]
    offsets = [np.zeros(w.shape[1], w.dtype) for w in first]  # betas, and the bias of the last layer

    def laid_out() -> tuple[Array, list[Array], list[Array], list[Array]]:
        whole, parts = joined([*first, *scales, *offsets])
        return whole, parts[:n], parts[n : n + hidden], parts[n + hidden :]

    parameters, weights, gammas, (*betas, bias) = laid_out()
    all_gradients, gradients, dgammas, (*dbetas, dbias) = laid_out()
    linear = [np.empty((BATCH, w.shape[1]), w.dtype) for w in weights]
    normal = [np.empty_like(z) for z in linear[:-1]]
    slopes = [np.empty_like(z) for z in linear]
    inputs = [x, *normal]

    def step() -> tuple[float, Array]:
        stats = []
        for i in range(hidden):
            np.matmul(inputs[i], weights[i], out=linear[i])
            _, mean, invstd = fn.batch_norm(linear[i], gammas[i], betas[i], activation="relu", out=normal[i])
            stats.append((mean, invstd))
        logits = np.matmul(inputs[-1], weights[-1], out=linear[-1])
        logits += bias
        loss, slope = fn.cross_entropy(logits, labels, out=slopes[-1])
        slope.sum(axis=0, out=dbias)
        for i in range(hidden, -1, -1):
            np.matmul(inputs[i].T, slope, out=gradients[i])
            if i == 0:
                break
            j = i - 1
            slope = np.matmul(slope, weights[i].T, out=slopes[j])
            slope, dgammas[j][:], dbetas[j][:] = fn.batch_norm_backward(
                slope, linear[j], *stats[j], gammas[j], activation="relu", beta=betas[j], out=slope
            )
        np.multiply(all_gradients, RATE, out=all_gradients)
        np.subtract(parameters, all_gradients, out=parameters)
        return loss, weights[0]

    return step


def numpy_step(data: dict[str, Any]) -> Step:
    """With NumPy, as in the course's assignments: vectorised, each layer's backward in its short form."""
    x, labels = data["x"], data["labels"]
    weights = [w.copy() for w in data["weights"]]
    gammas = [np.ones(w.shape[1], w.dtype) for w in weights[:-1]]
    betas = [np.zeros(w.shape[1], w.dtype) for w in weights[:-1]]
    bias = np.zeros(weights[-1].shape[1], x.dtype)
    rows = np.arange(BATCH)

    def step() -> tuple[float, Array]:
        h, kept = x, []
        for w, gamma, beta in zip(weights[:-1], gammas, betas, strict=True):
            z = h @ w
            centred = z - z.mean(axis=0)
            invstd = 1 / np.sqrt((centred * centred).mean(axis=0) + 1e-5)
            xhat = centred * invstd
            y = np.maximum(gamma * xhat + beta, 0)
            kept.append((h, xhat, invstd, y))
            h = y
        logits = h @ weights[-1] + bias
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        loss = -np.log(p[rows, labels]).mean()
        p[rows, labels] -= 1
        p /= BATCH
        dw = h.T @ p
        dh = p @ weights[-1].T
        weights[-1] -= RATE * dw
        np.subtract(bias, RATE * p.sum(axis=0), out=bias)
        for i in range(len(kept) - 1, -1, -1):
            h, xhat, invstd, y = kept[i]
            d = dh * (y > 0)
            dgamma, dbeta = (d * xhat).sum(axis=0), d.sum(axis=0)
            dz = (gammas[i] * invstd / BATCH) * (BATCH * d - dbeta - xhat * dgamma)
            dw = h.T @ dz
            if i:
                dh = dz @ weights[i].T
            weights[i] -= RATE * dw
            gammas[i] -= RATE * dgamma
            betas[i] -= RATE * dbeta
        return float(loss), weights[0]

    return step


def torch_step(torch: Any, data: dict[str, Any]) -> Step:
    """With PyTorch: nn.Sequential, autograd and torch.optim.SGD."""
    with torch.inference_mode(False), torch.enable_grad():
        x, labels = torch.tensor(data["x"]), torch.tensor(data["labels"])
        layers: list[Any] = []
        for w in data["weights"][:-1]:
            linear = torch.nn.Linear(*w.shape, bias=False, dtype=x.dtype)
            linear.weight.data = torch.tensor(w.T.copy())
            layers += [linear, torch.nn.BatchNorm1d(w.shape[1], dtype=x.dtype), torch.nn.ReLU(inplace=True)]
        last = torch.nn.Linear(*data["weights"][-1].shape, dtype=x.dtype)
        last.weight.data = torch.tensor(data["weights"][-1].T.copy())
        last.bias.data.zero_()
        network = torch.nn.Sequential(*layers, last)
        optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
        criterion = torch.nn.CrossEntropyLoss()

    def step() -> tuple[float, Array]:
        with torch.inference_mode(False), torch.enable_grad():
            optimizer.zero_grad(set_to_none=True)
            loss = criterion(network(x), labels)
            loss.backward()
            optimizer.step()
        return loss.item(), layers[0].weight.detach().numpy().T

    return step


def jax_step(jax: Any, data: dict[str, Any]) -> Step:
    """With JAX: one jitted function from parameters to loss and new parameters, whose memory is donated."""
    jnp = jax.numpy
    x, labels = jnp.asarray(data["x"]), jnp.asarray(data["labels"])
    parameters = {
        "w": [jnp.array(w) for w in data["weights"]],
        "gamma": [jnp.ones(w.shape[1], w.dtype) for w in data["weights"][:-1]],
        "beta": [jnp.zeros(w.shape[1], w.dtype) for w in data["weights"][:-1]],
        "bias": jnp.zeros(data["weights"][-1].shape[1], x.dtype),
    }

    def loss_of(parameters: Any, x: Any, labels: Any) -> Any:
        h = x
        for w, gamma, beta in zip(parameters["w"][:-1], parameters["gamma"], parameters["beta"], strict=True):
            z = h @ w
            centred = z - z.mean(0)
            h = jax.nn.relu(gamma * centred * jax.lax.rsqrt((centred * centred).mean(0) + 1e-5) + beta)
        logits = jax.nn.log_softmax(h @ parameters["w"][-1] + parameters["bias"])
        return -jnp.take_along_axis(logits, labels[:, None], 1).mean()

    def update(parameters: Any, x: Any, labels: Any) -> Any:
        loss, slopes = jax.value_and_grad(loss_of)(parameters, x, labels)
        return loss, jax.tree.map(lambda p, g: p - RATE * g, parameters, slopes)

    jitted = jax.jit(update, donate_argnums=0)
    compiled = jitted.lower(parameters, x, labels).compile()

    def step() -> tuple[float, Array]:
        nonlocal parameters
        loss, parameters = compiled(parameters, x, labels)
        jax.block_until_ready(parameters)
        return float(loss), parameters["w"][0]

    return step


def matmul_step(data: dict[str, Any]) -> Callable[[], None]:
    """The matrix products of a step and nothing else: what no kernel of fastnn can make faster."""
    weights = [w.copy() for w in data["weights"]]
    values = [data["x"], *[np.ones((BATCH, w.shape[1]), w.dtype) for w in weights]]
    gradients = [np.empty_like(w) for w in weights]
    slopes = [np.empty_like(v) for v in values]

    def step() -> None:
        for i, w in enumerate(weights):
            np.matmul(values[i], w, out=slopes[i + 1])
        for i in range(len(weights) - 1, -1, -1):
            np.matmul(values[i].T, values[i + 1], out=gradients[i])
            if i:
                np.matmul(values[i + 1], weights[i].T, out=slopes[i])

    return step
