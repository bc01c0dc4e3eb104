# Layer, RMS, group and instance normalization: rows that have statistics of their own.
#
# In layer and RMS norm gamma and beta belong to the columns; in group norm a row is one group of one sample, cut into
# channels of `inner` values. Rows are taken in chunks that stay in the cache between sums and results. Gradients of gamma
# and beta are summed over fixed blocks of rows or samples, and the blocks' sums added in their order.

cdef enum:
    TOGETHER_VALUES = 8192   # most values in such a chunk of rows
    ROW_BLOCKS = 16       # most blocks

cdef struct RowJob:
    const fn_level* level
    const fn_norm* loops
    int itemsize
    Py_ssize_t rows, n        # rows of n values; group norm: rows = samples * groups
    Py_ssize_t groups         # of a sample; 0 for layer and RMS norm
    Py_ssize_t channels, inner  # of a group, of a channel
    Py_ssize_t block, blocks  # rows of a block, or samples
    const char* x
    const char* dy
    char* result
    bint centered             # False: RMS norm
    bint streamed, staged
    double eps
    const char* gamma         # of x's dtype, n long, or NULL: layer and RMS norm
    const char* beta
    const double* channel_gamma  # group norm
    const double* channel_beta
    double* mean              # NULL for RMS norm
    double* invstd
    double* partial           # [block][dgamma, dbeta][column or channel]
    int parts

cdef double ones[TOGETHER]
cdef double zeros[TOGETHER]
for _number in range(TOGETHER):
    ones[<int> _number] = 1.0
    zeros[<int> _number] = 0.0


cdef inline bint through_blocks(const RowJob* job) noexcept nogil:
    return job.streamed or job.staged


