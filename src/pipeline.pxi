# The block pipeline: load, compute, store.
#
# A plan says where the operands are and which kernel runs. Data goes through the kernel in blocks that fit the L1 cache: boxes
# of rows and columns, which are one run where the operands are, and square where one of them is transposed. For each operand a
# block is either a pointer into the array (contiguous, aligned, native, of the kernel's dtype) or a staging block that is
# gathered, byte-swapped or converted before, and scattered, converted or streamed after. So strided arrays, half precision,
# in-place results, tails and results past the caches are one mechanism, and no kernel knows of them. Where every operand is
# direct there is nothing to stage, and one call does it all: of the kernel, or of its twin that works in turns.

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX

cdef extern from "transport.h" nogil:
    ctypedef struct fn_block:
        char* bytes
    enum:
        BLOCK_BYTES "FN_BLOCK_BYTES"
        BLOCK_ITEMS "FN_BLOCK_ITEMS"
    void fn_stream_fence() noexcept
    void fn_fetch_nearest(bint best) noexcept
    void fn_prefetch(const void* address) noexcept
    void fn_fetch(const void* place, Py_ssize_t nbytes) noexcept

fn_fetch_nearest(fn_whole_vectors())

cdef enum:
    MAX_DIMS = 64  # NumPy's limit
    MAX_INPUTS = 3
    CACHE_LINE = 64
    ALIGN_BYTES = 1024  # results from this size on are written in whole cache lines

# Results bypass the caches where what is read and what is written no longer fit the last level together. One larger than those
# that few cores share belongs to a mesh of all cores, which writes to it hardly faster than to memory: there it is 16 MB. Both
# answer late there, so stores are best spread evenly: activations store every line by itself, normalizations results that gather
# while they compute others, not in bursts (fn_gathered), and sum the next sets while they write results (write_sets).
cdef Py_ssize_t STREAM_BYTES = fn_last_level_cache()
cdef bint HAS_MESH = STREAM_BYTES > 96 << 20
if HAS_MESH:
    STREAM_BYTES = 16 << 20

# Where a thread computes longer than so many estimated nanoseconds a byte of them, ordinary stores overlap with that better:
# always where few cores share the last level, up to another size on a mesh. The estimates are of processors that execute
# AVX-512 in halves; the others compute faster.
cdef double COMPUTE_BOUND = 0.13 if fn_whole_vectors() else 0.06
cdef Py_ssize_t STREAM_COMPUTED_BYTES = 64 << 20 if HAS_MESH else PY_SSIZE_T_MAX

cdef double MOVING = 0.02  # nanoseconds that a byte takes from or to a cache that is none of the core's own ...
cdef Py_ssize_t NEAR_BYTES = 3 << 19  # ... which hold about this many

cdef struct Operand:
    char* data
    Py_ssize_t strides[MAX_DIMS]
    int itemsize
    bint half        # float16: converted to float32 on the way in, from it on the way out
    bint swapped     # bytes in the other order
    bint native      # of the kernel's dtype, aligned, bytes in order
    bint contiguous  # one run from first to last element
    bint direct      # both: blocks are pointers into it

cdef struct Plan:
    const fn_level* level
    fn_map kernel          # NULL: copy
    fn_turns turns         # the same in turns, where there is such a loop
    const double* params
    double nanoseconds     # estimated time of the whole
    int inputs
    int itemsize           # of the kernel's dtype
    int ndim
    Py_ssize_t shape[MAX_DIMS]
    Py_ssize_t size
    int across             # the axis of a box's rows; its columns are along the last one
    Py_ssize_t high, wide  # rows and columns of a box, whose elements are a block
    Py_ssize_t lead        # columns that the first box of a row lacks, so that the others begin on a cache line
    Py_ssize_t part        # boxes a thread takes
    Operand source[MAX_INPUTS]
    Operand result
    bint staged            # the result may not be written before its block has been read
    bint streamed


include "boxes.pxi"


cdef inline Py_ssize_t padded(Py_ssize_t n) noexcept nogil:
    return (n + FN_LANES - 1) & -FN_LANES


cdef inline void pad_block(char* block, Py_ssize_t n, int itemsize) noexcept nogil:
    memset(block + n * itemsize, 0, (padded(n) - n) * itemsize)


