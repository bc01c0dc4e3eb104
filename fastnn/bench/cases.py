"""The one list of what is measured: operation, direction, shape, dtype and where the result goes.

``python -m fastnn bench`` and the pytest-benchmark suite in benchmarks/ both run over it. Elementwise activations
come from the table of fastnn._table; everything else has a row here. A public kernel without a row fails a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from fastnn._table import ACTIVATIONS
from fastnn.bench import steps

KI = 1024
MI = 1024 * 1024
Arrays = dict[str, Any]
Shape = tuple[int, ...]

ELEMENTS: tuple[Shape, ...] = ((1,), (1000,), (16 * KI,), (256 * KI,), (4 * MI,), (64 * MI,))
QUICK_ELEMENTS: tuple[Shape, ...] = ((1,), (16 * KI,), (MI,))
BATCHES: tuple[Shape, ...] = ((32, 64), (128, 256), (256, 1024), (4096, 512), (65536, 256))
IMAGES: tuple[Shape, ...] = ((16, 64, 8, 8), (32, 64, 56, 56), (8, 256, 14, 14), (700, 256, 7, 7), (64, 128, 28, 28))
SMALL_IMAGES: tuple[Shape, ...] = ((64, 256, 4, 4),)
ROWS: tuple[Shape, ...] = (
    (1, 10),
    (64, 10),
    (128, 1000),
    (4096, 1024),
    (1000, 10),
    (1000, 32),
    (1000, 100),
    (250000, 33),
)
NETWORKS: tuple[Shape, ...] = ((64, 100, 100, 10), (3072, 512, 512, 10))  # sizes of the layers
FEATURES: tuple[Shape, ...] = ((32, 64), (128, 768), (4096, 1024), (1000, 16), (131072, 64))

# Absolute tolerance of the check before timing, as a multiple of max(1, largest expected magnitude).
TOLERANCE = {"float16": 4e-3, "float32": 1e-4, "float64": 1e-7}


@dataclass(frozen=True)
class Op:
    """A benchmarked operation: a public function with fixed options, and its backward function if it has one."""

    name: str
    family: str
    kind: str  # which arrays it needs and how it is called: see _EXTRA and _arguments
    forward: str
    backward: str
    shapes: tuple[Shape, ...]
    quick: tuple[Shape, ...]
    saved: str = "x"
    options: tuple[tuple[str, Any], ...] = ()
    traffic: tuple[float, float] = (2, 3)  # arrays of the size of x read and written, forward and backward
    indices: float = 0  # and integers for each element of x

    @property
    def directions(self) -> tuple[str, ...]:
        return ("forward", "backward") if self.backward else ("forward",)


@dataclass(frozen=True)
class Case:
    """One cell of the comparison, apart from the number of threads."""

    op: Op
    direction: str
    shape: Shape
    dtype: str
    output: str = "out"  # "out": preallocated; "fresh": a new array each call; "inplace": written over the input

    @property
    def elements(self) -> int:
        """Elements of x; for a training step, the samples of its batch."""
        return steps.BATCH if self.op.kind == "step" else math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that must cross the memory bus at the very least."""
        arrays = np.dtype(self.dtype).itemsize * self.op.traffic[self.direction == "backward"]
        return round(self.elements * (arrays + np.dtype(np.intp).itemsize * self.op.indices))

    @property
    def label(self) -> str:
        return f"{self.op.name} {self.direction} {shape_label(self.shape)} {self.dtype} {self.output}"


