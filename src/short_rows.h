/* Layer, RMS and group norm of short rows, of at least 8 values with a gamma each (see norm_short_rows in
 * normalization_row_loops.pxi.tp), FN_SETS rows at most that follow each other. Floats go as in long rows: one pass of sums, results
 * and gradients in their own arithmetic. All else is in double and about the mean, so that nothing is ever doubtful: doubles, and of
 * floats the rows that are. */
#ifndef FN_SHORT_ROWS_H
#define FN_SHORT_ROWS_H

#include "short_runs.h"

/* For the mean of doubles a value near it, so that equal ones have it exactly; 0 for one that is not finite. The sum of a few
 * floats is exact. */
#define FN_NEAR_32(x) 0.0
#define FN_NEAR_64(x) ((x) - (x) == 0 ? (x) : 0.0)
#define FN_LESS_32(doubles, near) (doubles)
#define FN_LESS_64(doubles, near) ((doubles) - (near))

#define FN_SHORT_ROWS(bits, real, load) \
    FN_EIGHT void fn_add_values_##bits(ptrdiff_t at, ptrdiff_t skip, const real *x, double near, fn_doubles *sum) \
    { \
        for (int part = 0; part < FN_PARTS; part++) \
            sum[part] += fn_skipped_64(FN_LESS_##bits(load(x + at + part * FN_STEP), near), part, skip); \
    } \
    FN_EIGHT void fn_add_squares_##bits(ptrdiff_t at, ptrdiff_t skip, const real *x, double mean, fn_doubles *sum) \
    { \
        for (int part = 0; part < FN_PARTS; part++) { \
            const fn_doubles d = fn_skipped_64(load(x + at + part * FN_STEP) - mean, part, skip); \
            sum[part] = FN_FMA_DOUBLES(d, d, sum[part]); \
        } \
    } \
    FN_EIGHT void fn_means_of_rows_##bits(const real *x, ptrdiff_t rows, ptrdiff_t n, double *mean) \
    { \
        fn_double4 lanes[FN_SETS]; \
        for (ptrdiff_t row = 0; row < rows; row++) { \
            fn_doubles sum[FN_PARTS] = {{0}}; \
            FN_EACH_EIGHT(n, fn_add_values_##bits, x + row * n, FN_NEAR_##bits(x[row * n]), sum); \
            lanes[row] = FN_QUARTER(sum, 0) + FN_QUARTER(sum, 1); \
        } \
        fn_totals_of_fours(lanes, rows, mean); \
        for (ptrdiff_t row = 0; row < rows; row++) \
            mean[row] = FN_NEAR_##bits(x[row * n]) + mean[row] / (double)n; \
    } \
    /* Variances, and meanwhile what lies `ahead` elements after x, if not 0, is fetched */ \
    FN_EIGHT void fn_variances_of_rows_##bits(const real *x, ptrdiff_t rows, ptrdiff_t n, ptrdiff_t ahead, const double *mean, \
                                              double *var) \
    { \
        fn_double4 lanes[FN_SETS]; \
        for (ptrdiff_t row = 0; row < rows; row++) { \
            fn_doubles sum[FN_PARTS] = {{0}}; \
            if (ahead) \
                fn_fetch(x + row * n + ahead, n * sizeof(real)); \
            FN_EACH_EIGHT(n, fn_add_squares_##bits, x + row * n, mean[row], sum); \
            lanes[row] = FN_QUARTER(sum, 0) + FN_QUARTER(sum, 1); \
        } \
        fn_totals_of_fours(lanes, rows, var); \
        for (ptrdiff_t row = 0; row < rows; row++) \
            var[row] /= (double)n; \
    } \
    FN_EIGHT void fn_moments_of_rows_##bits(const real *x, ptrdiff_t rows, ptrdiff_t n, int centred, ptrdiff_t ahead, \
                                            double *mean, double *var) \
    { \
        if (centred) \
            fn_means_of_rows_##bits(x, rows, n, mean); \
        else \
            memset(mean, 0, (size_t)rows * sizeof(double)); \
        fn_variances_of_rows_##bits(x, rows, n, ahead, mean, var); \
    } \
    static inline void fn_short_moments_##bits(const real *x, ptrdiff_t rows, ptrdiff_t n, int centred, ptrdiff_t ahead, \
                                               double *mean, double *var) \
    { \
        if (n == 16) /* nothing is left of loops and rests */ \
            fn_moments_of_rows_##bits(x, rows, 16, centred, ahead, mean, var); \
        else \
            fn_moments_of_rows_##bits(x, rows, n, centred, ahead, mean, var); \
    }
