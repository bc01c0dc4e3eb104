"""Every mistake that the contract names: which exception, and a word of its message. The reference raises the same."""

import numpy as np
import pytest
from cases import defaults, run
from numpy.exceptions import AxisError

import fastnn as fn
import fastnn.reference as ref

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
MODULES = pytest.mark.parametrize("module", [fn, ref], ids=["fastnn", "reference"])
by_row = pytest.mark.parametrize("case", defaults(), ids=lambda case: case.id)


def read_only():
    array = np.zeros((2, 3), np.float32)
    array.flags.writeable = False
    return array


BAD_ARRAYS = [
    (np.zeros(3, complex), "complex128"),
    (1j, "complex128"),
    (np.array([None, 1.0]), "object"),
    ([10**30], "object"),
    (np.array(["1"]), "<U1"),
    ("text", "<U4"),
    (np.array(["2020-01-01"], "M8[D]"), "datetime64"),
    (np.zeros(2, "m8[s]"), "timedelta64"),
    (np.zeros(2, [("a", "f4")]), "'a'"),
    (np.zeros(2, "V4"), "V4"),
    (np.zeros(3, np.longdouble), str(np.dtype(np.longdouble))),
    ([[1.0, 2.0], [3.0]], "array"),
    (None, "object"),
    (np.ma.array([1.0, 2.0], mask=[0, 1]), "masked"),
    (np.ma.masked, "masked"),
]


@MODULES
@by_row
def test_arrays_that_are_not_accepted(module, case):
    for bad, word in BAD_ARRAYS:
        with pytest.raises(TypeError, match=word) as raised:
            case.forward(module, bad)
        assert "float32" in str(raised.value)
        with pytest.raises(TypeError, match=word):
            case.backward(module, bad, np.ones(2))
        with pytest.raises(TypeError, match=word):
            case.backward(module, np.ones(2), bad)


BAD_OUTS = [
    ([[0.0] * 3] * 2, TypeError, "list"),
    (np.float32(0), TypeError, "float32"),
    (np.zeros((2, 3)), TypeError, "float64"),
    (np.zeros((2, 3), np.float16), TypeError, "float16"),
    (np.zeros((2, 3), int), TypeError, "int"),
    (np.zeros((2, 3), np.dtype(np.float32).newbyteorder()), TypeError, "byte-swapped"),
    (np.ma.zeros((2, 3), np.float32), TypeError, "masked"),
    (np.zeros((3, 2), np.float32), ValueError, r"\(3, 2\)"),
    (np.zeros((6,), np.float32), ValueError, r"\(6,\)"),
    (np.zeros((1, 2, 3), np.float32), ValueError, "shape"),
    (read_only(), ValueError, "read-only"),
    (np.broadcast_to(np.zeros(3, np.float32), (2, 3)), ValueError, "read-only"),
]


@MODULES
@by_row
def test_results_that_do_not_fit(module, case):
    for out, error, word in BAD_OUTS:
        with pytest.raises(error, match=word):
            case.forward(module, X, out=out)
        with pytest.raises(error, match=word):
            case.backward(module, X, X, out=out)


@MODULES
@by_row
def test_gradient_of_another_shape(module, case):
    for dy in (np.ones(3), np.ones((3, 2)), np.ones((1, 2, 3)), 1.0, np.ones((2, 1))):
        with pytest.raises(ValueError, match=r"\(2, 3\)"):
            case.backward(module, dy, X)


@MODULES
def test_nothing_is_written_before_all_checks_pass(module):
    for out, call in (
        (np.full((2, 3), 7, np.float32), lambda out: module.relu_backward(np.ones((3, 2)), X, out=out)),
        (np.full((2, 3), 7, np.float32), lambda out: module.elu(X, "wrong", out=out)),
        (np.full((2, 3), 7, np.float32), lambda out: module.softmax(X, 5, out=out)),
        (np.full((2, 3), 7, np.float32), lambda out: module.cross_entropy(X, [0, 3], out=out)),
        (np.full((2, 3), 7, np.float32), lambda out: module.prelu(X, np.ones(2), out=out)),
        (np.full((2, 3), 7, np.float32), lambda out: module.prelu_backward(X, X, np.ones(2), out=out)),
        (np.full((2, 6), 7.0), lambda out: module.maxout_backward(np.ones((2, 3)), np.full((2, 3), 2), out=out)),
    ):
        with pytest.raises((ValueError, TypeError)):
            call(out)
        assert np.all(out == 7)


