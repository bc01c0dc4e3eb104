"""What the adapters of the differentiating hosts (autograd, torch, jax) share: the functions and their derivatives.

The first derivative in reverse mode is always a kernel. Beyond it, for derivatives of derivatives, stands the second
derivative of the elementwise functions in NumPy, and for all others a formula that the host differentiates on its own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

import fastnn as fn
from fastnn._checks import (
    as_input,
    compute_dtype,
    fused_activation,
    gelu_variant,
    gradient_and_axis,
    integer_param,
    normalize_axis,
    real_param,
    result_dtype,
)
from fastnn._table import ACTIVATIONS
from fastnn.normalization import batch_norm_and_variance, inverse_deviation


@dataclass(frozen=True)
class Function:
    """A public function of one array: ``name(x, *params)`` and ``name_backward(dy, saved, *params)``."""

    name: str
    saved: str  # what backward is given: "x" or "y"
    params: tuple[tuple[str, Any], ...]  # name and default

    @property
    def kernel(self) -> Callable[..., Any]:
        return getattr(fn, self.name)

    @property
    def backward_kernel(self) -> Callable[..., Any]:
        return getattr(fn, f"{self.name}_backward")

    @cached_property
    def signature(self) -> inspect.Signature:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        params = [inspect.Parameter(name, kind, default=default) for name, default in self.params]
        return inspect.Signature([inspect.Parameter("x", kind), *params])

    def public(self, call: Callable[..., Any], host: str) -> Callable[..., Any]:
        """``call(x, *params)`` with the parameters by position or by name, and their defaults."""
        defaults = tuple(default for _, default in self.params)

        def function(*args: Any, **kwargs: Any) -> Any:
            if len(args) == 1 and not kwargs:
                return call(args[0], *defaults)
            bound = self.signature.bind(*args, **kwargs)
            bound.apply_defaults()
            x, *params = bound.args
            return call(x, *map(_plain, params, self.params))

        function.__name__ = self.name
        # a code object of its own: torch.compile counts what it compiles by that, and gives up after eight
        function.__code__ = function.__code__.replace(co_name=self.name)
        function.__doc__ = f"fastnn.{self.name} for {host}, differentiable with respect to x."
        function.__signature__ = self.signature  # type: ignore[attr-defined]
        return function


def _plain(value: Any, param: tuple[str, Any]) -> Any:
    """A parameter as a plain value of its default's type, or fastnn's error."""
    name, default = param
    if isinstance(default, str):
        gelu_variant(value)
        return value
    return integer(value, name) if isinstance(default, int) else _real(value, name)


def _real(value: Any, name: str) -> float:
    """value as a float, whose range the kernels check (and torch.compile, whose floats may be symbols, could not)."""
    return value if type(value) is float else real_param(value, name)


def integer(value: Any, name: str) -> int:
    """value as an int of 64 bits, which PyTorch's operators take; the kernels refuse the outermost as any beyond."""
    return min(max(integer_param(value, name), -(1 << 63)), (1 << 63) - 1)


def labels(given: Any) -> Any:
    """Class labels to make an array from: every host makes floating numbers of an empty list."""
    return np.zeros(0, np.intp) if isinstance(given, list | tuple) and not given else given


def publish(namespace: dict[str, Any], *functions: Callable[..., Any]) -> None:
    """Make functions members of the module that has this namespace, where pickle then finds them."""
    for function in functions:
        function.__module__, function.__qualname__ = namespace["__name__"], function.__name__
        namespace[function.__name__] = function


def _elementwise() -> dict[str, Function]:
    functions = {}
    for row in ACTIVATIONS:
        params: tuple[tuple[str, Any], ...] = tuple((param.name, param.default) for param in row.params)
        if row.function == "gelu":  # two rows, told apart by a name
            params = (("approximate", "none"),)
        functions[row.function] = Function(row.function, row.saved, params)
    return functions


