# The passes of fastnn/diagnostics.py over contiguous native arrays.
#
# Chunks are of a fixed number of elements, small enough to stay in the second-level cache while moments, histogram and
# units are taken of them one after the other; so memory is read once. Moments are merged in the order of the chunks, and
# counts do not depend on an order.

cdef enum:
    STATS_LANES = 128      # an array is summed as a matrix of so many columns
    STATS_CHUNK = 1 << 16

cdef struct Summary:
    const fn_level* level
    int dtype
    int itemsize
    const char* x
    Py_ssize_t size
    Py_ssize_t chunks
    Py_ssize_t share      # chunks that a thread takes
    Py_ssize_t units      # length of the record of living units: every element belongs to the unit of its index modulo this
    fn_bins bins
    double* states        # (chunks, 4)
    int64_t* counts       # (parts, 4, bins + 1)
    int64_t* saturated    # (parts,)
    uint8_t* alive        # (parts, units)


cdef void summarize_part(void* context, int part) noexcept nogil:
    cdef const Summary* summary = <const Summary*> context
    cdef const fn_level* level = summary.level
    cdef Py_ssize_t chunk, start, stop, run, unit
    cdef int64_t* counts = summary.counts + part * 4 * (summary.bins.bins + 1)
    for chunk in range(part * summary.share, min((part + 1) * summary.share, summary.chunks)):
        start = chunk * STATS_CHUNK
        stop = min(start + STATS_CHUNK, summary.size)
        chunk_state(summary, start, stop - start, summary.states + 4 * chunk)
        summary.saturated[part] += level.count_bins[summary.dtype](summary.x + start * summary.itemsize, stop - start,
                                                                   &summary.bins, counts)
        while start < stop:
            unit = start % summary.units
            run = min(stop - start, summary.units - unit)
            level.mark_alive[summary.dtype](summary.x + start * summary.itemsize, run,
                                            summary.alive + part * summary.units + unit)
            start += run


cdef void chunk_state(const Summary* summary, Py_ssize_t start, Py_ssize_t n, double* state) noexcept nogil:
    """State of n elements, as those of the columns of a matrix, merged two and two."""
    cdef const fn_level* level = summary.level
    cdef double[4 * STATS_LANES] lanes, rest
    cdef Py_ssize_t rows = n // STATS_LANES, width = STATS_LANES // 2, each = rows, left = n % STATS_LANES, i
    cdef const char* x = summary.x + start * summary.itemsize
    if rows:
        level.moments[summary.dtype](x, rows, STATS_LANES, STATS_LANES, lanes, STATS_LANES)
        while width:
            level.merge_states(each, lanes, STATS_LANES, each, &lanes[width], STATS_LANES, width)
            each *= 2
            width //= 2
    for i in range(left):
        level.moments[summary.dtype](x + (n - left + i) * summary.itemsize, 1, 1, 1, rest, 1)
        if rows == 0 and i == 0:
            for width in range(4):
                lanes[width * STATS_LANES] = rest[width]
        else:
            level.merge_states(n - left + i, lanes, STATS_LANES, 1, rest, 1, 1)
    for i in range(4):
        state[i] = lanes[i * STATS_LANES]


def finite_range(ndarray x not None):
    """Smallest and largest finite element; (inf, -inf) if there is none."""
    cdef double lowest = float("inf"), highest = float("-inf")
    cdef int dtype = FN_DOUBLE if cnp.PyArray_ITEMSIZE(x) == 8 else FN_SINGLE
    cdef const char* data = cnp.PyArray_BYTES(x)
    cdef Py_ssize_t size = cnp.PyArray_SIZE(x)
    cdef const fn_level* level = current_level()
    with nogil:
        level.finite_range[dtype](data, size, &lowest, &highest)
    return lowest, highest


def summarize(ndarray x not None, Py_ssize_t units, int bins, double first, double last, double low, double high):
    """State, histogram, number of saturated elements and living units of an array that is not empty.

    An element belongs to the unit of its index modulo `units`, lies in one of `bins` bins from first to last, and is
    saturated at or below `low` and at or above `high`.
    """
    cdef Summary summary
    cdef Py_ssize_t copies = (4 * FN_LANES + units - 1) // units, chunk
    cdef int parts
    summary.level = current_level()
    summary.itemsize = cnp.PyArray_ITEMSIZE(x)
    summary.dtype = FN_DOUBLE if summary.itemsize == 8 else FN_SINGLE
    summary.x = cnp.PyArray_BYTES(x)
    summary.size = cnp.PyArray_SIZE(x)
    summary.chunks = (summary.size + STATS_CHUNK - 1) // STATS_CHUNK
    summary.units = units * copies
    summary.bins.bins = bins
    summary.bins.first = first
    summary.bins.last = last
    summary.bins.width = (last - first) / bins
    summary.bins.density = bins / (last - first)
    summary.bins.low = low
    summary.bins.high = high
    # every part keeps a record of all units: together no more of them than there are elements
    parts = min(parts_for(1.5 * summary.size, summary.chunks), <int> max(1, min(summary.chunks, summary.size // summary.units)))
    summary.share = (summary.chunks + parts - 1) // parts
    cdef ndarray states = np.empty((summary.chunks, 4)), counts = np.zeros((parts, 4, bins + 1), np.int64)
    cdef ndarray saturated = np.zeros(parts, np.int64), alive = np.zeros((parts, summary.units), np.uint8)
    summary.states = <double*> cnp.PyArray_DATA(states)
    summary.counts = <int64_t*> cnp.PyArray_DATA(counts)
    summary.saturated = <int64_t*> cnp.PyArray_DATA(saturated)
    summary.alive = <uint8_t*> cnp.PyArray_DATA(alive)
    with nogil:
        fn_parallel(summarize_part, &summary, parts)
        for chunk in range(1, summary.chunks):
            summary.level.merge_states(chunk * STATS_CHUNK, summary.states, 1,
                                       min(<Py_ssize_t> STATS_CHUNK, summary.size - chunk * STATS_CHUNK),
                                       summary.states + 4 * chunk, 1, 1)
    return (states[0].reshape(4, 1), counts.sum(axis=(0, 1))[:bins], int(saturated.sum()),
            alive.reshape(-1, units).any(axis=0))
