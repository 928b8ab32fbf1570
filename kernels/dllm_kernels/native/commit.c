/* Statistics of rows of logits, in two passes over each: `dllm_kernels.commit_from_logits` at temperature 0.
 *
 * N rows, V vocabulary.
 */
#include "vector.h"

#include <float.h>
#include <math.h>

/* Numbers from `z` on, as many as are left; -inf behind them and in place of what is no number. */
static inline vec allowed(const float *z, int64_t left) {
    const vec v = load_part(z, left, -INFINITY);
    /* A NaN is not ordered, not even to itself. */
    return smaller(either(v == v, v, spread(-INFINITY)), spread(FLT_MAX));
}

void commit_rows(const float *logits, int64_t rows, int64_t vocabulary, int64_t between, int64_t *token,
                 float *probability, float *margin, float *entropy) {
    const ints lanes = order();
    for (int64_t n = 0; n < rows; n++) {
        const float *z = logits + n * between;
        vec best = spread(-INFINITY), second = best;
        ints where = lanes - lanes;
        for (int64_t i = 0; i < vocabulary; i += LANES) {
            const vec v = allowed(z + i, vocabulary - i);
            const ints is_more = v > best;
            second = larger(second, smaller(v, best));
            best = larger(best, v);
            where = (is_more & (lanes + (int32_t)i)) | (~is_more & where);
        }
        int first = 0;
        for (int l = 1; l < LANES; l++)
            if (best[l] > best[first] || (best[l] == best[first] && where[l] < where[first])) first = l;
        const float top = best[first];
        if (top == -INFINITY) {
            token[n] = -1;
            probability[n] = margin[n] = entropy[n] = 0.0f;
            continue;
        }
        float runner_up = second[first];
        for (int l = 0; l < LANES; l++)
            if (l != first && best[l] > runner_up) runner_up = best[l];
        vec sums = spread(0.0f), weighed = sums;
        for (int64_t i = 0; i < vocabulary; i += LANES) {
            /* exp of the floor is exactly 0, and 0 times it is 0: a finite stand-in for -inf. */
            const vec x = larger(allowed(z + i, vocabulary - i) - spread(top), spread(-1e4f));
            const vec weight = exponential(x);
            sums = sums + weight;
            weighed = fused(weight, x, weighed);
        }
        const float sum = total(sums);
        const float nats = logf(sum) - total(weighed) / sum;
        token[n] = where[first];
        probability[n] = 1.0f / sum;
        margin[n] = -expm1f(runner_up - top) / sum;
        entropy[n] = nats > 0.0f ? nats : 0.0f;
    }
}
