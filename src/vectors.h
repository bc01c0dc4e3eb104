/* Explicit vectors as wide as the machine's, where gcc would keep what a loop adds up in memory. */
#ifndef FN_VECTORS_H
#define FN_VECTORS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
enum { FN_VECTOR_BYTES = 64 };
#elif defined(__AVX__)
enum { FN_VECTOR_BYTES = 32 };
#else
enum { FN_VECTOR_BYTES = 16 };
#endif
enum { FN_PARTS = 64 / FN_VECTOR_BYTES, FN_WIDE_PARTS = 2 * FN_PARTS }; /* vectors of 16 floats, and of as many doubles */
enum { FN_STEP = FN_VECTOR_BYTES / 8 };                                 /* doubles of a vector */

/* Before a loop of eight turns, all of which are to be written out: more than setup.py lets gcc do unasked. */
#if defined(__GNUC__) && !defined(__clang__)
#define FN_ALL_EIGHT _Pragma("GCC unroll 8")
#else
#define FN_ALL_EIGHT
#endif

typedef int32_t fn_ints __attribute__((vector_size(FN_VECTOR_BYTES)));
typedef int64_t fn_longs __attribute__((vector_size(FN_VECTOR_BYTES)));
typedef float fn_floats __attribute__((vector_size(FN_VECTOR_BYTES)));
typedef double fn_doubles __attribute__((vector_size(FN_VECTOR_BYTES)));
typedef double fn_wide_doubles __attribute__((vector_size(2 * FN_VECTOR_BYTES))); /* as many as there are floats in fn_floats */

typedef float fn_any_floats __attribute__((vector_size(FN_VECTOR_BYTES), aligned(4), may_alias));
typedef double fn_any_doubles __attribute__((vector_size(FN_VECTOR_BYTES), aligned(8), may_alias));
/* Those at x + i, as a value or to assign to */
#define FN_FLOATS(x, i) (*(fn_any_floats *)((x) + (i)))
#define FN_DOUBLES(x, i) (*(fn_any_doubles *)((x) + (i)))
#define FN_ONES ((fn_doubles){0} + 1.0)

/* The doubles of a vector of floats, in two vectors: one of twice the width would stay in memory */
static inline void fn_widen_vector(fn_floats floats, fn_doubles *two)
{
    const fn_wide_doubles wide = __builtin_convertvector(floats, fn_wide_doubles);
    memcpy(two, &wide, sizeof(wide));
}

/* Four lanes of sums in vectors, in a register where possible */
typedef double fn_double4 __attribute__((vector_size(32)));
typedef double fn_any_double4 __attribute__((vector_size(32), aligned(8), may_alias));
#define FN_DOUBLE4(x) (*(fn_any_double4 *)(x))
#if defined(__AVX512F__)
#define FN_QUARTER(lanes, number) ((fn_double4)_mm512_extractf64x4_pd((__m512d)(lanes)[(number) / 2], (number) % 2))
#elif defined(__AVX__)
#define FN_QUARTER(lanes, number) ((lanes)[number])
#else
#define FN_QUARTER(lanes, number) FN_DOUBLE4((const double *)(lanes) + 4 * (number))
#endif

/* The total of four sums, and of eight: the same of any rotation of them, because addition commutes */
static inline double fn_total_of_four(fn_double4 four) { return (four[0] + four[2]) + (four[1] + four[3]); }
static inline double fn_total_of_eight(const fn_doubles *sums)
{
    return fn_total_of_four(FN_QUARTER(sums, 0) + FN_QUARTER(sums, 1));
}

