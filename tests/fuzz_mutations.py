"""Random damage to a file: blind changes of bytes, and changes that know a little of the format.

A checksum would hide most changes from the reader behind it. So archives are taken apart, changed inside and put
together again, and the checksums of Ogg pages are made to fit.
"""

from __future__ import annotations

import functools
import io
import json
import re
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

Random = np.random.Generator
_T = TypeVar("_T")

MARKS = re.compile(
    rb"RIFF|fmt |data|LIST|fact|FORM|COMM|SSND|OggS|fLaC|Opus|vorbis|\xff[\xf2\xf3\xfa\xfb]|Xing|ID3|PAR1"
    rb"|....(?:ftyp|moov|mdat|mvhd|trak|mdhd|hdlr|minf|stbl|stsd|stts|stsc|stsz|stco|edts|elst|esds)"
    rb"|\x1a\x45\xdf\xa3|\x18\x53\x80\x67|\x16\x54\xae\x6b|\x1f\x43\xb6\x75|\xa3",
    re.DOTALL,
)
"""Where parts of a file begin: chunks of wav and aiff, pages of Ogg, frames of mp3, boxes of mp4, elements of webm."""
NUMBERS = [0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
NUMBERS += [(1 << 63) - 1, (1 << 64) - 1]
"""Sizes that a reader may not expect: nothing, the largest, and what is negative with a sign."""
TOKEN = re.compile(r'"[^"\n]*"|-?\d[\d.eE+-]*|\w+|[^\w\s]')
VALUES: list[object] = [
    0, -1, 1, 3, 527, 1 << 31, -(1 << 63), 10**20, 10**400, 0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"),
    -float("inf"), None, True, False, "", "x", "0", "nan", "9" * 5_000, "a" * 100_000, "../../x", "/etc/passwd",
    "pipe:id", "http://localhost:1/x", "~nobody/x", "a\0b", "\n", "\x1b[2J", "\u2028", "\ud800", "\u00b2", "-", [], {},
    [[]], [0] * 1_000, {"x": 1}, functools.reduce(lambda x, _: [x], range(900), 0),
]  # fmt: skip
"""What a reader of JSON may not expect in place of a value."""
WORDS = [
    *(json.dumps(value) for value in VALUES), "nan", "1e999", "", '"', "'", "[", "]", "{", "}", ",", ";", ":", "\n",
    "\r", "\t", "\0", "#", "=", "[" * 100_000, '{"a":' * 50_000, "\u2028", "\x1b[2J", "\u00b2", "\ud83d\udd0a",
]  # fmt: skip
"""The same for other texts, and parts of them."""


def mutate(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """A damaged copy of `data`. `others` are whole files of the same kind, for parts that do not belong."""
    inside = _inside(data)
    if inside is not None and rng.random() < 0.6:
        return inside(data, others, rng)
    for _ in range(int(rng.integers(1, 4))):
        change = _pick(_CHANGES, rng)
        if _is_text(data) and rng.random() < 0.7:
            change = _token
        data = change(data, others, rng) if data else data
    return data


def _pick(values: Sequence[_T], rng: Random) -> _T:
    # Not `rng.choice`, which makes an array of the values.
    return values[int(rng.integers(len(values)))]


def _place(data: bytes, rng: Random) -> int:
    """An index: anywhere, or near the beginning or the end, where most formats keep their sizes."""
    n = len(data)
    near = int(n * rng.random() ** 4)
    return _pick([int(rng.integers(n)), near, n - 1 - near], rng)


def _parts(data: bytes) -> list[bytes]:
    """The file, cut at all marks. At least two parts."""
    cuts = [m.start() for m in MARKS.finditer(data)]
    if len(cuts) < 2:
        cuts = [len(data) // 3, 2 * len(data) // 3]
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


# Changes: (bytes that are not empty, other files, rng) -> bytes -------------------------------------------------------


def _flip(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    out = bytearray(data)
    for _ in range(int(2 ** rng.integers(7))):
        out[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _byte(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.bytes(1) + data[at + 1 :]


def _number(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Put a special number anywhere, or into the 12 bytes behind a mark, where most formats have a size."""
    width = _pick([1, 2, 4, 8], rng)
    marks = [m.end() for m in MARKS.finditer(data)]
    at = _pick(marks, rng) + int(rng.integers(-8, 12)) if marks and rng.random() < 0.5 else _place(data, rng)
    at = min(max(at, 0), len(data) - 1)
    number = (_pick(NUMBERS, rng) % (1 << 8 * width)).to_bytes(width, "little")
    return data[:at] + (number if rng.random() < 0.5 else number[::-1]) + data[at + width :]


def _truncate(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    return data[: _place(data, rng)]


def _remove(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + int(2 ** rng.integers(12)) :]


def _insert(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.bytes(int(2 ** rng.integers(12))) + data[at:]


def _repeat(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    at = _place(data, rng)
    block = data[at : at + int(2 ** rng.integers(12))]
    return data[:at] + block * int(rng.integers(2, 20)) + data[at:]


def _fill(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    at = _place(data, rng)
    n = min(int(2 ** rng.integers(12)), len(data) - at)
    return data[:at] + _pick([b"\0", b"\xff", b"\x7f"], rng) * n + data[at + n :]


def _shuffle_parts(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Swap, remove or repeat a part, or take one of another file."""
    parts = _parts(data)
    i, j = int(rng.integers(len(parts))), int(rng.integers(len(parts)))
    match int(rng.integers(4)):
        case 0:
            parts[i], parts[j] = parts[j], parts[i]
        case 1:
            del parts[i]
        case 2:
            parts.insert(i, parts[j])
        case _:
            parts[i] = _pick(_parts(_pick(others, rng)), rng)
    return b"".join(parts)


def _concatenate(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    return data + _pick(others, rng)


def _token(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Replace a number, a word or a sign of a text, or write something before it."""
    text = data.decode("utf-8", errors="replace")
    tokens = [m.span() for m in TOKEN.finditer(text)]
    if not tokens:
        return data + _pick(WORDS, rng).encode("utf-8", "surrogatepass")
    start, stop = _pick(tokens, rng)
    values = [span for span in tokens if text[span[0]] in '"-0123456789']
    if values and rng.random() < 0.5:  # a value for a value, so that the text can still be parsed
        start, stop = _pick(values, rng)
        word = json.dumps(_pick(VALUES, rng))
    else:
        word = _pick(WORDS, rng) if rng.random() < 0.8 else text[slice(*_pick(tokens, rng))]
    return (text[:start] + word + text[start if rng.random() < 0.2 else stop :]).encode("utf-8", "surrogatepass")


_CHANGES = [
    _flip, _byte, _number, _number, _truncate, _remove, _insert, _repeat, _fill, _shuffle_parts, _shuffle_parts,
    _concatenate,
]  # fmt: skip


def _is_text(data: bytes) -> bool:
    return not data[:2_000].translate(None, delete=bytes(range(32, 127)) + b"\r\n\t")


# Inside of archives ---------------------------------------------------------------------------------------------------


def _inside(data: bytes) -> Callable[[bytes, Sequence[bytes], Random], bytes] | None:
    """How to change what is inside, if there is an inside."""
    if data[:4] == b"PK\3\4":
        return _zip
    if data[257:262] == b"ustar":
        return _tar
    if data[:1] == b"{":
        return _json
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return _safetensors
    return _ogg if data[:4] == b"OggS" else None


def _zip(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile warns of two members with one name
        for name, content in _one_changed(members, rng):
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def _tar(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [(m.name, f.read()) for m in tar if (f := tar.extractfile(m)) is not None]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in _one_changed(members, rng):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if rng.random() < 0.02:
                info.type, info.linkname = _pick([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE], rng), "/etc/x"
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _one_changed(members: list[tuple[str, bytes]], rng: Random) -> list[tuple[str, bytes]]:
    """One member is changed, moved, left out, repeated or renamed."""
    i, j = int(rng.integers(len(members))), int(rng.integers(len(members)))
    name, content = members[i]
    match int(rng.integers(10)):
        case 0:
            return members[:i] + members[i + 1 :]
        case 1:
            members[i], members[j] = members[j], members[i]
        case 2:
            members[i] = (_pick(["../x", "/x", "x" * 90, "x.json", "x.flac", members[j][0]], rng), content)
        case _:
            members[i] = (name, mutate(content, [c for _, c in members if c] or [b"x"], rng))
    return members


def _safetensors(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    header = _json(data[8:end], others, rng)
    return len(header).to_bytes(8, "little") + header + data[end:]


def _json(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Change one value or one key, perhaps inside a string that holds JSON itself."""
    try:
        root = [json.loads(data)]
    except (ValueError, RecursionError):
        return _token(data, others, rng)
    places = _places(root)
    place, key = _pick(places, rng)
    value = place[key]
    match int(rng.integers(10)):
        case 0 if place is not root:
            del place[key]
        case 1 if isinstance(place, dict):
            place[str(_pick(VALUES, rng))] = place.pop(key)
        case 2:
            other, its_key = _pick(places, rng)
            place[key] = json.loads(json.dumps(other[its_key]))  # a copy: it may hold this place
        case _ if isinstance(value, str) and value[:1] in ("{", "["):
            place[key] = _json(value.encode(), others, rng).decode(errors="replace")
        case _:
            place[key] = _pick(VALUES, rng)
    return json.dumps(root[0]).encode() if root else b""


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(list or dict, index or key) of every value inside."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *_places(value[key])]]


def _ogg(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """Change bytes anywhere, and make the checksum of every page fit."""
    for _ in range(int(rng.integers(1, 4))):
        data = _pick([_flip, _byte, _number, _fill, _shuffle_parts], rng)(data, others, rng) or data
    out = bytearray(data)
    for m in re.finditer(b"OggS", data):
        at = m.start()
        sizes = out[at + 27 : at + 27 + (out[at + 26] if at + 26 < len(out) else 0)]
        page = out[at : at + 27 + len(sizes) + sum(sizes)]
        if len(page) >= 27:
            page[22:26] = bytes(4)
            out[at + 22 : at + 26] = ogg_crc(bytes(page)).to_bytes(4, "little")
    return bytes(out)


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        crc = value << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 * (crc >> 31)) & 0xFFFFFFFF
        table.append(crc)
    return table


def ogg_crc(page: bytes) -> int:
    crc, table = 0, _crc_table()
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ table[crc >> 24 ^ byte]
    return crc
