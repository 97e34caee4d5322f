"""Where the time goes: ONNX Runtime's own profile, and operators cut out of a .tflite file."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Call
from numpy.typing import NDArray
from tiny_bundle import shared_bundle, with_file

from ced_edge.errors import InputError
from ced_edge.proof import profile, tflite_graph
from ced_edge.proof.profile import OpTime, Profile, aggregate
from ced_edge.proof.report import op_rows, profile_notes
from ced_edge.proof.targets import Target, targets, window
from ced_edge.proof.tflite_graph import Graph
from ced_edge.proof.worker import Worker
from ced_edge.runtime.backends import NotInstalled
from ced_edge.runtime.bundle import read_bundle

# ONNX Runtime.


def test_a_profile_by_hand() -> None:
    def node(op: str, ts: int, dur: int, name: str = "n_kernel_time") -> dict[str, Any]:
        return {"cat": "Node", "name": name, "ts": ts, "dur": dur, "args": {"op_name": op}}

    def run(ts: int, dur: int) -> dict[str, Any]:
        return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur}

    events = [
        {"cat": "Session", "name": "model_loading", "ts": 0, "dur": 9},
        node("MatMul", 11, 90_000),  # the first run is not counted
        run(10, 95_000),
        node("MatMul", 101, 2_000),
        node("MatMul", 102, 3_000),
        node("Add", 103, 1_000),
        node("Add", 103, 50_000, "n_fence_before"),
        run(100, 7_000),
        node("MatMul", 201, 3_000),
        node("MatMul", 202, 2_000),
        node("Add", 203, 5_000),
        run(200, 11_000),
    ]
    found = aggregate(events)
    assert found.ops == [
        OpTime("MatMul", 2, pytest.approx(5.0), pytest.approx(10 / 16)),
        OpTime("Add", 1, pytest.approx(3.0), pytest.approx(6 / 16)),
    ]
    assert (found.ops_ms, found.whole_ms) == (pytest.approx(8), pytest.approx(9))
    assert found.to_dict()["ops"][1]["op"] == "Add"
    assert found.to_dict()["ops_ms"] == found.ops_ms


@pytest.mark.parametrize("kind", ["waveform", "mel"])
def test_a_profile_of_an_onnx_file(kind: str) -> None:
    (target,) = targets(shared_bundle(kind))
    found = profile.profile(target, repeats=3)
    ops = {op.op: op for op in found.ops}
    assert sum(op.share for op in found.ops) == pytest.approx(1)
    times = [op.ms for op in found.ops]
    assert times == sorted(times, reverse=True)
    blocks = target.bundle.spec.depth
    assert ops["Softmax"].calls == blocks
    assert sum(op.calls for name, op in ops.items() if "MatMul" in name or "Gemm" in name) >= 6 * blocks
    assert 0 < found.ops_ms <= found.whole_ms
    assert "ONNX Runtime" in found.method
    assert not [p for p in Path().iterdir() if p.name.startswith("profile")]


def test_what_is_printed() -> None:
    found = Profile([OpTime("ADD", 12, 1.5, 0.75), OpTime("MUL", 1, 0.5, 0.25)], 2.125, "by hand", {"WHILE": 2})
    assert op_rows(found)[0] == ["ADD", "75.0%", "1.500", "12"]
    assert profile_notes(found) == [
        "sum of operators 2.00 ms, whole model 2.12 ms",
        "by hand",
        "not timed: 2 WHILE",
    ]


# TFLite.

ROWS, WIDTH = 200, 24


class Net:
    """Writes a .tflite file operator by operator; tensor 0 is the input."""

    def __init__(self, *shape: int) -> None:
        self.s: Any = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="it writes these files")
        self.rng = np.random.default_rng(2)
        self.buffers, self.tensors, self.codes, self.ops = [self.s.BufferT()], [], [], []
        self.tensor(*shape)

    def tensor(self, *shape: int, scale: float | None = None, data: NDArray[Any] | None = None) -> int:
        """float32, or int8 with `scale`, or of `data`'s own type."""
        dtype = "INT8" if scale else "FLOAT32" if data is None else data.dtype.name.upper()
        t = self.s.TensorT(name=f"t{len(self.tensors)}", shape=list(shape), type=getattr(self.s.TensorType, dtype))
        if scale:
            t.quantization = self.s.QuantizationParametersT(scale=[scale], zeroPoint=[0])
        if data is not None:
            t.buffer = len(self.buffers)
            self.buffers.append(self.s.BufferT(data=data.reshape(-1).view(np.uint8)))
        self.tensors.append(t)
        return len(self.tensors) - 1

    def ints(self, *x: int) -> int:
        return self.tensor(len(x), data=np.array(x, np.int32))

    def floats(self, *shape: int) -> int:
        return self.tensor(*shape, data=(self.rng.normal(size=shape) / 4).astype(np.float32))

    def int8s(self, *shape: int) -> int:
        return self.tensor(*shape, scale=0.01, data=self.rng.integers(-60, 60, shape, np.int8))

    def add(self, op: str, inputs: list[int], *outputs: int, **options: Any) -> int:
        """The first output. `options` may hold `kind`, where the options are not named after the operator."""
        kind = options.pop("kind", op.title().replace("_", "")) + "Options"
        if op not in self.codes:
            self.codes.append(op)
        made = self.s.OperatorT(opcodeIndex=self.codes.index(op), inputs=inputs, outputs=list(outputs))
        for field, union in (("builtinOptions", self.s.BuiltinOptions), ("builtinOptions2", self.s.BuiltinOptions2)):
            if hasattr(union, kind):
                setattr(made, field, getattr(self.s, f"{kind}T")(**options))
                setattr(made, f"{field}Type", getattr(union, kind))
        self.ops.append(made)
        return outputs[0]

    def write(self, path: Path, output: int) -> None:
        """With a second graph, of one LOGISTIC, the operator that was added last."""
        logistic = self.s.OperatorT(opcodeIndex=self.ops[-1].opcodeIndex, inputs=[0], outputs=[1])
        ends = [self.tensors[output]] * 2
        inner = self.s.SubGraphT(tensors=ends, inputs=[0], outputs=[1], operators=[logistic])
        main = self.s.SubGraphT(tensors=self.tensors, inputs=[0], outputs=[output], operators=self.ops)
        codes = []
        for op in self.codes:
            number, version = getattr(self.s.BuiltinOperator, op), 4 if op == "FULLY_CONNECTED" else 1
            codes.append(self.s.OperatorCodeT(min(number, 127), version=version, builtinCode=number))
        model = self.s.ModelT(version=3, operatorCodes=codes, subgraphs=[main, inner], buffers=self.buffers)
        path.write_bytes(tflite_graph._packed(model))


