"""The model card from end to end on a tiny model: measured once, kept, and written from what was kept."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dllm import loader
from dllm.cli import main
from dllm.evaluate.about import about_data, about_training, is_builtin
from dllm.evaluate.card import cell, write_card
from dllm.evaluate.measurements import SECTIONS, best_row, possible
from dllm.evaluate.record import Record
from tests.dllm import tiny

TOOLS = [{"name": "book", "description": "books a table", "parameters": {"properties": {"tea": {"type": "string"}}}}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model, its data, a run's log, and a card that was written once, of few widths and steps."""
    root = tmp_path_factory.mktemp("card")
    # No stronger than this, or the model would write nothing but one token.
    loader.save(root / "model", tiny.spec(), tiny.model(1, 4.0).state_dict(), tiny.codec())
    tiny.write_dialogues(root / "data", "tea", "dev", 6)
    turns = [
        {"role": "user", "text": "A tea, please"},
        {"role": "agent", "call": {"name": "book", "arguments": {"tea": "tea"}}},
    ]
    lines = [{"id": str(number), "tools": TOOLS, "turns": turns} for number in range(3)]
    (root / "data" / "tools.dev.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "mix.toml").write_text("[sources.tea]\nweight = 3.0\n[sources.tools]\n")
    (root / "run").mkdir()
    log = [{"step": at, "tokens": 10 * at, "loss": 2.5, "causal": 1.5, "seconds": 60.0 * at} for at in range(1, 4)]
    (root / "run" / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("WIDTHS", (8, 16)),
            ("CURVE_STEPS", (1, 2)),
            ("STEPS", (1, 4, 64)),
            ("THRESHOLDS", (0.9,)),
        ):
            patch.setattr(f"dllm.evaluate.measurements.{name}", value)
        # Whoever commits while the tests run changes no card.
        patch.setattr("dllm.evaluate.about.commit", lambda: "0123abc")
        assert main(command(root)) == 0
        yield root


def command(root: Path, *more: str) -> list[str]:
    given = {"model": "model", "data": "data", "config": "mix.toml", "run": "run", "out": "card.md"}
    paths = [word for name, path in given.items() for word in (f"--{name}", str(root / path))]
    return ["eval", "card", *paths, "--prompts", "1", "--width", "16", *more]


def read(root: Path) -> dict[str, Any]:
    return Record(root / "card.json").data


def test_every_section_is_measured_and_drawn(folder: Path) -> None:
    data = read(folder)
    assert data["about"]["left_out"] == {}
    assert set(data) == {"about", *(section.name for section in SECTIONS)}
    card = (folder / "card.md").read_text()
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", card):
        assert (folder / name).stat().st_size > 1000
    assert (
        data["about"]["command"]
        == "dllm eval card --data data --model model --config mix.toml --run run --prompts 1 --width 16 --seed 0"
    )
    assert str(folder) not in card + (folder / "card.json").read_text()


def test_the_curve_beside_the_weights_is_the_one_that_the_budget_reads(folder: Path) -> None:
    curve = json.loads((folder / "model" / "quality_curve.json").read_text())
    assert curve["widths"] == [8, 16]
    assert [len(row) for row in curve["quality"]] == [len(curve["steps"])] * 2


def test_a_kept_record_gives_the_same_card_without_measuring(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("measured again")

    before = {name: (folder / name).read_bytes() for name in ("card.md", "card.json")}
    monkeypatch.setattr("dllm.evaluate.writing.Writer.write", fail)
    monkeypatch.setattr("dllm.evaluate.measurements.held_back_likelihood", fail)
    assert main(command(folder)) == 0
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_the_weights_of_the_package_are_called_built_in_wherever_they_lie(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (folder / "card.md").read_text().startswith("# model: model card")
    assert not is_builtin(loader.load(folder / "model"))
    shutil.copytree(folder / "model", tmp_path / "copy")
    monkeypatch.setattr(loader, "BUILTIN", tmp_path / "copy")
    assert is_builtin(loader.load(folder / "model"))


def test_the_card_s_numbers_come_from_the_record(folder: Path) -> None:
    data = read(folder)
    data["likelihood"]["sources"]["tea"]["causal"] |= {"value": 123.456, "low": 120.0, "high": 130.0}
    data["turns"]["accuracy"] |= {"value": 0.98765, "low": 0.9, "high": 1.0}
    data["about"]["training"]["steps"] = 98_765
    card = write_card(data)
    assert "123.456 (120.000 to 130.000)" in card
    assert "98.8 (90.0 to 100.0)" in card
    assert "98,765" in card


def test_without_a_baseline_the_causal_mode_is_called_what_it_is(folder: Path) -> None:
    card = (folder / "card.md").read_text()
    assert "the causal mode of the **same weights**" in card
    assert "There is no independent autoregressive baseline here" in card


def test_a_baseline_is_measured_where_it_matters_and_nothing_else_again(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    loader.save(tmp_path / "other", tiny.spec(), tiny.model(2, 4.0).state_dict(), tiny.codec())
    (tmp_path / "card.json").write_bytes((folder / "card.json").read_bytes())
    more = ["--baseline", str(tmp_path / "other"), "--out", str(tmp_path / "card.md")]
    assert main(command(folder, *more)) == 0
    done = dict(line.split(None, 1) for line in capsys.readouterr().err.splitlines())
    assert {name for name, what in done.items() if what != "kept"} == {"likelihood", "timed"}
    data = Record(tmp_path / "card.json").data
    assert data["likelihood"]["all"]["baseline"]["value"] > 0
    assert data["timed"]["rows"][-1]["name"] == "baseline autoregressive"


def test_an_undistilled_checkpoint_answers_the_same_prompts(folder: Path, tmp_path: Path) -> None:
    loader.save(tmp_path / "other", tiny.spec(), tiny.model(2, 4.0).state_dict(), tiny.codec())
    (tmp_path / "card.json").write_bytes((folder / "card.json").read_bytes())
    assert main(command(folder, "--undistilled", str(tmp_path / "other"), "--out", str(tmp_path / "card.md"))) == 0
    parallel = Record(tmp_path / "card.json").data["parallel"]
    assert set(parallel) == {"shipped", "undistilled"}
    assert parallel["shipped"]["prompts"] == parallel["undistilled"]["prompts"]
    assert [len(found["rows"]) for found in parallel.values()] == [2, 2]
    assert parallel["shipped"]["rows"] == read(folder)["parallel"]["shipped"]["rows"]


def test_times_of_another_machine_are_not_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "card.json").write_bytes((folder / "card.json").read_bytes())
    monkeypatch.setattr("dllm.evaluate.about.processor_name", lambda: "an abacus")
    assert main(command(folder, "--out", str(tmp_path / "card.md"))) == 0
    done = dict(line.split(None, 1) for line in capsys.readouterr().err.splitlines())
    assert {name for name, what in done.items() if what != "kept"} == {"timed"}


def test_a_canvas_that_no_reply_fits_is_said_to_measure_nothing(folder: Path) -> None:
    class Narrow:
        width = 8
        choose = staticmethod(lambda *_: [])
        prompts: dict[str, list[Any]] = {}  # noqa: RUF012
        checkpoint = loader.load(folder / "model")

    reasons = {section.name: possible(Narrow(), section) for section in SECTIONS}  # type: ignore[arg-type]
    assert reasons["samplers"] == reasons["timed"] == "no held-back reply fits a canvas of 8"
    assert reasons["widths"] is not None and reasons["likelihood"] is None


def test_answers_that_training_shows_word_for_word_are_counted(tmp_path: Path) -> None:
    def write(part: str, *replies: str) -> None:
        turns = [[{"role": "user", "text": "hi"}, {"role": "agent", "text": reply}] for reply in replies]
        lines = [json.dumps({"id": str(number), "turns": one}) for number, one in enumerate(turns)]
        (tmp_path / f"tea.{part}.jsonl").write_text("\n".join(lines))

    write("dev", "Hello!", "Hello!", "Tea?")
    assert about_data([tmp_path], {"tea": 1.0}, "dev")["tea"]["seen"] is None
    write("train", "Hello!", "Hello!", "Milk?")
    assert about_data([tmp_path], {"tea": 1.0}, "dev")["tea"]["seen"] == [2, 3]


def test_a_run_that_went_on_from_a_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"config": {"init": "some/where/small"}}))
    assert about_training(tmp_path) == {"objective": "dialogue", "init": "small"}


