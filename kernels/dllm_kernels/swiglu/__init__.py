"""The gate of a feed-forward: activation(gate) * up.

Dimensions: F expert or inner size.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from torch import Tensor

from dllm_kernels.checks import check_floating
from dllm_kernels.choose import choose

Activation: TypeAlias = Literal["silu", "gelu_tanh"]


def swiglu(gate_up: Tensor, activation: Activation = "silu") -> Tensor:
    """Gate and up, as one product gives them, to what goes down.

    In half precision the activation is computed in float32 and rounded before `up` multiplies.

    Args:
        gate_up: [..., 2F], floating point: the gate's F columns, then up's.
        activation: "gelu_tanh" is GELU with the tanh approximation.

    Returns:
        [..., F], in the same dtype.

    Raises:
        ValueError: If the last dimension is odd or empty, or there is no such activation.

    Source: arXiv:2002.05202.
    """
    check_floating("gate_up", gate_up)
    if gate_up.dim() < 1 or gate_up.shape[-1] == 0 or gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up: expected [..., 2F] with F above 0, got {list(gate_up.shape)}")
    if activation not in get_args(Activation):
        raise ValueError(f"activation: expected one of {', '.join(get_args(Activation))}, got {activation}")
    out: Tensor = choose("swiglu", gate_up).swiglu(gate_up, activation)
    return out
