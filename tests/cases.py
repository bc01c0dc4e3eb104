"""What is tested: every row of the table with its parameters, the inputs, the layouts, the tolerances; and how.

A new row is tested with its default parameters from the moment it is in the table; the dictionaries here only add what
the table does not know.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import fastnn as fn
import fastnn.reference as ref
from fastnn._table import ACTIVATIONS, Activation
from fastnn.bench import cli
from fastnn.bench.oracle import interior_zero, ulp_error

Array = np.ndarray[Any, np.dtype[Any]]
DTYPES = (np.float16, np.float32, np.float64)

# Parameters beside the defaults: exact in float32, so that both precisions compute the same function.
PARAMETERS: dict[str, tuple[dict[str, float], ...]] = {
    "leaky_relu": ({"negative_slope": 0.0}, {"negative_slope": -0.5}, {"negative_slope": 2.0}),
    "hardtanh": ({"min_val": 0.0, "max_val": 0.0}, {"min_val": -2.0, "max_val": 0.5}),
    "elu": ({"alpha": 0.0}, {"alpha": -1.5}, {"alpha": 2.5}, {"alpha": 2.0**101}),
    "celu": ({"alpha": 0.3125}, {"alpha": -2.0}),
    "softplus": ({"beta": 0.28125}, {"beta": 20.0}),
}


@dataclass(frozen=True)
class Case:
    """A row of the table with fixed parameters, called through its public function."""

    row: Activation
    params: tuple[tuple[str, Any], ...] = ()

    @property
    def id(self) -> str:
        return "-".join([self.row.name, *(f"{name}={value}" for name, value in self.params)])

    def keywords(self, dtype: Any = np.float64) -> dict[str, Any]:
        """The parameters as the kernel for `dtype` rounds them."""
        compute = np.float64 if dtype == np.float64 else np.float32
        given = {p.name: p.default for p in self.row.params} | dict(self.params)
        return {name: float(compute(value)) for name, value in given.items()} | dict(self.row.options)

    def forward(self, module: ModuleType, x: Any, out: Any = None) -> Array:
        return getattr(module, self.row.function)(x, **self.keywords(), out=out)

    def backward(self, module: ModuleType, dy: Any, saved: Any, out: Any = None) -> Array:
        return getattr(module, self.row.function + "_backward")(dy, saved, **self.keywords(), out=out)

    def exact(self, x: Array) -> Array:
        """The reference in float64 at x, not rounded to x's dtype."""
        return getattr(ref, self.row.function)(x.astype(np.float64), **self.keywords(x.dtype))

    def exact_derivative(self, saved: Array) -> Array:
        """The reference's derivative in float64 at the saved values, not rounded to their dtype."""
        function = getattr(ref, self.row.function + "_backward")
        return function(np.ones(saved.shape), saved.astype(np.float64), **self.keywords(saved.dtype))

    def saved(self, x: Array) -> Array:
        """What backward is given for the input x."""
        return self.forward(ref, x) if self.row.saved == "y" else x

    def kinks(self) -> list[float]:
        return [0.0, -3.0, 3.0, 6.0, *(value for value in self.keywords().values() if isinstance(value, float))]


def cases() -> list[Case]:
    return [Case(row, tuple(params.items())) for row in ACTIVATIONS for params in ({}, *PARAMETERS.get(row.name, ()))]


def defaults() -> list[Case]:
    """A case a row."""
    return [Case(row) for row in ACTIVATIONS]


def edges(dtype: Any) -> Array:
    """Signed zeros, infinities, NaN, subnormals, the largest numbers, kinks and their neighbours."""
    limits = np.finfo(dtype)
    magnitudes = [0.0, np.inf, limits.max, limits.tiny, limits.smallest_subnormal, limits.eps, 0.5, 1.0, 3.0, 6.0]
    values = np.array(magnitudes, dtype)
    finite = values[np.isfinite(values)]
    with np.errstate(all="ignore"):
        near = np.concatenate([np.nextafter(finite, dtype(-np.inf)), np.nextafter(finite, dtype(np.inf))])
    both = np.concatenate([values, near])
    return np.concatenate([both, -both, np.array([np.nan], dtype)])


