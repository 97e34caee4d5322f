"""Packs that were made to do harm: what they name is not run and not read, and memory stays bounded."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ced_edge.errors import InputError
from ced_edge.files import sha256_file
from distill.packing import shards
from distill.packing.location import open_file
from distill.packing.shards import MAX_JSON_BYTES, Pack, read_shard

RATE_HZ = 16_000
SHARD = "shard-000000.tar"
MB = 1 << 20


def flac(samples: int, rate_hz: int = RATE_HZ, channels: int = 1, subtype: str = "PCM_16", kind: str = "FLAC") -> bytes:
    """Silence."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((samples, channels), np.int16), rate_hz, format=kind, subtype=subtype)
    return buffer.getvalue()


def fields(samples: int = 1_600, **changes: Any) -> bytes:
    return json.dumps({"id": "a", "labels": [1], "group": None, "samples": samples, **changes}).encode()


def member(name: str, data: bytes, **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


def make_pack(folder: Path, members: list[tuple[tarfile.TarInfo, bytes]], **changes: Any) -> Pack:
    """A pack of one shard with these members, whose index says one clip of 0.1 s, or what `changes` says."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / SHARD, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    shard = {"name": SHARD, "clips": 1, "seconds": 0.1, "sha256": sha256_file(folder / SHARD), **changes}
    write_index(folder, shards=[shard])
    return Pack.open(folder)


def write_index(folder: Path, **changes: Any) -> None:
    index = {"format": 1, "rate_hz": RATE_HZ, "clips": 1, "seconds": 0.1, "rejected": 0, "shards": [], **changes}
    (folder / "index.json").write_text(json.dumps(index))


@contextlib.contextmanager
def bounded(most: int) -> Iterator[None]:
    """Fail when Python and numpy took more memory than that at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


# Names


BAD_NAMES = [
    "pipe:touch harm #", "x; touch harm", "shard-000000.tar; touch harm", "a' ; touch harm ; '", "$(touch harm)",
    "../shard-000000.tar", "../../harm", "/tmp/harm", "", ".", "shard-000000.tar\n", "shard-0.tar", "shard-0000000.tar",
    "SHARD-000000.tar", "shard-٠٠٠٠٠٠.tar", "shard-000000.tar\0", "http://localhost/shard-000000.tar", "s3://b/c",
]  # fmt: skip


@pytest.mark.parametrize("name", [*BAD_NAMES, 7, None, ["shard-000000.tar"]])
def test_a_shard_has_the_name_that_pack_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: object) -> None:
    monkeypatch.chdir(tmp_path)
    write_index(tmp_path, shards=[{"name": name, "clips": 1, "seconds": 0.1, "sha256": "0" * 64}])
    for location in (".", tmp_path, str(tmp_path)):
        with pytest.raises(InputError, match=r"index.json is no index of a pack .*fetch it again") as caught:
            read_shard(packed := Pack.open(location), packed.shards[0])
        assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["index.json"]


@pytest.mark.parametrize("command", ["cat {}; touch harm #", "touch harm #"])
def test_a_command_is_no_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"nothing is read through a command: give a folder, or an address"):
        Pack.open(f"pipe:{command.format(tmp_path)}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["ftp", "file", "zip", "simplecache", "sftp", "github", "reference"])
def test_other_addresses_are_refused(scheme: str) -> None:
    """fsspec knows some dozens of them: archives, other machines, caches that write files."""
    with pytest.raises(InputError, match=rf"nothing is read from {scheme}://: give a folder, or an address"):
        Pack.open(f"{scheme}://x/y")


def test_a_local_folder_may_have_any_name(tmp_path: Path) -> None:
    for name in ("pipe:x", "a:b", "x; touch y", "simplecache::http:"):
        packed = make_pack(tmp_path / name, [member("a.flac", flac(1_600)), member("a.json", fields())])
        assert [clip.id for clip in read_shard(packed, packed.shards[0])] == ["a"]


# Sizes


def test_a_flac_is_not_decoded_before_its_length_is_compared(tmp_path: Path) -> None:
    """Ten million samples of silence are some tens of kilobytes of FLAC."""
    bomb = flac(10_000_000)
    assert len(bomb) < 100_000
    packed = make_pack(tmp_path, [member("a.flac", bomb), member("a.json", fields())])
    with bounded(5 * MB), pytest.raises(InputError, match=r"clip 'a' is not as its description says"):
        read_shard(packed, packed.shards[0])
    packed = make_pack(tmp_path, [member("a.flac", bomb), member("a.json", fields(10_000_000))])
    with bounded(5 * MB), pytest.raises(InputError, match="10000000 is no whole number from 1 to 1600"):
        read_shard(packed, packed.shards[0])


@pytest.mark.parametrize(
    "audio",
    [
        flac(1_600, rate_hz=8_000),
        flac(800, channels=2),
        flac(1_600, subtype="PCM_24"),
        flac(1_600, kind="WAV"),
        flac(1_601),
        flac(1_599),
        b"fLaC",
        b"",
    ],
)
def test_audio_that_is_not_as_described(tmp_path: Path, audio: bytes) -> None:
    packed = make_pack(tmp_path, [member("a.flac", audio), member("a.json", fields())])
    with pytest.raises(InputError, match=r"shard-000000.tar is damaged or cut short"):
        read_shard(packed, packed.shards[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 7}, {"group": 7}, {"labels": [527]}, {"labels": [-1]}, {"labels": [0.5]}, {"labels": "0"},
        {"samples": "1600"}, {"samples": 1600.0}, {"samples": -1}, {"samples": 0}, {"samples": None},
    ],
)  # fmt: skip
def test_a_description_has_the_right_kinds(tmp_path: Path, changes: dict[str, Any]) -> None:
    packed = make_pack(tmp_path, [member("a.flac", flac(1_600)), member("a.json", fields(**changes))])
    with pytest.raises(InputError, match=r"shard-000000.tar is damaged or cut short"):
        read_shard(packed, packed.shards[0])


