# Loops of the activations that look along a row (softmax, log_softmax, cross_entropy) or at several operands at once
# (prelu, maxout).
#
# A row is any number of contiguous elements. It is read in vectors of LANES elements, the last one padded with what does
# not count; sums run in LANES virtual lanes with their rounding errors carried along (TwoSum) and are folded in double in a
# fixed order. So the result depends on the row alone, not on the width of the machine's vectors.

from libc.string cimport memcpy

from elementary cimport exp, exp_parts2, log1p, real, scale, two_sum

cdef extern from "math.h" nogil:
    double INFINITY
    double frexp(double x, int* k)  # exact, so the same everywhere

cdef double LN2 = 0.6931471805599453
cdef enum:
    LANES = 16  # FN_LANES; Cython needs the literal 16 as the step of a range

cdef inline void fill(real* block, const real* row, Py_ssize_t n, Py_ssize_t i, real padding) noexcept nogil:
    """The up to LANES elements of the row from i on, padded."""
    cdef Py_ssize_t j
    if n - i >= LANES:
        memcpy(block, row + i, LANES * sizeof(real))
    else:
        for j in range(LANES):
            block[j] = padding
        memcpy(block, row + i, (n - i) * sizeof(real))


cdef inline void keep(real* row, const real* block, Py_ssize_t n, Py_ssize_t i) noexcept nogil:
    memcpy(row + i, block, min(n - i, <Py_ssize_t> LANES) * sizeof(real))


cdef inline double folded(const real* sums, const real* errors) noexcept nogil:
    """The total of all lanes, in double, pairwise."""
    cdef double total[LANES]
    cdef Py_ssize_t j, width = LANES // 2
    for j in range(LANES):
        total[j] = <double> sums[j] + <double> errors[j]
    while width:
        for j in range(width):
            total[j] += total[j + width]
        width //= 2
    return total[0]


cdef inline real largest(const real* x, Py_ssize_t n) noexcept nogil:
    """The largest element; a NaN does not count, it reaches the result through the sum."""
    cdef real top[LANES]
    cdef real block[LANES]
    cdef Py_ssize_t i, j
    for j in range(LANES):
        top[j] = <real> -INFINITY
    for i in range(0, n, 16):
        fill(block, x, n, i, <real> -INFINITY)
        for j in range(LANES):
            top[j] = block[j] if block[j] > top[j] else top[j]
    for j in range(1, LANES):
        top[0] = top[j] if top[j] > top[0] else top[0]
    return top[0]


cdef inline real shifted_exp(real x, real top, real* shifted, real* low) noexcept nogil:
    """exp(x - top), and x - top as shifted + low: the rounding error of the difference would be magnified by it."""
    cdef real lo, k, hi
    shifted[0] = two_sum(x, -top, low)
    hi = exp_parts2(shifted[0], low[0], &lo, &k)
    return scale(hi + lo, k)


cdef double exponentials(const real* x, real* y, Py_ssize_t n, real top) noexcept nogil:
    """y = exp(x - top); returns the sum of all but one largest, so that log1p of it is exact where one entry dominates."""
    cdef real block[LANES]
    cdef real sums[LANES]
    cdef real errors[LANES]
    cdef real counts[LANES]
    cdef real shifted, low, error, e
    cdef double tops = 0
    cdef Py_ssize_t i, j
    for j in range(LANES):
        sums[j] = errors[j] = counts[j] = 0
    for i in range(0, n, 16):
        fill(block, x, n, i, <real> -INFINITY)
        for j in range(LANES):
            e = shifted_exp(block[j], top, &shifted, &low)
            block[j] = e
            counts[j] += <real> 1 if shifted == <real> 0 else <real> 0
            sums[j] = two_sum(sums[j], <real> 0 if shifted == <real> 0 else e, &error)
            errors[j] += error
        keep(y, block, n, i)
    for j in range(LANES):
        tops += <double> counts[j]
    return folded(sums, errors) + (tops - 1)


cdef inline void times(real* y, Py_ssize_t n, real factor) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = y[i] * factor


cdef void softmax_row(const real* x, const real* unused, real* y, Py_ssize_t n) noexcept nogil:
    cdef double rest = exponentials(x, y, n, largest(x, n))
    times(y, n, <real> (1.0 / (1.0 + rest)))


