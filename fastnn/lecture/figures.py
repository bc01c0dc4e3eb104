"""The look of the figures: one palette, one type size, no clutter. The only module that imports matplotlib."""

from __future__ import annotations

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler

INK, MUTED, GRID, PAPER = "#1f2933", "#6b7683", "#e4e7eb", "#ffffff"
BLUE, ORANGE, GREEN, RED, PURPLE, TEAL, GREY = (
    "#2f6fb2",
    "#e07b1a",
    "#2f9e5b",
    "#cf3f3f",
    "#8558b8",
    "#159a9c",
    "#98a2ad",
)
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, TEAL, GREY)
ACTIVATION_COLOR = {"sigmoid": ORANGE, "tanh": BLUE, "relu": GREEN, "leaky_relu": PURPLE}

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": cycler(color=CYCLE),
}


def panels(
    rows: int = 1, columns: int = 1, *, width: float = 5.0, height: float = 3.6, **options: Any
) -> tuple[Any, Any]:
    """A figure and its axes. 5 inches wide is what a phone shows at a legible size."""
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def house_style() -> Any:
    """A context in which figures look like the report's; afterwards matplotlib's settings are as before."""
    return plt.rc_context(STYLE)


def png(figure: Any, dpi: int = 170) -> bytes:
    """The drawing as PNG; the figure is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def legend_below(axes: Any, columns: int = 2, **options: Any) -> None:
    """The legend under the axes, where it hides nothing."""
    axes.legend(ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.17), **options)


def smooth(values: Any, window: int) -> Any:
    """Running mean, for loss curves that would otherwise be a band of noise."""
    values = np.asarray(values, dtype=np.float64)
    window = max(1, min(window, len(values)))
    total = np.cumsum(np.concatenate([[0.0], values]))
    starts = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    ends = np.arange(1, len(values) + 1)
    return (total[ends] - total[starts]) / (ends - starts)
