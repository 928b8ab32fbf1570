"""As many as may come find open files for themselves, or it is said what to do."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from webserving.descriptors import OWN, Demand, Limit, finding, raised, read_limit, remedy

CROWD = Demand(guests=1_000, each=2, waiting=256, named="conversations", option="server.max_sessions")


def test_all_guests_and_those_who_wait_take_theirs_beside_the_process() -> None:
    assert CROWD.needed == OWN + 256 + 2 * 1_000


@pytest.mark.parametrize("each", [1, 2, 5])
@pytest.mark.parametrize("limit", [0, 64, 447, 448, 450, 1_024, 2_447, 2_448, 4_096, 1_000_000, math.inf])
def test_so_many_as_fit_need_no_more_than_the_limit_and_one_more_would(limit: float, each: int) -> None:
    crowd = replace(CROWD, each=each)
    guests = crowd.guests_within(limit)
    assert 0 <= guests <= crowd.guests
    if guests:
        assert replace(crowd, guests=guests).needed <= limit
    if guests < crowd.guests:
        assert replace(crowd, guests=guests + 1).needed > limit


def test_the_limit_is_raised_as_far_as_is_needed_and_may_be_and_never_lowered() -> None:
    assert raised(Limit(1_024, 524_288), 2_448) == Limit(2_448, 524_288)
    assert raised(Limit(1_024, 2_000), 2_448) == Limit(2_000, 2_000)
    assert raised(Limit(256, math.inf), 2_448) == Limit(2_448, math.inf)
    assert raised(Limit(20_000, 20_000), 2_448) == Limit(20_000, 20_000)
    assert raised(Limit(math.inf, math.inf), 2_448) == Limit(math.inf, math.inf)


def test_what_can_be_raised_needs_nothing_done_and_what_cannot_names_both_ways_out() -> None:
    assert remedy(Limit(256, 4_096), CROWD) is None
    advice = remedy(Limit(1_024, 1_024), CROWD)
    assert advice is not None
    assert "ulimit -n 2448" in advice and "LimitNOFILE=2448" in advice
    assert "server.max_sessions to 288" in advice
    assert CROWD.guests_within(1_024) == 288
    hopeless = remedy(Limit(64, 64), CROWD)
    assert hopeless is not None and "max_sessions" not in hopeless


def test_what_is_found_names_both_numbers_in_full() -> None:
    assert "1000 conversations" in finding(Limit(1_024, 1_048_576), CROWD)
    assert "up to 2448 open files" in finding(Limit(1_024, 1_048_576), CROWD)
    assert "1048576" in finding(Limit(1_024, 1_048_576), CROWD)
    assert "as many as it likes" in finding(Limit(256, math.inf), CROWD)


@pytest.mark.skipif(read_limit() is None, reason="this system has no limit on open files")
@pytest.mark.parametrize(("hard", "after", "is_told"), [(4_096, 2_448, False), (1_500, 1_500, True)])
def test_a_process_raises_its_own_limit_and_says_so_only_where_that_is_too_little(
    hard: int, after: int, is_told: bool
) -> None:
    # A process of its own: a hard limit that is lowered stays so.
    program = f"""
import json, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (512, {hard}))
from webserving.descriptors import Demand, raise_limit
told = []
raise_limit(Demand(1_000, 2, 256, "conversations", "server.max_sessions"), told.append)
print(json.dumps([resource.getrlimit(resource.RLIMIT_NOFILE), told]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    limits, told = json.loads(done.stdout)
    assert limits == [after, hard]
    assert ("ulimit -n 2448" in " ".join(told)) is is_told
