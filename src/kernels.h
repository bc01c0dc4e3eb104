/* What a compiled instruction-set level hands to fastnn._core: one struct of function pointers.
 *
 * Contract of every block function: the pointers do not overlap (they are restrict), n is a multiple of FN_LANES, and
 * the caller pads the last block with zeros. So the body is the tail, and an element's result depends on nothing but
 * its own inputs. */
#ifndef FN_KERNELS_H
#define FN_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "rows.h"

enum { FN_LANES = 16, FN_FORWARD = 0, FN_BACKWARD = 1, FN_SINGLE = 0, FN_DOUBLE = 1 };

/* Types that Cython has no word for. */
typedef const void *restrict fn_in;
typedef void *restrict fn_out;

/* forward: a = x, b unused; backward: a = dy, b = saved. Both dtypes take their parameters as double and round them. */
typedef void (*fn_map)(fn_in a, fn_in b, fn_out y, ptrdiff_t n, const double *params);

typedef struct {
    const char *name;
    fn_map map[FN_ROWS][2][2]; /* [row][direction][dtype] */
    void (*half_to_single)(fn_in x, fn_out y, ptrdiff_t n);
    void (*single_to_half)(fn_in x, fn_out y, ptrdiff_t n);
    void (*stream)(fn_out dst, fn_in src, ptrdiff_t bytes); /* copy past the caches; dst is aligned to 64 bytes */
} fn_level;

#endif
