# prelu and maxout, whose channels (slopes, pieces) lie along an axis of the array.

# --- prelu --------------------------------------------------------------------------------------------------------

cdef enum:
    PRELU_BYTES = 8192      # of a block
    FEW_SLOPES = 127
    FEW_ELEMENTS = 1 << 20  # of x: fixed, for the same bits on every machine

cdef struct Channels:
    Plan plan            # of x, or dy and x, and of the slope, repeated over all axes but its own
    fn_slopes slopes
    Py_ssize_t spread    # neighbouring ones that stand for one channel, whose elements are too few for a loop
    bint turned          # the plan runs through the channels from the last to the first
    double* sums         # for dslope, (chunks, width); NULL forward
    Py_ssize_t width     # as many as the kernel has for all slopes
    fn_block space[2]    # for slopes and sums, which begin on cache lines
    char* heap           # instead, where they are many
    Py_ssize_t chunk     # elements that are one piece of work; backward, whose dslope is summed in one go: fixed by the
                         # shape, not by the threads
    Py_ssize_t chunks
    Py_ssize_t part      # chunks a thread takes


cdef inline const char* block_of(const Plan* plan, const Operand* array, Py_ssize_t start, Py_ssize_t n,
                                 char* block) noexcept nogil:
    """As `load`, for kernels that take any number of elements."""
    if array.direct:
        return array.data + start * plan.itemsize
    return load(plan, array, start, n, block)


