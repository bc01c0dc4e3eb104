"""What an experiment is given, and what it hands back."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Protocol, TypeVar

import numpy as np

from fastnn.lecture.data import Data

T = TypeVar("T")


class Progress(Protocol):
    """Receives how far an experiment is; the command draws a bar from it."""

    def start(self, total: int) -> None: ...

    def working_on(self, what: str) -> None: ...

    def advance(self) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def start(self, total: int) -> None:
        """Nothing to draw."""

    def working_on(self, what: str) -> None:
        """Nothing to draw."""

    def advance(self) -> None:
        """Nothing to draw."""


@dataclass(frozen=True)
class Context:
    """Backend, data and settings of one run of an experiment."""

    backend: ModuleType
    data: Data
    seed: int = 0
    quick: bool = False
    progress: Progress = field(default_factory=Silent)
    activations: tuple[str, ...] = ()  # shown beside the lecture's in the first experiment

    def rng(self, purpose: str) -> np.random.Generator:
        """A fresh generator from the seed and what it is for, so that experiments do not disturb each other."""
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode())])

    def pick(self, full: T, quick: T) -> T:
        """The setting for this run: ``quick`` under --quick."""
        return quick if self.quick else full

    def track(self, items: Iterable[T], describe: Callable[[T], str] = str) -> Iterator[T]:
        """Iterate with a bar; ``describe`` says what is being worked on."""
        known = list(items)
        self.progress.start(len(known))
        for item in known:
            self.progress.working_on(describe(item))
            yield item
            self.progress.advance()


@dataclass(frozen=True)
class Check:
    """One part of a claim: what should be so, what was measured, and whether it is so."""

    expected: str
    measured: str
    held: bool


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing as PNG; a ``wide`` one takes the whole width of the report."""

    name: str
    caption: str
    png: bytes = field(repr=False)
    wide: bool = False


@dataclass(frozen=True)
class Result:
    """What an experiment found. The verdict follows from the checks alone."""

    name: str
    title: str
    claim: str
    backend: str
    checks: tuple[Check, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def held(self) -> bool:
        return all(check.held for check in self.checks)

    @property
    def held_checks(self) -> int:
        return sum(check.held for check in self.checks)

    @property
    def verdict(self) -> str:
        """``Held`` or ``Did not hold``, with the checks that decided it."""
        failed = [check for check in self.checks if not check.held]
        if not failed:
            return f"Held: {len(self.checks)} of {len(self.checks)} checks"
        what = "; ".join(f"{check.expected}: {check.measured}" for check in failed)
        return f"Did not hold: {len(failed)} of {len(self.checks)} checks failed ({what})"


def short(value: float) -> str:
    """A number as a table shows it: ``0.31``, ``4.5e-5``, ``0``, ``diverged`` for what is no longer finite."""
    if not np.isfinite(value):
        return "diverged"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def outcome(loss: float, accuracy: float) -> str:
    """The accuracy that training reached, or that it diverged."""
    return percent(accuracy) if np.isfinite(loss) else "diverged"


def percent(share: float) -> str:
    """A share as per cent, with a decimal where whole per cents would hide it."""
    value = 100 * share
    return f"{value:.1f} %" if 0 < value < 10 or 99 < value < 100 else f"{value:.0f} %"
