"""The worker's own decisions, in this process: whose turn it is, what it says when."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from tests.voice_pipelines.asr.orders import ORDER, ORDER_TEXT, said
from voice_pipelines.asr.cepstrum import MeanOptions
from voice_pipelines.asr.decoder import DecoderOptions
from voice_pipelines.asr.junk import JunkOptions
from voice_pipelines.asr.wire import Kind, Message, MessageReader
from voice_pipelines.asr.worker import Worker, WorkerRequest

PCM = np.rint(ORDER * 32_767).astype("<i2").tobytes()


class Driven:
    """A worker whose answers are read back from its pipe."""

    def __init__(self, model, *, max_decoders: int) -> None:
        self._source, out = os.pipe()
        os.set_blocking(self._source, False)
        self._out = out
        self._reader = MessageReader()
        self.worked_s: list[float] = []
        self.before_s = time.process_time()
        self.worker = Worker(WorkerRequest(model, DecoderOptions(), decoders=1, max_decoders=max_decoders), out)

    def tell(self, kind: Kind, utterance: int, payload: bytes = b"") -> None:
        self.worker.take(Message(kind, utterance, payload))

    def answers(self) -> list[Message]:
        """What it has said of utterances; what it said of its own work is put aside."""
        try:
            said = list(self._reader.feed(os.read(self._source, 1 << 16)))
        except BlockingIOError:
            return []
        self.worked_s += [json.loads(message.payload)["cpu_s"] for message in said if message.kind is Kind.WORKED]
        return [message for message in said if message.kind is not Kind.WORKED]

    def work_until_idle(self) -> list[Message]:
        while self.worker.work():
            pass
        return self.answers()

    def close(self) -> None:
        os.close(self._source)
        os.close(self._out)


@pytest.fixture
def driven(model) -> Iterator[Driven]:
    made = Driven(model, max_decoders=1)
    assert [message.kind for message in made.answers()] == [Kind.READY]
    yield made
    made.close()


def test_partials_follow_the_audio_and_their_stable_part_only_grows(driven):
    driven.tell(Kind.OPEN, 7)
    heard = []
    for start in range(0, len(PCM), 3_200):
        driven.tell(Kind.AUDIO, 7, PCM[start : start + 3_200])
        heard += driven.work_until_idle()
    assert {(message.kind, message.utterance) for message in heard} == {(Kind.PARTIAL, 7)}
    partials = [json.loads(message.payload) for message in heard]
    assert len(partials) > 8
    for before, after in pairwise(partials):
        assert after["stable"].startswith(before["stable"])
    assert said(partials[-1]["stable"]).startswith("can i get a triple shot light roast")
    assert all(0.0 < partial["confidence"] < 1.0 for partial in partials if partial["stable"] or partial["unstable"])
    driven.tell(Kind.FINISH, 7)
    (final,) = driven.work_until_idle()
    assert final.kind is Kind.FINAL
    assert said(" ".join(word["text"] for word in json.loads(final.payload)["words"])) == ORDER_TEXT


def test_text_that_is_about_to_be_overtaken_is_sent_once_a_second(driven):
    driven.tell(Kind.OPEN, 1)
    driven.tell(Kind.AUDIO, 1, PCM[: 25 * 3_200])
    assert [message.kind for message in driven.work_until_idle()] == [Kind.PARTIAL] * 3, (
        "one for each second, and the last"
    )


def test_a_caller_who_has_finished_comes_before_one_who_still_speaks(model):
    driven = Driven(model, max_decoders=2)
    driven.answers()
    for id, size in ((1, len(PCM)), (2, 16 * 3_200)):
        driven.tell(Kind.OPEN, id)
        driven.tell(Kind.AUDIO, id, PCM[:size])
    driven.worker.work()
    driven.tell(Kind.FINISH, 2)
    while not (answers := driven.answers()):
        assert driven.worker.work()
    driven.close()
    assert [(message.kind, message.utterance) for message in answers] == [(Kind.FINAL, 2)]


def test_a_caller_who_pauses_comes_before_those_who_speak(model):
    driven = Driven(model, max_decoders=3)
    for id in (1, 2, 3):
        driven.tell(Kind.OPEN, id)
        driven.tell(Kind.AUDIO, id, PCM[: 12 * 3_200])
    driven.work_until_idle()
    loud, silence = PCM[9 * 1_600 : 17 * 1_600], b"\x00" * 1_600
    for id in (1, 2, 3):
        for start in range(0, len(loud), 1_600):
            driven.tell(Kind.AUDIO, id, silence if id == 2 else loud[start : start + 1_600])
    driven.worker.work()
    waiting = {id: utterance.waiting_bytes for id, utterance in driven.worker._utterances.items()}
    assert waiting[2] == 3 * 3_200 and waiting[1] == waiting[3] == 4 * 3_200
    driven.close()


def test_messages_about_utterances_that_are_over_change_nothing(driven):
    driven.tell(Kind.OPEN, 1)
    driven.tell(Kind.CANCEL, 1)
    for kind in (Kind.AUDIO, Kind.FINISH, Kind.CANCEL):
        driven.tell(kind, 1, b"\x00" * 6_400 if kind is Kind.AUDIO else b"")
    assert driven.work_until_idle() == []


def test_what_workers_say_is_not_accepted_by_a_worker(driven):
    with pytest.raises(ValueError, match="FINAL"):
        driven.tell(Kind.FINAL, 1)


def test_a_request_survives_its_journey_as_json(model):
    search = DecoderOptions(lw=7.5, mean=MeanOptions(prior=(41.0, 2.0)), junk=JunkOptions(max_word_s=2.0))
    request = WorkerRequest(model, search, decoders=2, max_decoders=3)
    assert WorkerRequest.from_json(request.to_json()) == request


def test_a_caller_who_has_finished_waits_for_no_backlog_of_one_who_begins(model):
    driven = Driven(model, max_decoders=2)
    for id in (1, 2):
        driven.tell(Kind.OPEN, id)
    driven.tell(Kind.AUDIO, 1, PCM[: 20 * 3_200])
    driven.work_until_idle()
    driven.tell(Kind.AUDIO, 2, PCM[: 12 * 3_200])
    assert driven.worker.work(), "the first block of those that waited for the mean"
    driven.tell(Kind.FINISH, 1)
    assert driven.worker.work()
    assert [(message.kind, message.utterance) for message in driven.answers()] == [(Kind.FINAL, 1)]
    driven.close()


def test_a_worker_tells_how_much_processor_time_it_has_taken(driven):
    driven.tell(Kind.OPEN, 1)
    driven.tell(Kind.AUDIO, 1, PCM + PCM)
    driven.work_until_idle()
    assert driven.worked_s == sorted(driven.worked_s) and driven.worked_s
    assert 0 < driven.worked_s[-1] <= time.process_time() - driven.before_s + 0.001, "in milliseconds, rounded"
