/* What the loops of the normalizations need and Cython cannot say: a multiply-add for their results, and the folding of
 * lanes in explicit vectors: loops of 8 are unrolled before gcc can vectorize them. The vectors are those of gcc and clang
 * for any machine; where it has none so wide, several take their place. */
#ifndef FN_NORMALIZATION_H
#define FN_NORMALIZATION_H

#include <stddef.h>
#include <string.h>

#include "elementary.h"

/* Without the instruction through double, where the product is exact, unlike FN_FMAF: the bounds hold there too. */
#if FN_HAS_FMA
#define fn_fmaf(a, b, c) FN_FMAF((a), (b), (c))
#else
#define fn_fmaf(a, b, c) ((float)((double)(a) * (b) + (c)))
#endif

#define fn_prefetch(address) __builtin_prefetch((address), 0, 2)

/* 32 lanes added up to 8 of double; those of float are added to what is there. */
typedef float fn_float16 __attribute__((vector_size(64)));
typedef double fn_double8 __attribute__((vector_size(64)));
typedef double fn_double16 __attribute__((vector_size(128)));

static inline void fn_fold_f64(const double *lanes, double *eight)
{
    fn_double8 part[4];
    memcpy(part, lanes, sizeof(part));
    part[0] = (part[0] + part[2]) + (part[1] + part[3]);
    memcpy(eight, part, sizeof(part[0]));
}

static inline void fn_move_f64(const double *lanes, double *eight)
{
    fn_double8 sum, more;
    memcpy(&sum, eight, sizeof(sum));
    fn_fold_f64(lanes, eight);
    memcpy(&more, eight, sizeof(more));
    sum += more;
    memcpy(eight, &sum, sizeof(sum));
}

static inline void fn_move_f32(const float *lanes, double *eight)
{
    fn_float16 part[2];
    fn_double16 wide;
    fn_double8 half[2], sum;
    memcpy(part, lanes, sizeof(part));
    memcpy(&sum, eight, sizeof(sum));
    wide = __builtin_convertvector(part[0] + part[1], fn_double16);
    memcpy(half, &wide, sizeof(half));
    sum += half[0] + half[1];
    memcpy(eight, &sum, sizeof(sum));
}

#endif
