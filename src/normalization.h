/* What the loops of the normalizations need and Cython cannot say: a multiply-add for their results, and explicit vectors where
 * gcc makes less of a loop: sums that it would keep in memory, conversions, and loops of 8, which it unrolls before it can
 * vectorize them. The vectors are those of gcc and clang for any machine; where it has none so wide, several take their place. */
#ifndef FN_NORMALIZATION_H
#define FN_NORMALIZATION_H

#include <stddef.h>
#include <string.h>

#include "elementary.h"
#include "transport.h"
#include "vectors.h"

/* Without the instruction through double, where the product is exact, unlike FN_FMAF: the bounds hold there too. */
#if FN_HAS_FMA
#define fn_fmaf(a, b, c) FN_FMAF((a), (b), (c))
#else
#define fn_fmaf(a, b, c) ((float)((double)(a) * (b) + (c)))
#endif

/* sum + x, which was a float: conversions and additions wait for the same units, multiply-adds for others. With fewer registers
 * that is no gain. */
#if defined(__AVX512F__)
#define fn_add_widened(sum, x) FN_FMA((x), 1.0, (sum))
#else
#define fn_add_widened(sum, x) ((sum) + (x))
#endif

/* Sums in 32 lanes, in vectors, added to sums in 8 lanes of double */
static inline void fn_add_lanes_32(const fn_floats *lanes, fn_doubles *eight)
{
    fn_doubles sums[2 * FN_PARTS];
    for (int i = 0; i < FN_PARTS; i++)
        fn_widen_vector(lanes[i] + lanes[i + FN_PARTS], sums + 2 * i);
    for (int i = 0; i < FN_PARTS; i++)
        eight[i] += sums[i] + sums[i + FN_PARTS];
}
static inline void fn_add_lanes_64(const fn_doubles *lanes, fn_doubles *eight)
{
    for (int i = 0; i < FN_PARTS; i++)
        eight[i] += (lanes[i] + lanes[i + 2 * FN_PARTS]) + (lanes[i + FN_PARTS] + lanes[i + 3 * FN_PARTS]);
}

/* The same of sums in memory. memcpy would take vectors in pieces, for which a load of a vector waits. */
#define FN_MOVE_LANES(bits, real, vector, load) \
    static inline void fn_move_f##bits(const real *lanes, double *eight) \
    { \
        enum { STEP = FN_VECTOR_BYTES / sizeof(real) }; \
        vector vectors[32 / STEP]; \
        fn_doubles sums[FN_PARTS]; \
        for (int i = 0; i < 32 / STEP; i++) \
            vectors[i] = load(lanes, i * STEP); \
        for (int i = 0; i < FN_PARTS; i++) \
            sums[i] = FN_DOUBLES(eight, i * FN_STEP); \
        fn_add_lanes_##bits(vectors, sums); \
        for (int i = 0; i < FN_PARTS; i++) \
            FN_DOUBLES(eight, i * FN_STEP) = sums[i]; \
    }
FN_MOVE_LANES(32, float, fn_floats, FN_FLOATS)
FN_MOVE_LANES(64, double, fn_doubles, FN_DOUBLES)

/* 32 lanes of double in memory added up to 8: a vector of them, or all in memory */
static inline fn_doubles fn_folded(const double *lanes, int i)
{
    return (FN_DOUBLES(lanes, i) + FN_DOUBLES(lanes, 16 + i)) + (FN_DOUBLES(lanes, 8 + i) + FN_DOUBLES(lanes, 24 + i));
}
static inline void fn_fold_f64(const double *lanes, double *eight)
{
    for (int i = 0; i < 8; i += FN_STEP)
        FN_DOUBLES(eight, i) = fn_folded(lanes, i);
}

/* The total of 32 lanes, in vectors or in memory */
static inline double fn_total_of_lanes_32(const fn_floats *lanes)
{
    fn_doubles eight[FN_PARTS] = {{0}};
    fn_add_lanes_32(lanes, eight);
    return fn_total_of_eight(eight);
}
static inline double fn_total_of_lanes_64(const double *lanes)
{
    fn_doubles eight[FN_PARTS];
    for (int i = 0; i < FN_PARTS; i++)
        eight[i] = fn_folded(lanes, i * FN_STEP);
    return fn_total_of_eight(eight);
}

/* n floats, a multiple of 8, as doubles */
static inline void fn_widen(const float *x, double *y, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i += FN_STEP)
        FN_DOUBLES(y, i) = FN_WIDENED(x + i);
}

/* Add x - shift, of float data x, and its square, of 8 rows `apart` elements from each other, to the sums of n columns, and fetch
 * what follows in the rows. */
