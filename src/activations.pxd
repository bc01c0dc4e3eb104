# The scalar pairs, one for each row of fastnn/_table.py. First version: double arithmetic through libm for both dtypes.

from libc.math cimport erfc, exp, expm1, log1p, tanh as libm_tanh, fabs

ctypedef fused real:
    float
    double

cdef inline double logistic(double x) noexcept nogil:
    return 1.0 / (1.0 + exp(-x)) if x > 0 else exp(x) / (1.0 + exp(x))

cdef inline real sigmoid(real x) noexcept nogil:
    return <real> logistic(x)

cdef inline real sigmoid_backward(real dy, real y) noexcept nogil:
    return dy * (y * (<real> 1 - y))

cdef inline real tanh(real x) noexcept nogil:
    return <real> libm_tanh(x)

cdef inline real tanh_backward(real dy, real y) noexcept nogil:
    return dy * (<real> 1 - y * y)

cdef inline real relu(real x) noexcept nogil:
    return <real> 0 if x < <real> 0 else x

cdef inline real relu_backward(real dy, real y) noexcept nogil:
    return dy if y > <real> 0 else (y if y != y else <real> 0)

cdef inline real leaky_relu(real x, real negative_slope) noexcept nogil:
    return x if x > <real> 0 else x * negative_slope

cdef inline real leaky_relu_backward(real dy, real x, real negative_slope) noexcept nogil:
    return dy if x > <real> 0 else dy * negative_slope + (x - x)

cdef inline real relu6(real x) noexcept nogil:
    return hardtanh(x, 0, 6)

cdef inline real relu6_backward(real dy, real x) noexcept nogil:
    return hardtanh_backward(dy, x, 0, 6)

cdef inline real hardtanh(real x, real low, real high) noexcept nogil:
    return low if x < low else (high if x > high else x)

cdef inline real hardtanh_backward(real dy, real x, real low, real high) noexcept nogil:
    return x if x != x else (dy if low < x and x < high else <real> 0)

cdef inline real hardsigmoid(real x) noexcept nogil:
    return <real> (<double> 0 if x < -3 else (<double> 1 if x > 3 else (<double> x + 3) / 6))

cdef inline real hardsigmoid_backward(real dy, real x) noexcept nogil:
    return x if x != x else (dy / 6 if -3 < x and x < 3 else <real> 0)

cdef inline real hardswish(real x) noexcept nogil:
    return <real> (<double> 0 if x < -3 else (<double> x if x > 3 else <double> x * ((<double> x + 3) / 6)))

cdef inline real hardswish_backward(real dy, real x) noexcept nogil:
    return <real> 0 if x <= -3 else (dy if x >= 3 else dy * <real> ((2 * <double> x + 3) / 6))

cdef inline real elu(real x, real alpha) noexcept nogil:
    return x if x > 0 else <real> (alpha * expm1(x))

cdef inline real elu_backward(real dy, real x, real alpha) noexcept nogil:
    return dy if x > 0 else dy * <real> (alpha * exp(x))

cdef inline real celu(real x, real alpha) noexcept nogil:
    return x if x > 0 else <real> (alpha * expm1(<double> x / alpha))

cdef inline real celu_backward(real dy, real x, real alpha) noexcept nogil:
    return dy if x >= 0 else dy * <real> exp(<double> x / alpha)

cdef inline real selu(real x) noexcept nogil:
    return <real> (1.0507009873554805 * (<double> x if x > 0 else 1.6732632423543772 * expm1(x)))

cdef inline real selu_backward(real dy, real x) noexcept nogil:
    return dy * <real> (1.0507009873554805 * (<double> 1 if x > 0 else 1.6732632423543772 * exp(x)))

cdef inline real gelu(real x) noexcept nogil:
    return <real> (x * 0.5 * erfc(-x * 0.7071067811865476))

cdef inline real gelu_backward(real dy, real x) noexcept nogil:
    return dy * <real> (0.5 * erfc(-x * 0.7071067811865476) + x * 0.3989422804014327 * exp(-0.5 * x * x))

cdef inline real gelu_tanh(real x) noexcept nogil:
    return <real> (x * logistic(1.5957691216057308 * (x + 0.044715 * x * x * x)))

cdef inline real gelu_tanh_backward(real dy, real x) noexcept nogil:
    cdef double s = logistic(1.5957691216057308 * (x + 0.044715 * x * x * x))
    return dy * <real> (s + x * s * (1 - s) * 1.5957691216057308 * (1 + 0.134145 * x * x))

cdef inline real silu(real x) noexcept nogil:
    return <real> (x * logistic(x))

cdef inline real silu_backward(real dy, real x) noexcept nogil:
    cdef double s = logistic(x)
    return dy * <real> (s * (1 + x * (1 - s)))

cdef inline real mish(real x) noexcept nogil:
    return <real> (x * libm_tanh(log1p(exp(x))))

cdef inline real mish_backward(real dy, real x) noexcept nogil:
    cdef double t = libm_tanh(log1p(exp(x)))
    return dy * <real> (t + x * (1 - t * t) * logistic(x))

cdef inline real softsign(real x) noexcept nogil:
    return <real> (x / (1 + fabs(x)))

cdef inline real softsign_backward(real dy, real x) noexcept nogil:
    return dy * <real> (1 / ((1 + fabs(x)) * (1 + fabs(x))))

cdef inline real log_sigmoid(real x) noexcept nogil:
    return <real> ((<double> x if x < 0 else 0.0) - log1p(exp(-fabs(x))))

cdef inline real log_sigmoid_backward(real dy, real x) noexcept nogil:
    return dy * <real> logistic(-x)

cdef inline real softplus(real x, real beta) noexcept nogil:
    return <real> ((<double> x if x > 0 else 0.0) + log1p(exp(-fabs(<double> beta * x))) / beta)

cdef inline real softplus_backward(real dy, real x, real beta) noexcept nogil:
    return dy * <real> logistic(<double> beta * x)
