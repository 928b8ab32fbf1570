"""The terminal example: what a frame shows, with and without a terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from dllm import loader
from dllm.commands.screen import printable
from dllm.drafts import Cell, CellState, DraftSpec, Plan
from examples import diffusion_effect as effect
from examples.diffusion_effect import Look, Piece
from tests.dllm import tiny


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("effect")
    loader.save(path, tiny.spec(), tiny.model().state_dict(), tiny.codec(), dtype=None)
    return path


def cell(text: str, state: CellState) -> Cell:
    (token,) = tiny.codec().encode(text)
    return Cell(token, state, 0.5)


def test_positions_look_like_what_they_are() -> None:
    end = Cell(tiny.codec().special.end, CellState.COMMITTED, 1.0)
    mask = Cell(tiny.codec().special.mask, CellState.MASKED, 0.0)
    before = (cell(" a", CellState.COMMITTED), mask, mask, mask)
    now = (
        cell(" a", CellState.COMMITTED),
        cell(" tea", CellState.COMMITTED),
        cell("$", CellState.PINNED),
        cell("?", CellState.PROVISIONAL),
        mask,
        end,
        cell(" a", CellState.PROVISIONAL),
    )
    found = effect.pieces(now, before, tiny.codec())
    assert [piece.look for piece in found] == [Look.OLD, Look.NEW, Look.PIN, Look.GUESS, Look.MASK]
    assert effect.plain(found) == " a tea$(?) ·"


def test_lines_break_at_spaces_and_never_exceed_their_columns() -> None:
    found = [Piece(" one two", Look.OLD), Piece(" three", Look.NEW), Piece(" " + "x" * 25, Look.GUESS)]
    lines = ["".join(piece.text for piece in line) for line in effect.wrap(found, 10)]
    assert lines == ["one two", "three", "x" * 10, "x" * 10, "x" * 5]
    assert effect.wrap([], 10) == []
    assert effect.wrap([Piece("   ", Look.MASK)], 10) == []


def perform(folder: Path, stream: io.StringIO) -> str:
    checkpoint = loader.load(folder)
    prompt = tuple(tiny.codec().encode_prompt([("user", "a tea please")]))
    spec = DraftSpec(prompt, "effect", 16, Plan(4, 4, by_clause=False))
    return effect.perform(checkpoint, spec, "a tea \x1b[2J please", stream)


def test_without_a_terminal_each_step_is_plain_text(folder: Path) -> None:
    stream = io.StringIO()
    text = perform(folder, stream)
    shown = stream.getvalue()
    assert "\x1b" not in shown
    assert shown.count("step ") >= 1
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert re.search(r"\d+ tokens in \d+ steps", shown)
    last = shown.split("\n\n")[-2].splitlines()[1:]
    assert "".join("".join(last).split()) == "".join(printable(text).split())


def test_on_a_terminal_frames_replace_each_other_and_the_cursor_comes_back(folder: Path) -> None:
    stream = Terminal()
    perform(folder, stream)
    shown = stream.getvalue()
    assert shown.startswith("\x1b[?25l")
    assert "\x1b[?25h" in shown
    assert shown.count("\x1b[J") == shown.count("step ")
    assert "\x1b[2J" not in shown  # what the prompt brings does not reach the terminal
    visible = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert all(len(line) <= 80 for line in visible.replace("\r", "\n").splitlines())


def test_mistakes_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert effect.main(["--model", str(folder), "--width", "3"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("diffusion_effect: width = 3")
    assert effect.main(["--model", str(folder), "--width", "16", "--steps", "3"]) == 0
    assert "you: hi" in capsys.readouterr().out
