"""How recognition and turn ends do for agents that are not the café: a few small vocabularies (`own_agents.toml`), spoken by made voices.

    python benchmarks/own_agents.py --save benchmarks/results/own-agents.json

Each sentence is spoken whole by every voice, and its first word, two, three and so on by one voice each, as if the caller paused there. PocketSphinx hears it with the agent's vocabulary, the turn-end
model judges it with and without the agent's phrases, and the silence that this asks for is what is waited at an end; within a sentence, the share of pauses that last longer is
what is cut off. The sound of the voice is not weighed. What is made stands for nothing but itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from asr import BLOCK_SAMPLES, decoder_for, plain_words
from measuring import about, percentile
from pauses import pcm

from voice_pipelines.adapters.espeak import EspeakSynthesizer, EspeakVoice
from voice_pipelines.adapters.turn_words import SURELY_MISHEARD, alone
from voice_pipelines.asr.confidence import confidence
from voice_pipelines.asr.decoder import SphinxDecoder
from voice_pipelines.asr.vocabulary import Vocabulary
from voice_pipelines.turn_end.model import TurnEndModel
from voice_pipelines.turn_end.phrases import PhraseEnds
from voiceagent.backends import INPUT_RATE_HZ, Samples
from voiceagent.endpoint import EndpointSettings, Evidence, longer_pauses, wanted_s
from voiceagent.endpoint_words import is_answer
from voiceagent.transcript import word_errors

ROOT = Path(__file__).parent.parent
VOICES = (("en-us+f3", 165), ("en-us+m3", 150), ("en-gb-scotland", 170), ("en-us+m7", 180))
"""With their words per minute."""
ASKED = "How can I help you?"
EDGE_S, NOISE = 0.25, 3e-4
"""Silence around what is said, and the noise under all of it: a recogniser's first word needs both."""
MOST_ERRORS = 1 / 3
"""Word error rate up to which a sentence was heard right."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One sentence, or its beginning, as the recogniser has it."""

    text: str
    errors: float
    """Word error rate, at most 1."""
    confidence: float | None


async def spoken(text: str, voices: Mapping[str, EspeakSynthesizer], voice: str) -> Samples:
    """At the recogniser's rate, half as loud as the voice has it."""
    synthesizer = voices[voice]
    sound = np.concatenate([chunk async for chunk in synthesizer.speak(text)])
    sound = soxr.resample(sound, synthesizer.rate_hz, INPUT_RATE_HZ)
    edge = np.zeros(round(EDGE_S * INPUT_RATE_HZ), np.float32)
    whole = 0.5 * np.concatenate([edge, sound, edge])
    return (whole + NOISE * np.random.default_rng(1).standard_normal(len(whole))).astype(np.float32)


def hear(decoder: SphinxDecoder, said: str, sound: Samples) -> Heard:
    audio = pcm(sound)
    decoder.start()
    for start in range(0, len(audio), 2 * BLOCK_SAMPLES):
        decoder.feed(audio[start : start + 2 * BLOCK_SAMPLES])
    found = decoder.finish()
    errors = min(word_errors(plain_words(said), plain_words(found.text)).rate, 1.0)
    return Heard(found.text, errors, confidence(found.spoken))


def waited_s(heard: Heard, model: TurnEndModel, phrases: PhraseEnds | None) -> float:
    """The silence that is asked for behind these words; of none, as where nobody has looked at them."""
    settings = EndpointSettings()
    if not heard.text:
        return settings.silence_s
    ends = None if phrases is None else phrases.share(heard.text)
    complete = alone(model.completeness(heard.text, ASKED), heard.text, ASKED, None, heard.confidence, ends)
    evidence = Evidence(complete, stable_s=1.0, is_answer=is_answer(heard.text, ASKED))
    return min(wanted_s(evidence, settings), settings.max_silence_s)


def recognised(heard: Iterable[Heard]) -> dict[str, object]:
    """How well, and how sure the recogniser was of what it heard right and of the rest."""
    found = list(heard)
    parts = {
        name: [each for each in found if (each.errors <= MOST_ERRORS) is right]
        for name, right in (("right", True), ("misheard", False))
    }
    return {
        "sentences": len(found),
        "word error rate": round(statistics.fmean(each.errors for each in found), 3) if found else None,
        **{name: len(part) for name, part in parts.items()},
        **{
            f"{name}, surely misheard": sum((each.confidence or 0.0) < SURELY_MISHEARD for each in part)
            for name, part in parts.items()
        },
    }


async def measure(
    agent: Mapping[str, Any], cache: Path, voices: Mapping[str, EspeakSynthesizer], model: TurnEndModel
) -> tuple[dict[str, object], list[Heard], list[Heard]]:
    """Its results, and what was heard inside and beside the phrases."""
    vocabulary = Vocabulary.from_table(agent["vocabulary"])
    decoder, _ = decoder_for(vocabulary, cache)
    names = list(voices)
    inside, beside = [
        [hear(decoder, said, await spoken(said, voices, name)) for said in agent[kind] for name in names]
        for kind in ("inside", "beside")
    ]
    begun = []
    for said in agent["inside"]:
        words = said.split()
        for count in range(1, len(words)):
            part = " ".join(words[:count])
            begun.append(hear(decoder, part, await spoken(part, voices, names[count % len(names)])))
    results: dict[str, object] = {"inside": recognised(inside), "beside": recognised(beside)}
    for name, phrases in (("turn ends", None), ("turn ends, with phrases", PhraseEnds(vocabulary.grammar))):
        waited = [waited_s(each, model, phrases) for each in inside]
        cut = [longer_pauses(waited_s(each, model, phrases)) for each in begun]
        results[name] = {
            "mean_wait_s": round(statistics.fmean(waited), 3),
            "p90_wait_s": round(percentile(waited, 0.9), 3),
            "cut_off_per_pause": round(statistics.fmean(cut), 3),
            "ends": len(waited),
            "pauses": len(cut),
        }
    return results, inside, beside


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=Path, default=Path(__file__).with_suffix(".toml"), help="TOML file of agents")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "own-agents", help="folder for language models")
    parser.add_argument("--save", type=Path, help="file for the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = TurnEndModel.load()
    voices = {name: EspeakSynthesizer(EspeakVoice(name, words_per_minute=pace)) for name, pace in VOICES}
    agents: dict[str, dict[str, object]] = {}
    inside: list[Heard] = []
    beside: list[Heard] = []
    for name, agent in tomllib.loads(options.agents.read_text("utf-8")).items():
        agents[name], *heard = await measure(agent, options.cache, voices, model)
        inside += heard[0]
        beside += heard[1]
        print(name, json.dumps(agents[name]), flush=True)
    everybody = {"inside": recognised(inside), "beside": recognised(beside)}
    print("all", json.dumps(everybody))
    if options.save is not None:
        results = {"machine": about(torch.device("cpu")), "all": everybody, "agents": agents}
        options.save.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    await asyncio.gather(*(voice.aclose() for voice in voices.values()))


if __name__ == "__main__":
    asyncio.run(main())
