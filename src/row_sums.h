/* The sums of softmax's rows of floats in double (see activation_row_loops.pxi.tp), in explicit vectors: gcc would take the lanes
 * through memory from one loop to the next, which takes longer than a row of some hundred elements does. And its gradient. */
#ifndef FN_ROW_SUMS_H
#define FN_ROW_SUMS_H

#include <stddef.h>
#include <string.h>

#include "vectors.h"

typedef double fn_double4 __attribute__((vector_size(32)));

/* Add floats to as many sums, half of them in each of two vectors: one of all would stay in memory. */
#define FN_ADD(sums, floats) \
    do { \
        const fn_wide_doubles wide = __builtin_convertvector((floats), fn_wide_doubles); \
        fn_doubles half[2]; \
        memcpy(half, &wide, sizeof(half)); \
        (sums)[0] += half[0]; \
        (sums)[1] += half[1]; \
    } while (0)

/* vector(i): the terms of a vector from element i on; element(i): of one */
#define FN_SUM_ROW(name, vector, element) \
    static inline double fn_sum_row##name(const float *restrict a, const float *restrict b, ptrdiff_t n, float top) \
    { \
        enum { STEP = 16 / FN_PARTS }; \
        fn_doubles sums[2 * FN_PARTS]; \
        fn_double4 four, quarter[4]; \
        ptrdiff_t i = 0; \
        (void)b, (void)top; \
        if (n < 64) { \
            double total = 0; \
            for (; i < n; i++) \
                total += (double)element(i); \
            return total; \
        } \
        memset(sums, 0, sizeof(sums)); \
        for (; i + 64 <= n; i += 64) \
            for (int part = 0; part < FN_PARTS; part++) { \
                const ptrdiff_t at = i + part * STEP; \
                FN_ADD(sums + 2 * part, (vector(at) + vector(at + 16)) + (vector(at + 32) + vector(at + 48))); \
            } \
        for (; i + 16 <= n; i += 16) \
            for (int part = 0; part < FN_PARTS; part++) \
                FN_ADD(sums + 2 * part, vector(i + part * STEP)); \
        if (i < n) { \
            for (int part = 0; part < FN_PARTS; part++) { \
                const fn_floats last = vector(n - 16 + part * STEP); \
                FN_ADD(sums + 2 * part, fn_from_lane(last, part, 16 - (n - i))); \
            } \
        } \
        memcpy(quarter, sums, sizeof(quarter)); \
        four = ((quarter[0] + quarter[1]) + quarter[2]) + quarter[3]; \
        return (four[0] + four[2]) + (four[1] + four[3]); \
    }

#define FN_VALUES(i) FN_FLOATS(a, i)
#define FN_VALUE(i) a[i]
FN_SUM_ROW(, FN_VALUES, FN_VALUE)
#define FN_PRODUCTS(i) (FN_FLOATS(a, i) * FN_FLOATS(b, i))
#define FN_PRODUCT(i) (a[i] * b[i])
FN_SUM_ROW(_of_products, FN_PRODUCTS, FN_PRODUCT)
#define FN_OTHERS(i) ((fn_floats)((fn_ints)FN_FLOATS(b, i) & (FN_FLOATS(a, i) != top)))
#define FN_OTHER(i) (a[i] == top ? 0.0f : b[i])
FN_SUM_ROW(_of_others, FN_OTHERS, FN_OTHER)

/* dx = y * (dy - mean), in whole vectors of memory where dx is long: as a rule of dy and y too. Vectors of their own take the ends
 * in, and compute some elements a second time. */
#define FN_PRODUCT_ROW(real, bits, vector) \
    static inline void fn_product_row_##bits(const real *restrict dy, const real *restrict y, real *restrict dx, ptrdiff_t n, \
                                             real mean) \
    { \
        enum { STEP = FN_VECTOR_BYTES / sizeof(real) }; \
        const ptrdiff_t head = (ptrdiff_t)(-(uintptr_t)dx % FN_VECTOR_BYTES / sizeof(real)), last = n - STEP; \
        if (last < 0) { \
            for (ptrdiff_t i = 0; i < n; i++) \
                dx[i] = y[i] * (dy[i] - mean); \
            return; \
        } \
        if (head) \
            FN_TIMES_REST(vector, 0); \
        for (ptrdiff_t i = head; i <= last; i += STEP) \
            FN_TIMES_REST(vector, i); \
        if ((n - head) % STEP) \
            FN_TIMES_REST(vector, last); \
    }
#define FN_TIMES_REST(vector, i) \
    (*(vector *)(dx + (i)) = *(const vector *)(y + (i)) * (*(const vector *)(dy + (i)) - mean))
FN_PRODUCT_ROW(float, 32, fn_any_floats)
FN_PRODUCT_ROW(double, 64, fn_any_doubles)

#endif
