"""Benchmarks of the normalization kernels: pytest benchmarks/bench_normalization.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from selection import of_family

from fastnn.bench.cases import Case


@pytest.mark.parametrize("case", of_family("normalization"))
def test_normalization(case: Case, measure: Callable[[Case], None]) -> None:
    measure(case)
