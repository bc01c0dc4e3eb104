/* The sums of softmax's rows (see activation_row_loops.pxi.tp) in explicit vectors: gcc would take the lanes through memory from
 * one loop to the next, which takes longer than a row of some hundred elements does. And their extents and softmax's gradient. */
#ifndef FN_ROW_SUMS_H
#define FN_ROW_SUMS_H

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "vectors.h"

/* sum += term, and to error what that rounds off; doubles or vectors of them */
#define FN_ADD_EXACTLY(sum, error, term) \
    do { \
        const __typeof__(sum) before = (sum), added = (term), after = before + added, shadow = after - before; \
        (error) += (before - (after - shadow)) + (added - shadow); \
        (sum) = after; \
    } while (0)

/* Add a vector of elements, part of sixteen, to as many lanes of sums in `vectors` vectors */
#define FN_ADD_32(sums, errors, vectors, part, floats) \
    do { \
        fn_doubles half[2]; \
        fn_widen_vector(floats, half); \
        (sums)[2 * (part) % (vectors)] += half[0]; \
        (sums)[(2 * (part) + 1) % (vectors)] += half[1]; \
    } while (0)
#define FN_ADD_64(sums, errors, vectors, part, doubles) \
    FN_ADD_EXACTLY((sums)[(part) % (vectors)], (errors)[(part) % (vectors)], doubles)
#define FN_ADD_ONE_32(sum, error, x) ((sum) += (x))
#define FN_ADD_ONE_64(sum, error, x) FN_ADD_EXACTLY(sum, error, x)
/* terms = the sixteen elements from i on, as doubles */
#define FN_LAY_32(terms, vector, i) \
    for (int part = 0; part < FN_PARTS; part++) { \
        const fn_wide_doubles wide = __builtin_convertvector(vector((i) + part * (16 / FN_PARTS)), fn_wide_doubles); \
        memcpy((terms) + part * (16 / FN_PARTS), &wide, sizeof(wide)); \
    }
#define FN_LAY_64(terms, vector, i) \
    for (int part = 0; part < 2 * FN_PARTS; part++) \
        FN_DOUBLES(terms, part * (8 / FN_PARTS)) = vector((i) + part * (8 / FN_PARTS))

/* An infinite sum stays infinite: its rounding errors are NaN. */
static inline double fn_with_error(double sum, double error) { return error == error ? sum + error : sum; }

/* a + b + c + d, in which the error was lost */
static inline double fn_add_four(double a, double b, double c, double d, double error)
{
    double low = 0, even = 0, odd = 0;
    FN_ADD_EXACTLY(a, even, c);
    FN_ADD_EXACTLY(b, odd, d);
    FN_ADD_EXACTLY(a, low, b);
    return fn_with_error(a, low + ((even + odd) + error));
}

/* The sum of all lanes, and of eight of them */
static inline double fn_total_32(const fn_doubles *sums, const fn_doubles *errors)
{
    const fn_double4 four = ((FN_QUARTER(sums, 0) + FN_QUARTER(sums, 1)) + FN_QUARTER(sums, 2)) + FN_QUARTER(sums, 3);
    (void)errors;
    return fn_total_of_four(four);
}
static inline double fn_total_of_eight_32(const fn_doubles *sums, const fn_doubles *errors)
{
    (void)errors;
    return fn_total_of_eight(sums);
}
#define FN_ADD_QUARTER(number) \
    FN_ADD_EXACTLY(four, lost, FN_QUARTER(sums, number)); \
    lost += FN_QUARTER(errors, number)
static inline double fn_total_64(const fn_doubles *sums, const fn_doubles *errors)
{
    fn_double4 four = FN_QUARTER(sums, 0), lost = FN_QUARTER(errors, 0);
    FN_ADD_QUARTER(1);
    FN_ADD_QUARTER(2);
    FN_ADD_QUARTER(3);
    return fn_add_four(four[0], four[1], four[2], four[3], fn_total_of_four(lost));
}
static inline double fn_total_of_eight_64(const fn_doubles *sums, const fn_doubles *errors)
{
    fn_double4 four = FN_QUARTER(sums, 0), lost = FN_QUARTER(errors, 0);
    FN_ADD_QUARTER(1);
    return fn_add_four(four[0], four[1], four[2], four[3], fn_total_of_four(lost));
}

/* vector(i): the terms of a vector from element i on. A row of less than 16 elements is summed from first to last. in_fours:
 * whether four terms are added in their own precision. */
#define FN_SUM_ROW(name, real, bits, vector, in_fours) \
    static inline double fn_sum_row##name##_##bits(const real *restrict a, const real *restrict b, ptrdiff_t n, real top) \
    { \
        enum { STEP = FN_VECTOR_BYTES / sizeof(real), PARTS = 16 / STEP, EIGHT = FN_PARTS, SIXTEEN = 2 * FN_PARTS }; \
        fn_doubles sums[SIXTEEN], errors[SIXTEEN]; \
        ptrdiff_t i = 0; \
        (void)b, (void)top; \
        if (n < 16) { \
            double terms[16], total = 0, error = 0; /* the row's last */ \
            FN_LAY_##bits(terms, vector, n - 16); \
            for (i = 16 - n; i < 16; i++) \
                FN_ADD_ONE_##bits(total, error, terms[i]); \
            return fn_with_error(total, error); \
        } \
        for (int j = 0; j < SIXTEEN; j++) \
            sums[j] = errors[j] = (fn_doubles){0}; /* memset would be a slow instruction here */ \
        if (n < 64) { \
            FN_ADD_REST(bits, EIGHT, vector); \
            return fn_total_of_eight_##bits(sums, errors); \
        } \
        for (; (in_fours) && i + 64 <= n; i += 64) \
            for (int part = 0; part < PARTS; part++) { \
                const ptrdiff_t at = i + part * STEP; \
                FN_ADD_##bits(sums, errors, SIXTEEN, part, (vector(at) + vector(at + 16)) + (vector(at + 32) + vector(at + 48))); \
            } \
        FN_ADD_REST(bits, SIXTEEN, vector); \
        return fn_total_##bits(sums, errors); \
    }
