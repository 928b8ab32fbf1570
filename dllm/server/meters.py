"""What operators see of `dllm serve`: requests, drafts, steps and grammars become counts and times. Nothing that anybody wrote gets in here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from starlette.requests import ClientDisconnect

from dllm.drafts import Event, Plan, Prefilled, Stepped
from dllm.reply import Reply
from dllm.server.problems import ApiError, from_exception
from webserving.lobby import Cut
from webserving.metrics import Counter, Gauge, Histogram, Metric, exposition
from webserving.process import process_metrics

Endpoint: TypeAlias = Literal["chat", "text", "fim", "edit", "apply"]
Outcome: TypeAlias = Literal["completed", "cancelled", "invalid", "refused", "expired", "failed"]
"""cancelled: the client went, or the server was told to stop. invalid: the request was at fault. refused: not now. expired: `timeout_s`."""
Refusal: TypeAlias = Literal[
    "invalid_api_key", "forbidden_host", "forbidden_origin", "drafts_full", "grammars_full", "unavailable"
]
GrammarOutcome: TypeAlias = Literal["kept", "compiled", "invalid", "ended", "unavailable", "failed"]
Stage: TypeAlias = Literal["wait", "prefill", "denoise"]

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
STEPS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)
DRAFTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
TOKENS = (16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0)


@dataclass(frozen=True, slots=True)
class Cache:
    """Bytes of the prefix cache."""

    used: int
    limit: int


class Meters:
    """The meters of one server.

    Args:
        clock: The engine's clock.
        limit: Replies that are written at once.
        cache: How full the prefix cache is; None where the engine has none.
        grammars: How many grammars are compiled or wait for it.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        limit: int,
        cache: Callable[[], Cache | None],
        grammars: Callable[[], int],
    ) -> None:
        self.clock = clock
        self._drafts: set[DraftMeter] = set()
        endpoints = get_args(Endpoint)
        self.requests = Counter(
            "dllm_requests_total",
            "Requests that are over, by what came of them.",
            {"endpoint": endpoints, "outcome": get_args(Outcome)},
        )
        self.refusals = Counter("dllm_refusals_total", "Requests that were turned away.", {"reason": get_args(Refusal)})
        self.cut_connections = Counter(
            "dllm_cut_connections_total",
            "Connections that brought no whole request in time, or took nothing of an answer.",
            {"reason": get_args(Cut)},
        )
        self.request_time = Histogram(
            "dllm_request_seconds",
            "A request's arrival to the end of its answer, of those completed.",
            SECONDS,
            {"endpoint": endpoints},
        )
        self.first_text = Histogram(
            "dllm_first_text_seconds",
            "A request's arrival to its first decided text, or its first canvas where that is asked for.",
            SECONDS,
            {"endpoint": endpoints},
        )
        self.wait = Histogram(
            "dllm_wait_seconds",
            "What a finished draft spent in no forward: before its first, and between two.",
            SECONDS,
        )
        self.prompt_tokens = Counter(
            "dllm_prompt_tokens_total",
            "Tokens of prompts, by where their keys and values came from.",
            {"source": ("cache", "computed")},
        )
        self.prompt_length = Histogram("dllm_prompt_tokens", "Tokens of a draft's prompt.", TOKENS)
        self.generated_tokens = Counter("dllm_generated_tokens_total", "Visible tokens of replies.")
        self.forced_tokens = Counter("dllm_forced_tokens_total", "Tokens decided because the steps ran out.")
        self.guards = Counter(
            "dllm_guarded_drafts_total", "Drafts that did not converge and were finished greedily or held open."
        )
        self.steps = Histogram("dllm_denoise_steps", "Denoising steps that a reply took.", STEPS)
        self.granted = Histogram("dllm_denoise_steps_granted", "Steps that its plan allowed.", STEPS)
        self.step_time = Histogram(
            "dllm_denoise_step_seconds", "One denoising step of all drafts that share it.", STEP_SECONDS
        )
        self.step_drafts = Histogram("dllm_denoise_step_drafts", "Drafts that share a denoising step.", DRAFTS)
        self.deadlines = Counter("dllm_deadlines_total", "Replies that were written to a deadline.")
        self.misses = Counter(
            "dllm_deadline_misses_total",
            "Replies that were there after their deadline, by the stage that took longest.",
            {"stage": get_args(Stage)},
        )
        self.grammars = Counter(
            "dllm_grammars_total", "Grammars that requests asked for.", {"outcome": get_args(GrammarOutcome)}
        )
        self._metrics: Sequence[Metric] = (
            Gauge("dllm_drafts", "Replies being written now, by how far they are.", self._by_state, "state"),
            Gauge("dllm_drafts_limit", "Replies that are written at one time.", lambda: limit),
            Gauge("dllm_grammars_waiting", "Grammars being compiled or waiting for it.", grammars),
            Gauge("dllm_prefix_cache_bytes", "Of the prefix cache, in use.", lambda: _used(cache())),
            Gauge("dllm_prefix_cache_limit_bytes", "Size of the prefix cache.", lambda: _limit(cache())),
            self.requests,
            self.refusals,
            self.cut_connections,
            self.request_time,
            self.first_text,
            self.wait,
            self.prompt_tokens,
            self.prompt_length,
            self.generated_tokens,
            self.forced_tokens,
            self.guards,
            self.steps,
            self.granted,
            self.step_time,
            self.step_drafts,
            self.deadlines,
            self.misses,
            self.grammars,
            *process_metrics(),
        )

    def exposition(self) -> str:
        """All of it in Prometheus' text format."""
        return exposition(self._metrics)

    def request(self, endpoint: Endpoint) -> RequestMeter:
        """A request of this endpoint begins."""
        return RequestMeter(self, endpoint)

    def draft(self, plan: Plan) -> DraftMeter:
        """A draft is submitted; it must be finished or closed."""
        meter = DraftMeter(self, plan)
        self._drafts.add(meter)
        return meter

    def refused(self, problem: ApiError) -> None:
        """Count an answer among the refusals if it is one."""
        if problem.reason is not None and problem.reason in get_args(Refusal):
            self.refusals.add(problem.reason)

    def observe_round(self, events: Sequence[Event]) -> None:
        """Count the steps of one round. Called on the engine's thread, the only one that counts these."""
        for seconds, drafts in steps_of(events):
            self.step_time.observe(max(seconds, 0.0))
            self.step_drafts.observe(drafts)

    def discard(self, draft: DraftMeter) -> None:
        self._drafts.discard(draft)

    def _by_state(self) -> dict[str, float]:
        running = sum(draft.is_running for draft in self._drafts)
        return {"waiting": float(len(self._drafts) - running), "running": float(running)}


