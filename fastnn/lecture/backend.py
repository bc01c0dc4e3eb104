"""The two backends that networks and experiments run on: modules with the same names and signatures.

``fastnn`` are the compiled kernels, ``fastnn.reference`` is plain NumPy. Their parts for initialization, preprocessing
and diagnostics are imported here, so that everything is an attribute of the one module.
"""

from __future__ import annotations

from types import ModuleType

import fastnn.diagnostics
import fastnn.init
import fastnn.preprocessing
import fastnn.reference.diagnostics
import fastnn.reference.init
import fastnn.reference.preprocessing

BACKENDS: dict[str, ModuleType] = {"fastnn": fastnn, "reference": fastnn.reference}
