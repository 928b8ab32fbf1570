"""`dllm chat`: a conversation at a terminal, or one turn for each line of a pipe."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dllm.codec import Message
from dllm.commands import decoding, model
from dllm.commands.screen import DIM, PLAIN, safe
from dllm.commands.writing import Written, reply_of, write
from dllm.drafts import DraftSpec
from dllm.errors import ConfigError, DllmError, DraftError

if TYPE_CHECKING:
    from dllm.engine import Engine
    from dllm.loader import Checkpoint

HELP = """/system TEXT   another system turn, and a new conversation
/new           forget the conversation
/usage         what the last reply cost
/quit          end; so does the end of the input"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("chat", help="talk; each line of a pipe is a turn")
    model.add_model_arguments(parser)
    parser.add_argument("--system", default="", help="system turn")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends a reply; may be repeated")
    parser.add_argument("--ban", action="append", default=[], metavar="TEXT", help="must not be said; may be repeated")
    decoding.add_decode_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    checkpoint = model.load(args)
    talk = Talk(args, checkpoint)
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(HELP, file=sys.stderr)
    for line in _lines(is_terminal):
        try:
            if line.startswith("/"):
                if not talk.command(line):
                    break
            else:
                talk.say(line)
        except (DraftError, ConfigError) as error:
            if not is_terminal:
                raise
            hint = " (/new forgets the conversation)" if isinstance(error, DraftError) else ""
            print(f"{error}{hint}", file=sys.stderr)
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print(file=sys.stderr)
    return 0


def _lines(is_terminal: bool) -> Iterator[str]:
    """Lines that are not empty."""
    if is_terminal:
        import readline  # noqa: F401 - gives `input` a history and its keys
    while True:
        try:
            line = decoding.utf8(input("> ") if is_terminal else sys.stdin.readline(), "standard input")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        except UnicodeDecodeError as error:
            raise ConfigError("standard input", str(error), "UTF-8 text") from error
        if not line and not is_terminal:
            return
        if line.strip():
            yield line.strip()


class Talk:
    """A conversation whose turns so far stay in the prefix cache."""

    def __init__(self, args: argparse.Namespace, checkpoint: Checkpoint) -> None:
        self._args, self._checkpoint = args, checkpoint
        self._engine: Engine = model.engine(checkpoint)
        self._options = decoding.options(args, checkpoint)
        self._system = args.system
        self._turns: list[Message] = []
        self.last: Written | None = None

    def say(self, text: str) -> Written:
        """One turn; its reply is printed while it becomes certain. A reply that fails leaves the conversation as it was.

        Raises:
            DllmError: If the reply cannot be written.
        """
        opening = [Message("system", self._system)] if self._system else []
        chat = [*opening, *self._turns, Message("user", text)]
        prompt = decoding.chat_tokens(chat, self._checkpoint)
        width = decoding.width_of(self._args, self._checkpoint.spec, len(prompt))
        spec = DraftSpec(
            prompt,
            "chat",
            width,
            decoding.plan(self._args, self._checkpoint, width),
            options=self._options,
        )
        is_terminal = sys.stdout.isatty()

        def show(event: object, deltas: Sequence[object]) -> None:
            for delta in deltas:
                told: str = getattr(delta, "text", "")
                sys.stdout.write(safe(told) if is_terminal else told)
            sys.stdout.flush()

        try:
            written = write(self._engine, spec, reply_of(self._checkpoint, width, self._args.stop), show)
        except (DllmError, KeyboardInterrupt):
            sys.stdout.write("\n")
            raise
        sys.stdout.write("\n")
        sys.stdout.flush()
        self._turns += [Message("user", text), Message("assistant", written.text)]
        self.last = written
        return written

    def command(self, line: str) -> bool:
        """Obey a line that begins with a slash; False ends the chat.

        Raises:
            ConfigError: If there is no such command.
        """
        word, _, rest = line.partition(" ")
        match word:
            case "/quit":
                return False
            case "/new":
                self._forget()
            case "/system":
                self._system = rest.strip()
                self._forget()
            case "/usage":
                said = "nothing was written yet" if self.last is None else self.last.summary()
                print(f"{DIM}{said}{PLAIN}" if sys.stderr.isatty() else said, file=sys.stderr)
            case "/help":
                print(HELP, file=sys.stderr)
            case _:
                raise ConfigError("command", word, "/system, /new, /usage, /help or /quit")
        return True

    def _forget(self) -> None:
        self._turns.clear()
        self._engine.forget("chat")
