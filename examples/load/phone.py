"""One caller's telephone as a phone network sees it: what goes out in each 20 ms, and what was heard of what came in.

Pure: every time is passed in, in seconds of any one clock, and nothing is sent here. A player without prefetch plays what arrives, so
a reply that comes too slowly is heard with gaps; a mark goes back when everything in front of it was played.
"""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr

from voice_pipelines.measure import first_audible_s
from voiceagent.audio import PCMU_8K
from voiceagent.backends import Samples

from .schedule import PlannedTurn

MESSAGE_S = 0.02
MESSAGE_SAMPLES = 160
RATE_HZ = 8_000
SILENCE = base64.b64encode(b"\xff" * MESSAGE_SAMPLES).decode("ascii")

ANSWER_LIMIT_S = 8.0
"""A turn without any audible answer so long after the caller's last word is lost."""
GAP_S = 0.02
"""A pause inside an answer that is longer is an underrun; one message of 20 ms is what a phone's own jitter buffer hides."""
OVER_S = 1.0
"""An answer of unknown length is over when nothing of it has come for so long after what came was played."""
STOPPED_S = 0.3
"""Silence after which audio is a new answer, where words were said over one that nobody cleared."""
CAME_BACK_S = 0.7
"""An agent that is heard again so soon after a clear, before the words over it are over, was held in doubt and came back; a new answer takes longer."""
CUT_OFF_S = 0.15
"""An answer that arrives so long before the caller's last word was not waited for: its turn had been ended too early."""


@dataclass(frozen=True, slots=True)
class Speech:
    """Words to say: µ-law in base64, 20 ms each; `end_s` is where the last word ends, from the beginning of the first message."""

    name: str
    messages: tuple[str, ...]
    end_s: float


