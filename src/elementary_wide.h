/* Elementary functions in float64 that are only as accurate as a float32 result needs, about 2^-29. Included by elementary.h.

   Where a float32 formula would need every intermediate result in two parts, because it cancels or because its tail
   underflows, the same formula on doubles needs neither: the 29 more bits take up the errors, 2^-150 is a normal number,
   and the conversion back rounds once. src/fit.py makes the coefficients. */

/* e^x - 1 = *power * (1 + p) - 1, p returned, *power = 2^k; |x| <= 700 or NaN */
FN double exp_core_wide(double x, double *power)
{
    double t = FN_FMA(x, 0x1.71547652b82fep+0, F64_MAGIC + 1023), k = t - (F64_MAGIC + 1023);
    double r = FN_FMA(k, -0x1.62e42fefa39efp-1, x), r2 = r * r;
    double p01 = FN_FMA(0x1.555492p-3, r, 0x1.fffffcp-2), p23 = FN_FMA(0x1.123984p-7, r, 0x1.5558aap-5);
    *power = from_bits_f64(bits_f64(t) << 52);
    return FN_FMA(FN_FMA(FN_FMA(0x1.6a53fep-10, r2, p23), r2, p01), r2, r);
}

FN double exp_wide(double x)
{
    double power, p = exp_core_wide(x, &power);
    return FN_FMA(power, p, power);
}

FN double expm1_wide(double x)
{
    double power, p = exp_core_wide(x, &power);
    return FN_FMA(power, p, power - 1.0);
}

/* log(1 + e), 0 <= e <= 1 */
FN double log1p_wide(double e)
{
    double s = e / (2.0 + e), z = s * s, z2 = z * z;
    double p01 = FN_FMA(0x1.9996a85d6add8p-2, z, 0x1.55555856cbae1p-1), p23 = FN_FMA(0x1.b6d67d85e4f08p-3, z, 0x1.25097473dc442p-2);
    double p = FN_FMA(FN_FMA(0x1.f1af5a0abc9fp-3, z2, p23), z2, p01);
    return FN_FMA(s * z, p, s + s);
}

/* x between +-110, beyond which e^x and its product with x round to zero or infinity in float32 */
FN_BOUND(float, fn_wide_low, -110.0f);
FN_BOUND(float, fn_wide_high, 110.0f);
FN float within_wide(float x) { return min_f32(max_f32(x, fn_wide_low), fn_wide_high); }

/* x between +-700, for arguments that are products or quotients of float32 numbers */
FN_BOUND(double, fn_exp_low_wide, -700.0);
FN_BOUND(double, fn_exp_high_wide, 700.0);
FN double exp_argument_wide(double x)
{
    x = fn_exp_low_wide > x ? fn_exp_low_wide : x;
    return fn_exp_high_wide < x ? fn_exp_high_wide : x;
}

/* Phi(-a) * e^(a^2 / 2) for 0 <= a <= 15, where Phi is the normal distribution function */
FN double normal_tail_wide(double a)
{
    double u = 1.0 / (a + 3.0), t = u - 0x1.8ep-3, t2 = t * t, t4 = t2 * t2;
    double p01 = FN_FMA(0x1.c4a7f124e5ep+1, t, 0x1.a3efa6ddec47fp-1), p23 = FN_FMA(0x1.0a345f401b428p+3, t, 0x1.21c0d6dfc200dp+3);
    double p45 = FN_FMA(-0x1.517203767cf1dp+5, t, -0x1.45011b1dfb5e7p+4), p67 = FN_FMA(0x1.53edd48758672p+7, t, 0x1.74247e2bcc43p+6);
    double p89 = FN_FMA(-0x1.9be1ebb382514p+8, t, -0x1.39923de968179p+9);
    double p8 = FN_FMA(0x1.9be206a0b55aap+11, t2, p89), p4 = FN_FMA(p67, t2, p45), p0 = FN_FMA(p23, t2, p01);
    return u * FN_FMA(FN_FMA(p8, t4, p4), t4, p0);
}

FN_BOUND(float, fn_gelu_end_wide, 15.0f); /* beyond, e^(-a^2 / 2) is 0 in float32 */

/* x Phi(x) */
FN float gelu_wide(float x)
{
    double a = min_f32(abs_f32(x), fn_gelu_end_wide);
    double tail = a * normal_tail_wide(a) * exp_wide(-0.5 * a * a);
    return (float)(max_f32(x, fn_minus_zero_f32) - tail);
}

/* Phi(x) + x phi(x), and 1 - the same of -x. The choice is made in float: one in double by a float vectorizes badly. */
FN float gelu_slope_wide(float x)
{
    double a = min_f32(abs_f32(x), fn_gelu_end_wide);
    float tail = (float)(FN_FMA(-0x1.9884533d43651p-2, a, normal_tail_wide(a)) * exp_wide(-0.5 * a * a));
    return select_f32(x > 0.0f, 1.0f - tail, tail);
}

FN_BOUND(float, fn_gelu_tanh_low_wide, -20.0f); /* u and u' as below are in range there, and e^u is 0 */
FN_BOUND(float, fn_gelu_tanh_high_wide, 20.0f);

/* x / (1 + e^-u), u = sqrt(8 / pi) (x + 0.044715 x^3) */
FN float gelu_tanh_wide(float x)
{
    float near = max_f32(x, fn_gelu_tanh_low_wide);
    double z = min_f32(near, fn_gelu_tanh_high_wide);
    return (float)(near / (1.0 + exp_wide(z * FN_FMA(-0x1.2444f2a4d8b4bp-4, z * z, -0x1.9884533d43651p+0))));
}
FN float gelu_tanh_slope_wide(float x)
{
    double z = min_f32(max_f32(x, fn_gelu_tanh_low_wide), fn_gelu_tanh_high_wide), z2 = z * z;
    double e = exp_wide(z * FN_FMA(-0x1.2444f2a4d8b4bp-4, z2, -0x1.9884533d43651p+0)), s = 1.0 / (1.0 + e);
    return (float)FN_FMA(z * FN_FMA(0x1.b6676bf7450f0p-3, z2, 0x1.9884533d43651p+0) * (e * s), s, s);
}
