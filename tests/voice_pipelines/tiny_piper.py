"""A voice in Piper's real format, made in a test: silence, then one click per phoneme.

The graph has a VITS export's inputs (input, input_lengths, scales, and sid with several speakers) and its output [1, 1, 1, samples].
How long a sentence lasts can be told from its phonemes, so trimming and order are checkable to the sample.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from piper.phoneme_ids import DEFAULT_PHONEME_ID_MAP

RATE_HZ = 16_000
LEAD_SAMPLES = 3_200
SAMPLES_PER_PHONEME = 160
CLICK = 0.5


def make_tiny_piper(
    folder: Path, *, name: str = "en_US-clicks-medium", speakers: int = 1, rate_hz: int = RATE_HZ
) -> Path:
    """Write NAME.onnx and NAME.onnx.json and return the first.

    Each sentence is 0.2 s of silence and then, per phoneme id, 10 ms that begin with a click; with several speakers the click is
    negative for speaker 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    click = np.zeros((1, SAMPLES_PER_PHONEME), np.float32)
    click[0, 0] = CLICK
    constants = {
        "click": click,
        "zero": np.zeros(1, np.float32),
        "column": np.array([-1, 1], np.int64),
        "flat": np.array([1, 1, 1, -1], np.int64),
        "lead": np.zeros((1, 1, 1, LEAD_SAMPLES), np.float32),
    }
    if speakers > 1:
        constants |= {"two": np.array(2.0, np.float32), "one": np.array(1.0, np.float32)}
    nodes = [
        helper.make_node("Cast", ["input"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["ids", "column"], ["rows"]),
        helper.make_node("Mul", ["rows", "zero"], ["blank"]),
        helper.make_node("Add", ["blank", "click"], ["clicks"]),
        helper.make_node("Reshape", ["clicks", "flat"], ["speech"]),
        helper.make_node("Concat", ["lead", "speech"], ["spoken"], axis=3),
    ]
    inputs = [
        helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", "phonemes"]),
        helper.make_tensor_value_info("input_lengths", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
    ]
    if speakers > 1:
        inputs.append(helper.make_tensor_value_info("sid", TensorProto.INT64, ["batch"]))
        nodes += [
            helper.make_node("Cast", ["sid"], ["who"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["who", "two"], ["double"]),
            helper.make_node("Sub", ["one", "double"], ["sign"]),
            helper.make_node("Mul", ["spoken", "sign"], ["output"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["spoken"], ["output"]))
    graph = helper.make_graph(
        nodes,
        "clicks",
        inputs,
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, 1, "samples"])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.checker.check_model(model)
    path = folder / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    config = {
        "audio": {"sample_rate": rate_hz, "quality": "medium"},
        "espeak": {"voice": "en-us"},
        "inference": {"noise_scale": 0.667, "length_scale": 1.0, "noise_w": 0.8},
        "phoneme_type": "espeak",
        "phoneme_map": {},
        "phoneme_id_map": DEFAULT_PHONEME_ID_MAP,
        "num_symbols": 256,
        "num_speakers": speakers,
        "speaker_id_map": {f"speaker-{i}": i for i in range(speakers)} if speakers > 1 else {},
        "piper_version": "1.0.0",
    }
    (folder / f"{name}.onnx.json").write_text(json.dumps(config), encoding="utf-8")
    return path
