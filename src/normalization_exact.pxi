# What float arithmetic cannot do well enough (see norm_finish and forms in normalization_loops.pxi.tp), done in double:
# the float data is widened a block at a time, and the loops for double run over the block.

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
    const char* weights        # a gamma for every element, in the order of memory, or NULL
    bint doubtful[STRIP]       # of WRITE_GRADIENTS: which columns are wanted; the others' results are
    float results[STRIP_ROWS * STRIP]  # here

ctypedef struct StripBlock:
    double values[STRIP_ROWS * STRIP]


cdef void exact_block(const NormJob* job, Strip* strip, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t stride,
                      int phase) noexcept nogil:
    """STRIP_ROWS rows at most, `stride` elements apart, from element `first` on."""
    cdef StripBlock x, g, dx, weights
    cdef fn_block single
    cdef const fn_norm* loops = &job.level.norm[<int> FN_DOUBLE]
    cdef const char* dy
    cdef Py_ssize_t row, i, at
    for row in range(rows):
        at = (first + row * stride) * sizeof(float)
        job.level.norm_widen(job.x + at, x.values + row * STRIP, strip.n)
        if phase != ADD_VALUES:
            dy = job.dy + at
            if job.row >= 0:
                job.level.norm[<int> FN_SINGLE].column_apply(job.x + at, single.bytes, 1, STRIP, STRIP, strip.n,
                                                             strip.single, STRIP, FN_PLAIN, 0.0)
                gradient_block(job, dy, single.bytes, strip.n)
                dy = single.bytes
            job.level.norm_widen(dy, g.values + row * STRIP, strip.n)
            if strip.weights != NULL:
                job.level.norm_widen(strip.weights + row * stride * sizeof(float), weights.values, strip.n)
                for i in range(strip.n):
                    g.values[row * STRIP + i] *= weights.values[i]
    if phase == ADD_VALUES:
        loops.column_sums(x.values, rows, STRIP, strip.n, strip.shift, strip.sums, strip.sums + STRIP)
    elif phase == ADD_GRADIENTS:
        loops.column_back_sums(g.values, x.values, rows, STRIP, STRIP, strip.n, strip.k, STRIP, FN_PLAIN, 0.0,
                               strip.sums, strip.sums + STRIP, strip.sums + 2 * STRIP)
    else:
        loops.column_back_apply(g.values, x.values, dx.values, rows, STRIP, STRIP, STRIP, strip.n, strip.linear,
                                strip.k, STRIP, FN_PLAIN, 0.0)
        for row in range(rows):
            for i in range(strip.n):
                if strip.doubtful[i]:
                    strip.results[row * STRIP + i] = <float> dx.values[row * STRIP + i]
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
    cdef const char* weights = strip.weights
    cdef Py_ssize_t turn, row, rows = n // STRIP, step
    strip.n = STRIP
    for turn in range(count_of(rows, STRIP_ROWS)):
        row = turn * STRIP_ROWS
        step = min(<Py_ssize_t> STRIP_ROWS, rows - row)
        exact_block(job, strip, first + row * STRIP, step, STRIP, phase)
        if strip.weights != NULL:
            strip.weights += step * STRIP * sizeof(float)
    strip.n = n % STRIP
    if strip.n:
        exact_block(job, strip, first + rows * STRIP, 1, STRIP, phase)
    strip.weights = weights


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
    """Mean, variance and 1/sqrt(var + eps) of one set."""
    cdef Strip strip
    cdef double sums[2]
    cdef double shift
    cdef int64_t doubtful
    cdef Py_ssize_t run, first = number * job.shape.apart
    shift = finite((<const float*> job.x)[first]) if job.centred else 0.0
    fill_lanes(strip.shift, shift)
    memset(strip.sums, 0, sizeof(strip.sums))
    strip.weights = NULL
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
    job.level.norm[<int> FN_DOUBLE].coefficients(&mean, &invstd, &one, &zero, 1, k, 1)
    for i in range(COEFFICIENTS):
        fill_lanes(strip.k + i * STRIP, k[i])
    for i in range(STRIP):
        strip.doubtful[i] = True
    strip.weights = NULL if job.weights == NULL else job.weights + first_weight(job, number) * job.itemsize
    for phase in range(<int> ADD_GRADIENTS, <int> WRITE_GRADIENTS + 1):
        if phase == WRITE_GRADIENTS:
            exact_form(job, invstd, invstd, product * invstd, sum, linear)
        for piece in range(pieces.sets):
            for i in range(COEFFICIENTS * STRIP):
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
