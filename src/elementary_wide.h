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

/* e^(-z / 2) / sqrt(2 pi), 0 <= z <= 1400: with z = a^2 the density of the normal distribution */
FN double density_wide(double z)
{
    double t = FN_FMA(z, -0.5 * F64_LOG2E, F64_BIAS), r = FN_FMA(t - F64_BIAS, 2.0 * F64_LN2, z);
    double p = FN_FMA(FN_FMA(0x1.2168fe6fa73a3p-17, r, -0x1.b5ebe80cb6bc4p-14), r, 0x1.105ad48abcb8ap-10);
    p = FN_FMA(FN_FMA(FN_FMA(p, r, -0x1.10572f4535e29p-7), r, 0x1.98844efd201f5p-5), r, -0x1.988454368f983p-3);
    return FN_FMA(p, r, 0x1.9884534112585p-2) * power_f64(t);
}

/* m Phi(-a) / phi(a), z = a^2, 0 <= a <= 15, where Phi and phi are the normal distribution function and its density:
   Mills' ratio, a quotient of monic polynomials of degrees 4 and 5, of whose multiplications half are made additions */
FN double times_mills_wide(double m, double a, double z)
{
    double above = FN_FMA(FN_FMA(a, 0x1.2d442de1c86cbp+3, z + 0x1.ee086665020f7p+4), z + 0x1.432780b25822p+3, -0x1.9f35fd81f19ebp+7);
    double below = FN_FMA(a + 0x1.2d4503c4f0d4bp+3, z + 0x1.32079026637b1p+5, -0x1.229090b25e111p+8);
    return m * above / FN_FMA(below, z + 0x1.dbcf787794a87p+1, -0x1.5f03277ace7c7p+7);
}

FN_BOUND(float, fn_gelu_end_wide, 15.0f); /* beyond, e^(-a^2 / 2) is 0 in float32 */

/* x Phi(x) = max(x, 0) - a Phi(-a), a = |x| */
FN float gelu_wide(float x)
{
    double a = min_f32(abs_f32(x), fn_gelu_end_wide), z = a * a;
    return (float)FN_FMA(-times_mills_wide(a, a, z), density_wide(z), max_f32(x, fn_minus_zero_f32));
}

/* Phi(x) + x phi(x), and 1 - the same of -x. The choice is made in float: one in double by a float vectorizes badly. */
FN float gelu_slope_wide(float x)
{
    double a = min_f32(abs_f32(x), fn_gelu_end_wide), z = a * a;
    float tail = (float)((times_mills_wide(1.0, a, z) - a) * density_wide(z));
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
