# The scalar pairs, one for each row of fastnn/_table.py: the function, and right below it its backward.
#
# They run inside vector loops, so there are no branches (select evaluates both sides), and every literal is typed: an
# untyped one would compute in double. Arguments and results of `expm1_parts` are explained in elementary_f32.h.

from elementary cimport (
    celu_below_f64, celu_slope_below_f64, exp_times_f64, gelu_f64, gelu_slope_f64, gelu_tanh_f64,
    gelu_tanh_slope_f64, log_sigmoid_f64, log_sigmoid_slope_f64, logistic_f64, mish_f64, mish_slope_f64, silu_f64,
    silu_slope_f64, softplus_f64, softplus_one_f64, softplus_slope_f64, times_parts_f64, abs_f64,
    exp_argument_wide, exp_wide, expm1_wide, gelu_slope_wide, gelu_tanh_slope_wide, gelu_tanh_wide, gelu_wide,
    log1p_wide, within_wide,
    below_zero_f32, exp_times_f32, gelu_f32, gelu_slope_f32, logistic_f32, softplus_f32,
    FN_HAS_FMA, real, above_low_three, absolute, below_high_three, below_softsign_end, expm1_domain,
    expm1_parts, fma, lower_of, near_inverse, one_plus, remainder, select, upper_of, with_sign, within_zero_six,
    tanh as elementary_tanh,
)

# dy times the derivative d, which is a number: NaN in saved gives NaN, and dy does not count where d is exactly 0.
cdef inline real selected(real dy, real saved, real d) noexcept nogil:
    return select(saved == saved, select(d == <real> 0, <real> 0, dy * d), saved)

# 1 / (1 + e^-x). Without fma float32 is fastest in double lanes, here and in tanh, silu, elu and selu; with fma it takes two
# steps, sigmoid_first_f32 and sigmoid_then_f32. So do other functions for which the table says so.
cdef inline real sigmoid(real x) noexcept nogil:
    if real is double:
        return logistic_f64(x)
    else:
        return <float> (1 / (1 + exp_wide(-within_wide(x))))

cdef inline real sigmoid_backward(real dy, real y) noexcept nogil:
    return dy * (y * (<real> 1 - y))

cdef inline real tanh(real x) noexcept nogil:
    cdef double e
    if real is double or FN_HAS_FMA:
        return elementary_tanh(x)
    else:
        e = expm1_wide(-2 * <double> absolute(within_wide(x)))
        return with_sign(<float> ((0 - e) / (2 + e)), x)

# Without fma 1 - y^2 would cancel near 1, the product is less exact near 0.
cdef inline real tanh_backward(real dy, real y) noexcept nogil:
    if FN_HAS_FMA:
        return dy * fma(-y, y, <real> 1)
    else:
        return dy * select(absolute(y) < <real> 0.5, <real> 1 - y * y, (<real> 1 - y) * (<real> 1 + y))

# max(x, 0)
cdef inline real relu(real x) noexcept nogil:
    return upper_of(x, <real> 0)

cdef inline real relu_backward(real dy, real saved) noexcept nogil:
    return select(saved <= <real> 0, <real> 0, select(saved > <real> 0, dy, saved))

# x where x > 0, else negative_slope * x; a slope of 0 makes it relu, at -inf too.
cdef inline real leaky_relu(real x, real negative_slope) noexcept nogil:
    return select(x > <real> 0, x, select(negative_slope == <real> 0, upper_of(x, <real> 0), x * negative_slope))

cdef inline real leaky_relu_backward(real dy, real x, real negative_slope) noexcept nogil:
    return select(x > <real> 0, dy, selected(dy, x, negative_slope))

# min(max(x, 0), 6)
cdef inline real relu6(real x) noexcept nogil:
    return within_zero_six(x)

cdef inline real relu6_backward(real dy, real x) noexcept nogil:
    return hardtanh_backward(dy, x, <real> 0, <real> 6)

# min(max(x, min_val), max_val)
cdef inline real hardtanh(real x, real min_val, real max_val) noexcept nogil:
    return lower_of(upper_of(x, min_val), max_val)

cdef inline real hardtanh_backward(real dy, real x, real min_val, real max_val) noexcept nogil:
    return select((x <= min_val) | (x >= max_val), <real> 0, select(x == x, dy, x))

# s - 6 * sixth. Both differences are exact, because sixth is close to s / 6.
cdef inline real sixth_remainder(real s, real sixth) noexcept nogil:
    if FN_HAS_FMA:
        return remainder(sixth, <real> 6, s)
    return (s - <real> 4 * sixth) - <real> 2 * sixth

# s / 6 but for a little more rounding, by 1/6 as high + low: a division takes twice the time
cdef inline real sixth_of(real s) noexcept nogil:
    cdef real low = s * <real> (-4.967053731282552e-09 if real is float else 9.25185853854297e-18), sixth
    if FN_HAS_FMA:
        return fma(s, <real> 0.16666666666666666, low)
    sixth = s * <real> 0.16666666666666666
    return sixth + sixth_remainder(s, sixth) * <real> 0.16666666666666666

