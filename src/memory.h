/* Memory for large results: kept for the next one when it is freed.
 *
 * A new array of some hundred megabytes costs more in page faults, which fill it with zeros, than in arithmetic. Blocks of
 * whole 2 MB pages are mapped here and, when an array gives one back, a few are kept; the system is told (MADV_FREE) that
 * it may take their pages whenever it needs them, so keeping them costs nobody anything. Linux only; elsewhere, and for
 * smaller arrays, NumPy's own allocator does. A handler belongs to each array that was made with it (NEP 49): the process's
 * is not touched for longer than the making of an array. */
#ifndef FN_MEMORY_H
#define FN_MEMORY_H

#include <numpy/ndarraytypes.h>

enum { FN_LARGE = 32 << 20 }; /* bytes from which on malloc maps memory anew each time */

#if defined(__linux__) && defined(FN_THREADS)

#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

enum { FN_HAS_MEMORY = 1, FN_KEPT = 4, FN_HEADER = 64 };
static const size_t FN_HUGE_PAGE = (size_t)2 << 20, FN_KEPT_BYTES = (size_t)1 << 30;

typedef struct {
    size_t bytes; /* of the block, this header included; data begins FN_HEADER bytes after it */
} fn_memory_block;

static struct {
    pthread_mutex_t lock;
    fn_memory_block *kept[FN_KEPT]; /* the latest last */
    int count;
    size_t bytes;
} fn_memory = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void fn_memory_drop(int number) /* forget a kept block; the lock is held */
{
    fn_memory.bytes -= fn_memory.kept[number]->bytes;
    fn_memory.count--;
    memmove(fn_memory.kept + number, fn_memory.kept + number + 1, (size_t)(fn_memory.count - number) * sizeof *fn_memory.kept);
}

static void fn_memory_keep_at_most(int count, size_t bytes) /* give the oldest back; the lock is held */
{
    while (fn_memory.count > count || fn_memory.bytes > bytes) {
        fn_memory_block *oldest = fn_memory.kept[0];
        fn_memory_drop(0);
        munmap(oldest, oldest->bytes);
    }
}

static fn_memory_block *fn_memory_map(size_t bytes)
{
    char *start = mmap(NULL, bytes + FN_HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    size_t head = -(size_t)start & (FN_HUGE_PAGE - 1);
    if (head)
        munmap(start, head);
    if (head < FN_HUGE_PAGE)
        munmap(start + head + bytes, FN_HUGE_PAGE - head);
    madvise(start + head, bytes, MADV_HUGEPAGE);
    return (fn_memory_block *)(start + head);
}

static void *fn_memory_malloc(void *context, size_t size)
{
    (void)context;
    if (size > SIZE_MAX - FN_HEADER - 2 * FN_HUGE_PAGE)
        return NULL;
    const size_t bytes = (size + FN_HEADER + FN_HUGE_PAGE - 1) & -FN_HUGE_PAGE;
    fn_memory_block *block = NULL;
    pthread_mutex_lock(&fn_memory.lock);
    for (int i = fn_memory.count - 1; i >= 0 && !block; i--) {
        if (fn_memory.kept[i]->bytes >= bytes && fn_memory.kept[i]->bytes <= bytes + bytes / 4) {
            block = fn_memory.kept[i];
            fn_memory_drop(i);
        }
    }
    pthread_mutex_unlock(&fn_memory.lock);
    if (!block) {
        block = fn_memory_map(bytes);
        if (!block) { /* address space is limited (ulimit -v), and what is kept takes part of it */
            pthread_mutex_lock(&fn_memory.lock);
            fn_memory_keep_at_most(0, 0);
            pthread_mutex_unlock(&fn_memory.lock);
            block = fn_memory_map(bytes);
        }
        if (!block)
            return NULL;
        block->bytes = bytes;
    }
    return (char *)block + FN_HEADER;
}

static void fn_memory_free(void *context, void *data, size_t size)
{
    (void)context;
    (void)size;
    if (!data)
        return;
    fn_memory_block *block = (fn_memory_block *)((char *)data - FN_HEADER);
    const size_t bytes = block->bytes;
    /* the first page holds the header and stays */
    if (bytes > FN_KEPT_BYTES || madvise((char *)block + FN_HUGE_PAGE, bytes - FN_HUGE_PAGE, MADV_FREE)) {
        munmap(block, bytes);
        return;
    }
    pthread_mutex_lock(&fn_memory.lock);
    fn_memory_keep_at_most(FN_KEPT - 1, FN_KEPT_BYTES - bytes);
    fn_memory.kept[fn_memory.count++] = block;
    fn_memory.bytes += bytes;
    pthread_mutex_unlock(&fn_memory.lock);
}

static void *fn_memory_calloc(void *context, size_t count, size_t size)
{
    if (size && count > SIZE_MAX / size)
        return NULL;
    void *data = fn_memory_malloc(context, count * size);
    return data ? memset(data, 0, count * size) : NULL;
}

static void *fn_memory_realloc(void *context, void *data, size_t size)
{
    void *larger = fn_memory_malloc(context, size);
    if (larger && data) {
        const size_t held = ((fn_memory_block *)((char *)data - FN_HEADER))->bytes - FN_HEADER;
        memcpy(larger, data, held < size ? held : size);
        fn_memory_free(context, data, held);
    }
    return larger;
}

/* A child has the list of kept blocks as it was at the fork: nobody may be changing it then. */
static void fn_memory_before_fork(void) { pthread_mutex_lock(&fn_memory.lock); }
static void fn_memory_after_fork(void) { pthread_mutex_unlock(&fn_memory.lock); }
static int fn_memory_setup(void)
{
    return pthread_atfork(fn_memory_before_fork, fn_memory_after_fork, fn_memory_after_fork);
}

static PyDataMem_Handler fn_memory_handler = {
    "fastnn", 1, {NULL, fn_memory_malloc, fn_memory_calloc, fn_memory_realloc, fn_memory_free}};

#else

enum { FN_HAS_MEMORY = 0 };
static int fn_memory_setup(void) { return 0; }
static PyDataMem_Handler fn_memory_handler;

#endif
#endif
