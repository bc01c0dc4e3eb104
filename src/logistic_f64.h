/* The functions around 1 / (1 + e^-x) in float64 and their derivatives: sigmoid, silu, softplus, gelu's approximation
   and mish. Included by elementary.h after elementary_f64.h. Where a power of two may be below the normal numbers it is
   handed on times 2^64, and the result is multiplied with 2^-64 at the end. */

FN_BOUND(double, fn_logistic_low_f64, -753.0); /* below, x e^x is 0 */
FN_BOUND(double, fn_logistic_high_f64, 50.0); /* above, 1 + e^-x is 1 */
FN_BOUND(double, fn_logistic_end_f64, 753.0);

/* 2^-64 (1 + 2^k e^r) from power = 2^(k - 64): 1 + 2^k with its rounding error, then the rest. Rises with r. */
FN double one_plus_exp_f64(double r, double power)
{
    double lo, sum = fast_two_sum_f64(power, 0x1p-64, &lo);
    return sum + FN_FMA(power, exp_minus_one_f64(r), lo);
}

/* 1 / (1 + e^-x) */
FN double logistic_f64(double x)
{
    double inside = max_f64(min_f64(x, fn_logistic_high_f64), fn_logistic_low_f64);
    double t, r = reduce_f64(-inside, F64_BIAS - 64, &t);
    return 0x1p-64 / one_plus_exp_f64(r, power_f64(t));
}

/* x / (1 + e^-x); above 50 it is x */
FN double silu_f64(double x)
{
    double inside = max_f64(min_f64(x, fn_logistic_high_f64), fn_logistic_low_f64);
    double t, r = reduce_f64(-inside, F64_BIAS - 64, &t);
    return select_f64(x > 50.0, x, inside / one_plus_exp_f64(r, power_f64(t)) * 0x1p-64);
}

/* 1 / (1 + 2^k e^r) from power = 2^(k - 64); faster than one_plus_exp, with half the multiplications of exp_rest, but
   it may step back. e^r = n / d, and n, d = G +- w, even and odd in r, scaled to stay below 2, where roundings are
   finer; the rounding error of n is carried along. */
FN double quick_logistic_f64(double r, double power)
{
    double z = r * r, G = FN_FMA(FN_FMA(0x1.b2a833219c3bcp-10, z, 0x1.7c6f0b85aebe2p-3), z, 1.671875);
    double w = r * FN_FMA(FN_FMA(0x1.cf6a72826abb4p-15, z, 0x1.7c66d8c165c4dp-6), z, 0.8359375);
    double d = G - w, n_lo, n = fast_two_sum_f64(d, w + w, &n_lo);
    double scaled = from_bits_f64(bits_f64(d) - (UINT64_C(64) << 52)); /* d times 2^-64 */
    return scaled / FN_FMA(power, n, FN_FMA(power, n_lo, scaled));
}

/* 1 / (1 + e^x) */
FN double log_sigmoid_slope_first_f64(double x, double *power)
{
    double t, r = reduce_f64(min_f64(max_f64(x, -fn_logistic_high_f64), fn_exp_inf_f64), F64_BIAS - 64, &t);
    *power = power_f64(t);
    return r;
}
FN double log_sigmoid_slope_then_f64(double x, double r, double power)
{
    (void)x;
    return quick_logistic_f64(r, power);
}
FN double log_sigmoid_slope_f64(double x)
{
    double power, r = log_sigmoid_slope_first_f64(x, &power);
    return quick_logistic_f64(r, power);
}

#define F64_NEAR -0x1.c34366179d427p-1 /* -log(1 + sqrt(2)), where 1 + e^x is sqrt(2) */

/* For log(1 + e) = log1p_near(f, *f_lo), e = s (1 + p), s = 2^k <= 1: f + *f_lo is e, or where near (e - 1) / 2, which
   leaves ln 2 to be added. *power is s or s / 2, the slope of f in p. */
FN double log1p_argument_f64(double s, double p, int near, double *power, double *f_lo)
{
    double base, f;
    *power = from_bits_f64(bits_f64(s) - bits_f64(select_f64(near, 0x1p-1022, 0.0)));
    base = *power - select_f64(near, 0.5, 0.0);
    f = FN_FMA(*power, p, base);
    *f_lo = FN_FMA(*power, p, base - f);
    return f;
}

