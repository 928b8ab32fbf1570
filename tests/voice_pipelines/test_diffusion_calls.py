"""Calls in the tokens of a reply, and in prompts: the built-in family's notation and the tags of chat models."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dllm import loader
from dllm.calls import Call as WrittenCall
from dllm.calls import Tool, result_note, write_call
from dllm.hub_codec import HubCodec
from tests.conftest import run_async
from tests.dllm import test_hub_codec
from tests.dllm.tiny import codec
from tests.voice_pipelines.test_diffusion import PLAN, TURNS, builtin
from tests.voice_pipelines.test_diffusion_prompt import NO_TOOL
from tests.voice_pipelines.test_diffusion_prompt import codec as chat_codec
from voice_pipelines.adapters.bare_calls import BareCalls
from voice_pipelines.adapters.diffusion import DiffusionDrafter
from voice_pipelines.adapters.diffusion_calls import CUT_OFF, OPEN, ChatReader, DialogueReader, call_sign
from voice_pipelines.adapters.diffusion_prompt import ChatPrompts, DialoguePrompts
from voiceagent import tools
from voiceagent.backends import (
    BackendInfo,
    DraftEvent,
    DraftFailed,
    DraftFinished,
    DraftRequest,
    DraftStepped,
    PromptTurn,
)
from voiceagent.tools import ToolCall, ToolChoice, ToolSpec, parameters_schema

SPEC = ToolSpec("book_table", "books a table", parameters_schema("p", {"people": "integer", "day": "string?"}))
WRITTEN = "book_table; people: four; day: friday"
CALL = ToolCall("book_table", {"people": 4, "day": "friday"}, WRITTEN)


def read(text: str, *, before: str = "", is_cut: bool = False) -> tuple[str, ToolCall | None]:
    """What the built-in family's tokens say, fed one by one."""
    own = codec()
    reader = DialogueReader(own, (SPEC,))
    for token in (*own.encode_text(before), own.special.call, *own.encode_text(text)):
        reader.feed((token,))
        assert reader.spoken in before, "nothing of a call is spoken"
    return reader.spoken, reader.call(is_cut=is_cut)


def test_the_callers_words_become_what_the_schema_asks_for() -> None:
    assert read(WRITTEN) == ("", CALL)
    assert read(WRITTEN, before="Let me see.") == ("Let me see.", CALL)


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ("book_table; people four", "book_table", "a detail is missing"),
        ("book_table; people: lots", "book_table", "the people must be a whole number"),
        ("book_table; day: friday", "book_table", "the people is missing"),
        ("", "", "a detail is missing"),
    ],
)
def test_a_call_that_cannot_be_read_says_why_and_keeps_its_words(text: str, name: str, problem: str) -> None:
    _, call = read(text)
    assert call is not None and (call.name, call.written) == (name, text)
    assert call.problem == problem


def test_an_unknown_tool_is_left_to_the_conversation_and_a_cut_call_is_no_call() -> None:
    assert read("fly; to: paris")[1] == ToolCall("fly", {"to": "paris"}, "fly; to: paris")
    call = read("book_table; people: fo", is_cut=True)[1]
    assert call is not None and (call.name, call.problem) == ("book_table", CUT_OFF)


def test_a_reply_without_the_sign_is_speech() -> None:
    own = codec()
    reader = DialogueReader(own, (SPEC,))
    reader.feed(own.encode_text("A table for four."))
    assert (reader.spoken, reader.call()) == ("A table for four.", None)


@pytest.mark.parametrize(
    ("text", "said", "name"),
    [
        ("Certainly._hours; day: friday at seven", "Certainly.", "opening_hours"),
        ("Certainly. opening_hours; day: friday", "Certainly.", "opening_hours"),
        ("Let me see; day: friday", "Let me see", "tool"),
        ("book_table; people: four; day: friday", "", "book_table"),
        ("I can [book_table; people: integer] books a table.", "I can", "book_table"),
        ("One moment. <call> book_table", "One moment.", "tool"),
        ("It says book_table failed: full", "It says", "book_table"),
    ],
)
def test_a_call_that_is_spelled_and_not_begun_is_never_spoken_and_asked_for_again(
    text: str, said: str, name: str
) -> None:
    own = codec()
    hours = ToolSpec("opening_hours", "", parameters_schema("p", {"day": "string"}))
    for may_call in (True, False):
        reader = DialogueReader(own, (SPEC, hours), may_call=may_call)
        for token in own.encode_text(text):
            reader.feed((token,))
            assert said.startswith(reader.spoken)
        call = reader.call()
        assert reader.whole == said and reader.lacks_words
        assert (call is not None) == may_call
        if call is not None:
            assert (call.name, call.arguments, call.problem) == (name, {}, "a detail is missing")