PARAMETERS = [
    ("leaky_relu", {"negative_slope": None}),
    ("elu", {"alpha": None}),
    ("celu", {"alpha": None}),
    ("softplus", {"beta": None}),
    ("hardtanh", {"min_val": None}),
    ("hardtanh", {"max_val": None}),
]


@MODULES
@pytest.mark.parametrize(("name", "keywords"), PARAMETERS, ids=lambda value: str(value))
def test_parameters_that_are_no_finite_numbers(module, name, keywords):
    (param,) = keywords
    forward, backward = getattr(module, name), getattr(module, name + "_backward")
    for bad in (1j, "1", None, [1.0], np.ones(2), np.zeros(0), np.complex64(1), object(), np.ma.masked, {}):
        with pytest.raises(TypeError, match=param):
            forward(X, **{param: bad})
        with pytest.raises(TypeError, match=param):
            backward(X, X, **{param: bad})
    for bad in (np.nan, np.inf, -np.inf, 10**400, np.float32("nan"), np.array([np.inf])):
        with pytest.raises(ValueError, match=param):
            forward(X, **{param: bad})
        with pytest.raises(ValueError, match=param):
            backward(X, X, **{param: bad})
    with pytest.raises(ValueError, match="float32"):  # finite, but not in the dtype the kernel computes in
        forward(X, **{param: -1e300 if param == "min_val" else 1e300})


@MODULES
def test_parameters_that_are_accepted(module):
    for value in (2, 2.0, np.float32(2), np.int8(2), np.array(2.0), np.array([2]), np.float16(2), np.longdouble(2)):
        np.testing.assert_array_equal(module.elu(X, value), module.elu(X, 2.0))
    np.testing.assert_array_equal(module.elu(X, True), module.elu(X, 1.0))
    np.testing.assert_array_equal(module.elu(X, alpha=2.0), module.elu(X, 2.0))


@MODULES
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_statistics_are_not_optional(module, dtype):
    for statistics, name in (((None, np.ones(3)), "mean"), ((np.zeros(3), None), "var")):
        with pytest.raises(TypeError, match=f"{name}.*object"):
            module.batch_norm_inference(X.astype(dtype), *statistics)


@MODULES
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m.elu_backward(X, X[0], "s"), ValueError, "shape"),
        (lambda m: m.hardtanh(X * 1j, 2.0, 1.0), TypeError, "complex"),
        (lambda m: m.hardtanh(X * 1j, 2, 1), TypeError, "complex"),
        (lambda m: m.hardtanh_backward(X, X[0], 2.0, 1.0), ValueError, "shape"),
        (lambda m: m.hardtanh(X, 2, 1), ValueError, "min_val is 2 and max_val 1;"),
        (lambda m: m.hardtanh(X, 1e39, 1), ValueError, "min_val is 1e.39 in float32"),
    ],
)
def test_mistakes_in_arrays_are_told_before_mistakes_in_parameters(module, call, error, words):
    with pytest.raises(error, match=words):
        call(module)


@MODULES
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.softplus(X, 0.0), "beta.*greater than 0"),
        (lambda m: m.softplus(X, -1.0), "beta.*-1"),
        (lambda m: m.softplus_backward(X, X, 0), "beta.*greater than 0"),
        (lambda m: m.softplus(X, 1e-60), "beta.*float32"),
        (lambda m: m.celu(X, 0.0), "alpha.*not 0"),
        (lambda m: m.celu_backward(X, X, -0.0), "alpha.*not 0"),
        (lambda m: m.celu(X, 1e-60), "alpha.*float32"),
        (lambda m: m.hardtanh(X, 1.0, -1.0), "min_val.*max_val"),
        (lambda m: m.hardtanh_backward(X, X, 1.0, 0.5), "min_val.*max_val"),
        (lambda m: m.hardtanh(X, min_val=2), "min_val.*max_val"),
        (lambda m: m.hardtanh(X, 1.0000000001, 1.0), "min_val.*max_val"),  # equal in float32
        (lambda m: m.hardtanh(X, np.float64(1.0000000001), 1.0), "min_val.*max_val"),
        (lambda m: m.gelu(X, "fast"), "'fast'.*tanh"),
        (lambda m: m.gelu_backward(X, X, ""), "approximate"),
    ],
)
def test_parameters_out_of_range(module, call, words):
    with pytest.raises(ValueError, match=words):
        call(module)


