# The backward direction of normalization_sets.pxi: sums, then the linear form of dx, then dx, chunk by chunk.

cdef inline bint fetches_early(const NormJob* job) noexcept nogil:
    """Whether the next rows are fetched while these are summed, not while dx is written past the caches: then memory reads
    and writes by turns."""
    return job.streamed and rows_share(job)


cdef void row_sums(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t number, Py_ssize_t count,
                   const double* mean) noexcept nogil:
    """The sums of g, g * u and g * g of the chunk's `count` rows from `number` on; of rows that share their gammas also
    the gradients of gamma and beta."""
    cdef fn_sets shape = job.shape
    cdef Py_ssize_t at = (first + number) * job.shape.apart * job.itemsize
    if rows_share(job):
        job.loops.row_back_sums(job.dy + at, job.x + at, count, job.shape.n, job.weights,
                                chunk.k + number * job.itemsize, chunk.width, mean + number,
                                job.invstd + first + number, chunk.sums + number, chunk.rows,
                                chunk.rows + job.shape.n * job.itemsize,
                                count * job.shape.apart if fetches_early(job) else 0)
        return
    shape.sets = count
    job.loops.row_weigh(job.dy + at, chunk.rows, job.weights + first_weight(job, first + number) * job.itemsize,
                        count * shape.n)  # gammas of one sample, which follow each other
    job.loops.back_sums(chunk.rows, job.x + at, &shape, chunk.k + number * job.itemsize, chunk.width, FN_PLAIN, 0.0,
                        chunk.sums + number)


cdef void add_row_gradients(const NormJob* job, const Chunk* chunk, Py_ssize_t first, Py_ssize_t number,
                            Py_ssize_t count, const double* mean, double* gradients) noexcept nogil:
    """Add the gradients of the gammas and betas of the rows that row_sums has taken to those of the block, which begin
    with the first of these gammas."""
    cdef Py_ssize_t n = job.shape.n, row, at
    if rows_share(job):
        job.loops.row_add(chunk.rows, gradients, n)
        job.loops.row_add(chunk.rows + n * job.itemsize, gradients + gradient_width(job), n)
        return
    for row in range(number, number + count):
        at = (first + row) * n * job.itemsize
        job.loops.row_gradients(job.dy + at, job.x + at, n, chunk.k + row * job.itemsize, chunk.width, mean[row],
                                job.invstd[first + row], gradients + (row - number) * n,
                                gradients + gradient_width(job) + (row - number) * n)


cdef void chunk_sums(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count,
                     const double* mean) noexcept nogil:
    """Add g, g * u and g * g to the sums of every set."""
    cdef fn_block g
    cdef fn_sets sets = sets_of(job, count), shape
    cdef Py_ssize_t turn, number, run, done, n, place, at = first * sets.apart * job.itemsize
    cdef Py_ssize_t most = BLOCK_BYTES // job.itemsize
    if job.weights != NULL:
        row_sums(job, chunk, first, 0, count, mean)
    elif in_loops(job):
        job.loops.back_sums(job.dy + at, job.x + at, &sets, chunk.k, chunk.width, job.kind, job.slope, chunk.sums)
    else:
        for number in range(count):
            for run in range(sets.runs):
                for turn in range(count_of(sets.n, most)):
                    done = turn * most
                    n = min(most, sets.n - done)
                    shape = one_run(n)
                    place = at + (number * sets.apart + run * sets.stride + done) * job.itemsize
                    job.loops.apply(job.x + place, g.bytes, &shape, chunk.k + number * job.itemsize, chunk.width,
                                    FN_PLAIN, 0.0)
                    gradient_block(job, job.dy + place, g.bytes, n)
                    job.loops.back_sums(g.bytes, job.x + place, &shape, chunk.k + number * job.itemsize, chunk.width,
                                        FN_PLAIN, 0.0, chunk.sums + number)


cdef bint chunk_forms(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count,
                      const double* mean) noexcept nogil:
    """The linear form of dx and the gradients of gamma and beta of every set; whether one is doubtful."""
    cdef const double* invstd = job.invstd + first
    cdef const double* gamma = fn_ones
    cdef const double* products = chunk.sums + chunk.width
    cdef const double* squares = products + chunk.width
    if job.channels:
        gamma = job.gamma + first % job.groups
    return job.loops.forms(chunk.sums, products, squares, mean, invstd, gamma, chunk.k, chunk.width, job.count, job.centred,
                           count, chunk.linear, chunk.gradients, chunk.doubtful) != 0


