import numpy as np
import pytest

from voice_pipelines.asr.cepstrum import COEFFICIENTS, MeanOptions, RunningMean, heard_enough

OPTIONS = MeanOptions(prior_frames=30, prior=(40.0, 3.0), gate=12.0)


def block(*leading: float) -> np.ndarray:
    return np.array([*leading, *[0.0] * (COEFFICIENTS - len(leading))])


def test_before_anything_was_heard_the_mean_is_the_prior():
    assert RunningMean(OPTIONS).value.tolist() == block(40, 3).tolist()


def test_the_prior_counts_as_its_number_of_frames():
    mean = RunningMean(OPTIONS)
    mean.add(block(60, -7), 10)
    assert mean.value[:2] == pytest.approx([(10 * 60 + 30 * 40) / 40, (10 * -7 + 30 * 3) / 40])


def test_blocks_far_below_the_loudest_say_nothing_about_the_voice():
    mean = RunningMean(OPTIONS)
    mean.add(block(60, -7), 10)
    mean.add(block(47.9, 99), 50)
    assert mean.value[1] == pytest.approx((10 * -7 + 30 * 3) / 40)
    mean.add(block(48.1, 5), 10)
    assert mean.value[1] == pytest.approx((10 * -7 + 10 * 5 + 30 * 3) / 50)


@pytest.mark.parametrize(
    ("levels_dbfs", "is_enough"),
    [
        ([], False),
        ([-60.0, -20.0, -20.0], False),
        ([-60.0, -60.0, -60.0], False),
        ([-20.0, -40.0, -40.0], False),
        ([-20.0, -40.0, -34.0, -40.0], False),
        ([-20.0, -40.0, -40.0, -40.0], True),
        ([-20.0] * 12, True),
    ],
)
def test_decoding_begins_when_enough_was_heard_or_a_short_word_is_over(levels_dbfs, is_enough):
    assert heard_enough(levels_dbfs, MeanOptions(lookahead_blocks=12, pause_blocks=3, pause_db=15)) is is_enough


@pytest.mark.parametrize("wrong", [{"lookahead_blocks": -1}, {"prior_frames": 0}, {"gate": 0}, {"prior": (1.0,) * 14}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        MeanOptions(**wrong)
