"""As many callers as may come find open files for themselves, or it is said what to do."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from voiceagent.descriptors import OWN, Limit, finding, needed, raised, read_limit, remedy, sessions_within
from voiceagent.server_settings import ServerSettings

CROWD = ServerSettings(max_sessions=1_000, max_waiting=256)


def test_a_caller_a_bridge_without_a_call_and_those_who_wait_each_take_one() -> None:
    assert needed(CROWD) == OWN + 256 + 2 * 1_000
    assert needed(CROWD, each=4) == OWN + 256 + 5 * 1_000


@pytest.mark.parametrize("each", [1, 2, 4])
@pytest.mark.parametrize("limit", [0, 64, 447, 448, 450, 1_024, 2_447, 2_448, 4_096, 1_000_000, math.inf])
def test_so_many_conversations_as_fit_need_no_more_than_the_limit_and_one_more_would(limit: float, each: int) -> None:
    sessions = sessions_within(limit, CROWD, each)
    assert 0 <= sessions <= CROWD.max_sessions
    if sessions:
        assert needed(ServerSettings(max_sessions=sessions), each) <= limit
    if sessions < CROWD.max_sessions:
        assert needed(ServerSettings(max_sessions=sessions + 1), each) > limit


def test_the_usual_limit_is_enough_for_the_usual_number_of_callers_with_a_remote_model_and_tools() -> None:
    assert remedy(Limit(1_024, 1_024), ServerSettings(max_sessions=32), each=4) is None


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
    assert sessions_within(1_024, CROWD) == 288
    hopeless = remedy(Limit(64, 64), CROWD)
    assert hopeless is not None and "max_sessions" not in hopeless


def test_what_is_found_names_both_numbers_in_full() -> None:
    assert "up to 2448 open files" in finding(Limit(1_024, 1_048_576), CROWD)
    assert "1048576" in finding(Limit(1_024, 1_048_576), CROWD)
    assert "as many as it likes" in finding(Limit(256, math.inf), CROWD)


@pytest.mark.skipif(read_limit() is None, reason="this system has no limit on open files")
@pytest.mark.parametrize(("hard", "after", "is_warned"), [(4_096, 2_448, False), (1_500, 1_500, True)])
def test_a_process_raises_its_own_limit_and_warns_only_where_that_is_too_little(
    hard: int, after: int, is_warned: bool
) -> None:
    # A process of its own: a hard limit that is lowered stays so.
    program = f"""
import json, logging, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (512, {hard}))
logging.basicConfig()
from voiceagent.descriptors import raise_limit
from voiceagent.server_settings import ServerSettings
raise_limit(ServerSettings(max_sessions=1_000))
print(json.dumps(resource.getrlimit(resource.RLIMIT_NOFILE)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [after, hard]
    assert ("ulimit -n 2448" in done.stderr) is is_warned
