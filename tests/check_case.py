"""What the tests of `ced-edge check` share: clips, a reference, a correct bundle, and ways to spoil it."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import soundfile
import torch
from onnx import helper, numpy_helper
from tiny_bundle import tiny_model, with_file, write_bundle

from ced_edge.audio.clips import read_manifest
from ced_edge.audio.read import load
from ced_edge.files import sha256_file
from ced_edge.network.ced import CED, predict
from ced_edge.network.checkpoint import save_model
from ced_edge.proof.bounds import DEFAULTS, Bounds
from ced_edge.proof.check import Result, check
from ced_edge.proof.reference import read_reference
from ced_edge.proof.targets import targets
from ced_edge.runtime.bundle import Bundle, read_bundle
from distill.evaluation.evaluate import evaluate

N_CLIPS, N_LABELS = 24, 20
# With random weights, probabilities differ little between clips, so eight bits are more noise than in a real model.
LIMITS = {
    kind: dataclasses.replace(b, max_noise=max(b.max_noise, 0.2), max_error=b.max_error if kind == "fp32" else 1.0)
    for kind, b in DEFAULTS.items()
}


@dataclass(frozen=True)
class Case:
    """A bundle with all that it is checked with, in one folder."""

    folder: Path

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def data(self) -> Path:
        return self.folder / "clips.csv"

    @property
    def reference(self) -> Path:
        return self.folder / "reference.json"

    def copy(self, folder: Path) -> Case:
        """A copy whose files may be changed."""
        return Case(shutil.copytree(self.folder, folder / "case"))


def write_case(folder: Path, seconds: tuple[float, ...] = (1.0, 2.0, 0.7), free: bool = True) -> Case:
    """A random CED as fp32 and int8 ONNX, with a window of 2 s. Its reference has a mAP of 1, whatever the weights."""
    case, model = Case(folder), tiny_model()
    bundle = write_bundle(case.bundle, "mel", free=free)
    save_model(folder / "model.safetensors", model, {})
    bundle = dataclasses.replace(bundle, checkpoint_sha256=sha256_file(folder / "model.safetensors"))
    int8 = case.bundle / "24x2-int8.onnx"
    round_model(case.bundle / "24x2-fp32.onnx", int8, weight_bits=8, activation_bits=8)
    with_file(bundle, int8, "int8")
    names = [write_clip(folder, i, seconds[i % len(seconds)]) for i in range(N_CLIPS)]
    rows = [f"{name},{';'.join(map(str, of))}" for name, of in zip(names, labels_of(model, folder, names), strict=True)]
    case.data.write_text("\n".join(["filename,labels", *rows]) + "\n")
    evaluate(model, read_manifest(case.data)).reference(folder / "model.safetensors").write(folder)
    return case


def write_clip(folder: Path, i: int, seconds: float) -> str:
    """A tone in noise, another for every i."""
    rng, t = np.random.default_rng(i), np.arange(round(seconds * 16_000)) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * 200 * 2 ** (i / 5) * t) + rng.uniform(0, 0.2) * rng.standard_normal(len(t))
    soundfile.write(folder / f"{i:02}.wav", wave.astype(np.float32), 16_000)
    return f"{i:02}.wav"


def labels_of(model: CED, folder: Path, names: list[str]) -> list[list[int]]:
    """Labels for which the model has a mAP of 1: per class, the clips above the widest gap in its probabilities."""
    with torch.no_grad():
        waves = [torch.from_numpy(load(folder / name, 16_000))[None] for name in names]
        probs = np.concatenate([predict(model, wave).numpy() for wave in waves])  # (N, C)
    ordered = np.sort(probs, axis=0)[len(names) // 4 : 3 * len(names) // 4]
    gaps = np.diff(ordered, axis=0)
    above = ordered[gaps.argmax(axis=0) + 1, np.arange(probs.shape[1])]
    chosen = np.argsort(-gaps.max(axis=0))[:N_LABELS]
    return [[int(c) for c in chosen if row[c] >= above[c]] for row in probs]


def round_model(path: Path, out: Path, weight_bits: int | None = None, activation_bits: int | None = None) -> None:
    """Write a model whose weights (per output channel), or whose inputs of each matrix product (per tensor, by their
    own range), take no more than 2 ** bits values."""
    model = onnx.load(path)
    graph = model.graph
    values = {w.name: w for w in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for i, name in enumerate(node.input[:2] if node.op_type in ("MatMul", "Gemm") else []):
            if name in values and weight_bits:
                w = numpy_helper.to_array(values[name])
                axis = 1 if any(a.name == "transB" and a.i for a in node.attribute) else 0
                step = np.abs(w).max(axis=axis, keepdims=True) / (2 ** (weight_bits - 1) - 1)
                values[name].CopyFrom(numpy_helper.from_array((np.round(w / step) * step).astype(np.float32), name))
            elif name not in values and activation_bits:
                rounded = f"{node.name}_{i}_rounded"
                nodes += _rounding(name, rounded, 2 ** (activation_bits - 1) - 1)
                node.input[i] = rounded
        nodes.append(node)
    if activation_bits:
        del graph.node[:]
        graph.node.extend(nodes)
    onnx.save(model, out)


def _rounding(name: str, out: str, levels: int) -> list[onnx.NodeProto]:
    """Nodes that round a tensor to steps of max|x| / levels."""
    step, n = [f"{out}_{part}" for part in ("abs", "max", "step", "scaled", "whole")], f"{out}_levels"
    return [
        helper.make_node("Constant", [], [n], value=numpy_helper.from_array(np.float32(levels))),
        helper.make_node("Abs", [name], [step[0]]),
        helper.make_node("ReduceMax", [step[0]], [step[1]], keepdims=0),
        helper.make_node("Div", [step[1], n], [step[2]]),
        helper.make_node("Div", [name, step[2]], [step[3]]),
        helper.make_node("Round", [step[3]], [step[4]]),
        helper.make_node("Mul", [step[4], step[2]], [out]),
    ]


def permute_outputs(path: Path, out: Path) -> None:
    """Write a model that gives class i the probability of class i + 1."""
    model = onnx.load(path)
    for w in model.graph.initializer:
        if w.name in ("model.outputlayer.1.weight", "model.outputlayer.1.bias"):
            w.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(w), -1, axis=0), w.name))
    onnx.save(model, out)


def replace_file(bundle: Bundle, path: Path) -> None:
    """Write the hash and size of a changed file into bundle.json."""
    files = tuple(
        dataclasses.replace(f, sha256=sha256_file(path), bytes=path.stat().st_size) if f.name == path.name else f
        for f in bundle.files
    )
    dataclasses.replace(bundle, files=files).write()


@functools.cache
def shared_case(folder: Path) -> Case:
    """A case that is made once per process. Tests that change its files must copy it."""
    folder.mkdir()
    return write_case(folder)


def run_check(
    case: Case, kind: str | None = None, stream: bool = False, limits: dict[str, Bounds] = LIMITS
) -> list[Result]:
    """`ced-edge check` on every file, or those of one kind."""
    wanted = targets(read_bundle(case.bundle), kind=kind)
    return check(
        wanted, read_reference(case.reference), read_manifest(case.data), limits, stream=stream, rounds=1, repeats=1
    )


def spoil(
    case: Case, name: str = "24x2-int8.onnx", weight_bits: int | None = None, activation_bits: int | None = None
) -> None:
    """Write the int8 file again, with fewer bits."""
    bundle = read_bundle(case.bundle)
    round_model(case.bundle / "24x2-fp32.onnx", case.bundle / name, weight_bits, activation_bits)
    replace_file(bundle, case.bundle / name)
