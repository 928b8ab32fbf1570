"""What outlives a restart, and what happens when it cannot."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from voice_pipelines.cli import main
from voice_pipelines.remembering import COSTS, KEPT_TURNS, TURNS, Memory, find_turn, remembered_turns, state_folder
from voiceagent.costs import CostModel, Stage

OWNERS = dict.fromkeys(Stage, "test")
TIMELINE = {
    "turn": 3,
    "transcript": "my card is 1234",
    "reply": "Thanks, 1234.",
    "target_ms": 500.0,
    "status": "completed",
}


def memory(folder: Path) -> Memory:
    return Memory(folder / "state", OWNERS)


def test_stage_times_survive_a_restart(tmp_path: Path) -> None:
    costs = CostModel()
    costs.observe(Stage.STEP, 0.012, 32)
    memory(tmp_path).save(costs)
    again = CostModel()
    assert memory(tmp_path).restore(again) == (Stage.STEP,)
    assert again.predict(Stage.STEP, 32).p50 == 0.012


@pytest.mark.parametrize("text", ["", "{", '{"format": 1, "stages": {"step": 5}}', "[" * 100_000])
def test_a_damaged_file_is_told_and_costs_nothing(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    kept = memory(tmp_path)
    kept.folder.mkdir()
    (kept.folder / COSTS).write_text(text, "utf-8")
    with caplog.at_level(logging.WARNING):
        assert kept.restore(CostModel()) == ()
    assert COSTS in caplog.text and "is ignored" in caplog.text
    kept.save(CostModel())
    caplog.clear()
    assert kept.restore(CostModel()) == () and not caplog.records


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").write_text("a file", "utf-8")
    kept = memory(tmp_path)
    with caplog.at_level(logging.WARNING):
        kept.keep("resp_1", TIMELINE, CostModel())
        kept.save(CostModel())
    assert len(caplog.records) == 1


def test_turns_are_found_by_their_end_and_their_id_without_a_word_of_them(tmp_path: Path) -> None:
    kept = memory(tmp_path)
    for number in range(3):
        kept.keep(f"resp_{number}abc", {**TIMELINE, "turn": number}, CostModel())
    assert "1234" not in (kept.folder / TURNS).read_text("utf-8")
    for wanted, turn in (("last", 2), ("-1", 2), ("-3", 0), ("resp_1", 1)):
        found = find_turn(remembered_turns(kept.folder), wanted)
        assert found is not None and found["turn"] == turn
    for wanted in ("-4", "0", "-0", "resp_9", ""):
        assert find_turn(remembered_turns(kept.folder), wanted) is None
    assert remembered_turns(tmp_path / "nowhere") == ()


def test_a_killed_process_forgets_little_even_if_it_had_few_turns(tmp_path: Path) -> None:
    kept, costs = memory(tmp_path), CostModel()
    known: list[int] = []
    for number in range(1, 41):
        costs.observe(Stage.ASR, 0.1)
        kept.keep(f"resp_{number}", TIMELINE, costs)
        after_a_kill = CostModel()
        assert memory(tmp_path).restore(after_a_kill) == (Stage.ASR,)
        known.append(after_a_kill.observations(Stage.ASR))
    assert known[:20] == [1, 2, 2, 4, 4, 4, 4, *[8] * 8, *[16] * 4, 20], "half of the first turns at least"
    assert known[20:] == [*[20] * 19, 40], "then all but the newest twenty"


def test_a_line_cut_short_hides_no_other(tmp_path: Path) -> None:
    kept = memory(tmp_path)
    kept.keep("resp_1", TIMELINE, CostModel())
    with (kept.folder / TURNS).open("a") as file:
        file.write('{"turn": 4, "sta')
    found = find_turn(remembered_turns(kept.folder), "last")
    assert found is not None and found["turn"] == 3


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    kept = memory(tmp_path)
    for number in range(2 * KEPT_TURNS + 1):
        kept.keep(f"resp_{number}", {"turn": number}, CostModel())
    assert len((kept.folder / TURNS).read_text("utf-8").splitlines()) <= KEPT_TURNS + 1


def test_the_state_folder_follows_the_platform(tmp_path: Path) -> None:
    assert state_folder({}, tmp_path, "linux") == tmp_path / ".local" / "state" / "voiceagent"
    assert state_folder({"XDG_STATE_HOME": "/s"}, tmp_path, "linux") == Path("/s/voiceagent")
    assert state_folder({}, tmp_path, "darwin") == tmp_path / "Library" / "Application Support" / "voiceagent"


def test_a_turn_is_explained_from_memory_and_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = memory(tmp_path)
    late = {
        **TIMELINE,
        "server_latency_ms": 640.0,
        "missed_deadline": {"stage": "asr", "late_ms": 140.0, "cause": "slow"},
    }
    kept.keep("resp_7", late, CostModel())
    setting = ["--set", f"budget.folder={kept.folder}"]
    assert main(["explain", *setting]) == 0
    assert "140 ms late because of recognising the last words" in capsys.readouterr().out
    assert main(["explain", "resp_8", *setting]) == 1
    told = capsys.readouterr().err
    assert "no turn 'resp_8' is remembered" in told and "one turn is: `last`" in told and "such as resp_7" in told
    kept.keep("resp_9", late, CostModel())
    assert main(["explain", "-3", *setting]) == 1
    assert "2 turns are: `last`, `-1` to `-2`" in capsys.readouterr().err
    for wanted in ("last", "resp_7"):
        assert main(["explain", wanted, "--set", f"budget.folder={tmp_path / 'empty'}"]) == 1
        assert "nothing is remembered in" in capsys.readouterr().err
    said = tmp_path / "said.json"
    said.write_text(json.dumps({"reply": "hi", "timeline": late}), "utf-8")
    assert main(["explain", "--file", str(said)]) == 0
    assert "Turn 3 was late" in capsys.readouterr().out
    for other in ("[]", '{"turn": 3}', "no JSON"):
        said.write_text(other, "utf-8")
        assert main(["explain", "--file", str(said)]) == 2
        assert "a timeline" in capsys.readouterr().err
    (kept.folder / TURNS).unlink()
    (kept.folder / TURNS).mkdir()
    assert main(["explain", *setting]) == 2
    assert f"whose {TURNS} can be read" in capsys.readouterr().err


def test_a_file_that_nests_too_deeply_is_no_timeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep.json").write_text(100_000 * "[", "utf-8")
    assert main(["explain", "--file", str(tmp_path / "deep.json")]) == 2
    assert "expected a file with a timeline as JSON" in capsys.readouterr().err
