"""Normalizations and their gradients: batch, layer, RMS, group and instance norm, and the layer `BatchNorm`.

The compiled functions take C-contiguous native float32 and float64 arrays as they are. Here everything else is brought
to that form: a transposed array by a view, any other one by copies of a few megabytes, or of one sample or row, or of
as many channels as a cache line holds, where that is more. `fastnn.reference.normalization` holds the same functions in
plain NumPy.

Common to all: x is any array-like of real numbers. float32 and float64 stay what they are, float16 is computed in
float32 and returned as float16, integers and bools become float64. Statistics are float64 whatever x is. y has x's
dtype, dx the dtype NumPy makes of dy's and x's; dgamma and dbeta have gamma's dtype and shape (x's dtype where gamma is
None) and are computed also when gamma is None. `out` receives y or dx; it may be x or dy, or overlap them, and is
returned. Sums run in an order that depends alone on the shape, on how the axes lie in memory and on whether an array is
copied in pieces, so results have the same bits with any number of threads. Errors: ValueError for too few dimensions, a
block without values, eps negative or not finite, gamma or another vector of the wrong length, dy of another shape than
x; numpy.exceptions.AxisError for an axis that x does not have; TypeError for a dtype that is not accepted. Then
`out` is as it was; a MemoryError may come when part of the result is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastnn import _checks, _core
from fastnn._batchnorm import BatchNorm as _BatchNorm

__all__ = [
    "BatchNorm",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
    "batch_stats",
    "group_norm",
    "group_norm_backward",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "rms_norm",
    "rms_norm_backward",
]

Array = np.ndarray[Any, np.dtype[Any]]

_HALF = np.dtype(np.float16)
_SMALL = 1 << 18  # elements of an array that may be copied as a whole
_PIECE_BYTES = 1 << 20  # of a copied piece of an array, which stays in the cache
_LONG_PIECE_BYTES = 4 << 20  # where it would have few rows, or cut lines
_LONG_RUN_BYTES = 256
_ROWS = 8  # rows whose gradients of gamma and beta, as long as they are, the kernels add up before they store them
_LINE_BYTES = 64  # of a cache line


def batch_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Normalize each channel by the statistics of the batch: (y, mean, invstd).

    y = gamma * (x - mean) * invstd + beta, invstd = 1 / sqrt(var + eps), with the mean and the biased variance over
    every axis but `axis`. x: (N, D), (N, C, L), (N, C, H, W) or any other shape of 2 dimensions or more; axis=-1 for
    channels-last. gamma, beta: (C,) or None, for 1 and 0. mean, invstd: float64 (C,).

    `activation`, the name of an elementwise activation without array parameters, is applied to y with its defaults in
    the same pass; another name is a ValueError. One value a channel, or a constant channel, gives exactly beta.

    Error: float32 results are within 4e-7 * max(1, |x_hat|) of the exact normalized value x_hat before gamma and beta,
    whatever the scale of x, also where mean / std is 1e4; float64 ones within 1e-15 * (10 + |mean| / std) of it.
    Exceptions: see fastnn.normalization. Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.
    """
    result = _core.batch_norm(x, gamma, beta, eps, axis, activation, out)
    if result is None:
        result = _in_single(_core.batch_norm, out, (x,), gamma, beta, eps, axis, activation)
    if result is not None:
        return result
    x, axis = _checks.array_and_axis(x, axis)
    dtype = _checks.result_dtype(x)
    gamma = _vector(gamma, x, axis, "gamma", out)
    beta = _vector(beta, x, axis, "beta", out)
    eps = _checks.real_param(eps, "eps", "nonnegative")
    activation = _activation_name(activation)
    _checks.check_out(out, x.shape, dtype)
    _check_channels(x, axis)
    mean, invstd = np.empty(x.shape[axis]), np.empty(x.shape[axis])
    y, target = _result(out, dtype, x)
    for piece in _by_channel(axis, y, x):
        part = piece.part
        done, mean[part], invstd[part] = _core.batch_norm(
            *piece.inputs, gamma[part], beta[part], eps, piece.axis, activation, piece.into
        )
        piece.done(done)
    return _delivered(y, target), mean, invstd


