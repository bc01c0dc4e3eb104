# Normalizations: the job that all of them are, and the boundary of batch normalization.
#
# normalization_sets.pxi runs jobs whose data comes in sets, each with statistics of its own and made of long runs of
# consecutive elements: batch norm of (N, C, H, W), layer, RMS, group and instance norm. normalization_columns.pxi runs
# batch norm where the runs of a channel are short: (N, D), channels-last, small images. normalization_exact.pxi redoes
# in double what float arithmetic cannot do well enough. normalization_rows_groups.pxi is the boundary of the others.
#
# Work is cut into units that depend on the shape alone, and sums of blocks are added in the blocks' order, so the
# result has the same bits with any number of threads.

from fastnn._table import ACTIVATIONS

cdef enum:
    COEFFICIENTS = 6      # scale, shift, high, low, bias, centre
    RUN = 32              # the lanes of sums: inner length from which on batch norm's channels are sets
    SHORT_RUNS = 12       # the same of group and instance norm backward, of more than one group ...
    SHORTEST_RUNS = 8     # ... and of doubles, and of floats in sets of no more than
    SHORT_SET = 128       # ... so many values
    GIVEN_RUN = 24        # see takes_given_runs
    SHORT_GIVEN_RUN = 16
    SHORTEST_GIVEN_RUN = 4
    FEW_OF_LONG = 64      # rows of runs from GIVEN_RUN on: see has_few_rows ...
    FEW_FLOATS = 8        # ... from SHORT_GIVEN_RUN on, and a quarter of them below ...
    FEW_DOUBLES = 32      # ... of doubles
    NORM_STREAM_BYTES = 8 << 20  # results larger than this bypass the caches: else every write pays with a read
    SCRATCH = 2048        # doubles of scratch that live on the stack

cdef double NORM_COST = 2.5  # of an element, in either direction, in units of a row's cost
cdef double SET_COST = 80.0  # of a set, besides its elements
cdef double ADD_COST = 2.0   # of a gradient of gamma or beta that is added to others

cdef struct NormJob:
    const fn_level* level
    const fn_norm* loops
    int itemsize
    const char* x
    const char* dy       # NULL in the forward direction
    char* result         # y or dx; NULL where statistics alone are asked for
    bint given           # mean and invstd are given
    bint centred         # False: RMS norm
    bint streamed
    bint staged          # the result may not be written before its block has been read
    int kind             # activation inside the loops
    int row              # the activation's row in the table, or -1
    double slope
    double eps
    double count         # values of a set, or channel
    double nanoseconds   # that the job takes, about
    const double* gamma  # of every channel
    const double* beta
    bint moderate        # no gamma is extreme: asked for where sets have one run a channel
    double* mean         # of every set, or channel; NULL for RMS norm
    double* var
    double* invstd
    double* dgamma
    double* dbeta
    double* partial      # sums or gradients of every block
    double* room         # of every part: room_size doubles
    Py_ssize_t room_size
    int parts
    bint out_of_memory   # in some part
    # sets: set s begins at element s * shape.apart
    bint by_set
    fn_sets shape
    Py_ssize_t sets, groups  # in all, and in a sample: set s has channels s % groups * channels and the next ones
    Py_ssize_t channels  # of a set; 0 where gamma and beta belong to the elements of a set
    Py_ssize_t inner     # consecutive elements of a channel
    Py_ssize_t slices    # parts of a sample's sets that are units of work
    Py_ssize_t most      # sets that are taken together
    const char* weights  # gamma and beta of the elements of a set, in x's dtype, or NULL
    const char* offsets
    # columns: see normalization_columns.pxi
    Py_ssize_t outer, repeat, tile, tiles
    double* shift
    char* table          # coefficients of every channel
    char* linear         # and linear forms of dx
    int64_t* doubtful
    bint applying, redoing
    # both
    Py_ssize_t block, blocks

cdef double row_defaults[FN_ROWS][FN_MOST_PARAMS]
cdef bint row_saves_output[FN_ROWS]
cdef dict fused_rows = {}

