"""fastnn: fast, accurate and reproducible CPU kernels for neural-network activations and normalization."""

from fastnn import runtime
from fastnn.activations import *  # noqa: F403
from fastnn.normalization import *  # noqa: F403

__version__ = "0.1.0"
