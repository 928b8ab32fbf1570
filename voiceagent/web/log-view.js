/** The conversation as lines of dialogue. Lines are updated in place; the list follows its end unless the reader scrolled up. */
import { el, setText } from "./dom.js";
import { formatMs } from "./timeline.js";

const SPEAKERS = { user: "You", agent: "Agent" };
const NEAR_END_PX = 80;

export class LogView {
  #list;
  #empty;
  #rows = new Map(); // entry id -> {row, speaker, said, aside}

  constructor(list, empty) {
    this.#list = list;
    this.#empty = empty;
  }

  draw(model) {
    const scroller = this.#list;
    const follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END_PX;
    const wanted = new Set(model.entries.map((entry) => entry.id));
    for (const [id, { row }] of this.#rows) {
      if (wanted.has(id)) continue;
      row.remove();
      this.#rows.delete(id);
    }
    let previous = null;
    for (const entry of model.entries) {
      const parts = this.#rows.get(entry.id) ?? this.#add(entry);
      const place = previous === null ? this.#list.firstElementChild : previous.nextElementSibling;
      if (place !== parts.row) this.#list.insertBefore(parts.row, place);
      this.#fill(parts, entry, model);
      previous = parts.row;
    }
    this.#empty.hidden = model.entries.length > 0;
    if (follows) scroller.scrollTop = scroller.scrollHeight;
  }

  #add(entry) {
    const speaker = el("span", { class: "speaker" });
    const said = el("p", { class: "said" });
    const aside = el("span", { class: "aside" });
    const row = el("li", { class: `line line-${entry.role}` }, ...(entry.role === "note" ? [said] : [speaker, said, aside]));
    const parts = { row, speaker, said, aside };
    this.#rows.set(entry.id, parts);
    return parts;
  }

  #fill({ row, speaker, said, aside }, entry, model) {
    if (entry.role === "note") {
      setText(said, entry.text);
      return;
    }
    row.classList.toggle("is-live", !entry.final);
    setText(speaker, SPEAKERS[entry.role]);
    const pieces = saidPieces(entry);
    const shape = JSON.stringify(pieces);
    if (said.dataset.shape !== shape) {
      said.dataset.shape = shape;
      said.replaceChildren(...pieces.map(([kind, text]) => el("span", { class: kind }, text)));
    }
    setText(aside, asideText(entry, model));
  }
}

/** What a line shows, as [class, text] pieces. */
function saidPieces(entry) {
  if (entry.role === "user") {
    if (entry.final && entry.text === "") return [["unheard-note", entry.status === "failed" ? "recognition failed" : "nothing understood"]];
    if (!entry.final && entry.text === "" && entry.unstable === "") return [["waiting", "…"]];
    if (entry.repair !== null) return repairedPieces(entry.repair);
    return [["stable", entry.text], ["unstable", entry.unstable === "" ? "" : ` ${entry.unstable}`]].filter(([, text]) => text !== "");
  }
  const text = entry.text.trim();
  if (entry.heardText === null) return text === "" ? [["waiting", entry.final ? "(no reply)" : "…"]] : [["stable", text]];
  const heard = entry.heardText.trim();
  const rest = text.startsWith(heard) ? text.slice(heard.length) : "";
  return [["stable", heard], ["unheard", rest]].filter(([, piece]) => piece !== "");
}

/**
 * A transcript with its doubtful words, as [class, text] pieces: what was heard and, behind it, what was probably meant. The words that the
 * agent does not go by are struck out, or in brackets where it goes by what it heard.
 */
export function repairedPieces({ heard, used, words }) {
  const told = heard.split(/\s+/);
  const pieces = [];
  let at = 0;
  for (const { first, heard: doubtful, meant } of words) {
    if (first > at) pieces.push(["stable", `${told.slice(at, first).join(" ")} `]);
    if (used) pieces.push(["misheard", doubtful], ["repaired", ` ${meant} `]);
    else pieces.push(["doubtful", doubtful], ["suggested", ` (${meant}?) `]);
    at = first + doubtful.split(/\s+/).length;
  }
  if (at < told.length) pieces.push(["stable", told.slice(at).join(" ")]);
  return pieces;
}

function asideText(entry, model) {
  const notes = [];
  const response = entry.responseId === null ? null : model.response(entry.responseId);
  if (response?.startedBy === "speech" && response.pageMs !== null) notes.push(formatMs(response.pageMs));
  if (entry.heardMs !== null) notes.push(`interrupted after ${formatMs(entry.heardMs)}`);
  else if (entry.status === "failed" && entry.role === "agent") notes.push("failed");
  else if (response?.status === "lost") notes.push("connection lost");
  if (entry.role === "user" && entry.final && !entry.spoken) notes.push("typed");
  return notes.join(" · ");
}
