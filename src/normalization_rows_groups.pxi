# The boundary of layer, RMS, group and instance normalization. As in batch normalization, None says that the arguments
# need preparation.

cdef bint set_operands(NormJob* job, object x, object dy, object out) noexcept:
    if not usable_result(<ndarray> x, out, &job.staged):
        return False
    if dy is not None:
        if not (is_plain(dy) and same_form(<ndarray> dy, <ndarray> x)
                and usable_result(<ndarray> dy, out, &job.staged)):
            return False
        job.dy = cnp.PyArray_BYTES(<ndarray> dy)
        job.given = True
    return True


cdef void fill_elements(char* place, Py_ssize_t n, double value, int itemsize) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if itemsize == 4:
            (<float*> place)[i] = <float> value
        else:
            (<double*> place)[i] = value


# Layer and RMS norm.

cdef int set_rows(NormJob* job, object x, object axis, object dy, object out) noexcept:
    """Rows of the axes from `axis` on: its number, or -1."""
    cdef int number, i, ndim
    cdef Py_ssize_t rows = 1, n = 1
    if not is_plain(x):
        return -1
    ndim = cnp.PyArray_NDIM(<ndarray> x)
    number = plain_axis(axis, ndim)
    if number < 0:
        return -1
    for i in range(ndim):
        if i < number:
            rows *= cnp.PyArray_DIM(<ndarray> x, i)
        else:
            n *= cnp.PyArray_DIM(<ndarray> x, i)
    if rows == 0 or n == 0:
        return -1
    begin_job(job, <ndarray> x)
    if not set_operands(job, x, dy, out):
        return -1
    plan_sets(job, rows, 1, 0, 1, n)
    return number


cdef ndarray column_vector(object vector, ndarray x, int axis, double missing, object out):
    """gamma or beta of x's dtype and of the shape of its axes from `axis` on; None where it needs preparation."""
    cdef int ndim = cnp.PyArray_NDIM(x) - axis
    cdef ndarray filled
    if vector is None:
        filled = cnp.PyArray_EMPTY(ndim, cnp.PyArray_DIMS(x) + axis, cnp.PyArray_TYPE(x), 0)
        fill_elements(cnp.PyArray_BYTES(filled), cnp.PyArray_SIZE(filled), missing, cnp.PyArray_ITEMSIZE(x))
        return filled
    return <ndarray> vector if is_vector(vector, cnp.PyArray_TYPE(x), ndim, cnp.PyArray_DIMS(x) + axis, out) else None


cdef tuple forward_layer(object x, object gamma, object beta, object eps, object axis, object out, bint centred):
    cdef NormJob job
    cdef double few[SCRATCH]
    cdef double* room
    cdef ndarray weights, offsets, y, mean = None, invstd
    cdef int first = set_rows(&job, x, axis, None, out)
    if first < 0 or not set_eps(&job.eps, eps):
        return None
    if gamma is not None or beta is not None:
        weights = column_vector(gamma, <ndarray> x, first, 1.0, out)
        offsets = column_vector(beta, <ndarray> x, first, 0.0, out)
        if weights is None or offsets is None:
            return None
        job.weights = cnp.PyArray_BYTES(weights)
        job.offsets = cnp.PyArray_BYTES(offsets)
    job.centred = centred
    room = scratch_for(scratch_of_sets(&job), few)
    try:
        y = result_array(&job, <ndarray> x, out)
        invstd = cnp.PyArray_EMPTY(first, cnp.PyArray_DIMS(<ndarray> x), cnp.NPY_DOUBLE, 0)
        job.invstd = <double*> cnp.PyArray_DATA(invstd)
        if centred:
            mean = cnp.PyArray_EMPTY(first, cnp.PyArray_DIMS(<ndarray> x), cnp.NPY_DOUBLE, 0)
            job.mean = <double*> cnp.PyArray_DATA(mean)
        lay_out_sets(&job, room)
        run_released(&job)
        return (y, mean, invstd) if centred else (y, invstd)
    finally:
        if room != few:
            free(room)


