/* What a compiled instruction-set level hands to fastnn._core: one struct of function pointers.
 *
 * Pointers do not overlap (they are restrict). Of elementwise functions, n is a multiple of FN_LANES: the caller computes the
 * last vector once more, with elements before it, or pads it with zeros. So the body is the tail, and an element's result
 * depends on nothing but its own inputs. */
#ifndef FN_KERNELS_H
#define FN_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "rows.h"

enum { FN_LANES = 16, FN_FORWARD = 0, FN_BACKWARD = 1, FN_SINGLE = 0, FN_DOUBLE = 1 };
enum { FN_SOFTMAX = 0, FN_LOG_SOFTMAX = 1, FN_CROSS_ENTROPY = 2 };
enum { FN_PANEL = 512 }; /* columns that the loops of preprocessing take together */

/* Types that Cython has no word for. */
typedef const void *restrict fn_in;
typedef void *restrict fn_out;

/* forward: a = x, b unused; backward: a = dy, b = saved. Both dtypes take their parameters as double and round them. */
typedef void (*fn_map)(fn_in a, fn_in b, fn_out y, ptrdiff_t n, const double *params);

/* The same in short turns, each of which is computed before it is stored: so y may be a or b themselves. Or, streamed, the
 * result goes past the caches, and y is aligned to 64 bytes. By line: levels whose vectors are lines store each as it is computed. */
typedef void (*fn_turns)(const void *a, const void *b, void *y, ptrdiff_t n, const double *params, int streamed, int by_line);

/* softmax and its kin over `width` rows of n elements, in one of two forms: at most FN_ROWS_TOGETHER rows, each contiguous and
 * made of whole vectors (see activation_row_loops.pxi.tp), the operand's step apart; or rows side by side, a multiple of FN_LANES
 * of at most FN_SIDE_BYTES, element j of all of them at j times the operand's step. The scratch holds as many elements. */
enum { FN_ROW_FORM = 0, FN_COLUMN_FORM = 1, FN_ROWS_TOGETHER = 16, FN_SIDE_BYTES = 1024 };
typedef struct {
    const ptrdiff_t *labels; /* of the rows, for cross-entropy */
    double *losses;          /* -log(softmax(x)[label]) of each row */
    double samples;          /* of which the loss is the mean */
    ptrdiff_t ahead;         /* how far after their operands rows are fetched beside exponentials, in the row form; 0: they are not */
    const char *coming[3];   /* of a, b and y: what the column form fetches meanwhile, as much as it works on, or NULL */
} fn_rest;
typedef void (*fn_rows)(fn_in a, ptrdiff_t a_step, fn_in b, ptrdiff_t b_step, fn_out y, ptrdiff_t y_step, fn_out scratch,
                        ptrdiff_t n, ptrdiff_t width, const fn_rest *rest);

/* prelu's slopes: each goes with `inner` elements side by side, and after `count` of them they come again. The loops of prelu
 * and maxout take any number of elements; see activation_channel_loops.pxi.tp. */
typedef struct {
    const void *slopes;
    ptrdiff_t inner, count;
    int has_zero;  /* one of the slopes is 0 */
    int four_rows; /* backward takes four rows of slopes together */
} fn_slopes;

/* The loops of the normalizations, documented where they are defined (the normalization_*.pxi.tp files). k: the
 * coefficients scale, shift, high, low, bias, centre, `width` elements apart; kind: the activation fused into the loop. */
enum { FN_PLAIN, FN_RELU, FN_LEAKY };
enum { FN_SETS = 32, FN_COLUMNS = 512 }; /* sets, and columns, that a loop over them takes together, at most */
enum { FN_LONG_ROW = 224 };              /* floats of a row from which on it is not a short one */

/* For sets without a gamma and a beta, or a shift */
#define FN_EIGHT_ONES 1, 1, 1, 1, 1, 1, 1, 1
static const double fn_zeros[FN_SETS] = {0};
static const double fn_ones[FN_SETS] = {FN_EIGHT_ONES, FN_EIGHT_ONES, FN_EIGHT_ONES, FN_EIGHT_ONES};
#undef FN_EIGHT_ONES

