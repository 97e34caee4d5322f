"""Reading a pack: tar shards of FLAC in the WebDataset layout, always front to back.

A pack may come from a stranger. Every name, count and size in it is checked before it is used, so that no file of a
pack can name a path outside the pack, or take more memory than the index announces.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import soundfile

from ced_edge.arrays import Int16
from ced_edge.audio.base import MAX_RATE_HZ, MIN_RATE_HZ
from ced_edge.errors import InputError
from ced_edge.files import sha256_json
from ced_edge.spec import N_CLASSES
from distill.packing.location import join, open_file

INDEX_NAME = "index.json"
FORMAT = 1
SHARD_NAME = re.compile(r"shard-[0-9]{6}\.tar")
MAX_SHARDS = 100_000
MAX_SHARD_SAMPLES = 1 << 31
"""4 GiB of 16-bit samples, 37 hours at 16 kHz. A shard is in memory as a whole."""
MAX_JSON_BYTES = 1 << 16
"""The largest description of one clip, KEY.json."""
INT16_SCALE = np.float32(1.0 / 32768.0)
"""int16 sample -> [-1, 1)."""
_MAX_INDEX_BYTES = 1 << 25
_MEND = "fetch it again, or pack into a new folder"


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file of a pack; `sha256` is that of the tar."""

    name: str
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
class LoadedShard:
    """A shard in memory, for making views: its clips in order. Labels are left out, as students never read them."""

    shard: Shard
    ids: list[str]
    waves: list[Int16]
    rms: list[float]
    """Root mean square of each whole clip, in [0, 1]."""


@dataclass(frozen=True)
class Pack:
    """A finished pack, as `index.json` describes it."""

    location: str
    """Folder, or the address of a folder: `http://`, `https://`, `s3://` or `gs://`."""
    rate_hz: int
    shards: list[Shard]
    clips: int
    seconds: float
    rejected: int
    hash: str
    """SHA-256 over the hashes of all shards, in order."""

    @classmethod
    def open(cls, location: Path | str) -> Pack:
        """Read the index of a pack. Raises InputError when it is missing, damaged, or made to do harm."""
        where = str(location)
        with open_file(where, INDEX_NAME, "run `ced-edge pack` to its end", _MAX_INDEX_BYTES) as f:
            text = b"".join(f.blocks())
        try:
            index = json.loads(text)
            if index["format"] != FORMAT:
                raise InputError(f"{where} is a pack of format {index['format']}, this program reads {FORMAT}")
            rate_hz, rejected = _whole(index["rate_hz"], MIN_RATE_HZ, MAX_RATE_HZ), _whole(index["rejected"])
            if not 1 <= len(index["shards"]) <= MAX_SHARDS:
                raise ValueError(f"{len(index['shards'])} shards")
            shards = [_shard(fields, rate_hz) for fields in index["shards"]]
            if len({shard.name for shard in shards}) < len(shards):
                raise ValueError("two shards have one name")
        # RecursionError: brackets, thousands deep. OverflowError: a whole number that no float can hold.
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as e:
            raise InputError(f"{join(where, INDEX_NAME)} is no index of a pack ({e}): {_MEND}") from e
        clips, seconds = sum(s.clips for s in shards), sum(s.seconds for s in shards)
        return cls(where, rate_hz, shards, clips, seconds, rejected, sha256_json([s.sha256 for s in shards]))


