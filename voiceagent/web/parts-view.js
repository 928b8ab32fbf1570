/** Which models serve this agent, why they were chosen, and what would be better. */
import { el, setText } from "./dom.js";

const PART_LABELS = { vad: "Speech detection", asr: "Recognition", llm: "Writing", tts: "Voice", endpoint: "End of turn", repair: "Misheard words" };

export class PartsView {
  #list;
  #agent;
  #shape = "";

  constructor(list, agent) {
    this.#list = list;
    this.#agent = agent;
  }

  /** `readiness`: the body of the server's `readyz`. */
  draw({ agent, parts }) {
    if (!Array.isArray(parts) || JSON.stringify(parts) === this.#shape) return;
    this.#shape = JSON.stringify(parts);
    setText(this.#agent, agent?.name ?? "");
    if (agent?.name) document.title = `${agent.name} · voiceagent`;
    this.#list.replaceChildren(...parts.map(detail));
  }
}

function detail({ part, name, reason, upgrade }) {
  const summary = el("summary", {}, el("span", { class: "part" }, PART_LABELS[part] ?? part), el("span", { class: "chosen" }, name));
  const texts = [el("p", {}, reason ?? "")];
  if (upgrade) texts.push(el("p", {}, "Better: ", el("code", {}, upgrade)));
  return el("details", {}, summary, ...texts);
}
