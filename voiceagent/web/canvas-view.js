/**
 * The reply's canvas at one denoising step, and the slider that steps through what happened.
 *
 * Token states differ by shape as well as colour: a masked position is a hatched block, a provisional one is slanted and
 * underlined with dots, a committed one stands upright, a pinned one is framed. Where a draft was begun before the turn was over, what stands of
 * it is underlined, and the line below says when it was written.
 */
import { el, setText, setVariable } from "./dom.js";
import { formatMs } from "./timeline.js";

const STATES = ["masked", "provisional", "committed", "pinned"];

export class CanvasView {
  #parts;
  #responseId = null; // null: follow the newest
  #step = null; // null: follow the last
  #model = null;

  /** parts: {tokens, slider, counter, summary, older, newer, live, which} */
  constructor(parts) {
    this.#parts = parts;
    parts.slider.addEventListener("input", () => {
      const response = this.#shown();
      if (response === null) return;
      this.#responseId = response.id;
      this.#step = Number(parts.slider.value) - 1;
      this.draw(this.#model);
    });
    parts.older.addEventListener("click", () => this.#turn(-1));
    parts.newer.addEventListener("click", () => this.#turn(1));
    parts.live.addEventListener("click", () => this.follow());
  }

  /** Show the newest step of the newest reply again. */
  follow() {
    this.#responseId = null;
    this.#step = null;
    if (this.#model !== null) this.draw(this.#model);
  }

  draw(model) {
    this.#model = model;
    const { tokens, slider, counter, summary, older, newer, live, which } = this.#parts;
    const drafts = drafted(model);
    const response = this.#shown();
    const index = drafts.indexOf(response);
    older.disabled = index <= 0;
    newer.disabled = index < 0 || index >= drafts.length - 1;
    live.hidden = this.#responseId === null;
    slider.disabled = response === null;
    tokens.classList.toggle("is-empty", response === null);
    if (response === null) {
      tokens.replaceChildren(el("span", { class: "hint" }, "The reply is written here all at once: every position starts as a mask and is committed when the model is sure, or when time runs out."));
      setText(counter, "");
      setText(summary, "");
      setText(which, "");
      return;
    }
    const last = response.steps.length - 1;
    const at = Math.min(this.#step ?? last, last);
    const step = response.steps[at];
    slider.max = String(last + 1);
    slider.value = String(at + 1);
    const counts = countStates(step.canvas);
    const description = `${step.kept === null ? `Step ${step.step}` : "What was kept"}: ${counts.committed + counts.pinned} committed, ${counts.provisional} provisional, ${counts.masked} masked`;
    slider.setAttribute("aria-valuetext", description);
    setText(counter, `step ${at + 1} of ${last + 1}`);
    setText(which, drafts.length > 1 ? `reply ${index + 1} of ${drafts.length}` : "");
    setText(summary, stepText(step));
    tokens.setAttribute("aria-label", description);
    this.#drawTokens(tokens, step);
  }

  #drawTokens(container, { canvas, kept }) {
    // Cells are reused from step to step, so that a commit is a change of state that CSS can show.
    const cells = container.querySelectorAll(".token");
    const reuse = cells.length > 0 && cells.length === canvas.length;
    if (!reuse) container.replaceChildren(...canvas.map(() => el("span", { class: "token" })));
    const targets = reuse ? cells : container.querySelectorAll(".token");
    canvas.forEach((token, i) => {
      const cell = targets[i];
      const state = STATES.includes(token.state) ? token.state : "provisional";
      const isEnd = state !== "masked" && (token.text ?? "") === "";
      const name = `token is-${state}${isEnd ? " is-end" : ""}${kept !== null && state !== "masked" && !isEnd ? " is-kept" : ""}`;
      if (cell.className !== name) cell.className = name;
      setText(cell, state === "masked" ? "░" : isEnd ? "·" : i === 0 ? token.text.trimStart() : token.text);
      setVariable(cell, "--confidence", String(Math.max(0, Math.min(1, token.confidence ?? 0))));
    });
  }

  #shown() {
    const drafts = drafted(this.#model);
    return drafts.find((response) => response.id === this.#responseId) ?? drafts.at(-1) ?? null;
  }

  #turn(by) {
    const drafts = drafted(this.#model);
    const target = drafts[drafts.indexOf(this.#shown()) + by];
    if (target === undefined) return;
    this.#responseId = target.id;
    this.#step = null;
    this.draw(this.#model);
  }
}

function drafted(model) {
  return model === null ? [] : [...model.responses.values()].filter((response) => response.steps.length > 0);
}

/** When a canvas was written, and what of it was kept, in the words of the page. */
export function stepText(step) {
  const early = step.earlyMs === null ? "" : `${formatMs(step.earlyMs)} before your turn was over`;
  if (step.kept !== null) {
    const { tokens, asked } = step.kept;
    const share = tokens >= asked ? `all ${tokens} tokens` : `${tokens} of ${asked} tokens`;
    return `other words came, ${share} kept ${early || "when your turn was over"}`;
  }
  const when = early ? `drafted ${early}` : step.phase === "first" ? "before the first clause" : "while the first clause plays";
  return `${when}${step.forced > 0 ? ` · ${step.forced} forced by the deadline` : ""}`;
}

/** How many positions are in each state. */
export function countStates(canvas) {
  const counts = { masked: 0, provisional: 0, committed: 0, pinned: 0 };
  for (const { state } of canvas) if (state in counts) counts[state] += 1;
  return counts;
}
