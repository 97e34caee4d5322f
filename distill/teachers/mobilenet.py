"""EfficientAT MobileNets (arXiv 2211.04772) of any width, from their published checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ced_edge.arrays import Bools
from ced_edge.errors import InputError
from ced_edge.network.weights import wrong_classes
from ced_edge.spec import N_CLASSES
from distill.teachers.base import pad_short

ANCHOR = "features.0.0.weight"
"""The first layer. Every EfficientAT MobileNet has it under this name."""
RATE_HZ = 32_000
N_FFT = 1024
WINDOW = 800
"""Length of the Hann window in samples: 25 ms."""
HOP = 320
N_MELS = 128
F_MAX_HZ = 15_000.0
MIN_SAMPLES = RATE_HZ // 2
"""Half a second. Shorter clips are zero-padded to it, as the network halves the time axis five times."""
CPU_SECONDS = 80
"""Seconds of audio in one batch on a CPU."""


class Row(NamedTuple):
    """One inverted-residual block of MobileNetV3-Large (arXiv 1905.02244, table 1), widths before scaling."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    hard_swish: bool
    stride: int


ROWS = tuple(
    Row(*r)
    for r in (
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        (5, 120, 40, True, False, 1),
        (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        (5, 960, 160, True, True, 1),
        (5, 960, 160, True, True, 1),
    )
)
STEM_WIDTH = 16
HEAD_WIDTH = 1280


def scaled(channels: float) -> int:
    """The number of channels, rounded to a multiple of 8, but never below 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int, groups: int, act: nn.Module) -> nn.Sequential:
    """Convolution without bias, BatchNorm (eps 1e-3), activation; named 0, 1, 2 as in the checkpoints."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out, eps=1e-3), act)


class SqueezeExcite(nn.Module):
    """Channel gates from the mean over frequency and time: (B, C, F, T) -> (B, C, F, T)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = scaled(channels / 4)
        layer = nn.Module()
        layer.fc1 = nn.Linear(channels, hidden)
        layer.fc2 = nn.Linear(hidden, channels)
        self.conc_se_layers = nn.ModuleList([layer])

    def forward(self, x: Tensor) -> Tensor:
        layer = self.conc_se_layers[0]
        gate = torch.sigmoid(layer.fc2(F.relu(layer.fc1(x.mean(dim=(2, 3))))))  # type: ignore[operator]
        # In place, except in training: the gradient of the activation before it needs the unchanged values.
        return x * gate[:, :, None, None] if self.training else x.mul_(gate[:, :, None, None])


class Block(nn.Module):
    """Expand, depthwise, squeeze-excite, project; residual where shapes allow."""

    def __init__(self, row: Row, c_in: int, expanded: int, c_out: int) -> None:
        super().__init__()
        self.residual = row.stride == 1 and c_in == c_out
        act: nn.Module = nn.Hardswish(inplace=True) if row.hard_swish else nn.ReLU(inplace=True)
        layers: list[nn.Module] = []
        if expanded != c_in:
            layers.append(conv_bn(c_in, expanded, 1, 1, 1, act))
        layers.append(conv_bn(expanded, expanded, row.kernel, row.stride, expanded, act))
        if row.squeeze:
            layers.append(SqueezeExcite(expanded))
        layers.append(conv_bn(expanded, c_out, 1, 1, 1, nn.Identity()))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y.add_(x) if self.residual else y  # type: ignore[no-any-return]


class MobileNet(nn.Module):
    """Log-mel (B, 1, 128, T) -> logits (B, 527). `width` multiplies every number of channels (mn04: 0.4).

    Activations are computed in place, which halves the time of inference on a CPU.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        c = scaled(STEM_WIDTH * width)
        features: list[nn.Module] = [conv_bn(1, c, 3, 2, 1, nn.Hardswish(inplace=True))]
        for row in ROWS:
            c_out = scaled(row.out * width)
            features.append(Block(row, c, scaled(row.expanded * width), c_out))
            c = c_out
        features.append(conv_bn(c, 6 * c, 1, 1, 1, nn.Hardswish(inplace=True)))
        self.features = nn.Sequential(*features)
        hidden = scaled(HEAD_WIDTH * width)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6 * c, hidden),
            nn.Hardswish(),
            nn.Identity(),  # dropout in training
            nn.Linear(hidden, N_CLASSES),
        )

    def forward(self, mel: Tensor) -> Tensor:
        return self.classifier(self.features(mel))  # type: ignore[no-any-return]


