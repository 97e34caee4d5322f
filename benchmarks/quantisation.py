"""Size, time and error of every way to make int8 files that was tried. docs/quantisation.md discusses the table.

    python benchmarks/quantisation.py students/tiny --data esc10.csv --data us8k.csv --split dev \\
        --calibration pool.csv

The models take the log-mel of 10 s, so the table is about the network alone. One thread; all files take turns. Clips
are joined to 10 s and get the labels of all their parts. Only the last piece of each data set is repeated: with a
repeated clip, a model that skips tokens loses nothing, and would look better than it is.

`plain` is the unchanged network as torch.onnx.export and litert_torch.convert write it. `folded` is the network as
`export.graph` writes it. `centred` is the same with `CentredBlock`, which exported .tflite files use.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from race import race
from start import run
from torch import Tensor, nn

from ced_edge.audio.clips import Clip, read_manifest
from ced_edge.audio.read import load
from ced_edge.frontend import log_mel
from ced_edge.network.ced import CED, Block
from ced_edge.network.checkpoint import load_model
from ced_edge.proof.metrics import average_precision, mean_ap, multi_hot
from ced_edge.runtime.backends import load_backend
from export import quantize
from export.convert import to_onnx, to_tflite
from export.graph import CentredBlock, ExportModel, FoldedBlock, _linear, _rms_norm
from export.quiet import quiet
from export.sounds import calibration_waves, fill

WINDOW = 160_000
BLOCKS = ".*Block.*"
Rule = tuple[str, str, str, int]
"""A rule of `export.quantize._quantise_tflite`: dynamic or static, names of tensors, operator, bits of activations."""


class Plain(nn.Module):
    """The unchanged network: log-mel (B, n_mels, T) -> probabilities."""

    waveform = False

    def __init__(self, model: CED) -> None:
        super().__init__()
        self.model = model
        self.example = ExportModel(model, waveform=False).example

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_mel(x).sigmoid()


@torch.no_grad()
def rotated(model: CED) -> ExportModel:
    """The network with a random rotation of the residual stream and of each head's values: no channel stands out.

    This is the idea behind Hadamard matrices in quantisation. Norms without scale and offset give the same result after
    a rotation, so the only cost at run time is one small product before the head.
    """
    tagger, generator = ExportModel(model, waveform=False), torch.Generator().manual_seed(0)

    def orthogonal(n: int) -> Tensor:
        return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0].float()

    C, D = model.spec.width, model.spec.width // model.spec.heads
    Q = orthogonal(C)
    tagger.patch.weight.copy_(Q.T @ tagger.patch.weight)
    tagger.time_embedding.copy_(tagger.time_embedding @ Q)
    tagger.freq_embedding.copy_(tagger.freq_embedding @ Q)
    for block in tagger.blocks:
        assert isinstance(block, FoldedBlock)
        V = torch.block_diag(*(orthogonal(D) for _ in range(model.spec.heads)))
        for layer in (block.qkv, block.fc1):
            layer.weight.copy_(layer.weight @ Q)
        block.qkv.weight[2 * C :] = V @ block.qkv.weight[2 * C :]
        block.qkv.bias[2 * C :] = V @ block.qkv.bias[2 * C :]
        block.proj.weight.copy_(block.proj.weight @ V.T)
        for layer in (block.proj, block.fc2):
            layer.weight.copy_(Q.T @ layer.weight)
            layer.bias.copy_(Q.T @ layer.bias)
    back = Q * model.norm.weight[:, None]  # rotate back first: LayerNorm's scale belongs to the original channels
    head = tagger.head[0]
    tagger.norm.weight.fill_(1)
    tagger.norm.bias.zero_()
    turn = nn.Linear(C, C)
    turn.weight.copy_(back)
    turn.bias.copy_(model.norm.bias)
    tagger.head = nn.Sequential(turn, head, *tagger.head[1:])
    return tagger.requires_grad_(False)


class Scaled(nn.Module):
    """A linear layer with inputs divided by a constant per channel, and weights multiplied by it."""

    @torch.no_grad()
    def __init__(self, layer: nn.Linear, largest: Tensor) -> None:
        super().__init__()
        s = (largest.clamp(min=1e-5) / layer.weight.abs().amax(dim=0).clamp(min=1e-5)).sqrt()
        self.layer, self.inverse = layer, nn.Parameter(1 / s, requires_grad=False)
        layer.weight.mul_(s)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x * self.inverse)
        return y


def smoothed(model: CED, inputs: Sequence[np.ndarray]) -> ExportModel:
    """SmoothQuant with alpha 0.5 on all products of the blocks. The division stays in the graph."""
    tagger, largest = ExportModel(model, waveform=False), dict[nn.Module, Tensor]()

    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        now = args[0].abs().flatten(0, -2).amax(dim=0)
        largest[layer] = torch.maximum(largest.get(layer, now), now)

    hooks = [m.register_forward_pre_hook(note) for m in tagger.blocks.modules() if isinstance(m, nn.Linear)]
    with torch.inference_mode():
        for x in inputs:
            tagger(torch.from_numpy(x))
    for hook in hooks:
        hook.remove()
    for block in tagger.blocks:
        for name in ("qkv", "proj", "fc1", "fc2"):
            setattr(block, name, Scaled(getattr(block, name), largest[getattr(block, name)].clone()))
    return tagger


def tanh_gelu() -> AbstractContextManager[Any]:
    """Within this context, GELU is its tanh approximation."""
    return mock.patch.object(F, "gelu", partial(F.gelu, approximate="tanh"))


def fused_attention() -> AbstractContextManager[Any]:
    """Within this context, attention is one node: ONNX Runtime's own MultiHeadAttention."""

    def forward(self: FoldedBlock, x: Tensor) -> Tensor:
        q, k, v = self.qkv(_rms_norm(x, self.eps1)).split(x.shape[-1], dim=-1)
        fused = {"num_heads": self.heads, "scale": 1.0}
        name = "com.microsoft::MultiHeadAttention"
        heads = torch.onnx.ops.symbolic(name, (q, k, v), fused, dtype=q.dtype, shape=q.shape, version=1)
        x = x + self.proj(heads)
        y: Tensor = x + self.fc2(F.gelu(self.fc1(_rms_norm(x, self.eps2))))
        return y

    return mock.patch.object(FoldedBlock, "forward", forward)


