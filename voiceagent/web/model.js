/**
 * What the page knows about the conversation: server events in, a state to draw out. Pure; no DOM, no socket, no clock.
 *
 * Entries are the lines of the conversation, in order:
 *   {id, role: "user" | "agent" | "note", text, unstable, committed, final, spoken, responseId, status, heardMs, heardText}
 * Responses are what one reply went through:
 *   {id, itemId, startedBy: "speech" | "text" | "agent", speechEndMs, plan, planReason, grantedFirst, grantedRest,
 *    steps, timeline, status, reason, pageMs}
 */

const KEPT_ENTRIES = 300;
const KEPT_RESPONSES = 40;
const NOTE_CHARS = 160;

/** The parts of the state that `apply` may report as changed, so that only those are drawn again. */
export const ALL_PARTS = Object.freeze(["log", "canvas", "timeline", "plan", "phase", "session"]);

export class Model {
  #notes = 0;

  constructor() {
    this.session = null;
    this.entries = [];
    this.responses = new Map(); // in order of creation
    this.callerSpeaking = false;
    this.awaitingReply = false;
    this.activeResponseId = null;
    this.lastSpeech = null; // {itemId, endMs} of the newest utterance that has no response yet
    this.typed = false; // the next response answers a typed message
  }

  response(id) {
    return this.responses.get(id) ?? null;
  }

  responseOfItem(itemId) {
    return [...this.responses.values()].find((response) => response.itemId === itemId) ?? null;
  }

  entry(id) {
    return this.entries.find((entry) => entry.id === id) ?? null;
  }

  /** The connection is new: nothing of the old one goes on, what was said stays on the page. */
  resetConnection() {
    this.callerSpeaking = false;
    this.awaitingReply = false;
    this.activeResponseId = null;
    this.lastSpeech = null;
    this.typed = false;
    for (const entry of this.entries) {
      if (!entry.final) this.#settle(entry, { status: "incomplete" });
    }
    for (const response of this.responses.values()) {
      if (response.status === "in_progress") response.status = "lost";
    }
    this.entries = this.entries.filter((entry) => entry.text !== "");
  }

  addNote(text) {
    this.#notes += 1;
    this.#addEntry({ id: `note_${this.#notes}`, role: "note", text, final: true });
  }

  /** A message typed by the caller, before the server knows it. */
  addTyped(id, text) {
    this.#addEntry({ id, role: "user", text, final: true, spoken: false });
    this.typed = true;
    this.awaitingReply = true;
  }

  /** Milliseconds from the end of speech to the first audible sample, measured by this page. */
  setPageMs(response, milliseconds) {
    response.pageMs = milliseconds;
  }

  /** Items that give a new connection the memory of the old one: [{role, text}], oldest first. */
  memory(limit) {
    return this.entries
      .filter((entry) => entry.role !== "note" && entry.final)
      .map((entry) => ({ role: entry.role, text: (entry.heardText ?? entry.text).trim() }))
      .filter(({ text }) => text !== "")
      .slice(-limit);
  }

  /** Take in one server event; returns the set of parts that changed. Unknown events change nothing. */
  apply(event) {
    const handler = HANDLERS[event.type];
    return new Set(handler === undefined ? [] : handler(this, event));
  }

  ensureUser(id) {
    return this.entry(id) ?? this.#addEntry({ id, role: "user", spoken: true });
  }

  ensureAgent(id, responseId) {
    return this.entry(id) ?? this.#addEntry({ id, role: "agent", spoken: true, responseId });
  }

  ensureResponse(id) {
    const known = this.responses.get(id);
    if (known !== undefined) return known;
    const startedBy = this.typed ? "text" : this.lastSpeech !== null ? "speech" : "agent";
    const response = {
      id,
      itemId: null,
      startedBy,
      speechEndMs: startedBy === "speech" ? this.lastSpeech.endMs : null,
      plan: null,
      planReason: "",
      grantedFirst: null,
      grantedRest: null,
      steps: [],
      timeline: null,
      status: "in_progress",
      reason: null,
      pageMs: null,
    };
    this.lastSpeech = null;
    this.typed = false;
    this.responses.set(id, response);
    if (this.responses.size > KEPT_RESPONSES) this.responses.delete(this.responses.keys().next().value);
    return response;
  }

