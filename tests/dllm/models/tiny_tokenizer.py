"""A published tokenizer with as many tokens as a tiny model has: letters, and special tokens at the model's ids."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from dllm.spec import ModelSpec

TEMPLATE = "{% for message in messages %}{{ message.role }}:{{ message.content }}<e2>{% endfor %}assistant:"


def write_tokenizer(folder: Path, spec: ModelSpec) -> Path:
    """Token files for `spec`, whose special ids become tokens <mask>, <e2>, <s0>, ...; other ids are single bytes."""
    special = spec.special
    named = {token: f"<e{token}>" for token in special.ends}
    if special.mask is not None:
        named[special.mask] = "<mask>"
    for token in (special.pad, special.bos):
        if token is not None:
            named.setdefault(token, f"<s{token}>")
    letters = iter(
        "Ġetaoinsrhldcumfpgwybvk.,?!$0123456789':;-jxqzETAOINSRHLDCUMFPGWYBVKJXQZ()/*+=<>&%#@_{}[]|~^`\\\"Ċĉ"
    )
    vocab = {named[token] if token in named else next(letters): token for token in range(spec.vocab_size)}
    tokenizer = Tokenizer(BPE(vocab, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in named.values()])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"mask_token": "<mask>"} if special.mask is not None else {}
    body = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(body))
    return folder
