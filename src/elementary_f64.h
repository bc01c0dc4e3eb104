/* Elementary functions in float64. Included by elementary.h, which says what they may be made of; src/fit.py makes the
   coefficients.

   Every exponential is reduced to e^x = 2^k (1 + p), p = e^r - 1 with |r| <= ln(2)/2, and the functions work on p and
   2^k: 1 + 2^k (1 + p) = (1 + 2^k) + 2^k p, say, is rounded once. k is a double that holds an integer: AVX2 has no
   conversion between double and int64, but adding 1.5 * 2^52 puts an integer into the low bits.

   Functions that rise do so between neighbours too because their results are monotone operations, rounded, on monotone
   operands: a small correction to a large part is rounded so finely that it never undoes a step of the large one. */

#define F64_SIGN UINT64_C(0x8000000000000000)

FN uint64_t bits_f64(double x) { uint64_t u; memcpy(&u, &x, sizeof u); return u; }
FN double from_bits_f64(uint64_t u) { double x; memcpy(&x, &u, sizeof x); return x; }

FN double fma_f64(double a, double b, double c) { return FN_FMA(a, b, c); }
FN double select_f64(int condition, double a, double b) { return condition ? a : b; }
FN double abs_f64(double x) { return __builtin_fabs(x); }
FN double with_sign_f64(double y, double x) { return from_bits_f64(bits_f64(y) | (bits_f64(x) & F64_SIGN)); }
/* NaN in x goes through; the bound must be a number */
FN double min_f64(double x, double bound) { return bound < x ? bound : x; }
FN double max_f64(double x, double bound) { return bound > x ? bound : x; }

/* a + b = sum + *lo exactly; the fast one needs |a| >= |b| or a = 0 */
FN double fast_two_sum_f64(double a, double b, double *lo)
{
    double sum = a + b;
    *lo = b - (sum - a);
    return sum;
}
FN double two_sum_f64(double a, double b, double *lo)
{
    double sum = a + b, shadow = sum - a;
    *lo = (a - (sum - shadow)) + (b - shadow);
    return sum;
}
/* a * b = product + *lo exactly, unless lo underflows or the product overflows. Without a hardware fma *lo is 0 where
   the product or half of a factor overflows */
FN double two_prod_f64(double a, double b, double *lo)
{
    double p = a * b;
#if FN_HAS_FMA
    *lo = FN_FMA(a, b, -p);
#else
    /* halves of 26 bits, by rounding on the bits: only numbers within 2^-27 of the largest overflow */
    const uint64_t half = UINT64_C(1) << 26, mask = ~((UINT64_C(1) << 27) - 1);
    double ah = from_bits_f64((bits_f64(a) + half) & mask), bh = from_bits_f64((bits_f64(b) + half) & mask);
    double al = a - ah, bl = b - bh, error = ((ah * bh - p) + ah * bl + al * bh) + al * bl;
    *lo = select_f64(error == error, error, 0.0);
#endif
    return p;
}

/* n - q * d, rounded once */
FN double remainder_f64(double q, double d, double n)
{
#if FN_HAS_FMA
    return FN_FMA(-q, d, n);
#else
    double lo, product = two_prod_f64(q, d, &lo);
    return (n - product) - lo;
#endif
}

/* a * b + c, rounded once, or without a hardware fma once and a little */
FN double accurate_fma_f64(double a, double b, double c)
{
#if FN_HAS_FMA
    return FN_FMA(a, b, c);
#else
    double lo, rest, product = two_prod_f64(a, b, &lo), sum = two_sum_f64(product, c, &rest);
    return sum + (rest + lo);
#endif
}

/* m * (hi + lo), rising with hi + lo */
FN double times_parts_f64(double m, double hi, double lo)
{
#if FN_HAS_FMA
    return FN_FMA(m, hi, m * lo);
#else
    return m * (hi + lo); /* two rounded products would not rise together */
#endif
}

