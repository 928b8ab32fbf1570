"""The servers that a load test can be made against, each started in a process of its own on the cores that it may have."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from voice_pipelines.standins import HEARD, REPLY, Delays, ToneSynthesizer
from voiceagent.clauses import ClauseFinder
from voiceagent.clock import MonotonicClock

from ..server_process import launched
from .report import Metrics, parse_metrics

MAX_SESSIONS = 1000
"""No limit by number: whether there is room for one more is what is measured."""
PIPECAT = ("pipecat-ai[silero,websocket]>=1.14,<2", "uvicorn[standard]")


class NotThere(Exception):
    """A server that cannot be started here; the message says why."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is up. `reply_s` is the length of its answers, where all have the same."""

    name: str
    address: str
    process: subprocess.Popen[str]
    lines: Sequence[str]
    """What it has printed."""
    reply_s: float | None
    has_metrics: bool

    @property
    def phone_url(self) -> str:
        return self.address.replace("http", "ws", 1) + "/telephony/twilio"

    def metrics(self) -> Metrics:
        """What it counts; nothing from a server that has no `/metrics`."""
        if not self.has_metrics:
            return {}
        with urllib.request.urlopen(self.address + "/metrics", timeout=20) as response:
            return parse_metrics(response.read().decode("utf-8"))


def reply_s() -> float:
    """Length of the answer that every stand-in gives, sentence by sentence: Pipecat's stand-ins say the same."""
    voice, finder = ToneSynthesizer(MonotonicClock(), Delays()), ClauseFinder()
    return sum(voice.duration_s(clause) for clause in (*finder.push(REPLY), *finder.flush()))


@dataclass(frozen=True, slots=True)
class StandInTimes:
    """How long the stand-ins take, in ours and in Pipecat's."""

    asr_s: float = 0.0
    llm_s: float = 0.0
    """Writing the first clause. Ours takes it in two steps."""
    tts_s: float = 0.0


@contextlib.contextmanager
def models(preset: str, keys: Sequence[str], cores: Collection[int] | None) -> Iterator[Server]:
    """Ours with the models that `auto` finds on this machine."""
    keys = (f"server.max_sessions={MAX_SESSIONS}", "agent.greeting=", "budget.remember=false", *keys)
    command = [sys.executable, "-m", "voice_pipelines.cli", "run", "--port", "0", "--preset", preset, *_set(keys)]
    with launched(command, cores) as (address, process, lines):
        yield Server("models", address, process, lines, None, True)


@contextlib.contextmanager
def standins(
    vad: str,
    times: StandInTimes,
    hangover_s: float,
    cores: Collection[int] | None,
    *,
    keys: Sequence[str] = (),
    profile: Path | None = None,
) -> Iterator[Server]:
    """Ours with stand-ins for the models; with `profile`, where the server's own thread spends its time is written there."""
    program = ["-m", "cProfile", "-o", str(profile)] if profile is not None else []
    delays = [
        "--asr-s",
        str(times.asr_s),
        "--step-s",
        str(times.llm_s / 2),
        "--steps",
        "4",
        "--tts-s",
        str(times.tts_s),
    ]
    turn = (f"budget.target_s={hangover_s + 0.5}", "turn.endpoint=silence", f"turn.silence_s={hangover_s}")
    keys = (f"server.max_sessions={MAX_SESSIONS}", *turn, *keys)
    command = [sys.executable, *program, "-m", "voice_pipelines.standins", "--vad", vad, *delays, *_set(keys)]
    with launched(command, cores) as (address, process, lines):
        yield Server(f"stand-ins, {vad} VAD", address, process, lines, reply_s(), True)


def _set(keys: Sequence[str]) -> list[str]:
    return [argument for key in keys for argument in ("--set", key)]


@contextlib.contextmanager
def pipecat(times: StandInTimes, hangover_s: float, cores: Collection[int] | None, folder: Path) -> Iterator[Server]:
    """Pipecat with the same stand-ins, in the environment in `folder`, which is made if it is not there.

    Raises:
        NotThere: If it cannot be installed: without a network, for example.
    """
    python = pipecat_environment(folder)
    command = [str(python), str(Path(__file__).with_name("pipecat_bot.py")), "--hangover", str(hangover_s)]
    command += ["--asr-s", str(times.asr_s), "--llm-s", str(times.llm_s), "--tts-s", str(times.tts_s)]
    command += ["--heard", HEARD, "--reply", REPLY, "--second-per-char", str(ToneSynthesizer.SECOND_PER_CHAR)]
    # Its own packages and nothing of ours.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with launched(command, cores, environment) as (address, process, lines):
        yield Server(f"Pipecat {_version(python, 'pipecat-ai')}", address, process, lines, reply_s(), False)


def pipecat_environment(folder: Path) -> Path:
    """The interpreter of an environment that has Pipecat, installed from the package index unless it is there.

    Raises:
        NotThere: If that does not work.
    """
    python = folder / "bin" / "python"
    if python.exists() and _version(python, "pipecat-ai"):
        return python
    venv.create(folder, with_pip=True, clear=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PIPECAT]
    try:
        done = subprocess.run(install, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotThere(f"Pipecat cannot be installed: {error}") from error
    if done.returncode != 0:
        raise NotThere(f"Pipecat cannot be installed: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
    return python


def _version(python: Path, package: str) -> str:
    """The version that is installed there; empty when it is not."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
