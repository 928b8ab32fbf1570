/**
 * The loudspeaker grille around the talk button: rings of holes that show the microphone while the caller speaks, the draft
 * while the agent thinks (one hole a token: small masked, middling provisional, full committed), and the voice while it speaks.
 */
import { prefersLessMotion } from "./dom.js";

const RINGS = 7;
const INNER = 0.5; // radius of the innermost ring, as a fraction of the outermost
const STEADY_INTERVAL_MS = 250;

/** Holes of the grille in the unit circle, ring by ring from the inside: [{x, y, ring}]. */
export function holes() {
  const result = [];
  for (let ring = 0; ring < RINGS; ring += 1) {
    const radius = INNER + ((1 - INNER) * ring) / (RINGS - 1);
    const count = 30 + ring * 5;
    for (let i = 0; i < count; i += 1) {
      const angle = (2 * Math.PI * (i + (ring % 2) / 2)) / count - Math.PI / 2;
      result.push({ x: radius * Math.cos(angle), y: radius * Math.sin(angle), ring });
    }
  }
  return result;
}

export class Grille {
  #canvas;
  #holes = holes();
  #waves = new Array(RINGS * 3).fill(0);
  #scene;
  #drawnAt = 0;

  /** scene(): {phase, microphone, voice, tokens}, levels in [0, 1], tokens an array of states, asked for at every drawing. */
  constructor(canvas, scene) {
    this.#canvas = canvas;
    this.#scene = scene;
    const tick = (now) => {
      if (!prefersLessMotion() || now - this.#drawnAt >= STEADY_INTERVAL_MS) {
        this.#drawnAt = now;
        this.#draw(now);
      }
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  #draw(now) {
    const canvas = this.#canvas;
    const size = Math.round(canvas.clientWidth * devicePixelRatio);
    if (size === 0) return;
    if (canvas.width !== size) {
      canvas.width = size;
      canvas.height = size;
    }
    const { phase, microphone, voice, tokens } = this.#scene();
    const level = phase === "speaking" ? voice : microphone;
    const steady = prefersLessMotion();
    this.#waves.unshift(level);
    this.#waves.pop();
    const style = getComputedStyle(canvas);
    const colours = { rest: style.getPropertyValue("--hole"), user: style.getPropertyValue("--user"), agent: style.getPropertyValue("--agent") };
    const context = canvas.getContext("2d");
    const middle = size / 2;
    const scale = size * 0.47;
    const dot = size * 0.0135;
    context.clearRect(0, 0, size, size);
    this.#holes.forEach((hole, i) => {
      let weight = 0.32;
      let colour = colours.rest;
      if (phase === "thinking" && tokens.length > 0) {
        const state = tokens[Math.floor((i * tokens.length) / this.#holes.length)];
        weight = { masked: 0.24, provisional: 0.6, committed: 1, pinned: 1 }[state] ?? 0.24;
        if (state !== "masked") colour = colours.agent;
      } else if (phase === "thinking") {
        weight = steady ? 0.5 : 0.42 + 0.2 * Math.sin(now / 260 - hole.ring * 0.9);
      } else {
        const wave = steady ? level : this.#waves[hole.ring * 2];
        const lit = Math.max(0, wave * 1.35 - (hole.ring / RINGS) * 0.75);
        weight += Math.min(0.85, lit);
        if (lit > 0.04) colour = phase === "speaking" ? colours.agent : colours.user;
      }
      context.fillStyle = colour;
      context.beginPath();
      context.arc(middle + hole.x * scale, middle + hole.y * scale, dot * weight, 0, 2 * Math.PI);
      context.fill();
    });
  }
}
