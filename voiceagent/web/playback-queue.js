/**
 * The loudspeaker's queue: what is waiting, what plays, and how much of each item was really played.
 *
 * Pure: no clock and no audio graph. Positions are samples at the output's rate. Silence written because nothing was there
 * (before the start, in an underrun) never counts as played.
 */

/** An output sample above this is audible: -46 dBFS, the threshold of every "first audible sample" the page reports. */
export const AUDIBLE_LEVEL = 0.005;

/** A gain of -100 dB or less is silence: what would play so waits instead. */
export const SILENT_GAIN = 1e-5;

export class PlaybackQueue {
  /**
   * startSamples: how much must be waiting before an item starts, so that jitter does not tear it.
   * restartSamples: the same after an underrun.
   * patienceSamples: an item starts at the latest this long after its first samples came.
   * fadeSamples: length of the ramp that ends a flush or ducks, so that a barge-in does not click.
   * riseSamples: length of the ramp that restores.
   */
  constructor({ startSamples, restartSamples, patienceSamples, fadeSamples, riseSamples }) {
    this.limits = { startSamples, restartSamples, patienceSamples, fadeSamples, riseSamples };
    this.items = []; // played in order; the first is the current one
    this.tail = new Float32Array(0);
    this.gain = 1;
    this.targetGain = 1;
    this.gainStep = 0;
    this.ducked = false;
    this.paused = false;
  }

  get active() {
    return this.items.length > 0 || this.tail.length > 0;
  }

  /** Item now at the loudspeaker, or null. */
  get current() {
    const head = this.items[0];
    return head === undefined ? null : { itemId: head.itemId, playedSamples: head.played, queuedSamples: head.queued };
  }

  push(itemId, samples) {
    let item = this.items.find((candidate) => candidate.itemId === itemId);
    if (item === undefined) {
      item = { itemId, chunks: [], offset: 0, queued: 0, played: 0, waited: 0, ended: false, running: false, begun: false, audible: false, duckedAt: this.ducked ? 0 : null };
      this.items.push(item);
    }
    if (samples.length > 0) item.chunks.push(samples);
    item.queued += samples.length;
  }

  /** No more samples will come for this item. */
  end(itemId) {
    const item = this.items.find((candidate) => candidate.itemId === itemId);
    if (item !== undefined) item.ended = true;
  }

  /**
   * Turn down to `gain` while somebody may be speaking: what plays so does not count as heard, should it be flushed. Once that is silence everything waits
   * where it is, so that nothing is lost. Only ever down: a louder duck that follows changes nothing.
   */
  duck(gain) {
    for (const item of this.items) item.duckedAt ??= item.played;
    this.paused ||= gain <= SILENT_GAIN;
    const target = this.paused ? 0 : this.ducked ? Math.min(gain, this.targetGain) : gain;
    this.ducked = true;
    if (target !== this.targetGain) this.#ramp(target, this.limits.fadeSamples);
  }

  /** Nothing was said: turn up again, from where it waited. */
  restore() {
    for (const item of this.items) item.duckedAt = null;
    this.ducked = this.paused = false;
    this.#ramp(1, this.limits.riseSamples);
  }

  /** Drop everything. Returns how far each dropped item had been heard, the current one first. What comes next is not ducked. */
  flush() {
    const dropped = this.items.map((item) => ({ itemId: item.itemId, playedSamples: item.duckedAt ?? item.played }));
    const head = this.items[0];
    if (head !== undefined && head.running && this.gain > 0) {
      const ramp = new Float32Array(Math.min(this.limits.fadeSamples, head.queued));
      this.#take(head, ramp, 0);
      for (let i = 0; i < ramp.length; i += 1) ramp[i] *= this.gain * (1 - (i + 1) / (ramp.length + 1));
      this.tail = ramp;
    }
    this.items = [];
    this.ducked = this.paused = false;
    this.gain = this.targetGain = 1;
    return dropped;
  }

  /**
   * Fill `out` completely. Returns what happened, in order:
   * {type: "started" | "audible" | "underrun" | "finished", itemId, offset, playedSamples}, offset within `out`.
   */
  render(out) {
    const events = [];
    let filled = Math.min(this.tail.length, out.length);
    out.set(this.tail.subarray(0, filled));
    this.tail = this.tail.slice(filled);
    out.fill(0, filled);
    while (filled < out.length && this.items.length > 0) {
      const item = this.items[0];
      const note = (type, offset = filled) => events.push({ type, itemId: item.itemId, offset, playedSamples: item.played });
      if (item.queued === 0 && (item.ended || this.items.length > 1)) {
        note("finished");
        this.items.shift();
        continue;
      }
      if (this.paused && (this.gain === 0 || !item.running)) break;
      if (!item.running) {
        if (!this.#mayRun(item)) {
          item.waited += out.length - filled;
          break;
        }
        item.running = true;
        if (!item.begun) note("started");
        item.begun = true;
      }
      if (item.queued === 0) {
        note("underrun");
        item.running = false;
        item.waited = 0;
        break;
      }
      const count = this.#take(item, this.paused ? out.subarray(0, filled + this.#fadeLeft()) : out, filled);
      this.#turn(out.subarray(filled, filled + count));
      if (!item.audible) {
        const at = out.subarray(filled, filled + count).findIndex((value) => Math.abs(value) > AUDIBLE_LEVEL);
        if (at >= 0) {
          item.audible = true;
          events.push({ type: "audible", itemId: item.itemId, offset: filled + at, playedSamples: item.played + at });
        }
      }
      item.played += count;
      filled += count;
    }
    return events;
  }

  /** Samples until the gain has arrived at its target. */
  #fadeLeft() {
    return this.gain === this.targetGain ? 0 : Math.ceil((this.targetGain - this.gain) / this.gainStep);
  }

  #ramp(gain, samples) {
    this.targetGain = gain;
    this.gainStep = (gain - this.gain) / Math.max(samples, 1);
  }

  /** Apply the gain, moving it towards its target. */
  #turn(samples) {
    if (this.gain === 1 && this.targetGain === 1) return;
    for (let i = 0; i < samples.length; i += 1) {
      if (this.gain !== this.targetGain) {
        this.gain += this.gainStep;
        if ((this.gain - this.targetGain) * this.gainStep >= 0) this.gain = this.targetGain;
      }
      samples[i] *= this.gain;
    }
  }

  #mayRun(item) {
    if (item.queued === 0) return false;
    const needed = item.begun ? this.limits.restartSamples : this.limits.startSamples;
    return item.ended || item.queued >= needed || item.waited >= this.limits.patienceSamples;
  }

  /** Move samples of `item` into `out` from `start` on; returns how many. */
  #take(item, out, start) {
    let filled = start;
    while (filled < out.length && item.chunks.length > 0) {
      const chunk = item.chunks[0];
      const count = Math.min(chunk.length - item.offset, out.length - filled);
      out.set(chunk.subarray(item.offset, item.offset + count), filled);
      item.offset += count;
      filled += count;
      if (item.offset === chunk.length) {
        item.chunks.shift();
        item.offset = 0;
      }
    }
    item.queued -= filled - start;
    return filled - start;
  }
}
