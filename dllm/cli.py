"""The `dllm` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from webserving.command import ended, interrupted_at_once  # All else is imported behind it.

if TYPE_CHECKING:
    import argparse

COMMANDS = {
    "generate": "dllm.commands.generate",
    "chat": "dllm.commands.chat",
    "infill": "dllm.commands.infill",
    "edit": "dllm.commands.edit",
    "score": "dllm.commands.score",
    "transcript": "dllm.commands.transcript",
    "serve": "dllm.server.command",
    "bench": "dllm.commands.bench",
    "inspect": "dllm.commands.inspect",
    "train": "dllm.commands.train",
    "distill": "dllm.commands.distill",
    "retell": "dllm.commands.retell",
    "prefer": "dllm.commands.prefer",
    "reinforce": "dllm.commands.reinforce",
    "eval": "dllm.commands.evaluate",
    "export": "dllm.commands.export",
    "convert": "dllm.commands.convert",
    "finetune": "dllm.commands.finetune",
}
"""Where each command is; the module adds it with `add_parser`."""
ENVIRONMENT = {"model": "DLLM_MODEL", "device": "DLLM_DEVICE"}
"""Which variable stands in for which argument."""
_EPILOG = "DLLM_MODEL and DLLM_DEVICE in the environment stand in for --model and --device where those are not given."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it did what was asked, 1 when its output cannot be written, 2 when it could not, 130 when it was interrupted."""
    return ended("dllm", lambda: _run(list(sys.argv[1:] if argv is None else argv)))


def _run(given: Sequence[str]) -> int:
    with interrupted_at_once():
        from dllm.commands.decoding import utf8
        from dllm.errors import DllmError

        parser = build_parser(given, os.environ)
    command = ""
    try:
        args = parser.parse_args(given)
        command = args.command
        for argument in given:
            utf8(argument, "argument")
        return int(args.run(args))
    except DllmError as error:
        print(f"dllm {command}: {error}", file=sys.stderr)
        return 2


def build_parser(argv: Sequence[str], environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """The parser of the command that `argv` begins with, or of all: the server's libraries take a second to import."""
    import argparse
    import importlib

    parser = argparse.ArgumentParser(prog="dllm", description=__doc__, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"dllm {_version()}")
    commands = parser.add_subparsers(dest="command", required=True)
    wanted = [argv[0]] if argv and argv[0] in COMMANDS else list(COMMANDS)
    for name in wanted:
        importlib.import_module(COMMANDS[name]).add_parser(commands)
    for command in commands.choices.values():
        known = {action.dest for action in command._actions}
        for name, variable in ENVIRONMENT.items():
            if name in known and environment.get(variable):
                command.set_defaults(**{name: environment[variable]})
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("voiceagent")
    except PackageNotFoundError:  # Run from its sources, as training on a borrowed GPU is.
        return "(not installed)"