/* 1 / x within 7 % for positive normal x up to 2^1020, from the exponent and the leading bits: good enough to turn a
   remainder into a correction */
FN double rough_inverse_f64(double x) { return from_bits_f64(UINT64_C(0x7fde000000000000) - bits_f64(x)); }

#define F64_MAGIC 0x1.8p52
#define F64_BIAS (F64_MAGIC + 1023) /* F64_BIAS + k has the exponent field of 2^k in its low bits */
#define F64_LOG2E 0x1.71547652b82fep+0
#define F64_LN2 0x1.62e42fefa39efp-1
#define F64_LN2_LO 0x1.abc9e3b39803fp-56
#define F64_LN2_HEAD 0x1.62e42fefa3800p-1 /* ln 2 in two words, the products of the first with k exact */
#define F64_LN2_TAIL 0x1.ef35793c76730p-45

FN_BOUND(double, fn_low_three_f64, -3.0);
FN_BOUND(double, fn_high_three_f64, 3.0);
FN_BOUND(double, fn_six_f64, 6.0);
FN double above_low_three_f64(double x) { return max_f64(x, fn_low_three_f64); }
FN double below_high_three_f64(double x) { return min_f64(x, fn_high_three_f64); }
FN double within_zero_six_f64(double x) { return min_f64(max_f64(x, 0.0), fn_six_f64); }

/* 2^k of t = F64_BIAS + k, -1023 <= k <= 1023; 2^-1023 is given as 0 */
FN double power_f64(double t) { return from_bits_f64(bits_f64(t) << 52); }

FN_BOUND(double, fn_power_low_f64, -1021.0);
FN_BOUND(double, fn_power_high_f64, 1021.0);

/* m * 2^k for |k| <= 2044, 1/2 <= |m| < 4; rounded once, also to a subnormal */
FN double scale_f64(double m, double k)
{
    double near = max_f64(min_f64(k, fn_power_high_f64), fn_power_low_f64);
    return m * power_f64(near + F64_BIAS) * power_f64((k - near) + F64_BIAS);
}

/* x + x_lo = k ln 2 + r + *r_lo, |r| <= ln(2)/2, *t = magic + k; |x| <= 2000 or NaN */
FN double reduce_parts_f64(double x, double x_lo, double magic, double *t, double *r_lo)
{
    double n, head, tail, r;
    *t = FN_FMA(x, F64_LOG2E, magic);
    n = *t - magic;
    head = FN_FMA(-n, F64_LN2_HEAD, x);
    tail = FN_FMA(-n, F64_LN2_TAIL, x_lo);
    r = head + tail;
    *r_lo = tail - (r - head);
    return r;
}
/* the same without the low parts */
FN double reduce_f64(double x, double magic, double *t)
{
    double n;
    *t = FN_FMA(x, F64_LOG2E, magic);
    n = *t - magic;
    return FN_FMA(-n, F64_LN2_TAIL, FN_FMA(-n, F64_LN2_HEAD, x));
}

/* c3 x^3 + c2 x^2 + c1 x + c0, x2 = x^2 */
FN double cubic_f64(double x, double x2, double c3, double c2, double c1, double c0)
{
    return FN_FMA(FN_FMA(c3, x, c2), x2, FN_FMA(c1, x, c0));
}
/* (x2 + a) (b x + c) + d: any cubic too, with an addition for a multiplication, which go to different units */
FN double cubic_in_sums_f64(double x, double x2, double a, double b, double c, double d)
{
    return FN_FMA(x2 + a, FN_FMA(b, x, c), d);
}

