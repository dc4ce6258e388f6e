/* The gradient of compositing (docs/kernel.md has the derivation).
 *
 * A tile goes through its splats back to front; of each it visits the blocks that forward.c noted. The sums over the
 * tile's pixels are one record for each (Gaussian, tile), those of a Gaussian side by side; the second half
 * adds each Gaussian's records in that order. No atomics, and no sum depends on the number of threads.
 */
#include "tile.h"

/* With s = dL/dalpha * alpha (that is dL/dlog alpha), a record holds sums over pixels of: */
enum { R_S, R_SU, R_SV, R_SUU, R_SUV, R_SVV, R_ABS_X, R_ABS_Y, R_COLOR = SUMS };

enum { WANT_OPACITY = 1, WANT_GEOMETRY = 2, WANT_ABSOLUTE = 4 };

typedef struct {
    gsopt_frame *frame;
    int channels, want;
    const float *background, *v_image, *v_alpha;
    float *v_means2d, *v_absolute, *v_cov2d, *v_colors, *v_opacities;
} backward_job;

typedef struct { /* one part of a block */
    vf x, y, T, behind;
    vi stop;
} pixel_part;

typedef struct {
    pixel_part at[BLOCKS][PARTS];
    vf v_image[BLOCKS * MAX_CHANNELS][PARTS]; /* block by block, channels padded to fours */
} tile_pixels;

/* behind: what dL/dcolour sees of everything behind the current splat, background and alpha output included. */
static void begin_tile(tile_pixels *pixels, const backward_job *job, int64_t tile, int tile_x, int tile_y) {
    const gsopt_frame *f = job->frame;
    uint32_t inside = blocks_inside(f, tile_x, tile_y);
    const float *T = (const float *)f->transmittance.data + tile * TILE * TILE;
    const int32_t *stops = (const int32_t *)f->stops.data + tile * TILE * TILE;
    for (int block = 0; block < BLOCKS; block++) {
        vf end[PARTS] = {{0}}, v_alpha[PARTS] = {{0}};
        for (int c = 0; c < padded(job->channels); c++) {
            vf *v_image = pixels->v_image[block * padded(job->channels) + c];
            memset(v_image, 0, sizeof(vf) * PARTS);
            if (c >= job->channels || !(inside >> block & 1)) continue;
            gather_block(v_image, job->v_image, f, job->channels, c, tile_x, tile_y, block);
            for (int p = 0; job->background && p < PARTS; p++) end[p] += v_image[p] * job->background[c];
        }
        if (job->v_alpha && inside >> block & 1) gather_block(v_alpha, job->v_alpha, f, 1, 0, tile_x, tile_y, block);
        for (int p = 0; p < PARTS; p++) {
            pixel_part *at = &pixels->at[block][p];
            at->x = block_x(block, p), at->y = block_y(block, p);
            at->T = vf_load(T + block * 16 + p * LANES), at->stop = vi_load(stops + block * 16 + p * LANES);
            at->behind = at->T * (end[p] - v_alpha[p]);
        }
    }
}

/* One splat in one part of a block; v_image: [channels][PARTS] from that part on. `want` and `channels` are constants
 * where this is inlined. */
INLINE void backward_part(vf *sums, pixel_part *at, const vf (*v_image)[PARTS], int p, const float *s,
                          const float *color, int entry, int channels, int want) {
    block_alpha a = evaluate(s, at->x, at->y);
    vm take = vm_and(a.hit, vi_gt(at->stop, vi_set(entry)));
    vf alpha = vf_only(take, a.alpha), inverse = vf_reciprocal(1.0f - alpha);
    vf T = at->T * inverse, w = alpha * T, seen = vf_set(0);
    at->T = T;
    for (int c = 0; c < channels; c++) {
        sums[R_COLOR + c] += w * v_image[c][p];
        seen += color[c] * v_image[c][p];
    }
    if (!want) return;
    vf v_alpha = T * seen - at->behind * inverse;
    at->behind += w * seen;
    vf S = vf_only(a.free, v_alpha * alpha);
    sums[R_S] += S;
    if (!(want & (WANT_GEOMETRY | WANT_ABSOLUTE))) return;
    vf su = S * a.u, sv = S * a.v;
    sums[R_SU] += su, sums[R_SV] += sv;
    if (want & WANT_GEOMETRY) {
        sums[R_SUU] += su * a.u, sums[R_SUV] += su * a.v, sums[R_SVV] += sv * a.v;
    }
    if (want & WANT_ABSOLUTE) {
        vf gx = s[S_UA] * su, gy = s[S_UB] * su + s[S_VC] * sv;
        sums[R_ABS_X] += vf_max(gx, -gx), sums[R_ABS_Y] += vf_max(gy, -gy);
    }
}

