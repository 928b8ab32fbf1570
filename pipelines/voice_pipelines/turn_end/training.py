"""Teaches the turn-end model from dialogues: where callers' turns end, and where they could have been interrupted.

    python -m voice_pipelines.turn_end.training --data DIALOGUES [--data CAFE] --out weights.npz

Every place behind a word of a caller's turn is an example: the last is an end, the others are not. An end weighs 1, and so do the others of a turn together; but
in made answers less. So the probability that is learned is that of a pause where speakers pause once in each turn, and those who are asked for a size hardly ever. Of half of the turns nothing is changed; the
others are misheard: words are exchanged, dropped and put in, few or most of them, so that the model learns how little such text tells of its end.
Words that are met less than `LEAST_MET` times are unknown, and of some turns others are too, so that the model learns what names and things that it has not met are worth.

People who type seldom answer with one word and never say "um", so answers are made beside the dialogues (`answers.py`), and people are made to hesitate.
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
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dllm.spoken import spoken_form
from dllm.train.data import find_sources
from voice_pipelines.turn_end.answers import Answer, made_answers
from voice_pipelines.turn_end.model import (
    FIRST,
    LETTER_BITS,
    MOST_WORDS,
    QUESTION,
    STATEMENT,
    TABLE_BITS,
    UNKNOWN,
    Asked,
    Floats,
    Hashes,
    TurnEndModel,
    asked_of,
    crosses,
    places,
    rows,
)
from voiceagent.endpoint import EndpointSettings, Evidence, longer_pauses, wanted_s
from voiceagent.endpoint_words import is_answer

EMBEDDING, HIDDEN = 64, 256
BATCH, EPOCHS, RATE = 256, 3, 3e-3
MOST_KNOWN, LEAST_MET = 2**14, 4
"""Words that are known by themselves, the commonest; met so often in training."""
FORGETFUL, FORGOTTEN = 0.2, 0.25
"""Share of the turns, and of their words, that are unknown though they are not."""
OTHER_ANSWERS = 0.3
"""Share of the made answers with a word that nobody gave: the maker knows some drinks, towns and numbers, and callers say others."""
ENDS_TURNS = 0.05
"""Share of its places in dialogues that end a turn, from which on a word may be put there: nobody answers "the"."""
UNMARKED = 0.1
"""Share of the questions that do not show: not every agent writes marks."""
HESITANT = 0.04
"""Share of the turns with a filler in them."""
EXPANDED = 0.2
"""Share of the turns that say "that is" for "that's"."""
MOST_TURNS = 120_000
"""Of one source, so that open talk does not drown calls."""
HEARD_TURNS = 2_000
"""Of each source, whose words are put for others."""
PAUSED_TURNS = 0.7
"""Of dialogues' turns; they are trained with a pause in each, and the odds of an end are so much higher for it afterwards. Looked up: at the default cost of a cut-off
as many dialogues and callers, half of whom pause, are cut off as by the weights before."""
PAUSES_WITHIN_ANSWERS = 0.1
"""Between two words of a made answer, up to one in each: hardly anybody who is asked for a size pauses in "large please"."""
ANSWERS = 200_000
"""Made answers."""
MOST_ASKED_THERE = 20_000
"""Turns of each source's agents that are looked through for questions."""
FEW_WORDS = 3
UNCHANGED, LIGHTLY = 0.5, 0.75
"""Shares of turns that are not misheard, and that are so at most in a few words."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the agent said last, and the caller's words."""

    asked: Asked
    words: tuple[str, ...]
    is_made: bool = False
    """An answer, said in one breath."""


@dataclass(frozen=True, slots=True)
class Row:
    """Words as the model is given them, and what their places teach."""

    asked: Asked
    words: Sequence[str]
    """At most `MOST_WORDS`."""
    inner: float
    """Weight of each place but the last; none is an end."""
    last: float
    is_end: bool
    """Of the last place."""


def read_turns(path: Path, most: int, seed: int) -> list[Turn]:
    """Callers' turns of a file of dialogues, at most so many, dialogues in random order."""
    exchanges = itertools.islice(_exchanges(path, seed), most)
    return [Turn(asked_of(asked), tuple(said.split())) for asked, said in exchanges]


def _exchanges(path: Path, seed: int) -> Iterator[tuple[str, str]]:
    """What the agent said last, and the caller then as a recogniser writes it."""
    lines = (lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()).decode().splitlines()
    random.Random(seed).shuffle(lines)
    for line in lines:
        asked = ""
        for turn in json.loads(line)["turns"]:
            text = turn.get("text", "")
            if turn["role"] == "user" and (said := spoken_form(text)):
                yield asked, said
            elif turn["role"] == "agent":
                asked = text


