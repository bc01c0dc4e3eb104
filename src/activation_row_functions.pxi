# The activations of whole rows: softmax, log_softmax and cross_entropy.

cdef enum:
    # bytes of what the column form takes together: half of a usual L2 cache; less where it is staged, too, least where transposed
    PANEL_BYTES = 1 << 19
    STAGED_PANEL_BYTES = 1 << 17
    TURNED_PANEL_BYTES = 1 << 14
    COMING_BYTES = 1 << 20   # of an operand beyond which the column form fetches the next rows of those that it transposes
    TOGETHER_BYTES = 1 << 13 # what the row form reads together
    STREAMED_BYTES = 1 << 10 # the same past the caches: reading and writing in turns, neither waits for long; forward, where
    STREAMED_BYTES_FORWARD = 1 << 12  # exponentials take so long that rows are fetched while they are computed
    STREAMED_POWERS = 6      # rows of which it computes exponentials there, at least, where they are ...
    TOGETHER_ROW = 1 << 9    # ... no longer than so many bytes
    MOST_SIDE_BY_SIDE = 256  # floats of FN_SIDE_BYTES
    ROW_COST = 6             # as the costs of fastnn/_table.py
    PRODUCT_COST = 3         # the same where there is no exponential
    SHORT = 24               # elements from which softmax and log_softmax's gradients are faster in the row form, in the cache
    SHORT_WITH_LOGARITHM = 32
    STREAMED_ROW = 1 << 16   # most bytes of a row that waits in the cache until it is
    STREAMED_ROW_FORWARD = 1 << 15
    FETCHING_ROW = 3 << 9    # bytes of one from which gradients with exponentials fetch the next one while they compute them

cdef struct Rows:
    Plan plan            # the row's axis is last; before it comes the one along which the kernel takes rows
    fn_rows kernel
    const Py_ssize_t* labels  # of cross_entropy, else NULL
    double* losses
    double samples
    Py_ssize_t length    # elements of a row
    Py_ssize_t width     # rows that the kernel takes together
    bint by_row          # its form
    Py_ssize_t lanes     # rows along their axis
    Py_ssize_t tiles     # of `width` rows along their axis
    Py_ssize_t count     # of all tiles
    Py_ssize_t part      # tiles a thread takes
    bint with_powers     # it computes exponentials
    bint out_of_memory


cdef inline bint is_staged(const Rows* rows, const Operand* operand) noexcept nogil:
    """Whether a tile of it, the last one perhaps, is copied."""
    return not operand.direct or (not rows.by_row and rows.lanes % FN_LANES != 0)


cdef inline bint needs_scratch(const Rows* rows) noexcept nogil:
    """Whether the kernel, or copying, works in a room of the tile's size."""
    return not rows.by_row or rows.plan.result.half or rows.plan.source[0].half or rows.plan.source[rows.plan.inputs - 1].half


cdef inline const char* coming_tile(const Rows* rows, const Operand* operand, const char* place, Py_ssize_t first) noexcept nogil:
    """Where the tile after the one at `place` begins, if it is fetched while that one is computed: transposing would wait for
    the memory, and the memory for the exponentials."""
    cdef Py_ssize_t pitch = operand.strides[rows.plan.ndim - 2]
    if (rows.by_row or not operand.contiguous or pitch != rows.length * operand.itemsize or first + 2 * rows.width > rows.lanes
            or rows.plan.size * operand.itemsize <= COMING_BYTES):
        return NULL
    return place + rows.width * pitch