@contextmanager
def sparse_attention() -> Iterator[None]:
    """Within this context, each block attends to half of the tokens: one colour of a checkerboard, in turns.

    Sparse attention is from Child et al., arXiv 1904.10509. Tokens are sorted by colour, so each half is one slice.
    """
    init, tokens, numbers = FoldedBlock.__init__, ExportModel.tokens, count()

    def split(self: FoldedBlock, block: Block) -> None:
        init(self, block)
        C, self.half = self.qkv.in_features, next(numbers) % 2
        self.q = _linear(self.qkv.weight[:C], self.qkv.bias[:C])
        self.kv = _linear(self.qkv.weight[C:], self.qkv.bias[C:])
        del self.qkv

    def forward(self: FoldedBlock, x: Tensor) -> Tensor:
        B, N, C = x.shape
        H = self.heads
        normed = _rms_norm(x, self.eps1)
        half = normed[:, N // 2 :] if self.half else normed[:, : N // 2]
        q = self.q(normed).reshape(B, N, H, C // H).transpose(1, 2)
        k, v = self.kv(half).reshape(B, N // 2, 2 * H, C // H).transpose(1, 2).split(H, dim=1)
        heads = (q @ k.transpose(2, 3)).softmax(dim=-1) @ v
        x = x + self.proj(heads.transpose(1, 2).reshape(B, N, C))
        y: Tensor = x + self.fc2(F.gelu(self.fc1(_rms_norm(x, self.eps2))))
        return y

    def chequered(self: ExportModel, mel: Tensor) -> Tensor:
        x = tokens(self, mel).unflatten(1, (self.spec.grid_freq, -1))
        parts = [x[:, 0::2, 0::2], x[:, 1::2, 1::2], x[:, 0::2, 1::2], x[:, 1::2, 0::2]]
        return torch.cat([part.flatten(1, 2) for part in parts], dim=1)

    block = mock.patch.multiple(FoldedBlock, __init__=split, forward=forward)
    with block, mock.patch.object(ExportModel, "tokens", chequered):
        yield


def ort_dynamic(source: Path, target: Path, ops: Sequence[str] = ("MatMul", "Gemm"), **options: Any) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(source, target, op_types_to_quantize=list(ops), weight_type=QuantType.QInt8, **options)


def ort_blockwise(source: Path, target: Path) -> None:
    """8-bit weights in blocks of 32, products in int8 (onnxruntime's accuracy level 4)."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with quiet():
        q = MatMulNBitsQuantizer(onnx.load(source), bits=8, block_size=32, is_symmetric=True, accuracy_level=4)
        q.process()
        q.model.save_model_to_file(str(target), False)


def ort_static_all(source: Path, target: Path, inputs: Sequence[np.ndarray]) -> None:
    """Calibrated ranges in the patch embedding and the head too, not only in the blocks."""
    outside, quantize._nodes_outside = quantize._nodes_outside, lambda path, modules: []
    try:
        quantize.onnx_int8_static(source, target, inputs)
    finally:
        quantize._nodes_outside = outside


def litert(rules: Sequence[Rule], source: Path, target: Path, inputs: Sequence[np.ndarray]) -> None:
    quantize._quantise_tflite(source, target, inputs, True, rules)


def any_zero_point(rules: Sequence[Rule], source: Path, target: Path, inputs: Sequence[np.ndarray]) -> None:
    """Let keys and values have the zero points that follow from their ranges."""
    with mock.patch.object(quantize, "_centre_second_factors"):
        litert(rules, source, target, inputs)


def probabilities_too(rules: Sequence[Rule], source: Path, target: Path, inputs: Sequence[np.ndarray]) -> None:
    with mock.patch.object(quantize, "_FLOAT", ("INPUT", "OUTPUT")):
        litert(rules, source, target, inputs)


def running_averages(rules: Sequence[Rule], source: Path, target: Path, inputs: Sequence[np.ndarray]) -> None:
    """Use the running averages that the quantiser measures by default, instead of extremes."""
    from ai_edge_quantizer.utils import qsv_utils

    with mock.patch.object(qsv_utils, "min_max_update", qsv_utils.moving_average_update):
        litert(rules, source, target, inputs)


def sounds(clips: Sequence[Clip], rate: int) -> Iterator[tuple[np.ndarray, set[int]]]:
    """Join clips in random order; yield (10 s of samples, labels of all parts). Only the last piece is repeated."""
    wave, labels = np.zeros(0, np.float32), set[int]()
    for clip in random.Random(0).sample(clips, len(clips)):
        wave = np.concatenate([wave, load(clip.path, rate, clip.start_s, clip.stop_s)])
        labels.update(clip.labels or ())
        if len(wave) >= WINDOW:
            yield wave[:WINDOW], labels
            wave, labels = np.zeros(0, np.float32), set()
    if len(wave):
        yield fill(wave, WINDOW), labels


def variants(model: CED, folder: Path, inputs: Sequence[np.ndarray]) -> Iterator[tuple[str, Path]]:
    """Yield (name, file) of every variant. Each file is made when the loop reaches it."""
    for name, tagger in (("plain", Plain(model).eval()), ("folded", ExportModel(model, waveform=False))):
        source = folder / f"{name}.onnx"
        to_onnx(tagger, source, WINDOW)
        yield f"onnx, {name}, fp32", source
        ways: dict[str, Callable[[Path, Path], None]] = {
            "dynamic, per tensor": ort_dynamic,
            "dynamic, per channel": partial(ort_dynamic, per_channel=True),
            "dynamic, attention too": partial(ort_dynamic, per_channel=True, extra_options={"MatMulConstBOnly": False}),
            "weights in blocks of 32": ort_blockwise,
        }
        if name == "folded":
            ways["static, blocks"] = partial(quantize.onnx_int8_static, inputs=inputs)
            clipped = partial(quantize.onnx_int8_static, inputs=inputs, ranges="Percentile")
            ways["static, blocks, ranges clipped"] = clipped
            ways["static, head and patches too"] = partial(ort_static_all, inputs=inputs)
        for way, make in ways.items():
            make(source, target := folder / f"{name}-{way}.onnx")
            yield f"onnx, {name}, {way}", target
    others = {"rotated": rotated(model), "SmoothQuant": smoothed(model, inputs)}
    for name, tagger in others.items():
        to_onnx(tagger, source := folder / f"{name}.onnx", WINDOW)
        ort_dynamic(source, target := folder / f"{name}-int8.onnx", per_channel=True)
        yield f"onnx, folded, {name}, dynamic, per channel", target
    changes = {"fused attention": fused_attention, "tanh GELU": tanh_gelu, "every second token": sparse_attention}
    for name, changed in changes.items():
        with changed():
            to_onnx(ExportModel(model, waveform=False), source := folder / f"{name}.onnx", WINDOW)
        # Quantisation cannot infer the output type of MultiHeadAttention.
        options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
        ort_dynamic(source, target := folder / f"{name}-int8.onnx", per_channel=True, extra_options=options)
        yield f"onnx, folded, {name}, dynamic, per channel", target

    fc, every = "FULLY_CONNECTED", "ALL_SUPPORTED"
    dynamic = ("dynamic", quantize._NETWORK, fc, 8)
    too = quantize._DYNAMIC
    whole = quantize._STATIC
    wide = [("static", quantize._NETWORK, every, 16)]
    head_16 = [*whole, ("static", ".*_head.*", every, 16)]
    recipes: dict[str, dict[str, Callable[[Path, Path], None]]] = {
        "plain": {"dynamic": partial(litert, [dynamic], inputs=inputs)},
        "folded": {
            "dynamic": partial(litert, [dynamic], inputs=inputs),
            "static, blocks without attention": partial(litert, [dynamic, ("static", BLOCKS, fc, 8)], inputs=inputs),
            "dynamic, attention too": partial(litert, too, inputs=inputs),
        },
        "centred": {
            "dynamic": partial(litert, [dynamic], inputs=inputs),
            "dynamic, attention too": partial(quantize.tflite_int8, inputs=inputs),
            "dynamic, attention too, any zero point": partial(any_zero_point, too, inputs=inputs),
            "dynamic, attention too, running averages": partial(running_averages, too, inputs=inputs),
            "static": partial(quantize.tflite_int8_static, inputs=inputs),
            "static, running averages": partial(running_averages, quantize._STATIC, inputs=inputs),
            "static, head of 16 bits": partial(litert, head_16, inputs=inputs),
            "static, probabilities of 8 bits": partial(probabilities_too, whole, inputs=inputs),
            "static, all activations of 16 bits": partial(litert, wide, inputs=inputs),
        },
    }
    for name, tagger in (
        ("plain", Plain(model).eval()),
        ("folded", ExportModel(model, waveform=False)),
        ("centred", ExportModel(model, waveform=False, block=CentredBlock)),
    ):
        source = folder / f"{name}.tflite"
        to_tflite(tagger, source, WINDOW)
        yield f"tflite, {name}, fp32", source
        for way, make in recipes[name].items():
            make(source, target := folder / f"{name}-{way}.tflite")
            yield f"tflite, {name}, {way}", target
    for name, tagger in others.items():
        to_tflite(tagger, source := folder / f"{name}.tflite", WINDOW)
        litert([dynamic], source, target := folder / f"{name}-int8.tflite", inputs=inputs)
        yield f"tflite, folded, {name}, dynamic", target
    del changes["fused attention"]
    for name, changed in changes.items():
        with changed():
            to_tflite(ExportModel(model, waveform=False), source := folder / f"{name}.tflite", WINDOW)
        litert([dynamic], source, target := folder / f"{name}-int8.tflite", inputs=inputs)
        yield f"tflite, folded, {name}, dynamic", target


@click.command()
@click.argument("checkpoint")
@click.option("--data", type=click.Path(path_type=Path), multiple=True, required=True)
@click.option("--split")
@click.option("--calibration", type=click.Path(path_type=Path), required=True)
@click.option("--turns", default=15, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(
    checkpoint: str, data: tuple[Path, ...], split: str | None, calibration: Path, turns: int, as_json: bool
) -> None:
    """Make all files, predict all clips with each, time them in turns, and print a Markdown table."""
    torch.set_num_threads(1)
    model = load_model(checkpoint)
    front, rate = model.spec.frontend, model.spec.frontend.rate_hz
    windows = [sound for path in data for sound in sounds(read_manifest(path, split=split), rate)]
    mels = [log_mel(wave, front)[None] for wave, _ in windows]
    targets = multi_hot([sorted(labels) for _, labels in windows], model.spec.n_classes)
    inputs = [log_mel(w, front)[None] for w in calibration_waves(calibration, rate, WINDOW, 32)]
    with torch.inference_mode():
        expected = np.concatenate([model.forward_mel(torch.from_numpy(mel)).sigmoid().numpy() for mel in mels])
    reference = mean_ap(average_precision(targets, expected))
    rows: dict[str, dict[str, float]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in variants(model, Path(folder), inputs):
            backend = load_backend(path)
            probs = np.concatenate([backend.run(mel)[0] for mel in mels])
            error = np.abs(probs - expected).max(axis=1)
            rows[name] = {
                "mb": path.stat().st_size / 1e6,
                "drop": reference - mean_ap(average_precision(targets, probs)),
                "max_error": float(error.max()),
                "mean_error": float(error.mean()),
            }
            calls[name] = partial(backend.run, mels[0])
            click.echo(name, err=True)
        for name, ms in race(calls, turns).items():
            rows[name]["ms"] = float(np.median(ms))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    click.echo("| what | MB | ms | mAP lost | largest error | mean of the clips' largest |\n|---|---|---|---|---|---|")
    for name, r in rows.items():
        cells = [f"{r['mb']:.2f}", f"{r['ms']:.1f}", *(f"{r[key]:.4f}" for key in ("drop", "max_error", "mean_error"))]
        click.echo(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    run(main)
