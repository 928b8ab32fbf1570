"""Formats of the wire, G.711 and the streaming resampler."""

from __future__ import annotations

import itertools
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voiceagent.audio import PCM16_24K, PCMA_8K, PCMU_8K, AudioFormat, Encoding, StreamingResampler, mono, to_int16

ALL_LINEAR = np.arange(-32768, 32768, dtype="<i2")
ALL_CODES = bytes(range(256))
RATES = [(8_000, 16_000), (24_000, 16_000), (44_100, 16_000), (48_000, 16_000), (22_050, 24_000), (22_050, 8_000)]


def tone(rate_hz: int, duration_s: float, frequency_hz: float = 440.0) -> np.ndarray:
    time = np.arange(round(rate_hz * duration_s)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * time)).astype(np.float32)


def test_pcm16_comes_back_exactly_as_it_was() -> None:
    data = ALL_LINEAR.tobytes()
    assert PCM16_24K.encode(PCM16_24K.decode(data)) == data


def test_pcm16_that_ends_inside_a_sample_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match="3 bytes.*expected an even number"):
        PCM16_24K.decode(b"\0\0\0")


def test_samples_outside_full_scale_are_clamped() -> None:
    samples = np.array([2.0, -2.0, 1.0, -1.0, np.inf, -np.inf, np.nan], np.float32)
    assert to_int16(samples).tolist() == [32767, -32768, 32767, -32768, 32767, -32768, 0]


@pytest.mark.parametrize("audio_format", [PCMU_8K, PCMA_8K])
def test_every_g711_byte_survives_decoding_and_encoding(audio_format: AudioFormat) -> None:
    expected = bytearray(ALL_CODES)
    if audio_format.encoding is Encoding.PCMU:
        expected[0x7F] = 0xFF  # µ-law has two zeros; the encoder writes the positive one
    assert audio_format.encode(audio_format.decode(ALL_CODES)) == bytes(expected)


def test_known_values_of_g711() -> None:
    ulaw = to_int16(PCMU_8K.decode(bytes([0x00, 0x80, 0xFF, 0x7F, 0xFE, 0x8F])))
    assert ulaw.tolist() == [-32124, 32124, 0, 0, 8, 16764]
    alaw = to_int16(PCMA_8K.decode(bytes([0xD5, 0x55, 0xAA, 0x2A, 0xD4])))
    assert alaw.tolist() == [8, -8, 32256, -32256, 24]


@pytest.mark.parametrize(("audio_format", "smallest_step"), [(PCMU_8K, 8), (PCMA_8K, 16)])
def test_g711_is_never_off_by_more_than_half_a_step(audio_format: AudioFormat, smallest_step: int) -> None:
    linear = ALL_LINEAR.astype(np.float32) / 32768
    error = np.abs(audio_format.decode(audio_format.encode(linear)) - linear) * 32768
    # The coarsest segment has steps of 1024 in 16 bits; µ-law also clips the top 643 values.
    magnitude = np.abs(ALL_LINEAR.astype(np.int32))
    allowed = np.maximum(smallest_step, magnitude / 16 + smallest_step / 2)
    allowed[magnitude > 32124] = 1024
    assert (error <= allowed).all()


def test_g711_agrees_with_the_standard_library() -> None:
    if sys.version_info < (3, 13):  # audioop left the standard library in 3.13
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import audioop
        linear = ALL_LINEAR.astype(np.float32) / 32768
        assert PCMU_8K.encode(linear) == audioop.lin2ulaw(ALL_LINEAR.tobytes(), 2)
        assert PCMA_8K.encode(linear) == audioop.lin2alaw(ALL_LINEAR.tobytes(), 2)
        assert to_int16(PCMU_8K.decode(ALL_CODES)).tobytes() == audioop.ulaw2lin(ALL_CODES, 2)
        assert to_int16(PCMA_8K.decode(ALL_CODES)).tobytes() == audioop.alaw2lin(ALL_CODES, 2)


@given(st.binary(max_size=400), st.sampled_from([PCM16_24K, PCMU_8K, PCMA_8K]))
def test_any_bytes_decode_to_samples_in_range_or_name_their_fault(data: bytes, audio_format: AudioFormat) -> None:
    if audio_format.encoding is Encoding.PCM16 and len(data) % 2:
        with pytest.raises(ValueError, match="pcm16"):
            audio_format.decode(data)
        return
    samples = audio_format.decode(data)
    assert samples.dtype == np.float32
    assert len(samples) * audio_format.bytes_per_sample == len(data)
    assert np.abs(samples).max(initial=0.0) <= 1.0


def test_duration_counts_bytes_of_the_format() -> None:
    assert PCM16_24K.duration_s(48_000) == 1.0
    assert PCMU_8K.duration_s(160) == 0.02


