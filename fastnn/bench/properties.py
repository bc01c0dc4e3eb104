"""Verification of what is not elementwise: softmax and its kin, maxout, prelu, cross-entropy, the normalizations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

import fastnn
import fastnn.reference as reference
from fastnn.bench.cases import OPS, Case, DataCache, Op, fastnn_call
from fastnn.bench.checks import SAME_BITS, Outcome, bits_differ
from fastnn.bench.oracle import ulp_error

Array = np.ndarray[Any, np.dtype[Any]]
Levels = Iterable[str]

ROWS_LIMIT = 4.0  # ULP
OUTPUT_LIMIT = 4e-7  # absolute, of a normalised float32 output
GRADIENT_LIMIT = 1e-5  # of the largest element of the exact gradient


def _on_levels(levels: Levels, measure: Callable[[], float]) -> Iterator[tuple[str, float]]:
    for level in levels:
        with fastnn.runtime.use_isa(level):
            yield level, measure()


def _worst(name: str, check: str, limit: float, found: Iterable[tuple[str, float]]) -> Outcome:
    """One line for all cases of a check: the worst of them, and where it was."""
    where, value = max(found, key=lambda item: item[1] if item[1] == item[1] else np.inf)
    return Outcome(name, check, bool(value <= limit), f"{value:.3g} ({where}), limit {limit:g}")


# --- softmax, log_softmax ---------------------------------------------------------------------------------------------


def _row_inputs(dtype: str) -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(17)
    for length in (1, 2, 3, 10, 17, 100, 1000, 4099):
        for scale in (0.1, 1.0, 10.0, 80.0):
            yield f"rows of {length}, scale {scale:g}", rng.normal(scale=scale, size=(8, length)).astype(dtype)


def softmax(name: str, levels: Levels) -> list[Outcome]:
    found = []
    for label, x in _row_inputs("float32"):
        exact = getattr(reference, name)(x.astype(np.float64))
        # a result below the normal numbers may be off by a unit of the smallest one more
        measure = partial(_row_error, name, x, exact)
        found += [(f"{label}, {level}", value) for level, value in _on_levels(levels, measure)]
    result = [_worst(name, "float32 error in ULP", ROWS_LIMIT, found)]
    for dtype in ("float32", "float64"):
        x = np.array([[1.0, -np.inf, 2.0], [1.0, np.inf, 2.0], [-np.inf] * 3, [np.nan, 1.0, 2.0], [1e30] * 3], dtype)
        want = getattr(reference, name)(x)
        for level in levels:
            with fastnn.runtime.use_isa(level):
                got = getattr(fastnn, name)(x)
            ok = bool(np.allclose(got, want, rtol=1e-6, equal_nan=True))
            result.append(Outcome(name, "special values", ok, "" if ok else f"{dtype} on {level}: {got.tolist()}"))
    return result


def _row_error(name: str, x: Array, exact: Array) -> float:
    return float(ulp_error(getattr(fastnn, name)(x), exact).max())


# --- the ones that select ---------------------------------------------------------------------------------------------


def against_reference(op: Op, tolerance: float, levels: Levels) -> list[Outcome]:
    """Every result within the tolerance of the reference's, relative to the largest element of it."""
    found = []
    for direction in op.directions:
        for shape in _shapes(op):
            case = Case(op, direction, shape, "float32", "fresh")
            data = DataCache().arrays(case)
            want = _everything(reference, case, data)
            for level in levels:
                with fastnn.runtime.use_isa(level):
                    got = _everything(fastnn, case, data)
                error = _largest(got, want)
                found.append((f"{direction} {shape} on {level}", error))
    return [_worst(op.name, "agrees with the reference", tolerance, found)]


def _everything(module: Any, case: Case, data: dict[str, Any]) -> tuple[Array, ...]:
    call = fastnn_call(module, case, data)
    value = call.function(*call.args, **call.kwargs)
    return tuple(np.asarray(v) for v in (value if isinstance(value, tuple) else (value,)))


