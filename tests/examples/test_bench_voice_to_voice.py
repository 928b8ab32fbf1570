"""The latency benchmark: its meter on a known answer, and its sums on results made up here."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from examples import bench_voice_to_voice as bench
from tests.conftest import run_async


def test_a_known_answer_is_never_measured_early() -> None:
    # How late it is measured says how busy this machine is, which is no finding of a test.
    measured = run_async(bench.calibrate(tones=1, tone_s=0.2, resolution_s=(-0.005, 60.0)), timeout_s=120.0)
    assert measured["known_ms"] == pytest.approx(300.0)
    assert measured["worst_error_ms"] >= -5.0


def test_a_meter_that_is_off_measures_nothing() -> None:
    with pytest.raises(RuntimeError, match=r"off by -?\d+.* ms on a known answer"):
        run_async(bench.calibrate(tones=1, tone_s=0.2, resolution_s=(-0.1, -0.05)), timeout_s=120.0)


def turn(latency_s: float | None, *, cut_off: bool = False, granted: int = 6, **fields: Any) -> bench.Turn:
    timeline = {
        "plan": {"granted_first": granted},
        "stages": [{"name": "endpoint", "start_ms": 0.0, "end_ms": 400.0}],
    }
    return bench.Turn("a.flac", "a mocha", 2.0, latency_s, cut_off=cut_off, timeline=timeline, **fields)


def test_results_of_all_lines_are_summed_up() -> None:
    report = bench.summarise(
        [
            bench.CallResult([turn(0.5), turn(0.7, granted=4), turn(None)], ["slow down"]),
            bench.CallResult([turn(0.2, cut_off=True), turn(0.9, granted=9, underruns_s=[0.1, 0.2])]),
        ]
    )
    assert (report["turns"], report["unanswered"], report["cut_off"], report["underruns"]) == (5, 1, 1, 2)
    assert report["errors"] == ["slow down"]
    assert report["voice_to_voice"]["count"] == 4
    assert report["voice_to_voice"]["p50_ms"] == 500.0 and report["voice_to_voice"]["p99_ms"] == 900.0
    assert report["voice_to_voice_without_cut_offs"]["count"] == 3
    assert report["voice_to_voice_without_cut_offs"]["p50_ms"] == 700.0
    assert report["server_stages"]["endpoint"]["p95_ms"] == 400.0
    assert report["steps_granted_first_clause"] == {"min": 4, "max": 9}


@pytest.mark.parametrize("results", [[], [bench.CallResult()], [bench.CallResult([turn(None)])]])
def test_nothing_heard_has_no_latency(results: list[bench.CallResult]) -> None:
    report = bench.summarise(results)
    assert report["voice_to_voice"] is None and report["voice_to_voice_without_cut_offs"] is None
    assert report["steps_granted_first_clause"] is None
    bench.show(1, report)


def test_a_server_that_takes_no_more_callers_ends_it_with_the_reason() -> None:
    def full(socket: ServerConnection, request: Request) -> Response:
        return socket.respond(503, "no more callers fit\n")

    async def run() -> None:
        async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=full) as server:
            url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            recordings = [bench.Recording("a.flac", "order", "a mocha", np.zeros(240, np.float32), 0.0, 0.01)]
            await bench.measure(url, recordings, callers=1, turns=1, calls=1, seed=1, api_key=None)

    with pytest.raises(
        SystemExit, match=r"refused one of 1 callers: 503 no more callers fit; server\.refuse_when_full"
    ):
        run_async(run(), timeout_s=60.0)


def test_an_answer_without_a_timeline_still_counts() -> None:
    answered = turn(0.4)
    answered.timeline = None
    report = bench.summarise([bench.CallResult([answered])])
    assert report["voice_to_voice"]["count"] == 1
    assert report["server_stages"] == {} and report["steps_granted_first_clause"] is None


def test_without_matplotlib_there_is_no_picture_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not bench.plot(tmp_path / "picture.png", []) and not (tmp_path / "picture.png").exists()
