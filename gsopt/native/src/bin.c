/* From projected splats to a list of splats for every tile, front to back.
 *
 * The visible Gaussians are sorted by depth once (stable radix sort of the float's bits, ties stay in index order).
 * Then each thread takes a part of them in that order: it counts its entries of every tile, and when it is known where
 * each part's entries of a tile begin, writes them there (a stable counting sort by tile).
 */
#include "internal.h"

#define DIGIT_BITS 11
#define DIGITS (1 << DIGIT_BITS)
#define AHEAD 12 /* Gaussians that are fetched before their turn */

typedef struct {
    gsopt_frame *frame;
    const float *depths;
    int shift, parts;
    uint32_t part_pairs[MAX_THREADS]; /* entries of each part, then those before it */
} bin_job;

static void part_range(const bin_job *job, int64_t part, int64_t *first, int64_t *last) {
    int64_t n = job->frame->visible;
    *first = n * part / job->parts, *last = n * (part + 1) / job->parts;
}

/* Compacts the ids of Gaussians that touch a tile, with their sort keys. */
static void compact_chunk(void *context, int64_t chunk, int thread) {
    (void)thread;
    bin_job *job = context;
    gsopt_frame *f = job->frame;
    const footprint *prints = f->footprints.data;
    uint32_t *keys = f->keys[0].data, *ids = f->ids[0].data;
    uint32_t out = (uint32_t)((uint64_t *)f->chunk_visible.data)[chunk];
    int64_t end = min_i64((chunk + 1) * CHUNK, f->n);
    for (int64_t i = chunk * CHUNK; i < end; i++) {
        if (prints[i].x1 == 0) continue;
        memcpy(&keys[out], &job->depths[i], 4); /* positive floats sort as their bits */
        ids[out++] = (uint32_t)i;
    }
}

static void count_digits(void *context, int64_t part, int thread) {
    (void)thread;
    bin_job *job = context;
    int64_t first, last;
    part_range(job, part, &first, &last);
    const uint32_t *keys = job->frame->keys[0].data;
    uint32_t *counts = (uint32_t *)job->frame->sort_counts.data + part * DIGITS;
    memset(counts, 0, DIGITS * sizeof *counts);
    for (int64_t i = first; i < last; i++) counts[keys[i] >> job->shift & (DIGITS - 1)]++;
}

