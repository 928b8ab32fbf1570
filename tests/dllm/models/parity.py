"""What every family's test does: our network against transformers' backbone, and a network against itself run in pieces."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dllm.models.family import LayerStore, Network
from dllm.models.registry import family_named
from dllm.spec import ModelSpec
from tests.dllm.models.tiny_checkpoints import VOCAB, from_disk, on_disk, random_network, tiny_spec

TOLERANCE = {torch.float64: 2e-6, torch.float32: 2e-5}
"""Of logits around 1 in size. float32: rounding in two layers summed in different orders. float64: both sides hold rotary tables in
float32 and the oracle computes its norms in float32, so it is no tighter than that."""

DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
LENGTHS = pytest.mark.parametrize(("prompt", "canvas"), [(1, 4), (7, 9), (13, 31), (29, 3)])


def seen(spec: ModelSpec, prompt: int, length: int, causal: bool = False) -> Tensor:
    """Who sees whom, [length, length] bool, straight from the definitions: query i, key j."""
    i, j = torch.arange(length).unsqueeze(1), torch.arange(length).unsqueeze(0)
    if causal or spec.mask_kind == "causal":
        return j <= i
    if spec.mask_kind == "full":
        return torch.ones(length, length, dtype=torch.bool)
    if spec.mask_kind == "block_causal":
        return torch.div(j, spec.block, rounding_mode="floor") <= torch.div(i, spec.block, rounding_mode="floor")
    return (j <= i) | (i >= prompt)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(1, 1, *mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def random_ids(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def position_logits(logits: Tensor, spec: ModelSpec) -> Tensor:
    """The distributions of positions `logit_shift` and later: position i is read from row i - shift."""
    return logits[:, : logits.shape[1] - spec.logit_shift]


def oracle(kind: str, spec: ModelSpec, weights: dict[str, Tensor], dtype: torch.dtype, **config: Any) -> nn.Module:
    """transformers' `{kind}ForCausalLM` with eager attention, filled with weights in its own names; none missing, none left over."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
        "rms_norm_eps max_position_embeddings tie_word_embeddings"
    ).split()
    rope = {"rope_type": "default", "rope_theta": spec.rope.theta}
    body = {name: getattr(spec, name) for name in names} | {"rope_parameters": rope} | config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = getattr(transformers, f"{kind}Config")(**body, attn_implementation="eager")
        network: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(built).eval()
        missing, unexpected = network.load_state_dict(weights, strict=False)
    assert set(missing) <= ({"lm_head.weight"} if spec.tie_word_embeddings else set()) and not unexpected
    network.tie_weights()  # type: ignore[operator]
    return network.to(dtype)


