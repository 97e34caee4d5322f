"""Running a model file without torch: ONNX Runtime for .onnx; LiteRT, tflite_runtime or tensorflow for .tflite."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import math
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ced_edge.errors import CedEdgeError, InputError, first_line
from ced_edge.runtime.bundle import LABELS_NAME, PACKAGED

TFLITE_RUNTIMES: tuple[tuple[str, str], ...] = (
    ("ai_edge_litert.interpreter", "ai-edge-litert"),
    ("tflite_runtime.interpreter", "tflite-runtime"),
    # `import tensorflow.lite` loads a module without an Interpreter, although the attribute `tf.lite` has one.
    ("tensorflow.lite.python.interpreter", "tensorflow"),
)
"""A module with an `Interpreter`, and the package that holds it. The first installed one is used."""
ONNX_RUNTIMES = (("onnxruntime", "onnxruntime"),)
"""Module and package, as above."""
_TRIAL_S, _TRIAL_CPU_S = 60.0, 6
"""Longest time for the trial of a .tflite file, and on the CPU for a small one."""
_trials = True
_MAX_LABELS_BYTES = 1 << 20
"""Largest label file that is read out of a .tflite file. AudioSet's has 6,337 bytes."""


class NotInstalled(InputError):
    """No installed package runs this file. The message names the one to install."""


@dataclass(frozen=True)
class Port:
    """One input or output of a model file."""

    name: str
    shape: tuple[int, ...]
    """-1 where the size is free."""
    dtype: str
    """The name of a numpy type, such as float32."""


class Backend(Protocol):
    """A loaded model file. One instance serves one thread at a time."""

    runtime: str
    """The package that runs it, with its version."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: dict[str, str]
    """Texts in the file: ONNX metadata_props, or of a .tflite file its packed labels. `labels` is a JSON list."""

    def run(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """Arrays in the order of `inputs` -> arrays in the order of `outputs`, which later runs do not overwrite.

        Raises CedEdgeError when the model does not accept these shapes.
        """
        ...


def load_backend(path: Path, threads: int = 1, runtime: str | None = None) -> Backend:
    """Load a .onnx or .tflite file. One `run` uses `threads` threads.

    `runtime` is a package of `packages`; without it the first installed one is used. Raises InputError when the file
    is missing, has another suffix, is no model or does not run on `runtime`, or when the runtime is broken. A .tflite
    file that is not this package's is run once in a child process before, because a damaged one can end the process.
    Raises NotInstalled when no runtime is installed.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    if path.suffix == ".onnx":
        return OnnxBackend(path, threads, runtime)
    if path.suffix == ".tflite":
        # The file of this package can be trusted as much as its code.
        if _trials and sys.executable and path.parent != PACKAGED:
            _try_out(path, runtime, path.stat().st_mtime_ns)
        return TfliteBackend(path, threads, runtime)
    raise InputError(f"{path} is not a model file: its name must end in .onnx or .tflite")


def skip_trials() -> None:
    """Load .tflite files without a trial from now on. For a process that may end, because another one waits for it."""
    global _trials
    _trials = False


@functools.lru_cache  # a file that several threads load needs one trial
def _try_out(path: Path, runtime: str | None, written: int) -> None:
    """Load and run a .tflite file once in a child process. Raises InputError if that process crashes or hangs.

    `written`: the time of its last change, so that another file of the same name is another trial.

    TFLite checks little of what it loads: a few of 1,000 damaged files end the process with a segmentation fault, which
    Python cannot catch. Every other error is left to the load that follows.
    """
    # `python -c` imports from the current folder first. This package's own folder takes its place.
    root = str(Path(__file__).resolve().parents[2])
    code = (
        f"import sys; sys.path[0] = {root!r}; from ced_edge.runtime.backends import run_once; run_once(*sys.argv[1:])"
    )
    arguments = [sys.executable, "-c", code, str(path), *([runtime] if runtime else [])]
    none = subprocess.DEVNULL
    try:
        ended = subprocess.run(arguments, stdin=none, stdout=none, stderr=none, timeout=_TRIAL_S).returncode
    except subprocess.TimeoutExpired:
        raise InputError(f"{path} is not a usable TFLite model: it runs for more than {_TRIAL_S:g} s") from None
    if ended < 0 or ended > 255:  # a signal; on Windows the number of an exception
        raise InputError(f"{path} is not a usable TFLite model: it crashes or does not end (exit code {ended})")


