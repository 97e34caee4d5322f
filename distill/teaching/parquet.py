"""Bounds for Parquet files from strangers: how much memory a file will take is read from it before it is unpacked.

Arrow believes what a file says of its own size. A few hundred kilobytes of zstd can unpack to gigabytes, so the sizes
are added up here first, from the headers of all pages. Arrow's own objects for these headers end the process on some
damaged files, so this module reads them itself. Numbers of fields are those of parquet.thrift.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAX_FOOTER_BYTES = 1 << 16
"""The footer of a store's file takes about 1 KiB."""

BROKEN = (ValueError, LookupError, TypeError, RecursionError)
"""What the functions here may raise for a damaged file, beside OSError."""


@dataclass(frozen=True)
class Layout:
    """What the footer of a file says."""

    rows: int
    metadata: dict[bytes, bytes]
    columns: list[tuple[int, int]]
    """Where the pages of each column start, and where they end, in bytes."""


def read_footer(file: Path) -> bytes:
    """The bytes of the footer of a Parquet file. Raises ValueError or OSError."""
    with file.open("rb") as f:
        f.seek(max(0, os.fstat(f.fileno()).st_size - 8))
        length = _footer_bytes(f.read(8))
        f.seek(-8 - length, os.SEEK_END)
        return f.read(length)


def _footer_bytes(tail: bytes) -> int:
    """The length of the footer, from the last 8 bytes of a file: the length, and PAR1. Raises ValueError."""
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length > _MAX_FOOTER_BYTES:
        raise ValueError("no footer, or too large a one")
    return length


def layout_of(data: bytes) -> Layout:
    """What the footer of a Parquet file of these bytes says. Raises one of `BROKEN`."""
    length = _footer_bytes(data[-8:])
    return parse_layout(data[-8 - length : -8])


def parse_layout(footer: bytes) -> Layout:
    """What a footer says. Raises one of `BROKEN`."""
    fields = _Thrift(footer).struct()
    chunks = [chunk[3] for group in fields[4] for chunk in group[1]]
    if any(11 in chunk for chunk in chunks):  # dictionary_page_offset: another place where pages may be
        raise ValueError("a store has no dictionaries")
    columns = [(chunk[9], chunk[9] + chunk[7]) for chunk in chunks]
    return Layout(fields[3], {pair[1]: pair[2] for pair in fields.get(5, [])}, columns)


def unpacked_bytes(data: bytes, layout: Layout) -> int:
    """Bytes of all pages of a file when unpacked. Raises one of `BROKEN`."""
    unpacked = 0
    for at, end in layout.columns:
        while at < end:
            header = _Thrift(data, at)
            fields = header.struct()  # 2 is uncompressed_page_size, 3 is compressed_page_size
            if fields[2] < 0 or fields[3] < 0:
                raise ValueError("a page has a negative size")
            unpacked += fields[2]
            at = header.at + fields[3]
        if at != end:
            raise ValueError("its pages do not fill a column")
    return unpacked


class _Thrift:
    """Values in Thrift's compact protocol, read from `at` on. Raises IndexError at the end of the data."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        if at < 0:
            raise ValueError("a negative offset")
        self.data, self.at = data, at

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        """Seven bits per byte, the lowest first; the top bit says that another byte follows."""
        value, shift = 0, 0
        while shift < 64:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
        raise ValueError("a number has more than 64 bits")

    def zigzag(self) -> int:
        """A signed number: 0, -1, 1, -2, 2 ... are written as 0, 1, 2, 3, 4 ..."""
        value = self.varint()
        return value >> 1 ^ -(value & 1)

    def struct(self) -> dict[int, Any]:
        """Field number -> value."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self.byte():
            # The upper four bits are the step from the last field's number, or 0 when the number follows.
            number = number + (head >> 4) if head >> 4 else self.zigzag()
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self.value(kind)  # true and false have no value
        return fields

    def value(self, kind: int) -> Any:
        if kind in (1, 2, 3):  # a bool in a list, a byte
            return self.byte()
        if kind in (4, 5, 6):  # 16, 32 and 64 bits
            return self.zigzag()
        if kind == 8:
            length = self.varint()
            self.at += length
            return self.data[self.at - length : self.at]
        if kind == 9:
            head = self.byte()
            return [self.value(head & 15) for _ in range(self.varint() if head >> 4 == 15 else head >> 4)]
        if kind == 12:
            return self.struct()
        raise ValueError(f"a field of kind {kind}")  # double, set and map do not occur
