/* The most multiply-adds a second that this processor does with the instructions this library was compiled for: what
 * `gsopt bench` holds the stages against.
 *
 * Each thread runs CHAINS independent chains of x = x a + b over the widest registers: more chains than latency times
 * ports, few enough that all stay in registers. Without fused multiply-add (baseline x86) it is a multiplication and
 * an addition each. */
#include <time.h>

#include "internal.h"

#if defined(__AVX512F__)
#define WIDTH 16 /* floats a register */
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#define CHAINS 12     /* of 16 registers at least: two are a and b, one is for a product */
#define TURNS 20000   /* between two looks at the clock: some tens of microseconds */

typedef float wide __attribute__((vector_size(4 * WIDTH)));

typedef struct {
    double seconds;
    double flops[MAX_THREADS]; /* by task; as many tasks as threads */
} peak_job;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define EACH(do_with) \
    do_with(0) do_with(1) do_with(2) do_with(3) do_with(4) do_with(5) do_with(6) do_with(7) do_with(8) do_with(9)    \
    do_with(10) do_with(11)
#define LOAD(i) wide x##i = x[i];
#define ADVANCE(i) x##i = x##i * a + b;
#define STORE(i) x[i] = x##i;

/* Named variables, as an array might be kept in memory. What they hold stays near b / (1 - a), about 1. */
static void run_chains(wide x[CHAINS], wide a, wide b) {
    EACH(LOAD)
    for (int turn = 0; turn < TURNS; turn++) {
        EACH(ADVANCE)
    }
    EACH(STORE)
}

static void peak_task(void *context, int64_t task, int thread) {
    (void)thread;
    peak_job *job = context;
    static volatile float factor = 0.999f, summand = 0.001f; /* not known to the compiler */
    static volatile float sink;
    wide x[CHAINS], a = factor - (wide){0}, b = summand - (wide){0};
    for (int i = 0; i < CHAINS; i++) x[i] = b * (float)(i + 1);
    double begin = now(), turns = 0;
    do {
        run_chains(x, a, b);
        turns += TURNS;
    } while (now() - begin < job->seconds);
    for (int i = 0; i < CHAINS; i++) sink = x[i][i % WIDTH]; /* somebody reads every chain */
    (void)sink;
    job->flops[task] = 2.0 * turns * CHAINS * WIDTH;
}

int gsopt_fma_peak(double seconds, double *flops_per_second) {
    pool_lock(); /* so that the number of threads stays */
    int threads = pool_threads();
    peak_job job = {.seconds = seconds};
    double begin = now(), flops = 0;
    parallel_for(threads, peak_task, &job);
    double end = now();
    pool_unlock();
    for (int i = 0; i < threads; i++) flops += job.flops[i];
    *flops_per_second = flops / (end - begin);
    return 0;
}