/* log(1 + e^-|x|), where *near without ln 2 */
FN double log1p_exp_f64(double x, int *near)
{
    double z = max_f64(-abs_f64(x), fn_logistic_low_f64), t, r = reduce_f64(z, F64_BIAS + 64, &t);
    double p = exp_minus_one_f64(r), power, f, f_lo;
    *near = z > F64_NEAR;
    f = log1p_argument_f64(power_f64(t) * 0x1p-64, p, *near, &power, &f_lo);
    if (!FN_HAS_FMA)
        f_lo += power * (exp_rest_f64(r, 0.0) - (p - r)); /* or p, rounded twice, could take two steps at once */
    return log1p_near_f64(f, f_lo);
}

/* log(1 + e^x) = max(x, 0) + log(1 + e^-|x|). Near 0 x goes to the logarithm, which is about -x / 2 there, before
   ln 2: so their sum rises with x. */
FN double softplus_one_f64(double x)
{
    int near;
    double log = log1p_exp_f64(x, &near);
    return (max_f64(x, select_f64(near, F64_LN2_LO, 0.0)) + log) + select_f64(near, F64_LN2, 0.0);
}
/* -log(1 + e^-x), likewise */
FN double log_sigmoid_f64(double x)
{
    int near;
    double log = log1p_exp_f64(x, &near);
    return (min_f64(x, select_f64(near, -F64_LN2_LO, -0.0)) - log) - select_f64(near, F64_LN2, 0.0);
}

FN_BOUND(double, fn_softplus_low_f64, -1095.0); /* below, e^x / beta is 0 for beta >= 2^-500 ... */
FN_BOUND(double, fn_softplus_far_f64, -1495.0); /* ... and for any beta */
FN_BOUND(double, fn_softplus_power_f64, F64_BIAS - 560);

/* log(1 + e^(beta x)) / beta. What e^-|beta x| is smaller than 2^-560 comes in at the end, and where beta is tiny
   2^900: or the quotient could leave the normal numbers on the way. */
FN double softplus_f64(double x, double beta)
{
    int near, tiny = beta < 0x1p-500;
    double up = select_f64(tiny, 900.0, 0.0), scaled = beta * select_f64(tiny, 0x1p900, 1.0);
    double ln2 = min_f64(F64_LN2 / beta, 0x1.fffffffffffffp1023); /* finite: ln2_lo is what lies beyond */
    double ln2_lo = (remainder_f64(ln2, beta, F64_LN2) + F64_LN2_LO) / beta;
    double z_lo, z = two_prod_f64(-abs_f64(x), beta, &z_lo);
    double inside = max_f64(z, select_f64(tiny, fn_softplus_far_f64, fn_softplus_low_f64));
    double t, r_lo, r = reduce_parts_f64(inside, low_part_f64(z_lo), F64_BIAS, &t, &r_lo);
    double rest = exp_rest_f64(r, r_lo), p = r + rest, power, f, f_lo, log;
    double t_near = max_f64(t, fn_softplus_power_f64), beyond = power_f64((t - t_near) + (F64_BIAS + up));
    near = inside > F64_NEAR;
    f = log1p_argument_f64(power_f64(t_near), p, near, &power, &f_lo);
    log = log1p_near_f64(f, FN_FMA(power, rest - (p - r), f_lo)) / scaled * beyond;
    return (max_f64(x, select_f64(near, ln2_lo, 0.0)) + log) + select_f64(near, ln2, 0.0);
}
/* 1 / (1 + e^(-beta x)) */
FN double softplus_slope_f64(double x, double beta)
{
    double z_lo, z = two_prod_f64(x, -beta, &z_lo), inside = min_f64(max_f64(z, -fn_logistic_high_f64), fn_exp_inf_f64);
    double t, r_lo, r = reduce_parts_f64(inside, low_part_f64(z_lo), F64_BIAS - 64, &t, &r_lo);
    return quick_logistic_f64(r, power_f64(t));
}

/* The derivative at -a of x / (1 + e^-u(x)), good on either side of its zero, where u(-a) = -a - a_lo, a >= 0, and
   b + b_lo = a u'(-a).

   With e = e^(-a - a_lo) = s (1 + p) and 1 + m = 1 / (1 + p) it is e (e - (b - 1)) / (1 + e)^2 = s n / d with
   n = s - (b - 1) + s p and d = (1 + s)^2 + m + s^2 p, which are rounded once but for low parts. */
