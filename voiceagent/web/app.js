/**
 * The page: connects the microphone, the loudspeaker, the server and the views.
 *
 * Decisions live in pure modules (model, timeline, playback-queue, media-clock); this file carries them out.
 */
import { AudioIO } from "./audio.js";
import { CanvasView } from "./canvas-view.js";
import { byId, saveFile, setText } from "./dom.js";
import { timelinesJson, transcriptText } from "./exports.js";
import { Grille } from "./grille.js";
import { LogView } from "./log-view.js";
import { MediaClock } from "./media-clock.js";
import { ALL_PARTS, Model } from "./model.js";
import { base64FromBytes, bytesFromBase64, floatFromPcm16, meterFromRms } from "./pcm.js";
import { PartsView } from "./parts-view.js";
import { handshakeProblem, microphoneProblem, serverProblem } from "./problems.js";
import { askReadiness } from "./readiness.js";
import { RealtimeClient } from "./realtime.js";
import { formatMs } from "./timeline.js";
import { HistoryView, PlanView, WaterfallView } from "./timing-views.js";

const KEY_SLOT = "voiceagent.api_key";
const MESSAGE_MS = 40;
const REMEMBERED_ITEMS = 20;
const LOOK_AGAIN_MS = 3_000;
const CALL_ENDED = "call ended";
/** Errors that only say that two messages crossed on the wire. */
const HARMLESS = new Set(["response_cancel_not_active", "item_truncate_invalid_item_id", "item_retrieve_invalid_item_id"]);

/** Its data attributes say what the page is doing, for styles, for tests and for whoever looks for a fault. */
const app = byId("app");
const model = new Model();
const audio = new AudioIO();
const client = new RealtimeClient();
const clock = new MediaClock();

const call = {
  /** The caller wants to talk: the microphone is on, or comes on again when it can. */
  talking: false,
  starting: false,
  muted: false,
  greeted: false,
  sessions: 0,
  playingItem: null,
  dropped: new Set(), // items whose audio was flushed: late samples of theirs are not played
  outbox: [], // what was typed before the connection stood
  connection: "closed",
  target: null,
  microphoneLevel: 0,
};

// --- views ------------------------------------------------------------------------------------------------------------

const canvasView = new CanvasView({
  tokens: byId("draft-tokens"),
  slider: byId("draft-slider"),
  counter: byId("draft-counter"),
  summary: byId("draft-summary"),
  older: byId("draft-older"),
  newer: byId("draft-newer"),
  live: byId("draft-live"),
  which: byId("draft-which"),
});
const logView = new LogView(byId("log"), byId("log-empty"));
const waterfallView = new WaterfallView(byId("waterfall"), byId("waterfall-caption"));
const historyView = new HistoryView(byId("history"), {
  serverP50: byId("server-p50"),
  serverP95: byId("server-p95"),
  pageP50: byId("page-p50"),
  pageP95: byId("page-p95"),
  count: byId("history-count"),
});
const planView = new PlanView(byId("plan"), byId("plan-reason"));
const partsView = new PartsView(byId("parts"), byId("agent-name"));

/** Kind of the problem on show, or null. */
let alertKind = null;
/** Problems that keep the caller from talking and typing. */
const OBSTACLES = new Set(["key", "busy", "gone", "refused"]);

const PHASES = {
  idle: { chip: "Ready", hint: "Press once, then just speak." },
  stopped: { chip: "Not connected", hint: "The message above says why." },
  asking: { chip: "Microphone", hint: "Allow it, if your browser asks." },
  connecting: { chip: "Connecting", hint: "Reaching the server…" },
  waiting: { chip: "Reconnecting", hint: "The page tries again by itself." },
  ready: { chip: "Ready", hint: "Type, or press Talk to speak." },
  listening: { chip: "Listening", hint: "Go ahead, it is your turn." },
  muted: { chip: "Muted", hint: "Your microphone is muted." },
  hearing: { chip: "Hearing you", hint: "A short pause ends your turn." },
  thinking: { chip: "Thinking", hint: "The reply is being written." },
  speaking: { chip: "Speaking", hint: "Speak up to interrupt." },
};

