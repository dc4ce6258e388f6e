/* L1 + D-SSIM and its gradient in one sweep over the image.
 *
 * SSIM (Wang et al. 2004) with the window of 3DGS: 11 x 11 Gaussian, sigma 1.5, zeros outside the image, the mean over
 * all pixels and channels. The window is separable and an image row [W,3] is blurred along x with taps three floats
 * apart, so channels never have to be pulled apart. SSIM needs only the sum of both variances, so four maps are
 * blurred: x, y, x^2 + y^2 and x y; and three more backward, the derivatives.
 *
 * The image is cut into strips of columns and those into bands of rows, so that what is at work stays in the second
 * cache. Going down a band, GROUP rows from y on are multiplied and blurred along x, as many from y - 5 on get their
 * SSIM, and from y - 10 on their gradient; blurring a group along y reads each row once. A strip is cut out with a
 * margin, and every value is computed the same way in whatever band, strip or group.
 *
 * With a mask, pixels that it ignores are as if they were outside the image: zeros in both pictures, and not counted.
 */
#include "internal.h"

#define TAPS 11
#define HALF 5
#define MAPS 4      /* blurred: x, y, x^2 + y^2, x y */
#define SLOPES 3    /* derivatives of SSIM by the blurred x, x^2 + y^2, x y */
#define USED (MAPS + SLOPES) /* the row that says which floats count */
#define ROWS (USED + 1)
#define PAD 32      /* floats cut out on both sides of a strip: twice the reach of the window, and aligned */
#define INNER 16    /* of those, what only the products need */
#define STRIP 768   /* floats at most */
#define BAND 256    /* rows at most */
#define GROUP 8     /* rows that are blurred along y together */
#define RING 24     /* rows that are kept: at least GROUP + TAPS - 1 */
#define C1 (0.01f * 0.01f)
#define C2 (0.03f * 0.03f)

static const float WINDOW[HALF + 1] = {0.26601172f, 0.21300554f, 0.10936069f, 0.03600077f, 0.00759876f, 0.00102838f};

typedef struct {
    int height, length, strips, strip, bands, band; /* length 3 W: floats of a row */
    const float *image, *target;
    const uint8_t *target8, *mask;
    double counted; /* floats */
    float weight, *gradient;
    double (*sums)[2]; /* [H, strips]: L1, SSIM */
    float *scratch;
    size_t scratch_floats;
} ssim_job;

typedef struct { /* one strip of one band, and a thread's buffers */
    const ssim_job *job;
    int left, width, stride;         /* first float of the strip, floats, floats of a buffer's row */
    int first, end;                  /* rows of the band */
    float *rings, *rows, *blurred;   /* [MAPS + SLOPES, RING, stride], [ROWS, stride], [MAPS, GROUP, stride] */
} ssim_strip;

static size_t scratch_size(int strip) {
    return (size_t)((MAPS + SLOPES) * RING + ROWS + MAPS * GROUP) * (strip + 2 * PAD);
}
static float *row_of(const ssim_strip *s, int map) { return s->rows + (size_t)map * s->stride; }
static float *ring_row(const ssim_strip *s, int map, int y) {
    return s->rings + (size_t)(map * RING + (y + RING) % RING) * s->stride;
}

/* Lanes that are inside the image, from float i of a buffer's row on. */
INLINE vm inside_image(const ssim_strip *s, int i) {
    vi place = LANE + (s->left - PAD + i);
    return vm_and(vi_gt(vi_set(s->job->length), place), vi_gt(place, vi_set(-1)));
}

/* Floats [first, end) of a buffer's row that are inside the image. */
INLINE void image_range(const ssim_strip *s, int *first, int *end) {
    *first = max_int(0, PAD - s->left), *end = min_int(s->stride, s->job->length - s->left + PAD);
}

/* Of a masked image: 1 where a float of row y counts, else 0, and 0 outside the image. */
static const float *load_used(const ssim_strip *s, int y) {
    float *used = row_of(s, USED);
    int first, end;
    image_range(s, &first, &end);
    int place = s->left - PAD + first, channel = place % 3;
    const uint8_t *pixel = s->job->mask + (int64_t)y * (s->job->length / 3) + place / 3;
    for (int i = first; i < end; i++) {
        used[i] = *pixel != 0;
        if (++channel == 3) channel = 0, pixel++;
    }
    return used;
}

