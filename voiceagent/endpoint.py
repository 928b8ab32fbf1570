"""When a pause is the end of the turn. Pure: evidence in, decision out.

One function weighs all evidence, once per window of audio. Silence that has lasted so long ends a turn; how long that is depends on what
the words say, where somebody has looked at them:

* *Complete or not.* A model gives the probability that nothing follows. Waiting costs time where the caller has finished, and ending
  costs a cut-off where they have not; the silence asked for is the one at which the two together cost least, given how long speakers
  pause within a turn. So the trade-off is one number, `cut_off_cost_s`: the seconds of waiting that a cut-off is worth. That silence
  itself makes an end more probable is part of it: whoever weighs anew in each window what waiting on costs comes to the same moment.
* *An answer.* The sum is about turns in which people pause; a few words that answer a question are said in one breath. Where they may well be all,
  nobody waits longer than without having looked at them.
* *Being dictated.* Digits, spellings, addresses come in groups, and no group tells whether another follows: they get longer.
* *Settled.* A recogniser that still changes its mind may have heard a word that its text does not show: it gets a moment.

Without a model's word, silence alone decides. Whatever is said, there is a ceiling after which the turn is over.

Sources: a turn's end as a race of cost against delay is Raux and Eskenazi's (Optimizing Endpointing Thresholds using Dialogue Features,
2008); pauses within turns are close to log-normal (Campione and Véronis, A Large-Scale Multilingual Study of Silent Pause Duration, 2002).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from voiceagent.vad import VoicedUtterance

PAUSE_MEDIAN_S = 0.6
PAUSE_P95_S = 1.5
"""Pauses within a turn, log-normal: the same that `benchmarks/endpoint.py` inserts."""
WHOLE_ANSWER_ODDS = 0.25
"""For each second that a cut-off is worth, the odds from which a short answer waits no longer than it would without being looked at: the sum counts a pause in each turn,
and people asked for a size say "large" without one. At the default cost that is a probability of 0.33. It grows with the cost, so that who is patient is so with answers too: with a
fixed one as many "no | thanks" were cut off at any cost."""
_MU = math.log(PAUSE_MEDIAN_S)
_SIGMA = (math.log(PAUSE_P95_S) - _MU) / 1.6449


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """The trade between answering soon and cutting people off.

    Raises:
        ValueError: If a value is outside the range stated beside it, or the shortest silence exceeds the longest.
    """

    silence_s: float = 0.35
    """0.05 to 10. Silence that ends a turn where nobody has looked at the words; OpenAI Realtime's `silence_duration_ms`. The default
    cut off 1 of 131 spoken orders and commands, and was reached 0.36 s (p50) after their true end; 0.5 cut off none. Speech with long
    pauses wants more: every dictated number and half of the sentences read aloud were cut off at either."""
    max_utterance_s: float = 60.0
    """1 to 3600. Voice or noise that goes on for longer is a turn by force: nothing may listen for ever."""
    cut_off_cost_s: float = 2.0
    """0.01 to 1000. Seconds of waiting that avoiding one cut-off is worth. Where half of the turns have a pause in them, the default cuts off
    4.6 % of spoken orders and commands (129 with a pause, 44 without, which count thrice) and 5.1 % of 960 turns of dialogues; where each has one, it
    takes 6 and 4 to cut off one in twenty."""
    min_silence_s: float = 0.2
    """0.05 to 10. No turn ends sooner, however complete it sounds: the recogniser needs as long for the last word."""
    max_silence_s: float = 2.0
    """0.05 to 10. Every turn ends after it, whatever the words say."""
    dictation_silence_s: float = 1.2
    """0.05 to 10. Silence that ends digits, spellings and addresses, at least."""
    settle_s: float = 0.1
    """0 to 2. The words must have stood for as long, once they have been looked at."""

    def __post_init__(self) -> None:
        for name in ("silence_s", "min_silence_s", "max_silence_s", "dictation_silence_s"):
            value = getattr(self, name)
            if not 0.05 <= value <= 10:
                raise ValueError(f"{name} = {value}: expected 0.05 to 10 seconds")
        if not 1 <= self.max_utterance_s <= 3600:
            raise ValueError(f"max_utterance_s = {self.max_utterance_s}: expected 1 to 3600 seconds")
        if not 0.01 <= self.cut_off_cost_s <= 1000:
            raise ValueError(f"cut_off_cost_s = {self.cut_off_cost_s}: expected 0.01 to 1000 seconds")
        if not 0 <= self.settle_s <= 2:
            raise ValueError(f"settle_s = {self.settle_s}: expected 0 to 2 seconds")
        if self.min_silence_s > self.max_silence_s:
            raise ValueError(
                f"min_silence_s = {self.min_silence_s}: expected at most max_silence_s = {self.max_silence_s}"
            )


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the words say about the pause they are followed by."""

    completeness: float | None
    """Probability in [0, 1] that nothing follows; None where nobody has said so yet, or could."""
    stable_s: float
    """Since the recogniser last changed its text."""
    is_dictation: bool = False
    """The caller is in the middle of digits, letters or an address, or was asked for them."""
    is_awaited: bool = False
    """A model is looking at the words, and its answer is worth waiting for."""
    is_answer: bool = False
    """The agent asked something, and these are a few words that may be all."""
    sound: float | None = None
    """Probability that nothing follows, by the sound of the voice alone, as whoever gave `completeness` was told it; None where they were not. It is part of
    `completeness` already, unless the words are misheard."""
    is_misheard: bool | None = None
    """Whether the words were probably misheard, as whoever gave `completeness` has it."""


