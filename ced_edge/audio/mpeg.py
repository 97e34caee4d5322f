"""Frame headers of MPEG audio: MP3 and MP2 (ISO 11172-3, ISO 13818-3), and AAC in ADTS frames (ISO 13818-7)."""

from __future__ import annotations

from collections.abc import Callable

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


def mpeg_frame(head: bytes) -> int:
    """Bytes of the MP3 or MP2 frame that begins with this header of 4 bytes; 0 if this is no such header."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
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


def adts_frame(head: bytes) -> int:
    """Bytes of the ADTS frame that begins with this header of 6 bytes; 0 if this is no such header."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length > 7 else 0


def has_frames(data: bytes, frame: Callable[[bytes], int], start: int, least: int) -> bool:
    """Whether at least `least` frames of one format follow each other from `start`, and nothing else up to the end.

    `frame` is `mpeg_frame` or `adts_frame`. A few frames at the end of `data` may be missing, but not different.
    """
    found, first = 0, data[start : start + 6]
    at = start
    while found < 8 and at + 6 <= len(data):
        head = data[at : at + 6]
        # One stream keeps its version, layer and rate. Bits 2 and 3 of the third byte are the rate of MPEG audio;
        # ADTS has them inside its code of profile and rate.
        if head[1] != first[1] or (head[2] ^ first[2]) & 0x0C or not (length := frame(head)):
            return False
        body = data[at + 6 : at + length]
        # PCM of an exact period may look like frames that repeat. In real files only frames of silence repeat, which
        # are filled with one value.
        is_repeated = data[at + length + 6 : at + length + 6 + len(body)] == body
        if is_repeated and max(map(body.count, set(body)), default=0) <= len(body) // 2:
            return False
        found += 1
        at += length
    return found >= least
