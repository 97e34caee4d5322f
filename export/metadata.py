"""Metadata that other programs need to use a model file: ONNX metadata_props, and TFLite metadata."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np

from ced_edge import __version__
from ced_edge.files import atomic_path
from ced_edge.labels import labels, labels_hash
from ced_edge.runtime.bundle import LABELS_NAME, labels_text
from ced_edge.spec import ModelSpec

ENTRY = "TFLITE_METADATA"
"""Name of the metadata in a .tflite file, by which readers find it."""
BUFFER_ALIGNMENT = 16
"""Alignment in bytes that TFLite's schema demands (`force_align`). flatbuffers' Python code does not keep to it."""

# Numbers of union members and of one enum value in metadata_schema.fbs 1.5.0 (MediaPipe, Apache-2.0).
_FEATURE_PROPERTIES, _AUDIO_PROPERTIES = 1, 4
_TENSOR_AXIS_LABELS = 2
_PARSER_VERSION = "1.3.0"  # the first parser that reads audio properties


def onnx_props(spec: ModelSpec, input: str, window_s: float) -> dict[str, str]:
    """The metadata_props of an .onnx file: everything that a client needs to prepare input and to name the outputs.

    `labels` and `mids` are JSON lists in the order of the outputs, and `spec` is the ModelSpec as JSON. sherpa-onnx
    recognises a CED model by `model_type`.
    """
    return {
        "model_type": "CED",
        "input": input,
        "window_s": repr(float(window_s)),
        "sample_rate": str(spec.frontend.rate_hz),
        "spec": json.dumps(spec.to_dict(), sort_keys=True),
        "labels": json.dumps([label.name for label in labels()], ensure_ascii=False),
        "mids": json.dumps([label.mid for label in labels()]),
        "labels_hash": labels_hash(),
        "producer": f"ced-edge {__version__}",
    }


def add_onnx_metadata(path: Path, spec: ModelSpec, input: str, window_s: float) -> None:
    """Write `onnx_props` into an .onnx file, in place. Properties of other names are kept."""
    import onnx

    model = onnx.load(path)
    # set_model_props removes what it is not given.
    kept = {p.key: p.value for p in model.metadata_props}
    onnx.helper.set_model_props(model, kept | onnx_props(spec, input, window_s))
    with atomic_path(path) as temporary:
        onnx.save(model, temporary)


def add_tflite_metadata(path: Path, spec: ModelSpec, input: str, window_s: float) -> None:
    """Write `tflite_metadata` into a .tflite file, in place, and append labels.txt in a zip archive.

    MediaPipe's AudioClassifier needs both. The file is then a model and a zip archive at once: a flatbuffer is read
    from its beginning, a zip from its end. A second call replaces what the first one wrote.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(path)
    model.metadata = model.metadata or []
    entry = next((m for m in model.metadata if m.name in (ENTRY, ENTRY.encode())), None)
    if entry is None:
        entry = schema.MetadataT(name=ENTRY, buffer=len(model.buffers))
        model.metadata.append(entry)
        model.buffers.append(schema.BufferT())
    # Other entries, such as the smallest runtime version that the converter wrote, stay as they are.
    model.buffers[entry.buffer].data = np.frombuffer(tflite_metadata(spec, input, window_s), np.uint8)
    _declare_versions(model, schema.BuiltinOperator.FULLY_CONNECTED)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.name = _short(tensor.name)
    builder = _AlignedBuilder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    with atomic_path(path) as temporary:
        temporary.write_bytes(builder.Output())
        # Uncompressed and with offsets from the beginning of the whole file, because MediaPipe reads it that way. The
        # date is fixed, so that the same model is the same file.
        with zipfile.ZipFile(temporary, "a", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo(LABELS_NAME, (1980, 1, 1, 0, 0, 0)), labels_text())


def _short(name: bytes) -> bytes:
    """A tensor's name without the types of its modules, which take 50 kB in all."""
    return re.sub(rb"[\w.]*\.([A-Z]\w*?)(?:_(\w+))?(?=[/;])", rb"\2", name).lstrip(b"/")


