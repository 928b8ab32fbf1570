/**
 * Conversions between audio samples and what travels in a message.
 *
 * Samples are Float32Array in [-1, 1], mono. PCM16 is signed 16-bit little endian, whatever the machine's own order.
 */

/** Float samples as PCM16 bytes; values outside [-1, 1] are clamped. */
export function pcm16FromFloat(samples) {
  const bytes = new Uint8Array(samples.length * 2);
  const view = new DataView(bytes.buffer);
  for (let i = 0; i < samples.length; i += 1) {
    const value = Math.max(-1, Math.min(1, samples[i]));
    view.setInt16(i * 2, Math.round(value < 0 ? value * 32768 : value * 32767), true);
  }
  return bytes;
}

/** PCM16 bytes as float samples; half a sample at the end is dropped. */
export function floatFromPcm16(bytes) {
  const samples = new Float32Array(bytes.length >> 1);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let i = 0; i < samples.length; i += 1) samples[i] = view.getInt16(i * 2, true) / 32768;
  return samples;
}

export function base64FromBytes(bytes) {
  let binary = "";
  // fromCharCode takes its arguments from the stack: pieces of 32 KiB keep that small.
  for (let i = 0; i < bytes.length; i += 0x8000) binary += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(binary);
}

/** Raises DOMException (InvalidCharacterError) when the text is not base64. */
export function bytesFromBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i += 1) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** Root mean square of the samples; 0 for none. */
export function rms(samples) {
  let sum = 0;
  for (let i = 0; i < samples.length; i += 1) sum += samples[i] * samples[i];
  return samples.length === 0 ? 0 : Math.sqrt(sum / samples.length);
}

/** A level for a meter, 0 at -60 dBFS and below, 1 at 0 dBFS, linear in decibels between. */
export function meterFromRms(value) {
  if (value <= 0) return 0;
  return Math.max(0, Math.min(1, 1 + (20 * Math.log10(value)) / 60));
}
