/* LANES Gaussians through a pinhole camera: what projection and its backward pass both compute.
 * Zwicker et al. 2001 (EWA splatting); the clamp of the Jacobian and the names follow 3DGS and gsplat. */
#pragma once
#include "internal.h"

typedef struct {
    vf x, y, z, inv_z;       /* centre in the camera's frame */
    vf lim_x, lim_y;         /* x/z, y/z clamped to 1.3 fields of view, where the Jacobian is taken */
    vm free_x, free_y;       /* lanes where that clamp is not active */
    vf q[4], inv_norm;       /* unit quaternion w, x, y, z; 1 / norm of the raw one */
    vf R[3][3], s[3];        /* rotation of the quaternion, scales */
    vf T[2][3];              /* Jacobian times camera rotation */
    vf P[2][3];              /* T R */
    vf U[2][3];              /* T R S: the covariance in the image is U U^T */
    vf a, b, c;              /* U U^T: xx, xy, yy, before eps2d */
    vf det0, det;            /* determinants before and after adding eps2d */
} projected;

/* Which row each lane takes. Past the end the last row again, so that padding never makes a NaN of its own. */
typedef struct {
    int64_t row[LANES];
    int count; /* lanes with a row of their own */
} lane_rows;

INLINE lane_rows rows_from(int64_t first, int64_t n) {
    lane_rows r = {.count = (int)min_i64(LANES, n - first)};
    for (int k = 0; k < LANES; k++) r.row[k] = first + min_int(k, r.count - 1);
    return r;
}

INLINE lane_rows rows_listed(const int32_t *list, int64_t offset, int count) {
    lane_rows r = {.count = min_int(LANES, count)};
    for (int k = 0; k < LANES; k++) r.row[k] = offset + list[min_int(k, r.count - 1)];
    return r;
}

INLINE vf load_column(const float *rows, int width, int column, const lane_rows *r) {
    float t[LANES];
    for (int k = 0; k < LANES; k++) t[k] = rows[r->row[k] * width + column];
    return vf_load(t);
}

INLINE void store_column(float *rows, int width, int column, const lane_rows *r, vf value) {
    float t[LANES];
    vf_store(t, value);
    for (int k = 0; k < r->count; k++) rows[r->row[k] * width + column] = t[k];
}

/* Lists the visible ones of a chunk of Gaussians, as offsets from its first; returns how many. */
INLINE int list_visible(const int32_t *radii, int64_t first, int64_t end, int32_t list[CHUNK]) {
    int count = 0;
    for (int64_t i = first; i < end; i++) {
        list[count] = (int32_t)(i - first);
        count += radii[2 * i] > 0;
    }
    return count;
}

INLINE void project_center(projected *g, const gsopt_camera *cam, const float *means, const lane_rows *r) {
    vf m[3];
    for (int k = 0; k < 3; k++) m[k] = load_column(means, 3, k, r);
    const float *R = cam->rotation, *t = cam->translation;
    g->x = R[0] * m[0] + R[1] * m[1] + R[2] * m[2] + t[0];
    g->y = R[3] * m[0] + R[4] * m[1] + R[5] * m[2] + t[1];
    g->z = R[6] * m[0] + R[7] * m[1] + R[8] * m[2] + t[2];
}

INLINE void quaternion_rotation(projected *g, const float *quats, const lane_rows *r) {
    for (int k = 0; k < 4; k++) g->q[k] = load_column(quats, 4, k, r);
    vf norm2 = g->q[0] * g->q[0] + g->q[1] * g->q[1] + g->q[2] * g->q[2] + g->q[3] * g->q[3];
    g->inv_norm = 1.0f / vf_sqrt(norm2);
    for (int k = 0; k < 4; k++) g->q[k] *= g->inv_norm;
    vf w = g->q[0], x = g->q[1], y = g->q[2], z = g->q[3];
    g->R[0][0] = 1.0f - 2.0f * (y * y + z * z);
    g->R[0][1] = 2.0f * (x * y - w * z);
    g->R[0][2] = 2.0f * (x * z + w * y);
    g->R[1][0] = 2.0f * (x * y + w * z);
    g->R[1][1] = 1.0f - 2.0f * (x * x + z * z);
    g->R[1][2] = 2.0f * (y * z - w * x);
    g->R[2][0] = 2.0f * (x * z - w * y);
    g->R[2][1] = 2.0f * (y * z + w * x);
    g->R[2][2] = 1.0f - 2.0f * (x * x + y * y);
}

