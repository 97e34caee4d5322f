"""Building blocks of the synthesised sounds: phases, timbres, envelopes, noise, struck bars.

All work on float64 (samples,), draw from the generator they are given, and take rates and frequencies in Hz.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from ced_edge.arrays import Float64

Wave = Float64


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """A number between `low` and `high`, uniform on a logarithmic scale."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def cycles(rng: Generator, hz: float | Wave, samples: int, rate_hz: int) -> Wave:
    """Phase in cycles, from a random start, of a constant or changing frequency."""
    start = rng.uniform()
    if isinstance(hz, np.ndarray):
        return start + np.cumsum(hz, dtype=np.float64) / rate_hz
    return start + np.arange(samples, dtype=np.float64) * (hz / rate_hz)


def sine(phase: Wave) -> Wave:
    """A sine of a phase in cycles."""
    wave: Wave = np.sin((2 * np.pi) * (phase % 1.0))
    return wave


def timbre(phase: Wave, amplitudes: Wave, max_hz: float, rate_hz: int) -> Wave:
    """Harmonics 1, 2, ... of a phase in cycles, those above 45 % of the rate at `max_hz` left out."""
    kept = amplitudes[: max(1, int(0.45 * rate_hz / max_hz))]
    table_size = 4096
    spectrum = np.zeros(table_size // 2 + 1, dtype=np.complex128)
    # Quadratic phases keep the crest factor low (Schroeder 1970): no harmonic stack becomes a click train.
    k = np.arange(1, len(kept) + 1)
    spectrum[1 : len(kept) + 1] = kept * np.exp(-1j * np.pi * k * (k - 1) / len(kept))
    table = np.fft.irfft(spectrum, table_size)
    table = np.append(table, table[0]) / max(1e-9, float(np.abs(table).max()))
    position = (phase % 1.0) * table_size
    i = np.minimum(position.astype(np.int64), table_size - 1)
    wave: Wave = table[i] + (table[i + 1] - table[i]) * (position - i)
    return wave


def odd_harmonics(count: int, slope: float) -> Wave:
    """Amplitudes k ** -slope of the odd ones among `count` harmonics (slope 1: a square wave)."""
    k = np.arange(1, count + 1, dtype=np.float64)
    amplitudes: Wave = np.where(k % 2 == 1, k**-slope, 0.0)
    return amplitudes


def spans(pieces: Sequence[tuple[float, float]], samples: int, rate_hz: int, ramp_s: float = 0.005) -> Wave:
    """An envelope of 1 within the (start, stop) seconds given and 0 outside, with cosine ramps inside the pieces."""
    envelope = np.zeros(samples)
    for start_s, stop_s in pieces:
        n = round((stop_s - start_s) * rate_hz)
        r = max(1, min(round(ramp_s * rate_hz), n // 2))
        piece = np.ones(max(n, 2 * r))
        piece[:r] = 0.5 - 0.5 * np.cos(np.pi * (np.arange(r) + 0.5) / r)
        piece[-r:] = piece[:r][::-1]
        add(envelope, piece, round(start_s * rate_hz))
    return np.minimum(envelope, 1.0)


def add(wave: Wave, piece: Wave, start: int) -> None:
    """Add `piece` to `wave` in place from sample `start`, which may be negative; what sticks out is cut."""
    first, stop = max(0, start), min(len(wave), start + len(piece))
    if first < stop:
        wave[first:stop] += piece[first - start : stop - start]


def cadence(rng: Generator, samples: int, rate_hz: int, pattern_s: Sequence[float]) -> Wave:
    """The envelope of a repeated on, off, on, off ... pattern that begins around the start of the clip."""
    t = rng.uniform(-0.6 * pattern_s[0], 0.3 * samples / rate_hz)
    pieces = []
    while t < samples / rate_hz:
        for on_s, off_s in zip(pattern_s[::2], pattern_s[1::2], strict=True):
            pieces.append((t, t + on_s))
            t += on_s + off_s
    return spans(pieces, samples, rate_hz)


def held(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """The envelope of a sound that goes on: the whole clip, or a stretch of at least 60 % of it."""
    seconds = samples / rate_hz
    if rng.uniform() < 0.5:
        return np.ones(samples)
    length = rng.uniform(0.6, 1.0) * seconds
    start = rng.uniform(0.0, seconds - length)
    return spans([(start, start + length)], samples, rate_hz, ramp_s=rng.uniform(0.005, 0.2))


def power_noise(rng: Generator, samples: int, rate_hz: int, exponent: float, low_hz: float = 20.0) -> Wave:
    """Gaussian noise of power density f ** -exponent, flat below `low_hz`; root mean square 1."""
    if exponent == 0.0:
        return rng.standard_normal(samples)
    n = even_fft_size(samples)
    frequency = np.fft.rfftfreq(n, 1 / rate_hz)
    spectrum = rng.standard_normal((2, len(frequency)))
    shaped = (spectrum[0] + 1j * spectrum[1]) * np.maximum(frequency, low_hz) ** (-exponent / 2)
    shaped[0] = 0.0
    wave = np.fft.irfft(shaped, n)[:samples]
    return wave / float(np.sqrt(np.mean(wave**2)))


def even_fft_size(samples: int) -> int:
    """The next length of the form 2 ** k or 2 ** k * 1.25, 1.5: quick to transform."""
    k = max(3, int(np.ceil(np.log2(max(samples, 1)))))
    return min(n for n in (5 << (k - 3), 3 << (k - 2), 1 << k) if n >= samples)


def strike(rng: Generator, hz: float, decay_s: float, rate_hz: int, ratios: Sequence[float]) -> Wave:
    """A struck bar or bell: partials at `ratios` of `hz`, the higher ones weaker and dying sooner."""
    t = np.arange(round(min(5 * decay_s, 4.0) * rate_hz)) / rate_hz
    wave = np.zeros(len(t))
    for i, ratio in enumerate(ratios):
        f = hz * ratio * rng.uniform(0.995, 1.005)
        if f < 0.45 * rate_hz:
            level = rng.uniform(0.5, 1.0) / (1 + i)
            wave += level * np.exp(t * (-(1 + 0.8 * i) / decay_s)) * np.sin(2 * np.pi * (f * t + rng.uniform()))
    attack = min(len(wave), round(0.002 * rate_hz))
    wave[:attack] *= np.linspace(0.0, 1.0, attack)
    return wave
