"""Two ranks on the CPU compute what one does: the same logits, and the same replies from engines in lockstep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from dllm import loader, parallel
from dllm.codec import Codec
from dllm.drafts import Finished, Plan
from dllm.engine import Engine
from dllm.errors import ConfigError
from dllm.hub_codec import HubCodec
from dllm.models.registry import family_named, family_of
from dllm.parallel import LeadingEngine, Team, divide, local_spec
from dllm.quantize import Quantisation
from dllm.spec import ModelSpec
from tests.dllm import decoding, tiny
from tests.dllm.models import test_diffusion_gemma, test_llada2, test_llada_moe
from tests.dllm.models.tiny_checkpoints import CONFIGS, random_network, tiny_spec
from tests.dllm.models.tiny_tokenizer import write_tokenizer

RANKS = 2
CLOSE = 1e-5
"""float32: two halves of each sum are added up apart. Relative to the largest logit."""
PATIENCE = timedelta(seconds=60)
GEMMA = test_diffusion_gemma.TEXT | {"num_global_key_value_heads": 2}
MIXTURES: dict[str, dict[str, Any]] = {
    "llada_moe": test_llada_moe.CONFIG,
    "llada2": test_llada2.CONFIG,
    "diffusion_gemma": {"model_type": "diffusion_gemma", "canvas_length": 8, "text_config": GEMMA},
}
NAMES = [*CONFIGS, *MIXTURES]
PLAN = Plan(steps_first=5, steps_rest=5, by_clause=False)


def spec_of(name: str) -> ModelSpec:
    """Tied and untied heads, biases, YaRN, shared and packed experts, two kinds of heads. The built-in family has role tokens."""
    if name in MIXTURES:
        return family_of(MIXTURES[name]).read_config(MIXTURES[name])
    return tiny.spec() if name == "dllm_llama" else tiny_spec(name)


def write(name: str, folder: Path) -> None:
    spec = spec_of(name)
    codec: Codec = tiny.codec()
    if spec.dialogue is None:
        codec = HubCodec.load(write_tokenizer(folder / "tokenizer", spec), spec)
    network = random_network(spec, scale=4.0)
    for buffer_name, buffer in network.named_buffers():
        if buffer_name.endswith("expert_bias"):
            buffer.zero_()
    loader.save(folder / name, spec, network.state_dict(), codec, None)


def logits_of(network: Any) -> Tensor:
    ids = torch.randint(4, 60, (2, 11), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        logits: Tensor = network.logits(network(ids, torch.arange(11).expand(2, -1), None))
    return logits


def converse(engine: Engine | LeadingEngine, spec: ModelSpec) -> list[tuple[int, ...]]:
    """Replies to a few drafts that come, go, change plan and prompt, and fail, one round at a time."""
    width = max(8, spec.canvas_multiple)
    prompts = [tuple(4 + token % 50 for token in decoding.prompt_of(length)) for length in (5, 9, 12, 7)]
    specs = [
        decoding.draft_spec(prompt, width, plan=PLAN, conversation=str(index)) for index, prompt in enumerate(prompts)
    ]
    engine.warm("1", prompts[1])
    drafts = [engine.submit(asked) for asked in specs]
    events = engine.run_round()
    with pytest.raises(ConfigError):
        engine.submit(replace(specs[0], width=0))
    engine.cancel(drafts[3])
    engine.cancel(drafts[3])
    engine.replan(drafts[0], Plan(steps_first=2, steps_rest=2, by_clause=False, first_deadline=0.0))
    if drafts[2] in engine.drafts and spec.corruption == "absorbing":
        engine.revise(drafts[2], prompts[2] + (7,))
    while engine.drafts:
        events += engine.run_round()
    engine.forget("0")
    return [
        event.tokens for draft in drafts[:3] for event in events if isinstance(event, Finished) and event.draft is draft
    ]


def member(rank: int, folder: Path) -> None:
    """What one process of the team does; rank 0 writes down what came out."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    with parallel.join("cpu", init_method=rendezvous, rank=rank, world_size=RANKS, timeout=PATIENCE) as team:
        found: dict[str, Any] = {"clocks": [team.clock() for _ in range(3)]}
        for name in NAMES:
            checkpoint = loader.load(folder / name, team=team)
            network = checkpoint.model
            logits = logits_of(network)
            engine = Engine(network, decoding.table_of(checkpoint.spec), cache_bytes=2**18, clock=team.clock)
            replies = parallel.run(engine, team, lambda leader, spec=checkpoint.spec: converse(leader, spec))  # type: ignore[misc]
            sizes = {part: parameter.numel() for part, parameter in network.named_parameters()}
            found[name] = {"logits": logits, "replies": replies, "sizes": sizes, "spec": checkpoint.spec}
        for head in (False, True):
            quantised = loader.load(folder / "llada2", team=team, quantize=Quantisation("int8", head))
            found[f"int8, {head}"] = logits_of(quantised.model)
        torch.save(found, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    for name in NAMES:
        write(name, folder)
    mp.spawn(member, (folder,), nprocs=RANKS)  # type: ignore[no-untyped-call]
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> Iterator[list[dict[str, Any]]]:
    yield [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]


# --- two processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_give_the_logits_of_one(name: str, folder: Path, found: list[dict[str, Any]]) -> None:
    expected = logits_of(loader.load(folder / name).model)
    for rank in found:
        torch.testing.assert_close(rank[name]["logits"], expected, atol=CLOSE * float(expected.abs().max()), rtol=0)
    assert torch.equal(found[0][name]["logits"], found[1][name]["logits"])


@pytest.mark.parametrize("name", NAMES)
def test_engines_in_lockstep_write_what_one_engine_writes(name: str, folder: Path, found: list[dict[str, Any]]) -> None:
    checkpoint = loader.load(folder / name)
    engine = Engine(checkpoint.model, decoding.table_of(checkpoint.spec), cache_bytes=2**18)
    expected = converse(engine, checkpoint.spec)
    assert len(expected) == 3
    assert found[0][name]["replies"] == expected
    assert found[1][name]["replies"] is None


@pytest.mark.parametrize("name", NAMES)
def test_every_rank_holds_its_part_of_what_is_divided(name: str, folder: Path, found: list[dict[str, Any]]) -> None:
    whole = loader.load(folder / name)
    assert found[0][name]["spec"] == whole.spec
    for part, parameter in whole.model.named_parameters():
        is_cut = "_proj" in part or part.startswith("lm_head")
        for rank in found:
            assert rank[name]["sizes"][part] == parameter.numel() // (RANKS if is_cut else 1), part


def test_all_ranks_read_the_clock_of_the_first(found: list[dict[str, Any]]) -> None:
    assert found[0]["clocks"] == found[1]["clocks"] == sorted(found[0]["clocks"])


def test_quantised_parts_add_up_to_the_quantised_model(folder: Path, found: list[dict[str, Any]]) -> None:
    expected = logits_of(loader.load(folder / "llada2").model)
    for head in ("int8, False", "int8, True"):
        # Rows of o_proj and down_proj have a scale per rank, so the numbers are not those of one process; see test_quantize for 0.9.
        assert torch.cosine_similarity(found[0][head], expected, dim=-1).mean() > 0.9
        assert torch.equal(found[0][head], found[1][head])
    assert not torch.equal(found[0]["int8, False"], found[0]["int8, True"])


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_ranks_parts_together_are_the_whole(name: str, ranks: int) -> None:
    """Every number of every tensor that is divided is on exactly one rank."""
    spec = spec_of(name)
    family = family_named(spec.family)
    with torch.device("meta"):
        whole = {**dict((network := family.build(spec)).named_parameters()), **dict(network.named_buffers())}
    divided = [divide(family, spec, rank, ranks) for rank in range(ranks)]
    places = [{**dict(part.named_parameters()), **dict(part.named_buffers())} for part, _ in divided]
    for disk, slot in family.tensors(spec).items():
        shape = slot.of(whole[slot.parameter]).shape
        numbers = torch.arange(shape.numel()).view(shape)
        parts = []
        for (_, cut), place in zip(divided, places, strict=True):
            part = cut.of(disk, numbers)
            assert part.shape == cut.slots[disk].of(place[cut.slots[disk].parameter]).shape, disk
            parts.append(part.flatten())
        if parts[0].numel() == numbers.numel():
            assert all(torch.equal(part, numbers.flatten()) for part in parts)
        else:
            assert torch.equal(torch.cat(parts).sort().values, numbers.flatten())


def test_a_query_head_goes_where_its_key_head_goes() -> None:
    """LLaDA2 stores queries, keys and values as one tensor: 4 query heads on 2 key heads."""
    spec = spec_of("llada2")
    _, cut = divide(family_named(spec.family), spec, 1, 2)
    heads = torch.arange(8).repeat_interleave(spec.head_dim).unsqueeze(1).expand(-1, spec.hidden_size)
    part = cut.of("model.layers.0.attention.query_key_value.weight", heads)
    assert part[:: spec.head_dim, 0].tolist() == [2, 3, 5, 7]


@pytest.mark.parametrize("name", ["sdar", "llada2"])
def test_heads_that_do_not_divide_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"ranks.*4.*divisor of num_key_value_heads, 2"):
        local_spec(spec_of(name), 4)
    with pytest.raises(ConfigError, match=r"ranks.*3.*divisor of"):
        local_spec(spec_of(name), 3)


