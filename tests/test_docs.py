"""What the pages say of this repository is there: files, headings, commands with their options, keys of the configuration, Python that can be imported."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from dllm.cli import build_parser as dllm_parser
from voice_pipelines.cli import _parser as voiceagent_parser
from voiceagent.config import SECTIONS, load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = {
    "report.json",
    "report.md",
    "results.json",
    "mixture.json",
    "facts.train.jsonl",
    "facts.dev.jsonl",
    "examples/results/load.json",
}
"""What commands write, beside what is in a folder `RUN`."""
THEIRS = {"model.safetensors.index.json", "vocab.json"}
"""Files of other people's checkpoints."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))


def lines(page: Path) -> Iterator[tuple[int, str]]:
    yield from enumerate(page.read_text("utf-8").splitlines(), 1)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL)


@functools.cache
def headings(page: Path) -> frozenset[str]:
    """As they are named in links: GitHub's rule."""
    plain = (
        re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
        for text in re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    )
    return frozenset(re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in plain)


@functools.cache
def file_names() -> frozenset[str]:
    """Of each file its path and what that ends with."""
    kept = (
        path.relative_to(ROOT).parts
        for top in ROOT.iterdir()
        if not top.name.startswith(".")
        for path in (top.rglob("*") if top.is_dir() else [top])
    )
    return frozenset("/".join(parts[at:]) for parts in kept for at in range(len(parts)))


@each_page
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    lost = []
    for number, line in lines(page):
        for link in re.findall(r"\]\(([^)\s]+)\)", line):
            path, _, heading = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if "://" not in link and (not target.exists() or (heading and heading not in headings(target))):
                lost.append(f"{number}: {link}")
    assert not lost


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    ahead = [PAGES[0]]
    while ahead:
        page = ahead.pop()
        if page not in reached:
            reached.add(page)
            links = re.findall(r"\]\(([\w./-]+\.md)", page.read_text("utf-8"))
            ahead += [(page.parent / link).resolve() for link in links]
    assert set(PAGES) <= reached


def test_the_readme_names_modules_that_there_are() -> None:
    (guide,) = re.findall(r"\nFollow a sound through(.*?)\n## ", PAGES[0].read_text("utf-8"), re.DOTALL)
    parts = dict(re.findall(r"\[`(\w+)`\]\(\w+\)(.*?)(?=\n\n|\Z)", guide, re.DOTALL))
    assert parts.keys() == {"voiceagent", "webserving", "dllm"}
    for package, text in parts.items():
        named = set(re.findall(r"`([a-z_]+)/?`", text))
        assert not [name for name in named if not {f"{package}/{name}.py", f"{package}/{name}"} & file_names()], package


@each_page
def test_files_that_are_named_are_there(page: Path) -> None:
    named = re.compile(r"`([\w./-]+\.(?:py|toml|json|jsonl|md|js|html))`")
    found = [(number, name) for number, line in lines(page) for name in named.findall(line)]
    assert not [
        each for each in found if not each[1].startswith("RUN/") and each[1] not in file_names() | MADE | THEIRS
    ]


def commands(page: Path) -> Iterator[tuple[int, list[str]]]:
    """What a reader may type, word by word: indented lines and what stands between backticks."""
    for number, line in lines(page):
        texts = [line] if line.startswith("    ") else re.findall(r"`([^`]+)`", line)
        for text in texts:
            words = re.sub(r"^(\w+=\S+ )+", "", text.partition("  #")[0].strip()).replace("|", " ").split()
            if (
                words and words[0] in ("voiceagent", "dllm", "python") and "dllm.evaluate.harness" not in words
            ):  # lm_eval's command line.
                yield number, words


@functools.cache
def parser_of(command: str) -> argparse.ArgumentParser:
    return voiceagent_parser() if command == "voiceagent" else dllm_parser([], {})


