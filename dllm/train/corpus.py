"""Data files to documents of tokens, for packed rows: a dialogue is a prompt and an answer that is learned, plain text is learned whole.

Sources are `<name>.<split>.jsonl` (dialogues as in `dllm.train.data`, or lines `{"text": ...}`) and `<name>.<split>.txt` (texts with
an empty line between them), each also as .xz.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dllm.codec import Codec, Message
from dllm.errors import ConfigError, DataError
from dllm.spec import ModelSpec
from dllm.text import DialogueCodec
from dllm.train.config import SourceConfig, TrainConfig
from dllm.train.data import Dialogue, Split, Turn, arrange, as_heard, dialogue_of, source_weights
from dllm.train.files import check_text, read_lines, read_objects

SUFFIXES = (".jsonl", ".jsonl.xz", ".txt", ".txt.xz")


@dataclass(frozen=True, slots=True)
class Document:
    """Tokens that see each other, and which of them are learned."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    source: str = ""


Item = Dialogue | str


def find_files(folders: Sequence[Path], split: Split) -> dict[str, Path]:
    """Files by source name.

    Raises:
        DataError: If a folder holds none, or a name is used twice.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        here = {path.name: path for path in folder.glob(f"*.{split}.*") if path.name.endswith(SUFFIXES)}
        if not here:
            raise DataError(folder, None, f"no *.{split}.jsonl and no *.{split}.txt here, plain or .xz")
        for file, path in sorted(here.items()):
            name = file.partition(f".{split}.")[0]
            if name in found:
                raise DataError(path, None, f"source {name!r} is also {found[name]}")
            found[name] = path
    return found


def read_items(path: Path) -> Iterator[Item]:
    """Dialogues and texts of one file.

    Raises:
        DataError: With file and line, on the first thing that is neither.
    """
    is_text = path.name.removesuffix(".xz").endswith(".txt")
    found = False
    for item in _read_texts(path) if is_text else _read_jsonl(path):
        found = True
        yield item
    if not found:
        raise DataError(path, None, "no text in it")


def _read_texts(path: Path) -> Iterator[str]:
    for is_blank, lines in itertools.groupby(read_lines(path), key=lambda entry: not entry[1].strip()):
        if not is_blank:
            yield "".join(line for _, line in lines).rstrip()


def _read_jsonl(path: Path) -> Iterator[Item]:
    for number, body in read_objects(path):
        if "turns" in body:
            yield dialogue_of(path, number, body)
            continue
        text = body.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(path, number, 'expected a list "turns" or a string "text" that is not empty')
        yield check_text(path, number, text)


class Corpus:
    """Documents for one model. Everything random about one comes from the caller's generator."""

    def __init__(
        self, folders: Sequence[Path], codec: Codec, spec: ModelSpec, config: TrainConfig, split: Split = "train"
    ) -> None:
        self.codec, self.spec, self.config = codec, spec, config
        paths = find_files(folders, split)
        self.sources = source_weights(folders, list(paths), config)
        self.files = {name: paths[name] for name in self.sources}
        self.items = {name: list(read_items(path)) for name, path in self.files.items()}
        self._names = list(self.sources)
        self._weights = [self.sources[name].weight for name in self._names]
        self._texts: dict[str, list[int]] = {}

    def draw(self, rng: random.Random) -> Document:
        """A document of at most `row_tokens` tokens.

        Raises:
            ConfigError: If the mixture's dialogues hardly ever fit.
        """
        for _ in range(100):
            name = rng.choices(self._names, self._weights)[0]
            made = self.make(rng.choice(self.items[name]), self.sources[name], rng)
            if made is not None:
                return Document(*made, name)
        raise ConfigError("row_tokens", self.config.row_tokens, "room for the prompts and answers of the data")

    def make(
        self, item: Item, source: SourceConfig, rng: random.Random
    ) -> tuple[tuple[int, ...], tuple[bool, ...]] | None:
        """Tokens of one item, and whether each is learned; None when none of it fits."""
        if isinstance(item, str):
            return self._text(item, rng)
        turns = [
            Turn(turn.role, as_heard(turn.text, self.config, rng)) if turn.role == "user" else turn
            for turn in arrange(item, source, rng)
        ]
        if isinstance(self.codec, DialogueCodec) and self.config.objective == "causal":
            return self._whole(turns, self.codec)
        answers = [at for at, turn in enumerate(turns) if turn.role == "agent" and turn.text and at]
        rng.shuffle(answers)
        for at in answers:
            if (made := self._answer(turns, at, rng)) is not None:
                return made
        return None

    def _text(self, text: str, rng: random.Random) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """The text and its end; of a longer one a window, so that every token is as likely to be in a row."""
        ids = self._texts.get(text)
        if ids is None:
            ids = self._texts[text] = [*self.codec.encode(text), self.spec.special.end]
        size = self.config.row_tokens
        start = rng.randint(0, max(0, len(ids) - size))
        window = tuple(ids[start : start + size])
        return window, (True,) * len(window)

    def _whole(self, turns: Sequence[Turn], codec: DialogueCodec) -> tuple[tuple[int, ...], tuple[bool, ...]] | None:
        """All turns that fit, every agent's learned: a causal model loses nothing by what comes later."""
        ids: list[int] = []
        learned: list[bool] = []
        for turn in turns:
            own = turn_tokens(codec, turn)
            if len(ids) + len(own) > self.config.row_tokens:
                break
            ids += own
            learned += [False] + [turn.role == "agent"] * (len(own) - 1)
        return (tuple(ids), tuple(learned)) if any(learned) else None

    def _answer(
        self, turns: Sequence[Turn], at: int, rng: random.Random
    ) -> tuple[tuple[int, ...], tuple[bool, ...]] | None:
        """One answer behind its prompt. With attention that looks ahead, later answers may not be in the same document."""
        codec, end = self.codec, self.spec.special.end
        if isinstance(codec, DialogueCodec):
            prompt = [token for turn in turns[:at] for token in turn_tokens(codec, turn)] + [codec.special.agent]
            answer = turn_tokens(codec, turns[at])[1:]
        else:
            prompt = encode_prompt(codec, turns[:at])
            answer = [*codec.encode(answer_text(turns[at])), end]
        room = self.config.row_tokens - len(prompt) - len(answer)
        if room < 0:
            return None
        answer += [end] * min(room, self._padding(len(prompt), len(answer), rng))
        return (*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer)

    def _padding(self, prompt: int, answer: int, rng: random.Random) -> int:
        """Further end tokens: whoever sets the width of a canvas does not know the length of the reply."""
        spec = self.spec
        if self.config.objective == "causal" or spec.mask_kind == "causal":
            return 0
        if spec.mask_kind == "full":
            return rng.randint(0, self.config.answer_padding)
        if spec.mask_kind == "block_causal":
            return -(prompt + answer) % spec.block
        return -answer % (spec.canvas_multiple if spec.dialogue is not None else spec.block)


