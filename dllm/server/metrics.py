"""Counters, gauges and histograms, and the text that Prometheus reads. No clock and no socket.

Labels take values that are known beforehand, so every series is there from the start and a rate sees its first event. One thread may count
while another reads: nothing is added to a metric once it is made. Source: the text exposition format 0.0.4.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Protocol

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, Sequence[str]]
"""Names of a metric's labels, and the values that each may take."""
Sample = tuple[str, Mapping[str, str], float]
"""Name, labels and value of one line."""


class Metric(Protocol):
    name: str
    about: str
    kind: str

    def samples(self) -> Iterator[Sample]: ...


class Counter:
    """Only goes up. One value for each combination of its labels' values."""

    kind = "counter"

    def __init__(self, name: str, about: str, labels: Labels | None = None) -> None:
        assert name.endswith("_total"), name
        self.name, self.about, self._labels = name, about, tuple(labels or ())
        self._values: dict[tuple[str, ...], float] = dict.fromkeys(product(*(labels or {}).values()), 0.0)

    def add(self, *labels: str, amount: float = 1.0) -> None:
        assert labels in self._values and amount >= 0, (self.name, labels, amount)
        self._values[labels] += amount

    def value(self, *labels: str) -> float:
        return self._values[labels]

    def samples(self) -> Iterator[Sample]:
        for labels, value in self._values.items():
            yield self.name, dict(zip(self._labels, labels, strict=True)), value


class Gauge:
    """What is so at this moment: `read` when somebody asks, a value for each value of the label; None leaves the metric out."""

    kind = "gauge"

    def __init__(
        self,
        name: str,
        about: str,
        read: Callable[[], float | Mapping[str, float] | None],
        label: str = "",
        *,
        is_counter: bool = False,
    ) -> None:
        self.name, self.about, self._read, self._label = name, about, read, label
        if is_counter:
            self.kind = "counter"

    def samples(self) -> Iterator[Sample]:
        found = self._read()
        if isinstance(found, Mapping):
            for value, number in found.items():
                yield self.name, {self._label: value}, number
        elif found is not None:
            yield self.name, {}, found


class Histogram:
    """How often values fell below each bound; a value equal to a bound is below it."""

    kind = "histogram"

    def __init__(self, name: str, about: str, bounds: Sequence[float], labels: Labels | None = None) -> None:
        assert list(bounds) == sorted(set(bounds)), name
        self.name, self.about, self._bounds, self._labels = name, about, tuple(bounds), tuple(labels or ())
        series = list(product(*(labels or {}).values()))
        self._counts = {each: [0] * (len(bounds) + 1) for each in series}
        self._sums = dict.fromkeys(series, 0.0)

    def observe(self, value: float, *labels: str) -> None:
        assert labels in self._counts and math.isfinite(value), (self.name, labels, value)
        self._counts[labels][bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def count(self, *labels: str) -> int:
        return sum(self._counts[labels])

    def sum(self, *labels: str) -> float:
        return self._sums[labels]

    def samples(self) -> Iterator[Sample]:
        for labels, counts in self._counts.items():
            named = dict(zip(self._labels, labels, strict=True))
            below = 0
            for bound, count in zip((*self._bounds, math.inf), list(counts), strict=True):
                below += count
                yield f"{self.name}_bucket", {**named, "le": _number(bound)}, below
            yield f"{self.name}_sum", named, self._sums[labels]
            yield f"{self.name}_count", named, below


def exposition(metrics: Iterable[Metric]) -> str:
    """What `GET /metrics` answers."""
    lines = []
    for metric in metrics:
        lines.append(f"# HELP {metric.name} {_escape(metric.about)}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for name, labels, value in metric.samples():
            inside = ",".join(f'{key}="{_escape_label(text)}"' for key, text in labels.items())
            lines.append(f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _escape_label(text: str) -> str:
    return _escape(text).replace('"', r"\"")