cdef const char* load(const Plan* plan, const Operand* array, Py_ssize_t start, Py_ssize_t n, char* block) noexcept nogil:
    """A pointer to n elements in the kernel's dtype, padded with zeros: into the array itself or to the filled block."""
    if array.direct and n % FN_LANES == 0:
        return array.data + start * plan.itemsize
    exchange(plan, array, start, n, block, True)
    pad_block(block, n, plan.itemsize)
    return block


cdef inline bint is_run(const Plan* plan, const Operand* array, const Box* box) noexcept nogil:
    """Whether the elements of a box follow each other as the kernel takes them."""
    return (array.native and array.strides[plan.ndim - 1] == plan.itemsize
            and (box.rows == 1 or array.strides[plan.across] == box.columns * plan.itemsize))


cdef inline bint is_direct(const Plan* plan, const Operand* array, const Box* box) noexcept nogil:
    """Whether they are whole vectors besides."""
    return is_run(plan, array, box) and box.rows * box.columns % FN_LANES == 0


cdef const char* load_box(const Plan* plan, const Operand* array, const Box* box, char* block) noexcept nogil:
    """As `load`."""
    if is_direct(plan, array, box):
        return place_of(plan, array, box)
    exchange_in(plan, array, box, block, box.columns, True)
    pad_block(block, box.rows * box.columns, plan.itemsize)
    return block


cdef inline void emit(const fn_level* level, bint streamed, char* place, const char* block,
                      Py_ssize_t nbytes) noexcept nogil:
    """Copy a finished block to its place, past the caches where the result is streamed."""
    if streamed:
        level.stream(place, block, nbytes)
    else:
        memcpy(place, block, nbytes)


cdef void emit_and_fetch(const fn_level* level, char* place, const char* block, Py_ssize_t nbytes, const char* a,
                         const char* b) noexcept nogil:
    """Copy a finished block to its place past the caches, and meanwhile fetch as much from a and b on."""
    cdef Py_ssize_t head = min(nbytes, (-<Py_ssize_t> place) & (CACHE_LINE - 1)), at, ahead
    memcpy(place, block, head)
    for at in range(head, nbytes, 512):
        for ahead in range(at - head, min(at - head + 512, nbytes), 64):
            fn_prefetch(a + ahead)
            fn_prefetch(b + ahead)
        level.stream(place + at, block + at, min(nbytes - at, <Py_ssize_t> 512))


cdef inline void store(const Plan* plan, Py_ssize_t start, Py_ssize_t n, const char* block) noexcept nogil:
    exchange(plan, &plan.result, start, n, <char*> block, False)


cdef void store_box(const Plan* plan, const Box* box, char* block) noexcept nogil:
    cdef fn_block halves
    if not plan.streamed:
        exchange_in(plan, &plan.result, box, block, box.columns, False)
        return
    if plan.result.half:
        convert(plan.level, halves.bytes, block, box.columns, False)
        block = halves.bytes
    # a streamed result is contiguous, and a box of it one row
    emit(plan.level, True, place_of(plan, &plan.result, box), block, box.columns * plan.result.itemsize)


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
    turns(a + begin, b + begin, y + begin, whole, params, streamed, HAS_MESH)
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


cdef inline bint in_rows(const Plan* plan) noexcept nogil:
    """Whether the kernel can run on every row where it is."""
    cdef int i
    for i in range(plan.inputs):
        if not (plan.source[i].native and plan.source[i].strides[plan.ndim - 1] == plan.itemsize):
            return False
    return (plan.result.native and plan.result.strides[plan.ndim - 1] == plan.itemsize and plan.wide >= FN_LANES
            and not (plan.staged or plan.streamed or plan.kernel == NULL))


cdef void run_rows_of(const Plan* plan, const Box* box) noexcept nogil:
    cdef int last = plan.inputs - 1
    cdef const char* a = place_of(plan, &plan.source[0], box)
    cdef const char* b = place_of(plan, &plan.source[last], box)
    cdef char* y = place_of(plan, &plan.result, box)
    cdef Py_ssize_t row
    for row in range(box.rows):
        run_direct(plan.kernel, a + row * plan.source[0].strides[plan.across], b + row * plan.source[last].strides[plan.across],
                   y + row * plan.result.strides[plan.across], box.columns, plan.itemsize, plan.params)


