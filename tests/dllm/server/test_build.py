"""Events on the wire, and what is remembered between requests."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from dllm.server.build import DONE, LEAST_LOGPROB, logprob, sse
from dllm.server.conversations import ConversationBook
from tests.dllm.server.test_text import cut, places


@given(st.lists(st.text(st.sampled_from('a\n\r\u2028\u0085 :é🙂\x00"\\'), max_size=8), max_size=4), places)
def test_a_client_reads_the_same_events_however_the_bytes_are_cut(texts: list[str], places: list[int]) -> None:
    raw = b"".join(sse({"text": text}) for text in texts) + DONE
    events = list(SSEDecoder().iter_bytes(iter(cut(raw, places))))
    assert [json.loads(event.data)["text"] for event in events[:-1]] == texts
    assert events[-1].data == "[DONE]"


def test_impossible_probabilities_are_still_numbers_of_json() -> None:
    assert logprob(0.0) == LEAST_LOGPROB and logprob(1.0) == 0.0 and logprob(0.5) == math.log(0.5)


def test_the_oldest_conversations_are_dropped_beyond_a_number() -> None:
    book = ConversationBook(2, idle_s=100)
    assert book.touch("a", 0) == [] and book.touch("b", 1) == []
    assert book.touch("a", 2) == []
    assert book.touch("c", 3) == ["b"]
    assert len(book) == 2


def test_silent_conversations_are_dropped_when_somebody_speaks() -> None:
    book = ConversationBook(9, idle_s=10)
    book.touch("a", 0)
    book.touch("b", 5)
    assert book.touch("c", 10) == ["a"]
    assert book.touch("d", 30) == ["b", "c"]
