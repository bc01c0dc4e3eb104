"""Exact values and errors in ULP: what verification measures against.

For float32 the oracle is fastnn.reference in float64, evaluated on the very same inputs and not rounded. For float64
it is mpmath, where that is installed. Nothing compiled takes part in either.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import fastnn.reference as reference
from fastnn._table import Activation

HAVE_MPMATH = importlib.util.find_spec("mpmath") is not None
Array = np.ndarray[Any, np.dtype[Any]]

# Bits of precision, exponent of the smallest subnormal, and of what rounds to infinity.
_FORMATS = {"float16": (11, -24, 16), "float32": (24, -149, 128), "float64": (53, -1074, 1024)}
_UNSIGNED = {"float16": np.uint16, "float32": np.uint32, "float64": np.uint64}
_EXPONENT = np.uint64(0x7FF0000000000000)


class Exact:
    """Exact values, prepared so that several results can be measured against them.

    An error is |got - exact| in units in the last place of the exact value's binade; below the normal numbers the unit
    is the smallest subnormal. An infinite result counts as the power of two that rounds to it, so an overflow at the
    right place costs nothing and one too early costs its distance. NaN for a number, or a number for NaN, is an
    infinite error. ``low`` adds the part of an exact value that its float64 does not hold.
    """

    def __init__(self, values: Array, dtype: str, low: Array | None = None) -> None:
        precision, smallest, top = _FORMATS[dtype]
        self._wide = dtype == "float64"
        self._bound = np.inf if self._wide else 2.0**top
        self.values = values if self._wide else np.clip(values, -self._bound, self._bound)
        self._low = low
        self._nan = np.isnan(values)
        self._any_nan = bool(self._nan.any())
        if self._wide:
            _, exponent = np.frexp(values)
            smallest_unit = np.where(values == 0, smallest, np.maximum(exponent - precision, smallest))
            self._unit = np.ldexp(1.0, smallest_unit)
        else:
            unit = (self.values.view(np.uint64) & _EXPONENT).view(np.float64)
            unit *= 2.0 ** (1 - precision)
            np.clip(unit, 2.0**smallest, 2.0 ** (top - precision), out=unit)
            self._unit = np.divide(1.0, unit, out=unit)  # of a power of two: exact

    def error(self, got: Array) -> Array:
        with np.errstate(invalid="ignore", over="ignore"):
            if self._wide:
                error = np.where(got == self.values, 0.0, got - self.values)
            else:
                error = got.astype(np.float64)
                np.clip(error, -self._bound, self._bound, out=error)
                error -= self.values
            if self._low is not None:
                error -= self._low
            np.abs(error, out=error)
            error = error / self._unit if self._wide else np.multiply(error, self._unit, out=error)
        wrong = np.isnan(error)
        if self._any_nan or wrong.any():
            error[wrong] = np.inf
            error[self._nan & np.isnan(got)] = 0
        return error


def ulp_error(got: Array, exact: Array, low: Array | None = None) -> Array:
    """The error of each element in ULP of its own format, as class Exact defines it."""
    return Exact(exact, got.dtype.name, low).error(got)


def ordered(keys: Array, dtype: str) -> Array:
    """The numbers of a format in increasing order: key 0 is +0, key k the k-th above it, -k the k-th below."""
    unsigned = _UNSIGNED[dtype]
    sign = unsigned(1 << (np.dtype(unsigned).itemsize * 8 - 1))
    magnitude = np.abs(keys).astype(unsigned)
    return np.where(keys < 0, magnitude | sign, magnitude).astype(unsigned).view(dtype)


def infinity_key(dtype: str) -> int:
    """The key of +inf: every number of the format has a key between its negative and itself."""
    return int(np.array(np.inf, dtype).view(_UNSIGNED[dtype]))


def chunks(dtype: str, full: bool, total: int, size: int = 1 << 13) -> Iterator[tuple[int, int, int]]:
    """(first key, step, count): all numbers in order, or runs of neighbours evenly spread over all of them.

    Runs, because neighbours are what shows whether a function is monotone and where it changes branch. The size of a
    chunk keeps its arrays below what the allocator maps and unmaps: page faults took more than half of the time.
    """
    top = infinity_key(dtype)
    if full or 2 * top + 1 <= total:
        for first in range(-top, top + 1, size):
            yield first, 1, min(size, top + 1 - first)
        return
    run = 64
    yield -top, (2 * top + 1 - run) // (total // run - 1), total // run


def keys_of(chunk: tuple[int, int, int], full: bool) -> Array:
    first, step, count = chunk
    if full or step == 1:
        return np.arange(first, first + count, dtype=np.int64)
    return (first + step * np.arange(count, dtype=np.int64)[:, None] + np.arange(64)).ravel()


def _parameters(row: Activation, dtype: str) -> dict[str, Any]:
    """The defaults as the kernel sees them: rounded to the dtype it computes in."""
    kind = np.float64 if dtype == "float64" else np.float32
    return {parameter.name: float(kind(parameter.default)) for parameter in row.params} | dict(row.options)


def exact_float64(row: Activation, direction: str, saved: Array) -> Array:
    """The reference in float64 on float16 or float32 values, dy = 1."""
    wide = saved.astype(np.float64)
    if direction == "forward":
        return np.asarray(getattr(reference, row.function)(wide, **_parameters(row, saved.dtype.name)))
    ones = np.ones_like(wide)
    function = getattr(reference, row.function + "_backward")
    return np.asarray(function(ones, wide, **_parameters(row, saved.dtype.name)))


def interior_zero(row: Activation) -> float | None:
    """Where the derivative of a function with a hump crosses zero: near it the error is bounded absolutely."""
    if row.name not in ("gelu", "gelu_tanh", "silu", "mish"):
        return None
    low, high = -3.0, -0.1
    for _ in range(60):
        middle = (low + high) / 2
        if exact_float64(row, "backward", np.array([middle]))[0] < 0:
            low = middle
        else:
            high = middle
    return low


# --- float64: mpmath --------------------------------------------------------------------------------------------------


def _mp_formulas() -> dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]]:
    import mpmath as mp

    slope, alpha, scale = (
        mp.mpf(0.01),
        mp.mpf("1.6732632423543772848170429916717"),
        mp.mpf("1.0507009873554804934193349852946"),
    )

    def sigmoid(x: Any) -> Any:
        return 1 / (1 + mp.exp(-x))

    def gelu_u(x: Any) -> Any:
        return mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)

    def gelu_du(x: Any) -> Any:
        return mp.sqrt(2 / mp.pi) * (1 + 3 * mp.mpf("0.044715") * x**2)

    def half_tanh(u: Any) -> Any:  # (1 + tanh(u)) / 2 without cancelling
        return sigmoid(2 * u)

    def mish_t(x: Any) -> Any:
        e = mp.exp(x)
        return e * (e + 2) / (e * (e + 2) + 2)

    def normal(x: Any) -> Any:
        return mp.erfc(-x / mp.sqrt(2)) / 2

    def density(x: Any) -> Any:
        return mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi)

    def mish_backward(x: Any) -> Any:
        t, e = mish_t(x), mp.exp(x)
        sech2 = 4 * (1 + e) ** 2 / (e * (e + 2) + 2) ** 2
        return t + x * sech2 * sigmoid(x)

    def step(low: Any, high: Any) -> Callable[[Any], Any]:
        return lambda x: mp.mpf(1) if low < x < high else mp.mpf(0)

    return {
        "sigmoid": (sigmoid, lambda y: y * (1 - y)),
        "tanh": (mp.tanh, lambda y: 1 - y * y),
        "relu": (lambda x: max(x, mp.mpf(0)), lambda y: mp.mpf(y > 0)),
        "leaky_relu": (lambda x: x if x > 0 else slope * x, lambda x: mp.mpf(1) if x > 0 else slope),
        "relu6": (lambda x: min(max(x, mp.mpf(0)), mp.mpf(6)), step(0, 6)),
        "hardtanh": (lambda x: min(max(x, mp.mpf(-1)), mp.mpf(1)), step(-1, 1)),
        "hardsigmoid": (lambda x: min(max(x + 3, mp.mpf(0)), mp.mpf(6)) / 6, lambda x: step(-3, 3)(x) / 6),
        "hardswish": (
            lambda x: x * min(max(x + 3, mp.mpf(0)), mp.mpf(6)) / 6,
            lambda x: mp.mpf(0) if x <= -3 else mp.mpf(1) if x >= 3 else (2 * x + 3) / 6,
        ),
        "elu": (lambda x: x if x > 0 else mp.expm1(x), lambda x: mp.mpf(1) if x > 0 else mp.exp(x)),
        "celu": (lambda x: x if x > 0 else mp.expm1(x), lambda x: mp.mpf(1) if x > 0 else mp.exp(x)),
        "selu": (
            lambda x: scale * (x if x > 0 else alpha * mp.expm1(x)),
            lambda x: scale * (1 if x > 0 else alpha * mp.exp(x)),
        ),
        "gelu": (lambda x: x * normal(x), lambda x: normal(x) + x * density(x)),
        "gelu_tanh": (
            lambda x: x * half_tanh(gelu_u(x)),
            lambda x: half_tanh(gelu_u(x)) + 2 * x * half_tanh(gelu_u(x)) * half_tanh(-gelu_u(x)) * gelu_du(x),
        ),
        "silu": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * sigmoid(-x))),
        "mish": (lambda x: x * mish_t(x), mish_backward),
        "softsign": (lambda x: x / (1 + abs(x)), lambda x: 1 / (1 + abs(x)) ** 2),
        "log_sigmoid": (lambda x: -mp.log1p(mp.exp(-x)), lambda x: sigmoid(-x)),
        "softplus": (lambda x: mp.log1p(mp.exp(x)), sigmoid),
    }


ALGEBRAIC = ("relu", "leaky_relu", "relu6", "hardtanh", "hardsigmoid", "hardswish", "softsign")


def exact_mpmath(row: Activation, direction: str, saved: Array) -> tuple[Array, Array]:
    """The exact value of each element as the sum of two float64: the nearest one and what is left."""
    import mpmath as mp

    high, low = np.empty_like(saved), np.empty_like(saved)
    with mp.workprec(220):  # for the formulas' constants too
        formulas = _mp_formulas()
        if row.name not in formulas:
            raise NotImplementedError(f"fastnn/bench/oracle.py has no formula of {row.name} in mpmath")
        formula = formulas[row.name][direction == "backward"]
        for i, value in enumerate(saved.tolist()):
            # beyond, those of exp are at a limit that their float64 formula gives; exp(1e300) is not feasible
            feasible = abs(value) < 1e5 or row.name in ALGEBRAIC
            exact = formula(mp.mpf(value)) if feasible else mp.mpf(_limit(row, direction, value))
            high[i] = float(exact)
            low[i] = float(exact - mp.mpf(high[i])) if np.isfinite(high[i]) else 0.0
    return high, low


def _limit(row: Activation, direction: str, value: float) -> float:
    return float(exact_float64(row, direction, np.array([value]))[0])


# Where searches over 10^6 to 10^7 float64 numbers met the largest errors, forward or backward, of some version.
HARDEST = {
    "sigmoid": ("-0x1.f2f1fda756fep+0", "-0x1.2308f83be52fep+5", "0x1.1bd42d0e19414p+4"),
    "tanh": ("-0x1.e759e0f521949p-2", "0x1.12139f6b9dfdcp-1", "0x1.7752e23e5e8fp-3"),
    "gelu": ("0x1.07d3c8acda0a6p-4", "-0x1.a1d5de1733b5cp-1", "0x1.fe78e6182dfp-35", "-0x1.a7d96a8446bf7p-26"),
    "gelu_tanh": ("-0x1.73c928d7ea944p+2", "0x1.f86e8e9806dc4p+1", "-0x1.c0110ea7894ep+0", "-0x1.61977539f0934p-1"),
    "silu": (
        "-0x1.5bcab176cd815p+9",
        "0x1.fe08182a7c1ap+4",
        "-0x1.39c37d6d7373dp+0",
        "-0x1.0a540ae4b7158p+5",
        "-0x1.09a78267368e3p+0",
    ),
    "mish": (
        "0x1.e8832f2c746e4p+2",
        "-0x1.4e7bc49f13e7ap+2",
        "-0x1.23eed5794b41cp+0",
        "0x1.931e25807f09p+1",
        "0x1.fe3b82e1065d7p+2",
    ),
    "log_sigmoid": ("0x1.6233333333348p+9", "0x1.baf4a2a16efcp-1", "0x1.3571afb4b8264p+1"),
    "softplus": ("-0x1.61abcbcf3b10dp+9", "-0x1.b03705bf63f8p-1", "-0x1.cc154ed6c5e20p+2", "0x1.89b3bc2c56214p+1"),
    "selu": ("-0x1.3de71bb49999cp-2", "-0x1.6233333333340p+9", "-0x1.56958a10e7ffcp-2"),
    "elu": ("-0x1.23dfac37057dp-2", "-0x1.0b9b156efb468p-2", "-0x1.1fb179c86d93ep+2"),
    "softsign": ("-0x1.a2e8885390b80p-8",),
    "hardswish": ("0x1.ff7866040cc91p-12",),
}


def hardest(name: str) -> Array:
    return np.array([float.fromhex(value) for value in HARDEST.get(name, ())])


def float64_sample(row: Activation, direction: str, count: int) -> Array:
    """Random bit patterns, random values where functions bend, the neighbourhood of their kinks, the hardest known."""
    rng = np.random.default_rng(7)
    top = infinity_key("float64")
    parts = [
        ordered(rng.integers(-top + 1, top, count // 4), "float64"),
        rng.uniform(-40, 40, count // 4),
        rng.normal(size=count // 4),
        rng.uniform(-745, 710, count // 8),
        np.ldexp(rng.uniform(-1, 1, count // 8), rng.integers(-60, 1, count // 8)),
        np.concatenate([np.nextafter(k, [-9.0, 9.0]) for k in (-3.0, -1.0, 1.0, 3.0, 6.0)]),
        hardest(row.name),
    ]
    values = np.concatenate(parts)
    if direction == "backward" and row.saved == "y" and row.name in ("sigmoid", "tanh"):
        low = -1.0 if row.name == "tanh" else 0.0
        inside = np.concatenate([rng.uniform(low, 1, count // 2), 1 - np.ldexp(rng.uniform(0, 1, count // 4), -30)])
        return np.concatenate([values[np.abs(values) <= 1], inside])
    return values
