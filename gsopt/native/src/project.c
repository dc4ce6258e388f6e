/* Projection: 3D Gaussians to ellipses in the image, culling, and the tiles that each touches. */
#include "projection.h"

typedef struct {
    gsopt_frame *frame;
    const gsopt_camera *cam;
    int64_t n;
    const float *means, *quats, *scales, *opacities;
    int32_t *radii;
    float *means2d, *cov2d, *depths, *splat_opacities;
} project_job;

typedef struct { /* LANES splats by field, in the order of `splat`, and what is written of them besides */
    vf fields[16];
    vf rx, ry; /* radii, pixels */
    vm keep;
} lane_splats;
enum { F_MX, F_MY, F_UA, F_UB, F_VC, F_LO, F_INV_UA, F_OPACITY, F_HX, F_HY, F_SX, F_SY };

typedef struct { /* tiles of LANES boxes, as whole floats: [x0, x1) x [y0, y1) */
    vf x0, y0, x1, y1;
    vm any;
} lane_boxes;

INLINE vf vf_floor(vf a) { return -vf_ceil(-a); }
INLINE vf vf_trunc(vf a) { return __builtin_convertvector(__builtin_convertvector(a, vi), vf); }

/* The lanes' ellipses as splats, and which lanes survive culling. */
INLINE void make_splats(lane_splats *out, const project_job *job, const projected *g, vf opacity, vm candidates) {
    const gsopt_camera *cam = job->cam;
    vf eps = vf_set(cam->eps2d), a = g->a + eps, c = g->c + eps;
    if (cam->antialiased) opacity *= vf_sqrt(vf_max(g->det0 / g->det, vf_set(0)));
    vm keep = vm_and(candidates, vm_and(vf_ge(opacity, vf_set(ALPHA_MIN)), vf_lt(vf_set(0), g->det)));
    vf lo = vf_log2(vf_sel(keep, opacity, vf_set(1)));
    vf reach = vf_max(lo + LOG2_255, vf_set(0));
    vf mx = cam->fx * g->x * g->inv_z + cam->cx, my = cam->fy * g->y * g->inv_z + cam->cy;
    vf sigma_x = vf_sqrt(a), sigma_y = vf_sqrt(c), half = vf_sqrt(reach * (1.0f / HALF_LOG2E)); /* in sigmas */
    vf extent = vf_min(vf_set(RADIUS_SIGMAS), half), most = vf_set(RADIUS_MAX), clip = vf_set(cam->radius_clip);
    vf rx = vf_min(vf_ceil(extent * sigma_x), most), ry = vf_min(vf_ceil(extent * sigma_y), most);
    keep = vm_andnot(vm_and(vf_le(rx, clip), vf_le(ry, clip)), keep);
    keep = vm_and(keep, vm_and(vf_lt(vf_set(0), mx + rx), vf_lt(mx - rx, vf_set((float)cam->width))));
    keep = vm_and(keep, vm_and(vf_lt(vf_set(0), my + ry), vf_lt(my - ry, vf_set((float)cam->height))));
    out->rx = vf_only(keep, rx), out->ry = vf_only(keep, ry), out->keep = keep;
    /* Cholesky factor of HALF_LOG2E times the inverse of [a b; b c] */
    vf inv_ua = vf_sqrt(g->det / (HALF_LOG2E * c)), ua = 1.0f / inv_ua, slope = g->b / c;
    vf fields[16] = {mx - 0.5f, my - 0.5f, ua, -slope * ua, vf_sqrt(HALF_LOG2E / c), lo, inv_ua, opacity,
                     half * sigma_x, half * sigma_y, slope, g->b / a};
    memcpy(out->fields, fields, sizeof fields);
}