for _number, _row in enumerate(ACTIVATIONS):
    for _index, _param in enumerate(_row.params):
        row_defaults[<int> _number][<int> _index] = _param.default
    row_saves_output[<int> _number] = _row.saved == "y"
    if not _row.public:
        fused_rows[_row.name] = _number


# Blocks.

cdef inline int dtype_of(const NormJob* job) noexcept nogil:
    """Of the arrays, as an index of the loops."""
    return FN_SINGLE if job.itemsize == 4 else FN_DOUBLE


cdef inline bint in_loops(const NormJob* job) noexcept nogil:
    """Whether the loops know the activation."""
    return job.row < 0 or job.kind != FN_PLAIN


cdef inline void activate_block(const NormJob* job, char* z, Py_ssize_t n) noexcept nogil:
    """z = activation(z) for an activation that is not inside the loops."""
    cdef fn_block copy
    n = padded(n)
    memcpy(copy.bytes, z, n * job.itemsize)
    job.level.map[job.row][<int> FN_FORWARD][dtype_of(job)](copy.bytes, copy.bytes, z, n, row_defaults[job.row])


cdef inline void gradient_block(const NormJob* job, const char* dy, char* z, Py_ssize_t n) noexcept nogil:
    """z = dL/dz from dL/dy and z."""
    cdef fn_block saved, g
    if row_saves_output[job.row]:
        activate_block(job, z, n)
    memcpy(saved.bytes, z, padded(n) * job.itemsize)
    memcpy(g.bytes, dy, n * job.itemsize)
    memset(g.bytes + n * job.itemsize, 0, (padded(n) - n) * job.itemsize)
    job.level.map[job.row][<int> FN_BACKWARD][dtype_of(job)](g.bytes, saved.bytes, z, padded(n), row_defaults[job.row])


cdef inline double finite(double value) noexcept nogil:
    """A value as the shift of sums; 0 for one that is not finite, so that the mean is what the sum makes it."""
    return value if isfinite(value) else 0.0


cdef inline double shift_at(const NormJob* job, Py_ssize_t i) noexcept nogil:
    """The shift of the sums of the set, or channel, that begins at element i: a value; none in RMS norm and for float
    data."""
    return finite((<const double*> job.x)[i]) if job.itemsize == 8 and job.centred else 0.0


cdef inline double better_shift(const NormJob* job, double mean) noexcept nogil:
    """The shift for summing once more, from the mean that sums about another one gave: of float data a float, so that
    equal values have it exactly."""
    return finite(mean if job.itemsize == 8 else <double> <float> mean)


cdef void make_room(const NormJob* job, char* k, Py_ssize_t n, Py_ssize_t width) noexcept nogil:
    """Change coefficients so that no x of float data overflows when it is scaled: where statistics are given it may be far from
    them, and gamma small. All factors are powers of two."""
    cdef float* scale = <float*> k
    cdef float* shift = scale + width
    cdef float* high = scale + 2 * width
    cdef float* low = scale + 3 * width
    cdef float factor
    cdef Py_ssize_t i
    if job.itemsize == 8 or not job.given or job.dy != NULL:
        return
    for i in range(n):
        factor = 2.0 * scale[i]
        if factor > 1.0 and -2.0**100 < high[i] * factor < 2.0**100:
            scale[i] = 0.5
            shift[i] /= factor
            high[i] *= factor
            low[i] *= factor


include "normalization_exact.pxi"
include "normalization_sets.pxi"
include "normalization_sets_backward.pxi"
include "normalization_passes.pxi"
include "normalization_short.pxi"
include "normalization_columns.pxi"


cdef void run_norm(NormJob* job) noexcept nogil:
    if job.by_set:
        run_sets(job)
    else:
        run_columns(job)


cdef int run_released(NormJob* job) except -1:
    job.out_of_memory = False
    if job.nanoseconds < RELEASE_GIL:
        run_norm(job)
    else:
        with nogil:
            run_norm(job)
    if job.out_of_memory:
        raise MemoryError("no memory for the coefficients of the channels")
    return 0


# The boundary. These functions take what needs no preparation: C-contiguous native float32 or float64 arrays that do
# not partly overlap, and arguments of the plain types. For anything else, mistakes included, they return None, and
# fastnn.normalization checks, converts and calls again.

