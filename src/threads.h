/* A small pool of worker threads of our own.
 *
 * Why not OpenMP: GNU OpenMP's workers spin after each region and take the cores from OpenBLAS, they hang after a fork,
 * and some compilers have none. Here a worker spins for a few microseconds, giving way to anything else that wants the
 * core, and then sleeps; a forked child starts with an empty pool and makes its own workers; workers block all signals,
 * so Ctrl-C reaches Python's main thread.
 *
 * fn_parallel(task, context, parts) runs task(context, 0) .. task(context, parts - 1) and returns when all are done. A
 * part is a slice that the caller fixes, so results never depend on which thread runs it. Where there is no pool (built
 * without threads, another Python thread is using it, no worker can be started) the calling thread runs every part. */
#ifndef FN_THREADS_H
#define FN_THREADS_H

#include <stdint.h>

typedef void (*fn_task)(void *context, int part);

enum { FN_MAX_THREADS = 256 };

#ifndef FN_THREADS

static void fn_parallel(fn_task task, void *context, int parts)
{
    for (int part = 0; part < parts; part++)
        task(context, part);
}
static int fn_pool_setup(void) { return 0; }

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

enum {
    FN_MAX_WORKERS = FN_MAX_THREADS - 1,
    FN_SPINS = 200,     /* pauses before a waiting thread starts to give way: about 5 microseconds */
    FN_YIELDS = 40,     /* times it gives way before a worker sleeps: some tens of microseconds */
    FN_STACK = 1 << 20, /* bytes; a task's staging blocks live on the stack */
};

static struct {
    pthread_mutex_t owner; /* held by the thread whose job the pool is running */
    pthread_mutex_t lock;  /* guards wake */
    pthread_cond_t wake;
    int workers; /* started so far; changed by the owner alone */
    unsigned start[FN_MAX_WORKERS]; /* number of the last job before each worker began */
    fn_task task;
    void *context;
    int parts;
    atomic_uint job;     /* number of the job being run: workers wait for it to change */
    atomic_int running;  /* workers that have not finished the job */
    atomic_int sleepers; /* workers that need a wake-up call */
} fn_pool = {.owner = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static inline void fn_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static void fn_wait_for_job(unsigned seen)
{
    for (int i = 0; i < FN_SPINS; i++) {
        if (atomic_load_explicit(&fn_pool.job, memory_order_acquire) != seen)
            return;
        fn_pause();
    }
    for (int i = 0; i < FN_YIELDS; i++) {
        if (atomic_load_explicit(&fn_pool.job, memory_order_acquire) != seen)
            return;
        sched_yield();
    }
    pthread_mutex_lock(&fn_pool.lock);
    atomic_fetch_add(&fn_pool.sleepers, 1);
    while (atomic_load(&fn_pool.job) == seen)
        pthread_cond_wait(&fn_pool.wake, &fn_pool.lock);
    atomic_fetch_sub(&fn_pool.sleepers, 1);
    pthread_mutex_unlock(&fn_pool.lock);
}

/* Parts are dealt out by number: worker w runs parts w + 1, w + 1 + stride, ..., the caller parts 0, stride, ... */
static void fn_run_share(int first)
{
    const int stride = fn_pool.workers + 1;
    for (int part = first; part < fn_pool.parts; part += stride)
        fn_pool.task(fn_pool.context, part);
}

static void *fn_worker(void *argument)
{
    const int number = (int)(intptr_t)argument;
    unsigned seen = fn_pool.start[number];
    for (;;) {
        fn_wait_for_job(seen);
        seen++; /* the owner posts no further job before every worker has finished this one */
        fn_run_share(number + 1);
        atomic_fetch_sub_explicit(&fn_pool.running, 1, memory_order_release);
    }
    return NULL;
}

static void fn_start_workers(int wanted)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    if (pthread_attr_init(&attributes))
        return;
    pthread_attr_setstacksize(&attributes, FN_STACK);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (fn_pool.workers < wanted && fn_pool.workers < FN_MAX_WORKERS) {
        pthread_t thread;
        fn_pool.start[fn_pool.workers] = atomic_load(&fn_pool.job);
        if (pthread_create(&thread, &attributes, fn_worker, (void *)(intptr_t)fn_pool.workers))
            break;
        fn_pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

static void fn_parallel(fn_task task, void *context, int parts)
{
    if (parts <= 1 || pthread_mutex_trylock(&fn_pool.owner)) {
        for (int part = 0; part < parts; part++)
            task(context, part);
        return;
    }
    if (fn_pool.workers < parts - 1)
        fn_start_workers(parts - 1);
    fn_pool.task = task;
    fn_pool.context = context;
    fn_pool.parts = parts;
    atomic_store(&fn_pool.running, fn_pool.workers);
    atomic_fetch_add(&fn_pool.job, 1);
    if (atomic_load(&fn_pool.sleepers)) {
        pthread_mutex_lock(&fn_pool.lock);
        pthread_cond_broadcast(&fn_pool.wake);
        pthread_mutex_unlock(&fn_pool.lock);
    }
    fn_run_share(0);
    for (int i = 0; atomic_load_explicit(&fn_pool.running, memory_order_acquire); i++) {
        if (i < FN_SPINS)
            fn_pause();
        else
            sched_yield();
    }
    pthread_mutex_unlock(&fn_pool.owner);
}

/* Only the forking thread lives on in the child: forget the workers, and whatever was locked by the others. */
static void fn_pool_after_fork(void)
{
    pthread_mutex_init(&fn_pool.owner, NULL);
    pthread_mutex_init(&fn_pool.lock, NULL);
    pthread_cond_init(&fn_pool.wake, NULL);
    fn_pool.workers = 0;
    atomic_store(&fn_pool.running, 0);
    atomic_store(&fn_pool.sleepers, 0);
}

static int fn_pool_setup(void)
{
    return pthread_atfork(NULL, NULL, fn_pool_after_fork);
}

#endif
#endif
