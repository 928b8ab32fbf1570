"""Held-back likelihood of agent turns, in nats per token (their end-of-turn included).

`diffusion` is the any-order bound given the canvas width: closing tokens beyond the first are masked and not counted. `causal` is the
next-token loss of the same tokens. Source of the bound: MDLM (arXiv:2406.07524); Monte-Carlo over mask patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dllm.models.transformer import Transformer
from dllm.train import objective
from dllm.train.config import TrainConfig
from dllm.train.data import Row


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Nats per token over `answers` agent turns with `tokens` tokens."""

    diffusion: float
    causal: float
    answers: int
    tokens: int


@torch.no_grad()
def held_back_likelihood(
    model: Transformer, rows: Sequence[Row], config: TrainConfig, draws: int = 4, seed: int = 0
) -> Likelihood:
    """Score the answers of `rows`; every answer is masked `draws` times at antithetic times."""
    plain = replace(config, prefix_share=0.0, masked_tail_share=1.0, pinned_share=0.0, closing_weight=0.0, max_jump=0)
    generator = torch.Generator().manual_seed(seed)
    diffusion = causal = 0.0
    answers = tokens = 0
    for row in rows:
        lengths = torch.tensor([float(len(answer.tokens)) for answer in row.answers])
        for draw in range(draws):
            times = objective.antithetic_times(len(row.answers), generator)
            batch = objective.collate([row], times, model.spec, plain, generator)
            hidden: Tensor = model(batch.ids, batch.positions, batch.attention_mask())
            flat = hidden.flatten(0, 1)
            entropies = F.cross_entropy(model.logits(flat[batch.canvas_at]), batch.canvas_target, reduction="none")
            # collate weights are (N / k) / N per token of an answer: times N they sum to the answer's bound.
            answer_of = batch.group.flatten()[batch.canvas_at] - 1
            diffusion += float((entropies * batch.canvas_weight * lengths[answer_of]).sum()) / draws
            if draw == 0:
                at = torch.tensor([p for a in row.answers for p in range(a.start - 1, a.start - 1 + len(a.tokens))])
                target = torch.tensor([token for answer in row.answers for token in answer.tokens])
                causal += float(F.cross_entropy(model.logits(flat[at]), target, reduction="sum"))
        answers += len(row.answers)
        tokens += sum(len(answer.tokens) for answer in row.answers)
    return Likelihood(diffusion / max(1, tokens), causal / max(1, tokens), answers, tokens)


@torch.no_grad()
def causal_log_likelihood(model: Transformer, prompt: Sequence[int], reply: Sequence[int]) -> float:
    """Mean log-probability per token of a reply and its end-of-turn under the causal mode."""
    ids = torch.tensor([[*prompt, *reply, model.spec.special.end]], device=model.embed_tokens.weight.device)
    length = ids.shape[1]
    positions = torch.arange(length, device=ids.device).unsqueeze(0)
    mask = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril().view(1, 1, length, length)
    hidden: Tensor = model(ids, positions, mask)
    log_probabilities = torch.log_softmax(model.logits(hidden[0, len(prompt) - 1 : -1]).float(), dim=-1)
    return float(log_probabilities.gather(1, ids[0, len(prompt) :].unsqueeze(1)).mean())
