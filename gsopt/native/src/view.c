/* A training view in one call: what reaches C through autograd piece by piece costs its callers more than a small scene's
 * arithmetic. Nothing here computes anything. */
#include <math.h>

#include "internal.h"

static int forward(gsopt_frame *f, const gsopt_camera *cam, gsopt_view *v) {
    int status = gsopt_project(f, cam, v->n, v->means, v->quats, v->scales, v->opacities, v->radii, v->means2d, v->cov2d,
                               v->depths, v->splat_opacities);
    if (!status) status = gsopt_sh(cam, v->n, v->degree, v->bands, v->means, v->dc, v->rest, v->radii, v->colors);
    if (!status) status = gsopt_set_colors(f, 3, v->colors);
    if (!status) status = gsopt_rasterize(f, 3, v->background, v->image, NULL);
    return status;
}

/* Projection first: harmonics add to its gradient by the means. */
static int backward(gsopt_frame *f, const gsopt_camera *cam, gsopt_view *v) {
    int geometry = v->v_means || v->v_quats || v->v_scales || v->v_opacities;
    int status = gsopt_rasterize_backward(f, 3, v->background, v->v_image, NULL, v->v_means2d, v->v_absolute, v->v_cov2d,
                                          v->v_colors, v->v_splat_opacities);
    if (!status && geometry)
        status = gsopt_project_backward(cam, v->n, v->means, v->quats, v->scales, v->opacities, v->radii, v->v_means2d,
                                        v->v_cov2d, NULL, v->v_splat_opacities, v->v_means, v->v_quats, v->v_scales,
                                        v->v_opacities, NULL);
    if (!status && v->v_colors)
        status = gsopt_sh_backward(cam, v->n, v->degree, v->bands, v->means, v->dc, v->rest, v->radii, v->colors,
                                   v->v_colors, v->v_dc, v->v_rest, v->v_means, NULL);
    return status;
}

static int all_finite(const gsopt_view *v) {
    const float *arrays[] = {v->v_means, v->v_quats, v->v_scales, v->v_opacities, v->v_dc, v->v_rest, v->v_means2d};
    const int64_t sizes[] = {3, 4, 3, 1, 3, 3 * v->bands, 2};
    const float *there[7];
    int64_t lengths[7];
    int count = 0;
    for (int i = 0; i < 7; i++)
        if (arrays[i]) there[count] = arrays[i], lengths[count++] = v->n * sizes[i];
    return isfinite(v->loss[0]) && gsopt_finite(count, there, lengths);
}

int gsopt_view_gradients(gsopt_frame *f, const gsopt_camera *cam, gsopt_view *v) {
    int status = forward(f, cam, v);
    if (!status)
        status = gsopt_photometric(f, v->height, v->width, v->image, v->target8, v->target, v->mask, v->weight, v->loss,
                                   v->v_image);
    if (!status) status = backward(f, cam, v);
    v->finite = !status && all_finite(v);
    return status;
}
