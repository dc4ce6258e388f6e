/* Compositing, front to back (Kerbl et al. 2023, eq. 3): colour = sum T alpha c, T = product of (1 - alpha) before.
 *
 * A tile takes its splats BATCH at a time. Each batch is tested LANES splats at a time against the blocks (exact
 * ellipse against rectangle), which gives every block a list of the splats that can matter to it; then each block
 * runs through its list with its pixels in registers.
 */
#include "tile.h"

#define BATCH 128

typedef struct {
    gsopt_frame *frame;
    int channels;
    const float *background;
    float *image, *alpha;
} forward_job;

typedef struct {
    float splats[BATCH][S_FLOATS];
    const float *wide[BATCH]; /* colours of more than four channels */
    float columns[12][BATCH]; /* the first twelve fields of splat, field by field, from the tile's corner */
    int32_t lists[BLOCKS][BATCH + 16];
    int counts[BLOCKS];
} batch;
enum { C_MX, C_MY, C_UA, C_UB, C_VC, C_LO, C_INV_UA, C_OPACITY, C_HX, C_HY, C_SX, C_SY };

typedef struct {
    vf T[PARTS];
    vi stop[PARTS];
    vm live[PARTS];
} block_state;

/* Fields of LANES splats as columns, padding past `count` that reaches nothing. */
INLINE void load_columns(batch *b, int first, int count) {
    static const float nothing[S_FLOATS] = {[C_LO] = -1e30f};
    for (int part = 0; part < PARTS && part * LANES < 12; part++) {
        vf v[LANES];
        for (int k = 0; k < LANES; k++)
            v[k] = vf_load((first + k < count ? b->splats[first + k] : nothing) + part * LANES);
        transpose(v);
        for (int k = 0; k < LANES && part * LANES + k < 12; k++) vf_store(b->columns[part * LANES + k] + first, v[k]);
    }
}

static void load_batch(batch *b, const forward_job *job, const tile_entry *entries, int count, int tile_x, int tile_y) {
    const splat *splats = job->frame->splats.data;
    const float *wide = job->frame->wide_colors.data;
    for (int i = 0; i < count; i++) {
        if (i + 8 < count) __builtin_prefetch(&splats[entries[i + 8].id]);
        memcpy(b->splats[i], &splats[entries[i].id], sizeof(splat));
        if (job->channels > 4) b->wide[i] = wide + (int64_t)entries[i].id * job->channels;
    }
    for (int first = 0; first < count; first += LANES) {
        load_columns(b, first, count);
        vf mx = vf_load(b->columns[C_MX] + first) - (float)(tile_x * TILE);
        vf my = vf_load(b->columns[C_MY] + first) - (float)(tile_y * TILE);
        vf_store(b->columns[C_MX] + first, mx), vf_store(b->columns[C_MY] + first, my);
        float u0[LANES], v0[LANES];
        vf_store(u0, -(vf_load(b->columns[C_UA] + first) * mx + vf_load(b->columns[C_UB] + first) * my));
        vf_store(v0, -vf_load(b->columns[C_VC] + first) * my);
        for (int k = 0; k < min_int(LANES, count - first); k++)
            b->splats[first + k][S_U0] = u0[k], b->splats[first + k][S_V0] = v0[k];
    }
}

INLINE vf ellipse_at(vf ua, vf ub, vf vc, vf dx, vf dy) {
    vf u = ua * dx + ub * dy, v = vc * dy;
    return u * u + v * v;
}

/* For LANES splats, those with alpha >= 1/255 possible in each block. The least q over a rectangle is 0 if the centre
 * is inside; else it lies on an edge that faces the centre, where one coordinate is the nearest and the other the
 * conjugate one, clamped. */
INLINE void test_blocks(const batch *b, int first, vm hits[BLOCKS]) {
    vf mx = vf_load(b->columns[C_MX] + first), my = vf_load(b->columns[C_MY] + first);
    vf ua = vf_load(b->columns[C_UA] + first), ub = vf_load(b->columns[C_UB] + first);
    vf vc = vf_load(b->columns[C_VC] + first), reach = vf_load(b->columns[C_LO] + first) + LOG2_255;
    vf sx = vf_load(b->columns[C_SX] + first), sy = vf_load(b->columns[C_SY] + first);
    reach = reach * 1.00001f + 1e-5f; /* the test must not be stricter than the pixels' own */
    vf zero = vf_set(0), near_x[4], at_x[4], near_y[4], at_y[4];
    for (int i = 0; i < 4; i++) {
        near_x[i] = vf_clamp(zero, (float)(BLOCK * i) - mx, (float)(BLOCK * i + BLOCK - 1) - mx);
        near_y[i] = vf_clamp(zero, (float)(BLOCK * i) - my, (float)(BLOCK * i + BLOCK - 1) - my);
        at_x[i] = sy * near_x[i], at_y[i] = sx * near_y[i];
    }
    for (int block = 0; block < BLOCKS; block++) {
        int i = block % 4, j = block / 4;
        vf low_x = (float)(BLOCK * i) - mx, low_y = (float)(BLOCK * j) - my;
        vf dy = vf_clamp(at_x[i], low_y, low_y + (BLOCK - 1)), dx = vf_clamp(at_y[j], low_x, low_x + (BLOCK - 1));
        vf q = vf_min(ellipse_at(ua, ub, vc, near_x[i], dy), ellipse_at(ua, ub, vc, dx, near_y[j]));
        hits[block] = vf_le(q, reach);
    }
}