# min(max(x + 3, 0), 6) / 6
cdef inline real hardsigmoid(real x) noexcept nogil:
    return sixth_of(below_high_three(above_low_three(x)) + <real> 3)

cdef inline real hardsigmoid_backward(real dy, real x) noexcept nogil:
    return hardtanh_backward(dy * <real> 0.16666666666666666, x, <real> -3, <real> 3)

# x * min(max(x + 3, 0), 6) / 6. The rounding error of x + 3 is carried along, and that of its sixth in float32, where it
# costs nothing, and without fma, where the last line rounds once more; both are 0 beyond 3.
cdef inline real hardswish(real x) noexcept nogil:
    cdef real above = above_low_three(x), inside = below_high_three(above), s = inside + <real> 3
    cdef real s_lo = (<real> 3 - s) + inside, sixth = s * <real> 0.16666666666666666  # s_lo is +0 beside -0
    if real is float or not FN_HAS_FMA:
        s_lo = sixth_remainder(s, sixth) + s_lo
    return fma(above, sixth, (inside * <real> 0.16666666666666666) * s_lo)

# The derivative (2 x + 3) / 6 has its zero at -3/2, near which 2 x + 3 is exact.
cdef inline real hardswish_backward(real dy, real x) noexcept nogil:
    cdef real slope = (x + x + <real> 3) * <real> 0.16666666666666666
    return select(x <= <real> -3, <real> 0, select(x >= <real> 3, dy, dy * slope))

# x where x > 0, else alpha * (e^x - 1)
cdef inline real elu(real x, real alpha) noexcept nogil:
    cdef real hi, lo
    if real is double:
        hi = expm1_parts(expm1_domain(x), &lo)
        return select(x < <real> 0, times_parts_f64(alpha, hi, lo), x)
    elif FN_HAS_FMA:
        hi = expm1_parts(expm1_domain(x), &lo)
        return select(x > <real> 0, x, select(x == <real> 0, alpha * x, fma(alpha, hi, alpha * lo)))
    else:
        return select(x > 0, x, select(x == 0, alpha * x, <float> (alpha * expm1_wide(within_wide(x)))))

cdef inline real elu_backward(real dy, real x, real alpha) noexcept nogil:
    if real is double:
        return dy * select(x > <real> 0, <real> 1, exp_times_f64(alpha, x))
    else:
        return dy * select(x > 0, 1, exp_times_f32(alpha, below_zero_f32(x)))

# x where x > 0, else alpha * (e^(x / alpha) - 1). A negative alpha makes x / alpha grow, and the exponential with it.
cdef inline real celu(real x, real alpha) noexcept nogil:
    if real is double:
        return select(x >= <real> 0, x, celu_below_f64(x, alpha))
    else:
        return select(x >= <real> 0, x, <float> (alpha * expm1_wide(exp_argument_wide(<double> x / alpha))))

cdef inline real celu_backward(real dy, real x, real alpha) noexcept nogil:
    if real is double:
        return dy * select(x >= <real> 0, <real> 1, celu_slope_below_f64(x, alpha))
    else:
        return dy * select(x >= <real> 0, <real> 1, <float> exp_wide(exp_argument_wide(<double> x / alpha)))

cdef inline real celu_at_defaults(real x) noexcept nogil:
    return elu(x, <real> 1)

cdef inline real celu_at_defaults_backward(real dy, real x) noexcept nogil:
    return elu_backward(dy, x, <real> 1)

# scale * (x where x > 0, else alpha * (e^x - 1)), alpha = 1.6732632423543772, scale = 1.0507009873554805; in float32
# both in two words
cdef inline real selu(real x) noexcept nogil:
    cdef real hi, lo, scale, scale_lo, product, product_lo, largest
    if real is double:
        hi = expm1_parts(expm1_domain(x), &lo)
        return select(x < <real> 0, times_parts_f64(1.7580993408473768, hi, lo), x * <real> 1.0507009873554805)
    largest = 3.4028234663852886e38
    scale, scale_lo = 1.0507010221481323, -3.479265231476347e-08
    product, product_lo = 1.7580993175506592, 2.3296717444054593e-08
    if not FN_HAS_FMA:
        return select(x > 0, <float> (x * 1.0507009873554805), select(x == 0, x, <float> (expm1_wide(within_wide(x)) * 1.7580993408473768)))
    hi = expm1_parts(expm1_domain(x), &lo)
    lo = fma(product, lo, product_lo * hi)
    lo = select(x > <real> 0, fma(scale, x, scale_lo * lower_of(x, largest)), fma(product, hi, lo))
    return select(x == <real> 0, x, lo)

cdef inline real selu_backward(real dy, real x) noexcept nogil:
    if real is double:
        return dy * select(x > <real> 0, <real> 1.0507009873554805, exp_times_f64(1.7580993408473768, x))
    else:
        return dy * select(x > 0, <real> 1.0507009873554805, exp_times_f32(1.7580993408473768, below_zero_f32(x)))

