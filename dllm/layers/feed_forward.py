"""The gated feed-forward (SwiGLU, GeGLU: arXiv:2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn

from dllm.spec import Activation
from dllm_kernels import swiglu


class FeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: Activation = "silu") -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        self.activation: Activation = activation

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(swiglu(self.gate_up_proj(x), self.activation))
        return down