def test_missed_targets_stand_among_the_limits(folder: Path) -> None:
    limits = (folder / "card.md").read_text().split("## Limits")[1]
    assert "Target missed: tool calls exact" in limits


def test_a_baseline_with_other_tokens_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader.save(tmp_path, tiny.spec(), tiny.model().state_dict(), tiny.codec())
    body = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(body, indent=1) + "\n ")
    assert main(command(folder, "--baseline", str(tmp_path))) == 2
    assert "a checkpoint with the tokenizer of" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, "--run", str(folder / "rum"))) == 2
    assert "expected the folder of a training run" in capsys.readouterr().err


def test_data_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "card"]) == 2
    assert "--data = None: expected a folder of dialogues" in capsys.readouterr().err


def test_the_best_setting_is_the_quickest_whose_quality_is_inside_the_first_one_s_interval() -> None:
    one = row(1, 50)
    assert best_row([one, row(2, 46), row(3, 44)], [one["measures"]]) == 1
    assert best_row([one, row(2, 40)], [one["measures"]]) == 0
    assert best_row([one, row(2, 50, judge=-3.0), row(3, 50, faulty=0.3)], [one["measures"]]) == 0


def test_a_checkpoint_that_got_worse_as_a_whole_is_not_compared_with_itself_alone() -> None:
    before, worse = row(1, 60), row(1, 50)
    assert best_row([worse, row(4, 50)], [worse["measures"]]) == 1
    assert best_row([worse, row(4, 50)], [worse["measures"], before["measures"]]) == 0


