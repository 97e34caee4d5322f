"""Where live audio comes from: a file, raw PCM from a pipe; the microphone is in microphone.py."""

from __future__ import annotations

import collections
import contextlib
import math
import select
import threading
import time
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from ced_edge.arrays import Float32
from ced_edge.audio.read import stream
from ced_edge.errors import InputError

Piece = tuple[Float32, int]
"""(n,) or (n, channels) in [-1, 1], and its rate in Hz."""

PCM_FORMATS: dict[str, tuple[np.dtype[Any], float]] = {
    "s16le": (np.dtype("<i2"), 32_768.0),
    "f32le": (np.dtype("<f4"), 1.0),
}
"""How a sample is stored, and the value that means 1."""

PIECE_S = 0.1
"""Longest piece of a pipe: how long its answer can wait for the rest."""
_MAX_WAITING_S = 30.0
"""Audio of a pipe that waits at most; then whoever writes into it waits."""
_PACE_S = 5.0
"""A pipe is live that, for so long, has neither run ahead of the clock nor had to wait for us."""
_AHEAD_S = 1.0
"""It runs ahead that brings so much more than the clock in that time; sound cards' clocks and buffers bring less."""


class Source(Protocol):
    """Audio in pieces."""

    @property
    def live(self) -> bool:
        """Whether it goes on whether or not anybody keeps up. What is not live may never be skipped."""
        ...

    def read(self, wait_s: float) -> list[Piece] | None:
        """The next pieces, none when none came within `wait_s`; None at the end. Raises CedEdgeError."""
        ...

    def close(self) -> None:
        """Let go of what it reads from."""
        ...


class FileSource:
    """An audio file, as fast as it is asked for. Raises AudioError, while reading, where it is none."""

    live = False

    def __init__(self, path: Path) -> None:
        self._pieces = stream(path)

    def read(self, wait_s: float) -> list[Piece] | None:
        piece = next(self._pieces, None)
        return None if piece is None else [piece]

    def close(self) -> None:
        self._pieces.close()  # ends the generator, whose `with` blocks close the decoder and the file


class PieceQueue:
    """Pieces from one other thread to `read`."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._waiting_s = 0.0
        self._changed = threading.Condition()
        self._ended = False
        self._error: Exception | None = None

    @property
    def live(self) -> bool:
        return not self._ended  # then it cannot get further behind

    @property
    def full(self) -> bool:
        """Whether the next `put` waits for a `read`."""
        return self._waiting_s >= _MAX_WAITING_S

    def put(self, piece: Piece) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self.full)
            self._pieces.append(piece)
            self._waiting_s += len(piece[0]) / piece[1]
            self._changed.notify_all()

    def end(self, error: Exception | None = None) -> None:
        """No more will be put. `read` raises the error once it has given all there is."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def read(self, wait_s: float) -> list[Piece] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._ended, wait_s)
            pieces, self._pieces, self._waiting_s = self._pieces, [], 0.0
            self._changed.notify_all()
            if pieces or not self._ended:
                return pieces
        if self._error is not None:
            raise self._error
        return None


class PcmSource(PieceQueue):
    """Raw interleaved samples from a pipe, read in a thread of its own so that the pipe never fills up.

    A pipe is taken to be live unless it runs ahead of the clock: then it is a file that is being decoded, say. While
    its writer waits for us, the pace is ours and tells nothing; it may be a file.
    """

    def __init__(self, pipe: IO[bytes], rate_hz: int, channels: int, format: str) -> None:
        """Raises InputError on an unknown format."""
        if format not in PCM_FORMATS:
            raise InputError(f"unknown PCM format {format!r}: choose one of {', '.join(PCM_FORMATS)}")
        super().__init__()
        # Unbuffered: what is there is given at once, and at exit no lock is left in the thread's hands. But the
        # buffer is kept: without it, the pipe would be closed.
        self._buffer, self._pipe = pipe, getattr(pipe, "raw", pipe)
        self._rate_hz, self._channels = rate_hz, channels
        self._dtype, self._full_scale = PCM_FORMATS[format]
        self._received_s, self._live_from_s, self._ahead = 0.0, math.inf, False
        self._marks: collections.deque[tuple[float, float]] = collections.deque()  # clock, received by then
        threading.Thread(target=self._pump, daemon=True).start()

    @property
    def live(self) -> bool:
        return super().live and not self._ahead and time.monotonic() > self._live_from_s

    def close(self) -> None:
        pass  # the pipe is not ours

    def _pump(self) -> None:
        try:
            self._read_pipe()
            self.end()
        except Exception as e:  # raised again where the pieces are read
            self.end(e)

    def _read_pipe(self) -> None:
        frame = self._channels * self._dtype.itemsize
        rest, at_once = b"", frame * max(1, round(PIECE_S * self._rate_hz))
        while data := self._next(at_once):
            if not self._marks:
                if data[:4] in (b"RIFF", b"OggS", b"fLaC"):
                    raise InputError("stdin holds an audio file, not raw PCM: `arecord -t raw`, `ffmpeg -f s16le`")
                self._marks.append((time.monotonic(), 0.0))
                self._live_from_s = time.monotonic() + _PACE_S
            data = rest + data
            whole = len(data) // frame * frame
            rest = data[whole:]
            values = np.frombuffer(data[:whole], self._dtype).astype(np.float32) / np.float32(self._full_scale)
            piece = values.reshape(-1, self._channels)
            self._judge_pace(len(piece) / self._rate_hz)
            if held := self.full:
                self._live_from_s = math.inf
            self.put((piece, self._rate_hz))
            if held:
                self._live_from_s = time.monotonic() + _PACE_S

    def _next(self, most: int) -> bytes:
        """Bytes as soon as there are any, none at the end. A pipe may be non-blocking: others set that for all."""
        while True:
            with contextlib.suppress(BlockingIOError):
                data: bytes | None = self._pipe.read(most)
                if data is not None:
                    return data
            select.select([self._pipe], [], [])

    def _judge_pace(self, seconds: float) -> None:
        now = time.monotonic()
        self._received_s += seconds
        self._marks.append((now, self._received_s))
        while self._marks[1][0] <= now - _PACE_S:
            self._marks.popleft()  # the first one left tells what had been received _PACE_S ago
        self._ahead = self._received_s - self._marks[0][1] > _PACE_S + _AHEAD_S
