"""Activation functions and their gradients; the compiled functions, whose table is fastnn/_table.py.

The elementwise ones are generated from the table; softmax, log_softmax, prelu, maxout and cross_entropy look at more than
one element at a time. `fastnn.reference.activations` holds the same functions in plain NumPy.
"""

from fastnn import _core
from fastnn._core import *  # noqa: F403  the names below, and no others

__all__ = list(_core.ACTIVATION_FUNCTIONS)