INLINE int append_hits(int32_t *list, int count, uint32_t hits, int first) {
#if defined(__AVX512F__)
    _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32((__mmask16)hits, VI(LANE + first)));
    return count + __builtin_popcount(hits);
#else
    for (; hits; hits &= hits - 1) list[count++] = first + __builtin_ctz(hits);
    return count;
#endif
}

/* Lists of the blocks, and for the backward pass the blocks of each splat. */
static void list_blocks(batch *b, int count, uint32_t live, uint16_t *masks) {
    memset(b->counts, 0, sizeof b->counts);
    for (int first = 0; first < count; first += LANES) {
        vm hits[BLOCKS];
        vi transposed = vi_set(0);
        test_blocks(b, first, hits);
        for (int block = 0; block < BLOCKS; block++) {
            if (!(live >> block & 1)) continue;
            b->counts[block] = append_hits(b->lists[block], b->counts[block], vm_bits(hits[block]), first);
            transposed = vi_or(transposed, hits[block], 1 << block);
        }
        int32_t t[LANES];
        vi_store(t, transposed);
        for (int k = 0; k < min_int(LANES, count - first); k++) masks[first + k] = (uint16_t)t[k];
    }
}

/* One splat in one part of a block. True where it ended a pixel. */
INLINE int composite_part(block_state *state, vf (*sum)[PARTS], const float *s, const float *color, int p, vf x, vf y,
                          int channels, int entry) {
    block_alpha a = evaluate(s, x, y);
    vf T = state->T[p];
    vm take = vm_and(a.hit, state->live[p]);
    vf w = vf_only(take, T * a.alpha), next = T - w;
    vm ends = vm_and(take, vf_le(next, vf_set(TRANSMITTANCE_STOP)));
    int any_ends = vm_bits(ends) != 0;
    if (__builtin_expect(any_ends, 0)) { /* the splat that would end a pixel is not taken */
        state->live[p] = vm_andnot(ends, state->live[p]);
        state->stop[p] = vi_sel(ends, vi_set(entry), state->stop[p]);
        w = vf_sel(ends, vf_set(0), w), next = vf_sel(ends, T, next);
    }
    state->T[p] = next;
    for (int c = 0; c < channels; c++) sum[c][p] += w * color[c];
    return any_ends;
}

INLINE int is_live(const block_state *s) {
    uint32_t bits = 0;
    for (int p = 0; p < PARTS; p++) bits |= vm_bits(s->live[p]);
    return bits != 0;
}

/* colors: the block's pixels, channel by channel. `channels` and `capacity` are constants where this is fast. */
INLINE void composite_block(block_state *block_at, vf (*colors)[PARTS], const batch *b, int block, int channels,
                            int capacity, int first_entry) {
    block_state state = *block_at;
    vf x[PARTS], y[PARTS], sum[MAX_CHANNELS][PARTS];
    for (int p = 0; p < PARTS; p++) x[p] = block_x(block, p), y[p] = block_y(block, p);
    memcpy(sum, colors, channels * sizeof *sum);
    const int32_t *list = b->lists[block];
    for (int i = 0, count = b->counts[block]; i < count; i++) {
        const float *s = b->splats[list[i]], *color = capacity > 4 ? b->wide[list[i]] : s + S_COLOR;
        int ended = 0;
        for (int p = 0; p < PARTS; p++)
            ended |= composite_part(&state, sum, s, color, p, x[p], y[p], channels, first_entry + list[i]);
        if (__builtin_expect(ended, 0) && !is_live(&state)) break;
    }
    *block_at = state;
    memcpy(colors, sum, channels * sizeof *sum);
}

static void composite(block_state *state, vf (*colors)[PARTS], const batch *b, int block, int channels, int first) {
    if (channels == 3)
        composite_block(state, colors, b, block, 3, 4, first);
    else if (channels <= 4)
        composite_block(state, colors, b, block, 4, 4, first);
    else
        composite_block(state, colors, b, block, channels, MAX_CHANNELS, first);
}

static void begin_tile(const gsopt_frame *f, block_state states[BLOCKS], int tile_x, int tile_y) {
    for (int block = 0; block < BLOCKS; block++)
        for (int p = 0; p < PARTS; p++) {
            vf x = block_x(block, p) + (float)(tile_x * TILE), y = block_y(block, p) + (float)(tile_y * TILE);
            vm live = vm_and(vf_lt(x, vf_set((float)f->width)), vf_lt(y, vf_set((float)f->height)));
            states[block].T[p] = vf_set(1), states[block].live[p] = live;
            /* pixels outside the image take nothing in the backward pass either */
            states[block].stop[p] = vi_sel(live, vi_set(INT32_MAX), vi_set(0));
        }
}

