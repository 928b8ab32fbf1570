"""From a command's arguments to what the engine is told: options, plan, canvas width, constraint."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dllm.drafts import Plan
from dllm.errors import ConfigError
from dllm.habits import family_options, usual_steps, widest_canvas
from dllm.options import Cache, DecodeOptions, Mode, Rule

if TYPE_CHECKING:
    from dllm.codec import Codec, Message
    from dllm.constraints import GrammarConstraint
    from dllm.loader import Checkpoint
    from dllm.spec import ModelSpec

BUILTIN_WIDTH = 40
"""Positions of a reply of the built-in model, which answers in one or two sentences."""
WIDTH = 128
_SIMPLE = (
    "rule", "factor", "entropy_bound", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "block", "cache",
    "mode", "edit_threshold", "wino_threshold", "remask_eta", "min_tokens", "target_tokens", "keep_above",
)  # fmt: skip
"""Options that have an argument of the same name."""
_OWN = ("logit_bias", "banned", "anneal")
"""Options that are no plain value: not by `--option`."""


def add_decode_arguments(parser: argparse.ArgumentParser, *, with_width: bool = True) -> None:
    plan = parser.add_argument_group("steps")
    if with_width:
        plan.add_argument(
            "--width", type=int, help=f"canvas positions; default {WIDTH}, the built-in model's {BUILTIN_WIDTH}"
        )
    plan.add_argument("--steps", type=int, help="at most so many denoising steps; default: one for two positions")
    plan.add_argument("--steps-first", type=int, help="instead: steps until the first clause is decided …")
    plan.add_argument("--steps-rest", type=int, help="… and for the rest")
    plan.add_argument("--threshold", type=float, help="confidence that decides a token; default: the family's")
    how = parser.add_argument_group("decoding", "defaults are the family's; see DecodeOptions in dllm/options.py")
    how.add_argument("--rule", choices=get_args(Rule))
    how.add_argument("--factor", type=float)
    how.add_argument("--entropy-bound", type=float, help="nats")
    how.add_argument("--temperature", type=float)
    how.add_argument("--top-p", type=float)
    how.add_argument("--top-k", type=int)
    how.add_argument("--repetition-penalty", type=float)
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--mode", choices=get_args(Mode))
    how.add_argument("--block", type=int, help="full-mask models: positions decoded together; 0 is all")
    how.add_argument("--cache", choices=get_args(Cache))
    how.add_argument("--edit-threshold", type=float)
    how.add_argument("--wino-threshold", type=float)
    how.add_argument("--remask-eta", type=float)
    how.add_argument("--min-tokens", type=int)
    how.add_argument("--target-tokens", type=int, help="preferred length")
    how.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="any other; may be repeated")


def add_constraint_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what the reply must be")
    group.add_argument(
        "--must", "--pin", action="append", default=[], metavar="TEXT", help="must be said; may be repeated"
    )
    group.add_argument("--ban", action="append", default=[], metavar="TEXT", help="must not be said; may be repeated")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the reply; may be repeated")
    grammar = group.add_mutually_exclusive_group()
    grammar.add_argument("--regex", help="the whole reply matches it")
    grammar.add_argument("--schema", type=Path, metavar="FILE", help="the reply is JSON of this schema")
    grammar.add_argument("--choice", action="append", default=[], metavar="TEXT", help="the reply is one of these")


def options(args: argparse.Namespace, checkpoint: Checkpoint, **changes: Any) -> DecodeOptions:
    """The family's habits with what the arguments say instead.

    Raises:
        ConfigError: If a value is out of range or unknown.
    """

    for name in _SIMPLE:
        if (value := getattr(args, name, None)) is not None:
            changes.setdefault(name, value)
    for text in getattr(args, "option", ()):
        name, value = read_option(text)
        changes[name] = value
    if banned := getattr(args, "ban", ()):
        changes["banned"] = banned_phrases(banned, checkpoint.codec)
    habits = family_options(checkpoint.defaults, checkpoint.spec)
    if is_constrained(args):
        # What a family revises by habit stays: a grammar needs decided tokens that stay.
        habits = dataclasses.replace(habits, edit_threshold=None)
    return dataclasses.replace(habits, **changes)


def read_option(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value of the type that the option's default has."""
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    known = {field.name: field for field in dataclasses.fields(DecodeOptions) if field.name not in _OWN}
    if name not in known or not equals:
        raise ConfigError("--option", text, f"NAME=VALUE with a name of {', '.join(sorted(known))}")
    default = known[name].default
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = value.strip()
    is_number = isinstance(parsed, int | float) and not isinstance(parsed, bool)
    match default:
        case bool():
            fits, kind = isinstance(parsed, bool), "true or false"
        case int():
            fits, kind = isinstance(parsed, int) and is_number, "a whole number"
        case float() | None:
            fits, kind = is_number or (default is None and parsed is None), "a number"
        case _:
            fits, kind = isinstance(parsed, str), "a word"
    if not fits:
        raise ConfigError(f"--option {name}", value, kind)
    return name, parsed


def banned_phrases(texts: Sequence[str], codec: Codec) -> tuple[tuple[int, ...], ...]:
    """Each text as it stands at the beginning and after a space."""
    found: dict[tuple[int, ...], None] = {}
    for text in texts:
        if not text.strip():
            raise ConfigError("--ban", text, "some text")
        found[tuple(codec.encode(text.strip()))] = None
        found[tuple(codec.encode(" " + text.strip()))] = None
    return tuple(found)


