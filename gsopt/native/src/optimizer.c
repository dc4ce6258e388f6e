/* Adam and AdamW (Kingma and Ba 2015; Loshchilov and Hutter 2019) over several tensors in one call, with torch's
 * arithmetic. Element by element, so bits do not depend on the number of threads. It is bound by memory: parameter and
 * both moments are read and written, the gradient is read. A tensor may have a step count for each row and a mask of the
 * rows to update: then only these are gone through. */
#include <stdlib.h>

#include "internal.h"

#define RUN 8192 /* elements a task */
#define ROWS 128 /* whose rates are computed at a time */
#define NARROW 16 /* elements of a row that is updated vector by vector, and not side by side with others */
#define AHEAD 8  /* rows from the one that is updated to the one that is fetched from memory */

/* Powers of a beta up to the 65,535th, as products of two: one for each row would take longer than its update. */
#define DIGIT 256
typedef struct {
    double beta, low[DIGIT], high[DIGIT]; /* beta^i, beta^(DIGIT i) */
} powers;

typedef struct {
    powers beta1, beta2;
} row_powers;

typedef struct {
    const gsopt_adam_tensor *tensors;
    row_powers *powers; /* of each tensor with a step count for each row */
    int count;
} adam_job;

/* What is the same for all elements, in double until here. */
typedef struct {
    float keep1, take1, keep2, take2, eps, decay, shrink, sign;
} adam_rates;

static adam_rates rates_of(const gsopt_adam_tensor *t) {
    int decoupled = t->decoupled != 0;
    return (adam_rates){.keep1 = (float)t->beta1, .take1 = (float)(1 - t->beta1), .keep2 = (float)t->beta2,
                        .take2 = (float)(1 - t->beta2), .eps = (float)t->eps,
                        .decay = (float)(decoupled ? 0 : t->weight_decay),
                        .shrink = (float)(decoupled ? 1 - t->lr * t->weight_decay : 1),
                        .sign = t->maximize ? -1.0f : 1.0f};
}

INLINE void update(const adam_rates *r, vf step_size, vf root_scale, vf *p, vf g, vf *m, vf *v) {
    *p *= r->shrink;
    g *= r->sign;
    g += r->decay * *p;
    *m = r->keep1 * *m + r->take1 * g;
    *v = r->keep2 * *v + r->take2 * (g * g);
    *p -= step_size * *m / (vf_sqrt(*v) * root_scale + r->eps);
}

/* Updates the chosen ones of LANES elements from i on. Those beyond `end` are not touched; those before it that are not
 * chosen are written as they were, so they must be this thread's. */
INLINE void update_some(const gsopt_adam_tensor *t, const adam_rates *r, vf step_size, vf root_scale, vm chosen,
                        int64_t i, int64_t end) {
    float *in[4] = {t->parameter + i, (float *)t->gradient + i, t->average + i, t->square + i};
    float tail[4][LANES];
    int rest = (int)min_i64(end - i, LANES);
    if (rest < LANES) {
        memset(tail, 0, sizeof tail);
        for (int k = 0; k < 4; k++) in[k] = memcpy(tail[k], in[k], rest * sizeof(float));
    }
    vf old_p = vf_load(in[0]), old_m = vf_load(in[2]), old_v = vf_load(in[3]), p = old_p, m = old_m, v = old_v;
    update(r, step_size, root_scale, &p, vf_load(in[1]), &m, &v);
    p = vf_sel(chosen, p, old_p), m = vf_sel(chosen, m, old_m), v = vf_sel(chosen, v, old_v);
    if (rest == LANES) {
        vf_store(in[0], p), vf_store(in[2], m), vf_store(in[3], v);
        return;
    }
    vf_store_first(t->parameter + i, p, rest);
    vf_store_first(t->average + i, m, rest), vf_store_first(t->square + i, v, rest);
}

