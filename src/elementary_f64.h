/* Elementary functions in float64. Included by elementary.h, which says what they may be made of.

   exp is handed out in parts, e^x = (hi + lo) * 2^k with about five bits more than a double, so that sigmoid, silu,
   gelu and the others can work on the parts and round and scale once at the end. k is a double that holds an integer:
   AVX2 has no conversion between double and int64, but adding 1.5 * 2^52 puts an integer into the low bits. */

#define F64_SIGN UINT64_C(0x8000000000000000)

FN uint64_t bits_f64(double x) { uint64_t u; memcpy(&u, &x, sizeof u); return u; }
FN double from_bits_f64(uint64_t u) { double x; memcpy(&x, &u, sizeof x); return x; }

FN double fma_f64(double a, double b, double c) { return FN_FMA(a, b, c); }
FN double select_f64(int condition, double a, double b) { return condition ? a : b; }
FN double abs_f64(double x) { return __builtin_fabs(x); }
FN double copysign_f64(double x, double sign)
{
    return from_bits_f64((bits_f64(x) & ~F64_SIGN) | (bits_f64(sign) & F64_SIGN));
}
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
/* a * b = product + *lo exactly, unless lo underflows or the product overflows */
FN double two_prod_f64(double a, double b, double *lo)
{
    double p = a * b;
#if FN_HAS_FMA
    *lo = FN_FMA(a, b, -p);
#else
    /* halves of 26 bits, by rounding on the bits: unlike a multiplication with 2^27 + 1 it cannot overflow */
    const uint64_t half = UINT64_C(1) << 26, mask = ~((UINT64_C(1) << 27) - 1);
    double ah = from_bits_f64((bits_f64(a) + half) & mask), bh = from_bits_f64((bits_f64(b) + half) & mask);
    double al = a - ah, bl = b - bh;
    *lo = ((ah * bh - p) + ah * bl + al * bh) + al * bl;
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
    return (n - product) - select_f64(lo == lo, lo, 0.0); /* lo is NaN where the product is infinite */
#endif
}

/* (n + n_lo) / (d + d_lo), rounded once and a little: the remainder of the first quotient corrects it */
FN double quotient_f64(double n, double n_lo, double d, double d_lo)
{
    double inverse = 1.0 / d, q = n * inverse;
    return FN_FMA(remainder_f64(q, d, n) + FN_FMA(-q, d_lo, n_lo), inverse, q);
}

#define F64_MAGIC 0x1.8p52

FN_BOUND(double, fn_expm1_low_f64, -60.0);
FN_BOUND(double, fn_low_three_f64, -3.0);
FN_BOUND(double, fn_high_three_f64, 3.0);
FN_BOUND(double, fn_six_f64, 6.0);
FN double expm1_domain_f64(double x) { return max_f64(x, fn_expm1_low_f64); }
FN double above_low_three_f64(double x) { return max_f64(x, fn_low_three_f64); }
FN double below_high_three_f64(double x) { return min_f64(x, fn_high_three_f64); }
FN double within_zero_six_f64(double x) { return min_f64(max_f64(x, 0.0), fn_six_f64); }

FN_BOUND(double, fn_fraction_end_f64, 752.0); /* e^-752 times 2^10 rounds to 0 */
FN_BOUND(double, fn_gelu_tanh_end_f64, 26.0);
FN_BOUND(double, fn_tail_end_f64, 39.0);

/* m * 2^k for |k| <= 2044; in two steps, so that k may go beyond the exponents a double has; rounds once, also to a subnormal */
FN double scale_f64(double m, double k)
{
    double t1 = k * 0.5 + (F64_MAGIC + 1023), k1 = t1 - (F64_MAGIC + 1023);
    double t2 = (k - k1) + (F64_MAGIC + 1023);
    return m * from_bits_f64(bits_f64(t1) << 52) * from_bits_f64(bits_f64(t2) << 52);
}

/* x + x_lo = k * ln 2 + r + *r_lo, |r| <= ln(2)/2; x must be in +-1416, or NaN. ln 2 is split so that k times its head is exact. */
FN double exp_reduce_f64(double x, double x_lo, double *r_lo, double *k)
{
    double n = FN_FMA(x, 0x1.71547652b82fep+0, F64_MAGIC) - F64_MAGIC;
    double head = FN_FMA(-n, 0x1.62e42fefa3800p-1, x);
    double tail = FN_FMA(-n, 0x1.ef35793c76730p-45, x_lo);
    *k = n;
    return fast_two_sum_f64(head, tail, r_lo);
}

