/* Spherical harmonics of degree 0 to 3: colour as a function of the direction from the camera.
 *
 * LANES visible Gaussians at once. A row of coefficients, fifteen bands of three channels, is read as a whole and turned
 * to columns in registers. Constants: Sloan 2013, signs as in 3DGS.
 */
#include "projection.h"

#define COLUMNS 48 /* 15 bands of three channels, and padding to whole vectors */
#define C0 0.28209479177387814f

typedef struct {
    int64_t n;
    int degree, bands;
    const float *means, *dc, *rest;
    float center[3]; /* of the camera, world units */
    const int32_t *radii;
    float *colors;
    const float *clamped, *v_colors;
    float *v_dc, *v_rest, *v_means;
    float (*center_sums)[3];
} sh_job;

/* Bands 1..15 at unit directions; those above the degree are zero. */
static void basis(int degree, vf x, vf y, vf z, vf b[15]) {
    for (int k = 0; k < 15; k++) b[k] = vf_set(0);
    if (degree < 1) return;
    b[0] = -0.4886025119029199f * y, b[1] = 0.4886025119029199f * z, b[2] = -0.4886025119029199f * x;
    if (degree < 2) return;
    vf xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
    b[3] = 1.0925484305920792f * xy, b[4] = -1.0925484305920792f * yz;
    b[5] = 0.31539156525252005f * (2.0f * zz - xx - yy);
    b[6] = -1.0925484305920792f * xz, b[7] = 0.5462742152960396f * (xx - yy);
    if (degree < 3) return;
    b[8] = -0.5900435899266435f * y * (3.0f * xx - yy), b[9] = 2.890611442640554f * xy * z;
    b[10] = -0.4570457994644658f * y * (4.0f * zz - xx - yy);
    b[11] = 0.3731763325901154f * z * (2.0f * zz - 3.0f * xx - 3.0f * yy);
    b[12] = -0.4570457994644658f * x * (4.0f * zz - xx - yy);
    b[13] = 1.445305721320277f * z * (xx - yy), b[14] = -0.5900435899266435f * x * (xx - 3.0f * yy);
}

/* Gradient of sum_k d[k] b[k] by the direction. */
static void basis_backward(int degree, vf x, vf y, vf z, const vf d[15], vf v[3]) {
    v[0] = -0.4886025119029199f * d[2], v[1] = -0.4886025119029199f * d[0], v[2] = 0.4886025119029199f * d[1];
    if (degree < 2) return;
    vf c1 = vf_set(1.0925484305920792f), c2 = vf_set(0.31539156525252005f), c3 = vf_set(0.5462742152960396f);
    v[0] += c1 * (y * d[3] - z * d[6]) - 2.0f * c2 * x * d[5] + 2.0f * c3 * x * d[7];
    v[1] += c1 * (x * d[3] - z * d[4]) - 2.0f * c2 * y * d[5] - 2.0f * c3 * y * d[7];
    v[2] += -c1 * (y * d[4] + x * d[6]) + 4.0f * c2 * z * d[5];
    if (degree < 3) return;
    vf xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
    vf e0 = vf_set(0.5900435899266435f), e1 = vf_set(2.890611442640554f), e2 = vf_set(0.4570457994644658f);
    vf e3 = vf_set(0.3731763325901154f), e5 = vf_set(1.445305721320277f);
    v[0] += -6.0f * e0 * xy * d[8] + e1 * yz * d[9] + 2.0f * e2 * xy * d[10] - 6.0f * e3 * xz * d[11] -
            e2 * (4.0f * zz - 3.0f * xx - yy) * d[12] + 2.0f * e5 * xz * d[13] - 3.0f * e0 * (xx - yy) * d[14];
    v[1] += -3.0f * e0 * (xx - yy) * d[8] + e1 * xz * d[9] - e2 * (4.0f * zz - xx - 3.0f * yy) * d[10] -
            6.0f * e3 * yz * d[11] + 2.0f * e2 * xy * d[12] - 2.0f * e5 * yz * d[13] + 6.0f * e0 * xy * d[14];
    v[2] += e1 * xy * d[9] - 8.0f * e2 * yz * d[10] + 3.0f * e3 * (2.0f * zz - xx - yy) * d[11] -
            8.0f * e2 * xz * d[12] + e5 * (xx - yy) * d[13];
}

INLINE void directions(const sh_job *job, const lane_rows *rows, vf d[3], vf *inverse) {
    for (int k = 0; k < 3; k++) d[k] = load_column(job->means, 3, k, rows) - job->center[k];
    *inverse = 1.0f / vf_sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
    for (int k = 0; k < 3; k++) d[k] *= *inverse;
}