cdef void rows_part(void* context, int part) noexcept nogil:
    """Run the kernel on a slice of the tiles: each operand's tile in place where it lies right, else staged."""
    cdef Rows* rows = <Rows*> context
    cdef Plan* plan = &rows.plan
    cdef fn_block blocks[4]
    cdef char* tiles[3]  # of the inputs, the last one of the result
    cdef char* places[3]
    cdef char* used[3]
    cdef Py_ssize_t steps[3]
    cdef char* scratch = blocks[3].bytes
    cdef char* heap = NULL
    cdef char* line  # where its first cache line begins
    cdef Py_ssize_t labels[MOST_SIDE_BY_SIDE]
    cdef double losses[MOST_SIDE_BY_SIDE]
    cdef fn_rest rest
    cdef Operand* operand
    # in the row form, what must be there before the row
    cdef Py_ssize_t before = max(<Py_ssize_t> 0, FN_LANES - rows.length) * plan.itemsize if rows.by_row else 0
    cdef Py_ssize_t pitch = padded(rows.length)
    cdef Py_ssize_t nbytes = (rows.width * pitch if rows.by_row else padded(rows.width * rows.length)) * plan.itemsize + before
    cdef Py_ssize_t tile, first, count, width
    cdef Py_ssize_t room  # for those that are staged: a row may be as long as the memory is large
    cdef Py_ssize_t offsets[3]
    cdef int i, other = plan.inputs - 1
    rest.labels, rest.losses, rest.samples, rest.ahead = labels, losses, rows.samples, 0
    for i in range(3):
        tiles[i] = blocks[i].bytes + before
    if nbytes > BLOCK_BYTES and not (rows.by_row and all_direct(plan)):
        room = nbytes * needs_scratch(rows)
        for i in range(3):
            offsets[i] = room
            if i == 2 or i <= other:
                room += nbytes * is_staged(rows, &plan.result if i == 2 else &plan.source[i])
        heap = <char*> malloc(room + CACHE_LINE)
        if heap == NULL:
            rows.out_of_memory = True
            return
        line = heap + -<uintptr_t> heap % CACHE_LINE
        for i in range(3):
            tiles[i] = line + offsets[i] + before
        scratch = line  # without room of its own it is not used
    for tile in range(part * rows.part, min(rows.count, (part + 1) * rows.part)):
        first = tile % rows.tiles * rows.width
        count = min(rows.width, rows.lanes - first)
        width = count
        if not rows.by_row:
            width = pitch = padded(count)
        for i in range(3):
            operand = &plan.result if i == 2 else &plan.source[min(i, other)]
            places[i] = place_at(plan, operand, tile // rows.tiles, plan.ndim - 2) + first * operand.strides[plan.ndim - 2]
            used[i] = places[i]
            rest.coming[i] = coming_tile(rows, operand, places[i], first) if i != 1 or other == 1 else NULL
            steps[i] = operand.strides[plan.ndim - 2 if rows.by_row else plan.ndim - 1] // plan.itemsize
            if not operand.direct or count < width:
                used[i] = tiles[i]
                steps[i] = pitch
                if i <= other:
                    move_tile(rows, operand, places[i], count, tiles[i], pitch, scratch, True)
                    plan.level.move(tiles[i], 0, tiles[i] - before, plan.itemsize, before // plan.itemsize, plan.itemsize, False)
        if rows.labels != NULL:
            take_labels(rows, first, count, width, labels)
        rows.kernel(used[0], steps[0], used[other], steps[other], used[2], steps[2], scratch, rows.length, width,
                    &rest)
        if used[2] == tiles[2]:
            move_tile(rows, &plan.result, places[2], count, tiles[2], pitch, scratch, False)
        if rows.labels != NULL:
            memcpy(rows.losses + first, losses, count * sizeof(double))
    free(heap)


cdef void take_labels(const Rows* rows, Py_ssize_t first, Py_ssize_t count, Py_ssize_t width, Py_ssize_t* labels) noexcept nogil:
    """The labels of `count` rows, and 0 for what is missing to `width`. They were checked, but another thread of Python may write
    there since: then all are 0."""
    memset(labels, 0, width * sizeof(Py_ssize_t))
    memcpy(labels, rows.labels + first, count * sizeof(Py_ssize_t))
    if not rows.plan.level.all_below(labels, count, rows.length):
        memset(labels, 0, width * sizeof(Py_ssize_t))


cdef void streamed_part(void* context, int part) noexcept nogil:
    """Rows that follow each other, past the caches: a tile of them is computed beside what is left of the one before, the whole
    lines of both are written, and the rest waits. Meanwhile the operands' next tile is fetched: a prefetcher stops where a
    page ends, and while rows are read a second time, or exponentials computed, the memory would have nothing to do."""
    cdef Rows* rows = <Rows*> context
    cdef Plan* plan = &rows.plan
    cdef Py_ssize_t row = part * rows.part * rows.width, end = min(rows.lanes, (part + 1) * rows.part * rows.width)
    cdef Py_ssize_t pitch = rows.length * plan.itemsize
    cdef const char* a = plan.source[0].data + row * pitch
    cdef const char* b = plan.source[plan.inputs - 1].data + row * pitch
    cdef char* y = plan.result.data + row * pitch
    cdef char* heap = <char*> malloc(rows.width * pitch + 2 * CACHE_LINE)
    cdef char* room
    cdef Py_ssize_t held = <uintptr_t> y % CACHE_LINE, skip = held  # of the first line that much belongs to others
    cdef Py_ssize_t count, nbytes, whole
    cdef Py_ssize_t labels[FN_ROWS_TOGETHER]
    cdef fn_rest rest
    if heap == NULL:
        rows.out_of_memory = True
        return
    room = heap + -<uintptr_t> heap % CACHE_LINE
    rest.labels, rest.losses, rest.samples = labels, NULL, rows.samples
    rest.ahead = rows.width * rows.length if rows.with_powers and (plan.inputs == 1 or pitch >= FETCHING_ROW) else 0
    y -= held
    while row < end:
        count = min(rows.width, end - row)
        nbytes = count * pitch
        if rows.labels != NULL:
            take_labels(rows, row, count, count, labels)
            rest.losses = rows.losses + row
        rows.kernel(a, rows.length, b, rows.length, room + held, rows.length, NULL, rows.length, count, &rest)
        row += count
        a += nbytes
        b += nbytes
        held += nbytes
        whole = held if row == end else held & -CACHE_LINE
        if rest.ahead:
            emit(plan.level, True, y + skip, room + skip, whole - skip)
        else:
            emit_and_fetch(plan.level, y + skip, room + skip, whole - skip, a, b)
        skip = 0
        held -= whole
        memcpy(room, room + whole, held)
        y += whole
    fn_stream_fence()
    free(heap)


cdef void move_tile(const Rows* rows, const Operand* array, char* place, Py_ssize_t count, char* tile, Py_ssize_t pitch,
                    char* room, bint gather) noexcept nogil:
    """Copy `count` rows to a tile in the kernel's dtype, or back. What rows are missing beside others are zero."""
    cdef const Plan* plan = &rows.plan
    cdef Py_ssize_t across = array.strides[plan.ndim - 2], along = array.strides[plan.ndim - 1]
    if rows.by_row:
        exchange_box(plan.level, array, place, count, rows.length, across, along, tile, pitch, room, gather)
        return
    if gather and count < pitch:
        memset(tile, 0, rows.length * pitch * plan.itemsize)
        if array.half:
            memset(room, 0, rows.length * pitch * array.itemsize)
    exchange_box(plan.level, array, place, rows.length, count, along, across, tile, pitch, room, gather)


cdef bint lay_rows(Rows* rows, ndarray y, int along, int kind, int direction) except -1:
    """Complete a plan whose operands are described, and choose the rows' form. False if there are no elements."""
    cdef Plan* plan = &rows.plan
    cdef Operand* operands[3]
    cdef Py_ssize_t row_stride[3]
    cdef Py_ssize_t stride, short
    cdef int order[MAX_DIMS]
    cdef bint far
    cdef int i, axis, best = 0, last, ndim = 0
    if plan.size == 0:
        return False
    operands[0], operands[plan.inputs - 1], operands[plan.inputs] = &plan.source[0], &plan.source[plan.inputs - 1], &plan.result
    rows.length = cnp.PyArray_DIM(y, along) if cnp.PyArray_NDIM(y) else 1
    for i in range(plan.inputs + 1):
        row_stride[i] = operands[i].strides[along] if rows.length > 1 else operands[i].itemsize
    for axis in range(cnp.PyArray_NDIM(y)):  # the axes of the rows
        if axis != along and cnp.PyArray_DIM(y, axis) != 1:
            order[ndim] = axis
            for i in range(plan.inputs + 1):
                operands[i].strides[ndim] = operands[i].strides[axis]
            ndim += 1
    join_axes(plan, operands, plan.inputs + 1, ndim, order, y)
    # the kernel takes rows along the axis on which they are closest, or the longest where that one is short
    for axis in range(1, plan.ndim):
        if abs(plan.source[0].strides[axis]) < abs(plan.source[0].strides[best]):
            best = axis
    if plan.shape[best] < FN_LANES:
        for axis in range(plan.ndim):
            best = axis if plan.shape[axis] > plan.shape[best] else best
    last = plan.ndim - 1
    plan.shape[best], plan.shape[last] = plan.shape[last], plan.shape[best]
    for i in range(plan.inputs + 1):
        stride = operands[i].strides[best]
        operands[i].strides[best] = operands[i].strides[last]
        operands[i].strides[last] = stride
        operands[i].strides[last + 1] = row_stride[i]
    rows.lanes = plan.shape[last]
    plan.shape[last + 1] = rows.length
    plan.ndim += 1
    # from memory, transposing rows to and fro takes longer than their sums do
    far = (plan.inputs + 1) * plan.size * plan.itemsize > STREAM_BYTES
    if direction == FN_FORWARD and kind != FN_SOFTMAX:
        short = SHORT_WITH_LOGARITHM
    else:
        short = FN_LANES if far or (direction == FN_BACKWARD and kind == FN_SOFTMAX) else SHORT
    rows.by_row = rows.lanes < 8 or (rows.length >= short and (rows.lanes < FN_LANES
                                     or abs(row_stride[0]) <= abs(plan.source[0].strides[last])))
    for i in range(plan.inputs + 1):
        operands[i].native = is_native(plan, operands[i])
        operands[i].contiguous = operands[i].native and row_stride[i] == plan.itemsize  # row by row
        operands[i].direct = operands[i].contiguous and rows.length >= FN_LANES
        if not rows.by_row:
            operands[i].direct = operands[i].native and operands[i].strides[last] == plan.itemsize
    plan.result.direct = plan.result.direct and not plan.staged
    plan.streamed = rows.by_row and all_direct(plan) and follow_each_other(rows) and bypasses_caches(plan)
    rows.with_powers = direction == FN_FORWARD or kind == FN_LOG_SOFTMAX
    rows.width = rows_together(rows) if rows.by_row else rows_side_by_side(rows)
    rows.tiles = (rows.lanes + rows.width - 1) // rows.width
    rows.count = plan.size // (rows.length * rows.lanes) * rows.tiles
    rows.kernel = plan.level.rows[FN_ROW_FORM if rows.by_row else FN_COLUMN_FORM][kind][direction][
        FN_DOUBLE if plan.itemsize == 8 else FN_SINGLE]
    rows.out_of_memory = False
    return True


cdef bint follow_each_other(const Rows* rows) noexcept nogil:
    cdef const Plan* plan = &rows.plan
    cdef Py_ssize_t nbytes = rows.length * plan.itemsize
    return (plan.ndim == 2 and nbytes <= (STREAMED_ROW if plan.inputs == 2 else STREAMED_ROW_FORWARD)
            and plan.result.strides[0] == nbytes and plan.source[0].strides[0] == nbytes
            and plan.source[plan.inputs - 1].strides[0] == nbytes)


cdef inline bint are_beside(const Plan* plan) noexcept nogil:
    """Whether one element of all rows is closer together than one row is."""
    return distance(plan.source[0].strides[plan.ndim - 2]) < distance(plan.source[0].strides[plan.ndim - 1])


cdef Py_ssize_t rows_together(const Rows* rows) noexcept nogil:
    """How many the row form takes together: as many as the first-level cache keeps from one phase to the next, or more where they
    are read across, or less past the caches."""
    cdef const Plan* plan = &rows.plan
    cdef Py_ssize_t nbytes = rows.length * plan.itemsize, most = TOGETHER_BYTES // (plan.inputs * nbytes)
    if rows.length < FN_LANES:
        return 1
    if plan.streamed:
        most = (STREAMED_BYTES if plan.inputs == 2 else STREAMED_BYTES_FORWARD) // nbytes
        if rows.with_powers and nbytes <= TOGETHER_ROW:
            most = max(most, <Py_ssize_t> STREAMED_POWERS)
    elif are_beside(plan):
        most = max(most, PANEL_BYTES // nbytes)
    return max(<Py_ssize_t> 1, min(<Py_ssize_t> FN_ROWS_TOGETHER, most))


cdef Py_ssize_t rows_side_by_side(const Rows* rows) noexcept nogil:
    """How many the column form takes together: as many as fit the cache, but not so many that a thread has nothing to do."""
    cdef const Plan* plan = &rows.plan
    cdef Py_ssize_t staged = STAGED_PANEL_BYTES if are_beside(plan) else TURNED_PANEL_BYTES
    cdef Py_ssize_t nbytes = PANEL_BYTES if all_direct(plan) else staged
    cdef int parts = parts_worth(plan.nanoseconds)
    cdef Py_ssize_t most = min(rows.lanes, min(<Py_ssize_t> FN_SIDE_BYTES, nbytes // rows.length) // plan.itemsize)
    if parts > 1:
        most = min(most, plan.size // (rows.length * parts))
    return max(most & -FN_LANES, <Py_ssize_t> FN_LANES)


cdef int run_rows(Rows* rows) except -1:
    run_shares(streamed_part if rows.plan.streamed else rows_part, rows, rows.count, &rows.part, rows.plan.nanoseconds)
    if rows.out_of_memory:
        raise MemoryError(f"no memory to stage rows of {rows.length} elements")
    return 0


cdef object along_rows(int kind, int direction, object a, object b, object axis, object out):
    """softmax or log_softmax; a is x or dy, b what forward saved (None in the forward direction)."""
    cdef Rows rows
    cdef ndarray x, saved, y
    cdef int along
    if not (is_simple(a) and (direction == FN_FORWARD or (is_simple(b) and same_form(<ndarray> a, <ndarray> b)))):
        if direction == FN_BACKWARD:
            a = _checks.as_input(a, "dy")
            b = _checks.as_input(b, "saved")
            _checks.check_same_shape(a, b, "saved")
            dtype = _checks.result_dtype(a, b)
            a, b = in_dtype(a, dtype), in_dtype(b, dtype)
        else:
            a = _checks.as_input(a, "x")
    x = <ndarray> a
    if runs_code(axis):
        x, b = own_view(x), b if b is None else own_view(<ndarray> b)
    along = plain_axis(axis, max(cnp.PyArray_NDIM(x), 1))
    if along < 0:
        along = _checks.softmax_axis(axis, cnp.PyArray_NDIM(x))
    y = result_like(x, out)
    begin_plan(&rows.plan, y, PRODUCT_COST if kind == FN_SOFTMAX and direction == FN_BACKWARD else ROW_COST)
    x = add_input(&rows.plan, x, y)
    if direction == FN_BACKWARD:
        saved = add_input(&rows.plan, <ndarray> b, y)
    if lay_rows(&rows, y, along, kind, direction):
        rows.labels = NULL
        run_rows(&rows)
    return y if out is None else out


def softmax(x, axis=-1, *, out=None):
    """exp(x) / sum(exp(x)) along `axis`.

    x: array-like of any shape (a 0-d x is a row of one element), dtypes as in sigmoid. axis: an integer.
    out: array of x's shape and the result's dtype that receives the result; it may be x or overlap it.

    Returns an array of x's shape; every row sums to 1. -Inf among finite entries gives exactly 0; a row with +Inf or NaN, or
    of -Inf alone, gives NaN.
    Error: at most 4 ULP, for rows of any length: x - max keeps its rounding error, and so does the sum.
    Raises AxisError for an axis that x does not have; TypeError and ValueError as sigmoid does.
    Source: Bridle, Probabilistic interpretation of feedforward classification network outputs, 1990.
    """
    return along_rows(FN_SOFTMAX, FN_FORWARD, x, None, axis, out)


def softmax_backward(dy, saved, axis=-1, *, out=None):
    """dL/dx = y * (dy - sum(dy * y)) along `axis`.

    dy: dL/dy, an array of saved's shape. saved: the forward output y. axis: as in the forward call.
    out: array of that shape and of the result's dtype that receives the result; it may be dy or saved or overlap them.

    Error: at most 16 * u * y * max(abs(dy)), the maximum that of the row, u = 2**-24 in float32, 2**-53 in float64 (rows of up to
    two million elements).
    Raises as softmax does, ValueError where the shapes differ.
    """
    return along_rows(FN_SOFTMAX, FN_BACKWARD, dy, saved, axis, out)


def log_softmax(x, axis=-1, *, out=None):
    """log(softmax(x)) = x - max - log(sum(exp(x - max))) along `axis`.

    Arguments, errors and special values as softmax; -Inf among finite entries gives -Inf.
    Error: at most 4 ULP, also where the result is close to 0 (one entry dominates its row).
    Source: Goodfellow et al., Deep learning, 6.2.2.3.
    """
    return along_rows(FN_LOG_SOFTMAX, FN_FORWARD, x, None, axis, out)


def log_softmax_backward(dy, saved, axis=-1, *, out=None):
    """dL/dx = dy - exp(y) * sum(dy) along `axis`.

    saved: the forward output y. The other arguments, and what is raised, as softmax_backward.
    Error: at most 6 * u * (abs(dy) + exp(y) * sum(abs(dy))), u as there.
    """
    return along_rows(FN_LOG_SOFTMAX, FN_BACKWARD, dy, saved, axis, out)


def cross_entropy(logits, labels, out=None):
    """(loss, dlogits): the mean of -log(softmax(logits)[label]), and its gradient (softmax - onehot) / N, in one pass.

    logits: array-like (N, C), dtypes as in sigmoid. labels: integers of shape (N,), each in 0..C-1.
    out: array of logits' shape and the result's dtype that receives dlogits; it may be logits or overlap it.

    Returns the loss, a float summed in float64 (0.0 for N = 0), and dlogits.
    Error: dlogits at most 4 ULP, at the label too, where softmax - 1 would cancel.
    Raises TypeError for labels that are no integers, ValueError for a label outside 0..C-1 or a wrong shape.
    Source: CS231n, linear classification; Goodfellow et al., Deep learning, 6.2.2.
    """
    cdef Rows rows
    cdef ndarray x, y, classes
    cdef Py_ssize_t row, n
    cdef double loss = 0
    x = <ndarray> logits if is_simple(logits) else _checks.as_input(logits, "logits")
    if runs_code(labels):
        x = own_view(x)
    if cnp.PyArray_NDIM(x) != 2:
        _checks.check_logits(x)
    n = cnp.PyArray_DIM(x, 0)
    classes = as_classes(labels, n, cnp.PyArray_DIM(x, 1))
    y = result_like(x, out)
    if out is not None and may_overlap(classes, y):
        classes = classes.copy()
    begin_plan(&rows.plan, y, ROW_COST)
    x = add_input(&rows.plan, x, y)
    if lay_rows(&rows, y, 1, FN_CROSS_ENTROPY, FN_FORWARD):
        rows.labels = <const Py_ssize_t*> cnp.PyArray_DATA(classes)
        rows.samples = n
        rows.losses = <double*> malloc(n * sizeof(double))
        if rows.losses == NULL:
            raise MemoryError(f"no memory for the losses of {n} samples")
        try:
            run_rows(&rows)
            for row in range(n):
                loss += rows.losses[row]
        finally:
            free(rows.losses)
        loss /= n
    return loss, y if out is None else out


cdef ndarray as_classes(object labels, Py_ssize_t n, Py_ssize_t count):
    """Checked labels as a contiguous intp array; the usual array is only looked through."""
    cdef const fn_level* level = current_level()
    if (cnp.PyArray_CheckExact(labels) and cnp.PyArray_TYPE(<ndarray> labels) == cnp.NPY_INTP
            and cnp.PyArray_NDIM(<ndarray> labels) == 1 and cnp.PyArray_DIM(<ndarray> labels, 0) == n
            and cnp.PyArray_ISCARRAY_RO(<ndarray> labels)
            and level.all_below(cnp.PyArray_DATA(<ndarray> labels), n, count)):
        return <ndarray> labels
    return _checks.as_labels(labels, n, count)
