from pathlib import Path

import pytest

from voice_pipelines import folders
from voice_pipelines.adapters.pocketsphinx import default_cache
from voice_pipelines.models import models_folder
from voice_pipelines.remembering import state_folder
from voiceagent.errors import ConfigError


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


@pytest.mark.parametrize("path", ["~no_such_user_here/models", "a" * 300])
def test_a_name_that_nothing_can_have_is_told_with_its_key(path: str) -> None:
    with pytest.raises(ConfigError, match="models.folder = '.*expected the path of something that can be looked at"):
        folders.named("models.folder", path)


def test_a_place_that_is_not_there_yet_may_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folders.named("models.folder", "~/models") == tmp_path / "models"
