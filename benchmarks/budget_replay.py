"""Turns of many callers against one engine, replayed in simulated time: what the budget benchmark runs.

Everything random comes from a seed, nothing is measured here, and no clock is read: the same options give the same turns on any machine.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from voiceagent.backends import QualityCurve, StepPlan
from voiceagent.budget import BudgetController
from voiceagent.budget_curve import quality_at
from voiceagent.budget_terms import BudgetSettings, TurnRequest
from voiceagent.costs import CostModel, Stage
from voiceagent.playout import SECONDS_PER_CHAR

CLAUSE_TOKENS, REPLY_TOKENS = 12, 32
"""Tokens of the first clause and of the whole reply."""
CLAUSE_SHARE = CLAUSE_TOKENS / REPLY_TOKENS
"""What the first clause counts in the quality of a reply."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Median seconds of every stage on one machine; what varies is `Noise`."""

    name: str
    width: int
    target_s: float
    endpoint_s: float
    asr_s: float
    prefill_s: Callable[[float], float]
    """By uncached tokens."""
    step_s: Callable[[int], float]
    """One denoising forward by the drafts that share it."""
    ar_step_s: Callable[[int], float]
    """One forward of an autoregressive model of the same geometry, a token for each reply that shares it."""
    tts_s: Callable[[int], float]
    """To the first audio, by characters."""
    transport_s: float
    max_batch: int
    """Canvases per forward."""


