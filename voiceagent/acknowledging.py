"""Which words cover a wait: never the same twice running, where there are others. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


class Acknowledgements:
    """What one conversation has heard while it waited."""

    def __init__(self) -> None:
        self._said: Counter[str] = Counter()
        self._last = ""

    def choose(self, texts: Sequence[str]) -> str:
        """The text that was said least often so far, the first of them in order; empty where there are none.

        The one said last is only said again when it is the only one.
        """
        others = [text for text in texts if text != self._last] or list(texts)
        if not others:
            return ""
        self._last = min(others, key=lambda text: self._said[text])
        self._said[self._last] += 1
        return self._last
