# From Python arguments to a plan. Native arrays take a short path of C checks; everything else (other dtypes and byte
# orders, lists, overlapping results, mistakes) goes through fastnn._checks, which the NumPy reference uses too, so both
# accept the same and complain in the same words.

cdef extern from "numpy/arrayobject.h":
    int NPY_HALF
    ndarray PyArray_NewLikeArray(ndarray prototype, cnp.NPY_ORDER order, cnp.dtype descr, int subok)
    object PyDataMem_SetHandler(object handler)

cdef extern from "Python.h":
    long PyLong_AsLongAndOverflow(object number, int* overflow) noexcept

cdef extern from "memory.h":
    enum:
        FN_HAS_MEMORY
        FN_LARGE
    void* fn_memory_handler_address "&fn_memory_handler"
    int fn_memory_setup() nogil

cdef object large_memory = PyCapsule_New(fn_memory_handler_address, "mem_handler", NULL)
fn_memory_setup()

cdef double NANOSECONDS = 0.06     # an element of 4 bytes costs about this times the row's cost
cdef double RELEASE_GIL = 4000.0   # nanoseconds of work from which on releasing the GIL is worth its price


cdef inline bint runs_code(object argument) noexcept:
    """Whether reading an argument may run Python code of others (__array__, __index__)."""
    return type(argument) is not int and not cnp.PyArray_CheckExact(argument)


cdef inline ndarray own_view(ndarray x):
    """x with a shape that code which an argument that is read later runs cannot change."""
    return x.view()


cdef inline double work(double cost, Py_ssize_t n, int itemsize) noexcept nogil:
    """Nanoseconds that n elements of this cost take, about; double takes twice as long."""
    return cost * NANOSECONDS * n * (2 if itemsize == 8 else 1)


cdef inline double row_work(int row, int direction, ndarray y):
    return work(row_cost[row][direction], cnp.PyArray_SIZE(y), cnp.PyArray_ITEMSIZE(y))


cdef void run_shares(fn_task task, void* job, Py_ssize_t units, Py_ssize_t* share, double nanoseconds) noexcept:
    """Run a task whose part number k does units k * share to (k + 1) * share - 1, on as many threads as pay."""
    cdef int parts
    if nanoseconds < RELEASE_GIL:
        share[0] = units
        task(job, 0)
    else:
        with nogil:
            parts = parts_for(nanoseconds, units)
            share[0] = (units + parts - 1) // parts
            fn_parallel(task, job, parts)


cdef object NO_GRADIENT = object()  # in place of dy in the forward direction


cdef list checked_inputs(object x, object dy):
    """What parameters go with: mistakes in it are told before mistakes in them."""
    if dy is NO_GRADIENT:
        return [_checks.as_input(x)]
    arrays = [_checks.as_input(dy, "dy"), _checks.as_input(x, "saved")]
    _checks.check_same_shape(*arrays)
    return arrays


cdef inline double real_param(object value, str name, str must_be, object x, object dy) except? -1.0:
    """A scalar parameter as a double, checked and, where it is no plain float, rounded to the dtype computed in. x is what
    was saved in the backward direction; dy is NO_GRADIENT forward."""
    cdef double number
    if type(value) is float:
        number = value
        if 1e-37 < number < 1e38 or (must_be == "finite" and -1e38 < number < 1e38):
            return number
    return _checks.real_param(value, name, must_be, _checks.compute_dtype(_checks.result_dtype(*checked_inputs(x, dy))))


cdef inline int plain_axis(object axis, int ndim) noexcept:
    """An int as an axis counted from the front; -1 where it is no int or not one of so many axes."""
    cdef int overflow
    cdef long number
    if type(axis) is not int:
        return -1
    number = PyLong_AsLongAndOverflow(axis, &overflow)
    if overflow or not -ndim <= number < ndim:
        return -1
    return <int> (number + ndim if number < 0 else number)


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


