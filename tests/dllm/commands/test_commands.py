"""Each command on tiny checkpoints: what it prints, as text and as JSON, and what it says to mistakes."""

from __future__ import annotations

import io
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from dllm.cli import main
from dllm.commands import bench, geometries
from dllm.commands.decoding import read_option
from dllm.commands.edit import difference, kept_share
from dllm.commands.infill import join, lay_out, split
from dllm.commands.model import LoadBar
from dllm.commands.screen import CanvasScreen, CellReader, printable, safe
from dllm.drafts import Cell, CellState
from dllm.errors import ConfigError
from dllm.loader import LoadProgress
from tests.dllm import tiny

Capture = pytest.CaptureFixture[str]
FAMILIES = ("dllm_llama", "sdar", "dream", "nemotron")


def told(capsys: Capture, *argv: object) -> Any:
    """What a command that succeeds says in JSON."""
    assert main([*map(str, argv), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys: Capture, *argv: object) -> str:
    """The one line of a command that does not."""
    assert main([*map(str, argv)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


# --- generate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_counts_what_it_wrote_and_keeps_to_its_steps(family: str, checkpoints: Path, capsys: Capture) -> None:
    body = told(capsys, "generate", "a tea", "--model", checkpoints / family, "--width", 16, "--steps", 4)
    usage = body["usage"]
    assert body["finish_reason"] in ("stop", "length")
    assert usage["prompt_tokens"] > 0
    assert usage["forwards_denoise"] <= 4 + 2  # a causal family's canvas is several blocks of at least one step each
    assert usage["visible_tokens"] <= 16
    assert usage["tokens_per_forward"] == pytest.approx(
        usage["visible_tokens"] / (usage["forwards_denoise"] + usage["forwards_commit"]), abs=1e-3
    )


def test_generate_repeats_itself_with_its_seed_only(checkpoints: Path, capsys: Capture) -> None:
    argv = ("generate", "a tea", "--model", checkpoints / "dream", "--width", 12, "--temperature", 1.5)
    one, same, other = (told(capsys, *argv, "--seed", seed)["text"] for seed in (1, 1, 2))
    assert one == same != other


def test_choices_schemas_and_expressions_hold(checkpoints: Path, tmp_path: Path, capsys: Capture) -> None:
    model = ("--model", checkpoints / "dream", "--width", 24)
    assert told(capsys, "generate", "x", *model, "--choice", "yes", "--choice", "no")["text"] in ("yes", "no")
    assert told(capsys, "generate", "x", *model, "--regex", "[0-9]{3}")["text"].isdigit()
    spoken = ("--model", checkpoints / "dllm_llama", "--width", 24)  # the letters of the others lack quotation marks
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}))
    assert json.loads(told(capsys, "generate", "x", *spoken, "--schema", schema)["text"])["a"] in (1, 2)


def test_stop_texts_and_bans_hold(checkpoints: Path, capsys: Capture) -> None:
    model = ("--model", checkpoints / "dream", "--width", 12)
    text = told(capsys, "generate", "x", *model)["text"]
    middle = text[4]
    stopped = told(capsys, "generate", "x", *model, "--stop", middle)
    assert stopped["text"] == text[: text.index(middle)].strip()
    assert stopped["finish_reason"] == "stop"
    assert middle not in told(capsys, "generate", "x", *model, "--ban", middle)["text"]


