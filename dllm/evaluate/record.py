"""What was measured, on disk: sections that are kept while what they depend on stays the same, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FORMAT = 1


class Record:
    """A JSON file of sections. Written whole after each, by renaming, so that it is never half a file.

    Args:
        path: Need not exist; a file that is not such a record counts as empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            body = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            body = {}
        is_record = isinstance(body, dict) and body.get("format") == FORMAT
        self._sections: dict[str, dict[str, Any]] = body["sections"] if is_record else {}

    @property
    def data(self) -> dict[str, Any]:
        """What each section holds."""
        return {name: section["data"] for name, section in self._sections.items()}

    def section(self, name: str, depends: Mapping[str, Any], measure: Callable[[], Any]) -> bool:
        """Measure a section unless it is there for the same `depends`; whether it was measured."""
        key = digest(depends)
        if self._sections.get(name, {}).get("key") == key:
            return False
        # Through JSON at once: what a fresh run prints is what a resumed one reads.
        self._sections[name] = {"key": key, "data": json.loads(json.dumps(measure()))}
        self._save()
        return True

    def put(self, name: str, data: Any) -> None:
        """Set a section that costs nothing to make."""
        self._sections[name] = {"key": "", "data": json.loads(json.dumps(data))}
        self._save()

    def keep_only(self, names: set[str]) -> None:
        """Drop sections of other runs."""
        self._sections = {name: section for name, section in self._sections.items() if name in names}
        self._save()

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        body = {"format": FORMAT, "sections": dict(sorted(self._sections.items()))}
        half = self._path.with_name(self._path.name + ".half")
        half.write_text(json.dumps(body, indent=1) + "\n", "utf-8")
        os.replace(half, self._path)


def digest(depends: Mapping[str, Any]) -> str:
    """A short name for what a section depends on."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()[:16]
