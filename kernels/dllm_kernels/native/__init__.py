"""C for this processor's vectors, compiled where it runs: a wheel for every processor would have to leave out what makes it fast.

One source is compiled for AVX-512, for AVX2 with FMA, or for NEON (`vector.h`). Nothing is compiled before somebody asks (`prepare`); it takes
a second or two, once per machine, and the result is kept. Where there is no compiler, or none of the three, everything runs as it does in
PyTorch and `Prepared.reason` says why.
"""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from dllm_kernels.native import kept

Instructions: TypeAlias = Literal["avx512", "avx2", "neon"]

HERE = Path(__file__).parent
SOURCES = ("decoder.c", "commit.c", "canvas.c")
HEADERS = ("vector.h",)
COMPILERS = ("cc", "gcc", "clang")
# Sums are in the order that the code says: no -ffast-math.
OPTIONS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC")
# With AVX-512 the processor's products in bfloat16 too, and whole vectors where clang would rather take halves. The others alike everywhere.
OPTIONS_FOR: dict[Instructions, tuple[str, ...]] = {
    "avx512": ("-march=native", "-mprefer-vector-width=512"),
    "avx2": ("-mavx2", "-mfma"),
    "neon": (),
}
NAMES: dict[Instructions, str] = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON"}
COMPILE_TIMEOUT_S = 120.0

_LOG = logging.getLogger(__name__)
_prepared: Prepared | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """What came of the attempt."""

    library: ctypes.CDLL | None
    reason: str
    """Which compiler made it, or why there is none."""


def library() -> ctypes.CDLL | None:
    """The compiled code, where `prepare` has been called with success. Never waits."""
    return None if _prepared is None else _prepared.library


def arguments(*values: Tensor | int | None) -> list[ctypes.c_void_p | ctypes.c_int64]:
    """For a call of C: where tensors lie (None is nowhere), and whole numbers as 64 bits."""
    return [
        ctypes.c_int64(value)
        if isinstance(value, int)
        else ctypes.c_void_p(None if value is None else value.data_ptr())
        for value in values
    ]


def prepare() -> Prepared:
    """Compile for the best that this processor has, or find what was compiled before. The first call decides for the process."""
    global _prepared
    if _prepared is None:
        _prepared = build()
        _LOG.info("kernels in C: %s", _prepared.reason)
    return _prepared


def use(prepared: Prepared) -> None:
    """Take this for the process from now on: code for other instructions than the best (`build`), for comparisons."""
    global _prepared
    _prepared = prepared