FN_SHORT_ROWS(32, float, FN_WIDENED)
FN_SHORT_ROWS(64, double, FN_LOAD_64)

/* The rows of floats that come next, which are summed while results are written: these wait for multiply-adds, those for
 * conversions. */
typedef struct {
    const float *x;
    ptrdiff_t rows, n, ahead; /* elements on, what is fetched meanwhile, if not 0 */
    fn_double4 sums[FN_SETS], squares[FN_SETS];
} fn_coming;
FN_EIGHT void fn_sum_coming_row(fn_coming *coming, ptrdiff_t row, ptrdiff_t n)
{
    fn_sum_values_32(coming->x + row * n, n, coming->ahead, 0.0, coming->sums + row, coming->squares + row);
}
static inline void fn_sum_coming(fn_coming *coming)
{
    for (ptrdiff_t row = 0; row < coming->rows; row++)
        fn_sum_coming_row(coming, row, coming->n);
}
static inline void fn_short_sums(const fn_coming *coming, double *sums, double *squares)
{
    fn_totals_of_fours(coming->sums, coming->rows, sums);
    fn_totals_of_fours(coming->squares, coming->rows, squares);
}

/* y = z * gamma + beta, z of the coefficients `width` apart (see normalization_loops.pxi.tp). The gammas of the first row begin at
 * `weight`, and after `weights` of them they come again. `gathered` unless it is NULL: past the caches. */
#define FN_SHORT_APPLY(bits, real, whole, vector, parts) \
    FN_EIGHT void fn_apply_rows_of_##bits(const real *x, real *y, ptrdiff_t rows, ptrdiff_t n, const real *k, ptrdiff_t width, \
                                          const real *gamma, const real *beta, ptrdiff_t weights, ptrdiff_t weight, \
                                          fn_gathered *gathered, int streamed, fn_coming *coming) \
    { \
        const whole zero = {0}; \
        FN_WRITE_ROWS(real, FN_WHOLE_##bits, vector, parts, FN_STORE_##bits, y, rows, n, streamed, gathered, FN_BEGIN_ROW_##bits, \
                      FN_ROW_RESULT_##bits); \
    } \
    static inline void fn_short_apply_##bits(const real *x, real *y, ptrdiff_t rows, ptrdiff_t n, const real *k, ptrdiff_t width, \
                                             const real *gamma, const real *beta, ptrdiff_t weights, ptrdiff_t weight, \
                                             fn_gathered *gathered, fn_coming *coming) \
    { \
        if (gathered) \
            fn_apply_rows_of_##bits(x, y, rows, n, k, width, gamma, beta, weights, weight, gathered, 1, coming); \
        else if (n == 16) \
            fn_apply_rows_of_##bits(x, y, rows, 16, k, width, gamma, beta, weights, weight, gathered, 0, coming); \
        else \
            fn_apply_rows_of_##bits(x, y, rows, n, k, width, gamma, beta, weights, weight, gathered, 0, coming); \
    }
#define FN_BEGIN_ROW(whole) \
    const ptrdiff_t from = weight - first; \
    const whole shift = k[row + width] - zero, high = k[row + 2 * width] - zero; \
    weight = weight + n == weights ? 0 : weight + n
