"""Packing: what goes in, what is rejected, and that the bytes never depend on how the run went."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ced_edge.audio import read as audio
from ced_edge.audio.clips import Clip, read_manifest
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import folder_lock, sha256_file
from distill.packing.pack import PackConfig, pack
from distill.packing.shards import Pack, read_shard

REPOSITORY = Path(__file__).resolve().parents[1]


def noise(seconds: float, seed: int = 0, rate_hz: int = 16_000) -> audio.Float32:
    wave = 0.3 * np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))
    return np.clip(wave, -0.99, 0.99).astype(np.float32)


def make_clips(folder: Path, n: int, seconds: float = 0.2) -> list[Clip]:
    folder.mkdir(exist_ok=True)
    for i in range(n):
        soundfile.write(folder / f"{i:03d}.wav", noise(seconds, i), 16_000)
    return read_manifest(folder)


def config(**changes: object) -> PackConfig:
    return PackConfig(**{"workers": 1, "clips_per_shard": 4, **changes})  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def test_a_pack_holds_every_clip_once_with_its_samples(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "in", 10)
    clips[3] = Clip(clips[3].id, clips[3].path, (0, 137), "a group, with comma")
    done: list[int] = []
    packed = pack(clips, tmp_path / "out", config(), done.append)
    assert (packed.clips, packed.rejected, packed.rate_hz, sum(done)) == (10, 0, 16_000, 10)
    assert [s.clips for s in packed.shards] == [4, 4, 2]
    assert packed.seconds == pytest.approx(2.0)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        ".lock",
        "index.json",
        "rejected.csv",
        *(f"shard-00000{i}.{suffix}" for i in range(3) for suffix in ("csv", "tar")),
    ]
    read = {c.id: c for s in packed.shards for c in read_shard(packed, s)}
    assert sorted(read) == [c.id for c in clips]
    assert list(read) != sorted(read)  # shuffled
    for clip in clips:
        pcm = soundfile.read(clip.path, dtype="int16")[0]
        np.testing.assert_array_equal(read[clip.id].wave, pcm)
        assert (read[clip.id].labels, read[clip.id].group) == (clip.labels, clip.group)


def test_the_tables_and_the_index_describe_the_tars(tmp_path: Path) -> None:
    clips = [Clip("x/a.b.wav", make_clips(tmp_path / "in", 1)[0].path, (3, 5), "g")]
    packed = pack(clips, tmp_path / "out", config(seed=7))
    out = tmp_path / "out"
    index = json.loads((out / "index.json").read_text())
    assert index["shards"] == [
        {
            "name": "shard-000000.tar",
            "clips": 1,
            "seconds": 0.2,
            "sha256": sha256_file(out / "shard-000000.tar"),
            "csv_sha256": sha256_file(out / "shard-000000.csv"),
        }
    ]
    assert (index["format"], index["rate_hz"], index["clips"], index["config"]["seed"]) == (1, 16_000, 1, 7)
    assert not {"workers", "strict"} & index["config"].keys()
    with tarfile.open(out / "shard-000000.tar") as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == ["000000-000000.flac", "000000-000000.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        flac = tar.extractfile(members[0])
        fields = tar.extractfile(members[1])
        assert flac is not None
        assert fields is not None
        data = flac.read()
        assert json.load(fields) == {"id": "x/a.b.wav", "labels": [3, 5], "group": "g", "samples": 3_200}
    info = soundfile.info(io.BytesIO(data))
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (16_000, 1, "PCM_16", 3_200)
    (row,) = rows(out / "shard-000000.csv")
    digest = row.pop("sha256")
    assert row == {
        "key": "000000-000000", "id": "x/a.b.wav", "rate_hz": "16000", "samples": "3200", "labels": "3;5", "group": "g"
    }  # fmt: skip
    (tmp_path / "a.flac").write_bytes(data)
    assert digest == sha256_file(tmp_path / "a.flac")
    assert packed.shards[0].sha256 == index["shards"][0]["sha256"]


def test_long_files_are_cut_without_losing_a_sample(tmp_path: Path) -> None:
    long = noise(2.55)
    soundfile.write(tmp_path / "long.wav", long, 16_000, subtype="PCM_16")
    soundfile.write(tmp_path / "tail.wav", long[: 16_000 * 2 + 800], 16_000, subtype="PCM_16")
    clips = [
        Clip("long", tmp_path / "long.wav"),
        Clip("tail", tmp_path / "tail.wav"),
        Clip("part", tmp_path / "long.wav", None, None, 0.5, 1.75),
    ]
    packed = pack(clips, tmp_path / "out", config(segment_s=1.0))
    read = {c.id: c.wave for s in packed.shards for c in read_shard(packed, s)}
    assert {k: len(v) for k, v in read.items()} == {
        "long#0": 16_000, "long#1": 16_000, "long#2": 8_800,
        "tail#0": 16_000, "tail#1": 16_800,  # a tail under min_s stays with the segment before it
        "part#0.5": 16_000, "part#1.5": 4_000,
    }  # fmt: skip
    pcm = soundfile.read(tmp_path / "long.wav", dtype="int16")[0]
    np.testing.assert_array_equal(np.concatenate([read[f"long#{i}"] for i in range(3)]), pcm)
    np.testing.assert_array_equal(np.concatenate([read["part#0.5"], read["part#1.5"]]), pcm[8_000:28_000])


def bad_clips(folder: Path) -> list[Clip]:
    """Two good clips and one of each kind that is rejected."""
    clips = make_clips(folder, 2)
    (folder / "text.wav").write_text("this is a text\n")
    (folder / "zero.wav").touch()
    soundfile.write(folder / "silent.wav", np.full(8_000, 5e-5), 16_000, subtype="FLOAT")
    soundfile.write(folder / "short.wav", noise(0.05), 16_000)
    nan = noise(0.5)
    nan[100] = np.nan
    soundfile.write(folder / "nan.wav", nan, 48_000, subtype="FLOAT")
    wav = bytearray(clips[0].path.read_bytes())
    wav[24:28] = bytes(4)
    (folder / "rate0.wav").write_bytes(wav)
    return [*read_manifest(folder), Clip("gone.wav", folder / "gone.wav")]


REASONS = {
    "gone.wav": "no such file",
    "nan.wav": "unusable samples",
    "rate0.wav": "bad sample rate or channel count",
    "short.wav": "too short",
    "silent.wav": "silent",
    "text.wav": "not audio",
    "zero.wav": "empty file",
}


@pytest.mark.parametrize("clips_per_shard", [1, 100])
def test_what_cannot_be_used_is_listed_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, clips_per_shard: int
) -> None:
    clips = bad_clips(tmp_path / "in")
    done: list[int] = []
    packed = pack(clips, tmp_path / "out", config(clips_per_shard=clips_per_shard), done.append)
    assert (packed.clips, packed.rejected, sum(done)) == (2, 7, 9)
    rejected = rows(tmp_path / "out" / "rejected.csv")
    assert {r["id"]: r["reason"].partition(": ")[0] for r in rejected} == REASONS
    assert "the sample at 0.002 s (index 100) is NaN" in rejected[1]["reason"]
    assert [r["id"] for r in rejected] == sorted(REASONS)
    assert rejected[0]["path"] == str(tmp_path / "in" / "gone.wav")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("distill.packing.pack", "WARNING")
    assert record.message.startswith("rejected 7 clips (")
    assert "1 silent" in record.message
    pack(clips, tmp_path / "out", config(clips_per_shard=clips_per_shard))
    assert [r.message for r in caplog.records] == [record.message] * 2  # also when there was nothing to do


def test_strict_makes_a_rejected_clip_an_error_and_writes_no_index(tmp_path: Path) -> None:
    clips = bad_clips(tmp_path / "in")
    out = tmp_path / "out"
    with pytest.raises(CedEdgeError, match=r"rejected 4 clips .*rejected.csv") as caught:  # those of the first look
        pack(clips, out, config(strict=True))
    assert caught.value.exit_code == 1
    readable = [c for c in clips if c.id in ("000.wav", "001.wav", "silent.wav")]
    with pytest.raises(CedEdgeError, match=r"rejected 1 clips \(1 silent\)"):
        pack(readable, tmp_path / "out2", config(strict=True))
    for folder in (out, tmp_path / "out2"):
        assert not (folder / "index.json").exists()
        with pytest.raises(InputError, match=r"no such file: .*index.json; run `ced-edge pack` to its end"):
            Pack.open(folder)
    assert pack(clips, out, config()).rejected == 7  # without strict it goes on
    with pytest.raises(CedEdgeError, match="rejected 7 clips"):
        pack(clips, out, config(strict=True))


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    clips = [c for c in bad_clips(tmp_path / "in") if c.id in REASONS]
    with pytest.raises(InputError, match=r"none of the clips can be used: see .*rejected.csv"):
        pack(clips, tmp_path / "out", config())
    assert len(rows(tmp_path / "out" / "rejected.csv")) == 7
    assert not (tmp_path / "out" / "index.json").exists()
    assert not list((tmp_path / "out").glob("shard-*"))


def test_the_bytes_do_not_depend_on_workers_order_or_place(tmp_path: Path) -> None:
    clips = bad_clips(tmp_path / "in")
    clips += [Clip(f"more/{c.id}", c.path, (1,), "g") for c in make_clips(tmp_path / "in2", 30)]
    pack(clips, tmp_path / "one", config())
    done: list[int] = []
    pack(clips, tmp_path / "three", config(workers=3), done.append)
    pack(clips[::-1], tmp_path / "reversed", config())
    assert sum(done) == len(clips)
    assert contents(tmp_path / "one") == contents(tmp_path / "three") == contents(tmp_path / "reversed")
    pack(clips, tmp_path / "seed", config(seed=1))
    assert contents(tmp_path / "one")["shard-000000.tar"] != contents(tmp_path / "seed")["shard-000000.tar"]


SLOW_RUN = """
import sys
from pathlib import Path
from ced_edge.audio.clips import read_manifest
from distill.packing.pack import PackConfig, pack
pack(read_manifest(Path(sys.argv[1])), Path(sys.argv[2]), PackConfig(workers=int(sys.argv[3]), clips_per_shard=3))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_to_the_same_bytes_and_leaves_no_process(tmp_path: Path, workers: int) -> None:
    clips = make_clips(tmp_path / "in", 60, seconds=1.5)
    (tmp_path / "in" / "bad.wav").write_text("no sound")
    clips = read_manifest(tmp_path / "in")
    pack(clips, tmp_path / "whole", config(clips_per_shard=3))
    out = tmp_path / "out"
    rng = random.Random(workers)
    states: set[int] = set()
    for _ in range(6):
        # Its own session, so that workers that outlive it can be seen.
        run = subprocess.Popen(
            [sys.executable, "-c", SLOW_RUN, str(tmp_path / "in"), str(out), str(workers)],
            cwd=REPOSITORY, start_new_session=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        before = len(list(out.glob("shard-*.csv")))
        wanted = before + rng.randrange(1, 5)
        while run.poll() is None and len(list(out.glob("shard-*.csv"))) < wanted:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.01))
        run.kill()
        run.wait()
        states.add(len(list(out.glob("shard-*.csv"))))
        assert_gone(run.pid)
    assert len(states) > 2  # it was stopped at different points, and went on
    pack(clips, out, config(clips_per_shard=3))
    assert contents(out) == contents(tmp_path / "whole")