def batch_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    invstd: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    axis: int = 1,
    activation: str | None = None,
    beta: ArrayLike | None = None,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients of `batch_norm`: (dx, dgamma, dbeta).

    With x_hat = (x - mean) * invstd, n values a channel and all sums over the channel:

    dbeta = sum(dy), dgamma = sum(dy * x_hat), dx = gamma * invstd * (dy - dbeta / n - x_hat * dgamma / n)

    (derived in docs/batch_norm.md). dy: x's shape. mean, invstd: what `batch_norm` returned. With `activation`, dy is
    first taken through its derivative, for which gamma * x_hat + beta is computed anew: it needs the forward call's
    gamma and beta, and nothing more was stored.

    Error: dx, dgamma and dbeta are within 1e-5 (float64: 1e-15 * (10 + |mean| / std)) of the exact gradients, relative
    to their largest element (where the sums of all channels nearly cancel: to the root of the sum of a channel's
    squared terms). Where the terms of dx cancel, because dy is nearly linear in x, they are computed in float64, which
    itself is within that share of gamma * invstd * dy there. The derivative of a fused sigmoid or tanh is one of its
    output, rounded to x's dtype: where that is all but 1 it is less exact, at 1 it is 0.
    """
    result = _core.batch_norm_backward(dy, x, mean, invstd, gamma, axis, activation, beta, out)
    if result is None:
        result = _in_single(
            _core.batch_norm_backward, out, (dy, x), mean, invstd, gamma, axis, activation, beta, gradients=(gamma,)
        )
    if result is not None:
        return result
    dy, x, axis = _checks.gradient_and_axis(dy, x, axis)
    dtype = _checks.result_dtype(dy, x)
    channels = x.shape[axis]
    theirs = _gradient_dtype(gamma, x)
    mean = _vector(mean, x, axis, "mean", out)
    invstd = _vector(invstd, x, axis, "invstd", out)
    gamma = _vector(gamma, x, axis, "gamma", out)
    beta = _vector(beta, x, axis, "beta", out)
    activation = _activation_name(activation)
    _checks.check_out(out, x.shape, dtype)
    _check_channels(x, axis)
    dgamma, dbeta = np.empty(channels), np.empty(channels)
    dx, target = _result(out, dtype, dy, x)
    for piece in _by_channel(axis, dx, dy, x):
        part = piece.part
        done, dgamma[part], dbeta[part] = _core.batch_norm_backward(
            *piece.inputs, mean[part], invstd[part], gamma[part], piece.axis, activation, beta[part], piece.into
        )
        piece.done(done)
    return _delivered(dx, target), _rounded(dgamma, theirs), _rounded(dbeta, theirs)


def batch_norm_inference(
    x: ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | None = None,
    out: Array | None = None,
) -> Array:
    """y = gamma * (x - mean) / sqrt(var + eps) + beta, with mean and var given: the running statistics.

    mean, var, gamma, beta: (C,), C the length of x along `axis`, of any real dtype; gamma and beta may be None, and var
    + eps < 0 gives NaN. `activation` as in `batch_norm`. x may be empty.

    Error and exceptions: as of `batch_norm`. Source: Ioffe and Szegedy 2015, algorithm 2, https://arxiv.org/abs/1502.03167.
    """
    y = _core.batch_norm_inference(x, mean, var, gamma, beta, eps, axis, activation, out)
    if y is None:
        y = _in_single(_core.batch_norm_inference, out, (x,), mean, var, gamma, beta, eps, axis, activation)
    if y is not None:
        return y
    x, axis = _checks.array_and_axis(x, axis)
    dtype = _checks.result_dtype(x)
    mean = _vector(mean, x, axis, "mean", out)
    var = _vector(var, x, axis, "var", out)
    gamma = _vector(gamma, x, axis, "gamma", out)
    beta = _vector(beta, x, axis, "beta", out)
    eps = _checks.real_param(eps, "eps", "nonnegative")
    activation = _activation_name(activation)
    _checks.check_out(out, x.shape, dtype)
    y, target = _result(out, dtype, x)
    for piece in _by_channel(axis, y, x, any_part=True):
        part = piece.part
        done = _core.batch_norm_inference(
            *piece.inputs, mean[part], var[part], gamma[part], beta[part], eps, piece.axis, activation, piece.into
        )
        piece.done(done)
    return _delivered(y, target)


def batch_stats(x: ArrayLike, *, axis: int = 1) -> tuple[Array, Array]:
    """Mean and biased variance, sum((x - mean)**2) / n, over every axis but `axis`: float64, (C,) both.

    What running statistics want: invstd**-2 - eps would cancel. Raises as `batch_norm` does.

    Error: var within 1e-12 of its size, mean of the larger of abs(mean) and std, for up to a million values a channel
    and mean / std up to 1e6. Sums are of deviations from the first value, and where that lies far from all others once
    more from the mean: Chan, Golub and LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115.
    """
    result = _core.batch_stats(x, axis)
    if result is not None:
        return result
    x, axis = _checks.array_and_axis(x, axis)
    _check_channels(x, axis)
    mean, var = np.empty(x.shape[axis]), np.empty(x.shape[axis])
    for piece in _by_channel(axis, None, x):
        mean[piece.part], var[piece.part] = _core.batch_stats(*piece.inputs, piece.axis)
    return mean, var


def batch_norm_and_variance(
    x: ArrayLike,
    gamma: ArrayLike | None,
    beta: ArrayLike | None,
    *,
    eps: float,
    axis: int = 1,
    activation: str | None = None,
    out: Array | None = None,
) -> tuple[Array, Array, Array, Array]:
    """(y, mean, invstd, var): what `batch_norm` returns, to the bit, and the exact variance, in a pass over x less."""
    mean, var = batch_stats(x, axis=axis)
    y = batch_norm_inference(x, mean, var, gamma, beta, eps=eps, axis=axis, activation=activation, out=out)
    return y, mean, inverse_deviation(var, eps), var


def inverse_deviation(var: Any, eps: float) -> Any:
    """The kernels' invstd: 1 / sqrt(var + eps), and 0 where that is a division by 0."""
    deviation = np.sqrt(var + eps)
    return np.reciprocal(deviation, out=deviation, where=eps > 0 or deviation != 0)


