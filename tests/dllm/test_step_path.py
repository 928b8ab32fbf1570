"""Between a forward and the end of its round the host waits for nothing: not for a value, and not for an upload."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dllm.denoise import Denoiser
from dllm.drafts import DraftSpec, Plan
from dllm.engine import Engine
from dllm.options import DecodeOptions, Rule
from dllm.stepping import Round
from dllm.window import Workspace
from dllm_kernels.mix_experts import reference as experts
from tests.dllm import tiny
from tests.dllm.decoding import draft_spec, engine_of, finished, prompt_of, run
from tests.dllm.no_sync import HostSyncError, no_host_sync
from tests.dllm.test_decoding import network
from tests.dllm.test_graphs import graphs
from tests.dllm.test_visits import Looks


class _Uploads(TorchFunctionMode):
    """Raises where host values go to a device by way of pageable memory; `dllm.staging.staged` is the other way."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("tensor", "as_tensor") and "device" in (kwargs or {}):
            raise HostSyncError(f"torch.{name} on a device")
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list) for part in index):
                raise HostSyncError(f"{name} by a list")
        return func(*args, **(kwargs or {}))


class StepPath:
    """The guard, on from the beginning of a shared forward to its end and through the choice, up to the one visit."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.forwards = self.steps = 0
        self._guard = ExitStack()
        forward, visit, look = Workspace.forward, Denoiser.visit, Round.look

        def watched_forward(*args: Any, **kwargs: Any) -> Tensor:
            self.forwards += 1
            with no_host_sync(), _Uploads():
                return forward(*args, **kwargs)

        def watched_visit(*args: Any) -> Any:
            self.steps += args[5]
            with self._guard:
                self._guard.enter_context(no_host_sync())
                self._guard.enter_context(_Uploads())
                return visit(*args)

        def watched_look(*args: Any) -> Any:
            self._guard.close()
            return look(*args)

        patch.setattr(Workspace, "forward", watched_forward)
        patch.setattr(Denoiser, "visit", watched_visit)
        patch.setattr(Round, "look", watched_look)


def write_together(model: Any, specs: list[DraftSpec], engine: Engine | None = None) -> None:
    engine = engine or engine_of(model)
    drafts = [engine.submit(spec) for spec in specs]
    events = run(engine)
    for draft in drafts:
        finished(events, draft)


def options_of(case: str) -> list[DecodeOptions]:
    cases = {
        "rules": [DecodeOptions(rule=rule, seed=at) for at, rule in enumerate(get_args(Rule))],
        "drawn": [DecodeOptions(temperature=0.7, seed=1), DecodeOptions(temperature=1.0, top_p=0.9, top_k=20)],
        "processed": [
            DecodeOptions(repetition_penalty=1.2, logit_bias=((20, 1.0),), min_tokens=4, target_tokens=10),
            DecodeOptions(banned=((20, 21), (22,)), no_stutter=True, hold_ends=True),
        ],
        "revised": [DecodeOptions(remask_eta=0.3), DecodeOptions(wino_threshold=0.3), DecodeOptions(early_commit=True)],
    }
    return cases[case]


@pytest.mark.parametrize("case", ["rules", "drawn", "processed", "revised"])
@pytest.mark.parametrize("by_clause", [True, False])
def test_no_option_makes_the_host_wait(case: str, by_clause: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = StepPath(monkeypatch)
    plan = Plan(4, 4, 0.6, by_clause=by_clause)
    specs = [draft_spec(prompt_of(20 + at, at), 16, one, plan, f"c{at}") for at, one in enumerate(options_of(case))]
    write_together(tiny.model(), specs)
    assert path.forwards > path.steps > 1


@pytest.mark.parametrize("family", ["sdar", "llada2", "llada", "dream", "fast_dllm"])
def test_no_family_makes_the_host_wait(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = StepPath(monkeypatch)
    monkeypatch.setattr(experts, "looped_experts", experts.dense_experts)  # as on an accelerator; the loop is for CPUs
    plan = Plan(6, 1, 0.6, by_clause=False)
    options = DecodeOptions(cache="dual") if family in ("llada", "dream") else DecodeOptions()
    specs = [draft_spec(prompt_of(9 + at, at), 16, options, plan, f"c{at}") for at in range(2)]
    write_together(network(family), specs)
    assert path.steps > 1


@pytest.mark.parametrize("is_recorded", [False, True])
@pytest.mark.parametrize("case", ["rules", "drawn", "processed", "pinned", "pins"])
def test_within_a_visit_of_several_steps_the_host_waits_for_nothing(
    case: str, is_recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forwards included, and what a recording is filled with."""
    path, model, codec = StepPath(monkeypatch), tiny.model(), tiny.codec()
    looks = Looks(monkeypatch)
    engine = Engine(
        model,
        codec.token_table,
        cache_bytes=2**19,
        clock=lambda: 0.0,
        forward=graphs(model) if is_recorded else None,
        steps_per_visit=4,
    )
    plan = Plan(12, 12, 0.99, by_clause=False, fact_threshold=0.995)
    agent = DecodeOptions(hold_ends=True, no_stutter=True, min_tokens=20, logit_bias=((30, -9.0),), keep_above=0.0)
    options = [agent, agent] if case in ("pinned", "pins") else options_of(case)
    if case == "rules":
        options = [one for one in options if one.rule != "stability"]
    specs = [draft_spec(prompt_of(9 + at, at), 24, one, plan, f"c{at}") for at, one in enumerate(options)]
    if case == "pinned":
        pin = tuple(codec.encode_pin("$5.10"))
        specs = [replace(spec, pins=(pin,), keep=(60,), keep_pins=((0, 3),), unpinned=31) for spec in specs]
    if case == "pins":
        pins = tuple(tuple(codec.encode_pin(text)) for text in ("$5.10", "mocha"))
        specs = [replace(spec, pins=pins[at:], unpinned=31) for at, spec in enumerate(specs)]
    for _ in range(2):
        write_together(model, specs, engine)
    assert looks.steps == path.steps > 2 * looks.visits


@pytest.mark.parametrize(
    "send",
    [
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.as_tensor([1.0], device=x.device),
        lambda x: x[[0, 2]],
        lambda x: x.__setitem__(([0, 2],), 0.0),
    ],
)
def test_the_guard_against_uploads_sees_them(send: Callable[[Tensor], object]) -> None:
    with pytest.raises(HostSyncError), _Uploads():
        send(torch.arange(4.0))
