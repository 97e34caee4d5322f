"""A file made of parts of another one."""

from __future__ import annotations

import bisect
import io
from collections.abc import Sequence
from typing import BinaryIO


class Spliced(io.RawIOBase):
    """A read-only file that consists of bytes, and of spans (start, stop) of another file, one after the other."""

    def __init__(self, f: BinaryIO | Spliced, parts: Sequence[bytes | tuple[int, int]], pretend: int = 1) -> None:
        """The file is `pretend` times as long as its parts: zeros follow. A decoder that estimates the length of the
        sound from the size of the file then does not stop too early.
        """
        self._f, self._parts = f, list(parts)
        self._begins = [0]
        for part in self._parts:
            size = len(part) if isinstance(part, bytes) else part[1] - part[0]
            self._begins.append(self._begins[-1] + size)
        self._size = self._begins[-1] * pretend
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + (0, self._at, self._size)[whence]
        # libsndfile seeks in front of the beginning where a header is wrong. As in C, the position then stays.
        self._at = place if place >= 0 else self._at
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # io accepts any writable buffer
        place = bisect.bisect_right(self._begins, self._at) - 1
        if place >= len(self._parts):
            zeros = bytes(max(0, min(len(buffer), self._size - self._at)))
            buffer[: len(zeros)] = zeros
            self._at += len(zeros)
            return len(zeros)
        part, skip = self._parts[place], self._at - self._begins[place]
        if isinstance(part, bytes):
            data = part[skip : skip + len(buffer)]
        else:
            self._f.seek(part[0] + skip)
            data = self._f.read(min(len(buffer), part[1] - part[0] - skip)) or b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def at(f: BinaryIO | Spliced, offset: int, size: int) -> bytes:
    """The bytes from `offset` on, at most `size`. A read of `Spliced` ends where its part ends, so it is repeated."""
    f.seek(offset)
    data = f.read(size) or b""
    while 0 < len(data) < size and (more := f.read(size - len(data))):
        data += more
    return data
