"""What one denoising step needs of every live row of logits: its token, and how sure the model is of it.

Dimensions: N rows (live positions), V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from dllm_kernels.choose import choose
from dllm_kernels.commit_from_logits.contract import CommitStats as CommitStats
from dllm_kernels.commit_from_logits.contract import Given as Given
from dllm_kernels.commit_from_logits.contract import check_arguments, empty_stats


def commit_from_logits(
    logits: Tensor,
    *,
    temperature: float = 0.0,
    seed: int | Tensor = 0,
    forbidden: Tensor | None = None,
    given: Given | None = None,
    out: CommitStats | None = None,
) -> CommitStats:
    """Pick each row's token and measure the row.

    All arithmetic is in float32 whatever the dtype of the logits, so a bfloat16 row that is 0.9999 sure says so. Statistics are
    those of the softmax at temperature 1 over the allowed tokens: a threshold means the same however tokens are drawn.

    Args:
        logits: [N, V], float32, bfloat16 or float16; strides are free. Not changed. A NaN counts as a forbidden token, and +inf as
            the largest finite number.
        temperature: 0 takes the best token, ties to the lowest index. Above 0 (at least 0.001) the token is drawn from
            softmax(logits / temperature) by the Gumbel-max trick.
        seed: Names the noise: the same seed draws the same tokens on every device. An integer in [0, 2^63) gives row r the noise
            of (seed, r). An int64 tensor [N] on the logits' device gives each row its own, which makes a row's draw independent of
            the rows beside it. The noise resolves events down to 2^-33 per token.
        forbidden: [V], bool, on the logits' device: True for tokens that are never picked, such as the mask token.
        given: A token per row whose log-probability is wanted, and where it is written.
        out: Where to write, for callers that keep their buffers (CUDA graphs); new tensors when None.

    Returns:
        A row in which no token is allowed, or whose allowed logits are all -inf or NaN, has token -1, zeros, and -inf for the given token.

    Raises:
        ValueError: If a shape, dtype, device, temperature or seed is not as above.

    Source: softmax statistics as in LLaDA and Dream (arXiv:2502.09992, arXiv:2508.15487); Gumbel-max with a float32-safe tail
    (arXiv:2409.02908).
    """
    check_arguments(logits, temperature, seed, forbidden, given, out)
    stats = empty_stats(logits) if out is None else out
    if len(logits):
        choose("commit_from_logits", logits).commit_from_logits(logits, temperature, seed, forbidden, given, stats)
    return stats
