/* Short runs, of at least 8 values with one gamma: the sums and the results of their gradients (see norm_back_sets in
 * normalization_set_loops.pxi.tp), and sums forward. As run_gradients.h does it, most of their time would go to adding up lanes, here
 * done for four runs at a time, and to what is done once for a run. */
#ifndef FN_SHORT_RUNS_H
#define FN_SHORT_RUNS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"
#include "transport.h"
#include "vectors.h"

/* Eight values are taken at a time; the last eight of a row come with some before them, of which the first `skip` are zero. */
#define FN_EIGHT static inline __attribute__((always_inline))
#define FN_EACH_EIGHT(n, function, ...) \
    for (ptrdiff_t first = 0; first + 8 <= (n); first += 8) \
        function(first, 0, __VA_ARGS__); \
    if ((n) % 8) \
        function((n) - 8, 8 - (n) % 8, __VA_ARGS__)
FN_EIGHT fn_few_floats fn_skipped_32(fn_few_floats eight, int part, ptrdiff_t skip)
{
    return skip ? fn_from_lane_few(eight, part, skip) : eight;
}
FN_EIGHT fn_doubles fn_skipped_64(fn_doubles eight, int part, ptrdiff_t skip)
{
    return skip ? fn_from_lane_64(eight, part, skip) : eight;
}

/* Write rows of results, as many at a time as a WHOLE vector holds if more than eight, then eight in `parts` vectors (FEW), `result`
 * of the ones from an index on, after `begin` for every row. y may be what they are computed from, so the last eight of a row, if they
 * have some in common with others, are computed first. Past the caches rows are pieces that gather, or all of them one, for a burst. */
#define FN_WRITE_ROWS(real, whole, vector, parts, store, y, rows, n, streamed, gathered, begin, result) \
    do { \
        enum { STEP = 8 / (parts) }; \
        const ptrdiff_t bytes_of_row = (n) * (ptrdiff_t)sizeof(real), all_bytes = (rows) * bytes_of_row; \
        const int burst = (streamed) && (gathered)->bursts && all_bytes <= FN_GATHERED; \
        real *all = burst ? fn_gather(gathered, y, all_bytes) : (y); \
        ptrdiff_t first = 0; \
        for (ptrdiff_t row = 0; row < (rows); row++, first += (n)) { \
            const ptrdiff_t last = first + (n) - 8; \
            real *to = (streamed) && !burst ? fn_gather(gathered, (y) + first, bytes_of_row) : all + first; \
            vector end[parts] = {{0}}; \
            ptrdiff_t i = 0; \
            begin; \
            for (int part = 0; part < (parts) && (n) % 8; part++) \
                end[part] = result(FEW, last + part * STEP); \
            for (; (whole) > 8 && i + (whole) <= (n); i += (whole)) \
                store(WHOLE, to + i, result(WHOLE, first + i)); \
            for (; i + 8 <= (n); i += 8) \
                for (int part = 0; part < (parts); part++) \
                    store(FEW, to + i + part * STEP, result(FEW, first + i + part * STEP)); \
            for (int part = 0; part < (parts) && (n) % 8; part++) \
                store(FEW, to + (n) - 8 + part * STEP, end[part]); \
        } \
        if (burst) \
            fn_end_pieces(gathered, (y) + first); \
    } while (0)
enum { FN_WHOLE_32 = FN_VECTOR_BYTES / 4, FN_WHOLE_64 = FN_VECTOR_BYTES / 8 };

/* The totals of so many times four lanes, each as fn_total_of_four has it */
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
        totals[i] = fn_total_of_four(lanes[i]);
}

/* The totals of so many times eight lanes, each ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)) */
static inline void fn_totals_of_eights(const fn_few_floats *lanes, ptrdiff_t count, double *totals)
{
    ptrdiff_t i = 0;
    for (; i + 4 <= count; i += 4) {
        fn_few_floats sums[FN_FEW_PARTS];
        for (int part = 0; part < FN_FEW_PARTS; part++) {
            const fn_few_floats *four = lanes + i * FN_FEW_PARTS + part;
            sums[part] = fn_pairs(fn_pairs(four[0], four[FN_FEW_PARTS]), fn_pairs(four[2 * FN_FEW_PARTS], four[3 * FN_FEW_PARTS]));
        }
        fn_store_sums_of_halves(sums, totals + i);
    }
    for (; i < count; i++) {
        const float *eight = (const float *)(lanes + i * FN_FEW_PARTS);
        totals[i] = ((eight[0] + eight[1]) + (eight[2] + eight[3])) + ((eight[4] + eight[5]) + (eight[6] + eight[7]));
    }
}
/* Of floats eight lanes wait for their totals, of doubles the four sums of two */
#define FN_KEEP_LANES_32(lanes, sum) memcpy(lanes, sum, sizeof(sum))
#define FN_KEEP_LANES_64(lanes, sum) (*(lanes) = FN_QUARTER(sum, 0) + FN_QUARTER(sum, 1))
#define FN_KEPT_32 FN_FEW_PARTS
#define FN_KEPT_64 1

