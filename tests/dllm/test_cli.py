"""The command: train, generate, eval and export from end to end on a tiny run; what the environment and mistakes do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dllm import loader
from dllm.cli import COMMANDS, build_parser, main
from dllm.commands.model import check_folder
from dllm.commands.train import recipe
from dllm.errors import ConfigError
from tests.dllm import tiny

CONFIG = """
vocab_size = 320
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
rows_per_step = 4
rows_per_forward = 4
compiled = false
[sources.tea]
weight = 1.0
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    tiny.write_dialogues(root / "data")
    tiny.write_dialogues(root / "data", split="dev", count=4)
    (root / "tiny.toml").write_text(CONFIG)
    code = main(
        [
            "train",
            "--data",
            str(root / "data"),
            "--out",
            str(root / "out"),
            "--config",
            str(root / "tiny.toml"),
            "--tokens",
            "2000",
        ]
    )
    assert code == 0
    return root


def test_a_folder_that_the_built_in_mixture_does_not_know_is_trained_on_all_the_same(tmp_path: Path) -> None:
    tiny.write_dialogues(tmp_path / "own", name="calls")
    tiny.write_dialogues(tmp_path / "known", name="cafe")
    assert recipe(None, [tmp_path / "own"]).sources == {}
    assert "cafe" in recipe(None, [tmp_path / "own", tmp_path / "known"]).sources
    (tmp_path / "mine.toml").write_text("[sources.tea]\nweight = 1.0\n")
    assert recipe(tmp_path / "mine.toml", [tmp_path / "own"]).sources.keys() == {"tea"}, "what somebody wrote is meant"


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_an_output_folder_that_cannot_be_is_named_before_anything_is_learned(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main([command, "--data", str(tmp_path), "--out", str(tmp_path / "file" / "run")]) == 2
    assert "--out = " in capsys.readouterr().err


def test_an_output_folder_below_one_that_may_not_be_looked_into_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 raises where later versions say that nothing is there."""

    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(ConfigError, match="--out = .*Permission denied"):
        check_folder("--out", tmp_path / "closed" / "run")


def test_train_leaves_a_run_that_resumes(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = (run_folder / "out" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[0])["step"] == 1
    arguments = [
        "--data",
        str(run_folder / "data"),
        "--out",
        str(run_folder / "out"),
        "--config",
        str(run_folder / "tiny.toml"),
    ]
    assert main(["train", *arguments, "--resume", "--tokens", "3000"]) == 0
    assert len((run_folder / "out" / "log.jsonl").read_text().splitlines()) > len(log)
    assert "sources: tea" in capsys.readouterr().out


def test_export_is_a_checkpoint(run_folder: Path, tmp_path: Path) -> None:
    assert main(["export", "--run", str(run_folder / "out"), "--out", str(tmp_path / "model")]) == 0
    assert loader.load(tmp_path / "model").spec.hidden_size == 32


def test_an_export_in_shards_is_the_same_checkpoint_and_no_file_is_larger(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "--run", str(run_folder / "out"), "--out", str(tmp_path / "model")]
    assert main([*arguments, "--shard-mb", "0.024"]) == 0
    files = list((tmp_path / "model").glob("*.safetensors"))
    assert f"in {len(files)} files" in capsys.readouterr().out
    assert len(files) > 1 and max(file.stat().st_size for file in files) <= 24_000
    whole, cut = loader.load(run_folder / "out" / "export"), loader.load(tmp_path / "model")
    for (name, one), (_, other) in zip(whole.model.named_parameters(), cut.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert main([*arguments, "--shard-mb", "0"]) == 2
    assert "--shard-mb" in capsys.readouterr().err


def test_a_record_tells_of_the_run_without_paths(run_folder: Path, tmp_path: Path) -> None:
    run, record = run_folder / "out", tmp_path / "record"
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "model"), "--record", str(record)]) == 0
    body, kept = json.loads((run / "run.json").read_text()), json.loads((record / "run.json").read_text())
    assert kept["data"]["tea"]["path"] == "tea.train.jsonl"
    assert kept["data"]["tea"]["sha256"] == body["data"]["tea"]["sha256"]
    assert {**kept, "data": None} == {**body, "data": None}
    assert str(run_folder) not in (record / "run.json").read_text()
    last = json.loads((record / "log.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["tokens"]) == (kept["legs"][-1]["last_step"], kept["tokens"])
    assert "sources" not in last


def test_keys_of_the_configuration_can_be_set_for_one_run(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "train",
        "--data",
        str(run_folder / "data"),
        "--config",
        str(run_folder / "tiny.toml"),
        "--tokens",
        "1",
    ]
    arguments += [
        "--out",
        str(tmp_path / "run"),
        "--set",
        "dtype=bfloat16",
        "--set",
        "sources.tea.weight=2",
        "--set",
        "sources.sgd.system=Hi.",
    ]
    assert main([*arguments, "--set", "clip=0.5"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["dtype"], config["sources"]["tea"]["weight"], config["clip"]) == ("bfloat16", 2.0, 0.5)
    assert config["hidden_size"] == 32
    assert config["sources"]["sgd"]["system"] == "Hi."
    for wrong, problem in (
        ("clipp=1", "clipp"),
        ("clip", "KEY=VALUE"),
        ("clip=soft", "float"),
        ("sources.tea=1", "table"),
    ):
        assert main([*arguments, "--out", str(tmp_path / "other"), "--set", wrong]) == 2
        assert problem in capsys.readouterr().err


def test_generate_shows_every_step_and_the_reply(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(run_folder / "out" / "export"), "--width", "16", "--steps-first", "2", "--steps-rest", "2"]
    assert (
        main(
            [
                "generate",
                *model,
                "A tea, please!",
                "--show",
                "--system",
                "Hi.",
                "--turn",
                "agent:Hello!",
                "--pin",
                "$1.00",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("prefill")
    assert " ms |" in printed[1]
    assert "$1.00" in printed[-1]
    assert main(["generate", *model, "tea", "--quiet"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_eval_prints_nats_and_steps_writes_the_curve(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = [
        "--model",
        str(run_folder / "out" / "export"),
        "--data",
        str(run_folder / "data"),
        "--config",
        str(run_folder / "tiny.toml"),
    ]
    assert main(["eval", *shared, "--rows", "3"]) == 0
    assert "tea" in capsys.readouterr().out
    assert main(["eval", "steps", *shared, "--rows", "1"]) == 0
    curve = json.loads((run_folder / "out" / "export" / "quality_curve.json").read_text())
    assert len(curve["quality"]) == len(curve["widths"])
    assert len(curve["quality"][0]) == len(curve["steps"])


def test_mistakes_are_one_line_and_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "hi", "--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"dllm generate: {tmp_path}/config.json: no such file")
    assert main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no *.train.jsonl" in capsys.readouterr().err
    (tmp_path / "bad.toml").write_text("speed = 1")
    tiny.write_dialogues(tmp_path)
    assert (
        main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "out"), "--config", str(tmp_path / "bad.toml")])
        == 2
    )
    assert "speed" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["~no_such_user_here/model", "a" * 300])
def test_a_name_that_no_folder_can_have_is_told(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "hi", "--model", model]) == 2
    assert capsys.readouterr().err.startswith(f"dllm generate: --model = '{model}': expected a checkpoint's folder")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "0"], "--tokens = 0: expected at least 1"),
        (["--tokens", "-5"], "--tokens = -5: expected at least 1"),
        (["--minutes", "0"], "--minutes = 0.0: expected minutes above 0"),
        (["--minutes", "nan"], "--minutes = nan"),
        (["--leg-minutes", "-1"], "--leg-minutes = -1.0"),
        (["--checkpoint-minutes", "0"], "--checkpoint-minutes = 0.0"),
        (["--set", "tokens=0"], "tokens = 0: expected at least 1"),
        (["--set", "init=~no_such_user_here/x"], "init = '~no_such_user_here/x': expected a checkpoint's folder"),
        (["--set", "sources=5"], "sources = 5: expected a table of sources"),
        (["--set", "sources.tea.weight=heavy"], "sources.tea.weight = 'heavy': expected a value of type float"),
        (["--set", "sources.tea.wait=1"], "sources.tea.wait = 1: expected one of weight"),
        (["--config", "FOLDER/none.toml"], "none.toml': expected a readable file (No such file or directory)"),
        (["--config", "FOLDER"], "expected a readable file (Is a directory)"),
        (["--config", "FOLDER/latin.toml"], "latin.toml': expected TOML"),
        (["--out", "FOLDER/" + "a" * 300], "expected a folder that can be written to"),
        (["--resume", "--out", "FOLDER/broken"], "broken/config.json: the run's configuration cannot be read"),
        (["--resume", "--out", "FOLDER/list"], "configuration = []: expected a table"),
        (["--tokenizer", "FOLDER/none.json"], "none.json: no such file"),
    ],
)
def test_mistakes_of_a_run_are_told_before_it_begins(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_dialogues(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    for name, text in (("broken", "{"), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text, "utf-8")
    options = [option.replace("FOLDER", str(tmp_path)) for option in options]
    assert main(["train", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_environment_stands_in_for_model_and_device() -> None:
    environment = {"DLLM_MODEL": "some/model", "DLLM_DEVICE": "cuda"}
    parsed = build_parser(["chat"], environment).parse_args(["chat"])
    assert (parsed.model, parsed.device) == ("some/model", "cuda")
    given = ["chat", "--model", "mine", "--device", "cpu"]
    parsed = build_parser(given, environment).parse_args(given)
    assert (parsed.model, parsed.device) == ("mine", "cpu")
    assert build_parser(["chat"], {}).parse_args(["chat"]).model is None


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
    assert "DLLM_MODEL" in printed


def test_unknown_commands_end_with_exit_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dream"])
    assert ended.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
