/* One source for every instruction set: vectors of LANES floats, as wide as a register of the target.
 *
 * The arithmetic is written with the vector extension of gcc and clang. A vector wider than the registers would be
 * lowered to memory by gcc, so LANES is 16 with AVX-512, 8 with AVX and 4 elsewhere, and code that works on sixteen
 * pixels loops over PARTS vectors. Only what the extension lacks (comparison masks, min/max, bit masks) is spelled
 * out per instruction set below.
 */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define PARTS (16 / LANES) /* vectors of sixteen floats */
typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef float vf_unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE vf vf_load(const float *p) { return *(const vf_unaligned *)p; }
INLINE void vf_store(float *p, vf a) { *(vf_unaligned *)p = a; }
INLINE vf vf_set(float s) { return s - (vf){0}; }
INLINE vi vi_set(int32_t s) { return s - (vi){0}; }
INLINE vi vi_load(const int32_t *p) { return *(const vi_unaligned *)p; }
INLINE void vi_store(int32_t *p, vi a) { *(vi_unaligned *)p = a; }

#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

/* Lanes of a and b in turn: the first halves, the second halves. */
#if LANES == 16
INLINE vf zip_low(vf a, vf b) { return SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23); }
INLINE vf zip_high(vf a, vf b) { return SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31); }
static const vi LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif LANES == 8
INLINE vf zip_low(vf a, vf b) { return SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
INLINE vf zip_high(vf a, vf b) { return SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
static const vi LANE = {0, 1, 2, 3, 4, 5, 6, 7};
#else
INLINE vf zip_low(vf a, vf b) { return SHUFFLE(a, b, 0, 4, 1, 5); }
INLINE vf zip_high(vf a, vf b) { return SHUFFLE(a, b, 2, 6, 3, 7); }
static const vi LANE = {0, 1, 2, 3};
#endif

#if defined(__AVX512F__)
typedef __mmask16 vm; /* one bit a lane */
#define VF(a) ((__m512)(a))
#define VI(a) ((__m512i)(a))
INLINE vm vf_ge(vf a, vf b) { return _mm512_cmp_ps_mask(VF(a), VF(b), _CMP_GE_OQ); }
INLINE vm vf_le(vf a, vf b) { return _mm512_cmp_ps_mask(VF(a), VF(b), _CMP_LE_OQ); }
INLINE vm vf_lt(vf a, vf b) { return _mm512_cmp_ps_mask(VF(a), VF(b), _CMP_LT_OQ); }
INLINE vm vi_gt(vi a, vi b) { return _mm512_cmpgt_epi32_mask(VI(a), VI(b)); }
INLINE vm vm_and(vm a, vm b) { return a & b; }
INLINE vm vm_andnot(vm a, vm b) { return (vm)(~a & b); }
INLINE uint32_t vm_bits(vm m) { return m; }
INLINE vm vm_from_bits(uint32_t bits) { return (vm)bits; }
INLINE vf vf_sel(vm m, vf a, vf b) { return (vf)_mm512_mask_blend_ps(m, VF(b), VF(a)); }
INLINE vi vi_sel(vm m, vi a, vi b) { return (vi)_mm512_mask_blend_epi32(m, VI(b), VI(a)); }
INLINE vf vf_only(vm m, vf a) { return (vf)_mm512_maskz_mov_ps(m, VF(a)); }
INLINE vf vf_min(vf a, vf b) { return (vf)_mm512_min_ps(VF(a), VF(b)); }
INLINE vf vf_max(vf a, vf b) { return (vf)_mm512_max_ps(VF(a), VF(b)); }
INLINE vf vf_sqrt(vf a) { return (vf)_mm512_sqrt_ps(VF(a)); }
INLINE vf vf_ceil(vf a) { return (vf)_mm512_roundscale_ps(VF(a), _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }
/* 1 / a to 1 ulp or so: 14 bits from the table, one Newton step */
INLINE vf vf_reciprocal(vf a) {
    vf r = (vf)_mm512_rcp14_ps(VF(a));
    return r * (2.0f - a * r);
}
/* Adds `bit` in the lanes of m. */
INLINE vi vi_or(vi a, vm m, int32_t bit) { return (vi)_mm512_mask_or_epi32(VI(a), m, VI(a), _mm512_set1_epi32(bit)); }
#else
typedef vi vm; /* all ones or all zeros a lane */
INLINE vm vf_ge(vf a, vf b) { return (vm)(a >= b); }
INLINE vm vf_le(vf a, vf b) { return (vm)(a <= b); }
INLINE vm vf_lt(vf a, vf b) { return (vm)(a < b); }
INLINE vm vi_gt(vi a, vi b) { return (vm)(a > b); }
INLINE vm vm_and(vm a, vm b) { return a & b; }
INLINE vm vm_andnot(vm a, vm b) { return ~a & b; }
INLINE vm vm_from_bits(uint32_t bits) { return (vm)(((vi_set((int32_t)bits) >> LANE) & 1) != 0); }
INLINE vf vf_only(vm m, vf a) { return (vf)(m & (vi)a); }
INLINE vf vf_sel(vm m, vf a, vf b) { return (vf)((m & (vi)a) | (~m & (vi)b)); }
INLINE vi vi_sel(vm m, vi a, vi b) { return (m & a) | (~m & b); }
INLINE vi vi_or(vi a, vm m, int32_t bit) { return a | (m & bit); }
INLINE vf vf_reciprocal(vf a) { return 1.0f / a; }
#if defined(__AVX__)
INLINE vf vf_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vf vf_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf vf_sqrt(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
INLINE vf vf_ceil(vf a) { return (vf)_mm256_ceil_ps((__m256)a); }
INLINE uint32_t vm_bits(vm m) { return (uint32_t)_mm256_movemask_ps((__m256)m); }
#else
INLINE vf vf_ceil(vf a) {
    for (int i = 0; i < LANES; i++) a[i] = ceilf(a[i]);
    return a;
}
#if defined(__SSE2__)
INLINE vf vf_min(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
INLINE vf vf_max(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
INLINE vf vf_sqrt(vf a) { return (vf)_mm_sqrt_ps((__m128)a); }
INLINE uint32_t vm_bits(vm m) { return (uint32_t)_mm_movemask_ps((__m128)m); }
#elif defined(__aarch64__)
INLINE vf vf_min(vf a, vf b) { return (vf)vminnmq_f32((float32x4_t)a, (float32x4_t)b); }
INLINE vf vf_max(vf a, vf b) { return (vf)vmaxnmq_f32((float32x4_t)a, (float32x4_t)b); }
INLINE vf vf_sqrt(vf a) { return (vf)vsqrtq_f32((float32x4_t)a); }
INLINE uint32_t vm_bits(vm m) {
    static const uint32_t weight[LANES] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32((uint32x4_t)m, vld1q_u32(weight)));
}
#else
INLINE vf vf_min(vf a, vf b) { return vf_sel(vf_lt(a, b), a, b); }
INLINE vf vf_max(vf a, vf b) { return vf_sel(vf_lt(b, a), a, b); }
INLINE vf vf_sqrt(vf a) {
    for (int i = 0; i < LANES; i++) a[i] = __builtin_sqrtf(a[i]);
    return a;
}
INLINE uint32_t vm_bits(vm m) {
    uint32_t bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (uint32_t)(m[i] & 1) << i;
    return bits;
}
#endif
#endif
#endif

INLINE vf vf_clamp(vf a, vf lo, vf hi) { return vf_max(lo, vf_min(a, hi)); }
INLINE vm vm_first(int count) { return vi_gt(vi_set(count), LANE); } /* the first lanes */
INLINE float vf_sum(vf a) { /* always added in the same order */
    float t[LANES];
    memcpy(t, &a, sizeof t);
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++) t[i] += t[i + step];
    return t[0];
}

/* Stores the first `count` lanes and touches nothing behind them. */
INLINE void vf_store_first(float *p, vf a, int count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), VF(a));
#else
    memcpy(p, &a, count * sizeof(float));
#endif
}

/* The loops below are spelled out for the compiler: left as loops, the vectors would live in memory. */
INLINE void zip_rows(const vf in[LANES], vf out[LANES]) {
#pragma GCC unroll 8
    for (int i = 0; i < LANES / 2; i++) {
        out[2 * i] = zip_low(in[i], in[i + LANES / 2]);
        out[2 * i + 1] = zip_high(in[i], in[i + LANES / 2]);
    }
}

/* Rows of LANES vectors to columns, in place. */
INLINE void transpose(vf v[LANES]) {
    vf t[LANES];
#if LANES == 8
    vf last[LANES];
    zip_rows(v, t), zip_rows(t, last), zip_rows(last, v);
#else
    zip_rows(v, t), zip_rows(t, v);
#endif
#if LANES == 16
    zip_rows(v, t), zip_rows(t, v);
#endif
}

INLINE void fold_rows(vf v[LANES], int half) {
#pragma GCC unroll 8
    for (int i = 0; i < half; i++) v[i] = zip_low(v[i], v[i + half]) + zip_high(v[i], v[i + half]);
}

/* Lane k is the sum over the lanes of v[k], each added in the same order. */
INLINE vf sums_of_lanes(vf v[LANES]) {
    if (LANES == 16) fold_rows(v, 8);
    if (LANES >= 8) fold_rows(v, 4);
    fold_rows(v, 2), fold_rows(v, 1);
    return v[0];
}

/* 2^x for x <= 1; what is below 2^-126 is 0 or 2^-126. The fraction's power is a polynomial of degree 5, fitted to a
 * relative error of 8e-8 (least squares on Chebyshev nodes). */
INLINE vf vf_exp2(vf x) {
#if defined(__AVX512DQ__)
    vf f = (vf)_mm512_reduce_ps(VF(x), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); /* in [0, 1); scalef adds the floor */
    vf p = vf_set(0x1.ec320ap-10f);
    p = p * f + 0x1.26900cp-7f;
    p = p * f + 0x1.c95446p-5f;
    p = p * f + 0x1.ebd5a8p-3f;
    p = p * f + 0x1.62e4f6p-1f;
    p = p * f + 0x1.fffffep-1f;
    return (vf)_mm512_scalef_ps(VF(p), VF(x));
#else
    x = vf_max(x, vf_set(-126.0f));
    const vf magic = vf_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to the nearest integer */
    vf shifted = x + magic;
    vf f = x - (shifted - magic); /* in [-1/2, 1/2] */
    vf p = vf_set(0x1.5bc922p-10f);
    p = p * f + 0x1.3d0ba4p-7f;
    p = p * f + 0x1.c6b782p-5f;
    p = p * f + 0x1.ebf91ap-3f;
    p = p * f + 0x1.62e428p-1f;
    p = p * f + 0x1.000002p+0f;
    return (vf)((vi)p + ((vi)shifted << 23));
#endif
}

/* e^x, held between 2^-125 and 2^126: 2^n e^r with the whole number n taken out of x exactly (Cody and Waite 1980).
 * NaN stays NaN: a Gaussian that has diverged is culled. */
INLINE vf vf_exp(vf x) {
    vf held = vf_clamp(x, vf_set(-86.6f), vf_set(87.3f));
    const vf magic = vf_set(12582912.0f);
    vf shifted = held * 1.44269504f + magic, n = shifted - magic;
    vf r = held - n * 0.693359375f + n * 2.12194440e-4f;
    vf power = (vf)(((vi)shifted << 23) + 0x3f800000);
    return vf_sel(vf_le(x, x), power * vf_exp2(r * 1.44269504f), x);
}

/* log2 x for normal x > 0: exponent plus 2 atanh((m - 1) / (m + 1)) / ln 2 with m in [sqrt(1/2), sqrt(2)); the
 * series stops at the 9th power, an error below 1e-9. */
INLINE vf vf_log2(vf x) {
    vi bits = (vi)x - 0x3f3504f3; /* sqrt(1/2) */
    vf exponent = __builtin_convertvector(bits >> 23, vf);
    vf m = (vf)((bits & 0x007fffff) + 0x3f3504f3);
    vf s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
    vf series = 1.0f + s2 * (1.0f / 3 + s2 * (1.0f / 5 + s2 * (1.0f / 7 + s2 * (1.0f / 9))));
    return exponent + s * series * 2.88539008f;
}
