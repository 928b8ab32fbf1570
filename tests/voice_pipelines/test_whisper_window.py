"""A growing window loses no word, doubles none, and ends with the same words however the audio was cut.

The audio here carries its own transcript: every half second of tone has one of eight loudnesses, and a perfect listener reads the
words from them. Silence separates sentences.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voice_pipelines.adapters.whisper_window import IN_PAUSES, Span, UtteranceWindow, WindowOptions, cut_after
from voiceagent.backends import INPUT_RATE_HZ, Samples, Word

WORD_SAMPLES = INPUT_RATE_HZ // 2
NAMES = ("latte", "mocha", "tea", "water", "toast", "cake", "bagel", "soup")


def spoken(sentences: Sequence[Sequence[int]], pause_s: float = 0.5) -> Samples:
    """Half a second of a constant level per word, silence after each sentence."""
    parts: list[Samples] = []
    for sentence in sentences:
        for index in sentence:
            parts.append(np.full(WORD_SAMPLES, 0.1 + 0.1 * index, np.float32))
            parts[-1][-320:] = 0.0
        parts.append(np.zeros(round(pause_s * INPUT_RATE_HZ), np.float32))
    return np.concatenate(parts)


def listen(audio: Samples) -> tuple[Word, ...]:
    """The perfect listener: runs of equal samples at least 0.4 s long are words; a pause of 0.3 s ends a sentence."""
    words: list[Word] = []
    edges = [0, *(np.flatnonzero(np.diff(audio)) + 1).tolist(), len(audio)]
    for start, end in itertools.pairwise(edges):
        level = float(audio[start])
        if level < 0.05 and end - start > 4800 and words:
            last = words[-1]
            words[-1] = Word(last.text.rstrip(".") + ".", last.start_s, last.end_s, 1.0)
        if level > 0.05 and end - start >= 6400:
            name = NAMES[round(level * 10) - 1]
            words.append(Word(name, start / INPUT_RATE_HZ, end / INPUT_RATE_HZ, 0.9))
    return tuple(words)


def texts(words: Iterable[Word]) -> list[str]:
    return [word.text.rstrip(".") for word in words]


def serve(window: UtteranceWindow, decoded: list[Span]) -> None:
    """Decode whatever is due, as an idle machine would."""
    while (span := window.due()) is not None:
        audio = window.audio(span)
        assert len(audio) == span.end_samples - span.start_samples
        decoded.append(span)
        window.absorb(span, listen(audio))


def final_words(
    audio: Samples, cuts: Sequence[int], busy: Sequence[bool] = (), options: WindowOptions | None = None
) -> tuple[Word, ...]:
    """Feed the pieces between the cuts; after piece i decode what is due unless the machine was busy."""
    window = UtteranceWindow(options)
    for i, (start, end) in enumerate(itertools.pairwise([0, *sorted(cuts), len(audio)])):
        window.feed(audio[start:end])
        if not (i < len(busy) and busy[i]):
            serve(window, [])
    window.close()
    serve(window, [])
    return window.words


LONG = spoken(
    [[0, 1, 2, 3, 4, 5, 6], [7, 1, 3, 5], [2, 4, 6, 0, 1, 3, 5, 7, 2], [1, 2], [3, 4, 5, 6, 7, 0, 2, 4, 6, 1]] * 2
)
LONG_TRUTH = texts(listen(LONG))


def test_long_speech_is_heard_once_and_whole() -> None:
    window, decoded = UtteranceWindow(), []
    for start in range(0, len(LONG), 320):
        window.feed(LONG[start : start + 320])
        serve(window, decoded)
    window.close()
    before_final = len(decoded)
    serve(window, decoded)
    assert texts(window.words) == LONG_TRUTH
    assert len(decoded) - before_final <= 1
    assert max(span.end_samples - span.start_samples for span in decoded) <= 25 * INPUT_RATE_HZ


def test_word_times_count_from_the_start_of_the_utterance() -> None:
    words = final_words(LONG, [])
    truth = listen(LONG)
    assert [word.start_s for word in words] == pytest.approx([word.start_s for word in truth], abs=0.03)


@settings(max_examples=15)
@given(
    cuts=st.lists(st.integers(0, len(LONG)), max_size=40),
    busy=st.lists(st.booleans(), max_size=41),
)
def test_the_final_words_do_not_depend_on_cuts_or_on_skipped_partials(cuts: list[int], busy: list[bool]) -> None:
    for options in (None, IN_PAUSES):
        assert final_words(LONG, cuts, busy, options) == final_words(LONG, [], options=options)


def test_a_pause_brings_the_final_span_forward() -> None:
    audio = spoken([[0, 1, 2, 3]], pause_s=0.8)
    window, decoded = UtteranceWindow(), []
    for start in range(0, len(audio), 320):
        window.feed(audio[start : start + 320])
        serve(window, decoded)
    assert decoded[-1].purpose == "pause"
    window.close()
    assert window.due() is None
    assert texts(window.words) == ["latte", "mocha", "tea", "water"]


def test_silence_behind_the_last_word_does_not_hide_it_when_a_window_is_long() -> None:
    audio = np.concatenate((spoken([[i % 8 for i in range(27)]]), np.zeros(4 * INPUT_RATE_HZ, np.float32)))
    window, decoded = UtteranceWindow(), []
    window.feed(audio)
    window.close()
    serve(window, decoded)
    assert [span.purpose for span in decoded] == ["anchor", "anchor", "pause"]
    assert texts(window.words) == texts(listen(audio))


def test_speech_after_a_pause_makes_another_decode_due() -> None:
    audio = spoken([[0, 1], [2, 3]], pause_s=0.6)
    assert texts(final_words(audio, range(0, len(audio), 320))) == ["latte", "mocha", "tea", "water"]


def test_partials_come_at_every_step_while_nobody_is_silent() -> None:
    audio = spoken([[0, 1, 2, 3, 4, 5, 6, 7]])[: 4 * INPUT_RATE_HZ]
    window, decoded = UtteranceWindow(), []
    for start in range(0, len(audio), 320):
        window.feed(audio[start : start + 320])
        serve(window, decoded)
    assert [span.end_samples / INPUT_RATE_HZ for span in decoded] == [0.75, 1.5, 2.25, 3.0, 3.75]


def test_who_needs_no_partials_has_nothing_decoded_before_a_pause_or_a_window_that_is_to_be_cut() -> None:
    window, decoded = UtteranceWindow(IN_PAUSES), []
    speech = spoken([[0, 1, 2, 3, 4, 5, 6, 7]])[: 4 * INPUT_RATE_HZ]
    window.feed(speech)
    assert window.due() is None
    window.feed(np.zeros(round(IN_PAUSES.tail_s * INPUT_RATE_HZ), np.float32))
    serve(window, decoded)
    assert [span.purpose for span in decoded] == ["pause"]
    window.close()
    assert window.due() is None, "the final is there"
    assert texts(final_words(LONG, [], options=IN_PAUSES)) == LONG_TRUTH, "15 s without a pause are cut as ever"


def test_a_late_machine_decodes_the_newest_audio_only() -> None:
    window = UtteranceWindow()
    window.feed(spoken([[0, 1, 2, 3, 4, 5, 6, 7]])[: 4 * INPUT_RATE_HZ])
    span = window.due()
    assert span is not None and span.end_samples == 3.75 * INPUT_RATE_HZ


@pytest.mark.parametrize("audio", [np.zeros(5 * INPUT_RATE_HZ, np.float32), np.zeros(0, np.float32)])
def test_silence_and_no_audio_need_no_decode(audio: Samples) -> None:
    window = UtteranceWindow()
    window.feed(audio)
    assert window.due() is None
    window.close()
    assert window.due() is None
    assert window.words == ()


def test_speech_without_any_sentence_end_is_cut_before_whispers_limit() -> None:
    audio = spoken([[i % 8 for i in range(130)]])
    window, decoded = UtteranceWindow(), []
    for start in range(0, len(audio), 4000):
        window.feed(audio[start : start + 4000])
        serve(window, decoded)
    window.close()
    serve(window, decoded)
    assert texts(window.words) == texts(listen(audio))
    assert max(span.end_samples - span.start_samples for span in decoded) <= 25 * INPUT_RATE_HZ


def test_noise_that_is_never_understood_is_dropped_and_not_kept_for_ever() -> None:
    rng = np.random.default_rng(1)
    window = UtteranceWindow()
    for _ in range(120):
        window.feed(rng.normal(0.0, 0.1, INPUT_RATE_HZ).astype(np.float32))
        while (span := window.due()) is not None:
            assert len(window.audio(span)) <= 25 * INPUT_RATE_HZ
            window.absorb(span, ())
    assert window.words == ()
    span = window.due()
    assert span is None or span.start_samples > 90 * INPUT_RATE_HZ


def test_a_result_from_before_a_cut_changes_nothing() -> None:
    window, stale = UtteranceWindow(), Span(0, 12000, "partial")
    window.feed(LONG)
    serve(window, [])
    words = window.words
    window.absorb(stale, [Word("nonsense", 0.0, 0.5, 0.9)])
    assert window.words == words


def test_what_was_cut_off_becomes_the_prompt() -> None:
    window = UtteranceWindow()
    assert window.prompt == ""
    window.feed(LONG)
    serve(window, [])
    assert window.prompt.startswith("latte mocha tea water toast cake bagel. soup")


def test_a_cut_falls_behind_the_last_sentence_that_two_decodes_agree_on() -> None:
    earlier = [Word(t, i, i + 0.9, 1.0) for i, t in enumerate(["A", "tea.", "A", "cake.", "No", "milk."])]
    later = [Word(t, i, i + 0.9, 1.0) for i, t in enumerate(["a", "tea.", "a", "cake.", "oat", "milk."])]
    assert cut_after(earlier, later, 0.0, 10.0, must=False) == 4
    assert cut_after(earlier, later, 0.0, 3.0, must=False) == 2
    assert cut_after(earlier, later, 2.0, 3.0, must=False) == 0
    assert cut_after(earlier, later, 2.0, 3.0, must=True) == 3
    assert cut_after(earlier, later, 0.0, 0.5, must=True) == 0
    assert cut_after([], later, 0.0, 3.0, must=True) == 0


def test_words_whose_times_are_all_wrong_do_not_make_work() -> None:
    window, decodes = UtteranceWindow(), 0
    window.feed(np.full(120 * INPUT_RATE_HZ, 0.3, np.float32))
    window.close()
    while (span := window.due()) is not None:
        decodes += 1
        window.absorb(span, [Word(name + ".", 0.0, 0.0, 0.5) for name in NAMES])
    assert decodes < 40


@pytest.mark.parametrize("options", [{"step_s": 0.0}, {"trim_s": 6.0}, {"longest_s": 29.0}, {"trim_s": 26.0}])
def test_options_that_cannot_work_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="need margin|must be positive"):
        WindowOptions(**options)