cdef void softmax_row_backward(const real* dy, const real* y, real* dx, Py_ssize_t n) noexcept nogil:
    """dx = y * (dy - sum(dy * y))"""
    cdef real block[LANES]
    cdef real other[LANES]
    cdef real sums[LANES]
    cdef real errors[LANES]
    cdef real error, total
    cdef Py_ssize_t i, j
    for j in range(LANES):
        sums[j] = errors[j] = 0
    for i in range(0, n, 16):
        fill(block, dy, n, i, 0)
        fill(other, y, n, i, 0)
        for j in range(LANES):
            sums[j] = two_sum(sums[j], block[j] * other[j], &error)
            errors[j] += error
    total = <real> folded(sums, errors)
    for i in range(n):
        dx[i] = y[i] * (dy[i] - total)


cdef void log_softmax_row(const real* x, const real* unused, real* y, Py_ssize_t n) noexcept nogil:
    """y = (x - top) - log(sum), both as high + low; neither is positive, so nothing cancels."""
    cdef real top = largest(x, n)
    cdef double log_sum = log1p_any(exponentials(x, y, n, top))
    cdef real high = <real> log_sum, low = <real> (log_sum - <double> high)
    cdef real shifted, shifted_low, error, sum
    cdef Py_ssize_t i
    for i in range(n):
        shifted = two_sum(x[i], -top, &shifted_low)
        sum = two_sum(shifted, -high, &error)
        y[i] = sum + (error + (shifted_low - low)) if shifted > <real> -INFINITY else shifted - high


cdef void log_softmax_row_backward(const real* dy, const real* y, real* dx, Py_ssize_t n) noexcept nogil:
    """dx = dy - exp(y) * sum(dy)"""
    cdef real block[LANES]
    cdef real saved[LANES]
    cdef real sums[LANES]
    cdef real errors[LANES]
    cdef real error, total, lo, k, hi
    cdef Py_ssize_t i, j
    for j in range(LANES):
        sums[j] = errors[j] = 0
    for i in range(0, n, 16):
        fill(block, dy, n, i, 0)
        for j in range(LANES):
            sums[j] = two_sum(sums[j], block[j], &error)
            errors[j] += error
    total = <real> folded(sums, errors)
    for i in range(0, n, 16):
        fill(block, dy, n, i, 0)
        fill(saved, y, n, i, 0)
        for j in range(LANES):
            block[j] = block[j] - exp(saved[j]) * total
        keep(dx, block, n, i)


cdef double loss_row(const real* x, real* y, Py_ssize_t n, Py_ssize_t label, double share) noexcept nogil:
    """y = (softmax(x) - onehot(label)) * share; returns -log(softmax(x)[label])."""
    cdef real top = largest(x, n)
    cdef double rest = exponentials(x, y, n, top)
    cdef double total = 1.0 + rest, others = total - <double> y[label]
    if x[label] == top:  # the label's class is the largest: 1 is its own term, the rest is all others
        others = rest
    times(y, n, <real> (share / total))
    # softmax - 1 without its cancellation: minus the share of all other classes
    y[label] = <real> (-others / total * share)
    return log1p_any(rest) - (<double> x[label] - <double> top)


cdef double log1p_any(double x) noexcept nogil:
    """log(1 + x) for any x >= 0; log1p itself is for 0 to 1."""
    cdef int k
    cdef double m
    if x <= 1.0:
        return log1p(x)
    m = frexp(1.0 + x, &k)
    return (k - 1) * LN2 + log1p(2.0 * m - 1.0)


# prelu: the slope is an operand like x, read through the pipeline (broadcast along its axis).

cdef void prelu_forward(const real* x, const real* slope, real* y, Py_ssize_t n, const double* unused) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n & -LANES):
        y[i] = leaky_relu(x[i], slope[i])


cdef void prelu_backward(const real* dy, const real* x, const real* slope, real* dx, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n & -LANES):
        dx[i] = leaky_relu_backward(dy[i], x[i], slope[i])


cdef void prelu_dslope(const real* dy, const real* x, real* dslope, Py_ssize_t n, const double* unused) noexcept nogil:
    """What each element adds to dslope: d(slope * x)/dslope is x where the slope counts; NaN in x counts."""
    cdef Py_ssize_t i
    for i in range(n & -LANES):
        dslope[i] = <real> 0 if x[i] > <real> 0 else dy[i] * x[i]


