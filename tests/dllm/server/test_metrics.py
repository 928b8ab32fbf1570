"""`/metrics` of `dllm serve`: the text that Prometheus reads, and what is counted."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from dllm.drafts import Event, Plan, Prefilled, Stepped, Usage
from dllm.errors import CacheFullError
from dllm.runner import EngineRunner
from dllm.server import ServerSettings, create_app
from dllm.server.meters import Cache, Meters, granted, steps_of
from tests.conftest import run_async
from tests.dllm import tiny
from tests.dllm.server.serving import ROOMY, Served, served
from tests.dllm.standin import StandInDraft, StandInEngine
from tests.webserving import exposition


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Samples:
    """The samples of an exposition; fails where a series comes twice."""
    samples: Samples = {}
    for name, labels, value in exposition.read(text):
        key = name, frozenset(labels.items())
        assert key not in samples, key
        samples[key] = value
    return samples


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def metrics(server: Served) -> Samples:
    response = await server.client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return read(response.text)


def after(scenario: Callable[[Served], Any], settings: ServerSettings | None = None, **how: Any) -> Samples:
    """What `/metrics` says once the scenario is over."""

    async def main() -> Samples:
        async with served(settings=settings, **how) as server:
            await scenario(server)
            return await metrics(server)

    return run_async(main())


# --- requests ---------------------------------------------------------------------------------------------------------


def test_an_answered_request_is_counted_with_its_tokens_steps_and_times() -> None:
    async def scenario(server: Served) -> None:
        for stream in (False, True):
            assert (await server.chat(stream=stream)).status_code == 200
        assert (await server.complete()).status_code == 200

    samples = after(scenario, script="Hello there.")
    assert of(samples, "dllm_requests_total", endpoint="chat", outcome="completed") == 2
    assert of(samples, "dllm_requests_total", endpoint="text", outcome="completed") == 1
    assert of(samples, "dllm_requests_total", endpoint="fim", outcome="completed") == 0
    assert of(samples, "dllm_request_seconds_count", endpoint="chat") == 2
    assert of(samples, "dllm_first_text_seconds_count", endpoint="chat") == 2
    reply = len(tiny.codec().encode(" Hello there."))
    assert of(samples, "dllm_generated_tokens_total") == 3 * reply
    assert of(samples, "dllm_prompt_tokens_total", source="cache") == 6
    assert of(samples, "dllm_prompt_tokens_count") == of(samples, "dllm_wait_seconds_count") == 3
    steps = -(-reply // 3)
    assert of(samples, "dllm_denoise_steps_count") == 3 and of(samples, "dllm_denoise_steps_sum") == 3 * steps
    assert of(samples, "dllm_denoise_steps_granted_sum") >= 3 * steps
    assert of(samples, "dllm_denoise_step_drafts_count") == 3 * steps
    assert of(samples, "dllm_denoise_step_seconds_sum") == 0.25 * 3 * steps
    assert of(samples, "dllm_drafts", state="running") == of(samples, "dllm_drafts", state="waiting") == 0
    assert of(samples, "dllm_deadlines_total") == 0
    assert of(samples, "process_cpu_seconds_total") > 0


def test_a_request_that_is_wrong_is_invalid_and_no_refusal() -> None:
    async def scenario(server: Served) -> None:
        assert (await server.chat(temperature="hot")).status_code == 400
        assert (await server.client.post("/v1/edit/completions", content=b"{")).status_code == 400

    samples = after(scenario)
    assert of(samples, "dllm_requests_total", endpoint="chat", outcome="invalid") == 1
    assert of(samples, "dllm_requests_total", endpoint="edit", outcome="invalid") == 1
    assert not any(value for (name, _), value in samples.items() if name == "dllm_refusals_total")
    assert of(samples, "dllm_request_seconds_count", endpoint="chat") == 0


def test_a_request_beyond_those_that_are_written_at_once_is_refused_and_the_drafts_are_seen() -> None:
    async def main() -> None:
        gate = threading.Semaphore(0)
        async with served(settings=ServerSettings(max_drafts=1), gate=gate) as server:
            first = asyncio.create_task(server.chat())
            assert await asyncio.to_thread(server.engine.was_submitted.wait, 20)
            samples = await metrics(server)
            assert of(samples, "dllm_drafts", state="waiting") == of(samples, "dllm_drafts_limit") == 1
            assert (await server.chat()).status_code == 429
            gate.release(100)
            assert (await first).status_code == 200
            samples = await metrics(server)
            assert of(samples, "dllm_requests_total", endpoint="chat", outcome="refused") == 1
            assert of(samples, "dllm_refusals_total", reason="drafts_full") == 1
            assert of(samples, "dllm_refusals_total", reason="grammars_full") == 0

    run_async(main())


def test_a_client_that_goes_is_cancelled_and_what_was_written_for_it_still_counts() -> None:
    async def main() -> None:
        gate = threading.Semaphore(2)
        async with served("One two three four five six.", gate=gate) as server:
            asked = asyncio.create_task(server.chat(stream=True))
            while not of(samples := await metrics(server), "dllm_first_text_seconds_count", endpoint="chat"):
                await asyncio.to_thread(lambda: None)
            assert of(samples, "dllm_drafts", state="running") == 1
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            gate.release(100)
            samples = await metrics(server)
            assert of(samples, "dllm_requests_total", endpoint="chat", outcome="cancelled") == 1
            assert of(samples, "dllm_generated_tokens_total") > 0
            assert of(samples, "dllm_denoise_steps_count") == 0
            assert of(samples, "dllm_drafts", state="running") == 0

    run_async(main())


class Breaking(StandInEngine):
    """Writes one piece and then fails the draft."""

    def _advance(self, draft: StandInDraft) -> list[Any]:
        return super()._advance(draft) if draft.step == 0 else [self.fail(draft, CacheFullError(32, 16))]


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_fails_counts_as_what_it_failed_of_streamed_or_not(stream: bool) -> None:
    async def main() -> None:
        standin = Breaking(lambda _: tiny.codec().encode(" Hello there."))
        async with EngineRunner(standin) as runner:
            app = create_app(runner, tiny.codec(), tiny.spec())
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                server = Served(client, standin, runner)
                response = await server.chat(stream=stream)
                assert response.status_code == (200 if stream else 503)
                assert b'"unavailable"' in response.content
                samples = await metrics(server)
        assert of(samples, "dllm_requests_total", endpoint="chat", outcome="refused") == 1
        assert of(samples, "dllm_requests_total", endpoint="chat", outcome="completed") == 0

    run_async(main())


def test_who_is_kept_out_is_counted_and_the_metrics_want_the_key_themselves() -> None:
    async def main() -> None:
        async with served(settings=ServerSettings(api_keys=("secret",))) as server:
            assert (await server.client.get("/metrics")).status_code == 401
            assert (await server.chat()).status_code == 401
            server.client.headers["authorization"] = "Bearer secret"
            samples = await metrics(server)
            assert of(samples, "dllm_refusals_total", reason="invalid_api_key") == 2
            assert not any(value for (name, _), value in samples.items() if name == "dllm_requests_total")
        async with served() as server:
            for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
                assert (await server.client.get("/metrics", headers=headers)).status_code == 403
            samples = await metrics(server)
            assert of(samples, "dllm_refusals_total", reason="forbidden_host") == 1
            assert of(samples, "dllm_refusals_total", reason="forbidden_origin") == 1

    run_async(main())


def test_grammars_are_counted_by_what_came_of_them() -> None:
    async def scenario(server: Served) -> None:
        for regex in ("yes|no", "yes|no", "(", "maybe"):
            await server.chat(dllm={"regex": regex})

    samples = after(scenario, script="yes", spec=ROOMY)
    found = {
        outcome: of(samples, "dllm_grammars_total", outcome=outcome) for outcome in ("kept", "compiled", "invalid")
    }
    assert found == {"kept": 1, "compiled": 2, "invalid": 1}
    assert of(samples, "dllm_grammars_waiting") == 0


def test_the_prefix_cache_tells_how_full_it_is_where_the_engine_has_one() -> None:
    @dataclass
    class Held:
        size_bytes: int = 48
        limit_bytes: int = 64

    async def main() -> None:
        async with served() as server:
            assert ("dllm_prefix_cache_bytes", frozenset()) not in await metrics(server)
            server.engine.cache = Held()  # type: ignore[attr-defined]
            samples = await metrics(server)
            assert (of(samples, "dllm_prefix_cache_bytes"), of(samples, "dllm_prefix_cache_limit_bytes")) == (48, 64)

    run_async(main())


# --- when a reply is over ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def ticking(
    gate: threading.Semaphore | None = None, takes: asyncio.Event | None = None
) -> AsyncIterator[tuple[Served, Clock]]:
    """A server whose rounds take a second each; "a" is answered in one of them, "b" in many.

    Args:
        takes: Nothing of an answer's body is taken by the client before this is set.
    """
    clock = Clock()

    def tick() -> None:
        clock.now += 1.0

    short, long = (tiny.codec().encode(" " + text) for text in ("a", "one two three four five six seven eight nine"))
    is_short = tuple(tiny.codec().encode("a"))
    standin = StandInEngine(
        lambda spec: short if spec.prompt == is_short else long, gate=gate, before_round=tick, clock=clock
    )
    async with EngineRunner(standin, clock=clock) as runner:
        app = create_app(runner, tiny.codec(), tiny.spec(), clock=clock)

        async def slowly(scope: Any, receive: Any, send: Any) -> None:
            async def when_taken(message: Any) -> None:
                if takes is not None and message["type"] == "http.response.body":
                    await takes.wait()
                await send(message)

            await app(scope, receive, when_taken)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(slowly), base_url="http://localhost") as client:
            yield Served(client, standin, runner), clock


def missed(samples: Samples) -> float:
    return sum(value for (name, _), value in samples.items() if name == "dllm_deadline_misses_total")


def test_a_reply_that_is_written_is_over_whatever_its_siblings_take() -> None:
    async def main() -> None:
        gate = threading.Semaphore(2)  # The first round may come before the second draft.
        async with ticking(gate) as (server, _):
            asked = asyncio.create_task(server.complete(["a", "b"], dllm={"deadline_ms": 2500}))
            while not of(samples := await metrics(server), "dllm_denoise_steps_count"):
                await asyncio.to_thread(lambda: None)
            gate.release(100)
            assert (await asked).status_code == 200
            assert of(samples, "dllm_drafts", state="running") + of(samples, "dllm_drafts", state="waiting") == 1
            assert of(samples, "dllm_wait_seconds_sum") == 0.25
            samples = await metrics(server)
            assert of(samples, "dllm_denoise_steps_count") == of(samples, "dllm_deadlines_total") == 2
            assert missed(samples) == 1
            assert of(samples, "dllm_drafts", state="running") == of(samples, "dllm_drafts", state="waiting") == 0

    run_async(main())


def test_a_client_that_reads_slowly_makes_no_reply_late() -> None:
    async def main() -> None:
        takes = asyncio.Event()
        async with ticking(takes=takes) as (server, clock):
            asked = asyncio.create_task(server.complete("a", stream=True, dllm={"deadline_ms": 2500}))
            while server.runner.active or not server.engine.rounds:
                await server.runner.call(lambda _: None)
            clock.now += 100.0
            takes.set()
            assert (await asked).status_code == 200
            samples = await metrics(server)
            assert of(samples, "dllm_deadlines_total") == 1 and missed(samples) == 0
            assert of(samples, "dllm_wait_seconds_sum") == 0.25

    run_async(main())


# --- drafts -----------------------------------------------------------------------------------------------------------


@dataclass
class Numbered:
    number: int


def step(number: int, seconds: float, batch: int) -> Event:
    return Stepped(Numbered(number), 1, "first", (), 1, 0, seconds, batch)  # type: ignore[arg-type]


def test_a_step_that_drafts_share_is_counted_once() -> None:
    together = [step(1, 0.5, 2), step(4, 0.5, 2)]
    assert steps_of(together) == [(0.5, 2)]
    assert steps_of([*together, *together]) == [(0.5, 2), (0.5, 2)]
    assert steps_of([step(1, 0.5, 1), step(2, 0.25, 1)]) == [(0.5, 1), (0.25, 1)]
    assert steps_of([Prefilled(Numbered(3), 0, 1, 0.1), step(3, 0.5, 1)]) == [(0.5, 1)]  # type: ignore[arg-type]
    assert steps_of([]) == []


@dataclass
class Told:
    """What a draft's meter asks of its reply."""

    usage: Usage
    steps: int = 3


