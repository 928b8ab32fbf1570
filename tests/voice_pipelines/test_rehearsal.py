import json
import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dllm.calls import Call, read_call, typed_arguments, write_call
from dllm.calls import Tool as CalledTool
from dllm.spoken import spoken_form
from dllm.train.data import read_dialogues
from voice_pipelines.rehearsal.__main__ import SOURCES, dialogues, main, write_dialogue
from voice_pipelines.rehearsal.facts import Conversation, imagine_business
from voice_pipelines.rehearsal.schemas import Parameter, Tool, is_held_back
from voice_pipelines.rehearsal.script import MOST_WORDS, Script
from voice_pipelines.rehearsal.tools import Clerk
from voice_pipelines.rehearsal.words import fill, sentence, table

COUNT = 250
PARTS = [(source, part) for source in SOURCES for part in ("train", "dev")]

FIGURE = re.compile(r"\d[\d.:,]*\d|\d")
NAME = re.compile(r"(?<=[a-z,;] )[A-Z][A-Za-z]+")
DAYS = frozenset("monday tuesday wednesday thursday friday saturday sunday".split())
"""Days follow from "weekdays" and "every day", so an answer may name one that nobody named."""
ALWAYS_CAPITAL = frozenset({"english", "i"}) | DAYS | {f"{day}s" for day in DAYS}


@cache
def written(source: str, part: str) -> tuple[dict[str, Any], ...]:
    return tuple(dialogues(source, part, COUNT, "test"))