def test_speech_that_only_begins_like_a_call_is_spoken_in_the_end() -> None:
    own = codec()
    for text in ("We are open", "It is a good book", "At seven; day", "a table [b", "write to a_b@c.de"):
        reader = DialogueReader(own, (SPEC,))
        reader.feed(own.encode_text(text))
        assert text.startswith(reader.spoken) and reader.whole == text and reader.call() is None


@given(
    st.lists(
        st.sampled_from(
            ["book", "_", "table", "booking", ";", " ", ":", "day", "[", "<", "call>", "<tool_", "a", ".", "da"]
        )
    ).map("".join)
)
@example("<tool_table")
@example("[<tool_call>")
@example("my_table")
def test_what_is_let_out_of_a_reply_only_grows_and_holds_no_call(text: str) -> None:
    tools = [
        Tool("book_table", "", {"properties": {"day": {}, "people": {}}}),
        Tool("booking", "", {"properties": {"day": {}}}),
        Tool("a_b_c"),
    ]
    bare, before = BareCalls(tools), 0
    for size in range(len(text) + 1):
        settled = bare.settled(text[:size])
        assert before <= settled <= size
        before = settled
    whole = text[: bare.find(text)]
    assert before <= len(whole) and bare.find(whole) is None


def test_the_prompt_declares_tools_and_gives_calls_back_as_they_were_written() -> None:
    own = codec()
    prompts = DialoguePrompts(own, 400)
    turns = (PromptTurn("system", "Be brief."), PromptTurn("user", "a table"), PromptTurn("agent", "", CALL, "c"))
    written = prompts.write("call", turns, (), (SPEC,))
    head = own.encode_turn("system", "Be brief. Tools: [book_table; people: integer; day?] books a table")
    assert written[: len(head) - 1] == head[:-1] or own.decode(written).startswith(own.decode(head[:-1]))
    turn = [own.special.agent, own.special.call, *own.encode_text(WRITTEN), own.special.end]
    assert written[-len(turn) - 1 :] == [*turn, own.special.agent]
    assert prompts.warm_part("call", turns, (SPEC,)) == written[:-1]
    from_client = prompts.write("other", (PromptTurn("agent", "", ToolCall("f", {"a": "x; y", "n": 4}), "c"),))
    assert "f; a: x, y; n: 4" in own.decode(from_client)
    unreadable = ToolCall("f", {}, "f; ;", "expected `key: value`")
    assert own.special.call in prompts.write("third", (PromptTurn("agent", "", unreadable, "c"),))


def test_a_tool_with_nested_arguments_is_not_offered_to_the_builtin_family() -> None:
    nested = ToolSpec("deep", "", {"type": "object", "properties": {"a": {"type": "object"}}})
    assert DialoguePrompts(codec(), 400).offered((SPEC, nested)) == [SPEC]


def test_runtime_and_model_tell_results_in_the_same_words() -> None:
    for value in ("text  here", {"table_no": 12, "codes": ["a", "b"], "late": False, "x": None}, {}, ""):
        assert tools.result_note("book", value) == result_note("book", value)
    assert read(write_call(WrittenCall("book_table", {"people": "four"})))[1] is not None


# --- chat models ------------------------------------------------------------------------------------------------------


def chat(text: str, *, offered: tuple[ToolSpec, ...] = (SPEC,), is_cut: bool = False) -> tuple[str, ToolCall | None]:
    own = chat_codec(test_hub_codec.CHATML)
    reader = ChatReader(own, offered)
    before = ""
    for token in own.encode(text):
        reader.feed((token,))
        assert reader.spoken.startswith(before), "what may be spoken only grows"
        before = reader.spoken
    return reader.spoken, reader.call(is_cut=is_cut)


def test_a_call_between_tags_is_read_and_never_spoken() -> None:
    block = '<tool_call>\n{"name": "book_table", "arguments": {"people": 4}}\n</tool_call>'
    assert chat(f"Sure. {block}") == ("Sure.", ToolCall("book_table", {"people": 4}))
    assert chat(f"Sure. {block}", offered=())[1] is None


@pytest.mark.parametrize(
    "block", ["<tool_call>four</tool_call>", '<tool_call>{"name": 4}</tool_call>', "<tool_call>[]"]
)
def test_tags_that_hold_no_call_are_a_problem_and_not_speech(block: str) -> None:
    spoken, call = chat(f"Sure. {block}")
    assert spoken == "Sure." and call is not None and call.problem
    assert chat("Sure. <tool_call>{", is_cut=True)[1] == ToolCall("tool", {}, problem=CUT_OFF)


@pytest.mark.parametrize("value", ['"\\ud800"', "1e999", "NaN"])
def test_arguments_that_could_not_be_told_again_are_a_problem(value: str) -> None:
    _, call = chat(f'<tool_call>{{"name": "book_table", "arguments": {{"day": {value}}}}}</tool_call>')
    assert call is not None and call.problem and not call.arguments


