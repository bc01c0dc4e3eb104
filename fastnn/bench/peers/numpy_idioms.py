"""NumPy and SciPy as a careful user writes them: out= wherever a ufunc takes it, no needless temporary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastnn.bench import steps
from fastnn.bench.cases import Arrays, Call, Case, norm_axis
from fastnn.bench.peers.base import Peer, is_map, out_of

Array = np.ndarray
Forward = Callable[[Array, Any], Array]
Backward = Callable[[Array, Array, Any], Array]

SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772
GELU_C = math.sqrt(2 / math.pi)


def sigmoid(x: Array, out: Any) -> Array:
    out = np.negative(x, out=out)
    np.exp(out, out=out)
    out += 1
    return np.reciprocal(out, out=out)


def leaky_relu(x: Array, out: Any) -> Array:
    return np.maximum(x, 0.01 * x, out=out)


def hardsigmoid(x: Array, out: Any) -> Array:
    out = np.add(x, 3, out=out)
    np.clip(out, 0, 6, out=out)
    out *= 1 / 6
    return out


def hardswish(x: Array, out: Any) -> Array:
    return np.multiply(x, hardsigmoid(x, None), out=out)


def elu(x: Array, out: Any) -> Array:
    negative = np.minimum(x, 0)
    np.expm1(negative, out=negative)
    out = np.maximum(x, 0, out=out)
    out += negative
    return out


def selu(x: Array, out: Any) -> Array:
    negative = np.minimum(x, 0)
    np.expm1(negative, out=negative)
    negative *= SELU_ALPHA
    out = np.maximum(x, 0, out=out)
    out += negative
    out *= SELU_SCALE
    return out


def gelu_tanh(x: Array, out: Any) -> Array:
    t = x * x
    t *= 0.044715
    t += 1
    t *= x
    t *= GELU_C
    np.tanh(t, out=t)
    t += 1
    t *= 0.5
    return np.multiply(x, t, out=out)


def silu(x: Array, out: Any) -> Array:
    t = np.negative(x)
    np.exp(t, out=t)
    t += 1
    return np.divide(x, t, out=out)


def mish(x: Array, out: Any) -> Array:
    t = np.exp(x)
    np.log1p(t, out=t)
    np.tanh(t, out=t)
    return np.multiply(x, t, out=out)


def softsign(x: Array, out: Any) -> Array:
    t = np.abs(x)
    t += 1
    return np.divide(x, t, out=out)


def log_sigmoid(x: Array, out: Any) -> Array:
    out = np.negative(x, out=out)
    np.exp(out, out=out)
    np.log1p(out, out=out)
    return np.negative(out, out=out)


def softplus(x: Array, out: Any) -> Array:
    out = np.exp(x, out=out)
    return np.log1p(out, out=out)


FORWARD: dict[str, Forward] = {
    "sigmoid": sigmoid,
    "tanh": lambda x, out: np.tanh(x, out=out),
    "relu": lambda x, out: np.maximum(x, 0, out=out),
    "leaky_relu": leaky_relu,
    "relu6": lambda x, out: np.clip(x, 0, 6, out=out),
    "hardtanh": lambda x, out: np.clip(x, -1, 1, out=out),
    "hardsigmoid": hardsigmoid,
    "hardswish": hardswish,
    "elu": elu,
    "celu": elu,
    "selu": selu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "mish": mish,
    "softsign": softsign,
    "log_sigmoid": log_sigmoid,
    "softplus": softplus,
}


def sigmoid_backward(dy: Array, y: Array, out: Any) -> Array:
    t = 1 - y
    t *= y
    return np.multiply(dy, t, out=out)


def tanh_backward(dy: Array, y: Array, out: Any) -> Array:
    t = y * y
    np.subtract(1, t, out=t)
    return np.multiply(dy, t, out=out)


def inside(low: float, high: float, scale: float = 1.0) -> Backward:
    def backward(dy: Array, x: Array, out: Any) -> Array:
        mask = (x > low) & (x < high)
        out = np.multiply(dy, mask, out=out)
        if scale != 1:
            out *= scale
        return out

    return backward


def leaky_relu_backward(dy: Array, x: Array, out: Any) -> Array:
    return np.multiply(dy, np.where(x > 0, dy.dtype.type(1), dy.dtype.type(0.01)), out=out)


def hardswish_backward(dy: Array, x: Array, out: Any) -> Array:
    t = x * (1 / 3)
    t += 0.5
    t[x >= 3] = 1
    t[x <= -3] = 0
    return np.multiply(dy, t, out=out)


def elu_backward(dy: Array, x: Array, out: Any) -> Array:
    t = np.minimum(x, 0)
    np.exp(t, out=t)
    return np.multiply(dy, t, out=out)


def selu_backward(dy: Array, x: Array, out: Any) -> Array:
    t = np.minimum(x, 0)
    np.exp(t, out=t)
    t *= SELU_ALPHA
    t[x > 0] = 1
    t *= SELU_SCALE
    return np.multiply(dy, t, out=out)


def gelu_tanh_backward(dy: Array, x: Array, out: Any) -> Array:
    square = x * x
    t = np.tanh(GELU_C * x * (1 + 0.044715 * square))
    square *= 3 * 0.044715
    square += 1
    square *= x
    square *= GELU_C * 0.5
    square *= 1 - t * t
    t += 1
    t *= 0.5
    t += square
    return np.multiply(dy, t, out=out)


def silu_backward(dy: Array, x: Array, out: Any) -> Array:
    s = sigmoid(x, None)
    t = 1 - s
    t *= x
    t += 1
    t *= s
    return np.multiply(dy, t, out=out)


def mish_backward(dy: Array, x: Array, out: Any) -> Array:
    e = np.exp(x)
    t = np.tanh(np.log1p(e))
    e /= 1 + e
    e *= 1 - t * t
    e *= x
    e += t
    return np.multiply(dy, e, out=out)


def softsign_backward(dy: Array, x: Array, out: Any) -> Array:
    t = np.abs(x)
    t += 1
    t *= t
    return np.divide(dy, t, out=out)


def log_sigmoid_backward(dy: Array, x: Array, out: Any) -> Array:
    t = np.exp(x)
    t += 1
    return np.divide(dy, t, out=out)


def softplus_backward(dy: Array, x: Array, out: Any) -> Array:
    return np.multiply(dy, sigmoid(x, None), out=out)


BACKWARD: dict[str, Backward] = {
    "sigmoid": sigmoid_backward,
    "tanh": tanh_backward,
    "relu": lambda dy, y, out: np.multiply(dy, y > 0, out=out),
    "leaky_relu": leaky_relu_backward,
    "relu6": inside(0, 6),
    "hardtanh": inside(-1, 1),
    "hardsigmoid": inside(-3, 3, 1 / 6),
    "hardswish": hardswish_backward,
    "elu": elu_backward,
    "celu": elu_backward,
    "selu": selu_backward,
    "gelu_tanh": gelu_tanh_backward,
    "silu": silu_backward,
    "mish": mish_backward,
    "softsign": softsign_backward,
    "log_sigmoid": log_sigmoid_backward,
    "softplus": softplus_backward,
}


def softmax(x: Array, out: Any) -> Array:
    out = np.subtract(x, x.max(axis=-1, keepdims=True), out=out)
    np.exp(out, out=out)
    out /= out.sum(axis=-1, keepdims=True)
    return out


def softmax_backward(dy: Array, y: Array, out: Any) -> Array:
    out = np.multiply(dy, y, out=out)
    out -= y * out.sum(axis=-1, keepdims=True)
    return out


def log_softmax(x: Array, out: Any) -> Array:
    out = np.subtract(x, x.max(axis=-1, keepdims=True), out=out)
    out -= np.log(np.exp(out).sum(axis=-1, keepdims=True))
    return out


def log_softmax_backward(dy: Array, y: Array, out: Any) -> Array:
    t = np.exp(y)
    t *= dy.sum(axis=-1, keepdims=True)
    return np.subtract(dy, t, out=out)


ROWS = {
    "softmax": (softmax, softmax_backward),
    "log_softmax": (log_softmax, log_softmax_backward),
}


def cross_entropy(logits: Array, labels: Array, out: Any) -> tuple[float, Array]:
    rows = np.arange(len(labels))
    p = softmax(logits, out)
    loss = -float(np.log(p[rows, labels]).mean())
    p[rows, labels] -= 1
    p /= len(labels)
    return loss, p


def prelu(x: Array, slope: Array, out: Any) -> Array:
    return np.maximum(x, x * slope, out=out)  # right for slopes up to 1, which is what the cases have


def prelu_backward(dy: Array, x: Array, slope: Array, out: Any) -> tuple[Array, Array]:
    axes = tuple(i for i in range(x.ndim) if i != 1)
    dslope = np.sum(dy * np.minimum(x, 0), axis=axes)
    return np.multiply(dy, np.where(x > 0, x.dtype.type(1), slope), out=out), dslope


def maxout(x: Array, out: Any) -> tuple[Array, Array]:
    pieces = x.reshape(len(x), -1, 2)
    return np.max(pieces, axis=2, out=out), np.argmax(pieces, axis=2)


def maxout_backward(dy: Array, which: Array, out: Array) -> Array:
    out[...] = 0
    np.put_along_axis(out.reshape(len(dy), -1, 2), which[..., None], dy[..., None], axis=2)
    return out


def normalize(x: Array, gamma: Array, beta: Array | None, axes: tuple[int, ...], eps: float, out: Any) -> Array:
    mean = x.mean(axis=axes, keepdims=True)
    out = np.subtract(x, mean, out=out)
    variance = np.mean(out * out, axis=axes, keepdims=True)
    out *= 1 / np.sqrt(variance + eps)
    out *= gamma
    if beta is not None:
        out += beta
    return out


def rms_normalize(x: Array, gamma: Array, eps: float, out: Any) -> Array:
    out = np.multiply(x, 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps), out=out)
    out *= gamma
    return out


def normalize_backward(
    dy: Array,
    x: Array,
    mean: Array,
    invstd: Array,
    gamma: Array,
    axes: tuple[int, ...],
    over: tuple[int, ...],
    out: Any,
) -> tuple[Array, Array, Array]:
    """Backward of every norm with a mean: ``axes`` are averaged over, gamma's gradient is summed over ``over``."""
    xhat = (x - mean) * invstd
    dgamma, dbeta = np.sum(dy * xhat, axis=over), np.sum(dy, axis=over)
    dxhat = dy * gamma
    t = xhat * np.mean(dxhat * xhat, axis=axes, keepdims=True)
    np.subtract(dxhat, t, out=t)
    t -= dxhat.mean(axis=axes, keepdims=True)
    return np.multiply(t, invstd, out=out), dgamma, dbeta


