"""A tagger as .tflite: one fixed window, batch 1."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from export.graph import Tagger
from export.quiet import quiet


class Named(nn.Module):
    """Gives the output its name in the file's signature."""

    def __init__(self, tagger: Tagger) -> None:
        super().__init__()
        self.tagger = tagger

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        (x,) = inputs.values()
        return {"prob": self.tagger(x)}


def to_tflite(tagger: Tagger, path: Path, window_samples: int) -> None:
    """Write `tagger` as float32 TFLite; input `waveform` (1, samples) or `mel` (1, n_mels, frames), output `prob`."""
    with quiet():
        import litert_torch

        name = "waveform" if tagger.waveform else "mel"
        example = tagger.example(window_samples, batch=1)
        litert_torch.convert(Named(tagger).eval(), sample_kwargs={name: example}).export(str(path))
