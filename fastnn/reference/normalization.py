"""Normalizations in plain NumPy: the formulas behind `fastnn.normalization`, and the oracle of its tests.

Every function here normalizes blocks of x: x_hat = (x - mean) / sqrt(var + eps), then y = gamma * x_hat + beta.
They differ in what a block is:

=============== ============================ ============================
function        statistics over              their shape
=============== ============================ ============================
batch_norm      every axis but the channels' (C,)
layer_norm      `axis` and all axes after it x.shape[:axis]
rms_norm        the same, about 0            x.shape[:axis]
group_norm      a group of a sample          (N, groups)
instance_norm   a channel of a sample        (N, C)
=============== ============================ ============================

Statistics are float64 whatever x is: mean, and invstd = 1 / sqrt(var + eps) with the biased variance. Where var + eps
is 0 invstd is 0, so that a constant block gives exactly beta, and a gradient of 0, also without eps.

Rules for arrays, dtypes and `out` are those of `fastnn.reference.activations`: y has x's dtype, dx the dtype NumPy
makes of dy's and x's, dgamma and dbeta have gamma's dtype and shape (x's dtype where gamma is None) and are computed
also when gamma is None. ValueError: too few dimensions, a block without values, eps negative or not finite, gamma or
another vector of the wrong length, dy of another shape than x. AxisError: an axis that x does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastnn import _checks
from fastnn._batchnorm import BatchNorm as _BatchNorm
from fastnn._table import Activation
from fastnn.reference import activations

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
Axes = tuple[int, ...]


# --- batch normalization (Ioffe and Szegedy 2015) ----------------------------------------------------------------


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
    """(y, mean, invstd): x normalized by the statistics of the batch, over every axis but `axis`, the channels'.

    gamma and beta have shape (C,) or are None, for 1 and 0. mean and invstd are float64 (C,). `activation`, the name
    of an elementwise activation (another name is a ValueError), is applied to y with its defaults. One value a channel
    gives beta. `out` receives y.
    """
    x, axis = _checks.array_and_axis(x, axis)
    dtype = _checks.result_dtype(x)
    gamma = _optional(gamma, _checks.vector_along, x, axis, "gamma")
    beta = _optional(beta, _checks.vector_along, x, axis, "beta")
    eps = _checks.real_param(eps, "eps", "nonnegative")
    row = _checks.fused_activation(activation)
    _checks.check_out(out, x.shape, dtype)
    _check_block(x, _all_but(axis, x.ndim))
    with np.errstate(all="ignore"):
        centered, mean, invstd = _standardize(x, _all_but(axis, x.ndim), eps)
        y = _affine(centered * invstd, _spread(gamma, axis, x.ndim), _spread(beta, axis, x.ndim))
        y = _activate(row, y, dtype)
        return activations._deliver(y, dtype, out), mean.reshape(-1), invstd.reshape(-1)


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
    """(dx, dgamma, dbeta). With n values a channel, all sums over the channel:

    dbeta = sum(dy), dgamma = sum(dy * x_hat), dx = gamma * invstd * (dy - dbeta / n - x_hat * dgamma / n).

    mean and invstd are what `batch_norm` returned. With `activation`, dy is first taken through its derivative at
    gamma * x_hat + beta, so it needs the forward call's gamma and beta. `out` receives dx.
    """
    dy, x, axis = _checks.gradient_and_axis(dy, x, axis)
    dtype = _checks.result_dtype(dy, x)
    mean = _checks.vector_along(mean, x, axis, "mean", np.float64)
    invstd = _checks.vector_along(invstd, x, axis, "invstd", np.float64)
    gamma = _optional(gamma, _checks.vector_along, x, axis, "gamma")
    beta = _optional(beta, _checks.vector_along, x, axis, "beta")
    row = _checks.fused_activation(activation)
    _checks.check_out(out, x.shape, dtype)
    _check_block(x, _all_but(axis, x.ndim))
    with np.errstate(all="ignore"):
        dy = dy.astype(np.float64)
        gammas, betas = _spread(gamma, axis, x.ndim), _spread(beta, axis, x.ndim)
        invstds = _spread(invstd, axis, x.ndim)
        x_hat = _normalized(x, _spread(mean, axis, x.ndim), invstds)
        dy = _activate_backward(row, dy, _affine(x_hat, gammas, betas), _checks.result_dtype(x))
        others = _all_but(axis, x.ndim)
        dx = _dx(_affine(dy, gammas), x_hat, invstds, others)
        dgamma = np.sum(dy * x_hat, axis=others)
        dbeta = np.sum(dy, axis=others)
        return _gradients(dx, dgamma, dbeta, dtype, gamma, x, out)


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
    """y = gamma * (x - mean) / sqrt(var + eps) + beta, mean and var given, (C,) both: the running statistics."""
    x, axis = _checks.array_and_axis(x, axis)
    dtype = _checks.result_dtype(x)
    mean = _checks.vector_along(mean, x, axis, "mean", np.float64)
    var = _checks.vector_along(var, x, axis, "var", np.float64)
    gamma = _optional(gamma, _checks.vector_along, x, axis, "gamma")
    beta = _optional(beta, _checks.vector_along, x, axis, "beta")
    eps = _checks.real_param(eps, "eps", "nonnegative")
    row = _checks.fused_activation(activation)
    _checks.check_out(out, x.shape, dtype)
    with np.errstate(all="ignore"):
        x_hat = _normalized(x, _spread(mean, axis, x.ndim), _spread(_invstd(var + eps), axis, x.ndim))
        y = _affine(x_hat, _spread(gamma, axis, x.ndim), _spread(beta, axis, x.ndim))
        return activations._deliver(_activate(row, y, dtype), dtype, out)


def batch_stats(x: ArrayLike, *, axis: int = 1) -> tuple[Array, Array]:
    """(mean, var), float64 (C,): over every axis but `axis`; var is the biased variance, sum((x - mean)**2) / n."""
    x, axis = _checks.array_and_axis(x, axis)
    others = _all_but(axis, x.ndim)
    _check_block(x, others)
    with np.errstate(all="ignore"):
        centered, mean = _center(x, others)
        return mean.reshape(-1), np.mean(centered * centered, axis=others)


class BatchNorm(_BatchNorm):
    __doc__ = _BatchNorm.__doc__
    _batch_norm_backward = staticmethod(batch_norm_backward)
    _batch_norm_inference = staticmethod(batch_norm_inference)

    def _normalize(self, x: Array) -> tuple[Array, Array, Array, Array]:
        y, mean, invstd = batch_norm(x, self.gamma, self.beta, eps=self.eps, axis=self.axis)
        return y, mean, invstd, batch_stats(x, axis=self.axis)[1]


# --- layer normalization (Ba et al. 2016) and RMS normalization (Zhang and Sennrich 2019) ------------------------


def layer_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = -1,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """(y, mean, invstd): statistics over `axis` and all axes after it; mean and invstd are float64 x.shape[:axis].

    gamma and beta have shape x.shape[axis:] or are None. `out` receives y.
    """
    x, axis = _checks.array_and_axis(x, axis, 1)
    dtype = _checks.result_dtype(x)
    gamma = _optional(gamma, _checks.vector_from, x, axis, "gamma")
    beta = _optional(beta, _checks.vector_from, x, axis, "beta")
    eps = _checks.real_param(eps, "eps", "nonnegative")
    _checks.check_out(out, x.shape, dtype)
    _check_block(x, _from(axis, x.ndim), "row")
    with np.errstate(all="ignore"):
        centered, mean, invstd = _standardize(x, _from(axis, x.ndim), eps)
        y = activations._deliver(_affine(centered * invstd, gamma, beta), dtype, out)
        return y, mean.reshape(x.shape[:axis]), invstd.reshape(x.shape[:axis])


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
    """(dx, dgamma, dbeta). With g = dy * gamma and means over the normalized axes:

    dx = invstd * (g - mean(g) - x_hat * mean(g * x_hat)); dgamma and dbeta are the sums of dy * x_hat and of dy over
    the rows. `out` receives dx.
    """
    dy, x, axis = _checks.gradient_and_axis(dy, x, axis, 1)
    dtype = _checks.result_dtype(dy, x)
    mean = _checks.vector_before(mean, x, axis, "mean", np.float64)
    invstd = _checks.vector_before(invstd, x, axis, "invstd", np.float64)
    gamma = _optional(gamma, _checks.vector_from, x, axis, "gamma")
    _checks.check_out(out, x.shape, dtype)
    _check_block(x, _from(axis, x.ndim), "row")
    with np.errstate(all="ignore"):
        dy = dy.astype(np.float64)
        inner = _from(axis, x.ndim)
        invstd = np.expand_dims(invstd, inner)
        x_hat = _normalized(x, np.expand_dims(mean, inner), invstd)
        dx = _dx(_affine(dy, gamma), x_hat, invstd, inner)
        rows = tuple(range(axis))
        return _gradients(dx, np.sum(dy * x_hat, axis=rows), np.sum(dy, axis=rows), dtype, gamma, x, out)


def rms_norm(
    x: ArrayLike, gamma: ArrayLike | None = None, *, eps: float = 1e-5, axis: int = -1, out: Array | None = None
) -> tuple[Array, Array]:
    """(y, invrms): y = gamma * x * invrms, invrms = 1 / sqrt(mean(x**2) + eps) over `axis` and all axes after it.

    invrms is float64 x.shape[:axis]; gamma has shape x.shape[axis:] or is None. `out` receives y.
    """
    x, axis = _checks.array_and_axis(x, axis, 1)
    dtype = _checks.result_dtype(x)
    gamma = _optional(gamma, _checks.vector_from, x, axis, "gamma")
    eps = _checks.real_param(eps, "eps", "nonnegative")
    _checks.check_out(out, x.shape, dtype)
    _check_block(x, _from(axis, x.ndim), "row")
    with np.errstate(all="ignore"):
        x64 = x.astype(np.float64)
        invrms = _inverse_root_mean_square(x64, _from(axis, x.ndim), eps)
        y = activations._deliver(_affine(x64 * invrms, gamma), dtype, out)
        return y, invrms.reshape(x.shape[:axis])


def rms_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    invrms: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    axis: int = -1,
    out: Array | None = None,
) -> tuple[Array, Array]:
    """(dx, dgamma). With g = dy * gamma and x_hat = x * invrms: dx = invrms * (g - x_hat * mean(g * x_hat)).

    dgamma is the sum of dy * x_hat over the rows. `out` receives dx.
    """
    dy, x, axis = _checks.gradient_and_axis(dy, x, axis, 1)
    dtype = _checks.result_dtype(dy, x)
    invrms = _checks.vector_before(invrms, x, axis, "invrms", np.float64)
    gamma = _optional(gamma, _checks.vector_from, x, axis, "gamma")
    _checks.check_out(out, x.shape, dtype)
    _check_block(x, _from(axis, x.ndim), "row")
    with np.errstate(all="ignore"):
        dy = dy.astype(np.float64)
        inner = _from(axis, x.ndim)
        invrms = np.expand_dims(invrms, inner)
        x_hat = x.astype(np.float64) * invrms
        g = _affine(dy, gamma)
        dx = invrms * (g - x_hat * np.mean(g * x_hat, axis=inner, keepdims=True))
        dgamma = np.sum(dy * x_hat, axis=tuple(range(axis)))
        dgamma = activations._deliver(dgamma, _gradient_dtype(gamma, x), None)
        return activations._deliver(dx, dtype, out), dgamma


# --- group normalization (Wu and He 2018) and instance normalization (Ulyanov et al. 2016) -----------------------


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
    """(y, mean, invstd): statistics over each sample's groups of C // groups neighbouring channels.

    The first axis is the samples', `axis` the channels'. groups must divide C, else ValueError. mean and invstd are
    float64 (N, groups); gamma and beta have shape (C,) or are None. `out` receives y.
    """
    x, axis = _checks.array_and_axis(x, axis, samples=True)
    groups = _checks.check_groups(groups, x, axis)
    return _group_norm(x, groups, gamma, beta, eps, axis, out)


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
    """(dx, dgamma, dbeta). With g = dy * gamma and means over a group:

    dx = invstd * (g - mean(g) - x_hat * mean(g * x_hat)); dgamma and dbeta, (C,), are the sums of dy * x_hat and of dy
    over samples and positions. `out` receives dx.
    """
    dy, x, axis = _checks.gradient_and_axis(dy, x, axis, samples=True)
    groups = _checks.check_groups(groups, x, axis)
    return _group_norm_backward(dy, x, mean, invstd, groups, gamma, axis, out)


def instance_norm(
    x: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:
    """(y, mean, invstd): `group_norm` with a group for every channel; mean and invstd are float64 (N, C)."""
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
    """(dx, dgamma, dbeta): `group_norm_backward` with a group for every channel."""
    dy, x, axis = _checks.gradient_and_axis(dy, x, axis, samples=True)
    return _group_norm_backward(dy, x, mean, invstd, x.shape[axis], gamma, axis, out)


def _group_norm(x: Array, groups: int, gamma: Any, beta: Any, eps: Any, axis: int, out: Any) -> Any:
    dtype = _checks.result_dtype(x)
    gamma = _optional(gamma, _checks.vector_along, x, axis, "gamma")
    beta = _optional(beta, _checks.vector_along, x, axis, "beta")
    eps = _checks.real_param(eps, "eps", "nonnegative")
    _checks.check_out(out, x.shape, dtype)
    split, block = _split_groups(x, groups, axis)
    _check_block(split, block, "group", x.shape)
    with np.errstate(all="ignore"):
        centered, mean, invstd = _standardize(split, block, eps)
        x_hat = (centered * invstd).reshape(x.shape)
        y = _affine(x_hat, _spread(gamma, axis, x.ndim), _spread(beta, axis, x.ndim))
        statistics = (x.shape[0], groups)
        return activations._deliver(y, dtype, out), mean.reshape(statistics), invstd.reshape(statistics)


def _group_norm_backward(
    dy: Array, x: Array, mean: Any, invstd: Any, groups: int, gamma: Any, axis: int, out: Any
) -> Any:
    dtype = _checks.result_dtype(dy, x)
    mean = _checks.group_statistics(mean, x, groups, "mean", np.float64)
    invstd = _checks.group_statistics(invstd, x, groups, "invstd", np.float64)
    gamma = _optional(gamma, _checks.vector_along, x, axis, "gamma")
    _checks.check_out(out, x.shape, dtype)
    split, block = _split_groups(x, groups, axis)
    _check_block(split, block, "group", x.shape)
    with np.errstate(all="ignore"):
        dy = dy.astype(np.float64)
        statistics = tuple(1 if i in block else size for i, size in enumerate(split.shape))
        invstd = invstd.reshape(statistics)
        x_hat = _normalized(split, mean.reshape(statistics), invstd)
        g = _affine(dy, _spread(gamma, axis, x.ndim)).reshape(split.shape)
        dx = _dx(g, x_hat, invstd, block).reshape(x.shape)
        others = _all_but(axis, x.ndim)
        dgamma = np.sum(dy * x_hat.reshape(x.shape), axis=others)
        return _gradients(dx, dgamma, np.sum(dy, axis=others), dtype, gamma, x, out)


def _split_groups(x: Array, groups: int, axis: int) -> tuple[Array, Axes]:
    """x with its channel axis split into (groups, channels of a group), and the axes that a group's statistics span."""
    size = x.shape[axis] // groups if groups else 1
    split = x.reshape((*x.shape[:axis], groups, size, *x.shape[axis + 1 :]))
    return split, tuple(i for i in range(1, split.ndim) if i != axis)