def available() -> tuple[Instructions, ...]:
    """What the code is written for and this processor has, the best first. PyTorch held down (ATEN_CPU_CAPABILITY) holds this down too."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return ("neon",)
    known = torch.backends.cpu.get_cpu_capability() if machine in ("x86_64", "amd64") else ""
    return ("avx512", "avx2") if known.startswith("AVX512") else ("avx2",) if known == "AVX2" else ()


def build(instructions: Instructions | None = None, folder: Path | None = None) -> Prepared:
    """Compile for these instructions, or for the best that there are and the compiler knows, and load it; whatever the process uses stays in use.

    Args:
        folder: Where compiled code is kept; None is the user's own place for it, else one for this process alone.
    """
    having = available()
    if not having or instructions not in (None, *having):
        return Prepared(None, f"this processor has no {NAMES[instructions] if instructions else 'AVX2 or AVX-512'}")
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        return Prepared(None, f"no C compiler on the path ({', '.join(COMPILERS)})")
    reason = failed = ""
    for wanted in having if instructions is None else (instructions,):
        try:
            made = _find_or_compile(compiler, (*OPTIONS, *OPTIONS_FOR[wanted]), folder)
            return Prepared(made, f"compiled with {compiler} for {NAMES[wanted]}{failed}")
        except subprocess.CalledProcessError as error:
            # A compiler that is older than the processor may still know what the processor before it had.
            reason = f"{compiler} failed: {_why(error)}"
            failed = f"; for {NAMES[wanted]} {reason}"
        except (OSError, subprocess.TimeoutExpired) as error:
            return Prepared(None, f"{compiler}: {error}")
    return Prepared(None, reason)


def _find_or_compile(compiler: str, options: tuple[str, ...], folder: Path | None) -> ctypes.CDLL:
    """What was compiled before, if it can be loaded (a disk that was full must not cost every start after it); else in the first place that takes it.

    A compiler that fails in one place is asked in the next: it may be the disk that is full.

    Raises:
        OSError: If there is no such place, or it can be loaded from none.
        subprocess.CalledProcessError: If the compiler failed in each that it was asked in.
        subprocess.TimeoutExpired: As `compile_to`.
    """
    name = f"{kept.PREFIX}{_digest(compiler, options)}.so"
    refused: list[str] = []
    failed: subprocess.CalledProcessError | None = None
    for place in kept.folders() if folder is None else (folder,):
        target = place / name
        if target.is_file() and kept.runs_code(place):
            try:
                return _load(target)
            except OSError as error:
                _LOG.warning("compiled anew: %s", error)
        if not kept.takes_code(place):
            refused.append(f"{place} cannot be written to, or may hold no programs (noexec)")
            continue
        try:
            compile_to(compiler, options, target)
            made = _load(target)
        except OSError as error:
            refused.append(str(error))
            continue
        except subprocess.CalledProcessError as error:
            refused.append(f"{place}: {_why(error)}")
            failed = failed or error
            continue
        if refused:
            _LOG.warning("kernels in C are compiled for this process alone: %s", "; ".join(refused))
        kept.forget_unused(place, target)
        return made
    if failed is not None:
        raise failed
    raise OSError("; ".join(refused) or "no folder of its own that may hold programs, not even a temporary one")


def compile_to(compiler: str, options: tuple[str, ...], target: Path) -> None:
    """Compile in the folder of `target`, what the compiler needs on the way included.

    Raises:
        subprocess.CalledProcessError: If the compiler fails, for which a full disk is enough; `stderr` says why.
        subprocess.TimeoutExpired, OSError: If it hangs, or there is no room.
    """
    with tempfile.TemporaryDirectory(prefix=kept.PREFIX, dir=target.parent) as place:
        made = Path(place) / target.name
        sources = [str(HERE / name) for name in SOURCES]
        # What the compiler writes on the way goes where its output does, not to a temporary folder that may be full.
        command = [compiler, *options, "-save-temps=obj", *sources, "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
        # Whole or not at all: another process may be loading it.
        os.replace(made, target)


def _why(error: subprocess.CalledProcessError) -> str:
    """The line that says it. Behind it may be "compilation terminated." or "ld returned 1 exit status"."""
    lines = str(error.stderr).strip().splitlines()
    telling = (line for line in lines if "error:" in line or "failed:" in line)
    return next(telling, lines[-1] if lines else str(error.returncode))


def _load(target: Path) -> ctypes.CDLL:
    """
    Raises:
        OSError: If it is no library, or not ours.
    """
    found = ctypes.CDLL(str(target))
    try:
        found.decoder_scratch.restype = ctypes.c_int64
        found.has_half.restype = ctypes.c_int32
        for name in ("pack_weights", "decode", "commit_rows", "select_by_threshold", "ban_stutters", "joint_stutters"):
            getattr(found, name).restype = None
    except AttributeError as error:
        if sys.platform != "win32":
            # A path that is loaded would be answered with the same again, whatever lies there by then.
            _ctypes.dlclose(found._handle)
        raise OSError(f"{target} lacks what the kernels are called by: {error}") from error
    kept.loaded(target)
    return found


def _digest(compiler: str, options: tuple[str, ...]) -> str:
    """Changes with the code, the compiler and the processor."""
    parts = [(HERE / name).read_bytes() for name in (*SOURCES, *HEADERS)]
    about = Path(compiler).resolve().stat()
    parts.append(f"{compiler} {about.st_size} {about.st_mtime_ns} {' '.join(options)}".encode())
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        parts += [line.encode() for line in dict.fromkeys(lines) if line.startswith(("model name", "flags"))]
    except OSError:
        pass
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
