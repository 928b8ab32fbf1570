"""What to say when nobody says anything: a prompt, another, and then a goodbye. Pure: no clock and no I/O.

Silence counts from the moment when the agent has been heard to its end and the caller is not speaking. It begins anew with every sound that
opens a turn; the prompts begin anew only when the caller has said or typed something, so that neither a cough or a television nor a client that
keeps adding items of its own holds a call for ever.

    silence = silence.observe(state, now)     # whenever the turn's state has changed
    silence.due(settings)                     # when something has to be said, if nothing changes
    silence, remark = silence.speak(settings) # then
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from voiceagent.errors import ConfigError
from voiceagent.turn import Agent, Caller, TurnState

PROMPTS = ("Are you still there?", "Hello? Can you hear me?")
GOODBYE = "I can't hear you, so I will say goodbye now. Please call again any time."
MAX_CHARS = 1000
"""Of a prompt or the goodbye: more than a minute of speech."""


@dataclass(frozen=True, slots=True)
class SilenceSettings:
    """How long silence may last, and what is said then.

    Raises:
        ConfigError: If a value is out of the range stated beside it.
    """

    prompt_after_s: float | None = None
    """1 to 600, or None, which says nothing ever. The same wait goes before each prompt and before the goodbye."""
    prompts: tuple[str, ...] = PROMPTS
    """Said one after the other, each after another silence."""
    goodbye: str = GOODBYE
    """Said last; then the conversation ends. Empty ends nothing."""
    for_clients: bool = False
    """Whether it holds for Realtime clients that have not asked for it; it always holds for phone calls."""

    def __post_init__(self) -> None:
        if self.prompt_after_s is not None and not 1.0 <= self.prompt_after_s <= 600.0:
            raise ConfigError("silence.prompt_after_s", self.prompt_after_s, "1 to 600 seconds, or none")
        if not all(text.strip() for text in self.prompts):
            raise ConfigError("silence.prompts", list(self.prompts), "a list of texts that are not empty")
        if any(len(text) > MAX_CHARS for text in self.prompts):
            raise ConfigError(
                "silence.prompts", f"{len(self.prompts)} texts", f"at most {MAX_CHARS} characters in each"
            )
        if len(self.goodbye) > MAX_CHARS:
            raise ConfigError("silence.goodbye", f"{len(self.goodbye)} characters", f"at most {MAX_CHARS}")

    def for_client(self) -> SilenceSettings:
        """What a Realtime client begins with; it can ask for more."""
        return self if self.for_clients else replace(self, prompt_after_s=None)


NEVER = SilenceSettings()


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to say into the silence. After a goodbye that the caller lets pass, the conversation is over."""

    text: str
    is_goodbye: bool


@dataclass(frozen=True, slots=True)
class Silence:
    """How long nobody has said anything. A value: its methods return the next one."""

    since: float | None = None
    """Clock reading; None while somebody is heard or expected, and before the agent has been heard for the first time."""
    said: int = 0
    """Prompts since the caller last said something."""
    has_begun: bool = False
    """The agent has been heard: who has not been spoken to is not silent."""
    is_parting: bool = False
    """The goodbye is being said, or was, and the caller has let it pass so far."""

    def observe(self, state: TurnState, now: float) -> Silence:
        """Whose turn it is has changed, perhaps."""
        has_begun = self.has_begun or state.is_audible
        is_quiet = state.agent is Agent.QUIET and state.caller is Caller.SILENT and not state.is_ducked
        since = None if not is_quiet or not has_begun else now if self.since is None else self.since
        return replace(
            self,
            since=since,
            has_begun=has_begun,
            is_parting=self.is_parting and state.caller is Caller.SILENT,
        )

    def answered(self, now: float) -> Silence:
        """The caller said or typed something, or pressed a key: silence begins anew, and so do the prompts."""
        return replace(self.restarted(now), said=0, is_parting=False)

    def restarted(self, now: float) -> Silence:
        """Whatever was waited for was not the caller."""
        return self if self.since is None else replace(self, since=now)

    def taken_back(self) -> Silence:
        """The agent will say something behind its goodbye, which has to come again if that is met with silence."""
        return replace(self, is_parting=False)

    def due(self, settings: SilenceSettings) -> float | None:
        """When something has to be said; None while nothing has."""
        if self.since is None or settings.prompt_after_s is None or self._next(settings) is None:
            return None
        return self.since + settings.prompt_after_s

    def speak(self, settings: SilenceSettings) -> tuple[Silence, Remark]:
        """What is said now that it is due."""
        remark = self._next(settings)
        assert remark is not None, "nothing is due"
        return replace(self, since=None, said=self.said + 1, is_parting=remark.is_goodbye), remark

    def _next(self, settings: SilenceSettings) -> Remark | None:
        if self.said < len(settings.prompts):
            return Remark(settings.prompts[self.said], is_goodbye=False)
        return Remark(settings.goodbye, is_goodbye=True) if settings.goodbye.strip() else None
