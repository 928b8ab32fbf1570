"""The transcriber with its real worker processes, on recordings."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import run_async
from tests.voice_pipelines.asr.orders import ORDER, ORDER_TEXT, VOCABULARY, said
from voice_pipelines.adapters import pocketsphinx
from voice_pipelines.adapters.pocketsphinx import PocketSphinxOptions, PocketSphinxTranscriber
from voice_pipelines.asr.vocabulary import Vocabulary
from voiceagent.backends import Partial
from voiceagent.errors import BackendError, OverloadedError


@asynccontextmanager
async def transcriber(cache: Path, **options: int) -> AsyncIterator[PocketSphinxTranscriber]:
    made = await PocketSphinxTranscriber.create(
        VOCABULARY, PocketSphinxOptions(**{"workers": 1, "decoders": 1, **options}), cache=cache
    )
    try:
        yield made
    finally:
        await made.aclose()


def ignore(partial: Partial) -> None:
    pass


def test_an_order_is_partly_heard_before_the_caller_has_finished(cache):
    async def main():
        heard: asyncio.Queue[Partial] = asyncio.Queue()
        async with transcriber(cache) as asr:
            utterance = await asr.open(heard.put_nowait)
            utterance.feed(ORDER[: int(2.2 * 16_000)])
            partial = await heard.get()
            utterance.feed(ORDER[int(2.2 * 16_000) :])
            return partial, await utterance.finish()

    partial, final = run_async(main(), timeout_s=120)
    assert partial.text.startswith("can i get")
    assert said(final.text) == ORDER_TEXT
    for heard in (partial, final):
        assert heard.confidence is not None and 0.5 < heard.confidence < 1.0, "it was heard right"


def test_without_a_vocabulary_nobody_is_told_how_sure_it_is(cache, model, monkeypatch):
    async def files(*of: object):
        return model

    monkeypatch.setattr(pocketsphinx, "_model_files", files)

    async def main():
        heard: asyncio.Queue[Partial] = asyncio.Queue()
        made = await PocketSphinxTranscriber.create(None, PocketSphinxOptions(workers=1, decoders=1), cache=cache)
        try:
            utterance = await made.open(heard.put_nowait)
            utterance.feed(ORDER[: int(2.2 * 16_000)])
            partial = await heard.get()
            utterance.feed(ORDER[int(2.2 * 16_000) :])
            return partial, await utterance.finish()
        finally:
            await made.aclose()

    partial, final = run_async(main(), timeout_s=120)
    assert partial.text and said(final.text) == ORDER_TEXT
    assert partial.confidence is None and final.confidence is None


def test_silence_is_empty_and_nothing_is_sure_of_it(cache):
    async def main():
        async with transcriber(cache) as asr:
            utterance = await asr.open(ignore)
            utterance.feed(np.zeros(16_000, np.float32))
            return await utterance.finish()

    final = run_async(main(), timeout_s=120)
    assert (final.text, final.confidence) == ("", None)


def test_more_callers_than_decoders_are_all_heard(cache):
    async def main():
        async with transcriber(cache, max_decoders=2) as asr:
            utterances = [await asr.open(ignore) for _ in range(5)]
            for utterance in utterances:
                utterance.feed(ORDER)
            return await asyncio.gather(*(utterance.finish() for utterance in utterances))

    assert {said(result.text) for result in run_async(main(), timeout_s=120)} == {ORDER_TEXT}


def test_callers_beyond_the_limit_are_refused_and_a_finished_one_makes_room(cache):
    async def main():
        async with transcriber(cache, max_decoders=1, max_waiting=2) as asr:
            first, _ = await asr.open(ignore), await asr.open(ignore)
            with pytest.raises(OverloadedError):
                await asr.open(ignore)
            await first.finish()
            await asr.open(ignore)

    run_async(main(), timeout_s=120)


def test_a_cancelled_utterance_frees_its_decoder_for_the_next(cache):
    async def main():
        async with transcriber(cache, max_decoders=1) as asr:
            for _ in range(3):
                dropped = await asr.open(ignore)
                dropped.feed(ORDER)
                await asyncio.sleep(0)
                dropped.cancel()
                dropped.cancel()
            utterance = await asr.open(ignore)
            utterance.feed(ORDER)
            final = await utterance.finish()
            utterance.cancel()
            return final, await dropped.finish()

    final, dropped = run_async(main(), timeout_s=120)
    assert said(final.text) == ORDER_TEXT
    assert dropped.text == ""


def test_a_worker_that_dies_fails_its_own_utterances_and_is_replaced(cache):
    async def main():
        async with transcriber(cache, workers=2) as asr:
            utterances = [await asr.open(ignore), await asr.open(ignore)]
            assert {utterance.worker.pid for utterance in utterances} == set(asr.worker_pids)
            lost, kept = utterances
            for utterance in utterances:
                utterance.feed(ORDER)
            os.kill(lost.worker.pid, signal.SIGKILL)
            with pytest.raises(BackendError, match="died"):
                await lost.finish()
            assert said((await kept.finish()).text) == ORDER_TEXT

    run_async(main(), timeout_s=120)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_of_the_server_ends_no_callers_utterance(cache, number: signal.Signals):
    async def main():
        async with transcriber(cache) as asr:
            utterance = await asr.open(ignore)
            os.kill(utterance.worker.pid, number)
            utterance.feed(ORDER)
            return await utterance.finish()

    assert said(run_async(main(), timeout_s=120).text) == ORDER_TEXT


def test_after_the_only_worker_died_the_next_caller_gets_its_replacement(cache):
    async def main():
        async with transcriber(cache) as asr:
            lost = await asr.open(ignore)
            os.kill(lost.worker.pid, signal.SIGKILL)
            with pytest.raises(BackendError, match="died"):
                await lost.finish()
            utterance = await asr.open(ignore)
            assert asr.worker_pids == (utterance.worker.pid,) != (lost.worker.pid,)
            utterance.feed(ORDER)
            return await utterance.finish()

    assert said(run_async(main(), timeout_s=120).text) == ORDER_TEXT


def test_closing_fails_who_still_waits_and_leaves_no_process(cache):
    async def main():
        async with transcriber(cache, workers=2) as asr:
            pids = asr.worker_pids
            utterance = await asr.open(ignore)
            utterance.feed(ORDER)
        with pytest.raises(BackendError, match="closed"):
            await utterance.finish()
        with pytest.raises(BackendError, match="closed"):
            await asr.open(ignore)
        return pids

    for pid in run_async(main(), timeout_s=120):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_end_when_the_runtime_is_killed(cache, tmp_path):
    script = f"""
