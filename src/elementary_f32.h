/* Elementary functions in float32. Included by elementary.h, which says what they may be made of; src/fit.py makes the
   coefficients but those of softplus and tanh.

   exp is handed out in parts, e^x = (hi + lo) * 2^k to softmax, 2^k (1 + p) to sigmoid, silu and the others, which work on
   the parts and round and scale once at the end. k is a float that holds an integer: adding 1.5 * 2^23 puts it into the low
   bits. */

FN uint32_t bits_f32(float x) { uint32_t u; memcpy(&u, &x, sizeof u); return u; }
FN float from_bits_f32(uint32_t u) { float x; memcpy(&x, &u, sizeof x); return x; }

FN float fma_f32(float a, float b, float c) { return FN_FMAF(a, b, c); }
FN float select_f32(int condition, float a, float b) { return condition ? a : b; }
FN float abs_f32(float x)
{
#if defined(__GNUC__) || defined(__clang__)
    return __builtin_fabsf(x); /* on the bits, gcc would carry integers through the next select and miss its min */
#else
    return from_bits_f32(bits_f32(x) & UINT32_C(0x7fffffff));
#endif
}
/* y, which is not negative unless x is, with the sign of x */
FN float with_sign_f32(float y, float x)
{
#if defined(__AVX512F__)
    return __builtin_copysignf(y, x); /* one instruction there, one more than the other form elsewhere */
#else
    return from_bits_f32(bits_f32(y) | (bits_f32(x) & UINT32_C(0x80000000)));
#endif
}
/* NaN in x goes through; the bound must be a number */
FN float min_f32(float x, float bound) { return bound < x ? bound : x; }
FN float max_f32(float x, float bound) { return bound > x ? bound : x; }

/* a + b = sum + *lo exactly; the fast one needs |a| >= |b| or a = 0 */
FN float fast_two_sum_f32(float a, float b, float *lo)
{
    float sum = a + b;
    *lo = b - (sum - a);
    return sum;
}
FN float two_sum_f32(float a, float b, float *lo)
{
    float sum = a + b, shadow = sum - a;
    *lo = (a - (sum - shadow)) + (b - shadow);
    return sum;
}
/* a * b = product + *lo exactly, unless lo underflows or the product overflows. Without a hardware fma *lo is 0 where
   the product or half of a factor overflows */
FN float two_prod_f32(float a, float b, float *lo)
{
    float p = a * b;
#if FN_HAS_FMA
    *lo = FN_FMAF(a, b, -p);
#else
    /* halves of 12 bits, by rounding on the bits: only numbers within 2^-13 of the largest overflow */
    const uint32_t half = UINT32_C(1) << 11, mask = ~((UINT32_C(1) << 12) - 1);
    float ah = from_bits_f32((bits_f32(a) + half) & mask), bh = from_bits_f32((bits_f32(b) + half) & mask);
    float al = a - ah, bl = b - bh, error = ((ah * bh - p) + ah * bl + al * bh) + al * bl;
    *lo = select_f32(error == error, error, 0.0f);
#endif
    return p;
}
/* n - q * d, rounded once */
FN float remainder_f32(float q, float d, float n)
{
#if FN_HAS_FMA
    return FN_FMAF(-q, d, n);
#else
    float lo, product = two_prod_f32(q, d, &lo);
    return (n - product) - lo;
#endif
}

#define F32_MAGIC 0x1.8p23f

FN_BOUND(float, fn_zero_f32, 0.0f);
FN_BOUND(float, fn_minus_zero_f32, -0.0f); /* lets the sign of a zero beside it through a sum */
FN_BOUND(float, fn_expm1_low_f32, -40.0f);
FN_BOUND(float, fn_low_three_f32, -3.0f);
FN_BOUND(float, fn_high_three_f32, 3.0f);
FN_BOUND(float, fn_six_f32, 6.0f);
FN float expm1_domain_f32(float x) { return max_f32(x, fn_expm1_low_f32); }
FN float above_low_three_f32(float x) { return max_f32(x, fn_low_three_f32); }
FN float below_high_three_f32(float x) { return min_f32(x, fn_high_three_f32); }
FN float below_zero_f32(float x) { return min_f32(x, fn_zero_f32); }
FN float within_zero_six_f32(float x) { return min_f32(max_f32(x, 0.0f), fn_six_f32); }

