# Batch norm where the runs of a channel are short: (N, D) and channels-last arrays, where inner is 1, and small images.
#
# The array is a matrix of groups * inner columns and `outer` rows, cut into tiles of columns and blocks of rows; all
# sums come first, then all results. A tile is `tile` channels, that is tile * inner columns; a narrow matrix is read
# `repeat` rows at a time as one row of the repeated columns. Columns in which a channel is doubtful are summed and
# written once more in double, in strips. Results of few rows are written run by run, with coefficients of the channels.

cdef enum:
    MERGED = 256          # columns up to which rows of a narrow matrix are taken together
    WIDE = 2048           # columns up to which results are written in whole rows ...
    WIDEST = 8192         # ... past the caches, where a prefetcher loses its way in tiles of FN_COLUMNS
    BLOCKS = 32           # most blocks of rows
    BLOCK_VALUES = 32768  # least values of a block of rows, where the array has as many
    MOST_STRIPS = 256     # WIDEST // STRIP
    LINES_BYTES = 8192    # results from this size on are written in whole cache lines

cdef struct Tile:
    Py_ssize_t first, n          # channels
    Py_ssize_t columns, width    # of one row, and of `repeat` rows
    Py_ssize_t pitch             # of the arrays of k and linear, in whole cache lines; their first 16 values follow once more
    bint doubtful                # whether some strip is
    bint strips[MOST_STRIPS]     # which
    char* k                      # COEFFICIENTS arrays
    char* linear                 # 3 arrays
    double* shift                # `width` values; where k lies, which the sums of the forward pass do not need


cdef inline void repeat_each(char* columns, const char* values, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t itemsize) noexcept nogil:
    """Each of n values `inner` times, in whole vectors: what is too many makes room for the next value, or follows the last one."""
    cdef char eight[64]
    cdef Py_ssize_t c, i
    for c in range(n):
        for i in range(8):
            memcpy(eight + i * itemsize, values + c * itemsize, itemsize)
        for i in range(0, inner, 8):
            memcpy(columns + i * itemsize, eight, 8 * itemsize)
        columns += inner * itemsize


cdef void spread(char* columns, const char* values, Py_ssize_t n, Py_ssize_t inner, Py_ssize_t repeat,
                 int itemsize) noexcept nogil:
    """A value for each of n channels to a value for each column, and to 7 more."""
    cdef Py_ssize_t done = n * inner * itemsize, nbytes = done * repeat
    if inner == 1:
        memcpy(columns, values, n * itemsize)
    elif itemsize == 4:
        repeat_each(columns, values, n, inner, 4)
    else:
        repeat_each(columns, values, n, inner, 8)
    while done < nbytes:
        memcpy(columns + done, columns, min(done, nbytes - done))
        done += done


cdef void sum_columns(double* values, const double* columns, Py_ssize_t n, Py_ssize_t inner,
                 Py_ssize_t repeat) noexcept nogil:
    """The sum of each channel's columns."""
    cdef const double* place
    cdef double lanes[4]
    cdef Py_ssize_t c, i, j, lane
    if inner == 1:  # channel by channel is several times as slow
        memcpy(values, columns, n * sizeof(double))
        for j in range(1, repeat):
            for c in range(n):
                values[c] += columns[j * n + c]
        return
    for c in range(n):
        memset(lanes, 0, sizeof(lanes))  # an addition waits for the one before it
        for j in range(repeat):
            place = columns + (j * n + c) * inner
            for i in range(0, inner - 3, 4):
                for lane in range(4):
                    lanes[lane] += place[i + lane]
            for i in range(inner & -4, inner):
                lanes[i % 4] += place[i]
        values[c] = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])


cdef void spread_arrays(const NormJob* job, const Tile* tile, char* columns, const char* table, int first,
                        int end) noexcept nogil:
    """Some arrays of the table, one after the other, for the tile's columns."""
    cdef int array
    cdef char* place = columns + first * tile.pitch * job.itemsize
    for array in range(first, end):
        spread(place, table + (array * job.groups + tile.first) * job.itemsize, tile.n, job.inner, job.repeat,
               job.itemsize)
        memcpy(place + tile.width * job.itemsize, place, min(tile.width, <Py_ssize_t> 16) * job.itemsize)
        place += tile.pitch * job.itemsize


