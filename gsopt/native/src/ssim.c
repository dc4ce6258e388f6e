/* L1 + D-SSIM and its gradient in two sweeps over the image.
 *
 * SSIM (Wang et al. 2004) with the window of 3DGS: 11 x 11 Gaussian, sigma 1.5, zeros outside the image, the mean over
 * all pixels and channels. The window is separable and an image row [W,3] is blurred along x with taps three floats
 * apart, so channels never have to be pulled apart. A band of rows keeps the last eleven blurred rows in a ring; every
 * row is computed the same way in whatever band it falls, and row sums are added in order.
 */
#include "internal.h"

#define TAPS 11
#define HALF 5
#define PAD (3 * HALF + 1) /* floats before and after a row: the reach of the window, and one to stay aligned */
#define MAPS 5             /* blurred: x, y, x^2, y^2, x y; backward: three derivatives */
#define C1 (0.01f * 0.01f)
#define C2 (0.03f * 0.03f)

static const float WINDOW[TAPS] = {0.00102838f, 0.00759876f, 0.03600077f, 0.10936069f, 0.21300554f, 0.26601172f,
                                   0.21300554f, 0.10936069f, 0.03600077f, 0.00759876f, 0.00102838f};

typedef struct {
    int height, length, stride, band; /* length 3 W; stride: padded up to whole vectors */
    const float *image, *target;
    const uint8_t *target8;
    float weight, *gradient;
    float *derivatives[3]; /* of SSIM by the blurred x, x^2, x y: [H, stride] */
    double (*row_sums)[2];
    float *scratch;
    size_t scratch_floats;
} ssim_job;

static size_t scratch_size(int stride) { return (size_t)(TAPS * MAPS + 1) * stride + (size_t)MAPS * (stride + 2 * PAD); }

INLINE vf tail_only(const ssim_job *job, int i, vf value) {
    static const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return i + LANES <= job->length ? value : vf_only(vi_gt(vi_set(job->length - i), lane), value);
}

static void load_image_row(const ssim_job *job, int y, float *out) {
    memcpy(out, job->image + (int64_t)y * job->length, job->length * sizeof(float));
}

static void load_target_row(const ssim_job *job, int y, float *out) {
    if (job->target) {
        memcpy(out, job->target + (int64_t)y * job->length, job->length * sizeof(float));
        return;
    }
    const uint8_t *row = job->target8 + (int64_t)y * job->length;
    for (int i = 0; i < job->length; i++) out[i] = row[i] * (1.0f / 255.0f);
}

/* in: a row with PAD zeros on both sides, pointing at its first value */
INLINE vf blur_x(const float *in, int i) {
    vf sum = WINDOW[0] * vf_load(in + i - 3 * HALF);
    for (int k = 1; k < TAPS; k++) sum += WINDOW[k] * vf_load(in + i + 3 * (k - HALF));
    return sum;
}

/* The eleven rows of a map that the window covers, from the ring: row r is at slot (r + TAPS) % TAPS. */
typedef struct {
    const float *row[TAPS];
} column_window;

INLINE column_window window_at(const float *ring, int stride, int y) {
    column_window w;
    for (int k = 0; k < TAPS; k++) w.row[k] = ring + (size_t)((y + k - HALF + TAPS) % TAPS) * stride;
    return w;
}

INLINE vf blur_y(const column_window *w, int i) {
    vf sum = WINDOW[0] * vf_load(w->row[0] + i);
    for (int k = 1; k < TAPS; k++) sum += WINDOW[k] * vf_load(w->row[k] + i);
    return sum;
}

static float *ring_of(const ssim_job *job, float *scratch, int map) { return scratch + (size_t)map * TAPS * job->stride; }
static float *row_of(const ssim_job *job, float *scratch, int map) {
    return scratch + (size_t)(TAPS * MAPS) * job->stride + (size_t)map * (job->stride + 2 * PAD) + PAD;
}

