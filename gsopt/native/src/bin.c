/* From projected splats to a list of splats for every tile, front to back.
 *
 * The visible Gaussians are sorted by depth once (stable radix sort of the float's bits, ties stay in index order);
 * then each thread takes a band of tile rows, walks the Gaussians in that order and appends to its tiles' lists.
 */
#include "internal.h"

#define DIGIT_BITS 11
#define DIGITS (1 << DIGIT_BITS)

typedef struct {
    gsopt_frame *frame;
    const float *depths;
    int shift, parts, band_rows[MAX_THREADS + 1];
} bin_job;

/* Compacts the visible ids with their sort keys, and turns the Gaussians' tile counts into offsets. */
static void compact_chunk(void *context, int64_t chunk, int thread) {
    (void)thread;
    bin_job *job = context;
    gsopt_frame *f = job->frame;
    uint32_t *offsets = f->pair_offsets.data, *keys = f->keys[0].data, *ids = f->ids[0].data;
    uint32_t out = (uint32_t)((uint64_t *)f->chunk_visible.data)[chunk];
    uint32_t pair = (uint32_t)((uint64_t *)f->chunk_pairs.data)[chunk];
    int64_t end = min_i64((chunk + 1) * CHUNK, f->n);
    for (int64_t i = chunk * CHUNK; i < end; i++) {
        uint32_t count = offsets[i];
        offsets[i] = pair;
        if (!count) continue;
        pair += count;
        memcpy(&keys[out], &job->depths[i], 4); /* positive floats sort as their bits */
        ids[out++] = (uint32_t)i;
    }
}

static void count_digits(void *context, int64_t part, int thread) {
    (void)thread;
    bin_job *job = context;
    int64_t n = job->frame->visible, first = n * part / job->parts, last = n * (part + 1) / job->parts;
    const uint32_t *keys = job->frame->keys[0].data;
    uint32_t *counts = (uint32_t *)job->frame->sort_counts.data + part * DIGITS;
    memset(counts, 0, DIGITS * sizeof *counts);
    for (int64_t i = first; i < last; i++) counts[keys[i] >> job->shift & (DIGITS - 1)]++;
}

static void scatter_digits(void *context, int64_t part, int thread) {
    (void)thread;
    bin_job *job = context;
    gsopt_frame *f = job->frame;
    int64_t n = f->visible, first = n * part / job->parts, last = n * (part + 1) / job->parts;
    const uint32_t *keys = f->keys[0].data, *ids = f->ids[0].data;
    uint32_t *to_keys = f->keys[1].data, *to_ids = f->ids[1].data;
    uint32_t *places = (uint32_t *)f->sort_counts.data + part * DIGITS;
    for (int64_t i = first; i < last; i++) {
        uint32_t place = places[keys[i] >> job->shift & (DIGITS - 1)]++;
        to_keys[place] = keys[i], to_ids[place] = ids[i];
    }
}

static void swap_buffers(buffer pair[2]) {
    buffer first = pair[0];
    pair[0] = pair[1], pair[1] = first;
}

static void sort_by_depth(bin_job *job) {
    gsopt_frame *f = job->frame;
    for (job->shift = 0; job->shift < 32; job->shift += DIGIT_BITS) {
        parallel_for(job->parts, count_digits, job);
        uint32_t *counts = f->sort_counts.data, place = 0;
        int trivial = 0; /* all keys share this digit */
        for (int digit = 0; digit < DIGITS; digit++) {
            uint32_t before = place;
            for (int part = 0; part < job->parts; part++) {
                uint32_t count = counts[part * DIGITS + digit];
                counts[part * DIGITS + digit] = place;
                place += count;
            }
            trivial |= place - before == f->visible;
        }
        if (trivial) continue;
        parallel_for(job->parts, scatter_digits, job);
        swap_buffers(f->keys), swap_buffers(f->ids);
    }
}

/* Tile rows per thread such that each gets about as many entries. */
static void cut_bands(bin_job *job) {
    gsopt_frame *f = job->frame;
    const uint32_t *offsets = f->tile_offsets.data;
    int row = 0;
    for (int part = 0; part < job->parts; part++) {
        job->band_rows[part] = row;
        double goal = (double)f->pairs * (part + 1) / job->parts;
        while (row < f->tiles_y && (offsets[(row + 1) * f->tiles_x] <= goal || part == job->parts - 1)) row++;
    }
    job->band_rows[job->parts] = f->tiles_y;
}

