/* Which instruction-set levels this processor and operating system can run, and what built us. */
#ifndef FN_CPU_H
#define FN_CPU_H

#include <string.h>

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
