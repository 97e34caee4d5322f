"""Disturbances: what is done to a view for the student alone. The stored prediction stays that of the clean view.

So the student is trained to find in a bad recording what the teachers found in a good one. No label is needed for it.
Like a view, a disturbance is a few numbers (`draw_disturbance`), a pure function of (seed, pass, clip id), and the
samples made from them (`disturb`). Nothing about it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ced_edge.arrays import Float32, Float64
from distill.teaching.views import Uniform, random_words

GAIN_DB = (-40.0, 6.0)
SNR_DB = (5.0, 40.0)
"""Power of the view relative to the noise."""
NOISE_SLOPE = (0.0, 1.0)
"""The noise's amplitude falls with this power of the frequency: 0 is white noise, 0.5 pink, 1 brown."""
LOW_HZ, HIGH_HZ = (50.0, 400.0), (3_000.0, 7_500.0)
"""The edges of a small microphone's band, where the level is 3 dB lower: 12 and 24 dB per octave outside."""
DECAY_S = (0.1, 0.8)
"""Time in which a room's reverberation falls by 60 dB."""
DIRECT_DB = (-3.0, 12.0)
"""Power of the direct sound relative to the reverberation."""


@dataclass(frozen=True)
class Chances:
    """The probability of each kind of disturbance, in [0, 1]. The ranges above are drawn from evenly."""

    gain: float = 0.0
    noise: float = 0.0
    band: float = 0.0
    reverb: float = 0.0

    @property
    def any(self) -> bool:
        """Whether the student can get anything else than what the teachers got."""
        return bool(self.gain or self.noise or self.band or self.reverb)


@dataclass(frozen=True)
class Disturbance:
    """One draw. A kind that was not drawn is None."""

    gain_db: float | None = None
    noise: tuple[float, float] | None = None
    """(signal-to-noise ratio in dB, slope)."""
    band_hz: tuple[float, float] | None = None
    reverb: tuple[float, float] | None = None
    """(decay in seconds, direct sound in dB)."""
    key: str = ""
    """What the samples of noise and reverberation are drawn from."""


def draw_disturbance(chances: Chances, seed: int, pass_number: int, clip_id: str) -> Disturbance:
    """The disturbance of a clip in a pass over the clips. A view that is used twice gets two of them."""
    # All numbers are drawn whether they are used or not, so that one chance does not change the other kinds.
    key = f"student|{seed}|{pass_number}|{clip_id}"
    u = Uniform(key)
    gain, gain_db = u() < chances.gain, u(*GAIN_DB)
    noise, snr_db, slope = u() < chances.noise, u(*SNR_DB), u(*NOISE_SLOPE)
    band, low_hz, high_hz = u() < chances.band, u(*LOW_HZ), u(*HIGH_HZ)
    reverb, decay_s, direct_db = u() < chances.reverb, u(*DECAY_S), u(*DIRECT_DB)
    return Disturbance(
        gain_db if gain else None,
        (snr_db, slope) if noise else None,
        (low_hz, high_hz) if band else None,
        (decay_s, direct_db) if reverb else None,
        key,
    )


def disturb(wave: Float32, d: Disturbance, rate_hz: int) -> Float32:
    """The view (samples,) in [-1, 1] as the student gets it: same length, in [-1, 1].

    The order is that of a recording: the room, the noise around, the microphone's band, and its level. A result that
    would clip is scaled down as a whole.
    """
    n = len(wave)
    out = wave.astype(np.float64)
    if d.reverb is not None:
        decay_s, direct_db = d.reverb
        tail = _white(d.key + "|room", max(1, round(decay_s * rate_hz)))
        tail *= 10.0 ** (-3.0 * np.arange(len(tail)) / len(tail))
        size = 1 << (n + len(tail) - 2).bit_length()  # the FFT of a large prime length would be slow
        wet = np.fft.irfft(np.fft.rfft(out, size) * np.fft.rfft(tail, size), size)[:n]
        out += _scaled(wet, _rms(out) * 10.0 ** (-direct_db / 20.0))
    hz = np.fft.rfftfreq(n, 1.0 / rate_hz)
    if d.noise is not None:
        snr_db, slope = d.noise
        # Level below 20 Hz, where no recording has anything, or brown noise would be nothing but rumble.
        noise = np.fft.irfft(np.fft.rfft(_white(d.key + "|noise", n)) * np.maximum(hz, 20.0) ** -slope, n)
        out += _scaled(noise, _rms(out) * 10.0 ** (-snr_db / 20.0))
    if d.band_hz is not None:
        low_hz, high_hz = d.band_hz
        # Amplitudes of a Butterworth high-pass of order 2 and a low-pass of order 4.
        high_pass = 1.0 + (low_hz / np.maximum(hz, 1e-3)) ** 4
        out = np.fft.irfft(np.fft.rfft(out) / np.sqrt(high_pass * (1.0 + (hz / high_hz) ** 8)), n)
    if d.gain_db is not None:
        out *= 10.0 ** (d.gain_db / 20.0)
    return np.asarray(out / max(1.0, float(np.abs(out).max(initial=0.0))), np.float32)


def _white(key: str, n: int) -> Float64:
    """White noise (n,), evenly distributed in [-1, 1): a pure function of `key`, on any machine."""
    return np.asarray((random_words(key, n) >> np.uint64(11)) * 2.0**-52 - 1.0, np.float64)


def _rms(wave: Float64) -> float:
    return float(np.sqrt(np.mean(np.square(wave))))


def _scaled(wave: Float64, rms: float) -> Float64:
    """The wave with another root mean square."""
    return np.asarray(wave * (rms / max(_rms(wave), 1e-12)), np.float64)