cdef inline bint is_simple(object x) noexcept:
    """An ndarray proper of native float16, float32 or float64, in any layout."""
    return (cnp.PyArray_CheckExact(x) and cnp.PyArray_ISNOTSWAPPED(<ndarray> x)
            and (cnp.PyArray_TYPE(<ndarray> x) == cnp.NPY_FLOAT or cnp.PyArray_TYPE(<ndarray> x) == cnp.NPY_DOUBLE
                 or cnp.PyArray_TYPE(<ndarray> x) == NPY_HALF))


cdef inline bint is_simple_result(object out, ndarray x) noexcept:
    """A writeable ndarray of x's form."""
    return is_simple(out) and cnp.PyArray_ISWRITEABLE(<ndarray> out) and same_form(x, <ndarray> out)


cdef inline ndarray new_like(ndarray x):
    """An array of x's shape, dtype and, where it is dense, memory order."""
    if FN_HAS_MEMORY and cnp.PyArray_NBYTES(x) >= FN_LARGE:
        return new_large(x)
    if cnp.PyArray_IS_C_CONTIGUOUS(x):
        return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(x), cnp.PyArray_DIMS(x), cnp.PyArray_TYPE(x), 0)
    return PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, <cnp.dtype> NULL, 0)


cdef ndarray new_large(ndarray x):
    """new_like in memory that was used before, where there is some: see memory.h."""
    former = PyDataMem_SetHandler(large_memory)
    try:
        return PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, <cnp.dtype> NULL, 0)
    finally:
        PyDataMem_SetHandler(former)


cdef ndarray result_like(ndarray x, object out):
    """A new array for a result of x's form, or `out`, checked, as an ndarray."""
    if out is None:
        return new_like(x) if is_simple(x) else np.empty_like(x, dtype=_checks.result_dtype(x), subok=False)
    if not is_simple_result(out, x):
        _checks.check_out(out, (<object> x).shape, _checks.result_dtype(x))
    return <ndarray> out if cnp.PyArray_CheckExact(out) else out.view(ndarray)


cdef object run_row(int row, int direction, object a, object b, object out, const double* params):
    """Run one row of the table: a is x or dy, b what forward saved (None in the forward direction)."""
    cdef ndarray first, second, y
    cdef Py_ssize_t n, nbytes
    cdef const char* x
    cdef const char* other
    cdef char* place
    cdef fn_map kernel
    cdef int dtype
    if (not is_simple(a)
            or (direction == FN_BACKWARD and not (is_simple(b) and same_form(<ndarray> a, <ndarray> b)))
            or (out is not None and not is_simple_result(out, <ndarray> a))):
        return run_checked(row, direction, a, b, out, params)
    first = <ndarray> a
    y = new_like(first) if out is None else <ndarray> out
    if not (is_plain(a) and is_plain(y) and (direction == FN_FORWARD or is_plain(b))):
        return run_arrays(row, direction, first, b, y, params)
    n = cnp.PyArray_SIZE(first)
    nbytes = cnp.PyArray_NBYTES(first)
    x = cnp.PyArray_BYTES(first)
    other = x
    if direction == FN_BACKWARD:
        other = cnp.PyArray_BYTES(<ndarray> b)
    place = cnp.PyArray_BYTES(y)
    if ((nbytes > BLOCK_BYTES and row_work(row, direction, y) >= RELEASE_GIL)
            or not ((x == place or apart(x, place, nbytes)) and (other == place or apart(other, place, nbytes)))):
        return run_arrays(row, direction, first, b, y, params)
    dtype = FN_SINGLE if cnp.PyArray_TYPE(first) == cnp.NPY_FLOAT else FN_DOUBLE
    kernel = current_level().map[row][direction][dtype]
    if x == place or other == place:
        run_turns(kernel, current_level().turns[row][direction][dtype], x, other, place, n,
                  cnp.PyArray_ITEMSIZE(first), params, False)
    else:
        run_direct(kernel, x, other, place, n, cnp.PyArray_ITEMSIZE(first), params)
    return y