/* The lesser one of a and b, and the larger one; b where a is NaN */
#define FN_LESSER(a, b) ((a) < (b) ? (a) : (b))
#define FN_LARGER(a, b) ((a) > (b) ? (a) : (b))
#if defined(__AVX512F__)
#define FN_LESSER_32(a, b) ((fn_floats)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define FN_LARGER_32(a, b) ((fn_floats)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define FN_LESSER_64(a, b) ((fn_doubles)_mm512_min_pd((__m512d)(a), (__m512d)(b)))
#define FN_LARGER_64(a, b) ((fn_doubles)_mm512_max_pd((__m512d)(a), (__m512d)(b)))
#elif defined(__AVX__)
#define FN_LESSER_32(a, b) ((fn_floats)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define FN_LARGER_32(a, b) ((fn_floats)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define FN_LESSER_64(a, b) ((fn_doubles)_mm256_min_pd((__m256d)(a), (__m256d)(b)))
#define FN_LARGER_64(a, b) ((fn_doubles)_mm256_max_pd((__m256d)(a), (__m256d)(b)))
#elif defined(__SSE2__)
#define FN_LESSER_32(a, b) ((fn_floats)_mm_min_ps((__m128)(a), (__m128)(b)))
#define FN_LARGER_32(a, b) ((fn_floats)_mm_max_ps((__m128)(a), (__m128)(b)))
#define FN_LESSER_64(a, b) ((fn_doubles)_mm_min_pd((__m128d)(a), (__m128d)(b)))
#define FN_LARGER_64(a, b) ((fn_doubles)_mm_max_pd((__m128d)(a), (__m128d)(b)))
#else
#define FN_CHOOSE(vector, mask, a, compared, b) ((vector)(((mask)(a) & (compared)) | ((mask)(b) & ~(compared))))
#define FN_LESSER_32(a, b) FN_CHOOSE(fn_floats, fn_ints, a, (a) < (b), b)
#define FN_LARGER_32(a, b) FN_CHOOSE(fn_floats, fn_ints, a, (a) > (b), b)
#define FN_LESSER_64(a, b) FN_CHOOSE(fn_doubles, fn_longs, a, (a) < (b), b)
#define FN_LARGER_64(a, b) FN_CHOOSE(fn_doubles, fn_longs, a, (a) > (b), b)
#endif

/* The least of all lanes, and the largest */
#define FN_OF_FOUR(choose, four) choose(choose((four)[0], (four)[2]), choose((four)[1], (four)[3]))
#if defined(__AVX512F__)
static inline float fn_least_32(fn_floats lanes) { return _mm512_reduce_min_ps((__m512)lanes); }
static inline float fn_largest_32(fn_floats lanes) { return _mm512_reduce_max_ps((__m512)lanes); }
static inline double fn_least_64(fn_doubles lanes) { return _mm512_reduce_min_pd((__m512d)lanes); }
static inline double fn_largest_64(fn_doubles lanes) { return _mm512_reduce_max_pd((__m512d)lanes); }
#elif defined(__AVX__)
static inline float fn_least_32(fn_floats lanes)
{
    const __m128 four = _mm_min_ps(_mm256_castps256_ps128((__m256)lanes), _mm256_extractf128_ps((__m256)lanes, 1));
    return FN_OF_FOUR(FN_LESSER, four);
}
static inline float fn_largest_32(fn_floats lanes)
{
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)lanes), _mm256_extractf128_ps((__m256)lanes, 1));
    return FN_OF_FOUR(FN_LARGER, four);
}
static inline double fn_least_64(fn_doubles lanes) { return FN_OF_FOUR(FN_LESSER, lanes); }
static inline double fn_largest_64(fn_doubles lanes) { return FN_OF_FOUR(FN_LARGER, lanes); }
#else
static inline float fn_least_32(fn_floats lanes) { return FN_OF_FOUR(FN_LESSER, lanes); }
static inline float fn_largest_32(fn_floats lanes) { return FN_OF_FOUR(FN_LARGER, lanes); }
static inline double fn_least_64(fn_doubles lanes) { return FN_LESSER(lanes[0], lanes[1]); }
static inline double fn_largest_64(fn_doubles lanes) { return FN_LARGER(lanes[0], lanes[1]); }
#endif

/* As FN_FMAF and FN_FMA: of a * b + c gcc makes no multiply-add. */
#if defined(__AVX512F__)
#define FN_FMA_FLOATS(a, b, c) ((fn_floats)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define FN_FMA_DOUBLES(a, b, c) ((fn_doubles)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#elif defined(__FMA__)
#define FN_FMA_FLOATS(a, b, c) ((fn_floats)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#define FN_FMA_DOUBLES(a, b, c) ((fn_doubles)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))
#elif defined(__aarch64__)
#define FN_FMA_FLOATS(a, b, c) ((fn_floats)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#define FN_FMA_DOUBLES(a, b, c) ((fn_doubles)vfmaq_f64((float64x2_t)(c), (float64x2_t)(a), (float64x2_t)(b)))
#else
#define FN_FMA_FLOATS(a, b, c) ((a) * (b) + (c))
#define FN_FMA_DOUBLES(a, b, c) ((a) * (b) + (c))
#endif

