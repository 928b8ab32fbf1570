"""The `voiceagent` command."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from webserving.command import ended, interrupted_at_once  # All else is imported behind it.

if TYPE_CHECKING:
    import argparse

    from voice_pipelines.download import Progress
    from voice_pipelines.local import LocalRuntime
    from voiceagent.backends import BackendInfo, Part
    from voiceagent.config import Config
    from voiceagent.server_settings import ServerSettings

PARTS: Mapping[Part, str] = {
    "vad": "VAD",
    "asr": "ASR",
    "llm": "LLM",
    "tts": "TTS",
    "endpoint": "ENDPOINT",
    "repair": "REPAIR",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it did what was asked, 1 when it found something wrong, 2 when it could not, 130 when it was interrupted."""
    return ended("voiceagent", lambda: _act(argv))


def _act(argv: Sequence[str] | None) -> int:
    with interrupted_at_once():
        import logging

        from voiceagent.errors import VoiceAgentError

        parser = _parser()
    args = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if not args.verbose:
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request to a remote model
    try:
        return int(args.act(args))
    except VoiceAgentError as error:
        print(f"voiceagent {args.command}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser(prog="voiceagent", description="A self-hosted, low-latency voice agent.")
    parser.add_argument("--version", action="version", version=f"voiceagent {_version()}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more")
    commands = parser.add_subparsers(dest="command", required=True)

    for name, about in (("run", "serve the page and the realtime protocol"), ("serve", "the same as run")):
        run = commands.add_parser(name, help=about)
        _add_config(run)
        for option, key, about_option in (
            ("--host", "server.host", "address to listen on"),
            ("--port", "server.port", "port to listen on"),
            ("--api-key", "server.api_key", "key that clients must present"),
            ("--tls-cert", "server.tls_cert", "certificate (PEM) for https, which phones need for the microphone"),
            ("--tls-key", "server.tls_key", "private key (PEM) of the certificate"),
        ):
            run.add_argument(option, dest=key, metavar=option[2:].upper().replace("-", "_"), help=about_option)
        run.set_defaults(act=_run)

    say = commands.add_parser("say", help="stream a recording through the agent and show every stage")
    say.add_argument("file", type=Path, help="the caller's words: WAV, FLAC or anything libsndfile reads")
    say.add_argument("--out", type=Path, help="write the reply here (WAV)")
    say.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    say.add_argument("--speech-end", type=float, metavar="SECONDS", help="true end of speech, where it is known")
    _add_config(say)
    say.set_defaults(act=_say)

    told = commands.add_parser("explain", help="say in words where the time of a turn went")
    told.add_argument(
        "turn", nargs="?", default="last", metavar="TURN", help="`last`, `-2` (the last but one) or a response's id"
    )
    told.add_argument(
        "--file", type=Path, help="a timeline as JSON, or what `say --json` printed, instead of a remembered turn"
    )
    _add_config(told)
    told.set_defaults(act=_explain)

    models = commands.add_parser("models", help="list or fetch models")
    actions = models.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="what can be fetched and what is there")
    _add_config(listing)
    listing.set_defaults(act=_list_models)
    fetch = actions.add_parser("fetch", help="download a model")
    fetch.add_argument("names", nargs="+", metavar="NAME")
    _add_config(fetch)
    fetch.set_defaults(act=_fetch)

    doctor = commands.add_parser("doctor", help="check this machine and say what to do")
    _add_config(doctor)
    doctor.set_defaults(act=_doctor)
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("voiceagent")
    except PackageNotFoundError:  # Run from its sources.
        return "(not installed)"


def _add_config(parser: argparse.ArgumentParser) -> None:
    from pathlib import Path

    parser.add_argument("--config", type=Path, metavar="FILE", help="your TOML file")
    parser.add_argument("--preset", metavar="NAME", help="built-in preset or a TOML file: the agent to start from")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; may be repeated"
    )


def _config(args: argparse.Namespace) -> Config:
    with interrupted_at_once():
        from voice_pipelines import settings

    pairs = list(args.set)
    if args.preset:
        pairs.append(f"preset={args.preset}")
    pairs += [f"{key}={value}" for key, value in vars(args).items() if key.startswith("server.") and value is not None]
    return settings.load(file=args.config, assignments=pairs, environ=os.environ)