#define FN_ADD_EIGHT_ROWS(bits, real, term, term_of_one, pair) \
    static inline void fn_add_eight_rows_##bits(const real *restrict x, ptrdiff_t apart, ptrdiff_t n, \
                                                const double *restrict shift, double *restrict sums, double *restrict squares) \
    { \
        enum { LINE = 64 / sizeof(real) }; \
        ptrdiff_t i = 0; \
        (void)shift; \
        for (; i + FN_STEP <= n; i += FN_STEP) { \
            fn_doubles d[8], square = FN_DOUBLES(squares, i); \
            FN_ALL_EIGHT for (int row = 0; row < 8; row++) \
                d[row] = term(x + row * apart, i); \
            FN_ALL_EIGHT for (int row = 7; row >= 0; row--) \
                square = FN_FMA_DOUBLES(d[row], d[row], square); \
            FN_DOUBLES(sums, i) += (pair(d[0], d[1]) + pair(d[2], d[3])) + (pair(d[4], d[5]) + pair(d[6], d[7])); \
            FN_DOUBLES(squares, i) = square; \
            if (i % LINE == 0) \
                FN_ALL_EIGHT for (int row = 0; row < 8; row++) \
                    fn_prefetch(x + row * apart + i + 128); \
        } \
        for (; i < n; i++) { \
            double d[8]; \
            for (int row = 0; row < 8; row++) \
                d[row] = term_of_one(x + row * apart, i); \
            for (int row = 7; row >= 0; row--) \
                squares[i] = FN_FMA(d[row], d[row], squares[i]); \
            sums[i] += ((d[0] + d[1]) + (d[2] + d[3])) + ((d[4] + d[5]) + (d[6] + d[7])); \
        } \
    }
#define FN_TERM_32(x, i) FN_WIDENED((x) + (i))
#define FN_TERM_64(x, i) (FN_DOUBLES(x, i) - FN_DOUBLES(shift, i))
#define FN_TERM_OF_ONE_32(x, i) (x)[i]
#define FN_TERM_OF_ONE_64(x, i) ((x)[i] - shift[i])
#define FN_PAIR_32(a, b) FN_FMA_DOUBLES(a, FN_ONES, b) /* see fn_add_widened */
#define FN_PAIR_64(a, b) ((a) + (b))
FN_ADD_EIGHT_ROWS(32, float, FN_TERM_32, FN_TERM_OF_ONE_32, FN_PAIR_32)
FN_ADD_EIGHT_ROWS(64, double, FN_TERM_64, FN_TERM_OF_ONE_64, FN_PAIR_64)

/* Add g, g * u and g * g, g = dy * gamma and u = x * scale - centre, of a row of 16 values or more to three totals, and dy * x_hat,
 * x_hat = u * factor + offset, and dy to dgamma and dbeta; what lies `ahead` elements after dy and x is fetched. In 32
 * lanes: two vectors of them, which the registers hold, go through the row together, then the next two. The row's end has some
 * values in common with what came before, which do not count twice. */
#define FN_ADD_PART(at, d, u, sum, product, square) \
    do { \
        const fn_floats g = d * FN_FLOATS(gamma, at); \
        sum += g; \
        product = FN_FMA_FLOATS(g, u, product); \
        square = FN_FMA_FLOATS(g, g, square); \
        FN_FLOATS(dgamma, at) = FN_FMA_FLOATS(d, FN_FMA_FLOATS(u, factors, offsets), FN_FLOATS(dgamma, at)); \
        FN_FLOATS(dbeta, at) += d; \
    } while (0)

static inline void fn_row_back_sums(const float *restrict dy, const float *restrict x, const float *restrict gamma, ptrdiff_t n,
                                    float scale, float centre, float factor, float offset, float *restrict dgamma,
                                    float *restrict dbeta, double *total, double *products, double *squares, ptrdiff_t ahead)
{
    enum { STEP = 16 / FN_PARTS, PARTS = 2 * FN_PARTS };
    const fn_floats zero = {0}, scales = zero + scale, centres = zero - centre, factors = zero + factor, offsets = zero + offset;
    fn_floats sum[PARTS], product[PARTS], square[PARTS];
    const ptrdiff_t whole = n & -(ptrdiff_t)32;
    for (int first = 0; first < PARTS; first += 2) {
        fn_floats s[2] = {{0}, {0}}, p[2] = {{0}, {0}}, q[2] = {{0}, {0}};
        for (ptrdiff_t i = first * STEP; i < whole; i += 32) {
            if (first == 0 && ahead) {
                fn_prefetch(x + i + ahead);
                fn_prefetch(x + i + ahead + 16);
                fn_prefetch(dy + i + ahead);
                fn_prefetch(dy + i + ahead + 16);
            }
            for (int part = 0; part < 2; part++) {
                const ptrdiff_t at = i + part * STEP;
                const fn_floats d = FN_FLOATS(dy, at), u = FN_FMA_FLOATS(FN_FLOATS(x, at), scales, centres);
                FN_ADD_PART(at, d, u, s[part], p[part], q[part]);
            }
        }
        memcpy(sum + first, s, sizeof(s));
        memcpy(product + first, p, sizeof(p));
        memcpy(square + first, q, sizeof(q));
    }
    for (ptrdiff_t i = whole; i < n; i += 16) {
        const ptrdiff_t begin = i + 16 <= n ? i : n - 16;
        if (ahead) {
            fn_prefetch(x + begin + ahead);
            fn_prefetch(dy + begin + ahead);
        }
        for (int part = 0; part < FN_PARTS; part++) {
            const ptrdiff_t at = begin + part * STEP;
            const fn_floats d = fn_from_lane_32(FN_FLOATS(dy, at), part, i - begin);
            const fn_floats u = fn_from_lane_32(FN_FMA_FLOATS(FN_FLOATS(x, at), scales, centres), part, i - begin);
            FN_ADD_PART(at, d, u, sum[part], product[part], square[part]);
        }
    }
    *total += fn_total_of_lanes_32(sum);
    *products += fn_total_of_lanes_32(product);
    *squares += fn_total_of_lanes_32(square);
}

