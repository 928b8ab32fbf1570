"""From a caller's samples to the beginning, the audio and the end of each utterance.

Windows the stream, asks the detector, and lets the pure modules decide. The only state of its own is where media time lies on the clock.
Whoever recognises the words tells of them (`hear_words`); whether they are a whole turn is asked of `judge`, where there is one.

While the agent can be heard, voice is first a `Doubt`, perhaps a `Hush`, which an `Onset` or a `Relief` ends (`voiceagent.barge_in`). An utterance has its audio from
before its first sample also when it is noticed late.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, assert_never

import numpy as np

from voiceagent import barge_in, endpoint, endpoint_sound, hum
from voiceagent.backends import INPUT_RATE_HZ, LOOK_BACK_S, Samples, VoiceDetectorStream
from voiceagent.barge_in import Origin
from voiceagent.echo import MAX_DELAY_S, EchoGate
from voiceagent.endpoint import EndedBy, Evidence
from voiceagent.endpoint_words import PauseWords
from voiceagent.session import TurnDetection
from voiceagent.speculation import Pause
from voiceagent.vad import PreRoll, Started, VadSettings, VoiceActivity, VoicedUtterance, Windower

LEAD_S = 0.3
"""Of sound before a voice, for whoever judges the voice: it does not begin with a click, and its first consonant is there."""
KEEP_S = 3.0
"""Audio kept for pre-roll; more than the largest prefix padding and the time to notice speech together."""

STALL_S = 0.5
"""Audio that comes so much later than before was not sent for a while: media time stood still."""
DRIFT_S = 5e-6
"""By which a message may come later than all before it: 250 ppm of 20 ms, for clocks that run apart."""


@dataclass(frozen=True, slots=True)
class Onset:
    """The caller began to speak; `start_sample` is media time, pre-roll included."""

    start_sample: int


@dataclass(frozen=True, slots=True)
class Utter:
    """The next audio of the utterance, pre-roll first."""

    samples: Samples


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The turn is over. `speech_end` is the clock's reading when the last voiced sample was spoken."""

    end_sample: int
    speech_end: float
    ended_by: EndedBy


@dataclass(frozen=True, slots=True)
class Doubt:
    """There is voice over the agent's; `start_sample` is media time. Nothing is known to have been said."""

    start_sample: int


@dataclass(frozen=True, slots=True)
class WordsWanted:
    """`samples` is the voice in doubt so far. Its words go to `Listener.hear_answer` with this number."""

    number: int
    samples: Samples
    is_whole: bool
    """It has ended."""


@dataclass(frozen=True, slots=True)
class Relief:
    """Nothing was said: the doubt is over."""

    reason: barge_in.Dismissed


@dataclass(frozen=True, slots=True)
class Hush:
    """The voice lasts: the agent must not be heard, whatever it turns out to be. `start_sample` is the doubt's."""

    start_sample: int


Heard: TypeAlias = Onset | Utter | Endpoint | Doubt | Hush | WordsWanted | Relief


class Answer(Protocol):
    """Takes a judge's answer: `PauseWords.answer`."""

    def __call__(self, completeness: float | None, *, is_misheard: bool = False) -> None: ...


Judge: TypeAlias = Callable[[str, Answer], None]
"""Asks whether words are a whole turn, returns at once, and calls back later: with the probability, or with None where it failed."""


