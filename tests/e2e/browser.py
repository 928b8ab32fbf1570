"""A real server, a real Chromium, and a recording for its microphone."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr
from playwright.sync_api import BrowserType, ConsoleMessage, Page, ViewportSize

LISTENS = "listens on "
MICROPHONE_RATE_HZ = 48_000
LAPTOP = ViewportSize(width=1280, height=800)


@contextmanager
def running_server(*options: str, start_timeout_s: float = 300.0) -> Iterator[str]:
    """`voiceagent serve` with the café on a free port; gives its address. Everything it printed is in the error when it does not start."""
    command = [sys.executable, "-m", "voice_pipelines.cli", "serve", "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(
        # Whatever else keeps the machine busy: who is refused then is tested elsewhere.
        [*command, "--preset", "cafe", "--set", "server.refuse_when_full=false", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    output = process.stdout

    def read() -> None:
        for line in output:
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield _address(lines, time.monotonic() + start_timeout_s)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        output.close()


def _address(lines: queue.Queue[str | None], deadline: float) -> str:
    seen: list[str] = []
    while True:
        try:
            line = lines.get(timeout=max(0.1, deadline - time.monotonic()))
        except queue.Empty:
            raise AssertionError(f"the server did not start in time; it printed:\n{''.join(seen)}") from None
        if line is None:
            raise AssertionError(f"the server ended instead of starting; it printed:\n{''.join(seen)}")
        seen.append(line)
        if LISTENS in line:
            return line.split(LISTENS, 1)[1].split()[0]


@dataclass(frozen=True)
class Speech:
    """The words of one recording, without the silence around them."""

    path: Path
    text: str
    start_s: float
    end_s: float

    @classmethod
    def find(cls, folder: Path, name: str) -> Speech:
        """The recording `name` of the manifest in `folder`."""
        clips = map(json.loads, (folder / "manifest.jsonl").read_text("utf-8").splitlines())
        clip = next(clip for clip in clips if clip["path"] == name)
        return cls(folder / name, clip["text"], clip["speech_start_s"], clip["speech_end_s"])


def microphone_file(path: Path, parts: Sequence[Speech | float]) -> Path:
    """A WAV file for Chromium's microphone: speech, and pauses in seconds, one after the other."""
    pieces = []
    for part in parts:
        if isinstance(part, Speech):
            samples, rate_hz = soundfile.read(part.path, dtype="float32")
            spoken = samples[round(part.start_s * rate_hz) : round(part.end_s * rate_hz)]
            pieces.append(soxr.resample(spoken, rate_hz, MICROPHONE_RATE_HZ))
        else:
            pieces.append(np.zeros(round(part * MICROPHONE_RATE_HZ), dtype=np.float32))
    soundfile.write(path, np.concatenate(pieces), MICROPHONE_RATE_HZ, subtype="PCM_16")
    return path


@dataclass
class OpenPage:
    """A page with everything it complained about."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def wait_for_state(self, name: str, value: str, timeout_s: float = 60.0) -> None:
        """Until the page's `data-<name>` has been `value`, however briefly: an observer sees what polling would miss."""
        self.page.evaluate(
            """([name, value, timeoutMs]) => new Promise((resolve, reject) => {
              const app = document.getElementById("app");
              const history = [];
              const observer = new MutationObserver(look);
              const timer = setTimeout(() => {
                observer.disconnect();
                reject(new Error(`data-${name} was never ${value}, but ${history.join(", ")}`));
              }, timeoutMs);
              function look() {
                history.push(app.getAttribute(`data-${name}`));
                if (history.at(-1) !== value) return;
                observer.disconnect();
                clearTimeout(timer);
                resolve();
              }
              observer.observe(app, { attributes: true, attributeFilter: [`data-${name}`] });
              look();
            })""",
            [name, value, timeout_s * 1000],
        )

    def state(self, name: str) -> str | None:
        return self.page.locator("#app").get_attribute(f"data-{name}")

    def lines(self, role: str) -> list[str]:
        """What the conversation shows for "user", "agent" or "note", oldest first."""
        return self.page.locator(f"#log .line-{role} .said").all_inner_texts()


@contextmanager
def open_page(
    chromium: BrowserType,
    executable: str,
    address: str,
    profile: Path,
    *,
    microphone: Path | None,
    scale: float = 1.0,
) -> Iterator[OpenPage]:
    """The page at `address` in a fresh browser. A microphone of None means that its use is refused."""
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--autoplay-policy=no-user-gesture-required",
        "--use-fake-device-for-media-stream",
    ]
    if microphone is None:
        arguments.append("--deny-permission-prompts")
    else:
        arguments += ["--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}%noloop"]
    context = chromium.launch_persistent_context(
        profile,
        executable_path=executable,
        headless=True,
        args=arguments,
        viewport=LAPTOP,
        device_scale_factor=scale,
    )
    try:
        page = context.pages[0]
        opened = OpenPage(page)

        def heard(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                opened.complaints.append(f"{message.type}: {message.text}")

        page.on("console", heard)
        page.on("pageerror", lambda error: opened.complaints.append(f"uncaught: {error}"))
        page.goto(address)
        yield opened
    finally:
        context.close()
