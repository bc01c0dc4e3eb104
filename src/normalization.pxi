# Batch normalization: how an array is cut into pieces, and which loops run over them.
#
# x is seen as (outer, channels, inner). Where the runs of a channel are long, a channel is a unit of work: its statistics,
# its coefficients and its results are computed while it is in the L2 cache. Where they are short (inner is 1 for (N, D) and
# channels-last arrays), the array is a matrix of channels * inner columns, cut into tiles of columns and blocks of rows;
# all sums come first, then all results. Units depend on the shape alone and sums of blocks are added in the blocks' order,
# so the result has the same bits with any number of threads.

from libc.math cimport isfinite
from libc.stdlib cimport free, malloc

from fastnn._table import ACTIVATIONS

cdef enum:
    NORM_LANES = 32            # of the run loops
    COEFFICIENTS = 6      # scale, shift, high, low, bias, centre
    TOGETHER = 32         # most channels, or rows, that are taken together
    RUN = 32              # inner length from which on a channel is a unit
    COLUMNS = 1024        # most columns of a tile; of float64 half as many
    MERGED = 256          # columns up to which rows of a narrow matrix are taken together
    BLOCKS = 32           # most blocks of rows
    NORM_STREAM_BYTES = 6 << 20  # results from this size on bypass the caches: they pay with a read before every write else
    BLOCK_VALUES = 32768  # least values of a block of rows, where the array has as many
    SCRATCH = 1024        # doubles of per-channel scratch that live on the stack

cdef double NORM_NANOSECONDS = 0.3  # an element costs about this, in either direction

cdef struct NormJob:
    const fn_level* level
    const fn_norm* loops
    int itemsize
    Py_ssize_t outer, channels, inner
    const char* x
    const char* dy       # NULL in the forward direction
    char* result         # y or dx; NULL where statistics alone are asked for
    bint statistics      # False: mean and invstd are given
    bint streamed
    bint staged          # the result may not be written before its block has been read
    int kind             # activation inside the loops
    int row              # another activation: its row in the table, or -1
    double slope
    double eps
    const double* gamma
    const double* beta
    double* mean
    double* var
    double* invstd
    double* shift
    double* table        # coefficients of every channel, unless a unit computes its own
    bint by_run          # inference, where a run is a unit
    double* dgamma
    double* dbeta
    double* partial      # [block][sums, products, squares][channel]
    bint fast            # backward in float arithmetic, for channels that allow it
    double* exact        # whether a channel does not
    Py_ssize_t repeat, tile, tiles, block, blocks
    bint applying        # second phase of the column form
    int parts

cdef double row_defaults[FN_ROWS][2]
cdef bint row_saves_output[FN_ROWS]
cdef dict fused_rows = {}

for _number, _row in enumerate(ACTIVATIONS):
    for _index, _param in enumerate(_row.params):
        row_defaults[<int> _number][<int> _index] = _param.default
    row_saves_output[<int> _number] = _row.saved == "y"
    if not _row.public:
        fused_rows[_row.name] = _number


# Block transport.

cdef inline void emit(const fn_level* level, bint streamed, char* place, const char* block, Py_ssize_t nbytes) noexcept nogil:
    """Copy a finished block to its place, past the caches where the result is streamed."""
    cdef Py_ssize_t head
    if streamed:
        head = (-<Py_ssize_t> place) & (CACHE_LINE - 1)
        if head < nbytes:
            memcpy(place, block, head)
            level.stream(place + head, block + head, nbytes - head)
            return
    memcpy(place, block, nbytes)


cdef inline void activate_block(const NormJob* job, char* z, Py_ssize_t n) noexcept nogil:
    """z = activation(z) for an activation that is not inside the loops."""
    cdef fn_block copy
    cdef int dtype = FN_SINGLE if job.itemsize == 4 else FN_DOUBLE
    n = padded(n)
    memcpy(copy.bytes, z, n * job.itemsize)
    job.level.map[job.row][<int> FN_FORWARD][dtype](copy.bytes, copy.bytes, z, n, row_defaults[job.row])


cdef inline void backward_block(const NormJob* job, const char* dy, char* z, Py_ssize_t n) noexcept nogil:
    """z = dL/dz from dL/dy and z."""
    cdef fn_block saved, g
    cdef int dtype = FN_SINGLE if job.itemsize == 4 else FN_DOUBLE
    if row_saves_output[job.row]:
        activate_block(job, z, n)
    memcpy(saved.bytes, z, padded(n) * job.itemsize)
    memcpy(g.bytes, dy, n * job.itemsize)
    memset(g.bytes + n * job.itemsize, 0, (padded(n) - n) * job.itemsize)
    job.level.map[job.row][<int> FN_BACKWARD][dtype](g.bytes, saved.bytes, z, padded(n), row_defaults[job.row])


