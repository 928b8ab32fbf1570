from pathlib import Path

import pytest

from voice_pipelines.processors import busy_s, read_busy_s, usable

STAT = """cpu  500 900 300 9000 10 20 30 40 0 0
cpu0 100 500 50 4000 5 10 15 20 0 0
cpu1 400 400 250 5000 5 10 15 20 0 0
intr 1 2 3
"""


def test_user_system_interrupts_and_stolen_time_are_busy_and_polite_programs_and_waiting_are_not() -> None:
    assert read_busy_s(STAT, {0}, 100) == pytest.approx(1.95)
    assert read_busy_s(STAT, {0, 1}, 100) == pytest.approx(1.95 + 6.95)
    assert read_busy_s("cpu0 100 0 50 7", {0}, 100) == pytest.approx(1.5), "an old system tells less"


@pytest.mark.parametrize("stat", ["", "cpu 1 2 3 4", "cpu0 1 2 3 4", "cpu1 a b"])
def test_what_tells_of_no_processor_of_ours_is_refused(stat: str) -> None:
    with pytest.raises(ValueError):
        read_busy_s(stat, {1}, 100)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system does not tell")
def test_this_machine_tells_how_busy_it_has_been() -> None:
    before = busy_s(usable())
    assert before is not None and before > 0.0
    after = busy_s(usable())
    assert after is not None and after >= before
