/**
 * One connection to `v1/realtime` (OpenAI Realtime protocol and the `voiceagent.*` extensions) that comes back by itself.
 *
 * Events (CustomEvent, `detail`):
 *   status  {status: "connecting" | "open" | "waiting" | "refused" | "closed", retryInMs?, problem?: Problem}
 *   event   the server's event, parsed
 */
import { closeProblem, handshakeProblem } from "./problems.js";
import { askReadiness } from "./readiness.js";

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 8_000;
const STABLE_AFTER_MS = 5_000;
/** Problems that another attempt would not solve. */
const FINAL = new Set(["key", "refused", "closed"]);
/** More unsent bytes than this (about ten seconds of audio) mean that the network does not keep up. */
export const BACKLOG_BYTES = 640 * 1024;

/** Delay before the n-th attempt to reconnect (n from 0): doubling up to 8 s, with `jitter` in [0, 1) taking off up to a quarter. */
export function backoffMs(attempt, jitter) {
  return Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** attempt) * (1 - jitter / 4);
}

export class RealtimeClient extends EventTarget {
  #socket = null;
  #attempt = 0;
  #timer = null;
  #wanted = false;
  #key = null;
  #count = 0;

  /** A key is sent as a subprotocol, because a browser cannot add headers to a websocket. */
  setKey(key) {
    this.#key = key || null;
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  get isWanted() {
    return this.#wanted;
  }

  /** Connect, and keep connected until `close`. Does nothing when connected or on the way; a pending retry happens now. */
  connect() {
    this.#wanted = true;
    clearTimeout(this.#timer);
    if (this.#socket !== null) return;
    this.#status({ status: "connecting" });
    let socket;
    try {
      socket = new WebSocket(realtimeUrl(), this.#key === null ? [] : ["realtime", `openai-insecure-api-key.${this.#key}`]);
    } catch {
      // Only the subprotocols can be at fault: the address is our own.
      this.#refuse({ kind: "key", text: "The API key has a character that browsers cannot send. Check it for spaces or accents." });
      return;
    }
    this.#socket = socket;
    let openedAt = null;
    socket.onopen = () => {
      openedAt = performance.now();
      this.#status({ status: "open" });
    };
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = async ({ code, reason }) => {
      if (socket !== this.#socket) return;
      this.#socket = null;
      if (openedAt !== null && performance.now() - openedAt > STABLE_AFTER_MS) this.#attempt = 0;
      const problem = openedAt === null ? handshakeProblem(await askReadiness(), this.#key !== null) : closeProblem(code, reason);
      if (!this.#wanted || this.#socket !== null) return;
      if (FINAL.has(problem.kind)) this.#refuse(problem);
      else this.#retryLater(problem);
    };
  }

  /** Hang up. */
  close() {
    this.#wanted = false;
    this.#attempt = 0;
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(1000);
    this.#status({ status: "closed" });
  }

  /** Send one client event. Returns its event_id, or null when there is no connection or, for audio, when it is too slow. */
  send(type, fields = {}, eventId = null) {
    if (!this.isOpen) return null;
    if (type === "input_audio_buffer.append" && this.#socket.bufferedAmount > BACKLOG_BYTES) return null;
    const id = eventId ?? `evt_${(this.#count += 1)}`;
    this.#socket.send(JSON.stringify({ type, event_id: id, ...fields }));
    return id;
  }

  #receive(data) {
    let event;
    try {
      event = JSON.parse(data);
    } catch {
      return; // not ours to repair: a proxy's message, or a newer server's binary one
    }
    if (typeof event?.type === "string") this.dispatchEvent(new CustomEvent("event", { detail: event }));
  }

  #refuse(problem) {
    this.#wanted = false;
    this.#status({ status: "refused", problem });
  }

  #retryLater(problem) {
    const retryInMs = Math.round(backoffMs(this.#attempt, Math.random()));
    this.#attempt += 1;
    this.#timer = setTimeout(() => this.connect(), retryInMs);
    this.#status({ status: "waiting", retryInMs, problem });
  }

  #status(detail) {
    this.dispatchEvent(new CustomEvent("status", { detail }));
  }
}

function realtimeUrl() {
  const url = new URL("v1/realtime?model=voiceagent&extensions=1", document.baseURI);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url.href;
}
