/* Elementary functions in float64. Included by elementary.h, which says what they may be made of.

   exp is handed out in parts, e^x = (hi + lo) * 2^k with about five bits more than a double, so that sigmoid, silu,
   gelu and the others can work on the parts and round and scale once at the end. k is a double that holds an integer:
   AVX2 has no conversion between double and int64, but adding 1.5 * 2^52 puts an integer into the low bits. */

FN uint64_t bits_f64(double x) { uint64_t u; memcpy(&u, &x, sizeof u); return u; }
FN double from_bits_f64(uint64_t u) { double x; memcpy(&x, &u, sizeof x); return x; }

FN double fma_f64(double a, double b, double c) { return FN_FMA(a, b, c); }
FN double select_f64(int condition, double a, double b) { return condition ? a : b; }
FN double abs_f64(double x) { return from_bits_f64(bits_f64(x) & UINT64_C(0x7fffffffffffffff)); }
FN double copysign_f64(double x, double sign)
{
    return from_bits_f64((bits_f64(x) & UINT64_C(0x7fffffffffffffff)) | (bits_f64(sign) & UINT64_C(0x8000000000000000)));
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

#define F64_MAGIC 0x1.8p52

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
    double p01 = FN_FMA(0x1.5555555555557p-3, r, 0x1.0000000000000p-1);
    double p23 = FN_FMA(0x1.11111111100dfp-7, r, 0x1.5555555555556p-5);
    double p45 = FN_FMA(0x1.a01a01abe62ddp-13, r, 0x1.6c16c16c162d6p-10);
    double p67 = FN_FMA(0x1.71de02375656cp-19, r, 0x1.a01a01a6d7808p-16);
    double p89 = FN_FMA(0x1.af4ddd84882fep-26, r, 0x1.27e4db67b4303p-22);
    double p8 = FN_FMA(0x1.1f72fc730b4ffp-29, r2, p89);
    double p4 = FN_FMA(p67, r2, p45), p0 = FN_FMA(p23, r2, p01);
    return FN_FMA(FN_FMA(p8, r4, p4), r4, p0);
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

/* e^x - 1 = hi + *lo for -60 <= x <= 700, |lo| at most half an ulp of hi */
FN double expm1_parts_f64(double x, double *lo)
{
    double r_lo, k, r = exp_reduce_f64(x, 0.0, &r_lo, &k), e, hi;
    double power = from_bits_f64(bits_f64(k + (F64_MAGIC + 1023)) << 52);
    double rest = FN_FMA(r * r, exp_poly_f64(r), FN_FMA(r_lo, r, r_lo));
    hi = fast_two_sum_f64(power - 1.0, power * r, &e);
    return fast_two_sum_f64(hi, FN_FMA(power, rest, e), lo);
}

/* e^x - 1, x <= 700 */
FN double expm1_f64(double x)
{
    double lo, hi = expm1_parts_f64(max_f64(x, -60.0), &lo);
    return select_f64(x == 0.0, x, hi + lo);
}

/* log(1 + e), 0 <= e <= 1 */
FN double log1p_f64(double e)
{
    /* from 1/2 on ln 2 is split off: log1p(e) = ln 2 + log1p(f), f = (e - 1) / 2, exactly; then s = f / (2 + f) is in [-1/7, 1/5] */
    int big = e >= 0.5;
    double f = select_f64(big, e * 0.5 - 0.5, e), h = 0.5 * f * f;
    double s = f / (2.0 + f), z = s * s, z2 = z * z, z4 = z2 * z2;
    double p01 = FN_FMA(0x1.9999999999f17p-2, z, 0x1.5555555555555p-1);
    double p23 = FN_FMA(0x1.c71c72df580fcp-3, z, 0x1.24924923de6edp-2);
    double p45 = FN_FMA(0x1.3b29d0452d426p-3, z, 0x1.745cac43cc003p-3);
    double p67 = FN_FMA(0x1.169c38cc826bep-3, z, 0x1.0e8c55b42945fp-3);
    double p = FN_FMA(FN_FMA(p67, z2, p45), z4, FN_FMA(p23, z2, p01));
    /* 2 atanh(s) = f - h + s (h + z p) */
    double small = FN_FMA(s, FN_FMA(z, p, h), -h), hi, lo;
    hi = fast_two_sum_f64(select_f64(big, 0x1.62e42fefa39efp-1, 0.0), f, &lo);
    lo += small + select_f64(big, 0x1.abc9e3b39803fp-56, 0.0);
    return hi + lo;
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

/* Phi(-a) * e^(a^2 / 2) for a >= 0, where Phi is the normal distribution function; at a > 39 the value at 39, because e^(-a^2 / 2) is 0 */
FN double normal_tail_f64(double a)
{
    double b = min_f64(a, 39.0), u = 1.0 / (b + 5.0), t = (b - 5.0) * u, t2 = t * t, t4 = t2 * t2;
    double p = -0x1.a50f96333ac8ep-36;
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(-0x1.de076b25a9b3fp-32, t, -0x1.2eabcbe0ea437p-30), t2, FN_FMA(0x1.4c52fe9f5800cp-29, t, 0x1.71aa46057bf7ap-27)));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(-0x1.30fa17f73f0edp-27, t, -0x1.2d64fbccec4e3p-24), t2, FN_FMA(0x1.5bb2d91655ceep-25, t, 0x1.d48a16d350a97p-22)));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(-0x1.676fde1639a77p-22, t, -0x1.73e2fe53a223bp-19), t2, FN_FMA(0x1.0b15ba96cf05bp-18, t, 0x1.17df303be3db5p-16)));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(-0x1.a17019ab0560dp-15, t, -0x1.f214964402c05p-15), t2, FN_FMA(0x1.1daf1aefb143cp-11, t, -0x1.a25037709917fp-11)));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(-0x1.88590e98b86c4p-9, t, 0x1.54b4d4f485917p-6), t2, FN_FMA(-0x1.1b1c254ca3cfbp-4, t, 0x1.51f6329f01c14p-3)));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(-0x1.410ed5f875951p-2, t, 0x1.fb31653876f88p-2), t2, FN_FMA(-0x1.54ad03f27ca18p-1, t, 0x1.89d3abe1f95aep-1)));
    return p * u;
}

