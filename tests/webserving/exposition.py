"""Reads what `/metrics` answers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\.)*)"')

Sample = tuple[str, Mapping[str, str], float]


def read(text: str) -> list[Sample]:
    """The samples of an exposition, by the grammar of the format; fails where a line does not follow it."""
    assert text.endswith("\n")
    samples: list[Sample] = []
    described: set[str] = set()
    for line in text[:-1].split("\n"):
        if line.startswith("# "):
            _, what, name, *_ = line.split(" ")
            assert what in ("HELP", "TYPE")
            described.add(name)
            continue
        matched = _SAMPLE.fullmatch(line)
        assert matched is not None, line
        name, inside, value = matched.groups()
        assert name in described or re.sub(r"_(bucket|sum|count)$", "", name) in described
        labels = {key: unescape(text) for key, text in _LABEL.findall(inside or "")}
        samples.append((name, labels, math.inf if value == "+Inf" else float(value)))
    return samples


def unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found.group(1), found.group(1)), text)