def test_the_token_that_begins_a_call_is_known_where_there_is_one() -> None:
    own = chat_codec(test_hub_codec.CHATML)
    assert own.token_bytes(call_sign(own) or 0) == OPEN.encode()
    assert call_sign(codec()) == codec().special.call


def test_a_template_that_shows_tools_is_told_of_them_and_another_has_none() -> None:
    plain = ChatPrompts(chat_codec(NO_TOOL), 1000)
    assert not plain.has_tools and plain.offered((SPEC,)) == ()
    turns = (*TURNS, PromptTurn("agent", "", CALL, "c"), PromptTurn("note", "book_table: table 12", call_id="c"))
    assert "table 12" in chat_codec(NO_TOOL).decode(plain.write("call", turns, (), (SPEC,)))
    told = ChatPrompts(with_tools_template(), 4000)
    assert told.has_tools and told.offered((SPEC,)) == (SPEC,)
    prompt = with_tools_template().decode(told.write("call", turns, (), (SPEC,)))
    assert prompt.index("books a table") < prompt.index("friday") < prompt.index("table 12")


def with_tools_template() -> HubCodec:
    return chat_codec(
        "{% if tools %}[tools]{{ tools | tojson }}\n{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}\n{% endfor %}[assistant]"
    )


# --- through the engine -----------------------------------------------------------------------------------------------


def draft(request: DraftRequest) -> list[DraftEvent]:
    async def main() -> list[DraftEvent]:
        drafter = DiffusionDrafter(builtin(), BackendInfo("llm", "tiny", "test"))
        events: asyncio.Queue[DraftEvent] = asyncio.Queue()
        drafter.start(request, events.put_nowait)
        found: list[DraftEvent] = []
        try:
            while not found or not isinstance(found[-1], DraftFinished | DraftFailed):
                found.append(await events.get())
        finally:
            await drafter.aclose()
        return found

    return run_async(main())


def test_a_required_call_is_drafted_and_nothing_of_it_is_committed_as_speech() -> None:
    events = draft(DraftRequest("call", TURNS, PLAN, tools=(SPEC,), tool_choice=ToolChoice("required")))
    last = events[-1]
    assert isinstance(last, DraftFinished) and last.call is not None and last.text == ""
    assert all(event.committed_text == "" for event in events if isinstance(event, DraftStepped))


def test_what_must_be_said_is_no_part_of_a_required_call() -> None:
    request = DraftRequest("call", TURNS, PLAN, ("$5.10",), tools=(SPEC,), tool_choice=ToolChoice("required"))
    last = draft(request)[-1]
    assert isinstance(last, DraftFinished) and last.call is not None and "$5.10" not in last.call.written


@pytest.mark.parametrize("offered", [(), (SPEC,)], ids=["no tools", "none allowed"])
def test_a_reply_that_may_not_call_does_not(offered: tuple[ToolSpec, ...]) -> None:
    last = draft(DraftRequest("call", TURNS, PLAN, tools=offered, tool_choice=ToolChoice("none")))[-1]
    assert isinstance(last, DraftFinished) and last.call is None and last.text


def test_a_call_that_is_decided_is_the_whole_reply_and_takes_no_denoising_step() -> None:
    specs = (
        ToolSpec(
            "book_table",
            "books a table",
            parameters_schema("p", {"people": "integer", "day": "string", "time": "string?"}),
        ),
    )
    system = PromptTurn(
        "system", "You answer the phone of Luigi's, a restaurant. You book tables. Ask for what is missing."
    )

    checkpoint = loader.load(None)

    async def main() -> None:
        drafter = DiffusionDrafter(checkpoint, BackendInfo("llm", "the built-in model", "test"))
        try:
            for said, expected in (
                ("A table for 4 on Friday at seven, please.", {"people": 4, "day": "friday", "time": "seven"}),
                ("A table for five please.", None),
            ):
                events: asyncio.Queue[DraftEvent] = asyncio.Queue()
                request = DraftRequest(said, (system, PromptTurn("user", said)), PLAN, tools=specs)
                drafter.start(request, events.put_nowait)
                found = [await events.get()]
                while not isinstance(found[-1], DraftFinished | DraftFailed):
                    found.append(await events.get())
                finished = found[-1]
                assert isinstance(finished, DraftFinished)
                steps = sum(isinstance(event, DraftStepped) for event in found)
                if expected is None:
                    assert finished.call is None and finished.text and steps
                else:
                    assert finished.call is not None and not steps and not finished.text
                    assert (finished.call.name, finished.call.arguments) == ("book_table", expected)
            assert drafter.work.thread_s > 0
        finally:
            await drafter.aclose()

    run_async(main())
