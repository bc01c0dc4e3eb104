"""The two backends that every experiment can run on: modules with the same names and signatures."""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES = ("fastnn", "reference")


def load(name: str) -> ModuleType:
    """The module ``fastnn`` (compiled kernels) or ``fastnn.reference`` (plain NumPy), with its submodules imported."""
    if name not in NAMES:
        raise ValueError(f"backend is {name!r}; it must be one of {', '.join(NAMES)}")
    path = "fastnn" if name == "fastnn" else "fastnn.reference"
    for part in ("init", "preprocessing", "diagnostics"):
        importlib.import_module(f"{path}.{part}")
    return importlib.import_module(path)


def label(backend: ModuleType) -> str:
    """The name that ``--backend`` takes for a module."""
    return backend.__name__.rpartition(".")[2]
