"""Calibration sounds: clips come from shards of a pack, whose sizes are compared before they are read."""

from __future__ import annotations

import io
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Call

from ced_edge.errors import InputError
from export.sounds import calibration_waves, synthetic_waves

RATE_HZ, WINDOW = 16_000, 15_000


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A labelled folder of short sounds."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    rows = ["filename,labels"]
    for i, wave in enumerate(synthetic_waves(20_000, RATE_HZ, seed=5)[:6]):
        soundfile.write(folder / f"{i}.wav", wave, RATE_HZ)
        rows.append(f"{i}.wav,{i % 3}")
    (folder / "sounds.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_calibration_clips_come_from_shards_without_labels(sounds: Path, tmp_path: Path, call: Call) -> None:
    code, _, err = call("pack", sounds / "sounds.csv", "--out", tmp_path / "pack", "--clips-per-shard", 4)
    assert code == 0, err
    made = calibration_waves(None, RATE_HZ, WINDOW)
    waves = calibration_waves(tmp_path / "pack", RATE_HZ, WINDOW, clips=4)[len(made) :]
    known = [soundfile.read(p, dtype="float32")[0][:15_000] for p in sorted(sounds.glob("*.wav"))]
    assert len(waves) == 4
    for wave in waves:
        assert any(len(wave) == len(k) and np.abs(wave - k).max() < 1e-3 for k in known)


def flac(wave: np.ndarray, rate_hz: int = RATE_HZ, format: str = "FLAC") -> bytes:
    f = io.BytesIO()
    soundfile.write(f, wave, rate_hz, format=format)
    return f.getvalue()


def shard(folder: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A pack of one tar; what a header says of its member may differ from the bytes that follow."""
    folder.mkdir(exist_ok=True)
    with (folder / "shard-000000.tar").open("wb") as f:
        for info, content in members:
            f.write(info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512))
        f.write(bytes(1024))
    return folder


def member(name: str, content: bytes, size: int | None = None, kind: bytes = tarfile.REGTYPE) -> tuple:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content) if size is None else size, kind
    return info, content


def refused(pack: Path, message: str) -> None:
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"shard-000000\.tar is no shard of a pack \({message}.*: pack again"):
        calibration_waves(pack, RATE_HZ, WINDOW)
    assert tracemalloc.get_traced_memory()[1] < 30_000_000
    tracemalloc.stop()


def test_a_right_shard(tmp_path: Path) -> None:
    wave = np.float32(0.5) * np.ones(WINDOW, np.float32)
    (found,) = calibration_waves(shard(tmp_path / "p", member("a.flac", flac(wave))), RATE_HZ, WINDOW, clips=1)[-1:]
    np.testing.assert_allclose(found, wave, atol=1e-4)


def test_shards_that_lie_about_sizes_are_refused(tmp_path: Path) -> None:
    tone = flac(np.zeros(WINDOW))
    refused(shard(tmp_path / "p", member("a.flac", tone, size=1 << 40)), "")
    refused(shard(tmp_path / "p", member("a.flac", tone[: len(tone) // 2])), "")
    refused(shard(tmp_path / "p", member("a.flac", b"", kind=tarfile.SYMTYPE)), "'a.flac' is no plain file")
    (tmp_path / "p" / "shard-000000.tar").write_bytes(b"")
    refused(tmp_path / "p", "empty file")
    (tmp_path / "p" / "shard-000000.tar").write_bytes(b"x" * 4096)
    refused(tmp_path / "p", "")


def test_headers_nested_thousands_deep_are_refused(tmp_path: Path) -> None:
    """A GNU header of a long name is read together with the header after it."""
    names = [member("././@LongLink", b"", kind=tarfile.GNUTYPE_LONGNAME)] * 3_000
    refused(shard(tmp_path / "p", *names, member("a.flac", b"")), "")


def test_a_sparse_member_is_not_expanded(tmp_path: Path) -> None:
    """One of 10 GB of zeros in 1 kB, as GNU tar writes it."""
    info = tarfile.TarInfo("a.flac")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 0)  # one piece of no bytes at 0
    header[483:495] = b"%011o\0" % (10**9)  # the size with its holes
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "shard-000000.tar").write_bytes(bytes(header) + bytes(1024))
    with tarfile.open(tmp_path / "p" / "shard-000000.tar") as tar:
        (listed,) = tar.getmembers()
        assert (listed.issparse(), listed.size) == (True, 10**9)
    refused(tmp_path / "p", "'a.flac' is no plain file")


def test_a_clip_that_unpacks_to_hours_is_not_decoded(tmp_path: Path) -> None:
    """FLAC writes silence in a thousandth of its size."""
    silence = flac(np.zeros(20_000_000, np.int16))
    assert len(silence) < 200_000
    refused(shard(tmp_path / "p", member("a.flac", silence)), "a clip of 20000000 frames and 1 channels as FLAC")


def test_clips_of_another_kind_than_packs_hold_are_refused(tmp_path: Path) -> None:
    stereo, wav = flac(np.zeros((WINDOW, 2))), flac(np.zeros(WINDOW), format="WAV")
    refused(shard(tmp_path / "p", member("a.flac", stereo)), f"a clip of {WINDOW} frames and 2 channels")
    refused(shard(tmp_path / "p", member("a.flac", wav)), f"a clip of {WINDOW} frames and 1 channels as WAV")
    refused(shard(tmp_path / "p", member("a.flac", b"no sound")), "")


def test_a_shard_without_clips(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="p holds no clips to calibrate with"):
        calibration_waves(shard(tmp_path / "p", member("a.json", b"{}")), RATE_HZ, WINDOW)
