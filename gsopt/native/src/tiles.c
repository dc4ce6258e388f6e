/* Which tiles an ellipse touches, a row of tiles at a time: asked when counting (project.c) and when filling (bin.c). */
#include "internal.h"

void tile_span(const splat *s, const tile_rect *r, int ty, int *x0, int *x1) {
    *x0 = r->x0, *x1 = r->x1;
    if (r->y1 - r->y0 == 1 || r->x1 - r->x0 == 1) return; /* the box is as good */
    float top = fmaxf(ty * TILE - s->my, -s->hy), bottom = fminf(ty * TILE + TILE - 1 - s->my, s->hy);
    if (top > bottom) { /* pixel rows of this tile row all miss the ellipse: the box was rounded outwards */
        *x1 = *x0;
        return;
    }
    /* the rightmost point of the ellipse is at dy = sy hx, the leftmost at its mirror image */
    float extreme = s->sy * s->hx;
    float dy_right = fminf(fmaxf(extreme, top), bottom), dy_left = fminf(fmaxf(-extreme, top), bottom);
    float v_right = s->vc * dy_right, v_left = s->vc * dy_left;
    float slack = 1e-3f; /* pixels: rounding must not lose a pixel on the rim */
    float right = s->mx + slack + (sqrtf(fmaxf(s->reach - v_right * v_right, 0.0f)) - s->ub * dy_right) / s->ua;
    float left = s->mx - slack - (sqrtf(fmaxf(s->reach - v_left * v_left, 0.0f)) + s->ub * dy_left) / s->ua;
    /* compared as floats first, so that a NaN or an overflow leaves the box */
    float first = ceilf(left) * (1.0f / TILE), last = floorf(right) * (1.0f / TILE);
    if (first > (float)r->x0) *x0 = first < (float)r->x1 ? (int)first : r->x1;
    if (last < (float)(r->x1 - 1)) *x1 = last < (float)r->x0 ? r->x0 : (int)last + 1;
}
