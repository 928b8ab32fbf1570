"""`dllm score`: how probable replies are."""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict

from dllm.commands import decoding, model
from dllm.commands.edit import reply_tokens
from dllm.commands.generate import text_of
from dllm.commands.screen import printable
from dllm.errors import ConfigError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "score",
        help="log-probabilities of replies, and of several their shares",
        epilog="Models with a causal mode have an exact likelihood; others an any-order lower bound, drawn where there are more "
        "patterns of masks than --draws.",
    )
    parser.add_argument("text", help="the prompt: what the user said; - reads it from standard input")
    parser.add_argument("replies", nargs="+", metavar="reply")
    parser.add_argument("--kind", choices=("auto", "causal", "bound"), default="auto")
    parser.add_argument("--draws", type=int, default=128, help="patterns of masks per block; an even number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--width", type=int, help="canvas positions, for the bound; default: the least that holds the longest"
    )
    parser.add_argument("--open", action="store_true", help="the replies may go on: no end-of-turn is scored")
    parser.add_argument("--json", action="store_true")
    model.add_model_arguments(parser)
    decoding.add_prompt_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dllm import score

    checkpoint = model.load(args)
    prompt = decoding.prompt_tokens(args, text_of(args.text), checkpoint)
    replies = [reply_tokens(reply, checkpoint) for reply in args.replies]
    if args.open:
        replies = [reply[:-1] for reply in replies]
    if empty := [text for text, reply in zip(args.replies, replies, strict=True) if not reply]:
        raise ConfigError("reply", empty[0], "some text")
    # All replies on canvases of one width: how many masks follow changes the answer.
    width = args.width or max(len(reply) for reply in replies)
    multiple = checkpoint.spec.canvas_multiple
    width = -(-width // multiple) * multiple
    is_exact = args.kind == "causal" or (args.kind == "auto" and checkpoint.spec.causal_verify)
    found = [
        score.causal_likelihood(checkpoint.model, prompt, reply)
        if is_exact
        else score.likelihood_bound(checkpoint.model, prompt, reply, draws=args.draws, seed=args.seed, width=width)
        for reply in replies
    ]
    highest = max(one.log_probability for one in found)
    weights = [math.exp(one.log_probability - highest) for one in found]
    shares = [weight / sum(weights) for weight in weights]
    if args.json:
        rows = [
            {"reply": text, **asdict(one), "per_token": one.per_token, "share": share}
            for text, one, share in zip(args.replies, found, shares, strict=True)
        ]
        print(json.dumps(rows))
        return 0
    kind = "exact" if is_exact else "a lower bound"
    print(f"{'nats':>10} {'±':>7} {'tokens':>6} {'a token':>8} {'share':>7}   ({kind})")
    for text, one, share in zip(args.replies, found, shares, strict=True):
        shown = printable(text) if sys.stdout.isatty() else text
        print(
            f"{one.log_probability:10.3f} {one.standard_error:7.3f} {one.tokens:6d} {one.per_token:8.3f} {share:7.4f}   {shown}"
        )
    return 0
