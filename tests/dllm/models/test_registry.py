"""Which family a config and tensor names belong to."""

from __future__ import annotations

import pytest
import torch

from dllm.errors import UnrecognisedModelError
from dllm.models.family import Network
from dllm.models.registry import FAMILIES, family_named, family_of
from tests.dllm.models.parity import assert_map_covers
from tests.dllm.models.tiny_checkpoints import CONFIGS, tiny_spec

DENSE = pytest.mark.parametrize("name", CONFIGS)


@DENSE
def test_written_config_leads_back_to_the_family(name: str) -> None:
    family = family_named(name)
    spec = tiny_spec(name)
    written = family.write_config(spec)
    assert family.read_config(written) == spec
    assert family_of(written) is family
    assert family_of({"architectures": written["architectures"]}) is family
    assert family_of({"model_type": written["model_type"]}) is family


@DENSE
def test_every_weight_has_exactly_one_place_on_disk(name: str) -> None:
    assert_map_covers(tiny_spec(name))


@DENSE
def test_networks_keep_the_contract(name: str) -> None:
    network = family_named(name).build(tiny_spec(name))
    assert isinstance(network, Network) and isinstance(network, torch.nn.Module)


def test_families_that_share_a_claim_tell_themselves_apart() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    claims = [(claim, family) for family in FAMILIES for claim in {*family.model_types, *family.architectures}]
    for claim, family in claims:
        rivals = [other for claimed, other in claims if claimed == claim and other is not family]
        assert not rivals or (family.is_this and all(other.is_this for other in rivals)), claim


def test_override_goes_before_the_config() -> None:
    assert family_of({"architectures": ["DreamModel"], "model_type": "sdar"}, override="llada").name == "llada"


def test_architecture_goes_before_the_model_type() -> None:
    assert family_of({"architectures": ["DreamModel"], "model_type": "sdar"}).name == "dream"


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"num_experts": 64}, frozenset[str]()),
        ({}, frozenset({"model.layers.0.mlp.experts.0.gate_proj.weight"})),
    ],
    ids=["config", "tensor names"],
)
def test_llada_with_experts_is_not_the_dense_family(config: dict[str, int], names: frozenset[str]) -> None:
    assert family_of({"model_type": "llada"}).name == "llada"
    assert family_of({"model_type": "llada", **config}, names).name == "llada_moe"


@pytest.mark.parametrize("name", ["llada", "nemotron"])
def test_tensor_names_tell_where_the_config_does_not(name: str) -> None:
    family = family_named(name)
    assert family_of({"model_type": "mine"}, frozenset(family.tensors(tiny_spec(name)))) is family


def test_unknown_model_is_told_with_what_was_found_and_what_is_known() -> None:
    with pytest.raises(UnrecognisedModelError) as caught:
        family_of(
            {"architectures": ["GPT9"], "model_type": "gpt9"}, frozenset({"model.layers.0.self_attn.q_proj.weight"})
        )
    message = str(caught.value)
    assert "'GPT9'" in message and "'gpt9'" in message and "q_proj" in message
    assert all(family.name in message for family in FAMILIES)
    with pytest.raises(UnrecognisedModelError, match="the name 'gpt9'"):
        family_named("gpt9")
