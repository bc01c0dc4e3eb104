"""The single checks of ``python -m fastnn verify``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

import fastnn
import fastnn.reference as reference
from fastnn._table import Activation
from fastnn.bench import oracle

Array = np.ndarray[Any, np.dtype[Any]]

MONOTONE = frozenset(
    "sigmoid tanh relu leaky_relu relu6 hardtanh hardsigmoid elu celu selu softsign log_sigmoid softplus".split()
)
PIECEWISE_LINEAR = frozenset("relu leaky_relu relu6 hardtanh hardsigmoid hardswish".split())  # no derivative underflows
ODD = frozenset(("tanh", "hardtanh", "softsign"))
RANGE = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "softsign": (-1.0, 1.0), "hardsigmoid": (0.0, 1.0)}
# Levels without a fused multiply-add keep the error bounds, but not the bits.
SAME_BITS = ("v3", "v4", "neon")
SMALLEST_NORMAL = {"float16": 2.0**-14, "float32": 2.0**-126, "float64": 2.0**-1022}
NEAR_ZERO = 0.05  # around an interior zero of the derivative the error is bounded in these units instead
NEAR_UNIT = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}


@dataclass
class Outcome:
    """A property that holds or does not, with what was measured."""

    name: str
    check: str
    ok: bool
    detail: str = ""


class ChunkResult(NamedTuple):
    error: float
    at: float
    falls_at: float | None
    first: float
    last: float


def call(
    module: ModuleType, row: Activation, direction: str, saved: Array, dy: Array | None = None, **kwargs: Any
) -> Array:
    """A row's function of fastnn or of its NumPy twin; dy is 1 unless given."""
    kwargs |= row.options
    if direction == "forward":
        return np.asarray(getattr(module, row.function)(saved, **kwargs))
    dy = np.ones_like(saved) if dy is None else dy
    return np.asarray(getattr(module, row.function + "_backward")(dy, saved, **kwargs))


def near_zero(saved: Array, zero: float) -> Array:
    """The elements within NEAR_ZERO of a zero of the derivative."""
    return np.flatnonzero(np.abs(saved.astype(np.float64) - zero) < NEAR_ZERO)


def bound_near_zero(error: Array, near: Array, got: Array, exact: Array) -> None:
    """Elements `near` a zero of the derivative count by their absolute error, in NEAR_UNIT, where that is less."""
    absolute = np.abs(got[near].astype(np.float64) - exact[near]) / NEAR_UNIT[got.dtype.name]
    error[near] = np.minimum(error[near], absolute)


def check_levels(
    row: Activation,
    direction: str,
    levels: Iterable[str],
    saved: Array,
    exact: Array,
    low: Array | None,
    zero: float | None,
) -> dict[str, ChunkResult]:
    """Error, monotonicity, range and symmetry of one function on every level; inputs rise, unless low is given."""
    yardstick = oracle.Exact(exact, saved.dtype.name, low)
    exempt = None
    if direction == "backward":
        # promised where the derivative is a normal number; below, it must only be small
        tiny = SMALLEST_NORMAL[saved.dtype.name]
        exempt = np.abs(exact) < tiny
    near = None if zero is None else near_zero(saved, zero)
    results: dict[str, ChunkResult] = {}
    former: tuple[Array, Array | None, ChunkResult] | None = None
    for level in levels:
        with fastnn.runtime.use_isa(level), fastnn.runtime.threads(1):
            got = call(fastnn, row, direction, saved)
            mirrored = call(fastnn, row, direction, -saved) if direction == "forward" and row.name in ODD else None
        if former and _same(former[0], got) and _same(former[1], mirrored):
            results[level] = former[2]
            continue
        error = yardstick.error(got)
        if exempt is not None:
            error[exempt & (np.abs(got) <= SMALLEST_NORMAL[got.dtype.name])] = 0
        if near is not None:
            bound_near_zero(error, near, got, exact)
        falls = None
        if direction == "forward":
            if low is None and row.name in MONOTONE:
                down = np.flatnonzero(got[1:] < got[:-1])
                falls = float(saved[down[0]]) if down.size else None
            if row.name in RANGE:
                error[(got < RANGE[row.name][0]) | (got > RANGE[row.name][1])] = np.inf
            if mirrored is not None:
                error[(mirrored != -got) & ~np.isnan(got)] = np.inf
        index = int(np.argmax(error))
        results[level] = ChunkResult(float(error[index]), float(saved[index]), falls, float(got[0]), float(got[-1]))
        former = got, mirrored, results[level]
    return results


def _same(a: Array | None, b: Array | None) -> bool:
    return a is b or (a is not None and b is not None and a.tobytes() == b.tobytes())


def _special_inputs(dtype: str) -> Array:
    info = np.finfo(dtype)
    values = [0.0, 1.0, 3.0, 6.0, float(info.smallest_subnormal), float(info.tiny), float(info.max), np.inf, np.nan]
    return np.array([sign * value for value in values for sign in (1, -1)], dtype)