def _whole(value: Any, low: int = 0, high: int = 1 << 53) -> int:
    """A whole number within bounds. Raises ValueError."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r} is no whole number from {low} to {high}")
    return value


def _shard(fields: dict[str, Any], rate_hz: int) -> Shard:
    """A shard as the index describes it. Raises ValueError, KeyError or TypeError."""
    name, seconds, sha256 = fields["name"], float(fields["seconds"]), fields["sha256"]
    # The name becomes part of paths, here and in the store. So it must look like those that `pack` writes.
    if not SHARD_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a shard")
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError(f"{name} has no SHA-256")
    if not 1 <= seconds * rate_hz <= MAX_SHARD_SAMPLES:
        raise ValueError(f"{name} of {seconds} seconds")
    return Shard(name, _whole(fields["clips"], 1, MAX_SHARD_SAMPLES), seconds, sha256)


def read_shard(pack: Pack, shard: Shard) -> list[PackedClip]:
    """All clips of a shard in the order of the tar.

    Raises InputError naming the shard when it is missing or damaged, or differs from the index.
    """
    left = round(shard.seconds * pack.rate_hz)  # samples that the index announces, minus those that were read
    clips: list[PackedClip] = []
    with open_file(pack.location, shard.name, _MEND, most_bytes(shard.clips, left)) as f:
        try:
            # "r|" reads front to back without a seek, as a web server sends it.
            with tarfile.open(fileobj=cast(BinaryIO, f), mode="r|") as tar:
                for flac, fields in _members(tar, left):
                    if len(clips) == shard.clips:
                        raise ValueError(f"more than the {shard.clips} clips of the index")
                    clips.append(_clip(flac, fields, pack.rate_hz, left))
                    left -= len(clips[-1].wave)
            for _ in f.blocks():  # tarfile stops at the first empty header, the SHA-256 is of the whole file
                pass
        except (*_DAMAGE, soundfile.SoundFileError) as e:
            raise _broken(pack, shard, f"is damaged or cut short ({e})") from e
    if len(clips) != shard.clips or left:
        seconds = shard.seconds - left / pack.rate_hz
        expected = f"{shard.clips} clips, {shard.seconds:g} s"
        raise _broken(pack, shard, f"holds {len(clips)} clips, {seconds:g} s, where the index says {expected}")
    if f.sha256() != shard.sha256:
        raise _broken(pack, shard, "does not have the SHA-256 of the index")
    return clips


_DAMAGE = (tarfile.TarError, EOFError, ValueError, KeyError, TypeError, RecursionError)
"""What reading a damaged tar or JSON may raise; RecursionError from headers or brackets nested thousands deep."""


def _broken(pack: Pack, shard: Shard, what: str) -> InputError:
    return InputError(f"{join(pack.location, shard.name)} {what}: {_MEND}")


def most_bytes(clips: int, samples: int) -> int:
    """An upper bound for the bytes of a tar of so many clips and samples. FLAC of noise takes 2 bytes per sample."""
    return 2 * samples + samples // 4 + clips * 2 * MAX_JSON_BYTES + (1 << 20)


def _members(tar: tarfile.TarFile, samples: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(flac, json fields) of each key; the two members of a key follow one another. Raises ValueError."""
    flac: tuple[str, bytes] | None = None
    for member in tar:
        key, _, suffix = member.name.partition(".")
        bound = {"flac": most_bytes(1, samples), "json": MAX_JSON_BYTES}.get(suffix, -1)
        # `pack` writes plain files only: no link, no sparse file, no device.
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or not 0 <= member.size <= bound:
            raise ValueError(f"{member.name[:80]!r} of {member.size} bytes does not belong here")
        file = tar.extractfile(member)
        data = file.read() if file else b""
        if suffix == "flac":
            flac = (key, data)
        elif flac is None or flac[0] != key:
            raise ValueError(f"{member.name} has no audio before it")
        else:
            yield flac[1], json.loads(data)
            flac = None


def _clip(flac: bytes, fields: dict[str, Any], rate_hz: int, most_samples: int) -> PackedClip:
    """One clip. Its description and its FLAC header are compared before a sample is decoded. Raises ValueError."""
    name, labels, group = fields["id"], fields["labels"], fields["group"]
    samples = _whole(fields["samples"], 1, most_samples)
    if not isinstance(name, str) or not isinstance(group, str | None):
        raise ValueError("a clip's id or group is no text")
    if labels is not None:
        labels = tuple(_whole(label, 0, N_CLASSES - 1) for label in labels)
    if not flac.startswith(b"fLaC"):  # else libsndfile would try all its formats, many of them old
        raise ValueError(f"clip {name!r} is no FLAC")
    with soundfile.SoundFile(io.BytesIO(flac)) as f:
        # The header comes first, because a few kilobytes of FLAC can decode to hours of silence.
        if (f.format, f.subtype, f.channels, f.samplerate, f.frames) != ("FLAC", "PCM_16", 1, rate_hz, samples):
            raise ValueError(f"clip {name!r} is not as its description says")
        wave = f.read(dtype="int16")
    if len(wave) != samples:
        raise ValueError(f"clip {name!r} ends early")
    return PackedClip(name, labels, group, wave)


def clip_rms(wave: Int16) -> float:
    """Root mean square of a whole clip, in [0, 1]."""
    # Squares of int16 add up exactly in float64, so the sum does not depend on the machine's order of summation.
    x = wave.astype(np.float64)
    return math.sqrt(float(np.mean(x * x))) * float(INT16_SCALE) if len(wave) else 0.0


@dataclass
class ShardReader:
    """Loads shards of a pack and keeps the last one: teaching and training use a shard for many clips in a row."""

    pack: Pack
    _last: LoadedShard | None = None

    def load(self, shard: Shard) -> LoadedShard:
        """A shard and the RMS of its clips. Raises InputError when it is missing or damaged."""
        if self._last is None or self._last.shard != shard:
            self._last = None  # free it first: one shard at a time in memory
            clips = read_shard(self.pack, shard)
            waves = [clip.wave for clip in clips]
            self._last = LoadedShard(shard, [clip.id for clip in clips], waves, [clip_rms(wave) for wave in waves])
        return self._last
