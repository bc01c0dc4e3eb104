"""Layer, RMS, group and instance norm against their plain NumPy twins and exact results, and the class BatchNorm."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from cases import DTYPES
from norms import close, layouts, near, same_bits
from numpy.exceptions import AxisError

import fastnn.reference as reference
from fastnn import normalization as fn
from fastnn import runtime


def layer(f, x, gamma, beta, dy=None, **rest):
    y, mean, invstd = f.layer_norm(x, gamma, beta, **rest)
    return (y, mean, invstd, *(() if dy is None else f.layer_norm_backward(dy, x, mean, invstd, gamma, **rest)))


def rms(f, x, gamma, beta, dy=None, **rest):
    y, invrms = f.rms_norm(x, gamma, **rest)
    return (y, invrms, *(() if dy is None else f.rms_norm_backward(dy, x, invrms, gamma, **rest)))


def group(f, x, gamma, beta, dy=None, groups=2, **rest):
    y, mean, invstd = f.group_norm(x, groups, gamma, beta, **rest)
    back = () if dy is None else f.group_norm_backward(dy, x, mean, invstd, groups, gamma, **rest)
    return (y, mean, invstd, *back)


def instance(f, x, gamma, beta, dy=None, **rest):
    y, mean, invstd = f.instance_norm(x, gamma, beta, **rest)
    return (y, mean, invstd, *(() if dy is None else f.instance_norm_backward(dy, x, mean, invstd, gamma, **rest)))


# what, the shape of x, the shape of gamma, the keywords
CASES = [
    (layer, (7,), (7,), {}),
    (layer, (5, 33), (33,), {}),
    (layer, (1000, 3), (3,), {}),
    (layer, (100, 31), (31,), {}),
    (layer, (1, 1), (1,), {}),
    (layer, (70, 12), (12,), {}),
    (layer, (1000, 16), (16,), {}),
    (layer, (77, 47), (47,), {}),
    (layer, (40, 63), (63,), {}),
    (layer, (33, 95), (95,), {}),
    (layer, (33, 96), (96,), {}),
    (layer, (130, 768), (768,), {}),
    (layer, (3, 4, 5), (4, 5), {"axis": 1}),
    (layer, (3, 4, 5), (3, 4, 5), {"axis": 0}),
    (layer, (37, 3000), (3000,), {}),
    (layer, (19, 9, 4000), (9, 4000), {"axis": 1}),
    (rms, (7,), (7,), {}),
    (rms, (5, 33), (33,), {}),
    (rms, (70, 21), (21,), {}),
    (rms, (130, 768), (768,), {}),
    (rms, (3, 4, 5), (4, 5), {"axis": -2}),
    (group, (3, 4), (4,), {}),
    (group, (6, 8, 5), (8,), {"groups": 4}),
    (group, (40, 96, 4, 4), (96,), {"groups": 24}),
    (group, (20, 60, 3), (60,), {"groups": 20}),
    (group, (33, 21, 2), (21,), {"groups": 7}),
    (group, (30, 21, 6), (21,), {"groups": 7}),
    (group, (30, 21, 9), (21,), {"groups": 7}),
    (group, (9, 64, 2, 2), (64,), {"groups": 64}),
    (group, (12, 64, 3, 3), (64,), {"groups": 2}),
    (group, (7, 30, 13), (30,), {"groups": 3}),
    (group, (2, 80, 3), (80,), {"groups": 2}),
    (group, (33, 6, 7, 7), (6,), {"groups": 3}),
    (group, (4, 6, 28, 28), (6,), {"groups": 1}),
    (group, (2, 160, 6, 6), (160,), {"groups": 2}),
    (group, (3, 12, 21), (12,), {"groups": 3}),
    (group, (5, 9, 4, 4), (9,), {"groups": 1}),
    (group, (2, 82, 4, 5), (82,), {"groups": 2}),
    (group, (4, 7, 6), (6,), {"axis": -1}),
    (group, (4, 5, 6, 3), (6,), {"axis": 2, "groups": 3}),
    (group, (2, 6, 512), (6,), {"groups": 3}),
    (group, (2, 6, 513), (6,), {"groups": 3}),
    (instance, (9, 5, 8), (5,), {}),
    (instance, (3, 70, 4, 4), (70,), {}),
    (instance, (3, 7, 5, 5), (7,), {}),
    (instance, (2, 70, 32), (70,), {}),
    (instance, (3, 4, 33), (4,), {}),
    (instance, (3, 4, 47), (4,), {}),
    (instance, (3, 4, 50), (4,), {}),
    (instance, (3, 4, 127), (4,), {}),
    (instance, (3, 4, 16, 16), (4,), {}),
    (instance, (3, 9, 5), (5,), {"axis": -1}),
    (instance, (3, 4), (4,), {}),
]


def arrays(shape, gamma_shape, dtype):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(shape) * 2 + 3).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    gamma, beta = rng.standard_normal((2, *gamma_shape)).astype(dtype)
    return x, dy, gamma, beta


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("what", "shape", "gamma_shape", "rest"), CASES)
def test_agrees_with_the_reference(what, shape, gamma_shape, rest, dtype):
    x, dy, gamma, beta = arrays(shape, gamma_shape, dtype)
    for g, b in ((gamma, beta), (None, None), (None, beta), (gamma.astype(np.float64), None)):
        got, want = what(fn, x, g, b, dy, **rest), what(reference, x, g, b, dy, **rest)
        for result, exact in zip(got, want, strict=True):
            assert result.dtype == exact.dtype and result.shape == exact.shape
            assert close(result, exact, min(dtype, result.dtype.type, key=lambda d: np.dtype(d).itemsize))


# Results that bypass the caches; rows and runs that do not begin on a cache line, or are shorter than a few.
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("what", "shape", "gamma_shape", "rest"),
    [
        (layer, (3001, 999), (999,), {}),
        (layer, (250000, 11), (11,), {}),
        (layer, (50001, 43), (43,), {}),
        (layer, (100001, 28), (28,), {}),
        (layer, (200001, 16), (16,), {}),
        (layer, (40001, 62), (62,), {}),
        (layer, (30001, 90), (90,), {}),
        (rms, (3001, 999), (999,), {}),
        (rms, (25001, 85), (85,), {}),
        (rms, (100001, 21), (21,), {}),
        (group, (1600, 1610), (1610,), {"groups": 70}),
        (group, (3001, 96, 3, 3), (96,), {"groups": 12}),
        (group, (3001, 96, 3, 3), (96,), {"groups": 48}),
        (group, (4001, 96, 7), (96,), {"groups": 48}),
        (group, (700, 65, 7, 7), (65,), {"groups": 5}),
        (instance, (700, 65, 7, 7), (65,), {}),
        (group, (1500, 96, 4, 4), (96,), {"groups": 12}),
        (instance, (1500, 65, 5, 5), (65,), {}),
        (group, (20, 1000, 11, 11), (1000,), {"groups": 2}),
        (group, (61, 20, 49, 51), (20,), {"groups": 5}),
        (instance, (61, 20, 49, 51), (20,), {}),
    ],
)
def test_large_arrays_agree_with_the_reference(what, shape, gamma_shape, rest, dtype):
    x, dy, gamma, beta = arrays(shape, gamma_shape, dtype)
    for g, b in ((gamma, beta), (None, None)):
        with runtime.threads(2):
            got = what(fn, x, g, b, dy, **rest)
        for result, exact in zip(got, what(reference, x, g, b, dy, **rest), strict=True):
            assert close(result, exact, min(dtype, result.dtype.type, key=lambda d: np.dtype(d).itemsize))


# Each returns the result, and writes it to `out`: forward, or with dy backward.
PAST_THE_CACHES = {
    "layer_norm": lambda x, v, dy, mean, invstd, out: (
        fn.layer_norm(x, v, v, out=out) if dy is None else fn.layer_norm_backward(dy, x, mean, invstd, v, out=out)
    ),
    "group_norm": lambda x, v, dy, mean, invstd, out: (
        fn.group_norm(x, 5, v, v, out=out) if dy is None else fn.group_norm_backward(dy, x, mean, invstd, 5, v, out=out)
    ),
    "instance_norm": lambda x, v, dy, mean, invstd, out: (
        fn.instance_norm(x, v, v, out=out) if dy is None else fn.instance_norm_backward(dy, x, mean, invstd, v, out=out)
    ),
    "batch_norm": lambda x, v, dy, mean, invstd, out: (
        fn.batch_norm(x, v, v, out=out) if dy is None else fn.batch_norm_backward(dy, x, mean, invstd, v, out=out)
    ),
    "batch_norm_inference": lambda x, v, dy, mean, invstd, out: (fn.batch_norm_inference(x, v, v * v, v, v, out=out),),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layer_norm", (9001, 250)),
        ("layer_norm", (24001, 97)),
        ("layer_norm", (60001, 37)),
        ("layer_norm", (2200, 1024)),
        ("group_norm", (100, 120, 14, 14)),
        ("group_norm", (40, 60, 32, 33)),
        ("instance_norm", (100, 250, 9, 11)),
        ("batch_norm", (100, 250, 10, 9)),
        ("batch_norm", (60, 65, 24, 25)),
        ("batch_norm_inference", (100, 250, 10, 9)),
        ("batch_norm_inference", (33, 65, 33, 33)),
        ("batch_norm_inference", (200, 250, 7, 7)),
        ("group_norm", (200, 250, 7, 7)),
    ],
)
def test_results_past_the_caches_begin_anywhere_in_a_line(name, shape, dtype, mesh):
    x, dy, v, _ = arrays(shape, shape[1:2], dtype)
    statistics, call = (None, None), PAST_THE_CACHES[name]
    for slope in (None, dy):
        expected = call(x, v, slope, *statistics, None)
        for begin in (1, 6, 15):
            room = np.full(x.size + 32, 7, dtype)
            out = room[begin : begin + x.size].reshape(shape)
            with runtime.threads(2):
                result = call(x, v, slope, *statistics, out)
            assert result[0] is out and same_bits(result, expected)
            assert np.all(room[:begin] == 7) and np.all(room[begin + x.size :] == 7)
        statistics = expected[1:3]
        if name == "batch_norm_inference":
            break


# Several pieces, of a few rows, of eight long ones, of samples.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("what", "shape", "gamma_shape", "rest"),
    [
        (layer, (901, 1000), (1000,), {}),
        (layer, (19, 60000), (60000,), {}),
        (rms, (901, 1000), (1000,), {}),
        (group, (30, 12, 70, 41), (12,), {"groups": 4}),
    ],
)
def test_arrays_that_are_copied_in_pieces(what, shape, gamma_shape, rest, dtype):
    x, dy, gamma, beta = (np.repeat(a, 2, -1)[..., ::2] for a in arrays(shape, gamma_shape, dtype))
    got = what(fn, x, gamma, beta, dy, **rest)
    for result, exact in zip(got, what(reference, x, gamma, beta, dy, **rest), strict=True):
        assert close(result, exact, min(dtype, result.dtype.type, key=lambda d: np.dtype(d).itemsize))
    with runtime.threads(1):
        assert same_bits(what(fn, x, gamma, beta, dy, **rest), got)


@pytest.mark.parametrize("n", [3, 7])
def test_doubtful_sets_among_others_past_the_caches(n, mesh):
    """Their gradients cancel, and they are written by other means, between results that wait for whole lines."""
    x, dy, gamma, _ = arrays((1000, 128, n * 2, n), (128,), np.float32)
    some = dy[::7, 3:90:5]
    some[...] = 3 * x[::7, 3:90:5] + 7
    dy[11] = 2 * x[11] + 1
    mean, invstd = fn.instance_norm(x, gamma)[1:]
    room = np.full(x.size + 32, 7, np.float32)
    out = room[5 : 5 + x.size].reshape(x.shape)
    fn.instance_norm_backward(dy, x, mean, invstd, gamma, out=out)
    assert np.all(room[:5] == 7) and np.all(room[5 + x.size :] == 7)
    for i in range(0, 1000, 50):
        part = np.s_[i : i + 50]
        dx = fn.instance_norm_backward(dy[part], x[part], mean[part], invstd[part], gamma)[0]
        assert same_bits([dx], [out[part]])


# While the results of some sets are written, others are summed; some are far from zero.
@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "shape", "gamma_shape", "rest"),
    [
        ("layer_norm", (75, 45), (45,), {}),
        ("layer_norm", (75, 300), (300,), {}),
        ("layer_norm", (9, 9001), (9001,), {}),
        ("rms_norm", (75, 300), (300,), {}),
        ("group_norm", (3, 84, 5, 9), (84,), {"groups": 12}),
        ("instance_norm", (2, 45, 17, 19), (45,), {}),
    ],
)
def test_sets_know_nothing_of_those_beside_them(name, shape, gamma_shape, rest, dtype, isa, mesh):
    x, other, gamma, beta = arrays(shape, gamma_shape, dtype)
    count = shape[0] * rest.get("groups", 45 if name == "instance_norm" else 1)
    x.reshape(count, -1)[::3] += 3000
    affine = {"gamma": gamma} if name == "rms_norm" else {"gamma": gamma, "beta": beta}
    with runtime.use_isa(isa), runtime.threads(1):
        for weights in ({}, affine):
            results = getattr(fn, name)(x, **rest, **weights)
            first = getattr(fn, name)(x[:1], **rest, **weights)
            assert same_bits(first, [a[:1] for a in results])
            for kept in range(2):
                mixed = x.copy().reshape(count, -1)
                mixed[1 - kept :: 2] = other.reshape(count, -1)[1 - kept :: 2]
                beside = getattr(fn, name)(mixed.reshape(shape), **rest, **weights)
                for a, b in zip(beside, results, strict=True):
                    assert same_bits([a.reshape(count, -1)[kept::2]], [b.reshape(count, -1)[kept::2]])


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "shape", "gamma_shape", "rest"),
    [
        *[(name, (24, n), (n,), {}) for name in ("layer_norm", "rms_norm") for n in (12, 20, 64, 100, 223, 256, 1000)],
        ("group_norm", (24, 8, 3, 5), (8,), {"groups": 1}),
        ("group_norm", (24, 8, 3, 5), (8,), {"groups": 2}),
        ("instance_norm", (24, 1, 7, 9), (1,), {}),
    ],
)
def test_gradients_know_nothing_of_rows_beside_them(name, shape, gamma_shape, rest, dtype, isa, mesh):
    """One of them is linear in x, so that its gradient cancels, one is not finite."""
    x, dy, gamma, _ = arrays(shape, gamma_shape, dtype)
    with runtime.use_isa(isa):
        _, *saved = getattr(fn, name)(x, gamma=gamma, **rest)
        other = dy.copy()
        other[2] = 3 * x[2] + 1
        other[9] = np.nan
        others = [i for i in range(len(x)) if i not in (2, 9)]
        plain, *_ = getattr(fn, f"{name}_backward")(dy, x, *saved, **rest, gamma=gamma)
        mixed, *_ = getattr(fn, f"{name}_backward")(other, x, *saved, **rest, gamma=gamma)
        assert same_bits([plain[others]], [mixed[others]])
        for place in (0, 1):  # over dy, over x
            given = [other.copy(), x.copy()]
            getattr(fn, f"{name}_backward")(*given, *saved, **rest, gamma=gamma, out=given[place])
            assert same_bits([mixed], [given[place]])
        row = np.s_[2:3]
        alone, *_ = getattr(fn, f"{name}_backward")(other[row], x[row], *(s[row] for s in saved), **rest, gamma=gamma)
        assert same_bits([alone], [mixed[row]])


@pytest.mark.parametrize("isa", runtime.available_isas())
def test_gamma_and_scale_at_the_ends_of_the_range(isa):
    """gamma * invstd leaves float32's normal numbers, dx does not."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((2, 2, 3, 50))
    with runtime.use_isa(isa):
        for size, slope, weight, eps in (
            (1e-23, 0.0, 1e17, 0.0),
            (1e-23, 1e-12, 1e17, 0.0),
            (1e20, 1e15, 1e-25, 1e-5),
            (1e-12, 1e-18, 1e32, 0.0),
            (1e13, 3e17, 1e-32, 0.0),
        ):
            x, dy = (normal * np.array([size, slope]).reshape(2, 1, 1, 1)).astype(np.float32)
            gamma = np.array([weight, 1.0, 0.0], np.float32)
            for name, rest in (("instance_norm", {}), ("group_norm", {"groups": 3}), ("group_norm", {"groups": 1})):
                saved = getattr(reference, name)(x, eps=eps, **rest)[1:]
                got, want = (
                    getattr(module, f"{name}_backward")(dy, x, *saved, **rest, gamma=gamma)[0]
                    for module in (fn, reference)
                )
                largest = np.abs(want).max(axis=(1, 2) if rest == {"groups": 1} else -1, keepdims=True)
                assert np.all(np.abs(got - want) <= 1e-5 * largest)


