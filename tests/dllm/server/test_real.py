"""The whole way with the built-in model: HTTP, tokens, forwards and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import httpx

from dllm import loader
from dllm.engine import Engine
from dllm.habits import family_options
from dllm.loader import Checkpoint
from dllm.runner import EngineRunner
from dllm.server import ServerSettings, create_app
from tests.conftest import run_async
from tests.dllm.server.serving import events_of, text_of
from tests.dllm.server.test_metrics import of, read


@cache
def checkpoint() -> Checkpoint:
    return loader.load()


@asynccontextmanager
async def served() -> AsyncIterator[httpx.AsyncClient]:
    found = checkpoint()
    settings = ServerSettings(options=family_options(found.defaults, found.spec), default_tokens=32)
    async with EngineRunner(Engine(found.model, found.codec.token_table)) as runner:
        transport = httpx.ASGITransport(create_app(runner, found.codec, found.spec, settings))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client


def body(text: str = "i would like a large coffee please", **fields: Any) -> dict[str, Any]:
    system = {"role": "system", "content": "You take orders in a café."}
    return {"messages": [system, {"role": "user", "content": text}], "seed": 1, **fields}


async def chat(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/chat/completions", json=body(**fields))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_reply_is_the_same_whole_streamed_and_as_the_last_canvas() -> None:
    async def main() -> None:
        async with served() as client:
            whole = (await chat(client))["choices"][0]["message"]["content"]
            assert len(whole.split()) > 2
            for extra in ({}, {"diffusing": True}):
                raw = (await client.post("/v1/chat/completions", json=body(stream=True, **extra))).content
                chunks = events_of(raw)
                frames = [chunk["choices"][0]["delta"]["content"] for chunk in chunks if "diffusion_meta" in chunk]
                assert (frames[-1] if extra else text_of(chunks)) == whole

    run_async(main())


def test_company_does_not_change_a_reply() -> None:
    texts = ["two teas please", "what do you have", "goodbye", "a muffin and a large mocha with almond milk"]

    async def main() -> None:
        async with served() as client:
            alone = [(await chat(client, text=text))["choices"][0]["message"]["content"] for text in texts]
            together = await asyncio.gather(*(chat(client, text=text) for text in texts))
            assert [answer["choices"][0]["message"]["content"] for answer in together] == alone

    run_async(main())


def test_the_metrics_tell_the_steps_that_drafts_shared_and_how_full_the_prefix_cache_is() -> None:
    async def main() -> None:
        async with served() as client:
            answers = await asyncio.gather(*(chat(client, text=text) for text in ("two teas please", "goodbye")))
            samples = read((await client.get("/metrics")).text)
            taken = [answer["usage"]["dllm"]["steps"] for answer in answers]
            assert of(samples, "dllm_denoise_steps_sum") == sum(taken)
            # Each draft of a step tells of it; how many steps were shared is up to the threads.
            assert of(samples, "dllm_denoise_step_drafts_sum") == sum(taken)
            assert max(taken) <= of(samples, "dllm_denoise_step_drafts_count") <= sum(taken)
            used, limit = of(samples, "dllm_prefix_cache_bytes"), of(samples, "dllm_prefix_cache_limit_bytes")
            assert 0 < used < limit

    run_async(main())


def test_a_second_turn_finds_the_first_in_the_cache_and_less_effort_takes_fewer_steps() -> None:
    async def main() -> None:
        async with served() as client:
            first = await chat(client, user="anna", reasoning_effort="high")
            again = await chat(client, user="anna", reasoning_effort="instant")
            assert first["usage"]["dllm"]["forwards"]["prefill"] >= 1
            assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
            assert again["usage"]["dllm"]["steps"] <= first["usage"]["dllm"]["steps"]

    run_async(main())


def test_a_seed_repeats_a_sampled_reply() -> None:
    async def main() -> None:
        async with served() as client:
            first, second = [await chat(client, temperature=2.0, n=4) for _ in range(2)]
            texts = [[choice["message"]["content"] for choice in answer["choices"]] for answer in (first, second)]
            assert texts[0] == texts[1] and len(set(texts[0])) > 1

    run_async(main())


def test_a_hole_is_filled_between_two_texts() -> None:
    async def main() -> None:
        async with served() as client:
            ask = {"prompt": " I would like", "suffix": " please.", "max_tokens": 6}
            answer = (await client.post("/v1/completions", json=ask)).json()
            assert 0 < answer["usage"]["completion_tokens"] <= 6
            assert answer["choices"][0]["finish_reason"] == "stop"

    run_async(main())


SIZE = {"type": "object", "properties": {"size": {"enum": ["small", "large"]}}, "required": ["size"]}


def test_a_schema_and_a_required_tool_are_obeyed_by_a_model_that_has_seen_neither() -> None:
    async def main() -> None:
        async with served() as client:
            form = {"type": "json_schema", "json_schema": {"name": "size", "schema": SIZE}}
            answer = await chat(client, response_format=form)
            assert json.loads(answer["choices"][0]["message"]["content"])["size"] in ("small", "large")
            tools = [{"type": "function", "function": {"name": "order", "parameters": SIZE}}]
            answer = await chat(client, tools=tools, tool_choice="required", max_tokens=63, parallel_tool_calls=False)
            [choice] = answer["choices"]
            assert choice["finish_reason"] == "tool_calls"
            [call] = choice["message"]["tool_calls"]
            assert call["function"]["name"] == "order"
            assert json.loads(call["function"]["arguments"])["size"] in ("small", "large")

    run_async(main())