/* m * 2^k for |k| <= 252; in two steps, so that k may go beyond the exponents a float has; rounds once, also to a subnormal */
FN float scale_f32(float m, float k)
{
    float t1 = k * 0.5f + (F32_MAGIC + 127), k1 = t1 - (F32_MAGIC + 127);
    float t2 = (k - k1) + (F32_MAGIC + 127);
    return m * from_bits_f32(bits_f32(t1) << 23) * from_bits_f32(bits_f32(t2) << 23);
}

/* x + x_lo = k * ln 2 + r + *r_lo, |r| <= ln(2)/2; x must be in +-174, or NaN. ln 2 is split so that k times its head is exact. */
FN float exp_reduce_f32(float x, float x_lo, float *r_lo, float *k)
{
    float n = FN_FMAF(x, 0x1.715476p+0f, F32_MAGIC) - F32_MAGIC;
    float head = FN_FMAF(-n, 0x1.62e4p-1f, x);
    float tail = FN_FMAF(-n, 0x1.7f7d1cp-20f, x_lo);
    *k = n;
    return fast_two_sum_f32(head, tail, r_lo);
}

/* (e^r - 1 - r) / r^2, |r| <= ln(2)/2 */
FN float exp_poly_f32(float r)
{
    float r2 = r * r;
    float p01 = FN_FMAF(0x1.555492p-3f, r, 0x1.fffffcp-2f), p23 = FN_FMAF(0x1.123984p-7f, r, 0x1.5558aap-5f);
    return FN_FMAF(FN_FMAF(0x1.6a53fep-10f, r2, p23), r2, p01);
}

/* e^(x + x_lo) = (hi + *lo) * 2^(*k); hi is returned, 0.7 to 1.42, and *lo is at most 0.07 hi. x is clamped where the scaled
   result is 0 or inf for any m near hi; x_lo then counts for nothing, so that the NaN of an inf - inf in it does no harm. */
FN float exp_parts2_f32(float x, float x_lo, float *lo, float *k)
{
    float inside = max_f32(min_f32(x, 174.0f), -174.0f), r, r_lo, hi, e;
    r = exp_reduce_f32(inside, select_f32(inside == x, x_lo, 0.0f), &r_lo, k);
    hi = fast_two_sum_f32(1.0f, r, &e);
    *lo = e + FN_FMAF(r_lo, hi, r * r * exp_poly_f32(r));
    return hi;
}

/* e^x for |x| <= 80, where no clamp, no second scaling and no low part are needed; under 1 ULP */
FN float exp_inside_f32(float x)
{
    float t = FN_FMAF(x, 0x1.715476p+0f, F32_MAGIC + 127), n = t - (F32_MAGIC + 127);
    float r = FN_FMAF(-n, 0x1.7f7d1cp-20f, FN_FMAF(-n, 0x1.62e4p-1f, x));
    return (FN_FMAF(r * r, exp_poly_f32(r), r) + 1.0f) * from_bits_f32(bits_f32(t) << 23);
}

/* (e^r - 1 - r) / r^2 as exp_poly, with an addition for a multiplication: they go to different units */
FN float exp_poly_sums_f32(float r, float r2)
{
    float upper = FN_FMAF(r2 + 0x1.e259dcp+4f, FN_FMAF(r, 0x1.6a53fep-10f, 0x1.123984p-7f), -0x1.5eb7f4p-4f);
    return FN_FMAF(r, upper, 0x1.fffffcp-2f);
}

/* x + lo = k ln 2 + r for |x| <= 300: r is returned, rounded, and *t has k + shift in its low bits, shift an integer.
   power_f32(t) is 2^(k + shift - 127). */
