"""What has become certain of a reply: what may be told of it after its commits, and when it is over."""

from __future__ import annotations

from dllm.draft import Draft
from dllm.drafts import Committed, Event, Finished, FinishReason, Usage


def conclude(draft: Draft, *, is_spent: bool) -> list[Event]:
    """Move a draft on after its commits: emit what became certain, change phase, finish. The last event is `Finished` where it is over.

    Args:
        is_spent: Its steps are over, and what there is has to do as a first clause.
    """
    canvas = draft.canvas
    final = draft.strategy.final_prefix(draft)
    is_first = draft.plan.by_clause and draft.phase == "first"
    if is_first and final < canvas.first_clause_end() and not is_spent:
        return []
    end = min(canvas.reply_end(), draft.spec.width)
    stop = _stop_cut(draft, min(final, end))
    if stop is not None:
        return _finish(draft, "stop", stop)
    if final > end or final >= canvas.width or final >= draft.spec.width:
        reason: FinishReason = "end_of_turn" if canvas.reply_end() < draft.spec.width else "canvas_full"
        if reason == "canvas_full" and draft.spec.constraint is not None:
            reason = "end_of_turn"  # a grammar that fills the canvas exactly is at its end
        elif reason == "canvas_full" and draft.plan.by_clause:
            end = canvas.last_sentence_end(draft.emitted, draft.spec.width)
        return _finish(draft, reason, end)
    events: list[Event] = []
    cut = _held_for_stop(draft, canvas.speakable(draft.emitted, final))
    if cut > draft.emitted:
        events.append(Committed(draft, draft.emitted, tuple(canvas.tokens[draft.emitted : cut]), draft.phase))
        draft.emitted = cut
    if draft.plan.by_clause and draft.phase == "first":
        draft.phase, draft.phase_steps = "rest", 0
    return events


def _stop_cut(draft: Draft, final: int) -> int | None:
    """Where the first stop sequence among final tokens begins: never in what was emitted, which held back every beginning of one."""
    tokens = tuple(draft.canvas.tokens[draft.emitted : final])
    found = [
        draft.emitted + at
        for stop in draft.spec.stop
        for at in range(len(tokens) - len(stop) + 1)
        if tokens[at : at + len(stop)] == stop
    ]
    return min(found, default=None)


def _held_for_stop(draft: Draft, cut: int) -> int:
    """Never emit what may turn out to be the beginning of a stop sequence."""
    longest = max((len(stop) for stop in draft.spec.stop), default=1)
    tokens = draft.canvas.tokens
    for at in range(max(draft.emitted, cut - longest + 1), cut):
        if any(tuple(tokens[at:cut]) == stop[: cut - at] for stop in draft.spec.stop):
            return at
    return cut


def _finish(draft: Draft, reason: FinishReason, end: int) -> list[Event]:
    canvas = draft.canvas
    end = max(end, draft.emitted)
    reply = tuple(canvas.tokens[:end])
    events: list[Event] = []
    if end > draft.emitted:
        events.append(Committed(draft, draft.emitted, reply[draft.emitted :], draft.phase))
    usage = Usage(
        prompt_tokens=len(draft.prompt),
        cached_tokens=draft.cached_tokens,
        visible_tokens=len(reply),
        forwards_prefill=draft.forwards_prefill,
        forwards_denoise=draft.steps + draft.forwards_other,
        forwards_commit=draft.forwards_commit,
        forwards_wasted=draft.forwards_wasted,
        seconds_prefill=draft.seconds_prefill,
        seconds_denoise=draft.seconds_denoise,
        forced=draft.forced,
        guards=draft.guards,
    )
    sure = tuple(canvas.confidence[:end])
    events.append(Finished(draft, reason, reply, sure, draft.steps_first, draft.steps_rest, draft.forced, usage))
    return events
