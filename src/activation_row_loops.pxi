# Loops of the activations that look along a row (softmax, log_softmax, cross_entropy) or at several operands at once
# (prelu, maxout).
#
# A row is any number of contiguous elements. It is read in vectors of LANES elements, the last one padded with what does
# not count; sums run in LANES virtual lanes with their rounding errors carried along (TwoSum) and are folded in double in a
# fixed order. So the result depends on the row alone, not on the width of the machine's vectors.

from libc.string cimport memcpy, memset

from elementary cimport exp, exp_inside, exp_parts2, fma, log1p, real, scale, two_sum

cdef extern from "math.h" nogil:
    double INFINITY
    double frexp(double x, int* k)  # exact, so the same everywhere

cdef double LN2 = 0.6931471805599453
cdef enum:
    LANES = 16  # FN_LANES; Cython needs the literal 16 as the step of a range

# The last elements of a row, where they are no whole vector: a row of at least LANES elements is read once more from LANES
# before its end, and lanes that were read before do not count; a shorter row goes through a padded block.

cdef inline void pad(real* block, const real* row, Py_ssize_t n, real padding) noexcept nogil:
    """A block of LANES elements: a row of n < LANES, then padding."""
    cdef Py_ssize_t j
    for j in range(LANES):
        block[j] = padding
    memcpy(block, row, n * sizeof(real))


cdef struct Lanes:
    double sum[LANES]
    double error[LANES]  # what double additions rounded off; additions of float values need none


cdef inline void add(Lanes* total, Py_ssize_t j, real x) noexcept nogil:
    cdef double error
    if real is float:
        total.sum[j] += <double> x
    else:
        total.sum[j] = two_sum(total.sum[j], x, &error)
        total.error[j] += error


cdef inline double folded(const Lanes* total, real kind) noexcept nogil:
    """The sum of all lanes in a fixed order, in four chains; for double as exact as the lanes are."""
    cdef double chain[4]
    cdef double rest[4]
    cdef double error = 0, even = 0, odd = 0
    cdef Py_ssize_t i, j
    for j in range(4):
        chain[j] = total.sum[j]
        rest[j] = total.error[j]
    for i in range(4, LANES, 4):
        for j in range(4):
            if real is float:
                chain[j] += total.sum[i + j]
            else:
                chain[j] = two_sum(chain[j], total.sum[i + j], &error)
                rest[j] += error + total.error[i + j]
    if real is float:
        return (chain[0] + chain[2]) + (chain[1] + chain[3])
    chain[0] = two_sum(chain[0], chain[2], &even)
    chain[1] = two_sum(chain[1], chain[3], &odd)
    chain[0] = two_sum(chain[0], chain[1], &error)
    return chain[0] + (error + ((even + odd) + ((rest[0] + rest[2]) + (rest[1] + rest[3]))))


cdef double sum_run(const real* x, Py_ssize_t n) noexcept nogil:
    cdef real block[LANES]
    cdef Lanes total
    cdef Py_ssize_t i, j, skip = LANES - n % LANES
    memset(&total, 0, sizeof(Lanes))
    if n < LANES:
        pad(block, x, n, 0)
        for j in range(LANES):
            add(&total, j, block[j])
        return folded(&total, <real> 0)
    for i in range(0, n & -LANES, 16):
        for j in range(LANES):
            add(&total, j, x[i + j])
    if skip < LANES:
        for j in range(LANES):
            add(&total, j, x[n - LANES + j] if j >= skip else <real> 0)
    return folded(&total, <real> 0)


cdef double sum_of_products(const real* x, const real* y, Py_ssize_t n) noexcept nogil:
    cdef real block[LANES]
    cdef real other[LANES]
    cdef Lanes total
    cdef Py_ssize_t i, j, skip = LANES - n % LANES
    memset(&total, 0, sizeof(Lanes))
    if n < LANES:
        pad(block, x, n, 0)
        pad(other, y, n, 0)
        for j in range(LANES):
            add(&total, j, block[j] * other[j])
        return folded(&total, <real> 0)
    for i in range(0, n & -LANES, 16):
        for j in range(LANES):
            add(&total, j, x[i + j] * y[i + j])
    if skip < LANES:
        for j in range(LANES):
            add(&total, j, x[n - LANES + j] * y[n - LANES + j] if j >= skip else <real> 0)
    return folded(&total, <real> 0)