/* e^r - 1 - r + r_lo, |r| <= ln(2)/2 */
FN double exp_rest_f64(double r, double r_lo)
{
    double z = r * r, low = FN_FMA(0x1.555555555553fp-3, r, 0x1.0000000000005p-1);
    double middle = cubic_in_sums_f64(r, z, 0x1.5000001bf573cp+5, 0x1.a01a017d84073p-13, 0x1.6c16c17f2f01p-10,
                                      -0x1.11111192be3a8p-6);
    double high = cubic_in_sums_f64(r, z, 0x1.b7d864250c999p+6, 0x1.ae8b5c28595c3p-26, 0x1.28a2922574244p-22,
                                    -0x1.763f7ccf8b556p-18);
    return FN_FMA(z, FN_FMA(z, FN_FMA(z * z, high, middle), low), r_lo);
}
/* e^r - 1, |r| <= ln(2)/2 */
FN double exp_minus_one_f64(double r) { return exp_rest_f64(r, r); }

/* For those who need e^r and e^-r: sinh(r + r_lo) = h + *h_lo, h returned, and cosh r - 1 = *c; |r| <= ln(2)/2 */
FN double sinh_cosh_f64(double r, double r_lo, double *h_lo, double *c)
{
    double z = r * r, h, rest;
    double odd = FN_FMA(FN_FMA(0x1.af5f41cea73d5p-26, z, 0x1.71ddf803c7ebdp-19), z, 0x1.a01a01b0077d4p-13);
    double even = FN_FMA(FN_FMA(0x1.28b0ff0a9b033p-22, z, 0x1.a01995b2cfe8ap-16), z, 0x1.6c16c186096f4p-10);
    odd = FN_FMA(FN_FMA(odd, z, 0x1.111111110f64ep-7), z, 0x1.5555555555559p-3);
    even = FN_FMA(FN_FMA(even, z, 0x1.555555554fdffp-5), z, 0x1.000000000000cp-1);
    *c = z * even;
    rest = r * z * odd;
    h = r + rest;
    *h_lo = (rest - (h - r)) + r_lo;
    return h;
}

FN_BOUND(double, fn_exp_low_f64, -1416.0); /* where k reaches -2043 and 2043 */
FN_BOUND(double, fn_exp_high_f64, 1416.0);

/* e^(x + x_lo) = (hi + *lo) * 2^(*k); hi is returned, 0.7 to 1.42. Beyond +-1416 the scaled result is 0 or inf; x_lo
   then counts for nothing, so that the NaN of an inf - inf in it does no harm. */
FN double exp_parts2_f64(double x, double x_lo, double *lo, double *k)
{
    double inside = max_f64(min_f64(x, fn_exp_high_f64), fn_exp_low_f64), t, r, r_lo, hi, e;
    r = reduce_parts_f64(inside, select_f64(inside == x, x_lo, 0.0), F64_MAGIC, &t, &r_lo);
    *k = t - F64_MAGIC;
    hi = fast_two_sum_f64(1.0, r, &e);
    *lo = e + exp_rest_f64(r, FN_FMA(r_lo, r, r_lo));
    return hi;
}

/* e^x for |x| <= 700, 0.8 ULP: what the sum of 1 and r lacks counts for softmax, in which errors of exp meet twice */
FN double exp_inside_f64(double x)
{
    double t, e, r = reduce_f64(x, F64_BIAS, &t), hi = fast_two_sum_f64(1.0, r, &e);
    return (hi + exp_rest_f64(r, e)) * power_f64(t);
}

FN_BOUND(double, fn_exp_far_f64, -1456.0); /* below, e^x is 0 even times the largest number */
FN_BOUND(double, fn_exp_zero_f64, -746.0); /* below, e^x is 0 */
FN_BOUND(double, fn_exp_inf_f64, 748.0); /* above, e^-x is 0 */

/* m e^x for x <= 0 (above, anything), as (1 + p) 2^near m 2^beyond: where |m| is large e^x may be far below the normal numbers */
FN double exp_times_f64(double m, double x)
{
    int large = abs_f64(m) > 1.0;
    double shift = select_f64(large, 500.0, 0.0), scaled = m * select_f64(large, 0x1p-500, 1.0);
    double low = select_f64(large, fn_exp_far_f64, fn_exp_zero_f64), t, r = reduce_f64(max_f64(x, low), F64_MAGIC, &t);
    double k = t - (F64_MAGIC - shift), near = max_f64(k, fn_power_low_f64);
    double y = (1.0 + exp_minus_one_f64(r)) * power_f64(near + F64_BIAS) * scaled;
    return y * power_f64((k - near) + F64_BIAS);
}

