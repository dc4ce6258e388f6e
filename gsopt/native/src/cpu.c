/* What this library was compiled for, and what the processor offers. */
#if defined(__linux__)
#define _GNU_SOURCE
#include <sched.h>
#endif
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "internal.h"

#define QUOTE(x) #x
#define TEXT(x) QUOTE(x)

int gsopt_abi(void) { return GSOPT_ABI; }

const char *gsopt_isa(void) { return TEXT(GSOPT_ISA); }

#if defined(__x86_64__)
static int has(uint32_t value, uint32_t bits) { return (value & bits) == bits; }

/* 0: baseline, 1: avx2, 2: avx512, each with all that build.py lets the compiler use. The processor itself is asked:
 * __builtin_cpu_supports needs a runtime library that not every compiler links. */
static int x86_level(void) {
    uint32_t a, b, c, d, leaf1, leaf7, extended, saved, high;
    if (!__get_cpuid(1, &a, &b, &leaf1, &d) || !has(leaf1, 1u << 27)) return 0; /* OSXSAVE */
    if (!__get_cpuid_count(7, 0, &a, &leaf7, &c, &d) || !__get_cpuid(0x80000001, &a, &b, &extended, &d)) return 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    int avx2 = has(leaf1, 1u << 12 | 1u << 22 | 1u << 28 | 1u << 29) && /* FMA, MOVBE, AVX, F16C */
               has(leaf7, 1u << 3 | 1u << 5 | 1u << 8) &&               /* BMI1, AVX2, BMI2 */
               has(extended, 1u << 5) && has(saved, 0x6);               /* LZCNT; the system saves ymm */
    int avx512 = has(leaf7, 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31) && has(saved, 0xe6); /* F DQ CD BW VL */
    return avx2 + (avx2 && avx512);
}
#endif

int gsopt_cpu_runs(const char *isa) {
#if defined(__x86_64__)
    if (!strcmp(isa, "avx512")) return x86_level() >= 2;
    if (!strcmp(isa, "avx2")) return x86_level() >= 1;
#endif
    return !strcmp(isa, "baseline");
}

int cpu_cores(void) {
#if defined(__linux__)
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set)) return CPU_COUNT(&set);
#endif
    return (int)sysconf(_SC_NPROCESSORS_ONLN);
}
