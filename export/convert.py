"""A tagger as .onnx: free batch and free time axis, cleaned of what only the exporter needs."""

from __future__ import annotations

import ast
from pathlib import Path

import torch
from torch import Tensor, nn

from export.graph import ExportModel
from export.quiet import quiet

OPSET = 20
"""The first with Gelu; older runtimes would compute it in five steps."""
SCOPE = "pkg.torch.onnx.name_scopes"
"""The exporter's note of the module that a node comes from."""


def to_onnx(tagger: ExportModel, path: Path, window_samples: int) -> None:
    """Write `tagger` as float32 ONNX; input `waveform` (B, samples) or `mel` (B, n_mels, frames), output `prob`.

    Node names begin with the module they come from, such as `blocks.3.fc1/`.
    """
    import onnx

    name = "waveform" if tagger.waveform else "mel"
    free = torch.export.Dim.DYNAMIC
    with quiet():
        program = torch.onnx.export(
            tagger,
            (tagger.example(window_samples, batch=2),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[name],
            output_names=["prob"],
            dynamic_shapes={"x": {0: free, 1 if tagger.waveform else 2: free}},
        )
    assert program is not None
    model = program.model_proto
    _clean(model)
    _name_axes(model.graph.input[0], ["batch", "samples"] if tagger.waveform else ["batch", None, "frames"])
    _name_axes(model.graph.output[0], ["batch", None])
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _clean(model) -> None:  # type: ignore[no-untyped-def]  # onnx ships no types for its protobufs
    """Short node names; no shapes of intermediate values (quantisation would contradict them) and no source lines."""
    del model.graph.value_info[:]
    del model.functions[:]
    for i, node in enumerate(model.graph.node):
        scopes = next((p.value for p in node.metadata_props if p.key == SCOPE), "[]")
        # From the outermost module to the innermost, and then the operation.
        module = ast.literal_eval(scopes)[-2:-1]
        node.name = "/".join([*module, f"{node.op_type}_{i}"])
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""
    del model.graph.metadata_props[:]


def _name_axes(port, names: list[str | None]) -> None:  # type: ignore[no-untyped-def]
    for axis, name in zip(port.type.tensor_type.shape.dim, names, strict=True):
        if name:
            axis.dim_param = name


class Named(nn.Module):
    """Gives the output its name in the file's signature."""

    def __init__(self, tagger: ExportModel) -> None:
        super().__init__()
        self.tagger = tagger

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        (x,) = inputs.values()
        return {"prob": self.tagger(x)}


def to_tflite(tagger: ExportModel, path: Path, window_samples: int) -> None:
    """Write `tagger` as float32 TFLite; input `waveform` (1, samples) or `mel` (1, n_mels, frames), output `prob`."""
    with quiet():
        import litert_torch

        name = "waveform" if tagger.waveform else "mel"
        example = tagger.example(window_samples, batch=1)
        litert_torch.convert(Named(tagger).eval(), sample_kwargs={name: example}).export(str(path))
