"""The tokenizer and chat template that a published checkpoint brings along, as the `Codec` that the engine's surroundings use.

Read are tokenizer.json, or vocab.json and merges.txt of Qwen's tokenizers; further tokens and the template from tokenizer_config.json,
added_tokens.json and chat_template.jinja. No code from a checkpoint runs; templates render in transformers' sandbox.

Text in messages stays text. A caller who says "<|im_start|>system" must not start a turn, so tokens with a meaning that are spelled
out in a message are split by a mark before the template sees them, and what the marks are in is tokenized as ordinary text. In the
assistant's own turns tokens that are part of replies, such as "<tool_call>", keep their meaning.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreSequence

from dllm.canvas import TokenTable
from dllm.codec import Message
from dllm.errors import ConfigError, SpecialTokenError, TokenizerError
from dllm.spec import ModelSpec, SpecialTokens
from dllm.text import bytes_of_byte_level, clean, token_table

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""What a checkpoint's tokenizer consists of; none of them alone is required."""

REPLY_MARKERS = frozenset(
    "<tool_call> </tool_call> <think> </think> [TOOL_CALLS] [CALL_ID] [ARGS] [THINK] [/THINK] "
    '<|tool_call> <tool_call|> <|channel> <channel|> <|"|>'.split()
)
"""Tokens with a meaning that are part of replies: what a reader of tool calls and of thoughts looks for. Their text is visible."""
CALL_SIGNS = ("<tool_call>", "[TOOL_CALLS]", "<|tool_call>")
"""Those of them behind which a call is written."""
_CONTROL = re.compile(r"<\|.*\|>|</?tool_response>", re.DOTALL)
"""Added tokens that no reply has, whether or not the tokenizer calls them special (Qwen's fill-in-the-middle tokens are not)."""

_QWEN_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast", "DreamTokenizer")
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MARK = "\ufdd0"
"""A code point that is no character: it is in no text and no normalisation changes it."""


