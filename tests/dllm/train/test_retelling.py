"""Dialogues told anew: what counts as saying the same, what stays untouched, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dllm import loader
from dllm.calls import Call, write_call
from dllm.cli import main
from dllm.train import retelling
from dllm.train.data import Turn, read_dialogues
from dllm.train.retelling import Tally, retell, says_the_same
from tests.dllm import tiny

SYSTEM = Turn("system", "You answer the phone of Nadia's. A haircut costs $38, a beard trim $15. Ask for Clara.")


def same(text: str, reference: str, *pins: str, heard: str = "how much is a haircut") -> bool:
    return says_the_same(text, [SYSTEM, Turn("user", heard), Turn("agent", reference, pins)], 2)


@pytest.mark.parametrize(
    "text",
    [
        "A haircut is $38.",
        "That's $38.",
        "It costs $38. Anything else?",
    ],
)
def test_other_words_with_the_same_facts_say_the_same(text: str) -> None:
    assert same(text, "We charge $38 for it.")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("A haircut is $15.", "another fact of the prompt"),
        ("A haircut is $38, a trim $15.", "a fact more"),
        ("I don't know.", "a fact less"),
        ("A haircut is $38. Take 20 minutes.", "a figure from nowhere"),
        ("A haircut a haircut is $38.", "words said twice"),
        ("", "nothing"),
    ],
)
def test_what_differs_in_a_fact_does_not(text: str, why: str) -> None:
    assert not same(text, "We charge $38 for it."), why


def test_every_pin_is_kept_word_for_word() -> None:
    assert same("Yes, a window seat is fine.", "Sure, a window seat.", "a window seat")
    assert not same("Yes, the window is fine.", "Sure, a window seat.", "a window seat")


def test_figures_of_the_caller_may_be_said() -> None:
    assert same("For 4 people, sure.", "Yes, of course.", heard="a table for four")


def test_calls_stay_as_they_are() -> None:
    call = write_call(Call("book", {"day": "friday"}))
    turns = [SYSTEM, Turn("user", "on friday"), Turn("agent", call, is_call=True)]
    assert not says_the_same(call, turns, 2)


BODIES = [
    {
        "id": "1",
        "domain": "shop",
        "tools": [
            {"name": "book", "description": "books", "parameters": {"type": "object", "properties": {"day": {}}}}
        ],
        "turns": [
            {"role": "user", "text": "Friday please."},
            {"role": "agent", "call": {"name": "book", "arguments": {"day": "friday"}}},
            {"role": "note", "text": "book: code: K72"},
            {"role": "agent", "text": "Booked, the code is K72.", "pins": ["K72"]},
            {"role": "user", "text": "Thanks."},
            {"role": "agent", "text": "You're welcome."},
        ],
    },
    {"id": "2", "domain": "shop", "turns": [{"role": "user", "text": "Hi."}, {"role": "agent", "text": "Hello."}]},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    (data / "shop.train.jsonl").write_text("".join(json.dumps(body) + "\n" for body in BODIES), "utf-8")
    model = tiny.model(0)
    loader.save(tmp_path / "model", model.spec, dict(model.named_parameters()), tiny.codec())
    return tmp_path


def test_only_replies_that_say_the_same_are_exchanged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writing itself is replaced: a random model says nothing that could be kept."""
    replies = iter([{1: "Booked for today.", 3: "The code is K72.", 5: "Bye."}, {1: "Hi there."}])
    codec = tiny.codec()

    def written(engine: object, places: dict[object, int]) -> dict[int, tuple[int, ...]]:
        told = next(replies)
        return {at + shift: tuple(codec.encode(told[at])) for at in told for shift in [min(places.values()) - 1]}

    monkeypatch.setattr(retelling, "_written", written)
    tally = Tally()
    told = list(retell(loader.load(folder / "model"), folder / "data" / "shop.train.jsonl", tally))
    first, second = (body["turns"] for body in told)
    assert [turn.get("text") for turn in first] == [
        "Friday please.",
        None,
        "book: code: K72",
        "The code is K72.",
        "Thanks.",
        "Bye.",
    ]
    assert first[1] == BODIES[0]["turns"][1], "a call is what it was"  # type: ignore[index]
    assert second[1]["text"] == "Hi there."
    assert (tally.dialogues, tally.turns, tally.retold, tally.same) == (2, 4, 3, 0)


def test_the_command_writes_dialogues_that_can_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["retell", "--model", str(folder / "model"), "--data", str(folder / "data"), "--out"]
    assert main([*arguments, str(folder / "out"), "--source", "shop=1"]) == 0
    assert "1 dialogues" in capsys.readouterr().out
    (dialogue,) = read_dialogues(folder / "out" / "shop.train.jsonl")
    assert [turn.role for turn in dialogue.turns] == ["system", "user", "agent", "note", "agent", "user", "agent"]


@pytest.mark.parametrize("wanted", ["shop", "shop=0", "shop=x", "cafe=3"])
def test_a_source_that_makes_no_sense_is_refused(folder: Path, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(folder / "model"), "--data", str(folder / "data"), "--out", str(folder / "out")]
    assert main(["retell", *arguments, "--source", wanted]) == 2
    assert "--source" in capsys.readouterr().err
    assert main(["retell", *arguments[:-1], str(folder / "data")]) == 2, "the data would be overwritten"
