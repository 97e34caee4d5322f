"""Sources of a stream of audio: a file, or raw PCM from a pipe. The microphone is in microphone.py."""

from __future__ import annotations

import contextlib
import math
import select
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from ced_edge.arrays import Float32
from ced_edge.audio.containers import encoded_kind
from ced_edge.audio.pace import Pace, RateCheck
from ced_edge.audio.read import stream
from ced_edge.errors import InputError

Piece = tuple[Float32, int]
"""(n,) or (n, channels) in [-1, 1], and its rate in Hz."""


@dataclass(frozen=True)
class Gap:
    """Audio that a live source has lost: so many seconds passed without it."""

    seconds: float


@dataclass(frozen=True)
class Hint:
    """Something about the source that the user should know."""

    text: str


Item = Piece | Gap | Hint


@dataclass(frozen=True)
class PcmFormat:
    """How raw samples are stored."""

    size: int
    """Bytes of one sample."""
    decode: Callable[[bytes], Float32]
    """Whole samples -> (n,) float32, where full scale is 1.0."""


def _integers(dtype: str) -> PcmFormat:
    size = np.dtype(dtype).itemsize
    full_scale = np.float32(2 ** (8 * size - 1))
    return PcmFormat(size, lambda data: np.frombuffer(data, dtype).astype(np.float32) / full_scale)


def _three_bytes(data: bytes) -> Float32:
    wide = np.zeros((len(data) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)  # the upper bytes of 32-bit integers
    return wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)


PCM_FORMATS = {
    "s16le": _integers("<i2"),
    "s24le": PcmFormat(3, _three_bytes),
    "s32le": _integers("<i4"),
    "f32le": PcmFormat(4, lambda data: np.frombuffer(data, "<f4").astype(np.float32)),
}
"""The names are FFmpeg's. ALSA calls s24le S24_3LE."""

PIECE_S = 0.1
"""Longest piece that is read from a pipe. Longer pieces would delay the predictions."""
_MAX_WAITING_S = 30.0
"""Most audio in the queue. When it is full, the pipe is not read, and its writer has to wait."""
_HEAD_BYTES = 4096
"""The first bytes of a pipe, which show whether they are an encoded file."""


class Source(Protocol):
    """A stream of audio, in pieces."""

    @property
    def live(self) -> bool:
        """Whether new audio arrives at its own pace. Only audio of a live source may be skipped to keep up."""
        ...

    @property
    def started_unix_s(self) -> float | None:
        """The time of day at second 0 of the stream, in seconds since 1970. None if the source is not live."""
        ...

    def read(self, wait_s: float) -> list[Item] | None:
        """What arrived: nothing within `wait_s` seconds is an empty list; None is the end. Raises CedEdgeError."""
        ...

    def close(self) -> None:
        """Close the file or the device. Nothing can be read after that."""
        ...


class FileSource:
    """An audio file, read as fast as the caller reads. `read` raises AudioError if it is no audio."""

    live = False
    started_unix_s = None

    def __init__(self, path: Path) -> None:
        self._pieces = stream(path)

    def read(self, wait_s: float) -> list[Item] | None:
        piece = next(self._pieces, None)
        return None if piece is None else [piece]

    def close(self) -> None:
        self._pieces.close()  # ends the generator, whose `with` blocks close the decoder and the file


class PieceQueue:
    """A queue between one thread, in which audio arrives, and one that reads it."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._held: list[Piece] = []  # pieces after an outage: it is not known yet whether audio is missing before them
        self._items: list[Item] = []
        self._waiting_s = 0.0
        self._changed = threading.Condition()
        self._ended = False
        self._error: Exception | None = None

    @property
    def live(self) -> bool:
        return not self._ended  # after the end no more audio arrives, so nothing has to be skipped

    @property
    def started_unix_s(self) -> float | None:
        return self._pace.started_unix_s

    @property
    def full(self) -> bool:
        """Whether the next `put` has to wait for a `read`."""
        return self._waiting_s >= _MAX_WAITING_S

    def arrived(self, piece: Piece) -> None:
        """Put a piece that has just arrived, and before it the gap that an outage left. Waits while the queue is full.

        After an outage the pieces are put with some delay, see `Pace`.
        """
        gap_s = self._pace.arrived(len(piece[0]) / piece[1], time.monotonic(), time.time())
        self._held.append(piece)
        if gap_s is not None:
            self._release(gap_s)

    def lost(self, seconds: float) -> None:
        """Count audio that arrived when the queue was full, and that was dropped."""
        seconds += self._pace.arrived(seconds, time.monotonic(), time.time()) or 0.0
        seconds += sum(len(samples) / rate_hz for samples, rate_hz in self._held)  # they would have to wait, too
        self._held = []
        with self._changed:
            if self._items and isinstance(last := self._items[-1], Gap):
                seconds += last.seconds
                self._items.pop()
            self._items.append(Gap(seconds))

    def _release(self, gap_s: float) -> None:
        if gap_s:
            self.put(Gap(gap_s))
        for piece in self._held:
            self.put(piece)
        self._held = []

    def put(self, item: Item) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self.full)
            self._items.append(item)
            if isinstance(item, tuple):
                self._waiting_s += len(item[0]) / item[1]
            self._changed.notify_all()

    def end(self, error: Exception | None = None) -> None:
        """End the queue. After the last item, `read` raises `error`, or returns None."""
        if self._held:
            self._release(self._pace.decide())
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def read(self, wait_s: float) -> list[Item] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended, wait_s)
            # At first, wait until the pace shows whether the source is live. All windows can have a time of day then.
            left_s = self._pace.known_from - time.monotonic()
            known = left_s <= 0 or self._changed.wait_for(lambda: self._ended or self.full, min(left_s, wait_s))
            if not known and left_s > wait_s:
                return []
            items, self._items, self._waiting_s = self._items, [], 0.0
            self._changed.notify_all()
            if items or not self._ended:
                return items
        if self._error is not None:
            raise self._error
        return None


class NamedPipe:
    """A named pipe that is opened at the first `read`: opening waits for a writer, and must not block the program."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pipe: IO[bytes] | None = None

    def read(self, most: int) -> bytes:
        """As `read` of an open pipe. At its end it is closed."""
        if self._pipe is None:
            self._pipe = self._path.open("rb", buffering=0)
        data = b"" if self._pipe.closed else self._pipe.read(most)
        if not data:
            self._pipe.close()
        return data


