"""`voiceagent doctor`: what works on this machine, what does not, and what to do about it.

`look` reads the machine into `Facts`; every check is a pure function of them; `report` prints a line each.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from voice_pipelines import folders
from voice_pipelines.memory import available_gib
from voice_pipelines.models import (
    PIPER_UPGRADE,
    FoundModel,
    WhisperChoice,
    choose_model,
    find_piper,
    find_whisper,
    models_folder,
    whisper_upgrade,
)
from voice_pipelines.processors import available_cores
from voice_pipelines.settings import agent_profile, open_files, remote_endpoint
from voice_pipelines.toolbox import Toolbox
from voiceagent.config import Config
from voiceagent.errors import BackendError, VoiceAgentError
from voiceagent.server_settings import ServerSettings
from webserving.descriptors import Demand, Limit, finding, read_limit, remedy

PACKAGES = {
    "numpy": True,
    "soxr": True,
    "starlette": True,
    "uvicorn": True,
    "websockets": True,
    "torch": True,
    "tokenizers": True,
    "safetensors": True,
    "onnxruntime": True,
    "silero-vad": True,
    "pocketsphinx": True,
    "espeakng-loader": True,
    "num2words": True,
    "httpx2": False,
    "faster-whisper": False,
    "piper-tts": False,
    "uvloop": False,
}
"""Distributions, and whether a conversation with the built-in models is impossible without them."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `remedy` says what to do unless all is well."""

    name: str
    verdict: Verdict
    finding: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read from the machine."""

    python: tuple[int, int, int]
    packages: dict[str, str | None]
    """Installed version by distribution; None when it is missing."""
    cores: int
    memory_gib: float
    """What is left of it, for this machine or for the container that this process is in."""
    cuda: str | None
    """Name of the CUDA device, or None."""
    cuda_memory_gib: float
    models_folder: Path
    whisper_choice: WhisperChoice
    whisper: FoundModel | None
    """The one that would listen; None where PocketSphinx does."""
    piper: FoundModel | None
    """The one that would speak; None where eSpeak NG does."""
    espeak_data: Path | None
    """eSpeak NG's data folder, or None when its package does not have one."""
    built_in_llm: Path
    missing_llm_files: tuple[str, ...]
    host: str
    port: int
    port_error: str | None
    """Why the port cannot be listened on, or None."""
    tls_error: str | None = None
    """Why the certificate and key cannot be used, or None."""
    has_tls: bool = False
    remote_llm: str | None = None
    """The remote language model that is configured, or None."""
    remote_llm_error: str | None = None
    """Why it cannot be used, or None."""
    asr: str = "auto"
    """The recogniser that is configured."""
    asr_error: str | None = None
    """Why a start would refuse it, or None."""
    tts: str = "auto"
    """The voice that is configured."""
    tts_error: str | None = None
    """Why a start would refuse it, or None."""
    llm_error: str | None = None
    """Why a start would refuse the model of this machine that is configured, or None."""
    turn_end: str = "silence"
    """What ends a caller's turn."""
    turn_end_error: str | None = None
    """Why it cannot, or None."""
    repair: str = "off"
    """What is done about misheard words."""
    repair_error: str | None = None
    """Why it cannot be done, or None."""
    tools: tuple[str, ...] = ()
    """Names of the agent's tools."""
    tools_error: str | None = None
    """Why one of them cannot be used, or None."""
    notes: str = ""
    """The function that notes what was said, or empty."""
    notes_error: str | None = None
    """Why it cannot be used, or None."""
    demand: Demand = field(default_factory=lambda: ServerSettings().open_files())
    """Open files that all who may be there at one time take."""
    open_files: Limit | None = None
    """How many this process may have; None where the system has no such limit."""


# --- checks: pure -----------------------------------------------------------------------------------------------------


def check_python(facts: Facts) -> Check:
    version = ".".join(map(str, facts.python))
    if facts.python < (3, 11, 0):
        return Check("Python", Verdict.FAIL, version, "install Python 3.11 or newer and run make run again")
    return Check("Python", Verdict.OK, version)


def check_packages(facts: Facts) -> Check:
    missing = [name for name, version in facts.packages.items() if version is None]
    needed = [name for name in missing if PACKAGES.get(name, True)]
    here = ", ".join(f"{name} {version}" for name, version in facts.packages.items() if version is not None)
    if needed:
        return Check(
            "packages", Verdict.FAIL, f"missing: {', '.join(missing)}", "run: pip install 'voiceagent[engine,local]'"
        )
    if missing:
        return Check("packages", Verdict.WARN, f"missing: {', '.join(missing)}", "run: pip install 'voiceagent[local]'")
    return Check("packages", Verdict.OK, here)


