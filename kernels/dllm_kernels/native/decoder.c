/* All layers of a small decoder in one call, on one thread.
 *
 * Each row of a product adds up its inputs in order, whatever rows stand beside it, and a slot that is not seen adds zeros: a token's result is
 * the same bits in any company. Activations are float32 between products; with bfloat16 weights they are rounded once, as a product reads them
 * (those of attention included).
 *
 * B rows, T new tokens, M = B * T, S slots read, H query heads, G key/value heads, D head size, E hidden size, F inner size.
 */
#include "vector.h"

#define PANEL (2 * LANES) /* outputs that a product computes at once */

typedef uint16_t bf16;

typedef struct {
    const float *in_norm, *q_norm, *k_norm, *post_norm;
    const void *qkv, *out, *gate_up, *down; /* packed by `pack_weights` */
} layer_t;

typedef struct {
    int64_t layers, hidden, inner, heads, groups, size;
    float eps;
    int32_t is_half; /* weights and stores in bfloat16 */
    const float *norm;
    const layer_t *layer;
} net_t;

typedef struct {
    int64_t rows, length, slots;
    int64_t row_stride, group_stride, slot_stride; /* of stores, in elements */
    const int64_t *start;                          /* [B] */
    const float *cos, *sin;                        /* [B, T, D], sines of the first half negated */
    int64_t turn_stride;                           /* between rows of cos and sin: 0 where all share one */
    const float *mask;                             /* [B or 1, T or 1, S] to be added, or NULL */
    int64_t mask_row, mask_token;                  /* its strides */
} shape_t;

/* --- products ------------------------------------------------------------------------------------------------------- */

#define ALWAYS static inline __attribute__((always_inline))

/* Bring what a product reads of a panel in one turn into the second cache. */
ALWAYS void fetch(const void *panel) {
    for (int at = 0; at < 4 * PANEL; at += 64) __builtin_prefetch((const char *)panel + at, 0, 2);
}

