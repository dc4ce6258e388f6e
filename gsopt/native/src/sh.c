/* Spherical harmonics of degree 0 to 3: colour as a function of the direction from the camera.
 *
 * The basis is evaluated for sixteen Gaussians at once. The coefficients of one Gaussian lie in memory as rows of
 * three channels, so a row of fifteen floats is five bands: with the basis spread to lanes 0 0 0 1 1 1 2 2 2 ...
 * (lane 15 zero) one vector holds five bands of all channels. Constants: Sloan 2013, signs as in 3DGS.
 */
#include "projection.h"

#define SPREAD 5 /* bands a vector: degree 1, 2, 3 has 3, 8, 15, so as many vectors as its degree */
#define C0 0.28209479177387814f

typedef struct {
    int64_t n;
    int degree, bands;
    const float *means, *center, *dc, *rest;
    const int32_t *radii;
    float *colors;
    const float *clamped, *v_colors;
    float *v_dc, *v_rest, *v_means;
    float (*center_sums)[3];
} sh_job;

/* Bands 1..15 at unit directions; those above the degree are zero. */
static void basis(int degree, vf x, vf y, vf z, vf b[LANES]) {
    for (int k = 0; k < LANES; k++) b[k] = vf_set(0);
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
static void basis_backward(int degree, vf x, vf y, vf z, const vf d[LANES], vf v[3]) {
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

INLINE void directions(const sh_job *job, int64_t first, vf d[3], vf *inverse) {
    for (int k = 0; k < 3; k++) d[k] = load_column(job->means, 3, k, first, job->n) - job->center[k];
    *inverse = 1.0f / vf_sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
    for (int k = 0; k < 3; k++) d[k] *= *inverse;
}

INLINE void spread(const float *b, int vector, vf *out) { /* b: 15 bands of one Gaussian */
    float t[LANES];
    for (int lane = 0; lane < 15; lane++) t[lane] = b[vector * SPREAD + lane / 3];
    t[15] = 0;
    *out = vf_load(t);
}

/* Fifteen floats of a row (fewer at its end), the rest zero; never reads past the array. */
INLINE vf load_bands(const sh_job *job, int64_t row, int vector) {
    int width = 3 * job->bands, offset = 15 * vector, count = min_int(15, width - offset);
    const float *p = job->rest + row * width + offset;
    if (row * width + offset + LANES <= job->n * width) {
        static const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        return vf_only(vi_gt(vi_set(count), lane), vf_load(p));
    }
    float t[LANES] = {0};
    memcpy(t, p, count * sizeof(float));
    return vf_load(t);
}

static uint32_t visible_lanes(const sh_job *job, int64_t first) {
    uint32_t bits = 0;
    int64_t count = min_i64(LANES, job->n - first);
    for (int k = 0; k < count; k++) bits |= (uint32_t)(job->radii[2 * (first + k)] > 0) << k;
    return bits;
}

static void forward_lanes(const sh_job *job, int64_t first) {
    uint32_t visible = visible_lanes(job, first);
    int count = (int)min_i64(LANES, job->n - first);
    memset(job->colors + 3 * first, 0, count * 12);
    if (!visible) return;
    vf d[3], inverse, b[LANES];
    float bands[LANES][LANES]; /* [band][Gaussian] */
    if (job->degree > 0) {
        directions(job, first, d, &inverse);
        basis(job->degree, d[0], d[1], d[2], b);
        for (int k = 0; k < 15; k++) vf_store(bands[k], b[k]);
    }
    for (; visible; visible &= visible - 1) {
        int lane = __builtin_ctz(visible);
        float t[LANES] = {0}, own[LANES];
        if (job->degree > 0) {
            vf sum = vf_set(0), weight;
            for (int k = 0; k < 15; k++) own[k] = bands[k][lane];
            for (int v = 0; v < job->degree; v++) {
                spread(own, v, &weight);
                sum += weight * load_bands(job, first + lane, v);
            }
            vf_store(t, sum);
        }
        for (int c = 0; c < 3; c++) {
            float rest = ((t[c] + t[c + 3]) + (t[c + 6] + t[c + 9])) + t[c + 12];
            float color = C0 * job->dc[3 * (first + lane) + c] + rest + 0.5f;
            job->colors[3 * (first + lane) + c] = color > 0 ? color : 0;
        }
    }
}

static void clear_backward(const sh_job *job, int64_t row) {
    if (job->v_dc) memset(job->v_dc + 3 * row, 0, 12);
    if (job->v_rest) memset(job->v_rest + row * 3 * job->bands, 0, 12 * job->bands);
}

/* Writes the coefficients' gradients of one row; with `dots`, also sum over channels of coefficient * gradient. */
static void backward_row(const sh_job *job, int64_t row, const float *own, float dots[LANES]) {
    float v[3], t[LANES];
    for (int c = 0; c < 3; c++)
        v[c] = job->clamped[3 * row + c] > 0 ? job->v_colors[3 * row + c] : 0; /* max(., 0) lets nothing through */
    if (job->v_dc)
        for (int c = 0; c < 3; c++) job->v_dc[3 * row + c] = C0 * v[c];
    vf weight, channel = {v[0], v[1], v[2], v[0], v[1], v[2], v[0], v[1], v[2], v[0], v[1], v[2], v[0], v[1], v[2], 0};
    int width = 3 * job->bands;
    for (int i = 0; 15 * i < width && job->v_rest; i++) {
        float *out = job->v_rest + row * width + 15 * i;
        weight = vf_set(0); /* bands of a degree that the basis does not reach */
        if (i < LANES / SPREAD) spread(own, i, &weight);
        vf_store(t, weight * channel);
        memcpy(out, t, min_int(15, width - 15 * i) * sizeof(float));
    }
    for (int i = 0; dots && i < job->degree; i++) {
        vf_store(t, load_bands(job, row, i) * channel);
        for (int k = 0; k < SPREAD; k++) dots[i * SPREAD + k] = t[3 * k] + t[3 * k + 1] + t[3 * k + 2];
    }
}

static void backward_lanes(const sh_job *job, int64_t first, vf center_sums[3]) {
    uint32_t visible = visible_lanes(job, first);
    int count = (int)min_i64(LANES, job->n - first), through = job->degree > 0 && (job->v_means || center_sums);
    vf d[3], inverse, b[LANES], v[3] = {{0}};
    float bands[LANES][LANES] = {{0}}, dots[LANES][LANES] = {{0}}; /* [band][Gaussian], [Gaussian][band] */
    directions(job, first, d, &inverse);
    basis(job->degree, d[0], d[1], d[2], b);
    for (int k = 0; k < 15; k++) vf_store(bands[k], b[k]);
    for (int lane = 0; lane < count; lane++) {
        float own[LANES];
        if (!(visible >> lane & 1)) {
            clear_backward(job, first + lane);
            continue;
        }
        for (int k = 0; k < LANES; k++) own[k] = bands[k][lane];
        backward_row(job, first + lane, own, through ? dots[lane] : NULL);
    }
    if (through && visible) {
        for (int k = 0; k < 15; k++)
            for (int lane = 0; lane < LANES; lane++) b[k][lane] = dots[lane][k];
        vf u[3];
        basis_backward(job->degree, d[0], d[1], d[2], b, u);
        vf along = u[0] * d[0] + u[1] * d[1] + u[2] * d[2]; /* the length of the direction does not matter */
        for (int k = 0; k < 3; k++) v[k] = (u[k] - along * d[k]) * inverse;
        float seen[LANES];
        for (int k = 0; k < LANES; k++) seen[k] = (float)(visible >> k & 1);
        vm alive = vf_lt(vf_set(0), vf_load(seen));
        for (int k = 0; k < 3; k++) v[k] = vf_only(alive, v[k]);
    }
    for (int k = 0; k < 3; k++) {
        if (job->v_means) store_column(job->v_means, 3, k, first, job->n, v[k]);
        if (center_sums) center_sums[k] -= v[k];
    }
}

static void forward_chunk(void *context, int64_t chunk, int thread) {
    (void)thread;
    const sh_job *job = context;
    int64_t end = min_i64((chunk + 1) * CHUNK, job->n);
    for (int64_t i = chunk * CHUNK; i < end; i += LANES) forward_lanes(job, i);
}

static void backward_chunk(void *context, int64_t chunk, int thread) {
    (void)thread;
    const sh_job *job = context;
    vf sums[3] = {{0}};
    int64_t end = min_i64((chunk + 1) * CHUNK, job->n);
    for (int64_t i = chunk * CHUNK; i < end; i += LANES) backward_lanes(job, i, job->center_sums ? sums : NULL);
    if (job->center_sums)
        for (int k = 0; k < 3; k++) job->center_sums[chunk][k] = vf_sum(sums[k]);
}

int gsopt_sh(int64_t n, int degree, int bands, const float *means, const float *center, const float *dc,
             const float *rest, const int32_t *radii, float *colors) {
    sh_job job = {.n = n, .degree = degree, .bands = bands, .means = means, .center = center, .dc = dc, .rest = rest,
                  .radii = radii, .colors = colors};
    stage_clock clock = stage_begin();
    parallel_for(div_up(n, CHUNK), forward_chunk, &job);
    stage_end(&clock, STAGE_SH);
    return 0;
}

int gsopt_sh_backward(int64_t n, int degree, int bands, const float *means, const float *center, const float *dc,
                      const float *rest, const int32_t *radii, const float *colors, const float *v_colors, float *v_dc,
                      float *v_rest, float *v_means, float *v_center) {
    int64_t chunks = div_up(n, CHUNK);
    buffer sums = {0};
    if (v_center && buffer_reserve(&sums, chunks * sizeof(float[3]))) return GSOPT_NO_MEMORY;
    sh_job job = {.n = n, .degree = degree, .bands = bands, .means = means, .center = center, .dc = dc, .rest = rest,
                  .radii = radii, .clamped = colors, .v_colors = v_colors, .v_dc = v_dc, .v_rest = v_rest,
                  .v_means = v_means, .center_sums = sums.data};
    stage_clock clock = stage_begin();
    parallel_for(chunks, backward_chunk, &job);
    stage_end(&clock, STAGE_SH_BACKWARD);
    if (v_center) {
        double total[3] = {0};
        for (int64_t i = 0; i < chunks; i++)
            for (int k = 0; k < 3; k++) total[k] += job.center_sums[i][k];
        for (int k = 0; k < 3; k++) v_center[k] = (float)total[k];
        buffer_release(&sums);
    }
    return 0;
}