def row(forward: float, chrf: float, judge: float = -1.0, faulty: float = 0.0) -> dict[str, Any]:
    """A setting whose intervals reach 5 of chrF, .5 nats and .1 of the replies to either side."""
    return {
        "measures": {
            "tokens_per_forward": {"value": forward},
            "chrf": {"value": chrf, "low": chrf - 5},
            "log_likelihood": {"value": judge, "low": judge - 0.5},
            "faulty": {"value": faulty, "high": faulty + 0.1},
        }
    }


def test_cells_show_intervals_and_what_was_not_measured() -> None:
    assert cell({"value": 0.5, "low": 0.25, "high": 1.0}, 100, 1) == "50.0 (25.0 to 100.0)"
    assert cell({"value": None, "low": None, "high": None}) == cell(None) == "–"


def test_a_section_is_measured_again_when_what_it_depends_on_changes(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.json")
    assert record.section("one", {"seed": 1}, lambda: {"value": (1, 2)})
    again = Record(tmp_path / "record.json")
    assert not again.section("one", {"seed": 1}, lambda: pytest.fail("measured again"))
    assert again.data == record.data == {"one": {"value": [1, 2]}}
    assert again.section("one", {"seed": 2}, lambda: 3)
    assert Record(tmp_path / "record.json").data == {"one": 3}


def test_an_interrupted_record_keeps_what_was_finished(tmp_path: Path) -> None:
    record = Record(tmp_path / "record.json")
    record.section("one", {}, lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        record.section("two", {}, _interrupt)
    assert Record(tmp_path / "record.json").data == {"one": 1}


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_broken_record_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"format": 1, "sec')
    assert Record(tmp_path / "record.json").data == {}
