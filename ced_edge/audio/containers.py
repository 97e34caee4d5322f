"""What kind of file some bytes are, and where the sounds are inside it."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from ced_edge.audio.flac import FlacStream, flac_begins
from ced_edge.audio.joined import files_in
from ced_edge.audio.mpeg import Run, adts_frame, first_mpeg_frame, has_ac3, has_frames, runs, xing_frame
from ced_edge.audio.spliced import Spliced, at

_Place = TypeVar("_Place", int, tuple[int, int])

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
    (0, b"\x7f\xfe\x80\x01", "DTS"),
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
    if has_ac3(head):
        return "AC-3"
    if first_mpeg_frame(head) >= 0:
        return "MP3"
    place = head.find(b"\xff")
    while place >= 0:
        if has_frames(head, adts_frame, place, 2 if place == 0 else 3):
            return "AAC (ADTS)"
        place = head.find(b"\xff", place + 1)
    return None


def _has_ts_packets(head: bytes, start: int) -> bool:
    """Whether packets of MPEG-TS follow each other. With `start` 4, each has a time stamp in front (.m2ts)."""
    step = _TS_PACKET + start
    packets = [head[i : i + step] for i in range(start, len(head) - 4, step)]
    # Each has the sync byte 0x47, no error flag, and a payload or an adaptation field. PCM of a period may repeat.
    return (
        len(packets) >= 4
        and packets[0] != packets[1]
        and all(p[0] == 0x47 and p[1] < 0x80 and p[3] & 0x30 for p in packets)
    )


MAX_SOUNDS = 1 << 16
"""Most chunks or links of one file. More means that the file is damaged or hostile."""
_TOO_MANY = f"it has more than {MAX_SOUNDS} parts"
_WAV_IDS = (b"RIFF", b"RF64", b"BW64")
_PER_SAMPLE_TAGS = (1, 3, 6, 7, 0xFFFE)
"""Formats of WAV files in which a frame is one sample per channel: PCM, float, A-law, mu-law, and what extends them."""
_MPEG_TAGS = (0x50, 0x55)  # MPEG layers 1 and 2, and layer 3, as a format of WAV
_OPEN_SIZE = 0x7FFF_0000  # a program that writes to a pipe leaves a larger size than this, or 0
_SCANNED = 1 << 16  # bytes in which MPEG audio may begin
_MAX_HEADER = 1 << 20
_MIN_REST_S = 0.1  # less than this behind the last chunk is no sound


@dataclass(frozen=True)
class Inside:
    """One sound of a file, as a decoder is to read it."""

    file: Spliced | None = None
    """None: the file as it is."""
    claimed: int | None = None
    """Samples per channel that the header of the file claims, if that may be wrong."""
    forward: bool = False
    """Whether it can be read from its beginning only."""
    frames: int | None = None
    """Samples per channel, where they are known and the decoder does not know them."""
    is_lossless: bool = False
    """Whether its blocks can be read one after the other, without a seek between them, to the same bits."""


def sounds_in(f: BinaryIO) -> list[Inside]:
    """The sounds in a seekable file, in order. A file that needs no help is one sound, as it is.

    A decoder believes the length in a header. It is wrong if a recorder was never closed, if the file was written
    through a pipe or was cut, and if files were joined end to end. So the bytes of each sound are found here:

        wav     all data chunks together; a size of 0, or one after which no chunk follows, means "to the end"; each
                file of several that were joined is a sound
        flac    with the number of samples that its last frame shows
        ogg     each link of a chain (`cat a.opus b.opus`) is a sound
        mp3     with the number of its frames; each run of frames of one rate and channel count is a sound
        aiff    each file of several that were joined is a sound; also au, w64 and caf

    Raises ValueError if there are too many.
    """
    size = f.seek(0, io.SEEK_END)
    head = at(f, 0, 12)
    if _is_wav(head):
        found = _wav(f, size)
    elif head[:4] == b"OggS":
        found = _ogg(f, size)
    elif len(files := _few(files_in(f, size))) > 1:
        found = [Inside(Spliced(f, [span])) for span in files]
    else:
        start = _after_id3(f, size)
        found = (_flac if at(f, start, 4) == b"fLaC" else _mpeg_file)(f, start, size)
    f.seek(0)
    return found


def _wav(f: BinaryIO, size: int) -> list[Inside]:
    """WAV, RF64 and BW64: one file, or several that were joined."""
    found: list[Inside] = []
    begin = 0
    while begin < size:
        rest = Spliced(f, [(begin, size)]) if begin else f
        wav = _Wav(rest, size - begin)
        is_only = begin == 0 and wav.end == size
        found += _wav_sounds(rest, wav, None if is_only else Spliced(rest, [(0, wav.end)]))
        begin += wav.end
        if len(found) > MAX_SOUNDS:
            raise ValueError(_TOO_MANY)
    return found


def _wav_sounds(f: BinaryIO | Spliced, wav: _Wav, whole: Spliced | None) -> list[Inside]:
    """`whole` is the WAV file as it is, None if `f` is that file."""
    spans = wav.data
    total = sum(stop - start for start, stop in spans)
    if wav.tag in _MPEG_TAGS and spans:
        joined = Spliced(f, list(spans))
        return _mpeg(joined, 0, total) or [Inside(whole)]
    claimed = None if wav.claimed is None or wav.tag not in _PER_SAMPLE_TAGS else wav.claimed // wav.frame_bytes
    if not spans or wav.is_plain:
        return [Inside(whole, claimed, is_lossless=True)]
    # Sizes beyond 4 GiB do not fit the header: libsndfile then reads to the end of the file.
    sizes = [min(n, 0xFFFFFFFF) for n in (12 + len(wav.header) + total, total)]
    header = b"RIFF" + struct.pack("<I", sizes[0]) + b"WAVE" + wav.header + b"data" + struct.pack("<I", sizes[1])
    return [Inside(Spliced(f, [header, *spans]), claimed)]


class _Wav:
    """The chunks of a WAV file."""

    def __init__(self, f: BinaryIO | Spliced, size: int) -> None:
        self._f, self._size = f, size
        self.end = size
        """Where the next WAV file begins, if files were joined."""
        self.header = b""
        """The chunks in front of the samples."""
        self.data: list[tuple[int, int]] = []
        """The bytes of all data chunks, as [start, stop)."""
        self.claimed: int | None = None
        """Bytes of samples that the first data chunk claims; None if it leaves the number open."""
        self.is_plain = True
        """Whether libsndfile finds all samples by itself."""
        self.tag, self.frame_bytes, self._bytes_per_s = 0, 1, 0
        self._long_size: int | None = None
        self._chunks = 0  # with samples, or meant for them
        place = 12
        for _ in range(MAX_SOUNDS):
            if place + 8 > size:
                break
            if self.data and _is_wav(at(f, place, 12)):
                self.end = place
                break
            place = self._chunk(place)
        else:
            raise ValueError(_TOO_MANY)
        if self._chunks > 1:
            self.is_plain = False

    def _chunk(self, place: int) -> int:
        """Read the chunk at `place`, and return where the next one begins."""
        name, length = struct.unpack("<4sI", at(self._f, place, 8))
        begin = place + 8
        if name == b"data":
            end = self._data(begin, length)
        else:
            end = begin + length
            if not self.data and len(self.header) < _MAX_HEADER:
                self._before(name, at(self._f, place, min(8 + length, _MAX_HEADER)))
        # Chunks begin at even bytes, but some programs forget the padding.
        if end % 2 and _is_chunk(self._f, end, self._size):
            self.is_plain = False
            return end
        return end + end % 2

    def _before(self, name: bytes, chunk: bytes) -> None:
        if name == b"ds64" and len(chunk) >= 24:
            self._long_size = int.from_bytes(chunk[16:24], "little")
            return
        self.header += chunk + bytes(len(chunk) % 2)
        if name == b"fmt " and len(chunk) >= 22:
            self.tag, _, _, self._bytes_per_s, frame_bytes = struct.unpack("<HHIIH", chunk[8:22])
            self.frame_bytes = max(1, frame_bytes)

    def _data(self, begin: int, length: int) -> int:
        """Add the samples from `begin` on, and return where they end."""
        is_long = length == 0xFFFFFFFF and self._long_size is not None
        if is_long and self._long_size:
            length = self._long_size
        end, size = begin + length, self._size
        is_open = length == 0 or (length >= _OPEN_SIZE and end > size)
        if is_long and end > size:
            self.is_plain = False
        if length == 0 and _is_chunk(self._f, begin, size):
            is_open = False  # it really is empty
        follows = end + 8 > size or _is_chunk(self._f, end, size) or _is_chunk(self._f, end + end % 2, size)
        rest = size - end
        if not is_open and not follows and rest > _MIN_REST_S * self._bytes_per_s and any(at(self._f, end, 4_096)):
            is_open, self.is_plain = True, False  # the size was written before the recording ended
            self.claimed = length
        elif not self.data and not is_open:
            self.claimed = length
        if length == 0 and is_open:
            self.is_plain, self.claimed = False, 0
        self._chunks += 1
        stop = size if is_open or end > size else end
        if stop > begin:
            self.data.append((begin, stop))
        return stop


def _is_wav(head: bytes) -> bool:
    return head[:4] in _WAV_IDS and head[8:] == b"WAVE"


def _is_chunk(f: BinaryIO | Spliced, place: int, size: int) -> bool:
    """Whether a chunk that ends within the file begins at `place`."""
    head = at(f, place, 8)
    if len(head) < 8 or not all(32 <= c < 127 for c in head[:4]):
        return False
    length = int.from_bytes(head[4:], "little")
    return place + 8 + length <= size + 1 or (head[:4] == b"data" and length == 0xFFFFFFFF)


def _flac(f: BinaryIO, start: int, size: int) -> list[Inside]:
    begins = _few(flac_begins(f, start, size))
    if not begins or len(at(f, start, 42)) < 42:
        return [Inside()]
    found = []
    for begin, end in zip(begins, [*begins[1:], size], strict=True):
        stream = FlacStream(f, begin, end)
        claimed = stream.claimed or None
        if stream.is_right and len(begins) == 1:
            found.append(Inside(claimed=claimed, is_lossless=True))
        else:
            found.append(Inside(stream.corrected(), claimed, forward=stream.first != 0))
    return found


def _ogg(f: BinaryIO, size: int) -> list[Inside]:
    """A link begins with pages that have the flag "beginning of stream"."""

    def begins() -> Iterator[int]:
        place, is_head = 0, False
        while place + 27 <= size:
            page = at(f, place, 282)
            if page[:4] != b"OggS":  # damaged: the decoder finds the next page by itself
                following = _find(f, b"OggS", place, size)
                if following is None:
                    return
                place = following
                continue
            was_head, is_head = is_head, bool(page[5] & 2)
            if is_head and not was_head:
                yield place
            place += 27 + page[26] + sum(page[27 : 27 + page[26]])

    links = _few(begins())
    if len(links) < 2:
        return [Inside()]
    return [Inside(Spliced(f, [span])) for span in zip(links, [*links[1:], size], strict=True)]


def _find(f: BinaryIO, word: bytes, start: int, size: int) -> int | None:
    for place in range(start, size, 1 << 20):
        found = at(f, place, (1 << 20) + len(word) - 1).find(word)
        if found >= 0:
            return place + found
    return None


def _few(places: Iterator[_Place]) -> list[_Place]:
    found = list(itertools.islice(places, MAX_SOUNDS + 1))
    if len(found) > MAX_SOUNDS:
        raise ValueError(_TOO_MANY)
    return found


def _after_id3(f: BinaryIO, size: int) -> int:
    """Where the sound begins behind the ID3v2 tags, of which joined files may have several."""
    place = 0
    for _ in range(16):
        head = at(f, place, 10)
        if head[:3] != b"ID3" or len(head) < 10:
            break
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        place = min(place + 10 + length + (10 if head[5] & 0x10 else 0), size)
    return place


def _mpeg_file(f: BinaryIO, start: int, size: int) -> list[Inside]:
    head = at(f, start, _SCANNED)
    if start == 0 and encoded_kind(head[:4_096]) != "MP3":
        return [Inside()]
    # Behind a tag there may be padding. A capture of a radio stream begins in the middle of a frame.
    begin = first_mpeg_frame(head)
    return (_mpeg(f, start + begin, size) if begin >= 0 else []) or [Inside()]


def _mpeg(f: BinaryIO | Spliced, start: int, size: int) -> list[Inside]:
    """MP3 and MP2 in the bytes [start, size) of a file."""
    found = runs(f, start, size)
    if len(found) > MAX_SOUNDS:
        raise ValueError(_TOO_MANY)
    if len(found) == 1 and not isinstance(f, Spliced) and len(found[0].spans) == 1 and _is_right(found[0]):
        return [Inside()]
    sounds = []
    for run in found:
        samples = run.frames * run.samples_per_frame
        if run.claimed is None:
            # The decoder estimates the length from the size, and stops there: it must not estimate too little.
            sounds.append(Inside(Spliced(f, run.spans, pretend=64), None, False, samples))
        else:
            claimed = None if _is_right(run) else run.claimed * run.samples_per_frame
            sounds.append(Inside(Spliced(f, [xing_frame(run), *run.spans]), claimed))
    return sounds


def _is_right(run: Run) -> bool:
    """Whether the header claims the frames that are there. Some encoders count the header as well."""
    return run.claimed in (run.frames, run.frames + 1)
