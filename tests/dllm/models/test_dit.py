"""MDLM and SEDD: what the recordings of their published code (`test_recorded`) do not show."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dllm.errors import ConfigError
from dllm.models.dit import MDLM, SEDD, Dit, total_noise
from dllm.models.registry import family_of
from tests.dllm.models.tiny_checkpoints import from_disk, on_disk

MDLM_CONFIG: dict[str, Any] = {
    "architectures": ["MDLM"],
    "model_type": "mdlm",
    "vocab_size": 31,
    "hidden_dim": 32,
    "n_heads": 4,
    "n_blocks": 2,
    "model_length": 64,
    "cond_dim": 16,
    "time_conditioning": False,
}
SEDD_CONFIG: dict[str, Any] = {
    "tokens": 30,
    "graph": {"type": "absorb", "file": "data", "report_all": False},
    "noise": {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20},
    "model": {
        "name": "small",
        "type": "ddit",
        "hidden_size": 32,
        "cond_dim": 16,
        "length": 64,
        "n_blocks": 2,
        "n_heads": 4,
        "scale_by_sigma": True,
    },
}
OWT = MDLM_CONFIG | {
    "vocab_size": 50_258,
    "hidden_dim": 768,
    "n_heads": 12,
    "n_blocks": 12,
    "model_length": 1024,
    "cond_dim": 128,
}
MASK = 30


def opinionated(network: nn.Module) -> Dit:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (".norm" in name))
    assert isinstance(network, Dit)
    return network.eval().requires_grad_(False)


@pytest.fixture
def mdlm() -> Dit:
    return opinionated(MDLM.build(MDLM.read_config(MDLM_CONFIG)))


@pytest.fixture
def sedd() -> Dit:
    return opinionated(SEDD.build(SEDD.read_config(SEDD_CONFIG)))


def canvas(length: int = 9) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, MASK, (2, length), generator=torch.Generator().manual_seed(1))
    ids[:, 2::2] = MASK
    return ids, torch.arange(length).expand(2, -1)


def test_noise_left_out_is_read_off_the_share_of_masks(sedd: Dit) -> None:
    ids, positions = canvas()
    share = torch.full((2,), 4 / 9)
    assert torch.equal(sedd(ids, positions, None), sedd(ids, positions, None, noise=total_noise(share)))
    assert not torch.allclose(sedd(ids, positions, None), sedd(ids, positions, None, noise=total_noise(share * 0)))


def test_total_noise_leaves_one_token_in_a_thousand_at_the_end() -> None:
    assert total_noise(torch.tensor(0.0)).item() == 0.0
    assert total_noise(torch.tensor(1.0)).item() == pytest.approx(math.log(1000), rel=1e-5)


def test_rows_have_noise_levels_of_their_own(sedd: Dit) -> None:
    ids, positions = canvas()
    noise = torch.tensor([0.3, 2.0])
    both = sedd(ids, positions, None, noise=noise)
    for row in range(2):
        alone = sedd(ids[row : row + 1], positions[:1], None, noise=noise[row : row + 1])
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_noise_is_refused_where_the_model_was_trained_without(mdlm: Dit) -> None:
    with pytest.raises(ValueError, match="trained without a noise level"):
        mdlm(*canvas(), None, noise=torch.zeros(2))


def test_stored_prefix_gives_what_a_masked_forward_gives(mdlm: Dit) -> None:
    ids, positions = canvas()
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[:4, 4:] = False
    whole = mdlm(ids, positions, mask[None, None])
    stores = mdlm.new_stores(2, 9)
    first = mdlm(ids[:, :4], positions[:, :4], None, stores, 0)
    rest = mdlm(ids[:, 4:], positions[:, 4:], None, stores, 4)
    # float32 sums in another order.
    torch.testing.assert_close(torch.cat((first, rest), dim=1), whole, atol=1e-4, rtol=1e-4)


def test_fresh_weights_make_every_layer_the_identity() -> None:
    network = MDLM.build(MDLM.read_config(MDLM_CONFIG))
    assert isinstance(network, Dit)
    network.reset_parameters(torch.Generator().manual_seed(0))
    ids, positions = canvas()
    expected = torch.nn.functional.layer_norm(network.embed_tokens(ids), (32,))
    torch.testing.assert_close(network(ids, positions, None), expected)


def test_a_canvas_is_sampled_token_by_token_in_any_order(mdlm: Dit) -> None:
    generator = torch.Generator().manual_seed(2)
    ids, positions = canvas()
    given = ids.clone()
    for place in torch.randperm(9, generator=generator).tolist():
        logits = mdlm.logits(mdlm(ids, positions, None))[:, place]
        logits[:, MASK] = float("-inf")
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        ids[:, place] = torch.where(ids[:, place] == MASK, drawn, ids[:, place])
    assert (ids != MASK).all() and torch.equal(ids[given != MASK], given[given != MASK])


@pytest.mark.parametrize(("family", "config"), [(MDLM, MDLM_CONFIG), (SEDD, SEDD_CONFIG)])
def test_saved_and_reloaded_network_is_equal(family: Any, config: dict[str, Any]) -> None:
    network = opinionated(family.build(family.read_config(config)))
    again = from_disk(network.spec, on_disk(network))
    assert torch.equal(again(*canvas(), None), network(*canvas(), None))


def test_half_precision_keeps_the_rotary_tables(mdlm: Dit) -> None:
    half = mdlm.bfloat16()
    assert half.rotary.cos.dtype == torch.float32 and half(*canvas(), None).dtype == torch.bfloat16


@pytest.mark.parametrize("config", [MDLM_CONFIG, OWT, OWT | {"time_conditioning": True}])
def test_configuration_of_mdlm_survives_being_written(config: dict[str, Any]) -> None:
    spec = MDLM.read_config(config)
    written = MDLM.write_config(spec)
    assert family_of(written) is MDLM and MDLM.read_config(written) == spec


def test_configuration_of_sedd_survives_being_written() -> None:
    spec = SEDD.read_config(SEDD_CONFIG)
    written = SEDD.write_config(spec)
    assert family_of(written) is SEDD and SEDD.read_config(written) == spec


def test_released_configuration_means_gpt2_and_a_mask() -> None:
    spec = MDLM.read_config(OWT)
    assert (spec.special.mask, spec.special.ends, spec.intermediate_size) == (50_257, (50_256,), 3072)
    assert spec.mask_kind == "full" and not spec.sees_noise


def test_configuration_without_a_name_is_known_by_its_tensors() -> None:
    names = frozenset(SEDD.tensors(SEDD.read_config(SEDD_CONFIG)))
    assert family_of(SEDD_CONFIG, names) is SEDD
    assert family_of({}, frozenset(f"backbone.{name}" for name in names)) is MDLM


@pytest.mark.parametrize("change", [{"graph": {"type": "uniform"}}, {"noise": {"type": "geometric"}}])
def test_sedd_of_another_kind_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        SEDD.read_config(SEDD_CONFIG | change)
    assert caught.value.key == "type"
