"""Where live audio comes from: a file, raw PCM from a pipe; the microphone is in microphone.py."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ced_edge.audio import stream
from ced_edge.errors import InputError

Float32 = NDArray[np.float32]
Piece = tuple[Float32, int]
"""(n,) or (n, channels) in [-1, 1], and its rate in Hz."""

PCM_FORMATS: dict[str, tuple[np.dtype[Any], float]] = {
    "s16le": (np.dtype("<i2"), 32_768.0),
    "f32le": (np.dtype("<f4"), 1.0),
}
"""How a sample is stored, and the value that means 1."""

PIECE_S = 0.1
"""Longest piece of a pipe: how long its answer can wait for the rest."""
_MAX_PIECES = 300
"""Pieces of a pipe that wait at most; then whoever writes into it waits."""
_PACE_S = 5.0
"""A pipe is live that, for so long, has not run ahead of the clock by so much."""


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
        self._pieces: Iterator[Piece] = stream(path)

    def read(self, wait_s: float) -> list[Piece] | None:
        piece = next(self._pieces, None)
        return None if piece is None else [piece]

    def close(self) -> None:
        pass


class PieceQueue:
    """Pieces from another thread to `read`."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Piece | Exception | None] = queue.Queue(_MAX_PIECES)
        self._ended = False

    def put(self, piece: Piece | Exception | None, wait: bool = True) -> None:
        """None is the end, an exception is raised by `read`. Without `wait`, raises queue.Full when it is."""
        self._queue.put(piece, block=wait)

    def read(self, wait_s: float) -> list[Piece] | None:
        pieces: list[Piece] = []
        while not self._ended:
            try:
                piece = self._queue.get(timeout=wait_s) if wait_s and not pieces else self._queue.get_nowait()
            except queue.Empty:
                return pieces
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                self._ended = True
            else:
                pieces.append(piece)
        return pieces or None


class PcmSource(PieceQueue):
    """Raw interleaved samples from a pipe, read in a thread of its own so that the pipe never fills up.

    A pipe is taken to be live unless it runs ahead of the clock: then it is a file that is being decoded, say.
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
        self._began_s = self._received_s = 0.0
        self._ahead = self._all_here = False
        threading.Thread(target=self._pump, daemon=True).start()

    @property
    def live(self) -> bool:
        waited = self._began_s and time.monotonic() - self._began_s > _PACE_S
        return bool(waited and not self._ahead and not self._all_here)

    def close(self) -> None:
        pass  # the pipe is not ours

    def _pump(self) -> None:
        try:
            self._read_pipe()
            self._all_here = True
            self.put(None)
        except Exception as e:  # raised again where the pieces are read
            self.put(e)

    def _read_pipe(self) -> None:
        frame = self._channels * self._dtype.itemsize
        rest, at_once = b"", frame * max(1, round(PIECE_S * self._rate_hz))
        while data := self._pipe.read(at_once):
            if not self._began_s:
                self._began_s = time.monotonic()
                if data[:4] in (b"RIFF", b"OggS", b"fLaC"):
                    raise InputError("stdin holds an audio file, not raw PCM: `arecord -t raw`, `ffmpeg -f s16le`")
            data = rest + data
            whole = len(data) // frame * frame
            rest = data[whole:]
            values = np.frombuffer(data[:whole], self._dtype).astype(np.float32) / np.float32(self._full_scale)
            piece = values.reshape(-1, self._channels)
            self._received_s += len(piece) / self._rate_hz
            self._ahead |= self._received_s > time.monotonic() - self._began_s + _PACE_S
            self.put((piece, self._rate_hz))