class Listener:
    """One caller's ear.

    Args:
        judge: Asked about the words of a pause.
        sound: Judges the voice before a pause, on the event loop.
        judge_hears: Whether `judge` listens to `voice`, and so is asked in each pause.
    """

    def __init__(
        self,
        detector: VoiceDetectorStream,
        window_samples: int,
        judge: Judge | None = None,
        echo: EchoGate | None = None,
        sound: Callable[[Samples], float | None] | None = None,
        has_asked: Callable[[], bool] | None = None,
        *,
        judge_hears: bool = False,
    ) -> None:
        self._detector = detector
        self._echo = echo or EchoGate()
        self._judge = judge
        self._words = PauseWords()
        self._sound = sound
        self._has_asked = has_asked
        self._judge_hears = judge_hears
        self._is_sound_weighed = False
        """By the settings of the newest window, which may be others than the utterance began with."""
        self._sounded_until: int | None = None
        """The end of the voice that `_sound` has been asked about last."""
        self._windower = Windower(window_samples)
        self._window_samples = window_samples
        self._activity = VoiceActivity(window_samples=window_samples)
        self._barge_in = barge_in.BargeIn()
        self._detection: TurnDetection | None = None
        self._asked: TurnDetection | None = None
        self._endpoint = endpoint.EndpointSettings()
        """Those of the detection that was asked for last: made when it changes, not for every message."""
        self._kept = PreRoll(round(LOOK_BACK_S * INPUT_RATE_HZ))
        self._skipped = 0
        """Media time that passed without the activity's knowledge, while the client ended its turns itself."""
        self._received = 0
        self._arrivals: deque[tuple[int, float]] = deque(maxlen=1024)
        self._ducked_until = -1
        """Until this sample the echo may be that of a ducked agent."""
        self._media_zero: float | None = None
        """The clock's reading at media time 0, by the messages that came soonest."""

    async def hear(
        self,
        samples: Samples,
        arrived: float,
        detection: TurnDetection,
        *,
        agent_audible: bool,
        can_be_held: bool = False,
    ) -> AsyncGenerator[Heard, None]:
        """Take the next audio, which arrived at clock reading `arrived`. Whoever plays the agent's voice may be able to hold it."""
        self._receive(samples, arrived)
        if detection is not self._asked:
            self._asked, self._endpoint = detection, detection.endpoint()
        self._follow(detection)
        for window in self._windower.push(samples):
            self._kept.push(window)
            probability = await self._detector.probability(window)
            origin = self._origin(window, probability, detection)
            if self._is_contested(detection, agent_audible):
                heard_now = self._judge_voice(
                    window,
                    probability,
                    detection,
                    origin,
                    agent_audible=agent_audible,
                    can_be_held=can_be_held and detection.mutes,
                )
                for heard in heard_now:
                    yield heard
            else:
                probability = 0.0 if origin is Origin.AGENT else probability
                changes = self._activity.update(probability, agent_is_speaking=agent_audible)
                if started := [change for change in changes if isinstance(change, Started)]:
                    for heard in self._began(started[0].start_sample, detection):
                        yield heard
                elif self._activity.is_speaking:
                    yield Utter(window)
            evidence = self._evidence(detection) if detection.weighs_words else None
            decision = endpoint.decide(self._activity.utterance, self._endpoint, evidence)
            if decision is not None:
                ended_by = self._judged(decision.ended_by)
                self._activity.end_utterance()
                end = decision.speech_end_sample + self._skipped
                yield Endpoint(end, self._spoken_at(end), ended_by)

    def _is_contested(self, detection: TurnDetection, agent_audible: bool) -> bool:
        """Whether voice now would be voice over the agent's, which is judged before it counts."""
        if self._activity.is_speaking or not detection.interrupts_in_stages:
            return False
        return agent_audible or self._barge_in.is_watching

    def _origin(self, window: Samples, probability: float, detection: TurnDetection) -> Origin:
        """Whose voice this window may be; of an utterance nothing is taken away."""
        if not detection.echo_gate or self._activity.is_speaking or self._media_zero is None:
            return Origin.UNKNOWN
        end = self._activity.position_sample + self._window_samples + self._skipped
        is_voiced = probability >= self._barge_in.settings.threshold - self._barge_in.settings.hysteresis
        if self._barge_in.is_doubted:
            self._ducked_until = end + round(MAX_DELAY_S * INPUT_RATE_HZ)
        ended = self._media_zero + end / INPUT_RATE_HZ
        return self._echo.origin(window, ended, is_voiced=is_voiced, may_be_ducked=end <= self._ducked_until)

    def _judge_voice(
        self,
        window: Samples,
        probability: float,
        detection: TurnDetection,
        origin: Origin,
        *,
        agent_audible: bool,
        can_be_held: bool,
    ) -> Iterator[Heard]:
        start = self._activity.position_sample
        self._activity.pass_over()
        end = self._activity.position_sample
        has_gate = detection.echo_gate
        voice_start = self._barge_in.listens_from(start, end)
        lead = round(hum.LEAD_S * INPUT_RATE_HZ)
        for action in self._barge_in.update(
            probability,
            start,
            end,
            agent_is_audible=agent_audible,
            level_db=10 * math.log10(float(np.dot(window, window)) / len(window) + 1e-10),
            hum=None if voice_start is None else hum.likeness(self._kept.since(max(voice_start - lead, 0))),
            origin=origin,
            is_unsure=has_gate and not self._echo.is_learned,
            comes_back=has_gate and self._echo.comes_back,
            can_be_held=can_be_held,
            has_asked=self._has_asked is None or not self._barge_in.is_doubted or self._has_asked(),
        ):
            match action:
                case barge_in.Duck(start_sample=began):
                    yield Doubt(began + self._skipped)
                case barge_in.Mute(start_sample=began):
                    yield Hush(began + self._skipped)
                case barge_in.Ask(number=number, start_sample=began, is_whole=is_whole):
                    yield WordsWanted(number, self._kept.since(self._padded(began, detection)), is_whole)
                case barge_in.Restore(reason=reason):
                    yield Relief(reason)
                case barge_in.Stop(start_sample=began, voice_end_sample=voice_end):
                    self._activity.open(began, voice_end)
                    yield from self._began(began, detection)
                case _:
                    assert_never(action)

    def _began(self, start_sample: int, detection: TurnDetection) -> Iterator[Heard]:
        """An utterance with all of its audio so far."""
        self._barge_in.dismiss()  # What is judged there, if turns began otherwise meanwhile, is in it.
        # `_kept` counts windows alone, as the activity does, so both speak of the same samples.
        self._words.begin()
        self._sounded_until = None
        start = self._padded(start_sample, detection)
        yield Onset(max(start, self._kept.start_sample) + self._skipped)
        yield Utter(self._kept.since(start))

    @staticmethod
    def _padded(start_sample: int, detection: TurnDetection) -> int:
        return max(start_sample - round(detection.prefix_padding_s * INPUT_RATE_HZ), 0)

    def hear_answer(self, number: int, text: str, *, is_last: bool = True) -> None:
        """The words that were wanted of the voice with this number; "" where there are none. They count with the next window."""
        self._barge_in.answer(number, text, is_last=is_last)

    def hold(self) -> None:
        """The client plays nothing as long as this doubt lasts, and then goes on where it was."""
        self._barge_in.hold()

    def dismiss(self) -> None:
        """Forget the doubt, if there is one."""
        self._barge_in.dismiss()

    def pause(self) -> Pause | None:
        """The pause that the caller is in now, if they are in one."""
        utterance = self._activity.utterance
        if utterance is None or not utterance.is_paused or utterance.is_stirring:
            return None
        is_judged = self._judge is not None and self._detection is not None and self._detection.weighs_words
        return self._words.pause(utterance.silence_s, utterance.position_sample, is_judged=is_judged)

    def hear_words(self, text: str, confidence: float | None = None) -> None:
        """What the recogniser makes of the utterance so far, and how sure it is of it."""
        self._words.hear(text, self._activity.position_sample, confidence)

    def expect(self, asked: str) -> None:
        """What the agent said before the utterance that has just begun."""
        self._words.expect(asked)

    def _judged(self, ended_by: EndedBy) -> EndedBy:
        """Why the turn is over, as it is told: with how sure the recogniser is of the words, and no words were judged where none were known."""
        ended_by = replace(ended_by, confidence=self.confidence)
        pause = self.pause()
        is_wordless = pause is not None and not pause.words
        return replace(ended_by, completeness=None, is_misheard=None) if is_wordless else ended_by

    def _evidence(self, detection: TurnDetection) -> Evidence | None:
        """What the words tell; a question that they raise goes out first."""
        utterance = self._activity.utterance
        if self._judge is None or utterance is None:
            return None
        at = utterance.position_sample
        self._is_sound_weighed = detection.weighs_sound
        if not detection.weighs_sound:
            # As `weighs_words` it may be switched at any time; what was heard before counts for no further question.
            self._sounded_until = None
            self._words.pause_began(None)
        elif utterance.is_paused and self._words.wants_sound:
            self._listen_back(utterance)
        question = self._words.question(at, is_paused=utterance.is_paused)
        if question is not None:
            self._judge(question.text, functools.partial(self._words.answer, question))
        return self._words.evidence(at)

    @property
    def sound(self) -> float | None:
        """Probability that the turn is over by how the voice sounded before the pause that the caller is in or was in last, as far as that counts."""
        return self._words.sound

    @property
    def confidence(self) -> float | None:
        """How sure the recogniser is of the words so far; None where it does not tell."""
        return self._words.confidence

    @property
    def voice(self) -> Samples:
        """The utterance so far with `LEAD_S` of what led up to it, at most `LOOK_BACK_S`; empty where its sound is not to be weighed."""
        utterance = self._activity.utterance
        is_weighed = self._is_sound_weighed and not self._words.is_dictation
        if utterance is None or not is_weighed or not self._judge_hears:
            return np.zeros(0, np.float32)
        return self._kept.since(utterance.start_sample - round(LEAD_S * INPUT_RATE_HZ))

    def _listen_back(self, utterance: VoicedUtterance) -> None:
        """To the voice before a pause, once, on the event loop: what follows it is never heard."""
        end = utterance.voice_end_sample
        if end == self._sounded_until or (self._sound is None and not self._judge_hears):
            return
        if self._sound is None:
            self._sounded_until = end
            self._words.pause_began(None, end)
            return
        start = max(utterance.start_sample, end - round(endpoint_sound.LOOK_BACK_S * INPUT_RATE_HZ))
        kept = self._kept.since(start)
        self._sounded_until = end
        self._words.pause_began(self._sound(kept[: kept.size - (self._kept.end_sample - end)]))

    def skip(self, samples: Samples, arrived: float) -> None:
        """Let audio pass without looking for speech in it."""
        self._receive(samples, arrived)
        self.restart()
        self._windower.reset()
        self._skipped = self._received - self._activity.position_sample

    def restart(self) -> None:
        """Whatever was being said, or may have been, is over; media time runs on."""
        self._activity.end_utterance()
        self._barge_in.dismiss()

    def recent(self, duration_s: float) -> Samples:
        """The last seconds heard, at most `LOOK_BACK_S`."""
        return self._kept.since(self._kept.end_sample - round(duration_s * INPUT_RATE_HZ))

    def _receive(self, samples: Samples, arrived: float) -> None:
        self._received += samples.size
        self._arrivals.append((self._received, arrived))
        zero, before = arrived - self._received / INPUT_RATE_HZ, self._media_zero
        if before is None or zero > before + STALL_S:
            self._media_zero = zero
        else:
            self._media_zero = min(zero, before + DRIFT_S)

    def _follow(self, detection: TurnDetection) -> None:
        """Adopt changed settings between two utterances: an utterance ends by the rules it began with."""
        if detection is self._detection or self._activity.is_speaking:
            return
        if detection != self._detection:
            self._detection = detection
            self._activity.settings = VadSettings(threshold=detection.threshold)
            self._barge_in.settings = detection.barge_in_settings()

    def _spoken_at(self, sample: int) -> float:
        """The clock's reading when `sample` was spoken.

        A message arrives when its last sample was spoken (transport aside), so earlier samples lie before it at the pace of speech, but never before
        the message in front of it: audio that comes in a burst was not spoken in the future of what it followed.
        """
        before: float | None = None
        for end, arrived in self._arrivals:
            if end >= sample:
                spoken = arrived - (end - sample) / INPUT_RATE_HZ
                return spoken if before is None else max(spoken, before)
            before = arrived
        return self._arrivals[-1][1]
