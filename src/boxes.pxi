# Boxes: blocks of a plan as rows and columns of its axes, and how their elements get from an array to a block and back.

cdef enum:
    TILE_BYTES = 128  # sides of a box that some operand lies across: whole cache lines either way
    SHORT_RUN = 64    # bytes below which a run is not worth a call of its own

cdef struct Box:
    Py_ssize_t index[MAX_DIMS]  # of its first element
    Py_ssize_t rows, columns


cdef inline Py_ssize_t count_of(Py_ssize_t n, Py_ssize_t most) noexcept nogil:
    """How many pieces of at most `most` n is cut into."""
    return (n + most - 1) // most


cdef inline Py_ssize_t distance(Py_ssize_t stride) noexcept nogil:
    return -stride if stride < 0 else stride


cdef inline Py_ssize_t even(Py_ssize_t n, Py_ssize_t most, Py_ssize_t unit) noexcept nogil:
    """The length of a piece where n is cut into pieces of about one length, at most `most`, of whole units as far as possible."""
    cdef Py_ssize_t each = count_of(n, count_of(n, most))
    return min(min(n, most), (each + unit - 1) & -unit)


cdef void lay_boxes(Plan* plan) noexcept nogil:
    """Choose the boxes: runs along the last axis, several where they are short, or square where an input runs along another."""
    cdef int axis, i, last = plan.ndim - 1, longest = 0
    cdef Py_ssize_t most = BLOCK_BYTES // plan.itemsize
    cdef bint turned = False
    plan.across, plan.wide, plan.lead = max(last - 1, 0), min(plan.shape[last], most), 0
    for axis in range(last):
        longest = axis if plan.shape[axis] > plan.shape[longest] else longest
    if plan.shape[plan.across] * plan.wide < most // 4:
        plan.across = longest
    for i in range(plan.inputs):
        for axis in range(last):
            if plan.source[i].strides[axis] and distance(plan.source[i].strides[axis]) < distance(plan.source[i].strides[last]):
                if not turned or plan.shape[axis] > plan.shape[plan.across]:
                    plan.across = axis
                turned = True
    if turned:
        plan.wide = even(plan.shape[last], max(TILE_BYTES // plan.itemsize, most // plan.shape[plan.across]), FN_LANES)
    plan.high = even(plan.shape[plan.across], most // plan.wide, 4) if last else 1
    if (plan.streamed or turned) and plan.wide < plan.shape[last]:
        plan.lead = <Py_ssize_t> (<uintptr_t> plan.result.data % CACHE_LINE) // plan.result.itemsize


cdef inline Py_ssize_t boxes_wide(const Plan* plan) noexcept nogil:
    return count_of(plan.shape[plan.ndim - 1] + plan.lead, plan.wide)


cdef inline Py_ssize_t boxes_of(const Plan* plan) noexcept nogil:
    cdef Py_ssize_t count = boxes_wide(plan)
    if plan.ndim > 1:
        count *= plan.size // (plan.shape[plan.ndim - 1] * plan.shape[plan.across]) * count_of(plan.shape[plan.across], plan.high)
    return count


cdef void open_box(const Plan* plan, Py_ssize_t number, Box* box) noexcept nogil:
    cdef int axis, last = plan.ndim - 1
    cdef Py_ssize_t wide = boxes_wide(plan), high
    box.index[last] = number % wide * plan.wide - plan.lead
    box.columns = min(plan.wide, plan.shape[last] - box.index[last])
    if box.index[last] < 0:
        box.columns += box.index[last]
        box.index[last] = 0
    box.rows = 1
    if last == 0:
        return
    number //= wide
    high = count_of(plan.shape[plan.across], plan.high)
    box.index[plan.across] = number % high * plan.high
    number //= high
    box.rows = min(plan.high, plan.shape[plan.across] - box.index[plan.across])
    for axis in range(last - 1, -1, -1):
        if axis != plan.across:
            box.index[axis] = number % plan.shape[axis]
            number //= plan.shape[axis]


cdef inline char* place_of(const Plan* plan, const Operand* array, const Box* box) noexcept nogil:
    cdef char* place = array.data
    cdef int axis
    for axis in range(plan.ndim):
        place += box.index[axis] * array.strides[axis]
    return place


cdef inline void move(const fn_level* level, char* block, Py_ssize_t step, char* place, Py_ssize_t stride, Py_ssize_t n,
                      const Operand* array, bint gather) noexcept nogil:
    """Copy n elements from an array to a block, or back, and put their bytes in order."""
    if gather:
        level.move(place, stride, block, step, n, array.itemsize, array.swapped)
    else:
        level.move(block, step, place, stride, n, array.itemsize, array.swapped)


cdef void move_box(const fn_level* level, const Operand* array, char* place, Py_ssize_t rows, Py_ssize_t columns,
                   Py_ssize_t across, Py_ssize_t along, char* block, Py_ssize_t pitch, bint gather) noexcept nogil:
    """Copy a box of elements, `across` and `along` bytes apart, to a block whose rows are `pitch` elements apart, or back."""
    cdef Py_ssize_t size = array.itemsize, width = columns * size, step = pitch * size, i
    cdef int dtype = FN_DOUBLE if size == 8 else FN_SINGLE
    if rows == 1 or (along == size and across == width and step == width):
        move(level, block, size, place, along, rows * columns, array, gather)
    elif array.native and across == size:
        if gather:
            level.transpose[dtype](place, along // size, block, pitch, columns, rows)
        else:
            level.transpose[dtype](block, pitch, place, along // size, rows, columns)
    elif columns >= rows or (along == size and width >= SHORT_RUN):
        for i in range(rows):
            move(level, block + i * step, size, place + i * across, along, columns, array, gather)
    else:
        for i in range(columns):
            move(level, block + i * size, step, place + i * along, across, rows, array, gather)


cdef void convert(const fn_level* level, char* halves, char* singles, Py_ssize_t n, bint gather) noexcept nogil:
    """n halves to singles, or back; a vector of its own takes the end in."""
    cdef Py_ssize_t whole = n & -FN_LANES, last = n - FN_LANES
    cdef char few[2 * FN_LANES]
    cdef char results[4 * FN_LANES]
    if gather:
        level.half_to_single(halves, singles, whole)
        if whole == 0:
            memset(few, 0, sizeof(few))
            memcpy(few, halves, 2 * n)
            level.half_to_single(few, results, FN_LANES)
            memcpy(singles, results, 4 * n)
        elif whole < n:
            level.half_to_single(halves + 2 * last, singles + 4 * last, FN_LANES)
    else:
        level.single_to_half(singles, halves, whole)
        if whole == 0:
            memset(results, 0, sizeof(results))
            memcpy(results, singles, 4 * n)
            level.single_to_half(results, few, FN_LANES)
            memcpy(halves, few, 2 * n)
        elif whole < n:
            level.single_to_half(singles + 4 * last, halves + 2 * last, FN_LANES)


cdef void convert_runs(const fn_level* level, char* halves, Py_ssize_t step, char* singles, Py_ssize_t pitch, Py_ssize_t runs,
                       Py_ssize_t n, bint gather) noexcept nogil:
    """Runs of n halves, `step` bytes apart, to runs of singles, `pitch` of them apart, or back."""
    cdef Py_ssize_t i
    if step == 2 * n and pitch == n:
        convert(level, halves, singles, runs * n, gather)
        return
    for i in range(runs):
        convert(level, halves + i * step, singles + 4 * i * pitch, n, gather)


cdef void exchange_box(const fn_level* level, const Operand* array, char* place, Py_ssize_t rows, Py_ssize_t columns,
                       Py_ssize_t across, Py_ssize_t along, char* block, Py_ssize_t pitch, char* room,
                       bint gather) noexcept nogil:
    """As `move_box`, between an array and a block in the kernel's dtype; room: as large as the block."""
    if not array.half:
        move_box(level, array, place, rows, columns, across, along, block, pitch, gather)
    elif along == 2 and not array.swapped and (rows == 1 or columns >= FN_LANES):
        convert_runs(level, place, across, block, pitch, rows, columns, gather)
    elif across == 2 and not array.swapped and (along == 2 * rows or rows >= FN_LANES):
        if gather:
            convert_runs(level, place, along, room, rows, columns, rows, True)
            level.transpose[<int> FN_SINGLE](room, rows, block, pitch, columns, rows)
        else:
            level.transpose[<int> FN_SINGLE](block, pitch, room, rows, rows, columns)
            convert_runs(level, place, along, room, rows, columns, rows, False)
    elif gather:
        move_box(level, array, place, rows, columns, across, along, room, pitch, True)
        convert(level, room, block, (rows - 1) * pitch + columns, True)
    else:
        convert(level, room, block, (rows - 1) * pitch + columns, False)
        move_box(level, array, place, rows, columns, across, along, room, pitch, False)


cdef void exchange_in(const Plan* plan, const Operand* array, const Box* box, char* block, Py_ssize_t pitch,
                      bint gather) noexcept nogil:
    """What an array has in a box."""
    cdef fn_block room
    exchange_box(plan.level, array, place_of(plan, array, box), box.rows, box.columns, array.strides[plan.across],
                 array.strides[plan.ndim - 1], block, pitch, room.bytes, gather)


cdef inline char* place_at(const Plan* plan, const Operand* array, Py_ssize_t position, int axes) noexcept nogil:
    """The element at a position in C order of the first `axes` axes, and at the beginning of the others."""
    cdef char* place = array.data
    cdef int axis
    for axis in range(axes - 1, -1, -1):
        place += position % plan.shape[axis] * array.strides[axis]
        position //= plan.shape[axis]
    return place


cdef void exchange(const Plan* plan, const Operand* array, Py_ssize_t start, Py_ssize_t n, char* block,
                   bint gather) noexcept nogil:
    """Copy the n elements from position `start` on (in C order of the plan's shape) to the block, or back: whole rows
    together, and what is before and after them."""
    cdef fn_block room
    cdef int last = plan.ndim - 1
    cdef Py_ssize_t length = plan.shape[last], beside = plan.shape[last - 1] if last else 1
    cdef Py_ssize_t rows, columns, first, most
    while n:
        first = start % length
        most = min(n, <Py_ssize_t> BLOCK_ITEMS)
        rows = min(most // length, beside - start // length % beside) if first == 0 else 0
        columns = length if rows else min(most, length - first)
        rows = max(rows, <Py_ssize_t> 1)
        exchange_box(plan.level, array, place_at(plan, array, start, plan.ndim), rows, columns,
                     array.strides[last - 1] if last else 0, array.strides[last], block, columns, room.bytes, gather)
        start += rows * columns
        block += rows * columns * (plan.itemsize if array.half else array.itemsize)
        n -= rows * columns
