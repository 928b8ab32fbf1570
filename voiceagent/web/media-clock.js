/**
 * From the server's media time to the page's audio clock.
 *
 * The server counts the audio it receives; the page knows when each message was recorded. Messages that could not be sent do not
 * count for the server, so every message sent is an anchor of its own. The last two minutes are kept.
 */
const KEPT_MS = 120_000;

export class MediaClock {
  #anchors = []; // {mediaMs, time}
  #sentMs = 0;

  /** A message of `durationMs` was sent whose first sample was recorded at `time` (seconds on the audio clock). */
  sent(durationMs, time) {
    this.#anchors.push({ mediaMs: this.#sentMs, time });
    this.#sentMs += durationMs;
    while (this.#anchors.length > 1 && this.#anchors[1].mediaMs < this.#sentMs - KEPT_MS) this.#anchors.shift();
  }

  /** A new connection counts from zero. */
  reset() {
    this.#anchors = [];
    this.#sentMs = 0;
  }

  /** When (seconds on the audio clock) the given moment of media time was recorded; null when it is not known. */
  timeOf(mediaMs) {
    const anchor = this.#anchors.findLast((candidate) => candidate.mediaMs <= mediaMs);
    return anchor === undefined || mediaMs > this.#sentMs ? null : anchor.time + (mediaMs - anchor.mediaMs) / 1000;
  }
}
