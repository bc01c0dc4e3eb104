"""What `fastnn.preprocessing` and its NumPy twin share: everything but the passes (_passes.py)."""

from __future__ import annotations

import inspect
from copy import copy
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from fastnn import _checks, _passes
from fastnn._passes import Array, Passes, Vector

if TYPE_CHECKING:
    from typing import Self


class NotFittedError(RuntimeError, ValueError, AttributeError):
    """Raised for using an estimator before it was fitted. An AttributeError too, so that hasattr(x, "mean_") works."""


class Moments:
    """Count, mean and sum of squared deviations from the mean of D features, of all samples seen so far.

    ``Moments()`` has seen none. `update` adds samples, `merge` what another one has seen; how samples are split and in
    which order they come changes the result by 1e-14 of itself at most.

    Attributes:
        n: number of samples.
        mean: float64 (D,).
        M2: float64 (D,), sum of (x - mean)**2.
        var: M2 / n.
        std: square root of var.

    Source: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances, 1979.
    """

    passes: ClassVar[type[Passes]] = Passes

    n: int
    _state: Vector

    def __init__(self, n: int = 0, mean: ArrayLike = (), M2: ArrayLike = ()) -> None:
        self.n = _checks.integer_param(n, "n", 0)
        means, squares = _vector(mean, "mean"), _vector(M2, "M2")
        if means.ndim != 1 or means.shape != squares.shape:
            raise ValueError(f"mean has shape {means.shape} and M2 {squares.shape}; both must have the same shape (D,)")
        if not (np.isfinite(means).all() and np.isfinite(squares).all() and (squares >= 0).all()):
            raise ValueError("mean and M2 must be finite, and M2 not negative")
        zeros = np.zeros_like(means)
        self._state = np.stack([means, zeros, squares, zeros])

    @property
    def mean(self) -> Vector:
        return self._state[0].copy()

    @property
    def M2(self) -> Vector:
        return self._state[2].copy()

    @property
    def var(self) -> Vector:
        if self.n == 0:
            raise NotFittedError("these Moments have seen no samples yet; call update(block) first")
        return self._state[2] / self.n

    @property
    def std(self) -> Vector:
        return np.sqrt(self.var)

    def update(self, block: ArrayLike) -> Self:
        """Add the samples of `block` (N, D), in place; return self. A block that is refused leaves all as it was."""
        samples = _matrix(block, "block", self._expected())
        return self._absorb(len(samples), _passes.moments(samples, (0,), self.passes))

    def merge(self, other: Moments) -> Self:
        """Add what `other` has seen, in place; return self. `other` stays as it is."""
        if not isinstance(other, Moments):
            raise TypeError(f"other must be Moments, not {type(other).__name__}")
        if other._expected() is not None:
            _check_features(other._state.shape[1], self._expected(), "other")
        return self._absorb(other.n, other._state)

    def pack(self) -> Vector:
        """Return n, mean and M2 as one float64 vector of length 2 D + 1, to send or to store."""
        return np.concatenate([[float(self.n)], self._state[0], self._state[2]])

    @classmethod
    def unpack(cls, packed: ArrayLike) -> Self:
        """Return the Moments that `pack` made `packed` of."""
        vector = _vector(packed, "packed")
        if vector.ndim != 1 or len(vector) % 2 == 0:
            raise ValueError(
                f"packed has shape {vector.shape}; it must be a vector of length 2 D + 1, as pack() makes it"
            )
        if not vector[0].is_integer():
            raise ValueError(f"packed begins with {vector[0]}; it must begin with the number of samples")
        features = len(vector) // 2
        return cls(int(vector[0]), vector[1 : features + 1], vector[features + 1 :])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n={self.n}, mean={self.mean!r}, M2={self.M2!r})"

    def _expected(self) -> int | None:
        """Number of features, None while it is open."""
        return self._state.shape[1] if self.n or self._state.shape[1] else None

    def _absorb(self, n: int, state: Vector) -> Self:
        if self.n and n:
            total = self.passes.combine(self.n, self._state, n, state)
            if not np.isfinite(total).all():
                column = int(np.argmin(np.isfinite(total).all(axis=0)))
                raise ValueError(
                    f"column {column}: the sum of squared deviations overflows float64; scale the data down"
                )
            self._state = total
        elif n or not self._state.shape[1]:
            self._state = state.copy()
        self.n += n
        return self