cdef void begin_job(NormJob* job, ndarray x) noexcept:
    memset(job, 0, sizeof(NormJob))
    job.x = cnp.PyArray_BYTES(x)
    job.itemsize = 4 if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT else 8
    job.level = current_level()
    job.nanoseconds = work(NORM_COST, cnp.PyArray_SIZE(x), job.itemsize)
    job.loops = &job.level.norm[dtype_of(job)]
    job.streamed = cnp.PyArray_NBYTES(x) > NORM_STREAM_BYTES
    job.centred = True
    job.kind = FN_PLAIN
    job.row = -1


cdef inline bint has_few_rows(const NormJob* job, Py_ssize_t outer, Py_ssize_t inner) noexcept nogil:
    """Whether giving every column its coefficients takes longer than to take its short runs one by one, with one set for each."""
    cdef Py_ssize_t few = FEW_FLOATS if job.itemsize == 4 else FEW_DOUBLES
    if inner >= GIVEN_RUN:
        few = FEW_OF_LONG
    elif inner < SHORT_GIVEN_RUN:
        few //= 4
    return inner >= SHORTEST_GIVEN_RUN and outer <= few


cdef inline bint takes_given_runs(const NormJob* job, Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner) noexcept:
    """Whether shorter runs, too, are taken one by one where statistics are given: in few rows, and beside more columns than fit the
    nearest cache with their five coefficients, sooner past the caches."""
    return (has_few_rows(job, outer, inner)
            or (channels * inner > FN_COLUMNS and inner >= (SHORT_GIVEN_RUN if job.streamed else GIVEN_RUN)))


cdef bint set_array(NormJob* job, object x, object axis, bint given=False) noexcept:
    cdef int number, i, ndim
    cdef Py_ssize_t* dims
    cdef Py_ssize_t outer = 1, inner = 1, channels
    if not is_plain(x):
        return False
    ndim = cnp.PyArray_NDIM(<ndarray> x)
    number = plain_axis(axis, ndim)
    if number < 0 or ndim < 2:
        return False
    dims = <Py_ssize_t*> cnp.PyArray_DIMS(<ndarray> x)
    channels = dims[number]
    for i in range(number):
        outer *= dims[i]
    for i in range(number + 1, ndim):
        inner *= dims[i]
    if outer * inner == 0 or channels == 0:
        return False
    begin_job(job, <ndarray> x)
    job.given = given
    job.by_set = inner >= RUN or (given and takes_given_runs(job, outer, channels, inner))
    if job.by_set and given:
        plan_sets(job, outer * channels, channels, 1, 1, inner)  # runs in the order of memory
    elif job.by_set:
        plan_sets(job, channels, channels, 1, outer, inner)
    else:
        plan_columns(job, outer, channels, inner)
    return True


cdef bint set_activation(NormJob* job, ndarray x, object name, int direction) noexcept:
    if name is None:
        return True
    if type(name) is not str:
        return False
    number = fused_rows.get(name)
    if number is None:
        return False
    job.row = number
    job.nanoseconds += work(row_cost[job.row][direction], cnp.PyArray_SIZE(x), job.itemsize)
    if name == "relu":
        job.kind = FN_RELU
    elif name == "leaky_relu":
        job.kind = FN_LEAKY
        job.slope = row_defaults[job.row][0]
    return True


cdef bint set_eps(double* number, object eps) noexcept:
    if type(eps) is not float:
        return False
    number[0] = eps
    return isfinite(number[0]) and number[0] >= 0.0


cdef bint read_vector(object vector, Py_ssize_t n, double missing, double* values) noexcept:
    """A gamma or beta, which may be None, as doubles."""
    cdef Py_ssize_t i
    if vector is not None:
        return read_given(vector, n, values)
    for i in range(n):
        values[i] = missing
    return True


cdef bint read_given(object vector, Py_ssize_t n, double* values) noexcept:
    """A vector of a value for each channel as doubles."""
    if not is_plain(vector) or cnp.PyArray_NDIM(<ndarray> vector) != 1 or cnp.PyArray_DIM(<ndarray> vector, 0) != n:
        return False
    if cnp.PyArray_TYPE(<ndarray> vector) == cnp.NPY_FLOAT:
        current_level().norm_widen(cnp.PyArray_DATA(<ndarray> vector), values, n)
    else:
        memcpy(values, cnp.PyArray_DATA(<ndarray> vector), n * sizeof(double))
    return True