/* (e^r - 1 - r) / r^2, |r| <= ln(2)/2 */
FN double exp_poly_f64(double r)
{
    double r2 = r * r, r4 = r2 * r2;
    double p = FN_FMA(0x1.ad9f3d3a5bd1dp-26, r, 0x1.28ae0c8c3eb49p-22);
    p = FN_FMA(p, r4, FN_FMA(FN_FMA(0x1.71df10f9c8a0ep-19, r, 0x1.a019994f91ecfp-16), r2, FN_FMA(0x1.a01a01339ac42p-13, r, 0x1.6c16c1847bd3bp-10)));
    p = FN_FMA(p, r4, FN_FMA(FN_FMA(0x1.1111111125fe5p-7, r, 0x1.55555555506adp-5), r2, FN_FMA(0x1.5555555555501p-3, r, 0x1.000000000000ap-1)));
    return p;
}

/* the same one degree better, for e^r - 1 at small r */
FN double expm1_poly_f64(double r)
{
    double r2 = r * r, r4 = r2 * r2;
    double p = FN_FMA(0x1.1f1a1408ca653p-29, r2, FN_FMA(0x1.af5f2564e0bedp-26, r, 0x1.27e5134a4f6fbp-22));
    p = FN_FMA(p, r4, FN_FMA(FN_FMA(0x1.71ddf8128d3eap-19, r, 0x1.a01a018e09f33p-16), r2, FN_FMA(0x1.a01a01b0029e8p-13, r, 0x1.6c16c16c1ab06p-10)));
    p = FN_FMA(p, r4, FN_FMA(FN_FMA(0x1.111111110f656p-7, r, 0x1.555555555554dp-5), r2, FN_FMA(0x1.5555555555559p-3, r, 0x1p-1)));
    return p;
}

/* e^(x + x_lo) = (hi + *lo) * 2^(*k); hi is returned, 0.7 to 1.42. x is clamped where the scaled result is 0 or inf
   for any m near hi; x_lo then counts for nothing, so that the NaN of an inf - inf in it does no harm. */
FN double exp_parts2_f64(double x, double x_lo, double *lo, double *k)
{
    double inside = max_f64(min_f64(x, 1416.0), -1416.0), r, r_lo, hi, e;
    r = exp_reduce_f64(inside, select_f64(inside == x, x_lo, 0.0), &r_lo, k);
    hi = fast_two_sum_f64(1.0, r, &e);
    *lo = e + FN_FMA(r_lo, hi, r * r * exp_poly_f64(r));
    return hi;
}
FN double exp_parts_f64(double x, double *lo, double *k)
{
    return exp_parts2_f64(x, 0.0, lo, k);
}

FN double exp_f64(double x)
{
    double lo, k, hi = exp_parts_f64(x, &lo, &k);
    return scale_f64(hi + lo, k);
}

/* e^x for |x| <= 700, where no clamp, no second scaling and no low part are needed; under 1 ULP */
FN double exp_inside_f64(double x)
{
    double t = FN_FMA(x, 0x1.71547652b82fep+0, F64_MAGIC + 1023), n = t - (F64_MAGIC + 1023);
    double r = FN_FMA(-n, 0x1.ef35793c76730p-45, FN_FMA(-n, 0x1.62e42fefa3800p-1, x));
    return (FN_FMA(r * r, exp_poly_f64(r), r) + 1.0) * from_bits_f64(bits_f64(t) << 52);
}

/* e^x - 1 = hi + *lo for -60 <= x <= 700, |lo| at most half an ulp of hi */
FN double expm1_parts_f64(double x, double *lo)
{
    double r_lo, k, r = exp_reduce_f64(x, 0.0, &r_lo, &k), e, hi;
    double power = from_bits_f64(bits_f64(k + (F64_MAGIC + 1023)) << 52);
    double rest = FN_FMA(r * r, expm1_poly_f64(r), FN_FMA(r_lo, r, r_lo));
    hi = fast_two_sum_f64(power - 1.0, power * r, &e);
    return fast_two_sum_f64(hi, FN_FMA(power, rest, e), lo);
}

/* e^x - 1, x <= 700 */
FN double expm1_f64(double x)
{
    double lo, hi = expm1_parts_f64(max_f64(x, -60.0), &lo);
    return select_f64(x == 0.0, x, hi + lo);
}

