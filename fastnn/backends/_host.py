"""What the adapters share about their hosts: the error for an absent one, the warning for an untested one, patching."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Adapter: the distribution that provides the host, and the versions it was tested with (first tested, first untested).
# "1.5" stands for every 1.5.x.
TESTED: dict[str, tuple[str, str, str]] = {
    "autograd": ("autograd", "1.7", "1.10"),
    "jax": ("jax", "0.6", "0.11"),
    "sklearn": ("scikit-learn", "1.5", "1.10"),
    "thinc": ("thinc", "8.3", "9.2"),
    "torch": ("torch", "2.13", "2.14"),
}


def absent(host: str) -> ImportError:
    """The error for a host that cannot be imported; it names what installs it."""
    return ImportError(
        f"fastnn.backends.{host} needs the package {TESTED[host][0]}, which cannot be imported here: "
        f"pip install {TESTED[host][0]}",
        name=host,
    )


def _release(version: str) -> tuple[int, ...]:
    """(major, minor) of a version string; a part that is no number counts as 0."""
    parts = [*version.split("+")[0].split("."), "0"][:2]
    return tuple(int(part) if part.isdecimal() else 0 for part in parts)


def check_version(host: str, version: str) -> None:
    """Warn when ``version`` of ``host`` is outside the range that its adapter was tested with."""
    distribution, first, beyond = TESTED[host]
    if not _release(first) <= _release(version) < _release(beyond):
        warnings.warn(
            f"fastnn.backends.{host} was tested with {distribution} from {first} up to, but not including, {beyond}; "
            f"this is {distribution} {version}. Run the tests of your own program before relying on it.",
            RuntimeWarning,
            stacklevel=3,
        )


class Patch:
    """Entries of dictionaries that belong to a host, replaced and put back.

    The entries are replaced while install() is in force or at least one ``with accelerated()`` block is open, in
    whichever thread; so blocks may nest, overlap between threads and end by an exception, and the host is left as it
    was.
    """

    def __init__(self, *replacements: tuple[dict[str, Any], dict[str, Any]]) -> None:
        self._replacements = replacements
        self._originals: list[dict[str, Any]] = []
        self._installed = False
        self._blocks = 0
        self._lock = threading.RLock()

    def install(self) -> None:
        with self._lock:
            self._installed = True
            self._apply()

    def uninstall(self) -> None:
        with self._lock:
            self._installed = False
            self._apply()

    @contextmanager
    def accelerated(self) -> Iterator[None]:
        with self._lock:
            self._blocks += 1
            self._apply()
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                self._apply()

    def _apply(self) -> None:
        wanted = self._installed or self._blocks > 0
        if wanted and not self._originals:
            self._originals = [{key: target[key] for key in new} for target, new in self._replacements]
            for target, new in self._replacements:
                target.update(new)
        elif not wanted and self._originals:
            for (target, new), old in zip(self._replacements, self._originals, strict=True):
                # An entry that somebody else has replaced since is theirs, not ours to put back.
                target.update({key: old[key] for key in old if target.get(key) is new[key]})
            self._originals = []
