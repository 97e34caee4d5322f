"""`ced-edge tag`, `info` and `listen`: results on stdout, one line for every mistake, and a clean end."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import Call
from tiny_bundle import shared_bundle

from ced_edge.audio.base import AUDIO_SUFFIXES
from ced_edge.audio.read import load
from ced_edge.labels import labels
from ced_edge.runtime.tagger import Tagger

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """A folder of sounds: 5 s of 48 kHz stereo, and 1 s of FLAC in a folder of its own."""
    rng = np.random.default_rng(0)
    (tmp_path / "audio" / "deep").mkdir(parents=True)
    soundfile.write(tmp_path / "audio" / "a.wav", rng.uniform(-0.5, 0.5, (240_000, 2)), 48_000)
    soundfile.write(tmp_path / "audio" / "deep" / "b.flac", rng.uniform(-0.5, 0.5, 16_000), 16_000)
    (tmp_path / "audio" / "notes.txt").write_text("not walked into")
    return tmp_path / "audio"


def bundle() -> Path:
    return shared_bundle().folder


def refused(result: tuple[int, str, str], code: int, *told: str) -> None:
    """One line on stderr that holds `told`, and that exit code."""
    assert result[0] == code, result
    last = result[2].strip().splitlines()[-1]
    assert last.startswith("ced-edge: "), result[2]
    assert "Usage: " not in result[2]
    for text in told:
        assert text in last


def test_tag_json_is_what_the_tagger_says(call: Call, audio: Path) -> None:
    code, out, err = call("tag", audio, "--bundle", bundle(), "--json", "--top", 3, "--jobs", 2)
    assert (code, err) == (0, "")
    a, b = map(json.loads, out.splitlines())
    assert [x["file"] for x in (a, b)] == [str(audio / "a.wav"), str(audio / "deep" / "b.flac")]
    assert (a["seconds"], b["seconds"]) == (5.0, 1.0)
    assert [(w["start_s"], w["end_s"]) for w in a["windows"]] == [(0, 2), (2, 4), (4, 5)]
    tagger, wave = Tagger(bundle()), load(audio / "a.wav", 16_000)
    for found, probs in [
        (a["tags"], tagger.predict(wave)),
        (a["windows"][1]["tags"], tagger.predict_window(wave[32_000:64_000])),
        (b["tags"], tagger.predict_window(load(audio / "deep" / "b.flac", 16_000))),
    ]:
        best = np.argsort(-probs, kind="stable")[:3]
        assert [t["index"] for t in found] == best.tolist()
        assert [t["label"] for t in found] == [labels()[i].name for i in best]
        np.testing.assert_allclose([t["prob"] for t in found], probs[best], rtol=0, atol=1e-5)


def test_tag_as_text(call: Call, audio: Path) -> None:
    code, out, _ = call("tag", audio, "--bundle", bundle(), "--top", 1)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines] == [str(audio / "a.wav"), "all", "0:00.0", "0:02.0", "0:04.0",
                                           str(audio / "deep" / "b.flac"), "all"]  # fmt: skip
    assert lines[0][1] == "0:05.0"


def test_tag_csv_window_and_hop(call: Call, audio: Path) -> None:
    args = ("--csv", "--top", 2, "--window", 1, "--hop", 0.5)
    code, out, _ = call("tag", audio / "a.wav", "--bundle", bundle(), *args)
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [float(r["start_s"]) for r in rows] == [i / 2 for i in range(9) for _ in range(2)]
    assert {float(r["end_s"]) - float(r["start_s"]) for r in rows} == {1.0}
    assert all(labels()[int(r["index"])].name == r["label"] for r in rows)


def test_tag_threshold(call: Call, audio: Path) -> None:
    _, out, _ = call("tag", audio / "a.wav", "--bundle", bundle(), "--json", "--threshold", 1)
    assert json.loads(out)["tags"] == []
    _, out, _ = call("tag", audio / "a.wav", "--bundle", bundle(), "--threshold", 1)
    assert out.splitlines()[1].split() == ["all", "-"]


def test_a_bad_file_is_told_of_and_the_rest_goes_on(call: Call, audio: Path, tmp_path: Path) -> None:
    (audio / "bad.wav").write_bytes(b"RIFF of nothing")
    (audio / "empty.ogg").write_bytes(b"")
    soundfile.write(audio / "nan.wav", np.full(9_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(audio / "one.wav", np.zeros(1), 48_000)  # of which resampling leaves nothing
    (tmp_path / "none").mkdir()
    code, out, err = call("tag", audio, "no.wav", tmp_path / "none", "--bundle", bundle(), "--json", "--jobs", 3)
    assert code == 1
    assert [Path(json.loads(line)["file"]).name for line in out.splitlines()] == ["a.wav", "b.flac"]
    assert [line.partition(audio.name + "/")[2] or line for line in err.splitlines()] == [
        "bad.wav: not audio",
        "empty.ogg: empty file",
        "nan.wav: the sample at 0.000 s (index 0) is NaN: samples are in [-1, 1]",
        "one.wav: too short: not one sample",
        "ced-edge: cannot use no.wav: no such file",
        f"ced-edge: cannot use {tmp_path / 'none'}: no audio in this folder ({', '.join(sorted(AUDIO_SUFFIXES))})",
        "ced-edge: 6 of 8 files could not be tagged",
    ]


def test_names_that_are_no_files(call: Call, audio: Path) -> None:
    """A folder is no file whatever its name, and a name that the system refuses is no reason to stop."""
    (audio / "a.wav").rename(audio / "x.wav")
    (audio / "deep").rename(audio / "deep.mp3")
    long = "y" * 300 + ".wav"
    code, out, err = call("tag", long, audio, "--bundle", bundle(), "--json")
    assert code == 1
    assert [Path(json.loads(line)["file"]).name for line in out.splitlines()] == ["b.flac", "x.wav"]
    assert err.splitlines() == [
        f"ced-edge: cannot use {long}: unreadable (File name too long)",
        "ced-edge: 1 of 3 files could not be tagged",
    ]


def test_the_newest_bundle_of_the_runs(call: Call, audio: Path) -> None:
    refused(call("tag", audio), 2, "no bundle in runs/*/bundle", "ced-edge export")
    for i, name in enumerate(["old", "new", "other"]):
        folder = Path("runs") / name / "bundle"
        shutil.copytree(bundle(), folder)
        os.utime(folder / "bundle.json", (100 - abs(i - 1), 100 - abs(i - 1)))
    code, out, _ = call("info", "--json")
    assert code == 0
    assert call("info")[1].splitlines()[0].split() == ["bundle", "runs/new/bundle"]
    assert json.loads(out) == json.loads((bundle() / "bundle.json").read_text())


def test_info(call: Call) -> None:
    code, out, err = call("info", bundle())
    assert (code, err) == (0, "")
    for text in ("width 24, 3 heads, 2 blocks", "2 s = 32000 samples at 16000 Hz", "waveform (batch, 32000) float32",
                 "prob (batch, 527)", "24x2-fp32.onnx  fp32", "MB  none", "reference mean_ap      0.5"):  # fmt: skip
        assert text in out
    refused(call("info", "nowhere"), 2, "no such bundle: nowhere")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--window", 0), "a window of 0 s: give seconds above 0"),
        (("--window", 3), "a window of 3 s does not fit"),
        (("--hop", 3), "a hop of 3 s does not fit windows of 2 s"),
        (("--hop", -1), "a hop of -1 s"),
        (("--kind", "int8"), "has no int8 file: it holds 24x2-fp32.onnx"),
        (("--runtime", "tflite"), "has no tflite file"),
        (("--kind", "int5"), "'int5' is not one of"),
        (("--json", "--csv"), "choose one"),
        (("--plot", "x.png"), "--plot draws one file, not 2"),
        (("--bundle", "nowhere"), "no such bundle: nowhere"),
        (("--top", 0), "0 is not in the range 1<=x<=527"),
        (("--threshold", 2), "2.0 is not in the range"),
        (("--threshold", "nan"), "Invalid value for '--threshold': nan is no number"),
    ],
)
def test_tag_refuses(call: Call, audio: Path, args: tuple[object, ...], told: str) -> None:
    given = args if "--bundle" in args else ("--bundle", bundle(), *args)
    result = call("tag", audio, *given)
    refused(result, 2, told)
    assert result[1] == ""


def test_a_broken_bundle_is_told_of_before_any_file_is_read(call: Call, audio: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle(), tmp_path / "bundle")
    with (tmp_path / "bundle" / "24x2-fp32.onnx").open("ab") as f:
        f.write(b"\0")
    for command in (("tag", audio, "--bundle"), ("listen", audio / "a.wav", "--bundle"), ("info",)):
        result = call(*command, tmp_path / "bundle")
        refused(result, 2, "is not the file that was exported")
        assert (result[1], result[2].count("\n")) == ("", 1)


def test_files_of_any_name(call: Call, audio: Path) -> None:
    """Not UTF-8, a line break, what matplotlib would take for a formula, a script that its font lacks."""
    names = [b"bad\xff.wav", b"two\nlines.wav", b"$_$.wav", "犬.wav".encode()]
    for name in names:
        shutil.copy(audio / "a.wav", os.fsencode(audio) + b"/" + name)
    paths = [audio / os.fsdecode(name) for name in names]
    code, out, err = call("tag", *paths, "--bundle", bundle(), "--csv", "--top", 1)
    assert (code, err) == (0, "")
    rows = list(csv.reader(io.StringIO(out)))
    assert [len(row) for row in rows] == [7] * (1 + 3 * len(paths))
    assert rows[4][0] == str(paths[1])
    for path in paths:
        assert call("tag", path, "--bundle", bundle(), "--plot", "a.png")[::2] == (0, "")


def tones(path: Path) -> Path:
    """Noise from 2 to 4 s of 6."""
    wave = np.zeros(6 * 16_000, np.float32)
    wave[2 * 16_000 : 4 * 16_000] = np.random.default_rng(2).uniform(-0.5, 0.5, 2 * 16_000)
    soundfile.write(path, wave, 16_000)
    return path


def test_listen_to_a_file_and_to_stdin(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tones(tmp_path / "x.wav")
    args = ("--bundle", bundle(), "--json", "--top", 2, "--window", 1, "--hop", 0.25, "--on", 0.5, "--off", 0.4)
    code, out, err = call("listen", path, *args)
    assert code == 0
    assert err == "ced-edge: heard 6.0 s in 21 windows\n"
    lines = list(map(json.loads, out.splitlines()))
    tags = [x for x in lines if x["type"] == "tags"]
    assert [x["end_s"] for x in tags] == [1 + i / 4 for i in range(21)]
    expected = Tagger(bundle()).tag(load(path, 16_000), window_s=1.0, hop_s=0.25)
    for seen, t in zip(tags, expected, strict=True):
        assert [x["index"] for x in seen["tags"]] == [label.index for label, _ in t.top(2)]
    assert {x["type"] for x in lines} == {"tags", "event"}
    assert all(0 <= x["start_s"] < x["end_s"] <= 6 and x["peak"] >= 0.5 for x in lines if x["type"] == "event")

    raw = (load(path, 16_000) * 32_768).astype("<i2").tobytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
    code, by_stdin, _ = call("listen", "-", *args)
    assert code == 0
    assert by_stdin == out
    code, events, _ = call("listen", path, *args, "--events")
    assert [json.loads(x) for x in events.splitlines()] == [x for x in lines if x["type"] == "event"]


def test_listen_as_text(call: Call, tmp_path: Path) -> None:
    path = tones(tmp_path / "x.wav")
    dog = ("--class", "Dog=0.001/0.001", "--on", 1)
    code, out, _ = call("listen", path, "--bundle", bundle(), "--top", 1, *dog)
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()][:2] == [["0:00.0", "-", "0:02.0"], ["0:00.5", "-", "0:02.5"]]
    assert len(out.splitlines()) == 9 + 1  # windows of 2 s every 0.5 s, and an event
    event = out.splitlines()[-1]
    assert event.split()[:6] == ["0:00.0", "-", "0:06.0", "Dog", "(at", "most"]
    code, out, _ = call("listen", path, "--bundle", bundle(), "--events", *dog)
    assert code == 0
    assert out.splitlines() == [event]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("x.wav",), "cannot use x.wav: no such file"),
        (("-", "--channels", 0), "0 is not in the range"),
        (("-", "--rate", 0), "0 is not in the range"),
        (("-", "--top", 528), "528 is not in the range"),
        (("x.wav", "--threshold", "nan"), "Invalid value for '--threshold': nan is no number"),
        (("-", "--format", "u8"), "'u8' is not one of 's16le', 'f32le'"),
        (("x.wav", "--on", 0.1), "on 0.1 and off 0.2: 0 < off <= on <= 1"),
        (("x.wav", "--smooth", 0), "smoothing over 0 windows"),
        (("x.wav", "--class", "Dog"), "--class Dog: give NAME=ON/OFF"),
        (("x.wav", "--class", "Dog=high"), "--class Dog=high: give NAME=ON/OFF"),
        (("x.wav", "--class", "Unicorn=0.5/0.4"), "unknown label 'Unicorn'"),
        (("x.wav", "--window", 0), "a window of 0 s"),
        (("x.wav", "--hop", 5), "a hop of 5 s does not fit"),
    ],
)
def test_listen_refuses(call: Call, args: tuple[object, ...], told: str) -> None:
    result = call("listen", *args, "--bundle", bundle())
    refused(result, 2, told)
    assert result[1] == ""


def test_listen_without_a_microphone(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    refused(call("listen", "--bundle", bundle()), 2, "pip install 'ced-edge[mic]'")


def test_listen_to_a_stdin_that_is_closed(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    refused(call("listen", "-", "--bundle", bundle()), 2, "stdin is closed")


def test_a_rate_that_cannot_be(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(bytes(1_000))))
    refused(call("listen", "-", "--rate", 5, "--bundle", bundle()), 2, "a rate of 5 Hz is not between")


def test_listen_tells_what_it_heard_before_an_error(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = load(tones(tmp_path / "x.wav"), 16_000)
    wave[50_000] = np.nan
    soundfile.write(tmp_path / "x.wav", wave, 16_000, subtype="FLOAT")
    args = ("--bundle", bundle(), "--json", "--on", 0.5, "--off", 0.4)
    by_file = call("listen", tmp_path / "x.wav", *args)
    refused(by_file, 2, "the sample at 3.125 s (index 50000) is NaN")
    assert by_file[2].startswith("ced-edge: heard 3.1 s in 4 windows\n")
    lines = list(map(json.loads, by_file[1].splitlines()))
    assert [x["end_s"] for x in lines if x["type"] == "tags"] == [2, 2.5, 3, 3.125]
    assert lines[-1]["type"] == "event"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(wave.astype("<f4").tobytes())))
    assert call("listen", "-", "--format", "f32le", *args) == by_file


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_cleanly_with_the_last_events(tmp_path: Path, number: signal.Signals) -> None:
    """In a process of its own, whose stdin stays open."""
    command = [sys.executable, "-m", "ced_edge", "listen", "-", "--bundle", str(bundle()), "--json", "--window", "1"]
    with subprocess.Popen(
        [*command, "--on", "0.001", "--off", "0.001"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(np.zeros(2 * 16_000, "<i2").tobytes())
        process.stdin.flush()
        lines = [process.stdout.readline()]  # it is at work
        process.send_signal(number)
        lines += process.stdout.readlines()
        told = process.stderr.read().decode()
        assert process.wait() == 0
        process.stdin.close()
    seen = [json.loads(line) for line in lines]
    assert seen[0]["type"] == "tags"
    assert {x["end_s"] for x in seen if x["type"] == "event"} == {seen[-1]["end_s"]}
    assert len([x for x in seen if x["type"] == "event"]) > 500  # all classes, at such a threshold
    assert "Traceback" not in told
    assert told.startswith("ced-edge: heard ")


def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    path = tones(tmp_path / "x.wav")
    command = [
        sys.executable,
        "-m",
        "ced_edge",
        "listen",
        str(path),
        "--bundle",
        str(bundle()),
        "--json",
        "--hop",
        "0.01",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait() == 1