/* Coefficients of the bands up to the degree: columns[3 band + channel]. The rest of the last vector is not used. */
INLINE void load_coefficients(const sh_job *job, const lane_rows *rows, vf columns[COLUMNS]) {
    int width = 3 * job->bands, used = 3 * (job->degree * (job->degree + 2));
    for (int first = 0; first < used; first += LANES) {
        int safe = width - first >= LANES;
        for (int k = 0; k < LANES; k++) {
            const float *p = job->rest + rows->row[k] * width + first;
            if (safe || rows->row[k] + 1 < job->n) { /* beyond the row, still inside the array */
                columns[first + k] = vf_load(p);
            } else {
                float t[LANES] = {0};
                memcpy(t, p, (width - first) * sizeof(float));
                columns[first + k] = vf_load(t);
            }
        }
        transpose(columns + first);
    }
}

static void forward_lanes(const sh_job *job, const lane_rows *rows) {
    vf color[3], d[3], inverse, b[15], columns[COLUMNS];
    for (int c = 0; c < 3; c++) color[c] = C0 * load_column(job->dc, 3, c, rows) + 0.5f;
    if (job->degree > 0) {
        directions(job, rows, d, &inverse);
        basis(job->degree, d[0], d[1], d[2], b);
        load_coefficients(job, rows, columns);
        for (int k = 0; k < job->degree * (job->degree + 2); k++)
            for (int c = 0; c < 3; c++) color[c] += b[k] * columns[3 * k + c];
    }
    for (int c = 0; c < 3; c++) store_column(job->colors, 3, c, rows, vf_max(color[c], vf_set(0)));
}

/* Gradients of all the coefficients, those of bands above the degree zero. v: by colour. */
INLINE void store_coefficients(const sh_job *job, const lane_rows *rows, const vf b[15], const vf v[3]) {
    int width = 3 * job->bands;
#pragma GCC unroll 12
    for (int first = 0; first < COLUMNS; first += LANES) {
        if (first >= width) break;
        vf columns[LANES];
#pragma GCC unroll 16
        for (int k = 0; k < LANES; k++) columns[k] = first + k < 45 ? b[(first + k) / 3] * v[(first + k) % 3] : vf_set(0);
        transpose(columns);
        for (int k = 0; k < rows->count; k++)
            vf_store_first(job->v_rest + rows->row[k] * width + first, columns[k], min_int(LANES, width - first));
    }
    for (int k = 0; k < rows->count && width > COLUMNS; k++)
        memset(job->v_rest + rows->row[k] * width + COLUMNS, 0, (width - COLUMNS) * sizeof(float));
}

/* By the Gaussians' centres, through the direction. */
INLINE void direction_backward(const sh_job *job, const lane_rows *rows, const vf d[3], vf inverse, const vf v[3],
                               vf out[3]) {
    vf columns[COLUMNS], dots[15] = {{0}}, u[3];
    load_coefficients(job, rows, columns);
    for (int k = 0; k < job->degree * (job->degree + 2); k++)
        dots[k] = columns[3 * k] * v[0] + columns[3 * k + 1] * v[1] + columns[3 * k + 2] * v[2];
    basis_backward(job->degree, d[0], d[1], d[2], dots, u);
    vf along = u[0] * d[0] + u[1] * d[1] + u[2] * d[2]; /* the length of the direction does not matter */
    for (int k = 0; k < 3; k++) out[k] = (u[k] - along * d[k]) * inverse;
}

static void backward_lanes(const sh_job *job, const lane_rows *rows, vf center_sums[3]) {
    vf d[3], inverse, b[15], v[3], v_mean[3] = {{0}};
    for (int c = 0; c < 3; c++) { /* max(., 0) lets nothing through */
        vm shines = vf_lt(vf_set(0), load_column(job->clamped, 3, c, rows));
        v[c] = vf_only(shines, load_column(job->v_colors, 3, c, rows));
        if (job->v_dc) store_column(job->v_dc, 3, c, rows, C0 * v[c]);
    }
    int through = job->degree > 0 && (job->v_means || center_sums);
    if (!job->v_rest && !through) return;
    directions(job, rows, d, &inverse);
    if (job->v_rest) {
        basis(job->degree, d[0], d[1], d[2], b);
        store_coefficients(job, rows, b, v);
    }
    if (!through) return;
    direction_backward(job, rows, d, inverse, v, v_mean);
    for (int k = 0; k < 3; k++) {
        if (job->v_means) store_column(job->v_means, 3, k, rows, load_column(job->v_means, 3, k, rows) + v_mean[k]);
        if (center_sums) center_sums[k] -= vf_only(vm_first(rows->count), v_mean[k]);
    }
}

static void forward_chunk(void *context, int64_t chunk, int thread) {
    (void)thread;
    const sh_job *job = context;
    int64_t first = chunk * CHUNK, end = min_i64(first + CHUNK, job->n);
    int32_t visible[CHUNK];
    int count = list_visible(job->radii, first, end, visible);
    if (count < end - first) memset(job->colors + 3 * first, 0, (end - first) * 12);
    for (int i = 0; i < count; i += LANES) {
        lane_rows rows = rows_listed(visible + i, first, count - i);
        forward_lanes(job, &rows);
    }
}