cdef inline bint can_be_block(const Plan* plan, const Operand* array, const Operand* other, const Box* box) noexcept nogil:
    """Whether what `other` has in a box can be exchanged with it where it is; conversions fill the gaps between rows."""
    return (is_run(plan, array, box)
            or (array.native and array.strides[plan.ndim - 1] == plan.itemsize and not other.half))


cdef void copy_box(const Plan* plan, const Box* box) noexcept nogil:
    cdef fn_block block
    cdef const Operand* source = &plan.source[0]
    cdef const Operand* result = &plan.result
    if can_be_block(plan, result, source, box):
        exchange_in(plan, source, box, place_of(plan, result, box), result.strides[plan.across] // plan.itemsize, True)
    elif can_be_block(plan, source, result, box):
        exchange_in(plan, result, box, place_of(plan, source, box), source.strides[plan.across] // plan.itemsize, False)
    else:
        exchange_in(plan, source, box, block.bytes, box.columns, True)
        exchange_in(plan, result, box, block.bytes, box.columns, False)


cdef void run_range(const Plan* plan, Py_ssize_t begin, Py_ssize_t end) noexcept nogil:
    """The boxes from number `begin` on, before number `end`."""
    cdef fn_block blocks[MAX_INPUTS + 1]
    cdef const char* sources[MAX_INPUTS]
    cdef char* result
    cdef Box box
    cdef Py_ssize_t start, number
    cdef bint in_turns = plan.staged or plan.streamed, by_row = in_rows(plan)
    cdef int i, last = plan.inputs - 1
    if all_direct(plan) and plan.kernel != NULL and not (in_turns and plan.turns == NULL):
        start = max(<Py_ssize_t> 0, begin * plan.wide - plan.lead)
        run_contiguous(plan, start, min(plan.size, end * plan.wide - plan.lead) - start)
        end = begin
    for number in range(begin, end):
        open_box(plan, number, &box)
        if by_row and box.columns >= FN_LANES:
            run_rows_of(plan, &box)
            continue
        if plan.kernel == NULL:
            copy_box(plan, &box)
            continue
        result = place_of(plan, &plan.result, &box)
        for i in range(plan.inputs):
            sources[i] = load_box(plan, &plan.source[i], &box, blocks[i].bytes)
        if in_turns or not is_direct(plan, &plan.result, &box):
            result = blocks[MAX_INPUTS].bytes
        plan.kernel(sources[0], sources[last], result, padded(box.rows * box.columns), plan.params)
        if result == blocks[MAX_INPUTS].bytes:
            store_box(plan, &box, result)
    if plan.streamed:
        fn_stream_fence()


cdef void run_contiguous(const Plan* plan, Py_ssize_t start, Py_ssize_t n) noexcept nogil:
    """n elements of operands that are direct."""
    cdef const char* a = plan.source[0].data + start * plan.itemsize
    cdef const char* b = plan.source[plan.inputs - 1].data + start * plan.itemsize
    cdef char* y = plan.result.data + start * plan.itemsize
    if plan.staged or plan.streamed:
        run_turns(plan.kernel, plan.turns, a, b, y, n, plan.itemsize, plan.params, plan.streamed)
    else:
        run_direct(plan.kernel, a, b, y, n, plan.itemsize, plan.params)


cdef void run_part(void* context, int part) noexcept nogil:
    cdef const Plan* plan = <const Plan*> context
    run_range(plan, part * plan.part, min(boxes_of(plan), (part + 1) * plan.part))


cdef void run_plan(Plan* plan) noexcept nogil:
    """Run the plan on as many threads as the estimated time is worth."""
    cdef Py_ssize_t moved = (plan.inputs + 1) * plan.size * plan.result.itemsize, boxes = boxes_of(plan)
    cdef int parts = parts_for(max(plan.nanoseconds, MOVING * moved if moved > NEAR_BYTES else 0.0), boxes)
    plan.part = count_of(boxes, parts)
    fn_parallel(run_part, plan, <int> count_of(boxes, plan.part))
