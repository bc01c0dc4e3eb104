# From Python arguments to a plan. Contiguous native arrays take a short path of C checks; everything else (other layouts
# and dtypes, overlapping results, mistakes) goes through fastnn._checks, which the NumPy reference uses too, so both
# accept the same and complain in the same words.

cdef double NANOSECONDS = 0.06     # an element costs about this times the row's cost
cdef double RELEASE_GIL = 4000.0   # nanoseconds of work from which on releasing the GIL is worth its price


cdef inline double real_param(object value, str name, str must_be, object x) except? -1.0:
    """A scalar parameter as a double, checked; one that float32 cannot hold is judged in the dtype that x is computed in."""
    cdef double number
    if type(value) is float:
        number = value
        if 1e-37 < number < 1e38 or (must_be == "finite" and -1e38 < number < 1e38):
            return number
    return _checks.real_param(value, name, must_be, _checks.compute_dtype(_checks.result_dtype(_checks.as_input(x))))


cdef inline bint is_plain(object x) noexcept:
    """An ndarray proper, C-contiguous, aligned, native, float32 or float64."""
    return (cnp.PyArray_CheckExact(x)
            and (cnp.PyArray_TYPE(<ndarray> x) == cnp.NPY_FLOAT or cnp.PyArray_TYPE(<ndarray> x) == cnp.NPY_DOUBLE)
            and cnp.PyArray_ISCARRAY_RO(<ndarray> x))


cdef inline bint same_form(ndarray a, ndarray b) noexcept:
    return (cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(b) and cnp.PyArray_NDIM(a) == cnp.PyArray_NDIM(b)
            and cnp.PyArray_CompareLists(cnp.PyArray_DIMS(a), cnp.PyArray_DIMS(b), cnp.PyArray_NDIM(a)))


cdef inline bint apart(const char* a, const char* b, Py_ssize_t nbytes) noexcept nogil:
    return a + nbytes <= b or b + nbytes <= a


cdef object run_row(int row, int direction, object a, object b, object out, const double* params):
    """Run one row of the table: a is x or dy, b what forward saved (None in the forward direction)."""
    cdef ndarray first, second, y
    cdef Py_ssize_t n, nbytes
    cdef int dtype
    cdef bint plain = is_plain(a)
    if plain and direction == FN_BACKWARD:
        plain = is_plain(b) and same_form(<ndarray> a, <ndarray> b)
    if plain and out is not None:
        plain = is_plain(out) and cnp.PyArray_ISWRITEABLE(<ndarray> out) and same_form(<ndarray> a, <ndarray> out)
    if not plain:
        return run_checked(row, direction, a, b, out, params)
    first = <ndarray> a
    second = <ndarray> b if direction == FN_BACKWARD else first
    if out is None:
        y = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(first), cnp.PyArray_DIMS(first), cnp.PyArray_TYPE(first), 0)
    else:
        y = <ndarray> out
    nbytes = cnp.PyArray_NBYTES(first)
    n = cnp.PyArray_SIZE(first)
    if (nbytes > BLOCK_BYTES and row_cost[row] * n * NANOSECONDS >= RELEASE_GIL) or not (
            apart(cnp.PyArray_BYTES(first), cnp.PyArray_BYTES(y), nbytes)
            and apart(cnp.PyArray_BYTES(second), cnp.PyArray_BYTES(y), nbytes)):
        return run_arrays(row, direction, first, second if direction == FN_BACKWARD else None, y, params)
    dtype = FN_SINGLE if cnp.PyArray_TYPE(first) == cnp.NPY_FLOAT else FN_DOUBLE
    run_small(current_level().map[row][direction][dtype], cnp.PyArray_BYTES(first), cnp.PyArray_BYTES(second),
              cnp.PyArray_BYTES(y), n, cnp.PyArray_ITEMSIZE(first), params)
    return y


cdef void run_small(fn_map kernel, const char* a, const char* b, char* y, Py_ssize_t n, int itemsize,
                    const double* params) noexcept nogil:
    """Plain arrays that do not overlap, on this thread: whole vectors in place, the tail through padded blocks."""
    cdef fn_block pad[3]
    cdef Py_ssize_t whole = n & -FN_LANES, nbytes = (n - whole) * itemsize
    if whole:
        kernel(a, b, y, whole, params)
    if nbytes:
        memset(pad[0].bytes, 0, FN_LANES * itemsize)
        memset(pad[1].bytes, 0, FN_LANES * itemsize)
        memcpy(pad[0].bytes, a + whole * itemsize, nbytes)
        memcpy(pad[1].bytes, b + whole * itemsize, nbytes)
        kernel(pad[0].bytes, pad[1].bytes, pad[2].bytes, FN_LANES, params)
        memcpy(y + whole * itemsize, pad[2].bytes, nbytes)


