# The block pipeline: load, compute, store.
#
# A plan says where the operands are and which kernel runs. Data goes through the kernel in blocks that fit the L1 cache. For
# each operand a block is either a pointer into the array (contiguous, aligned, native, of the kernel's dtype) or a staging
# block that is gathered, byte-swapped or converted before, and scattered, converted or streamed after. So strided arrays,
# half precision, in-place results, tails and results past the caches are one mechanism, and no kernel knows of them. Where
# every operand is direct there is nothing to stage, and one call does it all: of the kernel, or of its twin that works in turns.

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cdef extern from "transport.h" nogil:
    ctypedef struct fn_block:
        char* bytes
    enum:
        BLOCK_BYTES "FN_BLOCK_BYTES"
        BLOCK_ITEMS "FN_BLOCK_ITEMS"
    void fn_stream_fence() noexcept
    void fn_prefetch(const void* address) noexcept
    uint16_t __builtin_bswap16(uint16_t) noexcept
    uint32_t __builtin_bswap32(uint32_t) noexcept
    uint64_t __builtin_bswap64(uint64_t) noexcept

ctypedef fused word:
    uint16_t
    uint32_t
    uint64_t

cdef enum:
    MAX_DIMS = 64  # NumPy's limit
    MAX_INPUTS = 3
    CACHE_LINE = 64
    ALIGN_BYTES = 1024  # results from this size on are written in whole cache lines

# Results bypass the caches where what is read and what is written no longer fit the last level together. One larger than those
# that few cores share belongs to a mesh of all cores, which writes to it hardly faster than to memory: there it is 16 MB.
cdef Py_ssize_t STREAM_BYTES = fn_last_level_cache()
cdef bint HAS_MESH = STREAM_BYTES > 64 << 20
if HAS_MESH:
    STREAM_BYTES = 16 << 20

# Where a thread computes longer than so many nanoseconds a byte of them, ordinary stores overlap with that better: always
# where few cores share the last level, up to another size on a mesh.
cdef double COMPUTE_BOUND = 0.06
cdef Py_ssize_t STREAM_COMPUTED_BYTES = 64 << 20 if HAS_MESH else PY_SSIZE_T_MAX

cdef double MOVING = 0.02  # nanoseconds that a byte takes from or to a cache that is none of the core's own ...
cdef Py_ssize_t NEAR_BYTES = 3 << 19  # ... which hold about this many

cdef struct Operand:
    char* data
    Py_ssize_t strides[MAX_DIMS]
    int itemsize
    bint half        # float16: converted to float32 on the way in, from it on the way out
    bint swapped     # bytes in the other order
    bint contiguous  # one run from first to last element
    bint direct      # contiguous, aligned, native and of the kernel's dtype: blocks are pointers into it

cdef struct Plan:
    const fn_level* level
    fn_map kernel
    fn_turns turns         # the same in turns, where there is such a loop
    const double* params
    double nanoseconds     # estimated time of the whole
    int inputs
    int itemsize           # of the kernel's dtype
    int ndim
    Py_ssize_t shape[MAX_DIMS]
    Py_ssize_t size
    Py_ssize_t part        # elements a thread takes
    Operand source[MAX_INPUTS]
    Operand result
    bint staged            # the result may not be written before its block has been read
    bint streamed


cdef void move_words(char* dst, Py_ssize_t dst_step, const char* src, Py_ssize_t src_step, Py_ssize_t n, bint swapped,
                     word example) noexcept nogil:
    """Copy n words between strided, possibly misaligned places, reversing their bytes where asked."""
    cdef Py_ssize_t i
    cdef word value
    for i in range(n):
        memcpy(&value, src, sizeof(word))
        if swapped:
            if word is uint16_t:
                value = __builtin_bswap16(value)
            elif word is uint32_t:
                value = __builtin_bswap32(value)
            else:
                value = __builtin_bswap64(value)
        memcpy(dst, &value, sizeof(word))
        src += src_step
        dst += dst_step


cdef void move_run(char* dst, Py_ssize_t dst_step, const char* src, Py_ssize_t src_step, Py_ssize_t n, int itemsize,
                   bint swapped) noexcept nogil:
    if not swapped and dst_step == itemsize and src_step == itemsize:
        memcpy(dst, src, n * itemsize)
    elif itemsize == 2:
        move_words[uint16_t](dst, dst_step, src, src_step, n, swapped, 0)
    elif itemsize == 4:
        move_words[uint32_t](dst, dst_step, src, src_step, n, swapped, 0)
    else:
        move_words[uint64_t](dst, dst_step, src, src_step, n, swapped, 0)


