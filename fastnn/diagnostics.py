"""Diagnostics of a network: saturated and dead units, statistics of activations, flow and correctness of gradients.

Inputs are real array-likes of any dtype, strides and byte order; nothing is written to them, and results are Python
numbers and new arrays. Statistics are taken in float64. NaN and infinity, which a network that diverges is full of,
are no errors here: they make mean and deviation NaN, they are outside every histogram, and NaN counts neither as
saturated nor as dead.

Errors: TypeError for what is no real array, network or number; ValueError for an array without the values that a
statistic needs, an unknown activation, or numbers and shapes out of range; numpy.exceptions.AxisError for an axis out
of range.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from fastnn import _core
from fastnn._diagnostics import (
    ActivationStats,
    Bounds,
    GradientStats,
    dead_units,
    gradient_check,
    gradient_flow,
    saturation,
    summarized,
)

__all__ = [
    "ActivationStats",
    "GradientStats",
    "activation_stats",
    "dead_units",
    "gradient_check",
    "gradient_flow",
    "saturation",
]


def activation_stats(
    y: ArrayLike, activation: str | Bounds = "tanh", *, bins: int = 50, range: Bounds | None = None
) -> ActivationStats:
    """Return mean, standard deviation, histogram, saturated share and dead share of a layer's outputs in one pass.

    Args:
        y: outputs (samples, ...), not empty; everything after the first axis are units.
        activation: decides what is saturated; see `saturation`.
        bins: number of the histogram's bins, all of one width.
        range: from where to where the histogram goes; what lies outside is not counted. None: from the smallest to the
            largest finite output, which takes a second look at the data.

    Returns:
        `ActivationStats`: mean and std of all entries; histogram (counts, edges) as numpy.histogram makes it of y in
        float64; saturated, the share of the entries; dead, the share of the units that are 0 for every sample.
    """
    return summarized(y, activation, bins, range, _core.finite_range, _core.summarize, _core.combine_moments)