INLINE vm counts(const float *used) { return vf_lt(vf_set(0), vf_load(used)); }

static void load_pictures(const ssim_strip *s, int y, float *x, float *t) {
    const ssim_job *job = s->job;
    int first, end;
    image_range(s, &first, &end);
    int64_t at = (int64_t)y * job->length + s->left - PAD;
    memcpy(x + first, job->image + at + first, (end - first) * sizeof(float));
    if (job->target) {
        memcpy(t + first, job->target + at + first, (end - first) * sizeof(float));
        return;
    }
    const uint8_t *bytes = job->target8 + at;
    for (int i = first; i < end; i++) t[i] = bytes[i] * (1.0f / 255.0f);
}

static void load_rows(const ssim_strip *s, int y, float *x, float *t) {
    load_pictures(s, y, x, t);
    if (!s->job->mask) return;
    const float *used = load_used(s, y);
    for (int i = 0; i < s->stride; i += LANES) { /* whatever is ignored, NaN too, becomes zero */
        vm counted = counts(used + i);
        vf_store(x + i, vf_only(counted, vf_load(x + i))), vf_store(t + i, vf_only(counted, vf_load(t + i)));
    }
}

INLINE vf blur_x(const float *in) { /* at *in; taps are three floats apart */
    vf sum = WINDOW[0] * vf_load(in);
    for (int k = 1; k <= HALF; k++) sum += WINDOW[k] * (vf_load(in - 3 * k) + vf_load(in + 3 * k));
    return sum;
}

/* Blurs GROUP rows of a map along y, from row y on. */
static void blur_y(const ssim_strip *s, int map, int y, float *out) {
    const float *rows[GROUP + 2 * HALF];
    for (int k = 0; k < GROUP + 2 * HALF; k++) rows[k] = ring_row(s, map, y + k - HALF);
    for (int i = INNER; i < s->stride - INNER; i += LANES) {
        vf v[GROUP + 2 * HALF];
#pragma GCC unroll 18
        for (int k = 0; k < GROUP + 2 * HALF; k++) v[k] = vf_load(rows[k] + i);
#pragma GCC unroll 8
        for (int r = 0; r < GROUP; r++) {
            vf sum = WINDOW[0] * v[r + HALF];
#pragma GCC unroll 5
            for (int k = 1; k <= HALF; k++) sum += WINDOW[k] * (v[r + HALF - k] + v[r + HALF + k]);
            vf_store(out + r * s->stride + i, sum);
        }
    }
}

INLINE float *blurred_row(const ssim_strip *s, int map, int r) {
    return s->blurred + (size_t)(map * GROUP + r) * s->stride;
}

/* Blurs row y of maps [first, last) along x into their rings; a row that is not `inside` is zeros. */
static void push_rows(const ssim_strip *s, int first, int last, int y, int inside) {
    for (int map = first; map < last; map++) {
        float *out = ring_row(s, map, y);
        const float *in = row_of(s, map);
        if (!inside)
            memset(out, 0, s->stride * sizeof(float));
        else
            for (int i = INNER; i < s->stride - INNER; i += LANES) vf_store(out + i, blur_x(in + i));
    }
}

static void push_products(const ssim_strip *s, int y) {
    int inside = y >= 0 && y < s->job->height;
    if (inside) {
        float *x = row_of(s, 0), *t = row_of(s, 1), *squares = row_of(s, 2), *product = row_of(s, 3);
        load_rows(s, y, x, t);
        for (int i = 0; i < s->stride; i += LANES) { /* outside the image x and t stay zero */
            vf a = vf_load(x + i), b = vf_load(t + i);
            vf_store(squares + i, a * a + b * b), vf_store(product + i, a * b);
        }
    }
    push_rows(s, 0, MAPS, y, inside);
}

