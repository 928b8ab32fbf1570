"""The `dllm` command."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from dllm.errors import ConfigError, DllmError

_BUILTIN_CONFIG = Path(__file__).parent / "configs" / "builtin.toml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it did what was asked, 2 when it could not."""
    parser = argparse.ArgumentParser(prog="dllm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands)
    _add_generate(commands)
    _add_eval(commands)
    _add_export(commands)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except DllmError as error:
        print(f"dllm {args.command}: {error}", file=sys.stderr)
        return 2


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("train", help="train a model on folders of dialogues")
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="folder of dialogues; may be repeated"
    )
    parser.add_argument("--out", type=Path, required=True, help="run folder")
    parser.add_argument("--config", type=Path, help="TOML; default: the built-in model's")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_argument("--minutes", type=float, help="budget in minutes of work instead of tokens")
    parser.add_argument("--tokens", type=int, help="budget in positions; default: the configuration's")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json to use instead of training one")
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0)
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    from dllm.text import DialogueCodec
    from dllm.train.config import TrainConfig
    from dllm.train.data import Mixture
    from dllm.train.trainer import Budget, StepReport, Trainer, make_codec

    if not args.resume and (args.out / "state.pt").exists():
        raise ConfigError("--out", str(args.out), "a folder without a run, or --resume to continue the one in it")
    config = TrainConfig.load(args.config or _BUILTIN_CONFIG)
    tokenizer = args.out / "tokenizer.json" if args.resume else args.tokenizer
    codec = DialogueCodec.load(tokenizer) if tokenizer else make_codec(args.data, config)
    budget = Budget(args.tokens or config.tokens, args.minutes * 60 if args.minutes else None)
    trainer = Trainer(args.out, Mixture(args.data, codec, config), codec, config, budget)
    if args.resume:
        trainer.restore()
    args.out.mkdir(parents=True, exist_ok=True)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    layers = "layers compiled" if trainer.is_compiled else "layers not compiled"
    print(f"{parameters / 1e6:.2f} M parameters, {layers}, sources: {', '.join(trainer.mixture.sources)}", flush=True)
    with (args.out / "log.jsonl").open("a", encoding="utf-8") as log:

        def on_step(report: StepReport) -> None:
            log.write(json.dumps(asdict(report)) + "\n")
            if report.step % 10 == 0 or report.step == 1:
                log.flush()
                print(
                    f"step {report.step} tokens {report.tokens} diffusion {report.diffusion:.3f} causal {report.causal:.3f} "
                    f"gradient {report.gradient_norm:.2f} rate {report.learning_rate:.3f} {report.seconds:.0f} s "
                    f"({report.tokens / report.seconds:.0f} positions/s)",
                    flush=True,
                )

        stop = threading.Event()
        before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
        try:
            trainer.run(
                on_step, lambda: print(f"saved {args.out}", flush=True), args.checkpoint_minutes * 60, stop.is_set
            )
        finally:
            signal.signal(signal.SIGTERM, before)
    return 0


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("generate", help="write one reply and show its canvas step by step")
    parser.add_argument("user", help="what the user said last")
    parser.add_argument("--model", type=Path, help="checkpoint folder; default: the built-in model")
    parser.add_argument("--system", default="", help="system turn")
    parser.add_argument(
        "--turn", action="append", default=[], metavar="ROLE:TEXT", help="an earlier turn; may be repeated"
    )
    parser.add_argument("--note", default="", help="tool result shown to the model after the user's turn")
    parser.add_argument("--pin", action="append", default=[], help="text that must be said; may be repeated")
    parser.add_argument("--width", type=int, default=40)
    parser.add_argument("--steps-first", type=int, default=6)
    parser.add_argument("--steps-rest", type=int, default=10)
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true", help="print the reply only")
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> int:
    from dllm import loader
    from dllm.drafts import Cell, CellState, DraftSpec, Failed, Finished, Plan, Prefilled, Stepped
    from dllm.engine import Engine
    from dllm.options import DecodeOptions
    from dllm.text import ROLES, Role, spoken_form

    checkpoint = loader.load(args.model)
    codec = checkpoint.dialogue_codec
    turns: list[tuple[Role, str]] = [("system", args.system)] if args.system else []
    for turn in args.turn:
        role, _, text = turn.partition(":")
        if role not in ROLES:
            raise ConfigError("--turn", turn, f"ROLE:TEXT with a role of {', '.join(ROLES)}")
        turns.append((role, text))
    turns.append(("user", spoken_form(args.user)))
    if args.note:
        turns.append(("note", args.note))

    def show(cell: Cell) -> str:
        if cell.token == codec.special.end:
            return "|"
        if cell.state in (CellState.COMMITTED, CellState.PINNED):
            return codec.token_bytes(cell.token).decode("utf-8", "replace")
        return "_"

    engine = Engine(checkpoint.model, codec.token_table)
    plan = Plan(args.steps_first, args.steps_rest, args.threshold)
    pins = tuple(codec.encode_pin(pin) for pin in args.pin)
    prompt = tuple(codec.encode_prompt(turns))
    engine.submit(
        DraftSpec(
            prompt, "generate", args.width, plan, pins, DecodeOptions(temperature=args.temperature, seed=args.seed)
        )
    )
    while engine.drafts:
        for event in engine.run_round():
            match event:
                case Prefilled() if not args.quiet:
                    print(f"prefill {event.new_tokens} tokens, {event.seconds * 1e3:.1f} ms")
                case Stepped() if not args.quiet:
                    cells = "".join(show(cell) for cell in event.canvas)
                    print(f"{event.step:3d} {event.phase:5s} {event.seconds * 1e3:5.1f} ms |{cells}|")
                case Finished():
                    print(codec.decode(event.tokens).strip())
                case Failed():
                    raise event.error
                case _:
                    pass
    return 0


