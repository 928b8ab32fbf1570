"""Writes the training dialogues: facts, tools and manners, each with a development part from a seed of its own.

python -m voice_pipelines.rehearsal --out FOLDER --count N --seed S
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voice_pipelines.rehearsal import facts, manners, tools

SOURCES = ("facts", "tools", "manners")


def write_dialogue(source: str, part: str, seed: str) -> dict[str, Any]:
    """One dialogue of a source; the same arguments give the same dialogue. Development tools are held back from training."""
    rng = random.Random(f"{source}-{seed}")
    match source:
        case "facts":
            script = facts.write_dialogue(rng)
        case "tools":
            script = tools.write_dialogue(rng, held_back=part == "dev")
        case "manners":
            script = manners.write_dialogue(rng)
        case _:
            raise ValueError(f"source is {source!r}, expected one of {', '.join(SOURCES)}")
    return script.written(f"{source}-{seed}")


def dialogues(source: str, part: str, count: int, seed: str) -> Iterator[dict[str, Any]]:
    """Yield `count` dialogues of one part ("train" or "dev") of a source."""
    for number in range(count):
        yield write_dialogue(source, part, f"{part}-{seed}-{number}")


def main(arguments: list[str] | None = None) -> None:
    """Write {facts,tools,manners}.{train,dev}.jsonl."""
    parser = argparse.ArgumentParser(description="Write training dialogues of facts, tools and phone manners.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--count", type=int, default=12_000, help="training dialogues of each source")
    parser.add_argument("--dev", type=int, default=400, help="development dialogues of each source")
    parser.add_argument("--seed", default="0")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        for part, count in (("train", options.count), ("dev", options.dev)):
            with (options.out / f"{source}.{part}.jsonl").open("w", encoding="utf-8") as file:
                for dialogue in dialogues(source, part, count, options.seed):
                    file.write(json.dumps(dialogue, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