/* For those who divide anyway, half the multiplications of exp_poly: e^(x + x_lo) = (2 + *even + w) / (2 + *even - w) * 2^(*k), w returned and
   *power = 2^(k + shift), if a normal number has that exponent. |w| < 0.35, 0 <= *even < 0.03; x must be in +-1416, or NaN. */
FN double exp_fraction_f64(double x, double x_lo, int shift, double *even, double *power, double *k)
{
    double magic = F64_MAGIC + (1023 + shift), t = FN_FMA(x, 0x1.71547652b82fep+0, magic), n = t - magic;
    double head = FN_FMA(-n, 0x1.62e42fefa3800p-1, x), tail = FN_FMA(-n, 0x1.ef35793c76730p-45, x_lo);
    double r = head + tail, z = r * r;
    *k = n;
    *power = from_bits_f64(bits_f64(t) << 52);
    *even = z * FN_FMA(0x1.03fb559c7c1bdp-9, z, 0x1.c7192ce2e8f69p-3);
    return head + FN_FMA(r * z, FN_FMA(0x1.152eebf7fedddp-14, z, 0x1.c70f5e364ead3p-6), tail);
}

/* 1 / (1 + e^-a) for sign >= 0 and 1 / (1 + e^a) below, a = a + a_lo >= 0, is (q + *correction * *inverse) * *scale. scale is 1 for
   sign >= 0; below it is 2^(k + 64) and 2^-64 is still to come, so that the result is right down to the subnormal numbers. */
FN double logistic_parts_f64(double a, double a_lo, double sign, double *correction, double *inverse, double *scale)
{
    /* e^-a = (2 + even + w) / (2 + even - w) * power; the numerator is one or the other */
    double even, w, power, k, sum, rest, s, s_lo, n, n_lo, q;
    w = exp_fraction_f64(-min_f64(a, fn_fraction_end_f64), -a_lo, 64, &even, scale, &k);
    power = *scale * 0x1p-64;
    /* the sum of both is 2 + 2 power + rest, and its low part holds what rounding took from any of the three */
    sum = power + 1.0;
    rest = FN_FMA(power, even + w, even - w); /* of the same sums as n, or q could step back where power is small */
    s = FN_FMA(2.0, sum, rest);
    s_lo = rest - FN_FMA(-2.0, power, s - 2.0);
    n = fast_two_sum_f64(2.0, even + from_bits_f64(bits_f64(w) ^ (~bits_f64(sign) & F64_SIGN)), &n_lo);
    *inverse = 1.0 / s;
    q = n * *inverse;
    *correction = remainder_f64(q, s, n) + FN_FMA(-q, s_lo, n_lo);
    return q;
}

/* 1 / (1 + e^-x) */
FN double logistic_f64(double x)
{
    double correction, inverse, scale, q = logistic_parts_f64(abs_f64(x), 0.0, x, &correction, &inverse, &scale);
    q = FN_FMA(correction, inverse, q);
    return q * select_f64(x < 0.0, scale, 1.0) * select_f64(x < 0.0, 0x1p-64, 1.0);
}

/* the same of x + x_lo; a low part that is not small, or NaN, comes with an x so large that it counts for nothing */
FN double logistic2_f64(double x, double x_lo)
{
    double correction, inverse, scale, q;
    x_lo = x_lo < 1.0 ? x_lo : 1.0;
    x_lo = x_lo > -1.0 ? x_lo : -1.0;
    q = logistic_parts_f64(abs_f64(x), from_bits_f64(bits_f64(x_lo) ^ (bits_f64(x) & F64_SIGN)), x, &correction, &inverse, &scale);
    q = FN_FMA(correction, inverse, q);
    return q * select_f64(x < 0.0, scale, 1.0) * select_f64(x < 0.0, 0x1p-64, 1.0);
}

/* factor * (q + q_lo), times scale / 2^64 where sign < 0; rounded once, and once more where the result is subnormal */
FN double scaled_product_f64(double factor, double q, double q_lo, double sign, double scale)
{
    double lo, p = two_prod_f64(factor, q, &lo);
    lo = FN_FMA(factor, q_lo, lo);
    p = select_f64(abs_f64(lo) > 0.0, p + lo, p); /* it is NaN beside an infinite product; to -0 nothing is added */
    return p * select_f64(sign < 0.0, scale, 1.0) * select_f64(sign < 0.0, 0x1p-64, 1.0);
}