cdef object run_checked(int row, int direction, object a, object b, object out, const double* params):
    cdef object x, saved = None, dtype
    if direction == FN_BACKWARD:
        x = _checks.as_input(a, "dy")
        saved = _checks.as_input(b, "saved")
        _checks.check_same_shape(x, saved, "saved")
        dtype = _checks.result_dtype(x, saved)
    else:
        x = _checks.as_input(a, "x")
        dtype = _checks.result_dtype(x)
    _checks.check_out(out, x.shape, dtype)
    result = np.empty_like(x, dtype=dtype, subok=False) if out is None else out.view(ndarray)
    run_arrays(row, direction, in_dtype(x, dtype), None if saved is None else in_dtype(saved, dtype), result, params)
    return result if out is None else out


cdef object in_dtype(object x, object dtype):
    """x itself where it has the dtype in either byte order, else converted (operands of two dtypes)."""
    return x if x.dtype.newbyteorder("=") == dtype else x.astype(dtype)


cdef object run_arrays(int row, int direction, ndarray a, object b, ndarray y, const double* params):
    """Run a row over arrays of one dtype and shape in any layout."""
    cdef Plan plan
    cdef double nanoseconds = row_cost[row] * cnp.PyArray_SIZE(y) * NANOSECONDS
    begin_plan(&plan, y)
    plan.kernel = plan.level.map[row][direction][FN_DOUBLE if plan.itemsize == 8 else FN_SINGLE]
    plan.params = params
    first = add_input(&plan, a, y)
    second = None if b is None else add_input(&plan, b, y)  # both stay referenced: they may be copies
    if plan.size:
        end_plan(&plan, y)
        run_plan_or_range(&plan, nanoseconds)
    return y


cdef void run_plan_or_range(Plan* plan, double nanoseconds):
    if nanoseconds < RELEASE_GIL:
        run_range(plan, 0, plan.size)
    else:
        with nogil:
            run_plan(plan, nanoseconds)


cdef void begin_plan(Plan* plan, ndarray y):
    plan.level = current_level()
    plan.inputs = 0
    plan.size = cnp.PyArray_SIZE(y)
    plan.itemsize = 8 if cnp.PyArray_ITEMSIZE(y) == 8 else 4
    plan.staged = False
    plan.streamed = False
    describe(&plan.result, y)


cdef ndarray add_input(Plan* plan, ndarray x, ndarray y):
    """Make x, of y's shape, the next operand. Where it overlaps the result otherwise than element by element it is copied."""
    if same_elements(x, y):
        plan.staged = True  # each block is read before it is overwritten
    elif may_overlap(x, y):
        x = x.copy()
    describe(&plan.source[plan.inputs], x)
    plan.inputs += 1
    return x


cdef void end_plan(Plan* plan, ndarray y):
    cdef int i
    merge_axes(plan, y)
    for i in range(plan.inputs):
        finish(plan, &plan.source[i])
    finish(plan, &plan.result)
    plan.streamed = (plan.result.contiguous and not plan.result.swapped and not plan.staged
                     and plan.size * plan.result.itemsize >= STREAM_BYTES
                     and <uintptr_t> plan.result.data % plan.result.itemsize == 0)


cdef bint may_overlap(ndarray x, ndarray y):
    if cnp.PyArray_IS_C_CONTIGUOUS(x) and cnp.PyArray_IS_C_CONTIGUOUS(y):
        return not (cnp.PyArray_BYTES(x) + cnp.PyArray_NBYTES(x) <= cnp.PyArray_BYTES(y)
                    or cnp.PyArray_BYTES(y) + cnp.PyArray_NBYTES(y) <= cnp.PyArray_BYTES(x))
    return np.may_share_memory(x, y)


cdef bint same_elements(ndarray x, ndarray y):
    """Whether x and y are the same memory, element by element (their shapes are equal)."""
    cdef int axis
    if cnp.PyArray_BYTES(x) != cnp.PyArray_BYTES(y) or cnp.PyArray_ITEMSIZE(x) != cnp.PyArray_ITEMSIZE(y):
        return False
    for axis in range(cnp.PyArray_NDIM(x)):
        if cnp.PyArray_DIM(x, axis) != 1 and cnp.PyArray_STRIDE(x, axis) != cnp.PyArray_STRIDE(y, axis):
            return False
    return True


cdef void describe(Operand* operand, ndarray x):
    cdef int axis
    operand.data = cnp.PyArray_BYTES(x)
    operand.itemsize = cnp.PyArray_ITEMSIZE(x)
    operand.half = operand.itemsize == 2
    operand.swapped = not cnp.PyArray_ISNOTSWAPPED(x)
    for axis in range(cnp.PyArray_NDIM(x)):
        operand.strides[axis] = cnp.PyArray_STRIDE(x, axis)


