# Cython's view of kernels.h.

cdef extern from "kernels.h" nogil:
    enum:
        FN_ROWS
        FN_LANES
        FN_FORWARD
        FN_BACKWARD
        FN_SINGLE
        FN_DOUBLE

    ctypedef const void* fn_in
    ctypedef void* fn_out
    ctypedef void (*fn_map)(fn_in a, fn_in b, fn_out y, Py_ssize_t n, const double* params) noexcept nogil

    ctypedef struct fn_level:
        const char* name
        fn_map map[1][2][2]
        void (*half_to_single)(fn_in x, fn_out y, Py_ssize_t n) noexcept nogil
        void (*single_to_half)(fn_in x, fn_out y, Py_ssize_t n) noexcept nogil
        void (*stream)(fn_out dst, fn_in src, Py_ssize_t bytes) noexcept nogil