function phase() {
  if (call.connection === "waiting") return "waiting";
  if (call.starting) return "asking";
  if (call.connection === "connecting") return "connecting";
  if (call.playingItem !== null) return "speaking";
  if (!client.isOpen) return OBSTACLES.has(alertKind) ? "stopped" : "idle";
  if (model.callerSpeaking) return "hearing";
  if (model.awaitingReply || model.activeResponseId !== null) return "thinking";
  if (!audio.microphoneOn) return "ready";
  return call.muted ? "muted" : "listening";
}

new Grille(byId("grille"), () => ({
  phase: phase(),
  microphone: call.muted || !audio.microphoneOn ? 0 : call.microphoneLevel,
  voice: meterFromRms(audio.outputRms),
  tokens: model.response(model.activeResponseId)?.steps.at(-1)?.canvas.map((token) => token.state) ?? [],
}));

const pendingParts = new Set();

function redraw(parts) {
  if (parts.length === 0 && pendingParts.size === 0) return;
  if (pendingParts.size === 0) requestAnimationFrame(draw);
  for (const part of parts) pendingParts.add(part);
}

function draw() {
  const parts = new Set(pendingParts);
  pendingParts.clear();
  if (parts.has("log")) logView.draw(model);
  if (parts.has("canvas")) canvasView.draw(model);
  if (parts.has("timeline")) {
    waterfallView.draw(model);
    historyView.draw(model);
  }
  if (parts.has("plan")) planView.draw(model);
  if (parts.has("session")) drawTarget();
  drawPhase();
}

function drawPhase() {
  const name = phase();
  app.dataset.phase = name;
  app.dataset.connection = call.connection;
  setText(byId("chip-text"), PHASES[name].chip);
  setText(byId("hint"), name === "speaking" && !audio.microphoneOn ? "Press Stop reply to interrupt." : PHASES[name].hint);
  setText(byId("talk-label"), call.talking ? "End" : "Talk");
  byId("talk").setAttribute("aria-label", call.talking ? "End the call" : "Start talking");
  byId("talk").classList.toggle("is-on", call.talking);
  byId("mute").disabled = !audio.microphoneOn;
  byId("mute").setAttribute("aria-pressed", String(call.muted));
  byId("stop").disabled = model.activeResponseId === null && call.playingItem === null;
  byId("save-transcript").disabled = model.entries.length === 0;
  byId("save-timelines").disabled = model.responses.size === 0;
}

function drawTarget() {
  const targetMs = call.target ?? model.session?.voiceagent?.target_ms;
  if (typeof targetMs !== "number") return;
  const slider = byId("target");
  if (document.activeElement !== slider || call.target === null) slider.value = String(targetMs);
  setText(byId("target-value"), formatMs(targetMs));
}

function announce(text) {
  const region = byId("announce");
  region.append(Object.assign(document.createElement("p"), { textContent: text }));
  while (region.childElementCount > 20) region.firstElementChild.remove();
}

// --- problems ---------------------------------------------------------------------------------------------------------

/** Show a problem until it is solved, dismissed or replaced. action: {label, run} or null. */
function complain(problem, action = null) {
  alertKind = problem.kind;
  byId("alert").hidden = false;
  byId("alert").dataset.kind = problem.kind;
  setText(byId("alert-text"), problem.text);
  byId("key-form").hidden = problem.kind !== "key";
  redraw(["phase"]);
  const button = byId("alert-action");
  button.hidden = action === null;
  if (action === null) return;
  setText(button, action.label);
  button.onclick = action.run;
}

function settle(...kinds) {
  if (kinds.includes(alertKind)) dismiss();
}

function dismiss() {
  alertKind = null;
  byId("alert").hidden = true;
  redraw(["phase"]);
}

// --- the call ---------------------------------------------------------------------------------------------------------

async function startCall() {
  if (call.starting) return;
  call.starting = true;
  redraw(["phase"]);
  try {
    await audio.open();
    await audio.startMicrophone();
    call.talking = true;
    audio.setMuted(call.muted);
    settle("microphone");
    announce(call.muted ? "The call begins, your microphone is muted" : "The call begins, speak");
  } catch (error) {
    complain(microphoneProblem(error));
  }
  call.starting = false;
  // Without a microphone there is still a conversation to be typed.
  client.connect();
  if (client.isOpen) greet();
  redraw(["phase"]);
}

