"""A conversation as a prompt, under templates of several habits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import pytest

from dllm.errors import ConfigError
from dllm.hub_codec import HubCodec
from tests.dllm import test_hub_codec, tiny
from voice_pipelines.adapters.diffusion_prompt import (
    OPENING,
    ChatPrompts,
    DialoguePrompts,
    PromptWriter,
    TemplateStyle,
    find_style,
    prompt_writer,
)
from voiceagent.backends import PromptTurn
from voiceagent.tools import ToolCall

ANY_ROLE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
TOOLS = test_hub_codec.CHATML
NO_TOOL = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}[{{ m.role }}]{{ m.content }}\n"
    "{% endfor %}[assistant]"
)
SILENT = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') or loop.first %}[{{ m.role }}]{{ m.content }}\n{% endif %}"
    "{% endfor %}[assistant]"
)
STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
)
MISTRAL = (
    "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
    "{% if rest is not sameas messages %}[system]{{ messages[0].content }}\n{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]"
)

TURNS = (
    PromptTurn("system", "Be brief."),
    PromptTurn("agent", "Hello."),
    PromptTurn("user", "A mocha"),
    PromptTurn("note", "total: $5.10"),
)


@cache
def codec(template: str) -> HubCodec:
    tokenizer = test_hub_codec.byte_level()
    test_hub_codec.add(tokenizer, test_hub_codec.QWEN_TOKENS)
    spec = test_hub_codec.spec_of(tokenizer, "<|MASK|>", ("<|im_end|>",), 450)
    return HubCodec(tokenizer, spec.special, 450, templates={"default": template})


def prompt_of(template: str, turns: tuple[PromptTurn, ...], *must_say: str) -> str:
    made = ChatPrompts(codec(template), 1000)
    return codec(template).decode(made.write("call", turns, must_say))


@pytest.mark.parametrize(
    ("template", "style"),
    [
        (ANY_ROLE, TemplateStyle(True, False, "tool", "system")),
        (TOOLS, TemplateStyle(True, False, "tool", "system")),
        (NO_TOOL, TemplateStyle(True, False, "system", "system")),
        (SILENT, TemplateStyle(True, False, "user", "user")),
        (MISTRAL, TemplateStyle(True, True, "joined", "joined")),
        (STRICT, TemplateStyle(False, True, "joined", "joined")),
        (test_hub_codec.LLADA, TemplateStyle(False, True, "joined", "joined")),
    ],
    ids=["any-role", "chatml", "no-tool", "silent", "mistral", "strict", "llada"],
)
def test_what_a_template_accepts_is_found_by_asking_it(template: str, style: TemplateStyle) -> None:
    assert find_style(codec(template)) == style


@pytest.mark.parametrize(
    "template", [ANY_ROLE, TOOLS, NO_TOOL, SILENT, MISTRAL, STRICT, test_hub_codec.LLADA],
    ids=["any-role", "chatml", "no-tool", "silent", "mistral", "strict", "llada"],
)  # fmt: skip
def test_every_turn_and_demand_is_in_the_prompt_in_order(template: str) -> None:
    more = (*TURNS, PromptTurn("agent", "A mocha, $5.10."), PromptTurn("user", "yes"), PromptTurn("user", "bye"))
    prompt = prompt_of(template, more, "$5.10", "see you", "see you")
    found = [prompt.find(turn.text) for turn in more]
    assert -1 not in found and found == sorted(found)
    assert prompt.count('"see you"') == 1 and prompt.find('"$5.10", "see you"') > found[-1]


def test_a_note_is_a_message_where_there_is_a_role_for_it() -> None:
    assert prompt_of(ANY_ROLE, TURNS) == (
        "[system]Be brief.\n[assistant]Hello.\n[user]A mocha\n[tool]total: $5.10\n[assistant]"
    )
    assert prompt_of(SILENT, TURNS).endswith("[user]A mocha\n[user]total: $5.10\n[assistant]")


def test_a_note_joins_the_caller_s_words_where_roles_must_alternate() -> None:
    assert prompt_of(STRICT, TURNS) == (
        f"[user]Be brief.\n\n{OPENING}\n[assistant]Hello.\n[user]A mocha\n\n(total: $5.10)\n[assistant]"
    )


def test_a_demand_follows_the_note_it_is_about() -> None:
    assert '[tool]total: $5.10\nYour next reply must contain, word for word: "$5.10".' in prompt_of(
        ANY_ROLE, TURNS, "$5.10"
    )
    assert '[system]Your next reply must contain, word for word: "$5.10".' in prompt_of(ANY_ROLE, TURNS[:-1], "$5.10")


def test_a_call_without_a_caller_s_word_still_has_a_prompt() -> None:
    for template in (ANY_ROLE, STRICT, MISTRAL):
        assert OPENING in prompt_of(template, TURNS[:1])


def test_a_template_that_shows_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="chat_template"):
        find_style(codec("[assistant]"))
    with pytest.raises(ConfigError, match="never"):
        find_style(codec("{{ raise_exception('never') }}"))


def test_a_long_chat_loses_its_oldest_turns_and_never_its_instructions() -> None:
    made = ChatPrompts(codec(ANY_ROLE), 300)
    turns = [PromptTurn("system", "Be brief.")]
    starts = []
    for index in range(40):
        turns += [PromptTurn("user", f"a large mocha {index}"), PromptTurn("agent", f"Reply {index}.")]
        tokens = made.write("call", turns)
        prompt = codec(ANY_ROLE).decode(tokens)
        assert len(tokens) <= 300
        assert prompt.startswith("[system]Be brief.\n[user]") and f"mocha {index}\n" in prompt
        starts.append(prompt[:40])
    assert starts[0] != starts[-1]
    moves = sum(earlier != later for earlier, later in itertools.pairwise(starts))
    assert moves <= 12, "the cut moves seldom, or the prefix cache is useless"
    made.forget("call")
    assert made._dropped == {}


def test_one_turn_beyond_all_positions_keeps_its_beginning_and_its_end() -> None:
    made = ChatPrompts(codec(ANY_ROLE), 100)
    tokens = made.write("call", [PromptTurn("system", "Be brief."), PromptTurn("user", "mocha " * 200)])
    assert len(tokens) == 100
    prompt = codec(ANY_ROLE).decode(tokens)
    assert prompt.startswith("[system]Be brief.") and prompt.endswith("\n[assistant]")


# --- the built-in family ----------------------------------------------------------------------------------------------


def test_the_built_in_family_hears_what_a_recogniser_would_write() -> None:
    made = prompt_writer(tiny.codec(), 192)
    assert isinstance(made, DialoguePrompts)
    turns = (PromptTurn("system", "Be brief."), PromptTurn("user", "A tea, $30!"))
    expected = tiny.codec().encode_prompt([("system", "Be brief."), ("user", "a tea thirty dollars")])
    assert made.write("call", turns) == expected
    assert made.warm_part("call", turns) == expected[:-1]


def test_a_long_conversation_loses_its_oldest_turns_and_never_its_instructions() -> None:
    made = prompt_writer(tiny.codec(), 192)
    system = tiny.codec().encode_turn("system", "Be brief.")
    turns = [PromptTurn("system", "Be brief.")]
    starts: list[tuple[int, ...]] = []
    for index in range(60):
        turns += [PromptTurn("user", f"a large mocha {index}"), PromptTurn("agent", "A large tea. Goodbye!")]
        tokens = made.write("call", turns)
        assert tokens[: len(system)] == system
        assert len(tokens) <= 192
        starts.append(tuple(tokens[: len(system) + 16]))
    moves = sum(earlier != later for earlier, later in itertools.pairwise(starts[10:]))
    assert moves <= 15, "a cut that moved every turn would make the prefix cache useless"
    made.forget("call")
    assert made._dropped == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [lambda: DialoguePrompts(tiny.codec(), 300), lambda: ChatPrompts(codec(TOOLS), 370)])
def test_what_the_caller_asked_stays_in_front_of_its_results(make: Callable[[], PromptWriter]) -> None:
    """A reply to a result whose question was dropped would answer nobody."""
    writer = make()
    turns = [
        PromptTurn("user", "hello there " * 15),
        PromptTurn("agent", "Hello. " * 20),
        PromptTurn("user", "A mocha"),
    ]
    for number in range(2):
        call_id = f"call_{number}"
        turns.append(PromptTurn("agent", "", ToolCall("look", {}, "look"), call_id))
        turns.append(PromptTurn("note", "a large tea " * 30, call_id=call_id))
    prompt = writer.write("call", turns)
    own = tiny.codec() if isinstance(writer, DialoguePrompts) else codec(TOOLS)
    text = own.decode(prompt).lower()
    assert "mocha" in text and "hello" not in text
