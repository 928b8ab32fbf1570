"""docs/dllm.md is true: its Python runs, and its commands exist with the arguments that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dllm.cli import COMMANDS, build_parser

PAGE = (Path(__file__).parents[2] / "docs" / "dllm.md").read_text("utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_python_of_the_page_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "docs/dllm.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_every_command_is_told_about_and_every_argument_told_about_exists() -> None:
    parser = build_parser([], {})
    (commands,) = (action for action in parser._actions if action.dest == "command")
    known = {option for command in commands.choices.values() for option in command._option_string_actions}  # type: ignore[union-attr]
    training = {"train", "eval", "export"}
    assert all(f"{name}**" in PAGE or f"dllm {name}" in PAGE for name in COMMANDS if name not in training)
    elsewhere = {"--model_args", "--tasks", "--apply_chat_template", "--slow"}
    assert set(re.findall(r"--[a-z][a-z_-]+", PAGE)) - elsewhere <= known
