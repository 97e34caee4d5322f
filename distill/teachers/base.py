"""The interface of a teacher: audio at its own rate in, AudioSet probabilities out, and the classes it knows."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ced_edge.arrays import Bools


class Teacher(Protocol):
    """Maps (B, samples) at `rate_hz` in [-1, 1] to (B, 527) probabilities.

    Clips are zero-padded at the end to `min_samples`. The prediction for a clip does not depend on the other clips of
    the batch, and is the same every time. Classes that are not `known` are 0.

    A teacher may have a method `at_rate(rate_hz)`. It returns the same teacher for audio at another rate, if that costs
    less than resampling the audio; otherwise it returns the teacher itself.
    """

    name: str
    rate_hz: int
    known: Bools
    """(527,): the classes that this teacher has an output for."""
    sha256: str
    """Hash of everything that decides its predictions: its file, or the files of its folder, and its class map."""
    min_samples: int
    device: torch.device

    def __call__(self, wave: Tensor) -> Tensor:
        """(B, samples) float32 at `rate_hz`, on `device` -> (B, 527) float32, on `device`."""
        ...


def pad_short(wave: Tensor, min_samples: int) -> Tensor:
    """Pad (B, samples) with zeros at the end up to `min_samples`. Longer input is returned unchanged."""
    if wave.ndim != 2:
        raise ValueError(f"a teacher takes (B, samples), not {tuple(wave.shape)}")
    return F.pad(wave, (0, min_samples - wave.shape[1])) if wave.shape[1] < min_samples else wave


def window_starts(length: int, window: int, hop: int) -> list[int]:
    """Where the windows over `length` >= 1 units start. The first starts at 0, the last one ends with the input.

    The windows are spread evenly, with a step as near as possible to `hop`. So every unit is in a window, and no unit
    is in many more windows than another. Input that is no longer than a window is one window.
    """
    rest = length - window
    if rest <= 0:
        return [0]
    # The rounded number of hops, but at least as many as keep the step within one window: else units are left out.
    intervals = max(1, (2 * rest + hop) // (2 * hop), -(-rest // window))
    return [(i * rest + intervals // 2) // intervals for i in range(intervals + 1)]
