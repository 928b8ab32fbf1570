/**
 * AudioWorklet at the loudspeaker.
 *
 * In:  {type: "push", itemId, samples (Float32Array, 24 kHz)}, {type: "end", itemId}, {type: "flush", id},
 *      {type: "duck", gain}, {type: "restore"}
 * Out: {type: "started" | "audible" | "underrun" | "finished", itemId, time, playedMs}, time on the context's clock;
 *      {type: "progress", itemId, playedMs} about every 200 ms; {type: "flushed", id, items: [{itemId, playedMs}]}
 */
import { PlaybackQueue } from "./playback-queue.js";
import { Resampler } from "./resampler.js";

const WIRE_RATE_HZ = 24_000;
const PROGRESS_S = 0.2;

class PlaybackProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.queue = new PlaybackQueue({
      startSamples: Math.round(0.06 * sampleRate),
      restartSamples: Math.round(0.06 * sampleRate),
      patienceSamples: Math.round(0.12 * sampleRate),
      fadeSamples: Math.round(0.005 * sampleRate),
      riseSamples: Math.round(0.06 * sampleRate),
    });
    this.resamplers = new Map();
    this.reportedAt = 0;
    this.port.onmessage = ({ data }) => this.#receive(data);
  }

  #receive(message) {
    if (message.type === "push") {
      this.queue.push(message.itemId, this.#resampler(message.itemId).push(message.samples));
    } else if (message.type === "end") {
      if (this.resamplers.has(message.itemId)) this.queue.push(message.itemId, this.#resampler(message.itemId).finish());
      this.resamplers.delete(message.itemId);
      this.queue.end(message.itemId);
    } else if (message.type === "duck") {
      this.queue.duck(message.gain);
    } else if (message.type === "restore") {
      this.queue.restore();
    } else if (message.type === "flush") {
      this.resamplers.clear();
      const items = this.queue.flush().map(({ itemId, playedSamples }) => ({ itemId, playedMs: milliseconds(playedSamples) }));
      this.port.postMessage({ type: "flushed", id: message.id, items });
    }
  }

  #resampler(itemId) {
    if (!this.resamplers.has(itemId)) this.resamplers.set(itemId, new Resampler(WIRE_RATE_HZ, sampleRate));
    return this.resamplers.get(itemId);
  }

  process(_inputs, [output]) {
    const [first, ...others] = output;
    for (const { type, itemId, offset, playedSamples } of this.queue.render(first)) {
      this.port.postMessage({ type, itemId, time: currentTime + offset / sampleRate, playedMs: milliseconds(playedSamples) });
    }
    for (const channel of others) channel.set(first);
    const current = this.queue.current;
    if (current !== null && current.playedSamples > 0 && currentTime - this.reportedAt >= PROGRESS_S) {
      this.reportedAt = currentTime;
      this.port.postMessage({ type: "progress", itemId: current.itemId, playedMs: milliseconds(current.playedSamples) });
    }
    return true;
  }
}

function milliseconds(samples) {
  return (1000 * samples) / sampleRate;
}

registerProcessor("voiceagent-playback", PlaybackProcessor);
