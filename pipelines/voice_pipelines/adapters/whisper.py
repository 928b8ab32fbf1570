"""Speech recognition with faster-whisper: one model, many callers, partials while they speak.

A caller's audio grows in an `UtteranceWindow`, which says what to decode next. Worker threads decode (CTranslate2 releases the
global lock); all decisions are made on the event loop. Callers whose audio has ended come first, in the order in which it ended;
then those who pause; then partials, least recently served first, and of partials only the newest audio is ever decoded.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import zlib
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from voice_pipelines.adapters.whisper_guards import SILENCE_DBFS, Segment, believable, repeats_itself
from voice_pipelines.adapters.whisper_window import Span, UtteranceWindow, WindowOptions
from voice_pipelines.adapters.whisper_words import whole_words, without_last_comma
from voiceagent.backends import INPUT_RATE_HZ, BackendInfo, Partial, Samples, Take, Transcript, Word
from voiceagent.clock import Clock, MonotonicClock
from voiceagent.errors import BackendError, OverloadedError
from voiceagent.foresight import Need
from voiceagent.transcript import LocalAgreement

if TYPE_CHECKING:
    from voice_pipelines.models import WhisperChoice

_log = logging.getLogger(__name__)

Decode: TypeAlias = Callable[[Samples, str], tuple[Segment, ...]]
"""Decode one window, given the text before it. Called on worker threads, several at a time."""

MAX_HOT_WORD_TOKENS = 120
MAX_PROMPT_TOKENS = 100
MAX_NEW_TOKENS = 200
"""Together with the special tokens these fit Whisper's 448 positions."""
TOKENS_PER_SECOND = 12
"""More tokens than anybody speaks; a decoder that loops stops here instead of at the last position."""
WHOLE_WINDOW_S = 30.0
"""What Whisper was trained on."""
LEAST_WINDOW_S, QUIET_S = 10.0, 4.0
"""Shortest window, and least silence behind the speech."""
_OPENING, _CLOSING = "\"'\u201c\u00bf([{-", "\"'.\u3002,\uff0c!\uff01?\uff1f:\uff1a\u201d)]}\u3001"
"""Marks that belong to the word behind them, and to that before them: faster-whisper's own."""
_WITHOUT_BLANKS = frozenset(("zh", "ja", "th", "lo", "my", "yue"))
"""Languages that put no blanks between words: there faster-whisper's pieces are characters, and stay apart."""


def window_s(duration_s: float) -> float:
    """How long a window Whisper is given for so much speech: whole seconds, at most 30."""
    return min(max(math.ceil(duration_s + QUIET_S), LEAST_WINDOW_S), WHOLE_WINDOW_S)


def as_said(likely: Sequence[str]) -> str:
    """Words and phrases as Whisper would have written them, had they just been said one after the other."""
    return " ".join(f"{words[:1].upper()}{words[1:]}." for words in likely)