def check_devices(facts: Facts) -> Check:
    cpu = f"{facts.cores} CPU cores, {facts.memory_gib:.0f} GiB"
    if facts.cuda is not None:
        return Check("devices", Verdict.OK, f"{cpu}; {facts.cuda}, {facts.cuda_memory_gib:.0f} GiB")
    if facts.cores < 2:
        return Check(
            "devices", Verdict.WARN, f"{cpu}, no CUDA device", "two cores or more keep recognition and reply apart"
        )
    return Check("devices", Verdict.OK, f"{cpu}, no CUDA device")


def check_recognition(facts: Facts) -> Check:
    if facts.asr_error is not None:
        return Check("recognition", Verdict.FAIL, facts.asr_error, "mend that key of the configuration")
    if facts.asr == "pocketsphinx":
        return Check("recognition", Verdict.OK, "PocketSphinx: chosen in the configuration")
    if facts.whisper is None:
        return Check(
            "recognition",
            Verdict.WARN,
            f"no Whisper in {facts.models_folder}: the PocketSphinx fallback knows the agent's own vocabulary only",
            f"{whisper_upgrade(facts.whisper_choice)}   ({facts.whisper_choice.reason})",
        )
    info = facts.whisper.info
    verdict = Verdict.OK if info.upgrade is None else Verdict.WARN
    return Check("recognition", verdict, f"{info.name}: {info.reason}", info.upgrade or "")


def check_voice(facts: Facts) -> Check:
    if facts.tts_error is not None:
        return Check("voice", Verdict.FAIL, facts.tts_error, "mend that key of the configuration")
    if facts.piper is not None:
        return Check("voice", Verdict.OK, f"{facts.piper.info.name}: {facts.piper.info.reason}")
    if facts.espeak_data is None:
        return Check(
            "voice",
            Verdict.FAIL,
            "neither a Piper voice nor eSpeak NG's data",
            f"pip install espeakng-loader, or {PIPER_UPGRADE}",
        )
    if facts.tts == "espeak":
        return Check("voice", Verdict.OK, "eSpeak NG: chosen in the configuration")
    return Check("voice", Verdict.WARN, f"eSpeak NG, understandable but robotic ({facts.espeak_data})", PIPER_UPGRADE)


def check_language_model(facts: Facts) -> Check:
    if facts.remote_llm_error is not None:
        return Check(
            "language model",
            Verdict.FAIL,
            facts.remote_llm_error,
            "check the table [remote] of the configuration, and that the endpoint runs and accepts the key",
        )
    if facts.remote_llm is not None:
        return Check("language model", Verdict.OK, facts.remote_llm)
    if facts.llm_error is not None:
        return Check("language model", Verdict.FAIL, facts.llm_error, "mend that key of the configuration")
    if facts.missing_llm_files:
        return Check(
            "language model",
            Verdict.FAIL,
            f"the built-in model lacks {', '.join(facts.missing_llm_files)}",
            "install the package or clone the repository again, or name a checkpoint in the configuration",
        )
    return Check("language model", Verdict.OK, f"built-in, in {facts.built_in_llm}")


def check_turn_end(facts: Facts) -> Check:
    if facts.turn_end_error is not None:
        return Check(
            "turn end", Verdict.FAIL, facts.turn_end_error, "name a file that is there, or leave models.endpoint out"
        )
    return Check("turn end", Verdict.OK, facts.turn_end)


def check_repair(facts: Facts) -> Check:
    if facts.repair_error is not None:
        return Check("misheard words", Verdict.FAIL, facts.repair_error, "set asr.repair to off, or give what it needs")
    return Check("misheard words", Verdict.OK, facts.repair)


def check_tools(facts: Facts) -> Check:
    if facts.tools_error is not None:
        return Check("tools", Verdict.FAIL, facts.tools_error, "mend the table of that tool in the configuration")
    return Check("tools", Verdict.OK, ", ".join(facts.tools) or "none")


def check_notes(facts: Facts) -> Check:
    if facts.notes_error is not None:
        return Check("notes", Verdict.FAIL, facts.notes_error, "mend notes.function, or the table [menu] it is given")
    return Check("notes", Verdict.OK, facts.notes or "none")


def check_port(facts: Facts) -> Check:
    address = f"{facts.host}:{facts.port}"
    if facts.port_error is not None:
        return Check(
            "port",
            Verdict.FAIL,
            f"{address}: {facts.port_error}",
            "stop what uses it, or choose another (server.port, `run --port`)",
        )
    return Check("port", Verdict.OK, f"{address} is free")