/* Whether a factor is neither 0 nor between 1 / reach and reach in size */
static inline int64_t fn_is_extreme(double factor, double reach)
{
    const double size = factor > 0 ? factor : -factor;
    return !((size == 0) | ((size * reach > 1) & (size < reach)));
}

/* Sets, `apart` elements from each other, of runs, `stride` elements from each other, of n consecutive elements. */
typedef struct {
    ptrdiff_t sets, apart, runs, stride, n;
} fn_sets;

/* Results past the caches in pieces that follow each other: the line in which one ends waits for the next one to fill it. Stored in
 * part, through the caches, it would have to be read first, and some processors let all later stores wait for that. */
typedef struct {
    char bytes[192] __attribute__((aligned(64))); /* the line, and room for values that do not count before and after it */
    int open;                                     /* it holds the end of the piece before */
    int more;                                     /* another piece follows the one that is written */
} fn_line;

/* Pieces of results past the caches that follow each other gather in one half of these bytes, while those in the other are stored:
 * some for every piece that is computed, as stores by themselves would wait for the memory, and in whole lines, so the end of a
 * half's last one goes on before the pieces of the next. Where the processor stores faster in bursts, in these: see fn_end_pieces. */
enum { FN_GATHERED = 4096 };
typedef struct {
    char halves[2][64 + FN_GATHERED] __attribute__((aligned(64)));
    int half;
    ptrdiff_t waiting, filled; /* bytes of it: before its pieces, and of them */
    const char *from;          /* what is still to be stored */
    char *to;
    ptrdiff_t late; /* bytes, whole lines */
    int bursts;
} fn_gathered;
static inline void fn_begin_gathered(fn_gathered *gathered, int bursts)
{
    gathered->bursts = bursts;
    gathered->half = 0;
    gathered->waiting = gathered->filled = gathered->late = 0;
    gathered->from = gathered->to = gathered->halves[0];
}

/* Whether a run that is fetched while the one before it is read stays in the nearest cache until then. */
static inline int fn_stays_near(const fn_sets *shape, ptrdiff_t itemsize)
{
    return shape->runs > 1 && shape->n * itemsize <= 8192;
}

