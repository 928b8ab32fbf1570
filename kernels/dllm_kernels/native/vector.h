/* Vectors of float32 as wide as the processor's. The rest of the code is the same for all of them: this file alone names instruction sets,
 * beside the products in bfloat16, which only one has.
 */
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define MOST_ROWS 12 /* of a product at once, two vectors each: 24 of 32 registers hold sums */
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#define MOST_ROWS 6 /* 12 of 16 */
#elif defined(__ARM_NEON) && defined(__aarch64__)
#define LANES 4
#define MOST_ROWS 12 /* 24 of 32 */
#else
#error "neither AVX-512, nor AVX2 with FMA, nor NEON"
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias)); /* anywhere in memory */

static inline vec load(const float *from) { return *(const loose *)from; }
static inline void store(float *to, vec v) { *(loose *)to = v; }

#if defined(__AVX512F__)
#include <immintrin.h>
static inline vec spread(float x) { return _mm512_set1_ps(x); }
static inline vec fused(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec larger(vec a, vec b) { return _mm512_max_ps(a, b); }
static inline vec smaller(vec a, vec b) { return _mm512_min_ps(a, b); }
#elif defined(__AVX2__)
#include <immintrin.h>
static inline vec spread(float x) { return _mm256_set1_ps(x); }
static inline vec fused(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec larger(vec a, vec b) { return _mm256_max_ps(a, b); }
static inline vec smaller(vec a, vec b) { return _mm256_min_ps(a, b); }
#else
/* The compiler finds the instructions (-ffp-contract=fast for the first). */
static inline vec spread(float x) { return (vec){x, x, x, x}; }
static inline vec fused(vec a, vec b, vec c) { return a * b + c; }
static inline vec larger(vec a, vec b) { return (vec)(((a > b) & (ints)a) | (~(a > b) & (ints)b)); }
static inline vec smaller(vec a, vec b) { return (vec)(((a < b) & (ints)a) | (~(a < b) & (ints)b)); }
#endif

/* a where the condition holds, else b. */
static inline vec either(ints condition, vec a, vec b) { return (vec)((condition & (ints)a) | (~condition & (ints)b)); }

/* 0, 1, 2 ... */
static inline ints order(void) {
    ints v;
    for (int i = 0; i < LANES; i++) v[i] = i;
    return v;
}

/* The first `left` numbers from a place on, then `rest`. */
static inline vec load_part(const float *from, int64_t left, float rest) {
    if (left >= LANES) return load(from);
    float whole[LANES];
    for (int i = 0; i < LANES; i++) whole[i] = i < left ? from[i] : rest;
    return load(whole);
}

/* Sum and largest of all lanes, halves on halves. */
static inline float total(vec v) {
    float part[LANES];
    store(part, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] += part[i + half];
    return part[0];
}

static inline float largest(vec v) {
    float part[LANES];
    store(part, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) part[i] = part[i] > part[i + half] ? part[i] : part[i + half];
    return part[0];
}

/* e^x to two units in the last place; below -87 zero, above 88 as at 88. */
static inline vec exponential(vec x) {
    const vec magic = spread(12582912.0f); /* 1.5 * 2^23: what is added to it is rounded to a whole number, in its lowest bits */
    const ints is_tiny = x < spread(-87.0f);
    x = smaller(larger(x, spread(-87.0f)), spread(88.0f));
    const vec shifted = fused(x, spread(1.44269504f), magic), n = shifted - magic;
    vec r = fused(n, spread(-0.693359375f), x);
    r = fused(n, spread(2.12194440e-4f), r);
    vec p = spread(1.9875691500e-4f);
    p = fused(p, r, spread(1.3981999507e-3f));
    p = fused(p, r, spread(8.3334519073e-3f));
    p = fused(p, r, spread(4.1665795894e-2f));
    p = fused(p, r, spread(1.6666665459e-1f));
    p = fused(p, r, spread(5.0000001201e-1f));
    p = fused(p * r, r, r + spread(1.0f));
    const ints power = (ints)shifted - (ints)magic;
    return (vec)(((ints)p + (power << 23)) & ~is_tiny);
}
