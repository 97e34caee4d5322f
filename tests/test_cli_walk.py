"""Folders for `ced-edge tag` and as manifests: links are followed once, folders that cannot be read are reported."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Call
from tiny_bundle import shared_bundle

from ced_edge.audio.clips import audio_files, read_manifest
from ced_edge.errors import InputError


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """good/a.wav, locked/b.wav and z.wav."""
    for name in ("good/a.wav", "locked/b.wav", "z.wav"):
        path = tmp_path / "sounds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), 16_000)
    return tmp_path / "sounds"


@pytest.fixture
def locked(sounds: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that cannot be read, not even by root: file modes would not stop root."""
    real = os.scandir

    def scandir(path: Any = ".") -> Any:
        if Path(os.fsdecode(path)).name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fsdecode(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return sounds / "locked"


def test_a_closed_folder_is_named_and_the_rest_is_tagged(call: Call, sounds: Path, locked: Path) -> None:
    code, out, err = call("tag", sounds, "--bundle", shared_bundle().folder, "--json")
    assert code == 1
    assert [json.loads(line)["file"] for line in out.splitlines()] == [f"{sounds}/good/a.wav", f"{sounds}/z.wav"]
    assert err.splitlines() == [
        f"ced-edge: cannot read the folder {locked}: Permission denied",
        "ced-edge: 0 of 2 files could not be tagged, and 1 folder not read",
    ]


def test_a_closed_folder_alone(call: Call, locked: Path) -> None:
    code, out, err = call("tag", locked, "--bundle", shared_bundle().folder)
    assert (code, out, len(err.splitlines())) == (1, "", 2)
    assert f"cannot read the folder {locked}: Permission denied" in err


def test_a_manifest_must_be_complete(sounds: Path, locked: Path) -> None:
    with pytest.raises(InputError, match=f"cannot read the folder {locked}: Permission denied"):
        read_manifest(sounds)
    (sounds / "m.tsv").write_text("filename\tlabels\thdf5path\nb.wav\t0\t1.h5\n")
    with pytest.raises(InputError, match=f"cannot read the folder {locked}: Permission denied"):
        read_manifest(sounds / "m.tsv")  # the file may be in the closed folder


def test_links_are_followed_and_loops_end(sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "disk" / "deep" / "c.flac").touch()
    (sounds / "a link").symlink_to(tmp_path / "disk")
    (sounds / "another").symlink_to("a link")  # the same folder: its files are not read twice
    (sounds / "good" / "up").symlink_to("..")
    (tmp_path / "disk" / "back").symlink_to(sounds)
    (sounds / "0").symlink_to("good")  # sorts first, but good/ is its name
    assert [c.id for c in read_manifest(sounds)] == ["a link/deep/c.flac", "good/a.wav", "locked/b.wav", "z.wav"]
    (tmp_path / "in").symlink_to(sounds)
    assert [c.path.name for c in read_manifest(tmp_path / "in")] == ["c.flac", "a.wav", "b.wav", "z.wav"]


def test_a_link_to_itself_is_reported(sounds: Path) -> None:
    (sounds / "round").symlink_to("round")
    (sounds / "round.wav").symlink_to("round.wav")
    errors: list[OSError] = []
    assert [p.name for p in audio_files(sounds, errors.append)] == ["a.wav", "b.wav", "round.wav", "z.wav"]
    assert [e.filename for e in errors] == [str(sounds / "round")]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="no mode keeps root out of a folder")
def test_a_mode_that_closes_a_folder(sounds: Path) -> None:
    (sounds / "locked").chmod(0)
    try:
        with pytest.raises(InputError, match="locked: Permission denied"):
            read_manifest(sounds)
    finally:
        (sounds / "locked").chmod(0o700)
