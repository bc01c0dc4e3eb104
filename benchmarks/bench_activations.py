"""Benchmarks of the activations kernels: pytest benchmarks/bench_activations.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from selection import of_family

from fastnn.bench.cases import Case


@pytest.mark.parametrize("case", of_family("activations"))
def test_activations(case: Case, measure: Callable[[Case], None]) -> None:
    measure(case)
