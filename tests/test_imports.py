"""The arrows between packages, read from the source.

examples -> voice_pipelines -> {voiceagent -> webserving, dllm -> {webserving, dllm_kernels}}
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FOLDERS = {
    "voiceagent": REPOSITORY / "voiceagent",
    "dllm": REPOSITORY / "dllm",
    "webserving": REPOSITORY / "webserving",
    "dllm_kernels": REPOSITORY / "kernels" / "dllm_kernels",
    "voice_pipelines": REPOSITORY / "pipelines" / "voice_pipelines",
    "examples": REPOSITORY / "examples",
}
OURS = {
    "voiceagent": {"voiceagent", "webserving"},
    "dllm": {"dllm", "dllm_kernels", "webserving"},
    "webserving": {"webserving"},
    "dllm_kernels": {"dllm_kernels"},
    "voice_pipelines": {"voice_pipelines", "voiceagent", "dllm", "dllm_kernels", "webserving"},
    "examples": {"examples", "voice_pipelines", "voiceagent", "dllm", "dllm_kernels", "webserving"},
}
TOP_LEVEL = {*FOLDERS, "kernels", "pipelines", "benchmarks", "tests"}
"""Names that only the arrows may reach."""

OUTSIDE = {
    "voiceagent": {"anyio", "numpy", "soxr", "starlette", "uvicorn", "uvloop", "websockets"},
    "dllm": {
        "huggingface_hub",
        "jinja2",
        "lm_eval",
        "matplotlib",
        "numpy",
        "outlines_core",
        "safetensors",
        "starlette",
        "tokenizers",
        "torch",
        "transformers",
        "uvicorn",
    },
    "webserving": {"uvicorn"},
    "dllm_kernels": {"torch", "triton"},
}
"""Libraries a package may import; the others may import any but `triton`."""

ENVIRONMENT_READERS = {"voice_pipelines", "examples"}
"""Where environment variables may be read, beside `dllm/cli.py`."""


@dataclass(frozen=True, slots=True)
class Import:
    path: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{self.line} imports {self.module}"


def python_files(package: str) -> list[Path]:
    return sorted(FOLDERS[package].rglob("*.py"))


def imports_of(path: Path) -> Iterator[Import]:
    """Every import, inside functions and `TYPE_CHECKING` too. A relative one names this package and is left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (Import(path, node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            yield Import(path, node.lineno, node.module)


def imports_of_package(package: str) -> Iterator[tuple[Import, str]]:
    for path in python_files(package):
        for found in imports_of(path):
            yield found, found.module.partition(".")[0]


@pytest.mark.parametrize("package", FOLDERS)
def test_a_package_imports_along_the_arrows_only(package: str) -> None:
    siblings = {path.stem for path in python_files(package)} if package == "examples" else set()
    wrong = [
        str(found)
        for found, top in imports_of_package(package)
        if top in TOP_LEVEL and top not in OURS[package] and top not in siblings
    ]
    assert not wrong


@pytest.mark.parametrize("package", OUTSIDE)
def test_a_package_imports_only_the_libraries_it_is_made_for(package: str) -> None:
    known = OUTSIDE[package] | OURS[package] | sys.stdlib_module_names
    assert not [str(found) for found, top in imports_of_package(package) if top not in known]


def test_drawing_and_boards_are_imported_where_they_are_used_as_they_may_not_be_installed() -> None:
    optional = {"matplotlib", "tensorboard"}
    wrong = []
    for path in python_files("dllm"):
        for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path.name}:{node.lineno}" for name in names if optional & set(name.split("."))]
    assert not wrong


def test_triton_is_imported_by_the_kernels_only() -> None:
    packages = [package for package in FOLDERS if package != "dllm_kernels"]
    assert not [str(found) for package in packages for found, top in imports_of_package(package) if top == "triton"]


def test_the_environment_is_read_at_the_edge_only() -> None:
    reads = []
    for package in FOLDERS:
        if package in ENVIRONMENT_READERS:
            continue
        for path in python_files(package):
            if path == FOLDERS["dllm"] / "cli.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                named = isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv"}
                is_os = named and isinstance(node.value, ast.Name) and node.value.id == "os"  # type: ignore[attr-defined]
                if is_os or (isinstance(node, ast.ImportFrom) and node.module == "os"):
                    reads.append(f"{path.relative_to(REPOSITORY)}:{node.lineno}")  # type: ignore[attr-defined]
    assert not reads


def test_the_folders_with_well_known_names_are_not_packages() -> None:
    assert not (REPOSITORY / "kernels" / "__init__.py").exists()
    assert not (REPOSITORY / "pipelines" / "__init__.py").exists()
