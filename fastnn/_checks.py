"""Argument checks and their messages, shared by `fastnn.reference` and the compiled functions.

The compiled functions take native float arrays that are right on their own; everything else they hand to these
functions. So a mistake is answered with the same words whichever of the two was called. Each message says what was
given and what is accepted.
"""

from __future__ import annotations

import numbers
import operator
import sys
from typing import Any

import numpy as np
from numpy.exceptions import AxisError

from fastnn._table import BY_NAME, Activation

Array = np.ndarray[Any, np.dtype[Any]]

_FLOATS = (np.float16, np.float32, np.float64)
_ACCEPTED = "accepted are float16, float32 and float64 arrays, integers and bools (taken as float64)"

_MUST_BE = {
    "finite": "finite",
    "positive": "finite and greater than 0",
    "nonzero": "finite and not 0",
    "nonnegative": "finite and at least 0",
    "share": "in 0..1",
}


def as_input(x: Any, name: str = "x") -> Array:
    """`x` as a base-class ndarray of float16, float32 or float64, copied only where its dtype has to change.

    Byte order, strides and alignment stay what they are. Anything that cannot be a real array is a TypeError.
    """
    array = _as_array(x, name, _ACCEPTED)
    if array.dtype.type in _FLOATS:
        return array
    if array.dtype.kind in "biu":
        return array.astype(np.float64)
    what = f"is None, of dtype {array.dtype}" if x is None else f"has dtype {array.dtype}"
    sparse = f"; it is sparse: give {name}.toarray()" if hasattr(x, "toarray") else ""
    raise TypeError(f"{name} {what}; {_ACCEPTED}{sparse}")


def _is_masked(x: Any) -> bool:
    """Whether x is a masked array. np.ma is not loaded for it: a fork meanwhile would inherit the import's lock."""
    masked = getattr(sys.modules.get("numpy.ma.core"), "MaskedArray", None)
    return masked is not None and isinstance(x, masked)


def _as_array(x: Any, name: str, accepted: str) -> Array:
    if _is_masked(x):
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost; {accepted}; fill it first: {name}.filled(value)"
        )
    try:
        return np.asarray(x)
    except ValueError as error:  # ragged nested sequences
        raise TypeError(f"{name} cannot be made into an array ({error}); {accepted}") from error


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """`dtype` as one of the native float dtypes; anything else is a TypeError."""
    try:
        wanted = None if dtype is None else np.dtype(dtype)  # NumPy takes None for float64
    except TypeError:
        wanted = None
    if wanted is None or wanted.type not in _FLOATS:
        raise TypeError(f"dtype is {dtype if wanted is None else wanted}; it must be float16, float32 or float64")
    return wanted.newbyteorder("=")


def result_dtype(*arrays: Array) -> np.dtype[Any]:
    """The dtype of a result computed from `arrays`: NumPy's promotion, always in native byte order."""
    return np.result_type(*(array.dtype for array in arrays)).newbyteorder("=")


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which a kernel computes a result of `dtype`; scalar parameters are rounded to it."""
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)


def check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise unless `out` is None or a writeable array of exactly this shape and native dtype."""
    if out is None:
        return
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy.ndarray or None, not {type(out).__name__}")
    if _is_masked(out):
        raise TypeError("out is a masked array, whose mask would be ignored; give its data: out.data")
    if out.dtype != dtype:
        if out.dtype.newbyteorder("=") == dtype:
            raise TypeError(f"out is byte-swapped (dtype {out.dtype.str}); the result is in native order, {dtype}")
        raise TypeError(f"out has dtype {out.dtype}, but the result has dtype {dtype}")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}, but the result has shape {shape}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; give a writeable array")


def check_same_shape(dy: Array, saved: Array, name: str = "saved") -> None:
    """Raise unless `dy` has exactly the shape of the array that the forward pass kept."""
    if dy.shape != saved.shape:
        raise ValueError(f"dy has shape {dy.shape}, but {name} has shape {saved.shape}; they must be equal")


