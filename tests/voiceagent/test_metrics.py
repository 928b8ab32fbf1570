"""The text that Prometheus reads."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceagent.metrics import Counter, Gauge, Histogram, Metric, exposition

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


def samples_of(*metrics: Metric) -> list[Sample]:
    return read(exposition(metrics))


def test_a_counter_without_labels_is_there_before_anything_happened() -> None:
    counter = Counter("drops_total", "Drops.")
    assert exposition([counter]) == "# HELP drops_total Drops.\n# TYPE drops_total counter\ndrops_total 0\n"
    counter.add()
    counter.add(amount=2.5)
    assert counter.value() == 3.5 and samples_of(counter) == [("drops_total", {}, 3.5)]


def test_what_a_counter_is_known_to_count_is_there_before_anything_happened() -> None:
    counter = Counter("drops_total", "Drops.", ["colour", "size"], [("red", "big"), ("blue", "big")])
    assert samples_of(counter) == [
        ("drops_total", {"colour": "red", "size": "big"}, 0),
        ("drops_total", {"colour": "blue", "size": "big"}, 0),
    ]
    counter.add("red", "big")
    assert counter.value("red", "big") == 1 and len(samples_of(counter)) == 2


def test_each_combination_of_labels_has_a_value_of_its_own() -> None:
    counter = Counter("drops_total", "Drops.", ["colour", "size"])
    assert samples_of(counter) == []
    counter.add("red", "big")
    counter.add("red", "big")
    counter.add("blue", "big")
    assert samples_of(counter) == [
        ("drops_total", {"colour": "red", "size": "big"}, 2.0),
        ("drops_total", {"colour": "blue", "size": "big"}, 1.0),
    ]


def test_a_gauge_is_read_when_it_is_asked_for() -> None:
    held = {("a",): 1.0}
    gauge = Gauge("held", "Held.", lambda: held, ["door"])
    assert samples_of(gauge) == [("held", {"door": "a"}, 1.0)]
    held[("a",)] = 7.0
    assert samples_of(gauge) == [("held", {"door": "a"}, 7.0)]


def test_buckets_add_up_and_a_bound_belongs_below() -> None:
    histogram = Histogram("took_seconds", "Took.", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    assert samples_of(histogram) == [
        ("took_seconds_bucket", {"le": "0.1"}, 2.0),
        ("took_seconds_bucket", {"le": "1"}, 3.0),
        ("took_seconds_bucket", {"le": "+Inf"}, 4.0),
        ("took_seconds_sum", {}, pytest.approx(7.65)),
        ("took_seconds_count", {}, 4.0),
    ]


@given(st.lists(st.floats(0.0, 1e6)), st.lists(st.floats(0.0, 1e6), unique=True, max_size=5).map(sorted))
def test_a_histogram_counts_every_value_once(values: list[float], bounds: list[float]) -> None:
    histogram = Histogram("took_seconds", "Took.", bounds)
    for value in values:
        histogram.observe(value)
    buckets = {labels["le"]: count for name, labels, count in samples_of(histogram) if name.endswith("_bucket")}
    assert [buckets[label] for label in buckets] == sorted(buckets.values())
    for label, count in buckets.items():
        assert count == sum(value <= float(label.replace("+Inf", "inf")) for value in values)
    assert histogram.count() == len(values)


@given(st.text())
def test_any_label_survives(text: str) -> None:
    counter = Counter("drops_total", "A \\ and\na break.", ["what"])
    counter.add(text)
    ((_, labels, value),) = samples_of(counter)
    assert (labels, value) == ({"what": text}, 1.0)
