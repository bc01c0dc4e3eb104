# Cython's view of kernels.h.

from libc.stdint cimport int64_t

cdef extern from "kernels.h" nogil:
    enum:
        FN_ROWS
        FN_MOST_PARAMS
        FN_PLAIN
        FN_RELU
        FN_LEAKY
        FN_SETS
        FN_COLUMNS
        FN_LONG_ROW
        FN_LANES
        FN_PANEL
        FN_FORWARD
        FN_BACKWARD
        FN_SINGLE
        FN_DOUBLE
        FN_SOFTMAX
        FN_LOG_SOFTMAX
        FN_CROSS_ENTROPY
        FN_ROW_FORM
        FN_COLUMN_FORM
        FN_ROWS_TOGETHER
        FN_SIDE_BYTES

    ctypedef const void* fn_in
    ctypedef void* fn_out
    ctypedef void (*fn_map)(fn_in a, fn_in b, fn_out y, Py_ssize_t n, const double* params) noexcept nogil
    ctypedef void (*fn_turns)(const void* a, const void* b, void* y, Py_ssize_t n, const double* params,
                              bint streamed, bint by_line) noexcept nogil

    ctypedef struct fn_rest:
        const Py_ssize_t* labels
        double* losses
        double samples
        Py_ssize_t ahead
        const char* coming[3]
    ctypedef void (*fn_rows)(fn_in a, Py_ssize_t a_step, fn_in b, Py_ssize_t b_step, fn_out y, Py_ssize_t y_step,
                             fn_out scratch, Py_ssize_t n, Py_ssize_t width, const fn_rest* rest) noexcept nogil

    ctypedef struct fn_slopes:
        const void* slopes
        Py_ssize_t inner
        Py_ssize_t count
        bint has_zero
        bint four_rows

    ctypedef struct fn_gathered:
        pass
    void fn_begin_gathered(fn_gathered* gathered, bint bursts) noexcept
    ctypedef struct fn_line:
        char bytes[192]
        bint open
        bint more
    int64_t fn_is_extreme(double factor, double reach) noexcept
    const double fn_zeros[FN_SETS]
    const double fn_ones[FN_SETS]
    ctypedef struct fn_sets:
        Py_ssize_t sets
        Py_ssize_t apart
        Py_ssize_t runs
        Py_ssize_t stride
        Py_ssize_t n
    bint fn_stays_near(const fn_sets* shape, Py_ssize_t itemsize) noexcept

    ctypedef struct fn_norm:
        void (*coefficients)(fn_in mean, fn_in invstd, fn_in gamma, fn_in beta, Py_ssize_t n, fn_out k,
                             Py_ssize_t width) noexcept nogil
        int64_t (*forms)(fn_in sums, fn_in products, fn_in squares, fn_in mean, fn_in invstd, fn_in gamma, fn_in k,
                         Py_ssize_t width, double count, bint centred, Py_ssize_t n, fn_out linear, fn_out gradients,
                         fn_out doubtful) noexcept nogil
        void (*sums)(fn_in x, const fn_sets* shape, fn_in shift, fn_out sums, fn_out squares) noexcept nogil
        void (*run_sums)(fn_in x, Py_ssize_t runs, Py_ssize_t n, Py_ssize_t ahead, fn_in shift, fn_out sums,
                         fn_out squares) noexcept nogil
        void (*apply)(fn_in x, fn_out y, const fn_sets* shape, fn_in k, Py_ssize_t width, int kind,
                      double slope) noexcept nogil
        void (*write)(fn_in x, fn_out y, Py_ssize_t sets, Py_ssize_t n, Py_ssize_t pieces, fn_in k, Py_ssize_t width,
                      Py_ssize_t coming, fn_in shift, fn_out totals, fn_out total_squares) noexcept nogil
        void (*stream)(fn_in x, fn_out y, Py_ssize_t n, fn_in k, Py_ssize_t width, int kind, double slope, fn_in gamma,
                       fn_in beta, fn_line* line, fn_in following, Py_ssize_t ahead, bint near, double shift,
                       double* total, double* total_squares) noexcept nogil
        void (*back_sums)(fn_in dy, fn_in x, const fn_sets* shape, fn_in k, Py_ssize_t width, int kind, double slope,
                          fn_out totals) noexcept nogil
        void (*back_apply)(fn_in dy, fn_in x, fn_out dx, const fn_sets* shape, fn_in linear, fn_in k, Py_ssize_t width,
                           int kind, double slope, bint streamed, Py_ssize_t ahead) noexcept nogil
        int64_t (*back_sets)(const void* dy, const void* x, void* dx, Py_ssize_t sets, Py_ssize_t channels, Py_ssize_t n,
                             const double* mean, const double* invstd, const double* gamma, bint moderate,
                             fn_gathered* gathered, double* dgamma, double* dbeta, double* squares, int64_t* doubtful) noexcept nogil
        void (*column_sums)(fn_in x, Py_ssize_t rows, Py_ssize_t stride, Py_ssize_t n, fn_in shift, fn_out sums,
                            fn_out squares) noexcept nogil
        void (*column_apply)(fn_in x, fn_out y, Py_ssize_t rows, Py_ssize_t stride, Py_ssize_t y_stride,
                             Py_ssize_t n, fn_in k, Py_ssize_t width, int kind, double slope) noexcept nogil
        void (*column_stream)(fn_in x, fn_out y, Py_ssize_t rows, Py_ssize_t n, fn_in k, Py_ssize_t width, int kind,
                              double slope) noexcept nogil
        void (*column_back_sums)(fn_in dy, fn_in x, Py_ssize_t rows, Py_ssize_t dy_stride, Py_ssize_t stride,
                                 Py_ssize_t n, fn_in k, Py_ssize_t width, int kind, double slope, fn_out sums,
                                 fn_out products, fn_out squares) noexcept nogil
        void (*column_back_apply)(fn_in dy, fn_in x, fn_out dx, Py_ssize_t rows, Py_ssize_t dy_stride,
                                  Py_ssize_t stride, Py_ssize_t dx_stride, Py_ssize_t n, fn_in linear, fn_in k,
                                  Py_ssize_t width, int kind, double slope) noexcept nogil
        void (*column_back_stream)(fn_in dy, fn_in x, fn_out dx, Py_ssize_t rows, Py_ssize_t n, fn_in linear, fn_in k,
                                   Py_ssize_t width, int kind, double slope) noexcept nogil
        void (*row_apply)(fn_in x, fn_out y, Py_ssize_t rows, Py_ssize_t n, fn_in k, Py_ssize_t width, fn_in gamma,
                          fn_in beta) noexcept nogil
        void (*row_write)(fn_in x, fn_out y, Py_ssize_t rows, Py_ssize_t n, fn_in k, Py_ssize_t width, fn_in gamma,
                          fn_in beta, Py_ssize_t coming, fn_in shift, fn_out totals, fn_out total_squares) noexcept nogil
        void (*row_back_sums)(fn_in dy, fn_in x, Py_ssize_t rows, Py_ssize_t n, fn_in gamma, fn_in k,
                              Py_ssize_t width, fn_in mean, fn_in invstd, fn_out totals, fn_out dgamma,
                              fn_out dbeta, Py_ssize_t ahead) noexcept nogil
        void (*row_back_apply)(fn_in dy, fn_in x, fn_out dx, Py_ssize_t rows, Py_ssize_t n, fn_in gamma,
                               fn_in linear, fn_in k, Py_ssize_t width, bint streamed, Py_ssize_t ahead) noexcept nogil
        void (*row_add)(fn_in gradients, fn_out sums, Py_ssize_t n) noexcept nogil
        void (*row_weigh)(fn_in dy, fn_out g, fn_in gamma, Py_ssize_t n) noexcept nogil
        void (*row_gradients)(fn_in dy, fn_in x, Py_ssize_t n, fn_in k, Py_ssize_t width, double mean, double invstd,
                              fn_out dgamma, fn_out dbeta) noexcept nogil
        void (*short_rows)(const void* x, void* y, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t together, const void* gamma,
                           const void* beta, Py_ssize_t weights, Py_ssize_t weight, double eps, bint centred,
                           fn_gathered* gathered, double* mean, double* invstd) noexcept nogil
        void (*short_rows_back)(const void* dy, const void* x, void* dx, Py_ssize_t rows, Py_ssize_t n, Py_ssize_t together,
                                const void* gamma, bint centred, const double* mean, const double* invstd, fn_gathered* gathered,
                                double* dgamma, double* dbeta) noexcept nogil

    ctypedef struct fn_bins:
        double first
        double last
        double width
        double density
        double low
        double high
        Py_ssize_t bins

    ctypedef struct fn_level:
        const char* name
        fn_map map[1][2][2]  # the first dimension is FN_ROWS
        fn_turns turns[1][2][2]
        fn_rows rows[2][3][2][2]
        void (*transpose[2])(fn_in x, Py_ssize_t x_step, fn_out y, Py_ssize_t y_step, Py_ssize_t rows,
                             Py_ssize_t columns) noexcept nogil
        void (*prelu[2][2])(fn_in x, const fn_slopes* slopes, fn_out y, Py_ssize_t first, Py_ssize_t n) noexcept nogil
        void (*prelu_backward[2][2])(fn_in dy, fn_in x, const fn_slopes* slopes, fn_out dx, fn_out sums, Py_ssize_t first,
                                     Py_ssize_t n) noexcept nogil
        void (*maxout_two[2])(fn_in a, fn_in b, Py_ssize_t step, fn_out best, fn_out which, Py_ssize_t n) noexcept nogil
        void (*maxout_more[2])(fn_in x, Py_ssize_t step, fn_out best, fn_out which, Py_ssize_t n,
                               Py_ssize_t number) noexcept nogil
        void (*maxout_two_backward[2])(fn_in dy, fn_in which, fn_out dx, Py_ssize_t n) noexcept nogil
        void (*maxout_backward[2])(fn_in dy, fn_in which, fn_out dx, Py_ssize_t step, Py_ssize_t piece,
                                   Py_ssize_t n, Py_ssize_t first, Py_ssize_t stop) noexcept nogil
        bint (*all_below)(fn_in indices, Py_ssize_t n, Py_ssize_t limit) noexcept nogil
        void (*half_to_single)(fn_in x, fn_out y, Py_ssize_t n) noexcept nogil
        void (*single_to_half)(fn_in x, fn_out y, Py_ssize_t n) noexcept nogil
        void (*move)(fn_in x, Py_ssize_t x_step, fn_out y, Py_ssize_t y_step, Py_ssize_t n, int itemsize, bint swapped) noexcept nogil
        void (*stream)(fn_out dst, fn_in src, Py_ssize_t bytes) noexcept nogil
        void* (*gather)(fn_gathered* gathered, void* y, Py_ssize_t nbytes) noexcept nogil
        void (*end_pieces)(fn_gathered* gathered, void* end) noexcept nogil
        void (*store_rest)(fn_gathered* gathered, void* end) noexcept nogil
        int64_t (*norm_finish)(fn_in sums, fn_in squares, fn_in shift, double count, double eps, Py_ssize_t n, fn_out mean,
                               fn_out var, fn_out invstd, fn_out doubtful) noexcept nogil
        void (*norm_invstd)(double* var, double eps, Py_ssize_t n) noexcept nogil
        void (*norm_short_sets)(double* x, Py_ssize_t n, const double* gamma, const double* beta, double eps, bint centred,
                                double* mean, double* invstd) noexcept nogil
        void (*norm_short_back)(double* dy, double* x, Py_ssize_t n, const double* gamma, bint centred, const double* mean,
                                const double* invstd, double* dgamma, double* dbeta) noexcept nogil
        void (*norm_widen)(fn_in x, fn_out y, Py_ssize_t n) noexcept nogil
        void (*norm_narrow)(fn_in x, fn_out y, Py_ssize_t n) noexcept nogil
        fn_norm norm[2]
        void (*moments[2])(fn_in x, Py_ssize_t rows, Py_ssize_t stride, Py_ssize_t n, fn_out state,
                           Py_ssize_t width) noexcept nogil
        void (*merge_states)(double n, fn_out state, Py_ssize_t width, double m, fn_in other, Py_ssize_t other_width,
                             Py_ssize_t columns) noexcept nogil
        void (*affine[2])(fn_in x, Py_ssize_t rows, Py_ssize_t stride, Py_ssize_t n, fn_in vectors, Py_ssize_t width,
                          fn_out y) noexcept nogil
        void (*finite_range[2])(fn_in x, Py_ssize_t n, double* lowest, double* highest) noexcept nogil
        int64_t (*count_bins[2])(fn_in x, Py_ssize_t n, const fn_bins* bins, int64_t* counts) noexcept nogil
        void (*mark_alive[2])(fn_in x, Py_ssize_t n, fn_out alive) noexcept nogil