/* out[r] (+)= sum over k of x[r][k] * panel[k], PANEL columns; `count` is a constant wherever this is written out. */
ALWAYS void float_rows(const int count, const float *x, int64_t xs, const float *panel, int64_t inputs, float *out, int64_t os,
                       int is_sum, int64_t ahead) {
    vec left[MOST_ROWS], right[MOST_ROWS];
#pragma GCC unroll 12
    for (int r = 0; r < count; r++) {
        left[r] = is_sum ? load(out + r * os) : spread(0.0f);
        right[r] = is_sum ? load(out + r * os + LANES) : spread(0.0f);
    }
    for (int64_t k = 0; k < inputs; k++, panel += PANEL) {
        const vec a = load(panel), b = load(panel + LANES);
        fetch(panel + ahead);
#pragma GCC unroll 12
        for (int r = 0; r < count; r++) {
            const vec one = spread(x[r * xs + k]);
            left[r] = fused(one, a, left[r]);
            right[r] = fused(one, b, right[r]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < count; r++) {
        store(out + r * os, left[r]);
        store(out + r * os + LANES, right[r]);
    }
}

#ifdef __AVX512BF16__
/* The same from pairs of bfloat16: x holds bf16, the panel two inputs of each of its outputs. */
ALWAYS void half_rows(const int count, const bf16 *x, int64_t xs, const bf16 *panel, int64_t inputs, float *out, int64_t os,
                      int is_sum, int64_t ahead) {
    vec left[MOST_ROWS], right[MOST_ROWS];
#pragma GCC unroll 12
    for (int r = 0; r < count; r++) {
        left[r] = is_sum ? load(out + r * os) : spread(0.0f);
        right[r] = is_sum ? load(out + r * os + LANES) : spread(0.0f);
    }
    for (int64_t k = 0; k < inputs; k += 2, panel += 2 * PANEL) {
        const __m512bh a = (__m512bh)_mm512_loadu_si512(panel), b = (__m512bh)_mm512_loadu_si512(panel + PANEL);
        fetch(panel + ahead);
#pragma GCC unroll 12
        for (int r = 0; r < count; r++) {
            int32_t pair;
            memcpy(&pair, x + r * xs + k, 4);
            const __m512bh one = (__m512bh)_mm512_set1_epi32(pair);
            left[r] = _mm512_dpbf16_ps(left[r], one, a);
            right[r] = _mm512_dpbf16_ps(right[r], one, b);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < count; r++) {
        store(out + r * os, left[r]);
        store(out + r * os + LANES, right[r]);
    }
}
#endif

/* Rows that a product takes next: never a short rest behind full ones. */
static inline int64_t take(int64_t left) {
    if (left <= MOST_ROWS) return left;
    return left < 2 * MOST_ROWS ? (left + 1) / 2 : MOST_ROWS;
}

#if MOST_ROWS > 6
#define EACH_COUNT(ROWS) ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#else
#define EACH_COUNT(ROWS) ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#endif

static void some_rows(const net_t *net, int64_t count, const void *x, int64_t xs, const void *panel, int64_t inputs, float *out,
                      int64_t os, int is_sum, int64_t ahead) {
#ifdef __AVX512BF16__
    if (net->is_half) {
#define HALF_ROWS(R)                                                                                                   \
    case R: half_rows(R, x, xs, panel, inputs, out, os, is_sum, ahead); return;
        switch (count) { EACH_COUNT(HALF_ROWS) }
        return;
    }
#endif
    (void)net;
#define FLOAT_ROWS(R)                                                                                                  \
    case R: float_rows(R, x, xs, panel, inputs, out, os, is_sum, ahead); return;
    switch (count) { EACH_COUNT(FLOAT_ROWS) }
}

static void product(const net_t *net, const void *x, int64_t rows, int64_t inputs, const void *packed,
                    int64_t outputs, float *out, int is_sum) {
    const int64_t bytes = net->is_half ? 2 : 4;
    for (int64_t n = 0; n < outputs; n += PANEL)
        for (int64_t m = 0, step; m < rows; m += step) {
            step = take(rows - m);
            /* The last rows to meet a panel, which is near by then, bring the next one nearer: a tenth of the time of 32 rows. */
            const int64_t ahead = m && m + step == rows && n + PANEL < outputs ? inputs * PANEL : 0;
            some_rows(net, step, (const char *)x + m * inputs * bytes, inputs, (const char *)packed + n * inputs * bytes,
                      inputs, out + m * outputs + n, outputs, is_sum, ahead);
        }
}

/* Whether products in bfloat16 were compiled in. */
int32_t has_half(void) {
#ifdef __AVX512BF16__
    return 1;
#else
    return 0;
#endif
}

/* Weights [N, K] as `product` reads them. N in multiples of PANEL, K even. */
void pack_weights(const void *weights, int64_t outputs, int64_t inputs, int32_t is_half, void *packed) {
    for (int64_t n = 0; n < outputs; n++) {
        const int64_t panel = n / PANEL, column = n % PANEL;
        for (int64_t k = 0; k < inputs; k++) {
            const int64_t from = n * inputs + k;
            if (is_half)
                ((bf16 *)packed)[panel * PANEL * inputs + (k / 2) * 2 * PANEL + column * 2 + k % 2] =
                    ((const bf16 *)weights)[from];
            else
                ((float *)packed)[panel * PANEL * inputs + k * PANEL + column] = ((const float *)weights)[from];
        }
    }
}

/* --- between products ----------------------------------------------------------------------------------------------- */

static inline float inverse_root(const float *x, int64_t size, float eps) {
    vec sum = spread(0.0f);
    for (int64_t i = 0; i < size; i += LANES) sum = fused(load(x + i), load(x + i), sum);
    return 1.0f / __builtin_sqrtf(total(sum) / (float)size + eps);
}

static inline void put(const net_t *net, void *out, int64_t at, vec v) {
#ifdef __AVX512BF16__
    if (net->is_half) {
        _mm256_storeu_si256((__m256i *)((bf16 *)out + at), (__m256i)_mm512_cvtneps_pbh(v));
        return;
    }
#endif
    (void)net;
    store((float *)out + at, v);
}

static void normalise(const net_t *net, const float *x, int64_t rows, const float *weight, void *out) {
    const int64_t size = net->hidden;
    for (int64_t m = 0; m < rows; m++) {
        const vec scale = spread(inverse_root(x + m * size, size, net->eps));
        for (int64_t i = 0; i < size; i += LANES) put(net, out, m * size + i, load(x + m * size + i) * scale * load(weight + i));
    }
}

/* A head [D], normalised where there is a weight, turned and scaled, to `out` from `at` on. */
static void turn(const net_t *net, const float *head, const float *weight, const float *cos, const float *sin,
                 float factor, void *out, int64_t at) {
    const int64_t size = net->size, half = size / 2;
    float normed[size];
    const vec scale = spread(weight ? inverse_root(head, size, net->eps) : 1.0f);
    for (int64_t i = 0; i < size; i += LANES) {
        const vec v = load(head + i) * scale;
        store(normed + i, weight ? v * load(weight + i) : v);
    }
    for (int64_t i = 0; i < size; i += LANES) {
        const vec other = load(normed + (i < half ? i + half : i - half));
        const vec turned = fused(other, load(sin + i), load(normed + i) * load(cos + i));
        put(net, out, at + i, turned * spread(factor));
    }
}

/* Keys [S, D] as panels of slots and values [S, D] as panels of numbers, both as `product` reads weights, filled up with zeros. */
static void gather(const net_t *net, const void *keys, const void *values, int64_t between, int64_t slots,
                   void *key_panels, void *value_panels) {
    const int64_t size = net->size, whole = (slots + PANEL - 1) / PANEL * PANEL;
#ifdef __AVX512BF16__
    if (net->is_half) {
        /* Pairs of numbers of a key move as one; values of two slots are woven together. */
        int16_t low[32], high[32];
        for (int i = 0; i < 32; i++) {
            low[i] = (int16_t)(i / 2 + (i % 2 ? 32 : 0));
            high[i] = (int16_t)(low[i] + 16);
        }
        const __m512i first = _mm512_loadu_si512(low), second = _mm512_loadu_si512(high);
        for (int64_t s = 0; s < whole; s++) {
            uint32_t *to = (uint32_t *)key_panels + s / PANEL * PANEL * size / 2 + s % PANEL;
            const bf16 *from = (const bf16 *)keys + s * between;
            for (int64_t i = 0; i < size / 2; i++) {
                uint32_t pair = 0;
                if (s < slots) memcpy(&pair, from + 2 * i, 4);
                to[i * PANEL] = pair;
            }
        }
        for (int64_t s = 0; s < whole; s += 2) {
            const bf16 *from = (const bf16 *)values + s * between;
            for (int64_t n = 0; n < size; n += PANEL) {
                const __m512i zero = _mm512_setzero_si512();
                const __m512i left = s < slots ? _mm512_loadu_si512(from + n) : zero;
                const __m512i right = s + 1 < slots ? _mm512_loadu_si512(from + between + n) : zero;
                bf16 *to = (bf16 *)value_panels + n * whole + s * PANEL;
                _mm512_storeu_si512(to, _mm512_permutex2var_epi16(left, first, right));
                _mm512_storeu_si512(to + PANEL, _mm512_permutex2var_epi16(left, second, right));
            }
        }
        return;
    }
#endif
    for (int64_t s = 0; s < whole; s++) {
        float *to = (float *)key_panels + s / PANEL * PANEL * size + s % PANEL;
        const float *key = (const float *)keys + s * between, *value = (const float *)values + s * between;
        for (int64_t i = 0; i < size; i++) to[i * PANEL] = s < slots ? key[i] : 0.0f;
        for (int64_t n = 0; n < size; n += PANEL)
            for (int64_t i = 0; i < PANEL; i += LANES)
                store((float *)value_panels + n * whole + s * PANEL + i, s < slots ? load(value + n + i) : spread(0.0f));
    }
}

/* Softmax of a row [whole] whose first `slots` numbers count, to `out` from `at` on; the rest becomes zero. */
static void soften(const net_t *net, float *row, const float *mask, int64_t slots, int64_t whole, void *out, int64_t at) {
    vec top = spread(-__builtin_inff());
    for (int64_t i = 0; i < whole; i += LANES) {
        vec v = load_part(row + i, slots - i, -__builtin_inff());
        if (mask) v = v + load_part(mask + i, slots - i, 0.0f);
        store(row + i, v);
        top = larger(top, v);
    }
    const vec best = spread(largest(top));
    vec sum = spread(0.0f);
    for (int64_t i = 0; i < whole; i += LANES) {
        const vec v = exponential(load(row + i) - best);
        store(row + i, v);
        sum = sum + v;
    }
    const vec share = spread(1.0f / total(sum));
    for (int64_t i = 0; i < whole; i += LANES) put(net, out, at + i, load(row + i) * share);
}

/* gate_up [M, 2F] to silu(gate) * up [M, F]. */
static void gate(const net_t *net, const float *gate_up, int64_t rows, void *out) {
    const int64_t size = net->inner;
    for (int64_t m = 0; m < rows; m++)
        for (int64_t i = 0; i < size; i += LANES) {
            const vec g = load(gate_up + m * 2 * size + i), u = load(gate_up + m * 2 * size + size + i);
            put(net, out, m * size + i, g / (spread(1.0f) + exponential(-g)) * u);
        }
}

static void attend(const net_t *net, const shape_t *shape, const void *queries, const void *keys, const void *values,
                   void *key_panels, void *value_panels, float *scores, void *shares, void *out) {
    const int64_t size = net->size, share = net->heads / net->groups, rows = share * shape->length;
    const int64_t whole = (shape->slots + PANEL - 1) / PANEL * PANEL, width = net->heads * size;
    const int64_t bytes = net->is_half ? 2 : 4;
    float mixed[MOST_ROWS * size];
    for (int64_t b = 0; b < shape->rows; b++)
        for (int64_t g = 0; g < net->groups; g++) {
            const int64_t first = (b * shape->row_stride + g * shape->group_stride) * bytes;
            gather(net, (const char *)keys + first, (const char *)values + first, shape->slot_stride, shape->slots,
                   key_panels, value_panels);
            const char *own = (const char *)queries + (b * net->groups + g) * rows * size * bytes;
            for (int64_t r = 0, step; r < rows; r += step) {
                step = take(rows - r);
                product(net, own + r * size * bytes, step, size, key_panels, whole, scores, 0);
                for (int64_t i = 0; i < step; i++) {
                    const int64_t t = (r + i) % shape->length;
                    const float *mask = shape->mask;
                    soften(net, scores + i * whole, mask ? mask + b * shape->mask_row + t * shape->mask_token : 0,
                           shape->slots, whole, shares, i * whole);
                }
                product(net, shares, step, whole, value_panels, size, mixed, 0);
                for (int64_t i = 0; i < step; i++) {
                    const int64_t head = g * share + (r + i) / shape->length, t = (r + i) % shape->length;
                    for (int64_t d = 0; d < size; d += LANES)
                        put(net, out, (b * shape->length + t) * width + head * size + d, load(mixed + i * size + d));
                }
            }
        }
}

static int64_t rounded(int64_t count) { return (count + 15) / 16 * 16; }

/* Floats of scratch memory that `decode` needs. */
int64_t decoder_scratch(const net_t *net, int64_t tokens, int64_t slots) {
    const int64_t whole = (slots + PANEL - 1) / PANEL * PANEL, heads = net->heads * net->size;
    const int64_t widest = net->hidden > net->inner ? net->hidden : net->inner;
    return rounded(tokens * (widest > heads ? widest : heads)) + rounded(tokens * (heads + 2 * net->groups * net->size)) +
           rounded(tokens * heads) + rounded(tokens * 2 * net->inner) + 2 * rounded(whole * net->size) +
           2 * rounded(MOST_ROWS * whole);
}

/* Run all layers.
 *
 * x: [M, E] embeddings, used up. keys, values: per layer, the stores of the first row; new tokens are written at `start`. out: [M, E] in the
 * weights' type, after the final norm.
 */
void decode(const net_t *net, const shape_t *shape, float *x, void *const *keys, void *const *values, float *scratch,
             void *out) {
    const int64_t tokens = shape->rows * shape->length, size = net->size, inner = net->inner;
    const int64_t share = net->heads / net->groups, heads = net->heads * size, width = heads + 2 * net->groups * size;
    const int64_t whole = (shape->slots + PANEL - 1) / PANEL * PANEL;
    const int64_t widest = net->hidden > inner ? net->hidden : inner;
    float *read = scratch;
    float *qkv = read + rounded(tokens * (widest > heads ? widest : heads));
    float *queries = qkv + rounded(tokens * width);
    float *gate_up = queries + rounded(tokens * heads);
    float *key_panels = gate_up + rounded(tokens * 2 * inner);
    float *value_panels = key_panels + rounded(whole * size);
    float *scores = value_panels + rounded(whole * size);
    float *shares = scores + rounded(MOST_ROWS * whole);
    const float root = 1.0f / __builtin_sqrtf((float)size);
    for (int64_t l = 0; l < net->layers; l++) {
        const layer_t *layer = net->layer + l;
        normalise(net, x, tokens, layer->in_norm, read);
        product(net, read, tokens, net->hidden, layer->qkv, width, qkv, 0);
        for (int64_t b = 0; b < shape->rows; b++)
            for (int64_t t = 0; t < shape->length; t++) {
                const float *token = qkv + (b * shape->length + t) * width;
                const float *cos = shape->cos + b * shape->turn_stride + t * size;
                const float *sin = shape->sin + b * shape->turn_stride + t * size;
                for (int64_t h = 0; h < net->heads; h++)
                    turn(net, token + h * size, layer->q_norm, cos, sin, root, queries,
                         (((b * net->groups + h / share) * share + h % share) * shape->length + t) * size);
                for (int64_t g = 0; g < net->groups; g++) {
                    const int64_t at = b * shape->row_stride + g * shape->group_stride + (shape->start[b] + t) * shape->slot_stride;
                    const float *value = token + heads + (net->groups + g) * size;
                    turn(net, token + heads + g * size, layer->k_norm, cos, sin, 1.0f, keys[l], at);
                    for (int64_t i = 0; i < size; i += LANES) put(net, values[l], at + i, load(value + i));
                }
            }
        attend(net, shape, queries, keys[l], values[l], key_panels, value_panels, scores, shares, read);
        product(net, read, tokens, heads, layer->out, net->hidden, x, 1);
        normalise(net, x, tokens, layer->post_norm, read);
        product(net, read, tokens, net->hidden, layer->gate_up, 2 * inner, gate_up, 0);
        gate(net, gate_up, tokens, read);
        product(net, read, tokens, inner, layer->down, net->hidden, x, 1);
    }
    normalise(net, x, tokens, net->norm, out);
}
