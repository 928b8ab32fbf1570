import pytest

from voice_pipelines.asr.junk import JunkOptions, believable
from voiceagent.backends import Word

OPTIONS = JunkOptions(min_level_dbfs=-45, min_rise_db=8, steady_s=2, max_word_s=1.2)
LATTE = Word("latte", 0.4, 0.9, 1.0)


def believed(levels_dbfs, audio_s, *words):
    return believable(words, levels_dbfs, audio_s, OPTIONS)


def test_a_word_that_rises_above_the_room_is_believed():
    assert believed([-60, -60, -20, -25, -60], 3, LATTE) == (LATTE,)


@pytest.mark.parametrize(("levels_dbfs", "audio_s"), [([-60, -46], 1), ([], 0), ([-20, -24, -27, -22], 2.0)])
def test_a_room_nothing_and_steady_noise_say_nothing(levels_dbfs, audio_s):
    assert believed(levels_dbfs, audio_s, LATTE) == ()


def test_a_short_utterance_may_be_all_speech():
    assert believed([-20, -24, -27, -22], 1.9, LATTE) == (LATTE,)


def test_a_word_that_never_ends_is_a_noise_and_the_others_stay():
    assert believed([-60, -20], 3, Word("thick", 0.9, 2.2, 1.0), LATTE) == (LATTE,)