/* Elements with one step count. */
static void adam_run(const gsopt_adam_tensor *t, int64_t first, int64_t end) {
    adam_rates r = rates_of(t);
    vf step_size = vf_set((float)(t->lr / (1 - pow(t->beta1, *t->count))));
    vf root_scale = vf_set((float)(1 / sqrt(1 - pow(t->beta2, *t->count))));
    for (; first < end; first += LANES) update_some(t, &r, step_size, root_scale, vm_first(LANES), first, end);
}

static void powers_of(powers *p, double beta) {
    p->beta = beta, p->low[0] = p->high[0] = 1;
    for (int i = 1; i < DIGIT; i++) p->low[i] = p->low[i - 1] * beta;
    for (int i = 1; i < DIGIT; i++) p->high[i] = p->high[i - 1] * (p->low[DIGIT - 1] * beta);
}

INLINE double power(const powers *p, int64_t exponent) {
    if (exponent >= DIGIT * DIGIT) return pow(p->beta, (double)exponent);
    return p->high[exponent / DIGIT] * p->low[exponent % DIGIT];
}

/* Counts the step of those of up to ROWS rows that are to be updated; which they are, their rates, and their number. */
static int begin_rows(const gsopt_adam_tensor *t, const row_powers *powers, int64_t first, int count,
                      int *restrict chosen, float *restrict step_size, float *restrict root_scale) {
    const uint8_t *visible = t->visible ? t->visible + first : NULL;
    float *steps = t->steps + first;
    int found = 0;
    for (int i = 0; i < count; i++) chosen[found] = i, found += visible ? visible[i] != 0 : 1;
    for (int i = 0; i < found; i++) {
        int64_t step = (int64_t)(steps[chosen[i]] += 1);
        step_size[i] = (float)(1 - power(&powers->beta1, step));
        root_scale[i] = (float)(1 - power(&powers->beta2, step));
    }
    float lr = (float)t->lr;
    for (int i = 0; i < found; i++) {
        step_size[i] = lr / step_size[i];
        root_scale[i] = 1 / sqrtf(root_scale[i]);
    }
    return found;
}

/* The processor does not foresee which wide row is next; narrow ones lie side by side in its cache lines. */
INLINE void prefetch_row(const gsopt_adam_tensor *t, int64_t first, int64_t width) {
    const int64_t line = 64 / sizeof(float), last = first + width - 1;
    for (int64_t i = first; i < last + line; i += line) {
        int64_t at = min_i64(i, last);
        __builtin_prefetch(t->parameter + at, 1), __builtin_prefetch(t->gradient + at);
        __builtin_prefetch(t->average + at, 1), __builtin_prefetch(t->square + at, 1);
    }
}

/* A wide row is updated vector by vector. */
static void wide_row(const gsopt_adam_tensor *t, const adam_rates *r, float step_size, float root_scale, int64_t i,
                     int64_t width, int64_t end) {
    for (int64_t stop = i + width; i < stop; i += LANES)
        update_some(t, r, vf_set(step_size), vf_set(root_scale), vm_first((int)min_i64(stop - i, LANES)), i, end);
}

INLINE void spread(int width, int found, const int *chosen, const float *step_size, const float *root_scale,
                   float *restrict sizes, float *restrict scales) {
    for (int k = 0; k < found; k++) {
        float size = step_size[k], scale = root_scale[k];
        float *to_size = sizes + chosen[k] * width, *to_scale = scales + chosen[k] * width;
        for (int i = 0; i < width; i++) to_size[i] = size, to_scale[i] = scale;
    }
}