def rms_backward(dy: Array, x: Array, invrms: Array, gamma: Array, out: Any) -> tuple[Array, Array]:
    xhat = x * invrms
    dgamma = np.sum(dy * xhat, axis=tuple(range(x.ndim - 1)))
    dxhat = dy * gamma
    xhat *= np.mean(dxhat * xhat, axis=-1, keepdims=True)
    np.subtract(dxhat, xhat, out=xhat)
    return np.multiply(xhat, invrms, out=out), dgamma


class NumPy(Peer):
    name = "numpy"

    def load(self) -> str:
        return np.__version__

    def prepare(self, case: Case, data: Arrays) -> Call | None:
        if case.op.kind == "step":
            return Call(steps.numpy_step(data))
        out, forward, name = out_of(case, data), case.direction == "forward", case.op.name
        if is_map(case):
            table: Any = FORWARD if forward else BACKWARD
            arrays = (data["x"],) if forward else (data["dy"], data["saved"])
            return Call(table[name], (*arrays, out)) if name in table else None
        if case.op.kind == "rows":
            function = ROWS[name][0 if forward else 1]
            return Call(function, ((data["x"], out) if forward else (data["dy"], data["saved"], out)))
        if name == "cross_entropy":
            return Call(cross_entropy, (data["x"], data["labels"], out))
        if name == "maxout":
            if forward:
                return Call(maxout, (data["x"], out), collect=lambda value: value[:1])
            return Call(maxout_backward, (data["dy"], data["which"], out))
        along = [1] * len(case.shape)
        along[1 if name == "prelu" else norm_axis(case)] = -1
        if name == "prelu":
            slope = data["slope"].reshape(along)
            return (
                Call(prelu, (data["x"], slope, out))
                if forward
                else Call(prelu_backward, (data["dy"], data["x"], slope, out))
            )
        if case.op.kind == "stats":
            axes = tuple(i for i in range(len(case.shape)) if i != 1)
            return Call(lambda x: (np.mean(x, axis=axes), np.var(x, axis=axes)), (data["x"],))
        return self._norm(case, data, along, out, forward)

    def _norm(self, case: Case, data: Arrays, along: list[int], out: Any, forward: bool) -> Call | None:
        x, kind, rank = data["x"], case.op.kind, len(case.shape)
        relu = dict(case.op.options).get("activation") == "relu"
        gamma = data["gamma"].reshape(along)
        beta = data["beta"].reshape(along) if "beta" in data else None
        if kind == "inference":
            scale = gamma / np.sqrt(data["var"].reshape(along) + x.dtype.type(1e-5))
            shift = beta - data["mean"].reshape(along) * scale

            def apply(x: Array, out: Any) -> Array:
                out = np.multiply(x, scale, out=out)
                out += shift
                return np.maximum(out, 0, out=out) if relu else out

            return Call(apply, (x, out))
        if kind == "rms":
            if forward:
                return Call(rms_normalize, (x, gamma, 1e-5, out))
            invrms = data["stats"][0][..., None].astype(x.dtype)
            return Call(rms_backward, (data["dy"], x, invrms, gamma, out))
        over = tuple(i for i in range(rank) if i != norm_axis(case))
        axes = {"batch": over, "layer": (-1,), "instance": tuple(range(2, rank)), "group": (2,)}[kind]
        shape = x.shape
        if kind == "group":
            groups = dict(case.op.options)["groups"]
            shape = (len(x), groups, x[0].size // groups)
            inner = math.prod(case.shape[2:])
            gamma, beta = (np.repeat(data[v], inner).reshape(1, groups, -1) for v in ("gamma", "beta"))
        if forward:
            view = None if out is None else out.reshape(shape)

            def run(x: Array, gamma: Array, beta: Array | None, out: Any) -> Array:
                y = normalize(x, gamma, beta, axes, 1e-5, out)
                return np.maximum(y, 0, out=y) if relu else y

            return Call(run, (x.reshape(shape), gamma, beta, view), collect=lambda y: (y.reshape(case.shape),))
        if kind == "group" or relu:
            return None  # no idiom that people would recognise
        mean, invstd = (np.asarray(s, x.dtype) for s in data["stats"])
        if kind == "batch":
            mean, invstd = mean.reshape(along), invstd.reshape(along)
        else:
            mean, invstd = (s.reshape(s.shape + (1,) * (rank - s.ndim)) for s in (mean, invstd))
        return Call(normalize_backward, (data["dy"], x, mean, invstd, gamma, axes, over, out))


class SciPy(Peer):
    name = "scipy"

    def load(self) -> str:
        import scipy

        return str(scipy.__version__)

    def prepare(self, case: Case, data: Arrays) -> Call | None:
        from scipy import special

        if case.direction == "backward" or case.op.kind == "step":
            return None
        out, x = out_of(case, data), data["x"]
        kwargs = {} if out is None else {"out": out}
        if case.op.name == "sigmoid":
            return Call(special.expit, (x,), kwargs)
        if case.op.name == "log_sigmoid":
            return Call(special.log_expit, (x,), kwargs)
        if case.op.name == "gelu":

            def gelu(x: Array, out: Any) -> Array:
                t = x * x.dtype.type(math.sqrt(0.5))
                special.erf(t, out=t)
                t += 1
                t *= 0.5
                return np.multiply(x, t, out=out)

            return Call(gelu, (x, out))
        if case.op.kind == "rows":
            return Call(getattr(special, case.op.name), (x,), {"axis": -1}, fresh=True)
        return None