cdef void finish(const Plan* plan, Operand* operand) noexcept nogil:
    operand.contiguous = plan.ndim == 1 and (operand.strides[0] == operand.itemsize or plan.size == 1)
    operand.direct = (operand.contiguous and not operand.swapped and operand.itemsize == plan.itemsize
                      and <uintptr_t> operand.data % operand.itemsize == 0)


cdef void merge_axes(Plan* plan, ndarray y) noexcept:
    """Order the axes as the result lies in memory, turn its negative strides, and merge axes that run on for every operand."""
    cdef int order[MAX_DIMS]
    cdef Operand* operands[MAX_INPUTS + 1]
    cdef Py_ssize_t strides[MAX_DIMS]
    cdef Py_ssize_t stride
    cdef int ndim = 0, axis, i, place, count = plan.inputs + 1
    cdef bint runs_on
    for i in range(plan.inputs):
        operands[i] = &plan.source[i]
    operands[plan.inputs] = &plan.result
    for axis in range(cnp.PyArray_NDIM(y)):  # insertion sort by falling stride, stable: C order stays C order
        if cnp.PyArray_DIM(y, axis) == 1:
            continue
        stride = abs(cnp.PyArray_STRIDE(y, axis))
        place = ndim
        while place > 0 and abs(cnp.PyArray_STRIDE(y, order[place - 1])) < stride:
            order[place] = order[place - 1]
            place -= 1
        order[place] = axis
        ndim += 1
    for i in range(count):
        for axis in range(ndim):
            strides[axis] = operands[i].strides[order[axis]]
        for axis in range(ndim):
            operands[i].strides[axis] = strides[axis]
            if cnp.PyArray_STRIDE(y, order[axis]) < 0:
                operands[i].data += strides[axis] * (cnp.PyArray_DIM(y, order[axis]) - 1)
                operands[i].strides[axis] = -strides[axis]
    plan.ndim = 0
    for axis in range(ndim):
        runs_on = plan.ndim > 0
        for i in range(count):
            runs_on = runs_on and (operands[i].strides[plan.ndim - 1]
                                   == operands[i].strides[axis] * cnp.PyArray_DIM(y, order[axis]))
        if not runs_on:
            plan.ndim += 1
            plan.shape[plan.ndim - 1] = 1
        plan.shape[plan.ndim - 1] *= cnp.PyArray_DIM(y, order[axis])
        for i in range(count):
            operands[i].strides[plan.ndim - 1] = operands[i].strides[axis]
    if plan.ndim == 0:  # a single element
        plan.ndim = 1
        plan.shape[0] = 1
        for i in range(count):
            operands[i].strides[0] = operands[i].itemsize


def stream_copy(source, target):
    """Copy one plain array to another of its form past the caches, on this call's threads: the yardstick of the benchmarks."""
    if not (is_plain(source) and is_plain(target) and same_form(<ndarray> source, <ndarray> target)
            and cnp.PyArray_ISWRITEABLE(<ndarray> target)):
        raise ValueError("stream_copy needs two contiguous float32 or float64 arrays of one dtype and shape")
    if may_overlap(<ndarray> source, <ndarray> target):
        raise ValueError("stream_copy needs arrays that do not overlap")
    cdef Copy job
    cdef Py_ssize_t nbytes = cnp.PyArray_NBYTES(<ndarray> source)
    cdef int parts
    job.level = current_level()
    job.source = cnp.PyArray_BYTES(<ndarray> source)
    job.target = cnp.PyArray_BYTES(<ndarray> target)
    job.nbytes = nbytes
    with nogil:
        parts = parts_for(0.05 * nbytes, nbytes // BLOCK_BYTES + 1)
        job.part = (nbytes // parts + BLOCK_BYTES) & -BLOCK_BYTES
        fn_parallel(copy_part, &job, parts)


cdef struct Copy:
    const fn_level* level
    const char* source
    char* target
    Py_ssize_t nbytes
    Py_ssize_t part


cdef void copy_part(void* context, int part) noexcept nogil:
    cdef Copy* job = <Copy*> context
    cdef Py_ssize_t start = part * job.part, stop = min(job.nbytes, start + job.part), head
    if start < stop:
        head = min(stop - start, <Py_ssize_t> (-<uintptr_t> (job.target + start) % CACHE_LINE))
        memcpy(job.target + start, job.source + start, head)
        job.level.stream(job.target + start + head, job.source + start + head, stop - start - head)
        fn_stream_fence()
