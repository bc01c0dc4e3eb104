# Batch norm of many samples of small images, in two passes through the data in the order of memory: sums of all channels, sample by
# sample, then all results. A chunk of channels, as normalization_sets.pxi takes them, would visit every sample for a few hundred
# bytes, each time in other pages, whose addresses the processor has to look up anew: that takes longer than to read all once more.
#
# Sums are of fixed blocks of samples, and the blocks' sums are added in their order, so their bits depend on the shape alone.

cdef enum:
    PASS_AHEAD = 8192  # bytes that statistics fetch ahead
    FOLDED_RUN = 1024  # bytes of a run below which adding up 32 lanes takes longer than summing it in 8 of them does

cdef struct Passes:
    const NormJob* channels  # the job, whose sets are the channels
    NormJob runs             # the same with every run as a set of its own, of given statistics
    double* sums             # three for each channel of every block


cdef inline Py_ssize_t scratch_of_passes(const NormJob* job) noexcept nogil:
    """Doubles besides the rooms: gradients of gamma and beta, and the blocks' sums."""
    return (2 + 3 * SET_BLOCKS) * job.groups


cdef void open_channels(const NormJob* job, Py_ssize_t first, Chunk* chunk) noexcept nogil:
    """A chunk that begins with channel `first`; its arrays are parts of those of all channels."""
    lay_out_chunk(chunk, job.room, job.groups)
    chunk.mean += first
    chunk.var += first
    chunk.invstd += first
    chunk.shift += first
    chunk.sums += first
    chunk.gradients += first
    chunk.doubtful += first
    chunk.k += first * job.itemsize
    chunk.linear += first * job.itemsize


cdef void sum_block(const Passes* passes, Py_ssize_t block) noexcept nogil:
    """The sums of the channels in one block of samples."""
    cdef const NormJob* job = &passes.runs
    cdef double* sums = passes.sums + block * 3 * job.groups
    cdef Chunk chunk
    cdef fn_sets shape = job.shape
    cdef Py_ssize_t sample, turn, channel, number
    cdef const char* x
    shape.stride = PASS_AHEAD // job.itemsize  # what norm_sums fetches
    memset(sums, 0, 3 * job.groups * sizeof(double))
    for sample in range(block * job.block, min((block + 1) * job.block, passes.channels.shape.runs)):
        for turn in range(count_of(job.groups, FN_SETS)):
            channel = turn * FN_SETS
            number = sample * job.groups + channel
            shape.sets = min(<Py_ssize_t> FN_SETS, job.groups - channel)
            open_channels(job, channel, &chunk)
            chunk.sums = sums + channel
            if job.dy == NULL:
                x = job.x + number * shape.n * job.itemsize
                if shape.n * job.itemsize < FOLDED_RUN:
                    job.loops.run_sums(x, shape.sets, shape.n, shape.stride, chunk.shift, chunk.sums, chunk.sums + chunk.width)
                else:
                    job.loops.sums(x, &shape, chunk.shift, chunk.sums, chunk.sums + chunk.width)
            else:
                chunk_sums(job, &chunk, number, shape.sets, NULL)


cdef void sum_blocks(void* context, int part) noexcept nogil:
    """The first pass."""
    cdef const Passes* passes = <const Passes*> context
    cdef Py_ssize_t blocks = passes.runs.blocks, parts = min(<Py_ssize_t> passes.runs.parts, blocks), block
    for block in range(blocks * part // parts, blocks * (part + 1) // parts):
        sum_block(passes, block)


cdef void finish_channels(void* context, int part) noexcept nogil:
    """Of some channels the statistics, or gradients of gamma and beta and the linear form of dx, or where that is doubtful, dx."""
    cdef const Passes* passes = <const Passes*> context
    cdef const NormJob* job = passes.channels
    cdef Py_ssize_t parts = min(<Py_ssize_t> job.parts, job.groups)
    cdef Py_ssize_t first = job.groups * part // parts, count = job.groups * (part + 1) // parts - first, block, i, j
    cdef Chunk chunk
    cdef bint doubtful
    open_channels(job, first, &chunk)
    for j in range(3):
        memset(chunk.sums + j * job.groups, 0, count * sizeof(double))
        for block in range(passes.runs.blocks):
            for i in range(count):
                chunk.sums[j * job.groups + i] += passes.sums[(3 * block + j) * job.groups + first + i]
    if job.dy == NULL:
        finish_chunk(job, &chunk, first, count)
        return
    doubtful = chunk_forms(job, &chunk, first, count, job.mean + first) and job.itemsize == 4
    for i in range(count):
        if doubtful and chunk.doubtful[i]:
            redo_set(job, &chunk, first, i, job.mean[first + i], <const float*> chunk.k + i)
        job.dgamma[first + i] = chunk.gradients[i]
        job.dbeta[first + i] = chunk.gradients[chunk.width + i]


cdef void write_gradients(void* context, int part) noexcept nogil:
    """The second pass of gradients: dx, but of doubtful channels, which have it."""
    cdef const NormJob* job = &(<const Passes*> context).runs
    cdef Chunk chunk
    cdef Py_ssize_t number = job.sets * part // job.parts, end = job.sets * (part + 1) // job.parts, channel, last, some
    open_channels(job, 0, &chunk)
    while number < end:
        channel = number % job.groups
        last = min(job.groups, channel + end - number)
        some = 0
        while channel + some < last and not (job.itemsize == 4 and chunk.doubtful[channel + some]):
            some += 1
        if some:
            back_apply_sets(job, &chunk, number - channel, channel, some)
        number += max(some, <Py_ssize_t> 1)
    if job.streamed:
        fn_stream_fence()


cdef void run_passes(NormJob* job) noexcept nogil:
    cdef Passes passes
    cdef Chunk chunk
    passes.channels = job
    passes.sums = job.partial + 2 * job.groups
    passes.runs = job[0]
    passes.runs.given = True
    plan_sets(&passes.runs, job.groups * job.shape.runs, job.groups, 1, 1, job.inner)
    open_channels(job, 0, &chunk)
    if job.dy == NULL:
        look_at_chunk(job, &chunk, 0, job.groups)
    else:
        chunk_coefficients(job, &chunk, 0, job.groups, job.mean, job.invstd)
    fn_parallel(sum_blocks, &passes, <int> min(<Py_ssize_t> job.parts, passes.runs.blocks))
    fn_parallel(finish_channels, &passes, <int> min(<Py_ssize_t> job.parts, job.groups))
    if job.dy != NULL:
        fn_parallel(write_gradients, &passes, job.parts)
    elif job.result != NULL:
        fn_parallel(set_part, &passes.runs, job.parts)