def assert_logits_equal(
    ours: nn.Module, theirs: nn.Module, dtype: torch.dtype, prompt: int, canvas: int, causal: bool = False
) -> None:
    spec: ModelSpec = ours.spec  # type: ignore[assignment]
    length = prompt + canvas
    ids, positions = random_ids(2, length), torch.arange(length).expand(2, length)
    mask = seen(spec, prompt, length, causal)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=additive(mask, dtype), position_ids=positions).logits
        actual = ours.logits(ours(ids, positions, mask.view(1, 1, length, length)))  # type: ignore[operator]
    assert actual.dtype == dtype and expected.std() > 0.3, "opinions to compare"
    tolerance = TOLERANCE[dtype]
    expected, actual = position_logits(expected, spec), position_logits(actual, spec)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def reloaded(family: str, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network filled from the published names of a random one, and those tensors."""
    spec = tiny_spec(family)
    weights = on_disk(random_network(spec, seed=5))
    return from_disk(spec, weights).to(dtype), weights


# --- in pieces ------------------------------------------------------------------------------------------------------------------------


def forward(network: nn.Module, ids: Tensor, mask: Tensor | None, stores: list[LayerStore], at: int) -> Tensor:
    positions = torch.arange(at, at + ids.shape[1]).expand(*ids.shape)
    hidden: Tensor = network(ids, positions, mask, stores, at)
    return hidden


def assert_pieces_equal_the_whole(family: str, prompt: int, canvas: int) -> None:
    """Text first, into stores, then the canvas over them: the same hidden states as in one forward, in float64.

    Block-causal: block after block, the prompt's tail inside the first live one. Causal prefix: text, then the canvas without a mask.
    Full: the canvas again, over the stores of a whole forward.
    """
    spec = tiny_spec(family)
    network = random_network(spec, seed=3).double()
    assert isinstance(network, Network)
    length = prompt + canvas
    ids = random_ids(2, length)
    mask = seen(spec, prompt, length)
    whole = network(ids, torch.arange(length).expand(2, length), mask.view(1, 1, length, length))
    stores = network.new_stores(2, length)
    cuts = [0, prompt, length]
    if spec.mask_kind == "block_causal":
        cuts = [0, *range(prompt // spec.block * spec.block or spec.block, length, spec.block), length]
    elif spec.mask_kind == "full":
        forward(network, ids, None, stores, 0)
        cuts = [prompt, length]
    for first, last in itertools.pairwise(cuts):
        # Finished text needs its rows of the mask; a live block or canvas sees all there is, so it needs none.
        is_text = first == 0
        piece_mask = mask[first:last, :last].view(1, 1, last - first, last) if is_text else None
        piece = forward(network, ids[:, first:last], piece_mask, stores, first)
        # float64 throughout, but for sums over keys in another order.
        torch.testing.assert_close(piece, whole[:, first:last], atol=1e-12, rtol=1e-12)


def assert_rows_of_their_own(family: str) -> None:
    """Canvases behind prefixes of 5, 8 and 0 tokens in one padded batch, each written at its own start: as if each were alone."""
    spec = tiny_spec(family)
    network = random_network(spec, seed=4).double()
    assert isinstance(network, Network)
    width, lengths = 4, (5, 8, 0)
    ids = random_ids(len(lengths), max(lengths) + width)
    stores = network.new_stores(len(lengths), 16)
    total = max(lengths) + width
    alone = []
    for row, length in enumerate(lengths):
        own = network.new_stores(1, length + width)
        if length:
            causal = torch.ones(length, length, dtype=torch.bool).tril().view(1, 1, length, length)
            forward(network, ids[row : row + 1, :length], causal, own, 0)
        for shared, store in zip(stores, own, strict=True):
            for place, tensor in zip(shared.parts, store.parts, strict=True):
                place[row, :, :length] = tensor[0, :, :length]
                place[row, :, length:] = 7.0  # what earlier drafts left behind
        alone.append(forward(network, ids[row : row + 1, length : length + width], None, own, length)[0])
    start = torch.tensor(lengths)
    positions = start.unsqueeze(1) + torch.arange(width)
    tokens = ids.gather(1, positions)
    mask = (torch.arange(total) < start.unsqueeze(1) + width).view(-1, 1, 1, total)
    for one in (mask, mask.expand(-1, 1, width, total)):  # one row of the mask for all queries, and one for each
        together = network(tokens, positions, one, stores, start)
        torch.testing.assert_close(together, torch.stack(alone), atol=1e-12, rtol=1e-12)
    assert all((store.keys[:, :, total:] == 7.0).all() for store in stores), "slots behind stay"
    with pytest.raises(ValueError, match="a start per row needs a mask"):
        network(tokens, positions, None, stores, start)


def assert_config_round_trip(family: str, body: dict[str, Any]) -> ModelSpec:
    record = family_named(family)
    spec = record.read_config(body)
    written = record.write_config(spec)
    assert record.read_config(written) == spec
    assert (written["model_type"], written["architectures"]) == (body["model_type"], body["architectures"])
    return spec


def assert_map_covers(spec: ModelSpec) -> None:
    """Every element of every parameter is filled by exactly one published tensor."""
    with torch.device("meta"):
        network = family_named(spec.family).build(spec)
    filled = {name: torch.zeros(parameter.shape, dtype=torch.int8) for name, parameter in network.named_parameters()}
    for slot in family_named(spec.family).tensors(spec).values():
        slot.of(filled[slot.parameter]).add_(1)
    assert all(bool((count == 1).all()) for count in filled.values())
