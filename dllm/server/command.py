"""`dllm serve`: the server from the command line."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette

from dllm.commands import model
from dllm.errors import ConfigError
from dllm.server.settings import ServerSettings
from webserving.descriptors import raise_limit
from webserving.hosts import is_loopback
from webserving.lobby import AT_ONCE, Lobby, protocol_of
from webserving.server import Server, url_of

if TYPE_CHECKING:
    from dllm.engine import Engine
    from dllm.loader import Checkpoint
    from dllm.runner import EngineLike
    from dllm.server.endpoints import Service


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `serve` to the `dllm` command."""
    plain = ServerSettings()
    parser = commands.add_parser("serve", help="OpenAI- and Inception-compatible HTTP server")
    model.add_model_arguments(parser)
    parser.add_argument("--name", help="the model's name for clients; default: the folder's or the hub's")
    parser.add_argument("--alias", action="append", default=[], help="another name it answers to; may be repeated")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=8, help="canvases per forward")
    parser.add_argument("--graphs", action="store_true", help="record steps as CUDA graphs; not under torchrun")
    parser.add_argument("--steps-per-visit", type=int, default=1, help="most steps between two visits of the host")
    parser.add_argument("--cache-mb", type=int, default=512, help="size of the prefix cache")
    model.add_cache_argument(parser)
    parser.add_argument("--api-key-file", type=Path, help="one key per line; without it everybody is let in")
    parser.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="may be repeated; * is all")
    parser.add_argument("--default-tokens", type=int, default=plain.default_tokens, help="reply length if unasked")
    parser.add_argument("--max-tokens", type=int, default=plain.max_tokens, help="longest reply of all")
    parser.add_argument("--max-drafts", type=int, default=plain.max_drafts, help="replies at once; more get 429")
    parser.add_argument("--timeout", type=float, default=plain.timeout_s, metavar="SECONDS")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Load the model and serve until SIGTERM or SIGINT. Under torchrun the ranks share the model, and rank 0 serves.

    Raises:
        CheckpointError: If the model cannot be loaded.
        ConfigError: If an option makes no sense, or the port is taken.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return _serve_alone(args)
    from dllm import parallel

    with parallel.join(args.device) as team:
        listening = None if team.rank else _listen(args)
        checkpoint = model.load(args, team=team)
        engine = _engine(args, checkpoint, clock=team.clock)

        def lead(leading: parallel.LeadingEngine) -> None:
            assert listening is not None
            with contextlib.closing(listening):
                asyncio.run(_serve(args, checkpoint, leading, listening))

        parallel.run(engine, team, lead)
    return 0


def _serve_alone(args: argparse.Namespace) -> int:
    with contextlib.closing(_listen(args)) as listening:
        checkpoint = model.load(args)
        if checkpoint.compiled:
            print(checkpoint.compiled, file=sys.stderr, flush=True)
        asyncio.run(_serve(args, checkpoint, _engine(args, checkpoint), listening))
    return 0


def _listen(args: argparse.Namespace) -> socket.socket:
    """Before loading: a taken port and an option that makes no sense are worth knowing at once."""
    for name in ("batch", "cache_mb", "steps_per_visit", "default_tokens", "max_tokens", "max_drafts"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}", getattr(args, name), "at least 1")
    if not args.timeout > 0:
        raise ConfigError("--timeout", args.timeout, "seconds above 0")
    if not read_keys(args.api_key_file) and not is_loopback(args.host):
        print("no --api-key-file: whoever reaches this address may use it", file=sys.stderr)
    listening = listen(args.host, args.port)
    raise_limit(ServerSettings(max_drafts=args.max_drafts).open_files, lambda told: print(told, file=sys.stderr))
    print(f"loading {args.model or 'the built-in model'}", file=sys.stderr, flush=True)
    return listening


def _engine(args: argparse.Namespace, checkpoint: Checkpoint, **options: Any) -> Engine:
    from dllm.engine import Engine

    if args.graphs:
        from dllm.graphs import cuda_graphs

        if "clock" in options:
            raise ConfigError("--graphs", "given", "nothing under torchrun: what ranks tell each other is not recorded")
        options["forward"] = cuda_graphs(checkpoint.model, lambda told: print(told, file=sys.stderr, flush=True))
    return Engine(
        checkpoint.model,
        checkpoint.codec.token_table,
        max_batch=args.batch,
        cache_bytes=args.cache_mb * 2**20,
        cache_dtype=model.cache_dtype_of(args.cache_dtype),
        steps_per_visit=args.steps_per_visit,
        **options,
    )


async def _serve(
    args: argparse.Namespace, checkpoint: Checkpoint, engine: EngineLike, listening: socket.socket
) -> None:
    from dllm.habits import family_options
    from dllm.runner import EngineRunner
    from dllm.server.app import create_app

    settings = ServerSettings(
        model=args.name or (args.model.rstrip("/").rpartition("/")[2] if args.model else "dllm-builtin"),
        aliases=tuple(args.alias),
        host=args.host,
        api_keys=read_keys(args.api_key_file),
        cors_origins=tuple(args.cors),
        options=family_options(checkpoint.defaults, checkpoint.spec),
        threshold=checkpoint.defaults.threshold,
        steps=checkpoint.defaults.steps,
        default_tokens=args.default_tokens,
        max_tokens=args.max_tokens,
        max_drafts=args.max_drafts,
        timeout_s=args.timeout,
    )

    def announce(address: str) -> None:
        print(f"{', '.join(settings.names)} at {address}/v1", file=sys.stderr, flush=True)

    async with EngineRunner(engine) as runner:
        await serve(create_app(runner, checkpoint.codec, checkpoint.spec, settings), listening, settings, announce)


def read_keys(path: Path | None) -> tuple[str, ...]:
    """Keys of a file, one per line; lines that are empty or begin with # are skipped.

    Raises:
        ConfigError: If the file cannot be read, or holds no key (which would let everybody in).
    """
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--api-key-file", str(path), f"a file of keys ({error})") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError("--api-key-file", str(path), "at least one key")
    return keys


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: If the port is taken or the address is not of this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError, UnicodeError) as error:
        of_port = isinstance(error, OverflowError) or getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)
        if not of_port:
            raise ConfigError("--host", host, f"a name or an address of this machine ({error})") from error
        raise ConfigError("--port", f"{host}:{port}", f"a free port of this machine ({error})") from error


async def serve(
    app: Starlette, listening: socket.socket, settings: ServerSettings, on_started: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT: no new connections then, and `shutdown_s` for the replies that are being written."""
    service: Service = app.state.service
    lobby = Lobby(
        settings.max_waiting, settings.request_timeout_s, settings.send_timeout_s, service.meters.cut_connections.add
    )
    config = uvicorn.Config(
        app,
        http=protocol_of(lobby),
        backlog=AT_ONCE,
        lifespan="off",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_s)),
    )
    server = _Server(config, lambda: on_started(address_of(listening)), service.stop)
    await server.serve(sockets=[listening])


def address_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return url_of("http", host, port)


class _Server(Server):
    """With word of when it accepts connections and of when it stops."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None], on_stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started, self._on_stopping = on_started, on_stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stopping()
        await super().shutdown(sockets)
