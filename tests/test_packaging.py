"""The wheel, built and installed as a user would, beside the well-known distribution named `kernels`."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed; our source folders are kept off its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, f"{command}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", *options, REPOSITORY, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that holds the wheel, with this environment's libraries behind it."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # By hand rather than by a .pth of the folder's own .pth files: those would bring the editable install of this repository.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", "--quiet", "--ignore-installed", wheel, cwd=folder)
    return python


def test_the_wheel_holds_the_five_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "voiceagent",
        "dllm",
        "webserving",
        "dllm_kernels",
        "voice_pipelines",
    }
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_wheel_holds_every_file_that_is_not_code(wheel: Path) -> None:
    """The page, the presets, the recogniser's and the model's weights: whatever lies in the package folders of the repository."""
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {
        "voiceagent": ".",
        "dllm": ".",
        "webserving": ".",
        "dllm_kernels": "kernels",
        "voice_pipelines": "pipelines",
    }
    expected = set()
    for package, parent in folders.items():
        tracked = run("git", "ls-files", "-z", "--", f"{parent}/{package}", cwd=REPOSITORY).split("\0")
        root = REPOSITORY / parent
        expected |= {(REPOSITORY / name).relative_to(root).as_posix() for name in tracked if name}
    assert expected - names == set()
    assert {f"{package}/py.typed" for package in folders} <= names
    assert "voiceagent/web/index.html" in names
    assert {"voice_pipelines/presets/cafe.toml", "voice_pipelines/presets/open.toml"} <= names
    assert any(name.startswith("dllm/builtin/") and name.endswith(".safetensors") for name in names)
    assert any(name.startswith("voice_pipelines/asr/") and name.endswith((".xz", ".gz", ".zst")) for name in names)


def test_all_five_import_beside_transformers_and_the_distribution_named_kernels(
    installed: Path, tmp_path: Path
) -> None:
    script = """
import importlib.metadata, pathlib, sys, transformers, kernels
import dllm, dllm_kernels, voice_pipelines, voiceagent, webserving
assert importlib.metadata.distribution("kernels").locate_file("kernels/__init__.py") == pathlib.Path(kernels.__file__)
from transformers import LlamaConfig
for package in (voiceagent, dllm, webserving, dllm_kernels, voice_pipelines):
    assert pathlib.Path(package.__file__).is_relative_to(sys.prefix), package.__file__
print(importlib.metadata.version("voiceagent"))
"""
    assert run(installed, "-c", script, cwd=tmp_path).strip() == "0.1.0"


def test_the_runtime_and_the_wiring_import_without_a_model_library(installed: Path, tmp_path: Path) -> None:
    script = """
import sys, voiceagent.conversation, voiceagent.config, voice_pipelines.cli
heavy = {"torch", "transformers", "onnxruntime", "faster_whisper", "piper", "pocketsphinx", "triton"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run(installed, "-c", script, cwd=tmp_path).strip() == "[]"


@pytest.mark.parametrize("command", ["voiceagent", "dllm"])
def test_a_command_is_installed_and_explains_itself(installed: Path, tmp_path: Path, command: str) -> None:
    assert f"usage: {command}" in run(installed.parent / command, "--help", cwd=tmp_path)
