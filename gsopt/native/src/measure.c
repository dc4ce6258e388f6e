/* The most multiply-adds a second that this processor does with the instructions this library was compiled for: what
 * `gsopt bench` holds the stages against.
 *
 * Each thread runs CHAINS independent chains of x = x a + b over the widest registers: more chains than latency times
 * ports, few enough that all stay in registers. Without fused multiply-add (baseline x86) it is a multiplication and
 * an addition each. */
#include "internal.h"

#define CHAINS 12     /* of 16 registers at least: two are a and b, one is for a product */
#define TURNS 20000   /* between two looks at the clock: some tens of microseconds */

typedef struct {
    double seconds;
    double flops[MAX_THREADS]; /* by task; as many tasks as threads */
} peak_job;

#define EACH(do_with) \
    do_with(0) do_with(1) do_with(2) do_with(3) do_with(4) do_with(5) do_with(6) do_with(7) do_with(8) do_with(9)    \
    do_with(10) do_with(11)
#define LOAD(i) vf x##i = x[i];
#define ADVANCE(i) x##i = x##i * a + b;
#define STORE(i) x[i] = x##i;

/* Named variables, as an array might be kept in memory. What they hold stays near b / (1 - a), about 1. */
static void run_chains(vf x[CHAINS], vf a, vf b) {
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
    vf x[CHAINS], a = factor - (vf){0}, b = summand - (vf){0};
    for (int i = 0; i < CHAINS; i++) x[i] = b * (float)(i + 1);
    double begin = seconds_now(), turns = 0;
    do {
        run_chains(x, a, b);
        turns += TURNS;
    } while (seconds_now() - begin < job->seconds);
    for (int i = 0; i < CHAINS; i++) sink = x[i][i % LANES]; /* somebody reads every chain */
    (void)sink;
    job->flops[task] = 2.0 * turns * CHAINS * LANES;
}

int gsopt_fma_peak(double seconds, double *flops_per_second) {
    pool_lock(); /* so that the number of threads stays */
    int threads = pool_threads();
    peak_job job = {.seconds = seconds};
    double begin = seconds_now(), flops = 0;
    parallel_for(threads, peak_task, &job);
    double end = seconds_now();
    pool_unlock();
    for (int i = 0; i < threads; i++) flops += job.flops[i];
    *flops_per_second = flops / (end - begin);
    return 0;
}
