"""A stream of audio, in pieces of any length -> mono samples at one rate, by index from the beginning."""

from __future__ import annotations

from typing import Any

import numpy as np
import soxr
from numpy.typing import ArrayLike, NDArray

from ced_edge.arrays import Float32
from ced_edge.audio.base import MAX_RATE_HZ, MIN_RATE_HZ
from ced_edge.audio.mix import Mixer, check_samples, with_channels
from ced_edge.errors import InputError

MAX_CHANNELS = 64
"""More channels than this mean that the array is (channels, samples)."""

_BLOCK_FRAMES = 1 << 16
"""Frames per step, so that a long piece needs no long temporary arrays."""


class Intake:
    """The samples of a stream that are still needed. The result does not depend on the lengths of the pieces."""

    def __init__(self, rate_hz: int, name: str | None = "the stream", start_s: float = 0.0) -> None:
        """`name` is for the notice that channels cancel each other. None: give no notice.

        `start_s` is the time of the first sample, for messages.
        """
        self.rate_hz, self._start_s = rate_hz, start_s
        """Rate of the output."""
        self._name = name
        self.samples = 0
        """Samples of output so far."""
        self.source_hz: int | None = None
        """Rate of the input, known after the first piece."""
        self.finished = False
        self._resampler: soxr.ResampleStream | None = None
        self._mixer: Mixer | None = None
        self._channels = 1
        self._frames = 0  # frames of input so far
        self._buffer: Float32 = np.empty(0, np.float32)
        self._first = self._kept = 0  # index of the first sample in the buffer, and of the first one still needed

    def accept(self, samples: ArrayLike, rate_hz: int | None = None) -> None:
        """Add (n,) or (n, channels) floats in [-1, 1] at `rate_hz` (None: the rate so far, at first the output's).

        The rules of mix.py apply: several channels become one, and a sample above 8.0 is refused. The last tenth of a
        second of several channels follows later. Raises InputError on a change of rate, a finished stream, NaN,
        infinity, a sample above 8.0, integers or another shape; then no sample of the piece is added.
        """
        if self.finished:
            raise InputError("the stream is finished and takes no more samples: reset() begins a new one")
        pieces = _frames(samples)
        source_hz = rate_hz if rate_hz is not None else self.source_hz or self.rate_hz
        if self.source_hz not in (None, source_hz):
            raise InputError(f"a stream of {self.source_hz} Hz was given samples of {source_hz} Hz: reset() it first")
        if not MIN_RATE_HZ <= source_hz <= MAX_RATE_HZ:
            raise InputError(f"a rate of {source_hz} Hz is not between {MIN_RATE_HZ} and {MAX_RATE_HZ} Hz")
        blocks, first = range(0, len(pieces), _BLOCK_FRAMES), self._frames + round(self._start_s * source_hz)
        # Check the whole piece before any of it is added.
        for i in blocks:
            check_samples(_float32(pieces[i : i + _BLOCK_FRAMES]), first + i, source_hz)
        if self._mixer is None:
            self.source_hz, self._channels = source_hz, pieces.shape[1]
            self._mixer = Mixer(self._channels, source_hz, self._name)
            if source_hz != self.rate_hz:
                self._resampler = soxr.ResampleStream(source_hz, self.rate_hz, 1, "float32", quality="HQ")
        for i in blocks:
            self._add(self._mixer.push(with_channels(_float32(pieces[i : i + _BLOCK_FRAMES]), self._channels)))
        self._frames += len(pieces)

    def finish(self) -> None:
        """End the stream: the mixer and the resampler output the samples that they still hold."""
        if self._mixer is not None and not self.finished:
            self._add(self._mixer.finish(), last=True)
        self.finished = True

    def view(self, start: int, stop: int) -> Float32:
        """Samples [start, stop). They must have arrived, and not be dropped."""
        assert self._kept <= start <= stop <= self.samples
        return self._buffer[start - self._first : stop - self._first]

    def drop(self, before: int) -> None:
        """Drop the samples before this index."""
        self._kept = max(self._kept, min(before, self.samples))
        if len(self._buffer) > 4 * max(self.samples - self._kept, _BLOCK_FRAMES):
            self._move(0)  # a long piece made the buffer large: free that memory

    def _add(self, mono: Float32, last: bool = False) -> None:
        if self._resampler is not None:
            mono = self._resampler.resample_chunk(mono, last=last)
        self._append(mono)

    def _append(self, mono: Float32) -> None:
        if self.samples - self._first + len(mono) > len(self._buffer):
            self._move(len(mono))
        at = self.samples - self._first
        self._buffer[at : at + len(mono)] = mono
        self.samples += len(mono)

    def _move(self, more: int) -> None:
        """Copy the needed samples to a new buffer, of twice the size, so that copies are rare."""
        wanted = self._buffer[self._kept - self._first : self.samples - self._first]
        self._buffer = np.empty(2 * (len(wanted) + more), np.float32)
        self._buffer[: len(wanted)] = wanted
        self._first = self._kept


def _frames(samples: ArrayLike) -> NDArray[Any]:
    """(n,) or (n, channels) -> (n, channels)."""
    x = np.asarray(samples)
    if not np.issubdtype(x.dtype, np.floating):
        raise InputError(f"samples are floats in [-1, 1], not {x.dtype}: divide 16-bit integers by 32768")
    if x.ndim == 1:
        return x[:, None]
    if x.ndim == 2 and 1 <= x.shape[1] <= MAX_CHANNELS:
        return x
    raise InputError(f"samples are (n,) or (n, channels) with at most {MAX_CHANNELS} channels, not {x.shape}")


def _float32(block: NDArray[Any]) -> Float32:
    with np.errstate(over="ignore"):  # a float64 that is too large becomes infinite, and is refused
        return block.astype(np.float32, copy=False)
