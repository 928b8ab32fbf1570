"""Recorded forwards: the same results as the network's own call, whatever is recorded, evicted or refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dllm.denoise import Denoiser
from dllm.drafts import Plan
from dllm.engine import Engine
from dllm.errors import ConfigError
from dllm.graphs import MAX_LENGTH, CudaRecorder, Graphs, Recorded, Shape, capture, cuda_graphs
from dllm.models.family import LayerStore
from dllm.models.transformer import Transformer
from dllm.options import DecodeOptions
from dllm.stepping import Round
from tests.dllm import tiny
from tests.dllm.decoding import draft_spec, engine_of, finished, prompt_of, run, table_of

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""Masks, and slots that nobody sees, make attention add in another order; hidden states are about 1."""


class StandIn:
    """Records as a GPU does: repeats work on the same tensors, and its result always lies in the same one."""

    def __init__(self, failing: tuple[int, ...] = ()) -> None:
        self.replays, self.failing, self._recorded = 0, failing, 0

    def record(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        self._recorded += 1
        if self._recorded in self.failing:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = torch.full_like(run(), float("nan"))

        def replay() -> None:
            self.replays += 1
            result.copy_(run())

        return replay, result


class Clock:
    """Each reading is a second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def graphs(model: Transformer, recorder: StandIn | None = None, **options: Any) -> Graphs:
    return Graphs(model, recorder or StandIn(), clock=Clock(), **options)


def filled(model: Transformer, rows: int = 2, length: int = 320) -> list[LayerStore]:
    generator = torch.Generator().manual_seed(3)
    return [
        LayerStore(*(torch.randn(part.shape, generator=generator) for part in store.parts))
        for store in model.new_stores(rows, length)
    ]


def inputs(rows: int, length: int, start: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(20, 90, (rows, length), generator=torch.Generator().manual_seed(seed))
    return drawn, torch.arange(start, start + length).expand(rows, length)


def mask_to(visible: list[int], slots: int) -> Tensor:
    seen = torch.arange(slots) < torch.tensor(visible).unsqueeze(1)
    return torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))[:, None, None]


def test_a_replay_gives_what_the_network_gives() -> None:
    model, recorder = tiny.model(scale=1.0), StandIn()
    fast, own, other = graphs(model, recorder), filled(model, rows=1), filled(model, rows=1)
    for start in (40, 63, 64, 100, 7):
        ids, positions = inputs(1, 16, start, start)
        expected = model(ids, positions, None, own, start)
        torch.testing.assert_close(fast(ids, positions, None, other, start), expected, **CLOSE)
        for mine, its in zip(own, other, strict=True):
            torch.testing.assert_close(its.keys, mine.keys, **CLOSE)
            torch.testing.assert_close(its.values, mine.values, **CLOSE)
    assert recorder.replays == 4


def test_one_recording_serves_every_length_of_text_and_every_mask() -> None:
    model, recorder = tiny.model(scale=1.0), StandIn()
    fast, stores = graphs(model, recorder), filled(model)
    for at, starts in enumerate(((40, 40), (64, 9), (100, 200), (30, 31))):
        ids, positions = inputs(2, 8, 0, at)
        positions = positions + torch.tensor(starts).unsqueeze(1)
        mask = mask_to([start + 8 for start in starts], max(starts) + 8)
        if at % 2:
            mask = mask.repeat(1, 1, 8, 1)
            mask[..., :3, : min(starts)] = -2.0
        expected = model(
            ids, positions, mask, [LayerStore(*(p.clone() for p in s.parts)) for s in stores], torch.tensor(starts)
        )
        found = fast(ids, positions, mask, stores, torch.tensor(starts))
        torch.testing.assert_close(found, expected, **CLOSE)
    assert fast.shapes == (Shape(2, 8, 256),)
    assert recorder.replays == 3


def test_a_result_outlives_the_next_replay() -> None:
    model = tiny.model(scale=1.0)
    fast, stores = graphs(model), filled(model, rows=1)
    fast(*inputs(1, 8, 40), None, stores, 40)
    first = fast(*inputs(1, 8, 40, 1), None, stores, 40)
    kept = first.clone()
    second = fast(*inputs(1, 8, 40, 2), None, stores, 40)
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_a_shape_is_recorded_when_it_comes_again_and_the_time_is_told() -> None:
    model, told = tiny.model(), list[Recorded]()
    fast, stores = graphs(model, progress=told.append), filled(model, rows=1)
    fast(*inputs(1, 8, 40), None, stores, 40)
    assert told == []
    fast(*inputs(1, 8, 40), None, stores, 40)
    assert told == [Recorded(Shape(1, 8, 256), 1.0, 1)]
    assert fast.size_bytes == 8 * 8 * 2 + 8 + 4 * 8 * 256 + 4 * 8 * 32


def test_the_recording_used_longest_ago_goes_first() -> None:
    model = tiny.model()
    fast, stores = graphs(model, max_graphs=2), filled(model, rows=1)
    for length in (4, 8, 4, 12):
        for _ in range(2):
            fast(*inputs(1, length, 40), None, stores, 40)
    assert [shape.length for shape in fast.shapes] == [4, 12]


def test_nothing_is_recorded_once_the_time_for_it_is_spent() -> None:
    model, recorder = tiny.model(), StandIn()
    fast, stores = graphs(model, recorder, budget_s=2.0), filled(model, rows=1)
    for length in (4, 8, 12, 16):
        for _ in range(3):
            expected = model(
                *inputs(1, length, 40), None, [LayerStore(*(p.clone() for p in s.parts)) for s in stores], 40
            )
            torch.testing.assert_close(fast(*inputs(1, length, 40), None, stores, 40), expected, **CLOSE)
    assert [shape.length for shape in fast.shapes] == [4, 8]
    assert fast.seconds == 2.0
    assert recorder.replays == 4


def test_a_network_that_cannot_be_recorded_runs_as_it_is() -> None:
    model, told = tiny.model(), list[Recorded]()
    fast, stores = graphs(model, StandIn(failing=(1,)), progress=told.append), filled(model, rows=1)
    expected = model(*inputs(1, 8, 40), None, [LayerStore(*(p.clone() for p in s.parts)) for s in stores], 40)
    for _ in range(4):
        torch.testing.assert_close(fast(*inputs(1, 8, 40), None, stores, 40), expected, **CLOSE)
    assert [recorded.error for recorded in told] == ["operation not permitted when stream is capturing"]
    assert fast.shapes == ()


def test_recordings_go_when_keys_and_values_move() -> None:
    model = tiny.model(scale=1.0)
    fast, stores = graphs(model), filled(model, rows=1)
    for _ in range(2):
        fast(*inputs(1, 8, 40), None, stores, 40)
    moved = [LayerStore(*(part * 2 for part in store.parts)) for store in stores]
    expected = model(*inputs(1, 8, 40), None, [LayerStore(*(p.clone() for p in s.parts)) for s in moved], 40)
    torch.testing.assert_close(fast(*inputs(1, 8, 40), None, moved, 40), expected, **CLOSE)


def test_prefills_and_forwards_without_stores_are_not_recorded() -> None:
    model, recorder = tiny.model(), StandIn()
    fast, stores = graphs(model, recorder), filled(model, rows=1)
    for _ in range(3):
        fast(*inputs(1, MAX_LENGTH + 1, 0), None, stores, 0)
        fast(*inputs(1, 8, 0), None)
    assert fast.shapes == () and recorder.replays == 0
    with pytest.raises(ValueError, match="needs a mask"):
        fast(*inputs(1, 8, 0), None, stores, torch.tensor([0]))


def test_an_engine_writes_the_same_replies_with_recordings() -> None:
    model = tiny.model()
    specs = [
        draft_spec(prompt_of(30 + 9 * at, at), 24, DecodeOptions(seed=at), Plan(8, 8, 0.9, by_clause=False), f"c{at}")
        for at in range(5)
    ]
    replies = []
    recorder = StandIn()
    for forward in (None, graphs(model, recorder)):
        engine = Engine(model, table_of(model.spec), max_batch=3, cache_bytes=2**20, clock=lambda: 0.0, forward=forward)
        drafts = [engine.submit(spec) for spec in specs]
        events = run(engine)
        replies.append([finished(events, draft).tokens for draft in drafts])
    assert replies[0] == replies[1]
    assert recorder.replays > 5


def test_a_drafts_history_outlives_other_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two drafts that take turns alone share a recording; what the guard remembers of one is not the other's."""
    monkeypatch.setattr("dllm.reading.runs_kernels", lambda *tensors: True)
    model = tiny.model()
    options = DecodeOptions(rule="count", min_tokens=16)

    def histories(fast: Graphs | None) -> list[list[int]]:
        engine = Engine(model, table_of(model.spec), max_batch=1, cache_bytes=2**19, clock=lambda: 0.0, forward=fast)
        plans = [Plan(16, 1, 1.0, first_deadline=at, by_clause=False) for at in (1.0, 2.0)]
        drafts = [engine.submit(draft_spec(prompt_of(8, at), 16, options, plans[1], f"c{at}")) for at in range(2)]
        for turn in range(10):
            engine.replan(drafts[0], plans[turn % 2])
            engine.replan(drafts[1], plans[1 - turn % 2])
            engine.run_round()
        assert all(draft.steps > 2 and draft.history is not None for draft in drafts)
        return [draft.history.hashes.flatten().tolist() for draft in drafts if draft.history is not None]

    recorder = StandIn()
    assert histories(graphs(model, recorder)) == histories(None)
    assert recorder.replays > 5


def test_shapes_that_were_met_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dllm.graphs.MOST_MET", 3)
    model = tiny.model()
    fast, stores = graphs(model), filled(model, rows=1)
    for length in range(1, 9):
        fast(*inputs(1, length, 40), None, stores, 40)
    assert len(fast._met) <= 3
    for _ in range(2):
        fast(*inputs(1, 8, 40), None, stores, 40)
    assert Shape(1, 8, 256) in fast.shapes


def test_a_recording_that_fails_leaves_the_thread_on_its_stream_and_says_what_ended_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyTorch's context stays on the recording's stream where ending the recording fails too, and tells of that end alone."""

    class Stream:
        def wait_stream(self, other: object) -> None: ...

    own, streams, opened = Stream(), list[object](), list[bool]()

    @contextmanager
    def graph(*_: object, **__: object) -> Iterator[None]:
        opened.append(True)
        streams.append("the recording's")
        try:
            yield
        except ValueError as error:
            raise RuntimeError("operation failed due to a previous error during capture") from error
        streams.pop()

    @contextmanager
    def on_stream(_: object) -> Iterator[None]:
        yield

    for name, stand_in in (
        ("current_stream", lambda: own),
        ("Stream", Stream),
        ("stream", on_stream),
        ("CUDAGraph", object),
        ("graph", graph),
        ("set_stream", streams.append),
        ("synchronize", lambda: None),
    ):
        monkeypatch.setattr(f"torch.cuda.{name}", stand_in)
    monkeypatch.setattr("torch.zeros", lambda *_, **__: None)
    runs = []

    def run() -> Tensor:
        runs.append(1)
        if len(runs) == 4:
            raise ValueError("a shape that only the host knows")
        return torch.ones(1)

    with pytest.raises(RuntimeError, match="ValueError: a shape that only the host knows"):
        capture(run)
    assert streams[-1] is own and len(opened) == 2


def test_limits_and_devices_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_graphs"):
        Graphs(tiny.model(), StandIn(), max_graphs=0)
    with pytest.raises(ConfigError, match="CUDA"):
        cuda_graphs(tiny.model())


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode announces that it is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_on_the_gpu_a_recorded_forward_equals_the_networks_own() -> None:
    model = tiny.model(scale=1.0).cuda()
    fast = Graphs(model, CudaRecorder())
    stores = [LayerStore(*(part.cuda() for part in store.parts)) for store in filled(model)]
    for seed in range(6):
        ids, positions = (part.cuda() for part in inputs(2, 8, 40, seed))
        mask, start = mask_to([48, 48], 48).cuda(), torch.tensor([40, 40]).cuda()
        expected = model(ids, positions, mask, [LayerStore(*(p.clone() for p in s.parts)) for s in stores], start)
        torch.testing.assert_close(fast(ids, positions, mask, stores, start), expected, **CLOSE)
    assert fast.shapes == (Shape(2, 8, 256),)


@pytest.mark.gpu
def test_on_the_gpu_an_engine_writes_the_same_replies_with_recordings() -> None:
    model = tiny.model().cuda()
    replies = []
    for forward in (None, cuda_graphs(model)):
        engine = Engine(model, table_of(model.spec), max_batch=3, cache_bytes=2**20, clock=lambda: 0.0, forward=forward)
        drafts = [engine.submit(draft_spec(prompt_of(40, at), 24, conversation=f"c{at}")) for at in range(3)]
        events = run(engine)
        replies.append([finished(events, draft).tokens for draft in drafts])
    assert replies[0] == replies[1]


@pytest.mark.gpu
def test_on_the_gpu_nothing_waits_between_the_forward_and_the_one_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(tiny.model().cuda())
    for at in range(3):
        engine.submit(draft_spec(prompt_of(40, at), 24, conversation=f"c{at}"))
    engine.run_round()  # prompts are stored
    engine.run_round()
    visit, look, visits = Denoiser.visit, Round.look, []

    def watched_visit(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        return visit(*args)

    def watched_look(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        visits.append(1)
        return look(*args)

    monkeypatch.setattr(Denoiser, "visit", watched_visit)
    monkeypatch.setattr(Round, "look", watched_look)
    with waiting_is_an_error():
        torch.cuda.set_sync_debug_mode("default")
        events = run(engine)
    assert visits and sum(type(event).__name__ == "Finished" for event in events) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("steps_per_visit", [1, 4])
def test_on_the_gpu_whole_visits_are_recorded_and_say_the_same(steps_per_visit: int) -> None:
    model, told = tiny.model().cuda(), list[Recorded]()
    replies = []
    plain, agent = DecodeOptions(), DecodeOptions(hold_ends=True, no_stutter=True, banned=((20, 21),), top_k=50)
    for is_recorded in (False, True):
        forward = cuda_graphs(model, told.append) if is_recorded else None
        engine = Engine(
            model,
            table_of(model.spec),
            max_batch=3,
            cache_bytes=2**20,
            clock=lambda: 0.0,
            forward=forward,
            steps_per_visit=steps_per_visit if is_recorded else 1,
        )
        drafts = [
            engine.submit(
                draft_spec(prompt_of(40, at), 24, replace(options, temperature=at / 2, seed=at), conversation=f"c{at}")
            )
            for options in (plain, agent)
            for at in (0, 0, 2, 2, 0, 2)
        ]
        events = run(engine)
        replies.append([finished(events, draft).tokens for draft in drafts])
    assert replies[0] == replies[1]
    assert any(recorded.shape.steps and not recorded.error for recorded in told), told
