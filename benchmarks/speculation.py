"""How many steps the end of a turn still waits for when its reply was drafted in the pause before, against a draft begun then.

    python benchmarks/speculation.py --data tests/data
    python benchmarks/speculation.py --data SPEECH --every 3 --save orders.json
    python benchmarks/speculation.py --dialogues DIALOGUES --turns 12 --save dialogues.json
    python benchmarks/speculation.py --unheard tests/data --save unheard.json

`benchmarks/results/speculation.json` holds what these wrote, by name.

Recordings: spoken orders, as they are and with one pause inserted (`tapes.py`). What the detector and the recogniser said, and when, is
replayed window by window through the modules that the server decides with; the reply is drafted, revised and released by the real engine,
whose forwards take simulated time. What the recogniser says in the end is decoded anew from the audio up to the endpoint.

Dialogues: turns of the users of the set left out of training, as text that grows word by word. When words come, how they are misheard at
first and how often the last word of all changes it are made up here (`Made`), not measured.

A step is a forward of the model: those that write, and those that ask whether kept words still fit. Steps at the end are counted from the
endpoint until the first clause is written; the cold draft of the same turn has the same prompt, pins and plan. Nothing is timed, so the
machine does not matter.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import lzma
import random
import re
import threading
import time
import tomllib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from asr import decoder_for
from measuring import about
from pauses import draw_pause, entries
from tapes import TapeMaker

from dllm import loader
from dllm.draft import Draft as EngineDraft
from dllm.drafts import Event, Prefilled
from dllm.engine import Engine
from dllm.runner import EngineRunner
from dllm.spoken import spoken_form
from dllm.transcript import turn_end
from voice_pipelines.adapters.diffusion import DiffusionDrafter
from voice_pipelines.adapters.diffusion_turns import joined
from voice_pipelines.asr.decoder import SphinxDecoder
from voice_pipelines.asr.vocabulary import Vocabulary
from voice_pipelines.cafe.hearing import COUNT_WORDS
from voice_pipelines.cafe.order import cafe_notes
from voice_pipelines.settings import load
from voice_pipelines.turn_end.model import TurnEndModel
from voiceagent.asking import Asking
from voiceagent.backends import (
    BackendInfo,
    DraftEvent,
    DraftFailed,
    DraftFinished,
    DraftRequest,
    DraftRevised,
    DraftStepped,
    StepPlan,
)
from voiceagent.budget import BudgetController
from voiceagent.budget_terms import BudgetSettings
from voiceagent.clock import ManualClock
from voiceagent.config import Config
from voiceagent.early import Beginning, EarlyDrafts
from voiceagent.endpoint import decide
from voiceagent.endpoint_words import PauseWords, Question
from voiceagent.events import Item
from voiceagent.history import History
from voiceagent.session import ResponseOptions, SessionSettings
from voiceagent.speculation import Pause
from voiceagent.vad import WINDOW_SAMPLES, VoiceActivity

ROOT = Path(__file__).parent.parent
WINDOW_S = WINDOW_SAMPLES / 16_000
STEP_S = 0.0109
"""A forward of the built-in model on one thread (dllm-step.json)."""
ASR_S = 0.04
"""From the endpoint to the last word: what is left of a block of 100 ms, and its decoding."""
FIGURES = re.compile(rf"\d|\b({'|'.join(COUNT_WORDS[2:])})\b", re.IGNORECASE)
OUTCOMES = ("hit", "repaired", "wasted", "kept", "none")
GOAL_SHARE, GOAL_STEPS = 0.6, 1 / 3


# --- an engine in simulated time --------------------------------------------------------------------------------------


class SteppedRunner(EngineRunner[Engine]):
    """The engine's thread, without a thread: it works when it is told to, and says how long that would have taken."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._clock = time.monotonic
        self._handles = {}
        self._wake = threading.Condition()
        self._commands = deque()
        self._warming = {}
        self._end = None
        self.forwards = 0

    def obey(self) -> None:
        while self._commands:
            self._obey(self._commands.popleft())

    def work(self) -> float:
        """One round; the seconds that it takes, 0 when there is nothing to do."""
        self.obey()
        if not self._handles:
            return 0.0
        busy = [draft for draft in self._handles if isinstance(draft, EngineDraft)]
        before = sum(draft.steps + draft.forwards_other for draft in busy)
        events: list[Event] = self.engine.run_round()
        for event in events:
            self._deliver(event)
        after = sum(draft.steps + draft.forwards_other for draft in busy)
        self.forwards += after - before
        stored = sum(0.006 + 0.0011 * event.new_tokens for event in events if isinstance(event, Prefilled))
        return STEP_S + stored

    async def aclose(self) -> None:
        """Nothing runs."""


