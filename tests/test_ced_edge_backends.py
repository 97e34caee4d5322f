"""Model files without torch: their inputs and outputs, their results, and their errors."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tracemalloc
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.runtime import backends
from ced_edge.runtime.backends import NotInstalled, Port, installed, load_backend

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


def test_onnx_works_after_a_shape_that_it_refused(tmp_path: Path) -> None:
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


def test_onnx_names_that_are_no_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime prints four lines on stdout before it raises an error for this file."""
    path = save_affine(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes().replace(b"labels", b"\xe5abels"))
    with pytest.raises(InputError, match="is not a usable ONNX model: 'utf-8' codec can't decode"):
        load_backend(path)
    assert capsys.readouterr() == ("", "")


def test_other_suffix(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"must end in \.onnx or \.tflite"):
        load_backend(tmp_path / "m.pt")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with model files whose content does not matter."""
    for name in ("m.onnx", "m.tflite"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def forget(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make Python load these packages again at their next import."""
    for name in [m for m in sys.modules if m.split(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, name)


def test_a_missing_runtime_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NotInstalled, match=r"m\.onnx needs ONNX Runtime: pip install onnxruntime$"):
        load_backend(models / "m.onnx")
    monkeypatch.setattr(backends, "TFLITE_RUNTIMES", (("no_such_runtime", "ai-edge-litert"),))
    with pytest.raises(NotInstalled, match=r"m\.tflite needs a TFLite runtime: pip install ai-edge-litert$"):
        load_backend(models / "m.tflite")


@pytest.mark.parametrize(
    ("name", "package", "module"),
    [("m.onnx", "onnxruntime", "onnxruntime"), ("m.tflite", "ai-edge-litert", "ai_edge_litert.interpreter")],
)
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            "ImportError('libGL.so.1: cannot open\\nmore')",
            "libGL.so.1: cannot open",
        ),
        ("OSError('wrong ELF class')", "wrong ELF class"),
        ("__import__('a_library_that_is_missing')", "No module named 'a_library_that_is_missing'"),
    ],
)
def test_a_runtime_that_is_broken_is_not_called_missing(
    models: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, module: str, error: str, line: str
) -> None:
    top = module.partition(".")[0]
    (models / top).mkdir()
    code = f"raise {error}\n" if error.startswith(("Imp", "OS")) else f"{error}\n"
    (models / top / "__init__.py").write_text("" if "." in module else code)
    (models / top / "interpreter.py").write_text(code)
    forget(monkeypatch, top)
    monkeypatch.syspath_prepend(models)
    with pytest.raises(InputError) as e:
        load_backend(models / name)
    assert not isinstance(e.value, NotInstalled)
    message = f"{package} is installed, but cannot be imported ({line}): pip install --force-reinstall {package}"
    assert str(e.value).endswith(message)
    assert str(models / name) in str(e.value)


def test_a_folder_with_the_name_of_a_runtime_is_not_a_runtime(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes any folder of the working directory for a package."""
    (models / "folder_of_mine").mkdir()
    monkeypatch.syspath_prepend(models)
    monkeypatch.setattr(backends, "TFLITE_RUNTIMES", (("folder_of_mine.interpreter", "mine"), ("json", "standard")))
    assert installed("tflite") == ["standard"]
    monkeypatch.setattr(backends, "TFLITE_RUNTIMES", backends.TFLITE_RUNTIMES[:1])
    with pytest.raises(NotInstalled):
        load_backend(models / "m.tflite")


def test_installed_imports_nothing() -> None:
    code = (
        "import sys\nfrom ced_edge.runtime.backends import installed\nprint(installed('onnx'), installed('tflite'))\n"
    )
    code += "assert not {'onnxruntime', 'ai_edge_litert', 'tensorflow', 'tflite_runtime'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("['onnxruntime'] [")


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


@pytest.mark.parametrize("first", range(len(backends.TFLITE_RUNTIMES)))
def test_tflite_falls_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    for i, (name, _) in enumerate(backends.TFLITE_RUNTIMES):
        # None in sys.modules makes the import fail, as if the package were not installed.
        module: Any = None
        if i >= first:
            module = types.ModuleType(name)
            module.Interpreter = FakeInterpreter
        monkeypatch.setitem(sys.modules, name.split(".")[0], module and types.ModuleType(name.split(".")[0]))
        monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "m.tflite").write_bytes(b"x")
    backend = load_backend(tmp_path / "m.tflite", threads=3)
    assert backend.runtime == backends.TFLITE_RUNTIMES[first][1]
    assert backend.inputs == (Port("x", (-1, 3), "float32"),)
    assert backend.run(np.ones((2, 3), np.float32))[0].tolist() == [[2, 2, 2], [2, 2, 2]]
    with pytest.raises(CedEdgeError, match=r"failed on input \[\(3, 3\)\]: failed to prepare\.$"):
        backend.run(np.ones((3, 3), np.float32))
    assert backend.run(np.ones((2, 3), np.float32))[0].shape == (2, 3)


def test_the_chosen_runtime_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of the first one that is installed."""
    for name, package in backends.TFLITE_RUNTIMES:
        module: Any = types.ModuleType(name)
        module.Interpreter = FakeInterpreter
        monkeypatch.setitem(sys.modules, name.split(".")[0], types.ModuleType(name.split(".")[0]))
        monkeypatch.setitem(sys.modules, name, None if package == "tensorflow" else module)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    path = tmp_path / "m.tflite"
    path.write_bytes(b"x")
    assert load_backend(path, runtime="ai-edge-litert").runtime == "ai-edge-litert"
    assert load_backend(path, runtime="tflite-runtime").runtime == "tflite-runtime"
    with pytest.raises(NotInstalled, match="needs tensorflow: pip install tensorflow"):
        load_backend(path, runtime="tensorflow")
    with pytest.raises(
        InputError, match="does not run on onnxruntime: choose ai-edge-litert or tflite-runtime or tens"
    ):
        load_backend(path, runtime="onnxruntime")


@pytest.fixture
def tflite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A .tflite file that FakeInterpreter runs."""
    module: Any = types.ModuleType("fake_runtime")
    module.Interpreter = FakeInterpreter
    monkeypatch.setitem(sys.modules, "fake_runtime", module)
    monkeypatch.setattr(backends, "TFLITE_RUNTIMES", (("fake_runtime", "fake-runtime"),))
    monkeypatch.setattr(backends, "_trials", False)  # the fake is in this process alone
    (tmp_path / "m.tflite").write_bytes(b"model" * 100)
    return tmp_path / "m.tflite"


def test_tflite_names_that_are_no_utf8(tflite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(interpreter: FakeInterpreter) -> list[dict[str, Any]]:
        raise UnicodeDecodeError("utf-8", b"\x9e", 0, 1, "invalid start byte")

    monkeypatch.setattr(FakeInterpreter, "get_input_details", names)
    with pytest.raises(InputError, match="is not a usable TFLite model: 'utf-8' codec can't decode"):
        load_backend(tflite)


@pytest.mark.parametrize("harm", ["os.abort()", "while True: pass"])
def test_a_tflite_file_that_crashes_or_never_ends(
    harm: str, tflite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so in a child process; this process reads one line."""
    harmful = f"import os\nclass Interpreter:\n  def __init__(self, model_path, num_threads):\n    {harm}\n"
    code = "import sys, types\nfrom ced_edge.runtime import backends\n"
    code += "backends.TFLITE_RUNTIMES = (('harmful', 'harmful'),)\nbackends._TRIAL_CPU_S = 0\n"
    monkeypatch.setattr(backends, "_trials", True)
    (tmp_path / "harmful.py").write_text(harmful)
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "ced_edge").symlink_to(Path(backends.__file__).resolve().parents[1])
    with pytest.raises(InputError, match=r"m\.tflite is not a usable TFLite model: it crashes or does not end \(exit"):
        load_backend(tflite)