def _largest(got: Iterable[Array], want: Iterable[Array]) -> float:
    """The relative error of the worst result: NaN if any is, which Python's max may drop."""
    return float(np.max([_relative(a, b) for a, b in zip(got, want, strict=True)]))


def _relative(got: Array, want: Array) -> float:
    if got.dtype != want.dtype or got.shape != want.shape:
        return float("inf")
    if not want.size:
        return 0.0
    wide = want.astype(np.float64)
    return float(np.abs(got.astype(np.float64) - wide).max() / max(float(np.abs(wide).max()), 1e-300))


def _shapes(op: Op) -> tuple[tuple[int, ...], ...]:
    if op.kind in ("group", "instance"):
        return ((5, 64, 9, 7), (2, 32, 33))
    if op.name.endswith("_last"):
        return ((5, 9, 7, 33), (16, 16, 16, 64))
    if op.kind in ("batch", "inference", "stats"):
        return ((67, 130), (1000, 3), (5, 33, 9, 7), (16, 64, 16, 16))
    return ((67, 130), (300, 1000))


def same_bits(op: Op, levels: Levels) -> list[Outcome]:
    """All results are the same bits on every level and any number of threads."""
    result = []
    levels = [level for level in levels if level in SAME_BITS]
    for direction in op.directions:
        for dtype in ("float32", "float64"):
            for shape in _shapes(op):
                case = Case(op, direction, shape, dtype, "fresh")
                data = DataCache().arrays(case)
                with fastnn.runtime.threads(1):
                    plain = _everything(fastnn, case, data)
                for level in levels:
                    with fastnn.runtime.use_isa(level), fastnn.runtime.threads(1):
                        problem = _first_difference(plain, _everything(fastnn, case, data))
                    where = f"{direction} {dtype} {shape} on {level}: {problem}" if problem else ""
                    result.append(Outcome(op.name, "same bits on all levels", not problem, where))
                for count in (2, 3):
                    with fastnn.runtime.threads(count):
                        problem = _first_difference(plain, _everything(fastnn, case, data))
                    where = f"{direction} {dtype} {shape} on {count} threads: {problem}" if problem else ""
                    result.append(Outcome(op.name, "same bits on any number of threads", not problem, where))
    return result


def _first_difference(plain: tuple[Array, ...], other: tuple[Array, ...]) -> str:
    for position, (a, b) in enumerate(zip(plain, other, strict=True)):
        problem = bits_differ(a, b)
        if problem:
            return f"result {position}: {problem}"
    return ""


# --- normalizations ---------------------------------------------------------------------------------------------------

_NORMS: dict[str, tuple[tuple[tuple[int, ...], ...], tuple[Any, ...]]] = {
    "batch_norm": (((2, 3), (64, 100), (100_000, 2), (7, 5, 9, 8), (8, 16, 28, 28)), ()),
    "layer_norm": (((3, 2), (64, 100), (3, 4099)), ()),
    "rms_norm": (((3, 2), (64, 100), (3, 4099)), ()),
    "group_norm": (((7, 8, 9, 8), (2, 8, 56, 56)), (4,)),
    "instance_norm": (((7, 8, 9, 8), (2, 8, 56, 56)), ()),
}


def _norm_inputs(name: str) -> Iterator[tuple[str, Array, float]]:
    rng = np.random.default_rng(23)
    for shape in _NORMS[name][0]:
        for offset, scale in ((0, 1), (100, 1), (1e4, 1), (0, 1e-30), (0, 1e30), (1e32, 1e30)):
            x = (offset + scale * rng.normal(size=shape)).astype(np.float32)
            yield f"{shape}, mean {offset:g}, scale {scale:g}", x, 1e-5 if scale == 1 else 0.0
    if name == "layer_norm":
        yield "mean 2000", (2000 + rng.normal(size=(64, 512))).astype(np.float32), 1e-5
        yield "40000..40003", np.array([[40000, 40001, 40002, 40003]], np.float32), 1e-5


