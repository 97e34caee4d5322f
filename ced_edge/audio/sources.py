"""Sources of a stream of audio: a file, or raw PCM from a pipe. The microphone is in microphone.py."""

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
"""How a sample is stored, and the value that means 1.0."""

PIECE_S = 0.1
"""Longest piece that is read from a pipe. Longer pieces would delay the predictions."""
_MAX_WAITING_S = 30.0
"""Most audio in the queue. When it is full, the pipe is not read, and its writer has to wait."""
_PACE_S = 5.0
"""A pipe counts as live after this long in step with the clock and without a full queue."""
_AHEAD_S = 1.0
"""A pipe that delivers this much more audio than time has passed is not live. Sound cards deviate by less."""


class Source(Protocol):
    """A stream of audio, in pieces."""

    @property
    def live(self) -> bool:
        """Whether new audio arrives at its own pace. Only audio of a live source may be skipped to keep up."""
        ...

    def read(self, wait_s: float) -> list[Piece] | None:
        """The next pieces: none if none arrived within `wait_s` seconds; None at the end. Raises CedEdgeError."""
        ...

    def close(self) -> None:
        """Close the file or the device. Nothing can be read after that."""
        ...


class FileSource:
    """An audio file, read as fast as the caller reads. `read` raises AudioError if it is no audio."""

    live = False

    def __init__(self, path: Path) -> None:
        self._pieces = stream(path)

    def read(self, wait_s: float) -> list[Piece] | None:
        piece = next(self._pieces, None)
        return None if piece is None else [piece]

    def close(self) -> None:
        self._pieces.close()  # ends the generator, whose `with` blocks close the decoder and the file


class PieceQueue:
    """A queue between one thread that puts pieces and one that reads them."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._waiting_s = 0.0
        self._changed = threading.Condition()
        self._ended = False
        self._error: Exception | None = None

    @property
    def live(self) -> bool:
        return not self._ended  # after the end no more audio arrives, so nothing has to be skipped

    @property
    def full(self) -> bool:
        """Whether the next `put` has to wait for a `read`."""
        return self._waiting_s >= _MAX_WAITING_S

    def put(self, piece: Piece) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self.full)
            self._pieces.append(piece)
            self._waiting_s += len(piece[0]) / piece[1]
            self._changed.notify_all()

    def end(self, error: Exception | None = None) -> None:
        """End the queue. After the last piece, `read` raises `error`, or returns None."""
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
    """Raw interleaved samples from a pipe. A thread reads them, so that the pipe does not fill up.

    A pipe counts as live unless audio arrives faster than the clock runs: then its writer decodes a file, for example.
    While the queue is full, the writer has to wait for us, so its pace shows nothing, and the pipe counts as not live.
    """

    def __init__(self, pipe: IO[bytes], rate_hz: int, channels: int, format: str) -> None:
        """Raises InputError on an unknown format."""
        if format not in PCM_FORMATS:
            raise InputError(f"unknown PCM format {format!r}: choose one of {', '.join(PCM_FORMATS)}")
        super().__init__()
        # `raw` has no buffer: `read` returns at once what is there, and at exit the thread holds no lock of the buffer.
        # The buffer is kept in a field, because the pipe is closed when the buffer is deleted.
        self._buffer, self._pipe = pipe, getattr(pipe, "raw", pipe)
        self._rate_hz, self._channels = rate_hz, channels
        self._dtype, self._full_scale = PCM_FORMATS[format]
        self._received_s, self._live_from_s, self._ahead = 0.0, math.inf, False
        self._marks: collections.deque[tuple[float, float]] = (
            collections.deque()
        )  # (clock, audio received until then), in seconds
        threading.Thread(target=self._pump, daemon=True).start()

    @property
    def live(self) -> bool:
        return super().live and not self._ahead and time.monotonic() > self._live_from_s

    def close(self) -> None:
        pass  # the caller opened the pipe, so the caller closes it

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
            data = rest + data  # a read may end in the middle of a frame
            whole = len(data) // frame * frame
            rest = data[whole:]
            values = np.frombuffer(data[:whole], self._dtype).astype(np.float32) / np.float32(self._full_scale)
            piece = values.reshape(-1, self._channels)
            self._judge_pace(len(piece) / self._rate_hz)
            if waited := self.full:
                self._live_from_s = math.inf
            self.put((piece, self._rate_hz))
            if waited:
                self._live_from_s = time.monotonic() + _PACE_S

    def _next(self, most: int) -> bytes:
        """Bytes as soon as there are any, none at the end. Another process may have made the pipe non-blocking."""
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
            self._marks.popleft()  # the first mark that stays is the audio received until _PACE_S ago
        self._ahead = self._received_s - self._marks[0][1] > _PACE_S + _AHEAD_S
