# The backward direction of normalization_sets.pxi: sums, then the linear form of dx, then dx, chunk by chunk.

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
                                chunk.rows + job.shape.n * job.itemsize)
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
    """The sums of g, g * u and g * g of every piece."""
    cdef fn_block g
    cdef fn_sets pieces = pieces_of(job, count), shape
    cdef Py_ssize_t turn, number, run, done, n, place, at = first * job.shape.apart * job.itemsize
    cdef Py_ssize_t most = BLOCK_BYTES // job.itemsize
    memset(chunk.sums, 0, 3 * chunk.width * sizeof(double))
    if job.weights != NULL:
        row_sums(job, chunk, first, 0, count, mean)
    elif in_loops(job):
        shape = pieces
        for turn in range(count_of(pieces.sets, FN_SETS)):  # a set may have more pieces
            number = turn * FN_SETS
            place = at + number * pieces.apart * job.itemsize
            shape.sets = min(<Py_ssize_t> FN_SETS, pieces.sets - number)
            job.loops.back_sums(job.dy + place, job.x + place, &shape, chunk.k + number * job.itemsize, chunk.width,
                                job.kind, job.slope, chunk.sums + number)
    else:
        for number in range(pieces.sets):
            for run in range(pieces.runs):
                for turn in range(count_of(pieces.n, most)):
                    done = turn * most
                    n = min(most, pieces.n - done)
                    shape = one_run(n)
                    place = at + (number * pieces.apart + run * pieces.stride + done) * job.itemsize
                    job.loops.apply(job.x + place, g.bytes, &shape, chunk.k + number * job.itemsize, chunk.width,
                                    FN_PLAIN, 0.0)
                    gradient_block(job, job.dy + place, g.bytes, n)
                    job.loops.back_sums(g.bytes, job.x + place, &shape, chunk.k + number * job.itemsize, chunk.width,
                                        FN_PLAIN, 0.0, chunk.sums + number)


cdef bint chunk_forms(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count,
                      const double* mean) noexcept nogil:
    """The linear form of dx and the gradients of gamma and beta of every piece; whether a set is doubtful."""
    cdef const double* invstd = job.invstd + first
    cdef const double* gamma = ones
    cdef const double* products = chunk.sums + chunk.width
    cdef const double* squares = products + chunk.width
    if job.channels:
        gamma = job.gamma + first % job.groups * job.channels
    if job.channels < 2:
        return job.loops.forms(chunk.sums, products, squares, mean, invstd, gamma, chunk.k, chunk.width, job.count,
                               job.centred, count, chunk.linear, chunk.gradients, chunk.doubtful) != 0
    return job.loops.group_forms(chunk.sums, products, squares, mean, invstd, gamma, chunk.k, chunk.width, job.count,
                                 job.centred, count, job.channels, chunk.linear, chunk.gradients, chunk.doubtful) != 0


cdef void back_apply_blocks(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t number,
                            Py_ssize_t count) noexcept nogil:
    """dx of the chunk's `count` pieces from `number` on, where it cannot be written as it is computed or has an
    activation of the table."""
    cdef fn_block block, g
    cdef fn_sets pieces = pieces_of(job, 1), shape
    cdef Py_ssize_t turn, run, done, n, at, most = BLOCK_BYTES // job.itemsize, piece
    cdef const char* k
    cdef const char* linear
    for piece in range(number, number + count):
        k = chunk.k + piece * job.itemsize
        linear = chunk.linear + piece * job.itemsize
        for run in range(pieces.runs):
            for turn in range(count_of(pieces.n, most)):
                done = turn * most
                n = min(most, pieces.n - done)
                at = (first * job.shape.apart + piece * pieces.apart + run * pieces.stride + done) * job.itemsize
                shape = one_run(n)
                if job.weights != NULL:
                    job.loops.row_back_apply(job.dy + at, job.x + at, block.bytes, 1, n,
                                             job.weights + (first_weight(job, first + piece) + done) * job.itemsize,
                                             linear, k, chunk.width, False, 0)
                elif in_loops(job):
                    job.loops.back_apply(job.dy + at, job.x + at, block.bytes, &shape, linear, k, chunk.width, job.kind,
                                         job.slope, False, 0)
                else:
                    job.loops.apply(job.x + at, g.bytes, &shape, k, chunk.width, FN_PLAIN, 0.0)
                    gradient_block(job, job.dy + at, g.bytes, n)
                    job.loops.back_apply(g.bytes, job.x + at, block.bytes, &shape, linear, k, chunk.width, FN_PLAIN,
                                         0.0, False, 0)
                emit(job.level, job.streamed, job.result + at, block.bytes, n * job.itemsize)


