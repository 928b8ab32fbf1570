"""A small vocabulary, a recorded order, and what it says."""

from __future__ import annotations

import soundfile

from tests.conftest import DATA
from voice_pipelines.asr.vocabulary import Vocabulary
from voiceagent.backends import Samples

VOCABULARY = Vocabulary(
    ("(can i get|can i have|may i have|make me|brew) (a|an) {description} {drink} [with {addition} [and {addition}]]",),
    {
        "description": ("[{shot}] [{roast}] [{size}]", "[{roast}] [{shot}] [{size}]", "[{size}] [{roast}] [{shot}]"),
        "size": ("small", "medium", "large", "(eight|twelve|sixteen|twenty) ounce"),
        "roast": ("(light|medium|dark) roast",),
        "shot": ("(single|double|triple) shot",),
        "drink": ("latte", "house coffee", "[iced] coffee", "drip coffee", "[iced] mocha", "cappuccino", "americano", "cortado"),
        "addition": ("[some|a bit of|a lot of] {stuff}",),
        "stuff": ("milk", "cream", "[brown] sugar", "sweetener"),
    },
)  # fmt: skip


def recording(path: str, start_s: float = 0.0, end_s: float | None = None) -> Samples:
    samples, rate = soundfile.read(DATA / path, dtype="float32")
    assert rate == 16_000
    return samples[int(start_s * rate) : None if end_s is None else int(end_s * rate)]


ORDER = recording("order/00e09cf0-a01d-453e-9b89-dc6e6d31d362.flac", 1.9, 5.6)
ORDER_TEXT = "can i get a triple shot light roast iced coffee"


def said(text: str) -> str:
    """What was heard, "an" counted as "a", as the recordings' transcripts are compared."""
    return " ".join("a" if word == "an" else word for word in text.split())