cdef void channels_part(void* context, int part) noexcept nogil:
    cdef Channels* job = <Channels*> context
    cdef Plan* plan = &job.plan
    cdef fn_block blocks[3][2]  # PRELU_BYTES each
    cdef const char* sources[2]
    cdef char* result
    cdef Py_ssize_t chunk, start, stop, n
    cdef bint in_place = plan.result.direct and not plan.staged
    cdef int i, form = job.slopes.inner > 1, dtype = FN_DOUBLE if plan.itemsize == 8 else FN_SINGLE
    for chunk in range(part * job.part, min(job.chunks, (part + 1) * job.part)):
        start = chunk * job.chunk
        stop = min(plan.size, start + job.chunk)
        if job.sums != NULL:
            memset(job.sums + chunk * job.width, 0, job.width * sizeof(double))
        while start < stop:
            n = min(stop - start, <Py_ssize_t> PRELU_BYTES // plan.itemsize)
            for i in range(plan.inputs - 1):
                sources[i] = block_of(plan, &plan.source[i], start, n, blocks[i][0].bytes)
            result = plan.result.data + start * plan.result.itemsize if in_place else blocks[2][0].bytes
            if job.sums == NULL:
                plan.level.prelu[form][dtype](sources[0], &job.slopes, result, start, n)
            else:
                plan.level.prelu_backward[form][dtype](sources[0], sources[1], &job.slopes, result,
                                                       job.sums + chunk * job.width, start, n)
            if not in_place:
                store(plan, start, n, result)
            start += n


cdef void finish_runs(const Plan* plan, Operand* operand) noexcept nogil:
    """As `finish`, for a plan whose last operand alone does not run on from axis to axis."""
    cdef Py_ssize_t stride = operand.itemsize
    cdef int axis
    operand.contiguous = True
    for axis in range(plan.ndim - 1, -1, -1):
        operand.contiguous = operand.contiguous and operand.strides[axis] == stride
        stride *= plan.shape[axis]
    operand.native = is_native(plan, operand)
    operand.direct = operand.contiguous and operand.native


cdef int lay_channels(Channels* job, ndarray slope, int axis, ndarray y, bint backward) except -1:
    """Complete a plan whose other operands are described, with a copy of the slopes. The caller frees job.heap."""
    cdef Plan* plan = &job.plan
    cdef Operand* operand = &plan.source[plan.inputs]
    cdef Py_ssize_t channels = 1, stride = 0, inner = plan.size, count, nbytes, i
    cdef int size = plan.itemsize, channel_axis
    cdef char* slopes
    describe(operand, slope)
    for channel_axis in range(cnp.PyArray_NDIM(y)):
        operand.strides[channel_axis] = 0
    if cnp.PyArray_NDIM(slope):
        operand.strides[axis] = cnp.PyArray_STRIDE(slope, 0)
    job.turned = cnp.PyArray_NDIM(slope) > 0 and cnp.PyArray_STRIDE(y, axis) < 0
    plan.inputs += 1
    merge_axes(plan, y)
    for i in range(plan.inputs - 1):
        finish_runs(plan, &plan.source[i])
    finish_runs(plan, &plan.result)
    for channel_axis in range(plan.ndim):
        inner //= plan.shape[channel_axis]
        if operand.strides[channel_axis] != 0:
            channels, stride = plan.shape[channel_axis], operand.strides[channel_axis]
            break
    job.spread = 1
    if inner < 64:
        job.spread, inner = inner, 1
    # slopes that come again too soon are repeated, for a loop that is worth its start
    count = channels * job.spread
    while inner == 1 and count < 64 and count < plan.size:
        count *= 2
    job.width = count if inner == 1 else FN_LANES * count
    job.chunk = max(<Py_ssize_t> 1 << 15, 16 * job.width) if backward else 1 << 14
    job.chunks = (plan.size + job.chunk - 1) // job.chunk
    nbytes = (count * size + CACHE_LINE - 1) & -CACHE_LINE
    job.heap = NULL
    slopes = job.space[0].bytes
    i = nbytes + (job.chunks * job.width * <Py_ssize_t> sizeof(double) if backward else 0)
    if i > 2 * BLOCK_BYTES:
        job.heap = <char*> malloc(i + CACHE_LINE)
        if job.heap == NULL:
            raise MemoryError(f"no memory for {count} slopes")
        slopes = job.heap + -<uintptr_t> job.heap % CACHE_LINE
    job.sums = <double*> (slopes + nbytes) if backward else NULL
    if job.spread == 1:
        plan.level.move(operand.data, stride, slopes, size, channels, size, False)
    else:
        for i in range(channels):
            plan.level.move(operand.data + i * stride, 0, slopes + i * job.spread * size, size, job.spread, size, False)
    i = channels * job.spread
    while i < count:
        memcpy(slopes + i * size, slopes, i * size)
        i *= 2
    job.slopes.slopes, job.slopes.inner, job.slopes.count = slopes, inner, count
    # Four long rows lie in one page or two, and no prefetcher follows when they are read in turns: in caches alone it pays.
    job.slopes.four_rows = count <= FEW_SLOPES or plan.size <= FEW_ELEMENTS
    job.slopes.has_zero = False
    for i in range(count):
        job.slopes.has_zero |= (<float*> slopes)[i] == 0 if size == 4 else (<double*> slopes)[i] == 0
    return 0


cdef void run_channels(Channels* job) noexcept:
    run_shares(channels_part, job, job.chunks, &job.part, job.plan.nanoseconds)


def prelu(x, slope, *, axis=1, out=None):
    """x where x > 0, else slope * x, with a learned slope for every channel.

    x: array-like of any shape, dtypes as in sigmoid. slope: a scalar, or shape (C,) with C = x.shape[axis]; it is rounded to
        the dtype computed in.
    out: array of x's shape and the result's dtype that receives the result; it may be x or overlap it.

    Error: correctly rounded. Raises ValueError for a slope of another shape, AxisError for an axis that x does not have, and as
    sigmoid does.
    Source: He et al., Delving deep into rectifiers, 2015.
    """
    cdef Channels job
    cdef ndarray a, s, y
    cdef int along
    a = <ndarray> x if is_simple(x) else _checks.as_input(x)
    if runs_code(slope) or runs_code(axis):
        a = own_view(a)
    s = fitting_slope(slope, a, axis, &along)
    y = result_like(a, out)
    begin_plan(&job.plan, y, 2)
    a = add_input(&job.plan, a, y)
    if job.plan.size:
        lay_channels(&job, s, along, y, False)
        run_channels(&job)
        free(job.heap)
    return y if out is None else out


cdef ndarray fitting_slope(object slope, ndarray x, object axis, int* along):
    """The slope, checked, in the dtype that is computed in for x, and its axis from the front."""
    cdef int number
    if (is_simple(slope) and cnp.PyArray_TYPE(<ndarray> slope) == cnp.PyArray_TYPE(x) and cnp.PyArray_TYPE(x) != NPY_HALF
            and type(axis) is int):
        if cnp.PyArray_NDIM(<ndarray> slope) == 0:
            along[0] = 0
            return <ndarray> slope
        number = plain_axis(axis, cnp.PyArray_NDIM(x))
        if (number >= 0 and cnp.PyArray_NDIM(<ndarray> slope) == 1
                and cnp.PyArray_DIM(<ndarray> slope, 0) == cnp.PyArray_DIM(x, number)):
            along[0] = number
            return <ndarray> slope
    array, along[0] = _checks.as_slope(slope, (<object> x).shape, axis)
    return as_computed(array, _checks.result_dtype(x))


cdef ndarray as_computed(object values, object dtype):
    with np.errstate(all="ignore"):
        return values.astype(_checks.compute_dtype(dtype), copy=False)


def prelu_backward(dy, x, slope, *, axis=1, out=None):
    """(dx, dslope): dx = dy where x > 0, else slope * dy; dslope = the sum of dy * x over the elements where x <= 0.

    dy: dL/dy, an array of x's shape. x: the forward input. slope, axis: as in the forward call.
    out: array of x's shape and the result's dtype that receives dx; it may be dy or x or overlap them.

    dslope has slope's shape and dtype; products, and sums of up to four, are in the dtype computed in, all else is summed in
    float64 in a fixed order, so its bits do not depend on the threads.
    Error: dx correctly rounded; dslope within 4 * u * sum(abs(dy * x)) of the same elements, u = 2**-24 in float32, 2**-53 in
    float64.
    Raises as prelu does, ValueError where the shapes differ.
    """
    cdef Channels job
    cdef ndarray g, a, s, y, total
    cdef int along
    if is_simple(dy) and is_simple(x) and same_form(<ndarray> dy, <ndarray> x):
        g, a = <ndarray> dy, <ndarray> x
    else:
        g = _checks.as_input(dy, "dy")
        a = _checks.as_input(x)
        _checks.check_same_shape(g, a, "x")
        dtype = _checks.result_dtype(g, a)
        g, a = in_dtype(g, dtype), in_dtype(a, dtype)
    if runs_code(slope) or runs_code(axis):
        g, a = own_view(g), own_view(a)
    s = fitting_slope(slope, a, axis, &along)
    y = result_like(a, out)
    if cnp.PyArray_NDIM(s) and cnp.PyArray_STRIDE(s, 0) == 0:
        s = s.copy()  # one repeated for all channels would count as a scalar, with one sum
    begin_plan(&job.plan, y, 6)
    g = add_input(&job.plan, g, y)
    a = add_input(&job.plan, a, y)
    total = cnp.PyArray_ZEROS(cnp.PyArray_NDIM(s), cnp.PyArray_DIMS(s), cnp.NPY_DOUBLE, 0)
    if job.plan.size:
        lay_channels(&job, s, along, y, True)
        run_channels(&job)
        fold_slopes(&job, <double*> cnp.PyArray_DATA(total), cnp.PyArray_SIZE(s))
        free(job.heap)
    return y if out is None else out, like_slope(total, slope)


cdef void fold_slopes(Channels* job, double* total, Py_ssize_t channels) noexcept nogil:
    """Add up the sums of all chunks, and of all that stand for one channel, in their order."""
    cdef Py_ssize_t chunk, i, j, place = 0, beside = job.spread if job.slopes.inner == 1 else FN_LANES
    for chunk in range(1, job.chunks):
        for i in range(job.width):
            job.sums[i] += job.sums[chunk * job.width + i]
    while place < job.width:
        for i in range(channels):
            for j in range(beside):
                total[channels - 1 - i if job.turned else i] += job.sums[place + j]
            place += beside


cdef object like_slope(ndarray total, object slope):
    """dslope in the dtype of the slope as it was given."""
    cdef ndarray dslope
    cdef Py_ssize_t i
    if not is_simple(slope) or cnp.PyArray_TYPE(<ndarray> slope) == NPY_HALF:
        with np.errstate(all="ignore"):
            return total.astype(_checks.result_dtype(_checks.as_input(slope, "slope")))
    if cnp.PyArray_TYPE(<ndarray> slope) == cnp.NPY_DOUBLE:
        return total
    dslope = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(total), cnp.PyArray_DIMS(total), cnp.NPY_FLOAT, 0)
    for i in range(cnp.PyArray_SIZE(total)):
        (<float*> cnp.PyArray_DATA(dslope))[i] = <float> (<double*> cnp.PyArray_DATA(total))[i]
    return dslope