cdef object run_checked(int row, int direction, object a, object b, object out, const double* params):
    cdef object x, saved = None, dtype
    if direction == FN_BACKWARD:
        x = _checks.as_input(a, "dy")
        saved = _checks.as_input(b, "saved")
        _checks.check_same_shape(x, saved, "saved")
        dtype = _checks.result_dtype(x, saved)
        saved = in_dtype(saved, dtype)
    else:
        x = _checks.as_input(a, "x")
        dtype = _checks.result_dtype(x)
    _checks.check_out(out, x.shape, dtype)
    result = np.empty_like(x, dtype=dtype, subok=False) if out is None else out.view(ndarray)
    run_arrays(row, direction, in_dtype(x, dtype), saved, result, params)
    return result if out is None else out


cdef object in_dtype(object x, object dtype):
    """x itself where it has the dtype in either byte order, else converted (operands of two dtypes)."""
    if x.dtype.newbyteorder("=") == dtype:
        return x
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return x.astype(dtype)


cdef object run_arrays(int row, int direction, ndarray a, object b, ndarray y, const double* params):
    """Run a row over arrays of one dtype and shape in any layout."""
    cdef Plan plan
    cdef int dtype
    begin_plan(&plan, y, row_cost[row][direction])
    dtype = FN_DOUBLE if plan.itemsize == 8 else FN_SINGLE
    plan.kernel = plan.level.map[row][direction][dtype]
    plan.turns = plan.level.turns[row][direction][dtype]
    plan.params = params
    first = add_input(&plan, a, y)
    second = None if b is None else add_input(&plan, b, y)  # both stay referenced: they may be copies
    if plan.size:
        end_plan(&plan, y)
        run_plan_or_range(&plan)
    return y


def copy_array(ndarray x, ndarray y):
    """y[...] = x for two arrays of one shape in any layout, of one dtype or of float16 and float32: several times as fast as NumPy
    where it converts or transposes."""
    cdef Plan plan
    begin_plan(&plan, y, 1.0)
    plan.kernel = NULL
    plan.params = NULL
    x = add_input(&plan, x, y)
    if plan.size:
        end_plan(&plan, y)
        run_plan_or_range(&plan)


cdef void run_plan_or_range(Plan* plan):
    if plan.nanoseconds < RELEASE_GIL:
        run_range(plan, 0, boxes_of(plan))
    else:
        with nogil:
            run_plan(plan)


cdef void begin_plan(Plan* plan, ndarray y, double cost):
    plan.level = current_level()
    plan.turns = NULL
    plan.inputs = 0
    plan.size = cnp.PyArray_SIZE(y)
    plan.itemsize = 8 if cnp.PyArray_ITEMSIZE(y) == 8 else 4
    plan.nanoseconds = work(cost, plan.size, plan.itemsize)
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


def set_stream_limits(Py_ssize_t moved, Py_ssize_t computed):
    """Let results bypass the caches beyond so many bytes read and written, of functions that memory limits and of those
    that compute longer, and return the former limits: tests need no large arrays."""
    global STREAM_BYTES, STREAM_COMPUTED_BYTES
    former = STREAM_BYTES, STREAM_COMPUTED_BYTES
    STREAM_BYTES, STREAM_COMPUTED_BYTES = moved, computed
    return former


def set_mesh(bint on):
    """Let activations and normalizations go the ways for a mesh or the others, and return what was: tests try both on
    any machine."""
    global HAS_MESH
    former = HAS_MESH
    HAS_MESH = on
    return former


cdef bint bypasses_caches(const Plan* plan) noexcept nogil:
    cdef Py_ssize_t nbytes = plan.size * plan.result.itemsize
    cdef bint moved = plan.nanoseconds / current_threads() < COMPUTE_BOUND * nbytes
    return (plan.result.contiguous and not plan.result.swapped and not plan.staged
            and (plan.inputs + 1) * nbytes > (STREAM_BYTES if moved else STREAM_COMPUTED_BYTES)
            and <uintptr_t> plan.result.data % plan.result.itemsize == 0)


cdef void end_plan(Plan* plan, ndarray y):
    cdef int i
    merge_axes(plan, y)
    for i in range(plan.inputs):
        finish(plan, &plan.source[i])
    finish(plan, &plan.result)
    plan.streamed = bypasses_caches(plan)
    lay_boxes(plan)


