# The elementary functions of elementary_f32.h and elementary_f64.h under one name for both precisions. What each computes,
# and for which arguments, is said in the headers.

ctypedef fused real:
    float
    double

from libc.stdint cimport uint64_t

cdef extern from "elementary.h" nogil:
    float fma_f32(float a, float b, float c) noexcept
    float select_f32(bint condition, float a, float b) noexcept
    float abs_f32(float x) noexcept
    float with_sign_f32(float y, float x) noexcept
    float min_f32(float x, float bound) noexcept
    float max_f32(float x, float bound) noexcept
    float two_sum_f32(float a, float b, float* lo) noexcept
    float two_prod_f32(float a, float b, float* lo) noexcept
    float remainder_f32(float q, float d, float n) noexcept
    float scale_f32(float m, float k) noexcept
    float exp_parts2_f32(float x, float x_lo, float* lo, float* k) noexcept
    float expm1_parts_f32(float x, float* lo) noexcept
    float exp_inside_f32(float x) noexcept
    float expm1_domain_f32(float x) noexcept
    float above_low_three_f32(float x) noexcept
    float below_high_three_f32(float x) noexcept
    float within_zero_six_f32(float x) noexcept
    float below_softsign_end_f32(float x) noexcept
    float one_plus_f32(float a, float* lo) noexcept
    float tanh_f32(float x) noexcept
    float logistic_f32(float x, float sign) noexcept
    float exp_times_f32(float m, float x) noexcept
    float below_zero_f32(float x) noexcept
    float gelu_f32(float x) noexcept
    float gelu_slope_f32(float x) noexcept
    float softplus_f32(float x, float sign) noexcept
    double fma_f64(double a, double b, double c) noexcept
    double select_f64(bint condition, double a, double b) noexcept
    double abs_f64(double x) noexcept
    double with_sign_f64(double y, double x) noexcept
    double min_f64(double x, double bound) noexcept
    double max_f64(double x, double bound) noexcept
    double two_sum_f64(double a, double b, double* lo) noexcept
    double two_prod_f64(double a, double b, double* lo) noexcept
    double remainder_f64(double q, double d, double n) noexcept
    double scale_f64(double m, double k) noexcept
    double exp_parts2_f64(double x, double x_lo, double* lo, double* k) noexcept
    double expm1_parts_f64(double x, double* lo) noexcept
    double exp_inside_f64(double x) noexcept
    double expm1_domain_f64(double x) noexcept
    double above_low_three_f64(double x) noexcept
    double below_high_three_f64(double x) noexcept
    double within_zero_six_f64(double x) noexcept
    double below_softsign_end_f64(double x) noexcept
    double near_inverse_f64(double x) noexcept
    double one_plus_f64(double a, double* lo) noexcept
    double log1p_f64(double e) noexcept
    double logistic_f64(double x) noexcept
    double silu_f64(double x) noexcept
    double silu_slope_f64(double x) noexcept
    double gelu_f64(double x) noexcept
    double gelu_slope_f64(double x) noexcept
    double gelu_tanh_f64(double x) noexcept
    double gelu_tanh_slope_f64(double x) noexcept
    double mish_f64(double x) noexcept
    double mish_slope_f64(double x) noexcept
    double softplus_f64(double x, double beta) noexcept
    double softplus_one_f64(double x) noexcept
    double softplus_slope_f64(double x, double beta) noexcept
    double log_sigmoid_f64(double x) noexcept
    double log_sigmoid_slope_f64(double x) noexcept
    double exp_times_f64(double m, double x) noexcept
    double times_parts_f64(double m, double hi, double lo) noexcept
    double celu_below_f64(double x, double alpha) noexcept
    double celu_slope_below_f64(double x, double alpha) noexcept
    double tanh_f64(double x) noexcept

    const bint FN_HAS_FMA
    uint64_t bits_f64(double x) noexcept
    double from_bits_f64(uint64_t u) noexcept

    double exp_wide(double x) noexcept
    double expm1_wide(double x) noexcept
    double log1p_wide(double e) noexcept
    double exp_argument_wide(double x) noexcept
    float within_wide(float x) noexcept
    float gelu_wide(float x) noexcept
    float gelu_slope_wide(float x) noexcept
    float gelu_tanh_wide(float x) noexcept
    float gelu_tanh_slope_wide(float x) noexcept