FN float exp_argument_f32(float x, float lo, float shift, float *t)
{
    const float magic = F32_MAGIC + shift;
    float k;
    *t = FN_FMAF(x, 0x1.715476p+0f, magic);
    k = *t - magic;
    return FN_FMAF(k, -0x1.7f7d1cp-20f, FN_FMAF(k, -0x1.62e4p-1f, x) + lo);
}
/* e^(x + lo) = 2^k (1 + p), k and *t as above: p is returned, |p| < 0.42. The error of p is up to 0.7 * 2^-24. */
FN float exp_fraction2_f32(float x, float lo, float shift, float *t)
{
    float r = exp_argument_f32(x, lo, shift, t), r2 = r * r;
    return FN_FMAF(r2, exp_poly_sums_f32(r, r2), r);
}
FN float exp_fraction_f32(float x, float shift, float *t) { return exp_fraction2_f32(x, -0.0f, shift, t); }
FN float power_f32(float t) { return from_bits_f32(bits_f32(t) << 23); }

FN_BOUND(float, fn_exp_times_low_f32, -200.0f);
/* m e^x for x <= 0, rounded once. 2^k is applied in halves, since it may lie below the exponents of a float; for a large m
   it even takes an m 2^24 times smaller. */
FN float exp_times_f32(float m, float x)
{
    const int large = abs_f32(m) > 1.0f;
    float t, p = exp_fraction_f32(max_f32(x, fn_exp_times_low_f32), select_f32(large, 24.0f, 0.0f), &t);
    int32_t k = (int32_t)(bits_f32(t) - bits_f32(F32_MAGIC)), half;
    k = k > -254 ? k : -254; /* there both halves are 0 */
    half = k >> 1;
    m = select_f32(large, m * 0x1p-24f, m);
    return FN_FMAF(m, p, m) * from_bits_f32((uint32_t)(half + 127) << 23) * from_bits_f32((uint32_t)(k - half + 127) << 23);
}

/* e^x - 1 = hi + *lo for -40 <= x <= 0. The reduced argument is exact down to k = -2, and its error counts for nothing beyond. */
FN float expm1_parts_f32(float x, float *lo)
{
    const float magic = F32_MAGIC + 127;
    float t = FN_FMAF(x, 0x1.715476p+0f, magic), k = t - magic, power = from_bits_f32(bits_f32(t) << 23);
    float r = FN_FMAF(k, -0x1.62e43p-1f, x), r2 = r * r, poly = exp_poly_sums_f32(r, r2);
    float p = FN_FMAF(r2, poly, r), p_lo = FN_FMAF(r2, poly, r - p), rest = power - 1.0f, hi = FN_FMAF(power, p, rest);
    *lo = FN_FMAF(power, p_lo, FN_FMAF(power, p, rest - hi));
    return hi;
}

/* -1 / x within 6 % for normal positive x up to 2^125, from the exponent and the leading bits. Good enough to turn a remainder
   into a correction. */
FN float minus_rough_inverse_f32(float x) { return from_bits_f32(UINT32_C(0xfef127ea) - bits_f32(x)); }

/* 1 / (1 + e^-x) and x / (1 + e^-x) divide by 2^-40 (1 + e^-x), which is finite where the first is subnormal. */
#define F32_LOGISTIC_SCALE 0x1p-40f
FN_BOUND(float, fn_sigmoid_low_f32, -105.0f);
FN_BOUND(float, fn_silu_low_f32, -115.0f);
FN_BOUND(float, fn_logistic_high_f32, 32.0f);

/* 2^-40 (1 + e^-z) = d + *lo for e^-z = 2^40 power (1 + p) */
FN float logistic_divisor_f32(float p, float power, float *lo)
{
    float d = FN_FMAF(power, p, power + F32_LOGISTIC_SCALE);
    *lo = FN_FMAF(power, p, (power - d) + F32_LOGISTIC_SCALE);
    return d;
}
/* The p and the power for -z = x + x_lo, x <= 115 */
FN float logistic_exp_f32(float x, float x_lo, float *power)
{
    float t, p = exp_fraction2_f32(x, x_lo, 127 - 40, &t);
    *power = power_f32(t);
    return p;
}
/* What to take from q, which is n / d rounded, for n / (d + lo), up to the factor 1 / d; with this sign a q of -0 keeps its own */
FN float too_much_f32(float q, float d, float lo, float n) { return FN_FMAF(q, lo, FN_FMAF(q, d, -n)); }