  #addEntry(fields) {
    const entry = {
      text: "",
      unstable: "",
      final: false,
      committed: false,
      spoken: false,
      responseId: null,
      status: "in_progress",
      heardMs: null,
      heardText: null,
      repair: null,
      ...fields,
    };
    this.entries.push(entry);
    if (this.entries.length > KEPT_ENTRIES) this.entries.shift();
    return entry;
  }

  #settle(entry, fields) {
    Object.assign(entry, { final: true, unstable: "" }, fields);
  }

  finishUser(itemId, text, status) {
    const entry = this.ensureUser(itemId);
    this.#settle(entry, { text: text.trim(), status });
  }

  appendAgent(event) {
    const entry = this.ensureAgent(event.item_id, event.response_id);
    if (!entry.final) entry.text += event.delta ?? "";
  }

  finishAgentText(event, text) {
    const entry = this.ensureAgent(event.item_id, event.response_id);
    if (typeof text === "string") entry.text = text;
  }

  finishResponse(fields) {
    const response = this.ensureResponse(fields.id);
    response.status = fields.status ?? "completed";
    response.reason = fields.status_details?.reason ?? fields.status_details?.error?.message ?? null;
    if (this.activeResponseId === fields.id) this.activeResponseId = null;
    this.awaitingReply = false;
    const entry = response.itemId === null ? null : this.entry(response.itemId);
    if (entry !== null) this.#settle(entry, { status: response.status });
    return response;
  }
}