# The run form: one channel is one unit.

cdef void apply_run(const NormJob* job, const char* x, const char* dy, char* result, double mean, const double* linear,
                    const char* k, Py_ssize_t width) noexcept nogil:
    cdef fn_block block, g
    cdef Py_ssize_t start = 0, n, most = BLOCK_BYTES // job.itemsize
    cdef bint through = job.streamed or job.staged or job.row >= 0
    cdef char* place
    if dy == NULL and job.streamed and not job.staged and job.row < 0:
        # the next channel is what will be read next, and in memory it follows
        job.loops.stream(x, result, job.inner, k, width, job.kind, job.slope, job.inner)
        return
    while start < job.inner:
        n = min(most, job.inner - start) if through else job.inner
        place = block.bytes if through else result + start * job.itemsize
        if dy == NULL:
            job.loops.apply(x + start * job.itemsize, place, n, k, width, job.kind, job.slope)
            if job.row >= 0:
                activate_block(job, place, n)
        elif job.row < 0:
            job.loops.back_apply(dy + start * job.itemsize, x + start * job.itemsize, place, n, mean, linear[0], linear[1],
                                 linear[2], k, width, job.kind, job.slope)
        else:
            job.loops.apply(x + start * job.itemsize, g.bytes, n, k, width, FN_PLAIN, 0.0)
            backward_block(job, dy + start * job.itemsize, g.bytes, n)
            job.loops.back_apply(g.bytes, x + start * job.itemsize, place, n, mean, linear[0], linear[1], linear[2], k, width,
                                 FN_PLAIN, 0.0)
        if through:
            emit(job.level, job.streamed, result + start * job.itemsize, block.bytes, n * job.itemsize)
        start += n


