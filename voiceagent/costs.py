"""What each stage of a turn takes: quantiles learned online by size and company, corrected at once when the machine has changed.

Pure: times in, predictions out. `as_json` and `restore` carry what was learned over a restart.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from voiceagent.errors import VoiceAgentError


class Stage(StrEnum):
    """What is timed. The unit of `size` differs: see each stage."""

    ASR = "asr"
    """Recognition after the end of audio; size is ignored."""
    PREFILL = "prefill"
    """Prompt tokens that the cache did not hold; size is their number."""
    STEP = "step"
    """From one denoising step of a draft to its next; size is the canvas width, company the drafts that share the engine."""
    TTS = "tts"
    """Clause in to the first piece of sound that is sent; size is the clause's characters."""
    TRANSPORT = "transport"
    """Audio made to audio handed to the connection, which sends it as soon as the socket takes it; size is ignored."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Predicted seconds."""

    p50: float
    p95: float


# Before anything is measured: rough times of the built-in models on two CPU cores, replaced by the start-up calibration.
DEFAULT_COSTS: Mapping[Stage, Cost] = {
    Stage.ASR: Cost(0.02, 0.06),
    Stage.PREFILL: Cost(0.02, 0.05),
    Stage.STEP: Cost(0.008, 0.015),
    Stage.TTS: Cost(0.01, 0.03),
    Stage.TRANSPORT: Cost(0.001, 0.003),
}

WINDOW = 256
"""Newest observations of one class. Five or ten replies' steps, so a busy hour is believed within a minute and forgotten in another."""
SLOWER_RUN = 8
"""So many observations in a row, nearly all much slower than they were, are a slower machine and not a tail."""
FASTER_RUN = 24
"""The same for a faster one. Believing it too early makes turns late, believing it too late only costs steps."""
CHANGE = 1.5
"""How far the median of such a run must have moved."""
NEARLY = 1.25
"""How far all but one of its observations must have."""
NEWS = 3
"""So many observations since a change was seen elsewhere make a class its own judge. One or two may be older than they look: the run may
begin with a tail from before."""
ENOUGH = 8
"""Observations from which a class's own spread is trusted."""
LEAST_S = 1e-6
"""What nothing is taken for: no factor makes a time of nothing."""
MOST_APART = 10.0
"""So far from what another class's times would guess of its own (see `CostModel`) a change seen there may leave it. What nobody sees may be scaled again and again, and each error would stay."""
FORMAT = 1


