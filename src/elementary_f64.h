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

/* log(1 + e), 0 <= e <= 1 */
FN double log1p_f64(double e)
{
    /* from 1/2 on ln 2 is split off: log1p(e) = ln 2 + log1p(f), f = (e - 1) / 2, exactly; then s = f / (2 + f) is in [-1/7, 1/5] */
    int big = e >= 0.5;
    double f = select_f64(big, e * 0.5 - 0.5, e), h = 0.5 * f * f;
    double s = f / (2.0 + f), z = s * s, z2 = z * z, z4 = z2 * z2;
    double p = FN_FMA(FN_FMA(0x1.1b6f4460b1099p-3, z, 0x1.0dce304863ee8p-3), z2, FN_FMA(0x1.3b359b26bcd5bp-3, z, 0x1.745c4bed75573p-3));
    p = FN_FMA(p, z4, FN_FMA(FN_FMA(0x1.c71c748bad286p-3, z, 0x1.24924921e812p-2), z2, FN_FMA(0x1.999999999c15p-2, z, 0x1.555555555554fp-1)));
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
    double b = min_f64(a, 39.0), d_lo, d = two_sum_f64(b, 6.0, &d_lo), s_lo, s = two_sum_f64(b, 1.125, &s_lo);
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
    double b = min_f64(a, 39.0), d_lo, d = two_sum_f64(b, 6.0, &d_lo);
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
