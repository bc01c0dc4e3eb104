/* Which instruction-set levels this processor and operating system can run, how large its cache is, and what built us. */
#ifndef FN_CPU_H
#define FN_CPU_H

#include <stddef.h>
#include <string.h>
#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>
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

/* Bytes of the last-level cache that a processor can reach, 32 MB where nobody says. The C library is asked last: of AMD's
 * processors older ones report what all chiplets have together, ten times as much. */
static ptrdiff_t fn_last_level_cache(void)
{
#if defined(__x86_64__)
    const unsigned leaves[] = {0x8000001d, 4}; /* AMD's description of the caches, Intel's */
    ptrdiff_t most = 0;
    for (int i = 0; i < 2 && most == 0; i++) {
        unsigned a, b, c, d;
        for (unsigned cache = 0; cache < 16 && __get_cpuid_count(leaves[i], cache, &a, &b, &c, &d) && (a & 31); cache++) {
            const ptrdiff_t ways = (b >> 22) + 1, partitions = (b >> 12 & 1023) + 1, line = (b & 4095) + 1;
            const ptrdiff_t bytes = ways * partitions * line * ((ptrdiff_t)c + 1);
            most = bytes > most ? bytes : most;
        }
    }
    if (most > 0)
        return most;
#endif
#ifdef _SC_LEVEL3_CACHE_SIZE
    const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (bytes > 0)
        return bytes;
#endif
    return 32 << 20;
}

/* Whether an AMD processor executes 512 bits at once: Zen 5, family 26, and later. Virtual machines hide what says so itself. */
static int fn_whole_vectors(void)
{
#if defined(__x86_64__)
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(0, &a, &b, &c, &d) && b == signature_AMD_ebx && __get_cpuid(1, &a, &b, &c, &d))
        return (a >> 8 & 15) == 15 && (a >> 20 & 255) + 15 >= 26;
#endif
    return 0;
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