function endCall() {
  call.talking = false;
  call.greeted = false;
  call.sessions = 0;
  audio.stopMicrophone();
  audio.flush();
  call.playingItem = null;
  client.close();
  model.resetConnection();
  if (model.entries.length > 0 && model.entries.at(-1).text !== CALL_ENDED) model.addNote(CALL_ENDED);
  settle("gone", "busy", "server", "closed");
  announce("Call ended");
  redraw([...ALL_PARTS]);
}

function greet() {
  if (call.greeted || !call.talking || call.outbox.length > 0) return;
  call.greeted = true;
  if (model.entries.every((entry) => entry.role === "note")) client.send("voiceagent.greet");
}

function toggleMute() {
  if (!audio.microphoneOn) return;
  call.muted = !call.muted;
  audio.setMuted(call.muted);
  announce(call.muted ? "Microphone muted" : "Microphone on");
  redraw(["phase"]);
}

async function sendText(text) {
  try {
    await audio.open();
  } catch (error) {
    complain({ kind: "microphone", text: `This browser cannot play audio (${error.message}). The reply is shown as text.` });
  }
  await silence();
  const id = `item_${crypto.getRandomValues(new Uint32Array(3)).join("").slice(0, 24)}`;
  model.addTyped(id, text);
  call.greeted = true;
  redraw(["log", "phase"]);
  if (client.isOpen) deliver(id, text);
  else {
    call.outbox.push({ id, text });
    client.connect();
  }
}

function deliver(id, text) {
  client.send("conversation.item.create", { item: { id, type: "message", role: "user", content: [{ type: "input_text", text }] } });
  client.send("response.create");
}

/** Stop what is being said and written, and tell the server how much was heard. */
async function silence() {
  if (model.activeResponseId !== null) client.send("response.cancel", { response_id: model.activeResponseId });
  await interrupt();
}

/** Empty the loudspeaker and report what was heard of every item that was in it. */
async function interrupt() {
  const active = model.activeResponseId === null ? null : model.response(model.activeResponseId)?.itemId;
  if (active) call.dropped.add(active);
  call.playingItem = null; // Where it is null already, a reply may wait all the same: behind one that has ended, or held.
  const latencyMs = audio.outputLatency * 1000;
  for (const { itemId, playedMs } of await audio.flush()) {
    call.dropped.add(itemId);
    const heardMs = Math.max(0, Math.floor(playedMs - latencyMs));
    client.send("conversation.item.truncate", { item_id: itemId, content_index: 0, audio_end_ms: heardMs });
  }
  redraw(["phase"]);
}

// --- from the server --------------------------------------------------------------------------------------------------

client.addEventListener("status", ({ detail }) => {
  const { status, problem, retryInMs } = detail;
  call.connection = status;
  if (status === "open") settle("gone", "busy", "server", "closed", "key", "refused");
  if (status === "open" || status === "waiting" || status === "refused") model.resetConnection();
  // Who turned the agent down or held it is gone, and with them whoever could bring it back.
  if (status !== "open") audio.restore();
  if (status === "waiting") {
    complain({ ...problem, text: `${problem.text} Trying again in ${formatSeconds(retryInMs)}.` }, { label: "Try now", run: () => client.connect() });
  }
  if (status === "refused") {
    // Nobody listens any more: a microphone that stays on would only look as if.
    call.talking = false;
    audio.stopMicrophone();
    complain(problem, problem.kind === "key" ? null : { label: "Connect again", run: () => client.connect() });
  }
  redraw(["phase", "log"]);
});

client.addEventListener("event", ({ detail: event }) => {
  const changed = model.apply(event);
  REACTIONS[event.type]?.(event);
  redraw([...changed]);
});

