/* Which instruction-set levels this processor and operating system can run, how large its cache is, and what built us. */
#ifndef FN_CPU_H
#define FN_CPU_H

#include <stddef.h>
#include <string.h>
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "build_info.h"

#if defined(__VERSION__)
#if defined(__clang__)
#define FN_COMPILER __VERSION__
#else
#define FN_COMPILER "gcc " __VERSION__
#endif
#else
#define FN_COMPILER "unknown"
#endif

/* Bytes of the last-level cache, 32 MB where the system does not say */
static ptrdiff_t fn_last_level_cache(void)
{
#ifdef _SC_LEVEL3_CACHE_SIZE
    const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (bytes > 0)
        return bytes;
#endif
    return 32 << 20;
}

static int fn_cpu_runs(const char *level)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    const int v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                   __builtin_cpu_supports("bmi2");
    if (!strcmp(level, "v3"))
        return v3;
    if (!strcmp(level, "v4"))
        return v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
#endif
    return !strcmp(level, "baseline") || !strcmp(level, "neon");
}

#endif
