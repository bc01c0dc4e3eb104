"""Preprocessing against NumPy in float64 and scikit-learn, streams and merges against one shot, and what it refuses."""

import math
import pickle
from copy import copy as shallow_copy
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.exceptions import AxisError

import fastnn.preprocessing
import fastnn.reference.preprocessing
from fastnn import runtime

MODULES = {"kernels": fastnn.preprocessing, "reference": fastnn.reference.preprocessing}


@pytest.fixture(params=MODULES, name="prep")
def preprocessing_module(request):
    return MODULES[request.param]


def rng(seed=0):
    return np.random.default_rng(seed)


def correlated(samples=300, features=12, seed=0):
    mixing = rng(seed).normal(size=(features, features)) * np.logspace(0, -2, features)
    return rng(seed + 1).normal(size=(samples, features)) @ mixing + rng(seed + 2).normal(size=features) * 5


def exact_moments(x):
    """Mean and M2 in exact rational arithmetic, rounded at the end."""
    mean, squares = [], []
    for column in x.T.tolist():
        values = [Fraction(value) for value in column]
        middle = sum(values) / len(values)
        mean.append(float(middle))
        squares.append(float(sum((value - middle) ** 2 for value in values)))
    return np.array(mean), np.array(squares)


def relative(a, b):
    return float(np.max(np.abs(a - b) / np.where(b == 0, 1, np.abs(b)), initial=0))


# Moments


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 3), (63, 1), (500, 1), (333, 3), (2000, 10), (130, 30), (70, 64), (65, 70)]
)
def test_moments_are_exact_to_the_last_digits(prep, shape, dtype, offset):
    x = (rng().normal(size=shape) + offset).astype(dtype)
    moments = prep.Moments().update(x)
    mean, squares = exact_moments(x)
    assert moments.n == len(x)
    assert relative(moments.mean, mean) < 1e-15
    assert relative(moments.M2, squares) < 2e-15
    np.testing.assert_array_equal(moments.var, moments.M2 / len(x))
    np.testing.assert_array_equal(moments.std, np.sqrt(moments.var))


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("shape", [(5000, 3), (200, 1300), (530, 513), (300000, 1)])
def test_moments_of_several_chunks_and_panels(prep, shape, offset):
    x = rng().normal(size=shape) + offset
    moments = prep.Moments().update(x)
    assert relative(moments.mean, np.array([math.fsum(column) / len(x) for column in x.T])) < 1e-15
    columns = np.ascontiguousarray((x - x[0]).T)
    np.testing.assert_allclose(moments.M2, columns.var(axis=1) * len(x), rtol=1e-13)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sampled_from([1, 3, 17]), st.sampled_from([0.0, 1e6]), st.randoms(use_true_random=False))
def test_any_split_merged_in_any_order_gives_the_same(samples, features, offset, random):
    x = rng(random.randrange(1000)).normal(size=(samples, features)) + offset
    whole = fastnn.preprocessing.Moments().update(x)
    cuts = sorted(random.randint(0, samples) for _ in range(random.randint(0, 12)))
    parts = [fastnn.preprocessing.Moments().update(part) for part in np.split(x, cuts)]
    while len(parts) > 1:
        random.shuffle(parts)
        parts.append(parts.pop().merge(parts.pop()))
    assert parts[0].n == samples
    assert np.all(np.abs(parts[0].mean - whole.mean) <= 1e-15 * np.abs(x).max(axis=0))  # a mean near 0 has cancelled
    assert relative(parts[0].M2, whole.M2) < 1e-14


def test_a_thousand_single_samples_lose_nothing(prep):
    x = rng().normal(size=(1000, 4)) + 1e6
    moments = prep.Moments()
    for sample in x:
        moments.update(sample[np.newaxis])
    mean, squares = exact_moments(x)
    assert relative(moments.mean, mean) < 1e-15
    assert relative(moments.M2, squares) < 1e-14


def test_sorted_data_with_outliers_in_front_lose_nothing(prep):
    x = np.sort(rng().normal(size=(3000, 2)), axis=0)
    x[0] = -1e5
    mean, squares = exact_moments(x)
    moments = prep.Moments().update(x)
    assert relative(moments.mean, mean) < 1e-14
    assert relative(moments.M2, squares) < 1e-14