FN_BOUND(double, fn_expm1_low_f64, -60.0); /* below, e^x - 1 is -1 */
FN double expm1_domain_f64(double x) { return max_f64(x, fn_expm1_low_f64); }

/* e^x - 1 = power (1 + p) - 1 = hi + *lo from the parts of x; *lo is at most hi / 5 */
FN double expm1_of_parts_f64(double r, double r_lo, double power, double *lo)
{
    double base = power - 1.0, hi = FN_FMA(power, r, base);
    *lo = FN_FMA(power, exp_rest_f64(r, r_lo), FN_FMA(power, r, base - hi));
    return hi;
}
/* the same from -60 <= x <= 700 */
FN double expm1_parts_f64(double x, double *lo)
{
    double t, r_lo, r = reduce_parts_f64(x, 0.0, F64_BIAS, &t, &r_lo);
    return expm1_of_parts_f64(r, r_lo, power_f64(t), lo);
}

FN_BOUND(double, fn_clamp_low_f64, -1.0);
FN_BOUND(double, fn_clamp_high_f64, 1.0);
/* The low part of an argument. Beside a clamped argument it may be anything, NaN too, but must not move it far. */
FN double low_part_f64(double lo)
{
    lo = fn_clamp_high_f64 < lo ? fn_clamp_high_f64 : lo;
    return lo > fn_clamp_low_f64 ? lo : fn_clamp_low_f64;
}

/* x / alpha between two bounds, and the rounding error of that */
FN double ratio_f64(double x, double alpha, double low, double high, double *lo)
{
    double q = max_f64(min_f64(x / alpha, high), low);
    *lo = low_part_f64(remainder_f64(q, alpha, x) / alpha);
    return q;
}

FN_BOUND(double, fn_celu_far_f64, 1458.0); /* above, e^x is inf even times the smallest number */

/* alpha * (e^(x / alpha) - 1), x <= 0 (above, anything). A negative alpha makes x / alpha grow, and the exponential with it: 2^k is
   2^near 2^beyond. */
FN double celu_below_f64(double x, double alpha)
{
    int tiny = abs_f64(alpha) < 0x1p-900;
    double shift = select_f64(tiny, 60.0, 0.0), scaled = alpha * select_f64(tiny, 0x1p60, 1.0), lo, hi, y;
    double q_lo, q = ratio_f64(x, alpha, fn_expm1_low_f64, select_f64(tiny, fn_celu_far_f64, fn_exp_high_f64), &q_lo);
    double t, r_lo, r = reduce_parts_f64(q, q_lo, F64_MAGIC, &t, &r_lo);
    double k = t - F64_MAGIC, near = min_f64(k, fn_power_high_f64);
    hi = expm1_of_parts_f64(r, r_lo, power_f64(near + F64_BIAS), &lo);
    y = times_parts_f64(scaled, hi, lo) * power_f64(((k - near) - shift) + F64_BIAS);
    return select_f64(abs_f64(q) < 0x1p-60, x, y);
}
/* e^(x / alpha), x <= 0 (above, anything) */
FN double celu_slope_below_f64(double x, double alpha)
{
    double q_lo, q = ratio_f64(x, alpha, fn_exp_zero_f64, fn_exp_inf_f64, &q_lo);
    double lo, k, hi = exp_parts2_f64(q, q_lo, &lo, &k);
    return scale_f64(hi + lo, k);
}

/* (2 atanh(g) - 2 g) / (g z), z = g^2 <= 0.0296 */
FN double log_rest_f64(double z)
{
    double high = FN_FMA(FN_FMA(z, z, 0x1.3a6cfc5bf473p+0), FN_FMA(0x1.2f33a151118dp-3, z, 0x1.399d5555884a5p-3),
                         0x1.17af4c58380c3p-5);
    return FN_FMA(FN_FMA(FN_FMA(high, z, 0x1.24924942d1c36p-2), z, 0x1.999999997eec3p-2), z, 0x1.5555555555595p-1);
}

