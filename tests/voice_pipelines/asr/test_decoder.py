import time

import numpy as np
import pytest

from tests.voice_pipelines.asr.orders import ORDER, ORDER_TEXT, recording, said
from voice_pipelines.asr.cepstrum import MeanOptions
from voice_pipelines.asr.decoder import BLOCK_SAMPLES, DecoderOptions, Hypothesis, SphinxDecoder
from voiceagent.backends import Samples

PHONE = recording("telephone/phone_18ae57a1.flac", 1.0, 5.0)
OTHERS = {
    "babble": recording("noise/babble_0.flac", 0, 3),
    "hiss": np.random.default_rng(5).normal(0, 0.1, 48_000).clip(-1, 1),
    "digital silence": np.zeros(48_000),
}
"""What another caller's line may sound like."""


@pytest.fixture(scope="module")
def decoder(model):
    return SphinxDecoder(model, DecoderOptions())


def pcm_of(audio: Samples) -> bytes:
    return np.rint(audio * 32_767).astype("<i2").tobytes()


def hear(decoder: SphinxDecoder, audio: Samples, cut: int = BLOCK_SAMPLES) -> Hypothesis:
    pcm = pcm_of(audio)
    decoder.start()
    for start in range(0, len(pcm), 2 * cut):
        decoder.feed(pcm[start : start + 2 * cut])
    return decoder.finish()


def hypotheses(decoder: SphinxDecoder, audio: Samples) -> list[Hypothesis]:
    """What is heard after each block, and in the end."""
    pcm = pcm_of(audio)
    decoder.start()
    heard = []
    for start in range(0, len(pcm), 2 * BLOCK_SAMPLES):
        decoder.feed(pcm[start : start + 2 * BLOCK_SAMPLES])
        heard.append(decoder.hypothesis())
    return [*heard, decoder.finish()]


def test_the_hypothesis_does_not_depend_on_how_the_audio_is_cut(decoder):
    whole = hear(decoder, ORDER, ORDER.size)
    assert said(whole.text) == ORDER_TEXT
    for cut in (333, 1_600, 7_001):
        assert hear(decoder, ORDER, cut) == whole


def test_a_caller_leaves_no_trace_in_the_result_of_the_next(decoder):
    first = hear(decoder, ORDER)
    hear(decoder, recording("telephone/phone_18ae57a1.flac", 1.0, 3.0))
    decoder.start()
    decoder.feed(b"\x55\x22" * 30_000)
    assert hear(decoder, ORDER) == first


@pytest.mark.parametrize("other", OTHERS)
def test_whatever_a_decoder_heard_before_it_hears_a_caller_as_a_fresh_one_does(model, other):
    used = SphinxDecoder(model, DecoderOptions())
    hear(used, OTHERS[other])
    expected = hypotheses(SphinxDecoder(model, DecoderOptions()), ORDER)
    assert expected[-1].confidence is not None
    assert hypotheses(used, ORDER) == expected
    used.start()
    used.feed(pcm_of(OTHERS[other]))  # And hung up.
    assert hypotheses(used, PHONE) == hypotheses(SphinxDecoder(model, DecoderOptions()), PHONE)


def test_words_carry_times_inside_the_utterance_and_in_order(decoder):
    words = hear(decoder, ORDER).words
    assert [word.text for word in words][-2:] == ["iced", "coffee"]
    edges = [edge for word in words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    # The recording's own times: speech from 0.36 s to 3.29 s of this cut, give or take a syllable.
    assert 0.1 < edges[0] < 0.6 and 3.0 < edges[-1] < 3.6
    assert all(0 <= word.probability <= 1 for word in words)


@pytest.mark.parametrize("samples", [0, 1, 100, 1_600, 16_000])
def test_no_audio_and_digital_silence_are_empty(decoder, samples):
    assert hear(decoder, np.zeros(samples)).text == ""


@pytest.mark.parametrize("path", ["room/room_2630f6ea.flac", "room/room_a54bceb3.flac", "noise/babble_0.flac"])
def test_a_quiet_room_and_babble_say_nothing(decoder, path):
    assert hear(decoder, recording(path, 0, 3)).text == ""


def test_taking_the_mean_of_the_first_audio_is_no_second_search(decoder, model):
    """Processor time with and without, by turns in one run: whatever else the machine does meets both."""
    unprepared = SphinxDecoder(model, DecoderOptions(mean=MeanOptions(lookahead_blocks=0)))
    first = np.rint(ORDER[: 12 * BLOCK_SAMPLES] * 32_767).astype("<i2").tobytes()

    def cost_s(decoder: SphinxDecoder) -> float:
        began = time.process_time()
        decoder.start()
        decoder.feed(first)
        return time.process_time() - began

    shares = [cost_s(decoder) / cost_s(unprepared) for _ in range(3)]
    assert min(shares) < 1.5, "two searches take twice the time of one"