class PcmSource(PieceQueue):
    """Raw interleaved samples from a pipe. A thread reads them, so that the pipe does not fill up.

    A pipe counts as live unless audio arrives faster than the clock runs: then its writer decodes a file, for example.
    While the queue is full, the writer has to wait for us, so its pace shows nothing, and the pipe counts as not live.
    """

    def __init__(self, pipe: IO[bytes] | NamedPipe, rate_hz: int, channels: int, format: str) -> None:
        """Raises InputError on an unknown format."""
        if format not in PCM_FORMATS:
            raise InputError(f"unknown PCM format {format!r}: choose one of {', '.join(PCM_FORMATS)}")
        super().__init__()
        # `raw` has no buffer: `read` returns at once what is there, and at exit the thread holds no lock of the buffer.
        # The buffer is kept in a field, because the pipe is closed when the buffer is deleted.
        self._buffer = pipe
        self._pipe: Any = getattr(pipe, "raw", pipe)
        self._rate_hz, self._channels, self._format = rate_hz, channels, PCM_FORMATS[format]
        self._check = RateCheck(rate_hz, channels, self._format.size)
        threading.Thread(target=self._pump, daemon=True).start()

    @property
    def live(self) -> bool:
        return super().live and not self._pace.ahead and time.monotonic() > self._pace.live_from

    def close(self) -> None:
        pass  # the caller opened the pipe, so the caller closes it

    def _pump(self) -> None:
        try:
            self._read_pipe()
            self.end()
        except Exception as e:  # raised again where the pieces are read
            self.end(e)

    def _read_pipe(self) -> None:
        frame = self._channels * self._format.size
        rest = b""
        for data in self._chunks(frame * max(1, round(PIECE_S * self._rate_hz))):
            data = rest + data  # a read may end in the middle of a frame
            whole = len(data) // frame * frame
            rest = data[whole:]
            if whole:
                self._take(self._format.decode(data[:whole]).reshape(-1, self._channels))
        if rest:
            self.put(Hint(f"the pipe ended within a frame: {len(rest)} of its {frame} bytes were left out"))

    def _take(self, samples: Float32) -> None:
        if waits := self.full:
            self._pace.throttled(math.inf)
        self.arrived((samples, self._rate_hz))
        if waits:
            self._check.stop()
            self._pace.throttled(time.monotonic())
        elif hint := self._check.hint(self._pace.received_s, time.monotonic()):
            self.put(Hint(hint))

    def _chunks(self, most: int) -> Iterator[bytes]:
        """The bytes of the pipe, at most so many at a time. Raises InputError if they are an encoded file."""
        head = b""
        while len(head) < _HEAD_BYTES and (data := self._next(_HEAD_BYTES - len(head))):
            head += data
        if kind := encoded_kind(head):
            raise InputError(
                f"stdin holds {kind}, not raw PCM: `ffmpeg -i - -f s16le -ar 16000 -ac 1 -` converts it;"
                " `ced-edge tag -` reads whole files"
            )
        for start in range(0, len(head), most):
            yield head[start : start + most]
        while data := self._next(most):
            yield data

    def _next(self, most: int) -> bytes:
        """Bytes as soon as there are any, none at the end. Another process may have made the pipe non-blocking."""
        while True:
            with contextlib.suppress(BlockingIOError):
                data: bytes | None = self._pipe.read(most)
                if data is not None:
                    return data
            select.select([self._pipe], [], [])