def answer_turns(answers: Iterable[Answer]) -> list[Turn]:
    return [Turn(asked_of(each.asked), tuple(spoken_form(each.said).split()), True) for each in answers]


_EXPANDED = {
    "that's": "that is", "it's": "it is", "i'm": "i am", "i'd": "i would", "i'll": "i will", "i've": "i have",
    "don't": "do not", "doesn't": "does not", "didn't": "did not", "isn't": "is not", "can't": "can not",
    "there's": "there is", "what's": "what is", "you're": "you are", "we're": "we are", "we'll": "we will",
    "let's": "let us", "that'll": "that will",
}  # fmt: skip
_FILLERS = ("um", "uh", "er", "hmm", "well", "let me see", "you know", "like")


def said_otherwise(words: Sequence[str], rng: random.Random) -> list[str]:
    """The same as another might say it: without contractions, or with a filler before some word."""
    said = list(words)
    if rng.random() < EXPANDED:
        said = [part for word in said for part in _EXPANDED.get(word, word).split()]
    if rng.random() < HESITANT:
        at = rng.randrange(len(said))
        said[at:at] = rng.choice(_FILLERS).split()
    return said


def answered_otherwise(words: Sequence[str], vocabulary: Sequence[str], rng: random.Random) -> list[str]:
    """A made answer, or the same with one of its words put for any that there is."""
    said = list(words)
    if vocabulary and rng.random() < OTHER_ANSWERS:
        said[rng.randrange(len(said))] = rng.choice(vocabulary)
    return said


def misheard(words: Sequence[str], others: Sequence[Sequence[str]], rng: random.Random) -> list[str]:
    """The words as a poor recogniser might have them, of half of the turns.

    A recogniser writes what its language model finds likely, so up to three words are put for others as they stand in some other turn. Of three words
    and less nothing would be left.
    """
    draw = rng.random()
    if draw < UNCHANGED or (draw >= LIGHTLY and len(words) <= FEW_WORDS):
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

    def __init__(self, known: Hashes) -> None:
        super().__init__()
        self.known = known
        self.words = nn.Embedding(len(known), EMBEDDING)
        self.beginnings = nn.Embedding(2**LETTER_BITS, EMBEDDING)
        self.endings = nn.Embedding(2**LETTER_BITS, EMBEDDING)
        for each in (self.words, self.beginnings, self.endings):
            nn.init.normal_(each.weight, std=0.1)
        self.recurrent = nn.GRU(EMBEDDING, HIDDEN, batch_first=True)
        self.output = nn.Linear(HIDDEN, 1)
        self.crossed = nn.Embedding(2**TABLE_BITS, 1)
        nn.init.zeros_(self.crossed.weight)
        self.dropout = nn.Dropout(0.2)

    def forward(self, words: Tensor, beginnings: Tensor, endings: Tensor, entries: Tensor) -> Tensor:
        """Log-odds [B, T - FIRST]; words, beginnings and endings [B, T], entries [B, T - FIRST, CROSSES], all int64."""
        seen = self.dropout(self.words(words) + self.beginnings(beginnings) + self.endings(endings))
        states, _ = self.recurrent(seen)
        deep = self.output(self.dropout(states[:, FIRST:]))[..., 0]
        wide: Tensor = self.dropout(self.crossed(entries)[..., 0]).sum(dim=-1)
        return torch.as_tensor(deep + wide)

    def weights(self) -> dict[str, NDArray[Any]]:
        named = dict(self.named_parameters())
        found: dict[str, Tensor] = {name: named[of] for name, of in _NAMES.items()}
        found["output"], found["table"] = found["output"][0], found["table"][:, 0]
        halves = {name: tensor.detach().half().contiguous().numpy() for name, tensor in found.items()}
        return {"known": self.known.astype(np.uint32), **halves}


