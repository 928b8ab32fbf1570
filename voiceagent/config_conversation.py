"""The sections of the configuration that say how a conversation goes: who answers, when, how fast and at what length."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from voiceagent.budget_terms import BudgetSettings, WhenLate
from voiceagent.config_keys import checked, documented, optional_within, within
from voiceagent.errors import ConfigError
from voiceagent.session import BARGE_IN_MODES, MAX_BACKCHANNELS, BargeInMode, SessionSettings, TurnDetection
from voiceagent.silences import SilenceSettings

_TURN = TurnDetection()
_BUDGET = BudgetSettings()
_SESSION = SessionSettings()
_SILENCE = SilenceSettings()


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Who answers."""

    name: str = documented("assistant", "Name of the agent, for pages and logs.", "text that is not empty", bool)
    greeting: str = documented("", "What the agent says first; empty says nothing.", "text")
    instructions: str = documented("", "System prompt.", "text")
    language: str = documented(
        "en", "Language of the conversation (ISO 639-1).", "two letters such as 'en'", lambda v: len(v) == 2
    )


@dataclass(frozen=True, slots=True)
class TurnConfig:
    """When a caller's turn begins and ends."""

    endpoint: str = documented(
        "auto",
        "What ends a caller's turn: `silence` alone, or `words` and silence; `auto` takes the words where a model knows the language.",
        "'auto', 'words' or 'silence'",
        lambda v: v in ("auto", "words", "silence"),
    )
    sound: bool = documented(
        _TURN.weighs_sound,
        "Whether how the voice sounded before a pause is weighed with the words; where there is a Smart Turn (`models.endpoint`), that one listens.",
        "true or false",
    )
    silence_s: float = documented(
        _TURN.silence_s,
        "Silence that ends the caller's turn where nobody judges the words.",
        "seconds from 0.05 to 10",
        within(0.05, 10.0),
    )
    cut_off_cost_s: float = documented(
        _TURN.cut_off_cost_s,
        "Seconds of waiting that avoiding one cut-off is worth, where words are judged.",
        "seconds from 0.01 to 1000",
        within(0.01, 1000.0),
    )
    min_silence_s: float = documented(
        _TURN.min_silence_s,
        "Shortest silence that ends a turn, however complete its words.",
        "seconds from 0.05 to 10",
        within(0.05, 10.0),
    )
    max_silence_s: float = documented(
        _TURN.max_silence_s,
        "Silence that ends every turn, whatever its words.",
        "seconds from 0.05 to 10",
        within(0.05, 10.0),
    )
    dictation_silence_s: float = documented(
        _TURN.dictation_silence_s,
        "Shortest silence that ends digits, spellings and addresses.",
        "seconds from 0.05 to 10",
        within(0.05, 10.0),
    )
    threshold: float = documented(
        _TURN.threshold,
        "Speech probability that opens a turn (0.5 is Silero's).",
        "a probability from 0.01 to 0.99",
        within(0.01, 0.99),
    )
    prefix_padding_s: float = documented(
        _TURN.prefix_padding_s, "Audio kept from before speech was noticed.", "seconds from 0 to 2", within(0.0, 2.0)
    )
    create_response: bool = documented(
        _TURN.create_response, "Whether the end of a turn starts a reply.", "true or false"
    )
    interrupt_response: bool = documented(_TURN.interrupt_response, "Whether speech stops the agent.", "true or false")
    barge_in: str = documented(
        _TURN.barge_in,
        "How: `two_stage` turns the agent down first and judges what was said, `immediate` stops it at once.",
        "'two_stage' or 'immediate'",
        lambda v: v in BARGE_IN_MODES,
    )
    backchannels: tuple[str, ...] = documented(
        _TURN.backchannels,
        "What callers say to show that they listen: it does not stop the agent.",
        f"a list of at most {MAX_BACKCHANNELS} texts, each with a letter in it",
    )
    fragments: tuple[str, ...] = documented(
        _TURN.fragments,
        "Words that say nothing alone, which a recogniser makes of hums and coughs: they do not stop the agent.",
        f"a list of at most {MAX_BACKCHANNELS} texts, each with a letter in it",
    )
    stopping_words: tuple[str, ...] = documented(
        _TURN.stopping_words,
        "Words that stop the agent even if they sound like a hum.",
        f"a list of at most {MAX_BACKCHANNELS} texts, each with a letter in it",
    )
    hums: bool = documented(
        _TURN.hums,
        "Whether a short voice that sounds like a hum is a backchannel, whatever the recogniser makes of it.",
        "true or false",
    )
    mutes: bool = documented(
        _TURN.mutes,
        "Whether voice that lasts mutes the agent and stops it once its words are known, where the client can play on afterwards; `false` stops it at once.",
        "true or false",
    )
    backchannel_s: float = documented(
        _TURN.backchannel_s,
        "Voice over the agent that lasts longer stops it, unless its words so far are a backchannel or none.",
        "seconds from 0.1 to 2",
        within(0.1, 2.0),
    )
    echo_gate: bool = documented(
        _TURN.echo_gate,
        "Whether the agent's own voice, come back from a loudspeaker, is told from the caller's.",
        "true or false",
    )

    def __post_init__(self) -> None:
        checked("turn", self.detection)

    def detection(self) -> TurnDetection:
        return TurnDetection(
            threshold=self.threshold,
            prefix_padding_s=self.prefix_padding_s,
            silence_s=self.silence_s,
            create_response=self.create_response,
            interrupt_response=self.interrupt_response,
            weighs_words=self.endpoint != "silence",
            weighs_sound=self.sound,
            cut_off_cost_s=self.cut_off_cost_s,
            min_silence_s=self.min_silence_s,
            max_silence_s=self.max_silence_s,
            dictation_silence_s=self.dictation_silence_s,
            barge_in=typing.cast(BargeInMode, self.barge_in),
            backchannels=self.backchannels,
            fragments=self.fragments,
            stopping_words=self.stopping_words,
            hums=self.hums,
            backchannel_s=self.backchannel_s,
            mutes=self.mutes,
            echo_gate=self.echo_gate,
        )