@dataclass
class Call:
    """One thing to time: ``function(*args, **kwargs)``; ``collect`` turns its value into arrays to compare."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    collect: Callable[[Any], tuple[Any, ...]] = lambda value: value if isinstance(value, tuple) else (value,)
    fresh: bool = False  # the peer does not write into the given array: its time includes a new result


def shape_label(shape: Shape) -> str:
    """Sizes as people say them: 16Ki, 64Mi, 32x64x56x56."""
    if len(shape) > 1:
        return "x".join(map(str, shape))
    n = shape[0]
    for unit, suffix in ((MI, "Mi"), (KI, "Ki")):
        if n >= unit and n % unit == 0:
            return f"{n // unit}{suffix}"
    return str(n)


def _activation_ops() -> Iterator[Op]:
    for row in ACTIVATIONS:
        function = row.function
        yield Op(
            row.name,
            "activations",
            "map",
            function,
            function + "_backward",
            ELEMENTS,
            QUICK_ELEMENTS,
            row.saved,
            row.options,
        )


def _norm(name: str, kind: str, shapes: tuple[Shape, ...], function: str = "", **options: Any) -> Op:
    quick = tuple(shape for shape in shapes if math.prod(shape) <= MI)[:2]
    function = function or kind + "_norm"
    return Op(
        name, "normalization", kind, function, function + "_backward", shapes, quick, options=tuple(options.items())
    )


def channels_last(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    return tuple((n, *rest, c) for n, c, *rest in shapes)


OPS: tuple[Op, ...] = (
    *_activation_ops(),
    Op("softmax", "activations", "rows", "softmax", "softmax_backward", ROWS, ROWS[1:3], "y"),
    Op("log_softmax", "activations", "rows", "log_softmax", "log_softmax_backward", ROWS, ROWS[1:3], "y"),
    Op("cross_entropy", "activations", "cross_entropy", "cross_entropy", "", ROWS[1:], ROWS[1:3]),
    Op("prelu", "activations", "prelu", "prelu", "prelu_backward", (*BATCHES[:2], *IMAGES[:2]), BATCHES[:2]),
    Op(
        "maxout",
        "activations",
        "maxout",
        "maxout",
        "maxout_backward",
        BATCHES[:4],
        BATCHES[:2],
        traffic=(1.5, 1.5),
        indices=0.5,
    ),
    _norm("batch_norm", "batch", BATCHES + IMAGES),
    _norm("batch_norm_last", "batch", channels_last(IMAGES), axis=-1),
    _norm("batch_norm_relu", "batch", (BATCHES[0], BATCHES[3], *IMAGES[:2]), activation="relu"),
    Op(
        "batch_norm_inference",
        "normalization",
        "inference",
        "batch_norm_inference",
        "",
        BATCHES + IMAGES,
        (BATCHES[1], IMAGES[0]),
    ),
    Op(
        "batch_norm_inference_relu",
        "normalization",
        "inference",
        "batch_norm_inference",
        "",
        (BATCHES[4], IMAGES[1]),
        (BATCHES[1],),
        options=(("activation", "relu"),),
    ),
    _norm("layer_norm", "layer", FEATURES),
    _norm("rms_norm", "rms", FEATURES),
    _norm("group_norm", "group", IMAGES[:4] + SMALL_IMAGES, groups=32),
    _norm("instance_norm", "instance", IMAGES[:4] + SMALL_IMAGES),
    Op(
        "batch_stats",
        "normalization",
        "stats",
        "batch_stats",
        "",
        (BATCHES[3], IMAGES[1]),
        (IMAGES[0],),
        traffic=(1, 0),
    ),
    Op("training_step", "networks", "step", "training_step", "", NETWORKS, NETWORKS[:1], traffic=(0, 0)),
)
BY_NAME = {op.name: op for op in OPS}


def cases(
    quick: bool = False,
    only: list[str] | None = None,
    dtypes: tuple[str, ...] = ("float32", "float64"),
    outputs: tuple[str, ...] = ("out", "fresh"),
    largest: int | None = None,
) -> list[Case]:
    """The cells to measure. ``only`` keeps operations whose name or public function is listed."""
    wanted = [op for op in OPS if not only or op.name in only or op.forward in only or op.family in only]
    if only:
        known = {name for op in OPS for name in (op.name, op.forward, op.family)}
        unknown = [name for name in only if name not in known]
        if unknown:
            families = dict.fromkeys(op.family for op in OPS)
            raise ValueError(
                f"no benchmark is called {', '.join(unknown)}; there are the groups {', '.join(families)}, and "
                f"{', '.join(BY_NAME)}"
            )
    result = []
    for op in wanted:
        for direction in op.directions:
            for dtype in dtypes:
                for shape in op.quick if quick else op.shapes:
                    if largest and math.prod(shape) > largest:
                        continue
                    result += [
                        Case(op, direction, shape, dtype, output)
                        for output in outputs
                        if _makes_sense(op, shape, output, quick)
                    ]
    return result


def _makes_sense(op: Op, shape: Shape, output: str, quick: bool) -> bool:
    if output == "out":
        return True
    if op.kind != "map":
        return False
    if output == "inplace":  # a single call is timed, because the data must be reset: the clock needs something to see
        return math.prod(shape) >= 16 * KI
    return quick or math.prod(shape) == 1 or math.prod(shape) >= 4 * MI


# --- data -------------------------------------------------------------------------------------------------------------


def _fill(shape: Shape, dtype: str, seed: int) -> np.ndarray:
    """Normal values of scale 2. Large arrays repeat a block: drawing 64 Mi values takes longer than timing them."""
    block = np.random.default_rng(seed).normal(scale=2.0, size=min(math.prod(shape), MI + 17)).astype(dtype)
    return np.resize(block, shape) if math.prod(shape) > block.size else block.reshape(shape)


@cache
def _reference() -> ModuleType:
    import fastnn.reference

    return fastnn.reference


class DataCache:
    """Arrays for the case at hand. The ones that do not depend on the operation are kept while the shape stays."""

    def __init__(self) -> None:
        self._key: tuple[Shape, str] | None = None
        self._arrays: Arrays = {}

    def arrays(self, case: Case) -> Arrays:
        if self._key != (case.shape, case.dtype):
            self._key, self._arrays = (case.shape, case.dtype), {}
            if case.op.kind != "step":
                self._arrays["x"] = _fill(case.shape, case.dtype, 1)
        base = self._arrays
        if case.op.kind == "step":
            return steps.arrays(case.shape, case.dtype)
        if case.op.kind == "maxout":
            return _maxout_arrays(case, base["x"])
        if "out" not in base:
            base["out"] = np.ones(case.shape, case.dtype)  # written once, so that its pages exist
        data: Arrays = {"x": base["x"], "out": base["out"]}
        if case.direction == "backward":
            if "dy" not in base:
                base["dy"] = _fill(case.shape, case.dtype, 2)
            data["dy"] = base["dy"]
        data.update(_EXTRA[case.op.kind](case, data))
        if case.output == "inplace":
            overwritten = "dy" if case.direction == "backward" else "x"
            data["out"] = data[overwritten] = data[overwritten].copy()
        return data


def _saved_map(case: Case, data: Arrays) -> Arrays:
    if case.direction == "forward" or case.op.saved == "x":
        return {"saved": data["x"]}
    x = data["x"]
    head = x[: MI + 17]  # the block that the rest repeats
    y = np.asarray(getattr(_reference(), case.op.forward)(head, **dict(case.op.options)))
    return {"saved": np.resize(y, x.shape) if y.size < x.size else y}


def _rows_extra(case: Case, data: Arrays) -> Arrays:
    return {"saved": getattr(_reference(), case.op.forward)(data["x"])} if case.direction == "backward" else {}


def _maxout_arrays(case: Case, x: np.ndarray) -> Arrays:
    reduced = (case.shape[0], case.shape[1] // 2, *case.shape[2:])
    if case.direction == "forward":
        return {"x": x, "out": np.ones(reduced, case.dtype)}
    which = np.random.default_rng(3).integers(0, 2, reduced).astype(np.intp)
    return {"x": x, "dy": _fill(reduced, case.dtype, 2), "which": which, "out": np.ones(case.shape, case.dtype)}


def _cross_entropy_extra(case: Case, data: Arrays) -> Arrays:
    return {"labels": np.random.default_rng(3).integers(0, case.shape[1], case.shape[0])}


def _prelu_extra(case: Case, data: Arrays) -> Arrays:
    return {"slope": np.random.default_rng(3).uniform(0, 0.5, case.shape[1]).astype(case.dtype)}


def _affine(count: int, dtype: str) -> Arrays:
    rng = np.random.default_rng(3)
    return {"gamma": rng.uniform(0.5, 1.5, count).astype(dtype), "beta": rng.normal(size=count).astype(dtype)}


def norm_axis(case: Case) -> int:
    """The axis of x that gamma runs along."""
    default = -1 if case.op.kind in ("layer", "rms") else 1
    return dict(case.op.options).get("axis", default) % len(case.shape)


def _norm_extra(case: Case, data: Arrays) -> Arrays:
    extra = _affine(case.shape[norm_axis(case)], case.dtype)
    if case.op.kind == "rms":
        del extra["beta"]
    if case.direction == "backward":
        call = fastnn_call(_reference(), Case(case.op, "forward", case.shape, case.dtype), data | extra | {"out": None})
        extra["stats"] = call.function(*call.args, **call.kwargs)[1:]
    return extra


def _inference_extra(case: Case, data: Arrays) -> Arrays:
    rng = np.random.default_rng(4)
    extra = _affine(case.shape[1], case.dtype)
    extra["mean"] = rng.normal(size=case.shape[1]).astype(case.dtype)
    extra["var"] = rng.uniform(0.5, 2.0, case.shape[1]).astype(case.dtype)
    return extra


_EXTRA: dict[str, Callable[[Case, Arrays], Arrays]] = {
    "map": _saved_map,
    "rows": _rows_extra,
    "cross_entropy": _cross_entropy_extra,
    "prelu": _prelu_extra,
    "batch": _norm_extra,
    "inference": _inference_extra,
    "layer": _norm_extra,
    "rms": _norm_extra,
    "group": _norm_extra,
    "instance": _norm_extra,
    "stats": lambda case, data: {},
}


# --- calls ------------------------------------------------------------------------------------------------------------


def fastnn_call(module: ModuleType, case: Case, data: Arrays) -> Call:
    """How fastnn, or its NumPy twin, is called for this case."""
    if case.op.kind == "step":
        return Call(steps.fastnn_step(module, data))
    forward = case.direction == "forward"
    function = getattr(module, case.op.forward if forward else case.op.backward)
    kwargs = dict(case.op.options)
    if case.output != "fresh" and data.get("out") is not None and case.op.kind != "stats":
        kwargs["out"] = data["out"]
    args, keep = _arguments(case.op.kind, data, forward, kwargs)
    return Call(function, args, kwargs, lambda value: value[:keep] if isinstance(value, tuple) else (value,))


# Of every kind but normalizations: the arrays that forward and backward are given, and how many results are compared.
_ARGUMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {
    "map": (("x",), ("dy", "saved"), 1),
    "rows": (("x",), ("dy", "saved"), 1),
    "maxout": (("x",), ("dy", "which"), 1),
    "cross_entropy": (("x", "labels"), (), 2),
    "prelu": (("x", "slope"), ("dy", "x", "slope"), 2),
    "inference": (("x", "mean", "var", "gamma", "beta"), (), 1),
    "stats": (("x",), (), 2),
}


def _arguments(kind: str, data: Arrays, forward: bool, kwargs: Arrays) -> tuple[tuple, int]:
    """Positional arguments, and how many results are compared; of a normalization's options some go elsewhere."""
    if kind in _ARGUMENTS:
        *names, keep = _ARGUMENTS[kind]
        return tuple(data[name] for name in names[not forward]), keep
    groups = (kwargs.pop("groups"),) if "groups" in kwargs else ()
    affine = (data["gamma"], data["beta"]) if "beta" in data else (data["gamma"],)
    if forward:
        return (data["x"], *groups, *affine), 1
    if "activation" in kwargs:
        kwargs["beta"] = data["beta"]
    return (data["dy"], data["x"], *data["stats"], *groups, data["gamma"]), 3