def is_constrained(args: argparse.Namespace) -> bool:
    return (
        any(getattr(args, name, None) for name in ("regex", "schema", "choice")) or getattr(args, "regex", None) == ""
    )


def constraint(args: argparse.Namespace, codec: Codec, *, leading_space: bool) -> GrammarConstraint | None:
    """
    Raises:
        ConfigError: If the expression or the schema cannot be read or compiled.
    """
    from dllm import grammar

    if args.regex is not None:
        return grammar.compile_regex(args.regex, codec, leading_space=leading_space)
    if args.schema is not None:
        return grammar.compile_json_schema(read_json(args.schema), codec, leading_space=leading_space)
    if args.choice:
        return grammar.compile_choices(args.choice, codec, leading_space=leading_space)
    return None


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("--schema", str(path), f"a JSON file ({error})") from error


def width_of(args: argparse.Namespace, spec: ModelSpec, prompt_tokens: int) -> int:
    """Canvas positions: as asked for, or the default as far as the model and its context reach.

    Raises:
        PromptTooLongError: If there is no room for a canvas.
    """
    if args.width is not None:
        width: int = args.width
        return width
    wanted = BUILTIN_WIDTH if spec.dialogue is not None else WIDTH
    return min(-(-wanted // spec.canvas_multiple) * spec.canvas_multiple, widest_canvas(spec, prompt_tokens))


def plan(args: argparse.Namespace, checkpoint: Checkpoint, width: int) -> Plan:
    """
    Raises:
        ConfigError: If a number is out of range, or steps are given in both ways.
    """
    threshold = checkpoint.defaults.threshold if args.threshold is None else args.threshold
    if args.steps_first is not None or args.steps_rest is not None:
        if args.steps is not None:
            raise ConfigError("--steps", args.steps, "none beside --steps-first and --steps-rest")
        usual = Plan()
        first = usual.steps_first if args.steps_first is None else args.steps_first
        rest = usual.steps_rest if args.steps_rest is None else args.steps_rest
        return Plan(first, rest, threshold)
    steps = usual_steps(width, checkpoint.defaults.steps) if args.steps is None else args.steps
    if steps < 1:
        raise ConfigError("--steps", steps, "at least 1")
    return Plan(steps, steps, threshold, by_clause=False)


# --- prompts ----------------------------------------------------------------------------------------------------------

_ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "agent": "assistant",
    "tool": "tool",
    "note": "tool",
}


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompt")
    group.add_argument("--system", default="", help="system turn")
    group.add_argument(
        "--turn",
        action="append",
        default=[],
        metavar="ROLE:TEXT",
        help="an earlier turn of user, assistant or tool; may be repeated",
    )
    group.add_argument("--note", default="", help="tool result shown to the model after the user's turn")
    group.add_argument(
        "--raw", action="store_true", help="the prompt is plain text to be continued, not a turn of a chat"
    )


def prompt_tokens(args: argparse.Namespace, text: str, checkpoint: Checkpoint) -> tuple[int, ...]:
    """The prompt as tokens: a chat that `text` ends as the user's turn, or with `--raw` the text itself.

    Raises:
        ConfigError: If a turn's role is unknown or the template refuses the chat.
    """
    if args.raw:
        if args.system or args.turn or args.note:
            raise ConfigError("--raw", True, "no --system, --turn or --note beside it")
        return plain_tokens(text, checkpoint)
    return chat_tokens(messages(args, text), checkpoint)


def utf8(text: str, name: str) -> str:
    """The text, unless it came from bytes that are none: Python keeps those as lone surrogates, which no tokenizer takes.

    Raises:
        ConfigError: Naming where the text came from.
    """
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ConfigError(name, text, "UTF-8 text")
    return text


def plain_tokens(text: str, checkpoint: Checkpoint) -> tuple[int, ...]:
    """Tokens of a text to be continued; of none, the token that stands at a beginning."""
    tokens = tuple(checkpoint.codec.encode(text))
    special = checkpoint.spec.special
    return tokens or ((special.end if special.bos is None else special.bos),)


def messages(args: argparse.Namespace, text: str) -> list[Message]:
    from dllm.codec import Message

    found = [Message("system", args.system)] if args.system else []
    for turn in args.turn:
        role, colon, said = turn.partition(":")
        if role not in _ROLES or not colon:
            raise ConfigError("--turn", turn, f"ROLE:TEXT with a role of {', '.join(_ROLES)}")
        found.append(Message(_ROLES[role], said.strip()))  # type: ignore[arg-type]
    found.append(Message("user", text))
    if args.note:
        found.append(Message("tool", args.note))
    return found


def chat_tokens(chat: Sequence[Message], checkpoint: Checkpoint) -> tuple[int, ...]:
    """The built-in model's users speak: their turns are written as a recogniser would."""
    if checkpoint.spec.dialogue is not None:
        from dllm.spoken import spoken_form

        chat = [
            dataclasses.replace(message, text=spoken_form(message.text)) if message.role == "user" else message
            for message in chat
        ]
    return tuple(checkpoint.codec.encode_chat(chat))


HOLE = re.compile(r"\[\.\.\.(\d*)\]")
"""`[...]`, or `[...12]` for twelve tokens."""