cdef tuple backward_layer(object dy, object x, object mean, object invstd, object gamma, object axis, object out,
                          bint centred):
    cdef NormJob job
    cdef double few[SCRATCH]
    cdef double* room
    cdef ndarray weights, dx, dgamma
    cdef int first, dtype
    if dy is None:
        return None
    first = set_rows(&job, x, axis, dy, out)
    if first < 0:
        return None
    weights = column_vector(gamma, <ndarray> x, first, 1.0, out)
    job.invstd = statistics_like(invstd, first, cnp.PyArray_DIMS(<ndarray> x), out)
    job.mean = statistics_like(mean, first, cnp.PyArray_DIMS(<ndarray> x), out) if centred else NULL
    if weights is None or job.invstd == NULL or (centred and job.mean == NULL):
        return None
    job.weights = cnp.PyArray_BYTES(weights)
    job.centred = centred
    room = scratch_for(scratch_of_sets(&job), few)
    try:
        dx = result_array(&job, <ndarray> x, out)
        lay_out_sets(&job, room)
        run_released(&job)
        dtype = cnp.PyArray_TYPE(<ndarray> x)
        dgamma = gradient_array(job.dgamma, cnp.PyArray_NDIM(weights), cnp.PyArray_DIMS(weights), dtype)
        if not centred:
            return dx, dgamma
        return dx, dgamma, gradient_array(job.dbeta, cnp.PyArray_NDIM(weights), cnp.PyArray_DIMS(weights), dtype)
    finally:
        if room != few:
            free(room)


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


# Group and instance norm.

cdef inline bint takes_runs(const NormJob* job, Py_ssize_t groups, Py_ssize_t channels, Py_ssize_t inner) noexcept:
    """Whether the runs of a channel, with one gamma, are taken one by one; else every element has its own."""
    if job.dy == NULL or groups == 1:
        return inner >= RUN
    return inner >= SHORT_RUNS or (inner >= SHORTEST_RUNS and (job.itemsize == 8 or channels * inner <= SHORT_SET))