/* x / (1 + e^-x) */
FN double silu_f64(double x)
{
    double correction, inverse, scale, q = logistic_parts_f64(abs_f64(x), 0.0, x, &correction, &inverse, &scale);
    return scaled_product_f64(max_f64(x, -fn_fraction_end_f64), q, correction * inverse, x, scale);
}

/* s (1 - (b + b_lo) (1 - s)) with s = 1 / (1 + e^(a + a_lo)), a >= 0, 0 <= b < 2^11, good on either side of its zero: the derivative
   at -a of x / (1 + e^-u(x)), where u(-a) = -a - a_lo and b + b_lo = a u'(-a). `exactly` spends a few operations more on the difference that vanishes at the zero. */
FN double logistic_slope_f64(double a, double a_lo, double b, double b_lo, int exactly)
{
    /* s = f / (d + f), f = n power; the result is f (f - (b - 1) d) / (d + f)^2 */
    double even, w, scale, power, k, n, n_lo, d, d_lo, f, f_lo, sum, sum_lo, c, v, v_lo, m, m_lo, square, square_lo;
    w = exp_fraction_f64(-min_f64(a, fn_fraction_end_f64), -a_lo, 64, &even, &scale, &k);
    power = scale * 0x1p-64;
    d = fast_two_sum_f64(2.0, even - w, &d_lo);
    n = fast_two_sum_f64(2.0, even + w, &n_lo);
    f = n * power;
    f_lo = n_lo * power;
    sum = fast_two_sum_f64(d, f, &sum_lo);
    sum_lo += d_lo + f_lo;
    c = b - 1.0;
    if (FN_HAS_FMA && !exactly) {
        v = FN_FMA(-c, d, f);
        v_lo = 0.0;
    } else {
        m = two_prod_f64(c, d, &m_lo);
        v = two_sum_f64(f, -m, &v_lo);
        v_lo -= m_lo;
    }
    v_lo += FN_FMA(-c, d_lo, FN_FMA((c - b) + 1.0 - b_lo, d, f_lo));
    m = two_prod_f64(n, v, &m_lo);
    m_lo = FN_FMA(n, v_lo, FN_FMA(n_lo, v, m_lo));
    square = two_prod_f64(sum, sum, &square_lo);
    return quotient_f64(m, m_lo, square, FN_FMA(sum + sum, sum_lo, square_lo)) * scale * 0x1p-64;
}

/* silu'(x), silu(x) = x / (1 + e^-x) */
FN double silu_slope_f64(double x)
{
    double a = min_f64(abs_f64(x), fn_fraction_end_f64), slope = logistic_slope_f64(a, 0.0, a, 0.0, 0);
    return select_f64(x > 0.0, 1.0 - slope, slope);
}

/* sqrt(8 / pi) (a + 0.044715 a^3) = u + *u_lo, and its derivative times a is *b + *b_lo; for 0 <= a <= 26 */
FN double gelu_tanh_argument_f64(double a, double *u_lo, double *b, double *b_lo)
{
    double square_lo, square = two_prod_f64(a, a, &square_lo), cubic_lo, cubic = two_prod_f64(square, 0x1.2444f2a4d8b4bp-4, &cubic_lo), f, f_lo, u;
    cubic_lo += FN_FMA(square, -0x1.6c843a29d1c70p-61, square_lo * 0x1.2444f2a4d8b4bp-4);
    f = two_sum_f64(0x1.9884533d43651p+0, cubic, &f_lo);
    f_lo += cubic_lo + -0x1.cbc0d30ebfd15p-54;
    u = two_prod_f64(a, f, u_lo);
    *u_lo = FN_FMA(a, f_lo, *u_lo);
    f = two_sum_f64(f, cubic + cubic, &square_lo);
    *b = two_prod_f64(a, f, b_lo);
    *b_lo += a * (f_lo + square_lo + (cubic_lo + cubic_lo));
    return u;
}

/* x / (1 + e^-u), u = sqrt(8 / pi) (x + 0.044715 x^3) */
FN double gelu_tanh_f64(double x)
{
    double u_lo, b, b_lo, u = gelu_tanh_argument_f64(min_f64(abs_f64(x), fn_gelu_tanh_end_f64), &u_lo, &b, &b_lo);
    double correction, inverse, scale, q = logistic_parts_f64(u, u_lo, x, &correction, &inverse, &scale);
    return scaled_product_f64(max_f64(x, -fn_gelu_tanh_end_f64), q, correction * inverse, x, scale);
}

