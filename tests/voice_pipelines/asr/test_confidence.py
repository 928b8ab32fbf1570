"""How sure the recogniser is of its words, from what they cost for the time they take."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from tests.voice_pipelines.asr.orders import ORDER, ORDER_TEXT, said
from voice_pipelines.asr.confidence import Calibration, Spoken, confidence, nats_per_second
from voice_pipelines.asr.decoder import BLOCK_SAMPLES, DecoderOptions, SphinxDecoder

LIKELY, UNLIKELY = Spoken(frames=30, nats=-2.0), Spoken(frames=12, nats=-7.0)


def test_no_words_tell_nothing() -> None:
    assert nats_per_second(()) is None and confidence(()) is None


def test_words_cost_what_they_cost_for_the_time_that_they_take() -> None:
    assert nats_per_second((LIKELY,)) == pytest.approx(-2 / 0.3)
    assert nats_per_second((LIKELY, UNLIKELY)) == pytest.approx(-9 / 0.42), "long words count for more"
    for order in permutations((LIKELY, UNLIKELY, LIKELY)):
        assert nats_per_second(order) == pytest.approx(nats_per_second((LIKELY, LIKELY, UNLIKELY)))


def test_it_is_a_probability_that_falls_with_every_word_that_nobody_expected() -> None:
    sure = [confidence((LIKELY,) * (5 - unlikely) + (UNLIKELY,) * unlikely) for unlikely in range(6)]
    assert sure == sorted(sure, reverse=True) and len(set(sure)) == 6
    assert 0.0 < sure[-1] < 0.1 and 0.9 < sure[0] < 1.0
    assert confidence((Spoken(100, -10.0),), Calibration(half_at=-10.0, slope=3.0)) == pytest.approx(0.5)
    assert confidence((Spoken(1, -5_000.0),)) == pytest.approx(0.0), "and never overflows"


@pytest.fixture(scope="module")
def decoder(model) -> SphinxDecoder:
    return SphinxDecoder(model, DecoderOptions())


def pcm(audio: np.ndarray) -> bytes:
    return np.rint(audio * 32_767).astype("<i2").tobytes()


def test_an_order_that_was_heard_right_is_trusted_while_it_is_said_and_when_it_is_over(decoder: SphinxDecoder) -> None:
    decoder.start()
    decoder.feed(pcm(ORDER))
    partly = decoder.hypothesis()
    whole = decoder.finish()
    assert said(whole.text) == ORDER_TEXT
    for heard in (partly, whole):
        assert len(heard.spoken) == len(heard.words) > 4
        assert heard.confidence is not None and heard.confidence > 0.5


def test_an_order_played_backwards_is_not(decoder: SphinxDecoder) -> None:
    decoder.start()
    decoder.feed(pcm(ORDER[::-1]))
    heard = decoder.finish()
    assert heard.words and heard.confidence is not None and heard.confidence < 0.5


@pytest.mark.parametrize("cut", [333, 1_600, 7_001])
def test_confidence_does_not_depend_on_how_the_audio_is_cut(decoder: SphinxDecoder, cut: int) -> None:
    found = []
    for size in (ORDER.size, cut):
        decoder.start()
        for start in range(0, ORDER.size, size):
            decoder.feed(pcm(ORDER[start : start + size]))
        found.append((decoder.hypothesis().confidence, decoder.finish().confidence))
    assert found[0] == found[1]


def test_silence_behind_the_words_changes_little(decoder: SphinxDecoder) -> None:
    found = []
    for blocks in (0, 20):
        decoder.start()
        decoder.feed(pcm(np.concatenate([ORDER, np.zeros(blocks * BLOCK_SAMPLES, np.float32)])))
        found.append(decoder.finish().confidence)
    assert found[0] == pytest.approx(found[1], abs=0.1)