@pytest.mark.parametrize("value", [0.1, 1234.5678, 1e30, -1e-30])
def test_a_constant_column_has_exactly_no_deviation(prep, value):
    moments = prep.Moments()
    for samples in (1, 700, 64, 3):
        moments.update(np.full((samples, 2), value))
    np.testing.assert_array_equal(moments.mean, value)
    np.testing.assert_array_equal(moments.M2, 0)


def test_empty_moments_and_empty_blocks_change_nothing(prep):
    x = rng().normal(size=(20, 3))
    moments = prep.Moments().update(np.empty((0, 3))).update(x).update(np.empty((0, 3))).merge(prep.Moments())
    np.testing.assert_array_equal(moments.M2, prep.Moments().update(x).M2)
    empty = prep.Moments().merge(prep.Moments())
    assert empty.n == 0 and empty.mean.shape == (0,)
    assert prep.Moments().merge(moments).n == 20
    with pytest.raises(prep.NotFittedError, match="no samples"):
        _ = empty.var


def test_merging_with_itself_doubles_the_samples(prep):
    x = rng().normal(size=(20, 3))
    moments = prep.Moments().update(x)
    moments.merge(moments)
    assert moments.n == 40
    np.testing.assert_allclose(moments.M2, prep.Moments().update(np.concatenate([x, x])).M2, rtol=1e-14)


def test_pack_unpack_and_pickle(prep):
    moments = prep.Moments().update(rng().normal(size=(20, 3)))
    packed = moments.pack()
    assert packed.dtype == np.float64 and packed.shape == (7,)
    np.testing.assert_array_equal(packed, [20, *moments.mean, *moments.M2])
    for copy in (prep.Moments.unpack(packed), pickle.loads(pickle.dumps(moments))):
        np.testing.assert_array_equal(copy.pack(), packed)
    assert prep.Moments.unpack(prep.Moments().pack()).n == 0
    np.testing.assert_array_equal(prep.Moments(3, [1.0], [2.0]).pack(), [3, 1, 2])


def test_moments_do_not_hand_out_their_own_arrays(prep):
    moments = prep.Moments().update([[1.0], [3.0]])
    moments.mean[:] = 0
    moments.M2[:] = 0
    np.testing.assert_array_equal(moments.pack(), [2, 2, 2])


@pytest.mark.parametrize(
    "call, error, says",
    [
        (lambda prep: prep.Moments().update([1.0, 2.0]), ValueError, "must be a matrix"),
        (lambda prep: prep.Moments(2, [0.0], [1.0]).update(np.ones((3, 2))), ValueError, "block has 2 features, but 1"),
        (
            lambda prep: prep.Moments(2, [0.0], [1.0]).merge(prep.Moments(1, [0.0] * 2, [0.0] * 2)),
            ValueError,
            "2 features",
        ),
        (lambda prep: prep.Moments().merge(np.ones(3)), TypeError, "must be Moments, not ndarray"),
        (lambda prep: prep.Moments().update([[1j]]), TypeError, "complex128"),
        (lambda prep: prep.Moments().update(np.ma.masked_array([[1.0]])), TypeError, "masked"),
        (lambda prep: prep.Moments(-1), ValueError, "n is -1"),
        (lambda prep: prep.Moments(1, [0.0], [1.0, 2.0]), ValueError, "the same shape"),
        (lambda prep: prep.Moments(1, [0.0], [-1.0]), ValueError, "M2 not negative"),
        (lambda prep: prep.Moments(1, [math.nan], [1.0]), ValueError, "must be finite"),
        (lambda prep: prep.Moments(1, ["a"], [1.0]), TypeError, "mean has dtype"),
        (lambda prep: prep.Moments(1, [0.0], np.ma.masked_array([1.0])), TypeError, "M2 is a masked array"),
        (lambda prep: prep.Moments.unpack(np.array([1, 2, 3j])), TypeError, "packed has dtype complex128"),
        (lambda prep: prep.Moments.unpack([1.0, 2.0]), ValueError, "length 2 D . 1"),
        (lambda prep: prep.Moments.unpack([1.5, 2.0, 3.0]), ValueError, "number of samples"),
    ],
)
def test_moments_say_what_is_wrong(prep, call, error, says):
    with pytest.raises(error, match=says):
        call(prep)