class HubCodec:
    """A published tokenizer.

    Args:
        tokenizer: With all its added tokens.
        special: The model's ids.
        rows: The model's vocab_size; ids that no token has are forbidden in replies.
        templates: Chat templates by name, "default" for the usual one, "tool_use" for chats with tools; may be empty.
        names: Texts of bos_token, eos_token, ... as the templates see them.
        template_options: Further variables for the templates, such as Qwen3's `enable_thinking`.
        folder: Where the files lie, so that `save` can copy them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        special: SpecialTokens,
        rows: int,
        *,
        templates: Mapping[str, str] | None = None,
        names: Mapping[str, str] | None = None,
        template_options: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.tokenizer, self.special, self.rows = tokenizer, special, rows
        self.templates, self.folder = dict(templates or {}), folder
        self._variables = {**(names or {}), **(template_options or {})}
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = False
        self._added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        parts = _parts(tokenizer)
        self._is_byte_level = _has_type(parts["decoder"], "ByteLevel")
        self._bare = _without_prefix(tokenizer, parts)
        self._by_text = {token.content: (index, token) for index, token in self._added.items() if token.content}

    @classmethod
    def load(cls, folder: Path, spec: ModelSpec, template_options: Mapping[str, Any] | None = None) -> HubCodec:
        """Read a checkpoint's tokenizer and check it against the model.

        Raises:
            TokenizerError: If files are missing, unreadable or contradict each other, or there are more tokens than the model has.
            SpecialTokenError: If the mask token is missing or has another id, or a token that ends a reply is missing.
        """
        config = read_json(folder / "tokenizer_config.json")
        tokenizer = read_tokenizer(folder, config)
        names = token_names(config, read_json(folder / "special_tokens_map.json"))
        codec = cls(
            tokenizer,
            spec.special,
            spec.vocab_size,
            templates=_templates(folder, config),
            names=names,
            template_options=template_options,
            folder=folder,
        )
        if codec.vocab_size > spec.vocab_size:
            raise TokenizerError(folder, f"the tokenizer has {codec.vocab_size} tokens, the model {spec.vocab_size}")
        codec._check(names.get("mask_token"))
        return codec

    def _check(self, mask_text: str | None) -> None:
        path, mask = self.folder or Path("tokenizer.json"), self.special.mask
        if mask is not None:
            if mask_text is not None:
                found = self.tokenizer.token_to_id(mask_text)
                if found != mask:
                    raise SpecialTokenError(path, mask_text, mask, found)
            elif mask not in self._added:
                raise SpecialTokenError(path, "the mask token", mask, None)
        for end in self.special.ends:
            if self.tokenizer.id_to_token(end) is None:
                raise SpecialTokenError(path, "an end-of-text token", end, None)

    def save(self, folder: Path) -> None:
        """Copy the files it was read from; a codec without a folder writes what tokenizers can write."""
        if self.folder is None:
            self.tokenizer.save(str(folder / "tokenizer.json"))
            config = {name: text for name, text in self._variables.items() if name.endswith("_token")}
            body = config | ({"chat_template": self.templates["default"]} if "default" in self.templates else {})
            (folder / "tokenizer_config.json").write_text(json.dumps(body, indent=2) + "\n", "utf-8")
            return
        for name in FILES:
            if (self.folder / name).is_file() and self.folder.resolve() != folder.resolve():
                shutil.copyfile(self.folder / name, folder / name)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id of a token."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    # --- text to tokens -----------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        return list(self._bare.encode(text, add_special_tokens=False).ids)

    def encode_pin(self, text: str) -> tuple[int, ...]:
        body = clean(text)
        return tuple(self.encode(" " + body)) if body else ()

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The chat as the checkpoint's template writes it, up to where the assistant's reply begins.

        Raises:
            ConfigError: If there is no message or no template, or the template refuses the messages.
        """
        if not messages:
            raise ConfigError("messages", [], "at least one message")
        text = self._render([self._body(message) for message in messages], [dict(tool) for tool in tools])
        if _MARK not in text:
            return list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        return self._encode_marked(text)

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        template = (self.templates.get("tool_use") if tools else None) or self.templates.get("default")
        if template is None:
            raise ConfigError(
                "chat_template", None, "a checkpoint with a chat template (use plain completions with this one)"
            )
        try:
            chats, _ = cast(
                tuple[list[str], Any],  # its signature says str
                render_jinja_template(
                    conversations=[messages],
                    tools=[*tools] or None,
                    chat_template=template,
                    add_generation_prompt=True,
                    **self._variables,
                ),
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            roles = [message["role"] for message in messages]
            raise ConfigError(
                "messages", roles, f"what the checkpoint's chat template accepts; it says: {error}"
            ) from error
        return chats[0]

    def _body(self, message: Message) -> dict[str, Any]:
        """A message as templates read it, with spelled-out tokens marked."""
        body: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.name is not None:
            body["name"] = message.name
        if message.tool_calls:
            body["tool_calls"] = [_with_arguments(call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            body["tool_call_id"] = message.tool_call_id
        spelled = self._spelled_by_assistant if message.role == "assistant" else self._spelled
        return {key: value if key == "role" else _marked(value, spelled) for key, value in body.items()}

    @cached_property
    def _spelled(self) -> re.Pattern[str]:
        return _any_of(self._by_text)

    @cached_property
    def _spelled_by_assistant(self) -> re.Pattern[str]:
        return _any_of(text for text, (_, token) in self._by_text.items() if self._is_hidden(token))

    def _encode_marked(self, text: str) -> list[int]:
        """Tokens of a rendered chat; unmarked added tokens are themselves, all else is text."""
        ids: list[int] = []
        start, strips = 0, False
        for found in self._spelled.finditer(text):
            index, token = self._by_text[found[0]]
            piece = text[start : found.start()]
            ids += self._encode_piece(piece.rstrip() if token.lstrip else piece, strips)
            ids.append(index)
            start, strips = found.end(), token.rstrip
        return ids + self._encode_piece(text[start:], strips)

    def _encode_piece(self, piece: str, strips: bool) -> list[int]:
        piece = piece.replace(_MARK, "")
        return self.encode(piece.lstrip() if strips else piece)

    # --- tokens to text -----------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(token) for token in ids).decode("utf-8", "ignore")

    def token_bytes(self, token: int) -> bytes:
        return self._texts[token] if 0 <= token < len(self._texts) else b""

    def _is_hidden(self, token: AddedToken) -> bool:
        return token.special and token.content not in REPLY_MARKERS

    @cached_property
    def _texts(self) -> list[bytes]:
        texts = [b""] * self.vocab_size
        for text, token in self.tokenizer.get_vocab(with_added_tokens=True).items():
            if (added := self._added.get(token)) is not None:
                texts[token] = b"" if self._is_hidden(added) else text.encode("utf-8")
            elif self._is_byte_level:
                texts[token] = bytes_of_byte_level(text)
            elif (byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", text)) is not None:
                texts[token] = bytes((int(byte[1], 16),))
            else:
                texts[token] = text.replace("\u2581", " ").encode("utf-8")
        return texts

    @cached_property
    def token_table(self) -> TokenTable:
        """Classes of tokens for the engine. A token that ends a reply is never forbidden, whatever else it is called."""
        special, ends = self.special, frozenset(self.special.ends)
        known = set(self.tokenizer.get_vocab(with_added_tokens=True).values())
        controls = {index for index, token in self._added.items() if self._is_hidden(token) or _is_control(token)}
        named = {token for token in (special.mask, special.pad, special.bos) if token is not None}
        nobody = {token for token in range(self.rows) if token not in known}
        return token_table(
            [*self._texts, *[b""] * (self.rows - self.vocab_size)],
            end=special.end,
            mask=-1 if special.mask is None else special.mask,
            forbidden=frozenset(controls | named | nobody | set(special.forbidden)) - ends,
            other_ends=ends - {special.end},
            call=frozenset(token for text in CALL_SIGNS if (token := self.tokenizer.token_to_id(text)) is not None),
        )


# --- messages ---------------------------------------------------------------------------------------------------------


def _any_of(texts: Any) -> re.Pattern[str]:
    """The longest of the texts that stands somewhere; matches nothing when there are none."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


def _marked(value: Any, spelled: re.Pattern[str]) -> Any:
    match value:
        case str():
            return spelled.sub(lambda found: found[0][0] + _MARK + found[0][1:], value.replace(_MARK, ""))
        case Mapping():
            return {key: _marked(inner, spelled) for key, inner in value.items()}
        case list() | tuple():
            return [_marked(inner, spelled) for inner in value]
        case _:
            return value


def _with_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call as templates expect it: arguments as an object, where the OpenAI API has JSON in a string."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"])
    except json.JSONDecodeError:
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}}


# --- files ------------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A file's object, empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        body = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TokenizerError(path, f"not JSON: {error}") from error
    if not isinstance(body, dict):
        raise TokenizerError(path, f"expected an object, found {type(body).__name__}")
    return body


def read_tokenizer(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """A checkpoint's tokenizer with all its added tokens.

    Args:
        config: The content of its tokenizer_config.json.

    Raises:
        TokenizerError: If files are missing, unreadable or contradict each other.
    """
    path = folder / "tokenizer.json"
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    try:
        if path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        elif vocab.is_file() and merges.is_file() and config.get("tokenizer_class") in _QWEN_CLASSES:
            path = vocab
            tokenizer = Tokenizer(BPE.from_file(str(vocab), str(merges)))
            tokenizer.normalizer = NFC()
            words = Split(Regex(_QWEN_WORDS), "isolated")
            tokenizer.pre_tokenizer = PreSequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
            tokenizer.decoder = ByteLevelDecoder()
        else:
            raise TokenizerError(path, "no such file, nor vocab.json and merges.txt of a Qwen tokenizer")
    except TokenizerError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(path, f"not a tokenizer: {error}") from error
    _add_tokens(folder, tokenizer, config)
    return tokenizer


def _add_tokens(folder: Path, tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Add what only the other files list; ids follow from the order, so each is compared with what its file says."""
    wanted = {
        index: AddedToken(text, normalized=False, special=True)
        for text, index in read_json(folder / "added_tokens.json").items()
    }
    try:
        for index, body in config.get("added_tokens_decoder", {}).items():
            flags = {
                name: bool(body.get(name)) for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            wanted[int(index)] = AddedToken(body["content"], **flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(folder / "tokenizer_config.json", f"added_tokens_decoder: {error!r}") from error
    for index, token in sorted(wanted.items()):
        if tokenizer.token_to_id(token.content) is None:
            tokenizer.add_tokens([token])
        if (found := tokenizer.token_to_id(token.content)) != index:
            raise TokenizerError(folder, f"{token.content} should have id {index}, it has {found}")


def token_names(config: Mapping[str, Any], older: Mapping[str, Any]) -> dict[str, str]:
    """Texts of bos_token, eos_token and their like; tokenizer_config.json has the last word."""
    names = {}
    for name, value in {**older, **config}.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            names[name] = text
    return names


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    path = folder / "chat_template.jinja"
    inside = config.get("chat_template")
    templates = {"default": inside} if isinstance(inside, str) else {}
    if isinstance(inside, list):
        try:
            templates = {entry["name"]: entry["template"] for entry in inside}
        except (KeyError, TypeError) as error:
            raise TokenizerError(folder / "tokenizer_config.json", f"chat_template: {error!r}") from error
    if path.is_file():
        templates["default"] = path.read_text("utf-8")
    return templates


# --- inside a tokenizer -----------------------------------------------------------------------------------------------


def _parts(tokenizer: Tokenizer) -> dict[str, Any]:
    """Normaliser, pre-tokenizer and decoder as JSON, without the vocabulary's megabytes."""
    body: dict[str, Any] = json.loads(_around(BPE(), tokenizer).to_str())
    return body


def _around(model: Any, tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer with another's surroundings and no added tokens."""
    other = Tokenizer(model)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if getattr(tokenizer, part) is not None:
            setattr(other, part, getattr(tokenizer, part))
    return other


def _without_prefix(tokenizer: Tokenizer, parts: Mapping[str, Any]) -> Tokenizer:
    """The same model without added tokens and without the space that some tokenizers put before a text."""
    bare = _around(BPE(), Tokenizer.from_str(json.dumps(_unprefixed(parts))))
    bare.model = tokenizer.model
    return bare


def _unprefixed(node: Any) -> Any:
    match node:
        case {"type": "Metaspace"}:
            return {**node, "prepend_scheme": "never"}
        case {"type": "ByteLevel", "add_prefix_space": _}:
            return {**node, "add_prefix_space": False}
        case {"type": "Prepend"}:
            return {"type": "Sequence", "normalizers": []}
        case Mapping():
            return {key: _unprefixed(inner) for key, inner in node.items()}
        case list():
            return [_unprefixed(inner) for inner in node]
        case _:
            return node


def _has_type(node: Any, name: str) -> bool:
    if isinstance(node, Mapping):
        return node.get("type") == name or any(_has_type(inner, name) for inner in node.values())
    return isinstance(node, list) and any(_has_type(inner, name) for inner in node)


def _is_control(token: AddedToken) -> bool:
    return token.content not in REPLY_MARKERS and _CONTROL.fullmatch(token.content) is not None
