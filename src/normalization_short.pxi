# Layer, RMS and group norm of short sets, in double but for floats in rows. Sets of at least ROW values are taken as they lie,
# some of them together: rows. Of shorter ones, and of groups backward, whose gammas differ, FN_LANES are transposed into a tile
# of doubles, normalized side by side, and transposed back: one by one, what is done once for a set would take many times as long
# as what is done for its elements.

cdef enum:
    ROW = 12                # values from which on sets are taken as they lie, to FN_LONG_ROW ...
    LONG_DOUBLES = 96       # ... of doubles
    LONG_DOUBLES_BACK = 64  # ... backward
    ROW_BYTES = 8192        # of data that are taken together
    STREAMED_ROW_BYTES = 4096
    TILE = 512              # FN_LANES * RUN, what a block holds
    SHARING_VALUES = 32768  # at most, of samples whose sets of the same gammas are taken after one another


cdef inline bint is_short(const NormJob* job) noexcept nogil:
    """Whether the sets have a gamma for every element, and are so short that other loops' sums of lanes take long beside it."""
    cdef Py_ssize_t bound = FN_LONG_ROW if job.itemsize == 4 else LONG_DOUBLES
    if job.dy != NULL and job.groups > 1:
        bound = RUN
    elif job.dy != NULL and job.itemsize == 8:
        bound = LONG_DOUBLES_BACK
    return job.channels == 0 and job.shape.n < bound


cdef inline Py_ssize_t rows_of_call(const NormJob* job) noexcept nogil:
    """How many sets are taken together as they lie."""
    cdef bint few = job.streamed and (job.dy == NULL or job.itemsize == 4)
    cdef Py_ssize_t count = (STREAMED_ROW_BYTES if few else ROW_BYTES) // (job.shape.n * job.itemsize)
    return min(<Py_ssize_t> FN_SETS, max(<Py_ssize_t> 8, count & -8))  # whole vectors of statistics


cdef inline Py_ssize_t sets_side_by_side(const NormJob* job) noexcept nogil:
    """How many are taken together: few groups in the same places every time, as they have the same gammas."""
    return FN_LANES // job.groups * job.groups if job.groups <= FN_LANES else FN_LANES


cdef void take_sets(const NormJob* job, const char* source, Py_ssize_t count, double* tile) noexcept nogil:
    """Lay `count` sets side by side; missing ones are zero."""
    cdef fn_block singles
    cdef Py_ssize_t n = job.shape.n, size = n * FN_LANES
    cdef char* place = singles.bytes if job.itemsize == 4 else <char*> tile
    if count < FN_LANES:
        memset(place, 0, size * job.itemsize)
    job.level.transpose[dtype_of(job)](source, n, place, FN_LANES, count, n)
    if job.itemsize == 4:
        job.level.norm_widen(singles.bytes, tile, size)


