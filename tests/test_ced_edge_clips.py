"""Folders, tables and the published lists; every way a manifest can be wrong."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ced_edge.audio.base import AudioError
from ced_edge.audio.clips import Clip, load_clip, read_manifest
from ced_edge.errors import InputError


def manifest(folder: Path, text: str, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_folder_is_walked_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.WAV", "sub/a.opus", "a.mp3", "notes.txt", "sub/c.flac", "d.ogg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    clips = read_manifest(tmp_path)
    assert [c.id for c in clips] == ["a.mp3", "b.WAV", "d.ogg", "sub/a.opus", "sub/c.flac"]
    assert clips[3] == Clip("sub/a.opus", tmp_path / "sub" / "a.opus", None, None)


def test_a_folder_named_as_audio_is_walked_and_a_dangling_link_stays(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").mkdir()
    (tmp_path / "a.mp3" / "b.wav").touch()
    (tmp_path / "c.wav").symlink_to("gone.wav")  # packing will reject it as missing
    assert [c.id for c in read_manifest(tmp_path)] == ["a.mp3/b.wav", "c.wav"]


def test_a_name_too_long_is_that_rows_alone(tmp_path: Path) -> None:
    (tmp_path / "a.flac").touch()
    name = "x" * 300 + ".wav"
    path = manifest(tmp_path, f"filename\tlabels\thdf5path\n{name}\t0\t1.h5\na.wav\t1\t1.h5\n")
    assert [c.path.name for c in read_manifest(path)] == [name, "a.flac"]
    path = manifest(tmp_path, f"# YTID\n{'x' * 300}, 0, 10, /m/04rlf\na, 0, 10, /m/04rlf\n")
    assert [c.path.name for c in read_manifest(path)] == [name, "a.flac"]
    with pytest.raises(InputError, match=r"cannot read .*: File name too long"):
        read_manifest(tmp_path / name)


def test_a_table_with_labels_group_and_split(tmp_path: Path) -> None:
    text = (
        "filename,labels,group,split,seconds\n"
        'a.wav,74;75,dog,train,5\n\n"b, c.wav","Male speech, man speaking",,dev,5\nd.wav,,x,train,1\n'
    )
    path = manifest(tmp_path, "\ufeff" + text.replace("\n", "\r\n"))
    assert read_manifest(path) == [
        Clip("a.wav", tmp_path / "a.wav", (74, 75), "dog"),
        Clip("b, c.wav", tmp_path / "b, c.wav", (1,), None),
        Clip("d.wav", tmp_path / "d.wav", None, "x"),
    ]
    assert [c.id for c in read_manifest(path, "train", Path("/data"))] == ["a.wav", "d.wav"]
    assert read_manifest(path, "dev", Path("/data"))[0].path == Path("/data/b, c.wav")


def test_tabs_are_found_by_content_not_by_suffix(tmp_path: Path) -> None:
    path = manifest(tmp_path, "labels\tfilename\n/m/09x0r,Music\ta.wav\n")
    assert read_manifest(path) == [Clip("a.wav", tmp_path / "a.wav", (0, 137), None)]


def test_the_published_ced_list_finds_audio_in_any_folder_and_format(tmp_path: Path) -> None:
    (tmp_path / "balanced").mkdir()
    (tmp_path / "balanced" / "Y--abc.flac").touch()
    path = manifest(
        tmp_path, "filename\tlabels\thdf5path\nY--abc.wav\t0;137\t/x/1.h5\nYgone.wav\t3\t/x/2.h5\n", "b.tsv"
    )
    assert read_manifest(path) == [
        Clip("Y--abc.wav", tmp_path / "balanced" / "Y--abc.flac", (0, 137)),
        Clip("Ygone.wav", tmp_path / "Ygone.wav", (3,)),  # packing will reject it as missing
    ]


def test_the_audioset_lists_find_cut_and_whole_files(tmp_path: Path) -> None:
    for name, seconds in (
        ("--aE2O5G5WE_0.wav", 1),
        ("Y-0abc.flac", 10),
        ("-1whole.ogg", 40),
        ("-2both_30000_40000.wav", 1),
        ("-2both_300.wav", 1),
    ):
        soundfile.write(tmp_path / name, np.zeros(seconds * 8_000), 8_000)
    path = manifest(
        tmp_path,
        "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=5, num_segs=5\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--aE2O5G5WE, 0.000, 10.000, "/m/03fwl,/m/04rlf,/m/09x0r"\n'
        '-0abc, 30.000, 40.000, "/m/04rlf"\n'
        '-1whole, 20.000, 30.000, "/m/04rlf"\n'
        '-2both, 30.000, 40.000, "/m/04rlf"\n'
        '-3gone, 30.000, 40.000, "/m/04rlf"\n',
    )
    assert read_manifest(path) == [
        Clip("--aE2O5G5WE", tmp_path / "--aE2O5G5WE_0.wav", (0, 95, 137)),
        Clip("-0abc", tmp_path / "Y-0abc.flac", (137,), None, 30.0, 40.0, may_be_cut=True),
        Clip("-1whole", tmp_path / "-1whole.ogg", (137,), None, 20.0, 30.0, may_be_cut=True),
        Clip("-2both", tmp_path / "-2both_30000_40000.wav", (137,)),
        Clip("-3gone", tmp_path / "-3gone.wav", (137,)),
    ]


def test_the_decoded_length_decides_whether_a_file_is_the_segment(tmp_path: Path) -> None:
    """A segment from 30 to 40 s: the file is the segment alone up to 11 s, and the recording from 39 s."""
    path = manifest(tmp_path, '# YTID, start_seconds, end_seconds, positive_labels\nabc, 30.0, 40.0, "/m/04rlf"\n')
    for seconds, first, length_s in (
        (10.0, 0, 10.0),
        (3.0, 0, 3.0),
        (11.0, 0, 11.0),
        (50.0, 30, 10.0),
        (39.5, 30, 9.5),
    ):
        # The value of a sample is its second.
        ramp = np.repeat(np.arange(0, 60), 1_000)[: round(seconds * 1_000)] / 100
        soundfile.write(tmp_path / "abc.wav", ramp, 1_000, "FLOAT")
        (clip,) = read_manifest(path)
        wave = load_clip(clip, 1_000)
        assert (round(100 * wave[0]), len(wave) / 1_000) == (first, length_s)
    for seconds in (11.1, 25.0, 38.9):
        soundfile.write(tmp_path / "abc.wav", np.zeros(round(seconds * 1_000)), 1_000)
        (clip,) = read_manifest(path)
        with pytest.raises(AudioError, match=f"its {seconds} s are neither the segment of 10 s alone nor a recording"):
            load_clip(clip, 1_000)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg writes the MP3: apt-get install ffmpeg")
def test_an_mp3_whose_length_is_misjudged_is_still_the_recording(tmp_path: Path) -> None:
    """Without an Xing header, the bytes of a VBR file tell too short a length: the loud half takes most of them."""
    rng = np.random.default_rng(0)
    wave = np.concatenate([rng.uniform(-0.5, 0.5, 160_000), np.zeros(160_000)]).astype(np.float32)
    wave[10 * 16_000 :: 16_000] = 0.9  # a click at each second of the silent half
    soundfile.write(tmp_path / "in.wav", wave, 16_000)
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        tmp_path / "in.wav",
        "-q:a",
        "4",
        "-write_xing",
        "0",
        "-id3v2_version",
        "0",
    ]
    subprocess.run([*command, tmp_path / "abc.mp3"], check=True)
    (tmp_path / "in.wav").unlink()
    path = manifest(tmp_path, '# YTID, start_seconds, end_seconds, positive_labels\nabc, 10.0, 20.0, "/m/04rlf"\n')
    (clip,) = read_manifest(path)
    part = load_clip(clip, 16_000)
    assert 9.9 < len(part) / 16_000 <= 10.0
    # The silent half, where only the clicks are, which the decoder delays by less than 0.1 s.
    assert np.sqrt(np.mean(part[1_600:] ** 2)) < 0.02
    clicks = [int(np.abs(part[s : s + 16_000]).argmax()) for s in range(8_000, 136_000, 16_000)]
    assert max(clicks) - min(clicks) < 16
    assert abs(clicks[0] - 8_000) < 1_600


def test_a_list_of_segments_opens_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two million files must not be decoded one after the other before the work begins."""
    (tmp_path / "abc.wav").write_bytes(b"never opened")
    path = manifest(tmp_path, '# YTID, start_seconds, end_seconds, positive_labels\nabc, 30.0, 40.0, "/m/04rlf"\n')
    assert read_manifest(path)[0].may_be_cut


