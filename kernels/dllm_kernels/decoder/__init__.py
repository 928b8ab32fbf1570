"""All layers of a small decoder in one call (`native/decoder.c`), where PyTorch would make some two hundred.

What it answers is what the layers answer one by one; in bfloat16 it rounds less often: activations stay float32 between products.

Dimensions: B rows, T new tokens, S slots, H query heads, G key/value heads, D head size, E hidden size, F inner size, N outputs, K inputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dllm_kernels import native
from dllm_kernels.checks import check_tensor

PANEL = 32
"""Sizes come in multiples of it."""


class LayerWeights(NamedTuple):
    """Of one layer: norms [E] and [D], products [N, K], all in one type. Without norms of heads both are None."""

    in_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    post_norm: Tensor
    qkv: Tensor
    """[(H + 2G) D, E]."""
    out: Tensor
    """[E, H D]."""
    gate_up: Tensor
    """[2F, E]."""
    down: Tensor
    """[E, F]."""


@dataclass(frozen=True, slots=True)
class Geometry:
    heads: int
    groups: int
    size: int
    """D."""
    eps: float


class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in LayerWeights._fields]


class _Net(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "hidden", "inner", "heads", "groups", "size")),
        ("eps", ctypes.c_float),
        ("is_half", ctypes.c_int32),
        ("norm", ctypes.c_void_p),
        ("layer", ctypes.POINTER(_Layer)),
    ]


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "length", "slots", "row_stride", "group_stride", "slot_stride")),
        ("start", ctypes.c_void_p),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("turn_stride", ctypes.c_int64),
        ("mask", ctypes.c_void_p),
        ("mask_row", ctypes.c_int64),
        ("mask_token", ctypes.c_int64),
    ]


def takes(dtype: torch.dtype) -> bool:
    """Whether the compiled code multiplies weights of a type. Products in bfloat16 need the processor's units and a compiler that knows them."""
    library = native.library()
    return library is not None and (dtype == torch.float32 or (dtype == torch.bfloat16 and bool(library.has_half())))


