# Normalizations whose data comes in sets with statistics of their own: a channel of an NCHW batch (runs of H * W
# elements, one in each sample), a row, a group of channels of a sample. Small neighbouring sets are taken together in a
# chunk, so that they stay in the cache between sums and results, and their statistics are finished side by side.
# Gradients of gamma and beta are summed over fixed blocks of samples, and the blocks' sums added in their order: see
# normalization_sets_backward.pxi.
#
# Within a set, a piece is what shares a gamma and a beta: a channel. Where every element has its own (layer norm, and
# group norm of short runs), gamma and beta are the arrays `weights` and `offsets` over the elements of a sample.

cdef enum:
    TOGETHER_VALUES = 32768  # most values in several sets
    NEAR_VALUES = 2048       # the same where they stay in the nearest cache from their sums to their results
    BESIDE_RUN = 256         # values up to which runs past the caches, of channels beside each other, are taken together ...
    BESIDE_VALUES = 640      # ... so many values of a sample ...
    BESIDE_BYTES = 393216    # ... and no more than this: it fits a second-level cache of 1 MB twice, with room to spare
    CHUNK_ARRAYS = 21
    SET_BLOCKS = 16          # most blocks of samples
    ROWS = 8                 # least rows in a chunk and in a block: their gradients of gamma and beta are long arrays
    SLICES = 64              # most slices of a sample
    SLICE_VALUES = 32768     # least values of a slice, and of a unit of work
    SPREAD_VALUES = 1024     # the same where every element has a gradient of its own: they stay in the cache
    SHORT_VALUES = 8192      # least values of a unit of short sets, which take longer
    BLOCK_RUN = 320          # bytes below which runs past the caches go through blocks: too many end within a line ...
    GATHERED_BYTES = 2048    # ... of so many bytes, on a mesh, if all of a thread's results follow each other
    FETCHED_VALUES = 512     # values up to which sets are fetched while others are summed ...
    FETCHED_BYTES = 1024     # ... and bytes from which on, of doubles, one at a time
    AHEAD_RUNS = 4           # how many runs ahead the ends of results past the caches are fetched
    MANY_RUNS = 256          # of a channel: runs from which on all channels are gone through together, sample by sample ...
    MANY_SHORT_RUNS = 128    # ... the same of runs of less than BLOCK_RUN bytes ...
    PASS_RUN = 2048          # ... if they have so many bytes at most ...
    PASS_BYTES = 1048576     # ... and all together at least so many: less stays in the second-level cache
    GIVEN_BYTES = 4096       # how far ahead runs are fetched whose statistics are given
    GIVEN_CHANNELS = 1024    # most channels whose coefficients are kept then

cdef struct Chunk:
    Py_ssize_t width         # of the arrays, which lie in the part's room
    double* mean
    double* var
    double* invstd
    double* shift
    double* sums             # three arrays
    double* gradients        # two
    double* piece_mean
    double* piece_invstd
    int64_t* doubtful
    char* k                  # COEFFICIENTS arrays
    char* linear             # three
    char* rows               # gradients of the gammas and betas that rows share, or else their dy * gamma
    fn_gathered gathered     # results past the caches


cdef inline bint in_passes(const NormJob* job) noexcept nogil:
    """Whether the data is gone through in the order of memory, twice: see normalization_passes.pxi."""
    cdef Py_ssize_t nbytes = job.shape.n * job.itemsize
    return (job.shape.runs >= (MANY_SHORT_RUNS if nbytes < BLOCK_RUN else MANY_RUNS) and nbytes <= PASS_RUN and job.groups > 1
            and nbytes * job.shape.runs * job.groups >= PASS_BYTES)


cdef inline bint keeps_coefficients(const NormJob* job) noexcept nogil:
    """Whether those of all channels are computed once, not for every sample anew: where statistics are given."""
    return job.given and job.dy == NULL and job.groups <= GIVEN_CHANNELS and job.sets >= 2 * job.parts * job.groups


