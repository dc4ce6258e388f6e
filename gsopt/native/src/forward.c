/* Compositing, front to back (Kerbl et al. 2023, eq. 3): colour = sum T alpha c, T = product of (1 - alpha) before.
 *
 * A tile takes its splats BATCH at a time. Each batch is tested sixteen splats at a time against the blocks (exact
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
    int32_t lists[BLOCKS][BATCH + LANES];
    int counts[BLOCKS];
} batch;

typedef struct {
    vf T;
    vi stop;
    vm live;
} block_state;

static void load_batch(batch *b, const forward_job *job, const tile_entry *entries, int count, int tile_x, int tile_y) {
    const splat *splats = job->frame->splats.data;
    const float *wide = job->frame->wide_colors.data;
    for (int i = 0; i < count; i++) {
        if (i + 8 < count) __builtin_prefetch(&splats[entries[i + 8].id]);
        const splat *s = &splats[entries[i].id];
        localize(b->splats[i], s, tile_x, tile_y);
        if (job->channels > 4) b->wide[i] = wide + (int64_t)entries[i].id * job->channels;
        b->columns[0][i] = s->mx - tile_x * TILE;
        b->columns[1][i] = s->my - tile_y * TILE;
        for (int k = 2; k < 12; k++) b->columns[k][i] = ((const float *)s)[k];
    }
    for (int i = count; i < div_up(count, LANES) * LANES; i++) { /* padding that reaches nothing */
        for (int k = 0; k < 12; k++) b->columns[k][i] = 0;
        b->columns[6][i] = -1;
    }
}

INLINE vf ellipse_at(vf ua, vf ub, vf vc, vf dx, vf dy) {
    vf u = ua * dx + ub * dy, v = vc * dy;
    return u * u + v * v;
}

/* For sixteen splats, bits of those with alpha >= 1/255 possible in each block. The least q over a rectangle is 0 if
 * the centre is inside; else it lies on an edge that faces the centre, where one coordinate is the nearest and the
 * other the conjugate one, clamped. */
static void test_blocks(const batch *b, int first, uint32_t hits[BLOCKS]) {
    vf mx = vf_load(b->columns[0] + first), my = vf_load(b->columns[1] + first), ua = vf_load(b->columns[2] + first);
    vf ub = vf_load(b->columns[3] + first), vc = vf_load(b->columns[4] + first);
    vf reach = vf_load(b->columns[6] + first), sx = vf_load(b->columns[10] + first), sy = vf_load(b->columns[11] + first);
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
        hits[block] = vm_bits(vf_le(q, reach));
    }
}

INLINE int append_hits(int32_t *list, int count, uint32_t hits, int first) {
#if defined(__AVX512F__)
    __m512i lanes = _mm512_add_epi32(_mm512_set1_epi32(first),
                                     _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    _mm512_storeu_si512(list + count, _mm512_maskz_compress_epi32((__mmask16)hits, lanes));
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
        uint32_t hits[BLOCKS];
        uint16_t transposed[LANES] = {0};
        test_blocks(b, first, hits);
        for (int block = 0; block < BLOCKS; block++) {
            if (!(live >> block & 1)) continue;
            b->counts[block] = append_hits(b->lists[block], b->counts[block], hits[block], first);
            for (int k = 0; k < LANES; k++) transposed[k] |= (uint16_t)((hits[block] >> k & 1) << block);
        }
        memcpy(masks + first, transposed, min_int(LANES, count - first) * sizeof *masks);
    }
}

