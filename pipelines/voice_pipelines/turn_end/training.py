"""Teaches the turn-end model from dialogues: where callers' turns end, and where they could have been interrupted.

    python -m voice_pipelines.turn_end.training --data DIALOGUES [--data CAFE] --out weights.npz

Every place behind a word of a caller's turn is an example: the last is an end, the others are not. An end weighs 1, another place `PAUSES_PER_PLACE`, and
all those of a turn together no more than its end. So the probability that is learned is that of a pause where speakers of long turns pause once in each,
and those of "no thanks" hardly ever. Of half of the turns nothing is changed; the
others are misheard: words are exchanged, dropped and put in, few or most of them, so that the model learns how little such text tells of its end.

People who type seldom answer with one word, so answers are made beside the dialogues (`answers.py`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import lzma
import math
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dllm.spoken import spoken_form
from dllm.train.data import find_sources
from voice_pipelines.turn_end.answers import Answer, made_answers
from voice_pipelines.turn_end.model import (
    ENDING_BITS,
    FIRST,
    MOST_ASKED,
    MOST_WORDS,
    TABLE_BITS,
    WORD_BITS,
    Floats,
    TurnEndModel,
    crosses,
    rows,
)
from voiceagent.endpoint import EndpointSettings, cheapest_wait_s, longer_pauses

EMBEDDING, HIDDEN = 48, 96
BATCH, EPOCHS, RATE = 256, 3, 4e-3
MOST_TURNS = 60_000
"""Of one source, so that open talk does not drown calls."""
HEARD_TURNS = 2_000
"""Of each source, whose words are put for others."""
PAUSES_PER_PLACE = 0.1
"""Of the places between the words of a turn, how many have a pause in them, up to one a turn: nobody pauses in "no thanks"."""
ANSWERS, ANSWERS_LEFT_OUT = 24_000, 4_000
"""Made answers for training, and those that are measured."""
UNCHANGED, LIGHTLY = 0.5, 0.75
"""Shares of turns that are not misheard, and that are so at most in a few words."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the agent said last, and the caller's words."""

    asked: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Words as the model is given them, and what their places teach."""

    asked: Sequence[str]
    words: Sequence[str]
    """At most `MOST_WORDS`."""
    inner: float
    """Weight of each place but the last; none is an end."""
    last: float
    is_end: bool
    """Of the last place."""


def read_turns(path: Path, most: int, seed: int) -> list[Turn]:
    """Callers' turns of a file of dialogues, at most so many, dialogues in random order."""
    lines = (lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()).decode().splitlines()
    random.Random(seed).shuffle(lines)
    turns: list[Turn] = []
    for line in lines:
        asked: tuple[str, ...] = ()
        for turn in json.loads(line)["turns"]:
            text = turn.get("text", "")
            if turn["role"] == "user" and (words := spoken_form(text).split()):
                turns.append(Turn(asked, tuple(words)))
            elif turn["role"] == "agent":
                asked = tuple(spoken_form(text).split()[-MOST_ASKED:])
        if len(turns) >= most:
            break
    return turns[:most]


def answer_turns(answers: Iterable[Answer]) -> list[Turn]:
    return [
        Turn(tuple(spoken_form(each.asked).split()[-MOST_ASKED:]), tuple(spoken_form(each.said).split()))
        for each in answers
    ]


def misheard(words: Sequence[str], others: Sequence[Sequence[str]], rng: random.Random) -> list[str]:
    """The words as a poor recogniser might have them, of half of the turns.

    A recogniser writes what its language model finds likely, so up to three words are put for others as they stand in some other turn.
    """
    draw = rng.random()
    if draw < UNCHANGED:
        return list(words)
    share = rng.uniform(0.02, 0.3) if draw < LIGHTLY else rng.uniform(0.4, 1.0)
    heard: list[str] = []
    at = 0
    while at < len(words):
        if rng.random() >= share:
            heard.append(words[at])
            at += 1
            continue
        other = rng.choice(others)
        start, length = rng.randrange(len(other)), rng.randint(1, 3)
        heard += other[start : start + length]
        at += rng.choice((length - 1, length, length, length + 1))
    return heard or [rng.choice(rng.choice(others))]


