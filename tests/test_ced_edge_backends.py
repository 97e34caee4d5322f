"""Model files without torch: what they report, what they compute, and what is said when they cannot."""

from __future__ import annotations

import builtins
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.runtime import backends
from ced_edge.runtime.backends import Port, load_backend

onnx = pytest.importorskip("onnx", reason="onnx writes the model files of these tests")


def save_affine(path: Path, batch: int | str = "batch") -> Path:
    """y = 2 x + 1 over (batch, 3), with metadata."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 3])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [batch, 3])
    two, one = (onnx.numpy_helper.from_array(np.float32(v), n) for v, n in ((2, "two"), (1, "one")))
    nodes = [onnx.helper.make_node("Mul", ["x", "two"], ["z"]), onnx.helper.make_node("Add", ["z", "one"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "affine", [x], [y], [two, one])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.helper.set_model_props(model, {"labels": "a;b;c"})
    onnx.save(model, path)
    return path


def test_onnx_ports_metadata_and_values(tmp_path: Path) -> None:
    backend = load_backend(save_affine(tmp_path / "m.onnx"))
    assert backend.inputs == (Port("x", (-1, 3), "float32"),)
    assert backend.outputs == (Port("y", (-1, 3), "float32"),)
    assert backend.metadata == {"labels": "a;b;c"}
    assert backend.runtime.startswith("onnxruntime ")
    (y,) = backend.run(np.array([[0, 1, 2], [3, 4, 5]], np.float32))
    np.testing.assert_array_equal(y, [[1, 3, 5], [7, 9, 11]])


def test_onnx_refuses_a_shape_and_goes_on(tmp_path: Path) -> None:
    backend = load_backend(save_affine(tmp_path / "m.onnx", batch=1))
    with pytest.raises(CedEdgeError, match=r"m\.onnx failed on input \[\(2, 3\)\]") as e:
        backend.run(np.zeros((2, 3), np.float32))
    assert "\n" not in str(e.value)
    assert backend.run(np.zeros((1, 3), np.float32))[0].tolist() == [[1, 1, 1]]
    with pytest.raises(ValueError, match="takes 1 inputs, not 2"):
        backend.run(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("name", ["m.onnx", "m.tflite"])
def test_not_a_model(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(InputError, match="no such file"):
        load_backend(path)
    path.write_bytes(b"this is no model" * 100)
    with pytest.raises(InputError, match="is not a usable") as e:
        load_backend(path)
    assert "\n" not in str(e.value)


def test_other_suffix(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"must end in \.onnx or \.tflite"):
        load_backend(tmp_path / "m.pt")


def forbid(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    real = builtins.__import__

    def fake(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in packages:
            raise ImportError(f"no module named {name}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    for package in packages:
        for loaded in [m for m in sys.modules if m.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, loaded)


def test_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("m.onnx", "m.tflite"):
        (tmp_path / name).write_bytes(b"x")
    forbid(monkeypatch, "onnxruntime")
    with pytest.raises(InputError, match="pip install onnxruntime"):
        load_backend(tmp_path / "m.onnx")
    monkeypatch.setattr(backends, "TFLITE_RUNTIMES", (("no_such_runtime", "none"),))
    with pytest.raises(InputError, match="pip install ai-edge-litert"):
        load_backend(tmp_path / "m.tflite")


class FakeInterpreter:
    """Doubles its input; refuses to allocate more than two rows, as a delegate does."""

    def __init__(self, model_path: str, num_threads: int) -> None:
        self.shape: tuple[int, ...] = (1, 3)
        self.allocated = False
        self.threads = num_threads

    def allocate_tensors(self) -> None:
        if self.shape[0] > 2:
            raise RuntimeError("failed to prepare.\nmore")
        self.allocated = True

    def get_input_details(self) -> list[dict[str, Any]]:
        signature = np.array([-1, 3], np.int32)
        return [{"name": "x", "index": 0, "shape": np.array([1, 3]), "shape_signature": signature, "dtype": np.float32}]

    get_output_details = get_input_details

    def resize_tensor_input(self, index: int, shape: tuple[int, ...], strict: bool) -> None:
        self.shape, self.allocated = tuple(shape), False

    def set_tensor(self, index: int, x: Any) -> None:
        if not self.allocated or x.shape != self.shape:
            raise ValueError("wrong shape")
        self.x = x

    def invoke(self) -> None:
        self.y = 2 * self.x

    def get_tensor(self, index: int) -> Any:
        return self.y


@pytest.mark.parametrize("installed", range(len(backends.TFLITE_RUNTIMES)))
def test_tflite_falls_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: int) -> None:
    for i, (name, _) in enumerate(backends.TFLITE_RUNTIMES):
        # None in sys.modules makes the import fail, as where it is not installed.
        module: Any = None
        if i >= installed:
            module = types.ModuleType(name)
            module.Interpreter = FakeInterpreter
        monkeypatch.setitem(sys.modules, name.split(".")[0], module and types.ModuleType(name.split(".")[0]))
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "m.tflite").write_bytes(b"x")
    backend = load_backend(tmp_path / "m.tflite", threads=3)
    assert backend.runtime == backends.TFLITE_RUNTIMES[installed][1]
    assert backend.inputs == (Port("x", (-1, 3), "float32"),)
    assert backend.run(np.ones((2, 3), np.float32))[0].tolist() == [[2, 2, 2], [2, 2, 2]]
    with pytest.raises(CedEdgeError, match=r"failed on input \[\(3, 3\)\]: failed to prepare\.$"):
        backend.run(np.ones((3, 3), np.float32))
    assert backend.run(np.ones((2, 3), np.float32))[0].shape == (2, 3)


def test_real_tflite(shared: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="no TFLite runtime: pip install ai-edge-litert")
    backend = load_backend(shared / "teachers" / "yamnet_waveform.tflite")
    assert backend.inputs[0].shape == (1, 15_600)
    assert backend.outputs[0].shape == (1, 521)
    silence = np.zeros((1, 15_600), np.float32)
    first = backend.run(silence)[0]
    assert first[0].argmax() == 494  # Silence, in YAMNet's own list
    with pytest.raises(CedEdgeError):
        backend.run(np.zeros((2, 15_600), np.float32))
    np.testing.assert_array_equal(backend.run(silence)[0], first)
