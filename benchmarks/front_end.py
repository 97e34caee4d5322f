"""Milliseconds per clip for several ways to compute the log-mel inside a graph: both runtimes, one thread.

python benchmarks/front_end.py
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from race import race, ratios, show
from torch import Tensor, nn

from ced_edge.frontend import log_mel, mel_filters
from ced_edge.runtime.backends import load_backend
from ced_edge.spec import FrontendSpec
from export.graph import FrontEnd
from export.quiet import quiet

SPEC = FrontendSpec()


class Direct(FrontEnd):
    """The whole DFT as one matrix, with the window in it."""

    def __init__(self, spec: FrontendSpec) -> None:
        super().__init__(spec)
        angle = 2 * np.pi * np.outer(np.arange(spec.n_fft), np.arange(spec.n_bins)) / spec.n_fft
        matrix = np.concatenate([np.cos(angle), np.sin(angle)], axis=1) * self.window.numpy()[:, None]
        self.dft = nn.Parameter(torch.from_numpy(matrix.astype(np.float32)))
        self.mel = nn.Parameter(torch.from_numpy(mel_filters(spec).T.copy()))

    def forward(self, x: Tensor) -> Tensor:
        hop = SPEC.hop
        T = x.shape[1] // hop + 1
        full, rest = divmod(SPEC.n_fft, hop)
        hops = F.pad(self.reflected(x), (0, 2 * hop - SPEC.n_fft % hop))[:, : (T + full) * hop].reshape(1, -1, hop)
        frames = [*(hops[:, i : i + T] for i in range(full)), hops[:, full : full + T, :rest]]
        return self.decibels(torch.cat(frames, dim=-1) @ self.dft)

    def reflected(self, x: Tensor) -> Tensor:
        half = SPEC.n_fft // 2
        return torch.cat([x[:, 1 : half + 1].flip(1), x, x[:, -half - 1 : -1].flip(1)], dim=1)

    def decibels(self, spectrum: Tensor) -> Tensor:
        re, im = (spectrum * spectrum).chunk(2, dim=-1)
        db = (10 / math.log(10)) * ((re + im) @ self.mel).clamp(min=SPEC.min_power).log()
        return torch.maximum(db, db.amax(dim=(1, 2), keepdim=True) - SPEC.top_db)


class Convolution(Direct):
    """The same matrix as a strided convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return self.decibels(
            F.conv1d(self.reflected(x).unsqueeze(1), self.dft.T.unsqueeze(1), stride=SPEC.hop).transpose(1, 2)
        )


class RuntimeFft(Direct):
    """The runtime's own FFT. Only ONNX Runtime: PyTorch cannot export to the FFT of TFLite."""

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(x, SPEC.n_fft, SPEC.hop, window=self.window, return_complex=True)
        return self.decibels(torch.view_as_real(spectrum).permute(0, 2, 3, 1).flatten(2))


def runner(path: Path, wave: np.ndarray) -> Callable[[], Any]:
    backend = load_backend(path)
    return lambda: backend.run(wave)


@click.command()
@click.option("--turns", default=20, show_default=True)
def main(turns: int) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    wave = (0.05 * np.random.default_rng(0).standard_normal((1, 160_000))).astype(np.float32)
    parts: dict[str, Callable[[], Any]] = {"numpy (mel bundles)": lambda: log_mel(wave[0], SPEC)}
    ways = {
        "decimated": FrontEnd,
        "one matrix": Direct,
        "convolution": Convolution,
        "runtime's FFT": RuntimeFft,
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in ways.items():
            module = kind(SPEC).eval().requires_grad_(False)
            path = Path(folder) / name
            with quiet():
                torch.onnx.export(module, (torch.from_numpy(wave),), f"{path}.onnx", dynamo=True, opset_version=20)
                if kind is not RuntimeFft:
                    import litert_torch

                    litert_torch.convert(module, (torch.from_numpy(wave),)).export(f"{path}.tflite")
        for path in sorted(Path(folder).glob("*.onnx")) + sorted(Path(folder).glob("*.tflite")):
            parts[path.name] = runner(path, wave)
        show(ratios(race(parts, turns), "decimated.onnx"), "decimated.onnx")


if __name__ == "__main__":
    main()