async def stepped(model: Path | None) -> tuple[DiffusionDrafter, SteppedRunner]:
    drafter = DiffusionDrafter(loader.load(model), BackendInfo("llm", "the model", "benchmark"))
    engine = drafter._runner.engine
    await drafter._runner.aclose()
    runner = SteppedRunner(engine)
    drafter._runner = runner
    return drafter, runner


# --- one turn ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one turn."""

    name: str
    outcome: str
    """`hit`, `repaired`, `wasted`; or `none`, where nothing was drafted before the end."""
    drafts: int
    early: int
    wasted: int
    late: int
    cold: int
    forwards: int
    """All of them, to the end of the reply."""
    is_same: bool
    """The reply is the cold one, word for word."""
    has_facts: bool
    """All that must be said is said, and no figure beside it."""
    cold_has_facts: bool
    said: str
    cold_said: str

    @property
    def is_quick(self) -> bool:
        return self.late <= self.cold * GOAL_STEPS


@dataclass
class Turn:
    """One turn of one conversation, with its engine."""

    drafter: DiffusionDrafter
    runner: SteppedRunner
    imagine: Callable[[str], DraftRequest]
    conversation: str
    clock: ManualClock = field(default_factory=lambda: ManualClock(time.monotonic()))
    words: TurnEndModel = field(default_factory=TurnEndModel.load)
    ahead_s: float = 0.0
    """How far the engine has worked beyond the clock."""

    def __post_init__(self) -> None:
        self.budget = BudgetController(BudgetSettings(speculation_share=1.0), curve=self.drafter.quality_curve)
        self.early = EarlyDrafts(self.drafter, self.budget, self.clock, self.imagine)
        self.runner.forwards = 0

    def warm(self) -> None:
        turns = self.imagine("").turns
        self.runner.engine.warm(self.conversation, self.drafter.prompts.warm_part(self.conversation, turns))

    def completeness(self, words: str) -> float:
        turns = [turn for turn in self.imagine(words).turns if turn.role != "note"]
        tokens = self.drafter.prompts.write(self.conversation, turns)
        asked = next((turn.text for turn in reversed(turns) if turn.role == "agent"), "")
        return joined(turn_end(self.runner.engine, tokens[:-2]), self.words.completeness(words, asked))

    async def pass_time(self, seconds: float) -> None:
        """The engine works in it, if it has something to do."""
        await self.clock.advance(seconds)
        self.ahead_s = max(self.ahead_s - seconds, -seconds)
        while self.ahead_s < 0 and (took := self.runner.work()):
            self.ahead_s += took
            await asyncio.sleep(0)
        self.ahead_s = max(self.ahead_s, 0.0)
        await asyncio.sleep(0)

    def plan(self, width: int) -> StepPlan:
        """As a turn with enough time gets it."""
        settings = self.budget.settings
        return StepPlan(
            width,
            self.budget.useful_steps(self.budget.clause_width),
            self.budget.useful_steps(width),
            settings.threshold,
            fact_threshold=settings.fact_threshold,
        )

    async def end(self, name: str, words: str) -> Row:
        """The turn is over with these words: release what there is, and write the same reply from nothing."""
        await self.pass_time(ASR_S)
        request = self.imagine(words)
        request = replace(request, plan=self.plan(request.plan.canvas_width))
        beginning = self.early.take(request)
        events: asyncio.Queue[DraftEvent] = asyncio.Queue()
        beginning.start(request, events.put_nowait)
        told = list(beginning.told())
        late, said = await self.finish(events, told, beginning.has_clause)
        kept = next((event.kept_tokens for event in told if isinstance(event, DraftRevised)), 0)
        forwards, speculation = self.runner.forwards, beginning.speculation
        if speculation is not None and beginning.early is not None and not beginning.is_hit:
            speculation.revised(kept, 0)
            if not kept:
                speculation.drop()
        cold_request = replace(request, conversation_id="cold")
        cold_events: asyncio.Queue[DraftEvent] = asyncio.Queue()
        self.drafter.start(cold_request, cold_events.put_nowait)
        cold, cold_said = await self.finish(cold_events, [], False)
        self.runner.engine.forget("cold")
        self.runner.engine.forget(self.conversation)
        return Row(
            name,
            _outcome(beginning, kept),
            0 if speculation is None else speculation.drafts,
            0 if speculation is None else speculation.early_steps,
            0 if speculation is None else speculation.wasted_steps,
            late,
            cold,
            forwards,
            said == cold_said,
            _has_facts(said, request.must_say),
            _has_facts(cold_said, request.must_say),
            said,
            cold_said,
        )

    async def finish(
        self, events: asyncio.Queue[DraftEvent], told: list[DraftEvent], has_clause: bool
    ) -> tuple[int, str]:
        """Steps from now until the first clause, and the whole reply. What comes is added to `told`."""
        late = 0
        while not (told and isinstance(told[-1], DraftFinished | DraftFailed)):
            if events.empty():
                self.runner.work()
                await asyncio.sleep(0)
                continue
            event = events.get_nowait()
            told.append(event)
            match event:
                case DraftRevised() if not has_clause:
                    late += event.forwards
                case DraftStepped() if not has_clause:
                    late += 1
                    has_clause = bool(event.committed_text)
                case _:
                    pass
        last = told[-1]
        if isinstance(last, DraftFailed):
            raise last.error
        assert isinstance(last, DraftFinished)
        return late, last.text


