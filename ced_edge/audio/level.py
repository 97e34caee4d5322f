"""Level of a window in dBFS, and the gain before the model. All values are for mono samples at the model's rate.

0 dBFS is an amplitude of 1.0: a square wave between -1 and 1 has 0 dBFS, a sine wave of that amplitude -3.01 dBFS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ced_edge.arrays import Float32
from ced_edge.errors import InputError

Gain = float | Literal["auto"]
"""In dB. `auto` raises each window by itself, see `with_gain`."""

MAX_GAIN_DB = 100.0
"""More than the range of 16-bit samples. A typing error must not make samples infinite."""
_AUTO_RMS_DBFS, _AUTO_PEAK_DBFS, _AUTO_MAX_DB = -20.0, -1.0, 40.0
_RAIL = 0.9999
"""The largest 16-bit sample is 0.99997. Three samples in a row at this amplitude are clipped: the peaks of a recording
that was normalised to full scale are single samples."""
_BEYOND = 0.01
"""Share of samples above 1.0 that counts as clipped: resampling turns the flat tops into ripples around 1.0."""


@dataclass(frozen=True)
class Level:
    """How loud a window is, after the gain."""

    rms_dbfs: float
    """-inf for digital zeros."""
    peak_dbfs: float
    """Above 0 where the samples exceed full scale."""
    clipped: bool
    """Whether the peaks are cut off at full scale, or beyond it."""
    gain_db: float = 0.0
    """The gain that was applied."""

    @property
    def zeros(self) -> bool:
        """Whether every sample is exactly 0: no microphone is that quiet, unless it is muted."""
        return self.peak_dbfs == -math.inf


def check_gain(gain_db: Gain) -> Gain:
    """Return `gain_db`. Raises InputError unless it is `auto` or from -MAX_GAIN_DB to MAX_GAIN_DB."""
    if gain_db == "auto" or (not isinstance(gain_db, str) and abs(gain_db) <= MAX_GAIN_DB):
        return gain_db
    raise InputError(f"a gain of {gain_db}: give dB from {-MAX_GAIN_DB:g} to {MAX_GAIN_DB:g}, or auto")


def with_gain(wave: Float32, gain_db: Gain) -> tuple[Float32, Level]:
    """A window (samples,), at least one, -> the window after the gain, and its level.

    The result depends on these samples alone, so a file and a stream give the same bits. A gain of 0 dB returns `wave`
    itself. `auto` raises the window to -20 dBFS RMS, but its peak not above -1 dBFS, and by 40 dB at most. It never
    lowers a window.
    """
    gain = _auto_db(_level(wave)) if gain_db == "auto" else gain_db
    if gain == 0:
        return wave, _level(wave)
    louder = wave * np.float32(10 ** (gain / 20))
    return louder, _level(louder, gain)


def _auto_db(level: Level) -> float:
    wanted = min(_AUTO_RMS_DBFS - level.rms_dbfs, _AUTO_PEAK_DBFS - level.peak_dbfs, _AUTO_MAX_DB)
    return 0.0 if level.zeros else max(0.0, wanted)


def _level(wave: Float32, gain_db: float = 0.0) -> Level:
    peak = max(float(wave.max()), -float(wave.min()))
    power = float(np.square(wave, dtype=np.float64).sum()) / len(wave)
    clipped = False
    if peak >= _RAIL:
        size = np.abs(wave)
        flat = size >= _RAIL
        three_in_a_row = flat[2:] & flat[1:-1] & flat[:-2]
        clipped = bool(three_in_a_row.any()) or float((size > 1.0).mean()) > _BEYOND
    return Level(_db(power) / 2, _db(peak), clipped, gain_db)


def _db(ratio: float) -> float:
    """A ratio of amplitudes in dB."""
    return 20 * math.log10(ratio) if ratio > 0 else -math.inf


def mean_level(levels: list[tuple[Level, float]]) -> Level:
    """The level of several windows, given with their seconds: mean power, and the highest peak."""
    seconds = sum(s for _, s in levels)
    power = sum(10 ** (level.rms_dbfs / 10) * s for level, s in levels) / seconds
    return Level(
        _db(power) / 2,
        max(level.peak_dbfs for level, _ in levels),
        any(level.clipped for level, _ in levels),
        sum(level.gain_db * s for level, s in levels) / seconds,
    )
