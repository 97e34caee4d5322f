"""The log-mel front end in PyTorch: for batches, and differentiable. Clips of a batch do not affect each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ced_edge.frontend import mel_filters
from ced_edge.spec import FrontendSpec


class LogMel(nn.Module):
    """Waveform (B, samples) in [-1, 1] -> log-mel (B, n_mels, frames) in dB (arXiv 2308.11957, section 3.1)."""

    window: Tensor
    filters: Tensor

    def __init__(self, spec: FrontendSpec) -> None:
        super().__init__()
        self.spec = spec
        # Not saved in checkpoints: they follow from the spec, which is saved.
        self.register_buffer("window", torch.hann_window(spec.n_fft), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters(spec).copy()), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        s = self.spec
        with torch.autocast(wave.device.type, enabled=False):
            spectrum = torch.stft(
                wave.float(), s.n_fft, s.hop, window=self.window, center=True, pad_mode="reflect", return_complex=True
            )
            power = spectrum.real.square() + spectrum.imag.square()  # (B, n_bins, T)
            mel = torch.matmul(self.filters, power)  # (B, n_mels, T)
            db = 10.0 * torch.log10(mel.clamp(min=s.min_power))
            # The maximum of each clip, not of the batch.
            floor = db.amax(dim=(1, 2), keepdim=True) - s.top_db
            return torch.maximum(db, floor)
