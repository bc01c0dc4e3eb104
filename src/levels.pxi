# What every level_<name>.pyx includes: the vector loops of all families, and the struct that hands them to fastnn._core.
#
# Nothing here touches a Python object but the capsule at the end. The file is compiled once for each instruction-set
# level with the same source and the same arithmetic; see README.md in this folder.

from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from kernels cimport *

cdef extern from "cpu.h" nogil:
    bint fn_whole_vectors()

cdef extern from "transport.h" nogil:
    void fn_half_to_single(fn_in x, fn_out y, Py_ssize_t n) noexcept
    void fn_single_to_half(fn_in x, fn_out y, Py_ssize_t n) noexcept
    void fn_move(fn_in x, Py_ssize_t x_step, fn_out y, Py_ssize_t y_step, Py_ssize_t n, int itemsize, bint swapped) noexcept
    void fn_stream(fn_out dst, fn_in src, Py_ssize_t bytes) noexcept
    void fn_piece_begin(fn_line* line, void* y, const void* values, Py_ssize_t bytes) noexcept
    void fn_piece_lines(fn_line* line, void* y, Py_ssize_t bytes) noexcept
    void fn_piece_end(fn_line* line, void* end, const void* values, Py_ssize_t rest) noexcept
    void fn_stream_line(char* dst, const char* src) noexcept
    void fn_stream_block(fn_out dst, fn_in src, Py_ssize_t bytes) noexcept
    void* fn_gather(fn_gathered* gathered, void* y, Py_ssize_t nbytes) noexcept
    void fn_end_pieces(fn_gathered* gathered, void* end) noexcept
    void fn_store_rest(fn_gathered* gathered, void* end) noexcept
    void fn_transpose_32(fn_in x, Py_ssize_t x_step, fn_out y, Py_ssize_t y_step, Py_ssize_t rows,
                         Py_ssize_t columns) noexcept
    void fn_transpose_64(fn_in x, Py_ssize_t x_step, fn_out y, Py_ssize_t y_step, Py_ssize_t rows,
                         Py_ssize_t columns) noexcept
    void fn_fetch_nearest(bint best) noexcept
    void fn_prefetch(const void* address) noexcept
    void fn_prefetch_to(const void* address, bint nearest) noexcept
    void fn_fetch(const void* place, Py_ssize_t nbytes) noexcept
    void fn_fetch_near(const void* place, Py_ssize_t nbytes) noexcept
    bint fn_nearest_is_best
    void fn_end_turn(void* y, const void* turn, Py_ssize_t bytes, const void* a, const void* b, bint streamed,
                     bint nearest) noexcept

cdef fn_level level
level.name = LEVEL_NAME
fn_fetch_nearest(fn_whole_vectors())
level.half_to_single = fn_half_to_single
level.single_to_half = fn_single_to_half
level.move = fn_move
level.stream = fn_stream_block
level.gather = fn_gather
level.end_pieces = fn_end_pieces
level.store_rest = fn_store_rest
level.transpose[<int> FN_SINGLE] = fn_transpose_32
level.transpose[<int> FN_DOUBLE] = fn_transpose_64


cdef inline double total_of_eight(const double* s, Py_ssize_t step) noexcept nogil:
    """As fn_total_of_eight, of sums `step` apart, for loops over rows or sets, which gcc can make vectors of so."""
    return ((s[0] + s[4 * step]) + (s[2 * step] + s[6 * step])) + ((s[step] + s[5 * step]) + (s[3 * step] + s[7 * step]))


include "activation_loops.pxi"
include "activation_row_loops.pxi"
include "activation_column_loops.pxi"
include "activation_channel_loops.pxi"

include "normalization_loops.pxi"
include "preprocessing_loops.pxi"
include "diagnostics_loops.pxi"

PUBLISHED = PyCapsule_New(&level, "fastnn.level", NULL)
