"""`dllm serve`: the built-in model behind a port, started and stopped as a person does."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import queue
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dllm.cli import main
from dllm.commands.model import load
from dllm.errors import ConfigError
from dllm.models.family import EIGHT_BITS
from dllm.runner import EngineRunner
from dllm.server import ServerSettings, create_app
from dllm.server.command import _engine, _listen, add_parser, address_of, listen, read_keys, run, serve
from tests.conftest import run_async
from tests.dllm import tiny
from tests.dllm.server.serving import engine
from webserving.descriptors import OWN, Limit, remedy

MAIN = """
import argparse
from dllm.server.command import add_parser
parser = argparse.ArgumentParser()
add_parser(parser.add_subparsers())
args = parser.parse_args()
raise SystemExit(args.run(args))
"""


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["serve", *words])


def test_the_built_in_model_answers_over_http_until_it_is_told_to_stop_and_gives_up_a_grammar_then(
    tmp_path: Path,
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# the only one\nsecret\n")
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "serve", "--port", "0", "--api-key-file", str(keys), "--alias", "gpt-4o"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert process.stderr is not None
    lines: queue.Queue[str] = queue.Queue()
    reading = threading.Thread(target=lambda stream: [lines.put(line) for line in stream], args=(process.stderr,))
    reading.start()
    try:
        told = [lines.get(timeout=60)]
        while "/v1" not in told[-1]:
            told.append(lines.get(timeout=60))
        line = told[-1]
        # Compiled, or why not; it is for this processor family alone.
        assert any(one.startswith("layers ") for one in told) or platform.machine().lower() not in ("x86_64", "amd64")
        assert line.startswith("dllm-builtin, gpt-4o at http://127.0.0.1:")
        messages: list[Any] = [{"role": "user", "content": "i would like a large coffee please"}]
        with openai.OpenAI(base_url=line.rpartition(" ")[2].strip(), api_key="secret", max_retries=0) as sdk:
            whole = sdk.chat.completions.create(model="gpt-4o", messages=messages, seed=1)
            stream = sdk.chat.completions.create(model="gpt-4o", messages=messages, seed=1, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        reply = whole.choices[0].message.content
        assert reply and reply == text, "whole and streamed are the same reply"
        assert len(reply.split()) > 2
        assert whole.usage is not None and whole.usage.model_extra is not None
        work = whole.usage.model_extra["dllm"]
        assert work["forwards"]["denoise"] >= 1 and 0 < work["tokens_per_forward"] <= 64
        base = line.rpartition(" ")[2].strip().removesuffix("/v1")
        key = {"authorization": "Bearer secret"}
        body = {"messages": messages, "dllm": {"regex": "(a|b)*a(a|b){40}"}}
        with ThreadPoolExecutor(1) as asking:
            asked = asking.submit(httpx.post, f"{base}/v1/chat/completions", json=body, headers=key, timeout=60)
            while "\ndllm_grammars_waiting 1\n" not in httpx.get(f"{base}/metrics", headers=key).text:
                assert not asked.done()
            process.send_signal(signal.SIGTERM)
            answer = asked.result()
        assert answer.status_code == 503 and "shutting down" in answer.json()["error"]["message"]
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        reading.join(30)
        process.stderr.close()
    assert code == 0


INTERRUPTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                LOST
sys.meta_path.insert(0, Finder())
from dllm.cli import main
sys.exit(main(["serve", "--port", "nothing"]))
"""


@pytest.mark.parametrize("lost", ["raise", "pass"])
def test_an_interrupt_amid_the_imports_ends_it_quietly_even_where_an_import_drops_exceptions(lost: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED.replace("LOST", lost)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_each_reply_that_may_be_written_has_an_open_file_for_its_connection() -> None:
    demand = ServerSettings(max_drafts=1_000, max_waiting=256).open_files
    assert demand.needed == OWN + 256 + 1_000
    assert remedy(Limit(1_024, 1_024), ServerSettings().open_files) is None, "the usual limit is enough by default"


def test_a_limit_on_open_files_that_is_too_small_is_told_at_the_start_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("webserving.descriptors.read_limit", lambda: Limit(1_024, 1_024))
    _listen(arguments("--port", "0", "--max-drafts", "64")).close()
    assert "open files" not in capsys.readouterr().err
    _listen(arguments("--port", "0", "--max-drafts", "1000")).close()
    told = capsys.readouterr().err
    assert "1000 replies" in told and "ulimit -n 1448" in told and "--max-drafts to 576" in told


def test_connections_that_ask_nothing_are_cut_and_counted() -> None:
    settings = ServerSettings(max_waiting=2, request_timeout_s=3600.0)

    async def main() -> None:
        listening = listen("127.0.0.1", 0)
        port = listening.getsockname()[1]
        is_up = asyncio.Event()
        async with EngineRunner(engine("Hello.")) as runner:
            app = create_app(runner, tiny.codec(), tiny.spec(), settings)
            serving = asyncio.create_task(serve(app, listening, settings, lambda _: is_up.set()))
            await is_up.wait()
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
            async with httpx.AsyncClient() as client:
                told = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
            assert 'dllm_cut_connections_total{reason="crowded"} 4' in told
            for reader, _ in silent[:4]:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            for _, writer in silent:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for _, writer in silent), return_exceptions=True)
            os.kill(os.getpid(), signal.SIGTERM)
            await serving

    run_async(main())


def test_the_prefix_cache_is_in_eight_bits_where_that_is_asked_for() -> None:
    args = arguments("--cache-dtype", "e4m3", "--cache-mb", "1")
    engine = _engine(args, load(args))
    assert engine.cache_dtype == engine.workspace.dtype == EIGHT_BITS
    assert all(store.keys.dtype == EIGHT_BITS for store in engine.cache.pool)
    assert 0 < engine.cache.limit_bytes <= 2**20
    with pytest.raises(ConfigError, match="--cache-dtype = 'int3': expected e4m3"):
        _engine(arguments("--cache-dtype", "int3"), load(args))


def test_a_taken_port_is_known_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            run(arguments("--port", port, "--model", "nobody/nothing"))


@pytest.mark.parametrize("host", ["192.0.2.1", "a" * 64, "nobody.invalid"])
def test_a_host_that_is_not_this_machines_is_not_told_as_a_port_that_is_taken(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise OSError(socket.EAI_NONAME, "Name or service not known")  # So does Python.

    if host == "nobody.invalid":  # No name server is asked here.
        monkeypatch.setattr(socket, "create_server", unknown)
    with pytest.raises(ConfigError, match=f"--host = '{host}': expected a name or an address of this machine"):
        listen(host, 0)


@pytest.mark.parametrize(
    "option", ["--batch=0", "--cache-mb=0", "--steps-per-visit=0", "--max-drafts=0", "--timeout=-1"]
)
def test_an_option_that_makes_no_sense_is_known_before_the_model_is_loaded(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", option]) == 2
    told = capsys.readouterr().err
    assert f"{option.partition('=')[0]} = " in told and "loading" not in told


def test_an_address_is_written_as_a_client_needs_it() -> None:
    with listen("127.0.0.1", 0) as listening:
        assert address_of(listening) == f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("text", [None, "", "# nothing\n\n"])
def test_a_key_file_without_keys_lets_nobody_in_by_mistake(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="--api-key-file"):
        read_keys(path)
    assert read_keys(None) == ()