def run_once(path: str, runtime: str | None = None) -> None:
    """Load a .tflite file and run it on zeros. A limit of CPU time ends the process if the file never does."""
    with contextlib.suppress(ImportError):
        import resource  # not on Windows

        # Time on the CPU, because a busy machine is slow for honest files too. An honest one takes below 1 s per MB.
        limit = _TRIAL_CPU_S + 2 * math.ceil(Path(path).stat().st_size / 1e6)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    backend = TfliteBackend(Path(path), 1, runtime)
    backend.run(*(np.zeros([max(n, 1) for n in port.shape], port.dtype) for port in backend.inputs))


def packages(format: str) -> list[str]:
    """All packages that can run .onnx or .tflite files, the first choice first."""
    return [package for _, package in _runtimes(format)]


def installed(format: str) -> list[str]:
    """The packages among them that are installed. Imports none of them."""
    return [package for module, package in _runtimes(format) if _is_installed(module.partition(".")[0])]


def _runtimes(format: str) -> tuple[tuple[str, str], ...]:
    return ONNX_RUNTIMES if format == "onnx" else TFLITE_RUNTIMES


def _is_installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    # Any folder of that name in the working directory is a package without an origin.
    return spec is not None and spec.origin is not None


def _import_runtime(path: Path, reason: str, runtime: str | None) -> tuple[Any, str]:
    """The first installed module that runs `path`, with its package. Messages begin with `reason`.

    With `runtime`, only this package. Raises NotInstalled, which names a package to install, when there is none.
    Raises InputError when the first one cannot be imported: to try the next one would hide that this one is broken.
    """
    known = _runtimes(path.suffix[1:])
    wanted = [r for r in known if runtime in (None, r[1])]
    if not wanted:
        raise InputError(f"{path} does not run on {runtime}: choose {' or '.join(package for _, package in known)}")
    for module, package in wanted:
        try:
            return importlib.import_module(module), package
        except Exception as e:  # ImportError, OSError or AttributeError, by package and by defect
            if not _is_installed(module.partition(".")[0]):
                continue
            raise InputError(
                f"{reason}, and {package} is installed, but cannot be imported ({first_line(e)}): "
                f"pip install --force-reinstall {package}"
            ) from e
    raise NotInstalled(f"{reason}: pip install {runtime or known[0][1]}")


