/* The gradient of projection (docs/kernel.md), LANES visible Gaussians at a time. Nothing is kept from the forward pass:
 * recomputing it costs less than reading it back. */
#include "projection.h"

typedef struct {
    const gsopt_camera *cam;
    int64_t n;
    const float *means, *quats, *scales, *opacities;
    const int32_t *radii;
    const float *v_means2d, *v_cov2d, *v_depths, *v_splat_opacities;
    float *v_means, *v_quats, *v_scales, *v_opacities;
    float (*camera_sums)[12]; /* a chunk: rotation, translation; NULL if not wanted */
} job_t;

typedef struct {
    vf p[3], R[9], t[3]; /* camera-frame centre, camera rotation and translation */
    vf rotation[3][3], s[3];
} gradients;

/* Writes the gradient of the opacities as they are given, from v by those between 0 and 1. */
INLINE void write_opacities(const job_t *job, const lane_rows *rows, vf opacity, vf v) {
    if (job->cam->raw) v *= opacity * (1.0f - opacity);
    store_column(job->v_opacities, 1, 0, rows, v);
}

INLINE vf splat_gradient(const job_t *job, const lane_rows *rows, vm alive) {
    return job->v_splat_opacities ? vf_only(alive, load_column(job->v_splat_opacities, 1, 0, rows)) : vf_set(0);
}

/* opacity * sqrt(det0 / det): adds to the covariance's gradient, gives the opacity's. */
static void compensation_backward(const job_t *job, const projected *g, const lane_rows *rows, vm alive, vf *v_a, vf *v_b,
                                  vf *v_c) {
    vf zero = vf_set(0), opacity = load_opacities(job->cam, job->opacities, rows), v_out = splat_gradient(job, rows, alive);
    vf ratio = vf_max(g->det0 / g->det, zero), rho = vf_sqrt(ratio), eps = vf_set(job->cam->eps2d);
    if (job->v_opacities) write_opacities(job, rows, opacity, vf_only(alive, v_out * rho));
    vm usable = vm_and(alive, vf_lt(vf_set(1e-12f), ratio)); /* the root has no slope at zero */
    vf v_ratio = vf_only(usable, 0.5f * v_out * opacity / (rho * g->det));
    *v_a += v_ratio * (g->c - ratio * (g->c + eps));
    *v_c += v_ratio * (g->a - ratio * (g->a + eps));
    *v_b -= v_ratio * 2.0f * g->b * (1.0f - ratio);
}

/* From the gradient of U U^T (U = J W R S) to scales, rotation, Jacobian and camera rotation. */
static void covariance_backward(gradients *d, const projected *g, const gsopt_camera *cam, vf v_a, vf v_b, vf v_c) {
    const float *W = cam->rotation;
    vf v_T[2][3] = {{{0}}};
    for (int k = 0; k < 3; k++) {
        vf v_U0 = 2.0f * v_a * g->U[0][k] + v_b * g->U[1][k], v_U1 = v_b * g->U[0][k] + 2.0f * v_c * g->U[1][k];
        d->s[k] = v_U0 * g->P[0][k] + v_U1 * g->P[1][k];
        v_U0 *= g->s[k], v_U1 *= g->s[k];
        for (int i = 0; i < 3; i++) {
            d->rotation[i][k] = v_U0 * g->T[0][i] + v_U1 * g->T[1][i];
            v_T[0][i] += v_U0 * g->R[i][k], v_T[1][i] += v_U1 * g->R[i][k];
        }
    }
    vf j00 = cam->fx * g->inv_z, j11 = cam->fy * g->inv_z, j02 = -j00 * g->lim_x, j12 = -j11 * g->lim_y;
    vf v_j00 = vf_set(0), v_j02 = v_j00, v_j11 = v_j00, v_j12 = v_j00;
    for (int i = 0; i < 3; i++) {
        v_j00 += v_T[0][i] * W[i], v_j02 += v_T[0][i] * W[6 + i];
        v_j11 += v_T[1][i] * W[3 + i], v_j12 += v_T[1][i] * W[6 + i];
        d->R[i] += j00 * v_T[0][i], d->R[3 + i] += j11 * v_T[1][i];
        d->R[6 + i] += j02 * v_T[0][i] + j12 * v_T[1][i];
    }
    /* j02 = -fx x / z^2, or -fx limit / z where the clamp holds x / z at its limit */
    vf v_lim_x = -j00 * v_j02, v_lim_y = -j11 * v_j12, zero = vf_set(0);
    vf v_x = vf_sel(g->free_x, v_lim_x * g->inv_z, zero), v_y = vf_sel(g->free_y, v_lim_y * g->inv_z, zero);
    d->p[0] += v_x, d->p[1] += v_y;
    d->p[2] -= v_x * g->lim_x + v_y * g->lim_y;
    d->p[2] -= g->inv_z * (j00 * v_j00 + j11 * v_j11 + j02 * v_j02 + j12 * v_j12);
}

