from pathlib import Path

import pytest

from voice_pipelines import folders
from voice_pipelines.adapters.pocketsphinx import default_cache
from voice_pipelines.models import models_folder
from voice_pipelines.remembering import state_folder


def test_a_user_without_a_home_has_the_root_as_container_engines_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(kind: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(none))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache() == Path("/.cache/voiceagent")
    assert state_folder({}, platform="linux") == Path("/.local/state/voiceagent")
    assert models_folder({}, platform="linux") == Path("/.local/share/voiceagent/models")


def test_a_folder_is_made_where_files_can_be_put_there(tmp_path: Path) -> None:
    assert folders.can_be_filled(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("in the way")
    assert not folders.can_be_filled(tmp_path / "file")
    assert not folders.can_be_filled(tmp_path / "file" / "a")
    assert folders.can_be_filled(folders.of_this_process())
    assert folders.of_this_process() == folders.of_this_process()
