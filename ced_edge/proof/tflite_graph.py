"""Operators of a .tflite file, each as a model of its own: no Python interpreter tells the time of one in the whole."""

from __future__ import annotations

import contextlib
import copy
import importlib
from pathlib import Path
from typing import Any

from ced_edge.runtime.backends import NotInstalled

SCHEMAS = ("ai_edge_litert.schema_py_generated", "tensorflow.lite.python.schema_py_generated")
"""Modules that read and write .tflite files; any of them does, whatever runs the file."""
ALIGNMENT = 16
"""Bytes, of constants in a .tflite file."""
ENDS = ("inputs", "outputs", "intermediates")
"""Fields of an operator that name tensors."""


class Graph:
    """The main subgraph of a .tflite file. An operator is an object of the schema, a tensor its number."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises NotInstalled."""
        self._schema = _schema(path)
        self._model = self._schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
        self._tensors: list[Any] = self._model.subgraphs[0].tensors
        self.operators: list[Any] = self._model.subgraphs[0].operators
        """In the order they run."""
        self._names = {number: name for name, number in vars(self._schema.BuiltinOperator).items()}

    def name(self, op: Any) -> str:
        """Its type, as the schema calls it; of a custom operator its own name."""
        code = self._model.operatorCodes[op.opcodeIndex]
        if code.customCode:
            return str(code.customCode.decode())
        return str(self._names[max(code.builtinCode, code.deprecatedBuiltinCode)])

    def tensor_name(self, i: int) -> str:
        """As in the file."""
        return str(self._tensors[i].name.decode())

    def inputs(self, op: Any) -> list[int]:
        """Tensors that it reads and that are no constants, each once."""
        return [i for i in dict.fromkeys(_ids(op.inputs)) if i >= 0 and not len(self._constant(i))]

    def kind(self, op: Any) -> str:
        """Equal for operators that do the same work on other numbers."""
        inputs, outputs = _ids(op.inputs), _ids(op.outputs)
        options = {k: _text(v) for k, v in vars(op).items() if k not in (*ENDS, "debugMetadataIndex")}
        return repr((options, [inputs.index(i) for i in inputs], [i >= 0 and self._work(i) for i in inputs + outputs]))

    def cut(self, op: Any) -> bytes:
        """A .tflite file with this operator alone. It keeps its constants; the model takes `inputs`, in that order.

        Raises ValueError when it runs a subgraph.
        """
        if any("ubgraph" in name for options in vars(op).values() for name in getattr(options, "__dict__", ())):
            raise ValueError(f"{self.name(op)} runs a subgraph")
        ends = [i for i in dict.fromkeys(i for name in ENDS for i in _ids(getattr(op, name))) if i >= 0]
        place = {-1: -1} | {i: n for n, i in enumerate(ends)}
        graph, alone, model = self._schema.SubGraphT(), copy.copy(op), self._schema.ModelT()
        graph.tensors = [copy.copy(self._tensors[i]) for i in ends]
        model.buffers = [self._schema.BufferT()]  # the first one is empty in every file
        for tensor in graph.tensors:
            model.buffers.append(self._model.buffers[tensor.buffer])
            tensor.buffer = len(model.buffers) - 1
        for name in ENDS:
            setattr(alone, name, [place[i] for i in _ids(getattr(op, name))])
        alone.opcodeIndex = 0
        graph.operators, graph.inputs, graph.outputs = [alone], [place[i] for i in self.inputs(op)], alone.outputs
        model.version, model.subgraphs = self._model.version, [graph]
        model.operatorCodes = [self._model.operatorCodes[op.opcodeIndex]]
        return _packed(model)

    def _work(self, i: int) -> tuple[Any, ...]:
        """What of a tensor decides how long it takes: small constants may be axes or sizes."""
        tensor, data = self._tensors[i], self._constant(i)
        scales = getattr(tensor.quantization, "scale", None)
        return _ids(tensor.shape), tensor.type, len(_ids(scales)), bytes(data) if len(data) <= 64 else len(data)

    def _constant(self, i: int) -> Any:
        """Bytes, none where the tensor is computed."""
        data = self._model.buffers[self._tensors[i].buffer].data
        return b"" if data is None else data


def _schema(path: Path) -> Any:
    for name in SCHEMAS:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise NotInstalled(f"{path} has no profile without TFLite's schema: pip install ai-edge-litert flatbuffers")


def _ids(x: Any) -> list[int]:
    return [] if x is None else [int(i) for i in x]


def _text(x: Any) -> str:
    """All that an object of the schema holds."""
    return repr({k: _text(v) for k, v in vars(x).items()}) if hasattr(x, "__dict__") else repr(x)


def _packed(model: Any) -> bytes:
    import flatbuffers

    class Aligned(flatbuffers.Builder):  # type: ignore[misc]  # flatbuffers ships no types
        def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:
            return int(super().StartVector(elemSize, numElems, ALIGNMENT if elemSize == 1 else alignment))

    builder = Aligned(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