# --- run --------------------------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    with interrupted_at_once():
        import logging

        from voice_pipelines.settings import open_files
        from voiceagent.config_keys import checked
        from voiceagent.serving import check_address, run
        from webserving.descriptors import raise_limit

    config = _config(args)
    # Whether this address may be served at all, and is free, is known before any model is loaded.
    server_settings = config.server.settings()
    checked("server", lambda: check_address(server_settings))
    raise_limit(open_files(config), logging.getLogger(__name__).warning)
    run(_serve(config, server_settings))
    return 0


async def _serve(config: Config, server_settings: ServerSettings) -> None:
    from voice_pipelines.local import build

    await serve_runtime(await build(config, report=print_info, remembers=True), server_settings)


async def serve_runtime(runtime: LocalRuntime, server_settings: ServerSettings) -> None:
    """Serve it until the process is told to stop, and close it."""
    from voiceagent.server import create_app
    from voiceagent.serving import serve

    try:
        app = create_app(runtime, server_settings)
        # What is loaded by now stays. With it in view a full collection looks through 315,000 objects and holds the event loop
        # for 160 ms of processor time (AMD EPYC, built-in models), which every caller hears.
        gc.collect()
        gc.freeze()
        await serve(app, server_settings, on_started=_announce)
    finally:
        await runtime.aclose()


def print_info(info: BackendInfo) -> None:
    """One line for a part: what was chosen, why, and what would be better."""
    better = f"; better: {info.upgrade}" if info.upgrade else ""
    print(f"{PARTS[info.part]}: {info.name} ({info.reason}{better})", flush=True)


def _announce(address: str) -> None:
    print(f"voiceagent listens on {address} (press Ctrl+C to stop)", flush=True)


# --- the other commands -----------------------------------------------------------------------------------------------


def _say(args: argparse.Namespace) -> int:
    with interrupted_at_once():
        from voice_pipelines.say import say
        from voiceagent.serving import run

    return run(say(_config(args), args.file, out=args.out, as_json=args.json, speech_end_s=args.speech_end))


def _explain(args: argparse.Namespace) -> int:
    from voice_pipelines.remembering import find_turn, memory_folder, not_found, read_timeline, remembered_turns
    from voiceagent.explain import explain

    if args.file is not None:
        timeline = read_timeline(args.file)
    else:
        folder = memory_folder(_config(args))
        turns = remembered_turns(folder)
        found = find_turn(turns, args.turn)
        if found is None:
            print(not_found(turns, args.turn, folder), file=sys.stderr)
            return 1
        timeline = found
    print("\n".join(explain(timeline)))
    return 0


def _list_models(args: argparse.Namespace) -> int:
    from voice_pipelines.choices import root_folder
    from voice_pipelines.models import CATALOGUE

    root = root_folder(_config(args))
    print(f"models are kept in {root}")
    for name, entry in CATALOGUE.items():
        print(f"  {'*' if (root / entry.place).exists() else ' '} {name:<28} {entry.note}")
    print("* is on disk; fetch others with: voiceagent models fetch NAME")
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from voice_pipelines.choices import root_folder
    from voice_pipelines.models import fetch

    root = root_folder(_config(args))
    for name in args.names:
        path = fetch(name, _show_progress, root=root)
        print(f"\r{name} is in {path}")
    return 0


def _show_progress(progress: Progress) -> None:
    share = progress.done_bytes / progress.total_bytes if progress.total_bytes else 1.0
    megabytes = f"{progress.done_bytes / 1e6:,.1f} of {progress.total_bytes / 1e6:,.1f} MB"
    print(f"\r{share:6.1%}  {megabytes}  {progress.file:<40}", end="", file=sys.stderr, flush=True)


def _doctor(args: argparse.Namespace) -> int:
    with interrupted_at_once():
        from voice_pipelines.doctor import run_doctor

    return run_doctor(_config(args))


if __name__ == "__main__":
    sys.exit(main())