/* inside / (1 + e^-z); where `above` is larger it is that: what `inside` lacks is subtracted, +0 elsewhere, which keeps a result
   of -0. */
FN float logistic_product_f32(float above, float inside, float p, float power)
{
    float lacking = inside - above, lo, d = logistic_divisor_f32(p, power, &lo), q = inside / d;
    q = FN_FMAF(too_much_f32(q, d, lo, inside), minus_rough_inverse_f32(d), q);
    return FN_FMAF(q, F32_LOGISTIC_SCALE, -lacking);
}

/* 1 / (1 + e^-x) */
FN float sigmoid_first_f32(float x, float *power)
{
    return logistic_exp_f32(-min_f32(max_f32(x, fn_sigmoid_low_f32), fn_logistic_high_f32), -0.0f, power);
}
FN float sigmoid_then_f32(float x, float p, float power)
{
    float lo, d = logistic_divisor_f32(p, power, &lo), q = 1.0f / d;
    (void)x;
    return FN_FMAF(-q, too_much_f32(q, d, lo, 1.0f), q) * F32_LOGISTIC_SCALE;
}

/* x / (1 + e^-x); above 32 it is x */
FN float silu_first_f32(float x, float *power)
{
    return logistic_exp_f32(-min_f32(max_f32(x, fn_silu_low_f32), fn_logistic_high_f32), -0.0f, power);
}
FN float silu_then_f32(float x, float p, float power)
{
    float above = max_f32(x, fn_silu_low_f32);
    return logistic_product_f32(above, min_f32(above, fn_logistic_high_f32), p, power);
}

FN_BOUND(float, fn_silu_slope_end_f32, 110.0f); /* beyond, the derivative is 0 or 1 */
/* The derivative of silu: at -a, a = |x|, it is (1 - s) (1 - a s), s = 1 / (1 + e^-a), and at a what that lacks to 1. s is
   rounded, but as e^-a is 2^k (1 + p) with k <= 0, the products and differences from which `lacking`, 1 - s (1 + e^-a), is
   made are exact. Its square counts where e^-a is about 2^-24. 1 - s, 2^k and `lacking` are scaled, because e^-a may be
   subnormal. With the coefficients of exp_poly_sums the largest error would be 2.02 ULP, with these it is 1.98. */
FN float silu_slope_first_f32(float x, float *power)
{
    float a = min_f32(abs_f32(x), fn_silu_slope_end_f32);
    float t, r = exp_argument_f32(-a, -0.0f, 127 + 32, &t), r2 = r * r;
    float upper = FN_FMAF(r2 + 0x1.da5996p+4f, FN_FMAF(r, 0x1.70685p-10f, 0x1.12398p-7f), -0x1.4d93b8p-4f);
    *power = power_f32(t);
    return FN_FMAF(r2, FN_FMAF(r, upper, 0x1.000002p-1f), r);
}
FN float silu_slope_then_f32(float x, float p, float power)
{
    const float scale = 0x1p32f, back = 0x1p-32f;
    float a = min_f32(abs_f32(x), fn_silu_slope_end_f32);
    float s = 1.0f / FN_FMAF(FN_FMAF(power, p, power), back, 1.0f), rest = FN_FMAF(s, -scale, scale), share = s * power;
    float lacking = FN_FMAF(-share, p, rest - share), rest_lo = -s * lacking;
    float m = FN_FMAF(-a, s, 1.0f), m_lo = a * FN_FMAF(lacking, -2.0f * back, 1.0f - s);
    float slope = FN_FMAF(rest, m, FN_FMAF(rest_lo, m, rest_lo * m_lo));
    return select_f32(x > 0.0f, FN_FMAF(slope, -back, 1.0f), slope * back);
}

FN float quartic_f32(float x, float c0, float c1, float c2, float c3, float c4)
{
    return FN_FMAF(FN_FMAF(FN_FMAF(FN_FMAF(c4, x, c3), x, c2), x, c1), x, c0);
}