class WhisperDecoder:
    """A loaded faster-whisper model: one window of at most 30 s in, one encoder pass and one greedy or beam search out.

    faster-whisper's own `transcribe` fills every window up to 30 s, so that a word costs as much as a paragraph. The encoder takes
    less: `window_s` says how much. Text that repeats itself in such a window is decoded once more in a whole one, as the model was
    trained. There is no temperature fallback; doubtful text is left to the guards.

    Args:
        folder: A converted checkpoint: `model.bin`, `config.json`, `tokenizer.json` and the vocabulary.
        vocabulary: Words and phrases to expect; those that fit the first 120 tokens are given to the model as hot words.
        language: Two-letter code.

    Raises:
        BackendError: If the folder holds no checkpoint that CTranslate2 can load, or one that does not hear the language.
    """

    def __init__(
        self, folder: Path, choice: WhisperChoice, *, vocabulary: Sequence[str] = (), language: str = "en"
    ) -> None:
        if not (folder / "model.bin").is_file() or not (folder / "tokenizer.json").is_file():
            # Without its tokenizer faster-whisper would go to the network for one.
            raise BackendError(
                "asr", f"{folder} lacks model.bin or tokenizer.json; it is no converted Whisper checkpoint"
            )
        from faster_whisper import WhisperModel
        from faster_whisper.tokenizer import Tokenizer

        try:
            self._model = WhisperModel(
                str(folder),
                device=choice.device,
                compute_type=choice.compute_type,
                cpu_threads=choice.threads,
                num_workers=choice.workers,
                local_files_only=True,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise BackendError("asr", f"could not load Whisper from {folder}: {error}") from error
        is_multilingual = self._model.model.is_multilingual
        if not is_multilingual and language != "en":  # It would hear English, and say nothing of it.
            raise BackendError("asr", f"the Whisper in {folder} is English only, and the language is {language!r}")
        try:
            self._tokenizer = Tokenizer(self._model.hf_tokenizer, is_multilingual, task="transcribe", language=language)
        except ValueError as error:
            raise BackendError("asr", f"Whisper knows no language {language!r}") from error
        self._beam_size = choice.beam_size
        self.hot_words = self._within(vocabulary, MAX_HOT_WORD_TOKENS, separator=", ")
        self(np.zeros(INPUT_RATE_HZ, np.float32), "")

    def __call__(self, samples: Samples, prompt: str) -> tuple[Segment, ...]:
        duration_s = min(len(samples) / INPUT_RATE_HZ, WHOLE_WINDOW_S)
        short_s = window_s(duration_s)
        segment = self._decode(samples, prompt, duration_s, short_s, self.hot_words)
        if short_s < WHOLE_WINDOW_S and repeats_itself(segment):
            segment = self._decode(samples, prompt, duration_s, WHOLE_WINDOW_S, self.hot_words)
        return (segment,)

    def without_hot_words(self, samples: Samples, prompt: str) -> tuple[Segment, ...]:
        """The same for a short voice of which other words are likely, those of the prompt. Nothing is heard twice: somebody waits for it."""
        duration_s = min(len(samples) / INPUT_RATE_HZ, WHOLE_WINDOW_S)
        return (self._decode(samples, prompt, duration_s, window_s(duration_s), ""),)

    def _decode(self, samples: Samples, prompt: str, duration_s: float, length_s: float, hot_words: str) -> Segment:
        """One search over the samples with silence behind them up to the length."""
        padded = np.zeros(round(length_s * INPUT_RATE_HZ), np.float32)
        padded[: len(samples)] = samples[: len(padded)]
        # The extractor gives a frame more than there is audio for.
        features = self._model.feature_extractor(padded)[:, : round(length_s * self._model.frames_per_second)]
        encoded = self._model.encode(features)
        recent = self._within(prompt.split()[::-1], MAX_PROMPT_TOKENS, separator=" ").split()[::-1]
        tokens = self._model.get_prompt(
            self._tokenizer,
            self._tokenizer.encode(" " + " ".join(recent)) if recent else [],
            without_timestamps=True,
            hotwords=hot_words or None,
        )
        most = min(math.ceil(8 + TOKENS_PER_SECOND * duration_s), MAX_NEW_TOKENS)
        (result,) = self._model.model.generate(
            encoded,
            [tokens],
            beam_size=self._beam_size,
            max_length=len(tokens) + most,
            return_scores=True,
            return_no_speech_prob=True,
        )
        written = result.sequences_ids[0]
        text = self._tokenizer.decode(written).strip()
        part: dict[str, Any] = {"tokens": written, "start": 0.0, "end": duration_s, "seek": 0}
        # Of less than a second nothing can be aligned.
        frames = math.ceil(max(duration_s, 1.0) * self._model.frames_per_second)
        self._model.add_word_timestamps([[part]], self._tokenizer, encoded, [frames], _OPENING, _CLOSING, 0.0)
        pieces = (
            Word(
                text=word["word"],
                start_s=min(float(word["start"]), duration_s),
                end_s=min(float(word["end"]), duration_s),
                probability=min(max(float(word["probability"]), 0.0), 1.0),
            )
            for word in part["words"]
        )
        apart = self._tokenizer.language_code in _WITHOUT_BLANKS
        words = whole_words(replace(piece, text=" " + piece.text) if apart else piece for piece in pieces)
        raw = text.encode("utf-8")
        return Segment(
            text=text,
            words=words,
            avg_logprob=float(result.scores[0]) * len(written) / (len(written) + 1),
            no_speech_probability=float(result.no_speech_prob),
            compression_ratio=len(raw) / len(zlib.compress(raw)),
        )

    def _within(self, parts: Sequence[str], max_tokens: int, *, separator: str) -> str:
        """As many of the parts, from the first, as fit the tokens."""
        kept: list[str] = []
        used = 0
        for part in parts:
            used += len(self._model.hf_tokenizer.encode(" " + part + separator.strip(), add_special_tokens=False).ids)
            if used > max_tokens:
                break
            kept.append(part)
        return separator.join(kept)


WORDS_AFTER_S = 0.5
"""How long into a caller's pause its words are there: 0.3 s until the decode begins, and the decode. Before that two texts in five are still those of
0.75 s ago, and the turn ended by them: 15.5 % of callers with a pause were cut off at the default cost, 7.8 % from this on (docs/endpointing.md)."""


NEED, NEED_IN_PAUSES = Need(mean=0.075, variance=0.024), Need(mean=0.02, variance=0.004)
"""Guesses, of `tiny.en`: partials take a fifth of a core while the caller speaks, pauses alone a sixteenth (docs/load.md). The variance is
twice that of decodes that are over within a second: callers who come together decode together. Larger ones take more, which is learned once somebody calls."""


class FasterWhisperTranscriber:
    """Implements `Transcriber` for any number of callers over one decoder.

    Args:
        decode: Usually a `WhisperDecoder`.
        decode_voice: For short voices of which other words are likely than an utterance has; None is `decode`.
        workers: Decodes that run at a time.
        max_utterances: Callers served at a time; `open` refuses more.
        need: What a caller of it is taken to need of the processors; None where they do not decode.
    """

    words_after_s = WORDS_AFTER_S
    tells_confidence = False

    def __init__(
        self,
        decode: Decode,
        info: BackendInfo,
        *,
        decode_voice: Decode | None = None,
        workers: int = 1,
        max_utterances: int = 64,
        options: WindowOptions | None = None,
        clock: Clock | None = None,
        need: Need | None = None,
    ) -> None:
        self.info = info
        self.need = need
        self._decode = decode
        self._decode_voice = decode_voice or decode
        self._max_utterances = max_utterances
        self._options = options or WindowOptions()
        self._clock = clock or MonotonicClock()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="whisper")
        self._free = workers
        self._order = itertools.count()
        self._open: set[WhisperUtterance] = set()
        self._waiting: set[WhisperUtterance] = set()
        self._closed = False

    @classmethod
    def load(
        cls,
        folder: Path,
        choice: WhisperChoice,
        info: BackendInfo,
        *,
        vocabulary: Sequence[str] = (),
        language: str = "en",
        options: WindowOptions | None = None,
    ) -> FasterWhisperTranscriber:
        """Load and warm up a checkpoint; blocks for seconds, so call it on a thread.

        Raises:
            BackendError: If the checkpoint cannot be loaded, or does not hear the language.
        """
        decoder = WhisperDecoder(folder, choice, vocabulary=vocabulary, language=language)
        need = NEED if options is None or options.partials else NEED_IN_PAUSES
        return cls(
            decoder,
            info,
            decode_voice=decoder.without_hot_words,
            workers=choice.workers,
            options=options,
            need=need if choice.device == "cpu" else None,
        )

    async def open(self, on_partial: Callable[[Partial], None]) -> WhisperUtterance:
        """Start one utterance.

        Raises:
            OverloadedError: If as many utterances as allowed are open.
            BackendError: After `aclose`.
        """
        return self._begun(UtteranceWindow(self._options), on_partial, self._decode)

    async def takes(self, samples: Samples, *, is_whole: bool, likely: Sequence[str]) -> AsyncGenerator[Take, None]:
        """The words of a short voice, by one decode: an utterance would begin a partial as soon as it had the samples, and its final would wait for that.

        What is likely stands before it as if it had just been said: Whisper writes on in the same manner. With an agent's hot words in its place a hum is
        "and mocha", and with nothing "Mmmm", "in the game" or "Thank you." (docs/barge-in.md).

        Raises:
            BackendError, OverloadedError: As those of `open` and `finish`.
        """
        window = UtteranceWindow(replace(self._options, partials=False), as_said(likely))
        utterance = self._begun(window, lambda partial: None, self._decode_voice)
        try:
            utterance.feed(samples)
            yield Take((await utterance.finish()).text)
        finally:
            utterance.cancel()

    def _begun(
        self, window: UtteranceWindow, on_partial: Callable[[Partial], None], decode: Decode
    ) -> WhisperUtterance:
        if self._closed:
            raise BackendError("asr", "the recogniser is closed")
        if len(self._open) >= self._max_utterances:
            raise OverloadedError(len(self._open), self._max_utterances)
        utterance = WhisperUtterance(self, window, on_partial, decode, self._clock)
        self._open.add(utterance)
        return utterance

    async def aclose(self) -> None:
        """Fail what is open and wait for the decodes that run. Safe twice."""
        self._closed = True
        for utterance in tuple(self._open):
            utterance.fail(BackendError("asr", "the recogniser was closed"))
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)

    def advance(self, utterance: WhisperUtterance) -> None:
        """Queue the utterance if it has work, then keep the workers busy."""
        if utterance in self._open and not utterance.is_decoding:
            if utterance.next_span() is not None:
                self._waiting.add(utterance)
            else:
                self._waiting.discard(utterance)
                utterance.settle()
        while self._free and self._waiting:
            first = min(self._waiting, key=lambda waiting: waiting.rank)
            self._waiting.discard(first)
            self._start(first)

    def forget(self, utterance: WhisperUtterance) -> None:
        self._open.discard(utterance)
        self._waiting.discard(utterance)

    def next_order(self) -> int:
        return next(self._order)

    def _start(self, utterance: WhisperUtterance) -> None:
        span = utterance.next_span()
        if span is None:
            return
        level_dbfs = utterance.window.level_dbfs(span)
        if level_dbfs < SILENCE_DBFS:
            utterance.take(span, ())
            self.advance(utterance)
            return
        self._free -= 1
        utterance.begin(span, self.next_order())
        task = asyncio.get_running_loop().run_in_executor(
            self._threads, _work, utterance.decode, utterance.window.audio(span), utterance.window.prompt, level_dbfs
        )
        task.add_done_callback(lambda done: self._done(utterance, span, done))

    def _done(self, utterance: WhisperUtterance, span: Span, task: asyncio.Future[tuple[Word, ...]]) -> None:
        self._free += 1
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            utterance.take(span, task.result())
        elif isinstance(error, Exception):
            utterance.stumble(error)
        else:
            raise error
        self.advance(utterance)


