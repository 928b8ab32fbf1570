"""Tokens to text while they arrive: text leaves at whole characters only, and the pieces join to the whole."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from dllm.codec import Codec


class IncrementalDecoder:
    """Decodes a reply piece by piece: all answers joined are `codec.decode` of all tokens, however they are split."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._utf8 = codecs.getincrementaldecoder("utf-8")("ignore")

    def feed(self, ids: Sequence[int]) -> str:
        """Text that is certain by now. Bytes of an unfinished character wait for their rest, which drops them if it never comes."""
        return self._utf8.decode(b"".join(self._codec.token_bytes(token) for token in ids))
