"""A turn's timeline in words: how the time was meant to be spent, how it was, and what made a late answer late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

STAGES: Mapping[str, str] = {
    "endpoint": "waiting until it was certain that the caller had finished",
    "asr": "recognising the last words",
    "wait": "waiting until it could be written",
    "call": "writing the call of a tool",
    "tools": "running it",
    "prefill": "reading the prompt",
    "denoise_first": "writing the first clause",
    "tts": "turning it into sound",
    "transport": "sending it",
}
CAUSES: Mapping[str, str] = {
    "endpoint": "every stage took what it usually takes; the wait for silence alone left too little",
    "floor": "when it was planned not even the fewest steps fitted any more",
    "usual": "every stage took about what it usually takes, which is too long for this target",
    "words": "the turn was held open for its words, which asked for a longer silence, or were not known or judged yet",
    "slow": "it took longer than it usually does",
    "company": "other callers' replies shared the engine",
    "stall": "one step stood still",
    "tool": "a tool had to answer first",
    "wait": "words or tools of the turn before had to be known first, or the machine was busy",
}
ENDINGS: Mapping[str, str] = {
    "silence": "the caller was silent for as long as ends a turn without looking at the words",
    "complete": "the words called for no longer silence",
    "dictation": "something was being dictated, which waits longer, and the silence had lasted as long",
    "ceiling": "no silence may be longer, whatever the words say",
    "too_long": "the voice went on for longer than a turn may last",
    "client": "the client said so",
}
SOUND_COUNTS: Mapping[object, str] = {
    True: "which did not count beside them",
    False: "which is weighed in it",
    None: "which counts where the words make sense",  # Of timelines that were kept before they told.
}
"""By whether the words were misheard."""

TOOL_OUTCOMES: Mapping[str, str] = {
    "ok": "which answered",
    "failed": "which failed",
    "timed_out": "which took too long and was given up",
    "cancelled": "which was stopped",
    "refused": "which was refused: there is no such tool, or it cannot be asked this",
    "client": "which is the client's to run",
    "running": "which had not answered yet when the reply ended",
}
OUTCOMES: Mapping[str, str] = {
    "hit": "and the turn ended with just those words, so that it was released as it stood",
    "repaired": "and revised when the turn ended with other words",
    "wasted": "and thrown away, for the turn ended with other words",
}


def explain(timeline: Mapping[str, object]) -> list[str]:
    """Sentences about one turn. `timeline` is what `TurnTrace.as_json` gave, with or without its texts; gaps in it are passed over."""
    lines = [_headline(timeline)]
    ended_by = timeline.get("ended_by")
    if isinstance(ended_by, Mapping):
        lines.append(_ending(ended_by))
    if (missed := timeline.get("repair_missed")) is not None:
        why = "was not known in time" if missed == "overdue" else "could not be found out"
        lines.append(f"Which words were misheard {why}: they were taken as they were heard.")
    lines += written_before(timeline)
    tools = timeline.get("tools")
    if isinstance(tools, Sequence):
        lines += [_tool(tool) for tool in tools if isinstance(tool, Mapping)]
    plan = timeline.get("plan")
    if isinstance(plan, Mapping):
        lines += _plan(plan, "the end of speech" if timeline.get("origin") == "speech_end" else "the request")
    stages = timeline.get("stages")
    if isinstance(stages, Sequence) and stages:
        lines.append("Where the time went:")
        lines += [_stage(stage) for stage in stages if isinstance(stage, Mapping)]
    lines += _steps(timeline)
    if guarded := _number(timeline.get("guarded_drafts")):
        drafts = "Its draft" if guarded == 1 else f"{guarded:.0f} of its drafts"
        lines.append(
            f"{drafts} did not converge (circles, a repetition, no text) and was finished greedily or held open."
        )
    missed = timeline.get("missed_deadline")
    if isinstance(missed, Mapping):
        lines.append(_missed(missed))
    return lines


def _headline(timeline: Mapping[str, object]) -> str:
    turn, target, latency = timeline.get("turn"), timeline.get("target_ms"), timeline.get("server_latency_ms")
    origin = "the end of speech" if timeline.get("origin") == "speech_end" else "the request"
    status = timeline.get("status")
    if not isinstance(latency, int | float):
        why = f" ({timeline['reason']})" if timeline.get("reason") else ""
        return f"Turn {turn} was never heard: it was {status}{why}."
    verdict = "on time" if timeline.get("missed_deadline") is None else "late"
    return (
        f"Turn {turn} was {verdict}: its first sound left {latency:.0f} ms after {origin}, the target was {target} ms."
    )


def _ending(ended_by: Mapping[str, object]) -> str:
    rule = str(ended_by.get("rule"))
    waited, alone, completeness, sound, confidence, misheard = (
        ended_by.get(key)
        for key in ("silence_ms", "silence_alone_ms", "completeness", "sound", "confidence", "misheard")
    )
    after = f" after {waited:.0f} ms of silence" if isinstance(waited, int | float) else ""
    line = f"The caller's turn was over{after}: {ENDINGS.get(rule, rule)}"
    if rule == "complete" and completeness is None:
        line = f"The caller's turn was over{after}: no words were known yet, and the silence had lasted as long as that asks for"
    if isinstance(completeness, int | float):
        subject = ", which" if rule == "complete" else "; the words"
        line += f"{subject} were complete with a probability of {completeness:.2f}{', as far as words tell that were misheard or make no sense' if misheard else ''}"
    if isinstance(sound, int | float):
        line += f", the sound alone, {SOUND_COUNTS[misheard if isinstance(misheard, bool) else None]}, of an end with {sound:.2f}"
    if rule != "silence" and isinstance(alone, int | float):
        line += f". Silence alone would have waited {alone:.0f} ms"
    if isinstance(confidence, int | float):
        line += f". The recogniser takes its words for right with a probability of {confidence:.2f}"
    return f"{line}."


def written_before(timeline: Mapping[str, object]) -> list[str]:
    """What of the reply was there before the turn was over, and what became of it; nothing where nothing was."""
    speculation, revised = timeline.get("speculation"), timeline.get("revised")
    lines = [_speculation(speculation)] if isinstance(speculation, Mapping) else []
    return [*lines, _revised(revised)] if isinstance(revised, Mapping) else lines


def _speculation(speculation: Mapping[str, object]) -> str:
    early, wasted, late, cold = (
        speculation.get(key) for key in ("early_steps", "wasted_steps", "late_steps", "cold_steps")
    )
    outcome = str(speculation.get("outcome"))
    line = f"A reply was drafted before the turn was over, in {_steps_of(early)}, {OUTCOMES.get(outcome, outcome)}"
    if outcome != "wasted":
        line += f"; its first clause took {_number(late):.0f} more"
        if isinstance(cold, int | float):
            line += f", where from nothing it had taken {cold:.0f}"
    if isinstance(wasted, int | float) and wasted and outcome != "wasted":
        line += f". {wasted:.0f} of the early steps came to nothing"
    return f"{line}."


def _revised(revised: Mapping[str, object]) -> str:
    kept, asked = _number(revised.get("kept_tokens")), _number(revised.get("asked_tokens"))
    return f"Of {asked:.0f} tokens that were written before, {kept:.0f} still fitted and stayed."


def _tool(tool: Mapping[str, object]) -> str:
    start, end, outcome = tool.get("start_ms"), tool.get("end_ms"), str(tool.get("outcome"))
    took = f" after {end - start:.0f} ms" if isinstance(start, int | float) and isinstance(end, int | float) else ""
    after = took if outcome in ("ok", "failed", "timed_out", "cancelled") else ""
    return f"It called {tool.get('name')}, {TOOL_OUTCOMES.get(outcome, outcome)}{after}."


def _plan(plan: Mapping[str, object], origin: str) -> list[str]:
    reasons = plan.get("reasons")
    first = reasons[0] if isinstance(reasons, Sequence) and reasons else "no reason was kept"
    lines = []
    spent = plan.get("spent_ms")
    if isinstance(spent, int | float):
        company = plan.get("company")
        beside = f", beside {company - 1} other replies" if isinstance(company, int) and company > 1 else ""
        lines.append(f"It was planned {spent:.0f} ms after {origin}{beside}.")
    quality = plan.get("quality")
    worth = f", {quality:.0%} of the best quality" if isinstance(quality, int | float) else ""
    if plan.get("written_already"):
        lines.append(f"{str(first)[:1].upper()}{str(first)[1:]}{worth}: nobody waited for a step of it.")
    else:
        lines.append(f"The first clause was granted {_steps_of(plan.get('granted_first'))}{worth}: {first}.")
    if plan.get("acknowledgement"):
        lines.append(f"{plan['acknowledgement']!r} was said first, because the answer could not be there in time.")
    if isinstance(reasons, Sequence) and len(reasons) > 1:
        lines.append("Then the plan changed:")
        lines += [f"  {reason}" for reason in reasons[1:]]
    return lines


def _stage(stage: Mapping[str, object]) -> str:
    name = str(stage.get("name"))
    start, end, usual, worst = (
        stage.get(key) for key in ("start_ms", "end_ms", "predicted_p50_ms", "predicted_p95_ms")
    )
    took = end - start if isinstance(start, int | float) and isinstance(end, int | float) else 0.0
    line = f"  {took:7.1f} ms {STAGES.get(name, name)}"
    if worst == 0 and name in ("prefill", "denoise_first"):
        line += " (it was done already)"
    elif isinstance(usual, int | float) and isinstance(worst, int | float):
        beyond = ", more than 19 times in 20" if took > worst else ""
        digits = 0 if worst >= 1 else 1
        line += f" (expected {usual:.{digits}f}, seldom over {worst:.{digits}f}{beyond})"
    return line


def _steps(timeline: Mapping[str, object]) -> list[str]:
    steps = timeline.get("steps")
    plan = timeline.get("plan")
    draft = plan.get("draft", 0) if isinstance(plan, Mapping) else 0  # Others wrote calls, or what follows them.
    found = [step for step in steps if isinstance(step, Mapping)] if isinstance(steps, Sequence) else []
    found = [step for step in found if step.get("draft", 0) == draft]
    lines = []
    for phase, what in (("first", "The first clause"), ("rest", "The rest")):
        own = [step for step in found if step.get("phase") == phase]
        if own:
            took = sum(_number(step.get("compute_ms")) for step in own)
            waited = sum(_number(step.get("waited_ms")) for step in own)
            batch = max(_number(step.get("batch")) for step in own)
            shared = f", in forwards of up to {batch:.0f} replies" if batch > 1 else ""
            late = f", and waited {waited:.0f} ms for others" if waited >= 1.0 else ""
            lines.append(f"{what} took {_steps_of(len(own))} of {took / len(own):.1f} ms on average{shared}{late}.")
    return lines


def _missed(missed: Mapping[str, object]) -> str:
    name, cause = str(missed.get("stage")), str(missed.get("cause"))
    line = f"It was {_number(missed.get('late_ms')):.0f} ms late because of {STAGES.get(name, name)}"
    excess = _number(missed.get("excess_ms"))
    if excess >= 1.0:
        line += (
            f", which took {excess:.0f} ms more than {'silence alone would have' if name == 'endpoint' else 'usual'}"
        )
    return f"{line}: {CAUSES.get(cause, cause)}."


def _steps_of(value: object) -> str:
    return "1 step" if value == 1 else f"{_number(value):.0f} steps"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