# --- what they share ---------------------------------------------------------------------------------------------


def _optional(v: Any, read: Callable[..., Array], x: Array, axis: int, name: str) -> Array | None:
    return None if v is None else read(v, x, axis, name)


def _check_block(x: Array, axes: Axes, what: str = "channel", shape: tuple[int, ...] | None = None) -> None:
    count = int(np.prod([x.shape[i] for i in axes]))
    _checks.check_not_empty(count, x.shape if shape is None else shape, what)


def _all_but(axis: int, ndim: int) -> Axes:
    return tuple(i for i in range(ndim) if i != axis)


def _from(axis: int, ndim: int) -> Axes:
    return tuple(range(axis, ndim))


def _spread(v: Any, axis: int, ndim: int) -> Any:
    """A vector along `axis` in a shape that broadcasts against x."""
    return None if v is None else v.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _affine(x_hat: Array, gamma: Array | None, beta: Array | None = None) -> Array:
    """gamma * x_hat + beta in float64, each where given."""
    y = x_hat if gamma is None else x_hat * gamma.astype(np.float64)
    return y if beta is None else y + beta.astype(np.float64)


def _center(x: Array, axes: Axes) -> tuple[Array, Array]:
    """(x - mean, mean) in float64, the mean with its axes kept.

    The first value of each block is subtracted before anything is summed, so that a mean that is large beside the
    spread costs no accuracy, and a constant block is centered to exact zeros.
    """
    first = tuple(slice(0, 1) if i in axes else slice(None) for i in range(x.ndim))
    shift = x[first].astype(np.float64)
    shift = np.where(np.isfinite(shift), shift, 0.0)
    centered = x.astype(np.float64) - shift
    mean = np.mean(centered, axis=axes, keepdims=True)
    centered -= mean
    rest = np.mean(centered, axis=axes, keepdims=True)  # what rounding left of the mean, if that is finite
    rest = np.where(np.isfinite(mean), rest, 0.0)
    return centered - rest, shift + (mean + rest)


