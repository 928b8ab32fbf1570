"""How often the built-in model calls an own agent's tool with the arguments that the caller said (`tool_calls.toml`: ten made agents, 131 turns).

    python benchmarks/tool_calls.py --save benchmarks/results/tool-calls.json
    python benchmarks/tool_calls.py --http --save benchmarks/results/tool-calls-http.json

Each turn goes through the drafter that the voice agent uses, with the prompt that a conversation would have, and steps enough; with `--http` it is a
chat at the door of `dllm serve`, with its default settings. What is compared are typed
arguments, as the tool's function gets them. A call that is refused, as one in which something required is missing, makes the agent ask; a call that
runs with a wrong value does what nobody wanted.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import time
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import httpx
import torch
from measuring import about, percentile

from dllm import loader
from dllm.calls import Tool, read_call, typed_arguments
from dllm.engine import Engine
from dllm.runner import EngineRunner
from dllm.server import create_app
from voice_pipelines.adapters.diffusion import DiffusionDrafter
from voiceagent.backends import (
    BackendInfo,
    DraftEvent,
    DraftFailed,
    DraftFinished,
    DraftRequest,
    DraftStepped,
    PromptTurn,
    StepPlan,
)
from voiceagent.budget_terms import BudgetSettings
from voiceagent.tools import ToolCall, ToolSpec, mismatch, parameters_schema

_SETTINGS = BudgetSettings()
PLAN = StepPlan(40, 12, 24, _SETTINGS.threshold, fact_threshold=_SETTINGS.fact_threshold)
"""The widest canvas of the built-in model, and steps as when nobody else is there."""
_BEFORE = re.compile(r"^(?:(?:the|a|an|at|on|in|from|to|for|of)\s+)+")

Outcome: TypeAlias = Literal["right", "wrong value", "wrong tool", "refused", "no call", "unasked"]
"""Of a turn that wants a call: the first five. Of one that wants none: `right` (words), `refused` (a call that was not run) or `unasked`."""


@dataclass(frozen=True, slots=True)
class Case:
    agent: str
    turns: tuple[PromptTurn, ...]
    tools: tuple[ToolSpec, ...]
    tool: str
    """Empty where there is nothing to call."""
    arguments: Mapping[str, Any]
    """For each the right value, or a list of right ones."""

    @property
    def said(self) -> str:
        return " | ".join(turn.text for turn in self.turns[2:] if turn.role in ("user", "agent") and turn.text)


@dataclass(frozen=True, slots=True)
class Answered:
    case: Case
    call: ToolCall | None
    text: str
    steps: int
    forward_s: float
    """Processor seconds of this reply: of the engine's thread, over HTTP of the whole process."""

    @property
    def runs(self) -> bool:
        """Whether the call would be carried out: what the conversation checks of it."""
        if self.call is None or self.call.problem:
            return False
        spec = next((spec for spec in self.case.tools if spec.name == self.call.name), None)
        return spec is not None and not mismatch(self.call.arguments, spec.parameters)

    @property
    def outcome(self) -> Outcome:
        if not self.case.tool:
            return "right" if self.call is None else "unasked" if self.runs else "refused"
        if self.call is None:
            return "no call"
        if self.call.name != self.case.tool:
            return "wrong tool" if self.runs else "refused"
        if not self.runs:
            return "refused"
        return "right" if self.right == self.asked else "wrong value"

    @property
    def asked(self) -> int:
        """Arguments that are in the right call or in this one."""
        given = {} if self.call is None else self.call.arguments
        return len(self.case.arguments.keys() | given.keys())

    @property
    def right(self) -> int:
        """Those of them that are as they should be."""
        given = {} if self.call is None else self.call.arguments
        both = self.case.arguments.keys() & given.keys()
        return sum(is_right(given[key], self.case.arguments[key]) for key in both)


Answerer: TypeAlias = Callable[[Case], Awaitable[Answered]]