def agent_turns(dialogue: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each agent's turn with all text that stands before it and is not the agent's."""
    before = ""
    for turn in dialogue["turns"]:
        if turn["role"] == "agent":
            yield before, turn
        else:
            before += f" {turn['text']}"


@pytest.mark.parametrize(("source", "part"), PARTS)
def test_every_dialogue_is_read_by_the_trainer(tmp_path: Path, source: str, part: str) -> None:
    path = tmp_path / f"{source}.{part}.jsonl"
    path.write_text("".join(json.dumps(dialogue) + "\n" for dialogue in written(source, part)), encoding="utf-8")
    assert len(list(read_dialogues(path))) == COUNT


@pytest.mark.parametrize(("source", "part"), PARTS)
def test_agent_turns_are_short_and_plain(source: str, part: str) -> None:
    for dialogue in written(source, part):
        spoken = [turn for _, turn in agent_turns(dialogue)]
        assert spoken, dialogue["id"]
        for text in (turn["text"] for turn in spoken if "call" not in turn):
            assert 0 < len(text.split()) <= MOST_WORDS, text
            assert not re.search(r"[{}\[\]|*#<>]", text), text
            assert text[0].isupper() or not text[0].isalpha(), text
            assert text[-1] in ".?!", text
            assert ".." not in text and " ." not in text and " ," not in text, text


@pytest.mark.parametrize(("source", "part"), PARTS)
def test_prompts_and_callers_hold_no_template(source: str, part: str) -> None:
    for dialogue in written(source, part):
        for turn in dialogue["turns"]:
            assert not re.search(r"[{}\[\]|]", turn.get("text", "")), turn


@pytest.mark.parametrize(("source", "part"), PARTS)
def test_a_stated_figure_stands_in_the_prompt_a_note_or_what_the_caller_said(source: str, part: str) -> None:
    for dialogue in written(source, part):
        for before, turn in agent_turns(dialogue):
            figures = set(FIGURE.findall(turn.get("text", "")))
            assert figures <= set(FIGURE.findall(before)), (turn["text"], before)


@pytest.mark.parametrize(("source", "part"), PARTS)
def test_a_stated_name_stands_in_the_prompt_a_note_or_what_the_caller_said(source: str, part: str) -> None:
    for dialogue in written(source, part):
        for before, turn in agent_turns(dialogue):
            heard = f" {spoken_form(before)} "
            for name in NAME.findall(turn.get("text", "")):
                assert name.lower() in ALWAYS_CAPITAL or f" {name.lower()}" in heard, (name, turn["text"], before)


@pytest.mark.parametrize("part", ["train", "dev"])
def test_argument_words_were_said_by_somebody_in_that_order(part: str) -> None:
    calls = 0
    for dialogue in written("tools", part):
        said = " "
        for turn in dialogue["turns"]:
            if "call" not in turn:
                said += f"{spoken_form(turn['text'])} " if turn["role"] in ("user", "agent") else ""
                continue
            calls += 1
            for value in turn["call"]["arguments"].values():
                assert f" {value} " in said, (value, said)
    assert calls > COUNT / 2


@pytest.mark.parametrize("part", ["train", "dev"])
def test_every_call_fits_a_tool_of_its_dialogue(part: str) -> None:
    for dialogue in written("tools", part):
        tools = {tool["name"]: CalledTool.from_json(tool) for tool in dialogue["tools"]}
        assert len(tools) == len(dialogue["tools"])
        for call in (turn["call"] for turn in dialogue["turns"] if "call" in turn):
            known = Call(call["name"], call["arguments"])
            assert read_call(write_call(known)) == known
            typed_arguments(known, tools[call["name"]])


@pytest.mark.parametrize("part", ["train", "dev"])
def test_a_call_is_followed_by_its_note(part: str) -> None:
    for dialogue in written("tools", part):
        turns = dialogue["turns"]
        for turn, following in pairwise(turns):
            if "call" in turn:
                assert following["role"] == "note"
                assert following["text"].startswith(turn["call"]["name"])
        assert "call" not in turns[-1]


def test_pins_are_pieces_of_the_note_and_only_half_of_the_dialogues_have_them() -> None:
    pinned = 0
    for dialogue in written("tools", "train"):
        note = ""
        has_pins = False
        for turn in dialogue["turns"]:
            note += turn["text"] if turn["role"] == "note" else ""
            for pin in turn.get("pins", ()):
                has_pins = True
                assert pin in note and pin in turn["text"]
        pinned += has_pins
    assert 0.15 < pinned / COUNT < 0.6  # of all dialogues, of which a third tells no field


def test_facts_of_the_prompt_are_never_pinned() -> None:
    assert not any("pins" in turn for dialogue in written("facts", "train") for turn in dialogue["turns"])


def test_two_results_in_one_answer_stay_short_whatever_details_the_first_has() -> None:
    kinds = ("person", "phone", "day", "time")
    details = tuple(Parameter(kind, kind, is_required=True) for kind in kinds)
    booking = Tool("book", "a photo session", "book_photo_session", "", details)
    tools = (Tool("connect", "a nurse", "connect_to_nurse", "", ()), booking)
    for seed in range(500):
        rng = random.Random(seed)
        script = Script("tools", "You answer the phone.", rng, [tool.described() for tool in tools])
        Clerk(script, tools, confirms=False).two_tasks(*tools)
        assert [turn["role"] for turn in script.turns[1:]] == ["user", "agent", "note", "agent", "note", "agent"]


def test_held_back_schemas_never_meet_training() -> None:
    names: dict[str, set[str]] = {}
    sets: dict[str, set[frozenset[str]]] = {}
    for part in ("train", "dev"):
        tools = [tool for dialogue in written("tools", part) for tool in dialogue["tools"]]
        names[part] = {tool["name"] for tool in tools}
        sets[part] = {frozenset(tool["parameters"]["properties"]) for tool in tools}
    assert not names["train"] & names["dev"]
    assert not sets["train"] & sets["dev"]
    assert len(names["train"]) > COUNT
    for name, keys in ((name, keys) for name in names["dev"] for keys in sets["dev"]):
        assert is_held_back(name, keys) == (True, True)


def test_the_tool_that_is_called_is_not_always_the_first() -> None:
    places = [
        [tool["name"] for tool in dialogue["tools"]].index(turn["call"]["name"])
        for dialogue in written("tools", "train")
        for turn in dialogue["turns"]
        if "call" in turn
    ]
    assert {0, 1, 2} <= set(places)


def test_what_the_prompt_does_not_tell_gets_no_figure_and_no_name() -> None:
    for seed in range(150):
        rng = random.Random(seed)
        business = imagine_business(rng)
        conversation = Conversation(business, Script("facts", business.prompt, rng))
        for question in business.untold:
            answer = conversation.worded(question)
            assert not re.search(r"\d|\$", answer), answer
            assert not NAME.findall(answer.replace(" I ", " i ").replace(" I'", " i'")), answer


def test_what_is_told_stands_in_the_prompt() -> None:
    for seed in range(150):
        rng = random.Random(seed)
        business = imagine_business(rng)
        conversation = Conversation(business, Script("facts", business.prompt, rng))
        assert business.name in business.prompt
        for question in business.told:
            for _ in range(3):
                assert set(FIGURE.findall(conversation.worded(question))) <= set(FIGURE.findall(business.prompt))


def test_about_a_fifth_of_the_questions_has_no_answer_in_the_prompt() -> None:
    unknown = [template.split("[")[0].split("{")[0].strip() for template in table("facts")["unknown"]]
    openings = tuple(opening for opening in unknown if len(opening) > 8)
    answers = [turn["text"] for dialogue in written("facts", "train") for _, turn in agent_turns(dialogue)]
    share = sum(answer.startswith(openings) for answer in answers) / len(answers)
    assert 0.05 < share < 0.3


def test_prompts_are_short() -> None:
    lengths = sorted(len(dialogue["turns"][0]["text"].split()) for dialogue in written("facts", "train"))
    assert lengths[0] >= 10 and lengths[-1] <= 110


def test_business_names_are_hardly_ever_the_same() -> None:
    names = {imagine_business(random.Random(seed)).name for seed in range(400)}
    assert len(names) > 380


def test_silence_is_answered_and_a_second_one_ends_the_call() -> None:
    ended = 0
    for dialogue in written("manners", "train"):
        turns = dialogue["turns"]
        for index, turn in enumerate(turns):
            if turn["role"] == "note" and turn["text"].startswith("silence"):
                assert turns[index + 1]["role"] == "agent"
                if index > 2 and turns[index - 2]["text"].startswith("silence") and index + 2 == len(turns):
                    ended += 1
    assert ended > COUNT / 50


def test_an_interruption_note_tells_words_the_agent_said_and_the_caller_speaks_next() -> None:
    seen = 0
    for dialogue in written("manners", "train"):
        turns = dialogue["turns"]
        for index, turn in enumerate(turns):
            if turn["role"] == "note" and turn["text"].startswith("interrupted after: "):
                seen += 1
                heard = turn["text"].removeprefix("interrupted after: ")
                assert turns[index - 1]["role"] == "agent" and heard in turns[index - 1]["text"]
                assert turns[index + 1]["role"] == "user"
    assert seen > COUNT / 20


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_seed_gives_the_same_dialogue_and_another_seed_another(source: str) -> None:
    assert write_dialogue(source, "train", "a") == write_dialogue(source, "train", "a")
    assert write_dialogue(source, "train", "a")["turns"] != write_dialogue(source, "train", "b")["turns"]


def test_a_source_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="'fact', expected one of facts, tools, manners"):
        write_dialogue("fact", "train", "a")


def test_the_command_writes_six_files(tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "data"), "--count", "3", "--dev", "2", "--seed", "x"])
    counts = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (tmp_path / "data").iterdir()}
    assert counts == {f"{source}.{part}.jsonl": 3 if part == "train" else 2 for source, part in PARTS}


def test_alternatives_and_slots_are_filled() -> None:
    rng = random.Random(0)
    found = {fill("[a|b|] {x} [c[d|e]|f]", rng, {"x": "[y]"}) for _ in range(200)}
    assert found == {f"{a}[y] {c}".strip() for a in ("a ", "b ", "") for c in ("cd", "ce", "f")}


def test_a_slot_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError):
        fill("{x}", random.Random(0), {})


def test_sentences_begin_with_capitals() -> None:
    assert sentence("sure. that's 8 am. you pay $3.50. ok?") == "Sure. That's 8 am. You pay $3.50. Ok?"


def test_an_argument_that_nobody_said_is_refused() -> None:
    script = Script("tools", "You answer the phone.", random.Random(0))
    script.hear("a table on friday")
    with pytest.raises(AssertionError, match="nobody said 'monday'"):
        script.call("book", {"day": "monday"})


def test_a_shortened_reply_keeps_the_pins_it_still_holds() -> None:
    script = Script("tools", "You answer the phone.", random.Random(0))
    script.say("The code is K72. It costs $5.", pins=("K72", "$5"))
    script.keep("The code is K72.")
    assert script.turns[-1] == {"role": "agent", "text": "The code is K72.", "pins": ["K72"]}
