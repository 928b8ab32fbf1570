"""The engine with Triton's kernels in place of the references, in the interpreter where there is no GPU: same replies, token for token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dllm_kernels.choose
from dllm.drafts import Failed, Plan
from dllm.engine import Engine
from dllm.models.dit import MDLM, SEDD
from dllm.models.family import EIGHT_BITS
from dllm.options import DecodeOptions
from dllm_kernels import canvas_attention, head_commit
from dllm_kernels.choose import Kind
from tests.dllm import tiny
from tests.dllm.decoding import draft_spec, engine_of, finished, prompt_of, run, table_of
from tests.dllm.models.test_dit import MDLM_CONFIG, SEDD_CONFIG
from tests.dllm.models.tiny_checkpoints import random_network
from tests.dllm.test_decoding import network
from tests.dllm.test_graphs import StandIn, graphs
from tests.kernels.both import KINDS, device_of, on

# A few float32 layers whose sums are taken in another order.
RTOL, ATOL = 1e-4, 1e-5

triton_alone = pytest.mark.parametrize("kind", KINDS[1:])

FAMILIES = ("sdar", "llada2", "fast_dllm", "nemotron", "dllm_llama", "llada", "dream", "llada_moe", "mdlm", "sedd")
"""Block-causal, causal behind a canvas, and full masks."""


@triton_alone
def test_a_forward_is_the_same_and_stores_the_same(kind: Kind) -> None:
    ids = torch.tensor([prompt_of(9), prompt_of(9, seed=1)])
    positions = torch.arange(9).expand(2, 9) + 3
    mask = torch.ones(2, 1, 9, 14, dtype=torch.bool)

    def forward(
        ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, start: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        network = tiny.model().to(ids.device)
        stores = network.new_stores(2, 16)
        first = network(ids, positions, mask, stores, start)
        second = network(ids[:, :4], positions[:, :4], None, stores, 3)
        return first, second, *(part for store in stores for part in store.parts)

    with torch.inference_mode():
        arguments = (ids, positions, mask, torch.tensor([5, 2]))
        for got, expected in zip(on(kind, forward, *arguments), on("reference", forward, *arguments), strict=True):
            torch.testing.assert_close(got, expected, rtol=RTOL, atol=ATOL)


def model_of(family: str, device: str) -> Any:
    """Fresh weights, the same every time: a network that moves to a device takes the cached one's weights along."""
    if family == "mdlm":
        return random_network(MDLM.read_config(MDLM_CONFIG), scale=5.0).to(device)
    if family == "sedd":
        return random_network(SEDD.read_config(SEDD_CONFIG), scale=5.0).to(device)
    return network.__wrapped__(family).to(device)


def replies(
    model: Any, options: list[DecodeOptions], width: int, plan: Plan, cache_dtype: torch.dtype | None = None
) -> list[tuple[int, ...]]:
    """Drafts of different prompts, lengths and options in one company."""
    engine = engine_of(model, cache_dtype=cache_dtype)
    small = min(model.spec.vocab_size - 2, 90)
    drafts = [
        engine.submit(draft_spec([token % small for token in prompt_of(5 + 4 * at, at)], width, one, plan, f"c{at}"))
        for at, one in enumerate(options)
    ]
    events = run(engine)
    return [finished(events, draft).tokens for draft in drafts]


class Calls:
    """Counts calls of the two kernels that take other ways than the reference. In the interpreter the other ops stay with their references:
    `test_a_forward_is_the_same_and_stores_the_same` has them all, and it takes a second for a step."""

    def __init__(self, patch: pytest.MonkeyPatch, *others: str) -> None:
        if not torch.cuda.is_available():
            module = dllm_kernels.choose._module
            interpreted = ("canvas_attention", "head_commit", *others)
            patch.setattr(
                dllm_kernels.choose,
                "_module",
                lambda op, name: module(op, name if op in interpreted else "reference"),
            )
        self.attention = self.head = 0
        attend, commit = canvas_attention, head_commit

        def attention(*args: Any, **options: Any) -> Any:
            self.attention += 1
            return attend(*args, **options)

        def head(*args: Any, **options: Any) -> Any:
            self.head += 1
            return commit(*args, **options)

        patch.setattr("dllm.layers.attention.canvas_attention", attention)
        patch.setattr("dllm.reading.head_commit", head)


PLAN = Plan(3, 3, 0.5, by_clause=False)
PLAIN = DecodeOptions(guard=False)


