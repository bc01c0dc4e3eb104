"""The NumPy twin of fastnn: same names, signatures and errors, computed in float64 and rounded once.

    import fastnn.reference as fn

It is the oracle of the tests, the documentation of every formula, and a backend that computes with nothing compiled.
"""

from fastnn.reference import activations, diagnostics, init, normalization, preprocessing
from fastnn.reference.activations import *  # noqa: F403
from fastnn.reference.normalization import *  # noqa: F403

__all__ = ["diagnostics", "init", "preprocessing", *activations.__all__, *normalization.__all__]
