/* Decisions over canvases of a few dozen positions, where PyTorch makes dozens of calls of a few microseconds each:
 * `dllm_kernels.select` by the threshold rule, and `dllm_kernels.stutters`.
 *
 * B drafts, W canvas positions, n rows of logits, V vocabulary. Flags are bytes, 0 or 1.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* --- selection ------------------------------------------------------------------------------------------------------- */

/* A NaN is larger than any number, as PyTorch sorts. */
static int is_larger(float a, float b) { return a > b || (isnan(a) && !isnan(b)); }

void select_by_threshold(int64_t rows, int64_t width, const int64_t *token, const float *probability, const uint8_t *open,
                         const uint8_t *urgent, const uint8_t *doubtful, const float *threshold, const int64_t *least,
                         uint8_t *chosen, uint8_t *forced) {
    for (int64_t b = 0; b < rows; b++) {
        const int64_t first = b * width;
        int64_t count = 0, had = 0;
        for (int64_t at = first; at < first + width; at++) {
            const int is_open = open[at] && token[at] >= 0;
            chosen[at] = is_open && probability[at] > threshold[b] && !(doubtful && doubtful[at]);
            forced[at] = 0;
            count += is_open && urgent[at];
            had += chosen[at] && urgent[at];
        }
        const int64_t floor = least[b] > 1 ? least[b] : 1;
        for (int64_t missing = (count < floor ? count : floor) - had; missing > 0; missing--) {
            int64_t best = -1;
            for (int64_t at = first; at < first + width; at++) {
                const int waits = open[at] && token[at] >= 0 && urgent[at] && !chosen[at];
                if (waits && (best < 0 || is_larger(probability[at], probability[best]))) best = at;
            }
            chosen[best] = forced[best] = 1;
        }
    }
}

/* --- stutters -------------------------------------------------------------------------------------------------------- */

#define SPAN 3
#define UNDECIDED -1
#define OUTSIDE -2

typedef struct {
    int64_t width;
    const int64_t *tokens;
    const uint8_t *decided, *chosen; /* what counts as known; `chosen` or NULL */
    const uint8_t *is_end, *is_single; /* [V] */
} canvas_t;

static int64_t known(const canvas_t *canvas, int64_t at) {
    if (at < 0 || at >= canvas->width) return OUTSIDE;
    return canvas->decided[at] || (canvas->chosen && canvas->chosen[at]) ? canvas->tokens[at] : UNDECIDED;
}

static int is_text(const canvas_t *canvas, int64_t at) {
    const int64_t token = known(canvas, at);
    return token >= 0 && !canvas->is_end[token];
}

static int is_single(const canvas_t *canvas, int64_t at) {
    const int64_t token = known(canvas, at);
    return token >= 0 && canvas->is_single[token];
}

/* Whether a position holds the text that stands a span further on. */
static int is_equal(const canvas_t *canvas, int64_t at) {
    return is_text(canvas, at) && known(canvas, at) == known(canvas, at + SPAN);
}

/* Whether a pair of equal tokens, at `at` and a span on, would be the third in a row. */
static int completes(const canvas_t *canvas, int64_t at) {
    const int before = is_equal(canvas, at - 1), after = is_equal(canvas, at + 1);
    return (after && is_equal(canvas, at + 2)) || (before && (after || is_equal(canvas, at - 2)));
}

/* logits [n, V], changed. */
void ban_stutters(float *logits, int64_t rows, int64_t vocabulary, const int64_t *row_canvas, const int64_t *row_cell,
                  int64_t width, const int64_t *tokens, const uint8_t *decided, const uint8_t *strict, const uint8_t *is_end,
                  const uint8_t *is_single_token, const int64_t *ends, int64_t end_count) {
    for (int64_t n = 0; n < rows; n++) {
        if (!strict[row_canvas[n]]) continue;
        const int64_t first = row_canvas[n] * width, at = row_cell[n] - first;
        const canvas_t canvas = {width, tokens + first, decided + first, 0, is_end, is_single_token};
        float *z = logits + n * vocabulary;
        int64_t banned[4], count = 0;
        if (is_single(&canvas, at - 1)) banned[count++] = known(&canvas, at - 1);
        if (is_single(&canvas, at + 1)) banned[count++] = known(&canvas, at + 1);
        if (is_text(&canvas, at - SPAN) && completes(&canvas, at - SPAN)) banned[count++] = known(&canvas, at - SPAN);
        if (is_text(&canvas, at + SPAN) && completes(&canvas, at)) banned[count++] = known(&canvas, at + SPAN);
        float end = -INFINITY, stutter = -INFINITY;
        for (int64_t i = 0; i < end_count; i++)
            if (is_larger(z[ends[i]], end)) end = z[ends[i]];
        for (int64_t i = 0; i < count; i++)
            if (is_larger(z[banned[i]], stutter)) stutter = z[banned[i]];
        for (int64_t i = 0; i < count; i++) z[banned[i]] -= INFINITY;
        /* Not of a NaN. */
        if (stutter > end)
            for (int64_t i = 0; i < end_count; i++) z[ends[i]] -= INFINITY;
    }
}

/* waits [B, W]: the last new position of each stutter that decided and new tokens make together. */
void joint_stutters(int64_t rows, int64_t width, const int64_t *tokens, const uint8_t *decided, const uint8_t *chosen,
                    const uint8_t *strict, const uint8_t *is_end, const uint8_t *is_single_token, uint8_t *waits) {
    memset(waits, 0, (size_t)(rows * width));
    for (int64_t b = 0; b < rows; b++, tokens += width, decided += width, chosen += width, waits += width) {
        if (!strict[b]) continue;
        const canvas_t canvas = {width, tokens, decided, chosen, is_end, is_single_token};
        for (int64_t at = 0; at + 1 < width; at++) {
            const int are_new = chosen[at] && !decided[at] && chosen[at + 1] && !decided[at + 1];
            if (are_new && is_single(&canvas, at) && known(&canvas, at) == known(&canvas, at + 1)) waits[at + 1] = 1;
        }
        for (int64_t at = 0; at + 2 * SPAN <= width; at++) {
            if (!is_equal(&canvas, at) || !is_equal(&canvas, at + 1) || !is_equal(&canvas, at + 2)) continue;
            int64_t count = 0, last = 0;
            for (int64_t i = at; i < at + 2 * SPAN; i++)
                if (chosen[i] && !decided[i]) count++, last = i;
            if (count >= 2) waits[last] = 1;
        }
    }
}