ELEMENTWISE = _elementwise()
SOFTMAX = {name: Function(name, "y", (("axis", -1),)) for name in ("softmax", "log_softmax")}
NAMES = [*ELEMENTWISE, *SOFTMAX, "prelu", "maxout", "cross_entropy"]
NORMALIZATIONS = ["batch_norm", "batch_norm_inference", "layer_norm", "rms_norm", "group_norm", "instance_norm"]


def second_derivative(name: str, saved: Any, *params: Any) -> np.ndarray[Any, Any]:
    """The derivative of ``name_backward(1, saved, *params)`` with respect to saved, elementwise."""
    saved = np.asarray(saved)
    computed = saved.astype(compute_dtype(saved.dtype), copy=False)
    with np.errstate(all="ignore"):
        return np.asarray(_SECOND[name](computed, *params), dtype=saved.dtype)


def _below_zero(name: str) -> Callable[..., Any]:
    """elu and its relatives: an exponential below 0, whose derivative is its own multiple; a straight line above."""
    rate: dict[str, Callable[..., float]] = {
        "elu": lambda alpha: 1.0,
        "celu": lambda alpha: 1.0 / alpha,
        "selu": lambda: 1.0,
    }

    def second(x: Any, *params: Any) -> Any:
        first = getattr(fn, f"{name}_backward")(np.ones_like(x), x, *params)
        return np.where(x <= 0, first * rate[name](*params), np.where(np.isnan(x), x, 0))

    return second


def _bent(x: Any) -> Any:
    """x where gelu, silu and mish bend; beyond they are straight, but their formulas would take 0 times infinity."""
    return np.clip(x, -1e4, 1e4)


def _gelu(x: Any, approximate: str) -> Any:
    x = _bent(x)
    if approximate == "none":
        return np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) * (2 - x * x)
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    t = fn.tanh(scale * (x + cubic * x**3))
    slope = scale * (1 + 3 * cubic * x * x)
    return (1 - t * t) * (slope + 3 * scale * cubic * x * x - x * t * slope * slope)


def _silu(x: Any) -> Any:
    x = _bent(x)
    s = fn.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _mish(x: Any) -> Any:
    x = _bent(x)
    s, t = fn.sigmoid(x), fn.tanh(fn.softplus(x))
    return s * (1 - t * t) * (2 + x * (1 - s) - 2 * x * t * s)


def _zero(x: Any, *params: Any) -> Any:
    return np.zeros_like(x)


_SECOND: dict[str, Callable[..., Any]] = {
    "sigmoid": lambda y: 1 - 2 * y,
    "tanh": lambda y: -2 * y,
    "relu": _zero,
    "leaky_relu": _zero,
    "relu6": _zero,
    "hardtanh": _zero,
    "hardsigmoid": _zero,
    "hardswish": lambda x: np.where(np.abs(x) < 3, 1 / 3, 0.0),
    "elu": _below_zero("elu"),
    "celu": _below_zero("celu"),
    "selu": _below_zero("selu"),
    "gelu": _gelu,
    "silu": _silu,
    "mish": _mish,
    "softsign": lambda x: -2 * np.sign(x) / (1 + np.abs(x)) ** 3,
    "log_sigmoid": lambda x: -fn.sigmoid_backward(np.ones_like(x), fn.sigmoid(x)),
    "softplus": lambda x, beta: beta * fn.sigmoid_backward(np.ones_like(x), fn.sigmoid(beta * x)),
}


