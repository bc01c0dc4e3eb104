"""Diagnostics in plain NumPy; only `activation_stats` has a kernel, the others are those of `fastnn.diagnostics`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from fastnn._diagnostics import (
    ActivationStats,
    Array,
    Bounds,
    GradientStats,
    dead_units,
    gradient_check,
    gradient_flow,
    saturation,
    summarized,
)
from fastnn.reference.preprocessing import Passes, Vector

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
    """Return statistics of a layer's outputs; see `fastnn.diagnostics.activation_stats`."""
    return summarized(y, activation, bins, range, _finite_range, _summarize, Passes.combine)


def _finite_range(tile: Array) -> Bounds:
    finite = tile[np.isfinite(tile)]
    return (float(finite.min()), float(finite.max())) if finite.size else (math.inf, -math.inf)


def _summarize(
    tile: Array, units: int, bins: int, first: float, last: float, low: float, high: float
) -> tuple[Vector, Array, int, Array]:
    """State, histogram, number of saturated elements and living units."""
    values = tile.astype(np.float64)
    counts, _ = np.histogram(values[np.isfinite(values)], bins, (first, last))
    saturated = int(np.count_nonzero((values <= low) | (values >= high)))
    alive = np.asarray(values.reshape(-1, units).any(axis=0))
    return Passes.moments(values.reshape(-1, 1)), counts, saturated, alive