def test_hidden_files_and_folders_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """macOS writes `._a.wav`, without audio, beside `a.wav`."""
    caplog.set_level(logging.INFO)
    for name in ("a.wav", "._a.wav", ".DS_Store", ".b.wav", ".AppleDouble/a.wav", "sub/.c.flac", "sub/c.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7" + bytes(364))
    assert [c.id for c in read_manifest(tmp_path)] == ["a.wav", "sub/c.flac"]
    assert caplog.messages == [f"{tmp_path}: skipped 4 hidden files or folders, whose names start with a dot"]
    caplog.clear()
    assert [c.id for c in read_manifest(tmp_path / "sub")] == ["c.flac"]
    assert len(caplog.messages) == 1


def test_an_apple_double_file_that_is_named_is_called_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "._a.wav"
    path.write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(344))
    with pytest.raises(AudioError, match=r"\._a\.wav: an AppleDouble file of macOS, without audio"):
        load_clip(Clip("a", path), 16_000)


HEADER = "filename,labels,split\n"


@pytest.mark.parametrize(
    ("text", "split", "message"),
    [
        ("file,labels\na.wav,1\n", None, "has no `filename` column: its columns are file, labels"),
        ("", None, "is empty: a manifest starts with a header"),
        ("\n \n", None, "is empty: a manifest starts with a header"),
        (HEADER, None, "lists no clips"),
        (HEADER, "train", "lists no clips"),
        (HEADER + "a.wav,1,train\n", "test", "has no row of split 'test': its splits are train"),
        ("filename\na.wav\n", "train", "has no `split` column to take 'train' from: its columns are filename"),
        (HEADER + "a.wav,1;600,train\n", None, "line 2: label 600 is out of range: the indices are 0 to 526"),
        (HEADER + "a.wav,Dogg,train\n", None, "line 2: unknown label 'Dogg'"),
        (HEADER + "a.wav,1,train\n\na.wav,2,dev\n", None, "line 4: 'a.wav' is already on line 2; names must differ"),
        (HEADER + "a.wav,1,2,3,train\n", None, "line 2: 5 fields where the header has 3"),
        (HEADER + ",1,train\n", None, "line 2: the file name is empty"),
        (HEADER + '"a.wav,1,train\n', None, "line 2: not readable as a table"),
        ("filename,filename\na,b\n", None, "has two columns of one name"),
        ("# YTID, start_seconds\nabc, 10.0, 0.0, /m/04rlf\n", None, "line 2: expected YTID, start_seconds"),
        ("# YTID, start_seconds\nabc, x, 0.0, /m/04rlf\n", None, "line 2: expected YTID, start_seconds"),
        ("# YTID, start_seconds\nabc\n", None, "line 2: expected YTID, start_seconds"),
        ("# YTID, start_seconds\nabc,0,10,/m/04rlf\n", "train", "AudioSet segments and has no splits"),
        ("# YTID, start_seconds\n", None, "lists no clips"),
        ("# YTID, start_seconds\na,0,10,/m/04rlf\na,0,10,/m/04rlf\n", None, "line 3: 'a' is already on line 2"),
        ("segment_id\tstart_time_seconds\tlabel\nabc\t0\t/m/04rlf\n", None, "line 2: 'abc' is no segment_id"),
        ("filename,fold\na.wav,1\n", "1,6", "has no row of fold '6': its folds are 1"),
        ("fname,labels\n1,Dog\n2,Dgo\n", None, "line 3: unknown label 'Dgo': give an index, a mid or a name"),
        ("filename,category\na.wav,12\n", None, "line 2: unknown label '12': give a mid or a name of the 527"),
    ],
)
def test_a_wrong_manifest_is_reported_with_line_and_mend(
    tmp_path: Path, text: str, split: str | None, message: str
) -> None:
    path = manifest(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_manifest(path, split)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_name_in_two_splits_is_fine_when_one_is_read(tmp_path: Path) -> None:
    path = manifest(tmp_path, HEADER + "a.wav,1,train\na.wav,2,dev\n")
    assert [c.labels for c in read_manifest(path, "dev")] == [(2,)]


def test_what_is_no_manifest_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such manifest or folder"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(InputError, match="no audio in"):
        read_manifest(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"RIFF\xff\xfe\x80")
    with pytest.raises(InputError, match="is no manifest: give a UTF-8 CSV or TSV"):
        read_manifest(tmp_path / "a.wav")
    with pytest.raises(InputError, match="is a folder and has no splits"):
        read_manifest(tmp_path, "train")


def test_the_real_manifests(shared: Path) -> None:
    esc10 = read_manifest(shared / "audio" / "esc10.csv", "dev")
    assert len(esc10) == 80
    assert len({c.group for c in esc10}) == 10
    assert all(c.path.exists() and c.labels for c in esc10)
    pool = read_manifest(shared / "audio" / "pool.csv", "train")
    assert len(pool) == 7_007
    assert all(c.labels is None for c in pool)
