"""Preprocessing on plain NumPy passes: what `fastnn.preprocessing` computes, in float64 and in the obvious way.

The classes and the checks are those of `fastnn.preprocessing`; the passes over the data are plain.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from fastnn import _passes, _preprocessing
from fastnn._passes import Array, Vector
from fastnn._preprocessing import NotFittedError, center_and_scale
from fastnn.reference._numerics import two_sum

__all__ = ["PCA", "Moments", "NotFittedError", "Standardizer", "Whitener", "standardize", "zero_center"]


class Passes(_passes.Passes):
    """The passes in NumPy."""

    @staticmethod
    def moments(block: Array) -> Vector:
        """Mean and M2 of every column in two passes, and the rounding error of the mean."""
        if not len(block):
            return np.zeros((4, block.shape[1]))
        n = len(block)
        with np.errstate(all="ignore"):
            values = block.astype(np.float64)
            mean = _sum(values) / n
            deviations = values - mean
            low = _sum(deviations) / n
            squares = _sum(deviations**2) - n * low**2
        return np.stack([mean, low, squares, np.zeros_like(mean)])

    @staticmethod
    def combine(n: int, state: Vector, m: int, other: Vector) -> Vector:
        """State of n + m samples, in exact arithmetic."""
        result = np.empty_like(state)
        for column in range(state.shape[1]):
            (mean, squares), (other_mean, other_squares) = (
                (Fraction(high) + Fraction(low), Fraction(total) + Fraction(rest))
                for high, low, total, rest in (state[:, column].tolist(), other[:, column].tolist())
            )
            squares += other_squares + (mean - other_mean) ** 2 * n * m / (n + m)
            mean = (n * mean + m * other_mean) / (n + m)
            result[:, column] = *_halves(mean), *_halves(squares)
        return result

    @staticmethod
    def affine(x: Array, vectors: Vector, y: Array) -> None:
        shift, low, factor, offset = vectors
        with np.errstate(all="ignore"):
            y[...] = ((x - shift) - low) * factor + offset


class Moments(_preprocessing.Moments):
    __doc__ = _preprocessing.Moments.__doc__
    passes = Passes


class Standardizer(_preprocessing.Standardizer):
    __doc__ = _preprocessing.Standardizer.__doc__
    moments_type = Moments


class PCA(_preprocessing.PCA):
    __doc__ = _preprocessing.PCA.__doc__
    moments_type = Moments


class Whitener(_preprocessing.Whitener):
    __doc__ = _preprocessing.Whitener.__doc__
    moments_type = Moments


def zero_center(x: ArrayLike, axis: int | tuple[int, ...] | None = 0, *, out: Array | None = None) -> Array:
    """Subtract the mean over `axis`; see `fastnn.preprocessing.zero_center`."""
    return center_and_scale(x, axis, out, False, Passes)


def standardize(x: ArrayLike, axis: int | tuple[int, ...] | None = 0, *, out: Array | None = None) -> Array:
    """Subtract the mean and divide by the standard deviation; see `fastnn.preprocessing.standardize`."""
    return center_and_scale(x, axis, out, True, Passes)


def _halves(number: Fraction) -> tuple[float, float]:
    """Return the nearest float and what is missing."""
    try:
        return float(number), float(number - Fraction(float(number)))
    except OverflowError:
        return math.inf, 0.0


def _sum(rows: Vector) -> Vector:
    """Return the sum of the rows, rounded once or nearly so: pairs of rows, pairs of pairs, and so on."""
    lost = np.zeros_like(rows)
    while len(rows) > 1:
        if len(rows) % 2:
            rows, lost = (np.concatenate([each, np.zeros_like(each[:1])]) for each in (rows, lost))
        rows, now = two_sum(rows[::2], rows[1::2])
        lost = lost[::2] + lost[1::2] + now
    return rows[0] + lost[0]
