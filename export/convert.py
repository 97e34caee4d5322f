"""Conversion of an `ExportModel` to float32 files: .onnx with a free batch and time axis, .tflite of one window."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.graph import ExportModel
from export.quiet import quiet

OPSET = 20
"""The first ONNX opset with a Gelu operator. With an older one, runtimes would compute it in five steps."""
SCOPE = "pkg.torch.onnx.name_scopes"
"""Property in which the exporter records the module that a node comes from."""


def to_onnx(model: ExportModel, path: Path, window_samples: int) -> None:
    """Write `model` as float32 ONNX: input `waveform` (B, samples) or `mel` (B, n_mels, frames), output `prob` (B, C).

    Node names begin with the module that they come from, such as `blocks.3.fc1/`: `quantize` chooses nodes by them.
    """
    import onnx

    name = "waveform" if model.waveform else "mel"
    free = torch.export.Dim.DYNAMIC
    with quiet():
        program = torch.onnx.export(
            model,
            (model.example(window_samples, batch=2),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[name],
            output_names=["prob"],
            dynamic_shapes={"x": {0: free, 1 if model.waveform else 2: free}},
        )
    assert program is not None
    proto = program.model_proto
    _clean(proto)
    _name_axes(proto.graph.input[0], ["batch", "samples"] if model.waveform else ["batch", None, "frames"])
    _name_axes(proto.graph.output[0], ["batch", None])
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _clean(proto: Any) -> None:  # Any: onnx ships no types for its protobufs
    """Shorten the node names, and remove source lines, unused functions and the shapes of intermediate values."""
    # Quantisation changes the types of intermediate values. Their old shapes and types would then contradict the graph.
    del proto.graph.value_info[:]
    del proto.functions[:]
    for i, node in enumerate(proto.graph.node):
        scopes = next((p.value for p in node.metadata_props if p.key == SCOPE), "[]")
        # The scopes are the modules from the outermost to the innermost, and then the operation.
        module = ast.literal_eval(scopes)[-2:-1]
        node.name = "/".join([*module, f"{node.op_type}_{i}"])
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""
    del proto.graph.metadata_props[:]


def _name_axes(port: Any, names: list[str | None]) -> None:
    """Name the free axes of an input or output; None leaves an axis of fixed size."""
    for axis, name in zip(port.type.tensor_type.shape.dim, names, strict=True):
        if name:
            axis.dim_param = name


class Named(nn.Module):
    """A model whose output is called `prob` in the file's signature, which litert-torch takes from a dict."""

    def __init__(self, model: ExportModel) -> None:
        super().__init__()
        self.tagger = model  # this name is part of the tensors' names in the file

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        (x,) = inputs.values()
        return {"prob": self.tagger(x)}


def to_tflite(model: ExportModel, path: Path, window_samples: int) -> None:
    """Write `model` as float32 TFLite: input `waveform` (1, samples) or `mel` (1, n_mels, frames), output `prob`."""
    with quiet():
        import litert_torch

        name = "waveform" if model.waveform else "mel"
        example = model.example(window_samples, batch=1)
        litert_torch.convert(Named(model).eval(), sample_kwargs={name: example}).export(str(path))
