"""Whether a voice over the agent's own is an interruption: duck at once, then stop the agent or bring it back. Pure.

Time is a sample index at 16 kHz. One window of speech probability goes in at a time, while the agent can be heard:

    for action in barge_in.update(probability, start, end, agent_is_audible=True): ...

Two windows of voice are a doubt: the agent ducks. Voice that goes on was said to the agent, and stops it. Voice that ends sooner may be
"uh-huh", a cough or "stop": its words tell, so they are asked for, and only words that are no backchannel stop the agent. They are asked for while the
voice goes on, too: then they can only hold the stop back, since half a word is no word; unless they are there to stop somebody.

    barge_in.answer(number, "uh huh")             # whenever the words are there; they count with the next window

Where the agent can be held, being silent and being stopped are two things: voice that lasts mutes it at the same moment at which it would have been
stopped, and its words decide when they are whole. Only a backchannel as it was heard, or what surely sounds like a hum, brings a muted agent back.

What sounds like a hum (`voiceagent.hum`) is waited for as a backchannel is, and a word or three that a recogniser makes of it do not stop the agent. Words that are
there to stop somebody do, however they sound; and so does whoever says it again.

While the agent has asked nothing that the caller has heard (`voiceagent.questions`), there is nothing to answer, and what is left of a backchannel without the words
that say nothing alone, "see", is one.

Once the agent is no longer audible nothing is a backchannel: what was in doubt then, or was said just before, is the caller's turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from voiceagent.backends import INPUT_RATE_HZ
from voiceagent.transcript import normalise

BACKCHANNELS = (
    "uh-huh",
    "mhm",
    "mm-hmm",
    "hmm",
    "mm",
    "uh",
    "um",
    "ah",
    "oh",
    "aha",
    "right",
    "all right",
    "okay",
    "ok",
    "yeah",
    "yes",
    "yep",
    "sure",
    "i see",
    "got it",
)
"""What people say to show that they listen, as recognisers write it."""

FRAGMENTS = tuple(
    "a an the of and or but to with in on at for from as if that this it it's is are was am i i'm im you he she they them we my your".split()
)
"""English words that say nothing alone: it is what a recogniser without the word makes of "uh-huh" or a cough."""


STOPPING_WORDS = tuple(
    "stop no nope wait hold hang cancel hello hi hey excuse sorry pardon actually what who why when where how never help quiet enough".split()
)
"""English words that stop the agent even if they sound like a hum, and as soon as they are heard in a voice that does not: what people say to take the
turn."""


@dataclass(frozen=True, slots=True)
class BargeInSettings:
    """When voice over the agent ducks it and when it stops it. Lengths are counted in whole windows, rounded up.

    Raises:
        ValueError: If a value is outside the range stated beside it.
    """

    threshold: float = 0.5
    """In (0, 1). Speech probability that counts as voice."""
    hysteresis: float = 0.15
    """In [0, 1). Voice goes on above threshold minus this (Silero's own value)."""
    duck_s: float = 0.064
    """Voice that ducks the agent; one unvoiced window may lie in it. The goal is 0.2 s from the first syllable to the loudspeaker."""
    rise_db: float = 10.0
    """Above the background: one window of voice that is so much louder ducks."""
    faint: float = 0.2
    """In (0, 1]. Speech probability that counts for ducking, and for nothing else, in windows that are louder by `faint_rise_db`: for three in a
    hundred callers a detector needs more than 0.1 s to be sure."""
    faint_rise_db: float = 15.0
    faint_again_s: float = 2.0
    """How long after a duck for nothing faint windows count no more: a noise that goes on ducks once."""
    unsure_duck_s: float = 0.192
    """The same while the agent's own voice comes back to the microphone, or it is not known yet whether it does: what does not explain a window or two.
    Windows that cannot be the agent's (`Origin.CALLER`) duck after `duck_s` all the same."""
    echo_s: float = 2.0
    """How long after a window of echo that counts as coming back."""
    turned_s: float = 0.3
    """How long after a duck the agent's own voice may still come back as loud as before: the network, a client's queue, the room."""
    word_s: float = 0.128
    """Voice that is shorter than this when it ends is no word; the shortest "no" lasts about 0.15 s."""
    ask_s: float = 0.256
    """Voice after which its words so far are asked for: three backchannels in four that a recogniser knows at all it knows by then."""
    backchannel_s: float = 0.4
    """Voice that lasts longer than this was said to the agent, unless its words so far are a backchannel. The goal is silence 0.6 s after the first
    syllable."""
    unclear_s: float = 0.46
    """The same where the recogniser makes nothing of it so far, a word that says nothing alone, or what is left of a backchannel."""
    drawn_s: float = 0.8
    """The same for a backchannel: "okaaay". Voice that lasts longer was said to the agent, also to one that is mute already."""
    gap_s: float = 0.096
    """Silence after which the voice has ended and its words are asked for; a closed "p" or "t" lasts 0.05 to 0.08 s."""
    wait_s: float = 0.4
    """How long words are waited for once the voice has ended. What comes later can still stop the agent, which is then back already."""
    late_s: float = 2.0
    """Words that come later than this after their voice tell nothing any more."""
    answer_s: float = 0.5
    """A backchannel that ended so shortly before the agent did is an answer."""
    answer_voice_s: float = 0.096
    """Voice that may be an answer; what is shorter is a click."""
    backchannels: tuple[str, ...] = BACKCHANNELS
    fragments: tuple[str, ...] = FRAGMENTS
    stopping_words: tuple[str, ...] = STOPPING_WORDS
    hum: float = 0.8
    """In (0, 1]. Likeness from which a voice that goes on is waited for as a hum; 1 never."""
    sure_hum: float = 0.6
    """In (0, 1]. Likeness of a voice that has ended from which its words count less than the sound. It is heard whole by then: while it goes on, more is asked."""
    certain_hum: float = 0.95
    """In (0, 1]. Likeness from which a word counts less than the sound although it was heard of half the voice already."""
    hum_words: int = 3
    """The most words that a recogniser makes of a hum."""
    again_s: float = 4.0
    """Words that follow a hum with words so soon are no hum: somebody was not heard."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold = {self.threshold}: expected more than 0 and less than 1")
        if not 0 <= self.hysteresis < 1:
            raise ValueError(f"hysteresis = {self.hysteresis}: expected at least 0 and less than 1")
        for name in ("faint", "hum", "sure_hum", "certain_hum"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected more than 0 and at most 1")
        for name in _LENGTHS:
            value = getattr(self, name)
            if not 0 <= value <= 5:
                raise ValueError(f"{name} = {value}: expected 0 to 5 seconds")


_LENGTHS = (
    "duck_s",
    "unsure_duck_s",
    "echo_s",
    "turned_s",
    "word_s",
    "ask_s",
    "backchannel_s",
    "unclear_s",
    "drawn_s",
    "gap_s",
    "wait_s",
    "late_s",
    "answer_s",
    "answer_voice_s",
    "again_s",
    "faint_again_s",
)

FLOOR_DB, FLOOR_RISE_DB = -65.0, 0.1
"""The background is the quietest window so far, but no quieter than this, and rises by so much a window."""


class Origin(StrEnum):
    """Whose voice a window may hold, by what the agent's own sounds like at the microphone."""

    AGENT = "agent"
    """The agent's own explains it: it is no speech of the caller."""
    CALLER = "caller"
    """The agent's own comes back and is far softer than this: it cannot be that."""
    UNKNOWN = "unknown"


class Dismissed(StrEnum):
    """Why the agent is brought back."""

    BACKCHANNEL = "backchannel"
    NO_WORDS = "no_words"
    """A cough, a click, somebody else: voice that ended without a word."""
    ECHO = "echo"
    """The agent's own voice, as is known now."""
    UNANSWERED = "unanswered"
    """The recogniser has not said in time what it was."""
    GIVEN_UP = "given_up"
    """No more audio came, or the client ends its turns itself now."""


@dataclass(frozen=True, slots=True)
class Duck:
    """There is voice; `start_sample` is where it began."""

    start_sample: int


@dataclass(frozen=True, slots=True)
class Mute:
    """The voice lasts: nobody is to hear the agent any longer. A `Stop` or a `Restore` follows when it is known what was said."""

    start_sample: int


@dataclass(frozen=True, slots=True)
class Ask:
    """What are the words of this voice, which has ended or lasts long? The answer goes to `BargeIn.answer` with this number."""

    number: int
    start_sample: int
    is_whole: bool
    """It has ended."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Something was said: the agent stops, and the caller's utterance began at `start_sample`. `voice_end_sample` is the end of its voice so far."""

    start_sample: int
    voice_end_sample: int


@dataclass(frozen=True, slots=True)
class Restore:
    """It was nothing: the agent goes on."""

    reason: Dismissed


Action: TypeAlias = Duck | Mute | Ask | Stop | Restore


@dataclass(slots=True)
class _Voice:
    """A stretch of voice that is judged, or was."""

    number: int
    start: int
    end: int
    """One past its last voiced sample."""
    voiced: int = 0
    """Samples of its voiced windows."""
    faint: int = 0
    """Samples of its windows that count for ducking alone."""
    sounds_from: int | None = None
    """Its first voiced sample."""
    clear: int = 0
    """Samples of its voiced windows that cannot be the agent's own voice."""
    masked: int = 0
    """Samples of speech behind its last voiced window that the agent's own voice explains: the caller may have spoken there as well."""
    is_suspect: bool = False
    """It began before it was known whether the agent's own voice comes back."""
    duck_s: float = 0.0
    """Voice that ducks the agent."""
    ducked: int | None = None
    """When it did."""
    early: int | None = None
    """The number under which the words so far were asked for."""
    early_words: tuple[str, ...] = ()
    """What they were."""
    is_stopping: bool = False
    """Among them is a word that is there to stop somebody."""
    limit_s: float = 0.0
    """Voice that stops the agent."""
    is_asked: bool = False
    asked_end: int = 0
    """What `end` was when its words were asked for: voice behind that is not in their answer."""
    first_words: str | None = None
    """What was heard of all of it by somebody who hears worse than who is waited for."""
    hum: float = 0.0
    """How much it sounded like a hum when that was last asked."""
    has_asked: bool = True
    """Whether the agent had asked something when the voice was in doubt last; words may come later than that."""
    held: int = 0
    """Samples for which the agent was silent because of it: by so much later it ends."""


class BargeIn:
    """Judges one caller's voice while their agent speaks."""

    def __init__(self, settings: BargeInSettings | None = None) -> None:
        self.settings = settings or BargeInSettings()
        self._voice: _Voice | None = None
        """What is judged now; before it has ducked the agent only a beginning."""
        self._is_doubted = False
        self._is_muted = False
        self._can_be_held = False
        self._held_from: int | None = None
        """Since when the client has played nothing because of this doubt."""
        self._last: _Voice | None = None
        """What was dismissed last: late words, or the agent's end, may still make it a turn."""
        self._numbers = 0
        self._answers: list[tuple[int, str, bool]] = []
        self._floor_db: float | None = None
        self._fruitless: int | None = None
        """When it was brought back last from what was not even a click of voice."""
        self._unheeded: int | None = None
        """One past the last voice that was taken for a hum in spite of its words."""
        self._echo_end: int | None = None
        """One past the last sample that was echo."""
        self._comes_back = False

    @property
    def is_doubted(self) -> bool:
        """The agent is ducked, and neither stopped nor brought back."""
        return self._is_doubted

    @property
    def is_watching(self) -> bool:
        """There is something that the end of the agent's speech may make a turn."""
        return self._voice is not None or self._last is not None

    def listens_from(self, start: int, end: int) -> int | None:
        """Where the voice began whose sound is to be told with the next window; None where it decides nothing there."""
        voice, settings = self._voice, self.settings
        if voice is None or not self._is_doubted or settings.hum >= 1:
            return None
        is_going_on = end - voice.end < _samples(settings.gap_s)  # The silence behind a voice is no part of its sound.
        may_be_stopped = is_going_on and voice.voiced + end - start > _samples(settings.backchannel_s)
        may_be_over = not is_going_on and not voice.is_asked
        may_have_to_stop = voice.is_stopping or any(number == voice.early for number, *_ in self._answers)
        return voice.sounds_from if may_be_stopped or may_be_over or may_have_to_stop else None

    def update(
        self,
        probability: float,
        start: int,
        end: int,
        *,
        agent_is_audible: bool,
        level_db: float = 0.0,
        hum: float | None = None,
        origin: Origin = Origin.UNKNOWN,
        is_unsure: bool = False,
        comes_back: bool = False,
        can_be_held: bool = False,
        has_asked: bool = True,
    ) -> tuple[Action, ...]:
        """Take the next window, samples `start` to `end`; say what has to be done.

        Args:
            probability: That it holds speech.
            level_db: Its mean power.
            hum: How much the voice that it belongs to sounds like a hum, where `listens_from` wanted to know.
            origin: Whose voice it may be.
            is_unsure: The agent's voice has hardly been heard so far: it may explain this without our knowing.
            comes_back: It is known by now that the agent's voice comes back to the microphone.
            can_be_held: The client can play nothing for a while and then go on where it was.
            has_asked: The agent has asked something that the caller may be answering, as far as is known. It counts while a voice is doubted, and
                for that voice's words whenever they come.
        """
        if not agent_is_audible:
            return self._agent_ended(end)
        self._can_be_held = can_be_held
        if self._voice is not None and self._is_doubted:
            self._voice.has_asked = has_asked
        if self._voice is not None and hum is not None:
            self._voice.hum = hum
        muted: tuple[Action, ...] = ()
        while self._answers:
            answered = self._take_answer(*self._answers.pop(0), end)
            if answered and not isinstance(answered[0], Mute):
                return answered
            muted += answered
        heard = self._hear(
            probability, start, end, level_db=level_db, origin=origin, is_unsure=is_unsure, comes_back=comes_back
        )
        return (*muted, *heard)

    def _hear(
        self,
        probability: float,
        start: int,
        end: int,
        *,
        level_db: float,
        origin: Origin,
        is_unsure: bool,
        comes_back: bool,
    ) -> tuple[Action, ...]:
        """What the sound itself tells; `update` says what the arguments are."""
        voice, settings, self._comes_back = self._voice, self.settings, comes_back
        is_obeyed = voice is not None and voice.is_stopping and self._is_doubted and not self._is_hum(voice)
        # An agent that says "Hello, what can I get you?" may hear just that, as long as it does not know its echo.
        if voice is not None and is_obeyed and not (voice.is_suspect and (is_unsure or comes_back)):
            return self._stop(voice)  # Whatever follows: people say "stop" to be obeyed at once.
        if origin is Origin.AGENT:
            self._echo_end = end
        self._floor_db = max(
            FLOOR_DB, level_db if self._floor_db is None else min(level_db, self._floor_db + FLOOR_RISE_DB)
        )
        rise_db = level_db - self._floor_db
        is_strong = probability >= settings.threshold and rise_db >= settings.rise_db
        is_speech = probability >= settings.threshold - (settings.hysteresis if self._voice is not None else 0.0)
        is_voiced = is_speech and origin is not Origin.AGENT
        duck_s = self._duck_s(start, is_unsure=is_unsure) if self._voice is None else self._voice.duck_s
        is_quick = duck_s <= settings.duck_s
        is_faint = is_quick and probability >= settings.faint and rise_db >= settings.faint_rise_db
        if self._fruitless is not None and start - self._fruitless < _samples(settings.faint_again_s):
            is_faint = False
        if self._voice is None:
            if not is_voiced and not is_faint:
                return ()
            self._numbers += 1
            self._voice = _Voice(self._numbers, start, end, is_suspect=is_unsure, duck_s=duck_s)
        if self._voice.is_suspect and comes_back and not self._is_doubted:
            # What was counted before may all have been the agent's own voice.
            self._voice.voiced, self._voice.is_suspect = 0, False
        if is_voiced:
            if origin is Origin.CALLER:
                self._voice.clear += end - start
                if start - self._voice.end < _samples(settings.gap_s):
                    self._voice.voiced += self._voice.masked
            self._voice.masked = 0
            return self._voiced(self._voice, start, end, is_strong=is_quick and is_strong)
        if is_faint and not self._is_doubted:
            self._voice.faint += end - start
            self._voice.end = end
            return self._ducked(self._voice)
        if is_speech:
            self._voice.masked += end - start
        return self._unvoiced(self._voice, end - start, end, comes_back=comes_back)

    def answer(self, number: int, text: str, *, is_last: bool = True) -> None:
        """The words that `Ask` of this number wanted, or "" where there are none or recognition failed; not the last ones where somebody who hears
        better still listens."""
        self._answers.append((number, text, is_last))

    def hold(self) -> None:
        """The client plays nothing as long as this doubt lasts, and then goes on where it was."""
        if self._voice is not None and self._is_doubted and self._held_from is None:
            self._held_from = self._voice.start

    def dismiss(self) -> None:
        """Forget what is judged: the conversation has gone on without it."""
        self._voice = self._last = None
        self._is_doubted = self._is_muted = False
        self._held_from = None

    def _duck_s(self, start: int, *, is_unsure: bool) -> float:
        settings = self.settings
        echoes = self._echo_end is not None and start - self._echo_end < _samples(settings.echo_s)
        return settings.unsure_duck_s if is_unsure or echoes else settings.duck_s

    def _ducked(self, voice: _Voice, *, is_strong: bool = False) -> tuple[Action, ...]:
        """Duck, if there is enough voice."""
        is_enough = voice.voiced + voice.faint >= _samples(voice.duck_s)
        is_clear = voice.clear >= _samples(self.settings.duck_s)
        if not (is_enough or is_clear or is_strong):
            return ()
        self._is_doubted = True
        voice.ducked = voice.end
        self._last = None
        return (Duck(voice.start),)

    def _voiced(self, voice: _Voice, start: int, end: int, *, is_strong: bool) -> tuple[Action, ...]:
        voice.voiced += end - start
        voice.end = end
        voice.sounds_from = start if voice.sounds_from is None else voice.sounds_from
        if voice.first_words is not None:  # The caller went on: these are not all of their words.
            voice.first_words, voice.is_asked = None, False
        if not self._is_doubted:
            return self._ducked(voice, is_strong=is_strong)
        settings = self.settings
        limit_s = max(voice.limit_s, settings.backchannel_s, settings.drawn_s if self._is_hum(voice) else 0.0)
        muted: tuple[Action, ...] = ()
        if voice.voiced > _samples(limit_s):
            if not (self._can_be_held or self._is_muted) or voice.voiced > _samples(settings.drawn_s):
                return self._stop(voice)
            muted = self._mute(voice, end)
        if voice.early is None and voice.voiced >= _samples(settings.ask_s):
            self._numbers += 1
            voice.early = self._numbers
            return (*muted, Ask(voice.early, voice.start, is_whole=False))
        return muted

    def _mute(self, voice: _Voice, end: int) -> tuple[Action, ...]:
        if self._is_muted:
            return ()
        self._is_muted = True
        self._held_from = end if self._held_from is None else self._held_from
        return (Mute(voice.start),)

    def _unvoiced(self, voice: _Voice, size: int, end: int, *, comes_back: bool) -> tuple[Action, ...]:
        silence = end - voice.end
        if not self._is_doubted:
            if silence > size:
                self._voice = None
            return ()
        settings = self.settings
        longest_s = max(settings.backchannel_s, settings.drawn_s)
        if end - voice.start >= _samples(longest_s + settings.gap_s + settings.wait_s):
            return self._unanswered(voice, end)
        if silence < _samples(settings.gap_s):
            return ()
        if comes_back and voice.is_suspect and self._echo_end is not None and self._echo_end > voice.start:
            return self._restore(voice, Dismissed.ECHO, end)
        if voice.voiced < _samples(settings.word_s) and not self._is_muted:
            self._fruitless = end
            return self._restore(voice, Dismissed.NO_WORDS, end)
        if not voice.is_asked:
            voice.is_asked, voice.asked_end, voice.first_words = True, voice.end, None
            return (Ask(voice.number, voice.start, is_whole=True),)
        if silence >= _samples(settings.gap_s + settings.wait_s):
            return self._unanswered(voice, end)
        return ()

    def _unanswered(self, voice: _Voice, end: int) -> tuple[Action, ...]:
        """Nobody has said in time what all of it was, or only who is not the best to ask."""
        if voice.first_words is not None:
            words, voice.first_words = voice.first_words, None
            return self._take_answer(voice.number, words, True, end)
        if self._is_muted and not self._may_be_the_agents(voice):
            return self._stop(voice)
        return self._restore(voice, Dismissed.UNANSWERED, end)

    def _take_answer(self, number: int, text: str, is_last: bool, end: int) -> tuple[Action, ...]:
        settings = self.settings
        is_nothing = not text.strip() or is_backchannel(text, settings.fragments)
        late = None if self._last is None or self._last.number != number else self._last
        is_left = self._is_left_of_a_backchannel(late or self._voice, text)
        is_acknowledged = is_left or is_backchannel(text, (*settings.backchannels, *settings.fragments))
        says_something = not is_nothing and not is_acknowledged
        is_own = self._may_be_the_agents(late or self._voice) and not self._is_stopping(text)
        if self._is_doubted and self._voice is not None and self._voice.early == number:
            self._voice.early_words = tuple(normalise(text).split()) if says_something or is_left else ()
            self._voice.is_stopping = says_something and self._is_stopping(text)
            if is_nothing or is_left:
                self._voice.limit_s = self.settings.unclear_s
            elif not says_something:
                self._voice.limit_s = self.settings.drawn_s
            return ()
        if self._is_doubted and self._voice is not None and self._voice.number == number:
            is_going_on = self._voice.end + _samples(self.settings.gap_s) > end
            is_unfinished = is_going_on or self._voice.end > self._voice.asked_end
            is_plain = self._is_stopping(text) or is_backchannel(text, settings.backchannels)
            if not is_last and not is_unfinished and not is_plain:
                self._voice.first_words = text
                return ()
            if says_something and not is_own and not self._is_hummed(self._voice, text):
                may_wait = (self._can_be_held or self._is_muted) and not self._is_stopping(text)
                if not is_unfinished or not may_wait:
                    return self._stop(self._voice)
                self._voice.is_asked = False
                return self._mute(self._voice, end)  # "All", of "all right".
            if is_unfinished:
                self._voice.is_asked = False
                return ()  # The caller went on meanwhile: these are not all of their words.
            if is_own:
                return self._restore(self._voice, Dismissed.ECHO, end)
            if self._is_muted and not self._brings_back(self._voice, text):
                return self._stop(self._voice)
            if says_something:
                self._unheeded = self._voice.end
            return self._restore(self._voice, Dismissed.NO_WORDS if is_nothing else Dismissed.BACKCHANNEL, end)
        if late is None or not says_something or is_own or self._is_hummed(late, text):
            return ()
        if not is_last and not self._is_stopping(text):
            return ()  # Somebody who hears better has yet to say.
        return self._stop(late) if end - late.end <= _samples(self.settings.late_s) else ()

    def _may_be_the_agents(self, voice: _Voice | None) -> bool:
        """Whether a voice that hardly stood out was over by the time at which the agent was heard to be turned down, and what followed was the agent's.

        A caller who goes on stands out from a ducked echo as from nothing else. Whose word is over by then is not told from the agent by this, so
        words that are there to stop somebody count all the same.
        """
        if voice is None or voice.ducked is None or not self._comes_back:
            return False
        settings = self.settings
        is_explained = voice.masked >= _samples(settings.gap_s) and voice.clear < _samples(settings.word_s)
        return is_explained and voice.end - voice.ducked <= settings.turned_s * INPUT_RATE_HZ

    def _is_hum(self, voice: _Voice) -> bool:
        return self.settings.hum < 1 and voice.hum >= self.settings.hum

    def _is_surely_hum(self, voice: _Voice) -> bool:
        return self.settings.hum < 1 and voice.hum >= self.settings.sure_hum

    def _is_hummed(self, voice: _Voice, text: str) -> bool:
        """Whether words are what a recogniser made of a hum. What it heard of half the voice and of the whole is a word, unless nothing sounds more like a hum."""
        settings, words = self.settings, normalise(text).split()
        if not self._is_surely_hum(voice) or len(words) > settings.hum_words:
            return False
        is_twice = words[:1] == list(voice.early_words[:1])
        if self._is_stopping(text) or (is_twice and voice.hum < settings.certain_hum):
            return False
        # Words of the same voice that come later, from somebody who hears better, are not said again.
        return self._unheeded is None or not 0 <= voice.start - self._unheeded <= _samples(settings.again_s)

    def _brings_back(self, voice: _Voice, text: str) -> bool:
        """Whether a voice that was long enough to silence the agent was nothing all the same: it takes more than no words, or one that says nothing alone."""
        if is_backchannel(text, self.settings.backchannels) or self._is_left_of_a_backchannel(voice, text):
            return True
        return self._is_surely_hum(voice) and not self._is_stopping(text)

    def _is_left_of_a_backchannel(self, voice: _Voice | None, text: str) -> bool:
        """Whether it is all that recognisers often hear of one, "see" of "I see", and the agent has asked nothing."""
        words = normalise(text).split()
        if voice is None or voice.has_asked or not words or is_backchannel(text, self.settings.backchannels):
            return False
        fragments = {normalise(each) for each in self.settings.fragments}
        phrases = (normalise(each).split() for each in self.settings.backchannels)
        return any(words == [word for word in phrase if word not in fragments] for phrase in phrases)

    def _is_stopping(self, text: str) -> bool:
        words = {word for each in self.settings.stopping_words for word in normalise(each).split()}
        return bool(words & set(normalise(text).split()))

    def _agent_ended(self, end: int) -> tuple[Action, ...]:
        voice, last, was_doubted = self._voice, self._last, self._is_doubted
        self.dismiss()
        least = _samples(self.settings.answer_voice_s)
        if voice is not None and was_doubted and voice.voiced >= least:
            return (Stop(voice.start, voice.end),)
        if last is not None and last.voiced >= least and end - last.end - last.held <= _samples(self.settings.answer_s):
            return (Stop(last.start, last.end),)
        return (Restore(Dismissed.NO_WORDS),) if was_doubted else ()

    def _stop(self, voice: _Voice) -> tuple[Action, ...]:
        self.dismiss()
        return (Stop(voice.start, voice.end),)

    def _restore(self, voice: _Voice, reason: Dismissed, end: int) -> tuple[Action, ...]:
        voice.held = 0 if self._held_from is None else end - self._held_from
        self.dismiss()
        self._last = None if reason is Dismissed.ECHO else voice
        return (Restore(reason),)


def is_backchannel(text: str, backchannels: Iterable[str] = BACKCHANNELS) -> bool:
    """Whether `text` consists of nothing but `backchannels`, one or several; spelling and punctuation do not matter. No words are none."""
    words = normalise(text).split()
    phrases = [phrase for each in backchannels if (phrase := tuple(normalise(each).split()))]
    reached = {0}
    for at in range(len(words)):
        if at in reached:
            reached |= {at + len(phrase) for phrase in phrases if tuple(words[at : at + len(phrase)]) == phrase}
    return bool(words) and len(words) in reached


def _samples(seconds: float) -> float:
    # A hair's breadth of tolerance: 0.096 s are three windows although 3 * 0.032 is a little more in binary.
    return seconds * INPUT_RATE_HZ - 1e-6