const HANDLERS = {
  "session.created": takeSession,
  "session.updated": takeSession,
  "input_audio_buffer.speech_started": (model, event) => {
    model.callerSpeaking = true;
    // A sound that turned out not to be speech left an empty line behind.
    model.entries = model.entries.filter((entry) => entry.role !== "user" || entry.final || entry.committed || entry.text !== "");
    model.ensureUser(event.item_id);
    return ["log", "phase"];
  },
  "input_audio_buffer.speech_stopped": (model, event) => {
    model.callerSpeaking = false;
    model.awaitingReply = true;
    model.lastSpeech = { itemId: event.item_id, endMs: event.audio_end_ms };
    return ["phase"];
  },
  "input_audio_buffer.committed": (model, event) => {
    model.callerSpeaking = false;
    model.ensureUser(event.item_id).committed = true;
    return ["log", "phase"];
  },
  "input_audio_buffer.cleared": (model) => {
    model.callerSpeaking = false;
    return ["phase"];
  },
  "voiceagent.transcript.partial": (model, event) => {
    const entry = model.ensureUser(event.item_id);
    if (entry.final) return [];
    entry.text = event.stable ?? "";
    entry.unstable = event.unstable ?? "";
    return ["log"];
  },
  "conversation.item.input_audio_transcription.completed": (model, event) => {
    model.finishUser(event.item_id, event.transcript ?? "", "completed");
    if ((event.transcript ?? "").trim() === "") {
      // Nothing was understood: the server says nothing, and nobody should wait.
      model.awaitingReply = false;
      model.lastSpeech = null;
    }
    return ["log", "phase"];
  },
  "voiceagent.transcript.repaired": (model, event) => {
    model.ensureUser(event.item_id).repair = { heard: event.heard, used: event.used, words: event.words };
    return ["log"];
  },
  "conversation.item.input_audio_transcription.failed": (model, event) => {
    model.finishUser(event.item_id, "", "failed");
    model.awaitingReply = false;
    model.lastSpeech = null;
    return ["log", "phase"];
  },
  "response.created": (model, event) => {
    model.ensureResponse(event.response.id);
    model.activeResponseId = event.response.id;
    model.awaitingReply = true;
    return ["phase", "canvas", "plan"];
  },
  "response.output_item.added": (model, event) => {
    if (event.item?.type !== "message") return [];
    model.ensureResponse(event.response_id).itemId = event.item.id;
    model.ensureAgent(event.item.id, event.response_id);
    return ["log"];
  },
  "response.output_audio_transcript.delta": appendText,
  "response.output_text.delta": appendText,
  "response.output_audio_transcript.done": (model, event) => {
    model.finishAgentText(event, event.transcript);
    return ["log"];
  },
  "response.output_text.done": (model, event) => {
    model.finishAgentText(event, event.text);
    return ["log"];
  },
  "response.done": (model, event) => {
    model.finishResponse(event.response);
    return ["log", "phase", "canvas", "plan"];
  },
  "conversation.item.truncated": (model, event) => {
    const entry = model.entry(event.item_id);
    if (entry === null) return [];
    entry.heardMs = event.audio_end_ms;
    return ["log"];
  },
  "conversation.item.retrieved": (model, event) => {
    const entry = model.entry(event.item?.id);
    const part = event.item?.content?.[0];
    if (entry === null || entry.role !== "agent" || entry.heardMs === null) return [];
    entry.heardText = part?.transcript ?? part?.text ?? "";
    return ["log"];
  },
  // Calls are items of the conversation, and the server runs its own while the reply waits.
  "conversation.item.done": (model, event) => {
    const note = toolNote(event.item ?? {});
    if (note === null) return [];
    model.addNote(note);
    return ["log"];
  },
  "conversation.item.deleted": (model, event) => {
    model.entries = model.entries.filter((entry) => entry.id !== event.item_id);
    return ["log"];
  },
  "voiceagent.response.plan": (model, event) => {
    const response = model.ensureResponse(event.response_id);
    // A plan counts each phase's steps from the start of that phase.
    response.grantedFirst ??= event.plan.steps_first;
    response.grantedRest = event.plan.steps_rest;
    response.plan = event.plan;
    response.planReason = event.reason ?? "";
    return ["plan"];
  },
  "voiceagent.response.step": (model, event) => {
    model.ensureResponse(event.response_id).steps.push({
      step: event.step,
      phase: event.phase,
      canvas: Array.isArray(event.canvas) ? event.canvas : [],
      forced: event.forced_tokens ?? 0,
      computeMs: event.compute_ms ?? null,
      batch: event.batch ?? 1,
      earlyMs: event.early_ms ?? null,
      kept: event.kept ?? null,
    });
    return ["canvas", "plan"];
  },
  "voiceagent.turn.timeline": (model, event) => {
    const response = model.ensureResponse(event.response_id);
    response.timeline = event.timeline ?? null;
    return ["timeline", "plan", "log"];
  },
};

/** What an item says of a tool, in one line: "tool: book_table (people: 4, day: friday)", or what it answered; null for a message. */
export function toolNote({ type, name, arguments: text, output }) {
  if (type === "function_call") return `tool: ${name}${listed(text)}`;
  if (type !== "function_call_output") return null;
  const told = String(output ?? "").replace(/\s+/g, " ").trim();
  return `tool answered: ${shortened(told) || "nothing"}`;
}

function listed(text) {
  let given;
  try {
    given = Object.entries(JSON.parse(text || "{}"));
  } catch {
    given = [];
  }
  const pairs = given.map(([key, value]) => `${key}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
  return pairs.length === 0 ? "" : ` (${shortened(pairs.join(", "))})`;
}

function shortened(text) {
  return text.length > NOTE_CHARS ? `${text.slice(0, NOTE_CHARS)}…` : text;
}

function takeSession(model, event) {
  model.session = event.session ?? null;
  return ["session", "phase"];
}

function appendText(model, event) {
  model.appendAgent(event);
  return ["log"];
}
