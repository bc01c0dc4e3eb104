/* A small pool of worker threads of our own.
 *
 * Why not OpenMP: GNU OpenMP's workers spin after each region and take the cores from OpenBLAS, they hang after a fork,
 * and some compilers have none. Here a worker waits for some tens of microseconds, giving way to anything else that wants
 * the core, and then sleeps; a forked child starts with an empty pool and makes its own workers; workers block all signals,
 * so Ctrl-C reaches Python's main thread.
 *
 * fn_parallel(task, context, parts, threads) runs task(context, 0) .. task(context, parts - 1) on at most so many threads
 * and returns when all are done; parts < 2^16. A part is a slice that the caller fixes, so results never depend on which
 * thread runs it: each takes the parts of a share of its own, because what it read or wrote in the last job may still be in its
 * caches, and then what the others have not come to, from the end of their shares, so nobody waits for a worker that is slow
 * to wake. Where there is no pool (built without threads, another Python thread is using it, no worker can be started) the
 * calling thread runs every part. */
#ifndef FN_THREADS_H
#define FN_THREADS_H

#include <stdint.h>

typedef void (*fn_task)(void *context, int part);

enum { FN_MAX_THREADS = 256 };

#ifndef FN_THREADS

static void fn_parallel(fn_task task, void *context, int parts, int threads)
{
    (void)threads;
    for (int part = 0; part < parts; part++)
        task(context, part);
}
static int fn_pool_shares(int parts, int threads, double nanoseconds) { (void)parts, (void)threads, (void)nanoseconds; return 0; }
static int fn_pool_setup(void) { return 0; }

#else

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#if defined(__linux__) && defined(CPU_COUNT)
#define FN_MOVES
#endif

enum {
    FN_MAX_WORKERS = FN_MAX_THREADS - 1,
    FN_SPINS = 200,     /* pauses before a waiting thread starts to give way: 2 to 5 microseconds */
    FN_AWAKE = 50000,   /* nanoseconds for which a worker then gives way before it sleeps: to wake it takes as long */
    FN_LONG = 30000,    /* estimated nanoseconds of a job that is worth waking workers for ... */
    FN_SOON = 50000,    /* ... and after the end of a shorter one, within which another promises a third ... */
    FN_LATE = 10000,    /* ... and that it takes to wake one for it: a longer job is shared at once */
    FN_STACK = 1 << 20, /* bytes; a task's staging blocks live on the stack */
};

