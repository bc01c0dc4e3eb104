"""No byte before or behind an array is read or written: the arrays lie against pages that must not be touched."""

import ctypes
import mmap
import subprocess
import sys
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


def main() -> None:
    """Run every kernel over guarded arrays; a forbidden access ends the process with a signal."""
    from cases import defaults

    x_room, dy_room, out_room = Guarded(), Guarded(), Guarded()
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
    print("fine")


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect")
def test_guard_pages_are_never_touched():
    folders = [str(Path(__file__).parent), str(Path(fn.__file__).parents[1])]
    script = f"import sys; sys.path[:0] = {folders!r}; import test_guard_pages; test_guard_pages.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "fine", (done.returncode, done.stderr)
