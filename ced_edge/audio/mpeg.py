"""Frames of MPEG audio: MP3 and MP2 (ISO 11172-3, ISO 13818-3), and AAC in ADTS frames (ISO 13818-7); of AC-3 too.

An MP3 file has its length in an optional first frame, which is called the Xing or Info header. Without it, a decoder
estimates the length from the size of the file, and is wrong for a variable bit rate. So the frames are counted here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from ced_edge.audio.spliced import Spliced, at

# kbit/s by (MPEG version is 1, layer), for the bit rate codes 1 to 14
_KBIT = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = (44_100, 48_000, 32_000)  # of MPEG 1; MPEG 2 has half of it, MPEG 2.5 a quarter
_AC3_KBIT = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)
_BLOCK = 1 << 20
_LAME_BYTES = 36  # the part of a Xing header in which encoders write how much silence they added
_ENCODERS = (b"LAME", b"Lavf", b"Lavc", b"GOGO")


@functools.lru_cache(maxsize=1 << 16)
def _length(head: bytes) -> int:
    """Bytes of the frame with this header of 3 bytes; 0 if this is no such header."""
    if head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)  # version 3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return 0
    kbit = _KBIT[version == 3, layer][bitrate - 1]
    rate_hz = _RATES_HZ[rate] >> {3: 0, 2: 1, 0: 2}[version]
    if layer == 1:
        return (12_000 * kbit // rate_hz + padding) * 4
    return (72_000 if layer == 3 and version != 3 else 144_000) * kbit // rate_hz + padding


def mpeg_frame(head: bytes) -> int:
    """Bytes of the MP3 or MP2 frame that begins with this header of 4 bytes; 0 if this is no such header."""
    return _length(head[:3]) if len(head) >= 4 else 0


def adts_frame(head: bytes) -> int:
    """Bytes of the ADTS frame that begins with this header of 6 bytes; 0 if this is no such header."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length > 7 else 0


def has_ac3(data: bytes) -> bool:
    """Whether two frames of AC-3 or E-AC-3 (ETSI TS 102 366) follow each other from the start."""
    length = _ac3_frame(data[:6])
    return length > 0 and _ac3_frame(data[length : length + 6]) > 0


