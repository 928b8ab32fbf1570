"""One language model for all tests of this folder: building it takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.voice_pipelines.asr.orders import VOCABULARY
from voice_pipelines.asr.model import LanguageOptions, ModelFiles, build, cached_files


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asr")
    files, is_there = cached_files(folder, VOCABULARY, LanguageOptions())
    assert not is_there
    build(VOCABULARY, LanguageOptions(), files)
    return folder


@pytest.fixture(scope="session")
def model(cache: Path) -> ModelFiles:
    files, is_there = cached_files(cache, VOCABULARY, LanguageOptions())
    assert is_there
    return files