/* As many floats at x as there are doubles in a vector, as doubles. Of a conversion in a loop gcc makes a load of a whole vector
 * that it takes apart, of __builtin_convertvector conversions of halves: batch norm's statistics take up to twice as long so. */
#if defined(__AVX512F__)
#define FN_WIDENED(x) ((fn_doubles)_mm512_cvtps_pd(_mm256_loadu_ps(x)))
#define FN_STORE_NARROWED(x, value) _mm256_storeu_ps(x, _mm512_cvtpd_ps((__m512d)(value)))
#elif defined(__AVX__)
#define FN_WIDENED(x) ((fn_doubles)_mm256_cvtps_pd(_mm_loadu_ps(x)))
#define FN_STORE_NARROWED(x, value) _mm_storeu_ps(x, _mm256_cvtpd_ps((__m256d)(value)))
#elif defined(__SSE2__)
#define FN_WIDENED(x) ((fn_doubles)_mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)(x)))))
#define FN_STORE_NARROWED(x, value) _mm_storel_epi64((__m128i *)(x), _mm_castps_si128(_mm_cvtpd_ps((__m128d)(value))))
#else
typedef float fn_half_floats __attribute__((vector_size(FN_VECTOR_BYTES / 2), aligned(4), may_alias));
#define FN_WIDENED(x) __builtin_convertvector(*(const fn_half_floats *)(x), fn_doubles)
#define FN_STORE_NARROWED(x, value) (*(fn_half_floats *)(x) = __builtin_convertvector(value, fn_half_floats))
#endif

/* Eight floats, in as few vectors as hold no more */
#if defined(__AVX__)
enum { FN_FEW_PARTS = 1 };
typedef float fn_few_floats __attribute__((vector_size(32)));
typedef int32_t fn_few_ints __attribute__((vector_size(32)));
#else
enum { FN_FEW_PARTS = 32 / FN_VECTOR_BYTES };
typedef fn_floats fn_few_floats;
typedef fn_ints fn_few_ints;
#endif
typedef float fn_any_few_floats __attribute__((vector_size(32 / FN_FEW_PARTS), aligned(4), may_alias));
#define FN_FEW(x) (*(fn_any_few_floats *)(x))
#if defined(__AVX__) && defined(__FMA__)
#define FN_FMA_FEW(a, b, c) ((fn_few_floats)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#elif defined(__AVX__)
#define FN_FMA_FEW(a, b, c) ((a) * (b) + (c))
#else
#define FN_FMA_FEW(a, b, c) FN_FMA_FLOATS(a, b, c)
#endif

/* What is done for FEW floats, a vector of those eight, or for a WHOLE vector: load or store, multiply-add, and take a coefficient that
 * all lanes have */
#define FN_AT_FEW(x) FN_FEW(x)
#define FN_AT_WHOLE(x) FN_FLOATS(x, 0)
#define FN_FMA_WHOLE(a, b, c) FN_FMA_FLOATS(a, b, c)
#if defined(__AVX512F__)
#define FN_OF_FEW(whole) ((fn_few_floats)_mm512_castps512_ps256((__m512)(whole)))
#else
#define FN_OF_FEW(whole) (whole)
#endif
#define FN_OF_WHOLE(whole) (whole)