def finished(took_s: float, prefill_s: float, denoise_s: float) -> Meters:
    """The meters after a draft with a second until its deadline."""
    clock = Clock()
    meters = Meters(clock, 1, lambda: Cache(1, 2), lambda: 0)
    draft = meters.draft(Plan(4, 4, rest_deadline=clock.now + 1.0, by_clause=False))
    clock.now += took_s
    usage = Usage(visible_tokens=4, forced=2, guards=3, seconds_prefill=prefill_s, seconds_denoise=denoise_s)
    draft.finish(Told(usage), clock.now)  # type: ignore[arg-type]
    return meters


@pytest.mark.parametrize(
    ("took_s", "prefill_s", "denoise_s", "stage"),
    [(4.0, 1.0, 0.5, "wait"), (4.0, 2.5, 0.5, "prefill"), (4.0, 0.25, 3.5, "denoise"), (1.0, 0.25, 0.5, None)],
)
def test_a_missed_deadline_is_counted_at_the_stage_that_took_longest(
    took_s: float, prefill_s: float, denoise_s: float, stage: str | None
) -> None:
    meters = finished(took_s, prefill_s, denoise_s)
    assert meters.deadlines.value() == 1
    assert meters.wait.sum() == took_s - prefill_s - denoise_s
    assert {each: meters.misses.value(each) for each in ("wait", "prefill", "denoise")} == {
        each: float(each == stage) for each in ("wait", "prefill", "denoise")
    }


