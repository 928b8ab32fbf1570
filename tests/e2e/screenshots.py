"""Takes the pictures of the page for the README: `python -m tests.e2e.screenshots docs/images`.

A real server, a real browser and recorded orders; the pictures show the page while it answers the second. The times in them
are those of the machine at that moment: take them on one that has nothing else to do.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Literal

from playwright.sync_api import ViewportSize, expect, sync_playwright

from tests.conftest import DATA, find_chromium
from tests.e2e.browser import LAPTOP, Speech, microphone_file, open_page, running_server

ORDERS = (
    "order/02b77977-ada7-4f37-a1b3-8cb433c8c8da.flac",
    "order/05ae073e-842f-4492-9fdc-e8a5bba5ace0.flac",
    "order/00e09cf0-a01d-453e-9b89-dc6e6d31d362.flac",
)
GREETING_S = 8.0
REPLY_S = 12.0
PATIENCE_MS = 120_000
PHONE = ViewportSize(width=390, height=844)

LOOKS: dict[str, tuple[ViewportSize, Literal["light", "dark"]]] = {
    "page-laptop-light": (LAPTOP, "light"),
    "page-laptop-dark": (LAPTOP, "dark"),
    "page-phone-light": (PHONE, "light"),
    "page-phone-dark": (PHONE, "dark"),
}


def main(folder: Path) -> None:
    """Write one PNG a look into `folder`."""
    executable = find_chromium()
    if executable is None:
        raise SystemExit("no Chromium is installed")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, running_server() as address, sync_playwright() as playwright:
        parts = [part for name in ORDERS for part in (Speech.find(DATA, name), REPLY_S)]
        microphone = microphone_file(Path(scratch) / "orders.wav", [GREETING_S, *parts, 60.0])
        profile = Path(scratch) / "profile"
        with open_page(playwright.chromium, executable, address, profile, microphone=microphone, scale=2) as opened:
            page = opened.page
            page.click("#talk")
            # The dot of the second answer: its first audible sample was heard.
            expect(page.locator("#history .column:nth-child(2) .page")).to_be_attached(timeout=PATIENCE_MS)
            for name, (viewport, scheme) in LOOKS.items():
                page.set_viewport_size(viewport)
                page.emulate_media(color_scheme=scheme)
                page.evaluate(
                    "Promise.allSettled(document.getAnimations().map((each) => each.finished))"
                )  # colours that fade
                page.screenshot(path=folder / f"{name}.png", animations="disabled")
                print(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
