"""The same bits on every level with a fused multiply-add, on any number of threads, at any offset and in pieces."""

import numpy as np
import pytest
from cases import assert_same_bits, cases, defaults, sample

import fastnn as fn
from fastnn import _core

FUSED = [name for name in fn.runtime.available_isas() if name != "baseline"]
by_case = pytest.mark.parametrize("case", cases(), ids=lambda case: case.id)
by_row = pytest.mark.parametrize("case", defaults(), ids=lambda case: case.id)


def all_over(dtype):
    """Bit patterns spread over the whole format, NaNs included."""
    if dtype == np.float32:
        return np.arange(0, 2**32, 2**32 // 300_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return np.arange(0, 2**64 - 2**46, 2**46, dtype=np.uint64).view(np.float64)


@pytest.mark.skipif(len(FUSED) < 2, reason="this processor has one level with a fused multiply-add")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@by_case
def test_levels_agree_bit_for_bit(case, dtype):
    for x in (all_over(dtype), sample(dtype, 20000)):
        dy = np.resize(sample(dtype, 997, seed=1), x.shape)
        results = []
        for name in FUSED:
            with fn.runtime.use_isa(name):
                results.append((case.forward(fn, x), case.backward(fn, dy, x)))
        for y, dx in results[1:]:
            assert_same_bits(y, results[0][0], "forward")
            assert_same_bits(dx, results[0][1], "backward")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@by_row
def test_thread_counts_agree_bit_for_bit(case, dtype, isa):
    n = 400_007 if min(case.row.costs) < 3 else 100_003  # enough work for several parts
    x = np.resize(sample(dtype, 5000), n)
    dy = np.resize(sample(dtype, 4999, seed=1), n)
    results = []
    for count in (1, 2, 3, 5):
        with fn.runtime.threads(count):
            results.append((case.forward(fn, x), case.backward(fn, dy, x)))
    for y, dx in results[1:]:
        assert_same_bits(y, results[0][0])
        assert_same_bits(dx, results[0][1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@by_row
def test_offsets_and_pieces_agree_bit_for_bit(case, dtype, isa):
    x = sample(dtype, 300)
    dy = sample(dtype, 300, seed=1)
    y, dx = case.forward(fn, x), case.backward(fn, dy, x)
    for start in range(35):
        assert_same_bits(case.forward(fn, x[start:]), y[start:], start)
        assert_same_bits(case.backward(fn, dy[start:], x[start:]), dx[start:], start)
    for length in (1, 2, 7, 16, 33):
        for start in range(0, len(x), length):
            piece = slice(start, start + length)
            assert_same_bits(case.forward(fn, x[piece]), y[piece], (length, start))
            assert_same_bits(case.backward(fn, dy[piece], x[piece]), dx[piece], (length, start))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@by_row
def test_places_in_a_page_agree_bit_for_bit(case, dtype, isa):
    """Loops may go down where a result begins a little after an operand in its page of 4096 bytes."""
    n, page = 5000, 4096 // np.dtype(dtype).itemsize
    x, dy = np.resize(sample(dtype, 997), n), np.resize(sample(dtype, 991, seed=1), n)
    y, dx = case.forward(fn, x), case.backward(fn, dy, x)
    memory = np.zeros((3, n + 3 * page), dtype)
    first, second, third = (row[-row.ctypes.data % 4096 // row.itemsize :] for row in memory)
    for begin, other in ((0, 0), (1, 3), (16, 9), (33, -20), (-5, 40), (-16, -7)):
        x_here, dy_here, out = first[page // 2 :][:n], third[page // 2 - other :][:n], second[page // 2 + begin :][:n]
        x_here[:], dy_here[:] = x, dy
        for size in (15, 16, 17, 500, n):
            case.forward(fn, x_here[:size], out=out[:size])
            assert_same_bits(out[:size], y[:size], (begin, size))
            case.backward(fn, dy_here[:size], x_here[:size], out=out[:size])
            assert_same_bits(out[:size], dx[:size], (begin, other, size))


def of_arrays(x, dy):
    """Every result of the functions that look at more than one element."""
    labels = np.arange(len(x)) % x.shape[1]
    slope = x[0] * 0.25
    y = fn.softmax(x)
    loss, dlogits = fn.cross_entropy(x, labels)
    winners, which = fn.maxout(x, 2, 0)
    yield "softmax", y
    yield "softmax columns", fn.softmax(x, 0)
    yield "softmax backward", fn.softmax_backward(dy, y)
    yield "softmax backward columns", fn.softmax_backward(dy, y, 0)
    yield "log_softmax", fn.log_softmax(x)
    yield "log_softmax backward", fn.log_softmax_backward(dy, fn.log_softmax(x))
    yield "loss", np.array(loss)
    yield "dlogits", dlogits
    yield "prelu", fn.prelu(x, slope)
    for name, array in zip(("dx", "dslope"), fn.prelu_backward(dy, x, slope), strict=True):
        yield f"prelu backward {name}", array
    yield "prelu backward, one slope", fn.prelu_backward(dy, x, np.array(0.25, x.dtype))[1]
    yield "maxout", winners
    yield "which", which.astype(np.float64)
    yield "maxout backward", fn.maxout_backward(winners, which, 2, 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 1), (6, 7), (130, 65), (300, 1001)])
def test_functions_of_arrays_agree_bit_for_bit(shape, dtype):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(0, 3, shape).astype(dtype), rng.normal(0, 1, shape).astype(dtype)
    results = []
    for name in FUSED:
        for count in (1, 2, 3):
            with fn.runtime.use_isa(name), fn.runtime.threads(count):
                results.append((name, count, list(of_arrays(x, dy))))
    if not results:
        pytest.skip("this processor has no level with a fused multiply-add")
    for name, count, arrays in results[1:]:
        for (what, got), (_, want) in zip(arrays, results[0][2], strict=True):
            assert_same_bits(got, want, (what, name, count))


def test_use_isa_holds_for_the_block_and_the_thread():
    before = fn.runtime.isa()
    for name in fn.runtime.available_isas():
        with fn.runtime.use_isa(name) as used:
            assert used == name == fn.runtime.isa()
            with fn.runtime.use_isa(fn.runtime.available_isas()[0]):
                assert fn.runtime.isa() == fn.runtime.available_isas()[0]
            assert fn.runtime.isa() == name
    assert fn.runtime.isa() == before
    for name in (None, 3):
        with pytest.raises(TypeError, match="one of the strings"), fn.runtime.use_isa(name):
            pass
    with pytest.raises(KeyError), fn.runtime.use_isa(fn.runtime.available_isas()[0]):
        raise KeyError
    assert fn.runtime.isa() == before


def test_half_precision_is_converted_as_numpy_does(isa):
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    number = ~np.isnan(halves)
    singles = np.empty(halves.shape, np.float32)
    _core.copy_array(halves, singles)
    assert_same_bits(singles[number], halves[number].astype(np.float32))
    assert np.isnan(singles[~number]).all()
    values = np.unique(np.append(halves[np.isfinite(halves)], 0).astype(np.float64))
    middle = np.append((values[1:] + values[:-1]) / 2, [65520.0, -65520.0]).astype(np.float32)  # from there on infinity
    sides = [np.nextafter(middle, np.float32(end)) for end in (-np.inf, np.inf)]
    x = np.concatenate([middle, *sides, singles[number], all_over(np.float32)])
    y = np.empty(x.shape, np.float16)
    _core.copy_array(x, y)
    number = ~np.isnan(x)
    with np.errstate(all="ignore"):
        assert_same_bits(y[number], x[number].astype(np.float16))
    assert np.isnan(y[~number]).all()