class Network(nn.Module):
    """The model in torch; `weights` gives what `model.TurnEndModel` takes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(2**WORD_BITS, EMBEDDING)
        self.endings = nn.Embedding(2**ENDING_BITS, EMBEDDING)
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.endings.weight, std=0.1)
        self.recurrent = nn.GRU(EMBEDDING, HIDDEN, batch_first=True)
        self.output = nn.Linear(HIDDEN, 1)
        self.crossed = nn.Embedding(2**TABLE_BITS, 1)
        nn.init.zeros_(self.crossed.weight)
        self.dropout = nn.Dropout(0.15)

    def forward(self, words: Tensor, endings: Tensor, entries: Tensor) -> Tensor:
        """Log-odds [B, T - FIRST]; words and endings [B, T], entries [B, T - FIRST, CROSSES], all int64."""
        seen = self.dropout(self.words(words) + self.endings(endings))
        states, _ = self.recurrent(seen)
        deep = self.output(self.dropout(states[:, FIRST:]))[..., 0]
        wide: Tensor = self.dropout(self.crossed(entries)[..., 0]).sum(dim=-1)
        return torch.as_tensor(deep + wide)

    def weights(self) -> dict[str, Tensor]:
        named = dict(self.named_parameters())
        found: dict[str, Tensor] = {name: named[of] for name, of in _NAMES.items()}
        found["output"], found["table"] = found["output"][0], found["table"][:, 0]
        return {name: tensor.detach().half().contiguous() for name, tensor in found.items()}


_NAMES = {
    "words": "words.weight",
    "endings": "endings.weight",
    "input": "recurrent.weight_ih_l0",
    "input_bias": "recurrent.bias_ih_l0",
    "hidden": "recurrent.weight_hh_l0",
    "hidden_bias": "recurrent.bias_hh_l0",
    "output": "output.weight",
    "table": "crossed.weight",
    "bias": "output.bias",
}


@dataclass(frozen=True, slots=True)
class Batch:
    words: Tensor
    endings: Tensor
    entries: Tensor
    is_end: Tensor
    weight: Tensor
    """[B, T] of the caller's places; 0 behind the end."""


def rows_of(turn: Turn, rng: random.Random) -> Iterator[Row]:
    """A turn as the model meets it while it grows: by its last `MOST_WORDS` words.

    A longer one is three rows: its beginning, none of whose places is an end; its end; and the words before a place drawn between them, for all of those.
    """
    count = len(turn.words)
    inner = _inner(count)
    if count <= MOST_WORDS:
        yield Row(turn.asked, turn.words, inner, 1.0, True)
        return
    yield Row(turn.asked, turn.words[:MOST_WORDS], inner, inner, False)
    yield Row(turn.asked, turn.words[-MOST_WORDS:], 0.0, 1.0, True)
    if between := count - 1 - MOST_WORDS:
        at = rng.randrange(MOST_WORDS + 1, count)
        yield Row(turn.asked, turn.words[at - MOST_WORDS : at], 0.0, inner * between, False)


def _inner(count: int) -> float:
    """Weight of a place within a turn of so many words."""
    return min(PAUSES_PER_PLACE, 1 / max(count - 1, 1))


def epoch_of(turns: Sequence[Turn], others: Sequence[Sequence[str]], rng: random.Random) -> Iterator[Batch]:
    """Every turn once, misheard or not; rows of like length together."""
    heard = [
        replace(row, words=misheard(row.words, others, rng)[-MOST_WORDS:])
        for turn in turns
        for row in rows_of(turn, rng)
    ]
    order = sorted(range(len(heard)), key=lambda at: (len(heard[at].words), rng.random()))
    groups = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
    rng.shuffle(groups)
    for group in groups:
        yield batch_of([heard[at] for at in group])


def batch_of(some: Sequence[Row]) -> Batch:
    hashes, endings = rows([(row.asked, row.words) for row in some])
    weight = np.zeros((len(some), hashes.shape[1] - FIRST), np.float32)
    is_end = np.zeros_like(weight)
    for at, row in enumerate(some):
        last = len(row.words) - 1
        weight[at, :last], weight[at, last] = row.inner, row.last
        is_end[at, last] = row.is_end
    return Batch(
        torch.from_numpy((hashes % np.uint64(2**WORD_BITS)).astype(np.int64)),
        torch.from_numpy((endings % np.uint64(2**ENDING_BITS)).astype(np.int64)),
        torch.from_numpy(crosses(hashes[:, FIRST:])),
        torch.from_numpy(is_end),
        torch.from_numpy(weight),
    )


def loss_of(network: Network, batch: Batch) -> Tensor:
    odds = network(batch.words, batch.endings, batch.entries)
    losses = nn.functional.binary_cross_entropy_with_logits(odds, batch.is_end, batch.weight, reduction="sum")
    return losses / batch.weight.sum()