@pytest.mark.parametrize(("shape", "groups"), [((3, 8, 50), 2), ((3, 8, 50), 8), ((2, 8, 4000), 4)])
def test_dbeta_of_large_gradients_that_cancel(shape, groups, isa):
    """Sums of float32 gradients leave its range on the way, their total does not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    dy = np.full(shape, 3e38, np.float32)
    dy[..., shape[2] // 2 :] *= -1
    gamma = np.full(8, 1e-20, np.float32)
    _, mean, invstd = fn.group_norm(x, groups)
    got = fn.group_norm_backward(dy, x, mean, invstd, groups, gamma)
    wide = [a.astype(np.float64) for a in (dy, x)]
    want = reference.group_norm_backward(*wide, mean, invstd, groups, gamma.astype(np.float64))
    assert np.all(np.abs(got[2] - want[2]) <= 1e-5 * 3e38)
    assert np.all(np.abs(got[0] - want[0]) <= 1e-5 * np.abs(want[0]).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("what", "shape", "gamma_shape", "rest"),
    [*CASES, (layer, (5000, 70), (70,), {}), (group, (40, 32, 30, 30), (32,), {"groups": 8})],
)
def test_bits_depend_on_neither_threads_nor_level(what, shape, gamma_shape, rest, dtype):
    x, dy, gamma, beta = arrays(shape, gamma_shape, dtype)
    best = runtime.available_isas()[-1]  # whatever FASTNN_ISA is
    with runtime.use_isa(best), runtime.threads(1):
        expected = what(fn, x, gamma, beta, dy, **rest)
    for number in (2, 3, 7):
        with runtime.use_isa(best), runtime.threads(number):
            assert same_bits(what(fn, x, gamma, beta, dy, **rest), expected), number
    for name in runtime.available_isas():
        if name != "baseline":  # it has no fused multiply-add
            with runtime.use_isa(name):
                assert same_bits(what(fn, x, gamma, beta, dy, **rest), expected), name


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("what", "shape", "gamma_shape", "rest"),
    [
        (layer, (40, 333), (333,), {}),
        (rms, (40, 333), (333,), {}),
        *((group, (3, 4, n), (4,), {"groups": 2}) for n in (16, 19, 95, 128, 129, 256, 257, 784, 2079, 2080, 5001)),
        (instance, (2, 3, 14, 14), (3,), {}),
    ],
)
def test_bits_do_not_depend_on_where_arrays_begin(what, shape, gamma_shape, rest, dtype, isa):
    """Loads begin on cache lines, sums do not."""
    x, dy, gamma, beta = arrays(shape, gamma_shape, dtype)

    def begin(values, offset):
        memory = np.empty(values.size + 40, dtype)
        first = -memory.ctypes.data // memory.itemsize % 16 + offset
        place = memory[first : first + values.size].reshape(values.shape)
        place[...] = values
        return place

    with runtime.use_isa(isa):
        expected = what(fn, begin(x, 0), gamma, beta, begin(dy, 0), **rest)
        for offset, other in ((1, 1), (4, 4), (15, 15), (0, 7), (9, 0), (3, 12)):
            got = what(fn, begin(x, offset), gamma, beta, begin(dy, other), **rest)
            assert same_bits(got, expected), (offset, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("what", "shape", "gamma_shape", "rest"), [case for case in CASES if len(case[1]) > 1 and max(case[1]) < 100]
)
def test_any_layout_and_any_out(what, shape, gamma_shape, rest, dtype):
    x, dy, gamma, beta = arrays(shape, gamma_shape, dtype)
    expected = what(fn, x, gamma, beta, dy, **rest)
    for name, other in layouts(x).items():
        for result, exact in zip(what(fn, other, gamma, beta, dy, **rest), expected, strict=True):
            assert result.dtype.isnative and close(result, exact, dtype), name
    size = x.size
    for offset in (0, 1, size // 2, size):
        for sign in (1, -1):
            memory = np.zeros(3 * size, dtype)
            place = memory[size : 2 * size].reshape(shape)
            out = memory[size + sign * offset : 2 * size + sign * offset].reshape(shape)
            place[...] = x
            assert what(fn, place, gamma, beta, out=out, **rest)[0] is out
            assert np.array_equal(out, expected[0])
    backward = getattr(fn, f"{what.__name__}_norm_backward")
    statistics, back = (expected[1:2], expected[2:]) if what is rms else (expected[1:3], expected[3:])
    options = {"groups": 2, **rest} if what is group else rest
    for place, operands in ((dy.copy(), 0), (x.copy(), 1)):
        pair = (place, x) if operands == 0 else (dy, place)
        assert same_bits(backward(*pair, *statistics, gamma=gamma, out=place, **options), back)
        assert np.array_equal(place, back[0])


@pytest.mark.parametrize("shape", [(3, 4), (64, 40), (400, 300), (6, 8, 9)])
@pytest.mark.parametrize("what", [layer, rms, group, instance])
def test_results_over_gamma_and_statistics(what, shape):
    """The vectors that a call reads may share memory with its result, too."""
    if len(shape) < 3 and what in (group, instance):
        shape = (*shape, 5)
    rng = np.random.default_rng(3)
    x, dy = rng.normal(size=(2, *shape))
    rows = {layer: shape[:-1], rms: shape[:-1], group: (shape[0], 2), instance: shape[:2]}[what]
    width = shape[-1] if what in (layer, rms) else shape[1]
    gamma, beta = rng.normal(size=(2, width))
    want = what(fn, x, gamma, beta, dy)
    memory = np.empty(shape)

    def held(values):
        place = memory.reshape(-1)[-values.size :].reshape(values.shape)
        place[...] = values
        return place

    assert close(what(fn, x, held(gamma), beta, out=memory)[0], want[0], np.float64)
    count = 2 if what is rms else 3  # of y and the statistics
    backward = getattr(fn, f"{what.__name__}_norm_backward")
    groups = {"groups": 2} if what is group else {}
    for i in range(1, count):
        statistics = list(want[1:count])
        assert statistics[i - 1].shape == rows
        statistics[i - 1] = held(statistics[i - 1])
        for got, exact in zip(
            backward(dy, x, *statistics, gamma=gamma, **groups, out=memory), want[count:], strict=True
        ):
            assert close(got, exact, np.float64)


@pytest.mark.parametrize("shape", [(3, 4), (64, 40), (400, 300)])
def test_gamma_may_be_a_row_of_the_result(shape):
    x = np.random.default_rng(3).normal(size=shape)
    gamma = np.linspace(1, 2, shape[1])
    want = fn.layer_norm(x, gamma)[0]
    for row in (0, 1, -1):
        out = np.empty(shape)
        out[row] = gamma
        assert close(fn.layer_norm(x, out[row], out=out)[0], want, np.float64), row


def misaligned(v):
    return np.frombuffer(b"-" + v.tobytes(), v.dtype, offset=1).reshape(v.shape)


def test_vectors_that_are_not_aligned():
    x, dy = np.random.default_rng(2).normal(size=(2, 3, 4, 4))
    vectors = np.array([[1.5, -2.0, 0.25, 3.0], [0.5, 1.0, -1.0, 2.0]])
    for name, rest in (("batch_norm", ()), ("layer_norm", ()), ("group_norm", (2,)), ("instance_norm", ())):
        forward, backward = getattr(fn, name), getattr(fn, name + "_backward")
        y, *statistics = forward(x, *rest, *vectors)
        assert same_bits(forward(x, *rest, *map(misaligned, vectors)), (y, *statistics))
        dx = backward(dy, x, *map(misaligned, statistics), *rest, misaligned(vectors[0]))
        assert same_bits(dx, backward(dy, x, *statistics, *rest, vectors[0]))
    y, invrms = fn.rms_norm(x, vectors[0])
    assert same_bits(fn.rms_norm(x, misaligned(vectors[0])), (y, invrms))
    dx = fn.rms_norm_backward(dy, x, misaligned(invrms), misaligned(vectors[0]))
    assert same_bits(dx, fn.rms_norm_backward(dy, x, invrms, vectors[0]))
    given = [vectors[0], np.abs(vectors[0]), *vectors]
    assert same_bits([fn.batch_norm_inference(x, *map(misaligned, given))], [fn.batch_norm_inference(x, *given)])


@pytest.mark.parametrize("functions", [fn, reference], ids=["fastnn", "reference"])
def test_no_channels_give_empty_results(functions):
    x = np.zeros((2, 0, 3))
    y, mean, invstd = functions.instance_norm(x)
    assert (y.shape, mean.shape, invstd.shape) == ((2, 0, 3), (2, 0), (2, 0))
    assert [a.shape for a in functions.instance_norm_backward(x, x, mean, invstd)] == [(2, 0, 3), (0,), (0,)]


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30])
@pytest.mark.parametrize("ratio", [0, 1, 100, 1e4])
@pytest.mark.parametrize("count", [2, 30, 1000])
def test_normalized_rows_are_exact_to_4e_7(count, ratio, scale, isa):
    rng = np.random.default_rng(count)
    x = ((rng.standard_normal((40, count)) + ratio) * scale).astype(np.float32)
    check_rows(x, isa)


@pytest.mark.parametrize("isa", runtime.available_isas())
def test_rows_far_from_zero(isa):
    rng = np.random.default_rng(0)
    check_rows(np.array([[40000, 40001, 40002, 40003]], np.float32), isa)
    check_rows((2000 + rng.standard_normal((8, 768))).astype(np.float32), isa)


def check_rows(x, isa):
    wide = x.astype(np.longdouble)
    gamma, beta = np.ones(x.shape[1], np.float32), np.zeros(x.shape[1], np.float32)
    with runtime.use_isa(isa):
        for eps in (0.0, 1e-5):
            exact = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + np.longdouble(eps))
            assert np.max(np.abs(fn.layer_norm(x, eps=eps)[0] - exact)) <= 4e-7
            assert np.max(np.abs(fn.layer_norm(x, gamma, beta, eps=eps)[0] - exact)) <= 4e-7
            assert np.max(np.abs(fn.instance_norm(x[:, None], eps=eps)[0][:, 0] - exact)) <= 4e-7
            exact = wide / np.sqrt((wide**2).mean(1, keepdims=True) + np.longdouble(eps))
            assert np.max(np.abs(fn.rms_norm(x, gamma, eps=eps)[0] - exact)) <= 4e-7


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1234, 1e30])
def test_a_constant_row_gives_exactly_beta(constant, dtype):
    x = np.full((3, 8, 5), constant, dtype)
    for eps in (0.0, 1e-5, 1e-300):
        beta = np.linspace(-1, 1, 5).astype(dtype)
        assert np.array_equal(fn.layer_norm(x, None, beta, eps=eps)[0], np.broadcast_to(beta, x.shape))
        beta = np.linspace(-1, 1, 8).astype(dtype)
        expected = np.broadcast_to(beta[:, None], x.shape)
        assert np.array_equal(fn.group_norm(x, 2, None, beta, eps=eps)[0], expected)
        assert np.array_equal(fn.instance_norm(x, None, beta, eps=eps)[0], expected)
        assert not fn.rms_norm(np.zeros((2, 3), dtype), eps=eps)[0].any()


def numeric_gradient(f, x, dy, step=1e-6):
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = np.sum(dy * (f(up) - f(down))) / (2 * step)
    return gradient


@pytest.mark.parametrize("activation", [None, "relu", "silu", "sigmoid"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_batch_norm_gradients_are_the_finite_differences(axis, activation):
    x, dy, gamma, beta = arrays((4, 3, 5), ((4, 3, 5)[axis],), np.float64)
    mean, invstd = fn.batch_norm(x, axis=axis)[1:]
    got = fn.batch_norm_backward(dy, x, mean, invstd, gamma, axis=axis, activation=activation, beta=beta)

    def y(x=x, gamma=gamma, beta=beta):
        return fn.batch_norm(x, gamma, beta, axis=axis, activation=activation)[0]

    np.testing.assert_allclose(got[0], numeric_gradient(lambda v: y(x=v), x, dy), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(got[1], numeric_gradient(lambda v: y(gamma=v), gamma, dy), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(got[2], numeric_gradient(lambda v: y(beta=v), beta, dy), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("what", "shape", "gamma_shape", "rest"),
    [case for case in CASES if 1 < np.prod(case[1]) < 500 and max(case[1]) > 1],
)
def test_gradients_are_the_finite_differences(what, shape, gamma_shape, rest):
    x, dy, gamma, beta = arrays(shape, gamma_shape, np.float64)
    got = what(fn, x, gamma, beta, dy, **rest)
    dx, dgamma = got[2 if what is rms else 3 :][:2]
    numeric = numeric_gradient(lambda v: what(fn, v, gamma, beta, **rest)[0], x, dy)
    np.testing.assert_allclose(dx, numeric, rtol=1e-5, atol=1e-6)
    numeric = numeric_gradient(lambda v: what(fn, x, v, beta, **rest)[0], gamma, dy)
    np.testing.assert_allclose(dgamma, numeric, rtol=1e-6, atol=1e-7)


X = np.ones((4, 6), np.float32)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "empty", lambda f: f.layer_norm(np.ones((3, 0)))),
        (ValueError, "empty", lambda f: f.rms_norm(np.ones((3, 0)))),
        (ValueError, "empty", lambda f: f.group_norm(np.ones((3, 4, 0)), 2)),
        (ValueError, "empty", lambda f: f.instance_norm(np.ones((3, 4, 0)))),
        (ValueError, "a group has no values", lambda f: f.group_norm(np.ones((3, 0, 4)), 2, axis=-1)),
        (ValueError, "decay is 1.5", lambda f: f.BatchNorm(5, decay=1.5)),
        (ValueError, "dimensions", lambda f: f.layer_norm(1.0)),
        (ValueError, "dimensions", lambda f: f.group_norm(np.ones(3), 1)),
        (ValueError, "gamma has shape", lambda f: f.layer_norm(X, np.ones(4, np.float32))),
        (ValueError, "gamma has shape", lambda f: f.layer_norm(X, np.ones(6, np.float32), axis=0)),
        (ValueError, "beta has shape", lambda f: f.layer_norm(X, None, np.ones(5))),
        (ValueError, "gamma has shape", lambda f: f.rms_norm(X, np.ones(5))),
        (ValueError, "gamma has shape", lambda f: f.group_norm(X, 2, np.ones(4))),
        (ValueError, "mean has shape", lambda f: f.layer_norm_backward(X, X, np.ones(3), np.ones(4))),
        (ValueError, "invstd has shape", lambda f: f.group_norm_backward(X, X, np.ones((4, 2)), np.ones((4, 3)), 2)),
        (ValueError, "invrms has shape", lambda f: f.rms_norm_backward(X, X, np.ones(6))),
        (ValueError, "dy has shape", lambda f: f.layer_norm_backward(X[1:], X, np.ones(4), np.ones(4))),
        (ValueError, "dy has shape", lambda f: f.instance_norm_backward(X[1:], X, np.ones((4, 6)), np.ones((4, 6)))),
        (ValueError, "groups is 4", lambda f: f.group_norm(X, 4)),
        (ValueError, "groups is 0", lambda f: f.group_norm(X, 0)),
        (TypeError, "groups", lambda f: f.group_norm(X, 2.0)),
        (TypeError, "groups", lambda f: f.group_norm(X, None)),
        (ValueError, "samples", lambda f: f.group_norm(X, 2, axis=0)),
        (AxisError, "axis 2", lambda f: f.layer_norm(X, axis=2)),
        (AxisError, "axis 2", lambda f: f.instance_norm(X, axis=2)),
        (ValueError, "eps", lambda f: f.layer_norm(X, eps=-1.0)),
        (ValueError, "eps", lambda f: f.rms_norm(X, eps=float("nan"))),
        (ValueError, "eps", lambda f: f.group_norm(X, 2, eps=float("inf"))),
        (TypeError, "out", lambda f: f.layer_norm(X, out="y")),
        (TypeError, "out", lambda f: f.instance_norm(X, out=np.ones((4, 6)))),
        (ValueError, "out", lambda f: f.rms_norm(X, out=np.ones((6, 4), np.float32))),
        (TypeError, "complex", lambda f: f.layer_norm(X * 1j)),
    ],
)
@pytest.mark.parametrize("functions", [fn, reference], ids=["fastnn", "reference"])
def test_mistakes(functions, error, match, call):
    with pytest.raises(error, match=match):
        call(functions)


def test_no_rows_give_empty_results():
    y, mean, invstd = fn.layer_norm(np.ones((0, 3), np.float32))
    assert y.shape == (0, 3) and mean.shape == invstd.shape == (0,)
    dx, dgamma, dbeta = fn.layer_norm_backward(y, y, mean, invstd)
    assert dx.shape == (0, 3) and not dgamma.any() and not dbeta.any() and dgamma.dtype == np.float32
    assert fn.group_norm(np.ones((0, 4, 2)), 2)[0].shape == (0, 4, 2)


@pytest.mark.parametrize("functions", [fn, reference], ids=["fastnn", "reference"])
def test_batch_norm_layer(functions):
    rng = np.random.default_rng(0)
    layer = functions.BatchNorm(5, decay=0.8, unbiased_running_var=True)
    batches = rng.standard_normal((3, 16, 5)).astype(np.float32) * 3 + 1
    mean, var = np.zeros(5), np.ones(5)
    for x in batches:
        y = layer.forward(x)
        mean = 0.8 * mean + 0.2 * x.mean(0, dtype=np.float64)
        var = 0.8 * var + 0.2 * x.var(0, dtype=np.float64, ddof=1)
        assert np.array_equal(y, functions.batch_norm(x, layer.gamma, layer.beta)[0])
        dx = layer.backward(y)
        expected = functions.batch_norm_backward(y, x, *functions.batch_norm(x)[1:], layer.gamma)
        assert same_bits((dx, layer.dgamma, layer.dbeta), expected)
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, var, rtol=1e-12)
    other = functions.BatchNorm(5)
    other.load_state_dict(layer.state_dict())
    assert np.array_equal(other.forward(x, training=False), layer.forward(x, training=False))
    gamma, beta = other.gamma.copy(), other.beta.copy()
    other.load_state_dict(other.state_dict() | {"gamma": other.beta, "beta": other.gamma})
    assert np.array_equal(other.gamma, beta) and np.array_equal(other.beta, gamma)
    other.load_state_dict(layer.state_dict())
    with pytest.raises(ValueError, match="keys"):
        other.load_state_dict({"gamma": np.ones(5)})
    state = other.state_dict()
    for wrong, error, says in (
        (3, TypeError, "must be a dict"),
        (state | {"gamma": np.ones(4)}, ValueError, "gamma has shape"),
        (
            state | {"beta": np.ones(5), "gamma": np.full(5, 1e300)},
            ValueError,
            "gamma holds numbers that overflow float32",
        ),
        (state | {"beta": np.ones(5), "running_var": np.full(5, -1e-3)}, ValueError, "running_var holds -0.001"),
    ):
        with pytest.raises(error, match=says):
            other.load_state_dict(wrong)
    assert all(np.array_equal(value, state[name]) for name, value in other.state_dict().items())
    with pytest.raises(TypeError, match="True or False"):
        functions.BatchNorm(5, unbiased_running_var="no")
    with pytest.raises(RuntimeError, match="forward"):
        other.backward(x)
    with pytest.raises(ValueError, match="unbiased"):
        layer.forward(x[:1])
    assert np.array_equal(other.forward(x[:1]), other.beta[None])
    assert "BatchNorm(5" in repr(layer)


@pytest.mark.parametrize("functions", [fn, reference], ids=["fastnn", "reference"])
def test_inference_between_forward_and_backward_changes_nothing(functions):
    x, other, dy = np.random.default_rng(0).normal(size=(3, 6, 5))
    results = []
    for inferred in (False, True):
        layer = functions.BatchNorm(5, dtype=np.float64)
        layer.forward(x)
        state = layer.state_dict()
        if inferred:
            layer.forward(other, training=False)
        assert all(np.array_equal(value, state[name]) for name, value in layer.state_dict().items())
        results.append((layer.backward(dy), layer.dgamma, layer.dbeta))
    assert same_bits(*results)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis"), [((1, 3), 1), ((64, 100), 1), ((5, 6, 7, 7), 1), ((4, 9, 9, 5), -1), ((4001, 640), 1)]
)
def test_batch_norm_layer_has_the_bits_of_the_functions(shape, axis, dtype, eps, isa):
    """It takes another way to them, on which x is read once less."""
    x, dy, gamma, beta = arrays(shape, (shape[axis],), dtype)
    channels = np.moveaxis(x, axis, -1)
    channels[..., 0] += 1000  # far from 0 for its spread
    channels[..., -1] = 0.1
    layer = fn.BatchNorm(shape[axis], axis=axis, eps=eps, dtype=dtype)
    layer.gamma[...], layer.beta[...] = gamma, beta
    for a in (x, x.T.copy().T):
        y, mean, invstd = fn.batch_norm(a, gamma, beta, axis=axis, eps=eps)
        dx, dgamma, dbeta = fn.batch_norm_backward(dy, a, mean, invstd, gamma, axis=axis)
        assert same_bits((layer.forward(a), layer.backward(dy), layer.dgamma, layer.dbeta), (y, dx, dgamma, dbeta))


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("functions", [fn, reference], ids=["fastnn", "reference"])
def test_batch_norm_layer_raises_no_floating_point_warning(functions, decay):
    layer = functions.BatchNorm(4, decay=decay, unbiased_running_var=True, dtype=np.float64)
    x = np.array([[np.inf, np.nan, 1e154, 1e-200], [0.0, 1.0, -1e154, 0.0]])
    with np.errstate(all="raise"):
        for sign in (1, -1, 1):
            layer.backward(layer.forward(sign * x))
    assert layer.running_mean[2:].tolist() == pytest.approx([0, 0], abs=1e-190)


# Every array that fastnn makes is asked of NumPy, and NumPy tells tracemalloc of it.
@pytest.mark.parametrize(
    ("shape", "axis", "activation"),
    [((8, 16, 128, 128), 1, "relu"), ((8, 128, 128, 16), -1, None), ((40000, 64), 1, None), ((40000, 64), 1, "silu")],
)
def test_no_temporary_of_the_size_of_the_array(shape, axis, activation):
    x, dy, gamma, beta = arrays(shape, (shape[axis],), np.float32)
    channels = shape[axis]

    def step():
        y, mean, invstd = fn.batch_norm(x, gamma, beta, axis=axis, activation=activation)
        dx = fn.batch_norm_backward(dy, x, mean, invstd, gamma, axis=axis, activation=activation, beta=beta)[0]
        return y, dx

    step()
    tracemalloc.start()
    try:
        results = step()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= sum(a.nbytes for a in results) + 16384 + 1024 * channels


PEAK = """
import resource, sys
import numpy as np
from fastnn import normalization as fn
x, dy, y, dx = (np.full({shape}, value, np.float32) for value in (1, 2, 0, 0))
x[::2] = 3
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, mean, invstd = fn.batch_norm(x, axis={axis}, out=y)
fn.batch_norm_backward(dy, x, mean, invstd, axis={axis}, out=dx)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(("shape", "axis"), [((16, 32, 128, 128), 1), ((16, 128, 128, 32), -1)])
def test_peak_memory_is_the_arrays(shape, axis):
    grown = subprocess.run(
        [sys.executable, "-c", PEAK.format(shape=shape, axis=axis)], capture_output=True, text=True, check=True
    )
    assert int(grown.stdout) * 1024 <= 4 * np.prod(shape) // 8  # kilobytes against an eighth of an array


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("ratio", [0, 100, 1e4])
@pytest.mark.parametrize("count", [2, 40, 1000])
def test_row_gradients_are_exact_to_1e_5(count, ratio, scale, isa):
    rng = np.random.default_rng(count)
    x = ((rng.standard_normal((6, count)) + ratio) * scale).astype(np.float32)
    wide = x.astype(np.longdouble)
    centered = wide - wide.mean(1, keepdims=True)
    invstd = 1 / np.sqrt((centered**2).mean(1, keepdims=True) + np.longdouble(1e-5))
    x_hat = centered * invstd
    with runtime.use_isa(isa):
        y, mean, r = fn.layer_norm(x)
        for dy in (rng.standard_normal(x.shape).astype(np.float32), y):
            g = dy.astype(np.longdouble)
            exact = invstd * (g - g.mean(1, keepdims=True) - x_hat * (g * x_hat).mean(1, keepdims=True))
            dx, dgamma, dbeta = fn.layer_norm_backward(dy, x, mean, r)
            dx2 = fn.instance_norm_backward(dy[:, None], x[:, None], mean[:, None], r[:, None])[0][:, 0]
            for row in range(6):
                assert near(dx[row], exact[row], invstd[row, 0] * np.max(np.abs(g)))
                assert near(dx2[row], exact[row], invstd[row, 0] * np.max(np.abs(g)))
            assert near(dgamma, (g * x_hat).sum(0))
            assert near(dbeta, g.sum(0), np.abs(g).sum(0).max())