cdef bint is_vector(object array, int dtype, int ndim, cnp.npy_intp* shape, object out) noexcept:
    """Whether it is a plain array of that dtype and shape, which writing to out (None: a new array) leaves alone."""
    return (is_plain(array) and cnp.PyArray_TYPE(<ndarray> array) == dtype and cnp.PyArray_NDIM(<ndarray> array) == ndim
            and cnp.PyArray_CompareLists(cnp.PyArray_DIMS(<ndarray> array), shape, ndim)
            and (out is None or not may_overlap(<ndarray> array, <ndarray> out)))


cdef double* statistics_like(object array, int ndim, cnp.npy_intp* shape, object out) noexcept:
    """The data of a float64 array of that shape, or NULL where it needs preparation."""
    if not is_vector(array, cnp.NPY_DOUBLE, ndim, shape, out):
        return NULL
    return <double*> cnp.PyArray_DATA(<ndarray> array)


cdef bint usable_result(ndarray x, object out, bint* staged) noexcept:
    """Whether the result can be written to out (None: a new array) while x is read; staged where they are the same."""
    cdef Py_ssize_t nbytes = cnp.PyArray_NBYTES(x)
    if out is None:
        return True
    if not is_plain(out) or not cnp.PyArray_ISWRITEABLE(<ndarray> out) or not same_form(x, <ndarray> out):
        return False
    if cnp.PyArray_BYTES(x) == cnp.PyArray_BYTES(<ndarray> out):
        staged[0] = True
        return True
    return apart(cnp.PyArray_BYTES(x), cnp.PyArray_BYTES(<ndarray> out), nbytes)


cdef ndarray result_array(NormJob* job, ndarray x, object out):
    cdef ndarray y = out if out is not None else new_like(x)
    job.result = cnp.PyArray_BYTES(y)
    return y


cdef inline ndarray new_vector(cnp.npy_intp n, int dtype):
    return cnp.PyArray_EMPTY(1, &n, dtype, 0)


cdef ndarray gradient_array(const double* values, int ndim, cnp.npy_intp* shape, int dtype):
    cdef ndarray vector = cnp.PyArray_EMPTY(ndim, shape, dtype, 0)
    if dtype == cnp.NPY_FLOAT:
        current_level().norm_narrow(values, cnp.PyArray_DATA(vector), cnp.PyArray_SIZE(vector))
    else:
        memcpy(cnp.PyArray_DATA(vector), values, cnp.PyArray_NBYTES(vector))
    return vector


cdef double* scratch_for(Py_ssize_t n, double* few) except NULL:
    """Room for n doubles: the caller's array where it suffices, else the heap's."""
    cdef double* room
    if n <= SCRATCH:
        return few
    room = <double*> malloc(n * sizeof(double))
    if room == NULL:
        raise MemoryError(f"no memory for {n * sizeof(double)} bytes of sums and coefficients")
    return room


cdef inline Py_ssize_t scratch_size(NormJob* job) noexcept:
    """Doubles that the job's form needs."""
    return scratch_of_sets(job) if job.by_set else column_scratch(job)


cdef inline void lay_out(NormJob* job, double* scratch) noexcept:
    if job.by_set:
        lay_out_sets(job, scratch)
    else:
        lay_out_columns(job, scratch)


def batch_norm(x, gamma, beta, eps, axis, activation, out):
    """(y, mean, invstd), or None where the arguments need preparation."""
    cdef NormJob job
    cdef double few[SCRATCH]
    cdef double* room
    cdef ndarray y, mean, invstd
    cdef Py_ssize_t n
    if not (set_array(&job, x, axis) and set_activation(&job, <ndarray> x, activation, FN_FORWARD)
            and set_eps(&job.eps, eps) and usable_result(<ndarray> x, out, &job.staged)):
        return None
    n = job.groups
    room = scratch_for(3 * n + scratch_size(&job), few)
    try:
        if not (read_vector(gamma, n, 1.0, room) and read_vector(beta, n, 0.0, room + n)):
            return None
        y = result_array(&job, <ndarray> x, out)
        mean = new_vector(n, cnp.NPY_DOUBLE)
        invstd = new_vector(n, cnp.NPY_DOUBLE)
        job.gamma = room
        job.beta = room + n
        job.var = room + 2 * n
        job.mean = <double*> cnp.PyArray_DATA(mean)
        job.invstd = <double*> cnp.PyArray_DATA(invstd)
        lay_out(&job, room + 3 * n)
        run_released(&job)
        return y, mean, invstd
    finally:
        if room != few:
            free(room)


