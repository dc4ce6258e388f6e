/* What forward and backward compositing share: a tile's splats made ready, and one block's alphas.
 *
 * A tile is 16 x 16 pixels in sixteen blocks of 4 x 4. A block is PARTS vectors, pixel 4 row + column; its coordinates
 * are counted from the tile's corner. */
#pragma once
#include "internal.h"

/* A splat as a tile uses it: 16 floats, broadcast one by one. u = ua x + ub y + u0, v = vc y + v0. */
enum { S_U0, S_V0, S_UA, S_UB, S_VC, S_LO, S_COLOR = 12, S_FLOATS = 16 };

INLINE void localize(float out[S_FLOATS], const splat *s, int tile_x, int tile_y) {
    memcpy(out, s, sizeof *s);
    float mx = s->mx - tile_x * TILE, my = s->my - tile_y * TILE;
    out[S_U0] = -(s->ua * mx + s->ub * my);
    out[S_V0] = -s->vc * my;
}

typedef struct {
    vf u, v, alpha;
    vm free, hit; /* free: alpha is not clamped at ALPHA_MAX; hit: alpha >= 1/255 */
} block_alpha;

INLINE block_alpha evaluate(const float *s, vf x, vf y) {
    block_alpha r;
    r.v = s[S_VC] * y + s[S_V0];
    r.u = s[S_UA] * x + (s[S_UB] * y + s[S_U0]);
    vf e = s[S_LO] - r.u * r.u - r.v * r.v;
    vf alpha = vf_exp2(e);
    r.hit = vf_ge(alpha, vf_set(ALPHA_MIN));
    r.free = vf_lt(alpha, vf_set(ALPHA_MAX));
    r.alpha = vf_min(alpha, vf_set(ALPHA_MAX));
    return r;
}

/* Pixel coordinates of part p of a block. */
static const float PIXEL_X[16] = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
static const float PIXEL_Y[16] = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
INLINE vf block_x(int block, int p) { return vf_load(PIXEL_X + p * LANES) + (float)(BLOCK * (block % 4)); }
INLINE vf block_y(int block, int p) { return vf_load(PIXEL_Y + p * LANES) + (float)(BLOCK * (block / 4)); }

/* Bit b is set where block b of the tile has a pixel inside the image. */
INLINE uint32_t blocks_inside(const gsopt_frame *f, int tile_x, int tile_y) {
    uint32_t bits = 0;
    for (int b = 0; b < BLOCKS; b++)
        if (tile_x * TILE + BLOCK * (b % 4) < f->width && tile_y * TILE + BLOCK * (b / 4) < f->height) bits |= 1u << b;
    return bits;
}

/* Reads channel c of a block's pixels from an image [H,W,channels]; outside the image it is 0. */
INLINE void gather_block(vf out[PARTS], const float *image, const gsopt_frame *f, int channels, int c, int tile_x,
                         int tile_y, int block) {
    float t[16] = {0};
    int px = tile_x * TILE + BLOCK * (block % 4), py = tile_y * TILE + BLOCK * (block / 4);
    int columns = min_int(BLOCK, f->width - px), rows = min_int(BLOCK, f->height - py);
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++)
            t[BLOCK * row + column] = image[((int64_t)(py + row) * f->width + px + column) * channels + c];
    memcpy(out, t, sizeof t);
}

INLINE void scatter_block(float *image, const gsopt_frame *f, int channels, int c, int tile_x, int tile_y, int block,
                          const vf value[PARTS]) {
    float t[16];
    memcpy(t, value, sizeof t);
    int px = tile_x * TILE + BLOCK * (block % 4), py = tile_y * TILE + BLOCK * (block / 4);
    int columns = min_int(BLOCK, f->width - px), rows = min_int(BLOCK, f->height - py);
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column++)
            image[((int64_t)(py + row) * f->width + px + column) * channels + c] = t[BLOCK * row + column];
}
