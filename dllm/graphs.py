"""CUDA graphs of a network's forward, and of whole visits of denoising steps: a hundred or a thousand small launches become one.

A recorded graph reads and writes fixed addresses, so every shape has input buffers of its own. Before a replay the inputs are copied into
them; what it gives is copied out, so that no later replay overwrites what somebody still reads. To keep shapes few, the slots that
are read are rounded up and the mask says which of them count: every forward has a mask with a row per query, and a start per draft.
One recording then serves every company of so many drafts with windows of that length, wherever their texts end.

A visit is recorded with all of its steps, forwards, choices and stop tests, for drafts whose steps never look at logits; then the host sends
what has changed, starts one graph, and reads one result.

A shape is recorded when it comes a second time: many come once. Recordings are few (the one used longest ago goes first) and their total
time is bounded; whatever is not recorded runs as it is, with the same result. They are worth nothing once the workspace
has moved to other memory, and go then.

Dimensions: B drafts, T window tokens, S slots, E hidden size, C columns of a visit's results.
"""

from __future__ import annotations

import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

from dllm.errors import ConfigError
from dllm.models.family import LayerStore, Network, Sight

if TYPE_CHECKING:
    from dllm.stepping import Round

T = TypeVar("T")

SLOT_STEP = 256
"""Slots that are read are rounded up to a multiple of it. At 512 stored tokens that is at most a third more of what is small beside the
weights, and a conversation of 4,096 tokens meets 16 shapes."""
MAX_LENGTH = 128
"""Longer windows are prefills: they keep a GPU busy for longer than their launches take."""
WARM_UPS = 3
"""Forwards before a recording, on a stream of their own: libraries choose their algorithms and allocate in the first ones."""
MOST_MET = 4096
"""Shapes remembered as met or refused: callers choose temperatures, and each is another shape."""


class Shape(NamedTuple):
    """What one recording is good for."""

    rows: int
    length: int
    """Window tokens."""
    slots: int
    is_counted: bool = False
    """Attention is the kernel's: a number per query stands for the mask."""
    steps: int = 0
    """Denoising steps of a visit; 0 for a forward alone."""
    facts: tuple[object, ...] = ()
    """What else the steps of a visit decide on the host."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A forward was recorded, or could not be."""

    shape: Shape
    seconds: float
    """Warm-up included."""
    held: int
    """Recordings there are now."""
    error: str = ""
    """Why this shape runs unrecorded from now on; empty when it was recorded."""


class Recorder(Protocol):
    """Turns a function without arguments, which works on tensors that stay where they are, into one that repeats it."""

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        """The repetition, and the tensor that holds its result afterwards. `run` may be called any number of times."""
        ...


class CudaRecorder:
    """`torch.cuda.CUDAGraph`. All recordings share one pool of memory: none runs beside another, and results are copied out of it."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        return capture(run, self._pool)


def capture(
    run: Callable[[], T], pool: Any = None, before: Callable[[], object] = lambda: None
) -> tuple[Callable[[], object], T]:
    """Run a few times on a stream of its own, then record.

    Args:
        pool: Memory shared with other recordings.
        before: Called each time before, and not recorded.

    Raises:
        RuntimeError: If it cannot be recorded, with what ended the recording as its text. The thread's stream is then as before, and random
            numbers can be drawn: a recording that fails leaves PyTorch on its own stream and the default generator believing that it goes on.
    """
    own = torch.cuda.current_stream()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(own)
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            before()
            run()
    own.wait_stream(side)
    before()
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = run()
    except Exception as failure:
        _clean_up(own)
        # Ending a recording that has failed fails too, and that is what arrives here.
        first = failure.__context__ if isinstance(failure.__context__, Exception) else failure
        raise RuntimeError(f"{type(first).__name__}: {first}") from failure
    return graph.replay, result


def _clean_up(stream: torch.cuda.Stream) -> None:
    """After a recording that failed: back to the stream before it, and the generator released by a recording that succeeds."""
    torch.cuda.set_stream(stream)
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
            torch.zeros(1, device="cuda")
    except RuntimeError:
        pass  # whoever draws next is told
    torch.cuda.set_stream(stream)


Given: TypeAlias = tuple[Tensor, Tensor, Tensor | Sight | None, int | Tensor]
"""Tokens, positions, mask and start of one forward, as the caller gave them."""


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Where a recording reads: buffers that stay."""

    ids: Tensor
    """[B, T] int64."""
    positions: Tensor
    mask: Tensor | Sight
    """[B, 1, T, S] additive, or what each query sees."""
    start: Tensor
    """[B] int64."""

    @classmethod
    def of(cls, shape: Shape, dtype: torch.dtype, device: torch.device) -> _Inputs:
        def whole(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int64, device=device)

        mask: Tensor | Sight
        if shape.is_counted:
            mask = Sight(torch.zeros(shape.rows, shape.length, dtype=torch.int32, device=device), shape.slots)
        else:
            mask = torch.zeros(shape.rows, 1, shape.length, shape.slots, dtype=dtype, device=device)
        return cls(whole(shape.rows, shape.length), whole(shape.rows, shape.length), mask, whole(shape.rows))

    def fill(self, ids: Tensor, positions: Tensor, mask: Tensor | Sight | None, start: int | Tensor) -> None:
        """Copy one forward's inputs; slots behind the mask's last are not seen."""
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        if isinstance(start, int):
            self.start.fill_(start)
        else:
            self.start.copy_(start)
        if isinstance(self.mask, Sight):
            assert isinstance(mask, Sight)
            self.mask.visible.copy_(mask.visible)
            return
        assert not isinstance(mask, Sight)
        read = _slots_read(ids, mask, start)
        self.mask[..., read:].fill_(float("-inf"))
        if mask is None:
            self.mask[..., :read].zero_()
        else:
            self.mask[..., :read].copy_(mask)


