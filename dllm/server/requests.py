"""What a client asked for, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from dllm.codec import Message

Effort: TypeAlias = Literal["instant", "low", "medium", "high"]
ToolMode: TypeAlias = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How one reply is to be written; None leaves it to the server."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    """0 or 1: only the token that was chosen is known."""
    effort: Effort | None = None
    realtime: bool = False
    steps: int | None = None
    threshold: float | None = None
    pins: tuple[str, ...] = ()
    deadline_s: float | None = None
    """From now; decides how many steps are taken."""
    options: tuple[tuple[str, Any], ...] = ()
    """Fields of `DecodeOptions` from the request's `dllm` object."""


@dataclass(frozen=True, slots=True)
class Streaming:
    is_on: bool = False
    include_usage: bool = False
    diffusing: bool = False
    """Whole canvases, each replacing the one before."""


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    parameters: Mapping[str, Any]
    """JSON schema of its arguments."""
    body: Mapping[str, Any]
    """As the client wrote it: what chat templates render."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the whole reply must look like. At most one is given."""

    schema: Mapping[str, Any] | None = None
    regex: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def is_free(self) -> bool:
        return self.schema is None and self.regex is None and not self.choices


@dataclass(frozen=True, slots=True)
class ChatRequest:
    messages: tuple[Message, ...]
    decoding: Decoding = field(default_factory=Decoding)
    streaming: Streaming = field(default_factory=Streaming)
    tools: tuple[Tool, ...] = ()
    tool_mode: ToolMode = "none"
    forced_tool: str | None = None
    """With mode `required`: the tool that must be called."""
    parallel_calls: bool = True
    """Whether there may be more than one call."""
    grammar: Grammar = field(default_factory=Grammar)
    user: str | None = None
    wants_summary: bool = False
    """Inception's `reasoning_summary`; there is no reasoning to sum up, and the answer says so."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Plain text or tokens to be continued, or, with a suffix, the text between two."""

    prompts: tuple[str | tuple[int, ...], ...]
    decoding: Decoding = field(default_factory=Decoding)
    streaming: Streaming = field(default_factory=Streaming)
    suffix: str | None = None
    echo: bool = False
    grammar: Grammar = field(default_factory=Grammar)
    user: str | None = None
    warnings: tuple[str, ...] = ()
