/* The C interface of the CPU kernel. Plain pointers to float32 arrays, row-major; nothing of torch or Python.
 *
 * Shapes: N Gaussians, H x W pixels, CH in {1..32} channels (up to 4 are fast). An output pointer may be NULL where it says so: then
 * that gradient is neither computed nor written. Functions return 0, GSOPT_NO_MEMORY or GSOPT_TOO_MANY.
 */
#pragma once
#include <stdint.h>

#define GSOPT_ABI 6
#define GSOPT_NO_MEMORY 1
#define GSOPT_TOO_MANY 2 /* (Gaussian, tile) pairs for 32 bits */
#define EXPORT __attribute__((visibility("default")))

/* One rendering: what the passes over a view hand to each other (projected splats, tile lists, what the
 * backward pass needs). Buffers grow and are kept, so a frame in use again allocates nothing. */
typedef struct gsopt_frame gsopt_frame;

typedef struct {
    float rotation[9], translation[3]; /* world to camera, OpenCV axes */
    float fx, fy, cx, cy;              /* pixels */
    int32_t width, height;             /* pixels */
    float near_plane, far_plane;       /* world units */
    float radius_clip, eps2d;          /* pixels, pixels^2 */
    int32_t antialiased;               /* opacities are compensated for eps2d (Mip-Splatting) */
    int32_t raw;                       /* scales are given as logs and opacities as logits; so are their gradients */
} gsopt_camera;

EXPORT int gsopt_abi(void);
EXPORT const char *gsopt_isa(void);
EXPORT int gsopt_cpu_runs(const char *isa); /* 1 if this processor runs that variant */
EXPORT void gsopt_set_threads(int threads);
EXPORT int gsopt_get_threads(void);

/* stages.c: seconds spent in each stage since the library was loaded */
EXPORT int gsopt_stages(void);
EXPORT const char *gsopt_stage_name(int which);
EXPORT void gsopt_stage_seconds(double *seconds);

/* measure.c: the processor's peak in multiply-adds (2 operations each) on all threads, measured for about `seconds` */
EXPORT int gsopt_fma_peak(double seconds, double *flops_per_second);

EXPORT gsopt_frame *gsopt_frame_new(void);
EXPORT void gsopt_frame_free(gsopt_frame *frame);
EXPORT int64_t gsopt_frame_bytes(const gsopt_frame *frame);
/* What the last passes over the frame had to do: Gaussians on the image, (Gaussian, tile) pairs, 4x4 blocks of pixels that
 * forward and that backward evaluated a Gaussian in. */
EXPORT void gsopt_frame_work(const gsopt_frame *frame, int64_t work[4]);

/* project.c: EWA projection. radii [N,2] int32, 0 where culled; means2d [N,2]; cov2d [N,3] (xx, xy, yy with eps2d
 * added); depths [N]; splat_opacities [N] as composited, may be NULL. Culled rows are written as zeros. */
EXPORT int gsopt_project(gsopt_frame *frame, const gsopt_camera *camera, int64_t n, const float *means,
                         const float *quats, const float *scales, const float *opacities, int32_t *radii,
                         float *means2d, float *cov2d, float *depths, float *splat_opacities);
/* project_backward.c: v_depths, v_splat_opacities and every output may be NULL. v_viewmat [12]: rotation, translation. */
EXPORT int gsopt_project_backward(const gsopt_camera *camera, int64_t n, const float *means, const float *quats,
                                  const float *scales, const float *opacities, const int32_t *radii,
                                  const float *v_means2d, const float *v_cov2d, const float *v_depths,
                                  const float *v_splat_opacities, float *v_means, float *v_quats, float *v_scales,
                                  float *v_opacities, float *v_viewmat);

/* sh.c: colours max(SH(direction) + 1/2, 0) of the visible rows. dc [N,3], rest [N,bands,3], colors [N,3]. Backward adds to
 * v_means and v_viewmat, so that projection's part is there already, and writes the others. */
EXPORT int gsopt_sh(const gsopt_camera *camera, int64_t n, int degree, int bands, const float *means, const float *dc,
                    const float *rest, const int32_t *radii, float *colors);
EXPORT int gsopt_sh_backward(const gsopt_camera *camera, int64_t n, int degree, int bands, const float *means,
                             const float *dc, const float *rest, const int32_t *radii, const float *colors,
                             const float *v_colors, float *v_dc, float *v_rest, float *v_means, float *v_viewmat);

/* forward.c: front-to-back compositing of the projected frame, with the colours [N,CH] last set. Rows of Gaussians that
 * touch no tile are not read. image [H,W,CH]; alpha [H,W] or NULL; background [CH] or NULL (black). */