FN double gelu_tanh_slope_f64(double x)
{
    double u_lo, b, b_lo, u = gelu_tanh_argument_f64(min_f64(abs_f64(x), fn_gelu_tanh_end_f64), &u_lo, &b, &b_lo), slope = logistic_slope_f64(u, u_lo, b, b_lo, 1);
    return select_f64(x > 0.0, 1.0 - slope, select_f64(x < -21.6, 0.0, slope)); /* there, too small for a number */
}

/* With e^-a = f / d, a = |x|, and (u, v) = (f, d) for x < 0, (d, f) above: mish(x) = x u (s + v) / (s^2 + v^2), s = f + d.
   u is handed out without its power of two below zero. */
FN double mish_parts_f64(double x, double *u_lo, double *v, double *v_lo, double *s, double *s_lo, double *v2, double *v2_lo, double *den, double *den_lo,
                         double *scale)
{
    double even, w, power, k, rest, u, down;
    w = exp_fraction_f64(-min_f64(abs_f64(x), fn_fraction_end_f64), 0.0, 64, &even, scale, &k);
    power = *scale * 0x1p-64;
    rest = FN_FMA(power, even + w, even - w);
    *s = FN_FMA(2.0, power + 1.0, rest);
    *s_lo = rest - FN_FMA(-2.0, power, *s - 2.0);
    w = from_bits_f64(bits_f64(w) ^ (~bits_f64(x) & F64_SIGN));
    u = fast_two_sum_f64(2.0, even + w, u_lo);
    *v = fast_two_sum_f64(2.0, even - w, v_lo);
    down = select_f64(x < 0.0, 1.0, power);
    *v *= down;
    *v_lo *= down;
    *v2 = two_prod_f64(*v, *v, v2_lo);
    *v2_lo = FN_FMA(*v + *v, *v_lo, *v2_lo);
    *den = two_prod_f64(*s, *s, den_lo);
    *den_lo = FN_FMA(*s + *s, *s_lo, *den_lo);
    *den = fast_two_sum_f64(*den, *v2, &rest);
    *den_lo += rest + *v2_lo;
    return u;
}

/* x tanh(log(1 + e^x)) */
FN double mish_f64(double x)
{
    double u_lo, v, v_lo, s, s_lo, v2, v2_lo, den, den_lo, scale, h, h_lo, n, n_lo, inverse, q;
    double u = mish_parts_f64(x, &u_lo, &v, &v_lo, &s, &s_lo, &v2, &v2_lo, &den, &den_lo, &scale);
    h = fast_two_sum_f64(s, v, &h_lo);
    h_lo += s_lo + v_lo;
    n = two_prod_f64(u, h, &n_lo);
    n_lo += FN_FMA(u, h_lo, u_lo * h);
    inverse = 1.0 / den;
    q = n * inverse;
    return scaled_product_f64(max_f64(x, -fn_fraction_end_f64), q, (remainder_f64(q, den, n) + FN_FMA(-q, den_lo, n_lo)) * inverse, x, scale);
}

/* mish'(x) = u (4 (1 + x) s v^2 + u (s^2 + v^2 + 2 u v)) / (s^2 + v^2)^2; its zero at -1.19 is where the first terms cancel, hence the low parts */
FN double mish_slope_f64(double x)
{
    double u_lo, v, v_lo, s, s_lo, v2, v2_lo, den, den_lo, scale, m, m_lo, c, c_lo, g, g_lo, f, f_lo, up;
    double u = mish_parts_f64(x, &u_lo, &v, &v_lo, &s, &s_lo, &v2, &v2_lo, &den, &den_lo, &scale);
    c = two_sum_f64(4.0, 4.0 * copysign_f64(min_f64(abs_f64(x), fn_fraction_end_f64), x), &c_lo);
    m = two_prod_f64(s, v2, &m_lo);
    m_lo += FN_FMA(s, v2_lo, s_lo * v2);
    m_lo = FN_FMA(c, m_lo, c_lo * m);
    m = two_prod_f64(c, m, &c_lo);
    m_lo += c_lo;
    up = select_f64(x < 0.0, scale * 0x1p-64, 1.0);
    f = u * up;
    f_lo = u_lo * up;
    g = two_prod_f64(f, v, &g_lo);
    g_lo += FN_FMA(f, v_lo, f_lo * v);
    c = fast_two_sum_f64(den, g + g, &c_lo);
    c_lo += den_lo + (g_lo + g_lo);
    g = two_prod_f64(f, c, &g_lo);
    g_lo += FN_FMA(f, c_lo, f_lo * c);
    c = two_sum_f64(m, g, &c_lo);
    c = fast_two_sum_f64(c, c_lo + (m_lo + g_lo), &c_lo);
    m = two_prod_f64(u, c, &m_lo);
    m_lo += FN_FMA(u, c_lo, u_lo * c);
    g = two_prod_f64(den, den, &g_lo);
    m = quotient_f64(m, m_lo, g, FN_FMA(den + den, den_lo, g_lo));
    return m * select_f64(x < 0.0, scale, 1.0) * select_f64(x < 0.0, 0x1p-64, 1.0);
}

