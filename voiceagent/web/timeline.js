/** Where things lie on the time axis of one turn, and the statistics over turns. Pure: timelines in, numbers out. */

/** Stages of a turn in the words of the page. */
export const STAGE_LABELS = {
  endpoint: "End of turn",
  asr: "Recognition",
  wait: "Waiting",
  call: "Writing the call",
  tools: "Tool",
  prefill: "Prefill",
  denoise_first: "Denoising",
  tts: "Voice",
  transport: "Sending",
};

/** A stage counts as late when it took this much longer than its p95: below that nobody can hear or do anything about it. */
const LATE_MARGIN_MS = 5;

/** Where a clock starts, in the words of the axis. */
export function originLabel(timeline) {
  return timeline.origin === "speech_end" ? "end of speech" : "request";
}

const ENDINGS = {
  silence: "silence alone",
  complete: "complete words",
  dictation: "the end of dictation",
  ceiling: "the longest silence there may be",
  too_long: "the longest turn there may be",
  client: "this page",
};

/** Why the caller's turn was over, as a sentence; empty for a typed turn. */
export function endingText(timeline) {
  const ending = timeline.ended_by;
  if (!ending) return "";
  const waited = typeof ending.silence_ms === "number" ? ` after ${formatMs(ending.silence_ms)} of silence` : "";
  const doubted = ending.misheard ? ", as far as words tell that were misheard or make no sense" : "";
  const sure = typeof ending.completeness === "number" ? `, the words complete with ${Math.round(ending.completeness * 100)} %${doubted}` : "";
  const counts = ending.misheard ? "which did not count beside them" : "which is weighed in it";
  const sounded = typeof ending.sound === "number" ? `, the sound alone, ${counts}, like an end with ${Math.round(ending.sound * 100)} %` : "";
  const trusted = typeof ending.confidence === "number" ? ` The recogniser takes its words for right with ${Math.round(ending.confidence * 100)} %.` : "";
  const weighed = ending.rule !== "silence" && typeof ending.silence_alone_ms === "number";
  const alone = weighed ? ` (silence alone would have waited ${formatMs(ending.silence_alone_ms)})` : "";
  return `Your turn was ended by ${ENDINGS[ending.rule] ?? ending.rule}${waited}${sure}${sounded}${alone}.${trusted}`;
}

/** The q-quantile (q in [0, 1]) with linear interpolation, as numpy does it; null for no values. */
export function quantile(values, q) {
  if (values.length === 0) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const position = (sorted.length - 1) * q;
  const below = Math.floor(position);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (position - below);
}

/** Round step (1, 2, 2.5 or 5 times a power of ten) that gives at most `most` intervals up to `end`. */
export function tickStep(end, most) {
  const raw = end / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((step) => step >= raw * 0.9999);
}

/**
 * Waterfall of one turn.
 *
 * `timeline` is the server's trace, `pageMs` the page's own measurement or null. Positions are fractions of the axis in [0, 1].
 * Returns {endMs, ticks: [{ms, at}], rows: [{name, label, startMs, durationMs, at, width, p50Ms, p95Ms, p50At, p95At, late}],
 * steps: [{step, phase, ms, at}], target: {ms, at} | null, server: {ms, at} | null, page: {ms, at} | null}.
 */
export function layoutTimeline(timeline, pageMs = null) {
  const stages = (timeline.stages ?? []).filter((stage) => isNumber(stage.start_ms) && isNumber(stage.end_ms));
  const serverMs = isNumber(timeline.server_latency_ms) ? timeline.server_latency_ms : null;
  const targetMs = isNumber(timeline.target_ms) ? timeline.target_ms : null;
  const predicted = stages.map((stage) => stage.start_ms + (stage.predicted_p95_ms ?? 0));
  const furthest = Math.max(1, serverMs ?? 0, targetMs ?? 0, pageMs ?? 0, ...stages.map((stage) => stage.end_ms), ...predicted);
  const step = tickStep(furthest * 1.04, 6);
  const endMs = Math.ceil((furthest * 1.04) / step) * step;
  const place = (ms) => Math.max(0, Math.min(1, ms / endMs));
  const point = (ms) => (ms === null ? null : { ms, at: place(ms) });
  return {
    endMs,
    ticks: Array.from({ length: Math.round(endMs / step) + 1 }, (_, i) => ({ ms: i * step, at: place(i * step) })),
    rows: stages.map((stage) => {
      const durationMs = stage.end_ms - stage.start_ms;
      const p50Ms = isNumber(stage.predicted_p50_ms) ? stage.predicted_p50_ms : null;
      const p95Ms = isNumber(stage.predicted_p95_ms) ? stage.predicted_p95_ms : null;
      return {
        name: stage.name,
        label: STAGE_LABELS[stage.name] ?? stage.name,
        startMs: stage.start_ms,
        durationMs,
        at: place(stage.start_ms),
        width: Math.max(0, place(stage.end_ms) - place(stage.start_ms)),
        p50Ms,
        p95Ms,
        p50At: p50Ms === null ? null : place(stage.start_ms + p50Ms),
        p95At: p95Ms === null ? null : place(stage.start_ms + p95Ms),
        late: p95Ms !== null && durationMs > p95Ms + LATE_MARGIN_MS,
      };
    }),
    steps: (timeline.steps ?? []).filter((one) => isNumber(one.at_ms) && one.at_ms <= endMs).map((one) => ({ step: one.step, phase: one.phase, ms: one.at_ms, at: place(one.at_ms) })),
    target: point(targetMs),
    server: point(serverMs),
    page: point(pageMs),
  };
}

/**
 * The answer times of all spoken turns.
 *
 * `responses` as in model.js. Returns {turns: [{id, serverMs, pageMs, targetMs}], server: {p50, p95, count}, page: {p50, p95, count}};
 * a turn without either time (no audio, interrupted before it began) is left out, and so are typed turns.
 */
export function answerTimes(responses) {
  const turns = responses
    .filter((response) => response.startedBy === "speech")
    .map((response) => ({
      id: response.id,
      serverMs: isNumber(response.timeline?.server_latency_ms) ? response.timeline.server_latency_ms : null,
      pageMs: response.pageMs,
      targetMs: isNumber(response.timeline?.target_ms) ? response.timeline.target_ms : null,
    }))
    .filter((turn) => turn.serverMs !== null || turn.pageMs !== null);
  const summary = (values) => ({ p50: quantile(values, 0.5), p95: quantile(values, 0.95), count: values.length });
  return {
    turns,
    server: summary(turns.map((turn) => turn.serverMs).filter(isNumber)),
    page: summary(turns.map((turn) => turn.pageMs).filter(isNumber)),
  };
}

/** Milliseconds for people: "6 ms", "412 ms", "1.24 s". */
export function formatMs(ms) {
  if (!isNumber(ms)) return "–";
  if (Math.abs(ms) >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return `${Math.abs(ms) < 10 && !Number.isInteger(ms) ? ms.toFixed(1) : Math.round(ms)} ms`;
}

function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}