@dataclass(frozen=True)
class Norm:
    """A normalization with its static arguments; arrays are given to its methods.

    batch_norm_inference has constants, the mean and variance to use; the others have none and compute their statistics.
    """

    name: str
    eps: float
    axis: int
    groups: int | None = None
    activation: str | None = None

    def _options(self, *names: str) -> dict[str, Any]:
        return {"axis": self.axis} | {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def forward(self, x: Any, gamma: Any, beta: Any, *constants: Any, out: Any = None) -> tuple[Any, ...]:
        """y, and the statistics that backward is given."""
        kernel = getattr(fn, self.name)
        args = [*constants, gamma] if self.groups is None else [self.groups, gamma]
        if self.name != "rms_norm":
            args.append(beta)
        result = kernel(x, *args, eps=self.eps, **self._options("activation"), out=out)
        return (result, *map(as_input, constants)) if constants else result

    def forward_with_variance(self, x: Any, gamma: Any, beta: Any, out: Any = None) -> tuple[Any, ...]:
        """The same of batch_norm, and the exact variance for running statistics."""
        return batch_norm_and_variance(
            x, gamma, beta, eps=self.eps, axis=self.axis, activation=self.activation, out=out
        )

    def backward(self, dy: Any, x: Any, gamma: Any, beta: Any, *stats: Any) -> tuple[Any, Any, Any]:
        """dx, dgamma and dbeta; dgamma and dbeta in gamma's and beta's shape, and None where those are None."""
        if self.name == "batch_norm_inference":
            dx, dgamma, dbeta = self._inference_backward(dy, x, gamma, beta, *stats)
        else:
            kernel = getattr(fn, f"{self.name}_backward")
            groups = () if self.groups is None else (self.groups,)
            given = {"beta": beta} if self.activation is not None else {}
            dx, dgamma, *rest = kernel(dy, x, *stats, *groups, gamma, **self._options("activation"), **given)
            dbeta = rest[0] if rest else None
        return dx, None if gamma is None else dgamma, None if beta is None else dbeta

    def _inference_backward(self, dy: Any, x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> tuple[Any, Any, Any]:
        """The line y = (x - mean) / sqrt(var + eps) * gamma + beta has no kernel for its slope."""
        dy, x, _ = gradient_and_axis(dy, x, self.axis)
        gamma, beta, mean, var = (None if v is None else as_input(v) for v in (gamma, beta, mean, var))
        how = layout(self, x.shape)
        with np.errstate(all="ignore"):
            scale, shift, center, spread = (
                None if v is None else v.astype(np.float64).reshape(how.param) for v in (gamma, beta, mean, var)
            )
            inverse = inverse_deviation(spread, self.eps)
            xhat = (x - center) * inverse
            slope = inverse if scale is None else inverse * scale
            dz = dy
            if self.activation is not None:
                z = xhat if scale is None else xhat * scale
                z = z if shift is None else z + shift
                function = ELEMENTWISE[self.activation]
                dz = function.backward_kernel(dy, function.kernel(z) if function.saved == "y" else z)
            dgamma, dbeta = (dz * xhat).sum(axis=how.reduced), dz.sum(axis=how.reduced)
            return (
                (dz * slope).astype(result_dtype(dy, x), copy=False),
                None if gamma is None else dgamma.astype(result_dtype(gamma), copy=False),
                None if beta is None else dbeta.astype(result_dtype(beta), copy=False),
            )

    def formula(self, x: Any, gamma: Any, beta: Any, *constants: Any, activations: Mapping[str, Any]) -> Any:
        """y by operators and methods that arrays of every host have, so that the host can differentiate it at will."""
        how = layout(self, x.shape)
        y = x.reshape(how.shape)
        if constants:
            mean, var = (c.reshape(how.param) for c in constants)
            y = (y - mean) * (var + self.eps) ** -0.5
        else:
            if self.name != "rms_norm":
                y = y - y.mean(axis=how.reduced, keepdims=True)
            y = y * ((y * y).mean(axis=how.reduced, keepdims=True) + self.eps) ** -0.5
        y = y if gamma is None else y * gamma.reshape(how.param)
        y = y if beta is None else y + beta.reshape(how.param)
        y = y.reshape(x.shape)
        return y if self.activation is None else activations[self.activation](y)


@dataclass(frozen=True)
class Layout:
    """Where a normalization of a given array takes its statistics, and how its parameters line up with it."""

    shape: tuple[int, ...]  # x is reshaped to this
    reduced: tuple[int, ...]  # the axes of the statistics
    param: tuple[int, ...]  # gamma and beta are reshaped to this
    stats: tuple[int, ...]  # the shape of the statistics as the kernels return them


def layout(norm: Norm, shape: tuple[int, ...]) -> Layout:
    """The layout of a normalization of an array of the given shape."""
    ndim = len(shape)
    axis = normalize_axis(norm.axis, ndim)
    if norm.name in ("batch_norm", "batch_norm_inference"):
        others = tuple(i for i in range(ndim) if i != axis)
        return Layout(shape, others, _only(shape, axis), (shape[axis],))
    if norm.name in ("layer_norm", "rms_norm"):
        return Layout(shape, tuple(range(axis, ndim)), shape[axis:], shape[:axis])
    groups = shape[axis] if norm.groups is None else norm.groups
    split = (*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    reduced = tuple(i for i in range(1, ndim + 1) if i != axis)
    return Layout(split, reduced, _only(split, axis, axis + 1), (shape[0], groups))


def smallest(norm: Norm, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the smallest array for which a normalization takes and refuses what it does for the given shape."""
    first = norm.axis % max(len(shape), 1)
    last = len(shape) - 1 if norm.name in ("layer_norm", "rms_norm") else first
    return tuple(n if first <= i <= last else min(n, 1) for i, n in enumerate(shape))


def along(shape: tuple[int, ...], ndim: int, axis: int) -> tuple[int, ...]:
    """The shape with which a slope of prelu, scalar or (C,), broadcasts against x."""
    return tuple(shape[0] if shape and i == axis % ndim else 1 for i in range(ndim))


def split(shape: tuple[int, ...], pieces: int, axis: int) -> tuple[int, ...]:
    """The shape in which the pieces of a unit of maxout have an axis of their own, behind the units'."""
    axis %= len(shape)
    return (*shape[:axis], shape[axis] // pieces, pieces, *shape[axis + 1 :])


def _only(shape: tuple[int, ...], *axes: int) -> tuple[int, ...]:
    return tuple(n if i in axes else 1 for i, n in enumerate(shape))


def _norm(name: str, eps: Any, axis: Any, groups: int | None = None, activation: Any = None) -> Norm:
    """A normalization with what a user gave as plain values, or fastnn's error."""
    fused_activation(activation)
    return Norm(name, _real(eps, "eps"), integer(axis, "axis"), groups, activation)


def normalizations(call: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """The public normalizations of a host; ``call(norm, x, gamma, beta, *constants)`` gives y as the host's array."""

    def batch_norm(x, gamma=None, beta=None, *, eps=1e-5, axis=1, activation=None):
        """fastnn.batch_norm: y alone, differentiable with respect to x, gamma and beta."""
        return call(_norm("batch_norm", eps, axis, activation=activation), x, gamma, beta)

    def batch_norm_inference(x, mean, var, gamma=None, beta=None, *, eps=1e-5, axis=1, activation=None):
        """fastnn.batch_norm_inference, differentiable with respect to x, gamma and beta; mean and var are constants."""
        return call(_norm("batch_norm_inference", eps, axis, activation=activation), x, gamma, beta, mean, var)

    def layer_norm(x, gamma=None, beta=None, *, eps=1e-5, axis=-1):
        """fastnn.layer_norm: y alone, differentiable with respect to x, gamma and beta."""
        return call(_norm("layer_norm", eps, axis), x, gamma, beta)

    def rms_norm(x, gamma=None, *, eps=1e-5, axis=-1):
        """fastnn.rms_norm: y alone, differentiable with respect to x and gamma."""
        return call(_norm("rms_norm", eps, axis), x, gamma, None)

    def group_norm(x, groups, gamma=None, beta=None, *, eps=1e-5, axis=1):
        """fastnn.group_norm: y alone, differentiable with respect to x, gamma and beta."""
        return call(_norm("group_norm", eps, axis, integer(groups, "groups")), x, gamma, beta)

    def instance_norm(x, gamma=None, beta=None, *, eps=1e-5, axis=1):
        """fastnn.instance_norm: y alone, differentiable with respect to x, gamma and beta."""
        return call(_norm("instance_norm", eps, axis), x, gamma, beta)

    return batch_norm, batch_norm_inference, layer_norm, rms_norm, group_norm, instance_norm
