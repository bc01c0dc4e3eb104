/* The gradients of sets of short runs, of at least 8 values with one gamma (see back_short_runs in
 * normalization_set_loops.pxi.tp), all in double. As run_gradients.h does it, most of their time would go to adding up lanes and
 * to what is done once for a run; of long runs floats take half as long there. */
#ifndef FN_SHORT_RUNS_H
#define FN_SHORT_RUNS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "transport.h"
#include "vectors.h"

/* Eight values are taken at a time; the last eight of a row come with some before them, of which the first `skip` are zero. */
#define FN_EIGHT static inline __attribute__((always_inline))
#define FN_EACH_EIGHT(n, function, ...) \
    for (ptrdiff_t first = 0; first + 8 <= (n); first += 8) \
        function(first, 0, __VA_ARGS__); \
    if ((n) % 8) \
        function((n) - 8, 8 - (n) % 8, __VA_ARGS__)
FN_EIGHT fn_doubles fn_skipped(fn_doubles eight, int part, ptrdiff_t skip)
{
    return skip ? fn_from_lane_64(eight, part, skip) : eight;
}

/* Write rows of results, `result` of the ones from an index on, after `begin` for every row. y may be what they are computed from,
 * so the last eight of a row, if they have some in common with others, are computed first. Past the caches results gather in a
 * block. */
#define FN_WRITE_ROWS(real, store, y, rows, n, streamed, begin, result) \
    do { \
        enum { MOST = FN_BLOCK_BYTES / sizeof(real) }; \
        real block[MOST]; \
        ptrdiff_t done = 0, next = 0; \
        for (ptrdiff_t row = 0; row < (rows); row++) { \
            const ptrdiff_t first = next, last = first + (n) - 8, before = (streamed) ? done : 0; \
            real *to = (streamed) ? block : (y); \
            fn_doubles end[FN_PARTS]; \
            begin; \
            for (int part = 0; part < FN_PARTS && (n) % 8; part++) \
                end[part] = result(last + part * FN_STEP); \
            for (ptrdiff_t at = first; at <= last; at += 8) \
                for (int part = 0; part < FN_PARTS; part++) \
                    store(to + (at - before) + part * FN_STEP, result(at + part * FN_STEP)); \
            for (int part = 0; part < FN_PARTS && (n) % 8; part++) \
                store(to + (last - before) + part * FN_STEP, end[part]); \
            next += (n); \
            if ((streamed) && (row + 1 == (rows) || next + (n) > done + MOST)) { \
                fn_stream_block((y) + done, block, (next - done) * (ptrdiff_t)sizeof(real)); \
                done = next; \
            } \
        } \
    } while (0)

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

#define FN_SHORT_RUNS(bits, real, load, store) \
    FN_EIGHT void fn_add_products_##bits(ptrdiff_t at, ptrdiff_t skip, const real *dy, const real *x, double mean, fn_doubles *sum, \
                                         fn_doubles *product) \
    { \
        for (int part = 0; part < FN_PARTS; part++) { \
            const fn_doubles g = fn_skipped(load(dy + at + part * FN_STEP), part, skip); \
            const fn_doubles u = fn_skipped(load(x + at + part * FN_STEP) - mean, part, skip); \
            sum[part] += g; \
            product[part] = FN_FMA_DOUBLES(g, u, product[part]); \
        } \
    } \
    /* Totals of g and g * u, u = x - mean, of `runs` runs, of which `channels` have one mean; meanwhile what lies `ahead` elements \
     * after x, if not 0, is fetched. */ \
    FN_EIGHT void fn_sum_runs_of_##bits(const real *dy, const real *x, ptrdiff_t runs, ptrdiff_t n, const double *mean, \
                                        ptrdiff_t channels, ptrdiff_t ahead, double *totals, double *products) \
    { \
        enum { MOST = 32 }; \
        ptrdiff_t channel = 0; \
        for (ptrdiff_t first = 0; first < runs; first += MOST) { \
            const ptrdiff_t count = runs - first < MOST ? runs - first : MOST; \
            fn_double4 lanes[2][MOST]; \
            for (ptrdiff_t run = 0; run < count; run++, dy += n, x += n) { \
                fn_doubles sum[FN_PARTS] = {{0}}, product[FN_PARTS] = {{0}}; \
                if (ahead) \
                    fn_fetch(x + ahead, n * sizeof(real)); \
                FN_EACH_EIGHT(n, fn_add_products_##bits, dy, x, *mean, sum, product); \
                lanes[0][run] = FN_QUARTER(sum, 0) + FN_QUARTER(sum, 1); \
                lanes[1][run] = FN_QUARTER(product, 0) + FN_QUARTER(product, 1); \
                if (++channel == channels) { \
                    channel = 0; \
                    mean++; \
                } \
            } \
            fn_totals_of_fours(lanes[0], count, totals + first); \
            fn_totals_of_fours(lanes[1], count, products + first); \
        } \
    } \
    static inline void fn_sum_short_runs_##bits(const real *dy, const real *x, ptrdiff_t runs, ptrdiff_t n, const double *mean, \
                                                ptrdiff_t channels, ptrdiff_t ahead, double *totals, double *products) \
    { \
        if (n == 16) /* 4x4: nothing is left of loops and rests */ \
            fn_sum_runs_of_##bits(dy, x, runs, 16, mean, channels, ahead, totals, products); \
        else \
            fn_sum_runs_of_##bits(dy, x, runs, n, mean, channels, ahead, totals, products); \
    } \
    /* dx = dy * gamma * invstd + (u * b + c) of sets of runs; past the caches the next sets of dy are fetched. */ \
    FN_EIGHT void fn_back_runs_of_##bits(const real *dy, const real *x, real *dx, ptrdiff_t sets, ptrdiff_t channels, ptrdiff_t n, \
                                         const double *mean, const double *invstd, const double *gamma, const double *b, \
                                         const double *c, int streamed) \
    { \
        const fn_doubles zero = {0}; \
        const ptrdiff_t runs = sets * channels; \
        ptrdiff_t number = 0, channel = 0; \
        FN_WRITE_ROWS(real, store, dx, runs, n, streamed, FN_BEGIN_RUN, FN_RUN_GRADIENT_##bits); \
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
#define FN_BEGIN_RUN \
    if (channel == channels) { \
        channel = 0; \
        number++; \
    } \
    channel++; \
    const fn_doubles as = invstd[number] * gamma[row] - zero, bs = b[number] - zero, cs = c[number] - zero; \
    const fn_doubles middle = mean[number] - zero; \
    if (streamed) \
        fn_fetch(dy + first + runs * n, n * sizeof(*dy))
#define FN_RUN_GRADIENT(load, at) FN_FMA_DOUBLES(load(dy + (at)), as, FN_FMA_DOUBLES(load(x + (at)) - middle, bs, cs))
#define FN_RUN_GRADIENT_32(at) FN_RUN_GRADIENT(FN_WIDENED, at)
#define FN_RUN_GRADIENT_64(at) FN_RUN_GRADIENT(FN_LOAD_64, at)
#define FN_LOAD_64(x) FN_DOUBLES(x, 0)
#define FN_STORE_64(x, value) (FN_DOUBLES(x, 0) = (value))
FN_SHORT_RUNS(32, float, FN_WIDENED, FN_STORE_NARROWED)
FN_SHORT_RUNS(64, double, FN_LOAD_64, FN_STORE_64)

#endif