def speech(
    name: str, samples: Samples, start_s: float, end_s: float, *, lead_s: float = 0.2, tail_s: float = 0.6
) -> Speech:
    """Speech from a recording at 8 kHz whose words lie between `start_s` and `end_s`, with some of the room around them."""
    first = max(round((start_s - lead_s) * RATE_HZ), 0)
    cut = samples[first : round((end_s + tail_s) * RATE_HZ)]
    count = -(-cut.size // MESSAGE_SAMPLES)
    audio = PCMU_8K.encode(cut).ljust(count * MESSAGE_SAMPLES, b"\xff")
    pieces = (audio[at : at + MESSAGE_SAMPLES] for at in range(0, len(audio), MESSAGE_SAMPLES))
    return Speech(name, tuple(base64.b64encode(piece).decode("ascii") for piece in pieces), end_s - first / RATE_HZ)


def load_speeches(folder: Path, kinds: Sequence[str]) -> tuple[Speech, ...]:
    """Recordings of the wanted kinds that say where their words begin and end, in the manifest's order.

    Raises:
        ValueError: If there is none.
    """
    found = []
    for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["kind"] in kinds and "speech_end_s" in entry:
            samples, rate_hz = soundfile.read(folder / entry["path"], dtype="float32")
            samples = soxr.resample(samples, rate_hz, RATE_HZ).astype(np.float32)
            found.append(speech(entry["path"], samples, entry["speech_start_s"], entry["speech_end_s"]))
    if not found:
        raise ValueError(f"{folder}/manifest.jsonl: no recording of kind {', '.join(kinds)} with speech_end_s")
    return tuple(found)


@dataclass(slots=True)
class HeardTurn:
    """What became of one turn. Times are seconds of the phone's clock."""

    speech: str
    cuts_in: bool
    """Whether these words were said over the answer before them."""
    begins_s: float
    speech_end_s: float
    answer_s: float | None = None
    """When the answer was first heard; None when it never was."""
    is_cut_off: bool = False
    gaps_s: list[float] = field(default_factory=list)
    stopped_s: float | None = None
    """Where these words cut in: until the agent was silent, from their first message."""
    arrived_s: float = 0.0
    """Audio of the answer that has come."""
    is_over: bool = False

    @property
    def voice_to_voice_s(self) -> float | None:
        return None if self.answer_s is None else self.answer_s - self.speech_end_s


class Phone:
    """A caller who follows a plan.

    Args:
        begins_s: When the call begins.
        reply_s: Seconds that every answer has, where that is known; then it is over when they have been played, and a pause before
            that is an underrun however long. None where answers differ.
    """

    def __init__(
        self,
        speeches: tuple[Speech, ...],
        turns: Iterator[PlannedTurn],
        begins_s: float = 0.0,
        *,
        reply_s: float | None = None,
    ) -> None:
        self._speeches = speeches
        self._turns = turns
        self._reply_s = reply_s
        self._plan = next(turns)
        self._saying: Speech | None = None
        self._position = 0
        self._speaks_at_s = begins_s + self._plan.pause_s
        self._waits = False
        """For an answer, or for its end."""
        self._play_end_s = begins_s
        self._marks: deque[tuple[float, str]] = deque()
        self._cleared: list[str] = []
        self._cleared_at_s = begins_s
        self.turns: list[HeardTurn] = []

    @property
    def is_talking(self) -> bool:
        """In the middle of a turn: speaking, or waiting for the answer or its end."""
        return self._saying is not None or self._waits

    # --- outwards -----------------------------------------------------------------------------------------------------

    def message(self, now_s: float) -> str:
        """The next 20 ms, which were spoken up to `now_s`: µ-law in base64. Called once every 20 ms."""
        if self._saying is None:
            self._consider(now_s)
        if self._saying is None:
            return SILENCE
        payload = self._saying.messages[self._position]
        self._position += 1
        if self._position == len(self._saying.messages):
            self._saying = None
            self._waits = True
        return payload

    def marks_due(self, now_s: float) -> list[str]:
        """Names of the marks that go back now."""
        due, self._cleared = self._cleared, []
        while self._marks and self._marks[0][0] <= now_s:
            due.append(self._marks.popleft()[1])
        return due

    def _consider(self, now_s: float) -> None:
        """Begin to speak if it is time."""
        turn = self.turns[-1] if self.turns else None
        if self._waits:
            assert turn is not None
            cut_in_s = self._plan.cut_in_s
            if turn.answer_s is None:
                if now_s - turn.speech_end_s < ANSWER_LIMIT_S:
                    return
                self._next_turn(now_s)
            elif cut_in_s is not None and now_s >= turn.answer_s + cut_in_s and now_s < self._play_end_s:
                self._next_turn(now_s, is_over_it=True)
            elif self._answer_is_over(turn, now_s):
                turn.is_over = True
                self._next_turn(now_s)
            else:
                return
        if now_s >= self._speaks_at_s:
            self._begin(now_s)

    def _answer_is_over(self, turn: HeardTurn, now_s: float) -> bool:
        if now_s < self._play_end_s:
            return False
        if self._reply_s is None:
            return now_s >= self._play_end_s + OVER_S
        # Nothing has come for so long that nothing will.
        return turn.arrived_s >= self._reply_s - GAP_S or now_s >= self._play_end_s + ANSWER_LIMIT_S

    def _next_turn(self, now_s: float, *, is_over_it: bool = False) -> None:
        self._waits = False
        self._plan = next(self._turns)
        self._speaks_at_s = now_s if is_over_it else now_s + self._plan.pause_s

    def _begin(self, now_s: float) -> None:
        self._saying, self._position = self._speeches[self._plan.speech], 0
        begins_s = now_s - MESSAGE_S  # This message's audio was spoken before it left.
        is_over_it = now_s < self._play_end_s
        self.turns.append(HeardTurn(self._saying.name, is_over_it, begins_s, begins_s + self._saying.end_s))

    # --- inwards ------------------------------------------------------------------------------------------------------

    def heard(self, audio: bytes, now_s: float) -> None:
        """Audio came: it plays when what came before it has been played."""
        duration_s = len(audio) / RATE_HZ
        starts_s = max(now_s, self._play_end_s)
        turn = self.turns[-1] if self.turns else None
        if turn is not None and turn.cuts_in and now_s < min(turn.speech_end_s, self._cleared_at_s + CAME_BACK_S):
            turn.stopped_s = None
        if turn is not None and self._is_of_the_one_before(turn) and now_s > self._play_end_s + STOPPED_S:
            turn.stopped_s = max(self._play_end_s - turn.begins_s, 0.0)  # It had ended by itself.
        if turn is not None and not self._is_of_the_one_before(turn):
            self._count(turn, audio, starts_s, now_s)
            turn.arrived_s += duration_s
        self._play_end_s = starts_s + duration_s

    def _is_of_the_one_before(self, turn: HeardTurn) -> bool:
        """Words that were said over an answer are answered only after it has stopped."""
        return turn.cuts_in and turn.stopped_s is None

    def _count(self, turn: HeardTurn, audio: bytes, starts_s: float, now_s: float) -> None:
        if now_s < turn.speech_end_s - CUT_OFF_S:
            turn.is_cut_off = True
        if turn.answer_s is None:
            if starts_s + len(audio) / RATE_HZ > turn.speech_end_s:
                from_s = max(turn.speech_end_s - starts_s, 0.0)
                audible_s = first_audible_s(PCMU_8K.decode(audio), RATE_HZ, from_s)
                turn.answer_s = None if audible_s is None else starts_s + audible_s
            return
        gap_s = now_s - self._play_end_s
        is_known_to_go_on = self._reply_s is not None and turn.arrived_s < self._reply_s - GAP_S
        if gap_s > GAP_S and (self._reply_s is None or is_known_to_go_on):
            turn.gaps_s.append(gap_s)

    def mark(self, name: str, now_s: float) -> None:
        """A mark came: it goes back when what is in front of it was played."""
        self._marks.append((max(self._play_end_s, now_s), name))

    def clear(self, now_s: float) -> None:
        """Nothing more of what came is played; its marks go back at once."""
        self._play_end_s = min(self._play_end_s, now_s)
        self._cleared_at_s = now_s
        self._cleared += [name for _, name in self._marks]
        self._marks.clear()
        turn = self.turns[-1] if self.turns else None
        if turn is None:
            return
        if self._is_of_the_one_before(turn):
            turn.stopped_s = now_s - turn.begins_s
        else:
            # The agent had answered too early and takes it back: what counts is the answer to all of the words.
            turn.answer_s, turn.arrived_s = None, 0.0
