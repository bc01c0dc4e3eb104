/* Explicit vectors as wide as the machine's, where gcc would keep what a loop adds up in memory. */
#ifndef FN_VECTORS_H
#define FN_VECTORS_H

#include <stdint.h>

#if defined(__AVX512F__)
enum { FN_VECTOR_BYTES = 64 };
#elif defined(__AVX__)
enum { FN_VECTOR_BYTES = 32 };
#else
enum { FN_VECTOR_BYTES = 16 };
#endif
enum { FN_PARTS = 64 / FN_VECTOR_BYTES }; /* of 16 floats */
typedef int32_t fn_ints __attribute__((vector_size(FN_VECTOR_BYTES)));
typedef float fn_floats __attribute__((vector_size(FN_VECTOR_BYTES)));
typedef double fn_doubles __attribute__((vector_size(FN_VECTOR_BYTES)));
typedef double fn_wide_doubles __attribute__((vector_size(2 * FN_VECTOR_BYTES))); /* as many as there are floats in fn_floats */

static const int32_t fn_lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

#endif