cdef void fill_tile(const NormJob* job, Tile* tile, Py_ssize_t number) noexcept nogil:
    """What every column of the tile needs in the present phase."""
    cdef Py_ssize_t c, i
    tile.first = number * job.tile
    tile.n = min(job.tile, job.groups - tile.first)
    tile.columns = tile.n * job.inner
    tile.width = tile.columns * job.repeat
    tile.pitch = (tile.width + 31) & -16
    tile.doubtful = False
    if job.dy != NULL and job.row < 0:  # deviations alone
        spread_arrays(job, tile, tile.k, job.table, 0, 1)
        spread_arrays(job, tile, tile.k, job.table, COEFFICIENTS - 1, COEFFICIENTS)
    elif job.applying or job.dy != NULL:
        spread_arrays(job, tile, tile.k, job.table, 0, COEFFICIENTS if job.dy != NULL else COEFFICIENTS - 1)
    elif job.itemsize == 8:  # sums of floats have none
        spread(<char*> tile.shift, <const char*> (job.shift + tile.first), tile.n, job.inner, job.repeat,
               sizeof(double))
    if job.applying and job.dy != NULL:
        tile.linear = tile.k + COEFFICIENTS * tile.pitch * job.itemsize
        spread_arrays(job, tile, tile.linear, job.linear, 0, 3)
    if job.itemsize == 4 and (job.redoing or (job.applying and job.dy != NULL)):
        for c in range(tile.first, tile.first + tile.n):
            tile.doubtful = tile.doubtful or job.doubtful[c] != 0
        if tile.doubtful:
            memset(tile.strips, 0, sizeof(tile.strips))
            for i in range(tile.width):
                if job.doubtful[tile.first + i // job.inner % tile.n]:
                    tile.strips[i // STRIP] = True


cdef void redo_strip(const NormJob* job, const Tile* tile, Py_ssize_t column, Py_ssize_t first, Py_ssize_t rows,
                     Py_ssize_t stride, Py_ssize_t width, double* sums) noexcept nogil:
    """Sums, or dx, of the strip of columns from `column` on, in double; `first` is the matrix's first element."""
    cdef Strip strip
    cdef double one = 1.0, zero = 0.0
    cdef double linear[3]
    cdef double k[COEFFICIENTS]
    cdef Py_ssize_t i, c, turn, m
    cdef int array
    strip.n = min(<Py_ssize_t> STRIP, width - column)
    memset(strip.sums, 0, sizeof(strip.sums))
    for i in range(strip.n):
        c = tile.first + (column + i) // job.inner % tile.n
        if job.dy == NULL:
            strip.shift[i] = job.shift[c]
            continue
        job.level.norm[<int> FN_DOUBLE].coefficients(job.mean + c, job.invstd + c, &one, &zero, 1, k, 1)
        exact_form(job, job.gamma[c] * job.invstd[c], job.invstd[c], job.dgamma[c], job.dbeta[c], linear)
        for array in range(COEFFICIENTS):
            strip.k[array * STRIP + i] = k[array]
            strip.single[array * STRIP + i] = (<const float*> tile.k)[array * tile.pitch + column + i]
        for array in range(3):
            strip.linear[array * STRIP + i] = linear[array]
        strip.doubtful[i] = job.doubtful[c] != 0
    if job.applying:
        for turn in range(count_of(rows, STRIP_ROWS)):
            m = min(<Py_ssize_t> STRIP_ROWS, rows - turn * STRIP_ROWS)
            back_apply_block(job, tile, first + column + turn * STRIP_ROWS * stride, m, stride, column, strip.n,
                             <char*> strip.results, STRIP)
            exact_block(job, &strip, first + column + turn * STRIP_ROWS * stride, m, stride, WRITE_GRADIENTS)
        return
    exact_rows(job, &strip, first + column, rows, stride, ADD_VALUES if job.dy == NULL else ADD_GRADIENTS)
    for array in range(3):
        for i in range(strip.n):
            sums[array * FN_COLUMNS + column + i] += strip.sums[array * STRIP + i]


cdef void add_rows(const NormJob* job, const Tile* tile, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t stride,
                   Py_ssize_t width, double* sums) noexcept nogil:
    """Sums of `rows` rows of `width` columns from element `first` on."""
    cdef fn_block g
    cdef const char* x = job.x + first * job.itemsize
    cdef const char* dy = NULL
    cdef Py_ssize_t turn, row, n, at, most = max(1, BLOCK_BYTES // job.itemsize // width), column
    if job.dy != NULL:
        dy = job.dy + first * job.itemsize
    if job.redoing:
        for turn in range(count_of(width, STRIP)):
            column = turn * STRIP
            if tile.doubtful and tile.strips[column // STRIP]:
                redo_strip(job, tile, column, first, rows, stride, width, sums)
    elif job.dy == NULL:
        job.loops.column_sums(x, rows, stride, width, tile.shift, sums, sums + FN_COLUMNS)
    elif in_loops(job):
        job.loops.column_back_sums(dy, x, rows, stride, stride, width, tile.k, tile.pitch, job.kind, job.slope, sums,
                                   sums + FN_COLUMNS, sums + 2 * FN_COLUMNS)
    else:
        for turn in range(count_of(rows, most)):
            row = turn * most
            n = min(most, rows - row)
            at = row * stride * job.itemsize
            gradient_rows(job, tile, dy + at, x + at, n, stride, 0, width, g.bytes)
            job.loops.column_back_sums(g.bytes, x + at, n, width, stride, width, tile.k, tile.pitch, FN_PLAIN, 0.0,
                                       sums, sums + FN_COLUMNS, sums + 2 * FN_COLUMNS)


cdef void gradient_rows(const NormJob* job, const Tile* tile, const char* dy, const char* x, Py_ssize_t rows,
                        Py_ssize_t stride, Py_ssize_t column, Py_ssize_t n, char* g) noexcept nogil:
    """dL/dz of some rows, side by side in a block, for an activation of the table."""
    cdef fn_block block
    cdef Py_ssize_t row
    job.loops.column_apply(x, g, rows, stride, n, n, tile.k + column * job.itemsize, tile.pitch, FN_PLAIN,
                           0.0)
    for row in range(rows):
        memcpy(block.bytes + row * n * job.itemsize, dy + row * stride * job.itemsize, n * job.itemsize)
    gradient_block(job, block.bytes, g, rows * n)


cdef void back_apply_block(const NormJob* job, const Tile* tile, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t stride,
                           Py_ssize_t column, Py_ssize_t n, char* block, Py_ssize_t block_stride) noexcept nogil:
    """dx of the tile's n columns from `column` on, in rows whose first such element is `first`, to a block."""
    cdef fn_block g
    cdef const char* k = tile.k + column * job.itemsize
    cdef const char* linear = tile.linear + column * job.itemsize
    cdef const char* x = job.x + first * job.itemsize
    cdef const char* dy = job.dy + first * job.itemsize
    if in_loops(job):
        job.loops.column_back_apply(dy, x, block, rows, stride, stride, block_stride, n, linear, k, tile.pitch,
                                    job.kind, job.slope)
    else:
        gradient_rows(job, tile, dy, x, rows, stride, column, n, g.bytes)
        job.loops.column_back_apply(g.bytes, x, block, rows, n, stride, block_stride, n, linear, k, tile.pitch,
                                    FN_PLAIN, 0.0)


cdef void write_directly(const NormJob* job, const Tile* tile, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t stride,
                         Py_ssize_t column, Py_ssize_t n) noexcept nogil:
    """Results of n columns, the first of them `column` of the tile, in rows whose first such element is `first`, with
    ordinary stores."""
    cdef const char* k = tile.k + column * job.itemsize
    cdef Py_ssize_t at = first * job.itemsize
    if job.dy == NULL:
        job.loops.column_apply(job.x + at, job.result + at, rows, stride, stride, n, k, tile.pitch, job.kind, job.slope)
    else:
        job.loops.column_back_apply(job.dy + at, job.x + at, job.result + at, rows, stride, stride, stride, n,
                                    tile.linear + column * job.itemsize, k, tile.pitch, job.kind, job.slope)


cdef void write_lines(const NormJob* job, const Tile* tile, Py_ssize_t first, Py_ssize_t rows,
                      Py_ssize_t width) noexcept nogil:
    """Results of whole rows of a multiple of 16 columns, each from its first cache line on to the same column of the next
    row, so the coefficients' arrays repeat their first 16 values: stores that straddle two lines cost twice, and those past
    the caches must not. Five coefficients are loaded for each value, so they lie on lines of their own from that column on."""
    cdef Py_ssize_t column = before_line(job.result + first * job.itemsize, width, job.itemsize)
    cdef Py_ssize_t lines = rows - 1 if column else rows, at = (first + column) * job.itemsize
    cdef const char* k = tile.k + column * job.itemsize
    if column:
        write_directly(job, tile, first, 1, width, 0, column)
        write_directly(job, tile, first + column + lines * width, 1, width, column, width - column)
    if not job.streamed:
        write_directly(job, tile, first + column, lines, width, column, width)
    elif job.dy == NULL:
        job.loops.column_stream(job.x + at, job.result + at, lines, width, k, tile.pitch, job.kind, job.slope)
    else:
        job.loops.column_back_stream(job.dy + at, job.x + at, job.result + at, lines, width,
                                     tile.linear + column * job.itemsize, k, tile.pitch, job.kind, job.slope)


cdef inline void put_part(const NormJob* job, const char* block, Py_ssize_t first, Py_ssize_t n,
                          Py_ssize_t ahead) noexcept nogil:
    """Copy n results to their part of a row. Past the caches, what lies `ahead` elements after that is fetched meanwhile, because a
    prefetcher stops where the part ends."""
    cdef Py_ssize_t nbytes = n * job.itemsize, further = (first + ahead) * job.itemsize
    cdef char* place = job.result + first * job.itemsize
    if job.streamed:
        emit_and_fetch(job.level, place, block, nbytes, job.x + further, (job.x if job.dy == NULL else job.dy) + further)
    else:
        memcpy(place, block, nbytes)


cdef void write_columns(const NormJob* job, const Tile* tile, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t stride,
                        Py_ssize_t column, Py_ssize_t n) noexcept nogil:
    """Results of the tile's n columns from `column` on; `first` is the matrix's first element."""
    cdef fn_block block
    cdef const char* k = tile.k + column * job.itemsize
    cdef Py_ssize_t turn, m, i, at, most = max(1, BLOCK_BYTES // job.itemsize // n)
    if writes_directly(job) and not job.streamed:
        write_directly(job, tile, first + column, rows, stride, column, n)
        return
    for turn in range(count_of(rows, most)):
        m = min(most, rows - turn * most)
        at = first + column + turn * most * stride
        if job.dy == NULL:
            job.loops.column_apply(job.x + at * job.itemsize, block.bytes, m, stride, n, n, k, tile.pitch, job.kind,
                                   job.slope)
            if not in_loops(job):
                activate_block(job, block.bytes, m * n)
        else:
            back_apply_block(job, tile, at, m, stride, column, n, block.bytes, n)
        if n == stride:
            emit(job.level, job.streamed, job.result + at * job.itemsize, block.bytes, m * n * job.itemsize)
        else:
            for i in range(m):
                put_part(job, block.bytes + i * n * job.itemsize, at + i * stride, n, most * stride)


cdef void write_rows(const NormJob* job, const Tile* tile, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t stride,
                     Py_ssize_t width) noexcept nogil:
    """Results of `rows` rows of `width` columns from element `first` on."""
    cdef Py_ssize_t column = 0, end
    cdef Py_ssize_t most = FN_COLUMNS if job.streamed or not writes_directly(job) else WIDE  # a block holds no more
    if by_lines(job) and width == stride and rows and not tile.doubtful:
        write_lines(job, tile, first, rows, width)
        return
    while column < width:
        end = min(width, column + STRIP)
        if tile.doubtful and tile.strips[column // STRIP]:
            redo_strip(job, tile, column, first, rows, stride, width, NULL)
        else:
            while end < min(width, column + most) and not (tile.doubtful and tile.strips[end // STRIP]):
                end = min(width, end + STRIP)
            write_columns(job, tile, first, rows, stride, column, end - column)
        column = end


cdef void column_unit(const NormJob* job, const Tile* tile, Py_ssize_t number) noexcept nogil:
    """The rows of one block, in one tile."""
    cdef double sums[3 * FN_COLUMNS]
    cdef int array
    cdef Py_ssize_t pitch = job.groups * job.inner
    cdef Py_ssize_t begin = number * job.block, rows = min(job.block, job.outer - begin)
    cdef Py_ssize_t whole = rows // job.repeat, rest = rows % job.repeat
    cdef Py_ssize_t first = begin * pitch + tile.first * job.inner, last = first + whole * pitch * job.repeat
    cdef double* partial = job.partial + number * 3 * job.groups + tile.first
    if job.applying:
        write_rows(job, tile, first, whole, pitch * job.repeat, tile.width)
        if rest:
            write_rows(job, tile, last, 1, pitch * job.repeat, rest * pitch)
        return
    for array in range(3):
        memset(sums + array * FN_COLUMNS, 0, tile.width * sizeof(double))
    add_rows(job, tile, first, whole, pitch * job.repeat, tile.width, sums)
    if rest:
        add_rows(job, tile, last, 1, pitch * job.repeat, rest * pitch, sums)
    for array in range(2 if job.dy == NULL else 3):
        sum_columns(partial + array * job.groups, sums + array * FN_COLUMNS, tile.n, job.inner, job.repeat)


cdef void column_part(void* context, int part) noexcept nogil:
    cdef NormJob* job = <NormJob*> context
    cdef Tile tile
    cdef fn_block few[2]  # a tile of 8192 columns takes 600 KB, more than the stack of some threads
    cdef Py_ssize_t units = job.tiles * job.blocks
    cdef Py_ssize_t begin = units * part // job.parts, end = units * (part + 1) // job.parts, unit, known = -1
    cdef Py_ssize_t nbytes = CACHE_LINE + (COEFFICIENTS + 3) * (job.tile * job.inner * job.repeat + 31) * job.itemsize
    cdef char* heap = NULL
    tile.k = few[0].bytes
    if nbytes > <Py_ssize_t> sizeof(few):
        heap = <char*> malloc(nbytes + CACHE_LINE)
        if heap == NULL:
            job.out_of_memory = True
            return
        tile.k = heap + -<uintptr_t> heap % CACHE_LINE
    if job.applying and by_lines(job):
        tile.k += <uintptr_t> job.result % CACHE_LINE  # see write_lines
    tile.shift = <double*> tile.k
    while begin < end:
        # Results are written from the end backwards: what the sums have read last is still in the cache.
        if job.applying:
            end -= 1
            unit = end
        else:
            unit = begin
            begin += 1
        if unit % job.tiles != known:
            known = unit % job.tiles
            fill_tile(job, &tile, known)
        column_unit(job, &tile, unit // job.tiles)
    free(heap)
    if job.streamed:
        fn_stream_fence()


cdef bint writes_runs(const NormJob* job) noexcept nogil:
    """Whether results are written run by run."""
    cdef Py_ssize_t c
    if job.streamed or job.staged or not in_loops(job) or not has_few_rows(job, job.outer, job.inner):
        return False
    for c in range(job.groups if job.itemsize == 4 and job.dy != NULL else 0):
        if job.doubtful[c]:
            return False
    return True


cdef void sum_runs(void* context, int part) noexcept nogil:
    """Sums for the gradients of some channels."""
    cdef const NormJob* job = <const NormJob*> context
    cdef Py_ssize_t first = job.groups * part // job.parts, end = job.groups * (part + 1) // job.parts, row, turn, channel, at
    cdef int array
    cdef fn_sets shape
    for array in range(3):
        memset(job.partial + array * job.groups + first, 0, (end - first) * sizeof(double))
    for row in range(job.outer):
        for turn in range(count_of(end - first, FN_SETS)):
            channel = first + turn * FN_SETS
            at = (row * job.groups + channel) * job.inner * job.itemsize
            shape = runs_beside(min(<Py_ssize_t> FN_SETS, end - channel), job.inner)
            job.loops.back_sums(job.dy + at, job.x + at, &shape, job.table + channel * job.itemsize, job.groups, FN_PLAIN, 0.0,
                                job.partial + channel)


cdef void write_runs(void* context, int part) noexcept nogil:
    """All results of some channels."""
    cdef const NormJob* job = <const NormJob*> context
    cdef Py_ssize_t first = job.groups * part // job.parts, at = first * job.inner * job.itemsize
    cdef const char* k = job.table + first * job.itemsize
    cdef fn_sets shape = runs_beside(job.groups * (part + 1) // job.parts - first, job.inner)
    shape.runs = job.outer
    shape.stride = job.groups * job.inner
    if job.dy == NULL:
        job.loops.apply(job.x + at, job.result + at, &shape, k, job.groups, job.kind, job.slope)
    else:
        job.loops.back_apply(job.dy + at, job.x + at, job.result + at, &shape, job.linear + first * job.itemsize, k, job.groups,
                             job.kind, job.slope, False, 0)


cdef void add_up(NormJob* job) noexcept nogil:
    """Sum all units, and the blocks' sums in their order."""
    cdef const double* other
    cdef Py_ssize_t block, i, arrays = 2 if job.dy == NULL else 3
    fn_parallel(column_part, job, job.parts)
    for block in range(1, job.blocks):
        other = job.partial + block * 3 * job.groups
        for i in range(arrays * job.groups):
            job.partial[i] += other[i]


cdef void column_statistics(NormJob* job) noexcept nogil:
    cdef double* squares = job.partial + job.groups
    cdef int64_t doubtful
    cdef Py_ssize_t c
    for c in range(job.groups):
        job.shift[c] = shift_at(job, c * job.inner)
    add_up(job)
    if job.level.norm_finish(job.partial, squares, job.shift, job.count, job.eps, job.groups, job.mean, job.var,
                             job.invstd, job.doubtful) == 0:
        return
    for c in range(job.groups):
        if job.doubtful[c]:
            job.shift[c] = better_shift(job, job.mean[c])
    job.redoing = job.itemsize == 4
    add_up(job)
    job.redoing = False
    for c in range(job.groups):
        if job.doubtful[c]:
            job.level.norm_finish(job.partial + c, squares + c, job.shift + c, job.count, job.eps, 1, job.mean + c,
                                  job.var + c, job.invstd + c, &doubtful)


cdef void column_gradients(NormJob* job) noexcept nogil:
    """dgamma, dbeta and the linear form of dx."""
    cdef double* products = job.partial + job.groups
    cdef Py_ssize_t c
    if job.row < 0 and job.inner >= 8 and has_few_rows(job, job.outer, job.inner):
        fn_parallel(sum_runs, job, job.parts)
    else:
        add_up(job)
    if job.loops.forms(job.partial, products, products + job.groups, job.mean, job.invstd, job.gamma, job.table,
                       job.groups, job.count, True, job.groups, job.linear, job.dgamma,
                       job.doubtful) and job.itemsize == 4:
        job.redoing = True
        add_up(job)
        job.redoing = False
        for c in range(job.groups):
            if job.doubtful[c]:
                job.dbeta[c] = job.partial[c]
                job.dgamma[c] = products[c] * job.invstd[c]


# The job.

cdef inline bint writes_directly(const NormJob* job) noexcept nogil:
    """Whether results are written as they are computed; past the caches, whole rows of whole lines."""
    return in_loops(job) and not job.staged and (not job.streamed or job.groups * job.inner * job.repeat % 16 == 0)


cdef inline bint by_lines(const NormJob* job) noexcept nogil:
    """Whether `write_lines` writes the results."""
    cdef Py_ssize_t pitch = job.groups * job.inner
    return (writes_directly(job) and job.tiles == 1 and pitch * job.repeat % 16 == 0
            and min(job.block, job.outer) * pitch * job.itemsize >= LINES_BYTES)


cdef Py_ssize_t together(Py_ssize_t columns, Py_ssize_t outer, Py_ssize_t most, Py_ssize_t least) noexcept nogil:
    """How many rows of a narrow matrix are taken as one: so many that at least `least` are left, and whole vectors where
    that takes `most` columns and twice as many rows at most."""
    cdef Py_ssize_t repeat = max(1, min(MERGED // columns, outer // least)), unit = 16, whole
    while unit > 1 and unit // 2 * columns % 16 == 0:
        unit //= 2
    whole = (repeat + unit - 1) & -unit
    if whole * columns > most or 2 * outer < whole * least:
        whole = repeat & -unit
    return whole if whole else repeat


cdef void plan_columns(NormJob* job, Py_ssize_t outer, Py_ssize_t channels, Py_ssize_t inner) noexcept:
    cdef Py_ssize_t columns = channels * inner
    job.outer = outer
    job.groups = channels
    job.inner = inner
    job.count = <double> outer * <double> inner
    job.repeat = together(columns, outer, FN_COLUMNS, 64)
    set_tile(job, FN_COLUMNS)
    job.block = max((outer + BLOCKS - 1) // BLOCKS, BLOCK_VALUES // min(columns, <Py_ssize_t> FN_COLUMNS))
    job.block = (job.block + 4 * job.repeat - 1) // (4 * job.repeat) * (4 * job.repeat)
    job.blocks = (outer + job.block - 1) // job.block


cdef inline void set_tile(NormJob* job, Py_ssize_t columns) noexcept nogil:
    job.tile = min(job.groups, columns // job.inner)
    job.tiles = (job.groups + job.tile - 1) // job.tile


cdef Py_ssize_t column_scratch(NormJob* job) noexcept:
    """Doubles of scratch."""
    job.parts = parts_for(job.nanoseconds, job.tiles * job.blocks)
    return (1 + 1 + COEFFICIENTS + 3 + 2 + 3 * job.blocks) * job.groups


cdef void lay_out_columns(NormJob* job, double* scratch) noexcept:
    cdef Py_ssize_t n = job.groups
    job.shift = scratch
    job.doubtful = <int64_t*> (scratch + n)
    job.table = <char*> (scratch + 2 * n)
    job.linear = <char*> (scratch + 8 * n)
    job.dgamma = scratch + 11 * n
    job.dbeta = scratch + 12 * n
    job.partial = scratch + 13 * n


cdef inline bint keeps_tiles(const NormJob* job) noexcept nogil:
    """Whether to write whole rows would leave threads without work."""
    return job.blocks < min(job.parts, current_threads())


cdef void run_columns(NormJob* job) noexcept nogil:
    cdef Py_ssize_t columns = job.groups * job.inner, most = WIDEST if job.streamed and columns > FN_COLUMNS else WIDE
    if not job.given:
        column_statistics(job)
        if job.result == NULL or job.out_of_memory:
            return
    job.loops.coefficients(job.mean, job.invstd, job.gamma, job.beta, job.groups, job.table, job.groups)
    make_room(job, job.table, job.groups, job.groups)
    if job.dy != NULL:
        column_gradients(job)
        if job.out_of_memory:
            return
    if writes_runs(job):
        fn_parallel(write_runs, job, job.parts)
        return
    if in_loops(job) and not job.staged and columns <= most and not keeps_tiles(job):
        job.repeat = together(columns, job.outer, most, 16)
        if writes_directly(job):
            set_tile(job, most)
    job.applying = True
    fn_parallel(column_part, job, job.parts)