cdef double sum_run(const real* x, Py_ssize_t n) noexcept nogil:
    cdef real block[LANES]
    cdef real sums[LANES]
    cdef real errors[LANES]
    cdef real error
    cdef Py_ssize_t i, j
    for j in range(LANES):
        sums[j] = errors[j] = 0
    for i in range(0, n, 16):
        fill(block, x, n, i, 0)
        for j in range(LANES):
            sums[j] = two_sum(sums[j], block[j], &error)
            errors[j] += error
    return folded(sums, errors)


cdef void add_run(const real* x, double* sums, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        sums[i] += <double> x[i]


# maxout: one piece after the other; the index is counted in the kernel's own dtype, so that its lanes are as wide.

cdef void maxout_forward(const real* x, real* best, real* which, Py_ssize_t n, Py_ssize_t number) noexcept nogil:
    """Take piece `number` where it is larger, or the first NaN; piece 0 is where best and which start."""
    cdef Py_ssize_t i
    cdef bint wins
    for i in range(n & -LANES):
        wins = (x[i] > best[i]) | ((x[i] != x[i]) & (best[i] == best[i]))
        best[i] = x[i] if wins else best[i]
        which[i] = <real> number if wins else which[i]


cdef void maxout_backward(const real* dy, real* dx, const real* which, Py_ssize_t n, Py_ssize_t number) noexcept nogil:
    """Piece `number` of dx."""
    cdef Py_ssize_t i
    for i in range(n & -LANES):
        dx[i] = dy[i] if which[i] == <real> number else <real> 0


level.rows[<int> FN_SOFTMAX][<int> FN_FORWARD][<int> FN_SINGLE] = <fn_row> softmax_row[float]
level.rows[<int> FN_SOFTMAX][<int> FN_BACKWARD][<int> FN_SINGLE] = <fn_row> softmax_row_backward[float]
level.rows[<int> FN_LOG_SOFTMAX][<int> FN_FORWARD][<int> FN_SINGLE] = <fn_row> log_softmax_row[float]
level.rows[<int> FN_LOG_SOFTMAX][<int> FN_BACKWARD][<int> FN_SINGLE] = <fn_row> log_softmax_row_backward[float]
level.loss[<int> FN_SINGLE] = <fn_loss_row> loss_row[float]
level.prelu[<int> FN_SINGLE] = <fn_map> prelu_forward[float]
level.prelu_backward[<int> FN_SINGLE] = <fn_map3> prelu_backward[float]
level.prelu_dslope[<int> FN_SINGLE] = <fn_map> prelu_dslope[float]
level.sum_run[<int> FN_SINGLE] = <fn_sum_run> sum_run[float]
level.add_run[<int> FN_SINGLE] = <fn_add_run> add_run[float]
level.maxout[<int> FN_SINGLE] = <fn_piece> maxout_forward[float]
level.maxout_backward[<int> FN_SINGLE] = <fn_piece> maxout_backward[float]

level.rows[<int> FN_SOFTMAX][<int> FN_FORWARD][<int> FN_DOUBLE] = <fn_row> softmax_row[double]
level.rows[<int> FN_SOFTMAX][<int> FN_BACKWARD][<int> FN_DOUBLE] = <fn_row> softmax_row_backward[double]
level.rows[<int> FN_LOG_SOFTMAX][<int> FN_FORWARD][<int> FN_DOUBLE] = <fn_row> log_softmax_row[double]
level.rows[<int> FN_LOG_SOFTMAX][<int> FN_BACKWARD][<int> FN_DOUBLE] = <fn_row> log_softmax_row_backward[double]
level.loss[<int> FN_DOUBLE] = <fn_loss_row> loss_row[double]
level.prelu[<int> FN_DOUBLE] = <fn_map> prelu_forward[double]
level.prelu_backward[<int> FN_DOUBLE] = <fn_map3> prelu_backward[double]
level.prelu_dslope[<int> FN_DOUBLE] = <fn_map> prelu_dslope[double]
level.sum_run[<int> FN_DOUBLE] = <fn_sum_run> sum_run[double]
level.add_run[<int> FN_DOUBLE] = <fn_add_run> add_run[double]
level.maxout[<int> FN_DOUBLE] = <fn_piece> maxout_forward[double]
level.maxout_backward[<int> FN_DOUBLE] = <fn_piece> maxout_backward[double]