cdef void put_sets(const NormJob* job, const double* tile, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    cdef fn_block singles, block
    cdef Py_ssize_t n = job.shape.n
    cdef const char* results = <const char*> tile
    cdef char* place = job.result + first * n * job.itemsize
    if job.itemsize == 4:
        job.level.norm_narrow(tile, singles.bytes, n * FN_LANES)
        results = singles.bytes
    job.level.transpose[dtype_of(job)](results, FN_LANES, block.bytes if job.streamed else place, n, n, count)
    if job.streamed:
        emit(job.level, True, place, block.bytes, count * n * job.itemsize)


cdef void take_vector(const NormJob* job, const char* vector, double missing, Py_ssize_t first, double* tile) noexcept nogil:
    """The gammas, or betas, of the elements of the sets from `first` on."""
    cdef double sets[TILE]
    cdef Py_ssize_t n = job.shape.n, i
    if vector == NULL:
        fill_elements(<char*> tile, n * FN_LANES, missing, sizeof(double))
        return
    for i in range(FN_LANES):
        memcpy(<char*> sets + i * n * job.itemsize, vector + first_weight(job, first + i) * job.itemsize, n * job.itemsize)
    take_sets(job, <const char*> sets, FN_LANES, tile)


cdef void forward_short_sets(const NormJob* job, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Sets with the same gammas, those of some samples, are taken after one another."""
    cdef double x[TILE]
    cdef double gamma[TILE]
    cdef double beta[TILE]
    cdef double mean[FN_LANES]
    cdef double invstd[FN_LANES]
    cdef Py_ssize_t step = sets_side_by_side(job), apart = max(step, job.groups), first, last, stop, at, count
    cdef Py_ssize_t nbytes = job.shape.n * job.itemsize
    while begin < end:
        first = begin
        last = min(end, begin + apart)
        stop = min(end, begin + max(<Py_ssize_t> 1, SHARING_VALUES // (apart * job.shape.n)) * apart)
        while first < last:
            take_vector(job, job.weights, 1.0, first, gamma)
            take_vector(job, job.offsets, 0.0, first, beta)
            at = first
            while at < stop:
                count = min(min(step, last - first), stop - at)
                if job.streamed:  # the next ones lie in other pages, or wait for the arithmetic of these
                    fn_fetch(job.x + (at + apart) * nbytes, count * nbytes)
                take_sets(job, job.x + at * nbytes, count, x)
                job.level.norm_short_sets(x, job.shape.n, gamma, beta, job.eps, job.centred, mean, invstd)
                if job.centred:
                    memcpy(job.mean + at, mean, count * sizeof(double))
                memcpy(job.invstd + at, invstd, count * sizeof(double))
                put_sets(job, x, at, count)
                at += apart
            first += step
        begin = stop


cdef void forward_short_rows(const NormJob* job, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Sets of at least ROW values, as they lie."""
    cdef double ones[FN_LONG_ROW]
    cdef double zeros[FN_LONG_ROW]
    cdef const char* weights = job.weights
    cdef const char* offsets = job.offsets
    cdef Py_ssize_t n = job.shape.n, weight = first_weight(job, begin), places = job.groups * n, at = begin * n * job.itemsize
    cdef fn_gathered gathered
    fn_begin_gathered(&gathered, not HAS_MESH)
    if weights == NULL:
        fill_elements(<char*> ones, n, 1.0, job.itemsize)
        fill_elements(<char*> zeros, n, 0.0, job.itemsize)
        weights = <const char*> ones
        offsets = <const char*> zeros
        weight = 0
        places = n
    job.loops.short_rows(job.x + at, job.result + at, end - begin, n, rows_of_call(job), weights, offsets, places, weight,
                         job.eps, job.centred, &gathered if job.streamed and not job.staged else NULL,
                         job.mean + begin if job.centred else NULL, job.invstd + begin)


cdef void back_short_sets(const NormJob* job, Py_ssize_t first, Py_ssize_t count, const double* gamma, double* dgamma,
                          double* dbeta) noexcept nogil:
    cdef double dy[TILE]
    cdef double x[TILE]
    cdef double mean[FN_LANES]
    cdef double invstd[FN_LANES]
    cdef Py_ssize_t at = first * job.shape.n * job.itemsize
    memset(mean, 0, sizeof(mean))
    memset(invstd, 0, sizeof(invstd))
    if job.centred:
        memcpy(mean, job.mean + first, count * sizeof(double))
    memcpy(invstd, job.invstd + first, count * sizeof(double))
    take_sets(job, job.dy + at, count, dy)
    take_sets(job, job.x + at, count, x)
    job.level.norm_short_back(dy, x, job.shape.n, gamma, job.centred, mean, invstd, dgamma, dbeta)
    put_sets(job, dy, first, count)


cdef void add_short_gradients(const NormJob* job, double* tile, Py_ssize_t first, Py_ssize_t count,
                              double* gradients) noexcept nogil:
    """Add a tile's gradients to those of the elements of the sets from `first` on, and clear it."""
    cdef double sets[TILE]
    cdef Py_ssize_t n = job.shape.n, i
    job.level.transpose[<int> FN_DOUBLE](tile, FN_LANES, sets, n, n, count)
    for i in range(count):
        job.level.norm[<int> FN_DOUBLE].row_add(sets + i * n, gradients + first_weight(job, first + i), n)
    memset(tile, 0, n * FN_LANES * sizeof(double))


cdef void back_short_unit(const NormJob* job, Py_ssize_t number) noexcept nogil:
    """As backward_unit, but a few sets of a sample after the other, each through all samples of the block, so that a place in
    the tile has the same gammas until its gradients are added up. Of few groups a tile takes whole samples."""
    cdef double gamma[TILE]
    cdef double dgamma[TILE]
    cdef double dbeta[TILE]
    cdef Py_ssize_t block = number // job.slices, slice = number % job.slices, groups = job.groups
    cdef Py_ssize_t first = block * job.block * groups, last = min(job.sets, first + job.block * groups), at, count
    cdef Py_ssize_t begin = groups * slice // job.slices, end = groups * (slice + 1) // job.slices
    cdef Py_ssize_t step = sets_side_by_side(job), apart = groups, nbytes = job.shape.n * job.itemsize, i
    cdef double* gradients = job.partial + block * 2 * gradient_width(job)
    memset(dgamma, 0, sizeof(dgamma))
    memset(dbeta, 0, sizeof(dbeta))
    if groups <= FN_LANES:
        end = apart = step
    while begin < end:
        count = min(step, end - begin)
        take_vector(job, job.weights, 1.0, begin, gamma)
        at = first + begin
        while at < last:
            if job.streamed:
                for i in range((at + apart) * nbytes, (at + apart + count) * nbytes, 64):  # by turns is faster
                    fn_prefetch(job.x + i)
                    fn_prefetch(job.dy + i)
            back_short_sets(job, at, min(count, last - at), gamma, dgamma, dbeta)
            at += apart
        add_short_gradients(job, dgamma, begin, count, gradients)
        add_short_gradients(job, dbeta, begin, count, gradients + gradient_width(job))
        begin += count


cdef void back_short_rows(const NormJob* job, Py_ssize_t block) noexcept nogil:
    """One block of sets of at least ROW values with the same gammas, as they lie."""
    cdef Py_ssize_t n = job.shape.n, begin = block * job.block, end = min(job.sets, begin + job.block)
    cdef Py_ssize_t at = begin * n * job.itemsize
    cdef double* gradients = job.partial + block * 2 * gradient_width(job)
    cdef fn_gathered gathered
    fn_begin_gathered(&gathered, not HAS_MESH)
    job.loops.short_rows_back(job.dy + at, job.x + at, job.result + at, end - begin, n, rows_of_call(job), job.weights,
                              job.centred, job.mean + begin if job.centred else NULL, job.invstd + begin,
                              &gathered if job.streamed and not job.staged else NULL, gradients, gradients + gradient_width(job))


cdef void short_part(const NormJob* job, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The units of work from `begin` to `end`."""
    cdef Py_ssize_t unit
    if job.dy == NULL and job.shape.n >= ROW:
        forward_short_rows(job, begin, end)
    elif job.dy == NULL:
        forward_short_sets(job, begin, end)
    else:
        for unit in range(begin, end):
            if job.groups == 1 and job.shape.n >= ROW:
                back_short_rows(job, unit)
            else:
                back_short_unit(job, unit)
