"""JAX: fastnn's kernels as functions of JAX arrays that can be jitted, differentiated in reverse mode and vmapped.

    from fastnn.backends import jax as F
    jax.jit(jax.grad(lambda x: F.gelu(x).sum()))(x)

Names and parameters are fastnn's; parameters are static (a traced alpha is refused). Values that only a backward pass
needs are not returned: normalizations and maxout give y alone, cross_entropy the loss. A kernel is reached by
jax.pure_callback, which costs tens of microseconds a call and is opaque to XLA's fusion: docs/backends.md says
what it is good for all the same, and when JAX waits for its own callbacks for ever. The derivative is a kernel too, and
can be differentiated again; forward mode (jvp, jacfwd) is not available.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import fastnn as fn
from fastnn import _checks, runtime
from fastnn.backends import _functions, _host

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise _host.absent("jax") from error

_host.check_version("jax", jax.__version__)


def _warn_of_waiting() -> None:
    """On one processor the thread that runs a callback is the one that should bring its arguments."""
    if runtime._affinity() == 1 and jax.config.values.get("jax_cpu_enable_async_dispatch", False):
        warnings.warn(
            "on a single processor JAX can wait for ever for the arguments of a callback, as these functions are; call "
            'jax.config.update("jax_cpu_enable_async_dispatch", False) before fastnn.backends.jax is imported',
            RuntimeWarning,
            stacklevel=3,
        )


_warn_of_waiting()

__all__ = [*_functions.NAMES, *_functions.NORMALIZATIONS]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...  # the functions that are made from tables below


_FLOATS = (np.float16, np.float32, np.float64)


def _checked(x: Any, name: str = "x") -> Any:
    """x as a JAX array that a kernel takes: integers and bools become JAX's default floating dtype."""
    x = jnp.asarray(x)
    if x.dtype in _FLOATS:
        return x
    if jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            f"{name} has dtype {x.dtype}; accepted are float16, float32, float64, integers and bools; "
            f"convert it first, as in {name}.astype('float32')"
        )
    return x.astype(jnp.result_type(float))