cdef void back_apply_blocks(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t number,
                            Py_ssize_t count) noexcept nogil:
    """dx of the chunk's `count` sets from `number` on, where it cannot be written as it is computed, has an activation of
    the table, or is in short runs."""
    cdef fn_block block, g
    cdef fn_sets sets = sets_of(job, 1), shape
    cdef Py_ssize_t turn, run, done, n, at, most = BLOCK_BYTES // job.itemsize, end = number + count, some
    cdef const char* k
    cdef const char* linear
    while number < end:
        k = chunk.k + number * job.itemsize
        linear = chunk.linear + number * job.itemsize
        some = sets_at_once(job, sets.n, end - number)
        for run in range(sets.runs):
            for turn in range(count_of(sets.n, most)):
                done = turn * most
                n = min(most, sets.n - done)
                at = ((first + number) * sets.apart + run * sets.stride + done) * job.itemsize
                shape = runs_beside(some, n)
                if job.weights != NULL:
                    job.loops.row_back_apply(job.dy + at, job.x + at, block.bytes, some, n,
                                             job.weights + (first_weight(job, first + number) + done) * job.itemsize,
                                             linear, k, chunk.width, False, 0)
                elif in_loops(job):
                    job.loops.back_apply(job.dy + at, job.x + at, block.bytes, &shape, linear, k, chunk.width, job.kind,
                                         job.slope, False, 0)
                else:
                    job.loops.apply(job.x + at, g.bytes, &shape, k, chunk.width, FN_PLAIN, 0.0)
                    gradient_block(job, job.dy + at, g.bytes, some * n)
                    job.loops.back_apply(g.bytes, job.x + at, block.bytes, &shape, linear, k, chunk.width, FN_PLAIN,
                                         0.0, False, 0)
                emit(job.level, job.streamed, job.result + at, block.bytes, some * n * job.itemsize)
        number += some