/* Tiles whose pixel centres the ellipses' boxes contain. */
INLINE lane_boxes box_tiles(const gsopt_frame *f, const lane_splats *s) {
    vf zero = vf_set(0), mx = s->fields[F_MX], my = s->fields[F_MY], hx = s->fields[F_HX], hy = s->fields[F_HY];
    vf left = vf_max(vf_ceil(mx - hx), zero), right = vf_min(vf_floor(mx + hx), vf_set((float)(f->width - 1)));
    vf top = vf_max(vf_ceil(my - hy), zero), bottom = vf_min(vf_floor(my + hy), vf_set((float)(f->height - 1)));
    lane_boxes b = {.any = vm_and(s->keep, vm_and(vf_le(left, right), vf_le(top, bottom)))};
    b.x0 = vf_trunc(vf_only(b.any, left) * (1.0f / TILE)), b.y0 = vf_trunc(vf_only(b.any, top) * (1.0f / TILE));
    b.x1 = vf_trunc(vf_only(b.any, right) * (1.0f / TILE)) + vf_only(b.any, vf_set(1));
    b.y1 = vf_trunc(vf_only(b.any, bottom) * (1.0f / TILE)) + vf_only(b.any, vf_set(1));
    return b;
}

/* tile_span of tiles.c for LANES Gaussians: row y0 + r of each. */
INLINE void row_spans(const lane_splats *s, const lane_boxes *b, int r, vf *x0, vf *x1) {
    const vf *field = s->fields;
    vf pixel = (b->y0 + (float)r) * (float)TILE - field[F_MY], reach = vf_max(field[F_LO] + LOG2_255, vf_set(0));
    vf top = vf_max(pixel, -field[F_HY]), bottom = vf_min(pixel + (float)(TILE - 1), field[F_HY]);
    vf extreme = field[F_SY] * field[F_HX], zero = vf_set(0);
    vf dy_right = vf_min(vf_max(extreme, top), bottom), dy_left = vf_min(vf_max(-extreme, top), bottom);
    vf v_right = field[F_VC] * dy_right, v_left = field[F_VC] * dy_left;
    vf wide_right = vf_sqrt(vf_max(reach - v_right * v_right, zero)) * field[F_INV_UA];
    vf wide_left = vf_sqrt(vf_max(reach - v_left * v_left, zero)) * field[F_INV_UA];
    vf right = field[F_MX] + SPAN_SLACK + wide_right + field[F_SX] * dy_right;
    vf left = field[F_MX] - SPAN_SLACK - wide_left + field[F_SX] * dy_left;
    /* clamped as floats, with the box second, so that a NaN or an overflow leaves the box */
    *x0 = vf_trunc(vf_min(vf_max(vf_ceil(left) * (1.0f / TILE), b->x0), b->x1));
    *x1 = vf_trunc(vf_max(vf_min(vf_floor(right) * (1.0f / TILE) + 1.0f, b->x1), b->x0));
    vm misses = vf_lt(bottom, top);
    *x1 = vf_sel(misses, *x0, *x1);
}

/* Footprints of rows [first, first + count); returns how many of them touch a tile. */
static int write_footprints(gsopt_frame *f, const lane_splats *s, int64_t first, int count) {
    footprint *out = (footprint *)f->footprints.data + first;
    lane_boxes box = box_tiles(f, s);
    float x0[LANES], y0[LANES], x1[LANES], y1[LANES];
    vf_store(x0, box.x0), vf_store(y0, box.y0), vf_store(x1, box.x1), vf_store(y1, box.y1);
    float tallest = 0;
    for (int k = 0; k < count; k++) {
        out[k] = (footprint){.x0 = (uint16_t)x0[k], .y0 = (uint16_t)y0[k], .x1 = (uint16_t)x1[k], .y1 = (uint16_t)y1[k]};
        tallest = fmaxf(tallest, y1[k] - y0[k]);
    }
    for (int r = 0; r < SPAN_ROWS && (float)r < tallest; r++) {
        vf from, to;
        row_spans(s, &box, r, &from, &to);
        vf_store(x0, from), vf_store(x1, to);
        for (int k = 0; k < count; k++) out[k].spans[r][0] = (uint16_t)x0[k], out[k].spans[r][1] = (uint16_t)x1[k];
    }
    return __builtin_popcount(vm_bits(vm_and(box.any, vm_first(count))));
}

INLINE void store_pairs(float *rows, int64_t first, int count, vf a, vf b) { /* [N, 2] */
    float t[2 * LANES];
    vf_store(t, zip_low(a, b)), vf_store(t + LANES, zip_high(a, b));
    memcpy(rows + 2 * first, t, 8 * count);
}

