/* The order in which an elementwise loop goes through its arrays: in pieces, downwards where that is faster. */
#ifndef FN_WALK_H
#define FN_WALK_H

#include "kernels.h"
#include "vectors.h"

/* `pieces` pieces of `width` elements, the first one at `first`, each `step` elements after the one before. */
typedef struct {
    ptrdiff_t pieces, width, first, step;
} fn_walk;

/* A load waits for a store before it to an address with the same last 12 bits: processors compare no more of them at first.
 * Upwards, loads of the next few vectors do so if y begins a little after x in its page, as arrays of a power of two do that a
 * heap has put one after the other, and a loop takes up to 1.5 times as long. Downwards they do if y begins a little before.
 *
 * A piece is a vector where setup.py defines FN_WALK_VECTORS, because the compiler can be forbidden to take the loop over the few
 * elements of one apart before it has become that vector; elsewhere it is everything. */
#if defined(FN_WALK_VECTORS)
enum { FN_BY_VECTOR = 1 };
#else
enum { FN_BY_VECTOR = 0 };
#endif
enum { FN_PAGE = 4096, FN_LITTLE = 512 };
static inline int fn_little_after(const void *x, const void *y)
{
    return ((uintptr_t)y - (uintptr_t)x) % FN_PAGE - 1 < FN_LITTLE - 1;
}

/* Through n elements, a multiple of FN_LANES, of a and b, which are read, and y, which is written. */
static inline fn_walk fn_walk_through(const void *a, const void *b, const void *y, size_t n, size_t itemsize)
{
    n &= -(size_t)FN_LANES;
    if (!FN_BY_VECTOR)
        return (fn_walk){1, n, 0, 0};
    const ptrdiff_t width = FN_VECTOR_BYTES / itemsize;
    if ((fn_little_after(a, y) || fn_little_after(b, y)) && !fn_little_after(y, a) && !fn_little_after(y, b))
        return (fn_walk){n / width, width, n - width, -width};
    return (fn_walk){n / width, width, 0, width};
}

#endif
