/** The three instruments about time: the last turn's waterfall, the answer times of all turns, and the step plan. */
import { el, setText, setVariable } from "./dom.js";
import { answerTimes, endingText, formatMs, layoutTimeline, originLabel, STAGE_LABELS } from "./timeline.js";

const SHOWN_TURNS = 24;

export class WaterfallView {
  #body;
  #caption;

  constructor(body, caption) {
    this.#body = body;
    this.#caption = caption;
  }

  draw(model) {
    const response = [...model.responses.values()].findLast((candidate) => candidate.timeline !== null);
    if (response === undefined) return;
    const { timeline } = response;
    const pageMs = response.startedBy === "speech" ? response.pageMs : null;
    const layout = layoutTimeline(timeline, pageMs);
    const rows = layout.rows.map((row) => this.#row(row, layout));
    const axis = el("li", { class: "axis", "aria-hidden": "true" }, el("span", { class: "track" }, ...layout.ticks.map((tick) => this.#tick(tick))));
    this.#body.replaceChildren(...rows, axis);
    this.#body.dataset.turn = String(timeline.turn ?? "");
    setText(this.#caption, caption(timeline, layout));
  }

  #row(row, layout) {
    const bar = el("span", { class: row.late ? "bar is-late" : "bar" });
    setVariable(bar, "--at", row.at);
    setVariable(bar, "--width", row.width);
    const track = el("span", { class: "track", "aria-hidden": "true" }, bar);
    for (const [kind, at] of [["p50", row.p50At], ["p95", row.p95At]]) if (at !== null) track.append(mark(`predicted ${kind}`, at));
    if (row.name === "denoise_first") for (const step of layout.steps) track.append(mark(`step-dot is-${step.phase}`, step.at));
    for (const [kind, point] of [["target", layout.target], ["server", layout.server], ["page", layout.page]]) if (point !== null) track.append(mark(`line-${kind}`, point.at));
    const predicted = row.p50Ms === null ? "" : `, predicted ${formatMs(row.p50Ms)}${row.p95Ms === null ? "" : ` to ${formatMs(row.p95Ms)}`}`;
    const spoken = el("span", { class: "visually-hidden" }, `${predicted}${row.late ? ", later than predicted" : ""}`);
    const value = el("span", { class: row.late ? "value is-late" : "value" }, formatMs(row.durationMs), spoken);
    return el("li", { class: "stage" }, el("span", { class: "name" }, row.label), track, value);
  }

  #tick(tick) {
    const label = el("span", { class: "tick" }, String(tick.ms));
    setVariable(label, "--at", tick.at);
    return label;
  }
}

function mark(kind, at) {
  const element = el("i", { class: `mark ${kind}` });
  setVariable(element, "--at", at);
  return element;
}

function caption(timeline, layout) {
  const parts = [];
  if (layout.server !== null) {
    const heard = layout.page === null ? "" : `, audible here after ${formatMs(layout.page.ms)}`;
    parts.push(`From the ${originLabel(timeline)}: first audio sent after ${formatMs(layout.server.ms)}${heard}.`);
  }
  const ending = endingText(timeline);
  if (ending !== "") parts.push(ending);
  if (timeline.missed_deadline) {
    const { stage, late_ms: lateMs } = timeline.missed_deadline;
    parts.push(`Missed the target by ${formatMs(lateMs)}, in “${STAGE_LABELS[stage] ?? stage}”.`);
  }
  if (timeline.status !== "completed") parts.push(`Turn ${timeline.status}${timeline.reason ? ` (${timeline.reason.replaceAll("_", " ")})` : ""}.`);
  return parts.join(" ");
}

export class HistoryView {
  #bars;
  #figures;

  /** figures: {serverP50, serverP95, pageP50, pageP95, count} */
  constructor(bars, figures) {
    this.#bars = bars;
    this.#figures = figures;
  }

  draw(model) {
    const times = answerTimes([...model.responses.values()]);
    setText(this.#figures.serverP50, formatMs(times.server.p50));
    setText(this.#figures.serverP95, formatMs(times.server.p95));
    setText(this.#figures.pageP50, formatMs(times.page.p50));
    setText(this.#figures.pageP95, formatMs(times.page.p95));
    setText(this.#figures.count, times.turns.length === 0 ? "" : `${times.turns.length} spoken ${times.turns.length === 1 ? "turn" : "turns"}`);
    const shown = times.turns.slice(-SHOWN_TURNS);
    const top = Math.max(1, ...shown.flatMap((turn) => [turn.serverMs ?? 0, turn.pageMs ?? 0, turn.targetMs ?? 0])) * 1.1;
    this.#bars.replaceChildren(...shown.map((turn) => column(turn, top)));
    this.#bars.classList.toggle("is-empty", shown.length === 0);
    this.#bars.setAttribute("aria-label", shown.length === 0 ? "No spoken turn yet" : `Server times of the last ${shown.length} spoken turns: ${shown.map((turn) => formatMs(turn.serverMs)).join(", ")}`);
    const target = shown.findLast((turn) => turn.targetMs !== null)?.targetMs ?? null;
    this.#bars.classList.toggle("has-target", target !== null);
    if (target !== null) setVariable(this.#bars, "--target", target / top);
  }
}

function column(turn, top) {
  const bar = el("i", { class: "server" });
  setVariable(bar, "--height", (turn.serverMs ?? 0) / top);
  const children = [bar];
  if (turn.pageMs !== null) {
    const dot = el("i", { class: "page" });
    setVariable(dot, "--height", turn.pageMs / top);
    children.push(dot);
  }
  return el("span", { class: "column", title: `server ${formatMs(turn.serverMs)}, this page ${formatMs(turn.pageMs)}` }, ...children);
}

/** A trace counts deadlines from the end of speech (or the request), a plan from the moment it was made. */
function dueText(response) {
  const traced = response.timeline?.plan?.first_deadline_ms;
  if (typeof traced === "number") return `at ${formatMs(traced)}`;
  const planned = response.plan?.first_deadline_ms;
  if (typeof planned !== "number") return "no deadline";
  if (response.steps.some((step) => step.phase === "rest")) return "past";
  return planned > 0 ? `in ${formatMs(planned)}` : "now";
}

export class PlanView {
  #list;
  #reason;

  constructor(list, reason) {
    this.#list = list;
    this.#reason = reason;
  }

  draw(model) {
    const response = [...model.responses.values()].findLast((candidate) => candidate.plan !== null || candidate.timeline?.plan);
    if (response === undefined) return;
    const plan = response.plan ?? response.timeline.plan;
    const used = (phase) => response.steps.filter((step) => step.phase === phase).length;
    const batch = Math.max(1, ...response.steps.map((step) => step.batch));
    const rows = [
      ["Canvas", `${plan.canvas_width} tokens`],
      ["Steps, first clause", `${used("first")} of ${response.grantedFirst ?? plan.granted_first}`],
      ["Steps, rest", `${used("rest")} of ${response.grantedRest ?? plan.granted_rest}`],
      ["Commit above", `${Math.round(plan.threshold * 100)} % sure`],
      ["First clause due", dueText(response)],
      ["Shared forward", batch === 1 ? "alone" : `with ${batch - 1} more`],
    ];
    this.#list.replaceChildren(...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
    setText(this.#reason, response.planReason);
  }
}
