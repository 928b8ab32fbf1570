"""Everything the runtime raises on purpose.

VoiceAgentError
├── ConfigError          the user's configuration: names the key, the value and what was expected
├── ProtocolError        a client's message that breaks the protocol: becomes the protocol's error event
├── BackendError         a model failed: the conversation that asked is told, the others never notice
├── ToolError            a tool could not do what it was asked: the model is told, and the conversation goes on
└── OverloadedError      no room: said before anyone is kept waiting
    └── EngineFullError  those who are there already get no more than the fewest steps
"""

from __future__ import annotations


class VoiceAgentError(Exception):
    """Base of all errors raised by `voiceagent`."""


class ConfigError(VoiceAgentError, ValueError):
    """A configuration value is not acceptable."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"{key} = {value!r}: expected {expected}")
        self.key = key
        self.value = value
        self.expected = expected


class ProtocolError(VoiceAgentError, ValueError):
    """A client's message cannot be carried out.

    `code` and `param` are those of the OpenAI Realtime error object; `event_id` is the client's own id of the message.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        event_id: str | None = None,
        type: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.type = type
        self.code = code
        self.message = message
        self.param = param
        self.event_id = event_id


class BackendError(VoiceAgentError, RuntimeError):
    """A model or engine failed while it worked for one conversation."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__(f"{part}: {message}")
        self.part = part


class ToolError(VoiceAgentError, RuntimeError):
    """A tool cannot do what it was asked. The message is for the model, which tells the caller in its own words."""


class OverloadedError(VoiceAgentError, RuntimeError):
    """The server cannot take another conversation on time. `code` says in one word what is full."""

    code = "overloaded"

    def __init__(self, active: int, limit: int) -> None:
        super().__init__(f"{active} conversations are active and the limit is {limit}; try again later")
        self.active = active
        self.limit = limit


class EngineFullError(OverloadedError):
    """One more caller would make everybody late."""

    def __init__(self, code: str, reason: str) -> None:
        VoiceAgentError.__init__(self, reason)
        self.code = code