def _outcome(beginning: Beginning, kept: int) -> str:
    if beginning.early is not None and beginning.speculation is not None:
        return beginning.speculation.outcome.value
    return "none" if beginning.unheard is None or not kept else "kept"


def _has_facts(said: str, must_say: Sequence[str]) -> bool:
    """Every text that must be said is said, and every figure is part of one."""
    if not all(text.lower() in said.lower() for text in must_say):
        return False
    rest = said
    for text in must_say:
        rest = re.sub(re.escape(text), "", rest, flags=re.IGNORECASE)
    return not (must_say and FIGURES.search(rest))


# --- recordings -------------------------------------------------------------------------------------------------------


async def recorded(
    maker: TapeMaker, entry: dict[str, Any], preset: dict[str, Any], config: Config, engine: Any, *, with_pause: bool
) -> Row | None:
    """A spoken order to an agent that has greeted; None where no pause can be put into it, or where it is never over."""
    tape = maker.make(entry, with_pause=with_pause)
    if tape is None:
        return None
    drafter, runner = engine
    settings = SessionSettings(instructions=config.agent.instructions)
    history, notes = History(), cafe_notes(preset["menu"])
    history.add(Item("greeting", "agent", config.agent.greeting, spoken=True))
    asking = Asking(tape.path, history, drafter, BudgetSettings().threshold)

    def imagine(words: str) -> DraftRequest:
        supposed = history.supposing(Item("words", "user", words, spoken=True), notes.imagine(words) if words else None)
        return asking.request(settings, ResponseOptions(), supposed)

    turn = Turn(drafter, runner, imagine, tape.path)
    detection = config.turn.detection()
    activity, words, heard = VoiceActivity(), PauseWords(), list(tape.partials)
    words.begin(config.agent.greeting)
    turn.warm()
    asked: Question | None = None
    for probability in tape.voice:
        activity.update(probability)
        await turn.pass_time(WINDOW_S)
        at = activity.position_sample
        while heard and heard[0].at_s <= at / 16_000:
            words.hear(heard.pop(0).text, at)
        if asked is not None:
            words.answer(asked, turn.completeness(asked.text))
            asked = None
        if (utterance := activity.utterance) is None:
            continue
        if utterance.is_paused and not utterance.is_stirring:
            turn.early.consider(words.pause(utterance.silence_s, at, is_judged=detection.weighs_words))
        asked = words.question(at, is_paused=utterance.is_paused) if detection.weighs_words else None
        evidence = words.evidence(at) if detection.weighs_words else None
        if decide(utterance, detection.endpoint(), evidence) is not None:
            final = maker.final(entry, tape, at / 16_000)
            return await turn.end(tape.path, final) if final else None
    return None


