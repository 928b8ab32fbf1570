"""The mask token in a published tokenizer, and the tokens that end a reply."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from dllm.errors import ConversionError
from dllm.hub_codec import FILES, read_json, read_tokenizer, token_names
from dllm.spec import SpecialTokens

MASK_TEXT = "<|mask|>"
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
"""End a turn in the chat templates of these architectures' checkpoints; base checkpoints' configs name another token."""


@dataclass(frozen=True, slots=True)
class MaskedTokenizer:
    """A checkpoint's tokenizer with a mask token."""

    tokenizer: Tokenizer
    mask_text: str
    special: SpecialTokens
    known: int
    """Tokens before the mask token came: one more than the largest id."""
    is_new: bool
    """Whether the checkpoint had no mask token."""

    @property
    def mask(self) -> int:
        assert self.special.mask is not None
        return self.special.mask


def with_mask_token(folder: Path, body: Mapping[str, Any], text: str | None = None) -> MaskedTokenizer:
    """Read a checkpoint's tokenizer and add a mask token, unless it has one of that text.

    Args:
        body: The checkpoint's config.json; generation_config.json, where there is one, tells more ends of a reply.
        text: None is the tokenizer's own mask token, or `MASK_TEXT`.

    Raises:
        TokenizerError: If the tokenizer cannot be read.
        ConversionError: If no token is known to end a reply.
    """
    config = read_json(folder / "tokenizer_config.json")
    names = token_names(config, read_json(folder / "special_tokens_map.json"))
    tokenizer = read_tokenizer(folder, config)
    known = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    text = text or names.get("mask_token") or MASK_TEXT
    is_new = tokenizer.token_to_id(text) is None
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True)])
    mask = tokenizer.token_to_id(text)
    generation = read_json(folder / "generation_config.json")
    template = folder / "chat_template.jinja"
    templates = json.dumps(config.get("chat_template")) + (template.read_text("utf-8") if template.is_file() else "")
    ends = [
        *(token for end in _TURN_ENDS if end in templates for token in _ids(tokenizer, end)),
        *_ids(tokenizer, names.get("eos_token")),
        *_ids(tokenizer, generation.get("eos_token_id")),
        *_ids(tokenizer, body.get("eos_token_id")),
    ]
    ends = [end for end in dict.fromkeys(ends) if end != mask]
    if not ends:
        raise ConversionError(
            folder, "no token ends a reply: eos_token_id is not in the config, nor eos_token in the tokenizer"
        )
    pad = [*_ids(tokenizer, names.get("pad_token")), *_ids(tokenizer, body.get("pad_token_id")), ends[-1]][0]
    bos = [*_ids(tokenizer, names.get("bos_token")), *_ids(tokenizer, body.get("bos_token_id")), pad][0]
    return MaskedTokenizer(tokenizer, text, SpecialTokens(mask, tuple(ends), pad, bos), known, is_new)


def _ids(tokenizer: Tokenizer, value: Any) -> list[int]:
    """What a config says of special tokens, a text, an id or a list of ids, as ids that the tokenizer has."""
    if isinstance(value, str):
        found = tokenizer.token_to_id(value)
        return [] if found is None else [found]
    values = value if isinstance(value, list) else [value]
    return [token for token in values if isinstance(token, int) and tokenizer.id_to_token(token) is not None]


def save_tokenizer(made: MaskedTokenizer, source: Path, out: Path) -> None:
    """Write the tokenizer's files: the chat template and all else as they were, and the mask token in each file that lists tokens."""
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    made.tokenizer.save(str(out / "tokenizer.json"))
    entry = {"content": made.mask_text, "lstrip": False, "normalized": False, "rstrip": False}
    entry |= {"single_word": False, "special": True}
    config = read_json(source / "tokenizer_config.json") | {"mask_token": made.mask_text}
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] = {**config["added_tokens_decoder"], str(made.mask): entry}
    _write(out / "tokenizer_config.json", config)
    if (source / "added_tokens.json").is_file():
        _write(out / "added_tokens.json", {**read_json(source / "added_tokens.json"), made.mask_text: made.mask})
    if (source / "special_tokens_map.json").is_file():
        _write(
            out / "special_tokens_map.json",
            read_json(source / "special_tokens_map.json") | {"mask_token": made.mask_text},
        )


def _write(path: Path, body: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", "utf-8")