class OnnxBackend:
    """A .onnx file on ONNX Runtime's CPU provider."""

    def __init__(self, path: Path, threads: int, runtime: str | None = None) -> None:
        ort, package = _import_runtime(path, f"{path} needs ONNX Runtime", runtime)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1  # the model is one chain of operators: no two can run at once
        options.log_severity_level = 3  # errors only: they are raised too, and warnings would mix with our output
        try:
            # Without a fallback: it prints four lines on stdout, and there is no other provider to fall back to.
            self._session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            # In the `try` as well: names and texts in a damaged file may be no UTF-8.
            self.inputs = tuple(_onnx_port(p) for p in self._session.get_inputs())
            self.outputs = tuple(_onnx_port(p) for p in self._session.get_outputs())
            self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        except Exception as e:  # ONNX Runtime raises a dozen classes of its own
            raise InputError(f"{path} is not a usable ONNX model: {first_line(e)}") from e
        self.path = path
        self.runtime = f"{package} {ort.__version__}"

    def run(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        _check_count(self.path, inputs, self.inputs)
        try:
            feeds = {port.name: x for port, x in zip(self.inputs, inputs, strict=True)}
            return list(self._session.run(None, feeds))
        except Exception as e:
            raise CedEdgeError(f"{self.path} failed on input {[x.shape for x in inputs]}: {first_line(e)}") from e


class TfliteBackend:
    """A .tflite file on the CPU. A new input shape is tried with `resize_tensor_input`."""

    def __init__(self, path: Path, threads: int, runtime: str | None = None) -> None:
        module, package = _import_runtime(path, f"{path} needs {runtime or 'a TFLite runtime'}", runtime)
        try:
            self._interpreter: Any = module.Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
            # In the `try` as well: names in a damaged file may be no UTF-8.
            self._in: list[dict[str, Any]] = self._interpreter.get_input_details()
            self._out: list[dict[str, Any]] = self._interpreter.get_output_details()
            self.inputs = tuple(_tflite_port(d) for d in self._in)
            self.outputs = tuple(_tflite_port(d) for d in self._out)
        except Exception as e:  # ValueError, RuntimeError or UnicodeDecodeError, by runtime and by defect
            raise InputError(f"{path} is not a usable TFLite model: {first_line(e)}") from e
        self.path = path
        self.runtime = f"{package} {getattr(module, '__version__', '')}".strip()
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
            # A shape that fails leaves the interpreter unusable, so we go back to the shape that worked.
            with contextlib.suppress(ValueError, RuntimeError):
                self._allocate(previous)
            raise

    def _allocate(self, shapes: list[tuple[int, ...]]) -> None:
        for d, shape in zip(self._in, shapes, strict=True):
            self._interpreter.resize_tensor_input(d["index"], shape, strict=False)
        self._interpreter.allocate_tensors()
        self._shapes = shapes


def _packed_labels(path: Path) -> dict[str, str]:
    """The labels for MediaPipe, which are in a zip archive behind the model. Empty where there are none.

    Raises InputError when they are damaged or too large.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:  # the file is a model alone
        return {}
    with archive:
        if LABELS_NAME not in archive.namelist():
            return {}
        info = archive.getinfo(LABELS_NAME)
        # A few kilobytes can unpack to gigabytes, and `file_size` may be false. zipfile unpacks no more than the bytes
        # that `read(n)` asks for with these two methods; with the others it unpacks whole blocks.
        if info.file_size > _MAX_LABELS_BYTES or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(
                f"the {LABELS_NAME} packed in {path} is larger than {_MAX_LABELS_BYTES} bytes, or packed by an unusual "
                "method: the file is damaged or hostile"
            )
        try:
            with archive.open(info) as f:
                text = f.read(_MAX_LABELS_BYTES + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as e:  # RuntimeError: encrypted
            raise InputError(
                f"the {LABELS_NAME} packed in {path} cannot be read ({first_line(e)}): get the file again"
            ) from e
    return {"labels": json.dumps(text.decode(errors="replace").splitlines())}


def _onnx_port(port: Any) -> Port:
    # A free size is a name or None.
    shape = tuple(d if isinstance(d, int) else -1 for d in port.shape)
    name = port.type.removeprefix("tensor(").removesuffix(")")
    return Port(port.name, shape, {"float": "float32", "double": "float64"}.get(name, name))


def _tflite_port(d: dict[str, Any]) -> Port:
    # The signature has -1 for free sizes. Some runtimes leave it empty when no size is free.
    signature = d.get("shape_signature", d["shape"])
    shape = signature if len(signature) == len(d["shape"]) else d["shape"]
    return Port(d["name"], tuple(int(n) for n in shape), np.dtype(d["dtype"]).name)


def _check_count(path: Path, inputs: Sequence[NDArray[Any]], ports: Sequence[Port]) -> None:
    if len(inputs) != len(ports):
        raise ValueError(f"{path} takes {len(ports)} inputs, not {len(inputs)}")
