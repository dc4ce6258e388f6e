/* What densification adds up over the views of a Gaussian: norm of the gradient of its centre on the image, and how often it
 * was visible. One pass over the rows, each on its own. */
#include "internal.h"

typedef struct {
    int64_t n;
    const int32_t *radii;
    const float *v_means2d;
    float scale_x, scale_y;
    float *norms, *counts;
} statistics_job;

static void statistics_chunk(void *context, int64_t chunk, int thread) {
    (void)thread;
    const statistics_job *job = context;
    const float scale_x = job->scale_x, scale_y = job->scale_y;
    const float *restrict v = job->v_means2d;
    const int32_t *restrict radii = job->radii;
    float *restrict norms = job->norms, *restrict counts = job->counts;
    int64_t end = min_i64((chunk + 1) * CHUNK, job->n);
    for (int64_t i = chunk * CHUNK; i < end; i++) {
        float x = v[2 * i] * scale_x, y = v[2 * i + 1] * scale_y;
        float norm = __builtin_sqrtf(x * x + y * y), seen = (radii[2 * i] > 0) & (radii[2 * i + 1] > 0) ? 1.0f : 0.0f;
        norms[i] += seen > 0 ? norm : 0.0f;
        counts[i] += seen;
    }
}

int gsopt_statistics(int64_t n, const int32_t *radii, const float *v_means2d, float scale_x, float scale_y, float *norms,
                     float *counts) {
    statistics_job job = {n, radii, v_means2d, scale_x, scale_y, norms, counts};
    stage_clock clock = stage_begin();
    parallel_for(div_up(n, CHUNK), statistics_chunk, &job);
    stage_end(&clock, STAGE_STATISTICS);
    return 0;
}