/* The normalization of 16 short sets side by side, whose elements have gammas of their own (layer, RMS and group norm of few
 * values): element j of set i is at 16 j + i. All is in double and about the mean, so that nothing is ever doubtful. Explicit
 * vectors, because gcc would keep the sums in memory. Without `centred` the mean is what is in `shift`. */
static inline void fn_short_moments(const double *x, ptrdiff_t n, const double *shift, int centred, double *mean, double *var)
{
    fn_doubles middle[FN_WIDE_PARTS], sum[FN_WIDE_PARTS] = {{0}}, square[FN_WIDE_PARTS] = {{0}};
    for (ptrdiff_t j = 0; centred && j < n; j++)
        for (int h = 0; h < FN_WIDE_PARTS; h++)
            sum[h] += FN_DOUBLES(x, 16 * j + FN_STEP * h) - FN_DOUBLES(shift, FN_STEP * h);
    for (int h = 0; h < FN_WIDE_PARTS; h++)
        middle[h] = FN_DOUBLES(shift, FN_STEP * h) + sum[h] / (double)n;
    for (ptrdiff_t j = 0; j < n; j++) {
        for (int h = 0; h < FN_WIDE_PARTS; h++) {
            fn_doubles d = FN_DOUBLES(x, 16 * j + FN_STEP * h) - middle[h];
            square[h] += d * d;
        }
    }
    for (int h = 0; h < FN_WIDE_PARTS; h++) {
        FN_DOUBLES(mean, FN_STEP * h) = middle[h];
        FN_DOUBLES(var, FN_STEP * h) = square[h] / (double)n;
    }
}

/* x = (x - mean) * invstd * gamma + beta */
static inline void fn_short_apply(double *x, ptrdiff_t n, const double *gamma, const double *beta, const double *mean,
                                  const double *invstd)
{
    for (ptrdiff_t j = 0; j < n; j++) {
        for (int h = 0; h < FN_WIDE_PARTS; h++) {
            const ptrdiff_t at = 16 * j + FN_STEP * h;
            fn_doubles hat = (FN_DOUBLES(x, at) - FN_DOUBLES(mean, FN_STEP * h)) * FN_DOUBLES(invstd, FN_STEP * h);
            FN_DOUBLES(x, at) = hat * FN_DOUBLES(gamma, at) + FN_DOUBLES(beta, at);
        }
    }
}

/* dy = invstd * (g - sum(g) / n - x_hat * sum(g * x_hat) / n), g = dy * gamma; x becomes x_hat. dy * x_hat and dy are added to
 * dgamma and dbeta. */
static inline void fn_short_back(double *dy, double *x, ptrdiff_t n, const double *gamma, int centred, const double *mean,
                                 const double *invstd, double *dgamma, double *dbeta)
{
    fn_doubles sum[FN_WIDE_PARTS] = {{0}}, product[FN_WIDE_PARTS] = {{0}};
    for (ptrdiff_t j = 0; j < n; j++) {
        for (int h = 0; h < FN_WIDE_PARTS; h++) {
            const ptrdiff_t at = 16 * j + FN_STEP * h;
            fn_doubles slope = FN_DOUBLES(dy, at), g = slope * FN_DOUBLES(gamma, at);
            fn_doubles hat = (FN_DOUBLES(x, at) - FN_DOUBLES(mean, FN_STEP * h)) * FN_DOUBLES(invstd, FN_STEP * h);
            sum[h] += g;
            product[h] += g * hat;
            FN_DOUBLES(dy, at) = g;
            FN_DOUBLES(x, at) = hat;
            FN_DOUBLES(dgamma, at) += slope * hat;
            FN_DOUBLES(dbeta, at) += slope;
        }
    }
    for (int h = 0; h < FN_WIDE_PARTS; h++) {
        sum[h] = centred ? sum[h] / (double)n : (fn_doubles){0};
        product[h] /= (double)n;
    }
    for (ptrdiff_t j = 0; j < n; j++) {
        for (int h = 0; h < FN_WIDE_PARTS; h++) {
            const ptrdiff_t at = 16 * j + FN_STEP * h;
            fn_doubles rest = (FN_DOUBLES(dy, at) - sum[h]) - product[h] * FN_DOUBLES(x, at);
            FN_DOUBLES(dy, at) = rest * FN_DOUBLES(invstd, FN_STEP * h);
        }
    }
}

#endif
