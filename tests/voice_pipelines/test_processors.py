import os
from pathlib import Path

import pytest

from voice_pipelines import processors
from voice_pipelines.processors import (
    Quota,
    Spared,
    available_cores,
    busy_s,
    group_share,
    helped,
    least_share,
    niceness,
    quota,
    quota_folders,
    read_busy_s,
    usable,
)
from voiceagent.backends import EngineWork
from voiceagent.foresight import LEAST_FREE

STAT = """cpu  500 900 300 9000 10 20 30 40 0 0
cpu0 100 500 50 4000 5 10 15 20 0 0
cpu1 400 400 250 5000 5 10 15 20 0 0
intr 1 2 3
"""


# --- how busy they are ----------------------------------------------------------------------------------------------------


def test_user_system_interrupts_and_stolen_time_are_busy_and_polite_programs_and_waiting_are_not() -> None:
    assert read_busy_s(STAT, {0}, 100) == pytest.approx(1.95)
    assert read_busy_s(STAT, {0, 1}, 100) == pytest.approx(1.95 + 6.95)
    assert read_busy_s("cpu0 100 0 50 7", {0}, 100) == pytest.approx(1.5), "an old system tells less"


def test_to_a_polite_server_polite_programs_are_busy_as_it_is_itself() -> None:
    assert read_busy_s(STAT, {0}, 100, nice=5) == pytest.approx(1.95 + 5.0)
    assert read_busy_s(STAT, {0}, 100, nice=-5) == pytest.approx(1.95)


def test_beside_others_a_polite_server_gets_less_of_a_processor() -> None:
    assert least_share(0) == LEAST_FREE
    assert least_share(5) == pytest.approx(0.247, abs=0.001), "weights of 335 and 1024 (kernel/sched/core.c)"
    assert least_share(19) < 0.02 and least_share(-20) > 0.98
    assert -20 <= niceness() <= 19


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


# --- a container's weight -------------------------------------------------------------------------------------------------


def test_beside_others_a_container_of_little_weight_gets_less_of_a_processor(tmp_path: Path) -> None:
    me, mount = second_version(tmp_path, "/pods/server")
    write(mount)  # The root of a machine has no weight.
    write(mount / "pods", cpu__weight="100\n")
    write(mount / "pods" / "server", cpu__weight="25\n")
    assert group_share(quota_folders(me)) == pytest.approx(0.2)
    write(mount / "pods", cpu__weight="1")
    assert group_share(quota_folders(me)) == pytest.approx(1 / 101), "the least of all groups around it"
    write(tmp_path / "old", cpu__shares="256\n")
    assert group_share([tmp_path / "old"]) == pytest.approx(0.2), "the first version counts from 1024"


def test_one_busy_group_beside_a_container_takes_its_share_at_one_level_only(tmp_path: Path) -> None:
    me, mount = second_version(tmp_path, "/pods/pod/server")
    for weight, share in (("50", 1 / 3), ("100", LEAST_FREE)):
        for folder in (mount / "pods", mount / "pods" / "pod", mount / "pods" / "pod" / "server"):
            write(folder, cpu__weight=weight)
        assert group_share(quota_folders(me)) == pytest.approx(share)


@pytest.mark.parametrize("weight", ["", "much", "100", "10000"])
def test_no_weight_promises_more_than_half(tmp_path: Path, weight: str) -> None:
    write(tmp_path, cpu__weight=weight)
    assert group_share([tmp_path]) == group_share([]) == LEAST_FREE
    write(tmp_path, cpu__weight="0")
    assert 0 < group_share([tmp_path]) < 0.01, "an idle group still gets a little"


# --- a container's quota --------------------------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def process(tmp_path: Path, cgroup: str, mountinfo: str) -> Path:
    """A folder like `/proc/self` that tells of these groups and mounts."""
    write(tmp_path / "self", cgroup=cgroup, mountinfo=mountinfo)
    return tmp_path / "self"