cdef inline real extent(const real* x, Py_ssize_t n, real* bottom) noexcept nogil:
    """The largest and the smallest element; a NaN does not count, it reaches the result through the sum."""
    cdef real highest[64]  # more than LANES, because one vector would wait for the result of each comparison
    cdef real lowest[64]
    cdef real high[4]
    cdef real low[4]
    cdef Py_ssize_t i, j, whole = n & -64
    for j in range(4):
        high[j] = <real> -INFINITY
        low[j] = <real> INFINITY
    if whole:
        for j in range(64):
            highest[j] = x[j]
            lowest[j] = x[j]
        for i in range(64, whole, 64):
            for j in range(64):
                highest[j] = x[i + j] if x[i + j] > highest[j] else highest[j]
                lowest[j] = x[i + j] if x[i + j] < lowest[j] else lowest[j]
        for i in range(0, 64, 4):
            for j in range(4):
                high[j] = highest[i + j] if highest[i + j] > high[j] else high[j]
                low[j] = lowest[i + j] if lowest[i + j] < low[j] else low[j]
    for i in range(whole, n):
        j = i & 3
        high[j] = x[i] if x[i] > high[j] else high[j]
        low[j] = x[i] if x[i] < low[j] else low[j]
    for j in range(1, 4):
        high[0] = high[j] if high[j] > high[0] else high[0]
        low[0] = low[j] if low[j] < low[0] else low[0]
    bottom[0] = low[0]
    return high[0]


cdef inline void exp_vectors(const real* x, real* y, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n & -LANES):
        y[i] = exp_inside(x[i])


cdef inline void exp_vectors_below(const real* x, real* y, Py_ssize_t n, real top) noexcept nogil:
    """y = exp(x - top)"""
    cdef real shifted, low, lo, k, e
    cdef Py_ssize_t i
    for i in range(n & -LANES):
        shifted = two_sum(x[i], -top, &low)  # the rounding error of the difference would be magnified by exp
        e = exp_parts2(shifted, low, &lo, &k)
        y[i] = scale(e + lo, k)


cdef struct Powers:
    bint inside   # e^x itself is far from overflow and underflow, so nothing was taken from the row before exp
    double sum    # of the row's powers
    double unit   # the power of one of the largest elements
    double rest   # (sum - unit) / unit, without cancellation


cdef real powers(const real* x, real* y, Py_ssize_t n, Powers* found) noexcept nogil:
    """y = exp(x) or exp(x - largest), and their sum; returns the largest."""
    cdef real block[LANES]
    cdef real power[LANES]
    cdef real bottom, top = extent(x, n, &bottom)
    cdef real limit = 40 if sizeof(real) == 4 else 300
    cdef const real* source = x
    cdef real* target = y
    cdef Py_ssize_t length = n
    found.inside = -limit < bottom and top < limit
    if n < LANES:
        pad(block, x, n, 0)
        source, target, length = block, power, LANES
    if found.inside:
        exp_vectors(source, target, length)
        exp_vectors(source + length - LANES, target + length - LANES, LANES)
    else:
        exp_vectors_below(source, target, length, top)
        exp_vectors_below(source + length - LANES, target + length - LANES, LANES, top)
    if n < LANES:
        memcpy(y, power, n * sizeof(real))
    found.sum = sum_run(y, n)
    found.unit = <double> exp_inside(top) if found.inside else 1
    return top


cdef void find_rest(const real* x, const real* y, Py_ssize_t n, real top, Powers* found) noexcept nogil:
    """The sum without one of the largest, so that log1p of it is exact also where one entry dominates."""
    cdef Lanes lanes
    cdef double others = 0, tops = -1
    cdef Py_ssize_t i, j, whole = n & -LANES
    found.rest = (found.sum - found.unit) / found.unit
    if found.rest < (1e-4 if sizeof(real) == 4 else 1.0):
        for i in range(n):
            tops += x[i] == top
        if real is float:
            # one double is exact enough, and lanes would not be: gcc 12 mixes them up where a comparison of floats selects
            # what is added in double (with AVX2, lane 8 + j takes lane j's answer)
            for i in range(n):
                if x[i] != top:
                    others += <double> y[i]
        else:
            memset(&lanes, 0, sizeof(Lanes))
            for i in range(0, whole, 16):
                for j in range(LANES):
                    add(&lanes, j, <real> 0 if x[i + j] == top else y[i + j])
            for i in range(whole, n):
                add(&lanes, i - whole, <real> 0 if x[i] == top else y[i])
            others = folded(&lanes, top)
        found.rest = others / found.unit + tops