/* SSIM of row y, the r-th of those blurred: its sum if `counted`, and the derivatives into their rows. */
static void ssim_row(const ssim_strip *s, int y, int r, int counted) {
    const float *blurred[MAPS];
    float *slopes[SLOPES];
    for (int m = 0; m < MAPS; m++) blurred[m] = blurred_row(s, m, r);
    for (int m = 0; m < SLOPES; m++) slopes[m] = row_of(s, MAPS + m);
    vf total = vf_set(0);
    const float *used = s->job->mask ? load_used(s, y) : NULL;
    for (int i = INNER; i < s->stride - INNER; i += LANES) {
        vm inside = used ? counts(used + i) : inside_image(s, i);
        vf mu_x = vf_load(blurred[0] + i), mu_y = vf_load(blurred[1] + i);
        vf squares = vf_load(blurred[2] + i), product = vf_load(blurred[3] + i);
        vf mu_xy = mu_x * mu_y, mu_squares = mu_x * mu_x + mu_y * mu_y;
        vf a1 = 2.0f * mu_xy + C1, a2 = 2.0f * (product - mu_xy) + C2;
        vf b1 = mu_squares + C1, b2 = (squares - mu_squares) + C2;
        vf inverse = vf_only(inside, vf_reciprocal(b1 * b2)), ssim = a1 * a2 * inverse;
        if (i >= PAD && i < PAD + s->width) total += vf_only(inside, ssim);
        vf_store(slopes[0] + i, 2.0f * inverse * (mu_y * (a2 - a1)) - 2.0f * (mu_x * ssim * (b2 - b1) * inverse));
        vf_store(slopes[1] + i, -ssim * b1 * inverse);
        vf_store(slopes[2] + i, 2.0f * a1 * inverse);
    }
    if (counted) s->job->sums[(int64_t)y * s->job->strips + s->left / s->job->strip][1] = vf_sum(total);
}

/* Row y of the loss's gradient, the r-th of those blurred, and its L1 sum. */
static void gradient_row(const ssim_strip *s, int y, int r) {
    const ssim_job *job = s->job;
    float *x = row_of(s, 0), *t = row_of(s, 1);
    load_rows(s, y, x, t);
    const float *used = job->mask ? row_of(s, USED) : NULL;
    float n = (float)job->counted, by_l1 = (1 - job->weight) / n, by_ssim = job->weight / n;
    const float *blurred[SLOPES];
    for (int m = 0; m < SLOPES; m++) blurred[m] = blurred_row(s, m, r);
    vf total = vf_set(0), zero = vf_set(0);
    int end = min_int(s->width, job->length - s->left);
    for (int i = 0; i < end; i += LANES) {
        vf a = vf_load(x + PAD + i), b = vf_load(t + PAD + i), difference = vf_only(vm_first(end - i), a - b);
        total += vf_max(difference, -difference);
        if (!job->gradient) continue;
        vf by_mean = vf_load(blurred[0] + PAD + i), by_squares = vf_load(blurred[1] + PAD + i);
        vf by_product = vf_load(blurred[2] + PAD + i);
        vf sign = vf_only(vf_lt(zero, difference), vf_set(by_l1)) - vf_only(vf_lt(difference, zero), vf_set(by_l1));
        vf value = sign - by_ssim * (by_mean + 2.0f * a * by_squares + b * by_product);
        if (used) value = vf_only(counts(used + PAD + i), value);
        float *out = job->gradient + (int64_t)y * job->length + s->left + i;
        if (i + LANES <= end)
            vf_store(out, value);
        else
            vf_store_first(out, value, end - i);
    }
    job->sums[(int64_t)y * job->strips + s->left / job->strip][0] = vf_sum(total);
}

/* SSIM of rows [y, y + GROUP), and what of it the gradient needs. */
static void ssim_group(const ssim_strip *s, int y) {
    const ssim_job *job = s->job;
    for (int m = 0; m < MAPS; m++) blur_y(s, m, y, blurred_row(s, m, 0));
    for (int r = 0; r < GROUP; r++) {
        int inside = y + r >= 0 && y + r < job->height;
        if (inside) ssim_row(s, y + r, r, y + r >= s->first && y + r < s->end);
        if (job->gradient) push_rows(s, MAPS, MAPS + SLOPES, y + r, inside);
    }
}

