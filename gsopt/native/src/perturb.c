/* The noise of MCMC on the positions of some rows: a draw, times a gate that falls with opacity, times the covariance
 * R S^2 R^T. The rows are gathered LANES at a time; each is on its own, so no result depends on the threads. */
#include "internal.h"

enum { P_DRAW = 0, P_OPACITY = 3, P_ROTATION = 4, P_SCALING = 8, P_FLOATS = 11 };

typedef struct {
    int64_t count;
    const int64_t *rows;
    const float *draws, *opacity, *rotation, *scaling;
    float strength, steepness, middle;
    float *xyz;
} perturb_job;

INLINE void gather(float in[P_FLOATS][LANES], const perturb_job *job, int64_t k, int lane) {
    int64_t row = job->rows[k];
    for (int a = 0; a < 3; a++) in[P_DRAW + a][lane] = job->draws[3 * k + a];
    for (int a = 0; a < 3; a++) in[P_SCALING + a][lane] = job->scaling[3 * row + a];
    for (int a = 0; a < 4; a++) in[P_ROTATION + a][lane] = job->rotation[4 * row + a];
    in[P_OPACITY][lane] = job->opacity[row];
}

INLINE void cross(vf out[3], const vf a[3], const vf b[3]) {
    for (int i = 0; i < 3; i++) out[i] = a[(i + 1) % 3] * b[(i + 2) % 3] - a[(i + 2) % 3] * b[(i + 1) % 3];
}

/* Turned by the unit quaternion (w, axis), or back by (-w, axis). */
INLINE void turn(vf v[3], vf w, const vf axis[3]) {
    vf across[3], twice[3];
    cross(across, axis, v);
    for (int i = 0; i < 3; i++) across[i] += across[i];
    cross(twice, axis, across);
    for (int i = 0; i < 3; i++) v[i] += w * across[i] + twice[i];
}

static void perturb_lanes(const perturb_job *job, int64_t first, int lanes) {
    float in[P_FLOATS][LANES] = {{0}};
    for (int k = 0; k < lanes; k++) gather(in, job, first + k, k);
    vf w = vf_load(in[P_ROTATION]), axis[3], v[3];
    for (int i = 0; i < 3; i++) axis[i] = vf_load(in[P_ROTATION + 1 + i]);
    vf length = vf_sqrt(w * w + axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2]);
    vf inverse = 1.0f / vf_max(length, vf_set(1e-12f));
    w *= inverse;
    for (int i = 0; i < 3; i++) axis[i] *= inverse;

    vf opacity = 1.0f / (1.0f + vf_exp(-vf_load(in[P_OPACITY])));
    vf gate = 1.0f / (1.0f + vf_exp(job->steepness * (opacity - job->middle)));
    for (int i = 0; i < 3; i++) v[i] = vf_load(in[P_DRAW + i]) * (gate * job->strength);
    turn(v, -w, axis);
    for (int i = 0; i < 3; i++) v[i] *= vf_exp(2.0f * vf_load(in[P_SCALING + i]));
    turn(v, w, axis);

    float out[3][LANES];
    for (int i = 0; i < 3; i++) vf_store(out[i], v[i]);
    for (int k = 0; k < lanes; k++)
        for (int i = 0; i < 3; i++) job->xyz[3 * job->rows[first + k] + i] += out[i][k];
}

static void perturb_chunk(void *context, int64_t chunk, int thread) {
    (void)thread;
    const perturb_job *job = context;
    int64_t end = min_i64((chunk + 1) * CHUNK, job->count);
    for (int64_t k = chunk * CHUNK; k < end; k += LANES) perturb_lanes(job, k, (int)min_i64(LANES, end - k));
}

int64_t gsopt_rows_below(int64_t n, const float *values, float limit, const uint8_t *allowed, int64_t *rows) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) { /* without a branch: half of them would be guessed wrong */
        rows[count] = i;
        count += (values[i] < limit) & (!allowed || allowed[i]);
    }
    return count;
}

int gsopt_perturb(int64_t count, const int64_t *rows, const float *draws, const float *opacity, const float *rotation,
                  const float *scaling, float strength, float steepness, float middle, float *xyz) {
    perturb_job job = {count, rows, draws, opacity, rotation, scaling, strength, steepness, middle, xyz};
    parallel_for(div_up(count, CHUNK), perturb_chunk, &job);
    return 0;
}