def real_param(value: Any, name: str, must_be: str = "finite", dtype: np.dtype[Any] | None = None) -> float:
    """`value` as a float, rounded to the dtype the kernel computes in where one is given.

    `must_be` is "finite", "positive", "nonzero", "nonnegative" or "share", and holds for the rounded number too.
    """
    number = _as_real(value, name)
    rounded = number
    if dtype is not None and dtype != np.float64:
        with np.errstate(all="ignore"):
            rounded = float(dtype.type(number))
    if not _satisfies(rounded, must_be):
        where = "" if not _satisfies(number, must_be) else f" in {dtype}, where it is rounded to {rounded}"
        raise ValueError(f"{name} is {value}{where}; it must be {_MUST_BE[must_be]}")
    return rounded


def _as_real(value: Any, name: str) -> float:
    if hasattr(value, "__array__") and not _is_masked(value):
        array = np.asarray(value)
        if array.size == 1 and array.dtype.kind in "biuf":
            return float(array.reshape(-1)[0])
        raise TypeError(f"{name} must be a real number, not {_described(array)}")
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, not {_described(value)}")
    try:
        return float(value)
    except OverflowError:  # an int or a fraction beyond float64
        return float("-inf") if value < 0 else float("inf")


def _satisfies(number: float, must_be: str) -> bool:
    if not float("-inf") < number < float("inf"):
        return False
    if must_be == "positive":
        return number > 0
    if must_be == "nonzero":
        return number != 0
    if must_be == "share":
        return 0 <= number <= 1
    return must_be == "finite" or number >= 0


def _described(value: Any) -> str:
    """What was given in place of a number or a word; of an array not what it holds."""
    if isinstance(value, np.ndarray) and not _is_masked(value):
        return f"an array of dtype {value.dtype} and shape {value.shape}"
    return f"{value!r} of type {type(value).__name__}"


def check_bounds(min_val: Any, max_val: Any) -> None:
    """Raise unless min_val <= max_val, as hardtanh needs."""
    if _as_real(min_val, "min_val") > _as_real(max_val, "max_val"):
        raise ValueError(f"min_val is {min_val} and max_val {max_val}; min_val must not be greater than max_val")


def gelu_variant(approximate: Any) -> str:
    """The row of the table that computes `gelu(x, approximate)`."""
    if not isinstance(approximate, str):
        hint = "; give the array for the result by its name, out" if isinstance(approximate, np.ndarray) else ""
        raise TypeError(f'approximate must be the string "none" or "tanh", not {_described(approximate)}{hint}')
    if approximate == "none":
        return "gelu"
    if approximate == "tanh":
        return "gelu_tanh"
    raise ValueError(f'approximate is {approximate!r}; it must be "none" or "tanh"')


def fused_activation(activation: Any) -> Activation | None:
    """The row of the activation that a normalization is asked to fuse, or None."""
    if activation is None:
        return None
    if not isinstance(activation, str):
        raise TypeError(f"activation must be the name of an activation or None, not {_described(activation)}")
    names = [row.name for row in BY_NAME.values() if not row.public]
    if activation not in names:
        raise ValueError(f"activation is {activation!r}; it must be None or one of {', '.join(names)}")
    return BY_NAME[activation]