static struct {
    pthread_mutex_t owner; /* held by the thread whose job the pool is running */
    pthread_mutex_t lock;  /* guards wake */
    pthread_cond_t wake;
    atomic_int workers; /* started so far; changed by the owner alone */
    unsigned start[FN_MAX_WORKERS]; /* number of the last job before each worker began */
#ifdef FN_MOVES
    /* Of each worker, guarded by lock: whether it sleeps; whether it was sent elsewhere, its processors before and since */
    struct { pthread_t thread; int asleep, sent; cpu_set_t allowed, elsewhere; } place[FN_MAX_WORKERS];
#endif
    /* The job: does not change while a part of it is not done, so whoever has taken a part may read it */
    fn_task task;
    void *context;
    atomic_int threads;
    atomic_uint job;       /* its number; set when all else is */
    atomic_int unfinished; /* parts of the job that are not done */
    atomic_int sleepers;   /* workers that need a wake-up call */
    atomic_uint stirs;     /* wake-up calls without a job */
    atomic_llong lonely;   /* when the last job that was not shared because workers slept ended, or began till then */
} fn_pool = {.owner = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

/* Whether the calling thread's job is not shared because workers slept */
static _Thread_local int fn_alone;

/* Each thread's share of the job, the calling one's first. parts: the number of the job, times 2^32, and of its parts that
   nobody has taken the end, times 2^16, and the first. Cache lines of their own. */
static struct { _Alignas(64) atomic_ullong parts; } fn_shares[FN_MAX_THREADS];

static inline unsigned fn_job(void) { return atomic_load_explicit(&fn_pool.job, memory_order_acquire); }

static inline void fn_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static long long fn_now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Linux likes to wake a worker on the processor of the thread that wakes it, where it then waits until that is done, and may
   leave it so for milliseconds although another processor is idle. So the caller takes its own processor away from a
   sleeping worker before it wakes it, and the worker takes it back when it goes to sleep, unless somebody else has chosen
   others for it meanwhile (taskset -a). Both hold the lock. */
static void fn_send_elsewhere(void)
{
#ifdef FN_MOVES
    const int here = sched_getcpu();
    for (int i = 0; i < atomic_load(&fn_pool.workers) && here >= 0 && here < CPU_SETSIZE; i++) {
        cpu_set_t others;
        if (!fn_pool.place[i].asleep || pthread_getaffinity_np(fn_pool.place[i].thread, sizeof others, &others))
            continue;
        fn_pool.place[i].asleep = 0;
        fn_pool.place[i].allowed = others;
        CPU_CLR(here, &others);
        fn_pool.place[i].elsewhere = others;
        fn_pool.place[i].sent = CPU_COUNT(&others)
            && !pthread_setaffinity_np(fn_pool.place[i].thread, sizeof others, &others);
    }
#endif
}
static void fn_goes_to_sleep(int worker)
{
#ifdef FN_MOVES
    cpu_set_t now;
    if (fn_pool.place[worker].sent && !pthread_getaffinity_np(pthread_self(), sizeof now, &now)
        && CPU_EQUAL(&now, &fn_pool.place[worker].elsewhere))
        pthread_setaffinity_np(pthread_self(), sizeof(cpu_set_t), &fn_pool.place[worker].allowed);
    fn_pool.place[worker].thread = pthread_self();
    fn_pool.place[worker].sent = 0;
    fn_pool.place[worker].asleep = 1;
#else
    (void)worker;
#endif
}

/* Returns when there is a job, or after a wake-up call without one. */
static void fn_wait_for_job(int worker, unsigned seen)
{
    for (int i = 0; i < FN_SPINS; i++) {
        if (fn_job() != seen)
            return;
        fn_pause();
    }
    for (const long long end = fn_now() + FN_AWAKE; fn_now() < end; sched_yield())
        if (fn_job() != seen)
            return;
    pthread_mutex_lock(&fn_pool.lock);
    atomic_fetch_add(&fn_pool.sleepers, 1);
    fn_goes_to_sleep(worker);
    const unsigned stirs = atomic_load(&fn_pool.stirs);
    while (fn_job() == seen && atomic_load(&fn_pool.stirs) == stirs)
        pthread_cond_wait(&fn_pool.wake, &fn_pool.lock);
    atomic_fetch_sub(&fn_pool.sleepers, 1);
    pthread_mutex_unlock(&fn_pool.lock);
}

static void fn_wake_workers(void)
{
    pthread_mutex_lock(&fn_pool.lock);
    fn_send_elsewhere();
    pthread_cond_broadcast(&fn_pool.wake);
    pthread_mutex_unlock(&fn_pool.lock);
}

/* Run parts of the job as long as there are any that nobody has taken: those of a share from the first on, then those of the
   other shares from the last on. */
static void fn_run_parts(unsigned job, int own, int threads)
{
    for (int i = 0; i < threads; i++) {
        atomic_ullong *share = &fn_shares[(own + i) % threads].parts;
        unsigned long long parts = atomic_load(share);
        while ((unsigned)(parts >> 32) == job && (parts & 0xffff) < (parts >> 16 & 0xffff)) {
            if (atomic_compare_exchange_weak(share, &parts, i ? parts - 0x10000 : parts + 1)) {
                fn_pool.task(fn_pool.context, (int)(i ? (parts >> 16 & 0xffff) - 1 : parts & 0xffff));
                atomic_fetch_sub_explicit(&fn_pool.unfinished, 1, memory_order_release);
                parts = atomic_load(share);
            }
        }
    }
}

static void *fn_worker(void *argument)
{
    const int number = (int)(intptr_t)argument;
    unsigned seen = fn_pool.start[number];
    for (;;) {
        fn_wait_for_job(number, seen);
        if (fn_job() == seen)
            continue;
        seen = fn_job();
        const int threads = atomic_load(&fn_pool.threads);
        if (number + 1 < threads)
            fn_run_parts(seen, number + 1, threads);
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
    sigfillset(&all); /* but not what a fault in the worker itself raises: somebody may report those */
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (fn_pool.workers < wanted && fn_pool.workers < FN_MAX_WORKERS) {
        pthread_t thread;
        fn_pool.start[atomic_load(&fn_pool.workers)] = fn_job();
        if (pthread_create(&thread, &attributes, fn_worker, (void *)(intptr_t)atomic_load(&fn_pool.workers)))
            break;
        fn_pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

static void fn_parallel(fn_task task, void *context, int parts, int threads)
{
    threads = threads < parts ? threads : parts;
    if (threads <= 1 || pthread_mutex_trylock(&fn_pool.owner)) {
        for (int part = 0; part < parts; part++)
            task(context, part);
        if (fn_alone)
            atomic_store(&fn_pool.lonely, fn_now());
        return;
    }
    if (fn_pool.workers < threads - 1)
        fn_start_workers(threads - 1);
    const unsigned job = fn_job() + 1;
    fn_pool.task = task;
    fn_pool.context = context;
    atomic_store(&fn_pool.threads, threads);
    atomic_store(&fn_pool.unfinished, parts);
    for (int i = 0; i < threads; i++)
        atomic_store(&fn_shares[i].parts, (unsigned long long)job << 32 | (unsigned)(parts * (i + 1) / threads) << 16
                                              | (unsigned)(parts * i / threads));
    atomic_store(&fn_pool.job, job);
    if (atomic_load(&fn_pool.sleepers))
        fn_wake_workers();
    fn_run_parts(job, 0, threads);
    for (int i = 0; atomic_load_explicit(&fn_pool.unfinished, memory_order_acquire); i++) {
        if (i < FN_SPINS)
            fn_pause();
        else
            sched_yield();
    }
    pthread_mutex_unlock(&fn_pool.owner);
}

/* Whether a job of so many parts and this estimated length is shared. One too short to wake a worker for is where so many
   threads would set to work at once. If not, and such jobs follow each other, the workers are woken for the next one; and for
   this one too where it lasts, because they would be asleep again by then. */
static int fn_pool_shares(int parts, int threads, double nanoseconds)
{
    fn_alone = 0;
    if (parts < 2)
        return 0;
    if (nanoseconds >= FN_LONG
        || (fn_pool.workers >= threads - 1 && atomic_load_explicit(&fn_pool.sleepers, memory_order_relaxed) == 0))
        return 1;
    const long long now = fn_now(), before = atomic_exchange(&fn_pool.lonely, now);
    fn_alone = 1;
    if (now - before < FN_SOON && !pthread_mutex_trylock(&fn_pool.owner)) {
        fn_start_workers(threads - 1);
        pthread_mutex_unlock(&fn_pool.owner);
        atomic_fetch_add(&fn_pool.stirs, 1);
        fn_wake_workers();
        fn_alone = nanoseconds <= FN_LATE;
    }
    return !fn_alone;
}

/* Only the forking thread lives on in the child: forget the workers, and whatever the others had locked or taken. */
static void fn_pool_after_fork(void)
{
    pthread_mutex_init(&fn_pool.owner, NULL);
    pthread_mutex_init(&fn_pool.lock, NULL);
    pthread_cond_init(&fn_pool.wake, NULL);
    atomic_store(&fn_pool.workers, 0);
    atomic_store(&fn_pool.sleepers, 0);
#ifdef FN_MOVES
    memset(fn_pool.place, 0, sizeof fn_pool.place);
#endif
}

static int fn_pool_setup(void)
{
    return pthread_atfork(NULL, NULL, fn_pool_after_fork);
}

#endif
#endif
