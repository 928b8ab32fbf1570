/**
 * AudioWorklet at the microphone: 40 ms messages of PCM16 at 24 kHz.
 *
 * Out: {pcm: Uint8Array (1920 bytes), time, rms}, time of the first sample on the context's clock.
 */
import { pcm16FromFloat, rms } from "./pcm.js";
import { Resampler } from "./resampler.js";

const WIRE_RATE_HZ = 24_000;
const MESSAGE_SAMPLES = 960;

class CaptureProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, WIRE_RATE_HZ);
    this.pending = new Float32Array(MESSAGE_SAMPLES);
    this.filled = 0;
  }

  process([input]) {
    if (input.length === 0) return true; // nothing is connected
    const samples = this.resampler.push(mixed(input));
    for (let taken = 0; taken < samples.length; ) {
      const count = Math.min(MESSAGE_SAMPLES - this.filled, samples.length - taken);
      this.pending.set(samples.subarray(taken, taken + count), this.filled);
      this.filled += count;
      taken += count;
      if (this.filled === MESSAGE_SAMPLES) this.#send(samples.length - taken, input[0].length);
    }
    return true;
  }

  #send(leftover, blockLength) {
    const pcm = pcm16FromFloat(this.pending);
    const end = currentTime + blockLength / sampleRate - leftover / WIRE_RATE_HZ;
    this.port.postMessage({ pcm, time: end - MESSAGE_SAMPLES / WIRE_RATE_HZ, rms: rms(this.pending) }, [pcm.buffer]);
    this.filled = 0;
  }
}

function mixed(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
}

registerProcessor("voiceagent-capture", CaptureProcessor);
