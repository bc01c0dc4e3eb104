# Which instruction-set level and how many threads a call uses. Both have a default for the process and an override for
# the calling thread, so `with use_isa(...)` or `with threads(...)` in one thread does not disturb another.

import importlib
import os

cdef extern from "cpu.h" nogil:
    bint fn_cpu_runs(const char* level)
    Py_ssize_t fn_last_level_cache()
    bint fn_whole_vectors()
    const char* FN_COMPILER
    const char* FN_BUILD_FLAGS
    const char* FN_BUILD_LEVELS
    bint FN_BUILD_THREADS

cdef extern from "threads.h" nogil:
    ctypedef void (*fn_task)(void* context, int part) noexcept nogil
    void run_parallel "fn_parallel"(fn_task task, void* context, int parts, int threads) noexcept
    bint fn_pool_shares(int parts, int threads, double nanoseconds) noexcept
    int fn_pool_setup()
    int FN_MAX_THREADS

cdef extern from *:
    """
    static const fn_level *_Atomic fn_process_level; /* calls read them without the GIL */
    static _Thread_local const fn_level *fn_thread_level;
    static _Atomic int fn_process_threads = 1;
    static _Thread_local int fn_thread_threads;
    """
    const fn_level* fn_process_level
    const fn_level* fn_thread_level
    int fn_process_threads
    int fn_thread_threads

cdef enum:
    SHARES = 4          # parts for each thread, so that one that is slow, or late, takes fewer
    GRAIN = 2000        # nanoseconds of work that are worth a part of their own

BUILD_COMPILER = FN_COMPILER.decode()
BUILD_FLAGS = FN_BUILD_FLAGS.decode()
BUILD_LEVELS = tuple(FN_BUILD_LEVELS.decode().split(","))
HAS_THREADS = bool(FN_BUILD_THREADS)
MAX_THREADS = FN_MAX_THREADS if FN_BUILD_THREADS else 1
AVAILABLE_LEVELS = tuple([name for name in BUILD_LEVELS if fn_cpu_runs(name.encode())])
fn_pool_setup()


cdef const fn_level* level_pointer(str name) except NULL:
    published = importlib.import_module(f"fastnn._level_{name}").PUBLISHED
    return <const fn_level*> PyCapsule_GetPointer(published, "fastnn.level")


def set_process_level(str name):
    global fn_process_level
    fn_process_level = level_pointer(name)


def set_thread_level(name):
    """Choose the level for the calling thread (None: the process's) and return the thread's former choice."""
    global fn_thread_level
    former = fn_thread_level.name.decode() if fn_thread_level != NULL else None
    fn_thread_level = level_pointer(name) if name is not None else NULL
    return former


def level_name():
    return current_level().name.decode()


def set_process_threads(int number):
    global fn_process_threads
    fn_process_threads = number


def set_thread_threads(int number):
    """Choose the number of threads for calls from the calling thread (0: the process's) and return the former choice."""
    global fn_thread_threads
    former = fn_thread_threads
    fn_thread_threads = number
    return former


def thread_count():
    return current_threads()


cdef inline const fn_level* current_level() noexcept nogil:
    return fn_thread_level if fn_thread_level != NULL else fn_process_level


cdef inline int current_threads() noexcept nogil:
    return fn_thread_threads if fn_thread_threads else fn_process_threads


cdef inline int parts_worth(double nanoseconds) noexcept nogil:
    """How many parts a job of this estimated length is worth; as many for every thread, as the last one is waited for."""
    cdef int threads = current_threads(), parts
    if threads == 1:
        return 1
    parts = <int> max(1.0, min(<double> SHARES * threads, nanoseconds / GRAIN))
    return parts if parts < threads else parts - parts % threads


cdef inline int parts_for(double nanoseconds, Py_ssize_t most) noexcept nogil:
    """The same now, for a job that can be cut into `most` parts."""
    cdef int parts = <int> min(most, <Py_ssize_t> parts_worth(nanoseconds))
    return parts if fn_pool_shares(parts, current_threads(), nanoseconds) else 1


cdef inline void fn_parallel(fn_task task, void* context, int parts) noexcept nogil:
    """task(context, 0) .. task(context, parts - 1) on the threads of this call."""
    run_parallel(task, context, parts, current_threads())
