"""What the benchmark files share: check a case, then measure it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import fastnn
from fastnn.bench.cases import Case, DataCache, Expectation, fastnn_call


@pytest.fixture(scope="module")
def data() -> DataCache:
    return DataCache()


@pytest.fixture
def measure(benchmark: Any, data: DataCache) -> Callable[[Case], None]:
    """Check the result of a case, then benchmark it on one thread."""

    def run(case: Case) -> None:
        arrays = data.arrays(case)
        call = fastnn_call(fastnn, case, arrays)
        with fastnn.runtime.threads(1):
            error = Expectation(case, arrays).error(call.collect(call.function(*call.args, **call.kwargs)))
            assert not error
            benchmark.group = f"{case.op.name} {case.direction} {case.dtype}"
            benchmark.extra_info |= {"elements": case.elements, "bytes": case.nbytes, "isa": fastnn.runtime.isa()}
            benchmark(call.function, *call.args, **call.kwargs)

    return run
