# Cython's view of kernels.h.

cdef extern from "kernels.h" nogil:
    enum:
        FN_ROWS
        FN_LANES
        FN_FORWARD
        FN_BACKWARD
        FN_SINGLE
        FN_DOUBLE
        FN_SOFTMAX
        FN_LOG_SOFTMAX

    ctypedef const void* fn_in
    ctypedef void* fn_out
    ctypedef void (*fn_map)(fn_in a, fn_in b, fn_out y, Py_ssize_t n, const double* params) noexcept nogil

    ctypedef void (*fn_map3)(fn_in a, fn_in b, fn_in c, fn_out y, Py_ssize_t n) noexcept nogil
    ctypedef void (*fn_row)(fn_in a, fn_in b, fn_out y, Py_ssize_t n) noexcept nogil
    ctypedef double (*fn_loss_row)(fn_in x, fn_out y, Py_ssize_t n, Py_ssize_t label, double share) noexcept nogil
    ctypedef double (*fn_sum_run)(fn_in x, Py_ssize_t n) noexcept nogil
    ctypedef void (*fn_add_run)(fn_in x, double* sums, Py_ssize_t n) noexcept nogil
    ctypedef void (*fn_piece)(fn_in x, fn_out result, fn_out which, Py_ssize_t n, Py_ssize_t number) noexcept nogil

    ctypedef struct fn_level:
        const char* name
        fn_map map[1][2][2]  # the first dimension is FN_ROWS
        fn_row rows[2][2][2]
        fn_loss_row loss[2]
        fn_map prelu[2]
        fn_map3 prelu_backward[2]
        fn_map prelu_dslope[2]
        fn_sum_run sum_run[2]
        fn_add_run add_run[2]
        fn_piece maxout[2]
        fn_piece maxout_backward[2]
        void (*half_to_single)(fn_in x, fn_out y, Py_ssize_t n) noexcept nogil
        void (*single_to_half)(fn_in x, fn_out y, Py_ssize_t n) noexcept nogil
        void (*stream)(fn_out dst, fn_in src, Py_ssize_t bytes) noexcept nogil