class _Estimator:
    """What the estimators share: parameters by name, samples seen, and the passes they run on."""

    moments_type: ClassVar[type[Moments]] = Moments

    moments_: Moments

    def fit(self, x: ArrayLike, y: object = None) -> Self:
        """Learn from `x` (N, D) alone, forgetting earlier fits; `y` is ignored. Returns self."""
        raise NotImplementedError

    def transform(self, x: ArrayLike) -> Array:
        raise NotImplementedError

    def fit_transform(self, x: ArrayLike, y: object = None) -> Array:
        """Same as ``fit(x).transform(x)``."""
        return self.fit(x, y).transform(x)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Self:
        """Set the constructor's arguments by name; return self. They count at once, for what is fitted already too."""
        known = self.get_params()
        for name in params:
            if name not in known:
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}; it has {', '.join(known)}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    @property
    def n_samples_seen_(self) -> int:
        """Number of samples fitted on."""
        return self._seen().n

    @property
    def n_features_in_(self) -> int:
        """Number of features D."""
        return self._seen()._state.shape[1]

    @property
    def mean_(self) -> Vector:
        """Mean of every feature, float64 (D,)."""
        return self._seen().mean

    @property
    def var_(self) -> Vector:
        """Variance of every feature, float64 (D,): the mean squared deviation, as NumPy's var."""
        return self._seen().var

    def __repr__(self) -> str:
        params = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({params})"

    def __sklearn_tags__(self) -> Any:
        # Asked for by scikit-learn alone, so it is there to import.
        from sklearn.utils import Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="transformer", target_tags=TargetTags(required=False), transformer_tags=TransformerTags()
        )

    def _seen(self) -> Moments:
        moments = self.__dict__.get("moments_")
        if moments is None:
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit(x) or partial_fit(x) first")
        return moments

    def _features_seen(self) -> int | None:
        return self.n_features_in_ if "moments_" in self.__dict__ else None

    def _mergeable(self, other: Any) -> Moments:
        """Return the moments of `other`, or raise."""
        if not isinstance(other, type(self)):
            raise TypeError(f"other must be a {type(self).__name__}, not {type(other).__name__}")
        moments = other._seen()
        _check_features(other.n_features_in_, self._features_seen(), "other")
        return moments


class Standardizer(_Estimator):
    """Subtract every feature's mean and divide by its standard deviation: ``(x - mean_) / scale_``.

    Agrees with scikit-learn's StandardScaler, and keeps the precision that it loses where a feature's mean is far from
    0 for its deviation.

    Args:
        with_mean: subtract the mean.
        with_std: divide by the standard deviation.

    Attributes:
        mean_, var_: float64 (D,).
        scale_: square root of var_, 1 where that is 0; None without `with_std`.
        n_samples_seen_, n_features_in_: integers.
    """

    def __init__(self, *, with_mean: bool = True, with_std: bool = True) -> None:
        self.with_mean = with_mean
        self.with_std = with_std

    @property
    def scale_(self) -> Vector | None:
        """What every feature is divided by."""
        return _scale(self.var_) if self.with_std else None

    def fit(self, x: ArrayLike, y: object = None) -> Self:
        self.moments_ = self._updated(self.moments_type(), x)
        return self

    def partial_fit(self, x: ArrayLike, y: object = None) -> Self:
        """Learn from the samples `x` (N, D) in addition to those seen before; `y` is ignored. Returns self."""
        if "moments_" not in self.__dict__:
            return self.fit(x)
        self.moments_ = self._updated(copy(self.moments_), x)  # shallow copies of this object keep theirs
        return self

    def merge(self, other: Standardizer) -> Self:
        """Add what `other` was fitted on, as if it had been given to partial_fit here. Returns self."""
        moments = self._mergeable(other)
        self.moments_ = (copy(self.moments_) if "moments_" in self.__dict__ else self.moments_type()).merge(moments)
        return self

    def transform(self, x: ArrayLike, *, out: Array | None = None) -> Array:
        """Return ``(x - mean_) / scale_`` for `x` (N, D), in x's dtype; float64 for integers."""
        moments = self._seen()
        samples = _matrix(x, "x", self.n_features_in_)
        mean, low, _, _ = moments._state
        vectors = _passes.vectors(mean, low, 1 / _scale(moments.var) if self.with_std else 1.0, 0.0)
        if not self.with_mean:
            vectors[:2] = 0
        return _passes.affine(samples, (0,), vectors, out, moments.passes)

    def inverse_transform(self, x: ArrayLike, *, out: Array | None = None) -> Array:
        """Return ``x * scale_ + mean_``: undo `transform`."""
        moments = self._seen()
        samples = _matrix(x, "x", self.n_features_in_)
        mean = moments._state[0]
        factor = _scale(moments.var) if self.with_std else 1.0
        vectors = _passes.vectors(np.zeros_like(mean), 0.0, factor, mean if self.with_mean else 0.0)
        return _passes.affine(samples, (0,), vectors, out, moments.passes)

    @staticmethod
    def _updated(moments: Moments, x: ArrayLike) -> Moments:
        samples = _matrix(x, "x", moments._expected())
        _check_samples(len(samples), 1)
        return moments.update(samples)