cdef inline real fma(real a, real b, real c) noexcept nogil:
    if real is float:
        return fma_f32(a, b, c)
    else:
        return fma_f64(a, b, c)

cdef inline real select(bint condition, real a, real b) noexcept nogil:
    if real is float:
        return select_f32(condition, a, b)
    else:
        return select_f64(condition, a, b)

cdef inline real absolute(real x) noexcept nogil:
    if real is float:
        return abs_f32(x)
    else:
        return abs_f64(x)

cdef inline real with_sign(real y, real x) noexcept nogil:
    if real is float:
        return with_sign_f32(y, x)
    else:
        return with_sign_f64(y, x)

cdef inline real lower_of(real x, real bound) noexcept nogil:
    if real is float:
        return min_f32(x, bound)
    else:
        return min_f64(x, bound)

cdef inline real upper_of(real x, real bound) noexcept nogil:
    if real is float:
        return max_f32(x, bound)
    else:
        return max_f64(x, bound)

cdef inline real two_sum(real a, real b, real* lo) noexcept nogil:
    if real is float:
        return two_sum_f32(a, b, lo)
    else:
        return two_sum_f64(a, b, lo)

cdef inline real two_prod(real a, real b, real* lo) noexcept nogil:
    if real is float:
        return two_prod_f32(a, b, lo)
    else:
        return two_prod_f64(a, b, lo)

cdef inline real remainder(real q, real d, real n) noexcept nogil:
    if real is float:
        return remainder_f32(q, d, n)
    else:
        return remainder_f64(q, d, n)

cdef inline real scale(real m, real k) noexcept nogil:
    if real is float:
        return scale_f32(m, k)
    else:
        return scale_f64(m, k)

cdef inline real exp_parts2(real x, real x_lo, real* lo, real* k) noexcept nogil:
    if real is float:
        return exp_parts2_f32(x, x_lo, lo, k)
    else:
        return exp_parts2_f64(x, x_lo, lo, k)

cdef inline real exp_inside(real x) noexcept nogil:
    if real is float:
        return exp_inside_f32(x)
    else:
        return exp_inside_f64(x)

cdef inline real expm1_parts(real x, real* lo) noexcept nogil:
    if real is float:
        return expm1_parts_f32(x, lo)
    else:
        return expm1_parts_f64(x, lo)

cdef inline real expm1_domain(real x) noexcept nogil:
    if real is float:
        return expm1_domain_f32(x)
    else:
        return expm1_domain_f64(x)

cdef inline real above_low_three(real x) noexcept nogil:
    if real is float:
        return above_low_three_f32(x)
    else:
        return above_low_three_f64(x)

cdef inline real below_high_three(real x) noexcept nogil:
    if real is float:
        return below_high_three_f32(x)
    else:
        return below_high_three_f64(x)

cdef inline real within_zero_six(real x) noexcept nogil:
    if real is float:
        return within_zero_six_f32(x)
    else:
        return within_zero_six_f64(x)

cdef inline real below_softsign_end(real x) noexcept nogil:
    if real is float:
        return below_softsign_end_f32(x)
    else:
        return below_softsign_end_f64(x)

cdef inline real one_plus(real a, real* lo) noexcept nogil:
    if real is float:
        return one_plus_f32(a, lo)
    else:
        return one_plus_f64(a, lo)

# 1 / x or nearly; in float32 the division is the fastest on processors without AVX-512
cdef inline real near_inverse(real x) noexcept nogil:
    if real is float:
        return 1 / x
    else:
        return near_inverse_f64(x)

cdef inline real tanh(real x) noexcept nogil:
    if real is float:
        return tanh_f32(x)
    else:
        return tanh_f64(x)