FN double logistic_slope_f64(double a, double a_lo, double b, double b_lo)
{
    double t, r_lo, r = reduce_parts_f64(-a, -a_lo, F64_BIAS + 64, &t, &r_lo);
    double scaled = power_f64(t), s = scaled * 0x1p-64;
    double c, h_lo, h = sinh_cosh_f64(r, r_lo, &h_lo, &c), p = c + h, m = c - h;
    double less = b - 1.0, start = s - less, n = FN_FMA(s, p, start);
    double n_lo = (s - (start + less)) + FN_FMA(s, p, start - n);
    double square = FN_FMA(s, s + 2.0, 1.0), rest = FN_FMA(s * s, p, m), d = square + rest, q = n / d;
    double d_lo = (rest - (d - square)) + FN_FMA(s, s + 2.0, 1.0 - square);
    n_lo = FN_FMA(s, (c - (p - h)) + h_lo, n_lo - ((b - (less + 1.0)) + b_lo));
    return FN_FMA(FN_FMA(-q, d_lo, n_lo), rough_inverse_f64(d), q) * scaled * 0x1p-64;
}

/* silu'(x), silu(x) = x / (1 + e^-x) */
FN double silu_slope_f64(double x)
{
    double a = min_f64(abs_f64(x), fn_logistic_end_f64), slope = logistic_slope_f64(a, 0.0, a, 0.0);
    return select_f64(x > 0.0, 1.0 - slope, slope);
}

/* sqrt(8 / pi) (x + 0.044715 x^3) = u + *u_lo, and its derivative times x is *b + *b_lo; |x| <= 26 */
FN double gelu_tanh_argument_f64(double x, double *u_lo, double *b, double *b_lo)
{
    double square_lo, square = two_prod_f64(x, x, &square_lo), f, f_lo, u;
    double cubic_lo, cubic = two_prod_f64(square, 0x1.2444f2a4d8b4bp-4, &cubic_lo);
    cubic_lo += FN_FMA(square, -0x1.6c843a29d1c70p-61, square_lo * 0x1.2444f2a4d8b4bp-4);
    f = two_sum_f64(0x1.9884533d43651p+0, cubic, &f_lo);
    f_lo += cubic_lo + -0x1.cbc0d30ebfd15p-54;
    u = two_prod_f64(x, f, u_lo);
    *u_lo = FN_FMA(x, f_lo, *u_lo);
    f = two_sum_f64(f, cubic + cubic, &square_lo);
    *b = two_prod_f64(x, f, b_lo);
    *b_lo += x * (f_lo + square_lo + (cubic_lo + cubic_lo));
    return u;
}

FN_BOUND(double, fn_gelu_tanh_low_f64, -21.6); /* below, the function and its derivative are 0 */
FN_BOUND(double, fn_gelu_tanh_high_f64, 8.0); /* above, the function is x */
FN_BOUND(double, fn_gelu_tanh_end_f64, 21.6);

/* x / (1 + e^-u), u = sqrt(8 / pi) (x + 0.044715 x^3) */
FN double gelu_tanh_f64(double x)
{
    double inside = max_f64(min_f64(x, fn_gelu_tanh_high_f64), fn_gelu_tanh_low_f64), t, r, r_lo;
    double u_lo, b, b_lo, u = gelu_tanh_argument_f64(inside, &u_lo, &b, &b_lo);
    r = reduce_parts_f64(-u, -u_lo, F64_BIAS - 64, &t, &r_lo);
    return select_f64(x > 8.0, x, inside / one_plus_exp_f64(r, power_f64(t)) * 0x1p-64);
}
FN double gelu_tanh_slope_f64(double x)
{
    double a = min_f64(abs_f64(x), fn_gelu_tanh_end_f64);
    double u_lo, b, b_lo, u = gelu_tanh_argument_f64(a, &u_lo, &b, &b_lo);
    double slope = logistic_slope_f64(u, u_lo, b, b_lo);
    return select_f64(x > 0.0, 1.0 - slope, slope);
}

