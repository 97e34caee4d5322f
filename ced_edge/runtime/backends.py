"""Running a model file without torch: ONNX Runtime for .onnx; LiteRT, tflite_runtime or tensorflow for .tflite."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ced_edge.errors import CedEdgeError, InputError, first_line
from ced_edge.runtime.bundle import LABELS_NAME

TFLITE_RUNTIMES: tuple[tuple[str, str], ...] = (
    ("ai_edge_litert.interpreter", "ai-edge-litert"),
    ("tflite_runtime.interpreter", "tflite-runtime"),
    # Not tensorflow.lite: as a module of that name TensorFlow has another one than `tf.lite`, without an Interpreter.
    ("tensorflow.lite.python.interpreter", "tensorflow"),
)
"""Module with an `Interpreter`, and the package that brings it; the first one installed is used."""


class NotInstalled(InputError):
    """The file may be fine, but nothing here can run it. The message says what to install."""


@dataclass(frozen=True)
class Port:
    """One input or output of a model file."""

    name: str
    shape: tuple[int, ...]
    """-1 where the size is free."""
    dtype: str
    """As numpy calls it."""


class Backend(Protocol):
    """A loaded model file. One instance serves one thread at a time."""

    runtime: str
    """What runs it, with its version."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: dict[str, str]
    """Text in the file: ONNX metadata_props; of TFLite the packed label file, as `labels`, which is a JSON list too."""

    def run(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """Arrays in the order of `inputs` -> arrays in the order of `outputs`, the caller's to keep.

        Raises CedEdgeError when the model cannot take such a shape.
        """
        ...


def load_backend(path: Path, threads: int = 1) -> Backend:
    """Load a .onnx or .tflite file with `threads` threads inside one `run`.

    Raises InputError: no such file, another suffix, not a model; NotInstalled: no runtime (with what to install).
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    if path.suffix == ".onnx":
        return OnnxBackend(path, threads)
    if path.suffix == ".tflite":
        return TfliteBackend(path, threads)
    raise InputError(f"{path} is no model file: its name must end in .onnx or .tflite")


class OnnxBackend:
    """A .onnx file on ONNX Runtime's CPU provider."""

    def __init__(self, path: Path, threads: int) -> None:
        try:
            import onnxruntime as ort
        except ImportError as e:
            raise NotInstalled(f"{path} needs ONNX Runtime: pip install onnxruntime") from e
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime raises a dozen classes of its own
            raise InputError(f"{path} is not a usable ONNX model: {first_line(e)}") from e
        self.path = path
        self.runtime = f"onnxruntime {ort.__version__}"
        self.inputs = tuple(_onnx_port(p) for p in self._session.get_inputs())
        self.outputs = tuple(_onnx_port(p) for p in self._session.get_outputs())
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        _check_count(self.path, inputs, self.inputs)
        try:
            feeds = {port.name: x for port, x in zip(self.inputs, inputs, strict=True)}
            return list(self._session.run(None, feeds))
        except Exception as e:
            raise CedEdgeError(f"{self.path} failed on input {[x.shape for x in inputs]}: {first_line(e)}") from e


class TfliteBackend:
    """A .tflite file on the CPU. A new input shape is tried with `resize_tensor_input`."""

    def __init__(self, path: Path, threads: int) -> None:
        module, package = _tflite_runtime(path)
        try:
            self._interpreter: Any = module.Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except Exception as e:  # ValueError or RuntimeError, by runtime and by defect
            raise InputError(f"{path} is not a usable TFLite model: {first_line(e)}") from e
        self.path = path
        self.runtime = f"{package} {getattr(module, '__version__', '')}".strip()
        self._in: list[dict[str, Any]] = self._interpreter.get_input_details()
        self._out: list[dict[str, Any]] = self._interpreter.get_output_details()
        self.inputs = tuple(_tflite_port(d) for d in self._in)
        self.outputs = tuple(_tflite_port(d) for d in self._out)
        self.metadata = _packed_labels(path)
        self._shapes = [tuple(d["shape"].tolist()) for d in self._in]

    def run(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        _check_count(self.path, inputs, self.inputs)
        try:
            self._resize([x.shape for x in inputs])
            for d, x in zip(self._in, inputs, strict=True):
                self._interpreter.set_tensor(d["index"], x)
            self._interpreter.invoke()
            return [self._interpreter.get_tensor(d["index"]) for d in self._out]
        except (ValueError, RuntimeError) as e:
            raise CedEdgeError(f"{self.path} failed on input {[x.shape for x in inputs]}: {first_line(e)}") from e

    def _resize(self, shapes: list[tuple[int, ...]]) -> None:
        if shapes == self._shapes:
            return
        previous, self._shapes = self._shapes, []
        try:
            self._allocate(shapes)
        except (ValueError, RuntimeError):
            # A refused shape leaves the interpreter unusable; go back to the one that worked.
            with contextlib.suppress(ValueError, RuntimeError):
                self._allocate(previous)
            raise

    def _allocate(self, shapes: list[tuple[int, ...]]) -> None:
        for d, shape in zip(self._in, shapes, strict=True):
            self._interpreter.resize_tensor_input(d["index"], shape, strict=False)
        self._interpreter.allocate_tensors()
        self._shapes = shapes


def _packed_labels(path: Path) -> dict[str, str]:
    """The label file that MediaPipe reads: behind the model there is a zip archive."""
    with contextlib.suppress(zipfile.BadZipFile, KeyError), zipfile.ZipFile(path) as archive:
        return {"labels": json.dumps(archive.read(LABELS_NAME).decode(errors="replace").splitlines())}
    return {}


def _tflite_runtime(path: Path) -> tuple[Any, str]:
    for module, package in TFLITE_RUNTIMES:
        try:
            return importlib.import_module(module), package
        except ImportError:
            continue
    raise NotInstalled(f"{path} needs a TFLite runtime: pip install ai-edge-litert")


def _onnx_port(port: Any) -> Port:
    shape = tuple(d if isinstance(d, int) else -1 for d in port.shape)
    name = port.type.removeprefix("tensor(").removesuffix(")")
    return Port(port.name, shape, {"float": "float32", "double": "float64"}.get(name, name))


def _tflite_port(d: dict[str, Any]) -> Port:
    signature = d.get("shape_signature", d["shape"])
    shape = signature if len(signature) == len(d["shape"]) else d["shape"]
    return Port(d["name"], tuple(int(n) for n in shape), np.dtype(d["dtype"]).name)


def _check_count(path: Path, inputs: Sequence[NDArray[Any]], ports: Sequence[Port]) -> None:
    if len(inputs) != len(ports):
        raise ValueError(f"{path} takes {len(ports)} inputs, not {len(inputs)}")


ONNX_RUNTIMES = (("onnxruntime", "onnxruntime"),)
"""Module and the package that brings it."""


def installed(format: str) -> list[str]:
    """The packages here that run .onnx or .tflite files, the first choice first. Imports none of them."""
    known = ONNX_RUNTIMES if format == "onnx" else TFLITE_RUNTIMES
    return [package for module, package in known if importlib.util.find_spec(module.partition(".")[0])]