# --- dialogues --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Made:
    """How a text becomes partial transcripts. All of it is made up."""

    word_s: float = 0.3
    lag_s: float = 0.15
    """After a word's end."""
    misheard: float = 0.15
    """Share of words that are another word of the dialogue at first, and right `lag_s` to 0.35 s later."""
    changed_late: float = 0.1
    """Share of turns whose last words change once more with the final transcript."""
    endpoint_s: float = 0.35


def grown(
    text: str, others: Sequence[str], made: Made, draw: random.Random
) -> tuple[list[tuple[float, str]], float, str]:
    """Partial transcripts with their times, when speech ends, and the last transcript."""
    words, partials = text.split(), []
    for number in range(1, len(words) + 1):
        known = number * made.word_s + made.lag_s
        if draw.random() < made.misheard:
            partials.append((known, " ".join([*words[: number - 1], draw.choice(others)])))
            known += made.lag_s + draw.random() * 0.2
        partials.append((known, " ".join(words[:number])))
    partials.sort()
    final = text
    if draw.random() < made.changed_late:
        final = " ".join([*words[:-1], draw.choice(others)])
    return partials, len(words) * made.word_s, final


async def told(dialogue: dict[str, Any], seed: int, made: Made, engine: Any) -> Row | None:
    """One turn of a dialogue's user, with one pause in it, after at most four turns."""
    lines = [(line["role"], line["text"]) for line in dialogue["turns"]]
    fit = [at for at, (role, text) in enumerate(lines) if role == "user" and 2 <= len(spoken_form(text).split()) <= 30]
    if not fit:
        return None
    draw = random.Random(f"{seed}:{dialogue['id']}")
    at = draw.choice(fit)
    drafter, runner = engine
    settings, history = SessionSettings(), History()
    for number, (role, text) in enumerate(lines[max(at - 4, 0) : at]):
        history.add(Item(f"{number}", "user" if role == "user" else "agent", text, spoken=True))
    name = f"{dialogue['id']}#{at}"
    asking = Asking(name, history, drafter, BudgetSettings().threshold)

    def imagine(words: str) -> DraftRequest:
        supposed = history.supposing(Item("words", "user", words, spoken=True), None)
        return asking.request(settings, ResponseOptions(), supposed)

    text = spoken_form(lines[at][1])
    words = text.split()
    partials, end_s, final = grown(text, words, made, draw)
    where, pause_s = draw_pause(name, len(words) - 1, seed)
    pause_at = (where + 1) * made.word_s
    partials = [
        (known + (pause_s if known - made.lag_s > pause_at + 1e-9 else 0.0), heard) for known, heard in partials
    ]
    end_s += pause_s
    turn = Turn(drafter, runner, imagine, name)
    turn.warm()
    changed_s, heard, asked_text, completeness = 0.0, "", None, None
    for number in itertools.count(1):
        now = number * WINDOW_S
        await turn.pass_time(WINDOW_S)
        while partials and partials[0][0] <= now:
            changed_s, heard = partials.pop(0)
        in_pause = pause_at < now <= pause_at + pause_s
        if not in_pause and now <= end_s:
            continue
        silence_s = now - (pause_at if in_pause else end_s)
        if heard and asked_text != heard:
            asked_text, completeness = heard, turn.completeness(heard)
            continue
        turn.early.consider(Pause(heard, silence_s, now - changed_s, completeness))
        if not in_pause and silence_s >= made.endpoint_s:
            return await turn.end(name, final)
    raise AssertionError("time does not end")


def dialogues(folder: Path, per_dataset: int, seed: int) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.dev.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
        random.Random(seed).shuffle(found)
        yield from found[:per_dataset]


# --- what was not heard -----------------------------------------------------------------------------------------------

