"""oneDNN through its C API with ctypes: float32, primitives made once, execution timed.

It needs a build with OpenMP, by which its threads are set. The last of these with GNU's on PyPI is onednn-cpu-gomp,
oneDNN 3.2.0 of July 2023; newer releases may be faster. Batch normalization of images with their channels last is
timed in the better of that layout and oneDNN's own of 16 channels a block, into which arrays are converted beforehand.
A call costs some 0.3 microseconds more than from C++, which counts at one element and vanishes at a thousand.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from ctypes import POINTER, byref, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from fastnn.bench.cases import Arrays, Call, Case, norm_axis
from fastnn.bench.peers.base import Peer, fastest, is_map

F32, CPU, TRAINING, INFERENCE, BACKWARD = 3, 1, 64, 96, 128
GLOBAL_STATS, USE_SCALE, USE_SHIFT, FUSE_RELU = 1, 2, 4, 8
SRC, DST, WEIGHTS, MEAN, VARIANCE, SCALE, SHIFT, WORKSPACE = 1, 17, 33, 49, 50, 51, 52, 64
DIFF_SRC, DIFF_DST, DIFF_WEIGHTS, DIFF_SCALE, DIFF_SHIFT = 129, 145, 161, 255, 256
QUERY_WORKSPACE = 135
BLOCKED, BLOCK = 78, 16  # the format nChw16c
SOFTMAX, LOG_SOFTMAX = 0x30000, 0x30001

# algorithm, alpha, beta and, where backward is given the result, the algorithm that takes it
ELTWISE: dict[str, tuple[int, float, float, int]] = {
    "relu": (0x20, 0.0, 0.0, 0x100),
    "leaky_relu": (0x20, 0.01, 0.0, 0),
    "tanh": (0x21, 0.0, 0.0, 0x101),
    "elu": (0x22, 1.0, 0.0, 0),
    "celu": (0x22, 1.0, 0.0, 0),
    "softplus": (0x27, 1.0, 0.0, 0),
    "log_sigmoid": (0x27, -1.0, 0.0, 0),
    "hardsigmoid": (0x28, 1 / 6, 0.5, 0),
    "sigmoid": (0x29, 0.0, 0.0, 0x104),
    "gelu_tanh": (0x2B, 0.0, 0.0, 0),
    "silu": (0x2C, 1.0, 0.0, 0),
    "relu6": (0x2F, 0.0, 6.0, 0),
    "hardtanh": (0x2F, -1.0, 1.0, 0),
    "gelu": (0x31, 0.0, 0.0, 0),
    "mish": (0x33, 0.0, 0.0, 0),
    "hardswish": (0x34, 1 / 6, 0.5, 0),
}


class _Argument(ctypes.Structure):
    _fields_ = [("index", c_int), ("memory", c_void_p)]


class _Owned:
    """A handle of the library, destroyed with this object; keeps what it points to alive."""

    def __init__(self, handle: c_void_p, destroy: Any, keep: Any) -> None:
        self.handle, self._destroy, self.keep = handle, destroy, keep

    def __del__(self) -> None:
        self._destroy(self.handle)


class _Failed(Exception):
    """oneDNN has no such primitive, or refused it."""


class OneDNN(Peer):
    name = "onednn"

    def load(self) -> str:
        found = [path for base in (sys.prefix, sys.base_prefix) for path in Path(base, "lib").glob("libdnnl.so*")]
        library = str(found[0]) if found else ctypes.util.find_library("dnnl")
        if not library:
            raise ImportError("no libdnnl in this environment")
        self._lib = ctypes.CDLL(library)
        if not hasattr(self._lib, "omp_set_num_threads"):
            raise ImportError(
                f"{library} is built without OpenMP, so its threads cannot be set; onednn-cpu-gomp has it"
            )
        engine, stream = c_void_p(), c_void_p()
        self._check("dnnl_engine_create", byref(engine), c_int(CPU), c_size_t(0))
        self._check("dnnl_stream_create", byref(stream), engine, c_uint(1))
        self._engine, self._stream = engine, stream
        version = self._lib.dnnl_version
        version.restype = POINTER(c_int * 3)
        return ".".join(map(str, version().contents))

    def set_threads(self, count: int) -> None:
        # the OpenMP runtime that the library itself resolves; other packages may bring a second one
        self._lib.omp_set_num_threads(c_int(count))

    def _check(self, function: str, *args: Any) -> None:
        status = getattr(self._lib, function)(*args)
        if status != 0:
            raise _Failed(f"{function} returned status {status}")

    def _desc(self, shape: tuple[int, ...], strides: tuple[int, ...] | None = None) -> c_void_p:
        desc, rank = c_void_p(), len(shape)
        dims = (c_int64 * 12)(*shape)
        if strides is None:
            strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(rank))
        steps = (c_int64 * 12)(*strides)
        self._check("dnnl_memory_desc_create_with_strides", byref(desc), c_int(rank), dims, c_int(F32), steps)
        return desc

    def _memory(self, desc: Any, array: np.ndarray | None) -> _Owned:
        memory = c_void_p()
        # DNNL_MEMORY_ALLOCATE is -1: the library's own buffer, for workspaces
        handle = c_void_p(array.ctypes.data if array is not None else c_size_t(-1).value)
        self._check("dnnl_memory_create", byref(memory), desc, self._engine, handle)
        return _Owned(memory, self._lib.dnnl_memory_destroy, array)

    def _primitive(self, kind: str, *args: Any) -> c_void_p:
        """The description of a primitive."""
        pd = c_void_p()
        self._check(f"dnnl_{kind}_primitive_desc_create", byref(pd), self._engine, *args, None)
        return pd

    def _execute(self, pd: c_void_p, arguments: dict[int, _Owned], results: tuple[np.ndarray, ...]) -> Call:
        handle = c_void_p()
        self._check("dnnl_primitive_create", byref(handle), pd)
        primitive = _Owned(handle, self._lib.dnnl_primitive_destroy, dict(arguments))
        packed = (_Argument * len(arguments))(*[_Argument(i, memory.handle.value) for i, memory in arguments.items()])

        def collect(status: int, keep: _Owned = primitive) -> tuple[Any, ...]:
            return results if status == 0 else (np.array(np.nan),)

        args = (primitive.handle, self._stream, c_int(len(arguments)), packed)
        return Call(self._lib.dnnl_primitive_execute, args, {}, collect)

    def prepare(self, case: Case, data: Arrays) -> Call | None:
        if case.dtype != "float32" or case.output == "fresh":
            return None
        if is_map(case):
            return self._eltwise(case, data)
        maker = {
            "rows": self._softmax,
            "batch": self._batch,
            "inference": self._batch,
            "layer": self._layer,
            "prelu": self._prelu,
        }.get(case.op.kind)
        return maker(case, data) if maker else None

    def _eltwise(self, case: Case, data: Arrays) -> Call | None:
        if case.op.name not in ELTWISE:
            return None
        algorithm, alpha, beta, from_result = ELTWISE[case.op.name]
        scalars = (c_float(alpha), c_float(beta))
        desc, out = self._desc(case.shape), data["out"]
        kind = INFERENCE if case.direction == "forward" else TRAINING
        if case.direction == "backward" and case.op.saved == "y":
            algorithm = from_result
        forward = self._primitive("eltwise_forward", c_int(kind), c_int(algorithm), desc, desc, *scalars)
        if case.direction == "forward":
            arguments = {SRC: self._memory(desc, data["x"]), DST: self._memory(desc, out)}
            return self._execute(forward, arguments, (out,))
        backward = self._primitive("eltwise_backward", c_int(algorithm), desc, desc, desc, *scalars, forward)
        arguments = {
            DST if case.op.saved == "y" else SRC: self._memory(desc, data["saved"]),
            DIFF_DST: self._memory(desc, data["dy"]),
            DIFF_SRC: self._memory(desc, out),
        }
        return self._execute(backward, arguments, (out,))

    def _softmax(self, case: Case, data: Arrays) -> Call:
        algorithm = c_int(LOG_SOFTMAX if case.op.name == "log_softmax" else SOFTMAX)
        desc, out = self._desc(case.shape), data["out"]
        axis = c_int(len(case.shape) - 1)
        kind = INFERENCE if case.direction == "forward" else TRAINING
        forward = self._primitive("softmax_forward", c_int(kind), algorithm, desc, desc, axis)
        if case.direction == "forward":
            arguments = {SRC: self._memory(desc, data["x"]), DST: self._memory(desc, out)}
            return self._execute(forward, arguments, (out,))
        backward = self._primitive("softmax_backward", algorithm, desc, desc, desc, axis, forward)
        arguments = {
            DST: self._memory(desc, data["saved"]),
            DIFF_DST: self._memory(desc, data["dy"]),
            DIFF_SRC: self._memory(desc, out),
        }
        return self._execute(backward, arguments, (out,))

    def _prelu(self, case: Case, data: Arrays) -> Call:
        out, slope = data["out"], data["slope"]
        along = (1, slope.size, *([1] * (len(case.shape) - 2)))
        desc, weights = self._desc(case.shape), self._desc(along)
        kind = INFERENCE if case.direction == "forward" else TRAINING
        forward = self._primitive("prelu_forward", c_int(kind), desc, weights, desc)
        arguments = {SRC: self._memory(desc, data["x"]), WEIGHTS: self._memory(weights, slope)}
        if case.direction == "forward":
            return self._execute(forward, arguments | {DST: self._memory(desc, out)}, (out,))
        dslope = np.empty_like(slope)
        backward = self._primitive("prelu_backward", desc, weights, desc, weights, desc, forward)
        arguments |= {
            DIFF_DST: self._memory(desc, data["dy"]),
            DIFF_SRC: self._memory(desc, out),
            DIFF_WEIGHTS: self._memory(weights, dslope),
        }
        return self._execute(backward, arguments, (out, dslope))

    def _batch(self, case: Case, data: Arrays) -> Call:
        last, c = norm_axis(case) != 1, case.shape[norm_axis(case)]
        dims = list(case.shape)
        strides = [int(np.prod(case.shape[i + 1 :])) for i in range(len(dims))]
        if last:
            dims.insert(1, dims.pop())
            strides.insert(1, strides.pop())
        given = self._normalization(case, data, self._desc(tuple(dims), tuple(strides)))
        if not last or c % BLOCK:
            return given
        blocks = (*case.shape[:-1], c // BLOCK, BLOCK)
        own = {
            name: np.ascontiguousarray(np.moveaxis(data[name].reshape(blocks), -2, 1))
            for name in ("x", "dy", "out")
            if name in data
        }
        desc = c_void_p()
        sizes = (c_int64 * 12)(*dims)
        self._check(
            "dnnl_memory_desc_create_with_tag", byref(desc), c_int(len(dims)), sizes, c_int(F32), c_int(BLOCKED)
        )
        call = self._normalization(case, data | own, desc)
        collect = call.collect

        def reordered(status: int) -> tuple[Any, ...]:
            first, *others = collect(status)
            return (np.moveaxis(first, 1, -2).reshape(case.shape) if status == 0 else first, *others)

        call.collect = reordered
        return fastest(given, call)

    def _normalization(self, case: Case, data: Arrays, desc: c_void_p) -> Call:
        """Batch normalization of arrays in the layout that ``desc`` describes."""
        relu = dict(case.op.options).get("activation") == "relu"
        inference, back = case.op.kind == "inference", case.direction == "backward"
        flags = USE_SCALE | USE_SHIFT | (FUSE_RELU if relu else 0) | (GLOBAL_STATS if inference else 0)
        forward = self._primitive(
            "batch_normalization_forward",
            c_int(INFERENCE if inference else TRAINING),
            desc,
            desc,
            c_float(1e-5),
            c_uint(flags),
        )
        gamma, beta, out = data["gamma"], data["beta"], data["out"]
        stat = self._desc(gamma.shape)
        mean, variance = (data["mean"], data["var"]) if inference else (np.empty_like(gamma), np.empty_like(gamma))
        y = np.empty_like(data["x"]) if back else out
        arguments = {
            SRC: self._memory(desc, data["x"]),
            DST: self._memory(desc, y),
            MEAN: self._memory(stat, mean),
            VARIANCE: self._memory(stat, variance),
            SCALE: self._memory(stat, gamma),
            SHIFT: self._memory(stat, beta),
        }
        if relu and not inference:
            query = self._lib.dnnl_primitive_desc_query_md
            query.restype = c_void_p
            arguments[WORKSPACE] = self._memory(c_void_p(query(forward, c_int(QUERY_WORKSPACE), c_int(0))), None)
        call = self._execute(forward, arguments, (out,))
        if not back:
            return call
        call.function(*call.args)  # fills mean, variance and the workspace
        dgamma, dbeta = np.empty_like(gamma), np.empty_like(gamma)
        backward = self._primitive(
            "batch_normalization_backward", c_int(BACKWARD), desc, desc, desc, c_float(1e-5), c_uint(flags), forward
        )
        del arguments[DST], arguments[SHIFT]
        arguments |= {
            DIFF_DST: self._memory(desc, data["dy"]),
            DIFF_SRC: self._memory(desc, out),
            DIFF_SCALE: self._memory(stat, dgamma),
            DIFF_SHIFT: self._memory(stat, dbeta),
        }
        return self._execute(backward, arguments, (out, dgamma, dbeta))

    def _layer(self, case: Case, data: Arrays) -> Call:
        desc = self._desc(case.shape)
        stat, affine = self._desc(case.shape[:-1]), self._desc(case.shape[-1:])
        flags, eps = c_uint(USE_SCALE | USE_SHIFT), c_float(1e-5)
        forward = self._primitive("layer_normalization_forward", c_int(TRAINING), desc, desc, stat, eps, flags)
        gamma, beta, out = data["gamma"], data["beta"], data["out"]
        mean, variance = np.empty(case.shape[:-1], np.float32), np.empty(case.shape[:-1], np.float32)
        arguments = {
            SRC: self._memory(desc, data["x"]),
            MEAN: self._memory(stat, mean),
            VARIANCE: self._memory(stat, variance),
            SCALE: self._memory(affine, gamma),
        }
        outputs = {DST: self._memory(desc, out), SHIFT: self._memory(affine, beta)}
        call = self._execute(forward, arguments | outputs, (out,))
        if case.direction == "forward":
            return call
        call.function(*call.args)  # fills mean and variance
        dgamma, dbeta = np.empty_like(gamma), np.empty_like(gamma)
        backward = self._primitive(
            "layer_normalization_backward", c_int(BACKWARD), desc, desc, desc, stat, eps, flags, forward
        )
        arguments |= {
            SHIFT: outputs[SHIFT],
            DIFF_DST: self._memory(desc, data["dy"]),
            DIFF_SRC: self._memory(desc, out),
            DIFF_SCALE: self._memory(affine, dgamma),
            DIFF_SHIFT: self._memory(affine, dbeta),
        }
        return self._execute(backward, arguments, (out, dgamma, dbeta))
