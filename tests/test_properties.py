"""Properties that hold for arrays of any shape, layout and content."""

import numpy as np
import pytest
from cases import DTYPES, Case, assert_same_bits, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastnn as fn
import fastnn.reference as ref
from fastnn.bench.oracle import ulp_error

settings.register_profile("fastnn", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("fastnn")

floats = st.sampled_from([np.dtype(t) for t in DTYPES])
shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


@st.composite
def arrays(draw, dtype=floats, shape=shapes, **elements):
    """An array of any content, in any layout that slicing, transposing and byte-swapping lead to."""
    x = draw(hnp.arrays(draw(dtype) if isinstance(dtype, st.SearchStrategy) else dtype, draw(shape), **elements))
    x = x.transpose(draw(st.permutations(range(x.ndim))))
    steps = [draw(st.sampled_from([1, 1, -1, 2, -2])) for _ in range(x.ndim)]
    x = x[tuple(slice(None, None, step) for step in steps)]
    return x.astype(x.dtype.newbyteorder(), order="K") if draw(st.booleans()) else x


any_case = st.sampled_from(cases())


@given(arrays(), any_case)
def test_layout_does_not_matter(x, case: Case):
    plain = np.ascontiguousarray(x, x.dtype.newbyteorder("=")).reshape(x.shape)
    y = case.forward(fn, x)
    assert_same_bits(y, case.forward(fn, plain))
    assert y.flags.writeable and not np.may_share_memory(y, x)
    assert_same_bits(case.backward(fn, plain, x), case.backward(fn, plain, plain))
    assert_same_bits(case.backward(fn, x, plain), case.backward(fn, plain, plain))


@given(arrays(), any_case)
def test_reference_agrees(x, case: Case):
    y, want = case.forward(fn, x), case.forward(ref, x)
    assert y.dtype == want.dtype and y.shape == want.shape
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    assert np.all(ulp_error(np.atleast_1d(y), np.atleast_1d(want.astype(np.float64))) <= 8)


@given(arrays(), any_case, st.integers(0, 40), st.data())
def test_out_and_overlap(x, case: Case, shift, data):
    """Input and result at any two places of one buffer."""
    n = x.size
    raw = np.zeros(n + shift, x.dtype.newbyteorder("="))
    forwards = data.draw(st.booleans())
    source, out = (raw[:n], raw[shift:]) if forwards else (raw[shift:], raw[:n])
    if data.draw(st.booleans()):
        out = out[::-1]
    source[...] = x.ravel()
    want = case.forward(fn, source.copy())
    assert case.forward(fn, source, out=out) is out
    assert_same_bits(out, want)


@given(arrays(), any_case, st.integers(1, 5))
def test_pieces_make_the_whole(x, case: Case, parts):
    flat = np.ascontiguousarray(x).ravel()
    y = case.forward(fn, flat)
    pieces = [case.forward(fn, piece) for piece in np.array_split(flat, parts)]
    assert_same_bits(np.concatenate(pieces), y)


finite = {"elements": {"allow_nan": False, "allow_infinity": False, "min_value": -600, "max_value": 600}}


@given(arrays(st.just(np.dtype(np.float64)), **finite))
def test_identities(x):
    np.testing.assert_allclose(fn.sigmoid(x) + fn.sigmoid(-x), 1, rtol=1e-15)
    np.testing.assert_allclose(fn.softplus(x) - fn.softplus(-x), x, rtol=1e-14, atol=1e-15)
    np.testing.assert_array_equal(fn.log_sigmoid(x), -fn.softplus(-x))
    np.testing.assert_allclose(fn.silu(x), x * fn.sigmoid(x), rtol=1e-14, atol=1e-300)
    np.testing.assert_allclose(fn.tanh(x), 2 * fn.sigmoid(2 * x) - 1, rtol=1e-13, atol=1e-15)
    np.testing.assert_array_equal(fn.tanh(-x), -fn.tanh(x))
    np.testing.assert_allclose(fn.gelu(x) - fn.gelu(-x), x, rtol=1e-14, atol=1e-15)
    np.testing.assert_array_equal(fn.relu(x) - fn.relu(-x), x)
    np.testing.assert_array_equal(fn.relu6(x), fn.hardtanh(x, 0, 6))
    np.testing.assert_allclose(fn.hardswish(x), x * fn.hardsigmoid(x), rtol=1e-15, atol=1e-300)
    np.testing.assert_array_equal(fn.elu(x), fn.celu(x))
    np.testing.assert_array_equal(fn.leaky_relu(x, 1.0), x)
    np.testing.assert_array_equal(fn.prelu(x, 0.25), fn.leaky_relu(x, 0.25))


matrices = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=30)


@given(
    arrays(floats, matrices, elements={"allow_nan": False, "allow_infinity": False, "min_value": -80, "max_value": 80})
)
def test_softmax(x):
    y = fn.softmax(x)
    tolerance = {2: 1e-2, 4: 1e-5, 8: 1e-14}[y.dtype.itemsize]
    np.testing.assert_allclose(y.sum(-1, dtype=np.float64), 1, rtol=tolerance)
    assert y.min() >= 0 and y.max() <= 1
    assert fn.log_softmax(x).max() <= 0
    order = np.argsort(x[0].astype(np.float64), kind="stable")
    assert np.all(np.diff(y[0][order].astype(np.float64)) >= 0)
    native = x.astype(x.dtype.newbyteorder("="))
    assert_same_bits(fn.softmax(native.T, 0), np.ascontiguousarray(y.T))
    labels = np.arange(len(x)) % x.shape[1]
    loss, dlogits = fn.cross_entropy(x, labels)
    rows = np.arange(len(x))
    exact = -np.mean(ref.log_softmax(x.astype(np.float64))[rows, labels])
    assert abs(loss - exact) <= 1e-5 * max(1, exact)
    onehot = np.zeros(x.shape)
    onehot[rows, labels] = 1
    np.testing.assert_allclose(dlogits, (ref.softmax(x.astype(np.float64)) - onehot) / len(x), atol=tolerance)


@given(arrays(floats, matrices), st.integers(1, 4), st.data())
def test_maxout(x, pieces, data):
    axis = data.draw(st.sampled_from([0, 1, -1]))
    x = np.repeat(x, pieces, axis)
    y, which = fn.maxout(x, pieces, axis)
    want, places = ref.maxout(x, pieces, axis)
    assert_same_bits(y, want)
    np.testing.assert_array_equal(which, places)
    dx = fn.maxout_backward(y, which, pieces, axis)
    assert_same_bits(dx, ref.maxout_backward(y, which, pieces, axis))
    assert dx.shape == x.shape


@given(hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(max_side=4)))
def test_every_dtype_is_taken_or_refused(x):
    """Nothing crashes: a real dtype gives a result, any other a TypeError that names it."""
    if x.dtype.kind in "biu" or x.dtype.newbyteorder("=") in (np.float16, np.float32, np.float64):
        y = fn.sigmoid(x)
        assert y.dtype == (x.dtype.newbyteorder("=") if x.dtype.kind == "f" else np.float64) and y.shape == x.shape
    else:
        with pytest.raises(TypeError, match="dtype"):
            fn.sigmoid(x)
