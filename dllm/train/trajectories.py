"""What a model writes when it takes its time, and in which order it decides: the material of few-step distillation.

A reply is written with one token per forward, the surest first, and the step of every decision is recorded (the pseudo-trajectory of
d3LLM). Replies that did not end by themselves, that repeat themselves or that lost a fact are dropped. The rest are kept in a file that
grows by whole chunks, so that a run that was interrupted goes on writing where it stopped and gets the same replies.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from dllm.canvas import TokenTable
from dllm.codec import Codec
from dllm.drafts import CellState, DraftSpec, Finished, Plan, Stepped
from dllm.engine import Engine
from dllm.errors import ConfigError, DataError, PromptTooLongError
from dllm.models.family import Network
from dllm.options import DecodeOptions
from dllm.rounds import run_out
from dllm.spec import ModelSpec
from dllm.text import DialogueCodec
from dllm.train.canvases import canvas_width
from dllm.train.config import TrainConfig
from dllm.train.corpus import encode_prompt
from dllm.train.data import Dialogue, Mixture, RowMaker, Split, find_sources, read_dialogues, source_weights
from dllm.train.objective import canvas_width as drawn_width

CHUNK = 64
"""Prompts that are answered, and written to the file, together."""
_CACHE_BYTES = 256 * 2**20
_REPEATED_RUN = 6
"""A run of so many tokens said twice is a reply in circles; a price said twice is shorter."""


@dataclass(frozen=True, slots=True)
class Asking:
    """A prompt to be answered."""

    prompt: tuple[int, ...]
    width: int
    facts: tuple[tuple[int, ...], ...] = ()
    """Spans that the reply must hold to be kept."""
    is_pinned: bool = False
    """Whether they are pinned: the model only chooses their place. Otherwise it has to copy them."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A reply and how it came about."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    """The whole canvas: the reply, its end, and ends behind it."""
    steps: tuple[int, ...]
    """Per canvas position the step that decided it, from 1; 0 where nothing ever did, which is behind the end."""
    length: int
    """Tokens of the reply, its end included."""

    @property
    def last(self) -> int:
        """The step after which the reply was complete."""
        return max(self.steps)


class Prompts(Protocol):
    def asking(self, number: int) -> Asking | None:
        """The prompt with this number, the same at every call; None where there is none that fits."""
        ...


class RowPrompts:
    """Prompts of the built-in family: places of training rows where an agent answers, calls included.

    Args:
        pinned_share: Of the prompts with facts, how many have them pinned.
    """

    def __init__(self, mixture: Mixture, spec: ModelSpec, config: TrainConfig, pinned_share: float = 0.5) -> None:
        # Questions about user turns have no reply; words renamed at random are for reading lessons, and some are enough here.
        asked = replace(config, rest_share=0.0, transcript_share=0.0, renamed_share=config.renamed_share / 2)
        self._maker = RowMaker(mixture.maker.codec, asked)
        self._mixture, self._spec, self._pinned_share = mixture, spec, pinned_share
        self._names = list(mixture.sources)
        self._weights = [mixture.sources[name].weight for name in self._names]

    def asking(self, number: int) -> Asking | None:
        rng = random.Random(f"trajectory:{self._mixture.seed}:{number}")
        name = rng.choices(self._names, self._weights)[0]
        row = self._maker.make(rng.choice(self._mixture.dialogues[name]), self._mixture.sources[name], rng)
        if row is None:
            return None
        answer = rng.choice([answer for answer in row.answers if answer.kind == "reply"])
        runs = itertools.groupby(zip(answer.tokens, answer.pinned, strict=True), key=lambda pair: pair[1])
        facts = tuple(tuple(token for token, _ in run) for is_pinned, run in runs if is_pinned)
        width = drawn_width(len(answer.tokens), rng.random(), self._spec)
        return Asking(row.clean[: answer.start], width, facts, bool(facts) and rng.random() < self._pinned_share)


