"""What a teacher is: audio at its own rate in, AudioSet probabilities out, and the classes it knows."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ced_edge.arrays import Bools


class Teacher(Protocol):
    """Maps (B, samples) at `rate_hz` in [-1, 1] to (B, 527) probabilities.

    A teacher may have a method `at_rate(rate_hz)` that gives the same teacher for audio at another rate, where it can
    take that by itself and cheaper than resampled.

    Clips are zero-padded at the end to `min_samples`. The answer for a clip does not depend on the other clips of
    the batch and is the same every time; classes that are not `known` are 0.
    """

    name: str
    rate_hz: int
    known: Bools
    """(527,): the classes this teacher has an output for."""
    sha256: str
    """Of the teacher's file, or over all that decides its answers: the files of its folder, its class map."""
    min_samples: int
    device: torch.device

    def __call__(self, wave: Tensor) -> Tensor:
        """(B, samples) float32 at `rate_hz`, on `device` -> (B, 527) float32, on `device`."""
        ...


def pad_short(wave: Tensor, min_samples: int) -> Tensor:
    """Zeros at the end of (B, samples) up to `min_samples`; longer input is returned as it is."""
    if wave.ndim != 2:
        raise ValueError(f"a teacher takes (B, samples), not {tuple(wave.shape)}")
    return F.pad(wave, (0, min_samples - wave.shape[1])) if wave.shape[1] < min_samples else wave


def window_starts(length: int, window: int, hop: int) -> list[int]:
    """Where the windows over `length` >= 1 units start: the first at 0, the last one ending with the input.

    As many windows as come nearest to the asked `hop`, spread evenly, so that every unit is heard and none much more
    than the others. Input no longer than a window is one window.
    """
    rest = length - window
    if rest <= 0:
        return [0]
    # The step stays within one window: at most 1.5 hops, and a hop is at most half a window wherever this is used.
    intervals = max(1, (2 * rest + hop) // (2 * hop), -(-rest // window))
    return [(i * rest + intervals // 2) // intervals for i in range(intervals + 1)]
