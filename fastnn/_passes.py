"""The passes over data that preprocessing is built on, and how arrays of any layout and axes are brought to them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastnn import _checks

Array = NDArray[np.floating[Any]]
Vector = NDArray[np.float64]
Index = tuple[Any, ...]  # of slices, one an axis

TILE = 1 << 17  # elements read at a time where the kernels cannot take an array as it is: a megabyte of float64


class Passes:
    """The passes over data that all else is built on, for the compiled and for the plain module to define.

    A *state* is a float64 array (4, D): mean and M2 of D features, each as an unevaluated sum of two float64 (rows
    mean, mean_low, M2, M2_low). The low halves keep what merging would lose where the mean is a million deviations,
    or next to nothing.
    """

    @staticmethod
    def moments(block: Array) -> Vector:
        """State of the samples (N, D); `block` is contiguous, native float32 or float64, as everywhere here."""
        raise NotImplementedError

    @staticmethod
    def combine(n: int, state: Vector, m: int, other: Vector) -> Vector:
        """State of n + m samples; neither count is 0."""
        raise NotImplementedError

    @staticmethod
    def affine(x: Array, vectors: Vector, y: Array) -> None:
        """y = (x - shift - low) * factor + offset, where vectors (4, D) holds these four; `y` may be `x` itself."""
        raise NotImplementedError


def result_dtype(x: Array) -> np.dtype[Any]:
    """x's own in native order; float64 for integers."""
    return x.dtype.newbyteorder("=") if x.dtype.kind == "f" else np.dtype(np.float64)


def vectors(shift: Vector, low: Vector | float, factor: Vector | float, offset: Vector | float) -> Vector:
    """Return what `Passes.affine` takes."""
    stacked = np.empty((4, *shift.shape))
    stacked[0], stacked[1], stacked[2], stacked[3] = shift, low, factor, offset
    return stacked


def moments(x: Array, axes: tuple[int, ...], passes: type[Passes]) -> Vector:
    """Return the state of `x` over `axes`, of shape (4, *other axes); raise where a value or a sum is not finite."""
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    if _fits((x,), axes):
        found = passes.moments(_flattened(x, len(axes)))
        state = found.reshape(4, *x.shape[len(axes) :])
        if not np.isfinite(found).all():
            _refuse(x, kept, state)
        return state
    state = np.zeros((4, *(x.shape[axis] for axis in kept)))
    counts: dict[tuple[tuple[int, int], ...], int] = {}
    for tile in _tiles(x):
        part = _as_rows(x[tile], axes)
        where = (slice(None), *(tile[axis] for axis in kept))
        found = passes.moments(part)
        key = tuple((tile[axis].start, tile[axis].stop) for axis in kept)
        if (seen := counts.get(key, 0)) and np.isfinite(found).all():
            found = passes.combine(seen, np.ascontiguousarray(state[where].reshape(4, -1)), len(part), found)
        counts[key] = seen + len(part)
        state[where] = found.reshape(state[where].shape)
        if not np.isfinite(found).all():
            _refuse(x, kept, state)
    return state


def _refuse(x: Array, kept: list[int], state: Vector) -> None:
    """Say why the state is not finite."""
    column = tuple(int(index) for index in np.argwhere(~np.isfinite(state).all(axis=0))[0])
    index: list[Any] = [slice(None)] * x.ndim
    for axis, number in zip(kept, column, strict=True):
        index[axis] = number
    values = x[tuple(index)]
    name = f"column {column[0]}" if len(column) == 1 else f"entry {column}" if column else "x"
    if np.isnan(values).any():
        what = "NaN"
    elif np.isinf(values).any():
        what = "infinity"
    else:
        raise ValueError(f"{name}: the sum of squared deviations overflows float64; scale the data down")
    raise ValueError(f"{name} holds {what}, which has no mean; remove or replace such samples first")


def affine(x: Array, axes: tuple[int, ...], vectors: Vector, out: Array | None, passes: type[Passes]) -> Array:
    """Return ``(x - shift - low) * factor + offset``.

    vectors is (4, *other axes), as `vectors` makes it.
    """
    dtype = result_dtype(x)
    _checks.check_out(out, x.shape, dtype)
    overlapping = out is not None and _checks.partly_overlaps(x, out)
    result = np.empty(x.shape, dtype) if out is None or overlapping else out
    kept = [axis for axis in range(x.ndim) if axis not in axes]
    if _fits((x, result), axes):
        passes.affine(_flattened(x, len(axes)), vectors.reshape(4, -1), _flattened(result, len(axes)))
        return _delivered(result, out, overlapping)
    for tile in _tiles(x):
        rows = _as_rows(x[tile], axes)
        moved = np.moveaxis(result[(*tile, Ellipsis)], axes, range(len(axes)))
        direct = moved.flags.carray and moved.dtype == rows.dtype
        staged = moved.reshape(rows.shape) if direct else np.empty_like(rows)
        numbers = vectors[(slice(None), *(tile[axis] for axis in kept))].reshape(4, -1)
        passes.affine(rows, np.ascontiguousarray(numbers), staged)
        if not direct:
            with np.errstate(over="ignore", under="ignore"):
                moved[...] = staged.reshape(moved.shape)
    return _delivered(result, out, overlapping)


def _delivered(result: Array, out: Array | None, overlapping: bool) -> Array:
    if out is None:
        return result
    if overlapping:
        out[...] = result
    return out


def _fits(arrays: tuple[Array, ...], axes: tuple[int, ...]) -> bool:
    """Whether the kernels take the arrays as they are."""
    return axes == tuple(range(len(axes))) and all(
        a.flags.c_contiguous and a.flags.aligned and a.dtype.isnative and a.dtype.char in "fd" for a in arrays
    )


def _as_rows(tile: Array, axes: tuple[int, ...]) -> Array:
    """Return a tile as the kernels take it: (N, D), contiguous, native float32 or float64. A view where it is that."""
    rows = _flattened(np.moveaxis(tile, axes, range(len(axes))), len(axes))
    dtype = np.float32 if tile.dtype.kind == "f" and tile.dtype.itemsize == 4 else np.float64
    return np.require(rows, dtype, ["C", "A"])


def _flattened(x: Array, leading: int) -> Array:
    """Return `x` as a matrix whose rows are the first so many axes."""
    return x.reshape(math.prod(x.shape[:leading]), math.prod(x.shape[leading:]))


def _tiles(x: Array) -> Iterator[Index]:
    """Yield the parts of an array that are brought to the kernels one after the other."""
    steps = list(x.shape)
    # Cut the axis with the longest stride first, so that what is read together lies together.
    for axis in sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis])):
        others = math.prod(step for other, step in enumerate(steps) if other != axis)
        steps[axis] = max(min(x.shape[axis], TILE // max(others, 1)), 1)
    counts = [-(-size // step) for size, step in zip(x.shape, steps, strict=True)]
    for corner in np.ndindex(*counts):
        yield tuple(
            slice(number * step, min((number + 1) * step, size))
            for number, step, size in zip(corner, steps, x.shape, strict=True)
        )
