"""The page in a real browser, for whoever tests it: Chromium, a running server, and what the page hears."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from playwright.sync_api import BrowserType, sync_playwright

from tests.e2e.browser import OpenPage, open_page, running_server

OpenWith = Callable[[Path | None], OpenPage]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_server() as address:
        yield address


@pytest.fixture(scope="module")
def browser_type() -> Iterator[BrowserType]:
    with sync_playwright() as playwright:
        yield playwright.chromium


@pytest.fixture
def open_with(browser_type: BrowserType, chromium: str, server: str, tmp_path: Path) -> Iterator[OpenWith]:
    """Opens the page with the given microphone, None for one that is refused."""
    opened: list[AbstractContextManager[OpenPage]] = []

    def open_one(microphone: Path | None) -> OpenPage:
        manager = open_page(browser_type, chromium, server, tmp_path / f"profile{len(opened)}", microphone=microphone)
        opened.append(manager)
        return manager.__enter__()

    yield open_one
    for manager in opened:
        manager.__exit__(None, None, None)


@pytest.fixture(scope="module")
def quiet_page(
    browser_type: BrowserType, chromium: str, server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenPage]:
    """One page for the tests of its modules, which need no conversation."""
    with open_page(browser_type, chromium, server, tmp_path_factory.mktemp("profile"), microphone=None) as opened:
        yield opened
