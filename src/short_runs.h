/* The gradients of sets of short runs, 8 to some hundred values with one gamma (see back_short_runs in
 * normalization_set_loops.pxi.tp), all in double. As run_gradients.h does it, most of their time would go to adding up lanes and to
 * what is done once for a run; of long runs floats take half as long there. */
#ifndef FN_SHORT_RUNS_H
#define FN_SHORT_RUNS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "transport.h"
#include "vectors.h"

/* The totals of so many times four lanes, each in the order of fn_total_of_eight */
static inline void fn_totals_of_fours(const fn_double4 *lanes, ptrdiff_t count, double *totals)
{
    ptrdiff_t i = 0;
#if defined(__AVX__)
    for (; i + 4 <= count; i += 4) {
        const __m256d low0 = _mm256_unpacklo_pd((__m256d)lanes[i], (__m256d)lanes[i + 1]);
        const __m256d low1 = _mm256_unpacklo_pd((__m256d)lanes[i + 2], (__m256d)lanes[i + 3]);
        const __m256d high0 = _mm256_unpackhi_pd((__m256d)lanes[i], (__m256d)lanes[i + 1]);
        const __m256d high1 = _mm256_unpackhi_pd((__m256d)lanes[i + 2], (__m256d)lanes[i + 3]);
        const __m256d even = _mm256_permute2f128_pd(low0, low1, 0x20) + _mm256_permute2f128_pd(low0, low1, 0x31);
        const __m256d odd = _mm256_permute2f128_pd(high0, high1, 0x20) + _mm256_permute2f128_pd(high0, high1, 0x31);
        _mm256_storeu_pd(totals + i, even + odd);
    }
#endif
    for (; i < count; i++)
        totals[i] = (lanes[i][0] + lanes[i][2]) + (lanes[i][1] + lanes[i][3]);
}

/* Totals of g and g * u, u = x - mean, of `runs` runs, of which `channels` have one mean; meanwhile what lies `ahead` elements after
 * x, if not 0, is fetched. The last values of a run come with some of those before, which do not count twice. */
#define FN_SUM_SHORT_RUNS(bits, real, load) \
    static inline void fn_lanes_of_run_##bits(const real *dy, const real *x, ptrdiff_t n, double mean, fn_double4 *sum, \
                                              fn_double4 *product) \
    { \
        const fn_doubles middle = mean - (fn_doubles){0}; \
        const ptrdiff_t rest = n % 8; \
        fn_doubles sums[FN_PARTS] = {{0}}, products[FN_PARTS] = {{0}}; \
        for (ptrdiff_t at = 0; at + 8 <= n; at += 8) { \
            for (int part = 0; part < FN_PARTS; part++) { \
                const fn_doubles g = load(dy + at + part * FN_STEP), u = load(x + at + part * FN_STEP) - middle; \
                sums[part] += g; \
                products[part] = FN_FMA_DOUBLES(g, u, products[part]); \
            } \
        } \
        for (int part = 0; part < FN_PARTS && rest; part++) { \
            const ptrdiff_t at = n - 8 + part * FN_STEP; \
            const fn_doubles g = fn_from_lane_64(load(dy + at), part, 8 - rest); \
            const fn_doubles u = fn_from_lane_64(load(x + at) - middle, part, 8 - rest); \
            sums[part] += g; \
            products[part] = FN_FMA_DOUBLES(g, u, products[part]); \
        } \
        *sum = FN_QUARTER(sums, 0) + FN_QUARTER(sums, 1); \
        *product = FN_QUARTER(products, 0) + FN_QUARTER(products, 1); \
    } \
    static inline __attribute__((always_inline)) void fn_sum_runs_of_##bits( \
        const real *dy, const real *x, ptrdiff_t runs, ptrdiff_t n, const double *mean, ptrdiff_t channels, ptrdiff_t ahead, \
        double *totals, double *products) \
    { \
        enum { MOST = 32 }; \
        ptrdiff_t channel = 0; \
        for (ptrdiff_t first = 0; first < runs; first += MOST) { \
            const ptrdiff_t count = runs - first < MOST ? runs - first : MOST; \
            fn_double4 sum[MOST], product[MOST]; \
            for (ptrdiff_t run = 0; run < count; run++, dy += n, x += n) { \
                if (ahead) \
                    fn_fetch(x + ahead, n * sizeof(real)); \
                fn_lanes_of_run_##bits(dy, x, n, *mean, sum + run, product + run); \
                if (++channel == channels) { \
                    channel = 0; \
                    mean++; \
                } \
            } \
            fn_totals_of_fours(sum, count, totals + first); \
            fn_totals_of_fours(product, count, products + first); \
        } \
    } \
    static inline void fn_sum_short_runs_##bits(const real *dy, const real *x, ptrdiff_t runs, ptrdiff_t n, const double *mean, \
                                                ptrdiff_t channels, ptrdiff_t ahead, double *totals, double *products) \
    { \
        if (n == 16) /* 4x4: nothing is left of loops and rests */ \
            fn_sum_runs_of_##bits(dy, x, runs, 16, mean, channels, ahead, totals, products); \
        else \
            fn_sum_runs_of_##bits(dy, x, runs, n, mean, channels, ahead, totals, products); \
    }