def _like(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _call(kernel: Callable[..., Any], result: Any, *arrays: Any, batched: bool = False) -> Any:
    """kernel(*arrays) on the host. Under vmap it sees the whole batch where ``batched``, else one example at a time."""
    method = "broadcast_all" if batched else "sequential"
    return jax.pure_callback(lambda *host: kernel(*map(np.asarray, host)), result, *arrays, vmap_method=method)


def _unary(function: _functions.Function, slope: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """A function of one array, whose derivative needs x or y alone.

    slope(dy, saved, *params) is the derivative by JAX's functions, for JAX to differentiate. An elementwise function
    goes without: its second derivative is written out.
    """

    # A batch is more of the same for an elementwise function, and for softmax along an axis counted from the end.
    # (Of a scalar, softmax along -1 is 1; of a batch of scalars it would be something else.)
    def whole(params: Any, x: Any) -> bool:
        return slope is None or (params[0] < 0 and x.ndim > 0)

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def forward(params: Any, x: Any) -> Any:
        return _call(lambda x: function.kernel(x, *params), _like(x), x, batched=whole(params, x))

    def forward_save(params: Any, x: Any) -> Any:
        y = forward(params, x)
        return y, y if function.saved == "y" else x

    def forward_vjp(params: Any, saved: Any, dy: Any) -> Any:
        return (backward(params, dy, saved),)

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def backward(params: Any, dy: Any, saved: Any) -> Any:
        def kernel(dy: Any, saved: Any) -> Any:
            return function.backward_kernel(dy, saved, *params)

        return _call(kernel, _like(saved), dy, saved, batched=whole(params, saved))

    def backward_save(params: Any, dy: Any, saved: Any) -> Any:
        return backward(params, dy, saved), (dy, saved)

    def backward_vjp(params: Any, kept: Any, g: Any) -> Any:
        dy, saved = kept
        if slope is not None:
            return jax.vjp(lambda dy, saved: slope(dy, saved, *params), dy, saved)[1](g)

        def second(saved: Any) -> Any:
            return _functions.second_derivative(function.name, saved, *params)

        return backward(params, g, saved), g * dy * _call(second, _like(saved), saved, batched=True)

    forward.defvjp(forward_save, forward_vjp)
    backward.defvjp(backward_save, backward_vjp)

    def public(x: Any, *params: Any) -> Any:
        x = _checked(x)
        function.kernel(np.zeros((0,) * x.ndim, x.dtype), *params)  # a bad parameter fails here, not in the callback
        return forward(params, x)

    return function.public(public, "JAX")


def _with_formula(
    forward: Callable[..., Any], backward: Callable[..., Any], formula: Callable[..., Any], results: Callable[..., Any]
) -> Callable[..., Any]:
    """A function of (static, *arrays) whose value and first derivative are kernels', and every other derivative JAX's.

    forward(static, *arrays) gives [y, *saved], of the kinds that results(static, *arrays) lists; backward(static, dy,
    arrays, saved) the derivatives by the arrays; formula(static, *arrays) y by JAX's functions. Arrays may be None;
    one of integers is a constant.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def both(static: Any, *arrays: Any) -> Any:
        def kernel(*present: Any) -> Any:
            y, *saved = forward(static, *_spread(arrays, present))
            return np.asarray(y), *map(_pack, saved)

        kind, *saved_kinds = results(static, *arrays)
        y, *saved = _call(kernel, (kind, *map(_packed_kind, saved_kinds)), *_present(arrays))
        return y, tuple(saved)

    def both_save(static: Any, *arrays: Any) -> Any:
        y, saved = both(static, *arrays)
        return (y, saved), (arrays, saved)

    def both_vjp(static: Any, kept: Any, gradients: Any) -> Any:
        arrays, saved = kept
        found = iter(derivative(static, gradients[0], arrays, saved))
        return tuple(next(found) if _varies(array) else None for array in arrays)

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def derivative(static: Any, dy: Any, arrays: Any, saved: Any) -> Any:
        def kernel(dy: Any, *rest: Any) -> Any:
            count = len(_present(arrays))
            kinds = results(static, *arrays)[1:]
            stats = [_unpack(stat, kind) for stat, kind in zip(rest[count:], kinds, strict=True)]
            found = backward(static, dy, _spread(arrays, rest[:count]), stats)
            return tuple(
                np.asarray(part, array.dtype) for part, array in zip(found, arrays, strict=True) if _varies(array)
            )

        kinds = tuple(_like(array) for array in arrays if _varies(array))
        return _call(kernel, kinds, dy, *_present(arrays), *saved)

    def derivative_save(static: Any, dy: Any, arrays: Any, saved: Any) -> Any:
        return derivative(static, dy, arrays, saved), (dy, arrays)

    def derivative_vjp(static: Any, kept: Any, gradients: Any) -> Any:
        dy, arrays = kept

        def first(dy: Any, varying: Any) -> Any:
            def by_formula(*varying: Any) -> Any:
                rest = iter(varying)
                return formula(static, *(next(rest) if _varies(array) else array for array in arrays))

            return jax.vjp(by_formula, *varying)[1](dy)

        by_dy, by_varying = jax.vjp(first, dy, tuple(filter(_varies, arrays)))[1](tuple(gradients))
        rest = iter(by_varying)
        return by_dy, tuple(next(rest) if _varies(array) else None for array in arrays), None

    both.defvjp(both_save, both_vjp)
    derivative.defvjp(derivative_save, derivative_vjp)
    return lambda static, *arrays: both(static, *arrays)[0]


def _varies(array: Any) -> bool:
    """Whether there is a derivative by this argument: it is there, and no integers."""
    return array is not None and jnp.issubdtype(array.dtype, jnp.floating)


def _present(arrays: Any) -> list[Any]:
    return [array for array in arrays if array is not None]


def _spread(arrays: Any, values: Any) -> list[Any]:
    """The inverse of _present: values in the arrays' places, None where there is none."""
    rest = iter(values)
    return [None if array is None else next(rest) for array in arrays]


# JAX has no 64-bit numbers unless it is told to, but the statistics of a normalization must keep theirs between
# forward and backward: they travel as pairs of 32-bit integers.
def _pack(value: Any) -> Any:
    value = np.asarray(value)
    return np.array(value, order="C")[..., None].view(np.uint32) if value.dtype.itemsize == 8 else value


def _packed_kind(kind: Any) -> Any:
    return jax.ShapeDtypeStruct((*kind.shape, 2), np.uint32) if kind.dtype.itemsize == 8 else kind


def _unpack(value: Any, kind: Any) -> Any:
    return np.ascontiguousarray(value).view(kind.dtype)[..., 0] if kind.dtype.itemsize == 8 else value


class _Kind:
    """A result's shape and dtype, 64-bit ones too (jax.ShapeDtypeStruct would warn of those)."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)


def _softmax_slope(dy: Any, y: Any, axis: int) -> Any:
    return y * (dy - (dy * y).sum(axis, keepdims=True))


def _log_softmax_slope(dy: Any, y: Any, axis: int) -> Any:
    return dy - jnp.exp(y) * dy.sum(axis, keepdims=True)


def _maxout_kinds(static: Any, x: Any) -> list[Any]:
    pieces, axis = static
    shape = list(x.shape)
    shape[axis] //= pieces
    return [jax.ShapeDtypeStruct(tuple(shape), x.dtype), _Kind(tuple(shape), np.intp)]


def _maxout_formula(static: Any, x: Any) -> Any:
    pieces, axis = static
    return x.reshape(_functions.split(x.shape, pieces, axis)).max(axis % x.ndim + 1)


def _cross_entropy_formula(static: Any, logits: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


def _normalize_kinds(norm: _functions.Norm, x: Any, *arrays: Any) -> list[Any]:
    stats = _functions.layout(norm, x.shape).stats
    count = {"rms_norm": 1, "batch_norm_inference": 0}.get(norm.name, 2)
    return [_like(x), *(_Kind(stats, np.float64) for _ in range(count))]


def _normalize_forward(norm: _functions.Norm, *arrays: Any) -> Any:
    y, *stats = norm.forward(*arrays)
    return [y] if norm.name == "batch_norm_inference" else [y, *stats]


def _normalize_backward(norm: _functions.Norm, dy: Any, arrays: Any, saved: Any) -> Any:
    stats = arrays[3:] or saved
    found = norm.backward(dy, *arrays[:3], *stats)
    return *found, *map(np.zeros_like, arrays[3:])  # mean and variance of batch_norm_inference count as constants


_prelu = _with_formula(
    lambda axis, x, slope: [fn.prelu(x, slope, axis=axis)],
    lambda axis, dy, arrays, saved: fn.prelu_backward(dy, *arrays, axis=axis),
    lambda axis, x, slope: jnp.where(x > 0, x, x * slope.reshape(_functions.along(slope.shape, x.ndim, axis))),
    lambda axis, x, slope: [_like(x)],
)
_maxout = _with_formula(
    lambda static, x: fn.maxout(x, *static),
    lambda static, dy, arrays, saved: [fn.maxout_backward(dy, saved[0], *static)],
    _maxout_formula,
    _maxout_kinds,
)
_cross_entropy = _with_formula(
    lambda static, logits, labels: fn.cross_entropy(logits, labels),
    lambda static, dy, arrays, saved: [dy * saved[0], None],
    _cross_entropy_formula,
    lambda static, logits, labels: [jax.ShapeDtypeStruct((), logits.dtype), _like(logits)],
)
_normalization = _with_formula(
    _normalize_forward,
    _normalize_backward,
    lambda norm, *arrays: norm.formula(*arrays[:3], *map(jax.lax.stop_gradient, arrays[3:]), activations=globals()),
    _normalize_kinds,
)


# Bad arguments fail in these functions, with the errors of fastnn's own, not in the callback. Only a label outside the
# classes is found there: labels may be traced.


def _blank(array: Any) -> Any:
    """An array that stands in for one that may be traced, where shape and dtype are checked."""
    return np.ones(array.shape, array.dtype)


def prelu(x: Any, slope: Any, *, axis: int = 1) -> Any:
    """fastnn.prelu for JAX, differentiable with respect to x and slope."""
    x = _checked(x)
    slope = jnp.asarray(slope, x.dtype)
    _, axis = _checks.as_slope(_blank(slope), x.shape, axis)
    return _prelu(axis, x, slope)


def maxout(x: Any, pieces: int = 2, axis: int = 1) -> Any:
    """y of fastnn.maxout for JAX, differentiable with respect to x."""
    x = _checked(x)
    axis = _checks.normalize_axis(axis, x.ndim)
    return _maxout((_checks.check_pieces(pieces, x.shape[axis], axis), axis), x)


def cross_entropy(logits: Any, labels: Any) -> Any:
    """The loss of fastnn.cross_entropy for JAX, differentiable with respect to the logits."""
    logits, labels = _checked(logits, "logits"), jnp.asarray(_functions.labels(labels))
    _checks.check_logits(logits)
    _checks.as_labels(np.zeros(labels.shape, labels.dtype), *logits.shape)
    return _cross_entropy(None, logits, labels)


def _normalize(norm: _functions.Norm, x: Any, *arrays: Any) -> Any:
    x = _checked(x)
    arrays = tuple(None if array is None else jnp.asarray(array) for array in arrays)
    blanks = [None if array is None else _blank(array) for array in arrays]
    norm.forward(np.ones(_functions.smallest(norm, x.shape), x.dtype), *blanks)
    return _normalization(norm, x, *arrays)


_functions.publish(
    globals(),
    *map(_unary, _functions.ELEMENTWISE.values()),
    _unary(_functions.SOFTMAX["softmax"], _softmax_slope),
    _unary(_functions.SOFTMAX["log_softmax"], _log_softmax_slope),
    *_functions.normalizations(_normalize),
)
