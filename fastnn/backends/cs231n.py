"""CS231n: the names, signatures and caches of the course's layers.py, on fastnn's kernels.

``from fastnn.backends.cs231n import *`` stands in for ``from .layers import *`` of the assignments (2023 and 2024; the
affine_* composites are those of layer_utils.py). A network built on it trains with the same losses, only faster.

- Arguments are never written to; only ``bn_param`` is, as in the course: its running_mean and running_var are replaced
  by new arrays, and both start at zeros.
- gamma and beta may have shape (C,) or (1, C, 1, 1); their gradients come back in the same shape.
- A cache is opaque, except where the course fixes it: (x, w, b) of affine_forward, x of relu_forward and
  (dropout_param, mask) of dropout_forward.
- dropout draws from NumPy's global generator, and reseeds it where dropout_param has a "seed", because the course does
  and the losses of a seeded run depend on it.
- Convolution and max pooling are not here: they are no activations and no normalizations. Keep the course's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastnn as fn
from fastnn._checks import as_input, as_labels, check_logits, check_ndim, real_param, vector_along
from fastnn.normalization import batch_norm_and_variance

__all__ = [
    "affine_backward",
    "affine_bn_relu_backward",
    "affine_bn_relu_forward",
    "affine_forward",
    "affine_ln_relu_backward",
    "affine_ln_relu_forward",
    "affine_relu_backward",
    "affine_relu_forward",
    "batchnorm_backward",
    "batchnorm_backward_alt",
    "batchnorm_forward",
    "dropout_backward",
    "dropout_forward",
    "layernorm_backward",
    "layernorm_forward",
    "relu_backward",
    "relu_forward",
    "softmax_loss",
    "spatial_batchnorm_backward",
    "spatial_batchnorm_forward",
    "spatial_groupnorm_backward",
    "spatial_groupnorm_forward",
    "svm_loss",
]

Array = NDArray[Any]
Params = dict[str, Any]
Grads = tuple[Array, Array, Array]
"""dx, dgamma, dbeta of a normalization, or dx, dw, db of an affine layer."""


def affine_forward(x: Array, w: Array, b: Array) -> tuple[Array, Any]:
    """x of shape (N, ...) as rows of length D, times w (D, M), plus b (M,); cache (x, w, b)."""
    return x.reshape(x.shape[0], -1) @ w + b, (x, w, b)


def affine_backward(dout: Array, cache: Any) -> Grads:
    """dx in x's shape, dw, db."""
    x, w, _ = cache
    return (dout @ w.T).reshape(x.shape), x.reshape(x.shape[0], -1).T @ dout, dout.sum(axis=0)


def relu_forward(x: Array) -> tuple[Array, Array]:
    """max(x, 0); cache x."""
    return fn.relu(x), x


def relu_backward(dout: Array, cache: Array) -> Array:
    """dout where x > 0, else 0."""
    return fn.relu_backward(dout, cache)


def batchnorm_forward(x: Array, gamma: Array, beta: Array, bn_param: Params) -> tuple[Array, Any]:
    """Batch normalization of (N, D), or over every axis but 1 of (N, C, H, W).

    bn_param: mode "train" or "test", eps (1e-5), momentum (0.9; the share of the old running value that stays),
    running_mean and running_var (zeros). The cache is None in test mode.
    """
    mode, momentum = bn_param["mode"], real_param(bn_param.get("momentum", 0.9), "momentum", "share")
    eps = real_param(bn_param.get("eps", 1e-5), "eps", "nonnegative")
    if mode not in ("train", "test"):
        raise ValueError(f"bn_param['mode'] is {mode!r}; it must be 'train' or 'test'")
    x = as_input(x)
    check_ndim(x, 2)
    running_mean, running_var = (_running(bn_param, key, x) for key in ("running_mean", "running_var"))
    affine, cache = (gamma.reshape(-1), beta.reshape(-1)), None
    if mode == "test":
        out = fn.batch_norm_inference(x, running_mean, running_var, *affine, eps=eps)
    else:
        out, mean, invstd, var = batch_norm_and_variance(x, *affine, eps=eps)
        cache = (x, mean, invstd, gamma)
        with np.errstate(all="ignore"):
            running_mean = _decayed(running_mean, mean, momentum, x)
            running_var = _decayed(running_var, var, momentum, x)
    bn_param["running_mean"], bn_param["running_var"] = running_mean, running_var
    return out, cache


def _running(bn_param: Params, key: str, x: Array) -> Array:
    value = bn_param.get(key)
    return np.zeros(x.shape[1], dtype=x.dtype) if value is None else vector_along(value, x, 1, key)


def _decayed(running: Array, batch: Array, momentum: float, x: Array) -> Array:
    """A new array: the running value decayed towards the batch's, in the dtype that NumPy gives x and the old value."""
    return (momentum * running + (1 - momentum) * batch).astype(np.result_type(running, x))


def batchnorm_backward(dout: Array, cache: Any) -> Grads:
    """dx, dgamma, dbeta of batchnorm_forward in train mode."""
    x, mean, invstd, gamma = cache
    dx, dgamma, dbeta = fn.batch_norm_backward(dout, x, mean, invstd, gamma.reshape(-1))
    return dx, dgamma.reshape(gamma.shape), dbeta.reshape(gamma.shape)


# The course asks for the gradient twice, once node by node and once simplified. Here both are the one kernel. Likewise
# the kernel takes (N, C, H, W) as it is, so that the spatial functions need no transposed copy.
batchnorm_backward_alt = batchnorm_backward
spatial_batchnorm_forward = batchnorm_forward
spatial_batchnorm_backward = batchnorm_backward