cdef void move_block(const Plan* plan, const Operand* array, Py_ssize_t start, Py_ssize_t n, char* block,
                     bint gather) noexcept nogil:
    """Copy the n elements from position `start` on (in C order of the plan's shape) to the block, or back."""
    cdef Py_ssize_t index[MAX_DIMS]
    cdef Py_ssize_t rest = start, run, step = array.itemsize
    cdef char* place = array.data
    cdef int axis, last = plan.ndim - 1
    if array.contiguous:
        place += start * step
        if gather:
            move_run(block, step, place, step, n, array.itemsize, array.swapped)
        else:
            move_run(place, step, block, step, n, array.itemsize, array.swapped)
        return
    for axis in range(last, -1, -1):
        index[axis] = rest % plan.shape[axis]
        rest //= plan.shape[axis]
        place += index[axis] * array.strides[axis]
    while True:
        run = min(n, plan.shape[last] - index[last])
        if gather:
            move_run(block, step, place, array.strides[last], run, array.itemsize, array.swapped)
        else:
            move_run(place, array.strides[last], block, step, run, array.itemsize, array.swapped)
        n -= run
        if n == 0:
            return
        block += run * step
        place -= index[last] * array.strides[last]
        index[last] = 0
        axis = last - 1
        while True:
            index[axis] += 1
            place += array.strides[axis]
            if index[axis] < plan.shape[axis]:
                break
            place -= index[axis] * array.strides[axis]
            index[axis] = 0
            axis -= 1


cdef inline char* place_at(const Plan* plan, const Operand* array, Py_ssize_t position, int axes) noexcept nogil:
    """The element at a position in C order of the first `axes` axes, and at the beginning of the others."""
    cdef char* place = array.data
    cdef int axis
    for axis in range(axes - 1, -1, -1):
        place += position % plan.shape[axis] * array.strides[axis]
        position //= plan.shape[axis]
    return place


cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    return (n + FN_LANES - 1) & -FN_LANES


cdef const char* load(const Plan* plan, const Operand* array, Py_ssize_t start, Py_ssize_t n, char* block) noexcept nogil:
    """A pointer to n elements in the kernel's dtype, padded with zeros: into the array itself or to the filled block."""
    cdef fn_block halves
    if array.direct and n % FN_LANES == 0:
        return array.data + start * plan.itemsize
    if array.half:
        memset(halves.bytes, 0, padded(n) * 2)
        move_block(plan, array, start, n, halves.bytes, True)
        plan.level.half_to_single(halves.bytes, block, padded(n))
    else:
        move_block(plan, array, start, n, block, True)
        memset(block + n * plan.itemsize, 0, (padded(n) - n) * plan.itemsize)
    return block


cdef inline void emit(const fn_level* level, bint streamed, char* place, const char* block,
                      Py_ssize_t nbytes) noexcept nogil:
    """Copy a finished block to its place, past the caches where the result is streamed."""
    cdef Py_ssize_t head
    if streamed:
        head = (-<Py_ssize_t> place) & (CACHE_LINE - 1)
        if head < nbytes:
            memcpy(place, block, head)
            level.stream(place + head, block + head, nbytes - head)
            return
    memcpy(place, block, nbytes)


cdef void store(const Plan* plan, Py_ssize_t start, Py_ssize_t n, const char* block) noexcept nogil:
    cdef const Operand* array = &plan.result
    cdef fn_block halves
    if array.half:
        plan.level.single_to_half(block, halves.bytes, padded(n))
        block = halves.bytes
    if plan.streamed:
        emit(plan.level, True, array.data + start * array.itemsize, block, n * array.itemsize)
    else:
        move_block(plan, array, start, n, <char*> block, False)