def check_tls(facts: Facts) -> Check:
    if facts.tls_error is not None:
        return Check(
            "TLS", Verdict.FAIL, facts.tls_error, "--tls-cert and --tls-key name a PEM certificate and its key"
        )
    return Check("TLS", Verdict.OK, "the certificate and key can be used" if facts.has_tls else "not asked for")


def check_open_files(facts: Facts) -> Check:
    if facts.open_files is None:
        return Check("open files", Verdict.OK, "this system has no limit on them")
    found = finding(facts.open_files, facts.demand)
    what_to_do = remedy(facts.open_files, facts.demand)
    return Check("open files", Verdict.OK if what_to_do is None else Verdict.WARN, found, what_to_do or "")


def check_microphone(facts: Facts) -> Check:
    if facts.has_tls or facts.host in LOOPBACK:
        where = "over https" if facts.has_tls else "from this machine only"
        return Check("microphone", Verdict.OK, f"browsers grant it {where}")
    return Check(
        "microphone",
        Verdict.WARN,
        f"browsers refuse it to pages that {facts.host} serves without https",
        "give --tls-cert and --tls-key, or open the page on this machine",
    )


CHECKS: tuple[Callable[[Facts], Check], ...] = (
    check_python,
    check_packages,
    check_devices,
    check_recognition,
    check_voice,
    check_language_model,
    check_turn_end,
    check_repair,
    check_tools,
    check_notes,
    check_port,
    check_tls,
    check_open_files,
    check_microphone,
)


def examine(facts: Facts) -> tuple[Check, ...]:
    return tuple(check(facts) for check in CHECKS)


def report(checks: tuple[Check, ...]) -> str:
    """A line per check, its remedy below it, and a summary."""
    lines = []
    for check in checks:
        lines.append(f"{check.verdict:<5} {check.name}: {check.finding}")
        if check.remedy and check.verdict is not Verdict.OK:
            lines.append(f"      -> {check.remedy}")
    failed = sum(check.verdict is Verdict.FAIL for check in checks)
    warned = sum(check.verdict is Verdict.WARN for check in checks)
    lines.append(f"{failed} to mend, {warned} that could be better, {len(checks) - failed - warned} fine")
    return "\n".join(lines)


def exit_code(checks: tuple[Check, ...]) -> int:
    """1 when something must be mended before a conversation works, else 0."""
    return int(any(check.verdict is Verdict.FAIL for check in checks))


# --- reading the machine ----------------------------------------------------------------------------------------------


def look(
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    models: Path | None = None,
    language: str = "en",
) -> Facts:
    """Read the machine. Opens and closes the port; loads no model and no network."""
    root = models or models_folder()
    cores, memory_gib = available_cores(), available_gib()
    cuda, cuda_memory_gib = _cuda()
    choice = device_choice(language)
    built_in = _built_in_llm()
    wanted = ("config.json", "tokenizer.json", "model.safetensors")
    return Facts(
        python=sys.version_info[:3],
        packages={name: _version(name) for name in PACKAGES},
        cores=cores,
        memory_gib=memory_gib,
        cuda=cuda,
        cuda_memory_gib=cuda_memory_gib,
        models_folder=root,
        whisper_choice=choice,
        whisper=find_whisper(root, choice, language),
        piper=find_piper(root),
        espeak_data=_espeak_data(),
        built_in_llm=built_in,
        missing_llm_files=tuple(name for name in wanted if not (built_in / name).is_file()),
        host=host,
        port=port,
        port_error=_port_error(host, port),
        tls_error=_tls_error(tls_cert, tls_key),
        has_tls=tls_cert is not None and tls_key is not None,
    )


def run_doctor(config: Config, out: Callable[[str], object] = print) -> int:
    """Look, check, print; the exit code of `voiceagent doctor`."""
    from voice_pipelines import choices  # which asks this module what machine it is on

    server = config.server
    facts = look(
        server.host,
        server.port,
        tls_cert=folders.named("server.tls_cert", server.tls_cert) if server.tls_cert else None,
        tls_key=folders.named("server.tls_key", server.tls_key) if server.tls_key else None,
        models=folders.named("models.folder", config.models.folder) if config.models.folder else None,
        language=config.agent.language,
    )
    remote_llm, remote_llm_error = _remote_llm(config)
    facts = replace(facts, remote_llm=remote_llm, remote_llm_error=remote_llm_error)
    facts = replace(facts, asr=config.models.asr, asr_error=refusal(lambda: choices.find_asr(config)))
    if facts.asr_error is None:
        facts = replace(facts, whisper=choices.find_asr(config))
    facts = replace(facts, tts=config.models.tts, tts_error=refusal(lambda: choices.find_tts(config)))
    if facts.tts_error is None:
        facts = replace(facts, piper=choices.find_tts(config))
    facts = replace(facts, llm_error=refusal(lambda: choices.choose_llm(config)))
    turn_end_error = refusal(lambda: choices.find_smart_turn(config))
    turn_end = "" if turn_end_error is not None else _turn_end(config, choices.find_smart_turn(config))
    facts = replace(facts, turn_end=turn_end, turn_end_error=turn_end_error)
    facts = replace(facts, repair=config.asr.repair, repair_error=refusal(lambda: choices.check_repair(config)))
    tools_error = refusal(lambda: Toolbox.open(config, os.environ))  # Looked up as a start would; none is called.
    facts = replace(facts, tools=tuple(config.tools), tools_error=tools_error)
    facts = replace(facts, notes=config.notes.function, notes_error=refusal(lambda: agent_profile(config)))
    facts = replace(facts, demand=open_files(config), open_files=read_limit())
    checks = examine(facts)
    out(report(checks))
    return exit_code(checks)