class BatchNorm(_BatchNorm):
    __doc__ = _BatchNorm.__doc__
    _batch_norm_backward = staticmethod(batch_norm_backward)
    _batch_norm_inference = staticmethod(batch_norm_inference)

    def _normalize(self, x: Array) -> tuple[Array, Array, Array, Array]:
        return batch_norm_and_variance(x, self.gamma, self.beta, eps=self.eps, axis=self.axis)


def layer_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = -1,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Normalize each row, `axis` and all axes after it, by its own statistics: (y, mean, invstd).

    y = gamma * (x - mean) / sqrt(var + eps) + beta with the biased variance. gamma, beta: x.shape[axis:], or None.
    mean, invstd: float64 x.shape[:axis]. x has 1 dimension or more.

    Error: float32 results are within 4e-7 * max(1, |x_hat|) of the exact normalized value x_hat before gamma and beta,
    also where mean / std is 1e4; float64 ones within 1e-15 * (10 + |mean| / std) of it.
    Exceptions: see fastnn.normalization. Source: Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450.
    """
    result = _core.layer_norm(x, gamma, beta, eps, axis, out)
    if result is None:
        result = _in_single(_core.layer_norm, out, (x,), gamma, beta, eps, axis)
    if result is not None:
        return result
    x, axis = _checks.array_and_axis(x, axis, 1)
    dtype = _checks.result_dtype(x)
    gamma, beta = _columns(gamma, x, axis, "gamma", dtype, out), _columns(beta, x, axis, "beta", dtype, out)
    eps = _checks.real_param(eps, "eps", "nonnegative")
    _checks.check_out(out, x.shape, dtype)
    _check_rows(x, axis)
    mean, invstd = np.empty(x.shape[:axis]), np.empty(x.shape[:axis])
    y, target = _result(out, dtype, x)
    for piece in _by_row(axis, y, x):
        part = piece.part
        done, mean[part], invstd[part] = _core.layer_norm(*piece.inputs, gamma, beta, eps, axis, piece.into)
        piece.done(done)
    return _delivered(y, target), mean, invstd


def layer_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    invstd: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    axis: int = -1,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients of `layer_norm`: (dx, dgamma, dbeta).

    With x_hat = (x - mean) * invstd, g = dy * gamma and means over the normalized axes:

    dx = invstd * (g - mean(g) - x_hat * mean(g * x_hat)); dgamma and dbeta are the sums of dy * x_hat and of dy
    over the rows. mean, invstd: what `layer_norm` returned. Error: as of `batch_norm_backward`.
    """
    result = _core.layer_norm_backward(dy, x, mean, invstd, gamma, axis, out)
    if result is None:
        result = _in_single(_core.layer_norm_backward, out, (dy, x), mean, invstd, gamma, axis, gradients=(gamma,))
    if result is not None:
        return result
    dy, x, axis = _checks.gradient_and_axis(dy, x, axis, 1)
    dtype, theirs = _checks.result_dtype(dy, x), _gradient_dtype(gamma, x)
    mean = _checks.vector_before(mean, x, axis, "mean", np.float64, out)
    invstd = _checks.vector_before(invstd, x, axis, "invstd", np.float64, out)
    gamma = _columns(gamma, x, axis, "gamma", dtype, out)
    _checks.check_out(out, x.shape, dtype)
    _check_rows(x, axis)
    dgamma, dbeta = np.zeros(x.shape[axis:]), np.zeros(x.shape[axis:])
    dx, target = _result(out, dtype, dy, x)
    for piece in _by_row(axis, dx, dy, x):
        part = piece.part
        done, *gradients = _core.layer_norm_backward(*piece.inputs, mean[part], invstd[part], gamma, axis, piece.into)
        piece.done(done)
        dgamma += gradients[0]
        dbeta += gradients[1]
    return _delivered(dx, target), _rounded(dgamma, theirs), _rounded(dbeta, theirs)


