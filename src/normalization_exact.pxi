# What float arithmetic cannot do well enough (see norm_finish and norm_forms in normalization_coefficients.pxi.tp), done
# in double: the float data is widened a block at a time, and the loops for double run over the block.

cdef enum:
    STRIP = 32      # columns of a block
    STRIP_ROWS = 16

cdef enum:  # phases
    ADD_VALUES
    ADD_GRADIENTS
    WRITE_GRADIENTS

cdef struct Strip:
    Py_ssize_t n               # columns, STRIP at most
    double shift[STRIP]        # of ADD_VALUES
    float single[COEFFICIENTS * STRIP]  # forward's: an activation's gradient wants forward's z, bit for bit
    double k[COEFFICIENTS * STRIP]
    double linear[3 * STRIP]
    double sums[3 * STRIP]
    bint doubtful[STRIP]       # of WRITE_GRADIENTS: which columns are wanted; the others' results are
    float results[STRIP_ROWS * STRIP]  # here
    double x[STRIP_ROWS * STRIP]  # the block
    double g[STRIP_ROWS * STRIP]
    double dx[STRIP_ROWS * STRIP]


cdef void exact_block(const NormJob* job, Strip* strip, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t stride,
                      int phase) noexcept nogil:
    """STRIP_ROWS rows at most, `stride` elements apart, from element `first` on."""
    cdef fn_block single
    cdef const fn_norm* loops = &job.level.norm[<int> FN_DOUBLE]
    cdef const char* dy
    cdef Py_ssize_t row, i, at
    for row in range(rows):
        at = (first + row * stride) * sizeof(float)
        job.level.norm_widen(job.x + at, strip.x + row * STRIP, strip.n)
        if phase != ADD_VALUES:
            dy = job.dy + at
            if job.row >= 0:
                job.level.norm[<int> FN_SINGLE].column_apply(job.x + at, single.bytes, 1, STRIP, STRIP, strip.n,
                                                             strip.single, STRIP, FN_PLAIN, 0.0)
                gradient_block(job, dy, single.bytes, strip.n)
                dy = single.bytes
            job.level.norm_widen(dy, strip.g + row * STRIP, strip.n)
    if phase == ADD_VALUES:
        loops.column_sums(strip.x, rows, STRIP, strip.n, strip.shift, strip.sums, strip.sums + STRIP)
    elif phase == ADD_GRADIENTS:
        loops.column_back_sums(strip.g, strip.x, rows, STRIP, STRIP, strip.n, strip.k, STRIP, FN_PLAIN, 0.0,
                               strip.sums, strip.sums + STRIP, strip.sums + 2 * STRIP)
    else:
        loops.column_back_apply(strip.g, strip.x, strip.dx, rows, STRIP, STRIP, STRIP, strip.n, strip.linear,
                                strip.k, STRIP, FN_PLAIN, 0.0)
        for row in range(rows):
            for i in range(strip.n):
                if strip.doubtful[i]:
                    strip.results[row * STRIP + i] = <float> strip.dx[row * STRIP + i]
            memcpy(job.result + (first + row * stride) * sizeof(float), strip.results + row * STRIP,
                   strip.n * sizeof(float))


cdef void exact_rows(const NormJob* job, Strip* strip, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t stride,
                     int phase) noexcept nogil:
    cdef Py_ssize_t turn, row
    for turn in range(count_of(rows, STRIP_ROWS)):
        row = turn * STRIP_ROWS
        exact_block(job, strip, first + row * stride, min(<Py_ssize_t> STRIP_ROWS, rows - row), stride, phase)


cdef void exact_run(const NormJob* job, Strip* strip, Py_ssize_t first, Py_ssize_t n, int phase) noexcept nogil:
    """A run of n consecutive elements, as rows of STRIP."""
    cdef Py_ssize_t rows = n // STRIP
    strip.n = STRIP
    exact_rows(job, strip, first, rows, STRIP, phase)
    strip.n = n % STRIP
    if strip.n:
        exact_rows(job, strip, first + rows * STRIP, 1, STRIP, phase)


cdef double strip_total(const double* lanes) noexcept nogil:
    cdef double total = 0.0
    cdef Py_ssize_t i
    for i in range(STRIP):
        total += lanes[i]
    return total


cdef void exact_form(const NormJob* job, double factor, double invstd, double dgamma, double dbeta,
                     double* linear) noexcept nogil:
    """dx = factor * (g - dbeta / n - (x - mean) * invstd * dgamma / n) as a * g + b * (x - mean) + c."""
    if job.centred and job.count == 1.0:
        factor = 0.0
    linear[0] = factor
    linear[1] = -(factor * (dgamma / job.count)) * invstd
    linear[2] = -factor * (dbeta / job.count) if job.centred else 0.0


# The sets form.

cdef void fill_lanes(double* lanes, double value) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(STRIP):
        lanes[i] = value


