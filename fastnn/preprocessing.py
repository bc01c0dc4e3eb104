"""Data preprocessing: zero-centring, standardizing, decorrelating, whitening; of an array, a stream, or parts of one.

`zero_center` and `standardize` do it once. `Standardizer`, `PCA` and `Whitener` learn it from training data and apply
it to the test data as well; they follow scikit-learn's estimator conventions. `Moments` is what they are built on:
count, mean and sum of squared deviations of every feature, updated block by block and merged in any order, so that a
fit can be split over files, processes or machines.

Inputs
    Any real array-like. float16, float32 and float64 stay what they are, integers and bools become float64; whatever
    the input is, statistics are float64, and none of them is a difference of two large numbers. Arrays of any strides
    and byte order are read in tiles, without a copy of the whole.

Errors
    TypeError for what is no real array or no such parameter. ValueError for a wrong number of dimensions or features,
    and for data that nothing can be learnt from: no samples, NaN or infinity (the message names the column), values
    whose squares overflow float64; a fit that fails changes nothing. `NotFittedError` for using what was not fitted.

A feature without variance is no error: it is divided by 1 instead, as in scikit-learn, so it becomes 0.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from fastnn import _core, _passes, _preprocessing
from fastnn._passes import Array
from fastnn._preprocessing import NotFittedError, center_and_scale

__all__ = ["PCA", "Moments", "NotFittedError", "Standardizer", "Whitener", "standardize", "zero_center"]


class Passes(_passes.Passes):
    """The compiled passes."""

    moments = staticmethod(_core.moments)
    combine = staticmethod(_core.combine_moments)
    affine = staticmethod(_core.affine)


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
    """Subtract the mean over `axis`: ``x - x.mean(axis)``.

    With images (N, H, W, C) axis=0 subtracts the mean image and axis=(0, 1, 2) the mean of every channel.

    Args:
        x: real array-like.
        axis: the axis or axes that the mean is taken over; None for all of them.
        out: array for the result, of x's shape and of the result's dtype; may be `x` itself.

    Returns:
        Array of x's shape; float16, float32 or float64 as `x` is, float64 for integers. `out` if it was given.

    Raises:
        ValueError: NaN or infinity in `x`.

    Source: CS231n, Neural Networks Part 2, "Data Preprocessing".
    """
    return center_and_scale(x, axis, out, False, Passes)


def standardize(x: ArrayLike, axis: int | tuple[int, ...] | None = 0, *, out: Array | None = None) -> Array:
    """Subtract the mean over `axis` and divide by the standard deviation: ``(x - x.mean(axis)) / x.std(axis)``.

    Where the deviation is 0 the result is 0. Arguments, result and errors are those of `zero_center`.

    Source: CS231n, Neural Networks Part 2, "Data Preprocessing".
    """
    return center_and_scale(x, axis, out, True, Passes)