/* (2 atanh(s) - 2 s) / (s z), z = s^2 <= 1/25 */
FN double log_poly_f64(double z)
{
    double z2 = z * z, z4 = z2 * z2;
    double p = FN_FMA(FN_FMA(0x1.1b6f4460b1099p-3, z, 0x1.0dce304863ee8p-3), z2, FN_FMA(0x1.3b359b26bcd5bp-3, z, 0x1.745c4bed75573p-3));
    p = FN_FMA(p, z4, FN_FMA(FN_FMA(0x1.c71c748bad286p-3, z, 0x1.24924921e812p-2), z2, FN_FMA(0x1.999999999c15p-2, z, 0x1.555555555554fp-1)));
    return p;
}

/* log(1 + e), 0 <= e <= 1 */
FN double log1p_f64(double e)
{
    /* from 1/2 on ln 2 is split off: log1p(e) = ln 2 + log1p(f), f = (e - 1) / 2, exactly; then s = f / (2 + f) is in [-1/7, 1/5] */
    int big = e >= 0.5;
    double f = select_f64(big, e * 0.5 - 0.5, e), h = 0.5 * f * f;
    double s = f / (2.0 + f), z = s * s;
    /* 2 atanh(s) = f - h + s (h + z p) */
    double small = FN_FMA(s, FN_FMA(z, log_poly_f64(z), h), -h), hi, lo;
    hi = fast_two_sum_f64(select_f64(big, 0x1.62e42fefa39efp-1, 0.0), f, &lo);
    lo += small + select_f64(big, 0x1.abc9e3b39803fp-56, 0.0);
    return hi + lo;
}

/* log(1 + e^(beta x)) / beta */
FN double softplus_f64(double x, double beta)
{
    /* max(x, 0) + log(1 + f / d) / beta, f / d = e^-|beta x|. From 1/2 on (big = 1) ln 2 is split off the logarithm; the rest is 2 atanh(s),
       s = (f - big d) / (f + (2 + big) d). f stays above 2^-900; what is missing below comes in at the end. */
    double a_lo, a = two_prod_f64(x, beta, &a_lo), even, k, power, beyond, big, d, d_lo, f, f_lo, n, n_lo, lo, s, s_lo, sum, p, p_lo, unit = 1.0 / beta, w;
    a_lo = from_bits_f64(bits_f64(a_lo) ^ (bits_f64(a) & F64_SIGN));
    a_lo = a_lo < 1.0 ? a_lo : 1.0;
    a_lo = a_lo > -1.0 ? a_lo : -1.0;
    w = exp_fraction_f64(-min_f64(abs_f64(a), 1416.0), -a_lo, 0, &even, &power, &k);
    beyond = min_f64(k + 900.0, 0.0);
    power = from_bits_f64(bits_f64((k - beyond) + (F64_MAGIC + 1023)) << 52);
    d = fast_two_sum_f64(2.0, even - w, &d_lo);
    f = fast_two_sum_f64(2.0, even + w, &f_lo) * power;
    f_lo *= power;
    big = select_f64(f + f < d, 0.0, 1.0);
    n = FN_FMA(-big, d, f);
    n_lo = FN_FMA(-big, d_lo, f_lo);
    sum = fast_two_sum_f64(d + d, f, &s_lo);
    sum = fast_two_sum_f64(sum, big * d, &lo);
    lo += FN_FMA(2.0 + big, d_lo, f_lo) + s_lo;
    p = 1.0 / sum;
    s = n * p;
    s_lo = (remainder_f64(s, sum, n) + FN_FMA(-s, lo, n_lo)) * p;
    p = fast_two_sum_f64(big * 0x1.62e42fefa39efp-1, s + s, &p_lo);
    p_lo += FN_FMA(s * (s * s), log_poly_f64(s * s), FN_FMA(2.0, s_lo, big * 0x1.abc9e3b39803fp-56));
    p = fast_two_sum_f64(p, p_lo, &p_lo);
    lo = FN_FMA(p, remainder_f64(unit, beta, 1.0) * unit, p_lo * unit);
    p = two_prod_f64(p, unit, &p_lo);
    p_lo = scale_f64(p_lo + lo, beyond);
    p = two_sum_f64(max_f64(x, 0.0), scale_f64(p, beyond), &lo);
    lo += p_lo;
    return p + select_f64(lo == lo, lo, 0.0); /* infinities make a low part NaN */
}

