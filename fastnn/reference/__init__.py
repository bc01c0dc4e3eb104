"""The NumPy twin of fastnn: same names, signatures and errors, computed in float64 and rounded once.

    import fastnn.reference as fn

It is the oracle of the tests, the documentation of every formula, and a backend that computes with nothing compiled.
`fn.runtime` is fastnn's own, for programs that choose threads: it changes nothing here.
"""

from typing import TYPE_CHECKING

from fastnn.reference import activations, diagnostics, init, normalization, preprocessing
from fastnn.reference.activations import *  # noqa: F403
from fastnn.reference.normalization import *  # noqa: F403

if TYPE_CHECKING:
    from fastnn import runtime
else:

    def __getattr__(name):
        if name == "runtime":  # which loads what is compiled
            from fastnn import runtime

            return runtime
        raise AttributeError(f"module 'fastnn.reference' has no attribute {name!r}")


__all__ = ["diagnostics", "init", "preprocessing", "runtime", *activations.__all__, *normalization.__all__]