/* Zeros for the rows that are not visible, which nothing else writes. */
static void clear_hidden(const sh_job *job, int64_t first, int64_t end) {
    int width = 3 * job->bands;
    for (int64_t i = first; i < end; i++) {
        if (job->radii[2 * i] > 0) continue;
        if (job->v_dc) memset(job->v_dc + 3 * i, 0, 12);
        if (job->v_rest) memset(job->v_rest + i * width, 0, width * sizeof(float));
    }
}

static void backward_chunk(void *context, int64_t chunk, int thread) {
    (void)thread;
    const sh_job *job = context;
    vf sums[3] = {{0}};
    int64_t first = chunk * CHUNK, end = min_i64(first + CHUNK, job->n);
    int32_t visible[CHUNK];
    int count = list_visible(job->radii, first, end, visible);
    if (count < end - first) clear_hidden(job, first, end);
    for (int i = 0; i < count; i += LANES) {
        lane_rows rows = rows_listed(visible + i, first, count - i);
        backward_lanes(job, &rows, job->center_sums ? sums : NULL);
    }
    if (job->center_sums)
        for (int k = 0; k < 3; k++) job->center_sums[chunk][k] = vf_sum(sums[k]);
}

/* Row k of the adjoint of the camera's rotation (or any invertible) matrix A, over its determinant: A^-1 by columns. */
static void inverse_columns(const gsopt_camera *camera, double columns[3][3]) {
    const float *A = camera->rotation;
    double det = 0;
    for (int k = 0; k < 3; k++) {
        const float *p = A + 3 * ((k + 1) % 3), *q = A + 3 * ((k + 2) % 3);
        for (int i = 0; i < 3; i++) {
            int j = (i + 1) % 3, l = (i + 2) % 3;
            columns[k][i] = (double)p[j] * q[l] - (double)p[l] * q[j];
        }
    }
    for (int i = 0; i < 3; i++) det += A[i] * columns[0][i];
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < 3; i++) columns[k][i] /= det;
}

/* -A^-1 t, where world points are A p + t in the camera's frame. */
static void camera_center(const gsopt_camera *camera, float center[3]) {
    double columns[3][3];
    const float *t = camera->translation;
    inverse_columns(camera, columns);
    for (int i = 0; i < 3; i++) center[i] = (float)-(t[0] * columns[0][i] + t[1] * columns[1][i] + t[2] * columns[2][i]);
}

/* From the gradient by the centre c = -A^-1 t to those by A and t: v_t = -A^-T v_c, v_A = v_t c^T. */
static void center_backward(const gsopt_camera *camera, const float center[3], const double v_center[3], float *v_viewmat) {
    double columns[3][3];
    inverse_columns(camera, columns);
    for (int i = 0; i < 3; i++) {
        double v = 0;
        for (int k = 0; k < 3; k++) v -= columns[i][k] * v_center[k];
        for (int k = 0; k < 3; k++) v_viewmat[3 * i + k] += (float)(v * center[k]);
        v_viewmat[9 + i] += (float)v;
    }
}

int gsopt_sh(const gsopt_camera *camera, int64_t n, int degree, int bands, const float *means, const float *dc,
             const float *rest, const int32_t *radii, float *colors) {
    sh_job job = {.n = n, .degree = degree, .bands = bands, .means = means, .dc = dc, .rest = rest, .radii = radii,
                  .colors = colors};
    stage_clock clock = stage_begin();
    camera_center(camera, job.center);
    parallel_for(div_up(n, CHUNK), forward_chunk, &job);
    stage_end(&clock, STAGE_SH);
    return 0;
}

int gsopt_sh_backward(const gsopt_camera *camera, int64_t n, int degree, int bands, const float *means, const float *dc,
                      const float *rest, const int32_t *radii, const float *colors, const float *v_colors, float *v_dc,
                      float *v_rest, float *v_means, float *v_viewmat) {
    int64_t chunks = div_up(n, CHUNK);
    buffer sums = {0};
    if (v_viewmat && buffer_reserve(&sums, chunks * sizeof(float[3]))) return GSOPT_NO_MEMORY;
    sh_job job = {.n = n, .degree = degree, .bands = bands, .means = means, .dc = dc, .rest = rest, .radii = radii,
                  .clamped = colors, .v_colors = v_colors, .v_dc = v_dc, .v_rest = v_rest, .v_means = v_means,
                  .center_sums = sums.data};
    stage_clock clock = stage_begin();
    camera_center(camera, job.center);
    parallel_for(chunks, backward_chunk, &job);
    stage_end(&clock, STAGE_SH_BACKWARD);
    if (v_viewmat) {
        double total[3] = {0};
        for (int64_t i = 0; i < chunks; i++)
            for (int k = 0; k < 3; k++) total[k] += job.center_sums[i][k];
        center_backward(camera, job.center, total, v_viewmat);
        buffer_release(&sums);
    }
    return 0;
}
