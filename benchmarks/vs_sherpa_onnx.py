"""Speed beside sherpa-onnx's `AudioTagging`, the same weights in both: from waveform to probabilities, one thread.

    pip install sherpa-onnx
    python benchmarks/vs_sherpa_onnx.py BUNDLE MEL_BUNDLE

BUNDLE is what `ced-edge export --int8` wrote. MEL_BUNDLE (`ced-edge export --input mel --format onnx`) is what
sherpa-onnx is fed, as it computes the log-mel itself: its float file, and int8 made of that one by onnxruntime's plain
dynamic quantisation of MatMul, which is what the CED repository publishes.
The parts take turns; ratios are medians over the turns of the ratio within one, with their quartiles.
"""

from __future__ import annotations

import importlib.resources
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from ced_edge.artifact import read_bundle
from ced_edge.tagger import Tagger


def sherpa(model: Path, wave: np.ndarray, rate_hz: int) -> Callable[[], list[Any]]:
    """sherpa-onnx's tagger on one clip: a new stream each time, as its API wants."""
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


def plain_int8(source: Path, target: Path) -> Path:
    """onnxruntime's dynamic quantisation with its defaults."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
    return target


def race(parts: dict[str, Callable[[], Any]], turns: int) -> dict[str, np.ndarray]:
    """Name -> (turns,) milliseconds; each part once a turn."""
    for call in parts.values():
        call()
        call()
    took: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(turns):
        for name, call in parts.items():
            start = time.perf_counter()
            call()
            took[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(ms) for name, ms in took.items()}


def ratios(took: dict[str, np.ndarray], over: str) -> dict[str, dict[str, float]]:
    """Median milliseconds of each part, and how many times as fast as `over` it is: median and quartiles."""
    result = {}
    for name, ms in took.items():
        low, mid, high = np.percentile(took[over] / ms, [25, 50, 75])
        result[name] = {
            "ms": float(np.median(ms)),
            "ratio": float(mid),
            "ratio_low": float(low),
            "ratio_high": float(high),
        }
    return result


def show(result: dict[str, dict[str, float]], over: str) -> None:
    width = max(map(len, result))
    click.echo(f"{'':{width}} {'ms':>8}   times as fast as {over} (quartiles)")
    for name, r in result.items():
        click.echo(f"{name:{width}} {r['ms']:8.2f}   {r['ratio']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f})")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("mel_bundle", type=click.Path(path_type=Path))
@click.option("--turns", default=40, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(bundle: Path, mel_bundle: Path, turns: int, as_json: bool) -> None:
    """Measure and print."""
    ours, mel = read_bundle(bundle), read_bundle(mel_bundle)
    if (ours.input, mel.input) != ("waveform", "mel") or ours.checkpoint_sha256 != mel.checkpoint_sha256:
        raise click.UsageError("give a waveform bundle and a mel bundle of the same checkpoint")
    rate = ours.spec.frontend.rate_hz
    wave = (0.05 * np.random.default_rng(0).standard_normal(ours.window_samples)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        float_file = mel.path(mel.file(kind="fp32", format="onnx"))
        int8_file = plain_int8(float_file, Path(folder) / "int8.onnx")
        parts: dict[str, Callable[[], Any]] = {
            "sherpa-onnx int8": sherpa(int8_file, wave, rate),
            "sherpa-onnx fp32": sherpa(float_file, wave, rate),
        }
        for file in ours.files:
            parts[file.name] = lambda tagger=Tagger(ours, file=file.name): tagger.hear(wave)
        result = ratios(race(parts, turns), "sherpa-onnx int8")
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        show(result, "sherpa-onnx int8")


if __name__ == "__main__":
    main()