# --- maxout -------------------------------------------------------------------------------------------------------

cdef struct Pieces:
    Plan plan            # of the units: the first piece of x, or dy; which; y, or the first piece of dx
    bint backward
    bint strided         # the pieces are read or written where they are, else by way of blocks
    Py_ssize_t count
    Py_ssize_t step      # bytes from one piece to the next, in x forward, in dx backward
    Py_ssize_t part      # LANES of units that a thread takes


cdef void pieces_part(void* context, int part) noexcept nogil:
    """Blocks of units; the pieces of a unit are operands that differ in their first byte alone."""
    cdef Pieces* job = <Pieces*> context
    cdef Plan plan = job.plan  # our own: its operands move from piece to piece
    cdef fn_block blocks[3]
    cdef Py_ssize_t indices[BLOCK_ITEMS]
    cdef Py_ssize_t start = part * job.part * FN_LANES, stop = min(plan.size, start + job.part * FN_LANES), n
    cdef Py_ssize_t* which
    cdef bint which_direct = plan.source[1].contiguous and <uintptr_t> plan.source[1].data % sizeof(Py_ssize_t) == 0
    while start < stop:
        n = min(stop - start, <Py_ssize_t> BLOCK_BYTES // plan.itemsize)
        if job.strided:  # along the last axis elements are evenly spaced
            n = min(n, plan.shape[plan.ndim - 1] - start % plan.shape[plan.ndim - 1])
        which = <Py_ssize_t*> plan.source[1].data + start if which_direct else indices
        if job.backward:
            if not which_direct:
                exchange(&plan, &plan.source[1], start, n, <char*> which, True)
            spread_pieces(job, &plan, start, n, which, blocks)
        else:
            take_largest(job, &plan, start, n, which, blocks)
            if not which_direct:
                exchange(&plan, &plan.source[1], start, n, <char*> which, False)
        start += n


cdef inline void take_largest(const Pieces* job, Plan* plan, Py_ssize_t start, Py_ssize_t n, Py_ssize_t* which,
                              fn_block* blocks) noexcept nogil:
    cdef Py_ssize_t number, step = plan.source[0].strides[plan.ndim - 1] // plan.itemsize if job.strided else 1
    cdef int dtype = FN_DOUBLE if plan.itemsize == 8 else FN_SINGLE
    cdef char* best = plan.result.data + start * plan.itemsize if plan.result.direct else blocks[2].bytes
    cdef const char* first = piece_of_x(job, plan, start, n, 0, blocks[0].bytes)
    cdef const char* second = first if job.count == 1 else piece_of_x(job, plan, start, n, 1, blocks[1].bytes)
    plan.level.maxout_two[dtype](first, second, step, best, which, n)
    for number in range(2, job.count):
        first = piece_of_x(job, plan, start, n, number, blocks[0].bytes)
        plan.level.maxout_more[dtype](first, step, best, which, n, number)
    if not plan.result.direct:
        store(plan, start, n, best)


cdef inline const char* piece_of_x(const Pieces* job, Plan* plan, Py_ssize_t start, Py_ssize_t n, Py_ssize_t number,
                                   char* block) noexcept nogil:
    plan.source[0].data = job.plan.source[0].data + number * job.step
    if job.strided:
        return place_at(plan, &plan.source[0], start, plan.ndim)
    return load(plan, &plan.source[0], start, n, block)


cdef inline void spread_pieces(const Pieces* job, Plan* plan, Py_ssize_t start, Py_ssize_t n, const Py_ssize_t* which,
                               fn_block* blocks) noexcept nogil:
    cdef Py_ssize_t number, step = plan.result.strides[plan.ndim - 1] // plan.itemsize, piece = job.step // plan.itemsize
    cdef int dtype = FN_DOUBLE if plan.itemsize == 8 else FN_SINGLE
    cdef const char* dy = block_of(plan, &plan.source[0], start, n, blocks[0].bytes)
    if job.strided and job.count == 2 and step == 2 and piece == 1:
        plan.level.maxout_two_backward[dtype](dy, which, place_at(plan, &plan.result, start, plan.ndim), n)
    elif job.strided:
        plan.level.maxout_backward[dtype](dy, which, place_at(plan, &plan.result, start, plan.ndim), step, piece, n, 0,
                                         job.count)
    else:
        for number in range(job.count):
            plan.level.maxout_backward[dtype](dy, which, blocks[1].bytes, 1, 0, n, number, number + 1)
            plan.result.data = job.plan.result.data + number * job.step
            store(plan, start, n, blocks[1].bytes)


cdef int run_pieces(Pieces* job, ndarray a, ndarray which, ndarray y, ndarray units, int axis) except -1:
    """Forward a is x and y y, backward a is dy and y dx; units is the one of them that has an element a unit."""
    cdef Operand* split
    begin_plan(&job.plan, units, 10 * job.count)
    if job.plan.size == 0:
        return 0
    describe(&job.plan.source[0], a)
    describe(&job.plan.source[1], which)
    describe(&job.plan.result, y)
    # the array with the pieces, seen at the first piece of every unit
    split = &job.plan.result if job.backward else &job.plan.source[0]
    job.step = split.strides[axis]
    split.strides[axis] *= job.count
    job.plan.inputs = 2
    end_plan(&job.plan, units)
    job.plan.streamed = False
    job.strided = is_native(&job.plan, split) and job.step % job.plan.itemsize == 0
    run_shares(pieces_part, job, padded(job.plan.size) // FN_LANES, &job.part, job.plan.nanoseconds)
    return 0


cdef int axis_from_front(object axis, ndarray x) except -1:
    cdef int number = plain_axis(axis, cnp.PyArray_NDIM(x))
    return number if number >= 0 else _checks.normalize_axis(axis, cnp.PyArray_NDIM(x))


def maxout(x, pieces=2, axis=1, *, out=None):
    """(y, which): the largest of `pieces` neighbours along `axis`, and its index among them.

    x: array-like whose axis has a length of C * pieces; the pieces of a unit lie side by side: (.., C*pieces, ..) is read as
        (.., C, pieces, ..). Dtypes as in sigmoid.
    out: array of y's shape (.., C, ..) and dtype that receives y; it may overlap x.

    which is intp, 0..pieces-1, the first on ties. A NaN wins. The result is exact.
    Raises ValueError for a length that is not a multiple of pieces, AxisError for an axis that x does not have, and as sigmoid
    does.
    Source: Goodfellow et al., Maxout networks, 2013.
    """
    cdef Pieces job
    cdef ndarray a, y, which
    cdef cnp.npy_intp shape[MAX_DIMS]
    cdef int along, i
    a = <ndarray> x if is_simple(x) else _checks.as_input(x)
    if runs_code(pieces) or runs_code(axis):
        a = own_view(a)
    along = axis_from_front(axis, a)
    if type(pieces) is int and 0 < pieces < 1 << 30 and cnp.PyArray_DIM(a, along) % <Py_ssize_t> pieces == 0:
        job.count = pieces
    else:
        job.count = _checks.check_pieces(pieces, cnp.PyArray_DIM(a, along), along)
    job.backward = False
    for i in range(cnp.PyArray_NDIM(a)):
        shape[i] = cnp.PyArray_DIM(a, i) // (job.count if i == along else 1)
    which = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(a), shape, cnp.NPY_INTP, 0)
    y = result_of_shape(shape, a, out)
    if out is not None and may_overlap(a, y):
        a = a.copy()
    run_pieces(&job, a, which, y, y, along)
    return y if out is None else out, which


cdef ndarray result_of_shape(cnp.npy_intp* shape, ndarray x, object out):
    """A new array of this shape, as many axes as x and the dtype of its results, or `out`, checked, as an ndarray."""
    cdef int ndim = cnp.PyArray_NDIM(x)
    if is_simple(x) and out is None:
        return cnp.PyArray_EMPTY(ndim, shape, cnp.PyArray_TYPE(x), 0)
    if (is_simple(x) and is_simple(out) and cnp.PyArray_ISWRITEABLE(<ndarray> out)
            and cnp.PyArray_TYPE(<ndarray> out) == cnp.PyArray_TYPE(x) and cnp.PyArray_NDIM(<ndarray> out) == ndim
            and cnp.PyArray_CompareLists(cnp.PyArray_DIMS(<ndarray> out), shape, ndim)):
        return <ndarray> out
    dtype = _checks.result_dtype(x)
    lengths = tuple([shape[i] for i in range(ndim)])
    _checks.check_out(out, lengths, dtype)
    return np.empty(lengths, dtype) if out is None else out.view(ndarray)


cdef ndarray as_winners(object which, ndarray dy, Py_ssize_t pieces):
    """Checked indices as an intp array; the usual array is only looked through."""
    cdef const fn_level* level = current_level()
    if (cnp.PyArray_CheckExact(which) and cnp.PyArray_TYPE(<ndarray> which) == cnp.NPY_INTP
            and cnp.PyArray_ISCARRAY_RO(<ndarray> which) and cnp.PyArray_NDIM(<ndarray> which) == cnp.PyArray_NDIM(dy)
            and cnp.PyArray_CompareLists(cnp.PyArray_DIMS(<ndarray> which), cnp.PyArray_DIMS(dy), cnp.PyArray_NDIM(dy))
            and level.all_below(cnp.PyArray_DATA(<ndarray> which), cnp.PyArray_SIZE(<ndarray> which), pieces)):
        return <ndarray> which
    return _checks.as_which(which, (<object> dy).shape, pieces)


def maxout_backward(dy, which, pieces=2, axis=1, out=None):
    """dL/dx: dy at the piece that won, 0 at the others.

    dy: dL/dy, shape (.., C, ..). which: what maxout returned, integers of that shape. pieces, axis: as in the forward call.
    out: array of the shape (.., C * pieces, ..) and dy's dtype that receives the result; it may overlap dy.

    Raises TypeError for a `which` that is no integer array, ValueError for another shape or an index outside 0..pieces-1.
    """
    cdef Pieces job
    cdef ndarray a, dx, winners
    cdef cnp.npy_intp shape[MAX_DIMS]
    cdef int along, i
    a = <ndarray> dy if is_simple(dy) else _checks.as_input(dy, "dy")
    if runs_code(which) or runs_code(pieces) or runs_code(axis):
        a = own_view(a)
    along = axis_from_front(axis, a)
    if type(pieces) is int and 0 < pieces < 1 << 30 and cnp.PyArray_DIM(a, along) < 1 << 30:
        job.count = pieces
    else:
        job.count = _checks.pieces_param(pieces, cnp.PyArray_DIM(a, along))
    job.backward = True
    winners = as_winners(which, a, job.count)
    for i in range(cnp.PyArray_NDIM(a)):
        shape[i] = cnp.PyArray_DIM(a, i) * (job.count if i == along else 1)
    dx = result_of_shape(shape, a, out)
    if out is not None:
        if may_overlap(a, dx):
            a = a.copy()
        if may_overlap(winners, dx):
            winners = winners.copy()
    run_pieces(&job, a, winners, dx, a, along)
    return dx if out is None else out