# x * Phi(x), Phi the normal distribution function
cdef inline real gelu(real x) noexcept nogil:
    if real is double:
        return gelu_f64(x)
    elif FN_HAS_FMA:
        return gelu_f32(x)
    else:
        return gelu_wide(x)

cdef inline real gelu_backward(real dy, real x) noexcept nogil:
    if real is double:
        return dy * gelu_slope_f64(x)
    elif FN_HAS_FMA:
        return dy * gelu_slope_f32(x)
    else:
        return dy * gelu_slope_wide(x)

# x / 2 * (1 + tanh(u)), u = sqrt(2 / pi) * (x + 0.044715 x^3)
cdef inline real gelu_tanh(real x) noexcept nogil:
    if real is double:
        return gelu_tanh_f64(x)
    else:
        return gelu_tanh_wide(x)

cdef inline real gelu_tanh_backward(real dy, real x) noexcept nogil:
    if real is float:
        return dy * gelu_tanh_slope_wide(x)
    else:
        return dy * gelu_tanh_slope_f64(x)

# x / (1 + e^-x)
cdef inline real silu(real x) noexcept nogil:
    if real is double:
        return silu_f64(x)
    else:
        return <float> (upper_of(x, -110) / (1 + exp_wide(-within_wide(x))))

# s (1 + x (1 - s)), s = 1 / (1 + e^-x)
cdef inline real silu_backward(real dy, real x) noexcept nogil:
    cdef double b, e, d
    if real is double:
        return dy * silu_slope_f64(x)
    else:
        b = within_wide(x)
        e = exp_wide(-b)
        d = 1 + e
        return dy * <float> (fma(b, e, d) / (d * d))

# x * tanh(log(1 + e^x)) = x n / (n + 2), n = e^x (e^x + 2)
cdef inline real mish(real x) noexcept nogil:
    cdef double e, n
    if real is double:
        return mish_f64(x)
    else:
        e = exp_wide(within_wide(x))
        n = e * (e + 2)
        return <float> (upper_of(x, -110) * n / (n + 2))

# n / (n + 2) + 4 x e (e + 1) / (n + 2)^2, e = e^x
cdef inline real mish_backward(real dy, real x) noexcept nogil:
    cdef double b, e, n, d
    if real is double:
        return dy * mish_slope_f64(x)
    else:
        b = within_wide(x)
        e = exp_wide(b)
        n = e * (e + 2)
        d = n + 2
        return dy * <float> (fma(n, d, 4 * b * (n - e)) / (d * d))

# x / (1 + |x|), the remainder of the first quotient in it
cdef inline real softsign(real x) noexcept nogil:
    cdef real a = below_softsign_end(absolute(x)), d_lo, d = one_plus(a, &d_lo), inverse = near_inverse(d), q = a * inverse
    return with_sign(fma(fma(-q, d_lo, remainder(q, d, a)), inverse, q), x)

# 1 / (1 + |x|)^2
cdef inline real softsign_backward(real dy, real x) noexcept nogil:
    cdef real a = below_softsign_end(absolute(x)), d_lo, d = one_plus(a, &d_lo), inverse = near_inverse(d), rest
    rest = fma(-inverse, d_lo, remainder(inverse, d, <real> 1))
    return dy * fma(inverse * inverse, rest + rest, inverse * inverse)

# -log(1 + e^-x)
cdef inline real log_sigmoid(real x) noexcept nogil:
    if real is double:
        return log_sigmoid_f64(x)
    else:
        return softplus_f32(x, -1)

cdef inline real log_sigmoid_backward(real dy, real x) noexcept nogil:
    if real is double:
        return dy * log_sigmoid_slope_f64(x)
    else:
        return dy * logistic_f32(x, -1)

# log(1 + e^(beta x)) / beta, without a threshold
cdef inline real softplus(real x, real beta) noexcept nogil:
    cdef double z
    if real is double:
        return softplus_f64(x, beta)
    else:
        z = exp_argument_wide(<double> x * beta)
        return <float> (<double> upper_of(x, 0) + log1p_wide(exp_wide(-abs_f64(z))) * (1 / <double> beta))

cdef inline real softplus_backward(real dy, real x, real beta) noexcept nogil:
    if real is double:
        return dy * softplus_slope_f64(x, beta)
    else:
        return dy * <float> (1 / (1 + exp_wide(exp_argument_wide(<double> x * -<double> beta))))

cdef inline real softplus_at_defaults(real x) noexcept nogil:
    if real is double:
        return softplus_one_f64(x)
    else:
        return softplus_f32(x, 1)

cdef inline real softplus_at_defaults_backward(real dy, real x) noexcept nogil:
    if real is double:
        return log_sigmoid_backward(dy, -x)
    else:
        return dy * logistic_f32(x, 1)
