/* Elementary functions for the kernels: what both precisions share, then the functions of each.

   Everything below runs inside vector loops: no branches, no calls into libm, no tables, only IEEE-basic operations
   and integer work on the bits. So the compiler vectorises it at any width, and an element's result does not depend on
   the width.

   NAME_first and NAME_then (of a derivative NAME_slope_first and NAME_slope_then) are two steps of a function, each in a loop of
   its own over some hundred elements; the two numbers that the first returns and stores the second is given after x. The processor
   overlaps the elements of two short chains of dependent operations better than those of a long one. */
#ifndef FASTNN_ELEMENTARY_H
#define FASTNN_ELEMENTARY_H

#include <stdint.h>
#include <string.h>

/* A function that is called in a loop keeps the loop from being vectorised, and `inline` is but a hint: large functions with
   several callers are not inlined. So everything here is bound to be, and what Cython calls inline after it too. */
#if defined(__GNUC__) || defined(__clang__)
#undef CYTHON_INLINE
#define CYTHON_INLINE inline __attribute__((always_inline, unused))
#define FN static CYTHON_INLINE
#else
#define FN static inline
#endif

/* Where the hardware has a fused multiply-add it is used, and explicitly: the compiler must never contract on its own,
   because it would choose differently at different widths. Elsewhere a*b+c rounds twice, and whoever needs the exact
   error of a product splits the factors instead. */
#if defined(__FMA__) || defined(__aarch64__) || defined(__ARM_FEATURE_FMA)
#define FN_HAS_FMA 1
#define FN_FMA(a, b, c) __builtin_fma((a), (b), (c))
#define FN_FMAF(a, b, c) __builtin_fmaf((a), (b), (c))
#else
#define FN_HAS_FMA 0
#define FN_FMA(a, b, c) ((a) * (b) + (c))
#define FN_FMAF(a, b, c) ((a) * (b) + (c))
#endif

/* A bound that the compiler must not know. With a known one gcc 12 makes `bound < x ? bound : x` a comparison and a blend,
   and chains of them several of each; with an unknown one it is the single instruction min. */
#if defined(__GNUC__) || defined(__clang__)
#define FN_BOUND(type, name, value) __attribute__((weak)) type name = value
#else
#define FN_BOUND(type, name, value) static const type name = value
#endif

#include "elementary_f32.h"
#include "elementary_f64.h"
#include "logistic_f64.h"
#include "normal_f64.h"
#include "elementary_wide.h"

#endif
