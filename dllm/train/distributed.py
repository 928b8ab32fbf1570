"""Several processes that train one model, started by torchrun: rows are shared by FSDP2, matrices of a layer by tensor parallelism.

The processes stand in a mesh [data, tensor]. Along data each holds a slice of every parameter and sees rows of its own
(`torch.distributed.fsdp.fully_shard`). Along tensor each holds some heads and a share of every inner size (`dllm.parallel`), and all see
the same rows: what goes into a divided module is copied (its gradient summed), what comes out is summed (its gradient copied), as in
Megatron-LM (arXiv:1909.08053).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate

from dllm.errors import ConfigError
from dllm.models.family import Family
from dllm.parallel import SUMMED, Cut, divide
from dllm.spec import ModelSpec

T = TypeVar("T")

_CUT_LAYERS = ("qkv_proj", "gate_up_proj", "o_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Place:
    """One process among those that train together; the default is one alone."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    data_rank: int = 0
    data_ranks: int = 1
    tensor_rank: int = 0
    tensor_ranks: int = 1
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process logs and saves."""
        return self.data_rank == 0 and self.tensor_rank == 0

    def gather(self, value: T) -> list[T]:
        """What each of the data ranks gave, in their order."""
        if self.mesh is None or self.data_ranks == 1:
            return [value]
        found: list[Any] = [None] * self.data_ranks
        dist.all_gather_object(found, value, group=self.mesh.get_group("data"))
        return found

    def agree(self, value: T) -> T:
        """What the first process says: clocks and signals differ."""
        if self.mesh is None:
            return value
        said: list[Any] = [value]
        dist.broadcast_object_list(said, 0)
        return cast(T, said[0])


@contextmanager
def join(device: str = "cpu", tensor_ranks: int = 1, **rendezvous: Any) -> Iterator[Place]:
    """Meet the other processes; alone where torchrun did not start this one. The group ends with the block.

    Args:
        device: cpu (over gloo) or cuda (over NCCL): each process takes the GPU of its local rank.
        rendezvous: For `init_process_group`, where the process was not started by torchrun.

    Raises:
        ConfigError: If the processes do not divide by `tensor_ranks`.
    """
    if not rendezvous and not dist.is_torchelastic_launched():
        if tensor_ranks > 1:
            raise ConfigError(
                "tensor_parallel", tensor_ranks, "1, or processes started by `torchrun --nproc-per-node N`"
            )
        yield Place(torch.device(device))
        return
    kind = torch.device(device).type
    dist.init_process_group("gloo" if kind == "cpu" else f"cpu:gloo,{kind}:nccl", **rendezvous)
    try:
        ranks = dist.get_world_size()
        if ranks % tensor_ranks:
            raise ConfigError("tensor_parallel", tensor_ranks, f"a divisor of the {ranks} processes")
        own = torch.device(kind) if kind == "cpu" else torch.device(kind, dist.get_node_local_rank())
        if kind == "cuda":
            torch.cuda.set_device(own)
        shape = (ranks // tensor_ranks, tensor_ranks)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("data", "tensor"))
        data, tensor = mesh.get_local_rank("data"), mesh.get_local_rank("tensor")
        yield Place(own, data, shape[0], tensor, shape[1], mesh)
    finally:
        dist.destroy_process_group()


# --- rows -------------------------------------------------------------------------------------------------------------


def share_rows(root: nn.Module, network: nn.Module, place: Place) -> None:
    """Divide every parameter over the data ranks.

    Args:
        root: The module whose forward is a whole forward of the network, loss included.
    """
    if place.mesh is None or place.data_ranks == 1:
        return
    from torch.distributed.fsdp import fully_shard

    mesh = place.mesh["data"]
    for layer in cast("nn.ModuleList", network.layers):
        fully_shard(layer, mesh=mesh)
    # The embedding is used at both ends of a forward: it stays whole in between.
    fully_shard(root, mesh=mesh, reshard_after_forward=False)


def whole(tensor: Tensor) -> Tensor:
    """The tensor of which the data ranks hold slices. All ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def slice_like(values: Tensor, like: Tensor) -> Tensor:
    """The slice of a whole tensor that this process holds of `like`."""
    if not isinstance(like, DTensor):
        return values
    mesh = like.device_mesh
    everywhere = DTensor.from_local(values.to(like.device), mesh, [Replicate()] * mesh.ndim)
    return everywhere.redistribute(mesh, like.placements)


