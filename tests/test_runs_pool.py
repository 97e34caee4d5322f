"""The scripts that build a training pool: a package that the test makes, and sounds without other programs."""

from __future__ import annotations

import csv
import io
import lzma
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ced_edge.audio.clips import read_manifest
from ced_edge.errors import CedEdgeError

RUNS = Path(__file__).resolve().parents[1] / "runs"

COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2020 A
License: GPL-2+

Files: data/birds/*
Copyright: 2021 B
License: CC-BY-4.0
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """runs/pool_debian.py and runs/pool_synth.py as modules."""
    monkeypatch.syspath_prepend(str(RUNS))
    import pool_debian
    import pool_synth

    yield pool_debian, pool_synth
    for name in [n for n in sys.modules if n.partition(".")[0] in ("pool", "pool_debian", "pool_synth")]:
        del sys.modules[name]


def wav(seconds: float, seed: int, level: float = 0.1) -> bytes:
    file = io.BytesIO()
    noise = level * np.random.default_rng(seed).standard_normal(round(seconds * 16_000))
    soundfile.write(file, noise, 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def make_deb(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb here: Debian packages are made and read with it")
    root = folder / name
    documents = {f"usr/share/doc/{name}/copyright": COPYRIGHT.encode()}
    control = f"Package: {name}\nVersion: 1.2-3\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: sounds\n"
    for path, content in {**files, **documents, "DEBIAN/control": control.encode()}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    deb = folder / f"{name}_1.2-3_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", root, deb], check=True, capture_output=True)
    return deb


def test_a_package_becomes_clips_with_their_licences(tmp_path: Path, scripts: Any) -> None:
    pool_debian, _ = scripts
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("voice/hello.wav", wav(1.0, 1))
    files = {
        "usr/share/games/x/birds/crow.wav": wav(2.0, 2),
        "usr/share/games/x/long.wav": wav(95.0, 3),
        "usr/share/games/x/copy.wav": wav(2.0, 2),  # the crow again
        "usr/share/games/x/silence.wav": wav(2.0, 4, 0.0),
        "usr/share/games/x/tiny.wav": wav(0.1, 5),
        "usr/share/games/x/broken.wav": b"no sound",
        "usr/share/games/x/data.zip": archive.getvalue(),
        "usr/share/games/x/readme.txt": b"text",
    }
    deb = make_deb(tmp_path, "x-data", files)
    pool_debian.build("x-data", {}, deb, tmp_path)
    rows = pool_debian.write_manifest(["x-data"], tmp_path)
    by_path = {row.path.rpartition("/")[2]: row for row in rows}
    assert set(by_path) == {"crow.wav", "long.wav", "hello.wav"}  # of equal sounds the first in order is kept
    assert (by_path["crow.wav"].licence, by_path["hello.wav"].licence) == ("CC-BY-4.0", "GPL-2+")
    long = [row for row in rows if row.path.endswith("long.wav")]
    assert [row.start_s for row in long] == [0.0, 17.0, 34.0, 51.0, 68.0, 85.0]
    assert {row.seconds for row in long} == {10.0}
    assert by_path["hello.wav"].path == "usr/share/games/x/data.zip/voice/hello.wav"
    assert {row.version for row in rows} == {"1.2-3"}
    clips = read_manifest(tmp_path / "pool.csv")
    assert len(clips) == len(rows) == 8
    np.testing.assert_allclose(
        soundfile.read(clips[0].path)[0],
        soundfile.read(io.BytesIO(files["usr/share/games/x/birds/crow.wav"]))[0],
        atol=1e-4,
    )
    assert "| x-data | 1.2-3 | 8 |" in (tmp_path / "sources.md").read_text()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_a_damaged_package_is_named(tmp_path: Path, scripts: Any, share: float) -> None:
    """The download was cut: dpkg-deb fails at once, or its archive ends in the middle of a file."""
    deb = make_deb(tmp_path, "sounds", {"usr/share/a.wav": wav(1.0, 0)})
    content = deb.read_bytes()
    deb.write_bytes(content[: round(share * len(content))])
    with pytest.raises(CedEdgeError, match=r"sounds\S*\.deb is damaged .*delete it and run again"):
        scripts[0].audio_files(deb)


def test_a_damaged_archive_in_a_package_is_left_out(tmp_path: Path, scripts: Any) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", wav(1.0, 0))
    content = bytearray(packed.getvalue())
    content[200:260] = bytes(60)
    files = {"usr/share/game.zip": bytes(content), "usr/share/b.wav": wav(1.0, 1)}
    found, _ = scripts[0].audio_files(make_deb(tmp_path, "sounds", files))
    assert list(found) == ["usr/share/b.wav"]


def test_a_file_that_is_no_package_is_named(tmp_path: Path, scripts: Any) -> None:
    """`build` asks for the version before it reads the files."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb here")
    (tmp_path / "sounds.deb").write_bytes(b"no package" * 100)
    with pytest.raises(CedEdgeError, match=r"sounds\.deb is damaged .*delete it and run again"):
        scripts[0].build("sounds", {}, tmp_path / "sounds.deb", tmp_path)


def damaged_member(method: int) -> bytes:
    """A zip file whose only member cannot be unpacked by its method."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        archive.writestr("a.wav", wav(1.0, 0))
    content = bytearray(packed.getvalue())
    content[60:120] = bytes(60)
    return bytes(content)


def too_short_member() -> bytes:
    """A zip file that claims more bytes of its only member than the file has."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.wav", wav(1.0, 0))
    content = packed.getvalue()
    size = len(wav(1.0, 0)).to_bytes(4, "little")
    return content.replace(size + size, 2 * (100 * len(content)).to_bytes(4, "little"))


def badly_named_member() -> bytes:
    """A zip file whose only member has a name that is no UTF-8."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("ä.wav", wav(1.0, 0))
    return packed.getvalue().replace("ä".encode(), b"\xc3.")


@pytest.mark.parametrize(
    ("error", "content"),
    [
        (lzma.LZMAError, damaged_member(zipfile.ZIP_LZMA)),
        (OSError, damaged_member(zipfile.ZIP_BZIP2)),
        ((EOFError, zipfile.BadZipFile), too_short_member()),  # newer versions of Python find it before they read
        (UnicodeDecodeError, badly_named_member()),
    ],
)
def test_an_archive_may_be_damaged_in_every_way(scripts: Any, error: Any, content: bytes) -> None:
    with pytest.raises(error), zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.read(archive.infolist()[0])
    assert list(scripts[0]._archived(content)) == []


@pytest.mark.parametrize("packed", [False, True], ids=["files", "archive"])
def test_a_package_with_too_many_bytes_is_refused(
    tmp_path: Path, scripts: Any, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """No single file is too large, but all together are."""
    pool_debian, _ = scripts
    sounds = {f"{i}.wav": wav(1.0, i) for i in range(3)}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        for name, content in sounds.items():
            z.writestr(name, content)
    files = {"usr/share/a.zip": archive.getvalue()} if packed else {f"usr/share/{n}": c for n, c in sounds.items()}
    deb = make_deb(tmp_path, "sounds", files)
    monkeypatch.setattr(pool_debian, "MAX_PACKAGE_BYTES", 100_000)
    assert len(pool_debian.audio_files(deb)[0]) == 3
    monkeypatch.setattr(pool_debian, "MAX_PACKAGE_BYTES", 80_000)
    with pytest.raises(CedEdgeError, match=r"^\S*sounds\S*\.deb holds more than 80,000 bytes: take it out of the list"):
        pool_debian.audio_files(deb)


def test_licences_are_found_by_the_end_of_a_path(scripts: Any) -> None:
    licences = scripts[0].Licences(COPYRIGHT)
    assert licences.of("usr/share/games/x/birds/crow.wav") == "CC-BY-4.0"
    assert licences.of("usr/share/games/x/cats/meow.wav") == "GPL-2+"
    assert scripts[0].Licences("This is free software.").of("a.wav") == "see the package's copyright file"


def test_a_pattern_limits_how_many_files_are_taken(scripts: Any) -> None:
    paths = [f"voice/{i}.wav" for i in range(50)] + ["door.wav"]
    chosen = scripts[0]._chosen("x", paths, {"voice/*": 7})
    assert len(chosen) == 8
    assert "door.wav" in chosen
    assert chosen == scripts[0]._chosen("x", paths, {"voice/*": 7})


def test_the_list_of_packages_is_read(scripts: Any) -> None:
    packages = scripts[0].read_list(scripts[0].LIST)
    assert len(packages) > 100
    assert packages["hedgewars-data"] == {"*/voices/*": 200, "*/Voices/*": 200}


@pytest.mark.parametrize(
    "name", ["device-vacuum-0", "device-smoke-1", "device-police-2", "device-drip-0", "sing-alto-1"]
)
def test_a_made_sound_is_a_function_of_its_name(scripts: Any, name: str) -> None:
    _, pool_synth = scripts
    wave = pool_synth.make(name)
    assert len(wave) == 320_000
    assert np.isfinite(wave).all()
    assert 0.09 < np.abs(wave).max() < 0.9
    np.testing.assert_array_equal(pool_synth.make(name), wave)
    assert not np.array_equal(pool_synth.make(name[:-1] + "7"), wave)


def test_a_voice_that_is_not_installed_is_named(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """text2wave reports no failure then, and writes no file."""
    from pool import speech

    monkeypatch.setattr(speech, "run", lambda command, text: b"")
    with pytest.raises(CedEdgeError, match=r"^text2wave -eval \(voice_czech_dita\) -o made no sound: is the voice"):
        speech.recited("recite-czech_dita-0")


def test_names_are_unique_and_say_which_sound_they_are(scripts: Any) -> None:
    names = [name for kind in scripts[1].names(2).values() for name in kind]
    assert len(set(names)) == len(names) > 1_000
    assert {name.split("-")[0] for name in names} == {
        "gm",
        "drums",
        "genre",
        "talk",
        "recite",
        "crowd",
        "sing",
        "device",
    }


def test_a_score_is_a_midi_file(tmp_path: Path, scripts: Any) -> None:
    import mido
    from pool.music import GENRES, genre

    for style in GENRES:
        genre(f"genre-{style}-1")(tmp_path / "a.mid")
        file = mido.MidiFile(tmp_path / "a.mid")
        notes = [m for m in file.tracks[0] if m.type == "note_on"]
        assert len(notes) > 4
        assert file.length < 25


def test_clips_are_listed_in_a_manifest(tmp_path: Path, scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, pool_synth = scripts
    monkeypatch.setattr(pool_synth, "names", lambda takes: {"device": ["device-white-0", "device-pink-0"]})
    monkeypatch.setattr(pool_synth.shutil, "which", lambda tool: tool)
    pool_synth.main([str(tmp_path)], standalone_mode=False)
    with (tmp_path / "pool.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [row["filename"] for row in rows] == ["clips/device/device-white-0.flac", "clips/device/device-pink-0.flac"]
    assert len(read_manifest(tmp_path / "pool.csv")) == 2
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} == {
        "pool.csv",
        "device-white-0.flac",
        "device-pink-0.flac",
    }
    monkeypatch.setattr(pool_synth.shutil, "which", lambda tool: None)
    with pytest.raises(Exception, match="fluidsynth, espeak-ng, text2wave not found: apt-get install"):
        pool_synth.main([str(tmp_path)], standalone_mode=False)
