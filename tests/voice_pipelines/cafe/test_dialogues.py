"""Training dialogues: reproducible, and replies that say what their notes state."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from voice_pipelines.cafe.dialogues import dialogues
from voice_pipelines.cafe.phrases import phrase_book

PRICE = re.compile(r"\$\d+\.\d\d")


@pytest.fixture(scope="module")
def sample() -> list[dict[str, object]]:
    return list(dialogues(400, "test"))


def exchanges(dialogue: dict[str, object]) -> list[tuple[str, str, str, list[str]]]:
    """Return (caller's words, note, reply, pins) of each reply to the caller; "" where there is no note."""
    found, said, note = [], "", ""
    turns = dialogue["turns"]
    assert isinstance(turns, list)
    for turn in turns:
        match turn["role"]:
            case "user":
                said, note = turn["text"], ""
            case "note":
                note = turn["text"]
            case "agent" if said:
                found.append((said, note, turn["text"], turn.get("pins", [])))
    return found


def test_the_same_seed_writes_the_same_dialogues() -> None:
    assert list(dialogues(30, "a")) == list(dialogues(30, "a"))
    assert list(dialogues(30, "a")) != list(dialogues(30, "b"))


def test_the_command_writes_two_files_that_share_no_dialogue(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "voice_pipelines.cafe.dialogues",
        "--out",
        str(tmp_path),
        "--count",
        "20",
        "--dev",
        "10",
        "--seed",
        "7",
    ]
    roots = [str(Path(__file__).parents[3] / part) for part in ("", "kernels", "pipelines")]
    subprocess.run(command, check=True, env={"PYTHONPATH": ":".join(roots)})
    train, dev = (
        [json.loads(line) for line in (tmp_path / f"cafe.{part}.jsonl").read_text().splitlines()]
        for part in ("train", "dev")
    )
    assert (len(train), len(dev)) == (20, 10)
    assert train == list(dialogues(20, "train-7"))
    assert not {d["id"] for d in train} & {d["id"] for d in dev}
    assert all(set(d) == {"id", "domain", "turns"} for d in train)


def test_turns_have_the_order_that_a_conversation_has(sample: list[dict[str, object]]) -> None:
    after = {
        "system": {"user", "agent"},
        "user": {"note", "agent"},
        "note": {"agent"},
        "agent": {"user"},
    }
    for dialogue in sample:
        turns = dialogue["turns"]
        assert isinstance(turns, list)
        roles = [turn["role"] for turn in turns]
        assert roles[0] == "system"
        assert roles[-1] == "agent"
        assert all(second in after[first] for first, second in itertools.pairwise(roles))
        assert all(turn["text"] == turn["text"].strip() != "" for turn in turns)


def test_pins_are_from_the_note_hold_all_its_prices_and_stand_in_the_reply(sample: list[dict[str, object]]) -> None:
    named = 0
    for dialogue in sample:
        for _, note, reply, pins in exchanges(dialogue):
            assert [pin for pin in pins if "$" in pin] == list(dict.fromkeys(PRICE.findall(note)))
            assert all(pin in reply for pin in pins)
            assert all(
                word in note for pin in pins for word in pin.replace(",", "").split() if word not in ("and", "a", "an")
            )
            named += any("$" not in pin for pin in pins)
    assert named > 0


def test_no_reply_has_a_price_that_its_note_does_not_have(sample: list[dict[str, object]]) -> None:
    for dialogue in sample:
        for _, note, reply, _ in exchanges(dialogue):
            assert set(PRICE.findall(reply)) <= set(PRICE.findall(note)), (note, reply)


def test_replies_name_every_item_of_their_note_word_for_word(sample: list[dict[str, object]]) -> None:
    for dialogue in sample:
        for _, note, reply, _ in exchanges(dialogue):
            for fact in note.split("; "):
                key, _, value = fact.partition(": ")
                if key in ("order", "add", "change", "repeat", "remove", "size missing", "not on the menu", "ready in"):
                    assert all(name.lower() in reply.lower() for name in value.split(", ")), (note, reply)


def test_replies_ask_for_what_is_missing_and_never_ask_after_the_goodbye(sample: list[dict[str, object]]) -> None:
    for dialogue in sample:
        for _, note, reply, _ in exchanges(dialogue):
            if "size missing" in note:
                assert reply.endswith("?")
            if note.startswith("done; total") or "; done; total" in note:
                assert "?" not in reply


def test_replies_are_short(sample: list[dict[str, object]]) -> None:
    lengths = [len(reply.split()) for dialogue in sample for _, _, reply, _ in exchanges(dialogue)]
    assert sum(length <= 30 for length in lengths) / len(lengths) > 0.97


def test_callers_write_like_a_recogniser(sample: list[dict[str, object]]) -> None:
    for dialogue in sample:
        for said, _, _, _ in exchanges(dialogue):
            assert re.fullmatch(r"[a-z0-9' ]+", said), said


def test_every_kind_of_note_is_in_the_data(sample: list[dict[str, object]]) -> None:
    keys = Counter(
        fact.partition(":")[0] for d in sample for _, note, _, _ in exchanges(d) for fact in note.split("; ")
    )
    expected = {
        "order",
        "add",
        "change",
        "remove",
        "repeat",
        "size missing",
        "total",
        "done",
        "ready in",
        "price",
        "order empty",
    }
    assert expected | {
        "not added",
        "on the menu",
        "not on the menu",
        "allergens unknown",
        "milks",
        "teas",
        "drinks",
    } <= set(keys)


def test_replies_vary(sample: list[dict[str, object]]) -> None:
    """The most frequent first three words begin fewer than one reply in twenty."""
    starts = Counter(" ".join(reply.split()[:3]) for d in sample for _, _, reply, _ in exchanges(d))
    assert starts.most_common(1)[0][1] / sum(starts.values()) < 0.05


def test_the_phrase_book_has_no_empty_list() -> None:
    book = phrase_book()
    for lines in (book.replies, book.caller, book.agent, book.cafe):
        assert all(lines.values())
    assert all(exchange.said and exchange.answers for exchange in (*book.talk, *book.facts.values(), book.farewell))


def test_prompts_are_short(sample: list[dict[str, object]]) -> None:
    for dialogue in sample:
        turns = dialogue["turns"]
        assert isinstance(turns, list)
        assert 30 <= len(turns[0]["text"].split()) <= 140