def write_net(path: Path, samples: int) -> None:
    """Waveform (1, samples) -> probabilities (1, 527), with what is hard to cut."""
    from flatbuffers import flexbuffers

    net, row = Net(1, samples), (ROWS, WIDTH)
    x = net.add("RESHAPE", [0, net.ints(ROWS, samples // ROWS)], net.tensor(ROWS, samples // ROWS))
    x = net.add("FULLY_CONNECTED", [x, net.floats(WIDTH, samples // ROWS), net.floats(WIDTH)], net.tensor(*row))
    for _ in range(2):  # the same work on other weights
        x = net.add("FULLY_CONNECTED", [x, net.floats(WIDTH, WIDTH), net.floats(WIDTH)], net.tensor(*row))
    # Ranges at run time, and no bias.
    x = net.add("FULLY_CONNECTED", [x, net.int8s(WIDTH, WIDTH), -1], net.tensor(*row), asymmetricQuantizeInputs=True)
    x = net.add("LOGISTIC", [x], net.tensor(*row))
    y = net.add("MUL", [x, x], net.tensor(*row))  # one tensor twice
    y = net.add("MUL", [y, x], net.tensor(*row))
    y = net.add("QUANTIZE", [y], net.tensor(*row, scale=1 / 127))
    y = net.add("FULLY_CONNECTED", [y, net.int8s(WIDTH, WIDTH), -1], net.tensor(*row, scale=0.05))
    y = net.add("DEQUANTIZE", [y], net.tensor(*row))
    halves = [net.tensor(ROWS, WIDTH // 2) for _ in range(2)]
    net.add("SPLIT", [net.tensor(data=np.array(1, np.int32)), y], *halves, numSplits=2)
    y = net.add("CONCATENATION", halves[::-1], net.tensor(*row), axis=1)
    y = net.add("TRANSPOSE", [y, net.ints(1, 0)], net.tensor(*row[::-1]))
    y = net.add("MEAN", [y, net.ints(1)], net.tensor(WIDTH), kind="Reducer")
    y = net.add("RESHAPE", [y, net.ints(1, WIDTH)], net.tensor(1, WIDTH))
    y = net.add("FULLY_CONNECTED", [y, net.floats(527, WIDTH), -1], net.tensor(1, 527))
    composite = {"kind": "StableHLOComposite", "name": "mine", "decompositionSubgraphIndex": 1}
    none = np.frombuffer(flexbuffers.Dumps({}), np.uint8)
    y = net.add("STABLEHLO_COMPOSITE", [y], net.tensor(1, 527), **composite, compositeAttributes=none)
    y = net.add("LOGISTIC", [y], net.tensor(1, 527))
    net.write(path, y)


@pytest.fixture(scope="module")
def litert() -> Any:
    return pytest.importorskip("ai_edge_litert.interpreter", reason="no TFLite runtime: pip install ai-edge-litert")


@pytest.fixture(scope="module")
def target(litert: Any, tmp_path_factory: pytest.TempPathFactory) -> Target:
    folder = tmp_path_factory.mktemp("tflite") / "bundle"
    shutil.copytree(shared_bundle().folder, folder)
    bundle = read_bundle(folder)
    write_net(folder / "24x2-fp32.tflite", bundle.window_samples)
    bundle = with_file(bundle, folder / "24x2-fp32.tflite", "fp32")
    return targets(bundle, "ai-edge-litert")[0]


@pytest.fixture(scope="module")
def graph(target: Target) -> Graph:
    return Graph(target.bundle.path(target.file))


@pytest.mark.parametrize("delegate", [False, True])
def test_every_operator_alone_does_what_it_does_in_the_whole(
    litert: Any, target: Target, graph: Graph, delegate: bool
) -> None:
    values = profile.run_plainly(litert, target.bundle.path(target.file), window(target.bundle)[None])
    kinds = litert.OpResolverType
    resolver = kinds.AUTO if delegate else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    done = 0
    for op in graph.operators:
        if graph.name(op) == "STABLEHLO_COMPOSITE":
            continue
        inputs = [values.get_tensor(i) for i in graph.inputs(op)]
        alone = profile.loaded(litert, inputs, model_content=graph.cut(op), experimental_op_resolver_type=resolver)
        for d, i in zip(alone.get_output_details(), op.outputs, strict=True):
            found, wanted = alone.get_tensor(d["index"]), values.get_tensor(i)
            assert wanted.std() > 0
            step = 1 if wanted.dtype == np.int8 else 0.03  # ranges at run time may be rounded differently
            np.testing.assert_allclose(found, wanted, rtol=0, atol=step * delegate, err_msg=graph.name(op))
            done += 1
    assert done == len(graph.operators)  # SPLIT has two


def test_operators_of_one_kind_are_timed_once(graph: Graph) -> None:
    kinds = Counter((graph.name(op), graph.kind(op)) for op in graph.operators)
    assert [name for (name, _), n in kinds.items() if n > 1] == ["FULLY_CONNECTED"]
    assert max(kinds.values()) == 2
    assert [len(graph.inputs(op)) for op in graph.operators if graph.name(op) == "MUL"] == [1, 2]


def test_a_profile_of_a_tflite_file(target: Target) -> None:
    with Worker(target) as worker:
        found = worker.profile(repeats=2)
    calls = {op.op: op.calls for op in found.ops}
    assert calls["FULLY_CONNECTED"] == 6
    assert (calls["MUL"], calls["SPLIT"], calls["RESHAPE"]) == (2, 1, 2)
    assert found.left_out == {"STABLEHLO_COMPOSITE": 1}
    assert sum(op.share for op in found.ops) == pytest.approx(1)
    assert found.ops_ms == pytest.approx(sum(op.ms for op in found.ops))
    assert found.whole_ms > 0
    assert found.method.startswith("each operator timed alone, as a model of its own; calling it takes at most ")


def test_the_command_prints_it(call: Call, target: Target) -> None:
    args = ("bench", "--bundle", target.bundle.folder, "--format", "tflite", "--runtime", target.runtime, "--profile")
    quick = ("--rounds", 1, "--repeats", 1, "--cold", 1, "--threads", "1,2")
    code, out, err = call(*args, *quick)
    assert (code, err) == (0, "")
    _, _, notes = out.partition("\n\n")
    lines = notes.splitlines()
    assert re.fullmatch(r"24x2-fp32\.tflite on ai-edge-litert [\d.]+, threads: 1", lines[0])
    assert re.fullmatch(r"sum of operators [\d.]+ ms, whole model [\d.]+ ms", lines[1])
    assert "timed alone" in lines[2]
    assert lines[3:5] == ["not timed: 1 STABLEHLO_COMPOSITE", lines[4]]
    assert lines[4].split() == ["op", "share", "ms", "calls"]
    code, out, err = call(*args, *quick, "--json")
    assert (code, err) == (0, "")
    (found,) = json.loads(out)["profiles"]
    assert (found["threads"], found["left_out"]) == (1, {"STABLEHLO_COMPOSITE": 1})
    assert found["ops_ms"] > 0
    assert found["whole_ms"] > 0
    assert "timed alone" in found["method"]
    assert {"op", "calls", "ms", "share"} == found["ops"][0].keys()


def test_without_a_schema(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflite_graph, "SCHEMAS", ("no_such_module.schema",))
    with pytest.raises(NotInstalled, match=r"fp32\.tflite .*schema.*: pip install ai-edge-litert flatbuffers$"):
        profile.profile(target)


# Hostile files.


def refused(path: Path, content: bytes, message: str = "is no readable TFLite model") -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Graph(path)


def test_damaged_files_are_refused_in_one_line(target: Target, tmp_path: Path) -> None:
    whole = target.bundle.path(target.file).read_bytes()
    path = tmp_path / "x.tflite"
    for size in (0, 3, 8, 100, len(whole) // 2):
        refused(path, whole[:size])
    refused(path, b"PK" + whole[2:4] + b"ELSE" + whole[8:], "does not begin as a TFLite file does")


def test_whatever_bytes_are_changed_it_is_read_or_refused(target: Target, tmp_path: Path) -> None:
    """Any other exception than InputError fails the test."""
    whole, rng = target.bundle.path(target.file).read_bytes(), np.random.default_rng(0)
    path, refusals = tmp_path / "x.tflite", 0
    for _ in range(100):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), 50):  # most of them hit weights, which may hold anything
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        try:
            graph = Graph(path)
        except InputError:
            refusals += 1
            continue
        for op in graph.operators:
            graph.kind(op), graph.name(op), graph.inputs(op)
    assert 20 < refusals < 100


def vector(b: Any, offsets: list[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())


@pytest.mark.parametrize("what", ["numbers", "texts"])
def test_a_file_that_points_to_one_table_many_times_does_not_fill_the_memory(tmp_path: Path, what: str) -> None:
    """50,000 operators that share 50,000 inputs, or as many tensors that share one long name: 10 GB, in 0.4 MB."""
    s: Any = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="it writes these files")
    import flatbuffers

    b, many = flatbuffers.Builder(1024), 50_000
    numbers = b.CreateNumpyVector(np.zeros(many, np.int32))
    text = b.CreateString("x" * 200_000)
    s.OperatorStart(b)
    s.OperatorAddInputs(b, numbers)
    operator = s.OperatorEnd(b)
    s.TensorStart(b)
    s.TensorAddName(b, text)
    tensor = s.TensorEnd(b)
    tensors, operators = vector(b, [tensor] * (many if what == "texts" else 1)), vector(b, [operator] * many)
    s.SubGraphStart(b)
    s.SubGraphAddTensors(b, tensors)
    s.SubGraphAddOperators(b, operators)
    graphs = vector(b, [s.SubGraphEnd(b)])
    s.BufferStart(b)
    buffers = vector(b, [s.BufferEnd(b)])
    s.OperatorCodeStart(b)
    codes = vector(b, [s.OperatorCodeEnd(b)])
    s.ModelStart(b)
    s.ModelAddSubgraphs(b, graphs)
    s.ModelAddBuffers(b, buffers)
    s.ModelAddOperatorCodes(b, codes)
    b.Finish(s.ModelEnd(b), file_identifier=b"TFL3")
    content = bytes(b.Output())
    assert len(content) < 1_000_000
    tracemalloc.start()
    refused(tmp_path / "x.tflite", content, "claims more than its [0-9]+ bytes can hold")
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()


def test_numbers_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    for spoil in ("input", "buffer", "opcode"):
        net = Net(1, 4)
        y = net.add("LOGISTIC", [7 if spoil == "input" else 0], net.tensor(1, 4))
        net.tensors[0].buffer = 9 if spoil == "buffer" else 0
        net.ops[0].opcodeIndex = 3 if spoil == "opcode" else 0
        net.write(tmp_path / "good.tflite", y)
        refused(tmp_path / "x.tflite", (tmp_path / "good.tflite").read_bytes(), "names something that is not there")
