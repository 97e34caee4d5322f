"""`ced-edge listen`: tags and events on stdout, one line for every mistake, and a clean end."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import Call, refused
from tiny_bundle import edit_bundle, shared_bundle

from ced_edge.audio.read import load
from ced_edge.labels import labels
from ced_edge.runtime.tagger import Tagger

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def bundle() -> Path:
    return shared_bundle().folder


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
    assert err.splitlines() == [
        "ced-edge: warning: digital zeros since 0:00.0: is the microphone muted, or not connected?",
        "ced-edge: warning: no more digital zeros from 0:02.0 on",
        "ced-edge: tagged 6.0 s in 21 windows",
    ]
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


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


@pytest.mark.parametrize("data", [b"", b"\0"])
def test_nothing_came_through_stdin(call: Call, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """As from /dev/null, or from a program that has failed."""
    piped(monkeypatch, data)
    refused(call("listen", "-", "--bundle", bundle()), 1, "no audio came through stdin: did the program that writes it")


def test_a_writer_that_dies_early(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a window, and the last frame is cut: what came is predicted."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (8_000, 2))
    piped(monkeypatch, (wave * 32_768).astype("<i2").tobytes()[:-1])
    code, out, err = call("listen", "-", "--channels", 2, "--bundle", bundle(), "--json")
    assert code == 0
    (window,) = [x for x in map(json.loads, out.splitlines()) if x["type"] == "tags"]
    assert window["end_s"] == pytest.approx(7_999 / 16_000, abs=1e-9)
    assert "the pipe ended within a frame: 3 of its 4 bytes were left out" in err


def test_a_named_pipe_holds_raw_samples(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.random.default_rng(0).integers(-9_000, 9_000, (40_000, 2)).astype("<i2").tobytes()
    args = ("--channels", 2, "--bundle", bundle(), "--json")
    piped(monkeypatch, raw)
    expected = call("listen", "-", *args)
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=lambda: (tmp_path / "fifo").write_bytes(raw))
    writer.start()
    assert call("listen", tmp_path / "fifo", *args) == expected
    writer.join()


def test_an_encoded_file_on_stdin(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "x.mp3", np.random.default_rng(0).normal(0, 0.1, 48_000), 48_000)
    piped(monkeypatch, (tmp_path / "x.mp3").read_bytes())
    refused(call("listen", "-", "--bundle", bundle()), 2, "stdin holds MP3, not raw PCM", "ffmpeg -i - -f s16le")


@pytest.mark.parametrize("format", ["s24le", "s32le", "f32le"])
def test_other_formats_of_samples(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    """The same samples in another format give the same output."""
    values = np.random.default_rng(0).integers(-30_000, 30_000, 40_000)
    raw = {
        "s16le": values.astype("<i2").tobytes(),
        "s24le": b"".join((int(v) << 8).to_bytes(3, "little", signed=True) for v in values),
        "s32le": (values << 16).astype("<i4").tobytes(),
        "f32le": (values / 32_768).astype("<f4").tobytes(),
    }
    found = []
    for name in ("s16le", format):
        piped(monkeypatch, raw[name])
        found.append(call("listen", "-", "--bundle", bundle(), "--json", "--pcm-format", name))
    assert found[0][0] == 0
    assert found[0] == found[1]


@pytest.mark.parametrize("gain", [12, "auto"])
def test_gain_and_level_are_those_of_the_tagger(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: object
) -> None:
    path = tmp_path / "x.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.01, 0.01, 60_000), 16_000)
    code, out, _ = call("listen", path, "--bundle", bundle(), "--json", "--gain", gain, "--top", 1)
    assert code == 0
    tagger: Any = Tagger(bundle())
    expected = tagger.tag_file(path, 2.0, 0.5, gain)
    for line, tags in zip([x for x in map(json.loads, out.splitlines()) if x["type"] == "tags"], expected, strict=True):
        assert line["tags"][0]["prob"] == round(tags.top(1)[0][1], 6)
        assert line["level_dbfs"] == pytest.approx(tags.level.rms_dbfs, abs=0.01)
        assert line["gain_db"] == pytest.approx(tags.level.gain_db, abs=0.01)
        assert line["peak_dbfs"] > line["level_dbfs"] > (-33.5 if gain == 12 else -20.1)


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
    ("args", "message"),
    [
        (("x.wav",), "cannot use x.wav: no such file"),
        (("-", "--channels", 0), "0 is not in the range"),
        (("-", "--rate", 0), "0 is not in the range 1000<=x<=1000000"),
        (("-", "--rate", 5), "5 is not in the range 1000<=x<=1000000"),
        (("-", "--top", 528), "528 is not in the range"),
        (("x.wav", "--gain", "loud"), "Invalid value for '--gain': 'loud' is not a valid float range"),
        (("x.wav", "--gain", 101), "101.0 is not in the range -100.0<=x<=100.0"),
        (("x.wav", "--quiet-after", 0), "0.0 is not in the range x>0"),
        (("x.wav", "--threshold", "nan"), "Invalid value for '--threshold': nan is not a finite number"),
        (("-", "--pcm-format", "u8"), "'u8' is not one of 's16le', 's24le', 's32le', 'f32le'"),
        (("-", "--format", "s16le"), "'s16le' is not one of 'onnx', 'tflite'"),
        (("--device", "0"), "No such option '--device'"),
        (("x.wav", "--rate", 48_000), "--rate has an effect on raw PCM on stdin (SOURCE -) only: leave it out"),
        (("--channels", 2, "--pcm-format", "f32le"), "--channels, --pcm-format has an effect on raw PCM"),
        (("-", "--microphone", 0), "--microphone has an effect on the microphone (no SOURCE) only"),
        (("x.wav", "--on", 0.1), "on 0.1 and off 0.2: 0 < off <= on <= 1"),
        (("x.wav", "--on", "nan"), "nan is not a finite number"),
        (("x.wav", "--min-duration", -1), "-1.0 is not in the range x>=0"),
        (("x.wav", "--smooth", 0), "0 is not in the range x>=1"),
        (("x.wav", "--class", "Dog"), "--class Dog: give NAME=ON/OFF"),
        (("x.wav", "--class", "Dog=high"), "--class Dog=high: give NAME=ON/OFF"),
        (("x.wav", "--class", "Unicorn=0.5/0.4"), "unknown label 'Unicorn'"),
        (("x.wav", "--window", 0), "0.0 is not in the range x>0"),
        (("x.wav", "--hop", 5), "a hop of 5 s does not fit"),
    ],
)
def test_listen_refuses(call: Call, args: tuple[object, ...], message: str) -> None:
    refused(call("listen", *args, "--bundle", bundle()), 2, message)


def test_listen_without_a_microphone(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    refused(call("listen", "--bundle", bundle()), 2, "pip install 'ced-edge[mic]'")


def test_listen_to_a_stdin_that_is_closed(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    refused(call("listen", "-", "--bundle", bundle()), 2, "stdin is closed")


def test_what_was_tagged_before_an_error_is_reported(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = load(tones(tmp_path / "x.wav"), 16_000)
    wave[50_000] = np.nan
    soundfile.write(tmp_path / "x.wav", wave, 16_000, subtype="FLOAT")
    args = ("--bundle", bundle(), "--json", "--on", 0.5, "--off", 0.4)
    by_file = call("listen", tmp_path / "x.wav", *args)
    refused(by_file, 2, "the sample at 3.125 s (index 50000) is NaN", printed=True)
    assert by_file[2].splitlines()[-2] == "ced-edge: tagged 3.1 s in 4 windows"
    lines = list(map(json.loads, by_file[1].splitlines()))
    assert [x["end_s"] for x in lines if x["type"] == "tags"] == [2, 2.5, 3, 3.125]
    assert lines[-1]["type"] == "event"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(wave.astype("<f4").tobytes())))
    assert call("listen", "-", "--pcm-format", "f32le", *args) == by_file


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_cleanly_with_the_last_events(tmp_path: Path, number: signal.Signals) -> None:
    """In a child process whose stdin stays open."""
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
        lines = [process.stdout.readline()]  # it has started
        process.send_signal(number)
        lines += process.stdout.readlines()
        message = process.stderr.read().decode()
        assert process.wait() == 0
        process.stdin.close()
    seen = [json.loads(line) for line in lines]
    assert seen[0]["type"] == "tags"
    assert {x["end_s"] for x in seen if x["type"] == "event"} == {seen[-1]["end_s"]}
    assert len([x for x in seen if x["type"] == "event"]) > 500  # nearly all classes reach such a threshold
    assert "Traceback" not in message
    assert message.splitlines()[-1].startswith("ced-edge: tagged ")


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


def test_a_bundle_decides_its_own_thresholds(call: Call, tmp_path: Path) -> None:
    """A class that never reaches 0.4 has events if the bundle says so, unless --on or --class say something else."""
    folder = Path(shutil.copytree(bundle(), tmp_path / "bundle"))
    path = tones(tmp_path / "x.wav")
    peaks = np.max([t.probs for t in Tagger(folder).tag_file(path, 2.0, 0.5)], axis=0)
    i = int(peaks.argmin())
    name, peak = labels()[i].name, float(peaks[i])
    assert peak < 0.4
    edit_bundle(folder, lambda m: m.update(thresholds={name: 0.99 * peak}))

    def found(*args: object) -> bool:
        code, out, _ = call("listen", path, "--bundle", folder, "--json", "--events", *args)
        assert code == 0
        return any(x["type"] == "event" and x["label"] == name for x in map(json.loads, out.splitlines()))

    assert found()
    assert not found("--on", 0.4)
    assert not found("--class", f"{name}=0.4/0.2")
    edit_bundle(folder, lambda m: m.update(thresholds={}))
    assert not found()