def is_right(given: object, wanted: object) -> bool:
    """Whether an argument is the wanted one, or one of them."""
    if isinstance(wanted, list):
        return any(is_right(given, one) for one in wanted)
    if isinstance(wanted, str) and isinstance(given, str):
        return _BEFORE.sub("", given.casefold()) == _BEFORE.sub("", wanted.casefold())
    return type(given) is bool and given is wanted if isinstance(wanted, bool) else given == wanted


def read_cases(agents: Mapping[str, Mapping[str, Any]]) -> Iterator[Case]:
    for name, agent in agents.items():
        tools = tuple(
            ToolSpec(tool, entry["description"], parameters_schema(tool, entry["parameters"]))
            for tool, entry in agent["tools"].items()
        )
        opening = (PromptTurn("system", agent["instructions"]), PromptTurn("agent", agent["greeting"]))
        for entry in agent["cases"]:
            turns = (*opening, *_turns(entry["said"]))
            yield Case(name, turns, tools, entry.get("tool", ""), entry.get("arguments", {}))


def _turns(said: Sequence[str | Mapping[str, str]]) -> Iterator[PromptTurn]:
    role: Literal["user", "agent"] = "user"
    for one in said:
        if isinstance(one, str):
            yield PromptTurn(role, one)
            role = "agent" if role == "user" else "user"
        else:
            yield PromptTurn("agent", "", ToolCall(one["wrote"].split(";")[0], {}, one["wrote"]), "call_1")
            yield PromptTurn("note", one["note"], call_id="call_1")


async def answer(drafter: DiffusionDrafter, case: Case, number: int) -> Answered:
    """What the model does in a conversation of its own.

    Raises:
        BackendError: If the reply cannot be written.
    """
    events: asyncio.Queue[DraftEvent] = asyncio.Queue()
    began, steps = drafter.work.thread_s, 0
    drafter.start(DraftRequest(f"case-{number}", case.turns, PLAN, tools=case.tools), events.put_nowait)
    while True:
        match await events.get():
            case DraftStepped():
                steps += 1
            case DraftFailed(error=error):
                raise error
            case DraftFinished(text=text, call=call):
                drafter.forget(f"case-{number}")
                return Answered(case, call, text, steps, drafter.work.thread_s - began)
            case _:
                pass


async def answer_over_http(client: httpx.AsyncClient, case: Case) -> Answered:
    """The same at the door of `dllm serve`.

    Raises:
        httpx.HTTPStatusError: If the server refuses.
    """
    tools = [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in case.tools
    ]
    began = time.process_time()
    body = {"messages": list(chat_messages(case)), "tools": tools, "seed": 0}
    response = await client.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    answer = response.json()
    message = answer["choices"][0]["message"]
    calls = [
        ToolCall(one["function"]["name"], json.loads(one["function"]["arguments"]))
        for one in message.get("tool_calls", ())
    ]
    steps = answer["usage"]["dllm"]["steps"]
    return Answered(case, calls[0] if calls else None, message["content"] or "", steps, time.process_time() - began)


def chat_messages(case: Case) -> Iterator[dict[str, Any]]:
    """A case as chat clients tell of it: calls with typed arguments, results with their call."""
    name = ""
    for turn in case.turns:
        match turn.role:
            case "note":
                yield {"role": "tool", "tool_call_id": turn.call_id, "content": turn.text.removeprefix(f"{name}: ")}
            case "agent" if turn.call is not None:
                name = turn.call.name
                [spec] = [spec for spec in case.tools if spec.name == name]
                arguments = typed_arguments(read_call(turn.call.written), Tool(name, "", spec.parameters))
                call = {"name": name, "arguments": json.dumps(arguments)}
                yield {"role": "assistant", "tool_calls": [{"id": turn.call_id, "type": "function", "function": call}]}
            case "agent":
                yield {"role": "assistant", "content": turn.text}
            case _:
                yield {"role": turn.role, "content": turn.text}


