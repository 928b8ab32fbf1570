"""A codec that is a list of spellings, for grammars: token 0 ends a reply, 1 masks, 2 is never written, the others spell what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dllm.canvas import TokenTable

END, MASK, NEVER = 0, 1, 2


@dataclass(frozen=True)
class SpellingCodec:
    spellings: tuple[bytes, ...]
    other_ends: frozenset[int] = frozenset()

    @property
    def vocab_size(self) -> int:
        return 3 + len(self.spellings)

    @property
    def token_table(self) -> TokenTable:
        none: frozenset[int] = frozenset()
        return TokenTable(
            end=END,
            mask=MASK,
            forbidden=frozenset({MASK, NEVER}) - self.other_ends,
            sentence_end=none,
            clause_end=none,
            digit=none,
            word_start=none,
            case_variants={},
            word=none,
            other_ends=self.other_ends,
        )

    def encode(self, text: str) -> list[int]:
        """Greedily, the longest spelling first."""
        rest, ids = text.encode(), []
        while rest:
            best = max((s for s in self.spellings if rest.startswith(s)), key=len)
            ids.append(3 + self.spellings.index(best))
            rest = rest[len(best) :]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes(token) for token in ids).decode("utf-8", "ignore")

    def token_bytes(self, token: int) -> bytes:
        return b"" if token < 3 else self.spellings[token - 3]


def letters() -> SpellingCodec:
    return SpellingCodec((b"a", b"b", b"c", b"ab", b"bc", b"ca", b"aab", b" "))
