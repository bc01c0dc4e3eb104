"""The experiments, one a module: each has NAME, TITLE, CLAIM and ``run(context) -> Result``."""

from __future__ import annotations

import importlib
import time
from dataclasses import replace
from types import ModuleType

import numpy as np

from fastnn.lecture.experiment import Context, Result

# in the order of the lecture
NAMES = ("activations", "zigzag", "dead-relu", "preprocessing", "initialization", "batch-norm", "speed")


def load(name: str) -> ModuleType:
    """The module of an experiment; imported only when asked for, because it draws with matplotlib."""
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def run(name: str, context: Context) -> Result:
    """Run an experiment, in the house style and without warnings of the overflows that some of them are about."""
    module = load(name)
    from fastnn.lecture.figures import house_style

    start = time.perf_counter()
    with house_style(), np.errstate(over="ignore", invalid="ignore"):
        result: Result = module.run(context)
    return replace(result, seconds=time.perf_counter() - start)
