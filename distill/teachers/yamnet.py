"""YAMNet's front end, for model files that take log-mel patches of 96 frames by 64 bins."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ced_edge.frontend import hz_to_mel

RATE_HZ = 16_000
FRAME = 400
"""Samples per frame: 25 ms."""
HOP = 160
N_FFT = 512
N_MELS = 64
F_MIN_HZ, F_MAX_HZ = 125.0, 7_500.0
PATCH_FRAMES = 96
PATCH_HOP_FRAMES = 48
PATCH_SAMPLES = (PATCH_FRAMES - 1) * HOP + FRAME
"""15,600: the samples of one patch."""


def mel_filters() -> Tensor:
    """Triangular filters whose sides are straight in mel (HTK scale), without the DC bin: (64, 257)."""
    bins = torch.from_numpy(hz_to_mel(torch.linspace(0.0, RATE_HZ / 2, N_FFT // 2 + 1, dtype=torch.float64).numpy()))
    edges = torch.linspace(float(hz_to_mel(F_MIN_HZ)), float(hz_to_mel(F_MAX_HZ)), N_MELS + 2, dtype=torch.float64)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    filters = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0.0)
    filters[:, 0] = 0.0
    return filters.float()


class YamnetFrontEnd(nn.Module):
    """Waveform (B, samples >= 400) at 16 kHz -> log-mel (B, frames, 64), frames of 25 ms every 10 ms, not centred.

    The input is zero-padded to whole frames, so that every sample is in a frame.
    """

    window: Tensor
    filters: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(FRAME), persistent=False)
        self.register_buffer("filters", mel_filters(), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        # torch.stft puts the window of 400 samples in the middle of the FFT's 512 samples, YAMNet at the start. Padding
        # by the difference puts it over the same samples. Only the phase differs, and the magnitude is used.
        shift = (N_FFT - FRAME) // 2
        rest = -(wave.shape[1] - FRAME) % HOP
        wave = F.pad(wave, (shift, shift + rest))
        spectrum = torch.stft(wave, N_FFT, HOP, FRAME, self.window, center=False, return_complex=True)
        magnitude = spectrum.real.square().add_(spectrum.imag.square()).sqrt_()
        mel = torch.matmul(self.filters, magnitude)  # (B, 64, T)
        return (mel + 1e-3).log_().transpose(1, 2)