def train(turns: Sequence[Turn], others: Sequence[Sequence[str]], seed: int, epochs: int = EPOCHS) -> Network:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    network = Network()
    steps = epochs * math.ceil(sum(1 for turn in turns for _ in rows_of(turn, rng)) / BATCH)
    table = list(network.crossed.parameters())
    rest = [parameter for name, parameter in network.named_parameters() if not name.startswith("crossed.")]
    optimiser = torch.optim.Adam([{"params": rest, "lr": RATE}, {"params": table, "lr": RATE}], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=max(0.1, 2 / steps))
    began, step = time.monotonic(), 0
    for epoch in range(epochs):
        shown = 0.0
        for batch in epoch_of(turns, others, rng):
            loss = loss_of(network, batch)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(rest, 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            shown += (float(loss.detach()) - shown) / min(step, 200)
            if step % 200 == 0:
                print(
                    f"epoch {epoch + 1} step {step} of {steps}: {shown:.4f} nats, {time.monotonic() - began:.0f} s",
                    flush=True,
                )
    return network.eval()


@dataclass(frozen=True, slots=True)
class Measured:
    """How well ends are told from other places, on turns that are as they were said; a turn's places weigh as in training."""

    turns: int
    area: float
    """Under the curve of true against false ends: that an end is found likelier than another place."""
    nats: float
    """Mean -log of the probability of what was true; 0.693 is a coin."""


def measure(model: TurnEndModel, turns: Sequence[Turn]) -> Measured:
    odds, is_end, weight = [], [], []
    for turn in turns:
        count = len(turn.words)
        if count < 2:
            continue  # Nobody can pause in a single word.
        odds.append(odds_of(model, turn))
        is_end.append(np.arange(count) == count - 1)
        weight.append(np.where(is_end[-1], 1.0, _inner(count)))
    order = np.argsort(flat := np.concatenate(odds), kind="stable")
    ends, weights = np.concatenate(is_end)[order], np.concatenate(weight)[order]
    below = np.cumsum(np.where(ends, 0.0, weights))
    area = float((below * weights)[ends].sum() / (below[-1] * weights[ends].sum()))
    nats = np.logaddexp(0.0, np.where(ends, -flat[order], flat[order]))
    return Measured(len(odds), area, float((nats * weights).sum() / weights.sum()))


def odds_of(model: TurnEndModel, turn: Turn) -> Floats:
    """Log-odds behind each word of a turn, as the model has them while it grows: always by the last `MOST_WORDS` of it."""
    grown = [
        model.log_odds(turn.asked, turn.words[:count])[-1:] for count in range(MOST_WORDS + 1, len(turn.words) + 1)
    ]
    return np.concatenate([model.log_odds(turn.asked, turn.words[:MOST_WORDS]), *grown])


@dataclass(frozen=True, slots=True)
class MeasuredAnswers:
    """What callers who answer in a few words wait for, with this model alone and a cost of a cut-off."""

    bare: int
    """Answers of the word alone."""
    bare_wait_s: float
    """Mean silence until they are taken for complete."""
    bare_slow: float
    """Share of them that wait for longer than silence alone would."""
    others_wait_s: float
    """Mean silence after the other answers."""
    cut_off: float
    """Share of the pauses within answers, weighed as in training, that outlast what is waited for there."""


def measure_answers(model: TurnEndModel, answers: Sequence[Answer], settings: EndpointSettings) -> MeasuredAnswers:
    """The answers are some of the word alone and some of several."""

    def wait_s(odds: float) -> float:
        p = 1 / (1 + math.exp(-odds))
        return min(cheapest_wait_s(p, settings.cut_off_cost_s, settings.min_silence_s), settings.max_silence_s)

    waits_s: dict[bool, list[float]] = {True: [], False: []}
    paused, cut_off = 0.0, 0.0
    for answer, turn in zip(answers, answer_turns(answers), strict=True):
        *within_s, end_s = map(wait_s, odds_of(model, turn).tolist())
        waits_s[answer.is_bare].append(end_s)
        weight = _inner(len(turn.words))
        paused += weight * len(within_s)
        cut_off += weight * sum(map(longer_pauses, within_s))
    bare = waits_s[True]
    slow = sum(wait > settings.silence_s for wait in bare) / len(bare)
    return MeasuredAnswers(len(bare), statistics.fmean(bare), slow, statistics.fmean(waits_s[False]), cut_off / paused)


def save(network: Network, path: Path) -> None:
    """The weights in half precision."""
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in network.weights().items()}
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of dialogues; repeat")
    parser.add_argument("--out", type=Path, required=True, help="file for the weights, .npz")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--most", type=int, default=MOST_TURNS, help="turns of one source, at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sources = {
        name: read_turns(path, options.most, options.seed) for name, path in find_sources(options.data, "train").items()
    }
    others = [turn.words for turns in sources.values() for turn in turns[:HEARD_TURNS]]
    turns = list(itertools.chain.from_iterable(sources.values()))
    turns += answer_turns(made_answers(ANSWERS, options.seed, "train"))
    print(f"{len(turns)} turns of {', '.join(sources)} and made answers", flush=True)
    network = train(turns, others, options.seed, options.epochs)
    save(network, options.out)
    report(TurnEndModel.load(options.out), options.data, options.seed)


def report(model: TurnEndModel, folders: Sequence[Path], seed: int) -> None:
    """Print what the card tells: turns and answers left out of training."""
    for name, path in find_sources(folders, "dev").items():
        found = measure(model, read_turns(path, 2_000, seed))
        print(f"{name} left out: {found.turns} turns, area {found.area:.3f}, {found.nats:.3f} nats", flush=True)
    answers = list(made_answers(ANSWERS_LEFT_OUT, seed, "dev"))
    for kind in ("all", *sorted({each.kind for each in answers})):
        some = [each for each in answers if kind in ("all", each.kind)]
        told = measure_answers(model, some, EndpointSettings())
        print(
            f"answers left out, {kind}: {told.bare} bare wait {told.bare_wait_s:.2f} s, {100 * told.bare_slow:.0f} % longer than silence alone; "
            f"the others {told.others_wait_s:.2f} s; {100 * told.cut_off:.0f} % of pauses within are cut off",
            flush=True,
        )


if __name__ == "__main__":
    main()