def _standardize(x: Array, axes: Axes, eps: float) -> tuple[Array, Array, Array]:
    """(x - mean, mean, invstd) in float64, the statistics with their axes kept."""
    centered, mean = _center(x, axes)
    return centered, mean, _inverse_root_mean_square(centered, axes, eps)


def _inverse_root_mean_square(x: Array, axes: Axes, eps: float) -> Array:
    """1 / sqrt(mean(x**2) + eps), the axes kept; of x scaled by a power of two, so that no square leaves float64."""
    largest = np.maximum(np.max(np.abs(x), axis=axes, keepdims=True), np.sqrt(eps))
    scale = np.where((largest > 0) & np.isfinite(largest), np.exp2(np.floor(np.log2(largest))), 1.0)
    scaled = x / scale
    return _invstd(np.mean(scaled * scaled, axis=axes, keepdims=True) + eps / scale / scale) / scale


def _invstd(variance: Array) -> Array:
    """1 / sqrt(variance), and 0 where the variance is 0."""
    return np.where(variance == 0, 0.0, 1.0 / np.sqrt(variance))


def _normalized(x: Array, mean: Array, invstd: Array) -> Array:
    return (x.astype(np.float64) - mean) * invstd


def _dx(g: Array, x_hat: Array, invstd: Array, axes: Axes) -> Array:
    """invstd * (g - mean(g) - x_hat * mean(g * x_hat)): the gradient through mean and variance."""
    mean_g = np.mean(g, axis=axes, keepdims=True)
    mean_gx = np.mean(g * x_hat, axis=axes, keepdims=True)
    return invstd * (g - mean_g - x_hat * mean_gx)


