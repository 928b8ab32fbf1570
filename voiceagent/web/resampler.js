/**
 * Streaming sample-rate conversion: windowed sinc, any pair of rates, same answer however the input is cut.
 *
 * The microphone's context may refuse 24 kHz (Firefox, some Bluetooth headsets); then the worklets convert here.
 */

const ZERO_CROSSINGS = 16; // per side; with the Blackman window the stop band lies below -70 dB
const TABLE_PER_CROSSING = 256;

const KERNEL = (() => {
  const size = ZERO_CROSSINGS * TABLE_PER_CROSSING;
  const table = new Float64Array(size + 2); // the last entries are zero: interpolation may look one past the end
  for (let i = 0; i < size; i += 1) {
    const x = i / TABLE_PER_CROSSING;
    const phase = Math.PI * (x / ZERO_CROSSINGS);
    const window = 0.42 + 0.5 * Math.cos(phase) + 0.08 * Math.cos(2 * phase);
    table[i] = (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x)) * window;
  }
  return table;
})();

export class Resampler {
  /** Rates in hertz, both positive. Equal rates copy. */
  constructor(inputRate, outputRate) {
    if (!(inputRate > 0) || !(outputRate > 0)) throw new RangeError(`rates must be positive: ${inputRate}, ${outputRate}`);
    this.step = inputRate / outputRate;
    // Below 1 the kernel is stretched so that it also removes what the lower rate cannot hold.
    this.cutoff = Math.min(1, outputRate / inputRate) * 0.96;
    this.reach = Math.ceil(ZERO_CROSSINGS / this.cutoff);
    this.identity = inputRate === outputRate;
    this.history = new Float32Array(this.reach); // samples before the first one are silence
    this.first = -this.reach; // stream position of history[0]
    this.produced = 0;
  }

  /** Output samples that the input so far decides; the newest `reach` input samples still wait for their right-hand side. */
  push(samples) {
    if (this.identity) return Float32Array.from(samples);
    const joined = new Float32Array(this.history.length + samples.length);
    joined.set(this.history);
    joined.set(samples, this.history.length);
    const known = this.first + joined.length; // stream position one past the newest sample
    const output = [];
    let position = this.produced * this.step;
    while (Math.floor(position) + this.reach < known) {
      output.push(this.#at(joined, position));
      this.produced += 1;
      position = this.produced * this.step;
    }
    const keepFrom = Math.max(0, Math.floor(position) - this.reach - this.first);
    this.history = joined.slice(keepFrom);
    this.first += keepFrom;
    return Float32Array.from(output);
  }

  /** What is left at the end of the stream. The resampler may not be used afterwards. */
  finish() {
    return this.push(new Float32Array(this.identity ? 0 : this.reach));
  }

  #at(samples, position) {
    const centre = Math.floor(position);
    let sum = 0;
    for (let i = centre - this.reach + 1; i <= centre + this.reach; i += 1) {
      const distance = Math.abs(i - position) * this.cutoff * TABLE_PER_CROSSING;
      const index = Math.floor(distance);
      if (index >= KERNEL.length - 1) continue;
      const weight = KERNEL[index] + (KERNEL[index + 1] - KERNEL[index]) * (distance - index);
      sum += samples[i - this.first] * weight;
    }
    return sum * this.cutoff;
  }
}
