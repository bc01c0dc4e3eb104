"""One table: a row needs a scalar pair, a reference, a test case and documentation; the twins have one interface."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import cases
import numpy as np
import pytest

import fastnn as fn
import fastnn.reference as ref
import fastnn.reference.activations
import fastnn.reference.normalization
from fastnn._table import ACTIVATIONS, BY_NAME
from fastnn.backends import _functions
from fastnn.bench.checks import MONOTONE, ODD, PIECEWISE_LINEAR, RANGE

ROOT = Path(__file__).parents[1]
PUBLIC = sorted(name for name in ref.__all__ if callable(getattr(ref, name)))


@pytest.mark.parametrize("row", ACTIVATIONS, ids=lambda row: row.name)
def test_a_row_has_everything(row):
    text = (ROOT / "src" / "activations.pxd").read_text()
    params = "".join(rf", real {p.name}" for p in row.params)
    forward = re.search(rf"^cdef inline real {row.name}\(real x{params}\) noexcept nogil:", text, re.M)
    backward = re.search(
        rf"^cdef inline real {row.name}_backward\(real dy, real \w+{params}\) noexcept nogil:", text, re.M
    )
    assert forward and backward, (
        f"src/activations.pxd has no pair {row.name}, {row.name}_backward with these parameters"
    )
    between = text[forward.end() : backward.start()]
    assert not [f for f in re.findall(r"^cdef inline real (\w+)\(", between, re.M) if f in BY_NAME]
    for module in (fn, ref):
        for name in (row.function, row.function + "_backward"):
            assert callable(getattr(module, name, None)), f"{module.__name__} has no function {name}"
            assert inspect.getdoc(getattr(module, name)), f"{module.__name__}.{name} has no docstring"
    assert row.source, f"the row {row.name} does not say where the function comes from"
    assert row.function in _functions._SECOND, (
        f"fastnn/backends/_functions.py has no second derivative of {row.function}"
    )


def test_test_cases_are_of_rows_that_exist():
    names = {*cases.PARAMETERS, *PIECEWISE_LINEAR, *MONOTONE, *ODD, *RANGE}
    assert names <= set(BY_NAME)


@pytest.mark.parametrize("row", [row for row in ACTIVATIONS if row.params], ids=lambda row: row.name)
def test_parameters_have_values_to_test(row):
    assert row.name in cases.PARAMETERS, f"tests/cases.py has no values of the parameters of {row.name}"


def parameters(function):
    """Names, kinds and defaults."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("name", PUBLIC)
def test_signatures_are_those_of_the_reference(name):
    assert parameters(getattr(fn, name)) == parameters(getattr(ref, name))


def test_what_is_public_is_in_both():
    compiled = set(fn.activations.__all__)
    twin = {
        name
        for name, value in vars(fastnn.reference.activations).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }
    assert compiled == twin
    assert twin <= set(PUBLIC)
    assert set(fn.__all__) == {*ref.__all__, "runtime"}
    assert all(getattr(fn, name) is getattr(fn.activations, name) for name in compiled)


def test_compiled_functions_have_stubs():
    """Those of the activations are the twin's signatures; what else is declared exists."""
    stub = Path(fn.__file__).with_name("_core.pyi").read_text()
    assert "from fastnn.reference.activations import *" in stub
    declared = re.findall(r"^(?:def )?([A-Za-z]\w+)[(:]", stub, re.M)
    assert declared and all(hasattr(fn._core, name) for name in declared)
    assert Path(fn.__file__).with_name("py.typed").exists()


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_is_documented(name):
    for module in (fn, ref):
        assert len(inspect.getdoc(getattr(module, name)) or "") > 20


def test_the_package_names_its_whole_interface():
    listed = set(re.findall(r"[\w*]+", fn.__doc__))
    modules = (fn.activations, fn.normalization, fn.init, fn.preprocessing, fn.diagnostics, fn.runtime)
    for name in (name for module in modules for name in module.__all__):
        named = name in listed or name.endswith("_backward") or name.split("_")[0] + "_*" in listed
        assert named, f"the docstring of fastnn/__init__.py does not list {name}"


def test_reference_needs_nothing_compiled():
    script = f"""
import sys, types
package = types.ModuleType("fastnn")
package.__path__ = [{str(Path(fn.__file__).parent)!r}]
sys.modules["fastnn"] = package
import fastnn.reference as ref
assert ref.gelu([1.0]) > 0.84 and ref.BatchNorm(3).forward([[1.0, 2.0, 3.0]]).shape == (1, 3)
compiled = [name for name in sys.modules if name.startswith("fastnn._core") or name.startswith("fastnn._level")]
assert not compiled, compiled
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_no_floating_point_mode_is_touched():
    tiny = np.array([np.finfo(np.float32).smallest_subnormal] * 1000)
    with np.errstate(all="raise"):
        for case in cases.defaults():
            for x in (cases.sample(np.float32), cases.sample(np.float64), cases.sample(np.float16)):
                case.forward(fn, x)
                case.backward(fn, x, x)
                case.forward(ref, x)
                case.backward(ref, x, x)
    assert np.all(tiny * np.float32(1) == tiny) and np.all(tiny > 0)
