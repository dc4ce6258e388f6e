/* Whether all of several arrays is finite: one pass at the speed of memory, on all threads. Which element is not, the
 * caller looks up where that has happened. */
#include "internal.h"

#define RUN 32768 /* floats a task */
#define UNROLL 4  /* sums at a time, so that none waits for the one before */

typedef struct {
    const float *const *arrays;
    const int64_t *lengths;
    int count;
    int bad; /* set by any thread, never cleared */
} finite_job;

/* 0 times a float is 0 if it is finite, and NaN otherwise, which a sum keeps. */
static int run_is_finite(const float *a, int64_t n) {
    vf sums[UNROLL] = {0};
    int64_t i = 0;
    for (; i + UNROLL * LANES <= n; i += UNROLL * LANES)
        for (int k = 0; k < UNROLL; k++) sums[k] += vf_load(a + i + k * LANES) * 0.0f;
    float lanes[LANES], rest = 0;
    vf_store(lanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (int k = 0; k < LANES; k++) rest += lanes[k];
    for (; i < n; i++) rest += a[i] * 0.0f;
    return rest == 0;
}

static void finite_task(void *context, int64_t task, int thread) {
    (void)thread;
    finite_job *job = context;
    for (int k = 0; k < job->count; k++) {
        int64_t tasks = div_up(job->lengths[k], RUN), first = task * RUN;
        if (task >= tasks) {
            task -= tasks;
            continue;
        }
        if (!run_is_finite(job->arrays[k] + first, min_i64(RUN, job->lengths[k] - first)))
            __atomic_store_n(&job->bad, 1, __ATOMIC_RELAXED);
        return;
    }
}

int gsopt_finite(int count, const float *const *arrays, const int64_t *lengths) {
    finite_job job = {arrays, lengths, count, 0};
    stage_clock clock = stage_begin();
    int64_t tasks = 0;
    for (int k = 0; k < count; k++) tasks += div_up(lengths[k], RUN);
    parallel_for(tasks, finite_task, &job);
    stage_end(&clock, STAGE_FINITE);
    return !job.bad;
}