/* odd, exactly; never beyond 1 */
FN double tanh_f64(double x)
{
    /* (e^2a - 1) / (e^2a + 1), and the quotient's remainder */
    double a = min_f64(abs_f64(x), 22.0), n_lo, d_lo;
    double n = expm1_parts_f64(a + a, &n_lo), d = two_sum_f64(n, 2.0, &d_lo);
    double inverse = 1.0 / d, q = n * inverse;
    double rest = remainder_f64(q, d, n) + FN_FMA(-q, d_lo + n_lo, n_lo);
    return copysign_f64(FN_FMA(rest, inverse, q), x);
}

/* For the two functions below: t = (a - 6) / (a + 6) + *t_lo, from 1 / (a + 6) = inverse but for some roundings. By way of
   a / (a + 6), so that t is best near -1, where they are steepest; d and d_lo are a + 6. */
FN double tail_variable_f64(double a, double d, double d_lo, double inverse, double *t_lo)
{
    double w = a * inverse, w_lo = inverse * FN_FMA(-w, d_lo, remainder_f64(w, d, a));
    double t = fast_two_sum_f64(-1.0, w + w, t_lo);
    *t_lo += w_lo + w_lo;
    return t;
}

/* Phi(-a) * e^(a^2 / 2) + *lo for a >= 0, where Phi is the normal distribution function; at a > 39 the value at 39, because e^(-a^2 / 2) is 0 */
FN double normal_tail_f64(double a, double *lo)
{
    /* a polynomial in t, nearly constant, over a + 9/8; one division serves both */
    double b = min_f64(a, fn_tail_end_f64), d_lo, d = two_sum_f64(b, 6.0, &d_lo), s_lo, s = two_sum_f64(b, 1.125, &s_lo);
    double inverse = 1.0 / (d * s), v = inverse * d, v_lo = v * FN_FMA(-v, s_lo, remainder_f64(v, s, 1.0));
    double t_lo, t = tail_variable_f64(b, d, d_lo, inverse * s, &t_lo), t2 = t * t, t4 = t2 * t2;
    /* Horner where a rounding of t^2 or t^4 would tell */
    double p = FN_FMA(FN_FMA(0x1.9a581b2d9713bp-30, t, 0x1.83a3b795d3b8p-29), t2, FN_FMA(-0x1.063a4886edc54p-26, t, -0x1.5af9f967c4429p-26));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(0x1.1645921b267a5p-23, t, 0x1.dd048c27916d2p-28), t2, FN_FMA(-0x1.089ec0ff2662ap-20, t, 0x1.c6d7b9b7e6f24p-20)));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(0x1.2c21c0fc105eap-18, t, -0x1.aea1ffef5138dp-16), t2, FN_FMA(0x1.278a37a0fafdcp-15, t, 0x1.fba9df8c6440fp-14)));
    p = FN_FMA(p, t, -0x1.bbc854667c631p-11);
    p = FN_FMA(p, t, 0x1.702d86f188d7p-9);
    p = FN_FMA(p, t, -0x1.b2ac336bbbb26p-8);
    p = FN_FMA(p, t, 0x1.8dd69717fa7fbp-7);
    p = FN_FMA(p, t, -0x1.1cf79c51a0a43p-6);
    p = FN_FMA(p, t, 0x1.2a5d0019ea7cbp-6);
    p = FN_FMA(p, t, -0x1.282d77a2cf0f7p-7);
    p = FN_FMA(p, t, -0x1.decb55bcfb647p-7);
    p = FN_FMA(p, t, 0x1.b281b31d1dc71p-5);
    p = FN_FMA(p, t, -0x1.9b5732514905p-4);
    double y_lo, y = fast_two_sum_f64(0x1.d8a13fa3b3f15p-2, t * p, &y_lo), hi;
    hi = two_prod_f64(y, v, lo);
    *lo += FN_FMA(y, v_lo, (y_lo + 0x1.3eee9e3e7af92p-56) * v);
    /* t_lo counts with the polynomial's slope over s, which is (T' + T / s) da/dt, T' = a T - 1 / sqrt(2 pi), da/dt = (a + 6)^2 / 12 */
    *lo += t_lo * (d * d * (1.0 / 12.0)) * FN_FMA(b + v, hi, -0x1.9884533d43651p-2);
    return hi;
}

