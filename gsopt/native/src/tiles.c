/* Which tiles an ellipse touches, a row of tiles at a time, for one Gaussian: those with many rows of tiles. Asked when
 * counting and when filling, which must get the same bits; so there is one compiled copy, as an inlined one might be
 * contracted differently. project.c has the same for LANES Gaussians at once. */
#include "internal.h"

void tile_span(const splat *s, const footprint *p, int ty, int *x0, int *x1) {
    *x0 = p->x0, *x1 = p->x1;
    float top = fmaxf(ty * TILE - s->my, -s->hy), bottom = fminf(ty * TILE + TILE - 1 - s->my, s->hy);
    if (top > bottom) { /* pixel rows of this tile row all miss the ellipse: the box was rounded outwards */
        *x1 = *x0;
        return;
    }
    /* the rightmost point of the ellipse is at dy = sy hx, the leftmost at its mirror image */
    float extreme = s->sy * s->hx, reach = reach_of(s->lo);
    float dy_right = fminf(fmaxf(extreme, top), bottom), dy_left = fminf(fmaxf(-extreme, top), bottom);
    float v_right = s->vc * dy_right, v_left = s->vc * dy_left;
    float right = s->mx + SPAN_SLACK + sqrtf(fmaxf(reach - v_right * v_right, 0.0f)) * s->inv_ua + s->sx * dy_right;
    float left = s->mx - SPAN_SLACK - sqrtf(fmaxf(reach - v_left * v_left, 0.0f)) * s->inv_ua + s->sx * dy_left;
    /* compared as floats first, so that a NaN or an overflow leaves the box */
    float first = ceilf(left) * (1.0f / TILE), last = floorf(right) * (1.0f / TILE);
    if (first > (float)p->x0) *x0 = first < (float)p->x1 ? (int)first : p->x1;
    if (last < (float)(p->x1 - 1)) *x1 = last < (float)p->x0 ? p->x0 : (int)last + 1;
}
