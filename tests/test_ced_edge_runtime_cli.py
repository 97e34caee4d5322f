"""`ced-edge tag` and `info`: results on stdout, one line for every mistake."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from conftest import Call, refused
from tiny_bundle import shared_bundle

from ced_edge.audio.base import AUDIO_SUFFIXES
from ced_edge.audio.read import load
from ced_edge.labels import labels
from ced_edge.runtime import backends
from ced_edge.runtime.tagger import Tagger


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def bundle() -> Path:
    return shared_bundle().folder


def test_tag_json_is_what_the_tagger_predicts(call: Call, audio: Path) -> None:
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
    assert out.splitlines()[1].split() == ["all", "-18.8", "dBFS", "-"]


def test_a_bad_file_is_reported_and_the_others_are_tagged(call: Call, audio: Path, tmp_path: Path) -> None:
    (audio / "bad.wav").write_bytes(b"RIFF of nothing")
    (audio / "empty.ogg").write_bytes(b"")
    soundfile.write(audio / "nan.wav", np.full(9_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(audio / "one.wav", np.zeros(1), 48_000)  # resampling leaves no sample of it
    (tmp_path / "none").mkdir()
    code, out, err = call("tag", audio, "no.wav", tmp_path / "none", "--bundle", bundle(), "--json", "--jobs", 3)
    assert code == 1
    assert [Path(json.loads(line)["file"]).name for line in out.splitlines()] == ["a.wav", "b.flac"]
    lines = [line.partition(audio.name + "/")[2] or line for line in err.splitlines()]
    assert lines[2].startswith("nan.wav: the sample at 0.000 s (index 0) is NaN: samples are in [-1, 1]; ")
    assert lines[:2] + lines[3:] == [
        "bad.wav: not audio",
        "empty.ogg: empty file",
        "one.wav: too short: no sample is left at 16000 Hz",
        "ced-edge: cannot use no.wav: no such file",
        f"ced-edge: cannot use {tmp_path / 'none'}: no audio in this folder ({', '.join(sorted(AUDIO_SUFFIXES))})",
        "ced-edge: 6 of 8 files could not be tagged",
    ]


def test_names_that_are_no_files(call: Call, audio: Path) -> None:
    """A folder may be called like a sound. A name that the system refuses does not stop the others."""
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


def test_without_a_bundle_the_newest_of_the_runs_is_used(
    call: Call, audio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ced_edge.options.PACKAGED", Path("nowhere"))
    refused(call("tag", audio), 2, "no bundle in runs/*/bundle", "ced-edge export")
    packaged = shutil.copytree(bundle(), Path("packaged").absolute())
    monkeypatch.setattr("ced_edge.options.PACKAGED", packaged)
    code, out, err = call("info")
    assert (code, out.splitlines()[0].split(), err) == (
        0, ["bundle", str(packaged)], f"ced-edge: using the bundle of this package, {packaged}\n"
    )  # fmt: skip
    for i, name in enumerate(["old", "new", "other"]):
        folder = Path("runs") / name / "bundle"
        shutil.copytree(bundle(), folder)
        os.utime(folder / "bundle.json", (100 - abs(i - 1), 100 - abs(i - 1)))
    code, out, err = call("info", "--json")
    assert (code, err) == (0, "ced-edge: using the bundle runs/new/bundle\n")
    assert call("info")[1].splitlines()[0].split() == ["bundle", "runs/new/bundle"]
    code, _, err = call("listen", audio / "a.wav", "--json")
    assert (code, err.splitlines()[0]) == (0, "ced-edge: using the bundle runs/new/bundle")
    assert json.loads(out) == json.loads((bundle() / "bundle.json").read_text())


def test_info(call: Call) -> None:
    code, out, err = call("info", "--bundle", bundle())
    assert (code, err) == (0, "")
    for text in ("width 24, 3 heads, 2 blocks", "2 s = 32000 samples at 16000 Hz", "waveform (batch, 32000) float32",
                 "prob (batch, 527)", "24x2-fp32.onnx  fp32", "MB  none", "reference mean_ap      0.5"):  # fmt: skip
        assert text in out
    refused(call("info", "--bundle", "nowhere"), 2, "no such bundle: nowhere")
    refused(call("info", bundle()), 2, "unexpected extra argument")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--window", 0), "'--window': 0.0 is not in the range x>0"),
        (("--window", "inf"), "'--window': inf is not a finite number"),
        (("--window", 3), "a window of 3 s does not fit"),
        (("--hop", 3), "a hop of 3 s does not fit windows of 2 s"),
        (("--hop", -1), "'--hop': -1.0 is not in the range x>0"),
        (("--kind", "int8"), "has no int8 file: it holds 24x2-fp32.onnx"),
        (("--format", "tflite"), "has no tflite file"),
        (("--runtime", "tflite"), "'tflite' is not one of 'onnxruntime', 'ai-edge-litert', 'tflite-runtime', 'tens"),
        (("--runtime", "tensorflow"), "tensorflow does not run 24x2-fp32.onnx"),
        (("--threads", 0), "0 is not in the range x>=1"),
        (("--kind", "int5"), "'int5' is not one of"),
        (("--json", "--csv"), "choose one"),
        (("--plot", "x.png"), "--plot draws one file, not 2"),
        (("--bundle", "nowhere"), "no such bundle: nowhere"),
        (("--top", 0), "0 is not in the range 1<=x<=527"),
        (("--threshold", 2), "2.0 is not in the range"),
        (("--threshold", "nan"), "Invalid value for '--threshold': nan is not a finite number"),
    ],
)
def test_tag_refuses(call: Call, audio: Path, args: tuple[object, ...], message: str) -> None:
    given = args if "--bundle" in args else ("--bundle", bundle(), *args)
    refused(call("tag", audio, *given), 2, message)


def test_a_broken_bundle_is_reported_before_any_file_is_read(call: Call, audio: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle(), tmp_path / "bundle")
    with (tmp_path / "bundle" / "24x2-fp32.onnx").open("ab") as f:
        f.write(b"\0")
    for command in (("tag", audio), ("listen", audio / "a.wav"), ("info",)):
        result = call(*command, "--bundle", tmp_path / "bundle")
        refused(result, 2, "is not the file that was exported")
        assert result[2].count("\n") == 1


def test_the_chosen_runtime_threads_and_kind_reach_every_tagger(
    call: Call, audio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, int, str | None]] = []
    real = backends.load_backend

    def load(path: Path, threads: int = 1, runtime: str | None = None) -> backends.Backend:
        loaded.append((path.name, threads, runtime))
        return real(path, threads, runtime)

    monkeypatch.setattr("ced_edge.runtime.tagger.load_backend", load)
    flags = ("--bundle", bundle(), "--runtime", "onnxruntime", "--threads", 2, "--kind", "fp32", "--format", "onnx")
    assert call("tag", audio, audio, *flags, "--jobs", 2, "--json")[0] == 0
    assert call("listen", audio / "a.wav", *flags)[0] == 0
    assert set(loaded) == {("24x2-fp32.onnx", 2, "onnxruntime")}


def test_files_of_any_name(call: Call, audio: Path) -> None:
    """Not UTF-8, a line break, a formula of matplotlib, and a script that its font lacks."""
    names = [b"bad\xff.wav", b"two\nlines.wav", b"$_$.wav", "犬.wav".encode()]
    for name in names:
        shutil.copy(audio / "a.wav", os.fsencode(audio) + b"/" + name)
    paths = [audio / os.fsdecode(name) for name in names]
    code, out, err = call("tag", *paths, "--bundle", bundle(), "--csv", "--top", 1)
    assert (code, err) == (0, "")
    rows = list(csv.reader(io.StringIO(out)))
    assert [len(row) for row in rows] == [7] * (1 + 3 * len(paths))
    assert rows[4][0] == str(paths[1])
    # As text, a name is one line that a terminal only prints.
    _, out, _ = call("tag", paths[1], "--bundle", bundle(), "--top", 1)
    assert out.startswith(f"{audio / 'two'} lines.wav  0:")
    for path in paths:
        assert call("tag", path, "--bundle", bundle(), "--plot", "a.png")[::2] == (0, "")


def test_tag_reads_stdin_and_named_pipes(
    call: Call, audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of any kind, which cannot be read twice."""
    data = (audio / "deep" / "b.flac").read_bytes()
    args = ("--bundle", bundle(), "--json")
    expected = json.loads(call("tag", audio / "deep" / "b.flac", *args)[1])
    fifo = tmp_path / "fifo.flac"
    os.mkfifo(fifo)
    for name in ("-", fifo):
        back, front = os.pipe()
        target = front if name == "-" else fifo

        def write(target: int | Path = target) -> None:
            with open(target, "wb") as f:
                f.write(data)

        writer = threading.Thread(target=write)
        writer.start()
        with os.fdopen(back, "rb") as stdin:
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
            code, out, err = call("tag", name, *args)
        writer.join()
        if name != "-":
            os.close(front)
        assert (code, err) == (0, "")
        assert json.loads(out) == expected | {"file": str(name)}
        refused(call("tag", name, "--bundle", bundle(), "--plot", "a.png"), 2, "--plot reads its file several times")


