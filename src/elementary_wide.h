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
