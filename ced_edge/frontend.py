"""The log-mel front end in numpy, for devices: pure functions, one clip at a time."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from ced_edge.errors import InputError
from ced_edge.spec import FrontendSpec

Float32 = NDArray[np.float32]


def hz_to_mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Hertz to mel, HTK formula: 2595 log10(1 + f / 700)."""
    return np.asarray(2595.0 * np.log10(1.0 + np.asarray(hz, np.float64) / 700.0))


def mel_to_hz(mel: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Mel to hertz, the inverse of `hz_to_mel`."""
    return np.asarray(700.0 * (10.0 ** (np.asarray(mel, np.float64) / 2595.0) - 1.0))


@functools.lru_cache(maxsize=8)
def mel_filters(spec: FrontendSpec) -> Float32:
    """Triangular mel filters, HTK scale, no area normalisation: (n_mels, n_bins)."""
    bins_hz = np.linspace(0.0, spec.rate_hz / 2, spec.n_bins)
    edges_hz = _edges_hz(spec).astype(np.float64)
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    rising = (bins_hz - low) / (centre - low)
    falling = (high - bins_hz) / (high - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    filters.setflags(write=False)
    return filters


def _edges_hz(spec: FrontendSpec) -> Float32:
    """Corners of the triangles in hertz: (n_mels + 2,).

    In torchaudio's float32 steps, counted from both ends: the published weights were trained on its filters, and
    exact corners would move a quiet bin by 5e-4 dB.
    """
    n = spec.n_mels + 2
    first, last = (np.float32(hz_to_mel(f)) for f in (spec.f_min_hz, spec.f_max_hz))
    step = np.float64((last - first) / np.float32(n - 1))
    i = np.arange(n)
    mel = np.where(i < n // 2, first + step * i, last - step * (n - 1 - i)).astype(np.float32)
    decades = (mel / np.float32(2595.0)).astype(np.float64)
    return np.float32(700.0) * ((10.0**decades).astype(np.float32) - np.float32(1.0))


@functools.lru_cache(maxsize=8)
def hann_window(length: int) -> Float32:
    """Periodic Hann window: (length,)."""
    window = (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / length)).astype(np.float32)
    window.setflags(write=False)
    return window


def log_mel(wave: Float32, spec: FrontendSpec) -> Float32:
    """Waveform (samples,) in [-1, 1] -> log-mel (n_mels, frames) in dB.

    Raises InputError when the clip is shorter than half a window (reflection cannot pad it).
    """
    if wave.ndim != 1 or len(wave) < spec.min_samples:
        raise InputError(f"the front end takes one channel of at least {spec.min_samples} samples, not {wave.shape}")
    padded = np.pad(wave.astype(np.float32, copy=False), spec.n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, spec.n_fft)[:: spec.hop]  # (T, n_fft)
    spectrum = np.fft.rfft(frames * hann_window(spec.n_fft), axis=-1)  # (T, n_bins)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    mel = mel_filters(spec) @ power.T  # (n_mels, T)
    db: Float32 = np.float32(10.0) * np.log10(np.maximum(mel, np.float32(spec.min_power)))
    floor: np.float32 = db.max() - np.float32(spec.top_db)
    return np.maximum(db, floor)