/* Opacities 0..1 of the lanes' Gaussians. */
INLINE vf load_opacities(const gsopt_camera *cam, const float *opacities, const lane_rows *r) {
    vf opacity = load_column(opacities, 1, 0, r);
    return cam->raw ? 1.0f / (1.0f + vf_exp(-opacity)) : opacity;
}

/* Needs project_center. Lanes behind the camera give garbage, never used. */
INLINE void project_covariance(projected *g, const gsopt_camera *cam, const float *quats, const float *scales,
                               const lane_rows *r) {
    g->inv_z = 1.0f / g->z;
    float margin_x = 0.15f * cam->width / cam->fx, margin_y = 0.15f * cam->height / cam->fy;
    vf rx = g->x * g->inv_z, ry = g->y * g->inv_z;
    vf x_low = vf_set(-cam->cx / cam->fx - margin_x), x_high = vf_set((cam->width - cam->cx) / cam->fx + margin_x);
    vf y_low = vf_set(-cam->cy / cam->fy - margin_y), y_high = vf_set((cam->height - cam->cy) / cam->fy + margin_y);
    g->lim_x = vf_clamp(rx, x_low, x_high);
    g->lim_y = vf_clamp(ry, y_low, y_high);
    g->free_x = vm_and(vf_ge(rx, x_low), vf_le(rx, x_high));
    g->free_y = vm_and(vf_ge(ry, y_low), vf_le(ry, y_high));
    quaternion_rotation(g, quats, r);
    vf j00 = cam->fx * g->inv_z, j11 = cam->fy * g->inv_z;
    vf j02 = -j00 * g->lim_x, j12 = -j11 * g->lim_y;
    for (int k = 0; k < 3; k++) {
        g->s[k] = load_column(scales, 3, k, r);
        if (cam->raw) g->s[k] = vf_exp(g->s[k]);
        g->T[0][k] = j00 * cam->rotation[k] + j02 * cam->rotation[6 + k];
        g->T[1][k] = j11 * cam->rotation[3 + k] + j12 * cam->rotation[6 + k];
    }
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 3; k++) {
            g->P[i][k] = g->T[i][0] * g->R[0][k] + g->T[i][1] * g->R[1][k] + g->T[i][2] * g->R[2][k];
            g->U[i][k] = g->P[i][k] * g->s[k];
        }
    vf(*U)[3] = g->U;
    g->a = U[0][0] * U[0][0] + U[0][1] * U[0][1] + U[0][2] * U[0][2];
    g->b = U[0][0] * U[1][0] + U[0][1] * U[1][1] + U[0][2] * U[1][2];
    g->c = U[1][0] * U[1][0] + U[1][1] * U[1][1] + U[1][2] * U[1][2];
    /* a c - b^2 as the squared cross product of U's rows (Lagrange): no cancellation for needles */
    vf n0 = U[0][1] * U[1][2] - U[0][2] * U[1][1];
    vf n1 = U[0][2] * U[1][0] - U[0][0] * U[1][2];
    vf n2 = U[0][0] * U[1][1] - U[0][1] * U[1][0];
    g->det0 = n0 * n0 + n1 * n1 + n2 * n2;
    g->det = g->det0 + cam->eps2d * (g->a + g->c) + cam->eps2d * cam->eps2d;
}
