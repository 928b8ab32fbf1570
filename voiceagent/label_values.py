"""Values that labels of `/metrics` are known to take: a counter with them is 0 from the start, so that a rate sees its first event."""

from __future__ import annotations

from typing import get_args

from voiceagent.barge_in import Dismissed
from voiceagent.budget_terms import WhenLate
from voiceagent.endpoint import Rule
from voiceagent.speculation import Outcome as Speculated
from voiceagent.tool_runner import Outcome as ToolOutcome

REFUSALS = (
    *("invalid_api_key", "invalid_signature", "forbidden_host", "forbidden_origin", "not_found"),
    *("overloaded", "processors_full", "recogniser_full", "engine_full", "no_start", "unsupported_format"),
)
"""Of the doors (`voiceagent.server`, `voiceagent.telephony`) and of the runtime's own reasons to be full."""
STATUSES = ("completed", "cancelled", "failed")
"""Of replies (`voiceagent.trace`)."""
RESTORES = tuple(reason.value for reason in Dismissed)
RULES: tuple[str, ...] = get_args(Rule)
LATE = tuple(action.value for action in WhenLate)
TOOL_OUTCOMES: tuple[str, ...] = (*get_args(ToolOutcome), "running", "client")
SPECULATIONS = tuple(outcome.value for outcome in Speculated)
STAGES = ("endpoint", "asr", "wait", "call", "tools", "prefill", "denoise_first", "tts", "transport")
"""On the way to the first audio (`TurnTrace.stages`)."""
PREDICTED = ("asr", "call", "prefill", "denoise_first", "tts", "transport")
"""Those of them that have a p95."""
MISSES = (
    *((stage, "floor") for stage in STAGES),
    *((stage, "slow") for stage in STAGES if stage not in ("tools", "wait")),
    *((stage, "usual") for stage in STAGES if stage != "endpoint"),
    *(("endpoint", "endpoint"), ("endpoint", "words"), ("tools", "tool"), ("wait", "wait")),
    *(("asr", "company"), ("denoise_first", "company"), ("call", "company")),
    *(("denoise_first", "stall"), ("call", "stall")),
)
"""Stages and causes as `TurnTrace.missed_deadline` pairs them."""
