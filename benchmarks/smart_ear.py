"""A Smart Turn for replays: what it says of a voice is kept in a file, since each answer costs tens of milliseconds.

ear = SmartEar(Path("smart-turn-v3.2-cpu.onnx"), cache)
ear.heard("order/a.flac", samples, start_sample, at_sample)
ear.keep()
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from voice_pipelines.adapters.smart_turn import SmartTurn, worth
from voice_pipelines.turn_end.odds import Heard
from voiceagent.backends import INPUT_RATE_HZ, LOOK_BACK_S, Samples
from voiceagent.listener import LEAD_S


class SmartEar:
    """Closed by nobody: its thread is never used."""

    def __init__(self, path: Path, cache: Path) -> None:
        self._model = SmartTurn(path)
        self.name = self._model.info.name
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self._file = cache / f"smart-{self.sha256[:16]}.json"
        self._known: dict[str, float] = json.loads(self._file.read_text("utf-8")) if self._file.is_file() else {}
        self.seconds: list[float] = []
        """Processor time of the answers that were asked for now."""

    def heard(self, name: str, samples: Samples, start: int, at: int) -> Heard:
        """What the runtime would weigh of an utterance that began at sample `start`, asked at `at`."""
        return worth(self.probability(name, samples, start, at))

    def probability(self, name: str, samples: Samples, start: int, at: int) -> float:
        """The model's own answer about the voice that `voiceagent.listener` gives it.

        Args:
            name: Of the samples, by which answers are kept.
        """
        begins = max(start - round(LEAD_S * INPUT_RATE_HZ), at - round(LOOK_BACK_S * INPUT_RATE_HZ), 0)
        key = json.dumps([name, begins, at])
        if key not in self._known:
            began = time.process_time()
            self._known[key] = self._model.probability(samples[begins:at])
            self.seconds.append(time.process_time() - began)
        return self._known[key]

    def keep(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._known), "utf-8")