def second_version(tmp_path: Path, path: str, *, root: str = "/", mount: str = "cgroup") -> tuple[Path, Path]:
    """A mount of control groups of the second version; the process and the mount's folder."""
    made = tmp_path / mount
    made.mkdir(parents=True, exist_ok=True)
    place = str(made).replace(" ", "\\040")
    return process(
        tmp_path, f"0::{path}\n", f"30 23 0:26 {root} {place} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    ), made


def test_the_quota_of_a_container_that_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    me, mount = second_version(tmp_path, "/")
    write(
        mount,
        cpu__max="150000 100000\n",
        cpu__stat="usage_usec 7500000\nuser_usec 1\nnr_periods 90\nnr_throttled 12\nthrottled_usec 5\n",
    )
    assert quota(quota_folders(me)) == Quota(cores=1.5, used_s=7.5, held_s=pytest.approx(1.2))


def test_the_tightest_quota_of_all_groups_around_a_process_counts(tmp_path: Path) -> None:
    me, mount = second_version(tmp_path, "/pod/server")
    write(mount)  # The root of a machine has no quota.
    write(mount / "pod", cpu__max="50000 100000", cpu__stat="usage_usec 2000000\nnr_throttled 0")
    write(mount / "pod" / "server", cpu__max="max 100000", cpu__stat="usage_usec 1000000")
    assert quota_folders(me) == (mount / "pod" / "server", mount / "pod", mount)
    assert quota(quota_folders(me)) == Quota(0.5, 2.0, 0.0)
    write(mount / "pod", cpu__max="max 100000")
    assert quota(quota_folders(me)) is None


def test_a_path_told_from_outside_is_looked_for_from_the_mount_on(tmp_path: Path) -> None:
    for path, root in (("/docker/abc", "/docker/abc"), ("/../../elsewhere", "/"), ("/docker/abc", "/")):
        me, mount = second_version(tmp_path, path, root=root, mount="a mount")
        write(mount, cpu__max="200000 100000", cpu__stat="")
        found = quota(quota_folders(me))
        assert found is not None and found.cores == 2.0 and found.used_s is None


def test_a_quota_of_the_first_version_of_control_groups(tmp_path: Path) -> None:
    mount = tmp_path / "cpu,cpuacct"
    write(
        mount / "docker" / "abc",
        cpu__cfs_quota_us="250000\n",
        cpu__cfs_period_us="100000\n",
        cpu__stat="nr_periods 9\nnr_throttled 4\nthrottled_time 77\n",
        cpuacct__usage="3000000000\n",
    )
    write(mount, cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000", cpu__stat="nr_throttled 0")
    me = process(
        tmp_path,
        "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n3:cpuset:/\n0::/\n",
        f"32 31 0:29 / {mount} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
        f"33 31 0:31 / {tmp_path / 'cpuset'} rw,relatime - cgroup cgroup rw,cpuset\n",
    )
    assert quota(quota_folders(me)) == Quota(2.5, 3.0, pytest.approx(0.4))


@pytest.mark.parametrize("limit", ["", "max", "much 100000", "-5 100000", "100000 0", "100000"])
def test_a_limit_that_says_nothing_is_none(tmp_path: Path, limit: str) -> None:
    write(tmp_path, cpu__max=limit, cpu__stat="nr_throttled 1")
    assert quota([tmp_path]) is None


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert quota_folders(tmp_path / "nothing") == ()
    assert quota(()) is None
    assert quota_folders(process(tmp_path, "garbage\n1:\n", "x\n- -\n a b - cgroup2\n")) == ()


def test_part_of_a_core_counts_as_one_and_no_quota_gives_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "usable", lambda: frozenset(range(4)))
    for cores, expected in ((0.3, 1), (1.0, 1), (1.5, 2), (64.0, 4)):
        monkeypatch.setattr(processors, "quota", lambda folders, cores=cores: Quota(cores, 0.0, 0.0))
        assert available_cores() == expected
    monkeypatch.setattr(processors, "quota", lambda folders: None)
    assert available_cores() == 4


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not tell")
def test_a_process_kept_on_some_processors_has_no_others() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable() == {min(before)} and available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


# --- what fewer steps would have saved ------------------------------------------------------------------------------------


def test_an_engine_that_waits_for_a_processor_spares_less_than_the_clock_says() -> None:
    spared = Spared()
    assert spared.read(0.5, EngineWork(clock_s=1.0, thread_s=1.0, threads=1)) == pytest.approx(0.5)
    assert spared.read(1.5, EngineWork(clock_s=3.0, thread_s=2.0, threads=1)) == pytest.approx(1.0), (
        "half on a processor"
    )
    assert spared.read(2.5, EngineWork(clock_s=3.0, thread_s=2.0, threads=1)) == pytest.approx(1.5), "told of late"
    assert spared.read(2.0, EngineWork(clock_s=9.0, thread_s=8.0, threads=1)) == pytest.approx(1.5), "it never falls"


def test_an_engine_with_helpers_spares_more_than_the_clock_says() -> None:
    spared = Spared(helped(3.0, EngineWork(1.0, 1.0, 4), EngineWork(2.0, 2.0, 4)))
    assert spared.read(1.0, EngineWork(clock_s=1.0, thread_s=1.0, threads=4)) == pytest.approx(3.0)


def test_no_more_helpers_are_believed_in_than_there_are_threads() -> None:
    start = EngineWork(0.0, 0.0, 1)
    assert helped(1.3, start, EngineWork(1.0, 1.0, 1)) == 1.0, "the rest of the process was busy"
    assert helped(0.5, start, EngineWork(1.0, 1.0, 4)) == 1.0
    assert helped(5.0, start, start) == 1.0


def test_of_another_engine_the_clock_is_believed() -> None:
    assert Spared().read(0.5, None) == 0.5
