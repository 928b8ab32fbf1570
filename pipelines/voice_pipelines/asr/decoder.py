"""One utterance through PocketSphinx, in this thread: audio in, the first pass's hypothesis at any time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voice_pipelines.asr.model import ModelFiles
from voiceagent.backends import INPUT_RATE_HZ, Word

BLOCK_SAMPLES = 1_600
"""Audio is decoded in blocks of 100 ms, however it arrives, so that equal audio gives equal text."""
_BLOCK_BYTES = 2 * BLOCK_SAMPLES
_FRAME_S = 0.01
_BYTES_PER_SECOND = 2 * INPUT_RATE_HZ


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """PocketSphinx's search parameters that matter here, named as it names them. Defaults were measured; see docs/asr.md."""

    lw: float = 10.0
    """Weight of the language model against the sound."""
    wip: float = 0.65
    """Word insertion penalty: below 1 it costs."""
    beam: float = 1e-48
    wbeam: float = 7e-29
    cmninit: str = "40,3,-1"
    """Cepstral mean a caller is taken to have before anything was heard."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    words: tuple[Word, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


class SphinxDecoder:
    """A loaded decoder, used for one utterance after another. Not for two threads at once; it holds Python's lock while it works.

    Raises:
        RuntimeError: If PocketSphinx cannot load the files.
    """

    def __init__(self, files: ModelFiles, options: DecoderOptions) -> None:
        import pocketsphinx

        self._options = options
        self._decoder: Any = pocketsphinx.Decoder(
            hmm=str(Path(pocketsphinx.get_model_path()) / "en-us" / "en-us"),
            lm=str(files.language_model),
            dict=str(files.dictionary),
            # The second and third pass would start when the caller has finished: 100 ms later for 2 points of word error rate.
            fwdflat=False,
            bestpath=False,
            lw=options.lw,
            wip=options.wip,
            beam=options.beam,
            wbeam=options.wbeam,
            loglevel="FATAL",
        )
        self._pending = bytearray()
        self._is_started = False

    def start(self) -> None:
        """Begin an utterance; one that was not finished is dropped."""
        self.drop()
        self._decoder.set_cmn(self._options.cmninit)
        self._decoder.start_utt()
        self._is_started = True

    def feed(self, pcm: bytes | memoryview) -> None:
        """Take little-endian 16-bit samples at 16 kHz; whole blocks are decoded now, the rest waits."""
        self._pending += pcm
        whole = len(self._pending) - len(self._pending) % _BLOCK_BYTES
        for start in range(0, whole, _BLOCK_BYTES):
            self._decoder.process_raw(bytes(self._pending[start : start + _BLOCK_BYTES]), False, False)
        del self._pending[:whole]

    def hypothesis(self) -> Hypothesis:
        """The best path so far."""
        if not self._is_started:
            return Hypothesis()
        return Hypothesis(_words(self._decoder.seg() or ()))

    def finish(self) -> Hypothesis:
        """No more audio: decode what waits and return the best path of the whole utterance."""
        if self._pending:
            self._decoder.process_raw(bytes(self._pending), False, False)
        self._pending.clear()
        self._decoder.end_utt()
        self._is_started = False
        return Hypothesis(_words(self._decoder.seg() or ()))

    def drop(self) -> None:
        """Forget the utterance."""
        self._pending.clear()
        if self._is_started:
            self._decoder.end_utt()
            self._is_started = False


def _words(segments: Sequence[Any]) -> tuple[Word, ...]:
    """Real words of a segmentation: fillers such as <sil> and [NOISE] are left out, and "a(2)" is the word "a"."""
    return tuple(
        Word(segment.word.partition("(")[0], segment.start_frame * _FRAME_S, (segment.end_frame + 1) * _FRAME_S, 1.0)
        for segment in segments
        if segment.word[0] not in "<[+"
    )
