"""`out=`, in-place work and every kind of overlap; subclasses, masked, 0-d and zero-size arrays; large results."""

import sys
from itertools import permutations
from pathlib import Path
from platform import machine

import numpy as np
import pytest
from cases import DTYPES, Tagged, assert_begins_anywhere, assert_same_bits, defaults, layouts, sample

import fastnn as fn
from fastnn import _core

by_row = pytest.mark.parametrize("case", defaults(), ids=lambda case: case.id)


@by_row
@pytest.mark.parametrize("dtype", DTYPES)
def test_out_in_every_layout(case, dtype, isa, tmp_path):
    values = np.resize(sample(dtype, 500), (5, 67))
    saved = case.saved(values)
    y, dx = case.forward(fn, values), case.backward(fn, values, saved)
    for name, out in layouts(np.zeros_like(values), tmp_path):
        if name in ("byte-swapped", "read-only memmap"):
            continue
        assert case.forward(fn, values, out=out) is out
        assert_same_bits(out, y, name)
        assert case.backward(fn, values, saved, out=out) is out
        assert_same_bits(out, dx, name)


@by_row
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(case, dtype, isa, mesh, tmp_path):
    values = np.resize(sample(dtype, 500), (5, 67))
    saved = case.saved(values)
    grads = values[::-1].copy()
    y, dx = case.forward(fn, values), case.backward(fn, grads, saved)
    for name, x in layouts(values, tmp_path):
        if name in ("byte-swapped", "read-only memmap"):
            continue
        case.forward(fn, x, out=x)
        assert_same_bits(x, y, name)
    for name, dy in layouts(grads, tmp_path):
        if name in ("byte-swapped", "read-only memmap"):
            continue
        case.backward(fn, dy, saved, out=dy)
        assert_same_bits(dy, dx, name)
    for name, s in layouts(saved, tmp_path):
        if name in ("byte-swapped", "read-only memmap"):
            continue
        case.backward(fn, grads, s, out=s)
        assert_same_bits(s, dx, name)
    both = values.copy()
    assert_same_bits(case.backward(fn, both, both, out=both), case.backward(fn, values, values))


