"""Weight initialization: what a network's weights start from, and why it matters.

Every initializer is ``f(shape, *, gain=1.0, fan_in=None, fan_out=None, rng=None, dtype=np.float32)``, without ``gain``
where the scale is given outright, and returns a new array. All of them take the same keywords, so one can stand in for
another; what a rule has no use for is ignored.

Shapes and fans
    ``fan_in`` is the number of inputs that one output sums, ``fan_out`` the number of outputs that one input reaches.

    ======================  ===========================  ===========================
    shape                   fan_in                       fan_out
    ======================  ===========================  ===========================
    (n, m), as in x @ W     n                            m
    (out, in, *kernel)      in * prod(kernel)            out * prod(kernel)
    any other               must be given                must be given
    ======================  ===========================  ===========================

    The second row holds for three and more dimensions: convolutions over one, two and three axes. PyTorch's Linear
    keeps its weights as (out, in): there pass ``fan_in`` and ``fan_out``, or transpose the result. A fan that is given
    replaces the one read from the shape, for grouped convolutions, say.

Random numbers
    ``rng`` is anything that ``numpy.random.default_rng`` takes: None, a seed, a Generator (which advances). There is no
    global seed. Values are drawn in float64 and rounded once, so that one seed gives the same weights in every dtype.

Errors
    TypeError for a shape or a fan that is not made of integers, a number that is none, a dtype other than float16,
    float32 and float64; ValueError for a negative dimension, a fan below 1, a fan that is needed and unknown, a number
    that is not finite or out of range, and a result that overflows the dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastnn import _checks

__all__ = [
    "constant",
    "fans",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lsuv",
    "normal",
    "orthogonal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]

Shape = int | Sequence[int]
Float = NDArray[np.floating[Any]]
Network = TypeVar("Network")


def fans(shape: Shape, fan_in: int | None = None, fan_out: int | None = None) -> tuple[int | None, int | None]:
    """Return (fan_in, fan_out) of weights of this shape; see the module's table.

    A fan that is given is passed through; one that is not and that the shape does not tell is None.
    """
    dims = _checked_shape(shape)
    read: tuple[int | None, int | None] = (None, None)
    if len(dims) == 2:
        read = dims[0], dims[1]
    elif len(dims) > 2:
        kernel = math.prod(dims[2:])
        read = dims[1] * kernel, dims[0] * kernel
    return (
        read[0] if fan_in is None else _checks.integer_param(fan_in, "fan_in", 1),
        read[1] if fan_out is None else _checks.integer_param(fan_out, "fan_out", 1),
    )


def zeros(
    shape: Shape,
    *,
    fan_in: int | None = None,
    fan_out: int | None = None,
    rng: Any = None,
    dtype: DTypeLike = np.float32,
) -> Float:
    """All zero: for biases and for the shift of a normalization, never for weights.

    Units that start alike get the same gradient and stay alike.

    Source: CS231n, Neural Networks Part 2, "Pitfall: all zero initialization".
    """
    return constant(shape, 0.0, fan_in=fan_in, fan_out=fan_out, rng=rng, dtype=dtype)


def constant(
    shape: Shape,
    value: float,
    *,
    fan_in: int | None = None,
    fan_out: int | None = None,
    rng: Any = None,
    dtype: DTypeLike = np.float32,
) -> Float:
    """Every entry is `value`, any finite number."""
    dims, _, _ = _checked(shape, fan_in, fan_out)
    rounded = _rounded(np.asarray(_checks.real_param(value, "value")), _checks.float_dtype(dtype))
    return np.full(dims, rounded, rounded.dtype)


def normal(
    shape: Shape,
    std: float = 0.01,
    *,
    fan_in: int | None = None,
    fan_out: int | None = None,
    rng: Any = None,
    dtype: DTypeLike = np.float32,
) -> Float:
    """Normally distributed with mean 0 and standard deviation `std` >= 0, whatever the fans are.

    The lecture's "small random numbers": fine for a shallow network; in a deep one the signal shrinks to nothing.
    """
    dims, _, _ = _checked(shape, fan_in, fan_out)
    return _normal(dims, _checks.real_param(std, "std", "nonnegative"), rng, dtype)


def uniform(
    shape: Shape,
    low: float,
    high: float,
    *,
    fan_in: int | None = None,
    fan_out: int | None = None,
    rng: Any = None,
    dtype: DTypeLike = np.float32,
) -> Float:
    """Uniformly distributed between `low` and `high` >= low; rounding to `dtype` may reach either of them."""
    dims, _, _ = _checked(shape, fan_in, fan_out)
    low, high = _checks.real_param(low, "low"), _checks.real_param(high, "high")
    if low > high:
        raise ValueError(f"low is {low} and high {high}; low must not be greater than high")
    return _uniform(dims, low, high, rng, dtype)


def xavier_normal(
    shape: Shape,
    *,
    gain: float = 1.0,
    fan_in: int | None = None,
    fan_out: int | None = None,
    rng: Any = None,
    dtype: DTypeLike = np.float32,
) -> Float:
    """Normal with std = gain * sqrt(2 / (fan_in + fan_out)).

    Keeps the variance of signals and gradients, as a compromise between the two, through layers that are about linear:
    tanh around 0. The lecture's short form, sqrt(1 / fan_in), is `lecun_normal`.

    Source: Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010.
    """
    dims, inputs, outputs = _checked(shape, fan_in, fan_out)
    return _normal(dims, _scaled("xavier_normal", gain, 2.0, dims, fan_in=inputs, fan_out=outputs), rng, dtype)


def xavier_uniform(
    shape: Shape,
    *,
    gain: float = 1.0,
    fan_in: int | None = None,
    fan_out: int | None = None,
    rng: Any = None,
    dtype: DTypeLike = np.float32,
) -> Float:
    """Uniform between -a and a, a = gain * sqrt(6 / (fan_in + fan_out)): the variance of `xavier_normal`.

    Source: Glorot and Bengio, 2010, "normalized initialization".
    """
    dims, inputs, outputs = _checked(shape, fan_in, fan_out)
    bound = _scaled("xavier_uniform", gain, 6.0, dims, fan_in=inputs, fan_out=outputs)
    return _uniform(dims, -bound, bound, rng, dtype)


def he_normal(
    shape: Shape,
    *,
    gain: float = 1.0,
    fan_in: int | None = None,
    fan_out: int | None = None,
    rng: Any = None,
    dtype: DTypeLike = np.float32,
) -> Float:
    """Normal with std = gain * sqrt(2 / fan_in).

    ReLU drops half of the variance; the 2 puts it back. It is part of the rule, so `gain` stays 1 for ReLU (PyTorch's
    kaiming_normal_ leaves it to its gain, sqrt(2) there). For leaky ReLU: gain = 1 / sqrt(1 + negative_slope**2).

    Source: He et al., Delving deep into rectifiers, 2015, equation 10.
    """
    dims, inputs, _ = _checked(shape, fan_in, fan_out)
    return _normal(dims, _scaled("he_normal", gain, 2.0, dims, fan_in=inputs), rng, dtype)


def he_uniform(
    shape: Shape,
    *,
    gain: float = 1.0,
    fan_in: int | None = None,
    fan_out: int | None = None,
    rng: Any = None,
    dtype: DTypeLike = np.float32,
) -> Float:
    """Uniform between -a and a, a = gain * sqrt(6 / fan_in): the variance of `he_normal`, `gain` meaning the same.

    Source: He et al., 2015.
    """
    dims, inputs, _ = _checked(shape, fan_in, fan_out)
    bound = _scaled("he_uniform", gain, 6.0, dims, fan_in=inputs)
    return _uniform(dims, -bound, bound, rng, dtype)


def lecun_normal(
    shape: Shape,
    *,
    gain: float = 1.0,
    fan_in: int | None = None,
    fan_out: int | None = None,
    rng: Any = None,
    dtype: DTypeLike = np.float32,
) -> Float:
    """Normal with std = gain * sqrt(1 / fan_in): keeps the variance of the signal through a linear layer; for selu.

    This is what CS231n's slides call Xavier initialization: ``np.random.randn(n, m) / np.sqrt(n)``.

    Source: LeCun et al., Efficient backprop, 1998.
    """
    dims, inputs, _ = _checked(shape, fan_in, fan_out)
    return _normal(dims, _scaled("lecun_normal", gain, 1.0, dims, fan_in=inputs), rng, dtype)


def orthogonal(
    shape: Shape,
    *,
    gain: float = 1.0,
    fan_in: int | None = None,
    fan_out: int | None = None,
    rng: Any = None,
    dtype: DTypeLike = np.float32,
) -> Float:
    """A uniformly distributed orthogonal matrix times `gain`, any finite number; all its singular values are
    abs(gain).

    Needs two dimensions or more; (out, in, *kernel) is read as the matrix (out, in * prod(kernel)). Where it is not
    square its shorter side is orthonormal: W.T @ W or W @ W.T is gain**2 times the identity.

    Source: Saxe, McClelland and Ganguli, Exact solutions to the nonlinear dynamics of learning, 2013; the sign rule
    that makes the distribution uniform: Mezzadri, How to generate random matrices from the classical groups, 2007.
    """
    dims, _, _ = _checked(shape, fan_in, fan_out)
    gain = _checks.real_param(gain, "gain")
    if len(dims) < 2:
        raise ValueError(f"shape is {dims}; orthogonal needs 2 or more dimensions")
    wanted = _checks.float_dtype(dtype)
    rows, columns = dims[0], math.prod(dims[1:])
    draws = _generator(rng).standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(draws)
    q *= np.where(np.diagonal(r) < 0, -gain, gain)
    return _rounded((q if rows >= columns else q.T).reshape(dims), wanted)


def lsuv(network: Network, x: ArrayLike, *, tol: float = 0.01, max_iter: int = 10, rng: Any = None) -> Network:
    """Layer-sequential unit-variance initialization, in place; returns `network`.

    Walks the layers in order with the batch `x`. A layer that has weights (an attribute ``W``) gets an orthogonal start
    and is then divided by the standard deviation of its own output until that is within `tol` of 1, at most `max_iter`
    times; then its output is passed on. So every layer sees a signal of variance 1, whatever the activations are.

    Args:
        network: anything with a list ``layers``, or the list itself. A layer has ``forward(x)`` or is a function of x;
            weights are changed in place, ``layer.W[...] = ...``.
        x: a batch of real inputs; a few hundred samples are enough.
        tol: how far from 1 the standard deviation may stay.
        max_iter: rescalings a layer at most. A layer without bias needs one.
        rng: as everywhere in this module.

    Raises:
        TypeError: `network` has no layers, a layer is no function and has no ``forward``, or `x` is no real array.
        ValueError: `tol` or `max_iter` out of range, an empty `x`, or a layer whose output is constant or not finite,
            which no factor can repair; the message names the layer.

    Source: Mishkin and Matas, All you need is a good init, 2015.
    """
    layers = _checked_layers(network)
    tol = _checks.real_param(tol, "tol", "nonnegative")
    max_iter = _checks.integer_param(max_iter, "max_iter", 1)
    generator = _generator(rng)
    if _checks.as_input(x).size == 0:
        raise ValueError(f"x has shape {np.shape(x)}, without a value; give a batch of several different samples")
    signal: Any = np.asarray(x)
    for index, layer in enumerate(layers):
        forward = getattr(layer, "forward", layer)
        weights = getattr(layer, "W", None)
        if weights is not None:
            _check_weights(weights, f"layer {index} ({type(layer).__name__})")
            weights[...] = orthogonal(weights.shape, rng=generator, dtype=np.float64)
            for _ in range(max_iter):
                std = float(np.std(forward(signal), dtype=np.float64))
                if not (std > 0 and math.isfinite(std)):
                    raise ValueError(
                        f"lsuv cannot scale layer {index} ({type(layer).__name__}): the standard deviation of its "
                        f"output is {std}; give a batch x of several different, finite samples"
                    )
                if abs(std - 1) <= tol:
                    break
                weights /= std
        signal = forward(signal)
    return network


def _check_weights(weights: Any, where: str) -> None:
    if not isinstance(weights, np.ndarray) or weights.dtype.kind != "f":
        kind = getattr(weights, "dtype", type(weights).__name__)
        raise TypeError(f"{where}: W is {kind}; lsuv changes it in place, so it must be an ndarray of floats")
    if weights.ndim < 2 or not weights.size:
        raise ValueError(f"{where}: W has shape {weights.shape}; it needs 2 dimensions or more, none of them 0")


def _checked_layers(network: Any) -> list[Any]:
    layers = getattr(network, "layers", network)
    if not isinstance(layers, Iterable):
        raise TypeError(
            f"network must have a list `layers` or be a list of layers, not {type(network).__name__} without either"
        )
    listed = list(layers)
    for index, layer in enumerate(listed):
        if not callable(getattr(layer, "forward", layer)):
            raise TypeError(
                f"layer {index} ({type(layer).__name__}) must have a method forward(x) or be a function of x"
            )
    return listed


def _checked(shape: Shape, fan_in: int | None, fan_out: int | None) -> tuple[tuple[int, ...], int | None, int | None]:
    dims = _checked_shape(shape)
    return (dims, *fans(dims, fan_in, fan_out))


def _checked_shape(shape: Shape) -> tuple[int, ...]:
    try:
        listed = tuple(shape) if isinstance(shape, Iterable) else (shape,)
        dims = tuple(_checks.integer_param(size, "shape") for size in listed)
    except TypeError:
        raise TypeError(f"shape must be an integer or a sequence of integers, not {shape!r}") from None
    if any(size < 0 for size in dims):
        raise ValueError(f"shape is {dims}; no dimension may be negative")
    return dims


def _generator(rng: Any) -> np.random.Generator:
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        accepted = "an integer of at least 0, a numpy.random.Generator, or None"
        raise type(error)(f"rng is {rng!r}; it must be {accepted} ({error})") from error


def _scaled(rule: str, gain: float, factor: float, dims: tuple[int, ...], **needed: int | None) -> float:
    """Return gain * sqrt(factor / sum of the fans that the rule needs)."""
    gain = _checks.real_param(gain, "gain", "nonnegative")
    total = 0
    for name, fan in needed.items():
        if fan is None:
            raise ValueError(
                f"{rule} cannot tell {name} from the shape {dims}: pass {name}=..., or a shape (fan_in, fan_out) "
                "or (out, in, *kernel)"
            )
        total += fan
    # A fan of 0 is one of an array without entries: any scale will do.
    scale = gain * math.sqrt(factor / total) if total else 0.0
    if scale == math.inf:
        raise ValueError(f"gain is {gain}, with which the scale of {rule} overflows float64; take a smaller one")
    return scale


def _normal(dims: tuple[int, ...], std: float, rng: Any, dtype: DTypeLike) -> Float:
    wanted = _checks.float_dtype(dtype)
    draws = _generator(rng).standard_normal(dims)
    with np.errstate(over="ignore", under="ignore"):
        draws *= std
    return _rounded(draws, wanted)


def _uniform(dims: tuple[int, ...], low: float, high: float, rng: Any, dtype: DTypeLike) -> Float:
    # Not Generator.uniform: high - low may overflow where neither bound does.
    wanted = _checks.float_dtype(dtype)
    draws = _generator(rng).random(dims)
    return _rounded(np.clip(low * (1 - draws) + high * draws, low, high), wanted)


def _rounded(values: NDArray[np.float64], wanted: np.dtype[Any]) -> Float:
    with np.errstate(over="ignore", under="ignore"):
        result = np.asarray(values, dtype=wanted, order="C")
    if not np.isfinite(result).all():
        raise ValueError(
            f"values up to {np.abs(values).max():g} overflow {wanted}; take a wider dtype or a smaller scale"
        )
    return result
