"""Smart Turn in its published format, made here: louder sound at the end is a more complete turn."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import run_async
from tests.voiceagent.standins import silence, tone
from voice_pipelines.adapters.smart_turn import (
    BESIDE_SENSE,
    BESIDE_STRANGE,
    FRAMES,
    MELS,
    SmartTurn,
    SmartTurnScorer,
    _feature_extractor,
    log_mel,
)
from voice_pipelines.adapters.turn_words import TurnWordsScorer, alone
from voice_pipelines.turn_end.odds import Heard, beside, log_odds
from voiceagent.backends import PromptTurn, Samples, TurnSoFar
from voiceagent.errors import BackendError


def make_smart_turn(path: Path, *, mels: int = MELS, name: str = "input_features") -> Path:
    """The sigmoid of the mean of the last 0.2 s of features, as [1, 1]."""
    constants = {
        "from": np.array([FRAMES - 20], np.int64),
        "to": np.array([FRAMES], np.int64),
        "axis": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Slice", [name, "from", "to", "axis"], ["end"]),
        helper.make_node("ReduceMean", ["end"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Sigmoid", ["mean"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "one"], ["probability"]),
    ]
    constants["one"] = np.array([1], np.int64)
    graph = helper.make_graph(
        nodes,
        "smart-turn",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", mels, FRAMES])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def noise(duration_s: float) -> Samples:
    return (0.1 * np.random.default_rng(0).standard_normal(round(duration_s * 16_000))).astype(np.float32)


def hear(ear: SmartTurn, voice: Samples) -> Heard | None:
    async def main() -> Heard | None:
        try:
            return await ear.hear(voice)
        finally:
            await ear.aclose()

    return run_async(main())


def told(path: Path, voice: Samples) -> float:
    heard = hear(SmartTurn(path), voice)
    assert heard is not None
    return heard.beside_sense


def test_the_end_of_the_last_eight_seconds_is_what_is_heard(tmp_path: Path) -> None:
    path = make_smart_turn(tmp_path / "smart-turn-v3.onnx")
    loud = told(path, np.concatenate([silence(3.0), noise(1.0)]))
    quiet = told(path, np.concatenate([noise(1.0), silence(3.0)]))
    assert 0.0 <= quiet < loud <= 1.0
    long = np.concatenate([tone(5.0), silence(7.0), noise(1.0)])
    assert told(path, long) == pytest.approx(told(path, long[-8 * 16_000 :]))
    assert SmartTurn(path).info.name == "Smart Turn smart-turn-v3"


def test_what_it_says_is_worth_less_than_it_says_and_least_beside_words_that_make_no_sense(tmp_path: Path) -> None:
    path = make_smart_turn(tmp_path / "st.onnx")
    for voice in (noise(2.0), np.concatenate([noise(1.0), silence(2.0)])):
        ear = SmartTurn(path)
        own = log_odds(ear.probability(voice))
        heard = hear(ear, voice)
        assert heard is not None and heard.beside_strange is not None
        for worth, (times, plus) in ((heard.beside_sense, BESIDE_SENSE), (heard.beside_strange, BESIDE_STRANGE)):
            assert log_odds(worth) == pytest.approx(times * own + plus)
            assert abs(times) < 1, "it is too sure of itself"
    assert BESIDE_STRANGE[0] < BESIDE_SENSE[0]


def test_where_there_is_no_voice_to_hear_or_it_fails_the_words_judge_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear = SmartTurn(make_smart_turn(tmp_path / "st.onnx"))
    scorer, deaf = TurnWordsScorer(ear=ear), TurnWordsScorer()
    assert (scorer.hears_voice, scorer.weighs_sound) == (True, False) and (deaf.hears_voice, deaf.weighs_sound) == (
        False,
        True,
    )
    turns = (PromptTurn("agent", "What can I get you?"), PromptTurn("user", "i would like a large mocha"))

    def call(voice: Samples, sound: float | None = None) -> TurnSoFar:
        return TurnSoFar("call", turns, (), voice, sound)

    async def main() -> None:
        words = await deaf.completeness(call(silence(0.0)))
        assert await scorer.completeness(call(silence(0.0))) == words
        heard = await ear.hear(noise(2.0))
        assert heard is not None
        with_voice = await scorer.completeness(call(noise(2.0)))
        assert with_voice == pytest.approx(beside(words, heard.beside_sense)) != words
        assert with_voice == pytest.approx(alone(deaf.taught(call(noise(2.0))), turns[1].text, turns[0].text, heard))
        assert await deaf.completeness(call(noise(2.0), heard.beside_sense)) == with_voice
        assert not caplog.records

        def broken(*_: object) -> float:
            raise RuntimeError("no memory")

        monkeypatch.setattr("voice_pipelines.adapters.smart_turn.log_mel", broken)
        assert await scorer.completeness(call(noise(2.0))) == words
        assert "a voice was not heard: endpoint: onnxruntime failed: no memory" in caplog.text
        await scorer.aclose()

    run_async(main())


def test_short_answers_are_left_to_their_words(tmp_path: Path) -> None:
    ear = SmartTurn(make_smart_turn(tmp_path / "st.onnx"))
    scorer = TurnWordsScorer(ear=ear)

    async def main() -> None:
        turns = (PromptTurn("agent", "What size?"), PromptTurn("user", "large"))
        voices = [await scorer.completeness(TurnSoFar("call", turns, (), voice)) for voice in (noise(1.0), noise(0.0))]
        assert voices[0] == voices[1]
        await scorer.aclose()

    run_async(main())


def test_where_nobody_knows_the_language_it_judges_alone_and_without_a_voice_not_at_all(tmp_path: Path) -> None:
    async def main() -> None:
        scorer = SmartTurnScorer(SmartTurn(make_smart_turn(tmp_path / "st.onnx")))
        assert scorer.hears_voice and not scorer.weighs_sound
        turns = (PromptTurn("user", "einen kaffee bitte"),)
        loud, quiet, nothing = [
            await scorer.judge(TurnSoFar("call", turns, (), voice))
            for voice in (noise(1.0), np.concatenate([noise(1.0), silence(2.0)]), silence(0.0))
        ]
        assert loud is not None and quiet is not None and quiet.completeness < loud.completeness
        assert nothing is None
        await scorer.aclose()

    run_async(main())


@pytest.mark.parametrize("duration_s", [0.3, 8.0, 9.5])
def test_the_features_are_whisper_s(duration_s: float) -> None:
    from transformers import WhisperFeatureExtractor

    audio = noise(duration_s)
    padded = np.concatenate([silence(max(8.0 - duration_s, 0.0)), audio])[-8 * 16_000 :]
    expected = WhisperFeatureExtractor(chunk_length=8)(
        padded, sampling_rate=16_000, padding="max_length", max_length=8 * 16_000, truncation=True, do_normalize=True
    ).input_features[0]
    found = log_mel(audio, _feature_extractor())
    assert found.shape == (MELS, FRAMES) and found.dtype == np.float32
    # One computes in float64, the other in float32; silence is a floor that the two reach from different sides.
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_what_is_no_smart_turn_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(BackendError, match="cannot load .*text.onnx"):
        SmartTurn(tmp_path / "text.onnx")
    for path in (
        make_smart_turn(tmp_path / "mels.onnx", mels=64),
        make_smart_turn(tmp_path / "name.onnx", name="audio"),
    ):
        with pytest.raises(BackendError, match=r"expected Smart Turn v3: input_features \[1, 80, 800\]"):
            SmartTurn(path)


def test_words_do_not_wait_for_an_ear_that_is_busy_and_what_nobody_waits_for_is_not_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ear = SmartTurn(make_smart_turn(tmp_path / "st.onnx"))
    scorer, deaf = TurnWordsScorer(ear=ear, hears_within_s=0.01), TurnWordsScorer()
    let_go, began = threading.Event(), list[int]()

    def slow(voice: Samples) -> float:
        began.append(voice.size)
        let_go.wait(30.0)
        return 0.9

    monkeypatch.setattr(ear, "probability", slow)
    turns = (PromptTurn("agent", "What can I get you?"), PromptTurn("user", "i would like a large mocha"))

    async def main() -> None:
        calls = [TurnSoFar(f"call {number}", turns, (), noise(1.0)) for number in range(5)]
        answers = await asyncio.gather(*map(scorer.completeness, calls))
        assert set(answers) == {await deaf.completeness(TurnSoFar("call", turns, (), silence(0.0)))}
        let_go.set()
        await scorer.aclose()

    run_async(main())
    assert len(began) == 1, "the others were taken back"
