"""Fixtures shared by the tests: every instruction-set level and thread count of this machine."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def document() -> Any:
    """benchmarks/document.py, which is no module of the package."""
    pytest.importorskip("matplotlib")
    path = Path(__file__).parent.parent / "benchmarks" / "document.py"
    spec = importlib.util.spec_from_file_location("document", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