FN_BOUND(double, fn_mish_high_f64, 22.0); /* above, mish is x and its derivative 1 */

/* For the two functions below, with e = e^x = s (1 + p) and 1 + m = 1 / (1 + p): d + d_lo = e + 2 + 2 / e =
   s + 2 + 2 / s + s p + 2 m / s, below 0 times s. s, 1 and 1 / s, so multiplied, are s unit, unit and inverse. */
struct mish_parts { double s, scaled, unit, inverse, p, m, m_lo, d, d_lo; };

FN struct mish_parts mish_parts_f64(double x, int below)
{
    struct mish_parts e;
    double t, r_lo, r = reduce_parts_f64(x, 0.0, F64_BIAS + 64, &t, &r_lo), start, start_lo, rest;
    double c, h_lo, h = sinh_cosh_f64(r, r_lo, &h_lo, &c);
    e.p = c + h;
    e.m = c - h;
    e.m_lo = (c - (e.m + h)) - h_lo;
    e.scaled = power_f64(t);
    e.s = e.scaled * 0x1p-64;
    e.unit = select_f64(below, e.s, 1.0);
    e.inverse = select_f64(below, 1.0, from_bits_f64((UINT64_C(2046) << 52) - bits_f64(e.s)));
    start = two_sum_f64(e.s * e.unit + 2.0 * e.unit, 2.0 * e.inverse, &start_lo);
    rest = FN_FMA(e.s * e.unit, e.p, 2.0 * e.inverse * e.m);
    e.d = start + rest;
    e.d_lo = (rest - (e.d - start)) + start_lo;
    return e;
}
/* y, below 0 times s */
FN double mish_scaled_f64(double y, int below, double scaled)
{
    return y * select_f64(below, scaled, 1.0) * select_f64(below, 0x1p-64, 1.0);
}

/* x tanh(log(1 + e^x)) = x (e + 2) / (e + 2 + 2 / e) */
FN double mish_f64(double x)
{
    int below = x < 0.0;
    double top = max_f64(x, fn_logistic_low_f64), inside = min_f64(top, fn_mish_high_f64);
    struct mish_parts e = mish_parts_f64(inside, below);
    double rest = FN_FMA(e.s, e.p, e.s), n = 2.0 + rest, q = n / e.d;
    double n_lo = (rest - (n - 2.0)) + FN_FMA(e.s, e.p, e.s - rest);
    double q_lo = (remainder_f64(q, e.d, n) + FN_FMA(-q, e.d_lo, n_lo)) * rough_inverse_f64(e.d);
    return mish_scaled_f64(FN_FMA(q_lo, inside, q * top), below, e.scaled);
}

/* mish'(x) = n / (e + 2 + 2 / e)^2 with n = 4 (1 + x) / e + (4 x + 6) + 4 e + e^2. At its zero, -1.19, these terms
   cancel, so they are summed first as if p and m were 0, which is nearly exact there. */
FN double mish_slope_f64(double x)
{
    int below = x < 0.0;
    double inside = min_f64(max_f64(x, fn_logistic_low_f64), fn_mish_high_f64);
    struct mish_parts e = mish_parts_f64(inside, below);
    double factor = FN_FMA(4.0, inside, 4.0), first = factor * e.inverse, square = e.s * e.unit, cube = e.s * square;
    double pair = FN_FMA(factor + 2.0, e.unit, first), pair_lo = FN_FMA(factor + 2.0, e.unit, first - pair);
    double start_lo, start = two_sum_f64(pair, FN_FMA(4.0, square, cube), &start_lo);
    double rest = FN_FMA(first, e.m, FN_FMA(e.p + 2.0, cube, 4.0 * square) * e.p), n = start + rest;
    double n_lo = FN_FMA(first, e.m_lo, (rest - (n - start)) + (start_lo + pair_lo));
    double d_lo, d = two_prod_f64(e.d, e.d, &d_lo), q = n / d;
    d_lo = FN_FMA(e.d + e.d, FN_FMA(2.0 * e.inverse, e.m_lo, e.d_lo), d_lo);
    q = FN_FMA(remainder_f64(q, d, n) + FN_FMA(-q, d_lo, n_lo), rough_inverse_f64(d), q);
    return mish_scaled_f64(q, below, e.scaled);
}
