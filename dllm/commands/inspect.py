"""`dllm inspect`: what a checkpoint is, what it needs, and what is missing. Weights may be absent."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm.commands import model
from dllm.errors import CheckpointError, ConfigError, DllmError

if TYPE_CHECKING:
    from dllm.codec import Codec
    from dllm.models.family import Family
    from dllm.shards import Stored
    from dllm.spec import ModelSpec

BYTES = {"float32": 4, "bfloat16": 2}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("inspect", help="what a checkpoint is, what it needs, what is missing")
    model.add_model_arguments(parser, with_device=False)
    parser.add_argument("checkpoint", nargs="?", help="the same as --model")
    parser.add_argument("--family", help="name of a family, whatever the configuration says")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    report = inspect(_folder(args.checkpoint or args.model), args.family)
    if args.json:
        print(json.dumps(report))
        return 0
    for title, value in report.items():
        if isinstance(value, dict):
            print(f"{title}:")
            for name, text in value.items():
                print(f"  {name:24s} {_plain(text)}")
        elif isinstance(value, list):
            print(f"{title}: {', '.join(map(str, value)) if value else 'nothing'}")
        else:
            print(f"{title}: {_plain(value)}")
    return 0


def _folder(name: str | None) -> Path:
    from dllm.hub import find_checkpoint
    from dllm.loader import BUILTIN

    source = model.source(name)
    return BUILTIN if source is None else find_checkpoint(source)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return (
        {True: "yes", False: "no", None: "none"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )


def inspect(folder: Path, family_name: str | None = None) -> dict[str, Any]:
    """Everything that can be told from a checkpoint's files, as JSON.

    Raises:
        CheckpointError: If there is no configuration, it cannot be read, or it is of no family.
    """
    from dllm.loader import read_config
    from dllm.models.registry import family_of

    config = read_config(folder)
    missing: list[str] = []
    stored = _stored(folder, missing)
    family = family_of(config, frozenset(stored), family_name)
    try:
        spec = family.read_config(config)
    except KeyError as error:
        raise CheckpointError(
            f"{folder / 'config.json'}: {error.args[0]} is missing, which {family.name} needs"
        ) from error
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    codec = _codec(folder, spec, missing)
    parameters, active = count_parameters(family, spec)
    missing += _absent_tensors(family, spec, stored)
    return {
        "folder": str(folder),
        "family": family.name,
        "parameters": _count(parameters) + (f", {_count(active)} of them for a token" if active < parameters else ""),
        "geometry": _geometry(spec),
        "decoding": _habits(family, spec),
        "special tokens": _tokens(spec, codec),
        "memory": _memory(family, spec, parameters),
        "on disk": _on_disk(stored),
        "missing": missing,
    }


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e8 else f"{number / 1e6:.2f} M"


def _size(count: float) -> str:
    unit, divisor = next((pair for pair in (("GiB", 2**30), ("MiB", 2**20)) if count >= pair[1]), ("KiB", 2**10))
    return f"{count / divisor:.2f} {unit}"


def _stored(folder: Path, missing: list[str]) -> dict[str, Stored]:
    from dllm.shards import list_tensors

    try:
        return list_tensors(folder)
    except CheckpointError as error:
        missing.append(f"weights ({error})")
        return {}


def _codec(folder: Path, spec: ModelSpec, missing: list[str]) -> Codec | None:
    from dllm.hub_codec import HubCodec
    from dllm.text import DialogueCodec

    try:
        if spec.dialogue is not None:
            return DialogueCodec.load(folder / "tokenizer.json", spec.dialogue)
        return HubCodec.load(folder, spec)
    except (DllmError, OSError) as error:
        missing.append(f"tokenizer ({error})")
        return None


def _absent_tensors(family: Family, spec: ModelSpec, stored: Mapping[str, Stored]) -> list[str]:
    """Names, four at most, then how many more."""
    if not stored:
        return []
    absent = sorted(name for name, slot in family.tensors(spec).items() if name not in stored and not slot.is_optional)
    return [f"tensor {name}" for name in absent[:4]] + ([f"{len(absent) - 4} more tensors"] if len(absent) > 4 else [])


def count_parameters(family: Family, spec: ModelSpec) -> tuple[int, int]:
    """All of them, and those that one token's forward reads (of experts, the chosen ones)."""
    import torch

    with torch.device("meta"):
        network = family.build(spec)
    total = active = 0
    for parameter in network.parameters():
        total += parameter.numel()
        # Experts are packed: [experts, rows, columns].
        is_packed = spec.moe is not None and parameter.dim() == 3 and parameter.shape[0] == spec.moe.experts
        share = spec.moe.experts_per_token / spec.moe.experts if is_packed and spec.moe is not None else 1.0
        active += round(parameter.numel() * share)
    return total, active


