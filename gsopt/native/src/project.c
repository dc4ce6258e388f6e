/* Projection: 3D Gaussians to ellipses in the image, culling, and the tiles that each touches. */
#include "projection.h"

typedef struct {
    gsopt_frame *frame;
    const gsopt_camera *cam;
    int64_t n;
    const float *means, *quats, *scales, *opacities;
    int32_t *radii;
    float *means2d, *cov2d, *depths, *compensated;
} project_job;

/* Columns [x0, x1) and rows [y0, y1) of tiles whose pixel centres the ellipse's box contains. */
static tile_rect box_tiles(const gsopt_frame *f, const splat *s) {
    float left = fmaxf(ceilf(s->mx - s->hx), 0.0f), right = fminf(floorf(s->mx + s->hx), (float)(f->width - 1));
    float top = fmaxf(ceilf(s->my - s->hy), 0.0f), bottom = fminf(floorf(s->my + s->hy), (float)(f->height - 1));
    if (!(left <= right) || !(top <= bottom)) return (tile_rect){0, 0, 0, 0};
    return (tile_rect){(uint16_t)((int)left / TILE), (uint16_t)((int)top / TILE), (uint16_t)((int)right / TILE + 1),
                       (uint16_t)((int)bottom / TILE + 1)};
}

static uint32_t count_tiles(const gsopt_frame *f, const splat *s, const tile_rect *r, uint32_t *tile_counts) {
    uint32_t pairs = 0;
    for (int ty = r->y0; ty < r->y1; ty++) {
        int x0, x1;
        tile_span(s, r, ty, &x0, &x1);
        for (int tx = x0; tx < x1; tx++) tile_counts[ty * f->tiles_x + tx]++;
        pairs += x1 > x0 ? (uint32_t)(x1 - x0) : 0;
    }
    return pairs;
}

/* The lanes' ellipses as splats; returns the lanes that survive culling (bits). */
static uint32_t make_splats(const project_job *job, projected *g, vf opacity, splat out[LANES],
                            float radius[2][LANES], vm candidates) {
    const gsopt_camera *cam = job->cam;
    vf eps = vf_set(cam->eps2d), a = g->a + eps, c = g->c + eps;
    if (cam->antialiased) opacity *= vf_sqrt(vf_max(g->det0 / g->det, vf_set(0)));
    vm keep = vm_and(candidates, vm_and(vf_ge(opacity, vf_set(ALPHA_MIN)), vf_lt(vf_set(0), g->det)));
    if (!vm_bits(keep)) return 0;
    vf lo = vf_log2(vf_sel(keep, opacity, vf_set(1)));
    vf reach = vf_max(lo + LOG2_255, vf_set(0));
    vf mx = cam->fx * g->x * g->inv_z + cam->cx, my = cam->fy * g->y * g->inv_z + cam->cy;
    vf sigma_x = vf_sqrt(a), sigma_y = vf_sqrt(c), half = vf_sqrt(reach * (1.0f / HALF_LOG2E)); /* in sigmas */
    vf extent = vf_min(vf_set(RADIUS_SIGMAS), half);
    vf rx = extent * sigma_x, ry = extent * sigma_y;
    for (int k = 0; k < LANES; k++) rx[k] = ceilf(rx[k]), ry[k] = ceilf(ry[k]);
    rx = vf_min(rx, vf_set(RADIUS_MAX)), ry = vf_min(ry, vf_set(RADIUS_MAX));
    vf clip = vf_set(cam->radius_clip);
    keep = vm_andnot(vm_and(vf_le(rx, clip), vf_le(ry, clip)), keep);
    keep = vm_and(keep, vm_and(vf_lt(vf_set(0), mx + rx), vf_lt(mx - rx, vf_set((float)cam->width))));
    keep = vm_and(keep, vm_and(vf_lt(vf_set(0), my + ry), vf_lt(my - ry, vf_set((float)cam->height))));
    vf_store(radius[0], rx), vf_store(radius[1], ry);
    /* Cholesky factor of HALF_LOG2E times the inverse of [a b; b c] */
    vf ua = vf_sqrt(HALF_LOG2E * c / g->det);
    vf fields[12] = {mx - 0.5f, my - 0.5f, ua, -g->b / c * ua, vf_sqrt(HALF_LOG2E / c), lo, reach, opacity,
                     half * sigma_x, half * sigma_y, g->b / c, g->b / a};
    float t[12][LANES];
    for (int i = 0; i < 12; i++) vf_store(t[i], fields[i]);
    for (int k = 0; k < LANES; k++)
        for (int i = 0; i < 12; i++) ((float *)&out[k])[i] = t[i][k];
    return vm_bits(keep);
}

static void write_row(const project_job *job, int64_t i, const splat *s, int rx, int ry, float depth, const float *cov) {
    if (!s) {
        memset(job->radii + 2 * i, 0, 8), memset(job->means2d + 2 * i, 0, 8);
        memset(job->cov2d + 3 * i, 0, 12), job->depths[i] = 0;
        if (job->cam->antialiased) job->compensated[i] = 0;
        return;
    }
    if (job->cam->antialiased) job->compensated[i] = s->opacity;
    job->radii[2 * i] = rx, job->radii[2 * i + 1] = ry;
    job->means2d[2 * i] = s->mx + 0.5f, job->means2d[2 * i + 1] = s->my + 0.5f;
    memcpy(job->cov2d + 3 * i, cov, 12), job->depths[i] = depth;
}

