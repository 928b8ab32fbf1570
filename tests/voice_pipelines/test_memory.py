from pathlib import Path

import pytest

from tests.voice_pipelines.test_processors import process, second_version, write
from voice_pipelines import memory
from voice_pipelines.memory import available_gib, left_bytes
from voice_pipelines.processors import quota_folders

GIB = 2**30


def test_a_container_has_what_its_limit_leaves_and_idle_pages_of_files_are_free(tmp_path: Path) -> None:
    me, mount = second_version(tmp_path, "/pod")
    stat = f"anon 5\ninactive_file {GIB // 2}\nactive_file 7\n"
    write(mount / "pod", memory__max=str(2 * GIB), memory__current=str(GIB), memory__stat=stat)
    assert left_bytes(quota_folders(me, "memory")) == 2 * GIB - GIB // 2
    write(mount / "pod", memory__current=str(9 * GIB))
    assert left_bytes(quota_folders(me, "memory")) == 0
    write(mount / "pod", memory__max="max\n")
    assert left_bytes(quota_folders(me, "memory")) is None


def test_a_limit_of_the_first_version_of_control_groups(tmp_path: Path) -> None:
    mount = tmp_path / "memory"
    write(
        mount / "docker",
        memory__limit_in_bytes=f"{4 * GIB}\n",
        memory__usage_in_bytes=f"{3 * GIB}\n",
        memory__stat="inactive_file 9\ntotal_inactive_file 0\n",
    )
    me = process(
        tmp_path,
        "5:memory:/docker\n4:cpu:/elsewhere\n0::/\n",
        f"32 31 0:29 / {mount} rw - cgroup cgroup rw,memory\n33 31 0:30 / {tmp_path / 'cpu'} rw - cgroup cgroup rw,cpu\n",
    )
    assert left_bytes(quota_folders(me, "memory")) == GIB


@pytest.mark.parametrize("limit", ["", "much", "1 2"])
def test_a_limit_that_says_nothing_is_none(tmp_path: Path, limit: str) -> None:
    write(tmp_path, memory__max=limit, memory__current="1", memory__stat="")
    assert left_bytes([tmp_path]) is None


def test_a_container_never_has_more_than_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "left_bytes", lambda folders: None)
    machine = available_gib()
    assert machine > 0
    monkeypatch.setattr(memory, "left_bytes", lambda folders: 2**60)
    assert available_gib() < 2**30
    monkeypatch.setattr(memory, "left_bytes", lambda folders: GIB // 4)
    assert available_gib() == 0.25 < machine
