"""What a company's file holds: dialogues that are learned, dialogues that are held back, and what is left out, with the reason."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dllm.codec import Codec
from dllm.errors import ConfigError, DataError
from dllm.spec import ModelSpec
from dllm.spoken import spoken_form
from dllm.text import DialogueCodec
from dllm.train.config import SourceConfig, TrainConfig
from dllm.train.corpus import answer_text, encode_prompt, turn_tokens
from dllm.train.data import Dialogue, RowMaker, Turn, dialogue_of
from dllm.train.files import read_objects

TRIES = 20
"""Windows that are drawn of a dialogue before it is said that none holds an agent's turn."""


@dataclass(frozen=True, slots=True)
class Line:
    """A dialogue and where it stands."""

    number: int
    body: dict[str, Any]
    """As it stands in the file, with an id."""
    dialogue: Dialogue


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A dialogue, or an agent's turn of one, that teaches nothing."""

    line: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What of some dialogues is used."""

    kept: tuple[Line, ...]
    left_out: tuple[LeftOut, ...]
    """Whole dialogues."""
    shortened: tuple[LeftOut, ...]
    """Agent turns that are learned up to the end of a sentence, or only read."""
    turns: dict[str, int] = field(default_factory=dict)
    """By role; calls count as their own."""
    learned: int = 0
    """Agent turns that are learned, calls included."""
    tokens: int = 0
    """Of the kept dialogues, each once."""
    learned_tokens: int = 0
    pass_tokens: int = 0
    """Positions that a run goes through to see everything about once, noisy copies included."""


def read_file(path: Path) -> list[Line]:
    """Every dialogue of a file (`dllm.train.data`, docs/finetuning.md).

    Raises:
        DataError: With file and line: on the first line that is no dialogue, or an id that was there before.
    """
    lines: list[Line] = []
    where: dict[str, int] = {}
    for number, body in read_objects(path):
        dialogue = dialogue_of(path, number, body)
        if (first := where.setdefault(dialogue.id, number)) != number:
            raise DataError(path, number, f"id {dialogue.id!r} is also that of line {first}; ids must differ")
        lines.append(Line(number, body | {"id": dialogue.id}, dialogue))
    if not lines:
        raise DataError(path, None, "no dialogue in it")
    return lines


def write_file(path: Path, lines: Sequence[Line]) -> None:
    """The dialogues as a source that a run reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line.body, ensure_ascii=False) + "\n" for line in lines), "utf-8")


def hold_back(lines: Sequence[Line], share: float, path: Path) -> tuple[list[Line], list[Line]]:
    """Those to learn and those to hold back, both in the order of the file.

    The dialogues whose ids have the lowest hashes are held back, so that neither the order of the file nor what else is in it
    decides; adding dialogues moves few from one side to the other.

    Args:
        share: Of the dialogues to hold back, in (0, 1); at least one is, and at least one is learned.
        path: For the error.

    Raises:
        DataError: If there is one dialogue only.
    """
    if len(lines) < 2:
        raise DataError(
            path,
            None,
            "one usable dialogue; at least two are needed, since one is held back to tell whether learning helps (30 or more are "
            "better), or --dev FILE with dialogues of its own",
        )
    count = min(max(1, round(share * len(lines))), len(lines) - 1)
    ranked = sorted(lines, key=lambda line: hashlib.sha256(line.dialogue.id.encode()).digest())
    held = {line.number for line in ranked[:count]}
    return [line for line in lines if line.number not in held], [line for line in lines if line.number in held]


def longest(lines: Sequence[Line], codec: Codec) -> tuple[int, int]:
    """Tokens of the longest dialogue and of the longest system turn; for published checkpoints the template's marks are left out."""

    def size(turn: Turn) -> int:
        if isinstance(codec, DialogueCodec):
            return len(turn_tokens(codec, turn))
        return len(codec.encode(answer_text(turn)))

    sizes = [[size(heard(turn)) for turn in line.dialogue.turns] for line in lines]
    systems = [own[0] for own, line in zip(sizes, lines, strict=True) if line.dialogue.turns[0].role == "system"]
    return max(map(sum, sizes)), max(systems, default=0)


def heard(turn: Turn) -> Turn:
    """The turn as it reaches the model: a user's words as a recogniser writes them."""
    if turn.role != "user":
        return turn
    return Turn("user", spoken_form(turn.text) or turn.text)