#define FN_BEGIN_ROW_32 \
    FN_BEGIN_ROW(fn_floats); \
    const fn_floats scale = k[row] - zero, low = k[row + 3 * width] - zero, bias = k[row + 4 * width] - zero; \
    if (row < coming->rows) \
        fn_sum_coming_row(coming, row, n)
#define FN_BEGIN_ROW_64 \
    FN_BEGIN_ROW(fn_doubles); \
    (void)coming
#define FN_ROW_RESULT_32(some, at) \
    FN_FMA_##some(fn_affine_##some(FN_AT_##some(x + (at)), FN_OF_##some(scale), FN_OF_##some(shift), FN_OF_##some(high), \
                                   FN_OF_##some(low), FN_OF_##some(bias)), \
                  FN_AT_##some(gamma + from + (at)), FN_AT_##some(beta + from + (at)))
#define FN_ROW_RESULT_64(some, at) \
    FN_FMA_DOUBLES((FN_LOAD_64(x + (at)) - shift) * high, FN_LOAD_64(gamma + from + (at)), FN_LOAD_64(beta + from + (at)))
#define FN_AFFINE(some, vector) \
    static inline vector fn_affine_##some(vector x, vector scale, vector shift, vector high, vector low, vector bias) \
    { \
        const vector t = FN_FMA_##some(x, scale, -shift); \
        return FN_FMA_##some(t, high, FN_FMA_##some(t, low, bias)); \
    }
FN_AFFINE(FEW, fn_few_floats)
FN_AFFINE(WHOLE, fn_floats)
FN_SHORT_APPLY(32, float, fn_floats, fn_few_floats, FN_FEW_PARTS)
FN_SHORT_APPLY(64, double, fn_doubles, fn_doubles, FN_PARTS)

/* Backward, of rows with the same gammas. Eight columns of all rows at a time, so that their gradients, which are added to, stay in
 * registers; the sums of g and g * x_hat, g = dy * gamma, wait in eight lanes of every row. */