def unknown_words(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """Commands and options among the words that the parser does not have."""
    known: set[str] = set()
    unknown = []
    for word in ["", *words]:
        choices = next((each.choices for each in parser._actions if isinstance(each, argparse._SubParsersAction)), None)
        if choices and word in choices:
            parser = choices[word]
        elif choices and re.fullmatch("[a-z][a-z-]*", word):
            unknown.append(word)
        known |= parser._option_string_actions.keys()
        if word.startswith("--") and word.partition("=")[0] not in known:
            unknown.append(word)
    return unknown


def test_a_command_or_an_option_that_does_not_exist_is_found() -> None:
    assert unknown_words(parser_of("voiceagent"), "run --port 9000 --prot 9".split()) == ["--prot"]
    assert unknown_words(parser_of("dllm"), "srve --model M".split())[0] == "srve"
    assert "say.py" in file_names() and "nothing.py" not in file_names()


@each_page
def test_commands_have_the_options_that_they_are_given(page: Path) -> None:
    found = [(number, words) for number, words in commands(page) if words[0] != "python"]
    wrong = [(number, unknown) for number, words in found if (unknown := unknown_words(parser_of(words[0]), words[1:]))]
    assert not wrong


@functools.cache
def source(script: str) -> str:
    """Of a script, and of the modules of this repository that it imports."""
    text = (ROOT / script).read_text("utf-8")
    modules = re.findall(r"^from ((?:benchmarks|examples|dllm|voice_pipelines|dllm_kernels)[\w.]*) import", text, re.M)
    return text + "".join(module_file(module).read_text("utf-8") for module in modules if module_file(module).is_file())


def module_file(module: str) -> Path:
    tops = {"voice_pipelines": ROOT / "pipelines", "dllm_kernels": ROOT / "kernels"}
    return tops.get(module.partition(".")[0], ROOT) / (module.replace(".", "/") + ".py")


@each_page
def test_scripts_are_there_and_name_the_options_that_they_are_given(page: Path) -> None:
    wrong = []
    for number, (_, *words) in ((number, words) for number, words in commands(page) if words[0] == "python"):
        if not words or words[:1] == ["-c"]:
            continue
        path = module_file(words[1]) if words[0] == "-m" else ROOT / words[0]
        if path.with_suffix("").is_dir():  # A package that is run.
            path = path.with_suffix("") / "__main__.py"
        if not path.is_file():
            wrong.append((number, words[0]))
            continue
        text = source(str(path.relative_to(ROOT)))
        for word in words[1:]:
            option = word.partition("=")[0]
            if re.fullmatch("--[a-z].*", option) and not {f'"{option}"', f'"--{option[5:]}"'} & set(
                re.findall(r'"--[\w-]+"', text)
            ):
                wrong.append((number, option))
    assert not wrong


@each_page
def test_keys_that_are_named_are_keys_and_examples_can_be_loaded(page: Path) -> None:
    keys = {f"{section}.{key}" for section, kind in SECTIONS.items() for key in kind.__dataclass_fields__}
    named = re.compile(rf"(?:`|--set )((?:{'|'.join(SECTIONS)})\.[a-z_]+)(?=[` =])")
    found = [(number, key) for number, line in lines(page) for key in named.findall(line)]
    assert not [each for each in found if each[1] not in keys and each[1] not in file_names()]
    for block in blocks(page, "toml"):
        table = tomllib.loads(block)
        if table.keys() <= {*SECTIONS, "tools", "menu", "preset"}:
            load_config([table])


@each_page
def test_python_imports_what_there_is(page: Path) -> None:
    ours = ("voiceagent", "voice_pipelines", "dllm", "dllm_kernels", "webserving")
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ours:
                assert not [name.name for name in node.names if not is_there(node.module, name.name)], node.module


def is_there(module: str, name: str) -> bool:
    return hasattr(importlib.import_module(module), name) or importlib.util.find_spec(f"{module}.{name}") is not None