def survey(lines: Sequence[Line], codec: Codec, spec: ModelSpec, config: TrainConfig) -> Survey:
    """What a run with this configuration would use of the dialogues."""
    maker = RowMaker(codec, config) if isinstance(codec, DialogueCodec) and config.objective == "dialogue" else None
    kept: list[Line] = []
    left_out: list[LeftOut] = []
    shortened: list[LeftOut] = []
    turns: Counter[str] = Counter()
    learned = tokens = learned_tokens = pass_tokens = 0
    for line in lines:
        if maker is not None:
            use = _use_of_rows(line.dialogue, maker)
        else:
            use = _use_of_documents(line.dialogue, codec, spec, config)
        if use.reason:
            left_out.append(LeftOut(line.number, line.dialogue.id, use.reason))
            continue
        kept.append(line)
        shortened += [LeftOut(line.number, line.dialogue.id, reason) for reason in use.shortened]
        turns.update("call" if turn.is_call else turn.role for turn in line.dialogue.turns)
        learned, tokens = learned + use.learned, tokens + use.tokens
        learned_tokens, pass_tokens = learned_tokens + use.learned_tokens, pass_tokens + use.pass_tokens
    return Survey(
        tuple(kept), tuple(left_out), tuple(shortened), dict(turns), learned, tokens, learned_tokens, pass_tokens
    )


@dataclass(frozen=True, slots=True)
class _Use:
    reason: str = ""
    """Why none of it is used."""
    shortened: tuple[str, ...] = ()
    learned: int = 0
    tokens: int = 0
    learned_tokens: int = 0
    pass_tokens: int = 0


def _use_of_rows(dialogue: Dialogue, maker: RowMaker) -> _Use:
    codec, limit, plain = maker.codec, maker.config.max_clean_tokens, SourceConfig()
    if reason := _without_answers(dialogue):
        return _Use(reason)
    sizes = [len(turn_tokens(codec, heard(turn))) for turn in dialogue.turns]
    if dialogue.turns[0].role == "system" and sizes[0] > limit // 2:
        return _Use(f"its system turn has {sizes[0]} tokens, at most {limit // 2} fit")
    rng = random.Random(dialogue.id)
    shortened, learned, learned_tokens = [], 0, 0
    for turn, size in zip(dialogue.turns, sizes, strict=True):
        if turn.role != "agent" or not turn.text:
            continue
        # A dialogue of this turn alone: what the run makes of the turn is what is told of it.
        row = maker.make(Dialogue("", "", (turn,)), plain, rng)
        answered = len(row.answers[0].tokens) if row is not None else 0
        learned, learned_tokens = learned + (answered > 0), learned_tokens + answered
        if answered < size - 1:
            what = f"learned up to {answered - 1}" if answered else "only read"
            shortened.append(f"an agent's turn of {size - 2} tokens, more than {plain.max_agent_tokens}: {what}")
    if not learned:
        return _Use(f"every agent's turn has more than {plain.max_agent_tokens} tokens without the end of a sentence")
    if all(maker.make(dialogue, plain, rng) is None for _ in range(TRIES)):
        return _Use(f"no window of {limit} tokens holds an agent's turn")
    # A canvas is about twice as wide as its answer.
    return _Use("", tuple(shortened), learned, sum(sizes), learned_tokens, sum(sizes) + 2 * learned_tokens)


def _use_of_documents(dialogue: Dialogue, codec: Codec, spec: ModelSpec, config: TrainConfig) -> _Use:
    if reason := _without_answers(dialogue):
        return _Use(reason)
    turns = [heard(turn) for turn in dialogue.turns]
    shortened, sizes, learned_tokens = [], [], 0
    for at, turn in enumerate(turns):
        if turn.role != "agent" or not turn.text or not at:
            continue
        try:
            prompt, answer = prompt_and_answer(turns, at, codec)
        except ConfigError as error:
            return _Use(f"the chat template refuses it: {error}")
        size = len(prompt) + len(answer) + 1
        if size > config.row_tokens:
            shortened.append(f"an agent's turn that ends at token {size}, beyond {config.row_tokens}: not learned")
            continue
        sizes.append(size)
        learned_tokens += len(answer) + 1
    if not sizes:
        return _Use(f"no agent's turn ends within {config.row_tokens} tokens")
    # Each answer is a document of its own, with its prompt.
    return _Use("", tuple(shortened), len(sizes), max(sizes), learned_tokens, sum(sizes))


def _without_answers(dialogue: Dialogue) -> str:
    if any(turn.role == "agent" and turn.text for turn in dialogue.turns[1:]):
        return ""
    return "no agent's turn that answers something"


def prompt_and_answer(turns: Sequence[Turn], at: int, codec: Codec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens before an agent's turn, where its canvas begins, and those of the turn without its end.

    Raises:
        ConfigError: If a published template refuses the turns.
    """
    if isinstance(codec, DialogueCodec):
        prompt = [token for turn in turns[:at] for token in turn_tokens(codec, turn)]
        return (*prompt, codec.special.agent), tuple(turn_tokens(codec, turns[at])[1:-1])
    return tuple(encode_prompt(codec, turns[:at])), tuple(codec.encode(answer_text(turns[at])))