cdef void back_apply_pieces(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t number,
                            Py_ssize_t count) noexcept nogil:
    """dx of the chunk's `count` pieces from `number` on."""
    cdef fn_sets pieces = pieces_of(job, 1)
    cdef Py_ssize_t at = (first * job.shape.apart + number * pieces.apart) * job.itemsize
    cdef Py_ssize_t rows, turn, row, place
    cdef const char* k = chunk.k + number * job.itemsize
    cdef const char* linear = chunk.linear + number * job.itemsize
    if job.staged or not in_loops(job):
        back_apply_blocks(job, chunk, first, number, count)
    elif job.weights != NULL:
        rows = rows_at_once(job, count)
        for turn in range(count // rows):
            row = turn * rows
            place = at + row * job.shape.apart * job.itemsize
            job.loops.row_back_apply(job.dy + place, job.x + place, job.result + place, rows, job.shape.n,
                                     job.weights + first_weight(job, first + number + row) * job.itemsize,
                                     linear + row * job.itemsize, k + row * job.itemsize, chunk.width, job.streamed,
                                     count * job.shape.apart)
    else:
        pieces.sets = count
        job.loops.back_apply(job.dy + at, job.x + at, job.result + at, &pieces, linear, k, chunk.width, job.kind,
                             job.slope, job.streamed, count * job.shape.apart)


cdef void back_apply_doubtful(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count,
                              const double* mean) noexcept nogil:
    """dx set by set, in double where a set is doubtful; there the gradients of gamma and beta are corrected too."""
    cdef fn_sets pieces = pieces_of(job, 1)
    cdef Py_ssize_t number, piece, at
    for number in range(count):
        at = number * pieces.sets
        if chunk.doubtful[number] == 0:
            back_apply_pieces(job, chunk, first, at, pieces.sets)
            continue
        exact_gradients(job, first + number, mean[number], job.invstd[first + number], &pieces,
                        job.gamma + (first + number) % job.groups * job.channels,
                        <const float*> chunk.k + at, chunk.width, chunk.sums + at)
        for piece in range(at, at + pieces.sets):
            chunk.gradients[piece] = chunk.sums[chunk.width + piece] * job.invstd[first + number]
            chunk.gradients[chunk.width + piece] = chunk.sums[piece]


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
            back_apply_pieces(job, chunk, first, number, end - number)
        number = end


cdef void backward_chunk(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count,
                         double* gradients) noexcept nogil:
    cdef const double* mean = job.mean + first if job.centred else &zeros[0]
    cdef Py_ssize_t width = gradient_width(job), i
    cdef bint doubtful
    chunk_coefficients(job, chunk, first, count, mean, job.invstd + first)
    chunk_sums(job, chunk, first, count, mean)
    doubtful = chunk_forms(job, chunk, first, count, mean) and job.itemsize == 4
    gradients += first % job.groups * (width // job.groups)
    if doubtful and job.weights != NULL:
        back_apply_doubtful_rows(job, chunk, first, count, mean, gradients)
        return
    if job.weights != NULL:
        add_row_gradients(job, chunk, first, 0, count, mean, gradients)  # before dx may take the place of dy
    if doubtful:
        back_apply_doubtful(job, chunk, first, count, mean)
    else:
        back_apply_pieces(job, chunk, first, 0, pieces_of(job, count).sets)
    for i in range(count * job.channels):
        gradients[i] += chunk.gradients[i]
        gradients[width + i] += chunk.gradients[chunk.width + i]


cdef void backward_sets(const NormJob* job, Chunk* chunk, Py_ssize_t begin, Py_ssize_t end,
                        double* gradients) noexcept nogil:
    cdef Py_ssize_t count
    while begin < end:
        count = chunk_sets(job, begin, end)
        backward_chunk(job, chunk, begin, count, gradients)
        begin += count


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