class RequestMeter:
    """One request, from its arrival to the end of its answer."""

    def __init__(self, meters: Meters, endpoint: Endpoint) -> None:
        self._meters, self._endpoint = meters, endpoint
        self._began = meters.clock()
        self._has_text = False

    @contextmanager
    def failing(self) -> Iterator[None]:
        """What is raised inside ends the request."""
        try:
            yield
        except BaseException as error:
            self.over(outcome_of(error))
            raise

    def told(self) -> None:
        """Text, or a canvas, is there to be sent."""
        if not self._has_text:
            self._has_text = True
            self._meters.first_text.observe(max(self._meters.clock() - self._began, 0.0), self._endpoint)

    def over(self, outcome: Outcome) -> None:
        """To be called once."""
        self._meters.requests.add(self._endpoint, outcome)
        if outcome == "completed":
            self._meters.request_time.observe(max(self._meters.clock() - self._began, 0.0), self._endpoint)


class DraftMeter:
    """One draft, from its submission to its end, as its events show it."""

    def __init__(self, meters: Meters, plan: Plan) -> None:
        self._meters, self._plan = meters, plan
        self._began = meters.clock()
        self.is_running = False
        """Whether its prompt has been read."""

    def observe(self, event: Event) -> None:
        if not isinstance(event, Prefilled) or self.is_running:
            return
        self.is_running = True
        self._meters.prompt_tokens.add("cache", amount=event.cached_tokens)
        self._meters.prompt_tokens.add("computed", amount=event.new_tokens)
        self._meters.prompt_length.observe(event.cached_tokens + event.new_tokens)

    def close(self, reply: Reply) -> None:
        """It was broken off. Once, and not after `finish`."""
        meters, usage = self._meters, reply.usage
        meters.discard(self)
        meters.generated_tokens.add(amount=usage.visible_tokens)
        meters.forced_tokens.add(amount=usage.forced)
        meters.guards.add(amount=float(usage.guards > 0))

    def finish(self, reply: Reply, at: float) -> None:
        """Its reply is written to its end. Once.

        Args:
            at: When that was, by the engine's clock: whoever reads the events may be late.
        """
        self.close(reply)
        meters, usage = self._meters, reply.usage
        meters.steps.observe(reply.steps)
        meters.granted.observe(granted(self._plan))
        worked_s = usage.seconds_prefill + usage.seconds_denoise
        times: dict[Stage, float] = {
            "wait": max(at - self._began - worked_s, 0.0),
            "prefill": usage.seconds_prefill,
            "denoise": usage.seconds_denoise,
        }
        meters.wait.observe(times["wait"])
        if self._plan.rest_deadline is not None:
            meters.deadlines.add()
            if at > self._plan.rest_deadline:
                meters.misses.add(max(times, key=times.__getitem__))


def granted(plan: Plan) -> int:
    """Denoising steps that a plan allows a reply."""
    return plan.steps_first + plan.steps_rest if plan.by_clause else plan.steps_first


def steps_of(events: Sequence[Event]) -> list[tuple[float, int]]:
    """Seconds and drafts of each denoising step that a round's events tell of.

    Each of its drafts tells a step, in the order of their numbers, with the same time and company: another one begins where these
    change or the numbers start anew.
    """
    steps: list[tuple[float, int]] = []
    last = 0
    for event in events:
        if isinstance(event, Stepped):
            step, number = (event.seconds, event.batch), event.draft.number
            if not steps or step != steps[-1] or number <= last:
                steps.append(step)
            last = number
    return steps


def outcome_of(error: BaseException) -> Outcome:
    """What an error makes of the request that it ends."""
    if isinstance(error, ClientDisconnect) or not isinstance(error, Exception):
        return "cancelled"
    status = from_exception(error, "prompt").status
    if status in (429, 503):
        return "refused"
    if status == 504:
        return "expired"
    return "failed" if status >= 500 else "invalid"


def _used(cache: Cache | None) -> float | None:
    return None if cache is None else float(cache.used)


def _limit(cache: Cache | None) -> float | None:
    return None if cache is None else float(cache.limit)
