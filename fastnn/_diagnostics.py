"""What `fastnn.diagnostics` and its NumPy twin share: everything but the passes of `activation_stats`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastnn import _checks
from fastnn._table import BY_NAME

Array = NDArray[Any]
Bounds = tuple[float, float]

# Outputs at or below the first or at or above the second number are saturated: within 1 % of the range from an
# asymptote, 1 % of its depth from a lower one of a function without upper one, at the bound of a function that is
# clipped. There the slope is 4 % of the largest, or less.
_SATURATED: dict[str, Bounds] = {
    "sigmoid": (0.01, 0.99),
    "tanh": (-0.98, 0.98),
    "softsign": (-0.98, 0.98),
    "hardtanh": (-1.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "relu6": (0.0, 6.0),
    "relu": (0.0, math.inf),
    "elu": (-0.99, math.inf),
    "celu": (-0.99, math.inf),
    "selu": (-0.99 * 1.7580993408473768, math.inf),
    "softplus": (0.01, math.inf),
    "log_sigmoid": (-math.inf, -0.01),
    "leaky_relu": (-math.inf, math.inf),
    "prelu": (-math.inf, math.inf),
}

_MAX_BINS = 1 << 16
_STEP = 6e-6  # the cube root of float64's epsilon: rounding and curvature cost about the same
_TILE = 1 << 18  # elements converted at a time where the kernel cannot take the array as it is


class ActivationStats(NamedTuple):
    """What `activation_stats` returns."""

    mean: float
    std: float
    histogram: tuple[Array, Array]  # counts and edges, as numpy.histogram returns them
    saturated: float  # share of the entries
    dead: float  # share of the units


class GradientStats(NamedTuple):
    """What `gradient_flow` returns of every gradient."""

    name: str
    norm: float  # Euclidean
    mean: float
    std: float
    largest: float  # of the absolute values


def saturation(y: ArrayLike, activation: str | Bounds) -> float:
    """Return the share of the outputs `y` that are saturated: where the activation is so flat that gradients die.

    Args:
        y: outputs of the activation, any shape.
        activation: its name, or a pair (low, high) of your own: outputs <= low and >= high are saturated. An infinite
            one means that there is no such limit.

            ==================  ==========================================================
            sigmoid             y <= 0.01 or y >= 0.99: within 1 % of the range from an end
            tanh, softsign      abs(y) >= 0.98: the same
            hardtanh            abs(y) >= 1
            hardsigmoid, relu6  y <= 0, or y >= 1 and 6
            relu                y <= 0
            elu, celu, selu     within 1 % of the depth from the asymptote on the left
            softplus            y <= 0.01; log_sigmoid: y >= -0.01
            leaky_relu, prelu   never
            ==================  ==========================================================

            All with their default parameters. gelu, silu, mish and hardswish are not monotone, so their outputs do not
            tell: ValueError. The limits are rounded to y's dtype.

    Returns:
        A float between 0 and 1; of an empty array 0.
    """
    outputs = _checks.as_input(y, "y")
    low, high = saturation_bounds(activation, outputs.dtype)
    if outputs.size == 0:
        return 0.0
    return float(np.count_nonzero((outputs <= low) | (outputs >= high)) / outputs.size)


def dead_units(y: ArrayLike, axis: int | tuple[int, ...] = 0) -> NDArray[np.bool_]:
    """Return which units are dead: their output is exactly 0 for every sample of the batch.

    A ReLU unit that is dead for all of the training data gets no gradient and stays dead.

    Args:
        y: outputs, the samples along `axis`.
        axis: axis or axes of the batch; (0, 2, 3) judges the channels of (N, C, H, W).

    Returns:
        Booleans of y's shape without `axis`; ``dead_units(y).mean()`` is the share of dead units.

    Raises:
        ValueError: there is no sample to judge by.
    """
    outputs = _checks.as_input(y, "y")
    axes = _checks.normalize_axes(axis, outputs.ndim)
    if outputs.size == 0 and math.prod(outputs.shape[each] for each in axes) == 0:
        raise ValueError(f"y has shape {outputs.shape}: without a sample along axis {axis} no unit can be judged")
    return np.asarray(~outputs.any(axis=axes))


def gradient_flow(source: Any) -> list[GradientStats]:
    """Return the size of the gradient in every layer: does it vanish or explode on its way back?

    Args:
        source: a network after its backward pass, anything with a list ``layers``, or such a list: the gradients
            ``dW`` of the layers that have some are looked at. Or the gradients themselves: a list or a dict of arrays.

    Returns:
        One `GradientStats` (name, norm, mean, std, largest) a gradient, in the order of the layers.

    Raises:
        TypeError: `source` is none of these. ValueError: a gradient is empty.
    """
    result = []
    for name, gradient in _named_gradients(source):
        if gradient is None:
            raise ValueError(f"gradient {name} is None; run backward first")
        values = _checks.as_input(gradient, f"gradient {name}").astype(np.float64, copy=False)
        if values.size == 0:
            raise ValueError(f"gradient {name} is empty: it has no size to speak of")
        with np.errstate(all="ignore"):
            largest = float(np.abs(values).max())
            scale = largest if 0 < largest < math.inf else 1.0  # divided by it, squares neither over- nor underflow
            scaled = values / scale
            norm, mean, std = float(np.linalg.norm(scaled)), float(scaled.mean()), float(scaled.std())
        result.append(GradientStats(name, norm * scale, mean * scale, std * scale, largest))
    return result


def gradient_check(f: Callable[..., Any], f_backward: Callable[..., Any], x: ArrayLike, dy: ArrayLike) -> float:
    """Return the largest relative error of ``f_backward`` against central differences of ``f`` in float64.

    With L = sum(dy * f(x)), f_backward is to return dL/dx. Every element of `x` is moved by 6e-6 * max(1, abs(x)) up
    and down, so f is called twice an element; take small arrays, and x away from kinks. A correct gradient comes out
    below about 1e-6, a wrong one near 1.

    Args:
        f: a function of x, or ``network.forward``.
        f_backward: how it is called follows from f, which is always called with the same x right before:

            - it takes a single positional argument, as ``network.backward`` does: ``f_backward(dy)``;
            - f is an activation of fastnn: ``f_backward(dy, saved)`` with saved = x or y, as the activation wants it;
            - f returns a tuple (y, \\*rest): ``f_backward(dy, x, *rest)``, as the normalizations want it;
            - else ``f_backward(dy, x)``.

            If it returns a tuple, its first entry is dx.
        x: where to check.
        dy: gradient of the output, of f(x)'s shape; random numbers, say.

    If f is a method of a network (of an object with a list ``layers``) or of a layer, the gradients of the parameters
    are checked as well: the pairs (array, gradient) that a layer's ``parameters()`` returns, else its arrays W, b,
    gamma and beta with dW, db, dgamma and dbeta. They are moved in place, and moved back; let them be float64. What
    else a call of f changes, as running statistics do, stays changed.

    Returns:
        Largest abs(a - n) / max(abs(a), abs(n), floor) over all elements of the analytic and numeric gradients a and n.
        The floor keeps rounding errors of next to nothing from counting: a thousandth of the largest gradient, or 1e-5
        of the largest abs(dy) times the largest abs(f(x)). NaN if a gradient holds NaN.

    Raises:
        ValueError: f(x) has another shape than dy, or f_backward's result another one than x.
    """
    point = np.array(_checks.as_input(x), dtype=np.float64)
    upstream = np.array(_checks.as_input(dy, "dy"), dtype=np.float64)
    result = f(point)
    y = np.asarray(result[0] if isinstance(result, tuple) else result)
    if y.shape != upstream.shape:
        raise ValueError(f"dy has shape {upstream.shape}, but f(x) has shape {y.shape}; they must be equal")
    y = np.array(y, dtype=np.float64)
    dx = f_backward(*_backward_arguments(f, f_backward, upstream, point, result))
    dx = np.array(dx[0] if isinstance(dx, tuple) else dx, dtype=np.float64)
    if dx.shape != point.shape:
        raise ValueError(f"f_backward returned shape {dx.shape}, but x has shape {point.shape}; they must be equal")
    pairs = [(point, dx), *_parameters(getattr(f, "__self__", None))]

    def output() -> Array:
        moved = f(point)
        return np.asarray(moved[0] if isinstance(moved, tuple) else moved, dtype=np.float64)

    numeric = [_differences(output, array, upstream) for array, _ in pairs]
    with np.errstate(all="ignore"):
        floor = 1e-5 * _largest(upstream) * _largest(y)
        for (_, gradient), estimate in zip(pairs, numeric, strict=True):
            floor = max(floor, 1e-3 * _largest(gradient), 1e-3 * _largest(estimate))
        errors = [
            _largest((gradient - estimate) / np.maximum(np.maximum(np.abs(gradient), np.abs(estimate)), floor or 1.0))
            for (_, gradient), estimate in zip(pairs, numeric, strict=True)
        ]
    return float(np.max(errors))


def saturation_bounds(activation: str | Bounds, dtype: np.dtype[Any]) -> Bounds:
    """Return the limits of saturation of an activation, rounded to `dtype`."""
    if isinstance(activation, str):
        if activation not in _SATURATED:
            raise ValueError(
                f"activation is {activation!r}; it must be one of {', '.join(_SATURATED)}, or a pair (low, high); of "
                "others the outputs do not tell whether they are saturated"
            )
        low, high = _SATURATED[activation]
    elif isinstance(activation, tuple) and len(activation) == 2:
        low, high = (_bound(value, name) for value, name in zip(activation, ("low", "high"), strict=True))
        if low > high:
            raise ValueError(f"activation is ({low}, {high}); low must not be greater than high")
    else:
        raise TypeError(f"activation must be a name or a pair (low, high), not {activation!r}")
    # infinite: there is no such limit, not even for infinite outputs
    with np.errstate(over="ignore", under="ignore"):
        lower, upper = (float(dtype.type(bound)) if math.isfinite(bound) else math.nan for bound in (low, high))
    return lower, upper


def _bound(value: float, name: str) -> float:
    """A limit that may be infinite."""
    infinite = isinstance(value, float | np.floating) and math.isinf(value)
    return float(value) if infinite else _checks.real_param(value, name)


def summarized(
    y: ArrayLike,
    activation: str | Bounds,
    bins: int,
    limits: Bounds | None,
    finite_range: Callable[[Array], Bounds],
    summarize: Callable[..., tuple[Array, Array, int, Array]],
    combine: Callable[[int, Array, int, Array], Array],
) -> ActivationStats:
    """What `activation_stats` does, with these passes over tiles of the array."""
    outputs = _checks.as_input(y, "y")
    if outputs.size == 0:
        raise ValueError(f"y has shape {outputs.shape}: it is empty, so there are no statistics of it")
    number = _checks.integer_param(bins, "bins", 1)
    if number > _MAX_BINS:
        raise ValueError(f"bins is {number}; it must be at most {_MAX_BINS}")
    low, high = saturation_bounds(activation, outputs.dtype)
    if limits is not None:
        first, last = _given_range(limits, number)
    else:
        first, last = _own_range(map(finite_range, _tiles(outputs)), number)
    units = math.prod(outputs.shape[1:])
    seen, saturated, counts, alive = 0, 0, np.zeros(number, np.int64), np.zeros(units, bool)
    state = np.zeros((4, 1))
    for tile in _tiles(outputs):
        found, tile_counts, tile_saturated, tile_alive = summarize(tile, units, number, first, last, low, high)
        state = combine(seen, state, tile.size, found) if seen and np.isfinite([state, found]).all() else state + found
        seen += tile.size
        saturated += tile_saturated
        counts += tile_counts
        alive |= tile_alive
    mean, squares = (float(state[row, 0]) if np.isfinite(state).all() else math.nan for row in (0, 2))
    edges = np.arange(number + 1) * ((last - first) / number) + first
    edges[-1] = last
    dead = (units - int(np.count_nonzero(alive))) / units
    return ActivationStats(mean, math.sqrt(squares / seen), (counts, edges), saturated / seen, dead)


def _tiles(array: Array) -> Iterator[Array]:
    """Yield the array in pieces along the first axis, contiguous and native; as a whole if it is that."""
    samples = array if array.ndim else array.reshape(1)
    dtype = np.dtype(np.float64 if array.dtype.itemsize == 8 else np.float32)
    as_it_is = array.flags.c_contiguous and array.flags.aligned and array.dtype == dtype
    step = len(samples) if as_it_is else max(_TILE * len(samples) // samples.size, 1)
    for start in range(0, len(samples), step):
        yield np.require(samples[start : start + step], dtype, ["C", "A"])


def _given_range(limits: Any, bins: int) -> Bounds:
    if not (isinstance(limits, tuple | list) and len(limits) == 2):
        raise TypeError(f"range must be a pair (low, high), not {limits!r}")
    first, last = (_checks.real_param(limit, "range") for limit in limits)
    if not _narrowest(first, last, bins) <= last - first < math.inf:
        raise ValueError(f"range is ({first}, {last}); it must go up, and be wide enough for {bins} bins")
    return first, last


def _own_range(found: Iterable[Bounds], bins: int) -> Bounds:
    """From the smallest to the largest finite number, widened where that is too narrow for so many bins."""
    ranges = [bounds for bounds in found if bounds[0] <= bounds[1]]
    if not ranges:
        return 0.0, 1.0
    first, last = min(low for low, _ in ranges), max(high for _, high in ranges)
    if first == last:  # as numpy.histogram has it
        first, last = first - 0.5, last + 0.5
    if not last - first < math.inf:
        first, last = max(first, -8e307), min(last, 8e307)
    least = _narrowest(first, last, bins)
    return (first, last) if last - first >= least else (first - least, last + least)


def _narrowest(first: float, last: float, bins: int) -> float:
    """The least width of a range whose bins have edges that float64 can tell apart, by a margin."""
    return max(4 * bins * float(np.spacing(max(abs(first), abs(last)))), 1e-290)


def _named_gradients(source: Any) -> list[tuple[str, Any]]:
    if isinstance(source, Mapping):
        return [(str(name), gradient) for name, gradient in source.items()]
    listed = getattr(source, "layers", source)
    if isinstance(listed, str) or not isinstance(listed, Iterable):
        raise TypeError(f"source must be a network, or a list or a dict of gradients, not {type(source).__name__}")
    entries = list(listed)
    layers = [
        (f"{index} {type(entry).__name__}", entry.dW) for index, entry in enumerate(entries) if hasattr(entry, "dW")
    ]
    if layers:
        return layers
    if listed is not source or any(hasattr(entry, "forward") for entry in entries):
        raise ValueError("no layer has a gradient dW; run backward first")
    return [(str(index), entry) for index, entry in enumerate(entries)]


def _backward_arguments(
    f: Callable[..., Any], f_backward: Callable[..., Any], dy: Array, x: Array, result: Any
) -> tuple[Any, ...]:
    if _takes_one(f_backward):
        return (dy,)
    saved = _saved_by_activation(getattr(f, "func", f))  # the function within a functools.partial
    if saved == "y":
        return dy, result
    if isinstance(result, tuple):
        return (dy, *result[1:]) if saved == "which" else (dy, x, *result[1:])
    return dy, x


def _takes_one(f_backward: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(f_backward).parameters.values()
    except (TypeError, ValueError):  # a compiled function that does not say
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    several = any(parameter.kind == inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    return not several and sum(parameter.kind in positional for parameter in parameters) == 1


def _saved_by_activation(f: Callable[..., Any]) -> str | None:
    """What the backward function of one of fastnn's activations wants; None of any other function."""
    name = getattr(f, "__name__", "")
    if not str(getattr(f, "__module__", "")).startswith("fastnn."):
        return None
    if name in BY_NAME:
        return BY_NAME[name].saved
    return {"softmax": "y", "log_softmax": "y", "maxout": "which"}.get(name)