def _ac3_frame(head: bytes) -> int:
    if len(head) < 6 or head[:2] != b"\x0b\x77" or head[5] >> 3 > 16:
        return 0
    if head[5] >> 3 > 10:  # E-AC-3
        return 2 * ((head[2] & 7) << 8 | head[3]) + 2
    rate, code = head[4] >> 6, head[4] & 63
    if rate == 3 or code >= 2 * len(_AC3_KBIT):
        return 0
    kbit = _AC3_KBIT[code // 2]
    return 2 * (2 * kbit, kbit * 320 // 147 + code % 2, 3 * kbit)[rate]


def has_frames(data: bytes, frame: Callable[[bytes], int], start: int, least: int) -> bool:
    """Whether at least `least` frames of one format follow each other from `start`, and nothing else up to the end.

    `frame` is `mpeg_frame` or `adts_frame`. No more than 8 frames are read.
    """
    found, first = 0, data[start : start + 6]
    place = start
    while found < 8 and place + 6 <= len(data):
        head = data[place : place + 6]
        # One stream keeps its version, layer and rate. Bits 2 and 3 of the third byte are the rate of MPEG audio;
        # ADTS has them inside its code of profile and rate.
        if head[1] != first[1] or (head[2] ^ first[2]) & 0x0C or not (length := frame(head)):
            return False
        body = data[place + 6 : place + length]
        # PCM of an exact period may look like frames that repeat. In real files only frames of silence repeat, which
        # are filled with one value.
        is_repeated = data[place + length + 6 : place + length + 6 + len(body)] == body
        if is_repeated and max(map(body.count, set(body)), default=0) <= len(body) // 2:
            return False
        found += 1
        place += length
    return found >= least


def first_mpeg_frame(head: bytes, start: int = 0) -> int:
    """Where MPEG audio begins in `head`, at `start` or later; -1 if there is none. Layer 1 is not in use."""
    place = head.find(b"\xff", start)
    while place >= 0:
        # At the start two frames are enough. Elsewhere chance is larger: captures begin in the middle of a frame.
        least = 2 if place == start else 3
        is_frame = mpeg_frame(head[place : place + 4]) and head[place + 1] & 6 != 6
        if is_frame and has_frames(head, mpeg_frame, place, least):
            return place
        place = head.find(b"\xff", place + 1)
    return -1


@dataclass
class Run:
    """Frames of one format: version, layer, sample rate, and whether they are mono."""

    head: bytes
    """The header of its first frame: 4 bytes."""
    spans: list[tuple[int, int]]
    """The bytes [start, stop) of its frames. There are several if other bytes are between the frames."""
    frames: int = 0
    info: bytes | None = None
    """The Xing part of the header frame in front of it, which is not counted."""

    @property
    def is_layer_3(self) -> bool:
        return self.head[1] & 6 == 2

    @property
    def bytes(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    @property
    def samples_per_frame(self) -> int:
        return 576 if self.is_layer_3 and not self.head[1] & 8 else 1_152

    @property
    def claimed(self) -> int | None:
        """The number of frames that the header frame claims."""
        if self.info is None or len(self.info) < 12 or not self.info[7] & 1:
            return None
        return int.from_bytes(self.info[8:12], "big")


@dataclass
class _Reader:
    """Bytes of a file, at any place, in blocks."""

    f: BinaryIO | Spliced
    stop: int
    begin: int = 0
    block: bytes = field(default=b"")

    def from_(self, place: int) -> tuple[bytes, int]:
        """A block that holds the bytes from `place` on, and the index of `place` in it."""
        if not self.begin <= place < self.begin + len(self.block) - 8:
            self.begin, self.block = place, at(self.f, place, min(_BLOCK, self.stop - place))
        return self.block, place - self.begin


def runs(f: BinaryIO | Spliced, start: int, stop: int) -> list[Run]:
    """All frames in the bytes [start, stop) of a file. What is no frame, and headers without sound, are passed over."""
    reader, found, place, is_mono = _Reader(f, stop), list[Run](), start, False
    run, begin = Run(b"\0\0\0\0", []), start  # the frames from `begin` to `place` are counted, but in no span yet
    lengths: dict[bytes, int] = {}  # of the headers of this run, so that most frames cost one look
    info: bytes | None = None
    while place + 4 <= stop:
        block, i = reader.from_(place)
        j, frames = _skip(block, i, i + stop - place, lengths)
        if frames:
            run.frames += frames
            place += j - i
            continue
        length = _length(block[i : i + 3])
        if length and place + length > stop:
            break  # the last frame was cut
        same = length and not (block[i + 1] ^ run.head[1]) & 0xFE and not (block[i + 2] ^ run.head[2]) & 0x0C
        same = same and (block[i + 3] & 0xC0 == 0xC0) == is_mono
        is_frame = length and (same or _continues(f, place, length, stop, not found))
        if is_frame and (header := _header(at(f, place, length))) is None:
            if not same:
                _close(run, begin, place)
                run, begin, is_mono = Run(block[i : i + 4], [], 0, info), place, block[i + 3] & 0xC0 == 0xC0
                info, lengths = None, {}
                found.append(run)
            lengths[block[i : i + 4]] = length
            run.frames += 1
            place += length
            continue
        _close(run, begin, place)
        if is_frame:
            info = header or None
            place += length
        else:
            place = _next(f, place + 1, stop)
        begin = place
    _close(run, begin, min(place, stop))
    return found


def _skip(block: bytes, i: int, stop: int, lengths: dict[bytes, int]) -> tuple[int, int]:
    """Pass over frames with known headers. Returns the index behind them, and their number."""
    frames, last = 0, min(stop, len(block) - 8)
    while i < last:
        length = lengths.get(block[i : i + 4], 0)
        # A header without sound has zeros behind it.
        if not length or i + length > stop or block[i + 4 : i + 8] == b"\0\0\0\0":
            break
        i += length
        frames += 1
    return i, frames


def _close(run: Run, begin: int, end: int) -> None:
    if end > begin:
        run.spans.append((begin, end))


def _header(frame: bytes) -> bytes | None:
    """The Xing part of a frame that is a header without sound, b"" if it has another header, None if it is sound."""
    if frame[36:40] == b"VBRI":
        return b""
    for name in (b"Xing", b"Info"):
        if (place := frame.find(name, 4, 44)) >= 0:
            return frame[place:]
    return None


def _continues(f: BinaryIO | Spliced, place: int, length: int, stop: int, is_first: bool) -> bool:
    """Whether two more frames of the same format follow. A damaged header may look like another format.

    The first sound may be shorter than three frames.
    """
    head = at(f, place, 4)
    for _ in range(2):
        place += length
        if place >= stop:
            return is_first
        after = at(f, place, 4)
        length = mpeg_frame(after)
        other = (head[1] ^ after[1]) & 0xFE or (head[2] ^ after[2]) & 0x0C
        if not length or other or (head[3] & 0xC0 == 0xC0) != (after[3] & 0xC0 == 0xC0):
            return False
    return True


def _next(f: BinaryIO | Spliced, place: int, stop: int) -> int:
    """Where frames go on behind a damaged part or a tag; `stop` if nowhere."""
    while place < stop:
        block = at(f, place, min(_BLOCK, stop - place))
        found = first_mpeg_frame(block)
        if found >= 0:
            return place + found
        place += max(1, len(block) - 8_192)  # three frames may begin in one block and end in the next one
        if len(block) < _BLOCK:
            break
    return stop


def xing_frame(run: Run) -> bytes:
    """A Xing header for the frames of a run.

    If its old one says how much silence the encoder put first, this is kept. The silence at the end is not: a new
    header is made where the end is another one than the encoder's.
    """
    is_mpeg_1, is_mono = run.head[1] >> 3 & 3 == 3, run.head[3] & 0xC0 == 0xC0
    side = (17 if is_mono else 32) if is_mpeg_1 else (9 if is_mono else 17)
    # No checksum, and the highest bit rate: there must be room for the fields.
    head = bytes([0xFF, run.head[1] | 1, run.head[2] & 0x0C | 0xE0, run.head[3]])
    fields = (3, run.frames & 0xFFFFFFFF, run.bytes & 0xFFFFFFFF)  # 3: the number of frames and of bytes follow
    body = b"Xing" + b"".join(number.to_bytes(4, "big") for number in fields) + _delay(run.info)
    return (head + bytes(side) + body).ljust(_length(head[:3]), b"\0")


def _delay(old: bytes | None) -> bytes:
    if old is None or len(old) < 8:
        return b""
    flags = old[7]
    place = 8 + 4 * (flags & 1) + 2 * (flags & 2) + 25 * (flags & 4) + (flags & 8) // 2
    lame = bytearray(old[place : place + _LAME_BYTES])
    if len(lame) < _LAME_BYTES or lame[:4] not in _ENCODERS:
        return b""
    lame[22] &= 0xF0  # bytes 21 to 23: 12 bits of silence at the start, 12 bits at the end
    lame[23] = 0
    return bytes(lame)
