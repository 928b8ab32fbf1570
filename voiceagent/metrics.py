"""Counters, gauges and histograms, and the text that Prometheus reads. No clock and no socket.

Names and units follow Prometheus' conventions: base units (seconds), counters end in `_total`, one metric for one thing. Source: the text
exposition format 0.0.4.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Buckets of a duration, from a millisecond to what nobody waits for."""


class Metric(Protocol):
    name: str
    about: str
    kind: str

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """Name, labels and value of each line."""
        ...


class Counter:
    """Only goes up. One value for each combination of its labels.

    Args:
        known: Combinations that are 0 from the start, as a metric without labels is: a rate sees no first event that brings its series along.
    """

    kind = "counter"

    def __init__(
        self, name: str, about: str, labels: Sequence[str] = (), known: Iterable[str | tuple[str, ...]] = ()
    ) -> None:
        assert name.endswith("_total"), name
        self.name, self.about = name, about
        self._labels = tuple(labels)
        starts = [(values,) if isinstance(values, str) else values for values in known] if labels else [()]
        assert all(len(values) == len(self._labels) for values in starts), name
        self._values: dict[tuple[str, ...], float] = dict.fromkeys(starts, 0.0)

    def add(self, *labels: str, amount: float = 1.0) -> None:
        assert len(labels) == len(self._labels) and amount >= 0
        self._values[labels] = self._values.get(labels, 0.0) + amount

    def value(self, *labels: str) -> float:
        return self._values.get(labels, 0.0)

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        for labels, value in self._values.items():
            yield self.name, dict(zip(self._labels, labels, strict=True)), value


class Gauge:
    """What is so at this moment: read when somebody asks. `read` returns a value for each combination of labels."""

    kind = "gauge"

    def __init__(
        self,
        name: str,
        about: str,
        read: Callable[[], Mapping[tuple[str, ...], float]],
        labels: Sequence[str] = (),
        *,
        is_counter: bool = False,
    ) -> None:
        self.name, self.about, self._read, self._labels = name, about, read, tuple(labels)
        if is_counter:
            self.kind = "counter"

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        for labels, value in self._read().items():
            yield self.name, dict(zip(self._labels, labels, strict=True)), value


class Histogram:
    """How often values fell below each bound; a value equal to a bound is below it."""

    kind = "histogram"

    def __init__(self, name: str, about: str, bounds: Sequence[float] = SECONDS, labels: Sequence[str] = ()) -> None:
        assert list(bounds) == sorted(set(bounds)), name
        self.name, self.about = name, about
        self._bounds = tuple(bounds)
        self._labels = tuple(labels)
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        if not labels:
            self._open(())

    def observe(self, value: float, *labels: str) -> None:
        assert len(labels) == len(self._labels) and math.isfinite(value)
        if labels not in self._counts:
            self._open(labels)
        self._counts[labels][bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def count(self, *labels: str) -> int:
        return sum(self._counts.get(labels, ()))

    def sum(self, *labels: str) -> float:
        return self._sums.get(labels, 0.0)

    def _open(self, labels: tuple[str, ...]) -> None:
        self._counts[labels] = [0] * (len(self._bounds) + 1)
        self._sums[labels] = 0.0

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        for labels, counts in self._counts.items():
            named = dict(zip(self._labels, labels, strict=True))
            below = 0
            for bound, count in zip((*self._bounds, math.inf), counts, strict=True):
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