def _work(decode: Decode, samples: Samples, prompt: str, level_dbfs: float) -> tuple[Word, ...]:
    segments = believable(decode(samples, prompt), level_dbfs)
    return tuple(word for segment in segments for word in segment.words)


class WhisperUtterance:
    """Implements `Utterance`. Its public attributes are for the transcriber that owns it."""

    def __init__(
        self,
        owner: FasterWhisperTranscriber,
        window: UtteranceWindow,
        on_partial: Callable[[Partial], None],
        decode: Decode,
        clock: Clock,
    ) -> None:
        self.window = window
        self.decode = decode
        self.is_decoding = False
        self._owner = owner
        self._on_partial = on_partial
        self._clock = clock
        self._agreement = LocalAgreement()
        self._last_partial: Partial | None = None
        self._is_over = False
        self._error: Exception | None = None
        self._result: asyncio.Future[Transcript] | None = None
        self._ended_at = 0.0
        self._ended_order = 0
        self._served_order = owner.next_order()

    def feed(self, samples: Samples) -> None:
        """Queue 16 kHz samples. Ignored once the utterance has been finished or cancelled."""
        if self._is_over or self._result is not None:
            return
        self.window.feed(samples)
        self._owner.advance(self)

    async def finish(self) -> Transcript:
        """No more audio: the final result; an empty one if the utterance is cancelled meanwhile.

        The final may correct a word that partials called stable: it is the decode with the most context, and it depends on the
        audio only, whereas partials depend on how busy the machine was.
        """
        if self._result is not None:
            raise RuntimeError("finish may be called once per utterance")
        self._result = asyncio.get_running_loop().create_future()
        self._ended_at = self._clock.now()
        self._ended_order = self._owner.next_order()
        self.window.close()
        if self._is_over:
            self._resolve()
        elif isinstance(self._error, BackendError):
            self.fail(self._error)
        else:
            self._error = None
            self._owner.advance(self)
        try:
            return await self._result
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Drop the utterance. A decode that runs is finished by its thread and ignored."""
        self._is_over = True
        self._owner.forget(self)
        if self._result is not None and not self._result.done():
            self._result.set_result(Transcript(""))

    # --- for the transcriber ----------------------------------------------------------------------------------------

    @property
    def rank(self) -> tuple[int, int]:
        """Who is served first: smaller is sooner."""
        if self._result is not None:
            return 0, self._ended_order
        span = self.next_span()
        return (1 if span is not None and span.purpose == "pause" else 2), self._served_order

    def next_span(self) -> Span | None:
        """What to decode next. After a failure nothing, until the end of the audio gives it a second chance."""
        return None if self._error is not None else self.window.due()

    def begin(self, span: Span, order: int) -> None:
        self.is_decoding = True
        self._served_order = order

    def take(self, span: Span, words: tuple[Word, ...]) -> None:
        self.is_decoding = False
        if self._is_over:
            return
        self.window.absorb(span, words)
        if self._result is None:
            self._report()

    def stumble(self, error: Exception) -> None:
        """A decode failed: fatal for the final, otherwise forgiven."""
        self.is_decoding = False
        if self._is_over:
            return
        if self._result is not None:
            failure = BackendError("asr", f"Whisper failed: {error}")
            failure.__cause__ = error
            self.fail(failure)
            return
        _log.warning("a partial decode failed: %s", error)
        self._error = error

    def settle(self) -> None:
        """Nothing is left to decode: answer whoever waits."""
        if self._result is not None and not self._result.done():
            self._resolve()

    def fail(self, error: BackendError) -> None:
        self._error = error
        self._owner.forget(self)
        if self._result is not None and not self._result.done():
            self._result.set_exception(error)

    def _resolve(self) -> None:
        assert self._result is not None
        words = () if self._is_over else without_last_comma(self.window.words)
        confidence = sum(word.probability for word in words) / len(words) if words else None
        self._result.set_result(
            Transcript(
                text=" ".join(word.text for word in words),
                words=words,
                confidence=confidence,
                compute_s=self._clock.now() - self._ended_at,
            )
        )

    def _report(self) -> None:
        self._agreement = self._agreement.hear([word.text for word in without_last_comma(self.window.words)])
        partial = self._agreement.partial
        if partial != self._last_partial and partial.text:
            self._last_partial = partial
            self._on_partial(partial)
