"""What a peer is: something that can do a case's work, imported only when it is asked for."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from fastnn.bench.cases import Arrays, Call, Case


class Peer:
    """A library to compare with. A case that it has no good way to do gives None from ``prepare``."""

    name = ""
    slow_to_compile = False  # left out of --quick unless asked for

    def load(self) -> str:
        """Import the library; its version. ImportError or OSError where it is absent."""
        raise NotImplementedError

    def set_threads(self, count: int) -> None:
        """Use this many threads from now on."""

    def close(self) -> None:
        """Undo what ``load`` switched on."""

    def prepare(self, case: Case, data: Arrays) -> Call | None:
        """The call to time, everything converted, compiled and warmed beforehand."""
        raise NotImplementedError


def out_of(case: Case, data: Arrays) -> Any:
    """The array to write to, or None where the case asks for a fresh result."""
    return None if case.output == "fresh" else data["out"]


def is_map(case: Case) -> bool:
    return case.op.kind == "map"


def fastest(*calls: Call) -> Call:
    """The call of the shortest time: interleaved, at least five of each, more while they are short."""
    best = [float("inf")] * len(calls)
    begin = perf_counter()
    for turn in range(200):
        for i, call in enumerate(calls):
            start = perf_counter()
            call.function(*call.args, **call.kwargs)
            best[i] = min(best[i], perf_counter() - start)
        if turn >= 4 and perf_counter() - begin > 0.1:
            break
    return calls[best.index(min(best))]
