from __future__ import annotations

import sys
from pathlib import Path

import pytest

from voice_pipelines import settings
from voiceagent.errors import ConfigError


def test_both_presets_load_and_the_cafe_is_what_starts_by_default() -> None:
    assert {"cafe", "open"} <= set(settings.preset_names())
    config = settings.load()
    assert config.preset == "cafe"
    profile = settings.agent_profile(config)
    assert profile.greeting and profile.instructions and profile.notes is not None
    note = profile.notes().hear("can i get a large mocha with oat milk")
    assert note is not None and "large mocha with oat milk" in note.text
    assert note.must_say == ("large mocha with oat milk", "$5.50")
    assert settings.agent_profile(settings.load(assignments=["preset=open"])).notes is None


def test_two_conversations_do_not_share_an_order() -> None:
    profile = settings.agent_profile(settings.load())
    assert profile.notes is not None
    first, second = profile.notes(), profile.notes()
    first.hear("can i get a large mocha")
    note = second.hear("that's all")
    assert note is None or "mocha" not in note.text


def test_stronger_layers_win(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('[server]\nport = 9001\n[agent]\nname = "Ours"\n')
    config = settings.load(
        file=mine, assignments=["server.port=9003"], environ={"VOICEAGENT_SERVER_PORT": "9002", "HOME": "/nowhere"}
    )
    assert (config.server.port, config.agent.name) == (9003, "Ours")
    assert settings.load(environ={"VOICEAGENT_CONFIG": str(mine)}).server.port == 9001


def test_a_preset_may_be_anyones_file(tmp_path: Path) -> None:
    mine = tmp_path / "florist.toml"
    mine.write_text('[agent]\nname = "florist"\ninstructions = "You sell flowers."\n')
    assert settings.load(assignments=[f"preset={mine}"]).agent.name == "florist"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('[agent]\ninstructions = "Flowers."', "agent.greeting, notes.function, vocabulary.phrases, silence.prompts"),
        (
            '[agent]\ninstructions = "Flowers."\ngreeting = "Hello."\n[notes]\nfunction = ""\n[vocabulary]\nphrases = ["a rose"]',
            "silence.prompts",
        ),
        ('preset = "open"\n[agent]\ninstructions = "Flowers."', ""),
        ('preset = "cafe"\n[agent]\ninstructions = "Flowers and coffee."', ""),
        ('[agent]\ngreeting = "Hello."', ""),
    ],
)
def test_what_an_agent_of_ones_own_has_from_the_cafe_unasked_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, kept: str
) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    settings.load(file=mine)
    assert [record.getMessage().partition("asked for: ")[2].partition(";")[0] for record in caplog.records] == (
        [kept] if kept else []
    )


def test_functions_may_lie_beside_a_preset_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "florists_notes.py").write_text("def notes(menu):\n    return None\n")
    mine = tmp_path / "florist.toml"
    mine.write_text('[notes]\nfunction = "florists_notes:notes"\n')
    assert settings.agent_profile(settings.load(assignments=[f"preset={mine}"])).notes is not None


def test_notes_of_a_module_that_fails_while_it_is_imported_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_written_notes.py").write_text("def notes(menu:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="notes.function = 'half_written_notes:notes'.*SyntaxError"):
        settings.agent_profile(settings.load(assignments=["notes.function=half_written_notes:notes"]))


@pytest.mark.parametrize(
    ("assignment", "key"),
    [
        ("preset=nowhere", "preset"),
        ("server.port=many", "server.port"),
        ("notes.function=no.such:thing", "notes.function"),
        ("notes.function=json:loads", "notes.function"),
        ("agent.nmae=x", "agent.nmae"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(assignment: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings.agent_profile(settings.load(assignments=[assignment]))
    assert caught.value.key == key
    assert caught.value.expected
