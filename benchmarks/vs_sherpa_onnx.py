"""Speed compared with sherpa-onnx's `AudioTagging`, same weights, one thread, from waveform to probabilities.

    pip install sherpa-onnx
    python benchmarks/vs_sherpa_onnx.py CHECKPOINT BUNDLE

BUNDLE is the output of `ced-edge export --int8 CHECKPOINT`. sherpa-onnx computes the log-mel itself. It gets the
network as torch.onnx.export writes it, in fp32 and in int8. The int8 file is made by onnxruntime's plain dynamic
quantisation of MatMul, in the same way as the CED models that are published for sherpa-onnx.

The parts take turns. Ratios are taken within a turn; the table shows their median and quartiles.
"""

from __future__ import annotations

import importlib.resources
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from race import race, ratios, show
from start import run
from torch import Tensor, nn

from ced_edge.files import sha256_file
from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import find_checkpoint, load_model
from ced_edge.runtime.bundle import read_bundle
from ced_edge.runtime.tagger import Tagger
from export.metadata import add_onnx_metadata
from export.quiet import quiet


def sherpa(model: Path, wave: np.ndarray, rate_hz: int) -> Callable[[], list[Any]]:
    """A call of sherpa-onnx's tagger on one clip. Its API needs a new stream for each call."""
    import sherpa_onnx

    labels = importlib.resources.files("ced_edge") / "class_labels_indices.csv"
    config = sherpa_onnx.AudioTaggingConfig(
        model=sherpa_onnx.AudioTaggingModelConfig(ced=str(model), num_threads=1), labels=str(labels), top_k=5
    )
    tagging = sherpa_onnx.AudioTagging(config)

    def call() -> list[Any]:
        stream = tagging.create_stream()
        stream.accept_waveform(rate_hz, wave)
        return list(tagging.compute(stream))

    return call


class PlainMel(nn.Module):
    """The unchanged network: log-mel (B, n_mels, T) -> probabilities."""

    def __init__(self, model: CED) -> None:
        super().__init__()
        self.model = model

    def forward(self, mel: Tensor) -> Tensor:
        return self.model.forward_mel(mel).sigmoid()


def plain_files(model: CED, folder: Path) -> tuple[Path, Path]:
    """Write float and int8 .onnx files of the unchanged network: none of our rewriting."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    float_file, int8_file = folder / "fp32.onnx", folder / "int8.onnx"
    free = torch.export.Dim.DYNAMIC
    with quiet():
        torch.onnx.export(
            PlainMel(model),
            (torch.randn(2, model.spec.frontend.n_mels, 1001),),
            float_file,
            dynamo=True,
            external_data=False,
            input_names=["mel"],
            output_names=["prob"],
            dynamic_shapes={"mel": {0: free, 2: free}},
        )
        graph = onnx.load(float_file)
        del graph.graph.value_info[:]
        onnx.save(graph, float_file)
        quantize_dynamic(float_file, int8_file, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
        for file in (float_file, int8_file):
            add_onnx_metadata(file, model.spec, "mel", 10.0)
    return float_file, int8_file


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--turns", default=40, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(checkpoint: Path, bundle: Path, turns: int, as_json: bool) -> None:
    """Measure and print."""
    ours = read_bundle(bundle)
    if ours.input != "waveform" or ours.checkpoint_sha256 != sha256_file(find_checkpoint(checkpoint).weights):
        raise click.UsageError("give a checkpoint and the waveform bundle that was exported from it")
    rate = ours.spec.frontend.rate_hz
    wave = (0.05 * np.random.default_rng(0).standard_normal(ours.window_samples)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        float_file, int8_file = plain_files(load_model(checkpoint), Path(folder))
        parts: dict[str, Callable[[], Any]] = {
            "sherpa-onnx int8": sherpa(int8_file, wave, rate),
            "sherpa-onnx fp32": sherpa(float_file, wave, rate),
        }
        for file in ours.files:
            parts[file.name] = partial(Tagger(ours, file=file.name).predict_window, wave)
        result = ratios(race(parts, turns), "sherpa-onnx int8")
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        show(result, "sherpa-onnx int8")


if __name__ == "__main__":
    run(main)