cdef void add_back_sums(const NormJob* job, const char* x, const char* dy, double mean, const char* k, double* lanes) noexcept nogil:
    cdef fn_block g
    cdef Py_ssize_t stride = job.channels * job.inner, run, piece, start, n, most = BLOCK_BYTES // job.itemsize
    if job.row < 0:
        job.loops.back_sums(dy, x, job.outer, stride, job.inner, mean, k, 1, job.kind, job.slope, lanes)
        return
    for run in range(job.outer):
        for piece in range((job.inner + most - 1) // most):
            start = piece * most
            n = min(most, job.inner - start)
            job.loops.apply(x + start * job.itemsize, g.bytes, n, k, 1, FN_PLAIN, 0.0)
            backward_block(job, dy + start * job.itemsize, g.bytes, n)
            job.loops.back_sums(g.bytes, x + start * job.itemsize, 1, n, n, mean, k, 1, FN_PLAIN, 0.0, lanes)
        x += stride * job.itemsize
        dy += stride * job.itemsize


cdef inline double value_at(const NormJob* job, Py_ssize_t i) noexcept nogil:
    """x[i], the shift of a channel's statistics; 0 for one that is not finite, so that the mean is what the sum makes it."""
    cdef double value = (<const float*> job.x)[i] if job.itemsize == 4 else (<const double*> job.x)[i]
    return value if isfinite(value) else 0.0


cdef inline void linear_form(const NormJob* job, Py_ssize_t c, double* linear, Py_ssize_t width) noexcept nogil:
    """dx = linear[0] * dz + linear[1] * (x - mean) + linear[2], from the channel's dgamma and dbeta.

    dx = gamma * invstd * (dz - dbeta / n - (x - mean) * invstd * dgamma / n)

    A single value has no gradient; said outright, because the terms would leave a rounding error.
    """
    cdef double n = <double> job.outer * <double> job.inner, r = job.invstd[c], a = job.gamma[c] * r if n > 1.0 else 0.0
    linear[0] = a
    linear[width] = -(a * (job.dgamma[c] / n)) * r
    linear[2 * width] = -a * (job.dbeta[c] / n)


cdef bint terms_cancel(const NormJob* job, Py_ssize_t c, double sum, double product, double energy, double scale,
                       double centre) noexcept nogil:
    """Sets dgamma and dbeta from the channel's sums of g, g * u and g * g; whether dx needs more than float arithmetic.

    dx is g without its mean and its part along x_hat. Where hardly anything is left (two values a channel, or a gradient
    that is linear in x) the rounding errors of float would be all there is, so that the channel is done in double. Also
    where a square, or a coefficient, may have left float's range, and where something is not finite.
    """
    cdef double n = <double> job.outer * <double> job.inner, r = job.invstd[c], a = job.gamma[c] * r
    cdef double dgamma = (product - (job.mean[c] * scale - centre) * sum) / scale * r
    job.dgamma[c] = dgamma
    job.dbeta[c] = sum
    if a < 0.0:
        a = -a
    return not (energy > 1e-30 * n and energy < 1e30 and energy - (sum * sum + 2.0 * dgamma * dgamma) / n > energy / 64.0
                and (a == 0.0 or (a > 1e-30 and a < 1e30)))


cdef inline void fast_form(const NormJob* job, Py_ssize_t c, double scale, double centre, float* linear, Py_ssize_t width) noexcept nogil:
    """linear_form for u = x * scale - centre in place of x - mean."""
    cdef double exact[3]
    linear_form(job, c, exact, 1)
    exact[1] = exact[1] / scale
    linear[0] = <float> exact[0]
    linear[width] = <float> exact[1]
    linear[2 * width] = <float> (exact[2] - exact[1] * (job.mean[c] * scale - centre))


cdef bint backward_fast(const NormJob* job, Py_ssize_t c, const float* k) noexcept nogil:
    """dx of one channel in float arithmetic, unless its terms cancel."""
    cdef fn_block block
    cdef double lanes[3 * NORM_LANES]
    cdef float linear[3]
    cdef Py_ssize_t run, done, n, at = c * job.inner * sizeof(float), stride = job.channels * job.inner
    memset(lanes, 0, sizeof(lanes))
    job.loops.back_sums_fast(job.dy + at, job.x + at, job.outer, stride, job.inner, k, job.kind, job.slope, lanes)
    job.level.norm_fold(lanes, 3)
    if terms_cancel(job, c, lanes[0], lanes[NORM_LANES], lanes[2 * NORM_LANES], k[0], k[5]):
        return False
    fast_form(job, c, k[0], k[5], linear, 1)
    for run in range(job.outer):
        if job.staged:
            for done in range(0, job.inner, 1024):
                n = min(<Py_ssize_t> 1024, job.inner - done)
                job.loops.back_apply_fast(job.dy + at + done * 4, job.x + at + done * 4, block.bytes, n, linear, k, job.kind,
                                          job.slope)
                emit(job.level, job.streamed, job.result + at + done * 4, block.bytes, n * 4)
        elif job.streamed:
            job.loops.back_stream_fast(job.dy + at, job.x + at, job.result + at, job.inner, linear, k, job.kind, job.slope)
        else:
            job.loops.back_apply_fast(job.dy + at, job.x + at, job.result + at, job.inner, linear, k, job.kind, job.slope)
        at += stride * sizeof(float)
    return True


cdef void run_channel(const NormJob* job, Py_ssize_t c) noexcept nogil:
    cdef double lanes[2 * NORM_LANES]
    cdef double linear[3]
    cdef double k[COEFFICIENTS]
    cdef double shift
    cdef Py_ssize_t run, first = c * job.inner, stride = job.channels * job.inner * job.itemsize
    cdef const char* x = job.x + first * job.itemsize
    cdef const char* dy = NULL
    if job.statistics:
        memset(lanes, 0, sizeof(lanes))
        shift = value_at(job, first)
        job.loops.sums(x, job.outer, job.channels * job.inner, job.inner, shift, lanes)
        job.level.norm_fold(lanes, 2)
        job.level.norm_finish(lanes, lanes + NORM_LANES, &shift, <double> job.outer * <double> job.inner, job.eps, 1, job.mean + c,
                              job.var + c, job.invstd + c)
    if job.result == NULL:
        return
    job.loops.coefficients(job.mean + c, job.invstd + c, job.gamma + c, job.beta + c, 1, k, 1)
    if job.dy != NULL:
        if job.fast and backward_fast(job, c, <const float*> k):
            return
        dy = job.dy + first * job.itemsize
        memset(lanes, 0, sizeof(lanes))
        add_back_sums(job, x, dy, job.mean[c], <const char*> k, lanes)
        job.level.norm_fold(lanes, 2)
        job.dbeta[c] = lanes[0]
        job.dgamma[c] = lanes[NORM_LANES] * job.invstd[c]
        linear_form(job, c, linear, 1)
    for run in range(job.outer):
        apply_run(job, x + run * stride, dy + run * stride if dy != NULL else NULL,
                  job.result + first * job.itemsize + run * stride, job.mean[c], linear, <const char*> k, 1)


cdef void run_units(const NormJob* job, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """Inference: runs in the order of memory, with coefficients known before."""
    cdef Py_ssize_t unit, at
    for unit in range(begin, end):
        at = unit * job.inner * job.itemsize
        apply_run(job, job.x + at, NULL, job.result + at, 0.0, NULL,
                  <const char*> job.table + unit % job.channels * job.itemsize, job.channels)


# The column form. A tile is `tile` channels, that is tile * inner columns; a narrow matrix is read `repeat` rows at a time
# as one row of the repeated columns.

cdef void spread(char* columns, const char* values, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t repeat, int itemsize) noexcept nogil:
    """A value for each of n channels to a value for each column."""
    cdef Py_ssize_t c, i
    cdef char* place = columns
    if inner == 1:
        memcpy(columns, values, n * itemsize)
    else:
        for c in range(n):
            for i in range(inner):
                if itemsize == 4:
                    (<float*> place)[i] = (<const float*> values)[c]
                else:
                    (<double*> place)[i] = (<const double*> values)[c]
            place += inner * itemsize
    for i in range(1, repeat):
        memcpy(columns + i * n * inner * itemsize, columns, n * inner * itemsize)


cdef void gather(double* values, const double* columns, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t repeat) noexcept nogil:
    """The sum of each channel's columns."""
    cdef Py_ssize_t c, i, j
    cdef double total
    if inner == 1 and repeat == 1:
        memcpy(values, columns, n * sizeof(double))
        return
    for c in range(n):
        total = 0.0
        for j in range(repeat):
            for i in range(inner):
                total += columns[(j * n + c) * inner + i]
        values[c] = total


cdef struct Tile:
    Py_ssize_t first, n          # channels
    Py_ssize_t columns, width    # of one row, and of `repeat` rows
    Py_ssize_t pitch             # of the arrays of k, whose first 16 values follow once more
    bint exact                   # whether some channel may not be done in float arithmetic
    double exacts[COLUMNS]       # which
    double shift[COLUMNS]        # or the mean, in the backward direction
    double linear[3 * (COLUMNS + 16)]
    float fast[3 * (COLUMNS + 16)]
    double k[COEFFICIENTS * (COLUMNS + 16)]


cdef void fill_tile(const NormJob* job, Tile* tile, Py_ssize_t number) noexcept nogil:
    """What every column of the tile needs in the present phase."""
    cdef double values[2 * COLUMNS]
    cdef double k[3 * COLUMNS]
    cdef Py_ssize_t c, i, inner = job.inner, repeat = job.repeat
    cdef int array
    cdef char* place
    cdef const float* coefficients = <const float*> job.table
    tile.first = number * job.tile
    tile.n = min(job.tile, job.channels - tile.first)
    tile.columns = tile.n * inner
    tile.width = tile.columns * repeat
    tile.pitch = tile.width + 16
    tile.exact = False
    if job.dy != NULL:
        spread(<char*> tile.shift, <const char*> (job.mean + tile.first), tile.n, inner, repeat, sizeof(double))
    elif not job.applying:
        for c in range(tile.n):
            values[c] = value_at(job, (tile.first + c) * inner)
        spread(<char*> tile.shift, <const char*> values, tile.n, inner, repeat, sizeof(double))
    if job.applying or (job.dy != NULL and (job.fast or job.kind != FN_PLAIN or job.row >= 0)):
        for array in range(COEFFICIENTS):
            place = <char*> tile.k + array * tile.pitch * job.itemsize
            spread(place, <const char*> job.table + (array * job.channels + tile.first) * job.itemsize, tile.n, inner, repeat,
                   job.itemsize)
            memcpy(place + tile.width * job.itemsize, place, min(tile.width, <Py_ssize_t> 16) * job.itemsize)
    if job.applying and job.fast:
        for c in range(tile.n):
            tile.exact = tile.exact or job.exact[tile.first + c] != 0.0
            i = tile.first + c
            fast_form(job, i, coefficients[i], coefficients[5 * job.channels + i], <float*> values + c, tile.n)
        for array in range(3):
            spread(<char*> (tile.fast + array * tile.pitch), <const char*> (<float*> values + array * tile.n), tile.n, inner,
                   repeat, sizeof(float))
        if tile.exact:
            spread(<char*> tile.exacts, <const char*> (job.exact + tile.first), tile.n, inner, repeat, sizeof(double))
    if job.applying and job.dy != NULL and (tile.exact or not job.fast):
        for c in range(tile.n):
            linear_form(job, tile.first + c, k + c, tile.n)
        for array in range(3):
            spread(<char*> (tile.linear + array * tile.pitch), <const char*> (k + array * tile.n), tile.n, inner, repeat,
                   sizeof(double))


cdef void column_rows(const NormJob* job, const Tile* tile, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t stride,
                      Py_ssize_t width, double* sums) noexcept nogil:
    """Sums or results of `rows` rows of `width` columns from element `first` on."""
    cdef fn_block block, g
    cdef Py_ssize_t most, row, n, at, pitch
    cdef const char* x = job.x + first * job.itemsize
    cdef const char* dy = job.dy + first * job.itemsize
    cdef char* result = job.result + first * job.itemsize
    cdef const char* k = <const char*> tile.k
    if not job.applying and (job.row < 0 or job.dy == NULL):
        if job.dy == NULL:
            job.loops.column_sums(x, rows, stride, width, tile.shift, sums, sums + COLUMNS)
        elif job.fast:
            job.loops.column_back_sums_fast(dy, x, rows, stride, width, k, tile.pitch, job.kind, job.slope, sums, sums + COLUMNS,
                                            sums + 2 * COLUMNS)
        else:
            job.loops.column_back_sums(dy, x, rows, stride, stride, width, tile.shift, k, tile.pitch, job.kind, job.slope, sums,
                                       sums + COLUMNS)
        return
    if job.dy == NULL and job.streamed and not job.staged and job.row < 0 and width == stride and width % 16 == 0:
        job.loops.column_stream(x, result, rows, width, k, tile.pitch, job.kind, job.slope)
        return
    if job.row < 0 and not (job.streamed or job.staged or tile.exact):
        if job.dy == NULL:
            job.loops.column_apply(x, result, rows, stride, stride, width, k, tile.pitch, job.kind, job.slope)
        elif job.fast:
            job.loops.column_back_apply_fast(dy, x, result, rows, stride, stride, width, tile.fast, k, tile.pitch, job.kind,
                                             job.slope)
        else:
            job.loops.column_back_apply(dy, x, result, rows, stride, stride, stride, width, tile.shift, tile.linear, k, tile.pitch,
                                        job.kind, job.slope)
        return
    most = max(1, BLOCK_BYTES // job.itemsize // width)
    row = 0
    while row < rows:
        n = min(most, rows - row)
        at = row * stride * job.itemsize
        if job.dy == NULL:
            job.loops.column_apply(x + at, block.bytes, n, stride, width, width, k, tile.pitch, job.kind, job.slope)
            if job.row >= 0:
                activate_block(job, block.bytes, n * width)
        elif job.fast:
            job.loops.column_back_apply_fast(dy + at, x + at, block.bytes, n, stride, width, width, tile.fast, k, tile.pitch,
                                             job.kind, job.slope)
            if tile.exact:
                job.loops.column_back_apply(dy + at, x + at, g.bytes, n, stride, stride, width, width, tile.shift, tile.linear, k,
                                            tile.pitch, job.kind, job.slope)
                for pitch in range(n * width):
                    if tile.exacts[pitch % width] != 0.0:
                        (<float*> block.bytes)[pitch] = (<const float*> g.bytes)[pitch]
        elif job.row < 0:
            job.loops.column_back_apply(dy + at, x + at, block.bytes, n, stride, stride, width, width, tile.shift, tile.linear, k,
                                        tile.pitch, job.kind, job.slope)
        else:
            # one row at a time: dy's rows lie apart
            n = 1
            job.loops.column_apply(x + at, g.bytes, 1, stride, width, width, k, tile.pitch, FN_PLAIN, 0.0)
            backward_block(job, dy + at, g.bytes, width)
            if not job.applying:
                job.loops.column_back_sums(g.bytes, x + at, 1, width, stride, width, tile.shift, k, tile.pitch, FN_PLAIN, 0.0,
                                           sums, sums + COLUMNS)
            else:
                job.loops.column_back_apply(g.bytes, x + at, block.bytes, 1, width, stride, width, width, tile.shift, tile.linear,
                                            k, tile.pitch, FN_PLAIN, 0.0)
        if job.applying:
            if width == stride:
                emit(job.level, job.streamed, result + at, block.bytes, n * width * job.itemsize)
            else:
                for pitch in range(n):
                    emit(job.level, job.streamed, result + at + pitch * stride * job.itemsize, block.bytes + pitch * width * job.itemsize,
                         width * job.itemsize)
        row += n


cdef void column_unit(const NormJob* job, const Tile* tile, Py_ssize_t number) noexcept nogil:
    """The rows of one block, in one tile."""
    cdef double sums[3 * COLUMNS]
    cdef int array
    cdef Py_ssize_t pitch = job.channels * job.inner
    cdef Py_ssize_t begin = number * job.block, rows = min(job.block, job.outer - begin)
    cdef Py_ssize_t whole = rows // job.repeat, rest = rows % job.repeat
    cdef Py_ssize_t first = begin * pitch + tile.first * job.inner
    cdef double* partial = job.partial + number * 3 * job.channels + tile.first
    if not job.applying:
        for array in range(3):
            memset(sums + array * COLUMNS, 0, tile.width * sizeof(double))
    column_rows(job, tile, first, whole, pitch * job.repeat, tile.width, sums)
    if rest:
        column_rows(job, tile, first + whole * pitch * job.repeat, 1, pitch * job.repeat, rest * pitch, sums)
    if not job.applying:
        for array in range(3 if job.fast else 2):
            gather(partial + array * job.channels, sums + array * COLUMNS, tile.n, job.inner, job.repeat)


cdef inline Py_ssize_t norm_units(const NormJob* job) noexcept nogil:
    if job.by_run:
        return job.outer * job.channels
    return job.channels if job.tiles == 0 else job.tiles * job.blocks


cdef void norm_part(void* context, int part) noexcept nogil:
    cdef const NormJob* job = <const NormJob*> context
    cdef Tile tile
    cdef Py_ssize_t units = norm_units(job)
    cdef Py_ssize_t begin = units * part // job.parts, end = units * (part + 1) // job.parts, unit, known = -1
    if job.by_run:
        run_units(job, begin, end)
    elif job.tiles == 0:
        for unit in range(begin, end):
            run_channel(job, unit)
    else:
        while begin < end:
            # The second phase goes backwards: what the first has read last is still in the cache.
            if job.applying:
                end -= 1
                unit = end
            else:
                unit = begin
                begin += 1
            if unit // job.blocks != known:
                known = unit // job.blocks
                fill_tile(job, &tile, known)
            column_unit(job, &tile, unit % job.blocks)
    if job.streamed:
        fn_stream_fence()


cdef void combine(const NormJob* job) noexcept nogil:
    """Add the blocks' sums in their order."""
    cdef const double* other
    cdef Py_ssize_t block, i
    for block in range(1, job.blocks):
        other = job.partial + block * 3 * job.channels
        for i in range((3 if job.fast else 2) * job.channels):
            job.partial[i] += other[i]


cdef void finish_statistics(const NormJob* job) noexcept nogil:
    cdef Py_ssize_t c
    for c in range(job.channels):
        job.shift[c] = value_at(job, c * job.inner)
    job.level.norm_finish(job.partial, job.partial + job.channels, job.shift, <double> job.outer * <double> job.inner, job.eps,
                          job.channels, job.mean, job.var, job.invstd)


cdef bint finish_gradients(const NormJob* job) noexcept nogil:
    """dgamma and dbeta; whether some channel has to be summed again, in double."""
    cdef const float* coefficients = <const float*> job.table
    cdef const double* sums = job.partial
    cdef const double* products = sums + job.channels
    cdef const double* squares = products + job.channels
    cdef Py_ssize_t c
    cdef bint again = False
    if not job.fast:
        for c in range(job.channels):
            if job.exact[c] != 0.0:
                job.dbeta[c] = sums[c]
                job.dgamma[c] = products[c] * job.invstd[c]
        return False
    for c in range(job.channels):
        job.exact[c] = terms_cancel(job, c, sums[c], products[c], squares[c], coefficients[c], coefficients[5 * job.channels + c])
        again = again or job.exact[c] != 0.0
    return again


cdef void fill_table(const NormJob* job) noexcept nogil:
    job.loops.coefficients(job.mean, job.invstd, job.gamma, job.beta, job.channels, job.table, job.channels)


cdef void plan_norm(NormJob* job) noexcept nogil:
    cdef Py_ssize_t columns = job.channels * job.inner
    job.tiles = 0
    job.blocks = 1
    if job.inner >= RUN:
        return
    job.repeat = max(1, min(MERGED // columns, job.outer // 64))
    job.tile = min(job.channels, BLOCK_BYTES // job.itemsize // job.inner)
    job.tiles = (job.channels + job.tile - 1) // job.tile
    job.block = max((job.outer + BLOCKS - 1) // BLOCKS, BLOCK_VALUES // min(columns, <Py_ssize_t> COLUMNS))
    job.block = (job.block + 4 * job.repeat - 1) // (4 * job.repeat) * (4 * job.repeat)
    job.blocks = (job.outer + job.block - 1) // job.block


cdef void run_norm(NormJob* job) noexcept nogil:
    cdef double nanoseconds = NORM_NANOSECONDS * <double> job.outer * <double> job.channels * <double> job.inner
    job.parts = parts_for(nanoseconds, norm_units(job))
    job.applying = False
    if not job.statistics and (job.tiles or job.by_run):
        fill_table(job)
    if job.tiles:
        if job.statistics or job.dy != NULL:
            fn_parallel(norm_part, job, job.parts)
            combine(job)
        if job.statistics:
            finish_statistics(job)
            if job.result != NULL:
                fill_table(job)
        elif job.dy != NULL and finish_gradients(job):
            job.fast = False
            fn_parallel(norm_part, job, job.parts)
            combine(job)
            finish_gradients(job)
            job.fast = True
        if job.result == NULL:
            return
        job.applying = True
    fn_parallel(norm_part, job, job.parts)


# The boundary. These functions take what needs no preparation: C-contiguous native float32 or float64 arrays that do not
# partly overlap, and arguments of the plain types. For anything else, mistakes included, they return None, and
# fastnn.normalization checks, converts and calls again.

cdef bint set_array(NormJob* job, object x, object axis) noexcept:
    cdef int number, i, ndim
    cdef Py_ssize_t* dims
    if not is_plain(x) or type(axis) is not int:
        return False
    ndim = cnp.PyArray_NDIM(<ndarray> x)
    if not -ndim <= <object> axis < ndim or ndim < 2:
        return False
    number = axis
    if number < 0:
        number += ndim
    dims = <Py_ssize_t*> cnp.PyArray_DIMS(<ndarray> x)
    job.outer = job.inner = 1
    job.channels = dims[number]
    for i in range(number):
        job.outer *= dims[i]
    for i in range(number + 1, ndim):
        job.inner *= dims[i]
    if job.outer * job.inner == 0 or job.channels == 0:
        return False
    job.x = cnp.PyArray_BYTES(<ndarray> x)
    job.itemsize = 4 if cnp.PyArray_TYPE(<ndarray> x) == cnp.NPY_FLOAT else 8
    job.level = current_level()
    job.loops = &job.level.norm[<int> FN_SINGLE if job.itemsize == 4 else <int> FN_DOUBLE]
    job.dy = NULL
    job.statistics = True
    job.kind = FN_PLAIN
    job.row = -1
    job.slope = 0.0
    job.staged = False
    job.by_run = False
    job.fast = False
    plan_norm(job)
    return True


cdef bint set_activation(NormJob* job, object name) noexcept:
    if name is None:
        return True
    if type(name) is not str:
        return False
    number = fused_rows.get(name)
    if number is None:
        return False
    if name == "relu":
        job.kind = FN_RELU
    elif name == "leaky_relu":
        job.kind = FN_LEAKY
        job.slope = row_defaults[<int> number][0]
    else:
        job.row = number
    return True


cdef bint set_eps(double* number, object eps) noexcept:
    if type(eps) is not float:
        return False
    number[0] = eps
    return isfinite(number[0]) and number[0] >= 0.0


cdef bint read_vector(object vector, Py_ssize_t n, double missing, double* values) noexcept:
    """A gamma or beta as doubles."""
    cdef Py_ssize_t i
    if vector is None:
        for i in range(n):
            values[i] = missing
        return True
    if not is_plain(vector) or cnp.PyArray_NDIM(<ndarray> vector) != 1 or cnp.PyArray_DIM(<ndarray> vector, 0) != n:
        return False
    if cnp.PyArray_TYPE(<ndarray> vector) == cnp.NPY_FLOAT:
        for i in range(n):
            values[i] = (<const float*> cnp.PyArray_DATA(<ndarray> vector))[i]
    else:
        memcpy(values, cnp.PyArray_DATA(<ndarray> vector), n * sizeof(double))
    return True


cdef inline double* statistics_of(object vector, Py_ssize_t n) noexcept:
    """The data of a plain float64 vector of length n, or NULL."""
    if (not is_plain(vector) or cnp.PyArray_TYPE(<ndarray> vector) != cnp.NPY_DOUBLE or cnp.PyArray_NDIM(<ndarray> vector) != 1
            or cnp.PyArray_DIM(<ndarray> vector, 0) != n):
        return NULL
    return <double*> cnp.PyArray_DATA(<ndarray> vector)


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
    cdef ndarray y = out if out is not None else cnp.PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x), 0)
    job.result = cnp.PyArray_BYTES(y)
    job.streamed = cnp.PyArray_NBYTES(x) >= NORM_STREAM_BYTES
    return y


cdef inline ndarray new_vector(cnp.npy_intp n, int dtype):
    return cnp.PyArray_EMPTY(1, &n, dtype, 0)


cdef ndarray gradient_array(const double* values, int ndim, cnp.npy_intp* shape, int dtype):
    cdef ndarray vector = cnp.PyArray_EMPTY(ndim, shape, dtype, 0)
    cdef Py_ssize_t i, n = cnp.PyArray_SIZE(vector)
    if dtype == cnp.NPY_FLOAT:
        for i in range(n):
            (<float*> cnp.PyArray_DATA(vector))[i] = <float> values[i]
    else:
        memcpy(cnp.PyArray_DATA(vector), values, n * sizeof(double))
    return vector


cdef void run_released(NormJob* job) noexcept:
    if NORM_NANOSECONDS * <double> job.outer * <double> job.channels * <double> job.inner < RELEASE_GIL:
        run_norm(job)
    else:
        with nogil:
            run_norm(job)


cdef double* scratch_for(Py_ssize_t n, double* few) except NULL:
    """Room for n doubles: the caller's array where it suffices, else the heap's."""
    cdef double* room
    if n <= SCRATCH:
        return few
    room = <double*> malloc(n * sizeof(double))
    if room == NULL:
        raise MemoryError
    return room


def batch_norm(x, gamma, beta, eps, axis, activation, out):
    """(y, mean, invstd), or None where the arguments need preparation."""
    cdef NormJob job
    cdef double few[SCRATCH]
    cdef double* room
    cdef ndarray y, mean, invstd
    cdef Py_ssize_t n
    if not (set_array(&job, x, axis) and set_activation(&job, activation) and set_eps(&job.eps, eps)
            and usable_result(<ndarray> x, out, &job.staged)):
        return None
    n = job.channels
    room = scratch_for((10 + 3 * job.blocks) * n, few)
    try:
        if not (read_vector(gamma, n, 1.0, room) and read_vector(beta, n, 0.0, room + n)):
            return None
        y = result_array(&job, <ndarray> x, out)
        mean = new_vector(n, cnp.NPY_DOUBLE)
        invstd = new_vector(n, cnp.NPY_DOUBLE)
        job.gamma = room
        job.beta = room + n
        job.var = room + 2 * n
        job.shift = room + 3 * n
        job.table = room + 4 * n
        job.partial = room + 10 * n
        job.mean = <double*> cnp.PyArray_DATA(mean)
        job.invstd = <double*> cnp.PyArray_DATA(invstd)
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
    cdef cnp.npy_intp n, i
    cdef int dtype
    if not (set_array(&job, x, axis) and set_activation(&job, activation) and is_plain(dy)
            and same_form(<ndarray> dy, <ndarray> x) and usable_result(<ndarray> x, out, &job.staged)
            and usable_result(<ndarray> dy, out, &job.staged)):
        return None
    n = job.channels
    job.mean = statistics_of(mean, n)
    job.invstd = statistics_of(invstd, n)
    if job.mean == NULL or job.invstd == NULL:
        return None
    room = scratch_for((11 + 3 * job.blocks) * n, few)
    try:
        if not (read_vector(gamma, n, 1.0, room) and read_vector(beta, n, 0.0, room + n)):
            return None
        dx = result_array(&job, <ndarray> x, out)
        job.dy = cnp.PyArray_BYTES(<ndarray> dy)
        job.statistics = False
        job.gamma = room
        job.beta = room + n
        job.dgamma = room + 2 * n
        job.dbeta = room + 3 * n
        job.exact = room + 4 * n
        job.table = room + 5 * n
        job.partial = room + 11 * n
        job.fast = job.itemsize == 4 and job.row < 0
        for i in range(n):
            job.exact[i] = 1.0
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
    if not (set_array(&job, x, axis) and set_activation(&job, activation) and set_eps(&job.eps, eps)
            and usable_result(<ndarray> x, out, &job.staged)):
        return None
    n = job.channels
    room = scratch_for(10 * n, few)
    try:
        if not (read_vector(gamma, n, 1.0, room) and read_vector(beta, n, 0.0, room + n)
                and read_vector(mean, n, 0.0, room + 2 * n) and read_vector(var, n, 0.0, room + 3 * n)):
            return None
        y = result_array(&job, <ndarray> x, out)
        job.gamma = room
        job.beta = room + n
        job.mean = room + 2 * n
        job.invstd = room + 3 * n
        job.statistics = False
        job.level.norm_invstd(job.invstd, job.eps, n)
        job.by_run = job.tiles == 0
        job.table = room + 4 * n
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
    n = job.channels
    room = scratch_for((2 + 3 * job.blocks) * n, few)
    try:
        mean = new_vector(n, cnp.NPY_DOUBLE)
        var = new_vector(n, cnp.NPY_DOUBLE)
        job.mean = <double*> cnp.PyArray_DATA(mean)
        job.var = <double*> cnp.PyArray_DATA(var)
        job.invstd = room
        job.shift = room + n
        job.partial = room + 2 * n
        job.result = NULL
        job.streamed = False
        job.eps = 0.0
        run_released(&job)
        return mean, var
    finally:
        if room != few:
            free(room)