cdef inline Py_ssize_t chunk_width(const NormJob* job) noexcept nogil:
    return max(<Py_ssize_t> FN_SETS, job.groups if keeps_coefficients(job) or in_passes(job) else job.channels)


cdef inline Py_ssize_t gradient_width(const NormJob* job) noexcept nogil:
    """Gammas, or elements of a sample that have their own."""
    return job.groups * (job.channels if job.channels else job.shape.n)


cdef void lay_out_chunk(Chunk* chunk, double* room, Py_ssize_t width) noexcept nogil:
    chunk.width = width
    chunk.mean = room
    chunk.var = room + width
    chunk.invstd = room + 2 * width
    chunk.shift = room + 3 * width
    chunk.sums = room + 4 * width
    chunk.gradients = room + 7 * width
    chunk.piece_mean = room + 9 * width
    chunk.piece_invstd = room + 10 * width
    chunk.doubtful = <int64_t*> (room + 11 * width)
    chunk.k = <char*> (room + 12 * width)
    chunk.linear = <char*> (room + 18 * width)
    chunk.rows = <char*> (room + CHUNK_ARRAYS * width)


cdef void open_chunk(const NormJob* job, int part, Chunk* chunk) noexcept nogil:
    lay_out_chunk(chunk, job.room + part * job.room_size, chunk_width(job))
    fn_begin_gathered(&chunk.gathered, not HAS_MESH)


cdef inline fn_sets sets_of(const NormJob* job, Py_ssize_t count) noexcept nogil:
    cdef fn_sets sets = job.shape
    sets.sets = count
    return sets


cdef inline fn_sets pieces_of(const NormJob* job, Py_ssize_t count) noexcept nogil:
    """The pieces of `count` sets."""
    cdef fn_sets pieces = sets_of(job, count)
    if job.channels > 1:
        pieces.sets = count * job.channels
        pieces.apart = pieces.n = job.inner
    return pieces


cdef inline fn_sets one_run(Py_ssize_t n) noexcept nogil:
    cdef fn_sets shape
    shape.sets = shape.runs = 1
    shape.apart = shape.stride = 0
    shape.n = n
    return shape


cdef inline fn_sets runs_beside(Py_ssize_t count, Py_ssize_t n) noexcept nogil:
    """`count` sets of one run each that follow each other."""
    cdef fn_sets shape = one_run(n)
    shape.sets = count
    shape.apart = n
    return shape


cdef inline bint rows_share(const NormJob* job) noexcept nogil:
    """Whether all sets have the same gammas and betas, which belong to the elements: layer norm, not group norm."""
    return job.channels == 0 and job.groups == 1


cdef inline Py_ssize_t chunk_sets(const NormJob* job, Py_ssize_t first, Py_ssize_t end) noexcept nogil:
    """How many sets to take together: rows, or groups of one sample, whose channels follow each other."""
    cdef Py_ssize_t count = min(job.most, end - first)
    return count if rows_share(job) else min(count, job.groups - first % job.groups)


cdef inline Py_ssize_t rows_at_once(const NormJob* job, Py_ssize_t count) noexcept nogil:
    """How many of `count` sets the loops over rows take in a call: they have one array of gammas."""
    return count if rows_share(job) else 1


cdef inline bint in_blocks(const NormJob* job) noexcept nogil:
    """Whether results past the caches go through blocks."""
    return job.streamed and pieces_of(job, 1).n * job.itemsize < BLOCK_RUN


cdef inline bint gathers(const NormJob* job) noexcept nogil:
    """Whether they gather there: all of a thread's results, which follow each other, forward."""
    return in_blocks(job) and job.dy == NULL and job.shape.runs == 1 and not job.staged and in_loops(job)


