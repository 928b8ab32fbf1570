"""One utterance through PocketSphinx, in this thread: audio in, the first pass's hypothesis at any time."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from voice_pipelines.asr.cepstrum import Cepstrum, MeanOptions, RunningMean, heard_enough
from voice_pipelines.asr.confidence import Spoken, confidence
from voice_pipelines.asr.junk import JunkOptions, believable
from voice_pipelines.asr.model import ModelFiles
from voiceagent.backends import INPUT_RATE_HZ, Word

BLOCK_SAMPLES = 1_600
"""Audio is decoded in blocks of 100 ms, however it arrives, so that equal audio gives equal text."""
_BLOCK_BYTES = 2 * BLOCK_SAMPLES
_FRAME_S = 0.01
_FRAME_SAMPLES = 160
_SPHINX_PRIOR_FRAMES = 500
"""How many frames PocketSphinx takes a mean that it is given to stand for (CMN_WIN in its cmn.h)."""
_SCORE_SCALE = 1_024
_MEAN_SEARCH = "mean"
_MEAN_GRAMMAR = f"#JSGF V1.0; grammar {_MEAN_SEARCH}; public <word> = a;"
"""One word, which every dictionary here has: what is heard by it is thrown away."""


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """PocketSphinx's search parameters that matter here, named as it names them. Defaults were measured; see docs/asr.md."""

    lw: float = 8.0
    """Weight of the language model against the sound."""
    wip: float = 0.65
    """Word insertion penalty: below 1 it costs."""
    beam: float = 1e-60
    """For all phones; 1e-48, its own default, loses paths in "a double shot"."""
    wbeam: float = 1e-40
    """For the ends of words."""
    topn: int = 4
    """Gaussians of each codebook that count: its own default. Two cost a fifth less and lose words."""
    maxhmmpf: int = 5_000
    """The most phones in the search at one time; with 30,000, its own default, the same words cost a tenth more in babble."""
    mean: MeanOptions = field(default_factory=MeanOptions)
    junk: JunkOptions = field(default_factory=JunkOptions)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    words: tuple[Word, ...] = ()
    spoken: tuple[Spoken, ...] = ()
    """What each of them tells of itself."""

    @property
    def confidence(self) -> float | None:
        """Probability in [0, 1] that the words are right; None without any."""
        return confidence(self.spoken)

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
            pbeam=options.beam,
            wbeam=options.wbeam,
            lponlybeam=options.wbeam,
            lpbeam=options.wbeam * 1e-10,
            topn=options.topn,
            maxhmmpf=options.maxhmmpf,
            loglevel="FATAL",
        )
        self._word_search = self._decoder.current_search()
        self._decoder.add_jsgf_string(_MEAN_SEARCH, _MEAN_GRAMMAR)
        self._decoder.activate_search(self._word_search)
        self._pending = bytearray()
        self._mean = RunningMean(options.mean)
        self._is_searching = False
        self._lookahead_bytes = 0
        self._searched_bytes = 0
        self._levels_dbfs: list[float] = []

    def start(self) -> None:
        """Begin an utterance; one that was not finished is dropped."""
        self.drop()
        self._mean = RunningMean(self._options.mean)
        self._levels_dbfs = []

    def feed(self, pcm: bytes) -> None:
        """Take little-endian 16-bit samples at 16 kHz; whole blocks are decoded now, the rest waits."""
        self.push(pcm)
        while self.step():
            pass

    def push(self, pcm: bytes) -> None:
        """Take samples and decode nothing: `step` does."""
        self._pending += pcm
        # Block by block, so that the search begins at the same place however the audio arrives.
        while not self._may_search:
            start = len(self._levels_dbfs) * _BLOCK_BYTES
            if start + _BLOCK_BYTES > len(self._pending):
                return
            self._levels_dbfs.append(level_dbfs(self._pending[start : start + _BLOCK_BYTES]))

    @property
    def has_work(self) -> bool:
        """Whether a block can be decoded now."""
        return len(self._pending) >= _BLOCK_BYTES and self._may_search

    @property
    def waiting_bytes(self) -> int:
        """What was taken and is not decoded."""
        return len(self._pending)

    def step(self) -> bool:
        """Decode the next block, some 10 ms of work. False when there is none, or the first audio still waits for more."""
        if not self.has_work:
            return False
        if not self._is_searching:
            self._begin_search(len(self._levels_dbfs) * _BLOCK_BYTES)
        self._search(_BLOCK_BYTES)
        return True

    def hypothesis(self) -> Hypothesis:
        """The best path so far."""
        return self._heard() if self._is_searching else Hypothesis()

    def finish(self) -> Hypothesis:
        """No more audio: decode what waits and return what is believable of the best path of the whole utterance."""
        if not self._is_searching:
            self._begin_search(len(self._pending))
        self._search(len(self._pending))
        self._decoder.end_utt()
        self._is_searching = False
        heard = self._heard()
        audio_s = self._searched_bytes / 2 / INPUT_RATE_HZ
        kept = believable(heard.words, self._levels_dbfs, audio_s, self._options.junk)
        spoken = dict(zip(heard.words, heard.spoken, strict=True))
        return Hypothesis(kept, tuple(spoken[word] for word in kept))

    def drop(self) -> None:
        """Forget the utterance."""
        self._pending.clear()
        if self._is_searching:
            self._decoder.end_utt()
        self._is_searching = False

    def _heard(self) -> Hypothesis:
        """The best path's real words: fillers such as <sil> and [NOISE] are left out, and "a(2)" is the word "a"."""
        parts = [part for part in self._decoder.seg() or () if part.word[0] not in "<[+"]
        return Hypothesis(
            tuple(
                Word(part.word.partition("(")[0], part.start_frame * _FRAME_S, (part.end_frame + 1) * _FRAME_S, 1.0)
                for part in parts
            ),
            tuple(
                Spoken(part.end_frame - part.start_frame + 1, _nats(part.lscore) / self._options.lw) for part in parts
            ),
        )

    @property
    def _may_search(self) -> bool:
        return self._is_searching or heard_enough(self._levels_dbfs, self._options.mean)

    def _begin_search(self, lookahead_bytes: int) -> None:
        """Take the mean of the first waiting audio, then start the real pass over it.

        `end_utt` searches whatever was put in without: by the language model that took a quarter of all processor time, by a grammar of
        one word it takes a fiftieth.
        """
        self._forget_noise()
        self._decoder.activate_search(_MEAN_SEARCH)
        self._decoder.start_utt()
        for block in self._blocks(lookahead_bytes):
            self._mean.add(*self._process(block, RunningMean(self._options.mean).value, no_search=True))
        self._decoder.end_utt()
        self._decoder.activate_search(self._word_search)
        self._decoder.start_utt()
        self._is_searching = True
        self._lookahead_bytes = lookahead_bytes
        self._searched_bytes = 0
        self._levels_dbfs = []

    def _forget_noise(self) -> None:
        """Let this utterance tell anew what is noise.

        PocketSphinx keeps that from one utterance to the next, and the one before may have been another caller's. Its authors call this
        deprecated; `reinit_feat` does it too, but builds the whole front end anew. The mean, which it keeps as well, is set before each block.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._decoder.start_stream()

    def _search(self, size: int) -> None:
        """Decode that many of the waiting bytes."""
        for block in self._blocks(size):
            measured = self._process(block, self._mean.value, no_search=False)
            if self._searched_bytes >= self._lookahead_bytes:
                self._mean.add(*measured)
            self._searched_bytes += len(block)
            self._levels_dbfs.append(level_dbfs(block))
        del self._pending[:size]

    def _blocks(self, size: int) -> list[bytes]:
        waiting = bytes(self._pending[:size])
        return [waiting[start : start + _BLOCK_BYTES] for start in range(0, len(waiting), _BLOCK_BYTES)]

    def _process(self, block: bytes, mean: Cepstrum, *, no_search: bool) -> tuple[Cepstrum, float]:
        """Put a block through the front end, and the search, with this mean subtracted. Returns its own mean and its frames.

        PocketSphinx has no call for a block's cepstra, but gives (500 given + sum of the block) / (500 + frames) as its new mean.
        """
        self._decoder.set_cmn(",".join(f"{value:.4f}" for value in mean))
        self._decoder.process_raw(block, no_search, False)
        after = np.array([float(value) for value in self._decoder.get_cmn(True).split(",")])
        frames = max(len(block) / 2 / _FRAME_SAMPLES, 1.0)
        given = np.round(mean, 4)
        return (after * (_SPHINX_PRIOR_FRAMES + frames) - _SPHINX_PRIOR_FRAMES * given) / frames, frames


def level_dbfs(block: bytes | bytearray) -> float:
    """RMS of 16-bit samples in dB below the loudest there can be; -120 of silence and of nothing."""
    if len(block) < 2:
        return -120.0
    samples = np.frombuffer(block, dtype="<i2").astype(np.float64) / 32_768
    return float(10 * np.log10(np.square(samples).mean() + 1e-12))


def _nats(score: float) -> float:
    """The logarithm of a segment's score. PocketSphinx keeps its scores 2^10 times too small and makes a probability of them all the same (SENSCR_SHIFT in its hmm.h)."""
    return math.log(max(score, 1e-300)) * _SCORE_SCALE
