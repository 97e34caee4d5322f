"""The log-mel front end in numpy, for devices without PyTorch. One clip at a time."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from ced_edge.arrays import Float32, Float64
from ced_edge.errors import InputError
from ced_edge.spec import FrontendSpec

_BLOCK = 128
"""Frames per step: small enough that the arrays of a step stay in the processor's cache."""


def hz_to_mel(hz: Float64 | float) -> Float64:
    """Hertz to mel, HTK formula: 2595 log10(1 + f / 700)."""
    return np.asarray(2595.0 * np.log10(1.0 + np.asarray(hz, np.float64) / 700.0))


def mel_to_hz(mel: Float64 | float) -> Float64:
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

    The published weights were trained with torchaudio's filters. So this repeats its float32 rounding, which counts
    steps from both ends. Exact corners would change a quiet bin by 5e-4 dB.
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


@functools.lru_cache(maxsize=8)
def _bands(spec: FrontendSpec) -> tuple[NDArray[np.intp], Float32, NDArray[np.intp]]:
    """The filters without zeros, joined: bins (n,), weights (n,), and where each filter starts (n_mels,)."""
    filters = mel_filters(spec)
    # `reduceat` needs at least one value per filter: a filter between two bins keeps one zero.
    bins = [np.flatnonzero(f) if f.any() else np.zeros(1, np.intp) for f in filters]
    starts = np.cumsum([0, *map(len, bins[:-1])])
    return np.concatenate(bins), np.concatenate([f[b] for f, b in zip(filters, bins, strict=True)]), starts


def frames_db(samples: Float32, spec: FrontendSpec) -> Float32:
    """Samples (n,) -> (frames, n_mels) in dB, for every whole frame. Without padding and without the floor.

    The values of a frame depend only on its own n_fft samples, to the last bit, so a stream and a file agree. A matrix
    product would break this: its order of summation changes with the number of frames.
    """
    frames = np.lib.stride_tricks.sliding_window_view(samples, spec.n_fft)[:: spec.hop]  # (T, n_fft)
    bins, weights, starts = _bands(spec)
    db = np.empty((len(frames), spec.n_mels), np.float32)
    for i in range(0, len(frames), _BLOCK):
        spectrum = np.fft.rfft(frames[i : i + _BLOCK] * hann_window(spec.n_fft), axis=-1)  # (block, n_bins)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
        mel = np.add.reduceat(power.take(bins, axis=1) * weights, starts, axis=1)  # (block, n_mels)
        db[i : i + _BLOCK] = np.log10(np.maximum(mel, np.float32(spec.min_power)))
    db *= np.float32(10.0)
    return db


def _floored(db: Float32, spec: FrontendSpec) -> Float32:
    """(frames, n_mels) -> (n_mels, frames). Values more than `top_db` below the maximum are raised to that floor."""
    return np.ascontiguousarray(np.maximum(db, db.max() - np.float32(spec.top_db)).T)


def log_mel(wave: Float32, spec: FrontendSpec) -> Float32:
    """Waveform (samples,) in [-1, 1] -> log-mel (n_mels, frames) in dB.

    Raises InputError when the clip is shorter than half a window (reflection cannot pad it).
    """
    if wave.ndim != 1 or len(wave) < spec.min_samples:
        raise InputError(f"the front end takes one channel of at least {spec.min_samples} samples, not {wave.shape}")
    padded = np.pad(wave.astype(np.float32, copy=False), spec.n_fft // 2, mode="reflect")
    return _floored(frames_db(padded, spec), spec)


class StreamMel:
    """`log_mel` for the windows of a stream, in order. Frames that two windows share are computed once.

    The result is bit for bit that of `log_mel`. Only frames inside a window are shared: the frames at its edges contain
    reflected samples, and the floor depends on the whole window, so both are computed for each window.
    """

    def __init__(self, spec: FrontendSpec) -> None:
        self.spec = spec
        self._first, self._frames = 0, np.empty((0, spec.n_mels), np.float32)

    def log_mel(self, wave: Float32, start: int) -> Float32:
        """The window (samples,) that begins at sample `start` of the stream -> (n_mels, frames) in dB."""
        s, half = self.spec, self.spec.n_fft // 2
        a = -(-half // s.hop)  # the first frame without reflected samples
        b = (len(wave) - half) // s.hop + 1  # one past the last such frame
        if start % s.hop or b <= a:
            return log_mel(wave, s)  # the frames do not line up with those of other windows, or none is inside
        first = start // s.hop + a  # the same frame, counted from the beginning of the stream
        known = self._frames[first - self._first :][: b - a] if first >= self._first else self._frames[:0]
        if len(known) < b - a:
            fresh = frames_db(wave[(a + len(known)) * s.hop - half : (b - 1) * s.hop + half], s)
            known = np.concatenate([known, fresh])
        self._first, self._frames = first, known
        padded = np.pad(wave, half, mode="reflect")
        edges = frames_db(padded[: (a - 1) * s.hop + s.n_fft], s), frames_db(padded[b * s.hop :], s)
        return _floored(np.concatenate([edges[0], known, edges[1]]), s)