def test_the_packaged_file_has_no_trial(tflite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []
    monkeypatch.setattr(backends, "_trials", True)
    monkeypatch.setattr(backends, "_try_out", lambda path, runtime, written: tried.append(path))
    load_backend(tflite)
    monkeypatch.setattr(backends, "PACKAGED", tflite.parent)
    load_backend(tflite)
    assert tried == [tflite]


def pack(path: Path, name: str, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> None:
    """Append a zip archive of one file, as TFLite metadata does."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as f:
        f.writestr(name, content)
    path.write_bytes(path.read_bytes() + archive.getvalue())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_packed_labels_are_read(tflite: Path, method: int) -> None:
    assert load_backend(tflite).metadata == {}
    pack(tflite, "labels.txt", "Hund\nVögel\n".encode(), method)
    assert json.loads(load_backend(tflite).metadata["labels"]) == ["Hund", "Vögel"]


def test_an_archive_without_labels(tflite: Path) -> None:
    pack(tflite, "other.txt", b"x")
    assert load_backend(tflite).metadata == {}


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("claimed", [None, 1_000])
def test_packed_labels_that_unpack_to_gigabytes_are_not_unpacked(
    tflite: Path, method: int, claimed: int | None
) -> None:
    """Also where the archive claims a small size."""
    size = 1 << 28
    pack(tflite, "labels.txt", bytes(size), method)
    assert tflite.stat().st_size < size / 900
    if claimed is not None:
        data = bytearray(tflite.read_bytes())
        for header, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # the file's own, and the directory's
            at = data.index(header) + offset
            assert data[at : at + 4] == struct.pack("<I", size)
            data[at : at + 4] = struct.pack("<I", claimed)
        tflite.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"the labels\.txt packed in .*m\.tflite ") as e:
            load_backend(tflite)
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(e.value)


def test_packed_labels_that_are_damaged(tflite: Path) -> None:
    pack(tflite, "labels.txt", b"Hund\n" * 1_000, zipfile.ZIP_STORED)
    tflite.write_bytes(tflite.read_bytes().replace(b"Hund", b"Bund", 1))
    with pytest.raises(InputError, match=r"cannot be read \(Bad CRC-32.*\): get the file again"):
        load_backend(tflite)


def test_real_tflite(shared: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="no TFLite runtime: pip install ai-edge-litert")
    backend = load_backend(shared / "teachers" / "yamnet_waveform.tflite")
    assert backend.inputs[0].shape == (1, 15_600)
    assert backend.outputs[0].shape == (1, 521)
    silence = np.zeros((1, 15_600), np.float32)
    first = backend.run(silence)[0]
    assert first[0].argmax() == 494  # the class Silence in YAMNet's own list
    with pytest.raises(CedEdgeError):
        backend.run(np.zeros((2, 15_600), np.float32))
    np.testing.assert_array_equal(backend.run(silence)[0], first)