def layernorm_forward(x: Array, gamma: Array, beta: Array, ln_param: Params) -> tuple[Array, Any]:
    """Normalization of every row of (N, D); ln_param: eps (1e-5)."""
    out, mean, invstd = fn.layer_norm(x, gamma.reshape(-1), beta.reshape(-1), eps=ln_param.get("eps", 1e-5))
    return out, (x, mean, invstd, gamma)


def layernorm_backward(dout: Array, cache: Any) -> Grads:
    """dx, dgamma, dbeta of layernorm_forward."""
    x, mean, invstd, gamma = cache
    dx, dgamma, dbeta = fn.layer_norm_backward(dout, x, mean, invstd, gamma.reshape(-1))
    return dx, dgamma.reshape(gamma.shape), dbeta.reshape(gamma.shape)


def spatial_groupnorm_forward(x: Array, gamma: Array, beta: Array, G: int, gn_param: Params) -> tuple[Array, Any]:
    """Normalization of (N, C, H, W) over G groups of channels; gn_param: eps (1e-5)."""
    out, mean, invstd = fn.group_norm(x, G, gamma.reshape(-1), beta.reshape(-1), eps=gn_param.get("eps", 1e-5))
    return out, (x, mean, invstd, G, gamma)


def spatial_groupnorm_backward(dout: Array, cache: Any) -> Grads:
    """dx, dgamma, dbeta of spatial_groupnorm_forward."""
    x, mean, invstd, groups, gamma = cache
    dx, dgamma, dbeta = fn.group_norm_backward(dout, x, mean, invstd, groups, gamma.reshape(-1))
    return dx, dgamma.reshape(gamma.shape), dbeta.reshape(gamma.shape)


def dropout_forward(x: Array, dropout_param: Params) -> tuple[Array, Any]:
    """Inverted dropout; dropout_param: p, the probability to keep a value, mode "train" or "test", and maybe a seed."""
    p, mode = dropout_param["p"], dropout_param["mode"]
    if "seed" in dropout_param:
        np.random.seed(dropout_param["seed"])  # noqa: NPY002 (see the module's docstring)
    if mode == "test":
        return x, (dropout_param, None)
    if mode != "train":
        raise ValueError(f"dropout_param['mode'] is {mode!r}; it must be 'train' or 'test'")
    mask = (np.random.rand(*x.shape) < p) / p  # noqa: NPY002
    return (x * mask).astype(x.dtype, copy=False), (dropout_param, mask)


def dropout_backward(dout: Array, cache: Any) -> Array:
    """dout times the mask; in test mode dout itself."""
    _, mask = cache
    return dout if mask is None else dout * mask


def softmax_loss(x: Array, y: Array) -> tuple[float, Array]:
    """Mean cross entropy of the scores x (N, C) and the labels y (N,), and its gradient."""
    loss, dx = fn.cross_entropy(x, y)
    return loss, dx


def svm_loss(x: Array, y: Array) -> tuple[float, Array]:
    """Mean multiclass hinge loss with margin 1 of the scores x (N, C) and the labels y (N,), and its gradient."""
    x = as_input(x)
    check_logits(x)
    y = as_labels(y, *x.shape)
    count = max(x.shape[0], 1)  # of no samples the loss is 0
    rows = np.arange(x.shape[0])
    margins = fn.relu(x - x[rows, y][:, None] + 1)
    margins[rows, y] = 0
    dx = (margins > 0).astype(x.dtype)
    dx[rows, y] = -dx.sum(axis=1)
    return margins.sum() / count, dx / count


def affine_relu_forward(x: Array, w: Array, b: Array) -> tuple[Array, Any]:
    """relu(affine(x))."""
    a, fc_cache = affine_forward(x, w, b)
    out, relu_cache = relu_forward(a)
    return out, (fc_cache, relu_cache)


def affine_relu_backward(dout: Array, cache: Any) -> Grads:
    """dx, dw, db."""
    fc_cache, relu_cache = cache
    return affine_backward(relu_backward(dout, relu_cache), fc_cache)


def affine_bn_relu_forward(
    x: Array, w: Array, b: Array, gamma: Array, beta: Array, bn_param: Params
) -> tuple[Array, Any]:
    """relu(batchnorm(affine(x)))."""
    return _affine_norm_relu_forward(batchnorm_forward, x, w, b, gamma, beta, bn_param)


def affine_bn_relu_backward(dout: Array, cache: Any) -> tuple[Array, ...]:
    """dx, dw, db, dgamma, dbeta."""
    return _affine_norm_relu_backward(batchnorm_backward, dout, cache)


def affine_ln_relu_forward(
    x: Array, w: Array, b: Array, gamma: Array, beta: Array, ln_param: Params
) -> tuple[Array, Any]:
    """relu(layernorm(affine(x)))."""
    return _affine_norm_relu_forward(layernorm_forward, x, w, b, gamma, beta, ln_param)


def affine_ln_relu_backward(dout: Array, cache: Any) -> tuple[Array, ...]:
    """dx, dw, db, dgamma, dbeta."""
    return _affine_norm_relu_backward(layernorm_backward, dout, cache)


def _affine_norm_relu_forward(
    norm_forward: Callable[..., Any], x: Array, w: Array, b: Array, *norm_args: Any
) -> tuple[Array, Any]:
    a, fc_cache = affine_forward(x, w, b)
    a, norm_cache = norm_forward(a, *norm_args)
    out, relu_cache = relu_forward(a)
    return out, (fc_cache, norm_cache, relu_cache)


def _affine_norm_relu_backward(norm_backward: Callable[..., Any], dout: Array, cache: Any) -> tuple[Array, ...]:
    fc_cache, norm_cache, relu_cache = cache
    da, dgamma, dbeta = norm_backward(relu_backward(dout, relu_cache), norm_cache)
    return *affine_backward(da, fc_cache), dgamma, dbeta
