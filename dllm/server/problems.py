"""What a client is told when its request cannot be answered: OpenAI's error object, with the field at fault in `param`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from dllm.errors import (
    CacheFullError,
    ConfigError,
    DllmError,
    DraftExpiredError,
    EngineClosedError,
    PromptTooLongError,
    TrialEndedError,
    TrialUnavailableError,
)


class ApiError(DllmError):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: What was wrong and what was expected, for a person.
        kind: OpenAI's `type`.
        param: Path of the field at fault, such as `messages[0].content`.
        code: A stable name that programs may test.
        reason: What it is counted as among the refusals of `/metrics`, where that is not its code.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        reason: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.reason = reason or code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def wrong(param: str, expected: str, found: object, *, code: str | None = None) -> ApiError:
    """400: a field holds something else than expected."""
    return ApiError(400, f"{param}: expected {expected}, got {shown(found)}", param=param, code=code)


def too_many(message: str, reason: Literal["drafts_full", "grammars_full"]) -> ApiError:
    """429 with OpenAI's words for it: a client that comes again in a second may be served."""
    return ApiError(
        429,
        f"{message}; try again",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        reason=reason,
        headers={"retry-after": "1"},
    )


def stopping() -> ApiError:
    """503: the server was told to stop, and this would take longer than it waits."""
    headers = {"retry-after": "1"}
    return ApiError(503, "the server is shutting down", kind="server_error", code="unavailable", headers=headers)


def shown(value: object) -> str:
    """A value of a request as an error message may repeat it: short, and no dump of somebody's data."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case float() if math.isnan(value) or math.isinf(value):
            return "a number that is not finite"
        case int() | float():
            text = str(value) if abs(value) < 10**30 else "a very large number"
            return text
        case str():
            return repr(value) if len(value) <= 40 else f"a string of {len(value)} characters"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return "an object"
        case _:
            return type(value).__name__


_FIELDS = {"width": "max_tokens", "pins": "dllm.pins", "given": "suffix", "constraint": "response_format"}
"""What the engine's names for things are called in a request."""


def from_exception(error: Exception, field: str) -> ApiError:
    """The answer for an error of the engine's.

    Args:
        field: What a caller would shorten or change: `messages` or `prompt`.
    """
    match error:
        case ApiError():
            return error
        case PromptTooLongError():
            message = (
                f"This model's maximum context length is {error.limit} tokens; the request needs {error.tokens}. "
                f"Shorten {field} or ask for fewer tokens."
            )
            return ApiError(400, message, param=field, code="context_length_exceeded")
        case ConfigError():
            return ApiError(400, str(error), param=_FIELDS.get(error.key, error.key))
        case DraftExpiredError():
            headers = {"x-should-retry": "false"}
            return ApiError(504, str(error), kind="server_error", code="timeout", headers=headers)
        case EngineClosedError() | CacheFullError() | TrialUnavailableError() | TrialEndedError():
            headers = {"retry-after": "1"}
            return ApiError(503, str(error), kind="server_error", code="unavailable", headers=headers)
        case DllmError() if isinstance(error, ValueError):
            return ApiError(400, str(error))
        case DllmError():
            return ApiError(500, str(error), kind="server_error")
        case _:
            return ApiError(500, "the server failed; its log says why", kind="server_error")