/* Blurs row y of `maps` rows along x into the rings; a row outside the image is zeros. */
static void push_rows(const ssim_job *job, float *scratch, int y, int maps) {
    size_t slot = (size_t)((y + TAPS) % TAPS) * job->stride;
    for (int m = 0; m < maps; m++) {
        float *out = ring_of(job, scratch, m) + slot;
        if (y < 0 || y >= job->height) {
            memset(out, 0, job->stride * sizeof(float));
            continue;
        }
        const float *in = row_of(job, scratch, m);
        for (int i = 0; i < job->stride; i += LANES) vf_store(out + i, blur_x(in, i));
    }
}

static void load_products(const ssim_job *job, float *scratch, int y) {
    if (y < 0 || y >= job->height) return;
    float *row[MAPS];
    for (int m = 0; m < MAPS; m++) row[m] = row_of(job, scratch, m);
    load_image_row(job, y, row[0]);
    load_target_row(job, y, row[1]);
    for (int i = 0; i < job->length; i += LANES) {
        vf a = tail_only(job, i, vf_load(row[0] + i)), b = tail_only(job, i, vf_load(row[1] + i));
        vf_store(row[2] + i, a * a), vf_store(row[3] + i, b * b), vf_store(row[4] + i, a * b);
    }
}

/* SSIM of row y, its sum, and its derivatives by the three blurred maps that depend on the image. */
static void ssim_row(const ssim_job *job, float *scratch, int y) {
    column_window window[MAPS];
    for (int m = 0; m < MAPS; m++) window[m] = window_at(ring_of(job, scratch, m), job->stride, y);
    vf total = vf_set(0);
    for (int i = 0; i < job->length; i += LANES) {
        vf b[MAPS];
        for (int m = 0; m < MAPS; m++) b[m] = blur_y(&window[m], i);
        vf mu_xy = b[0] * b[1], mu_xx = b[0] * b[0], mu_yy = b[1] * b[1];
        vf a1 = 2.0f * mu_xy + C1, a2 = 2.0f * (b[4] - mu_xy) + C2;
        vf b1 = mu_xx + mu_yy + C1, b2 = (b[2] - mu_xx) + (b[3] - mu_yy) + C2;
        vf inverse = 1.0f / (b1 * b2), ssim = a1 * a2 * inverse;
        total += tail_only(job, i, ssim);
        if (!job->gradient) continue;
        vf by_mean = 2.0f * (b[1] * (a2 - a1) * inverse - b[0] * ssim * (b2 - b1) * inverse);
        int64_t at = (int64_t)y * job->stride + i;
        vf_store(job->derivatives[0] + at, tail_only(job, i, by_mean));
        vf_store(job->derivatives[1] + at, tail_only(job, i, -ssim * b1 * inverse));
        vf_store(job->derivatives[2] + at, tail_only(job, i, 2.0f * a1 * inverse));
    }
    job->row_sums[y][1] = vf_sum(total);
}

static float *begin_band(const ssim_job *job, int thread) {
    float *scratch = job->scratch + (size_t)thread * job->scratch_floats;
    for (int m = 0; m < MAPS; m++) /* the pads, and what lies between length and stride */
        memset(row_of(job, scratch, m) - PAD, 0, (job->stride + 2 * PAD) * sizeof(float));
    return scratch;
}

static void ssim_band(void *context, int64_t band, int thread) {
    const ssim_job *job = context;
    float *scratch = begin_band(job, thread);
    int first = (int)band * job->band, end = min_int(first + job->band, job->height);
    for (int y = first - HALF; y < end + HALF; y++) {
        load_products(job, scratch, y);
        push_rows(job, scratch, y, MAPS);
        if (y - HALF >= first) ssim_row(job, scratch, y - HALF);
    }
}

