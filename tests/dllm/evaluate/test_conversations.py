"""Fixed callers: what they may say, what a call is answered with, and a page that is the same on every run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dllm import loader
from dllm.calls import Tool
from dllm.cli import main
from dllm.drafts import Finished, Plan, Usage
from dllm.errors import ConfigError
from dllm.evaluate import conversations
from dllm.evaluate.conversations import Caller, Line, Said, hold, read_callers, write_page
from tests.dllm import tiny

CODEC = tiny.codec()
BOOK = Tool("book", "books a table", {"properties": {"people": {"type": "integer"}}})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    loader.save(path, tiny.spec(), tiny.model(1, 4.0).state_dict(), CODEC)
    return path


class Script:
    """Writes given replies and keeps the prompts."""

    def __init__(self, *replies: tuple[int, ...]) -> None:
        self._replies: Iterator[tuple[int, ...]] = iter(replies)
        self.prompts: list[str] = []

    def __call__(self, engine: object, prompt: tuple[int, ...], *_: object) -> Finished:
        self.prompts.append(" ".join(CODEC.tokenizer.id_to_token(token) for token in prompt).replace("Ġ", ""))
        reply = next(self._replies)
        return Finished(None, "end_of_turn", reply, (1.0,) * len(reply), 1, 2, 0, Usage())  # type: ignore[arg-type]


def called(text: str) -> tuple[int, ...]:
    return (CODEC.special.call, *CODEC.encode_text(text))


def said(text: str) -> tuple[int, ...]:
    return tuple(CODEC.encode_text(text))


def held(caller: Caller, script: Script, model: Path, monkeypatch: pytest.MonkeyPatch) -> list[Line]:
    monkeypatch.setattr(conversations, "_write", script)
    return hold(caller, loader.load(model), Plan(), 16)


def test_a_call_is_answered_before_the_agent_speaks(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller("t", "Hi.", (Said("A table for 4."),), (BOOK,), {"book": {"table": 12}})
    lines = held(caller, Script(called("book; people: four"), said("Table 12.")), model, monkeypatch)
    assert lines == [
        Line("caller", "a table for four"),
        Line("call", "book; people: four", (), (1, 2)),
        Line("note", "book: table: 12"),
        Line("agent", "Table 12.", (), (1, 2)),
    ]


@pytest.mark.parametrize(
    ("call", "note"),
    [
        ("book; people: four", "book failed: full"),
        ("fly; to: paris", "fly failed: there is no such tool"),
        ("book; four", "book failed: a detail is missing"),
    ],
)
def test_failures_are_told_to_the_model(call: str, note: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller("t", "", (Said("a table"),), (BOOK,), {"book": {"failed": "full"}})
    lines = held(caller, Script(called(call), said("Sorry.")), model, monkeypatch)
    assert [line.text for line in lines if line.who == "note"] == [note]


def test_a_model_that_only_calls_is_stopped(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(*[called("book")] * 9)
    held(Caller("t", "", (Said("a table"),), (BOOK,)), script, model, monkeypatch)
    assert len(script.prompts) == conversations.MOST_CALLS + 1


def test_notes_of_the_runtime_stand_before_the_caller_s_words_and_others_behind(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = (Said("tea", "order: tea"), Said("no", "interrupted after: tea is"), Said("", "silence: 8 seconds"))
    lines = held(Caller("t", "", turns), Script(*[said("Yes.")] * 3), model, monkeypatch)
    assert [line.who for line in lines] == ["caller", "note", "agent", "note", "caller", "agent", "note", "agent"]


def test_the_page_prints_everything_and_marks_what_was_pinned() -> None:
    caller = Caller("Tea", "You sell *tea*.", (), (BOOK,))
    lines = [
        Line("caller", "tea please"),
        Line("call", "book; people: four", (), (1, 0)),
        Line("note", "total: $5"),
        Line("agent", "That's $5.", ("$5",), (2, 3), True),
        Line("agent", ""),
    ]
    page = write_page(
        [(caller, lines), (caller, ConfigError("width", 7, "more"))], {"model": "m", "sha256": "ab"}, Plan(), 40
    )
    assert page.split("## Tea\n\n", 1)[1].startswith(
        "> You sell \\*tea\\*. Tools: \\[book; people?: integer\\] books a table.\n\n"
        "- caller: tea please\n- calls `book; people: four` [1+0]\n- *total: $5*\n"
        "- agent: That's **$5**. [2+3] (cut: the canvas was full)\n- agent: (nothing)\n"
    )
    assert page.endswith("Not held: width = 7: expected more\n")


def test_the_callers_of_the_repository_can_be_read_and_their_calls_answered() -> None:
    callers = read_callers()
    assert len(callers) >= 8
    for caller in callers:
        assert caller.turns
        assert set(caller.results) <= {tool.name for tool in caller.tools}
        for turn in caller.turns:
            assert turn.caller or turn.note
            assert not turn.pins or all(pin in turn.note or pin in caller.system for pin in turn.pins)


@pytest.mark.parametrize("text", ["", "[[conversation]]\ntitle = 'a'", "[[conversation]]\nsurprise = 1", "= no"])
def test_files_of_another_kind_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "callers.toml").write_text(text)
    with pytest.raises(ConfigError):
        read_callers(tmp_path / "callers.toml")


def test_the_command_writes_the_same_page_twice(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callers = [Caller("Tea", "You sell tea.", (Said("a large tea"), Said("thanks", "total: $2", ("$2",))))]
    monkeypatch.setattr(conversations, "read_callers", lambda: callers)
    pages = []
    for name in ("one.md", "two.md"):
        command = ["eval", "conversations", "--model", str(model), "--width", "8", "--out", str(tmp_path / name)]
        assert main(command) == 0
        pages.append((tmp_path / name).read_text())
    assert pages[0] == pages[1]
    assert "caller: a large tea" in pages[0]
    assert "**$2**" in pages[0]
