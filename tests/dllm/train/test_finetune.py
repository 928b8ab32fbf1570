"""Fine-tuning on a tiny model: it learns a phrase, keeps the best step, is the same twice, and says what is wrong before it writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dllm import cli, loader
from dllm.errors import ConfigError, DataError
from dllm.train.finetune.measure import held_back, loss_of
from dllm.train.finetune.plan import FinetuneOptions
from dllm.train.finetune.report import Report
from dllm.train.finetune.run import finetune, prepare
from tests.dllm import tiny

FAST = 10.0
"""Times the usual rates: random weights have everything to learn."""


def dialogue(number: int, **changes: Any) -> dict[str, Any]:
    drinks = ("mocha", "tea", "muffin", "large tea")
    price = f"${number % 5 + 1}.{number % 10}0"
    turns = [
        {"role": "system", "text": "You answer the phone."},
        {"role": "user", "text": f"I'd like a {drinks[number % 4]}, please."},
        {"role": "note", "text": f"total: {price}"},
        {"role": "agent", "text": f"that's {price}", "pins": [price]},
        {"role": "user", "text": "No, thanks."},
        {"role": "agent", "text": "Goodbye, see you soon"},
    ]
    return {"id": f"call-{number}", "turns": turns} | changes


def write(path: Path, *bodies: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(body) + "\n" for body in bodies), "utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    loader.save(folder, tiny.spec(), tiny.model(scale=1.0).state_dict(), tiny.codec(), dtype=None)
    (folder / "quality_curve.json").write_text("{}")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "calls.jsonl", *(dialogue(number) for number in range(12)))


def options(model: Path, data: Path, out: Path, **changes: Any) -> FinetuneOptions:
    return replace(FinetuneOptions(data, out, model, rate=FAST, passes=2.0, shown=4), **changes)


@pytest.fixture(scope="module")
def taught(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """A run long enough to learn how these calls end."""
    folder = tmp_path_factory.mktemp("taught")
    path = write(folder / "calls.jsonl", *(dialogue(number) for number in range(12)))
    report = finetune(options(model, path, folder / "out", passes=100.0, rate=20.0, patience=20))
    return report, folder / "out"


def test_a_phrase_that_was_not_there_is_said_to_callers_that_were_held_back(taught: tuple[Report, Path]) -> None:
    report, _ = taught
    before = " ".join(reply.text for reply in report.before.replies)
    after = " ".join(reply.text for reply in report.after.replies)
    assert "see you soon" not in before and "Goodbye, see you soon" in after
    assert report.after.nats.value is not None and report.before.nats.value is not None
    assert report.after.nats.value < 0.5 * report.before.nats.value


def test_what_is_written_is_a_checkpoint_without_the_old_models_quality_curve(taught: tuple[Report, Path]) -> None:
    report, out = taught
    checkpoint = loader.load(out)
    assert checkpoint.spec == tiny.spec()
    assert not (out / "quality_curve.json").exists() and "not carried over" in (out / "report.md").read_text()
    held = report.held_back.prompts
    assert loss_of(checkpoint.model, held) == pytest.approx(report.after.nats.value)


def test_the_report_has_before_and_after_side_by_side_and_counts_what_was_used(taught: tuple[Report, Path]) -> None:
    report, out = taught
    body, page = json.loads((out / "report.json").read_text()), (out / "report.md").read_text()
    assert body["dialogues"]["learned"] == 10 and body["dialogues"]["held_back"] == 2
    assert body["turns"] == {"system": 10, "user": 20, "note": 10, "agent": 20} and body["learned_turns"] == 20
    assert body["held_back"]["turns"] == 4 and body["held_back"]["before"]["exact_facts"]["count"] == 2
    assert len(body["replies"]) == 4
    for entry, before, after in zip(body["replies"], report.before.replies, report.after.replies, strict=True):
        assert (entry["before"], entry["after"]) == (before.text, after.text)
        assert entry["expected"] in page and f"| after | {' '.join(after.text.split())} |" in page
    assert body["data"]["files"][0]["lines"] == 12 and body["run"]["seconds"] > 0


def test_the_best_step_is_kept_when_learning_on_makes_it_worse(model: Path, data: Path, tmp_path: Path) -> None:
    report = finetune(options(model, data, tmp_path / "out", passes=200.0, rate=200.0, patience=2))
    losses = dict(report.curve)
    assert report.stopped == "patience" and report.steps > report.best_step
    assert losses[report.best_step] == min(losses.values())
    loss = loss_of(loader.load(tmp_path / "out").model, report.held_back.prompts)
    # Weights are stored in bfloat16, which has three digits.
    assert loss == pytest.approx(losses[report.best_step], rel=0.01)


def test_nothing_better_means_the_model_as_it_was(model: Path, data: Path, tmp_path: Path) -> None:
    report = finetune(options(model, data, tmp_path / "out", rate=1e-9, patience=1))
    assert report.best_step == 0 and "as it was" in (tmp_path / "out" / "report.md").read_text()
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    for name, weight in before.items():
        assert torch.equal(weight.bfloat16(), after[name])


def test_two_runs_are_the_same(model: Path, data: Path, tmp_path: Path) -> None:
    reports = [finetune(options(model, data, tmp_path / name)) for name in ("one", "two")]
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert reports[0].curve == reports[1].curve and reports[0].after == reports[1].after


def test_adapters_learn_and_what_is_written_needs_none(model: Path, data: Path, tmp_path: Path) -> None:
    report = finetune(options(model, data, tmp_path / "out", passes=10.0, lora_rank=4))
    assert report.is_better and report.parameters < 50_000
    assert loader.load(tmp_path / "out").spec == tiny.spec()
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()


def test_rehearsed_sources_take_their_share_and_forgetting_is_measured(model: Path, data: Path, tmp_path: Path) -> None:
    tiny.write_dialogues(tmp_path / "old", count=8)
    tiny.write_dialogues(tmp_path / "old", split="dev", count=3)
    report = finetune(options(model, data, tmp_path / "out", keep=tmp_path / "old", keep_share=0.4))
    sources = report.config["sources"]
    assert sources["company"]["weight"] == pytest.approx(0.6) and sources["tea"]["weight"] == pytest.approx(0.4)
    assert report.kept_before is not None and report.kept_after is not None
    assert "rehearsed sources" in (tmp_path / "out" / "report.md").read_text()


def test_learning_stops_when_told_and_the_report_says_so(model: Path, data: Path, tmp_path: Path) -> None:
    report = finetune(options(model, data, tmp_path / "out"), should_stop=lambda: True)
    assert (report.stopped, report.steps) == ("told", 0)
    assert loader.load(tmp_path / "out").spec == tiny.spec()


# --- what is used and what is not -------------------------------------------------------------------------------------


def test_dialogues_without_use_are_left_out_with_the_reason_and_the_line(model: Path, tmp_path: Path) -> None:
    silent = dialogue(1, id="silent", turns=[{"role": "user", "text": "Hello?"}])
    greeting = dialogue(2, id="greeting", turns=[{"role": "agent", "text": "Hello!"}])
    long = dialogue(3, id="long")
    long["turns"] = [{"role": "user", "text": "Tell me."}, {"role": "agent", "text": "tea and mocha " * 40}]
    house = dialogue(4, id="house")
    house["turns"] = [{"role": "system", "text": "You answer the phone. " * 40}, *house["turns"][1:]]
    path = write(tmp_path / "calls.jsonl", dialogue(10), silent, greeting, long, house, dialogue(11))
    ready = prepare(options(model, path, tmp_path / "out"))
    reasons = {one.id: (one.line, one.reason) for one in ready.learned.left_out}
    assert reasons["silent"] == (2, "no agent's turn that answers something")
    assert reasons["greeting"][0] == 3
    assert "more than 63 tokens" in reasons["long"][1] and "system turn has" in reasons["house"][1]
    assert len(ready.learned.kept) + len(ready.held.kept) == 2


def test_a_long_turn_is_learned_up_to_a_sentences_end_and_the_report_says_so(model: Path, tmp_path: Path) -> None:
    long = dialogue(3, id="long")
    long["turns"][3] = {"role": "agent", "text": "A mocha. " + "And tea and muffin " * 20}
    path = write(tmp_path / "calls.jsonl", dialogue(10), long)
    dev = write(tmp_path / "dev.jsonl", dialogue(11))
    ready = prepare(options(model, path, tmp_path / "out", dev=dev))
    (told,) = ready.learned.shortened
    assert (told.line, told.id) == (2, "long") and "learned up to" in told.reason


def test_the_same_dialogues_are_held_back_whatever_their_order(model: Path, tmp_path: Path) -> None:
    bodies = [dialogue(number) for number in range(20)]
    ready = [
        prepare(options(model, write(tmp_path / f"{name}.jsonl", *order), tmp_path / "out"))
        for name, order in (("a", bodies), ("b", bodies[::-1]))
    ]
    held = [{line.dialogue.id for line in one.held.kept} for one in ready]
    assert held[0] == held[1] and len(held[0]) == 3
    assert not held[0] & {line.dialogue.id for line in ready[0].learned.kept}


def test_a_file_of_its_own_is_held_back_instead_of_a_share(model: Path, data: Path, tmp_path: Path) -> None:
    dev = write(tmp_path / "dev.jsonl", dialogue(50))
    ready = prepare(options(model, data, tmp_path / "out", dev=dev))
    assert len(ready.learned.kept) == 12 and [line.dialogue.id for line in ready.held.kept] == ["call-50"]


def test_one_dialogue_is_enough_beside_a_held_back_file(model: Path, tmp_path: Path) -> None:
    path, dev = write(tmp_path / "one.jsonl", dialogue(1)), write(tmp_path / "dev.jsonl", dialogue(2))
    report = finetune(options(model, path, tmp_path / "out", dev=dev, passes=5.0))
    assert report.steps > 0 and loader.load(tmp_path / "out").spec == tiny.spec()


# --- failures ---------------------------------------------------------------------------------------------------------


def test_one_dialogue_alone_is_refused_with_what_is_needed(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", dialogue(1))
    with pytest.raises(DataError, match=r"one\.jsonl: one usable dialogue; at least two .* --dev FILE"):
        finetune(options(model, path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{not json", "3: not JSON"),
        ('{"id": "x", "turns": [{"role": "boss", "text": "hi"}]}', "3: turn 0: role 'boss'"),
        (json.dumps(dialogue(1)), "3: id 'call-1' is also that of line 2"),
        ("\x00", "3: NUL bytes"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(model: Path, tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path / "calls.jsonl", dialogue(0), dialogue(1))
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=rf"calls\.jsonl:{problem}"):
        finetune(options(model, path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_missing_file_and_a_folder_that_is_taken_are_told(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: unreadable"):
        finetune(options(model, tmp_path / "nowhere.jsonl", tmp_path / "out"))
    with pytest.raises(ConfigError, match="--out.*a folder without a checkpoint"):
        finetune(options(model, data, model))


@pytest.mark.parametrize(
    "change",
    [{"minutes": 0.0}, {"passes": -1.0}, {"patience": 0}, {"rate": 0.0}, {"keep_share": 1.0}, {"hold_back": 0.0}],
)
def test_numbers_out_of_range_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    name = next(iter(change)).replace("_", "-")
    with pytest.raises(ConfigError, match=f"--{name}"):
        FinetuneOptions(tmp_path / "a", tmp_path / "b", **change)


def test_the_command_reports_progress_and_mistakes(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["finetune", "--model", str(model), "--out", str(tmp_path / "out"), "--passes", "2", "--rate", "10"]
    assert cli.main([*command, "--data", str(tmp_path / "nowhere.jsonl")]) == 2
    assert "nowhere.jsonl: unreadable" in capsys.readouterr().err
    assert cli.main([*command, "--data", str(data), "--shown", "2"]) == 0
    printed = capsys.readouterr().out
    assert "10 dialogues to learn from, 2 held back" in printed and "step 0: held-back" in printed
    assert f"wrote {tmp_path / 'out'}" in printed


def test_held_back_prompts_end_where_a_reply_begins(model: Path, data: Path, tmp_path: Path) -> None:
    ready = prepare(options(model, data, tmp_path / "out"))
    codec = tiny.codec()
    for prompt in held_back(ready.held.kept, codec, tiny.spec(), 4).prompts:
        assert prompt.tokens[-1] == codec.special.agent
        assert codec.decode(prompt.reference).strip() == prompt.text
