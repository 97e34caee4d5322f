"""File names as disks have them: bytes that are no UTF-8, line breaks, quotes and delimiters."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Call

from ced_edge.audio.clips import Clip, read_manifest
from distill.packing.pack import PackConfig, pack
from distill.packing.shards import read_shard

GOOD = (b"caf\xe9.wav", b"a\rb.wav", b"c\nd.wav", b'e"f,g;h.wav', b"i\tj.wav", b"\r\n.wav", b"k\\udce9.wav", b" l .wav")
BAD = (b"bad\xff\r.wav", b"bad,\n.wav")
"""Files without audio."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose own name is no UTF-8 either."""
    folder = tmp_path / os.fsdecode(b"audio\xff")
    folder.mkdir()
    try:
        for i, name in enumerate(GOOD):
            with (folder / os.fsdecode(name)).open("wb") as f:
                soundfile.write(f, np.full(1_600, 0.01 * (i + 1), np.float32), 16_000, format="WAV")
        for name in BAD:
            (folder / os.fsdecode(name)).write_bytes(b"no audio")
    except OSError as e:
        pytest.skip(f"this file system refuses such names: {e}")
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def shown(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace").decode()


def test_odd_names_are_packed_and_tables_give_them_back(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "pack"
    packed = pack(read_manifest(folder), out, PackConfig(workers=1, clips_per_shard=3))
    names = {shown(name) for name in GOOD}
    rows = [row for shard in sorted(out.glob("shard-*.csv")) for row in table(shard)]
    assert {row["id"] for row in rows} == names
    assert {clip.id for shard in packed.shards for clip in read_shard(packed, shard)} == names
    levels = {clip.id: clip.wave[0] for shard in packed.shards for clip in read_shard(packed, shard)}
    assert levels == pytest.approx({shown(name): 327.68 * (i + 1) for i, name in enumerate(GOOD)}, abs=1)
    rejected = table(out / "rejected.csv")
    assert {row["id"] for row in rejected} == {shown(name) for name in BAD}
    assert {row["path"] for row in rejected} == {shown(os.fsencode(folder) + b"/" + name) for name in BAD}
    assert all(set(row) == {"id", "path", "reason"} for row in rejected)
    # The second run finds everything finished, and so does a run that was killed before its last file.
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    assert pack(read_manifest(folder), out, PackConfig(workers=1, clips_per_shard=3)) == packed
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before


def test_a_run_that_was_killed_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, config = tmp_path / "pack", PackConfig(workers=1, clips_per_shard=3)
    with monkeypatch.context() as m:
        m.setattr("distill.packing.pack._write_index", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack(read_manifest(folder), out, config)
    whole = pack(read_manifest(folder), tmp_path / "whole", config)
    assert [s.sha256 for s in pack(read_manifest(folder), out, config).shards] == [s.sha256 for s in whole.shards]


def test_odd_names_on_the_command_line(folder: Path, tmp_path: Path, call: Call) -> None:
    for _ in range(2):
        code, out, err = call("pack", folder, "--out", tmp_path / "pack", "--json", "--workers", 1)
        assert code == 0, err
        assert {k: json.loads(out)[k] for k in ("clips", "rejected")} == {"clips": len(GOOD), "rejected": len(BAD)}
        assert "unexpected" not in err


def test_a_callers_clip_whose_name_is_no_utf_8(folder: Path, tmp_path: Path) -> None:
    name = os.fsdecode(GOOD[0])
    packed = pack([Clip(name, folder / name)], tmp_path / "pack", PackConfig(workers=1))
    assert [clip.id for clip in read_shard(packed, packed.shards[0])] == ["caf\\udce9.wav"]