class PCA(_Estimator):
    """Rotate data onto its principal axes: ``(x - mean_) @ components_.T``, decorrelated, the widest spread first.

    Agrees with scikit-learn's PCA (full), signs included: the largest entry of every component is positive. Works on
    streams: of the samples seen only the triangular factor R of a QR decomposition is kept, D x D at most, whose
    singular values and right singular vectors are those of the centred data. That is as accurate as a decomposition of
    the data itself; a covariance matrix would lose half of the digits.

    Args:
        n_components: how many components to keep: an integer; None for all, min(N, D); or a number between 0 and 1, to
            keep as many as it takes to explain more than this share of the variance.

    Attributes:
        components_: float64 (K, D), orthonormal rows.
        explained_variance_: float64 (K,), variance along every component, with N - 1.
        explained_variance_ratio_: the same as a share of the total variance.
        singular_values_: float64 (K,), of the centred data.
        mean_, var_: float64 (D,).
        n_components_, n_samples_seen_, n_features_in_: integers.

    Two samples at least are needed, and `n_components` must not exceed min(N, D), else ValueError.

    Source: the update of the factor: Golub and Van Loan, Matrix computations, chapter 6.5; of the mean: see `Moments`.
    """

    _factor: Vector
    _svd: tuple[Vector, Vector] | None

    def __init__(self, n_components: float | None = None) -> None:
        self.n_components = n_components

    @property
    def components_(self) -> Vector:
        """The principal axes."""
        return self._decomposed()[1]

    @property
    def singular_values_(self) -> Vector:
        """Singular values of the centred data."""
        return self._decomposed()[0]

    @property
    def explained_variance_(self) -> Vector:
        """Variance along every component."""
        return self.singular_values_**2 / (self.n_samples_seen_ - 1)

    @property
    def explained_variance_ratio_(self) -> Vector:
        """Share of the total variance."""
        return _shares(self._all_components()[0])[: self.n_components_]

    @property
    def n_components_(self) -> int:
        """Number of components kept."""
        return len(self.singular_values_)

    def fit(self, x: ArrayLike, y: object = None) -> Self:
        samples = _matrix(x, "x", None)
        _check_samples(len(samples), 2)
        fresh = type(self)(**self.get_params())._grown(samples)
        fresh._decomposed()
        self.__dict__.update(fresh.__dict__)
        return self

    def partial_fit(self, x: ArrayLike, y: object = None) -> Self:
        """Learn from the samples `x` (N, D) in addition to those seen before; `y` is ignored. Returns self.

        The decomposition itself waits until it is asked for. Every call costs a QR decomposition of N + D rows, so give
        blocks of D samples or more.
        """
        samples = _matrix(x, "x", self._features_seen())
        _check_samples(len(samples), 1)
        fresh = type(self)()._grown(samples)
        return self.merge(fresh)

    def merge(self, other: PCA) -> Self:
        """Add what `other` was fitted on, as if it had been given to partial_fit here. Returns self."""
        self._absorb(self._mergeable(other), other._factor)
        return self

    def transform(self, x: ArrayLike) -> Array:
        """Return the coordinates (N, K) of `x` (N, D) along the components, in x's dtype; float64 for integers."""
        return self._projected(x, self.components_)

    def inverse_transform(self, x: ArrayLike) -> Array:
        """Return the data (N, D) whose coordinates are `x` (N, K): ``x @ components_ + mean_``."""
        return self._restored(x, self.components_)

    def _grown(self, samples: Array) -> Self:
        """Add samples in blocks, of which the decomposition makes a copy."""
        features = samples.shape[1]
        if features == 0:
            raise ValueError(f"x has shape {samples.shape}: without features there are no components")
        rows = max(2 * features, _passes.TILE // features)
        for start in range(0, len(samples), rows):
            block = samples[start : start + rows]
            moments = self.moments_type().update(block)
            centred = block.astype(np.float64)
            centred -= moments._state[0]
            centred -= moments._state[1]
            self._absorb(moments, centred)
        return self

    def _absorb(self, moments: Moments, factor: Vector) -> None:
        """Merge in samples of which the moments and the centred data, or their factor, are given."""
        mine = self.__dict__.get("moments_")
        if mine is None:
            total, parts = self.moments_type().merge(moments), [factor]
        else:
            weight = np.sqrt(mine.n / (mine.n + moments.n) * moments.n)
            between = (moments._state[0] - mine._state[0]) + (moments._state[1] - mine._state[1])
            total = self.moments_type().merge(mine).merge(moments)
            parts = [self._factor, factor, weight * between[np.newaxis]]
        self._factor = np.asarray(np.linalg.qr(np.concatenate(parts), mode="r"))
        self.moments_ = total
        self._svd = None

    def _all_components(self) -> tuple[Vector, Vector]:
        """Return all singular values and components."""
        n = self._seen().n
        if n < 2:
            raise NotFittedError(f"{type(self).__name__} has seen {n} sample; it takes 2 or more")
        if self._svd is None:
            _, values, rows = np.linalg.svd(self._factor, full_matrices=False)
            # Merging adds a row for the difference of the means, so a factor can have more rows than there are samples.
            values, rows = values[:n], rows[:n]
            largest = np.take_along_axis(rows, np.argmax(np.abs(rows), axis=1)[:, np.newaxis], axis=1)
            self._svd = values, np.where(largest < 0, -rows, rows)
        return self._svd

    def _decomposed(self) -> tuple[Vector, Vector]:
        """Return the singular values and components that n_components keeps."""
        values, rows = self._all_components()
        wanted, available = self.n_components, len(values)
        if wanted is None:
            kept = available
        elif isinstance(wanted, Real) and 0 < wanted < 1:
            kept = min(int(np.searchsorted(np.cumsum(_shares(values)), wanted, side="right")) + 1, available)
        else:
            try:
                kept = _checks.integer_param(wanted, "n_components", 1)
            except TypeError:
                raise TypeError(
                    "n_components must be an integer, None for all, or a share of the variance between 0 and 1, not "
                    f"{wanted!r}"
                ) from None
            if kept > available:
                raise ValueError(
                    f"n_components is {kept}; {self.n_samples_seen_} samples of {self.n_features_in_} features "
                    f"have {available} components at most"
                )
        return values[:kept], rows[:kept]

    def _projected(self, x: ArrayLike, matrix: Vector) -> Array:
        """Return ``(x - mean_) @ matrix.T`` in x's dtype."""
        samples = _matrix(x, "x", self.n_features_in_)
        state, map_ = self._seen()._state, matrix.T
        return _by_rows(samples, matrix.shape[0], lambda block: ((block - state[0]) - state[1]) @ map_)

    def _restored(self, x: ArrayLike, matrix: Vector) -> Array:
        """Return ``x @ matrix + mean_`` in x's dtype."""
        coordinates = _matrix(x, "x", matrix.shape[0])
        mean = self._seen()._state[0]
        return _by_rows(coordinates, matrix.shape[1], lambda block: block @ matrix + mean)


class Whitener(PCA):
    """Decorrelate data and give every direction unit variance: the covariance becomes the identity.

    ``(x - mean_) @ components_.T / scale_``; agrees with scikit-learn's PCA(whiten=True). A direction in which the data
    has no spread but rounding noise is divided by 1, not by that noise.

    Args:
        n_components: see `PCA`.
        method: "pca" leaves the result in the rotated axes; "zca" rotates it back, to the whitened data nearest to `x`:
            whitened images still look like images. Its result is (N, D).
        epsilon: added to the variances, so that weak directions, mostly noise, are not blown up. CS231n adds 1e-5.

    Attributes:
        scale_: float64 (K,), what every component is divided by: sqrt(explained_variance_ + epsilon).
        and those of `PCA`.

    Source: CS231n, Neural Networks Part 2, "PCA and Whitening"; zca: Bell and Sejnowski, 1997.
    """

    def __init__(self, n_components: float | None = None, *, method: str = "pca", epsilon: float = 0.0) -> None:
        super().__init__(n_components)
        self.method = method
        self.epsilon = epsilon

    @property
    def scale_(self) -> Vector:
        """What every component is divided by."""
        epsilon = _checks.real_param(self.epsilon, "epsilon", "nonnegative")
        values = self.singular_values_
        noise = max(self.n_samples_seen_, self.n_features_in_) * np.finfo(np.float64).eps * values[0]
        variances = np.where(values > noise, self.explained_variance_, 0.0)
        return _scale(variances + epsilon)

    def fit(self, x: ArrayLike, y: object = None) -> Self:
        self._rotates_back()
        _checks.real_param(self.epsilon, "epsilon", "nonnegative")
        return super().fit(x)

    def transform(self, x: ArrayLike) -> Array:
        """Return `x` (N, D) whitened, in x's dtype; float64 for integers: (N, K), or (N, D) with method="zca"."""
        components = self.components_
        scaled = components / self.scale_[:, np.newaxis]
        return self._projected(x, components.T @ scaled if self._rotates_back() else scaled)

    def inverse_transform(self, x: ArrayLike) -> Array:
        """Return the data (N, D) that `transform` gives `x` for."""
        components = self.components_
        scaled = components * self.scale_[:, np.newaxis]
        return self._restored(x, components.T @ scaled if self._rotates_back() else scaled)

    def _rotates_back(self) -> bool:
        if self.method not in ("pca", "zca"):
            raise ValueError(f'method is {self.method!r}; it must be "pca" or "zca"')
        return self.method == "zca"


def _scale(variances: Vector) -> Vector:
    """Return the standard deviations, 1 where there is none."""
    return np.sqrt(np.where(variances == 0, 1.0, variances))


def _shares(singular_values: Vector) -> Vector:
    """Return the share of the total variance, 0 where there is no variance at all."""
    variances = singular_values**2
    return variances / (variances.sum() or 1.0)


def _real(x: ArrayLike, name: str) -> Array:
    """Return `x` as an array of real numbers; one that is an array already is not converted as a whole."""
    if not isinstance(x, np.ndarray):
        return _checks.as_input(x, name)
    _checks.as_input(x[..., :0] if x.ndim else x, name)
    return np.asarray(x)


def _vector(x: ArrayLike, name: str) -> Vector:
    """Return numbers that are kept or restored as float64."""
    return _checks.as_input(x, name).astype(np.float64)


def _matrix(x: ArrayLike, name: str, features: int | None) -> Array:
    """Return `x` as a matrix of so many features."""
    array = _real(x, name)
    if array.ndim != 2:
        raise ValueError(
            f"{name} has shape {array.shape}; it must be a matrix (samples, features): {name}.reshape(len({name}), -1) "
            f"makes it one, {name}[np.newaxis] of a single sample"
        )
    _check_features(array.shape[1], features, name)
    return array


def _check_features(given: int, fitted: int | None, name: str) -> None:
    if fitted is not None and given != fitted:
        raise ValueError(f"{name} has {given} features, but {fitted} are expected from what came before")


def _check_samples(given: int, needed: int) -> None:
    if given < needed:
        raise ValueError(f"x has {given} samples; a fit takes {needed} or more")


def _by_rows(samples: Array, columns: int, function: Any) -> Array:
    """Apply a function of float64 rows to `samples`, a tile at a time; the result has samples' dtype."""
    result = np.empty((len(samples), columns), _passes.result_dtype(samples))
    rows = max(_passes.TILE // max(samples.shape[1], 1), 1)
    for start in range(0, len(samples), rows):
        part = slice(start, start + rows)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            result[part] = function(samples[part].astype(np.float64, copy=False))
    return result


def center_and_scale(
    x: ArrayLike, axis: int | tuple[int, ...] | None, out: Array | None, scale: bool, passes: type[Passes]
) -> Array:
    """What `zero_center` and `standardize` do, with these passes."""
    array = _real(x, "x")
    axes = tuple(range(array.ndim)) if axis is None else _checks.normalize_axes(axis, array.ndim)
    _checks.check_out(out, array.shape, _passes.result_dtype(array))
    if array.size == 0:
        return np.empty(array.shape, _passes.result_dtype(array)) if out is None else out
    state = _passes.moments(array, axes, passes)
    vectors = _passes.vectors(state[0], state[1], 1.0, 0.0)
    if scale:
        vectors[2] /= _scale(state[2] / (array.size // state[2].size))
    return _passes.affine(array, axes, vectors, out, passes)