def test_members_are_bounded_by_the_index(tmp_path: Path) -> None:
    pair = [member("a.flac", flac(1_600)), member("a.json", fields())]
    cases = {
        "a large description": [pair[0], member("a.json", fields(x=" " * MAX_JSON_BYTES))],
        "brackets": [pair[0], member("a.json", b"[" * 60_000)],
        "a large clip": [member("a.flac", flac(1_600) + bytes(20 * MB)), pair[1]],
        "many clips": pair * 1_000,
        "many members": [member(f"{i}.txt", b"") for i in range(1_000)],
        "a link": [member("a.flac", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), pair[1]],
        "a device": [member("a.flac", b"", type=tarfile.CHRTYPE), pair[1]],
        "a long header": [member("a.flac", flac(1_600), pax_headers={"comment": " " * 20 * MB}), pair[1]],
        "a size in a header": [member("a.flac", b"", pax_headers={"size": str(1 << 40)}), pair[1]],
    }
    for name, members in cases.items():
        packed = make_pack(tmp_path / name, members)
        with bounded(8 * MB), pytest.raises(InputError, match=r"shard-000000.tar is (damaged|larger)") as caught:
            read_shard(packed, packed.shards[0])
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


def test_nested_headers_are_refused(tmp_path: Path) -> None:
    """tarfile calls itself for each header that another one announces."""
    packed = make_pack(tmp_path, [member("a.flac", flac(1_600)), member("a.json", fields())], clips=1_000)
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 512
    block = long_name.tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")
    (tmp_path / SHARD).write_bytes(block * 2_000)
    with pytest.raises(InputError, match=r"shard-000000.tar is damaged or cut short"):
        read_shard(packed, packed.shards[0])


def test_the_index_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="is no index of a pack"):
        Pack.open(tmp_path)
    with (tmp_path / "index.json").open("wb") as f:
        f.truncate(1 << 40)  # a hole: it takes no room on the disk
    with bounded(100 * MB), pytest.raises(InputError, match=r"index.json is larger than 33554432 bytes"):
        Pack.open(tmp_path)
    monkeypatch.setattr(shards, "MAX_SHARDS", 1)
    shard = {"name": SHARD, "clips": 1, "seconds": 0.1, "sha256": "0" * 64}
    write_index(tmp_path, shards=[shard, {**shard, "name": "shard-000001.tar"}])
    with pytest.raises(InputError, match="2 shards"):
        Pack.open(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"clips": 0}, {"clips": -1}, {"clips": "1"}, {"clips": 1.5}, {"clips": True}, {"seconds": 0},
        {"seconds": -1}, {"seconds": float("nan")}, {"seconds": float("inf")}, {"seconds": 1e9}, {"seconds": "x"},
        {"sha256": "x"}, {"sha256": None}, {"sha256": "0" * 63 + "\n"},
    ],
)  # fmt: skip
def test_numbers_of_the_index(tmp_path: Path, changes: dict[str, Any]) -> None:
    shard = {"name": SHARD, "clips": 1, "seconds": 0.1, "sha256": "0" * 64}
    write_index(tmp_path, shards=[{**shard, **changes}])
    with pytest.raises(InputError, match="is no index of a pack"):
        Pack.open(tmp_path)
    write_index(tmp_path, shards=[shard, shard])
    with pytest.raises(InputError, match="two shards have one name"):
        Pack.open(tmp_path)
    write_index(tmp_path, shards=[shard], rate_hz=0)
    with pytest.raises(InputError, match="is no index of a pack"):
        Pack.open(tmp_path)


def test_fewer_samples_than_in_the_index(tmp_path: Path) -> None:
    packed = make_pack(tmp_path, [member("a.flac", flac(1_600)), member("a.json", fields())], seconds=0.2)
    with pytest.raises(InputError, match=r"holds 1 clips, 0.1 s, where the index says 1 clips, 0.2 s"):
        read_shard(packed, packed.shards[0])


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no /dev/zero here: it is a file that never ends")
def test_a_file_that_never_ends_is_given_up(tmp_path: Path) -> None:
    (tmp_path / SHARD).symlink_to("/dev/zero")
    with open_file(str(tmp_path), SHARD, "fetch it again", 5 * MB) as f, pytest.raises(InputError, match="is larger"):
        for _ in f.blocks():
            pass