def integer_param(value: Any, name: str, at_least: int | None = None) -> int:
    """`value` as an int: anything that Python takes as an index, bools excepted."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {_described(value)}") from None
    if at_least is not None and number < at_least:
        raise ValueError(f"{name} is {number}; it must be at least {at_least}")
    return number


def normalize_axis(axis: Any, ndim: int) -> int:
    """`axis` counted from the front. AxisError where an array of `ndim` dimensions has no such axis."""
    number = integer_param(axis, "axis")
    if not -ndim <= number < ndim:
        raise AxisError(number, ndim)
    return number + ndim if number < 0 else number


def normalize_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """An axis or a tuple of axes, counted from the front and sorted. AxisError also where one is named twice."""
    if isinstance(axis, list):
        raise TypeError(f"axis must be an integer or a tuple of integers, not the list {axis}")
    axes = sorted(normalize_axis(each, ndim) for each in (axis if isinstance(axis, tuple) else (axis,)))
    if len(set(axes)) != len(axes):
        raise AxisError(f"axis {axis} names an axis twice")
    return tuple(axes)


def softmax_axis(axis: Any, ndim: int) -> int:
    """The axis of softmax: a 0-d array counts as a row of one element, so there 0 and -1 are accepted."""
    return normalize_axis(axis, max(ndim, 1))


def check_ndim(x: Array, at_least: int) -> None:
    """Raise unless `x` has enough dimensions for a normalization."""
    if x.ndim < at_least:
        raise ValueError(f"x has {x.ndim} dimensions (shape {x.shape}); at least {at_least} are needed")


def check_not_empty(count: int, shape: tuple[int, ...], what: str = "channel") -> None:
    """Raise unless there is something to take a mean of."""
    if count == 0:
        raise ValueError(f"x is empty (shape {shape}): a {what} has no values to take statistics of")


def channel_vector(
    v: Any, shape: int | tuple[int, ...], name: str, dtype: Any = None, out: Any = None, why: str = ""
) -> Array:
    """`v` (gamma, mean, ...) as a native, contiguous, aligned array of exactly this shape.

    A copy where it overlaps `out`. Its own dtype stays, unless one is given. `why` ends the message about the shape.
    """
    array = as_input(v, name)
    wanted = (shape,) if isinstance(shape, int) else shape
    if array.shape != wanted:
        raise ValueError(f"{name} has shape {array.shape}; it must have shape {wanted}{why}")
    with np.errstate(all="ignore"):
        vector = np.require(array, array.dtype.newbyteorder("=") if dtype is None else dtype, ("C", "A"))
    return vector.copy() if isinstance(out, np.ndarray) and overlaps(vector, out) else vector


def vector_along(v: Any, x: Array, axis: int, name: str, dtype: Any = None, out: Any = None) -> Array:
    """`v` as `channel_vector` returns it, with a value for each position along an axis of x."""
    why = f", the length of axis {axis} of x, whose shape is {x.shape}"
    return channel_vector(v, x.shape[axis], name, dtype, out, why)


def vector_from(v: Any, x: Array, axis: int, name: str, dtype: Any = None, out: Any = None) -> Array:
    """The same with the shape of x from an axis on: the weights of a row."""
    return channel_vector(v, x.shape[axis:], name, dtype, out, f", that of x, {x.shape}, from axis {axis} on")


def vector_before(v: Any, x: Array, axis: int, name: str, dtype: Any = None, out: Any = None) -> Array:
    """The same with the shape of x before an axis: the statistics of the rows."""
    return channel_vector(v, x.shape[:axis], name, dtype, out, f", that of x, {x.shape}, before axis {axis}")


def group_statistics(v: Any, x: Array, groups: int, name: str, dtype: Any = None, out: Any = None) -> Array:
    """The same with a value for each group of each sample."""
    why = f", a value for each of the {groups} groups of each sample of x, whose shape is {x.shape}"
    return channel_vector(v, (x.shape[0], groups), name, dtype, out, why)


def as_slope(slope: Any, shape: tuple[int, ...], axis: Any) -> tuple[Array, int]:
    """prelu's slope and its axis: a 0-d slope goes with every x (axis 0 is returned), a (C,) one along `axis`."""
    array = as_input(slope, "slope")
    if array.ndim == 0:
        integer_param(axis, "axis")
        return array, 0
    number = normalize_axis(axis, len(shape))
    if array.shape != (shape[number],):
        raise ValueError(
            f"slope has shape {array.shape}; it must be a scalar or have shape ({shape[number]},), "
            f"the length of axis {axis} of x, whose shape is {shape}"
        )
    return array, number


def check_logits(logits: Array) -> None:
    """Raise unless the logits are a matrix (N, C)."""
    if logits.ndim != 2:
        raise ValueError(f"logits has shape {logits.shape}; it must be a matrix (N, C)")


