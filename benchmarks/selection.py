"""Which cases of fastnn/bench/cases.py the pytest-benchmark suite runs."""

from __future__ import annotations

from typing import Any

import pytest

from fastnn.bench.cases import cases

LARGEST = 4 << 20  # larger arrays measure the memory: python -m fastnn bench has them


def of_family(family: str) -> list[Any]:
    """The cases of a family as parameters with readable names, such as gelu-backward-16Ki-float32."""
    chosen = cases(only=[family], outputs=("out",), largest=LARGEST)
    return [pytest.param(case, id=case.label.rsplit(" ", 1)[0].replace(" ", "-")) for case in chosen]