/* gelu'(-a) * e^(a^2 / 2) for a >= 0, gelu'(x) = Phi(x) + x phi(x). Its zero is a factor, with a tail, so the result is good near it. */
FN double gelu_slope_tail_f64(double a)
{
    double b = min_f64(a, 39.0), u = 1.0 / (b + 5.0), t = (b - 5.0) * u, t2 = t * t, t4 = t2 * t2;
    double p = FN_FMA(-0x1.d46c8f8d322fbp-36, t2, FN_FMA(-0x1.ac11fdbcf430cp-39, t, 0x1.b9ffa43504e72p-32));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(0x1.20173e2032bc8p-32, t, -0x1.acfec52c55261p-29), t2, FN_FMA(-0x1.4f8c25958f5f0p-29, t, 0x1.7b90320b4afa2p-26)));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(0x1.ac7b400cfa88bp-27, t, -0x1.6ad67a1d67f75p-23), t2, FN_FMA(0x1.6fa0509a0fb5dp-26, t, 0x1.6d22f486f42c8p-20)));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(-0x1.0b75ca267164bp-19, t, -0x1.34bd9aa7de61dp-17), t2, FN_FMA(0x1.54f8b5170a54dp-15, t, -0x1.fde2abbcce92ap-17)));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(-0x1.cdee09d1cd494p-12, t, 0x1.2dc07799ada4dp-9), t2, FN_FMA(-0x1.e0a951947263fp-8, t, 0x1.23c3758993037p-6)));
    p = FN_FMA(p, t4, FN_FMA(FN_FMA(-0x1.231a8d1238457p-5, t, 0x1.ef8423a0a745dp-5), t2, FN_FMA(-0x1.6fce89f8d2b96p-4, t, 0x1.ce451b41a3ba0p-2)));
    return ((0x1.80ead197f00b4p-1 - b) - 0x1.13e74c58cada8p-56) * p;
}