#define FN_SHORT_ROWS_BACK(bits, real, load, store) \
    FN_EIGHT void fn_add_columns_##bits(ptrdiff_t at, ptrdiff_t skip, const real *dy, const real *x, ptrdiff_t rows, ptrdiff_t n, \
                                        const real *gamma, const double *mean, const double *invstd, ptrdiff_t ahead, \
                                        double *dgamma, double *dbeta, fn_double4 *sums, fn_double4 *products) \
    { \
        fn_doubles gammas[FN_PARTS], along[FN_PARTS], beside[FN_PARTS]; \
        for (int part = 0; part < FN_PARTS; part++) { \
            gammas[part] = load(gamma + at + part * FN_STEP); \
            along[part] = FN_DOUBLES(dgamma, at + part * FN_STEP); \
            beside[part] = FN_DOUBLES(dbeta, at + part * FN_STEP); \
        } \
        for (ptrdiff_t row = 0; row < rows; row++) { \
            if (ahead && at % (64 / (ptrdiff_t)sizeof(real)) == 0) \
                fn_prefetch(x + row * n + at + ahead); \
            for (int part = 0; part < FN_PARTS; part++) { \
                const ptrdiff_t place = row * n + at + part * FN_STEP; \
                double *sum = (double *)(sums + 2 * row) + part * FN_STEP, *product = (double *)(products + 2 * row) + part * FN_STEP; \
                const fn_doubles d = fn_skipped_64(load(dy + place), part, skip), g = d * gammas[part]; \
                const fn_doubles hat = fn_skipped_64((load(x + place) - mean[row]) * invstd[row], part, skip); \
                FN_DOUBLES(sum, 0) += g; \
                FN_DOUBLES(product, 0) = FN_FMA_DOUBLES(g, hat, FN_DOUBLES(product, 0)); \
                along[part] = FN_FMA_DOUBLES(d, hat, along[part]); \
                beside[part] += d; \
            } \
        } \
        for (int part = 0; part < FN_PARTS; part++) { \
            FN_DOUBLES(dgamma, at + part * FN_STEP) = along[part]; \
            FN_DOUBLES(dbeta, at + part * FN_STEP) = beside[part]; \
        } \
    } \
    FN_EIGHT void fn_sum_rows_of_##bits(const real *dy, const real *x, ptrdiff_t rows, ptrdiff_t n, const real *gamma, \
                                        const double *mean, const double *invstd, ptrdiff_t ahead, double *dgamma, double *dbeta, \
                                        double *totals, double *total_products) \
    { \
        fn_double4 sums[2 * FN_SETS] = {{0}}, products[2 * FN_SETS] = {{0}}; \
        FN_EACH_EIGHT(n, fn_add_columns_##bits, dy, x, rows, n, gamma, mean, invstd, ahead, dgamma, dbeta, sums, products); \
        for (ptrdiff_t row = 0; row < rows; row++) { \
            sums[row] = sums[2 * row] + sums[2 * row + 1]; \
            products[row] = products[2 * row] + products[2 * row + 1]; \
        } \
        fn_totals_of_fours(sums, rows, totals); \
        fn_totals_of_fours(products, rows, total_products); \
    } \
    /* dx = g * invstd + (u * b + c), u = x - mean; past the caches the next rows of dy are fetched. */ \
    FN_EIGHT void fn_back_rows_of_##bits(const real *dy, const real *x, real *dx, ptrdiff_t rows, ptrdiff_t n, const real *gamma, \
                                         const double *mean, const double *invstd, const double *b, const double *c, \
                                         fn_gathered *gathered, int streamed) \
    { \
        const fn_doubles zero = {0}; \
        FN_WRITE_ROWS(real, FN_WHOLE_64, fn_doubles, FN_PARTS, store, dx, rows, n, streamed, gathered, FN_BEGIN_BACK_ROW, \
                      FN_ROW_GRADIENT_##bits); \
    } \
    static inline void fn_short_forms_##bits(const real *dy, const real *x, ptrdiff_t rows, ptrdiff_t n, const real *gamma, \
                                             int centred, const double *mean, const double *invstd, ptrdiff_t ahead, \
                                             double *dgamma, double *dbeta, double *b, double *c) \
    { \
        double sums[FN_SETS], products[FN_SETS]; \
        if (n == 16) \
            fn_sum_rows_of_##bits(dy, x, rows, 16, gamma, mean, invstd, ahead, dgamma, dbeta, sums, products); \
        else \
            fn_sum_rows_of_##bits(dy, x, rows, n, gamma, mean, invstd, ahead, dgamma, dbeta, sums, products); \
        for (ptrdiff_t row = 0; row < rows; row++) { \
            b[row] = -(products[row] / (double)n) * invstd[row] * invstd[row]; \
            c[row] = centred ? -(sums[row] / (double)n) * invstd[row] : 0; \
        } \
    } \
    static inline void fn_write_back_##bits(const real *dy, const real *x, real *dx, ptrdiff_t rows, ptrdiff_t n, const real *gamma, \
                                            const double *mean, const double *invstd, const double *b, const double *c, \
                                            fn_gathered *gathered) \
    { \
        if (gathered) \
            fn_back_rows_of_##bits(dy, x, dx, rows, n, gamma, mean, invstd, b, c, gathered, 1); \
        else if (n == 16) \
            fn_back_rows_of_##bits(dy, x, dx, rows, 16, gamma, mean, invstd, b, c, gathered, 0); \
        else \
            fn_back_rows_of_##bits(dy, x, dx, rows, n, gamma, mean, invstd, b, c, gathered, 0); \
    }
#define FN_BEGIN_BACK_ROW \
    const fn_doubles as = invstd[row] - zero, bs = b[row] - zero, cs = c[row] - zero, middle = mean[row] - zero; \
    if (streamed) \
        fn_fetch(dy + first + rows * n, n * sizeof(*dy))
#define FN_ROW_GRADIENT(load, at) \
    FN_FMA_DOUBLES(load(dy + (at)) * load(gamma + (at) - first), as, FN_FMA_DOUBLES(load(x + (at)) - middle, bs, cs))