@pytest.mark.parametrize("bad, says", [(math.nan, "column 2 holds NaN"), (math.inf, "column 2 holds infinity")])
@pytest.mark.parametrize("learn", ["Moments", "Standardizer", "PCA", "Whitener", "standardize", "zero_center"])
@pytest.mark.parametrize("layout", [lambda x: x, np.asfortranarray, lambda x: x.astype(np.float16)])
def test_data_that_is_not_finite_is_refused_by_column(prep, learn, bad, says, layout):
    x = rng().normal(size=(700, 4))
    x[613, 2] = bad
    subject = getattr(prep, learn)
    with pytest.raises(ValueError, match=says):
        if learn == "Moments":
            subject().update(layout(x))
        elif learn in ("standardize", "zero_center"):
            subject(layout(x))
        else:
            subject().fit(layout(x))


def test_squares_that_overflow_are_refused(prep):
    with pytest.raises(ValueError, match="column 1: the sum of squared deviations overflows"):
        prep.Moments().update([[0.0, 1e200], [0.0, -1e200]])
    moments = prep.Moments().update([[1e200]])
    with pytest.raises(ValueError, match="column 0: the sum of squared deviations overflows"):
        moments.update([[-1e200]])
    np.testing.assert_array_equal(moments.pack(), [1, 1e200, 0])


def test_a_refused_block_leaves_everything_as_it_was(prep):
    x = rng().normal(size=(50, 3))
    bad = x.copy()
    bad[7, 1] = math.nan
    for estimator in (prep.Standardizer(), prep.PCA(), prep.Whitener()):
        before = estimator.fit(x).transform(x)
        for attempt in (lambda e=estimator: e.partial_fit(bad), lambda e=estimator: e.fit(bad)):
            with pytest.raises(ValueError, match="column 1"):
                attempt()
            assert estimator.n_samples_seen_ == 50
            np.testing.assert_array_equal(estimator.transform(x), before)


@pytest.mark.parametrize("isa", [name for name in runtime.available_isas() if name != "baseline"])
@pytest.mark.parametrize("shape", [(3000, 3), (1000, 600), (70000, 33)])
def test_same_bits_on_every_level_and_number_of_threads(shape, isa):
    x = rng().normal(size=shape).astype(np.float32)
    with runtime.use_isa("baseline"), runtime.threads(1):
        moments, standardized = fastnn.preprocessing.Moments().update(x), fastnn.preprocessing.standardize(x)
    for threads in (1, 2, 3):
        with runtime.use_isa(isa), runtime.threads(threads):
            np.testing.assert_array_equal(fastnn.preprocessing.Moments().update(x).pack(), moments.pack())
            np.testing.assert_array_equal(fastnn.preprocessing.standardize(x), standardized)


# zero_center and standardize


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 1), (0, 2), (1, 2), (0, 1, 2), None])
@pytest.mark.parametrize("order", ["C", "F", "reversed"])
def test_centring_and_standardizing_over_any_axes(prep, axis, order):
    x = rng().normal(3, 2, size=(40, 30, 7))
    x = {"C": x, "F": np.asfortranarray(x), "reversed": x[::-1, ::2, ::-1]}[order]
    centred = x - x.mean(axis=axis, keepdims=True)
    np.testing.assert_allclose(prep.zero_center(x, axis), centred, rtol=0, atol=2e-15 * 10)
    np.testing.assert_allclose(prep.standardize(x, axis=axis), centred / x.std(axis=axis, keepdims=True), atol=3e-14)


def test_more_than_a_tile_in_any_layout(prep):
    big = rng().normal(5, 2, size=(500, 3, 20, 30))  # images, channels first
    for x, axis in [(big, (0, 2, 3)), (big.transpose(0, 2, 3, 1), (0, 1, 2)), (big[:, ::-1], 0), (big.T, (3, 1, 0))]:
        wanted = (x - x.mean(axis=axis, keepdims=True)) / x.std(axis=axis, keepdims=True)
        np.testing.assert_allclose(prep.standardize(x, axis), wanted, atol=1e-13)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8", "u1", "i8", "?"])
def test_dtypes_follow_the_rules_of_the_package(prep, dtype):
    x = (rng().random((200, 5)) * 1.99 if dtype == "?" else rng().random((200, 5)) * 100).astype(dtype)
    x[::2] = 0
    before = x.copy()
    native = np.dtype(dtype).newbyteorder("=") if np.dtype(dtype).kind == "f" else np.dtype(np.float64)
    for y in (prep.zero_center(x), prep.standardize(x), prep.Standardizer().fit_transform(x)):
        assert y.dtype == native and y.dtype.isnative
    exact = x.astype(np.float64)
    wanted = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    np.testing.assert_allclose(prep.standardize(x), wanted, atol=2 * np.finfo(native).eps * 4)
    np.testing.assert_array_equal(x, before)
    statistics = prep.Standardizer().fit(x)
    assert statistics.mean_.dtype == statistics.var_.dtype == statistics.scale_.dtype == np.float64