static void scatter_digits(void *context, int64_t part, int thread) {
    (void)thread;
    bin_job *job = context;
    gsopt_frame *f = job->frame;
    int64_t first, last;
    part_range(job, part, &first, &last);
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

INLINE void prefetch_gaussian(const gsopt_frame *f, uint32_t id) {
    __builtin_prefetch((const footprint *)f->footprints.data + id);
}

INLINE void span_of(const gsopt_frame *f, const footprint *p, uint32_t id, int ty, int *x0, int *x1) {
    if (p->y1 - p->y0 <= SPAN_ROWS)
        *x0 = p->spans[ty - p->y0][0], *x1 = p->spans[ty - p->y0][1];
    else
        tile_span((const splat *)f->splats.data + id, p, ty, x0, x1);
}

/* Entries of each tile in this part, and of each Gaussian. */
static void count_part(void *context, int64_t part, int thread) {
    (void)thread;
    bin_job *job = context;
    gsopt_frame *f = job->frame;
    int64_t tiles = (int64_t)f->tiles_x * f->tiles_y, first, last;
    part_range(job, part, &first, &last);
    uint32_t *counts = (uint32_t *)f->tile_cursors.data + part * tiles, pairs = 0;
    memset(counts, 0, tiles * sizeof *counts);
    const uint32_t *ids = f->ids[0].data;
    for (int64_t i = first; i < last; i++) {
        if (i + AHEAD < last) prefetch_gaussian(f, ids[i + AHEAD]);
        footprint *p = (footprint *)f->footprints.data + ids[i];
        p->first_pair = pairs;
        for (int ty = p->y0; ty < p->y1; ty++) {
            int x0, x1;
            span_of(f, p, ids[i], ty, &x0, &x1);
            for (int tx = x0; tx < x1; tx++) counts[ty * f->tiles_x + tx]++;
            pairs += x1 > x0 ? (uint32_t)(x1 - x0) : 0;
        }
        p->pairs = pairs - p->first_pair;
    }
    job->part_pairs[part] = pairs;
}

static void fill_part(void *context, int64_t part, int thread) {
    (void)thread;
    bin_job *job = context;
    gsopt_frame *f = job->frame;
    int64_t tiles = (int64_t)f->tiles_x * f->tiles_y, first, last;
    part_range(job, part, &first, &last);
    uint32_t *cursors = (uint32_t *)f->tile_cursors.data + part * tiles;
    const uint32_t *ids = f->ids[0].data;
    tile_entry *entries = f->entries.data;
    for (int64_t i = first; i < last; i++) {
        if (i + AHEAD < last) prefetch_gaussian(f, ids[i + AHEAD]);
        footprint *p = (footprint *)f->footprints.data + ids[i];
        uint32_t pair = p->first_pair += job->part_pairs[part];
        for (int ty = p->y0; ty < p->y1; ty++) {
            int x0, x1;
            span_of(f, p, ids[i], ty, &x0, &x1);
            for (int tx = x0; tx < x1; tx++)
                entries[cursors[ty * f->tiles_x + tx]++] = (tile_entry){ids[i], pair++};
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

/* From counts to where the entries of each tile begin, and in it those of each part. False if there are too many. */
static int offset_tiles(bin_job *job) {
    gsopt_frame *f = job->frame;
    int64_t tiles = (int64_t)f->tiles_x * f->tiles_y;
    uint32_t *offsets = f->tile_offsets.data, *cursors = f->tile_cursors.data;
    uint64_t place = 0;
    for (int64_t tile = 0; tile < tiles; tile++) {
        offsets[tile] = (uint32_t)place;
        for (int part = 0; part < job->parts; part++) {
            uint32_t count = cursors[part * tiles + tile];
            cursors[part * tiles + tile] = (uint32_t)place;
            place += count;
        }
    }
    offsets[tiles] = (uint32_t)place;
    f->pairs = (int64_t)place;
    uint32_t before = 0;
    for (int part = 0; part < job->parts; part++) {
        uint32_t count = job->part_pairs[part];
        job->part_pairs[part] = before;
        before += count;
    }
    return place < UINT32_MAX;
}

static int bin_locked(gsopt_frame *f, const float *depths) {
    bin_job job = {.frame = f, .depths = depths, .parts = pool_threads()};
    int64_t chunks = div_up(f->n, CHUNK), tiles = (int64_t)f->tiles_x * f->tiles_y;
    f->visible = exclusive_sum(f->chunk_visible.data, chunks);
    if (f->visible >= UINT32_MAX) return GSOPT_TOO_MANY;
    for (int k = 0; k < 2; k++)
        if (buffer_reserve(&f->keys[k], f->visible * 4) || buffer_reserve(&f->ids[k], f->visible * 4))
            return GSOPT_NO_MEMORY;
    if (buffer_reserve(&f->sort_counts, (size_t)job.parts * DIGITS * 4) ||
        buffer_reserve(&f->tile_cursors, (size_t)job.parts * tiles * 4) ||
        buffer_reserve(&f->tile_offsets, (tiles + 1) * 4) || buffer_reserve(&f->tile_ends, tiles * 4) ||
        buffer_reserve(&f->tile_work, tiles * 8))
        return GSOPT_NO_MEMORY;
    memset(f->tile_work.data, 0, tiles * 8);
    stage_clock clock = stage_begin();
    parallel_for(chunks, compact_chunk, &job);
    sort_by_depth(&job);
    stage_end(&clock, STAGE_SORT);
    parallel_for(job.parts, count_part, &job);
    if (!offset_tiles(&job)) return GSOPT_TOO_MANY;
    if (buffer_reserve(&f->entries, f->pairs * sizeof(tile_entry))) return GSOPT_NO_MEMORY;
    parallel_for(job.parts, fill_part, &job);
    stage_end(&clock, STAGE_BIN);
    return 0;
}

int bin_splats(gsopt_frame *f, const float *depths) {
    pool_lock(); /* there is a part for each thread */
    int status = bin_locked(f, depths);
    pool_unlock();
    return status;
}