def batch(f, x, gamma, beta, dy):
    y, mean, invstd = f.batch_norm(x, gamma, beta)
    return (y, mean, invstd, *f.batch_norm_backward(dy, x, mean, invstd, gamma))


LINEAR_CASES = [
    (layer, (64, 20), (20,), {}),
    (layer, (70, 150), (150,), {}),
    (layer, (37, 3000), (3000,), {}),
    (rms, (64, 20), (20,), {}),
    (rms, (37, 3000), (3000,), {}),
    (group, (16, 8, 4, 4), (8,), {"groups": 2}),
    (group, (16, 20, 3, 3), (20,), {"groups": 5}),
    (group, (16, 8, 9, 9), (8,), {"groups": 2}),
    (instance, (16, 8, 4, 4), (8,), {}),
    (instance, (16, 8, 5, 5), (8,), {}),
    (instance, (3, 4, 3000), (4,), {}),
    (batch, (16, 8, 4, 4), (8,), {}),
    (batch, (16, 8, 9, 9), (8,), {}),
]


@pytest.mark.parametrize("isa", runtime.available_isas())
@pytest.mark.parametrize("ratio", [0, 100, 1000, 1e4])
@pytest.mark.parametrize(("what", "shape", "gamma_shape", "rest"), LINEAR_CASES)
def test_gradients_of_a_dy_that_is_linear_in_x_are_exact_to_1e_5(what, shape, gamma_shape, rest, ratio, isa):
    """There the sums of both the gradients and dx cancel; half the samples, or channels, have such a dy."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(shape) + ratio).astype(np.float32)
    gamma = rng.uniform(0.5, 2, gamma_shape).astype(np.float32)
    z = x - np.float32(ratio)
    samples = np.arange(shape[0]).reshape(-1, *[1] * (x.ndim - 1))
    channels = np.arange(shape[1]).reshape(-1, *[1] * (x.ndim - 2)) * rest.get("groups", shape[1]) // shape[1]
    for linear in (3 * x + 7, z + 1000, z / 100 + 1):
        mixed = [np.where(which % 2, linear, rng.standard_normal(shape)) for which in (samples, channels)]
        for dy in (linear, *(dy.astype(np.float32) for dy in mixed[: 1 if what in (layer, rms) else 2])):
            with runtime.use_isa(isa):
                results = what(fn, x, gamma, None, dy, **rest)
            exact = what(reference, x.astype(float), gamma.astype(float), None, dy.astype(float), **rest)
            for i in range(2 if what is rms else 3, len(exact)):
                assert near(results[i], exact[i])