@pytest.mark.parametrize("n", [1, 17, 1000, 40000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_shifted_overlap(n, dtype, isa, threads):
    """The result is the one without an overlap, whichever way and however far the result is shifted."""
    for shift in (1, 3, 16, 64, 1023):
        for forwards in (True, False):
            raw = np.resize(sample(dtype, 2000), n + shift)
            x, out = (raw[:n], raw[shift:]) if forwards else (raw[shift:], raw[:n])
            want = fn.silu(x.copy())
            fn.silu(x, out=out)
            assert_same_bits(out, want, (shift, forwards))


@pytest.mark.parametrize("dtype", DTYPES)
def test_shifted_overlap_backward(dtype, isa):
    """Of either operand, by a single element too."""
    for n in (15, 16, 17, 100, 1000):
        for shift in sorted({1, 3, 16, n // 2, n - 1}):
            for which in (0, 1):
                for forwards in (True, False):
                    raw = np.resize(sample(dtype, 2000), n + shift)
                    other = np.resize(sample(dtype, 2000, seed=1), n)
                    a, out = (raw[:n], raw[shift:]) if forwards else (raw[shift:], raw[:n])
                    operands = (a, other) if which == 0 else (other, a)
                    want = fn.silu_backward(*(x.copy() for x in operands))
                    fn.silu_backward(*operands, out=out)
                    assert_same_bits(out, want, (n, shift, which, forwards))


def overlapping_pairs():
    """(name, x, out) sharing memory; x is filled later."""
    raw = np.zeros(4000, np.float32)
    yield "reversed", raw[:1000], raw[999::-1]
    yield "every other", raw[:1000:2], raw[:500]
    yield "spread", raw[:500], raw[:1000:2]
    yield "interleaved", raw[::2], raw[1::2]
    square = raw[:3600].reshape(60, 60)
    yield "transposed", square, square.T
    yield "rows reversed", square, square[::-1]
    yield "columns shifted", square[:, :-1], square[:, 1:]
    yield "broadcast", np.broadcast_to(raw[5:6], (50,)), raw[:50]
    yield "one row for all", np.broadcast_to(square[3], (60, 60)), square
    raw64 = np.zeros(1000, np.float64)
    yield "read as another dtype", raw64.view(np.float32)[:1000], raw64.view(np.float32)[1000:0:-1]


@pytest.mark.parametrize("name", [name for name, _, _ in overlapping_pairs()])
def test_every_kind_of_overlap(name, isa):
    def arrays():
        x, out = next((x, out) for other, x, out in overlapping_pairs() if other == name)
        base = x if x.base is None else x.base
        while base.base is not None:
            base = base.base
        base.view(np.float32)[...] = np.resize(sample(np.float32, 1500)[50:], base.view(np.float32).shape)
        return x, out

    x, out = arrays()
    want = fn.gelu(x.copy())
    fn.gelu(x, out=out)
    assert_same_bits(out, want)

    x, out = arrays()
    other = np.resize(sample(np.float32, 1500, seed=1), x.shape)
    want = fn.gelu_backward(x.copy(), other)
    fn.gelu_backward(x, other, out=out)
    assert_same_bits(out, want)

    x, out = arrays()
    want = fn.gelu_backward(other, x.copy())
    fn.gelu_backward(other, x, out=out)
    assert_same_bits(out, want)

    x, out = arrays()
    want = fn.gelu_backward(x.copy(), x.copy())
    fn.gelu_backward(x, x, out=out)
    assert_same_bits(out, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_where_elements_share_memory(dtype, isa, threads):
    """Each is computed once: a block may not read what another one has written."""
    for shape, step in (((9000,), (0,)), ((3000, 3), (1, 1)), ((5000, 8), (0, 1)), ((8, 5000), (-1, 0))):
        memory = np.full(9008, 0.75, dtype)
        strides = [s * memory.itemsize for s in step]
        x = np.lib.stride_tricks.as_strided(memory[8:], shape, strides)
        for f, others in ((fn.softplus, ()), (fn.softmax, ()), (fn.prelu, (2,)), (fn.tanh_backward, (x,))):
            x[...] = 0.75
            y = f(x.copy(), *others)
            assert np.all(f(x, *others, out=x) == y)


def test_overlap_of_input_and_result_of_other_dtypes(isa):
    raw = np.linspace(-3, 3, 200)
    x = raw.view(np.float32)[:100]
    x[...] = np.linspace(-2, 2, 100)
    want = fn.tanh_backward(np.ones(100), x.copy())
    out = raw[:100]
    fn.tanh_backward(np.ones(100), x, out=out)
    assert_same_bits(out, want)
    ints = np.arange(8)
    out = ints.view(np.float64)
    fn.relu(ints, out=out)
    assert list(out) == list(range(8))


def test_byte_swapped_input_over_its_own_memory(isa):
    raw = np.linspace(-3, 3, 99).astype(np.float32)
    swapped = raw.astype(">f4")
    out = swapped.view(np.float32)
    want = fn.tanh(raw)
    fn.tanh(swapped, out=out)
    assert_same_bits(out, want)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_subclasses_are_taken_as_ndarray():
    x = np.linspace(-1, 1, 20, dtype=np.float32)
    want = fn.sigmoid(x)
    for other in (np.asmatrix(x), x.view(Tagged), np.rec.array(x)):
        y = fn.sigmoid(other)
        assert type(y) is np.ndarray
        assert_same_bits(y.ravel(), want)
        dx = fn.sigmoid_backward(other, other)
        assert type(dx) is np.ndarray
    out = np.empty_like(x).view(Tagged)
    assert fn.sigmoid(x, out=out) is out
    assert_same_bits(np.asarray(out), want)
    assert fn.sigmoid_backward(x, x, out=out) is out


class Duck:
    """Something that only knows how to become an array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_anything_with_an_array_protocol():
    x = np.linspace(-1, 1, 5, dtype=np.float32)
    assert_same_bits(fn.relu(Duck(x)), fn.relu(x))
    assert_same_bits(fn.relu(memoryview(x)), fn.relu(x))


@by_row
def test_zero_dimensions_and_zero_size(case, isa):
    for dtype in DTYPES:
        x = np.array(0.5, dtype)
        for given in (x, x.astype(x.dtype.newbyteorder()), dtype(0.5)):
            y = case.forward(fn, given)
            assert isinstance(y, np.ndarray) and y.shape == () and y.dtype == dtype
            assert y == case.forward(fn, np.array([0.5], dtype))[0]
            dx = case.backward(fn, given, given)
            assert isinstance(dx, np.ndarray) and dx.shape == () and dx.dtype == dtype
        out = np.zeros((), dtype)
        assert case.forward(fn, x, out=out) is out and out == y
        for shape in ((0,), (0, 3), (3, 0), (2, 0, 4)):
            empty = np.zeros(shape, dtype)
            assert case.forward(fn, empty).shape == case.backward(fn, empty, empty).shape == shape
            assert case.forward(fn, empty, out=empty) is empty
            strided = np.zeros((6, 6), dtype)[3:3, ::2]
            assert case.forward(fn, strided).shape == (0, 3)


def test_many_dimensions(isa):
    x = np.random.default_rng(0).normal(size=(2,) * 12).astype(np.float32)
    turned = x.transpose(tuple(range(11, -1, -1)))[::-1, :, ::-1]
    assert_same_bits(fn.tanh(turned), np.ascontiguousarray(fn.tanh(turned.copy())))
    deep = np.zeros((1,) * 31 + (3,), np.float32)
    assert fn.tanh(deep[..., ::-1]).shape == deep.shape


def test_inputs_are_never_written(isa):
    x = sample(np.float32, 500)
    x.flags.writeable = False
    before = x.tobytes()
    for case in defaults():
        case.forward(fn, x)
        case.backward(fn, x, x)
    assert x.tobytes() == before


def test_nothing_is_written_beyond_the_result(isa):
    for dtype in DTYPES:
        for n in (1, 7, 16, 63, 1000):
            for offset in (0, 1, 5):
                raw = np.full(n + 64, 7, dtype)
                out = raw[offset : offset + n]
                x = np.linspace(-1, 1, n).astype(dtype)
                fn.tanh(x, out=out)
                fn.tanh_backward(x, x, out=out)
                assert np.all(raw[:offset] == 7) and np.all(raw[offset + n :] == 7)
                spread = np.full(3 * n, 7, dtype)
                fn.tanh(x, out=spread[::3])
                assert np.all(spread[1::3] == 7) and np.all(spread[2::3] == 7)


# where fastnn asks the processor the same question as Linux does
SYSTEM_CACHES = list(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")) if machine() == "x86_64" else []


@pytest.fixture
def streamed():
    """All but the smallest results bypass the caches; called with False, none does."""
    former = _core.set_stream_limits(1 << 12, 1 << 12)
    yield lambda on: _core.set_stream_limits(*[1 << 12 if on else 1 << 60] * 2)
    _core.set_stream_limits(*former)


def assert_streamed_alike(streamed, call, like):
    """call(out) writes the same bits past the caches as through them, wherever out begins, and nothing beside it."""
    streamed(False)
    want = np.empty_like(like)
    call(want)
    streamed(True)
    assert_begins_anywhere(call, want, (0, 1, 5, 32))


@by_row
@pytest.mark.parametrize("dtype", DTYPES)
def test_streamed_results(case, dtype, streamed, threads, mesh):
    x = np.resize(sample(dtype, 500), 20011)
    saved = case.saved(x)
    assert_streamed_alike(streamed, lambda out: case.forward(fn, x, out=out), x)
    assert_streamed_alike(streamed, lambda out: case.backward(fn, x[::-1].copy(), saved, out=out), x)


def views(shape):
    """Functions that make a view of this shape: its axes in every order in memory, with gaps, and from the end."""
    for order in permutations(range(len(shape))):
        for gap in (1, 2, 3):
            for sign in (1, -1):

                def view(dtype, order=order, gap=gap, sign=sign):
                    lengths = [shape[axis] for axis in order]
                    raw = np.full((*lengths[:-1], lengths[-1] * gap + 1), 7, dtype)
                    part = raw[..., 1 : lengths[-1] * gap + 1 : gap][..., ::sign]
                    return raw, part.transpose(np.argsort(order))

                yield view


@pytest.mark.parametrize("shape", [(31, 70, 145), (1, 203, 196), (300, 2, 5), (2, 3, 1100)], ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, np.dtype(">f4")], ids=lambda dtype: np.dtype(dtype).str)
def test_blocks_of_every_view(shape, dtype, streamed, threads):
    """Boxes of all kinds, of inputs and results alike: the bits of contiguous arrays, nothing written beside them."""
    native = np.dtype(dtype).newbyteorder("=")
    values = np.resize(sample(native.type, 500), shape)
    want, slope = fn.relu(values), fn.silu_backward(values[::-1].copy(), values)
    for number, view in enumerate(views(shape)):
        streamed(number % 4 < 2)
        _, x = view(dtype)
        x[...] = values
        assert_same_bits(fn.relu(x), want)
        raw, out = view(native)
        fn.relu(values, out=out)
        assert_same_bits(out, want)
        assert np.count_nonzero(raw == 7) == raw.size - out.size + np.count_nonzero(want == 7)
        fn.silu_backward(values[::-1].copy(), x, out=out)
        assert_same_bits(out, slope)
        out[...] = values
        fn.relu(out, out=out)
        assert_same_bits(out, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_streamed_results_of_prelu(axis, dtype, streamed, threads):
    x = np.resize(sample(dtype, 500), (5, 41, 203))
    slope = dtype(0.25) if axis is None else np.linspace(-1, 1, x.shape[axis]).astype(dtype)
    given = {"axis": axis or 0}
    assert_streamed_alike(streamed, lambda out: fn.prelu(x, slope, **given, out=out), x)
    assert_streamed_alike(streamed, lambda out: fn.prelu_backward(x[::-1].copy(), x, slope, **given, out=out), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [17, 33, 64, 65, 203, 1024, 4097, 20000])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_streamed_rows(name, length, dtype, streamed, threads):
    """Rows whose exponentials are in range, and others."""
    forward, backward = getattr(fn, name), getattr(fn, f"{name}_backward")
    for bound in (5, 500):
        x = np.resize(sample(dtype, bound), (20003 // length + 1, length))
        saved = forward(x)
        assert_streamed_alike(streamed, lambda out, x=x: forward(x, out=out), x)
        assert_streamed_alike(streamed, lambda out, x=x, saved=saved: backward(x[::-1].copy(), saved, out=out), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [17, 33, 64, 203, 1024, 4097])
def test_streamed_cross_entropy(length, dtype, streamed, threads):
    x = np.resize(sample(dtype, 5), (20003 // length + 1, length))
    x[~np.isfinite(x)] = 1
    labels = np.arange(len(x)) % length
    assert_streamed_alike(streamed, lambda out: fn.cross_entropy(x, labels, out=out)[1], x)
    loss = fn.cross_entropy(x, labels)[0]
    streamed(False)
    assert fn.cross_entropy(x, labels)[0] == loss


@pytest.mark.skipif(not SYSTEM_CACHES, reason="the system does not describe its caches")
def test_results_bypass_the_caches_that_this_machine_has():
    limits = _core.set_stream_limits(0, 0)
    _core.set_stream_limits(*limits)
    largest = max(int(size.read_text().rstrip("K\n")) << 10 for size in SYSTEM_CACHES)
    assert limits == ((largest, sys.maxsize) if largest <= 64 << 20 else (16 << 20, 64 << 20))


def test_results_past_the_caches(streamed, threads):
    """Large enough to be split among threads; neither end is aligned."""
    n = (52 << 20) // 4 + 37
    x = np.resize(np.linspace(-4, 4, 99991, dtype=np.float32), n)
    want = np.resize(fn.relu(x[:99991]), n)
    assert_same_bits(fn.relu(x), want)
    raw = np.zeros(n + 3, np.float32)
    for offset in (1, 3):
        fn.relu(x, out=raw[offset : offset + n])
        assert_same_bits(raw[offset : offset + n], want)
    assert_same_bits(fn.relu_backward(x, x), want)
    fn.relu(x, out=x)
    assert_same_bits(x, want)


def test_results_keep_the_layout_of_the_input():
    x = np.asfortranarray(np.zeros((30, 40), np.float32))
    assert fn.relu(x).flags.f_contiguous
    assert fn.relu(x.T).flags.c_contiguous