/* Narrow rows side by side in a vector: their rates are spread out to the elements, 0 where nothing is to change. */
static void narrow_rows(const gsopt_adam_tensor *t, const adam_rates *r, int found, const int *chosen,
                        const float *step_size, const float *root_scale, int64_t i, int64_t end) {
    int width = (int)(t->n / t->rows), count = (int)min_i64(ROWS * width, end - i);
    float sizes[ROWS * NARROW], scales[ROWS * NARROW];
    for (int k = 0; k < count; k += LANES) vf_store(sizes + k, vf_set(0)), vf_store(scales + k, vf_set(0));
    switch (width) { /* with a constant, the loop over the elements of a row unfolds */
    case 1: spread(1, found, chosen, step_size, root_scale, sizes, scales); break;
    case 3: spread(3, found, chosen, step_size, root_scale, sizes, scales); break;
    case 4: spread(4, found, chosen, step_size, root_scale, sizes, scales); break;
    default: spread(width, found, chosen, step_size, root_scale, sizes, scales);
    }
    for (int k = 0; k < count; k += LANES) {
        vf scale = vf_load(scales + k);
        update_some(t, r, vf_load(sizes + k), scale, vf_lt(vf_set(0), scale), i + k, end);
    }
}

/* Rows with a step count each. */
static void adam_rows(const gsopt_adam_tensor *t, const row_powers *powers, int64_t first, int64_t last) {
    adam_rates r = rates_of(t);
    int64_t width = t->n / t->rows, end = last * width;
    int chosen[ROWS];
    float size[ROWS], scale[ROWS];
    for (; first < last; first += ROWS) {
        int found = begin_rows(t, powers, first, (int)min_i64(ROWS, last - first), chosen, size, scale);
        if (width < NARROW) {
            if (found) narrow_rows(t, &r, found, chosen, size, scale, first * width, end);
            continue;
        }
        for (int k = 0; k < found; k++) {
            if (k + AHEAD < found) prefetch_row(t, (first + chosen[k + AHEAD]) * width, width);
            wide_row(t, &r, size[k], scale[k], (first + chosen[k]) * width, width, end);
        }
    }
}

/* Rows a task where each has a step count. */
INLINE int64_t rows_a_task(const gsopt_adam_tensor *t) {
    int64_t width = t->n / t->rows;
    return width >= RUN ? 1 : RUN / (width ? width : 1);
}

INLINE int64_t tasks_of(const gsopt_adam_tensor *t) {
    if (!t->steps) return div_up(t->n, RUN);
    return t->rows ? div_up(t->rows, rows_a_task(t)) : 0;
}

static void adam_task(void *context, int64_t task, int thread) {
    (void)thread;
    const adam_job *job = context;
    for (int k = 0; k < job->count; k++) {
        const gsopt_adam_tensor *t = &job->tensors[k];
        int64_t tasks = tasks_of(t);
        if (task >= tasks) {
            task -= tasks;
            continue;
        }
        int64_t unit = t->steps ? rows_a_task(t) : RUN, first = task * unit;
        if (t->steps)
            adam_rows(t, &job->powers[k], first, min_i64(first + unit, t->rows));
        else
            adam_run(t, first, min_i64(first + unit, t->n));
        return;
    }
}

int gsopt_adam(int count, const gsopt_adam_tensor *tensors) {
    adam_job job = {tensors, malloc((count + 1) * sizeof(row_powers)), count};
    if (!job.powers) return GSOPT_NO_MEMORY;
    stage_clock clock = stage_begin();
    int64_t tasks = 0;
    for (int k = 0; k < count; k++) {
        tasks += tasks_of(&tensors[k]);
        if (!tensors[k].steps) {
            if (tensors[k].count) *tensors[k].count += 1; /* of no rows there may be no count */
            continue;
        }
        int corrected = !tensors[k].uncorrected; /* 1 - 0^t is no correction */
        powers_of(&job.powers[k].beta1, corrected ? tensors[k].beta1 : 0);
        powers_of(&job.powers[k].beta2, corrected ? tensors[k].beta2 : 0);
    }
    parallel_for(tasks, adam_task, &job);
    stage_end(&clock, STAGE_OPTIMIZER);
    free(job.powers);
    return 0;
}