@pytest.mark.parametrize("data", [b"", b"no audio at all"])
def test_a_stdin_without_audio(call: Call, monkeypatch: pytest.MonkeyPatch, data: bytes, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as stdin:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
        refused(call("tag", "-", "--bundle", bundle()), 1, "1 of 1 files could not be tagged")
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = call("tag", "-", "--bundle", bundle())
    assert code == 1
    assert err.splitlines()[0] == "ced-edge: cannot use -: stdin is closed: pipe a file into it"


def test_the_faults_of_a_file_are_reported_once(call: Call, tmp_path: Path) -> None:
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 8 * 16_000)
    wave[2 * 16_000 : 6 * 16_000] = 0
    wave[6 * 16_000 :] *= 1e6
    soundfile.write(tmp_path / "x.wav", np.clip(wave, -1, 1), 16_000)
    code, out, err = call("tag", tmp_path / "x.wav", "--bundle", bundle(), "--json")
    assert code == 0
    assert err.splitlines() == [
        f"ced-edge: {tmp_path / 'x.wav'}: digital zeros in 2 of 4 windows, the first at 0:02.0",
        f"ced-edge: {tmp_path / 'x.wav'}: clipped in 1 of 4 windows, the first at 0:06.0",
    ]
    found = json.loads(out)
    rms = [20 * np.log10(np.sqrt(np.mean(wave[i * 32_000 : (i + 1) * 32_000] ** 2)) + 1e-99) for i in range(4)]
    assert [w["level_dbfs"] for w in found["windows"]] == [
        pytest.approx(rms[0], abs=0.01), None, None, pytest.approx(0, abs=0.01)
    ]  # fmt: skip
    assert found["peak_dbfs"] == pytest.approx(0, abs=0.01)
    hostile = tmp_path / "\x1b[2J\nx.wav"
    shutil.copy(tmp_path / "x.wav", hostile)
    lines = call("tag", hostile, "--bundle", bundle())[2].splitlines()
    assert [line.startswith(rf"ced-edge: {tmp_path}/\x1b[2J x.wav: ") for line in lines] == [True, True]
    _, louder, _ = call("tag", tmp_path / "x.wav", "--bundle", bundle(), "--json", "--gain", -20)
    assert json.loads(louder)["level_dbfs"] == pytest.approx(found["level_dbfs"] - 20, abs=0.02)