#define FN_SHORT_RUNS(bits, real, whole, vector, parts, kept, totals_of, load, fma) \
    FN_EIGHT void fn_add_products_##bits(ptrdiff_t at, ptrdiff_t skip, const real *dy, const real *x, vector scales, vector centres, \
                                         vector *sum, vector *product, vector *square) \
    { \
        for (int part = 0; part < parts; part++) { \
            const ptrdiff_t place = at + part * (8 / parts); \
            const vector g = fn_skipped_##bits(load(dy + place), part, skip); \
            const vector u = fn_skipped_##bits(FN_LESS_CENTRE_##bits(load(x + place)), part, skip); \
            sum[part] += g; \
            product[part] = fma(g, u, product[part]); \
            square[part] = fma(g, g, square[part]); \
        } \
    } \
    /* Totals of g, g * u and g * g, u = x * scale - centre, of `runs` runs, of which `channels` have one scale and centre; meanwhile \
     * what lies `ahead` elements after x, if not 0, is fetched. */ \
    FN_EIGHT void fn_sum_runs_of_##bits(const real *dy, const real *x, ptrdiff_t runs, ptrdiff_t n, const real *scale, \
                                        const real *centre, ptrdiff_t channels, ptrdiff_t ahead, double *totals, double *products, \
                                        double *squares) \
    { \
        enum { MOST = 32 }; \
        ptrdiff_t channel = 0; \
        for (ptrdiff_t first = 0; first < runs; first += MOST) { \
            const ptrdiff_t count = runs - first < MOST ? runs - first : MOST; \
            kept lanes[3][MOST * FN_KEPT_##bits]; \
            for (ptrdiff_t run = 0; run < count; run++, dy += n, x += n) { \
                const vector zero = {0}, scales = *scale - zero, centres = zero - *centre; \
                vector sum[parts] = {{0}}, product[parts] = {{0}}, square[parts] = {{0}}; \
                if (ahead) \
                    fn_fetch(x + ahead, n * sizeof(real)); \
                FN_EACH_EIGHT(n, fn_add_products_##bits, dy, x, scales, centres, sum, product, square); \
                FN_KEEP_LANES_##bits(lanes[0] + run * FN_KEPT_##bits, sum); \
                FN_KEEP_LANES_##bits(lanes[1] + run * FN_KEPT_##bits, product); \
                FN_KEEP_LANES_##bits(lanes[2] + run * FN_KEPT_##bits, square); \
                if (++channel == channels) { \
                    channel = 0; \
                    scale++; \
                    centre++; \
                } \
            } \
            totals_of(lanes[0], count, totals + first); \
            totals_of(lanes[1], count, products + first); \
            totals_of(lanes[2], count, squares + first); \
        } \
    } \
    static inline void fn_sum_short_runs_##bits(const real *dy, const real *x, ptrdiff_t runs, ptrdiff_t n, const real *scale, \
                                                const real *centre, ptrdiff_t channels, ptrdiff_t ahead, double *totals, \
                                                double *products, double *squares) \
    { \
        if (n == 16) /* 4x4: nothing is left of loops and rests */ \
            fn_sum_runs_of_##bits(dy, x, runs, 16, scale, centre, channels, ahead, totals, products, squares); \
        else \
            fn_sum_runs_of_##bits(dy, x, runs, n, scale, centre, channels, ahead, totals, products, squares); \
    } \
    /* dx = dy * (a * gamma) + (u * b + c) of sets of runs; `gathered` unless that is NULL: past the caches, and then the next sets of \
     * dy are fetched. */ \
    FN_EIGHT void fn_back_runs_of_##bits(const real *dy, const real *x, real *dx, ptrdiff_t sets, ptrdiff_t channels, ptrdiff_t n, \
                                         const real *scale, const real *centre, const double *gamma, const double *a, \
                                         const double *b, const double *c, fn_gathered *gathered, int streamed) \
    { \
        const whole zero = {0}; \
        const ptrdiff_t runs = sets * channels; \
        ptrdiff_t number = 0, channel = 0; \
        FN_WRITE_ROWS(real, FN_WHOLE_##bits, vector, parts, FN_STORE_##bits, dx, runs, n, streamed, gathered, \
                      FN_BEGIN_RUN(real, whole), FN_RUN_GRADIENT_##bits); \
    } \
    static inline void fn_back_short_runs_##bits(const real *dy, const real *x, real *dx, ptrdiff_t sets, ptrdiff_t channels, \
                                                 ptrdiff_t n, const real *scale, const real *centre, const double *gamma, \
                                                 const double *a, const double *b, const double *c, fn_gathered *gathered) \
    { \
        if (n == 16 && !gathered) \
            fn_back_runs_of_##bits(dy, x, dx, sets, channels, 16, scale, centre, gamma, a, b, c, gathered, 0); \
        else if (n == 16) \
            fn_back_runs_of_##bits(dy, x, dx, sets, channels, 16, scale, centre, gamma, a, b, c, gathered, 1); \
        else if (!gathered) \
            fn_back_runs_of_##bits(dy, x, dx, sets, channels, n, scale, centre, gamma, a, b, c, gathered, 0); \
        else \
            fn_back_runs_of_##bits(dy, x, dx, sets, channels, n, scale, centre, gamma, a, b, c, gathered, 1); \
    }
