from __future__ import annotations

import tomllib
from typing import Any

import pytest

from voice_pipelines.cafe.dialogues import PRESET
from voice_pipelines.cafe.menu import Menu, read_menu


@pytest.fixture(scope="session")
def preset() -> dict[str, Any]:
    """The café preset as it is shipped."""
    return tomllib.loads(PRESET.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def menu(preset: dict[str, Any]) -> Menu:
    return read_menu(preset["menu"])
