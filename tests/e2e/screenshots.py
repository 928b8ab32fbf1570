"""Takes the pictures of the page for the README: `python -m tests.e2e.screenshots docs/images`.

A real server, a real browser and two recorded orders; each picture shows the page a moment after the second reply began.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import BrowserType, Page, expect, sync_playwright

from tests.conftest import DATA, find_chromium
from tests.e2e.browser import Look, Speech, microphone_file, open_page, running_server

ORDERS = ("order/00e09cf0-a01d-453e-9b89-dc6e6d31d362.flac", "order/02b77977-ada7-4f37-a1b3-8cb433c8c8da.flac")
GREETING_S = 6.0
REPLY_S = 9.0
PATIENCE_MS = 60_000

LOOKS = {
    "page-laptop-light": Look(scheme="light", scale=2),
    "page-laptop-dark": Look(scheme="dark", scale=2),
    "page-phone-light": Look(390, 844, "light", 2, is_phone=True),
    "page-phone-dark": Look(390, 844, "dark", 2, is_phone=True),
}


def main(folder: Path) -> None:
    """Write one PNG a look into `folder`."""
    executable = find_chromium()
    if executable is None:
        raise SystemExit("no Chromium is installed")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, running_server() as address, sync_playwright() as playwright:
        first, second = (Speech.find(DATA, name) for name in ORDERS)
        microphone = microphone_file(Path(scratch) / "orders.wav", [GREETING_S, first, REPLY_S, second, 60.0])
        for name, look in LOOKS.items():
            page_picture(
                playwright.chromium, executable, address, Path(scratch) / name, microphone, look, folder / f"{name}.png"
            )


def page_picture(
    chromium: BrowserType, executable: str, address: str, profile: Path, microphone: Path, look: Look, target: Path
) -> None:
    with open_page(chromium, executable, address, profile, microphone=microphone, look=look) as opened:
        page: Page = opened.page
        page.click("#talk")
        agent = page.locator("#log .line-agent")
        expect(agent).to_have_count(3, timeout=PATIENCE_MS)
        opened.wait_for_state("phase", "speaking")
        expect(page.locator("#page-p50")).not_to_have_text("–", timeout=PATIENCE_MS)
        # The dot of the second answer: its first audible sample was heard.
        expect(page.locator("#history .column")).to_have_count(2, timeout=PATIENCE_MS)
        page.screenshot(path=target)
        print(target)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