def _gradient_dtype(gamma: Array | None, x: Array) -> np.dtype[Any]:
    return _checks.result_dtype(x if gamma is None else gamma)


def _gradients(
    dx: Array, dgamma: Array, dbeta: Array, dtype: np.dtype[Any], gamma: Array | None, x: Array, out: Any
) -> tuple[Array, Array, Array]:
    """The three gradients, each rounded to its dtype."""
    theirs = _gradient_dtype(gamma, x)
    return (
        activations._deliver(dx, dtype, out),
        activations._deliver(dgamma, theirs, None),
        activations._deliver(dbeta, theirs, None),
    )


def _defaults(row: Activation, dtype: np.dtype[Any]) -> list[float]:
    """The activation's default parameters, rounded as the kernel for `dtype` rounds them."""
    compute = _checks.compute_dtype(dtype)
    return [_checks.real_param(p.default, p.name, p.must_be, compute) for p in row.params]


def _activate(row: Activation | None, z: Array, dtype: np.dtype[Any]) -> Array:
    return z if row is None else getattr(activations, row.name)(z, *_defaults(row, dtype))


def _activate_backward(row: Activation | None, dy: Array, z: Array, dtype: np.dtype[Any]) -> Array:
    if row is None:
        return dy
    saved = z if row.saved == "x" else _activate(row, z, dtype)
    return getattr(activations, row.name + "_backward")(dy, saved, *_defaults(row, dtype))