@dataclass(frozen=True, slots=True)
class SilenceConfig:
    """What is said when nobody says anything."""

    prompt_after_s: float | None = documented(
        _SILENCE.prompt_after_s,
        "Silence of the caller, after the agent was heard, that is answered with a prompt, the next one, and at last the goodbye; none waits for ever.",
        "seconds from 1 to 600, or 'none'",
        optional_within(1.0, 600.0),
    )
    prompts: tuple[str, ...] = documented(
        _SILENCE.prompts,
        "Said one after the other, each after another such silence.",
        "a list of texts that are not empty",
        lambda v: all(text.strip() for text in v),
    )
    goodbye: str = documented(
        _SILENCE.goodbye, "Said last; once it has been heard the conversation ends. Empty ends nothing.", "text"
    )
    for_clients: bool = documented(
        _SILENCE.for_clients,
        "Whether Realtime clients and the page begin with it as phone calls do; they can ask for it in any case.",
        "true or false",
    )

    def settings(self) -> SilenceSettings:
        return SilenceSettings(self.prompt_after_s, self.prompts, self.goodbye, self.for_clients)


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """How long an answer may take, and how many denoising steps it may have."""

    target_s: float = documented(
        _SESSION.target_s, "Voice-to-voice latency to aim at.", "seconds from 0.05 to 30", within(0.05, 30.0)
    )
    min_steps: int = documented(
        _BUDGET.min_steps, "Fewest steps for the first clause.", "an integer from 1 to 1024", within(1, 1024)
    )
    max_steps: int = documented(
        _BUDGET.max_steps, "Most steps for the first clause.", "an integer from 1 to 1024", within(1, 1024)
    )
    threshold: float = documented(
        _BUDGET.threshold,
        "Confidence above which a token is committed without waiting.",
        "a probability from 0.01 to 1",
        within(0.01, 1.0),
    )
    useful_gain: float = documented(
        _BUDGET.useful_gain, "Quality that one more step must bring, of 1.", "a number from 0 to 1", within(0.0, 1.0)
    )
    fact_threshold: float = documented(
        _BUDGET.fact_threshold,
        "The same as `budget.threshold` for figures, names and what tools are called with.",
        "a probability from budget.threshold to 1",
        within(0.01, 1.0),
    )
    when_late: str = documented(
        _SESSION.when_late.value,
        "When the steps that are wanted do not fit: answer with fewer, say something first, or answer later.",
        "'fewer_steps', 'acknowledge' or 'answer_later'",
        lambda v: v in set(WhenLate),
    )
    acknowledgements: tuple[str, ...] = documented(
        _SESSION.acknowledgements,
        "What `acknowledge` may say; the shortest that lasts until the answer is chosen.",
        "a list of texts that are not empty",
        lambda v: all(text.strip() for text in v),
    )
    wanted_quality: float = documented(
        _BUDGET.wanted_quality,
        "Quality, of 1, that `acknowledge` and `answer_later` hold on to.",
        "a number from 0 to 1",
        within(0.0, 1.0),
    )
    patience_s: float = documented(
        _BUDGET.patience_s,
        "The latest answer with `answer_later`, from the end of speech.",
        "seconds from 0.05 to 60",
        within(0.05, 60.0),
    )
    speculate: bool = documented(
        _SESSION.speculate,
        "Whether a reply is drafted while the caller pauses, before their turn is over. Never with a remote model.",
        "true or false",
    )
    speculation_share: float = documented(
        _BUDGET.speculation_share,
        "Share of the engine's time that such drafts of all callers may take.",
        "a number from 0.01 to 1",
        within(0.01, 1.0),
    )
    remember: bool = documented(
        True,
        "Whether stage times and timelines (without their texts) are kept in `budget.folder` over restarts.",
        "true or false",
    )
    folder: str = documented("", "Where they are kept; empty is the user's state folder.", "a path, or empty")

    def __post_init__(self) -> None:
        if self.min_steps > self.max_steps:
            raise ConfigError("budget.min_steps", self.min_steps, f"at most budget.max_steps = {self.max_steps}")
        if self.fact_threshold < self.threshold:
            expected = f"at least budget.threshold = {self.threshold}"
            raise ConfigError("budget.fact_threshold", self.fact_threshold, expected)
        if self.when_late == WhenLate.ACKNOWLEDGE and not self.acknowledgements:
            raise ConfigError("budget.acknowledgements", (), "at least one text, as budget.when_late = 'acknowledge'")

    def settings(self) -> BudgetSettings:
        return BudgetSettings(
            min_steps=self.min_steps,
            max_steps=self.max_steps,
            threshold=self.threshold,
            fact_threshold=self.fact_threshold,
            useful_gain=self.useful_gain,
            wanted_quality=self.wanted_quality,
            patience_s=self.patience_s,
            speculation_share=self.speculation_share,
        )


@dataclass(frozen=True, slots=True)
class ReplyConfig:
    """How replies are written."""

    temperature: float = documented(
        _SESSION.temperature, "Sampling temperature; 0 takes the best token.", "a number from 0 to 2", within(0.0, 2.0)
    )
    max_output_tokens: int | None = documented(
        _SESSION.max_output_tokens,
        "Longest reply; none is the model's own limit.",
        "an integer from 1 to 4096, or 'none'",
        optional_within(1, 4096),
    )
    tool_acknowledgements: tuple[str, ...] = documented(
        ("One moment, please.", "Let me check that for you.", "Just a second."),
        "Said in turn when a tool takes long and has no words of its own, or only one text; an empty list leaves the silence.",
        "a list of texts that are not empty",
        lambda v: all(text.strip() for text in v),
    )
