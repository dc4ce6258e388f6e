/* What the stages of the kernel share: thread pool, growable buffers, the frame. */
#pragma once
#include <stddef.h>

#include "gsopt.h"
#include "vec.h"

/* Semantics of gsplat's CUDA kernels (1.5.3); render/call.py names the same constants. */
#define ALPHA_MIN (1.0f / 255.0f)
#define ALPHA_MAX 0.999f
#define TRANSMITTANCE_STOP 1e-4f
#define RADIUS_SIGMAS 3.33f
#define RADIUS_MAX 1073741824.0f /* keeps radii within int32 */
#define LOG2_255 7.99435344f
#define LOG2_ALPHA_MAX (-0.00144341681f)
/* alpha = opacity * exp(-q/2) = 2^(log2 opacity - HALF_LOG2E q), q the squared Mahalanobis distance */
#define HALF_LOG2E 0.721347520444f

#define TILE 16        /* pixels a side */
#define BLOCK 4        /* pixels a side: one vector */
#define BLOCKS 16      /* a tile */
#define MAX_THREADS 256
#define CHUNK 1024     /* Gaussians a task: fixed, so that partial sums do not depend on the thread count */
#define MAX_CHANNELS 32
#define SUMS 8         /* floats of a (Gaussian, tile)'s record before its channels: see backward.c */

/* A projected Gaussian: one cache line. Pixel centres are at integers here (means2d minus 1/2).
 * With d = pixel - mean:  u = ua dx + ub dy,  v = vc dy,  alpha = 2^(lo - u^2 - v^2). */
typedef struct {
    float mx, my;
    float ua, ub, vc;
    float lo;        /* log2 opacity; alpha >= 1/255 where u^2 + v^2 <= reach_of(lo) */
    float inv_ua;    /* 1 / ua */
    float opacity;
    float hx, hy;    /* half extents of the ellipse u^2 + v^2 = reach, pixels */
    float sx, sy;    /* conjugate slopes: at given dy the least q is at dx = sx dy; at given dx, at dy = sy dx */
    float color[4];
} splat;

/* The tiles of a Gaussian: those of its box, and of its ellipse for each row of tiles while there are few. */
#define SPAN_ROWS 4
#define SPAN_SLACK 1e-3f /* pixels: rounding must not lose a pixel on the rim */
typedef struct {
    uint16_t x0, y0, x1, y1;          /* the box: [x0, x1) x [y0, y1), empty where nothing is visible */
    uint16_t spans[SPAN_ROWS][2];     /* [first, last) of each row; unused where there are more rows */
    uint32_t first_pair, pairs;       /* of its (Gaussian, tile)s, counted in order of depth */
} footprint;

typedef struct {
    uint32_t id, pair; /* Gaussian; index of this (Gaussian, tile), counted Gaussian by Gaussian in order of depth */
} tile_entry;

typedef struct {
    void *data;
    size_t bytes;
} buffer;

struct gsopt_frame {
    int64_t n, visible, pairs;
    int32_t width, height, tiles_x, tiles_y;
    /* per Gaussian */
    buffer splats, footprints;               /* splat, footprint */
    buffer wide_colors;                      /* float [N, channels], where a splat's four do not do */
    buffer chunk_visible;                    /* per CHUNK: uint64, count, then those before it */
    buffer keys[2], ids[2], sort_counts;     /* visible Gaussians in order of depth after bin.c: uint32 */
    /* per tile */
    buffer tile_cursors, tile_offsets, tile_ends; /* uint32 [parts, tiles]; uint32 [tiles + 1]; int32: entries forward looked at */
    buffer tile_work;                              /* int32 [2]: blocks that forward and backward evaluated */
    /* per (Gaussian, tile) */
    buffer entries, masks, records, touched; /* tile_entry, uint16: blocks hit, float [SUMS + channels], uint8 */
    /* per pixel, tile by tile and block by block */
    buffer transmittance, stops; /* float; int32: first entry of the tile that the pixel no longer takes */
    /* ssim.c */
    buffer loss_sums, loss_scratch; /* double [2] a row and strip; float, per thread */
};

/* Makes room for bytes; contents are lost when it grows. 0 on success. */
int buffer_reserve(buffer *b, size_t bytes);
void buffer_release(buffer *b);

/* Calls task(context, i, thread) for i in [0, count), thread in [0, threads). Returns when all are done. */
typedef void (*task_fn)(void *context, int64_t i, int thread);
void parallel_for(int64_t count, task_fn task, void *context);
/* Held by a stage that sizes its scratch by the number of threads, so that the number stays. */
void pool_lock(void);
void pool_unlock(void);
int pool_threads(void);
int cpu_cores(void); /* that this process may use */

/* stages.c: wall time by stage. */
typedef enum {
    STAGE_PROJECT, STAGE_SORT, STAGE_BIN, STAGE_SH, STAGE_FORWARD, STAGE_LOSS, STAGE_BACKWARD, STAGE_REDUCE,
    STAGE_PROJECT_BACKWARD, STAGE_SH_BACKWARD, STAGE_STATISTICS, STAGE_FINITE, STAGE_OPTIMIZER,
    STAGES
} stage;
typedef struct {
    double since;
} stage_clock;
double seconds_now(void); /* of a clock that never goes back */
stage_clock stage_begin(void);
void stage_end(stage_clock *clock, stage which); /* the clock goes on with the next stage */

/* Channels padded to whole groups of four. */
INLINE int padded(int channels) { return (channels + 3) & ~3; }
INLINE int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int min_int(int a, int b) { return a < b ? a : b; }
INLINE int max_int(int a, int b) { return a > b ? a : b; }

/* bin.c: builds the tile lists of a projected frame. */
int bin_splats(gsopt_frame *frame, const float *depths);

INLINE float reach_of(float lo) { return fmaxf(lo + LOG2_255, 0.0f); }

/* tiles.c: tiles of row ty that the ellipse of s touches: [*x0, *x1), empty if *x0 >= *x1. */
__attribute__((noinline)) void tile_span(const splat *s, const footprint *p, int ty, int *x0, int *x1);
