/**
 * The page's microphone and loudspeaker on one AudioContext, so that both share a clock.
 *
 * Events (CustomEvent, `detail`):
 *   captured   {pcm, time, rms}              40 ms of the microphone, also (as zeros) while muted
 *   played     {type, itemId, time, playedMs} see playback-worklet.js
 *   interrupted / resumed                     the browser suspended or resumed the context by itself
 *   lost                                      the microphone went away
 */
import { rms } from "./pcm.js";

const WIRE_RATE_HZ = 24_000;
const MICROPHONE = {
  audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1, sampleRate: WIRE_RATE_HZ },
};

export class AudioIO extends EventTarget {
  #context = null;
  #player = null;
  #analyser = null;
  #scratch = new Float32Array(512);
  #microphone = null; // {stream, source, capture}
  #flushes = new Map();
  #flushCount = 0;
  #ready = null;

  /** Call inside a user gesture: browsers keep a context silent that was created without one. */
  async open() {
    this.#ready ??= this.#build(WIRE_RATE_HZ);
    try {
      await this.#ready;
    } catch (error) {
      this.#ready = null;
      throw error;
    }
    if (this.#context.state !== "running") await this.#context.resume();
  }

  /** Raises what getUserMedia raises (NotAllowedError, NotFoundError, ...), or TypeError in an insecure context. */
  async startMicrophone() {
    if (this.#microphone !== null) return;
    if (!navigator.mediaDevices?.getUserMedia) throw new TypeError("no mediaDevices: the page is not in a secure context");
    const stream = await navigator.mediaDevices.getUserMedia(MICROPHONE);
    await this.open();
    try {
      this.#connect(stream);
    } catch (error) {
      if (error.name !== "NotSupportedError") throw error;
      // Firefox does not connect a microphone to a context of another rate: use the device's rate and convert in the worklets.
      await this.#context.close();
      this.#ready = this.#build(undefined);
      await this.open();
      this.#connect(stream);
    }
    const [track] = stream.getAudioTracks();
    track.addEventListener("ended", () => {
      this.stopMicrophone();
      this.dispatchEvent(new CustomEvent("lost"));
    });
  }

  stopMicrophone() {
    if (this.#microphone === null) return;
    const { stream, source, capture } = this.#microphone;
    this.#microphone = null;
    capture.port.onmessage = null;
    source.disconnect();
    capture.disconnect();
    for (const track of stream.getTracks()) track.stop();
  }

  get microphoneOn() {
    return this.#microphone !== null;
  }

  /** A muted microphone sends silence, so that the server's media time goes on and a turn can end. */
  setMuted(muted) {
    for (const track of this.#microphone?.stream.getAudioTracks() ?? []) track.enabled = !muted;
  }

  play(itemId, samples) {
    this.#player?.port.postMessage({ type: "push", itemId, samples }, [samples.buffer]);
  }

  endItem(itemId) {
    this.#player?.port.postMessage({ type: "end", itemId });
  }

  /** Turn down by so many decibels (negative) within 5 ms, until `restore` or `flush`; from -100 on everything waits where it is. */
  duck(gainDb) {
    this.#player?.port.postMessage({ type: "duck", gain: 10 ** (gainDb / 20) });
  }

  restore() {
    this.#player?.port.postMessage({ type: "restore" });
  }

  /** Silence within 5 ms. Resolves to [{itemId, playedMs}]: what had been handed to the loudspeaker, not ducked, of each dropped item. */
  flush() {
    if (this.#player === null) return Promise.resolve([]);
    const id = (this.#flushCount += 1);
    this.#player.port.postMessage({ type: "flush", id });
    return new Promise((resolve) => this.#flushes.set(id, resolve));
  }

  /** Seconds between a sample's place on the context's clock and its sound. */
  get outputLatency() {
    return this.#context?.outputLatency || this.#context?.baseLatency || 0;
  }

  /** Level of what the loudspeaker plays at this moment, root mean square of the last 21 ms. */
  get outputRms() {
    if (this.#analyser === null) return 0;
    this.#analyser.getFloatTimeDomainData(this.#scratch);
    return rms(this.#scratch);
  }

  get running() {
    return this.#context?.state === "running";
  }

  resume() {
    return this.#context?.resume();
  }

  async #build(sampleRate) {
    const context = new AudioContext({ sampleRate, latencyHint: "interactive" });
    await Promise.all(["playback-worklet.js", "capture-worklet.js"].map((file) => context.audioWorklet.addModule(new URL(file, import.meta.url))));
    const player = new AudioWorkletNode(context, "voiceagent-playback", { numberOfInputs: 0, outputChannelCount: [1] });
    player.port.onmessage = ({ data }) => this.#fromPlayer(data);
    const analyser = new AnalyserNode(context, { fftSize: 512 });
    player.connect(analyser).connect(context.destination);
    context.onstatechange = () => {
      if (context !== this.#context || context.state === "closed") return;
      this.dispatchEvent(new CustomEvent(context.state === "running" ? "resumed" : "interrupted"));
    };
    this.#context = context;
    this.#player = player;
    this.#analyser = analyser;
  }

  #connect(stream) {
    const source = this.#context.createMediaStreamSource(stream);
    const capture = new AudioWorkletNode(this.#context, "voiceagent-capture", { channelCountMode: "max" });
    capture.port.onmessage = ({ data }) => this.dispatchEvent(new CustomEvent("captured", { detail: data }));
    // Its output is silence, but only nodes that lead to the destination are sure to run.
    source.connect(capture).connect(this.#context.destination);
    this.#microphone = { stream, source, capture };
  }

  #fromPlayer(message) {
    if (message.type === "flushed") {
      this.#flushes.get(message.id)?.(message.items);
      this.#flushes.delete(message.id);
      return;
    }
    this.dispatchEvent(new CustomEvent("played", { detail: message }));
  }
}