@MODULES
def test_gelu_takes_the_name_of_its_approximation_only(module):
    for bad in (None, True, 1, b"tanh", ["tanh"]):
        with pytest.raises(TypeError, match="approximate"):
            module.gelu(X, bad)
        with pytest.raises(TypeError, match="approximate"):
            module.gelu_backward(X, X, bad)
    with pytest.raises(TypeError, match=r"not an array of dtype float64 and shape .*by its name, out"):
        module.gelu(np.ones(1000), np.ones(1000))


@MODULES
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x: m.batch_norm(x, np.ones(3)), "length of axis 1 of x"),
        (lambda m, x: m.batch_norm_inference(x, np.ones(3), np.ones(8)), "length of axis 1 of x"),
        (lambda m, x: m.instance_norm(x, beta=np.ones(3)), "length of axis 1 of x"),
        (lambda m, x: m.layer_norm(x, np.ones((5, 3))), "from axis 3 on"),
        (lambda m, x: m.layer_norm_backward(x, x, np.ones(3), np.ones(3)), "before axis 3"),
        (lambda m, x: m.rms_norm_backward(x, x, np.ones(3)), "before axis 3"),
        (lambda m, x: m.group_norm_backward(x, x, np.ones(3), np.ones(3), 2), "each of the 2 groups of each sample"),
        (lambda m, x: m.group_norm(x, 3), "length of axis 1"),
    ],
)
def test_a_wrong_shape_is_told_where_the_right_one_comes_from(module, call, words):
    with pytest.raises(ValueError, match=words) as error:
        call(module, np.ones((4, 8, 5, 3), np.float32))
    assert "(4, 8, 5, 3)" in str(error.value)


def test_a_shape_that_changes_while_other_arguments_are_read():
    """__array__ and __index__ are code of others; what is computed is the array as it was given."""
    x = np.ones((2, 3, 4), np.float32)

    class Reshapes:
        def __init__(self, value, array=x, shape=(24, 1, 1)):
            self.value, self.array, self.shape = value, array, shape

        def __array__(self, dtype=None, copy=None):
            self.array.shape = self.shape
            return np.asarray(self.value)

        def __index__(self):
            self.array.shape = self.shape
            return self.value

    flat = np.ones((1, 24), np.float32)
    y, which = fn.maxout(x, Reshapes(2), axis=2)
    assert y.shape == which.shape == (2, 3, 2)
    x.shape = (2, 3, 4)
    assert fn.softmax(x, Reshapes(2)).shape == (2, 3, 4)
    x.shape = (2, 3, 4)
    assert fn.maxout_backward(x, Reshapes(np.zeros((2, 3, 4), int)), 2, 2).shape == (2, 3, 8)
    x.shape = (2, 3, 4)
    assert fn.prelu(x, Reshapes(np.ones(3, np.float32))).shape == (2, 3, 4)
    x.shape = (2, 3, 4)
    assert fn.prelu_backward(x, x.copy(), Reshapes(np.ones(3, np.float32)))[0].shape == (2, 3, 4)
    assert fn.cross_entropy(flat, Reshapes([3], flat, (24, 1)))[1].shape == (1, 24)


@MODULES
def test_none_is_called_by_its_name(module):
    for call, name in (
        (lambda: module.relu(None), "x"),
        (lambda: module.relu_backward(None, X), "dy"),
        (lambda: module.elu_backward(None, X, float("nan")), "dy"),
        (lambda: module.hardtanh_backward(None, X, 2, 1), "dy"),
        (lambda: module.batch_norm_inference(np.ones((2, 3)), np.ones(3), None), "var"),
    ):
        with pytest.raises(TypeError, match=f"^{name} is None, of dtype object; accepted are"):
            call()