def _declare_versions(model: Any, fully_connected: int) -> None:
    """Declare FULLY_CONNECTED with a scale per channel as version 12, which ai-edge-quantizer forgets to do.

    A runtime without support for such weights (tflite-runtime 2.14) then refuses the file. Without the version it
    would use the first channel's scale for all channels, and predict the same for every sound.
    """
    for graph in model.subgraphs:
        for op in graph.operators:
            code = model.operatorCodes[op.opcodeIndex]
            if code.builtinCode == fully_connected:
                quantisation = graph.tensors[op.inputs[1]].quantization
                if quantisation is not None and quantisation.scale is not None and len(quantisation.scale) > 1:
                    code.version = max(code.version, 12)


def tflite_metadata(spec: ModelSpec, input: str, window_s: float) -> bytes:
    """The ModelMetadata flatbuffer of a .tflite file: the input's audio properties and the output's label file."""
    b = flatbuffers.Builder(1024)
    waveform, rate_hz = input == "waveform", spec.frontend.rate_hz
    samples = round(window_s * rate_hz)
    if waveform:
        what = f"(1, {samples}) samples in [-1, 1], {rate_hz} Hz mono"
        content = _content(b, _AUDIO_PROPERTIES, _table(b, ints={0: rate_hz, 1: 1}))
    else:
        what = f"(1, {spec.frontend.n_mels}, {spec.frontend.frames(samples)}) log-mel in dB"
        content = _content(b, _FEATURE_PROPERTIES, _table(b))
    inputs = _refs(b, _table(b, {0: b.CreateString(input), 1: b.CreateString(what), 3: content}))

    label_file = _table(b, {0: b.CreateString(LABELS_NAME)}, {2: _TENSOR_AXIS_LABELS})
    features = _content(b, _FEATURE_PROPERTIES, _table(b))
    what = f"(1, {spec.n_classes}) probabilities"
    tensor = {0: b.CreateString("prob"), 1: b.CreateString(what), 3: features, 6: _refs(b, label_file)}
    outputs = _refs(b, _table(b, tensor))

    subgraphs = _refs(b, _table(b, {2: inputs, 3: outputs}))
    about = {
        0: f"CED {spec.name}",
        1: f"Audio tagging, {spec.n_classes} AudioSet classes (arXiv 2308.11957)",
        2: f"ced-edge {__version__}",
        7: _PARSER_VERSION,
    }
    texts = {slot: b.CreateString(text) for slot, text in about.items()}
    b.Finish(_table(b, {**texts, 3: subgraphs}), file_identifier=b"M001")
    return bytes(b.Output())


def _table(
    b: Any,
    refs: Mapping[int, int] | None = None,
    bytes: Mapping[int, int] | None = None,
    ints: Mapping[int, int] | None = None,
) -> int:
    """Write a flatbuffer table and return its offset.

    Each argument is slot -> value: `refs` are offsets of what was written before, `bytes` are uint8, `ints` uint32.
    """
    refs, bytes, ints = refs or {}, bytes or {}, ints or {}
    # A table has room up to its highest slot; slots that are not written read as their default.
    b.StartObject(1 + max([*refs, *bytes, *ints], default=-1))
    for slot, offset in refs.items():
        b.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, number in ints.items():
        b.PrependUint32Slot(slot, number, 0)
    for slot, number in bytes.items():
        b.PrependUint8Slot(slot, number, 0)
    return int(b.EndObject())


def _content(b: Any, kind: int, properties: int) -> int:
    """A Content table: a union of `kind` with the table at the offset `properties`."""
    return _table(b, {1: properties}, {0: kind})


def _refs(b: Any, *offsets: int) -> int:
    """A vector of the tables at these offsets."""
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):  # a flatbuffer is written from its end
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())


class _AlignedBuilder(flatbuffers.Builder):  # type: ignore[misc]
    """A builder that aligns vectors of bytes, which hold the weights, and writes equal vectors of numbers once.

    int8 weights with a scale per channel have a zero point per channel too: 8 bytes each, and all of them 0.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._written: dict[tuple[str, bytes], int] = {}

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:
        return int(super().StartVector(elemSize, numElems, BUFFER_ALIGNMENT if elemSize == 1 else alignment))

    def CreateNumpyVector(self, x: Any) -> int:
        key = x.dtype.str, x.tobytes()
        if key not in self._written:
            self._written[key] = int(super().CreateNumpyVector(x))
        return self._written[key]
