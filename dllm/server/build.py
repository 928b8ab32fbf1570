"""Replies to JSON: OpenAI's objects and chunks, with Inception's fields beside them. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dllm.drafts import Usage
from dllm.reply import CanvasShown, Reason, Reply, TextDelta, TokenChance
from dllm.server.settings import ServerSettings
from dllm.server.tools import Piece, ToolCall
from dllm.spec import ModelSpec

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0
"""What OpenAI writes for a probability of nothing: JSON has no infinity."""


def sse(body: dict[str, Any]) -> bytes:
    """One server-sent event. Beyond ASCII everything is escaped: some readers split lines at U+2028."""
    return b"data: " + json.dumps(body, separators=(",", ":")).encode("ascii") + b"\n\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is constant over one answer."""

    id: str
    created: int
    model: str
    seed: int
    warnings: tuple[str, ...] = ()
    wants_summary: bool = False

    def envelope(self, kind: str) -> dict[str, Any]:
        body: dict[str, Any] = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        if self.warnings:
            body["warning"] = "; ".join(self.warnings)
        if self.wants_summary:
            body["reasoning_summary"] = {"content": "", "status": "unavailable"}
        return body


# --- usage ------------------------------------------------------------------------------------------------------------


def usage(replies: Sequence[Reply], prompts: int = 1, seed: int = 0) -> dict[str, Any]:
    """What an answer cost. `completion_tokens` are the visible ones; the work done for them is told in `dllm`.

    Args:
        replies: All choices, those of one prompt side by side.
        prompts: Among how many prompts they are shared out: each prompt counts once, whatever its number of choices.
    """
    costs = [reply.usage for reply in replies]
    each = max(1, len(costs) // prompts)
    prompt = sum(cost.prompt_tokens for cost in costs[::each])
    cached = sum(cost.cached_tokens for cost in costs[::each])
    visible = sum(cost.visible_tokens for cost in costs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": visible,
        "total_tokens": prompt + visible,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "cached_input_tokens": cached,
        "reasoning_tokens": 0,
        "dllm": _work(costs, visible, sum(reply.steps for reply in replies), seed),
    }


def _work(costs: Sequence[Usage], visible: int, steps: int, seed: int) -> dict[str, Any]:
    denoise = sum(cost.forwards_denoise for cost in costs)
    commit = sum(cost.forwards_commit for cost in costs)
    return {
        "forwards": {
            "prefill": sum(cost.forwards_prefill for cost in costs),
            "denoise": denoise,
            "commit": commit,
            "wasted": sum(cost.forwards_wasted for cost in costs),
        },
        "steps": steps,
        "tokens_per_forward": round(visible / max(1, denoise + commit), 3),
        "forced_tokens": sum(cost.forced for cost in costs),
        "guards": sum(cost.guards for cost in costs),
        "seconds": {
            "prefill": round(sum(cost.seconds_prefill for cost in costs), 6),
            "denoise": round(sum(cost.seconds_denoise for cost in costs), 6),
        },
        "seed": seed,
    }


# --- log-probabilities ------------------------------------------------------------------------------------------------


def logprob(probability: float) -> float:
    return max(math.log(probability), LEAST_LOGPROB) if probability > 0 else LEAST_LOGPROB


def _chat_logprob(chance: TokenChance, top: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "token": chance.text.decode("utf-8", "replace"),
        "logprob": logprob(chance.probability),
        "bytes": list(chance.text),
    }
    return entry | {"top_logprobs": [dict(entry)] if top else []}


def chat_logprobs(chances: Sequence[TokenChance], top: int) -> dict[str, Any]:
    return {"content": [_chat_logprob(chance, top) for chance in chances], "refusal": None}


def text_logprobs(chances: Sequence[TokenChance], top: int, offset: int) -> dict[str, Any]:
    """The legacy shape: columns. `offset` is the character at which the first token's text begins."""
    tokens, offsets = [], []
    for chance in chances:
        tokens.append(chance.text.decode("utf-8", "replace"))
        offsets.append(offset)
        offset += len(chance.text.decode("utf-8", "ignore"))
    logprobs = [logprob(chance.probability) for chance in chances]
    tops = [{token: value} for token, value in zip(tokens, logprobs, strict=True)] if top else None
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


# --- chat -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ChatChoice:
    """One choice of a chat while it is being answered."""

    index: int
    reply: Reply
    logprobs: bool = False
    top_logprobs: int = 0
    text: str = ""
    """The message's content: what was said beside tool calls."""
    calls: list[ToolCall] = field(default_factory=list)
    chances: list[TokenChance] = field(default_factory=list)

    def take(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, ToolCall):
                self.calls.append(piece)
            else:
                self.text += piece

    @property
    def reason(self) -> str | None:
        reason = self.reply.reason
        return "tool_calls" if reason == "stop" and self.calls else reason


def call_id(answer: Answer, choice: int, number: int) -> str:
    return f"call_{answer.id.rpartition('-')[2]}_{choice}_{number}"


def _call_body(answer: Answer, choice: int, number: int, call: ToolCall) -> dict[str, Any]:
    return {
        "id": call_id(answer, choice, number),
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def chat_answer(answer: Answer, choices: Sequence[ChatChoice], kind: str = "chat.completion") -> dict[str, Any]:
    """A whole chat completion."""
    bodies = []
    for choice in choices:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": choice.text if choice.text or not choice.calls else None,
            "refusal": None,
        }
        if choice.calls:
            calls = enumerate(choice.calls)
            message["tool_calls"] = [_call_body(answer, choice.index, number, call) for number, call in calls]
        logprobs = chat_logprobs(choice.chances, choice.top_logprobs) if choice.logprobs else None
        bodies.append({"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": choice.reason})
    used = usage([choice.reply for choice in choices], seed=answer.seed)
    return answer.envelope(kind) | {"choices": bodies, "usage": used}


class ChatChunks:
    """A chat completion's chunks.

    Args:
        include_usage: Whether a last chunk tells the usage; all others then say `null`.
    """

    def __init__(self, answer: Answer, *, include_usage: bool) -> None:
        self._answer, self._include_usage = answer, include_usage

    def opening(self, choice: ChatChoice) -> dict[str, Any]:
        return self._chunk(choice, {"role": "assistant", "content": "", "refusal": None})

    def text(self, choice: ChatChoice, pieces: Sequence[Piece], chances: Sequence[TokenChance]) -> list[dict[str, Any]]:
        """Chunks of new text and calls, which `choice` has taken already. A call is opened with its name, then come its arguments."""
        chunks = []
        number = len(choice.calls) - sum(isinstance(piece, ToolCall) for piece in pieces)
        told = chances if choice.logprobs else ()
        for piece in pieces or ([""] if told else []):
            if isinstance(piece, ToolCall):
                body = _call_body(self._answer, choice.index, number, ToolCall(piece.name, ""))
                chunks.append(self._chunk(choice, {"tool_calls": [{"index": number, **body}]}, told))
                rest = {"index": number, "function": {"arguments": piece.arguments}}
                chunks.append(self._chunk(choice, {"tool_calls": [rest]}))
                number += 1
            else:
                chunks.append(self._chunk(choice, {"content": piece} if piece else {}, told))
            told = ()
        return chunks

    def canvas(self, choice: ChatChoice, text: str, shown: CanvasShown) -> dict[str, Any]:
        """A frame of a `diffusing` stream: the whole content as it stands."""
        calls = [
            {"index": number, **_call_body(self._answer, choice.index, number, call)}
            for number, call in enumerate(choice.calls)
        ]
        chunk = self._chunk(choice, {"role": "assistant", "content": text, "tool_calls": calls})
        chunk["diffusion_meta"] = {"diffusion_content": True, "diffusion_progress": shown.progress}
        return chunk

    def closing(self, choice: ChatChoice) -> dict[str, Any]:
        return self._chunk(choice, {}, reason=choice.reason)

    def usage(self, choices: Sequence[ChatChoice]) -> dict[str, Any]:
        used = usage([choice.reply for choice in choices], seed=self._answer.seed)
        return self._answer.envelope("chat.completion.chunk") | {"choices": [], "usage": used}

    def _chunk(
        self,
        choice: ChatChoice,
        delta: dict[str, Any],
        chances: Sequence[TokenChance] = (),
        reason: str | None = None,
    ) -> dict[str, Any]:
        logprobs = chat_logprobs(chances, choice.top_logprobs) if chances else None
        body = {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = self._answer.envelope("chat.completion.chunk") | {"choices": [body]}
        return chunk | {"usage": None} if self._include_usage else chunk


# --- text -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class TextChoice:
    """One choice of a text completion while it is being answered."""

    index: int
    reply: Reply
    echo: str = ""
    """The prompt, when it is to be repeated."""
    logprobs: bool = False
    top_logprobs: int = 0
    chances: list[TokenChance] = field(default_factory=list)
    told: int = 0
    """Characters of tokens whose probabilities were streamed."""

    @property
    def reason(self) -> Reason | None:
        return self.reply.reason


def text_answer(answer: Answer, choices: Sequence[TextChoice], prompts: int) -> dict[str, Any]:
    """A whole text completion."""
    bodies = [
        {
            "index": choice.index,
            "text": choice.echo + choice.reply.text,
            "logprobs": text_logprobs(choice.chances, choice.top_logprobs, len(choice.echo))
            if choice.logprobs
            else None,
            "finish_reason": choice.reason,
        }
        for choice in choices
    ]
    used = usage([choice.reply for choice in choices], prompts, answer.seed)
    return answer.envelope("text_completion") | {"choices": bodies, "usage": used}


class TextChunks:
    """A text completion's chunks."""

    def __init__(self, answer: Answer, *, include_usage: bool, prompts: int) -> None:
        self._answer, self._include_usage, self._prompts = answer, include_usage, prompts

    def opening(self, choice: TextChoice) -> dict[str, Any]:
        return self._chunk(choice, choice.echo)

    def text(self, choice: TextChoice, delta: TextDelta) -> dict[str, Any]:
        logprobs = None
        if choice.logprobs and delta.chances:
            logprobs = text_logprobs(delta.chances, choice.top_logprobs, choice.told)
            choice.told += sum(len(chance.text.decode("utf-8", "ignore")) for chance in delta.chances)
        return self._chunk(choice, delta.text, logprobs)

    def canvas(self, choice: TextChoice, shown: CanvasShown) -> dict[str, Any]:
        chunk = self._chunk(choice, choice.echo + shown.text)
        chunk["diffusion_meta"] = {"diffusion_content": True, "diffusion_progress": shown.progress}
        return chunk

    def closing(self, choice: TextChoice) -> dict[str, Any]:
        return self._chunk(choice, "", reason=choice.reason)

    def usage(self, choices: Sequence[TextChoice]) -> dict[str, Any]:
        used = usage([choice.reply for choice in choices], self._prompts, self._answer.seed)
        return self._answer.envelope("text_completion") | {"choices": [], "usage": used}

    def _chunk(
        self, choice: TextChoice, text: str, logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        body = {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        chunk = self._answer.envelope("text_completion") | {"choices": [body]}
        return chunk | {"usage": None} if self._include_usage else chunk


# --- models -----------------------------------------------------------------------------------------------------------

PATHS = {
    "chat": "/v1/chat/completions",
    "text": "/v1/completions",
    "fim": "/v1/fim/completions",
    "edit": "/v1/edit/completions",
    "apply": "/v1/apply/completions",
}
PARAMETERS = (
    "temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "stop", "seed", "logit_bias", "logprobs",
)  # fmt: skip


def model_body(name: str, created: int, spec: ModelSpec, settings: ServerSettings) -> dict[str, Any]:
    """A model as OpenAI's and Inception's clients list it."""
    longest = min(settings.max_tokens, spec.max_canvas or spec.max_position_embeddings)
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "local",
        "name": name,
        "input_modalities": ["text"],
        "output_modalities": ["text"],
        "context_length": spec.max_position_embeddings,
        "max_output_length": longest,
        "pricing": {"prompt": "0", "completion": "0", "input_cache_reads": "0", "input_cache_writes": "0"},
        "supported_sampling_parameters": list(PARAMETERS),
        "supported_features": ["tools", "json_mode", "structured_outputs"],
        "supported_endpoints": list(PATHS.values()),
    }
