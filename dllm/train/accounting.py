"""Exactly what a run has seen: positions by what they are, per source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Counts:
    """Positions of rows. The three kinds of positions do not overlap; `learned` counts targets of a loss, wherever they stand."""

    clean: int = 0
    """Shown as they are."""
    noisy: int = 0
    """In a canvas, or handed to the objective to corrupt."""
    padding: int = 0
    learned: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.clean + other.clean,
            self.noisy + other.noisy,
            self.padding + other.padding,
            self.learned + other.learned,
        )

    @property
    def tokens(self) -> int:
        """Positions that are not padding: what budgets count."""
        return self.clean + self.noisy


class Ledger:
    """Running totals by source."""

    def __init__(self, sources: Mapping[str, Counts] | None = None) -> None:
        self.sources: dict[str, Counts] = dict(sources or {})

    def add(self, sources: Mapping[str, Counts]) -> None:
        for name, counts in sources.items():
            self.sources[name] = self.sources.get(name, Counts()) + counts

    @property
    def total(self) -> Counts:
        return sum(self.sources.values(), Counts())

    def to_json(self) -> dict[str, dict[str, int]]:
        return {name: asdict(counts) for name, counts in sorted(self.sources.items())}

    @classmethod
    def from_json(cls, body: Mapping[str, Mapping[str, int]]) -> Ledger:
        return cls({name: Counts(**counts) for name, counts in body.items()})