class CostsDamagedError(VoiceAgentError, ValueError):
    """Remembered costs cannot be read. The message names the place and what was expected there."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """An observation beside what was predicted for it."""

    number: int
    ratio: float
    """Its seconds over the median."""
    spread: float
    """The 95th percentile over the median."""


@dataclass(slots=True)
class _Class:
    """The newest observations of one size and company, oldest first, and the same in order of size."""

    window: int
    values: deque[tuple[int, float]] = field(default_factory=deque)
    """(number of the observation within its stage, seconds)"""
    ordered: list[float] = field(default_factory=list)
    run: deque[_Seen] = field(default_factory=lambda: deque(maxlen=FASTER_RUN))
    scaled_at: int = 0
    """The newest observation of the stage when this class was scaled last."""

    def add(self, number: int, seconds: float) -> None:
        if len(self.values) == self.window:
            _, oldest = self.values.popleft()
            del self.ordered[bisect_left(self.ordered, oldest)]
        self.values.append((number, seconds))
        insort(self.ordered, seconds)

    def quantile(self, q: float) -> float:
        """Nearest-rank quantile: with few values p95 is their maximum, which is the cautious reading."""
        return self.ordered[min(math.ceil(q * len(self.ordered)), len(self.ordered)) - 1]

    def scale_before(self, number: int, factor: float) -> None:
        """Say of everything observed before `number` how long it would take now."""
        self.values = deque((n, max(value, LEAST_S) * factor if n < number else value) for n, value in self.values)
        self.ordered = sorted(value for _, value in self.values)
        self.run.clear()

    def has_news_since(self, number: int) -> bool:
        """Whether it knows the machine as it is now, and needs no other's word."""
        return len(self.values) >= NEWS and self.values[-NEWS][0] >= number

    def change(self) -> tuple[int, float] | None:
        """The first observation on the changed machine and how much slower it is; None when it is what it was."""
        recent = list(self.run)
        slow = recent[-SLOWER_RUN:]
        if len(slow) == SLOWER_RUN:
            ratios = sorted(one.ratio for one in slow)
            # Times that vary much must move more: beyond what one in twenty of them reached before.
            if ratios[1] > NEARLY and ratios[SLOWER_RUN // 2] > max(CHANGE, slow[0].spread):
                begins = next(at for at, one in enumerate(slow) if one.ratio > NEARLY)
                if begins == 0 and slow[1].ratio <= NEARLY:
                    begins = 2  # A tail of the machine as it was, and a usual time behind it.
                return slow[begins].number, ratios[SLOWER_RUN // 2]
        if len(recent) == FASTER_RUN:
            ratios = sorted(one.ratio for one in recent)
            if ratios[-2] < 1 / NEARLY and ratios[FASTER_RUN // 2] < 1 / CHANGE:
                return next(one.number for one in recent if one.ratio < 1 / NEARLY), ratios[FASTER_RUN // 2]
        return None


class CostModel:
    """Quantiles of recent stage times by size and company.

    Classes are half octaves of size and of company. A class that was never seen borrows from the nearest one that was: scaled up in
    proportion when that one is smaller, unchanged when it is larger, so that a guess errs on the slow side.

    Forgetting is slow (`WINDOW` observations), but a run of observations far from what was predicted says that the machine is another
    one now; then everything that the stage learned before, in all its classes, is scaled by what the run shows.
    """

    def __init__(self, defaults: Mapping[Stage, Cost] | None = None, window: int = WINDOW) -> None:
        if window < 1:
            raise ValueError(f"window = {window}: expected at least 1 observation")
        self._defaults = dict(DEFAULT_COSTS if defaults is None else defaults)
        self._window = window
        self._seen: dict[Stage, dict[tuple[int, int], _Class]] = {stage: {} for stage in Stage}
        self._numbers: dict[Stage, int] = dict.fromkeys(Stage, 0)

    def observe(self, stage: Stage, seconds: float, size: float = 1.0, company: int = 1) -> None:
        """Learn one outcome. Negative and non-finite times are a caller's bug.

        Raises:
            ValueError: If `seconds` is not a finite number of at least 0.
        """
        if not (math.isfinite(seconds) and seconds >= 0.0):
            raise ValueError(f"{stage}: seconds = {seconds}: expected a finite time of at least 0")
        self._numbers[stage] += 1
        number = self._numbers[stage]
        key = (_half_octave(size), _half_octave(company))
        own = self._seen[stage].setdefault(key, _Class(self._window))
        if len(own.ordered) >= ENOUGH:
            usual = max(own.quantile(0.5), LEAST_S)
            own.run.append(_Seen(number, seconds / usual, own.quantile(0.95) / usual))
        own.add(number, seconds)
        if (change := own.change()) is not None:
            first, factor = change
            own.scale_before(first, factor)
            now = max(own.quantile(0.5), LEAST_S)
            for where, other in self._seen[stage].items():
                # What was scaled since the change began was scaled for it, on the word of another class that saw it too.
                if other is not own and not other.has_news_since(first) and other.scaled_at < first:
                    usual = max(other.quantile(0.5), LEAST_S)
                    larger = 2.0 ** ((sum(where) - sum(key)) / 2)
                    least, most = min(larger, 1.0) * now / MOST_APART, max(larger, 1.0) * now * MOST_APART
                    other.scale_before(first, min(max(usual * factor, least), most) / usual)
                    other.scaled_at = number

    def predict(self, stage: Stage, size: float = 1.0, company: int = 1) -> Cost:
        """Expected seconds for one more of this stage."""
        classes = self._seen[stage]
        if not classes:
            return self._defaults[stage]
        wide, many = key = (_half_octave(size), _half_octave(company))
        nearest = key if key in classes else min(classes, key=lambda seen: _distance(seen, key))
        found = classes[nearest]
        scale = 2.0 ** ((max(wide - nearest[0], 0) + max(many - nearest[1], 0)) / 2)
        p50, p95 = found.quantile(0.5), found.quantile(0.95)
        if len(found.ordered) < ENOUGH:
            p95 = max(p95, p50 * self._spread(stage))
        return Cost(p50 * scale, p95 * scale)

    def observations(self, stage: Stage) -> int:
        """Observations that are still remembered."""
        return sum(len(known.values) for known in self._seen[stage].values())

    def _spread(self, stage: Stage) -> float:
        """p95 over p50 in the class that is known best; 1 while none is known well."""
        best = max(self._seen[stage].values(), key=lambda known: len(known.ordered))
        return best.quantile(0.95) / max(best.quantile(0.5), 1e-6) if len(best.ordered) >= ENOUGH else 1.0

    # --- over a restart -----------------------------------------------------------------------------------------------

    def as_json(self, owners: Mapping[Stage, str]) -> dict[str, object]:
        """What was learned. `owners` says whose times a stage's are (model and device): another's are worth nothing."""
        return {
            "format": FORMAT,
            "stages": {
                stage.value: {
                    "owner": owners[stage],
                    "classes": [
                        {"size": size, "company": company, "seconds": [round(value, 6) for _, value in known.values]}
                        for (size, company), known in sorted(classes.items())
                    ],
                }
                for stage, classes in self._seen.items()
                if classes
            },
        }

    def restore(self, data: object, owners: Mapping[Stage, str]) -> tuple[Stage, ...]:
        """Take over what `as_json` gave, for the stages whose owner is the same. Nothing changes when it raises.

        Returns:
            The stages that were taken over; they lose what they had learned before.

        Raises:
            CostsDamagedError: If `data` is not what `as_json` gives.
        """
        restored: dict[Stage, dict[tuple[int, int], _Class]] = {}
        for stage, owner, classes in _read(data):
            if owner == owners[stage]:
                restored[stage] = {}
                for key, seconds in classes:
                    known = restored[stage][key] = _Class(self._window)
                    # The oldest of all: whatever is seen after a restart is newer.
                    for value in seconds[-self._window :]:
                        known.add(0, value)
        self._seen.update(restored)
        return tuple(restored)


def _half_octave(size: float) -> int:
    return round(2.0 * math.log2(max(size, 1.0)))


def _distance(seen: tuple[int, int], key: tuple[int, int]) -> tuple[int, bool]:
    """Nearest first; of two as near the larger one, which needs no guess upwards."""
    return abs(seen[0] - key[0]) + abs(seen[1] - key[1]), sum(seen) < sum(key)


def _read(data: object) -> Iterator[tuple[Stage, str, list[tuple[tuple[int, int], list[float]]]]]:
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
        raise CostsDamagedError(f"remembered costs: format = {found!r}: expected {FORMAT}")
    for name, stage in _mapping(data.get("stages"), "stages").items():
        if name not in set(Stage):
            raise CostsDamagedError(f"remembered costs: stages.{name}: expected one of {', '.join(Stage)}")
        fields = _mapping(stage, f"stages.{name}")
        owner, classes = fields.get("owner"), fields.get("classes")
        if not isinstance(owner, str) or not isinstance(classes, list):
            raise CostsDamagedError(f"remembered costs: stages.{name}: expected an owner and a list of classes")
        yield (
            Stage(name),
            owner,
            [_read_class(entry, f"stages.{name}.classes[{i}]") for i, entry in enumerate(classes)],
        )


def _read_class(entry: object, where: str) -> tuple[tuple[int, int], list[float]]:
    fields = _mapping(entry, where)
    size, company, seconds = fields.get("size"), fields.get("company"), fields.get("seconds")
    if not (_is_class(size) and _is_class(company)):
        raise CostsDamagedError(f"remembered costs: {where}: size = {size!r}, company = {company!r}: expected 0 to 64")
    if not isinstance(seconds, list) or not seconds or not all(map(_is_time, seconds)):
        raise CostsDamagedError(f"remembered costs: {where}.seconds: expected finite times of at least 0")
    assert isinstance(size, int) and isinstance(company, int)
    return (size, company), [float(value) for value in seconds]


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise CostsDamagedError(f"remembered costs: {where}: expected a table, not {type(value).__name__}")
    return value


def _is_class(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 64


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
