/* Wall time by stage, added up over the life of the process, for `gsopt bench` and for reports of a run. */
#include <time.h>

#include "internal.h"

static const char *const NAMES[STAGES] = {"project", "sort",   "bin",              "sh",          "forward",  "loss",
                                          "backward", "reduce", "project_backward", "sh_backward", "statistics", "finite",
                                          "optimizer"};
static double seconds[STAGES];

double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

stage_clock stage_begin(void) { return (stage_clock){seconds_now()}; }

void stage_end(stage_clock *clock, stage which) {
    double end = seconds_now();
    pool_lock(); /* two Python threads may render at once */
    seconds[which] += end - clock->since;
    pool_unlock();
    clock->since = end;
}

int gsopt_stages(void) { return STAGES; }

const char *gsopt_stage_name(int which) { return NAMES[which]; }

void gsopt_stage_seconds(double *out) {
    pool_lock();
    memcpy(out, seconds, sizeof seconds);
    pool_unlock();
}