def _parameters(owner: Any) -> list[tuple[Array, Array]]:
    """Arrays that a network or a layer learns, with copies of their gradients."""
    pairs: list[tuple[Any, Any]] = []
    for layer in getattr(owner, "layers", [owner]):
        if callable(getattr(layer, "parameters", None)):
            pairs += layer.parameters()
        else:
            names = [
                name for name in ("W", "b", "gamma", "beta") if hasattr(layer, name) and hasattr(layer, f"d{name}")
            ]
            pairs += [(getattr(layer, name), getattr(layer, f"d{name}")) for name in names]
    return [(array, np.array(gradient, dtype=np.float64)) for array, gradient in pairs]


def _differences(output: Callable[[], Array], array: Array, dy: Array) -> Array:
    """Central differences of sum(dy * output()) by every element of `array`, which is moved in place."""
    result = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        before = array[index]
        step = _STEP * max(1.0, abs(float(before)))
        array[index] = before + step
        above, high = float(array[index]), output()
        array[index] = before - step
        below, low = float(array[index]), output()
        array[index] = before
        with np.errstate(all="ignore"):
            result[index] = np.sum(dy * (high - low)) / (above - below)
    return result


def _largest(values: Array) -> float:
    """Largest absolute value, 0 where there is none; NaN if there is one."""
    return float(np.max(np.abs(values), initial=0.0))