cdef inline Py_ssize_t sets_at_once(const NormJob* job, Py_ssize_t n, Py_ssize_t count) noexcept nogil:
    """How many of `count` sets, or pieces, with runs of n values side by side go through a block together: in blocks alike,
    because a small one's ends, within lines, would take long beside it."""
    if job.weights != NULL:
        count = rows_at_once(job, count)
    cdef Py_ssize_t nbytes = GATHERED_BYTES if gathers(job) and HAS_MESH else BLOCK_BYTES
    cdef Py_ssize_t most = max(<Py_ssize_t> 1, nbytes // (n * job.itemsize))
    return count_of(count, count_of(count, most))


cdef inline Py_ssize_t first_weight(const NormJob* job, Py_ssize_t number) noexcept nogil:
    """Where among the elements of a sample set `number` begins."""
    return number % job.groups * job.shape.n


cdef void chunk_coefficients(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count, const double* mean,
                             const double* invstd) noexcept nogil:
    """The coefficients of the pieces of `count` sets; with gamma 1 and beta 0 where they are arrays."""
    cdef Py_ssize_t number, i, channel = first % job.groups * job.channels
    if job.channels == 0:
        job.loops.coefficients(mean, invstd, fn_ones, fn_zeros, count, chunk.k, chunk.width)
        return
    if job.channels > 1:
        for number in range(count):
            for i in range(number * job.channels, (number + 1) * job.channels):
                chunk.piece_mean[i] = mean[number]
                chunk.piece_invstd[i] = invstd[number]
        mean = chunk.piece_mean
        invstd = chunk.piece_invstd
    job.loops.coefficients(mean, invstd, job.gamma + channel, job.beta + channel, count * job.channels, chunk.k,
                           chunk.width)
    make_room(job, chunk.k, count * job.channels, chunk.width)


# Forward.

cdef void sum_again(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t i) noexcept nogil:
    """Statistics of a set of doubles whose first value is far from the others: about the mean that its sums gave."""
    cdef fn_sets shape = job.shape
    cdef double* sums = chunk.sums + i
    cdef int64_t doubtful
    shape.sets = 1
    chunk.shift[i] = better_shift(job, chunk.mean[i])
    sums[0] = sums[chunk.width] = 0.0
    job.loops.sums(job.x + (first + i) * shape.apart * job.itemsize, &shape, chunk.shift + i, sums, sums + chunk.width)
    job.level.norm_finish(sums, sums + chunk.width, chunk.shift + i, job.count, job.eps, 1, chunk.mean + i, chunk.var + i,
                          chunk.invstd + i, &doubtful)


cdef void finish_chunk(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """Mean, variance and 1/sqrt(var + eps) of `count` sets from their sums."""
    cdef Py_ssize_t i
    if not job.centred:
        memset(chunk.sums, 0, count * sizeof(double))
    if job.level.norm_finish(chunk.sums, chunk.sums + chunk.width, chunk.shift, job.count, job.eps, count, chunk.mean,
                             chunk.var, chunk.invstd, chunk.doubtful):
        for i in range(count):
            if chunk.doubtful[i] and job.itemsize == 4:
                exact_statistics(job, first + i, chunk.mean + i, chunk.var + i, chunk.invstd + i)
            elif chunk.doubtful[i]:
                sum_again(job, chunk, first, i)
    if job.mean != NULL:
        memcpy(job.mean + first, chunk.mean, count * sizeof(double))
    if job.var != NULL:
        memcpy(job.var + first, chunk.var, count * sizeof(double))
    memcpy(job.invstd + first, chunk.invstd, count * sizeof(double))


cdef void look_at_chunk(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """Begin the sums of `count` sets."""
    cdef Py_ssize_t i
    for i in range(count):
        chunk.shift[i] = shift_at(job, (first + i) * job.shape.apart)
        chunk.sums[i] = chunk.sums[chunk.width + i] = 0.0


cdef inline bint overlapped(const NormJob* job) noexcept nogil:
    """Whether the sums of sets are better taken while the results of others are written: where summing float data in
    double keeps the processor as long as reading the data does."""
    return job.streamed and job.itemsize == 4 and not in_blocks(job)


cdef inline bint fetches_sets(const NormJob* job) noexcept nogil:
    """Whether sets are fetched while those of the chunk before are summed: else memory would wait for the sums, and while
    results are written past the caches it has enough to do."""
    return job.streamed and job.shape.runs == 1 and job.shape.n <= FETCHED_VALUES and not overlapped(job)


cdef void chunk_statistics(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    cdef fn_sets shape = job.shape
    cdef Py_ssize_t apart = shape.apart * job.itemsize, number = 0, some = count, turns = 1, run
    cdef const char* x
    cdef bint fetched = fetches_sets(job), one_by_one = fetched and job.itemsize == 8 and apart >= FETCHED_BYTES
    if overlapped(job):  # run by run as in stream_sets, for the same bits
        turns = shape.runs
        shape.runs = 1
    elif one_by_one:
        some = 1
    elif fetched:
        shape.stride = count * shape.apart  # by the loop
    look_at_chunk(job, chunk, first, count)
    while number < count:
        x = job.x + (first + number) * apart
        shape.sets = min(some, count - number)
        if one_by_one:
            fn_fetch(x + count * apart, apart)
        for run in range(turns):
            job.loops.sums(x + run * shape.stride * job.itemsize, &shape, chunk.shift + number, chunk.sums + number,
                           chunk.sums + chunk.width + number)
        number += shape.sets
    finish_chunk(job, chunk, first, count)


cdef void apply_blocks(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    """Results that cannot be written as they are computed, have an activation of the table, or are in short runs."""
    cdef fn_block block
    cdef char* place = block.bytes
    cdef fn_sets pieces = pieces_of(job, count), shape
    cdef Py_ssize_t turn, number = 0, some, run, done, n, at, weight, most = BLOCK_BYTES // job.itemsize
    cdef const char* k
    while number < pieces.sets:
        k = chunk.k + number * job.itemsize
        some = sets_at_once(job, pieces.n, pieces.sets - number)
        for run in range(pieces.runs):
            for turn in range(count_of(pieces.n, most)):
                done = turn * most
                n = min(most, pieces.n - done)
                at = (first * job.shape.apart + number * pieces.apart + run * pieces.stride + done) * job.itemsize
                if gathers(job):
                    place = <char*> job.level.gather(&chunk.gathered, job.result + at, some * n * job.itemsize)
                if job.weights != NULL:
                    weight = (first_weight(job, first + number) + done) * job.itemsize
                    job.loops.row_apply(job.x + at, place, some, n, k, chunk.width, job.weights + weight,
                                        job.offsets + weight)
                else:
                    shape = runs_beside(some, n)
                    job.loops.apply(job.x + at, place, &shape, k, chunk.width, job.kind, job.slope)
                if not in_loops(job):
                    activate_block(job, place, some * n)
                if gathers(job):
                    job.level.end_pieces(&chunk.gathered, job.result + at + some * n * job.itemsize)
                else:
                    emit(job.level, job.streamed, job.result + at, block.bytes, some * n * job.itemsize)
        number += some


cdef void apply_chunk(const NormJob* job, Chunk* chunk, Py_ssize_t first, Py_ssize_t count) noexcept nogil:
    cdef fn_sets pieces = pieces_of(job, count)
    cdef Py_ssize_t number, run, place, weight, at = first * job.shape.apart * job.itemsize
    # what was not read for its sums before is fetched, where runs follow each other
    cdef Py_ssize_t ahead = GIVEN_BYTES // job.itemsize if job.given and pieces.runs == 1 else 0
    cdef const char* weights = NULL
    cdef const char* offsets = NULL
    cdef fn_line line
    line.open = False
    if job.staged or not in_loops(job) or in_blocks(job):
        apply_blocks(job, chunk, first, count)
    elif job.streamed:
        for run in range(pieces.runs):
            for number in range(pieces.sets):
                if job.weights != NULL:
                    weights = job.weights + first_weight(job, first + number) * job.itemsize
                    offsets = job.offsets + first_weight(job, first + number) * job.itemsize
                place = at + (number * pieces.apart + run * pieces.stride) * job.itemsize
                line.more = number + 1 < pieces.sets
                job.loops.stream(job.x + place, job.result + place, pieces.n, chunk.k + number * job.itemsize,
                                 chunk.width, job.kind, job.slope, weights, offsets, &line, NULL, ahead, True, 0.0,
                                 NULL, NULL)
    elif job.weights == NULL:
        job.loops.apply(job.x + at, job.result + at, &pieces, chunk.k, chunk.width, job.kind, job.slope)
    else:
        for number in range(count):  # groups, whose gammas differ; rows are written by write_sets
            place = at + number * job.shape.apart * job.itemsize
            weight = first_weight(job, first + number) * job.itemsize
            job.loops.row_apply(job.x + place, job.result + place, 1, job.shape.n, chunk.k + number * job.itemsize,
                                chunk.width, job.weights + weight, job.offsets + weight)


cdef void forward_sets(const NormJob* job, Chunk* chunk, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    cdef const double* mean = chunk.mean
    cdef const double* invstd = chunk.invstd
    cdef char* k = chunk.k
    cdef Py_ssize_t count
    cdef bint kept = keeps_coefficients(job)
    if kept:
        chunk_coefficients(job, chunk, 0, job.groups, job.mean, job.invstd)
    while begin < end:
        count = chunk_sets(job, begin, end)
        if job.given:
            mean = job.mean + begin % job.groups
            invstd = job.invstd + begin % job.groups
        else:
            chunk_statistics(job, chunk, begin, count)
        if kept:
            chunk.k = k + begin % job.groups * job.itemsize
        elif job.result != NULL:
            chunk_coefficients(job, chunk, begin, count, mean, invstd)
        if job.result != NULL:
            apply_chunk(job, chunk, begin, count)
        begin += count
    if gathers(job):
        job.level.store_rest(&chunk.gathered, job.result + end * job.shape.apart * job.itemsize)


cdef inline bint sums_while_writing(const NormJob* job) noexcept nogil:
    """Whether there are results to write, as they are computed, while the next sets are summed."""
    return not job.given and job.result != NULL and not job.staged and in_loops(job)


cdef inline bint written_together(const NormJob* job) noexcept nogil:
    """Whether `write_sets` takes the sets: rows, and on a mesh channels and their groups."""
    return (sums_while_writing(job) and not job.streamed and job.kind == FN_PLAIN and job.shape.runs == 1
            and (rows_share(job) or (job.weights == NULL and HAS_MESH)))


cdef void write_sets(const NormJob* job, Chunk* chunk, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """forward_sets in the caches: while the results of some sets are written, the next ones are summed, because to read and to
    write takes less time together than after one another."""
    cdef Py_ssize_t count = chunk_sets(job, begin, end), coming, at
    chunk_statistics(job, chunk, begin, count)
    while count:
        coming = chunk_sets(job, begin + count, end)
        at = begin * job.shape.n * job.itemsize
        chunk_coefficients(job, chunk, begin, count, chunk.mean, chunk.invstd)
        look_at_chunk(job, chunk, begin + count, coming)
        if job.weights != NULL:
            job.loops.row_write(job.x + at, job.result + at, count, job.shape.n, chunk.k, chunk.width, job.weights, job.offsets,
                                coming, chunk.shift, chunk.sums, chunk.sums + chunk.width)
        else:
            job.loops.write(job.x + at, job.result + at, count, job.shape.n, max(job.channels, <Py_ssize_t> 1), chunk.k,
                            chunk.width, coming, chunk.shift, chunk.sums, chunk.sums + chunk.width)
        begin += count
        count = coming
        if count:
            finish_chunk(job, chunk, begin, count)


cdef void stream_sets(const NormJob* job, Chunk* chunk, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """forward_sets past the caches: while the results of some sets are written, the next ones are summed."""
    cdef fn_sets pieces = pieces_of(job, 1), run_shape = one_run(pieces.n)
    cdef Py_ssize_t count = 0, coming, number, piece, run, at, ahead, apart = job.shape.apart * job.itemsize
    cdef const char* weights = NULL
    cdef const char* offsets = NULL
    cdef const char* following
    cdef bint near = fn_stays_near(&pieces, job.itemsize)
    cdef fn_line line
    line.open = False
    while True:
        coming = chunk_sets(job, begin + count, end)
        if count:
            finish_chunk(job, chunk, begin, count)
            chunk_coefficients(job, chunk, begin, count, chunk.mean, chunk.invstd)
        elif not coming:
            return
        look_at_chunk(job, chunk, begin + count, coming)
        ahead = pieces.stride if pieces.runs > 1 else coming * job.shape.apart
        for run in range(pieces.runs):
            for number in range(max(count, coming)):
                if job.weights != NULL:
                    weights = job.weights + first_weight(job, begin + number) * job.itemsize
                    offsets = job.offsets + first_weight(job, begin + number) * job.itemsize
                for piece in range(pieces.sets):
                    at = (begin + number) * apart + (piece * pieces.apart + run * pieces.stride) * job.itemsize
                    following = job.x + at + count * apart if number < coming else NULL
                    if number < count:
                        line.more = piece + 1 < pieces.sets or number + 1 < count or (pieces.runs == 1 and coming > 0)
                        if pieces.runs > 1:  # ends within lines that are read before they are stored
                            fn_prefetch(job.result + at + AHEAD_RUNS * pieces.stride * job.itemsize)
                            fn_prefetch(job.result + at + (AHEAD_RUNS * pieces.stride + pieces.n) * job.itemsize)
                        job.loops.stream(job.x + at, job.result + at, pieces.n,
                                         chunk.k + (number * pieces.sets + piece) * job.itemsize, chunk.width,
                                         job.kind, job.slope, weights, offsets, &line, following, ahead, near,
                                         chunk.shift[number], chunk.sums + number, chunk.sums + chunk.width + number)
                    else:
                        job.loops.sums(following, &run_shape, chunk.shift + number, chunk.sums + number,
                                       chunk.sums + chunk.width + number)
        begin += count
        count = coming


# The job.

cdef void plan_sets(NormJob* job, Py_ssize_t sets, Py_ssize_t groups, Py_ssize_t channels, Py_ssize_t runs,
                    Py_ssize_t inner) noexcept nogil:
    """`sets` sets, `groups` of them in a sample, each of `channels` channels of `runs` runs of `inner` elements.

    Either channels or runs is 1: several runs are the samples of a batch, and then the whole batch is one sample here.
    With 0 channels gamma and beta belong to the elements.
    """
    cdef Py_ssize_t samples = sets // groups, least = ROWS if channels == 0 and job.dy != NULL else 1, together = TOGETHER_VALUES
    if job.streamed and runs > 1 and inner <= BESIDE_RUN:
        together = min(BESIDE_BYTES // job.itemsize, max(together, runs * BESIDE_VALUES))
    job.by_set = True
    job.sets = sets
    job.groups = groups
    job.channels = channels
    job.inner = inner
    job.shape.n = max(channels, <Py_ssize_t> 1) * inner
    job.shape.apart = job.shape.n
    job.shape.runs = runs
    job.shape.stride = groups * inner if runs > 1 else 0
    job.count = <double> runs * <double> job.shape.n
    job.nanoseconds += work(SET_COST, sets, 4)
    job.most = max(least, min(FN_SETS // max(channels, <Py_ssize_t> 1), together // (runs * job.shape.n)))
    if channels:
        job.slices = groups * runs * job.shape.n // SLICE_VALUES
        if runs > 1 and parts_worth(job.nanoseconds) > 1:  # as many for every thread
            job.slices = count_of(max(job.slices, <Py_ssize_t> 1), current_threads()) * current_threads()
    else:
        job.slices = groups * job.shape.n // SPREAD_VALUES
    job.slices = max(<Py_ssize_t> 1, min(min(<Py_ssize_t> SLICES, groups), job.slices))
    job.block = max(max(least, (samples + SET_BLOCKS - 1) // SET_BLOCKS),
                    (SHORT_VALUES if is_short(job) else SLICE_VALUES) * job.slices // (groups * runs * job.shape.n))
    job.blocks = (samples + job.block - 1) // job.block


cdef inline Py_ssize_t units_of(const NormJob* job) noexcept nogil:
    """Of work: a slice of a block of samples backward, a set forward."""
    return job.blocks * job.slices if job.dy != NULL else job.sets


cdef Py_ssize_t scratch_of_sets(NormJob* job) noexcept:
    """Doubles of scratch: a room for each part, and the blocks' gradients."""
    job.parts = parts_for(job.nanoseconds, job.sets * job.shape.runs if in_passes(job) else units_of(job))
    job.room_size = 0 if is_short(job) else CHUNK_ARRAYS * chunk_width(job)
    if job.room_size and job.dy != NULL and job.channels == 0:
        job.room_size += (2 if rows_share(job) else job.most) * job.shape.n
    if in_passes(job):
        return job.parts * job.room_size + scratch_of_passes(job)
    return job.parts * job.room_size + (2 * gradient_width(job) * job.blocks if job.dy != NULL else 0)


cdef void lay_out_sets(NormJob* job, double* scratch) noexcept:
    job.room = scratch
    job.partial = scratch + job.parts * job.room_size
    job.dgamma = job.partial
    job.dbeta = job.partial + gradient_width(job)


cdef void clear_gradients(const NormJob* job, Py_ssize_t unit) noexcept nogil:
    """Those that a unit of work adds to."""
    cdef Py_ssize_t width = gradient_width(job), each = width // job.groups, slice = unit % job.slices
    cdef Py_ssize_t begin = job.groups * slice // job.slices, end = job.groups * (slice + 1) // job.slices
    cdef double* gradients = job.partial + unit // job.slices * 2 * width + begin * each
    memset(gradients, 0, (end - begin) * each * sizeof(double))
    memset(gradients + width, 0, (end - begin) * each * sizeof(double))


cdef void set_part(void* context, int part) noexcept nogil:
    cdef const NormJob* job = <const NormJob*> context
    cdef Chunk chunk
    cdef Py_ssize_t units = units_of(job), unit
    cdef Py_ssize_t begin = units * part // job.parts, end = units * (part + 1) // job.parts
    if job.dy != NULL:
        for unit in range(begin, end):
            clear_gradients(job, unit)
    if is_short(job):
        short_part(job, begin, end)
    else:
        open_chunk(job, part, &chunk)
        if job.dy != NULL:
            for unit in range(begin, end):
                backward_unit(job, &chunk, unit)
        elif overlapped(job) and sums_while_writing(job):
            stream_sets(job, &chunk, begin, end)
        elif written_together(job):
            write_sets(job, &chunk, begin, end)
        else:
            forward_sets(job, &chunk, begin, end)
    if job.streamed:
        fn_stream_fence()


cdef void add_blocks(void* context, int part) noexcept nogil:
    """Add the blocks' gradients to those of the first, some of them at a time."""
    cdef const NormJob* job = <const NormJob*> context
    cdef Py_ssize_t width = 2 * gradient_width(job), begin = width * part // job.parts, last = width * (part + 1) // job.parts
    cdef Py_ssize_t block, i, end
    while begin < last:
        end = min(last, begin + NEAR_VALUES)
        for block in range(1, job.blocks):
            for i in range(begin, end):
                job.partial[i] += job.partial[block * width + i]
        begin = end


cdef void run_sets(NormJob* job) noexcept nogil:
    cdef Py_ssize_t width = 2 * gradient_width(job)
    cdef Py_ssize_t i
    if in_passes(job):
        run_passes(job)
        return
    if job.dy == NULL and job.shape.runs > 1 and in_blocks(job):
        job.streamed = False  # only few such runs follow each other
    job.moderate = True
    for i in range(job.groups * job.channels if job.dy != NULL else 0):
        job.moderate &= not fn_is_extreme(job.gamma[i], 1e15)
    fn_parallel(set_part, job, job.parts)
    if job.dy != NULL and job.blocks > 1:
        job.parts = parts_for(work(ADD_COST, width * job.blocks, 8), width)
        fn_parallel(add_blocks, job, job.parts)