_NAMES = {
    "words": "words.weight",
    "beginnings": "beginnings.weight",
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
    beginnings: Tensor
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
    inner = _inner(count, turn.is_made)
    if count <= MOST_WORDS:
        yield Row(turn.asked, turn.words, inner, 1.0, True)
        return
    yield Row(turn.asked, turn.words[:MOST_WORDS], inner, inner, False)
    yield Row(turn.asked, turn.words[-MOST_WORDS:], 0.0, 1.0, True)
    if between := count - 1 - MOST_WORDS:
        at = rng.randrange(MOST_WORDS + 1, count)
        yield Row(turn.asked, turn.words[at - MOST_WORDS : at], 0.0, inner * between, False)


def _inner(count: int, is_made: bool) -> float:
    """Weight of a place between words of a turn of so many."""
    if is_made:
        return min(PAUSES_WITHIN_ANSWERS, 1 / max(count - 1, 1))
    return 1 / max(count - 1, 1)


def common_words(turns: Iterable[Turn]) -> list[str]:
    """The commonest, those that the model is to know by themselves."""
    met = Counter(word for turn in turns for word in (*turn.asked.words, *turn.words))
    return [word for word, count in met.most_common(MOST_KNOWN - UNKNOWN - 1) if count >= LEAST_MET]


def ending_words(turns: Iterable[Turn], common: Iterable[str]) -> list[str]:
    """Those of the common words that dialogues' turns end with now and then."""
    met: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    for turn in turns:
        if not turn.is_made:
            met.update(turn.words)
            ended[turn.words[-1]] += 1
    return [word for word in common if ended[word] > ENDS_TURNS * met[word]]


def known_words(common: Sequence[str]) -> Hashes:
    """Their hashes, behind the marks; in order."""
    words = rows([(Asked(), common)]).words[0, FIRST:]
    return np.unique(np.concatenate([np.arange(UNKNOWN + 1, dtype=np.uint64), words]))


def epoch_of(
    turns: Sequence[Turn],
    others: Sequence[Sequence[str]],
    vocabulary: Sequence[str],
    known: Hashes,
    rng: random.Random,
) -> Iterator[Batch]:
    """Every turn once, misheard or not; rows of like length together."""

    def said(turn: Turn) -> list[str]:
        words = answered_otherwise(turn.words, vocabulary, rng) if turn.is_made else turn.words
        return said_otherwise(words, rng)

    heard = [
        replace(row, words=misheard(row.words, others, rng)[-MOST_WORDS:])
        for turn in turns
        for row in rows_of(replace(turn, words=tuple(said(turn))), rng)
    ]
    order = sorted(range(len(heard)), key=lambda at: (len(heard[at].words), rng.random()))
    groups = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
    rng.shuffle(groups)
    for group in groups:
        yield batch_of([heard[at] for at in group], known, np.random.default_rng(rng.getrandbits(32)))


def batch_of(some: Sequence[Row], known: Hashes, rng: np.random.Generator | None = None) -> Batch:
    """Args:
    rng: Makes the model forget some words; None leaves all.
    """
    found = rows([(row.asked, row.words) for row in some])
    at_words, at_opening = places(found.words, known), places(found.opening, known)
    if rng is not None:
        forgetful = rng.random((len(some), 1)) < FORGETFUL
        for some_words in (at_words, at_opening):
            is_forgotten = forgetful & (rng.random(some_words.shape) < FORGOTTEN)
            some_words[is_forgotten & (some_words > UNKNOWN)] = UNKNOWN
        mark = at_words[:, FIRST - 1]
        mark[(mark == QUESTION) & (rng.random(len(some)) < UNMARKED)] = STATEMENT
    weight = np.zeros((len(some), at_words.shape[1] - FIRST), np.float32)
    is_end = np.zeros_like(weight)
    for at, row in enumerate(some):
        last = len(row.words) - 1
        weight[at, :last], weight[at, last] = row.inner, row.last
        is_end[at, last] = row.is_end
    return Batch(
        torch.from_numpy(at_words),
        torch.from_numpy((found.beginnings % np.uint64(2**LETTER_BITS)).astype(np.int64)),
        torch.from_numpy((found.endings % np.uint64(2**LETTER_BITS)).astype(np.int64)),
        torch.from_numpy(crosses(known[at_words[:, FIRST - 1 :]], known[at_opening])),
        torch.from_numpy(is_end),
        torch.from_numpy(weight),
    )


def loss_of(network: Network, batch: Batch) -> Tensor:
    odds = network(batch.words, batch.beginnings, batch.endings, batch.entries)
    losses = nn.functional.binary_cross_entropy_with_logits(odds, batch.is_end, batch.weight, reduction="sum")
    return losses / batch.weight.sum()


def train(turns: Sequence[Turn], others: Sequence[Sequence[str]], seed: int, epochs: int = EPOCHS) -> Network:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    common = common_words(turns)
    vocabulary, network = ending_words(turns, common), Network(known_words(common))
    steps = epochs * math.ceil(sum(1 for turn in turns for _ in rows_of(turn, rng)) / BATCH)
    table = list(network.crossed.parameters())
    rest = [parameter for name, parameter in network.named_parameters() if not name.startswith("crossed.")]
    optimiser = torch.optim.Adam([{"params": rest, "lr": RATE}, {"params": table, "lr": RATE}], betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=max(0.1, 2 / steps))
    began, step = time.monotonic(), 0
    for epoch in range(epochs):
        shown = 0.0
        for batch in epoch_of(turns, others, vocabulary, network.known, rng):
            loss = loss_of(network, batch)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(rest, 1.0)
            optimiser.step()
            if step < steps - 1:  # Turns that are said otherwise may be a row more.
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
        weight.append(np.where(is_end[-1], 1.0, _inner(count, turn.is_made)))
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


def short_answers(path: Path, seed: int) -> list[Answer]:
    """Callers' turns of a file of dialogues that answer a question in up to `FEW_WORDS` words."""
    name = path.name.partition(".")[0]
    return [
        Answer(name, asked, said)
        for asked, said in _exchanges(path, seed)
        if asked.rstrip().endswith("?") and len(said.split()) <= FEW_WORDS
    ]


@dataclass(frozen=True, slots=True)
class MeasuredAnswers:
    """What callers who answer in a few words wait for, with this model alone and the decision that calls are decided with."""

    count: int
    wait_s: float
    """Mean silence until they are taken for complete."""
    slow: float
    """Share of them that wait for longer than silence alone would."""
    cut_off: float
    """Share of the pauses within, weighed as in training, that outlast what is waited for there; 0 where there are none."""


def measure_answers(model: TurnEndModel, answers: Sequence[Answer], settings: EndpointSettings) -> MeasuredAnswers:
    waits_s: list[float] = []
    paused, cut_off = 0.0, 0.0
    for answer in answers:
        words = answer.said.split()
        *within_s, end_s = (
            _wait_s(model, answer.asked, " ".join(words[:count]), settings) for count in range(1, len(words) + 1)
        )
        waits_s.append(end_s)
        weight = _inner(len(words), is_made=True)
        paused += weight * len(within_s)
        cut_off += weight * sum(map(longer_pauses, within_s))
    slow = sum(wait > settings.silence_s for wait in waits_s) / len(waits_s)
    return MeasuredAnswers(len(waits_s), statistics.fmean(waits_s), slow, cut_off / paused if paused else 0.0)


def _wait_s(model: TurnEndModel, asked: str, words: str, settings: EndpointSettings) -> float:
    """Silence after which the turn is over, words that have stood for long."""
    completeness = model.completeness(words, asked)
    evidence = Evidence(completeness, settings.max_silence_s, is_answer=is_answer(words, asked))
    return min(wanted_s(evidence, settings), settings.max_silence_s)


def pause_less(network: Network) -> None:
    """From a pause in each turn to one in `PAUSED_TURNS` of them."""
    with torch.no_grad():
        network.output.bias.add_(math.log(1 / PAUSED_TURNS))


def save(network: Network, path: Path) -> None:
    """The weights in half precision."""
    arrays: dict[str, Any] = network.weights()
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
    files = find_sources(options.data, "train").values()
    agents = itertools.chain.from_iterable(
        (asked for asked, _ in itertools.islice(_exchanges(path, options.seed), MOST_ASKED_THERE)) for path in files
    )
    turns += answer_turns(made_answers(ANSWERS, options.seed, agents))
    print(f"{len(turns)} turns of {', '.join(sources)} and made answers", flush=True)
    network = train(turns, others, options.seed, options.epochs)
    pause_less(network)
    save(network, options.out)
    report(TurnEndModel.load(options.out), options.data, options.seed)


def report(model: TurnEndModel, folders: Sequence[Path], seed: int) -> None:
    """Print what the card tells: turns left out of training, and short answers among them."""
    for name, path in find_sources(folders, "dev").items():
        found = measure(model, read_turns(path, 2_000, seed))
        print(f"{name} left out: {found.turns} turns, area {found.area:.3f}, {found.nats:.3f} nats", flush=True)
    told = itertools.chain.from_iterable(short_answers(path, seed) for path in find_sources(folders, "dev").values())
    groups = _by_length(list(told))
    for name, some in groups.items():
        found_answers = measure_answers(model, some, EndpointSettings())
        print(
            f"answers left out, {name}: {found_answers.count} wait {found_answers.wait_s:.2f} s, {100 * found_answers.slow:.0f} % longer than silence "
            f"alone; {100 * found_answers.cut_off:.0f} % of pauses within are cut off",
            flush=True,
        )


def _by_length(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    """Those of one, two and three words."""
    counts = range(1, FEW_WORDS + 1)
    found = {f"of {n} words": [each for each in answers if len(each.said.split()) == n] for n in counts}
    return {name: some for name, some in found.items() if some}


if __name__ == "__main__":
    main()