/* Sums of the pairs of lanes of a, then of b, in every four; and of four lanes and the four after them, as doubles */
#if defined(__AVX__)
static inline fn_few_floats fn_pairs(fn_few_floats a, fn_few_floats b)
{
    return (fn_few_floats)_mm256_shuffle_ps((__m256)a, (__m256)b, 0x88) + (fn_few_floats)_mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd);
}
static inline void fn_store_sums_of_halves(const fn_few_floats *halves, double *y)
{
    const __m256 both = (__m256)*halves;
    _mm256_storeu_pd(y, _mm256_cvtps_pd(_mm256_castps256_ps128(both) + _mm256_extractf128_ps(both, 1)));
}
#else
static inline fn_few_floats fn_pairs(fn_few_floats a, fn_few_floats b)
{
#if defined(__SSE2__)
    return (fn_few_floats)_mm_shuffle_ps((__m128)a, (__m128)b, 0x88) + (fn_few_floats)_mm_shuffle_ps((__m128)a, (__m128)b, 0xdd);
#elif defined(__aarch64__)
    return (fn_few_floats)vpaddq_f32((float32x4_t)a, (float32x4_t)b);
#else
    return (fn_few_floats){a[0] + a[1], a[2] + a[3], b[0] + b[1], b[2] + b[3]};
#endif
}
static inline void fn_store_sums_of_halves(const fn_few_floats *halves, double *y)
{
    const fn_floats sums = halves[0] + halves[1];
    for (int i = 0; i < 4; i++)
        y[i] = sums[i];
}
#endif

/* A part of 16 lanes, with zeros in those before lane `first` */
#define FN_FROM_LANE(bits, vector, mask, integer) \
    static inline vector fn_from_lane_##bits(vector part, int number, ptrdiff_t first) \
    { \
        static const integer lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; \
        mask counts; \
        memcpy(&counts, lane + number * (sizeof(mask) / sizeof(integer)), sizeof(counts)); \
        return (vector)((mask)part & (counts >= (integer)first)); \
    }
FN_FROM_LANE(32, fn_floats, fn_ints, int32_t)
FN_FROM_LANE(few, fn_few_floats, fn_few_ints, int32_t)
FN_FROM_LANE(64, fn_doubles, fn_longs, int64_t)

/* The vector at x + lane, of which the elements of x from `begin` to `end` <= 32 are read; the others are zero. */
#if defined(__AVX512F__)
static inline fn_floats fn_load_between_32(const float *x, int lane, ptrdiff_t begin, ptrdiff_t end)
{
    return (fn_floats)_mm512_maskz_loadu_ps((__mmask16)(((1ull << end) - (1ull << begin)) >> lane), x + lane);
}
static inline fn_doubles fn_load_between_64(const double *x, int lane, ptrdiff_t begin, ptrdiff_t end)
{
    return (fn_doubles)_mm512_maskz_loadu_pd((__mmask8)(((1ull << end) - (1ull << begin)) >> lane), x + lane);
}
#else
#define FN_LOAD_BETWEEN(bits, real, vector, mask, integer) \
    static inline vector fn_load_between_##bits(const real *x, int lane, ptrdiff_t begin, ptrdiff_t end) \
    { \
        static const integer lanes[32] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, \
                                          16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31}; \
        mask wanted; \
        memcpy(&wanted, lanes + lane, sizeof(wanted)); \
        wanted = (wanted >= (integer)begin) & (wanted < (integer)end); \
        return (vector)FN_LOAD_WHERE_##bits(x + lane, wanted); \
    }
#if defined(__AVX__)
#define FN_LOAD_WHERE_32(x, wanted) _mm256_maskload_ps(x, (__m256i)wanted)
#define FN_LOAD_WHERE_64(x, wanted) _mm256_maskload_pd(x, (__m256i)wanted)
#else
#define FN_LOAD_WHERE(bits, real, vector, mask) \
    static inline vector fn_load_where_##bits(const real *x, mask wanted) \
    { \
        vector part = {0}; \
        for (int i = 0; i < FN_VECTOR_BYTES / (int)sizeof(real); i++) \
            if (wanted[i]) \
                part[i] = x[i]; \
        return part; \
    }
FN_LOAD_WHERE(32, float, fn_floats, fn_ints)
FN_LOAD_WHERE(64, double, fn_doubles, fn_longs)
#define FN_LOAD_WHERE_32(x, wanted) fn_load_where_32(x, wanted)
#define FN_LOAD_WHERE_64(x, wanted) fn_load_where_64(x, wanted)
#endif
FN_LOAD_BETWEEN(32, float, fn_floats, fn_ints, int32_t)
FN_LOAD_BETWEEN(64, double, fn_doubles, fn_longs, int64_t)
#endif

#endif