def test_a_rate_nobody_uses_is_refused() -> None:
    with pytest.raises(ValueError, match="rate_hz = 0"):
        AudioFormat(Encoding.PCM16, 0)


def test_channels_are_averaged() -> None:
    stereo = np.array([[1.0, 0.0], [0.5, 0.5]])
    assert mono(stereo).tolist() == [0.5, 0.5]
    assert mono(stereo[:, 0]).dtype == np.float32
    with pytest.raises(ValueError, match="shape"):
        mono(np.zeros((1, 2, 3)))


@pytest.mark.parametrize(("in_rate_hz", "out_rate_hz"), RATES)
def test_resampled_tone_keeps_its_length_pitch_and_place(in_rate_hz: int, out_rate_hz: int) -> None:
    resampler = StreamingResampler(in_rate_hz, out_rate_hz)
    out = np.concatenate([resampler.push(tone(in_rate_hz, 1.0)), resampler.flush()])
    expected = tone(out_rate_hz, 1.0)
    assert abs(len(out) - len(expected)) <= 1
    middle = slice(out_rate_hz // 4, out_rate_hz // 2)
    # A shift of up to 0.25 ms is inherent in soxr's variable-rate engine: 2 pi * 440 Hz * 0.25 ms * 0.5 = 0.35.
    assert np.abs(out[middle] - expected[middle]).max() < 0.36
    assert np.sqrt(np.mean(out[middle] ** 2)) == pytest.approx(np.sqrt(np.mean(expected[middle] ** 2)), rel=0.01)


@pytest.mark.parametrize(("in_rate_hz", "out_rate_hz"), RATES)
@pytest.mark.parametrize("cut", [1, 7, 160, 441, 5000])
def test_resampling_gives_the_same_samples_however_the_input_is_cut(
    in_rate_hz: int, out_rate_hz: int, cut: int
) -> None:
    samples = np.random.default_rng(1).standard_normal(6_000).astype(np.float32) * 0.1
    whole, pieces = StreamingResampler(in_rate_hz, out_rate_hz), StreamingResampler(in_rate_hz, out_rate_hz)
    expected = np.concatenate([whole.push(samples), whole.flush()])
    parts = [pieces.push(samples[i : i + cut]) for i in range(0, len(samples), cut)]
    assert np.array_equal(np.concatenate([*parts, pieces.flush()]), expected)


@pytest.mark.parametrize(("in_rate_hz", "out_rate_hz"), RATES)
def test_resampler_lags_by_a_few_milliseconds_and_says_so(in_rate_hz: int, out_rate_hz: int) -> None:
    resampler = StreamingResampler(in_rate_hz, out_rate_hz)
    message = tone(in_rate_hz, 0.02)
    given_samples = 0
    for count in range(1, 51):
        given_samples += len(resampler.push(message))
        assert resampler.delay_s == pytest.approx(count * len(message) / in_rate_hz - given_samples / out_rate_hz)
        assert resampler.delay_s <= 0.035  # 30 ms at 8 kHz; soxr's default engine reaches 115 ms


def test_twice_the_rate_keeps_the_telephone_band_and_adds_nothing_above_it() -> None:
    resampler = StreamingResampler(8_000, 16_000)
    for frequency_hz in (300.0, 1_000.0, 3_400.0):
        out = resampler.push(tone(8_000, 1.0, frequency_hz))
        out = np.concatenate([out, resampler.flush()])
        assert len(out) == 16_000
        middle = slice(1_000, 15_000)  # Both ends ring: the tone begins and ends there.
        assert np.abs(out - tone(16_000, 1.0, frequency_hz))[middle].max() < 5e-4, frequency_hz
        assert (out[::2] == tone(8_000, 1.0, frequency_hz)).all(), "samples that are known stay as they are"


def test_a_phones_audio_comes_out_within_five_milliseconds() -> None:
    resampler = StreamingResampler(8_000, 16_000)
    resampler.push(tone(8_000, 0.5))
    assert resampler.delay_s == pytest.approx(0.004)


def test_flush_starts_a_new_stream() -> None:
    resampler = StreamingResampler(24_000, 16_000)
    first, second = (np.concatenate([resampler.push(tone(24_000, 0.1)), resampler.flush()]) for _ in range(2))
    assert np.array_equal(first, second)
    assert resampler.delay_s == 0.0


def test_equal_rates_pass_through_without_delay() -> None:
    resampler = StreamingResampler(16_000, 16_000)
    samples = tone(16_000, 0.1)
    assert np.array_equal(resampler.push(samples), samples)
    assert resampler.delay_s == 0.0
    assert len(resampler.flush()) == 0


def test_rates_must_be_positive() -> None:
    for rates in itertools.permutations([0, 16_000]):
        with pytest.raises(ValueError, match="sample rates"):
            StreamingResampler(*rates)