static void center_backward(gradients *d, const job_t *job, const projected *g, const lane_rows *rows, vm alive) {
    const gsopt_camera *cam = job->cam;
    if (job->v_means2d) {
        vf v_x = vf_only(alive, load_column(job->v_means2d, 2, 0, rows)) * cam->fx * g->inv_z;
        vf v_y = vf_only(alive, load_column(job->v_means2d, 2, 1, rows)) * cam->fy * g->inv_z;
        d->p[0] += v_x, d->p[1] += v_y;
        d->p[2] -= (v_x * g->x + v_y * g->y) * g->inv_z;
    }
    if (job->v_depths) d->p[2] += vf_only(alive, load_column(job->v_depths, 1, 0, rows));
}

static void write_quaternions(const job_t *job, const projected *g, const gradients *d, const lane_rows *rows, vm alive) {
    vf w = g->q[0], x = g->q[1], y = g->q[2], z = g->q[3];
    const vf(*V)[3] = d->rotation;
    vf v[4];
    v[0] = 2.0f * (x * (V[2][1] - V[1][2]) + y * (V[0][2] - V[2][0]) + z * (V[1][0] - V[0][1]));
    v[1] = 2.0f * (y * (V[0][1] + V[1][0]) + z * (V[0][2] + V[2][0]) + w * (V[2][1] - V[1][2])) -
           4.0f * x * (V[1][1] + V[2][2]);
    v[2] = 2.0f * (x * (V[0][1] + V[1][0]) + z * (V[1][2] + V[2][1]) + w * (V[0][2] - V[2][0])) -
           4.0f * y * (V[0][0] + V[2][2]);
    v[3] = 2.0f * (x * (V[0][2] + V[2][0]) + y * (V[1][2] + V[2][1]) + w * (V[1][0] - V[0][1])) -
           4.0f * z * (V[0][0] + V[1][1]);
    vf along = v[0] * w + v[1] * x + v[2] * y + v[3] * z; /* the norm does not matter: no gradient along q */
    for (int k = 0; k < 4; k++)
        store_column(job->v_quats, 4, k, rows, vf_only(alive, (v[k] - along * g->q[k]) * g->inv_norm));
}

static void write_gradients(const job_t *job, const projected *g, gradients *d, const lane_rows *rows, vm alive) {
    const float *W = job->cam->rotation;
    if (job->v_means)
        for (int k = 0; k < 3; k++) {
            vf v = W[k] * d->p[0] + W[3 + k] * d->p[1] + W[6 + k] * d->p[2];
            store_column(job->v_means, 3, k, rows, vf_only(alive, v));
        }
    if (job->v_scales)
        for (int k = 0; k < 3; k++) {
            vf v = job->cam->raw ? d->s[k] * g->s[k] : d->s[k];
            store_column(job->v_scales, 3, k, rows, vf_only(alive, v));
        }
    if (job->v_quats) write_quaternions(job, g, d, rows, alive);
}

