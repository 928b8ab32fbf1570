"""Dialogue files to training rows.

A row is one window of one dialogue: its clean tokens, and which agent turns in it become canvases. Everything random about a row
comes from (seed, row number), so a run continues exactly where it stopped with nothing to store but a counter.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dllm.calls import Call, Tool, read_call, with_tools, write_call
from dllm.errors import CallError, ConfigError, DataError
from dllm.spoken import spoken_form
from dllm.text import ROLES, DialogueCodec, Role, clean
from dllm.train.config import SourceConfig, TrainConfig
from dllm.train.files import check_text, read_objects

Split = Literal["train", "dev"]
AnswerKind = Literal["reply", "rest", "transcript"]
"""reply: an agent's turn. rest: how a user's turn goes on after a cut, <end> at once if it was whole. transcript: a user's turn as it was
meant, where a canvas holds it as it was heard."""


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    text: str
    pins: tuple[str, ...] = ()
    """Pieces of `text` that came from a tool result."""
    is_call: bool = False
    """`text` is a tool call as the model writes it (`dllm.calls`)."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """What a data file's line says. The tools that may be called stand at the end of the system turn."""

    id: str
    domain: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes a canvas: an agent's turn, or what is asked about a user's. `tokens` end with <end>."""

    start: int
    """Clean position of the first token: everything before it is visible."""
    tokens: tuple[int, ...]
    pinned: tuple[bool, ...]
    kind: AnswerKind = "reply"
    heard: tuple[int, ...] = ()
    """Of a transcript: what the recogniser heard at each of `tokens`."""
    copied: tuple[bool, ...] = ()
    """Of a reply: the tokens that carry meaning and stand in the system turn, a note or, of a call, in what the caller said. Empty: none."""


@dataclass(frozen=True, slots=True)
class Row:
    clean: tuple[int, ...]
    predicted: tuple[bool, ...]
    """Per clean position, whether its token counts in the next-token loss."""
    answers: tuple[Answer, ...]
    head: int = 0
    """Length of the system turn, which every window keeps."""
    source: str = ""


def read_dialogues(path: Path) -> Iterator[Dialogue]:
    """Dialogues of one .jsonl or .jsonl.xz file.

    Raises:
        DataError: With file and line, on the first line that is not a dialogue.
    """
    found = False
    for number, body in read_objects(path):
        found = True
        yield dialogue_of(path, number, body)
    if not found:
        raise DataError(path, None, "no dialogue in it")


def dialogue_of(path: Path, number: int, body: dict[str, Any]) -> Dialogue:
    """A line of a data file as a dialogue.

    Raises:
        DataError: If it is none.
    """
    if not isinstance(body.get("turns"), list):
        raise DataError(path, number, 'expected an object with a list "turns"')
    turns = []
    for index, turn in enumerate(body["turns"]):
        if isinstance(turn, dict) and "call" in turn:
            turns.append(_call_turn(path, number, index, turn))
            continue
        if not isinstance(turn, dict) or not isinstance(turn.get("text"), str):
            raise DataError(path, number, f'turn {index}: expected an object with a string "text", or a "call"')
        if turn.get("role") not in ROLES:
            raise DataError(path, number, f"turn {index}: role {turn.get('role')!r} is not one of {', '.join(ROLES)}")
        pins = turn.get("pins", [])
        if not isinstance(pins, list) or not all(isinstance(pin, str) and pin.strip() for pin in pins):
            raise DataError(path, number, f'turn {index}: "pins" must be a list of strings, none of them empty')
        text = clean(check_text(path, number, turn["text"]))
        for pin in pins:
            if clean(pin) not in text:
                raise DataError(path, number, f"turn {index}: pin {pin!r} is not in the text")
        turns.append(Turn(turn["role"], text, tuple(clean(pin) for pin in pins)))
    if not turns:
        raise DataError(path, number, "a dialogue without turns")
    tools = _tools(path, number, body.get("tools", []))
    if tools:
        has_system = turns[0].role == "system"
        system = Turn("system", with_tools(turns[0].text if has_system else "", tools))
        turns = [system, *turns[has_system:]]
    return Dialogue(str(body.get("id", number)), str(body.get("domain", "")), tuple(turns))


def _call_turn(path: Path, number: int, index: int, turn: dict[str, object]) -> Turn:
    call = turn["call"]
    if turn.get("role") != "agent":
        raise DataError(path, number, f"turn {index}: only an agent calls tools, not {turn.get('role')!r}")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise DataError(path, number, f'turn {index}: expected "call" to be an object with a string "name"')
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict) or not all(isinstance(value, str) for value in arguments.values()):
        raise DataError(path, number, f'turn {index}: "arguments" must be an object of strings')
    try:
        text = write_call(Call(call["name"], arguments))
        # What cannot be read back would be learned, and no runtime could carry it out.
        if list(read_call(text).arguments) != list(arguments):
            raise CallError(call["name"], f"{text!r} is read back with other arguments")
    except CallError as error:
        raise DataError(path, number, f"turn {index}: {error}") from error
    return Turn("agent", text, is_call=True)


def _tools(path: Path, number: int, body: object) -> list[Tool]:
    if not isinstance(body, list):
        raise DataError(path, number, '"tools" must be a list')
    try:
        return [Tool.from_json(tool) for tool in body]
    except ConfigError as error:
        raise DataError(path, number, str(error)) from error


def find_sources(folders: Sequence[Path], split: Split) -> dict[str, Path]:
    """Files by source name.

    Raises:
        DataError: If a folder holds none, or two folders hold the same name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        paths = sorted([*folder.glob(f"*.{split}.jsonl"), *folder.glob(f"*.{split}.jsonl.xz")])
        if not paths:
            texts = sorted(path.name for path in folder.glob(f"*.{split}.txt*"))
            other = (
                f"; the objective `dialogue` reads no text such as {texts[0]}, `masked` and others do" if texts else ""
            )
            raise DataError(folder, None, f"no *.{split}.jsonl or *.{split}.jsonl.xz here{other}")
        for path in paths:
            name = path.name.split(f".{split}.jsonl")[0]
            if name in found:
                raise DataError(path, None, f"source {name!r} is also in {found[name].parent}")
            found[name] = path
    return found


