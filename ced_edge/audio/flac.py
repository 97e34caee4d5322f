"""Streams of FLAC (RFC 9639) in a file: how many samples each really has, and where a second one begins.

A program that writes to a pipe leaves 0 samples in the header. One that cuts a file may leave the number of the whole
recording. The header of the last frame has the true number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from ced_edge.audio.spliced import Spliced, at

_HEADER = 42  # "fLaC", 4 bytes of a block header, 34 bytes of STREAMINFO
_BLOCK = 1 << 20
_MARKER = re.compile(rb"fLaC[\0\x80]\0\0\x22")  # STREAMINFO follows: 34 bytes, perhaps the last block before the frames
_TAIL = 1 << 17  # more than two frames
_BLOCK_SIZES = {1: 192} | {n: 576 << (n - 2) for n in range(2, 6)} | {n: 256 << (n - 8) for n in range(8, 16)}


def flac_begins(f: BinaryIO, start: int, size: int) -> Iterator[int]:
    """The bytes at which FLAC streams begin, from `start` on."""
    for place in range(start, size, _BLOCK):
        block = at(f, place, min(_BLOCK + 7, size - place))  # a marker may begin at the end of the block
        yield from (place + found.start() for found in _MARKER.finditer(block))


class FlacStream:
    """The numbers of samples of the FLAC stream in the bytes [begin, end) of a file."""

    def __init__(self, f: BinaryIO, begin: int, end: int) -> None:
        self._header = at(f, begin, _HEADER)
        self._span = (begin, end)
        self._f = f
        self.claimed = int.from_bytes(self._header[21:26], "big") & 0xFFFFFFFFF
        """Samples that the header claims; 0 if it leaves the number open."""
        self.first = self._frame(at(f, self._frames_begin(), 16))[0]
        """Number of the first sample, which is 0 unless the stream was cut from a longer one. -1 if unknown."""
        self.last = self._last()
        """Number of the sample after the last one. 0 if unknown."""

    @property
    def is_right(self) -> bool:
        """Whether the header claims what the frames hold."""
        return self.first == 0 and self.last == self.claimed

    def corrected(self) -> Spliced:
        """The stream with its true number of samples in the header."""
        samples = max(0, self.last - max(0, self.first))
        header = bytearray(self._header)
        header[21:26] = ((header[21] >> 4) << 36 | samples & 0xFFFFFFFFF).to_bytes(5, "big")
        return Spliced(self._f, [bytes(header), (self._span[0] + _HEADER, self._span[1])])

    def _frames_begin(self) -> int:
        place, end = self._span[0] + 4, self._span[1]
        while place + 4 <= end:
            block = at(self._f, place, 4)
            place += 4 + int.from_bytes(block[1:], "big")
            if block[0] & 0x80:
                break
        return place

    def _frame(self, head: bytes) -> tuple[int, int]:
        """The numbers of the first sample and of the sample after the last one of a frame; (-1, 0) if it is none."""
        if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8 or not head[2] >> 4:
            return -1, 0
        size_code, rate_code = head[2] >> 4, head[2] & 15
        more = max(0, 7 - (head[4] ^ 0xFF).bit_length())  # bytes behind the first one, as in UTF-8
        number = head[4] & (0x3F >> more if more else 0x7F)
        for byte in head[5 : 5 + more]:
            number = number << 6 | byte & 0x3F
        place = 5 + more
        if size_code in (6, 7):
            width = size_code - 5
            samples = int.from_bytes(head[place : place + width], "big") + 1
            place += width
        else:
            samples = _BLOCK_SIZES[size_code]
        place += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
        if place >= len(head) or _crc8(head[:place]) != head[place]:
            return -1, 0
        # With blocks of one size, frames are counted; else samples are.
        first = number if head[1] & 1 else number * int.from_bytes(self._header[8:10], "big")
        return first, first + samples

    def _last(self) -> int:
        begin = max(self._span[0] + _HEADER, self._span[1] - _TAIL)
        tail = at(self._f, begin, self._span[1] - begin)
        place = len(tail)
        while (place := tail.rfind(b"\xff", 0, place)) >= 0:
            if stop := self._frame(tail[place : place + 16])[1]:
                return stop
        return 0


def _crc8(data: bytes) -> int:
    """CRC-8 with the polynomial x^8 + x^2 + x + 1, as FLAC's frame headers have it."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc
