"""Counters, gauges and histograms, and the text that Prometheus reads. No clock and no socket.

Names and units follow Prometheus' conventions: base units (seconds), counters end in `_total`, one metric for one thing. Source: the text
exposition format 0.0.4.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Protocol, TypeAlias

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels: TypeAlias = Sequence[str] | Mapping[str, Sequence[str]]
"""Names of a metric's labels. With the values of each, these are all that there are and another is a bug: every combination is there from the
start, so that a rate sees its first event, and as nothing is added later one thread may count while another reads."""

Series: TypeAlias = tuple[str, ...]
"""A value for each label, in their order."""

Sample: TypeAlias = tuple[str, Mapping[str, str], float]
"""Name, labels and value of one line."""


class Metric(Protocol):
    name: str
    about: str
    kind: str

    def samples(self) -> Iterator[Sample]: ...


class Counter:
    """Only goes up. One value for each combination of its labels.

    Args:
        known: Combinations that are 0 from the start, beside others that may come; for labels whose values are not given.
    """

    kind = "counter"

    def __init__(self, name: str, about: str, labels: Labels = (), known: Iterable[str | Series] = ()) -> None:
        assert name.endswith("_total"), name
        self.name, self.about, self._columns = name, about, _Columns(labels)
        starts = [*self._columns.start, *((values,) if isinstance(values, str) else values for values in known)]
        assert all(self._columns.hold(series) for series in starts), name
        self._values: dict[Series, float] = dict.fromkeys(starts, 0.0)

    def add(self, *labels: str, amount: float = 1.0) -> None:
        assert self._columns.hold(labels) and amount >= 0, (self.name, labels, amount)
        self._values[labels] = self._values.get(labels, 0.0) + amount

    def value(self, *labels: str) -> float:
        return self._values.get(labels, 0.0)

    def samples(self) -> Iterator[Sample]:
        for series, value in self._values.items():
            yield self.name, self._columns.named(series), value


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

    def __init__(self, name: str, about: str, bounds: Sequence[float], labels: Labels = ()) -> None:
        assert list(bounds) == sorted(set(bounds)), name
        self.name, self.about, self._bounds, self._columns = name, about, tuple(bounds), _Columns(labels)
        self._counts: dict[Series, list[int]] = {}
        self._sums: dict[Series, float] = {}
        for series in self._columns.start:
            self._open(series)

    def observe(self, value: float, *labels: str) -> None:
        assert self._columns.hold(labels) and math.isfinite(value), (self.name, labels, value)
        if labels not in self._counts:
            self._open(labels)
        self._counts[labels][bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def count(self, *labels: str) -> int:
        return sum(self._counts.get(labels, ()))

    def sum(self, *labels: str) -> float:
        return self._sums.get(labels, 0.0)

    def _open(self, series: Series) -> None:
        self._sums[series] = 0.0
        self._counts[series] = [0] * (len(self._bounds) + 1)

    def samples(self) -> Iterator[Sample]:
        for series, counts in self._counts.items():
            named = self._columns.named(series)
            below = 0
            for bound, count in zip((*self._bounds, math.inf), list(counts), strict=True):
                below += count
                yield f"{self.name}_bucket", {**named, "le": _number(bound)}, below
            yield f"{self.name}_sum", named, self._sums[series]
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


class _Columns:
    """The labels of one metric."""

    def __init__(self, labels: Labels) -> None:
        self._names = tuple(labels)
        values = labels.values() if isinstance(labels, Mapping) else ()
        self._is_closed = isinstance(labels, Mapping) or not labels
        self.start: Sequence[Series] = tuple(product(*values)) if self._is_closed else ()
        """What is there before anything happened; without labels that is the one value."""

    def hold(self, series: Series) -> bool:
        return series in self.start if self._is_closed else len(series) == len(self._names)

    def named(self, series: Series) -> Mapping[str, str]:
        return dict(zip(self._names, series, strict=True))


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _escape_label(text: str) -> str:
    return _escape(text).replace('"', r"\"")