EXPORT int gsopt_set_colors(gsopt_frame *frame, int channels, const float *colors);
EXPORT int gsopt_rasterize(gsopt_frame *frame, int channels, const float *background, float *image, float *alpha);
/* backward.c: v_alpha may be NULL (zeros). v_means2d [N,2], v_absolute [N,2] (sums of absolute values, AbsGS), v_cov2d [N,3],
 * v_colors [N,CH], v_opacities [N], each may be NULL. */
EXPORT int gsopt_rasterize_backward(gsopt_frame *frame, int channels, const float *background, const float *v_image,
                                    const float *v_alpha, float *v_means2d, float *v_absolute, float *v_cov2d,
                                    float *v_colors, float *v_opacities);

/* ssim.c: (1 - weight) L1 + weight (1 - SSIM) of images [H,W,3]; target is uint8 (target8) or float. mask [H,W] or NULL: pixels
 * where it is 0 are as if outside the image. gradient [H,W,3] or NULL. values [3]: the loss, mean L1, mean SSIM; without any
 * pixel 0, 0 and 1, and the gradient is 0. The frame lends its loss buffers only. */
EXPORT int gsopt_photometric(gsopt_frame *frame, int height, int width, const float *image, const uint8_t *target8,
                             const float *target, const uint8_t *mask, double weight, float *values, float *gradient);

/* view.c: all of the above for one training view: the photometric loss of its image and the gradients by the Gaussians, as the
 * functions above give them when called one after the other. Three channels; the fields are their arguments. Of the gradients by
 * splats, those that one by a Gaussian follows from must be there; every gradient that is NULL is not computed. */
typedef struct {
    int64_t n;
    int32_t degree, bands, height, width;
    const float *means, *quats, *scales, *opacities, *dc, *rest, *background, *target;
    const uint8_t *target8, *mask;
    int32_t *radii;
    float *means2d, *cov2d, *depths, *splat_opacities, *colors, *image;
    float *v_image, *v_means2d, *v_absolute, *v_cov2d, *v_colors, *v_splat_opacities;
    float *v_means, *v_quats, *v_scales, *v_opacities, *v_dc, *v_rest;
    double weight;
    float *loss; /* [3], as values above */
    int32_t finite; /* out: whether the loss and all gradients by parameters and by means2d are */
} gsopt_view;
EXPORT int gsopt_view_gradients(gsopt_frame *frame, const gsopt_camera *camera, gsopt_view *view);

/* statistics.c: adds to norms [N] the length of (scale_x, scale_y) v_means2d, and 1 to counts [N], for visible rows. */
EXPORT int gsopt_statistics(int64_t n, const int32_t *radii, const float *v_means2d, float scale_x, float scale_y,
                            float *norms, float *counts);

/* perturb.c: writes to rows [N] which of values [N] are below the limit and allowed ([N], NULL: all); how many. */
EXPORT int64_t gsopt_rows_below(int64_t n, const float *values, float limit, const uint8_t *allowed, int64_t *rows);

/* perturb.c: adds noise to xyz [N,3] at `count` rows, each once: its draw [count,3] times strength times the covariance
 * times a gate, the sigmoid of -steepness (opacity - middle). opacity [N], rotation [N,4] and scaling [N,3] are raw. */
EXPORT int gsopt_perturb(int64_t count, const int64_t *rows, const float *draws, const float *opacity,
                         const float *rotation, const float *scaling, float strength, float steepness, float middle,
                         float *xyz);

/* finite.c: 1 if every float of the arrays, `lengths` floats each, is finite, else 0. */
EXPORT int gsopt_finite(int count, const float *const *arrays, const int64_t *lengths);

/* optimizer.c: one step of Adam (AdamW where decoupled) for each tensor of n floats. This call raises the count of steps
 * done, 0 before the first: one for the tensor, or where there are steps, one for each row that is updated. */
typedef struct {
    float *parameter;
    const float *gradient;
    float *average, *square; /* the moments */
    float *count;            /* read where there are no steps */
    float *steps;            /* [rows] or NULL */
    const uint8_t *visible;  /* [rows]: which to update, steps included; NULL: all; read where there are steps */
    int64_t n, rows;
    double lr, beta1, beta2, eps, weight_decay;
    int32_t decoupled, maximize;
    int32_t uncorrected; /* rows with steps get no bias correction */
} gsopt_adam_tensor;
EXPORT int gsopt_adam(int count, const gsopt_adam_tensor *tensors);