/* (v + v_lo) e^(-a^2 / 2) = result * *power * 2^-32. The exponential is carried as 1 + r + w and what these lack; power is
   scaled, because it may be subnormal. */
FN float times_gauss_f32(float a, float v, float v_lo, float *power)
{
    const float magic = F32_MAGIC + (127 + 32);
    float z_lo, z = two_prod_f32(a, a * -0.5f, &z_lo), t = FN_FMAF(z, 0x1.715476p+0f, magic), k = t - magic;
    float r = FN_FMAF(k, -0x1.62e43p-1f, z), r_lo = FN_FMAF(k, 0x1.05c61p-29f, z_lo), r2 = r * r;
    float w = r2 * exp_poly_sums_f32(r, r2), lacking = FN_FMAF(v, r_lo, v_lo);
    *power = power_f32(t);
    return v + FN_FMAF(v, r, FN_FMAF(v, w, FN_FMAF(lacking, r + w, lacking)));
}

FN_BOUND(float, fn_gelu_end_f32, 14.45f); /* beyond, e^(-a^2 / 2) is 0 */
/* x Phi(x) = max(x, 0) - a Phi(-a), a = |x|. Twice Phi(-a) e^(a^2 / 2) is q = below / (below + a (below + above)), a quotient of
   quartics in a. What its rounding and the divisor's took from it is q (1 + a) - 1 + q a above / below: above is small beside
   below, so that its errors count for little. 1.4 ULP */
FN float gelu_f32(float x)
{
    float a = min_f32(abs_f32(x), fn_gelu_end_f32), power, tail;
    float above = quartic_f32(a, -0x1.5d4144p-2f, -0x1.19799cp-4f, 0x1.2c6a9p-5f, 0x1.565754p-6f, 0x1.ce7a4cp-9f);
    float below = quartic_f32(a, 0x1.bp+0f, 0x1.7b0ab8p+0f, 0x1.3d1de6p-1f, 0x1.197762p-3f, 0x1.c873bp-7f);
    float q = below / FN_FMAF(a, above + below, below), v = q * a, v_lo = FN_FMAF(q, a, -v);
    float too_much = FN_FMAF(below, FN_FMAF(q, a, -1.0f) + q, v * above);
    tail = times_gauss_f32(a, v, FN_FMAF(too_much * v, minus_rough_inverse_f32(below), v_lo), &power);
    return FN_FMAF(tail * power, -0x1p-33f, max_f32(x, fn_minus_zero_f32));
}

FN_BOUND(float, fn_gelu_slope_end_f32, 14.6f); /* beyond, the derivative is 0 or 1 */
/* The derivative of gelu: at -a, a = |x|, it is (zero - a) y e^(-a^2 / 2), where y falls from 0.67 to 0.4 and is 29/64 and a
   fraction; at a it is what that lacks to 1. 1.9 ULP */
FN float gelu_slope_f32(float x)
{
    const float zero = 0x1.80ead2p-1f, zero_lo = -0x1.a03fd4p-27f, scale = 0x1p-32f, middle = 0.453125f * scale;
    float a = min_f32(abs_f32(x), fn_gelu_slope_end_f32), power, tail;
    float above = quartic_f32(a, 0x1.7bd1dcp-2f * scale, 0x1.ad638ep-3f * scale, 0x1.0a0bbp-5f * scale, -0x1.d4b8fap-8f * scale,
                              -0x1.44d9a6p-9f * scale);
    float below = quartic_f32(a, 0x1.cp+0f, 0x1.394f82p+1f, 0x1.634706p+0f, 0x1.8a5bfap-2f, 0x1.76bb4ep-5f);
    float fraction = above / below, y = fraction + middle, y_lo = fraction - (y - middle);
    float f = zero - a, v = f * y, v_lo = FN_FMAF(f, y_lo, FN_FMAF(zero_lo, y, FN_FMAF(f, y, -v)));
    tail = times_gauss_f32(a, v, v_lo, &power);
    return select_f32(x > 0.0f, FN_FMAF(tail, -power, 1.0f), tail * power);
}