def sample(dtype: Any, n: int = 3000, seed: int = 0) -> Array:
    """Edges, numbers of the size that networks see, the tails of the exponential, and every order of magnitude."""
    rng = np.random.default_rng(seed)
    limits = np.finfo(dtype)
    tail = -np.log(float(limits.smallest_subnormal)) * 1.1
    exponents = rng.uniform(np.log2(float(limits.tiny)), np.log2(float(limits.max)) - 1e-3, n // 4)
    parts = [
        rng.normal(0, 2, n // 2),
        rng.uniform(-tail, tail, n - n // 2 - n // 4),
        np.exp2(exponents) * rng.choice([-1.0, 1.0], n // 4),
    ]
    return np.concatenate([edges(dtype), *(part.astype(dtype) for part in parts)])


@cache
def zero_of(row: Activation) -> float | None:
    """Where the derivative crosses zero: within 0.05 of it not its relative but an absolute error is promised."""
    return interior_zero(row)


def assert_ulp(got: Array, exact: Array, bound: float | Array, at: Array) -> None:
    """Fail with the worst input unless every error is at most `bound` ULP."""
    error = ulp_error(got, np.ascontiguousarray(exact))
    with np.errstate(invalid="ignore"):
        over = ~(error <= bound)
    if over.any():
        worst = int(np.argmax(np.where(over, error, -1.0)))
        raise AssertionError(
            f"at {at.flat[worst]!r}: {got.flat[worst]!r} instead of {exact.flat[worst]!r}, "
            f"{error.flat[worst]:.2f} ULP; {np.sum(over)} of {over.size} over the bound"
        )


def assert_derivative(case: Case, got: Array, exact: Array, saved: Array, bound: float) -> None:
    """`bound` ULP; near an interior zero 2 units of 2**-24 or 2**-53; of subnormal derivatives a few quanta."""
    limits = np.finfo(got.dtype)
    bounds = np.where(np.abs(exact) < limits.tiny, 8.0, bound)
    zero = zero_of(case.row)
    if zero is not None:
        near = np.abs(saved.astype(np.float64) - zero) < 0.05
        assert np.all(np.abs(got[near].astype(np.float64) - exact[near]) <= limits.eps)
        bounds = np.where(near, np.inf, bounds)
    assert_ulp(got, exact, bounds, saved)


def assert_same_bits(got: Array, want: Array, what: object = "") -> None:
    """Equal bit for bit, any NaN counting as any other."""
    assert got.dtype == want.dtype and got.shape == want.shape, (what, got.dtype, want.dtype, got.shape, want.shape)
    word = f"u{got.dtype.itemsize}"
    same = np.ascontiguousarray(got).view(word) == np.ascontiguousarray(want).view(word)
    same |= np.isnan(got) & np.isnan(want)
    if not same.all():
        index = np.unravel_index(int(np.argmin(same)), got.shape)
        raise AssertionError(f"{what}: {got[index]!r} instead of {want[index]!r} at {index}, {np.sum(~same)} differ")


def assert_begins_anywhere(call: Callable[[Array], object], want: Array, offsets: Iterable[int]) -> None:
    """call(out) writes the bits of want, wherever out begins, and nothing beside it."""
    for offset in offsets:
        raw = np.full(want.size + 100, 7, want.dtype)
        out = raw[offset : offset + want.size].reshape(want.shape)
        call(out)
        assert_same_bits(out, want, offset)
        assert np.all(raw[:offset] == 7) and np.all(raw[offset + want.size :] == 7)


def layouts(values: Array, folder: Any) -> Iterator[tuple[str, Array]]:
    """The same numbers, values.shape == (rows, columns), in every layout an array can have."""
    rows, columns = values.shape
    yield "contiguous", values.copy()
    wide = np.zeros((rows, 3 * columns), values.dtype)
    wide[:, ::3] = values
    yield "strided", wide[:, ::3]
    tall = np.zeros((2 * rows, columns), values.dtype)
    tall[::2] = values
    yield "rows strided", tall[::2]
    yield "reversed", values[::-1, ::-1].copy()[::-1, ::-1]
    yield "columns reversed", values[:, ::-1].copy()[:, ::-1]
    yield "fortran", np.asfortranarray(values)
    yield "byte-swapped", values.astype(values.dtype.newbyteorder())
    raw = np.zeros(values.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(values.dtype).reshape(values.shape)
    misaligned[...] = values
    yield "misaligned", misaligned
    offset = np.zeros(values.size + 1, values.dtype)[1:].reshape(values.shape)
    offset[...] = values
    yield "offset by one", offset
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(values.tobytes())
    yield "read-only memmap", np.memmap(file.name, values.dtype, "r", shape=values.shape)


class Tagged(np.ndarray):
    """A subclass with an attribute of its own."""

    def __array_finalize__(self, obj):
        if obj is not None:
            self.tag = getattr(obj, "tag", None)


def run(script: str, **environment: str) -> tuple[str, str]:
    """Run a script in a fresh interpreter, where fastnn is imported with this environment; its output and errors."""
    clean = {k: v for k, v in os.environ.items() if k not in ("FASTNN_ISA", "FASTNN_NUM_THREADS", "OMP_NUM_THREADS")}
    path = os.pathsep.join([str(Path(fn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**clean, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def interrupted_after(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, in which Ctrl-C is pressed at every call after so many."""
    left = iter(range(calls))

    def interrupted(*args: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return function(*args)

    return interrupted


def bench_arguments(*words: str) -> argparse.Namespace:
    """What the command line of the benchmark makes of these words."""
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(words)