import asyncio, pathlib, sys
from voice_pipelines.adapters.pocketsphinx import PocketSphinxOptions, PocketSphinxTranscriber
async def main():
    asr = await PocketSphinxTranscriber.create(None, PocketSphinxOptions(workers=1, decoders=1), cache=pathlib.Path({str(cache)!r}))
    print(*asr.worker_pids, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=pipe, stderr=pipe, env=environment, text=True
    ) as runtime:
        assert runtime.stdout is not None and runtime.stderr is not None
        pid = int(runtime.stdout.readline())
        assert pid != runtime.pid
        runtime.kill()
        # The worker inherits standard error: this pipe ends when the worker has ended too.
        runtime.stderr.read()


def test_a_language_model_that_cannot_be_built_says_why(tmp_path, monkeypatch):
    async def main():
        with pytest.raises(BackendError, match="could not be built"):
            await PocketSphinxTranscriber.create(Vocabulary(("''' '''' a",)), cache=tmp_path / "file")

    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("voice_pipelines.folders.can_be_filled", lambda folder: True)
    run_async(main(), timeout_s=120)


def test_where_the_cache_cannot_be_written_the_language_model_is_made_for_this_process(cache, tmp_path, monkeypatch):
    async def main():
        async with transcriber(tmp_path / "file" / "cache") as asr:
            assert asr.info.name == "pocketsphinx"

    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("voice_pipelines.folders.of_this_process", lambda: cache)  # where it is built already
    run_async(main(), timeout_s=120)

    def none() -> Path:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("voice_pipelines.folders.of_this_process", none)
    with pytest.raises(BackendError, match=r"neither .*cache nor temporary files can be written"):
        run_async(main(), timeout_s=120)


def test_a_built_model_is_found_again(cache):
    before = sorted(cache.iterdir())

    async def main():
        async with transcriber(cache):
            pass

    run_async(main(), timeout_s=120)
    assert sorted(cache.iterdir()) == before