FN_BOUND(float, fn_gelu_tanh_low_f32, -11.0f);
FN_BOUND(float, fn_gelu_tanh_high_f32, 8.0f);
/* x / (1 + e^-z), z = sqrt(8 / pi) (x + 0.044715 x^3) in two parts; above 8 it is x. `linear` has so few digits that
   linear - factor is exact. 1.3 ULP */
FN float gelu_tanh_first_f32(float x, float *power)
{
    float inside = min_f32(max_f32(x, fn_gelu_tanh_low_f32), fn_gelu_tanh_high_f32);
    const float linear = 0x1.98845p+0f, cubic = 0x1.2444f2p-4f;
    float square_lo, square = two_prod_f32(inside, inside, &square_lo);
    float factor = FN_FMAF(square, cubic, linear), factor_lo = FN_FMAF(square, cubic, linear - factor);
    float z_lo, z = two_prod_f32(inside, factor, &z_lo);
    factor_lo += FN_FMAF(square_lo, cubic, FN_FMAF(square, 0x1.49b16ap-29f, 0x1.9ea1b2p-23f));
    return logistic_exp_f32(-z, -FN_FMAF(inside, factor_lo, z_lo), power);
}
FN float gelu_tanh_then_f32(float x, float p, float power)
{
    float above = max_f32(x, fn_gelu_tanh_low_f32);
    return logistic_product_f32(above, min_f32(above, fn_gelu_tanh_high_f32), p, power);
}

FN_BOUND(float, fn_falling_low_f32, -32.0f);
FN_BOUND(float, fn_falling_high_f32, 105.0f);
/* 1 / (1 + e^(-sign x)), sign = 1 or -1, for gradients: 1.7 ULP, two thirds of sigmoid's time. What the sum of power and 1
   rounds off is added with the fraction. */
FN float logistic_f32(float x, const float sign)
{
    float inside = sign > 0 ? min_f32(max_f32(x, fn_sigmoid_low_f32), fn_logistic_high_f32)
                            : min_f32(max_f32(x, fn_falling_low_f32), fn_falling_high_f32);
    float t, p = exp_fraction_f32(-sign * inside, 127 - 40, &t);
    float power = power_f32(t), sum = power + F32_LOGISTIC_SCALE, lost = (power - sum) + F32_LOGISTIC_SCALE;
    return F32_LOGISTIC_SCALE / (sum + FN_FMAF(power, p, lost));
}

FN_BOUND(float, fn_softplus_low_f32, -108.0f);
FN_BOUND(float, fn_softplus_high_f32, 108.0f);
/* sign * log(1 + e^(sign x)), sign = 1 or -1: softplus, and log_sigmoid. For |x| < 1 it is sign * log(2) + x / 2 and an even
   function; beyond, sign * max(sign x, 0) + sign * log(1 + z), z = e^-|x|, where log(1 + z) = z + z^2 (polynomial) and z comes
   in two parts: a power and the rest. z is scaled, so that nothing underflows. */
FN float softplus_f32(float x, const float sign)
{
    float inside = min_f32(max_f32(x, fn_softplus_low_f32), fn_softplus_high_f32), a = abs_f32(inside);
    float t, p = exp_fraction_f32(-a, 127 + 32, &t), power = power_f32(t);
    float u = power * p, z = power + u, y = z * 0x1p-32f, x2 = x * x;
    float far = FN_FMAF(FN_FMAF(FN_FMAF(0x1.b52a5ep-5f, y, -0x1.0c769p-3f), y, 0x1.89afaap-3f), y, -0x1.fe2904p-3f);
    float near = FN_FMAF(FN_FMAF(FN_FMAF(0x1.cb8a68p-20f, x2, -0x1.b38aep-16f), x2, 0x1.6bed3ep-12f), x2, -0x1.5554fap-8f);
    float rest = FN_FMAF(z * y, FN_FMAF(FN_FMAF(far, y, 0x1.554888p-2f), y, -0x1.ffffc4p-2f), u);
    float beyond = sign > 0 ? max_f32(inside, fn_zero_f32) : below_zero_f32(inside);
    float lo, sum = fast_two_sum_f32(beyond, power * (sign * 0x1p-32f), &lo);
    far = sum + FN_FMAF(rest, sign * 0x1p-32f, lo);
    far = sign > 0 ? max_f32(far, x) : min_f32(far, x);
    near = sign * 0x1.62e43p-1f + FN_FMAF(x, 0.5f, FN_FMAF(sign * x2, FN_FMAF(near, x2, 0x1p-3f), sign * -0x1.05c61p-29f));
    far = select_f32(a < 1.0f, near, far);
    return sign > 0 ? far : with_sign_f32(far, sign); /* +0 may be below 0 */
}