def rms_norm(
    x: ArrayLike, gamma: ArrayLike | None = None, *, eps: float = 1e-5, axis: int = -1, out: Array | None = None
) -> tuple[Array, Array]:
    """Divide each row, `axis` and all axes after it, by its root mean square: (y, invrms).

    y = gamma * x * invrms, invrms = 1 / sqrt(mean(x**2) + eps), float64 x.shape[:axis]. gamma: shape x.shape[axis:], or
    None. x has 1 dimension or more. Error and exceptions: as of `layer_norm`. Source: Zhang and Sennrich 2019,
    https://arxiv.org/abs/1910.07467.
    """
    result = _core.rms_norm(x, gamma, eps, axis, out)
    if result is None:
        result = _in_single(_core.rms_norm, out, (x,), gamma, eps, axis)
    if result is not None:
        return result
    x, axis = _checks.array_and_axis(x, axis, 1)
    dtype = _checks.result_dtype(x)
    gamma = _columns(gamma, x, axis, "gamma", dtype, out)
    eps = _checks.real_param(eps, "eps", "nonnegative")
    _checks.check_out(out, x.shape, dtype)
    _check_rows(x, axis)
    invrms = np.empty(x.shape[:axis])
    y, target = _result(out, dtype, x)
    for piece in _by_row(axis, y, x):
        done, invrms[piece.part] = _core.rms_norm(*piece.inputs, gamma, eps, axis, piece.into)
        piece.done(done)
    return _delivered(y, target), invrms