const REACTIONS = {
  "session.created": () => {
    clock.reset();
    call.dropped.clear();
    call.sessions += 1;
    app.dataset.sessions = String(call.sessions);
    const session = { type: "realtime", voiceagent: { events: true } };
    if (call.target !== null) session.voiceagent.target_ms = call.target;
    client.send("session.update", { session });
    restoreMemory();
    for (const { id, text } of call.outbox.splice(0)) deliver(id, text);
    greet();
  },
  "input_audio_buffer.speech_started": () => {
    const playsOn = model.session?.audio?.input?.turn_detection?.interrupt_response === false;
    if (playsOn) audio.restore();
    else interrupt();
  },
  // Somebody may be speaking: turned down at once, and held once that lasts, until the server knows.
  "voiceagent.playback.ducked": (event) => audio.duck(event.gain_db),
  "voiceagent.playback.restored": () => audio.restore(),
  "response.created": () => canvasView.follow(),
  "response.output_audio.delta": (event) => {
    if (call.dropped.has(event.item_id)) return;
    audio.play(event.item_id, floatFromPcm16(bytesFromBase64(event.delta)));
  },
  "response.output_audio.done": (event) => audio.endItem(event.item_id),
  "response.done": (event) => {
    for (const item of event.response.output ?? []) audio.endItem(item.id);
    const { itemId, status, reason } = model.response(event.response.id);
    const entry = itemId === null ? null : model.entry(itemId);
    if (entry !== null && entry.text !== "") announce(`Agent: ${entry.text}`);
    if (status === "failed") complain({ kind: "server", text: `The reply failed: ${reason ?? "no reason was given"}` });
  },
  "conversation.item.input_audio_transcription.completed": (event) => {
    if (event.transcript) announce(`You: ${event.transcript}`);
  },
  "conversation.item.input_audio_transcription.failed": (event) => {
    complain({ kind: "server", text: `Your words could not be recognised: ${event.error?.message ?? "no reason was given"}` });
  },
  // What the server kept of an interrupted reply is what the caller heard: ask, so that the page shows the same.
  "conversation.item.truncated": (event) => client.send("conversation.item.retrieve", { item_id: event.item_id }),
  error: (event) => {
    const { error } = event;
    if (HARMLESS.has(error?.code) || error?.event_id?.startsWith("memory_")) return;
    model.awaitingReply = model.activeResponseId !== null;
    complain(serverProblem(error));
  },
};

/** After a lost connection the server starts empty: tell it what was said before. */
function restoreMemory() {
  if (call.sessions === 1) return;
  const unsent = new Set(call.outbox.map(({ text }) => text));
  const items = model.memory(REMEMBERED_ITEMS).filter(({ text }) => !unsent.has(text));
  items.forEach(({ role, text }, i) => {
    const content = role === "user" ? [{ type: "input_text", text }] : [{ type: "output_text", text }];
    const item = { type: "message", role: role === "user" ? "user" : "assistant", content };
    client.send("conversation.item.create", { item }, `memory_${call.sessions}_${i}`);
  });
  model.addNote(items.length > 0 ? "reconnected, the conversation goes on" : "reconnected");
  redraw(["log"]);
}

// --- from the microphone and the loudspeaker --------------------------------------------------------------------------

audio.addEventListener("captured", ({ detail: { pcm, time, rms } }) => {
  call.microphoneLevel = meterFromRms(rms);
  if (model.session === null) return;
  if (client.send("input_audio_buffer.append", { audio: base64FromBytes(pcm) }) !== null) clock.sent(MESSAGE_MS, time);
});

audio.addEventListener("played", ({ detail: { type, itemId, time, playedMs } }) => {
  if (call.dropped.has(itemId)) return;
  if (type === "started") call.playingItem = itemId;
  if (type === "audible") measure(itemId, time);
  if (type === "underrun") app.dataset.underruns = String(Number(app.dataset.underruns ?? 0) + 1);
  if (type === "progress" || type === "finished") {
    const heardMs = type === "finished" ? playedMs : Math.max(0, playedMs - audio.outputLatency * 1000);
    client.send("voiceagent.playout", { item_id: itemId, played_ms: Math.round(heardMs) });
    app.dataset.loudest = Math.max(Number(app.dataset.loudest ?? 0), audio.outputRms).toFixed(4);
  }
  if (type === "finished" && call.playingItem === itemId) call.playingItem = null;
  redraw(["phase"]);
});

