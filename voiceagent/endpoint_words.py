"""What the words of an utterance tell about its pauses: which question to ask of a model, when, and what its answer is still worth. Pure.

Time is media time in samples, as everywhere in listening: the same recording with the same partial transcripts at the same samples gives
the same evidence, however the audio is cut.

    words.hear(text, at, confidence)              # whenever the recogniser has changed its mind
    question = words.question(at, is_paused=...)  # once per window; None when there is nothing new to ask
    words.answer(question, probability, at)       # whenever it comes
    decide(utterance, settings, words.evidence(at))
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from voiceagent.backends import INPUT_RATE_HZ
from voiceagent.endpoint import Evidence
from voiceagent.endpoint_dictation import is_dictation, last_sentence
from voiceagent.speculation import Pause, heard_alike
from voiceagent.transcript import normalise

LATE_S = 0.15
"""An answer that has not come by then is not waited for; silence alone decides until it does. A forward takes a few milliseconds."""
NO_WORDS = 0.5
"""Completeness of an utterance in which the recogniser has found no words so far: they may still come, or it was a cough."""
ANSWER_WORDS = 3
"""Longer answers are weighed as all other turns are."""
_LEADS_ON = frozenset(
    "a an the and or but with without of to for from in on at by as if so than that's it's i'm i i'd i'll my your his her our their"
    " is are am was can could would will may let make get give just maybe like uh um"
    " he she they we he's she's there's they're we're you're i've we've unless because except until between near nearly every whose".split()
)
"""Words that something follows, so no answer ends with one."""
_INVITES = re.compile(
    r"\b(?:what|how)(?: else)? (?:can|could|may) (?:i|we)\b"
    r"|\bwhat(?: else)? (?:can|could|would|will|do) you (?:like|want|need|have)(?: to (?:order|have|do|eat|drink))?(?: today| tonight)?\?"
)
"""Questions that invite to tell, such as "What can I get you?": two words behind one are a beginning more often than after "What size?"."""


def is_answer(words: str, asked: str) -> bool:
    """Whether the words may be a whole answer to the question that the agent's turn ends with: up to three, the last of which carries meaning, and a
    question that asks for no more."""
    said = normalise(words).split()
    question = last_sentence(asked).lower()
    if not question.endswith("?") or _INVITES.search(question):
        return False
    return 0 < len(said) <= ANSWER_WORDS and said[-1] not in _LEADS_ON


ASKS_FOR_MORE = "(?:tell|give|provide|name|number|address|what|which|where|when|how|who|why|share|describe|specify|elaborate|explain)"
"""In a question that begins as one for yes or no, what asks for more: "Can you tell me your address?"."""
_YES_OR_NO = frozenset("yes no yeah yep yup nope nah".split())
_ASKS_YES_OR_NO = re.compile(
    r"(?:(?:and|so|okay|ok|great|sure),? )?(?:(?:is|are|was|were|do|does|did|have|has|had|can|could|will|would|shall|should|may|any|isn't|aren't|don't|doesn't|didn't)\b"
    r"|(?:anything|something) (?:else|to)\b)"
    rf"(?!.*\b{ASKS_FOR_MORE}\b)"
)


def is_yes_or_no(words: str, asked: str) -> bool:
    """Whether the words are a yes or a no alone, and the agent's turn ends with a question for one: whatever a model makes of it, that is an answer."""
    question = last_sentence(asked).strip().lower()
    asks = question.endswith("?") and " or " not in question and _ASKS_YES_OR_NO.match(question) is not None
    return asks and normalise(words) in _YES_OR_NO


@dataclass(frozen=True, slots=True)
class Question:
    """Are these words complete?"""

    number: int
    text: str
    sound: float | None = None
    """How they sounded before the pause, as `PauseWords.pause_began` was told."""
    heard_until: int | None = None
    """The sample at which the voice paused, where whoever is asked hears it."""
    confidence: float | None = None
    """How sure the recogniser is of the words; None where it does not tell."""