def kaldi_mel_filters() -> Tensor:
    """Kaldi's triangular filters, 128 bins from 0 to 15,000 Hz: (128, 513). Their sides are straight in mel."""

    def mel(hz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hz / 700.0)

    bins = mel(torch.arange(N_FFT // 2, dtype=torch.float64) * (RATE_HZ / N_FFT))
    top = float(mel(torch.tensor(F_MAX_HZ, dtype=torch.float64)))
    edges = torch.arange(N_MELS + 2, dtype=torch.float64) * (top / (N_MELS + 1))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0.0)
    return F.pad(filters, (0, 1)).float()  # Kaldi has no filter on the Nyquist bin


class MobileNetFrontEnd(nn.Module):
    """Waveform (B, samples) at 32 kHz -> log-mel (B, 128, T)."""

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW, periodic=False), persistent=False)
        self.register_buffer("filters", kaldi_mel_filters(), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        wave = wave[:, 1:] - 0.97 * wave[:, :-1]  # pre-emphasis
        spectrum = torch.stft(wave, N_FFT, HOP, WINDOW, self.window, center=True, return_complex=True)
        return self.log_mel(spectrum)

    def log_mel(self, spectrum: Tensor) -> Tensor:
        """Complex spectrum (B, bins, T) -> log-mel (B, 128, T), scaled as the network expects."""
        power = spectrum.real.square().add_(spectrum.imag.square())
        with torch.autocast(power.device.type, enabled=False):  # 16 bits would lose the quiet sounds
            mel = torch.matmul(self.filters, power)
        return mel.add_(1e-5).log_().add_(4.5).div_(5.0)


class HalfRateFrontEnd(MobileNetFrontEnd):
    """Waveform (B, samples) at 16 kHz -> the log-mel (B, 128, T) of the same sound at 32 kHz, at a third of the cost.

    Sound at 16 kHz has nothing above 8 kHz, so the FFT can be half as long. The pre-emphasised signal at 32 kHz is
    y[n] = x[n + 1] - 0.97 x[n]. Only its even samples and the even samples of the window are needed; the spectrum up
    to 8 kHz is then half as large. For even n, x[n] is a sample of the input, and x[n + 1] lies midway between two
    samples, where a windowed sinc interpolates. Interpolation and pre-emphasis are one matrix product over blocks.
    """

    blocks: Tensor

    TAPS = 128
    BLOCK = 64

    def __init__(self) -> None:
        super().__init__()
        self.window = self.window[::2].contiguous()
        self.filters = self.filters[:, : N_FFT // 4 + 1] * 4.0  # the spectrum is half as large, its power a quarter
        t = torch.arange(self.TAPS, dtype=torch.float64) - (self.TAPS - 1) / 2  # each sample, from the midway point
        taps = torch.sinc(t) * torch.kaiser_window(self.TAPS, periodic=False, beta=9.0, dtype=torch.float64)
        taps[self.TAPS // 2 - 1] -= 0.97
        columns = [F.pad(taps, (i, self.BLOCK - 1 - i)) for i in range(self.BLOCK)]
        self.register_buffer("blocks", torch.stack(columns, dim=1).float(), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        B, samples = wave.shape
        n = -(-samples // self.BLOCK)
        before = self.TAPS // 2 - 1
        padded = F.pad(wave, (before, n * self.BLOCK - samples + self.TAPS - 1 - before))
        y = (padded.unfold(1, self.TAPS + self.BLOCK - 1, self.BLOCK) @ self.blocks).reshape(B, -1)[:, :samples]
        spectrum = torch.stft(y, N_FFT // 2, HOP // 2, WINDOW // 2, self.window, center=True, return_complex=True)
        return self.log_mel(spectrum[:, :, : (2 * samples - 1) // HOP + 1])


def fold_batchnorm(model: nn.Module) -> None:
    """Merge every BatchNorm into the convolution before it. The model must be in eval mode."""
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d):
            module[0] = nn.utils.fuse_conv_bn_eval(module[0], module[1])  # type: ignore[type-var]
            module[1] = nn.Identity()


def is_mobilenet(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the keys of an EfficientAT MobileNet."""
    return ANCHOR in state and "classifier.5.weight" in state


def load_mobilenet(state: Mapping[str, Tensor], source: str) -> MobileNet:
    """A MobileNet with the width of the weights. Raises InputError naming `source` and the key that does not fit."""
    last = state["classifier.5.weight"]
    if last.ndim != 2:
        raise InputError(
            f"{source} is no EfficientAT MobileNet: classifier.5.weight has shape {tuple(last.shape)}, "
            "not (classes, width)"
        )
    classes, hidden = last.shape
    if classes != N_CLASSES:
        raise InputError(f"{source}: {wrong_classes(classes)}")
    with torch.device("meta"):  # shapes without memory: a hostile file must not allocate more than it holds
        wanted = MobileNet(hidden / HEAD_WIDTH).state_dict()
    for key in sorted(wanted.keys() | state.keys()):
        if key not in state or key not in wanted:
            what = "lacks" if key not in state else "has an unexpected"
            raise InputError(f"{source} is no EfficientAT MobileNet: it {what} {key}")
        if wanted[key].shape != state[key].shape:
            raise InputError(
                f"{source} is no EfficientAT MobileNet of width {hidden / HEAD_WIDTH:g}: {key} has shape "
                f"{tuple(state[key].shape)}, not {tuple(wanted[key].shape)}"
            )
    model = MobileNet(hidden / HEAD_WIDTH)
    model.load_state_dict(dict(state))
    return model


class MobileNetTeacher:
    """An EfficientAT MobileNet at 32 kHz. It predicts a clip of any length as a whole, without windows."""

    def __init__(self, model: MobileNet, name: str, sha256: str, device: torch.device) -> None:
        self.name = name
        self.sha256 = sha256
        self.device = device
        self.rate_hz = RATE_HZ
        self.min_samples = MIN_SAMPLES
        self.known: Bools = np.ones(N_CLASSES, np.bool_)
        self.front_end = MobileNetFrontEnd().to(device)
        self.model = model.eval()
        fold_batchnorm(self.model)
        self.model.to(device).to(memory_format=torch.channels_last)

    def at_rate(self, rate_hz: int) -> MobileNetTeacher:
        """This teacher for audio at 16 kHz, if `rate_hz` is 16 kHz; for other rates the teacher itself."""
        if rate_hz != RATE_HZ // 2 or self.rate_hz != RATE_HZ:
            return self
        other = copy.copy(self)
        other.rate_hz, other.min_samples = rate_hz, MIN_SAMPLES // 2
        other.front_end = HalfRateFrontEnd().to(self.device)
        return other

    @torch.inference_mode()
    def logits(self, wave: Tensor) -> Tensor:
        """(B, samples) at `rate_hz` -> (B, 527) logits."""
        wave = pad_short(wave, self.min_samples)
        # A CPU is faster with a few clips that fit in its cache, a GPU with all clips at once.
        at_once = max(1, CPU_SECONDS * self.rate_hz // wave.shape[1]) if self.device.type == "cpu" else len(wave)
        logits = wave.new_empty(len(wave), N_CLASSES)
        for i in range(0, len(wave), at_once):
            mel = self.front_end(wave[i : i + at_once]).unsqueeze(1)
            logits[i : i + at_once] = self.model(mel.to(memory_format=torch.channels_last))
        return logits

    def __call__(self, wave: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(wave))