#define FN_ROW_GRADIENT_32(some, at) FN_ROW_GRADIENT(FN_WIDENED, at)
#define FN_ROW_GRADIENT_64(some, at) FN_ROW_GRADIENT(FN_LOAD_64, at)
#define FN_STORE_FROM_64(some, x, value) FN_STORE_NARROWED(x, value)
FN_SHORT_ROWS_BACK(32, float, FN_WIDENED, FN_STORE_FROM_64)
FN_SHORT_ROWS_BACK(64, double, FN_LOAD_64, FN_STORE_64)
static inline void fn_short_back_64(const double *dy, const double *x, double *dx, ptrdiff_t rows, ptrdiff_t n, const double *gamma,
                                    int centred, const double *mean, const double *invstd, fn_gathered *gathered, ptrdiff_t ahead,
                                    double *dgamma, double *dbeta)
{
    double b[FN_SETS], c[FN_SETS];
    fn_short_forms_64(dy, x, rows, n, gamma, centred, mean, invstd, ahead, dgamma, dbeta, b, c);
    fn_write_back_64(dy, x, dx, rows, n, gamma, mean, invstd, b, c, gathered);
}

/* The same of floats in their own arithmetic, up to the sums of g, g * u and g * g of each row, u = x * scale - centre, with which
 * x_hat = u * factor + offset. k holds the arrays of coefficients, `width` apart: factor and offset are in the places of high and bias.
 * dgamma and dbeta are added to. */
#define FN_ROW_DEVIATION(vector) const vector scale = k[row] - zero, centre = k[row + 5 * width] - zero
FN_EIGHT void fn_add_row_products(ptrdiff_t at, ptrdiff_t skip, const float *dy, const float *x, const float *gamma,
                                  fn_few_floats scale, fn_few_floats centre, fn_few_floats factor, fn_few_floats offset,
                                  float *dgamma, float *dbeta, fn_few_floats *sum, fn_few_floats *product, fn_few_floats *square)
{
    for (int part = 0; part < FN_FEW_PARTS; part++) {
        const ptrdiff_t place = at + part * (8 / FN_FEW_PARTS);
        const fn_few_floats d = fn_skipped_32(FN_FEW(dy + place), part, skip), g = d * FN_FEW(gamma + place);
        const fn_few_floats u = FN_FMA_FEW(FN_FEW(x + place), scale, -centre);
        sum[part] += g;
        product[part] = FN_FMA_FEW(g, u, product[part]);
        square[part] = FN_FMA_FEW(g, g, square[part]);
        FN_FEW(dgamma + place + skip) = FN_FMA_FEW(d, FN_FMA_FEW(u, factor, offset), FN_FEW(dgamma + place + skip));
        FN_FEW(dbeta + place + skip) += d;
    }
}
static inline void fn_sum_row_gradients(const float *dy, const float *x, ptrdiff_t rows, ptrdiff_t n, const float *gamma,
                                        const float *k, ptrdiff_t width, ptrdiff_t ahead, float *dgamma, float *dbeta,
                                        double *totals, double *products, double *squares)
{
    const fn_few_floats zero = {0};
    fn_few_floats lanes[3][FN_SETS * FN_FEW_PARTS];
    for (ptrdiff_t row = 0; row < rows; row++, dy += n, x += n) {
        FN_ROW_DEVIATION(fn_few_floats);
        const fn_few_floats factor = k[row + 2 * width] - zero, offset = k[row + 4 * width] - zero;
        fn_few_floats sum[FN_FEW_PARTS] = {{0}}, product[FN_FEW_PARTS] = {{0}}, square[FN_FEW_PARTS] = {{0}};
        if (ahead) {
            fn_fetch(dy + ahead, n * (ptrdiff_t)sizeof(*dy));
            fn_fetch(x + ahead, n * (ptrdiff_t)sizeof(*x));
        }
        FN_EACH_EIGHT(n, fn_add_row_products, dy, x, gamma, scale, centre, factor, offset, dgamma, dbeta, sum, product, square);
        memcpy(lanes[0] + row * FN_FEW_PARTS, sum, sizeof(sum));
        memcpy(lanes[1] + row * FN_FEW_PARTS, product, sizeof(product));
        memcpy(lanes[2] + row * FN_FEW_PARTS, square, sizeof(square));
    }
    for (ptrdiff_t i = n & -(ptrdiff_t)8; i < n; i++) {
        dgamma[i] = dgamma[i + (-n & 7)];
        dbeta[i] = dbeta[i + (-n & 7)];
    }
    fn_totals_of_eights(lanes[0], rows, totals);
    fn_totals_of_eights(lanes[1], rows, products);
    fn_totals_of_eights(lanes[2], rows, squares);
}
#define FN_BEGIN_FLOAT_BACK_ROW \
    FN_ROW_DEVIATION(fn_floats); \
    const fn_floats a = linear[row] - zero, b = linear[row + width] - zero, c = linear[row + 2 * width] - zero