def _geometry(spec: ModelSpec) -> dict[str, Any]:
    found: dict[str, Any] = {
        "vocabulary": spec.vocab_size,
        "hidden size": spec.hidden_size,
        "layers": spec.num_hidden_layers,
        "heads": f"{spec.num_attention_heads} on {spec.num_key_value_heads} of {spec.head_dim}",
        "positions": spec.max_position_embeddings,
        "tied head": spec.tie_word_embeddings,
    }
    if spec.moe is not None:
        found["experts"] = f"{spec.moe.experts_per_token} of {spec.moe.experts}"
    return found


def _habits(family: Family, spec: ModelSpec) -> dict[str, Any]:
    """What kind of model it is and how it is decoded unless asked otherwise."""
    modes = ["diffusion", *(["causal", "self_speculative"] if spec.causal_verify else [])]
    found: dict[str, Any] = {
        "corruption": spec.corruption,
        "mask": spec.mask_kind,
        "block": spec.block if spec.mask_kind != "full" else "none",
        "sub-block": spec.sub_block or "none",
        "logit shift": spec.logit_shift,
        "widest canvas": spec.max_canvas or "as the positions allow",
        "modes": modes,
        "edits decided tokens": spec.edit_capable,
    }
    defaults = asdict(family.defaults)
    if spec.mask_kind != "full":
        del defaults["block"]
    found["defaults"] = ", ".join(
        f"{name} {value}" for name, value in defaults.items() if value not in (None, False, 0)
    )
    return found


def _tokens(spec: ModelSpec, codec: Codec | None) -> dict[str, Any]:
    def shown(token: int | None) -> str:
        if token is None:
            return "none"
        text = _text_of(codec, token)
        return f"{token}" + (f" {text}" if text else "")

    special = spec.special
    return {
        "mask": shown(special.mask),
        "ends": [shown(end) for end in special.ends],
        "pad": shown(special.pad),
        "bos": shown(special.bos),
        "never in a reply": f"{len(special.forbidden if codec is None else codec.token_table.forbidden)} tokens",
    }


def _text_of(codec: Codec | None, token: int) -> str:
    """How the tokenizer spells a token, specials too."""
    tokenizer = getattr(codec, "tokenizer", None)
    return str(tokenizer.id_to_token(token) or "") if tokenizer is not None else ""


def _memory(family: Family, spec: ModelSpec, parameters: int) -> dict[str, Any]:
    import torch

    from dllm.models.family import EIGHT_BITS

    with torch.device("meta"):
        network = family.build(spec)
        stores = network.new_stores(1, 1)  # type: ignore[operator]
        eight = network.new_stores(1, 1, EIGHT_BITS)  # type: ignore[operator]
    token = sum(part.numel() for store in stores for part in store.parts)
    found: dict[str, Any] = {}
    for name, size in BYTES.items():
        found[name] = f"{_size(parameters * size)} of weights, {_size(token * size)} a cached token"
    if spec.mask_kind != "full":
        found["e4m3 cache"] = f"{_size(sum(store.bytes for store in eight))} a cached token"
    context = min(spec.max_position_embeddings, 4096)
    found[f"{context} positions"] = f"{_size(token * context * BYTES['bfloat16'])} of keys and values in bfloat16"
    return found


def _on_disk(stored: Mapping[str, Stored]) -> dict[str, Any]:
    kinds: dict[str, int] = {}
    for tensor in stored.values():
        kinds[tensor.kind] = kinds.get(tensor.kind, 0) + tensor.bytes
    return {
        "weight files": len({tensor.file for tensor in stored.values()}),
        "tensors": len(stored),
        **{kind: _size(size) for kind, size in sorted(kinds.items())},
    }