/* Sums over the lanes of `count` vectors to as many floats; `count` is a multiple of four. */
INLINE void write_sums(float *out, const vf *in, int count) {
#pragma GCC unroll 4
    for (int first = 0; first < count; first += LANES) {
        vf group[LANES];
#pragma GCC unroll 16
        for (int k = 0; k < LANES; k++) group[k] = first + k < count ? in[first + k] : vf_set(0);
        vf_store_first(out + first, sums_of_lanes(group), min_int(LANES, count - first));
    }
}

/* No pixel of a block takes an entry from here on. */
static void last_entries(const tile_pixels *pixels, int32_t last[BLOCKS]) {
    for (int b = 0; b < BLOCKS; b++) {
        last[b] = 0;
        for (int p = 0; p < PARTS; p++)
            for (int k = 0; k < LANES; k++) last[b] = max_int(last[b], pixels->at[b][p].stop[k]);
    }
}

INLINE uint32_t blocks_taking(const int32_t last[BLOCKS], int entry) {
    uint32_t bits = 0;
    for (int p = 0; p < PARTS; p++) bits |= vm_bits(vi_gt(vi_load(last + p * LANES), vi_set(entry))) << (p * LANES);
    return bits;
}

/* `channels` and `want` are constants where this is inlined, but for wide pictures. */
INLINE void backward_entries(const backward_job *job, int64_t tile, int channels, int capacity, int want) {
    gsopt_frame *f = job->frame;
    int tile_x = (int)(tile % f->tiles_x), tile_y = (int)(tile / f->tiles_x), work = 0;
    const uint32_t *offsets = f->tile_offsets.data;
    const tile_entry *entries = (const tile_entry *)f->entries.data + offsets[tile];
    const uint16_t *masks = (const uint16_t *)f->masks.data + offsets[tile];
    const splat *splats = f->splats.data;
    const float *wide = f->wide_colors.data;
    uint8_t *touched = f->touched.data;
    tile_pixels pixels;
    begin_tile(&pixels, job, tile, tile_x, tile_y);
    int32_t last[BLOCKS];
    last_entries(&pixels, last);
    int total = (int)(offsets[tile + 1] - offsets[tile]), end = ((const int32_t *)f->tile_ends.data)[tile];
    for (int i = total - 1; i >= end; i--) touched[entries[i].pair] = 0;
    for (int i = end - 1; i >= 0; i--) {
        if (i >= 8) __builtin_prefetch(&splats[entries[i - 8].id]);
        uint32_t blocks = masks[i] & blocks_taking(last, i);
        touched[entries[i].pair] = blocks != 0;
        if (!blocks) continue;
        work += __builtin_popcount(blocks);
        float s[S_FLOATS];
        localize(s, &splats[entries[i].id], tile_x, tile_y);
        const float *color = capacity > 4 ? wide + (int64_t)entries[i].id * channels : s + S_COLOR;
        vf sums[SUMS + MAX_CHANNELS];
        for (int k = 0; k < SUMS + padded(channels); k++) sums[k] = vf_set(0);
        for (; blocks; blocks &= blocks - 1) {
            int block = __builtin_ctz(blocks);
            for (int p = 0; p < PARTS; p++)
                backward_part(sums, &pixels.at[block][p], pixels.v_image + block * padded(channels), p, s, color, i,
                              channels, want);
        }
        float *record = (float *)f->records.data + (size_t)entries[i].pair * (SUMS + padded(channels));
        write_sums(record, sums, SUMS + padded(channels));
    }
    ((int32_t(*)[2])f->tile_work.data)[tile][1] = work;
}

/* One copy for each set of wanted gradients, so that what is not asked for costs nothing. */
#define TILE_TASK(name, channels, capacity, want)                                                                    \
    static void name(void *context, int64_t tile, int thread) {                                                      \
        (void)thread;                                                                                                \
        const backward_job *job = context;                                                                           \
        backward_entries(job, tile, channels, capacity, want);                                                       \
    }
TILE_TASK(tile_3_color, 3, 4, 0)
TILE_TASK(tile_3_opacity, 3, 4, WANT_OPACITY)
TILE_TASK(tile_3_geometry, 3, 4, WANT_OPACITY | WANT_GEOMETRY)
TILE_TASK(tile_3_all, 3, 4, WANT_OPACITY | WANT_GEOMETRY | WANT_ABSOLUTE)
TILE_TASK(tile_4, 4, 4, job->want)
TILE_TASK(tile_wide, job->channels, MAX_CHANNELS, job->want)

