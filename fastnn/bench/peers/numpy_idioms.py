"""NumPy and SciPy as an expert writes them: ``out`` is the scratch wherever it may be, sums of products by einsum.

``out`` is None where the result is to be fresh: the first ufunc allocates it. In place it is x, or dy of a backward:
intermediate values then need an array of their own, so the ``scratch`` that elementwise functions are given is None,
else it is ``out``. Arguments are positional, keywords take a tenth of a microsecond; but NumPy 2.4 deprecates that
for maximum and minimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastnn.bench import steps
from fastnn.bench.cases import Arrays, Call, Case, norm_axis
from fastnn.bench.peers.base import Peer, is_map, out_of

Array = np.ndarray
Forward = Callable[[Array, Any, Any], Array]
Backward = Callable[[Array, Array, Any, Any], Array]

SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772
GELU_C = math.sqrt(2 / math.pi)
SMALL = 1024  # elements below which the cost of a call decides
SHORT_ROW = 64  # elements up to which a reduction of each row costs more than a transposed copy


def sigmoid(x: Array, out: Any, scratch: Any) -> Array:
    out = np.negative(x, out)
    np.exp(out, out)
    out += 1
    return np.reciprocal(out, out)


def leaky_relu(x: Array, out: Any, scratch: Any) -> Array:
    t = np.multiply(x, 0.01, scratch)
    return np.maximum(x, t, out=t if out is None else out)


def hardsigmoid(x: Array, out: Any, scratch: Any) -> Array:
    out = np.add(x, 3, out)
    out.clip(0, 6, out)  # the method: np.clip takes a microsecond more
    out *= 1 / 6
    return out


def hardswish(x: Array, out: Any, scratch: Any) -> Array:
    t = hardsigmoid(x, scratch, scratch)
    return np.multiply(x, t, t if out is None else out)


def elu(x: Array, out: Any, scratch: Any) -> Array:
    t = np.minimum(x, 0, out=scratch)
    np.expm1(t, t)
    return np.maximum(x, t, out=t if out is None else out)  # expm1(x) >= x, and 0 where x is positive


def selu(x: Array, out: Any, scratch: Any) -> Array:
    negative = np.minimum(x, 0)
    np.expm1(negative, negative)
    negative *= SELU_ALPHA
    out = np.maximum(x, 0, out=out)
    out += negative
    out *= SELU_SCALE
    return out


def gelu_tanh(x: Array, out: Any, scratch: Any) -> Array:
    t = np.multiply(x, x, scratch)
    t *= GELU_C * 0.044715
    t += GELU_C
    t *= x
    np.tanh(t, t)
    t += 1
    t *= 0.5
    return np.multiply(x, t, t if out is None else out)


def silu(x: Array, out: Any, scratch: Any) -> Array:
    t = np.negative(x, scratch)
    np.exp(t, t)
    t += 1
    return np.divide(x, t, t if out is None else out)


def mish(x: Array, out: Any, scratch: Any) -> Array:
    t = np.exp(x, scratch)
    np.log1p(t, t)
    np.tanh(t, t)
    return np.multiply(x, t, t if out is None else out)


def softsign(x: Array, out: Any, scratch: Any) -> Array:
    t = np.abs(x, scratch)
    t += 1
    return np.divide(x, t, t if out is None else out)


def log_sigmoid(x: Array, out: Any, scratch: Any) -> Array:
    out = np.negative(x, out)
    np.exp(out, out)
    np.log1p(out, out)
    return np.negative(out, out)


def softplus(x: Array, out: Any, scratch: Any) -> Array:
    out = np.exp(x, out)
    return np.log1p(out, out)


FORWARD: dict[str, Forward] = {
    "sigmoid": sigmoid,
    "tanh": lambda x, out, _: np.tanh(x, out),
    "relu": lambda x, out, _: np.maximum(x, 0, out=out),
    "leaky_relu": leaky_relu,
    "relu6": lambda x, out, _: x.clip(0, 6, out),
    "hardtanh": lambda x, out, _: x.clip(-1, 1, out),
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


def sigmoid_backward(dy: Array, y: Array, out: Any, scratch: Any) -> Array:
    t = np.subtract(1, y, scratch)
    t *= y
    return np.multiply(dy, t, t if out is None else out)


def tanh_backward(dy: Array, y: Array, out: Any, scratch: Any) -> Array:
    t = np.multiply(y, y, scratch)
    np.subtract(1, t, t)
    return np.multiply(dy, t, t if out is None else out)


def relu_backward(dy: Array, y: Array, out: Any, scratch: Any) -> Array:
    # a comparison may write 0 and 1 to floats: no array of bool, but a conversion to set up, which takes its time
    mask = y > 0 if y.size < SMALL else np.greater(y, 0, scratch)
    return np.multiply(dy, mask, out)


def relu6_backward(dy: Array, x: Array, out: Any, scratch: Any) -> Array:
    return np.multiply(dy, (x > 0) & (x < 6), out)


def within(limit: float, scale: float = 1.0) -> Backward:
    def backward(dy: Array, x: Array, out: Any, scratch: Any) -> Array:
        t = np.abs(x, scratch)
        mask = t < limit if x.size < SMALL else np.less(t, limit, t)
        out = np.multiply(dy, mask, t if out is None else out)
        if scale != 1:
            out *= scale
        return out

    return backward


def leaky_relu_backward(dy: Array, x: Array, out: Any, scratch: Any) -> Array:
    t = np.maximum(x > 0, x.dtype.type(0.01), out=scratch)  # np.where branches, and takes 7 times longer
    return np.multiply(dy, t, t if out is None else out)


def hardswish_backward(dy: Array, x: Array, out: Any, scratch: Any) -> Array:
    if x.size < SMALL:
        t = x * (1 / 3)
        t += 0.5
        t[x >= 3] = 1
        t[x <= -3] = 0
        return np.multiply(dy, t, t if out is None else out)
    t = x.clip(-3, 3, scratch)  # in long arrays an index by bool takes longest
    t *= 2 / 3
    t += 1
    t -= x >= 3
    t += x <= -3
    t *= 0.5
    return np.multiply(dy, t, t if out is None else out)


def elu_backward(dy: Array, x: Array, out: Any, scratch: Any) -> Array:
    t = np.minimum(x, 0, out=scratch)
    np.exp(t, t)
    return np.multiply(dy, t, t if out is None else out)


def selu_backward(dy: Array, x: Array, out: Any, scratch: Any) -> Array:
    t = np.minimum(x, 0, out=scratch)
    np.exp(t, t)
    t *= SELU_ALPHA * SELU_SCALE
    t -= np.multiply(x > 0, x.dtype.type((SELU_ALPHA - 1) * SELU_SCALE))
    return np.multiply(dy, t, t if out is None else out)


def gelu_tanh_backward(dy: Array, x: Array, out: Any, scratch: Any) -> Array:
    u = x * x
    t = np.multiply(u, GELU_C * 0.044715, scratch)
    t += GELU_C
    t *= x
    np.tanh(t, t)
    u *= GELU_C * 1.5 * 0.044715
    u += GELU_C * 0.5
    u *= x
    np.subtract(1, t, t)  # (1 + t) / 2 + u * (1 - t * t) = (1 + t) * (1 / 2 + u * (1 - t))
    u *= t
    u += 0.5
    np.subtract(2, t, t)
    u *= t
    return np.multiply(dy, u, u if out is None else out)


def silu_backward(dy: Array, x: Array, out: Any, scratch: Any) -> Array:
    s = sigmoid(x, scratch, scratch)
    t = 1 - s
    t *= x
    t += 1
    t *= s
    return np.multiply(dy, t, t if out is None else out)


def mish_backward(dy: Array, x: Array, out: Any, scratch: Any) -> Array:
    e = np.exp(x)
    t = np.log1p(e, scratch)
    np.tanh(t, t)
    v = e + 1
    e /= v
    e *= x
    np.multiply(e, t, v)  # t + e * (1 - t * t) = e + t * (1 - e * t)
    np.subtract(1, v, v)
    v *= t
    v += e
    return np.multiply(dy, v, v if out is None else out)


def softsign_backward(dy: Array, x: Array, out: Any, scratch: Any) -> Array:
    t = np.abs(x, scratch)
    t += 1
    t *= t
    return np.divide(dy, t, t if out is None else out)


def log_sigmoid_backward(dy: Array, x: Array, out: Any, scratch: Any) -> Array:
    t = np.exp(x, scratch)
    t += 1
    return np.divide(dy, t, t if out is None else out)


def softplus_backward(dy: Array, x: Array, out: Any, scratch: Any) -> Array:
    t = sigmoid(x, scratch, scratch)
    return np.multiply(dy, t, t if out is None else out)


BACKWARD: dict[str, Backward] = {
    "sigmoid": sigmoid_backward,
    "tanh": tanh_backward,
    "relu": relu_backward,
    "leaky_relu": leaky_relu_backward,
    "relu6": relu6_backward,
    "hardtanh": within(1),
    "hardsigmoid": within(3, 1 / 6),
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


def row_max(x: Array) -> Array:
    """Largest of every row, as a column. Of short rows the columns are compared: there are fewer calls of the loop."""
    if x.shape[-1] > SHORT_ROW or x.size < SMALL:
        return np.maximum.reduce(x, axis=-1, keepdims=True)
    return np.maximum.reduce(x.T.copy(), axis=0)[:, None]


def row_sum(*arrays: Array) -> Array:
    """Sum of every row of an array, or of the products of two, as a column."""
    if arrays[0].size < SMALL:
        return np.add.reduce(arrays[0] if len(arrays) == 1 else np.multiply(*arrays), axis=-1, keepdims=True)
    return np.einsum("ab->a" if len(arrays) == 1 else "ab,ab->a", *arrays)[:, None]


def softmax(x: Array, out: Any) -> Array:
    out = np.subtract(x, row_max(x), out=out)
    np.exp(out, out=out)
    if out.size < SMALL:
        out /= row_sum(out)
    else:
        out *= 1 / row_sum(out)
    return out


def softmax_backward(dy: Array, y: Array, out: Any) -> Array:
    out = np.subtract(dy, row_sum(dy, y), out=out)
    out *= y
    return out


def log_softmax(x: Array, out: Any) -> Array:
    out = np.subtract(x, row_max(x), out=out)
    out -= np.log(row_sum(np.exp(out)))
    return out


def log_softmax_backward(dy: Array, y: Array, out: Any) -> Array:
    t = np.exp(y, out=out)
    t *= row_sum(dy)
    return np.subtract(dy, t, out=t)


ROWS = {
    "softmax": (softmax, softmax_backward),
    "log_softmax": (log_softmax, log_softmax_backward),
}


def cross_entropy(logits: Array, labels: Array, out: Any) -> tuple[float, Array]:
    rows = np.arange(len(labels))
    p = np.subtract(logits, row_max(logits), out=out)
    picked = p[rows, labels]
    np.exp(p, out=p)
    total = row_sum(p)
    loss = float((np.log(total[:, 0]) - picked).mean())
    p *= 1 / (total * len(labels))
    p[rows, labels] -= 1 / len(labels)
    return loss, p


def prelu(x: Array, slope: Array, out: Any) -> Array:
    t = np.multiply(x, slope, out=out)
    return np.maximum(x, t, out=t)  # right for slopes up to 1, which is what the cases have


def prelu_backward(dy: Array, x: Array, slope: Array, sums: Sums, out: Any) -> tuple[Array, Array]:
    t = np.minimum(x, 0, out=out)
    dslope = sums(dy, t).ravel()
    np.maximum(x > 0, slope, out=t)  # for slopes from 0 to 1
    return np.multiply(dy, t, out=t), dslope


def maxout(x: Array, out: Any) -> tuple[Array, Array]:
    first, second = x[:, ::2], x[:, 1::2]  # reductions of two are many times slower
    return np.maximum(first, second, out=out), np.greater(second, first).astype(np.intp)


def maxout_backward(dy: Array, which: Array, out: Array) -> Array:
    first, second = out[:, ::2], out[:, 1::2]
    np.multiply(dy, which.astype(bool), out=second)
    np.subtract(dy, second, out=first)
    return out


class Sums:
    """Sums of an array, or of the products of two, over all but the axes in ``kept``; the others become 1.

    By einsum: there is no array of the products, and its loops are faster than those of np.sum and np.mean.
    float16 is summed in float32, as np.mean does it.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, *kept: int) -> None:
        every = "abcdefgh"[: len(shape)]
        left = "".join(every[i] for i in kept)
        self._one, self._two = f"{every}->{left}", f"{every},{every}->{left}"
        self._shape = [size if i in kept else 1 for i, size in enumerate(shape)]
        self._dtype = np.float32 if np.dtype(dtype) == np.float16 else None
        self.count = math.prod(shape) // math.prod(self._shape)

    def __call__(self, *arrays: Array) -> Array:
        subscripts = self._one if len(arrays) == 1 else self._two
        return np.einsum(subscripts, *arrays, dtype=self._dtype).reshape(self._shape)