/* log(1 + f + f_lo), 1 / sqrt(2) <= 1 + f <= sqrt(2): with g = f / (2 + f) it is 2 atanh(g) = 2 g + g z rest, and
   2 g = f - f g */
FN double log1p_near_f64(double f, double f_lo)
{
    double g = f / (2.0 + f), z = g * g;
    return f + FN_FMA(-g, FN_FMA(-z, log_rest_f64(z), f), f_lo);
}

/* log(1 + e), 0 <= e <= 1. Beyond sqrt(2) the logarithm is that of (1 + e) / 2 = 1 + (e - 1) / 2, and ln 2. */
FN double log1p_f64(double e)
{
    int large = e > 0x1.a827999fcef32p-2;
    double rest = log1p_near_f64(select_f64(large, FN_FMA(0.5, e, -0.5), e), select_f64(large, F64_LN2_LO, 0.0));
    return select_f64(large, F64_LN2, 0.0) + rest;
}

FN_BOUND(double, fn_tanh_high_f64, 20.0);

/* odd, exactly; never beyond 1 */
FN double tanh_f64(double x)
{
    /* |x| = h + m ln(2)/2, s = 2^-m, T = tanh(h): tanh = (A + B T) / (B + A T), A = 1 - s, B = 1 + s. Written as
       A^2 + (A s^2 + (B - A^3) T) / (B + A T) the quotient is small beside A^2 and so are its errors; at m = 0 it is T.
       h goes from -0.14 to 0.21, so that A^2 is never the larger part by far. */
    double a = min_f64(abs_f64(x), fn_tanh_high_f64);
    double t = FN_FMA(a - 0.0347, -2.0 * F64_LOG2E, F64_BIAS), k = t - F64_BIAS, s = power_f64(t);
    double h = FN_FMA(k, 0.5 * F64_LN2, a), z = h * h;
    double rest = FN_FMA(FN_FMA(0x1.bb53287f01c9ap-9, z, -0x1.22088f64188fep-7), z, 0x1.664dd496aae05p-6);
    rest = FN_FMA(FN_FMA(FN_FMA(rest, z, -0x1.ba1b9f085d454p-5), z, 0x1.1111110feaa17p-3), z, -0x1.5555555555019p-2);
    double w = h * z * rest, A = 1.0 - s, B = 1.0 + s, square = A * A, slope = FN_FMA(-A, square, B);
    double n = accurate_fma_f64(slope, h, FN_FMA(slope, w, A * s * s));
    return with_sign_f64(square + n / FN_FMA(A, h + w, B), x);
}

FN_BOUND(double, fn_softsign_end_f64, 0x1p600); /* above, 1 / (1 + x) counts for nothing, nor does its square */
FN double below_softsign_end_f64(double x) { return min_f64(x, fn_softsign_end_f64); }

/* 1 + a = sum + *lo, a >= 0 */
FN double one_plus_f64(double a, double *lo)
{
    return fast_two_sum_f64(max_f64(a, fn_clamp_high_f64), min_f64(a, fn_clamp_high_f64), lo);
}

/* 1 / x within 2^-34, for normal positive x up to 2^1000: a start within 5.1 %, from the exponent and the leading bits, and
   the first eight terms of the geometric series of its error. With AVX-512 Intel's processors take 17 cycles to divide 8
   doubles, and 4 for this. */
FN double near_inverse_f64(double x)
{
#if FN_HAS_FMA
    double start = from_bits_f64(UINT64_C(0x7fde624000000000) - bits_f64(x)), e = FN_FMA(-x, start, 1.0), e2 = e * e;
    double y = FN_FMA(start, e, start);
    y = FN_FMA(y, e2, y);
    return FN_FMA(y, e2 * e2, y);
#else
    return 1.0 / x;
#endif
}
