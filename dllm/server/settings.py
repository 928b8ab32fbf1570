"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass, field

from dllm.errors import ConfigError
from dllm.options import DecodeOptions
from webserving.descriptors import Demand


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Checked when made.

    Raises:
        ConfigError: If a number is out of range.
    """

    model: str = "dllm"
    """The name that clients see."""
    aliases: tuple[str, ...] = ()
    """Other names it answers to."""
    host: str = "127.0.0.1"
    """The address it is bound to; one of this machine alone, without keys, is asked by names of this machine only (`dllm.server.guard`)."""
    api_keys: tuple[str, ...] = ()
    """Bearer tokens that are let in; none lets everybody in."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call; `*` is all."""
    options: DecodeOptions = field(default_factory=DecodeOptions)
    """Decoding where a request says nothing. Its temperature is 0: masked models lose more by sampling than others do."""
    threshold: float = 0.9
    """Confidence that decides a token at medium effort; other efforts shift it."""
    steps: int = 0
    """Steps of a reply at medium effort; 0 is one for every two positions."""
    default_tokens: int = 256
    """Longest reply where a request names none. The number of masked positions changes when a model ends its answer (LLaDA), so it is
    the same for all."""
    max_tokens: int = 4096
    """Longest reply of all; what is asked beyond it is cut to it."""
    infill_tokens: int = 64
    """Longest text between a prompt and a suffix: that hole is one canvas."""
    max_choices: int = 8
    max_drafts: int = 64
    """Replies written at once; more are refused with 429."""
    max_body_bytes: int = 8 * 2**20
    request_timeout_s: float = 30.0
    """A connection whose request, its body included, is not there after so long, since it was made or since its last answer, is cut."""
    max_waiting: int = 256
    """Connections whose request is not there yet; one more cuts the oldest of them."""
    send_timeout_s: float = 20.0
    """A client that takes nothing of its answer for so long is cut."""
    timeout_s: float = 300.0
    """A reply that takes longer is cancelled."""
    max_conversations: int = 256
    conversation_idle_s: float = 1800.0
    """The prefix cache forgets a conversation that was silent for so long."""
    shutdown_s: float = 10.0
    """How long replies may go on once the server was told to stop."""

    def __post_init__(self) -> None:
        for name in (
            "default_tokens", "max_tokens", "infill_tokens", "max_choices", "max_drafts", "max_body_bytes",
            "max_conversations", "max_waiting",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "at least 1")
        if not 0 < self.threshold <= 1:
            raise ConfigError("threshold", self.threshold, "a probability in (0, 1]")
        if self.steps < 0:
            raise ConfigError("steps", self.steps, "at least 0")
        for name in ("timeout_s", "conversation_idle_s", "request_timeout_s", "send_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(name, getattr(self, name), "seconds above 0")
        if not self.model:
            raise ConfigError("model", self.model, "a name")

    @property
    def open_files(self) -> Demand:
        """What the server needs at its fullest: whose reply is written has a connection."""
        return Demand(self.max_drafts, 1, self.max_waiting, "replies", "--max-drafts")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.model, *self.aliases)
