"""Text to tokens and back: how a dialogue becomes one token sequence.

How text is joined. White space runs become one space and each turn is stripped. A turn is `role token, " " + text, <end>`: the text
always starts with a space, so a word is the same token at the start of a turn and in its middle, and any cut at a word boundary
tokenises to a prefix of the whole. A digit, `$` and a space before either are tokens of their own, so "$4.50" is always
`$ 4 . 5 0`. Text that spells a special token ("<end>") is ordinary text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreSequence
from tokenizers.trainers import BpeTrainer

from dllm.calls import Call, Tool, output_note, with_tools, write_call
from dllm.canvas import TokenTable
from dllm.codec import ChatRole, Message
from dllm.errors import CheckpointError, ConfigError, SpecialTokenError
from dllm.spec import DialogueTokens

Role: TypeAlias = Literal["system", "user", "note", "agent"]
ROLES: tuple[Role, ...] = ("system", "user", "note", "agent")
_ROLE_OF: Mapping[ChatRole, Role] = {"system": "system", "user": "user", "tool": "note", "assistant": "agent"}

_WORDS = r"\$|\d|'(?:s|t|re|ve|m|ll|d)\b| ?\p{L}+| ?[^\s\p{L}\d$]+|\s+"


def special_token_texts(special: DialogueTokens) -> list[str]:
    """Texts of the special tokens in id order."""
    names = ["<pad>", "<mask>", "<end>", "<system>", "<user>", "<note>", "<agent>", "<call>"]
    return names + [f"<reserved{index}>" for index in range(special.reserved)]


def train_tokenizer(texts: Iterable[str], vocab_size: int, special: DialogueTokens | None = None) -> Tokenizer:
    """Byte-level BPE with the joining rules of this module. Deterministic for the same texts in the same order."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = PreSequence(
        [Split(Regex(_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_token_texts(special or DialogueTokens()),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" " + clean(text) for text in texts), trainer)
    return tokenizer


def clean(text: str) -> str:
    """White space runs become one space; ends are stripped."""
    return " ".join(text.split())


class DialogueCodec:
    """A tokenizer that knows turns."""

    def __init__(self, tokenizer: Tokenizer, special: DialogueTokens | None = None) -> None:
        self.special = special or DialogueTokens()
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True
        self._roles = {"system": self.special.system, "user": self.special.user} | {
            "note": self.special.note,
            "agent": self.special.agent,
        }

    @classmethod
    def load(cls, path: Path, special: DialogueTokens | None = None) -> DialogueCodec:
        """Read tokenizer.json and check its special tokens against `special`.

        Raises:
            CheckpointError: If the file is missing or unreadable.
            SpecialTokenError: If an id differs.
        """
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        special = special or DialogueTokens()
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise CheckpointError(f"{path}: not a tokenizer: {error}") from error
        for index, text in enumerate(special_token_texts(special)):
            if tokenizer.token_to_id(text) != index:
                raise SpecialTokenError(path, text, index, tokenizer.token_to_id(text))
        return cls(tokenizer, special)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode_text(self, text: str) -> list[int]:
        """Tokens of one turn's text, with its leading space; empty for empty text."""
        body = clean(text)
        return list(self.tokenizer.encode(" " + body, add_special_tokens=False).ids) if body else []

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Like `encode_text` for text that is already clean, with [start, end) in " " + text per token."""
        encoding = self.tokenizer.encode(" " + text, add_special_tokens=False)
        return list(encoding.ids), list(encoding.offsets)

    def role_id(self, role: Role) -> int:
        return self._roles[role]

    def encode_turn(self, role: Role, text: str) -> list[int]:
        return [self._roles[role], *self.encode_text(text), self.special.end]

    def encode_call(self, call: Call) -> list[int]:
        """An agent's turn that is a tool call.

        Raises:
            CallError: If a value cannot be written.
        """
        return [self.special.agent, self.special.call, *self.encode_text(write_call(call)), self.special.end]

    def encode_prompt(self, turns: Sequence[tuple[Role, str]]) -> list[int]:
        """All turns, then the agent's role token: what a reply's canvas continues."""
        ids = [token for role, text in turns for token in self.encode_turn(role, text)]
        return [*ids, self.special.agent]

    def encode(self, text: str) -> list[int]:
        """Tokens of the text as it stands, white space included."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """A chat as turns: a tool's answer is a note, and so is a system message behind the first, which is how chat clients tell of
        such answers. Tools are declared at the end of the first system message, calls are turns of their own (`dllm.calls`).

        Raises:
            ConfigError: If there is no message, or a tool or a call cannot be told.
        """
        if not messages:
            raise ConfigError("messages", [], "at least one message")
        try:
            known = [Tool.from_json(tool) for tool in tools]
        except ConfigError as error:
            raise ConfigError("tools", error.key, error.expected) from error
        ids: list[int] = []
        if known and messages[0].role != "system":
            ids += self.encode_turn("system", with_tools("", known))
        names: dict[str, str] = {}
        for number, message in enumerate(messages):
            text = with_tools(message.text, known) if number == 0 and message.role == "system" else message.text
            caller = message.name or names.get(message.tool_call_id or "")
            if message.role == "tool" and caller:
                text = output_note(caller, text)
            role: Role = "note" if message.role == "system" and number else _ROLE_OF[message.role]
            if text or not message.tool_calls:
                ids += self.encode_turn(role, text)
            for at, body in enumerate(message.tool_calls):
                call = call_of_json(body, f"messages[{number}].tool_calls[{at}]")
                names[str(body.get("id", ""))] = call.name
                ids += self.encode_call(call)
        return [*ids, self.special.agent]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of reply tokens; special tokens and bytes that are not UTF-8 are left out. A reply starts with a space."""
        return b"".join(self.token_bytes(token) for token in ids).decode("utf-8", "ignore")

    def token_bytes(self, token: int) -> bytes:
        """The bytes a text token stands for; empty for special tokens."""
        text = self.tokenizer.id_to_token(token) if token >= self.special.first_text else None
        return bytes_of_byte_level(text) if text else b""

    def encode_pin(self, text: str) -> tuple[int, ...]:
        """Tokens of a text to be pinned inside a reply, the space before it included."""
        return tuple(self.encode_text(text))

    @cached_property
    def token_table(self) -> TokenTable:
        """Classes of tokens for the engine."""
        special = self.special
        texts = [self.token_bytes(token) for token in range(self.vocab_size)]
        return token_table(
            texts,
            end=special.end,
            mask=special.mask,
            forbidden=frozenset(special.forbidden_in_reply),
            call=frozenset({special.call}),
        )

    def save(self, folder: Path) -> None:
        """Write tokenizer.json."""
        self.tokenizer.save(str(folder / "tokenizer.json"))


_SENTENCE_END = re.compile(rb"\s?(?:[.?!]|\xe3\x80\x82|\xef\xbc[\x81\x9f])+[\"')\]]*\s*")
_CLAUSE_END = re.compile(rb" ?(?:[,;:]|-+|\xe2\x80\x94|\xef\xbc[\x8c\x9a\x9b]|\xe3\x80\x81)\s*")
_DIGIT = re.compile(rb" ?[0-9]+")
_WORD = re.compile(rb" [A-Za-z]+")
_JOINING = re.compile(rb"[A-Za-z0-9].*", re.DOTALL)
_WORD_END = re.compile(rb".*[A-Za-z0-9]", re.DOTALL)
_CAPITAL = re.compile(rb" (?!I\Z|I['\xe2])(?:[A-Z]|\xc3[\x80-\x9e]).*", re.DOTALL)
"""The two-byte range is that of accented Latin capitals."""


def token_table(
    texts: Sequence[bytes],
    *,
    end: int,
    mask: int,
    forbidden: frozenset[int],
    other_ends: frozenset[int] = frozenset(),
    call: frozenset[int] = frozenset(),
) -> TokenTable:
    """Classes of tokens by the bytes they stand for.

    Args:
        texts: Bytes of every token, in id order; empty for tokens that are never text.
        end, other_ends: Close a reply; the first is written where one is needed.
        mask: -1 where the vocabulary has none.
        forbidden: Never part of a reply.
        call: Behind them a call is written.
    """

    def matching(pattern: re.Pattern[bytes]) -> frozenset[int]:
        return frozenset(token for token, text in enumerate(texts) if pattern.fullmatch(text))

    by_lower: dict[bytes, list[int]] = {}
    for token, text in enumerate(texts):
        if text.startswith(b" "):
            by_lower.setdefault(text.lower(), []).append(token)
    return TokenTable(
        end=end,
        mask=mask,
        forbidden=forbidden,
        sentence_end=matching(_SENTENCE_END),
        clause_end=matching(_CLAUSE_END),
        digit=matching(_DIGIT),
        word_start=frozenset(token for token, text in enumerate(texts) if text[:1].isspace()),
        case_variants={
            token: tuple(other for other in alike if other != token)
            for alike in by_lower.values()
            if len(alike) > 1
            for token in alike
        },
        word=matching(_WORD),
        other_ends=other_ends,
        joining=matching(_JOINING),
        word_end=matching(_WORD_END),
        capital=matching(_CAPITAL),
        call=call,
    )


def call_of_json(body: Mapping[str, Any], where: str) -> Call:
    """A call as chat clients send it back: `{"function": {"name": ..., "arguments": "<JSON object>"}}`.

    Args:
        where: Its place in the request, for errors: `messages[2].tool_calls[0]`.

    Raises:
        ConfigError: If it is not that; names the field.
    """
    function = body.get("function")
    try:
        arguments = json.loads(function["arguments"] or "{}") if isinstance(function, Mapping) else None
    except (KeyError, TypeError, ValueError, RecursionError):
        arguments = None
    if not isinstance(function, Mapping):
        raise ConfigError(f"{where}.function", function, "an object with a name and arguments")
    if not isinstance(arguments, Mapping):
        written = function.get("arguments")
        shown = f"{written[:40]}…" if isinstance(written, str) and len(written) > 40 else written
        raise ConfigError(f"{where}.function.arguments", shown, "a JSON object as a string")
    words = {str(key): str(value).replace(";", ",") for key, value in arguments.items() if str(value).strip()}
    return Call(str(function.get("name", "")), words)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in plain}
    for offset, byte in enumerate(byte for byte in range(256) if byte not in plain):
        table[chr(256 + offset)] = byte
    return table


_BYTES = _byte_alphabet()


def bytes_of_byte_level(text: str) -> bytes:
    """The bytes that a byte-level vocabulary's token text stands for; characters outside GPT-2's alphabet stand for themselves."""
    return b"".join(bytes((_BYTES[char],)) if char in _BYTES else char.encode("utf-8") for char in text)