/* What the caller sees of rows [first, first + count): zeros where culled. */
static void write_rows(const project_job *job, const lane_splats *s, const projected *g, int64_t first, int count) {
    float eps = job->cam->eps2d;
    lane_rows rows = rows_from(first, job->n);
    vf cov[3] = {g->a + eps, g->b, g->c + eps};
    float radii[2 * LANES];
    store_pairs(radii, 0, LANES, s->rx, s->ry);
    for (int k = 0; k < 2 * count; k++) job->radii[2 * first + k] = (int32_t)radii[k];
    store_pairs(job->means2d, first, count, vf_only(s->keep, s->fields[F_MX] + 0.5f),
                vf_only(s->keep, s->fields[F_MY] + 0.5f));
    for (int k = 0; k < 3; k++) store_column(job->cov2d, 3, k, &rows, vf_only(s->keep, cov[k]));
    vf_store_first(job->depths + first, vf_only(s->keep, g->z), count);
    if (job->splat_opacities) vf_store_first(job->splat_opacities + first, vf_only(s->keep, s->fields[F_OPACITY]), count);
}

static void write_splats(splat *out, lane_splats *s, int count) {
    for (int part = 0; part < PARTS; part++) {
        vf *v = s->fields + part * LANES;
        transpose(v);
        for (int k = 0; k < count; k++) vf_store((float *)&out[k] + part * LANES, v[k]);
    }
}

static void clear_rows(const project_job *job, int64_t first, int count) {
    memset(job->radii + 2 * first, 0, 8 * count), memset(job->means2d + 2 * first, 0, 8 * count);
    memset(job->cov2d + 3 * first, 0, 12 * count), memset(job->depths + first, 0, 4 * count);
    if (job->splat_opacities) memset(job->splat_opacities + first, 0, 4 * count);
    memset((footprint *)job->frame->footprints.data + first, 0, count * sizeof(footprint));
}

/* Rows from `first`; returns how many touch a tile. */
static int project_lanes(const project_job *job, int64_t first) {
    gsopt_frame *f = job->frame;
    const gsopt_camera *cam = job->cam;
    lane_rows rows = rows_from(first, job->n);
    projected g;
    lane_splats s;
    project_center(&g, cam, job->means, &rows);
    vm candidates = vm_and(vf_ge(g.z, vf_set(cam->near_plane)), vf_le(g.z, vf_set(cam->far_plane)));
    s.keep = vm_from_bits(0);
    if (vm_bits(candidates)) {
        project_covariance(&g, cam, job->quats, job->scales, &rows);
        make_splats(&s, job, &g, load_opacities(cam, job->opacities, &rows), candidates);
    }
    if (!vm_bits(s.keep)) {
        clear_rows(job, first, rows.count);
        return 0;
    }
    write_rows(job, &s, &g, first, rows.count);
    int visible = write_footprints(f, &s, first, rows.count);
    write_splats((splat *)f->splats.data + first, &s, rows.count);
    return visible;
}

static void project_chunk(void *context, int64_t chunk, int thread) {
    (void)thread;
    const project_job *job = context;
    uint64_t visible = 0;
    int64_t end = min_i64((chunk + 1) * CHUNK, job->n);
    for (int64_t i = chunk * CHUNK; i < end; i += LANES) visible += (uint64_t)project_lanes(job, i);
    ((uint64_t *)job->frame->chunk_visible.data)[chunk] = visible;
}

int gsopt_project(gsopt_frame *f, const gsopt_camera *cam, int64_t n, const float *means, const float *quats,
                  const float *scales, const float *opacities, int32_t *radii, float *means2d, float *cov2d,
                  float *depths, float *splat_opacities) {
    f->n = n, f->width = cam->width, f->height = cam->height;
    f->tiles_x = (int)div_up(cam->width, TILE), f->tiles_y = (int)div_up(cam->height, TILE);
    int64_t chunks = div_up(n, CHUNK);
    if (buffer_reserve(&f->splats, n * sizeof(splat)) || buffer_reserve(&f->footprints, n * sizeof(footprint)) ||
        buffer_reserve(&f->chunk_visible, chunks * 8))
        return GSOPT_NO_MEMORY;
    stage_clock clock = stage_begin();
    project_job job = {f,     cam,     n,     means,  quats,       scales, opacities,
                       radii, means2d, cov2d, depths, splat_opacities};
    parallel_for(chunks, project_chunk, &job);
    stage_end(&clock, STAGE_PROJECT);
    return bin_splats(f, depths);
}
