# The activations that take more than an element at a time: gelu's two variants, prelu, softmax, log_softmax, maxout and
# cross_entropy.

from libc.stdlib cimport malloc, free


def gelu(x, approximate="none", *, out=None):
    """x * Phi(x), elementwise, Phi the distribution function of the standard normal; or its tanh approximation.

    x: array-like of any shape; float16, float32 and float64 stay what they are (float16 is computed in float32),
        integers and bools become float64.
    approximate: "none", or "tanh" for x / 2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x**3))).
    out: array of x's shape and the result's dtype that receives the result; it may be x or overlap it.

    Returns an array of x's shape. NaN gives NaN, infinities the limit; no floating-point warning is raised.
    Error: at most 1.5 ULP in float32, 2 ULP in float64, in the tails too, down to subnormal results.
    Raises TypeError for a dtype that is not accepted or an out of another dtype, ValueError for another `approximate` or
    an out of another shape or read-only.
    Source: Hendrycks and Gimpel, Gaussian error linear units, 2016.
    """
    return run_row(gelu_row(approximate), FN_FORWARD, x, None, out, NULL)


def gelu_backward(dy, saved, approximate="none", *, out=None):
    """dL/dx = dy * (Phi(x) + x * phi(x)), phi the standard normal density; or the derivative of the tanh form.

    dy: dL/dy, an array of saved's shape. saved: the forward input x. approximate: as in the forward call.
    out: array of that shape and of the result's dtype (np.result_type of both) that receives the result; it may be dy or
        saved or overlap them.

    Error: at most 2 ULP of the exact derivative; within 0.05 of its zero at x = -0.75 instead 2 units of 2**-24 (float32)
    or 2**-53 (float64).
    Raises TypeError and ValueError as gelu does, ValueError where the shapes differ.
    """
    return run_row(gelu_row(approximate), FN_BACKWARD, dy, saved, out, NULL)


cdef int gelu_row(object approximate) except -1:
    return ROW_gelu if _checks.gelu_variant(approximate) == "gelu" else ROW_gelu_tanh


# --- rows ---------------------------------------------------------------------------------------------------------

cdef struct Rows:
    Plan plan             # axes in the array's order but the row's, which is last; not merged
    fn_row kernel
    fn_loss_row loss      # instead of kernel, for cross_entropy
    const Py_ssize_t* labels
    double* losses
    double share
    Py_ssize_t count
    Py_ssize_t length
    Py_ssize_t part       # rows a thread takes
    bint out_of_memory


cdef void rows_part(void* context, int part) noexcept nogil:
    """Run the kernel on a slice of the rows: each operand's row in place where it lies right, else staged."""
    cdef Rows* rows = <Rows*> context
    cdef Plan* plan = &rows.plan
    cdef fn_block blocks[MAX_INPUTS]
    cdef char* buffers[MAX_INPUTS]
    cdef char* heap = NULL
    cdef const char* sources[2]
    cdef char* result
    cdef Py_ssize_t length = rows.length, nbytes = padded(length) * plan.itemsize
    cdef Py_ssize_t row, start = part * rows.part, stop = min(rows.count, start + rows.part)
    cdef bint staged = plan.staged or not plan.result.direct
    cdef int i
    if nbytes > BLOCK_BYTES:
        heap = <char*> malloc(3 * nbytes)
        if heap == NULL:
            rows.out_of_memory = True
            return
    for i in range(3):
        buffers[i] = blocks[i].bytes if heap == NULL else heap + i * nbytes
    for row in range(start, stop):
        for i in range(plan.inputs):
            sources[i] = (row_place(plan, &plan.source[i], row) if plan.source[i].direct
                          else load_row(plan, &plan.source[i], row, length, buffers[i]))
        result = buffers[2] if staged else row_place(plan, &plan.result, row)
        if rows.loss != NULL:
            rows.losses[row] = rows.loss(sources[0], result, length, rows.labels[row], rows.share)
        else:
            rows.kernel(sources[0], sources[plan.inputs - 1], result, length)
        if staged:
            store_row(plan, row, length, result)
    free(heap)


cdef char* row_place(const Plan* plan, const Operand* array, Py_ssize_t row) noexcept nogil:
    cdef char* place = array.data
    cdef int axis
    for axis in range(plan.ndim - 2, -1, -1):
        place += row % plan.shape[axis] * array.strides[axis]
        row //= plan.shape[axis]
    return place


