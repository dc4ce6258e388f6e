/* Sixteen float lanes with one source for every instruction set.
 *
 * The arithmetic is written with the vector extension of gcc and clang, which both lower to whatever registers
 * the target has (one of 512 bits, two of 256, four of 128). Only what that extension lacks (comparison masks,
 * min/max, bit masks, compaction) is spelled out per instruction set below.
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

#define LANES 16
typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef float vf_unaligned __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(64), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE vf vf_load(const float *p) { return *(const vf_unaligned *)p; }
INLINE void vf_store(float *p, vf a) { *(vf_unaligned *)p = a; }
INLINE vf vf_set(float s) { return s - (vf){0}; }
INLINE vi vi_set(int32_t s) { return s - (vi){0}; }
INLINE vi vi_load(const int32_t *p) { return *(const vi_unaligned *)p; }
INLINE void vi_store(int32_t *p, vi a) { *(vi_unaligned *)p = a; }

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
INLINE vf vf_sel(vm m, vf a, vf b) { return (vf)_mm512_mask_blend_ps(m, VF(b), VF(a)); }
INLINE vi vi_sel(vm m, vi a, vi b) { return (vi)_mm512_mask_blend_epi32(m, VI(b), VI(a)); }
INLINE vf vf_only(vm m, vf a) { return (vf)_mm512_maskz_mov_ps(m, VF(a)); }
INLINE vf vf_min(vf a, vf b) { return (vf)_mm512_min_ps(VF(a), VF(b)); }
INLINE vf vf_max(vf a, vf b) { return (vf)_mm512_max_ps(VF(a), VF(b)); }
/* 1 / a to 1 ulp or so: 14 bits from the table, one Newton step */
INLINE vf vf_reciprocal(vf a) {
    vf r = (vf)_mm512_rcp14_ps(VF(a));
    return r * (2.0f - a * r);
}
#else
typedef vi vm; /* all ones or all zeros a lane */
INLINE vm vf_ge(vf a, vf b) { return (vm)(a >= b); }
INLINE vm vf_le(vf a, vf b) { return (vm)(a <= b); }
INLINE vm vf_lt(vf a, vf b) { return (vm)(a < b); }
INLINE vm vi_gt(vi a, vi b) { return (vm)(a > b); }
INLINE vm vm_and(vm a, vm b) { return a & b; }
INLINE vm vm_andnot(vm a, vm b) { return ~a & b; }
INLINE vf vf_only(vm m, vf a) { return (vf)(m & (vi)a); }
INLINE vf vf_sel(vm m, vf a, vf b) { return (vf)((m & (vi)a) | (~m & (vi)b)); }
INLINE vi vi_sel(vm m, vi a, vi b) { return (m & a) | (~m & b); }
#if defined(__AVX__)
#define PARTS 2
typedef __m256 part;
#define PART_MIN _mm256_min_ps
#define PART_MAX _mm256_max_ps
INLINE uint32_t vm_bits(vm m) {
    __m256 h[2];
    memcpy(h, &m, sizeof h);
    return (uint32_t)_mm256_movemask_ps(h[0]) | (uint32_t)_mm256_movemask_ps(h[1]) << 8;
}
#elif defined(__SSE2__)
#define PARTS 4
typedef __m128 part;
#define PART_MIN _mm_min_ps
#define PART_MAX _mm_max_ps
INLINE uint32_t vm_bits(vm m) {
    __m128 h[4];
    memcpy(h, &m, sizeof h);
    return (uint32_t)_mm_movemask_ps(h[0]) | (uint32_t)_mm_movemask_ps(h[1]) << 4 |
           (uint32_t)_mm_movemask_ps(h[2]) << 8 | (uint32_t)_mm_movemask_ps(h[3]) << 12;
}
#elif defined(__aarch64__)
#define PARTS 4
typedef float32x4_t part;
#define PART_MIN vminq_f32
#define PART_MAX vmaxq_f32
INLINE uint32_t vm_bits(vm m) {
    static const uint32_t weight[LANES] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    uint32x4_t h[4];
    memcpy(h, &m, sizeof h);
    uint32x4_t sum = vandq_u32(h[0], vld1q_u32(weight));
    for (int i = 1; i < 4; i++) sum = vorrq_u32(sum, vandq_u32(h[i], vld1q_u32(weight + 4 * i)));
    return vaddvq_u32(sum);
}
#endif
#if defined(PARTS)
#define BY_PARTS(name, operation)                                                                                    \
    INLINE vf name(vf a, vf b) {                                                                                     \
        part x[PARTS], y[PARTS];                                                                                     \
        memcpy(x, &a, sizeof x), memcpy(y, &b, sizeof y);                                                            \
        for (int i = 0; i < PARTS; i++) x[i] = operation(x[i], y[i]);                                                \
        memcpy(&a, x, sizeof x);                                                                                     \
        return a;                                                                                                    \
    }
BY_PARTS(vf_min, PART_MIN)
BY_PARTS(vf_max, PART_MAX)
#else
INLINE vf vf_min(vf a, vf b) { return vf_sel(vf_lt(a, b), a, b); }
INLINE vf vf_max(vf a, vf b) { return vf_sel(vf_lt(b, a), a, b); }
INLINE uint32_t vm_bits(vm m) {
    uint32_t bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (uint32_t)(m[i] & 1) << i;
    return bits;
}
#endif
INLINE vf vf_reciprocal(vf a) { return 1.0f / a; }
#endif

INLINE vf vf_clamp(vf a, vf lo, vf hi) { return vf_max(lo, vf_min(a, hi)); }
INLINE vf vf_sqrt(vf a) {
    for (int i = 0; i < LANES; i++) a[i] = __builtin_sqrtf(a[i]);
    return a;
}
INLINE float vf_sum(vf a) { /* always added in the same order */
    float t[LANES];
    memcpy(t, &a, sizeof t);
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++) t[i] += t[i + step];
    return t[0];
}

/* 2^x for x <= 1, flushed to 2^-126 below it. 2^f on [-1/2, 1/2] is a polynomial of degree 5, fitted to a relative
 * error of 8e-8 (least squares on Chebyshev nodes). */
INLINE vf vf_exp2(vf x) {
    x = vf_max(x, vf_set(-126.0f));
    const vf magic = vf_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to the nearest integer */
    vf shifted = x + magic;
    vf f = x - (shifted - magic);
    vf p = vf_set(0x1.5bc922p-10f);
    p = p * f + 0x1.3d0ba4p-7f;
    p = p * f + 0x1.c6b782p-5f;
    p = p * f + 0x1.ebf91ap-3f;
    p = p * f + 0x1.62e428p-1f;
    p = p * f + 0x1.000002p+0f;
    return (vf)((vi)p + ((vi)shifted << 23));
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