cdef bint may_overlap(ndarray x, ndarray y):
    if cnp.PyArray_IS_C_CONTIGUOUS(x) and cnp.PyArray_IS_C_CONTIGUOUS(y):
        return not (cnp.PyArray_BYTES(x) + cnp.PyArray_NBYTES(x) <= cnp.PyArray_BYTES(y)
                    or cnp.PyArray_BYTES(y) + cnp.PyArray_NBYTES(y) <= cnp.PyArray_BYTES(x))
    return np.may_share_memory(x, y)


cdef bint same_elements(ndarray x, ndarray y):
    """Whether x and y are the same memory, element by element, each of its own (their shapes are equal)."""
    cdef int axis
    if cnp.PyArray_BYTES(x) != cnp.PyArray_BYTES(y) or cnp.PyArray_ITEMSIZE(x) != cnp.PyArray_ITEMSIZE(y):
        return False
    for axis in range(cnp.PyArray_NDIM(x)):
        if cnp.PyArray_DIM(x, axis) != 1 and cnp.PyArray_STRIDE(x, axis) != cnp.PyArray_STRIDE(y, axis):
            return False
    return not may_repeat(y)


cdef bint may_repeat(ndarray y):
    """Whether two elements of y may share memory, as in a view that np.lib.stride_tricks made."""
    cdef int i, j, ndim = cnp.PyArray_NDIM(y)
    cdef Py_ssize_t step, other, inner
    if cnp.PyArray_IS_C_CONTIGUOUS(y):
        return False
    for i in range(ndim):
        step = abs(cnp.PyArray_STRIDE(y, i))
        inner = cnp.PyArray_ITEMSIZE(y)  # bytes from first to last of what lies between two steps
        for j in range(ndim):
            other = abs(cnp.PyArray_STRIDE(y, j))
            if cnp.PyArray_DIM(y, j) > 1 and (other < step or (other == step and j < i)):
                inner += other * (cnp.PyArray_DIM(y, j) - 1)
        if cnp.PyArray_DIM(y, i) > 1 and step < inner:
            return True
    return False


cdef void describe(Operand* operand, ndarray x):
    cdef int axis
    operand.data = cnp.PyArray_BYTES(x)
    operand.itemsize = cnp.PyArray_ITEMSIZE(x)
    operand.half = operand.itemsize == 2
    operand.swapped = not cnp.PyArray_ISNOTSWAPPED(x)
    for axis in range(cnp.PyArray_NDIM(x)):
        operand.strides[axis] = cnp.PyArray_STRIDE(x, axis)


cdef inline bint is_native(const Plan* plan, const Operand* operand) noexcept nogil:
    """Whether every element can be read and written where it is."""
    cdef uintptr_t mixed = <uintptr_t> operand.data
    cdef int axis
    for axis in range(plan.ndim):
        mixed |= <uintptr_t> operand.strides[axis]
    return operand.itemsize == plan.itemsize and not operand.swapped and mixed % operand.itemsize == 0


cdef void finish(const Plan* plan, Operand* operand) noexcept nogil:
    operand.native = is_native(plan, operand)
    operand.contiguous = plan.ndim == 1 and (operand.strides[0] == operand.itemsize or plan.size == 1)
    operand.direct = operand.contiguous and operand.native


cdef void merge_axes(Plan* plan, ndarray y) noexcept:
    """Order the axes as the result lies in memory, turn its negative strides, and join them."""
    cdef int order[MAX_DIMS]
    cdef Operand* operands[MAX_INPUTS + 1]
    cdef Py_ssize_t strides[MAX_DIMS]
    cdef Py_ssize_t stride
    cdef int ndim = 0, axis, i, place, count = plan.inputs + 1
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
    join_axes(plan, operands, count, ndim, order, y)


cdef inline void join_axes(Plan* plan, Operand** operands, int count, int ndim, const int* order, ndarray y) noexcept:
    """Give the plan y's axes in this order, joined where they run on for every operand; strides are in that order."""
    cdef int axis, i
    cdef bint runs_on
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
    cdef Py_ssize_t start = part * job.part, stop = min(job.nbytes, start + job.part)
    if start < stop:
        job.level.stream(job.target + start, job.source + start, stop - start)
        fn_stream_fence()
