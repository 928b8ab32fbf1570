"""Muon for the matrices, AdamW for embeddings and vectors; or AdamW for all. And the average of the weights.

Muon (K. Jordan, 2024) orthogonalises the momentum of each matrix. In runs of a few thousand steps it needs roughly half the
tokens of AdamW for the same loss, and one core-minute spent here is worth more than any other. Float32 throughout: PyTorch's own
Muon works in bfloat16, which a CPU without AVX-512 multiplies three times slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from dllm.train.config import TrainConfig
from dllm.train.distributed import Division

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Quintic Newton-Schulz coefficients, chosen for slope at zero."""


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix, roughly: singular values land in about [0.7, 1.2]. Packed experts [X, N, K] one by one."""
    if matrix.dim() > 2:
        return torch.stack([orthogonalise(part, steps) for part in matrix])
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = _A * x + torch.addmm(gram, gram, gram, beta=_B, alpha=_C) @ x
    flat: Tensor = x.T if tall else x
    return flat


def direction(matrix: Tensor) -> Tensor:
    """Orthogonalised and scaled by sqrt(max(1, rows / columns))."""
    return orthogonalise(matrix) * math.sqrt(max(1.0, matrix.shape[-2] / matrix.shape[-1]))


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised and scaled.

    Args:
        params: By name.
        division: Where tensor ranks hold parts of the matrices: what is orthogonalised is the whole matrix, as in one process.
    """

    def __init__(
        self,
        params: Mapping[str, nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        division: Division | None = None,
    ) -> None:
        super().__init__(params.values(), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._names = {parameter: name for name, parameter in params.items()}
        self._division = division

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum: Tensor = state["momentum"]
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                function = direction
                if self._division is not None:
                    function = partial(self._division.of_whole, direction, self._names[parameter])
                update = _whole(function, parameter.grad.lerp(momentum, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"])


def _whole(function: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
    """A function of a whole matrix, where each rank may hold some of its rows: every rank computes all and keeps its own."""
    if not isinstance(matrix, DTensor):
        return function(matrix)
    mesh, full = matrix.device_mesh, function(matrix.full_tensor())
    return DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim).redistribute(mesh, matrix.placements)


def build(
    parameters: Mapping[str, nn.Parameter], config: TrainConfig, division: Division | None = None
) -> list[torch.optim.Optimizer]:
    """The optimisers of a run, over the parameters that learn. Each group keeps its peak rate in `peak_lr`."""
    vectors = [p for p in parameters.values() if p.dim() < 2]
    tables = {name for name, p in parameters.items() if p.dim() >= 2 and ("embed" in name or "head" in name)}
    embeddings = [parameters[name] for name in parameters if name in tables]
    matrices = {name: p for name, p in parameters.items() if p.dim() >= 2 and name not in tables}
    optimisers: list[torch.optim.Optimizer]
    if config.optimiser == "adamw":
        decayed = {"params": [*matrices.values(), *embeddings], "weight_decay": config.weight_decay}
        groups = [group for group in (decayed, {"params": vectors, "weight_decay": 0.0}) if group["params"]]
        optimisers = [torch.optim.AdamW(groups, lr=config.adamw_lr, betas=(0.9, 0.95))]
    else:
        groups = [
            {"params": embeddings, "lr": config.embedding_lr},
            {"params": vectors, "lr": config.vector_lr},
        ]
        groups = [group for group in groups if group["params"]]
        optimisers = []
        if matrices:
            optimisers.append(Muon(matrices, config.matrix_lr, config.momentum, config.weight_decay, division))
        if groups:
            optimisers.append(torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["peak_lr"] = group["lr"]
    return optimisers


def learning_rate_factor(step: int, progress: float, config: TrainConfig) -> float:
    """Share of the peak rates: linear warm-up by steps, then the schedule down to `final_lr_fraction`.

    linear: constant, then linear decay over the last `decay_share` of the budget. A constant middle lets a run be resumed with a larger
    budget as if it had been planned so. cosine: half a wave over the whole budget.
    """
    if config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        left = min(1.0, (1.0 - progress) / config.decay_share)
    decay = config.final_lr_fraction + (1 - config.final_lr_fraction) * left
    return min(1.0, (step + 1) / max(1, config.warmup_steps)) * decay


class Ema:
    """Exponential moving average of the weights, with a warm-up so that early averages are not the random start."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in parameters.items():
            self.weights[name].lerp_(parameter, 1 - decay)
