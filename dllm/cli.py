"""The `dllm` command."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

from dllm.errors import DllmError

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
    """Run one command; 0 when it did what was asked, 2 when it could not, 130 when it was interrupted."""
    given = list(sys.argv[1:] if argv is None else argv)
    command = ""
    try:
        with _interrupted_at_once():
            from dllm.commands.decoding import utf8

            parser = build_parser(given, os.environ)
        args = parser.parse_args(given)
        command = args.command
        for argument in given:
            utf8(argument, "argument")
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except DllmError as error:
        print(f"dllm {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextlib.contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """End the process with 130 when it is interrupted: for imports, before there is anything to be closed.

    PyTorch takes a second or more to import. An exception amid that is a traceback, or is lost in it and the command goes on.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def build_parser(argv: Sequence[str], environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """The parser of the command that `argv` begins with, or of all: the server's libraries take a second to import."""
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
    try:
        return version("voiceagent")
    except PackageNotFoundError:  # Run from its sources, as training on a borrowed GPU is.
        return "(not installed)"