/* gelu'(-a) * e^(a^2 / 2) + *lo for a >= 0, gelu'(x) = Phi(x) + x phi(x). Its zero is a factor, with a tail, so the result is good near it. */
FN double gelu_slope_tail_f64(double a, double *lo)
{
    double b = min_f64(a, fn_tail_end_f64), d_lo, d = two_sum_f64(b, 6.0, &d_lo);
    double t_lo, t = tail_variable_f64(b, d, d_lo, 1.0 / d, &t_lo), t2 = t * t, t4 = t2 * t2;
    double p = FN_FMA(FN_FMA(-0x1.0ffb28e73a871p-33, t, -0x1.966bcf18a1af4p-30), t2, FN_FMA(-0x1.bba67f39f7478p-31, t, 0x1.ff13882ed883cp-27));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(-0x1.3770dc9d940bfp-28, t, -0x1.0415ba4830f7dp-23), t2, FN_FMA(0x1.22ded3e798123p-22, t, 0x1.1dc714772f147p-21)));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(-0x1.1e211ad767aafp-18, t, 0x1.129d4e249cae9p-17), t2, FN_FMA(0x1.36b87c913d58ap-16, t, -0x1.910026a3dd0ccp-13)));
    p = FN_FMA(p, t, 0x1.a6077a2bededbp-11);
    p = FN_FMA(p, t, -0x1.40193e102d8e5p-9);
    p = FN_FMA(p, t, 0x1.8a93fa4f2fceap-8);
    p = FN_FMA(p, t, -0x1.9fa21f521ec9p-7);
    p = FN_FMA(p, t, 0x1.807d2b6b8823ap-6);
    p = FN_FMA(p, t, -0x1.3dc104a8b258fp-5);
    p = FN_FMA(p, t, 0x1.dac68526dfb9ep-5);
    p = FN_FMA(p, t, -0x1.4376b99ad949bp-4);
    double y_lo, y = fast_two_sum_f64(0x1.c6657e6853013p-2, t * p, &y_lo), hi;
    double f_lo, f = two_sum_f64(0x1.80ead197f00b4p-1, -b, &f_lo);
    y_lo += 0x1.575eb120452a8p-57;
    hi = two_prod_f64(y, f, lo);
    *lo += FN_FMA(y, f_lo - 0x1.13e74c58cada8p-56, y_lo * f);
    return hi;
}

/* e^(-a^2 / 2) = (hi + *lo) * 2^(*k), a >= 0 */
FN double gauss_parts_f64(double a, double *lo, double *k)
{
    double square_lo, square = two_prod_f64(a, a, &square_lo);
    return exp_parts2_f64(-0.5 * square, -0.5 * square_lo, lo, k);
}

/* x Phi(x), Phi the normal distribution function */
FN double gelu_f64(double x)
{
    double a = min_f64(abs_f64(x), fn_tail_end_f64), t_lo, t = normal_tail_f64(a, &t_lo), lo, k, hi = gauss_parts_f64(a, &lo, &k), p_lo, p = two_prod_f64(t, hi, &p_lo);
    p_lo += FN_FMA(t, lo, t_lo * hi);
    t = two_prod_f64(a, p, &lo);
    t = scale_f64(t + FN_FMA(a, p_lo, lo), k);
    return select_f64(x >= 0.0, x - t, -t);
}

/* Phi(x) + x phi(x) */
FN double gelu_slope_f64(double x)
{
    double a = min_f64(abs_f64(x), fn_tail_end_f64), t_lo, t = gelu_slope_tail_f64(a, &t_lo), lo, k, hi = gauss_parts_f64(a, &lo, &k), p_lo, p = two_prod_f64(t, hi, &p_lo);
    p = scale_f64(p + (p_lo + FN_FMA(t, lo, t_lo * hi)), k);
    return select_f64(x > 0.0, 1.0 - p, p);
}
