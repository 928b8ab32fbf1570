"""One model on several devices: every rank holds a part of each layer (Megatron-LM, arXiv:1909.08053) and runs the same engine in lockstep.

Each rank owns some heads and an equal share of every feed-forward's and every expert's inner size, so its network is the same family with
a smaller `ModelSpec`; what its attention and feed-forward give is summed over the ranks. Routers, norms and embeddings are on every
rank. An untied output head is divided by vocabulary and its logits are gathered; a tied one is on every rank, as the embedding is.

The plan goes through `parallelize_module`, with styles of our own instead of `ColwiseParallel` and `RowwiseParallel`, for three reasons:
fused projections must be divided query, key and value apart; eight-bit layers hold no parameter to distribute; and a linear layer over
DTensors takes at least 0.15 ms longer per call on the host (0.05 to 0.2 ms, one core), four times per layer and step.

Rank 0 talks to callers. It tells the others what it is asked, and what its clock says; everything else they work out themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, assert_never, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dllm.errors import ConfigError, DllmError
from dllm.models.family import Family, Slot
from dllm.spec import ModelSpec

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from dllm.cache import PrefixCache
    from dllm.costs import EngineLoad
    from dllm.draft import Draft
    from dllm.drafts import DraftSpec, Event, Plan
    from dllm.engine import Engine, Memory

T = TypeVar("T")

SUMMED = ("layers.*.self_attn", "layers.*.mlp", "layers.*.experts", "self_conditioning.mlp")
"""Modules whose outputs are sums over the ranks; a network has some of them."""

IDLE = timedelta(days=365)
"""How long the others wait for rank 0 to be asked something."""


@dataclass(frozen=True, slots=True)
class Team:
    """The ranks that share a model, as one of them sees it."""

    rank: int
    ranks: int
    device: torch.device
    mesh: DeviceMesh
    control: dist.ProcessGroup
    """Over gloo: what rank 0 tells the others."""

    def clock(self) -> float:
        """Rank 0's monotonic clock, in seconds: the ranks' engines must never differ about a deadline."""
        reading = torch.tensor([time.monotonic()], dtype=torch.float64)
        dist.broadcast(reading, 0, group=self.control)
        return float(reading)

    def tell(self, command: Command) -> None:
        """Rank 0: have the others do what this rank is about to do."""
        dist.broadcast_object_list([command], 0, group=self.control)

    def hear(self) -> Command:
        """Other ranks: wait for rank 0."""
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, 0, group=self.control)
        return cast(Command, heard[0])


@contextmanager
def join(device: str = "cpu", **rendezvous: Any) -> Iterator[Team]:
    """Meet the other ranks; the group ends with the block.

    Args:
        device: cpu, or cuda: each rank takes the GPU of its local rank.
        rendezvous: For `init_process_group`, where the process was not started by torchrun.

    Raises:
        ConfigError: If there is nobody to meet: no rendezvous, and no torchrun.
    """
    if not rendezvous and not dist.is_torchelastic_launched():
        raise ConfigError("parallel", "a single process", "processes started by `torchrun --nproc-per-node N`")
    kind = torch.device(device).type
    dist.init_process_group("gloo" if kind == "cpu" else f"cpu:gloo,{kind}:nccl", **rendezvous)
    try:
        from torch.distributed.device_mesh import init_device_mesh

        place = torch.device(kind) if kind == "cpu" else torch.device(kind, dist.get_node_local_rank())
        if kind == "cuda":
            torch.cuda.set_device(place)
        mesh = init_device_mesh(kind, (dist.get_world_size(),))
        control = dist.new_group(backend="gloo", timeout=IDLE)
        yield Team(dist.get_rank(), dist.get_world_size(), place, mesh, control)
    finally:
        dist.destroy_process_group()


# --- the weights ------------------------------------------------------------------------------------------------------


def local_spec(spec: ModelSpec, ranks: int) -> ModelSpec:
    """The geometry of one rank's part.

    Raises:
        ConfigError: If something does not divide evenly, or the family is not one whose networks can be divided.
    """
    if spec.condition_size:
        raise ConfigError("ranks", ranks, f"1: {spec.family} networks are not divided")

    def share(name: str, size: int) -> int:
        if size % ranks:
            raise ConfigError("ranks", ranks, f"a divisor of {name}, {size}")
        return size // ranks

    moe, sliding = spec.moe, spec.sliding
    if moe is not None:
        expert_size, shared_size = share("moe.expert_size", moe.expert_size), share("moe.shared_size", moe.shared_size)
        moe = replace(moe, expert_size=expert_size, shared_size=shared_size)
    if sliding is not None:
        full = share("sliding.full_key_value_heads", sliding.full_key_value_heads)
        sliding = replace(sliding, full_key_value_heads=full)
    return replace(
        spec,
        num_attention_heads=share("num_attention_heads", spec.num_attention_heads),
        num_key_value_heads=share("num_key_value_heads", spec.num_key_value_heads),
        intermediate_size=share("intermediate_size", spec.intermediate_size),
        moe=moe,
        sliding=sliding,
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of each tensor on disk a rank holds."""

    spec: ModelSpec
    """Of the whole model."""
    rank: int
    ranks: int
    slots: Mapping[str, Slot]
    """Where the parts live in the rank's network."""
    is_head_cut: bool

    def of(self, name: str, values: Tensor) -> Tensor:
        """The rank's part of a whole tensor, by its name on disk."""
        slot = self.slots[name]
        layer = slot.parameter.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
        match layer:
            case "qkv_proj" | "gate_up_proj":
                dim = 0 if values.dim() == 1 else values.dim() - 2
                # A slot that names some rows is one of the fused parts; one that names none holds them all.
                sizes = [values.shape[dim]] if slot.rows else self._fused(layer, values.shape[dim])
                parts = [self._share(part, dim) for part in torch.split(values, sizes, dim)]
                return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
            case "o_proj" | "down_proj":
                return self._share(values, values.dim() - 1)
            case "lm_head" if self.is_head_cut:
                return self._share(values, 0)
            case _:
                return values

    def _fused(self, layer: str, size: int) -> list[int]:
        if layer == "gate_up_proj":
            return [size // 2, size // 2]
        heads = (self.spec.num_attention_heads, self.spec.num_key_value_heads, self.spec.num_key_value_heads)
        return [count * self.spec.head_dim for count in heads]

    def _share(self, values: Tensor, dim: int) -> Tensor:
        size = values.shape[dim] // self.ranks
        return values.narrow(dim, self.rank * size, size)


def divide(family: Family, spec: ModelSpec, rank: int, ranks: int) -> tuple[nn.Module, Cut]:
    """One rank's network, without memory, and how to fill it. `connect` makes it whole.

    Raises:
        ConfigError: See `local_spec`.
    """
    local = local_spec(spec, ranks)
    with torch.device("meta"):
        network = family.build(local)
        is_head_cut = network.lm_head is not None and not spec.vocab_size % ranks
        if is_head_cut:
            network.lm_head = nn.Linear(spec.hidden_size, spec.vocab_size // ranks, bias=False)
    return network, Cut(spec, rank, ranks, family.tensors(local), is_head_cut)


def connect(network: nn.Module, team: Team, cut: Cut) -> None:
    """Let the ranks' networks add up. Last of all: layers that are replaced later lose what connects them."""
    from torch.distributed.tensor.parallel import parallelize_module

    parallelize_module(network, team.mesh, _plan(network, cut.is_head_cut))


def _plan(network: nn.Module, is_head_cut: bool) -> dict[str, Any]:
    """Styles by the names of the modules that they are for."""
    from torch.distributed.tensor.parallel import ParallelStyle

    class Summed(ParallelStyle):
        """The output is a sum over the ranks."""

        def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
            group = device_mesh.get_group()
            module.register_forward_hook(lambda module, inputs, output: sum_over_ranks(output, group))
            return module

    class Gathered(ParallelStyle):
        """The last dimension of the output is the ranks' outputs side by side."""

        def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
            group, ranks = device_mesh.get_group(), device_mesh.size()
            module.register_forward_hook(lambda module, inputs, output: gather(output, group, ranks))
            return module

    names = {name for name, _ in network.named_modules()}
    plan: dict[str, Any] = {name: Summed() for name in SUMMED if name.replace("*", "0") in names}
    return plan | ({"lm_head": Gathered()} if is_head_cut else {})


def sum_over_ranks(output: Tensor, group: dist.ProcessGroup) -> Tensor:
    """In place, in the output's type; the same bits on every rank."""
    dist.all_reduce(output, group=group)
    return output


def gather(output: Tensor, group: dist.ProcessGroup, ranks: int) -> Tensor:
    """[..., V / ranks] to [..., V], in order of the ranks."""
    parts = [torch.empty_like(output) for _ in range(ranks)]
    dist.all_gather(parts, output.contiguous(), group=group)
    return torch.cat(parts, dim=-1)


# --- the engine -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submit:
    spec: DraftSpec


@dataclass(frozen=True, slots=True)
class Replan:
    number: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class Revise:
    number: int
    prompt: tuple[int, ...]
    plan: Plan | None


@dataclass(frozen=True, slots=True)
class Cancel:
    number: int


@dataclass(frozen=True, slots=True)
class Warm:
    conversation: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    conversation: str


@dataclass(frozen=True, slots=True)
class Round:
    numbers: tuple[int, ...]
    """Drafts that the engine holds: a rank that holds others has fallen out of step."""


@dataclass(frozen=True, slots=True)
class Stop:
    pass


Command: TypeAlias = Submit | Replan | Revise | Cancel | Warm | Forget | Round | Stop


class LeadingEngine:
    """Rank 0's engine, as `Engine` promises it: the other ranks do first whatever this one is asked. One thread at a time."""

    def __init__(self, engine: Engine, team: Team) -> None:
        self.engine, self.team = engine, team

    @property
    def drafts(self) -> tuple[Draft, ...]:
        return self.engine.drafts

    @property
    def cache(self) -> PrefixCache:
        """Of this rank; the others' are as full."""
        return self.engine.cache

    def submit(self, spec: DraftSpec) -> Draft:
        self.team.tell(Submit(spec))
        return self.engine.submit(spec)

    def replan(self, draft: Draft, plan: Plan) -> None:
        self.team.tell(Replan(draft.number, plan))
        self.engine.replan(draft, plan)

    def revise(self, draft: Draft, prompt: Sequence[int], plan: Plan | None = None) -> None:
        self.team.tell(Revise(draft.number, tuple(prompt), plan))
        self.engine.revise(draft, prompt, plan)

    def cancel(self, draft: Draft) -> None:
        self.team.tell(Cancel(draft.number))
        self.engine.cancel(draft)

    def warm(self, conversation: str, tokens: Sequence[int]) -> int:
        self.team.tell(Warm(conversation, tuple(tokens)))
        return self.engine.warm(conversation, tokens)

    def forget(self, conversation: str) -> None:
        self.team.tell(Forget(conversation))
        self.engine.forget(conversation)

    def run_round(self) -> list[Event]:
        self.team.tell(Round(tuple(draft.number for draft in self.engine.drafts)))
        return self.engine.run_round()

    def load(self, width: int = 32) -> EngineLoad:
        return self.engine.load(width)

    def memory(self) -> Memory:
        """Of this rank."""
        return self.engine.memory()


def run(engine: Engine, team: Team, lead: Callable[[LeadingEngine], T]) -> T | None:
    """On rank 0 what `lead` gives, on the others None once rank 0 is done. The engine's clock must be `team.clock`."""
    if team.rank:
        follow(engine, team)
        return None
    try:
        return lead(LeadingEngine(engine, team))
    finally:
        team.tell(Stop())


def follow(engine: Engine, team: Team) -> None:
    """Do what rank 0 does until it stops.

    An error that the engine documents is rank 0's to report. Any other ends this process, and torchrun then ends the others.
    """
    while not isinstance(command := team.hear(), Stop):
        try:
            obey(engine, command)
        except DllmError:
            continue


def obey(engine: Engine, command: Submit | Replan | Revise | Cancel | Warm | Forget | Round) -> None:
    """Carry out one command. Drafts that are finished are left alone, as the engine leaves them."""
    drafts = {draft.number: draft for draft in engine.drafts}
    match command:
        case Submit(spec):
            engine.submit(spec)
        case Replan(number, plan) if number in drafts:
            engine.replan(drafts[number], plan)
        case Revise(number, prompt, plan) if number in drafts:
            engine.revise(drafts[number], prompt, plan)
        case Cancel(number) if number in drafts:
            engine.cancel(drafts[number])
        case Replan() | Revise() | Cancel():
            pass
        case Warm(conversation, tokens):
            engine.warm(conversation, tokens)
        case Forget(conversation):
            engine.forget(conversation)
        case Round(numbers):
            assert numbers == tuple(drafts), f"rank 0 holds drafts {numbers}, this rank {tuple(drafts)}"
            engine.run_round()
        case _:
            assert_never(command)