def test_raw_text_is_continued_and_read_from_standard_input(
    checkpoints: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", checkpoints / "dream", "--width", 8, "--raw")
    given = told(capsys, "generate", "once upon", *model)
    monkeypatch.setattr("sys.stdin", io.StringIO("once upon\n"))
    assert told(capsys, "generate", "-", *model)["text"] == given["text"]
    assert given["usage"]["prompt_tokens"] == len("once upon")
    assert "no --system" in refused(capsys, "generate", "x", *model, "--system", "y")


def test_steps_are_shown_where_asked_for_and_not_otherwise(checkpoints: Path, capsys: Capture) -> None:
    argv = ["generate", "x", "--model", str(checkpoints / "sdar"), "--width", "8"]
    assert main([*argv, "--show"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("prefill")
    assert all(" ms |" in line for line in shown[1:-1])
    assert "_" in shown[1].partition("|")[2]
    assert main(argv) == 0
    assert capsys.readouterr().out.splitlines() == shown[-1:]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--width", 0), "width = 0: expected at least 1"),
        (("--steps", 0), "--steps = 0: expected at least 1"),
        (("--steps", 3, "--steps-first", 2), "none beside --steps-first"),
        (("--threshold", 2), "a probability"),
        (("--option", "top_k=many"), "a whole number"),
        (("--option", "speed=9"), "NAME=VALUE"),
        (("--turn", "bob:hello"), "ROLE:TEXT"),
        (("--ban", " "), "--ban = ' ': expected some text"),
        (("--must", " "), "--must = ' ': expected some text"),
        (("--regex", "("), "a regular expression"),
        (("--schema", "/nowhere/schema.json"), "a JSON file"),
        (("--choice", "a", "--must", "b"), "none beside a grammar"),
        (("--device", "abacus"), "--device = 'abacus'"),
        (("--device", "meta"), "--device = 'meta'"),
        (("--dtype", "int3"), "--dtype = 'int3': expected one of"),
        (("--mode", "causal"), "sdar has no causal mode"),
        (("--width", 300), "the model has 256"),
    ],
)
def test_mistakes_are_one_line(argv: tuple[object, ...], message: str, checkpoints: Path, capsys: Capture) -> None:
    assert message in refused(capsys, "generate", "hi", "--model", checkpoints / "sdar", *argv)


def test_a_schema_that_nests_too_deeply_and_input_that_is_closed_are_one_line(
    checkpoints: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep.json").write_text(100_000 * "[", "utf-8")
    model = ("--model", checkpoints / "sdar")
    assert "a JSON file" in refused(capsys, "generate", "hi", *model, "--schema", tmp_path / "deep.json")
    monkeypatch.setattr("sys.stdin", None)
    assert "standard input = '-': expected one that is not closed" in refused(capsys, "generate", "-", *model)


def test_options_are_read_by_their_types() -> None:
    for long in (5_000 * "9", 100_000 * "["):
        with pytest.raises(ConfigError):
            read_option(f"top_k={long}")
    assert read_option("top-k=5") == ("top_k", 5)
    assert read_option("early_commit=true") == ("early_commit", True)
    assert read_option("wino_threshold=0.9") == ("wino_threshold", 0.9)
    assert read_option("rule=margin") == ("rule", "margin")
    for wrong in ("top_k=true", "early_commit=1", "factor=a", "anneal=1", "rule"):
        with pytest.raises(ConfigError):
            read_option(wrong)


# --- chat -------------------------------------------------------------------------------------------------------------


def talk(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, lines: str, *argv: object
) -> tuple[int, list[str], list[str]]:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    status = main(["chat", *map(str, argv)])
    printed = capsys.readouterr()
    return status, printed.out.splitlines(), printed.err.splitlines()


@pytest.mark.parametrize("family", ("dllm_llama", "sdar"))
def test_chat_keeps_its_conversation_in_the_cache(
    family: str, checkpoints: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("--model", checkpoints / family, "--width", 8, "--system", "Be brief.")
    status, replies, notes = talk(
        capsys, monkeypatch, "/usage\nhello\n\n  a tea\n/usage\n/new\nhello\n/quit\nno\n", *argv
    )
    assert status == 0
    assert len(replies) == 3
    assert replies[2] == replies[0]  # a new conversation is as the first one was
    assert notes[0] == "nothing was written yet"
    cached = int(notes[1].partition("(")[2].partition(" cached")[0].rpartition("(")[2])
    assert cached > 0


def test_chat_ends_with_a_line_about_what_went_wrong(
    checkpoints: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("--model", checkpoints / "sdar", "--width", 8)
    status, _, notes = talk(capsys, monkeypatch, f"{'long ' * 100}\n", *argv)
    assert status == 2
    assert "the model has 256" in notes[-1]
    status, _, notes = talk(capsys, monkeypatch, "/dance\n", *argv)
    assert status == 2
    assert "/dance" in notes[-1]


def test_bytes_that_are_no_text_are_named(checkpoints: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ("--model", checkpoints / "sdar")
    assert "expected UTF-8 text" in refused(capsys, "generate", "caf\udce9", *model)
    status, _, notes = talk(capsys, monkeypatch, "caf\udce9\n", *model)
    assert status == 2
    assert "standard input" in notes[-1]
    monkeypatch.setattr("sys.stdin", io.StringIO("caf\udce9"))
    assert "standard input" in refused(capsys, "generate", "-", *model)


# --- infill -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_infill_writes_between_what_it_was_given(family: str, checkpoints: Path, capsys: Capture) -> None:
    text = "a tea [...3], please [...2]!"
    argv = ("--user", "hi") if family == "dllm_llama" else ()
    body = told(capsys, "infill", text, "--model", checkpoints / family, *argv)
    first, second = body["holes"]
    assert body["text"] == f"a tea {first.removeprefix(' ')}, please {second.removeprefix(' ')}!"
    assert first
    assert second


def test_the_built_in_model_fills_the_holes_of_the_documented_example(capsys: Capture) -> None:
    page = (Path(__file__).parents[3] / "docs" / "dllm.md").read_text(encoding="utf-8")
    example = re.search(r"^\$ dllm (infill .*)\n(.*)$", page, re.MULTILINE)
    assert example is not None
    assert told(capsys, *shlex.split(example[1]))["text"] == example[2]


def test_prefix_and_suffix_are_a_text_with_one_hole(checkpoints: Path, capsys: Capture) -> None:
    model = ("--model", checkpoints / "dream")
    body = told(capsys, "infill", "--prefix", "the", "--suffix", " cat", "--hole", 4, *model)
    assert body == told(capsys, "infill", "the[...4] cat", *model) | {
        "seconds": body["seconds"],
        "usage": body["usage"],
    }


def test_infill_without_a_hole_says_what_one_looks_like(checkpoints: Path, capsys: Capture) -> None:
    assert "[...12] for twelve tokens" in refused(capsys, "infill", "no hole")
    assert "--prefix and --suffix" in refused(capsys, "infill")
    assert "at least one token" in refused(capsys, "infill", "a [...0]")
    assert "none beside a text" in refused(capsys, "infill", "a [...]", "--suffix", "b")
    assert "up to 64" in refused(capsys, "infill", "[...80]", "--model", checkpoints / "dllm_llama", "--user", "x")


def test_layout_pins_everything_but_the_holes() -> None:
    layout = lay_out([(5, 6), (7,), ()], [2, 3], multiple=8, end=9)
    assert layout.holes == (range(2, 4), range(5, 8))
    assert layout.length == 8
    assert layout.width == 16
    assert layout.given == ((0, 5), (1, 6), (4, 7), *[(at, 9) for at in range(8, 16)])


def test_joined_texts_keep_what_was_given() -> None:
    pieces, sizes = split("[...2]a [...] b[...]", 7)
    assert (pieces, sizes) == (["", "a ", " b", ""], [2, 7, 7])
    assert join(pieces, [" X", " Y", " Z"]) == "Xa Y b Z"


# --- edit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_edit_keeps_everything_at_a_threshold_of_zero(family: str, checkpoints: Path, capsys: Capture) -> None:
    text = "A large mocha, please."
    model = ("--model", checkpoints / family)
    body = told(capsys, "edit", text, "--user", "a tea", *model, "--keep-above", 0)
    assert body["text"] == text
    assert body["kept"] == 1.0
    changed = told(capsys, "edit", text, "--instruction", "make it tea", *model, "--keep-above", 1)
    assert changed["kept"] < 1.0


def test_edit_wants_text_and_a_reason(checkpoints: Path, capsys: Capture) -> None:
    assert "some text to change" in refused(capsys, "edit", " ", "--user", "x")
    with pytest.raises(SystemExit) as ended:
        main(["edit", "x"])
    assert ended.value.code == 2


def test_differences_are_marked_word_by_word() -> None:
    assert difference("a large tea", "a small tea now", colours=False) == "a [-large-] {+small+} tea {+now+}"
    assert kept_share((1, 2, 3, 4), (1, 9, 3)) == 0.5


# --- score ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_probabilities_and_shares_add_up(family: str, checkpoints: Path, capsys: Capture) -> None:
    rows = told(capsys, "score", "a tea", "yes", "no", "--model", checkpoints / family)
    assert [row["reply"] for row in rows] == ["yes", "no"]
    assert all(row["log_probability"] < 0 for row in rows)
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    ratio = math.exp(rows[0]["log_probability"] - rows[1]["log_probability"])
    assert rows[0]["share"] / rows[1]["share"] == pytest.approx(ratio)
    assert rows[0]["kind"] == ("causal" if family in ("dllm_llama", "nemotron") else "bound")


def test_score_prints_a_table_and_refuses_what_cannot_be(checkpoints: Path, capsys: Capture) -> None:
    model = ("--model", str(checkpoints / "dream"))
    assert main(["score", "hi", "a long reply", *model, "--draws", "8"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert "a lower bound" in head
    assert float(row.split()[1]) > 0  # drawn: the error is stated
    assert "a causal mode" in refused(capsys, "score", "hi", "a", *model, "--kind", "causal")
    assert "some text" in refused(capsys, "score", "hi", "", *model, "--open")
    assert "even number" in refused(capsys, "score", "hi", "a", *model, "--draws", 3)


# --- bench and inspect ------------------------------------------------------------------------------------------------


def test_bench_measures_every_batch(checkpoints: Path, capsys: Capture) -> None:
    body = told(
        capsys, "bench", "--model", checkpoints / "sdar", "--batch", 1, "--batch", 3, "--prompt", 9, "--width", 8,
        "--steps", 4, "--replies", 1,
    )  # fmt: skip
    assert [row["batch"] for row in body["rows"]] == [1, 3]
    assert not body["random_weights"]
    assert all(row["step_p50_ms"] > 0 and row["tokens_per_second"] >= 0 for row in body["rows"])
    assert main(["bench", "--model", str(checkpoints / "sdar"), "--batch", "2", "--width", "8", "--replies", "1"]) == 0
    assert "random" not in capsys.readouterr().out


def test_bench_keeps_its_cache_in_eight_bits_where_a_family_can(checkpoints: Path, capsys: Capture) -> None:
    argv = ("bench", "--batch", 1, "--prompt", 9, "--width", 8, "--steps", 4, "--replies", 1, "--cache-dtype")
    assert told(capsys, *argv, "e4m3", "--model", checkpoints / "sdar")["rows"][0]["step_p50_ms"] > 0
    assert "--cache-dtype = 'int3': expected e4m3" in refused(capsys, *argv, "int3", "--model", checkpoints / "sdar")
    assert "every dream token sees all others" in refused(
        capsys, *argv, "e4m3", "--json", "--model", checkpoints / "dream"
    )


def test_bench_of_a_geometry_says_random_on_every_line(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometries, "spec_of", lambda name: tiny.spec())
    argv = ["bench", "--geometry", "0.03B", "--batch", "1", "--batch", "2", "--width", "8", "--replies", "1"]
    assert main(argv) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 2
    assert all(row.endswith("random weights") for row in rows)
    monkeypatch.setattr(bench, "free_bytes", lambda place: 10)
    assert "are free on cpu" in refused(capsys, *argv)
    assert "none beside --model" in refused(capsys, *argv, "--model", "x")
    assert "at least 1" in refused(capsys, "bench", "--batch", 0)


@pytest.mark.parametrize(("name", "billions"), [("0.03B", 0.0317), ("1.7B", 2.03), ("4B", 4.41), ("8B", 8.19)])
def test_geometries_have_their_sizes(name: str, billions: float) -> None:
    """SDAR is named after its autoregressive base; its own head comes on top of that where the base ties it."""
    from dllm.commands.inspect import count_parameters
    from dllm.models.registry import family_named

    spec = geometries.spec_of(name)
    total, active = count_parameters(family_named(spec.family), spec)
    assert total == active == pytest.approx(billions * 1e9, rel=0.05)


def test_inspect_tells_a_checkpoint_s_sizes_and_tokens(checkpoints: Path, capsys: Capture) -> None:
    body = told(capsys, "inspect", "--model", checkpoints / "sdar")
    assert body["family"] == "sdar"
    assert body["decoding"]["mask"] == "block_causal"
    assert body["special tokens"]["mask"] == "95 <mask>"
    assert body["missing"] == []
    # Two layers of two heads of eight numbers, keys and values, and a scale of four bytes for each head.
    assert body["memory"]["float32"].endswith("0.25 KiB a cached token")
    assert body["memory"]["e4m3 cache"] == "0.09 KiB a cached token"
    assert main(["inspect", str(checkpoints / "dllm_llama")]) == 0, "named like that it is a checkpoint as well"
    printed = capsys.readouterr().out
    assert "missing: nothing" in printed
    assert "self_speculative" in printed


def test_inspect_works_without_weights_and_says_what_is_missing(
    checkpoints: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "config.json").write_text((checkpoints / "dream" / "config.json").read_text())
    body = told(capsys, "inspect", "--model", tmp_path)
    assert body["family"] == "dream"
    assert body["parameters"].endswith(" M")
    assert [entry.partition(" ")[0] for entry in body["missing"]] == ["weights", "tokenizer"]
    (tmp_path / "config.json").write_text("{}")
    assert "no model family" in refused(capsys, "inspect", "--model", tmp_path)


# --- screens ----------------------------------------------------------------------------------------------------------


def test_control_characters_of_a_reply_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\nc\td") == "a [2Jb↵c d"
    assert safe("a\x1b[2Jb\nc") == "a[2Jb\nc"


def test_a_character_of_several_tokens_appears_with_its_last() -> None:
    codec = tiny.codec()
    of_byte = {codec.token_bytes(token): token for token in range(codec.vocab_size)}
    tokens = [of_byte[bytes([byte])] for byte in "é".encode()]
    mask = Cell(codec.special.mask, CellState.MASKED, 0.0)
    first, second = (Cell(token, CellState.COMMITTED, 1.0) for token in tokens)
    reader = CellReader(codec)
    assert [reader.read(cell) for cell in (first, second, first, mask, second)] == ["", "é", "", "", ""]
    shown = io.StringIO()
    assert CanvasScreen(codec, shown, colours=False).line([first, second, mask]) == "é_"


def test_loading_shows_how_far_it_is_and_clears_its_line() -> None:
    stream = io.StringIO()
    bar = LoadBar(stream)
    bar(LoadProgress(2**30, 2**31, "a"))
    bar(LoadProgress(2**31, 2**31, "b"))
    bar.clear()
    shown = stream.getvalue()
    assert "1.00 of 2.00 GiB" in shown
    assert "[########################]" in shown
    assert shown.endswith("\r\x1b[K")
