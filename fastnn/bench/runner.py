"""Fair timing: the same arrays for all, results checked first, interleaved rounds, the minimum of many."""

from __future__ import annotations

import importlib.util
import platform
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import repeat
from types import ModuleType
from typing import Any

import numpy as np

import fastnn
from fastnn.bench import steps
from fastnn.bench.cases import Arrays, Call, Case, DataCache, Expectation, fastnn_call
from fastnn.bench.peers import PEERS, Peer

Sampler = Callable[[int], float]
COPY = "copy"  # no peer: a non-temporal copy of x to out, the speed limit of the memory
SMALL = 16 << 10  # elements from which on a peer's time tells how long it takes for more
LONG = 0.05  # seconds for one call of a peer 8 times slower than fastnn that nobody awaits
PAUSE = 0.01  # seconds for which an OpenMP library's threads may spin after a call, on cores that others need
WARM = 2e-3  # seconds of calls before anything is decided: threads wake, and one disturbed call tells nothing
SAMPLE = 2e-4  # seconds of calls timed together, so that the clock's resolution and its cost vanish
LEAST = 5  # rounds at least of whoever takes up to RIVAL times as long as the fastest, however long that is
RIVAL = 2.0
MARK = "†"
MATMUL = "matmul"  # no peer: the matrix products of a training step, the part that fastnn does not touch
NO_PEERS = (COPY, MATMUL)


@dataclass
class Row:
    """The measurement of one cell: seconds a call for fastnn and every peer that could do it."""

    op: str
    family: str
    direction: str
    shape: tuple[int, ...]
    dtype: str
    output: str
    threads: int
    elements: int
    nbytes: int
    times: dict[str, float] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # peers that were over 8 times slower on fewer elements

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.op, self.direction, self.shape, self.dtype, self.output, self.threads)

    @property
    def peers(self) -> dict[str, float]:
        return {name: t for name, t in self.times.items() if name != "fastnn" and name not in NO_PEERS}

    @property
    def best_peer(self) -> str | None:
        return min(self.peers, key=self.peers.__getitem__, default=None)

    def mark(self, peer: str | None) -> str:
        """Of a peer whose time includes a new array although the case gives one."""
        return MARK if peer in self.fresh else ""

    @property
    def best_label(self) -> str:
        """The best peer's name, marked."""
        return (self.best_peer or "") + self.mark(self.best_peer)

    @property
    def ratio(self) -> float | None:
        """How many times faster than the best peer; below 1 is a loss."""
        best = self.best_peer
        return self.times[best] / self.times["fastnn"] if best and "fastnn" in self.times else None

    def against(self, peer: str) -> float | None:
        if peer in self.times and "fastnn" in self.times:
            return self.times[peer] / self.times["fastnn"]
        return None

    @property
    def memory_bound(self) -> float | None:
        """Seconds that moving the bytes of this cell takes at the speed of the copy."""
        if COPY not in self.times:
            return None
        return self.times[COPY] * self.nbytes / (2 * self.elements * np.dtype(self.dtype).itemsize)


def sampler(call: Call) -> Sampler:
    """A timing loop with the call written out, so that a call of one element is not hidden behind *args."""
    names = [f"a{i}" for i in range(len(call.args))]
    keys = list(call.kwargs)
    arguments = ", ".join(names + [f"{key}=k{i}" for i, key in enumerate(keys)])
    bound = ", ".join(["f"] + names + [f"k{i}" for i in range(len(keys))])
    source = (
        f"def make({bound}):\n"
        "    def sample(count):\n"
        "        start = clock()\n"
        "        for _ in repeat(None, count):\n"
        f"            f({arguments})\n"
        "        return clock() - start\n"
        "    return sample\n"
    )
    space: dict[str, Any] = {"clock": time.perf_counter, "repeat": repeat}
    exec(source, space)
    return space["make"](call.function, *call.args, *call.kwargs.values())


def interleave(
    samplers: dict[str, Sampler],
    budget: float,
    rounds: int,
    reset: Callable[[], None] | None = None,
    threaded: bool = False,
) -> dict[str, float]:
    """Best time of each, in seconds a call. ``budget`` is what each may spend in all; but whoever takes up to RIVAL
    times as long as the fastest gets as many rounds as it, and LEAST at least.

    ``threaded``: let the threads of the one before fall asleep first, and wake one's own with calls that do not count.
    """
    best: dict[str, float] = {}
    for name, sample in samplers.items():
        if threaded:
            time.sleep(PAUSE)
        if reset:
            reset()
        best[name] = seconds = sample(1)
        count = 1
        while not reset and seconds < WARM:
            count *= 2
            again = sample(count)
            best[name] = min(best[name], again / count)
            seconds += again

    def calls(name: str) -> int:
        """As many as make a sample, by the best time so far: the first ones may have been disturbed."""
        return max(1, int(SAMPLE / max(best[name], 2e-8))) if not reset else 1

    spent = dict.fromkeys(samplers, 0.0)
    order = random.Random(0)
    for turn in range(rounds):
        fastest = min((t for name, t in best.items() if name not in NO_PEERS), default=0.0)
        names = []
        for name in samplers:
            cost = calls(name) * best[name]
            if best[name] <= RIVAL * fastest:
                least, allowed = LEAST, budget * max(1.0, best[name] / fastest)
            else:
                least, allowed = 2 if cost <= budget else 1, budget
            if turn < least or spent[name] + cost <= allowed:
                names.append(name)
        if not names:
            break
        # in another order every round: who always ran after the copy would always find his output out of the caches
        for name in order.sample(names, len(names)):
            if threaded:
                time.sleep(PAUSE)
                samplers[name](1 + int(1e-3 / max(best[name], 2e-8)))
            if reset:
                reset()
            count = calls(name)
            seconds = samplers[name](count)
            spent[name] += seconds
            best[name] = min(best[name], seconds / count)
    return best


