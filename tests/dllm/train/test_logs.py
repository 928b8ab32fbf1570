"""What a run writes down can be read after a crash, and kept without its bulk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dllm.errors import CheckpointError
from dllm.train.logs import RunLog, open_board, plot, publish, read_log, thinned


def line(step: int, loss: float = 1.0) -> dict[str, Any]:
    return {
        "step": step,
        "tokens": 10 * step,
        "loss": loss,
        "learning_rate": 1.0,
        "seconds": float(step),
        "sources": {},
    }


def test_steps_that_a_resumed_run_made_again_are_counted_once_and_a_cut_line_not_at_all(tmp_path: Path) -> None:
    steps = [line(1), line(2), line(3), line(4), line(3, 2.0)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"step": 4, "lo')
    assert [(step["step"], step["loss"]) for step in read_log(tmp_path / "log.jsonl")] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_a_thinned_log_keeps_the_last_step_and_the_means(tmp_path: Path) -> None:
    short = thinned([line(step, float(step)) for step in range(1, 8)], most=3)
    assert [(each["step"], each["tokens"], each["loss"]) for each in short] == [
        (3, 30, 2.0),
        (6, 60, 5.0),
        (7, 70, 7.0),
    ]
    assert all("sources" not in each for each in short)
    assert thinned([], most=3) == []


class Noted:
    """A board that keeps what it is told."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.texts: list[tuple[str, str, int]] = []
        self.is_closed = False

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.append((tag, value, step))

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.texts.append((tag, text, step))

    def flush(self) -> None: ...

    def close(self) -> None:
        self.is_closed = True


def test_a_board_gets_every_number_and_the_replies_and_files_the_same(tmp_path: Path) -> None:
    board = Noted()
    log = RunLog(tmp_path, board)
    log.step(line(3, 2.0))
    log.samples([{"step": 3, "prompt": "a tea", "reply": "Sure.", "reference": "Coming up."}])
    log.close()
    assert ("loss", 2.0, 3) in board.scalars and {tag for tag, *_ in board.scalars}.isdisjoint({"step", "sources"})
    assert board.texts == [("sample 0", "a tea\n\n**Sure.**", 3)]
    assert board.is_closed
    assert read_log(tmp_path / "log.jsonl") == [line(3, 2.0)]
    assert json.loads((tmp_path / "samples.jsonl").read_text())["reply"] == "Sure."


def test_without_tensorboard_there_is_no_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert open_board(tmp_path) is None


def test_nothing_is_drawn_of_nothing_and_nothing_published_without_a_record(tmp_path: Path) -> None:
    assert not plot([], tmp_path / "curves.png")
    with pytest.raises(CheckpointError, match="no record of a run"):
        publish(tmp_path, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