def as_labels(labels: Any, samples: int, classes: int) -> Array:
    """Class labels as a contiguous intp array of shape (samples,), each in 0..classes-1."""
    accepted = f"accepted are integers of shape ({samples},)"
    array = _as_array(labels, "labels", accepted)
    if array.size == 0 and not isinstance(labels, np.ndarray):
        array = array.astype(np.intp)  # NumPy makes [] a float64 array
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels has dtype {array.dtype}; {accepted}")
    if array.shape != (samples,):
        raise ValueError(f"labels has shape {array.shape}; {accepted}, one label a row of logits")
    bad = (array < 0) | (array >= classes)
    if bad.any():
        if classes == 0:
            raise ValueError(f"logits has shape ({samples}, 0), without a class that a label could name")
        first = int(np.argmax(bad))
        raise ValueError(f"labels[{first}] is {array[first]}; a label must be in 0..{classes - 1}")
    return np.ascontiguousarray(array, dtype=np.intp)


def pieces_param(pieces: Any, units: int = 1) -> int:
    """maxout's number of pieces: an integer of at least 1, so small that an axis can hold the pieces of all units."""
    number = integer_param(pieces, "pieces", 1)
    most = np.iinfo(np.intp).max // max(units, 1)
    if number > most:
        raise ValueError(f"pieces is {number}; it must be at most {most}, for an axis of units * pieces elements")
    return number


def check_pieces(pieces: Any, length: int, axis: int) -> int:
    """maxout's number of pieces, which must divide the length of the axis."""
    number = pieces_param(pieces)
    if length % number:
        raise ValueError(f"axis {axis} of x has length {length}, which is not a multiple of pieces = {number}")
    return number


def as_which(which: Any, shape: tuple[int, ...], pieces: int) -> Array:
    """maxout's record of the winning pieces as a contiguous intp array of dy's shape, each in 0..pieces-1."""
    accepted = f"accepted are integers of dy's shape {shape}"
    array = _as_array(which, "which", accepted)
    if array.size == 0 and not isinstance(which, np.ndarray):
        array = array.astype(np.intp)
    if array.dtype.kind not in "iu":
        raise TypeError(f"which has dtype {array.dtype}; {accepted}")
    if array.shape != shape:
        raise ValueError(f"which has shape {array.shape}; {accepted}")
    bad = (array < 0) | (array >= pieces)
    if bad.any():
        raise ValueError(f"which holds {array[bad][0]}; an index of a piece must be in 0..{pieces - 1}")
    return np.ascontiguousarray(array, dtype=np.intp)


def check_groups(groups: Any, x: Array, axis: int) -> int:
    """group_norm's number of groups: an integer of at least 1 that divides the number of channels."""
    number = integer_param(groups, "groups", 1)
    if x.shape[axis] % number:
        raise ValueError(
            f"groups is {number}, which does not divide the {x.shape[axis]} channels of x, "
            f"the length of axis {axis} of its shape {x.shape}"
        )
    return number


def group_axis(axis: Any, ndim: int) -> int:
    """The channel axis of group_norm and instance_norm, whose first axis is the samples'."""
    number = normalize_axis(axis, ndim)
    if number == 0:
        raise ValueError(f"axis is {axis}, the axis of the samples; the channel axis must be another one")
    return number


def array_and_axis(x: Any, axis: Any, at_least: int = 2, samples: bool = False) -> tuple[Array, int]:
    """The input of a normalization, and its axis from the front; with samples, whose axis is the first."""
    x = as_input(x)
    check_ndim(x, at_least)
    return x, (group_axis if samples else normalize_axis)(axis, x.ndim)


def gradient_and_axis(dy: Any, x: Any, axis: Any, at_least: int = 2, samples: bool = False) -> tuple[Array, Array, int]:
    """The same for backward, and dy."""
    dy = as_input(dy, "dy")
    x, axis = array_and_axis(x, axis, at_least, samples)
    check_same_shape(dy, x, "x")
    return dy, x, axis


def overlaps(a: Array, b: Array) -> bool:
    """Whether the two arrays may share memory, judged by their bounds."""
    return np.may_share_memory(np.asarray(a), np.asarray(b))  # it would ask a subclass


def partly_overlaps(a: Array, b: Array) -> bool:
    """Whether arrays of one shape may share memory otherwise than element by element."""
    return overlaps(a, b) and not (a.ctypes.data == b.ctypes.data and a.strides == b.strides and a.dtype == b.dtype)