@dataclass
class Plan:
    """What to run and for how long."""

    cases: list[Case]
    threads: list[int]
    budget: float  # seconds for each peer in each cell
    rounds: int


class Runner:
    """Measures cases for fastnn and its peers."""

    def __init__(self, peers: Iterable[str], module: ModuleType | None = None) -> None:
        """``module`` stands in for fastnn in the harness's own tests."""
        self._module = module or fastnn
        self._data = DataCache()
        self._most = fastnn.runtime.num_threads()
        self.versions: dict[str, str] = {"fastnn": getattr(self._module, "__version__", "")}
        self._hopeless: dict[
            tuple[str, str, str, str, int], dict[str, float]
        ] = {}  # seconds an element, 0 if it is not
        self.missing: dict[str, str] = {}
        self.peers: list[Peer] = []
        for name in peers:
            peer = PEERS[name]()
            try:
                self.versions[name] = peer.load()
                self.peers.append(peer)
            except Exception as error:  # a broken installation of a peer must not end the run
                self.missing[name] = f"{type(error).__name__}: {error}"

    def set_threads(self, count: int) -> None:
        fastnn.runtime.set_num_threads(count)
        for peer in self.peers:
            peer.set_threads(count)
        if importlib.util.find_spec("threadpoolctl"):  # NumPy's matrix products, in the training steps
            import threadpoolctl

            threadpoolctl.threadpool_limits(count, user_api="blas")

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.set_threads(self._most)
        for peer in self.peers:
            peer.close()

    def measure(self, case: Case, threads: int, budget: float, rounds: int) -> Row:
        row = Row(
            case.op.name,
            case.op.family,
            case.direction,
            case.shape,
            case.dtype,
            case.output,
            threads,
            case.elements,
            case.nbytes,
        )
        data = self._data.arrays(case)
        expected = Expectation(case, data)
        reset = self._reset(case, data)
        samplers: dict[str, Sampler] = {}
        calls: list[Call] = []  # keeps what the timing loops use alive
        race = (case.op.name, case.direction, case.dtype, case.output, threads)
        hopeless = self._hopeless.get(race, {})
        row.left_out = [name for name, pace in hopeless.items() if case.elements * pace > LONG]
        if row.left_out and len(row.left_out) == len(hopeless):  # no other peer does this at all
            row.left_out.remove(min(row.left_out, key=hopeless.__getitem__))
        for name, prepare in self._contestants(case, data):
            if name in row.left_out:
                continue
            try:
                call = prepare()
                if call is None:
                    continue
                if reset:
                    reset()
                error = expected.error(call.collect(call.function(*call.args, **call.kwargs)))
            except Exception as problem:
                row.failed[name] = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
                continue
            if error:
                row.failed[name] = f"wrong result: {error}"
                continue
            calls.append(call)
            samplers[name] = sampler(call)
            if call.fresh and case.output == "out":
                row.fresh.append(name)
        if case.op.kind == "step":
            samplers[MATMUL] = sampler(Call(steps.matmul_step(data)))
        copy = self._copy(case, data)
        if copy:
            samplers[COPY] = sampler(copy)
        row.times = interleave(samplers, budget, rounds if threads == 1 else rounds // 3, reset, threads > 1)
        if "fastnn" in row.times and case.elements >= SMALL:
            limit = 8 * row.times["fastnn"]
            paces = {name: seconds / case.elements if seconds > limit else 0.0 for name, seconds in row.peers.items()}
            self._hopeless[race] = hopeless | paces
        return row

    def _contestants(self, case: Case, data: Arrays) -> list[tuple[str, Callable[[], Call | None]]]:
        ours: list[tuple[str, Callable[[], Call | None]]] = [("fastnn", lambda: fastnn_call(self._module, case, data))]
        return ours + [(peer.name, lambda peer=peer: peer.prepare(case, data)) for peer in self.peers]

    def _reset(self, case: Case, data: Arrays) -> Callable[[], None] | None:
        """In-place calls change their input: repeated ones would drift into constants or subnormals."""
        if case.output != "inplace":
            return None
        target, original = data["out"], data["out"].copy()
        return lambda: np.copyto(target, original)

    def _copy(self, case: Case, data: Arrays) -> Call | None:
        core = getattr(self._module, "_core", None)
        copy = getattr(core, "stream_copy", None)
        out = data.get("out")
        if copy is None or out is None or case.output != "out" or out.shape != data["x"].shape:
            return None
        if out.dtype == np.float16:  # which it does not take
            return None
        return Call(copy, (data["x"], out))


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    info = fastnn.runtime.info()
    return {
        "system": info["platform"],
        "machine": platform.machine(),
        "python": info["python"],
        "cpu": info["processor"],
        "numpy": info["numpy"],
    }


def row_to_json(row: Row) -> dict[str, Any]:
    return asdict(row)


def row_from_json(value: dict[str, Any]) -> Row:
    return Row(**{**value, "shape": tuple(value["shape"])})