static void project_lanes(const project_job *job, int64_t first, uint32_t *tile_counts, uint64_t *visible, uint64_t *pairs) {
    gsopt_frame *f = job->frame;
    const gsopt_camera *cam = job->cam;
    int count = (int)min_i64(LANES, job->n - first);
    projected g;
    project_center(&g, cam, job->means, first, job->n);
    vm candidates = vm_and(vf_ge(g.z, vf_set(cam->near_plane)), vf_le(g.z, vf_set(cam->far_plane)));
    splat *splats = (splat *)f->splats.data + first, local[LANES];
    tile_rect *rects = (tile_rect *)f->rects.data + first;
    uint32_t *offsets = (uint32_t *)f->pair_offsets.data + first, alive = 0;
    float radius[2][LANES], cov[LANES][3], depth[LANES];
    if (vm_bits(candidates)) {
        project_covariance(&g, cam, job->quats, job->scales, first, job->n);
        vf opacity = load_column(job->opacities, 1, 0, first, job->n);
        alive = make_splats(job, &g, opacity, local, radius, candidates);
        for (int k = 0; k < LANES; k++)
            cov[k][0] = g.a[k] + cam->eps2d, cov[k][1] = g.b[k], cov[k][2] = g.c[k] + cam->eps2d, depth[k] = g.z[k];
    }
    for (int k = 0; k < count; k++) {
        offsets[k] = 0;
        if (!(alive >> k & 1)) {
            rects[k] = (tile_rect){0, 0, 0, 0};
            write_row(job, first + k, NULL, 0, 0, 0, NULL);
            continue;
        }
        write_row(job, first + k, &local[k], (int)radius[0][k], (int)radius[1][k], depth[k], cov[k]);
        splats[k] = local[k];
        rects[k] = box_tiles(f, &local[k]);
        offsets[k] = count_tiles(f, &local[k], &rects[k], tile_counts);
        *pairs += offsets[k];
        *visible += offsets[k] > 0;
    }
}

static void project_chunk(void *context, int64_t chunk, int thread) {
    const project_job *job = context;
    gsopt_frame *f = job->frame;
    uint32_t *tile_counts = (uint32_t *)f->thread_counts.data + (size_t)thread * f->tiles_x * f->tiles_y;
    uint64_t visible = 0, pairs = 0;
    int64_t end = min_i64((chunk + 1) * CHUNK, job->n);
    for (int64_t i = chunk * CHUNK; i < end; i += LANES) project_lanes(job, i, tile_counts, &visible, &pairs);
    ((uint64_t *)f->chunk_visible.data)[chunk] = visible;
    ((uint64_t *)f->chunk_pairs.data)[chunk] = pairs;
}

static int project_locked(gsopt_frame *f, const gsopt_camera *cam, int64_t n, const float *means, const float *quats,
                          const float *scales, const float *opacities, int32_t *radii, float *means2d, float *cov2d,
                          float *depths, float *compensated) {
    f->n = n, f->width = cam->width, f->height = cam->height;
    f->tiles_x = (int)div_up(cam->width, TILE), f->tiles_y = (int)div_up(cam->height, TILE);
    f->threads = pool_threads();
    size_t tiles = (size_t)f->tiles_x * f->tiles_y, chunks = (size_t)div_up(n, CHUNK);
    size_t count_bytes = f->threads * tiles * sizeof(uint32_t);
    if (buffer_reserve(&f->splats, n * sizeof(splat)) || buffer_reserve(&f->rects, n * sizeof(tile_rect)) ||
        buffer_reserve(&f->pair_offsets, n * sizeof(uint32_t)) || buffer_reserve(&f->chunk_visible, chunks * 8) ||
        buffer_reserve(&f->chunk_pairs, chunks * 8) || buffer_reserve(&f->thread_counts, count_bytes))
        return GSOPT_NO_MEMORY;
    memset(f->thread_counts.data, 0, count_bytes);
    stage_clock clock = stage_begin();
    project_job job = {f, cam, n, means, quats, scales, opacities, radii, means2d, cov2d, depths, compensated};
    parallel_for((int64_t)chunks, project_chunk, &job);
    stage_end(&clock, STAGE_PROJECT);
    return bin_splats(f, depths);
}

int gsopt_project(gsopt_frame *f, const gsopt_camera *cam, int64_t n, const float *means, const float *quats,
                  const float *scales, const float *opacities, int32_t *radii, float *means2d, float *cov2d,
                  float *depths, float *compensated) {
    pool_lock(); /* thread_counts has a row for each thread */
    int status = project_locked(f, cam, n, means, quats, scales, opacities, radii, means2d, cov2d, depths, compensated);
    pool_unlock();
    return status;
}
