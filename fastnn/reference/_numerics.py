"""Float64 building blocks of the reference: exact sums and products, the logistic and the normal distribution.

Rounding errors that a formula would magnify are carried along: the functions that end in a large exponent return or
take a second float64, `low`, so that the number meant is their unevaluated sum. The error-free transformations are
those of Dekker, "A floating-point technique for extending the available precision" (1971), and Knuth, TAOCP vol. 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

SQRT_8_OVER_PI = (1.5957691216057308, -9.96930880911092e-17)
"""2*sqrt(2/pi) as high + low."""

INV_SQRT_2PI = 0.3989422804014327
"""The normal density at 0."""

# Chebyshev coefficients of (z + 3/4) * exp(z**2/2) * Phi(-z) in t = (z - 5)/(z + 5), truncation error below 3e-19.
# Over 0 <= z < inf this product only moves between 0.375 and 0.42, so a short series gives it to the last bits; the
# idea is that of Shepherd and Laframboise, "Chebyshev approximation of (1 + 2x)exp(x**2)erfc x", Math. Comp. 36
# (1981). The coefficients were computed with mpmath at 50 digits.
_NORMAL_TAIL = (
    0.42303526088118787,
    -0.010167950480624435,
    -0.027021381897439273,
    0.019364783298491107,
    -0.00839665355993193,
    0.0026669107271356175,
    -0.0006363702435184759,
    0.00010795749103133664,
    -1.0030221519055703e-05,
    -5.323039044532603e-07,
    3.20394579187308e-07,
    -2.985420628445015e-08,
    -5.197304533889409e-09,
    1.367522357258187e-09,
    4.367739736485728e-11,
    -4.6221478624086514e-11,
    1.0653076097818462e-12,
    1.5461455750444883e-12,
    -8.364761912340083e-14,
    -5.5690672949674e-14,
    3.614877660909934e-15,
    2.2062170428565114e-15,
    -1.1956946346409056e-16,
    -9.46784998800598e-17,
    2.248476071776567e-18,
    4.246708293361838e-18,
    9.808567548100632e-20,
)


def two_sum(a: Any, b: Any) -> tuple[Array, Array]:
    """a + b as high + low without an error; low is 0 where the sum is not finite."""
    high = a + b
    b_part = high - a
    low = (a - (high - b_part)) + (b - b_part)
    return high, np.where(np.isfinite(low), low, 0.0)


def two_product(a: Any, b: Any) -> tuple[Array, Array]:
    """a * b as high + low without an error; low is 0 where a factor is too large to be split (2**996) or not finite."""
    high = a * b
    a_high, a_low = _halves(a)
    b_high, b_low = _halves(b)
    low = ((a_high * b_high - high) + a_high * b_low + a_low * b_high) + a_low * b_low
    return high, np.where(np.isfinite(low), low, 0.0)


def _halves(a: Any) -> tuple[Array, Array]:
    shifted = a * 134217729.0  # 2**27 + 1
    high = shifted - (shifted - a)
    return high, a - high


def quotient(a: Any, b: Any) -> tuple[Array, Array]:
    """a / b as high + low."""
    high = a / b
    product, error = two_product(high, b)
    low = ((a - product) - error) / b
    return high, np.where(np.isfinite(low), low, 0.0)


def exp(z: Any, low: Any = 0.0) -> Array:
    """e**(z + low) for a low that is tiny beside 1, as it is wherever e**z is neither 0 nor infinite."""
    return np.exp(z) * np.maximum(1.0 + low, 0.5)


def logistic(z: Any, low: Any = 0.0) -> Array:
    """1 / (1 + e**-(z + low)). Only powers of at most 1 are formed, so nothing overflows or cancels."""
    e = exp(-np.abs(z), np.where(z < 0, low, -low))
    return np.where(z < 0, e, 1.0) / (1.0 + e)


def times_logistic(x: Any, z: Any, low: Any = 0.0) -> Array:
    """x * logistic(z + low), also where the logistic alone would be subnormal: half of the power is multiplied last."""
    half = exp(-np.abs(z) / 2, np.where(z < 0, low, -low) / 2)
    e = exp(-np.abs(z), np.where(z < 0, low, -low))
    return np.where(z < 0, x * half * half, x) / (1.0 + e)


def gate_derivative(x_dz: Any, z: Any, low: Any = 0.0) -> Array:
    """Derivative of x * s, s = logistic(z(x)), given x_dz = x * dz/dx:  s * (1 + x_dz * (1 - s))."""
    half = exp(-np.abs(z) / 2, np.where(z < 0, low, -low) / 2)
    e = exp(-np.abs(z), np.where(z < 0, low, -low))
    one_minus_s = np.where(z < 0, 1.0, e) / (1.0 + e)
    factor = (1.0 + x_dz * one_minus_s) / (1.0 + e)
    return np.where(z < 0, factor * half * half, factor)


def normal_tail(z: Any) -> tuple[Array, Array, Array]:
    """(half, density, mills) with half*half*density = exp(-z**2/2) and Phi(-z) = half*half*density*mills, for z >= 0.

    Phi is the standard normal distribution function. `half` is to be multiplied last, so that a result stays accurate
    down to where it underflows itself. z is split into 24 bits and a rest, because an error of z**2 would be magnified
    by z**2/2.
    """
    z = np.minimum(z, 60.0)  # exp(-60**2/4) is 0; NaN stays
    head = z.astype(np.float32).astype(np.float64)
    half = np.exp(-head * head / 4)
    density = np.exp(-(z - head) * (z + head) / 2)
    mills = np.polynomial.chebyshev.chebval((z - 5.0) / (z + 5.0), _NORMAL_TAIL, tensor=False) / (z + 0.75)
    return half, density, mills