def test_half_precision_is_rounded_once(prep):
    x = rng().normal(size=(300, 4)).astype(np.float16)
    np.testing.assert_array_equal(prep.zero_center(x), prep.zero_center(x.astype(np.float64)).astype(np.float16))


@pytest.mark.parametrize("operation", ["zero_center", "standardize"])
def test_out_may_be_the_input_or_overlap_it(prep, operation):
    f = getattr(prep, operation)
    x = rng().normal(size=(301, 7))
    wanted = f(x)
    out = np.empty_like(x)
    assert f(x, out=out) is out
    np.testing.assert_array_equal(out, wanted)
    for view in (x.copy(), np.asfortranarray(x), x.astype("f4")):
        expected = f(view)
        assert f(view, out=view) is view
        np.testing.assert_array_equal(view, expected)
    memory = np.zeros(302 * 7)
    source, target = memory[: 301 * 7].reshape(301, 7), memory[7:].reshape(301, 7)
    source[...] = x
    np.testing.assert_array_equal(f(source, out=target), wanted)
    target = np.empty((7, 301)).T
    np.testing.assert_array_equal(f(x, out=target), wanted)
    square = x[:100].reshape(-1)[:676].reshape(26, 26).copy()
    wanted = f(square.copy())
    np.testing.assert_array_equal(f(square, out=square.T), wanted)


def test_empty_arrays_and_scalars(prep):
    assert prep.zero_center(np.empty((0, 3))).shape == (0, 3)
    assert prep.standardize(np.empty((3, 0), np.float32)).dtype == np.float32
    assert prep.zero_center(5.0, axis=None) == 0
    assert prep.standardize([[1, 2]]).tolist() == [[0, 0]]


def test_a_feature_without_variance_becomes_zero(prep):
    x = rng().normal(size=(100, 3))
    x[:, 1] = 0.1
    assert (prep.standardize(x)[:, 1] == 0).all()
    fitted = prep.Standardizer().fit(x)
    assert fitted.scale_[1] == 1
    assert (fitted.transform(x)[:, 1] == 0).all()
    np.testing.assert_allclose(fitted.transform([[0.0, 2.1, 0.0]])[0, 1], 2.0)


def test_a_mean_of_a_million_deviations_is_no_trouble(prep):
    x = rng().normal(size=(2000, 3))
    shifted = x + 1e6
    exact = shifted - 1e6
    wanted = (exact - exact.mean(axis=0)) / exact.std(axis=0)
    np.testing.assert_allclose(prep.standardize(shifted), wanted, atol=1e-13)
    np.testing.assert_allclose(prep.Standardizer().fit(shifted).transform(shifted), wanted, atol=1e-13)
    scores = prep.PCA().fit_transform(shifted)
    np.testing.assert_allclose(scores, prep.PCA().fit_transform(exact), atol=1e-12)


@pytest.mark.parametrize(
    "call, error, says",
    [
        (lambda f: f([[1.0]], axis=2), AxisError, "2"),
        (lambda f: f([[1.0]], axis=(0, 0)), AxisError, "twice"),
        (lambda f: f([[1.0]], axis=[0]), TypeError, "a tuple of integers"),
        (lambda f: f([[1.0]], axis=0.5), TypeError, "axis must be an integer"),
        (lambda f: f(3.0), AxisError, "0"),
        (lambda f: f(["a"]), TypeError, "dtype"),
        (lambda f: f([[1.0]], out=[[1.0]]), TypeError, "out must be a numpy.ndarray"),
        (lambda f: f([[1.0]], out=np.empty((1, 1), "f4")), TypeError, "out has dtype float32"),
        (lambda f: f([[1.0]], out=np.empty((2, 1))), ValueError, "out has shape"),
        (lambda f: f([[1.0, math.nan]]), ValueError, "column 1 holds NaN"),
        (lambda f: f([[[1.0, math.nan]]]), ValueError, r"entry \(0, 1\) holds NaN"),
        (lambda f: f([math.nan]), ValueError, "x holds NaN"),
    ],
)
@pytest.mark.parametrize("operation", ["zero_center", "standardize"])
def test_functions_say_what_is_wrong(prep, operation, call, error, says):
    with pytest.raises(error, match=says):
        call(getattr(prep, operation))