cdef void back_apply_sets(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t number,
                          Py_ssize_t count) noexcept nogil:
    """dx of the chunk's `count` sets from `number` on."""
    cdef fn_sets sets = sets_of(job, count)
    cdef Py_ssize_t at = (first + number) * sets.apart * job.itemsize
    cdef Py_ssize_t rows, turn, row, place
    cdef const char* k = chunk.k + number * job.itemsize
    cdef const char* linear = chunk.linear + number * job.itemsize
    if job.staged or not in_loops(job) or (job.weights != NULL and in_blocks(job)):
        back_apply_blocks(job, chunk, first, number, count)
    elif job.weights != NULL:
        rows = rows_at_once(job, count)
        for turn in range(count // rows):
            row = turn * rows
            place = at + row * sets.apart * job.itemsize
            job.loops.row_back_apply(job.dy + place, job.x + place, job.result + place, rows, sets.n,
                                     job.weights + first_weight(job, first + number + row) * job.itemsize,
                                     linear + row * job.itemsize, k + row * job.itemsize, chunk.width, job.streamed,
                                     0 if fetches_early(job) else count * sets.apart)
    else:
        job.loops.back_apply(job.dy + at, job.x + at, job.result + at, &sets, linear, k, chunk.width, job.kind,
                             job.slope, job.streamed, count * sets.apart)


cdef void redo_set(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t number, double mean,
                   const float* single) noexcept nogil:
    """dx of the chunk's set `number` in double, and its gradients of gamma and beta."""
    cdef fn_sets pieces = pieces_of(job, 1)
    cdef Py_ssize_t begin = number * pieces.sets, piece
    cdef double invstd = job.invstd[first + number]
    exact_gradients(job, first + number, mean, invstd, &pieces, job.gamma + (first + number) % job.groups * job.channels,
                    single, chunk.width, chunk.sums)
    for piece in range(pieces.sets):
        chunk.gradients[begin + piece] = chunk.sums[chunk.width + piece] * invstd
        chunk.gradients[chunk.width + begin + piece] = chunk.sums[piece]


cdef void back_apply_doubtful_rows(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count,
                                   const double* mean, double* gradients) noexcept nogil:
    """dx and the gradients of the elements' gamma and beta, in double where a row is doubtful; the rows between two
    such are summed again, without them."""
    cdef Py_ssize_t number = 0, end
    cdef double* own
    while number < count:
        end = number + 1
        own = gradients if rows_share(job) else gradients + number * job.shape.n
        if chunk.doubtful[number]:
            exact_row(job, first + number, mean[number], job.invstd[first + number], own, own + gradient_width(job))
        else:
            while end < count and not chunk.doubtful[end]:
                end += 1
            row_sums(job, chunk, first, number, end - number, mean)
            add_row_gradients(job, chunk, first, number, end - number, mean, own)
            back_apply_sets(job, chunk, first, number, end - number)
        number = end


cdef void backward_chunk(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count,
                         double* gradients) noexcept nogil:
    """dx, and the gradients of gamma and beta of the sets, or of their elements: these are added to `gradients`."""
    cdef const double* mean = fn_zeros
    cdef Py_ssize_t number
    cdef bint doubtful
    if job.centred:
        mean = job.mean + first
    chunk_coefficients(job, chunk, first, count, mean, job.invstd + first)
    memset(chunk.sums, 0, 3 * chunk.width * sizeof(double))
    chunk_sums(job, chunk, first, count, mean)
    doubtful = chunk_forms(job, chunk, first, count, mean) and job.itemsize == 4
    if doubtful and job.weights != NULL:
        back_apply_doubtful_rows(job, chunk, first, count, mean, gradients)
        return
    if job.weights != NULL:
        add_row_gradients(job, chunk, first, 0, count, mean, gradients)  # before dx may take the place of dy
    if not doubtful:
        back_apply_sets(job, chunk, first, 0, count)
        return
    for number in range(count):
        if chunk.doubtful[number]:
            redo_set(job, chunk, first, number, mean[number], <const float*> chunk.k + number)
        else:
            back_apply_sets(job, chunk, first, number, 1)


cdef void backward_runs(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """backward_chunk of sets of one run for every gamma and without activation: from sums to dx in one call."""
    cdef Py_ssize_t at = first * job.shape.apart * job.itemsize, number
    cdef bint doubtful = job.loops.back_sets(job.dy + at, job.x + at, job.result + at, count, job.channels, job.inner,
                                             job.mean + first, job.invstd + first,
                                             job.gamma + first % job.groups * job.channels, job.moderate,
                                             &chunk.gathered if job.streamed and not job.staged else NULL,
                                             chunk.gradients, chunk.gradients + chunk.width, chunk.sums,
                                             chunk.doubtful) != 0
    if not doubtful:
        return
    for number in range(count):
        if chunk.doubtful[number]:
            redo_set(job, chunk, first, number, job.mean[first + number], NULL)


cdef void backward_sets(const NormJob* job, Chunk* chunk, Py_ssize_t begin, Py_ssize_t end,
                        double* gradients) noexcept nogil:
    cdef Py_ssize_t width = gradient_width(job), count, i
    cdef bint in_one_call = job.channels and job.shape.runs == 1 and job.row < 0
    cdef double* own
    while begin < end:
        count = chunk_sets(job, begin, end)
        own = gradients + begin % job.groups * (width // job.groups)
        if in_one_call:
            count = min(count, max(<Py_ssize_t> 1, NEAR_VALUES // job.shape.n))
            backward_runs(job, chunk, begin, count)
        else:
            backward_chunk(job, chunk, begin, count, own)
        for i in range(count * job.channels):
            own[i] += chunk.gradients[i]
            own[width + i] += chunk.gradients[chunk.width + i]
        begin += count
    job.level.store_rest(&chunk.gathered, job.result + end * job.shape.apart * job.itemsize)


cdef void backward_unit(const NormJob* job, Chunk* chunk, Py_ssize_t number) noexcept nogil:
    """One slice of the sets of each sample of one block."""
    cdef Py_ssize_t block = number // job.slices, slice = number % job.slices, sample
    cdef Py_ssize_t begin = job.groups * slice // job.slices, end = job.groups * (slice + 1) // job.slices
    cdef Py_ssize_t first = block * job.block, last = min(job.sets // job.groups, first + job.block)
    cdef double* gradients = job.partial + block * 2 * gradient_width(job)
    if job.slices == 1:
        backward_sets(job, chunk, first * job.groups, last * job.groups, gradients)
    else:
        for sample in range(first, last):
            backward_sets(job, chunk, sample * job.groups + begin, sample * job.groups + end, gradients)
