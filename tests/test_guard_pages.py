"""No byte before or behind an array is read or written: the arrays lie against pages that must not be touched."""

import ctypes
import mmap
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import fastnn as fn

PAGE = mmap.PAGESIZE


class Guarded:
    """Pages for data with a forbidden page on either side."""

    def __init__(self, pages: int = 4) -> None:
        self.memory = mmap.mmap(-1, (pages + 2) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        mprotect = ctypes.CDLL(None, use_errno=True).mprotect
        mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for address in (start, start + (pages + 1) * PAGE):
            assert mprotect(address, PAGE, 0) == 0
        self.bytes = np.frombuffer(self.memory, np.uint8)[PAGE:-PAGE]

    def place(self, values: np.ndarray, at_end: bool) -> np.ndarray:
        """A copy of the values that starts or ends exactly at a forbidden page."""
        size = values.nbytes
        room = self.bytes[len(self.bytes) - size :] if at_end else self.bytes[:size]
        placed = room.view(values.dtype).reshape(values.shape)
        placed[...] = values
        return placed


def ones_at(room, dtype, at_end, shape):
    return room.place(np.ones(shape, dtype), at_end)


def normalize(x, dy, out, vector) -> None:
    """Every normalization over every axis; vector(shape) is a guarded gamma."""
    for axis in range(x.ndim):
        gamma = vector(x.shape[axis])
        for activation in (None, "relu", "silu"):
            fused = {"axis": axis, "activation": activation, "out": out}
            _, mean, invstd = fn.batch_norm(x, gamma, gamma, **fused)
            fn.batch_norm_backward(dy, x, mean, invstd, gamma, beta=gamma, **fused)
            fn.batch_norm_inference(x, mean, invstd, gamma, gamma, **fused)
        gamma = vector(x.shape[axis:])
        _, mean, invstd = fn.layer_norm(x, gamma, gamma, axis=axis, out=out)
        fn.layer_norm_backward(dy, x, mean, invstd, gamma, axis=axis, out=out)
        _, invrms = fn.rms_norm(x, gamma, axis=axis, out=out)
        fn.rms_norm_backward(dy, x, invrms, gamma, axis=axis, out=out)
    gamma = vector(x.shape[1])
    for groups in (1, x.shape[1]):
        _, mean, invstd = fn.group_norm(x, groups, gamma, gamma, out=out)
        fn.group_norm_backward(dy, x, mean, invstd, groups, gamma, out=out)
    fn.preprocessing.standardize(x.reshape(len(x), -1), out=out.reshape(len(x), -1))
    fn.diagnostics.activation_stats(x)


def main() -> None:
    """Run the kernels over guarded arrays; a forbidden access ends the process with a signal."""
    from cases import defaults

    x_room, dy_room, out_room, gamma_room = (Guarded() for _ in range(4))
    rng = np.random.default_rng(0)
    for level in fn.runtime.available_isas():
        with fn.runtime.use_isa(level):
            for dtype in (np.float16, np.float32, np.float64):
                for n in (1, 2, 15, 16, 17, 31, 33, 100, 257, 1025):
                    values = rng.normal(size=n).astype(dtype)
                    for at_end in (False, True):
                        x, dy = x_room.place(values, at_end), dy_room.place(values, at_end)
                        out = out_room.place(values, at_end)
                        for case in defaults():
                            case.forward(fn, x, out=out)
                            case.backward(fn, dy, x, out=out)
                        for stride in (2, 3, -1):
                            fn.sigmoid(x[::stride], out=out[: len(x[::stride])])
                            fn.sigmoid(x[: len(x[::stride])], out=out[::stride])
                        fn.softmax(x, out=out)
                        fn.softmax_backward(dy, x, out=out)
                        fn.log_softmax(x, out=out)
                        fn.log_softmax_backward(dy, x, out=out)
                        fn.prelu(x, x, axis=0, out=out)
                        fn.prelu_backward(dy, x, x, axis=0, out=out)
                for shape in ((3, 5), (7, 16), (16, 7), (33, 31)):
                    values = rng.normal(size=shape).astype(dtype)
                    for at_end in (False, True):
                        x, dy = x_room.place(values, at_end), dy_room.place(values, at_end)
                        out = out_room.place(values, at_end)
                        for axis in (0, 1):
                            fn.softmax(x, axis, out=out)
                            fn.softmax_backward(dy, x, axis, out=out)
                            slope = np.ones(shape[axis], dtype)
                            fn.prelu(x, slope, axis=axis, out=out)
                            fn.prelu_backward(dy, x, slope, axis=axis, out=out)
                            y, which = fn.maxout(x, shape[axis], axis)
                            fn.maxout_backward(y, which, shape[axis], axis, out=out)
                        fn.cross_entropy(x, np.zeros(shape[0], int), out=out)
                        fn.gelu(x.T, out=out.T)
                for shape in ((3, 5), (33, 31), (3, 513), (2, 8, 65), (3, 6, 5, 8), (2, 4, 7, 9)):
                    values = rng.normal(size=shape).astype(dtype)
                    for at_end in (False, True):
                        x, dy = x_room.place(values, at_end), dy_room.place(values, at_end)
                        out = out_room.place(values, at_end)
                        normalize(x, dy, out, partial(ones_at, gamma_room, dtype, at_end))
    print("fine")


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
def test_guard_pages_are_never_touched():
    folders = [str(Path(__file__).parent), str(Path(fn.__file__).parents[1])]
    script = f"import sys; sys.path[:0] = {folders!r}; import test_guard_pages; test_guard_pages.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "fine", (done.returncode, done.stderr)