def gradient_norm(gradients: Mapping[str, Tensor], place: Place, divided: frozenset[str]) -> float:
    """Norm of the gradient of the whole model.

    Args:
        divided: Names of the parameters of which the tensor ranks hold different parts.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=place.device)
    for name, gradient in gradients.items():
        local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
        sums[0 if name in divided else 1] += local.double().square().sum()
    if place.mesh is not None:
        if place.data_ranks > 1:
            dist.all_reduce(sums, group=place.mesh.get_group("data"))
        dist.all_reduce(sums[:1], group=place.mesh.get_group("tensor"))
    return float(sums.sum().sqrt())


# --- matrices ---------------------------------------------------------------------------------------------------------


class Division:
    """A network of which each tensor rank holds a part, and the way from the parts to the whole."""

    def __init__(self, network: nn.Module, family: Family, spec: ModelSpec, place: Place) -> None:
        """Divide a whole network; `self.network` is this rank's part.

        Raises:
            ConfigError: If something does not divide evenly.
        """
        assert place.mesh is not None
        self.group = place.mesh.get_group("tensor")
        self.ranks = place.tensor_ranks
        self.slots = family.tensors(spec)
        self._tensors: dict[str, list[str]] = {}
        """Tensors on disk by the parameter that holds them."""
        for name, slot in self.slots.items():
            self._tensors.setdefault(slot.parameter, []).append(name)
        local, self.cut = divide(family, spec, place.tensor_rank, place.tensor_ranks)
        self.shapes = {name: p.shape for name, p in network.named_parameters()}
        state = {name: p.detach() for name, p in network.named_parameters()}
        self.network = local.to_empty(device="cpu")
        self.network.reset_buffers()  # type: ignore[operator]
        own = dict(self.network.named_parameters())
        self.own_shapes = {name: p.shape for name, p in own.items()}
        with torch.no_grad():
            for name, values in self.part_of(state).items():
                own[name].copy_(values)
            buffers = dict(network.named_buffers())
            for name, buffer in self.network.named_buffers():
                buffer.copy_(buffers[name])
        self.divided = frozenset(name for name, p in own.items() if p.shape != self.shapes[name])
        inside = [f"{pattern}.*" for pattern in SUMMED]
        self.partial = frozenset(
            name for name in own if name not in self.divided and any(fnmatchcase(name, one) for one in inside)
        )
        """Parameters that every rank has, but with a gradient from its own heads alone."""
        self._connect()

    def _connect(self) -> None:
        group, ranks = self.group, self.ranks
        for name, module in self.network.named_modules():
            if any(fnmatchcase(name, pattern) and name.count(".") == pattern.count(".") for pattern in SUMMED):
                module.register_forward_pre_hook(lambda module, inputs: (copied(inputs[0], group), *inputs[1:]))
                module.register_forward_hook(lambda module, inputs, output: summed(output, group))
        if self.cut.is_head_cut:
            head = cast(nn.Module, self.network.lm_head)
            head.register_forward_pre_hook(lambda module, inputs: (copied(inputs[0], group),))
            head.register_forward_hook(lambda module, inputs, output: joined(output, group, ranks))

    def sum_partial(self, gradients: Mapping[str, Tensor]) -> None:
        """Complete the gradients of parameters that see only this rank's heads, in place."""
        for name in sorted(self.partial & gradients.keys()):
            gradient = gradients[name]
            dist.all_reduce(gradient.to_local() if isinstance(gradient, DTensor) else gradient, group=self.group)

    def part_of(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's part of whole tensors named as parameters."""
        found: dict[str, Tensor] = {}
        for parameter, tensor in state.items():
            part = found[parameter] = tensor.new_empty(self.own_shapes[parameter])
            for name in self._tensors[parameter]:
                self.cut.slots[name].of(part).copy_(self.cut.of(name, self.slots[name].of(tensor)))
        return found

    def whole_of(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The opposite; all ranks must ask with the same names."""
        found: dict[str, Tensor] = {}
        for parameter, part in state.items():
            if parameter not in self.divided:
                found[parameter] = part
                continue
            whole = found[parameter] = part.new_empty(self.shapes[parameter])
            for name in self._tensors[parameter]:
                own = self.cut.slots[name].of(part).contiguous()
                parts = [torch.empty_like(own) for _ in range(self.ranks)]
                dist.all_gather(parts, own, group=self.group)
                self.slots[name].of(whole).copy_(self._join(name, parts))
        return found

    def of_whole(self, function: Callable[[Tensor], Tensor], name: str, part: Tensor) -> Tensor:
        """This rank's part of a function of the whole tensor, of the same shape; all ranks must ask, and every one computes all of it."""
        return self.part_of({name: function(self.whole_of({name: part})[name])})[name]

    def _join(self, name: str, parts: list[Tensor]) -> Tensor:
        """Parts of one tensor on disk, as `Cut.of` cuts it."""
        slot = self.slots[name]
        layer = slot.parameter.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        if layer in ("o_proj", "down_proj"):
            return torch.cat(parts, -1)
        dim = 0 if parts[0].dim() == 1 else parts[0].dim() - 2
        if slot.rows or layer not in _CUT_LAYERS:
            return torch.cat(parts, dim)
        sizes = [size // self.ranks for size in _fused_sizes(self.cut, layer, parts[0].shape[dim] * self.ranks)]
        pieces = zip(*(torch.split(part, sizes, dim) for part in parts), strict=True)
        return torch.cat([torch.cat(piece, dim) for piece in pieces], dim)


def _fused_sizes(cut: Cut, layer: str, size: int) -> list[int]:
    if layer == "gate_up_proj":
        return [size // 2, size // 2]
    spec = cut.spec
    return [
        count * spec.head_dim
        for count in (spec.num_attention_heads, spec.num_key_value_heads, spec.num_key_value_heads)
    ]


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous().clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, ranks: int) -> Tensor:
        ctx.at, ctx.size = dist.get_rank(group), x.shape[-1]
        parts = [torch.empty_like(x) for _ in range(ranks)]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        return gradients[0].narrow(-1, ctx.at * ctx.size, ctx.size).contiguous(), None, None


def copied(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The tensor; its gradient is the sum of the ranks'."""
    return cast(Tensor, _Copied.apply(x, group))  # type: ignore[no-untyped-call]


def summed(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of the ranks' tensors; its gradient goes to each."""
    return cast(Tensor, _Summed.apply(x, group))  # type: ignore[no-untyped-call]


def joined(x: Tensor, group: dist.ProcessGroup, ranks: int) -> Tensor:
    """The ranks' last dimensions side by side; each gets its part of the gradient."""
    return cast(Tensor, _Joined.apply(x, group, ranks))  # type: ignore[no-untyped-call]