/** End of speech (the server's media time, on this page's audio clock) to the first audible sample at the loudspeaker. */
function measure(itemId, time) {
  app.dataset.audibleItems = `${app.dataset.audibleItems ?? ""} ${itemId}`.trim();
  const response = model.responseOfItem(itemId);
  if (response === null || response.speechEndMs === null) return;
  const speechEnd = clock.timeOf(response.speechEndMs);
  if (speechEnd === null) return;
  model.setPageMs(response, (time + audio.outputLatency - speechEnd) * 1000);
  redraw(["timeline", "log"]);
}

audio.addEventListener("lost", () => {
  call.talking = false;
  complain({ kind: "microphone", text: "The microphone went away. Typing still works." }, { label: "Use the microphone again", run: startCall });
  redraw(["phase"]);
});

audio.addEventListener("interrupted", () => {
  if (!call.talking && call.playingItem === null) return;
  complain({ kind: "suspended", text: "The browser paused the audio of this page." }, { label: "Go on", run: () => audio.resume() });
});
audio.addEventListener("resumed", () => settle("suspended"));

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && call.talking && !audio.running) audio.resume();
});

// --- from the caller --------------------------------------------------------------------------------------------------

byId("talk").addEventListener("click", () => (call.talking ? endCall() : startCall()));
byId("mute").addEventListener("click", toggleMute);
byId("stop").addEventListener("click", silence);
byId("alert-close").addEventListener("click", dismiss);

byId("type-form").addEventListener("submit", (submit) => {
  submit.preventDefault();
  const text = byId("text").value.trim();
  if (text === "") return;
  byId("text").value = "";
  sendText(text);
});

byId("key-form").addEventListener("submit", (submit) => {
  submit.preventDefault();
  const key = byId("key").value.trim();
  byId("key").value = "";
  sessionStorage.setItem(KEY_SLOT, key);
  client.setKey(key);
  settle("key");
  client.connect();
});

let targetTimer = null;
byId("target").addEventListener("input", () => {
  call.target = Number(byId("target").value);
  drawTarget();
  clearTimeout(targetTimer);
  // A drag passes many values; the server hears of the one it rests on.
  targetTimer = setTimeout(() => client.send("session.update", { session: { type: "realtime", voiceagent: { target_ms: call.target } } }), 250);
});

byId("save-transcript").addEventListener("click", () => {
  const now = new Date();
  saveFile(`voiceagent-${fileStamp(now)}.txt`, "text/plain", transcriptText(model, now));
});
byId("save-timelines").addEventListener("click", () => {
  const now = new Date();
  saveFile(`voiceagent-${fileStamp(now)}.json`, "application/json", timelinesJson(model, now));
});

/** The button that has the focus only because it was clicked, or null: Space then mutes, as it does elsewhere, and does not hang up. */
let clicked = null;
byId("talk").addEventListener("pointerdown", () => (clicked = byId("talk")));
byId("talk").addEventListener("blur", () => (clicked = null));

document.addEventListener("keydown", (press) => {
  if (press.ctrlKey || press.metaKey || press.altKey) return;
  if (press.key === "Escape") silence();
  const isFree = [document.body, byId("log"), clicked].includes(press.target);
  if (press.key === " " && isFree) {
    press.preventDefault();
    if (press.repeat) return; // a key that is held down is pressed once
    byId("talk").blur();
    if (call.talking) toggleMute();
    else startCall();
  }
});

addEventListener("pagehide", () => client.close());

function formatSeconds(ms) {
  return `${Math.max(1, Math.round(ms / 1000))} s`;
}

function fileStamp(when) {
  return when.toISOString().slice(0, 19).replaceAll(":", "-");
}

// --- the start --------------------------------------------------------------------------------------------------------

/** Ask the server who is at work, until it is ready; say what is in the way before the caller finds out by pressing Talk. */
async function lookAround() {
  const readiness = await askReadiness();
  partsView.draw(readiness.body);
  if (client.isWanted) return;
  const hasKey = sessionStorage.getItem(KEY_SLOT) !== null;
  if (readiness.status === 200 && (!readiness.body.key_required || hasKey)) {
    settle("gone", "busy", "server");
    return;
  }
  const problem = handshakeProblem(readiness, hasKey);
  complain(problem);
  if (problem.kind !== "key") setTimeout(lookAround, LOOK_AGAIN_MS);
}

client.setKey(sessionStorage.getItem(KEY_SLOT));
lookAround();
redraw([...ALL_PARTS]);