def stats(x: Array, sums: Sums) -> tuple[Array, Array]:
    mean = sums(x) / sums.count
    centered = x - mean
    return mean.ravel(), sums(centered, centered).ravel() / sums.count


def normalize(x: Array, gamma: Array, beta: Array, sums: Sums, eps: float, out: Any) -> Array:
    out = np.subtract(x, sums(x) / sums.count, out=out)
    invstd = 1 / np.sqrt(sums(out, out) / sums.count + eps)
    if gamma.shape[-1] == 1 or invstd.shape == gamma.shape:  # one pass: the product is small
        out *= invstd * gamma
    else:
        out *= invstd
        out *= gamma
    out += beta
    return out


def rms_normalize(x: Array, gamma: Array, sums: Sums, eps: float, out: Any) -> Array:
    out = np.multiply(x, 1 / np.sqrt(sums(x, x) / sums.count + eps), out=out)
    out *= gamma
    return out


def channel_backward(
    dy: Array, x: Array, mean: Array, invstd: Array, gamma: Array, sums: Sums, out: Any
) -> tuple[Array, Array, Array]:
    """Backward of batch_norm and instance_norm: gamma is the same for all that one mean is taken of."""
    t = np.subtract(x, mean, out=out)
    dgamma, dbeta = sums(dy, t) * invstd, sums(dy)
    t *= dgamma * invstd / -sums.count
    t += dy
    t -= dbeta / sums.count
    t *= gamma * invstd
    if mean.shape != gamma.shape:  # every sample has its own mean
        dgamma, dbeta = dgamma.sum(axis=0), dbeta.sum(axis=0)
    return t, dgamma.ravel(), dbeta.ravel()


