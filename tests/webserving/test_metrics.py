"""The text that Prometheus reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.webserving.exposition import Sample, read
from webserving.metrics import Counter, Gauge, Histogram, Metric, exposition


def samples_of(*metrics: Metric) -> list[Sample]:
    return read(exposition(metrics))


def test_a_counter_without_labels_is_there_before_anything_happened() -> None:
    counter = Counter("drops_total", "Drops.")
    assert exposition([counter]) == "# HELP drops_total Drops.\n# TYPE drops_total counter\ndrops_total 0\n"
    counter.add()
    counter.add(amount=2.5)
    assert counter.value() == 3.5 and samples_of(counter) == [("drops_total", {}, 3.5)]


def test_what_a_counter_is_known_to_count_is_there_before_anything_happened() -> None:
    counter = Counter("drops_total", "Drops.", ["colour", "size"], [("red", "big"), ("blue", "big")])
    assert samples_of(counter) == [
        ("drops_total", {"colour": "red", "size": "big"}, 0),
        ("drops_total", {"colour": "blue", "size": "big"}, 0),
    ]
    counter.add("red", "big")
    assert counter.value("red", "big") == 1 and len(samples_of(counter)) == 2


def test_each_combination_of_labels_has_a_value_of_its_own() -> None:
    counter = Counter("drops_total", "Drops.", ["colour", "size"])
    assert samples_of(counter) == []
    counter.add("red", "big")
    counter.add("red", "big")
    counter.add("blue", "big")
    assert samples_of(counter) == [
        ("drops_total", {"colour": "red", "size": "big"}, 2.0),
        ("drops_total", {"colour": "blue", "size": "big"}, 1.0),
    ]


def test_where_the_values_of_labels_are_given_every_combination_is_there_before_anything_happened() -> None:
    counter = Counter("drops_total", "Drops.", {"colour": ("red", "blue"), "size": ("big",)})
    told = Histogram("size", "Sizes.", (1.0, 2.5), {"colour": ("red",)})
    assert exposition([counter, told]) == (
        "# HELP drops_total Drops.\n# TYPE drops_total counter\n"
        'drops_total{colour="red",size="big"} 0\ndrops_total{colour="blue",size="big"} 0\n'
        "# HELP size Sizes.\n# TYPE size histogram\n"
        'size_bucket{colour="red",le="1"} 0\nsize_bucket{colour="red",le="2.5"} 0\nsize_bucket{colour="red",le="+Inf"} 0\n'
        'size_sum{colour="red"} 0\nsize_count{colour="red"} 0\n'
    )


def test_a_value_that_a_label_does_not_take_is_a_bug() -> None:
    closed = {"colour": ("red",)}
    with pytest.raises(AssertionError):
        Counter("drops_total", "Drops.", closed).add("green")
    with pytest.raises(AssertionError):
        Counter("drops_total", "Drops.", closed, known=["green"])
    with pytest.raises(AssertionError):
        Histogram("size", "Sizes.", (1.0,), closed).observe(1.0, "green")
    with pytest.raises(AssertionError):
        Histogram("size", "Sizes.", (1.0,)).observe(float("nan"))


@pytest.mark.parametrize("labels", [(), ("red", "big")])
def test_a_value_for_each_label_is_wanted_and_no_more(labels: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError):
        Counter("drops_total", "Drops.", ["colour"]).add(*labels)
    with pytest.raises(AssertionError):
        Histogram("size", "Sizes.", (1.0,), ["colour"]).observe(1.0, *labels)


def test_a_histogram_of_labels_whose_values_are_not_known_begins_with_what_is_observed() -> None:
    histogram = Histogram("took_seconds", "Took.", (1.0,), ["stage"])
    assert samples_of(histogram) == [] and histogram.count("asr") == 0
    histogram.observe(0.5, "asr")
    assert (histogram.count("asr"), histogram.sum("asr")) == (1, 0.5)
    assert {labels["stage"] for _, labels, _ in samples_of(histogram)} == {"asr"}


def test_a_gauge_is_read_when_it_is_asked_for_and_may_have_nothing_to_say() -> None:
    values: list[float | None] = [None, 1.0]
    gauge = Gauge("level", 'A \\ "level"\nof water.', values.pop)
    assert exposition([gauge]).endswith('# HELP level A \\\\ "level"\\nof water.\n# TYPE level gauge\nlevel 1\n')
    assert exposition([gauge]).endswith("# TYPE level gauge\n")


def test_a_gauge_of_a_label_has_a_value_for_each_of_its_values() -> None:
    held = {"a": 1.0}
    gauge = Gauge("held", "Held.", lambda: held, "door")
    assert samples_of(gauge) == [("held", {"door": "a"}, 1.0)]
    held["b"] = 7.0
    assert samples_of(gauge) == [("held", {"door": "a"}, 1.0), ("held", {"door": "b"}, 7.0)]


def test_buckets_add_up_and_a_bound_belongs_below() -> None:
    histogram = Histogram("took_seconds", "Took.", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    assert samples_of(histogram) == [
        ("took_seconds_bucket", {"le": "0.1"}, 2.0),
        ("took_seconds_bucket", {"le": "1"}, 3.0),
        ("took_seconds_bucket", {"le": "+Inf"}, 4.0),
        ("took_seconds_sum", {}, pytest.approx(7.65)),
        ("took_seconds_count", {}, 4.0),
    ]


@given(st.lists(st.floats(0.0, 1e6)), st.lists(st.floats(0.0, 1e6), unique=True, max_size=5).map(sorted))
def test_a_histogram_counts_every_value_once(values: list[float], bounds: list[float]) -> None:
    histogram = Histogram("took_seconds", "Took.", bounds)
    for value in values:
        histogram.observe(value)
    buckets = {labels["le"]: count for name, labels, count in samples_of(histogram) if name.endswith("_bucket")}
    assert [buckets[label] for label in buckets] == sorted(buckets.values())
    for label, count in buckets.items():
        assert count == sum(value <= float(label.replace("+Inf", "inf")) for value in values)
    assert histogram.count() == len(values)


@given(st.text())
def test_any_label_survives(text: str) -> None:
    counter = Counter("drops_total", "A \\ and\na break.", ["what"])
    counter.add(text)
    ((_, labels, value),) = samples_of(counter)
    assert (labels, value) == ({"what": text}, 1.0)