DETAILS = ("with oat milk please", "make that a large", "and a blueberry muffin", "to go please", "that's all thanks")
OTHERS = (
    "how much is a latte",
    "no wait cancel that",
    "do you have any tea",
    "sorry what did you say",
    "is the mocha sweet",
)
"""What callers say who speak over a reply: a detail, or something else. Made up here."""


async def interrupted(
    entry: dict[str, Any], words: str, draw: random.Random, preset: dict[str, Any], config: Config, engine: Any
) -> Row:
    """A reply to an order is spoken over somewhere; the next one begins with what was not heard, or from nothing."""
    drafter, runner = engine
    settings, history, notes = (
        SessionSettings(instructions=config.agent.instructions),
        History(),
        cafe_notes(preset["menu"]),
    )
    name = f"{entry['path']}: {words}"
    asking = Asking(name, history, drafter, BudgetSettings().threshold)
    history.add(Item("greeting", "agent", config.agent.greeting, spoken=True))
    history.add(Item("order", "user", entry["text"], spoken=True))
    history.note("order", notes.hear(entry["text"]))

    def imagine(said: str) -> DraftRequest:
        return asking.request(
            settings, ResponseOptions(), history.supposing(Item("words", "user", said), notes.imagine(said))
        )

    turn = Turn(drafter, runner, imagine, name)
    request = asking.request(settings, ResponseOptions())
    events: asyncio.Queue[DraftEvent] = asyncio.Queue()
    draft = drafter.start(replace(request, plan=turn.plan(request.plan.canvas_width)), events.put_nowait)
    _, whole = await turn.finish(events, [], False)
    spoken = whole.split()
    heard = draw.randrange(1, max(len(spoken), 2))
    history.add(Item("reply", "agent", " ".join(spoken[:heard]), "incomplete", spoken=True))
    turn.early.interrupted(draft, " ".join(spoken[heard:]))
    turn.runner.forwards = 0
    row = await turn.end(name, words)
    return row


# --- what it comes to -------------------------------------------------------------------------------------------------


def summary(name: str, rows: Sequence[Row]) -> dict[str, Any]:
    count = len(rows)
    outcomes = Counter(row.outcome for row in rows)
    early, forwards = sum(row.early for row in rows), sum(row.forwards for row in rows)
    return {
        "name": name,
        "turns": count,
        "at most a third": sum(row.is_quick for row in rows) / count,
        "no step at all": sum(row.late == 0 for row in rows) / count,
        "outcomes": {key: outcomes[key] / count for key in OUTCOMES if outcomes[key]},
        "steps at the end": sum(row.late for row in rows) / count,
        "steps from nothing": sum(row.cold for row in rows) / count,
        "drafts per turn": sum(row.drafts for row in rows) / count,
        "early steps per turn": early / count,
        "wasted share of all forwards": sum(row.wasted for row in rows) / max(forwards, 1),
        "same text as cold": sum(row.is_same for row in rows) / count,
        "facts right": sum(row.has_facts for row in rows) / count,
        "facts right, cold": sum(row.cold_has_facts for row in rows) / count,
        "by outcome": {
            key: {
                "turns": len(some),
                "steps at the end": sum(row.late for row in some) / len(some),
                "steps from nothing": sum(row.cold for row in some) / len(some),
                "same text as cold": sum(row.is_same for row in some) / len(some),
                "facts right": sum(row.has_facts for row in some) / len(some),
            }
            for key in OUTCOMES
            if key != "none" and (some := [row for row in rows if row.outcome == key])
        },
    }


def report(result: dict[str, Any]) -> str:
    parts = ", ".join(f"{key} {share:.0%}" for key, share in result["outcomes"].items())
    is_met = "met" if result["at most a third"] >= GOAL_SHARE else "missed"
    goal = f" (target {GOAL_SHARE:.0%}: {is_met})" if result["drafts per turn"] else ""
    lines = [
        f"\n## {result['name']}: {result['turns']} turns\n",
        f"at most a third of a cold start's steps: {result['at most a third']:.1%}{goal}; "
        f"no step at all: {result['no step at all']:.1%}",
        f"{parts}",
        f"steps to the first clause: {result['steps at the end']:.2f}, from nothing {result['steps from nothing']:.2f}",
        f"{result['drafts per turn']:.2f} drafts and {result['early steps per turn']:.1f} early steps per turn; "
        f"wasted {result['wasted share of all forwards']:.1%} of all forwards",
        f"same text as cold {result['same text as cold']:.1%}; facts right {result['facts right']:.1%}, "
        f"cold {result['facts right, cold']:.1%}",
    ]
    lines += [f"  {key}: {json.dumps(values)}" for key, values in result["by outcome"].items()]
    return "\n".join(lines)