FN_BOUND(float, fn_mish_low_f32, -110.0f);
/* x n / (n + 1), n = e + e^2 / 2, e = e^x, which are scaled so that nothing underflows; above 32 it is x. 1.5 ULP */
FN float mish_first_f32(float x, float *power)
{
    float t, p = exp_fraction_f32(min_f32(max_f32(x, fn_mish_low_f32), fn_logistic_high_f32), 127 + 32, &t);
    *power = power_f32(t);
    return p;
}
FN float mish_then_f32(float x, float p, float power)
{
    float above = max_f32(x, fn_mish_low_f32), inside = min_f32(above, fn_logistic_high_f32), lacking = inside - above;
    float u = power * p, e = power + u, lo, n = fast_two_sum_f32(power, FN_FMAF(e * 0x1p-33f, e, u), &lo);
    float m = n * 0x1p-32f, d = m + 1.0f, q = n / d, inverse = minus_rough_inverse_f32(d);
    float too_much = FN_FMAF(lo, inverse, FN_FMAF(q, m, q - n));
    return with_sign_f32(FN_FMAF(FN_FMAF(inside, q, inside * (too_much * inverse)), 0x1p-32f, -lacking), x);
}

FN_BOUND(float, fn_tanh_high_f32, 10.0f);

/* odd, exactly; never beyond 1 */
FN float tanh_f32(float x)
{
    /* |x| = h + m ln(2)/2, s = 2^-m: tanh = (A + B T) / (B + A T), A = 1 - s, B = 1 + s, T = tanh(h). Written as
       A^2 + (A - A^2 B + (B - A^3) T) / (B + A T) the quotient is small beside A^2, and so are its errors; at m = 0 it is T.
       A is made from B, because their ratio counts where 1 + s rounds. */
    float a = min_f32(abs_f32(x), fn_tanh_high_f32);
    float t = FN_FMAF(a, -0x1.715476p+1f, F32_MAGIC + 127), k = t - (F32_MAGIC + 127), s = from_bits_f32(bits_f32(t) << 23);
    float h = FN_FMAF(k, 0x1.62e43p-2f, a), h2 = h * h;
    /* T = h + w; what the rounding of ln(2)/2 takes from h is a twentieth of an ULP at most */
    float w = h2 * h * FN_FMAF(FN_FMAF(-0x1.be571ep-5f, h2, 0x1.111daep-3f), h2, -0x1.555552p-2f);
    float B = 1.0f + s, A = FN_FMAF(-2.0f, s, B), square = A * A, slope = FN_FMAF(-A, square, B), level = FN_FMAF(-B, square, A);
    float n = FN_FMAF(slope, h, FN_FMAF(slope, w, level));
    return with_sign_f32(square + n / FN_FMAF(A, h + w, B), x);
}

FN_BOUND(float, fn_one_f32, 1.0f);
FN_BOUND(float, fn_softsign_end_f32, 0x1p80f); /* above, 1 / (1 + x) counts for nothing, nor does its square */
FN float below_softsign_end_f32(float x) { return min_f32(x, fn_softsign_end_f32); }

/* 1 + a = sum + *lo, a >= 0 */
FN float one_plus_f32(float a, float *lo)
{
    return fast_two_sum_f32(max_f32(a, fn_one_f32), min_f32(a, fn_one_f32), lo);
}