class Places:
    """Where an agent answers in the dialogues of some folders, sources weighted as in training.

    Args:
        with_calls: Whether a tool call is an answer, too.

    Raises:
        ConfigError: If the folders hold no turn to answer.
    """

    def __init__(
        self, folders: Sequence[Path], config: TrainConfig, *, with_calls: bool, split: Split = "train"
    ) -> None:
        paths = find_sources(folders, split)
        self._found: list[list[tuple[Dialogue, int]]] = []
        self._weights: list[float] = []
        for name, source in source_weights(folders, list(paths), config).items():
            places = [
                (dialogue, at)
                for dialogue in read_dialogues(paths[name])
                for at, turn in enumerate(dialogue.turns)
                if turn.role == "agent" and at and dialogue.turns[at - 1].role != "agent"
                if with_calls or not turn.is_call
            ]
            if places:
                self._found.append(places)
                self._weights.append(source.weight)
        if not self._found:
            raise ConfigError("data", ", ".join(map(str, folders)), "agent turns with a turn before them")

    def draw(self, rng: random.Random) -> tuple[Dialogue, int]:
        """A dialogue, and which of its turns is the answer."""
        return rng.choice(rng.choices(self._found, self._weights)[0])


class ChatPrompts:
    """Prompts of other families: agent turns of the same data files behind the checkpoint's own chat template.

    Args:
        most_tokens: Longest reply that is asked for.

    Raises:
        ConfigError: If the folders hold no turn to answer.
    """

    def __init__(
        self, folders: Sequence[Path], codec: Codec, spec: ModelSpec, config: TrainConfig, most_tokens: int = 64
    ) -> None:
        self._codec, self._spec, self._most, self._seed = codec, spec, most_tokens, config.seed
        self._places = Places(folders, config, with_calls=False)

    def asking(self, number: int) -> Asking | None:
        dialogue, at = self._places.draw(random.Random(f"trajectory:{self._seed}:{number}"))
        try:
            prompt = encode_prompt(self._codec, dialogue.turns[:at])
            tokens = len(self._codec.encode(dialogue.turns[at].text)) + 1
            if tokens > self._most:
                return None
            return Asking(tuple(prompt), canvas_width(self._spec, len(prompt), tokens * 3 // 2))
        except (ConfigError, PromptTooLongError):
            return None  # a template that refuses such turns, or a dialogue that is too long


def write(
    network: Network, table: TokenTable, askings: Sequence[Asking], options: DecodeOptions, batch: int = 32
) -> list[Trajectory | None]:
    """Answer prompts with one token per forward; None for what is no good (`is_good`).

    Args:
        options: The family's habits; greedy.
        batch: Replies written together.
    """
    engine = Engine(network, table, max_batch=batch, cache_bytes=_CACHE_BYTES)
    by_clause = network.spec.dialogue is not None
    asked: dict[int, tuple[int, Asking]] = {}
    steps: dict[int, list[int]] = {}
    # The nearest in width together: a forward is as wide as its widest window.
    for number, asking in sorted(enumerate(askings), key=lambda entry: entry[1].width):
        plan = Plan(asking.width, asking.width, threshold=1.0, by_clause=by_clause)
        pins = asking.facts if asking.is_pinned else ()
        draft = engine.submit(DraftSpec(asking.prompt, str(number), asking.width, plan, pins, options))
        asked[draft.number] = number, asking
        steps[draft.number] = [0] * draft.canvas.width
    written: list[Trajectory | None] = [None] * len(askings)
    for event in run_out(engine):
        number, asking = asked[event.draft.number]
        known = steps[event.draft.number]
        match event:
            case Stepped(canvas=cells, step=step):
                for at, cell in enumerate(cells):
                    if not known[at] and cell.state in (CellState.COMMITTED, CellState.PINNED):
                        known[at] = step
            case Finished(tokens=tokens, reason="end_of_turn"):
                canvas = (*tokens, *[table.end] * (len(known) - len(tokens)))
                one = Trajectory(asking.prompt, canvas, tuple(known), len(tokens) + 1)
                written[number] = one if is_good(one, asking, table) else None
            case _:
                pass
    return written


def is_good(trajectory: Trajectory, asking: Asking, table: TokenTable) -> bool:
    """Whether a reply is worth imitating: not empty, all of it decided, nothing said in circles, every fact there."""
    reply = trajectory.tokens[: trajectory.length - 1]
    if not reply or not all(trajectory.steps[: trajectory.length]):
        return False
    return not repeats_itself(reply, table) and all(holds(reply, fact) for fact in asking.facts)


def holds(tokens: Sequence[int], run: Sequence[int]) -> bool:
    """Whether `run` is in `tokens`, whole and in one piece."""
    size = len(run)
    return any(tuple(tokens[at : at + size]) == tuple(run) for at in range(len(tokens) - size + 1))


def repeats_itself(reply: Sequence[int], table: TokenTable) -> bool:
    """Whether a word stands twice in a row, three tokens do, or a longer run comes back anywhere."""
    for first, second in itertools.pairwise(reply):
        if first == second and first in table.word | table.sentence_end | table.clause_end:
            return True
    if any(tuple(reply[at : at + 3]) == tuple(reply[at + 3 : at + 6]) for at in range(len(reply) - 5)):
        return True
    runs = [tuple(reply[at : at + _REPEATED_RUN]) for at in range(len(reply) - _REPEATED_RUN + 1)]
    return len(set(runs)) < len(runs)


class Library:
    """Trajectories on disk: one line per prompt number, `null` for what was no good.

    Raises:
        DataError: With file and line, if the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: list[Trajectory] = []
        self.asked = 0
        """Prompt numbers that were asked so far."""
        self.seconds = 0.0
        """What writing took, all sittings."""
        whole = 0
        if path.is_file():
            for line, size in self._whole_chunks():
                self._take(line)
                whole += size
            # What was interrupted in the middle of a chunk is written again.
            with path.open("r+b") as file:
                file.truncate(whole)

    def _whole_chunks(self) -> Iterator[tuple[dict[str, object], int]]:
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if not raw.endswith(b"\n"):
                    return
                try:
                    body = json.loads(raw)
                except ValueError as error:
                    raise DataError(self.path, number, f"not JSON: {error}") from error
                if not isinstance(body, dict) or not isinstance(body.get("replies"), list):
                    raise DataError(self.path, number, 'expected an object with a list "replies"')
                yield body, len(raw)

    def _take(self, body: dict[str, object]) -> None:
        replies, seconds, asked = body["replies"], body["seconds"], body["asked"]
        assert isinstance(replies, list) and isinstance(seconds, float) and isinstance(asked, int)
        self.kept += [
            Trajectory(tuple(one["prompt"]), tuple(one["tokens"]), tuple(one["steps"]), one["length"])
            for one in replies
        ]
        self.seconds += seconds
        self.asked += asked

    def grow(
        self,
        network: Network,
        table: TokenTable,
        prompts: Prompts,
        options: DecodeOptions,
        batch: int = 32,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Answer the next `CHUNK` prompts, and write them down."""
        began = clock()
        found = (prompts.asking(self.asked + index) for index in range(CHUNK))
        written = write(network, table, [asking for asking in found if asking is not None], options, batch)
        replies = [asdict(one) for one in written if one is not None]
        body = {"asked": CHUNK, "seconds": float(clock() - began), "replies": replies}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(body) + "\n")
        self._take(body)


def prompts_for(
    folders: Sequence[Path], codec: Codec, spec: ModelSpec, config: TrainConfig, mixture: Mixture | None
) -> Prompts:
    """The prompts of a checkpoint's family."""
    if mixture is not None and isinstance(codec, DialogueCodec):
        return RowPrompts(mixture, spec, config)
    return ChatPrompts(folders, codec, spec, config)