@triton_alone
@pytest.mark.parametrize("family", FAMILIES)
def test_replies_have_the_same_tokens(family: str, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(device: str) -> list[tuple[int, ...]]:
        return replies(model_of(family, device), [PLAIN] * 2, 8, PLAN)

    expected = on("reference", written, "cpu")
    calls = Calls(monkeypatch)
    assert on(kind, written, device_of(kind)) == expected
    assert calls.attention > 0
    # The published heads of these two have a bias.
    assert (calls.head > 0) is (family not in ("mdlm", "sedd"))


OPTIONS: dict[str, list[DecodeOptions]] = {
    "drawn": [DecodeOptions(temperature=0.7, seed=1), DecodeOptions(temperature=1.2, seed=5)],
    "mixed": [DecodeOptions(no_stutter=True, hold_ends=True), DecodeOptions(min_tokens=7)],
    "weighed": [DecodeOptions(repetition_penalty=1.3), DecodeOptions(temperature=0.9, top_k=5), DecodeOptions()],
    "shadowed": [DecodeOptions(wino_threshold=0.3), DecodeOptions()],
}


@triton_alone
@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_need_logits_share_a_forward_with_those_that_do_not(
    case: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    Calls(monkeypatch)

    def written(device: str) -> list[tuple[int, ...]]:
        return replies(model_of("llada", device), OPTIONS[case], 8, PLAN)

    assert on(kind, written, device_of(kind)) == on("reference", written, "cpu")


@triton_alone
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_approximate_caches_look_ahead_in_the_kernel_too(
    cache: Any, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    Calls(monkeypatch)

    def written(device: str) -> list[tuple[int, ...]]:
        return replies(model_of("llada", device), [DecodeOptions(cache=cache, block=8, guard=False)] * 2, 16, PLAN)

    assert on(kind, written, device_of(kind)) == on("reference", written, "cpu")


@triton_alone
@pytest.mark.parametrize("family", ["sdar", "nemotron", "dllm_llama"])
def test_a_cache_in_eight_bits_is_written_and_read_by_the_kernels(
    family: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shadow rows need a mask: those read the same store through PyTorch's attention."""
    options = [PLAIN, DecodeOptions(wino_threshold=0.3) if family == "dllm_llama" else PLAIN]

    def written(device: str) -> list[tuple[int, ...]]:
        return replies(model_of(family, device), options, 8, PLAN, EIGHT_BITS)

    expected = on("reference", written, "cpu")
    calls = Calls(monkeypatch, "rotary")
    assert on(kind, written, device_of(kind)) == expected
    assert calls.attention > 0


@triton_alone
def test_a_head_in_eight_bits_is_read_as_it_is(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    from dllm.layers.linear import QuantLinear, fill

    def written(device: str) -> list[tuple[int, ...]]:
        model = tiny.model()
        head = QuantLinear("int8", model.spec.hidden_size, model.spec.vocab_size)
        fill(head.values, head.scale, model.embed_tokens.weight)
        model.lm_head = head
        return replies(model.to(device), [PLAIN] * 2, 8, PLAN)

    expected = on("reference", written, "cpu")
    calls = Calls(monkeypatch)
    assert on(kind, written, device_of(kind)) == expected
    assert calls.head > 0


@triton_alone
def test_a_draft_that_fails_takes_nobody_with_it(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything forbidden at one draft's first position: its own error, and the other's reply as ever."""
    Calls(monkeypatch)

    def written(device: str) -> tuple[str, tuple[int, ...]]:
        model = tiny.model().to(device)
        bias = tuple((token, -float("inf")) for token in range(model.spec.vocab_size))
        engine = Engine(model, table_of(model.spec), cache_bytes=2**18, clock=lambda: 0.0)
        bad = engine.submit(draft_spec(prompt_of(6), 8, DecodeOptions(logit_bias=bias), PLAN, "bad"))
        good = engine.submit(draft_spec(prompt_of(7), 8, DecodeOptions(), PLAN, "good"))
        events = run(engine)
        errors = [type(event.error).__name__ for event in events if isinstance(event, Failed) and event.draft is bad]
        return errors[0], finished(events, good).tokens

    assert on(kind, written, device_of(kind)) == on("reference", written, "cpu")


@triton_alone
def test_in_bfloat16_few_first_guesses_differ(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a canvas of masks at random weights, where half the guesses are near ties: the rate is stated in docs/kernels.md."""
    Calls(monkeypatch)

    def guesses(device: str) -> torch.Tensor:
        model = model_of("llada", device).to(torch.bfloat16)
        written = replies(
            model, [DecodeOptions(guard=False, rule="count", min_tokens=16)] * 4, 16, Plan(1, 1, 1.0, by_clause=False)
        )
        return torch.tensor(written)

    got, expected = on(kind, guesses, device_of(kind)), on("reference", guesses, "cpu")
    assert (got != expected).float().mean() <= 0.03


@triton_alone
def test_recordings_take_what_queries_see_in_place_of_masks(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(device: str, is_recorded: bool) -> list[tuple[int, ...]]:
        model = tiny.model().to(device)
        recorder = StandIn()
        forward = graphs(model, recorder) if is_recorded else None
        engine = Engine(model, table_of(model.spec), cache_bytes=2**18, clock=lambda: 0.0, forward=forward)
        drafts = [engine.submit(draft_spec(prompt_of(9 + at), 8, PLAIN, PLAN, f"c{at}")) for at in range(2)]
        events = run(engine)
        if is_recorded:
            assert recorder.replays > 0 and all(shape.is_counted for shape in forward.shapes)  # type: ignore[union-attr]
        return [finished(events, draft).tokens for draft in drafts]

    Calls(monkeypatch)
    assert on(kind, written, device_of(kind), True) == on("reference", written, "cpu", False)