def _kind(values: Array, signed_zeros: bool) -> Array:
    """What must agree exactly: NaN, an infinity, a zero with its sign, or a number of one sign."""
    zero_sign = np.where(np.signbit(values), -1, 1) if signed_zeros else 0
    return np.select(
        [np.isnan(values), np.isinf(values), values == 0], [9, 3 * np.sign(values), zero_sign], 2 * np.sign(values)
    )


def special_values(row: Activation, direction: str, dtype: str, levels: Iterable[str]) -> list[str]:
    """NaN, infinities, zeros, subnormals, the largest numbers and the kinks behave as the reference says."""
    saved = _special_inputs(dtype)
    problems: dict[str, list[str]] = {}
    gradients = [1.0]
    if direction == "backward":
        gradients += [np.nan, np.inf] if row.name in PIECEWISE_LINEAR else [np.nan]
    for gradient in gradients:
        dy = np.full_like(saved, gradient)
        want = call(reference, row, direction, saved, dy)
        for level in levels:
            with fastnn.runtime.use_isa(level):
                got = call(fastnn, row, direction, saved, dy)
            # either zero is right where negative numbers become zero, and a derivative of 0 has no sign worth keeping
            signed = direction == "forward" and row.name not in ("relu", "relu6")
            wrong = _kind(got, signed) != _kind(want, signed)
            # rounding decides between zero and a number that hardly differs from it
            info = np.finfo(dtype)
            small = info.tiny if dtype == "float16" or direction == "backward" else info.smallest_subnormal
            wrong &= ~((np.abs(want) <= small) & (np.abs(got) <= small) & (saved != 0))
            for index in np.flatnonzero(wrong)[:2]:
                at = f"{float(saved[index])!r}" + (f" with dy = {gradient}" if direction == "backward" else "")
                text = f"{float(got[index])!r} at {at}, expected {float(want[index])!r}"
                problems.setdefault(text, []).append(level)
    return [f"{text} on {', '.join(on)}" for text, on in problems.items()]


def bits_differ(a: Array, b: Array) -> str:
    """Where two results differ, NaNs being equal to each other."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype}{a.shape} against {b.dtype}{b.shape}"
    a, b = np.atleast_1d(a), np.atleast_1d(b)
    same = (a.view(f"u{a.itemsize}") == b.view(f"u{b.itemsize}")) | (np.isnan(a) & np.isnan(b))
    wrong = np.flatnonzero(~same.ravel())
    return f"{wrong.size} of {a.size} differ, first at {wrong[0]}" if wrong.size else ""


def same_bits(
    row: Activation, directions: Iterable[str], dtypes: Iterable[str], levels: Iterable[str]
) -> list[Outcome]:
    """Levels, threads, offsets, strides, pieces and in-place calls give the bits of one plain call."""
    result = []
    levels = [level for level in levels if level in SAME_BITS]
    for direction in directions:
        for dtype in dtypes:
            rng = np.random.default_rng(11)
            x = rng.normal(scale=8, size=(1 << 19) + 37).astype(dtype)
            x[::97] = oracle.ordered(rng.integers(-10_000_000, 10_000_000, x[::97].size), dtype)
            dy = rng.normal(size=x.size).astype(dtype)
            with fastnn.runtime.threads(1):
                plain = call(fastnn, row, direction, x, dy)

            def report(check: str, problem: str, d: str = direction, t: str = dtype) -> None:
                result.append(Outcome(row.name, check, not problem, f"{d} {t}: {problem}" if problem else ""))

            for level in levels:
                with fastnn.runtime.use_isa(level), fastnn.runtime.threads(1):
                    report("same bits on all levels", bits_differ(plain, call(fastnn, row, direction, x, dy)))
            for count in (2, 3):
                with fastnn.runtime.threads(count):
                    report(
                        "same bits on any number of threads", bits_differ(plain, call(fastnn, row, direction, x, dy))
                    )
            report("same bits at any offset, stride and in pieces", _pieces(row, direction, x, dy, plain))
    return result


def _pieces(row: Activation, direction: str, x: Array, dy: Array, plain: Array) -> str:
    x, dy, plain = x[:4200], dy[:4200], plain[:4200]
    for offset in (1, 2, 3, 5, 8, 15, 16, 17, 31):
        out = np.empty(x.size + 40, x.dtype)[offset : offset + x.size - offset]
        problem = bits_differ(plain[offset:], call(fastnn, row, direction, x[offset:], dy[offset:], out=out))
        if problem:
            return f"offset {offset}: {problem}"
    start = 0
    for length in (1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 65, 127, 255, 1023, 2000):
        part = slice(start, start + length)
        problem = bits_differ(plain[part], call(fastnn, row, direction, x[part], dy[part]))
        if problem:
            return f"piece of {length}: {problem}"
        start += length
    for name, view in (("stride 3", slice(None, None, 3)), ("stride -1", slice(None, None, -1))):
        problem = bits_differ(plain[view], call(fastnn, row, direction, x[view], dy[view]))
        if problem:
            return f"{name}: {problem}"
    target = x.copy()
    problem = bits_differ(plain, call(fastnn, row, direction, target, dy, out=target))
    return f"in place: {problem}" if problem else ""