static void fill_band(void *context, int64_t band, int thread) {
    (void)thread;
    bin_job *job = context;
    gsopt_frame *f = job->frame;
    int row0 = job->band_rows[band], row1 = job->band_rows[band + 1];
    if (row0 >= row1) return;
    const uint32_t *ids = f->ids[0].data, *offsets = f->pair_offsets.data;
    const tile_rect *rects = f->rects.data;
    const splat *splats = f->splats.data;
    tile_entry *entries = f->entries.data;
    uint32_t *cursors = f->thread_counts.data;
    for (int64_t i = 0; i < f->visible; i++) {
        uint32_t id = ids[i];
        if (i + 16 < f->visible) {
            __builtin_prefetch(&rects[ids[i + 16]]);
            __builtin_prefetch(&splats[ids[i + 16]]);
            __builtin_prefetch(&offsets[ids[i + 16]]);
        }
        const tile_rect *r = &rects[id];
        if (r->y1 <= row0 || r->y0 >= row1) continue;
        uint32_t pair = offsets[id];
        int last = min_int(r->y1, row1);
        for (int ty = r->y0; ty < last; ty++) { /* rows above the band only for their number of pairs */
            int x0, x1;
            tile_span(&splats[id], r, ty, &x0, &x1);
            if (x1 <= x0) continue;
            if (ty >= row0)
                for (int tx = x0; tx < x1; tx++)
                    entries[cursors[ty * f->tiles_x + tx]++] = (tile_entry){id, pair + (uint32_t)(tx - x0)};
            pair += (uint32_t)(x1 - x0);
        }
    }
}

static int64_t exclusive_sum(uint64_t *counts, int64_t n) {
    uint64_t total = 0;
    for (int64_t i = 0; i < n; i++) {
        uint64_t count = counts[i];
        counts[i] = total;
        total += count;
    }
    return (int64_t)total;
}

static void offset_tiles(gsopt_frame *f) {
    int tiles = f->tiles_x * f->tiles_y;
    uint32_t *offsets = f->tile_offsets.data, *counts = f->thread_counts.data, place = 0;
    for (int tile = 0; tile < tiles; tile++) {
        uint32_t count = 0;
        for (int t = 0; t < f->threads; t++) count += counts[(size_t)t * tiles + tile];
        offsets[tile] = counts[tile] = place; /* the first thread's counts become fill_band's cursors */
        place += count;
    }
    offsets[tiles] = place;
}

int bin_splats(gsopt_frame *f, const float *depths) {
    bin_job job = {.frame = f, .depths = depths, .parts = f->threads};
    int64_t chunks = div_up(f->n, CHUNK), tiles = (int64_t)f->tiles_x * f->tiles_y;
    f->visible = exclusive_sum(f->chunk_visible.data, chunks);
    f->pairs = exclusive_sum(f->chunk_pairs.data, chunks);
    if (f->pairs >= UINT32_MAX || f->visible >= UINT32_MAX) return GSOPT_TOO_MANY;
    for (int k = 0; k < 2; k++)
        if (buffer_reserve(&f->keys[k], f->visible * 4) || buffer_reserve(&f->ids[k], f->visible * 4))
            return GSOPT_NO_MEMORY;
    if (buffer_reserve(&f->sort_counts, (size_t)job.parts * DIGITS * 4) ||
        buffer_reserve(&f->tile_offsets, (tiles + 1) * 4) || buffer_reserve(&f->tile_ends, tiles * 4) ||
        buffer_reserve(&f->tile_work, tiles * 8) ||
        buffer_reserve(&f->entries, f->pairs * sizeof(tile_entry)))
        return GSOPT_NO_MEMORY;
    memset(f->tile_work.data, 0, tiles * 8);
    stage_clock clock = stage_begin();
    parallel_for(chunks, compact_chunk, &job);
    sort_by_depth(&job);
    stage_end(&clock, STAGE_SORT);
    offset_tiles(f);
    cut_bands(&job);
    parallel_for(job.parts, fill_band, &job);
    stage_end(&clock, STAGE_BIN);
    return 0;
}