class Expectation:
    """What the reference says, on a sample of positions where the operation is elementwise, on everything elsewhere."""

    def __init__(self, case: Case, data: Arrays) -> None:
        self.tolerance = TOLERANCE[case.dtype]
        self._kinked = "activation" in dict(case.op.options) and case.direction == "backward"
        self._sample: np.ndarray | None = None
        data = dict(data, out=None)
        if case.op.kind == "map" and case.elements > 4096:
            rng = np.random.default_rng(5)
            edges = np.r_[np.arange(64), np.arange(case.elements - 64, case.elements)]
            self._sample = np.r_[edges, rng.integers(0, case.elements, 4096)]
            data = {name: value[self._sample] if value is not None else None for name, value in data.items()}
        call = fastnn_call(_reference(), case, data)
        self.values = [np.asarray(v, np.float64) for v in call.collect(call.function(*call.args, **call.kwargs))]

    def error(self, results: tuple[Any, ...]) -> str:
        """Empty when the results agree, else what differs and by how much."""
        # an element within rounding of a fused activation's kink may fall on either side; so its channel's sums change
        allowed = 1e-5 * self.values[0].size if self._kinked else 0.0
        for position, (want, got) in enumerate(zip(self.values, results, strict=False)):
            got = np.asarray(got)
            if self._sample is not None:
                got = got.reshape(-1)[self._sample]
            if got.shape != want.shape:
                return f"result {position} has shape {got.shape}, expected {want.shape}"
            if want.size == 0:
                continue
            limit = self.tolerance * max(1.0, float(np.abs(want).max()))
            difference = np.abs(got.astype(np.float64) - want)
            worst = float(difference.max())
            wrong = int(np.count_nonzero(~(difference <= limit)))
            if wrong > allowed:
                return f"result {position} differs by {worst:.3g}, more than {limit:.3g}"
            allowed = wrong
        return ""