typedef struct {
    void (*coefficients)(fn_in mean, fn_in invstd, fn_in gamma, fn_in beta, ptrdiff_t n, fn_out k, ptrdiff_t width);
    int64_t (*forms)(fn_in sums, fn_in products, fn_in squares, fn_in mean, fn_in invstd, fn_in gamma, fn_in k, ptrdiff_t width,
                     double count, int centred, ptrdiff_t n, fn_out linear, fn_out gradients, fn_out doubtful);
    /* sets */
    void (*sums)(fn_in x, const fn_sets *shape, fn_in shift, fn_out sums, fn_out squares);
    void (*run_sums)(fn_in x, ptrdiff_t runs, ptrdiff_t n, ptrdiff_t ahead, fn_in shift, fn_out sums, fn_out squares);
    void (*apply)(fn_in x, fn_out y, const fn_sets *shape, fn_in k, ptrdiff_t width, int kind, double slope);
    void (*write)(fn_in x, fn_out y, ptrdiff_t sets, ptrdiff_t n, ptrdiff_t pieces, fn_in k, ptrdiff_t width, ptrdiff_t coming,
                  fn_in shift, fn_out totals, fn_out total_squares);
    void (*stream)(fn_in x, fn_out y, ptrdiff_t n, fn_in k, ptrdiff_t width, int kind, double slope, fn_in gamma,
                   fn_in beta, fn_line *line, fn_in following, ptrdiff_t ahead, int near, double shift, double *total,
                   double *total_squares);
    void (*back_sums)(fn_in dy, fn_in x, const fn_sets *shape, fn_in k, ptrdiff_t width, int kind, double slope, fn_out totals);
    void (*back_apply)(fn_in dy, fn_in x, fn_out dx, const fn_sets *shape, fn_in linear, fn_in k, ptrdiff_t width, int kind,
                       double slope, int streamed, ptrdiff_t ahead);
    int64_t (*back_sets)(const void *dy, const void *x, void *dx, ptrdiff_t sets, ptrdiff_t channels, ptrdiff_t n, const double *mean,
                         const double *invstd, const double *gamma, int moderate, fn_gathered *gathered, double *dgamma,
                         double *dbeta, double *squares, int64_t *doubtful);
    /* columns */
    void (*column_sums)(fn_in x, ptrdiff_t rows, ptrdiff_t stride, ptrdiff_t n, fn_in shift, fn_out sums, fn_out squares);
    void (*column_apply)(fn_in x, fn_out y, ptrdiff_t rows, ptrdiff_t stride, ptrdiff_t y_stride, ptrdiff_t n, fn_in k,
                         ptrdiff_t width, int kind, double slope);
    void (*column_stream)(fn_in x, fn_out y, ptrdiff_t rows, ptrdiff_t n, fn_in k, ptrdiff_t width, int kind, double slope);
    void (*column_back_sums)(fn_in dy, fn_in x, ptrdiff_t rows, ptrdiff_t dy_stride, ptrdiff_t stride, ptrdiff_t n, fn_in k,
                             ptrdiff_t width, int kind, double slope, fn_out sums, fn_out products, fn_out squares);
    void (*column_back_apply)(fn_in dy, fn_in x, fn_out dx, ptrdiff_t rows, ptrdiff_t dy_stride, ptrdiff_t stride,
                              ptrdiff_t dx_stride, ptrdiff_t n, fn_in linear, fn_in k, ptrdiff_t width, int kind, double slope);
    void (*column_back_stream)(fn_in dy, fn_in x, fn_out dx, ptrdiff_t rows, ptrdiff_t n, fn_in linear, fn_in k, ptrdiff_t width,
                               int kind, double slope);
    /* rows whose columns have a gamma each */
    void (*row_apply)(fn_in x, fn_out y, ptrdiff_t rows, ptrdiff_t n, fn_in k, ptrdiff_t width, fn_in gamma, fn_in beta);
    void (*row_write)(fn_in x, fn_out y, ptrdiff_t rows, ptrdiff_t n, fn_in k, ptrdiff_t width, fn_in gamma, fn_in beta,
                      ptrdiff_t coming, fn_in shift, fn_out totals, fn_out total_squares);
    void (*row_back_sums)(fn_in dy, fn_in x, ptrdiff_t rows, ptrdiff_t n, fn_in gamma, fn_in k,
                          ptrdiff_t width, fn_in mean, fn_in invstd, fn_out totals, fn_out dgamma, fn_out dbeta, ptrdiff_t ahead);
    void (*row_back_apply)(fn_in dy, fn_in x, fn_out dx, ptrdiff_t rows, ptrdiff_t n, fn_in gamma,
                           fn_in linear, fn_in k, ptrdiff_t width, int streamed, ptrdiff_t ahead);
    void (*row_add)(fn_in gradients, fn_out sums, ptrdiff_t n);
    void (*row_weigh)(fn_in dy, fn_out g, fn_in gamma, ptrdiff_t n);
    void (*row_gradients)(fn_in dy, fn_in x, ptrdiff_t n, fn_in k, ptrdiff_t width, double mean, double invstd,
                          fn_out dgamma, fn_out dbeta);
    void (*short_rows)(const void *x, void *y, ptrdiff_t rows, ptrdiff_t n, ptrdiff_t together, const void *gamma,
                       const void *beta, ptrdiff_t weights, ptrdiff_t weight, double eps, int centred, fn_gathered *gathered,
                       double *mean, double *invstd);
    void (*short_rows_back)(const void *dy, const void *x, void *dx, ptrdiff_t rows, ptrdiff_t n, ptrdiff_t together,
                            const void *gamma, int centred, const double *mean, const double *invstd, fn_gathered *gathered,
                            double *dgamma, double *dbeta);
} fn_norm;

/* A histogram's bins, and from where on an element is saturated. */
typedef struct {
    double first, last, width, density; /* width of a bin, bins per unit */
    double low, high;
    ptrdiff_t bins;
} fn_bins;