@dataclass(frozen=True, slots=True)
class Noise:
    """How stage times vary around their medians.

    `sigma` is the log-normal spread of single times, `drift` that of a factor that all times share and that changes over some seconds.
    `stall` is the chance that a forward waits for something else (log-normal around `stall_s`). `slow` are (from, until, factor).
    With `recorded` ratios of a stage's times over their median, single times are drawn from them instead of from `sigma`.
    """

    sigma: float = 0.15
    drift: float = 0.05
    stall: float = 0.0
    stall_s: float = 0.05
    slow: tuple[tuple[float, float, float], ...] = ()
    recorded: Mapping[Stage, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenario:
    """`callers` by time: (from, callers), the first from 0."""

    callers: tuple[tuple[float, int], ...]
    duration_s: float
    noise: Noise = Noise()
    seed: int = 0
    warm_up_s: float = 30.0
    """Turns that end before are played but not counted."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One turn, as its caller had it."""

    at: float
    latency_s: float
    is_on_time: bool
    has_gap: bool
    """The caller's queue ran dry before the rest was there."""
    steps_first: int
    steps_rest: int
    quality: float


@dataclass(slots=True)
class Draft:
    """A reply being written."""

    caller: int
    speech_end: float
    prompt_tokens: float
    clause_chars: int
    rest_chars: int
    ready_at: float
    plan: StepPlan
    may_grow: bool = False
    is_prefilled: bool = False
    last_at: float = 0.0
    steps_first: int = 0
    steps_rest: int = 0
    is_rest: bool = False
    audio_at: float = math.inf
    dry_at: float = math.inf

    @property
    def deadline(self) -> float:
        deadline = self.plan.rest_deadline if self.is_rest else self.plan.first_deadline
        return math.inf if deadline is None else deadline

    def gives_way(self, now: float) -> bool:
        until = self.plan.yields_until
        return self.is_rest and until is not None and now < until


class Policy:
    """Who decides on steps: a fixed number of them unless a subclass knows better."""

    is_autoregressive = False
    plans = refusals = 0
    """Turns planned, and those of them at which a new caller would have been refused."""

    def __init__(self, name: str, machine: Machine, first: int, rest: int) -> None:
        self.name, self.machine, self.first, self.rest = name, machine, first, rest

    def begin(self, draft: Draft, now: float) -> None:
        # The engine serves the nearest deadline first, so everybody tells it when theirs is.
        deadline = draft.speech_end + self.machine.target_s
        draft.plan = StepPlan(self.machine.width, self.first, self.rest, 0.9, first_deadline=deadline)

    def crowd(self, first: int, running: int) -> None:
        """So many drafts write their first clause, and so many are being written in all."""

    def prefilled(self, draft: Draft, now: float, compute_s: float) -> None:
        pass

    def stepped(self, draft: Draft, now: float, compute_s: float, batch: int) -> None:
        pass

    def speaks(self, draft: Draft, now: float) -> None:
        """The first clause has left; `draft.dry_at` is when its audio ends."""
        draft.plan = replace(draft.plan, rest_deadline=draft.dry_at)

    def heard(self, stage: Stage, seconds: float, size: float = 1.0) -> None:
        pass

    def answered(self, draft: Draft, *, late: bool) -> None:
        pass


class Autoregressive(Policy):
    """A token for each forward: as many forwards as there are tokens, whatever the time."""

    is_autoregressive = True

    def __init__(self, machine: Machine) -> None:
        super().__init__("autoregressive", machine, CLAUSE_TOKENS, REPLY_TOKENS - CLAUSE_TOKENS)


class Controlled(Policy):
    """The budget controller as the runtime uses it."""

    def __init__(self, machine: Machine, curve: QualityCurve, settings: BudgetSettings, name: str = "budget") -> None:
        super().__init__(name, machine, settings.min_steps, settings.min_steps)
        self.controller = BudgetController(settings, CostModel(), curve)

    def begin(self, draft: Draft, now: float) -> None:
        grant = self.controller.plan_turn(
            TurnRequest(
                now=now,
                speech_end=draft.speech_end,
                target_s=self.machine.target_s,
                prompt_tokens=draft.prompt_tokens,
                canvas_width=self.machine.width,
                active_drafts=self._company(is_first=True),
            )
        )
        draft.plan, draft.may_grow = grant.plan, grant.is_on_time
        self.plans += 1
        self.refusals += self.controller.room.admission.refusal(now) is not None

    def crowd(self, first: int, running: int) -> None:
        self.controller.first_drafts, self.controller.running_drafts = first, running

    def prefilled(self, draft: Draft, now: float, compute_s: float) -> None:
        self.controller.prefilled(
            now, compute_s, now - draft.last_at, draft.prompt_tokens, self._company(is_first=True)
        )

    def stepped(self, draft: Draft, now: float, compute_s: float, batch: int) -> None:
        controller, width, company = self.controller, self.machine.width, self._company(is_first=not draft.is_rest)
        if draft.is_rest:
            # It may have given way to others, so that its pace is of its own choosing: a forward is what it costs.
            controller.stepped(now, compute_s, compute_s, width, batch=batch, company=batch)
            again = controller.replan_rest(draft.plan, now=now, steps_done=draft.steps_rest, active_drafts=company)
        else:
            controller.stepped(now, compute_s, now - draft.last_at, width, batch=batch, company=max(company, batch))
            again = controller.replan_first(
                draft.plan, now=now, step=draft.steps_first, active_drafts=company, may_grow=draft.may_grow
            )
        draft.plan = again or draft.plan

    def speaks(self, draft: Draft, now: float) -> None:
        draft.plan = self.controller.plan_rest(
            draft.plan,
            now=now,
            dry_at=draft.dry_at,
            steps_done=draft.steps_rest,
            active_drafts=self._company(is_first=False),
        )

    def heard(self, stage: Stage, seconds: float, size: float = 1.0) -> None:
        self.controller.costs.observe(stage, seconds, size)

    def answered(self, draft: Draft, *, late: bool) -> None:
        if draft.may_grow:
            self.controller.margin.answered(late=late)

    def _company(self, *, is_first: bool) -> int:
        return self.controller.company(self.machine.width, is_first=is_first)


@dataclass(slots=True)
class Result:
    policy: str
    outcomes: list[Outcome]
    busy_share: float
    """Of the engine's time after the warm-up."""
    refusing_share: float = 0.0
    """Of the turns: a new caller would have been refused at their time. Those who are there stay."""


class Replay:
    """One scenario under one policy."""

    def __init__(self, machine: Machine, scenario: Scenario, policy: Policy, curve: QualityCurve) -> None:
        self.machine, self.scenario, self.policy, self.curve = machine, scenario, policy, curve
        # What callers do is drawn apart from what the machine does, so that every policy meets the same callers.
        self._rng = random.Random(scenario.seed)
        self._callers = [random.Random(f"{scenario.seed}/{i}") for i in range(max(n for _, n in scenario.callers))]
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()
        self._drafts: list[Draft] = []
        self._is_busy = False
        self._busy_s = 0.0
        self._drift, self._drift_until = 1.0, 0.0
        self.outcomes: list[Outcome] = []

    def run(self) -> Result:
        for index, rng in enumerate(self._callers):
            start = next(at for at, count in self.scenario.callers if count > index)
            self._at(start + rng.uniform(0.0, 8.0), self._speaks(index))
        while self._events and self._events[0][0] <= self.scenario.duration_s:
            now, _, act = heapq.heappop(self._events)
            act(now)
        counted_s = self.scenario.duration_s - self.scenario.warm_up_s
        kept = [outcome for outcome in self.outcomes if outcome.at >= self.scenario.warm_up_s]
        refusing = self.policy.refusals / max(self.policy.plans, 1)
        return Result(self.policy.name, kept, self._busy_s / counted_s, refusing)

    def _at(self, when: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), act))

    # --- callers ------------------------------------------------------------------------------------------------------

    def _speaks(self, caller: int) -> Callable[[float], None]:
        def act(now: float) -> None:
            allowed = [count for at, count in self.scenario.callers if at <= now][-1]
            if caller >= allowed:
                later = [at for at, count in self.scenario.callers if at > now and count > caller]
                if later:
                    self._at(later[0] + self._callers[caller].uniform(0.0, 8.0), act)
                return
            rng = self._callers[caller]
            speech_end = now + rng.uniform(1.0, 4.0)
            tokens = 8.0 + round(rng.lognormvariate(math.log(14.0), 0.5))
            chars = (rng.randint(25, 55), rng.randint(30, 80))
            asr_s = self._time(Stage.ASR, self.machine.asr_s, now)
            self._at(speech_end + self.machine.endpoint_s + asr_s, self._asks(caller, speech_end, asr_s, tokens, chars))

        return act

    def _asks(
        self, caller: int, speech_end: float, asr_s: float, tokens: float, chars: tuple[int, int]
    ) -> Callable[[float], None]:
        def act(now: float) -> None:
            self.policy.heard(Stage.ASR, asr_s)
            draft = Draft(
                caller, speech_end, tokens, *chars, ready_at=now, plan=StepPlan(self.machine.width, 1, 1, 0.9)
            )
            draft.last_at = now
            self._drafts.append(draft)
            self._crowd()
            self.policy.begin(draft, now)
            self._next_round(now)

        return act

    # --- the engine ---------------------------------------------------------------------------------------------------

    def _next_round(self, now: float) -> None:
        """Prompts are prefilled one after the other, then the drafts share a forward."""
        if self._is_busy or not self._drafts:
            return
        machine, picked, end = self.machine, self._pick(now), now
        for draft in picked:
            if not draft.is_prefilled:
                compute_s = self._time(Stage.PREFILL, machine.prefill_s(draft.prompt_tokens), now)
                end += compute_s
                draft.is_prefilled = True
                self.policy.prefilled(draft, end, compute_s)
                draft.last_at = end
        forward_s = machine.ar_step_s if self.policy.is_autoregressive else machine.step_s
        compute_s = self._time(Stage.STEP, forward_s(len(picked)), now) + self._stall()
        end += compute_s
        self._is_busy = True
        if now >= self.scenario.warm_up_s:
            self._busy_s += end - now
        self._at(end, lambda at: self._round_done(at, picked, compute_s))

    def _pick(self, now: float) -> list[Draft]:
        """As `dllm.picking` does: the nearest deadlines, and beside one that does not give way as many of those that do as it lets in."""
        pressed = [draft for draft in self._drafts if not draft.gives_way(now)]
        waiting = [draft for draft in self._drafts if draft.gives_way(now)]
        guests = min((0 if one.is_rest else one.plan.first_guests for one in pressed), default=len(waiting))
        nearest = [*_by_deadline(pressed), *_by_deadline(waiting)[:guests]]
        return nearest[: self.machine.max_batch]

    def _round_done(self, now: float, picked: Sequence[Draft], compute_s: float) -> None:
        self._is_busy = False
        for draft in picked:
            if draft.is_rest:
                draft.steps_rest += 1
            else:
                draft.steps_first += 1
            self.policy.stepped(draft, now, compute_s, len(picked))
            draft.last_at = now
            if not draft.is_rest and draft.steps_first >= draft.plan.steps_first:
                self._clause_done(draft, now)
            elif draft.is_rest and draft.steps_rest >= draft.plan.steps_rest:
                self._reply_done(draft, now)
        self._crowd()
        self._next_round(now)

    def _crowd(self) -> None:
        self.policy.crowd(sum(not draft.is_rest for draft in self._drafts), len(self._drafts))

    def _clause_done(self, draft: Draft, now: float) -> None:
        draft.is_rest = True
        self._crowd()
        tts_s = self._time(Stage.TTS, self.machine.tts_s(draft.clause_chars), now)
        transport_s = self._time(Stage.TRANSPORT, self.machine.transport_s, now)
        draft.audio_at = now + tts_s + transport_s
        draft.dry_at = draft.audio_at + SECONDS_PER_CHAR * draft.clause_chars
        self._at(draft.audio_at, lambda at: self._clause_plays(draft, at, tts_s, transport_s))

    def _clause_plays(self, draft: Draft, now: float, tts_s: float, transport_s: float) -> None:
        self.policy.heard(Stage.TTS, tts_s, draft.clause_chars)
        self.policy.heard(Stage.TRANSPORT, transport_s)
        self.policy.answered(draft, late=now > draft.speech_end + self.machine.target_s)
        if draft in self._drafts:
            self.policy.speaks(draft, now)
            if draft.steps_rest >= draft.plan.steps_rest:
                self._reply_done(draft, now)

    def _reply_done(self, draft: Draft, now: float) -> None:
        if draft not in self._drafts:
            return
        self._drafts.remove(draft)
        rest_at = now + self._time(Stage.TTS, self.machine.tts_s(draft.rest_chars), now)
        rest_at = max(rest_at, draft.audio_at) + self._time(Stage.TRANSPORT, self.machine.transport_s, now)
        latency_s = draft.audio_at - draft.speech_end
        self.outcomes.append(
            Outcome(
                at=now,
                latency_s=latency_s,
                is_on_time=latency_s <= self.machine.target_s,
                has_gap=rest_at > draft.dry_at,
                steps_first=draft.steps_first,
                steps_rest=draft.steps_rest,
                quality=self._quality(draft),
            )
        )
        over = max(rest_at, draft.dry_at) + SECONDS_PER_CHAR * draft.rest_chars
        self._at(over + self._callers[draft.caller].uniform(0.3, 1.5), self._speaks(draft.caller))

    def _quality(self, draft: Draft) -> float:
        """By the tokens' share: the first clause's after its steps, the rest's after the rest's, as the curve was measured."""
        if self.policy.is_autoregressive:
            return 1.0
        clause = quality_at(self.curve, min(self.curve.widths), draft.steps_first)
        rest = quality_at(self.curve, self.machine.width, draft.steps_rest)
        return CLAUSE_SHARE * clause + (1.0 - CLAUSE_SHARE) * rest

    # --- the machine's moods ------------------------------------------------------------------------------------------

    def _time(self, stage: Stage, median_s: float, now: float) -> float:
        noise = self.scenario.noise
        if now >= self._drift_until:
            self._drift = math.exp(self._rng.gauss(0.0, noise.drift))
            self._drift_until = now + self._rng.expovariate(1 / 3.0)
        recorded = noise.recorded.get(stage)
        own = self._rng.choice(recorded) if recorded else math.exp(self._rng.gauss(0.0, noise.sigma))
        slow = math.prod(factor for begin, end, factor in noise.slow if begin <= now < end)
        return median_s * own * self._drift * slow

    def _stall(self) -> float:
        noise = self.scenario.noise
        if not noise.stall or self._rng.random() >= noise.stall:
            return 0.0
        return noise.stall_s * math.exp(self._rng.gauss(0.0, 0.5))


def _by_deadline(drafts: Sequence[Draft]) -> list[Draft]:
    return sorted(drafts, key=lambda draft: draft.deadline)