static void gradient_group(const ssim_strip *s, int y) {
    for (int m = 0; s->job->gradient && m < SLOPES; m++) blur_y(s, MAPS + m, y, blurred_row(s, m, 0));
    for (int r = max_int(0, s->first - y); r < min_int(GROUP, s->end - y); r++) gradient_row(s, y + r, r);
}

static void ssim_task(void *context, int64_t task, int thread) {
    const ssim_job *job = context;
    int left = (int)(task % job->strips) * job->strip, first = (int)(task / job->strips) * job->band;
    int end = min_int(first + job->band, job->height), stride = job->strip + 2 * PAD;
    float *rings = job->scratch + (size_t)thread * job->scratch_floats;
    float *rows = rings + (size_t)(MAPS + SLOPES) * RING * stride, *blurred = rows + (size_t)ROWS * stride;
    ssim_strip s = {job, left, job->strip, stride, first, end, rings, rows, blurred};
    memset(rows, 0, (size_t)ROWS * stride * sizeof(float));
    for (int y = first - 2 * HALF; y - 2 * HALF < end; y += GROUP) {
        for (int r = 0; r < GROUP; r++) push_products(&s, y + r);
        if (y + GROUP - HALF > first - HALF) ssim_group(&s, y - HALF);
        if (y + GROUP - 2 * HALF > first) gradient_group(&s, y - 2 * HALF);
    }
}

/* Floats that count. */
static double count_floats(int height, int length, const uint8_t *mask) {
    int64_t pixels = (int64_t)height * length / 3, used = 0;
    if (!mask) return (double)height * length;
    for (int64_t i = 0; i < pixels; i++) used += mask[i] != 0;
    return 3.0 * used;
}

static int photometric_locked(gsopt_frame *f, int height, int width, const float *image, const uint8_t *target8,
                      const float *target, const uint8_t *mask, double weight, float *values, float *gradient) {
    int length = 3 * width, strips = (int)div_up(length, STRIP), threads = pool_threads();
    int strip = (int)div_up(div_up(length, strips), 16) * 16;
    strips = (int)div_up(length, strip);
    int bands = (int)div_up(height, BAND), tasks = bands * strips;
    if (tasks % threads) bands = (int)div_up(div_up(tasks, threads) * threads, strips); /* as many for each thread */
    int band = (int)div_up(height, min_int(bands, height));
    size_t each = scratch_size(strip), rows = (size_t)height * strips;
    if (buffer_reserve(&f->loss_sums, rows * sizeof(double[2])) ||
        buffer_reserve(&f->loss_scratch, threads * each * sizeof(float)))
        return GSOPT_NO_MEMORY;
    ssim_job job = {.height = height, .length = length, .strips = strips, .strip = strip, .band = band,
                    .bands = (int)div_up(height, band), .image = image, .target = target, .target8 = target8,
                    .mask = mask, .counted = count_floats(height, length, mask),
                    .weight = (float)weight, .gradient = gradient, .sums = f->loss_sums.data,
                    .scratch = f->loss_scratch.data, .scratch_floats = each};
    stage_clock clock = stage_begin();
    parallel_for((int64_t)job.bands * strips, ssim_task, &job);
    stage_end(&clock, STAGE_LOSS);
    double l1 = 0, ssim = 0;
    for (size_t i = 0; i < rows; i++) l1 += job.sums[i][0], ssim += job.sums[i][1];
    if (job.counted > 0)
        l1 /= job.counted, ssim /= job.counted;
    else
        ssim = 1; /* no difference */
    values[0] = (float)((1 - weight) * l1 + weight * (1 - ssim)), values[1] = (float)l1, values[2] = (float)ssim;
    return 0;
}

int gsopt_photometric(gsopt_frame *f, int height, int width, const float *image, const uint8_t *target8,
                      const float *target, const uint8_t *mask, double weight, float *values, float *gradient) {
    pool_lock(); /* loss_scratch is by thread */
    int status = photometric_locked(f, height, width, image, target8, target, mask, weight, values, gradient);
    pool_unlock();
    return status;
}