def turn_tokens(codec: DialogueCodec, turn: Turn) -> list[int]:
    """A turn of the built-in family, a tool call with its token."""
    special = codec.special
    call = [special.call] if turn.is_call else []
    return [codec.role_id(turn.role), *call, *codec.encode_text(turn.text), special.end]


def answer_text(turn: Turn) -> str:
    """What an agent's turn is in a published model's text: calls keep the marker that the built-in family has a token for."""
    return f"<call> {turn.text}" if turn.is_call else turn.text


def encode_prompt(codec: Codec, turns: Sequence[Turn]) -> list[int]:
    """The turns as a published template writes them; where it knows no tools, notes stand in parentheses behind the caller's words.

    Raises:
        ConfigError: If the template refuses both.
    """
    try:
        return codec.encode_chat(_messages(turns, joins_notes=False))
    except ConfigError:
        return codec.encode_chat(_messages(turns, joins_notes=True))


def _messages(turns: Sequence[Turn], *, joins_notes: bool) -> list[Message]:
    messages: list[Message] = []
    for turn in turns:
        match turn.role:
            case "agent":
                messages.append(Message("assistant", answer_text(turn)))
            case "note" if not joins_notes:
                messages.append(Message("tool", turn.text))
            case "note" if messages and messages[-1].role == "user":
                messages[-1] = Message("user", f"{messages[-1].text}\n\n({turn.text})")
            case "note":
                messages.append(Message("user", f"({turn.text})"))
            case "system" | "user":
                messages.append(Message(turn.role, turn.text))
    if not any(message.role == "user" for message in messages):
        # Few templates begin a reply to nobody.
        messages.append(Message("user", "(The call begins.)"))
    return messages
