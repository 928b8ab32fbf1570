"""Smart Turn in its published format, made here: louder sound at the end is a more complete turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import run_async
from tests.voiceagent.standins import ScriptedScorer, silence, tone
from voice_pipelines.adapters.smart_turn import FRAMES, MELS, JointScorer, SmartTurnScorer, _feature_extractor, log_mel
from voiceagent.backends import Samples, TurnSoFar
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


def ask(scorer: SmartTurnScorer, audio: Samples) -> float:
    async def main() -> float:
        try:
            return await scorer.completeness(TurnSoFar("call", (), (), audio))
        finally:
            await scorer.aclose()

    return run_async(main())


def test_the_end_of_the_last_eight_seconds_is_what_is_heard(tmp_path: Path) -> None:
    path = make_smart_turn(tmp_path / "smart-turn-v3.onnx")
    loud = ask(SmartTurnScorer(path), np.concatenate([silence(3.0), noise(1.0)]))
    quiet = ask(SmartTurnScorer(path), np.concatenate([noise(1.0), silence(3.0)]))
    assert 0.0 <= quiet < loud <= 1.0
    long = np.concatenate([tone(5.0), silence(7.0), noise(1.0)])
    assert ask(SmartTurnScorer(path), long) == pytest.approx(ask(SmartTurnScorer(path), long[-8 * 16_000 :]))
    assert SmartTurnScorer(path).info.name == "Smart Turn smart-turn-v3"


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
        SmartTurnScorer(tmp_path / "text.onnx")
    for path in (
        make_smart_turn(tmp_path / "mels.onnx", mels=64),
        make_smart_turn(tmp_path / "name.onnx", name="audio"),
    ):
        with pytest.raises(BackendError, match=r"expected Smart Turn v3: input_features \[1, 80, 800\]"):
            SmartTurnScorer(path)


def test_two_scorers_meet_in_the_middle_and_one_may_fail() -> None:
    turn = TurnSoFar("call", (), (), silence(1.0))
    broken = ScriptedScorer(BackendError("endpoint", "broken"))
    assert run_async(JointScorer([ScriptedScorer(0.9), ScriptedScorer(0.1)]).completeness(turn)) == pytest.approx(0.5)
    assert run_async(JointScorer([ScriptedScorer(0.9), ScriptedScorer(0.9)]).completeness(turn)) == pytest.approx(0.9)
    assert 0.0 < run_async(JointScorer([ScriptedScorer(1.0), ScriptedScorer(0.0)]).completeness(turn)) < 1.0
    assert run_async(JointScorer([broken, ScriptedScorer(0.2)]).completeness(turn)) == pytest.approx(0.2)
    with pytest.raises(BackendError, match="broken"):
        run_async(JointScorer([broken, broken]).completeness(turn))
    with pytest.raises(RuntimeError, match="a bug"):
        run_async(JointScorer([ScriptedScorer(RuntimeError("a bug")), ScriptedScorer(0.2)]).completeness(turn))


def test_who_hears_the_silence_wants_to_be_asked_again_and_makes_company_wait_no_longer(tmp_path: Path) -> None:
    scorer = SmartTurnScorer(make_smart_turn(tmp_path / "st.onnx"))
    assert scorer.ask_again_s == JointScorer([ScriptedScorer(0.9), scorer]).ask_again_s == 0.1
    assert JointScorer([ScriptedScorer(0.9)]).ask_again_s is None
    assert not scorer.weighs_sound and not JointScorer([ScriptedScorer(0.9), scorer]).weighs_sound, "it listens itself"
    run_async(scorer.aclose())
