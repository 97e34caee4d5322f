"""The operators of a .tflite file, each cut out as a model of its own. Python TFLite interpreters report no
per-operator times, so `profile` times those models instead.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ced_edge.errors import InputError, first_line
from ced_edge.runtime.backends import NotInstalled

SCHEMAS = ("ai_edge_litert.schema_py_generated", "tensorflow.lite.python.schema_py_generated")
"""Modules that read and write .tflite files; each of them can, whichever runtime runs the file."""
ALIGNMENT = 16
"""Alignment of constants in a .tflite file, in bytes."""
ENDS = ("inputs", "outputs", "intermediates")
"""Fields of an operator that hold numbers of tensors."""


class Graph:
    """The main subgraph of a .tflite file. An operator is an object of the schema; a tensor is known by its number."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises NotInstalled without a schema, InputError for a damaged or hostile file."""
        self._schema = _schema(path)
        data = path.read_bytes()
        try:
            self._read(data)
        except (struct.error, IndexError, TypeError, ValueError, AttributeError, RecursionError) as e:
            raise InputError(f"{path} is no readable TFLite model: {first_line(e)}") from e

    def _read(self, data: bytes) -> None:
        """Unpack the main subgraph. Raises ValueError when that takes more room than the file has, and others."""
        s, room = self._schema, len(data)

        # In a flatbuffer many entries may point to one table or text, which is unpacked anew for each of them. So a
        # hostile file of a few MB could become billions of objects. In an honest one, all that is unpacked fits
        # into the file.
        def unpack(kind: Any, count: int, get: Callable[[int], Any]) -> list[Any]:
            nonlocal room
            objects = []
            for i in range(count):
                objects.append(kind.InitFromObj(get(i)))
                room -= 4 + _size(objects[-1])
                if room < 0:
                    raise ValueError(f"it claims more than its {len(data)} bytes can hold")
            return objects

        if not s.Model.ModelBufferHasIdentifier(data, 0):
            raise ValueError("it does not begin as a TFLite file does")
        model = s.Model.GetRootAs(data, 0)
        graph = model.Subgraphs(0)
        self._version = model.Version()
        self._codes = unpack(s.OperatorCodeT, model.OperatorCodesLength(), model.OperatorCodes)
        self._buffers = unpack(s.BufferT, model.BuffersLength(), model.Buffers)
        self._tensors = unpack(s.TensorT, graph.TensorsLength(), graph.Tensors)
        self.operators: list[Any] = unpack(s.OperatorT, graph.OperatorsLength(), graph.Operators)
        """In the order they run."""
        numbers = {i for op in self.operators for end in ENDS for i in _ids(getattr(op, end))}
        if not (
            all(-1 <= i < len(self._tensors) for i in numbers)
            and all(0 <= op.opcodeIndex < len(self._codes) for op in self.operators)
            and all(0 <= t.buffer < len(self._buffers) for t in self._tensors)
        ):
            raise ValueError("an operator or a tensor names something that is not there")
        self._names = {number: name for name, number in vars(s.BuiltinOperator).items()}

    def name(self, op: Any) -> str:
        """The operator's type in the schema's spelling, or the own name of a custom operator."""
        code = self._codes[op.opcodeIndex]
        if code.customCode:
            return str(code.customCode.decode())
        # Old files have the type in the deprecated field alone, which is one byte; new types do not fit into it.
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return str(self._names.get(number, number))

    def tensor_name(self, i: int) -> str:
        """The tensor's name in the file."""
        return str(self._tensors[i].name.decode())

    def inputs(self, op: Any) -> list[int]:
        """The tensors that the operator reads, without constants, each once."""
        return [i for i in dict.fromkeys(_ids(op.inputs)) if i >= 0 and not len(self._constant(i))]

    def kind(self, op: Any) -> str:
        """A text that is equal for operators that do the same work, on other values."""
        inputs, outputs = _ids(op.inputs), _ids(op.outputs)
        options = {k: _text(v) for k, v in vars(op).items() if k not in (*ENDS, "debugMetadataIndex")}
        return repr((options, [inputs.index(i) for i in inputs], [i >= 0 and self._work(i) for i in inputs + outputs]))

    def cut(self, op: Any) -> bytes:
        """A .tflite file with this operator alone, and its constants. Its inputs are `inputs`, in that order.

        Raises ValueError when the operator runs a subgraph, which would be missing.
        """
        if any("ubgraph" in name for options in vars(op).values() for name in getattr(options, "__dict__", ())):
            raise ValueError(f"{self.name(op)} runs a subgraph")
        ends = [i for i in dict.fromkeys(i for name in ENDS for i in _ids(getattr(op, name))) if i >= 0]
        place = {-1: -1} | {i: n for n, i in enumerate(ends)}
        graph, alone, model = self._schema.SubGraphT(), copy.copy(op), self._schema.ModelT()
        graph.tensors = [copy.copy(self._tensors[i]) for i in ends]
        model.buffers = [self._schema.BufferT()]  # in every file the first buffer is empty: tensors without data use it
        for tensor in graph.tensors:
            model.buffers.append(self._buffers[tensor.buffer])
            tensor.buffer = len(model.buffers) - 1
        for name in ENDS:
            setattr(alone, name, [place[i] for i in _ids(getattr(op, name))])
        alone.opcodeIndex = 0
        graph.operators, graph.inputs, graph.outputs = [alone], [place[i] for i in self.inputs(op)], alone.outputs
        model.version, model.subgraphs = self._version, [graph]
        model.operatorCodes = [self._codes[op.opcodeIndex]]
        return _packed(model)

    def _work(self, i: int) -> tuple[Any, ...]:
        """What the time depends on: shape, type, number of scales, and small constants, which may be axes or sizes."""
        tensor, data = self._tensors[i], self._constant(i)
        scales = getattr(tensor.quantization, "scale", None)
        return _ids(tensor.shape), tensor.type, len(_ids(scales)), bytes(data) if len(data) <= 64 else len(data)

    def _constant(self, i: int) -> Any:
        """The tensor's bytes in the file; empty where the tensor is computed."""
        data = self._buffers[self._tensors[i].buffer].data
        return b"" if data is None else data


