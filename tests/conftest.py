"""Fixtures shared by the tests: every instruction-set level and thread count of this machine."""

from collections.abc import Iterator

import pytest

import fastnn as fn
from fastnn import _core


@pytest.fixture(params=fn.runtime.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once on each level that this processor has."""
    with fn.runtime.use_isa(request.param):
        yield request.param


@pytest.fixture(params=(1, 2))
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Run the test on one thread and on two."""
    with fn.runtime.threads(request.param):
        yield request.param


@pytest.fixture(params=[False, True], ids=["no_mesh", "mesh"])
def mesh(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Results are written, and sets summed, in another order on machines whose last-level cache is a mesh."""
    former = _core.set_mesh(request.param)
    yield request.param
    _core.set_mesh(former)
