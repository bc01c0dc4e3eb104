/* The gradient of a run of values with one gamma: its sums and its results (see norm_back_sets in normalization_set_loops.pxi.tp), in
 * explicit vectors. gcc would keep the sums in memory, and a loop of its own takes dx that is dy or x value by value. */
#ifndef FN_RUN_GRADIENTS_H
#define FN_RUN_GRADIENTS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "normalization.h"

/* Totals of g, g * u and g * g, u = x * scale - centre, of n >= 32 values in 32 lanes: blocks in the arrays' arithmetic, their sums in
 * double. The lanes of a long run begin where a cache line of x does, because a vector that lies in two lines takes twice as long to
 * load; what is before the run or after it is not read, and zero. As many vectors of lanes as the registers hold go through a block
 * together, then the next ones. */
#define FN_SUM_RUN(bits, real, vector, fma) \
    static inline void fn_sum_run_##bits(const real *dy, const real *x, ptrdiff_t n, real scale, real centre, double *totals) \
    { \
        enum { STEP = FN_VECTOR_BYTES / sizeof(real), PARTS = 32 / STEP, SOME = PARTS < 4 ? PARTS : 4, BLOCK = 2048, LONG = 96 }; \
        const vector zero = {0}, scales = zero + scale, centres = zero - centre; \
        const ptrdiff_t before = n < LONG ? 0 : (ptrdiff_t)((uintptr_t)x % 64 / sizeof(real)); \
        fn_doubles sums[FN_PARTS] = {{0}}, products[FN_PARTS] = {{0}}, squares[FN_PARTS] = {{0}}; \
        (void)scales; \
        for (ptrdiff_t begin = 0, end; begin < n; begin = end) { \
            vector sum[PARTS], product[PARTS], square[PARTS]; \
            end = n - begin < BLOCK + 32 ? n : begin + BLOCK; /* no few values by themselves */ \
            for (int first = 0; first < PARTS; first += SOME) { \
                vector s[SOME] = {{0}}, p[SOME] = {{0}}, q[SOME] = {{0}}; \
                const int lane = first * STEP; \
                ptrdiff_t at = begin - before; \
                if (before) { \
                    FN_ADD_LANES(bits, vector, fma, FN_LOAD_LATE_##bits, before) \
                    at += 32; \
                } \
                for (; at + 32 <= end; at += 32) \
                    FN_ADD_LANES(bits, vector, fma, FN_LOAD_ALL_##bits, 0) \
                if (at < end) \
                    FN_ADD_LANES(bits, vector, fma, FN_LOAD_EARLY_##bits, end - at) \
                memcpy(sum + first, s, sizeof(s)); \
                memcpy(product + first, p, sizeof(p)); \
                memcpy(square + first, q, sizeof(q)); \
            } \
            fn_add_lanes_##bits(sum, sums); \
            fn_add_lanes_##bits(product, products); \
            fn_add_lanes_##bits(square, squares); \
        } \
        totals[0] = fn_total_of_eight(sums); \
        totals[1] = fn_total_of_eight(products); \
        totals[2] = fn_total_of_eight(squares); \
    }
#define FN_ADD_LANES(bits, vector, fma, load, limit) \
    for (int part = 0; part < SOME; part++) { \
        const vector g = load(dy + at, lane + part * STEP, limit); \
        const vector u = FN_DEVIATION_##bits(load(x + at, lane + part * STEP, limit)); \
        s[part] += g; \
        p[part] = fma(g, u, p[part]); \
        q[part] = fma(g, g, q[part]); \
    }
#define FN_LOAD_ALL_32(x, lane, limit) FN_FLOATS(x, lane)
#define FN_LOAD_ALL_64(x, lane, limit) FN_DOUBLES(x, lane)
#define FN_LOAD_LATE_32(x, lane, limit) fn_load_between_32(x, lane, limit, 32)
#define FN_LOAD_LATE_64(x, lane, limit) fn_load_between_64(x, lane, limit, 32)
#define FN_LOAD_EARLY_32(x, lane, limit) fn_load_between_32(x, lane, 0, limit)
#define FN_LOAD_EARLY_64(x, lane, limit) fn_load_between_64(x, lane, 0, limit)
#define FN_DEVIATION_32(x) FN_FMA_FLOATS(x, scales, centres)
#define FN_DEVIATION_64(x) ((x) + centres)
FN_SUM_RUN(32, float, fn_floats, FN_FMA_FLOATS)
FN_SUM_RUN(64, double, fn_doubles, FN_FMA_DOUBLES)

/* dx = g * a + (u * b + c) of a run, in whole vectors of memory: dx may be dy or x, so the ends, which overlap with others, are
 * computed first. */
#define FN_BACK_RUN(bits, real, vector, load, fma) \
    static inline void fn_back_run_##bits(const real *dy, const real *x, real *dx, ptrdiff_t n, real a, real b, real c, real scale, \
                                          real centre) \
    { \
        enum { STEP = FN_VECTOR_BYTES / sizeof(real) }; \
        const vector zero = {0}, scales = zero + scale, centres = zero - centre, as = zero + a, bs = zero + b, cs = zero + c; \
        const ptrdiff_t last = n - STEP; \
        const vector begin = FN_BACK(bits, load, fma, 0), end = FN_BACK(bits, load, fma, last); \
        (void)scales; \
        for (ptrdiff_t i = (ptrdiff_t)(-(uintptr_t)dx % FN_VECTOR_BYTES / sizeof(real)); i <= last; i += STEP) \
            load(dx, i) = FN_BACK(bits, load, fma, i); \
        load(dx, 0) = begin; \
        load(dx, last) = end; \
    }
#define FN_BACK(bits, load, fma, i) fma(load(dy, i), as, fma(FN_DEVIATION_##bits(load(x, i)), bs, cs))
FN_BACK_RUN(32, float, fn_floats, FN_FLOATS, FN_FMA_FLOATS)
FN_BACK_RUN(64, double, fn_doubles, FN_DOUBLES, FN_FMA_DOUBLES)

/* The sums of sets from those of their runs, weighted with gamma, and dgamma from these: dbeta holds the sums of g, dgamma those of
 * g * u, squares those of g * g; rest and factor are of each set. */
static inline void fn_sums_of_sets(ptrdiff_t sets, ptrdiff_t channels, const double *restrict gamma, const double *restrict rest,
                                   const double *restrict factor, const double *restrict dbeta, double *restrict dgamma,
                                   const double *restrict squares, double *restrict set_sums, double *restrict set_products,
                                   double *restrict set_squares)
{
    if (channels == 1) { /* sets side by side */
        for (ptrdiff_t number = 0; number < sets; number++) {
            set_sums[number] = gamma[number] * dbeta[number];
            set_products[number] = gamma[number] * dgamma[number];
            set_squares[number] = gamma[number] * gamma[number] * squares[number];
            dgamma[number] = (dgamma[number] - rest[number] * dbeta[number]) * factor[number];
        }
        return;
    }
    for (ptrdiff_t number = 0, run = 0; number < sets; number++) {
        const ptrdiff_t end = (number + 1) * channels;
        double sum, product, square;
        fn_double4 sum4 = {0}, product4 = {0}, square4 = {0};
        for (; run + 4 <= end; run += 4) {
            const fn_double4 weights = FN_DOUBLE4(gamma + run), sums = FN_DOUBLE4(dbeta + run), products = FN_DOUBLE4(dgamma + run);
            sum4 += weights * sums;
            product4 += weights * products;
            square4 += weights * weights * FN_DOUBLE4(squares + run);
            FN_DOUBLE4(dgamma + run) = (products - rest[number] * sums) * factor[number];
        }
        sum = fn_total_of_four(sum4);
        product = fn_total_of_four(product4);
        square = fn_total_of_four(square4);
        for (; run < end; run++) {
            sum += gamma[run] * dbeta[run];
            product += gamma[run] * dgamma[run];
            square += gamma[run] * gamma[run] * squares[run];
            dgamma[run] = (dgamma[run] - rest[number] * dbeta[run]) * factor[number];
        }
        set_sums[number] = sum;
        set_products[number] = product;
        set_squares[number] = square;
    }
}

#endif
