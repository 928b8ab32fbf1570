"""What is counted of calls, and that the made agents are what they say."""

from __future__ import annotations

import importlib
import tomllib
from types import ModuleType

import pytest

from dllm.calls import Call, Tool, typed_arguments
from tests.benchmarks.test_tapes import BENCHMARKS
from voiceagent.tools import ToolCall


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("tool_calls")


HALVES = tomllib.loads((BENCHMARKS / "tool_calls.toml").read_text("utf-8"))


@pytest.mark.parametrize("half", HALVES)
def test_every_right_call_fits_its_tool(bench: ModuleType, half: str) -> None:
    cases = list(bench.read_cases(HALVES[half]))
    assert len(cases) >= 50 and any(not case.tool for case in cases)
    for case in cases:
        assert case.turns[-1].role == "user"
        if case.tool:
            [spec] = [spec for spec in case.tools if spec.name == case.tool]
            first = {key: value[0] if isinstance(value, list) else value for key, value in case.arguments.items()}
            words = {
                key: str(value) if not isinstance(value, bool) else ("yes" if value else "no")
                for key, value in first.items()
            }
            assert typed_arguments(Call(spec.name, words), Tool(spec.name, "", spec.parameters)) == first


def test_a_case_is_told_as_chat_clients_tell_it(bench: ModuleType) -> None:
    case = next(case for case in bench.read_cases(HALVES["tune"]) if any(turn.role == "note" for turn in case.turns))
    messages = list(bench.chat_messages(case))
    assert [message["role"] for message in messages] == [
        "system", "assistant", "user", "assistant", "tool", "assistant", "user",
    ]  # fmt: skip
    [call] = messages[3]["tool_calls"]
    assert call["function"] == {"name": "reserve", "arguments": '{"people": 4, "day": "friday"}'}
    assert messages[4] == {"role": "tool", "tool_call_id": call["id"], "content": "table: 12; code: K72"}


def test_a_call_is_right_with_one_of_the_right_values_and_articles_aside(bench: ModuleType) -> None:
    case = next(case for case in bench.read_cases(HALVES["tune"]) if case.tool == "reserve")
    right = dict(case.arguments)

    def outcome(name: str, arguments: dict[str, object], problem: str = "") -> str:
        found: str = bench.Answered(case, ToolCall(name, arguments, problem=problem), "", 0, 0.0).outcome
        return found

    assert outcome("reserve", right) == "right"
    assert outcome("reserve", {**right, "day": "on Friday"}) == "right"
    assert outcome("reserve", {**right, "people": 5}) == "wrong value"
    assert outcome("reserve", {**right, "people": "four"}) == "refused"
    assert outcome("reserve", {"people": 4, "day": "friday"}) == "wrong value", "an optional one that was said counts"
    assert outcome("hours", {"day": "friday"}) == "wrong tool"
    assert outcome("reserve", {}, "the day is missing") == "refused"
    assert bench.Answered(case, None, "Which day?", 0, 0.0).outcome == "no call"