def source_weights(folders: Sequence[Path], names: Sequence[str], config: TrainConfig) -> dict[str, SourceConfig]:
    """Mixture: the configuration's sources, else the folders' mixture.json, else every source alike.

    Raises:
        ConfigError: If nothing that the mixture names is there.
        DataError: If a mixture.json is none.
    """
    if config.sources:
        chosen = {name: config.sources[name] for name in names if name in config.sources}
    else:
        mixture: dict[str, float] = {}
        for folder in folders:
            if (folder / "mixture.json").is_file():
                mixture |= _mixture(folder / "mixture.json")
        chosen = {name: SourceConfig(weight=mixture.get(name, 0.0 if mixture else 1.0)) for name in names}
    chosen = {name: source for name, source in chosen.items() if source.weight > 0}
    if not chosen:
        raise ConfigError("sources", ", ".join(config.sources), f"at least one of: {', '.join(names)}")
    return chosen


def _mixture(path: Path) -> dict[str, float]:
    try:
        body = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(path, None, f"not JSON: {error}") from error
    if not isinstance(body, dict) or not all(isinstance(share, int | float) for share in body.values()):
        raise DataError(path, None, "expected an object of numbers, a share for each source")
    return body


LONGEST_ASKED = 56
"""Tokens of the longest user turn that is asked about: a canvas holds it and its end."""

_FUNCTION_WORDS = (
    "a",
    "the",
    "to",
    "of",
    "and",
    "in",
    "is",
    "it",
    "for",
    "on",
    "i",
    "that",
    "with",
    "at",
    "an",
    "some",
    "uh",
)
_KEPT_WORDS = (
    "with without and for the that have has had you your our what would like size total order orders ready minutes minute add added "
    "change changed remove removed done missing item items all are not can get will this today else anything menu price from bit lot "
    "some little extra of course sorry unknown closed open until out one two three four five six please thanks "
    "about after again also always another answer any ask asked away back because been before best book both but call caller cannot "
    "check close cost costs could day days does done down each else every everything few find first friday from give going good great "
    "hear help here hold hour hours how just know last later let like long look looking make many may maybe moment monday more most "
    "much must name need never new next nice nothing now number off offer okay old only other our over own people phone place quite "
    "rather really right same saturday say see sent set she should show since soon speak start still street such sunday sure take tell "
    "than thank their them then there these they thing think those through thursday time times tomorrow tonight too try tuesday under "
    "use very wait was wednesday week weekday weekdays weekend weekends well were when where which while who why without won work year "
    "years yes yet yours seven eight nine ten eleven twelve twenty thirty forty fifty sixty hundred thousand string integer boolean"
)
"""Words that make sentences; renaming them would unteach the language."""
_SENTENCE_END = re.compile(r"[.?!](?= |$)")