Rule: TypeAlias = Literal["silence", "complete", "dictation", "ceiling", "too_long", "client"]
"""What ended a turn. `silence`: as long as is asked for without the words. `complete`: as long as the words ask for. `dictation`: as long as
digits, spellings and addresses ask for, which was longer. `ceiling`: the words would have asked for more than there may be. `too_long`: the
voice did not stop. `client`: the client said so."""


@dataclass(frozen=True, slots=True)
class EndedBy:
    """Why a turn was over, as its timeline tells it."""

    rule: Rule
    silence_s: float | None = None
    """Silence when it was decided; None where silence had no part in it."""
    silence_alone_s: float | None = None
    """Silence that would have been waited for without the words."""
    completeness: float | None = None
    """Probability that nothing follows, where somebody had said so."""
    sound: float | None = None
    """The same by the sound of the voice alone, where whoever judged the words was told it; it counts unless they were misheard."""
    confidence: float | None = None
    """Probability that the words known by then were heard right, by the recogniser; None where it does not tell, or the client ended the turn."""
    is_misheard: bool | None = None
    """Whether whoever gave `completeness` took the words for misheard; None where nobody did give one."""

    def as_json(self) -> dict[str, object]:
        """Times in milliseconds."""

        def milliseconds(value_s: float | None) -> float | None:
            return None if value_s is None else round(value_s * 1000, 2)

        return {
            "rule": self.rule,
            "silence_ms": milliseconds(self.silence_s),
            "silence_alone_ms": milliseconds(self.silence_alone_s),
            "completeness": None if self.completeness is None else round(self.completeness, 4),
            "sound": None if self.sound is None else round(self.sound, 4),
            "confidence": None if self.confidence is None else round(self.confidence, 4),
            "misheard": self.is_misheard,
        }


@dataclass(frozen=True, slots=True)
class EndpointDecision:
    """The turn is over."""

    speech_end_sample: int
    """One past the last voiced sample."""
    endpoint_sample: int
    """One past the last sample looked at when it was decided."""
    ended_by: EndedBy


def decide(
    utterance: VoicedUtterance | None, settings: EndpointSettings, evidence: Evidence | None = None
) -> EndpointDecision | None:
    """Whether the turn is over, asked once per window; None while it is not, or while nobody speaks.

    Args:
        evidence: What is known of the words; None where nothing is, and silence alone decides.
    """
    if utterance is None:
        return None
    # Voice that has just come back gets the window it needs to prove itself: the turn must not end on the first word after a pause.
    rule: Rule | None = None
    if utterance.is_paused and not utterance.is_stirring:
        rule = _over(utterance.silence_s, settings, evidence)
    if rule is not None:
        ended_by = EndedBy(rule, utterance.silence_s, settings.silence_s)
        if evidence is not None:
            ended_by = replace(
                ended_by, completeness=evidence.completeness, sound=evidence.sound, is_misheard=evidence.is_misheard
            )
        return EndpointDecision(utterance.voice_end_sample, utterance.position_sample, ended_by)
    if utterance.duration_s >= settings.max_utterance_s:
        return EndpointDecision(utterance.voice_end_sample, utterance.position_sample, EndedBy("too_long"))
    return None


def _over(silence_s: float, settings: EndpointSettings, evidence: Evidence | None) -> Rule | None:
    if evidence is None:
        return "silence" if silence_s >= settings.silence_s else None
    if silence_s >= settings.max_silence_s:
        return "ceiling"
    if evidence.is_awaited:
        return None
    is_judged = evidence.completeness is not None
    if is_judged and evidence.stable_s < settings.settle_s:
        return None
    asked_s = wanted_s(evidence, settings)
    is_held = evidence.is_dictation and settings.dictation_silence_s > asked_s
    if silence_s < (settings.dictation_silence_s if is_held else asked_s):
        return None
    return "dictation" if is_held else "complete" if is_judged else "silence"


def wanted_s(evidence: Evidence, settings: EndpointSettings) -> float:
    """Silence that what is known of the words asks for; dictation asks for more, and none lasts longer than `max_silence_s`."""
    if evidence.completeness is None:
        return settings.silence_s
    cheapest_s = cheapest_wait_s(evidence.completeness, settings.cut_off_cost_s, settings.min_silence_s)
    odds = WHOLE_ANSWER_ODDS * settings.cut_off_cost_s
    if evidence.is_answer and evidence.completeness >= odds / (1 + odds):
        return min(cheapest_s, max(settings.silence_s, settings.min_silence_s))
    return cheapest_s


def cheapest_wait_s(completeness: float, cut_off_cost_s: float, shortest_s: float) -> float:
    """The silence t that minimises what waiting for it costs, p t + (1 - p) c S(t).

    p is the probability that the turn is over, c the cost of a cut-off and S(t) the share of pauses within turns that are longer than t.
    Where it has a minimum beside the shortest wait, the density of pauses there is p / ((1 - p) c), on its falling side; for a
    log-normal that is the larger root of a quadratic in the standardised logarithm.
    """
    p = min(max(completeness, 1e-6), 1 - 1e-6)
    odds = p / (1 - p)
    inside = _SIGMA**2 - 2 * (_MU + math.log(_SIGMA * math.sqrt(2 * math.pi)) + math.log(odds / cut_off_cost_s))
    if inside <= 0:
        return shortest_s
    patient_s = math.exp(_MU + _SIGMA * (math.sqrt(inside) - _SIGMA))

    def cost(wait_s: float) -> float:
        return odds * wait_s + cut_off_cost_s * longer_pauses(wait_s)

    return patient_s if patient_s > shortest_s and cost(patient_s) < cost(shortest_s) else shortest_s


def longer_pauses(wait_s: float) -> float:
    """The share of pauses within turns that last longer than `wait_s`, which is positive."""
    return 0.5 * math.erfc((math.log(wait_s) - _MU) / (_SIGMA * math.sqrt(2)))