cdef inline Py_ssize_t before_line(const char* place, Py_ssize_t n, int itemsize) noexcept nogil:
    """How many of n elements lie before the next cache line: stores that straddle two lines cost twice."""
    return min(n, <Py_ssize_t> (-<uintptr_t> place % CACHE_LINE) // itemsize)


cdef inline void run_direct(fn_map kernel, const char* a, const char* b, char* y, Py_ssize_t n, int itemsize,
                            const double* params) noexcept nogil:
    """Contiguous operands that do not overlap: whole vectors in place, from a cache line on if they are many. Vectors of
    their own take the ends in, and compute some elements a second time."""
    cdef Py_ssize_t head = before_line(y, n, itemsize) if n * itemsize >= ALIGN_BYTES else 0
    cdef Py_ssize_t whole = (n - head) & -FN_LANES, begin = head * itemsize, last = (n - FN_LANES) * itemsize
    if n < FN_LANES:
        run_piece(kernel, a, b, y, n * itemsize, itemsize, params)
        return
    if head:
        kernel(a, b, y, FN_LANES, params)
    kernel(a + begin, b + begin, y + begin, whole, params)
    if head + whole < n:
        kernel(a + last, b + last, y + last, FN_LANES, params)


cdef void run_turns(fn_map kernel, fn_turns turns, const char* a, const char* b, char* y, Py_ssize_t n, int itemsize,
                    const double* params, bint streamed) noexcept nogil:
    """Contiguous operands that do not overlap or are the result itself."""
    cdef Py_ssize_t head = before_line(y, n, itemsize) if streamed else 0
    cdef Py_ssize_t whole = (n - head) & -FN_LANES, begin = head * itemsize, end = (head + whole) * itemsize
    if head:
        run_piece(kernel, a, b, y, begin, itemsize, params)
    turns(a + begin, b + begin, y + begin, whole, params, streamed)
    if head + whole < n:
        run_piece(kernel, a + end, b + end, y + end, n * itemsize - end, itemsize, params)


cdef void run_piece(fn_map kernel, const char* a, const char* b, char* y, Py_ssize_t nbytes, int itemsize,
                    const double* params) noexcept nogil:
    """Fewer than FN_LANES elements, in padded blocks."""
    cdef fn_block pad[3]
    memset(pad[0].bytes, 0, FN_LANES * itemsize)
    memset(pad[1].bytes, 0, FN_LANES * itemsize)
    memcpy(pad[0].bytes, a, nbytes)
    memcpy(pad[1].bytes, b, nbytes)
    kernel(pad[0].bytes, pad[1].bytes, pad[2].bytes, FN_LANES, params)
    memcpy(y, pad[2].bytes, nbytes)


cdef inline bint all_direct(const Plan* plan) noexcept nogil:
    return plan.source[0].direct and plan.source[plan.inputs - 1].direct and plan.result.direct


cdef void run_range(const Plan* plan, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    cdef fn_block blocks[MAX_INPUTS + 1]
    cdef const char* sources[MAX_INPUTS]
    cdef char* result
    cdef Py_ssize_t most = BLOCK_BYTES // plan.itemsize, n
    cdef bint in_turns = plan.staged or plan.streamed
    cdef bint in_place = plan.result.direct and not in_turns
    cdef int i, last = plan.inputs - 1
    if all_direct(plan) and not (in_turns and plan.turns == NULL):
        sources[0] = plan.source[0].data + start * plan.itemsize
        sources[last] = plan.source[last].data + start * plan.itemsize
        result = plan.result.data + start * plan.itemsize
        n = stop - start
        if in_turns:
            run_turns(plan.kernel, plan.turns, sources[0], sources[last], result, n, plan.itemsize, plan.params, plan.streamed)
        else:
            run_direct(plan.kernel, sources[0], sources[last], result, n, plan.itemsize, plan.params)
        start = stop
    while start < stop:
        n = min(stop - start, most)
        if plan.streamed and <uintptr_t> (plan.result.data + start * plan.result.itemsize) % CACHE_LINE:
            # a first short block up to the next cache line, so that all others start on one
            n = before_line(plan.result.data + start * plan.result.itemsize, n, plan.result.itemsize)
        for i in range(plan.inputs):
            sources[i] = load(plan, &plan.source[i], start, n, blocks[i].bytes)
        result = blocks[MAX_INPUTS].bytes
        if in_place and n % FN_LANES == 0:
            result = plan.result.data + start * plan.itemsize
        plan.kernel(sources[0], sources[last], result, padded(n), plan.params)
        if result == blocks[MAX_INPUTS].bytes:
            store(plan, start, n, result)
        start += n
    if plan.streamed:
        fn_stream_fence()


cdef void run_part(void* context, int part) noexcept nogil:
    cdef const Plan* plan = <const Plan*> context
    run_range(plan, part * plan.part, min(plan.size, (part + 1) * plan.part))


cdef void run_plan(Plan* plan) noexcept nogil:
    """Run the plan on as many threads as the estimated time is worth; parts begin on whole cache lines of elements."""
    cdef Py_ssize_t moved = (plan.inputs + 1) * plan.size * plan.result.itemsize
    cdef int parts = parts_for(max(plan.nanoseconds, MOVING * moved if moved > NEAR_BYTES else 0.0), plan.size // FN_LANES)
    plan.part = plan.size if parts == 1 else (count_of(plan.size, parts) + BLOCK_BYTES - 1) & -BLOCK_BYTES
    fn_parallel(run_part, plan, <int> count_of(plan.size, plan.part))