# Estimators


def test_standardizer_agrees_with_scikit_learn(prep):
    sklearn = pytest.importorskip("sklearn.preprocessing")
    x, new = correlated(), correlated(seed=9)
    for options in ({}, {"with_mean": False}, {"with_std": False}):
        mine, theirs = prep.Standardizer(**options).fit(x), sklearn.StandardScaler(**options).fit(x)
        np.testing.assert_allclose(mine.transform(new), theirs.transform(new), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(mine.inverse_transform(new), theirs.inverse_transform(new), rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(mine.mean_, theirs.mean_, rtol=1e-13)
        assert mine.n_samples_seen_ == theirs.n_samples_seen_ and mine.n_features_in_ == theirs.n_features_in_
        if theirs.scale_ is None:
            assert mine.scale_ is None
        else:
            np.testing.assert_allclose(mine.var_, theirs.var_, rtol=1e-13)
            np.testing.assert_allclose(mine.scale_, theirs.scale_, rtol=1e-13)


@pytest.mark.parametrize("shape", [(300, 12), (12, 12), (8, 20), (5000, 3), (40, 1)])
@pytest.mark.parametrize("n_components", [None, 2, 0.9])
def test_pca_agrees_with_scikit_learn(prep, shape, n_components):
    sklearn = pytest.importorskip("sklearn.decomposition")
    if n_components == 2 and min(shape) < 2:
        pytest.skip("has one component only")
    x = correlated(*shape)
    mine = prep.PCA(n_components).fit(x)
    theirs = sklearn.PCA(n_components, svd_solver="full").fit(x)
    kept = theirs.singular_values_ > 1e-10 * theirs.singular_values_[0]  # of the others the direction is noise
    assert mine.n_components_ == theirs.n_components_
    assert mine.n_features_in_ == theirs.n_features_in_
    np.testing.assert_allclose(mine.mean_, theirs.mean_, rtol=1e-12)
    np.testing.assert_allclose(mine.components_[kept], theirs.components_[kept], atol=1e-9)
    np.testing.assert_allclose(mine.singular_values_[kept], theirs.singular_values_[kept], rtol=1e-12)
    np.testing.assert_allclose(mine.explained_variance_[kept], theirs.explained_variance_[kept], rtol=1e-12)
    np.testing.assert_allclose(mine.explained_variance_ratio_, theirs.explained_variance_ratio_, atol=1e-13)
    new = correlated(*shape, seed=5)
    np.testing.assert_allclose(mine.transform(new)[:, kept], theirs.transform(new)[:, kept], atol=1e-7)
    scores = mine.transform(x)
    np.testing.assert_allclose(mine.inverse_transform(scores), theirs.inverse_transform(scores), atol=1e-8)


@pytest.mark.parametrize("name", ["PCA", "Whitener"])
def test_fewer_samples_than_features_in_a_stream(prep, name):
    x = rng().normal(size=(10, 30))
    stream, once = getattr(prep, name)(), getattr(prep, name)().fit(x)
    for block in np.array_split(x, 5):
        stream.partial_fit(block)
    assert stream.n_components_ == once.n_components_ == 10
    np.testing.assert_allclose(stream.components_[:9], once.components_[:9], atol=1e-12)
    np.testing.assert_allclose(stream.transform(x), once.transform(x), atol=1e-10)
    with pytest.raises(ValueError, match="n_components is 11; 10 samples of 30 features have 10 components at most"):
        stream.set_params(n_components=11).transform(x)
    for wrong in ("mle", 1.0):
        with pytest.raises(TypeError, match="None for all, or a share of the variance"):
            prep.PCA(wrong).fit(x).transform(x)


def test_shallow_copies_do_not_learn_from_each_other(prep):
    first = prep.Standardizer().fit(rng().normal(size=(5, 3)))
    second = shallow_copy(first)
    second.partial_fit(rng(1).normal(size=(7, 3))).merge(first)
    assert (first.n_samples_seen_, second.n_samples_seen_) == (5, 17)


def test_pca_takes_shares_of_any_float(prep):
    kept = {prep.PCA(share).fit(correlated()).n_components_ for share in (0.5, np.float32(0.5), np.float16(0.5))}
    assert len(kept) == 1


def test_pca_keeps_more_than_the_share(prep):
    corners = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # half of the variance along each axis
    assert [prep.PCA(share).fit(corners).n_components_ for share in (0.49, 0.5, 0.51)] == [1, 2, 2]


def test_pca_keeps_the_digits_that_a_covariance_matrix_would_lose(prep):
    directions = np.linalg.qr(rng().normal(size=(4, 4)))[0]
    spreads = np.array([1.0, 1e-4, 1e-8, 1e-11])
    scores = np.linalg.qr(rng(1).normal(size=(500, 4)) - 0)[0]
    scores -= scores.mean(axis=0)
    scores = np.linalg.qr(scores)[0]
    pca = prep.PCA().fit((scores * spreads) @ directions.T)
    np.testing.assert_allclose(pca.singular_values_, spreads, rtol=1e-4)


def test_whitener_agrees_with_scikit_learn(prep):
    sklearn = pytest.importorskip("sklearn.decomposition")
    x, new = correlated(), correlated(seed=5)
    mine, theirs = prep.Whitener().fit(x), sklearn.PCA(whiten=True, svd_solver="full").fit(x)
    np.testing.assert_allclose(mine.transform(new), theirs.transform(new), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(mine.inverse_transform(mine.transform(new)), new, atol=1e-9)
    np.testing.assert_allclose(mine.scale_, np.sqrt(theirs.explained_variance_), rtol=1e-12)


@pytest.mark.parametrize("method", ["pca", "zca"])
def test_whitened_data_has_the_identity_as_covariance(prep, method):
    x = correlated(2000, 6)
    white = prep.Whitener(method=method).fit_transform(x)
    np.testing.assert_allclose(np.cov(white.T), np.eye(6), atol=1e-10)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-12)


def test_zca_stays_near_the_data_and_inverts(prep):
    x = rng().normal(size=(5000, 4)) * [1.0, 1.1, 0.9, 1.0]
    whitener = prep.Whitener(method="zca").fit(x)
    white = whitener.transform(x)
    assert min(np.corrcoef(white[:, i], x[:, i])[0, 1] for i in range(4)) > 0.99
    np.testing.assert_allclose(whitener.inverse_transform(white), x, atol=1e-12)
    symmetric = whitener.transform(np.eye(4) + whitener.mean_)
    np.testing.assert_allclose(symmetric, symmetric.T, atol=1e-12)


def test_whitening_leaves_directions_without_spread_alone(prep):
    x = correlated(200, 5)
    x = np.column_stack([x, x[:, 0] + x[:, 1]])
    white = prep.Whitener().fit_transform(x)
    np.testing.assert_allclose(white[:, :5].std(axis=0, ddof=1), 1, atol=1e-9)
    assert np.abs(white[:, 5]).max() < 1e-11
    softened = prep.Whitener(epsilon=1e-5).fit(x)
    np.testing.assert_allclose(softened.scale_, np.sqrt(softened.explained_variance_ + 1e-5), rtol=1e-9)


@pytest.mark.parametrize("name", ["Standardizer", "PCA", "Whitener"])
def test_a_stream_and_a_merge_learn_what_one_shot_learns(prep, name):
    x = correlated(1000, 9)
    x[:, 4] += 1e4
    kind = getattr(prep, name)
    whole = kind().fit(x).transform(x)
    stream, left, right = kind(), kind(), kind()
    for block in np.array_split(x, [1, 2, 5, 300, 301, 900]):
        assert stream.partial_fit(block) is stream
    left.fit(x[:100])
    right.fit(x[100:])
    assert left.merge(right) is left
    fresh = kind().merge(right).merge(kind().fit(x[:100]))
    for other in (stream, left, fresh):
        assert other.n_samples_seen_ == 1000
        np.testing.assert_allclose(other.transform(x), whole, atol=1e-9 if name == "Whitener" else 1e-11)
    assert right.n_samples_seen_ == 900
    again = stream.fit(x[:50])
    np.testing.assert_allclose(again.mean_, x[:50].mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("name", ["Standardizer", "PCA", "Whitener"])
def test_estimator_conventions(prep, name):
    kind = getattr(prep, name)
    estimator = kind()
    for attribute in ("mean_", "var_", "scale_", "components_", "n_samples_seen_", "n_features_in_"):
        assert not hasattr(estimator, attribute)
    for use in (estimator.transform, estimator.inverse_transform):
        with pytest.raises(prep.NotFittedError, match=rf"{name} is not fitted yet; call fit"):
            use([[1.0, 2.0]])
    with pytest.raises(RuntimeError):
        kind().merge(kind())
    assert estimator.fit(correlated(), None) is estimator
    with pytest.raises(ValueError, match="x has 3 features, but 12"):
        estimator.transform(np.ones((2, 3)))
    with pytest.raises(ValueError, match="x has 3 features, but 12"):
        estimator.partial_fit(np.ones((2, 3)))
    with pytest.raises(ValueError, match="other has 3 features, but 12"):
        estimator.merge(kind().fit(rng().normal(size=(9, 3))))
    with pytest.raises(TypeError, match=f"other must be a {name}"):
        estimator.merge(prep.Moments())
    with pytest.raises(ValueError, match="must be a matrix"):
        estimator.transform(np.ones(12))
    with pytest.raises(ValueError, match="has 0 samples"):
        kind().fit(np.ones((0, 3)))
    with pytest.raises(ValueError, match="has no parameter 'nonsense'; it has "):
        estimator.set_params(nonsense=1)
    assert kind(**estimator.get_params()).get_params() == estimator.get_params()
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(estimator)).transform(correlated()), estimator.transform(correlated())
    )
    x = correlated().astype(np.float32)
    assert estimator.fit_transform(x).dtype == np.float32
    assert estimator.inverse_transform(estimator.transform(x)).dtype == np.float32
    np.testing.assert_allclose(estimator.inverse_transform(estimator.transform(x)), x, rtol=1e-4, atol=1e-4)


def test_estimators_work_in_scikit_learn():
    base, pipeline = pytest.importorskip("sklearn.base"), pytest.importorskip("sklearn.pipeline")
    x = correlated()
    steps = pipeline.make_pipeline(
        fastnn.preprocessing.Standardizer(), fastnn.preprocessing.PCA(5), fastnn.preprocessing.Whitener(method="zca")
    )
    scores = steps.fit_transform(x)
    assert scores.shape == (300, 5)
    np.testing.assert_allclose(np.cov(scores.T), np.eye(5), atol=1e-9)
    np.testing.assert_allclose(base.clone(steps).fit(x).transform(x), scores)
    steps.set_params(pca__n_components=3)
    assert steps.fit_transform(x).shape == (300, 3)
    assert "n_components=3" in repr(steps.named_steps["pca"])
    assert steps.named_steps["pca"].set_params(n_components=2).components_.shape == (2, 12)


@pytest.mark.parametrize(
    "call, error, says",
    [
        (lambda prep, x: prep.PCA(13).fit(x), ValueError, "n_components is 13; 300 samples of 12 features have 12"),
        (lambda prep, x: prep.PCA(0).fit(x), ValueError, "n_components is 0"),
        (lambda prep, x: prep.PCA().fit(x[:, :0]), ValueError, "without features"),
        (lambda prep, x: prep.Whitener().partial_fit(x[:, :0]), ValueError, "without features"),
        (lambda prep, x: prep.PCA(1.5).fit(x), TypeError, "n_components must be an integer"),
        (lambda prep, x: prep.PCA("mle").fit(x), TypeError, "n_components must be an integer"),
        (lambda prep, x: prep.PCA().fit(x[:1]), ValueError, "x has 1 samples; a fit takes 2"),
        (lambda prep, x: prep.PCA().partial_fit(x[:1]).transform(x), ValueError, "has seen 1 sample"),
        (lambda prep, x: prep.Whitener(method="ica").fit(x), ValueError, 'method is .ica.; it must be "pca" or "zca"'),
        (lambda prep, x: prep.Whitener(epsilon=-1).fit(x), ValueError, "epsilon is -1"),
        (lambda prep, x: prep.PCA(2).fit(x).inverse_transform(x), ValueError, "x has 12 features, but 2"),
    ],
)
def test_decompositions_say_what_is_wrong(prep, call, error, says):
    with pytest.raises(error, match=says):
        call(prep, correlated())


def test_the_reference_has_the_same_names_and_signatures():
    import inspect

    fast, plain = MODULES.values()
    assert fast.__all__ == plain.__all__
    for name in fast.__all__:
        one, two = getattr(fast, name), getattr(plain, name)
        if not issubclass(one, Exception) if isinstance(one, type) else True:
            assert inspect.signature(one) == inspect.signature(two)
