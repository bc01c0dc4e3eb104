"""Regenerate the polynomial coefficients of the headers: ``python src/fit.py [name ...]``.

Each fit is a weighted minimax polynomial, found by Lawson's iteration in mpmath. The coefficients are rounded to the
format one after the other, the most sensitive (lowest) first, and the rest is fitted again after each rounding, so that
the rounded polynomial is about as good as the ideal one. Printed for each: the largest weighted error of the rounded
polynomial, in units of the format's half ulp of one, then the coefficients from the constant term up; of cubics that
are evaluated as (r^2 + a)(b r + c) + d, a, b, c and d.

Not made here are the coefficients of float32's softplus and tanh, which have polynomials of their own.

Only mpmath is needed. Nothing here runs at build time: the printed constants are pasted into the headers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from mpmath import (
    atanh,
    cos,
    cosh,
    erfc,
    exp,
    expm1,
    fabs,
    fdot,
    findroot,
    fsum,
    log,
    lu_solve,
    matrix,
    mp,
    mpf,
    pi,
    polyval,
    sinh,
    sqrt,
    tanh,
)

mp.prec = 240

Function = Callable[[mpf], mpf]
SINGLE, DOUBLE = 24, 53
LAWSON_STEPS = 12


@dataclass(frozen=True)
class Fit:
    """Approximate ``target`` on [low, high] so that |weight * (polynomial - target)| is smallest."""

    target: Function
    weight: Function
    low: mpf
    high: mpf
    degree: int
    wide: bool = False  # coefficients in float64 although the accuracy is float32's
    long_constant: bool = False  # the constant term has a low part, so it is rounded to twice the bits
    cubics: tuple[int, ...] = ()  # powers from which on four terms are evaluated as (r**2 + a) * (b * r + c) + d


def rounded(value: mpf, bits: int) -> mpf:
    """Value to `bits` significant bits, ties to even."""
    with mp.workprec(bits):
        return +value


def least_squares(rows: list[list[mpf]], targets: list[mpf], weights: list[mpf]) -> list[mpf]:
    """Coefficients of the columns of `rows` with the smallest weighted sum of squares, by the normal equations."""
    size = len(rows[0])
    weighted = [[w * value for value in row] for w, row in zip(weights, rows, strict=True)]
    system = matrix(size, size)
    right = matrix(size, 1)
    for i in range(size):
        column = [row[i] for row in weighted]
        right[i] = fdot(column, targets)
        for j in range(i, size):
            system[i, j] = system[j, i] = fdot(column, [row[j] for row in rows])
    return list(lu_solve(system, right))


def coefficients(fit: Fit, bits: int) -> tuple[list[mpf], mpf]:
    """Coefficients in the format, constant term first, and the largest weighted error that is left.

    Lawson's iteration (weights multiplied by the errors) turns least squares into minimax. It needs no alternation
    theorem, which does not hold once the constant term is fixed.
    """
    count = 16 * (fit.degree + 2)
    grid = [fit.low + (fit.high - fit.low) * (1 - cos(pi * (i + mpf(1) / 2) / count)) / 2 for i in range(count)]
    targets = [fit.target(x) for x in grid]
    scales = [fit.weight(x) for x in grid]
    rows = [[x**power for power in range(fit.degree + 1)] for x in grid]

    def errors(polynomial: list[mpf]) -> list[mpf]:
        return [fabs(s * (fdot(polynomial, r) - t)) for s, r, t in zip(scales, rows, targets, strict=True)]

    weights = [s * s for s in scales]
    for _ in range(LAWSON_STEPS):
        error = errors(least_squares(rows, targets, weights))
        mean = fsum(error) / count
        weights = [w * e / mean for w, e in zip(weights, error, strict=True)]
    fixed: list[mpf] = []
    for power in range(fit.degree + 1):
        left = [t - fdot(fixed, row[:power]) for t, row in zip(targets, rows, strict=True)]
        free = least_squares([row[power:] for row in rows], left, weights)
        fixed.append(rounded(free[0], DOUBLE if fit.wide else 2 * bits if fit.long_constant and power == 0 else bits))
    return fixed, max(errors(fixed))


def c_literal(value: mpf, bits: int) -> str:
    """The value as a hexadecimal C constant of its type, which no compiler can round."""
    number = float(value)
    assert mpf(number) == value
    mantissa, power = number.hex().split("p")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}p{power}" + ("f" if bits == SINGLE else "")


HALF_LN2 = log(mpf(2)) / 2 * (1 + mpf(2) ** -12)  # the reduced argument of exp, rounding of k included


def normal_tail(a: mpf) -> mpf:
    return erfc(a / sqrt(mpf(2))) / 2 * exp(a * a / 2)


def gelu_slope_tail(a: mpf) -> mpf:
    return normal_tail(a) - a / sqrt(2 * pi)


SLOPE_ZERO = findroot(gelu_slope_tail, mpf("0.7517915"))
TAIL_END = {SINGLE: mpf(15), DOUBLE: mpf(39)}  # beyond it e^(-a^2 / 2) is 0

# float64: t = (a - TAIL_MIDDLE) / (a + TAIL_MIDDLE); (a + TAIL_LEVEL) * normal_tail(a) is nearly constant
TAIL_MIDDLE = mpf(6)
TAIL_LEVEL = mpf(9) / 8


def tail_fit(target: Function, degree: int) -> Fit:
    """Relative fit of target(a) as a polynomial in t."""
    low, high = mpf(-1), (TAIL_END[DOUBLE] - TAIL_MIDDLE) / (TAIL_END[DOUBLE] + TAIL_MIDDLE)

    def of_t(t: mpf) -> mpf:
        return target(TAIL_MIDDLE * (1 + t) / (1 - t))

    return Fit(of_t, lambda t: 1 / of_t(t), low, high, degree, long_constant=True)


def exp_rest(r: mpf) -> mpf:
    return (expm1(r) - r) / r**2 if r else mpf(1) / 2


def density(r: mpf) -> mpf:
    return exp(-r / 2) / sqrt(2 * pi)


TINY = mpf(2) ** -40  # where a formula in z is 0 / 0 at 0


def log_rest(z: mpf) -> mpf:
    return 2 * (atanh(sqrt(z)) / sqrt(z) - 1) / z


def single_fits() -> dict[str, Fit]:
    # log1p(e) = 2 * s + s * z * polynomial(z), s = e / (2 + e), z = s**2, 0 <= e <= 1; in float64 for a float32 result
    log1p_wide = Fit(log_rest, lambda z: z / 2, mpf(2) ** -40, mpf(1) / 9, 4, wide=True)
    return {
        "log1p_wide": log1p_wide,
        # exp(r) = 1 + r + r**2 * polynomial, error relative to exp(r)
        "exp": Fit(exp_rest, lambda r: r**2 * exp(-r), -HALF_LN2, HALF_LN2, 4),
        "exp in sums": Fit(exp_rest, lambda r: r**2 * exp(-r), -HALF_LN2, HALF_LN2, 4, cubics=(1,)),
        # the same for silu's derivative, with a weight that leaves it a smaller largest error
        "exp in silu_slope": Fit(exp_rest, lambda r: r**2 * exp(r), -HALF_LN2, HALF_LN2, 4, cubics=(1,)),
        # exp(-r / 2) / sqrt(2 pi), error relative to it; in float64 for a float32 result
        "density_wide": Fit(density, lambda r: 1 / density(r), -2 * HALF_LN2, 2 * HALF_LN2, 6, wide=True),
    }


def double_fits() -> dict[str, Fit]:
    """Odd and even functions are fitted in z, the square of their argument; exactly zero it need not be."""
    square = HALF_LN2**2
    return {
        # exp(r) - 1 = r + r**2 * polynomial, error relative to exp(r) - 1
        "exp": Fit(exp_rest, lambda r: r**2 / expm1(r) if r else mpf(0), -HALF_LN2, HALF_LN2, 9, cubics=(2, 6)),
        # sinh(r) = r + r * z * polynomial, cosh(r) - 1 = z * polynomial, error in exp(r)
        "sinh": Fit(lambda z: (sinh(sqrt(z)) / sqrt(z) - 1) / z, lambda z: z, TINY, square, 4),
        "cosh": Fit(lambda z: (cosh(sqrt(z)) - 1) / z, lambda z: z, TINY, square, 4),
        # tanh(h) = h + h * z * polynomial, error relative to tanh(h)
        "tanh": Fit(
            lambda z: (tanh(sqrt(z)) / sqrt(z) - 1) / z,
            lambda z: z * sqrt(z) / tanh(sqrt(z)),
            TINY,
            mpf("0.208") ** 2,
            5,
        ),
        # log(1 + f) = 2 * g + g * z * polynomial, g = f / (2 + f), z = g**2, error relative to 2 * g
        "log": Fit(log_rest, lambda z: z / 2, TINY, mpf("0.0296"), 6, cubics=(3,)),
        # normal_tail(a) = polynomial / (a + TAIL_LEVEL)
        "normal_tail": tail_fit(lambda a: normal_tail(a) * (a + TAIL_LEVEL), 22),
        # gelu_slope_tail(a) = (zero - a) * polynomial
        "gelu_slope_tail": tail_fit(lambda a: gelu_slope_tail(a) / (SLOPE_ZERO - a), 20),
    }


FRACTION_SCALE = mpf(107) / 128  # 2 of it, and what w adds, are below 2, where rounding errors are smaller


def exp_fraction() -> tuple[list[mpf], list[mpf], mpf]:
    """p and q of e^r = (even + odd) / (even - odd), odd = r (c + z (p0 + p1 z)), even = 2 c + z (q0 + q1 z), z = r^2.

    c is FRACTION_SCALE. odd / even is tanh(r / 2): linear in the unknowns, so Lawson's iteration serves again.
    """
    scale = FRACTION_SCALE
    grid = [HALF_LN2 * cos(pi * (i + mpf(1) / 2) / 400) for i in range(200)]
    halves = [(exp(r) - 1) / (exp(r) + 1) for r in grid]
    rows = [[r**3, r**5, -t * r**2, -t * r**4] for r, t in zip(grid, halves, strict=True)]
    targets = [scale * (2 * t - r) for r, t in zip(grid, halves, strict=True)]

    def errors(c: list[mpf]) -> list[mpf]:
        ratios = [(scale * r + c[0] * r**3 + c[1] * r**5) / (2 * scale + c[2] * r**2 + c[3] * r**4) for r in grid]
        return [fabs((1 + t) / (1 - t) * exp(-r) - 1) for r, t in zip(grid, ratios, strict=True)]

    weights = [mpf(1)] * len(grid)
    for _ in range(40):
        found = least_squares(rows, targets, weights)
        weights = [w * e / max(errors(found)) for w, e in zip(weights, errors(found), strict=True)]
    fixed: dict[int, mpf] = {}
    for column in (2, 0, 3, 1):  # rounded one after the other, as in coefficients
        free = [c for c in range(4) if c not in fixed]
        left = [t - sum(row[c] * value for c, value in fixed.items()) for t, row in zip(targets, rows, strict=True)]
        solved = least_squares([[row[c] for c in free] for row in rows], left, weights)
        fixed[column] = rounded(solved[free.index(column)], DOUBLE)
    found = [fixed[c] for c in range(4)]
    return found[:2], found[2:], max(errors(found))


def in_parts(value: mpf, bits: int) -> str:
    high = rounded(value, bits)
    return f"{c_literal(high, bits)} + {c_literal(rounded(value - high, bits), bits)}"


def in_sums(polynomial: list[mpf], cubics: tuple[int, ...], bits: int) -> list[mpf]:
    """The coefficients, each four that begin a cubic replaced by a, b, c, d of (r^2 + a)(b r + c) + d."""
    result = list(polynomial)
    for k in cubics:
        c0, c1, c2, c3 = polynomial[k : k + 4]
        a = rounded(c1 / c3, bits)
        result[k : k + 4] = [a, c3, c2, rounded(c0 - a * c2, bits)]
    return result


Polynomial = list[mpf | None]  # None is a coefficient to be found


def tail_grid() -> list[mpf]:
    """Points from 0 to TAIL_END[SINGLE], dense at both ends."""
    count, end = 240, TAIL_END[SINGLE]
    spread = [end / (end + 2) * (1 - cos(pi * (i + mpf(1) / 2) / count)) / 2 for i in range(count)]
    return [2 * t / (1 - t) for t in spread]


def quotient_fit(
    grid: list[mpf], targets: list[mpf], scales: list[mpf], above: Polynomial, below: Polynomial
) -> tuple[list[mpf], list[mpf], mpf]:
    """Both polynomials of the quotient whose largest |scale * (above / below - target)| is smallest, and that.

    Lawson's iteration again. Linear in the unknowns is the error times the denominator, so each step divides by the
    denominator of the step before.
    """
    free_above, free_below = ([k for k, c in enumerate(p) if c is None] for p in (above, below))
    known_above, known_below = ([c or mpf(0) for c in reversed(p)] for p in (above, below))
    rows = [
        [a**k for k in free_above] + [-target * a**k for k in free_below]
        for a, target in zip(grid, targets, strict=True)
    ]
    right = [t * polyval(known_below, a) - polyval(known_above, a) for a, t in zip(grid, targets, strict=True)]
    weights = [mpf(1)] * len(grid)
    divisors = [(1 + a) ** (len(below) - 1) for a in grid]
    for step in range(40):
        squares = [(s / d) ** 2 * w for s, d, w in zip(scales, divisors, weights, strict=True)]
        found = iter(least_squares(rows, right, squares) if rows[0] else [])
        full_above, full_below = ([next(found) if c is None else c for c in p] for p in (above, below))
        divisors = [polyval(full_below[::-1], a) for a in grid]
        quotients = [polyval(full_above[::-1], a) / d for a, d in zip(grid, divisors, strict=True)]
        errors = [fabs((q - t) * s) for q, t, s in zip(quotients, targets, scales, strict=True)]
        if step > 2:  # by then the denominator has settled
            weights = [w * e * len(grid) / fsum(errors) for w, e in zip(weights, errors, strict=True)]
    return full_above, full_below, max(errors)


def mills_fraction() -> tuple[list[mpf], list[mpf], mpf]:
    """Coefficients of Mills' ratio Phi(-a) / phi(a) as a quotient of monic polynomials of degrees 4 and 5, in sums and
    in float64 for a float32 result, and the largest error of normal_tail and gelu_slope_tail, relative but near its
    zero."""
    grid = tail_grid()
    ratios = [normal_tail(a) * sqrt(2 * pi) for a in grid]
    largest = mpf(14)  # that of 1 / |m - a| 0.05 from its pole; the promise for the derivative is absolute nearer to it
    scales = [max(1 / m, min(1 / fabs(m - a), largest)) for a, m in zip(grid, ratios, strict=True)]
    above, below, error = quotient_fit(grid, ratios, scales, [None] * 4 + [mpf(1)], [None] * 5 + [mpf(1)])
    return quartic_in_sums(above), quintic_in_sums(below), error


def rounded_quartics(
    grid: list[mpf], targets: list[mpf], scales: list[mpf], constant: mpf
) -> tuple[list[mpf], list[mpf], mpf]:
    """As quotient_fit, of two quartics in float32, the denominator with that constant term."""
    above: Polynomial = [None] * 5
    below: Polynomial = [constant] + [None] * 4
    for k in range(5):
        for polynomial, number in ((below, 1), (above, 0)):
            if polynomial[k] is None:  # rounded one after the other, as in coefficients
                polynomial[k] = rounded(quotient_fit(grid, targets, scales, above, below)[number][k], SINGLE)
    return quotient_fit(grid, targets, scales, above, below)


def gelu_fraction() -> tuple[list[mpf], list[mpf], mpf]:
    """Coefficients of the fraction in float32's d = 1 / (2 normal_tail(a)) = 1 + a + a fraction, and the largest error
    of d, relative. Of the denominators that begin with 1 to 2, by sixteenths, this gives gelu its least error."""
    grid = tail_grid()
    divisors = [1 / (2 * normal_tail(a)) for a in grid]
    targets = [(d - 1) / a - 1 for a, d in zip(grid, divisors, strict=True)]
    return rounded_quartics(grid, targets, [a / d for a, d in zip(grid, divisors, strict=True)], mpf(27) / 16)


def gelu_slope_fraction() -> tuple[list[mpf], list[mpf], mpf]:
    """Coefficients of the fraction in float32's y = gelu_slope_tail(a) / (zero - a) = 29/64 + fraction, and the largest
    error of y, relative. At 0 the denominator is well above a power of two: its rounding errors are small there."""
    grid = tail_grid()
    ratios = [gelu_slope_tail(a) / (SLOPE_ZERO - a) for a in grid]
    return rounded_quartics(grid, [y - mpf(29) / 64 for y in ratios], [1 / y for y in ratios], mpf(7) / 4)


def quartic_in_sums(p: list[mpf]) -> list[mpf]:
    """a to d of (z + a x + b)(z + c) + d for the monic quartic p in x, z = x^2."""
    c = p[1] / p[3]
    return [p[3], p[2] - c, c, p[0] - (p[2] - c) * c]


def quintic_in_sums(p: list[mpf]) -> list[mpf]:
    """a to e of ((x + a)(z + b) + c)(z + d) + e for the monic quintic p in x, z = x^2.

    -b and -d are the roots of its odd part, which are real where those of p have negative real parts.
    """
    root = sqrt(p[3] ** 2 / 4 - p[1])
    b, d = p[3] / 2 + root, p[3] / 2 - root
    c = p[2] - p[4] * p[3]
    return [p[4], b, c, d, p[0] - d * (p[4] * b + c)]


def main(names: list[str]) -> None:
    for bits, fits in ((SINGLE, single_fits()), (DOUBLE, double_fits())):
        for name, fit in fits.items():
            if names and name not in names:
                continue
            polynomial, error = coefficients(fit, bits)
            print(f"{name}, {bits} bits, degree {fit.degree}: error {float(error * 2**bits):.4f} units of 2^-{bits}")
            for power, value in enumerate(in_sums(polynomial, fit.cubics, bits)):
                precision = DOUBLE if fit.wide else bits
                print("   ", in_parts(value, bits) if fit.long_constant and power == 0 else c_literal(value, precision))
        for name, value in {"ln2": log(mpf(2)), "log2e": 1 / log(mpf(2)), "slope zero": SLOPE_ZERO}.items():
            print(f"{name}: {in_parts(value, bits)}")
    for name, accuracy, bits, fraction, parts in (
        ("mills_fraction", SINGLE, DOUBLE, mills_fraction, ("above", "below")),
        ("gelu_fraction", SINGLE, SINGLE, gelu_fraction, ("above", "below")),
        ("gelu_slope_fraction", SINGLE, SINGLE, gelu_slope_fraction, ("above", "below")),
        ("exp_fraction", DOUBLE, DOUBLE, exp_fraction, ("p", "q")),
    ):
        if names and name not in names:
            continue
        *polynomials, error = fraction()
        print(f"{name}, {accuracy} bits: error {float(error * 2**accuracy):.4f} units of 2^-{accuracy}")
        for part, values in zip(parts, polynomials, strict=True):
            print(f"    {part}:", ", ".join(c_literal(rounded(value, bits), bits) for value in values))


if __name__ == "__main__":
    main(sys.argv[1:])