class PauseWords:
    """Follows one utterance after the other."""

    def __init__(self) -> None:
        self._numbers = 0
        self.begin()

    def begin(self, asked: str = "") -> None:
        """A new utterance; answers to questions of before no longer count.

        Args:
            asked: What the agent said last.
        """
        self._asked = asked
        self._first = self._numbers + 1
        """Number of the utterance's first question."""
        self._text = ""
        self._confidence: float | None = None
        self._sound: float | None = None
        self._heard_until: int | None = None
        self._is_dictation = self._is_answer = False
        self._changed_at: int | None = None
        self._question: Question | None = None
        """The last one; its text is the last that was asked about."""
        self._question_at = 0
        self._answer: float | None = None
        self._weighed: float | None = None
        """How the words had sounded to whoever gave the answer."""
        self._is_misheard = False
        """Whether they took the words for misheard."""
        self._is_answered = False

    def expect(self, asked: str) -> None:
        """What the agent said before the utterance that has just begun."""
        self._asked = asked
        self._look()

    def hear(self, text: str, at_sample: int, confidence: float | None = None) -> None:
        """The recogniser's text so far, and how sure it is of it. A comma or a capital that comes or goes is no other word, unless it makes an address or a time of
        the words; to become surer of the same ones asks nothing anew."""
        self._confidence = confidence
        is_same = self._changed_at is not None and heard_alike(text, self._text)
        if text == self._text or (is_same and is_dictation(text, self._asked) == self._is_dictation):
            return
        self._text, self._changed_at = text, at_sample
        self._look()

    def pause_began(self, sound: float | None, heard_until: int | None = None) -> None:
        """The voice stopped; what it sounded like until then.

        Args:
            sound: Probability that the turn is over, by that alone; None where nobody listened.
            heard_until: The sample at which it stopped, where whoever is asked about the words hears the voice too.
        """
        self._sound, self._heard_until = sound, heard_until

    @property
    def sound(self) -> float | None:
        """What the pause sounded like, as far as it counts: digits and letters that are dictated are said one by one, each like an end or none."""
        return None if self._is_dictation else self._sound

    @property
    def _until(self) -> int | None:
        return None if self._is_dictation else self._heard_until

    @property
    def is_dictation(self) -> bool:
        """Whether the words so far are dictated."""
        return self._is_dictation

    @property
    def confidence(self) -> float | None:
        """How sure the recogniser is of the words so far."""
        return self._confidence

    @property
    def wants_sound(self) -> bool:
        """Whether it matters what a pause sounds like now: without words it counts for nothing, nor beside those that are dictated or a short answer."""
        return bool(self._text) and not self._is_dictation and not self._is_answer

    def question(self, at_sample: int, *, is_paused: bool) -> Question | None:
        """What to ask now: only while nobody speaks, and about each text once, or again where the voice
        stopped a second time and it was the same. The answer about a text stands until there is a newer one or it is another text's turn."""
        if not is_paused or not self._text or self._is_asked():
            return None
        if not self._is_of_these_words():
            self._answer, self._weighed, self._is_answered = None, None, False
        self._numbers += 1
        self._question, self._question_at = (
            Question(self._numbers, self._text, self.sound, self._until, self._confidence),
            at_sample,
        )
        return self._question

    def answer(self, question: Question, completeness: float | None, *, is_misheard: bool = False) -> None:
        """The model's answer, or None where it has failed, which takes back none of before. One that was overtaken by other words is dropped; one to an
        earlier question about the same words is worth something until there is another."""
        if question == self._question:
            is_news = completeness is not None or not self._is_answered
        else:
            is_news = completeness is not None and not self._is_answered and self._is_of_this_text(question)
        if is_news:
            self._answer, self._is_answered = completeness, True
            self._weighed = None if completeness is None else question.sound
            self._is_misheard = is_misheard

    def _is_of_this_text(self, question: Question) -> bool:
        """Whether the last question is about the same text in the same utterance."""
        return self._question is not None and question.number >= self._first and question.text == self._question.text

    def pause(self, silence_s: float, at_sample: int, *, is_judged: bool) -> Pause:
        """The same for whoever drafts a reply in the meantime; `is_judged` where questions are asked at all."""
        stable_s = 0.0 if self._changed_at is None else (at_sample - self._changed_at) / INPUT_RATE_HZ
        is_answered = self._is_of_these_words() and self._is_answered
        return Pause(
            self._text, silence_s, stable_s, self._answer if is_answered else None, is_judged and not is_answered
        )

    def evidence(self, at_sample: int) -> Evidence:
        """What is known now; where the model failed or is late, that is whether the words are dictated."""
        if self._changed_at is None:
            return Evidence(NO_WORDS, stable_s=10.0)
        stable_s = (at_sample - self._changed_at) / INPUT_RATE_HZ
        is_asked = self._is_of_these_words()
        is_answered = is_asked and self._is_answered
        waiting_s = (at_sample - self._question_at) / INPUT_RATE_HZ if is_asked else 0.0
        return Evidence(
            self._answer if is_answered else None,
            stable_s,
            self._is_dictation,
            is_awaited=not is_answered and waiting_s <= LATE_S,
            is_answer=self._is_answer,
            sound=self._weighed if is_answered and not self._is_answer else None,
            is_misheard=self._is_misheard if is_answered and self._answer is not None else None,
        )

    def _look(self) -> None:
        """What the words themselves show: looked at when they change, not in every window."""
        self._is_dictation = is_dictation(self._text, self._asked)
        self._is_answer = is_answer(self._text, self._asked)

    def _is_of_these_words(self) -> bool:
        """Whether the last question, and so its answer, is about the text as it is now, however it sounded."""
        return self._question is not None and self._question.text == self._text

    def _is_asked(self) -> bool:
        """Whether these words were asked about as they sounded."""
        asked = self._question
        return asked is not None and (asked.text, asked.sound, asked.heard_until) == (
            self._text,
            self.sound,
            self._until,
        )