cdef void apply_row(const RowJob* job, Py_ssize_t first, Py_ssize_t n, const char* k, Py_ssize_t width) noexcept nogil:
    """y of n values from element `first` on, with one set of coefficients: a row, or a channel of a group."""
    cdef fn_block block
    cdef Py_ssize_t done = 0, m, at
    cdef char* place
    while done < n:
        at = (first + done) * job.itemsize
        m = min(BLOCK_BYTES // job.itemsize, n - done) if through_blocks(job) else n
        place = block.bytes if through_blocks(job) else job.result + at
        if job.gamma != NULL:
            job.loops.row_apply(job.x + at, place, m, k, width, job.gamma + done * job.itemsize, job.beta + done * job.itemsize)
        else:
            job.loops.apply(job.x + at, place, m, k, width, FN_PLAIN, 0.0)
        if through_blocks(job):
            emit(job.level, job.streamed, job.result + at, block.bytes, m * job.itemsize)
        done += m


cdef void apply_group(const RowJob* job, Py_ssize_t row, double mean, double invstd) noexcept nogil:
    """y of one group, a chunk of channels at a time."""
    cdef fn_block block
    cdef double k[COEFFICIENTS * TOGETHER]
    cdef double means[TOGETHER]
    cdef double invstds[TOGETHER]
    cdef Py_ssize_t c, i, n, at, first = row % job.groups * job.channels
    for i in range(min(<Py_ssize_t> TOGETHER, job.channels)):
        means[i] = mean
        invstds[i] = invstd
    c = 0
    while c < job.channels:
        n = min(<Py_ssize_t> TOGETHER, job.channels - c)
        job.loops.coefficients(means, invstds, job.channel_gamma + first + c, job.channel_beta + first + c, n, k, TOGETHER)
        at = row * job.n + c * job.inner
        if job.inner == 1:
            job.loops.column_apply(job.x + at * job.itemsize, block.bytes, 1, n, n, n, k, TOGETHER, FN_PLAIN, 0.0)
            memcpy(job.result + at * job.itemsize, block.bytes, n * job.itemsize)
        else:
            for i in range(n):
                apply_row(job, at + i * job.inner, job.inner, <const char*> k + i * job.itemsize, TOGETHER)
        c += n


cdef inline Py_ssize_t chunk_rows(const RowJob* job) noexcept nogil:
    return max(4, min(<Py_ssize_t> TOGETHER, TOGETHER_VALUES // job.n) & -4)


cdef void forward_rows(const RowJob* job, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef double sums[TOGETHER]
    cdef double squares[TOGETHER]
    cdef double shift[TOGETHER]
    cdef double mean[TOGETHER]
    cdef double var[TOGETHER]
    cdef double k[COEFFICIENTS * TOGETHER]
    cdef Py_ssize_t i, rows
    while begin < end:
        rows = min(chunk_rows(job), end - begin)
        job.loops.row_sums(job.x + begin * job.n * job.itemsize, rows, job.n, job.centered, shift, sums, squares)
        if not job.centered:
            memset(sums, 0, sizeof(sums))
        job.level.norm_finish(sums, squares, shift, <double> job.n, job.eps, rows, mean, var, job.invstd + begin)
        if job.mean != NULL:
            memcpy(job.mean + begin, mean, rows * sizeof(double))
        if job.groups:
            for i in range(rows):
                apply_group(job, begin + i, mean[i], job.invstd[begin + i])
        else:
            job.loops.coefficients(mean, job.invstd + begin, ones, zeros, rows, k, TOGETHER)
            for i in range(rows):
                apply_row(job, (begin + i) * job.n, job.n, <const char*> k + i * job.itemsize, TOGETHER)
        begin += rows


cdef inline void row_form(const RowJob* job, double sum, double product, double r, double* linear) noexcept nogil:
    """dx = linear[0] * g + linear[1] * (x - mean) + linear[2], from the row's sums of g and g * (x - mean).

    dx = invstd * (g - mean(g) - (x - mean) * invstd**2 * mean(g * (x - mean))); without mean(g) in RMS norm.
    """
    cdef double n = <double> job.n
    if job.n == 1 and job.centered:
        r = 0.0
    linear[0] = r
    linear[1] = -(r * (product * r / n)) * r
    linear[2] = -r * (sum / n) if job.centered else 0.0


cdef bint fast_row(const RowJob* job, double sum, double product, double energy, double mean, double r, double scale,
                   double centre, float* linear) noexcept nogil:
    """dx = linear[0] * g + linear[1] * u + linear[2], unless its terms cancel: see terms_cancel of batch norm."""
    cdef double exact[3]
    cdef double n = <double> job.n, rest = mean * scale - centre, along
    product = (product - rest * sum) / scale
    along = product * r
    if not (energy > 1e-30 * n and energy < 1e30 and r > 1e-30 and r < 1e30
            and energy - (sum * sum + 2.0 * along * along) / n > energy / 64.0):
        return False
    row_form(job, sum, product, r, exact)
    exact[1] = exact[1] / scale
    linear[0] = <float> exact[0]
    linear[1] = <float> exact[1]
    linear[2] = <float> (exact[2] - exact[1] * rest)
    return True


cdef bint centre_suffices(const RowJob* job, Py_ssize_t row, double mean, double scale, double centre) noexcept nogil:
    """Whether a float is as good as the row's mean beside its spread, of which a few values give an idea."""
    cdef const float* x = <const float*> job.x + row * job.n
    cdef double missed = mean * scale - centre, off, spread = 0.0
    cdef Py_ssize_t i
    for i in range(8):
        off = x[i] * scale - centre
        off = -off if off < 0.0 else off
        spread = off if off > spread else spread
    missed = -missed if missed < 0.0 else missed
    return missed < 2e-6 * spread


cdef void backward_rows(const RowJob* job, Py_ssize_t begin, Py_ssize_t end, double* dgamma, double* dbeta) noexcept nogil:
    cdef fn_block block
    cdef double lanes[3 * NORM_LANES]
    cdef double k[COEFFICIENTS * TOGETHER]
    cdef const float* scale = <const float*> k
    cdef const float* centre = scale + 5 * TOGETHER
    cdef float factor[TOGETHER]
    cdef float short_linear[3]
    cdef double sums[TOGETHER]
    cdef double products[TOGETHER]
    cdef double linear[3]
    cdef const double* mean
    cdef char* place
    cdef Py_ssize_t i, rows, at, done, m
    cdef bint fast = job.itemsize == 4 and job.n >= NORM_LANES, now = False, near
    while begin < end:
        rows = min(chunk_rows(job), end - begin)
        at = begin * job.n * job.itemsize
        mean = job.mean + begin if job.centered else zeros
        if fast:
            job.loops.coefficients(mean, job.invstd + begin, ones, zeros, rows, k, TOGETHER)
            near = True
            for i in range(rows):
                factor[i] = <float> (job.invstd[begin + i] / scale[i])
                near = near and centre_suffices(job, begin + i, mean[i], scale[i], centre[i])
        else:
            near = False
            job.loops.row_back_sums(job.dy + at, job.x + at, rows, job.n, job.gamma, mean, sums, products)
        if near:
            job.loops.row_gradients_fast(job.dy + at, job.x + at, rows, job.n, scale, centre, factor, dgamma, dbeta)
        else:
            job.loops.row_gradients(job.dy + at, job.x + at, rows, job.n, mean, job.invstd + begin, dgamma, dbeta)
        for i in range(rows):
            if fast:
                at = (begin + i) * job.n * job.itemsize
                memset(lanes, 0, sizeof(lanes))
                job.loops.row_back_sums_fast(job.dy + at, job.x + at, job.n, job.gamma, scale[i], centre[i], lanes)
                job.level.norm_fold(lanes, 3)
                now = fast_row(job, lanes[0] if job.centered else 0.0, lanes[NORM_LANES], lanes[2 * NORM_LANES], mean[i],
                               job.invstd[begin + i], scale[i], centre[i], short_linear)
                if not now:
                    job.loops.row_back_sums(job.dy + at, job.x + at, 1, job.n, job.gamma, mean + i, sums + i, products + i)
            if not now:
                row_form(job, sums[i], products[i], job.invstd[begin + i], linear)
            done = 0
            while done < job.n:
                at = ((begin + i) * job.n + done) * job.itemsize
                m = min(BLOCK_BYTES // job.itemsize, job.n - done) if through_blocks(job) else job.n
                place = block.bytes if through_blocks(job) else job.result + at
                if now:
                    job.loops.row_back_apply_fast(job.dy + at, job.x + at, job.gamma + done * job.itemsize, place, m, short_linear,
                                                  scale[i], centre[i])
                else:
                    job.loops.row_back_apply(job.dy + at, job.x + at, job.gamma + done * job.itemsize, place, m, mean[i],
                                             linear[0], linear[1], linear[2])
                if through_blocks(job):
                    emit(job.level, job.streamed, job.result + at, block.bytes, m * job.itemsize)
                done += m
        begin += rows


cdef void backward_channel(const RowJob* job, Py_ssize_t at, double mean, double a, double b, double c) noexcept nogil:
    """dx of one channel of a group, from byte `at` on."""
    cdef fn_block block
    cdef double k[COEFFICIENTS]
    cdef Py_ssize_t done = 0, m
    cdef char* place
    memset(k, 0, sizeof(k))
    while done < job.inner:
        m = min(BLOCK_BYTES // job.itemsize, job.inner - done) if through_blocks(job) else job.inner
        place = block.bytes if through_blocks(job) else job.result + at
        job.loops.back_apply(job.dy + at, job.x + at, place, m, mean, a, b, c, k, 1, FN_PLAIN, 0.0)
        if through_blocks(job):
            emit(job.level, job.streamed, job.result + at, block.bytes, m * job.itemsize)
        done += m
        at += m * job.itemsize


cdef bint backward_group_fast(const RowJob* job, Py_ssize_t row, double* dgamma, double* dbeta) noexcept nogil:
    """One group in float arithmetic, unless the terms of dx cancel; then nothing is changed."""
    cdef fn_block block
    cdef double lanes[3 * NORM_LANES]
    cdef double wide[COEFFICIENTS]
    cdef const float* k = <const float*> wide
    cdef float linear[3]
    cdef float own[3]
    cdef double mean = job.mean[row], r = job.invstd[row], sum = 0.0, product = 0.0, energy = 0.0
    cdef const double* gamma = job.channel_gamma + row % job.groups * job.channels
    cdef double found[2 * TOGETHER]
    cdef Py_ssize_t c, at, done, m
    job.loops.coefficients(&mean, &r, ones, zeros, 1, wide, 1)
    for c in range(job.channels):
        at = (row * job.n + c * job.inner) * sizeof(float)
        memset(lanes, 0, sizeof(lanes))
        job.loops.back_sums_fast(job.dy + at, job.x + at, 1, job.inner, job.inner, k, FN_PLAIN, 0.0, lanes)
        job.level.norm_fold(lanes, 3)
        found[c] = lanes[0]
        found[TOGETHER + c] = lanes[NORM_LANES]
        sum += gamma[c] * lanes[0]
        product += gamma[c] * lanes[NORM_LANES]
        energy += gamma[c] * gamma[c] * lanes[2 * NORM_LANES]
    if not fast_row(job, sum, product, energy, mean, r, k[0], k[5], linear):
        return False
    own[1] = linear[1]
    own[2] = linear[2]
    for c in range(job.channels):
        dbeta[c] += found[c]
        dgamma[c] += (found[TOGETHER + c] - (mean * k[0] - k[5]) * found[c]) / k[0] * r
        own[0] = <float> (r * gamma[c])
        at = (row * job.n + c * job.inner) * sizeof(float)
        if job.streamed and not job.staged:
            job.loops.back_stream_fast(job.dy + at, job.x + at, job.result + at, job.inner, own, k, FN_PLAIN, 0.0)
            continue
        done = 0
        while done < job.inner:
            m = min(<Py_ssize_t> BLOCK_BYTES // 4, job.inner - done) if job.staged else job.inner
            job.loops.back_apply_fast(job.dy + at, job.x + at, block.bytes if job.staged else job.result + at, m, own, k, FN_PLAIN,
                                      0.0)
            if job.staged:
                emit(job.level, job.streamed, job.result + at, block.bytes, m * 4)
            done += m
            at += m * 4
    return True


cdef void backward_group(const RowJob* job, Py_ssize_t row, double* dgamma, double* dbeta) noexcept nogil:
    cdef double lanes[2 * NORM_LANES]
    cdef double k[COEFFICIENTS]
    cdef double linear[3]
    cdef double mean = job.mean[row], r = job.invstd[row], sum = 0.0, product = 0.0
    cdef const double* gamma = job.channel_gamma + row % job.groups * job.channels
    cdef Py_ssize_t c, at
    if job.itemsize == 4 and job.inner >= NORM_LANES and job.channels <= TOGETHER:
        if backward_group_fast(job, row, dgamma, dbeta):
            return
    memset(k, 0, sizeof(k))
    for c in range(job.channels):
        at = (row * job.n + c * job.inner) * job.itemsize
        memset(lanes, 0, sizeof(lanes))
        job.loops.back_sums(job.dy + at, job.x + at, 1, job.inner, job.inner, mean, k, 1, FN_PLAIN, 0.0, lanes)
        job.level.norm_fold(lanes, 2)
        dbeta[c] += lanes[0]
        dgamma[c] += lanes[NORM_LANES] * r
        sum += gamma[c] * lanes[0]
        product += gamma[c] * lanes[NORM_LANES]
    row_form(job, sum, product, r, linear)
    for c in range(job.channels):
        backward_channel(job, (row * job.n + c * job.inner) * job.itemsize, mean, linear[0] * gamma[c], linear[1], linear[2])


cdef void row_part(void* context, int part) noexcept nogil:
    cdef const RowJob* job = <const RowJob*> context
    cdef Py_ssize_t width = job.groups * job.channels if job.groups else job.n
    cdef Py_ssize_t number, sample, group, units = job.blocks * max(job.groups, <Py_ssize_t> 1)
    cdef double* partial
    if job.dy == NULL:
        forward_rows(job, job.rows * part // job.parts, job.rows * (part + 1) // job.parts)
    elif job.groups == 0:
        for number in range(units * part // job.parts, units * (part + 1) // job.parts):
            partial = job.partial + number * 2 * width
            memset(partial, 0, 2 * width * sizeof(double))
            backward_rows(job, number * job.block, min(job.rows, (number + 1) * job.block), partial, partial + width)
    else:
        for number in range(units * part // job.parts, units * (part + 1) // job.parts):
            group = number % job.groups
            partial = job.partial + number // job.groups * 2 * width + group * job.channels
            memset(partial, 0, job.channels * sizeof(double))
            memset(partial + width, 0, job.channels * sizeof(double))
            for sample in range(number // job.groups * job.block,
                                min(job.rows // job.groups, (number // job.groups + 1) * job.block)):
                backward_group(job, sample * job.groups + group, partial, partial + width)
    if job.streamed:
        fn_stream_fence()


cdef void run_row_job(RowJob* job) noexcept nogil:
    cdef double nanoseconds = NORM_NANOSECONDS * <double> job.rows * <double> job.n
    cdef Py_ssize_t width = job.groups * job.channels if job.groups else job.n, i, number
    job.parts = parts_for(nanoseconds, job.rows if job.dy == NULL else job.blocks * max(job.groups, <Py_ssize_t> 1))
    fn_parallel(row_part, job, job.parts)
    if job.dy != NULL:
        for number in range(1, job.blocks):
            for i in range(2 * width):
                job.partial[i] += job.partial[number * 2 * width + i]


# The boundary: as in batch normalization, None says that the arguments need preparation.

cdef bint set_rows(RowJob* job, object x, object axis, object dy, object out) noexcept:
    """Rows of the axes from `axis` on."""
    cdef int number, i, ndim
    if not is_plain(x) or type(axis) is not int:
        return False
    ndim = cnp.PyArray_NDIM(<ndarray> x)
    if not -ndim <= <object> axis < ndim:
        return False
    number = axis
    if number < 0:
        number += ndim
    job.rows = job.n = 1
    for i in range(ndim):
        if i < number:
            job.rows *= cnp.PyArray_DIM(<ndarray> x, i)
        else:
            job.n *= cnp.PyArray_DIM(<ndarray> x, i)
    job.groups = 0
    job.block = ((job.rows + ROW_BLOCKS - 1) // ROW_BLOCKS + 15) & -16
    return set_operands(job, <ndarray> x, dy, out)


cdef bint set_groups(RowJob* job, object x, object groups, object axis, object dy, object out) noexcept:
    """Rows of the groups of axis 1; 0 groups: as many as channels."""
    cdef int i, ndim
    cdef Py_ssize_t channels
    if not is_plain(x) or type(axis) is not int or axis != 1:
        return False
    ndim = cnp.PyArray_NDIM(<ndarray> x)
    if ndim < 2:
        return False
    channels = cnp.PyArray_DIM(<ndarray> x, 1)
    if channels == 0 or not 0 <= groups <= channels:
        return False
    job.groups = groups if groups else channels
    if channels % job.groups:
        return False
    job.channels = channels // job.groups
    job.inner = 1
    for i in range(2, ndim):
        job.inner *= cnp.PyArray_DIM(<ndarray> x, i)
    job.rows = cnp.PyArray_DIM(<ndarray> x, 0) * job.groups
    job.n = job.channels * job.inner
    job.block = (cnp.PyArray_DIM(<ndarray> x, 0) + ROW_BLOCKS - 1) // ROW_BLOCKS
    return set_operands(job, <ndarray> x, dy, out)


cdef bint set_operands(RowJob* job, ndarray x, object dy, object out) noexcept:
    if job.rows == 0 or job.n == 0:
        return False
    job.staged = False
    if not usable_result(x, out, &job.staged):
        return False
    job.dy = NULL
    if dy is not None:
        if not is_plain(dy) or not same_form(<ndarray> dy, x) or not usable_result(<ndarray> dy, out, &job.staged):
            return False
        job.dy = cnp.PyArray_BYTES(<ndarray> dy)
    job.itemsize = 4 if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT else 8
    job.level = current_level()
    job.loops = &job.level.norm[<int> FN_SINGLE if job.itemsize == 4 else <int> FN_DOUBLE]
    job.x = cnp.PyArray_BYTES(x)
    job.blocks = ((job.rows // job.groups if job.groups else job.rows) + job.block - 1) // job.block
    job.centered = True
    job.gamma = job.beta = NULL
    return True


cdef void run_rows_without_gil(RowJob* job) noexcept:
    if NORM_NANOSECONDS * <double> job.rows * <double> job.n < RELEASE_GIL:
        run_row_job(job)
    else:
        with nogil:
            run_row_job(job)


cdef ndarray column_vector(object vector, ndarray x, int axis, double missing):
    """gamma or beta of x's dtype and of the shape of its axes from `axis` on; None where it needs preparation."""
    cdef int ndim = cnp.PyArray_NDIM(x) - axis
    cdef ndarray filled
    if vector is None:
        filled = cnp.PyArray_EMPTY(ndim, cnp.PyArray_DIMS(x) + axis, cnp.PyArray_TYPE(x), 0)
        cnp.PyArray_FILLWBYTE(filled, 0)
        if missing != 0.0:
            filled += missing
        return filled
    if (not is_plain(vector) or cnp.PyArray_TYPE(<ndarray> vector) != cnp.PyArray_TYPE(x)
            or cnp.PyArray_NDIM(<ndarray> vector) != ndim
            or not cnp.PyArray_CompareLists(cnp.PyArray_DIMS(<ndarray> vector), cnp.PyArray_DIMS(x) + axis, ndim)):
        return None
    return <ndarray> vector


cdef inline int from_front(object axis, ndarray x) noexcept:
    return axis if axis >= 0 else axis + cnp.PyArray_NDIM(x)


cdef double* row_statistics(object vector, ndarray x, int axis) noexcept:
    """The data of a plain float64 array of the shape of x's axes before `axis`, or NULL."""
    if (not is_plain(vector) or cnp.PyArray_TYPE(<ndarray> vector) != cnp.NPY_DOUBLE
            or cnp.PyArray_NDIM(<ndarray> vector) != axis
            or not cnp.PyArray_CompareLists(cnp.PyArray_DIMS(<ndarray> vector), cnp.PyArray_DIMS(x), axis)):
        return NULL
    return <double*> cnp.PyArray_DATA(<ndarray> vector)


cdef ndarray row_result(RowJob* job, ndarray x, object out):
    cdef ndarray y = out if out is not None else cnp.PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x), 0)
    job.result = cnp.PyArray_BYTES(y)
    job.streamed = cnp.PyArray_NBYTES(x) >= NORM_STREAM_BYTES
    return y


cdef tuple forward_layer(object x, object gamma, object beta, object eps, object axis, object out, bint centered):
    cdef RowJob job
    cdef ndarray weights, offsets, y, mean, invstd
    cdef int first
    if not set_rows(&job, x, axis, None, out) or not set_eps(&job.eps, eps):
        return None
    first = from_front(axis, <ndarray> x)
    if gamma is not None or beta is not None:
        weights = column_vector(gamma, <ndarray> x, first, 1.0)
        offsets = column_vector(beta, <ndarray> x, first, 0.0)
        if weights is None or offsets is None:
            return None
        job.gamma = cnp.PyArray_BYTES(weights)
        job.beta = cnp.PyArray_BYTES(offsets)
    job.centered = centered
    y = row_result(&job, <ndarray> x, out)
    invstd = cnp.PyArray_EMPTY(first, cnp.PyArray_DIMS(<ndarray> x), cnp.NPY_DOUBLE, 0)
    job.invstd = <double*> cnp.PyArray_DATA(invstd)
    job.mean = NULL
    if not centered:
        run_rows_without_gil(&job)
        return y, invstd
    mean = cnp.PyArray_EMPTY(first, cnp.PyArray_DIMS(<ndarray> x), cnp.NPY_DOUBLE, 0)
    job.mean = <double*> cnp.PyArray_DATA(mean)
    run_rows_without_gil(&job)
    return y, mean, invstd


cdef tuple backward_layer(object dy, object x, object mean, object invstd, object gamma, object axis, object out, bint centered):
    cdef RowJob job
    cdef double few[SCRATCH]
    cdef ndarray weights, dx, dgamma, dbeta
    cdef int first, dtype
    if dy is None or not set_rows(&job, x, axis, dy, out):
        return None
    first = from_front(axis, <ndarray> x)
    weights = column_vector(gamma, <ndarray> x, first, 1.0)
    job.invstd = row_statistics(invstd, <ndarray> x, first)
    job.mean = row_statistics(mean, <ndarray> x, first) if centered else NULL
    if weights is None or job.invstd == NULL or (centered and job.mean == NULL):
        return None
    job.gamma = cnp.PyArray_BYTES(weights)
    job.centered = centered
    job.partial = scratch_for(2 * job.n * job.blocks, few)
    try:
        dx = row_result(&job, <ndarray> x, out)
        run_rows_without_gil(&job)
        dtype = cnp.PyArray_TYPE(<ndarray> x)
        dgamma = gradient_array(job.partial, cnp.PyArray_NDIM(weights), cnp.PyArray_DIMS(weights), dtype)
        if not centered:
            return dx, dgamma
        dbeta = gradient_array(job.partial + job.n, cnp.PyArray_NDIM(weights), cnp.PyArray_DIMS(weights), dtype)
        return dx, dgamma, dbeta
    finally:
        if job.partial != few:
            free(job.partial)


def layer_norm(x, gamma, beta, eps, axis, out):
    """(y, mean, invstd), or None."""
    return forward_layer(x, gamma, beta, eps, axis, out, True)


def layer_norm_backward(dy, x, mean, invstd, gamma, axis, out):
    """(dx, dgamma, dbeta), or None."""
    return backward_layer(dy, x, mean, invstd, gamma, axis, out, True)


def rms_norm(x, gamma, eps, axis, out):
    """(y, invrms), or None."""
    return forward_layer(x, gamma, None, eps, axis, out, False)


def rms_norm_backward(dy, x, invrms, gamma, axis, out):
    """(dx, dgamma), or None."""
    return backward_layer(dy, x, None, invrms, gamma, axis, out, False)


def group_norm(x, groups, gamma, beta, eps, axis, out):
    """(y, mean, invstd), or None."""
    return forward_group(x, groups, gamma, beta, eps, axis, out) if type(groups) is int and groups > 0 else None


def group_norm_backward(dy, x, mean, invstd, groups, gamma, axis, out):
    """(dx, dgamma, dbeta), or None."""
    return backward_group_norm(dy, x, mean, invstd, groups, gamma, axis, out) if type(groups) is int and groups > 0 else None


def instance_norm(x, gamma, beta, eps, axis, out):
    """(y, mean, invstd), or None."""
    return forward_group(x, 0, gamma, beta, eps, axis, out)


def instance_norm_backward(dy, x, mean, invstd, gamma, axis, out):
    """(dx, dgamma, dbeta), or None."""
    return backward_group_norm(dy, x, mean, invstd, 0, gamma, axis, out)


cdef tuple forward_group(object x, object groups, object gamma, object beta, object eps, object axis, object out):
    cdef RowJob job
    cdef double few[SCRATCH]
    cdef double* room
    cdef cnp.npy_intp shape[2]
    cdef ndarray y, mean, invstd
    cdef Py_ssize_t channels
    if not set_groups(&job, x, groups, axis, None, out) or not set_eps(&job.eps, eps):
        return None
    channels = job.groups * job.channels
    room = scratch_for(2 * channels, few)
    try:
        if not (read_vector(gamma, channels, 1.0, room) and read_vector(beta, channels, 0.0, room + channels)):
            return None
        job.channel_gamma = room
        job.channel_beta = room + channels
        y = row_result(&job, <ndarray> x, out)
        shape[0] = cnp.PyArray_DIM(<ndarray> x, 0)
        shape[1] = job.groups
        mean = cnp.PyArray_EMPTY(2, shape, cnp.NPY_DOUBLE, 0)
        invstd = cnp.PyArray_EMPTY(2, shape, cnp.NPY_DOUBLE, 0)
        job.mean = <double*> cnp.PyArray_DATA(mean)
        job.invstd = <double*> cnp.PyArray_DATA(invstd)
        run_rows_without_gil(&job)
        return y, mean, invstd
    finally:
        if room != few:
            free(room)


cdef tuple backward_group_norm(object dy, object x, object mean, object invstd, object groups, object gamma, object axis,
                               object out):
    cdef RowJob job
    cdef double few[SCRATCH]
    cdef double* room
    cdef cnp.npy_intp shape[2]
    cdef ndarray dx
    cdef cnp.npy_intp channels
    cdef int dtype
    if dy is None or not set_groups(&job, x, groups, axis, dy, out):
        return None
    channels = job.groups * job.channels
    shape[0] = cnp.PyArray_DIM(<ndarray> x, 0)
    shape[1] = job.groups
    for statistics in (mean, invstd):
        if (not is_plain(statistics) or cnp.PyArray_TYPE(<ndarray> statistics) != cnp.NPY_DOUBLE
                or cnp.PyArray_NDIM(<ndarray> statistics) != 2
                or not cnp.PyArray_CompareLists(cnp.PyArray_DIMS(<ndarray> statistics), shape, 2)):
            return None
    job.mean = <double*> cnp.PyArray_DATA(<ndarray> mean)
    job.invstd = <double*> cnp.PyArray_DATA(<ndarray> invstd)
    room = scratch_for((1 + 2 * job.blocks) * channels, few)
    try:
        if not read_vector(gamma, channels, 1.0, room):
            return None
        job.channel_gamma = room
        job.partial = room + channels
        dx = row_result(&job, <ndarray> x, out)
        run_rows_without_gil(&job)
        dtype = cnp.PyArray_TYPE(<ndarray> (x if gamma is None else gamma))
        return (dx, gradient_array(job.partial, 1, &channels, dtype),
                gradient_array(job.partial + channels, 1, &channels, dtype))
    finally:
        if room != few:
            free(room)
