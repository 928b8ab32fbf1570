/* Statistics of rows of logits, in two passes over each: `dllm_kernels.commit_from_logits` at temperature 0.
 *
 * N rows, V vocabulary.
 */
#include "vector.h"

#include <float.h>
#include <math.h>

static inline __m512 allowed(const float *z, __mmask16 here) {
    const __m512 none = _mm512_set1_ps(-INFINITY);
    const __m512 v = _mm512_mask_loadu_ps(none, here, z);
    /* A NaN is not ordered, not even to itself. */
    const __m512 known = _mm512_mask_mov_ps(none, _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q), v);
    return _mm512_min_ps(known, _mm512_set1_ps(FLT_MAX));
}

void commit_rows(const float *logits, int64_t rows, int64_t vocabulary, int64_t between, int64_t *token,
                 float *probability, float *margin, float *entropy) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t n = 0; n < rows; n++) {
        const float *z = logits + n * between;
        __m512 best = _mm512_set1_ps(-INFINITY), second = best;
        __m512i where = _mm512_set1_epi32(0);
        for (int64_t i = 0; i < vocabulary; i += 16) {
            const __m512 v = allowed(z + i, lanes_left(vocabulary - i));
            const __mmask16 is_more = _mm512_cmp_ps_mask(v, best, _CMP_GT_OQ);
            second = _mm512_max_ps(second, _mm512_min_ps(v, best));
            best = _mm512_max_ps(best, v);
            where = _mm512_mask_add_epi32(where, is_more, lanes, _mm512_set1_epi32((int32_t)i));
        }
        float of_lane[16], next[16];
        int32_t at[16];
        _mm512_storeu_ps(of_lane, best);
        _mm512_storeu_ps(next, second);
        _mm512_storeu_si512(at, where);
        int first = 0;
        for (int l = 1; l < 16; l++)
            if (of_lane[l] > of_lane[first] || (of_lane[l] == of_lane[first] && at[l] < at[first])) first = l;
        const float top = of_lane[first];
        if (top == -INFINITY) {
            token[n] = -1;
            probability[n] = margin[n] = entropy[n] = 0.0f;
            continue;
        }
        float runner_up = next[first];
        for (int l = 0; l < 16; l++)
            if (l != first && of_lane[l] > runner_up) runner_up = of_lane[l];
        __m512 total = _mm512_setzero_ps(), weighed = total;
        for (int64_t i = 0; i < vocabulary; i += 16) {
            /* exp of the floor is exactly 0, and 0 times it is 0: a finite stand-in for -inf. */
            const __m512 x = _mm512_max_ps(_mm512_sub_ps(allowed(z + i, lanes_left(vocabulary - i)), _mm512_set1_ps(top)),
                                           _mm512_set1_ps(-1e4f));
            const __m512 weight = exp16(x);
            total = _mm512_add_ps(total, weight);
            weighed = _mm512_fmadd_ps(weight, x, weighed);
        }
        const float sum = _mm512_reduce_add_ps(total);
        const float nats = logf(sum) - _mm512_reduce_add_ps(weighed) / sum;
        token[n] = at[first];
        probability[n] = 1.0f / sum;
        margin[n] = -expm1f(runner_up - top) / sum;
        entropy[n] = nats > 0.0f ? nats : 0.0f;
    }
}