class Decoder:
    """The layers of one network, packed for products on one core.

    Args:
        layers: Copied.
        norm: [E], the final norm's weight.

    Raises:
        ValueError: If there is no compiled code (`native.prepare`), or it does not take these shapes and types: float32, or bfloat16 where it
            multiplies in it (`takes`), all sizes in multiples of 32.
    """

    def __init__(self, layers: Sequence[LayerWeights], norm: Tensor, geometry: Geometry) -> None:
        library = native.library()
        if library is None:
            raise ValueError(f"decoder: expected compiled code, got none: {native.prepare().reason}")
        self._library, self.geometry, self.dtype = library, geometry, layers[0].qkv.dtype
        if not takes(self.dtype):
            raise ValueError(f"qkv: expected float32, or bfloat16 on a processor with units for it, got {self.dtype}")
        self.hidden, self.inner = layers[0].down.shape
        heads, width = geometry.heads * geometry.size, (geometry.heads + 2 * geometry.groups) * geometry.size
        for name, number in (("E", self.hidden), ("F", self.inner), ("D", geometry.size)):
            if number % PANEL:
                raise ValueError(f"{name}: expected a multiple of {PANEL}, got {number}")
        shapes = {
            "in_norm": (self.hidden,),
            "q_norm": (geometry.size,),
            "k_norm": (geometry.size,),
            "post_norm": (self.hidden,),
            "qkv": (width, self.hidden),
            "out": (self.hidden, heads),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
        }
        self._kept: list[Tensor] = []
        """What the structures point to."""
        self._layers = (_Layer * len(layers))()
        for place, layer in zip(self._layers, layers, strict=True):
            for name, tensor in zip(layer._fields, layer, strict=True):
                if tensor is not None:
                    held = tensor.detach().contiguous()
                    check_tensor(name, held, shapes[name], self.dtype, torch.device("cpu"))
                    setattr(place, name, self._hold(held))
        check_tensor("norm", norm.detach(), (self.hidden,), self.dtype, torch.device("cpu"))
        self._net = _Net(
            len(layers),
            self.hidden,
            self.inner,
            geometry.heads,
            geometry.groups,
            geometry.size,
            geometry.eps,
            int(self.dtype == torch.bfloat16),
            self._hold(norm.detach()),
            self._layers,
        )

    @property
    def held_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._kept)

    def _hold(self, tensor: Tensor) -> int:
        """Norms as float32, products packed; where they lie."""
        if tensor.dim() == 1:
            kept = tensor.to(torch.float32, copy=True)
        else:
            kept = torch.empty_like(tensor)
            self._library.pack_weights(
                ctypes.c_void_p(tensor.data_ptr()),
                *map(ctypes.c_int64, tensor.shape),
                ctypes.c_int32(int(tensor.dtype == torch.bfloat16)),
                ctypes.c_void_p(kept.data_ptr()),
            )
        self._kept.append(kept)
        return kept.data_ptr()

    def __call__(
        self,
        x: Tensor,
        cos: Tensor,
        signed_sin: Tensor,
        stores: Sequence[tuple[Tensor, Tensor]],
        start: int | Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Hidden states behind the final norm, [B, T, E] in the weights' type. Other threads of Python run meanwhile.

        Args:
            x: [B, T, E] embeddings, of any float type.
            cos: [B or 1, 1, T, D] float32.
            signed_sin: The same, its first D / 2 columns negated.
            stores: Per layer keys and values, [B, G, S', D] in the weights' type, all with the same strides, heads' numbers contiguous. The
                new tokens' are written at `start`.
            start: First slot written; [B] int64 gives each row its own.
            mask: [B or 1, 1, T or 1, S] bool (true where a query may look) or a float to be added; None is all slots in [0, start + T).

        Raises:
            ValueError: If a shape, type, device or slot is not as above.
        """
        rows, length, _ = x.shape
        check_tensor("x", x.contiguous(), (rows, length, self.hidden), None, torch.device("cpu"))
        turned = (cos.shape[0] if cos.shape[0] == 1 else rows, 1, length, self.geometry.size)
        cos, signed_sin = cos.contiguous(), signed_sin.contiguous()
        for name, table in (("cos", cos), ("signed_sin", signed_sin)):
            check_tensor(name, table, turned, torch.float32, torch.device("cpu"))
        starts = [start] * rows if isinstance(start, int) else start.tolist()
        slots = max(starts) + length if mask is None else mask.shape[-1]
        stride = self._check_stores(stores, rows, starts, length, slots)
        added = None if mask is None else _added(mask, rows, length)
        # Of its own: it is used up.
        stream = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        places = (ctypes.c_int64 * rows)(*starts)
        shape = _Shape(
            rows,
            length,
            slots,
            *stride[:3],
            ctypes.cast(places, ctypes.c_void_p),
            cos.data_ptr(),
            signed_sin.data_ptr(),
            cos.stride(0) if turned[0] > 1 else 0,
            None if added is None else added.data_ptr(),
            0 if added is None or added.shape[0] == 1 else added.stride(0),
            0 if added is None or added.shape[2] == 1 else added.stride(2),
        )
        pointers = ctypes.c_void_p * len(stores)
        scratch = torch.empty(
            self._library.decoder_scratch(
                ctypes.byref(self._net), ctypes.c_int64(rows * length), ctypes.c_int64(slots)
            ),
            dtype=torch.float32,
        )
        out = torch.empty(rows, length, self.hidden, dtype=self.dtype)
        self._library.decode(
            ctypes.byref(self._net),
            ctypes.byref(shape),
            ctypes.c_void_p(stream.data_ptr()),
            pointers(*(keys.data_ptr() for keys, _ in stores)),
            pointers(*(values.data_ptr() for _, values in stores)),
            ctypes.c_void_p(scratch.data_ptr()),
            ctypes.c_void_p(out.data_ptr()),
        )
        return out

    def _check_stores(
        self, stores: Sequence[tuple[Tensor, Tensor]], rows: int, starts: Sequence[int], length: int, slots: int
    ) -> tuple[int, ...]:
        """What is written outside is memory that somebody else owns; the strides that all share."""
        if len(stores) != len(self._layers):
            raise ValueError(f"stores: expected {len(self._layers)}, one per layer, got {len(stores)}")
        first = stores[0][0]
        room = first.shape[2] if first.dim() == 4 else 0
        wanted = (rows, self.geometry.groups, room, self.geometry.size)
        for keys, values in stores:
            for name, place in (("keys", keys), ("values", values)):
                if place.shape != wanted or place.dtype != self.dtype or place.stride() != first.stride():
                    raise ValueError(
                        f"{name}: expected {list(wanted)} {self.dtype} with strides {first.stride()}, "
                        f"got {list(place.shape)} {place.dtype} {place.stride()}"
                    )
        if first.device.type != "cpu" or first.stride(3) != 1:
            raise ValueError(f"keys: expected contiguous heads on the CPU, got {first.stride()} on {first.device}")
        if len(starts) != rows or min(starts) < 0 or max(max(starts) + length, slots) > room:
            raise ValueError(f"start: expected {rows} with {length} tokens in {room} slots, got {starts}")
        return first.stride()


def _added(mask: Tensor, rows: int, length: int) -> Tensor:
    """What is added to scores, float32, numbers of a query contiguous."""
    is_right = mask.dim() == 4 and mask.shape[0] in (1, rows) and mask.shape[1] == 1 and mask.shape[2] in (1, length)
    if not is_right or mask.device.type != "cpu":
        raise ValueError(
            f"mask: expected [{rows} or 1, 1, {length} or 1, S] on the CPU, got {list(mask.shape)} on {mask.device}"
        )
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))
    return mask.float().contiguous()
