"""Which autoregressive architectures become which diffusion families, and with what specification.

A family fits when its blocks compute what the architecture's blocks compute, so that under a causal mask the converted model gives the
logits of the original. What is new is who sees whom, where a position's distribution is read, and the mask token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dllm.errors import ConfigError, ConversionError
from dllm.models.layout import expect, read_geometry
from dllm.models.registry import family_named
from dllm.spec import MaskKind, ModelSpec, SpecialTokens


@dataclass(frozen=True, slots=True)
class Target:
    """A family as it is made from an architecture. Values are those of the family's published checkpoints."""

    source: Literal["llama", "qwen2", "qwen3"]
    """`model_type` of the autoregressive checkpoint."""
    mask_kind: MaskKind
    logit_shift: Literal[0, 1] = 0
    block: int = 0
    """Usual block; 0 for families without one."""
    sub_block: int = 0
    seeds_block: bool = False
    causal_verify: bool = False


TARGETS: dict[str, Target] = {
    "sdar": Target("qwen3", "block_causal", block=4),
    "dream": Target("qwen2", "full", logit_shift=1),
    "fast_dllm": Target("qwen2", "block_causal", logit_shift=1, block=32, sub_block=8, seeds_block=True),
    "llada": Target("llama", "full"),
    "nemotron": Target("llama", "causal_prefix_bidir_block", block=32, seeds_block=True, causal_verify=True),
}
"""By family name."""

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def check_source(body: Mapping[str, Any], to: str, file: Path) -> Target:
    """The target, once it is certain that the checkpoint is of the architecture that it is made from.

    Raises:
        ConfigError: If nothing is converted to that family.
        ConversionError: If the checkpoint is of another architecture.
    """
    if to not in TARGETS:
        raise ConfigError("--to", to, f"one of {', '.join(TARGETS)}")
    target = TARGETS[to]
    model_type, architecture = body.get("model_type"), next(iter(body.get("architectures") or ()), None)
    wanted = ARCHITECTURES[target.source]
    if model_type != target.source or architecture not in (wanted, None):
        fitting = [name for name, other in TARGETS.items() if other.source == model_type]
        hint = f"; from {model_type} there is {', '.join(fitting)}" if fitting else ""
        raise ConversionError(
            file,
            f"model_type {model_type!r}, architecture {architecture!r}: {to} is made from {target.source!r}, {wanted}{hint}",
        )
    return target


def converted_spec(
    body: Mapping[str, Any], to: str, special: SpecialTokens, rows: int, block: int | None, file: Path
) -> ModelSpec:
    """The specification of the converted model.

    Args:
        body: The autoregressive checkpoint's config.json.
        rows: Rows of the embedding with the mask token.
        block: None is the family's usual one.
        file: Where `body` was read, for errors.

    Raises:
        ConfigError: If the family has no blocks and one is wanted.
        ConversionError: If a key is missing, the network cannot do what the config says, or the family's layout cannot tell it.
    """
    target = check_source(body, to, file)
    if block is not None and not target.block:
        raise ConfigError("--block", block, f"no block: {to} sees the whole canvas")
    size = block or target.block or 1
    try:
        # Qwen2 always has the biases that attention_bias would switch on elsewhere.
        expect(body, {} if target.source == "qwen2" else {"attention_bias": False})
        expect(dict.fromkeys(body.get("layer_types") or (), True), {"sliding_attention": False})
        geometry = read_geometry(body) | {"vocab_size": rows}
        spec = ModelSpec(
            **geometry,
            special=special,
            family=to,
            qk_norm=target.source == "qwen3",
            qkv_bias=target.source == "qwen2",
            mask_kind=target.mask_kind,
            logit_shift=target.logit_shift,
            block=size,
            sub_block=target.sub_block if target.sub_block and size % target.sub_block == 0 else 0,
            seeds_block=target.seeds_block,
            causal_verify=target.causal_verify,
        )
    except KeyError as error:
        raise ConversionError(file, f"{error.args[0]} is missing") from error
    except (ConfigError, TypeError, ValueError) as error:
        raise ConversionError(file, str(error)) from error
    _check_layout(spec, file)
    return spec


def _check_layout(spec: ModelSpec, file: Path) -> None:
    """The family's published config must bring back the very same specification."""
    family = family_named(spec.family)
    try:
        again = family.read_config(family.write_config(spec))
    except ConfigError as error:
        raise ConversionError(file, f"the layout of {spec.family} cannot hold this model: {error}") from error
    before, after = asdict(spec), asdict(again)
    if lost := [
        f"{name} = {value!r} (it would be {after[name]!r})" for name, value in before.items() if after[name] != value
    ]:
        raise ConversionError(file, f"the layout of {spec.family} cannot tell of {'; '.join(lost)}")