/* Row y of the loss's gradient; its L1 sum with it. x, t: the row of the image and of the target. */
static void gradient_row(const ssim_job *job, float *scratch, int y) {
    float *x = row_of(job, scratch, 3), *t = row_of(job, scratch, 4);
    load_image_row(job, y, x), load_target_row(job, y, t);
    float n = (float)job->height * job->length, by_l1 = (1 - job->weight) / n, by_ssim = job->weight / n;
    column_window window[3];
    for (int m = 0; m < 3; m++) window[m] = window_at(ring_of(job, scratch, m), job->stride, y);
    vf total = vf_set(0), zero = vf_set(0);
    for (int i = 0; i < job->length; i += LANES) {
        vf a = vf_load(x + i), b = vf_load(t + i), difference = tail_only(job, i, a - b);
        total += vf_max(difference, -difference);
        if (!job->gradient) continue;
        vf d0 = blur_y(&window[0], i), d1 = blur_y(&window[1], i), d2 = blur_y(&window[2], i);
        vf sign = vf_only(vf_lt(zero, difference), vf_set(by_l1)) - vf_only(vf_lt(difference, zero), vf_set(by_l1));
        vf value = sign - by_ssim * (d0 + 2.0f * a * d1 + b * d2);
        float *out = job->gradient + (int64_t)y * job->length + i;
        if (i + LANES <= job->length)
            vf_store(out, value);
        else
            memcpy(out, &value, (job->length - i) * sizeof(float));
    }
    job->row_sums[y][0] = vf_sum(total);
}

static void gradient_band(void *context, int64_t band, int thread) {
    const ssim_job *job = context;
    float *scratch = begin_band(job, thread);
    int first = (int)band * job->band, end = min_int(first + job->band, job->height);
    for (int y = first - HALF; y < end + HALF; y++) {
        if (job->gradient) {
            for (int m = 0; m < 3 && y >= 0 && y < job->height; m++)
                memcpy(row_of(job, scratch, m), job->derivatives[m] + (int64_t)y * job->stride, job->stride * sizeof(float));
            push_rows(job, scratch, y, 3);
        }
        if (y - HALF >= first) gradient_row(job, scratch, y - HALF);
    }
}

static int photometric_locked(gsopt_frame *f, int height, int width, const float *image, const uint8_t *target8,
                      const float *target, float weight, double *sums, float *gradient) {
    int length = 3 * width, stride = (int)div_up(length, LANES) * LANES, threads = pool_threads();
    size_t map = (size_t)height * stride, each = scratch_size(stride);
    if (buffer_reserve(&f->loss_rows, height * sizeof(double[2])) ||
        buffer_reserve(&f->loss_scratch, threads * each * sizeof(float)) ||
        (gradient && buffer_reserve(&f->loss_maps, 3 * map * sizeof(float))))
        return GSOPT_NO_MEMORY;
    int turns = (int)div_up(height, threads * 128); /* bands of at most 128 rows, as many for each thread */
    ssim_job job = {.height = height, .length = length, .stride = stride, .band = (int)div_up(height, threads * turns),
                    .image = image, .target = target, .target8 = target8, .weight = weight, .gradient = gradient,
                    .row_sums = f->loss_rows.data, .scratch = f->loss_scratch.data, .scratch_floats = each};
    for (int m = 0; gradient && m < 3; m++) job.derivatives[m] = (float *)f->loss_maps.data + m * map;
    stage_clock clock = stage_begin();
    parallel_for(div_up(height, job.band), ssim_band, &job);
    parallel_for(div_up(height, job.band), gradient_band, &job);
    stage_end(&clock, STAGE_LOSS);
    sums[0] = sums[1] = 0;
    for (int y = 0; y < height; y++) sums[0] += job.row_sums[y][0], sums[1] += job.row_sums[y][1];
    sums[0] /= (double)height * length, sums[1] /= (double)height * length;
    return 0;
}

int gsopt_photometric(gsopt_frame *f, int height, int width, const float *image, const uint8_t *target8,
                      const float *target, float weight, double *sums, float *gradient) {
    pool_lock(); /* loss_scratch is by thread */
    int status = photometric_locked(f, height, width, image, target8, target, weight, sums, gradient);
    pool_unlock();
    return status;
}