def assert_gone(session: int) -> None:
    """Whether no process of the session is left, within a minute."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.killpg(session, signal.SIGKILL)
    pytest.fail("workers went on after their parent was killed")


def test_a_resumed_run_does_not_pack_again_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = make_clips(tmp_path / "in", 12)
    done = fail_after(monkeypatch, 10, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        pack(clips, tmp_path / "out", config())
    monkeypatch.undo()
    assert done
    first = (tmp_path / "out" / "shard-000000.tar").stat()
    packed = pack(clips, tmp_path / "out", config())
    assert (tmp_path / "out" / "shard-000000.tar").stat().st_mtime_ns == first.st_mtime_ns
    assert packed.clips == 12


def fail_after(monkeypatch: pytest.MonkeyPatch, members: int, error: OSError) -> list[str]:
    """Let writing the tar fail after so many members. Returns the names written, as they come."""
    written: list[str] = []
    add = tarfile.TarFile.addfile

    def failing(self: tarfile.TarFile, info: tarfile.TarInfo, f: io.BytesIO) -> None:
        if len(written) >= members:
            raise error
        written.append(info.name)
        add(self, info, f)

    monkeypatch.setattr(tarfile.TarFile, "addfile", failing)
    return written


@pytest.mark.parametrize("members", [0, 11])
def test_a_full_disk_is_reported_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: int
) -> None:
    clips = make_clips(tmp_path / "in", 12)
    out = tmp_path / "out"
    fail_after(monkeypatch, members, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(CedEdgeError, match=r"disk full while writing .*shard-00000\d.tar: free some space") as caught:
        pack(clips, out, config(workers=2 if members else 1))
    assert caught.value.exit_code == 1
    assert sorted(p.name for p in out.glob("shard-*")) == ["shard-000000.csv", "shard-000000.tar"][: members // 4]
    assert not [name for name in contents(out) if name.endswith(".tmp")]
    monkeypatch.undo()
    pack(clips, out, config())
    pack(clips, tmp_path / "whole", config())
    assert contents(out) == contents(tmp_path / "whole")


def test_a_folder_of_other_clips_or_config_is_refused(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "in", 5)
    out = tmp_path / "out"
    pack(clips, out, config())
    before = contents(out)
    with pytest.raises(InputError, match=r"out is a pack of other clips: choose another folder, or delete it"):
        pack(clips[:4], out, config())
    with pytest.raises(InputError, match=r"another config \(rate_hz 16000, not 8000; seed 0, not 3\)"):
        pack(clips, out, config(rate_hz=8_000, seed=3))
    assert contents(out) == before
    assert pack(clips, out, config(workers=2)).clips == 5  # what does not change the bytes is free


def test_a_folder_that_was_begun_with_other_clips_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = make_clips(tmp_path / "in", 8)
    fail_after(monkeypatch, 10, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(CedEdgeError):
        pack(clips, tmp_path / "out", config())
    monkeypatch.undo()
    with pytest.raises(InputError, match="is a pack of other clips"):
        pack(clips[1:], tmp_path / "out", config())
    for path in (tmp_path / "in").iterdir():
        soundfile.write(path, noise(25.0), 16_000)
    with pytest.raises(InputError, match="begun when the audio files had other lengths"):
        pack(clips, tmp_path / "out", config())


@pytest.mark.parametrize("name", ["shard-000000.csv", ".work/shard-000000.csv"])
@pytest.mark.parametrize("damage", [b"\xff\xfe", b"a,b\n1,2\n", b"", b"x" * 140_000, "cut", "wrong"])
def test_a_damaged_table_of_a_pack_that_goes_on_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: bytes | str
) -> None:
    clips = make_clips(tmp_path / "in", 8)
    clips[0].path.write_bytes(b"no sound")
    soundfile.write(clips[1].path, np.zeros(3_200), 16_000)  # silent: rejected when it is encoded
    fail_after(monkeypatch, 9, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        pack(clips, tmp_path / "out", config())
    monkeypatch.undo()
    table = tmp_path / "out" / name
    whole = table.read_bytes()
    cut, wrong = whole.rstrip(b"\n") + b"\nshort\n", whole.replace(b",3200,", b",many,") + b"1,2,3,4,5,6,7,8\n"
    table.write_bytes(damage if isinstance(damage, bytes) else {"cut": cut, "wrong": wrong}[damage])
    with pytest.raises(InputError, match=rf"{name} is damaged \(.*\): delete {tmp_path / 'out'}, and pack again") as e:
        pack(clips, tmp_path / "out", config())
    assert "\n" not in str(e.value)


def test_shards_of_unknown_origin_are_not_overwritten(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shard-000000.tar").write_bytes(b"precious")
    with pytest.raises(InputError, match="has shards of unknown origin"):
        pack(clips, tmp_path / "out", config())
    assert (tmp_path / "out" / "shard-000000.tar").read_bytes() == b"precious"
    with pytest.raises(InputError, match="cannot write into"):
        pack(clips, clips[0].path, config())


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "in", 1)
    with folder_lock(tmp_path / "out"), pytest.raises(InputError, match="another run is at work in"):
        pack(clips, tmp_path / "out", config())


def test_names_must_differ_also_across_manifests(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "in", 2)
    with pytest.raises(InputError, match=r"1 clips share a name, the first is '000.wav'"):
        pack([*clips, clips[0]], tmp_path / "out", config())
    with pytest.raises(InputError, match="no clips to pack"):
        pack([], tmp_path / "out", config())