static task_fn tile_task(int channels, int want) {
    if (channels > 4) return tile_wide;
    if (channels != 3) return tile_4;
    if (want & WANT_ABSOLUTE) return tile_3_all;
    return want & WANT_GEOMETRY ? tile_3_geometry : want ? tile_3_opacity : tile_3_color;
}

static void write_gradients(const backward_job *job, int64_t i, const splat *s, const float *r) {
    const float k = 1.0f / HALF_LOG2E;
    if (job->v_colors) memcpy(job->v_colors + i * job->channels, r + R_COLOR, job->channels * sizeof(float));
    if (job->v_opacities) job->v_opacities[i] = r[R_S] / s->opacity;
    if (job->v_means2d) {
        job->v_means2d[2 * i] = k * s->ua * r[R_SU];
        job->v_means2d[2 * i + 1] = k * (s->ub * r[R_SU] + s->vc * r[R_SV]);
    }
    if (job->v_absolute)
        job->v_absolute[2 * i] = k * r[R_ABS_X], job->v_absolute[2 * i + 1] = k * r[R_ABS_Y];
    if (job->v_cov2d) {
        float a = s->ua, b = s->ub, c = s->vc, h = 0.5f * k * k;
        job->v_cov2d[3 * i] = h * a * a * r[R_SUU];
        job->v_cov2d[3 * i + 1] = 2 * h * a * (b * r[R_SUU] + c * r[R_SUV]);
        job->v_cov2d[3 * i + 2] = h * (b * b * r[R_SUU] + 2 * b * c * r[R_SUV] + c * c * r[R_SVV]);
    }
}

static void clear_gradients(const backward_job *job, int64_t i) {
    if (job->v_colors) memset(job->v_colors + i * job->channels, 0, job->channels * sizeof(float));
    if (job->v_opacities) job->v_opacities[i] = 0;
    if (job->v_means2d) memset(job->v_means2d + 2 * i, 0, 8);
    if (job->v_absolute) memset(job->v_absolute + 2 * i, 0, 8);
    if (job->v_cov2d) memset(job->v_cov2d + 3 * i, 0, 12);
}

static void reduce_chunk(void *context, int64_t chunk, int thread) {
    (void)thread;
    const backward_job *job = context;
    const gsopt_frame *f = job->frame;
    const footprint *prints = f->footprints.data;
    const uint8_t *touched = f->touched.data;
    const float *records = f->records.data;
    int64_t end = min_i64((chunk + 1) * CHUNK, f->n);
    const int floats = SUMS + (job->channels <= 4 ? 4 : padded(job->channels));
    for (int64_t i = chunk * CHUNK; i < end; i++) {
        if (i + 8 < end) __builtin_prefetch(records + (size_t)prints[i + 8].first_pair * floats);
        uint32_t first = prints[i].first_pair, last = first + prints[i].pairs;
        float sums[SUMS + MAX_CHANNELS] = {0};
        int any = 0;
        for (uint32_t pair = first; pair < last; pair++) {
            if (!touched[pair]) continue;
            any = 1;
            for (int k = 0; k < floats; k++) sums[k] += records[(size_t)pair * floats + k];
        }
        if (any)
            write_gradients(job, i, (const splat *)f->splats.data + i, sums);
        else
            clear_gradients(job, i);
    }
}

int gsopt_rasterize_backward(gsopt_frame *f, int channels, const float *background, const float *v_image,
                             const float *v_alpha, float *v_means2d, float *v_absolute, float *v_cov2d,
                             float *v_colors, float *v_opacities) {
    if (buffer_reserve(&f->records, f->pairs * (SUMS + padded(channels)) * sizeof(float)) || buffer_reserve(&f->touched, f->pairs))
        return GSOPT_NO_MEMORY;
    int want = (v_opacities ? WANT_OPACITY : 0) | (v_means2d || v_cov2d ? WANT_GEOMETRY : 0) |
               (v_absolute ? WANT_ABSOLUTE : 0);
    backward_job job = {f,         channels,   want,    background, v_image,    v_alpha,
                        v_means2d, v_absolute, v_cov2d, v_colors,   v_opacities};
    stage_clock clock = stage_begin();
    parallel_for((int64_t)f->tiles_x * f->tiles_y, tile_task(channels, want), &job);
    stage_end(&clock, STAGE_BACKWARD);
    parallel_for(div_up(f->n, CHUNK), reduce_chunk, &job);
    stage_end(&clock, STAGE_REDUCE);
    return 0;
}
