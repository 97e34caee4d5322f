"""Metadata of model files, read back without what wrote it: onnxruntime, zipfile and a bare flatbuffer walk."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ced_edge.labels import labels
from ced_edge.runtime.backends import load_backend
from ced_edge.spec import ModelSpec

onnx = pytest.importorskip("onnx", reason="onnx writes the model files of these tests")
pytest.importorskip("flatbuffers", reason="flatbuffers writes the metadata")
schema: Any = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="it writes the .tflite of these tests")

from export.metadata import BUFFER_ALIGNMENT, add_onnx_metadata, add_tflite_metadata, tflite_metadata  # noqa: E402

SPEC = ModelSpec(width=24, heads=3, depth=2)
SAMPLES = 16
WEIGHTS = np.random.default_rng(1).normal(size=(527, SAMPLES)).astype(np.float32)


def save_onnx(path: Path) -> Path:
    """prob = sigmoid(waveform W), with a property of its own."""
    x = onnx.helper.make_tensor_value_info("waveform", onnx.TensorProto.FLOAT, ["batch", SAMPLES])
    y = onnx.helper.make_tensor_value_info("prob", onnx.TensorProto.FLOAT, ["batch", 527])
    nodes = [
        onnx.helper.make_node("MatMul", ["waveform", "w"], ["z"]),
        onnx.helper.make_node("Sigmoid", ["z"], ["prob"]),
    ]
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [onnx.numpy_helper.from_array(WEIGHTS.T.copy(), "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, {"mine": "1", "labels": "old"})
    onnx.save(model, path)
    return path


def save_tflite(path: Path, scales: list[float] | None = None) -> Path:
    """The same model, written with TFLite's own schema: FULLY_CONNECTED, then LOGISTIC. int8 with `scales`."""
    import flatbuffers

    def tensor(name: str, shape: list[int], buffer: int = 0) -> Any:
        return schema.TensorT(name=name, shape=shape, buffer=buffer)

    weights, stored = tensor("w", [527, SAMPLES], 1), WEIGHTS
    if scales:
        stored = np.rint(WEIGHTS / np.array(scales)[:, None]).astype(np.int8)
        weights.type = schema.TensorType.INT8
        weights.quantization = schema.QuantizationParametersT(scale=scales, zeroPoint=[0] * len(scales))
    options = schema.FullyConnectedOptionsT()
    graph = schema.SubGraphT(
        tensors=[
            tensor("waveform", [1, SAMPLES]),
            weights,
            tensor("z", [1, 527]),
            tensor("prob", [1, 527]),
        ],
        inputs=[0],
        outputs=[3],
        operators=[
            schema.OperatorT(
                opcodeIndex=0,
                inputs=[0, 1, -1],
                outputs=[2],
                builtinOptions=options,
                builtinOptionsType=schema.BuiltinOptions.FullyConnectedOptions,
            ),
            schema.OperatorT(opcodeIndex=1, inputs=[2], outputs=[3]),
        ],
    )
    codes = [schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.LOGISTIC]
    model = schema.ModelT(
        version=3,
        operatorCodes=[schema.OperatorCodeT(builtinCode=c, deprecatedBuiltinCode=c, version=1) for c in codes],
        subgraphs=[graph],
        buffers=[
            schema.BufferT(),
            schema.BufferT(data=stored.view(np.uint8).ravel()),
            schema.BufferT(data=np.frombuffer(b"1.2", np.uint8)),
        ],
        metadata=[schema.MetadataT(name="min_runtime_version", buffer=2)],
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(builder.Output())
    return path


class Table:
    """A flatbuffer table, walked by hand (https://flatbuffers.dev/internals)."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    @classmethod
    def root(cls, data: bytes) -> Table:
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def place(self, slot: int) -> int:
        """Where a field lies; 0 when it is not there."""
        vtable = self.at - struct.unpack_from("<i", self.data, self.at)[0]
        size = struct.unpack_from("<H", self.data, vtable)[0]
        offset = struct.unpack_from("<H", self.data, vtable + 4 + 2 * slot)[0] if 4 + 2 * slot < size else 0
        return self.at + offset if offset else 0

    def number(self, slot: int, kind: str, default: int = 0) -> int:
        place = self.place(slot)
        return int(struct.unpack_from(kind, self.data, place)[0]) if place else default

    def follow(self, at: int) -> int:
        return at + struct.unpack_from("<I", self.data, at)[0]

    def child(self, slot: int) -> Table:
        return Table(self.data, self.follow(self.place(slot)))

    def children(self, slot: int) -> list[Table]:
        at = self.follow(self.place(slot))
        count = struct.unpack_from("<I", self.data, at)[0]
        return [Table(self.data, self.follow(at + 4 + 4 * i)) for i in range(count)]

    def bytes(self, slot: int) -> tuple[int, bytes]:
        """Where a vector of bytes, or a string, begins, and what it holds."""
        at = self.follow(self.place(slot))
        count = struct.unpack_from("<I", self.data, at)[0]
        return at + 4, self.data[at + 4 : at + 4 + count]


def entries(path: Path) -> dict[str, list[bytes]]:
    """The metadata of a .tflite file by name."""
    model = Table.root(path.read_bytes())
    buffers = model.children(4)
    found: dict[str, list[bytes]] = {}
    for entry in model.children(6):
        found.setdefault(entry.bytes(0)[1].decode(), []).append(buffers[entry.number(1, "<I")].bytes(0)[1])
    return found


def expected(wave: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(1 / (1 + np.exp(-wave @ WEIGHTS.T)))


def test_onnx(tmp_path: Path) -> None:
    path = save_onnx(tmp_path / "m.onnx")
    add_onnx_metadata(path, SPEC, "waveform", 2.5)
    backend = load_backend(path)
    assert json.loads(backend.metadata["labels"]) == [label.name for label in labels()]
    assert json.loads(backend.metadata["mids"])[0] == "/m/09x0r"
    assert ModelSpec.from_dict(json.loads(backend.metadata["spec"])) == SPEC
    assert {k: backend.metadata[k] for k in ("model_type", "input", "window_s", "sample_rate", "mine")} == {
        "model_type": "CED",
        "input": "waveform",
        "window_s": "2.5",
        "sample_rate": "16000",
        "mine": "1",
    }
    wave = np.linspace(-1, 1, SAMPLES, dtype=np.float32)[None]
    np.testing.assert_allclose(backend.run(wave)[0], expected(wave), atol=1e-6)


def test_tflite(tmp_path: Path) -> None:
    path = save_tflite(tmp_path / "m.tflite")
    add_tflite_metadata(path, SPEC, "waveform", SAMPLES / 16_000)
    once = path.read_bytes()
    wave = np.linspace(-1, 1, SAMPLES, dtype=np.float32)[None]
    np.testing.assert_allclose(load_backend(path).run(wave)[0], expected(wave), atol=1e-6)
    with zipfile.ZipFile(path) as archive:
        (packed,) = archive.infolist()
        assert (packed.filename, packed.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
        assert archive.read(packed).decode().splitlines() == [label.name for label in labels()]
    # Nothing of the model's own is lost, and the weights lie where the schema wants them.
    found = entries(path)
    assert found.keys() == {"min_runtime_version", "TFLITE_METADATA"}
    assert found["min_runtime_version"] == [b"1.2"]
    places = [b.bytes(0) for b in Table.root(once).children(4) if b.place(0)]
    assert WEIGHTS.tobytes() in [data for _, data in places]
    assert {at % BUFFER_ALIGNMENT for at, _ in places} == {0}
    # Doing it again changes nothing.
    add_tflite_metadata(path, SPEC, "waveform", SAMPLES / 16_000)
    assert path.read_bytes() == once


@pytest.mark.parametrize(("channels", "version"), [(527, 12), (1, 1)])
def test_weights_with_a_scale_per_channel_are_declared(tmp_path: Path, channels: int, version: int) -> None:
    """Version 12 of FULLY_CONNECTED (TensorFlow's op_version.cc): an older runtime refuses the file."""
    limit = np.abs(WEIGHTS).max(axis=1 if channels > 1 else None, initial=0)
    path = save_tflite(tmp_path / "m.tflite", (np.atleast_1d(limit) / 127).tolist())
    add_tflite_metadata(path, SPEC, "waveform", SAMPLES / 16_000)
    assert [code.number(2, "<i", default=1) for code in Table.root(path.read_bytes()).children(1)] == [version, 1]
    wave = np.linspace(-1, 1, SAMPLES, dtype=np.float32)[None]
    np.testing.assert_allclose(load_backend(path).run(wave)[0], expected(wave), atol=0.03)


def test_tflite_metadata_of_a_waveform_model() -> None:
    data = tflite_metadata(SPEC, "waveform", 10)
    assert data[4:8] == b"M001"
    (graph,) = Table.root(data).children(3)
    (tensor,), (output,) = graph.children(2), graph.children(3)
    assert tensor.bytes(0)[1] == b"waveform"
    assert b"(1, 160000)" in tensor.bytes(1)[1]
    assert tensor.child(3).number(0, "<B") == 4  # AudioProperties
    audio = tensor.child(3).child(1)
    assert (audio.number(0, "<I"), audio.number(1, "<I")) == (16_000, 1)
    (file,) = output.children(6)
    assert file.bytes(0)[1] == b"labels.txt"
    assert file.number(2, "<b") == 2  # TENSOR_AXIS_LABELS


def test_tflite_metadata_of_a_mel_model() -> None:
    (graph,) = Table.root(tflite_metadata(SPEC, "mel", 1)).children(3)
    (tensor,) = graph.children(2)
    assert tensor.bytes(0)[1] == b"mel"
    assert b"(1, 64, 101)" in tensor.bytes(1)[1]
    assert tensor.child(3).number(0, "<B") == 1  # FeatureProperties: no audio
