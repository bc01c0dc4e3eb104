/* Elementary functions for the kernels: what both precisions share, then the functions of each.

   Everything below runs inside vector loops: no branches, no calls into libm, no tables, only IEEE-basic operations
   and integer work on the bits. So the compiler vectorises it at any width, and an element's result does not depend on
   the width. */
#ifndef FASTNN_ELEMENTARY_H
#define FASTNN_ELEMENTARY_H

#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) || defined(__clang__)
#define FN static inline __attribute__((always_inline, unused))
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

#include "elementary_f32.h"
#include "elementary_f64.h"

#endif
