"""Which instruction-set level and how many threads the kernels use, and what this build can do.

Both are chosen once at import and can be changed at any time. Every number of threads gives the same bits, and so do
all levels with a fused multiply-add (v3, v4, neon); the x86-64 baseline has other bits within the same bounds.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fastnn import _checks, _core

Choice = TypeVar("Choice", int, str)
_TEXT = {"encoding": "utf-8", "errors": "replace"}  # of the files in /proc and /sys

__all__ = ["available_isas", "info", "isa", "num_threads", "set_num_threads", "threads", "use_isa"]


def isa() -> str:
    """Name of the instruction-set level in use.

    "baseline", "v3" (AVX2) or "v4" (AVX-512) on x86-64, "neon" on aarch64.
    """
    return _core.level_name()


def available_isas() -> tuple[str, ...]:
    """The levels that were built and that this processor runs, slowest first."""
    return _core.AVAILABLE_LEVELS


def use_isa(name: str) -> AbstractContextManager[str]:
    """Within the block, calls from this thread use the level `name`; ValueError if it is not available here.

    >>> with fastnn.runtime.use_isa("v3"):
    ...     y = fastnn.sigmoid(x)
    """
    if not isinstance(name, str):
        raise TypeError(f"name is {name!r}; it must be one of the strings {', '.join(available_isas())}")
    if name not in available_isas():
        raise ValueError(
            f"isa {name!r} is not available: this build on this machine runs {', '.join(available_isas())}"
        )
    return _within(_core.set_thread_level, str(name))  # a NumPy string, too


def num_threads() -> int:
    """The largest number of threads that a call from this thread may use."""
    return _core.thread_count()


def set_num_threads(n: int) -> None:
    """Let calls use up to n threads, in the whole process. Results are the same bits for every n.

    Small work stays on the calling thread whatever n is. More than 256 are never used, and one alone by a build without
    threads. TypeError for what is no integer, ValueError below 1.
    """
    _core.set_process_threads(_thread_number(n))


def threads(n: int) -> AbstractContextManager[int]:
    """Within the block, calls from this thread use up to n threads. n and errors as in `set_num_threads`."""
    return _within(_core.set_thread_threads, _thread_number(n))


@contextmanager
def _within(choose: Callable[[Any], Any], choice: Choice) -> Iterator[Choice]:
    former = choose(choice)
    try:
        yield choice
    finally:
        choose(former)


def _thread_number(n: Any) -> int:
    return min(_checks.integer_param(n, "number of threads", 1), _core.MAX_THREADS)


def info() -> dict[str, Any]:
    """Version, levels, threads and build of this fastnn, as `python -m fastnn info` prints them."""
    from fastnn import __version__

    return {
        "fastnn": __version__,
        "isa": isa(),
        "available isas": available_isas(),
        "built isas": _core.BUILD_LEVELS,
        "threads": num_threads(),
        "thread support": "own pool of POSIX threads" if _core.HAS_THREADS else "none: built single-threaded",
        "compiler": _core.BUILD_COMPILER,
        "build flags": _core.BUILD_FLAGS,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(**_TEXT).splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _affinity() -> int:
    """Processors on which the system lets this process run."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _available_processors() -> int:
    """Processors that this process may use: its affinity, and its cgroup's quota rounded up."""
    return max(1, min(_affinity(), _cgroup_quota(), _core.MAX_THREADS))


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """The CPU quota of the process's control group in whole processors; a large number if there is none."""
    try:
        groups = [line.split(":", 2) for line in membership.read_text(**_TEXT).splitlines()]
    except OSError:
        return sys.maxsize
    smallest = math.inf
    for _, controllers, path in groups:
        if controllers == "":
            mount, files = root, ["cpu.max"]
        elif "cpu" in controllers.split(","):
            mount, files = root / controllers, ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        folder = mount / path.strip("/")  # of which a container may see no more than the mount
        for parent in (folder, *folder.parents):
            if not parent.is_relative_to(mount):
                break
            words = [word for name in files for word in _read_words(parent / name)]
            if len(words) == 2 and words[0] not in ("max", "-1") and float(words[1]) > 0:
                smallest = min(smallest, math.ceil(float(words[0]) / float(words[1])))
    return sys.maxsize if smallest == math.inf else int(smallest)


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text(**_TEXT).split()
    except OSError:
        return []


def _choose_level() -> None:
    best = available_isas()[-1]
    wanted = os.environ.get("FASTNN_ISA", "")
    if wanted and wanted not in available_isas():
        _warn("FASTNN_ISA", wanted, f"available here: {', '.join(available_isas())}", best)
    _core.set_process_level(wanted if wanted in available_isas() else best)


def _choose_threads() -> None:
    default = _available_processors()
    # OpenMP's variable may hold a list for nested levels: the first number is the outermost
    inherited = _positive(os.environ.get("OMP_NUM_THREADS", "").split(",")[0]) or default
    wanted = os.environ.get("FASTNN_NUM_THREADS", "")
    number = _positive(wanted)
    if wanted and number is None:
        _warn("FASTNN_NUM_THREADS", wanted, "it must be an integer of at least 1", inherited)
    set_num_threads(number or inherited)


def _positive(text: str) -> int | None:
    try:
        number = 0 if "_" in text else int(text)  # 1_0 is ten in Python alone
    except ValueError:
        return None
    return number if number >= 1 else None


def _warn(variable: str, value: str, accepted: str, used: object) -> None:
    warnings.warn(
        f"environment variable {variable} is {value!r}; {accepted}; {used} is used instead",
        RuntimeWarning,
        stacklevel=2,
    )


_choose_level()
_choose_threads()