def test_forwards_that_add_up_to_more_than_the_whole_leave_no_waiting() -> None:
    assert finished(0.5, 0.25, 0.5).wait.sum() == 0.0


def test_a_drafts_forced_tokens_and_guards_are_counted() -> None:
    meters = finished(1.0, 0.25, 0.5)
    assert (meters.forced_tokens.value(), meters.guards.value()) == (2, 1)
    assert (meters.steps.sum(), meters.granted.sum()) == (3, 4)


def test_a_plan_of_two_phases_grants_the_steps_of_both() -> None:
    assert granted(Plan(6, 10)) == 16 and granted(Plan(6, 10, by_clause=False)) == 6


def test_the_page_names_every_metric_and_every_value_of_its_labels_and_no_others() -> None:
    page = (Path(__file__).parents[3] / "docs" / "serve.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if re.match(r"\| `(dllm|process)_", line)]
    meters = Meters(Clock(), 1, lambda: Cache(1, 2), lambda: 0)
    known = set()
    for name, labels in read(meters.exposition()):
        stem = re.sub(r"_(bucket|sum|count)$", "", name)
        known.add(stem)
        row = next(row for row in rows if re.search(rf"`{stem}[`{{]", row))
        told = rows[0] if "endpoint" in dict(labels) else row  # endpoints are told once, where they come first
        assert all(f"`{value}`" in told for label, value in labels if label != "le"), (stem, labels)
    assert {name for row in rows for name in re.findall(r"`((?:dllm|process)_\w+)", row.split(" | ")[0])} == known
