/* gelu and its derivative in float64. Included by elementary.h after elementary_f64.h.

   The normal distribution's tail is e^(-a^2 / 2) times a function that varies slowly, and that is a polynomial in
   t = (a - 6) / (a + 6) over something simple. */

/* Phi(-a) * e^(a^2 / 2) * (a + 9/8) = y + *lo for 0 <= a <= 39, where Phi is the normal distribution function */
FN double normal_tail_f64(double a, double *lo)
{
    double t = (a - 6.0) / (a + 6.0), t2 = t * t, t4 = t2 * t2;
    double p = FN_FMA(0x1.9a581b2d9713bp-30, t4, cubic_f64(t, t2, 0x1.83a3b795d3b8p-29, -0x1.063a4886edc54p-26,
                                                         -0x1.5af9f967c4429p-26, 0x1.1645921b267a5p-23));
    p = FN_FMA(p, t4, cubic_f64(t, t2, 0x1.dd048c27916d2p-28, -0x1.089ec0ff2662ap-20,
                                0x1.c6d7b9b7e6f24p-20, 0x1.2c21c0fc105eap-18));
    p = FN_FMA(p, t4, cubic_f64(t, t2, -0x1.aea1ffef5138dp-16, 0x1.278a37a0fafdcp-15,
                                0x1.fba9df8c6440fp-14, -0x1.bbc854667c631p-11));
    p = FN_FMA(p, t4, cubic_f64(t, t2, 0x1.702d86f188d7p-9, -0x1.b2ac336bbbb26p-8,
                                0x1.8dd69717fa7fbp-7, -0x1.1cf79c51a0a43p-6));
    p = FN_FMA(p, t4, cubic_f64(t, t2, 0x1.2a5d0019ea7cbp-6, -0x1.282d77a2cf0f7p-7,
                                -0x1.decb55bcfb647p-7, 0x1.b281b31d1dc71p-5));
    p = FN_FMA(p, t, -0x1.9b5732514905p-4);
    double y = fast_two_sum_f64(0x1.d8a13fa3b3f15p-2, p * t, lo);
    *lo += 0x1.3eee9e3e7af92p-56;
    return y;
}

/* (Phi(-a) * e^(a^2 / 2) - a / sqrt(2 pi)) / (zero - a) = y + *lo for 0 <= a <= 39, zero where that is 0. It is
   steepest at a = 0, so there the rounding error of t counts, times the slope, which is near 0.8 - 2 y. */
FN double gelu_slope_tail_f64(double a, double *lo)
{
    double w = a / (a + 6.0), t = (w + w) - 1.0, t_lo = (w + w) - (t + 1.0), t2 = t * t, t4 = t2 * t2;
    double p = FN_FMA(-0x1.0ffb28e73a871p-33, t2, FN_FMA(-0x1.966bcf18a1af4p-30, t, -0x1.bba67f39f7478p-31));
    p = FN_FMA(p, t4, cubic_f64(t, t2, 0x1.ff13882ed883cp-27, -0x1.3770dc9d940bfp-28,
                                -0x1.0415ba4830f7dp-23, 0x1.22ded3e798123p-22));
    p = FN_FMA(p, t4, cubic_f64(t, t2, 0x1.1dc714772f147p-21, -0x1.1e211ad767aafp-18,
                                0x1.129d4e249cae9p-17, 0x1.36b87c913d58ap-16));
    p = FN_FMA(p, t4, cubic_f64(t, t2, -0x1.910026a3dd0ccp-13, 0x1.a6077a2bededbp-11,
                                -0x1.40193e102d8e5p-9, 0x1.8a93fa4f2fceap-8));
    p = FN_FMA(p, t4, cubic_f64(t, t2, -0x1.9fa21f521ec9p-7, 0x1.807d2b6b8823ap-6,
                                -0x1.3dc104a8b258fp-5, 0x1.dac68526dfb9ep-5));
    p = FN_FMA(p, t, -0x1.4376b99ad949bp-4);
    double y = fast_two_sum_f64(0x1.c6657e6853013p-2, p * t, lo);
    *lo += FN_FMA(FN_FMA(2.0, y, -0.8), -t_lo, 0x1.575eb120452a8p-57);
    return y;
}

/* (n + n_lo) e^(-a^2 / 2) = (result + *lo) * *scaled * 2^-64 */
FN double times_gauss_f64(double a, double n, double n_lo, double *lo, double *scaled)
{
    double half = 0.5 * a, square_lo, square = two_prod_f64(a, half, &square_lo), t, r_lo, rest, result;
    double r = reduce_parts_f64(-square, -square_lo, F64_BIAS + 64, &t, &r_lo);
    *scaled = power_f64(t);
    rest = FN_FMA(n, r, FN_FMA(n, exp_rest_f64(r, r_lo), FN_FMA(n_lo, r, n_lo)));
    result = n + rest;
    *lo = rest - (result - n);
    return result;
}

FN_BOUND(double, fn_minus_zero_f64, -0.0);
FN_BOUND(double, fn_gelu_end_f64, 38.75); /* e^(-a^2 / 2) times a is 0 there */

/* x Phi(x), Phi the normal distribution function */
FN double gelu_f64(double x)
{
    double a = min_f64(abs_f64(x), fn_gelu_end_f64), y_lo, y = normal_tail_f64(a, &y_lo);
    double n_lo, n = two_prod_f64(a, y, &n_lo);
    double d_lo, d = two_sum_f64(a, 1.125, &d_lo), inverse = rough_inverse_f64(d), lo, scaled;
    n_lo = FN_FMA(n * inverse, -d_lo, FN_FMA(a, y_lo, n_lo));
    n = times_gauss_f64(a, n, n_lo, &lo, &scaled);
    y = FN_FMA(lo, inverse, n / d) * scaled * 0x1p-64;
    return max_f64(x, fn_minus_zero_f64) - y;
}

/* Phi(x) + x phi(x). Its zero is a factor, with a low part, so the result is good near it. */
FN double gelu_slope_f64(double x)
{
    double a = min_f64(abs_f64(x), fn_gelu_end_f64), y_lo, y = gelu_slope_tail_f64(a, &y_lo), lo, scaled;
    double f_lo, f = two_sum_f64(0x1.80ead197f00b4p-1, -a, &f_lo), n_lo, n = two_prod_f64(f, y, &n_lo);
    n_lo = FN_FMA(f, y_lo, FN_FMA(f_lo - 0x1.13e74c58cada8p-56, y, n_lo));
    n = times_gauss_f64(a, n, n_lo, &lo, &scaled);
    y = n * scaled * 0x1p-64;
    return select_f64(x > 0.0, 1.0 - y, y);
}