def _add_eval(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("eval", help="held-back likelihood; with `steps`, quality by number of steps")
    parser.add_argument("what", nargs="?", choices=("likelihood", "steps"), default="likelihood")
    parser.add_argument("--model", type=Path, help="checkpoint folder; default: the built-in model")
    parser.add_argument(
        "--data", type=Path, action="append", required=True, help="folder of dialogues; may be repeated"
    )
    parser.add_argument("--config", type=Path, help="TOML of the mixture; default: the built-in model's")
    parser.add_argument("--split", choices=("train", "dev"), default="dev")
    parser.add_argument("--rows", type=int, default=50, help="dialogue windows per source (steps: prompts in all)")
    parser.add_argument("--draws", type=int, default=4, help="mask patterns per answer")
    parser.add_argument("--out", type=Path, help="steps: file to write; default: quality_curve.json beside the weights")
    parser.set_defaults(run=_eval)


def _eval(args: argparse.Namespace) -> int:
    from dllm import loader
    from dllm.evaluate.likelihood import held_back_likelihood
    from dllm.evaluate.steps import curve_path, measure, prompts_from_rows
    from dllm.models.transformer import Transformer
    from dllm.train.config import TrainConfig
    from dllm.train.data import Mixture

    checkpoint = loader.load(args.model)
    config = replace(TrainConfig.load(args.config or _BUILTIN_CONFIG), renamed_share=0.0)
    model = checkpoint.model
    assert isinstance(model, Transformer)
    mixture = Mixture(args.data, checkpoint.dialogue_codec, config, args.split)
    if args.what == "steps":
        rows = [mixture.row(number) for number in range(args.rows)]
        report = measure(model, checkpoint.codec.token_table, prompts_from_rows(rows))
        path = args.out or curve_path(checkpoint.path)
        path.write_text(json.dumps(report.to_json(), indent=1) + "\n", "utf-8")
        print(f"{'width':>6} " + " ".join(f"{count:>6}" for count in report.steps) + "   (quality by steps per phase)")
        for width, row in zip(report.widths, report.quality, strict=True):
            print(f"{width:6d} " + " ".join(f"{value:6.3f}" for value in row))
        print(f"wrote {path}")
        return 0
    print(f"{'source':24s} {'diffusion':>10} {'causal':>8} {'answers':>8} {'tokens':>8}   (nats per token)")
    for name in mixture.sources:
        rows = mixture.rows_of(name, args.rows)
        result = held_back_likelihood(model, rows, config, args.draws)
        print(f"{name:24s} {result.diffusion:10.3f} {result.causal:8.3f} {result.answers:8d} {result.tokens:8d}")
    return 0


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("export", help="copy a run's averaged weights to a checkpoint folder")
    parser.add_argument("--run", dest="run_folder", type=Path, required=True, help="run folder of `dllm train`")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    from dllm import loader

    source = args.run_folder / "export"
    checkpoint = loader.load(source)
    loader.save(args.out, checkpoint.spec, dict(checkpoint.model.named_parameters()), checkpoint.codec)
    size = (args.out / "model.safetensors").stat().st_size
    print(f"wrote {args.out}, weights {size / 2**20:.1f} MiB")
    return 0
