/* Adam and AdamW (Kingma and Ba 2015; Loshchilov and Hutter 2019) over several tensors in one call, with torch's
 * arithmetic. Element by element, so bits do not depend on the number of threads. It is bound by memory: parameter and
 * both moments are read and written, the gradient is read. */
#include "internal.h"

#define RUN 8192 /* elements a task */

typedef struct {
    const gsopt_adam_tensor *tensors;
    int count;
} adam_job;

/* Rates that are the same for all elements, in double until here. */
typedef struct {
    float step_size, root_scale, keep1, take1, keep2, take2, eps, decay, shrink;
} adam_rates;

static adam_rates rates_of(const gsopt_adam_tensor *t) {
    double correction1 = 1 - pow(t->beta1, t->step), correction2 = 1 - pow(t->beta2, t->step);
    int decoupled = t->decoupled != 0;
    return (adam_rates){.step_size = (float)(t->lr / correction1), .root_scale = (float)(1 / sqrt(correction2)),
                        .keep1 = (float)t->beta1, .take1 = (float)(1 - t->beta1), .keep2 = (float)t->beta2,
                        .take2 = (float)(1 - t->beta2), .eps = (float)t->eps,
                        .decay = (float)(decoupled ? 0 : t->weight_decay),
                        .shrink = (float)(decoupled ? 1 - t->lr * t->weight_decay : 1)};
}

INLINE void update(const adam_rates *r, vf *p, vf g, vf *m, vf *v) {
    *p *= r->shrink;
    g += r->decay * *p;
    *m = r->keep1 * *m + r->take1 * g;
    *v = r->keep2 * *v + r->take2 * (g * g);
    *p -= r->step_size * *m / (vf_sqrt(*v) * r->root_scale + r->eps);
}

static void adam_run(const gsopt_adam_tensor *t, int64_t first, int64_t end) {
    adam_rates r = rates_of(t);
    int64_t i = first;
    float sign = t->maximize ? -1.0f : 1.0f;
    for (; i + LANES <= end; i += LANES) {
        vf p = vf_load(t->parameter + i), m = vf_load(t->average + i), v = vf_load(t->square + i);
        update(&r, &p, sign * vf_load(t->gradient + i), &m, &v);
        vf_store(t->parameter + i, p), vf_store(t->average + i, m), vf_store(t->square + i, v);
    }
    if (i == end) return;
    int rest = (int)(end - i);
    float tail[4][LANES] = {{0}};
    float *in[4] = {t->parameter + i, (float *)t->gradient + i, t->average + i, t->square + i};
    for (int k = 0; k < 4; k++) memcpy(tail[k], in[k], rest * sizeof(float));
    vf p = vf_load(tail[0]), m = vf_load(tail[2]), v = vf_load(tail[3]);
    update(&r, &p, sign * vf_load(tail[1]), &m, &v);
    vf_store_first(in[0], p, rest), vf_store_first(in[2], m, rest), vf_store_first(in[3], v, rest);
}

static void adam_task(void *context, int64_t task, int thread) {
    (void)thread;
    const adam_job *job = context;
    for (int k = 0; k < job->count; k++) {
        int64_t n = job->tensors[k].n, runs = div_up(n, RUN);
        if (task < runs) {
            adam_run(&job->tensors[k], task * RUN, min_i64((task + 1) * RUN, n));
            return;
        }
        task -= runs;
    }
}

int gsopt_adam(int count, const gsopt_adam_tensor *tensors) {
    adam_job job = {tensors, count};
    int64_t tasks = 0;
    for (int k = 0; k < count; k++) tasks += div_up(tensors[k].n, RUN);
    stage_clock clock = stage_begin();
    parallel_for(tasks, adam_task, &job);
    stage_end(&clock, STAGE_OPTIMIZER);
    return 0;
}
