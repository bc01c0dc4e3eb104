/* Block transport that has to be written in C: half precision, transposition, stores that bypass the caches.
 *
 * Where there is no instruction for half precision the conversions use integer operations and exact float operations only,
 * which the compiler vectorises. Both give the same bits, those of NaN too. */
#ifndef FN_TRANSPORT_H
#define FN_TRANSPORT_H

#include <stdint.h>
#include <string.h>

#include "kernels.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

/* A staging block: three or four of them, the stream of an operand and the stack fit a 32 KB L1 cache. */
enum { FN_BLOCK_BYTES = 4096, FN_BLOCK_ITEMS = FN_BLOCK_BYTES / 4 };

typedef struct {
    char bytes[FN_BLOCK_BYTES] __attribute__((aligned(64)));
} fn_block;

/* A vector of halves to singles, and back */
#if defined(__AVX512F__)
enum { FN_HALVES = 16 };
#define FN_WIDEN(x, y) _mm512_storeu_ps((y), _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(x))))
#define FN_NARROW(x, y) _mm256_storeu_si256((__m256i *)(y), _mm512_cvtps_ph(_mm512_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT))
#elif defined(__F16C__)
enum { FN_HALVES = 8 };
#define FN_WIDEN(x, y) _mm256_storeu_ps((y), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x))))
#define FN_NARROW(x, y) _mm_storeu_si128((__m128i *)(y), _mm256_cvtps_ph(_mm256_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT))
#endif

/* n is rounded down to whole groups of FN_LANES */
#if defined(FN_WIDEN)
static inline void fn_half_to_single(fn_in x, fn_out y, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < (n & -(ptrdiff_t)FN_LANES); i += FN_HALVES)
        FN_WIDEN((const uint16_t *)x + i, (float *)y + i);
}

static inline void fn_single_to_half(fn_in x, fn_out y, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < (n & -(ptrdiff_t)FN_LANES); i += FN_HALVES)
        FN_NARROW((const float *)x + i, (uint16_t *)y + i);
}
#else
typedef uint16_t fn_any_half __attribute__((aligned(1), may_alias)); /* halves are converted where they are */
static inline void fn_half_to_single(fn_in x, fn_out y, ptrdiff_t n)
{
    const fn_any_half *half = x;
    uint32_t *bits = y;
    for (ptrdiff_t i = 0; i < (n & -(ptrdiff_t)FN_LANES); i++) {
        uint32_t magnitude = (uint32_t)(half[i] & 0x7fff) << 13;
        float scaled;
        memcpy(&scaled, &magnitude, 4);
        scaled *= 0x1p112f; /* moves the exponent's bias; exact for subnormal halves too */
        uint32_t result;
        memcpy(&result, &scaled, 4);
        result |= magnitude >= 0x0f800000u ? 0x7f800000u : 0u; /* infinity and NaN */
        result |= magnitude > 0x0f800000u ? 0x00400000u : 0u;  /* a NaN becomes quiet */
        bits[i] = result | (uint32_t)(half[i] & 0x8000) << 16;
    }
}

static inline void fn_single_to_half(fn_in x, fn_out y, ptrdiff_t n)
{
    const uint32_t *bits = x;
    fn_any_half *half = y;
    for (ptrdiff_t i = 0; i < (n & -(ptrdiff_t)FN_LANES); i++) {
        uint32_t magnitude = bits[i] & 0x7fffffffu;
        /* normal results: move the bias, round to nearest even; 65520 and above carry into infinity */
        uint32_t clamped = magnitude < 0x47800000u ? magnitude : 0x47800000u;
        uint32_t normal = (clamped - 0x38000000u + 0xfffu + (clamped >> 13 & 1u)) >> 13;
        /* subnormal results: one ulp of 0.5 is the smallest half, so the addition rounds */
        float small;
        memcpy(&small, &magnitude, 4);
        small += 0.5f;
        uint32_t subnormal;
        memcpy(&subnormal, &small, 4);
        subnormal -= 0x3f000000u;
        uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
        result = magnitude > 0x7f800000u ? 0x7e00u | (magnitude >> 13 & 0x3ffu) : result;
        half[i] = (uint16_t)(result | (bits[i] >> 16 & 0x8000u));
    }
}
#endif