def _schema(path: Path) -> Any:
    for name in SCHEMAS:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise NotInstalled(f"{path} has no profile without TFLite's schema: pip install ai-edge-litert flatbuffers")


def _ids(x: Any) -> list[int]:
    return [] if x is None else [int(i) for i in x]


def _size(x: Any) -> int:
    """Bytes of what was copied for an object of the schema: texts, lists of tables, and tensors' numbers.

    Other arrays are views of the file's bytes, and cost nothing however often they are shared.
    """
    size = 0
    for name, value in vars(x).items():
        if isinstance(value, bytes | str):
            size += len(value)
        elif isinstance(value, list):
            size += 4 * len(value) + sum(_size(v) for v in value if hasattr(v, "__dict__"))
        elif hasattr(value, "__dict__"):
            size += _size(value)
        elif name in ENDS and value is not None:
            size += 4 * len(value)
    return size


def _text(x: Any) -> str:
    """Everything that an object of the schema holds, as text."""
    return repr({k: _text(v) for k, v in vars(x).items()}) if hasattr(x, "__dict__") else repr(x)


def _packed(model: Any) -> bytes:
    import flatbuffers

    # The schema demands this alignment, but flatbuffers' Python code ignores it. Runtimes read weights in
    # place, so unaligned ones would be slow, or a crash.
    class Aligned(flatbuffers.Builder):  # type: ignore[misc]  # flatbuffers ships no types
        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:
            return int(super().StartVector(elemSize, numElems, ALIGNMENT if elemSize == 1 else alignment))

    builder = Aligned(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