def layer_backward(
    dy: Array, x: Array, mean: Array, invstd: Array, gamma: Array, sums: Sums, columns: Sums, out: Any
) -> tuple[Array, Array, Array]:
    xhat = x - mean
    xhat *= invstd
    dgamma, dbeta = columns(dy, xhat).ravel(), columns(dy).ravel()
    t = np.multiply(dy, gamma, out=out)
    xhat *= sums(t, xhat) / sums.count
    xhat += sums(t) / sums.count
    t -= xhat
    t *= invstd
    return t, dgamma, dbeta


def rms_backward(
    dy: Array, x: Array, invrms: Array, gamma: Array, sums: Sums, columns: Sums, out: Any
) -> tuple[Array, Array]:
    xhat = x * invrms
    dgamma = columns(dy, xhat).ravel()
    t = np.multiply(dy, gamma, out=out)
    xhat *= sums(t, xhat) / sums.count
    t -= xhat
    t *= invrms
    return t, dgamma


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
            # of one element, a new array costs less than handing one over
            scratch = None if case.output == "inplace" or case.elements == 1 else out
            return Call(table[name], (*arrays, out, scratch)) if name in table else None
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
                else Call(prelu_backward, (data["dy"], data["x"], slope, Sums(case.shape, case.dtype, 1), out))
            )
        if case.op.kind == "stats":
            return Call(stats, (data["x"], Sums(case.shape, case.dtype, 1)))
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
        rows, axis = tuple(range(rank - 1)), norm_axis(case)
        if kind == "rms":
            sums = Sums(x.shape, x.dtype, *rows)
            if forward:
                return Call(rms_normalize, (x, gamma, sums, 1e-5, out))
            invrms = data["stats"][0][..., None].astype(x.dtype)
            return Call(rms_backward, (data["dy"], x, invrms, gamma, sums, Sums(x.shape, x.dtype, axis), out))
        shape, kept = x.shape, {"batch": (axis,), "layer": rows, "instance": (0, 1), "group": (0, 1)}[kind]
        if kind == "group":
            groups = dict(case.op.options)["groups"]
            shape = (len(x), groups, x.shape[1] // groups, math.prod(x.shape[2:]))
            gamma, beta = (data[v].reshape(1, groups, -1, 1) for v in ("gamma", "beta"))
        sums = Sums(shape, x.dtype, *kept)
        if forward:
            view = None if out is None else out.reshape(shape)

            def run(x: Array, gamma: Array, beta: Array, out: Any) -> Array:
                y = normalize(x, gamma, beta, sums, 1e-5, out)
                return np.maximum(y, 0, out=y) if relu else y

            return Call(run, (x.reshape(shape), gamma, beta, view), collect=lambda y: (y.reshape(case.shape),))
        if kind == "group" or relu:
            return None  # no idiom that people would recognise
        mean, invstd = (np.asarray(s, x.dtype) for s in data["stats"])
        if kind == "batch":
            mean, invstd = mean.reshape(along), invstd.reshape(along)
        else:
            mean, invstd = (s.reshape(s.shape + (1,) * (rank - s.ndim)) for s in (mean, invstd))
        if kind == "layer":
            return Call(layer_backward, (data["dy"], x, mean, invstd, gamma, sums, Sums(x.shape, x.dtype, axis), out))
        return Call(channel_backward, (data["dy"], x, mean, invstd, gamma, sums, out))


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