def batch_norm_backward(dy, x, mean, invstd, gamma, axis, activation, beta, out):
    """(dx, dgamma, dbeta), or None where the arguments need preparation."""
    cdef NormJob job
    cdef double few[SCRATCH]
    cdef double* room
    cdef ndarray dx
    cdef cnp.npy_intp n
    cdef int dtype
    if not (set_array(&job, x, axis) and set_activation(&job, <ndarray> x, activation, FN_BACKWARD)
            and is_plain(dy) and same_form(<ndarray> dy, <ndarray> x) and usable_result(<ndarray> x, out, &job.staged)
            and usable_result(<ndarray> dy, out, &job.staged)):
        return None
    n = job.groups
    job.mean = statistics_like(mean, 1, &n, out)
    job.invstd = statistics_like(invstd, 1, &n, out)
    if job.mean == NULL or job.invstd == NULL:
        return None
    job.dy = cnp.PyArray_BYTES(<ndarray> dy)
    job.given = True
    room = scratch_for(2 * n + scratch_size(&job), few)
    try:
        if not (read_vector(gamma, n, 1.0, room) and read_vector(beta, n, 0.0, room + n)):
            return None
        dx = result_array(&job, <ndarray> x, out)
        job.gamma = room
        job.beta = room + n
        lay_out(&job, room + 2 * n)
        run_released(&job)
        dtype = cnp.PyArray_TYPE(<ndarray> (x if gamma is None else gamma))
        return dx, gradient_array(job.dgamma, 1, &n, dtype), gradient_array(job.dbeta, 1, &n, dtype)
    finally:
        if room != few:
            free(room)


def batch_norm_inference(x, mean, var, gamma, beta, eps, axis, activation, out):
    """y, or None where the arguments need preparation."""
    cdef NormJob job
    cdef double few[SCRATCH]
    cdef double* room
    cdef ndarray y
    cdef Py_ssize_t n
    if not (set_array(&job, x, axis, True) and set_activation(&job, <ndarray> x, activation, FN_FORWARD)
            and set_eps(&job.eps, eps) and usable_result(<ndarray> x, out, &job.staged)):
        return None
    n = job.groups
    room = scratch_for(4 * n + scratch_size(&job), few)
    try:
        if not (read_vector(gamma, n, 1.0, room) and read_vector(beta, n, 0.0, room + n)
                and read_given(mean, n, room + 2 * n) and read_given(var, n, room + 3 * n)):
            return None
        y = result_array(&job, <ndarray> x, out)
        job.gamma = room
        job.beta = room + n
        job.mean = room + 2 * n
        job.invstd = room + 3 * n
        job.level.norm_invstd(job.invstd, job.eps, n)
        lay_out(&job, room + 4 * n)
        run_released(&job)
        return y
    finally:
        if room != few:
            free(room)


def batch_stats(x, axis):
    """(mean, var), or None where the arguments need preparation."""
    cdef NormJob job
    cdef double few[SCRATCH]
    cdef double* room
    cdef ndarray mean, var
    cdef Py_ssize_t n
    if not set_array(&job, x, axis):
        return None
    n = job.groups
    room = scratch_for(n + scratch_size(&job), few)
    try:
        mean = new_vector(n, cnp.NPY_DOUBLE)
        var = new_vector(n, cnp.NPY_DOUBLE)
        job.mean = <double*> cnp.PyArray_DATA(mean)
        job.var = <double*> cnp.PyArray_DATA(var)
        job.invstd = room
        lay_out(&job, room + n)
        run_released(&job)
        return mean, var
    finally:
        if room != few:
            free(room)