def device_choice(language: str = "en", *, use_cuda: bool = True) -> WhisperChoice:
    """The recogniser that suits this machine, or its processor alone."""
    cuda, cuda_memory_gib = _cuda() if use_cuda else (None, 0.0)
    if cuda:
        return choose_model("cuda", available_cores(), cuda_memory_gib, language)
    return choose_model("cpu", available_cores(), available_gib(), language)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuda() -> tuple[str | None, float]:
    """Name and free memory in GiB of the first CUDA device that CTranslate2 can use."""
    if not importlib.util.find_spec("ctranslate2") or not importlib.util.find_spec("torch"):
        return None, 0.0
    import torch

    ctranslate2 = importlib.import_module("ctranslate2")
    if not torch.cuda.is_available() or not ctranslate2.get_cuda_device_count():
        return None, 0.0
    free, _ = torch.cuda.mem_get_info(0)
    return torch.cuda.get_device_name(0), free / 2**30


def _espeak_data() -> Path | None:
    if not importlib.util.find_spec("espeakng_loader"):
        return None
    import espeakng_loader

    path = Path(espeakng_loader.get_data_path())
    return path if (path / "phontab").is_file() else None


def _remote_llm(config: Config) -> tuple[str | None, str | None]:
    """The configured remote model and what is wrong with it. Asks the endpoint once, which costs nothing; no reply is written."""
    try:
        endpoint = remote_endpoint(config, os.environ)
        if endpoint is None:
            return None, None
        from voice_pipelines.adapters.remote import ask_models, choose_name

        listing = ask_models(endpoint)
        model = choose_name(endpoint, listing)
    except VoiceAgentError as error:
        return None, str(error)
    except ImportError as error:
        return None, f"a remote model needs {error.name}: pip install 'voiceagent[remote]'"
    listed = "" if listing.names is None or model in listing.names else ", though its list does not name it"
    return f"remote: {model} at {endpoint.host}, which answered in {listing.seconds * 1000:.0f} ms{listed}", None


def _turn_end(config: Config, smart_turn: Path | None) -> str:
    if config.turn.endpoint != "silence" and config.agent.language != "en":
        return f"the sound of the voice alone, by {smart_turn}" if smart_turn and config.turn.sound else "silence alone"
    if config.turn.endpoint == "silence" or not config.turn.sound:
        return config.turn.endpoint
    return f"{config.turn.endpoint}, with the sound of the voice{f', by {smart_turn}' if smart_turn else ''}"


def refusal(look_up: Callable[[], object]) -> str | None:
    """Why a start would refuse what `look_up` finds, or None."""
    try:
        look_up()
    except VoiceAgentError as error:
        return str(error)
    return None


def _built_in_llm() -> Path:
    spec = importlib.util.find_spec("dllm")
    if spec is None or not spec.submodule_search_locations:
        raise BackendError("llm", "the package dllm is not installed")
    return Path(spec.submodule_search_locations[0]) / "builtin"


def _port_error(host: str, port: int) -> str | None:
    if not 0 <= port <= 65_535:
        return "a port is a number from 0 to 65535"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except UnicodeError as error:
        return f"no name or address: {error}"
    except OSError as error:
        return error.strerror or str(error)
    return None


def _tls_error(cert: Path | None, key: Path | None) -> str | None:
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        return f"only the {'key' if cert is None else 'certificate'} is given"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except ssl.SSLError as error:
        return f"{cert} and {key} do not fit together: {error.reason or error}"
    except OSError as error:
        unreadable = next((path for path in (cert, key) if not os.access(path, os.R_OK)), cert)
        return f"{unreadable} cannot be read: {error.strerror}"
    return None