async def run(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Row]]:
    config = load(assignments=[f"preset={options.preset}", f"turn.endpoint={options.endpoint}"])
    preset = tomllib.loads(options.preset.read_text("utf-8"))
    engine = await stepped(options.model)
    results, shown = [], []
    if options.data is not None:
        vocabulary = Vocabulary.from_table(preset["vocabulary"])

        def new_decoder() -> SphinxDecoder:
            return decoder_for(vocabulary, options.cache / "asr")[0]

        maker = TapeMaker(options.data, options.cache / "tapes", new_decoder, options.preset.stem, options.seed)
        for with_pause in (False, True):
            found = []
            for entry in entries(options.data, options.kinds, options.every):
                made = await asyncio.to_thread(maker.make, entry, with_pause=with_pause)
                if made is not None:
                    row = await recorded(maker, entry, preset, config, engine, with_pause=with_pause)
                    found += [] if row is None else [row]
            results.append(summary(f"spoken orders, {'one pause inserted' if with_pause else 'as recorded'}", found))
            print(report(results[-1]), flush=True)
            shown += found
    if options.unheard is not None:
        draw = random.Random(options.seed)
        for kind, texts in (("adds a detail", DETAILS), ("says something else", OTHERS)):
            found = [
                await interrupted(entry, words, draw, preset, config, engine)
                for entry in entries(options.unheard, ("order",), options.every)
                for words in texts
            ]
            results.append(summary(f"a caller who speaks over a reply and {kind} (made)", found))
            print(report(results[-1]), flush=True)
            shown += found
    if options.dialogues is not None:
        rows = [
            await told(each, options.seed, Made(), engine)
            for each in dialogues(options.dialogues, options.turns, options.seed)
        ]
        found = [row for row in rows if row is not None]
        results.append(summary("dialogue turns, made partial transcripts", found))
        print(report(results[-1]), flush=True)
        shown += found
    return results, shown


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of recordings with manifest.jsonl")
    parser.add_argument("--dialogues", type=Path, help="folder of *.dev.jsonl.xz")
    parser.add_argument("--unheard", type=Path, help="folder whose orders, as text, are replied to and spoken over")
    parser.add_argument("--turns", type=int, default=20, help="turns per data set of dialogues, at most")
    parser.add_argument(
        "--model", type=Path, help="checkpoint folder of the built-in family; default: the built-in weights"
    )
    parser.add_argument(
        "--preset", type=Path, default=ROOT / "pipelines/voice_pipelines/presets/cafe.toml", help="agent"
    )
    parser.add_argument("--kinds", nargs="+", default=("order",), help="kinds of recordings")
    parser.add_argument("--endpoint", default="words", choices=("words", "silence"), help="what ends turns")
    parser.add_argument("--every", type=int, default=1, help="take every n-th recording only, for a quick look")
    parser.add_argument("--seed", type=int, default=0, help="of pauses, turns and made transcripts")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "endpoint", help="folder for tapes")
    parser.add_argument("--show", action="store_true", help="print every turn")
    parser.add_argument("--save", type=Path, help="file for the results, such as benchmarks/results/speculation.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = about(torch.device("cpu"))
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    results, rows = asyncio.run(run(options))
    if options.show:
        for row in rows:
            print(json.dumps(asdict(row), ensure_ascii=False))
    if options.save is not None:
        setting = {
            "endpoint": options.endpoint,
            "seed": options.seed,
            "step_s": STEP_S,
            "asr_s": ASR_S,
            "made": asdict(Made()),
        }
        options.save.write_text(json.dumps({**machine, **setting, "results": results}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