cdef char* load_row(const Plan* plan, const Operand* array, Py_ssize_t row, Py_ssize_t length, char* buffer) noexcept nogil:
    cdef Py_ssize_t i = 0, n
    while i < length:
        n = min(length - i, <Py_ssize_t> BLOCK_BYTES // 8)
        load(plan, array, row * length + i, n, buffer + i * plan.itemsize)
        i += n
    return buffer


cdef void store_row(const Plan* plan, Py_ssize_t row, Py_ssize_t length, const char* buffer) noexcept nogil:
    cdef Py_ssize_t i = 0, n
    while i < length:
        n = min(length - i, <Py_ssize_t> BLOCK_BYTES // 8)
        store(plan, row * length + i, n, buffer + i * plan.itemsize)
        i += n


cdef bint lay_rows(Rows* rows, ndarray y, int axis) except -1:
    """Complete a plan whose operands are described: the row's axis goes last. False if there are no elements."""
    cdef Plan* plan = &rows.plan
    cdef Operand* operand
    cdef Py_ssize_t stride
    cdef int i, j
    if plan.size == 0:
        return False
    plan.ndim = max(1, cnp.PyArray_NDIM(y))
    plan.shape[0] = 1
    for i in range(cnp.PyArray_NDIM(y)):
        plan.shape[i] = cnp.PyArray_DIM(y, i)
    rows.length = plan.shape[axis]
    rows.count = plan.size // rows.length
    rows.out_of_memory = False
    for j in range(axis, plan.ndim - 1):
        plan.shape[j] = plan.shape[j + 1]
    plan.shape[plan.ndim - 1] = rows.length
    for i in range(plan.inputs + 1):
        operand = &plan.source[i] if i < plan.inputs else &plan.result
        if cnp.PyArray_NDIM(y) == 0:
            operand.strides[0] = operand.itemsize
        stride = operand.strides[axis]
        for j in range(axis, plan.ndim - 1):
            operand.strides[j] = operand.strides[j + 1]
        operand.strides[plan.ndim - 1] = stride
        operand.contiguous = False
        operand.direct = ((stride == operand.itemsize or rows.length == 1) and not operand.swapped
                          and operand.itemsize == plan.itemsize and steps_aligned(plan, operand))
    return True


cdef bint steps_aligned(const Plan* plan, const Operand* operand) noexcept nogil:
    cdef uintptr_t mixed = <uintptr_t> operand.data
    cdef int axis
    for axis in range(plan.ndim):
        mixed |= <uintptr_t> operand.strides[axis]
    return mixed % operand.itemsize == 0


cdef int run_rows(Rows* rows) except -1:
    cdef double nanoseconds = 6 * NANOSECONDS * rows.plan.size
    cdef int parts
    if nanoseconds < RELEASE_GIL:
        rows.part = rows.count
        rows_part(rows, 0)
    else:
        with nogil:
            parts = parts_for(nanoseconds, rows.count)
            rows.part = (rows.count + parts - 1) // parts
            fn_parallel(rows_part, rows, parts)
    if rows.out_of_memory:
        raise MemoryError(f"no memory to stage rows of {rows.length} elements")
    return 0


cdef object along_rows(int kind, int direction, object a, object b, object axis, object out):
    """softmax or log_softmax; a is x or dy, b what forward saved (None in the forward direction)."""
    cdef Rows rows
    cdef ndarray x, saved, y
    cdef Py_ssize_t along
    cdef int ndim
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
    ndim = cnp.PyArray_NDIM(x)
    if type(axis) is not int or not -max(ndim, 1) <= <Py_ssize_t> axis < max(ndim, 1):
        axis = _checks.softmax_axis(axis, ndim)
    along = axis
    if along < 0:
        along += max(ndim, 1)
    y = result_like(x, out)
    begin_plan(&rows.plan, y)
    x = add_input(&rows.plan, x, y)
    if direction == FN_BACKWARD:
        saved = add_input(&rows.plan, <ndarray> b, y)
    if lay_rows(&rows, y, along):
        rows.kernel = rows.plan.level.rows[kind][direction][FN_DOUBLE if rows.plan.itemsize == 8 else FN_SINGLE]
        rows.loss = NULL
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
    Raises as softmax does, ValueError where the shapes differ.
    """
    return along_rows(FN_SOFTMAX, FN_BACKWARD, dy, saved, axis, out)


def log_softmax(x, axis=-1, *, out=None):
    """log(softmax(x)) = x - max - log(sum(exp(x - max))) along `axis`.

    Arguments, errors and special values as softmax; -Inf among finite entries gives -Inf.
    Error: at most 4 ULP, also where the result is close to 0 (one entry dominates its row).
    """
    return along_rows(FN_LOG_SOFTMAX, FN_FORWARD, x, None, axis, out)


def log_softmax_backward(dy, saved, axis=-1, *, out=None):
    """dL/dx = dy - exp(y) * sum(dy) along `axis`; saved is the forward output y. Arguments and errors as softmax_backward."""
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
    if cnp.PyArray_NDIM(x) != 2:
        _checks.check_logits(x)
    n = cnp.PyArray_DIM(x, 0)
    classes = as_classes(labels, n, cnp.PyArray_DIM(x, 1))
    y = result_like(x, out)
    if out is not None and may_overlap(classes, y):
        classes = classes.copy()
    begin_plan(&rows.plan, y)
    x = add_input(&rows.plan, x, y)
    if lay_rows(&rows, y, 1):
        rows.loss = rows.plan.level.loss[FN_DOUBLE if rows.plan.itemsize == 8 else FN_SINGLE]
        rows.labels = <const Py_ssize_t*> cnp.PyArray_DATA(classes)
        rows.share = 1.0 / n
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
    cdef const Py_ssize_t* values
    cdef Py_ssize_t i
    cdef bint good
    if (cnp.PyArray_CheckExact(labels) and cnp.PyArray_TYPE(<ndarray> labels) == cnp.NPY_INTP
            and cnp.PyArray_NDIM(<ndarray> labels) == 1 and cnp.PyArray_DIM(<ndarray> labels, 0) == n
            and cnp.PyArray_ISCARRAY_RO(<ndarray> labels)):
        values = <const Py_ssize_t*> cnp.PyArray_DATA(<ndarray> labels)
        good = True
        for i in range(n):
            good &= 0 <= values[i] < count
        if good:
            return <ndarray> labels
    return _checks.as_labels(labels, n, count)


# --- prelu --------------------------------------------------------------------------------------------------------

cdef void add_channels(Plan* plan, ndarray values, int axis, int ndim):
    """Make a vector along one axis (or a scalar) the next operand, repeated over all other axes."""
    cdef Operand* operand = &plan.source[plan.inputs]
    cdef int i
    describe(operand, values)
    for i in range(ndim):
        operand.strides[i] = 0
    if cnp.PyArray_NDIM(values):
        operand.strides[axis] = cnp.PyArray_STRIDE(values, 0)
    plan.inputs += 1


def prelu(x, slope, *, axis=1, out=None):
    """x where x > 0, else slope * x, with a learned slope for every channel.

    x: array-like of any shape, dtypes as in sigmoid. slope: a scalar, or shape (C,) with C = x.shape[axis]; it is rounded to
        the dtype computed in.
    out: array of x's shape and the result's dtype that receives the result; it may be x or overlap it.

    Error: correctly rounded. Raises ValueError for a slope of another shape, AxisError for an axis that x does not have, and as
    sigmoid does.
    Source: He et al., Delving deep into rectifiers, 2015.
    """
    cdef Plan plan
    cdef ndarray a, s, y
    cdef int along
    a = <ndarray> x if is_simple(x) else _checks.as_input(x)
    s = fitting_slope(slope, a, axis, &along)
    y = result_like(a, out)
    if out is not None and may_overlap(s, y):
        s = s.copy()
    begin_plan(&plan, y)
    a = add_input(&plan, a, y)
    if plan.size:
        add_channels(&plan, s, along, cnp.PyArray_NDIM(y))
        end_plan(&plan, y)
        plan.kernel = plan.level.prelu[FN_DOUBLE if plan.itemsize == 8 else FN_SINGLE]
        run_plan_or_range(&plan, 2 * NANOSECONDS * plan.size)
    return y if out is None else out


cdef ndarray fitting_slope(object slope, ndarray x, object axis, int* along):
    """The slope, checked, in the dtype that is computed in for x (float16 converts on the way), and its axis from the front."""
    cdef Py_ssize_t number
    cdef int ndim = cnp.PyArray_NDIM(x)
    if is_simple(slope) and cnp.PyArray_TYPE(<ndarray> slope) == cnp.PyArray_TYPE(x) and type(axis) is int:
        if cnp.PyArray_NDIM(<ndarray> slope) == 0:
            along[0] = 0
            return <ndarray> slope
        number = axis
        if number < 0:
            number += ndim
        if (0 <= number < ndim and cnp.PyArray_NDIM(<ndarray> slope) == 1
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

    dslope has slope's shape and dtype; it is summed in float64 in a fixed order, so its bits do not depend on the threads.
    Raises as prelu does, ValueError where the shapes differ.
    """
    cdef Plan plan
    cdef ndarray g, a, s, y
    cdef int along
    if is_simple(dy) and is_simple(x) and same_form(<ndarray> dy, <ndarray> x):
        g, a = <ndarray> dy, <ndarray> x
    else:
        g = _checks.as_input(dy, "dy")
        a = _checks.as_input(x)
        _checks.check_same_shape(g, a, "x")
        dtype = _checks.result_dtype(g, a)
        g, a = in_dtype(g, dtype), in_dtype(a, dtype)
    s = fitting_slope(slope, a, axis, &along)
    y = result_like(a, out)
    dslope = sum_slopes(g, a, s, slope, along)
    if out is not None and may_overlap(s, y):
        s = s.copy()
    begin_plan(&plan, y)
    g = add_input(&plan, g, y)
    a = add_input(&plan, a, y)
    if plan.size:
        add_channels(&plan, s, along, cnp.PyArray_NDIM(y))
        end_plan(&plan, y)
        plan.kernel3 = plan.level.prelu_backward[FN_DOUBLE if plan.itemsize == 8 else FN_SINGLE]
        run_plan_or_range(&plan, 2 * NANOSECONDS * plan.size)
    return y if out is None else out, dslope


cdef struct Slopes:
    Plan plan
    fn_map kernel
    fn_sum_run sum_run
    fn_add_run add_run
    double* sums         # (chunks, channels)
    Py_ssize_t channels
    Py_ssize_t inner     # elements of one channel side by side
    Py_ssize_t chunk     # elements summed in one go: fixed by the shape, so the sums do not depend on the threads
    Py_ssize_t chunks
    Py_ssize_t part


cdef void slopes_part(void* context, int part) noexcept nogil:
    cdef Slopes* job = <Slopes*> context
    cdef Plan* plan = &job.plan
    cdef fn_block blocks[3]
    cdef Py_ssize_t chunk, start, stop, n, done, run, channel
    cdef double* sums
    cdef const char* terms = blocks[2].bytes
    for chunk in range(part * job.part, min(job.chunks, (part + 1) * job.part)):
        sums = job.sums + chunk * job.channels
        start = chunk * job.chunk
        stop = min(plan.size, start + job.chunk)
        while start < stop:
            n = min(stop - start, <Py_ssize_t> BLOCK_BYTES // plan.itemsize)
            job.kernel(load(plan, &plan.source[0], start, n, blocks[0].bytes),
                       load(plan, &plan.source[1], start, n, blocks[1].bytes), blocks[2].bytes, padded(n), NULL)
            done = 0
            while done < n:
                channel = (start + done) // job.inner % job.channels
                if job.inner == 1:
                    run = min(n - done, job.channels - channel)
                    job.add_run(terms + done * plan.itemsize, sums + channel, run)
                else:
                    run = min(n - done, job.inner - (start + done) % job.inner)
                    sums[channel] += job.sum_run(terms + done * plan.itemsize, run)
                done += run
            start += n


cdef object sum_slopes(ndarray dy, ndarray x, ndarray slope, object given, int axis):
    """prelu's dslope, in the form of the slope as it was given; summed in float64."""
    cdef Slopes job
    cdef Plan* plan = &job.plan
    cdef int i, parts, dtype, ndim = cnp.PyArray_NDIM(x)
    cdef cnp.npy_intp count
    cdef Py_ssize_t j
    cdef double nanoseconds
    cdef ndarray sums, dslope
    begin_plan(plan, x)
    dtype = FN_DOUBLE if plan.itemsize == 8 else FN_SINGLE
    job.channels = cnp.PyArray_SIZE(slope)
    job.inner = max(1, plan.size)
    if cnp.PyArray_NDIM(slope):
        job.inner = 1
        for i in range(axis + 1, ndim):
            job.inner *= cnp.PyArray_DIM(x, i)
    job.chunk = max(<Py_ssize_t> 1 << 16, 16 * job.channels)
    job.chunks = (plan.size + job.chunk - 1) // job.chunk
    count = max(<Py_ssize_t> 1, job.chunks) * job.channels
    sums = cnp.PyArray_ZEROS(1, &count, cnp.NPY_DOUBLE, 0)
    job.sums = <double*> cnp.PyArray_DATA(sums)
    plan.ndim = max(1, ndim)
    plan.shape[0] = 1
    for i in range(ndim):
        plan.shape[i] = cnp.PyArray_DIM(x, i)
    for i in range(2):
        array = x if i else dy
        describe(&plan.source[i], array)
        plan.source[i].contiguous = cnp.PyArray_IS_C_CONTIGUOUS(<ndarray> array)
        plan.source[i].direct = cnp.PyArray_ISCARRAY_RO(<ndarray> array) and not plan.source[i].half
    job.kernel = plan.level.prelu_dslope[dtype]
    job.sum_run = plan.level.sum_run[dtype]
    job.add_run = plan.level.add_run[dtype]
    nanoseconds = 4 * NANOSECONDS * plan.size
    if job.chunks:
        with nogil:
            parts = parts_for(nanoseconds, job.chunks)
            job.part = (job.chunks + parts - 1) // parts
            fn_parallel(slopes_part, &job, parts)
    for j in range(job.channels, job.chunks * job.channels):
        job.sums[j % job.channels] += job.sums[j]
    if not (is_simple(given) and cnp.PyArray_TYPE(<ndarray> given) == cnp.NPY_FLOAT):
        with np.errstate(all="ignore"):
            given = _checks.as_input(given, "slope")
            return sums[:job.channels].reshape(given.shape).astype(_checks.result_dtype(given))
    dslope = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(slope), cnp.PyArray_DIMS(slope), cnp.NPY_FLOAT, 0)
    for j in range(job.channels):
        (<float*> cnp.PyArray_DATA(dslope))[j] = <float> job.sums[j]
    return dslope


# --- maxout -------------------------------------------------------------------------------------------------------

cdef struct Pieces:
    Plan plan            # of the units; source[0]: the first piece of x, or dy; source[1]: which; result: y, or dx's first piece
    fn_piece kernel
    bint backward
    Py_ssize_t count
    Py_ssize_t step      # bytes from one piece to the next, in x forward, in dx backward
    Py_ssize_t part      # units a thread takes


cdef void pieces_part(void* context, int part) noexcept nogil:
    """Blocks of units; the pieces of a unit are operands that differ in their first byte alone."""
    cdef Pieces* job = <Pieces*> context
    cdef Plan plan = job.plan  # our own: its operands move from piece to piece
    cdef fn_block values
    cdef fn_block result
    cdef fn_block lanes  # which, in the kernel's dtype
    cdef Py_ssize_t indices[BLOCK_ITEMS]
    cdef Py_ssize_t start = part * job.part, stop = min(plan.size, start + job.part), n, piece
    cdef char* x = plan.source[0].data
    cdef char* dx = plan.result.data
    while start < stop:
        n = min(stop - start, <Py_ssize_t> BLOCK_BYTES // plan.itemsize)
        if job.backward:
            move_block(&plan, &plan.source[1], start, n, <char*> indices, True)
            indices_to_lanes(indices, lanes.bytes, n, plan.itemsize)
            for piece in range(job.count):
                plan.result.data = dx + piece * job.step
                job.kernel(load(&plan, &plan.source[0], start, n, values.bytes), result.bytes, lanes.bytes, padded(n), piece)
                store(&plan, start, n, result.bytes)
        else:
            plan.source[0].data = x
            memcpy(result.bytes, load(&plan, &plan.source[0], start, n, values.bytes), padded(n) * plan.itemsize)
            memset(lanes.bytes, 0, padded(n) * plan.itemsize)
            for piece in range(1, job.count):
                plan.source[0].data = x + piece * job.step
                job.kernel(load(&plan, &plan.source[0], start, n, values.bytes), result.bytes, lanes.bytes, padded(n), piece)
            store(&plan, start, n, result.bytes)
            lanes_to_indices(lanes.bytes, indices, n, plan.itemsize)
            move_block(&plan, &plan.source[1], start, n, <char*> indices, False)
        start += n


cdef void indices_to_lanes(const Py_ssize_t* indices, char* lanes, Py_ssize_t n, int itemsize) noexcept nogil:
    cdef Py_ssize_t i
    memset(lanes, 0, padded(n) * itemsize)
    for i in range(n):
        if itemsize == 4:
            (<float*> lanes)[i] = <float> indices[i]
        else:
            (<double*> lanes)[i] = <double> indices[i]


cdef void lanes_to_indices(const char* lanes, Py_ssize_t* indices, Py_ssize_t n, int itemsize) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        indices[i] = <Py_ssize_t> (<const float*> lanes)[i] if itemsize == 4 else <Py_ssize_t> (<const double*> lanes)[i]


cdef int run_pieces(Pieces* job, ndarray a, ndarray which, ndarray y, ndarray units, int axis) except -1:
    """Forward a is x and y y, backward a is dy and y dx; units is the one of them that has an element a unit."""
    cdef double nanoseconds
    cdef int parts, dtype
    cdef Operand* split
    begin_plan(&job.plan, units)
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
    dtype = FN_DOUBLE if job.plan.itemsize == 8 else FN_SINGLE
    job.kernel = job.plan.level.maxout_backward[dtype] if job.backward else job.plan.level.maxout[dtype]
    nanoseconds = 10 * NANOSECONDS * job.count * job.plan.size
    with nogil:
        parts = parts_for(nanoseconds, job.plan.size // FN_LANES + 1)
        job.part = padded((job.plan.size + parts - 1) // parts)
        fn_parallel(pieces_part, job, parts)
    return 0


cdef int axis_from_front(object axis, ndarray x) except -1:
    cdef Py_ssize_t number
    if type(axis) is int:
        number = axis
        if number < 0:
            number += cnp.PyArray_NDIM(x)
        if 0 <= number < cnp.PyArray_NDIM(x):
            return number
    return _checks.normalize_axis(axis, cnp.PyArray_NDIM(x))


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
    along = axis_from_front(axis, a)
    job.count = _checks.check_pieces(pieces, cnp.PyArray_DIM(a, along), along)
    job.backward = False
    for i in range(cnp.PyArray_NDIM(a)):
        shape[i] = cnp.PyArray_DIM(a, i) // (job.count if i == along else 1)
    which = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(a), shape, cnp.NPY_INTP, 0)
    if out is None and is_simple(a):
        y = cnp.PyArray_EMPTY(cnp.PyArray_NDIM(a), shape, cnp.PyArray_TYPE(a), 0)
    else:
        dtype = _checks.result_dtype(a)
        _checks.check_out(out, (<object> which).shape, dtype)
        y = np.empty_like(which, dtype=dtype) if out is None else out.view(ndarray)
        if may_overlap(a, y):
            a = a.copy()
    run_pieces(&job, a, which, y, y, along)
    return y if out is None else out, which


def maxout_backward(dy, which, pieces=2, axis=1, out=None):
    """dL/dx: dy at the piece that won, 0 at the others.

    dy: dL/dy, shape (.., C, ..). which: what maxout returned, integers of that shape. pieces, axis: as in the forward call.
    out: array of the shape (.., C * pieces, ..) and dy's dtype that receives the result; it may overlap dy.

    Raises TypeError for a `which` that is no integer array, ValueError for another shape or an index outside 0..pieces-1.
    """
    cdef Pieces job
    cdef ndarray a, dx, winners
    cdef int along
    a = <ndarray> dy if is_simple(dy) else _checks.as_input(dy, "dy")
    along = axis_from_front(axis, a)
    job.count = _checks.integer_param(pieces, "pieces", 1)
    job.backward = True
    given = (<object> a).shape
    winners = _checks.as_which(which, given, job.count)
    dtype = _checks.result_dtype(a)
    shape = (*given[:along], given[along] * job.count, *given[along + 1:])
    _checks.check_out(out, shape, dtype)
    dx = np.empty(shape, dtype) if out is None else out.view(ndarray)
    if may_overlap(a, dx):
        a = a.copy()
    if may_overlap(winners, dx):
        winners = winners.copy()
    run_pieces(&job, a, winners, dx, a, along)
    return dx if out is None else out