def norm_accuracy(name: str, levels: Levels) -> list[Outcome]:
    """Output and gradients against the reference in float64, for means and scales that break naive formulas."""
    extra = _NORMS[name][1]
    outputs, gradients = [], []
    for label, x, eps in _norm_inputs(name):
        rng = np.random.default_rng(29)
        dy = np.asarray(rng.normal(size=x.shape), np.float32)
        wide = x.astype(np.float64)
        y, *stats = getattr(reference, name)(wide, *extra, eps=eps)
        backward = name + "_backward"
        exact = getattr(reference, backward)(dy.astype(np.float64), wide, *stats, *extra)
        for level in levels:
            with fastnn.runtime.use_isa(level):
                result = getattr(fastnn, name)(x, *extra, eps=eps)
                got, own = np.asarray(result[0], np.float64), result[1:]
                grads = getattr(fastnn, backward)(dy, x, *own, *extra)
            outputs.append((f"{label}, {level}", float(np.abs(got - y).max())))
            error = _largest([np.asarray(a, np.float64) for a in grads], exact)
            if x.size > 6:  # normalized over two values, the gradient is zero: nothing to be relative to
                gradients.append((f"{label}, {level}", error))
    return [
        _worst(name, "float32 output, absolute error", OUTPUT_LIMIT, outputs),
        _worst(name, "float32 gradients, relative error", GRADIENT_LIMIT, gradients),
    ]


def batch_norm_edges(levels: Levels) -> list[Outcome]:
    """A constant channel and a single sample give beta exactly; NaN and infinity stay in their channel."""
    result = []
    gamma, beta = np.array([2.0, 3.0, 4.0], np.float32), np.array([0.5, -1.25, 1e-3], np.float32)
    for level in levels:
        with fastnn.runtime.use_isa(level):
            for constant in (0.1234, -7.0, 1e30, 1e-38, 40000.5):
                x = np.full((1000, 3), constant, np.float32)
                y = fastnn.batch_norm(x, gamma, beta)[0]
                ok = bool((y == beta).all())
                detail = "" if ok else f"{constant:g} on {level}: off by {np.abs(y - beta).max():.3g}"
                result.append(Outcome("batch_norm", "a constant channel gives beta", ok, detail))
            y = fastnn.batch_norm(np.array([[1.0, -2.0, 3e30]], np.float32), gamma, beta)[0]
            ok = bool((y == beta).all())
            result.append(Outcome("batch_norm", "one sample gives beta", ok, "" if ok else f"{y.tolist()} on {level}"))
            rng = np.random.default_rng(31)
            for shape in ((100, 3), (9, 3, 5, 7)):
                x = rng.normal(size=shape).astype(np.float32)
                clean = fastnn.batch_norm(x, gamma, beta)[0]
                for bad in (np.nan, np.inf, -np.inf):
                    x[3, 1] = bad
                    y = fastnn.batch_norm(x, gamma, beta)[0]
                    ok = bool((y[:, [0, 2]] == clean[:, [0, 2]]).all() and np.isnan(y[:, 1]).all())
                    detail = "" if ok else f"{bad} in {shape} on {level}"
                    result.append(Outcome("batch_norm", "NaN and infinity stay in their channel", ok, detail))
    return result


# --- the list ---------------------------------------------------------------------------------------------------------

Check = tuple[str, str, Callable[[Levels], list[Outcome]]]


def _checks() -> Iterator[Check]:
    yield "softmax", "activations", partial(softmax, "softmax")
    yield "log_softmax", "activations", partial(softmax, "log_softmax")
    for op in OPS:
        if op.kind in ("map", "step"):
            continue
        if op.kind in ("maxout", "prelu", "cross_entropy", "inference", "stats"):
            yield op.forward, op.family, partial(against_reference, op, 0.0 if op.kind == "maxout" else 1e-6)
        yield op.forward, op.family, partial(same_bits, op)
    for name in _NORMS:
        yield name, "normalization", partial(norm_accuracy, name)
    yield "batch_norm", "normalization", batch_norm_edges


CHECKS: tuple[Check, ...] = tuple(_checks())