#define FN_FLOAT_ROW_GRADIENT(some, at) \
    FN_FMA_##some(FN_AT_##some(dy + (at)) * FN_AT_##some(gamma + (at) - first), FN_OF_##some(a), \
                  FN_FMA_##some(FN_FMA_##some(FN_AT_##some(x + (at)), FN_OF_##some(scale), -FN_OF_##some(centre)), FN_OF_##some(b), \
                                FN_OF_##some(c)))
/* dx = dy * gamma * a + (u * b + c), the arrays a, b and c `width` apart */
FN_EIGHT void fn_write_row_gradients_of(const float *dy, const float *x, float *dx, ptrdiff_t rows, ptrdiff_t n, const float *gamma,
                                        const float *k, const float *linear, ptrdiff_t width, fn_gathered *gathered,
                                        int streamed)
{
    const fn_floats zero = {0};
    FN_WRITE_ROWS(float, FN_WHOLE_32, fn_few_floats, FN_FEW_PARTS, FN_STORE_32, dx, rows, n, streamed, gathered,
                  FN_BEGIN_FLOAT_BACK_ROW, FN_FLOAT_ROW_GRADIENT);
}
static inline void fn_write_row_gradients(const float *dy, const float *x, float *dx, ptrdiff_t rows, ptrdiff_t n,
                                          const float *gamma, const float *k, const float *linear, ptrdiff_t width,
                                          fn_gathered *gathered)
{
    if (gathered)
        fn_write_row_gradients_of(dy, x, dx, rows, n, gamma, k, linear, width, gathered, 1);
    else
        fn_write_row_gradients_of(dy, x, dx, rows, n, gamma, k, linear, width, gathered, 0);
}
/* The same where some rows are doubtful: these in double, the others as ever, for a row must not change with its neighbours; the
 * gradients of gamma and beta, which are those of all rows, in double. */
static inline void fn_short_back_mixed(const float *dy, const float *x, float *dx, ptrdiff_t rows, ptrdiff_t n, const float *gamma,
                                       int centred, const double *mean, const double *invstd, const int64_t *doubtful,
                                       const float *k, const float *linear, ptrdiff_t width, fn_gathered *gathered,
                                       ptrdiff_t ahead, double *dgamma, double *dbeta)
{
    double b[FN_SETS], c[FN_SETS];
    fn_short_forms_32(dy, x, rows, n, gamma, centred, mean, invstd, ahead, dgamma, dbeta, b, c);
    for (ptrdiff_t row = 0; row < rows; row++, dy += n, x += n, dx += n) {
        if (doubtful[row])
            fn_write_back_32(dy, x, dx, 1, n, gamma, mean + row, invstd + row, b + row, c + row, gathered);
        else
            fn_write_row_gradients(dy, x, dx, 1, n, gamma, k + row, linear + row, width, gathered);
    }
}

#endif