/* The last index of every array is the dtype, FN_SINGLE or FN_DOUBLE. */
typedef struct {
    const char *name;
    fn_map map[FN_ROWS][2][2]; /* [row][direction] */
    fn_turns turns[FN_ROWS][2][2];
    fn_rows rows[2][3][2][2];  /* [form][FN_SOFTMAX, ...][direction] */
    /* y[j * y_step + i] = x[i * x_step + j], i < rows, j < columns */
    void (*transpose[2])(fn_in x, ptrdiff_t x_step, fn_out y, ptrdiff_t y_step, ptrdiff_t rows, ptrdiff_t columns);
    void (*prelu[2][2])(fn_in x, const fn_slopes *slopes, fn_out y, ptrdiff_t first, ptrdiff_t n); /* [inner > 1] */
    void (*prelu_backward[2][2])(fn_in dy, fn_in x, const fn_slopes *slopes, fn_out dx, fn_out sums, ptrdiff_t first,
                                 ptrdiff_t n);
    void (*maxout_two[2])(fn_in a, fn_in b, ptrdiff_t step, fn_out best, fn_out which, ptrdiff_t n);
    void (*maxout_more[2])(fn_in x, ptrdiff_t step, fn_out best, fn_out which, ptrdiff_t n, ptrdiff_t number);
    void (*maxout_two_backward[2])(fn_in dy, fn_in which, fn_out dx, ptrdiff_t n);
    void (*maxout_backward[2])(fn_in dy, fn_in which, fn_out dx, ptrdiff_t step, ptrdiff_t piece, ptrdiff_t n,
                               ptrdiff_t first, ptrdiff_t stop);
    int (*all_below)(fn_in indices, ptrdiff_t n, ptrdiff_t limit);
    void (*half_to_single)(fn_in x, fn_out y, ptrdiff_t n);
    void (*single_to_half)(fn_in x, fn_out y, ptrdiff_t n);
    /* copy n words of `itemsize` bytes, `x_step` and `y_step` bytes apart, and reverse their bytes where asked */
    void (*move)(fn_in x, ptrdiff_t x_step, fn_out y, ptrdiff_t y_step, ptrdiff_t n, int itemsize, int swapped);
    void (*stream)(fn_out dst, fn_in src, ptrdiff_t bytes); /* copy past the caches */
    void *(*gather)(fn_gathered *gathered, void *y, ptrdiff_t bytes);
    void (*end_pieces)(fn_gathered *gathered, void *end);
    void (*store_rest)(fn_gathered *gathered, void *end);
    int64_t (*norm_finish)(fn_in sums, fn_in squares, fn_in shift, double count, double eps, ptrdiff_t n, fn_out mean,
                           fn_out var, fn_out invstd, fn_out doubtful);
    void (*norm_invstd)(double *var, double eps, ptrdiff_t n);
    void (*norm_short_sets)(double *x, ptrdiff_t n, const double *gamma, const double *beta, double eps, int centred, double *mean,
                            double *invstd); /* FN_LANES sets side by side */
    void (*norm_short_back)(double *dy, double *x, ptrdiff_t n, const double *gamma, int centred, const double *mean,
                            const double *invstd, double *dgamma, double *dbeta);
    void (*norm_widen)(fn_in x, fn_out y, ptrdiff_t n);  /* float to double */
    void (*norm_narrow)(fn_in x, fn_out y, ptrdiff_t n); /* double to float */
    fn_norm norm[2];

    /* preprocessing and diagnostics: see their loops */
    void (*moments[2])(fn_in x, ptrdiff_t rows, ptrdiff_t stride, ptrdiff_t n, fn_out state, ptrdiff_t width);
    void (*merge_states)(double n, fn_out state, ptrdiff_t width, double m, fn_in other, ptrdiff_t other_width, ptrdiff_t columns);
    void (*affine[2])(fn_in x, ptrdiff_t rows, ptrdiff_t stride, ptrdiff_t n, fn_in vectors, ptrdiff_t width, fn_out y);
    void (*finite_range[2])(fn_in x, ptrdiff_t n, double *lowest, double *highest);
    int64_t (*count_bins[2])(fn_in x, ptrdiff_t n, const fn_bins *bins, int64_t *counts);
    void (*mark_alive[2])(fn_in x, ptrdiff_t n, fn_out alive);
} fn_level;

#endif
