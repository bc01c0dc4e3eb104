"""Activations in plain NumPy: the formulas behind `fastnn.activations`, and the oracle that the kernels are tested by.

Rules that hold for every function here, and for its compiled twin:

* Inputs are arrays or anything that NumPy makes an array of. float16, float32 and float64 stay what they are, integers
  and bools become float64. Complex, object, string, date and long double arrays, and masked arrays, are a TypeError.
* `f(x, *params, out=None)` is the function, `f_backward(dy, saved, *params, out=None)` = dL/dx its derivative times
  the gradient dy of the loss with respect to the output. `saved` is what the forward pass has to keep: the output y or
  the input x, as each docstring says. dy has exactly saved's shape, else ValueError; their dtypes combine as in NumPy.
* `out` receives the result. It must have the result's shape (else ValueError) and dtype (else TypeError), be writeable
  (else ValueError), and may overlap the inputs in any way.
* A parameter that is no real number is a TypeError; one that is not finite or out of range a ValueError. It is rounded
  to the dtype in which the compiled kernel computes: float64 for float64, float32 for float32 and float16.
* NaN gives NaN. Where the derivative is piecewise constant dy is selected, not multiplied, so a NaN or Inf in dy at a
  derivative of exactly 0 gives 0. No floating-point warning is raised.

Here everything is computed in float64 and rounded once. The formulas are written so that they neither overflow nor
cancel, which is why some look different from the textbook's, given in each docstring.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fastnn import _checks
from fastnn.reference import _numerics as num

__all__ = [
    "celu",
    "celu_backward",
    "cross_entropy",
    "elu",
    "elu_backward",
    "gelu",
    "gelu_backward",
    "hardsigmoid",
    "hardsigmoid_backward",
    "hardswish",
    "hardswish_backward",
    "hardtanh",
    "hardtanh_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "log_sigmoid",
    "log_sigmoid_backward",
    "log_softmax",
    "log_softmax_backward",
    "maxout",
    "maxout_backward",
    "mish",
    "mish_backward",
    "prelu",
    "prelu_backward",
    "relu",
    "relu6",
    "relu6_backward",
    "relu_backward",
    "selu",
    "selu_backward",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "softplus",
    "softplus_backward",
    "softsign",
    "softsign_backward",
    "tanh",
    "tanh_backward",
]

Array = np.ndarray[Any, np.dtype[Any]]

SELU_SCALE = 1.0507009873554805
SELU_ALPHA = 1.6732632423543772
SELU_SCALE_ALPHA = 1.7580993408473768


def _forward(formula: Callable[..., Any], x: Any, out: Any, **params: tuple[Any, str]) -> Array:
    """Check x, out and the parameters (name=(value, what it must be)), apply the formula in float64, round once."""
    x = _checks.as_input(x)
    dtype = _checks.result_dtype(x)
    numbers = _numbers(dtype, params)
    _checks.check_out(out, x.shape, dtype)
    with np.errstate(all="ignore"):
        return _deliver(formula(x.astype(np.float64), **numbers), dtype, out)


def _backward(formula: Callable[..., Any], dy: Any, saved: Any, out: Any, **params: tuple[Any, str]) -> Array:
    """As `_forward`, for formula(dy, saved, **params); NaN in saved gives NaN."""
    dy = _checks.as_input(dy, "dy")
    saved = _checks.as_input(saved, "saved")
    _checks.check_same_shape(dy, saved)
    dtype = _checks.result_dtype(dy, saved)
    numbers = _numbers(dtype, params)
    _checks.check_out(out, dy.shape, dtype)
    with np.errstate(all="ignore"):
        dx = formula(dy.astype(np.float64), saved.astype(np.float64), **numbers)
        return _deliver(np.where(np.isnan(saved), np.nan, dx), dtype, out)


def _numbers(dtype: np.dtype[Any], params: dict[str, tuple[Any, str]]) -> dict[str, float]:
    compute = _checks.compute_dtype(dtype)
    numbers = {name: _checks.real_param(value, name, must_be, compute) for name, (value, must_be) in params.items()}
    if "min_val" in params:  # what was given, not what it is rounded to
        _checks.check_bounds(params["min_val"][0], params["max_val"][0])
    return numbers


def _deliver(value: Any, dtype: np.dtype[Any], out: Any) -> Array:
    """`value` rounded to dtype, written into `out` where there is one."""
    result = np.asarray(value).astype(dtype)
    if out is None:
        return result
    out[...] = result
    return out


# --- functions that saturate -------------------------------------------------------------------------------------


def sigmoid(x: ArrayLike, *, out: Array | None = None) -> Array:
    """Logistic function, 1 / (1 + exp(-x)). Its backward saves y."""
    return _forward(num.logistic, x, out)


def sigmoid_backward(dy: ArrayLike, saved: ArrayLike, *, out: Array | None = None) -> Array:
    """dy * y * (1 - y), saved = y."""

    def formula(dy: Array, y: Array) -> Array:
        return dy * (y * (1.0 - y))

    return _backward(formula, dy, saved, out)


def tanh(x: ArrayLike, *, out: Array | None = None) -> Array:
    """Hyperbolic tangent, (exp(x) - exp(-x)) / (exp(x) + exp(-x)). Its backward saves y."""
    return _forward(np.tanh, x, out)


def tanh_backward(dy: ArrayLike, saved: ArrayLike, *, out: Array | None = None) -> Array:
    """dy * (1 - y**2), saved = y; as (1 - y)(1 + y), which does not cancel near |y| = 1."""

    def formula(dy: Array, y: Array) -> Array:
        return dy * ((1.0 - y) * (1.0 + y))

    return _backward(formula, dy, saved, out)


def softsign(x: ArrayLike, *, out: Array | None = None) -> Array:
    """x / (1 + abs(x)) (Bergstra et al. 2009). Its backward saves x."""

    def formula(x: Array) -> Array:
        return np.where(np.isinf(x), np.sign(x), x / (1.0 + np.abs(x)))

    return _forward(formula, x, out)


def softsign_backward(dy: ArrayLike, saved: ArrayLike, *, out: Array | None = None) -> Array:
    """dy / (1 + abs(x))**2, saved = x."""

    def formula(dy: Array, x: Array) -> Array:
        root = 1.0 / (1.0 + np.abs(x))
        return dy * (root * root)

    return _backward(formula, dy, saved, out)


# --- piecewise linear functions ----------------------------------------------------------------------------------


def relu(x: ArrayLike, *, out: Array | None = None) -> Array:
    """max(x, 0) (Nair and Hinton 2010). Its backward takes x or y, whichever was kept."""

    def formula(x: Array) -> Array:
        return np.maximum(x, 0.0)

    return _forward(formula, x, out)


def relu_backward(dy: ArrayLike, saved: ArrayLike, *, out: Array | None = None) -> Array:
    """dy where saved > 0, else 0; saved = x or y."""

    def formula(dy: Array, saved: Array) -> Array:
        return np.where(saved > 0, dy, 0.0)

    return _backward(formula, dy, saved, out)


def leaky_relu(x: ArrayLike, negative_slope: float = 0.01, *, out: Array | None = None) -> Array:
    """x where x > 0, else negative_slope * x (Maas et al. 2013). Its backward saves x."""

    def formula(x: Array, negative_slope: float) -> Array:
        return np.where(x > 0, x, _sloped(negative_slope, x))

    return _forward(formula, x, out, negative_slope=(negative_slope, "finite"))


def leaky_relu_backward(
    dy: ArrayLike, saved: ArrayLike, negative_slope: float = 0.01, *, out: Array | None = None
) -> Array:
    """dy where x > 0, else negative_slope * dy; saved = x."""

    def formula(dy: Array, x: Array, negative_slope: float) -> Array:
        return np.where(x > 0, dy, _selected(negative_slope, dy))

    return _backward(formula, dy, saved, out, negative_slope=(negative_slope, "finite"))


def _sloped(slope: Any, x: Array) -> Array:
    """slope * x for x that is not positive, and relu where slope is 0: its limit at -Inf, and the same zeros."""
    return np.where(slope == 0, np.where(x < 0, 0.0, x), slope * x)


def _selected(slope: Any, dy: Array) -> Array:
    """slope * dy, and 0 where slope is 0 whatever dy is."""
    return np.where(slope == 0, 0.0, slope * dy)


def relu6(x: ArrayLike, *, out: Array | None = None) -> Array:
    """min(max(x, 0), 6) (Krizhevsky 2010). Its backward saves x."""
    return _forward(_clip, x, out, min_val=(0.0, "finite"), max_val=(6.0, "finite"))


def relu6_backward(dy: ArrayLike, saved: ArrayLike, *, out: Array | None = None) -> Array:
    """dy where 0 < x < 6, else 0; saved = x."""
    return _backward(_clip_backward, dy, saved, out, min_val=(0.0, "finite"), max_val=(6.0, "finite"))


def hardtanh(x: ArrayLike, min_val: float = -1.0, max_val: float = 1.0, *, out: Array | None = None) -> Array:
    """min(max(x, min_val), max_val) (Collobert 2004); ValueError where min_val > max_val. Its backward saves x.

    ONNX's HardSigmoid with its own constants is hardtanh(alpha * x + beta, 0, 1).
    """
    return _forward(_clip, x, out, min_val=(min_val, "finite"), max_val=(max_val, "finite"))


def hardtanh_backward(
    dy: ArrayLike, saved: ArrayLike, min_val: float = -1.0, max_val: float = 1.0, *, out: Array | None = None
) -> Array:
    """dy where min_val < x < max_val, else 0; saved = x."""
    return _backward(_clip_backward, dy, saved, out, min_val=(min_val, "finite"), max_val=(max_val, "finite"))


def _clip(x: Array, min_val: float, max_val: float) -> Array:
    return np.where(x < min_val, min_val, np.where(x > max_val, max_val, x))  # x itself at a bound, so -0.0 stays -0.0


def _clip_backward(dy: Array, x: Array, min_val: float, max_val: float) -> Array:
    return np.where((min_val < x) & (x < max_val), dy, 0.0)


def hardsigmoid(x: ArrayLike, *, out: Array | None = None) -> Array:
    """min(max(x + 3, 0), 6) / 6, as in PyTorch and MobileNetV3 (Howard et al. 2019). Its backward saves x.

    ONNX's HardSigmoid with its own constants is hardtanh(alpha * x + beta, 0, 1).
    """

    def formula(x: Array) -> Array:
        return _clip(x + 3.0, 0.0, 6.0) / 6.0

    return _forward(formula, x, out)


def hardsigmoid_backward(dy: ArrayLike, saved: ArrayLike, *, out: Array | None = None) -> Array:
    """dy / 6 where -3 < x < 3, else 0; saved = x."""

    def formula(dy: Array, x: Array) -> Array:
        return _clip_backward(dy / 6.0, x, -3.0, 3.0)

    return _backward(formula, dy, saved, out)


def hardswish(x: ArrayLike, *, out: Array | None = None) -> Array:
    """x * min(max(x + 3, 0), 6) / 6 (Howard et al. 2019). Its backward saves x."""

    def formula(x: Array) -> Array:
        return np.where(x <= -3, 0.0, x * (_clip(x + 3.0, 0.0, 6.0) / 6.0))

    return _forward(formula, x, out)


def hardswish_backward(dy: ArrayLike, saved: ArrayLike, *, out: Array | None = None) -> Array:
    """0 where x <= -3, dy where x >= 3, else dy * (2*x + 3) / 6; saved = x."""

    def formula(dy: Array, x: Array) -> Array:
        return np.where(x <= -3, 0.0, np.where(x >= 3, dy, dy * ((2.0 * x + 3.0) / 6.0)))

    return _backward(formula, dy, saved, out)


def prelu(x: ArrayLike, slope: ArrayLike, *, axis: int = 1, out: Array | None = None) -> Array:
    """x where x > 0, else slope * x, with a learned slope (He et al. 2015). Its backward saves x.

    slope is a scalar, which goes with x of any shape, or has shape (C,), one slope a channel, C = x.shape[axis];
    another shape is a ValueError, an axis that x does not have an AxisError. The result has x's dtype; slope is rounded
    to the dtype in which the kernel computes.
    """
    x = _checks.as_input(x)
    dtype = _checks.result_dtype(x)
    slope, axis = _checks.as_slope(slope, x.shape, axis)
    _checks.check_out(out, x.shape, dtype)
    with np.errstate(all="ignore"):
        x = x.astype(np.float64)
        y = np.where(x > 0, x, _sloped(_along(slope, x, axis, dtype), x))
        return _deliver(y, dtype, out)


def prelu_backward(
    dy: ArrayLike, x: ArrayLike, slope: ArrayLike, *, axis: int = 1, out: Array | None = None
) -> tuple[Array, Array]:
    """(dx, dslope): dx = dy where x > 0, else slope * dy; dslope = the sum of dy * x where x <= 0.

    dslope has slope's shape and dtype; `out` receives dx.
    """
    dy = _checks.as_input(dy, "dy")
    x = _checks.as_input(x)
    _checks.check_same_shape(dy, x, "x")
    dtype = _checks.result_dtype(dy, x)
    slope, axis = _checks.as_slope(slope, x.shape, axis)
    _checks.check_out(out, x.shape, dtype)
    with np.errstate(all="ignore"):
        dy = dy.astype(np.float64)
        x = x.astype(np.float64)
        along = _along(slope, x, axis, dtype)
        # as _selected, but a zero has the sign of the product where there is one
        dx = np.where(x > 0, dy, np.where((along == 0) & ~np.isfinite(dy), 0.0, along * dy))
        contributions = np.where(x > 0, 0.0, dy * x)
        others = tuple(i for i in range(x.ndim) if slope.ndim == 0 or i != axis)
        dslope = np.sum(contributions, axis=others)
        return _deliver(np.where(np.isnan(x), np.nan, dx), dtype, out), _deliver(
            dslope, _checks.result_dtype(slope), None
        )


def _along(slope: Array, x: Array, axis: int, dtype: np.dtype[Any]) -> Array:
    """The slopes, rounded to what the kernel computes in, in a shape that broadcasts against x along its axis."""
    rounded = slope.astype(_checks.compute_dtype(dtype)).astype(np.float64)
    return rounded if slope.ndim == 0 else rounded.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


# --- exponential linear units ------------------------------------------------------------------------------------


def elu(x: ArrayLike, alpha: float = 1.0, *, out: Array | None = None) -> Array:
    """x where x > 0, else alpha * (exp(x) - 1) (Clevert et al. 2015). Its backward saves x."""

    def formula(x: Array, alpha: float) -> Array:
        return np.where(x >= 0, x, alpha * np.expm1(_not_positive(x)))

    return _forward(formula, x, out, alpha=(alpha, "finite"))


def elu_backward(dy: ArrayLike, saved: ArrayLike, alpha: float = 1.0, *, out: Array | None = None) -> Array:
    """dy where x > 0, else dy * alpha * exp(x); saved = x."""

    def formula(dy: Array, x: Array, alpha: float) -> Array:
        half = np.exp(_not_positive(x) / 2)  # twice, because a large alpha brings back what underflows alone
        return np.where(x > 0, dy, dy * (alpha * half * half))

    return _backward(formula, dy, saved, out, alpha=(alpha, "finite"))


def _not_positive(x: Array) -> Array:
    return np.where(x > 0, 0.0, x)


def celu(x: ArrayLike, alpha: float = 1.0, *, out: Array | None = None) -> Array:
    """x where x > 0, else alpha * (exp(x / alpha) - 1) (Barron 2017); alpha must not be 0. Its backward saves x."""

    def formula(x: Array, alpha: float) -> Array:
        ratio = _not_positive(x) / alpha
        # Where the ratio is tiny the function is x to the last bit, and a ratio that underflowed would lose it. Where
        # it is large, with a negative alpha, a tiny alpha brings back what overflows alone.
        below = np.where(ratio > 40, alpha * np.exp(ratio / 2) * np.exp(ratio / 2), alpha * np.expm1(ratio))
        return np.where((x > 0) | (np.abs(ratio) < 2.0**-60), x, below)

    return _forward(formula, x, out, alpha=(alpha, "nonzero"))


def celu_backward(dy: ArrayLike, saved: ArrayLike, alpha: float = 1.0, *, out: Array | None = None) -> Array:
    """dy where x >= 0, else dy * exp(x / alpha); saved = x."""

    def formula(dy: Array, x: Array, alpha: float) -> Array:
        return np.where(x >= 0, dy, dy * num.exp(*num.quotient(_not_positive(x), alpha)))

    return _backward(formula, dy, saved, out, alpha=(alpha, "nonzero"))


def selu(x: ArrayLike, *, out: Array | None = None) -> Array:
    """scale * elu(x, alpha), scale = 1.0507009873554805, alpha = 1.6732632423543772 (Klambauer et al. 2017).

    Its backward saves x. ONNX's Selu with other constants is gamma * elu(x, alpha).
    """

    def formula(x: Array) -> Array:
        return np.where(x > 0, SELU_SCALE * x, SELU_SCALE_ALPHA * np.expm1(_not_positive(x)))

    return _forward(formula, x, out)


def selu_backward(dy: ArrayLike, saved: ArrayLike, *, out: Array | None = None) -> Array:
    """dy * scale where x > 0, else dy * scale * alpha * exp(x); saved = x."""

    def formula(dy: Array, x: Array) -> Array:
        return np.where(x > 0, dy * SELU_SCALE, dy * (SELU_SCALE_ALPHA * np.exp(_not_positive(x))))

    return _backward(formula, dy, saved, out)


# --- smooth gates: x times something between 0 and 1 -------------------------------------------------------------


def gelu(x: ArrayLike, approximate: Literal["none", "tanh"] = "none", *, out: Array | None = None) -> Array:
    """Gaussian error linear unit (Hendrycks and Gimpel 2016). Its backward saves x.

    approximate="none": x * Phi(x), Phi the standard normal distribution function;
    approximate="tanh": x / 2 * (1 + tanh(u)) with u = sqrt(2/pi) * (x + 0.044715 * x**3).
    Another string is a ValueError.
    """
    exact = _checks.gelu_variant(approximate) == "gelu"
    return _forward(_gelu if exact else _gelu_tanh, x, out)


def gelu_backward(
    dy: ArrayLike, saved: ArrayLike, approximate: Literal["none", "tanh"] = "none", *, out: Array | None = None
) -> Array:
    """dy * (Phi(x) + x * phi(x)), phi the normal density, or the derivative of the tanh form; saved = x."""
    exact = _checks.gelu_variant(approximate) == "gelu"
    derivative = _gelu_derivative if exact else _gelu_tanh_derivative

    def formula(dy: Array, x: Array) -> Array:
        return dy * derivative(x)

    return _backward(formula, dy, saved, out)


def _gelu(x: Array) -> Array:
    half, density, mills = num.normal_tail(np.abs(x))
    lower = np.maximum(x, -60.0)  # where the function is 0, so that -Inf gives 0
    tail = lower * (mills * density * half) * half  # x * Phi(-|x|)
    return np.where(x < 0, tail, np.where((x == 0) | np.isinf(x), x, x - tail))


def _gelu_derivative(x: Array) -> Array:
    half, density, mills = num.normal_tail(np.abs(x))
    size = np.minimum(np.abs(x), 60.0)
    tail = ((mills - size * num.INV_SQRT_2PI) * density * half) * half  # Phi(-|x|) - |x| * phi(x)
    return np.where(x < 0, tail, 1.0 - tail)


def _gelu_tanh(x: Array) -> Array:
    # (1 + tanh(u)) / 2 is the logistic function of 2*u.
    clipped = _clip(x, -25.0, 25.0)  # beyond, the function is 0 or x in float64
    z, low, _ = _gelu_tanh_argument(clipped)
    return num.times_logistic(np.where(x < 0, clipped, x), z, low)


def _gelu_tanh_derivative(x: Array) -> Array:
    clipped = _clip(x, -25.0, 25.0)
    z, low, x_dz = _gelu_tanh_argument(clipped)
    return num.gate_derivative(x_dz, z, low)


def _gelu_tanh_argument(x: Array) -> tuple[Array, Array, Array]:
    """2*u as high + low, and x times its derivative; an error in 2*u would be magnified by up to 700."""
    first, first_low = num.SQRT_8_OVER_PI
    square, square_low = num.two_product(x, x)
    third, third_low = num.two_product(0.07135481627260025, square)  # 0.044715 * first
    third_low = third_low + 0.07135481627260025 * square_low - 6.175149918155315e-19 * square
    inner, inner_low = num.two_sum(first, third)
    z, low = num.two_product(x, inner)
    low = low + x * (inner_low + third_low + first_low)
    return z, low, x * (first + 3.0 * third)


def silu(x: ArrayLike, *, out: Array | None = None) -> Array:
    """x / (1 + exp(-x)), also called swish (Elfwing et al. 2017). Its backward saves x."""

    def formula(x: Array) -> Array:
        x = np.maximum(x, -800.0)  # where the function is 0, so that -Inf gives 0
        return num.times_logistic(x, x)

    return _forward(formula, x, out)


def silu_backward(dy: ArrayLike, saved: ArrayLike, *, out: Array | None = None) -> Array:
    """dy * s * (1 + x * (1 - s)), s = sigmoid(x); saved = x."""

    def formula(dy: Array, x: Array) -> Array:
        x = _clip(x, -800.0, 800.0)
        return dy * num.gate_derivative(x, x)

    return _backward(formula, dy, saved, out)


def mish(x: ArrayLike, *, out: Array | None = None) -> Array:
    """x * tanh(log1p(exp(x))) (Misra 2019). Its backward saves x.

    tanh(log(1 + e)) = (e**2 + 2*e) / (e**2 + 2*e + 2) with e = exp(x); for x > 0 both are divided by e**2.
    """

    def formula(x: Array) -> Array:
        lower = np.maximum(x, -800.0)
        half = np.exp(-np.abs(lower) / 2)
        e = np.exp(-np.abs(lower))
        negative = (lower * half * ((e + 2.0) / (e * (e + 2.0) + 2.0))) * half
        positive = x * ((1.0 + 2.0 * e) / (1.0 + 2.0 * e * (1.0 + e)))
        return np.where(x < 0, negative, positive)

    return _forward(formula, x, out)


def mish_backward(dy: ArrayLike, saved: ArrayLike, *, out: Array | None = None) -> Array:
    """dy * (t + x * (1 - t**2) * sigmoid(x)), t = tanh(log1p(exp(x))); saved = x.

    With e = exp(x) and n = e * (e + 2): t = n / (n + 2), 1 - t**2 = 4 * (1 + e)**2 / (n + 2)**2.
    """

    def formula(dy: Array, x: Array) -> Array:
        x = _clip(x, -800.0, 800.0)
        half = np.exp(-np.abs(x) / 2)
        e = np.exp(-np.abs(x))
        n_plus_2 = e * (e + 2.0) + 2.0
        negative = (half * (((e + 2.0) * n_plus_2 + 4.0 * x * (1.0 + e)) / (n_plus_2 * n_plus_2))) * half
        divisor = 1.0 + 2.0 * e * (1.0 + e)
        positive = ((1.0 + 2.0 * e) * divisor + 4.0 * x * e * e * (1.0 + e)) / (divisor * divisor)
        return dy * np.where(x < 0, negative, positive)

    return _backward(formula, dy, saved, out)


# --- logarithms of sums of exponentials --------------------------------------------------------------------------


def log_sigmoid(x: ArrayLike, *, out: Array | None = None) -> Array:
    """log(sigmoid(x)) = -log1p(exp(-x)). Its backward saves x."""

    def formula(x: Array) -> Array:
        return np.minimum(x, -0.0) - np.log1p(np.exp(-np.abs(x)))  # -0.0, not 0.0, where the logarithm is 0

    return _forward(formula, x, out)


def log_sigmoid_backward(dy: ArrayLike, saved: ArrayLike, *, out: Array | None = None) -> Array:
    """dy / (1 + exp(x)), saved = x."""

    def formula(dy: Array, x: Array) -> Array:
        return dy * num.logistic(-x)

    return _backward(formula, dy, saved, out)


def softplus(x: ArrayLike, beta: float = 1.0, *, out: Array | None = None) -> Array:
    """log1p(exp(beta * x)) / beta (Dugas et al. 2001); beta must be greater than 0. Its backward saves x.

    There is no threshold beyond which x itself is returned, as other packages have one: the result is exact everywhere.
    """

    def formula(x: Array, beta: float) -> Array:
        z, low = num.two_product(beta, x)
        e = num.exp(-np.abs(z), np.where(z < 0, low, -low))
        half = num.exp(-np.abs(z) / 2, np.where(z < 0, low, -low) / 2)
        # Far below 0, log1p(e) is e; its halves keep e / beta accurate where e alone is subnormal.
        return np.where(z < -40, half / beta * half, np.maximum(x, 0.0) + np.log1p(e) / beta)

    return _forward(formula, x, out, beta=(beta, "positive"))


def softplus_backward(dy: ArrayLike, saved: ArrayLike, beta: float = 1.0, *, out: Array | None = None) -> Array:
    """dy / (1 + exp(-beta * x)), saved = x."""

    def formula(dy: Array, x: Array, beta: float) -> Array:
        return dy * num.logistic(*num.two_product(beta, x))

    return _backward(formula, dy, saved, out, beta=(beta, "positive"))


def softmax(x: ArrayLike, axis: int = -1, *, out: Array | None = None) -> Array:
    """exp(x) / sum(exp(x)) along `axis`. Its backward saves y. A 0-d x is a row of one element.

    -Inf among finite entries gives exactly 0; a row with +Inf, or of -Inf alone, gives NaN.
    """

    def formula(x: Array) -> Array:
        e, others, _, _ = _exponentials(x)
        return e / (1.0 + others)

    return _rows(formula, axis, out, x=x)


def softmax_backward(dy: ArrayLike, saved: ArrayLike, axis: int = -1, *, out: Array | None = None) -> Array:
    """y * (dy - sum(dy * y)) along `axis`, saved = y."""

    def formula(dy: Array, y: Array) -> Array:
        return y * (dy - np.sum(dy * y, axis=-1, keepdims=True))

    return _rows(formula, axis, out, dy=dy, saved=saved)


def log_softmax(x: ArrayLike, axis: int = -1, *, out: Array | None = None) -> Array:
    """log(softmax(x)) = x - log(sum(exp(x))) along `axis`. Its backward saves y. A 0-d x is a row of one element.

    -Inf among finite entries gives -Inf; a row with +Inf, or of -Inf alone, gives NaN.
    """

    def formula(x: Array) -> Array:
        _, others, shifted, low = _exponentials(x)
        return shifted - (np.log1p(others) - low)

    return _rows(formula, axis, out, x=x)


def log_softmax_backward(dy: ArrayLike, saved: ArrayLike, axis: int = -1, *, out: Array | None = None) -> Array:
    """dy - exp(y) * sum(dy) along `axis`, saved = y."""

    def formula(dy: Array, y: Array) -> Array:
        return dy - np.exp(y) * np.sum(dy, axis=-1, keepdims=True)

    return _rows(formula, axis, out, dy=dy, saved=saved)


def _rows(formula: Callable[..., Any], axis: int, out: Any, **arrays: Any) -> Array:
    """Apply the formula to matrices whose rows lie along `axis`. Empty arrays never reach it."""
    inputs = [_checks.as_input(array, name) for name, array in arrays.items()]
    if len(inputs) == 2:
        _checks.check_same_shape(inputs[0], inputs[1])
    shape = inputs[0].shape
    dtype = _checks.result_dtype(*inputs)
    axis = _checks.softmax_axis(axis, len(shape))
    _checks.check_out(out, shape, dtype)
    if inputs[0].size == 0:
        return np.empty(shape, dtype) if out is None else out
    with np.errstate(all="ignore"):
        moved = [np.moveaxis(np.atleast_1d(array.astype(np.float64)), axis, -1) for array in inputs]
        rows = formula(*[array.reshape(-1, array.shape[-1]) for array in moved]).reshape(moved[0].shape)
        return _deliver(np.moveaxis(rows, -1, axis).reshape(shape), dtype, out)


def _exponentials(x: Array) -> tuple[Array, Array, Array, Array]:
    """(exp(x - max), sum of all of them but the largest, x - max as high and low) of the rows of a matrix.

    The largest is 1. Leaving it out of the sum keeps log1p of the rest exact where one entry dominates.
    """
    largest = np.argmax(x, axis=-1)[..., np.newaxis]
    shifted, low = num.two_sum(x, -np.take_along_axis(x, largest, axis=-1))
    e = num.exp(shifted, low)
    rest = e.copy()
    # A NaN (Inf - Inf, or one that was in x) must reach the sum and with it the whole row.
    np.put_along_axis(rest, largest, np.take_along_axis(e, largest, axis=-1) - 1.0, axis=-1)
    return e, np.sum(rest, axis=-1, keepdims=True), shifted, low


# --- functions with more than one array --------------------------------------------------------------------------


def maxout(x: ArrayLike, pieces: int = 2, axis: int = 1, *, out: Array | None = None) -> tuple[Array, Array]:
    """(y, which): the largest of `pieces` neighbours along `axis`, and its index among them (Goodfellow et al. 2013).

    The pieces of a unit lie side by side: (.., C*pieces, ..) is read as (.., C, pieces, ..) and y is (.., C, ..).
    which is intp; the first wins a tie, and NaN wins over everything. `out` receives y. A length of the axis that is
    not a multiple of pieces is a ValueError.
    """
    x = _checks.as_input(x)
    axis = _checks.normalize_axis(axis, x.ndim)
    pieces = _checks.check_pieces(pieces, x.shape[axis], axis)
    units = x.shape[axis] // pieces
    shape = (*x.shape[:axis], units, *x.shape[axis + 1 :])
    dtype = _checks.result_dtype(x)
    _checks.check_out(out, shape, dtype)
    split = x.reshape((math.prod(x.shape[:axis]) * units, pieces, math.prod(x.shape[axis + 1 :])))
    which = np.argmax(split, axis=1, keepdims=True)
    y = np.take_along_axis(split, which, axis=1)
    return _deliver(y.reshape(shape), dtype, out), which.reshape(shape)


def maxout_backward(dy: ArrayLike, which: ArrayLike, pieces: int = 2, axis: int = 1, out: Array | None = None) -> Array:
    """dx: dy at the piece that won, 0 at the others.

    which, integers of dy's shape (else TypeError and ValueError), is what `maxout` returned; an index that is not in
    0..pieces-1 is a ValueError.
    """
    dy = _checks.as_input(dy, "dy")
    axis = _checks.normalize_axis(axis, dy.ndim)
    pieces = _checks.pieces_param(pieces, dy.shape[axis])
    which = _checks.as_which(which, dy.shape, pieces)
    dtype = _checks.result_dtype(dy)
    shape = (*dy.shape[:axis], dy.shape[axis] * pieces, *dy.shape[axis + 1 :])
    _checks.check_out(out, shape, dtype)
    split = (math.prod(dy.shape[: axis + 1]), 1, math.prod(dy.shape[axis + 1 :]))
    dx = np.zeros((split[0], pieces, split[2]), dtype)
    np.put_along_axis(dx, which.reshape(split), dy.reshape(split), axis=1)
    return _deliver(dx.reshape(shape), dtype, out)


def cross_entropy(logits: ArrayLike, labels: ArrayLike, out: Array | None = None) -> tuple[float, Array]:
    """(loss, dlogits): the mean of -log(softmax(logits)) at the labels, and its gradient (softmax - onehot) / N.

    logits has shape (N, C), else ValueError. labels are integers (else TypeError) of shape (N,) in 0..C-1 (else
    ValueError). The loss is a float; N = 0 gives 0.0. `out` receives dlogits.
    """
    logits = _checks.as_input(logits, "logits")
    _checks.check_logits(logits)
    samples, classes = logits.shape
    labels = _checks.as_labels(labels, samples, classes)
    dtype = _checks.result_dtype(logits)
    _checks.check_out(out, logits.shape, dtype)
    if samples == 0:
        return 0.0, np.empty(logits.shape, dtype) if out is None else out
    with np.errstate(all="ignore"):
        e, others, shifted, low = _exponentials(logits.astype(np.float64))
        at_label = np.arange(samples), labels
        loss = np.sum(np.log1p(others[:, 0]) - low[at_label] - shifted[at_label]) / samples
        gradient = e / (1.0 + others)
        rest = e.copy()
        rest[at_label] = 0.0
        # softmax - 1 without its cancellation: minus the share of all other classes
        gradient[at_label] = -(np.sum(rest, axis=-1, keepdims=True) / (1.0 + others))[:, 0]
        return float(loss), _deliver(gradient / samples, dtype, out)
