"""Stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Lets text through up to the first stop string, which never leaves, whole or in part.

    First is the one that ends first, and of those that end at the same character the longest: what reading character by character
    finds. The answer does not depend on how the text is cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """What is certain not to be part of a stop string; nothing once one was found."""
        if self.found is not None:
            return ""
        text = self._held + text
        first = self._first_in(text)
        if first is not None:
            start, self.found = first
            self._held = ""
            return text[:start]
        keep = max((self._begun(text, stop) for stop in self.stops), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _first_in(self, text: str) -> tuple[int, str] | None:
        found = [(start + len(stop), start, stop) for stop in self.stops if (start := text.find(stop)) >= 0]
        if not found:
            return None
        _, start, stop = min(found)
        return start, stop

    @staticmethod
    def _begun(text: str, stop: str) -> int:
        """Length of the longest end of `text` with which `stop` begins."""
        for length in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0