class RowMaker:
    """Turns dialogues into rows for one model's tokenizer."""

    def __init__(self, codec: DialogueCodec, config: TrainConfig) -> None:
        self.codec, self.config = codec, config
        texts = {token: codec.token_bytes(token) for token in range(codec.vocab_size)}
        kept = {token for word in _KEPT_WORDS.split() for token in codec.encode_text(word)}
        functional = {token for word in _FUNCTION_WORDS for token in codec.encode_text(word)}
        self._telling = {token for token, text in texts.items() if re.search(rb"[A-Za-z0-9]", text)} - kept - functional
        self._word_starts = [token for token, text in texts.items() if re.fullmatch(rb" [a-z]{3,}", text)]
        self._word_rests = [token for token, text in texts.items() if re.fullmatch(rb"[a-z]{2,}", text)]
        self._content_starts = set(self._word_starts) - kept
        self._alike = alike_words({token: text for token, text in texts.items() if re.fullmatch(rb" [a-z']+", text)})

    def make(self, dialogue: Dialogue, source: SourceConfig, rng: random.Random) -> Row | None:
        """One window of the dialogue, or None when no agent turn fits in it."""
        turns = arrange(dialogue, source, rng)
        pieces = [self._piece(turn, source, rng) for turn in turns]
        return self._window(turns, pieces, rng)

    def _piece(self, turn: Turn, source: SourceConfig, rng: random.Random) -> tuple[list[int], Answer | None]:
        """Tokens of a turn, and for an agent turn that can be a canvas its answer (start still relative)."""
        role_id, end = self.codec.role_id(turn.role), self.codec.special.end
        if turn.role == "user":
            return self._user_piece(turn.text, rng)
        if turn.is_call:
            tokens = (self.codec.special.call, *self.codec.encode_text(turn.text), end)
            return [role_id, *tokens], Answer(1, tokens, (False,) * len(tokens))
        if turn.role != "agent":
            return [role_id, *self.codec.encode_text(turn.text), end], None
        text = turn.text
        ids, offsets = self.codec.encode_with_offsets(text) if text else ([], [])
        if len(ids) > source.max_agent_tokens:
            cut = max(
                (
                    found.end()
                    for found in _SENTENCE_END.finditer(text)
                    if offsets[source.max_agent_tokens - 1][1] >= found.end() + 1
                ),
                default=0,
            )
            text = text[:cut]
            ids, offsets = self.codec.encode_with_offsets(text) if text else ([], [])
        if not ids or len(ids) > source.max_agent_tokens:
            return [role_id, *self.codec.encode_text(turn.text)[:64], end], None
        pinned = [False] * len(ids)
        for pin in turn.pins:
            at = (" " + text).find(" " + pin)
            if at >= 0:
                for index, (start, stop) in enumerate(offsets):
                    if start >= at and stop <= at + len(pin) + 1:
                        pinned[index] = True
        tokens = (*ids, end)
        return [role_id, *tokens], Answer(1, tokens, (*pinned, False))

    def _user_piece(self, text: str, rng: random.Random) -> tuple[list[int], Answer | None]:
        """A user's turn, and at times a question about it: how it goes on after a cut, or which of its words were misheard."""
        heard = as_heard(text, self.config, rng)
        ids = self.codec.encode_text(heard)
        role_id, end = self.codec.role_id("user"), self.codec.special.end
        piece = [role_id, *ids, end]
        draw = rng.random()
        if not ids or len(ids) > LONGEST_ASKED:
            return piece, None
        if draw < self.config.rest_share:
            cut = len(ids)
            starts = [at for at in range(1, len(ids)) if at in self._starts_of(ids)]
            if starts and rng.random() < 0.6:
                # Late cuts are the hard ones, and a recogniser's pauses are where words end.
                cut = rng.choice(starts[len(starts) // 2 :] if rng.random() < 0.5 else starts)
            tokens = (*ids[cut:], end)
            return piece, Answer(1 + cut, tokens, (False,) * len(tokens), "rest")
        if draw < self.config.rest_share + self.config.transcript_share:
            misheard = self._misheard(ids, rng)
            return piece, Answer(1, (*ids, end), (False,) * (len(ids) + 1), "transcript", (*misheard, end))
        return piece, None

    def _starts_of(self, ids: Sequence[int]) -> set[int]:
        return {at for at, token in enumerate(ids) if self.codec.token_bytes(token)[:1] == b" "}

    def _misheard(self, ids: Sequence[int], rng: random.Random) -> list[int]:
        """The tokens with some words exchanged for others that sound or look alike, token for token."""
        share = rng.choice((0.0, 0.06, 0.12, 0.25))
        heard = list(ids)
        for at, token in enumerate(ids):
            if rng.random() < share and token in self._alike:
                heard[at] = rng.choice(self._alike[token])
        return heard

    def _window(
        self, turns: list[Turn], pieces: list[tuple[list[int], Answer | None]], rng: random.Random
    ) -> Row | None:
        limit = self.config.max_clean_tokens
        head = 1 if turns[0].role == "system" and len(pieces[0][0]) <= limit // 2 else 0
        head_tokens = len(pieces[0][0]) if head else 0
        first = head
        total = head_tokens + sum(len(ids) for ids, _ in pieces[head:])
        if total > limit:
            # A window starts anywhere, but most calls are young: half of them at the beginning.
            latest = len(pieces) - 1
            room = limit - head_tokens
            while latest > first and sum(len(ids) for ids, _ in pieces[latest - 1 :]) <= room:
                latest -= 1
            first = first if rng.random() < 0.5 else rng.randint(first, latest)
        clean_ids: list[int] = list(pieces[0][0]) if head else []
        predicted = [False] * len(clean_ids)
        answers: list[Answer] = []
        # What an answer takes from a note, from the system turn, and what a call takes from the caller.
        noted = set(clean_ids)
        has_call = any(turn.is_call for turn in turns)
        for turn, (ids, answer) in zip(turns[first:], pieces[first:], strict=True):
            if len(clean_ids) + len(ids) > limit:
                break
            if answer is not None:
                told = noted & self._telling if answer.kind == "reply" else frozenset()
                copied = tuple(token in told for token in answer.tokens)
                answers.append(replace(answer, start=len(clean_ids) + answer.start, copied=copied))
            if turn.role == "note" or (turn.role == "user" and has_call):
                noted.update(ids)
            clean_ids += ids
            # Notes are predicted too: they repeat what the caller said, so they teach copying at no cost.
            predicted += [True] * len(ids)
        if not any(answer.kind == "reply" for answer in answers):
            return None
        if len(answers) > self.config.max_answers:
            kept = sorted(rng.sample(range(len(answers)), self.config.max_answers))
            answers = [answers[index] for index in kept]
        row = Row(tuple(clean_ids), tuple(predicted), tuple(answers), head_tokens)
        if noted and rng.random() < self.config.renamed_share:
            return self._renamed(row, noted, rng)
        return row

    def _renamed(self, row: Row, noted: set[int], rng: random.Random) -> Row:
        """The row with content words that answers take from elsewhere exchanged for random ones, everywhere alike.

        What a note, the system turn or a caller says can then be said back only by reading it: a menu's words cannot be learned by heart.
        """
        answered = {token for answer in row.answers if answer.kind == "reply" for token in answer.tokens}
        new = {token: rng.choice(self._word_starts) for token in sorted(noted & answered & self._content_starts)}
        new |= {token: rng.choice(self._word_rests) for token in sorted(noted & answered & set(self._word_rests))}
        answers = (
            replace(a, tokens=tuple(new.get(t, t) for t in a.tokens), heard=tuple(new.get(t, t) for t in a.heard))
            for a in row.answers
        )
        return replace(row, clean=tuple(new.get(token, token) for token in row.clean), answers=tuple(answers))


def alike_words(words: Mapping[int, bytes], per_word: int = 8) -> dict[int, list[int]]:
    """For each word token others that a recogniser might write instead: alike in spelling, which in English is near enough to sound."""
    grams: dict[int, frozenset[str]] = {}
    holders: dict[str, list[int]] = {}
    for token, text in words.items():
        letters = f"^{text.decode().strip()}$"
        grams[token] = frozenset(letters[at : at + 2] for at in range(len(letters) - 1))
        for gram in grams[token]:
            holders.setdefault(gram, []).append(token)
    alike: dict[int, list[int]] = {}
    for token, own in grams.items():
        shared: dict[int, int] = {}
        for gram in own:
            for other in holders[gram]:
                shared[other] = shared.get(other, 0) + 1
        del shared[token]
        ranked = sorted(shared, key=lambda other: (-shared[other] / len(own | grams[other]), other))
        if ranked:
            alike[token] = ranked[:per_word]
    return alike


def arrange(dialogue: Dialogue, source: SourceConfig, rng: random.Random) -> list[Turn]:
    """A dialogue's turns with the changes that its source asks for."""
    turns = list(dialogue.turns)
    if source.swap_roles and rng.random() < source.swap_roles:
        other: dict[Role, Role] = {"user": "agent", "agent": "user"}
        turns = [replace(turn, role=other.get(turn.role, turn.role), pins=()) for turn in turns]
    if turns[0].role == "system" and len(turns) > 1 and rng.random() < source.drop_system:
        del turns[0]
    if source.system and turns[0].role != "system" and rng.random() < 0.5:
        turns.insert(0, Turn("system", source.system.format(domain=dialogue.domain.replace("_", " "))))
    return turns


def as_heard(text: str, config: TrainConfig, rng: random.Random) -> str:
    """A user's text as it reaches a model: as a recogniser writes it, mostly."""
    if rng.random() >= config.spoken_share:
        return text
    spoken = spoken_form(text)
    if rng.random() < config.noise_share:
        spoken = with_recogniser_noise(spoken, rng)
    return spoken or text


def with_recogniser_noise(spoken: str, rng: random.Random, share: float = 0.03) -> str:
    """Drop, double or replace a small share of words, function words mostly."""
    words: list[str] = []
    for word in spoken.split():
        likely = share * (2.0 if word in _FUNCTION_WORDS else 0.7)
        if rng.random() >= likely:
            words.append(word)
            continue
        match rng.randrange(3):
            case 0:
                continue
            case 1:
                words += [word, word]
            case _:
                words.append(rng.choice(_FUNCTION_WORDS))
    return " ".join(words)


class Mixture:
    """Rows by number: row k is the same in every run with this seed, these files and this configuration."""

    def __init__(
        self, folders: Sequence[Path], codec: DialogueCodec, config: TrainConfig, split: Split = "train"
    ) -> None:
        if split == "dev":
            # Held-back rows are for replies; the questions about user turns have measurements of their own.
            config = replace(config, rest_share=0.0, transcript_share=0.0)
        paths = find_sources(folders, split)
        self.sources = source_weights(folders, list(paths), config)
        self.files = {name: paths[name] for name in self.sources}
        self.dialogues = {name: list(read_dialogues(paths[name])) for name in self.sources}
        self.maker = RowMaker(codec, config)
        self.seed = config.seed
        self._names = list(self.sources)
        self._weights = [self.sources[name].weight for name in self._names]

    def row(self, number: int) -> Row:
        """The row with this number."""
        digest = hashlib.sha256(f"{self.seed}:{number}".encode()).digest()
        rng = random.Random(int.from_bytes(digest[:8], "little"))
        for _ in range(100):
            name = rng.choices(self._names, self._weights)[0]
            row = self.maker.make(rng.choice(self.dialogues[name]), self.sources[name], rng)
            if row is not None:
                return replace(row, source=name)
        raise ConfigError("sources", ", ".join(self._names), "dialogues with agent turns short enough for a canvas")

    def rows_of(self, name: str, count: int) -> list[Row]:
        """Up to `count` rows of one source, one per dialogue from the beginning of its file; the same on every call."""
        rng = random.Random(self.seed)
        made = (self.maker.make(dialogue, self.sources[name], rng) for dialogue in self.dialogues[name])
        return list(itertools.islice((row for row in made if row is not None), count))
