"""Types of the compiled module: its activations have those of their NumPy twins."""

from typing import Any

from fastnn.reference.activations import *  # noqa: F403

AVAILABLE_LEVELS: tuple[str, ...]
BUILD_COMPILER: str
BUILD_FLAGS: str
BUILD_LEVELS: tuple[str, ...]
HAS_THREADS: bool
MAX_THREADS: int

def level_name() -> str: ...
def set_process_level(name: str) -> None: ...
def set_thread_level(name: str | None) -> str | None: ...
def thread_count() -> int: ...
def set_process_threads(number: int) -> None: ...
def set_thread_threads(number: int) -> int: ...
def __getattr__(name: str) -> Any: ...  # what only fastnn's own modules call