@MODULES
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_axis_of_softmax(module, name):
    forward, backward = getattr(module, name), getattr(module, name + "_backward")
    for axis in (2, -3, 100, 10**30):
        with pytest.raises(AxisError, match=str(axis)):
            forward(X, axis)
        with pytest.raises(AxisError, match=str(axis)):
            backward(X, X, axis)
    with pytest.raises(AxisError):
        forward(np.float32(1), 1)
    for axis in (1.0, "1", None, (0,), True):
        with pytest.raises(TypeError, match="axis"):
            forward(X, axis)
    with pytest.raises(ValueError, match="shape"):
        backward(X[0], X)
    with pytest.raises(TypeError, match="complex"):
        forward(X * 1j)
    with pytest.raises(TypeError, match="float64"):
        forward(X, out=np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        backward(X, X, out=np.zeros((3, 2), np.float32))


@MODULES
def test_labels_of_cross_entropy(module):
    for labels, error, word in (
        ([0.0, 1.0], TypeError, "float64"),
        ([True, False], TypeError, "bool"),
        (np.ma.array([0, 1]), TypeError, "masked"),
        (["0", "1"], TypeError, "U1"),
        ([None, 1], TypeError, "object"),
        ([[0], [1, 2]], TypeError, "labels"),
        (np.zeros(2, "M8[s]"), TypeError, "datetime"),
        ([0, 3], ValueError, r"labels\[1\] is 3"),
        ([-1, 0], ValueError, r"labels\[0\] is -1"),
        (np.array([0, 2**63], np.uint64), ValueError, "9223372036854775808"),
        ([0], ValueError, r"\(1,\)"),
        ([[0, 1]], ValueError, r"\(1, 2\)"),
        (1, ValueError, r"\(\)"),
    ):
        with pytest.raises(error, match=word):
            module.cross_entropy(X, labels)
    for logits in (X[0], X[np.newaxis], 1.0):
        with pytest.raises(ValueError, match="logits"):
            module.cross_entropy(logits, [0, 1])
    with pytest.raises(TypeError, match=r"logits.*complex"):
        module.cross_entropy(X * 1j, [0, 1])
    with pytest.raises(ValueError, match="0"):
        module.cross_entropy(np.zeros((2, 0)), [0, 0])
    with pytest.raises(TypeError, match="out"):
        module.cross_entropy(X, [0, 1], out=np.zeros((2, 3)))
    with pytest.raises(ValueError, match="read-only"):
        module.cross_entropy(X, [0, 1], out=read_only())


@MODULES
def test_slope_of_prelu(module):
    for call in (lambda *a, **k: module.prelu(X, *a, **k), lambda *a, **k: module.prelu_backward(X, X, *a, **k)):
        for slope, error, word in (
            (np.ones(2), ValueError, r"\(2,\)"),
            (np.ones((1, 3)), ValueError, r"\(1, 3\)"),
            (np.ones(1), ValueError, r"\(1,\)"),
            (1j, TypeError, "slope.*complex"),
            ("a", TypeError, "slope"),
            (np.ma.ones(3), TypeError, "masked"),
        ):
            with pytest.raises(error, match=word):
                call(slope)
        for axis in (2, -3, 10**30):
            with pytest.raises(AxisError, match=str(axis)):
                call(np.ones(3), axis=axis)
        with pytest.raises(TypeError, match="axis"):
            call(np.ones(3), axis=1.0)
        with pytest.raises(TypeError, match="axis"):
            call(0.5, axis="1")
        with pytest.raises(TypeError, match="out"):
            call(0.5, out=np.zeros((2, 3)))
    with pytest.raises(AxisError):
        module.prelu(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="shape"):
        module.prelu_backward(X[0], X, 0.5)


@MODULES
def test_pieces_of_maxout(module):
    x = np.zeros((2, 6), np.float32)
    y, which = module.maxout(x, 3)
    for call in (lambda *a, **k: module.maxout(x, *a, **k), lambda *a, **k: module.maxout_backward(y, which, *a, **k)):
        for pieces, error in ((0, ValueError), (-2, ValueError), (2.0, TypeError), ("2", TypeError), (None, TypeError)):
            with pytest.raises(error, match="pieces"):
                call(pieces)
        for axis, error in ((2, AxisError), (-3, AxisError), (10**30, AxisError), (1.0, TypeError)):
            with pytest.raises(error, match="axis"):
                call(3, axis)
    with pytest.raises(ValueError, match="multiple of pieces"):
        module.maxout(x, 4)
    for many in (2**61, 2**62, 2**63 // 2 + 1, 2**70):  # an axis of units * pieces would be longer than one can be
        with pytest.raises(ValueError, match=f"pieces is {many}"):
            module.maxout_backward(np.ones((1, 4), np.float32), np.zeros((1, 4), int), many)
    with pytest.raises(ValueError, match="pieces"):
        module.maxout(np.ones((2, 0)), 2**70)
    with pytest.raises(AxisError):
        module.maxout(np.float32(1))
    for bad, error, word in (
        (np.full((2, 2), 3), ValueError, "3"),
        (np.full((2, 2), -1), ValueError, "-1"),
        (np.zeros((2, 3), int), ValueError, r"\(2, 3\)"),
        (np.zeros((2, 2)), TypeError, "float64"),
        (np.zeros((2, 2), bool), TypeError, "bool"),
        (np.ma.zeros((2, 2), int), TypeError, "masked"),
    ):
        with pytest.raises(error, match=word):
            module.maxout_backward(y, bad, 3)
    with pytest.raises(ValueError, match=r"\(2, 6\)"):
        module.maxout_backward(y, which, 3, out=np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        module.maxout(x, 3, out=np.zeros((2, 6), np.float32))


def test_out_is_given_by_name_only():
    for case in defaults():
        arguments = list(case.keywords().values())
        with pytest.raises(TypeError):
            getattr(fn, case.row.function)(X, *arguments, np.zeros_like(X))


def test_isa_and_threads():
    with fn.runtime.use_isa(np.str_(fn.runtime.available_isas()[0])):
        pass
    with pytest.raises(ValueError, match="'sse9'"):
        fn.runtime.use_isa("sse9")  # already here, before the block
    with pytest.raises(TypeError, match="name is 3"):
        fn.runtime.use_isa(3)
    for bad, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), ("2", TypeError), (None, TypeError)):
        with pytest.raises(error, match="threads"):
            fn.runtime.set_num_threads(bad)
        with pytest.raises(error, match="threads"):
            fn.runtime.threads(bad)


def test_what_is_imported_on_demand():
    script = """
import sys, fastnn
assert not {"fastnn.reference", "fastnn.lecture", "fastnn.bench", "fastnn.backends"} & set(sys.modules)
assert fastnn.reference.sigmoid(0.0) == 0.5 and fastnn.reference.runtime is fastnn.runtime
assert fastnn.backends.__all__ and fastnn.bench.__name__ == "fastnn.bench"
try:
    fastnn.sigmod
except AttributeError as error:
    print(error)
"""
    assert run(script)[0] == "module 'fastnn' has no attribute 'sigmod'"


def test_sparse_and_masked_arguments_are_named():
    sparse = type("csr_matrix", (), {"toarray": lambda self: X})()
    for module in (fn, ref):
        with pytest.raises(TypeError, match=r"dy has dtype object.*give dy.toarray\(\)"):
            module.relu_backward(sparse, X)
        with pytest.raises(TypeError, match=r"saved is a masked array.*saved.filled\(value\)"):
            module.relu_backward(X, np.ma.masked_array(X))
        with pytest.raises(ValueError, match="without a class"):
            module.cross_entropy(np.zeros((2, 0)), [0, 0])


def test_a_compiled_part_that_cannot_be_loaded_is_not_called_broken():
    """In a second interpreter of a process it is neither missing nor broken; building it again helps nobody."""
    script = """
import sys
sys.modules["fastnn._core"] = None
try:
    import fastnn
except ImportError as error:
    print(error)
"""
    message = run(script)[0]
    assert "cannot be loaded (import of fastnn._core halted" in message and "where it is missing or broken" in message
