"""HIPS autograd: the activations and normalizations as primitives that autograd can differentiate.

    from autograd import grad
    from fastnn.backends import autograd as F
    grad(lambda x: F.gelu(x).sum())(np.linspace(-3, 3, 7))

Names and parameters are fastnn's. Values that only a backward pass needs are not returned: normalizations and maxout
give y alone, cross_entropy the loss. The first derivative in reverse mode runs on the kernels. It can be
differentiated again, and forward mode works too: there, autograd differentiates a formula, or the second derivative
is written out.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

import fastnn as fn
from fastnn.backends import _functions, _host

try:
    import autograd.numpy as anp
    from autograd import make_jvp, make_vjp
    from autograd.builtins import tuple as traced_tuple
    from autograd.extend import defjvp, defjvp_argnums, defvjp, defvjp_argnums, primitive, vspace
    from autograd.tracer import getval, isbox
except ImportError as error:
    raise _host.absent("autograd") from error

_host.check_version("autograd", version("autograd"))

__all__ = [*_functions.NAMES, *_functions.NORMALIZATIONS]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...  # the functions that are made from tables below


def _traced(*values: Any) -> bool:
    """Whether a derivative with respect to one of these is wanted, so that its value from a kernel is not enough."""
    return any(isbox(value) for value in values)


def _elementwise(function: _functions.Function) -> Callable[..., Any]:
    @primitive
    def forward(x: Any, *params: Any) -> Any:
        return function.kernel(x, *params)

    @primitive
    def derivative(saved: Any, *params: Any) -> Any:
        return function.backward_kernel(np.ones_like(saved), saved, *params)

    @primitive
    def second(saved: Any, *params: Any) -> Any:
        return _functions.second_derivative(function.name, saved, *params)

    def backward(dy: Any, y: Any, x: Any, *params: Any) -> Any:
        saved = y if function.saved == "y" else x
        if _traced(dy, saved):
            return dy * derivative(saved, *params)
        return function.backward_kernel(dy, saved, *params)

    defvjp(forward, lambda y, x, *params: lambda dy: backward(dy, y, x, *params), argnums=(0,))
    defjvp(forward, lambda dx, y, x, *params: backward(dx, y, x, *params), argnums=(0,))
    defvjp(derivative, lambda d, saved, *params: lambda g: g * second(saved, *params), argnums=(0,))
    defjvp(derivative, lambda g, d, saved, *params: g * second(saved, *params), argnums=(0,))
    return function.public(forward, "autograd")


def _with_formula(forward: Callable[..., Any], backward: Callable[..., Any], formula: Callable[..., Any]) -> Any:
    """A function whose value and first derivative are kernels', and whose every other derivative is the formula's.

    forward(*args) gives y and what backward is to be given; backward(dy, args, saved) the derivatives by args.
    """

    @primitive
    def both(*args: Any) -> Any:  # a primitive can hand something to its derivative only by returning it
        return forward(*args)

    def vjp(argnums: Any, result: Any, args: Any, kwargs: Any) -> Callable[[Any], Any]:
        def gradients(g: Any) -> Any:
            if _traced(g, g[0], *args):
                return tuple(make_vjp(formula, argnum)(*args)[0](g[0]) for argnum in argnums)
            by_argument = backward(g[0], args, result[1:])
            return tuple(by_argument[argnum] for argnum in argnums)

        return gradients

    def jvp(argnums: Any, tangents: Any, result: Any, args: Any, kwargs: Any) -> Any:
        parts = [make_jvp(formula, argnum)(*args)(g)[1] for argnum, g in zip(argnums, tangents, strict=True)]
        return traced_tuple((sum(parts[1:], parts[0]), *(vspace(value).zeros() for value in result[1:])))

    defvjp_argnums(both, vjp)
    defjvp_argnums(both, jvp)
    return lambda *args: both(*args)[0]


def _softmax_formula(x: Any, axis: int) -> Any:
    e = anp.exp(x - anp.max(x, axis=axis, keepdims=True))
    return e / anp.sum(e, axis=axis, keepdims=True)


def _log_softmax_formula(x: Any, axis: int) -> Any:
    x = x - anp.max(x, axis=axis, keepdims=True)
    return x - anp.log(anp.sum(anp.exp(x), axis=axis, keepdims=True))


def _maxout_formula(x: Any, pieces: int, axis: int) -> Any:
    return anp.max(anp.reshape(x, _functions.split(x.shape, pieces, axis)), axis=axis % x.ndim + 1)


def _cross_entropy_formula(logits: Any, labels: Any) -> Any:
    return -anp.mean(_log_softmax_formula(logits, 1)[anp.arange(len(labels)), labels])


def _softmax(function: _functions.Function, formula: Callable[..., Any]) -> Callable[..., Any]:
    def forward(x: Any, axis: int) -> Any:
        y = function.kernel(x, axis)
        return y, y

    def backward(dy: Any, args: Any, saved: Any) -> Any:
        return [function.backward_kernel(dy, saved[0], args[1])]

    return function.public(_with_formula(forward, backward, formula), "autograd")


_prelu = _with_formula(
    lambda x, slope, axis: (fn.prelu(x, slope, axis=axis),),
    lambda dy, args, saved: fn.prelu_backward(dy, *args[:2], axis=args[2]),
    lambda x, slope, axis: anp.where(
        x > 0, x, x * anp.reshape(slope, _functions.along(anp.shape(slope), x.ndim, axis))
    ),
)
_maxout = _with_formula(
    fn.maxout,
    lambda dy, args, saved: [fn.maxout_backward(dy, saved[0], *args[1:])],
    _maxout_formula,
)
_cross_entropy = _with_formula(
    fn.cross_entropy,
    lambda dy, args, saved: [float(dy) * saved[0]],  # a Python float leaves the gradient the logits' dtype
    _cross_entropy_formula,
)
_normalize = _with_formula(
    lambda norm, *arrays: norm.forward(*arrays),
    lambda dy, args, stats: (None, *args[0].backward(dy, *args[1:4], *stats)),
    lambda norm, *arrays: norm.formula(*arrays, activations=globals()),
)


def prelu(x: Any, slope: Any, *, axis: int = 1) -> Any:
    """fastnn.prelu for autograd, differentiable with respect to x and slope."""
    return _prelu(x, slope, axis)


def maxout(x: Any, pieces: int = 2, axis: int = 1) -> Any:
    """y of fastnn.maxout for autograd, differentiable with respect to x."""
    return _maxout(x, pieces, axis)


def cross_entropy(logits: Any, labels: Any) -> Any:
    """The loss of fastnn.cross_entropy for autograd, differentiable with respect to the logits."""
    return _cross_entropy(logits, labels)


_functions.publish(
    globals(),
    *map(_elementwise, _functions.ELEMENTWISE.values()),
    _softmax(_functions.SOFTMAX["softmax"], _softmax_formula),
    _softmax(_functions.SOFTMAX["log_softmax"], _log_softmax_formula),
    # mean and variance of batch_norm_inference count as constants
    *_functions.normalizations(lambda norm, *arrays: _normalize(norm, *arrays[:3], *map(getval, arrays[3:]))),
)