/* dx = dy * gamma * invstd + (u * b + c) of sets of runs. dx may be dy or x, so the last vectors of a run, if they have values in
 * common with others, are computed first. Past the caches results gather in a block, and the next sets of dy are fetched. */
#define FN_BACK_SHORT_RUNS(bits, real, load, store) \
    static inline __attribute__((always_inline)) void fn_back_runs_of_##bits( \
        const real *dy, const real *x, real *dx, ptrdiff_t sets, ptrdiff_t channels, ptrdiff_t n, const double *mean, \
        const double *invstd, const double *gamma, const double *b, const double *c, int streamed) \
    { \
        enum { MOST = FN_BLOCK_BYTES / sizeof(real) }; \
        const fn_doubles zero = {0}; \
        const ptrdiff_t all = sets * channels * n; \
        ptrdiff_t at = 0, done = 0; \
        real block[MOST]; \
        for (ptrdiff_t run = 0, number = 0, channel = 0; run < sets * channels; run++) { \
            const fn_doubles as = invstd[number] * gamma[run] - zero, bs = b[number] - zero, cs = c[number] - zero; \
            const fn_doubles middle = mean[number] - zero; \
            real *results = streamed ? block - done : dx; \
            fn_doubles end[FN_PARTS]; \
            if (streamed) \
                fn_fetch(dy + at + all, n * sizeof(real)); \
            for (int part = 0; part < FN_PARTS && n % 8; part++) \
                end[part] = FN_BACK_SHORT(load, at + n - 8 + part * FN_STEP); \
            for (ptrdiff_t i = at; i + 8 <= at + n; i += 8) { \
                for (int part = 0; part < FN_PARTS; part++) \
                    store(results + i + part * FN_STEP, FN_BACK_SHORT(load, i + part * FN_STEP)); \
            } \
            at += n; \
            for (int part = 0; part < FN_PARTS && n % 8; part++) \
                store(results + at - 8 + part * FN_STEP, end[part]); \
            if (streamed && (at == all || at + n > done + MOST)) { \
                fn_stream_block(dx + done, block, (at - done) * (ptrdiff_t)sizeof(real)); \
                done = at; \
            } \
            if (++channel == channels) { \
                channel = 0; \
                number++; \
            } \
        } \
    } \
    static inline void fn_back_short_runs_##bits(const real *dy, const real *x, real *dx, ptrdiff_t sets, ptrdiff_t channels, \
                                                 ptrdiff_t n, const double *mean, const double *invstd, const double *gamma, \
                                                 const double *b, const double *c, int streamed) \
    { \
        if (n == 16 && !streamed) \
            fn_back_runs_of_##bits(dy, x, dx, sets, channels, 16, mean, invstd, gamma, b, c, 0); \
        else if (n == 16) \
            fn_back_runs_of_##bits(dy, x, dx, sets, channels, 16, mean, invstd, gamma, b, c, 1); \
        else if (!streamed) \
            fn_back_runs_of_##bits(dy, x, dx, sets, channels, n, mean, invstd, gamma, b, c, 0); \
        else \
            fn_back_runs_of_##bits(dy, x, dx, sets, channels, n, mean, invstd, gamma, b, c, 1); \
    }
#define FN_BACK_SHORT(load, at) FN_FMA_DOUBLES(load(dy + (at)), as, FN_FMA_DOUBLES(load(x + (at)) - middle, bs, cs))
#define FN_LOAD_64(x) FN_DOUBLES(x, 0)
#define FN_STORE_64(x, value) (FN_DOUBLES(x, 0) = (value))
FN_SUM_SHORT_RUNS(32, float, FN_WIDENED)
FN_SUM_SHORT_RUNS(64, double, FN_LOAD_64)
FN_BACK_SHORT_RUNS(32, float, FN_WIDENED, FN_STORE_NARROWED)
FN_BACK_SHORT_RUNS(64, double, FN_LOAD_64, FN_STORE_64)

#endif
