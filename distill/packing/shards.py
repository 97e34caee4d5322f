"""Reading a pack: tar shards of FLAC in the WebDataset layout, from a folder or a URL, always front to back."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import soundfile

from ced_edge.arrays import Int16
from ced_edge.errors import InputError
from ced_edge.files import sha256_json

INDEX_NAME = "index.json"
FORMAT = 1
_MEND = "fetch it again, or pack into a new folder"
_URL_PREFIXES = ("http://", "https://", "pipe:")


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file of a pack. `path` is a file's path or a URL; `sha256` is that of the tar."""

    name: str
    path: str
    clips: int
    seconds: float
    sha256: str


@dataclass(frozen=True, slots=True)
class PackedClip:
    """One clip of a shard: `wave` is (samples,) int16 at the pack's rate."""

    id: str
    labels: tuple[int, ...] | None
    group: str | None
    wave: Int16


@dataclass(frozen=True)
class Pack:
    """A finished pack, as its `index.json` tells."""

    location: str
    """Folder, or URL of the folder (`http://`, `https://`, or `pipe:COMMAND` to which `/NAME` is appended)."""
    rate_hz: int
    shards: list[Shard]
    clips: int
    seconds: float
    rejected: int
    hash: str
    """SHA-256 over the shards' own, in order."""

    @classmethod
    def open(cls, location: Path | str) -> Pack:
        """Read the index of a pack. Raises InputError when there is none, or it is damaged."""
        where = str(location)
        with _stream(_join(where, INDEX_NAME), "run `ced-edge pack` to its end") as f:
            text = f.read()
        try:
            index = json.loads(text)
            if index["format"] != FORMAT:
                raise InputError(f"{where} is a pack of format {index['format']}, this program reads {FORMAT}")
            shards = [
                Shard(s["name"], _join(where, s["name"]), int(s["clips"]), float(s["seconds"]), s["sha256"])
                for s in index["shards"]
            ]
            totals = (int(index["clips"]), float(index["seconds"]), int(index["rejected"]))
            return cls(where, int(index["rate_hz"]), shards, *totals, sha256_json([s.sha256 for s in shards]))
        except (ValueError, KeyError, TypeError) as e:
            raise InputError(f"{_join(where, INDEX_NAME)} is no index of a pack: {_MEND}") from e


def read_shard(pack: Pack, shard: Shard, check: bool = True) -> list[PackedClip]:
    """All clips of a shard in the order of the tar. Raises InputError when the shard is damaged."""
    return list(iter_shard(pack, shard, check))


def iter_shard(pack: Pack, shard: Shard, check: bool = True) -> Iterator[PackedClip]:
    """The clips of a shard one by one, reading the tar front to back.

    Raises InputError naming the shard when it is missing, truncated or damaged; with `check` also when its
    SHA-256 is not the index's, which shows only at the end.
    """
    count = 0
    with _stream(shard.path, _MEND) as f:
        hashing = _HashingReader(f)
        try:
            with tarfile.open(fileobj=cast(BinaryIO, hashing), mode="r|") as tar:
                for flac, fields in _samples(tar):
                    clip = _clip(flac, fields, pack.rate_hz)
                    count += 1
                    yield clip
            hashing.drain()
        except (tarfile.TarError, EOFError, ValueError, KeyError, TypeError, soundfile.SoundFileError) as e:
            raise _broken(shard, f"is damaged or cut short ({e})") from e
    if count != shard.clips:
        raise _broken(shard, f"holds {count} clips where the index says {shard.clips}")
    if check and hashing.hexdigest() != shard.sha256:
        raise _broken(shard, "does not have the SHA-256 of the index")


def _broken(shard: Shard, what: str) -> InputError:
    return InputError(f"{shard.path} {what}: {_MEND}")


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(flac, json fields) of each key; the two members of a key follow one another."""
    flac: tuple[str, bytes] | None = None
    for member in tar:
        file = tar.extractfile(member)
        if file is None:
            continue
        key, _, suffix = member.name.partition(".")
        if suffix == "flac":
            flac = (key, file.read())
        elif suffix == "json":
            if flac is None or flac[0] != key:
                raise ValueError(f"{member.name} has no audio before it")
            yield flac[1], json.loads(file.read())
            flac = None


def _clip(flac: bytes, fields: dict[str, Any], rate_hz: int) -> PackedClip:
    wave, rate = soundfile.read(io.BytesIO(flac), dtype="int16")
    if rate != rate_hz or wave.ndim != 1 or len(wave) != fields["samples"]:
        raise ValueError(f"clip {fields['id']!r} is not as its description says")
    tags = None if fields["labels"] is None else tuple(int(i) for i in fields["labels"])
    return PackedClip(fields["id"], tags, fields["group"], wave)


class _HashingReader:
    """A read-only stream that hashes what passes through it."""

    def __init__(self, f: BinaryIO) -> None:
        self._f, self._hash = f, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        block = self._f.read(size)
        self._hash.update(block)
        return block

    def drain(self) -> None:
        """Read on to the end: tarfile stops at the first empty header."""
        while self.read(1 << 20):
            pass

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _join(where: str, name: str) -> str:
    return f"{where.rstrip('/')}/{name}" if where.startswith(_URL_PREFIXES) else str(Path(where) / name)


@contextlib.contextmanager
def _stream(path: str, mend: str) -> Iterator[BinaryIO]:
    """A file or URL opened for reading front to back. Raises InputError with `mend` when it cannot be read."""
    try:
        if path.startswith(_URL_PREFIXES):
            from webdataset.gopen import gopen  # pulls in torch, so only where it is needed

            with contextlib.closing(gopen(path, "rb")) as remote:
                yield remote
        else:
            with Path(path).open("rb") as f:
                yield f
    except FileNotFoundError as e:
        raise InputError(f"no such file: {path}; {mend}") from e
    except OSError as e:
        raise InputError(f"cannot read {path} ({e}): {mend}") from e