cdef bint set_groups(NormJob* job, object x, object groups, object axis, object dy, object out) noexcept:
    """The groups of axis 1; 0 groups: as many as channels. Where the runs of a channel are short, gamma and beta are
    spread."""
    cdef int i, ndim
    cdef Py_ssize_t channels, number, samples, inner = 1
    if not is_plain(x) or type(axis) is not int or axis != 1:
        return False
    ndim = cnp.PyArray_NDIM(<ndarray> x)
    if ndim < 2:
        return False
    samples = cnp.PyArray_DIM(<ndarray> x, 0)
    channels = cnp.PyArray_DIM(<ndarray> x, 1)
    if channels == 0 or not 0 <= groups <= channels:
        return False
    number = groups if groups else channels
    for i in range(2, ndim):
        inner *= cnp.PyArray_DIM(<ndarray> x, i)
    if channels % number or samples == 0 or inner == 0:
        return False
    begin_job(job, <ndarray> x)
    if not set_operands(job, x, dy, out):
        return False
    if takes_runs(job, number, channels // number, inner):
        plan_sets(job, samples * number, number, channels // number, 1, inner)
    else:
        plan_sets(job, samples * number, number, 0, 1, channels // number * inner)
    job.inner = inner
    return True


cdef inline Py_ssize_t channels_of(const NormJob* job) noexcept nogil:
    return job.groups * job.shape.n // job.inner


cdef inline Py_ssize_t spread_size(const NormJob* job) noexcept nogil:
    """Doubles of room for gamma and beta of every element of a sample, where they are spread."""
    return 2 * job.groups * job.shape.n if job.channels == 0 else 0


cdef char* spread_vector(const NormJob* job, const double* vector, double* place) noexcept nogil:
    cdef Py_ssize_t c, channels = channels_of(job)
    for c in range(channels):
        fill_elements(<char*> place + c * job.inner * job.itemsize, job.inner, vector[c], job.itemsize)
    return <char*> place


cdef tuple forward_group(object x, object groups, object gamma, object beta, object eps, object axis, object out):
    cdef NormJob job
    cdef double few[SCRATCH]
    cdef double* room
    cdef cnp.npy_intp shape[2]
    cdef ndarray y, mean, invstd
    cdef Py_ssize_t channels
    if not set_groups(&job, x, groups, axis, None, out) or not set_eps(&job.eps, eps):
        return None
    channels = channels_of(&job)
    room = scratch_for(2 * channels + spread_size(&job) + scratch_of_sets(&job), few)
    try:
        if not (read_vector(gamma, channels, 1.0, room) and read_vector(beta, channels, 0.0, room + channels)):
            return None
        job.gamma = room
        job.beta = room + channels
        if job.channels == 0:
            job.weights = spread_vector(&job, job.gamma, room + 2 * channels)
            job.offsets = spread_vector(&job, job.beta, room + 2 * channels + job.groups * job.shape.n)
        y = result_array(&job, <ndarray> x, out)
        shape[0] = cnp.PyArray_DIM(<ndarray> x, 0)
        shape[1] = job.groups
        mean = cnp.PyArray_EMPTY(2, shape, cnp.NPY_DOUBLE, 0)
        invstd = cnp.PyArray_EMPTY(2, shape, cnp.NPY_DOUBLE, 0)
        job.mean = <double*> cnp.PyArray_DATA(mean)
        job.invstd = <double*> cnp.PyArray_DATA(invstd)
        lay_out_sets(&job, room + 2 * channels + spread_size(&job))
        run_released(&job)
        return y, mean, invstd
    finally:
        if room != few:
            free(room)


cdef tuple backward_group(object dy, object x, object mean, object invstd, object groups, object gamma, object axis,
                          object out):
    cdef NormJob job
    cdef double few[SCRATCH]
    cdef double* room
    cdef cnp.npy_intp shape[2]
    cdef ndarray dx
    cdef cnp.npy_intp channels
    cdef int dtype
    if dy is None or not set_groups(&job, x, groups, axis, dy, out):
        return None
    shape[0] = cnp.PyArray_DIM(<ndarray> x, 0)
    shape[1] = job.groups
    job.mean = statistics_like(mean, 2, shape, out)
    job.invstd = statistics_like(invstd, 2, shape, out)
    if job.mean == NULL or job.invstd == NULL:
        return None
    channels = channels_of(&job)
    room = scratch_for(2 * channels + spread_size(&job) + scratch_of_sets(&job), few)
    try:
        if not read_vector(gamma, channels, 1.0, room):
            return None
        job.gamma = job.beta = room
        if job.channels == 0:
            job.weights = spread_vector(&job, job.gamma, room + 2 * channels)
        dx = result_array(&job, <ndarray> x, out)
        lay_out_sets(&job, room + 2 * channels + spread_size(&job))
        run_released(&job)
        if job.channels == 0:
            sum_columns(room, job.dgamma, channels, job.inner, 1)
            sum_columns(room + channels, job.dbeta, channels, job.inner, 1)
            job.dgamma = room
            job.dbeta = room + channels
        dtype = cnp.PyArray_TYPE(<ndarray> (x if gamma is None else gamma))
        return dx, gradient_array(job.dgamma, 1, &channels, dtype), gradient_array(job.dbeta, 1, &channels, dtype)
    finally:
        if room != few:
            free(room)


def group_norm(x, groups, gamma, beta, eps, axis, out):
    """(y, mean, invstd), or None."""
    return forward_group(x, groups, gamma, beta, eps, axis, out) if type(groups) is int and groups > 0 else None


def group_norm_backward(dy, x, mean, invstd, groups, gamma, axis, out):
    """(dx, dgamma, dbeta), or None."""
    return backward_group(dy, x, mean, invstd, groups, gamma, axis, out) if type(groups) is int and groups > 0 else None


def instance_norm(x, gamma, beta, eps, axis, out):
    """(y, mean, invstd), or None."""
    return forward_group(x, 0, gamma, beta, eps, axis, out)


def instance_norm_backward(dy, x, mean, invstd, gamma, axis, out):
    """(dx, dgamma, dbeta), or None."""
    return backward_group(dy, x, mean, invstd, 0, gamma, axis, out)