/* colors: the block's pixels, channel by channel. `channels` and `capacity` are constants where this is fast. */
INLINE void composite_block(block_state *state, vf *colors, const batch *b, int block, int channels, int capacity,
                            int first_entry) {
    vf x = block_x(block), y = block_y(block), T = state->T, sum[MAX_CHANNELS];
    vm live = state->live;
    const int wide = capacity > 4;
    for (int c = 0; c < channels; c++) sum[c] = colors[c];
    const int32_t *list = b->lists[block];
    for (int i = 0; i < b->counts[block]; i++) {
        const float *s = b->splats[list[i]], *color = wide ? b->wide[list[i]] : s + S_COLOR;
        block_alpha a = evaluate(s, x, y);
        vm take = vm_and(a.hit, live);
        vf w = vf_only(take, T * a.alpha), next = T - w;
        vm ends = vm_and(take, vf_le(next, vf_set(TRANSMITTANCE_STOP)));
        uint32_t any_ends = vm_bits(ends);
        if (__builtin_expect(any_ends != 0, 0)) { /* the splat that would end a pixel is not taken */
            live = vm_andnot(ends, live);
            state->stop = vi_sel(ends, vi_set(first_entry + list[i]), state->stop);
            w = vf_sel(ends, vf_set(0), w), next = vf_sel(ends, T, next);
        }
        T = next;
        for (int c = 0; c < channels; c++) sum[c] += w * color[c];
        if (__builtin_expect(any_ends != 0, 0) && !vm_bits(live)) break;
    }
    state->T = T, state->live = live;
    for (int c = 0; c < channels; c++) colors[c] = sum[c];
}

static void composite(block_state *state, vf *colors, const batch *b, int block, int channels, int first) {
    if (channels == 3)
        composite_block(state, colors, b, block, 3, 4, first);
    else if (channels <= 4)
        composite_block(state, colors, b, block, 4, 4, first);
    else
        composite_block(state, colors, b, block, channels, MAX_CHANNELS, first);
}

static void begin_tile(const gsopt_frame *f, block_state states[BLOCKS], int tile_x, int tile_y) {
    for (int block = 0; block < BLOCKS; block++) {
        vf x = block_x(block) + (float)(tile_x * TILE), y = block_y(block) + (float)(tile_y * TILE);
        vm live = vm_and(vf_lt(x, vf_set((float)f->width)), vf_lt(y, vf_set((float)f->height)));
        states[block] = (block_state){.T = vf_set(1), .stop = vi_set(INT32_MAX), .live = live};
        /* pixels outside the image take nothing in the backward pass either */
        states[block].stop = vi_sel(live, states[block].stop, vi_set(0));
    }
}

static void end_tile(const forward_job *job, const block_state states[BLOCKS], const vf *colors, int tile_x, int tile_y,
                     uint32_t inside) {
    gsopt_frame *f = job->frame;
    int64_t place = ((int64_t)tile_y * f->tiles_x + tile_x) * TILE * TILE;
    for (int block = 0; block < BLOCKS; block++) {
        const block_state *s = &states[block];
        vf_store((float *)f->transmittance.data + place + block * LANES, s->T);
        vi_store((int32_t *)f->stops.data + place + block * LANES, s->stop);
        if (!(inside >> block & 1)) continue;
        scatter_block(job->alpha, f, 1, 0, tile_x, tile_y, block, 1.0f - s->T);
        for (int c = 0; c < job->channels; c++) {
            vf value = colors[block * padded(job->channels) + c];
            if (job->background) value += s->T * job->background[c];
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
    int total = (int)(offsets[tile + 1] - offsets[tile]), done = 0, work = 0;
    batch b;
    block_state states[BLOCKS];
    vf colors[BLOCKS * MAX_CHANNELS];
    memset(colors, 0, sizeof(vf) * BLOCKS * padded(job->channels));
    begin_tile(f, states, tile_x, tile_y);
    uint32_t inside = blocks_inside(f, tile_x, tile_y), live = inside;
    for (; done < total && live; done += min_int(BATCH, total - done)) {
        int count = min_int(BATCH, total - done);
        load_batch(&b, job, entries + done, count, tile_x, tile_y);
        list_blocks(&b, count, live, masks + done);
        for (int block = 0; block < BLOCKS; block++) {
            if (!(live >> block & 1)) continue;
            work += b.counts[block];
            composite(&states[block], colors + block * padded(job->channels), &b, block, job->channels, done);
            if (!vm_bits(states[block].live)) live &= ~(1u << block);
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
    if (channels > 4) {
        if (buffer_reserve(&f->wide_colors, f->n * channels * sizeof(float))) return GSOPT_NO_MEMORY;
        memcpy(f->wide_colors.data, colors, f->n * channels * sizeof(float));
        return 0;
    }
    parallel_for(div_up(f->visible, CHUNK), color_chunk, &job);
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