def rms_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    invrms: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    axis: int = -1,
    out: Array | None = None,
) -> tuple[Array, Array]:
    """Gradients of `rms_norm`: (dx, dgamma).

    With x_hat = x * invrms and g = dy * gamma: dx = invrms * (g - x_hat * mean(g * x_hat)), dgamma the sum of
    dy * x_hat over the rows. invrms: what `rms_norm` returned. Error: as of `batch_norm_backward`.
    """
    result = _core.rms_norm_backward(dy, x, invrms, gamma, axis, out)
    if result is None:
        result = _in_single(_core.rms_norm_backward, out, (dy, x), invrms, gamma, axis, gradients=(gamma,))
    if result is not None:
        return result
    dy, x, axis = _checks.gradient_and_axis(dy, x, axis, 1)
    dtype, theirs = _checks.result_dtype(dy, x), _gradient_dtype(gamma, x)
    invrms = _checks.vector_before(invrms, x, axis, "invrms", np.float64, out)
    gamma = _columns(gamma, x, axis, "gamma", dtype, out)
    _checks.check_out(out, x.shape, dtype)
    _check_rows(x, axis)
    dgamma = np.zeros(x.shape[axis:])
    dx, target = _result(out, dtype, dy, x)
    for piece in _by_row(axis, dx, dy, x):
        done, gradient = _core.rms_norm_backward(*piece.inputs, invrms[piece.part], gamma, axis, piece.into)
        piece.done(done)
        dgamma += gradient
    return _delivered(dx, target), _rounded(dgamma, theirs)


