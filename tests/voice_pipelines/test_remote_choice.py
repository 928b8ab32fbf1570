"""A remote language model that is configured, started and talked to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import run_async
from tests.voice_pipelines.remote_desk import desk, hang
from tests.voice_pipelines.scripted_endpoint import Exchange, endpoint, piece, saying
from tests.voiceagent.standins import LevelDetector, ScriptedTranscriber, ToneSynthesizer, silence, tone
from voice_pipelines import settings
from voice_pipelines.adapters.remote import RemoteDrafter, ask_models, choose_name
from voice_pipelines.adapters.remote_wire import RemoteEndpoint
from voice_pipelines.choices import choose_llm
from voice_pipelines.doctor import run_doctor
from voice_pipelines.local import LocalRuntime, calibrate
from voice_pipelines.loopback import call
from voiceagent.agent import AgentProfile
from voiceagent.backends import Backends
from voiceagent.budget import BudgetController
from voiceagent.clock import Clock
from voiceagent.config import Config
from voiceagent.conversation import Conversation
from voiceagent.costs import Stage
from voiceagent.errors import BackendError, ConfigError
from voiceagent.events import ConversationEvent, ResponsePlanned

# --- choosing, starting, checking -------------------------------------------------------------------------------------


def configure(*assignments: str) -> Config:
    return settings.load(assignments=assignments)


@pytest.mark.parametrize(
    ("assignments", "key"),
    [
        (["models.llm=remote"], "remote.url"),
        (["models.llm=ftp://host/v1"], "models.llm"),
        (["models.llm=https://me:pass@host/v1"], "models.llm"),
        (["models.llm=https://host/v1?key=pass"], "models.llm"),
        (["models.llm=http://a/v1", "remote.url=http://b/v1"], "models.llm"),
        (["remote.url=host/v1"], "remote.url"),
        (["remote.url=https://host/v1?key=3"], "remote.url"),
        (["remote.url=http://host:port"], "remote.url"),
        (["remote.dialect=anthropic"], "remote.dialect"),
        (["remote.diffusing=true"], "remote.diffusing"),
        (["remote.api_key=a", "remote.api_key_env=B"], "remote.api_key_env"),
        (["remote.timeout_s=0"], "remote.timeout_s"),
        (["models.llm=http://a/v1", "remote.api_key_env=NOT_SET"], "remote.api_key_env"),
        (["models.llm=http://a/v1", "remote.api_key=pass with blanks"], "remote.api_key"),
    ],
)
def test_a_wrong_setting_of_the_remote_model_is_named(assignments: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.remote_endpoint(configure(*assignments), {"NOT_SET": " "})
    assert caught.value.key == key and "pass" not in str(caught.value)


def test_the_configuration_becomes_an_endpoint_that_hides_its_key() -> None:
    assert settings.remote_endpoint(configure(), {}) is None
    assert settings.remote_endpoint(configure("models.llm=some/folder"), {}) is None
    config = configure("models.llm=https://host/v1/", "remote.api_key_env=KEY", "remote.dialect=inception")
    found = settings.remote_endpoint(config, {"KEY": "sk-9\n"})
    assert found == RemoteEndpoint("https://host/v1", dialect="inception", api_key="sk-9")
    assert found.host == "host" and "sk-9" not in repr(found)
    named = settings.remote_endpoint(configure("models.llm=remote", "remote.url=http://[::1]:1/v1"), {})
    assert named is not None and named.host == "[::1]:1"


def test_the_start_asks_once_and_says_what_was_chosen() -> None:
    async def main() -> None:
        async with endpoint(hang, models=("tiny",)) as remote:
            load = choose_llm(configure(f"models.llm={remote.url}"))
            drafter = await asyncio.to_thread(load)
            assert isinstance(drafter, RemoteDrafter) and drafter.endpoint.model == "tiny"
            assert drafter.info.name == f"tiny at {drafter.endpoint.host} (OpenAI's dialect)"
            assert drafter.info.is_remote and "chosen in the configuration; it answered in" in drafter.info.reason
            await drafter.aclose()
            other = await asyncio.to_thread(choose_llm(configure(f"models.llm={remote.url}", "remote.model=big")))
            assert "does not name this one" in other.info.reason
            await other.aclose()
            assert len(remote.listings) == 2 and not remote.exchanges

    run_async(main())


def test_a_model_that_must_be_named_is_asked_for() -> None:
    async def main() -> None:
        async with endpoint(hang, models=("a", "b")) as remote:
            where = RemoteEndpoint(remote.url)
            with pytest.raises(ConfigError, match="expected one of a, b"):
                choose_name(where, await asyncio.to_thread(ask_models, where))
        async with endpoint(hang, models_status="404 Not Found") as remote:
            listing = await asyncio.to_thread(ask_models, RemoteEndpoint(remote.url))
            assert listing.names is None
            assert choose_name(RemoteEndpoint(remote.url, "a"), listing) == "a"
            with pytest.raises(ConfigError, match="the endpoint lists none"):
                choose_name(RemoteEndpoint(remote.url), listing)

    run_async(main())


def test_an_endpoint_that_refuses_or_is_not_there_fails_the_start() -> None:
    async def main() -> None:
        async with endpoint(hang, models_status="403 Forbidden") as remote:
            with pytest.raises(BackendError, match="answered 403 Forbidden"):
                await asyncio.to_thread(choose_llm(configure(f"models.llm={remote.url}")))
        with pytest.raises(BackendError, match="cannot be reached"):
            await asyncio.to_thread(choose_llm(configure(f"models.llm={remote.url}")))

    run_async(main())


def test_the_doctor_asks_the_endpoint_that_is_configured() -> None:
    async def main() -> list[str]:
        reports: list[str] = []
        async with endpoint(hang, models=("tiny",)) as remote:
            await asyncio.to_thread(run_doctor, configure(f"models.llm={remote.url}"), reports.append)
        await asyncio.to_thread(run_doctor, configure(f"models.llm={remote.url}"), reports.append)
        await asyncio.to_thread(run_doctor, configure("models.llm=remote"), reports.append)
        return reports

    well, away, unset = run_async(main())
    assert "ok    language model: remote: tiny at 127.0.0.1" in well
    assert "fail  language model: llm: 127.0.0.1" in away and "cannot be reached" in away and "[remote]" in away
    assert "fail  language model: remote.url = ''" in unset


# --- in a conversation ------------------------------------------------------------------------------------------------


def runtime_with(drafter: RemoteDrafter, clock: Clock) -> LocalRuntime:
    backends = Backends(LevelDetector(), ScriptedTranscriber("a large mocha"), drafter, ToneSynthesizer())
    return LocalRuntime(Config(), AgentProfile("test"), backends, BudgetController(), clock)


def test_calibration_asks_nothing_of_a_remote_model() -> None:
    async def main() -> None:
        async with desk(saying("Hello.")) as here:
            runtime = runtime_with(here.drafter, here.clock)
            await calibrate(runtime)
            assert here.remote.exchanges == [] and runtime.budget.costs.observations(Stage.TTS) == 6

    run_async(main())


def test_a_call_is_answered_by_the_remote_model() -> None:
    async def main() -> None:
        async def slowly(exchange: Exchange) -> None:
            exchange.begin()
            for text in ("Sure", " thing", ". One large", " mocha. Any", "thing else?"):
                await here.clock.sleep_until(here.clock.now() + 0.3)
                exchange.send(piece(text))
            exchange.send(piece(None, "stop"), "[DONE]")
            exchange.end()

        async with desk(slowly, timeout_s=600.0) as here:
            remote, drafter = here.remote, here.drafter
            runtime = runtime_with(drafter, here.clock)

            planned: list[ResponsePlanned] = []

            def open_conversation(emit: Callable[[ConversationEvent], None]) -> Conversation:
                def watch(event: ConversationEvent) -> None:
                    if isinstance(event, ResponsePlanned):
                        planned.append(event)
                    emit(event)

                return runtime.open_conversation(watch)

            audio = np.concatenate([silence(0.1), tone(0.3), silence(0.5)])
            calling = asyncio.create_task(call(open_conversation, audio, here.clock))
            while not calling.done():
                await here.clock.advance(0.02)
            result = await calling
            assert [finished.status for finished in result.finished] == ["completed"]
            assert result.timelines[-1]["reply"] == "Sure thing. One large mocha. Anything else?"
            assert remote.exchanges[0].body["messages"][-1] == {"role": "user", "content": "a large mocha"}
            assert drafter.counts == replace(drafter.counts, started=1, finished=1, failed=0, cancelled=0, cut=0)
            assert drafter.counts.late == 1
            assert runtime.budget.costs.observations(Stage.PREFILL) == 1
            assert not [plan for plan in planned if "was late" in plan.reason], "its steps are not ours to grant"

    run_async(main())
