from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from voiceagent.costs import Cost, CostModel, CostsDamagedError, Stage

OWNERS = dict.fromkeys(Stage, "this machine")


def noisy(rng: random.Random, median: float, sigma: float = 0.2) -> float:
    return median * math.exp(rng.gauss(0.0, sigma))


def test_costs_are_quantiles_of_recent_times() -> None:
    costs = CostModel(window=100)
    values = [value / 1000 for value in range(1, 101)]
    random.Random(1).shuffle(values)
    for value in values:
        costs.observe(Stage.STEP, value, size=32)
    assert costs.predict(Stage.STEP, 32) == Cost(0.050, 0.095)
    assert costs.observations(Stage.STEP) == 100


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(0.05, 0.5))
def test_quantiles_converge(seed: int, sigma: float) -> None:
    rng, costs = random.Random(seed), CostModel()
    for _ in range(256):
        costs.observe(Stage.STEP, noisy(rng, 0.01, sigma), size=32)
    predicted = costs.predict(Stage.STEP, 32)
    # The standard error of a log quantile from 256 samples is 0.08 sigma for p50 and 0.13 sigma for p95; five of them.
    assert abs(math.log(predicted.p50 / 0.01)) < 0.4 * sigma
    assert abs(math.log(predicted.p95 / (0.01 * math.exp(1.645 * sigma)))) < 0.7 * sigma


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), factor=st.sampled_from([2.0, 3.0, 5.0]))
@example(seed=147, factor=5.0)  # the run that shows it begins with a tail from before
def test_a_slower_machine_is_believed_within_eight_times_in_all_sizes(seed: int, factor: float) -> None:
    rng, costs = random.Random(seed), CostModel()
    for _ in range(100):
        for width, company in ((32, 1), (40, 1), (32, 4)):
            costs.observe(Stage.STEP, noisy(rng, 0.01 * company, 0.15), width, company)
    for _ in range(8):
        costs.observe(Stage.STEP, noisy(rng, 0.01 * factor, 0.15), 32)
    for width, company in ((32, 1), (40, 1), (32, 4)):
        assert costs.predict(Stage.STEP, width, company).p50 == pytest.approx(0.01 * company * factor, rel=0.3)


def test_a_faster_machine_is_believed_later_than_a_slower_one() -> None:
    rng, costs = random.Random(3), CostModel()
    for _ in range(100):
        costs.observe(Stage.STEP, noisy(rng, 0.03), 32)
    for _ in range(8):
        costs.observe(Stage.STEP, noisy(rng, 0.01), 32)
    assert costs.predict(Stage.STEP, 32).p50 > 0.02
    for _ in range(16):
        costs.observe(Stage.STEP, noisy(rng, 0.01), 32)
    assert costs.predict(Stage.STEP, 32).p50 == pytest.approx(0.01, rel=0.3)


def test_a_class_with_news_of_its_own_is_left_alone_when_another_has_changed() -> None:
    costs = CostModel()
    for _ in range(50):
        costs.observe(Stage.STEP, 0.01, 32, 1)
        costs.observe(Stage.STEP, 0.02, 32, 4)
    for _ in range(8):
        costs.observe(Stage.STEP, 0.01, 32, 1)
        costs.observe(Stage.STEP, 0.06, 32, 4)
    assert costs.predict(Stage.STEP, 32, 1) == Cost(0.01, 0.01)
    assert costs.predict(Stage.STEP, 32, 4).p50 == pytest.approx(0.06)


def test_a_few_stalls_are_a_tail_and_not_a_change() -> None:
    rng, costs = random.Random(4), CostModel()
    for _ in range(300):
        costs.observe(Stage.STEP, 0.2 if rng.random() < 0.02 else noisy(rng, 0.01, 0.1), 32)
    predicted = costs.predict(Stage.STEP, 32)
    assert predicted.p50 < 0.011 and predicted.p95 < 0.05


def test_an_unseen_size_or_company_borrows_from_its_neighbour_on_the_slow_side() -> None:
    costs = CostModel()
    costs.observe(Stage.STEP, 0.01, size=32)
    assert costs.predict(Stage.STEP, 128).p95 == pytest.approx(0.04)
    assert costs.predict(Stage.STEP, 8).p95 == pytest.approx(0.01)
    assert costs.predict(Stage.STEP, 32, 4).p95 == pytest.approx(0.04)


def test_one_time_alone_does_not_promise_that_there_is_no_tail() -> None:
    costs = CostModel()
    for value in (0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.02):
        costs.observe(Stage.STEP, value, 32)
    costs.observe(Stage.STEP, 0.03, 64)
    assert costs.predict(Stage.STEP, 64) == Cost(0.03, 0.06)


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf])
def test_an_impossible_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        CostModel().observe(Stage.TTS, seconds)


# --- over a restart ---------------------------------------------------------------------------------------------------


