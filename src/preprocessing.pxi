# The passes of fastnn/preprocessing.py over contiguous native matrices; fastnn/_passes.py says what a state is.
#
# A matrix is cut into chunks of rows, and these into panels of columns. The cut depends on the shape alone, and chunks are
# merged in their order, so results do not depend on the number of threads.

cdef enum:
    CHUNK = 1 << 18   # elements that one state is taken of
    CHUNK_ROWS = 512  # but at least so many rows, so that merging states costs little beside summing

cdef struct Grid:
    const fn_level* level
    int dtype
    int itemsize
    const char* x
    char* y
    double* states         # (chunks, 4, columns)
    const double* vectors  # (4, columns)
    Py_ssize_t rows
    Py_ssize_t columns
    Py_ssize_t chunk_rows
    Py_ssize_t chunks
    Py_ssize_t panels
    Py_ssize_t share       # cells (chunk, panel) that a thread takes


cdef void make_grid(Grid* grid, ndarray x, Py_ssize_t rows, Py_ssize_t columns) noexcept:
    grid.level = current_level()
    grid.itemsize = cnp.PyArray_ITEMSIZE(x)
    grid.dtype = FN_DOUBLE if grid.itemsize == 8 else FN_SINGLE
    grid.x = cnp.PyArray_BYTES(x)
    grid.rows = rows
    grid.columns = columns
    grid.chunk_rows = max(<Py_ssize_t> CHUNK_ROWS, CHUNK // columns)
    grid.chunks = (rows + grid.chunk_rows - 1) // grid.chunk_rows
    grid.panels = (columns + FN_PANEL - 1) // FN_PANEL


cdef void run_grid(Grid* grid, fn_task task, double nanoseconds):
    cdef Py_ssize_t cells = grid.chunks * grid.panels
    cdef int parts = parts_for(nanoseconds * grid.rows * grid.columns, cells)
    grid.share = (cells + parts - 1) // parts
    with nogil:
        fn_parallel(task, grid, parts)


cdef Py_ssize_t rows_in_line(Py_ssize_t features) noexcept nogil:
    """How many rows of few features are taken as one line: enough to fill vectors, without a rest where that can be."""
    cdef Py_ssize_t step = FN_LANES, power = 1
    while step > 1 and features % (2 * power) == 0:
        step //= 2
        power *= 2
    while step * features < 4 * FN_LANES:
        step *= 2
    return step if step * features <= FN_PANEL else max(<Py_ssize_t> 1, 8 * FN_LANES // features)


cdef void moments_cells(void* context, int part) noexcept nogil:
    cdef const Grid* grid = <const Grid*> context
    cdef Py_ssize_t cell, row, column
    for cell in range(part * grid.share, min((part + 1) * grid.share, grid.chunks * grid.panels)):
        row = cell // grid.panels * grid.chunk_rows
        column = cell % grid.panels * FN_PANEL
        grid.level.moments[grid.dtype](
            grid.x + (row * grid.columns + column) * grid.itemsize, min(grid.chunk_rows, grid.rows - row), grid.columns,
            min(<Py_ssize_t> FN_PANEL, grid.columns - column),
            grid.states + cell // grid.panels * 4 * grid.columns + column, grid.columns)


def moments(ndarray block not None):
    """State of a contiguous native float32 or float64 matrix."""
    cdef Py_ssize_t samples = cnp.PyArray_DIM(block, 0), features = cnp.PyArray_DIM(block, 1)
    cdef Py_ssize_t together, rest, chunk, lane
    cdef cnp.npy_intp[2] shape = [4, features]
    cdef ndarray result = cnp.PyArray_ZEROS(2, shape, cnp.NPY_DOUBLE, 0), scratch
    cdef double* state = <double*> cnp.PyArray_DATA(result)
    cdef double* first
    cdef Grid grid
    if samples == 0 or features == 0:
        return result
    together = min(samples, rows_in_line(features))
    make_grid(&grid, block, samples // together, together * features)
    rest = samples % together
    shape[0] = grid.chunks + 1
    shape[1] = 4 * grid.columns
    scratch = cnp.PyArray_EMPTY(2, shape, cnp.NPY_DOUBLE, 0)
    grid.states = first = <double*> cnp.PyArray_DATA(scratch)
    run_grid(&grid, moments_cells, 0.2)
    for chunk in range(1, grid.chunks):
        grid.level.merge_states(chunk * grid.chunk_rows, first, grid.columns,
                                min(grid.chunk_rows, grid.rows - chunk * grid.chunk_rows),
                                first + chunk * 4 * grid.columns, grid.columns, grid.columns)
    for lane in range(1, together):
        grid.level.merge_states(lane * grid.rows, first, grid.columns, grid.rows, first + lane * features, grid.columns,
                                features)
    if rest:
        # the last row of scratch takes the rows that fill no line
        first += grid.chunks * 4 * grid.columns
        grid.level.moments[grid.dtype](grid.x + (samples - rest) * features * grid.itemsize, rest, features, features, first,
                                       features)
        grid.level.merge_states(samples - rest, grid.states, grid.columns, rest, first, features, features)
    for lane in range(4):
        memcpy(state + lane * features, grid.states + lane * grid.columns, features * sizeof(double))
    return result


def combine_moments(double n, ndarray state not None, double m, ndarray other not None):
    """State of n + m samples; both states are contiguous, and neither count is 0."""
    cdef ndarray result = cnp.PyArray_NewCopy(state, cnp.NPY_CORDER)
    cdef Py_ssize_t features = cnp.PyArray_DIM(state, 1)
    current_level().merge_states(n, cnp.PyArray_DATA(result), features, m, cnp.PyArray_DATA(other), features, features)
    return result


cdef void affine_cells(void* context, int part) noexcept nogil:
    cdef const Grid* grid = <const Grid*> context
    cdef Py_ssize_t cell, row, column
    for cell in range(part * grid.share, min((part + 1) * grid.share, grid.chunks * grid.panels)):
        row = cell // grid.panels * grid.chunk_rows
        column = cell % grid.panels * FN_PANEL
        affine_cell(grid, (row * grid.columns + column) * grid.itemsize, min(grid.chunk_rows, grid.rows - row),
                    min(<Py_ssize_t> FN_PANEL, grid.columns - column), grid.vectors + column)


cdef void affine_cell(const Grid* grid, Py_ssize_t place, Py_ssize_t rows, Py_ssize_t columns,
                      const double* vectors) noexcept nogil:
    cdef fn_block staging  # a row of a panel
    cdef Py_ssize_t row, pitch = grid.columns * grid.itemsize
    if grid.x != grid.y:
        grid.level.affine[grid.dtype](grid.x + place, rows, grid.columns, columns, vectors, grid.columns, grid.y + place)
        return
    for row in range(rows):
        grid.level.affine[grid.dtype](grid.x + place, 1, grid.columns, columns, vectors, grid.columns, staging.bytes)
        memcpy(grid.y + place, staging.bytes, columns * grid.itemsize)
        place += pitch


def affine(ndarray x not None, ndarray vectors not None, ndarray y not None):
    """y = (x - shift) * factor + offset for contiguous native matrices of one dtype, which may be the same one.

    vectors is float64 (4, D): shift, its low half, factor and offset.
    """
    cdef Py_ssize_t samples = cnp.PyArray_DIM(x, 0), features = cnp.PyArray_DIM(x, 1), together, rest
    cdef ndarray line
    cdef Grid grid
    if samples == 0 or features == 0:
        return
    together = min(samples, rows_in_line(features))
    rest = samples % together
    line = np.tile(vectors, together) if together > 1 else vectors
    make_grid(&grid, x, samples // together, together * features)
    grid.vectors = <const double*> cnp.PyArray_DATA(line)
    grid.y = cnp.PyArray_BYTES(y)
    run_grid(&grid, affine_cells, 0.2)
    if rest:
        affine_cell(&grid, (samples - rest) * features * grid.itemsize, 1, rest * features, grid.vectors)
