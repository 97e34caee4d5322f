"""The ensemble: several teachers predict the same audio, each at its own rate, and the mean of them is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor

from ced_edge.arrays import Bools
from ced_edge.errors import InputError
from ced_edge.spec import N_CLASSES
from distill.teachers.base import Teacher

RESAMPLING = {
    "resampling_method": "sinc_interp_kaiser",
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "beta": 14.769656459379492,
}
"""A sharp filter. torchaudio's default lets images above the old Nyquist frequency through to the teachers."""


DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Arithmetic of the teachers' matrix products. None: as the weights are, in float32."""


class Ensemble:
    """Per class, the mean over the teachers that know it; 0 for a class that no teacher knows.

    All teachers are on one device, and the audio must be on it too.
    """

    def __init__(self, teachers: Sequence[Teacher], rate_hz: int, dtype: str = "fp32") -> None:
        """`rate_hz` is the rate of the audio, `dtype` one of DTYPES.

        Teachers from .onnx and .tflite files keep the arithmetic of their file. Raises InputError without a teacher,
        when two have one name, or for an unknown `dtype`.
        """
        if dtype not in DTYPES:
            raise InputError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
        if not teachers:
            raise InputError("an ensemble needs at least one teacher")
        names = [t.name for t in teachers]
        if len(set(names)) < len(names):
            raise InputError(f"two teachers of one name: {', '.join(sorted(names))}")
        if len({t.device for t in teachers}) > 1:
            raise InputError("the teachers of an ensemble must be on one device")
        self.teachers, self.dtype = tuple(teachers), dtype
        # Some teachers take audio of another rate directly, which costs less than resampling it.
        self._at_rate = [t.at_rate(rate_hz) if hasattr(t, "at_rate") else t for t in teachers]
        self.rate_hz = rate_hz
        self.device = teachers[0].device
        known = np.stack([t.known for t in teachers])  # (teachers, 527)
        self.known: Bools = known.sum(axis=0) > 0
        weights = known / np.maximum(known.sum(axis=0), 1)
        self._weights = torch.from_numpy(weights.astype(np.float32)).to(self.device)  # columns sum to 1 or 0
        self._resamplers = {
            rate: torchaudio.transforms.Resample(rate_hz, rate, **RESAMPLING).to(self.device)
            for rate in sorted({t.rate_hz for t in self._at_rate} - {rate_hz})
        }

    @torch.inference_mode()
    def each(self, wave: Tensor) -> Tensor:
        """(B, samples) float32 at `rate_hz` -> every teacher's probabilities, (teachers, B, 527)."""
        # Once per rate, not once per teacher.
        waves = {rate: resample(wave) for rate, resample in self._resamplers.items()}
        # Resampling stays in float32: 8 bits would be an audible noise.
        lower = DTYPES[self.dtype]
        with torch.autocast(self.device.type, lower, enabled=lower is not None):
            return torch.stack([t(waves.get(t.rate_hz, wave)).float() for t in self._at_rate])

    @torch.inference_mode()
    def __call__(self, wave: Tensor) -> Tensor:
        """(B, samples) float32 at `rate_hz` in [-1, 1] -> the ensemble's probabilities (B, 527)."""
        return self.average(self.each(wave))

    def average(self, each: Tensor) -> Tensor:
        """Every teacher's probabilities (teachers, B, 527), as `each` gives them -> the ensemble's (B, 527)."""
        total = torch.zeros(each.shape[1], N_CLASSES, device=self.device)
        for probs, weight in zip(each, self._weights, strict=True):
            total += probs * weight
        return total

    def describe(self) -> list[dict[str, Any]]:
        """What identifies each teacher: for a store's header, and for logs."""
        # Stores of float32, which were there first, do not name it.
        dtype = {} if self.dtype == "fp32" else {"dtype": self.dtype}
        return [
            {"name": t.name, "sha256": t.sha256, "rate_hz": t.rate_hz, "n_known": int(t.known.sum()), **dtype}
            for t in self.teachers
        ]
