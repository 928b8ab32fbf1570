"""What a model family must tell about itself, and what its network promises. One file per family holds one `Family` record.

Dimensions: B rows, T new tokens, S stored tokens, G key/value heads, D head size, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from dllm.errors import ConfigError
from dllm.spec import ModelSpec

EIGHT_BITS = torch.float8_e4m3fn


class LayerStore(NamedTuple):
    """Room for rotated keys and values of one layer, each [B, G, S, D]; a forward writes its own tokens into it.

    In the weights' type, or in float8_e4m3fn with a scale for each head of each token: then a token's bytes depend on that token alone.
    """

    keys: Tensor
    values: Tensor
    key_scale: Tensor | None = None
    """[B, G, S] float32."""
    value_scale: Tensor | None = None

    @classmethod
    def zeros(cls, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> LayerStore:
        """Room of `shape` [B, G, S, D] on the device of `like`, in its type or in e4m3.

        Raises:
            ConfigError: If the type is neither.
        """
        keys, values = (torch.zeros(*shape, dtype=dtype or like.dtype, device=like.device) for _ in range(2))
        if dtype in (None, like.dtype):
            return cls(keys, values)
        if dtype != EIGHT_BITS:
            raise ConfigError("cache_dtype", dtype, f"{like.dtype}, which the weights have, or {EIGHT_BITS}")
        return cls(keys, values, *(torch.zeros(*shape[:3], device=like.device) for _ in range(2)))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All that is stored of the tokens, to be copied: [B, G, S, ...] each, eight-bit floats as the bytes they are."""
        if self.key_scale is None or self.value_scale is None:
            return self.keys, self.values
        return self.keys.view(torch.uint8), self.values.view(torch.uint8), self.key_scale, self.value_scale

    def of(self, rows: int | slice) -> LayerStore:
        """One row, without its dimension, or several; as views."""
        if self.key_scale is None or self.value_scale is None:
            return LayerStore(self.keys[rows], self.values[rows])
        return LayerStore(*(part[rows] for part in (self.keys, self.values, self.key_scale, self.value_scale)))

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.parts)


class Sight(NamedTuple):
    """A mask as one number per query: it sees that many slots, from the first, its own among them."""

    visible: Tensor
    """[B, T] int32."""
    longest: int
    """No query sees more; on the host. At most the slots there are."""


class Head(NamedTuple):
    """The product behind the hidden states, where it is one product and no more: logits are `hidden @ (weight * scale).T`."""

    weight: Tensor
    """[V, E], in the hidden states' dtype, or int8 with a scale."""
    scale: Tensor | None = None
    """[V] float32."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor on disk lives in memory: a parameter or buffer, and a box of it.

    Projections that read the same input are stored fused in memory, experts packed; so a tensor on disk is a run of rows of one
    parameter, of one of its experts. `expert` indexes the parameter's first dimension; `rows` of 0 is all of them.
    """

    parameter: str
    first: int = 0
    rows: int = 0
    expert: int | None = None
    is_optional: bool = False
    """A factor that is one when the checkpoint lacks it."""

    def of(self, tensor: Tensor) -> Tensor:
        """The part of the parameter that this slot names, as a view."""
        place = tensor if self.expert is None else tensor[self.expert]
        return place[self.first : self.first + self.rows] if self.rows else place


@dataclass(frozen=True, slots=True)
class DecodeDefaults:
    """How a family's checkpoints are decoded unless the caller says otherwise (its model card or published script)."""

    rule: str = "threshold"
    """A name in `dllm.selection.RULES`."""
    threshold: float = 0.9
    edit_threshold: float | None = None
    """Overwrite decided tokens above it (LLaDA2.1)."""
    temperature: float = 0.0
    block: int = 32
    """Blocks a full-mask canvas is decoded in, left to right; 0 is the whole canvas at once."""
    entropy_bound: float = 0.1
    hold_ends: bool = False
    no_stutter: bool = False
    steps: int = 0
    """Steps of a uniform-corruption canvas; 0 for families that need none."""


@runtime_checkable
class Network(Protocol):
    """The forward of a family: tokens, positions and a mask go in, hidden states come out. An `nn.Module`.

    It knows nothing of canvases, steps, drafts or caches; whoever calls brings the mask.
    """

    spec: ModelSpec
    takes_sight: bool
    """Whether `mask` may be a `Sight`: attention looks at a beginning of the slots and no further conditions of its own."""

    def new_stores(self, rows: int, length: int, dtype: torch.dtype | None = None) -> list[LayerStore]:
        """Zeroed room for `length` tokens of `rows` sequences, one store per layer, on the weights' device, in their dtype or float8_e4m3fn."""
        ...

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor | Sight | None,
        stores: Sequence[LayerStore] | None = None,
        start: int | Tensor = 0,
        **extra: Any,
    ) -> Tensor:
        """Hidden states after the final norm, [B, T, E].

        Args:
            ids: [B, T] int64.
            positions: [B, T] int64, logical positions, below `max_position_embeddings`.
            mask: [B or 1, 1, T or 1, S] bool (true where a query may look) or additive in the model's dtype, over the first S slots
                of the stores (without stores: over the T tokens); None when all look everywhere in [0, start + T). Every query must
                see at least one key. Or a `Sight` with stores, for networks that take one (`takes_sight`): their attention is then the
                kernel's, for which no mask is laid out.
            stores: Keys and values of earlier tokens, per layer. The new tokens' are written at `start`; slots behind that stay.
            start: First slot to write; an int64 tensor [B] gives each row its own.
            extra: Only for families that need it (`soft` for self-conditioning, `causal` for an encoder pass).
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., E] to [..., V]."""
        ...

    def head(self) -> Head | None:
        """The product that `logits` is, or None where it is more than that."""
        ...

    def reset_buffers(self) -> None:
        """Recompute what no checkpoint holds (rotary tables)."""
        ...

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Fresh random weights."""
        ...


BuildNetwork: TypeAlias = Callable[[ModelSpec], nn.Module]


@dataclass(frozen=True, slots=True)
class Family:
    """One family of checkpoints."""

    name: str
    model_types: tuple[str, ...]
    """`model_type` values in config.json."""
    architectures: tuple[str, ...]
    """`architectures[0]` values; looked at before `model_type`."""
    read_config: Callable[[Mapping[str, Any]], ModelSpec]
    """Raises `ConfigError` naming the key that makes no sense; `KeyError` for a missing one is translated by the loader."""
    write_config: Callable[[ModelSpec], dict[str, Any]]
    """The published layout, so that `read_config(write_config(spec)) == spec`."""
    tensors: Callable[[ModelSpec], dict[str, Slot]]
    """Every tensor on disk by its published name."""
    build: BuildNetwork
    defaults: DecodeDefaults = field(default_factory=DecodeDefaults)
    is_this: Callable[[Mapping[str, Any], frozenset[str]], bool] | None = None
    """Tie-breaker where families share a `model_type`: the config and the tensor names on disk (empty when unknown)."""
    landmarks: tuple[str, ...] = ()
    """Names of tensors on disk, all there, that no other family's checkpoints have; looked at when the config tells nothing."""
    ignored: tuple[str, ...] = ()
    """Prefixes of tensors on disk that are known and not used."""
