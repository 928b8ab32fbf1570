from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voice_pipelines.asr.wire import Kind, Message, MessageReader

messages = st.lists(
    st.builds(Message, st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.binary(max_size=40)), max_size=6
)


@given(messages, st.lists(st.integers(0, 300), max_size=8))
def test_messages_arrive_whole_however_the_bytes_are_cut(sent, cuts):
    data = b"".join(message.encode() for message in sent)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader = MessageReader()
    got = [message for start, end in pairwise(edges) for message in reader.feed(data[start:end])]
    assert got == sent


@given(st.binary(max_size=60))
def test_other_bytes_raise_nothing_but_value_error(data):
    with suppress(ValueError):
        list(MessageReader().feed(data))


def test_a_payload_beyond_reason_is_refused_before_it_is_collected():
    with pytest.raises(ValueError, match="payload"):
        list(MessageReader().feed(b"\x02\x00\x00\x00\x00\xff\xff\xff\xff"))