def test_full_layers_with_one_key_head_are_refused() -> None:
    config = MIXTURES["diffusion_gemma"] | {"text_config": test_diffusion_gemma.TEXT}
    with pytest.raises(ConfigError, match="sliding.full_key_value_heads, 1"):
        local_spec(family_of(config).read_config(config), 2)


def test_networks_for_study_are_not_divided() -> None:
    spec = replace(tiny_spec("sdar"), condition_size=8)
    with pytest.raises(ConfigError, match="are not divided"):
        local_spec(spec, 2)


def test_a_head_whose_vocabulary_does_not_divide_is_on_every_rank() -> None:
    spec = replace(tiny_spec("sdar"), vocab_size=97)
    network, cut = divide(family_named("sdar"), spec, 0, 2)
    assert not cut.is_head_cut
    assert isinstance(network.lm_head, nn.Linear) and network.lm_head.out_features == 97


# --- lockstep, in one process -----------------------------------------------------------------------------------------


class Recorded(Team):
    """A team that writes down what the leader tells."""

    def __init__(self, rank: int = 0) -> None:
        object.__setattr__(self, "rank", rank)
        object.__setattr__(self, "told", [])

    def tell(self, command: parallel.Command) -> None:
        self.told.append(command)  # type: ignore[attr-defined]


def test_the_others_stop_when_the_leader_fails() -> None:
    team, engine = Recorded(), decoding.engine_of(tiny.model())

    def fail(leader: LeadingEngine) -> None:
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        parallel.run(engine, team, fail)
    assert team.told == [parallel.Stop()]  # type: ignore[attr-defined]


def test_a_rank_that_fell_out_of_step_says_so() -> None:
    engine = decoding.engine_of(tiny.model())
    with pytest.raises(AssertionError, match=r"rank 0 holds drafts \(1,\), this rank \(\)"):
        parallel.obey(engine, parallel.Round((1,)))


def test_commands_for_finished_drafts_change_nothing() -> None:
    engine = decoding.engine_of(tiny.model())
    for command in (parallel.Cancel(5), parallel.Replan(5, PLAN), parallel.Revise(5, (4,), None)):
        parallel.obey(engine, command)
    assert not engine.drafts


def test_a_process_alone_is_told_to_use_torchrun() -> None:
    with pytest.raises(ConfigError, match="torchrun"), parallel.join("cpu"):
        pass