/* y[j * y_step + i] = x[i * x_step + j] for as many rows i as 32 bytes hold and as many columns j as 16 bytes do. Of strided
 * loads gcc makes one for each element. */
enum { FN_HIGH_32 = 8, FN_WIDE_32 = 4, FN_HIGH_64 = 4, FN_WIDE_64 = 2 };
#if defined(__AVX__)
static inline __m256 fn_halves(const void *x, const void *more)
{
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(x)), _mm_loadu_ps(more), 1);
}
static inline void fn_transpose_few_32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step)
{
    __m256 low[2], high[2]; /* of rows i and i + 1, beside which are rows i + 4 and i + 5 */
    for (int i = 0; i < 2; i++) {
        __m256 even = fn_halves(x + 2 * i * x_step, x + (2 * i + 4) * x_step);
        __m256 odd = fn_halves(x + (2 * i + 1) * x_step, x + (2 * i + 5) * x_step);
        low[i] = _mm256_unpacklo_ps(even, odd);
        high[i] = _mm256_unpackhi_ps(even, odd);
    }
    _mm256_storeu_ps(y, _mm256_shuffle_ps(low[0], low[1], 0x44));
    _mm256_storeu_ps(y + y_step, _mm256_shuffle_ps(low[0], low[1], 0xee));
    _mm256_storeu_ps(y + 2 * y_step, _mm256_shuffle_ps(high[0], high[1], 0x44));
    _mm256_storeu_ps(y + 3 * y_step, _mm256_shuffle_ps(high[0], high[1], 0xee));
}
static inline void fn_transpose_few_64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step)
{
    __m256d even = _mm256_castps_pd(fn_halves(x, x + 2 * x_step));
    __m256d odd = _mm256_castps_pd(fn_halves(x + x_step, x + 3 * x_step));
    _mm256_storeu_pd(y, _mm256_unpacklo_pd(even, odd));
    _mm256_storeu_pd(y + y_step, _mm256_unpackhi_pd(even, odd));
}
#else
#define FN_TRANSPOSE_FEW(real, bits) \
    static inline void fn_transpose_few_##bits(const real *x, ptrdiff_t x_step, real *y, ptrdiff_t y_step) \
    { \
        for (int j = 0; j < FN_WIDE_##bits; j++) \
            for (int i = 0; i < FN_HIGH_##bits; i++) \
                y[j * y_step + i] = x[i * x_step + j]; \
    }
FN_TRANSPOSE_FEW(float, 32)
FN_TRANSPOSE_FEW(double, 64)
#undef FN_TRANSPOSE_FEW
#endif

/* Into the second-level cache: to the first one few lines can be on their way at a time, on Zen 4 too few for the memory's latency;
 * or into the nearest where fn_fetch_nearest says so at the start, on Zen 5. The nearest is also for what is read next and not long. */
static int fn_nearest_is_best;
static inline void fn_fetch_nearest(int best) { fn_nearest_is_best = best; }
static inline __attribute__((always_inline)) void fn_prefetch_to(const void *address, int nearest)
{
    if (nearest)
        __builtin_prefetch(address, 0, 3);
    else
        __builtin_prefetch(address, 0, 2);
}
#define fn_prefetch(address) fn_prefetch_to(address, fn_nearest_is_best)
#define fn_prefetch_near(address) fn_prefetch_to(address, 1)

/* Begin to load so many bytes. Always inline: of a function that does nothing else gcc drops the calls, as without effect. */
static inline __attribute__((always_inline)) void fn_fetch_to(const void *place, ptrdiff_t nbytes, int nearest)
{
    for (ptrdiff_t i = 0; i < nbytes; i += 64)
        fn_prefetch_to((const char *)place + i, nearest);
}
#define fn_fetch(place, nbytes) fn_fetch_to(place, nbytes, fn_nearest_is_best)
#define fn_fetch_near(place, nbytes) fn_fetch_to(place, nbytes, 1)

/* The same for i < rows and j < columns; the last ones overlap others. What is too narrow for that goes along its longer side. Of many
 * rows that follow each other, what comes some way on is fetched: no prefetcher follows loads of parts of lines in so many rows. */
enum { FN_AHEAD_ROWS = 4096, FN_MANY_ROWS = 64 };
#define FN_TRANSPOSE(real, bits) \
    static inline void fn_transpose_##bits(fn_in x_, ptrdiff_t x_step, fn_out y_, ptrdiff_t y_step, ptrdiff_t rows, \
                                           ptrdiff_t columns) \
    { \
        const real *x = x_; \
        real *y = y_; \
        const ptrdiff_t last_row = rows - FN_HIGH_##bits, last_column = columns - FN_WIDE_##bits; \
        const ptrdiff_t fetched = x_step == columns && rows >= FN_MANY_ROWS ? FN_HIGH_##bits * columns : 0; \
        if (last_column < 0) { \
            for (ptrdiff_t j = 0; j < columns; j++) \
                for (ptrdiff_t i = 0; i < rows; i++) \
                    y[j * y_step + i] = x[i * x_step + j]; \
            return; \
        } \
        if (last_row < 0) { \
            for (ptrdiff_t i = 0; i < rows; i++) \
                for (ptrdiff_t j = 0; j < columns; j++) \
                    y[j * y_step + i] = x[i * x_step + j]; \
            return; \
        } \
        for (ptrdiff_t i = 0; i < rows; i += FN_HIGH_##bits) { \
            i = i < last_row ? i : last_row; \
            for (ptrdiff_t at = 0; at < fetched; at += 64 / (int)sizeof(real)) \
                fn_prefetch((const char *)(x + i * x_step + at) + FN_AHEAD_ROWS); \
            for (ptrdiff_t j = 0; j < columns; j += FN_WIDE_##bits) { \
                j = j < last_column ? j : last_column; \
                fn_transpose_few_##bits(x + i * x_step + j, x_step, y + j * y_step + i, y_step); \
            } \
        } \
    }
FN_TRANSPOSE(float, 32)
FN_TRANSPOSE(double, 64)
#undef FN_TRANSPOSE

/* n words, the steps apart (in bytes), possibly misaligned, with their bytes reversed where asked. The steps of views that reverse
 * or skip have loops of their own, which the compiler makes of vectors. */
#define FN_EVERY(x_step, y_step, value) \
    for (ptrdiff_t i = 0; i < n; i++) { \
        const word w = *(const word *)(x + i * (x_step)); \
        *(word *)(y + i * (y_step)) = value; \
    }
#define FN_MOVE(bits) \
    static inline void fn_move_##bits(const char *restrict x, ptrdiff_t x_step, char *restrict y, ptrdiff_t y_step, ptrdiff_t n, \
                                      int swapped) \
    { \
        typedef uint##bits##_t __attribute__((aligned(1), may_alias)) word; \
        enum { SIZE = bits / 8 }; \
        if (swapped && x_step == SIZE && y_step == SIZE) \
            FN_EVERY(SIZE, SIZE, __builtin_bswap##bits(w)) \
        else if (swapped) \
            FN_EVERY(x_step, y_step, __builtin_bswap##bits(w)) \
        else if (y_step == SIZE && x_step == 2 * SIZE) \
            FN_EVERY(2 * SIZE, SIZE, w) \
        else if (y_step == SIZE && x_step == -SIZE) \
            FN_EVERY(-SIZE, SIZE, w) \
        else \
            FN_EVERY(x_step, y_step, w) \
    }
FN_MOVE(16)
FN_MOVE(32)
FN_MOVE(64)
#undef FN_MOVE
#undef FN_EVERY

static inline void fn_move(fn_in x, ptrdiff_t x_step, fn_out y, ptrdiff_t y_step, ptrdiff_t n, int itemsize, int swapped)
{
    if (!swapped && x_step == itemsize && y_step == itemsize)
        memcpy(y, x, (size_t)(n * itemsize));
    else if (itemsize == 2)
        fn_move_16(x, x_step, y, y_step, n, swapped);
    else if (itemsize == 4)
        fn_move_32(x, x_step, y, y_step, n, swapped);
    else
        fn_move_64(x, x_step, y, y_step, n, swapped);
}

/* 64 bytes past the caches; dst is aligned to as many. */
static inline void fn_stream_line(char *dst, const char *src)
{
#if defined(__AVX512F__)
    _mm512_stream_si512((__m512i *)dst, _mm512_loadu_si512(src));
#elif defined(__AVX__)
    for (int i = 0; i < 64; i += 32)
        _mm256_stream_si256((__m256i *)(dst + i), _mm256_loadu_si256((const __m256i *)(src + i)));
#elif defined(__SSE2__)
    for (int i = 0; i < 64; i += 16)
        _mm_stream_si128((__m128i *)(dst + i), _mm_loadu_si128((const __m128i *)(src + i)));
#else
    memcpy(dst, src, 64);
#endif
}

/* dst is aligned to 64 bytes; what is left over after the last whole line is copied with ordinary stores. */
static inline void fn_stream(fn_out dst, fn_in src, ptrdiff_t bytes)
{
    ptrdiff_t i = 0;
    for (; i + 64 <= bytes; i += 64)
        fn_stream_line((char *)dst + i, (const char *)src + i);
    if (i < bytes)
        memcpy((char *)dst + i, (const char *)src + i, (size_t)(bytes - i));
}

/* The same of any dst: what is before the first whole line is copied too. */
static inline void fn_stream_block(fn_out dst, fn_in src, ptrdiff_t bytes)
{
    const ptrdiff_t before = (ptrdiff_t)(-(uintptr_t)dst % 64), head = before < bytes ? before : bytes;
    memcpy(dst, src, (size_t)head);
    fn_stream((char *)dst + head, (const char *)src + head, bytes - head);
}

/* See fn_gathered. */
static inline __attribute__((always_inline)) void fn_store_late(fn_gathered *gathered, ptrdiff_t bytes)
{
    fn_stream(gathered->to, gathered->from, bytes);
    gathered->to += bytes;
    gathered->from += bytes;
    gathered->late -= bytes;
}
/* Take the other half. The pieces of this one end at `end`. */
static __attribute__((noinline)) void fn_turn_gathered(fn_gathered *gathered, char *end)
{
    const ptrdiff_t all = gathered->waiting + gathered->filled, part = (ptrdiff_t)((uintptr_t)end % 64);
    const ptrdiff_t rest = part < all ? part : all;
    const ptrdiff_t before = (ptrdiff_t)(-(uintptr_t)(end - all) % 64), head = before < all - rest ? before : all - rest;
    const char *pieces_end = gathered->halves[gathered->half] + 64 + gathered->filled;
    fn_store_late(gathered, gathered->late);
    memcpy(end - all, pieces_end - all, (size_t)head);
    gathered->to = end - all + head;
    gathered->from = pieces_end - all + head;
    gathered->late = all - rest - head;
    gathered->half ^= 1;
    memcpy(gathered->halves[gathered->half], pieces_end - 64, 64);
    gathered->waiting = rest;
    gathered->filled = 0;
}
/* Where to compute a piece of so many bytes, which goes to y */
static inline __attribute__((always_inline)) void *fn_gather(fn_gathered *gathered, void *y, ptrdiff_t bytes)
{
    const ptrdiff_t lines = (bytes + 63) & -64;
    if (gathered->filled + bytes > FN_GATHERED)
        fn_turn_gathered(gathered, y);
    fn_store_late(gathered, lines < gathered->late ? lines : gathered->late);
    gathered->filled += bytes;
    return gathered->halves[gathered->half] + 64 + gathered->filled - bytes;
}
/* Pieces of not more than a half, of which the last ends at `end`, are computed: a burst, if in bursts. The line that the next one
 * begins is fetched, which on Zen 5 makes bursts of whole lines as fast as those that end within one. */
static inline void fn_end_pieces(fn_gathered *gathered, void *end)
{
    if (!gathered->bursts)
        return;
    fn_prefetch_near(end);
    fn_turn_gathered(gathered, end);
    fn_store_late(gathered, gathered->late);
}
/* The last piece ends at `end`: nothing is left, and others may begin elsewhere. */
static inline void fn_store_rest(fn_gathered *gathered, void *end)
{
    fn_turn_gathered(gathered, end);
    fn_store_late(gathered, gathered->late);
    const ptrdiff_t rest = gathered->waiting;
    memcpy((char *)end - rest, gathered->halves[gathered->half] + 64 - rest, (size_t)rest);
    gathered->waiting = 0;
}

/* Store a turn's results, whole lines, past the caches or through them, and fetch what the operands from which they were computed
 * have further on: the processor does that by itself too, but begins anew on every page, and does not follow loads under a mask, as
 * dy is loaded by some loops. b may be NULL; two operands together are not fetched as far ahead as one, and farther where the
 * nearest cache is best. */
enum { FN_AHEAD = 4096, FN_AHEAD_BOTH = 1536, FN_AHEAD_NEAREST = 16384, FN_AHEAD_NEAREST_BOTH = 4096 };

static inline void fn_end_turn(void *y, const void *turn, ptrdiff_t bytes, const void *a, const void *b, int streamed, int nearest)
{
    const ptrdiff_t alone = nearest ? FN_AHEAD_NEAREST : FN_AHEAD, both = nearest ? FN_AHEAD_NEAREST_BOTH : FN_AHEAD_BOTH;
    for (ptrdiff_t i = 0; i < bytes; i += 64) {
        fn_prefetch_to((const char *)a + i + (b ? both : alone), nearest);
        if (b)
            fn_prefetch_to((const char *)b + i + both, nearest);
        if (streamed)
            fn_stream_line((char *)y + i, (const char *)turn + i);
        else
            memcpy((char *)y + i, (const char *)turn + i, 64);
    }
}

/* Less than 64 bytes, a multiple of 4, in at most two moves: a call of memcpy takes longer, and so does a store under a mask, by
 * far. */
#define FN_COPY_FROM(size) \
    if (bytes >= size) { \
        char first[size], last[size]; \
        memcpy(first, src, size); \
        memcpy(last, src + bytes - size, size); \
        memcpy(dst, first, size); \
        memcpy(dst + bytes - size, last, size); \
        return; \
    }
static inline void fn_copy_few(char *dst, const char *src, ptrdiff_t bytes)
{
    FN_COPY_FROM(32)
    FN_COPY_FROM(16)
    FN_COPY_FROM(8)
    FN_COPY_FROM(4)
}
#undef FN_COPY_FROM

/* A piece of at least a line is given in three calls: `bytes` of it are in its first line, not whole; it has whole lines, and `rest`
 * bytes are in its last one. The values come as a line, of which the first or the last ones count, and are copied as one: a copy of
 * fewer would be a call. */
static inline void fn_piece_begin(fn_line *line, void *y, const void *values, ptrdiff_t bytes)
{
    if (line->open)
        memcpy(line->bytes + 128 - bytes, values, 64);
    else
        fn_copy_few(y, values, bytes);
}
/* Not at once: a load of what two stores have just put together waits for both. */
static inline void fn_piece_lines(fn_line *line, void *y, ptrdiff_t bytes)
{
    if (line->open)
        fn_stream_line((char *)y + bytes - 64, line->bytes + 64);
}
static inline void fn_piece_end(fn_line *line, void *end, const void *values, ptrdiff_t rest)
{
    line->open = line->more && rest;
    if (line->open)
        memcpy(line->bytes + rest, values, 64);
    else
        fn_copy_few((char *)end - rest, (const char *)values + 64 - rest, rest);
}

/* Streamed stores are weakly ordered: every thread that streamed ends with this, before it reports that it is done. */
static inline void fn_stream_fence(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

#endif
