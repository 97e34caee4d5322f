"""What kind of file some bytes are, and where the sounds are inside it."""

from __future__ import annotations

from ced_edge.audio.mpeg import adts_frame, has_frames, mpeg_frame

_SIGNATURES = (
    (0, b"OggS", "Ogg"),
    (0, b"fLaC", "FLAC"),
    (0, b"RF64", "WAV"),
    (0, b"BW64", "WAV"),
    (0, b"RIFX", "WAV"),
    (0, b"FORM", "AIFF"),
    (0, b"caff", "CAF"),
    (0, b".snd", "AU"),
    (0, b"#!AMR", "AMR"),
    (0, b"\x1aE\xdf\xa3", "WebM/Matroska"),
    (4, b"ftyp", "MP4"),
    (4, b"moov", "MP4"),
    (4, b"mdat", "MP4"),
    (4, b"wide", "MP4"),
    (0, b"FLV\x01", "FLV"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA/ASF"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "APE"),
    (0, b"TTA1", "TTA"),
    (0, b"MPCK", "Musepack"),
    (0, b"riff\x2e\x91\xcf\x11", "W64"),
    (0, b"NIST_1A", "NIST SPHERE"),
    (0, b"\0\0\x01\xba", "MPEG video"),
)
_TS_PACKET = 188


def encoded_kind(head: bytes) -> str | None:
    """The kind of file that begins with these bytes, such as "MP3" or "MP4"; None for raw samples.

    A few kB are enough. Raw samples are very rarely taken for a file: a signature has at least 32 bits, and MPEG audio
    needs several headers in a row. MPEG audio may begin in the middle of a frame, as captures of a radio stream do.
    """
    if head[:4] == b"RIFF":
        return "AVI" if head[8:12] == b"AVI " else "WAV"
    for place, signature, kind in _SIGNATURES:
        if head[place : place + len(signature)] == signature:
            return kind
    if head[:3] == b"ID3" and head[3:4] in (b"\2", b"\3", b"\4") and all(byte < 0x80 for byte in head[6:10]):
        return "MP3"
    if any(_has_ts_packets(head, start) for start in (0, 4)):
        return "MPEG-TS"
    at = head.find(b"\xff")
    while at >= 0:
        least = 2 if at == 0 else 3
        if has_frames(head, mpeg_frame, at, least) and head[at + 1] & 6 != 6:  # layer 1 is not in use
            return "MP3"
        if has_frames(head, adts_frame, at, least):
            return "AAC (ADTS)"
        at = head.find(b"\xff", at + 1)
    return None


def _has_ts_packets(head: bytes, start: int) -> bool:
    """Whether packets of MPEG-TS follow each other. With `start` 4, each has a time stamp in front (.m2ts)."""
    step = _TS_PACKET + start
    packets = [head[at : at + step] for at in range(start, len(head) - 4, step)]
    # Each has the sync byte 0x47, no error flag, and a payload or an adaptation field. PCM of a period may repeat.
    return (
        len(packets) >= 4
        and packets[0] != packets[1]
        and all(p[0] == 0x47 and p[1] < 0x80 and p[3] & 0x30 for p in packets)
    )