static void clear_rows(const job_t *job, int64_t first, int64_t count) {
    if (job->v_means) memset(job->v_means + 3 * first, 0, count * 12);
    if (job->v_quats) memset(job->v_quats + 4 * first, 0, count * 16);
    if (job->v_scales) memset(job->v_scales + 3 * first, 0, count * 12);
    if (job->v_opacities) memset(job->v_opacities + first, 0, count * 4);
}

static void backward_lanes(const job_t *job, const lane_rows *rows, vf camera_sums[12]) {
    vm alive = vm_first(rows->count);
    if (job->v_opacities && !job->cam->antialiased)
        write_opacities(job, rows, load_opacities(job->cam, job->opacities, rows), splat_gradient(job, rows, alive));
    if (!job->v_means && !job->v_quats && !job->v_scales && !camera_sums && !job->cam->antialiased) return;
    projected g;
    project_center(&g, job->cam, job->means, rows);
    project_covariance(&g, job->cam, job->quats, job->scales, rows);
    gradients d = {0};
    vf v_a = vf_set(0), v_b = v_a, v_c = v_a;
    if (job->v_cov2d) {
        v_a = vf_only(alive, load_column(job->v_cov2d, 3, 0, rows));
        v_b = vf_only(alive, load_column(job->v_cov2d, 3, 1, rows));
        v_c = vf_only(alive, load_column(job->v_cov2d, 3, 2, rows));
    }
    if (job->cam->antialiased) compensation_backward(job, &g, rows, alive, &v_a, &v_b, &v_c);
    covariance_backward(&d, &g, job->cam, v_a, v_b, v_c);
    center_backward(&d, job, &g, rows, alive);
    write_gradients(job, &g, &d, rows, alive);
    if (!camera_sums) return;
    for (int k = 0; k < 3; k++) {
        vf m = load_column(job->means, 3, k, rows);
        for (int i = 0; i < 3; i++) camera_sums[3 * i + k] += vf_only(alive, d.R[3 * i + k] + d.p[i] * m);
        camera_sums[9 + k] += vf_only(alive, d.p[k]);
    }
}

static void backward_chunk(void *context, int64_t chunk, int thread) {
    (void)thread;
    const job_t *job = context;
    vf sums[12] = {{0}};
    int64_t first = chunk * CHUNK, end = min_i64(first + CHUNK, job->n);
    int32_t visible[CHUNK];
    int count = list_visible(job->radii, first, end, visible);
    if (count < end - first) clear_rows(job, first, end - first);
    for (int i = 0; i < count; i += LANES) {
        lane_rows rows = rows_listed(visible + i, first, count - i);
        backward_lanes(job, &rows, job->camera_sums ? sums : NULL);
    }
    if (job->camera_sums)
        for (int k = 0; k < 12; k++) job->camera_sums[chunk][k] = vf_sum(sums[k]);
}

int gsopt_project_backward(const gsopt_camera *cam, int64_t n, const float *means, const float *quats,
                           const float *scales, const float *opacities, const int32_t *radii, const float *v_means2d,
                           const float *v_cov2d, const float *v_depths, const float *v_splat_opacities, float *v_means,
                           float *v_quats, float *v_scales, float *v_opacities, float *v_viewmat) {
    int64_t chunks = div_up(n, CHUNK);
    buffer sums = {0};
    if (v_viewmat && buffer_reserve(&sums, chunks * sizeof(float[12]))) return GSOPT_NO_MEMORY;
    job_t job = {cam,       n,        means,         quats,   scales,  opacities, radii,       v_means2d,
                 v_cov2d,   v_depths, v_splat_opacities, v_means, v_quats, v_scales,  v_opacities, sums.data};
    stage_clock clock = stage_begin();
    parallel_for(chunks, backward_chunk, &job);
    stage_end(&clock, STAGE_PROJECT_BACKWARD);
    if (v_viewmat) {
        double total[12] = {0};
        for (int64_t i = 0; i < chunks; i++)
            for (int k = 0; k < 12; k++) total[k] += job.camera_sums[i][k];
        for (int k = 0; k < 12; k++) v_viewmat[k] = (float)total[k];
        buffer_release(&sums);
    }
    return 0;
}