#define FN_BEGIN_RUN(real, vector) \
    if (channel == channels) { \
        channel = 0; \
        number++; \
    } \
    channel++; \
    const vector as = (real)(a[number] * gamma[row]) - zero, bs = (real)b[number] - zero, cs = (real)c[number] - zero; \
    const vector scales = scale[number] - zero, centres = zero - centre[number]; \
    (void)scales; \
    if (streamed) \
        fn_fetch(dy + first + runs * n, n * sizeof(*dy))
#define FN_RUN_GRADIENT_32(some, at) \
    FN_FMA_##some(FN_AT_##some(dy + (at)), FN_OF_##some(as), \
                  FN_FMA_##some(FN_FMA_##some(FN_AT_##some(x + (at)), FN_OF_##some(scales), FN_OF_##some(centres)), \
                                FN_OF_##some(bs), FN_OF_##some(cs)))
#define FN_RUN_GRADIENT_64(some, at) \
    FN_FMA_DOUBLES(FN_LOAD_64(dy + (at)), as, FN_FMA_DOUBLES(FN_LESS_CENTRE_64(FN_LOAD_64(x + (at))), bs, cs))
#define FN_LESS_CENTRE_32(x) FN_FMA_FEW(x, scales, centres)
#define FN_LESS_CENTRE_64(x) ((x) + centres)
#define FN_STORE_32(some, x, value) (FN_AT_##some(x) = (value))
#define FN_LOAD_64(x) FN_DOUBLES(x, 0)
#define FN_STORE_64(some, x, value) (FN_DOUBLES(x, 0) = (value))
FN_SHORT_RUNS(32, float, fn_floats, fn_few_floats, FN_FEW_PARTS, fn_few_floats, fn_totals_of_eights, FN_FEW, FN_FMA_FEW)
FN_SHORT_RUNS(64, double, fn_doubles, fn_doubles, FN_PARTS, fn_double4, fn_totals_of_fours, FN_LOAD_64, FN_FMA_DOUBLES)

/* Add x - shift, of float data x, and its square, of a run, or of FN_SETS runs at most, to their four lanes or their totals; meanwhile
 * what lies `ahead` elements after x, if not 0, is fetched. */
#define FN_SUM_VALUES(bits, real) \
    FN_EIGHT void fn_add_both_##bits(ptrdiff_t at, ptrdiff_t skip, const real *x, fn_doubles shifts, fn_doubles *sum, \
                                     fn_doubles *square) \
    { \
        (void)shifts; \
        for (int part = 0; part < FN_PARTS; part++) { \
            const fn_doubles d = fn_skipped_64(FN_LESS_SHIFT_##bits(x + at + part * FN_STEP), part, skip); \
            sum[part] = FN_PLUS_##bits(sum[part], d); \
            square[part] = FN_FMA_DOUBLES(d, d, square[part]); \
        } \
    } \
    FN_EIGHT void fn_sum_values_##bits(const real *x, ptrdiff_t n, ptrdiff_t ahead, double shift, fn_double4 *sums, \
                                       fn_double4 *squares) \
    { \
        const fn_doubles zero = {0}, shifts = zero + shift; \
        fn_doubles sum[FN_PARTS] = {{0}}, square[FN_PARTS] = {{0}}; \
        if (ahead) \
            fn_fetch(x + ahead, n * (ptrdiff_t)sizeof(real)); \
        FN_EACH_EIGHT(n, fn_add_both_##bits, x, shifts, sum, square); \
        FN_KEEP_LANES_64(sums, sum); \
        FN_KEEP_LANES_64(squares, square); \
    } \
    static inline void fn_add_short_runs_##bits(const real *x, ptrdiff_t runs, ptrdiff_t n, ptrdiff_t ahead, const double *shift, \
                                                double *totals, double *squares) \
    { \
        fn_double4 lanes[2][FN_SETS]; \
        double sums[2][FN_SETS]; \
        for (ptrdiff_t run = 0; run < runs; run++) \
            fn_sum_values_##bits(x + run * n, n, ahead, shift[run], lanes[0] + run, lanes[1] + run); \
        fn_totals_of_fours(lanes[0], runs, sums[0]); \
        fn_totals_of_fours(lanes[1], runs, sums[1]); \
        for (ptrdiff_t run = 0; run < runs; run++) { \
            totals[run] += sums[0][run]; \
            squares[run] += sums[1][run]; \
        } \
    }
#define FN_LESS_SHIFT_32(x) FN_WIDENED(x)
#define FN_LESS_SHIFT_64(x) (FN_LOAD_64(x) - shifts)
#define FN_PLUS_32(sum, d) FN_FMA_DOUBLES(d, FN_ONES, sum) /* conversions and additions would wait for the same units */
#define FN_PLUS_64(sum, d) ((sum) + (d))
FN_SUM_VALUES(32, float)
FN_SUM_VALUES(64, double)

#endif
