"""Drop-in adapters: fastnn underneath programs that are written for another library.

One module a host: ``cs231n``, ``sklearn``, ``thinc``, ``autograd``, ``torch`` and ``jax``. Importing this package
imports none of them; a host is imported when its adapter is first asked for, as ``fastnn.backends.torch`` or ``from
fastnn.backends import torch``. The adapters hold no arithmetic worth speeding up: the work stays in the kernels.
docs/backends.md shows each in five lines and says how much of the host's time it can win.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["autograd", "cs231n", "jax", "sklearn", "thinc", "torch"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the adapters are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