@dataclass(frozen=True, slots=True)
class _Recording:
    inputs: _Inputs
    replay: Callable[[], object]
    result: Tensor
    """[B, T, E] hidden states, or a visit's [steps, B, C]: overwritten by the next replay of any recording."""
    round: Round | None = None
    """Of a visit: its columns are read by the replay."""

    @property
    def size_bytes(self) -> int:
        inputs = self.inputs
        mask = inputs.mask.visible if isinstance(inputs.mask, Sight) else inputs.mask
        parts = (inputs.ids, inputs.positions, mask, inputs.start, self.result)
        return sum(part.numel() * part.element_size() for part in parts)


class Graphs:
    """The forward of a network, recorded where that pays. Called like the network itself; `visit` is for whole visits.

    Args:
        recorder: What records; `CudaRecorder` where there is a GPU.
        max_graphs: Recordings kept.
        budget_s: Time that may be spent recording, in all; nothing is recorded once it is over.
        progress: Told of every recording.
        clock: In seconds.
    """

    def __init__(
        self,
        model: Network,
        recorder: Recorder,
        *,
        max_graphs: int = 32,
        budget_s: float = 60.0,
        progress: Callable[[Recorded], object] = lambda recorded: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_graphs < 1:
            raise ConfigError("max_graphs", max_graphs, "at least 1")
        self._model, self._recorder, self._max_graphs = model, recorder, max_graphs
        self._budget_s, self._progress, self._clock = budget_s, progress, clock
        self._recordings: OrderedDict[Shape, _Recording] = OrderedDict()
        self._met: set[Shape] = set()
        self._refused: set[Shape] = set()
        self._places: tuple[int, ...] = ()
        self.seconds = 0.0
        """Spent recording."""

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """What is recorded, the one used longest ago first."""
        return tuple(self._recordings)

    @property
    def size_bytes(self) -> int:
        """Input and output buffers. What a forward needs in between is in the recorder's pool, about as much as one forward takes."""
        return sum(recording.size_bytes for recording in self._recordings.values())

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor | Sight | None,
        stores: Sequence[LayerStore] | None = None,
        start: int | Tensor = 0,
        **extra: Any,
    ) -> Tensor:
        """Hidden states [B, T, E]; see `Network.__call__`. The result is the caller's: no later call changes it."""

        with torch.inference_mode():
            given = (ids, positions, mask, start)
            recording = None
            if stores is not None and not extra and ids.shape[1] <= MAX_LENGTH:
                shape = self._shape(given, stores)
                recording = self._find(shape, lambda: self._record(shape, list(stores), given))
            if recording is None:
                return self._model(ids, positions, mask, stores, start, **extra)
            recording.inputs.fill(*given)
            recording.replay()
            return recording.result.clone()

    def visit(
        self, steps: Round, count: int, given: Given, stores: Sequence[LayerStore]
    ) -> tuple[Tensor, Tensor] | None:
        """The results of a visit's steps [count, B, C], as `Round.run` gives them, and the last hidden states [B, T, E]; None where the visit
        is not recorded. Both are the caller's until the next call.

        Args:
            steps: Reads every open position (`is_whole`), and nobody's logits.
            given: Tokens, positions, mask and start of its windows.
        """
        if given[0].shape[1] > MAX_LENGTH:
            return None
        shape = self._shape(given, stores)._replace(steps=count, facts=steps.facts)
        recording = self._find(shape, lambda: self._record(shape, list(stores), given, steps))
        if recording is None:
            return None
        assert recording.round is not None
        recording.inputs.fill(*given)
        recording.round.fill(steps)
        recording.replay()
        return recording.result, recording.round.hidden

    def _shape(self, given: Given, stores: Sequence[LayerStore]) -> Shape:
        self._check_places(stores)
        ids, _, mask, start = given
        read = min(-(-_slots_read(ids, mask, start) // SLOT_STEP) * SLOT_STEP, stores[0].keys.shape[2])
        return Shape(ids.shape[0], ids.shape[1], read, isinstance(mask, Sight))

    def _check_places(self, stores: Sequence[LayerStore]) -> None:
        """Forget everything when the keys and values live elsewhere now: recordings know addresses only."""
        places = tuple(part.data_ptr() for store in stores for part in store.parts) + stores[0].keys.stride()
        if places != self._places:
            self._recordings.clear()
            self._places = places

    def _find(self, shape: Shape, record: Callable[[], _Recording | None]) -> _Recording | None:
        """The recording for a shape, made now if it is time; None where there is none."""
        recording = self._recordings.get(shape)
        if recording is None and shape in self._met and shape not in self._refused and self.seconds < self._budget_s:
            recording = record()
        if len(self._met) >= MOST_MET:
            self._met.clear()
        self._met.add(shape)
        if recording is not None:
            self._recordings[shape] = recording
            self._recordings.move_to_end(shape)
        return recording

    def _record(
        self, shape: Shape, stores: list[LayerStore], given: Given, steps: Round | None = None
    ) -> _Recording | None:
        began = self._clock()
        while len(self._recordings) >= self._max_graphs:
            self._recordings.popitem(last=False)
        inputs = _Inputs.of(shape, self._model.new_stores(1, 1)[0].keys.dtype, stores[0].keys.device)
        # Recording runs the forward, which writes keys and values: with these inputs just those that the replay writes again.
        inputs.fill(*given)

        def forward(ids: Tensor | None) -> Tensor:
            tokens = inputs.ids if ids is None else ids
            return self._model(tokens, inputs.positions, inputs.mask, stores, inputs.start)

        run, own = (lambda: forward(None)), None
        if steps is not None:
            own = steps.for_recording()
            run = functools.partial(own.run, forward, inputs.ids)
        recording, error = None, ""
        try:
            recording = _Recording(inputs, *self._recorder.record(run), own)
        except RuntimeError as failure:  # networks that ask the host something in the middle cannot be recorded
            error = str(failure) or type(failure).__name__
            if len(self._refused) >= MOST_MET:
                self._refused.clear()
            self._refused.add(shape)
        seconds = self._clock() - began
        self.seconds += seconds
        self._progress(Recorded(shape, seconds, len(self._recordings) + (recording is not None), error))
        return recording


def cuda_graphs(model: Network, progress: Callable[[Recorded], object] = lambda recorded: None) -> Graphs:
    """Recorded forwards of a network on a GPU.

    Raises:
        ConfigError: If the network is elsewhere.
    """
    device: torch.device = next(iter(model.parameters())).device  # type: ignore[attr-defined]
    if device.type != "cuda":
        raise ConfigError("graphs", device.type, "a model on a CUDA device: only there are forwards recorded")
    return Graphs(model, CudaRecorder(), progress=progress)


def _slots_read(ids: Tensor, mask: Tensor | Sight | None, start: int | Tensor) -> int:
    if isinstance(mask, Sight):
        return mask.longest
    if mask is not None:
        return mask.shape[-1]
    if not isinstance(start, int):
        raise ValueError("a start per row needs a mask: rows of different lengths cannot all be read whole")
    return start + ids.shape[1]