cdef inline void divide(real* y, Py_ssize_t n, double divisor) noexcept nogil:
    """y / divisor; the remainder corrects the product with the reciprocal, so that y / y is 1."""
    cdef real inverse = <real> (1 / divisor), rounded = <real> divisor, quotient
    cdef Py_ssize_t i
    for i in range(n):
        quotient = y[i] * inverse
        y[i] = fma(fma(-quotient, rounded, y[i]), inverse, quotient)


cdef void softmax_row(const real* x, const real* unused, real* y, Py_ssize_t n) noexcept nogil:
    cdef Powers found
    powers(x, y, n, &found)
    divide(y, n, found.sum)


cdef void softmax_row_backward(const real* dy, const real* y, real* dx, Py_ssize_t n) noexcept nogil:
    """dx = y * (dy - sum(dy * y))"""
    cdef real mean = <real> sum_of_products(dy, y, n)
    cdef Py_ssize_t i
    for i in range(n):
        dx[i] = y[i] * (dy[i] - mean)


cdef void log_softmax_row(const real* x, const real* unused, real* y, Py_ssize_t n) noexcept nogil:
    """y = x - (top + log(sum)), the subtrahend as high + low."""
    cdef Powers found
    cdef real top = powers(x, y, n, &found)
    cdef double log_sum
    cdef real high, low, total, total_low, shifted, shifted_low, error, sum
    cdef Py_ssize_t i
    find_rest(x, y, n, top, &found)
    log_sum = log1p_any(found.rest)
    high = <real> log_sum
    low = <real> (log_sum - <double> high)
    if found.inside and found.rest > 1e-3:
        total = two_sum(top, high, &total_low)
        total_low += low
        for i in range(n):
            y[i] = (x[i] - total) - total_low
        return
    # one entry dominates, or the row is wide: x - top first, both parts kept; then nothing cancels
    for i in range(n):
        shifted = two_sum(x[i], -top, &shifted_low)
        sum = two_sum(shifted, -high, &error)
        y[i] = sum + (error + (shifted_low - low)) if shifted > <real> -INFINITY else shifted - high


cdef inline void less_power(const real* dy, const real* y, real* dx, Py_ssize_t n, real total) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n & -LANES):
        dx[i] = dy[i] - exp(y[i]) * total


cdef void log_softmax_row_backward(const real* dy, const real* y, real* dx, Py_ssize_t n) noexcept nogil:
    """dx = dy - exp(y) * sum(dy)"""
    cdef real block[LANES]
    cdef real other[LANES]
    cdef real result[LANES]
    cdef real total = <real> sum_run(dy, n)
    if n < LANES:
        pad(block, dy, n, 0)
        pad(other, y, n, 0)
        less_power(block, other, result, LANES, total)
        memcpy(dx, result, n * sizeof(real))
    else:
        less_power(dy, y, dx, n, total)
        less_power(dy + n - LANES, y + n - LANES, dx + n - LANES, LANES, total)


cdef double loss_row(const real* x, real* y, Py_ssize_t n, Py_ssize_t label, double share) noexcept nogil:
    """y = (softmax(x) - onehot(label)) * share; returns -log(softmax(x)[label])."""
    cdef Powers found
    cdef real top = powers(x, y, n, &found)
    cdef double others
    find_rest(x, y, n, top, &found)
    others = found.sum - <double> y[label]
    if x[label] == top:  # the label's power is the unit, which the rest is without
        others = found.rest * found.unit
    divide(y, n, found.sum / share)
    # softmax - 1 without its cancellation: minus the share of all other classes
    y[label] = <real> (-others / found.sum * share)
    return log1p_any(found.rest) - (<double> x[label] - <double> top)


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