def group_norm(
    x: ArrayLike,
    groups: int,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Normalize each sample's groups of C // groups neighbouring channels by their statistics: (y, mean, invstd).

    y = gamma * (x - mean) * invstd + beta, invstd = 1 / sqrt(var + eps), with the mean and the biased variance of a
    sample's group. x: (N, C), (N, C, L), (N, C, H, W), any shape of 2 dimensions or more: the first axis is the
    samples', `axis` the channels'. groups must divide C, else ValueError. mean, invstd: float64 (N, groups).
    gamma, beta: (C,) or None, for 1 and 0.

    Error and exceptions: as of `batch_norm`. Source: Wu and He 2018, https://arxiv.org/abs/1803.08494.
    """
    result = _core.group_norm(x, groups, gamma, beta, eps, axis, out)
    if result is None:
        result = _in_single(_core.group_norm, out, (x,), groups, gamma, beta, eps, axis)
    if result is not None:
        return result
    x, axis = _checks.array_and_axis(x, axis, samples=True)
    return _group_norm(x, _checks.check_groups(groups, x, axis), gamma, beta, eps, axis, out)


def group_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    invstd: ArrayLike,
    groups: int,
    gamma: ArrayLike | None = None,
    *,
    axis: int = 1,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients of `group_norm`: (dx, dgamma, dbeta).

    With x_hat = (x - mean) * invstd, g = dy * gamma and means over a group:

    dx = invstd * (g - mean(g) - x_hat * mean(g * x_hat)); dgamma and dbeta, (C,), are the sums of dy * x_hat and of dy
    over samples and positions. mean, invstd: what `group_norm` returned. Error: as of `batch_norm_backward`.
    """
    result = _core.group_norm_backward(dy, x, mean, invstd, groups, gamma, axis, out)
    if result is None:
        result = _in_single(
            _core.group_norm_backward, out, (dy, x), mean, invstd, groups, gamma, axis, gradients=(gamma,)
        )
    if result is not None:
        return result
    dy, x, axis = _checks.gradient_and_axis(dy, x, axis, samples=True)
    return _group_norm_backward(dy, x, mean, invstd, _checks.check_groups(groups, x, axis), gamma, axis, out)


def instance_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Normalize each channel of each sample by its own statistics: (y, mean, invstd), the statistics float64 (N, C).

    It is `group_norm` with a group for every channel: formula, arguments and error are those there. Ulyanov, Vedaldi
    and Lempitsky 2016, https://arxiv.org/abs/1607.08022.
    """
    result = _core.instance_norm(x, gamma, beta, eps, axis, out)
    if result is None:
        result = _in_single(_core.instance_norm, out, (x,), gamma, beta, eps, axis)
    if result is not None:
        return result
    x, axis = _checks.array_and_axis(x, axis, samples=True)
    return _group_norm(x, x.shape[axis], gamma, beta, eps, axis, out)


def instance_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    mean: ArrayLike,
    invstd: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    axis: int = 1,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Gradients of `instance_norm`: (dx, dgamma, dbeta), as of `group_norm_backward` with a group for every channel."""
    result = _core.instance_norm_backward(dy, x, mean, invstd, gamma, axis, out)
    if result is None:
        result = _in_single(_core.instance_norm_backward, out, (dy, x), mean, invstd, gamma, axis, gradients=(gamma,))
    if result is not None:
        return result
    dy, x, axis = _checks.gradient_and_axis(dy, x, axis, samples=True)
    return _group_norm_backward(dy, x, mean, invstd, x.shape[axis], gamma, axis, out)


def _group_norm(x: Array, groups: int, gamma: Any, beta: Any, eps: Any, axis: int, out: Any) -> Any:
    dtype = _checks.result_dtype(x)
    gamma = _vector(gamma, x, axis, "gamma", out)
    beta = _vector(beta, x, axis, "beta", out)
    eps = _checks.real_param(eps, "eps", "nonnegative")
    _checks.check_out(out, x.shape, dtype)
    _check_groups(x, groups, axis)
    mean, invstd = np.empty((x.shape[0], groups)), np.empty((x.shape[0], groups))
    y, target = _result(out, dtype, x)
    for piece in _by_sample(axis, y, x):
        part = piece.part
        done, mean[part], invstd[part] = _core.group_norm(*piece.inputs, groups, gamma, beta, eps, 1, piece.into)
        piece.done(done)
    return _delivered(y, target), mean, invstd


def _group_norm_backward(
    dy: Array, x: Array, mean: Any, invstd: Any, groups: int, gamma: Any, axis: int, out: Any
) -> Any:
    dtype, theirs = _checks.result_dtype(dy, x), _gradient_dtype(gamma, x)
    mean = _checks.group_statistics(mean, x, groups, "mean", np.float64, out)
    invstd = _checks.group_statistics(invstd, x, groups, "invstd", np.float64, out)
    gamma = _vector(gamma, x, axis, "gamma", out)
    _checks.check_out(out, x.shape, dtype)
    _check_groups(x, groups, axis)
    dgamma, dbeta = np.zeros(x.shape[axis]), np.zeros(x.shape[axis])
    dx, target = _result(out, dtype, dy, x)
    for piece in _by_sample(axis, dx, dy, x):
        part = piece.part
        done, *gradients = _core.group_norm_backward(
            *piece.inputs, mean[part], invstd[part], groups, gamma, 1, piece.into
        )
        piece.done(done)
        dgamma += gradients[0]
        dbeta += gradients[1]
    return _delivered(dx, target), _rounded(dgamma, theirs), _rounded(dbeta, theirs)


# --- arguments that need preparation -----------------------------------------------------------------------------


def _in_single(core: Any, out: Any, arrays: tuple[Any, ...], *rest: Any, gradients: tuple[Any, ...] = ()) -> Any:
    """What core(*arrays, *rest, out) gives for small float16 arrays, computed on plain float32 copies.

    None where there are others, or something is wrong. gradients: the gamma whose dtype the gradients have, if any.
    """
    x = arrays[-1]
    results = arrays if out is None else (*arrays, out)
    if not all(type(a) is np.ndarray and a.dtype == _HALF for a in results) or x.size > _SMALL:
        return None
    if any(a.shape != x.shape for a in results) or not (out is None or out.flags.writeable):
        return None
    singles = [np.empty(x.shape, np.float32) for _ in arrays]
    for half, single in zip(arrays, singles, strict=True):
        _core.copy_array(half, single)
    vectors = (v.astype(np.float32) if type(v) is np.ndarray and v.dtype == _HALF else v for v in rest)
    result = core(*singles, *vectors, singles[-1])
    if result is None:
        return None
    y = np.empty_like(x) if out is None else out
    _core.copy_array(singles[-1], y)
    if not isinstance(result, tuple):
        return y
    if gradients:
        dtype = _gradient_dtype(gradients[0], x)
        return y, *(_rounded(gradient, dtype) for gradient in result[1:])
    return y, *result[1:]


def _vector(v: Any, x: Array, axis: int, name: str, out: Any) -> Array:
    """A vector of coefficients as plain float64, apart from out; gamma's 1 and beta's 0 where it is None."""
    if v is None and name in ("gamma", "beta"):
        return np.full(x.shape[axis], 1.0 if name == "gamma" else 0.0)
    return _checks.vector_along(v, x, axis, name, np.float64, out)


def _columns(v: Any, x: Array, axis: int, name: str, dtype: np.dtype[Any], out: Any) -> Array | None:
    """gamma or beta of a row, in the dtype that a result of `dtype` is computed in, apart from out."""
    if v is None:
        return None
    return _checks.vector_from(v, x, axis, name, _checks.compute_dtype(dtype), out)


def _gradient_dtype(gamma: Any, x: Array) -> np.dtype[Any]:
    return _checks.result_dtype(x if gamma is None else _checks.as_input(gamma, "gamma"))


def _rounded(gradient: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(all="ignore"):
        return gradient.astype(dtype)


def _check_channels(x: Array, axis: int) -> None:
    _checks.check_not_empty(prod(x.shape[:axis] + x.shape[axis + 1 :]), x.shape)


def _check_rows(x: Array, axis: int) -> None:
    _checks.check_not_empty(prod(x.shape[axis:]), x.shape, "row")


def _check_groups(x: Array, groups: int, axis: int) -> None:
    positions = prod(x.shape[1:axis] + x.shape[axis + 1 :])
    _checks.check_not_empty(positions * (x.shape[axis] // groups if groups else 1), x.shape, "group")


def _activation_name(activation: Any) -> str | None:
    row = _checks.fused_activation(activation)
    return None if row is None else row.name


def _result(out: Any, dtype: np.dtype[Any], *inputs: Array) -> tuple[Array, Array]:
    """(the array to compute into, the one to return): another one where out partly overlaps an input."""
    if out is None:
        y = np.empty_like(inputs[-1], dtype, subok=False)
        return y, y
    if any(_checks.partly_overlaps(out, a) for a in inputs):
        return np.empty_like(out, subok=False), out
    return out.view(np.ndarray), out


def _delivered(y: Array, target: Array) -> Array:
    if not _checks.overlaps(y, target):
        target[...] = y
    return target


def _by_channel(axis: int, y: Array | None, *arrays: Array, any_part: bool = False) -> Iterator[_Piece]:
    """Pieces of whole channels: the arrays themselves where they lie well, else copies of a few, or of any part."""
    x = arrays[0]
    if not x.size:
        return
    order = _common_order(*arrays) if y is None else _common_order(*arrays, y)
    if order is not None:
        into = None if y is None else y.transpose(order)
        yield _Piece([a.transpose(order) for a in arrays], into, order.index(axis), slice(None))
        return
    cut = axis
    if any_part and 64 * x.shape[axis] < _PIECE_BYTES:  # every piece needs the coefficients of its channels
        cut = max(range(x.ndim), key=lambda i: (x.shape[i] > 1, abs(x.strides[i])))
    for piece in _copies(cut, axis, y, arrays):
        if cut != axis:
            piece.part = slice(None)
        yield piece


@dataclass
class _Piece:
    """Part of the work: plain inputs, a plain array for the result, and where the result goes if that is a copy."""

    inputs: list[Array]
    into: Array | None
    axis: int
    part: Any
    place: Array | None = None

    def done(self, result: Array) -> None:
        if self.place is not None:
            _copy(result, self.place)


def _by_row(axis: int, y: Array, *arrays: Array) -> Iterator[_Piece]:
    """Pieces of whole rows of the axes from `axis` on: all at once, or copies of a few of them."""
    shape = arrays[0].shape
    if 0 in shape:
        return
    if _common_order(*arrays, y) == tuple(range(len(shape))):
        yield _Piece(list(arrays), y, axis, ...)
    else:
        yield from _copies(None if axis == 0 else 0, axis, y, arrays)


def _by_sample(axis: int, y: Array, *arrays: Array) -> Iterator[_Piece]:
    """Pieces of whole samples, their channel axis moved to the second place."""
    moved = [np.moveaxis(a, axis, 1) for a in arrays]
    yield from _by_row(1, np.moveaxis(y, axis, 1), *moved)


def _copies(cut: int | None, axis: int, y: Array | None, arrays: tuple[Array, ...]) -> Iterator[_Piece]:
    """Copies of some of what lies along the axis `cut`, of a cache line at least, or of everything (None)."""
    x = arrays[0]
    dtype = _checks.compute_dtype(_checks.result_dtype(*arrays))
    length = 1 if cut is None else x.shape[cut]
    each = x.size // length * dtype.itemsize
    step = max(1, _PIECE_BYTES // each, min(_ROWS, _LONG_PIECE_BYTES // each))
    if cut is not None and abs(x.strides[cut]) == x.itemsize:  # neighbours in memory
        line = _LINE_BYTES // x.itemsize
        step = (_LONG_PIECE_BYTES // 2 // each // line + 1) * line
    rooms = [np.empty(min(step, length) * (x.size // length), dtype) for _ in arrays]
    for start in range(0, length, step):
        part = ... if cut is None else slice(start, start + step)
        at = ... if cut is None else (*(slice(None),) * cut, part)
        views = [a[at] for a in arrays]
        inputs = [room[: view.size].reshape(view.shape) for room, view in zip(rooms, views, strict=True)]
        for view, plain in zip(views, inputs, strict=True):
            _copy(view, plain)
        yield _Piece(inputs, None if y is None else inputs[-1], axis, part, None if y is None else y[at])


def _copy(source: Array, target: Array) -> None:
    """target[...] = source, of one shape, one of them in the dtype that the other is computed in."""
    if source.itemsize == target.itemsize:
        runs = source.strides[-1:] == target.strides[-1:] and source.shape[-1] * source.itemsize >= _LONG_RUN_BYTES
        ours = not runs  # NumPy copies long runs as fast, where it neither converts nor transposes
    else:
        ours = max(source.itemsize, target.itemsize) == 4
    if ours:
        _core.copy_array(source, target)
    else:
        with np.errstate(invalid="ignore"):  # a signalling NaN that becomes another dtype
            target[...] = source


def _common_order(*arrays: Array) -> tuple[int, ...] | None:
    """The order of axes in which all are C-contiguous native float32 or float64 arrays of one dtype, if there is."""
    first = arrays[0]
    order = tuple(sorted(range(first.ndim), key=lambda i: -abs(first.strides[i])))
    for a in arrays:
        if a.dtype != first.dtype or not a.dtype.isnative or a.dtype.itemsize < 4:
            return None
        if not a.flags.aligned or not a.transpose(order).flags.c_contiguous:
            return None
    return order
