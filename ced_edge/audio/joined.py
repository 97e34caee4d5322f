"""Files that were joined end to end (`cat a.aiff b.aiff`), in formats whose header gives the size of the whole file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from ced_edge.audio.spliced import at

_CHUNKS = 1 << 16  # most chunks of a file that are looked at


def _aiff(f: BinaryIO, begin: int, size: int) -> int:
    length = int.from_bytes(at(f, begin + 4, 4), "big")
    return begin + 8 + length + length % 2


def _au(f: BinaryIO, begin: int, size: int) -> int:
    header, length = struct.unpack(">II", at(f, begin + 4, 8).ljust(8, b"\xff"))
    return size if length == 0xFFFFFFFF else begin + header + length


def _w64(f: BinaryIO, begin: int, size: int) -> int:
    length = int.from_bytes(at(f, begin + 16, 8), "little")
    return begin + (length + 7) // 8 * 8


def _caf(f: BinaryIO, begin: int, size: int) -> int:
    place = begin + 8
    for _ in range(_CHUNKS):
        head = at(f, place, 12)
        if len(head) < 12 or head[:4] == b"caff":
            break
        length = int.from_bytes(head[4:], "big", signed=True)
        if not 0 <= length < size:  # -1: a program that wrote to a pipe left it open
            return size
        place += 12 + length
    return place


_ENDS: dict[bytes, Callable[[BinaryIO, int, int], int]] = {b"FORM": _aiff, b".snd": _au, b"riff": _w64, b"caff": _caf}
"""By the first bytes: where the file that starts at `begin` ends, from its header."""


def files_in(f: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """The bytes [start, stop) of each AIFF, AU, W64 or CAF file in `f`.

    A further file counts only where the one before it ends by its header, and only with the same first bytes. The
    last one reaches to the end, whatever its header says.
    """
    begin, mark = 0, at(f, 0, 4)
    while mark in _ENDS:
        end = _ENDS[mark](f, begin, size)
        if not begin < end < size or at(f, end, 4) != mark:
            break
        yield begin, end
        begin = end
    yield begin, size


def passed_over(f: BinaryIO, size: int, format: str) -> int:
    """How many further files are behind the first one in `f`, which FFmpeg would pass over without notice.

    `format` is FFmpeg's name of it: `mov` (MP4), `flv` or `tta`. 0 for the others.
    """
    if format == "mov":
        return _mp4_files(f, size) - 1
    if format not in _HEADERS:
        return 0
    mark, length, is_header = _HEADERS[format]
    found = 0
    for place in range(0, size, _BLOCK):
        # A header may begin in this block and end in the next one.
        block = at(f, place, _BLOCK + length - 1)
        i = block.find(mark, 0 if place else 1)
        while 0 <= i < _BLOCK:
            found += is_header(block[i : i + length])
            i = block.find(mark, i + 1)
    return found


def _is_flv(head: bytes) -> bool:
    return head[4:5] in (b"\1", b"\4", b"\5") and head[5:] == b"\0\0\0\x09\0\0\0\0"


def _is_tta(head: bytes) -> bool:
    return len(head) == 22 and zlib.crc32(head[:18]) == int.from_bytes(head[18:], "little")


_BLOCK = 1 << 20
_HEADERS: dict[str, tuple[bytes, int, Callable[[bytes], bool]]] = {
    "flv": (b"FLV\1", 13, _is_flv),
    "tta": (b"TTA1", 22, _is_tta),
}
"""First bytes and length of a header, and whether bytes are one: the sizes of these files are nowhere in them."""


def _mp4_files(f: BinaryIO, size: int) -> int:
    """How many MP4 files are in `f`: boxes `moov` on the top level. 1 for a file of fragments, which may repeat it."""
    place, indices = 0, 0
    for _ in range(_CHUNKS):
        head = at(f, place, 16)
        if len(head) < 8 or head[4:8] == b"moof":
            break
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        indices += head[4:8] == b"moov"
        if not 8 <= length < size:  # 0: to the end of the file
            break
        place += length
    else:
        return 1
    return 1 if head[4:8] == b"moof" else max(1, indices)