cdef void exact_statistics(const NormJob* job, Py_ssize_t number, double* mean, double* var,
                           double* invstd) noexcept nogil:
    """Mean, variance and 1/sqrt(var + eps) of one set, whose mean is known roughly."""
    cdef Strip strip
    cdef double sums[2]
    cdef double shift
    cdef int64_t doubtful
    cdef Py_ssize_t run, first = number * job.shape.apart
    shift = better_shift(job, mean[0]) if job.centred else 0.0
    fill_lanes(strip.shift, shift)
    memset(strip.sums, 0, sizeof(strip.sums))
    for run in range(job.shape.runs):
        exact_run(job, &strip, first + run * job.shape.stride, job.shape.n, ADD_VALUES)
    sums[0] = strip_total(strip.sums) if job.centred else 0.0
    sums[1] = strip_total(strip.sums + STRIP)
    job.level.norm_finish(sums, sums + 1, &shift, job.count, job.eps, 1, mean, var, invstd, &doubtful)


cdef void exact_gradients(const NormJob* job, Py_ssize_t number, double mean, double invstd, const fn_sets* pieces,
                          const double* gamma, const float* single, Py_ssize_t width, double* sums) noexcept nogil:
    """dx of one set, and the sums of g and g * (x - mean) of each of its pieces, `width` apart."""
    cdef Strip strip
    cdef double linear[3]
    cdef double k[COEFFICIENTS]
    cdef double one = 1.0, zero = 0.0, sum = 0.0, product = 0.0
    cdef Py_ssize_t piece, run, i, first = number * job.shape.apart
    cdef int phase
    memset(linear, 0, sizeof(linear))  # the sums come before it
    job.level.norm[<int> FN_DOUBLE].coefficients(&mean, &invstd, &one, &zero, 1, k, 1)
    for i in range(COEFFICIENTS):
        fill_lanes(strip.k + i * STRIP, k[i])
    for i in range(STRIP):
        strip.doubtful[i] = True
    for phase in range(<int> ADD_GRADIENTS, <int> WRITE_GRADIENTS + 1):
        if phase == WRITE_GRADIENTS:
            exact_form(job, invstd, invstd, product * invstd, sum, linear)
        for piece in range(pieces.sets):
            for i in range(COEFFICIENTS * STRIP if single != NULL else 0):
                strip.single[i] = single[i // STRIP * width + piece]
            for i in range(3):
                fill_lanes(strip.linear + i * STRIP, linear[i] * gamma[piece] if i == 0 else linear[i])
            memset(strip.sums, 0, sizeof(strip.sums))
            for run in range(pieces.runs):
                exact_run(job, &strip, first + piece * pieces.apart + run * pieces.stride, pieces.n, phase)
            if phase == ADD_GRADIENTS:
                sums[piece] = strip_total(strip.sums)
                sums[width + piece] = strip_total(strip.sums + STRIP)
                sum += gamma[piece] * sums[piece]
                product += gamma[piece] * sums[width + piece]


cdef void exact_row(const NormJob* job, Py_ssize_t number, double mean, double invstd, double* dgamma,
                    double* dbeta) noexcept nogil:
    """dx of one row with a gamma for every element; its gradients of gamma and beta are added."""
    cdef fn_block dy, x, gamma, gradients, more
    cdef const fn_norm* loops = &job.level.norm[<int> FN_DOUBLE]
    cdef double linear[3]
    cdef double k[COEFFICIENTS]
    cdef double sums[3]
    cdef double one = 1.0, zero = 0.0
    cdef Py_ssize_t turn, done, n, at, most = BLOCK_BYTES // sizeof(double)
    cdef int phase
    memset(sums, 0, sizeof(sums))
    loops.coefficients(&mean, &invstd, &one, &zero, 1, k, 1)
    for phase in range(<int> ADD_GRADIENTS, <int> WRITE_GRADIENTS + 1):
        if phase == WRITE_GRADIENTS:
            exact_form(job, invstd, invstd, sums[1] * invstd, sums[0], linear)
        for turn in range(count_of(job.shape.n, most)):
            done = turn * most
            n = min(most, job.shape.n - done)
            at = (number * job.shape.apart + done) * sizeof(float)
            job.level.norm_widen(job.dy + at, dy.bytes, n)
            job.level.norm_widen(job.x + at, x.bytes, n)
            job.level.norm_widen(job.weights + (first_weight(job, number) + done) * sizeof(float), gamma.bytes, n)
            if phase == ADD_GRADIENTS:
                loops.row_back_sums(dy.bytes, x.bytes, 1, n, gamma.bytes, k, 1, &mean, &invstd, sums, gradients.bytes,
                                    more.bytes, 0)
                loops.row_add(gradients.bytes, dgamma + done, n)
                loops.row_add(more.bytes, dbeta + done, n)
            else:
                loops.row_back_apply(dy.bytes, x.bytes, gradients.bytes, 1, n, gamma.bytes, linear, k, 1, False, 0)
                job.level.norm_narrow(gradients.bytes, job.result + at, n)