def test_what_was_learned_survives_a_restart() -> None:
    rng, costs = random.Random(5), CostModel()
    for _ in range(40):
        costs.observe(Stage.STEP, noisy(rng, 0.01), 32, 2)
        costs.observe(Stage.TTS, noisy(rng, 0.02), 45)
    again = CostModel()
    assert set(again.restore(json.loads(json.dumps(costs.as_json(OWNERS))), OWNERS)) == {Stage.STEP, Stage.TTS}
    for stage, size, company in ((Stage.STEP, 32, 2), (Stage.TTS, 45, 1)):
        before, after = costs.predict(stage, size, company), again.predict(stage, size, company)
        assert (after.p50, after.p95) == pytest.approx((before.p50, before.p95), abs=1e-6)
    for _ in range(8):
        again.observe(Stage.STEP, 0.03, 32, 2)
    assert again.predict(Stage.STEP, 32, 2).p50 == pytest.approx(0.03, rel=0.2), "and recovers from another machine"


def test_another_models_times_are_not_taken_over() -> None:
    costs = CostModel()
    costs.observe(Stage.STEP, 0.5, 32)
    costs.observe(Stage.TTS, 0.5, 40)
    again = CostModel()
    assert again.restore(costs.as_json(OWNERS), {**OWNERS, Stage.STEP: "a faster model"}) == (Stage.TTS,)
    assert again.observations(Stage.STEP) == 0 and again.observations(Stage.TTS) == 1


def damaged(change: dict[str, Any]) -> dict[str, Any]:
    entry = {"size": 10, "company": 0, "seconds": [0.01], **change}
    return {"format": 1, "stages": {"step": {"owner": "this machine", "classes": [entry]}}}


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (None, "format = 'NoneType': expected 1"),
        ({"format": 2}, "format = 2: expected 1"),
        ({"format": 1}, "stages: expected a table"),
        ({"format": 1, "stages": {"dreaming": {}}}, "stages.dreaming: expected one of asr"),
        ({"format": 1, "stages": {"step": {"owner": 1, "classes": []}}}, "expected an owner and a list of classes"),
        (damaged({"seconds": []}), "stages.step.classes\\[0\\].seconds: expected finite times"),
        (damaged({"seconds": [0.01, -1]}), "expected finite times"),
        (damaged({"seconds": [math.nan]}), "expected finite times"),
        (damaged({"size": "wide"}), "size = 'wide'"),
    ],
)
def test_a_damaged_memory_names_the_place_and_changes_nothing(data: object, told: str) -> None:
    costs = CostModel()
    costs.observe(Stage.STEP, 0.02, 32)
    with pytest.raises(CostsDamagedError, match=told):
        costs.restore(data, OWNERS)
    assert costs.predict(Stage.STEP, 32).p50 == 0.02


PARTS = st.none() | st.floats() | st.text(max_size=3)
KEYS = st.sampled_from(["format", "stages", "step", "owner", "classes", "seconds"])


@settings(max_examples=50)
@given(st.recursive(PARTS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8))
def test_whatever_a_file_holds_is_restored_or_refused_by_name(data: object) -> None:
    for found in (
        data,
        {"format": 1, "stages": data},
        {"format": 1, "stages": {"step": data}},
        damaged({"size": data}),
    ):
        try:
            CostModel().restore(found, OWNERS)
        except CostsDamagedError:
            pass


@pytest.mark.parametrize("seed", range(3))
def test_predictions_stay_near_what_was_seen_on_a_machine_that_comes_and_goes(seed: int) -> None:
    rng, model, slow, seen = random.Random(seed), CostModel(), 1.0, list[float]()
    sizes = (6, 8, 12, 16, 24, 32, 48, 64, 90)
    for _ in range(2_000):
        if rng.random() < 0.01:
            slow = rng.choice([1.0, 1.0, 5.0, 30.0])
        size = rng.choice(sizes)
        seen.append(0.0005 * size * slow * rng.lognormvariate(0.0, 0.6))
        model.observe(Stage.TTS, seen[-1], size)
        if len(seen) > 100:
            expected = max(model.predict(Stage.TTS, each).p50 for each in sizes)
            assert expected < 20.0 * max(seen), "no change counts for every size that saw it"


def test_costs_that_went_wrong_before_a_restart_come_back_with_what_is_seen() -> None:
    """A file that a version left behind whose times had multiplied, or been rounded to nothing."""
    model = CostModel()
    classes = [
        {"size": size, "company": 0, "seconds": [wrong] * 200} for size, wrong in ((6, 5e9), (8, 0.0), (10, 3.0))
    ]
    model.restore({"format": 1, "stages": {"tts": {"owner": OWNERS[Stage.TTS], "classes": classes}}}, OWNERS)
    for _ in range(60):
        for size in (8, 16, 32):
            model.observe(Stage.TTS, 0.001 * size, size)
    for size in (8, 16, 32):
        assert model.predict(Stage.TTS, size).p50 == pytest.approx(0.001 * size, rel=0.5)