def summary(answers: Sequence[Answered]) -> dict[str, Any]:
    """Counts and shares."""
    wanted = [one for one in answers if one.case.tool]
    idle = [one for one in answers if not one.case.tool]
    named = [one for one in wanted if one.call is not None and one.call.name == one.case.tool]
    ran = [one for one in answers if one.runs]
    return {
        "turns": len(answers),
        "all right": sum(one.outcome == "right" for one in answers),
        "wants a call": len(wanted),
        "right tool": len(named),
        "arguments of the right tool": sum(one.asked for one in named),
        "right arguments": sum(one.right for one in named),
        "right call": sum(one.outcome == "right" for one in wanted),
        "call that asks instead": sum(one.outcome == "refused" for one in wanted),
        "words instead": sum(one.outcome == "no call" for one in wanted),
        "wants none": len(idle),
        "called all the same": sum(one.outcome == "unasked" for one in idle),
        "call that asks": sum(one.outcome == "refused" for one in idle),
        "calls that ran": len(ran),
        "calls that ran and were wrong": sum(one.outcome != "right" for one in ran),
        "outcomes": dict(Counter(one.outcome for one in answers).most_common()),
        "steps": sum(one.steps for one in answers),
    }


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=Path(__file__).with_suffix(".toml"), help="TOML file of agents")
    parser.add_argument("--model", type=Path, help="folder of another checkpoint of the built-in family")
    parser.add_argument("--half", choices=("tune", "test"), help="only this half")
    parser.add_argument(
        "--http", action="store_true", help="at the door of `dllm serve` instead of the voice agent's drafter"
    )
    parser.add_argument("--save", type=Path, help="file for the results")
    parser.add_argument("--show", choices=("wrong", "all"), help="print turns with what was called")
    options = parser.parse_args()
    torch.set_num_threads(1)
    halves = tomllib.loads(options.cases.read_text("utf-8"))
    checkpoint = loader.load(options.model)
    results: dict[str, Any] = {"machine": about(torch.device("cpu"))}
    async with at_http(checkpoint) if options.http else at_the_drafter(checkpoint) as answer_one:
        for half, agents in halves.items():
            if options.half in (None, half):
                began = time.process_time()
                answers = [await answer_one(case) for case in read_cases(agents)]
                results[half] = summary(answers)
                print(half, json.dumps(results[half], indent=1), flush=True)
                seconds = sorted(one.forward_s for one in answers)
                print(
                    f"processor: p50 {percentile(seconds, 0.5):.3f} s, p95 {percentile(seconds, 0.95):.3f} s a reply; "
                    f"{time.process_time() - began:.1f} s in all"
                )
                for one in answers:
                    if options.show == "all" or (options.show == "wrong" and one.outcome != "right"):
                        print(_shown(one))
    if options.save is not None:
        options.save.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


@asynccontextmanager
async def at_the_drafter(checkpoint: loader.Checkpoint) -> AsyncIterator[Answerer]:
    drafter = DiffusionDrafter(checkpoint, BackendInfo("llm", "the model", "benchmark"))
    numbers = itertools.count()
    try:
        yield lambda case: answer(drafter, case, next(numbers))
    finally:
        await drafter.aclose()


@asynccontextmanager
async def at_http(checkpoint: loader.Checkpoint) -> AsyncIterator[Answerer]:
    async with EngineRunner(Engine(checkpoint.model, checkpoint.codec.token_table)) as runner:
        transport = httpx.ASGITransport(create_app(runner, checkpoint.codec, checkpoint.spec))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            yield lambda case: answer_over_http(client, case)


def _shown(one: Answered) -> str:
    wanted = f"{one.case.tool} {json.dumps(one.case.arguments)}" if one.case.tool else "words"
    got = one.text
    if one.call is not None:
        got = f"<{one.call.written or f'{one.call.name} {json.dumps(one.call.arguments)}'}> {one.call.problem}"
    return f"[{one.outcome}] {one.case.agent}: {one.case.said}\n    wanted {wanted}\n    got    {got}"


if __name__ == "__main__":
    asyncio.run(main())