static void end_tile(const forward_job *job, const block_state states[BLOCKS], vf (*colors)[PARTS], int tile_x,
                     int tile_y, uint32_t inside) {
    gsopt_frame *f = job->frame;
    int64_t place = ((int64_t)tile_y * f->tiles_x + tile_x) * TILE * TILE;
    for (int block = 0; block < BLOCKS; block++) {
        const block_state *s = &states[block];
        memcpy((float *)f->transmittance.data + place + block * 16, s->T, sizeof s->T);
        memcpy((int32_t *)f->stops.data + place + block * 16, s->stop, sizeof s->stop);
        if (!(inside >> block & 1)) continue;
        vf value[PARTS];
        for (int p = 0; p < PARTS; p++) value[p] = 1.0f - s->T[p];
        if (job->alpha) scatter_block(job->alpha, f, 1, 0, tile_x, tile_y, block, value);
        for (int c = 0; c < job->channels; c++) {
            for (int p = 0; p < PARTS; p++) {
                value[p] = colors[block * padded(job->channels) + c][p];
                if (job->background) value[p] += s->T[p] * job->background[c];
            }
            scatter_block(job->image, f, job->channels, c, tile_x, tile_y, block, value);
        }
    }
}

static void forward_tile(void *context, int64_t tile, int thread) {
    (void)thread;
    const forward_job *job = context;
    gsopt_frame *f = job->frame;
    int tile_x = (int)(tile % f->tiles_x), tile_y = (int)(tile / f->tiles_x);
    const uint32_t *offsets = f->tile_offsets.data;
    const tile_entry *entries = (const tile_entry *)f->entries.data + offsets[tile];
    uint16_t *masks = (uint16_t *)f->masks.data + offsets[tile];
    int total = (int)(offsets[tile + 1] - offsets[tile]), done = 0, work = 0, stride = padded(job->channels);
    batch b;
    block_state states[BLOCKS];
    vf colors[BLOCKS * MAX_CHANNELS][PARTS];
    memset(colors, 0, sizeof *colors * BLOCKS * stride);
    begin_tile(f, states, tile_x, tile_y);
    uint32_t inside = blocks_inside(f, tile_x, tile_y), live = inside;
    for (; done < total && live; done += min_int(BATCH, total - done)) {
        int count = min_int(BATCH, total - done);
        load_batch(&b, job, entries + done, count, tile_x, tile_y);
        list_blocks(&b, count, live, masks + done);
        for (int block = 0; block < BLOCKS; block++) {
            if (!(live >> block & 1)) continue;
            work += b.counts[block];
            composite(&states[block], colors + block * stride, &b, block, job->channels, done);
            if (!is_live(&states[block])) live &= ~(1u << block);
        }
    }
    ((int32_t *)f->tile_ends.data)[tile] = done;
    ((int32_t(*)[2])f->tile_work.data)[tile][0] = work;
    end_tile(job, states, colors, tile_x, tile_y, inside);
}

typedef struct {
    gsopt_frame *frame;
    int channels;
    const float *colors;
} color_job;

static void color_chunk(void *context, int64_t chunk, int thread) {
    (void)thread;
    const color_job *job = context;
    const uint32_t *ids = job->frame->ids[0].data;
    splat *splats = job->frame->splats.data;
    int64_t end = min_i64((chunk + 1) * CHUNK, job->frame->visible);
    for (int64_t i = chunk * CHUNK; i < end; i++)
        for (int c = 0; c < 4; c++) /* missing channels are 0 */
            splats[ids[i]].color[c] = c < job->channels ? job->colors[(int64_t)ids[i] * job->channels + c] : 0.0f;
}

int gsopt_set_colors(gsopt_frame *f, int channels, const float *colors) {
    color_job job = {f, channels, colors};
    int wide = channels > 4;
    if (wide && buffer_reserve(&f->wide_colors, f->n * channels * sizeof(float))) return GSOPT_NO_MEMORY;
    stage_clock clock = stage_begin();
    if (!wide)
        parallel_for(div_up(f->visible, CHUNK), color_chunk, &job);
    else if (f->n)
        memcpy(f->wide_colors.data, colors, f->n * channels * sizeof(float));
    stage_end(&clock, STAGE_FORWARD);
    return 0;
}

int gsopt_rasterize(gsopt_frame *f, int channels, const float *background, float *image, float *alpha) {
    int64_t tiles = (int64_t)f->tiles_x * f->tiles_y, pixels = tiles * TILE * TILE;
    if (buffer_reserve(&f->masks, f->pairs * sizeof(uint16_t)) || buffer_reserve(&f->transmittance, pixels * 4) ||
        buffer_reserve(&f->stops, pixels * 4))
        return GSOPT_NO_MEMORY;
    forward_job job = {f, channels, background, image, alpha};
    stage_clock clock = stage_begin();
    parallel_for(tiles, forward_tile, &job);
    stage_end(&clock, STAGE_FORWARD);
    return 0;
}