#define FN_ADD_REST(bits, vectors, vector) \
    for (; i + 16 <= n; i += 16) \
        for (int part = 0; part < PARTS; part++) \
            FN_ADD_##bits(sums, errors, vectors, part, vector(i + part * STEP)); \
    if (i < n) \
        for (int part = 0; part < PARTS; part++) \
            FN_ADD_##bits(sums, errors, vectors, part, fn_from_lane_##bits(vector(n - 16 + part * STEP), part, 16 - (n - i)))
#define FN_SUMS(real, bits) \
    FN_SUM_ROW(, real, bits, FN_VALUES_##bits, (bits) == 32) \
    FN_SUM_ROW(_of_products, real, bits, FN_PRODUCTS_##bits, 1) \
    FN_SUM_ROW(_of_others, real, bits, FN_OTHERS_##bits, (bits) == 32)

#define FN_VALUES_32(i) FN_FLOATS(a, i)
#define FN_PRODUCTS_32(i) (FN_FLOATS(a, i) * FN_FLOATS(b, i))
#define FN_OTHERS_32(i) ((fn_floats)((fn_ints)FN_FLOATS(b, i) & (FN_FLOATS(a, i) != top)))
FN_SUMS(float, 32)
#define FN_VALUES_64(i) FN_DOUBLES(a, i)
#define FN_PRODUCTS_64(i) (FN_DOUBLES(a, i) * FN_DOUBLES(b, i))
#define FN_OTHERS_64(i) ((fn_doubles)((fn_longs)FN_DOUBLES(b, i) & (FN_DOUBLES(a, i) != top)))
FN_SUMS(double, 64)

/* The same of rows `step` elements apart */
#define FN_SUM_ROWS(bits, real) \
    static inline void fn_sum_rows_##bits(const real *a, ptrdiff_t step, ptrdiff_t n, ptrdiff_t rows, double *sums) \
    { \
        for (ptrdiff_t row = 0; row < rows; row++, a += step) \
            sums[row] = fn_sum_row_##bits(a, a, n, 0); \
    } \
    static inline void fn_sum_rows_of_products_##bits(const real *a, ptrdiff_t a_step, const real *b, ptrdiff_t b_step, \
                                                      ptrdiff_t n, ptrdiff_t rows, double *sums) \
    { \
        for (ptrdiff_t row = 0; row < rows; row++, a += a_step, b += b_step) \
            sums[row] = fn_sum_row_of_products_##bits(a, b, n, 0); \
    }
FN_SUM_ROWS(32, float)
FN_SUM_ROWS(64, double)

/* The least and the largest of a row that does not end before a vector does; a NaN does not count. And those of sixteen floats or
 * eight doubles, the least so far of as many lanes and their largest. */
#define FN_EXTENT(bits, real, vector, load) \
    static inline void fn_extent_##bits(const real *x, ptrdiff_t n, real *bottom, real *top) \
    { \
        enum { STEP = FN_VECTOR_BYTES / sizeof(real) }; \
        vector low = (vector){0} + (real)INFINITY, high = -low; \
        for (ptrdiff_t i = 0; i < n; i += STEP) { \
            const vector some = load(x, i < n - STEP ? i : n - STEP); \
            low = FN_LESSER_##bits(some, low); \
            high = FN_LARGER_##bits(some, high); \
        } \
        *bottom = fn_least_##bits(low); \
        *top = fn_largest_##bits(high); \
    } \
    static inline void fn_extent_of_lanes_##bits(const real *lowest, const real *highest, real *bottom, real *top) \
    { \
        enum { STEP = FN_VECTOR_BYTES / sizeof(real) }; \
        vector low = load(lowest, 0), high = load(highest, 0); \
        for (int i = 1; i < FN_PARTS; i++) { \
            low = FN_LESSER_##bits(load(lowest, i * STEP), low); \
            high = FN_LARGER_##bits(load(highest, i * STEP), high); \
        } \
        *bottom = fn_least_##bits(low); \
        *top = fn_largest_##bits(high); \
    }
FN_EXTENT(32, float, fn_floats, FN_FLOATS)
FN_EXTENT(64, double, fn_doubles, FN_DOUBLES)

/* dx = y * (dy - mean), in whole vectors of memory where dx is long: as a rule of dy and y too. Vectors of their own take the ends
 * in, and compute some elements a second time. */
#define FN_PRODUCT_ROW(real, bits, vector) \
    static inline void fn_product_row_##bits(const real *restrict dy, const real *restrict y, real *restrict dx, ptrdiff_t n, \
                                             real mean) \
    { \
        enum { STEP = FN_VECTOR_BYTES / sizeof(real) }; \
        const ptrdiff_t last = n - STEP; \
        const ptrdiff_t head = n < 64 ? 0 : (ptrdiff_t)(-(uintptr_t)dx % FN_VECTOR_BYTES / sizeof(real)); \
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
